"""A scripted account server: says what it is told to, keeps what it was asked, byte for byte.

async with ScriptedAccount() as server:
    server.answers.append(Answer({"code": -2010, "msg": "..."}, status=400))
    ...
    server.asked[0].body          # the very bytes
"""

import asyncio
import json
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from aiohttp import WSCloseCode, WSMsgType, web

HTML = b"<html>\r\n<head><title>502 Bad Gateway</title></head></html>\r\n"


@dataclass(frozen=True)
class Answer:
    """body: JSON, or bytes as they are. cut: end the connection `before` anything is said, or after
    the `headers`. delay: an event to wait for first."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: str = ""
    delay: asyncio.Event | None = None


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    query: str
    body: bytes
    headers: dict[str, str]


class ScriptedAccount:
    """REST at `url`, the WebSocket API at `ws_url`; user events go out by `send`."""

    def __init__(self) -> None:
        self.answers: deque[Answer] = deque()
        self.by_path: dict[str, Answer] = {}
        self.asked: list[Asked] = []
        self.subscribed: list[dict[str, Any]] = []
        self.subscription: dict[str, Any] = {"status": 200, "result": {"subscriptionId": 0}}
        self.ws_status = 101
        self.sockets: list[web.WebSocketResponse] = []
        self.connections: set[object] = set()
        self.pongs: list[bytes] = []
        self.ponged = asyncio.Event()
        self._opened = asyncio.Condition()

    async def __aenter__(self) -> "ScriptedAccount":
        app = web.Application()
        app.router.add_get("/ws-api/v3", self._ws)
        app.router.add_route("*", "/{path:.*}", self._rest)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.ws_url = f"ws://127.0.0.1:{self.port}/ws-api/v3"
        return self

    async def __aexit__(self, *_: object) -> None:
        for ws in self.sockets:
            await ws.close()
        await self._runner.cleanup()

    async def _rest(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(
            Asked(
                request.method,
                request.path,
                request.raw_path.partition("?")[2],
                await request.read(),
                dict(request.headers),
            )
        )
        self.connections.add(request.transport)
        answer = self.by_path.get(request.path)
        if answer is None:
            answer = self.answers.popleft()
        if answer.delay is not None:
            await answer.delay.wait()
        assert request.transport is not None
        if answer.cut == "before":
            request.transport.abort()
            return web.Response()
        raw = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        response = web.StreamResponse(status=answer.status, headers=answer.headers)
        response.content_length = len(raw)
        response.content_type = "application/json"
        await response.prepare(request)
        if answer.cut == "headers":
            await response.write(raw[: len(raw) // 2])
            request.transport.close()
            return response
        await response.write(raw)
        return response

    async def _ws(self, request: web.Request) -> web.StreamResponse:
        if self.ws_status != 101:
            return web.Response(status=self.ws_status, headers={"Retry-After": "7"})
        ws = web.WebSocketResponse(autoping=False)
        await ws.prepare(request)
        asked = await ws.receive_json()
        self.subscribed.append(asked)
        await ws.send_json({"id": asked["id"], "rateLimits": [], **self.subscription})
        async with self._opened:
            self.sockets.append(ws)
            self._opened.notify_all()
        async for message in ws:
            if message.type is WSMsgType.PONG:
                self.pongs.append(bytes(message.data))
                self.ponged.set()
        return ws

    async def opened(self, count: int) -> web.WebSocketResponse:
        """The newest user stream, once there have been so many."""
        async with self._opened:
            await asyncio.wait_for(self._opened.wait_for(lambda: len(self.sockets) >= count), 60)
        return self.sockets[-1]

    async def send(self, event: Any) -> None:
        await self.sockets[-1].send_json({"subscriptionId": 0, "event": event})

    async def cut(self) -> None:
        await self.sockets[-1].close(code=WSCloseCode.POLICY_VIOLATION)
