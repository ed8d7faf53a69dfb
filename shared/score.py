"""The score: many model outputs folded into one number, and the side it speaks for.

This is the definition. `bundle.onnx` computes the same inside its graph (that is what live
services, replay and backtest run); the trainer builds the graph from it and tests compare both.
"""

from collections.abc import Sequence
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
    """

    RATIO = "ratio"
    DIFFERENCE = "difference"
    LOGIT_MEAN = "logit_mean"


class Side(StrEnum):
    """What a score speaks for. NONE is the empty string, as in a signal's `side`."""

    BUY = "BUY"
    SELL = "SELL"
    NONE = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreFormula:
    """Names of the models that speak for a rise and for a fall, each side at least one."""

    kind: ScoreKind
    high: tuple[str, ...]
    low: tuple[str, ...]

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
            return _logistic(_mean(_logit(high))) - _logistic(_mean(_logit(low)))


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


def _logit(probability: FloatArray) -> FloatArray:
    kept = np.clip(probability, LOGIT_MARGIN, 1.0 - LOGIT_MARGIN)
    return np.asarray(np.log(kept / (1.0 - kept)))


def _logistic(value: FloatArray) -> FloatArray:
    return np.asarray(1.0 / (1.0 + np.exp(-value)))
