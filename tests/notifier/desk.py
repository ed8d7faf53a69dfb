"""The rest of the system for the tests of notifier and trader: candles, signals, notices."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

import redis.asyncio as redis

from shared.bus import Bus, Entry, Source, Write
from shared.config import Settings, load
from shared.events import Kline, Level, Notice, Notification, Order, Signal
from shared.runtime import Health, Session
from shared.streams import KLINE, NOTICE, NOTIFICATION, ORDER, SIGNAL

MINUTE = 60_000
START = 1_700_000_040_000 // MINUTE * MINUTE
SIGNALS = Source(SIGNAL, "BTCUSDT", "1m")


def settings(**overrides: Any) -> Settings:
    return load(None, **overrides)


def kline(number: int) -> Write[Kline]:
    """Candle `number`, published as it closed."""
    open_ms = START + number * MINUTE
    event = Kline(
        symbol="BTCUSDT", interval="1m", open_time_ms=open_ms, close_time_ms=open_ms + MINUTE - 1,
        open=60_518.0, high=60_518.0, low=60_518.0, close=60_518.0, volume=1.0,
    )  # fmt: skip
    source = Source(KLINE, "BTCUSDT", "1m")
    return Write(source=source, event=event, open_time_ms=open_ms, market_ms=open_ms + MINUTE + 40)


def signal(
    number: int, score: float | None = -0.26, side: str = "", **changes: Any
) -> Write[Signal]:
    open_ms = START + number * MINUTE
    values: dict[str, Any] = {
        "symbol": "BTCUSDT", "interval": "1m", "close": 60_518.0, "score": score, "side": side,
        "invalid": "", "release": "r", "schema": "s",
    }  # fmt: skip
    event = Signal(open_time_ms=open_ms, **(values | changes))
    return Write(source=SIGNALS, event=event, open_time_ms=open_ms)


def notice(text: str, *, code: str = "gap", level: Level = Level.ALERT) -> Write[Notice]:
    event = Notice(service="collector", level=level, code=code, text=text, time_ms=START)
    return Write(source=Source(NOTICE), event=event)


class Desk:
    """The rest of the system: writes what the service reads, reads what it writes."""

    def __init__(self, bus: Bus, url: str) -> None:
        self.bus = bus
        self.url = url
        self.raw = redis.Redis.from_url(url, socket_timeout=60)

    async def candles(self, count: int, score: float | None = -0.26, side: str = "") -> None:
        """Candles 0 .. count-1, each with its signal."""
        await self.bus.write(*(kline(n) for n in range(count)))
        await self.bus.write(*(signal(n, score, side) for n in range(count)))

    async def until(self, stream: str, count: int) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """Waits until `count` entries stand on a stream; returns them all."""
        found: list[Any] = []
        last: Any = "0"
        while len(found) < count:
            reply: Any = await self.raw.xread({stream: last}, block=90_000)
            assert reply, f"{stream} has {len(found)} entries, not {count}"
            found += reply[0][1]
            last = found[-1][0]
        return found

    async def notifications(self) -> list[Notification]:
        return await self._events(Source(NOTIFICATION, "BTCUSDT", "1m"))

    async def orders(self) -> list[Order]:
        return await self._events(Source(ORDER, "BTCUSDT"))

    async def notices(self, service: str) -> list[Notice]:
        found = await self._events(Source(NOTICE))
        return [event for event in found if event.service == service]

    async def _events(self, source: Source[Any]) -> list[Any]:
        return [_event(entry) for entry in await self.bus.tail(source, 10_000)]

    async def pending(self, service: str) -> int:
        """Entries of the signals and notices that the service has not acknowledged."""
        count = 0
        for source in (SIGNALS, Source(NOTICE)):
            positions = await self.bus.group_position(source)
            count += positions.get(service, ("", 0))[1]
        return count

    async def everything(self) -> bytes:
        """All that stands on the server, to look for what must not."""
        found: list[Any] = []
        for key in await self.raw.keys("*"):
            kind = await self.raw.type(key)
            found.append(
                (key, await (self.raw.xrange(key) if kind == b"stream" else self.raw.get(key)))
            )
        return repr(found).encode()

    async def until_read(
        self,
        service: str,
        sources: Sequence[Source[Any]] = (SIGNALS, Source(NOTICE)),
        *,
        acknowledged: bool = True,
    ) -> None:
        """Waits until the service has read and acknowledged everything."""
        while True:
            read = [
                (await self.bus.group_position(source)).get(service, ("", 0))[0]
                == (await self.bus.last_id(source) or "0-0")
                for source in sources
            ]
            if all(read) and not (acknowledged and await self.pending(service)):
                return
            await asyncio.sleep(0.001)  # a group's position tells nobody that it moved


def _event(entry: Entry[Any]) -> Any:
    assert entry.event is not None, entry.problem
    return entry.event


@contextlib.asynccontextmanager
async def open_desk(url: str) -> AsyncIterator[Desk]:
    async with Bus.session(url, service="desk") as bus:
        desk = Desk(bus, url)
        yield desk
        await desk.raw.aclose()


@contextlib.asynccontextmanager
async def serving(
    url: str,
    service: str,
    serve: Callable[[Session], Coroutine[Any, Any, None]],
    settings: Settings,
) -> AsyncIterator[Session]:
    """One session of a service, in this process; its failure is the test's."""
    async with Bus.session(url, service=service) as bus:
        session = Session(settings=settings, bus=bus, health=Health(), alive=lambda: None)
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(serve(session))
            yield session
            task.cancel()
