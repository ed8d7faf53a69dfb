"""Bad files end in one clear line, whichever command reads them; a full disk leaves no litter."""

import gzip
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shared import klinefiles
from shared.klines import KlineTable
from tests.releases import market
from trainer import rasters
from trainer.cli import main

MINUTE = 60_000
START = 1_621_123_200_000  # 2021-05-16T00:00Z
HEADER = "open_time,open,high,low,close,volume"
COMMANDS = ("merge", "features", "labels", "train", "rolling", "leaks", "tune")
Lines = list[list[str]]


def lines(count: int = 40) -> Lines:
    return [[str(START + at * MINUTE), "100", "101", "99", "100.5", "3"] for at in range(count)]


def changed(row: int, column: int, cell: str) -> Lines:
    found = lines()
    found[row][column] = cell
    return found


def far_away() -> Lines:
    return [*lines(1440), [str(START + 10 * 365 * 1440 * MINUTE), "100", "101", "99", "100", "3"]]


def far_before() -> Lines:
    return [[str(START - 3 * 365 * 1440 * MINUTE), "100", "101", "99", "100", "3"], *lines(1440)]


def scattered() -> Lines:
    found = lines(20)
    for at, line in enumerate(found):
        line[0] = str(START + (at // 2 * 20_000 + at % 2) * MINUTE)
    return found


# what: (lines, header, what the line must say). A row is counted from 1, the header included.
FAULTS: dict[str, tuple[Callable[[], Lines], str, str]] = {
    "missing columns": (
        lambda: [line[:4] for line in lines()],
        "open_time,open,high,close",
        "no column low, volume",
    ),
    "duplicate times": (
        lambda: [*lines(20), [*lines(20)[-1][:4], "100.7", "3"]],
        HEADER,
        "line 22 (2021-05-16T00:19:00Z): close is 100.7, but 100.5 in ",
    ),
    "unordered times": (
        lambda: [*lines(20)[:5], *lines(20)[6:], lines(20)[5]],
        HEADER,
        "line 21 (2021-05-16T00:05:00Z) is earlier than the row before it",
    ),
    "wrong interval": (
        lambda: lines(200)[::15],
        HEADER,
        "wrong interval: its candles are 900 s apart, not 60 s (1m)",
    ),
    "empty": (list, "", "empty, no candle in it"),
    "header only": (list, HEADER, "empty, no candle in it"),
    "nan price": (lambda: changed(7, 4, "nan"), HEADER, "line 9 (2021-05-16T00:07:00Z): close is"),
    "zero price": (lambda: changed(7, 1, "0"), HEADER, "line 9 (2021-05-16T00:07:00Z): open is 0"),
    "seconds": (
        lambda: [[line[0][:-3], *line[1:]] for line in lines()],
        HEADER,
        "line 2: open time 1621123200 is not in milliseconds or microseconds",
    ),
    "one far away": (
        far_away,
        HEADER,
        "line 1442 (2031-05-14T00:00:00Z): 1 candle (from 2031-05-14T00:00:00Z) stands apart from "
        "the other 1,440 by 5,254,560 missing rows of 1m",
    ),
    "one long before": (
        far_before,
        HEADER,
        "line 2 (2018-05-17T00:00:00Z): 1 candle (from 2018-05-17T00:00:00Z) stands apart",
    ),
    "almost all gaps": (
        scattered,
        HEADER,
        "line 2 (2021-05-16T00:00:00Z): 2 candles (from 2021-05-16T00:00:00Z) stand apart from "
        "the other 18 by 19,998 missing rows of 1m, and of 180,002 rows in all 179,982 would be",
    ),
}


def saved(path: Path, rows: Lines, header: str) -> Path:
    text = "".join(f"{','.join(row)}\n" for row in ([header.split(",")] if header else []) + rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ITB_DATA_FOLDER", str(tmp_path / "data"))
    monkeypatch.setenv("ITB_MODEL_FOLDER", str(tmp_path / "models"))
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_file_is_one_line_with_file_and_row(
    command: str, fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, header, text = FAULTS[fault]
    path = saved(tmp_path / "BTCUSDT-1m.csv", make(), header)
    assert main([command, "--klines", str(path), "--json"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.splitlines()[-1]
    assert last.startswith(f"trainer {command}: {path}: "), captured.err
    assert text in last
    assert "Traceback" not in captured.err
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("ending", ["csv", "csv.gz"])
def test_times_of_two_units_are_read_each_by_its_size_and_a_line_says_where(
    ending: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = lines()
    for row in rows[25:]:
        row[0] += "000"
    path = saved(tmp_path / f"BTCUSDT-1m.{ending}", rows, HEADER)
    table = klinefiles.read_klines([path])[0]
    assert table.open_time_ms.tolist() == [START + at * MINUTE for at in range(40)]
    assert len(caplog.messages) == 1
    assert f"{path}: line 27 (2021-05-16T00:25:00Z)" in caplog.messages[0]
    assert "milliseconds to microseconds" in caplog.messages[0]


def test_a_history_on_disk_with_a_candle_of_another_time_names_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path / "BTCUSDT-1m.csv", lines(1440), HEADER)
    table = klinefiles.read_klines([path])[0]
    folder = klinefiles.klines_folder(tmp_path / "data", "BTCUSDT", "1m")
    klinefiles.add_klines(folder, table)
    lone = KlineTable(
        symbol="BTCUSDT",
        interval="1m",
        open_time_ms=table.open_time_ms[:1] + 10 * 365 * 1440 * MINUTE,
        values=table.values[:1],
    )
    klinefiles.add_klines(folder, lone)
    assert main(["merge"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"trainer merge: {folder}: BTCUSDT 1m: 1 candle (from 2031-05-14T")
    assert not rasters.merged_folder(tmp_path / "data", "BTCUSDT", "1m").exists()


def test_outages_and_short_pieces_are_no_fault(tmp_path: Path) -> None:
    month = lines(1440)
    for row in month[720:]:
        row[0] = str(int(row[0]) + 30 * 1440 * MINUTE)  # two half days a month apart
    path = saved(tmp_path / "BTCUSDT-1m.csv", month, HEADER)
    raster = rasters.join(klinefiles.read_klines([path])[0])
    assert len(raster) == 31 * 1440
    assert raster.gaps() == [(START + 720 * MINUTE, 30 * 1440)]


# --- a full disk ---------------------------------------------------------------------------------

LIMIT = 40_000


def limited() -> None:
    """As a full disk: no file may grow beyond LIMIT bytes; a write then fails (EFBIG)."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))


FULL = {
    "merge": [],
    "features": ["--features", "close_5", "close_15", "close_60"],
    "labels": ["--labels", "high_10", "high_max_60", "--csv"],
    "train": [],
    "rolling": ["--folds", "1", "--train-days", "1", "--backend", "threads"],
}


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=[pytest.mark.slow] if command in ("train", "rolling") else [])
        for command in FULL
    ],
)
def test_a_full_disk_is_one_line_and_leaves_the_old_output_and_nothing_half_written(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ITB_ALGORITHMS", "lc")
    columns = market(5000, 3)
    source = tmp_path / "BTCUSDT-1m.parquet"
    klinefiles.write_columns(source, columns)
    few = {name: column[:4000] for name, column in columns.items()}
    shorter = tmp_path / "BTCUSDT-1m-few.parquet"
    klinefiles.write_columns(shorter, few)
    options = FULL[command]
    assert main([command, "--klines", str(shorter), *options]) == 0
    before = files_of(tmp_path)
    assert before
    done = subprocess.run(
        [sys.executable, "-m", "trainer", command, "--klines", str(source), *options, "--json"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limited,
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    told = [line for line in done.stderr.splitlines() if line.startswith("trainer ")]
    assert len(told) == 1, done.stderr
    assert done.stderr.splitlines()[-1] == told[0]
    assert "cannot be written" in told[0]
    assert "File too large" in told[0]
    assert files_of(tmp_path) == before
    assert not list(tmp_path.rglob(".*.tmp"))
    assert not list(tmp_path.rglob("matrix-*"))


def files_of(folder: Path) -> dict[str, bytes]:
    """What readers see in the data and model folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for name in ("data", "models")
        for path in (folder / name).rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.parts)
    }
