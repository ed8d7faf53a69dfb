"""Many klines at once are, byte for byte, the klines one by one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.klines import KlineTable
from simulator.events import Scene, Topic, messages, parse
from simulator.market import Market
from simulator.quick import kline_frames
from simulator.synthetic import generate
from simulator.wire import frame, wrapped

START = 1_735_689_600_000
MINUTE = 60_000


def topic_of(name: str) -> Topic:
    topic = parse(name)
    assert topic is not None
    return topic


def one_by_one(
    market: Market, topic: Topic, prev_ms: int, instants: list[int], unit: int, combined: bool
) -> list[list[tuple[bytes, bool]]]:
    steps = zip([prev_ms, *instants[:-1]], instants, strict=True)
    found = []
    for said in messages(topic, [Scene(market, before, now) for before, now in steps]):
        texts = [(m.render(unit), m.closed) for m in said]
        found.append([(frame(wrapped(topic.name, t) if combined else t), c) for t, c in texts])
    return found


@st.composite
def tables(draw: st.DrawFn) -> KlineTable:
    """A hundred minutes: some missing, some without a trade, some of few trades."""
    symbol = draw(st.sampled_from(["BTCUSDT", "XRPUSDT", "DOGEUSDT", "S7USDT"]))
    table = generate(symbol, "1m", START, START + 100 * MINUTE, seed=draw(st.integers(0, 99)))
    values = table.values.copy()
    for row in draw(st.sets(st.integers(0, 99), max_size=3)):
        values[row, 1:4], values[row, 4:] = values[row, 0], 0.0
    for row in draw(st.sets(st.integers(0, 99), max_size=8)):
        values[row, 6] = draw(st.integers(1, 12))
    gone = draw(st.sets(st.integers(0, 99), max_size=20))
    keep = np.array([row not in gone for row in range(100)])
    return KlineTable(
        symbol=symbol, interval="1m", open_time_ms=table.open_time_ms[keep], values=values[keep]
    )


@given(
    table=tables(),
    first=st.integers(0, 90),
    parts=st.integers(1, 30),
    minutes=st.integers(1, 20),
    unit=st.sampled_from([1, 1000]),
    combined=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_they_are_those_of_events(
    table: KlineTable, first: int, parts: int, minutes: int, unit: int, combined: bool
) -> None:
    market = Market([table])
    topic = topic_of(f"{table.symbol.lower()}@kline_1m")
    series = market.series[table.symbol]
    prev_ms = START + first * MINUTE
    instants = [prev_ms + MINUTE * i // parts for i in range(1, parts * minutes + 1)]
    found = kline_frames(topic, series, prev_ms, instants, unit, combined)
    expected = one_by_one(market, topic, prev_ms, instants, unit, combined)
    if found is not None:
        assert [[] if one is None else [one] for one in found] == expected


def test_an_ordinary_market_is_made_at_once() -> None:
    market = Market([generate("BTCUSDT", "1m", START, START + 100 * MINUTE)])
    instants = [START + MINUTE * i // 4 for i in range(1, 4 * 99)]
    topic = topic_of("btcusdt@kline_1m")
    found = kline_frames(topic, market.series["BTCUSDT"], START, instants, 1, True)
    assert found is not None
    assert [[one] for one in found] == one_by_one(market, topic, START, instants, 1, True)


@pytest.mark.parametrize(
    "name", ["btcusdt@kline_5m", "btcusdt@kline_1s", "btcusdt@aggTrade", "btcusdt@kline_1d@+08:00"]
)
def test_other_streams_are_left_to_events(name: str) -> None:
    market = Market([generate("BTCUSDT", "1m", START, START + 100 * MINUTE)])
    series = market.series["BTCUSDT"]
    assert kline_frames(topic_of(name), series, START, [START + MINUTE], 1, True) is None


@pytest.mark.parametrize("column", [4, 5])
def test_numbers_that_need_more_digits_or_are_missing_are_left_to_events(column: int) -> None:
    table = generate("BTCUSDT", "1m", START, START + 10 * MINUTE)
    for odd in (np.nan, 8e7, 0.1 + 1e-12):
        values = table.values.copy()
        values[3, column] = odd
        other = KlineTable(
            symbol="BTCUSDT", interval="1m", open_time_ms=table.open_time_ms, values=values
        )
        series = Market([other]).series["BTCUSDT"]
        topic = topic_of("btcusdt@kline_1m")
        close = START + 4 * MINUTE
        assert kline_frames(topic, series, close - 1, [close], 1, True) is None
        assert kline_frames(topic, series, close, [close + MINUTE], 1, True) is not None
