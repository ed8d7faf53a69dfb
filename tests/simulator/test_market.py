"""Candles of every interval, with gaps, as a function of market time."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import BadInput
from shared.klines import KlineTable
from simulator.book import DEPTH, first_levels, ladder, lots_at
from simulator.market import Market, Series
from simulator.synthetic import generate
from simulator.wire import text

START = 1_735_689_600_000
MINUTE = 60_000


def with_gaps(missing: set[int], minutes: int = 240) -> tuple[Series, KlineTable]:
    whole = generate("BTCUSDT", "1m", START, START + minutes * MINUTE)
    keep = np.array([i not in missing for i in range(minutes)])
    table = KlineTable(
        symbol="BTCUSDT",
        interval="1m",
        open_time_ms=whole.open_time_ms[keep],
        values=whole.values[keep],
    )
    return Market([table]).series["BTCUSDT"], table


@given(
    missing=st.sets(st.integers(0, 239), max_size=120),
    interval=st.sampled_from([("3m", 3), ("5m", 5), ("15m", 15), ("1h", 60)]),
)
@settings(max_examples=40, deadline=None)
def test_larger_candles_are_the_fold_of_the_minutes_that_exist(
    missing: set[int], interval: tuple[str, int]
) -> None:
    name, size = interval
    series, table = with_gaps(missing)
    level = series.level(name)
    rows = dict(zip(table.open_time_ms.tolist(), table.values.tolist(), strict=True))
    at = 0
    for bucket in range(START, START + 240 * MINUTE, size * MINUTE):
        inside = [rows[t] for t in range(bucket, bucket + size * MINUTE, MINUTE) if t in rows]
        if not inside:
            continue
        candle = level.candle(at)
        assert candle.open_time_ms == bucket
        assert candle.values[0] == inside[0][0]
        assert candle.values[1] == max(row[1] for row in inside)
        assert candle.values[2] == min(row[2] for row in inside)
        assert candle.values[3] == inside[-1][3]
        for column in range(4, 9):
            assert candle.values[column] == pytest.approx(sum(row[column] for row in inside))
        at += 1
    assert at == len(level)


def test_rows_without_a_price_never_existed() -> None:
    _, table = with_gaps(set())
    table.values[10:20] = np.nan
    series = Market([table]).series["BTCUSDT"]
    opens = [c.open_time_ms for c in series.klines("1m", None, None, 1000, START + 240 * MINUTE)]
    assert len(opens) == 230
    assert START + 10 * MINUTE not in opens


def test_paging_by_start_time_ends_and_gives_every_candle_once() -> None:
    series, table = with_gaps({50, 51, 52})
    now, start = START + 200 * MINUTE + 5_000, 0
    seen: list[int] = []
    while page := series.klines("1m", start, None, 70, now):
        seen += [candle.open_time_ms for candle in page]
        start = seen[-1] + 1
    assert seen == table.open_time_ms[table.open_time_ms <= now].tolist()


@given(
    start=st.none() | st.integers(-5, 250),
    end=st.none() | st.integers(-5, 250),
    limit=st.integers(1, 300),
    now=st.integers(0, 240 * 60),
)
@settings(max_examples=80, deadline=None)
def test_klines_are_the_window_that_was_asked_for(
    start: int | None, end: int | None, limit: int, now: int
) -> None:
    series, table = with_gaps({0, 7, 8, 100, 239})
    now_ms = START + now * 1000
    start_ms = None if start is None else START + start * MINUTE
    end_ms = None if end is None else START + end * MINUTE
    there = [
        t
        for t in table.open_time_ms.tolist()
        if t <= now_ms and (start_ms is None or t >= start_ms) and (end_ms is None or t <= end_ms)
    ]
    expected = there[-limit:] if start_ms is None else there[:limit]
    got = series.klines("1m", start_ms, end_ms, limit, now_ms)
    assert [candle.open_time_ms for candle in got] == expected


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=0))
def test_every_number_survives_the_trip(value: float) -> None:
    written = text(value)
    assert float(written) == value
    assert "e" not in written


def test_a_file_without_candles_is_refused() -> None:
    with pytest.raises(BadInput, match="no candle"):
        Market(
            [
                KlineTable(
                    symbol="X",
                    interval="1m",
                    open_time_ms=np.array([], dtype=np.int64),
                    values=np.empty((0, 9)),
                )
            ]
        )


@pytest.mark.parametrize("volume", [0.5, 22.0, 4e6])
def test_levels_one_by_one_are_those_of_the_whole_side(volume: float) -> None:
    """The order side makes levels one by one where depth makes a whole side: equal bits."""
    table = generate("BTCUSDT", "1m", START, START + 300 * MINUTE)
    values = table.values.copy()
    values[:, 4:] *= volume / 22.0
    values[:, [4, 7]] = np.round(values[:, [4, 7]], 5)
    series = Market([dataclasses.replace(table, values=values)]).series["BTCUSDT"]
    random = np.random.default_rng(3)
    for at_ms in (START + random.integers(0, 299 * MINUTE, 120)).tolist():
        price, bought = series.last_price(at_ms)
        last = round(price * 10**series.price_digits), bought
        for is_bid in (True, False):
            whole = ladder(series, at_ms, last, DEPTH, is_bid=is_bid)
            assert list(first_levels(series, at_ms, last, 30, is_bid=is_bid)) == whole[:30]
            for tick, lots in random.permutation(whole)[:5].tolist():
                assert lots_at(series, at_ms, last, tick, is_bid=is_bid) == lots
                assert lots_at(series, at_ms, last, tick + 1, is_bid=is_bid) in (
                    0, dict(whole).get(tick + 1),
                )  # fmt: skip
