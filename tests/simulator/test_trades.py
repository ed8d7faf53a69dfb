"""The trades inside a candle fold back to the candle."""

from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.klines import KlineTable
from simulator.market import AggTrade, Market, Series
from simulator.synthetic import generate

START = 1_735_689_600_000
MINUTE = 60_000


def fold(orders: list[AggTrade]) -> list[Decimal]:
    """The nine kline columns in exact decimals."""
    rows = [
        (Decimal(repr(o.price)), Decimal(repr(o.quantity)), o.last_id - o.first_id + 1, o)
        for o in orders
    ]
    prices = [price for price, *_ in rows]
    taken = [(price, quantity) for price, quantity, _, o in rows if not o.buyer_is_maker]
    return [
        prices[0],
        max(prices),
        min(prices),
        prices[-1],
        sum((q for _, q, _, _ in rows), Decimal(0)),
        sum((p * q for p, q, _, _ in rows), Decimal(0)),
        Decimal(sum(n for _, _, n, _ in rows)),
        sum((q for _, q in taken), Decimal(0)),
        sum((p * q for p, q in taken), Decimal(0)),
    ]


def series(symbol: str = "BTCUSDT", seed: int = 0, minutes: int = 96) -> Series:
    table = generate(symbol, "1m", START, START + minutes * MINUTE, seed=seed)
    return Market([table], seed=seed).series[symbol]


@given(
    symbol=st.sampled_from(["BTCUSDT", "ETHUSDT", "XRPUSDT", "DOGEUSDT", "NEWUSDT"]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=25, deadline=None)
def test_folding_the_trades_gives_the_candle(symbol: str, seed: int) -> None:
    market = series(symbol, seed)
    for index in range(96):
        expected = [Decimal(repr(float(x))) for x in market.base.values[index]]
        got = fold(market.candle_trades(index))
        assert got[:5] + got[6:8] == expected[:5] + expected[6:8]
        for column in (5, 8):
            assert abs(got[column] - expected[column]) < Decimal("1e-8")


def test_trades_lie_inside_their_candle_in_order_with_ids_without_a_hole() -> None:
    market = series()
    next_id = 1
    for index in range(96):
        opened = START + index * MINUTE
        orders = market.candle_trades(index)
        times = [order.time_ms for order in orders]
        assert times == sorted(times)
        assert times[0] == opened
        assert times[-1] < opened + MINUTE
        for order in orders:
            assert order.first_id == next_id
            assert sum(quantity for _, quantity in order.trades()) == pytest.approx(order.quantity)
            next_id = order.last_id + 1
        assert market.base.first_id[index] == orders[0].first_id
        assert market.base.last_id[index] == orders[-1].last_id


def test_the_path_does_not_depend_on_who_asked_first() -> None:
    one, two = series(), series()
    forward = [one.candle_trades(i) for i in range(96)]
    backward = [two.candle_trades(i) for i in reversed(range(96))]
    assert forward == backward[::-1]


def test_paths_made_together_are_those_made_alone() -> None:
    names = [f"S{i}USDT" for i in range(5)]
    tables = [generate(name, "1m", START, START + 200 * MINUTE) for name in names]
    tables.append(generate("BTCUSDT", "5m", START, START + 200 * MINUTE))
    together = Market(tables, seed=3)
    together.foresee(together.series.values(), START, START + 199 * MINUTE)
    for table in tables:
        one, other = together.series[table.symbol], Market([table], seed=3).series[table.symbol]
        for index in range(len(table)):
            assert one.candle_trades(index) == other.candle_trades(index)
            for now_ms in range(
                table.open_time_ms[index], table.open_time_ms[index] + MINUTE, 7001
            ):
                assert one.partial(index, now_ms) == other.partial(index, now_ms)


def test_a_candle_of_much_value_has_a_path_that_folds_back() -> None:
    table = generate("BTCUSDT", "1d", START, START + 60 * 1440 * MINUTE)
    market = Market([table]).series["BTCUSDT"]
    for index in range(60):
        got = fold(market.candle_trades(index))
        expected = [Decimal(repr(float(x))) for x in table.values[index]]
        assert got[:5] + got[6:8] == expected[:5] + expected[6:8]
        for column in (5, 8):
            assert got[column] == pytest.approx(expected[column], rel=Decimal("1e-12"))


@given(now=st.integers(START, START + 96 * MINUTE), interval=st.sampled_from(["1m", "5m", "1h"]))
@settings(max_examples=60, deadline=None)
def test_the_open_candle_is_the_fold_of_its_trades_so_far(now: int, interval: str) -> None:
    market = series()
    opened = market.open_candle(interval, now)
    if opened is None:
        assert now == START + 96 * MINUTE
        return
    got = fold(market.agg_trades(opened.open_time_ms - 1, now))
    expected = [Decimal(repr(x)) for x in opened.values]
    assert got[:5] + got[6:8] == expected[:5] + expected[6:8]
    assert abs(got[5] - expected[5]) < Decimal("2e-7")
    assert opened.close_time_ms - opened.open_time_ms in (59_999, 299_999, 3_599_999)


@given(
    o=st.integers(1, 10**7),
    moves=st.tuples(*(st.integers(0, 5000) for _ in range(3))),
    volume=st.integers(0, 10**12),
    trades=st.integers(0, 3000),
)
@settings(max_examples=200, deadline=None)
def test_any_price_only_candle_gets_a_path(
    o: int, moves: tuple[int, int, int], volume: int, trades: int
) -> None:
    up, down, part = moves
    high, low = o + up, max(1, o - down)
    close = low + part % (high - low + 1)
    values = np.full((1, 9), np.nan)
    values[0, :5] = [o / 100, high / 100, low / 100, close / 100, volume / 1e8]
    values[0, 6] = trades
    table = KlineTable(symbol="X", interval="1m", open_time_ms=np.array([START]), values=values)
    orders = Market([table]).series["X"].candle_trades(0)
    assert (volume == 0) == (not orders)
    if not orders:
        return
    got = fold(orders)
    assert got[4] == Decimal(volume).scaleb(-8)
    assert got[6] == max(1, min(trades, volume))
    if got[6] >= 4:
        expected = [Decimal(x).scaleb(-2) for x in (o, high, low, close)]
        assert got[:4] == expected
