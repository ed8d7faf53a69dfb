"""For every form of label: t1 is the last row looked at, and the data's start does not matter."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.walks import CLOSE, coarse, table_of, walk
from trainer.labels import forms, label, spec, trailing_sigma

HORIZON = 30
COUNT = 400
# At a height at which the walks, livelier than real minutes, have both answers.
FORMS = (
    *("high_10", "low_30", "high_05", "high_max_25", "low_min_9", "high_to_low_30"),
    *("highv_050", "lowv", "close_area_future_40", "high2_20_04", "low2_05_10_h50"),
    *("tb_up", "tb_down_050_100_h11", "trend_up", "trend_down_h40", "trend_t", "top2_15_10"),
    *("bot2_10_10", "top2_05_005"),
)
GAPS = [(0, 2), (90, 1), (95, 3), (300, 40)]


def sigma_of(values: np.ndarray) -> np.ndarray:
    """Of a shorter past than the real one, so that short tables will do."""
    return trailing_sigma(values[:, CLOSE], 20)


def test_every_form_is_tried_here() -> None:
    for form in forms.FORMS:
        assert any(form.pattern.fullmatch(name) for name in FORMS), form.shown


@pytest.mark.parametrize("kind", [walk, coarse])
@pytest.mark.parametrize("name", FORMS)
def test_no_row_after_t1_changes_a_label(name: str, kind: object) -> None:
    values = kind(COUNT, 1, GAPS)  # type: ignore[operator]
    sigma = sigma_of(values)
    whole = label(name, table_of(values), HORIZON, sigma)
    changed = 0
    for cut in range(0, COUNT, 7):
        other = kind(COUNT, 2 + cut, GAPS)  # type: ignore[operator]
        other[:cut] = values[:cut]
        found = label(name, table_of(other), HORIZON, sigma)
        same = whole.t1 < cut
        np.testing.assert_array_equal(found.y[same], whole.y[same])
        np.testing.assert_array_equal(found.t1[same], whole.t1[same])
        pending = (np.arange(COUNT) < cut) & ~same & ~np.isnan(found.y + whole.y)
        changed += int((found.y[pending] != whole.y[pending]).sum())
    if kind is walk:
        assert changed  # what comes after row t does matter
        assert len(np.unique(whole.y[~np.isnan(whole.y)])) > 1


@pytest.mark.parametrize("name", FORMS)
def test_a_shorter_table_has_the_same_labels(name: str) -> None:
    values = walk(COUNT, 5, GAPS)
    sigma = sigma_of(values)
    whole = label(name, table_of(values), HORIZON, sigma)
    window = spec(name, HORIZON).window
    rows = np.arange(COUNT)
    for cut in range(0, COUNT, 13):
        short = label(name, table_of(values[:cut]), HORIZON, sigma[:cut])
        # Its last window rows are not known, even where an early touch has decided them: module.
        known = rows[:cut] < cut - window if window is not None else np.ones(cut, bool)
        assert np.isnan(short.y[~known]).all()
        same = (whole.t1[:cut] < cut) & known
        np.testing.assert_array_equal(short.y[same], whole.y[:cut][same])
        np.testing.assert_array_equal(short.t1[same], whole.t1[:cut][same])
        assert np.isnan(short.y[~same]).all()
        assert (short.t1 < max(cut, 1)).all()


@pytest.mark.parametrize("name", FORMS)
def test_a_gap_in_the_row_or_its_window_makes_a_label_unknown(name: str) -> None:
    values = walk(COUNT, 6, GAPS)
    found = label(name, table_of(values), HORIZON, sigma_of(values))
    is_gap = np.isnan(values[:, CLOSE])
    for t in range(COUNT):
        window = spec(name, HORIZON).window
        last = found.t1[t] if window is None else t + window
        if last >= COUNT or is_gap[t : last + 1].any():
            assert np.isnan(found.y[t])
    assert (~np.isnan(found.y)).any()


@pytest.mark.parametrize("count", [0, 1, 2, 5])
@pytest.mark.parametrize("name", FORMS)
def test_a_table_that_is_too_short_gives_nothing_but_unknowns(name: str, count: int) -> None:
    for values in (walk(count, 1), np.full((count, 9), np.nan), np.full((count, 9), 7.0)):
        found = label(name, table_of(values), HORIZON)
        assert found.y.shape == found.t1.shape == (count,)
        assert found.y.dtype == np.float64
        assert found.t1.dtype == np.int64
        assert np.isnan(found.y).all()
        assert (found.t1 >= np.arange(count)).all()
        assert (found.t1 < max(count, 1)).all()


@given(start=st.integers(0, 350), seed=st.integers(0, 1000), name=st.sampled_from(FORMS))
@settings(max_examples=100, deadline=None)
def test_labels_do_not_depend_on_where_the_data_starts(start: int, seed: int, name: str) -> None:
    values = walk(600, seed, GAPS)
    sigma = sigma_of(values)
    whole = label(name, table_of(values), HORIZON, sigma)
    late = label(name, table_of(values[start:]), HORIZON, sigma[start:])
    same = np.ones(600 - start, bool)
    if spec(name).window is None:
        same = ~np.isnan(late.y)  # until the first turning point, more is known with more history
    assert late.y[same].tobytes() == whole.y[start:][same].tobytes()
    np.testing.assert_array_equal(late.t1[same] + start, whole.t1[start:][same])
