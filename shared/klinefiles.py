"""Candles in files: reads every form that Binance and users have, keeps the monthly history.

Only numpy and pyarrow, and pyarrow only once a file is touched: live services use this module.
A candle is taken as it is or refused with the file and the row; nothing is mended in silence:

* the same candle twice (overlapping files) is one candle, and logged; two different ones of a time
  are refused, and so is a file that is named after another market than the user says;
* a row whose prices are all NaN is a written-out gap, the same as no row;
* open times off the raster exist around old exchange outages (hours of candles shifted by seconds).
  Such a candle is not that of its minute: a run of them is left out, so that those minutes are
  gaps, and logged. A single one amid regular candles, or a file made of them, is an error.
"""

import contextlib
import fcntl
import gzip
import io
import logging
import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.errors import BadInput, Failure, Usage
from shared.klines import KLINE_COLUMNS, KlineTable, hole_too_wide
from shared.times import INTERVALS_MS, interval_ms, iso

log = logging.getLogger(__name__)

Times = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

SUFFIXES = (".zip", ".csv", ".csv.gz", ".parquet")
# What other programs call the columns, after lower-casing and `_` for blanks.
ALIASES: dict[str, tuple[str, ...]] = {
    "open_time_ms": ("open_time_ms", "open_time", "opentime", "timestamp"),
    "open": ("open",),
    "high": ("high",),
    "low": ("low",),
    "close": ("close",),
    "volume": ("volume",),
    "close_time_ms": ("close_time_ms", "close_time"),
    "quote_volume": ("quote_volume", "quote_asset_volume", "quote_av"),
    "trades": ("trades", "count", "number_of_trades", "num_trades"),
    "taker_base": (
        "taker_base",
        "taker_buy_base",
        "taker_buy_volume",
        "tb_base_av",
        "taker_buy_base_volume",
        "taker_buy_base_asset_volume",
    ),
    "taker_quote": (
        "taker_quote",
        "taker_buy_quote",
        "taker_buy_quote_volume",
        "tb_quote_av",
        "taker_buy_quote_asset_volume",
    ),
}
REQUIRED = ("open_time_ms", "open", "high", "low", "close", "volume")
# A row without header; Binance's has one more column, to be ignored.
ROW_ORDER = tuple(ALIASES)
_TIMES = ("open_time_ms", "close_time_ms")
_PRICES = ("open", "high", "low", "close")
_MS_RANGE = (10**11, 10**14)  # 1973 to 5138; from 1e14 on a number is microseconds
_FILE_NAME = re.compile(r"(?P<symbol>.+?)-(?P<interval>\d+(?:mo|[smhdwM]))(?:-.+)?")
_MONTH = re.compile(r"\d{4}-\d{2}")
# An asset and what it is quoted in.
_MARKET = re.compile(
    r"[A-Z0-9]{1,15}(USDT|USDC|FDUSD|BUSD|TUSD|USD|DAI|BTC|ETH|BNB|EUR|GBP|TRY|BRL|JPY)"
)


def read_klines(
    paths: Iterable[str | Path],
    *,
    symbol: str | None = None,
    interval: str | None = None,
    default_symbol: str = "BTCUSDT",
) -> list[KlineTable]:
    """The candles of some files: one table per symbol and interval, in order of first appearance.

    paths: files of any accepted form, or folders of such files.
    symbol, interval: what the user says, above what a file is called.
    default_symbol: of files whose name says none; their interval is the most frequent spacing.

    Raises:
        BadInput: a file cannot be read, or holds what is no candle; names the file and the row.
        Usage: no file given, or an interval that has no regular raster.
    """
    files = [file for path in paths for file in _files(Path(path))]
    if not files:
        raise Usage("no kline file given")
    groups: dict[tuple[str, str], list[_Part]] = {}
    for file in files:
        named_symbol, named_interval = named(file)
        if symbol is not None and named_symbol is not None:
            _check_market(file, named_symbol, symbol)
        for part in _read(file):
            spacing = interval or named_interval or _most_frequent_interval(part)
            _check_spacing(part, spacing)
            key = (symbol or named_symbol or default_symbol, spacing)
            groups.setdefault(key, []).append(part)
    tables = [_join(parts, *key, strict=True) for key, parts in groups.items()]
    for table, parts in zip(tables, groups.values(), strict=True):
        _check_holes(table, parts)
    return tables


def read_zip(archive: bytes, name: str, *, symbol: str, interval: str) -> KlineTable:
    """The candles of one zip of the bulk archive; every candle off the raster is left out.

    Raises:
        BadInput: damaged, or holds what is no candle.
    """
    parts = [_from_csv(member, text) for member, text in _unzip(archive, name)]
    for part in parts:
        _check_spacing(part, interval)
    return _join(parts, symbol, interval, strict=False)


def read_rows(
    rows: Sequence[Sequence[Any]], name: str, *, symbol: str, interval: str
) -> KlineTable:
    """Candles as REST sends them, lists in ROW_ORDER; every candle off the raster is left out.

    Raises:
        BadInput: a row is not a candle; `name` stands for the file in the message.
    """
    if not rows:
        return no_klines(symbol, interval)
    arrays: dict[str, npt.NDArray[Any]] = {}
    try:
        for position, column in enumerate(ROW_ORDER):
            kind = np.int64 if column in _TIMES else np.float64
            arrays[column] = np.array([kind(row[position]) for row in rows], kind)
    except (TypeError, ValueError, IndexError, KeyError, OverflowError) as error:
        raise BadInput(f"{name}: not rows of klines ({_line(error)})") from None
    part = _part(name, arrays, row_word="row", first_row=1)
    return _join([part], symbol, interval, strict=False)


def named(path: Path) -> tuple[str | None, str | None]:
    """Symbol and interval of `SYMBOL-INTERVAL[-date].ext`, or of a folder of `YYYY-MM.parquet`."""
    stem = path.name
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if stem.endswith(suffix):
            stem = stem.removesuffix(suffix)
            break
    if _MONTH.fullmatch(stem):
        stem = path.absolute().parent.name
    match = _FILE_NAME.fullmatch(stem)
    if match is None:
        return None, None
    return match["symbol"].upper(), match["interval"]


def _check_market(path: Path, named_symbol: str, symbol: str) -> None:
    """Raises:
    Usage: the name is that of another market (`data-1m.csv` is none).
    """
    if named_symbol.startswith(symbol) or symbol.startswith(named_symbol):
        return  # BTCUSDT-PERP, BTCUSDT_240329
    if _MARKET.fullmatch(named_symbol) and _MARKET.fullmatch(symbol):
        raise Usage(
            f"{path}: its name says {named_symbol}, and --symbol {symbol}; leave --symbol out, or "
            f"rename the file if it does hold {symbol}"
        )


# --- one file ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Part:
    """The candles of one file, in its order, which is checked to be the order of time."""

    name: str
    row_word: str  # how a message counts: "row" of a table, "line" of a text
    rows: Times  # the number of each candle's row
    open_time_us: Times
    columns: Mapping[str, Floats]  # those of KLINE_COLUMNS that the file has
    length_us: int | None  # close - open of the first candle

    def __len__(self) -> int:
        return len(self.open_time_us)

    def where(self, index: int) -> str:
        """`FILE: row 17 (2021-05-16T00:16:00Z)`."""
        time = iso(int(self.open_time_us[index]) // 1000)
        return f"{self.name}: {self.row_word} {int(self.rows[index])} ({time})"

    def only(self, keep: npt.NDArray[np.bool_]) -> "_Part":
        return replace(
            self,
            rows=self.rows[keep],
            open_time_us=self.open_time_us[keep],
            columns={name: column[keep] for name, column in self.columns.items()},
        )


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        if not path.exists():
            raise BadInput(f"{path}: no such file")
        return [path]
    found = sorted(
        file
        for file in path.iterdir()
        if file.name.endswith(SUFFIXES) and not file.name.startswith(".")
    )
    if not found:
        raise BadInput(f"{path}: no kline files in this folder (known are {' '.join(SUFFIXES)})")
    return found


def _read(path: Path) -> list[_Part]:
    name = str(path)
    try:
        if name.endswith(".parquet"):
            return [_from_parquet(path)]
        if name.endswith(".zip"):
            return [_from_csv(member, text) for member, text in _unzip(path.read_bytes(), name)]
        if name.endswith(".csv.gz"):
            return [_from_csv(name, gzip.decompress(path.read_bytes()))]
        if name.endswith(".csv"):
            return [_from_csv(name, path.read_bytes())]
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadInput(f"{name}: damaged or cut short ({error}); fetch it again") from None
    except OSError as error:
        raise BadInput(f"{name}: cannot be read ({error.strerror or error})") from None
    raise BadInput(f"{name}: not a kind of kline file; known are {' '.join(SUFFIXES)}")


def _unzip(archive: bytes, name: str) -> list[tuple[str, bytes]]:
    """(name for messages, text) of each csv in a zip; Binance's have one."""
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            members = [
                member
                for member in opened.namelist()
                if member.endswith(".csv") and not member.startswith("__MACOSX")
            ]
            texts = [(f"{name}/{member}", opened.read(member)) for member in members]
    except (zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError, RuntimeError) as error:
        raise BadInput(f"{name}: damaged or cut short ({_line(error)}); fetch it again") from None
    if not texts:
        raise BadInput(f"{name}: no csv in this zip")
    return [(name, texts[0][1])] if len(texts) == 1 else texts


def read_zipped_columns(
    archive: bytes, name: str, wanted: Mapping[str, str]
) -> dict[str, npt.NDArray[Any]]:
    """Columns of the one csv, with a header, in a zip of the bulk archive that holds no candles.

    wanted: column -> "int64", "float64", or "seconds": `2025-05-19 11:07:31` as epoch ms (int64).

    Raises:
        BadInput: damaged, a column is missing, or a cell is empty or not what it must be.
    """
    import pyarrow as pa  # noqa: PLC0415
    from pyarrow import csv  # noqa: PLC0415

    kinds = {"int64": pa.int64(), "float64": pa.float64(), "seconds": pa.timestamp("s")}
    members = _unzip(archive, name)
    try:
        table = csv.read_csv(
            pa.BufferReader(members[0][1]),
            convert_options=csv.ConvertOptions(
                include_columns=list(wanted),
                column_types={column: kinds[kind] for column, kind in wanted.items()},
            ),
        )
    except (pa.ArrowException, KeyError) as error:
        raise BadInput(f"{name}: not the csv that it should be: {_line(error)}") from None
    found: dict[str, npt.NDArray[Any]] = {}
    for column, kind in wanted.items():
        cells = table[column]
        if cells.null_count:
            raise BadInput(f"{name}: {cells.null_count} empty cells in column {column}")
        if kind == "seconds":
            found[column] = _numpy(cells.cast(pa.int64()), np.int64) * 1000
        else:
            found[column] = _numpy(cells, np.int64 if kind == "int64" else np.float64)
        if kind == "float64" and not np.isfinite(found[column]).all():
            raise BadInput(f"{name}: column {column} holds what is no finite number")
    return found


def _columns_of(header: Sequence[str], name: str) -> dict[str, int]:
    """Position of each column we know, by any of its names.

    Raises:
        BadInput: open_time, open, high, low, close or volume is missing.
    """
    cleaned = [re.sub(r"[\s.]+", "_", cell.strip().strip('"').lower()) for cell in header]
    found = {}
    for column, aliases in ALIASES.items():
        for alias in aliases:
            if alias in cleaned:
                found[column] = cleaned.index(alias)
                break
    missing = [column.removesuffix("_ms") for column in REQUIRED if column not in found]
    if missing:
        raise BadInput(
            f"{name}: not a kline file: no column {', '.join(missing)} among "
            f"{', '.join(cleaned[:15]) or 'none'}"
        )
    return found


def _range_index(schema: Any, rows: int) -> dict[str, npt.NDArray[np.int64]]:
    """A regular index of pandas, which it writes as start and step into the file's metadata: what
    `frame.set_index("open_time")` becomes there where no candle is missing."""
    levels = (schema.pandas_metadata or {}).get("index_columns", [])
    return {
        level["name"]: level["start"] + level["step"] * np.arange(rows, dtype=np.int64)
        for level in levels
        if isinstance(level, dict) and level.get("kind") == "range" and level.get("name")
    }


def _from_parquet(path: Path) -> _Part:
    import pyarrow as pa  # noqa: PLC0415 - slow to import, and only reading needs it
    import pyarrow.parquet as pq  # noqa: PLC0415

    name = str(path)
    try:
        with pq.ParquetFile(path) as file:
            index = _range_index(file.schema_arrow, file.metadata.num_rows)
            header = [*file.schema_arrow.names, *index]
            found = _columns_of(header, name)
            wanted = [header[position] for position in found.values()]
            table = file.read(columns=[column for column in wanted if column not in index])
            for column in index.keys() & wanted:
                table = table.append_column(column, pa.array(index[column]))
    except pa.ArrowException as error:
        raise BadInput(f"{name}: damaged or cut short parquet ({_line(error)})") from None
    if not table.num_rows:
        raise BadInput(f"{name}: empty, no candle in it")
    arrays: dict[str, npt.NDArray[Any]] = {}
    for column, position in found.items():
        chunked = table[header[position]]
        try:
            if column in _TIMES:
                if pa.types.is_timestamp(chunked.type):
                    chunked = chunked.cast(pa.timestamp("us")).cast(pa.int64())
                arrays[column] = _numpy(chunked.cast(pa.int64()), np.int64)
            else:
                if pa.types.is_decimal(chunked.type):  # its own cast does not round to nearest
                    chunked = chunked.cast(pa.string())
                arrays[column] = _numpy(chunked.cast(pa.float64()), np.float64)
        except pa.ArrowException as error:
            raise BadInput(f"{name}: column {header[position]}: {_line(error)}") from None
    return _part(name, arrays, row_word="row", first_row=1)


def _from_csv(name: str, text: bytes) -> _Part:
    import pyarrow as pa  # noqa: PLC0415
    from pyarrow import csv  # noqa: PLC0415

    text = text.removeprefix(b"\xef\xbb\xbf")
    first_line = text[: text.find(b"\n") if b"\n" in text else len(text)]
    cells = first_line.decode(errors="replace").strip().split(",")
    has_header = not _is_number(cells[0])
    if not text.strip():
        raise BadInput(f"{name}: empty, no candle in it")
    if has_header:
        found = _columns_of(cells, name)
    elif len(cells) in (6, len(ROW_ORDER), len(ROW_ORDER) + 1):
        found = {
            column: position
            for position, column in enumerate(
                [c for c in ROW_ORDER if c in REQUIRED] if len(cells) == 6 else ROW_ORDER
            )
        }
    else:
        raise BadInput(
            f"{name}: {len(cells)} columns and no header; without one a row has 6 (open_time "
            "open high low close volume), 11 or Binance's 12 columns"
        )
    labels = [f"c{position}" for position in range(len(cells))]
    types = {
        f"c{position}": pa.int64() if column in _TIMES else pa.float64()
        for column, position in found.items()
    }

    def parse(column_types: Mapping[str, Any], *, threads: bool) -> Any:
        return csv.read_csv(
            pa.BufferReader(text),
            read_options=csv.ReadOptions(
                column_names=labels, skip_rows=int(has_header), use_threads=threads
            ),
            convert_options=csv.ConvertOptions(
                include_columns=list(types), column_types=column_types
            ),
        )

    first_row = 1 + int(has_header)
    try:
        try:
            table = parse(types, threads=True)
        except pa.ArrowInvalid:
            # Once more, as text and without threads: to take times like 1.6e12 and to name the row.
            table = parse(dict.fromkeys(types, pa.string()), threads=False)
    except pa.ArrowException as error:
        raise BadInput(f"{name}: not a well-formed csv: {_line(error)}") from None
    if not table.num_rows:
        raise BadInput(f"{name}: empty, no candle in it")
    arrays: dict[str, npt.NDArray[Any]] = {}
    for column, position in found.items():
        chunked = table[f"c{position}"]
        if pa.types.is_string(chunked.type):
            arrays[column] = _numbers(chunked.to_pylist(), name, first_row)
        else:
            arrays[column] = _numpy(chunked, np.int64 if column in _TIMES else np.float64)
    return _part(name, arrays, row_word="line", first_row=first_row)


def _numpy(chunked: Any, kind: type[np.int64 | np.float64]) -> npt.NDArray[Any]:
    """A column as one array; no value becomes NaN, or 0 where the column is of integers.

    From the buffers, because pyarrow's own to_numpy() imports pandas where that is installed.
    """
    column = np.empty(len(chunked), kind)
    start = 0
    for piece in chunked.chunks:
        chunk = piece.fill_null(np.nan if kind is np.float64 else 0) if piece.null_count else piece
        rows = np.frombuffer(chunk.buffers()[1], kind, count=len(chunk), offset=chunk.offset * 8)
        column[start : start + len(chunk)] = rows
        start += len(chunk)
    return column


def _is_number(text: str) -> bool:
    try:
        float(text.strip().strip('"'))
    except ValueError:
        return False
    return True


def _numbers(cells: list[str | None], name: str, first_row: int) -> Floats:
    numbers = np.empty(len(cells))
    for index, cell in enumerate(cells):
        try:
            numbers[index] = float(cell) if cell else np.nan
        except ValueError:
            raise BadInput(f"{name}: line {index + first_row}: {cell!r} is not a number") from None
    return numbers


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _part(
    name: str, arrays: dict[str, npt.NDArray[Any]], *, row_word: str, first_row: int
) -> _Part:
    """The file's candles, each checked, without its written-out gaps.

    Raises:
        BadInput: naming the first row that is wrong.
    """
    times = arrays.pop("open_time_ms")
    close_times = arrays.pop("close_time_ms", None)
    lowest, highest = _MS_RANGE[0], _MS_RANGE[1] * 1000
    if not (times.min() >= lowest and times.max() < highest):  # so written that NaN fails, too
        index = int((~((times >= lowest) & (times < highest))).argmax())
        wrong_time = (
            f"open time {times[index]} is not in milliseconds or microseconds since 1970 UTC"
        )
        if not times[index] > 0:  # an empty cell reads as 0 or NaN
            wrong_time = "no open time"
        raise BadInput(f"{name}: {row_word} {index + first_row}: {wrong_time}")
    part = _Part(
        name=name,
        row_word=row_word,
        rows=np.arange(first_row, first_row + len(times)),
        open_time_us=_microseconds(times),
        columns=arrays,
        length_us=None,
    )
    is_ms = times < _MS_RANGE[1]
    if is_ms[0] != is_ms[-1] or not (is_ms == is_ms[0]).all():
        index = int((is_ms != is_ms[0]).argmax())
        log.warning(
            "%s: times change from %s from here on; each is read by its own size",
            part.where(index),
            "milliseconds to microseconds" if is_ms[0] else "microseconds to milliseconds",
        )
    if close_times is not None and lowest <= close_times[0] < highest:
        length = int(_microseconds(close_times[:1])[0] - part.open_time_us[0])
        part = replace(part, length_us=-(-length // 1000_000) * 1000_000)
    backwards = part.open_time_us[1:] < part.open_time_us[:-1]
    if backwards.any():
        index = int(backwards.argmax()) + 1
        raise BadInput(
            f"{part.where(index)} is earlier than the row before it; sort the file by time"
        )
    good = _is_candle(arrays)
    if good.all():
        return part
    no_prices = np.all([np.isnan(arrays[column]) for column in _PRICES], axis=0)
    wrong = ~good & ~(no_prices & ~(arrays["volume"] > 0))
    if wrong.any():
        index = int(wrong.argmax())
        raise BadInput(f"{part.where(index)}: {_what_is_wrong(arrays, index)}")
    if not good.any():
        raise BadInput(f"{name}: empty, no candle in it")
    return part.only(good)


def _microseconds(times: npt.NDArray[Any]) -> Times:
    """Each row by its own magnitude: Binance's spot archive changed unit on 2025-01-01."""
    if times.max() < _MS_RANGE[1]:
        return (times * 1000).astype(np.int64, copy=False)
    return np.where(times < _MS_RANGE[1], times * 1000, times).astype(np.int64, copy=False)


def _is_candle(columns: Mapping[str, Floats]) -> npt.NDArray[np.bool_]:
    """Positive finite prices, high >= low, no negative amounts; columns beyond OHLCV may be NaN."""
    good = columns["high"] >= columns["low"]
    good &= columns["low"] > 0
    good &= columns["volume"] >= 0
    for name, column in columns.items():
        if name in ("open", "close"):
            good &= column > 0
        elif name not in REQUIRED:
            good &= ~(column < 0)
        if name != "low":
            good &= column != np.inf
    return good


def _what_is_wrong(columns: Mapping[str, Floats], index: int) -> str:
    row = {name: float(column[index]) for name, column in columns.items()}
    for name, value in row.items():
        if name in _PRICES and not 0 < value < np.inf:
            return f"{name} is {value:g}, not a positive price"
        if name not in _PRICES and (value < 0 or value == np.inf):
            return f"{name} is {value:g}, not an amount"
    if np.isnan(row["volume"]):
        return "volume is nan, not an amount"
    return f"high {row['high']:g} is below low {row['low']:g}"


# --- interval and raster -------------------------------------------------------------------------


def _most_frequent(spacings: Times) -> int:
    values, counts = np.unique(spacings, return_counts=True)
    return int(values[counts.argmax()])


def _most_frequent_interval(part: _Part) -> str:
    spacings = np.diff(part.open_time_us)
    spacings = spacings[spacings > 0]
    length_us = _most_frequent(spacings) if len(spacings) else part.length_us
    for interval, length_ms in INTERVALS_MS.items():
        if length_ms * 1000 == length_us:
            return interval
    seen = "one candle only" if length_us is None else f"candles {length_us / 1e6:g} s apart"
    raise BadInput(
        f"{part.name}: the interval cannot be told ({seen}); name the file SYMBOL-INTERVAL.ext "
        f"or give the interval, one of: {' '.join(INTERVALS_MS)}"
    )


def _check_spacing(part: _Part, interval: str) -> None:
    """Raises:
    BadInput: the candles are of another interval.
    """
    step_us = interval_ms(interval) * 1000
    spacings = np.diff(part.open_time_us)
    regular = int(np.count_nonzero(spacings == step_us))
    if 2 * regular >= len(spacings):
        return
    spacings = spacings[spacings > 0]
    if not len(spacings):
        return
    usual = _most_frequent(spacings)
    if usual < step_us or (regular == 0 and len(part) > 2):
        raise BadInput(
            f"{part.name}: wrong interval: its candles are {usual / 1e6:g} s apart, "
            f"not {step_us / 1e6:g} s ({interval})"
        )


def _check_holes(table: KlineTable, parts: list[_Part]) -> None:
    """Raises:
    BadInput: a candle stands so far apart that the raster would be nearly all gaps.
    """
    hole = hole_too_wide(table.open_time_ms, table.step_ms)
    if hole is None:
        return
    for part in parts:
        at = int(np.searchsorted(part.open_time_us, hole.open_time_ms * 1000))
        if at < len(part) and part.open_time_us[at] == hole.open_time_ms * 1000:
            raise BadInput(
                f"{part.where(at)}: {hole.text(table.interval)}; correct its time, or give the "
                "files before and after the hole apart"
            )
    raise ValueError("no file has the candle that stands apart")


def _on_raster(part: _Part, step_us: int, *, strict: bool) -> npt.NDArray[np.bool_]:
    """Which candles lie on the raster.

    Raises:
        BadInput (strict): a candle off the raster that no outage explains.
    """
    off: npt.NDArray[np.bool_] = part.open_time_us % step_us != 0
    if strict and off.any():
        # An exchange that restarts off the raster does so after a hole, and goes on for a while.
        beside = np.zeros(len(part), bool)
        beside[1:] |= off[:-1]
        beside[:-1] |= off[1:]
        hole = np.diff(part.open_time_us) >= 2 * step_us
        beside[1:] |= hole
        beside[:-1] |= hole
        alone: npt.NDArray[np.bool_] = off & ~beside
        if alone.any():
            raise BadInput(
                f"{part.where(int(alone.argmax()))}: open time is not a multiple of "
                f"{step_us / 1e6:g} s; correct or remove the row"
            )
    return np.logical_not(off)


# --- several files -------------------------------------------------------------------------------


def _join(parts: list[_Part], symbol: str, interval: str, *, strict: bool) -> KlineTable:
    step_us = interval_ms(interval) * 1000
    kept: list[_Part] = []
    for part in sorted(parts, key=lambda part: int(part.open_time_us[0])):
        on_raster = _on_raster(part, step_us, strict=strict)
        if on_raster.all():
            kept.append(part)
            continue
        left_out = np.flatnonzero(~on_raster)
        log.warning(
            "%s: %d of %d candles are off the raster of %s, from row %d (%s) on: left out, a gap",
            part.name,
            len(left_out),
            len(part),
            interval,
            part.rows[left_out[0]],
            iso(int(part.open_time_us[left_out[0]]) // 1000),
        )
        kept.append(part.only(on_raster))
    total = sum(len(part) for part in kept)
    if strict and 2 * total < sum(len(part) for part in parts):
        raise BadInput(
            f"{parts[0].name}: most open times are not multiples of {step_us / 1e6:g} s "
            f"({interval}); are they in UTC, and is the interval right?"
        )
    open_time_us = np.concatenate([part.open_time_us for part in kept])
    values = np.empty((total, len(KLINE_COLUMNS)))
    start = 0
    for part in kept:
        _fill(values[start : start + len(part)], part.columns)
        start += len(part)
    if not np.all(open_time_us[1:] > open_time_us[:-1]):
        open_time_us, values = _sorted_once(kept, open_time_us, values)
    return KlineTable(
        symbol=symbol, interval=interval, open_time_ms=open_time_us // 1000, values=values
    )


def _fill(values: Floats, columns: Mapping[str, Floats]) -> None:
    """In blocks that stay in the cache, for a row holds one number of each column."""
    block = 4096
    for start in range(0, len(values), block):
        rows = values[start : start + block]
        for position, name in enumerate(KLINE_COLUMNS):
            column = columns.get(name)
            rows[:, position] = np.nan if column is None else column[start : start + block]


def _sorted_once(parts: list[_Part], times: Times, values: Floats) -> tuple[Times, Floats]:
    """By time, each time once; what one file lacks of a candle, another may add.

    Raises:
        BadInput: two candles of one time differ.
    """
    source = np.argsort(times, kind="stable")
    times, values = times[source], values[source]
    bounds = np.cumsum([len(part) for part in parts])

    def where(row: int) -> str:
        number = int(np.searchsorted(bounds, row, side="right"))
        return parts[number].where(row - (int(bounds[number]) - len(parts[number])))

    told = False
    while True:
        again = np.zeros(len(times), bool)
        again[1:] = times[1:] == times[:-1]
        if not again.any():
            return times, values
        second = np.flatnonzero(again & ~np.roll(again, 1))
        first = second - 1
        conflict = (values[first] < values[second]) | (values[first] > values[second])
        if conflict.any():
            index = int(conflict.any(axis=1).argmax())
            column = int(conflict[index].argmax())
            raise BadInput(
                f"{where(int(source[second[index]]))}: {KLINE_COLUMNS[column]} is "
                f"{values[second[index], column]:.12g}, but {values[first[index], column]:.12g} in "
                f"{where(int(source[first[index]]))}; keep one of the two"
            )
        if not told:
            told = True
            log.warning(
                "%s is the candle of %s again: %d candles stand there more than once, each with "
                "equal values, and are taken once",
                where(int(source[second[0]])),
                where(int(source[first[0]])),
                int(again.sum()),
            )
        values[second] = np.where(np.isnan(values[second]), values[first], values[second])
        keep = np.ones(len(times), bool)
        keep[first] = False
        times, values, source = times[keep], values[keep], source[keep]


# --- the history on disk -------------------------------------------------------------------------


def klines_folder(data_folder: Path, symbol: str, interval: str) -> Path:
    """Where the collector's archive and the trainer's download keep candles, a file per month."""
    return data_folder / f"{symbol}-{interval}-klines"


def depth_folder(data_folder: Path, symbol: str, interval: str) -> Path:
    """Order-book rows, as the collector archives them and `merge` reads them: monthly files of
    open_time_ms and the depth columns."""
    return data_folder / f"{symbol}-{interval}-depth"


def month_of(time_ms: int) -> str:
    """`2021-05`, the month (UTC) that a time lies in."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m")


def month_bounds(month: str) -> tuple[int, int]:
    """First millisecond of a month and of the next one."""
    start = datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC)
    end = start.replace(year=start.year + start.month // 12, month=start.month % 12 + 1)
    return int(start.timestamp()) * 1000, int(end.timestamp()) * 1000


def months_between(start_ms: int, end_ms: int) -> list[str]:
    """The months that have a moment of start_ms <= t < end_ms."""
    months = []
    while start_ms < end_ms:
        months.append(month_of(start_ms))
        start_ms = month_bounds(months[-1])[1]
    return months


def kline_months(folder: Path) -> list[str]:
    """The months that a folder has a file of, in order; none where there is no folder."""
    if not folder.is_dir():
        return []
    return sorted(file.stem for file in folder.glob("*.parquet") if _MONTH.fullmatch(file.stem))


def read_history(
    folder: Path,
    *,
    symbol: str,
    interval: str,
    start_ms: int | None = None,
    end_ms: int | None = None,
) -> KlineTable:
    """The candles of a monthly folder with start_ms <= open_time_ms < end_ms, if any.

    Raises:
        BadInput: a file is damaged, or is not of this interval.
    """
    parts = []
    for month in kline_months(folder):
        first, end = month_bounds(month)
        if (start_ms is None or start_ms < end) and (end_ms is None or end_ms > first):
            part = _read(folder / f"{month}.parquet")[0]
            _check_spacing(part, interval)
            parts.append(part)
    if not parts:
        return no_klines(symbol, interval)
    table = _join(parts, symbol, interval, strict=True)
    if start_ms is None and end_ms is None:
        return table
    return table.between(start_ms or 0, _MS_RANGE[1] if end_ms is None else end_ms)


def no_klines(symbol: str, interval: str) -> KlineTable:
    """A table without rows."""
    return KlineTable(
        symbol=symbol,
        interval=interval,
        open_time_ms=np.empty(0, np.int64),
        values=np.empty((0, len(KLINE_COLUMNS))),
    )


def write_month(
    folder: Path, month: str, table: KlineTable, metadata: Mapping[str, str] | None = None
) -> Path:
    """Replaces one month's file, at once or not at all. `table`: rows of that month only."""
    start, end = month_bounds(month)
    if not len(table) or table.open_time_ms[0] < start or table.open_time_ms[-1] >= end:
        raise ValueError(f"rows outside the month {month}, or none")
    columns: dict[str, npt.NDArray[Any]] = {"open_time_ms": table.open_time_ms}
    columns |= {name: table.column(name) for name in KLINE_COLUMNS}
    columns["close_time_ms"] = table.open_time_ms + (table.step_ms - 1)
    path = folder / f"{month}.parquet"
    write_columns(path, columns, metadata)
    return path


def add_klines(folder: Path, table: KlineTable) -> list[Path]:
    """Adds candles to a monthly folder; where both have a candle of one time, `table`'s stays.

    Safe beside other writers of the folder, and to repeat. Returns the files that changed.
    """
    written = []
    with locked(folder):
        for month in months_of(table):
            rows = table.between(*month_bounds(month))
            path = folder / f"{month}.parquet"
            if path.exists():
                start, end = month_bounds(month)
                old = read_history(
                    folder, symbol=table.symbol, interval=table.interval, start_ms=start, end_ms=end
                )
                merged = overlay(old, rows)
                if len(merged) == len(old) and np.array_equal(
                    merged.values, old.values, equal_nan=True
                ):
                    continue
                rows = merged
            written.append(write_month(folder, month, rows))
    return written


def months_of(table: KlineTable) -> list[str]:
    """The months that a table has rows in, in order."""
    if not len(table):
        return []
    months = []
    time_ms, last_ms = int(table.open_time_ms[0]), int(table.open_time_ms[-1])
    while time_ms <= last_ms:
        month = month_of(time_ms)
        start, end = month_bounds(month)
        if len(table.between(start, end)):
            months.append(month)
        time_ms = end
    return months


def overlay(below: KlineTable, above: KlineTable) -> KlineTable:
    """Both tables' rows; where both have one, that of `above`."""
    below_only = ~np.isin(below.open_time_ms, above.open_time_ms)
    times = np.concatenate([below.open_time_ms[below_only], above.open_time_ms])
    values = np.concatenate([below.values[below_only], above.values])
    order = np.argsort(times, kind="stable")
    return KlineTable(
        symbol=above.symbol,
        interval=above.interval,
        open_time_ms=times[order],
        values=values[order],
    )


def write_columns(
    path: Path,
    columns: Mapping[str, npt.NDArray[Any]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """A parquet file (zstd) of int64 and float64 columns, at once or not at all."""
    import pyarrow.parquet as pq  # noqa: PLC0415

    with replacing(path) as unfinished:
        pq.write_table(arrow_table(columns, metadata or {}), unfinished, compression="zstd")


def arrow_table(columns: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]) -> Any:
    """A pyarrow table of int64 and float64 columns."""
    import pyarrow as pa  # noqa: PLC0415

    arrays = []
    for column in columns.values():
        # From the buffer: pa.array() would import pandas where that is installed.
        whole = np.ascontiguousarray(column)
        kind = pa.int64() if whole.dtype == np.int64 else pa.float64()
        arrays.append(pa.Array.from_buffers(kind, len(whole), [None, pa.py_buffer(whole)]))
    return pa.Table.from_arrays(arrays, names=list(columns), metadata=dict(metadata) or None)


def read_columns(path: Path, names: Sequence[str] | None = None) -> dict[str, npt.NDArray[Any]]:
    """The columns of a parquet file that `write_columns` wrote; `names`: only those.

    Raises:
        BadInput: no such file, damaged, or without one of the columns.
    """
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        with pq.ParquetFile(path) as file:
            missing = [name for name in names or () if name not in file.schema_arrow.names]
            if missing:
                raise BadInput(f"{path}: no column {', '.join(missing)}")
            table = file.read(columns=names)
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except pa.ArrowException as error:
        raise BadInput(f"{path}: damaged or cut short parquet ({_line(error)})") from None
    kinds = {pa.int64(): np.int64}
    return {
        name: _numpy(table[name], kinds.get(table[name].type, np.float64))
        for name in table.column_names
    }


def read_metadata(path: Path) -> dict[str, str]:
    """What `write_columns` was given as metadata; empty where no such file is, or none in it."""
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        found = pq.read_schema(path).metadata or {}
    except FileNotFoundError:
        return {}
    except pa.ArrowException as error:
        raise BadInput(f"{path}: damaged or cut short parquet ({_line(error)})") from None
    return {key.decode(): value.decode() for key, value in found.items()}


# --- writing so that a file is whole or absent ---------------------------------------------------


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder that becomes `path` when the block ends well.

    Killed at any moment, `path` is the old file, the new file or absent, never a part. What a
    killed process left (hidden, `.NAME.PID.tmp`) goes away with the next write of the same file.

    Raises:
        Failure: the disk is full, or the folder cannot be written.
    """
    unfinished = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{path.name}.[0-9]*.tmp"):
            if not is_running(int(left.name.split(".")[-2])):
                left.unlink(missing_ok=True)
        try:
            yield unfinished
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise Failure(f"{path}: cannot be written ({error.strerror or error})") from error


def is_running(pid: int) -> bool:
    """Whether there is such a process; the temporary files of another one are litter."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time changes a folder; the lock ends with its holder, however that dies."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
