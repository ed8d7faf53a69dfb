"""`trainer features`: the configured features of every raster row, by the same kernel as live."""

import argparse
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from shared.config import Settings
from shared.errors import Usage
from shared.features import FeatureSet
from shared.features.catalogue import Entry, catalogue
from shared.features.configured import feature_names
from shared.times import interval_ms
from trainer import csvfiles, feature_months, rasters
from trainer.progress import Bar, Progress

BLOCK_ROWS = 65_536
_REMEDIES = {
    "futur": "--futures (or download and merge with futures)",
    "depth": "order-book rows in the data folder (the collector archives them) and merge",
    "other": "--other, or the config key features_other and merge",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    rasters.add_options(parser)
    parser.add_argument(
        "--features", nargs="+", metavar="NAME", help="these instead of the config's"
    )
    parser.add_argument("--csv", action="store_true", help="write one csv file as well")
    parser.add_argument(
        "--list", action="store_true", help="print every family of features, and compute nothing"
    )


def run(settings: Settings, args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    if args.list:
        entries = catalogue(settings.features_file)
        return {"command": "features", "families": [entry.as_dict() for entry in entries]}
    names = rasters.listed(args.features) or feature_names(settings)
    workers = settings.trainer.threads or os.cpu_count() or 1
    features = FeatureSet.of(names, settings.features_file, interval_ms=settings.step_ms)
    outputs = []
    for read, raster, out in rasters.selected(settings, args, "features"):
        features = FeatureSet.of(
            names, settings.features_file, interval_ms=interval_ms(raster.interval)
        )
        check_sources(features, raster)
        if features.lookback > len(raster):
            progress.note(
                f"{raster.symbol}: the longest feature window looks back {features.lookback:,} "
                f"rows, and there are {len(raster):,}: no row has a value of it"
            )
        label = f"features of {raster.symbol} {raster.interval}"
        with progress.bar(label, len(raster)) as bar:
            if isinstance(out, rasters.MonthFolder):
                computed = feature_months.update(out.path, features, raster, workers, bar.advance)
            else:
                # One core writes; a third thread on two cores would only slow it.
                ahead = _ahead(feature_blocks(features, raster, max(1, workers - 1)))
                blocks = _counted(ahead, bar)
                computed = out.write(blocks, feature_months.metadata_of(features))
        wrote = [out.path]
        if args.csv:
            wrote.append(csvfiles.write_beside(out, progress, rows=len(raster)))
        outputs.append(rasters.span(raster) | {"computed": computed, "read": read, "wrote": wrote})
    return {
        "command": "features",
        "rows": sum(output["rows"] for output in outputs),
        "computed": sum(output["computed"] for output in outputs),
        "features": len(names),
        "schema": features.schema,
        "lookback": features.lookback,
        "outputs": outputs,
    }


def check_sources(features: FeatureSet, raster: rasters.Raster) -> None:
    """Raises: Usage: the features read a source that there is no row of."""
    source = raster.lacks(features.sources)
    if source is not None:
        raise Usage(f"{raster.symbol}: features read {source} rows; give {_REMEDIES[source]}")


def summary(result: Mapping[str, Any]) -> str:
    if "families" in result:
        return _table([Entry(**family) for family in result["families"]])
    places = ", ".join(str(output["wrote"][0]) for output in result["outputs"])
    kept = result["rows"] - result["computed"]
    of = f" ({kept:,} were there already)" if kept else ""
    return f"features: {result['features']} features of {result['rows']:,} rows{of} in {places}"


def _table(entries: Sequence[Entry]) -> str:
    """For people: each family's form and look-back, what it is, and one name."""
    lines = []
    for entry in entries:
        lines.append(f"{entry.form}   looks back {entry.lookback} rows   such as {entry.example}")
        lines += textwrap.wrap(entry.formula, 96, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def _counted(blocks: Iterator[rasters.Columns], bar: Bar) -> Iterator[rasters.Columns]:
    for columns in blocks:
        yield columns
        bar.advance(len(columns["open_time_ms"]))


def _ahead(blocks: Iterator[rasters.Columns]) -> Iterator[rasters.Columns]:
    """The same, the next one being computed while the last one is written."""
    with ThreadPoolExecutor(1) as pool:
        task = pool.submit(next, blocks, None)
        while (columns := task.result()) is not None:
            task = pool.submit(next, blocks, None)
            yield columns


def feature_blocks(
    features: FeatureSet, raster: rasters.Raster, workers: int = 1
) -> Iterator[rasters.Columns]:
    """open_time_ms and every feature, block by block, so that years of minutes need little memory.

    A value does not depend on where the computation started: the bits of one batch.
    """
    for start in range(0, len(raster), BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, len(raster))
        yield feature_months.columns_of(features, raster, start, stop, workers)
