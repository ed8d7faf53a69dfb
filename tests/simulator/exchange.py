"""A running simulator inside the test's own event loop, reached over the wire."""

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp

from simulator.__main__ import build, parser
from simulator.server import Simulator, serving

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Exchange:
    """Where it is, and short ways to talk to it."""

    simulator: Simulator
    port: int
    http: aiohttp.ClientSession

    @property
    def ws_url(self) -> str:
        return f"ws://{HOST}:{self.port}"

    async def get(self, path: str, **params: Any) -> Any:
        """JSON of a request that must succeed."""
        async with self.http.get(path, params={k: str(v) for k, v in params.items()}) as reply:
            body = await reply.text()
            assert reply.status == 200, body
            return json.loads(body)

    async def fails(self, path: str, **params: Any) -> tuple[int, dict[str, Any]]:
        async with self.http.get(path, params=params) as reply:
            return reply.status, await reply.json()

    async def klines(self, interval: str = "1m", **params: Any) -> list[list[Any]]:
        rows: list[list[Any]] = await self.get(
            "/api/v3/klines", **{"symbol": "BTCUSDT", "interval": interval, **params}
        )
        return rows

    async def control(self, path: str, /, **body: Any) -> dict[str, Any]:
        async with self.http.post(f"/control/{path}", json=body) as reply:
            answer: dict[str, Any] = await reply.json()
            assert reply.status == 200, answer
            return answer

    async def state(self) -> dict[str, Any]:
        state: dict[str, Any] = await self.get("/control")
        return state

    async def advance(self, candles: int = 1) -> dict[str, Any]:
        return await self.control("advance", candles=candles)

    async def break_with(self, kind: str, /, **more: Any) -> dict[str, Any]:
        return await self.control("faults", kind=kind, **more)


@contextlib.asynccontextmanager
async def exchange(*options: str) -> AsyncIterator[Exchange]:
    """`python -m simulator OPTIONS`, without the process. Stepped by hand unless told otherwise."""
    given = ["--speed", "manual", "--history", "60", *options]
    simulator = build(parser().parse_args(given))
    async with (
        serving(simulator, HOST, 0) as (port, _work),
        aiohttp.ClientSession(f"http://{HOST}:{port}") as http,
    ):
        yield Exchange(simulator, port, http)


async def events(ws: aiohttp.ClientWebSocketResponse, count: int) -> list[dict[str, Any]]:
    """The next messages, unwrapped."""
    found = []
    for _ in range(count):
        message = await ws.receive_json(timeout=10)
        found.append(message.get("data", message))
    return found


async def until_closed(ws: aiohttp.ClientWebSocketResponse) -> list[dict[str, Any]]:
    """Messages up to and with the next closed candle."""
    found: list[dict[str, Any]] = []
    while not found or not found[-1].get("k", {}).get("x"):
        found += await events(ws, 1)
    return found
