"""The websocket side: connections, subscriptions, control messages, and sending.

Frames are made once per stream and form and written to each socket in one piece per step, so that
hundreds of candles that close together leave within milliseconds. A ping after them, answered,
proves that the client has read that far: `ask()` sends it, `taken()` waits for the answers.
"""

import asyncio
import json
import logging
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from aiohttp import WSMsgType, web

from simulator import events
from simulator.events import Message, Topic
from simulator.wire import MICROSECONDS, MILLISECONDS, frame, ping_frame, wrapped

log = logging.getLogger(__name__)

_PACE = b"pace-"  # pings that ask "have you read this far?"
_FULL_BYTES = 64 << 20  # a client that lets this much pile up is cut, as Binance cuts slow readers
WS_API = "ws-api"  # the route of connections to the WS API
PUBLIC_KINDS = frozenset({"depth", "partial", "bookTicker", "trade"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Limits of the websocket side; seconds. Changed by `POST /control/limits`."""

    ping_s: float = 20.0
    pong_s: float = 60.0
    lifetime_s: float = 86_400.0
    messages_per_s: int = 5
    streams: int = 1024
    connections_per_5m: int = 300


@dataclass(eq=False, slots=True)
class Connection:
    """One client. route: "" for spot, else public, market or private (USD-M futures)."""

    venue: str
    route: str
    ws: web.WebSocketResponse
    transport: asyncio.Transport
    opened_s: float
    unit: int = MILLISECONDS
    combined: bool = False
    topics: dict[str, Topic | None] = field(default_factory=dict)
    heard_s: float = 0.0
    pinged_s: float = 0.0
    waiting: bool = False
    sent: int = 0
    _seq: int = 0
    _unanswered: deque[tuple[bytes, float]] = field(default_factory=deque)
    _outbox: list[bytes] = field(default_factory=list)
    _received_s: deque[float] = field(default_factory=deque)

    def put(self, data: bytes) -> None:
        self._outbox.append(data)

    def put_all(self, frames: list[bytes]) -> None:
        self._outbox += frames

    def flush(self) -> None:
        """Write what was put, in one piece."""
        if not self._outbox:
            return
        data = b"".join(self._outbox)
        self.sent += len(self._outbox)
        self._outbox.clear()
        if self.transport.is_closing():
            return
        if self.transport.get_write_buffer_size() > _FULL_BYTES:
            log.warning("a client does not read: cut", extra={"waiting_bytes": _FULL_BYTES})
            self.transport.abort()
            return
        self.transport.write(data)

    def ping(self, now_s: float, prefix: bytes = b"") -> None:
        self._seq += 1
        payload = prefix + str(self._seq).encode()
        self._unanswered.append((payload, now_s))
        self.put(ping_frame(payload))

    def pong(self, payload: bytes, now_s: float) -> tuple[bool, bool]:
        """(was it asked for, does it answer the newest pacing ping)."""
        for index, (sent, _) in enumerate(self._unanswered):
            if sent == payload:
                for _ in range(index + 1):
                    self._unanswered.popleft()
                self.heard_s = now_s
                done = not any(sent.startswith(_PACE) for sent, _ in self._unanswered)
                return True, done and self.waiting
        return False, False

    def oldest_ping_s(self) -> float | None:
        return self._unanswered[0][1] if self._unanswered else None

    def is_flooding(self, now_s: float, most: int) -> bool:
        """Count an incoming message; more than `most` within one second is a flood."""
        self._received_s.append(now_s)
        while self._received_s[0] <= now_s - 1.0:
            self._received_s.popleft()
        return len(self._received_s) > most


@dataclass(slots=True)
class Mail:
    """The frames of one step of market time for each connection, and how many show a close."""

    frames: defaultdict[Connection, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    closed_count: int = 0


def is_served(connection: Connection, topic: Topic) -> bool:
    """Futures split their streams over two routes; on the other one a stream is silent."""
    if connection.venue == "spot":
        return True
    return connection.route == ("public" if topic.kind in PUBLIC_KINDS else "market")


class Hub:
    """Every connection, who hears what, and the sending of one step's messages."""

    def __init__(self) -> None:
        self.rules = Rules()
        self.connections: set[Connection] = set()
        self.topics: dict[tuple[str, Topic], list[Connection]] = {}
        self.version = 0  # grows with every change of a subscription
        self.closed_count = 0
        self.changed = asyncio.Event()
        self._taken = asyncio.Event()
        self._accepted_s: deque[float] = deque()

    # connections

    def admits(self, now_s: float) -> bool:
        """Count a connection attempt; False when there were too many in five minutes."""
        while self._accepted_s and self._accepted_s[0] < now_s - 300:
            self._accepted_s.popleft()
        self._accepted_s.append(now_s)
        return len(self._accepted_s) <= self.rules.connections_per_5m

    def forget_attempts(self) -> None:
        self._accepted_s.clear()

    async def serve(
        self, request: web.Request, *, venue: str, route: str, combined: bool, names: list[str]
    ) -> web.WebSocketResponse:
        """One connection from handshake to end."""
        ws = web.WebSocketResponse(autoping=False, compress=False, timeout=2.0)
        await ws.prepare(request)
        loop = asyncio.get_running_loop()
        transport = request.transport
        if transport is None:  # hung up during the handshake
            return ws
        unit = request.query.get("timeUnit", "").upper()
        connection = Connection(
            venue,
            route,
            ws,
            transport,
            loop.time(),
            MICROSECONDS if unit == "MICROSECOND" else MILLISECONDS,
            combined,
        )
        connection.heard_s = connection.pinged_s = loop.time()
        self.connections.add(connection)
        try:
            if len(names) > self.rules.streams:
                await ws.close(code=1008, message=b"Too many streams")
                return ws
            self.subscribe(connection, names)
            await self._listen(connection)
        finally:
            self.unsubscribe(connection, list(connection.topics))
            self.connections.discard(connection)
            self._release(connection)
            self.changed.set()
        return ws

    async def _listen(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        async for message in connection.ws:
            now = loop.time()
            if message.type is WSMsgType.PONG:
                asked, taken = connection.pong(bytes(message.data), now)
                if taken:
                    self._release(connection)
                if asked:
                    continue
            most = self.rules.messages_per_s * (1 if connection.venue == "spot" else 2)
            if connection.is_flooding(now, most):
                await connection.ws.close(code=1008, message=b"Too many requests")
                return
            if message.type is WSMsgType.PING:
                connection.put(frame(bytes(message.data), head=0x8A))
            elif message.type is WSMsgType.TEXT:
                connection.put(frame(self._answer(connection, message.data)))
            elif message.type is WSMsgType.BINARY:
                await connection.ws.close(code=1003, message=b"Binary frames are not supported")
                return
            connection.flush()

    # subscriptions

    def subscribe(self, connection: Connection, names: Iterable[str]) -> None:
        for name in names:
            if name in connection.topics:
                continue
            topic = events.parse(name)
            if topic is not None and not is_served(connection, topic):
                topic = None
            connection.topics[name] = topic
            if topic is not None:
                self.topics.setdefault((connection.venue, topic), []).append(connection)
        self.version += 1
        self.changed.set()

    def unsubscribe(self, connection: Connection, names: Iterable[str]) -> None:
        for name in names:
            topic = connection.topics.pop(name, None)
            if topic is not None:
                key = connection.venue, topic
                self.topics[key].remove(connection)
                if not self.topics[key]:
                    del self.topics[key]
        self.version += 1

    def _answer(self, connection: Connection, text: str) -> bytes:
        """The reply to a control message, in the two shapes that Binance uses."""
        try:
            request = json.loads(text)
        except ValueError as error:
            return _refuse(3, f"Invalid JSON: {error}", None)
        if not isinstance(request, dict):
            return _refuse(2, "Invalid request: request must be an object", None)
        identity = request.get("id")
        if not _is_id(identity):
            return _refuse(
                2,
                "Invalid request: request ID must be an unsigned integer, a string of up to 36 "
                "characters, or null",
                None,
            )
        unknown = set(request) - {"method", "params", "id"}
        if unknown:
            return _refuse(2, f"Invalid request: unknown field `{min(unknown)}`", identity)
        if "method" not in request:
            return _refuse(2, "Invalid request: missing field `method`", identity)
        method, params = request["method"], request.get("params", [])
        if method in ("SUBSCRIBE", "UNSUBSCRIBE"):
            if not isinstance(params, list) or not all(isinstance(p, str) for p in params):
                return _refuse(
                    2, "Invalid request: params must be an array of stream names", identity
                )
            if method == "UNSUBSCRIBE":
                self.unsubscribe(connection, params)
            else:
                if len(set(connection.topics) | set(params)) > self.rules.streams:
                    too_many = {"code": 4, "msg": "Too many subscriptions"}
                    return json.dumps({"error": too_many, "id": identity}).encode()
                self.subscribe(connection, params)
            return _reply(None, identity)
        if method == "LIST_SUBSCRIPTIONS":
            if params:
                return _refuse(2, "Invalid request: too many parameters", identity)
            return _reply(list(connection.topics), identity)
        if method == "SET_PROPERTY":
            if not isinstance(params, list) or len(params) != 2:
                return _refuse(2, "Invalid request: property name and value are expected", identity)
            if params[0] != "combined":
                return _refuse(0, "Unknown property", identity)
            if not isinstance(params[1], bool):
                return _refuse(1, "Invalid value type: expected Boolean", identity)
            connection.combined = params[1]
            return _reply(None, identity)
        if method == "GET_PROPERTY":
            if not isinstance(params, list) or len(params) != 1:
                return _refuse(2, "Invalid request: property name must be a string", identity)
            if params[0] != "combined":
                return _refuse(0, "Unknown property", identity)
            return _reply(connection.combined, identity)
        return _refuse(
            2,
            f"Invalid request: unknown variant `{method}`, expected one of `SUBSCRIBE`, "
            "`UNSUBSCRIBE`, `LIST_SUBSCRIPTIONS`, `SET_PROPERTY`, `GET_PROPERTY`",
            identity,
        )

    # sending

    def prepare(self, venue: str, topic: Topic, messages: Iterable[Message]) -> None:
        """Make the frames of one stream ahead of time."""
        hearers = self.topics.get((venue, topic), ())
        for message in messages:
            for connection in hearers:
                _frame_for(message, connection)

    def send(self, messages: Iterable[tuple[str, Message]]) -> None:
        """Put each (venue, message) to everyone who hears its stream; `flush` writes."""
        for venue, message in messages:
            hearers = self.topics.get((venue, message.topic))
            if not hearers:
                continue
            for connection in hearers:
                connection.put(_frame_for(message, connection))
            if message.closed:
                self.closed_count += 1

    def forms(self, venue: str, topic: Topic) -> dict[tuple[int, bool], list[Connection]]:
        """Who hears a stream, by (time unit, combined)."""
        found: dict[tuple[int, bool], list[Connection]] = {}
        for connection in self.topics.get((venue, topic), ()):
            found.setdefault((connection.unit, connection.combined), []).append(connection)
        return found

    def address(
        self,
        hearers: list[Connection],
        said: list[list[Message]],
        mails: list[Mail],
        *,
        is_first: bool,
    ) -> None:
        """Add what one stream says in some steps to the mail of each step. is_first: not in another
        form for others before."""
        for messages, mail in zip(said, mails, strict=True):
            for message in messages:
                mail.closed_count += message.closed and is_first
                for connection in hearers:
                    mail.frames[connection].append(_frame_for(message, connection))

    def address_frames(
        self,
        hearers: list[Connection],
        said: list[tuple[bytes, bool] | None],
        mails: list[Mail],
        *,
        is_first: bool,
    ) -> None:
        """The same for ready frames; each with whether it shows a close."""
        for one, mail in zip(said, mails, strict=True):
            if one is not None:
                data, is_close = one
                mail.closed_count += is_close and is_first
                for connection in hearers:
                    mail.frames[connection].append(data)

    def post(self, mail: Mail) -> None:
        """Put it to everyone it is for; `flush` writes."""
        for connection, frames in mail.frames.items():
            connection.put_all(frames)
        self.closed_count += mail.closed_count

    def flush(self) -> None:
        for connection in self.connections:
            connection.flush()

    def consumers(self) -> list[Connection]:
        """Connections that hear at least one stream of a market."""
        return [c for c in self.connections if any(c.topics.values())]

    async def all_taken(self) -> None:
        """Until every consumer has read all that was sent, or is gone."""
        self.ask()
        self.flush()
        await self.taken()

    def ask(self) -> None:
        """Ask every consumer to say when it has read all that was put so far; `flush` writes."""
        now = asyncio.get_running_loop().time()
        for connection in self.consumers():
            connection.waiting = True
            connection.ping(now, _PACE)

    async def taken(self) -> None:
        """Until every consumer that was asked has said so, or is gone."""
        while any(connection.waiting for connection in self.connections):
            self._taken.clear()
            await self._taken.wait()

    def _release(self, connection: Connection) -> None:
        connection.waiting = False
        if not any(other.waiting for other in self.connections):
            self._taken.set()

    # the passing of time

    async def watch(self) -> None:
        """Ping, drop who does not answer, end connections that are 24 h old."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(1.0, self.rules.ping_s / 4, self.rules.pong_s / 4))
            now = loop.time()
            for connection in list(self.connections):
                asked = connection.oldest_ping_s()
                if asked is not None and now - asked > self.rules.pong_s:
                    log.warning("a client does not answer pings: dropped")
                    connection.transport.abort()
                elif now - connection.opened_s > self.rules.lifetime_s:
                    self.end(connection, 1000, b"24h")
                elif now - connection.pinged_s >= self.rules.ping_s:
                    connection.pinged_s = now
                    connection.ping(now)
                    connection.flush()

    def end(self, connection: Connection, code: int, reason: bytes, *, abort: bool = False) -> None:
        """Close with a close frame, or cut the line without one."""
        if abort:
            connection.transport.abort()
            return
        close = code.to_bytes(2, "big") + reason
        connection.put(frame(close, head=0x88))
        connection.flush()
        asyncio.get_running_loop().call_later(0.5, connection.transport.close)

    def announce_shutdown(self, wall_ms: int) -> None:
        """Tell every client that this server goes; spot since 2026-05."""
        for connection in self.connections:
            event = f'{{"e":"serverShutdown","E":{wall_ms * connection.unit}}}'.encode()
            if connection.route == WS_API:
                event = b'{"event":' + event + b"}"
            elif connection.combined:
                event = wrapped("!serverShutdown", event)
            connection.put(frame(event))
            connection.flush()

    def hang_up(self) -> None:
        """The process ends: say goodbye and hang up."""
        for connection in list(self.connections):
            connection.put(frame((1001).to_bytes(2, "big"), head=0x88))
            connection.flush()
            connection.transport.close()


def _frame_for(message: Message, connection: Connection) -> bytes:
    form = connection.unit, connection.combined
    data = message.frames.get(form)
    if data is None:
        payload = message.render(connection.unit)
        if connection.combined:
            payload = wrapped(message.topic.name, payload)
        data = message.frames[form] = frame(payload)
    return data


def _reply(result: object, identity: object) -> bytes:
    return json.dumps({"result": result, "id": identity}, separators=(",", ":")).encode()


def _refuse(code: int, message: str, identity: object) -> bytes:
    reply: dict[str, Any] = {"code": code, "msg": message}
    if identity is not None:
        reply["id"] = identity
    return json.dumps(reply, separators=(",", ":")).encode()


def _is_id(identity: object) -> bool:
    if identity is None:
        return True
    if isinstance(identity, str):
        return len(identity) <= 36
    return isinstance(identity, int) and not isinstance(identity, bool) and abs(identity) < 2**63


def names_of(path: str) -> list[str]:
    """Stream names in a path or query, percent-decoded: `a/b` -> [a, b]."""
    return [name for name in unquote(path).split("/") if name]


def asked_for(raw_query: str) -> list[str]:
    """Stream names of `streams=` in a query; a plus sign is a plus sign (`kline_1d@+08:00`)."""
    for part in raw_query.split("&"):
        name, _, value = part.partition("=")
        if name == "streams":
            return names_of(value)
    return []
