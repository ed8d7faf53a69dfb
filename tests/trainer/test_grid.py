"""The compiled grid against the shared rules run candle by candle in Python: equal bits."""

from pathlib import Path

import numpy as np
import pytest

from shared import klinefiles
from shared import rules as shared_rules
from shared.klines import KLINE_COLUMNS
from shared.rules import ENTRY, NONE, Bar, Costs, Rules, start, step
from tests.markets import COSTS, KINDS, NO_COSTS, market, rules
from trainer import grid, rasters
from trainer.grid import Market

POINTS = [(0.05, -0.05), (0.15, -0.2), (0.4, -0.1), (0.02, -0.6), (0.9, -0.9)]


def points(one: Rules) -> np.ndarray:
    """Pairs around the rules' own exits, which stay within them."""
    follows = one.exit_long == -0.15
    return np.array(
        [
            (b, s, s, b) if follows else (b, s, min(b, one.exit_long), max(s, one.exit_short))
            for b, s in POINTS
        ]
    )


def by_hand(one: Market, own: Rules, costs: Costs, capital: float) -> tuple[list[float], ...]:
    """The same figures from `step` alone, every candle, every close looked at."""
    state = start(capital)
    cash, quantity, figures = [], [], [0.0] * 10
    trips = np.zeros(len(one.day_ends), int)
    columns = (one.open, one.high, one.low, one.close, one.score, one.volatility)
    rows = zip(one.open_time_ms.tolist(), *(c.tolist() for c in columns), strict=True)
    days = one.open_time_ms // grid.DAY_MS
    for row, values in enumerate(rows):
        state, *fills = step(state, Bar(*values), own, costs)
        for fill in fills:
            if fill.reason == NONE:
                continue
            figures[grid.FEES] += fill.fee
            figures[grid.TRADED] += fill.price * fill.quantity
            if fill.reason != ENTRY:
                figures[grid.TRADES] += 1
                trips[days[row] - days[0]] += 1
                gain = fill.profit > 0
                figures[grid.WINS] += gain
                figures[grid.GAINED if gain else grid.LOST] += abs(fill.profit)
        cash.append(state.cash)
        quantity.append(state.quantity)
    held = np.array(quantity) != 0
    worth = np.where(held, cash + np.array(quantity) * one.last_close, cash)
    peaks = np.maximum(np.maximum.accumulate(worth), capital)
    figures[grid.HELD] = int(held.sum())
    figures[grid.DRAWDOWN] = float(np.max(1 - worth / peaks))
    figures[grid.WORTH] = float(worth[-1])
    figures[grid.OPEN] = float(np.sign(quantity[-1]))
    return figures, worth[one.day_ends].tolist(), trips.tolist()


def same_bits(one: Market, own: Rules, costs: Costs, capital: float = 10_000.0) -> float:
    found = grid.search(one, points(own), own, costs, capital, workers=2)
    trades = 0.0
    for at, (buy, sell, exit_long, exit_short) in enumerate(found.points.tolist()):
        point = own._replace(buy=buy, sell=sell, exit_long=exit_long, exit_short=exit_short)
        figures, daily, trips = by_hand(one, point, costs, capital)
        assert found.figures[at].tolist() == figures
        assert found.daily[at].tolist() == daily
        assert found.trips[at].tolist() == trips
        trades += figures[grid.TRADES]
    return trades


@pytest.mark.parametrize("kind", KINDS)
def test_every_rule_has_the_bits_of_the_rules_run_candle_by_candle(kind: str) -> None:
    one = market(4000, 11)
    assert same_bits(one, rules(**KINDS[kind]), COSTS) > 60


def test_quiet_markets_and_blocks_of_gaps_have_the_same_bits() -> None:
    """Few scores beyond a threshold: whole blocks are passed over, whose bounds must be right."""
    one = market(12_000, 12, gaps=0.0, wild=0.0005)
    score = np.where(np.arange(len(one)) % 700 < 650, one.score / 20, one.score * 2)
    prices = [one.open.copy(), one.high, one.low, one.close]
    prices[0][3000:5200] = np.nan  # two large blocks without a candle
    one = Market.of(one.open_time_ms, prices, np.clip(score, -1, 1))
    for kind in ("both", "all protection, both", "trailing", "time", "cool-down"):
        assert same_bits(one, rules(**KINDS[kind]), NO_COSTS) > 5


@pytest.mark.parametrize("rows", [1, 2, 31, 32, 33, 1023, 1025])
def test_markets_of_any_length(rows: int) -> None:
    same_bits(market(rows, 3, gaps=0.0), rules(shorts=True), COSTS)


def test_nothing_but_gaps_or_no_score_leaves_the_account_alone() -> None:
    one = market(100, 3)
    nothing = np.full(100, np.nan)
    for market_ in (
        Market.of(one.open_time_ms, [nothing] * 4, one.score),
        Market.of(one.open_time_ms, [one.open, one.high, one.low, one.close], nothing),
    ):
        found = grid.search(market_, points(rules()), rules(), COSTS, 1000.0)
        assert found.figures[:, grid.WORTH].tolist() == [1000.0] * len(POINTS)
        assert not found.figures[:, : grid.WORTH].any()


def test_workers_and_order_change_no_bit() -> None:
    one, own = market(2500, 5), rules(shorts=True, stop_loss=0.01)
    many = np.array([(b / 100, -s / 100, -s / 100, b / 100) for b in range(40) for s in range(5)])
    first = grid.search(one, many, own, COSTS, 1e4, workers=1)
    again = grid.search(one, many[::-1], own, COSTS, 1e4, workers=2)
    assert first.daily.tobytes() == again.daily[::-1].tobytes()
    assert first.figures.tobytes() == again.figures[::-1].tobytes()


def test_real_candles_have_the_same_bits(market_data: Path) -> None:
    [table] = klinefiles.read_klines(sorted((market_data / "vision").glob("BTCUSDT-1m-*.zip"))[:3])
    raster = rasters.join(table)
    prices = [raster.kline[:, KLINE_COLUMNS.index(n)] for n in ("open", "high", "low", "close")]
    score = np.convolve(
        np.random.default_rng(9).normal(0, 1, len(raster) + 60), np.full(61, 0.02), "valid"
    )
    one = Market.of(raster.open_time_ms, prices, np.clip(score, -1, 1))
    for kind in ("seed", "all protection, both"):
        assert same_bits(one, rules(**KINDS[kind]), COSTS) > 40


def test_a_walk_writes_every_close_and_can_be_cut_anywhere() -> None:
    one, own = market(1500, 7), rules(shorts=True, trailing_stop=0.01)
    cash, quantity = np.full(1500, np.nan), np.full(1500, np.nan)
    state = start(1e4)
    for first, stop in ((0, 1), (1, 700), (700, 1500)):
        state = grid.walk(one, first, stop, state, own, COSTS, cash, quantity)
    figures, daily, _ = by_hand(one, own, COSTS, 1e4)
    worth = np.where(quantity == 0, cash, cash + quantity * one.last_close)
    assert worth[one.day_ends].tolist() == daily
    assert worth[-1] == figures[grid.WORTH]


def test_volatilities_are_those_of_the_rules() -> None:
    one = market(400, 2)
    found = grid.volatilities(one.close, 50)
    assert np.isnan(found[:49]).all()
    truth = [shared_rules.volatility(one.close[r - 49 : r + 1].tolist()) for r in range(49, 400)]
    assert found[49:].tobytes() == np.array(truth).tobytes()
    steps = np.diff(np.log(one.close[350:400]))
    assert found[399] == pytest.approx(np.nanstd(steps), rel=1e-12)
    assert np.isnan(grid.volatilities(np.array([1.0, np.nan, 1.0, 2.0]), 4)[-1])


def test_columns_of_the_market() -> None:
    times = np.array([0, 86_340_000, 86_400_000, 2 * 86_400_000], np.int64)
    price = np.array([np.nan, 2.0, np.nan, 3.0])
    one = Market.of(times, [np.ones(4), price, price, price], np.zeros(4))
    assert one.day_ends.tolist() == [1, 2, 3]
    assert one.last_close[1:].tolist() == [2.0, 2.0, 3.0]
    assert np.isnan(one.last_close[0])
    assert np.isnan(one.open[0])  # without all four prices: a gap
    assert np.isnan(one.score[2])
