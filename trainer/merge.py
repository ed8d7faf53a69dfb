"""`trainer merge`: all sources of a symbol on one regular raster, and a word on what is missing."""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shared import klinefiles
from shared.config import Settings
from shared.errors import Failure, Usage
from shared.klines import DEPTH_COLUMNS
from shared.times import iso
from trainer import rasters
from trainer.progress import Progress

_GAPS_SHOWN = 10
_CSV_ROWS = 100_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--symbol", action="append", metavar="S", help="instead of the config's")
    parser.add_argument("--interval", metavar="I", help="instead of the config's or the file's")
    parser.add_argument(
        "--klines", nargs="+", type=Path, metavar="FILE", help="kline files instead of the download"
    )
    parser.add_argument(
        "--futures", nargs="+", type=Path, metavar="FILE", help="futures klines beside --klines"
    )
    parser.add_argument("--csv", action="store_true", help="write one csv file as well")


def run(settings: Settings, args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    outputs = []
    for read, raster in _sources(settings, args, progress):
        folder = rasters.merged_folder(settings.data_folder, raster.symbol, raster.interval)
        rasters.MonthFolder(folder).write([raster.columns()], {})
        wrote = [folder]
        if args.csv:
            wrote.append(folder.with_name(f"{folder.name}.csv"))
            _write_csv(wrote[-1], raster, progress)
        gaps = raster.gaps()
        missing = sum(rows for _, rows in gaps)
        longest = sorted(gaps, key=lambda gap: -gap[1])[:_GAPS_SHOWN]
        if gaps:
            start_ms, rows = longest[0]
            progress.note(
                f"{raster.symbol} {raster.interval}: {len(gaps)} gaps, {missing:,} of "
                f"{len(raster):,} rows; the longest {rows:,} rows from {iso(start_ms)}"
            )
        outputs.append(
            rasters.span(raster)
            | {
                "read": read,
                "wrote": wrote,
                "futures": raster.futur is not None,
                "depth": raster.depth is not None,
                "gaps": len(gaps),
                "missing": missing,
                "longest_gaps": [{"from": iso(start), "rows": rows} for start, rows in longest],
            }
        )
    return {
        "command": "merge",
        "rows": sum(output["rows"] for output in outputs),
        "missing": sum(output["missing"] for output in outputs),
        "outputs": outputs,
    }


def summary(result: Mapping[str, Any]) -> str:
    places = ", ".join(str(output["wrote"][0]) for output in result["outputs"])
    return f"merge: {result['rows']:,} rows, {result['missing']:,} of them gaps, in {places}"


def _sources(
    settings: Settings, args: argparse.Namespace, progress: Progress
) -> Iterator[tuple[list[Path], rasters.Raster]]:
    if args.klines is not None:
        with progress.bar("reading files", len(args.klines), "files") as bar:
            tables = rasters.read_bare(args, settings)
            bar.advance(len(args.klines))
        for table, futures in tables:
            yield [*args.klines, *(args.futures or ())], rasters.join(table, futures)
        return
    if args.futures is not None:
        raise Usage("--futures goes with --klines")
    interval = args.interval or settings.interval
    symbols = args.symbol or settings.symbols
    with progress.bar("merging", len(symbols), "symbols") as bar:
        for symbol in symbols:
            read = [klinefiles.klines_folder(settings.data_folder, symbol, interval)]
            klines = klinefiles.read_history(read[0], symbol=symbol, interval=interval)
            if not len(klines):
                raise Failure(
                    f"{read[0]}: no candles there; run `python -m trainer download` first, or give "
                    "files by --klines"
                )
            folder = rasters.futures_folder(settings.data_folder, symbol, interval)
            futures = klinefiles.read_history(folder, symbol=symbol, interval=interval)
            if len(futures):
                read.append(folder)
            folder = rasters.depth_folder(settings.data_folder, symbol, interval)
            book = rasters.read_months(folder)
            depth = None
            if book:
                read.append(folder)
                depth = (
                    book["open_time_ms"],
                    np.column_stack([book[name] for name in DEPTH_COLUMNS]),
                )
            yield read, rasters.join(klines, futures if len(futures) else None, depth)
            bar.advance(detail=symbol)


def _write_csv(path: Path, raster: rasters.Raster, progress: Progress) -> None:
    """Shortest digits that read back as the same double; an empty cell is NaN."""
    import pyarrow as pa  # noqa: PLC0415 - slow to import
    import pyarrow.compute as pc  # noqa: PLC0415
    from pyarrow import csv  # noqa: PLC0415

    table = klinefiles.arrow_table(raster.columns(), {})
    for at, name in enumerate(table.column_names):
        if pa.types.is_floating(table[name].type):
            nothing = pa.scalar(None, pa.float64())
            cells = pc.if_else(pc.is_nan(table[name]), nothing, table[name])
            table = table.set_column(at, name, cells)
    with (
        klinefiles.replacing(path) as unfinished,
        csv.CSVWriter(
            unfinished, table.schema, write_options=csv.WriteOptions(quoting_header="none")
        ) as writer,
        progress.bar(f"writing {path.name}", table.num_rows) as bar,
    ):
        for start in range(0, table.num_rows, _CSV_ROWS):
            part = table.slice(start, _CSV_ROWS)
            writer.write_table(part)
            bar.advance(part.num_rows)
