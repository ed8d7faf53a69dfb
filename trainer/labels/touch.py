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

    From the last row to the first. On the stack are the rows after t that no row between exceeds or
    equals: nearest on top, values rising towards the bottom, so that a binary search finds the
    first that is high enough. O(n log n), whatever the window.
    """
    count = len(values)
    stack = np.empty(count, np.int64)
    top = 0
    for back in range(count):
        t = count - 1 - back
        if t + 1 < count:
            value = values[t + 1]
            if value == value:  # noqa: PLR0124 - not NaN
                while top > 0 and values[stack[top - 1]] <= value:
                    top -= 1
                stack[top] = t + 1
                top += 1
        out[t] = 1 << 62
        low, high = 0, top  # stack[low - 1] is high enough, stack[high] is not
        while low < high:
            middle = (low + high) // 2
            value = values[stack[middle]]
            if value > edge[t] or (value == edge[t] and not strict):
                low = middle + 1
            else:
                high = middle
        if low > 0 and stack[low - 1] <= t + window:
            out[t] = stack[low - 1]
