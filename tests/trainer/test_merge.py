"""One raster from several sources, on disk whole or not at all."""

import csv
import json
import math
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import klinefiles
from shared.errors import BadInput, Failure
from shared.klines import DEPTH_COLUMNS, KLINE_COLUMNS, KlineTable
from trainer import rasters
from trainer.cli import main

MINUTE = 60_000
START = 1_621_123_200_000  # 2021-05-16T00:00Z


def klines(minutes: list[int], *, start: int = START, symbol: str = "BTCUSDT") -> KlineTable:
    """Candles at these minutes; every number tells its minute and column."""
    at = np.array(minutes, dtype=np.int64)
    values = 100.0 + at[:, None] + np.array([0.1, 0.9, 0.05, 0.3, 5, 6, 7, 8, 9])
    return KlineTable(symbol=symbol, interval="1m", open_time_ms=start + at * MINUTE, values=values)


def stored(folder: Path, table: KlineTable) -> None:
    klinefiles.add_klines(klinefiles.klines_folder(folder, table.symbol, "1m"), table)


def run(*arguments: Any, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The JSON line of a command that succeeds."""
    code = main([str(argument) for argument in arguments] + ["--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    result = json.loads(captured.out.splitlines()[-1])
    assert isinstance(result, dict)
    return result


@pytest.fixture(autouse=True)
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ITB_DATA_FOLDER", str(tmp_path))
    return tmp_path


@given(st.sets(st.integers(0, 90), min_size=1), st.sets(st.integers(-20, 120)))
@settings(max_examples=60)
def test_every_raster_row_is_there_and_only_what_was_given_is_in_it(
    spot: set[int], other: set[int]
) -> None:
    futures = klines(sorted(other))
    book = (futures.open_time_ms, np.repeat(futures.values[:, :1], 11, axis=1))
    raster = rasters.join(klines(sorted(spot)), futures, book)
    minutes = list(range(min(spot), max(spot) + 1))
    assert raster.open_time_ms.tolist() == [START + minute * MINUTE for minute in minutes]
    assert raster.futur is not None
    assert raster.depth is not None
    for at, minute in enumerate(minutes):
        truth = klines([minute]).values[0]
        nothing = [math.nan] * 9
        np.testing.assert_array_equal(raster.kline[at], truth if minute in spot else nothing)
        np.testing.assert_array_equal(raster.futur[at], truth if minute in other else nothing)
        np.testing.assert_array_equal(
            raster.depth[at], [truth[0] if minute in other else math.nan] * 11
        )
    missing = {(at - START) // MINUTE + i for at, rows in raster.gaps() for i in range(rows)}
    assert missing == set(minutes) - spot


def test_merge_writes_months_of_all_sources_and_reports_the_gaps(
    data_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = klinefiles.month_bounds("2021-05")[1] - 10 * MINUTE
    stored(data_folder, klines([0, 1, 2, 7, 8, 12, 14], start=start))
    futures = klines([1, 12], start=start)
    klinefiles.add_klines(rasters.futures_folder(data_folder, "BTCUSDT", "1m"), futures)
    book = {"open_time_ms": start + MINUTE * np.array([2, 13], dtype=np.int64)}
    book |= {name: np.array([1.0, 2.0]) for name in DEPTH_COLUMNS}
    depth = klinefiles.depth_folder(data_folder, "BTCUSDT", "1m")
    klinefiles.write_columns(depth / "2021-05.parquet", {k: v[:1] for k, v in book.items()})
    klinefiles.write_columns(depth / "2021-06.parquet", {k: v[1:] for k, v in book.items()})

    result = run("merge", capsys=capsys)

    folder = data_folder / "BTCUSDT-1m"
    assert sorted(file.name for file in folder.iterdir()) == ["2021-05.parquet", "2021-06.parquet"]
    may, june = (pq.read_table(folder / f"2021-{month}.parquet") for month in ("05", "06"))
    assert may.column_names == [
        "open_time_ms",
        *KLINE_COLUMNS,
        *(f"f_{name}" for name in KLINE_COLUMNS),
        *DEPTH_COLUMNS,
    ]
    assert (may.num_rows, june.num_rows) == (10, 5)
    whole = rasters.read_merged(data_folder, "BTCUSDT", "1m")
    assert np.flatnonzero(~np.isnan(whole.kline[:, 3])).tolist() == [0, 1, 2, 7, 8, 12, 14]
    assert whole.futur is not None
    assert np.flatnonzero(~np.isnan(whole.futur[:, 3])).tolist() == [1, 12]
    assert whole.depth is not None
    assert np.flatnonzero(~np.isnan(whole.depth[:, 10])).tolist() == [2, 13]
    assert result["rows"] == 15
    assert result["missing"] == 8
    output = result["outputs"][0]
    assert output["gaps"] == 3
    assert output["longest_gaps"][0] == {"from": klinefiles.iso(start + 3 * MINUTE), "rows": 4}
    report = json.loads((data_folder / "BTCUSDT-1m-gaps.json").read_text())
    assert output["gap_report"] == str(data_folder / "BTCUSDT-1m-gaps.json")

    def at(minute: int) -> str:
        return klinefiles.iso(start + minute * MINUTE)

    assert report["sources"] == {
        "klines": {
            "missing": 8,
            "gaps": [
                {"from": at(3), "rows": 4},
                {"from": at(9), "rows": 3},
                {"from": at(13), "rows": 1},
            ],
        },
        "futures": {
            "missing": 13,
            "gaps": [
                {"from": at(0), "rows": 1},
                {"from": at(2), "rows": 10},
                {"from": at(13), "rows": 2},
            ],
        },
        "depth": {
            "missing": 13,
            "gaps": [
                {"from": at(0), "rows": 2},
                {"from": at(3), "rows": 10},
                {"from": at(14), "rows": 1},
            ],
        },
    }
    assert output["sources"]["depth"] == {"gaps": 3, "missing": 13}
    assert (output["futures"], output["depth"]) == (True, True)
    assert output["wrote"] == [str(folder)]


def test_bare_files_are_merged_and_written_as_one_csv_too(
    market_data: Path, data_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted((market_data / "vision").glob("BTCUSDT-1m-2021-05-1*.zip"))
    futures = market_data / "fixtures" / "BTCUSDT-PERP-1m-2023-07_08.parquet"
    result = run(
        "merge", "--klines", files[0], files[2], "--futures", futures, "--csv", capsys=capsys
    )
    assert result["rows"] == 3 * 1440
    assert result["missing"] == 1440  # the 17th was not given
    with (data_folder / "BTCUSDT-1m.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    whole = rasters.read_merged(data_folder, "BTCUSDT", "1m")
    assert [int(line["open_time_ms"]) for line in lines] == whole.open_time_ms.tolist()
    for at, name in enumerate(KLINE_COLUMNS):
        cells = [float(line[name] or "nan") for line in lines]
        np.testing.assert_array_equal(cells, whole.kline[:, at])
    assert {line["f_close"] for line in lines} == {""}  # of another year


def test_merging_again_leaves_nothing_of_the_older_run(
    data_folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    stored(data_folder, klines([0, 1], start=klinefiles.month_bounds("2021-05")[1] - MINUTE))
    run("merge", capsys=capsys)
    file = tmp_path / "BTCUSDT-1m-x.parquet"
    table = klines([3, 4])
    columns = {"open_time": table.open_time_ms}
    columns |= {name: table.column(name) for name in KLINE_COLUMNS}
    klinefiles.write_columns(file, columns)
    run("merge", "--klines", file, capsys=capsys)
    assert rasters.read_merged(data_folder, "BTCUSDT", "1m").open_time_ms.tolist() == [
        START + 3 * MINUTE,
        START + 4 * MINUTE,
    ]


def test_other_symbols_and_funding_stand_beside_the_candles(
    data_folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    hour = 60
    stored(data_folder, klines(list(range(20 * hour))))
    stored(data_folder, klines(list(range(5, 9)), symbol="ETHUSDT"))
    settled = [2 * hour, 10 * hour]
    funding = {
        "funding_time_ms": START + MINUTE * np.array(settled, dtype=np.int64),
        "funding_rate": np.array([0.1, 0.3]),
        "mark_price": np.array([1.0, 2.0]),
    }
    klinefiles.write_columns(data_folder / "BTCUSDT-funding" / "2021-05.parquet", funding)
    file = tmp_path / "SOLUSDT-1m.parquet"
    sol = klines([6, 7])
    columns = {"open_time": sol.open_time_ms}
    klinefiles.write_columns(file, columns | {name: sol.column(name) for name in KLINE_COLUMNS})
    sources = ["--source", "eth=ETHUSDT", "--source", f"sol={file}"]

    result = run("merge", *sources, capsys=capsys)

    extra = rasters.read_merged(data_folder, "BTCUSDT", "1m").extra
    assert list(extra) == [
        *(f"eth_{name}" for name in KLINE_COLUMNS),
        *(f"sol_{name}" for name in KLINE_COLUMNS),
        "funding_rate",
    ]
    for minute in range(20 * hour):
        truth = 100.3 + minute if 5 <= minute < 9 else math.nan
        np.testing.assert_equal(extra["eth_close"][minute], truth)
        # The last settlement up to this minute, for 8 hours.
        rate = math.nan
        for at, value in zip(settled, (0.1, 0.3), strict=True):
            if at <= minute <= at + 8 * hour:
                rate = value
        np.testing.assert_equal(extra["funding_rate"][minute], rate)
    assert np.flatnonzero(~np.isnan(extra["sol_open"])).tolist() == [6, 7]
    assert list(result["outputs"][0]["sources"]) == ["klines", "eth", "sol", "funding_rate"]
    assert result["outputs"][0]["sources"]["eth"] == {"gaps": 2, "missing": 20 * hour - 4}


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("eth", "give PREFIX=SYMBOL"),
        ("f=ETHUSDT", "prefix must be"),
        ("e_h=ETHUSDT", "prefix must be"),
        ("eth=NOPEUSDT", r"no candles there for the source eth_; .*download --symbol NOPEUSDT"),
    ],
)
def test_a_source_that_cannot_be_is_one_line(
    source: str, text: str, data_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored(data_folder, klines([0, 1]))
    assert main(["merge", "--source", source]) in (1, 2)
    assert re.search(text, capsys.readouterr().err)


_KILLED = """
import os, signal, sys
from pathlib import Path
from trainer import cli, rasters

step, count = sys.argv[1], int(sys.argv[2])
owner = rasters if step == "write_fast" else Path
real = getattr(owner, step)
done = 0

def cut(*arguments, **options):
    global done
    if done == count:
        if step == "write_fast":
            arguments[0].write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    done += 1
    return real(*arguments, **options)

setattr(owner, step, cut)
sys.exit(cli.main(["merge"]))
"""


@pytest.mark.parametrize(("step", "count"), [("write_fast", 1), ("rename", 0), ("rename", 1)])
def test_kill_9_leaves_the_old_or_the_new_rows_and_a_rerun_goes_on(
    step: str, count: int, data_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = klinefiles.month_bounds("2021-05")[1] - 5 * MINUTE
    stored(data_folder, klines(list(range(10)), start=start))
    run("merge", capsys=capsys)
    stored(data_folder, klines(list(range(12)), start=start))
    done = subprocess.run([sys.executable, "-c", _KILLED, step, str(count)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(rasters.read_merged(data_folder, "BTCUSDT", "1m")) == 10
    run("merge", capsys=capsys)
    assert len(rasters.read_merged(data_folder, "BTCUSDT", "1m")) == 12
    assert not list(data_folder.rglob(".*"))


class Killed(BaseException):
    """Stands for a signal: nothing catches it."""


@pytest.mark.parametrize("command", ["merge", "features", "labels"])
def test_a_command_cut_off_in_its_output_leaves_the_older_output(
    command: str,
    data_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = klinefiles.month_bounds("2021-05")[1] - 5 * MINUTE
    stored(data_folder, klines(list(range(10)), start=start))
    run("merge", capsys=capsys)
    run(command, capsys=capsys)
    before = {file: file.read_bytes() for file in data_folder.rglob("*") if file.is_file()}
    stored(data_folder, klines(list(range(12)), start=start))
    before |= {
        file: file.read_bytes()
        for file in klinefiles.klines_folder(data_folder, "BTCUSDT", "1m").iterdir()
    }
    real = rasters.write_fast
    written = 0

    def cut(path: Path, *rest: Any) -> None:
        nonlocal written
        real(path, *rest)
        written += 1
        if written == 2:
            path.write_bytes(b"half")
            raise Killed

    monkeypatch.setattr(rasters, "write_fast", cut)
    other = ["--features", "close_area_5"] if command == "features" else []  # else all is kept
    with pytest.raises(Killed):
        main([command, *other])
    after = {file: file.read_bytes() for file in data_folder.rglob("*") if file.is_file()}
    assert after == before


@pytest.mark.parametrize("command", ["features", "labels"])
def test_one_file_of_output_is_whole_or_absent(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = klines(list(range(10)))
    file = tmp_path / "BTCUSDT-1m.parquet"
    columns = {"open_time": table.open_time_ms}
    columns |= {name: table.column(name) for name in KLINE_COLUMNS}
    klinefiles.write_columns(file, columns)
    real = klinefiles.arrow_table

    def cut(*arguments: Any) -> Any:
        real(*arguments)
        raise Killed

    monkeypatch.setattr(klinefiles, "arrow_table", cut)
    with pytest.raises(Killed):
        main([command, "--klines", str(file), "--out", str(tmp_path / "out.parquet")])
    assert [file.name for file in tmp_path.iterdir()] == ["BTCUSDT-1m.parquet"]


def test_what_a_killed_writer_moved_aside_is_taken_back(
    data_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored(data_folder, klines([0, 1, 2]))
    run("merge", capsys=capsys)
    nobody = 2**22 + 1  # above every process id
    folder = data_folder / "BTCUSDT-1m"
    folder.rename(data_folder / f".BTCUSDT-1m.{nobody}.old")
    (data_folder / f".BTCUSDT-1m.{nobody}.tmp").mkdir()
    assert len(rasters.read_merged(data_folder, "BTCUSDT", "1m")) == 3
    assert not list(data_folder.glob(".*"))


def test_nothing_to_merge_and_nothing_merged_say_what_to_run(data_folder: Path) -> None:
    with pytest.raises(Failure, match=r"no merged data; run .*download.*merge"):
        rasters.read_merged(data_folder, "BTCUSDT", "1m")
    assert main(["merge"]) == 1


def test_months_of_different_columns_are_refused(data_folder: Path) -> None:
    folder = data_folder / "BTCUSDT-1m"
    for month, name in (("2021-05", "close"), ("2021-06", "x")):
        times = np.array([klinefiles.month_bounds(month)[0]], dtype=np.int64)
        columns = {"open_time_ms": times, name: np.array([1.0])}
        klinefiles.write_columns(folder / f"{month}.parquet", columns)
    with pytest.raises(BadInput, match="different columns"):
        rasters.read_merged(data_folder, "BTCUSDT", "1m")
