"""`trainer merge`: all sources of a symbol on one regular raster, and a word on what is missing.

Sources are the klines; USD-M klines after `f_`; order-book rows; `funding_rate`, the rate of the
last settlement up to the candle's open, NaN more than 8 hours after it; and the candles of other
symbols, each after a prefix of its own (`--source eth=ETHUSDT`, config `trainer.merge.sources`).
`{symbol}-{interval}-gaps.json` beside the merged folder lists every gap of every source.
"""

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shared import klinefiles
from shared.config import Settings
from shared.errors import BadInput, Failure, Usage
from shared.klines import DEPTH_COLUMNS, KlineTable
from shared.times import interval_ms, iso
from trainer import funding, rasters
from trainer.csvfiles import write_csv
from trainer.progress import Progress

Floats = npt.NDArray[np.float64]

FUNDING_COLUMN = "funding_rate"
_GAPS_SHOWN = 10
_PREFIX = re.compile(r"[A-Za-z][A-Za-z0-9]*")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--symbol", action="append", metavar="S", help="instead of the config's")
    parser.add_argument("--interval", metavar="I", help="instead of the config's or the file's")
    parser.add_argument(
        "--klines", nargs="+", type=Path, metavar="FILE", help="kline files instead of the download"
    )
    parser.add_argument(
        "--futures", nargs="+", type=Path, metavar="FILE", help="futures klines beside --klines"
    )
    parser.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="PREFIX=SYMBOL",
        help="candles of another symbol, or of a file, as columns PREFIX_open ...; repeatable",
    )
    parser.add_argument("--csv", action="store_true", help="write one csv file as well")


def run(settings: Settings, args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    sources = sources_of(settings, args)
    outputs = []
    for read, raster in _merged(settings, args, sources, progress):
        folder = rasters.merged_folder(settings.data_folder, raster.symbol, raster.interval)
        gaps = gaps_of(raster)
        report = rasters.span(raster) | {"sources": {name: _plain(g) for name, g in gaps.items()}}
        rasters.MonthFolder(folder).write([raster.columns()], {})
        gap_report = folder.with_name(f"{folder.name}-gaps.json")
        with klinefiles.replacing(gap_report) as unfinished:
            unfinished.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        wrote = [folder]
        if args.csv:
            wrote.append(folder.with_name(f"{folder.name}.csv"))
            write_csv(wrote[-1], raster.columns(), progress)
        for name, found in gaps.items():
            if found:
                progress.note(_sentence(raster, name, found, gap_report))
        longest = sorted(gaps["klines"], key=lambda gap: -gap[1])[:_GAPS_SHOWN]
        outputs.append(
            rasters.span(raster)
            | {
                "read": read,
                "wrote": wrote,
                "futures": raster.futur is not None,
                "depth": raster.depth is not None,
                "gaps": len(gaps["klines"]),
                "missing": _rows(gaps["klines"]),
                "longest_gaps": [{"from": iso(start), "rows": rows} for start, rows in longest],
                "sources": {
                    name: {"gaps": len(found), "missing": _rows(found)}
                    for name, found in gaps.items()
                },
                "gap_report": gap_report,
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


def sources_of(settings: Settings, args: argparse.Namespace) -> dict[str, str]:
    """Prefix -> symbol or file of every further source.

    Raises:
        Usage: not of the form PREFIX=SYMBOL, or a prefix that is taken.
    """
    found = dict(settings.trainer.merge.sources)
    if settings.features_other is not None:
        found[rasters.OTHER_PREFIX] = settings.features_other
    for text in args.source:
        name, _, given = text.partition("=")
        if not given:
            raise Usage(f"--source {text}: give PREFIX=SYMBOL or PREFIX=FILE, such as eth=ETHUSDT")
        found[name] = given
    taken = {name.partition("_")[0] for name in (*rasters.FUTURES_COLUMNS, *DEPTH_COLUMNS)}
    taken |= {"open", "quote", "taker", "close", FUNDING_COLUMN.partition("_")[0]}
    for prefix, place in found.items():
        if _PREFIX.fullmatch(prefix) is None or prefix in taken:
            raise Usage(
                f"source {prefix}={place}: the prefix must be letters and digits, such as "
                f"eth, and none of {', '.join(sorted(taken))}"
            )
    return found


def gaps_of(raster: rasters.Raster) -> dict[str, list[tuple[int, int]]]:
    """Of each source (`klines`, `futures`, `depth`, a prefix): open time and length of its gaps."""
    found = {"klines": raster.gaps()}
    if raster.futur is not None:
        found["futures"] = raster.holes(raster.futur[:, rasters.CLOSE])
    if raster.depth is not None:
        is_empty = np.isnan(raster.depth).all(axis=1)
        found["depth"] = raster.holes(np.where(is_empty, np.nan, 0.0))
    for name, column in raster.extra.items():
        if name.endswith("_close") or name == FUNDING_COLUMN:
            found[name.removesuffix("_close")] = raster.holes(column)
    return found


def _rows(gaps: list[tuple[int, int]]) -> int:
    return sum(rows for _, rows in gaps)


def _plain(gaps: list[tuple[int, int]]) -> dict[str, Any]:
    return {
        "missing": _rows(gaps),
        "gaps": [{"from": iso(start), "rows": rows} for start, rows in gaps],
    }


def _sentence(
    raster: rasters.Raster, source: str, gaps: list[tuple[int, int]], report: Path
) -> str:
    start_ms, rows = max(gaps, key=lambda gap: gap[1])
    of = "" if source == "klines" else f" {source}"
    return (
        f"{raster.symbol} {raster.interval}{of}: {len(gaps)} gaps, {_rows(gaps):,} of "
        f"{len(raster):,} rows; the longest {rows:,} rows from {iso(start_ms)}; all in {report}"
    )


def _merged(
    settings: Settings, args: argparse.Namespace, sources: Mapping[str, str], progress: Progress
) -> Iterator[tuple[list[Path], rasters.Raster]]:
    if args.klines is not None:
        with progress.bar("reading files", len(args.klines), "files") as bar:
            tables = rasters.read_bare(args, settings)
            bar.advance(len(args.klines))
        for table, futures in tables:
            read = [*args.klines, *(args.futures or ())]
            others = _others(settings, sources, table, read, [one for one, _ in tables])
            yield read, rasters.join(table, futures, others=others)
        return
    if args.futures is not None:
        raise Usage("--futures goes with --klines")
    interval = args.interval or settings.interval
    symbols = args.symbol or settings.symbols
    with progress.bar("merging", len(symbols), "symbols") as bar:
        for symbol in symbols:
            yield _of_folders(settings, symbol, interval, sources)
            bar.advance(detail=symbol)


def _of_folders(
    settings: Settings, symbol: str, interval: str, sources: Mapping[str, str]
) -> tuple[list[Path], rasters.Raster]:
    """(what was read, the rows) of one symbol, from what the data folder has."""
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
    folder = klinefiles.depth_folder(settings.data_folder, symbol, interval)
    book = rasters.read_months(folder)
    depth = None
    if book:
        read.append(folder)
        depth = (book["open_time_ms"], rasters.side_by_side([book[name] for name in DEPTH_COLUMNS]))
    folder = funding.folder_of(settings.data_folder, symbol)
    months = [
        klinefiles.read_columns(folder / f"{month}.parquet", ["funding_time_ms", "funding_rate"])
        for month in klinefiles.kline_months(folder)
    ]
    others = _others(settings, sources, klines, read)
    try:
        raster = rasters.join(klines, futures if len(futures) else None, depth, others)
    except BadInput as error:
        raise BadInput(f"{read[0]}: {error}") from None
    if months:
        read.append(folder)
        rate = last_funding(
            raster.open_time_ms,
            np.concatenate([month["funding_time_ms"] for month in months]),
            np.concatenate([month["funding_rate"] for month in months]),
        )
        raster = rasters.with_extra(raster, {FUNDING_COLUMN: rate})
    return read, raster


def last_funding(
    open_time_ms: npt.NDArray[np.int64], times_ms: npt.NDArray[np.int64], rates: Floats
) -> Floats:
    """The rate of the last settlement at or before each candle's open; NaN 8 hours after it.

    open_time_ms: (n,), times_ms and rates: (m,) in order of time. Result: (n,).
    """
    last = np.searchsorted(times_ms, open_time_ms, side="right") - 1
    known = (last >= 0) & (open_time_ms - times_ms[np.maximum(last, 0)] <= funding.LONGEST_MS)
    return np.where(known, rates[np.maximum(last, 0)], np.nan)


def _others(
    settings: Settings,
    sources: Mapping[str, str],
    klines: KlineTable,
    read: list[Path],
    at_hand: Sequence[KlineTable] = (),
) -> dict[str, KlineTable]:
    """The candles of every further source, around those of `klines`; adds to what was read.

    at_hand: tables that were read anyway.

    Raises:
        Failure: a source has no candles.
    """
    found: dict[str, KlineTable] = {}
    first, last = int(klines.open_time_ms[0]), int(klines.open_time_ms[-1])
    for prefix, place in sources.items():
        if place == klines.symbol and prefix != rasters.OTHER_PREFIX:
            continue  # of several symbols, that one has its own columns already
        here = [one for one in at_hand if (one.symbol, one.interval) == (place, klines.interval)]
        if here:
            found[prefix] = here[0]
            continue
        if place.endswith(klinefiles.SUFFIXES):
            tables = klinefiles.read_klines([place], interval=klines.interval)
            found[prefix] = tables[0]
            read.append(Path(place))
            continue
        folder = klinefiles.klines_folder(settings.data_folder, place, klines.interval)
        found[prefix] = klinefiles.read_history(
            folder,
            symbol=place,
            interval=klines.interval,
            start_ms=first,
            end_ms=last + interval_ms(klines.interval),
        )
        read.append(folder)
        if not len(found[prefix]):
            raise Failure(
                f"{folder}: no candles there for the source {prefix}_; run "
                f"`python -m trainer download --symbol {place}` first"
            )
    return found
