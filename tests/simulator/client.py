"""A signing client of the simulator's order side, independent of the project's own."""

import contextlib
import hashlib
import hmac
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import aiohttp

from tests.simulator.exchange import Exchange

SYMBOL = "BTCUSDT"


def hmac_of(secret: str) -> Callable[[bytes], str]:
    return lambda payload: hmac.new(secret.encode(), payload, hashlib.sha256).hexdigest()


@dataclass
class Client:
    """One key at an exchange. sign: payload -> signature text."""

    ex: Exchange
    key: str = "demo"
    sign: Callable[[bytes], str] = field(default_factory=lambda: hmac_of("demo"))
    headers: dict[str, str] = field(default_factory=dict)

    async def send(
        self, method: str, path: str, **params: Any
    ) -> tuple[int, Any, "aiohttp.typedefs.LooseHeaders"]:
        """(status, JSON or text, headers) of a signed request, everything in the query."""
        given = {"timestamp": int(time.time() * 1000), **params}
        query = urlencode({k: str(v) for k, v in given.items() if v is not None})
        signature = urlencode({"signature": self.sign(query.encode())})
        prefix = "" if path.startswith("/") else "/api/v3/"
        async with self.ex.http.request(
            method,
            f"{prefix}{path}?{query}&{signature}",
            headers={"X-MBX-APIKEY": self.key, **self.headers},
        ) as reply:
            text = await reply.text()
            body = json.loads(text) if "json" in reply.content_type else text
            return reply.status, body, dict(reply.headers)

    async def ask(self, method: str, path: str, **params: Any) -> Any:
        """The answer to a request that must succeed."""
        status, body, _ = await self.send(method, path, **params)
        assert status == 200, body
        return body

    async def fails(self, method: str, path: str, **params: Any) -> tuple[int, int, str]:
        """(status, code, text) of a request that must fail."""
        status, body, _ = await self.send(method, path, **params)
        assert status >= 400, body
        return status, body["code"], body["msg"]

    async def place(self, side: str, kind: str, **params: Any) -> Any:
        if kind in ("LIMIT", "STOP_LOSS_LIMIT", "TAKE_PROFIT_LIMIT"):
            params.setdefault("timeInForce", "GTC")
        return await self.ask("POST", "order", symbol=SYMBOL, side=side, type=kind, **params)

    async def refused(self, side: str, kind: str, **params: Any) -> tuple[int, int, str]:
        if kind in ("LIMIT", "STOP_LOSS_LIMIT", "TAKE_PROFIT_LIMIT"):
            params.setdefault("timeInForce", "GTC")
        return await self.fails("POST", "order", symbol=SYMBOL, side=side, type=kind, **params)

    async def order(self, order_id: int) -> Any:
        return await self.ask("GET", "order", symbol=SYMBOL, orderId=order_id)

    async def balances(self) -> dict[str, tuple[str, str]]:
        account = await self.ask("GET", "account")
        return {row["asset"]: (row["free"], row["locked"]) for row in account["balances"]}

    @contextlib.asynccontextmanager
    async def socket(self, query: str = "") -> AsyncIterator["Socket"]:
        async with self.ex.http.ws_connect(f"/ws-api/v3{query}") as ws:
            yield Socket(ws, self)


@dataclass
class Socket:
    """A WS API connection: replies by id, user events in order."""

    ws: aiohttp.ClientWebSocketResponse
    client: Client
    events: list[dict[str, Any]] = field(default_factory=list)
    _ids: Any = field(default_factory=lambda: itertools.count(1))

    async def request(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """The reply to a request as it is; user events that come before it are kept."""
        number = next(self._ids)
        await self.ws.send_json({"id": number, "method": method, "params": params or {}})
        while True:
            message = await self.ws.receive_json(timeout=30)
            if message.get("id") == number:
                return dict(message)
            self.events.append(message["event"])

    async def signed(self, method: str, **params: Any) -> dict[str, Any]:
        given = {"apiKey": self.client.key, "timestamp": int(time.time() * 1000), **params}
        payload = "&".join(f"{k}={_as_json(v)}" for k, v in sorted(given.items()))
        return await self.request(
            method, {**given, "signature": self.client.sign(payload.encode())}
        )

    async def subscribe(self) -> int:
        reply = await self.signed("userDataStream.subscribe.signature")
        assert reply["status"] == 200, reply
        number: int = reply["result"]["subscriptionId"]
        return number

    async def next(self, count: int) -> list[dict[str, Any]]:
        """The next user events."""
        while len(self.events) < count:
            message = await self.ws.receive_json(timeout=30)
            self.events.append(message["event"])
        found, self.events = self.events[:count], self.events[count:]
        return found


def _as_json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
