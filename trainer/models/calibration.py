"""Maps from what a fitted model says to what it should say, small enough to stand in its graph."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.isotonic import IsotonicRegression

from trainer.models import gb, lc, nn, svc

FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]
Core = gb.Boosting | nn.Network | lc.Linear | svc.Vectors

_STEPS = 100
_CLOSE_ENOUGH = 1e-12
_MOST_KNOTS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Platt:
    """`logistic(slope * raw + offset)`."""

    slope: float
    offset: float

    def apply(self, raw: FloatArray) -> FloatArray:
        return logistic(self.slope * raw + self.offset)


@dataclass(frozen=True, slots=True, kw_only=True)
class Isotonic:
    """A line through knots, over `logistic(raw)`.

    at, value, slope: (k,) float64; the first knot stands at 0, after the last the value stays.
    """

    at: FloatArray
    value: FloatArray
    slope: FloatArray

    def apply(self, raw: FloatArray) -> FloatArray:
        x = logistic(raw)
        # the steps of the graph, in their order
        place = np.searchsorted(self.at, x, side="right") - 1
        return np.asarray(self.value[place] + (x - self.at[place]) * self.slope[place])


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescale:
    """`slope * raw + offset`: back from a standardised label to its own unit."""

    slope: float
    offset: float

    def apply(self, raw: FloatArray) -> FloatArray:
        return np.asarray(self.slope * raw + self.offset)


Map = Platt | Isotonic | Rescale


def logistic(raw: FloatArray) -> FloatArray:
    """`1 / (1 + exp(-raw))` with the C library's `exp`, as LightGBM and the graph take it; numpy
    rounds differently where it takes several numbers at a time."""
    return np.array([_logistic(value) for value in raw.tolist()], np.float64)


def _logistic(value: float) -> float:
    try:
        return 1.0 / (1.0 + math.exp(-value))
    except OverflowError:
        return 0.0


def fit_platt(raw: FloatArray, y: FloatArray) -> Platt:
    """The most likely slope and offset, with the targets of Platt (1999): `(n1 + 1) / (n1 + 2)`
    for ones and `1 / (n0 + 2)` for zeros, so that a clean separation ends in no certainty.

    raw: (n,), y: (n,) 0 or 1, both classes. Newton's method with halved steps (Lin, Lin and Weng
    2007); `raw` is standardised meanwhile. A map that would turn the order round (an output that
    ranked the wrong way on these rows) is kept as it is: it is what the rows say.
    """
    ones = float((y > 0.5).sum())
    zeros = len(y) - ones
    targets = np.where(y > 0.5, (ones + 1) / (ones + 2), 1 / (zeros + 2))
    centre, spread = float(raw.mean()), float(raw.std()) or 1.0
    z = (raw - centre) / spread
    slope, offset = 0.0, math.log((ones + 1) / (zeros + 1))
    loss = _loss(slope * z + offset, targets)
    for _ in range(_STEPS):
        p = 1.0 / (1.0 + np.exp(-(slope * z + offset)))
        w = p * (1.0 - p)
        gradient = np.array([np.dot(p - targets, z), (p - targets).sum()])
        hessian = np.array([[np.dot(w * z, z), np.dot(w, z)], [np.dot(w, z), w.sum()]])
        hessian[np.diag_indices(2)] += 1e-10
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while size > 1e-10:
            tried = (slope - size * float(step[0]), offset - size * float(step[1]))
            found = _loss(tried[0] * z + tried[1], targets)
            if found <= loss:
                break
            size /= 2
        else:
            break
        gained, (slope, offset), loss = loss - found, tried, found
        if gained <= _CLOSE_ENOUGH * max(1.0, abs(loss)):
            break
    return Platt(slope=slope / spread, offset=offset - slope * centre / spread)


def _loss(z: FloatArray, targets: FloatArray) -> float:
    return float(np.sum(np.logaddexp(0.0, z) - targets * z))


def fit_isotonic(raw: FloatArray, y: FloatArray) -> Isotonic:
    """Pool-adjacent-violators over `logistic(raw)`, a line through the centres of its blocks.

    Through the centres, and of centres closer than a hundredth of the whole range only the first
    (the last of all stays): the plain steps turn rounding errors of the model into jumps. Values
    are kept `1 / (n + 2)` from 0 and 1.

    raw: (n,), y: (n,) 0 or 1.
    """
    x = logistic(raw)
    order = np.argsort(x, kind="stable")
    x, fitted = x[order], IsotonicRegression().fit_transform(x, y)[order]
    _, block = np.unique(fitted, return_inverse=True)
    rows = np.bincount(block)
    centres = np.bincount(block, x) / rows
    values = np.bincount(block, fitted) / rows
    apart = float(centres[-1] - centres[0]) / _MOST_KNOTS
    kept = [0]
    for place in range(1, len(centres)):
        if centres[place] - centres[kept[-1]] >= apart and centres[place] > centres[kept[-1]]:
            kept.append(place)
    if kept[-1] != len(centres) - 1:
        kept[-1 if len(kept) > 1 else len(kept) :] = [len(centres) - 1]
    at, values = centres[kept], values[kept]
    margin = 1.0 / (len(y) + 2)
    value = np.clip(values, margin, 1.0 - margin)
    if at[0] > 0.0:
        at, value = np.append(0.0, at), np.append(value[0], value)
    return Isotonic(at=at, value=value, slope=np.append(np.diff(value) / np.diff(at), 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapped:
    """What a library fitted, and the map behind it."""

    core: Core
    map: Map

    def raw(self, x: Float32Array) -> FloatArray:
        return self.core.raw(x)

    def predict(self, x: Float32Array) -> FloatArray:
        """(n,): probabilities, of a regression values."""
        return self.map.apply(self.core.raw(x))
