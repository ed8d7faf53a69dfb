"""How good a model is on rows that it has not seen: ranking, calibration, and how sure that is."""

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

RESAMPLES = 200
_BOOTSTRAP_ROWS = 8_000
_CHUNK = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Out of sample; None where a figure is not defined (only one class in the rows).

    auc_low, auc_high: 95 % interval by moving-block bootstrap. f1, precision, recall: of
    "output above 0.5", as the seed. base_rate: share of positives.
    """

    auc: float | None
    auc_low: float | None
    auc_high: float | None
    ap: float | None
    f1: float
    precision: float
    recall: float
    brier: float
    log_loss: float
    base_rate: float
    rows: int

    def as_dict(self) -> dict[str, float | int | None]:
        return {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(self).items()}

    def seed_line(self, name: str) -> str:
        """`high_20_k_gb, {'auc': 0.766, 'ap': 0.12, 'f1': 0.0, 'precision': 0.0, 'recall': 0.0}`"""
        kept = {k: getattr(self, k) for k in ("auc", "ap", "f1", "precision", "recall")}
        return f"{name}, { {k: None if v is None else round(v, 3) for k, v in kept.items()} }"


def measure(y: FloatArray, p: FloatArray, block: int, seed: int) -> Metrics:
    """Metrics of probabilities against what happened.

    y: (n,) 0 or 1, p: (n,) in [0, 1], rows in time order, at least one. block: rows whose labels
    overlap; the bootstrap draws blocks of that many neighbours.
    """
    truth = y > 0.5
    said = p > 0.5
    hits = int((truth & said).sum())
    precision = hits / int(said.sum()) if said.any() else 0.0
    recall = hits / int(truth.sum()) if truth.any() else 0.0
    low, high = auc_interval(truth, p, block, seed)
    kept = np.clip(p, 1e-15, 1 - 1e-15)
    return Metrics(
        auc=auc(truth, p),
        auc_low=low,
        auc_high=high,
        ap=average_precision(truth, p),
        f1=2 * precision * recall / (precision + recall) if hits else 0.0,
        precision=precision,
        recall=recall,
        brier=float(np.mean((p - y) ** 2)),
        log_loss=float(-np.mean(np.where(truth, np.log(kept), np.log1p(-kept)))),
        base_rate=float(truth.mean()),
        rows=len(y),
    )


def auc(truth: BoolArray, p: FloatArray) -> float | None:
    """Chance that a positive stands above a negative, ties half; None with one class only."""
    counts = np.ones((1, len(p)), np.int64)
    found = float(_aucs(truth, p, counts)[0])
    return None if np.isnan(found) else found


def average_precision(truth: BoolArray, p: FloatArray) -> float | None:
    """Mean precision at the positives, ties taken together (scikit-learn's definition)."""
    if not truth.any():
        return None
    order = np.argsort(-p, kind="stable")
    last_of_tie = np.append(np.flatnonzero(np.diff(p[order])), len(p) - 1)
    hits = np.cumsum(truth[order])[last_of_tie]
    precision = hits / (last_of_tie + 1)
    gained = np.diff(hits, prepend=0) / hits[-1]
    return float(np.sum(gained * precision))


def auc_interval(
    truth: BoolArray, p: FloatArray, block: int, seed: int
) -> tuple[float | None, float | None]:
    """95 % interval of the AUC from resamples of blocks of neighbouring rows.

    Neighbours share most of what their labels look at, so single rows must not be drawn. None
    where the rows are fewer than two blocks or most resamples have one class only.
    """
    step = max(1, len(p) // _BOOTSTRAP_ROWS)
    truth, p, block = truth[::step], p[::step], max(1, -(-block // step))
    rows = len(p)
    if rows < 2 * block:
        return None, None
    random = np.random.default_rng(seed)
    blocks = -(-rows // block)
    found: list[npt.NDArray[np.float64]] = []
    for _ in range(0, RESAMPLES, _CHUNK):
        starts = random.integers(0, rows - block + 1, (_CHUNK, blocks))
        # +1 where a block begins, -1 where it ends; their running sum is how often a row is drawn
        resample = np.arange(_CHUNK)[:, None] * (rows + 1)
        size = _CHUNK * (rows + 1)
        edges = np.bincount((resample + starts).ravel(), minlength=size)
        edges -= np.bincount((resample + starts + block).ravel(), minlength=size)
        counts = np.cumsum(edges.reshape(_CHUNK, -1)[:, :-1], axis=1)
        found.append(_aucs(truth, p, counts))
    values = np.concatenate(found)
    values = values[~np.isnan(values)]
    if len(values) < RESAMPLES / 2:
        return None, None
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def _aucs(truth: BoolArray, p: FloatArray, counts: npt.NDArray[np.int64]) -> FloatArray:
    """AUC of each resample; counts: (n_resamples, n), how often it holds each row."""
    order = np.argsort(p, kind="stable")
    ties = np.flatnonzero(np.append(True, np.diff(p[order]) > 0))
    sorted_truth, sorted_counts = truth[order], counts[:, order]
    positive = sorted_counts * sorted_truth
    negative = sorted_counts - positive
    if len(ties) < len(p):
        positive = np.add.reduceat(positive, ties, axis=1)
        negative = np.add.reduceat(negative, ties, axis=1)
    # twice the wins, to stay with whole numbers: pairs below count 2, ties 1
    twice = np.sum(positive * (2 * np.cumsum(negative, axis=1) - negative), axis=1)
    pairs = 2 * positive.sum(axis=1) * negative.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(pairs > 0, twice / pairs, np.nan))
