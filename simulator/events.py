"""What the market streams say: stream names and the payloads of one step of market time.

Pure functions of the market and two instants: everything after `prev_ms`, up to `now_ms`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

from shared.times import INTERVALS_MS
from simulator.market import Market, Series
from simulator.wire import Candle, kline_event

_KLINE = re.compile(r"^kline_(\d{1,2}[smhd])(@\+08:00)?$")
_EAST_MS = 8 * 3_600_000


@dataclass(frozen=True, slots=True)
class Topic:
    """A stream name, understood. kind names the function that speaks on it."""

    name: str
    kind: str
    symbol: str
    interval: str = ""
    offset_ms: int = 0
    levels: int = 0


@dataclass(slots=True)
class Message:
    """One event for everybody who hears the stream.

    candle: what a kline event shows, closed or not. frames: ready frames per (time unit, combined).
    """

    topic: Topic
    render: Callable[[int], bytes]
    candle: Candle | None = None
    closed: bool = False
    frames: dict[tuple[int, bool], bytes] = field(default_factory=dict)


@lru_cache(maxsize=65536)
def parse(name: str) -> Topic | None:
    """The topic of a stream name; None for a name that Binance accepts and never serves.

    Symbols are lowercase: `BTCUSDT@kline_1m` is such a silent name.
    """
    symbol, at, rest = name.partition("@")
    if not at or symbol != symbol.lower():
        return None
    symbol = symbol.upper()
    match = _KLINE.match(rest)
    if match and match[1] in INTERVALS_MS:
        return Topic(name, "kline", symbol, match[1], _EAST_MS if match[2] else 0)
    return None


def messages(topic: Topic, market: Market, prev_ms: int, now_ms: int) -> list[Message]:
    """The events of one stream for the step (prev_ms, now_ms], in order."""
    series = market.series.get(topic.symbol)
    if series is None:
        return []
    return _KINDS[topic.kind](topic, series, prev_ms, now_ms)


def event_ms(symbol: str, closes_ms: int) -> int:
    """When the exchange says that a candle closed: some milliseconds after the boundary."""
    return closes_ms + 7 + (closes_ms // 1000 * 7919 + len(symbol) * 31 + ord(symbol[0])) % 40


def kline_message(topic: Topic, candle: Candle, *, closed: bool, now_ms: int) -> Message:
    stamp = event_ms(topic.symbol, candle.close_time_ms + 1) if closed else now_ms

    def render(unit: int) -> bytes:
        return kline_event(
            topic.symbol, topic.interval, candle, event_ms=stamp, closed=closed, unit=unit
        )

    return Message(topic, render, candle, closed)


def _klines(topic: Topic, series: Series, prev_ms: int, now_ms: int) -> list[Message]:
    if not series.serves(topic.interval):
        return []
    level = series.level(topic.interval, topic.offset_ms)
    found = [
        kline_message(topic, level.candle(index), closed=True, now_ms=now_ms)
        for index in range(level.closed(prev_ms), level.closed(now_ms))
    ]
    if not found:
        opened = series.open_candle(topic.interval, now_ms, topic.offset_ms)
        if opened is not None:
            found.append(kline_message(topic, opened, closed=False, now_ms=now_ms))
    return found


_KINDS: dict[str, Callable[[Topic, Series, int, int], list[Message]]] = {"kline": _klines}
