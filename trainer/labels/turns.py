# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Numba infers the types of what it compiles.
"""Tops and bottoms: turning points of at least a given height, and the rows about them."""

import numpy as np
import numpy.typing as npt

from shared.features.kernel import cached

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


def near_a_turn(close: Floats, side: str, level: float, tolerance: float) -> tuple[Floats, Rows]:
    """(y, t1): whether a row lies in the run of rows about a top (`top`) or bottom (`bot`).

    level, tolerance: fractions of the price at the turn, tolerance <= level.

    A top of price v is the predecessor's (`topbot2`, there a recursion over the greatest maxima):
    on both sides, before any price above v (on the left: or equal), the price falls below
    v * (1 - level). y is 1 in the unbroken run about it of closes not below v * (1 - tolerance).
    A bottom is the mirror image.

    One pass. A top stands as soon as a later close is below v * (1 - level), the lowest close
    between two tops as soon as the next top's left side is high enough. t1 is the row that confirms
    the first such turning point, of either kind, at or after t: by then no later price can make row
    t part of another top or keep it from being part of this one, and whether a row is known does
    not depend on what it is. NaN: not confirmed; up to the first turning point to be confirmed
    (what is a top there depends on earlier prices); and the same before and after each gap, for a
    run of rows is not followed across one.
    """
    y = np.full(len(close), np.nan)
    t1 = np.full(len(close), max(len(close) - 1, 0), np.int64)
    prices = close if side == "top" else -close
    start = 0
    for gap in (*np.flatnonzero(np.isnan(close)).tolist(), len(close)):
        if start < gap:
            _turns(prices[start:gap], level, tolerance, y[start:gap], t1[start:gap], start)
        if gap < len(close):
            t1[gap] = gap
        start = gap + 1
    return y, t1


@cached
def _turns(x, level, tolerance, y, t1, offset):
    """Fills y and t1 for the tops of x, which has no NaN; rows of t1 are counted from -offset."""
    lowest = 0  # the last row of the lowest price since the last top
    top = -1  # the row of the highest price since `lowest` was confirmed; -1: it is not yet
    done = -1  # the last row that is decided
    run_end = -1  # the last row of the run about the last top
    for i in range(len(x)):
        if top < 0:
            if x[i] <= x[lowest]:
                lowest = i
            elif x[lowest] < x[i] - level * abs(x[i]):
                for t in range(done + 1, lowest + 1):
                    if done >= 0:
                        y[t] = 1.0 if t <= run_end else 0.0
                    t1[t] = offset + i
                done = lowest
                top = i
        elif x[i] > x[top]:
            top = i
        elif x[i] < x[top] - level * abs(x[top]):
            edge = x[top] - tolerance * abs(x[top])
            run_start = top
            while x[run_start - 1] >= edge:  # ends at `lowest`, which is lower still
                run_start -= 1
            run_end = top
            while x[run_end + 1] >= edge:  # ends at i
                run_end += 1
            for t in range(done + 1, top + 1):
                y[t] = 1.0 if t >= run_start else 0.0
                t1[t] = offset + i
            done = top
            top = -1
            lowest = i
