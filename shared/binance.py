"""Binance over the wire: public REST and market streams, spot and USD-M futures.

Built on aiohttp for both: its websocket reader costs 1.2 us a message against 3.8 us of
`websockets` (measured; what counts is hundreds of candles that close in one instant), it is the
REST client anyway, and it hands out pings in order, so that a pong can say "I have worked up to
here".

One attempt per call: whoever calls decides when to try again. Replies are checked here for shape,
never for sense (a candle with high < low is the caller's to refuse).
"""

import asyncio
import itertools
import json
import math
import random
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from shared.errors import BadInput, Rejected, Unavailable
from shared.events import Funding, Kline
from shared.times import floor_ms, interval_ms, steady_us

_TIMEOUT = aiohttp.ClientTimeout(total=10, connect=5)
_BODY_BYTES = 32 << 20
_FRAME_BYTES = 4 << 20
_SUBSCRIBE_STREAMS = 100  # names per SUBSCRIBE
_SUBSCRIBE_PACE_S = 0.3  # the exchange cuts who sends more than 5 messages a second
_BACKOFF_S = (0.25, 30.0)
_BAN_S = 60.0  # where a refusal does not say how long
_BANNED_UNTIL = re.compile(r"banned until (\d{13})\b")  # milliseconds, in the text of a ban


class Busy(Unavailable):
    """The exchange told us to stop (429, 418, 403): no call before `retry_after_s` has passed."""

    def __init__(self, text: str, retry_after_s: float) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Venue:
    """What differs between spot and USD-M futures."""

    name: str
    rest_path: str
    stream_path: str
    update_s: float  # time between two messages about an open candle

    def kline_weight(self, limit: int) -> int:
        if self.name == "spot":
            return 2
        return 1 if limit < 100 else 2 if limit < 500 else 5 if limit <= 1000 else 10

    def depth_weight(self, limit: int) -> int:
        return 5 if limit <= 100 else 25 if limit <= 500 else 50 if limit <= 1000 else 250


SPOT = Venue(name="spot", rest_path="/api/v3", stream_path="/stream", update_s=2.0)
# Klines are served on /market only; the old paths accept a subscription and stay silent.
FUTURES = Venue(name="futures", rest_path="/fapi/v1", stream_path="/market/stream", update_s=0.25)
PAGE = 1000  # candles of one REST reply


# -- request weight ---------------------------------------------------------------------------


@dataclass(slots=True)
class Weights:
    """Request weight of one address, in the exchange's windows of one clock minute.

    limit: what the exchange allows all programs of this address together. share: our part.
    Times are wall seconds and arrive as arguments.
    """

    limit: int = 6000
    share: float = 0.5
    own: int = 0
    total: int = 0
    _minute: int = -1
    _stopped_until_s: float = 0.0

    def wait_s(self, weight: int, now_s: float) -> float:
        """How long to wait before a request of this weight; 0 = send it now."""
        if now_s < self._stopped_until_s:
            return self._stopped_until_s - now_s
        self._turn(now_s)
        fits_own = self.own + weight <= max(weight, self.limit * self.share)
        fits_all = self.total + weight <= max(weight, self.limit * 0.9)
        return 0.0 if fits_own and fits_all else 60.05 - now_s % 60

    def stopped_s(self, now_s: float) -> float:
        """How long the exchange allows no call at all; 0 = it allows some."""
        return max(0.0, self._stopped_until_s - now_s)

    def sent(self, weight: int, now_s: float) -> None:
        self._turn(now_s)
        self.own += weight
        self.total += weight

    def heard(self, used: int, now_s: float) -> None:
        """The exchange's own count, from a reply's headers."""
        self._turn(now_s)
        self.total = max(self.total, used)

    def used(self, now_s: float) -> int:
        """Weight of the running minute, all programs of this address together."""
        self._turn(now_s)
        return self.total

    def refused(self, retry_after_s: float, now_s: float) -> None:
        self._stopped_until_s = max(self._stopped_until_s, now_s + retry_after_s)

    def _turn(self, now_s: float) -> None:
        minute = int(now_s // 60)
        if minute != self._minute:
            self._minute, self.own, self.total = minute, 0, 0


@dataclass(slots=True)
class Attempts:
    """Connection attempts of this process: fewer than the 300 in 5 minutes that an address has."""

    most: int = 250
    window_s: float = 300.0
    _at_s: deque[float] = field(default_factory=deque)

    def wait_s(self, now_s: float) -> float:
        """How long to wait before the next attempt, which is counted once this is 0."""
        while self._at_s and self._at_s[0] <= now_s - self.window_s:
            self._at_s.popleft()
        if len(self._at_s) >= self.most:
            return self._at_s[0] + self.window_s - now_s
        self._at_s.append(now_s)
        return 0.0


# -- candles as the exchange writes them --------------------------------------------------------


def _float(value: Any) -> float:
    """A decimal string (or number) as the nearest double.

    The text "NaN" is what the simulator sends where its source lacks a column.
    """
    if type(value) is not str and type(value) is not int and type(value) is not float:
        raise BadInput(f"{value!r} is no number")  # True and False are none, either
    try:
        return float(value)
    except (ValueError, OverflowError):
        raise BadInput(f"{value!r} is no number") from None


def _time(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 10**14:
        raise BadInput(f"{value!r} is no time in milliseconds")
    return value


def kline_from_row(row: Any, symbol: str, interval: str) -> Kline:
    """A row of `GET klines` (binance.md section 5).

    Raises:
        BadInput: it has another shape.
    """
    if not isinstance(row, list) or len(row) < 11:
        raise BadInput("a kline row is not a list of 12")
    open_time_ms = _time(row[0])
    return Kline(
        symbol=symbol,
        interval=interval,
        open_time_ms=open_time_ms,
        close_time_ms=open_time_ms + interval_ms(interval) - 1,
        open=_float(row[1]),
        high=_float(row[2]),
        low=_float(row[3]),
        close=_float(row[4]),
        volume=_float(row[5]),
        quote_volume=_float(row[7]),
        trades=_float(row[8]),
        taker_base=_float(row[9]),
        taker_quote=_float(row[10]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class KlineUpdate:
    """A message of a kline stream. kline carries the symbol and interval that the payload names.

    stream: the subscription it came on, "" on a raw connection.
    """

    stream: str
    event_ms: int
    closed: bool
    kline: Kline


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack:
    """The reply to a control message; error is "" where it was accepted."""

    id: Any
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShutdownWarning:
    """The server will close this connection soon: open another one first."""


Message = KlineUpdate | Ack | ShutdownWarning


def is_closed_candle(text: str) -> bool:
    """Cheap test, before any parsing: does this frame close a candle?"""
    return '"x":true' in text


def parse_message(text: str) -> Message | None:
    """A frame of a market stream, raw or combined; None for an event that is none of ours.

    Raises:
        BadInput: it is not JSON, or not of the shape that its kind has.
    """
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        raise BadInput(f"a stream message is not JSON: {text[:80]!r}") from None
    if not isinstance(body, dict):
        raise BadInput("a stream message is not an object")
    stream, data = "", body
    if "stream" in body and isinstance(body.get("data"), dict):
        stream, data = str(body["stream"]), body["data"]
    kind = data.get("e")
    if kind == "kline":
        return _kline_update(stream, data)
    if kind == "serverShutdown" or stream == "!serverShutdown":
        return ShutdownWarning()
    if kind is None and stream == "":
        error = data.get("error", data)
        if isinstance(error, dict) and "code" in error:
            return Ack(id=data.get("id"), error=f"{error['code']} {error.get('msg', '')}".strip())
        if "result" in data:
            return Ack(id=data.get("id"), error="")
    return None


def _kline_update(stream: str, data: dict[str, Any]) -> KlineUpdate:
    k = data.get("k")
    if not isinstance(k, dict):
        raise BadInput("a kline message has no candle")
    try:
        open_time_ms, closed = _time(k["t"]), k["x"]
        kline = Kline(
            symbol=str(k["s"]),
            interval=str(k["i"]),
            open_time_ms=open_time_ms,
            close_time_ms=_time(k["T"]),
            open=_float(k["o"]),
            high=_float(k["h"]),
            low=_float(k["l"]),
            close=_float(k["c"]),
            volume=_float(k["v"]),
            quote_volume=_float(k["q"]),
            trades=_float(k["n"]),
            taker_base=_float(k["V"]),
            taker_quote=_float(k["Q"]),
        )
        event_ms = _time(data["E"])
    except KeyError as error:
        raise BadInput(f"a kline message lacks {error}") from None
    if not isinstance(closed, bool):
        raise BadInput("a kline message does not say whether the candle is closed")
    return KlineUpdate(stream=stream, event_ms=event_ms, closed=closed, kline=kline)


def kline_stream(symbol: str, interval: str) -> str:
    """`btcusdt@kline_1m`; an upper-case name would be accepted and never served."""
    return f"{symbol.lower()}@kline_{interval}"


# -- REST -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Book:
    """An order book: (price, quantity) per level, best first."""

    last_update_id: int
    bids: tuple[tuple[float, float], ...]
    asks: tuple[tuple[float, float], ...]


class Rest:
    """The public REST side of one venue.

    Every call waits for its turn (weight budget, a stop that the exchange ordered, back-off after
    failures that all callers share) and then asks once.

    Raises, each call:
        Busy: 429, 418 or 403. Unavailable: no answer, 5xx, or a reply that cannot be trusted.
        Rejected: the exchange says that the request is wrong.
    """

    def __init__(
        self, http: aiohttp.ClientSession, url: str, venue: Venue, weights: Weights
    ) -> None:
        self.venue = venue
        self.weights = weights
        self.failures = 0  # in a row
        self._http = http
        self._url = url.rstrip("/")
        self._quiet_until_s = 0.0

    async def klines(
        self,
        symbol: str,
        interval: str,
        *,
        start_ms: int | None = None,
        end_ms: int | None = None,
        limit: int = PAGE,
    ) -> list[Kline]:
        """Candles by open time, oldest first; the last one may still be open."""
        params = {"symbol": symbol, "interval": interval, "limit": str(limit)}
        if start_ms is not None:
            params["startTime"] = str(start_ms)
        if end_ms is not None:
            params["endTime"] = str(end_ms)
        reply = await self._get("klines", params, self.venue.kline_weight(limit))
        with _Checked(self, "klines"):
            if not isinstance(reply, list) or len(reply) > limit:
                raise BadInput("the reply is not a list of at most `limit` rows")
            rows = [kline_from_row(row, symbol, interval) for row in reply]
            times = [row.open_time_ms for row in rows]
            if any(b <= a for a, b in itertools.pairwise(times)):
                raise BadInput("rows are not in order")
            if times and not (start_ms or 0) <= times[0] <= times[-1] <= (end_ms or math.inf):
                raise BadInput("rows lie outside the asked range")
        return rows

    async def server_time_ms(self) -> int:
        """The account clock. In a replay the market's clock is another one."""
        reply = await self._get("time", {}, 1)
        with _Checked(self, "time"):
            if not isinstance(reply, dict):
                raise BadInput("the reply is not an object")
            return _time(reply.get("serverTime"))

    async def weight_limit(self, symbol: str) -> int | None:
        """REQUEST_WEIGHT per minute as the exchange states it, None where it does not."""
        return weight_limit_in(await self._get("exchangeInfo", {"symbol": symbol}, 20))

    async def depth(self, symbol: str, limit: int) -> Book:
        """The order book's best `limit` levels."""
        params = {"symbol": symbol, "limit": str(limit)}
        reply = await self._get("depth", params, self.venue.depth_weight(limit))
        with _Checked(self, "depth"):
            if not isinstance(reply, dict) or not isinstance(reply.get("lastUpdateId"), int):
                raise BadInput("the reply is no order book")
            return Book(
                last_update_id=reply["lastUpdateId"],
                bids=_levels(reply.get("bids"), descending=True),
                asks=_levels(reply.get("asks"), descending=False),
            )

    async def funding(self, symbol: str, *, start_ms: int, limit: int = 1000) -> list[Funding]:
        """Funding rates from `start_ms` on, oldest first (futures only)."""
        params = {"symbol": symbol, "startTime": str(start_ms), "limit": str(limit)}
        reply = await self._get("fundingRate", params, 1)
        with _Checked(self, "fundingRate"):
            if not isinstance(reply, list):
                raise BadInput("the reply is not a list")
            found: dict[int, Funding] = {}
            for item in reply:
                if not isinstance(item, dict):
                    raise BadInput("a funding rate is not an object")
                mark = item.get("markPrice")
                # Funding times carry some milliseconds of jitter: to the minute.
                time_ms = floor_ms(_time(item.get("fundingTime")), 60_000)
                found[time_ms] = Funding(
                    symbol=symbol,
                    open_time_ms=time_ms,
                    rate=_float(item.get("fundingRate")),
                    mark_price=math.nan if mark in (None, "") else _float(mark),
                )
            return [found[time_ms] for time_ms in sorted(found)]

    async def _get(self, endpoint: str, params: Mapping[str, str], weight: int) -> Any:
        await self._turn(weight)
        self.weights.sent(weight, time.time())
        url = f"{self._url}{self.venue.rest_path}/{endpoint}"
        try:
            async with self._http.get(url, params=params, timeout=_TIMEOUT) as response:
                status, headers = response.status, response.headers
                body = await read_body(response)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            self.failed()
            reason = str(error) or type(error).__name__
            raise Unavailable(f"{endpoint}: no answer: {reason}") from None
        used = headers.get("X-MBX-USED-WEIGHT-1M") or headers.get("X-MBX-USED-WEIGHT")
        if used is not None and used.isdigit():
            self.weights.heard(int(used), time.time())
        if status in (403, 418, 429):
            wait_s = stop_s(headers.get("Retry-After"), body.decode(errors="replace"), time.time())
            self.weights.refused(wait_s, time.time())
            raise Busy(f"{endpoint}: HTTP {status}, no calls for {wait_s:.0f} s", wait_s)
        try:
            reply = json.loads(body)
        except (ValueError, RecursionError):
            self.failed()
            raise Unavailable(f"{endpoint}: HTTP {status} with a body that is not JSON") from None
        if status >= 500:
            self.failed()
            raise Unavailable(f"{endpoint}: HTTP {status}")
        if status >= 400:
            code, text = "", ""
            if isinstance(reply, dict):
                code, text = str(reply.get("code", "")), str(reply.get("msg", ""))
            raise Rejected(f"{endpoint}: HTTP {status} {code} {text}".strip())
        self.failures = 0
        return reply

    async def _turn(self, weight: int) -> None:
        while True:
            wait_s = max(
                self.weights.wait_s(weight, time.time()), self._quiet_until_s - time.monotonic()
            )
            if wait_s <= 0:
                return
            await asyncio.sleep(wait_s)

    def failed(self) -> None:
        """Count a failure; the next call waits longer, with jitter (FAULTS C6)."""
        self.failures += 1
        longest_s = min(_BACKOFF_S[1], _BACKOFF_S[0] * 2 ** min(self.failures - 1, 10))
        self._quiet_until_s = time.monotonic() + longest_s * random.uniform(0.5, 1.0)


class _Checked:
    """A reply of the wrong shape counts as no answer: nothing of it is used."""

    def __init__(self, rest: Rest, endpoint: str) -> None:
        self._rest = rest
        self._endpoint = endpoint

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, BadInput):
            self._rest.failed()
            raise Unavailable(f"{self._endpoint}: {error}") from None


def weight_limit_in(info: Any) -> int | None:
    """REQUEST_WEIGHT per minute in a reply of `exchangeInfo`, None where it is not stated."""
    limits = info.get("rateLimits") if isinstance(info, dict) else None
    for limit in limits if isinstance(limits, list) else ():
        if (
            isinstance(limit, dict)
            and limit.get("rateLimitType") == "REQUEST_WEIGHT"
            and limit.get("interval") == "MINUTE"
            and limit.get("intervalNum", 1) == 1
            and isinstance(limit.get("limit"), int)
        ):
            return int(limit["limit"])
    return None


async def read_body(response: aiohttp.ClientResponse) -> bytes:
    """Raises: ValueError where it is larger than any honest reply."""
    parts, size = [], 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > _BODY_BYTES:
            raise ValueError(f"the body is larger than {_BODY_BYTES} bytes")
        parts.append(part)
    return b"".join(parts)


def retry_after_s(text: str | None, unsaid_s: float = _BAN_S) -> float:
    """A `Retry-After` header; unsaid_s where it says nothing sensible."""
    try:
        wait_s = float(text) if text is not None else unsaid_s
    except ValueError:
        wait_s = unsaid_s
    return wait_s if 0 <= wait_s <= 7 * 86_400 else unsaid_s


def stop_s(header: str | None, text: str, now_s: float) -> float:
    """How long a 403, 418 or 429 forbids calls: its `Retry-After`, else until when its text says
    that this address is banned (binance.md section 11)."""
    until = _BANNED_UNTIL.search(text) if header is None else None
    if until is None:
        return retry_after_s(header)
    return retry_after_s(f"{max(1.0, int(until[1]) / 1000 - now_s)}")


def _levels(levels: Any, *, descending: bool) -> tuple[tuple[float, float], ...]:
    if not isinstance(levels, list):
        raise BadInput("a side of the book is not a list")
    found = []
    for level in levels:
        if not isinstance(level, list) or len(level) < 2:
            raise BadInput("a level of the book is not [price, quantity]")
        price, quantity = _float(level[0]), _float(level[1])
        if not (0 < price < math.inf and 0 <= quantity < math.inf):
            raise BadInput(f"a level of the book is [{price}, {quantity}]")
        found.append((price, quantity))
    prices = [price for price, _ in found]
    if prices != sorted(prices, reverse=descending):
        raise BadInput("a side of the book is not in order")
    return tuple(found)


# -- market streams -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Frame:
    """A text message and when it reached us (our clock, microseconds).

    steady_us: the same by a clock that never steps and begins anywhere.
    """

    text: str
    received_us: int
    steady_us: int


class Socket:
    """One connection to market streams, in the combined form.

    before_pong: awaited before a ping is answered, after every frame before it was handed out. It
    must come back within some seconds, or the server takes us for dead.
    """

    def __init__(
        self,
        ws: aiohttp.ClientWebSocketResponse,
        before_pong: Callable[[], Awaitable[None]] | None,
    ) -> None:
        self._ws = ws
        self._before_pong = before_pong

    @classmethod
    async def open(
        cls,
        http: aiohttp.ClientSession,
        url: str,
        venue: Venue,
        *,
        before_pong: Callable[[], Awaitable[None]] | None = None,
    ) -> "Socket":
        """Raises: Unavailable."""
        try:
            async with asyncio.timeout(10):
                ws = await http.ws_connect(
                    f"{url.rstrip('/')}{venue.stream_path}",
                    autoping=False,
                    max_msg_size=_FRAME_BYTES,
                    timeout=aiohttp.ClientWSTimeout(ws_close=1.0),
                )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise Unavailable(f"stream connection refused: {reason}") from None
        return cls(ws, before_pong)

    async def subscribe(self, streams: Sequence[str]) -> int:
        """Asks for the streams, in few and paced messages; returns the number of acks to come.

        Raises: Unavailable.
        """
        messages = 0
        for start in range(0, len(streams), _SUBSCRIBE_STREAMS):
            if messages:
                await asyncio.sleep(_SUBSCRIBE_PACE_S)
            messages += 1
            part = list(streams[start : start + _SUBSCRIBE_STREAMS])
            try:
                await self._ws.send_json({"method": "SUBSCRIBE", "params": part, "id": messages})
            except (aiohttp.ClientError, OSError, RuntimeError) as error:
                raise Unavailable(f"stream connection lost: {error}") from None
        return messages

    async def receive(self) -> Frame:
        """The next text message.

        Raises:
            Unavailable: the connection has ended.
        """
        while True:
            message = await self._ws.receive()
            kind = message.type
            if kind is aiohttp.WSMsgType.TEXT:
                return Frame(message.data, time.time_ns() // 1000, steady_us())
            if kind is aiohttp.WSMsgType.PING:
                if self._before_pong is not None:
                    await self._before_pong()
                try:
                    await self._ws.pong(message.data)
                except (aiohttp.ClientError, OSError, RuntimeError) as error:
                    raise Unavailable(f"stream connection lost: {error}") from None
            elif kind is aiohttp.WSMsgType.PONG or kind is aiohttp.WSMsgType.BINARY:
                continue
            else:
                raise Unavailable(f"stream connection closed (code {self._ws.close_code})")

    async def close(self) -> None:
        await self._ws.close()
