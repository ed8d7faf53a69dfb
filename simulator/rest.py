"""The REST side: weights, headers, and the mapping of paths to `endpoints`."""

import asyncio
import json
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from aiohttp import web

from simulator import endpoints, signed, trading
from simulator.auth import (
    Caller,
    check_repeats,
    check_window,
    find_key,
    rest_parameters,
    rest_payload,
    verifies,
)
from simulator.clock import AccountClock
from simulator.desk import Desk
from simulator.endpoints import FUTURES, SPOT, ApiError, Params, Venue, View
from simulator.exchange.orders import Account
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
_FAILING = frozenset(("429", "418", "status", "timeout", "html", "lost"))
_UNKNOWN = "An unknown error occurred while processing the request."
_TEXT_OF = {
    -1000: _UNKNOWN,
    -1001: "Internal error; unable to process your request. Please try again.",
    -1006: "An unexpected response was received from the message bus. Execution status unknown.",
    -1007: _TEXTS[504][1],
    -1008: _TEXTS[503][1],
    -1021: "Timestamp for this request is outside of the recvWindow.",
}
# These exist at Binance, and not here: the key is checked, the answer is -1020.
_UNSUPPORTED = {
    SPOT: frozenset(
        (
            "myAllocations",
            "myFilters",
            "order/amend/keepPriority",
            "orderList/opo",
            "orderList/opoco",
            "orderList/oto",
            "orderList/otoco",
            "sor/order",
            "sor/order/test",
        )
    ),
    FUTURES: frozenset(
        (
            "account",
            "allOpenOrders",
            "allOrders",
            "balance",
            "batchOrders",
            "income",
            "leverage",
            "listenKey",
            "marginType",
            "openOrders",
            "order",
            "positionRisk",
            "positionSide/dual",
            "userTrades",
        )
    ),
}
_SIGNED_PATHS = frozenset(path for _, path in signed.REST)


@dataclass(slots=True)
class Transcript:
    """What was asked, for tests: how often each path, and the newest requests."""

    counts: Counter[str] = field(default_factory=Counter)
    newest: deque[dict[str, object]] = field(default_factory=lambda: deque(maxlen=200))

    def note(
        self, path: str, query: Mapping[str, str], status: int, wall_ms: int, method: str = "GET"
    ) -> None:
        self.counts[path] += 1
        self.newest.append(
            {"path": path, "method": method, "query": query, "status": status, "wall_ms": wall_ms}
        )


def wall_ms() -> int:
    """The account clock."""
    return time.time_ns() // 1_000_000


def failure(fault: Fault, now_ms: int) -> ApiError:
    """The error that a fault answers with."""
    status = {"429": 429, "418": 418}.get(fault.kind, fault.status)
    code, text = _TEXTS.get(status, (-1000, _UNKNOWN))
    if fault.code is not None:
        code, text = fault.code, _TEXT_OF.get(fault.code, text)
    wait = fault.retry_after_s
    if status in (418, 429) and wait is None:
        wait = 60
    text = fault.message or text.format(until=now_ms + (wait or 0) * 1000)
    return ApiError(status, code, text, retry_after_s=wait)


def _headers(budget: Budget) -> dict[str, str]:
    used = str(budget.used)
    return {
        "X-MBX-USED-WEIGHT": used,
        "X-MBX-USED-WEIGHT-1M": used,
        "x-mbx-uuid": str(uuid.uuid4()),
    }


def time_unit(request: web.Request) -> int:
    asked = request.headers.get("X-MBX-TIME-UNIT", "")
    return MICROSECONDS if asked.upper() == "MICROSECOND" else MILLISECONDS


@dataclass(slots=True, kw_only=True)
class Rest:
    """The REST endpoints of both venues, public and signed.

    now: market time of this moment and of the last instant played (the order book's).
    """

    venues: dict[str, Venue]
    now: Callable[[], tuple[int, int]]
    faults: Faults
    desk: Desk
    clock: AccountClock
    budgets: dict[str, Budget] = field(
        default_factory=lambda: {SPOT: Budget(6000), FUTURES: Budget(2400)}
    )
    transcript: Transcript = field(default_factory=Transcript)
    background: signed.Background = field(default_factory=signed.Background)

    async def api(self, request: web.Request) -> web.Response:
        return await self._serve(request, SPOT, endpoints.SPOT_ROUTES)

    async def fapi(self, request: web.Request) -> web.Response:
        return await self._serve(request, FUTURES, endpoints.FUTURES_ROUTES)

    async def _serve(
        self, request: web.Request, name: str, routes: dict[str, endpoints.Route]
    ) -> web.Response:
        path = request.match_info["tail"]
        if path == "userDataStream" and name == SPOT:
            return self._html(request, 410, "410 Gone")
        if name == SPOT and path in _SIGNED_PATHS:
            return await self._signed(request, path)
        now = wall_ms()
        query = dict(request.query)
        budget = self.budgets[name]
        route = routes.get(path)
        if route is None and path not in _UNSUPPORTED[name]:
            return self._html(request, 404, "404 Not Found")
        weight = route.weight(query) if route is not None else 20
        fault = self.faults.request(name, path, query.get("symbol", ""), time.monotonic())
        refusal = budget.spend(weight, now)
        headers = _headers(budget)
        if refusal is not None:
            headers["Retry-After"] = str(refusal.retry_after_s)
            error = ApiError(refusal.status, -1003, refusal.message)
            return self._json(request, refusal.status, error.body(), headers)
        if fault is not None and fault.kind in _FAILING:
            return await self._fail(request, fault, headers, now)
        if fault is not None:
            await asyncio.sleep((fault.ms * (fault.kind == "delay") + fault.after_ms) / 1000)
        try:
            if route is None:
                find_key(self.desk.state.keys, request.headers.get("X-MBX-APIKEY"))
                raise ApiError(400, -1020, "This operation is not supported.")
            if request.method != "GET":
                raise ApiError(405, -1000, f"Request method '{request.method}' is not supported.")
            check_repeats(request.query_string)
            body = route.answer(self.view(name, time_unit(request)), Params(query))
        except ApiError as error:
            return self._json(request, error.status, error.body(), headers)
        data = body.encode()
        if fault is not None and fault.kind == "garbage":
            data = data[: len(data) // 2]
        return self._json(request, 200, data, headers)

    async def _signed(self, request: web.Request, path: str) -> web.Response:
        """An endpoint about orders or the account, of spot."""
        query = request.raw_path.partition("?")[2]
        body = (await request.read()).decode("utf-8", "surrogateescape")
        given = rest_parameters(query, body)
        budget = self.budgets[SPOT]
        endpoint = signed.REST.get((request.method, path))
        weight = 1 if endpoint is None else endpoint.weight(given)
        free = endpoint is not None and endpoint.free
        fault = self.faults.request(
            SPOT, path, given.get("symbol", ""), time.monotonic(), method=request.method
        )
        refusal = budget.spend(0 if free else weight, wall_ms())
        headers = _headers(budget)
        if refusal is not None:
            headers["Retry-After"] = str(refusal.retry_after_s)
            error = ApiError(refusal.status, -1003, refusal.message)
            return self._json(request, refusal.status, error.body(), headers, given)
        params = Params(given)
        params.skip("signature", "timestamp", "recvWindow")

        async def work(delays: signed.Delays) -> tuple[Any, Account]:
            if endpoint is None:
                raise ApiError(405, -1000, f"Request method '{request.method}' is not supported.")
            caller = self._caller(request, query, body, given)
            lag_ms = self.lag_ms(request.method, path, given)
            answer = await signed.perform(
                self.desk,
                endpoint,
                caller,
                params,
                time_unit(request),
                delays=delays,
                lag_ms=lag_ms,
            )
            return answer, caller.account

        try:
            answer, account = await signed.carry_out(work, fault, self.background)
        except signed.Struck as struck:
            return await self._fail(request, struck.fault, headers, wall_ms())
        except ApiError as error:
            if free:
                budget.spend(weight, wall_ms())
                headers |= _headers(budget)
            if error.retry_after_s is not None:
                headers["Retry-After"] = str(error.retry_after_s)
            return self._json(request, error.status, error.body(), headers, given)
        if endpoint is not None and (endpoint.orders or endpoint.counted):
            ten, day = self.desk.order_counts(account).now(self.clock.now_ms())
            headers["X-MBX-ORDER-COUNT-10S"] = str(ten)
            headers["X-MBX-ORDER-COUNT-1D"] = str(day)
        data = json.dumps(answer, separators=(",", ":")).encode()
        if fault is not None and fault.kind == "garbage":
            data = data[: len(data) // 2]
        return self._json(request, 200, data, headers, given)

    def lag_ms(self, method: str, path: str, given: Mapping[str, str]) -> int:
        """How old the books are that this query sees."""
        if method != "GET" or not self.faults.active:
            return 0
        return self.faults.lag_ms(path, given.get("symbol", ""), time.monotonic())

    def _caller(
        self, request: web.Request, query: str, body: str, given: Mapping[str, str]
    ) -> Caller:
        """Who signed the request.

        Raises: ApiError.
        """
        account, key = find_key(self.desk.state.keys, request.headers.get("X-MBX-APIKEY"))
        payload, signature = rest_payload(query, body)
        if not signature:
            raise trading.missing("signature")
        if not verifies(key, payload, unquote(signature)):
            raise ApiError(400, -1022, "Signature for this request is not valid.")
        check_repeats(query, body)
        return check_window(
            account, key, given.get("timestamp"), given.get("recvWindow"), self.clock.now_ms()
        )

    async def _fail(
        self, request: web.Request, fault: Fault, headers: dict[str, str], now: int
    ) -> web.Response:
        """What a fault answers instead."""
        if fault.kind in ("timeout", "lost"):
            self.transcript.note(request.path, dict(request.query), 0, now, request.method)
            if fault.kind == "timeout":
                await asyncio.sleep(fault.ms / 1000)
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=504)
        if fault.kind == "html":
            return self._html(
                request, fault.status, f"{fault.status} {_REASON[fault.status // 100]}"
            )
        error = failure(fault, now)
        if error.retry_after_s is not None:
            headers["Retry-After"] = str(error.retry_after_s)
        return self._json(request, error.status, error.body(), headers)

    async def public(self, path: str, params: Mapping[str, str], unit: int) -> str:
        """The answer to a question about the spot market.

        Raises: ApiError.
        """
        return endpoints.SPOT_ROUTES[path].answer(self.view(SPOT, unit), Params(params))

    def view(self, name: str, unit: int) -> View:
        """What a request for market data sees now."""
        market_now, book = self.now()

        def adjust(symbol: str, interval: str, rows: list[Candle]) -> list[Candle]:
            return self.faults.adjust("rest", name, symbol, interval, rows, time.monotonic())

        return View(
            venue=self.venues[name],
            now_ms=market_now,
            book_ms=book,
            wall_ms=self.clock.now_ms(),
            weight_limit=self.budgets[name].per_minute,
            order_limits=(self.desk.terms.orders_10s, self.desk.terms.orders_day),
            unit=unit,
            symbol_info=lambda s: self.desk.state.symbols[s].info,
            exchange_filters=self.desk.exchange_filters,
            adjust=adjust,
        )

    def _json(
        self,
        request: web.Request,
        status: int,
        body: bytes,
        headers: dict[str, str],
        given: Mapping[str, str] | None = None,
    ) -> web.Response:
        shown = dict(request.query) if given is None else given
        self.transcript.note(request.path, shown, status, wall_ms(), request.method)
        headers["Content-Type"] = "application/json;charset=UTF-8"
        return web.Response(status=status, body=body, headers=headers)

    def _html(self, request: web.Request, status: int, text: str) -> web.Response:
        self.transcript.note(request.path, dict(request.query), status, wall_ms(), request.method)
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
        if request.match_info["tail"] == "account/apiRestrictions":
            return await self._restrictions(request)
        if request.match_info["tail"] == "asset/tradeFee":
            wanted = request.query.get("symbol")
            stub = endpoints.trade_fees(self.venues[SPOT], wanted).encode()
        if stub is None:
            return self._html(request, 404, "404 Not Found")
        return self._json(request, 200, stub, {"X-SAPI-USED-IP-WEIGHT-1M": "1"})

    async def _restrictions(self, request: web.Request) -> web.Response:
        """What the key may do."""
        query = request.raw_path.partition("?")[2]
        given = rest_parameters(query, "")
        path = "account/apiRestrictions"
        fault = self.faults.request(SPOT, path, "", time.monotonic())
        headers = {"X-SAPI-USED-IP-WEIGHT-1M": "1"}

        async def work(_: signed.Delays) -> dict[str, Any]:
            key = self._caller(request, query, "", given).key
            return {
                "ipRestrict": key.ip_restricted,
                "createTime": 0,
                "enableReading": True,
                "enableWithdrawals": key.can_withdraw,
                "enableInternalTransfer": False,
                "permitsUniversalTransfer": False,
                "enableVanillaOptions": False,
                "enableFixApiTrade": False,
                "enableFixReadOnly": False,
                "enableMargin": False,
                "enableFutures": False,
                "enableSpotAndMarginTrading": key.can_trade,
                "enablePortfolioMarginTrading": False,
            }

        try:
            answer = await signed.carry_out(work, fault, self.background)
        except signed.Struck as struck:
            return await self._fail(request, struck.fault, headers, wall_ms())
        except ApiError as error:
            return self._json(request, error.status, error.body(), headers, given)
        return self._json(request, 200, json.dumps(answer).encode(), headers, given)

    async def dapi(self, request: web.Request) -> web.Response:
        if request.match_info["tail"] == "exchangeInfo":
            return self._json(request, 200, b'{"symbols":[]}', {})
        return self._html(request, 404, "404 Not Found")
