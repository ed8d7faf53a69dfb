"""Kline files in every accepted form, and what is refused; the history on disk.

Expected values come from Python's own csv reader and float().
"""

import csv
import gzip
import io
import logging
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared import klinefiles
from shared.errors import BadInput, Failure, Usage
from shared.klinefiles import read_klines
from shared.klines import KLINE_COLUMNS, KlineTable

START = 1_621_123_200_000  # 2021-05-16T00:00Z
MINUTE = 60_000
BINANCE = (
    "open_time,open,high,low,close,volume,close_time,quote_volume,count,taker_buy_volume,"
    "taker_buy_quote_volume,ignore"
)


def rows(count: int = 5, *, start: int = START, step: int = MINUTE) -> list[list[str]]:
    """Rows as Binance writes them."""
    return [
        [
            str(start + i * step),
            f"{100 + i}.10000000",
            f"{102 + i}.30000000",
            f"{99 + i}.70000000",
            f"{101 + i}.90000000",
            f"{i}.12345678",
            str(start + i * step + step - 1),
            f"{1000 + i}.11111111",
            str(7 + i),
            f"{i}.06000000",
            f"{500 + i}.05555555",
            "0",
        ]
        for i in range(count)
    ]


def text(lines: Sequence[Sequence[str]], header: str = "") -> bytes:
    body = "".join(",".join(line) + "\n" for line in lines)
    return ((header + "\n" if header else "") + body).encode()


def zipped(content: bytes, member: str = "any.csv") -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
    return held.getvalue()


def save(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def expected(lines: Sequence[Sequence[str]]) -> tuple[list[int], list[list[float]]]:
    """Open times in ms and the nine values, from rows in Binance's order."""
    times, values = [], []
    for line in lines:
        opened = int(line[0])
        times.append(opened // 1000 if opened >= 10**14 else opened)
        values.append([float(line[at]) for at in (1, 2, 3, 4, 5, 7, 8, 9, 10)])
    return times, values


def check(table: KlineTable, lines: Sequence[Sequence[str]]) -> None:
    times, values = expected(lines)
    assert table.open_time_ms.dtype == np.int64
    assert table.open_time_ms.tolist() == times
    assert table.values.dtype == np.float64
    assert table.values.flags.c_contiguous
    assert table.values.tolist() == values


# --- accepted forms ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern",
    [
        "vision/BTCUSDT-1m-2021-05-19.zip",  # ms, no header
        "vision/BTCUSDT-15m-2025-06.zip",  # us, no header
        "vision/um/FILUSDT-1m-2023-08.zip",  # USD-M, with header
    ],
)
def test_real_archives_equal_what_pythons_own_reader_reads(market_data: Path, pattern: str) -> None:
    path = market_data / pattern
    with zipfile.ZipFile(path) as archive:
        lines = list(csv.reader(io.TextIOWrapper(archive.open(archive.namelist()[0]))))
    if lines[0][0] == "open_time":
        del lines[0]
    [table] = read_klines([path])
    assert f"{table.symbol}-{table.interval}" == "-".join(path.name.split("-")[:2])
    check(table, lines)


def test_every_real_candle_of_the_long_file_loads_with_its_outages(market_data: Path) -> None:
    path = market_data / "BTCUSDT-1m.parquet"
    [table] = read_klines([path])
    assert len(table) == 2_363_407
    source = pq.read_table(path)
    assert table.open_time_ms.tolist() == source["open_time"].to_pylist()
    assert table.column("close").tolist() == source["close"].to_pylist()
    assert np.isnan(table.column("trades")).all()
    missing = np.diff(table.open_time_ms) // MINUTE - 1
    assert {284, 80} <= set(missing[missing > 0].tolist())


FORMS: dict[str, Callable[[list[list[str]]], tuple[str, bytes]]] = {
    "csv": lambda lines: ("X-1m.csv", text(lines)),
    "csv with header": lambda lines: ("X-1m.csv", text(lines, BINANCE)),
    "csv.gz": lambda lines: ("X-1m.csv.gz", gzip.compress(text(lines))),
    "zip": lambda lines: ("X-1m.zip", zipped(text(lines))),
    "zip with header": lambda lines: ("X-1m.zip", zipped(text(lines, BINANCE))),
    "windows line ends": lambda lines: ("X-1m.csv", text(lines, BINANCE).replace(b"\n", b"\r\n")),
    "byte order mark": lambda lines: ("X-1m.csv", b"\xef\xbb\xbf" + text(lines, BINANCE)),
    "no last line end": lambda lines: ("X-1m.csv", text(lines).rstrip(b"\n")),
    "quoted header": lambda lines: (
        "X-1m.csv",
        text(lines, ",".join(f'"{name}"' for name in BINANCE.split(","))),
    ),
    "eleven columns": lambda lines: ("X-1m.csv", text([line[:11] for line in lines])),
    "times as floats": lambda lines: (
        "X-1m.csv",
        text([[line[0] + ".0", *line[1:6], line[6] + ".0", *line[7:]] for line in lines], BINANCE),
    ),
    "microseconds": lambda lines: (
        "X-1m.csv",
        text([[line[0] + "000", *line[1:6], line[6] + "999", *line[7:]] for line in lines]),
    ),
    "from ms to us": lambda lines: (
        "X-1m.csv",
        text([[line[0] + "000" * (i > 1), *line[1:]] for i, line in enumerate(lines)]),
    ),
    "the names of an old tool": lambda lines: (
        "X-1m.csv",
        text(
            lines,
            "timestamp,open,high,low,close,volume,close_time,quote_av,trades,tb_base_av,"
            "tb_quote_av,ignore",
        ),
    ),
    "the names of the documentation": lambda lines: (
        "X-1m.csv",
        text(
            lines,
            "Open time,Open,High,Low,Close,Volume,Close time,Quote asset volume,Number of trades,"
            "Taker buy base asset volume,Taker buy quote asset volume,Ignore",
        ),
    ),
    "our names, another order": lambda lines: (
        "X-1m.csv",
        text(
            [[line[at] for at in (10, 9, 8, 7, 5, 4, 3, 2, 1, 0)] for line in lines],
            "taker_quote,taker_base,trades,quote_volume,volume,close,low,high,open,open_time_ms",
        ),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_text_gives_the_same_candles(tmp_path: Path, form: str) -> None:
    name, content = FORMS[form](rows())
    [table] = read_klines([save(tmp_path / name, content)])
    check(table, rows())


@pytest.mark.parametrize(
    "kind",
    ["double", "string", "decimal", "timestamp", "microseconds", "float32", "several row groups"],
)
def test_every_form_of_parquet_gives_the_same_candles(tmp_path: Path, kind: str) -> None:
    lines = rows(50)
    times = pa.array([int(line[0]) for line in lines])
    prices = [pa.array([line[at] for line in lines]) for at in (1, 2, 3, 4, 5)]
    if kind == "timestamp":
        times = times.cast(pa.timestamp("ms", "UTC"))
    elif kind == "microseconds":
        times = pa.array([int(line[0]) * 1000 for line in lines])
    if kind == "decimal":
        prices = [column.cast(pa.decimal128(20, 8)) for column in prices]
    elif kind == "float32":
        prices = [column.cast(pa.float32()) for column in prices]
    elif kind != "string":
        prices = [column.cast(pa.float64()) for column in prices]
    table = pa.table(
        [times, *prices], names=["open_time", "open", "high", "low", "close", "volume"]
    )
    path = tmp_path / "X-1m.parquet"
    pq.write_table(table, path, row_group_size=7 if kind == "several row groups" else None)
    [found] = read_klines([path])
    times_ms, values = expected(lines)
    wanted = np.array(values)[:, :5]
    if kind == "float32":
        wanted = wanted.astype(np.float32).astype(np.float64)
    assert found.open_time_ms.tolist() == times_ms
    assert found.values[:, :5].tolist() == wanted.tolist()
    assert np.isnan(found.values[:, 5:]).all()


def test_a_regular_index_that_pandas_wrote_as_start_and_step_is_read(tmp_path: Path) -> None:
    lines = rows(50)
    times_ms, values = expected(lines)
    names = ["open", "high", "low", "close", "volume"]
    columns = {name: [line[at] for line in values] for at, name in enumerate(names)}
    index = pd.RangeIndex(times_ms[0], times_ms[-1] + 60_000, 60_000, name="open_time")
    path = tmp_path / "X-1m.parquet"
    pd.DataFrame(columns, index=index).to_parquet(path)
    assert "open_time" not in pq.read_schema(path).names
    [found] = read_klines([path])
    assert found.open_time_ms.tolist() == times_ms
    assert found.values[:, :5].tolist() == np.array(values)[:, :5].tolist()


def test_prices_and_volume_alone_are_enough(tmp_path: Path) -> None:
    six = [line[:6] for line in rows()]
    for content in (text(six), text(six, "open_time,open,high,low,close,volume")):
        [table] = read_klines([save(tmp_path / "X-1m.csv", content)])
        assert table.values[:, :5].tolist() == [v[:5] for v in expected(rows())[1]]
        assert np.isnan(table.values[:, 5:]).all()


def test_cells_without_a_number_are_missing_beyond_the_volume(tmp_path: Path) -> None:
    lines = rows()
    lines[2][8], lines[3][10] = "", "NaN"
    [table] = read_klines([save(tmp_path / "X-1m.csv", text(lines, BINANCE))])
    assert np.isnan(table.column("trades")).tolist() == [False, False, True, False, False]
    assert np.isnan(table.column("taker_quote")).tolist() == [False, False, False, True, False]


@given(st.decimals(min_value="1e-8", max_value="1e12", places=12))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_a_decimal_string_becomes_the_nearest_double(tmp_path: Path, price: Any) -> None:
    line = rows(1)[0]
    line[1:5] = [f"{price:f}"] * 4
    path = save(tmp_path / "X-1m.csv", text([line]))
    [table] = read_klines([path])
    assert table.values[0, :4].tolist() == [float(f"{price:f}")] * 4
    quoted = [[float(cell) if at == 8 else cell for at, cell in enumerate(line)]]
    rest = klinefiles.read_rows(quoted, "reply", symbol="X", interval="1m")
    assert rest.values.tobytes() == table.values.tobytes()


# --- names and intervals -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "symbol", "interval"),
    [
        ("ETHUSDT-15m.csv", "ETHUSDT", "15m"),
        ("ethusdt-15m-2025-01.csv", "ETHUSDT", "15m"),
        ("BTCUSDT-PERP-15m-2023-07_08.csv", "BTCUSDT-PERP", "15m"),
        ("1000SHIBUSDT-15m-2021-05-19.csv", "1000SHIBUSDT", "15m"),
        ("这是测试币456-15m.csv", "这是测试币456", "15m"),
        ("history.csv", "BTCUSDT", "15m"),
        ("ETHUSDT-history.csv", "BTCUSDT", "15m"),
    ],
)
def test_symbol_and_interval_come_from_the_name_else_default_and_spacing(
    tmp_path: Path, name: str, symbol: str, interval: str
) -> None:
    path = save(tmp_path / name, text(rows(step=15 * MINUTE)))
    [table] = read_klines([path])
    assert (table.symbol, table.interval) == (symbol, interval)


def test_options_are_above_the_file_name(tmp_path: Path) -> None:
    path = save(tmp_path / "ETHUSDT-5m.csv", text(rows(step=15 * MINUTE)))
    [table] = read_klines([path], symbol="ABC", interval="15m")
    assert (table.symbol, table.interval) == ("ABC", "15m")
    [table] = read_klines([save(tmp_path / "h.csv", text(rows()))], default_symbol="XYZ")
    assert (table.symbol, table.interval) == ("XYZ", "1m")


def test_a_single_candle_without_a_name_tells_its_interval_by_its_close(tmp_path: Path) -> None:
    [table] = read_klines([save(tmp_path / "h.csv", text(rows(1, step=4 * 60 * MINUTE)))])
    assert table.interval == "4h"


def test_files_of_several_symbols_and_intervals_become_a_table_each(tmp_path: Path) -> None:
    paths = [
        save(tmp_path / "B-1m-2.csv", text(rows(5, start=START + 10 * MINUTE))),
        save(tmp_path / "A-1h.csv", text(rows(step=60 * MINUTE))),
        save(tmp_path / "B-1m-1.csv", text(rows(5))),
    ]
    tables = read_klines(paths)
    found = [(table.symbol, table.interval, len(table)) for table in tables]
    assert found == [("B", "1m", 10), ("A", "1h", 5)]
    assert np.all(np.diff(tables[0].open_time_ms) > 0)


def test_a_folder_of_the_history_names_its_files(tmp_path: Path) -> None:
    folder = klinefiles.klines_folder(tmp_path, "ETHUSDT", "1m")
    [table] = read_klines([save(tmp_path / "ETHUSDT-1m.csv", text(rows()))])
    klinefiles.add_klines(folder, table)
    for paths in ([folder], [folder / "2021-05.parquet"]):
        [found] = read_klines(paths, default_symbol="NO")
        assert (found.symbol, found.interval) == ("ETHUSDT", "1m")
        check(found, rows())


# --- several files -------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 30)), min_size=1, max_size=6))
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None
)
def test_overlapping_files_in_any_order_give_each_candle_once(
    tmp_path: Path, pieces: list[tuple[int, int]]
) -> None:
    lines = rows(100)
    paths = [
        save(tmp_path / f"X-1m-{i}.csv", text(lines[first : first + count]))
        for i, (first, count) in enumerate(pieces)
    ]
    covered = sorted({at for first, count in pieces for at in range(first, first + count)})
    [table] = read_klines(paths)
    check(table, [lines[at] for at in covered])


def test_what_one_file_lacks_of_a_candle_another_adds(tmp_path: Path) -> None:
    short = save(tmp_path / "X-1m-a.csv", text([line[:6] for line in rows()]))
    full = save(tmp_path / "X-1m-b.csv", text(rows()[1:]))
    for paths in ([short, full], [full, short], [short, full, short, full]):
        [table] = read_klines(paths)
        assert table.values[1:].tolist() == expected(rows())[1][1:]
        assert np.isnan(table.values[0, 5:]).all()


def test_two_different_candles_of_one_time_are_refused_with_both_places(tmp_path: Path) -> None:
    changed = rows()
    changed[3][4] = "104.5"
    paths = [
        save(tmp_path / "X-1m-a.csv", text(rows())),
        save(tmp_path / "X-1m-b.csv", text(changed, BINANCE)),
    ]
    with pytest.raises(BadInput) as caught:
        read_klines(paths)
    message = str(caught.value)
    assert "X-1m-b.csv: line 5 (2021-05-16T00:03:00Z): close is 104.5" in message
    assert "104.9 in " in message
    assert "X-1m-a.csv: line 4" in message


def test_the_same_candle_twice_in_one_file_is_one_candle_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = rows()
    twice = [*lines[:3], lines[2], *lines[2:]]
    [table] = read_klines([save(tmp_path / "X-1m.csv", text(twice))])
    check(table, lines)
    (said,) = caplog.messages
    assert "X-1m.csv: line 4 (2021-05-16T00:02:00Z) is the candle of" in said
    assert "X-1m.csv: line 3 (2021-05-16T00:02:00Z) again: 2 candles stand there" in said


def test_a_file_named_after_another_market_is_not_believed_to_hold_this_one(
    tmp_path: Path,
) -> None:
    save(tmp_path / "ETHUSDT-1m-2021-05.csv", text(rows()))
    with pytest.raises(Usage, match="its name says ETHUSDT, and --symbol BTCUSDT; leave --symbol"):
        read_klines([tmp_path], symbol="BTCUSDT")
    other = tmp_path / "other"
    other.mkdir()
    for name in ("mine-1m.csv", "BTCUSDT-PERP-1m.csv", "BTCUSDT_240329-1m.csv", "plain.csv"):
        [table] = read_klines([save(other / name, text(rows()))], symbol="BTCUSDT")
        assert table.symbol == "BTCUSDT"


def test_written_out_gaps_are_gaps(tmp_path: Path) -> None:
    lines = rows(6)
    lines[2][1:6] = [""] * 4 + ["0"]
    lines[3][1:6] = ["nan"] * 5
    [table] = read_klines([save(tmp_path / "X-1m.csv", text(lines))])
    check(table, [lines[at] for at in (0, 1, 4, 5)])


# --- off the raster ------------------------------------------------------------------------------


def shifted(lines: list[list[str]], first: int, last: int, by_ms: int) -> list[list[str]]:
    for line in lines[first:last]:
        line[0] = str(int(line[0]) + by_ms)
    return lines


def test_a_shifted_stretch_after_an_outage_becomes_a_gap_and_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = rows(40)
    lines = shifted(lines[:10] + lines[15:], 10, 20, 14_789)
    with caplog.at_level(logging.WARNING):
        [table] = read_klines([save(tmp_path / "X-1m.csv", text(lines))])
    check(table, lines[:10] + lines[20:])
    assert "10 of 35 candles are off the raster of 1m, from row 11" in caplog.text


def test_a_single_shifted_candle_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "X-1m.csv", text(shifted(rows(10), 4, 5, 1)))
    with pytest.raises(BadInput, match=r"line 5 \(2021-05-16T00:04:00.001Z\).*multiple of 60 s"):
        read_klines([path])


def test_a_file_off_the_raster_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "X-1m.csv", text(shifted(rows(10), 0, 10, 30_000)))
    with pytest.raises(BadInput, match=r"X-1m.csv: most open times are not multiples of 60 s"):
        read_klines([path])


# --- refused -------------------------------------------------------------------------------------


def changed(at: int, column: int, cell: str) -> bytes:
    lines = rows()
    lines[at][column] = cell
    return text(lines)


PLAIN = text(rows())
REFUSED: dict[str, tuple[str, bytes, str]] = {
    "empty": ("X-1m.csv", b"", "empty, no candle"),
    "header only": ("X-1m.csv", BINANCE.encode() + b"\n", "empty, no candle"),
    "gaps only": ("X-1m.csv", text([[rows(1)[0][0], *["nan"] * 5]]), "empty, no candle"),
    "empty zip": ("X-1m.zip", zipped(b""), "empty, no candle"),
    "empty gz": ("X-1m.csv.gz", gzip.compress(b""), "empty, no candle"),
    "no zip": ("X-1m.zip", b"<html>", "damaged or cut short"),
    "cut zip": ("X-1m.zip", zipped(PLAIN)[:-30], "damaged or cut short"),
    "broken zip": (
        "X-1m.zip",
        zipped(PLAIN).replace(zipped(PLAIN)[60:70], b"0123456789"),
        "damaged",
    ),
    "zip without csv": ("X-1m.zip", zipped(PLAIN, "readme.txt"), "no csv in this zip"),
    "cut gz": ("X-1m.csv.gz", gzip.compress(PLAIN)[:-12], "damaged or cut short"),
    "no gz": ("X-1m.csv.gz", PLAIN, "damaged or cut short"),
    "no parquet": ("X-1m.parquet", PLAIN, "damaged or cut short"),
    "zero bytes of parquet": ("X-1m.parquet", b"", "damaged or cut short"),
    "other ending": ("X-1m.json", PLAIN, "known are .zip .csv .csv.gz .parquet"),
    "columns missing": (
        "X-1m.csv",
        text([line[:4] for line in rows()], "open_time,open,high,close"),
        "no column low, volume",
    ),
    "another csv": ("X-1m.csv", b"name,age\nbob,3\n", "no column open_time, open"),
    "nine bare columns": (
        "X-1m.csv",
        text([line[:9] for line in rows()]),
        "9 columns and no header",
    ),
    "short row": ("X-1m.csv", PLAIN + b"1621123500000,1,2\n", "not a well-formed csv"),
    "word in a price": ("X-1m.csv", changed(2, 4, "oops"), "line 3: 'oops' is not a number"),
    "no open time": ("X-1m.csv", changed(2, 0, ""), "line 3: no open time"),
    "seconds": ("X-1m.csv", changed(0, 0, "1621123200"), "line 1: open time 1621123200 is not"),
    "a date": ("X-1m.csv", changed(1, 0, "2021-05-16"), "line 2: '2021-05-16' is not a number"),
    "unordered": ("X-1m.csv", text(rows()[:2] + rows()[3:] + rows()[2:3]), "line 5 .*earlier than"),
    "zero price": ("X-1m.csv", changed(1, 1, "0"), "line 2 .*open is 0, not a positive price"),
    "negative price": ("X-1m.csv", changed(1, 3, "-1"), "line 2 .*low is -1, not a positive price"),
    "nan price": ("X-1m.csv", changed(1, 4, "nan"), "line 2 .*close is nan, not a positive price"),
    "infinite price": ("X-1m.csv", changed(1, 2, "inf"), "line 2 .*high is inf, not a positive"),
    "high below low": ("X-1m.csv", changed(1, 2, "50"), r"line 2 .*high 50 is below low 100\.7"),
    "negative volume": ("X-1m.csv", changed(1, 5, "-3"), "line 2 .*volume is -3, not an amount"),
    "nan volume": ("X-1m.csv", changed(1, 5, ""), "line 2 .*volume is nan, not an amount"),
    "infinite volume": ("X-1m.csv", changed(1, 7, "inf"), "quote_volume is inf, not an amount"),
    "wrong interval above": ("X-1m.csv", text(rows(step=15 * MINUTE)), "900 s apart, not 60 s"),
    "wrong interval below": ("X-1h.csv", PLAIN, "60 s apart, not 3600 s"),
    "no interval": ("X.csv", text(rows(step=7 * MINUTE)), "the interval cannot be told"),
    "one nameless row": ("X.csv", text([rows()[0][:6]]), "the interval cannot be told"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_is_no_candle_is_refused_in_one_line_with_the_place(
    tmp_path: Path, fault: str
) -> None:
    name, content, reason = REFUSED[fault]
    path = save(tmp_path / name, content)
    with pytest.raises(BadInput, match=reason) as caught:
        read_klines([path])
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_parquet_row_is_named_and_a_cut_one_refused(tmp_path: Path) -> None:
    table = pa.table(
        {
            "open_time": [START + i * MINUTE for i in range(4)],
            **{name: [1.0, 1.0, -1.0, 1.0] for name in ("open", "high", "low", "close", "volume")},
        }
    )
    path = tmp_path / "X-1m.parquet"
    pq.write_table(table, path)
    with pytest.raises(BadInput, match=r"row 3 \(2021-05-16T00:02:00Z\): open is -1"):
        read_klines([path])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BadInput, match="cut short"):
        read_klines([path])
    pq.write_table(table.slice(0, 0), path)
    with pytest.raises(BadInput, match="empty"):
        read_klines([path])


def test_a_name_with_an_irregular_interval_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(Usage, match="'1w' is not supported"):
        read_klines([save(tmp_path / "X-1w.csv", text(rows()))])


def test_missing_files_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nowhere\.csv: no such file"):
        read_klines([tmp_path / "nowhere.csv"])
    with pytest.raises(BadInput, match="no kline files in this folder"):
        read_klines([tmp_path])
    with pytest.raises(Usage, match="no kline file given"):
        read_klines([])


@given(st.binary(max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_no_bytes_whatever_raise_anything_else(tmp_path: Path, content: bytes) -> None:
    for ending in klinefiles.SUFFIXES:
        with pytest.raises(BadInput):
            read_klines([save(tmp_path / f"X-1m{ending}", content)])


# --- the history on disk -------------------------------------------------------------------------


def table_of(lines: list[list[str]]) -> KlineTable:
    cells = [
        [float(cell) if at not in (0, 6) else int(cell) for at, cell in enumerate(line)]
        for line in lines
    ]
    return klinefiles.read_rows(cells, "rows", symbol="X", interval="1m")


def history(folder: Path, **bounds: int) -> KlineTable:
    return klinefiles.read_history(folder, symbol="X", interval="1m", **bounds)


def test_months_hold_the_columns_of_the_contract(tmp_path: Path) -> None:
    table = table_of(rows(3, start=klinefiles.month_bounds("2021-05")[1] - 2 * MINUTE))
    written = klinefiles.add_klines(tmp_path, table)
    assert [path.name for path in written] == ["2021-05.parquet", "2021-06.parquet"]
    assert klinefiles.kline_months(tmp_path) == ["2021-05", "2021-06"]
    found = pq.read_table(written[0])
    assert found.column_names == ["open_time_ms", *KLINE_COLUMNS, "close_time_ms"]
    assert found.schema.field("open_time_ms").type == pa.int64()
    assert found["close_time_ms"].to_pylist() == [
        time_ms + MINUTE - 1 for time_ms in found["open_time_ms"].to_pylist()
    ]
    assert pq.ParquetFile(written[0]).metadata.row_group(0).column(0).compression == "ZSTD"


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(1, 60), st.floats(1, 9)), max_size=5))
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None
)
def test_added_candles_are_all_there_and_the_latest_ones_stay(
    tmp_path: Path, pieces: list[tuple[int, int, float]]
) -> None:
    folder = tmp_path / str(time.monotonic_ns())
    start = klinefiles.month_bounds("2021-05")[1] - 100 * MINUTE
    lines = rows(300, start=start)
    wanted: dict[int, float] = {}
    for first, count, volume in pieces:
        piece = [[*line[:5], repr(volume), *line[6:]] for line in lines[first : first + count]]
        wanted |= {int(line[0]): volume for line in piece}
        klinefiles.add_klines(folder, table_of(piece))
        assert klinefiles.add_klines(folder, table_of(piece)) == []  # once more changes nothing
    found = history(folder)
    assert dict(zip(found.open_time_ms.tolist(), found.column("volume").tolist(), strict=True)) == (
        dict(sorted(wanted.items()))
    )
    part = history(folder, start_ms=start + 50 * MINUTE, end_ms=start + 120 * MINUTE)
    assert part.open_time_ms.tolist() == [
        time_ms
        for time_ms in sorted(wanted)
        if start + 50 * MINUTE <= time_ms < start + 120 * MINUTE
    ]


def test_a_history_that_is_not_there_has_no_rows(tmp_path: Path) -> None:
    assert len(history(tmp_path / "none")) == 0


def test_values_survive_the_disk_bit_for_bit(tmp_path: Path) -> None:
    values = np.array([0.1, 1e-300, 1e300, np.nextafter(1, 2), np.nan, -0.0])
    path = tmp_path / "any.parquet"
    times = np.arange(6, dtype=np.int64)
    klinefiles.write_columns(path, {"t": times, "x": values[::-1]}, {"note": "ü"})
    found = klinefiles.read_columns(path)
    assert found["t"].tolist() == times.tolist()
    assert found["x"].tobytes() == values[::-1].tobytes()
    assert klinefiles.read_metadata(path) == {"note": "ü"}
    with pytest.raises(BadInput, match="no column y"):
        klinefiles.read_columns(path, ["t", "y"])


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = save(tmp_path / "file", b"old")
    with pytest.raises(KeyboardInterrupt), klinefiles.replacing(path) as unfinished:
        unfinished.write_bytes(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_cannot_be_written_is_one_clear_failure(tmp_path: Path) -> None:
    save(tmp_path / "file", b"")
    with (
        pytest.raises(Failure, match="cannot be written"),
        klinefiles.replacing(tmp_path / "file" / "x.parquet"),
    ):
        pass


def test_kill_9_in_the_middle_of_a_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = save(tmp_path / "file", b"old")
    # it sleeps until it is killed
    program = (
        "import sys, time; from pathlib import Path; from shared import klinefiles\n"
        "with klinefiles.replacing(Path(sys.argv[1])) as unfinished:\n"
        "    unfinished.write_bytes(b'half'); print('writing', flush=True); time.sleep(60)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, cwd=Path.cwd()
    )
    assert child.stdout is not None
    with child.stdout:
        assert child.stdout.readline() == b"writing\n"
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2
    with klinefiles.replacing(path) as unfinished:  # the next write takes the litter away
        unfinished.write_bytes(b"new")
    assert path.read_bytes() == b"new"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_reading_and_writing_need_no_pandas(tmp_path: Path) -> None:
    path = save(tmp_path / "X-1m.csv", text(rows()))
    program = (
        "import sys; from pathlib import Path; from shared import klinefiles as k\n"
        "assert 'pyarrow' not in sys.modules\n"
        "[t] = k.read_klines([sys.argv[1]])\n"
        "k.add_klines(Path(sys.argv[2]), t)\n"
        "assert len(k.read_history(Path(sys.argv[2]), symbol='X', interval='1m')) == 5\n"
        "assert 'pandas' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program, path, tmp_path / "X-1m-klines"], check=True)


# --- rows of REST --------------------------------------------------------------------------------


def test_rest_rows_are_candles_and_garbage_is_refused() -> None:
    check(table_of(rows()), rows())
    assert len(klinefiles.read_rows([], "reply", symbol="X", interval="1m")) == 0
    for garbage in ([["x"]], [[1, 2]], [{}], [None], [[START, "a", "b", "c", "d", "e"] * 2]):
        with pytest.raises(BadInput, match=r"^reply: "):
            klinefiles.read_rows(garbage, "reply", symbol="X", interval="1m")  # type: ignore[arg-type]


def test_candles_off_the_raster_are_left_out_of_rest_rows() -> None:
    lines = shifted(rows(4), 1, 2, 14_789)
    check(table_of(lines), [lines[0], *lines[2:]])
    assert len(table_of(shifted(rows(2), 0, 2, 5))) == 0
