"""Statistics of the training rows that go into a release: `reference.json`.

Live services hold against them what they see; `shared.reference` says how, and what each number
means. A stretch is a day of candles, or 256 candles where a day has fewer.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from shared.reference import (
    NOISE,
    QUANTILES,
    Bins,
    Combination,
    FeatureReference,
    Reference,
    distances,
    joint_distances,
    spreads,
)
from trainer.models.rows import Rows

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_DAY_MS = 86_400_000
_FEWEST_CANDLES = 256
_DECILES = np.arange(1, 10) / 10
_SIXTHS = (0.1587, 0.8413)
_EXTREMES = (0.005, 0.995)
_FEWEST_STRETCHES = 10
_FEWEST_SCORES = 500
_DISTANCES = 50_000  # rows whose distance is looked at
_USUAL = 0.95


def reference(
    rows: Rows,
    names: Sequence[str],
    step_ms: int,
    scores: Floats | None,
    score_ms: npt.NDArray[np.int64],
) -> bytes:
    """The file.

    names: of the columns of `rows.x`. scores: (n,) of the candles that open at score_ms, by models
    that had not seen them; None where not all models could be measured.
    """
    stretch_rows = max(_FEWEST_CANDLES, _DAY_MS // step_ms)
    stretch_ms = stretch_rows * step_ms
    # of several symbols each has its own stretches
    stretch = _numbered(rows.open_ms // stretch_ms, rows.symbol.astype(np.int64))
    least = stretch_rows // 2
    used = np.flatnonzero(~rows.left_out)
    features = {
        names[column]: _feature(rows.x[:, column].astype(np.float64), stretch, least)
        for column in used.tolist()
    }
    places = np.unique(np.linspace(0, len(rows) - 1, _DISTANCES).astype(np.intp))
    medians = np.array([one.median for one in features.values()])
    widths = np.array([one.spread for one in features.values()])
    seen = rows.x[places][:, used].astype(np.float64)
    z = spreads(seen, medians, widths)
    score = None
    if scores is not None and (~np.isnan(scores)).sum() >= _FEWEST_SCORES:
        there = ~np.isnan(scores)
        own = _numbered(score_ms[there] // stretch_ms)
        per_stretch = np.bincount(own)
        score = _bins(scores[there], own, int(np.median(per_stretch)) // 2)
    found = Reference(
        rows=len(rows),
        stretch_rows=stretch_rows,
        features=features,
        distances=_quantiles(distances(z)),
        combination=_combination(z),
        score=score,
    )
    return found.model_dump_json(indent=1).encode() + b"\n"


def _quantiles(far: Floats) -> dict[str, float]:
    """Never 0, by which a novelty is divided."""
    return {q: max(float(np.quantile(far, float(q))), 1e-9) for q in QUANTILES}


def _combination(z: Floats) -> Combination:
    """z: (n, n_features) of training rows, NaN where there is no value."""
    filled = np.where(np.isnan(z), 0.0, z)
    # row by row: a matrix product adds in another order on another number of threads
    products = np.array([(filled[:, n, None] * filled).sum(axis=0) for n in range(z.shape[1])])
    products /= len(z)
    # what never moved goes with nothing, and counts by its own z
    noise = np.where(np.diagonal(products) > 0, NOISE, 1.0)
    whitening = np.linalg.inv(np.linalg.cholesky(products + np.diag(noise)))
    rows = tuple(
        tuple(float(f"{value:.12g}") for value in row[: n + 1].tolist())
        for n, row in enumerate(whitening)
    )
    found = Combination(whitening=rows, distances=dict.fromkeys(QUANTILES, 1.0))
    return Combination(whitening=rows, distances=_quantiles(joint_distances(z, found.matrix)))


def _feature(values: Floats, stretch: Ints, least: int) -> FeatureReference:
    there = values[~np.isnan(values)]
    low, high = np.quantile(there, _SIXTHS)
    ends = np.quantile(there, _EXTREMES)
    return FeatureReference(
        median=float(np.median(there)),
        # a feature that rarely moves (a count of rare events) has no such width
        spread=float((high - low) / 2 or there.std()),
        low=float(ends[0]),
        high=float(ends[1]),
        bins=_bins(values, stretch, least),
    )


def _bins(values: Floats, stretch: Ints, least: int) -> Bins:
    """stretch: (n,) number of the stretch that each value is from; those with fewer than `least`
    values are not looked at."""
    there = values[~np.isnan(values)]
    edges = np.unique(np.quantile(there, _DECILES))
    plain = Bins(edges=tuple(edges.tolist()), shares=(0.0,) * (len(edges) + 2), usual=None)
    counts = plain.counts(values)
    shares = tuple((counts / counts.sum()).tolist())
    bins = Bins(edges=plain.edges, shares=shares, usual=None)
    found = [bins.psi(part) for part in _by_stretch(bins, values, stretch, least)]
    if len(found) < _FEWEST_STRETCHES:
        return bins
    return Bins(edges=bins.edges, shares=shares, usual=float(np.quantile(found, _USUAL)))


def _by_stretch(bins: Bins, values: Floats, stretch: Ints, least: int) -> Iterator[Ints]:
    """Counts of each stretch that is long enough."""
    width = len(bins.edges) + 2
    place = np.where(np.isnan(values), width - 1, np.searchsorted(bins.edges, values))
    counts = np.bincount(stretch * width + place, minlength=(int(stretch.max()) + 1) * width)
    for part in counts.reshape(-1, width):
        if part.sum() >= max(1, least):
            yield part


def _numbered(*keys: Ints) -> Ints:
    """(n,) 0, 1, 2 ... for every combination of keys that occurs."""
    _, number = np.unique(np.column_stack(keys), axis=0, return_inverse=True)
    return np.asarray(number.ravel(), np.int64)
