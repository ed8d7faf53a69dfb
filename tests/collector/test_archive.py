"""The archive: rows by month, revisions in place, a ledger that only grows."""

import json
from pathlib import Path

import pytest

from collector.archive import Archive
from collector.candles import Remark
from shared.errors import Failure
from shared.events import Kline, Level
from shared.klinefiles import kline_months, klines_folder, read_history
from tests.collector.rig import M, truth


def flushed(archive: Archive) -> None:
    archive.flush(*archive.take())


def test_rows_lie_in_monthly_files_and_gap_markers_in_none(tmp_path: Path) -> None:
    rows = truth(count=5)
    marker = Kline.gap_marker("BTCUSDT", "1m", rows[2].open_time_ms, rows[2].open_time_ms + M - 1)
    archive = Archive(tmp_path, "BTCUSDT", "1m", futures=False)
    archive.add([*rows[:2], marker, *rows[3:]])
    flushed(archive)
    folder = klines_folder(tmp_path, "BTCUSDT", "1m")
    assert kline_months(folder) == ["2023-03"]
    table = read_history(folder, symbol="BTCUSDT", interval="1m")
    assert list(table.open_time_ms) == [r.open_time_ms for r in (*rows[:2], *rows[3:])]
    assert [tuple(v) for v in table.values] == [r.row() for r in (*rows[:2], *rows[3:])]
    assert archive.newest_ms() == rows[4].open_time_ms


def test_a_revised_row_replaces_the_old_one_and_stands_in_the_ledger(tmp_path: Path) -> None:
    rows = truth(count=3)
    archive = Archive(tmp_path, "BTCUSDT", "1m", futures=False)
    archive.add(rows)
    flushed(archive)
    other = truth("ETHUSDT", count=3)[1]
    for number in (1, 2):
        remark = Remark(
            level=Level.WARNING, code="revision", text=f"no. {number}",
            open_time_ms=other.open_time_ms, kline=other, was=rows[1] if number == 1 else other,
        )  # fmt: skip
        archive.tell([remark])
        flushed(archive)
    folder = klines_folder(tmp_path, "BTCUSDT", "1m")
    table = read_history(folder, symbol="BTCUSDT", interval="1m")
    assert tuple(table.values[1]) == other.row()
    assert tuple(table.values[2]) == rows[2].row()
    lines = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == ["no. 1", "no. 2"]
    assert lines[0]["row"] == list(other.row())
    assert [line["was"] for line in lines] == [list(rows[1].row()), list(other.row())]


def test_what_could_not_be_written_is_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    archive = Archive(tmp_path / "file", "BTCUSDT", "1m", futures=False)
    archive.add(truth(count=2))
    taken = archive.take()
    with pytest.raises((Failure, OSError)):
        archive.flush(*taken)
    archive.give_back(*taken)
    assert len(archive.take()[0]) == 2


def test_what_is_kept_for_a_folder_that_never_comes_back_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collector.archive._MOST_ROWS", 3)
    monkeypatch.setattr("collector.archive._MOST_LINES", 2)
    archive = Archive(tmp_path, "BTCUSDT", "1m", futures=False)
    rows = truth(count=5)
    archive.add(rows[3:])
    archive.give_back(rows[:3], ["1", "2", "3"])
    assert archive.take() == (rows[2:], ["2", "3"]), "the newest stay"


def test_futures_have_a_folder_of_their_own(tmp_path: Path) -> None:
    archive = Archive(tmp_path, "BTCUSDT", "1m", futures=True)
    archive.add(truth(count=2))
    flushed(archive)
    assert [p.name for p in tmp_path.iterdir()] == ["BTCUSDT-1m-futures-klines"]
