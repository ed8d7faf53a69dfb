"""The REST side: weights, headers, and the mapping of paths to `endpoints`."""

import asyncio
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import web

from simulator import endpoints
from simulator.endpoints import FUTURES, SPOT, ApiError, Params, Venue, View
from simulator.faults import Fault, Faults
from simulator.limits import Budget
from simulator.wire import MICROSECONDS, MILLISECONDS, Candle

_NGINX = (
    "<html>\r\n<head><title>{status}</title></head>\r\n<body>\r\n<center><h1>{status}</h1></center>"
    "\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
)
_REASON = {4: "Forbidden", 5: "Bad Gateway"}
_TEXTS = {
    418: (
        -1003,
        "Way too much request weight used; IP banned until {until}. Please use WebSocket Streams "
        "for live updates to avoid bans.",
    ),
    429: (
        -1003,
        "Too much request weight used; current limit is 6000 request weight per 1 MINUTE. Please "
        "use WebSocket Streams for live updates to avoid polling the API.",
    ),
    503: (
        -1008,
        "Server is currently overloaded with other requests. Please try again in a few minutes.",
    ),
    504: (
        -1007,
        "Timeout waiting for response from backend server. Send status unknown; execution status "
        "unknown.",
    ),
}
# The order side's place: these exist, check the key, and say that they are not supported.
_SIGNED = frozenset(
    [
        "account",
        "account/commission",
        "allOpenOrders",
        "allOrderList",
        "allOrders",
        "balance",
        "batchOrders",
        "income",
        "leverage",
        "listenKey",
        "marginType",
        "myAllocations",
        "myFilters",
        "myPreventedMatches",
        "myTrades",
        "openOrderList",
        "openOrders",
        "order",
        "order/amend/keepPriority",
        "order/cancelReplace",
        "order/oco",
        "order/test",
        "orderList",
        "orderList/oco",
        "orderList/oto",
        "orderList/otoco",
        "positionRisk",
        "positionSide/dual",
        "rateLimit/order",
        "sor/order",
        "sor/order/test",
        "userTrades",
    ]
)


@dataclass(slots=True)
class Transcript:
    """What was asked, for tests: how often each path, and the newest requests."""

    counts: Counter[str] = field(default_factory=Counter)
    newest: deque[dict[str, object]] = field(default_factory=lambda: deque(maxlen=200))

    def note(self, path: str, query: dict[str, str], status: int, wall_ms: int) -> None:
        self.counts[path] += 1
        self.newest.append({"path": path, "query": query, "status": status, "wall_ms": wall_ms})


def wall_ms() -> int:
    """The account clock."""
    return time.time_ns() // 1_000_000


@dataclass(slots=True, kw_only=True)
class Rest:
    """The public REST endpoints of both venues.

    now: market time of this moment and of the last instant played (the order book's).
    """

    venues: dict[str, Venue]
    now: Callable[[], tuple[int, int]]
    faults: Faults
    key: str
    budgets: dict[str, Budget] = field(
        default_factory=lambda: {SPOT: Budget(6000), FUTURES: Budget(2400)}
    )
    transcript: Transcript = field(default_factory=Transcript)

    async def api(self, request: web.Request) -> web.Response:
        return await self._serve(request, SPOT, endpoints.SPOT_ROUTES)

    async def fapi(self, request: web.Request) -> web.Response:
        return await self._serve(request, FUTURES, endpoints.FUTURES_ROUTES)

    async def _serve(
        self, request: web.Request, name: str, routes: dict[str, endpoints.Route]
    ) -> web.Response:
        now = wall_ms()
        path = request.match_info["tail"]
        query = dict(request.query)
        budget = self.budgets[name]
        route = routes.get(path)
        if path == "userDataStream" and name == SPOT:
            return self._html(request, 410, "410 Gone")
        if route is None and path not in _SIGNED:
            return self._html(request, 404, "404 Not Found")
        weight = route.weight(query) if route is not None else 20
        fault = self.faults.request(name, path, query.get("symbol", ""), time.monotonic())
        refusal = budget.spend(weight, now)
        headers = {
            "X-MBX-USED-WEIGHT": str(budget.used),
            "X-MBX-USED-WEIGHT-1M": str(budget.used),
            "x-mbx-uuid": str(uuid.uuid4()),
        }
        if refusal is not None:
            headers["Retry-After"] = str(refusal.retry_after_s)
            error = ApiError(refusal.status, -1003, refusal.message)
            return self._json(request, refusal.status, error.body(), headers)
        if fault is not None and fault.kind in ("429", "418", "status", "timeout", "html"):
            return await self._fail(request, fault, headers, now)
        if fault is not None and fault.kind == "delay":
            await asyncio.sleep(fault.ms / 1000)
        try:
            if route is None:
                self._refuse_signed(request)
            elif request.method != "GET":
                raise ApiError(405, -1000, f"Request method '{request.method}' is not supported.")
            else:
                body = route.answer(self._view(request, name, now), Params(query))
                data = body.encode()
                if fault is not None and fault.kind == "garbage":
                    data = data[: len(data) // 2]
                return self._json(request, 200, data, headers)
        except ApiError as error:
            return self._json(request, error.status, error.body(), headers)
        raise AssertionError("unreachable")

    async def _fail(
        self, request: web.Request, fault: Fault, headers: dict[str, str], now: int
    ) -> web.Response:
        """What a fault answers instead."""
        if fault.kind == "timeout":
            self.transcript.note(request.path, dict(request.query), 0, now)
            await asyncio.sleep(fault.ms / 1000)
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=504)
        if fault.kind == "html":
            return self._html(
                request, fault.status, f"{fault.status} {_REASON[fault.status // 100]}"
            )
        status = {"429": 429, "418": 418}.get(fault.kind, fault.status)
        code, text = _TEXTS.get(
            status, (-1000, "An unknown error occurred while processing the request.")
        )
        if status in (418, 429):
            wait = 60 if fault.retry_after_s is None else fault.retry_after_s
            text = text.format(until=now + wait * 1000)
            headers["Retry-After"] = str(wait)
        elif fault.retry_after_s is not None:
            headers["Retry-After"] = str(fault.retry_after_s)
        error = ApiError(status, fault.code or code, fault.message or text)
        return self._json(request, status, error.body(), headers)

    def _view(self, request: web.Request, name: str, now: int) -> View:
        unit = request.headers.get("X-MBX-TIME-UNIT", "").upper()
        market_now, book = self.now()

        def adjust(symbol: str, interval: str, rows: list[Candle]) -> list[Candle]:
            return self.faults.adjust("rest", name, symbol, interval, rows, time.monotonic())

        return View(
            venue=self.venues[name],
            now_ms=market_now,
            book_ms=book,
            wall_ms=now,
            weight_limit=self.budgets[name].per_minute,
            unit=MICROSECONDS if unit == "MICROSECOND" else MILLISECONDS,
            adjust=adjust,
        )

    def _refuse_signed(self, request: web.Request) -> None:
        """Signed endpoints: the key is checked; trading itself is not offered by this simulator."""
        key = request.headers.get("X-MBX-APIKEY")
        if key is None:
            raise ApiError(401, -2014, "API-key format invalid.")
        if key != self.key:
            raise ApiError(401, -2015, "Invalid API-key, IP, or permissions for action.")
        raise ApiError(400, -1020, "This operation is not supported.")

    def _json(
        self, request: web.Request, status: int, body: bytes, headers: dict[str, str]
    ) -> web.Response:
        self.transcript.note(request.path, dict(request.query), status, wall_ms())
        response = web.Response(
            status=status, body=body, headers=headers, content_type="application/json"
        )
        response.charset = "UTF-8"
        return response

    def _html(self, request: web.Request, status: int, text: str) -> web.Response:
        self.transcript.note(request.path, dict(request.query), status, wall_ms())
        return web.Response(
            status=status, text=_NGINX.format(status=text), content_type="text/html"
        )

    async def sapi(self, request: web.Request) -> web.Response:
        """The few account endpoints that clients call unasked."""
        stub = {
            "system/status": b'{"status":0,"msg":"normal"}',
            "capital/config/getall": b"[]",
            "margin/allPairs": b"[]",
            "margin/isolated/allPairs": b"[]",
        }.get(request.match_info["tail"])
        if request.match_info["tail"] == "asset/tradeFee":
            wanted = request.query.get("symbol")
            stub = endpoints.trade_fees(self.venues[SPOT], wanted).encode()
        if stub is None:
            return self._html(request, 404, "404 Not Found")
        return self._json(request, 200, stub, {"X-SAPI-USED-IP-WEIGHT-1M": "1"})

    async def dapi(self, request: web.Request) -> web.Response:
        if request.match_info["tail"] == "exchangeInfo":
            return self._json(request, 200, b'{"symbols":[]}', {})
        return self._html(request, 404, "404 Not Found")
