"""The candles that a command trains or measures on, as its options name them."""

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shared.config import Settings
from shared.errors import Usage
from shared.features import FeatureSet
from trainer import rasters


def add_options(parser: argparse.ArgumentParser) -> None:
    """--symbol, --interval, --klines, --futures, --other, --until."""
    parser.add_argument("--symbol", action="append", metavar="S", help="instead of the config's")
    parser.add_argument("--interval", metavar="I", help="instead of the config's or the file's")
    parser.add_argument(
        "--klines",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="use these kline files instead of the merged data",
    )
    parser.add_argument(
        "--futures", nargs="+", type=Path, metavar="FILE", help="futures klines beside --klines"
    )
    rasters.add_other(parser)
    parser.add_argument(
        "--until",
        type=int,
        metavar="MS",
        help="use no candle that opens at or after this time (epoch ms), in labels neither",
    )


def read(
    settings: Settings, args: argparse.Namespace, features: FeatureSet
) -> list[rasters.Raster]:
    """One raster per symbol, with every source that the features read.

    Raises:
        Usage: options that contradict each other. Failure: data missing or malformed.
    """
    if args.klines is not None:
        found = list(rasters.joined_bare(args, settings, rasters.read_bare(args, settings)))
    elif args.futures is not None or args.other is not None:
        raise Usage("--futures and --other go with --klines")
    else:
        interval = args.interval or settings.interval
        symbols = args.symbol or settings.symbols
        found = [rasters.read_merged(settings.data_folder, s, interval) for s in symbols]
    if len({raster.interval for raster in found}) > 1:
        intervals = ", ".join(sorted({raster.interval for raster in found}))
        raise Usage(f"models are trained on one interval, and these are {intervals}: --interval")
    for raster in found:
        source = raster.lacks(features.sources)
        if source is not None:
            bare = {"futur": ", or give --futures", "other": ", or give --other"}
            raise Usage(
                f"{raster.symbol}: features read {source} rows, and there are none: download "
                f"and merge them{bare.get(source, '') if args.klines is not None else ''}, or take "
                f"{'such' if source == 'other' else f'features_{source}'} out of the config"
            )
    return found if args.until is None else [before(raster, args.until) for raster in found]


def before(raster: rasters.Raster, until_ms: int) -> rasters.Raster:
    """Raises: Usage: there is no candle before that."""
    stop = int(np.searchsorted(raster.open_time_ms, until_ms))
    if not stop:
        raise Usage(f"--until {until_ms}: {raster.symbol} has no candle before that")
    return raster.rows(0, stop)


def digest(found: Sequence[rasters.Raster]) -> str:
    """sha256 of every value that these rasters hold."""
    total = hashlib.sha256()
    for raster in found:
        total.update(f"{raster.symbol} {raster.interval} {len(raster)}".encode())
        for values in (raster.open_time_ms, raster.kline, raster.futur, raster.depth):
            total.update(b"-" if values is None else np.ascontiguousarray(values).data)
        for name, column in sorted(raster.extra.items()):
            total.update(name.encode())
            total.update(np.ascontiguousarray(column).data)
    return total.hexdigest()
