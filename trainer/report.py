"""`trainer report`: one HTML page that says what is known of a release, and what is not.

It reads the release and, of each of its symbols, what `rolling`, `signals`, `backtest` and `merge`
wrote to the data folder, and runs the release's models on recent rows with groups of features
shuffled. The page needs nothing but itself: no script, no font, no address.
"""

import argparse
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shared import klinefiles
from shared.bundle import Bundle
from shared.config import Settings
from shared.errors import Failure, Usage
from shared.features import FeatureSet
from shared.klines import KLINE_COLUMNS
from shared.releases import Manifest, current_folder, list_releases
from shared.times import interval_ms
from trainer import evidence, labels, page, predict, rasters, sections
from trainer.importance import groups, permuted
from trainer.progress import Progress

Floats = npt.NDArray[np.float64]

# Rows that look at much the same candles teach no more: every n-th does (reference, section 1.3).
_EVERY = 10
_FEWEST_NEW_ROWS = 500
_REPEATS = 3
# What labels may look back at beside the features: trailing sigma and turning points.
_LABEL_LOOKBACK = 2_880
_LARGE_BYTES = 5_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--release", metavar="ID", help="instead of the live or newest release")
    parser.add_argument("--symbol", action="append", metavar="S", help="of the release's only this")
    parser.add_argument(
        "--klines", nargs="+", type=Path, metavar="FILE", help="these candles, not the merged data"
    )
    parser.add_argument(
        "--futures", nargs="+", type=Path, metavar="FILE", help="futures klines beside --klines"
    )
    rasters.add_other(parser)
    parser.add_argument(
        "--rows",
        type=int,
        default=2_000,
        metavar="N",
        help="rows that importance is measured on; 0: leave it out (default: 2000)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE.html", help="instead of report.html in the release"
    )
    parser.add_argument("--png", type=Path, metavar="FOLDER", help="every figure as a PNG, too")


def run(settings: Settings, args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    started = time.monotonic()
    if args.rows < 0:
        raise Usage(f"--rows {args.rows}: a number of rows, or 0")
    if args.out is not None and args.out.suffix != ".html":
        raise Usage(f"--out {args.out}: the page is HTML, so name it .html")
    folder = _folder(settings, args.release)
    bundle = Bundle.load(folder, settings.limits.model_bytes)
    manifest = bundle.manifest
    symbols = _symbols(manifest, args.symbol)
    bare = _bare(settings, args, manifest)
    with progress.bar("reading", 1, "releases") as bar:
        found = evidence.gather(folder, manifest, settings.data_folder, symbols, bare)
        bar.advance()
    measured = [_importance(bundle, one, settings, args.rows, progress) for one in found.symbols]
    draft = sections.Draft(png=args.png)
    written = []
    with progress.bar("figures and tables", len(sections.SECTIONS) + 1, "sections") as bar:
        for make in sections.SECTIONS:
            written.append(make(found, draft))
            bar.advance(detail=written[-1].title)
            if make is sections.calibration:
                written.append(sections.importance(found, measured, draft))
                bar.advance(detail=written[-1].title)
    text = page.render(sections.whole_page(found, written, draft, bundle.note)).encode()
    if len(text) > _LARGE_BYTES:
        progress.note(
            f"the page has {len(text) / 1e6:.1f} MB; --symbol makes one for a single symbol"
        )
    path = args.out or folder / "report.html"
    with klinefiles.replacing(path) as unfinished:
        unfinished.write_bytes(text)
    return {
        "command": "report",
        "release": manifest.id,
        "symbols": list(symbols),
        "wrote": path,
        "bytes": len(text),
        "figures": len(draft.figures),
        "png": args.png,
        "warnings": draft.warnings,
        "missing": [line for section in written for line in section.missing],
        "importance": {
            one.symbol: {i.group: round(i.mean_drop, 6) for i in one.found} for one in measured
        },
        "seconds": round(time.monotonic() - started, 1),
    }


def summary(result: Mapping[str, Any]) -> str:
    warned = len(result["warnings"])
    missing = len(result["missing"])
    lacks = f", {missing} parts without data (the page says which command gives them)"
    return (
        f"report: release {result['release']}, {result['figures']} figures, "
        f"{warned} warning{'' if warned == 1 else 's'}{lacks if missing else ''}, in "
        f"{result['wrote']} ({result['bytes'] / 1e6:.1f} MB), {result['seconds']} s"
    )


def _folder(settings: Settings, release: str | None) -> Path:
    """The release asked for, else the live one, else the newest."""
    if release is None:
        live = current_folder(settings.model_folder)
        if live is not None:
            return live
        known = list_releases(settings.model_folder)
        if not known:
            raise Failure(
                f"{settings.model_folder}: no release; run `python -m trainer train` first"
            )
        release = known[-1]
    folder = settings.model_folder / "releases" / release
    if release not in list_releases(settings.model_folder):
        known = list_releases(settings.model_folder)
        newest = f"; the newest is {known[-1]}" if known else ""
        raise Failure(f"{settings.model_folder}: no release {release!r}{newest}")
    return folder


def _symbols(manifest: Manifest, wanted: list[str] | None) -> tuple[str, ...]:
    for symbol in wanted or ():
        if symbol not in manifest.symbols:
            raise Usage(
                f"--symbol {symbol}: release {manifest.id} is of {', '.join(manifest.symbols)}"
            )
    return tuple(wanted or manifest.symbols)


def _bare(
    settings: Settings, args: argparse.Namespace, manifest: Manifest
) -> dict[str, rasters.Raster]:
    if args.klines is None:
        if args.futures is not None or args.other is not None:
            raise Usage("--futures and --other go with --klines")
        return {}
    given = argparse.Namespace(
        klines=args.klines,
        futures=args.futures,
        other=args.other,
        symbol=args.symbol,
        interval=None,
    )
    found = {}
    for raster in rasters.joined_bare(given, settings, rasters.read_bare(given, settings)):
        if raster.interval != manifest.interval or raster.symbol not in manifest.symbols:
            raise Usage(
                f"--klines: {raster.symbol} {raster.interval}, and release {manifest.id} is of "
                f"{', '.join(manifest.symbols)} {manifest.interval}"
            )
        found[raster.symbol] = raster
    return found


# --- importance: the release's models on recent rows ---------------------------------------------


def _importance(
    bundle: Bundle,
    one: evidence.SymbolEvidence,
    settings: Settings,
    rows: int,
    progress: Progress,
) -> sections.Measured:
    manifest = bundle.manifest
    raster = one.raster

    def missing(why: str) -> sections.Measured:
        return sections.Measured(symbol=one.symbol, missing=f"{one.symbol}: {why}")

    if not rows:
        return missing("not measured, as --rows is 0.")
    if raster is None:
        return missing("no candles to run the models on: `python -m trainer merge` gives them.")
    features = _features(manifest, settings)
    source = raster.lacks(features.sources)
    if source is not None:
        return missing(
            f"the features read {source} rows, and the data have none: `python -m trainer "
            "download` and `merge` give them."
        )
    threads = settings.trainer.threads or os.cpu_count() or 1
    kept = _recent(raster, manifest, rows, features.lookback)
    values, close = _feature_rows(features, raster, kept, threads)
    covered = kept >= features.lookback - 1
    fit = predict.valid_rows(values, manifest, close, covered, settings.limits.nan_share)
    truth = {name: y[fit] for name, y in _truth(raster, manifest, kept, features.lookback).items()}
    x, kept = values[fit], kept[fit]
    if not len(x):
        return missing("no recent candle has all that the models need: give more history.")
    columns = {
        group: places
        for group, places in groups(manifest.features).items()
        if set(places) & set(manifest.used.tolist())
    }
    total = len(x) * (1 + _REPEATS * len(columns))
    with progress.bar(f"importance on {one.symbol}", total) as bar:
        found = permuted(
            lambda rows: bundle.run(rows, threads).outputs,
            x,
            truth,
            columns,
            repeats=_REPEATS,
            seed=manifest.training.seed,
            advance=bar.advance,
        )
    if not found:
        return missing("no label has cases of both classes among the recent rows.")
    return sections.Measured(
        symbol=one.symbol,
        found=found,
        rows=len(x),
        first_ms=int(raster.open_time_ms[kept[0]]),
        last_ms=int(raster.open_time_ms[kept[-1]]),
        in_sample=int(raster.open_time_ms[kept[0]]) <= manifest.training.end_ms,
    )


def _recent(
    raster: rasters.Raster, manifest: Manifest, rows: int, lookback: int
) -> npt.NDArray[np.int64]:
    """Up to `rows` row numbers, every _EVERY-th, whose labels can be known: those later than the
    training data, or, where these are fewer than _FEWEST_NEW_ROWS, the last ones of all."""
    ahead = max(manifest.labels[model.label].horizon for model in manifest.models.values())
    last = len(raster) - 1 - ahead
    usable = np.arange(last, lookback - 2, -_EVERY)[::-1]
    new = usable[raster.open_time_ms[usable] > manifest.training.end_ms]
    return (new if len(new) >= min(rows, _FEWEST_NEW_ROWS) else usable)[-rows:]


def _feature_rows(
    features: FeatureSet, raster: rasters.Raster, kept: npt.NDArray[np.int64], threads: int
) -> tuple[Floats, Floats]:
    """(features, close) of the rows `kept`."""
    if not len(kept):
        return np.empty((0, len(features.names))), np.empty(0)
    start = max(0, int(kept[0]) - features.lookback + 1)
    part = raster.rows(start, int(kept[-1]) + 1)
    values = features.batch(part.first_index, **part.inputs(0, len(part)), workers=threads)[
        kept - start
    ]
    return values, raster.kline[kept, KLINE_COLUMNS.index("close")]


def _truth(
    raster: rasters.Raster, manifest: Manifest, kept: npt.NDArray[np.int64], lookback: int
) -> dict[str, Floats]:
    """Model -> what its label was on the rows `kept`."""
    first = int(kept[0]) if len(kept) else 0
    start = max(0, first - max(lookback, _LABEL_LOOKBACK))
    table = raster.rows(start, len(raster)).kline_table()
    of_label = {
        name: labels.label(name, table, manifest.labels[name].horizon).y[kept - start]
        for name in {model.label: None for model in manifest.models.values()}
    }
    return {name: of_label[model.label] for name, model in manifest.models.items()}


def _features(manifest: Manifest, settings: Settings) -> FeatureSet:
    file = settings.features_file if manifest.features_file_sha256 is not None else None
    features = FeatureSet.of(manifest.features, file, interval_ms=interval_ms(manifest.interval))
    if features.user_sha256 != manifest.features_file_sha256:
        raise Failure(
            f"release {manifest.id} was trained with another features_file: its sha256 is "
            f"{manifest.features_file_sha256}; give that file, or --rows 0"
        )
    return features
