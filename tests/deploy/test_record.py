"""`itb record` over a record that the auditor wrote."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from deploy.cli import main
from shared import codec
from shared.events import Meta
from shared.record import read_file, verify
from shared.streams import RECORD, SIGNAL
from tests.auditor.test_recorder import START, H, days, put, record, signal
from tests.valkey import Server

Itb = Callable[..., tuple[int, str, str]]


@pytest.fixture
def itb(valkey: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Itb:
    """A record of two files and a rest on the bus, and the command over it."""
    asyncio.run(put(valkey.url, range(60)))
    asyncio.run(record(valkey.url, tmp_path))
    config = tmp_path / "config.json"
    keys = {"symbol": "TESTUSDT", "interval": "1h", "data_folder": str(tmp_path / "data")}
    config.write_text(json.dumps(keys))

    def run(*arguments: object) -> tuple[int, str, str]:
        line = ["record", "-c", str(config), "--redis-url", valkey.url, *map(str, arguments)]
        code = main(line)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def test_the_record_is_files_and_bus_together(itb: Itb) -> None:
    code, out, err = itb()
    assert (code, err) == (0, "")
    assert "TESTUSDT 1h" in out
    assert " 60 " in out
    code, out, _ = itb("--json")
    (found,) = json.loads(out)
    assert (found["records"], found["good"], found["problem"]) == (60, True, "")
    assert found["first"] == "2024-10-04T00:00:00Z"


def test_a_chain_that_holds_is_said_to(itb: Itb) -> None:
    code, out, _ = itb("--verify")
    assert code == 0
    assert "the chain holds from its beginning to" in out
    assert "60 of them stand on the bus as recorded" in out


def test_an_exported_record_is_verified_without_a_bus(
    itb: Itb, tmp_path: Path, valkey: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "whole.txt"
    assert itb("--export", file)[0] == 0
    assert verify(read_file(file)).records == 60
    valkey.stop()
    assert main(["record", "--verify", str(file)]) == 0
    assert "the chain holds from its beginning" in capsys.readouterr().out
    lines = file.read_text().splitlines()
    lines[30] = lines[30].replace('"side":"', '"side":"X')
    file.write_text("\n".join(lines) + "\n")
    assert main(["record", "--verify", str(file)]) == 1
    assert "BROKEN: record 31 " in capsys.readouterr().out


def test_a_changed_file_breaks_the_chain(itb: Itb, tmp_path: Path) -> None:
    first = days(tmp_path)[0]
    lines = first.read_text().splitlines()
    del lines[7]
    first.write_text("\n".join(lines) + "\n")
    code, out, _ = itb("--verify")
    assert code == 1
    assert "BROKEN: record 8 " in out


def test_a_signal_that_was_changed_afterwards_is_named(itb: Itb, valkey: Server) -> None:
    key = SIGNAL.key("TESTUSDT", "1h")
    with redis.Redis(port=valkey.port) as client:
        entries = client.xrange(key)
        client.delete(key)
        for hour, (entry_id, fields) in enumerate(entries):  # type: ignore[arg-type]  # a list
            if hour == 50:
                event = signal(hour, seed=2)
                fields[b"data"] = codec.encode(event, Meta(received_us=1, published_us=1))
            client.xadd(key, fields, id=entry_id)
    code, out, _ = itb("--verify")
    assert code == 1
    assert f"first TESTUSDT-1h-{START + 50 * H}" in out


def test_without_an_auditor_it_says_so(
    valkey: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["record", "--redis-url", valkey.url]) == 0
    assert "nothing is recorded yet; `python -m auditor` does" in capsys.readouterr().out


def test_a_record_that_cannot_be_read_is_one_line(itb: Itb, valkey: Server) -> None:
    with redis.Redis(port=valkey.port) as client:
        client.xadd(RECORD.key("TESTUSDT", "1h"), {"data": b"junk"}, id=f"{START + 60 * H}-0")
    code, out, err = itb("--verify")
    assert (code, out) == (1, "")
    assert "cannot be read" in err
    assert err.count("\n") == 1
