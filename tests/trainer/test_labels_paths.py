"""The area about the close and the clearest trend, against plain sums and exact fractions."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.walks import CLOSE, coarse, table_of, walk
from trainer.labels import definition, label


def area(close: list[float], window: int) -> list[float]:
    """The seed's: rows t .. t+window-1 beside the close of row t."""
    found = []
    for t in range(len(close)):
        d = [x - close[t] for x in close[t : t + window]]
        size = math.fsum(map(abs, d))
        whole = len(d) == window and size > 0  # a NaN makes it False
        found.append(math.fsum(d) / size if whole else math.nan)
    return found


@given(
    kind=st.sampled_from([walk, coarse]),
    count=st.integers(0, 400),
    window=st.integers(2, 50),
    seed=st.integers(0, 10**6),
    gaps=st.lists(st.tuples(st.integers(0, 399), st.integers(1, 5)), max_size=2),
)
@settings(max_examples=40, deadline=None)
def test_the_area_ahead_is_its_definition(
    kind: object, count: int, window: int, seed: int, gaps: list
) -> None:
    values = kind(count, seed, gaps)  # type: ignore[operator]
    found = label(f"close_area_future_{window}", table_of(values), 7)
    wanted = area(values[:, CLOSE].tolist(), window)
    np.testing.assert_array_equal(np.isnan(found.y), np.isnan(wanted))
    np.testing.assert_allclose(found.y, wanted, rtol=0, atol=1e-11)
    assert found.t1.tolist() == [min(t + window - 1, count - 1) for t in range(count)]


def test_the_area_of_a_rise_is_1_of_a_fall_minus_1_and_of_a_flat_window_not_known() -> None:
    values = np.full((30, 9), 1.0)
    values[:10, CLOSE] = range(10, 20)
    values[10:20, CLOSE] = range(20, 10, -1)
    values[20:, CLOSE] = 11
    y = label("close_area_future_5", table_of(values)).y
    assert (y[:6] == 1).all()
    assert (y[10:16] == -1).all()
    assert np.isnan(y[20:]).all()


def squared_t(y: list[Fraction]) -> tuple[Fraction | None, int]:
    """(square of the slope's t-value, its sign); None: infinite. 0 for a flat line."""
    n = len(y)
    middle, mean = Fraction(n - 1, 2), sum(y) / n
    spread = sum((i - middle) ** 2 for i in range(n))
    slope = sum((i - middle) * (v - mean) for i, v in enumerate(y)) / spread
    rest = sum((v - mean - slope * (i - middle)) ** 2 for i, v in enumerate(y))
    if slope == 0:
        return Fraction(0), 0
    if rest == 0:
        return None, 1 if slope > 0 else -1
    return slope**2 / (rest / (n - 2) / spread), 1 if slope > 0 else -1


@pytest.mark.parametrize("kind", [walk, coarse])
@pytest.mark.parametrize(("window", "lengths"), [(33, (20, 25, 30, 33)), (20, (20,)), (2, (2,))])
def test_the_clearest_trend_is_its_definition(
    kind: object, window: int, lengths: tuple[int, ...]
) -> None:
    count = 90
    values = kind(count, window, [(50, 1)])  # type: ignore[operator]
    values[60:75, CLOSE] = 700.0 + 3.0 * np.arange(15)  # straight
    values[75:, CLOSE] = 745.0  # flat
    t_label = label(f"trend_t_h{window}", table_of(values), 7)
    up, down = (label(f"trend_{way}", table_of(values), window) for way in ("up", "down"))
    cap = Fraction(100_000) ** 2
    compared = 0
    for t in range(count):
        rows = values[t : t + window + 1, CLOSE].tolist()
        assert t_label.t1[t] == up.t1[t] == down.t1[t] == min(t + window, count - 1)
        if len(rows) < window + 1 or any(map(math.isnan, rows)):
            assert np.isnan([t_label.y[t], up.y[t], down.y[t]]).all()
            continue
        exact = [Fraction(x) for x in rows]
        best = {1: Fraction(0), -1: Fraction(0), 0: Fraction(0)}
        for length in lengths:
            square, sign = squared_t(exact[: length + 1])
            best[sign] = max(best[sign], cap if square is None else min(square, cap))
        size = math.sqrt(max(best.values()))
        assert abs(t_label.y[t]) == pytest.approx(size, rel=1e-9, abs=1e-9)
        if size and abs(best[1] - best[-1]) > Fraction(1, 10**6) * max(best.values()):
            compared += 1
            is_up = best[1] > best[-1]
            assert bool(t_label.y[t] > 0) == is_up
            assert (up.y[t], down.y[t]) == (float(is_up), float(not is_up))
    assert compared > 10
    flat = slice(75, 90 - window)
    assert (t_label.y[flat] == 0).all()
    assert (up.y[flat] == 0).all()
    assert (down.y[flat] == 0).all()


def test_the_definition_names_the_lengths_of_the_lines() -> None:
    assert definition("trend_t").endswith("L = 20, 25, 30 .. 180")
    assert definition("trend_up", 33).endswith("L = 20, 25, 30, 33")
    assert definition("trend_t_h9").endswith("L = 9")
