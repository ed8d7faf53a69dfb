"""`python -m simulator` as a process: start, stop, restart, and what it says to bad options."""

import hashlib
import hmac
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
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
        (["--balance", "USDT"], 2, "is no balance"),
        (["--balance", "USDT=1.123456789"], 2, "is no balance"),
        (["--slippage-bps", "-1"], 2, "is not a number"),
        (["--public-key", "no/such.pem"], 1, "no/such.pem"),
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


def signed(address: str, method: str, path: str, **params: object) -> Any:
    """JSON of a signed request."""
    given = {**params, "timestamp": int(time.time() * 1000)}
    query = urllib.parse.urlencode(given)
    signature = hmac.new(b"demo", query.encode(), hashlib.sha256).hexdigest()
    request = urllib.request.Request(  # noqa: S310 - our own server
        f"{address}/api/v3/{path}?{query}&signature={signature}",
        method=method,
        headers={"X-MBX-APIKEY": "demo"},
    )
    with urllib.request.urlopen(request, timeout=30) as reply:  # noqa: S310 - our own server
        return json.load(reply)


def test_a_killed_exchange_knows_its_accounts_and_orders(tmp_path: Path) -> None:
    options = ("--speed", "manual", "--history", "50", "--workdir", str(tmp_path))
    low = {"symbol": "BTCUSDT", "side": "BUY", "type": "LIMIT", "timeInForce": "GTC"}
    with simulator(*options) as (process, address):
        bought = signed(address, "POST", "order", symbol="BTCUSDT", side="BUY", type="MARKET",
                        quoteOrderQty="1000")  # fmt: skip
        price = float(bought["fills"][0]["price"])
        near = signed(address, "POST", "order", **low, quantity="0.01",
                      price=f"{price * 0.9995:.2f}")  # fmt: skip
        far = signed(address, "POST", "order", **low, quantity="0.01", price=f"{price * 0.6:.2f}")
        signed(address, "POST", "order", symbol="BTCUSDT", side="SELL", type="STOP_LOSS",
               quantity="0.001", stopPrice=f"{price * 0.6:.2f}")  # fmt: skip
        ask(f"{address}/control/funds", {"asset": "ETH", "amount": "2.5"})
        ask(f"{address}/control/symbol", {"symbol": "BTCUSDT", "status": "HALT"})
        before = ask(f"{address}/control/account")
        process.kill()
        process.wait()
    journal = tmp_path / "simulator-exchange.jsonl"
    assert journal.stat().st_mode & 0o077 == 0
    with journal.open("ab") as file:  # a line that a kill cut off
        file.write(b'[["Moved",1,"USDT",')
    with simulator(*options) as (_, address):
        assert ask(f"{address}/control/account") == before
        info = ask(f"{address}/api/v3/exchangeInfo?symbol=BTCUSDT")
        assert info["symbols"][0]["status"] == "HALT"
        ask(f"{address}/control/symbol", {"symbol": "BTCUSDT", "status": "TRADING"})
        for _ in range(300):
            ask(f"{address}/control/advance", {"candles": 1})
            state = signed(address, "GET", "order", symbol="BTCUSDT", orderId=near["orderId"])
            if state["status"] == "FILLED":
                break
        assert state["status"] == "FILLED"
        gone = signed(address, "DELETE", "order", symbol="BTCUSDT", orderId=far["orderId"])
        assert gone["status"] == "CANCELED"
        later = signed(address, "POST", "order", **low, quantity="0.01", price=f"{price * 0.6:.2f}")
        assert later["orderId"] == 5


def test_a_damaged_journal_is_named(tmp_path: Path) -> None:
    (tmp_path / "simulator-exchange.jsonl").write_text('[["Nonsense",1]]\n')
    command = [sys.executable, "-m", "simulator", "--port", "0", "--workdir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "simulator-exchange.jsonl:1" in done.stderr
    assert "Traceback" not in done.stderr
