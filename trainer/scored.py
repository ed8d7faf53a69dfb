"""Candles with their out-of-sample scores: what `signals` and `backtest` trade on.

Scores come from what `rolling` wrote, or from any parquet file (or folder of monthly files) with
`open_time_ms` and `score`. That they are out of sample is the giver's word: scores of candles that
a model was trained on make every rule look good.
"""

import argparse
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shared import klinefiles
from shared.config import Settings
from shared.errors import BadInput, Failure, Usage
from shared.klines import KLINE_COLUMNS
from shared.rules import Costs, Rules, configured, problem_of
from shared.times import interval_ms, iso
from trainer import rasters
from trainer.csvfiles import write_csv
from trainer.grid import Market, volatilities
from trainer.progress import Progress

_PRICES = ("open", "high", "low", "close")
# Shares of rows whose close in the score's file is another than the candle's: not the same market.
_OTHER_CLOSES = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """One symbol's candles from the first to the last score. folder: where results go."""

    symbol: str
    interval: str
    market: Market
    read: list[Path]
    folder: Path


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--symbol", action="append", metavar="S", help="instead of the config's")
    parser.add_argument("--interval", metavar="I", help="instead of the config's or the file's")
    parser.add_argument(
        "--scores",
        type=Path,
        metavar="FILE.parquet",
        help="open_time_ms and score (out of sample!) instead of what `rolling` wrote; also a "
        "folder of monthly files",
    )
    parser.add_argument(
        "--klines",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="candles from these files instead of the data folder",
    )
    parser.add_argument("--csv", action="store_true", help="write the rows as one csv file, too")
    parser.add_argument("--out", dest="folder", type=Path, metavar="FOLDER", help="write here")
    parser.set_defaults(futures=None, out=None)


def scored(
    settings: Settings, args: argparse.Namespace, kind: str, progress: Progress
) -> Iterator[Scored]:
    """What the options ask for, symbol by symbol.

    Raises:
        Usage: options or rules that contradict each other.
        Failure: candles or scores that are missing or do not belong to each other.
    """
    if args.folder is not None and args.folder.exists() and not args.folder.is_dir():
        raise Usage(f"--out {args.folder}: results are several files: name a folder")
    single = args.scores is not None or args.folder is not None
    if single and args.klines is None and len(args.symbol or settings.symbols) > 1:
        raise Usage("--scores and --out take one symbol; run once for each")
    for number, (read, raster, out) in enumerate(rasters.selected(settings, args, kind)):
        if single and number:
            raise Usage("--scores and --out take candles of one symbol and interval")
        stem = f"{raster.symbol}-{raster.interval}"
        source = args.scores or settings.data_folder / f"{stem}-features-rolling"
        times, score, close = _scores(source, stem, given=args.scores is not None)
        market = _joined(settings, raster, times, score, close, source, progress)
        folder = out.path if args.folder is None else args.folder
        yield Scored(
            symbol=raster.symbol,
            interval=raster.interval,
            market=market,
            read=[*read, source],
            folder=folder,
        )


def rules_and_costs(settings: Settings, step_ms: int) -> tuple[Rules, Costs]:
    """The config's rules for candles of step_ms, and what trading is assumed to cost.

    Raises:
        Usage: thresholds that contradict each other.
    """
    rules = configured(settings, step_ms)
    problem = problem_of(rules)
    if problem:
        raise Usage(f"trader.rules: {problem}")
    assumed = settings.trainer.backtest
    return rules, Costs(assumed.fee, assumed.slippage, assumed.fee_from == "received")


def _scores(
    source: Path, stem: str, *, given: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64] | None]:
    """open times, scores and, where the source has them, closes."""
    if source.is_dir():
        files = [source / f"{month}.parquet" for month in klinefiles.kline_months(source)]
    else:
        files = [source] if source.exists() or given else []
    if not files:
        if given:
            raise Failure(f"{source}: no monthly parquet files there")
        raise Failure(
            f"{source}: no out-of-sample scores of {stem}; run `python -m trainer rolling`, or "
            "give a parquet file by --scores"
        )
    parts: list[dict[str, npt.NDArray[Any]]] = []
    for file in files:
        names = ["open_time_ms", "score", *(["close"] if _has_close(file) else [])]
        parts.append(klinefiles.read_columns(file, names))
    times = np.concatenate([part["open_time_ms"] for part in parts])
    score = np.concatenate([part["score"] for part in parts]).astype(np.float64)
    close = None
    if all("close" in part for part in parts):
        close = np.concatenate([part["close"] for part in parts]).astype(np.float64)
    if times.dtype != np.int64:
        raise BadInput(f"{source}: open_time_ms must be whole milliseconds (int64)")
    if not len(times):
        raise BadInput(f"{source}: no rows")
    wrong = np.flatnonzero(np.diff(times) <= 0)
    if len(wrong):
        at = int(wrong[0])
        what = "twice" if times[at + 1] == times[at] else "out of order"
        raise BadInput(f"{source}: {iso(int(times[at + 1]))} is there {what} (row {at + 2})")
    outside = np.flatnonzero(~np.isnan(score) & ~(np.abs(score) <= 1))
    if len(outside):
        at = int(outside[0])
        raise BadInput(f"{source}: score {score[at]:g} (row {at + 1}) is not in [-1, +1]")
    if np.isnan(score).all():
        raise BadInput(f"{source}: not one score")
    return times, score, close


def _has_close(file: Path) -> bool:
    import pyarrow as pa  # noqa: PLC0415 - slow to import
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        return "close" in pq.read_schema(file).names
    except (OSError, pa.ArrowException):
        return False  # reading it says what is wrong


def _joined(
    settings: Settings,
    raster: rasters.Raster,
    times: npt.NDArray[np.int64],
    score: npt.NDArray[np.float64],
    close: npt.NDArray[np.float64] | None,
    source: Path,
    progress: Progress,
) -> Market:
    name = f"{raster.symbol} {raster.interval}"
    step_ms = interval_ms(raster.interval)
    off = np.flatnonzero(times % step_ms)
    if len(off):
        raise BadInput(
            f"{source}: {iso(int(times[off[0]]))} is no candle of {name}: other interval?"
        )
    at = (times - raster.open_time_ms[0]) // step_ms
    inside = (at >= 0) & (at < len(raster))
    if not (inside & ~np.isnan(score)).any():
        raise BadInput(
            f"{source}: its scores ({iso(int(times[0]))} .. {iso(int(times[-1]))}) and the candles "
            f"of {name} ({iso(int(raster.open_time_ms[0]))} .. "
            f"{iso(int(raster.open_time_ms[-1]))}) do not meet"
        )
    prices = [raster.kline[:, KLINE_COLUMNS.index(column)] for column in _PRICES]
    if close is not None:
        ours = prices[3][at[inside]]
        both = ~np.isnan(ours) & ~np.isnan(close[inside])
        other = both & (ours != close[inside])
        if other.sum() > _OTHER_CLOSES * max(1, int(both.sum())):
            raise BadInput(
                f"{source}: {int(other.sum()):,} of {int(both.sum()):,} closes are not those of "
                f"the candles of {name}: these scores are of another market"
            )
    without = int((~inside & ~np.isnan(score)).sum())
    if without:
        progress.note(f"{source}: {without:,} scores lie outside the candles of {name}; left out")
    whole = np.full(len(raster), np.nan)
    whole[at[inside]] = score[inside]
    rules = settings.trader.rules
    volatility = None
    if rules.sizing == "volatility":
        volatility = volatilities(prices[3], rules.volatility_candles)
    known = np.flatnonzero(~np.isnan(whole))
    first, stop = int(known[0]), int(known[-1]) + 1
    return Market.of(raster.open_time_ms, prices, whole, volatility).rows(first, stop)


def write(
    folder: Path,
    columns: rasters.Columns,
    kind: str,
    about: Callable[[Path], None],
    csv: Progress | None,
) -> list[Path]:
    """The folder, whole or as before; with `csv` (told how far it is) FOLDER.csv next to it."""
    rasters.MonthFolder(folder).write([columns], {"kind": kind}, about)
    if csv is None:
        return [folder]
    path = folder.with_name(f"{folder.name}.csv")
    write_csv(path, columns, csv)
    return [folder, path]


def threads(settings: Settings) -> int:
    return settings.trainer.threads or os.cpu_count() or 1
