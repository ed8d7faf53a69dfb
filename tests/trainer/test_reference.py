"""What a release says about its training rows, against plain computations."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from shared.reference import (
    Reference,
    joint_distances,
    novelty_of,
    parse,
    score_shift,
    shifts,
)
from trainer.models.rows import Rows
from trainer.reference import reference

M = 60_000
NAMES = ("normal", "skewed", "often_missing", "constant", "left_out")
DAYS = 30


def rows(days: int = DAYS, seed: int = 0, symbols: int = 1) -> Rows:
    """Candles of some days; `normal` is a slow random walk within each day."""
    rng = np.random.default_rng(seed)
    count = days * 1440
    x = np.empty((count, len(NAMES)), np.float32)
    x[:, 0] = rng.normal(size=count)
    x[:, 1] = rng.lognormal(0, 1.5, count)
    x[:, 2] = rng.normal(5, 2, count)
    x[rng.random(count) < 0.3, 2] = np.nan
    x[:, 3] = 7.25
    x[:, 4] = np.nan
    open_ms = 28_000_000 * M - 28_000_000 * M % 86_400_000 + M * np.arange(count, dtype=np.int64)
    return Rows(
        x=x,
        y={},
        open_ms=open_ms,
        t1_ms={},
        index=open_ms // M,
        symbol=(np.arange(count) % symbols).astype(np.int16),
        left_out=np.array([False, False, False, False, True]),
    )


def made(given: Rows, scores: np.ndarray | None = None) -> Reference:
    content = reference(given, NAMES, M, scores, given.open_ms[: 0 if scores is None else None])
    return parse(content)


def test_each_feature_is_described_by_its_quantiles() -> None:
    given = rows()
    found = made(given)
    assert found.names == NAMES[:4]  # what no model uses is left out
    assert (found.rows, found.stretch_rows) == (DAYS * 1440, 1440)
    for column, name in enumerate(found.names[:3]):
        values = given.x[:, column].astype(float)
        there = values[~np.isnan(values)]
        one = found.features[name]
        assert one.median == pytest.approx(np.median(there))
        low, high = np.quantile(there, [0.1587, 0.8413])
        assert one.spread == pytest.approx((high - low) / 2)
        assert (one.low, one.high) == pytest.approx(tuple(np.quantile(there, [0.005, 0.995])))
        assert len(one.bins.edges) == 9
        assert one.bins.shares[:-1] == pytest.approx(
            [0.1 * (1 - np.isnan(values).mean())] * 10, abs=1e-3
        )
        assert one.bins.shares[-1] == pytest.approx(np.isnan(values).mean())
    assert found.features["normal"].spread == pytest.approx(1, abs=0.02)
    constant = found.features["constant"]
    assert (constant.median, constant.spread) == (7.25, 0)


def test_novelty_is_1_at_the_farthest_hundredth_of_the_training_rows() -> None:
    given = rows()
    found = made(given)
    novelty, together = found.novelties(given.x[:, :4].astype(np.float64))
    assert (novelty > 1).mean() == pytest.approx(0.01, abs=0.002)
    assert (together > 1).mean() == pytest.approx(0.01, abs=0.002)
    z = (given.x[:, :3] - [found.features[name].median for name in NAMES[:3]]) / [
        found.features[name].spread for name in NAMES[:3]
    ]
    z = np.clip(np.column_stack([z, np.zeros(len(z))]), -10, 10)
    expected = np.sqrt(np.nanmean(z**2, axis=1))
    assert novelty == pytest.approx(expected / np.quantile(expected, 0.99), rel=0.02)


def related(days: int = 4, seed: int = 3) -> Rows:
    """Two features that are nearly one, a third for itself, a fourth that never moved."""
    given = rows(days, seed)
    noise = np.random.default_rng(seed + 1).normal(0, 0.2, len(given))
    given.x[:, 1] = given.x[:, 0] + noise
    return given


def test_values_that_never_occurred_together_are_novel_and_named() -> None:
    given = related()
    found = made(given)
    middle = np.array([found.features[name].median for name in NAMES[:4]])
    apart = middle + np.array([1.5, -1.5, 0, 0])
    told = novelty_of(apart, found)
    assert told.own < 0.7
    assert told.joint is not None
    assert told.joint > 2
    assert told.value == told.joint
    assert {name for name, _ in told.surprising[:2]} == {"normal", "skewed"}
    assert str(told).startswith(f"{told.value:.2f} (deviations from what the other features say: ")
    like = novelty_of(middle + np.array([1.5, 1.5, 0, 0]), found)
    assert like.joint is not None
    assert like.joint < 0.7


def test_the_distance_of_a_combination_is_mahalanobis_s() -> None:
    given = related()
    found = made(given)
    z = found.spreads(given.x[:, :4].astype(np.float64))
    filled = np.where(np.isnan(z), 0, z)
    # of what never moved there is no covariance: its own z counts
    covariance = filled.T @ filled / len(z) + np.diag([0.01, 0.01, 0.01, 1.0])
    expected = np.sqrt(
        np.einsum("ni,ij,nj->n", filled, np.linalg.inv(covariance), filled)
        / (~np.isnan(z)).sum(axis=1)
    )
    assert found.combination is not None
    together = joint_distances(z[:500], found.combination.matrix)
    assert together == pytest.approx(expected[:500])
    assert found.combination.distances["0.99"] == pytest.approx(np.quantile(expected, 0.99))


def test_a_surprise_is_the_residual_of_a_regression_on_the_other_features() -> None:
    given = related()
    found = made(given)
    z = np.nan_to_num(found.spreads(given.x[:, :4].astype(np.float64)))
    products = z.T @ z / len(z) + np.diag([0.01, 0.01, 0.01, 1.0])
    others = [1, 2, 3]
    coefficients = np.linalg.solve(products[np.ix_(others, others)], products[others, 0])
    width = np.sqrt(products[0, 0] - coefficients @ products[others, 0])
    expected = (z[:, 0] - z[:, others] @ coefficients) / width
    whole = ~np.isnan(given.x[:, 2])
    surprises = [found.surprises(row)[0] for row in given.x[whole][:200, :4].astype(np.float64)]
    assert surprises == pytest.approx(expected[whole][:200], abs=1e-6)


def test_a_file_of_an_earlier_version_knows_nothing_of_combinations() -> None:
    found = made(rows(3))
    older = json.loads(found.model_dump_json())
    del older["combination"]
    old = parse(json.dumps(older).encode())
    values = rows(1).x[:50, :4].astype(np.float64)
    assert old.novelty(values).tobytes() == found.novelties(values)[0].tobytes()
    told = novelty_of(values[0], old)
    assert (told.joint, told.surprising) == (None, ())


def test_a_row_has_the_same_bits_alone_and_among_others() -> None:
    given = rows(3)
    found = made(given)
    values = given.x[:200, :4].astype(np.float64)
    assert np.isnan(values).any()
    together = np.array(found.novelties(values))
    alone = np.array([found.novelties(row[None]) for row in values])[:, :, 0].T
    assert together.tobytes() == alone.tobytes()
    for width in (1, 2, 3, 51, 64, 65):
        z = np.random.default_rng(width).normal(size=(5_000, width))
        w = np.tril(np.random.default_rng(width + 1).normal(size=(width, width)))
        many = joint_distances(z, w)  # several blocks
        assert many == pytest.approx(np.sqrt(np.mean((z @ w.T) ** 2, axis=1)))
        assert many[-50:].tobytes() == b"".join(
            joint_distances(row[None], w).tobytes() for row in z[-50:]
        )


def test_the_farthest_features_are_named() -> None:
    found = made(rows())
    values = np.array([0.0, found.features["skewed"].median, 5.0 - 8 * 2.0, 7.0])
    told = novelty_of(values, found)
    assert [name for name, _ in told.farthest[:2]] == ["constant", "often_missing"]
    assert dict(told.farthest)["constant"] == -10  # it never moved before
    assert dict(told.farthest)["often_missing"] == pytest.approx(-8, abs=0.2)
    assert told.joint is not None
    assert told.own < told.joint  # values that are far and go with nothing
    kept = replace(told, joint=told.own / 2)
    assert str(kept).startswith(
        f"{told.value:.2f} (spreads from the training median: constant -10.0"
    )


def test_what_has_no_value_counts_for_nothing() -> None:
    found = made(rows())
    middle = [found.features[name].median for name in NAMES[:4]]
    values = np.array([middle, [np.nan, *middle[1:]], [np.nan] * 4])
    novelty = found.novelty(values)
    assert novelty[:2] == pytest.approx([0, 0], abs=1e-6)
    assert math.isnan(novelty[2])


def test_a_stretch_like_training_is_usual_and_one_that_is_not_is_not() -> None:
    found = made(rows())
    like = rows(1, seed=5).x[:, :4].astype(np.float64)
    usual = shifts(like, found)
    assert not any(one.is_unusual for one in usual.values())
    other = like.copy()
    other[:, 0] += 0.5
    other[:, 2] = np.nan
    other[:, 3] = 7.5
    moved = shifts(other, found)
    assert {name for name, one in moved.items() if one.is_unusual} == {
        "normal", "often_missing", "constant",
    }  # fmt: skip


def test_the_stability_index_is_the_sum_over_bins() -> None:
    found = made(rows())
    bins = found.features["normal"].bins
    live = np.random.default_rng(3).normal(0.4, 1.2, 1440)
    shares = np.histogram(live, [-np.inf, *bins.edges, np.inf])[0]
    a = (np.append(shares, 0) + 0.5) / (1440 + 0.5 * 11)
    floor = 0.5 / (1440 + 0.5 * 11)
    e = np.maximum(bins.shares, floor)
    e /= e.sum()
    expected = float(((a - e) * np.log(a / e)).sum())
    values = np.column_stack([live, live, live, live])
    assert shifts(values, found)["normal"].psi == pytest.approx(expected)


def test_usual_is_what_19_of_20_days_of_training_stay_below() -> None:
    given = rows()
    found = made(given)
    each = [
        shifts(given.x[day * 1440 : (day + 1) * 1440, :4].astype(np.float64), found)["normal"].psi
        for day in range(DAYS)
    ]
    assert found.features["normal"].bins.usual == pytest.approx(np.quantile(each, 0.95))


def test_with_few_days_nobody_says_what_is_usual() -> None:
    found = made(rows(3))
    assert all(one.bins.usual is None for one in found.features.values())
    assert not any(one.is_unusual for one in shifts(rows(1).x[:, :4].astype(float), found).values())


def test_scores_are_held_against_those_out_of_sample() -> None:
    given = rows(12)
    scores = np.tanh(np.random.default_rng(1).normal(0, 0.3, len(given)))
    found = made(given, scores)
    assert found.score is not None
    like = np.tanh(np.random.default_rng(2).normal(0, 0.3, 1440))
    usual = score_shift(like, found)
    assert usual is not None
    assert usual.psi < 0.05
    other = score_shift(like * 0.3, found)
    assert other is not None
    assert other.is_unusual
    assert score_shift(np.full(10, np.nan), found) is None
    assert score_shift(like, made(given)) is None


def test_the_file_is_plain_json_without_nan() -> None:
    given = rows(2)
    content = reference(given, NAMES, M, None, given.open_ms[:0])
    told = json.loads(content)
    assert told["format"] == 1
    assert "NaN" not in content.decode()
    assert "Infinity" not in content.decode()


def test_symbols_have_stretches_of_their_own() -> None:
    """Two symbols in turns: a stretch is half as long, and there are twice as many."""
    one, two = made(rows(6)), made(rows(6, symbols=2))
    assert one.features["normal"].bins.usual is None
    assert two.features["normal"].bins.usual is not None
