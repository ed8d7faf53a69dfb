"""Which score tells rises from falls best, out of sample; and the trained one among them, `stack`.

All of it works on outputs for rows that no model was fitted on: those of the purged tail. The stack
is fitted on the first half of them (without rows whose labels look into the second), and every
score is measured on the second half. The stack of the release is then fitted on the whole tail.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression

from shared.score import ScoreFormula, ScoreKind, Stack, logit, score
from trainer.evaluate import auc, auc_interval, rank_correlation
from trainer.labels import side_of
from trainer.models.rows import Rows

FloatArray = npt.NDArray[np.float64]
Positions = npt.NDArray[np.intp]

FEWEST_CASES = 10
# The outputs of one side say nearly the same: strong regularisation keeps their weights alike.
_C = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Direction:
    """How well a score tells rises from falls. None where that is not defined.

    auc, auc_low, auc_high: among rows after which the price moves by one sigma of the label horizon
    within it (`outcomes.first_touch`), whether those that go up first stand above those that go
    down first, with the 95 % block-bootstrap interval. rank_correlation: of the score with the
    return over the horizon. cases: rows of the rarer side; rows: all that were looked at.
    """

    auc: float | None
    auc_low: float | None
    auc_high: float | None
    rank_correlation: float | None
    cases: int
    rows: int

    def as_dict(self) -> dict[str, float | int | None]:
        return {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(self).items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregates:
    """found: kind -> its figures, for the kinds that could be measured. best: the one with the
    highest AUC, None where it cannot be told. stacks: (high, low) for all models, None where the
    tail is too short.
    """

    found: Mapping[ScoreKind, Direction]
    best: ScoreKind | None
    stacks: tuple[Stack, Stack] | None


NOTHING = Aggregates(found={}, best=None, stacks=None)


def compare(
    rows: Rows,
    outputs: Mapping[str, FloatArray],
    test: Positions,
    labels: Mapping[str, str],
    returns: FloatArray,
    touch: FloatArray,
    *,
    block: int,
    seed: int,
) -> Aggregates:
    """Measures every kind of score on the second half of the test rows.

    outputs: model -> (len(test),) out of sample; labels: every model of the score, those without
    outputs too -> its label. returns, touch: (len(test),), `outcomes.after` of the test rows.
    block: rows whose labels overlap.
    """
    sides: dict[str, list[str]] = {"high": [], "low": []}
    for name in outputs:
        sides[str(side_of(labels[name]))].append(name)
    pair = pair_of(rows, test, [labels[name] for name in outputs])
    if pair is None or not len(test):
        return NOTHING
    names = [*sides["high"], *sides["low"]]
    values = np.column_stack([outputs[name] for name in names])
    middle_ms = rows.open_ms[test[len(test) // 2]]
    second = rows.open_ms[test] >= middle_ms
    found: dict[ScoreKind, Direction] = {}
    for kind in ScoreKind:
        stacks = None
        if kind is ScoreKind.STACK:
            stacks = fit_stacks(rows, names, values, test, pair, middle_ms)
            if stacks is None:
                continue
        formula = formula_of(kind, sides["high"], sides["low"], stacks)
        said = score(formula, names, values[second])
        found[kind] = _direction(said, returns[second], touch[second], block, seed)
    told = {kind: d.auc for kind, d in found.items() if d.auc is not None}
    whole = fit_stacks(rows, names, values, test, pair, None)
    if whole is not None:  # models without outputs have no say
        rest = {name: 0.0 for name in labels if name not in outputs}
        high, low = (Stack(weights=dict(s.weights) | rest, bias=s.bias) for s in whole)
        whole = (high, low)
    return Aggregates(
        found=found,
        best=max(told, key=lambda kind: told[kind]) if told else None,
        stacks=whole,
    )


def formula_of(
    kind: ScoreKind,
    high: Sequence[str],
    low: Sequence[str],
    stacks: tuple[Stack, Stack] | None,
) -> ScoreFormula:
    """stacks: needed, and used, for STACK alone."""
    first, second = stacks if kind is ScoreKind.STACK and stacks is not None else (None, None)
    return ScoreFormula(
        kind=kind, high=tuple(high), low=tuple(low), high_stack=first, low_stack=second
    )


def pair_of(rows: Rows, test: Positions, labels: Sequence[str]) -> tuple[str, str] | None:
    """The commonest label of either side; of equally common ones the first."""
    found = []
    for side in ("high", "low"):
        of_side = [name for name in dict.fromkeys(labels) if side_of(name) == side]
        if not of_side:
            return None
        found.append(max(of_side, key=lambda name: float(np.nansum(rows.y[name][test]))))
    return found[0], found[1]


def fit_stacks(
    rows: Rows,
    names: Sequence[str],
    values: FloatArray,
    test: Positions,
    pair: tuple[str, str],
    before_ms: int | None,
) -> tuple[Stack, Stack] | None:
    """One logistic model per side over all logits; None where a side has too few cases.

    before_ms: rows whose labels look at or beyond it are not fitted on.
    """
    stacks = []
    logits = logit(values)
    for label in pair:
        y = rows.y[label][test]
        keep = ~np.isnan(y)
        if before_ms is not None:
            keep &= rows.t1_ms[label][test] < before_ms
        true = int(y[keep].sum())
        if min(true, int(keep.sum()) - true) < FEWEST_CASES:
            return None
        x = logits[keep]
        mean, scale = x.mean(axis=0), x.std(axis=0)
        scale[scale == 0] = 1.0
        fitted = LogisticRegression(C=_C, solver="newton-cholesky").fit((x - mean) / scale, y[keep])
        weights = fitted.coef_[0] / scale
        stacks.append(
            Stack(
                weights=dict(zip(names, weights.tolist(), strict=True)),
                bias=float(fitted.intercept_[0] - weights @ mean),
            )
        )
    return stacks[0], stacks[1]


def _direction(
    said: FloatArray, returns: FloatArray, touch: FloatArray, block: int, seed: int
) -> Direction:
    resolved = ~np.isnan(said) & (np.abs(touch) == 1)
    truth, ranked = touch[resolved] > 0, said[resolved]
    cases = min(int(truth.sum()), int((~truth).sum()))
    low = high = found = None
    if cases >= FEWEST_CASES:
        found = auc(truth, ranked)
        low, high = auc_interval(truth, ranked, block, seed)
    known = ~np.isnan(returns) & ~np.isnan(said)
    return Direction(
        auc=found,
        auc_low=low,
        auc_high=high,
        rank_correlation=rank_correlation(returns[known], said[known]),
        cases=cases,
        rows=len(said),
    )
