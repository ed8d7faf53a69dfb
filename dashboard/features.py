"""Where the newest feature values lie among those of the candles shown. Pure."""

from collections.abc import Sequence

import numpy as np

from dashboard.account import Json
from dashboard.track import FeatureVector


def among_recent(names: Sequence[str], vectors: Sequence[FeatureVector]) -> list[Json]:
    """One entry per feature of the newest vector, the most unusual first.

    rank: share of the window's values that are smaller, half of the equal ones counted; None where
    the newest has no value. missing: share of candles without a value. Vectors of another schema
    than the newest are left out.
    """
    newest = vectors[-1]
    same = [v.values for v in vectors if v.schema == newest.schema]
    values = np.frombuffer(b"".join(same), "<f8").reshape(len(same), -1)
    if values.shape[1] != len(names):
        raise ValueError(f"{values.shape[1]} values and {len(names)} names")
    found = [_one(name, values[:, n]) for n, name in enumerate(names)]
    return sorted(found, key=_plainness)


def _one(name: str, column: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Json:
    known = np.sort(column[np.isfinite(column)])
    value = float(column[-1])
    rank = None
    if np.isfinite(value):
        below = np.searchsorted(known, value, "left") + np.searchsorted(known, value, "right")
        rank = float(below) / (2 * len(known))
    points = np.percentile(known, (1, 50, 99)).tolist() if len(known) else [None] * 3
    return {
        "name": name,
        "value": value if rank is not None else None,
        "rank": rank,
        "p1": points[0],
        "p50": points[1],
        "p99": points[2],
        "missing": 1 - len(known) / len(column),
    }


def _plainness(row: Json) -> tuple[float, str]:
    """How far from the edge of what was seen; no value at all comes first."""
    rank = row["rank"]
    return (-1.0 if rank is None else min(rank, 1 - rank)), row["name"]
