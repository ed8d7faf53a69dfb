"""Candles on the axes of a matplotlib figure; matplotlib itself is the caller's."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def draw_candles(
    axes: Any, x: Sequence[float], bars: Floats, *, width: float, up: str, down: str
) -> None:
    """bars: (n, 4) open, high, low, close, all finite; x: (n,) where they stand; width: of a body,
    in units of x; up, down: colours. A candle that ends where it began rises."""
    opened, high, low, close = bars.T
    rises = close >= opened
    places = np.asarray(x)
    for is_up, colour in ((True, up), (False, down)):
        at = np.flatnonzero(rises == is_up)
        axes.vlines(places[at], low[at], high[at], color=colour, lw=0.8)
        axes.bar(
            places[at],
            np.abs(close - opened)[at],
            width,
            bottom=np.minimum(opened, close)[at],
            color=colour,
            edgecolor=colour,  # of a body without height this is what is seen
            lw=0.4,
        )
