"""A market on disk, our simulator serving it over the wire, a real Valkey, collectors at work."""

import asyncio
import contextlib
import csv
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import redis

from collector.service import Market, serve
from shared import codec
from shared.bus import Bus
from shared.config import Settings, load
from shared.errors import OutOfSync, Unavailable
from shared.events import Kline, Notice
from shared.runtime import Health, Session
from simulator.__main__ import build, parser
from simulator.server import serving
from tests.valkey import Server

M = 60_000
START = 28_000_000 * M
HISTORY = 40
SYMBOL = "BTCUSDT"


def truth(symbol: str = SYMBOL, count: int = 600, *, missing: Sequence[int] = ()) -> list[Kline]:
    """A random walk with eight decimals at most, without the minutes in `missing`."""
    rng = random.Random(symbol)
    price = 100.0
    rows = []
    for index in range(count):
        opened, price = price, round(price * (1 + rng.gauss(0, 0.002)), 2)
        volume = round(rng.uniform(1, 9), 5)
        time_ms = START + index * M
        row = Kline(
            symbol=symbol,
            interval="1m",
            open_time_ms=time_ms,
            close_time_ms=time_ms + M - 1,
            open=opened,
            high=max(opened, price) + 0.5,
            low=min(opened, price) - 0.5,
            close=price,
            volume=volume,
            quote_volume=round(volume * price, 5),
            trades=float(rng.randrange(1, 99)),
            taker_base=round(volume / 2, 5),
            taker_quote=round(volume * price / 2, 5),
        )
        if index not in missing:
            rows.append(row)
    return rows


def write_csv(folder: Path, rows: Sequence[Kline]) -> Path:
    """As the bulk archive writes them."""
    path = folder / f"{rows[0].symbol}-{rows[0].interval}.csv"
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        for k in rows:
            times, prices = (k.open_time_ms, k.close_time_ms), (k.open, k.high, k.low, k.close)
            last = (k.quote_volume, int(k.trades), k.taker_base, k.taker_quote, 0)
            out.writerow([times[0], *prices, k.volume, times[1], *last])
    return path


@dataclass
class Collector:
    """One collector in this process; `health` is that of its newest session."""

    market: Market
    sessions: int = 0
    health: Health = field(default_factory=Health)


@dataclass
class Rig:
    """What a test works with."""

    valkey: Server
    port: int
    http: aiohttp.ClientSession
    folder: Path
    redis: "redis.Redis"
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def settings(self, **keys: Any) -> Settings:
        collector = {"history_rows": HISTORY} | keys.pop("collector", {})
        rest, stream = f"http://127.0.0.1:{self.port}", f"ws://127.0.0.1:{self.port}"
        return load(
            **{
                "redis_url": self.valkey.url,
                "binance_rest_url": rest,
                "binance_ws_url": stream,
                "futures_rest_url": rest,
                "futures_ws_url": stream,
                "data_folder": str(self.folder / "data"),
                "market_speed": 60,
                "collector": collector,
            }
            | keys
        )

    # the exchange

    async def control(self, what: str, **body: Any) -> Any:
        url = f"http://127.0.0.1:{self.port}/control/{what}".rstrip("/")
        async with self.http.post(url, json=body) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def state(self) -> Any:
        async with self.http.get(f"http://127.0.0.1:{self.port}/control") as response:
            return await response.json()

    async def advance(self, candles: int = 1) -> None:
        """The market goes on by closed candles; back when all clients have read them."""
        assert (await self.control("advance", candles=candles))["played"] == candles

    # the bus

    def klines(self, symbol: str = SYMBOL, stream: str = "kline") -> list[Kline]:
        return [
            codec.decode(Kline, fields[b"data"]).event
            for _, fields in self.redis.xrange(f"{stream}:{{{symbol}}}:1m")  # type: ignore[union-attr]
        ]

    def notices(self) -> list[Notice]:
        entries: Any = self.redis.xrange("notice")
        return [codec.decode(Notice, fields[b"data"]).event for _, fields in entries]

    def codes(self) -> list[str]:
        return [notice.code for notice in self.notices()]

    async def until(self, condition: Callable[[], bool], timeout_s: float = 20) -> None:
        """Waits on a condition that this process or the bus shows."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            for task in self.tasks:
                if task.done():
                    task.result()
            assert time.monotonic() < deadline, "the condition was not met in time"
            await asyncio.sleep(0.01)

    async def until_written(self, index: int, symbol: str = SYMBOL, stream: str = "kline") -> None:
        """Until the candle is on the stream."""
        wanted = START + index * M
        key = f"{stream}:{{{symbol}}}:1m"

        def is_there() -> bool:
            last: Any = self.redis.xrevrange(key, count=1)
            return bool(last) and int(last[0][0].split(b"-")[0]) >= wanted

        await self.until(is_there)

    @contextlib.asynccontextmanager
    async def collecting(self, **keys: Any) -> AsyncIterator[Collector]:
        """A collector in this process, session after session as `runtime.sessions` would."""
        async with run_collector(self.settings(**keys), self.tasks) as collector:
            yield collector


@contextlib.asynccontextmanager
async def run_collector(
    settings: Settings, running: list[asyncio.Task[None]]
) -> AsyncIterator[Collector]:
    """running: where its tasks stand while they live; one that ends has failed."""
    async with Market.opened(settings) as market:
        collector = Collector(market)

        async def sessions() -> None:
            while True:
                try:
                    opening = Bus.session(
                        settings.redis_url, service="collector", instance=settings.instance
                    )
                    async with opening as bus:
                        collector.sessions += 1
                        collector.health = Health()
                        await serve(market, Session(settings, bus, collector.health, lambda: None))
                except (Unavailable, OutOfSync):
                    pass
                except BaseExceptionGroup as group:
                    rest = group.split((Unavailable, OutOfSync))[1]
                    if rest is not None:
                        raise rest from None
                await asyncio.sleep(0.02)

        tasks = [asyncio.create_task(market.listen()), asyncio.create_task(sessions())]
        running.extend(tasks)
        try:
            yield collector
        finally:
            for task in tasks:
                running.remove(task)
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def rigged(
    folder: Path,
    valkey: Server,
    *tables: Sequence[Kline],
    options: Sequence[str] = ("--speed", "manual"),
) -> AsyncIterator[Rig]:
    """The simulator with these candles, HISTORY of them in the past."""
    files = [str(write_csv(folder, rows)) for rows in tables or (truth(),)]
    arguments = ["--data", *files, "--history", str(HISTORY), *options]
    simulator = build(parser().parse_args(arguments))
    client = redis.Redis(port=valkey.port)
    async with (
        serving(simulator, "127.0.0.1", 0) as (port, _),
        aiohttp.ClientSession() as http,
    ):
        yield Rig(valkey, port, http, folder, client)
    client.close()


def ledger(folder: Path, symbol: str = SYMBOL) -> list[dict[str, Any]]:
    path = folder / "data" / f"{symbol}-1m-klines" / "ledger.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
