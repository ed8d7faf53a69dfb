"""What the bus promises, on a real server."""

import asyncio
import contextlib
import math
import secrets
import struct
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import redis

from shared.bus import Bus, Source, Step, Write, by_key
from shared.errors import Failure, OutOfSync, Unavailable, Usage
from shared.events import Depth, Kline
from shared.streams import DEPTH, FUTURES_KLINE, KLINE, Stream
from tests.valkey import Server

M = 60_000
SOURCE = Source(KLINE, "BTCUSDT", "1m")


def kline(time_ms: int, close: float = 1.5) -> Kline:
    return Kline(
        symbol="BTCUSDT",
        interval="1m",
        open_time_ms=time_ms,
        close_time_ms=time_ms + M - 1,
        open=1.0,
        high=max(2.0, close),
        low=0.5,
        close=close,
        volume=10.0,
        quote_volume=15.0,
        trades=3.0,
        taker_base=4.0,
        taker_quote=6.0,
    )


def write(time_ms: int, close: float = 1.5) -> Write[Kline]:
    return Write(source=SOURCE, event=kline(time_ms, close), open_time_ms=time_ms)


def raw(server: Server) -> Any:
    return redis.Redis(port=server.port, decode_responses=False)


async def test_a_repeat_is_a_no_op_and_a_different_one_is_told(valkey: Server) -> None:
    async with Bus.session(valkey.url, service="s") as bus:
        assert await bus.write(write(M)) == []
        assert await bus.write(write(M)) == []
        (diverged,) = await bus.write(write(M, close=9.0))
        assert (diverged.id, diverged.found is not None) == (f"{M}-0", True)
        await bus.write(write(3 * M))
        (passed,) = await bus.write(write(2 * M))
        assert (passed.id, passed.found) == (f"{2 * M}-0", None)
        assert [e.id for e in await bus.tail(SOURCE, 9)] == [f"{M}-0", f"{3 * M}-0"]


async def test_a_deleted_stream_never_begins_in_its_middle(valkey: Server) -> None:
    """Also where a reader that joined again has made an empty one (FAULTS V4)."""
    async with Bus.session(valkey.url, service="s") as bus:
        await bus.write(write(M), write(2 * M))
        with raw(valkey) as client:
            client.delete(SOURCE.key)
        with pytest.raises(OutOfSync, match="somebody deleted it"):
            await bus.write(write(3 * M))
        assert await bus.last_id(SOURCE) is None
        await bus.write(write(M), write(2 * M))
        with raw(valkey) as client:
            client.delete(SOURCE.key)
        await bus.join([SOURCE])
        with pytest.raises(OutOfSync, match="somebody deleted it"):
            await bus.write(write(3 * M), write(4 * M))
        assert await bus.last_id(SOURCE) is None
        assert await bus.write(write(M)) == [], "older ones fit again"


async def test_entries_read_well_in_redis_cli(valkey: Server) -> None:
    async with Bus.session(valkey.url, service="s") as bus:
        await bus.write(write(M))
    with raw(valkey) as client:
        ((entry_id, fields),) = client.xrevrange("kline:{BTCUSDT}:1m", "+", "-", count=1)
    assert entry_id == b"60000-0"
    assert (fields[b"close"], fields[b"volume"]) == (b"1.5", b"10")
    assert list(fields) == [b"close", b"volume", b"data"]


async def test_a_step_writes_and_acknowledges_or_does_nothing(valkey: Server) -> None:
    out = Source(KLINE, "ETHUSDT", "1m")
    async with Bus.session(valkey.url, service="s") as bus:
        await bus.write(write(M), write(2 * M))
        await bus.join([SOURCE])
        first, second = await bus.read(by_key([SOURCE]))
        await bus.commit(
            [Step(input=first, writes=[Write(source=out, event=kline(M), open_time_ms=M)])]
        )
        assert [e.id for e in await bus.own_pending(SOURCE)] == [second.id]
        assert await bus.last_id(out) == first.id
        with raw(valkey) as client:
            client.config_set("maxmemory", 1)
        with pytest.raises(Unavailable, match=r"OOM|EXECABORT"):
            await bus.commit([Step(input=second, writes=[write(9 * M)])])
        with raw(valkey) as client:
            client.config_set("maxmemory", 0)
        assert [e.id for e in await bus.own_pending(SOURCE)] == [second.id]


class Ended(BaseException):
    """What a process that is gone leaves: nothing."""


@contextlib.asynccontextmanager
async def life(monkeypatch: pytest.MonkeyPatch, server: Server) -> AsyncIterator[Bus]:
    """A process of its own, which may be ended by Ended."""
    with monkeypatch.context() as patch, contextlib.suppress(Ended):
        patch.setattr("shared.bus._PROCESS", secrets.token_hex(4))
        async with Bus.session(server.url, service="s") as bus:
            yield bus


async def deliver(server: Server, count: int) -> None:
    """Writes entries and reads them, in a process that does not get further."""
    async with Bus.session(server.url, service="s") as bus:
        await bus.write(*(write(n * M) for n in range(1, count + 1)))
        await bus.join([SOURCE])
        assert len(await bus.read(by_key([SOURCE]))) == count


async def test_an_entry_that_ends_its_process_is_marked_after_five_lives(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deliver(valkey, 1)
    for _ in range(2, 6):
        async with life(monkeypatch, valkey) as bus:
            async for (entry,) in bus.retries(await bus.own_pending(SOURCE)):
                assert (entry.event, entry.problem) == (kline(M), "")
                raise Ended
    async with life(monkeypatch, valkey) as bus:
        async for (entry,) in bus.retries(await bus.own_pending(SOURCE)):
            assert entry.event is None
            assert "delivered 6 times" in entry.problem
            await bus.commit([Step(input=entry, writes=[bus.dead_letter(entry, entry.problem)])])
        assert await bus.own_pending(SOURCE) == []
    with raw(valkey) as client:
        ((_, fields),) = client.xrange("dead:kline:{BTCUSDT}:1m")
    assert fields[b"reason"] == b"delivered 6 times without being done"
    assert fields[b"id"] == b"60000-0"


@pytest.mark.parametrize("poison", [1, 40, 100])
async def test_it_alone_is_marked_wherever_it_stands(
    valkey: Server, monkeypatch: pytest.MonkeyPatch, poison: int
) -> None:
    await deliver(valkey, 100)
    done: list[int] = []
    refused: list[int] = []
    lives = 0
    while len(done) + len(refused) < 100:
        lives += 1
        async with life(monkeypatch, valkey) as bus:
            async for entries in bus.retries(await bus.own_pending(SOURCE)):
                if any(e.time_ms == poison * M and e.event is not None for e in entries):
                    raise Ended
                await bus.commit([Step(input=entry) for entry in entries])
                for entry in entries:
                    (refused if entry.event is None else done).append(entry.time_ms // M)
    assert refused == [poison]
    assert done == [n for n in range(1, 101) if n != poison]
    assert lives == 5, "four that it ended (as the first had been), and one that refused it"


async def test_lives_that_ended_before_they_began_an_entry_do_not_count(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deliver(valkey, 100)
    for _ in range(35):
        async with life(monkeypatch, valkey) as bus:
            assert len(await bus.own_pending(SOURCE)) == 100
            raise Ended
    async with life(monkeypatch, valkey) as bus:
        begun = bus.retries(await bus.own_pending(SOURCE))
        found = [entry async for entries in begun for entry in entries]
    assert [entry.event for entry in found] == [kline(n * M) for n in range(1, 101)]


async def test_of_lives_ended_from_outside_only_those_count_that_had_begun_the_entry(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each life does one list, and is ended in the next one."""
    await deliver(valkey, 40)
    for _ in range(45):
        async with life(monkeypatch, valkey) as bus:
            done = 0
            async for entries in bus.retries(await bus.own_pending(SOURCE)):
                assert all(entry.event is not None for entry in entries)
                if done:
                    raise Ended
                await bus.commit([Step(input=entry) for entry in entries[:1]])
                done += 1
    async with life(monkeypatch, valkey) as bus:
        assert await bus.own_pending(SOURCE) == []


async def test_what_waits_after_it_was_taken_in_is_not_suspected(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The notifier's way: an entry stays pending while its message waits for its turn."""
    await deliver(valkey, 3)
    for _ in range(20):
        async with life(monkeypatch, valkey) as bus:
            begun = bus.retries(await bus.own_pending(SOURCE))
            found = [entry async for entries in begun for entry in entries]
            assert [entry.event for entry in found] == [kline(n * M) for n in (1, 2, 3)]
            raise Ended


async def test_lost_sessions_of_one_process_do_not_count(valkey: Server) -> None:
    """A full memory refuses every step for as long as it lasts; nothing is wrong with an entry."""
    await deliver(valkey, 3)
    with raw(valkey) as client:
        client.config_set("maxmemory", 1)
    for _ in range(20):
        with pytest.raises(Unavailable):
            async with Bus.session(valkey.url, service="s") as bus:
                async for entries in bus.retries(await bus.own_pending(SOURCE)):
                    assert all(entry.event is not None for entry in entries)
                    await bus.commit([Step(input=e, writes=[write(9 * M)]) for e in entries])
    with raw(valkey) as client:
        client.config_set("maxmemory", 0)
    async with Bus.session(valkey.url, service="s") as bus:
        async for entries in bus.retries(await bus.own_pending(SOURCE)):
            assert all(entry.event is not None for entry in entries)
            await bus.commit([Step(input=entry) for entry in entries])
        assert await bus.own_pending(SOURCE) == []


async def test_unreadable_entries_say_why(valkey: Server) -> None:
    with raw(valkey) as client:
        client.xadd(SOURCE.key, {"data": b"junk"}, id="60000-0")
        client.xadd(SOURCE.key, {"close": "1"}, id="120000-0")
    async with Bus.session(valkey.url, service="s") as bus:
        await bus.write(
            Write(source=SOURCE, event=kline(M), open_time_ms=3 * M)  # id and event disagree
        )
        problems = [e.problem for e in await bus.tail(SOURCE, 9)]
    assert "not a msgpack map" in problems[0]
    assert "no `data`" in problems[1]
    assert "the id is not the event's time" in problems[2]


async def test_a_trimmed_pending_entry_is_unreadable_not_lost_silently(valkey: Server) -> None:
    async with Bus.session(valkey.url, service="s") as bus:
        await bus.write(write(M), write(2 * M))
        await bus.join([SOURCE])
        await bus.read(by_key([SOURCE]))
        with raw(valkey) as client:
            client.xtrim(SOURCE.key, minid="120000-0", approximate=False)
        for _ in range(2):  # until it is told and acknowledged
            begun = bus.retries(await bus.own_pending(SOURCE))
            first, second = [entry async for entries in begun for entry in entries]
            assert (first.event, first.problem) == (None, "entry was trimmed")
            assert second.event == kline(2 * M)


async def test_trimming_stops_below_every_group(valkey: Server) -> None:
    async with Bus.session(valkey.url, service="slow") as slow:
        await slow.write(*(write(i * M) for i in range(1, 11)))
        await slow.join([SOURCE])
        entries = await slow.read(by_key([SOURCE]), count=6)
        async with Bus.session(valkey.url, service="fast") as fast:
            await fast.join([SOURCE])
            done = await fast.read(by_key([SOURCE]))
            await fast.commit([Step(input=e) for e in done])
            # slow has acknowledged 1..3, holds 4..6 and has not seen 7..10
            await slow.commit([Step(input=e) for e in entries[:3]])
            await fast.trim(SOURCE, keep_from_ms=9 * M)
            assert (await fast.tail(SOURCE, 99))[0].id == f"{4 * M}-0"
            await slow.commit([Step(input=e) for e in entries[3:]])
            await fast.trim(SOURCE, keep_from_ms=9 * M)
            assert (await fast.tail(SOURCE, 99))[0].id == f"{6 * M}-0"
            await fast.trim(SOURCE, keep_from_ms=5 * M)
            assert (await fast.tail(SOURCE, 99))[0].id == f"{6 * M}-0"


async def test_a_second_consumer_of_the_same_name_stands_by(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered = asyncio.Event()

    async def second() -> None:
        monkeypatch.setattr("shared.bus._PROCESS", "another")
        async with Bus.session(valkey.url, service="s"):
            entered.set()

    async with Bus.session(valkey.url, service="s"):
        task = asyncio.create_task(second())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(entered.wait(), 0.6)
        monkeypatch.setattr("shared.bus._PROCESS", "first")
    await asyncio.wait_for(task, 5)


async def test_a_deleted_stream_is_out_of_sync_and_a_dead_server_unavailable(
    valkey: Server,
) -> None:
    async with Bus.session(valkey.url, service="s") as bus:
        await bus.join([SOURCE])
        with raw(valkey) as client:
            client.delete(SOURCE.key)
        with pytest.raises(OutOfSync, match="NOGROUP"):
            await bus.read(by_key([SOURCE]), block_ms=50)
        reading = asyncio.create_task(bus.read(by_key([SOURCE]), block_ms=1000))
        valkey.kill9()
        with pytest.raises((Unavailable, OutOfSync)):
            await reading
        with pytest.raises(Unavailable):
            await bus.last_id(SOURCE)
        valkey.start()
        with pytest.raises(Unavailable, match="closed"):  # never reused, never reconnected silently
            await bus.last_id(SOURCE)


async def test_a_server_without_aof_or_with_eviction_is_refused(valkey: Server) -> None:
    with raw(valkey) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    with pytest.raises(Failure, match="maxmemory-policy noeviction"):
        async with Bus.session(valkey.url, service="s"):
            pass
    with raw(valkey) as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("appendonly", "no")
    with pytest.raises(Failure, match="appendonly yes"):
        async with Bus.session(valkey.url, service="s"):
            pass


async def test_a_frozen_server_does_not_hang_us(valkey: Server) -> None:
    async with Bus.session(valkey.url, service="s") as bus:
        bus._link.timeout_s = 0.3
        valkey.freeze(True)
        try:
            with pytest.raises(Unavailable, match="timeout"):
                await bus.last_id(SOURCE)
        finally:
            valkey.freeze(False)


async def test_the_unix_socket_serves_as_well(valkey: Server) -> None:
    async with Bus.session(valkey.unix_url, service="s") as bus:
        await bus.write(write(M))
        assert await bus.length(SOURCE) == 1
        assert [e.event for e in await bus.span(SOURCE, after=None)] == [kline(M)]


async def test_a_stream_deleted_under_us_is_not_begun_anew_in_the_middle(valkey: Server) -> None:
    async with Bus.session(valkey.url, service="s") as bus:
        await bus.write(write(M))
        with raw(valkey) as client:
            client.flushall()
        with pytest.raises(OutOfSync, match="somebody deleted it"):
            await bus.write(write(2 * M))
        with raw(valkey) as client:
            assert not client.exists(SOURCE.key)
    async with Bus.session(valkey.url, service="s") as bus:
        await bus.write(write(M), write(2 * M))
        assert await bus.length(SOURCE) == 2


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"symbol": "ETHUSDT"}, "the event is of ETHUSDT, the stream of BTCUSDT"),
        ({"interval": "5m"}, "the event is of 5m, the stream of 1m"),
    ],
)
async def test_an_event_that_does_not_belong_there_is_unreadable(
    valkey: Server, change: dict[str, Any], problem: str
) -> None:
    async with Bus.session(valkey.url, service="s") as bus:
        wrong = replace(kline(M), **change)
        await bus.write(Write(source=SOURCE, event=wrong, open_time_ms=M))
        (entry,) = await bus.tail(SOURCE, 1)
    assert entry.event is None
    assert problem in entry.problem


async def test_a_field_name_that_is_no_text_does_not_break_the_reader(valkey: Server) -> None:
    with raw(valkey) as client:
        client.xadd(SOURCE.key, {b"\xff\xfe": b"x"}, id="60000-0")
    async with Bus.session(valkey.url, service="s") as bus:
        (entry,) = await bus.tail(SOURCE, 1)
    assert "no `data`" in entry.problem


def test_a_redis_url_with_an_unknown_option_is_bad_usage() -> None:
    with pytest.raises(Usage, match="redis_url"):
        Bus("redis://127.0.0.1:1/0?foo=bar", service="s", instance="s", message_bytes=1)


@pytest.mark.parametrize("stream", [KLINE, FUTURES_KLINE])
@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"high": 0.4}, "high is below low"),
        ({"close": 2.5}, "open or close lies outside"),
        ({"open": 0.25}, "open or close lies outside"),
        ({"volume": -1.0}, "a volume is negative"),
        ({"taker_quote": -1.0}, "a volume is negative"),
        ({"low": 0.0}, "a price is zero or negative"),
        ({"close": math.nan}, "not a finite number"),
        ({"volume": math.nan}, "not a finite number"),
        ({"gap": True}, "a gap marker with values"),
    ],
)
async def test_an_impossible_candle_is_unreadable(
    valkey: Server, stream: Stream[Kline], values: dict[str, float], problem: str
) -> None:
    """It has a right crc: only its values show that it cannot be (FAULTS R7)."""
    source = Source(stream, "BTCUSDT", "1m")
    bare = replace(kline(2 * M), quote_volume=math.nan, trades=math.nan, taker_base=0.0, volume=0.0)
    events = [replace(kline(M), **values), bare, Kline.gap_marker("BTCUSDT", "1m", 3 * M, 4 * M)]  # type: ignore[arg-type]  # floats all but one
    async with Bus.session(valkey.url, service="s") as bus:
        for event in events:
            await bus.write(Write(source=source, event=event, open_time_ms=event.open_time_ms))
        bad, *good = await bus.tail(source, 9)
    assert bad.event is None
    assert problem in bad.problem
    assert [e.problem for e in good] == ["", ""]
    assert good[0].event is not None and good[0].event.volume == 0.0


@pytest.mark.parametrize("values", [b"", b"1234567", bytes(80), bytes(96), b"\0" * 87])
async def test_an_order_book_of_another_length_is_unreadable(valkey: Server, values: bytes) -> None:
    event = Depth(symbol="BTCUSDT", interval="1m", open_time_ms=M, values=values)
    source = Source(DEPTH, "BTCUSDT", "1m")
    async with Bus.session(valkey.url, service="s") as bus:
        await bus.write(Write(source=source, event=event, open_time_ms=M))
        infinite = struct.pack("<11d", *[1.0] * 10, math.inf)
        for n, one in ((2, infinite), (3, struct.pack("<11d", *[1.0] * 10, math.nan))):
            other = replace(event, open_time_ms=n * M, values=one)
            await bus.write(Write(source=source, event=other, open_time_ms=n * M))
        entries = await bus.tail(source, 3)
    assert "11 float64" in entries[0].problem
    assert "infinite" in entries[1].problem
    assert entries[2].problem == ""
