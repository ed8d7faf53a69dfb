"""What the price did after a signal, and how well scores told it. Pure."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared.events import Outcome, Signal
from shared.klines import KLINE_COLUMNS

Floats = npt.NDArray[np.float64]

_HIGH, _LOW, _CLOSE = (KLINE_COLUMNS.index(name) for name in ("high", "low", "close"))


def outcome(signal: Signal, candles: Floats, horizon: int) -> Outcome:
    """candles: (horizon + 1, 9), the signal's own first; NaN = gap.

    As the trainer's labels have it: where any of them is a gap, nothing is known of highs and lows.
    """
    close = float(candles[0, _CLOSE])
    last = float(candles[-1, _CLOSE])
    highest = lowest = None
    if not np.isnan(candles[:, [_HIGH, _LOW, _CLOSE]]).any():
        highest = 100 * (float(candles[1:, _HIGH].max()) - close) / close
        lowest = 100 * (float(candles[1:, _LOW].min()) - close) / close
    future = last / close - 1
    return Outcome(
        open_time_ms=signal.open_time_ms,
        horizon=horizon,
        release=signal.release,
        score=signal.score,
        side=signal.side,
        close=signal.close,
        future_return=future if math.isfinite(future) else None,
        highest=highest,
        lowest=lowest,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Of scored signals whose outcome is known. auc: whether those before a rise stand above those
    before a fall, None where one kind is missing. mean_return: by side (BUY, SELL, none), in
    percent; counts: by side."""

    rows: int
    auc: float | None
    counts: dict[str, int]
    mean_return: dict[str, float]


def summary(outcomes: Iterable[Outcome]) -> Summary:
    known = [one for one in outcomes if one.score is not None and one.future_return is not None]
    scores = np.array([one.score for one in known], np.float64)
    returns = np.array([one.future_return for one in known], np.float64)
    by_side: dict[str, list[float]] = {}
    for one in known:
        by_side.setdefault(one.side or "none", []).append(100 * (one.future_return or 0.0))
    moved = returns != 0
    return Summary(
        rows=len(known),
        auc=auc(returns[moved] > 0, scores[moved]),
        counts={side: len(found) for side, found in by_side.items()},
        mean_return={side: float(np.mean(found)) for side, found in by_side.items()},
    )


def auc(truth: Sequence[bool] | npt.NDArray[np.bool_], scores: Floats) -> float | None:
    """Area under the ROC curve: the share of pairs (one true, one not) in which the true one has
    the higher score, ties as half (Mann and Whitney). None where there is no such pair."""
    positive = np.asarray(truth, bool)
    ones, zeros = int(positive.sum()), int((~positive).sum())
    if not ones or not zeros:
        return None
    values, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    del values
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2.0)[place.ravel()]  # of equal scores the mean rank
    return float((ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))
