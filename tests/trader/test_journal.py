"""The journal file: whatever a crash leaves of it, and one process at a time."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import Failure, Unavailable
from shared.events import Order
from trader.journal import Journal, Taken


def line(number: int, **changes: Any) -> Order:
    values: dict[str, Any] = {
        "signal_id": f"BTCUSDT-1m-{number}", "symbol": "BTCUSDT", "interval": "1m",
        "open_time_ms": number, "time_ms": 1, "state": "INTENT", "side": "BUY", "quantity": "1.5",
        "price": "60518.3", "reason": "ünïcode\n", "score": 0.1 + number, "release": "r",
        "mode": "paper", "client_id": f"k1-{number}",
        "fills": {"7": b'{"price":"1.10"}'},
    }  # fmt: skip
    return Order(**(values | changes))


def written(path: Path, *lines: Order) -> list[Order]:
    with Journal.open(path) as journal:
        list(journal.lines())
        found = journal.append(lines)
        journal.sync()
        return found


def read(path: Path) -> tuple[list[Order], Journal]:
    with Journal.open(path) as journal:
        return list(journal.lines()), journal


def test_what_is_written_is_read_bit_for_bit_and_numbered_on(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "paper.journal"
    one = written(path, line(1), line(2, score=None, fills={}))
    two = written(path, line(3))
    found, journal = read(path)
    assert found == [*one, *two]
    assert [(o.journal, o.number) for o in found] == [(journal.id, n) for n in (1, 2, 3)]
    assert (journal.found.cut, journal.found.damaged, journal.last) == (0, 0, 3)
    assert list(journal.since("BTCUSDT", 1)) == found[1:]
    assert path.stat().st_mode & 0o077 == 0


def test_cut_anywhere_it_keeps_every_whole_line_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "j"
    lines = written(path, line(1), line(2), line(3))
    data = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == 10]
    for size in range(len(data) + 1):
        path.write_bytes(data[:size])
        found, _journal = read(path)
        whole = sum(1 for end in ends[1:] if end <= size)
        assert found == (lines[:whole] if size >= ends[0] else [])
        more = written(path, line(9))
        assert read(path)[0] == [*found, *more]


@settings(deadline=None)  # of a disk that others use, too
@given(st.binary(min_size=1, max_size=40))
def test_garbage_at_the_end_is_removed_and_told(tmp_path_factory: Any, garbage: bytes) -> None:
    path = tmp_path_factory.mktemp("j") / "j"
    lines = written(path, line(1))
    with path.open("ab") as file:
        file.write(garbage)
    found, journal = read(path)
    assert found == lines
    assert journal.found.cut == len(garbage)
    assert journal.found.damaged == 0


def test_a_damaged_line_in_the_middle_is_left_out_and_told(tmp_path: Path) -> None:
    path = tmp_path / "j"
    lines = written(path, line(1), line(2), line(3))
    data = bytearray(path.read_bytes())
    data[data.index(b"BTCUSDT-1m-2") + 3] ^= 1
    path.write_bytes(bytes(data))
    found, journal = read(path)
    assert found == [lines[0], lines[2]]
    assert (journal.found.cut, journal.found.damaged) == (0, 1)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_text("my notes\nof today\n")
    with pytest.raises(Failure, match="does not begin as a journal does"):
        Journal.open(path)
    assert path.read_text().startswith("my notes")


def test_two_processes_do_not_share_it(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "j"), pytest.raises(Taken):
        Journal.open(tmp_path / "j")
    Journal.open(tmp_path / "j").close()


def test_on_a_full_disk_nothing_of_a_batch_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "j"
    lines = written(path, line(1))
    real = os.write
    with Journal.open(path) as journal:
        assert list(journal.lines()) == lines
        monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[: len(data) // 2]))
        with pytest.raises(Unavailable, match="cannot be written"):
            journal.append([line(2), line(3)])
        monkeypatch.undo()
    assert read(path)[0] == lines


def test_lines_of_another_file_keep_their_identity(tmp_path: Path) -> None:
    theirs = written(tmp_path / "theirs", line(1), line(2))
    with Journal.open(tmp_path / "ours") as journal:
        list(journal.lines())
        assert not journal.holds(theirs[0])
        assert journal.append(theirs[:1]) == theirs[:1]
        assert journal.holds(theirs[0])
        assert not journal.holds(theirs[1])
        own = journal.append([line(3)])
        assert (own[0].journal, own[0].number) == (journal.id, 1)
    found, journal = read(tmp_path / "ours")
    assert found == [theirs[0], *own]
    assert journal.holds(theirs[0])
    assert list(journal.since("BTCUSDT", 0)) == own


def test_nothing_is_durable_in_a_journal_that_was_deleted_under_the_trader(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal.open(path) as journal:
        journal.sync()
        path.unlink()
        with pytest.raises(Failure, match="was deleted while in use"):
            journal.sync()
        with pytest.raises(Failure, match="was deleted while in use"):
            list(journal.lines())


def test_what_the_bus_had_is_known_after_a_restart_and_is_no_line(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal.open(path) as journal:
        list(journal.lines())
        journal.append([line(1), line(2)])
        journal.bus_has({"BTCUSDT": 1}, "one")
        journal.bus_has({"BTCUSDT": 1}, "one", lasting=True)
        journal.bus_has({"BTCUSDT": 2}, "two")
    found, journal = read(path)
    assert len(found) == 2
    assert (journal.found.cut, journal.found.damaged) == (0, 0)
    assert (journal.on_bus.acked, journal.on_bus.lasting) == ({"BTCUSDT": 2}, {"BTCUSDT": 1})
    assert journal.on_bus.server == "two"


def test_what_a_server_had_is_not_said_of_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal.open(path) as journal:
        list(journal.lines())
        journal.bus_has({"BTCUSDT": 5}, "one", lasting=True)
        journal.bus_has({"BTCUSDT": 5}, "one")
        journal.bus_has({"ETHUSDT": 6}, "two")
        journal.bus_has({"SOLUSDT": 7}, "two")
    _found, journal = read(path)
    assert journal.on_bus.acked == {"ETHUSDT": 6, "SOLUSDT": 7}
    assert (journal.on_bus.lasting, journal.on_bus.server) == ({"BTCUSDT": 5}, "two")
