"""The newest features among the candles shown and against training; figures are made by hand."""

import math

import numpy as np
import pytest

from dashboard.features import against_training, drift_shown
from dashboard.track import FeatureVector
from shared.errors import BadInput
from shared.events import Drift
from shared.reference import Bins, FeatureReference, Reference

NAMES = ("a", "b", "c")
BINS = Bins(edges=(0.0,), shares=(0.5, 0.5, 0.0), usual=0.4)


def vectors(rows: list[list[float]], schema: str = "s") -> list[FeatureVector]:
    return [FeatureVector(n, schema, np.array(row, "<f8").tobytes()) for n, row in enumerate(rows)]


def reference(*names: str) -> Reference:
    entry = FeatureReference(median=1.0, spread=0.5, low=-2.0, high=4.0, bins=BINS)
    quantiles = dict.fromkeys(("0.5", "0.9", "0.99", "0.999", "1"), 2.0)
    return Reference(
        rows=9,
        stretch_rows=3,
        features=dict.fromkeys(names, entry),
        distances=quantiles,
        score=None,
    )


ROWS = [[1.0, 5.0, math.nan], [2.0, 5.0, 7.0], [3.0, 5.0, math.nan], [3.0, 5.0, math.nan]]


def test_a_value_lies_where_the_smaller_ones_end_and_half_of_its_equals() -> None:
    found = against_training(NAMES, vectors(ROWS), None, None)
    assert found["novelty"] is None
    assert [row["name"] for row in found["features"]] == ["c", "a", "b"]
    c, a, b = found["features"]
    assert (a["value"], a["rank"], a["p50"], a["missing"]) == (3.0, 0.75, 2.5, 0)
    assert (b["rank"], b["p1"], b["p99"]) == (0.5, 5.0, 5.0)
    assert (c["value"], c["rank"], c["missing"], c["p50"]) == (None, None, 0.75, 7.0)
    assert {a[key] for key in ("median", "spreads", "psi", "usual")} == {None}


def test_against_training_what_is_farthest_comes_first() -> None:
    found = against_training(NAMES, vectors(ROWS), reference("a", "b"), None)
    rows = {row["name"]: row for row in found["features"]}
    assert [row["name"] for row in found["features"]] == ["c", "b", "a"]
    assert rows["a"]["spreads"] == pytest.approx((3 - 1) / 0.5)
    assert rows["b"]["spreads"] == pytest.approx((5 - 1) / 0.5)
    assert (rows["a"]["median"], rows["a"]["low"], rows["a"]["high"]) == (1, -2, 4)
    distance = math.sqrt((4**2 + 8**2) / 2)
    assert found["novelty"]["value"] == pytest.approx(distance / 2.0)
    assert [name for name, _ in found["novelty"]["farthest"]] == ["b", "a"]


def test_drift_stands_beside_its_features() -> None:
    drift = Drift(
        open_time_ms=9, first_ms=1, release="r", rows=5, psi={"a": 0.7, "b": 0.1},
        usual={"a": 0.4}, score_psi=0.2, score_usual=0.3, beyond=0.05,
    )  # fmt: skip
    found = against_training(NAMES, vectors(ROWS), None, drift)
    rows = {row["name"]: row for row in found["features"]}
    assert (rows["a"]["psi"], rows["a"]["usual"]) == (0.7, 0.4)
    assert (rows["b"]["psi"], rows["b"]["usual"]) == (0.1, None)
    assert rows["c"]["psi"] is None
    shown = drift_shown(drift)
    assert shown is not None
    assert (shown["unusual"], shown["known"], shown["beyond"]) == (1, 1, 0.05)
    assert shown["novelty_median"] is None
    assert drift_shown(None) is None


def test_vectors_of_another_schema_are_left_out_and_what_does_not_fit_is_refused() -> None:
    found = against_training(NAMES, [*vectors([[9.0] * 2], "old"), *vectors(ROWS)], None, None)
    assert found["features"][1]["p50"] == 2.5
    with pytest.raises(ValueError, match="3 values and 2 names"):
        against_training(NAMES[:2], vectors(ROWS), None, None)
    with pytest.raises(BadInput, match="d is no feature"):
        against_training(NAMES, vectors(ROWS), reference("d"), None)
