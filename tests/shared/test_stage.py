"""A stage's janitor and its chunks; the rest is proved with the services that are stages."""

import asyncio

import pytest
import redis

from shared import stage
from shared.bus import Bus, Source, Write
from shared.config import load
from shared.events import Kline
from shared.runtime import Health, Session
from shared.streams import KLINE
from tests.valkey import Server

M = 60_000
SOURCE = Source(KLINE, "BTCUSDT", "1m")


async def test_the_janitor_keeps_what_a_rebuild_needs_and_what_a_group_has_not_done(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "_JANITOR_S", 0.01)
    monkeypatch.setattr(stage, "_KEEP_MS", 5 * M)
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
