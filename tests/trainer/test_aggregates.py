"""The comparison of scores: on rows that neither the models nor the stack have seen."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from shared.score import ScoreKind, score
from trainer.aggregates import Aggregates, compare, formula_of
from trainer.models.rows import Rows

M = 60_000
COUNT = 4000
HORIZON = 30
TEST = np.arange(1000, COUNT)
LABELS = {
    "high_10_k_a": "high_10",
    "high_15_k_a": "high_15",
    "low_10_k_a": "low_10",
    "high_10_k_b": "high_10",
}


def made(seed: int = 0) -> tuple[Rows, dict[str, np.ndarray]]:
    """Rises and falls, and outputs: one model that knows of both sides, one of none."""
    random = np.random.default_rng(seed)
    signal = random.normal(size=COUNT)
    up = (signal + random.normal(size=COUNT) > 1).astype(float)
    down = (-signal + random.normal(size=COUNT) > 1.2).astype(float)
    for y in (up, down):
        y[-HORIZON:] = np.nan
    open_ms = np.arange(COUNT, dtype=np.int64) * M
    y = {
        "high_10": up,
        "high_15": up * (random.random(COUNT) < 0.3),
        "low_10": down,
    }
    rows = Rows(
        x=np.empty((COUNT, 1), np.float32),
        y=y,
        open_ms=open_ms,
        t1_ms=dict.fromkeys(y, open_ms + HORIZON * M),
        index=np.arange(COUNT, dtype=np.int64),
        symbol=np.zeros(COUNT, np.int16),
        left_out=np.zeros(1, bool),
    )
    test = signal[TEST]
    logistic = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    outputs = {
        "high_10_k_a": logistic(test - 1),
        "high_15_k_a": logistic(0.3 * random.normal(size=len(TEST))),
        # it says the opposite: a stack that may weigh it can mend that
        "low_10_k_a": logistic(2 * test - 1),
    }
    return rows, outputs


def happened(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Returns and first touches of the test rows: as the labels of 10 have it."""
    up, down = (rows.y[name][TEST] for name in ("high_10", "low_10"))
    returns = up - down + np.random.default_rng(5).normal(size=len(TEST))
    return returns, up - down


def compared(rows: Rows, outputs: dict[str, np.ndarray]) -> Aggregates:
    return compare(rows, outputs, TEST, LABELS, *happened(rows), block=30, seed=1)


def test_every_score_is_measured_on_the_second_half() -> None:
    rows, outputs = made()
    found = compared(rows, outputs)
    second = np.arange(2500, COUNT)
    up, down = rows.y["high_10"][second], rows.y["low_10"][second]
    one = ~np.isnan(up) & (up != down)
    names = ["high_10_k_a", "high_15_k_a", "low_10_k_a"]
    values = np.column_stack([outputs[name][1500:] for name in names])
    for kind in (ScoreKind.RATIO, ScoreKind.DIFFERENCE, ScoreKind.LOGIT_MEAN):
        said = score(formula_of(kind, names[:2], names[2:], None), names, values)
        figures = found.found[kind]
        assert figures.auc == pytest.approx(roc_auc_score(up[one], said[one]))
        assert figures.auc_low is not None
        assert figures.auc_high is not None
        assert figures.auc_low < figures.auc < figures.auc_high
        returns = happened(rows)[0][1500:]
        known = ~np.isnan(returns)
        rank = stats.spearmanr(returns[known], said[known]).statistic
        assert figures.rank_correlation == pytest.approx(rank)
        assert figures.rows == 1500
        assert figures.cases == min(up[one].sum(), (1 - up[one]).sum())
    # only the stack can turn the wrong model round
    assert found.best is ScoreKind.STACK
    assert found.found[ScoreKind.STACK].auc > 0.85
    assert found.found[ScoreKind.RATIO].auc < 0.6


def test_the_stack_that_is_measured_has_not_seen_the_rows_it_is_measured_on() -> None:
    rows, outputs = made()
    found = compared(rows, outputs)
    # labels of the second half, and of the rows before it that look into it
    changed = {name: y.copy() for name, y in rows.y.items()}
    for name in ("high_10", "low_10"):
        changed[name][2500 - HORIZON : -HORIZON] = 1 - changed[name][2500 - HORIZON : -HORIZON]
    other = compared(replace(rows, y=changed), outputs)
    for kind, figures in found.found.items():
        # rises for falls and falls for rises: the same score has one minus the AUC
        assert other.found[kind].auc == pytest.approx(1 - figures.auc, abs=1e-12)
    assert other.stacks != found.stacks  # the release's is fitted on the whole tail


def test_the_stack_of_the_release_gives_no_say_to_models_without_outputs() -> None:
    rows, outputs = made()
    stacks = compared(rows, outputs).stacks
    assert stacks is not None
    for stack in stacks:
        assert set(stack.weights) == set(LABELS)
        assert stack.weights["high_10_k_b"] == 0
    up, down = stacks
    assert up.weights["high_10_k_a"] > 0 > down.weights["high_10_k_a"]
    assert up.weights["low_10_k_a"] > 0 > down.weights["low_10_k_a"]


def test_on_outputs_that_know_nothing_no_score_tells_anything() -> None:
    rows, _ = made()
    random = np.random.default_rng(9)
    noise = {name: random.uniform(0.1, 0.4, len(TEST)) for name in list(LABELS)[:3]}
    for figures in compared(rows, noise).found.values():
        assert figures.auc_low is not None
        assert figures.auc_high is not None
        assert figures.auc_low < 0.5 < figures.auc_high


def test_without_cases_or_a_side_nothing_is_told() -> None:
    rows, outputs = made()
    calm = replace(rows, y=rows.y | {"low_10": np.zeros(COUNT)})
    found = compared(calm, outputs)
    assert found.stacks is None
    assert ScoreKind.STACK not in found.found
    few = {name: values[:15] for name, values in outputs.items()}
    told = (values[:15] for values in happened(rows))
    short = compare(rows, few, TEST[:15], LABELS, *told, block=30, seed=1)
    assert short.best is None
    assert {figures.auc for figures in short.found.values()} == {None}
    del outputs["low_10_k_a"]
    assert compared(rows, outputs).found == {}
