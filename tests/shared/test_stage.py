"""A stage's janitor and its chunks; the rest is proved with the services that are stages."""

import asyncio
import secrets
from collections.abc import Sequence
from typing import Any

import pytest
import redis

from shared import stage
from shared.bus import Bus, Entry, Source, Write
from shared.config import load
from shared.events import Kline
from shared.runtime import Health, Session
from shared.streams import FEATURE, KLINE, ORDER, PREDICTION, SIGNAL, STREAMS
from tests.valkey import Server

M = 60_000
SOURCE = Source(KLINE, "BTCUSDT", "1m")


async def test_the_janitor_keeps_as_many_long_candles_as_minutes(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight days of hours are 192 candles: too few to be shown, and fewer than a demo plays."""
    monkeypatch.setattr(stage, "_JANITOR_S", 0.01)
    hour, source = 3_600_000, Source(KLINE, "BTCUSDT", "1h")
    rows = 12_000
    async with Bus.session(valkey.url, service="writer") as bus:
        klines = [
            Kline.gap_marker("BTCUSDT", "1h", n * hour, (n + 1) * hour - 1)
            for n in range(1, rows + 1)
        ]
        await bus.write(
            *(Write(source=source, event=k, open_time_ms=k.open_time_ms) for k in klines)
        )
        settings = load(None, interval="1h")
        session = Session(settings=settings, bus=bus, health=Health(), alive=lambda: None)
        task = asyncio.create_task(stage.janitor(session, [source], least_rows=1))
        async with asyncio.timeout(30):
            while await bus.length(source) == rows:  # noqa: ASYNC110  # the server changes it
                await asyncio.sleep(0.01)
        assert await bus.length(source) == 8 * 1440 + 1  # the newest, and so many before it
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_the_janitor_keeps_what_a_rebuild_needs_and_what_a_group_has_not_done(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "_JANITOR_S", 0.01)
    monkeypatch.setattr(stage, "_KEEP_MS", 5 * M)
    monkeypatch.setattr(stage, "_KEEP_ROWS", 1)
    settings = load()

    async def oldest(bus: Bus) -> int:
        entries = await bus.span(SOURCE, after=None, count=1)
        return entries[0].time_ms // M

    async with Bus.session(valkey.url, service="writer") as bus:
        for n in range(1, 101):
            kline = Kline.gap_marker("BTCUSDT", "1m", n * M, n * M + M - 1)
            await bus.write(Write(source=SOURCE, event=kline, open_time_ms=n * M))
        with redis.Redis(port=valkey.port) as client:
            client.xgroup_create(SOURCE.key, "slow", "0")
            client.xreadgroup("slow", "slow", {SOURCE.key: ">"}, count=30)
        session = Session(settings=settings, bus=bus, health=Health(), alive=lambda: None)
        task = asyncio.create_task(stage.janitor(session, [SOURCE], least_rows=20))

        async def until(minute: int) -> None:
            async with asyncio.timeout(10):
                while await oldest(bus) != minute:  # noqa: ASYNC110  # the server changes it
                    await asyncio.sleep(0.01)

        await asyncio.sleep(0.1)
        assert await oldest(bus) == 1, "30 entries are pending, none of them may go"
        with redis.Redis(port=valkey.port) as client:
            client.xack(SOURCE.key, "slow", *(f"{n * M}-0" for n in range(1, 31)))
        await until(30)  # the group's position
        with redis.Redis(port=valkey.port) as client:
            client.xreadgroup("slow", "slow", {SOURCE.key: ">"}, count=999, noack=True)
        await until(80)  # 20 rows, although 5 minutes would be enough
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_dead_letters_stay_a_month_and_at_most_so_many(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "_JANITOR_S", 0.01)
    monkeypatch.setattr(stage, "_MOST_DEAD", 5)
    day = 86_400_000
    with redis.Redis(port=valkey.port) as client:
        for n in range(40):
            client.xadd("dead:kline:{BTCUSDT}:1m", {"reason": "old"}, id=f"{n * day + day}-0")
        for n in range(9):
            client.xadd("dead:signal:{BTCUSDT}:1m", {"reason": "many"}, id=f"{n + 1}-0")
        for n in range(3):
            client.xadd("dead:feature:{BTCUSDT}:1m", {"reason": "few"}, id=f"{n * 20 * day + 1}-0")
        async with Bus.session(valkey.url, service="notifier") as bus:
            session = Session(settings=load(), bus=bus, health=Health(), alive=lambda: None)
            inputs = [Source(one, "BTCUSDT", "1m") for one in (KLINE, FEATURE, SIGNAL, PREDICTION)]
            task = asyncio.create_task(stage.dead_letter_janitor(session, inputs))
            async with asyncio.timeout(30):
                while client.xlen("dead:signal:{BTCUSDT}:1m") != 5:  # noqa: ASYNC110  # as above
                    await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert client.xlen("dead:kline:{BTCUSDT}:1m") == 5
        oldest = client.xrange("dead:feature:{BTCUSDT}:1m")[0][0]
        assert oldest == f"{20 * day + 1}-0".encode(), "the newest is 40 days old, it is 20 older"


def test_every_stream_is_kept_short_by_who_writes_it() -> None:
    """FAULTS R11. Only the trader's journal is not: orders are never trimmed."""
    import auditor.service
    import collector.service
    import featurizer.service
    import notifier.service
    import predictor.service
    from notifier.chats import recipients

    settings = load(symbols=["A", "B"], collector={"futures": True, "depth": True})
    kept_short = [
        *collector.service.trimmed(settings),
        *featurizer.service.trimmed(settings),
        *predictor.service.trimmed(settings),
        *notifier.service.trimmed(recipients(settings)),
        *auditor.service.trimmed(settings),
    ]
    wanted = {
        Source(stream, symbol, settings.interval).key
        for stream in STREAMS
        for symbol in ("A", "B")
        if stream is not ORDER
    }
    assert {source.key for source in kept_short} == wanted
    assert len(kept_short) == len(wanted), "each by one service"


class Fatal(BaseException):
    """What ends a process."""


class Copying:
    """A core that copies candles to another symbol's stream; one of them ends its process."""

    history = 1

    def __init__(self, fatal_ms: int) -> None:
        self.fatal_ms = fatal_ms

    def load(self, entries: Sequence[Entry[Any]]) -> None:
        pass

    def step(self, entry: Entry[Any]) -> list[Write[Any]]:
        if entry.event is None:
            return [
                Write(source=COPY, event=gap("ETHUSDT", entry.time_ms), open_time_ms=entry.time_ms)
            ]
        if entry.time_ms == self.fatal_ms:
            raise Fatal
        return [Write(source=COPY, event=gap("ETHUSDT", entry.time_ms), open_time_ms=entry.time_ms)]

    def skip(self, missing: int) -> None:
        pass


COPY = Source(KLINE, "ETHUSDT", "1m")


def gap(symbol: str, time_ms: int) -> Kline:
    return Kline.gap_marker(symbol, "1m", time_ms, time_ms + M - 1)


@pytest.mark.parametrize("fatal", [1, 70, 200])
async def test_an_entry_that_ends_its_process_is_refused_after_five_lives_and_no_other_is(
    valkey: Server, monkeypatch: pytest.MonkeyPatch, fatal: int
) -> None:
    """FAULTS R8, wherever among what was delivered it stands."""
    settings = load()
    async with Bus.session(valkey.url, service="collector") as bus:
        await bus.write(
            *(
                Write(source=SOURCE, event=gap("BTCUSDT", n * M), open_time_ms=n * M)
                for n in range(1, 301)
            )
        )

    async def live() -> None:
        async with Bus.session(valkey.url, service="copier") as bus:
            session = Session(settings=settings, bus=bus, health=Health(), alive=lambda: None)
            one = stage.Stage(
                session, [SOURCE], outputs=lambda source: [COPY], core=lambda _: Copying(fatal * M)
            )
            await one.rebuild()
            work = asyncio.create_task(one.work())
            async with asyncio.timeout(30):
                while not work.done() and await bus.last_id(COPY) != last:  # noqa: ASYNC110  # the server changes it
                    await asyncio.sleep(0.01)
            work.cancel()
            await work

    last = f"{300 * M}-0"
    deaths = 0
    for _ in range(10):
        monkeypatch.setattr("shared.bus._PROCESS", secrets.token_hex(4))
        try:
            await live()
        except asyncio.CancelledError:
            break
        except Fatal:
            deaths += 1
    assert deaths == 5
    with redis.Redis(port=valkey.port) as client:
        assert client.xlen(COPY.key) == 300
        ((_, letter),) = client.xrange(f"dead:{SOURCE.key}")
        assert client.xpending(SOURCE.key, "copier")["pending"] == 0
    assert letter[b"id"] == f"{fatal * M}-0".encode()
    assert letter[b"reason"] == b"delivered 6 times without being done"
