"""Rows on a regular raster: what `merge` writes and everything after it reads.

`{data_folder}/{symbol}-{interval}/YYYY-MM.parquet`: open_time_ms, the kline columns, with futures
the same columns after `f_`, with an order book the depth columns, then those of any further source,
after its prefix. Every row of the raster is there, from the first candle to the last; what is
missing is NaN.
"""

import argparse
import contextlib
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypedDict

import numpy as np
import numpy.typing as npt

from shared import klinefiles
from shared.config import Settings
from shared.errors import BadInput, Failure, Usage
from shared.klines import DEPTH_COLUMNS, KLINE_COLUMNS, KlineTable, to_raster
from shared.times import interval_ms, iso

Floats = npt.NDArray[np.float64]
Columns = Mapping[str, npt.NDArray[Any]]

_STACKED_ROWS = 16_384
FUTURES_COLUMNS = tuple(f"f_{name}" for name in KLINE_COLUMNS)
OTHER_PREFIX = "o"
"""Of the columns that CORREL, BETA and o_ features read: those of the config's features_other."""
OTHER_COLUMNS = tuple(f"{OTHER_PREFIX}_{name}" for name in KLINE_COLUMNS)
CLOSE = KLINE_COLUMNS.index("close")
_KNOWN = frozenset(("open_time_ms", *KLINE_COLUMNS, *FUTURES_COLUMNS, *DEPTH_COLUMNS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Raster:
    """All inputs of one symbol on one raster.

    open_time_ms: (n,) int64, one interval apart. kline, futur: (n, 9), depth: (n, 11) float64,
    columns as KLINE_COLUMNS and DEPTH_COLUMNS; NaN = nothing known; None = no such source.
    extra: further columns by name, (n,) float64.
    """

    symbol: str
    interval: str
    open_time_ms: npt.NDArray[np.int64]
    kline: Floats
    futur: Floats | None = None
    depth: Floats | None = None
    extra: Mapping[str, Floats] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.open_time_ms)

    @property
    def first_index(self) -> int:
        """open_time / interval of row 0, by which the feature kernel counts."""
        return int(self.open_time_ms[0]) // interval_ms(self.interval)

    def kline_table(self) -> KlineTable:
        """The candles alone, gaps still rows of NaN."""
        return KlineTable(
            symbol=self.symbol,
            interval=self.interval,
            open_time_ms=self.open_time_ms,
            values=self.kline,
        )

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """As `merge` writes them."""
        found: dict[str, npt.NDArray[Any]] = {"open_time_ms": self.open_time_ms}
        sources = (
            (KLINE_COLUMNS, self.kline),
            (FUTURES_COLUMNS, self.futur),
            (DEPTH_COLUMNS, self.depth),
        )
        for names, values in sources:
            if values is not None:
                found |= {name: values[:, at] for at, name in enumerate(names)}
        return found | dict(self.extra)

    def rows(self, start: int, stop: int) -> "Raster":
        """Rows [start, stop) by position, not copied."""
        return replace(
            self,
            open_time_ms=self.open_time_ms[start:stop],
            kline=self.kline[start:stop],
            futur=None if self.futur is None else self.futur[start:stop],
            depth=None if self.depth is None else self.depth[start:stop],
            extra={name: column[start:stop] for name, column in self.extra.items()},
        )

    def lacks(self, sources: Collection[str]) -> str | None:
        """One of these sources of features ("futur", "depth", "other") that is not there."""
        there = {
            "futur": self.futur is not None,
            "depth": self.depth is not None,
            "other": self.has_other,
        }
        missing = (name for name in there if name in sources and not there[name])
        return next(missing, None)

    @property
    def has_other(self) -> bool:
        """Whether the candles of another symbol (`features_other`) stand in columns after `o_`."""
        return all(name in self.extra for name in OTHER_COLUMNS)

    def inputs(self, start: int, stop: int) -> "Inputs":
        """Rows [start, stop) of every source, as `FeatureSet.batch` takes them by name."""
        other = [self.extra[name][start:stop] for name in OTHER_COLUMNS] if self.has_other else None
        return {
            "kline": self.kline[start:stop],
            "futur": None if self.futur is None else self.futur[start:stop],
            "depth": None if self.depth is None else self.depth[start:stop],
            "other": None if other is None else np.column_stack(other),
        }

    def gaps(self) -> list[tuple[int, int]]:
        """(open time of the first missing candle, how many in a row), in order."""
        return self.holes(self.kline[:, CLOSE])

    def holes(self, column: Floats) -> list[tuple[int, int]]:
        """The same for any (n,) column: its runs of NaN."""
        missing = np.isnan(column)
        edges = np.flatnonzero(np.diff(np.concatenate([[False], missing, [False]])))
        return [
            (int(self.open_time_ms[start]), int(stop - start))
            for start, stop in edges.reshape(-1, 2)
        ]


class Inputs(TypedDict):
    """The sources of features, by the names that `FeatureSet.batch` gives them."""

    kline: Floats
    futur: Floats | None
    depth: Floats | None
    other: Floats | None


def join(
    klines: KlineTable,
    futures: KlineTable | None = None,
    depth: tuple[npt.NDArray[np.int64], Floats] | None = None,
    others: Mapping[str, KlineTable] | None = None,
) -> Raster:
    """Puts the sources on the raster of the klines, from their first candle to their last.

    depth: open times and (n, 11) values. others: prefix -> candles, such as those of another
    symbol. What lies outside the klines' range is left out.

    Raises:
        BadInput: no candle, candles of another interval, or a raster of little but gaps.
    """
    if not len(klines):
        raise BadInput(f"{klines.symbol} {klines.interval}: no candles")
    whole = to_raster(klines)

    def placed(times: npt.NDArray[np.int64], values: Floats) -> Floats:
        rows = np.full((len(whole), values.shape[1]), np.nan)
        position = (times - whole.open_time_ms[0]) // whole.step_ms
        inside = (position >= 0) & (position < len(whole)) & (times % whole.step_ms == 0)
        rows[position[inside]] = values[inside]
        return rows

    if futures is not None and futures.interval != klines.interval:
        raise BadInput(
            f"futures candles are of {futures.interval}, spot candles of {klines.interval}"
        )
    further: dict[str, Floats] = {}
    for prefix, table in (others or {}).items():
        if table.interval != klines.interval:
            raise BadInput(
                f"candles of {table.symbol} ({prefix}_) are of {table.interval}, those of "
                f"{klines.symbol} of {klines.interval}"
            )
        rows = placed(table.open_time_ms, table.values)
        further |= {f"{prefix}_{name}": rows[:, at] for at, name in enumerate(KLINE_COLUMNS)}
    return Raster(
        symbol=klines.symbol,
        interval=klines.interval,
        open_time_ms=whole.open_time_ms,
        kline=whole.values,
        futur=None if futures is None else placed(futures.open_time_ms, futures.values),
        depth=None if depth is None else placed(*depth),
        extra=further,
    )


def with_extra(raster: Raster, extra: Mapping[str, Floats]) -> Raster:
    """The same rows with further columns, (n,) each."""
    return replace(raster, extra={**raster.extra, **extra})


# --- folders -------------------------------------------------------------------------------------


def merged_folder(data_folder: Path, symbol: str, interval: str) -> Path:
    return data_folder / f"{symbol}-{interval}"


def futures_folder(data_folder: Path, symbol: str, interval: str) -> Path:
    """USD-M futures candles, monthly files as those of `klines_folder`."""
    return data_folder / f"{symbol}-{interval}-futures-klines"


def read_merged(data_folder: Path, symbol: str, interval: str) -> Raster:
    """What `merge` wrote.

    Raises:
        Failure: nothing there yet, or files that do not fit each other.
    """
    folder = merged_folder(data_folder, symbol, interval)
    columns = read_months(folder)
    if not columns:
        raise Failure(
            f"{folder}: no merged data; run `python -m trainer download` and then "
            "`python -m trainer merge`, or give files by --klines"
        )
    times = columns["open_time_ms"]
    if np.any(np.diff(times) != interval_ms(interval)):
        raise BadInput(f"{folder}: not a regular raster of {interval}; run merge again")

    def source(names: Sequence[str]) -> Floats | None:
        if names[0] not in columns:
            return None
        try:
            return side_by_side([columns[name] for name in names])
        except KeyError as error:
            raise BadInput(f"{folder}: no column {error.args[0]}; run merge again") from None

    kline = source(KLINE_COLUMNS)
    if kline is None:
        raise BadInput(f"{folder}: no kline columns; run merge again")
    return Raster(
        symbol=symbol,
        interval=interval,
        open_time_ms=times,
        kline=kline,
        futur=source(FUTURES_COLUMNS),
        depth=source(DEPTH_COLUMNS),
        extra={name: column for name, column in columns.items() if name not in _KNOWN},
    )


def side_by_side(columns: Sequence[Floats]) -> Floats:
    """`np.column_stack` of long columns: rows by the block, which the caches hold (10x as fast)."""
    table = np.empty((len(columns[0]), len(columns)))
    for start in range(0, len(table), _STACKED_ROWS):
        block = table[start : start + _STACKED_ROWS]
        for at, column in enumerate(columns):
            block[:, at] = column[start : start + _STACKED_ROWS]
    return table


def read_months(folder: Path) -> dict[str, npt.NDArray[Any]]:
    """The columns of a monthly folder, its files joined in order; nothing where it has none.

    Raises:
        BadInput: a file is damaged, or the files have different columns.
    """
    recover(folder)
    months = [
        klinefiles.read_columns(folder / f"{month}.parquet")
        for month in klinefiles.kline_months(folder)
    ]
    if not months:
        return {}
    for month in months:
        if list(month) != list(months[0]):
            raise BadInput(f"{folder}: its files have different columns; write the folder again")
    return {name: np.concatenate([month[name] for month in months]) for name in months[0]}


class Output(Protocol):
    """Where a command's rows go: whole afterwards or, on any failure, as before."""

    @property
    def path(self) -> Path: ...

    def write(self, blocks: Iterable[Columns], metadata: Mapping[str, str]) -> int:
        """Writes blocks of rows in time order (with `open_time_ms`); returns how many rows."""


@dataclass(frozen=True, slots=True)
class File:
    """One parquet file."""

    path: Path

    def write(self, blocks: Iterable[Columns], metadata: Mapping[str, str]) -> int:
        with klinefiles.replacing(self.path) as unfinished:
            return _write_parquet(unfinished, blocks, metadata)


ABOUT = "_about"
"""Folder inside a monthly folder for what is no row: readers of parquet folders pass over names
that begin so, and `pyarrow.parquet.read_table(folder)` goes on working."""


@dataclass(frozen=True, slots=True)
class MonthFolder:
    """A folder with a parquet file per month, replaced as a whole."""

    path: Path

    def write(
        self,
        blocks: Iterable[Columns],
        metadata: Mapping[str, str],
        about: Callable[[Path], None] | None = None,
    ) -> int:
        """about: writes what else belongs to the rows into the folder that it is given (`ABOUT` in
        this one), before all of it is in place."""
        rows = 0
        with replacing_folder(self.path) as unfinished:
            for month, columns in _by_month(blocks):
                rows += len(columns["open_time_ms"])
                write_fast(unfinished / f"{month}.parquet", columns, metadata)
            if about is not None:
                (unfinished / ABOUT).mkdir()
                about(unfinished / ABOUT)
        return rows


def _write_parquet(path: Path, blocks: Iterable[Columns], metadata: Mapping[str, str]) -> int:
    import pyarrow.parquet as pq  # noqa: PLC0415 - slow to import

    rows = 0
    writer = None
    try:
        for columns in blocks:
            table = klinefiles.arrow_table(columns, metadata)
            if writer is None:
                writer = pq.ParquetWriter(path, table.schema, **_fast(columns))
            writer.write_table(table)
            rows += table.num_rows
    finally:
        if writer is not None:
            writer.close()
    if writer is None:
        raise ValueError("nothing to write")
    return rows


def write_fast(path: Path, columns: Columns, metadata: Mapping[str, str]) -> None:
    """As `klinefiles.write_columns`, four times as fast for columns of measurements."""
    import pyarrow.parquet as pq  # noqa: PLC0415 - slow to import

    with klinefiles.replacing(path) as unfinished:
        pq.write_table(klinefiles.arrow_table(columns, metadata), unfinished, **_fast(columns))


def _fast(columns: Columns) -> dict[str, Any]:
    """Hardly a value comes twice, so that dictionaries only cost; bytes of one significance side
    by side compress better, and faster, than whole doubles. LZ4 takes 0.6 of Zstandard's time at
    its lowest level, and 4 % more room."""
    return {
        "compression": "lz4",
        "use_dictionary": False,
        "use_byte_stream_split": [
            name for name, column in columns.items() if column.dtype == np.float64
        ],
    }


def _by_month(blocks: Iterable[Columns]) -> Iterator[tuple[str, Columns]]:
    """The same rows, cut at the months."""
    month = ""
    held: list[Columns] = []

    def whole() -> Columns:
        return {name: np.concatenate([part[name] for part in held]) for name in held[0]}

    for columns in blocks:
        times = columns["open_time_ms"]
        start = 0
        while start < len(times):
            here = klinefiles.month_of(int(times[start]))
            stop = int(np.searchsorted(times, klinefiles.month_bounds(here)[1]))
            if here != month and held:
                yield month, whole()
                held = []
            month = here
            held.append({name: column[start:stop] for name, column in columns.items()})
            start = stop
    if held:
        yield month, whole()


@contextlib.contextmanager
def replacing_folder(folder: Path, *, adopt: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes `folder` when the block ends well.

    Killed at any moment the old folder or the new one is whole: between the two renames the old one
    is `.NAME.PID.old`, from where the next reader or writer takes it back.

    adopt: begin with what a writer that was killed, or stopped by Ctrl-C, had written so far.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        recover(folder, keep_unfinished=adopt)
        unfinished = folder.parent / f".{folder.name}.{os.getpid()}.tmp"
        shutil.rmtree(unfinished, ignore_errors=True)
        if adopt and (left := _unfinished(folder)):
            left[0].rename(unfinished)
        recover(folder)
        unfinished.mkdir(exist_ok=True)
        try:
            yield unfinished
            old = folder.parent / f".{folder.name}.{os.getpid()}.old"
            if folder.exists():
                folder.rename(old)
            unfinished.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
        except BaseException as error:
            if not (adopt and isinstance(error, KeyboardInterrupt)):
                shutil.rmtree(unfinished, ignore_errors=True)
            raise
    except OSError as error:
        raise Failure(f"{folder}: cannot be written ({error.strerror or error})") from error


def recover(folder: Path, *, keep_unfinished: bool = False) -> None:
    """Takes back or removes what a killed writer of this folder left."""
    for left in folder.parent.glob(f".{folder.name}.*.old"):
        if not _is_litter(folder, left):
            continue
        if not folder.exists():
            left.rename(folder)
        else:
            shutil.rmtree(left, ignore_errors=True)
    if not keep_unfinished:
        for left in _unfinished(folder):
            shutil.rmtree(left, ignore_errors=True)


def _unfinished(folder: Path) -> list[Path]:
    found = folder.parent.glob(f".{folder.name}.*.tmp")
    return [left for left in found if left.is_dir() and _is_litter(folder, left)]


def _is_litter(folder: Path, left: Path) -> bool:
    """Whether it is `.NAME.PID.*` of a process that is no more."""
    pid = left.name.removeprefix(f".{folder.name}.").partition(".")[0]
    return pid.isdigit() and not klinefiles.is_running(int(pid))


# --- the options that features and labels share --------------------------------------------------


def add_options(parser: argparse.ArgumentParser) -> None:
    """--symbol, --interval, --klines, --futures, --out."""
    parser.add_argument("--symbol", action="append", metavar="S", help="instead of the config's")
    parser.add_argument("--interval", metavar="I", help="instead of the config's or the file's")
    parser.add_argument(
        "--klines",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="read these kline files (zip, csv, csv.gz, parquet) instead of the data folder",
    )
    parser.add_argument(
        "--futures", nargs="+", type=Path, metavar="FILE", help="futures klines beside --klines"
    )
    add_other(parser)
    parser.add_argument("--out", type=Path, metavar="FILE.parquet", help="write this one file")


def add_other(parser: argparse.ArgumentParser) -> None:
    """--other."""
    parser.add_argument(
        "--other",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="another symbol's klines beside --klines, for features that compare with it (not "
        "needed where --klines holds those of features_other)",
    )


def selected(
    settings: Settings, args: argparse.Namespace, kind: str
) -> Iterator[tuple[list[Path], Raster, Output]]:
    """What the options ask for: (what was read, the rows, where their `kind` goes), one per symbol.

    Raises:
        Usage: options that contradict each other.
        Failure: data that is missing or malformed.
    """
    if args.out is not None and args.out.suffix != ".parquet":
        raise Usage(f"--out {args.out}: the file is written as parquet, so name it .parquet")
    if args.klines is None:
        if args.futures is not None or _other(args) is not None:
            raise Usage("--futures and --other go with --klines")
        interval = args.interval or settings.interval
        symbols = args.symbol or settings.symbols
        _one_if_out(args, [f"{symbol} {interval}" for symbol in symbols])
        for symbol in symbols:
            raster = read_merged(settings.data_folder, symbol, interval)
            read = [merged_folder(settings.data_folder, symbol, interval)]
            yield read, raster, _output(settings, args, raster, kind)
        return
    tables = read_bare(args, settings)
    _one_if_out(args, [f"{table.symbol} {table.interval}" for table, _ in tables])
    for raster in joined_bare(args, settings, tables):
        read = [*args.klines, *(args.futures or ()), *(_other(args) or ())]
        yield read, raster, _output(settings, args, raster, kind)


def joined_bare(
    args: argparse.Namespace,
    settings: Settings,
    tables: Sequence[tuple[KlineTable, KlineTable | None]],
) -> Iterator[Raster]:
    """The tables of `read_bare` on their rasters, beside them the candles of the other symbol: of
    --other, or those files of --klines that hold the config's features_other.

    Raises:
        Usage: --other holds several symbols. BadInput: candles that do not fit.
    """
    given: list[KlineTable] | None = None
    if _other(args) is not None:
        given = klinefiles.read_klines(_other(args) or (), interval=args.interval)
        if len(given) != 1:
            raise Usage("--other takes the files of one symbol and interval")
    for table, futures in tables:
        others = given or [
            one
            for one, _ in tables
            if (one.symbol, one.interval) == (settings.features_other, table.interval)
        ]
        yield join(table, futures, others={OTHER_PREFIX: others[0]} if others else {})


def _other(args: argparse.Namespace) -> list[Path] | None:
    """--other, which not every command has."""
    found: list[Path] | None = getattr(args, "other", None)
    return found


def read_bare(
    args: argparse.Namespace, settings: Settings
) -> list[tuple[KlineTable, KlineTable | None]]:
    """The tables of --klines, each with that of --futures, if any."""
    if args.symbol is not None and len(args.symbol) > 1:
        raise Usage("with --klines give one --symbol at most")
    symbol = args.symbol[0] if args.symbol else None
    default = settings.symbols[0]
    tables = klinefiles.read_klines(
        args.klines, symbol=symbol, interval=args.interval, default_symbol=default
    )
    if args.futures is None:
        return [(table, None) for table in tables]
    futures = klinefiles.read_klines(args.futures, interval=args.interval)
    if len(tables) != 1 or len(futures) != 1:
        raise Usage("--futures needs files of one symbol and interval on both sides")
    return [(tables[0], futures[0])]


def listed(names: Sequence[str] | None) -> tuple[str, ...]:
    """`a b,c` as a, b, c."""
    return tuple(part for name in names or () for part in name.split(",") if part)


def _one_if_out(args: argparse.Namespace, found: list[str]) -> None:
    if args.out is not None and len(found) > 1:
        raise Usage(
            f"--out takes one symbol and interval, and these are {', '.join(found)}; "
            "run once for each"
        )


def _output(settings: Settings, args: argparse.Namespace, raster: Raster, kind: str) -> Output:
    if args.out is not None:
        return File(args.out)
    name = f"{raster.symbol}-{raster.interval}-{kind}"
    return MonthFolder(settings.data_folder / name)


def span(raster: Raster) -> dict[str, Any]:
    """Symbol, interval, rows, first and last time: for what a command prints."""
    return {
        "symbol": raster.symbol,
        "interval": raster.interval,
        "rows": len(raster),
        "first": iso(int(raster.open_time_ms[0])),
        "last": iso(int(raster.open_time_ms[-1])),
    }
