"""A Binance spot account over the wire: `shared.exchange.Account` in Binance's dialect.

Every call is sent once, or not at all. Orders and cancels have connections of their own, so that an
order waits neither for a handshake nor behind a long reply: whoever measures the clock every ten
seconds, which is asked there, keeps one open.

What came of a request is told by the class of the error (binance.md section 11, FAULTS T2 and T5):
a refused connection and 403, 418, 429 did nothing (`Unavailable`, `Busy`); an error code that is
final did nothing either (`Denied`); everything else - a lost or late reply, 5xx, -1000, -1001,
-1006, -1007, -1008, "Duplicate order sent.", text that is not what it must be - leaves an order
`Unknown`. A read that fails is `Unavailable`: it may be asked again.
"""

import asyncio
import json
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_DOWN, Decimal, InvalidOperation
from enum import StrEnum
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import aiohttp
from yarl import URL

from shared.binance import (
    Attempts,
    Busy,
    Weights,
    read_body,
    retry_after_s,
    stop_s,
    weight_limit_in,
)
from shared.clock import AccountClock
from shared.errors import BadInput, Unavailable, Unknown, Usage
from shared.exchange import (
    CANCEL_SUFFIX,
    Balance,
    BalancesChanged,
    Commission,
    Denied,
    Fill,
    KeyDenied,
    Locked,
    Moved,
    NewOco,
    NewOrder,
    OrderReport,
    OrderType,
    OutsideWindow,
    Permissions,
    Side,
    Status,
    StreamGap,
    StreamLost,
    UserEvent,
)
from shared.filters import SymbolRules, legs, plain, rules_from
from shared.signing import Signer

log = logging.getLogger(__name__)

WINDOW_MS = 5000  # recvWindow: what is older when the exchange reads it is refused
_ANSWER_S = 12.0  # the exchange gives up on an order after 10 s and says so (-1007)
_CONNECT_S = 4.0
_KEEP_S = 60.0  # an idle connection, which the exchange may close earlier
_SILENCE_S = 60.0  # the exchange pings every 20 s
_BODY_BYTES = 32 << 20
_UNREAD_EVENTS = 10_000
_SMALLEST = Decimal("0.00000001")
_PAGE = 1000
_TRANSFER_RIGHTS = ("enableInternalTransfer", "permitsUniversalTransfer")
_NEAR_DAYS = 30
_DAY_MS = 86_400_000
_BACKOFF_S = (0.25, 30.0)
_LONGEST_ID = 36
_ORDERS_WAIT_S = 10.0  # -1015 without a time: the shorter of the two windows of orders

# Nobody knows what came of it (binance.md section 11), whatever the HTTP status.
_UNCERTAIN = frozenset((-1000, -1001, -1006, -1007, -1008))
_BAD_KEY = frozenset((-1002, -1022, -2008, -2014, -2015))
_TOO_MUCH, _TOO_MANY_ORDERS = -1003, -1015
_NO_SUCH_SYMBOL = -1121
_CANCEL_REJECTED, _NO_SUCH_ORDER = -2011, -2013
_STOP = frozenset((403, 418, 429))  # HTTP: it was not done, and nothing may be asked for a while
_FORM = {"Content-Type": "application/x-www-form-urlencoded"}


class _Cut(aiohttp.ClientError):
    """The connection broke after the request was on its way."""


async def _once(
    request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """aiohttp sends GET and DELETE again when a kept connection breaks; nothing of ours may be."""
    try:
        return await send(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _Cut(type(error).__name__) from None


class _NotSent(Exception):
    """No connection was made."""


class _NoAnswer(Exception):
    """It was sent, or may have been."""


@dataclass(frozen=True, slots=True)
class _Reply:
    """body: None where it is not JSON. code, text: of an error."""

    status: int
    body: Any
    code: int | None
    text: str


class BinanceAccount:
    """One account. Use it as a context: it owns its connections.

        async with BinanceAccount(rest_url, ws_api_url, key=..., secret=...) as account:
            await account.clock_skew_ms()
            report = await account.place(order, timestamp_ms=account.now_ms())

    weights: shared with whatever else of this process asks the exchange. Orders are not held back
    by it (they cost nothing where they succeed), only by a stop that the exchange ordered.
    """

    def __init__(
        self,
        rest_url: str,
        ws_api_url: str,
        *,
        key: str,
        secret: str,
        weights: Weights | None = None,
        prefix: str = "",
        answer_s: float = _ANSWER_S,
        silence_s: float = _SILENCE_S,
    ) -> None:
        """ws_api_url: with its path, as in `wss://ws-api.binance.com/ws-api/v3`.

        prefix: how the client ids of our orders begin. In a list, an order of others that is of a
        kind or in a state that we do not know is left out; one of ours makes the list no answer.
        answer_s: how long to wait for a reply; silence_s: for any sign of the user stream.

        Raises:
            Usage: a URL or the secret cannot be one.
        """
        for url, kinds in ((rest_url, ("http", "https")), (ws_api_url, ("ws", "wss"))):
            parts = urlsplit(url)
            if parts.scheme not in kinds or not parts.hostname:
                raise Usage(f"{url!r} is no address of an exchange ({kinds[1]}://...)")
        self.weights = weights if weights is not None else Weights()
        self.clock = AccountClock()
        self._root = rest_url.rstrip("/")
        self._order_url = URL(f"{self._root}/api/v3/order", encoded=True)
        self._oco_url = URL(f"{self._root}/api/v3/orderList/oco", encoded=True)
        self._ws_url = ws_api_url
        self._key = key
        self._signer = Signer(secret)
        self._prefix = prefix
        self._timeout = aiohttp.ClientTimeout(
            total=answer_s, connect=_CONNECT_S, sock_connect=_CONNECT_S
        )
        self._silence_s = silence_s
        self._attempts = Attempts()
        self._without_reference: set[str] = set()
        self._sessions: tuple[aiohttp.ClientSession, aiohttp.ClientSession] | None = None

    def __repr__(self) -> str:
        return f"BinanceAccount({self._root}, {self._signer.kind})"

    async def __aenter__(self) -> "BinanceAccount":
        self._sessions = (self._session(), self._session())
        return self

    async def __aexit__(self, *_: object) -> None:
        for session in self._sessions or ():
            await session.close()
        self._sessions = None

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=16, keepalive_timeout=_KEEP_S),
            headers={"X-MBX-APIKEY": self._key},
            cookie_jar=aiohttp.DummyCookieJar(),
            middlewares=(_once,),
        )

    def now_ms(self) -> int:
        """The account clock, as it was last measured; steps of our own clock do not move it."""
        return self.clock.now_ms

    # -- orders ---------------------------------------------------------------------------------

    async def place(self, order: NewOrder, *, timestamp_ms: int) -> OrderReport:
        parts = [f"symbol={quote(order.symbol)}&side={order.side}&type={order.type}"]
        if order.time_in_force:
            parts.append(f"timeInForce={order.time_in_force}")
        if order.quantity is not None:
            parts.append(f"quantity={plain(order.quantity)}")
        if order.quote_quantity is not None:
            parts.append(f"quoteOrderQty={plain(order.quote_quantity)}")
        if order.price is not None:
            parts.append(f"price={plain(order.price)}")
        if order.stop_price is not None:
            parts.append(f"stopPrice={plain(order.stop_price)}")
        parts.append(f"newClientOrderId={order.client_id}&newOrderRespType=FULL")
        reply = await self._write("POST", self._order_url, "&".join(parts), timestamp_ms)
        with _Certain("place"):
            report = _order_report(reply.body)
            _expect(report, order)
            return report

    async def place_oco(self, oco: NewOco, *, timestamp_ms: int) -> tuple[OrderReport, ...]:
        target, stop = legs(oco)
        above, below = (target, stop) if oco.side is Side.SELL else (stop, target)
        parts = [
            f"symbol={quote(oco.symbol)}&listClientOrderId={oco.list_client_id}",
            f"side={oco.side}&quantity={plain(oco.quantity)}",
            *_leg("above", above),
            *_leg("below", below),
            "newOrderRespType=FULL",
        ]
        reply = await self._write("POST", self._oco_url, "&".join(parts), timestamp_ms)
        with _Certain("place_oco"):
            reports = [_order_report(item) for item in _list(_object(reply.body), "orderReports")]
            by_id = {report.client_id: report for report in reports}
            if len(reports) != 2 or by_id.keys() != {target.client_id, stop.client_id}:
                raise BadInput("the reply is about other orders")
            found = (by_id[target.client_id], by_id[stop.client_id])
            for report, leg in zip(found, (target, stop), strict=True):
                _expect(report, leg)
            return found

    async def cancel(self, symbol: str, client_id: str) -> OrderReport | None:
        query = f"symbol={quote(symbol)}&origClientOrderId={client_id}"
        if len(client_id) + len(CANCEL_SUFFIX) <= _LONGEST_ID:
            # A cancelled order goes by its cancel's name: so that it can be told whose it was.
            query += f"&newClientOrderId={client_id}{CANCEL_SUFFIX}"
        try:
            reply = await self._write("DELETE", self._order_url, query, self.now_ms())
        except Denied as error:
            if error.code == _CANCEL_REJECTED and error.text == "Unknown order sent.":
                return None
            raise
        with _Certain("cancel"):
            body = _object(reply.body)
            for item in body.get("orderReports", (body,)):  # a leg's cancel may answer as a list
                report = _order_report(item)
                if report.client_id == client_id and report.symbol == symbol:
                    return report
            raise BadInput("the reply is about another order")

    async def _write(self, method: str, url: URL, payload: str, timestamp_ms: int) -> _Reply:
        """Raises: Unavailable, Denied, Unknown."""
        if self._sessions is None:
            raise RuntimeError("the account is used outside its context")
        what = f"{method} {url.path}"
        stop_s = self.weights.stopped_s(time.time())
        if stop_s > 0:
            raise Busy(f"{what}: not sent, the exchange allows no calls for {stop_s:.0f} s", stop_s)
        signed = self._signer.signed(f"{payload}&recvWindow={WINDOW_MS}&timestamp={timestamp_ms}")
        try:
            if method == "POST":
                reply = await self._send(self._sessions[0], what, method, url, signed.encode())
            else:
                target = URL(f"{url}?{signed}", encoded=True)
                reply = await self._send(self._sessions[0], what, method, target, None)
        except _NotSent as error:
            raise Unavailable(f"{what}: not sent: {error}") from None
        except _NoAnswer as error:
            raise Unknown(f"{what}: {error}") from None
        if _is_good(reply):
            return reply
        if _is_uncertain(reply):
            raise Unknown(f"{what}: {self._told(reply)}")
        raise self._denied(what, reply)

    # -- questions --------------------------------------------------------------------------------

    async def order(self, symbol: str, client_id: str) -> OrderReport | None:
        query = f"symbol={quote(symbol)}&origClientOrderId={client_id}"
        try:
            body = await self._read("/api/v3/order", query, 4)
        except Denied as error:
            if error.code == _NO_SUCH_ORDER:
                return None
            raise
        with _Shaped("order"):
            # After a cancel it may go by the cancel's id; it was found by ours.
            return _order_report(_object(body) | {"clientOrderId": client_id})

    async def open_orders(self, symbol: str) -> list[OrderReport]:
        body = await self._read("/api/v3/openOrders", f"symbol={quote(symbol)}", 6)
        with _Shaped("openOrders"):
            return self._known_orders(_items(body))

    def _known_orders(self, items: list[Any]) -> list[OrderReport]:
        """Raises: BadInput where an order of ours, or what may be one, cannot be understood."""
        found = []
        for item in items:
            try:
                found.append(_order_report(item))
            except BadInput as error:
                name = item.get("clientOrderId") if isinstance(item, dict) else None
                if not isinstance(name, str) or not name or name.startswith(self._prefix):
                    raise
                log.warning("an order of others is not understood", extra={"reason": str(error)})
        return found

    async def orders_since(self, symbol: str, start_ms: int) -> list[OrderReport]:
        """By windows of a day, or by order id from the first one on where that asks less often."""
        found: dict[int, OrderReport] = {}
        first_ms, is_near = start_ms, self.now_ms() - start_ms < _NEAR_DAYS * _DAY_MS
        first_id, is_last = 1, False
        while not is_last:
            query = f"symbol={quote(symbol)}&limit={_PAGE}"
            if not is_near:
                query += f"&orderId={first_id}"
            elif start_ms + _DAY_MS <= self.now_ms():
                query += f"&startTime={start_ms}&endTime={start_ms + _DAY_MS - 1}"
            else:
                query += f"&startTime={start_ms}"
            body = await self._read("/api/v3/allOrders", query, 20, waits=bool(found))
            with _Shaped("allOrders"):
                rows = _items(body)
                page = self._known_orders(rows)
                is_last = len(rows) < _PAGE and "endTime" not in query
                if len(rows) < _PAGE:
                    start_ms += _DAY_MS
                else:  # the rest, from the last one on
                    after_ms = max((report.time_ms for report in page), default=start_ms)
                    after_id = max((report.order_id for report in page), default=0) + 1
                    if (after_ms <= start_ms) if is_near else (after_id <= first_id):
                        raise BadInput("a whole page of orders, and none of them new")
                    start_ms, first_id = after_ms, after_id
            found |= {report.order_id: report for report in page if report.time_ms >= first_ms}
        return [found[order_id] for order_id in sorted(found)]

    async def fills(
        self, symbol: str, *, order_id: int | None = None, from_trade_id: int | None = None
    ) -> list[Fill]:
        found: dict[int, Fill] = {}
        start = from_trade_id if from_trade_id is not None else None if order_id is not None else 0
        while True:
            query = f"symbol={quote(symbol)}&limit={_PAGE}"
            if order_id is not None:
                query += f"&orderId={order_id}"
            if start is not None:
                query += f"&fromId={start}"
            weight = 20 if order_id is None else 5
            body = await self._read("/api/v3/myTrades", query, weight, waits=bool(found))
            with _Shaped("myTrades"):
                page = [_fill(item) for item in _items(body)]
                last = max((fill.trade_id for fill in page), default=0)
                if any(order_id not in (None, fill.order_id) for fill in page) or (
                    len(page) >= _PAGE and start is not None and last < start
                ):
                    raise BadInput("trades that were not asked for")
            found |= {fill.trade_id: fill for fill in page}
            if len(page) < _PAGE:
                return [found[trade_id] for trade_id in sorted(found)]
            start = last + 1

    async def balances(self) -> Mapping[str, Balance]:
        """Of every asset that the account has; one that is missing is zero."""
        body = await self._read("/api/v3/account", "omitZeroBalances=true", 20)
        with _Shaped("account"):
            found = [_balance(item, "asset", "free", "locked") for item in _list(body, "balances")]
            return {balance.asset: balance for balance in found}

    async def permissions(self) -> Permissions:
        """Of the key where the exchange tells (`apiRestrictions`: not on the testnet, nor on the
        simulator), else of the account."""
        reply = await self._ask("/sapi/v1/account/apiRestrictions", "", 1, signed=True)
        if reply.status != 404:
            body = self._answer("apiRestrictions", reply)
            with _Shaped("apiRestrictions"):
                return Permissions(
                    can_trade=_bool(body, "enableSpotAndMarginTrading"),
                    can_withdraw=_bool(body, "enableWithdrawals"),
                    can_transfer=any(
                        name in _object(body) and _bool(body, name) for name in _TRANSFER_RIGHTS
                    ),
                    ip_restricted=_bool(body, "ipRestrict"),
                )
        body = await self._read("/api/v3/account", "omitZeroBalances=true", 20)
        with _Shaped("account"):
            return Permissions(
                can_trade=_bool(body, "canTrade"), can_withdraw=_bool(body, "canWithdraw")
            )

    async def commission(self, symbol: str) -> Commission:
        """Without the discount for fees in BNB: what is paid at most."""
        body = await self._read("/api/v3/account/commission", f"symbol={quote(symbol)}", 20)
        with _Shaped("account/commission"):
            maker = taker = Decimal(0)
            for name in ("standardCommission", "specialCommission", "taxCommission"):
                if name not in _object(body):
                    continue  # specialCommission came later than the others
                part = _object(body[name])
                sides = max(_amount(part, "buyer"), _amount(part, "seller"))
                maker += _amount(part, "maker") + sides
                taker += _amount(part, "taker") + sides
            return Commission(maker=maker, taker=taker)

    async def rules(self, symbol: str) -> SymbolRules:
        """Takes the exchange's request weight from the same reply."""
        body = await self._read("/api/v3/exchangeInfo", f"symbol={quote(symbol)}", 20, signed=False)
        with _Shaped("exchangeInfo"):
            self.weights.limit = weight_limit_in(body) or self.weights.limit
            return rules_from(body, symbol)

    async def reference_price(self, symbol: str) -> Decimal:
        """The reference price where the exchange has one, else the average of five minutes."""
        query = f"symbol={quote(symbol)}"
        if symbol not in self._without_reference:
            reply = await self._ask("/api/v3/referencePrice", query, 2, signed=False)
            if reply.status == 404 or reply.code not in (None, *_UNCERTAIN, _NO_SUCH_SYMBOL):
                self._without_reference.add(symbol)
            else:
                body = self._answer("referencePrice", reply)
                with _Shaped("referencePrice"):
                    if _object(body).get("referencePrice") is not None:
                        return _positive(body, "referencePrice")
        body = await self._read("/api/v3/avgPrice", query, 2, signed=False)
        with _Shaped("avgPrice"):
            return _positive(_object(body), "price")

    async def candle_ms(self, symbol: str, interval: str) -> int | None:
        body = await self._read(
            "/api/v3/klines", f"symbol={quote(symbol)}&interval={interval}&limit=1", 2, signed=False
        )
        with _Shaped("klines"):
            rows = _items(body)
            if not rows:
                return None
            row = rows[-1]
            if not isinstance(row, list) or not row or type(row[0]) is not int or row[0] < 0:
                raise BadInput("a candle without a time")
            return row[0]

    async def clock_skew_ms(self) -> float:
        """Asked on a connection of orders, which this opens and keeps open."""
        if self._sessions is None:
            raise RuntimeError("the account is used outside its context")
        url = URL(f"{self._root}/api/v3/time", encoded=True)
        stop_s = self.weights.stopped_s(time.time())
        if stop_s > 0:
            raise Busy(f"time: not asked, no calls for {stop_s:.0f} s", stop_s)
        self.weights.sent(1, time.time())
        since = time.monotonic()
        try:
            reply = await self._send(self._sessions[0], "time", "GET", url, None)
        except (_NotSent, _NoAnswer) as error:
            raise Unavailable(f"time: {error}") from None
        took_s = time.monotonic() - since
        body = self._answer("time", reply)
        with _Shaped("time"):
            there_ms = _time(_object(body), "serverTime")
            self.clock.measured(since + took_s / 2, there_ms)
        return self.clock.now_ms - time.time() * 1000

    async def _read(
        self, path: str, query: str, weight: int, *, signed: bool = True, waits: bool = False
    ) -> Any:
        """waits: for request weight, as the later pages of a long answer do.

        Raises: Unavailable, Denied.
        """
        reply = await self._ask(path, query, weight, signed=signed, waits=waits)
        return self._answer(path, reply)

    async def _ask(
        self, path: str, query: str, weight: int, *, signed: bool, waits: bool = False
    ) -> _Reply:
        if self._sessions is None:
            raise RuntimeError("the account is used outside its context")
        wait_s = self.weights.wait_s(weight, time.time())
        if wait_s > 0 and waits:
            await asyncio.sleep(wait_s)
            wait_s = self.weights.wait_s(weight, time.time())
        if wait_s > 0:
            raise Busy(f"{path}: not asked, no request weight left for {wait_s:.0f} s", wait_s)
        self.weights.sent(weight, time.time())
        if signed:
            head = f"{query}&" if query else ""
            query = self._signer.signed(f"{head}recvWindow={WINDOW_MS}&timestamp={self.now_ms()}")
        url = URL(f"{self._root}{path}?{query}", encoded=True)
        try:
            return await self._send(self._sessions[1], path, "GET", url, None)
        except (_NotSent, _NoAnswer) as error:
            raise Unavailable(f"{path}: {error}") from None

    def _answer(self, what: str, reply: _Reply) -> Any:
        if _is_good(reply):
            return reply.body
        if _is_uncertain(reply):
            raise Unavailable(f"{what}: {self._told(reply)}")
        raise self._denied(what, reply)

    # -- the wire ---------------------------------------------------------------------------------

    async def _send(
        self, session: aiohttp.ClientSession, what: str, method: str, url: URL, body: bytes | None
    ) -> _Reply:
        """One request. Raises: Busy, _NotSent, _NoAnswer."""
        try:
            async with session.request(
                method,
                url,
                data=body,
                headers=None if body is None else _FORM,
                timeout=self._timeout,
                allow_redirects=False,
            ) as response:
                status, headers = response.status, response.headers
                text = await read_body(response)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise _NotSent(f"no connection ({_reason(error)})") from None
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise _NoAnswer(f"no answer ({_reason(error)})") from None
        now_s = time.time()
        used = headers.get("X-MBX-USED-WEIGHT-1M") or headers.get("X-MBX-USED-WEIGHT")
        if used is not None and used.isdigit():
            self.weights.heard(int(used), now_s)
        reply = _parse(status, text)
        if reply.code == _TOO_MANY_ORDERS:  # cancels and questions go on
            wait_s = retry_after_s(headers.get("Retry-After"), _ORDERS_WAIT_S)
            raise Busy(f"{what}: {self._told(reply)}", wait_s)
        if status in _STOP or (reply.code == _TOO_MUCH and 400 <= status < 500):
            wait_s = stop_s(headers.get("Retry-After"), reply.text, now_s)
            raise self._stopped(f"{what}: {self._told(reply)}", wait_s)
        return reply

    def _stopped(self, what: str, wait_s: float) -> Busy:
        self.weights.refused(wait_s, time.time())
        return Busy(f"{what}; no calls for {wait_s:.0f} s", wait_s)

    def _told(self, reply: _Reply) -> str:
        if reply.code is None:
            return f"HTTP {reply.status}"
        # A server that echoes headers must not put the key into our logs.
        return f"HTTP {reply.status} {reply.code} {reply.text}".replace(self._key, "[key]")

    def _denied(self, what: str, reply: _Reply) -> Denied:
        code, text = reply.code or 0, reply.text.replace(self._key, "[key]")
        if code == OutsideWindow.CODE:
            return OutsideWindow(what, code, text)
        if code in _BAD_KEY or reply.status == 401:
            return KeyDenied(what, code, text)
        return Denied(what, code, text)

    # -- user stream ------------------------------------------------------------------------------

    async def user_events(self) -> AsyncIterator[Sequence[UserEvent]]:
        """As the contract says; an event that is not understood counts as a gap."""
        failures, heard_ms, is_up = 0, 0, True
        while True:
            stream, opened_s, reason, wait_s = None, time.monotonic(), "", 0.0
            try:
                stream = await self._subscribed()
                is_up = True
                yield (StreamGap(since_ms=heard_ms),)
                while True:
                    event = await stream.next_event()
                    before_ms, heard_ms = heard_ms or stream.opened_ms, stream.heard_ms
                    if event.get("e") == "serverShutdown":
                        fresh = await self._replacement()
                        if fresh is not None:
                            await stream.close()
                            stream = fresh
                            yield (StreamGap(since_ms=before_ms),)
                        continue
                    found: UserEvent | None
                    try:
                        found = user_event(event)
                    except BadInput as error:
                        log.warning("a user event is not understood", extra={"reason": str(error)})
                        found = StreamGap(since_ms=before_ms)
                    if found is not None:
                        yield (found,)
            except (Unavailable, Denied) as error:
                reason = str(error)
                wait_s = error.retry_after_s if isinstance(error, Busy) else 0.0
            finally:
                if stream is not None:
                    heard_ms = stream.heard_ms
                    await stream.close()
            if is_up:
                is_up = False
                yield (StreamLost(reason=reason),)
            failures = 1 if time.monotonic() - opened_s > _BACKOFF_S[1] else failures + 1
            longest_s = min(_BACKOFF_S[1], _BACKOFF_S[0] * 2 ** min(failures - 1, 10))
            wait_s = max(wait_s, longest_s * random.uniform(0.5, 1.0))
            told = {"reason": reason, "retry_in_s": round(wait_s, 2)}
            log.warning("the user stream is away", extra=told)
            await asyncio.sleep(wait_s)

    async def _replacement(self) -> "_UserStream | None":
        try:
            return await self._subscribed()
        except (Unavailable, Denied) as error:
            log.warning("no new user stream before the old ends", extra={"reason": str(error)})
            return None

    async def _subscribed(self) -> "_UserStream":
        """Raises: Unavailable, Denied."""
        if self._sessions is None:
            raise RuntimeError("the account is used outside its context")
        wait_s = self.weights.stopped_s(time.time()) or self._attempts.wait_s(time.monotonic())
        if wait_s > 0:
            raise Busy(f"user stream: no connections for {wait_s:.0f} s", wait_s)
        params = self._signer.signed_params(
            {"apiKey": self._key, "recvWindow": WINDOW_MS, "timestamp": self.now_ms()}
        )
        method = "userDataStream.subscribe.signature"
        request = {"id": "user-stream", "method": method, "params": params}
        self.weights.sent(4, time.time())  # 2 to connect, 2 to subscribe
        try:
            ws = await self._sessions[1].ws_connect(
                self._ws_url,
                autoping=False,
                max_msg_size=_BODY_BYTES,
                timeout=aiohttp.ClientWSTimeout(ws_close=1.0),
            )
        except aiohttp.WSServerHandshakeError as error:
            what = f"user stream: HTTP {error.status}"
            if error.status in _STOP:
                after = None if error.headers is None else error.headers.get("Retry-After")
                raise self._stopped(what, retry_after_s(after)) from None
            raise Unavailable(what) from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(f"user stream: no connection ({_reason(error)})") from None
        stream = _UserStream(ws, self._silence_s, self.now_ms)
        try:
            reply = await stream.ask(request)
            if reply.status in _STOP:
                raise self._stopped(f"user stream: {self._told(reply)}", _until_s(reply))
            if not _is_good(reply):
                if _is_uncertain(reply):
                    raise Unavailable(f"user stream: {self._told(reply)}")
                raise self._denied("user stream", reply)
            stream.start()
        except BaseException:
            await stream.close()
            raise
        return stream


class _UserStream:
    """One connection to the WebSocket API. heard_ms: when the last frame of any kind came.

    Once it is subscribed, a task of its own reads it and answers pings, so that a consumer who does
    something else meanwhile is not taken for dead. More than 10,000 events unread end it.
    """

    def __init__(
        self,
        ws: aiohttp.ClientWebSocketResponse,
        silence_s: float,
        now_ms: Callable[[], int],
    ) -> None:
        self._ws = ws
        self._silence_s = silence_s
        self._now_ms = now_ms
        self._events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._reading: asyncio.Task[None] | None = None
        self.opened_ms = self.heard_ms = now_ms()

    async def ask(self, request: dict[str, Any]) -> _Reply:
        """Raises: Unavailable."""
        try:
            async with asyncio.timeout(_ANSWER_S):
                await self._ws.send_str(json.dumps(request))
                while True:
                    body = await self._message()
                    if body.get("id") == request["id"]:
                        break
                    self._note(body)  # an event may come before the reply
        except (TimeoutError, aiohttp.ClientError, OSError, RuntimeError) as error:
            raise Unavailable(f"user stream: no answer ({_reason(error)})") from None
        status = body.get("status")
        if not isinstance(status, int):
            raise Unavailable("user stream: a reply without a status")
        return _reply(status, body.get("error", body.get("result")))

    async def next_event(self) -> dict[str, Any]:
        """Raises: Unavailable at the end of the stream."""
        event = await self._events.get()
        if event is not None:
            return event
        if self._reading is not None:
            await self._reading  # tells why
        raise Unavailable("user stream: ended")

    def start(self) -> None:
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        """Raises: Unavailable at the end of the stream."""
        try:
            while True:
                self._note(await self._message())
        finally:
            self._events.put_nowait(None)

    def _note(self, body: dict[str, Any]) -> None:
        event = body.get("event")
        if not isinstance(event, dict):
            return  # a reply, or what the protocol will know one day
        if event.get("e") == "eventStreamTerminated":
            raise Unavailable("user stream: the subscription was terminated")
        if self._events.qsize() >= _UNREAD_EVENTS:
            raise Unavailable(f"user stream: {_UNREAD_EVENTS} events are unread")
        self._events.put_nowait(event)

    async def _message(self) -> dict[str, Any]:
        while True:
            try:
                async with asyncio.timeout(self._silence_s):
                    message = await self._ws.receive()
            except TimeoutError:
                raise Unavailable(f"user stream: silent for {self._silence_s:.0f} s") from None
            self.heard_ms = self._now_ms()
            if message.type is aiohttp.WSMsgType.PING:
                try:
                    await self._ws.pong(message.data)
                except (aiohttp.ClientError, OSError, RuntimeError) as error:
                    raise Unavailable(f"user stream: cut ({_reason(error)})") from None
            elif message.type is aiohttp.WSMsgType.TEXT:
                try:
                    body = json.loads(message.data)
                except (ValueError, RecursionError):
                    body = None
                if not isinstance(body, dict):
                    raise Unavailable("user stream: a message is not a JSON object")
                return body
            elif message.type not in (aiohttp.WSMsgType.PONG, aiohttp.WSMsgType.BINARY):
                raise Unavailable(f"user stream: closed (code {self._ws.close_code})")

    async def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        await self._ws.close()


# -- replies --------------------------------------------------------------------------------------


def _parse(status: int, text: bytes) -> _Reply:
    try:
        return _reply(status, json.loads(text))
    except (ValueError, RecursionError):
        return _reply(status, None)


def _reply(status: int, body: Any) -> _Reply:
    if isinstance(body, dict) and "msg" in body and type(body.get("code")) is int:
        return _Reply(status, body, body["code"], str(body["msg"]))
    return _Reply(status, body, None, "")


def _is_good(reply: _Reply) -> bool:
    return 200 <= reply.status < 300 and reply.body is not None and reply.code is None


def _is_uncertain(reply: _Reply) -> bool:
    """Of a reply that is not good: may it have been done all the same?"""
    if reply.status == 401:
        return False
    return (
        reply.status < 400
        or reply.status == 408
        or reply.status >= 500
        or reply.code is None
        or reply.code in _UNCERTAIN
        or reply.text.startswith("Duplicate order sent")  # then an earlier one of ours lives
    )


def _until_s(reply: _Reply) -> float:
    """The WebSocket API says until when, not how long."""
    data = reply.body.get("data") if isinstance(reply.body, dict) else None
    until_ms = data.get("retryAfter") if isinstance(data, dict) else None
    wait_s = None if type(until_ms) is not int else str(max(0.0, until_ms / 1000 - time.time()))
    return stop_s(wait_s, reply.text, time.time())


def _reason(error: BaseException) -> str:
    """Without URLs, which hold signatures."""
    if isinstance(error, OSError) and error.strerror:
        return f"{type(error).__name__}: {error.strerror}"
    return type(error).__name__


class _Shaped:
    """A reply of the wrong shape is no answer: nothing of it is used."""

    failure: type[Unavailable | Unknown] = Unavailable

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, BadInput):
            raise self.failure(f"{self._what}: {error}") from None


class _Certain(_Shaped):
    """The same for an order: it was sent, and what came of it was not told."""

    failure = Unknown


_Kind = TypeVar("_Kind", bound=StrEnum)


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadInput("an object is missing")
    return value


def _items(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise BadInput("a list is missing")
    return value


def _list(body: Any, name: str) -> list[Any]:
    value = _object(body).get(name)
    if not isinstance(value, list):
        raise BadInput(f"{name} is no list")
    return value


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise BadInput(f"{name} is no text")
    return value


def _whole(body: dict[str, Any], name: str) -> int:
    value = body.get(name)
    if type(value) is not int:
        raise BadInput(f"{name} is no whole number")
    return value


def _time(body: dict[str, Any], *names: str) -> int:
    """Of the first name that is there."""
    for name in names:
        if name in body:
            value = _whole(body, name)
            if not 0 < value < 10**14:
                raise BadInput(f"{name} is no time in milliseconds")
            return value
    raise BadInput(f"{names[0]} is missing")


def _bool(body: Any, name: str) -> bool:
    value = _object(body).get(name)
    if not isinstance(value, bool):
        raise BadInput(f"{name} is neither true nor false")
    return value


def _enum(kind: type[_Kind], body: dict[str, Any], name: str) -> _Kind:
    try:
        return kind(_text(body, name))
    except ValueError:
        raise BadInput(f"{name} is {body.get(name)!r}") from None


def _signed(body: dict[str, Any], name: str) -> Decimal:
    value = body.get(name)
    if type(value) is not str and type(value) is not int:
        raise BadInput(f"{name} is no decimal")
    try:
        number = Decimal(value)
    except InvalidOperation:
        raise BadInput(f"{name} is no decimal") from None
    if not number.is_finite():
        raise BadInput(f"{name} is no decimal")
    return number


def _amount(body: dict[str, Any], name: str) -> Decimal:
    number = _signed(body, name)
    if number < 0:
        raise BadInput(f"{name} is negative")
    return number


def _positive(body: dict[str, Any], name: str) -> Decimal:
    number = _signed(body, name)
    if number <= 0:
        raise BadInput(f"{name} is no price")
    return number


def _list_id(body: dict[str, Any], name: str) -> int | None:
    number = _whole(body, name)
    return None if number == -1 else number


def _order_report(item: Any) -> OrderReport:
    """An order of REST: from placing (FULL or RESULT), cancelling, asking."""
    body = _object(item)
    symbol, order_id = _text(body, "symbol"), _whole(body, "orderId")
    side = _enum(Side, body, "side")
    time_ms = _time(body, "time", "transactTime")
    return OrderReport(
        symbol=symbol,
        order_id=order_id,
        list_id=_list_id(body, "orderListId"),
        client_id=_text(
            body, "origClientOrderId" if "origClientOrderId" in body else "clientOrderId"
        ),
        side=side,
        type=_enum(OrderType, body, "type"),
        status=_enum(Status, body, "status"),
        quantity=_amount(body, "origQty"),
        price=_amount(body, "price"),
        stop_price=_amount(body, "stopPrice") if "stopPrice" in body else Decimal(0),
        executed=_amount(body, "executedQty"),
        executed_quote=_amount(body, "cummulativeQuoteQty"),
        time_ms=time_ms,
        update_ms=_time(body, "updateTime", "transactTime"),
        reason=str(body.get("expiryReason") or ""),
        fills=tuple(
            _reply_fill(_object(fill), symbol, order_id, side, time_ms)
            for fill in (_list(body, "fills") if "fills" in body else ())
        ),
    )


def _reply_fill(body: dict[str, Any], symbol: str, order_id: int, side: Side, time_ms: int) -> Fill:
    """A fill in the reply to an order: it took at once, so it is the taker's."""
    price, quantity = _positive(body, "price"), _positive(body, "qty")
    return Fill(
        symbol=symbol,
        trade_id=_whole(body, "tradeId"),
        order_id=order_id,
        side=side,
        price=price,
        quantity=quantity,
        quote_quantity=_notional(price, quantity),
        fee=_amount(body, "commission"),
        fee_asset=_text(body, "commissionAsset"),
        time_ms=time_ms,
        is_maker=False,
    )


def _fill(item: Any) -> Fill:
    """A row of `GET myTrades`."""
    body = _object(item)
    return Fill(
        symbol=_text(body, "symbol"),
        trade_id=_whole(body, "id"),
        order_id=_whole(body, "orderId"),
        side=Side.BUY if _bool(body, "isBuyer") else Side.SELL,
        price=_positive(body, "price"),
        quantity=_positive(body, "qty"),
        quote_quantity=_positive(body, "quoteQty"),
        fee=_amount(body, "commission"),
        fee_asset=_text(body, "commissionAsset"),
        time_ms=_time(body, "time"),
        is_maker=_bool(body, "isMaker"),
    )


def _notional(price: Decimal, quantity: Decimal) -> Decimal:
    """What is paid has eight decimals, even where tick and step have more together."""
    try:
        return (price * quantity).quantize(_SMALLEST, ROUND_DOWN)
    except InvalidOperation:
        raise BadInput(f"{price} times {quantity} is no amount") from None


def _balance(item: Any, asset: str, free: str, locked: str) -> Balance:
    body = _object(item)
    return Balance(asset=_text(body, asset), free=_amount(body, free), locked=_amount(body, locked))


def _expect(report: OrderReport, order: NewOrder) -> None:
    told = (report.symbol, report.client_id, report.side, report.type)
    if told != (order.symbol, order.client_id, order.side, order.type):
        raise BadInput("the reply is about another order")


def _leg(name: str, order: NewOrder) -> list[str]:
    """Parameters of one order of a list."""
    parts = [f"{name}Type={order.type}&{name}ClientOrderId={order.client_id}"]
    if order.price is not None:
        parts.append(f"{name}Price={plain(order.price)}")
    if order.stop_price is not None:
        parts.append(f"{name}StopPrice={plain(order.stop_price)}")
    if order.time_in_force:
        parts.append(f"{name}TimeInForce={order.time_in_force}")
    return parts


# -- user events ----------------------------------------------------------------------------------


def user_event(event: Mapping[str, Any]) -> UserEvent | None:
    """An event of the user stream (binance.md section 3). None: it tells nothing that others do
    not (`listStatus`), or is of a kind that we do not know.

    Raises:
        BadInput: it is of a kind that we know, but has another shape.
    """
    body = dict(event)
    kind = body.get("e")
    if kind == "executionReport":
        return _execution(body)
    if kind == "outboundAccountPosition":
        found = tuple(_balance(item, "a", "f", "l") for item in _list(body, "B"))
        return BalancesChanged(balances=found, time_ms=_time(body, "u"))
    if kind == "balanceUpdate":
        return Moved(asset=_text(body, "a"), delta=_signed(body, "d"), time_ms=_time(body, "T"))
    if kind == "externalLockUpdate":
        return Locked(asset=_text(body, "a"), delta=_signed(body, "d"), time_ms=_time(body, "T"))
    if kind != "listStatus":
        log.info("an unknown user event", extra={"kind": str(kind)[:40]})
    return None


def _execution(body: dict[str, Any]) -> OrderReport:
    symbol, order_id = _text(body, "s"), _whole(body, "i")
    side, time_ms = _enum(Side, body, "S"), _time(body, "T")
    fills: tuple[Fill, ...] = ()
    if body.get("x") == "TRADE":
        asset = body.get("N")
        price, quantity = _positive(body, "L"), _positive(body, "l")
        fill = Fill(
            symbol=symbol,
            trade_id=_whole(body, "t"),
            order_id=order_id,
            side=side,
            price=price,
            quantity=quantity,
            quote_quantity=_amount(body, "Y") if "Y" in body else _notional(price, quantity),
            fee=_amount(body, "n"),
            fee_asset="" if asset is None else _text(body, "N"),
            time_ms=time_ms,
            is_maker=_bool(body, "m"),
        )
        fills = (fill,)
    rejected, expired = str(body.get("r") or ""), str(body.get("eR") or "")
    return OrderReport(
        symbol=symbol,
        order_id=order_id,
        list_id=_list_id(body, "g"),
        client_id=_text(body, "C") or _text(body, "c"),  # C: of the order that a cancel is about
        side=side,
        type=_enum(OrderType, body, "o"),
        status=_enum(Status, body, "X"),
        quantity=_amount(body, "q"),
        price=_amount(body, "p"),
        stop_price=_amount(body, "P"),
        executed=_amount(body, "z"),
        executed_quote=_amount(body, "Z"),
        time_ms=_time(body, "O"),
        update_ms=time_ms,
        reason=rejected if rejected not in ("", "NONE") else expired,
        fills=fills,
    )
