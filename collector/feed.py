"""Keeps a group of market streams flowing, over as many connections as that takes.

A connection is replaced when it is cut, falls silent, grows old or is announced to end. Where the
old one still lives, the new one is opened and subscribed first, so that nothing is missed between
the two; what comes twice is dropped by the candles' core.

Silence: a stream should speak every update time. One that does not for `silence_factor` times that
makes us replace the connection. Where the new one stays as quiet, the market itself is (an
illiquid pair, a paused or finished replay): patience doubles with every replacement, up to
LONGEST_PATIENCE_S, and shrinks slowly while messages come in time. Candles do not depend on it:
what a silent stream misses is asked from REST.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import aiohttp

from shared.binance import (
    Ack,
    Attempts,
    Frame,
    KlineUpdate,
    Message,
    ShutdownWarning,
    Socket,
    Venue,
    is_closed_candle,
    parse_message,
)
from shared.errors import BadInput, Unavailable

log = logging.getLogger(__name__)
LONGEST_PATIENCE_S = 60.0
_BACKOFF_S = (0.05, 4.0)
_SUBSCRIBED_S = 10.0
_STABLE_S = 30.0
_TICK_S = 0.25
_LATER_S = 0.001
_LATER = 1_000


@dataclass(slots=True)
class Patience:
    """How long each stream of a group may be silent, in seconds of ours. Pure."""

    base_s: float
    _learned_s: dict[str, float] = field(default_factory=dict)

    def of(self, stream: str) -> float:
        return self._learned_s.get(stream, self.base_s)

    def spoke(self, stream: str, gap_s: float) -> None:
        """A message after `gap_s` of silence on one connection."""
        if stream in self._learned_s and gap_s <= self.base_s:
            self._learned_s[stream] = max(self.base_s, self._learned_s[stream] * 0.99)

    def exhausted(self, stream: str) -> None:
        """The connection was replaced because of this stream: wait longer next time."""
        self._learned_s[stream] = min(LONGEST_PATIENCE_S, 2 * self.of(stream))


class _Line:
    """One connection of a feed and the task that reads it."""

    def __init__(self, feed: "Feed") -> None:
        self._feed = feed
        self.socket: Socket | None = None
        self.opened_s = time.monotonic()
        self.heard_s: dict[str, float] = {}
        self.any_s = self.opened_s
        self.acks = 0
        self.subscribed = asyncio.Event()
        self.shutdown = asyncio.Event()
        self.is_held = False
        self.ended = ""
        self.reader: asyncio.Task[None] | None = None
        self._later: list[Frame] = []

    async def read(self) -> None:
        """Hands every message on until the connection ends.

        Closed candles at once; the rest a moment later, so that of hundreds of candles that close
        together none waits for the updates of open ones.
        """
        assert self.socket is not None  # noqa: S101  # opened before
        receive, loop = self.socket.receive, asyncio.get_running_loop()
        try:
            while True:
                frame = await receive()
                self.any_s = time.monotonic()
                if is_closed_candle(frame.text):
                    self._hand_on(frame)
                    continue
                if not self._later:
                    loop.call_later(_LATER_S, self._catch_up)
                self._later.append(frame)
                if len(self._later) >= _LATER:
                    self._catch_up()
        except Unavailable as error:
            self.ended = str(error)

    def _catch_up(self) -> None:
        frames, self._later = self._later, []
        for frame in frames:
            self._hand_on(frame)

    def _hand_on(self, frame: Frame) -> None:
        message = self._feed.on_frame(frame)
        if isinstance(message, KlineUpdate):
            stream = message.stream
            before_s = self.heard_s.get(stream, self.opened_s)
            self._feed.patience.spoke(stream, self.any_s - before_s)
            self.heard_s[stream] = self.any_s
        elif isinstance(message, Ack):
            self.acks -= 1
            if message.error:
                self._feed.refused(message.error)
            if self.acks <= 0:
                self.subscribed.set()
        elif isinstance(message, ShutdownWarning):
            self.shutdown.set()

    async def before_pong(self) -> None:
        self._catch_up()
        if self._feed.hold is None:
            return
        self.is_held = True
        try:
            await self._feed.hold()
        finally:
            self.is_held = False
            now_s = time.monotonic()
            self.heard_s = dict.fromkeys(self.heard_s, now_s)
            self.any_s = now_s

    async def close(self) -> None:
        if self.reader is not None:
            self.reader.cancel()
            await asyncio.wait((self.reader,))  # a SIGTERM meanwhile is ours, not the reader's
            if not self.reader.cancelled():
                self.reader.result()
        if self.socket is not None:
            await self.socket.close()


class Feed:
    """One group of streams on one venue.

    on_message gets every parsed message with the frame that it came in; on_trouble a code and a
    text; hold, if given, is awaited before each ping is answered (see `Socket`).
    """

    def __init__(
        self,
        http: aiohttp.ClientSession,
        url: str,
        venue: Venue,
        streams: Sequence[str],
        *,
        on_message: Callable[[Message, Frame], None],
        on_trouble: Callable[[str, str], None],
        attempts: Attempts,
        silence_s: float,
        rotate_s: float,
        hold: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.streams = tuple(streams)
        self.patience = Patience(silence_s)
        self.hold = hold
        self.connections = 0
        self._http = http
        self._url = url
        self._venue = venue
        self._on_message = on_message
        self._on_trouble = on_trouble
        self._attempts = attempts
        self._rotate_s = rotate_s
        self._delay_s = _BACKOFF_S[0]

    async def run(self) -> None:
        """For ever."""
        line: _Line | None = None
        try:
            while True:
                new = await self._connect()
                if line is not None:
                    await line.close()
                line = new
                reason = await self._until_it_must_go(line)
                if line.ended:
                    await line.close()
                    line = None
                log.info("stream connection is replaced: %s", reason)
        finally:
            if line is not None:
                await line.close()

    async def _connect(self) -> _Line:
        """A new connection that has subscribed; tries until there is one."""
        while True:
            wait_s = self._attempts.wait_s(time.monotonic())
            if wait_s > 0:
                await asyncio.sleep(wait_s)
                continue
            line = _Line(self)
            try:
                return await self._open(line)
            except Unavailable as error:
                await line.close()
                self._on_trouble("stream_connection", str(error))
            except BaseException:
                await line.close()
                raise
            await self._pause()

    async def _open(self, line: _Line) -> _Line:
        socket = await Socket.open(self._http, self._url, self._venue, before_pong=line.before_pong)
        line.socket = socket
        line.acks = -(-len(self.streams) // 100)
        line.reader = asyncio.create_task(line.read())
        await socket.subscribe(self.streams)
        try:
            async with asyncio.timeout(_SUBSCRIBED_S):
                subscribed = asyncio.create_task(line.subscribed.wait())
                try:
                    await asyncio.wait(
                        (subscribed, line.reader), return_when=asyncio.FIRST_COMPLETED
                    )
                finally:
                    subscribed.cancel()
        except TimeoutError:
            raise Unavailable("the exchange does not answer SUBSCRIBE") from None
        if line.ended:
            raise Unavailable(line.ended)
        line.opened_s = line.any_s = time.monotonic()
        self.connections += 1
        return line

    async def _pause(self) -> None:
        """Before the next attempt after a failure: 0.05 s and up, with jitter (FAULTS C2)."""
        await asyncio.sleep(self._delay_s * random.uniform(0.5, 1.0))
        self._delay_s = min(_BACKOFF_S[1], 2 * self._delay_s)

    async def _until_it_must_go(self, line: _Line) -> str:
        """Returns why the connection must be replaced."""
        assert line.reader is not None  # noqa: S101  # opened before
        announced = asyncio.create_task(line.shutdown.wait())
        try:
            while True:
                await asyncio.wait(
                    (line.reader, announced),
                    timeout=_TICK_S,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                now_s = time.monotonic()
                if now_s - line.opened_s > _STABLE_S:
                    self._delay_s = _BACKOFF_S[0]
                if line.reader.done():
                    line.reader.result()
                    await self._pause()
                    return line.ended
                reason = self._reason(line, now_s)
                if reason:
                    return reason
        finally:
            announced.cancel()

    def _reason(self, line: _Line, now_s: float) -> str:
        """Why a living connection must be replaced, "" while it need not."""
        if line.shutdown.is_set():
            return "the server is about to close it"
        if now_s - line.opened_s > self._rotate_s:
            return "it is old"
        if line.is_held:
            return ""
        silent = self._silent(line, now_s)
        if silent is None:
            return ""
        silent_s = self.patience.of(silent)
        self.patience.exhausted(silent)
        text = f"nothing came{silent and f' on {silent}'} for {silent_s:.1f} s"
        self._on_trouble("stream_silent", text)
        return text

    def _silent(self, line: _Line, now_s: float) -> str | None:
        """The stream that has been silent for too long; "" = the whole connection."""
        if now_s - line.any_s > self.patience.of(""):
            return ""
        for stream in self.streams:
            heard_s = line.heard_s.get(stream, line.opened_s)
            if now_s - heard_s > self.patience.of(stream):
                return stream
        return None

    def refused(self, error: str) -> None:
        """The exchange did not take a subscription."""
        self._on_trouble("subscribe_refused", error)

    def on_frame(self, frame: Frame) -> Message | None:
        """Understands a frame and hands it on; what cannot be understood is told and left."""
        try:
            message = parse_message(frame.text)
        except BadInput as error:
            kind = "closed" if is_closed_candle(frame.text) else "open"
            self._on_trouble("garbage", f"{error} ({kind} candle)")
            return None
        if message is not None:
            self._on_message(message, frame)
        return message
