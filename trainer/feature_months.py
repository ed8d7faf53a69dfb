"""The feature folder of a symbol, brought up to date month by month.

Each monthly file says in its metadata what it was made from: a digest over the features, the code
that computes them and the very rows that they look at. What a run finds made from the same is kept
(linked, not copied); a month that has grown gets its new rows only; all else is computed again. A
value does not depend on where a computation starts, so the result is that of a run from scratch.
The folder is replaced as a whole; a run that was killed leaves its months for the next one.
"""

import hashlib
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

import shared.features
from shared import klinefiles
from shared.errors import BadInput
from shared.features import FeatureSet
from shared.times import interval_ms
from trainer import rasters

_WAITING = 2  # threads more than work at a time: some wait for the disk
_FIRST, _LAST, _MADE_FROM = "first_ms", "last_ms", "made_from"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Month:
    """Rows [start, stop) of the raster; have: how many of them `source` holds already."""

    name: str
    start: int
    stop: int
    source: Path | None = None
    have: int = 0

    @property
    def is_whole(self) -> bool:
        return self.start + self.have == self.stop


def update(
    folder: Path,
    features: FeatureSet,
    raster: rasters.Raster,
    workers: int,
    advance: Callable[[int], None],
) -> int:
    """Makes `folder` hold the features of all rows; returns how many rows were computed.

    advance: is told the rows that are done, kept ones included.

    Raises:
        Failure: the disk is full, or a user's function failed.
    """
    rasters.recover(folder, keep_unfinished=True)
    months = [_known(folder, features, raster, month) for month in _months(raster)]
    if all(m.is_whole for m in months) and klinefiles.kline_months(folder) == [
        m.name for m in months
    ]:
        advance(len(raster))
        return 0
    with rasters.replacing_folder(folder, adopt=True) as unfinished:
        for left in unfinished.iterdir():
            if left.name not in {f"{month.name}.parquet" for month in months}:
                left.unlink()
        # Python functions of users take turns; the kernels need no such care.
        alone = features.user_sha256 is not None
        with ThreadPoolExecutor(1 if alone else workers + _WAITING) as pool:
            tasks = [
                pool.submit(_make, unfinished, features, raster, month, workers if alone else 1)
                for month in months
            ]
            try:
                computed = 0
                for month, task in zip(months, tasks, strict=True):
                    computed += task.result()
                    advance(month.stop - month.start)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return computed


def columns_of(
    features: FeatureSet, raster: rasters.Raster, start: int, stop: int, workers: int
) -> dict[str, npt.NDArray[Any]]:
    """open_time_ms and the features of rows [start, stop), each column contiguous.

    They are computed together with the rows that the first windows reach back to: the same bits as
    one batch over everything.
    """
    warm = max(0, start - (features.lookback - 1))
    values = features.batch(
        raster.first_index + warm, **raster.inputs(warm, stop), workers=workers
    )[start - warm :]
    turned = np.empty((len(features.names), stop - start))
    for at in range(0, stop - start, 256):  # in pieces that stay in the cache
        turned[:, at : at + 256] = values[at : at + 256].T
    columns: dict[str, npt.NDArray[Any]] = {"open_time_ms": raster.open_time_ms[start:stop]}
    columns |= dict(zip(features.names, turned, strict=True))
    return columns


def metadata_of(features: FeatureSet) -> dict[str, str]:
    return {"schema": features.schema, "features": features.schema_json}


def _months(raster: rasters.Raster) -> Iterator[_Month]:
    times = raster.open_time_ms
    start = 0
    while start < len(times):
        name = klinefiles.month_of(int(times[start]))
        stop = int(np.searchsorted(times, klinefiles.month_bounds(name)[1]))
        yield _Month(name=name, start=start, stop=stop)
        start = stop


def _known(folder: Path, features: FeatureSet, raster: rasters.Raster, month: _Month) -> _Month:
    """The month with what a file of the folder holds of it, as long as that is still right."""
    month = replace(month, source=None, have=0)
    path = folder / f"{month.name}.parquet"
    metadata = _metadata(path)
    first_ms = int(raster.open_time_ms[month.start])
    if metadata.get(_FIRST) != str(first_ms):
        return month
    have = (int(metadata[_LAST]) - first_ms) // interval_ms(raster.interval) + 1
    stop = month.start + have
    if not month.start < stop <= month.stop:
        return month
    if metadata.get(_MADE_FROM) != _digest(features, raster, month.start, stop):
        return month
    return replace(month, source=path, have=have)


def _make(
    folder: Path, features: FeatureSet, raster: rasters.Raster, month: _Month, workers: int
) -> int:
    """Writes the month's file into the folder; returns how many rows were computed."""
    path = folder / f"{month.name}.parquet"
    if _known(folder, features, raster, month).is_whole:
        return 0  # by a run that was killed
    path.unlink(missing_ok=True)
    if month.is_whole and month.source is not None:
        _link(month.source, path)
        return 0
    start = month.start + month.have
    columns: Mapping[str, npt.NDArray[Any]] = columns_of(
        features, raster, start, month.stop, workers
    )
    if month.source is not None:
        before = klinefiles.read_columns(month.source, list(columns))
        columns = {name: np.concatenate([before[name], new]) for name, new in columns.items()}
    metadata = metadata_of(features) | {
        _FIRST: str(raster.open_time_ms[month.start]),
        _LAST: str(raster.open_time_ms[month.stop - 1]),
        _MADE_FROM: _digest(features, raster, month.start, month.stop),
    }
    rasters.write_fast(path, columns, metadata)
    return month.stop - start


def _digest(features: FeatureSet, raster: rasters.Raster, start: int, stop: int) -> str:
    """Of everything that rows [start, stop) are made from."""
    warm = max(0, start - (features.lookback - 1))
    parts = (
        *(_code(), features.schema_json, features.user_sha256, raster.interval),
        *(int(raster.open_time_ms[warm]), start - warm, stop - start),
    )
    digest = hashlib.sha256(repr(parts).encode())
    inputs = raster.inputs(warm, stop)
    sources = {
        "kline": inputs["kline"],
        "futur": inputs["futur"],
        "depth": inputs["depth"],
        "other": inputs["other"],
    }
    for name, rows in sources.items():
        if name in features.sources and rows is not None:
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(rows).data)
    return digest.hexdigest()


@cache
def _code() -> str:
    """What else decides the bits: our own code, its compiler, the kind of machine."""
    digest = hashlib.sha256(f"{numba.__version__} {platform.machine()}".encode())
    for file in sorted(Path(shared.features.__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _metadata(path: Path) -> Mapping[str, str]:
    """Of a file that may be missing or damaged: then nothing is known of it."""
    try:
        return klinefiles.read_metadata(path)
    except BadInput:
        return {}


def _link(source: Path, path: Path) -> None:
    try:
        os.link(source, path)
    except OSError:  # a file system without links
        shutil.copy2(source, path)
