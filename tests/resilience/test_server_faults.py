"""What can happen to Valkey itself (FAULTS V2-V8), one at a time and to the byte."""

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis

from deploy.valkey import repair
from featurizer.service import serve
from shared.bus import Bus, Source, Write
from shared.config import load
from shared.errors import OutOfSync, Unavailable
from shared.events import Feature, Kline, Notice
from shared.features import FeatureSet
from shared.streams import FEATURE, KLINE, NOTICE
from tests.kills import Plan, run_until_caught_up
from tests.resilience import checks
from tests.resilience.conftest import FEATURES, kill_seed
from tests.resilience.system import SERVICES, System
from tests.resilience.tape import SYMBOL, Tape, record
from tests.valkey import Server, free_port

ROOT = Path(__file__).parents[2]
CANDLES = Source(KLINE, SYMBOL, "1m")
VALUES = Source(FEATURE, SYMBOL, "1m")


@pytest.fixture(scope="module")
def tape(tmp_path_factory: pytest.TempPathFactory) -> Tape:
    return record(tmp_path_factory.mktemp("tape"), history=10, live=60, seed=21)


async def put(url: str, klines: Sequence[Kline]) -> None:
    async with Bus.session(url, service="collector", exclusive=False) as bus:
        await bus.write(
            *(Write(source=CANDLES, event=k, open_time_ms=k.open_time_ms) for k in klines)
        )


async def work(patch: pytest.MonkeyPatch, url: str) -> None:
    settings = load(symbol=SYMBOL, features_kline=FEATURES)
    await run_until_caught_up(patch, url, "featurizer", serve, settings, Plan())


def incremental(server: Server) -> Path:
    (path,) = (server.dir / "appendonlydir").glob("*.incr.aof")
    return path


def written(client: "redis.Redis", key: str) -> list[str]:
    found: Any = client.xrange(key)
    return [entry_id.decode() for entry_id, _ in found]


async def check_whole(server: Server, tape: Tape, count: int) -> None:
    """I1, I2: the candles and, to the bit, their vectors; nothing is pending (I8)."""
    wanted = FeatureSet.of(FEATURES).batch(tape.first_index, tape.rows[:count])
    async with Bus.session(server.url, service="test", exclusive=False) as bus:
        candles = await bus.span(CANDLES, after=None)
        assert [e.time_ms for e in candles] == [k.open_time_ms for k in tape.klines[:count]]
        found = await bus.span(VALUES, after=None)
        assert [e.time_ms for e in found] == [k.open_time_ms for k in tape.klines[:count]]
        values = [e.event.values for e in found if isinstance(e.event, Feature)]
        assert b"".join(values) == wanted.tobytes()
        assert (await bus.group_position(CANDLES))["featurizer"][1] == 0


async def _cut_everywhere(
    valkey: Server, patch: pytest.MonkeyPatch, tape: Tape, *, every: int
) -> None:
    """A step is in the file whole or not at all, wherever it ends, with or without zeros behind."""
    await put(valkey.url, tape.klines[:20])
    await work(patch, valkey.url)
    await put(valkey.url, tape.klines[20:21])
    valkey.sync()
    before = incremental(valkey).stat().st_size
    await work(patch, valkey.url)
    valkey.sync()
    valkey.kill9()
    kept = valkey.dir.with_name("kept")
    shutil.copytree(valkey.dir, kept)
    path = incremental(valkey)
    whole = path.read_bytes()
    output = whole.index(b"XADD", before)
    step = whole.rindex(b"MULTI", before, output) - len(b"*1\r\n$5\r\n")
    last = whole.index(b"EXEC", output) + len(b"EXEC\r\n")
    assert last - step > 200
    torn = 0
    for end in [*range(step, last, every), last - 1, last]:
        for zeros in (0, 1, 700):
            shutil.rmtree(valkey.dir)
            shutil.copytree(kept, valkey.dir)
            path.write_bytes(whole[:end] + bytes(zeros))
            said: list[str] = []
            repair(valkey.dir, said.append)
            torn += bool(said)
            valkey.start()
            with redis.Redis(port=valkey.port) as client:
                outputs = len(written(client, VALUES.key))
                pending: Any = client.xpending(CANDLES.key, "featurizer")
                where = f"cut at byte {end - step} of {last - step}, {zeros} zeros"
                assert outputs == (21 if end == last else 20), where
                assert pending["pending"] == 21 - outputs, where
            await work(patch, valkey.url)
            await check_whole(valkey, tape, 21)
            # What is written after the first restart is there after the second.
            await put(valkey.url, tape.klines[21:23])
            await work(patch, valkey.url)
            valkey.sync()
            valkey.kill9()
            repair(valkey.dir, said.append)
            valkey.start()
            await check_whole(valkey, tape, 23)
            valkey.kill9()
    assert torn > 0


async def test_v2_a_transaction_that_is_cut_off_in_the_file_is_done_again_whole(
    valkey: Server, monkeypatch: pytest.MonkeyPatch, tape: Tape
) -> None:
    await _cut_everywhere(valkey, monkeypatch, tape, every=113)


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_v2_at_every_seventh_byte(
    valkey: Server, monkeypatch: pytest.MonkeyPatch, tape: Tape
) -> None:
    await _cut_everywhere(valkey, monkeypatch, tape, every=7)


async def test_v3_a_flipped_byte_in_the_file_is_found_and_never_computed_with(
    valkey: Server, monkeypatch: pytest.MonkeyPatch, tape: Tape
) -> None:
    await put(valkey.url, tape.klines[:30])
    valkey.sync()
    valkey.kill9()
    path = incremental(valkey)
    content = bytearray(path.read_bytes())
    # The close of the 21st candle, inside its `data`.
    entry = content.index(f"{tape.klines[20].open_time_ms}-0".encode())
    place = content.index(b"\xa5close\xcb", entry) + len(b"\xa5close\xcb") + 3
    content[place] ^= 0x10
    path.write_bytes(bytes(content))
    repair(valkey.dir, pytest.fail)
    valkey.start()
    await work(monkeypatch, valkey.url)
    rows = tape.rows[:30].copy()
    rows[20] = float("nan")
    wanted = FeatureSet.of(FEATURES).batch(tape.first_index, rows)
    async with Bus.session(valkey.url, service="test", exclusive=False) as bus:
        events = [e.event for e in await bus.span(VALUES, after=None)]
        assert b"".join(e.values for e in events if e is not None) == wanted.tobytes()
        (letter,) = await bus.tail(Source(_dead()), 10)
        assert letter.event is not None and "crc" in letter.event.reason
        notices = [e.event for e in await bus.tail(Source(NOTICE), 10)]
        assert [n.code for n in notices if isinstance(n, Notice)] == ["dead_letter"]


def _dead() -> Any:
    from shared.streams import dead_letters

    return dead_letters(CANDLES.key)


# -- V6: a full disk ----------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"a file system of its own cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def ask_ready(port: int) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5) as reply:
            body = reply.read()
    except urllib.error.HTTPError as error:
        body = error.read()
    except OSError:
        return {"ready": False, "reason": "no answer"}
    found: dict[str, Any] = json.loads(body)
    return found


async def until(condition: Any, what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        await asyncio.sleep(0.05)


async def test_v6_a_full_disk_refuses_writes_is_told_and_loses_nothing(
    small_disk: Path, tmp_path: Path, tape: Tape
) -> None:
    server = Server(small_disk / "valkey", "--auto-aof-rewrite-percentage", "0").start()
    port = free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ITB_")} | {
        "ITB_REDIS_URL": server.url,
        "ITB_SYMBOL": SYMBOL,
        "ITB_FEATURES_KLINE": ",".join(FEATURES),
        "ITB_METRICS_PORT": str(port),
    }
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(  # noqa: ASYNC220  # forks at once
            [sys.executable, "-m", "featurizer"], cwd=ROOT, env=environment, stdout=log, stderr=log
        )
    try:
        await put(server.url, tape.klines[:20])
        await until(lambda: ask_ready(port)["ready"], "the featurizer at work")
        filler = small_disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(65_536))
                file.flush()

        async def refused() -> bool:
            try:
                for kline in tape.klines[20:40]:
                    await put(server.url, [kline])
                    await asyncio.sleep(0.15)
            except (Unavailable, OutOfSync) as error:
                return "MISCONF" in str(error)
            return False

        # The server notices with the next second's write to its file.
        for _ in range(20):
            if await refused():
                break
        else:
            pytest.fail("the server never refused a write")
        await until(lambda: "MISCONF" in ask_ready(port)["reason"], "not ready, with the reason")
        filler.unlink()
        await until(lambda: ask_ready(port)["ready"], "readiness by itself")
        await put(server.url, tape.klines)
        last = f"{tape.last_ms}-0"
        with redis.Redis(port=server.port) as client:
            await until(lambda: written(client, VALUES.key)[-1:] == [last], "all features")
        server.sync()
        server.kill9()
        server.start()  # what was acknowledged is on the disk
        await check_whole(server, tape, len(tape.klines))
    finally:
        process.kill()
        process.wait()
        server.stop()


# -- V8: failover -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_v8_after_a_failover_to_a_stale_replica_all_is_made_again(
    tmp_path: Path, models: Path
) -> None:
    """The replica stopped following 100 candles ago: to it, they never were."""
    tape = record(tmp_path, history=1_600, live=400, seed=kill_seed(31))
    expected = checks.expect(tape, FEATURES, models)
    async with System.running(tmp_path / "run", tape, models, FEATURES, proxied=True) as system:
        await system.until_ready()
        await system.advance(100)
        await system.until(lambda: system.behind == 0, "the first signals")
        replica = Server(tmp_path / "replica").start()
        with redis.Redis(port=replica.port) as client:
            client.replicaof("127.0.0.1", str(system.server.port))
            await system.until(lambda: _follows(client), "a replica")
            client.replicaof("NO", "ONE")
            behind: Any = client.xlen(f"signal:{{{SYMBOL}}}:1m")
        await system.advance(100)
        await system.until(lambda: system.behind == 0, "signals that the replica never sees")
        await system.fail_over(replica)
        with redis.Redis(port=replica.port) as client:
            stale: Any = client.xlen(f"signal:{{{SYMBOL}}}:1m")
        assert behind <= stale < behind + 200
        await system.until(lambda: system.behind == 0, "what was lost, made again")
        await system.until_ready()
        with system.client as client:
            while (left := system.live - system.played) > 0:
                await system.advance(min(left - 5, 50) if left > 5 else 1)
                await system.until(lambda: system.behind == 0, "signals")
            await system.until(checks.is_finished(client, tape.last_ms), "the end")
            kept = checks.read_bus(client)
        problems = checks.check_bus(kept, expected)
        assert problems.none(), f"{problems}\n{system.tails()}"
        assert not system.surprises


def _follows(client: "redis.Redis") -> bool:
    info: Any = client.info("replication")
    return bool(
        info["role"] == "slave"
        and info.get("master_link_status") == "up"
        and not info.get("master_sync_in_progress")
    )


# -- H1: everything at once ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_h1_all_killed_at_once_come_back_by_themselves_in_any_order(
    tmp_path: Path, models: Path
) -> None:
    tape = record(tmp_path, history=1_600, live=200, seed=kill_seed(32))
    expected = checks.expect(tape, FEATURES, models)
    async with System.running(tmp_path / "run", tape, models, FEATURES) as system:
        await system.until_ready()
        orders = itertools.islice(itertools.permutations(SERVICES), 0, None, 37)
        took: list[float] = []
        for order in orders:
            await system.advance(20)
            for name in order:
                system.end(name)
            await system.kill_valkey(lose=0.5, down_s=0.2)
            began_s = time.monotonic()
            for name in order:
                system.start(name)
            await system.until_ready()
            took.append(time.monotonic() - began_s)
        sys.stderr.write(f"\nall killed to all ready: {[round(s, 1) for s in took]} s\n")
        assert max(took) < 60
        with system.client as client:
            while (left := system.live - system.played) > 0:
                await system.advance(min(left - 5, 50) if left > 5 else 1)
                await system.until(lambda: system.behind == 0, "signals")
            await system.until(checks.is_finished(client, tape.last_ms), "the end")
            problems = checks.check_bus(checks.read_bus(client), expected)
        assert problems.none(), f"{problems}\n{system.tails()}"


# -- T19: clocks that step ------------------------------------------------------------------------

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_t19_a_clock_that_steps_changes_no_value(tmp_path: Path, models: Path) -> None:
    """Every service's wall clock leaps while the market goes on; durations are monotonic."""
    if FAKETIME is None:
        pytest.skip("no libfaketime here (Debian: apt install faketime): clocks are not stepped")
    tape = record(tmp_path, history=1_600, live=300, seed=kill_seed(33))
    expected = checks.expect(tape, FEATURES, models)
    clock = tmp_path / "clock"
    clock.write_text("+0")
    stepped = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_NO_CACHE": "1",
    }
    environments = dict.fromkeys(SERVICES, stepped)
    async with System.running(
        tmp_path / "run", tape, models, FEATURES, environments=environments
    ) as system:
        await system.until_ready()
        for step in ("+2", "-10", "+3600", "-86400", "+0.4", "-0.6", "+31536000", "+0"):
            await system.advance(30)
            clock.write_text(step)
            await system.until(lambda: system.behind <= 3, f"signals with the clock at {step}")
            for name in SERVICES:
                await system.until(lambda n=name, s=step: _is_off(system, n, s), f"{name} {step}")  # type: ignore[misc]
        with system.client as client:
            while (left := system.live - system.played) > 0:
                await system.advance(min(left - 5, 20) if left > 5 else 1)
                await system.until(lambda: system.behind <= 1, "signals")
            await system.until(checks.is_finished(client, tape.last_ms), "the end")
            kept = checks.read_bus(client)
        problems = checks.check_bus(kept, expected)
        assert problems.none(), f"{problems}\n{system.tails()}"
        assert not system.surprises


def _is_off(system: System, name: str, step: str) -> bool:
    """Whether a service's clock, by its heartbeat, is where we put it."""
    off_s = system.beat(name).get("time_ms", 0) / 1000 - time.time()
    return abs(off_s - float(step)) < 20
