"""Training rows: features and labels of every usable candle, and which of them are trained on."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shared.errors import Failure
from shared.features import FeatureSet
from shared.klines import KLINE_COLUMNS
from shared.times import interval_ms, iso
from trainer.labels import SIGMA_ROWS, label, sigmas, trailing_sigma
from trainer.rasters import Raster

_DAY_MS = 86_400_000
_BLOCK_BYTES = 64 * 1024 * 1024
_LEAST_BLOCK_ROWS = 4_096
# Neighbouring rows share nearly all of their label's window, so more of them teach nothing: every
# 10th is as good as all. Where rows are few, fewer are left out.
_ENOUGH_ROWS = 20_000
_LARGEST_STRIDE = 10
NAN_SHARE_LEFT_OUT = 0.5


def block_rows(columns: int) -> int:
    """How many rows of so many doubles are held at a time, where all of them may be too many."""
    return max(_LEAST_BLOCK_ROWS, _BLOCK_BYTES // (8 * max(1, columns)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Candles of all symbols, in time order.

    x: (n, n_features) float32 in the order of the feature set, NaN = no value; in memory or a
    memory-mapped file. y: label -> (n,) float64, NaN = not known. open_ms: (n,) open times; t1_ms:
    label -> (n,) open time of the last candle that the label looks at. index: (n,) place on the
    interval's raster since 1970. symbol: (n,) which of the rasters. left_out: columns without a
    value in more than half of the rows.
    """

    x: npt.NDArray[np.float32]
    y: dict[str, npt.NDArray[np.float64]]
    open_ms: npt.NDArray[np.int64]
    t1_ms: dict[str, npt.NDArray[np.int64]]
    index: npt.NDArray[np.int64]
    symbol: npt.NDArray[np.int16]
    left_out: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.open_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usable:
    """left_out: (n_features,) columns that are not used; keep: (n,) rows that are."""

    left_out: npt.NDArray[np.bool_]
    keep: npt.NDArray[np.bool_]


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
    file: Path | None = None,
) -> Rows:
    """Computes the usable rows of the trailing `train_days`.

    Left out are gap rows, rows whose longest window reaches before the data, and those that live
    would call invalid (too many features without a value). file: as for `candidates`.

    Raises:
        Failure: nothing is left.
    """
    end_ms = max(int(raster.open_time_ms[-1]) for raster in rasters)
    rows = candidates(
        rasters,
        features,
        labels,
        horizon=horizon,
        start_ms=end_ms - int(train_days * _DAY_MS),
        workers=workers,
        advance=advance,
        file=file,
    )
    found = usable(rows.x, nan_share)
    return _only(rows, found.keep, found.left_out)


def candidates(
    rasters: Sequence[Raster],
    features: FeatureSet,
    labels: Sequence[str],
    *,
    horizon: int,
    start_ms: int,
    workers: int,
    advance: Callable[[int], None],
    file: Path | None = None,
) -> Rows:
    """Every candle from `start_ms` on whose longest window lies within the data.

    file: where x is to lie (npy, float32), memory-mapped; None: in memory. The values are the same
    bits either way.

    Raises:
        Failure: there is none.
    """
    parts = [
        _gather_one(
            raster,
            at,
            features,
            labels,
            horizon,
            start_ms,
            workers,
            advance,
            None if file is None else file.with_name(f"{file.name}.{at}"),
        )
        for at, raster in enumerate(rasters)
    ]
    rows = _together(parts, file)
    if not len(rows):
        have = max(len(raster) for raster in rasters)
        raise Failure(
            f"no candle to train on: {have:,} rows, and the longest feature window alone needs "
            f"{features.lookback:,}; give more history"
        )
    return rows


def usable(
    x: npt.NDArray[np.float32], nan_share: float, among: npt.NDArray[np.bool_] | None = None
) -> Usable:
    """Of the rows x, (n, n_features): the columns that are trained on, and the rows that are valid.

    among: (n,) the rows to choose from; the others count for nothing. None: all.

    Raises:
        Failure: no column or no row is left.
    """
    missing, rows = np.zeros(x.shape[1], np.int64), 0
    size = block_rows(x.shape[1])
    for start in range(0, len(x), size):
        block = x[start : start + size]
        if among is not None:
            block = block[among[start : start + size]]
        missing += np.isnan(block).sum(axis=0)
        rows += len(block)
    left_out = missing > NAN_SHARE_LEFT_OUT * rows
    if left_out.all():
        raise Failure(
            f"every feature is without a value in more than half of the {rows:,} rows; give "
            "candles with more columns or fewer gaps"
        )
    keep = valid(x, left_out, nan_share)
    if among is not None:
        keep &= among
    if not keep.any():
        raise Failure("every row lacks too many features; give candles with fewer gaps")
    return Usable(left_out=left_out, keep=keep)


def valid(
    x: npt.NDArray[np.float32], left_out: npt.NDArray[np.bool_], nan_share: float
) -> npt.NDArray[np.bool_]:
    """(n,) True where live would give a score: enough features have a value, none is infinite."""
    used = np.flatnonzero(~left_out)
    keep = np.empty(len(x), bool)
    size = block_rows(x.shape[1])
    for start in range(0, len(x), size):
        block = x[start : start + size][:, used]
        keep[start : start + size] = (
            np.isnan(block).sum(axis=1) <= nan_share * len(used)
        ) & ~np.isinf(block).any(axis=1)
    return keep


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
    symbol: int,
    features: FeatureSet,
    labels: Sequence[str],
    horizon: int,
    start_ms: int,
    workers: int,
    advance: Callable[[int], None],
    file: Path | None,
) -> Rows:
    step = interval_ms(raster.interval)
    first = int(np.searchsorted(raster.open_time_ms, start_ms))
    first = max(first, min(features.lookback - 1, len(raster)))
    close = raster.kline[first:, KLINE_COLUMNS.index("close")]
    keep = np.flatnonzero(~np.isnan(close))
    x = _matrix(len(keep), len(features.names), file)
    done = 0
    # each block computes the rows that its first windows reach back to once more
    size = max(block_rows(len(features.names)), 4 * features.lookback)
    for start in range(first, len(raster), size):
        stop = min(start + size, len(raster))
        warm = max(0, start - (features.lookback - 1))
        values = features.batch(
            raster.first_index + warm,
            **raster.inputs(warm, stop),
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
        symbol=np.full(len(keep), symbol, np.int16),
        left_out=np.zeros(x.shape[1], bool),
    )


def _matrix(rows: int, columns: int, file: Path | None) -> npt.NDArray[np.float32]:
    """Not yet filled. Of a file, only its pages that are in use lie in memory.

    Raises:
        OSError: there is no room for it.
    """
    if file is None or not rows:  # an empty file cannot be mapped
        return np.empty((rows, columns), np.float32)
    found: npt.NDArray[np.float32] = np.lib.format.open_memmap(
        file, mode="w+", dtype=np.float32, shape=(rows, columns)
    )
    if hasattr(os, "posix_fallocate"):
        # A page that finds no room on the disk when it is written ends the process by a signal.
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
    return found


def _together(parts: Sequence[Rows], file: Path | None) -> Rows:
    """Rows of several symbols in time order; of one time in the order of the symbols."""
    open_ms = np.concatenate([part.open_ms for part in parts])
    if len(parts) == 1:
        if file is not None and len(open_ms):
            file.with_name(f"{file.name}.0").replace(file)
        return parts[0]
    order = np.argsort(open_ms, kind="stable")
    place = np.empty(len(order), np.intp)
    place[order] = np.arange(len(order))
    x = _matrix(len(order), parts[0].x.shape[1], file)
    done = 0
    size = block_rows(x.shape[1])
    for at, part in enumerate(parts):
        for start in range(0, len(part), size):
            block = part.x[start : start + size]
            x[place[done : done + len(block)]] = block
            done += len(block)
        if file is not None:
            file.with_name(f"{file.name}.{at}").unlink(missing_ok=True)
    return Rows(
        x=x,
        y={k: np.concatenate([part.y[k] for part in parts])[order] for k in parts[0].y},
        open_ms=open_ms[order],
        t1_ms={k: np.concatenate([p.t1_ms[k] for p in parts])[order] for k in parts[0].t1_ms},
        index=np.concatenate([part.index for part in parts])[order],
        symbol=np.concatenate([part.symbol for part in parts])[order],
        left_out=parts[0].left_out,
    )


def _only(rows: Rows, keep: npt.NDArray[np.bool_], left_out: npt.NDArray[np.bool_]) -> Rows:
    if keep.all():
        return replace(rows, left_out=left_out)
    return Rows(
        x=_compacted(rows.x, keep) if isinstance(rows.x, np.memmap) else rows.x[keep],
        y={name: values[keep] for name, values in rows.y.items()},
        open_ms=rows.open_ms[keep],
        t1_ms={name: values[keep] for name, values in rows.t1_ms.items()},
        index=rows.index[keep],
        symbol=rows.symbol[keep],
        left_out=left_out,
    )


def _compacted(x: npt.NDArray[np.float32], keep: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """The rows that are kept, moved to the front of the same file."""
    done = 0
    size = block_rows(x.shape[1])
    for start in range(0, len(x), size):
        rows = x[start : start + size][keep[start : start + size]]
        x[done : done + len(rows)] = rows
        done += len(rows)
    return x[:done]


def span_text(rows: Rows) -> str:
    return f"{iso(int(rows.open_ms[0]))} .. {iso(int(rows.open_ms[-1]))}"
