"""`python -m simulator` as a process: start, stop, restart, and what it says to bad options."""

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def simulator(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """(process, its address once it is ready)."""
    command = [sys.executable, "-m", "simulator", "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = json.loads(process.stderr.readline())
        yield process, line["event"].split(" at ")[1]
    finally:
        process.kill()
        process.communicate()


def ask(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=10) as reply:  # noqa: S310
        answer: dict[str, Any] = json.load(reply)
        return answer


def test_sigterm_ends_it_cleanly_and_soon() -> None:
    with simulator() as (process, address):
        assert ask(f"{address}/api/v3/ping") == {}
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0
        assert time.monotonic() - start < 5


def test_after_a_kill_it_goes_on_where_it_stood(tmp_path: Path) -> None:
    options = ("--speed", "manual", "--history", "50", "--workdir", str(tmp_path))
    with simulator(*options) as (process, address):
        before = ask(f"{address}/control/advance", {"candles": 37})
        rows = f"{address}/api/v3/klines?symbol=BTCUSDT&interval=1m&limit=20"
        seen = ask(rows)
        process.kill()
        process.wait()
    with simulator(*options) as (_, address):
        after = ask(f"{address}/control")
        assert after["position_ms"] == before["position_ms"]
        rows = f"{address}/api/v3/klines?symbol=BTCUSDT&interval=1m&limit=20"
        assert ask(rows) == seen


@pytest.mark.parametrize(
    ("options", "code", "part"),
    [
        (["--speed", "fast"], 2, "not a speed"),
        (["--interval", "1w"], 2, "'1w' is not supported"),
        (["--data", "no/such/file.csv"], 1, "no such file"),
        (["--start-at", "5"], 2, "outside the data"),
    ],
)
def test_bad_options_end_in_one_clear_line(options: list[str], code: int, part: str) -> None:
    command = [sys.executable, "-m", "simulator", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code
    assert part in done.stderr
    assert "Traceback" not in done.stderr


def test_a_config_names_symbols_and_interval(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(
        '{"symbols": ["ETHUSDT", "XRPUSDT"], "interval": "15m"} // the rest: defaults'
    )
    with simulator("-c", str(config), "--speed", "manual") as (_, address):
        assert ask(f"{address}/control")["symbols"] == {"ETHUSDT": "15m", "XRPUSDT": "15m"}


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        command = [sys.executable, "-m", "simulator", "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert str(port) in done.stderr
    assert "Traceback" not in done.stderr
