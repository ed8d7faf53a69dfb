"""The WS API: requests and replies as JSON text frames on `/ws-api/v3`, and user data streams.

A request goes through the same functions as its REST sibling. Numbers in parameters are kept as the
text that they were sent as, since the signature is over that text.
"""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import WSMsgType, web

from simulator import endpoints, signed, trading
from simulator.auth import Caller, check_window, find_key, is_ed25519, verifies, ws_payload
from simulator.desk import Event, Render
from simulator.endpoints import SPOT, ApiError, Params
from simulator.exchange.orders import Account, Key
from simulator.faults import Faults, UserEvent
from simulator.rest import Rest, failure, wall_ms
from simulator.streams import WS_API, Connection, Hub
from simulator.wire import MICROSECONDS, MILLISECONDS, frame

_CONNECT_WEIGHT = 2
_MOST_ACTIVE, _MOST_EVER = 1000, 65535
_PUBLIC = {
    "ping": "ping",
    "time": "time",
    "exchangeInfo": "exchangeInfo",
    "depth": "depth",
    "klines": "klines",
    "uiKlines": "uiKlines",
    "trades.recent": "trades",
    "trades.historical": "historicalTrades",
    "trades.aggregate": "aggTrades",
    "avgPrice": "avgPrice",
    "ticker": "ticker",
    "ticker.price": "ticker/price",
    "ticker.book": "ticker/bookTicker",
    "ticker.24hr": "ticker/24hr",
    "ticker.tradingDay": "ticker/tradingDay",
}
_SIGNED = {
    "order.place": ("POST", "order"),
    "order.test": ("POST", "order/test"),
    "order.status": ("GET", "order"),
    "order.cancel": ("DELETE", "order"),
    "openOrders.status": ("GET", "openOrders"),
    "openOrders.cancelAll": ("DELETE", "openOrders"),
    "allOrders": ("GET", "allOrders"),
    "myTrades": ("GET", "myTrades"),
    "account.status": ("GET", "account"),
    "account.commission": ("GET", "account/commission"),
    "account.rateLimits.orders": ("GET", "rateLimit/order"),
    "order.cancelReplace": ("POST", "order/cancelReplace"),
    "orderList.place": ("POST", "order/oco"),
    "orderList.place.oco": ("POST", "orderList/oco"),
    "orderList.status": ("GET", "orderList"),
    "orderList.cancel": ("DELETE", "orderList"),
    "allOrderLists": ("GET", "allOrderList"),
    "openOrderLists.status": ("GET", "openOrderList"),
    "myPreventedMatches": ("GET", "myPreventedMatches"),
}


@dataclass(eq=False, slots=True)
class Subscription:
    """One user data stream on a connection. by_logon: it ends with the session's logon."""

    number: int
    account: Account
    connection: Connection
    by_logon: bool
    faults: Faults

    def tell(self, events: list[Event]) -> None:
        if not self.faults.active:
            for event in events:
                self.put(event)
        else:
            loop = asyncio.get_running_loop()
            for ms, shaped in self.faults.tell(id(self), events, time.monotonic()):
                if ms:
                    loop.call_later(ms / 1000, self._put_late, shaped)
                else:
                    self.put(shaped)
        self.connection.flush()

    def put(self, event: UserEvent) -> None:
        body = f'{{"subscriptionId":{self.number},"event":{event.text(self.connection.unit)}}}'
        self.connection.put(frame(body.encode()))

    def _put_late(self, event: UserEvent) -> None:
        self.put(event)
        self.connection.flush()


@dataclass(eq=False, slots=True)
class Session:
    """What a connection has agreed: its key, its subscriptions."""

    connection: Connection
    key_name: str = ""
    authorized_ms: int = 0
    connected_ms: int = 0
    tells_limits: bool = True
    subscriptions: dict[int, Subscription] = field(default_factory=dict)
    next_number: int = 0


@dataclass(slots=True)
class WsApi:
    """The WS API's connections and methods."""

    hub: Hub
    rest: Rest
    sessions: set[Session] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """One connection from handshake to end."""
        refusal = self.rest.budgets[SPOT].spend(_CONNECT_WEIGHT, wall_ms())
        if refusal is not None:
            return web.Response(
                status=refusal.status, headers={"Retry-After": str(refusal.retry_after_s)}
            )
        ws = web.WebSocketResponse(autoping=False, compress=False, timeout=2.0)
        await ws.prepare(request)
        now = asyncio.get_running_loop().time()
        transport = request.transport
        if transport is None:  # hung up during the handshake
            return ws
        unit = request.query.get("timeUnit", "").upper()
        connection = Connection(
            SPOT,
            WS_API,
            ws,
            transport,
            now,
            MICROSECONDS if unit == "MICROSECOND" else MILLISECONDS,
        )
        connection.heard_s = connection.pinged_s = now
        session = Session(connection, connected_ms=self.rest.clock.now_ms())
        session.tells_limits = request.query.get("returnRateLimits", "true").lower() != "false"
        self.hub.connections.add(connection)
        self.sessions.add(session)
        try:
            await self._listen(session)
        finally:
            self.unsubscribe(session, list(session.subscriptions))
            self.sessions.discard(session)
            self.hub.connections.discard(connection)
        return ws

    async def _listen(self, session: Session) -> None:
        connection = session.connection
        async for message in connection.ws:
            if message.type is WSMsgType.PONG:
                connection.pong(bytes(message.data), asyncio.get_running_loop().time())
            elif message.type is WSMsgType.PING:
                connection.put(frame(bytes(message.data), head=0x8A))
                connection.flush()
            elif message.type is WSMsgType.TEXT:
                # a task of its own: a slow request holds up no other, and outlives the connection
                task = asyncio.create_task(self._answer(session, message.data))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            elif message.type is WSMsgType.BINARY:
                await connection.ws.close(code=1003, message=b"Binary frames are not supported")
                return

    # requests

    async def _answer(self, session: Session, text: str) -> None:
        reply = await self._reply(session, text)
        if reply is not None:
            session.connection.put(frame(reply.encode()))
            session.connection.flush()

    async def _reply(self, session: Session, text: str) -> str | None:
        """The reply frame's text; None for no reply at all."""
        try:
            asked = json.loads(text, parse_float=_Number, parse_int=_Number)
        except ValueError:
            return _failed(None, ApiError(400, -1135, "Invalid JSON Request"), "")
        if not isinstance(asked, dict):
            return _failed(None, ApiError(400, -1135, "Invalid JSON Request"), "")
        identity = asked.get("id")
        method = asked.get("method")
        given = asked.get("params") or {}
        if isinstance(identity, _Number):
            identity = int(identity) if identity.isdigit() else str(identity)
        if not isinstance(method, str) or not isinstance(given, dict):
            return _failed(identity, ApiError(400, -1135, "Invalid JSON Request"), "")
        params = {name: _text(value) for name, value in given.items()}
        tells = session.tells_limits
        if params.get("returnRateLimits"):
            tells = params["returnRateLimits"] == "true"
        method = method.removeprefix("v3/")
        try:
            result, counted = await self._do(session, method, params)
        except signed.Struck:
            return None
        except ApiError as error:
            if error.status == 418:  # a banned address is disconnected, once it has been told
                loop = asyncio.get_running_loop()
                loop.call_soon(self.hub.end, session.connection, 1008, b"banned")
            return _failed(identity, error, self._limits() if tells else "", wall_ms())
        limits = ""
        if tells:
            limits = self._limits(counted)
        return f'{{"id":{json.dumps(identity)},"status":200,"result":{result}{limits}}}'

    async def _do(
        self, session: Session, method: str, params: dict[str, str]
    ) -> tuple[str, Account | None]:
        """(the result as JSON, the account whose order count is shown)."""
        own = self._own_methods().get(method)
        if own is not None:
            self._spend(2)
            return json.dumps(own(session, params), separators=(",", ":")), None
        path = _PUBLIC.get(method)
        if path is not None:
            self._spend(endpoints.SPOT_ROUTES[path].weight(params))
            asked = {k: v for k, v in params.items() if v and k != "returnRateLimits"}
            text = await self.rest.public(path, asked, session.connection.unit)
            return (_ws_info(text) if path == "exchangeInfo" else text), None
        name = _SIGNED.get(method)
        if name is None:
            raise ApiError(400, -1020, "This operation is not supported.")
        endpoint = signed.REST[name]
        http_method, path = name
        fault = self.rest.faults.request(
            SPOT, path, params.get("symbol", ""), time.monotonic(), method=http_method, where="ws"
        )
        self._spend(0 if endpoint.free else endpoint.weight(params))
        read = Params({name: value for name, value in params.items() if value})  # without nulls
        read.skip("apiKey", "signature", "timestamp", "recvWindow", "returnRateLimits")

        async def work(delays: signed.Delays) -> tuple[Any, Account]:
            caller = self._caller(session, params)
            answer = await signed.perform(
                self.rest.desk,
                endpoint,
                caller,
                read,
                session.connection.unit,
                delays=delays,
                lag_ms=self.rest.lag_ms(http_method, path, params),
            )
            return answer, caller.account

        try:
            answer, account = await signed.carry_out(work, fault, self.rest.background)
        except signed.Struck as struck:
            if struck.fault.kind == "lost":
                session.connection.transport.abort()
            if struck.fault.kind in ("lost", "timeout"):
                raise
            raise failure(struck.fault, wall_ms()) from None
        except ApiError:
            if endpoint.free:
                self.rest.budgets[SPOT].spend(endpoint.weight(params), wall_ms())
            raise
        text = json.dumps(answer, separators=(",", ":"))
        if fault is not None and fault.kind == "garbage":
            text = text[: len(text) // 2]
        return text, account if endpoint.orders or endpoint.counted else None

    def _spend(self, weight: int) -> None:
        refusal = self.rest.budgets[SPOT].spend(weight, wall_ms())
        if refusal is not None:
            now = wall_ms()
            data = {"serverTime": now, "retryAfter": now + refusal.retry_after_s * 1000}
            raise ApiError(refusal.status, -1003, refusal.message, data=data)

    def _caller(self, session: Session, params: Mapping[str, str]) -> Caller:
        """Who asks: by the request's own key and signature, or by the session's logon.

        Raises: ApiError.
        """
        if not params.get("apiKey") and session.key_name:
            account, key = find_key(self.rest.desk.state.keys, session.key_name)
        else:
            account, key = self._signer(params)
        return check_window(
            account,
            key,
            params.get("timestamp"),
            params.get("recvWindow"),
            self.rest.clock.now_ms(),
        )

    def _signer(self, params: Mapping[str, str]) -> tuple[Account, Key]:
        account, key = find_key(self.rest.desk.state.keys, params.get("apiKey"))
        signature = params.get("signature")
        if not signature:
            raise trading.missing("signature")
        if not verifies(key, ws_payload(params), signature):
            raise ApiError(400, -1022, "Signature for this request is not valid.")
        return account, key

    def _limits(self, account: Account | None = None) -> str:
        """The rateLimits field of a reply."""
        budget, desk = self.rest.budgets[SPOT], self.rest.desk
        rows: list[dict[str, Any]] = []
        if account is not None:
            rows += trading.order_limit_rows(desk, account, self.rest.clock.now_ms())
        rows.append(
            {
                "rateLimitType": "REQUEST_WEIGHT",
                "interval": "MINUTE",
                "intervalNum": 1,
                "limit": budget.per_minute,
                "count": budget.used,
            }
        )
        return ',"rateLimits":' + json.dumps(rows, separators=(",", ":"))

    # sessions and user data streams

    def _own_methods(self) -> dict[str, Callable[[Session, dict[str, str]], Any]]:
        return {
            "session.logon": self._logon,
            "session.status": lambda session, _: self._status(session),
            "session.logout": self._logout,
            "session.subscriptions": lambda session, _: [
                {"subscriptionId": number} for number in session.subscriptions
            ],
            "userDataStream.subscribe": self._subscribe,
            "userDataStream.subscribe.signature": self._subscribe_signed,
            "userDataStream.unsubscribe": self._unsubscribe,
        }

    def _status(self, session: Session) -> dict[str, Any]:
        unit = session.connection.unit
        return {
            "apiKey": session.key_name or None,
            "authorizedSince": session.authorized_ms * unit if session.key_name else None,
            "connectedSince": session.connected_ms * unit,
            "returnRateLimits": session.tells_limits,
            "serverTime": self.rest.clock.now_ms() * unit,
            "userDataStream": any(s.by_logon for s in session.subscriptions.values()),
        }

    def _logon(self, session: Session, params: dict[str, str]) -> dict[str, Any]:
        account, key = self._signer(params)
        if not is_ed25519(key):
            kind = "RSA" if key.public_key else "HMAC_SHA256"
            raise ApiError(400, -4056, f"{kind} API key is not supported.")
        check_window(
            account,
            key,
            params.get("timestamp"),
            params.get("recvWindow"),
            self.rest.clock.now_ms(),
        )
        session.key_name = params["apiKey"]
        session.authorized_ms = self.rest.clock.now_ms()
        return self._status(session)

    def _logout(self, session: Session, _params: dict[str, str]) -> dict[str, Any]:
        session.key_name = ""
        self.unsubscribe(
            session, [n for n, one in session.subscriptions.items() if one.by_logon], tell=True
        )
        return self._status(session)

    def _subscribe(self, session: Session, _params: dict[str, str]) -> dict[str, Any]:
        if not session.key_name:
            raise ApiError(401, -2015, "Invalid API-key, IP, or permissions for action.")
        account, _ = find_key(self.rest.desk.state.keys, session.key_name)
        return self._start(session, account, by_logon=True)

    def _subscribe_signed(self, session: Session, params: dict[str, str]) -> dict[str, Any]:
        account, key = self._signer(params)
        check_window(
            account,
            key,
            params.get("timestamp"),
            params.get("recvWindow"),
            self.rest.clock.now_ms(),
        )
        return self._start(session, account, by_logon=False)

    def _start(self, session: Session, account: Account, *, by_logon: bool) -> dict[str, Any]:
        if any(one.account is account for one in session.subscriptions.values()):
            raise ApiError(400, -2035, "User Data Stream subscription already active.")
        if len(session.subscriptions) >= _MOST_ACTIVE or session.next_number > _MOST_EVER:
            raise ApiError(400, -2042, "User Data Stream subscriptions are exhausted.")
        number = session.next_number
        session.next_number += 1
        one = Subscription(number, account, session.connection, by_logon, self.rest.faults)
        session.subscriptions[number] = one
        self.rest.desk.listen(account, one)
        return {"subscriptionId": number}

    def revoke(self, key_name: str) -> None:
        """A key is no longer valid: sessions that are logged on with it are told and logged out."""
        error = ApiError(401, -2015, "Invalid API-key, IP, or permissions for action.")
        for session in self.sessions:
            if session.key_name == key_name:
                session.connection.put(frame(_failed(None, error, "").encode()))
                session.connection.flush()
                self._logout(session, {})

    def _unsubscribe(self, session: Session, params: dict[str, str]) -> dict[str, Any]:
        named = params.get("subscriptionId")
        if named is None:
            numbers = list(session.subscriptions)
        else:
            numbers = [n for n in session.subscriptions if str(n) == named]
        if not numbers:
            raise ApiError(400, -2036, "User Data Stream subscription not active.")
        self.unsubscribe(session, numbers, tell=True)
        return {}

    def unsubscribe(self, session: Session, numbers: list[int], *, tell: bool = False) -> None:
        """End user data streams; tell: with an eventStreamTerminated."""
        for number in numbers:
            one = session.subscriptions.pop(number)
            self.rest.desk.leave(one.account, one)
            if tell:
                one.put(Event(_terminated(self.rest.clock.now_ms()), "eventStreamTerminated"))


def _terminated(now_ms: int) -> Render:
    return lambda unit: {"e": "eventStreamTerminated", "E": now_ms * unit}


class _Number(str):
    """A JSON number, as it was written."""

    __slots__ = ()


def _text(value: Any) -> str:
    """A parameter as the text that is signed and read."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return ""
    return json.dumps(value, separators=(",", ":"), default=str)


def _failed(identity: Any, error: ApiError, limits: str, now_ms: int | None = None) -> str:
    told: dict[str, Any] = {"code": error.code, "msg": error.message}
    if error.data is not None:
        told["data"] = error.data
    elif error.retry_after_s is not None and now_ms is not None:
        told["data"] = {"serverTime": now_ms, "retryAfter": now_ms + error.retry_after_s * 1000}
    body = json.dumps(told, separators=(",", ":"))
    return f'{{"id":{json.dumps(identity)},"status":{error.status},"error":{body}{limits}}}'


def _ws_info(text: str) -> str:
    """exchangeInfo as the WS API has it: limited connections in place of raw requests."""
    info = json.loads(text)
    limits = [row for row in info["rateLimits"] if row["rateLimitType"] != "RAW_REQUESTS"]
    limits.append(
        {"rateLimitType": "CONNECTIONS", "interval": "MINUTE", "intervalNum": 5, "limit": 300}
    )
    return json.dumps({**info, "rateLimits": limits}, separators=(",", ":"))
