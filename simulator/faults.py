"""Faults on demand: which message or request is touched, and how.

Pure but for the countdowns and seeded draws inside: time arrives as an argument. A fault is given
by `POST /control/faults`; README.md lists every kind with an example.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from simulator.events import Message, kline_message
from simulator.wire import Candle

Kind = Literal[
    "drop", "silence", "delay", "duplicate", "reorder", "revise", "gap", "garbage",
    "429", "418", "status", "timeout", "html", "refuse", "lost", "lag",
]  # fmt: skip
_ON_STREAM = frozenset({"drop", "silence", "delay", "duplicate", "reorder", "garbage"})
_ON_REST = frozenset({"429", "418", "status", "timeout", "html", "delay", "garbage", "lost"})
_ON_CANDLES = frozenset({"revise", "gap"})


class UserEvent(Protocol):
    """An event of a user data stream. names: what a fault's `event` may call it."""

    @property
    def symbol(self) -> str: ...

    @property
    def names(self) -> tuple[str, ...]: ...

    def text(self, unit: int) -> str: ...


class Fault(BaseModel):
    """What to break. Empty filters match everything; count and seconds bound how long it lasts.

    On signed requests: executed, the request is carried out although the answer is the fault's;
    late_ms and engine_ms, it is, that much later (before and after the last check of its age);
    after_ms, how long the answer is held back.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    on: Literal["", "stream", "rest", "ws", "both", "resend", "user"] = ""
    venue: Literal["", "spot", "futures"] = ""
    symbol: str = ""
    interval: str = ""
    path: str = ""
    method: Literal["", "GET", "POST", "PUT", "DELETE"] = ""
    event: str = ""
    executed: bool = False
    late_ms: int = Field(0, ge=0)
    engine_ms: int = Field(0, ge=0)
    after_ms: int = Field(0, ge=0)
    frames: Literal["closed", "open", "all"] = "closed"
    count: int | None = Field(None, ge=1)
    seconds: float | None = Field(None, gt=0)
    probability: float = Field(1.0, gt=0, le=1)
    seed: int = 0
    ms: int = Field(1000, ge=0)
    status: int = Field(500, ge=400, le=599)
    code: int | None = None
    message: str | None = None
    retry_after_s: int | None = Field(None, ge=0)
    factor: float = Field(1.001, gt=0)
    open_time_ms: int | None = None


@dataclass(slots=True)
class Active:
    """A fault at work. left: events still to be hit. [from_ms, to_ms): the candles it is about."""

    number: int
    fault: Fault
    until_s: float | None
    from_ms: int
    to_ms: int
    left: int | None
    hits: int = 0
    draws: random.Random = field(default_factory=random.Random)
    held: dict[tuple[str, str], Message] = field(default_factory=dict)
    held_event: dict[int, UserEvent] = field(default_factory=dict)

    def is_over(self, now_s: float) -> bool:
        return self.left == 0 or (self.until_s is not None and now_s >= self.until_s)

    @property
    def is_holding(self) -> bool:
        return bool(self.held or self.held_event)

    def is_about(self, venue: str, symbol: str, interval: str) -> bool:
        fault = self.fault
        return (
            fault.venue in ("", venue)
            and fault.symbol in ("", symbol)
            and fault.interval in ("", interval)
        )

    def strikes(self) -> bool:
        """Draw and count one hit."""
        if self.fault.probability < 1 and self.draws.random() >= self.fault.probability:
            return False
        self.hits += 1
        if self.left is not None:
            self.left -= 1
        return True


Sending = tuple[int, Message]  # (wall milliseconds from now, what to send)
Telling = tuple[int, UserEvent]


class Faults:
    """All faults at work."""

    def __init__(self) -> None:
        self.active: list[Active] = []
        self._count = 0

    def add(self, fault: Fault, *, now_s: float, open_ms: int, step_ms: int) -> Active:
        """Start a fault. open_ms, step_ms: the candle that is open now, where none is named."""
        self._count += 1
        start = open_ms if fault.open_time_ms is None else fault.open_time_ms
        candles = fault.kind in _ON_CANDLES
        active = Active(
            self._count,
            fault,
            None if fault.seconds is None else now_s + fault.seconds,
            start,
            start + step_ms * (fault.count or 1),
            None if candles else fault.count,
            draws=random.Random(fault.seed * 1_000_003 + self._count),
        )
        self.active.append(active)
        return active

    def remove(self, number: int | None = None) -> int:
        """End one fault, or all; how many were ended."""
        before = len(self.active)
        self.active = [a for a in self.active if number is not None and a.number != number]
        return before - len(self.active)

    def _live(self, now_s: float) -> Iterable[Active]:
        if any(a.is_over(now_s) and not a.is_holding for a in self.active):
            self.active = [a for a in self.active if not a.is_over(now_s) or a.is_holding]
        return list(self.active)

    def request(
        self,
        venue: str,
        path: str,
        symbol: str,
        now_s: float,
        *,
        method: str = "GET",
        where: str = "rest",
    ) -> Fault | None:
        """The fault that this request meets. where: rest or ws (the WS API)."""
        if not self.active:
            return None
        for active in self._live(now_s):
            fault = active.fault
            if fault.kind not in _ON_REST or active.is_over(now_s):
                continue
            if fault.kind in _ON_STREAM and fault.on not in (where, "both"):
                continue
            if fault.on in ("rest", "ws") and fault.on != where:
                continue
            if fault.method not in ("", method):
                continue
            if fault.venue not in ("", venue) or fault.symbol not in ("", symbol):
                continue
            if fault.path in ("", path) and active.strikes():
                return fault
        return None

    def lag_ms(self, path: str, symbol: str, now_s: float) -> int:
        """How old the books are that this query sees."""
        found = 0
        for active in self._live(now_s) if self.active else ():
            fault = active.fault
            if fault.kind != "lag" or active.is_over(now_s):
                continue
            if fault.path in ("", path) and fault.symbol in ("", symbol) and active.strikes():
                found = max(found, fault.ms)
        return found

    def tell(self, listener: int, events: Iterable[UserEvent], now_s: float) -> list[Telling]:
        """What a user data stream really says in place of these events, and after how long."""
        tellings: list[Telling] = []
        for event in events:
            tellings += self._told(listener, event, now_s)
        return tellings

    def _told(self, listener: int, event: UserEvent, now_s: float) -> list[Telling]:
        said: list[Telling] = [(0, event)]
        for active in self._live(now_s):
            fault = active.fault
            if fault.on != "user" or fault.kind not in _ON_STREAM:
                continue
            held = active.held_event.pop(listener, None)
            if held is not None:
                said.append((0, held))
                continue
            if active.is_over(now_s) or fault.symbol not in ("", event.symbol):
                continue
            if fault.event and fault.event not in event.names:
                continue
            if not said or not active.strikes():
                continue
            if fault.kind in ("drop", "silence"):
                said = []
            elif fault.kind == "delay":
                said = [(ms + fault.ms, e) for ms, e in said]
            elif fault.kind == "duplicate":
                said += said
            elif fault.kind == "reorder":
                active.held_event[listener] = event
                said = []
        return said

    def refuses(self, venue: str, now_s: float) -> Fault | None:
        """The fault that a new websocket connection meets."""
        for active in self._live(now_s):
            meant = active.fault.kind == "refuse" and active.fault.venue in ("", venue)
            if meant and not active.is_over(now_s) and active.strikes():
                return active.fault
        return None

    def adjust(
        self,
        where: str,
        venue: str,
        symbol: str,
        interval: str,
        candles: list[Candle],
        now_s: float,
    ) -> list[Candle]:
        """Candles as gap and revise faults leave them for `where`, stream or rest."""
        for active in self._live(now_s):
            fault = active.fault
            if fault.kind not in _ON_CANDLES or not active.is_about(venue, symbol, interval):
                continue
            default = "both" if fault.kind == "gap" else "rest"
            if (fault.on or default) not in (where, "both"):
                continue
            shown = []
            for candle in candles:
                if not active.from_ms <= candle.open_time_ms < active.to_ms:
                    shown.append(candle)
                    continue
                active.hits += 1
                if fault.kind == "revise":
                    shown.append(revised(candle, fault.factor))
            candles = shown
        return candles

    def shape(self, venue: str, message: Message, now_ms: int, now_s: float) -> list[Sending]:
        """What really goes out in place of one message, and after how many milliseconds."""
        topic, candle = message.topic, message.candle
        again: list[Sending] = []
        if candle is not None:
            shown = self.adjust("stream", venue, topic.symbol, topic.interval, [candle], now_s)
            if not shown:
                return []
            if shown[0] is not candle:
                message = kline_message(topic, shown[0], closed=message.closed, now_ms=now_ms)
            again = self._resent(venue, message, now_ms, now_s)
        sendings: list[Sending] = [(0, message)]
        for active in self._live(now_s):
            fault = active.fault
            if not active.is_about(venue, topic.symbol, topic.interval):
                continue
            held = active.held.pop((venue, topic.name), None) if message.closed else None
            if held is not None:
                sendings.append((0, held))
                continue
            if fault.kind not in _ON_STREAM or active.is_over(now_s):
                continue
            if fault.on in ("rest", "ws", "user"):
                continue
            if not _is_meant(fault, message) or not sendings or not active.strikes():
                continue
            if fault.kind in ("drop", "silence"):
                return []
            if fault.kind == "delay":
                sendings = [(ms + fault.ms, m) for ms, m in sendings]
            elif fault.kind == "duplicate":
                sendings += sendings
            elif fault.kind == "garbage":
                sendings = [(ms, _truncated(m)) for ms, m in sendings]
            elif fault.kind == "reorder":
                active.held[venue, topic.name] = message
                sendings = []
        return sendings + again

    def _resent(self, venue: str, message: Message, now_ms: int, now_s: float) -> list[Sending]:
        candle, topic = message.candle, message.topic
        if candle is None or not message.closed:
            return []
        return [
            (
                active.fault.ms,
                kline_message(
                    topic, revised(candle, active.fault.factor), closed=True, now_ms=now_ms
                ),
            )
            for active in self._live(now_s)
            if active.fault.kind == "revise"
            and active.fault.on == "resend"
            and active.is_about(venue, topic.symbol, topic.interval)
            and active.from_ms <= candle.open_time_ms < active.to_ms
        ]


def _is_meant(fault: Fault, message: Message) -> bool:
    if fault.kind == "silence":
        return True
    if message.candle is None:
        return fault.frames == "all"
    return fault.frames == "all" or (fault.frames == "closed") == message.closed


def _truncated(message: Message) -> Message:
    """The same message cut off in the middle: no JSON any more."""

    def render(unit: int) -> bytes:
        whole = message.render(unit)
        return whole[: len(whole) // 2]

    return Message(message.topic, render, message.candle, message.closed)


def revised(candle: Candle, factor: float) -> Candle:
    """A later opinion of the exchange: close and volumes times `factor`, the range wide enough."""
    o, h, low, c, v, q, n, tb, tq = candle.values
    close = round(c * factor, 8)
    volumes = (round(x * factor, 8) for x in (v, q, tb, tq))
    v, q, tb, tq = volumes
    values = (o, max(h, close), min(low, close), close, v, q, n, tb, tq)
    return candle._replace(values=values, is_plain=False)
