"""What a model must beat: volatility alone and the clock alone, each in a small linear model.

Most of the AUC of "will the price move by X percent" is those two.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from shared.klines import KLINE_COLUMNS
from trainer.models import lc
from trainer.models.scaling import Scaling
from trainer.rasters import Raster

Floats = npt.NDArray[np.float64]
Float32s = npt.NDArray[np.float32]
Name = Literal["volatility", "clock"]

VOLATILITY_WINDOWS = (15, 60, 180, 720, 1440)
_HARMONICS = (1, 2, 3)
_DAY_MS = 86_400_000
_LEAST_SIGMA = 1e-7
_VOLATILITY = len(VOLATILITY_WINDOWS)
COLUMNS = _VOLATILITY + 2 * len(_HARMONICS) + 6
NAMES: dict[Name, slice] = {
    "volatility": slice(0, _VOLATILITY),
    "clock": slice(_VOLATILITY, COLUMNS),
}


def features(raster: Raster, keep: npt.NDArray[np.intp]) -> Float32s:
    """(len(keep), 17) float32 of the rows `keep`, columns as NAMES says.

    Volatility: ln of the standard deviation of the log returns of the last 15 .. 1440 rows, NaN
    where the window begins before the data or holds fewer than two returns. Clock: sine and cosine
    of one, two and three turns a day, and which day of the week it is (Monday: none of the six).
    """
    found = np.empty((len(keep), COLUMNS), np.float32)
    close = raster.kline[:, KLINE_COLUMNS.index("close")]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        returns = np.log(close[1:] / close[:-1])
    known = np.isfinite(returns)
    returns = np.where(known, returns, 0.0)
    sums = [_running(values) for values in (known.astype(float), returns, returns**2)]
    for column, window in enumerate(VOLATILITY_WINDOWS):
        inside = keep >= window
        at = keep[inside]
        count, total, squares = (run[at] - run[at - window] for run in sums)
        with np.errstate(divide="ignore", invalid="ignore"):
            variance = np.maximum(squares / count - (total / count) ** 2, 0)
        values = np.full(len(keep), np.nan)
        values[inside] = np.where(
            count >= 2, np.log(np.maximum(np.sqrt(variance), _LEAST_SIGMA)), np.nan
        )
        found[:, column] = values
    times = raster.open_time_ms[keep]
    angle = 2 * np.pi * (times % _DAY_MS) / _DAY_MS
    column = _VOLATILITY
    for turns in _HARMONICS:
        found[:, column] = np.sin(turns * angle)
        found[:, column + 1] = np.cos(turns * angle)
        column += 2
    weekday = (times // _DAY_MS + 3) % 7  # 1970 began on a Thursday
    for day in range(1, 7):
        found[:, column] = weekday == day
        column += 1
    return found


def _running(values: Floats) -> Floats:
    """(n + 1,): the sum of all values before each."""
    return np.concatenate([[0.0], np.cumsum(values)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Least squares on standardised columns, for labels that are values."""

    scaling: Scaling
    weights: Floats
    bias: float

    def predict(self, x: Float32s) -> Floats:
        return np.asarray(self.scaling.apply(x) @ self.weights + self.bias)


def fit(x: Float32s, y: Floats, *, is_value: bool, seed: int, name: str) -> lc.Linear | Line:
    """x: (n, columns of one baseline); y: (n,) 0 or 1, or values."""
    scaling = Scaling.fit(x)
    scaled = scaling.apply(x)
    if not is_value:
        return lc.fit(lc.Options(is_scale=True, train={}), scaling, scaled, y, seed, name)
    with_one = np.column_stack([scaled, np.ones(len(scaled))])
    solved = np.linalg.lstsq(with_one, y, rcond=None)[0]
    return Line(
        scaling=scaling, weights=np.asarray(solved[:-1], np.float64), bias=float(solved[-1])
    )
