"""How a service starts, ends and comes back, as its supervisor sees it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.valkey import Server

ROOT = Path(__file__).parents[2]
# A service that counts its sessions on the bus and then does what it is told.
SERVICE = """
import asyncio, sys
from shared.errors import BadInput, Failure, OutOfSync, Unavailable
from shared.runtime import run_service

what = sys.argv.pop(1)

async def serve(session):
    await session.bus.put(f"sessions:{what}", "x")
    await session.bus._link.one("INCR", "count")
    if what == "behind":
        session.health.last_ids["kline:{BTCUSDT}:1m"] = "60000-0"
    session.health.is_ready()
    if what == "fail":
        raise Failure("the disk is full; make room")
    if what == "usage":
        from shared.errors import Usage
        raise Usage("no such option")
    if what == "crash":
        raise ZeroDivisionError("token 123456789:AAabcdefghijklmnopqrstuvwxyz0123456789 leaked")
    if what == "out_of_sync" and int(await session.bus.get("count")) < 3:
        raise OutOfSync("again")
    if what == "task":
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.sleep(60))
            tasks.create_task(broken())
    while True:
        session.alive()
        await session.bus.get("x")
        await asyncio.sleep(0.02)

async def broken():
    raise Failure("a task died")

run_service("probe", serve)
"""


def start(what: str, valkey: Server, *options: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SERVICE, what, *options],
        cwd=ROOT,
        env={**os.environ, "ITB_REDIS_URL": valkey.url, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(valkey: Server, condition: Any, what: str) -> Any:
    deadline = time.monotonic() + 20
    with redis.Redis(port=valkey.port) as client:
        while time.monotonic() < deadline:
            try:
                if found := condition(client):
                    return found
            except redis.ConnectionError:
                pass
            time.sleep(0.02)
    raise AssertionError(f"waited in vain: {what}")


def count(client: Any) -> int:
    return int(client.get("count") or 0)


def end(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> tuple[int, str, float]:
    started = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    return process.returncode, err, time.monotonic() - started


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_within_five_seconds(valkey: Server, number: int) -> None:
    process = start("run", valkey)
    wait_for(valkey, count, "the first session")
    code, err, seconds = end(process, number)
    assert (code, "error" in err) == (0, False)
    assert seconds < 5


@pytest.mark.parametrize(
    ("what", "code", "line"),
    [
        ("fail", 1, "error: the disk is full; make room"),
        ("usage", 2, "error: no such option"),
        ("task", 1, "error: a task died"),
    ],
)
def test_a_failure_is_one_line_and_an_exit_code(
    valkey: Server, what: str, code: int, line: str
) -> None:
    process = start(what, valkey)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    plain = [text for text in err.splitlines() if not text.startswith("{")]
    assert plain == [line]


def test_what_nobody_expected_ends_the_process_and_hides_secrets(valkey: Server) -> None:
    process = start("crash", valkey)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "AAabcdefghij" not in err
    log = json.loads(next(line for line in err.splitlines() if line.startswith("{")))
    assert (log["level"], log["service"]) == ("critical", "probe")
    assert "ZeroDivisionError" in log["error"]


def test_a_bad_config_is_one_line_with_exit_code_2(valkey: Server, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"intervall": "1m"}')
    process = start("run", valkey, "-c", str(path))
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert err == f"error: {path}: unknown key 'intervall'; did you mean 'interval'?\n"


def test_a_lost_server_is_found_again_with_a_new_session(valkey: Server) -> None:
    process = start("run", valkey)
    wait_for(valkey, count, "the first session")
    valkey.kill9()
    valkey.start()
    wait_for(valkey, lambda client: count(client) >= 2, "the second session")
    code, err, _ = end(process)
    assert code == 0
    assert "session lost" in err


def test_it_waits_for_a_server_that_is_not_there_yet(valkey: Server) -> None:
    valkey.kill9()
    process = start("run", valkey)
    assert process.stderr is not None
    assert "session lost" in process.stderr.readline()
    valkey.start()
    wait_for(valkey, count, "the first session")
    assert end(process)[0] == 0


def test_out_of_sync_begins_a_new_session(valkey: Server) -> None:
    process = start("out_of_sync", valkey)
    wait_for(valkey, lambda client: count(client) >= 3, "the third session")
    assert end(process)[0] == 0


def test_the_heartbeat_tells_how_it_is(valkey: Server) -> None:
    process = start("run", valkey)
    found = wait_for(
        valkey,
        lambda client: json.loads(client.get("health:probe:probe") or "{}").get("ready"),
        "a ready heartbeat",
    )
    assert found is True
    with redis.Redis(port=valkey.port) as client:
        beat = json.loads(client.get("health:probe:probe"))
        assert 0 < client.pttl("health:probe:probe") <= 30_000
    assert (beat["service"], beat["pid"], beat["reason"]) == ("probe", process.pid, "")
    end(process)


@pytest.mark.parametrize(("newest", "lag", "ready"), [(1, 0, True), (2, 1, True), (3, 2, False)])
def test_it_is_not_ready_two_candles_behind(
    valkey: Server, newest: int, lag: int, ready: bool
) -> None:
    with redis.Redis(port=valkey.port) as client:
        for minute in range(1, newest + 1):
            client.xadd("kline:{BTCUSDT}:1m", {"data": b"x"}, id=f"{minute * 60_000}-0")
    process = start("behind", valkey)
    beat = wait_for(
        valkey,
        lambda client: [
            b for b in [json.loads(client.get("health:probe:probe") or "{}")] if b.get("last_ids")
        ],
        "a heartbeat",
    )[0]
    end(process)
    assert (beat["lag"], beat["ready"]) == (lag, ready)
    assert beat["reason"] == ("" if ready else "2 candles behind")


def test_of_two_with_one_name_the_second_works_when_the_first_is_killed(valkey: Server) -> None:
    first = start("run", valkey)
    wait_for(valkey, count, "the first one's session")
    second = start("run", valkey)

    def both_connected(client: Any) -> bool:
        names = [c["name"] for c in client.client_list()]
        return sum(name.startswith("itb:probe:probe:") for name in names) == 4

    wait_for(valkey, both_connected, "the second one's connections")
    with redis.Redis(port=valkey.port) as client:
        assert count(client) == 1
    first.kill()
    first.communicate()
    wait_for(valkey, lambda client: count(client) == 2, "the second one's session")
    assert end(second)[0] == 0
