"""The threshold search: its table, robust choice, walk-forward, and what it says about luck."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shared import klinefiles
from shared.config import Settings, SignalSearch
from shared.errors import Usage
from shared.rules import Costs
from tests import plain_trading
from tests.markets import COSTS, MINUTE, market, rules
from trainer import backtest, grid, performance, rasters, signals
from trainer.cli import main
from trainer.grid import Market
from trainer.progress import Progress

HOUR = 60 * MINUTE
SEARCH = SignalSearch(
    buy=(0.05, 0.3, 0.05), sell=(-0.05, -0.25, 0.05), periods=4, min_trades=5, neighbourhood=1,
    blocks=6,
)  # fmt: skip


def hourly(rows: int, seed: int, skill: float) -> Market:
    """Hourly candles whose score knows `skill` of the next hours' returns."""
    random = np.random.default_rng(seed)
    moves = random.normal(0, 0.004, rows)
    close = 100 * np.exp(np.cumsum(moves))
    opened = np.append(100.0, close[:-1])
    ahead = np.convolve(np.append(moves[1:], np.zeros(12)), np.ones(12), "full")[11 : 11 + rows]
    noise = np.convolve(random.normal(0, 1, rows + 11), np.ones(12), "valid") / 12**0.5
    score = skill * ahead / 0.004 / 12**0.5 + (1 - skill) * noise
    prices = [opened, np.maximum(opened, close), np.minimum(opened, close), close]
    times = 460_000 * HOUR + HOUR * np.arange(rows, dtype=np.int64)
    return Market.of(times, prices, np.clip(0.3 * score, -1, 1))


def surface(one: Market, direction: str = "long", search: SignalSearch = SEARCH) -> Any:
    own = rules(step_ms=HOUR, exit_long=math.nan, exit_short=math.nan)
    return signals.surface(
        one, own, COSTS, 1e4, search, direction, 2, Progress(quiet=True), "a test"
    )


def report(one: Market, search: SignalSearch = SEARCH) -> dict[str, Any]:
    each = surface(one, search=search)
    own = rules(step_ms=HOUR)
    path, steps = signals.walk_forward(one, each, own, COSTS, 1e4, search)
    return signals.judged(each, steps, path, one, 1e4, search)


def test_steps_are_the_seeds_forty_by_forty_by_default() -> None:
    search = Settings().trainer.signals
    buy, sell = signals.steps_of(search.buy), signals.steps_of(search.sell)
    assert buy.tolist() == [b / 100 for b in range(10, 50)]
    assert sell.tolist() == [-s / 100 for s in range(10, 50)]
    assert signals.steps_of((0.1, 0.1, 0.01)).tolist() == [0.1]
    for wrong in ((0.1, 0.2, 0.0), (0.5, 1.5, 0.1), (0.0, 1.0, 1e-6)):
        with pytest.raises(Usage, match=r"trainer\.signals"):
            signals.steps_of(wrong)


@pytest.mark.parametrize("direction", ["long", "short", "both"])
def test_the_table_is_that_of_the_backtest_of_each_pair(direction: str) -> None:
    one = hourly(1500, 1, 0.1)
    table = surface(one, direction).table
    assert len(table["buy"]) == 30
    for at in (0, 13, 29):
        buy, sell = float(table["buy"][at]), float(table["sell"][at])
        own = rules(
            step_ms=HOUR, buy=buy, sell=sell, exit_long=sell, exit_short=buy,
            longs=direction != "short", shorts=direction != "long",
        )  # fmt: skip
        done = backtest.replay(one, own, COSTS, 1e4)
        truth = backtest.measured(one, done, 1e4).as_dict()
        assert truth["trades"] > 10
        for name in (
            "total_return", "trades", "trades_per_month", "win_rate", "profit_factor", "sharpe",
            "sortino", "max_drawdown", "exposure", "fees",
        ):  # fmt: skip
            assert table[name][at] == pytest.approx(truth[name], rel=1e-9), name


def test_a_plateau_is_preferred_to_a_peak() -> None:
    values = np.zeros((5, 7))
    values[0, 0] = 10.0  # a peak among nothing
    values[2:5, 3:6] = 1.0  # a plateau
    smooth = signals.smoothed(values.ravel(), 5, 7, 1).reshape(5, 7)
    assert values.ravel()[np.argmax(smooth)] == smooth.max() == 1.0
    assert smooth[0, 0] == 0.0
    for at in ((0, 0), (2, 2), (4, 6), (3, 4)):
        rows = slice(max(0, at[0] - 1), at[0] + 2)
        columns = slice(max(0, at[1] - 1), at[1] + 2)
        assert smooth[at] == np.median(values[rows, columns])
    assert signals.smoothed(values.ravel(), 5, 7, 0).tolist() == values.ravel().tolist()


def test_a_pair_whose_neighbours_are_mostly_unknown_is_not_chosen() -> None:
    values = np.full((4, 4), np.nan)
    values[0, 0] = 5.0
    values[2:, 1:] = 1.0
    smooth = signals.smoothed(values.ravel(), 4, 4, 1).reshape(4, 4)
    assert np.isnan(smooth[0, 0])
    assert smooth[3, 2] == 1.0
    assert np.isnan(smooth[0, 3])


def test_walk_forward_is_one_account_with_thresholds_chosen_beforehand() -> None:
    one = hourly(2400, 2, 0.15)
    each = surface(one)
    path, steps = signals.walk_forward(one, each, rules(step_ms=HOUR), COSTS, 1e4, SEARCH)
    ends = one.day_ends
    cuts = [len(ends) * part // 4 for part in range(5)]
    columns = (one.open, one.high, one.low, one.close, one.score, one.volatility)
    candles = list(zip(*(column.tolist() for column in columns), strict=True))
    cash, row = 1e4, 0
    assert [step.buy is not None for step in steps] == [True] * 3
    for number, step in enumerate(steps):
        first, stop = ends[cuts[number + 1] - 1] + 1, ends[cuts[number + 2] - 1] + 1
        before = slice(0, cuts[number + 1])
        medians = []
        for at in range(30):
            around = [
                other for other in range(30)
                if abs(other // 5 - at // 5) <= 1 and abs(other % 5 - at % 5) <= 1
            ]  # fmt: skip
            sharpes = []
            for other in around:
                r = each.returns[other][before]
                traded = each.grid.trips[other][before].sum() >= 5
                sharpes.append(r.mean() / r.std(ddof=1) * 365**0.5 if traded else np.nan)
            medians.append(np.nanmedian(sharpes))
        best = int(np.argmax(medians))
        assert (step.buy, step.sell) == (each.table["buy"][best], each.table["sell"][best])
        assert step.chosen_by == pytest.approx(medians[best])
        assert np.unique(path.buy[first:stop]).tolist() == [step.buy]
        assert step.total_return == pytest.approx(
            path.equity[stop - 1] / path.equity[first - 1] - 1
        )
        row = stop
    assert row == len(one)
    assert path.equity[: path.first_row].tolist() == [cash] * path.first_row
    assert np.isnan(path.buy[: path.first_row]).all()
    # the first of the three periods as the plain loop has it
    own = rules(step_ms=HOUR, buy=steps[0].buy, sell=steps[0].sell, exit_long=steps[0].sell)
    first, stop = ends[cuts[1] - 1] + 1, ends[cuts[2] - 1] + 1
    worth, _ = plain_trading.trade(candles[first:stop], own, COSTS, cash, HOUR)
    np.testing.assert_allclose(path.equity[first:stop], worth, atol=0.005)


def test_luck_is_called_luck_and_skill_is_not() -> None:
    for seed in (3, 4, 5):
        lucky = report(hourly(3000, seed, 0.0))
        assert lucky["lucky"], lucky["verdict"]
        assert " is lucky: " in lucky["verdict"]
    skilled = report(hourly(3000, 3, 0.5))
    assert not skilled["lucky"], skilled["verdict"]
    assert " holds up: " in skilled["verdict"]
    assert skilled["deflated_sharpe"] > 0.95
    assert skilled["walk_forward"]["sharpe"] > 1
    model = skilled["config"]["signaler"]["model"]
    assert (model["buy_threshold"], model["sell_threshold"]) == (
        skilled["robust"]["buy"],
        skilled["robust"]["sell"],
    )


def test_deflation_and_overfitting_are_those_of_the_pairs_that_traded() -> None:
    one = hourly(2400, 6, 0.3)
    each = surface(one)
    found = report(one)
    enough = each.table["trades"] >= 5
    daily_fee = each.grid.figures[:, grid.FEES] / each.grid.daily.mean(axis=1) / 100
    sane = enough & (daily_fee / each.returns.std(axis=1, ddof=1) * 365**0.5 < 3)
    assert 5 < sane.sum() == found["trials"]
    sharpes = each.returns.mean(axis=1) / each.returns.std(axis=1, ddof=1)
    hurdle = performance.expected_best(float(np.var(sharpes[sane], ddof=1)), 30)
    assert found["expected_best_sharpe"] == pytest.approx(hurdle * 365**0.5)
    best = int(np.argmax(np.where(enough, sharpes, -np.inf)))
    skew, kurtosis = performance.shape(each.returns[best])
    assert found["deflated_sharpe"] == pytest.approx(
        performance.deflated_sharpe(float(sharpes[best]), hurdle, 100, skew, kurtosis)
    )
    assert found["overfitting"] == performance.overfitting(each.returns[sane], 6)
    assert found["best"]["buy"] == each.table["buy"][best]


def test_without_trades_nothing_is_chosen_and_it_says_so() -> None:
    one = hourly(500, 7, 0.0)
    prices = [one.open, one.high, one.low, one.close]
    still = Market.of(one.open_time_ms, prices, one.score / 100)
    found = report(still)
    assert found["robust"] is None
    assert found["config"] is None
    assert "none of 30 pairs has 5 round trips" in found["verdict"]
    assert found["walk_forward"]["total_return"] == 0.0


def test_fixed_exits_stay_and_may_not_lie_beyond_a_pair() -> None:
    own = rules(exit_long=0.0, exit_short=math.nan)
    points = signals.points_of(np.array([0.1, 0.2]), np.array([-0.1]), own)
    assert points.tolist() == [[0.1, -0.1, 0.0, 0.1], [0.2, -0.1, 0.0, 0.2]]
    with pytest.raises(Usage, match=r"exit_long 0.1 is above the buy threshold 0.05"):
        signals.surface(
            hourly(200, 1, 0.0), rules(step_ms=HOUR, exit_long=0.1), COSTS, 1e4, SEARCH, "long", 1,
            Progress(quiet=True), "",
        )  # fmt: skip


# --- the command ---------------------------------------------------------------------------------


def test_the_command_writes_grid_rows_and_summary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ITB_DATA_FOLDER", str(tmp_path / "DATA"))
    config = tmp_path / "config.json"
    search = {"buy": [0.05, 0.3, 0.05], "sell": [-0.05, -0.25, 0.05], "periods": 4, "blocks": 6}
    config.write_text(json.dumps({"trainer": {"signals": search | {"min_trades": 5}}}))
    one = hourly(2000, 9, 0.4)
    candles = {"open_time_ms": one.open_time_ms}
    candles |= {n: getattr(one, n) for n in ("open", "high", "low", "close")}
    candles["volume"] = np.ones(len(one))
    klines, scores = tmp_path / "YUSDT-1h.parquet", tmp_path / "scores.parquet"
    pq.write_table(pa.table(candles), klines)
    pq.write_table(pa.table({"open_time_ms": one.open_time_ms, "score": one.score}), scores)
    options = ["-c", str(config), "--scores", str(scores), "--klines", str(klines)]
    assert main(["signals", *options, "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out.splitlines()[-1])
    assert result["points"] == 90
    assert 'config lines of the robust choice: "signaler": {"model": {"buy' in captured.err

    folder = tmp_path / "DATA" / "YUSDT-1h-signals"
    table = klinefiles.read_columns(folder / "_about" / "grid.parquet")
    assert len(table["buy"]) == 90
    assert sorted(set(table["direction"].tolist())) == [-1, 0, 1]
    rows = rasters.read_months(folder)
    assert list(rows) == [
        "open_time_ms", "close", "score", "side", "position", "equity", "buy_threshold",
        "sell_threshold",
    ]  # fmt: skip
    over = (rows["score"] > rows["buy_threshold"]).astype(int)
    under = (rows["score"] < rows["sell_threshold"]).astype(int)
    assert rows["side"].tolist() == (over - under).tolist()
    assert set(rows["position"].tolist()) == {0, 1}
    summary = json.loads((folder / "_about" / "signals.json").read_text())
    main_direction = summary["directions"]["long"]
    assert summary["direction"] == "long"
    assert summary["config"] == main_direction["config"]
    assert main_direction["walk_forward"]["total_return"] == pytest.approx(
        rows["equity"][-1] / 10_000 - 1
    )
    assert len(main_direction["walk_forward"]["steps"]) == 3

    before = {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert main(["signals", *options]) == 0
    assert {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert "signals: 90 pairs; YUSDT long: buy " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "code", "says"),
    [
        (60, 1, "scores of 1 days, and 2 are the fewest"),
        (3000, 0, "scores of 4 days cannot be cut into 8 periods (trainer.signals.periods): 4"),
    ],
)
def test_few_days_are_told_and_one_is_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
    code: int,
    says: str,
) -> None:
    monkeypatch.setenv("ITB_DATA_FOLDER", str(tmp_path / "DATA"))
    one = market(rows, 1, gaps=0.0)
    candles = {"open_time_ms": one.open_time_ms, "volume": np.ones(len(one))}
    candles |= {n: getattr(one, n) for n in ("open", "high", "low", "close")}
    klines, scores = tmp_path / "YUSDT-1m.parquet", tmp_path / "scores.parquet"
    pq.write_table(pa.table(candles), klines)
    pq.write_table(pa.table({"open_time_ms": one.open_time_ms, "score": one.score}), scores)
    assert main(["signals", "--scores", str(scores), "--klines", str(klines)]) == code
    assert says in capsys.readouterr().err


def test_costs_lower_every_pair() -> None:
    one = hourly(1500, 1, 0.1)
    points = surface(one).grid.points
    own = rules(step_ms=HOUR, share=1.0)
    worth = [
        grid.search(one, points, own, Costs(fee, slippage, True), 1e4).figures[:, grid.WORTH]
        for fee, slippage in ((0, 0), (0.001, 0), (0.001, 0.001))
    ]
    assert (worth[0] > worth[1]).all()
    assert (worth[1] > worth[2]).all()
