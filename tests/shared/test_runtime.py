"""How a service starts, ends and comes back, as its supervisor sees it."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.valkey import Server, free_port
from tests.waiting import wait_until

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
    if what == "lame":
        session.health.not_ready("no release")
    if what == "stands_still":
        from shared import runtime
        runtime.STALL_S = 1.0
        await asyncio.sleep(600)
    if what == "stuck":
        import time
        time.sleep(600)  # holds the loop, until it is killed for that
    if what == "fail":
        raise Failure("the disk is full; make room")
    if what == "usage":
        from shared.errors import Usage
        raise Usage("no such option")
    if what == "crash":
        raise ZeroDivisionError("token 123456789:AAabcdefghijklmnopqrstuvwxyz0123456789 leaked")
    if what == "out_of_sync" and int(await session.bus.get("count")) < 3:
        raise OutOfSync("again")
    if what == "covered":
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            raise Unavailable("the server went away at the same moment") from None
    if what == "lost_in_a_task" and int(await session.bus.get("count")) < 3:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(lost())
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

async def lost():
    await asyncio.sleep(0.01)
    raise Unavailable("the server went away")

run_service("probe", serve)
"""


_started: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def leave_no_process() -> Iterator[None]:
    """Of a test that failed, what its processes said is told."""
    yield
    for process in _started:
        if process.poll() is None:
            process.kill()
            print(process.communicate()[1])
    _started.clear()


def start(what: str, valkey: Server, *options: str, **env: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVICE, what, *options],
        cwd=ROOT,
        env={**os.environ, "ITB_REDIS_URL": valkey.url, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _started.append(process)
    return process


def wait_for(valkey: Server, condition: Any, what: str) -> Any:
    """60 s: a disk that others flush to holds the server up."""

    def met() -> Any:
        try:
            return condition(client)
        except redis.ConnectionError:
            return None

    with redis.Redis(port=valkey.port) as client:
        return wait_until(met, what)


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


def test_a_signal_is_obeyed_even_where_the_session_is_lost_at_that_moment(valkey: Server) -> None:
    process = start("covered", valkey)
    wait_for(valkey, count, "the first session")
    code, err, seconds = end(process)
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
    valkey.sync()
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


def test_a_session_lost_in_a_task_whose_group_waits_begins_a_new_one(valkey: Server) -> None:
    """Python 3.11 leaves such a task with a cancellation that is not counted back."""
    process = start("lost_in_a_task", valkey)
    wait_for(valkey, lambda client: count(client) >= 3, "the third session")
    code, err, _ = end(process)
    assert (code, "session lost: the server went away" in err) == (0, True)


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


def ask(port: int, path: str, *, timeout: float = 5) -> tuple[int, str]:
    """Status and body; 0 where nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=timeout) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def until_status(port: int, path: str, status: int) -> str:
    found: list[tuple[int, str]] = []

    def answered() -> bool:
        found[:] = [ask(port, path)]
        return found[0][0] == status

    wait_until(answered, lambda: f"{status} of {path}, which answers {found}")
    return found[0][1]


def ready(*options: str, **env: str) -> tuple[int, str]:
    """The health check that containers run."""
    done = subprocess.run(
        [sys.executable, "-m", "shared.ready", *options],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


def test_over_http_it_is_live_and_ready_and_tells_its_metrics(valkey: Server) -> None:
    port = str(free_port())
    process = start("run", valkey, ITB_METRICS_PORT=port)
    body = json.loads(until_status(int(port), "/ready", 200))
    assert (body["service"], body["ready"], body["reason"]) == ("probe", True, "")
    assert ask(int(port), "/live") == (200, '{"live": true}')
    status, page = ask(int(port), "/metrics")
    assert status == 200
    assert 'itb_ready{instance="probe",service="probe"} 1.0' in page
    assert "process_resident_memory_bytes" in page
    assert ready("probe", ITB_METRICS_PORT=port) == (0, "probe is ready\n")
    code, line = ready("other", ITB_METRICS_PORT=port)
    assert (code, line) == (1, "other is not ready: probe answers in its place\n")
    assert end(process)[0] == 0
    code, line = ready("probe", ITB_METRICS_PORT=port)
    assert code == 1 and "does not answer" in line


def test_live_but_not_ready_it_says_why(valkey: Server) -> None:
    port = free_port()
    process = start("lame", valkey, ITB_METRICS_PORT=str(port))
    wait_for(valkey, count, "a session")
    body = json.loads(until_status(port, "/ready", 503))
    deadline = time.monotonic() + 30
    while body["reason"] != "no release" and time.monotonic() < deadline:
        body = json.loads(until_status(port, "/ready", 503))
    assert (body["ready"], body["reason"]) == (False, "no release")
    assert ask(port, "/live")[0] == 200
    expected = (1, "probe is not ready: no release\n")
    assert ready("probe", ITB_METRICS_PORT=str(port)) == expected
    end(process)


def test_without_the_bus_it_is_live_and_not_ready(valkey: Server) -> None:
    port = free_port()
    process = start("run", valkey, ITB_METRICS_PORT=str(port))
    until_status(port, "/ready", 200)
    valkey.kill9()
    body = json.loads(until_status(port, "/ready", 503))
    assert body["reason"].startswith("session lost: Redis")
    assert ask(port, "/live")[0] == 200
    assert (
        'itb_bus_sessions_lost_total{instance="probe",service="probe",why="Unavailable"}'
        in (ask(port, "/metrics")[1])
    )
    valkey.start()
    until_status(port, "/ready", 200)
    end(process)


def test_with_a_loop_that_stands_still_nobody_is_told_that_it_lives(valkey: Server) -> None:
    port = free_port()
    process = start("stuck", valkey, ITB_METRICS_PORT=str(port))
    wait_for(valkey, count, "the session that then sticks")
    assert ask(port, "/live", timeout=1) == (0, "")
    process.kill()
    process.communicate()


def test_who_stands_by_is_not_ready_and_says_for_whom(valkey: Server) -> None:
    first = start("run", valkey)
    wait_for(valkey, count, "the first one's session")
    port = free_port()
    second = start("run", valkey, ITB_METRICS_PORT=str(port))
    wanted = "stands by: another process works as probe"
    deadline = time.monotonic() + 30
    reason = ""
    while reason != wanted and time.monotonic() < deadline:
        reason = json.loads(until_status(port, "/ready", 503))["reason"]
    assert reason == wanted
    end(first)
    until_status(port, "/ready", 200)
    end(second)


def test_a_port_that_is_taken_is_one_line(valkey: Server) -> None:
    process = start("run", valkey, ITB_METRICS_PORT=str(valkey.port))
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert err.splitlines()[-1].startswith(f"error: metrics_port {valkey.port} of 127.0.0.1 cannot")


def test_readiness_without_a_port_is_read_off_the_bus(valkey: Server) -> None:
    url = {"ITB_REDIS_URL": valkey.url}
    code, line = ready("probe", **url)
    assert (code, line) == (1, "probe is not ready: no heartbeat at health:probe:probe\n")
    process = start("run", valkey)
    wait_for(
        valkey,
        lambda client: json.loads(client.get("health:probe:probe") or "{}").get("ready"),
        "a ready heartbeat",
    )
    assert ready("probe", **url) == (0, "probe is ready\n")
    process.kill()
    process.communicate()
    with redis.Redis(port=valkey.port) as client:
        beat = json.loads(client.get("health:probe:probe"))
        beat["time_ms"] -= 20_000
        client.set("health:probe:probe", json.dumps(beat))
    code, line = ready("probe", **url)
    assert code == 1 and "its last heartbeat is" in line
    valkey.kill9()
    code, line = ready("probe", **url)
    assert code == 1 and "Redis is not reachable" in line
    assert ready("probe", "-c", "absent.json")[0] == 2


def test_h2_who_stands_still_ends_itself(valkey: Server) -> None:
    """Compose restarts what has ended, not what is unhealthy."""
    process = start("stands_still", valkey)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 70
    assert err.splitlines()[-1].startswith("error: probe stood still for 1 s and ends")
