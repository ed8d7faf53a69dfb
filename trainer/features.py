"""`trainer features`: the configured features of every raster row, by the same kernel as live."""

import argparse
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy.typing as npt

from shared.config import Settings
from shared.errors import Usage
from shared.features import FeatureSet
from shared.features.configured import feature_names
from trainer import rasters
from trainer.progress import Bar, Progress

BLOCK_ROWS = 131_072
_SOURCE_FLAGS = {
    "futur": "--futures (or download and merge with futures)",
    "depth": "order-book rows in the data folder (the collector archives them) and merge",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    rasters.add_options(parser)
    parser.add_argument(
        "--features", nargs="+", metavar="NAME", help="these instead of the config's"
    )


def run(settings: Settings, args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    names = rasters.listed(args.features) or feature_names(settings)
    features = FeatureSet.of(names, settings.features_file)
    workers = settings.trainer.threads or os.cpu_count() or 1
    outputs = []
    for read, raster, out in rasters.selected(settings, args, "features"):
        for source, remedy in _SOURCE_FLAGS.items():
            if source in features.sources and getattr(raster, source) is None:
                raise Usage(f"{raster.symbol}: features read {source} rows; give {remedy}")
        with progress.bar(f"features of {raster.symbol} {raster.interval}", len(raster)) as bar:
            blocks = _counted(feature_blocks(features, raster, workers), bar)
            out.write(blocks, {"schema": features.schema, "features": features.schema_json})
        outputs.append(rasters.span(raster) | {"read": read, "wrote": [out.path]})
    return {
        "command": "features",
        "rows": sum(output["rows"] for output in outputs),
        "features": len(names),
        "schema": features.schema,
        "lookback": features.lookback,
        "outputs": outputs,
    }


def summary(result: Mapping[str, Any]) -> str:
    places = ", ".join(str(output["wrote"][0]) for output in result["outputs"])
    return f"features: {result['features']} features of {result['rows']:,} rows in {places}"


def _counted(blocks: Iterator[rasters.Columns], bar: Bar) -> Iterator[rasters.Columns]:
    for columns in blocks:
        yield columns
        bar.advance(len(columns["open_time_ms"]))


def feature_blocks(
    features: FeatureSet, raster: rasters.Raster, workers: int = 1
) -> Iterator[rasters.Columns]:
    """open_time_ms and every feature, block by block, so that years of minutes need little memory.

    A block is computed together with the rows that its first windows reach back to; a value does
    not depend on where the computation started, so the blocks are the same bits as one batch.
    """
    for start in range(0, len(raster), BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, len(raster))
        warm = max(0, start - (features.lookback - 1))
        values = features.batch(
            raster.first_index + warm,
            kline=raster.kline[warm:stop],
            futur=None if raster.futur is None else raster.futur[warm:stop],
            depth=None if raster.depth is None else raster.depth[warm:stop],
            workers=workers,
        )[start - warm :]
        columns: dict[str, npt.NDArray[Any]] = {"open_time_ms": raster.open_time_ms[start:stop]}
        columns |= {name: values[:, at] for at, name in enumerate(features.names)}
        yield columns
