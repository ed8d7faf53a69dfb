"""What the market streams say: stream names and the payloads of one step of market time.

Pure functions of the market and two instants: everything after `prev_ms`, up to `now_ms`.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from shared.times import INTERVALS_MS
from simulator.book import book_at, changes
from simulator.market import AggTrade, Market, Series
from simulator.statistics import average_price, window
from simulator.wire import Candle, kline_event, levels, text

_KLINE = re.compile(r"^kline_(\d{1,2}[smhd])(@\+08:00)?$")
_CONTINUOUS = re.compile(r"^(\w+)_perpetual$")
_PARTIAL = re.compile(r"^depth(5|10|20)(@(?:100|250|500)ms)?$")
_DIFF = re.compile(r"^depth(@(?:100|250|500)ms)?$")
_TICKER = re.compile(r"^ticker_(1h|4h|1d)(@arr)?$")
_MARK = re.compile(r"^markPrice(@arr)?(@1s)?$")
_PLAIN = frozenset({"aggTrade", "trade", "bookTicker", "miniTicker", "ticker", "avgPrice"})
_EAST_MS = 8 * 3_600_000
_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Topic:
    """A stream name, understood. kind names the function that speaks on it."""

    name: str
    kind: str
    symbol: str
    interval: str = ""
    offset_ms: int = 0
    levels: int = 0

    def __hash__(self) -> int:
        return hash(self.name)  # says it all, and a string keeps its hash


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
    if symbol.startswith("!"):
        return _parse_all(name, symbol[1:] + "@" + rest)
    if not at or symbol != symbol.lower():
        return None
    pair = _CONTINUOUS.match(symbol)
    symbol = symbol.upper()
    if pair and rest.startswith("continuousKline_"):
        interval = rest.removeprefix("continuousKline_")
        if interval in INTERVALS_MS:
            return Topic(name, "continuousKline", pair[1].upper(), interval)
        return None
    match = _KLINE.match(rest)
    if match and match[1] in INTERVALS_MS:
        return Topic(name, "kline", symbol, match[1], _EAST_MS if match[2] else 0)
    if rest in _PLAIN:
        return Topic(name, rest, symbol)
    match = _PARTIAL.match(rest)
    if match:
        return Topic(name, "partial", symbol, levels=int(match[1]))
    if _DIFF.match(rest):
        return Topic(name, "depth", symbol)
    match = _TICKER.match(rest)
    if match and not match[2]:
        return Topic(name, "windowTicker", symbol, match[1])
    if _MARK.match(rest):
        return Topic(name, "markPrice", symbol)
    return None


def _parse_all(name: str, rest: str) -> Topic | None:
    """Streams of every symbol: `!miniTicker@arr`, `!ticker_1h@arr`, `!markPrice@arr@1s`."""
    if rest == "miniTicker@arr":
        return Topic(name, "miniTicker", "")
    match = _TICKER.match(rest)
    if match and match[2]:
        return Topic(name, "windowTicker", "", match[1])
    if _MARK.match(rest) and "@arr" in rest:
        return Topic(name, "markPrice", "")
    return None


class Scene(NamedTuple):
    """What a step is seen in: the market, the step (prev_ms, now_ms], and the venue's dialect.

    marks: mark prices and funding of futures, None on spot.
    """

    market: Market
    prev_ms: int
    now_ms: int
    futures: bool = False
    marks: Callable[[Series, int], "Mark"] | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """Mark and index price, the current funding rate and when it is paid next."""

    price: float
    index: float
    rate: float
    next_ms: int


def messages(topic: Topic, scenes: Sequence[Scene]) -> list[list[Message]]:
    """The events of one stream in order, for each of a market's scenes, which follow each other."""
    if not topic.symbol:
        together = _TOGETHER.get(topic.kind)
        return [[] if together is None else [_array(topic, s, together)] for s in scenes]
    series = scenes[0].market.series.get(topic.symbol)
    if series is None:
        return [[] for _ in scenes]
    if topic.kind == "kline":
        return _klines(topic, series, scenes)
    if topic.kind == "continuousKline":
        return _continuous(topic, series, scenes)
    speak = _KINDS.get(topic.kind)
    return [[] if speak is None else speak(topic, series, scene) for scene in scenes]


Time = TypeVar("Time", int, npt.NDArray[np.int64])


def event_ms(symbol: str, closes_ms: Time) -> Time:
    """When the exchange says that a candle closed: some milliseconds after the boundary."""
    return closes_ms + 7 + (closes_ms // 1000 * 7919 + len(symbol) * 31 + ord(symbol[0])) % 40


def kline_message(topic: Topic, candle: Candle, *, closed: bool, now_ms: int) -> Message:
    stamp = event_ms(topic.symbol, candle.close_time_ms + 1) if closed else now_ms

    def render(unit: int) -> bytes:
        return kline_event(
            topic.symbol, topic.interval, candle, event_ms=stamp, closed=closed, unit=unit
        )

    return Message(topic, render, candle, closed)


def _klines(topic: Topic, series: Series, scenes: Sequence[Scene]) -> list[list[Message]]:
    if not series.serves(topic.interval):
        return [[] for _ in scenes]
    level = series.level(topic.interval, topic.offset_ms)
    found: list[list[Message]] = []
    done = level.closed(scenes[0].prev_ms)
    for scene in scenes:
        now_ms = scene.now_ms
        before, done = done, level.closed(now_ms)
        if before < done:
            closed = (level.candle(index) for index in range(before, done))
            found.append([kline_message(topic, c, closed=True, now_ms=now_ms) for c in closed])
            continue
        opened = series.open_candle(topic.interval, now_ms, topic.offset_ms)
        if opened is None:
            found.append([])
        else:
            found.append([kline_message(topic, opened, closed=False, now_ms=now_ms)])
    return found


def _text_message(topic: Topic, write: Callable[[int], str]) -> Message:
    return Message(topic, lambda unit: write(unit).encode())


def _agg_trades(topic: Topic, series: Series, scene: Scene) -> list[Message]:
    best = "" if scene.futures else ',"M":true'

    def event(trade: AggTrade) -> Callable[[int], str]:
        return lambda unit: (
            f'{{"e":"aggTrade","E":{trade.time_ms * unit},"s":"{topic.symbol}",'
            f'"a":{trade.agg_id},'
            f'"p":"{text(trade.price)}","q":"{text(trade.quantity)}","f":{trade.first_id},'
            f'"l":{trade.last_id},"T":{trade.time_ms * unit},'
            f'"m":{_bool(trade.buyer_is_maker)}{best}}}'
        )

    trades = series.agg_trades(scene.prev_ms, scene.now_ms)
    return [_text_message(topic, event(trade)) for trade in trades]


def _trades(topic: Topic, series: Series, scene: Scene) -> list[Message]:
    def event(order: AggTrade, number: int, quantity: float) -> Callable[[int], str]:
        return lambda unit: (
            f'{{"e":"trade","E":{order.time_ms * unit},"s":"{topic.symbol}","t":{number},'
            f'"p":"{text(order.price)}","q":"{text(quantity)}","T":{order.time_ms * unit},'
            f'"m":{_bool(order.buyer_is_maker)},"M":true}}'
        )

    return [
        _text_message(topic, event(order, number, quantity))
        for order in series.agg_trades(scene.prev_ms, scene.now_ms)
        for number, quantity in order.trades()
    ]


def _book_ticker(topic: Topic, series: Series, scene: Scene) -> list[Message]:
    book = book_at(series, scene.now_ms, 5)
    (bid, bid_size), (ask, ask_size) = book.bids[0], book.asks[0]

    def write(unit: int) -> str:
        stamp = scene.now_ms * unit
        head = f'"e":"bookTicker","E":{stamp},"T":{stamp},' if scene.futures else ""
        return (
            f'{{{head}"u":{book.update_id},"s":"{topic.symbol}","b":"{text(bid)}",'
            f'"B":"{text(bid_size)}","a":"{text(ask)}","A":"{text(ask_size)}"}}'
        )

    return [_text_message(topic, write)]


def _partial_depth(topic: Topic, series: Series, scene: Scene) -> list[Message]:
    book = book_at(series, scene.now_ms, topic.levels + 2)
    bids, asks = levels(book.bids[: topic.levels]), levels(book.asks[: topic.levels])

    def write(unit: int) -> str:
        stamp = scene.now_ms * unit
        if scene.futures:
            return (
                f'{{"e":"depthUpdate","E":{stamp},"T":{stamp},"s":"{topic.symbol}",'
                f'"U":{scene.prev_ms + 1},"u":{book.update_id},"pu":{scene.prev_ms},'
                f'"b":{bids},"a":{asks}}}'
            )
        return f'{{"lastUpdateId":{book.update_id},"bids":{bids},"asks":{asks}}}'

    return [_text_message(topic, write)]


def _depth(topic: Topic, series: Series, scene: Scene) -> list[Message]:
    before, after = book_at(series, scene.prev_ms), book_at(series, scene.now_ms)
    bids, asks = levels(changes(before.bids, after.bids)), levels(changes(before.asks, after.asks))

    def write(unit: int) -> str:
        stamp = scene.now_ms * unit
        more = f'"T":{stamp},' if scene.futures else ""
        previous = f'"pu":{before.update_id},' if scene.futures else ""
        return (
            f'{{"e":"depthUpdate","E":{stamp},{more}"s":"{topic.symbol}",'
            f'"U":{before.update_id + 1},"u":{after.update_id},{previous}"b":{bids},"a":{asks}}}'
        )

    return [_text_message(topic, write)]


def _mini_ticker(series: Series, scene: Scene, _interval: str) -> Callable[[int], str]:
    stats = window(series, scene.now_ms, _DAY_MS)
    return lambda unit: (
        f'{{"e":"24hrMiniTicker","E":{scene.now_ms * unit},"s":"{series.symbol}",'
        f'"c":"{text(stats.last)}","o":"{text(stats.open)}","h":"{text(stats.high)}",'
        f'"l":"{text(stats.low)}","v":"{text(stats.volume)}","q":"{text(stats.quote_volume)}"}}'
    )


def _ticker(series: Series, scene: Scene, _interval: str) -> Callable[[int], str]:
    stats = window(series, scene.now_ms, _DAY_MS)
    book = book_at(series, scene.now_ms, 5)
    (bid, bid_size), (ask, ask_size) = book.bids[0], book.asks[0]
    quotes = (
        f'"b":"{text(bid)}","B":"{text(bid_size)}","a":"{text(ask)}","A":"{text(ask_size)}",'
        if not scene.futures
        else ""
    )
    before = "" if scene.futures else f'"x":"{text(stats.before)}",'
    return lambda unit: (
        f'{{"e":"24hrTicker","E":{scene.now_ms * unit},"s":"{series.symbol}",'
        f'"p":"{text(stats.change)}","P":"{stats.change_percent:.3f}","w":"{text(stats.average)}",'
        f'{before}"c":"{text(stats.last)}","Q":"{text(stats.last_quantity)}",{quotes}'
        f'"o":"{text(stats.open)}","h":"{text(stats.high)}","l":"{text(stats.low)}",'
        f'"v":"{text(stats.volume)}","q":"{text(stats.quote_volume)}","O":{stats.open_ms * unit},'
        f'"C":{stats.close_ms * unit},"F":{stats.first_id},"L":{stats.last_id},"n":{stats.count}}}'
    )


def _window_ticker(series: Series, scene: Scene, interval: str) -> Callable[[int], str]:
    stats = window(series, scene.now_ms, INTERVALS_MS[interval])
    return lambda unit: (
        f'{{"e":"{interval}Ticker","E":{scene.now_ms * unit},"s":"{series.symbol}",'
        f'"p":"{text(stats.change)}","P":"{stats.change_percent:.3f}","o":"{text(stats.open)}",'
        f'"h":"{text(stats.high)}","l":"{text(stats.low)}","c":"{text(stats.last)}",'
        f'"w":"{text(stats.average)}","v":"{text(stats.volume)}","q":"{text(stats.quote_volume)}",'
        f'"O":{stats.open_ms * unit},"C":{stats.close_ms * unit},"F":{stats.first_id},'
        f'"L":{stats.last_id},"n":{stats.count}}}'
    )


def _mark_price(series: Series, scene: Scene, _interval: str) -> Callable[[int], str]:
    if scene.marks is None:
        return lambda unit: "{}"
    mark = scene.marks(series, scene.now_ms)
    return lambda unit: (
        f'{{"e":"markPriceUpdate","E":{scene.now_ms * unit},"s":"{series.symbol}",'
        f'"p":"{text(mark.price)}","i":"{text(mark.index)}","P":"{text(mark.price)}",'
        f'"r":"{text(mark.rate)}","T":{mark.next_ms * unit}}}'
    )


_One = Callable[[Series, Scene, str], Callable[[int], str]]


def _single(write: _One) -> Callable[[Topic, Series, Scene], list[Message]]:
    return lambda topic, series, scene: [_text_message(topic, write(series, scene, topic.interval))]


def _array(topic: Topic, scene: Scene, write: _One) -> Message:
    writers = [write(s, scene, topic.interval) for s in scene.market.series.values()]
    return _text_message(topic, lambda unit: "[" + ",".join(w(unit) for w in writers) + "]")


def _marks(topic: Topic, series: Series, scene: Scene) -> list[Message]:
    if scene.marks is None:  # spot has no mark price: accepted and silent
        return []
    return [_text_message(topic, _mark_price(series, scene, ""))]


def _average(topic: Topic, series: Series, scene: Scene) -> list[Message]:
    price, last_ms = average_price(series, scene.now_ms)
    return [
        _text_message(
            topic,
            lambda unit: (
                f'{{"e":"avgPrice","E":{scene.now_ms * unit},"s":"{topic.symbol}","i":"5m",'
                f'"w":"{text(price)}","T":{last_ms * unit}}}'
            ),
        )
    ]


def _continuous(topic: Topic, series: Series, scenes: Sequence[Scene]) -> list[list[Message]]:
    """Perpetual klines under their pair's name."""

    def event(message: Message, unit: int) -> bytes:
        body = json.loads(message.render(unit))
        kline = {k: v for k, v in body["k"].items() if k != "s"}
        return json.dumps(
            {
                "e": "continuous_kline",
                "E": body["E"],
                "ps": topic.symbol,
                "ct": "PERPETUAL",
                "k": kline,
            },
            separators=(",", ":"),
        ).encode()

    def as_continuous(message: Message) -> Message:
        return Message(topic, partial(event, message), message.candle, message.closed)

    return [[as_continuous(m) for m in step] for step in _klines(topic, series, scenes)]


def _bool(value: bool) -> str:
    return "true" if value else "false"


_TOGETHER: dict[str, _One] = {
    "miniTicker": _mini_ticker,
    "windowTicker": _window_ticker,
    "markPrice": _mark_price,
}
_KINDS: dict[str, Callable[[Topic, Series, Scene], list[Message]]] = {
    "aggTrade": _agg_trades,
    "trade": _trades,
    "bookTicker": _book_ticker,
    "partial": _partial_depth,
    "depth": _depth,
    "miniTicker": _single(_mini_ticker),
    "ticker": _single(_ticker),
    "windowTicker": _single(_window_ticker),
    "avgPrice": _average,
    "markPrice": _marks,
}
