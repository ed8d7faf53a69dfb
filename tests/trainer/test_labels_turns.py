"""Tops and bottoms against the predecessor's recursion."""

import itertools
import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.walks import CLOSE, coarse, table_of, walk
from trainer.labels import label


def recursion(x: list[float], level: float, tolerance: float) -> list[tuple[int, int, int, int]]:
    """(run start, top, run end, confirming row) of every top, as the predecessor finds them: the
    first greatest price of an interval, and again on what lies before and after the places left and
    right of it where the price is lower by `level`."""
    found = []
    intervals = [(0, len(x) - 1)]
    while intervals:
        start, end = intervals.pop()
        if start > end:
            continue
        top = max(range(start, end + 1), key=lambda i: (x[i], -i))
        far = x[top] - level * abs(x[top])
        near = x[top] - tolerance * abs(x[top])
        left = [i for i in range(start, top) if x[i] < far]
        right = [i for i in range(top + 1, end + 1) if x[i] < far]
        if left and right:
            run = [
                max(i for i in range(start, top) if x[i] < near) + 1,
                min(i for i in range(top + 1, end + 1) if x[i] < near) - 1,
            ]
            found.append((run[0], top, run[1], right[0]))
        if left and start < left[-1]:
            intervals.append((start, left[-1]))
        if right and right[0] < end:
            intervals.append((right[0], end))
    return sorted(found)


def by_recursion(
    x: list[float], level: float, tolerance: float
) -> tuple[list[float], list[int | None]]:
    """(y, t1) of prices without a gap; t1 None where y is not known."""
    tops = recursion(x, level, tolerance)
    y: list[float] = [math.nan] * len(x)
    t1: list[int | None] = [None] * len(x)
    # Turning points in time order: the last lowest price before, between and after the tops, where
    # the price rises enough from it, and the tops.
    turns = []
    edges = [-1, *(top for _, top, _, _ in tops), len(x)]
    for before, after in itertools.pairwise(edges):
        between = range(before + 1, after)
        if between:
            low = min(between, key=lambda i: (x[i], -i))
            higher = [i for i in range(low + 1, len(x)) if x[low] < x[i] - level * abs(x[i])]
            if higher:
                turns.append((low, higher[0]))
        turns += [(top, row) for _, top, _, row in tops if top == after]
    for (before, _), (turn, row) in itertools.pairwise(turns):
        for t in range(before + 1, turn + 1):
            y[t] = float(any(start <= t <= end for start, _, end, _ in tops))
            t1[t] = row
    return y, t1


@given(
    kind=st.sampled_from([walk, coarse]),
    count=st.integers(0, 150),
    seed=st.integers(0, 10**6),
    gaps=st.lists(st.tuples(st.integers(0, 149), st.integers(1, 10)), max_size=2),
    numbers=st.sampled_from([("05", "02"), ("10", "10"), ("10", "003"), ("30", "05")]),
)
@settings(max_examples=200, deadline=None)
def test_tops_and_bottoms_are_those_of_the_recursion(
    kind: object, count: int, seed: int, gaps: list, numbers: tuple[str, str]
) -> None:
    values = kind(count, seed, gaps)  # type: ignore[operator]
    level, tolerance = (int(n) / (1000 if len(n) == 2 else 10_000) for n in numbers)
    close = values[:, CLOSE]
    for side, sign in (("top", 1.0), ("bot", -1.0)):
        found = label(f"{side}2_{numbers[0]}_{numbers[1]}", table_of(values), 7)
        start = 0
        for gap in (*np.flatnonzero(np.isnan(close)).tolist(), count):
            y, t1 = by_recursion((sign * close[start:gap]).tolist(), level, tolerance)
            np.testing.assert_array_equal(found.y[start:gap], y)
            for at, row in enumerate(t1):
                if row is not None:
                    assert found.t1[start + at] == start + row
            if gap < count:
                assert np.isnan(found.y[gap])
            start = gap + 1
        assert (found.t1 >= np.arange(count)).all()
        assert (found.t1 < max(count, 1)).all()


def test_the_tests_walks_have_turns_and_runs() -> None:
    found = label("top2_10_02", table_of(walk(150, 3)))
    assert np.nansum(found.y) > 5
    assert (~np.isnan(found.y)).sum() > 100


def test_a_top_is_known_when_the_price_has_fallen_from_it() -> None:
    close = [100, 90, 95, 99.8, 100, 99.9, 96, 91, 90.5, 95, 94]
    values = np.full((len(close), 9), 1.0)
    values[:, CLOSE] = close
    found = label("top2_50_003", table_of(values))  # 5 %, runs within 0.03 %: above 99.97
    nan = math.nan
    # 90 is a bottom from 95 on (90 < 95 * 0.95 = 90.25), 100 a top from 91 on (< 95), but 90.5 is
    # none: 95 is not high enough above it (90.25), nor will the rows after it ever be.
    np.testing.assert_array_equal(found.y, [nan, nan, 0, 0, 1, nan, nan, nan, nan, nan, nan])
    assert found.t1.tolist() == [2, 2, 7, 7, 7, 10, 10, 10, 10, 10, 10]
    wide = label("top2_50_02", table_of(values))  # within 0.2 %: 99.8 and 99.9 too
    np.testing.assert_array_equal(wide.y[:5], [nan, nan, 0, 1, 1])


def test_a_flat_price_has_no_turns_and_nothing_is_known() -> None:
    values = np.full((50, 9), 7.0)
    for name in ("top2_20_05", "bot2_20_05"):
        assert np.isnan(label(name, table_of(values)).y).all()
