"""Target before stop, against a walk through each window, row by row."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.walks import CLOSE, HIGH, LOW, coarse, table_of, walk
from trainer.labels import label, trailing_sigma


def race(
    values: np.ndarray, side: str, targets: list[float], stops: list[float], window: int, edge: bool
) -> tuple[list[float], list[int]]:
    """(y, t1) by the definition. edge: a price that is just reached counts."""
    ys, ends = [], []
    for t in range(len(values)):
        target, stop = targets[t], stops[t]
        y, t1 = math.nan, min(t + window, len(values) - 1)
        rows = values[t : t + window + 1, [CLOSE, HIGH, LOW]]
        if len(rows) == window + 1 and not np.isnan([*rows.ravel(), target, stop]).any():
            y = 0.0
            for r in range(t + 1, t + window + 1):
                high, low = float(values[r, HIGH]), float(values[r, LOW])
                up, down = (target, stop) if side == "high" else (stop, target)
                rises = high > up or (edge and high == up)
                falls = low < down or (edge and low == down)
                if rises or falls:
                    won = (rises and not falls) if side == "high" else (falls and not rises)
                    y, t1 = float(won), r
                    break
        ys.append(y)
        ends.append(t1)
    return ys, ends


tables = {
    "kind": st.sampled_from([walk, coarse]),
    "count": st.integers(0, 90),
    "window": st.integers(1, 40),
    "seed": st.integers(0, 10**6),
    "gaps": st.lists(st.tuples(st.integers(0, 89), st.integers(1, 5)), max_size=2),
}


@given(
    target=st.sampled_from(["02", "05", "20", "005"]), stop=st.sampled_from(["04", "010"]), **tables
)
@settings(max_examples=150, deadline=None)
def test_target_before_stop_is_its_definition(
    kind: object, count: int, window: int, seed: int, gaps: list, target: str, stop: str
) -> None:
    values = kind(count, seed, gaps)  # type: ignore[operator]
    percent = {"02": 0.2, "05": 0.5, "20": 2.0, "04": 0.4, "005": 0.05, "010": 0.1}
    for side, sign in (("high", 1), ("low", -1)):
        wanted = race(
            values,
            side,
            [close * (1 + sign * percent[target] / 100) for close in values[:, CLOSE].tolist()],
            [close * (1 - sign * percent[stop] / 100) for close in values[:, CLOSE].tolist()],
            window,
            edge=False,
        )
        for name, horizon in (
            (f"{side}2_{target}_{stop}", window),
            (f"{side}2_{target}_{stop}_h{window}", 7),
        ):
            found = label(name, table_of(values), horizon)
            np.testing.assert_array_equal(found.y, wanted[0])
            assert found.t1.tolist() == wanted[1]


@given(
    scales=st.sampled_from([("", 1.0, 1.0), ("_150", 1.5, 1.5), ("_200_050", 2.0, 0.5)]), **tables
)
@settings(max_examples=150, deadline=None)
def test_triple_barrier_is_its_definition(
    kind: object, count: int, window: int, seed: int, gaps: list, scales: tuple[str, float, float]
) -> None:
    values = kind(count, seed, gaps)  # type: ignore[operator]
    random = np.random.default_rng(seed)
    sigma = random.choice([np.nan, 0.0, 0.0005, 0.001, 0.003], count)
    numbers, target, stop = scales
    for name, side, sign in (("tb_up", "high", 1), ("tb_down", "low", -1)):
        prices = []
        for scale, way in ((target, sign), (stop, -sign)):
            prices.append(
                [
                    close * (1 + way * scale * (s * math.sqrt(window))) if s > 0 else math.nan
                    for close, s in zip(values[:, CLOSE].tolist(), sigma.tolist(), strict=True)
                ]
            )
        wanted = race(values, side, *prices, window, edge=True)
        for written, horizon in ((f"{name}{numbers}", window), (f"{name}{numbers}_h{window}", 3)):
            found = label(written, table_of(values), horizon, sigma)
            np.testing.assert_array_equal(found.y, wanted[0])
            assert found.t1.tolist() == wanted[1]


def test_a_candle_that_reaches_both_prices_is_the_stop_for_both_sides() -> None:
    values = np.full((4, 9), 100.0)
    values[2, HIGH], values[2, LOW] = 103.0, 97.0
    for name in ("high2_20_20_h2", "low2_20_20_h2"):
        found = label(name, table_of(values))
        assert found.y.tolist()[:2] == [0.0, 0.0]
        assert found.t1.tolist()[:2] == [2, 2]
    sigma = np.full(4, 0.02)
    for name in ("tb_up_h1", "tb_down_h1"):
        found = label(name, table_of(values), sigma=sigma)
        assert found.y.tolist()[1] == 0.0
        assert found.t1.tolist()[1] == 2


def test_a_price_that_is_just_reached_is_a_touch_of_a_barrier_but_not_beyond_a_target() -> None:
    values = np.full((3, 9), 100.0)
    values[1, HIGH] = 100.0 * (1 + 2.0 / 100)
    assert label("high2_20_04_h1", table_of(values)).y[0] == 0.0
    values[1, HIGH] = math.nextafter(values[1, HIGH], math.inf)
    assert label("high2_20_04_h1", table_of(values)).y[0] == 1.0
    values[1, HIGH] = 100.0 * (1 + 0.02)
    assert label("tb_up_h1", table_of(values), sigma=np.full(3, 0.02)).y[0] == 1.0


def test_the_early_touch_before_a_gap_or_the_end_is_not_known_either() -> None:
    """Else the rows kept there would be the quick ones only."""
    values = walk(60, 1)
    values[:, [HIGH, LOW]] = values[:, [CLOSE]] * [1.05, 0.999]  # every row's target is hit at once
    values[40] = math.nan
    found = label("high2_20_50_h10", table_of(values))
    assert np.isnan(found.y[30:41]).all()
    assert np.isnan(found.y[50:]).all()
    assert (found.y[:30] == 1).all()
    assert (found.y[41:50] == 1).all()
    assert found.t1[:30].tolist() == list(range(1, 31))


def test_the_triple_barrier_measures_in_trailing_sigma() -> None:
    values = walk(1000, 9, [(850, 3)])
    sigma = trailing_sigma(values[:, CLOSE])
    for name in ("tb_up", "tb_down_050_200"):
        found, told = (label(name, table_of(values), 20, one) for one in (None, sigma))
        np.testing.assert_array_equal(found.y, told.y)
        assert np.isnan(found.y[:720]).all()
        assert {0.0, 1.0} <= set(found.y.tolist())


@pytest.mark.parametrize("name", ["high2_20_04", "tb_down"])
def test_no_candles_give_no_labels(name: str) -> None:
    found = label(name, table_of(walk(0, 1)), 5)
    assert found.y.shape == found.t1.shape == (0,)
