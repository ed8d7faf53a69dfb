"""How good a model is on rows that it has not seen: ranking, calibration, and how sure that is.

Intervals are 95 % by moving-block bootstrap: rows are drawn in blocks of neighbours, each as long
as `block_rows` says, and widened for how few blocks there are (`interval`). Null bands say what
would come of no knowledge at all; two kinds:

* `day_null`, for yes-or-no labels: the outcomes' whole days change places with others of their
  weekday (of less than two weeks, with any others). What time of day and week alone give an output
  survives that, the rest does not. (Labels merely shifted in time are no null here: the clock and
  slow volatility survive the shift.)
* `shift_null`, for direction: the score is shifted in a circle against what happened.
"""

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
V = TypeVar("V", np.float64, np.bool_)

RESAMPLES = 200
BLOCK_WINDOWS = 4
ECE_BINS = 15
DECILES = 10
_BOOTSTRAP_ROWS = 8_000
_CHUNK = 25
_DAY_MS = 86_400_000
_TWO_WEEKS = 14
_FEWEST_DAYS = 4


def block_rows(window: int, stride: int = 1, symbols: int = 1, rows: int | None = None) -> int:
    """Rows of a bootstrap's block for labels that look `window` candles ahead: four windows.

    What overlapping windows share falls in a straight line, to nothing one window away. Blocks of
    length b keep 1 - k / b of the covariance of rows k apart (Kuensch 1989, "The jackknife and the
    bootstrap for general stationary observations", Annals of Statistics 17): of the variance, b = 1
    window loses a third and b = 4 windows a twelfth. (Longer blocks would lose less, but be fewer.)

    stride: one row is of every n-th candle; symbols: how many take turns; rows: how many there
    are: of few the half, but a window at least.
    """
    one = symbols * -(-window // stride)
    most = BLOCK_WINDOWS * one
    return most if rows is None else min(most, max(one, rows // 2))


def interval(
    draws: FloatArray, blocks: float, least: float = -np.inf, most: float = np.inf
) -> tuple[float | None, float | None]:
    """The middle 95 % of a bootstrap's draws, as much wider as few blocks demand, within
    [least, most]; None where most draws are NaN.

    blocks: m > 1, rows / rows of a block. The variance of the draws is that of overlapping batch
    means: too small by 1 - 1 / m, and as uncertain as one of 1.5 (m - 1) degrees of freedom
    (Meketon and Schmeiser 1984, "Overlapping batch means: something for nothing?", Winter
    Simulation Conference), so that Student's quantile takes the place of the normal law's.
    """
    low, high = _quantiles(draws)
    if low is None or high is None:
        return None, None
    wider = stdtrit(1.5 * (blocks - 1), 0.975) / NormalDist().inv_cdf(0.975)
    wider *= np.sqrt(blocks / (blocks - 1))
    middle = float(np.nanmedian(draws))
    return (
        float(max(least, middle - wider * (middle - low))),
        float(min(most, middle + wider * (high - middle))),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Out of sample; None where a figure is not defined (only one class in the rows).

    auc_low, auc_high: 95 % interval by moving-block bootstrap. f1, precision, recall: of
    "output above 0.5", as the seed. base_rate: share of positives. lift: ap / base_rate. skill:
    1 - log_loss / log_loss of always saying the training rows' base rate; None where that is not
    given. mean_output: of p; calibration: mean_output / base_rate. ece: expected calibration error,
    mean distance of p from what happened in 15 bins of equally many rows.
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
    lift: float | None = None
    skill: float | None = None
    mean_output: float | None = None
    calibration: float | None = None
    ece: float | None = None

    def as_dict(self) -> dict[str, float | int | None]:
        return {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(self).items()}

    def seed_line(self, name: str) -> str:
        """`high_20_k_gb, {'auc': 0.766, 'ap': 0.12, 'f1': 0.0, 'precision': 0.0, 'recall': 0.0}`"""
        kept = {k: getattr(self, k) for k in ("auc", "ap", "f1", "precision", "recall")}
        return f"{name}, { {k: None if v is None else round(v, 3) for k, v in kept.items()} }"


def measure(
    y: FloatArray,
    p: FloatArray,
    block: int,
    seed: int,
    train_base: float | FloatArray | None = None,
) -> Metrics:
    """Metrics of probabilities against what happened.

    y: (n,) 0 or 1, p: (n,) in [0, 1], rows in time order, at least one. block: how many neighbours
    the bootstrap draws at once (`block_rows`). train_base: share of positives among the training
    rows, one for all or one per row (rows of several folds).
    """
    truth = y > 0.5
    said = p > 0.5
    hits = int((truth & said).sum())
    precision = hits / int(said.sum()) if said.any() else 0.0
    recall = hits / int(truth.sum()) if truth.any() else 0.0
    low, high = auc_interval(truth, p, block, seed)
    ap = average_precision(truth, p)
    base_rate, mean_output, loss = float(truth.mean()), float(p.mean()), log_loss(truth, p)
    skill = None
    if train_base is not None:
        skill = 1 - loss / log_loss(truth, np.broadcast_to(np.asarray(train_base, float), p.shape))
    return Metrics(
        auc=auc(truth, p),
        auc_low=low,
        auc_high=high,
        ap=ap,
        f1=2 * precision * recall / (precision + recall) if hits else 0.0,
        precision=precision,
        recall=recall,
        brier=float(np.mean((p - y) ** 2)),
        log_loss=loss,
        base_rate=base_rate,
        rows=len(y),
        lift=None if ap is None else ap / base_rate,
        skill=skill,
        mean_output=mean_output,
        calibration=mean_output / base_rate if base_rate else None,
        ece=calibration_error(y, p),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueMetrics:
    """Of a model of values, out of sample. mae: in the label's unit; r2: against the mean of the
    rows themselves; rank: Spearman's correlation with its 95 % interval; sign_auc: whether labels
    above 0 stand above the others; None where not defined."""

    mae: float
    r2: float | None
    rank: float | None
    rank_low: float | None
    rank_high: float | None
    sign_auc: float | None
    rows: int

    def as_dict(self) -> dict[str, float | int | None]:
        return {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(self).items()}

    def seed_line(self, name: str) -> str:
        """`high_max_180_k_gb, {'mae': 0.31, 'r2': 0.05}`, the seed's line for values."""
        kept = {k: getattr(self, k) for k in ("mae", "r2", "rank")}
        return f"{name}, { {k: None if v is None else round(v, 3) for k, v in kept.items()} }"


def measure_values(y: FloatArray, p: FloatArray, block: int, seed: int) -> ValueMetrics:
    """y, p: (n,) what happened and what was said, rows in time order, at least one."""
    spread = float(np.sum((y - y.mean()) ** 2))
    low, high = rank_interval(y, p, block, seed)
    return ValueMetrics(
        mae=float(np.mean(np.abs(y - p))),
        r2=1 - float(np.sum((y - p) ** 2)) / spread if spread > 0 else None,
        rank=rank_correlation(y, p),
        rank_low=low,
        rank_high=high,
        sign_auc=auc(y > 0, p),
        rows=len(y),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Decile:
    """Rows whose score is in one tenth of all, the lowest first.

    mean_bp, median_bp: return over the label horizon in hundredths of a percent, before fees, with
    the mean's 95 % interval; up_first: share of first touches that were up.
    """

    score_from: float
    score_to: float
    rows: int
    mean_bp: float | None
    mean_bp_low: float | None
    mean_bp_high: float | None
    median_bp: float | None
    up_first: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreMetrics:
    """What the score says about direction, out of sample; None where not defined.

    rank: Spearman's correlation with the return of the next `horizon` rows. auc: of the score, for
    "up one sigma first" against "down one sigma first" among the `resolved` rows; null_low,
    null_high: 95 % band of that AUC with the score shifted in a circle. deciles: lowest first.
    """

    rows: int
    rank: float | None
    rank_low: float | None
    rank_high: float | None
    resolved: int
    auc: float | None
    auc_low: float | None
    auc_high: float | None
    null_low: float | None
    null_high: float | None
    deciles: tuple[Decile, ...]

    def as_dict(self) -> dict[str, Any]:
        figures: dict[str, Any] = _rounded(asdict(self))
        return figures


def measure_score(
    score: FloatArray, returns: FloatArray, touch: FloatArray, block: int, seed: int
) -> ScoreMetrics:
    """score: (n,); returns: (n,) of the label horizon; touch: (n,) +1 up first, -1 down first, 0
    neither; NaN = not known; rows in time order."""
    known = ~np.isnan(score) & ~np.isnan(returns)
    rank_low, rank_high = rank_interval(score[known], returns[known], block, seed)
    resolved = ~np.isnan(score) & (np.abs(touch) == 1)
    up, ranked = touch[resolved] > 0, score[resolved]
    auc_low, auc_high = auc_interval(up, ranked, block, seed)
    null_low, null_high = shift_null(up, ranked, block, seed)
    return ScoreMetrics(
        rows=int(known.sum()),
        rank=rank_correlation(score[known], returns[known]),
        rank_low=rank_low,
        rank_high=rank_high,
        resolved=len(up),
        auc=auc(up, ranked),
        auc_low=auc_low,
        auc_high=auc_high,
        null_low=null_low,
        null_high=null_high,
        deciles=_deciles(score[known], returns[known], touch[known], block, seed),
    )


def _deciles(
    score: FloatArray, returns: FloatArray, touch: FloatArray, block: int, seed: int
) -> tuple[Decile, ...]:
    if not len(score):
        return ()
    edges = np.quantile(score, np.linspace(0, 1, DECILES + 1))
    place = np.searchsorted(edges[1:-1], score, side="right")
    bounds: list[tuple[float | None, float | None]] = [(None, None)] * DECILES
    if len(score) >= 2 * block:
        bounds = _decile_bounds(place, returns, block, seed)
    found = []
    for at in range(DECILES):
        here = place == at
        resolved = here & (np.abs(touch) == 1)
        low, high = bounds[at]
        found.append(
            Decile(
                score_from=float(edges[at]),
                score_to=float(edges[at + 1]),
                rows=int(here.sum()),
                mean_bp=float(1e4 * returns[here].mean()) if here.any() else None,
                mean_bp_low=low,
                mean_bp_high=high,
                median_bp=float(1e4 * np.median(returns[here])) if here.any() else None,
                up_first=float((touch[resolved] > 0).mean()) if resolved.any() else None,
            )
        )
    return tuple(found)


def _decile_bounds(
    place: npt.NDArray[np.intp], returns: FloatArray, block: int, seed: int
) -> list[tuple[float | None, float | None]]:
    kept, step = _thinned(len(place))
    place, returns, block = place[kept], returns[kept], -(-block // step)
    inside = (place[:, None] == np.arange(DECILES)).astype(float)
    summed, rows = [], []
    for counts in _resamples(len(place), block, seed):
        summed.append(counts @ (inside * returns[:, None]))
        rows.append(counts @ inside)
    with np.errstate(invalid="ignore"):
        means = 1e4 * np.concatenate(summed) / np.concatenate(rows)
    found: list[tuple[float | None, float | None]] = []
    for column in means.T:
        found.append(interval(column, len(place) / block))
    return found


def log_loss(truth: BoolArray, p: FloatArray) -> float:
    """Mean of -ln of what was said of the class that came."""
    kept = np.clip(p, 1e-15, 1 - 1e-15)
    return float(-np.mean(np.where(truth, np.log(kept), np.log1p(-kept))))


def calibration_error(y: FloatArray, p: FloatArray, bins: int = ECE_BINS) -> float:
    """Expected calibration error: |mean of p - share of positives| in bins between the quantiles of
    p, weighted by their rows; equal p stay in one bin."""
    place = _bins(p, bins)
    rows = np.bincount(place, minlength=bins)
    apart = np.bincount(place, p - y, minlength=bins)
    return float(np.abs(apart).sum() / rows.sum())


def calibration_curve(y: FloatArray, p: FloatArray, bins: int = ECE_BINS) -> list[dict[str, float]]:
    """Mean of p, share of positives and rows of each bin that `calibration_error` looks at."""
    place = _bins(p, bins)
    return [
        {
            "output": float(p[here].mean()),
            "happened": float(y[here].mean()),
            "rows": float(here.sum()),
        }
        for here in (place == at for at in range(bins))
        if here.any()
    ]


def _bins(p: FloatArray, bins: int) -> npt.NDArray[np.intp]:
    edges = np.quantile(p, np.linspace(0, 1, bins + 1))
    return np.searchsorted(edges[1:-1], p, side="right")


def rank_correlation(a: FloatArray, b: FloatArray) -> float | None:
    """Spearman's: Pearson's correlation of the ranks, ties at their mean rank; None if constant."""
    if len(a) < 2:
        return None
    ranks_a, ranks_b = _ranks(a), _ranks(b)
    spread = float(np.sum(ranks_a**2) * np.sum(ranks_b**2))
    return float(np.sum(ranks_a * ranks_b) / np.sqrt(spread)) if spread > 0 else None


def rank_interval(
    a: FloatArray, b: FloatArray, block: int, seed: int
) -> tuple[float | None, float | None]:
    """95 % interval of the rank correlation; the ranks are those among all rows, not drawn anew."""
    kept, step = _thinned(len(a))
    a, b, block = a[kept], b[kept], max(1, -(-block // step))
    if len(a) < 2 * block:
        return None, None
    ranks_a, ranks_b = _ranks(a), _ranks(b)
    columns = np.column_stack([ranks_a, ranks_b, ranks_a**2, ranks_b**2, ranks_a * ranks_b])
    found = []
    for counts in _resamples(len(a), block, seed):
        mean_a, mean_b, a_a, b_b, a_b = (counts @ columns / counts.sum(axis=1)[:, None]).T
        spread = (a_a - mean_a**2) * (b_b - mean_b**2)
        with np.errstate(invalid="ignore", divide="ignore"):
            found.append(np.where(spread > 0, (a_b - mean_a * mean_b) / np.sqrt(spread), np.nan))
    return interval(np.concatenate(found), len(a) / block, -1, 1)


def _ranks(values: FloatArray) -> FloatArray:
    """Ranks less their mean, of equal values the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2)[place]
    return np.asarray(ranks - (len(values) + 1) / 2)


def shift_null(
    truth: BoolArray, p: FloatArray, block: int, seed: int
) -> tuple[float | None, float | None]:
    """95 % band of the AUC of p shifted in a circle by at least `block` rows either way."""
    kept, step = _thinned(len(p))
    truth, p, block = truth[kept], p[kept], max(1, -(-block // step))
    if len(p) < 4 * block:
        return None, None
    random = np.random.default_rng(seed)
    shifts = random.integers(block, len(p) - block + 1, RESAMPLES)
    # p stands still and what happened is shifted: the same pairs
    rolled = truth[(np.arange(len(p)) + shifts[:, None]) % len(p)]
    return _quantiles(_aucs(rolled, p, np.ones(rolled.shape, np.int64)))


def day_null(
    y: FloatArray,
    p: FloatArray,
    open_ms: npt.NDArray[np.int64],
    candle_ms: int,
    seed: int,
    symbol: npt.NDArray[np.integer[Any]] | None = None,
) -> tuple[float | None, float | None]:
    """95 % band of the AUC with whole days of y exchanged for others of the same weekday; of less
    than two weeks for any others.

    symbol: (n,) whose rows they are, where there are several: their days change places together,
    for what happens to one happens to the others, too. None for less than four days.
    """
    slots = max(1, _DAY_MS // candle_ms)
    days, place = np.unique(open_ms // _DAY_MS, return_inverse=True)
    if len(days) < _FEWEST_DAYS:
        return None, None
    _, of_symbol = np.unique(np.zeros(len(y)) if symbol is None else symbol, return_inverse=True)
    symbols = int(of_symbol.max(initial=0)) + 1
    slot = open_ms % _DAY_MS // candle_ms
    step = max(1, len(days) * slots * symbols // _BOOTSTRAP_ROWS)
    kept = (slot + of_symbol) % step == 0  # not of all symbols the same ones
    width = -(-slots // step)
    shape = (len(days), symbols * width)
    at = place[kept], of_symbol[kept] * width + slot[kept] // step
    said, happened = np.full(shape, np.nan), np.full(shape, np.nan)
    said[at] = p[kept]
    happened[at] = y[kept]
    random = np.random.default_rng(seed)
    weekdays = days % 7 if len(days) >= _TWO_WEEKS else np.zeros(len(days), np.int64)
    alike = [np.flatnonzero(weekdays == weekday) for weekday in range(7)]
    found = []
    flat = np.where(np.isnan(said), 0, said).ravel()
    for _ in range(0, RESAMPLES, _CHUNK):
        drawn = np.empty((_CHUNK, *shape))
        for resample in drawn:
            order = np.arange(len(days))
            for exchanged in alike:
                order[exchanged] = random.permutation(exchanged)
            resample[:] = happened[order]
        counts = ~np.isnan(drawn) & ~np.isnan(said)
        found.append(
            _aucs((drawn > 0.5).reshape(_CHUNK, -1), flat, counts.reshape(_CHUNK, -1).astype(int))
        )
    return _quantiles(np.concatenate(found))


def permuted_blocks(
    values: npt.NDArray[V], block: int, random: np.random.Generator
) -> npt.NDArray[V]:
    """The same values with blocks of `block` neighbours in another order, cut at a random row."""
    offset: int = int(random.integers(block))
    edges = [0, *range(offset, len(values), block), len(values)]
    parts = [values[first:last] for first, last in itertools.pairwise(edges) if last > first]
    return np.concatenate([parts[at] for at in random.permutation(len(parts))] or [values])


def _thinned(rows: int) -> tuple[npt.NDArray[np.int64], int]:
    """(places, n): one row out of every n in a row is enough for a bootstrap.

    Which of the n is drawn: every n-th row would be rows of one symbol where several take turns.
    """
    step = max(1, rows // _BOOTSTRAP_ROWS)
    starts = np.arange(0, rows, step)
    places = starts + np.random.default_rng(rows).integers(0, step, len(starts))
    return np.minimum(places, rows - 1), step


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value


def auc(truth: BoolArray, p: FloatArray) -> float | None:
    """Chance that a positive stands above a negative, ties half; None with one class only."""
    counts = np.ones((1, len(p)), np.int64)
    found = float(_aucs(truth, p, counts)[0])
    return None if np.isnan(found) else found


def aucs(truths: BoolArray, p: FloatArray) -> FloatArray:
    """(n_truths,) AUC of p for each row of truths, (n_truths, n); NaN with one class only."""
    return _aucs(truths, p, np.ones(truths.shape, np.int64))


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
    kept, step = _thinned(len(p))
    truth, p, block = truth[kept], p[kept], max(1, -(-block // step))
    if len(p) < 2 * block:
        return None, None
    drawn = [_aucs(truth, p, counts) for counts in _resamples(len(p), block, seed)]
    return interval(np.concatenate(drawn), len(p) / block, 0, 1)


def _resamples(rows: int, block: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """(_CHUNK, rows) at a time: how often each of the RESAMPLES resamples holds each row."""
    random = np.random.default_rng(seed)
    blocks = -(-rows // block)
    for _ in range(0, RESAMPLES, _CHUNK):
        starts = random.integers(0, rows - block + 1, (_CHUNK, blocks))
        # +1 where a block begins, -1 where it ends; their running sum is how often a row is drawn
        resample = np.arange(_CHUNK)[:, None] * (rows + 1)
        size = _CHUNK * (rows + 1)
        edges = np.bincount((resample + starts).ravel(), minlength=size)
        edges -= np.bincount((resample + starts + block).ravel(), minlength=size)
        yield np.cumsum(edges.reshape(_CHUNK, -1)[:, :-1], axis=1)


def _quantiles(values: FloatArray) -> tuple[float | None, float | None]:
    """The middle 95 %; None where most resamples have no value."""
    known = values[~np.isnan(values)]
    if len(known) < len(values) / 2:
        return None, None
    low, high = np.quantile(known, (0.025, 0.975))
    return float(low), float(high)


def _aucs(truth: BoolArray, p: FloatArray, counts: npt.NDArray[np.int64]) -> FloatArray:
    """AUC of each resample; counts: (n_resamples, n), how often it holds each row. truth: (n,), or
    (n_resamples, n) where each has its own."""
    order = np.argsort(p, kind="stable")
    ties = np.flatnonzero(np.append(True, np.diff(p[order]) > 0))
    sorted_truth, sorted_counts = truth[..., order], counts[:, order]
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
