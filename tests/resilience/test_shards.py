"""Replicas that share the symbols: each symbol has one at a time, also while some are killed."""

import asyncio
import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from collector.service import own_part
from shared.bus import Bus, Source, Write
from shared.config import load
from shared.errors import Usage
from shared.events import Feature, Kline, Notice
from shared.features import FeatureSet
from shared.streams import FEATURE, KLINE, NOTICE
from tests.resilience.conftest import FEATURES
from tests.resilience.tape import Tape, record
from tests.valkey import Server
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
SYMBOLS = tuple(f"S{n}USDT" for n in range(12))
PARTS = 3


def part_of(symbol: str) -> int:
    settings = load(symbols=SYMBOLS)
    (own,) = [n for n in range(PARTS) if symbol in settings.of_part(n, PARTS).symbols]
    return own


def test_every_symbol_falls_to_one_part_whatever_other_symbols_there_are() -> None:
    parts = Counter(part_of(symbol) for symbol in SYMBOLS)
    assert set(parts) == {0, 1, 2}
    more = load(symbols=("AUSDT", *SYMBOLS, "ZUSDT"))
    for symbol in SYMBOLS:
        assert symbol in more.of_part(part_of(symbol), PARTS).symbols
    assert load(symbols=SYMBOLS).of_part(0, 1).symbols == SYMBOLS


def test_parts_that_cannot_be_are_refused() -> None:
    with pytest.raises(Usage, match="trader has one replica only"):
        load(shards={"trader": 2})
    with pytest.raises(Usage, match="featurizer: 0 is not"):
        load(shards={"featurizer": 0})
    with pytest.raises(Usage, match="say which of the 2 parts"):
        own_part(load(shards={"collector": 2}))
    with pytest.raises(Usage, match="no symbol falls to part"):
        for part in range(2):
            own_part(load(symbols="BTCUSDT", shards={"collector": 2}, shard=part))


@contextlib.asynccontextmanager
async def replica(
    url: str, patch: pytest.MonkeyPatch, *, parts: int = PARTS, waits: list[int] | None = None
) -> AsyncIterator[Bus]:
    """A session as another process would have it."""

    def alive() -> None:
        if waits is not None:
            waits.append(1)

    patch.setattr("shared.bus._PROCESS", secrets.token_hex(4))
    opening = Bus.session(url, service="featurizer", parts=parts, alive=alive)
    async with opening as bus:
        yield bus


async def test_each_takes_the_first_free_part_and_one_too_many_takes_over_at_once(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = asyncio.Event()
    found: list[int] = []
    waits: list[int] = []

    async def one_too_many() -> None:
        async with replica(valkey.url, monkeypatch, waits=waits) as bus:
            found.append(bus.part)
            taken.set()

    async with contextlib.AsyncExitStack() as others:
        zero = await others.enter_async_context(replica(valkey.url, monkeypatch))
        async with replica(valkey.url, monkeypatch) as one:
            two = await others.enter_async_context(replica(valkey.url, monkeypatch))
            assert [zero.part, one.part, two.part] == [0, 1, 2]
            assert one.instance == "featurizer-1of3"
            task = asyncio.create_task(one_too_many())
            async with asyncio.timeout(30):
                while len(waits) < 2:  # noqa: ASYNC110  # counted by the callback
                    await asyncio.sleep(0.01)
            assert not taken.is_set()
        async with asyncio.timeout(30):
            await taken.wait()
            await task
    assert found == [1]


async def test_another_number_of_parts_waits_until_the_old_ones_are_gone(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[int] = []
    taken = asyncio.Event()

    async def of_two() -> None:
        async with replica(valkey.url, monkeypatch, parts=2, waits=waits):
            taken.set()

    async with replica(valkey.url, monkeypatch, parts=1):
        task = asyncio.create_task(of_two())
        async with asyncio.timeout(30):
            while len(waits) < 2:  # noqa: ASYNC110  # counted by the callback
                await asyncio.sleep(0.01)
        assert not taken.is_set(), "it would work on symbols of who works on all"
    async with asyncio.timeout(30):
        await task


# -- processes ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tape(tmp_path_factory: pytest.TempPathFactory) -> Tape:
    return record(tmp_path_factory.mktemp("tape"), history=20, live=300, seed=12)


@contextlib.contextmanager
def featurizers(server: Server, folder: Path) -> Iterator[Any]:
    """Starts `python -m featurizer` once per call."""
    started: list[subprocess.Popen[bytes]] = []
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ITB_")} | {
        "ITB_REDIS_URL": server.url,
        "ITB_SYMBOLS": ",".join(SYMBOLS),
        "ITB_FEATURES_KLINE": ",".join(FEATURES),
        "ITB_SHARDS": json.dumps({"featurizer": PARTS}),
    }

    def start() -> subprocess.Popen[bytes]:
        with (folder / f"log-{len(started)}").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "featurizer"],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=log,
            )
        started.append(process)
        return process

    try:
        yield start
    finally:
        for process in started:
            process.kill()
            process.wait()


def beats(client: "redis.Redis") -> dict[int, int]:
    """Process per part that says it is ready."""
    found = {}
    for part in range(PARTS):
        text: Any = client.get(f"health:featurizer:featurizer-{part}of{PARTS}")
        beat = json.loads(text or b"{}")
        if beat.get("ready"):
            found[part] = beat["pid"]
    return found


async def put(url: str, tape: Tape, first: int, last: int) -> None:
    async with Bus.session(url, service="collector", exclusive=False) as bus:
        for symbol in SYMBOLS:
            source = Source(KLINE, symbol, "1m")
            writes = [
                Write(source=source, event=_named(kline, symbol), open_time_ms=kline.open_time_ms)
                for kline in tape.klines[first:last]
            ]
            assert await bus.write(*writes) == []


def _named(kline: Kline, symbol: str) -> Kline:
    values = {name: getattr(kline, name) for name in Kline.__slots__}  # type: ignore[attr-defined]  # slots
    return Kline(**values | {"symbol": symbol})


@pytest.mark.slow
async def test_three_featurizers_share_and_a_killed_one_is_replaced_within_seconds(
    valkey: Server, tmp_path: Path, tape: Tape
) -> None:
    """A fourth stands by: it takes the killed one's part, and nobody works twice."""
    rows = len(tape.klines)
    with redis.Redis(port=valkey.port) as client, featurizers(valkey, tmp_path) as start:
        processes = [start() for _ in range(PARTS)]
        wait_until(lambda: len(beats(client)) == PARTS, "three parts in work")
        fourth = start()
        pids = beats(client)
        assert sorted(pids.values()) == sorted(process.pid for process in processes)
        await put(valkey.url, tape, 0, rows // 2)

        def done(count: int) -> bool:
            lengths: list[Any] = [client.xlen(f"feature:{{{s}}}:1m") for s in SYMBOLS]
            return all(length >= count for length in lengths)

        wait_until(lambda: done(rows // 4), "the first features")
        victim = next(process for process in processes if process.pid == pids[1])
        victim.kill()
        killed_s = time.monotonic()
        wait_until(lambda: beats(client).get(1) == fourth.pid, "the fourth in its place")
        took_s = time.monotonic() - killed_s
        await put(valkey.url, tape, rows // 2, rows)
        wait_until(lambda: done(rows), "every feature")
        assert took_s < 15, f"{took_s:.1f} s on a busy machine"
        for symbol in SYMBOLS:
            consumers: Any = client.xinfo_consumers(f"kline:{{{symbol}}}:1m", "featurizer")
            names = {consumer["name"].decode() for consumer in consumers}
            assert names == {f"featurizer-{part_of(symbol)}of{PARTS}"}, "nobody else ever read it"
            assert sum(consumer["pending"] for consumer in consumers) == 0
    wanted = FeatureSet.of(FEATURES).batch(tape.first_index, tape.rows)
    async with Bus.session(valkey.url, service="test", exclusive=False) as bus:
        for symbol in SYMBOLS:
            found = await bus.span(Source(FEATURE, symbol, "1m"), after=None)
            assert [e.time_ms for e in found] == [k.open_time_ms for k in tape.klines]
            values = [e.event.values for e in found if isinstance(e.event, Feature)]
            assert b"".join(values) == wanted.tobytes(), symbol
        notices = [e.event for e in await bus.tail(Source(NOTICE), 100)]
        told = [n for n in notices if isinstance(n, Notice) and n.service == "featurizer"]
        assert told == [], "nobody found a hole or another's entry"


async def test_what_a_consumer_of_another_name_left_pending_is_taken_over_and_done(
    valkey: Server, monkeypatch: pytest.MonkeyPatch, tape: Tape
) -> None:
    """Two parts became one: what part 1 of 2 had read and not done is done by who has all."""
    from featurizer.service import serve
    from tests.kills import Plan, run_until_caught_up

    await put(valkey.url, tape, 0, 50)
    source = Source(KLINE, SYMBOLS[0], "1m")
    with redis.Redis(port=valkey.port) as client:
        client.xgroup_create(source.key, "featurizer", "0")
        client.xreadgroup("featurizer", "featurizer-1of2", {source.key: ">"}, count=20)
        settings = load(symbols=SYMBOLS, features_kline=FEATURES)
        await run_until_caught_up(monkeypatch, valkey.url, "featurizer", serve, settings, Plan())
        assert client.xlen(f"feature:{{{SYMBOLS[0]}}}:1m") == 50
        pending: Any = client.xpending(source.key, "featurizer")
        assert pending["pending"] == 0
