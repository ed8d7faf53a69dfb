"""The newest features against what the release was trained on, and among the candles shown. Pure.

What training was is in the release's reference (`shared.reference`); how far a stretch of candles
has drifted from it is what the auditor publishes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dashboard.account import Json
from dashboard.track import FeatureVector
from shared.events import Drift
from shared.reference import Reference, columns_of, novelty_of

Floats = npt.NDArray[np.float64]


def against_training(
    names: Sequence[str],
    vectors: Sequence[FeatureVector],
    reference: Reference | None,
    drift: Drift | None,
) -> Json:
    """{"features": one entry each, the most unusual first, "novelty": of the newest vector}.

    value: the newest; rank: share of the values shown that are smaller, half of the equal ones
    counted; p1, p50, p99: of the values shown; missing: share of them without a value. Of training:
    median, low and high (0.5 and 99.5 %), spreads from the median. psi and usual: of the drift.
    None where something is not known. Vectors of another schema than the newest are left out.

    Raises:
        ValueError: names and values do not fit.
        BadInput: the reference is of other features.
    """
    newest = vectors[-1]
    same = [v.values for v in vectors if v.schema == newest.schema]
    values = np.frombuffer(b"".join(same), "<f8").reshape(len(same), -1)
    if values.shape[1] != len(names):
        raise ValueError(f"{values.shape[1]} values and {len(names)} names")
    found = {name: _among(name, values[:, n]) for n, name in enumerate(names)}
    novelty: Json | None = None
    if reference is not None:
        last = values[-1][columns_of(names, reference)]
        spreads = reference.spreads(last[None])[0]
        for name, spread in zip(reference.names, spreads.tolist(), strict=True):
            entry = reference.features[name]
            found[name] |= {
                "median": entry.median,
                "low": entry.low,
                "high": entry.high,
                "spreads": _known(spread),
            }
        far = novelty_of(last, reference)
        novelty = {
            "value": _known(far.value),
            "own": _known(far.own),
            "joint": far.joint,
            "farthest": list(far.farthest[:3]),
            "surprising": list(far.surprising[:3]),
        }
    if drift is not None:
        for name in found.keys() & drift.psi.keys():
            found[name] |= {"psi": _known(drift.psi[name]), "usual": drift.usual.get(name)}
    features = sorted(found.values(), key=_plainness)
    return {"features": features, "novelty": novelty}


def drift_shown(drift: Drift | None) -> Json | None:
    """The stretch as a whole."""
    if drift is None:
        return None
    return {
        "first": drift.first_ms,
        "last": drift.open_time_ms,
        "release": drift.release,
        "rows": drift.rows,
        "unusual": len(drift.unusual),
        "known": len(drift.usual),
        "score_psi": drift.score_psi,
        "score_usual": drift.score_usual,
        "novelty_median": _known(drift.novelty_median),
        "beyond": _known(drift.beyond),
    }


def _among(name: str, column: Floats) -> dict[str, Any]:
    known = np.sort(column[np.isfinite(column)])
    value = float(column[-1])
    rank = None
    if np.isfinite(value):
        below = np.searchsorted(known, value, "left") + np.searchsorted(known, value, "right")
        rank = float(below) / (2 * len(known))
    points = np.percentile(known, (1, 50, 99)).tolist() if len(known) else [None] * 3
    unknown = dict.fromkeys(("median", "low", "high", "spreads", "psi", "usual"))
    return {
        "name": name,
        "value": _known(value),
        "rank": rank,
        "p1": points[0],
        "p50": points[1],
        "p99": points[2],
        "missing": 1 - len(known) / len(column),
        **unknown,
    }


def _plainness(row: Json) -> tuple[float, float, str]:
    """No value at all comes first, then what is farthest from its training median, then what lies
    at the edge of what is shown."""
    rank, spreads = row["rank"], row["spreads"]
    if rank is None:
        return -np.inf, 0.0, row["name"]
    return -abs(spreads or 0.0), min(rank, 1 - rank), row["name"]


def _known(value: float) -> float | None:
    """JSON has no NaN."""
    return value if np.isfinite(value) else None
