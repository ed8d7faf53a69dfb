"""The score: many model outputs folded into one number, and the side it speaks for.

This is the definition. `bundle.onnx` computes the same inside its graph (that is what live
services, replay and backtest run); the trainer builds the graph from it and tests compare both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

# Outputs are kept this far from 0 and 1 before their logit is taken.
LOGIT_MARGIN = 1e-15


class ScoreKind(StrEnum):
    """How outputs become a score in [-1, +1].

    RATIO: `2 * high / (high + low) - 1` of the means per side (the seed's formula).
    DIFFERENCE: `high - low` of the means per side.
    LOGIT_MEAN: mean of the logits per side, then the difference of the two probabilities.
    STACK: per side a trained logistic model over the logits of all outputs, then the difference of
        the two probabilities.
    """

    RATIO = "ratio"
    DIFFERENCE = "difference"
    LOGIT_MEAN = "logit_mean"
    STACK = "stack"


# Those that need nothing but the outputs.
PLAIN_KINDS = (ScoreKind.RATIO, ScoreKind.DIFFERENCE, ScoreKind.LOGIT_MEAN)


class Side(StrEnum):
    """What a score speaks for. NONE is the empty string, as in a signal's `side`."""

    BUY = "BUY"
    SELL = "SELL"
    NONE = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """One side of STACK: `logistic(bias + sum of weights[model] * logit(output of model))`."""

    weights: Mapping[str, float]
    bias: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreFormula:
    """Names of the models that speak for a rise and for a fall, each side at least one.

    high_stack, low_stack: of STACK alone, with a weight for every model.
    """

    kind: ScoreKind
    high: tuple[str, ...]
    low: tuple[str, ...]
    high_stack: Stack | None = None
    low_stack: Stack | None = None

    def __post_init__(self) -> None:
        is_stack = self.kind is ScoreKind.STACK
        models = {*self.high, *self.low}
        for stack in (self.high_stack, self.low_stack):
            if is_stack is (stack is None):
                raise ValueError("a stack, and nothing else, has weights for both sides")
            if stack is not None and set(stack.weights) != models:
                raise ValueError("a stack has a weight for every model of the score")

    @property
    def stacks(self) -> tuple[Stack, Stack]:
        """(high, low) of a STACK."""
        assert self.high_stack is not None and self.low_stack is not None  # noqa: S101 - checked at the start
        return self.high_stack, self.low_stack

    def columns(self, models: Sequence[str]) -> tuple[list[int], list[int]]:
        """Columns of the high and of the low models in an output matrix with columns `models`."""
        place = {name: column for column, name in enumerate(models)}
        return [place[name] for name in self.high], [place[name] for name in self.low]


def score(formula: ScoreFormula, models: Sequence[str], outputs: FloatArray) -> FloatArray:
    """Scores of many rows.

    outputs: (n, len(models)) float64, probabilities, columns in the order of `models`.
    Returns (n,) float64; NaN where there is no score (an output is NaN; ratio: high + low = 0).
    """
    high, low = (outputs[:, columns] for columns in formula.columns(models))
    match formula.kind:
        case ScoreKind.RATIO:
            high_mean, low_mean = _mean(high), _mean(low)
            with np.errstate(invalid="ignore"):
                return np.asarray(2.0 * high_mean / (high_mean + low_mean) - 1.0)
        case ScoreKind.DIFFERENCE:
            return _mean(high) - _mean(low)
        case ScoreKind.LOGIT_MEAN:
            return _logistic(_mean(logit(high))) - _logistic(_mean(logit(low)))
        case ScoreKind.STACK:
            logits = logit(outputs)
            ups, downs = (
                _logistic(_weighted(logits, [stack.weights[name] for name in models], stack.bias))
                for stack in formula.stacks
            )
            return np.asarray(ups - downs)


def side(score: float | None, buy_threshold: float, sell_threshold: float) -> Side:
    """BUY above `buy_threshold`, SELL below `sell_threshold`; no score (None, NaN) has no side."""
    if score is None:
        return Side.NONE
    if score > buy_threshold:
        return Side.BUY
    if score < sell_threshold:
        return Side.SELL
    return Side.NONE


def _mean(columns: FloatArray) -> FloatArray:
    """Row means, summed from left to right: the order in which the graph sums."""
    total = columns[:, 0].copy()
    for column in range(1, columns.shape[1]):
        total += columns[:, column]
    return np.asarray(total / columns.shape[1])


def _weighted(columns: FloatArray, weights: Sequence[float], bias: float) -> FloatArray:
    """Row sums of the weighted columns from left to right, and the bias last, as in the graph."""
    total = columns[:, 0] * weights[0]
    for column in range(1, columns.shape[1]):
        total += columns[:, column] * weights[column]
    return np.asarray(total + bias)


def logit(probability: FloatArray) -> FloatArray:
    """`ln(p / (1 - p))` of probabilities kept LOGIT_MARGIN from 0 and 1."""
    kept = np.clip(probability, LOGIT_MARGIN, 1.0 - LOGIT_MARGIN)
    return np.asarray(np.log(kept / (1.0 - kept)))


def _logistic(value: FloatArray) -> FloatArray:
    return np.asarray(1.0 / (1.0 + np.exp(-value)))
