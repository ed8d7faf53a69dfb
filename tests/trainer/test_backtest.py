"""The backtest against a plain loop from the rules' description, closed forms, and its files."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shared import klinefiles
from shared.klines import KLINE_COLUMNS
from shared.rules import Costs
from tests import plain_trading
from tests.markets import COSTS, KINDS, MINUTE, NO_COSTS, market, rules
from trainer import backtest, rasters
from trainer.cli import main
from trainer.grid import Market

CENT = 0.005


def plain(one: Market, rule: Any, costs: Costs, capital: float) -> Any:
    columns = (one.open, one.high, one.low, one.close, one.score, one.volatility)
    candles = list(zip(*(column.tolist() for column in columns), strict=True))
    return plain_trading.trade(candles, rule, costs, capital, MINUTE)


def same(one: Market, rule: Any, costs: Costs, capital: float = 10_000.0) -> int:
    """Compares every close and every trade; returns the number of trades."""
    worth, trades = plain(one, rule, costs, capital)
    done = backtest.replay(one, rule, costs, capital)
    np.testing.assert_allclose(done.equity, worth, rtol=0, atol=CENT)
    assert len(done.trades) == len(trades)
    for ours, theirs in zip(done.trades, trades, strict=True):
        assert ours.side == ("long" if theirs["long"] else "short")
        assert ours.entry_price == pytest.approx(theirs["entry_price"], rel=1e-12)
        if "exit" not in theirs:
            assert ours.exit_reason == "open at the end"
            continue
        assert ours.candles == theirs["exit"] - theirs["entry"]
        assert ours.exit_price == pytest.approx(theirs["exit_price"], rel=1e-12)
        assert ours.exit_reason.startswith(theirs["why"])
        assert ours.profit == pytest.approx(theirs["profit"], abs=CENT)
    return len(trades)


@pytest.mark.parametrize("kind", KINDS)
def test_every_rule_equals_the_plain_loop_to_the_cent(kind: str) -> None:
    for seed, costs in enumerate((COSTS, NO_COSTS, Costs(0.002, 0.001, False))):
        assert same(market(3000, seed), rules(**KINDS[kind]), costs) > 20


def test_every_way_to_leave_occurs() -> None:
    """What the comparison above would be worth nothing without."""
    seen = set()
    for kind in KINDS.values():
        done = backtest.replay(market(3000, 0), rules(**kind), COSTS, 1e4)
        seen |= {trade.exit_reason.partition(" ")[0] for trade in done.trades}
    assert {"score", "stop-loss", "trailing", "take-profit", "time:", "open"} <= seen
    doubling = market(400, 4, wild=0.05)
    short = rules(longs=False, shorts=True, exit_short=1.0, share=1.0)
    [lost] = backtest.replay(doubling, short, COSTS, 1e4).trades
    assert (lost.exit_reason, lost.equity) == ("liquidated", 0.0)
    same(doubling, short, COSTS)


def test_real_candles_equal_the_plain_loop_to_the_cent(market_data: Path) -> None:
    files = sorted((market_data / "vision").glob("BTCUSDT-1m-2021-05-*.zip"))
    files = [files[0], *files[2:]]  # a day is missing: a gap of 1,440 candles
    [table] = klinefiles.read_klines(files)
    raster = rasters.join(table)
    prices = [raster.kline[:, KLINE_COLUMNS.index(n)] for n in ("open", "high", "low", "close")]
    random = np.random.default_rng(4)
    score = np.convolve(random.normal(0, 1, len(raster) + 40), np.full(41, 0.03), "valid")
    one = Market.of(raster.open_time_ms, prices, np.clip(score, -1, 1))
    for kind in ("seed", "all protection, both", "limit orders, as the predecessor"):
        assert same(one, rules(**KINDS[kind]), COSTS) > 30


# --- closed forms --------------------------------------------------------------------------------


def flat(rows: int, price: float = 100.0) -> Market:
    """A market that does not move, and a score that asks for a trade at every candle."""
    prices = [np.full(rows, price)] * 4
    score = np.where(np.arange(rows) % 2 == 0, 0.5, -0.5)
    times = MINUTE * np.arange(rows, dtype=np.int64)
    return Market.of(times, prices, score)


@pytest.mark.parametrize(
    ("costs", "per_trip"),
    [
        (Costs(0.001, 0.0, True), 0.999**2),
        (Costs(0.001, 0.0, False), 0.999 / 1.001),
        (Costs(0.0, 0.0005, True), 0.9995 / 1.0005),
        (Costs(0.001, 0.0005, True), 0.999**2 * 0.9995 / 1.0005),
        (Costs(0.0, 0.0, True), 1.0),
    ],
)
def test_fees_and_slippage_take_exactly_what_they_must(costs: Costs, per_trip: float) -> None:
    done = backtest.replay(flat(201), rules(share=1.0), costs, 10_000.0)
    closed = [trade for trade in done.trades if trade.exit_reason.startswith("score")]
    assert len(closed) == 100
    assert done.equity[-1] == pytest.approx(10_000 * per_trip**100, rel=1e-12)


def test_a_short_pays_its_fees_in_quote_on_both_ends() -> None:
    short = rules(longs=False, shorts=True, share=1.0)
    done = backtest.replay(flat(4), short, Costs(0.001, 0.0005, True), 10_000.0)
    [trade, *_] = done.trades
    sold = 10_000.0
    coins = sold / (100 * 0.9995)
    bought = coins * 100 * 1.0005
    assert trade.profit == pytest.approx(sold - bought - 0.001 * (sold + bought), abs=1e-9)


def test_only_a_part_of_the_account_is_traded() -> None:
    done = backtest.replay(flat(3), rules(share=0.5), Costs(0.01, 0.0, True), 10_000.0)
    assert done.equity[-1] == pytest.approx(5_000 + 5_000 * 0.99**2)


def test_a_decision_fills_at_the_next_open_not_at_its_own_close() -> None:
    times = MINUTE * np.arange(4, dtype=np.int64)
    opened = np.array([100.0, 110.0, 121.0, 130.0])
    close = np.array([105.0, 115.0, 125.0, 135.0])
    one = Market.of(times, [opened, close, opened, close], np.array([0.5, -0.5, 0.0, 0.0]))
    [trade] = backtest.replay(one, rules(share=1.0), NO_COSTS, 1000.0).trades
    assert (trade.entry_price, trade.exit_price) == (110.0, 121.0)
    assert trade.profit == pytest.approx(1000 * 0.1)
    assert trade.entry_reason == "score 0.5 > 0.15"
    assert trade.exit_reason == "score -0.5 < -0.15"


def test_buy_and_hold_pays_the_same_costs_once() -> None:
    one = market(500, 3)
    held = backtest.buy_and_hold(one, COSTS, 1000.0)
    first = int(np.flatnonzero(~np.isnan(one.open[1:]))[0]) + 1
    coins = 1000 / (one.open[first] * 1.0005) * 0.999
    assert held[first - 1] == 1000.0
    assert held[-1] == pytest.approx(coins * one.last_close[-1])
    assert np.isfinite(held).all()


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Market, list[str]]:
    """5 days of candles and their scores as files, and the options that name them."""
    monkeypatch.setenv("ITB_DATA_FOLDER", str(tmp_path / "DATA"))
    one = market(5 * 1440, 8)
    there = ~np.isnan(one.close)
    candles = {"open_time_ms": one.open_time_ms}
    candles |= {n: getattr(one, n) for n in ("open", "high", "low", "close")}
    candles["volume"] = np.ones(len(one))
    klines, scores = tmp_path / "XUSDT-1m.parquet", tmp_path / "scores.parquet"
    pq.write_table(pa.table({n: column[there] for n, column in candles.items()}), klines)
    rows = {"open_time_ms": one.open_time_ms, "close": one.close, "score": one.score}
    pq.write_table(pa.table({n: column[60:-60] for n, column in rows.items()}), scores)
    return one, ["--scores", str(scores), "--klines", str(klines)]


def run(command: str, *arguments: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    code = main([command, *arguments, "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    result = json.loads(captured.out.splitlines()[-1])
    assert isinstance(result, dict)
    return result


def test_the_command_writes_trades_equity_and_summary(
    files: tuple[Market, list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ITB_TRADER__RULES__STOP_LOSS", "0.01")
    one, options = files
    result = run("backtest", *options, "--csv", capsys=capsys)
    folder = tmp_path / "DATA" / "XUSDT-1m-backtest"
    assert result["outputs"][0]["wrote"] == [str(folder), f"{folder}.csv"]
    rows = rasters.read_months(folder)
    with Path(f"{folder}.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["equity"]) for line in lines] == rows["equity"].tolist()
    scored = np.flatnonzero(~np.isnan(one.score[60:-60])) + 60
    part = one.rows(int(scored[0]), int(scored[-1]) + 1)
    assert rows["open_time_ms"].tolist() == part.open_time_ms.tolist()
    costs = Costs(0.001, 0.0002, True)
    worth, trades = plain(part, rules(stop_loss=0.01), costs, 10_000.0)
    np.testing.assert_allclose(rows["equity"], worth, rtol=0, atol=CENT)
    assert set(np.unique(rows["position"])) <= {0, 1}
    peak = np.maximum.accumulate(np.append(10_000.0, worth))[1:]
    np.testing.assert_allclose(rows["drawdown"], 1 - np.array(worth) / peak, atol=1e-9)

    with (folder / "_about" / "trades.csv").open() as file:
        written = list(csv.DictReader(file))
    assert len(written) == len(trades)
    assert [float(w["entry_price"]) for w in written] == pytest.approx(
        [t["entry_price"] for t in trades]
    )
    assert {w["exit_reason"].partition(" ")[0] for w in written} >= {"score", "stop-loss"}
    summary = json.loads((folder / "_about" / "backtest.json").read_text())
    figures = summary["performance"]
    closed = [t for t in trades if "exit" in t]
    assert figures["trades"] == len(closed)
    assert figures["total_return"] == pytest.approx(worth[-1] / 10_000 - 1)
    assert figures["max_drawdown"] == pytest.approx(float(rows["drawdown"].max()))
    assert summary["reasons"]["stop-loss 1 %"] == sum(t["why"] == "stop-loss" for t in closed)
    assert bool(summary["open_at_end"]) == (len(trades) > len(closed)) == bool(rows["position"][-1])
    by_fee = {one["fee"]: one["total_return"] for one in summary["by_fee"]}
    assert by_fee[0.001] == pytest.approx(figures["total_return"], rel=1e-12)
    assert by_fee[0.0] > by_fee[0.0004] > by_fee[0.001] > by_fee[0.002]


def test_a_loss_without_a_round_trip_is_explained(
    files: tuple[Market, list[str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ITB_TRADER__RULES__EXIT_LONG", "-1")
    assert main(["backtest", *files[1]]) == 0
    assert "in 0 round trips and a position that is open still (" in capsys.readouterr().out


def test_it_reads_what_rolling_wrote(
    files: tuple[Market, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, options = files
    direct = run("backtest", *options, capsys=capsys)
    data = tmp_path / "DATA"
    part = slice(60, -60)
    rasters.MonthFolder(data / "XUSDT-1m-features-rolling").write(
        [
            {
                "open_time_ms": one.open_time_ms[part],
                "close": one.close[part],
                "fold": np.zeros(len(one) - 120, np.int64),
                "high_10_k_gb": np.full(len(one) - 120, 0.5),
                "score": one.score[part],
                "high_10": np.zeros(len(one) - 120),
            }
        ],
        {},
    )
    assert main(["merge", "--klines", options[3]]) == 0
    capsys.readouterr()
    again = run("backtest", "--symbol", "XUSDT", capsys=capsys)
    assert again["outputs"][0]["performance"] == direct["outputs"][0]["performance"]


@pytest.mark.parametrize(
    ("change", "code", "reason"),
    [
        ({"score": lambda s: s * 3}, 1, "is not in [-1, +1]"),
        ({"score": lambda s: s * np.nan}, 1, "not one score"),
        ({"close": lambda c: c * 1.01}, 1, "these scores are of another market"),
        ({"open_time_ms": lambda t: t + 86_400_000 * 900}, 1, "do not meet"),
        ({"open_time_ms": lambda t: t + 7}, 1, "is no candle of XUSDT 1m"),
        ({"open_time_ms": lambda t: t[::-1].copy()}, 1, "out of order"),
        ({"open_time_ms": lambda t: np.repeat(t[::2], 2)}, 1, "is there twice"),
        ({"open_time_ms": lambda t: t.astype(float)}, 1, "must be whole milliseconds"),
    ],
)
def test_scores_that_do_not_fit_end_in_one_line(
    files: tuple[Market, list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    code: int,
    reason: str,
) -> None:
    table = pq.read_table(tmp_path / "scores.parquet")
    columns = {name: table[name].to_numpy() for name in table.column_names}
    columns = {name: change.get(name, lambda x: x)(column) for name, column in columns.items()}
    pq.write_table(pa.table(columns), tmp_path / "scores.parquet")
    assert main(["backtest", *files[1]]) == code
    captured = capsys.readouterr()
    [line] = [text for text in captured.err.splitlines() if text.startswith("trainer backtest: ")]
    assert reason in line
    assert not (tmp_path / "DATA" / "XUSDT-1m-backtest").exists()


def test_wrong_options_say_what_to_do(
    files: tuple[Market, list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    klines = files[1][2:]
    cases = [
        (["backtest", *klines], {}, 1, "run `python -m trainer rolling`, or"),
        (["backtest", *klines, "--scores", str(tmp_path / "none")], {}, 1, "no such file"),
        (["backtest", *files[1], "--out", files[1][1]], {}, 2, "name a folder"),
        (["backtest", *files[1]], {"EXIT_LONG": "0.3"}, 2, "above the buy threshold 0.15"),
        (["backtest", *files[1]], {"STOP_LOS": "0.3"}, 2, "did you mean 'stop_loss'?"),
    ]
    for arguments, variables, code, reason in cases:
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(f"ITB_TRADER__RULES__{name}", value)
            assert main(arguments) == code
        assert reason in capsys.readouterr().err
