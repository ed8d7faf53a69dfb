"""Training rows: features and labels of every usable candle, and which of them are trained on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared.errors import Failure
from shared.features import FeatureSet
from shared.klines import KLINE_COLUMNS
from shared.times import interval_ms, iso
from trainer.labels import SIGMA_ROWS, label, sigmas, trailing_sigma
from trainer.rasters import Raster

_DAY_MS = 86_400_000
_BLOCK_ROWS = 131_072
# Neighbouring rows share nearly all of their label's window, so more of them teach nothing: every
# 10th is as good as all. Where rows are few, fewer are left out.
_ENOUGH_ROWS = 20_000
_LARGEST_STRIDE = 10
NAN_SHARE_LEFT_OUT = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Usable candles of all symbols, in time order.

    x: (n, n_features) float32 in the order of the feature set, NaN = no value. y: label -> (n,)
    float64, 0 or 1, NaN = not known. open_ms: (n,) open times; t1_ms: label -> (n,) open time of
    the last candle that the label looks at. index: (n,) place on the interval's raster since 1970.
    left_out: columns without a value in more than half of the rows.
    """

    x: npt.NDArray[np.float32]
    y: dict[str, npt.NDArray[np.float64]]
    open_ms: npt.NDArray[np.int64]
    t1_ms: dict[str, npt.NDArray[np.int64]]
    index: npt.NDArray[np.int64]
    left_out: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.open_ms)


def stride_for(rows: int) -> int:
    """Train on every n-th row: n keeps at least 20,000 rows and is between 1 and 10."""
    return max(1, min(_LARGEST_STRIDE, rows // _ENOUGH_ROWS))


def gather(
    rasters: Sequence[Raster],
    features: FeatureSet,
    labels: Sequence[str],
    *,
    horizon: int,
    train_days: float,
    nan_share: float,
    workers: int,
    advance: Callable[[int], None],
) -> Rows:
    """Computes the rows of the trailing `train_days`.

    Left out are gap rows, rows whose longest window reaches before the data, and those that live
    would call invalid (too many features without a value).

    Raises:
        Failure: nothing is left.
    """
    end_ms = max(int(raster.open_time_ms[-1]) for raster in rasters)
    start_ms = end_ms - int(train_days * _DAY_MS)
    parts = [
        _gather_one(raster, features, labels, horizon, start_ms, workers, advance)
        for raster in rasters
    ]
    rows = parts[0] if len(parts) == 1 else _together(parts)
    if not len(rows):
        have = max(len(raster) for raster in rasters)
        raise Failure(
            f"no candle to train on: {have:,} rows, and the longest feature window alone needs "
            f"{features.lookback:,}; give more history"
        )
    missing = np.array([np.isnan(rows.x[:, column]).mean() for column in range(rows.x.shape[1])])
    left_out = missing > NAN_SHARE_LEFT_OUT
    if left_out.all():
        raise Failure(
            f"every feature is without a value in more than half of the {len(rows):,} rows; give "
            "candles with more columns or fewer gaps"
        )
    used = rows.x[:, ~left_out]
    whole = np.isnan(used).sum(axis=1) <= nan_share * used.shape[1]
    for column in range(used.shape[1]):
        whole &= ~np.isinf(used[:, column])
    if not whole.any():
        raise Failure("every row lacks too many features; give candles with fewer gaps")
    return _only(rows, whole, left_out)


def chosen(
    rows: Rows, step_ms: int, stride: int, length: int | None = None
) -> npt.NDArray[np.intp]:
    """Positions of every `stride`-th candle of the raster, of the last `length` raster rows.

    The raster is counted from 1970, so that the choice does not depend on where the data starts.
    """
    keep = rows.index % stride == 0
    if length is not None:
        keep &= rows.open_ms > rows.open_ms[-1] - length * step_ms
    return np.flatnonzero(keep)


def _gather_one(
    raster: Raster,
    features: FeatureSet,
    labels: Sequence[str],
    horizon: int,
    start_ms: int,
    workers: int,
    advance: Callable[[int], None],
) -> Rows:
    step = interval_ms(raster.interval)
    first = int(np.searchsorted(raster.open_time_ms, start_ms))
    first = max(first, min(features.lookback - 1, len(raster)))
    close = raster.kline[first:, KLINE_COLUMNS.index("close")]
    keep = np.flatnonzero(~np.isnan(close))
    x = np.empty((len(keep), len(features.names)), np.float32)
    done = 0
    for start in range(first, len(raster), _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, len(raster))
        warm = max(0, start - (features.lookback - 1))
        values = features.batch(
            raster.first_index + warm,
            kline=raster.kline[warm:stop],
            futur=None if raster.futur is None else raster.futur[warm:stop],
            depth=None if raster.depth is None else raster.depth[warm:stop],
            workers=workers,
        )
        here = keep[(keep >= start - first) & (keep < stop - first)]
        with np.errstate(over="ignore"):  # beyond float32 is infinite, and such rows are left out
            x[done : done + len(here)] = values[here + first - warm]
        done += len(here)
        advance(stop - start)
    # Labels from `first` on: a label looks ahead only, but for the volatility that some start from.
    table = raster.kline_table().rows(first, len(raster))
    times = table.open_time_ms
    sigma = None
    if any(sigmas(name) is not None for name in labels):
        before = max(0, first - SIGMA_ROWS)
        close_before = raster.kline[before:, KLINE_COLUMNS.index("close")]
        sigma = trailing_sigma(close_before)[first - before :]
    y: dict[str, npt.NDArray[np.float64]] = {}
    t1_ms: dict[str, npt.NDArray[np.int64]] = {}
    for name in labels:
        found = label(name, table, horizon, sigma)
        y[name] = found.y[keep]
        t1_ms[name] = times[found.t1[keep]] if len(keep) else np.empty(0, np.int64)
    return Rows(
        x=x,
        y=y,
        open_ms=times[keep],
        t1_ms=t1_ms,
        index=times[keep] // step,
        left_out=np.zeros(x.shape[1], bool),
    )


def _together(parts: Sequence[Rows]) -> Rows:
    """Rows of several symbols in time order; of one time in the order of the symbols."""
    open_ms = np.concatenate([part.open_ms for part in parts])
    order = np.argsort(open_ms, kind="stable")
    return Rows(
        x=np.concatenate([part.x for part in parts])[order],
        y={k: np.concatenate([part.y[k] for part in parts])[order] for k in parts[0].y},
        open_ms=open_ms[order],
        t1_ms={k: np.concatenate([p.t1_ms[k] for p in parts])[order] for k in parts[0].t1_ms},
        index=np.concatenate([part.index for part in parts])[order],
        left_out=parts[0].left_out,
    )


def _only(rows: Rows, keep: npt.NDArray[np.bool_], left_out: npt.NDArray[np.bool_]) -> Rows:
    if keep.all():
        return Rows(
            x=rows.x,
            y=rows.y,
            open_ms=rows.open_ms,
            t1_ms=rows.t1_ms,
            index=rows.index,
            left_out=left_out,
        )
    return Rows(
        x=rows.x[keep],
        y={name: values[keep] for name, values in rows.y.items()},
        open_ms=rows.open_ms[keep],
        t1_ms={name: values[keep] for name, values in rows.t1_ms.items()},
        index=rows.index[keep],
        left_out=left_out,
    )


def span_text(rows: Rows) -> str:
    return f"{iso(int(rows.open_ms[0]))} .. {iso(int(rows.open_ms[-1]))}"
