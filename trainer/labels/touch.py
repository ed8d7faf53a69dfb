# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Numba infers the types of what it compiles.
"""Which of two prices is reached first: target before stop."""

import numpy as np
import numpy.typing as npt

from shared.features.kernel import cached
from shared.klines import KlineTable
from trainer.labels.moves import is_whole

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


def target_first(
    table: KlineTable, side: str, target: Floats, stop: Floats, window: int, *, strict: bool
) -> tuple[Floats, Rows]:
    """(y, t1): whether the price reaches `target` before `stop` within the next `window` rows.

    side: high, the target lies above (highs are held against it, lows against the stop), or low.
    target, stop: (n,) prices, NaN = not known. strict: they must be passed, not only reached.

    A candle that reaches both counts as the stop, for nobody knows which came first. y: 1 target, 0
    stop or neither, NaN where the window is not whole or a price not known. t1: the row of the
    first touch of either, or the window's last row.
    """
    count = len(table)
    sign = 1.0 if side == "high" else -1.0
    towards, away = ("high", "low") if side == "high" else ("low", "high")
    won, lost = np.empty(count, np.int64), np.empty(count, np.int64)
    _first(sign * table.column(towards), sign * target, window, strict, won)
    _first(-sign * table.column(away), -sign * stop, window, strict, lost)
    known = is_whole(table, window) & ~np.isnan(target) & ~np.isnan(stop)
    y = np.where(known, (won < lost).astype(np.float64), np.nan)
    end = np.arange(count, dtype=np.int64) + window
    touch = np.minimum(np.minimum(won, lost), end)
    return y, np.where(known, touch, np.minimum(end, max(count - 1, 0)))


@cached
def _first(values, edge, window, strict, out):
    """out[t] = the first of the rows t+1 .. t+window whose value is at least edge[t] (strict: above
    it); 2**62 where there is none.

    From the last row to the first. In the queue are those rows of the window that no row between
    t and them exceeds or equals: the nearest last, values falling towards it, so that a binary
    search finds the first that is high enough. About O(n log k), k the longest queue, which is some
    tens for windows of hundreds of minutes.
    """
    count = len(values)
    rows = np.empty(count, np.int64)
    records = np.empty(count)  # their values
    first, last = 0, 0  # the queue is rows[first:last]
    for back in range(count):
        t = count - 1 - back
        if t + 1 < count:
            value = values[t + 1]
            if value == value:  # noqa: PLR0124 - not NaN
                while last > first and records[last - 1] <= value:
                    last -= 1
                rows[last] = t + 1
                records[last] = value
                last += 1
        while first < last and rows[first] > t + window:
            first += 1
        low, high = first, last  # records[low - 1] is high enough, records[high] is not
        while low < high:
            middle = (low + high) // 2
            if records[middle] > edge[t] or (records[middle] == edge[t] and not strict):
                low = middle + 1
            else:
                high = middle
        out[t] = rows[low - 1] if low > first else 1 << 62
