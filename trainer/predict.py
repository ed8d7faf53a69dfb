"""`trainer predict`: every output and the score of a release, candle by candle, as live gives them.

Columns: open_time_ms, close, one per model, score; NaN where live would call the candle invalid
(gap, warm-up, too many features without a value).
"""

import argparse
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.bundle import Bundle
from shared.config import Settings
from shared.errors import Failure, Usage
from shared.features import FeatureSet
from shared.klines import KLINE_COLUMNS
from shared.releases import Manifest, current_folder
from shared.times import interval_ms
from trainer import csvfiles, rasters
from trainer.progress import Bar, Progress

_BLOCK_ROWS = 16_384


def add_arguments(parser: argparse.ArgumentParser) -> None:
    rasters.add_options(parser)
    parser.add_argument("--release", metavar="ID", help="instead of the live release")
    parser.add_argument("--since", type=int, metavar="MS", help="first open time (epoch ms)")
    parser.add_argument("--until", type=int, metavar="MS", help="no candle at or after this time")
    parser.add_argument("--csv", action="store_true", help="write one csv file as well")


def run(settings: Settings, args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    bundle = Bundle.load(_folder(settings, args.release), settings.limits.model_bytes)
    if bundle.note:
        progress.note(bundle.note)
    features = features_of(bundle.manifest, settings)
    threads = settings.trainer.threads or os.cpu_count() or 1
    outputs = []
    for read, raster, out in rasters.selected(settings, args, "predictions"):
        if raster.interval != bundle.manifest.interval:
            raise Usage(
                f"release {bundle.id} is for {bundle.manifest.interval} candles, these are "
                f"{raster.interval}"
            )
        start = 0 if args.since is None else int(np.searchsorted(raster.open_time_ms, args.since))
        stop = (
            len(raster)
            if args.until is None
            else int(np.searchsorted(raster.open_time_ms, args.until))
        )
        if start >= stop:
            raise Usage(f"{raster.symbol}: no candle between --since and --until")
        counts = {"rows": 0, "scored": 0}
        with progress.bar(f"scores of {raster.symbol} {raster.interval}", stop - start) as bar:
            blocks = _counted(
                scores(bundle, features, raster, start, stop, settings.limits.nan_share, threads),
                bar,
                counts,
            )
            out.write(blocks, {"release": bundle.id})
        wrote = [out.path]
        if args.csv:
            wrote.append(csvfiles.write_beside(out, progress, rows=counts["rows"]))
        outputs.append(rasters.span(raster) | counts | {"read": read, "wrote": wrote})
    return {
        "command": "predict",
        "release": bundle.id,
        "rows": sum(output["rows"] for output in outputs),
        "scored": sum(output["scored"] for output in outputs),
        "outputs": outputs,
    }


def summary(result: Mapping[str, Any]) -> str:
    places = ", ".join(str(path) for output in result["outputs"] for path in output["wrote"])
    return (
        f"predict: {result['scored']:,} of {result['rows']:,} candles scored by release "
        f"{result['release']}, in {places}"
    )


def scores(
    bundle: Bundle,
    features: FeatureSet,
    raster: rasters.Raster,
    start: int,
    stop: int,
    nan_share: float,
    threads: int,
) -> Iterator[rasters.Columns]:
    """Blocks of rows [start, stop): open_time_ms, close, the models in order, score."""
    models = bundle.models
    for first in range(start, stop, _BLOCK_ROWS):
        end = min(first + _BLOCK_ROWS, stop)
        warm = max(0, first - (features.lookback - 1))
        values = features.batch(
            raster.first_index + warm,
            **raster.inputs(warm, end),
            workers=threads,
        )[first - warm :]
        close = raster.kline[first:end, KLINE_COLUMNS.index("close")]
        covered = np.arange(first, end) >= features.lookback - 1
        valid = np.flatnonzero(valid_rows(values, bundle.manifest, close, covered, nan_share))
        found = bundle.run(values[valid], threads)
        outputs = np.full((end - first, len(models)), np.nan)
        score = np.full(end - first, np.nan)
        outputs[valid], score[valid] = found.outputs, found.score
        yield {
            "open_time_ms": raster.open_time_ms[first:end],
            "close": close,
            **{name: outputs[:, column] for column, name in enumerate(models)},
            "score": score,
        }


def valid_rows(
    values: npt.NDArray[np.float64],
    manifest: Manifest,
    close: npt.NDArray[np.float64],
    covered: npt.NDArray[np.bool_],
    nan_share: float,
) -> npt.NDArray[np.bool_]:
    """`shared.bundle.invalid_reason` of many rows: True where it gives no reason.

    close: NaN marks a gap.
    """
    used = values[:, manifest.used]
    missing = np.isnan(used).sum(axis=1)
    return np.asarray(
        ~np.isnan(close)
        & covered
        & (missing <= nan_share * used.shape[1])
        & ~np.isinf(used).any(axis=1)
    )


def _folder(settings: Settings, release: str | None) -> Path:
    if release is not None:
        return settings.model_folder / "releases" / release
    folder = current_folder(settings.model_folder)
    if folder is None:
        raise Failure(
            f"{settings.model_folder}: no release is live; run `python -m trainer train --promote` "
            "or give one by --release"
        )
    return folder


def features_of(manifest: Manifest, settings: Settings) -> FeatureSet:
    """The features that a release was trained on.

    Raises:
        Failure: it was trained with another file of user features than the config's.
    """
    file = settings.features_file if manifest.features_file_sha256 is not None else None
    features = FeatureSet.of(manifest.features, file, interval_ms=interval_ms(manifest.interval))
    if features.user_sha256 != manifest.features_file_sha256:
        raise Failure(
            f"release {manifest.id} was trained with another features_file: its sha256 is "
            f"{manifest.features_file_sha256}"
        )
    return features


def _counted(
    blocks: Iterator[rasters.Columns], bar: Bar, counts: dict[str, int]
) -> Iterator[rasters.Columns]:
    for columns in blocks:
        yield columns
        counts["rows"] += len(columns["score"])
        counts["scored"] += int((~np.isnan(columns["score"])).sum())
        bar.advance(len(columns["score"]))
