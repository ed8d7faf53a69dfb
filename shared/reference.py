"""What a release was trained on, in numbers: how far a candle is from it, and how far a day.

`reference.json` of a release, written by `trainer.reference`. Three questions are asked of it:

* **Novelty** of one feature vector. Per feature `z = (x - median) / spread`, kept within
  +-`MOST_SPREADS`, and two distances. That of the *values* is the root mean square of z over the
  features that have a value. That of their *combination* is the same of `W z`, where `W'W` is the
  inverse of the mean products of z over the training rows, with `NOISE` added to each feature's
  own (Mahalanobis' distance from the medians): it sees values that each occurred, and never
  together. A feature without a value counts as at its median, one that never moved by its own z.
  Each distance is divided by the one that 99 % of the training rows stay below, and novelty is the
  larger: above 1, a vector is as far out as the farthest hundredth of what the models have learnt
  from.
* **Population stability** of a feature over a stretch of candles: `PSI = sum((a - e) ln(a / e))`
  over bins that hold a tenth of the training rows each, and one for NaN; a, e: shares live and in
  training. Neighbouring candles are alike, so even a stretch of the training data itself differs
  from the whole: `usual` is the PSI that 95 % of such stretches of the training data stay below.
  Only above that is a feature out of the usual.
* The same of the **score**, against scores that models gave to candles they were not trained on.

Pure; a row has the same bits alone and among others.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from shared.errors import BadInput

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

REFERENCE = "reference.json"
MOST_SPREADS = 10.0
NOISE = 0.01
"""A tenth of a spread, squared: what is below it is rounding, no broken relation of features."""
QUANTILES = ("0.5", "0.9", "0.99", "0.999", "1")
FARTHEST = 5
"""Features that are named as the farthest out."""
_BLOCK = 1 << 17  # products that are held at once
_Finite = Annotated[float, Field(allow_inf_nan=False)]


def _with_quantiles(distances: dict[str, float]) -> dict[str, float]:
    if missing := set(QUANTILES) - set(distances):
        raise ValueError(f"no {min(missing)} quantile of the distances")
    return distances


_Distances = Annotated[dict[str, _Finite], AfterValidator(_with_quantiles)]


class _Entry(BaseModel):
    """Unknown fields are ignored, so that an older service reads a newer file."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Bins(_Entry):
    """How values are spread. edges: ascending; shares: of the values up to each edge, then above
    the last, then of NaN. usual: PSI that 95 % of the stretches of training stay below, None where
    there were too few of them."""

    edges: tuple[_Finite, ...]
    shares: tuple[_Finite, ...]
    usual: _Finite | None

    @model_validator(mode="after")
    def _fits(self) -> "Bins":
        if len(self.shares) != len(self.edges) + 2:
            raise ValueError("shares do not fit the edges")
        if any(b <= a for a, b in zip(self.edges, self.edges[1:], strict=False)):
            raise ValueError("edges do not ascend")
        return self

    def counts(self, values: Floats) -> Ints:
        """(len(edges) + 2,) how many of the values (n,) fall into each bin."""
        there = values[~np.isnan(values)]
        found = np.bincount(np.searchsorted(self.edges, there), minlength=len(self.edges) + 1)
        return np.append(found, len(values) - len(there))

    def psi(self, counts: Ints) -> float:
        """Of a stretch with these counts. Half a value is added to every bin, so that an empty one
        does not make it infinite."""
        live = (counts + 0.5) / (counts.sum() + 0.5 * len(counts))
        floor = 0.5 / (counts.sum() + 0.5 * len(counts))
        expected = np.maximum(np.array(self.shares), floor)
        expected /= expected.sum()
        return float(((live - expected) * np.log(live / expected)).sum())


class FeatureReference(_Entry):
    """One feature over the training rows. spread: half the distance between its 16 % and its 84 %
    quantile, 0 where it was constant. low, high: its 0.5 % and 99.5 % quantiles."""

    median: _Finite
    spread: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    low: _Finite
    high: _Finite
    bins: Bins


class Combination(_Entry):
    """How features go together. whitening: W, row by row, each up to the diagonal; distances:
    quantile -> distance of the training rows."""

    whitening: tuple[tuple[_Finite, ...], ...]
    distances: _Distances

    @model_validator(mode="after")
    def _whole(self) -> "Combination":
        if any(len(row) != n for n, row in enumerate(self.whitening, 1)):
            raise ValueError("the whitening matrix is not triangular")
        return self

    @cached_property
    def matrix(self) -> Floats:
        """W, (n_features, n_features)."""
        found = np.zeros((len(self.whitening),) * 2)
        for n, row in enumerate(self.whitening):
            found[n, : n + 1] = row
        return found


class Reference(_Entry):
    """The whole file.

    features: those that models use, by name. rows: of training. stretch_rows: candles of a stretch
    that `usual` speaks of. distances: quantile -> distance of the training rows' values.
    combination: None in files of earlier versions. score: None where too few out-of-sample scores
    were there.
    """

    format: Literal[1] = 1
    rows: int = Field(ge=1)
    stretch_rows: int = Field(ge=1)
    features: dict[str, FeatureReference] = Field(min_length=1)
    distances: _Distances
    combination: Combination | None = None
    score: Bins | None

    @model_validator(mode="after")
    def _whole(self) -> "Reference":
        if self.combination is not None and len(self.combination.whitening) != len(self.features):
            raise ValueError("the whitening matrix does not fit the features")
        return self

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(self.features)

    @cached_property
    def _scales(self) -> tuple[Floats, Floats]:
        entries = self.features.values()
        return np.array([e.median for e in entries]), np.array([e.spread for e in entries])

    def spreads(self, values: Floats) -> Floats:
        """(n, n_features) how many spreads each value is above (+) or below its median; NaN for
        NaN. values: (n, n_features), columns as `names`."""
        return spreads(values, *self._scales)

    def novelty(self, values: Floats) -> Floats:
        """(n,) novelty of each row, NaN where no feature has a value."""
        return np.fmax(*self.novelties(values))

    def novelties(self, values: Floats) -> tuple[Floats, Floats]:
        """(n,) of the values and (n,) of their combination, NaN where that is not known."""
        z = self.spreads(values)
        own = distances(z) / self.distances["0.99"]
        if self.combination is None:
            return own, np.full(len(z), np.nan)
        together = joint_distances(z, self.combination.matrix)
        return own, together / self.combination.distances["0.99"]

    def surprises(self, values: Floats) -> Floats:
        """(n_features,) how many standard deviations each value of one row is above (+) or below
        what the other features let expect (the residual of its regression on them); NaN for NaN."""
        z = self.spreads(values[None])[0]
        if self.combination is None:
            return np.full(len(z), np.nan)
        w = self.combination.matrix
        inverse = w.T @ w
        found = inverse @ np.where(np.isnan(z), 0.0, z) / np.sqrt(np.diagonal(inverse))
        return np.where(np.isnan(z), np.nan, found)


def columns_of(names: Sequence[str], reference: Reference) -> Ints:
    """Where the reference's features stand among `names`.

    Raises:
        BadInput: one is not there.
    """
    place = {name: at for at, name in enumerate(names)}
    missing = next((name for name in reference.names if name not in place), None)
    if missing is not None:
        raise BadInput(f"{REFERENCE}: {missing} is no feature of the release")
    return np.array([place[name] for name in reference.names], np.int64)


def spreads(values: Floats, median: Floats, spread: Floats) -> Floats:
    """As the models see them, in float32; a constant feature is either at its value or far out."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        seen = values.astype(np.float32).astype(np.float64)
        off = seen - median
        z = np.where(spread > 0, off / np.where(spread > 0, spread, 1.0), np.sign(off) * np.inf)
        z = np.where(off == 0, 0.0, z)
        return np.clip(z, -MOST_SPREADS, MOST_SPREADS)


def joint_distances(z: Floats, whitening: Floats) -> Floats:
    """(n,) root mean square of `whitening @ z` over the features that have a value.

    z: (n, n_features), NaN where there is no value; whitening: (n_features, n_features). Products
    are added by halves in a fixed order: a row has the same bits alone and among others, on every
    machine, which a matrix product does not promise.
    """
    rows, width = z.shape
    padded = 1 << max(0, width - 1).bit_length()
    columns = np.zeros((padded, width))
    columns[:width] = whitening.T
    there = ~np.isnan(z)
    filled = np.zeros((rows, padded))
    filled[:, :width] = np.where(there, z, 0.0)
    found = np.empty(rows)
    step = max(1, _BLOCK // (padded * width))
    for start in range(0, rows, step):
        sums = filled[start : start + step, :, None] * columns
        while sums.shape[1] > 1:
            half = sums.shape[1] // 2
            sums = sums[:, :half] + sums[:, half:]
        found[start : start + step] = _sum_of_squares(sums[:, 0])
    with np.errstate(invalid="ignore"):
        return np.asarray(np.sqrt(found / there.sum(axis=1)))


def distances(z: Floats) -> Floats:
    """(n,) root mean square of each row's z, (n, n_features), NaN left out."""
    there = ~np.isnan(z)
    with np.errstate(invalid="ignore"):
        found: Floats = np.sqrt(_sum_of_squares(np.where(there, z, 0.0)) / there.sum(axis=1))
    return found


def _sum_of_squares(z: Floats) -> Floats:
    """(n,) column by column: a row's bits do not depend on the rows beside it."""
    squares = z * z
    total = np.zeros(len(z))
    for column in range(z.shape[1]):
        total += squares[:, column]
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Novelty:
    """Of one vector. value: above 1, farther than 99 % of the training rows; the larger of own (of
    its values) and joint (of their combination, None where the release does not know how its
    features go together).

    farthest: (feature, spreads from its median); surprising: (feature, standard deviations from
    what the other features let expect); the farthest first.
    """

    value: float
    own: float
    joint: float | None
    distance: float
    farthest: tuple[tuple[str, float], ...]
    surprising: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        if self.joint is not None and self.joint > self.own:
            told = ", ".join(f"{name} {z:+.1f}" for name, z in self.surprising[:3])
            return f"{self.value:.2f} (deviations from what the other features say: {told})"
        told = ", ".join(f"{name} {z:+.1f}" for name, z in self.farthest[:3])
        return f"{self.value:.2f} (spreads from the training median: {told})"


def novelty_of(values: Floats, reference: Reference) -> Novelty:
    """values: (n_features,) of the reference's features, in its order."""
    z = reference.spreads(values[None])
    own, joint = (float(one[0]) for one in reference.novelties(values[None]))
    return Novelty(
        value=float(reference.novelty(values[None])[0]),
        own=own,
        joint=None if np.isnan(joint) else joint,
        distance=float(distances(z)[0]),
        farthest=_largest(z[0], reference.names),
        surprising=_largest(reference.surprises(values), reference.names),
    )


def _largest(values: Floats, names: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """Those of most weight, without the ones that are not known."""
    size = np.where(np.isnan(values), -1.0, np.abs(values))
    order = np.argsort(-size, kind="stable")[:FARTHEST]
    return tuple((names[at], float(values[at])) for at in order.tolist() if size[at] >= 0)


def parse(content: bytes) -> Reference:
    """
    Raises:
        BadInput: it is not what it must be; the first fault is named.
    """
    try:
        return Reference.model_validate(json.loads(content))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise BadInput(f"{REFERENCE}: {where}{': ' * bool(where)}{message}") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{REFERENCE} is not valid JSON: {' '.join(str(error).split())}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """How a stretch differs from training. psi: of a feature, or of the score; usual: see Bins."""

    psi: float
    usual: float | None

    @property
    def is_unusual(self) -> bool:
        return self.usual is not None and self.psi > self.usual


def shifts(values: Floats, reference: Reference) -> dict[str, Shift]:
    """Of each feature over a stretch. values: (n, n_features), columns as the reference's names."""
    found = {}
    with np.errstate(over="ignore"):
        seen = values.astype(np.float32).astype(np.float64)  # as the training rows were
    for column, (name, entry) in enumerate(reference.features.items()):
        counts = entry.bins.counts(seen[:, column])
        found[name] = Shift(psi=entry.bins.psi(counts), usual=entry.bins.usual)
    return found


def score_shift(scores: Floats, reference: Reference) -> Shift | None:
    """Of the scores (n,) of a stretch; None where training left nothing to compare with, or no
    score is there."""
    there = scores[~np.isnan(scores)]
    if reference.score is None or not len(there):
        return None
    return Shift(
        psi=reference.score.psi(reference.score.counts(there)), usual=reference.score.usual
    )
