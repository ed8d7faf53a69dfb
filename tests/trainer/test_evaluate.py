"""Metrics against scikit-learn and brute force."""

import numpy as np
import pytest
from sklearn import metrics as sk

from trainer.evaluate import auc, auc_interval, average_precision, measure


def sample(seed: int, rows: int = 400, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    y = (random.random(rows) < 0.3).astype(float)
    p = np.clip(0.3 + 0.2 * y + random.normal(0, 0.2, rows), 0, 1)
    return y, np.round(p, 1) if ties else p


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_figures_are_scikit_learns(seed: int, ties: bool) -> None:
    y, p = sample(seed, ties=ties)
    found = measure(y, p, block=10, seed=0)
    said = p > 0.5
    assert found.auc == pytest.approx(sk.roc_auc_score(y, p), abs=1e-12)
    assert found.ap == pytest.approx(sk.average_precision_score(y, p), abs=1e-12)
    assert found.brier == pytest.approx(sk.brier_score_loss(y, p), abs=1e-12)
    kept = np.clip(p, 1e-15, 1 - 1e-15)
    assert found.log_loss == pytest.approx(sk.log_loss(y, kept), abs=1e-9)
    assert found.f1 == pytest.approx(sk.f1_score(y, said), abs=1e-12)
    assert found.precision == pytest.approx(sk.precision_score(y, said), abs=1e-12)
    assert found.recall == pytest.approx(sk.recall_score(y, said), abs=1e-12)
    assert found.base_rate == y.mean()
    assert found.rows == len(y)


def test_one_class_has_no_ranking() -> None:
    found = measure(np.zeros(100), np.linspace(0, 1, 100), block=5, seed=0)
    assert (found.auc, found.auc_low, found.auc_high, found.ap) == (None, None, None, None)
    assert found.base_rate == 0


def test_the_interval_is_that_of_resampled_blocks() -> None:
    y, p = sample(3, 300, ties=True)
    truth, block = y > 0.5, 20
    # the same draws, resampled row by row and measured by scikit-learn
    random = np.random.default_rng(11)
    found = []
    for _ in range(8):
        for starts in random.integers(0, 300 - block + 1, (25, 15)):
            rows = np.concatenate([np.arange(start, start + block) for start in starts])
            found.append(sk.roc_auc_score(y[rows], p[rows]))
    assert auc_interval(truth, p, block, 11) == pytest.approx(
        tuple(np.quantile(found, (0.025, 0.975))), abs=1e-12
    )


def test_blocks_of_dependent_rows_widen_the_interval() -> None:
    random = np.random.default_rng(5)
    # 60 independent cases, each repeated 50 times as neighbouring minutes are
    y = np.repeat((random.random(60) < 0.4).astype(float), 50)
    p = np.repeat(np.clip(0.4 + 0.1 * y[::50] + random.normal(0, 0.2, 60), 0, 1), 50)
    single = auc_interval(y > 0.5, p, 1, 0)
    blocks = auc_interval(y > 0.5, p, 50, 0)
    assert single[0] is not None and single[1] is not None
    assert blocks[0] is not None and blocks[1] is not None
    assert blocks[1] - blocks[0] > 3 * (single[1] - single[0])


def test_too_few_rows_for_two_blocks_have_no_interval() -> None:
    y, p = sample(0, 30)
    assert auc_interval(y > 0.5, p, 16, 0) == (None, None)


def test_perfect_and_inverted_ranking() -> None:
    truth = np.array([False, False, True, True])
    assert auc(truth, np.array([0.1, 0.2, 0.3, 0.4])) == 1.0
    assert auc(truth, np.array([0.4, 0.3, 0.2, 0.1])) == 0.0
    assert auc(truth, np.full(4, 0.5)) == 0.5
    assert average_precision(truth, np.array([0.1, 0.2, 0.3, 0.4])) == 1.0


def test_the_seeds_line_of_metrics_txt() -> None:
    y, p = sample(1)
    line = measure(y, p, 10, 0).seed_line("high_10_k_gb")
    name, rest = line.split(", ", 1)
    assert name == "high_10_k_gb"
    assert list(eval(rest)) == ["auc", "ap", "f1", "precision", "recall"]  # noqa: S307 - our own text
