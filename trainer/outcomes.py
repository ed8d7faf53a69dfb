"""What the price did after each candle, to judge a score by: its return, what it touched first."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shared.klines import KLINE_COLUMNS
from shared.times import interval_ms
from trainer.labels import trailing_sigma
from trainer.rasters import Raster

Floats = npt.NDArray[np.float64]


def after(
    rasters: Sequence[Raster],
    symbol: npt.NDArray[np.int16],
    open_ms: npt.NDArray[np.int64],
    horizon: int,
) -> tuple[Floats, Floats]:
    """`future_return` and `first_touch` of chosen candles, (n,) each.

    symbol: (n,) which of the rasters a candle is from; open_ms: (n,) when it opens.
    """
    returns, touch = np.empty(len(symbol)), np.empty(len(symbol))
    for at, raster in enumerate(rasters):
        close, high, low = (
            raster.kline[:, KLINE_COLUMNS.index(name)] for name in ("close", "high", "low")
        )
        here = symbol == at
        places = (open_ms[here] - raster.open_time_ms[0]) // interval_ms(raster.interval)
        returns[here] = future_return(close, horizon)[places]
        sigma = trailing_sigma(close)
        touch[here] = first_touch(close, high, low, sigma, horizon)[places]
    return returns, touch


def future_return(close: Floats, horizon: int) -> Floats:
    """close[t + horizon] / close[t] - 1; NaN in the last rows and where either is a gap."""
    found = np.full(len(close), np.nan)
    if len(close) > horizon:
        found[:-horizon] = close[horizon:] / close[:-horizon] - 1
    return found


def first_touch(close: Floats, high: Floats, low: Floats, sigma: Floats, horizon: int) -> Floats:
    """+1 where the price rises by one sigma of the horizon before it falls by one, -1 the other way
    round, 0 where the next `horizon` rows do neither or the same candle does both.

    The barriers of row t stand at close[t] * (1 +- sigma[t] * sqrt(horizon)); sigma: (n,) standard
    deviation of one row's log return. NaN in the last rows, where sigma is, and where row t or the
    `horizon` rows after it hold a gap.
    """
    found = np.full(len(close), np.nan)
    rows = len(close) - horizon
    if rows <= 0:
        return found
    width = sigma[:rows] * math.sqrt(horizon)
    gaps = np.concatenate([[0], np.cumsum(np.isnan(close) | np.isnan(high) | np.isnan(low))])
    known = (gaps[horizon + 1 :] - gaps[:rows] == 0) & ~np.isnan(width)
    found[:rows][known] = 0
    open_rows = np.flatnonzero(known)
    for ahead in range(1, horizon + 1):
        up = high[open_rows + ahead] >= close[open_rows] * (1 + width[open_rows])
        down = low[open_rows + ahead] <= close[open_rows] * (1 - width[open_rows])
        found[open_rows] = up.astype(float) - down
        open_rows = open_rows[~(up | down)]
    return found
