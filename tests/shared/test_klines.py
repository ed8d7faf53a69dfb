"""Tables of candles and the raster they lie on; intervals and times."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import BadInput, Usage
from shared.klines import KLINE_COLUMNS, KlineTable, hole_too_wide, to_raster
from shared.streams import KLINE, ORDER, STREAMS, number_text, schema_text
from shared.times import INTERVALS_MS, floor_ms, interval_ms, iso

M = 60_000


def table(minutes: list[int]) -> KlineTable:
    times = np.array(minutes, dtype=np.int64) * M
    values = np.repeat(times.astype(float)[:, None], len(KLINE_COLUMNS), axis=1)
    return KlineTable(symbol="BTCUSDT", interval="1m", open_time_ms=times, values=values)


@given(st.sets(st.integers(1, 200), min_size=1, max_size=60))
def test_the_raster_has_every_row_once_and_nan_where_nothing_was(minutes: set[int]) -> None:
    found = to_raster(table(sorted(minutes)))
    assert found.open_time_ms.tolist() == [
        minute * M for minute in range(min(minutes), max(minutes) + 1)
    ]
    for time_ms, close in zip(found.open_time_ms, found.column("close"), strict=True):
        if int(time_ms) // M in minutes:
            assert close == time_ms
        else:
            assert np.isnan(close)


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 90_000)), min_size=1, max_size=6),
)
def test_a_raster_of_little_but_gaps_is_refused_by_the_stated_rule(
    pieces: list[tuple[int, int]],
) -> None:
    minutes: list[int] = []
    at = 1
    for count, hole in pieces:
        minutes += range(at, at + count)
        at += count + hole
    rows = minutes[-1] - minutes[0] + 1
    spacings = [b - a - 1 for a, b in itertools.pairwise(minutes)]
    widest = max(spacings, default=0)
    wide = spacings.index(widest) if spacings else 0
    few = min(wide + 1, len(minutes) - wide - 1)
    refused = rows - len(minutes) > 50_000 and (
        rows >= 10 * len(minutes) or widest > len(minutes) or (widest > 50_000 and few <= 10)
    )
    given_table = table(minutes)
    found = hole_too_wide(given_table.open_time_ms, M)
    assert (found is not None) is refused
    if found is None:
        assert len(to_raster(given_table)) == rows
        return
    assert (found.rows, found.candles) == (widest, few)
    assert (found.total, found.raster) == (len(minutes), rows)
    assert int(given_table.open_time_ms[found.index]) == found.open_time_ms
    with pytest.raises(BadInput, match=r"^BTCUSDT 1m: .* apart from the other .*correct its time"):
        to_raster(given_table)


def test_an_outage_in_a_long_history_is_kept_and_a_lone_candle_beyond_it_is_not() -> None:
    long = list(range(1, 70_001))
    assert hole_too_wide(table([*long, *range(130_001, 130_012)]).open_time_ms, M) is None
    found = hole_too_wide(table([*long, 130_001]).open_time_ms, M)
    assert found is not None
    assert found.candles == 1


def test_parts_of_a_table_are_by_time_and_by_position() -> None:
    whole = table([1, 2, 5, 9])
    assert whole.between(2 * M, 9 * M).open_time_ms.tolist() == [2 * M, 5 * M]
    assert whole.tail(2).open_time_ms.tolist() == [5 * M, 9 * M]
    assert len(whole.tail(99)) == 4
    assert len(to_raster(whole.rows(0, 0))) == 0


@pytest.mark.parametrize("interval", ["3d", "1w", "1M", "60", "", "1 m"])
def test_intervals_without_a_raster_are_refused_in_one_line(interval: str) -> None:
    with pytest.raises(Usage, match="not supported; use one of: 1s 1m"):
        interval_ms(interval)


@given(st.integers(0, 2**42), st.sampled_from(list(INTERVALS_MS.values())))
def test_a_floored_time_is_the_last_raster_time(time_ms: int, step_ms: int) -> None:
    found = floor_ms(time_ms, step_ms)
    assert found % step_ms == 0
    assert 0 <= time_ms - found < step_ms


def test_times_read_as_utc() -> None:
    assert iso(1_763_812_800_000) == "2025-11-22T12:00:00Z"
    assert iso(1_763_812_800_250) == "2025-11-22T12:00:00.250Z"


def test_keys_carry_the_symbol_as_a_hash_tag() -> None:
    assert KLINE.key("BTCUSDT", "1m") == "kline:{BTCUSDT}:1m"
    assert ORDER.key("BTCUSDT") == "order:{BTCUSDT}"
    assert all(f'"{stream.name}' in schema_text() for stream in STREAMS)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_shown_exactly(value: float) -> None:
    assert float(number_text(value)) == value


def test_nothing_is_shown_as_nothing() -> None:
    assert number_text(None) == number_text(float("nan")) == ""
    assert number_text(60518.0) == "60518"
