"""What a run left on the bus, counted candle by candle; no service is asked for its view."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shared.bus import Bus, Entry, Source
from shared.events import Delivery, Leg, Notification, Order, OrderState
from shared.streams import FEATURE, KLINE, NOTIFICATION, ORDER, PREDICTION, SIGNAL, Stream

# One entry per raster row on each, under the candle's id.
STAGES: tuple[Stream[Any], ...] = (KLINE, FEATURE, PREDICTION, SIGNAL)
MAKERS = {
    KLINE.name: "collector",
    FEATURE.name: "featurizer",
    PREDICTION.name: "predictor",
    SIGNAL.name: "predictor",
    NOTIFICATION.name: "notifier",
    ORDER.name: "trader",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The candles that are counted: every raster row from `first_ms` to `last_ms`."""

    symbol: str
    interval: str
    first_ms: int
    last_ms: int
    step_ms: int

    @property
    def bars(self) -> int:
        return (self.last_ms - self.first_ms) // self.step_ms + 1

    def times(self) -> range:
        return range(self.first_ms, self.last_ms + 1, self.step_ms)

    def source(self, stream: Stream[Any]) -> Source[Any]:
        return Source(stream, self.symbol, self.interval)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """counts: entries per stream name, distinct candles (orders, notifications: signals) only.

    missing: per stream the candles without an entry. doubled: entries beyond the first of a
    (stream, candle), signals that were notified again, and orders sent twice: intents or orders at
    the exchange beyond the first of a name, entries beyond the first of a signal.
    filled: orders that were filled, at least in part.
    latency_us: from the candle's receipt to its signal on the bus, our own clock.
    """

    counts: Mapping[str, int]
    gaps: int
    missing: Mapping[str, tuple[int, ...]]
    doubled: int
    filled: int
    latency_us: tuple[int, ...] = field(repr=False)

    @property
    def lost(self) -> int:
        return sum(len(times) for times in self.missing.values())

    def latency_ms(self) -> dict[str, float | None]:
        """{"p50", "p99"}; None where nothing was measured."""
        if not self.latency_us:
            return {"p50": None, "p99": None}
        p50, p99 = np.percentile(self.latency_us, (50, 99))
        return {"p50": round(float(p50) / 1000, 3), "p99": round(float(p99) / 1000, 3)}


async def tally(bus: Bus, window: Window, placed: Sequence[str] = ()) -> Tally:
    """Reads the window's entries of every stream, whole. placed: client ids of the orders that the
    exchange has."""
    expected = set(window.times())
    counts: dict[str, int] = {}
    missing: dict[str, tuple[int, ...]] = {}
    doubled = 0
    found: dict[str, list[Entry[Any]]] = {}
    for stream in STAGES:
        entries = found[stream.name] = await _entries(bus, window, stream)
        seen = Counter(e.event.open_time_ms for e in entries if e.event is not None)
        counts[stream.name] = len(seen.keys() & expected)
        missing[stream.name] = tuple(sorted(expected - seen.keys()))
        doubled += sum(number - 1 for number in seen.values())
    claims, notified, resent = _notifications(await _entries(bus, window, NOTIFICATION))
    counts[NOTIFICATION.name] = notified
    # A claim without an outcome is a message of which nobody knows whether it was sent.
    missing[NOTIFICATION.name] = claims
    lines = [
        e.event
        for e in await _all(bus, Source(ORDER, window.symbol))
        if e.event is not None
        and e.event.interval == window.interval
        and e.event.open_time_ms in expected
    ]
    orders = {line.signal_id for line in lines if line.signal_id}
    counts[ORDER.name] = len(orders)
    decided = {
        e.event.id: e.event.open_time_ms
        for e in found[SIGNAL.name]
        if e.event is not None and e.event.side
    }
    missing[ORDER.name] = tuple(sorted(decided[i] for i in decided.keys() - orders))
    doubled += resent + _sent_again(lines, placed)
    received = {
        e.time_ms: e.meta.received_us
        for e in found[KLINE.name]
        if e.event is not None and not e.event.gap
    }
    latency = tuple(
        e.meta.published_us - received[e.time_ms]
        for e in found[SIGNAL.name]
        if e.event is not None and e.time_ms in received
    )
    gaps = sum(1 for e in found[KLINE.name] if e.event is not None and e.event.gap)
    filled = len({line.client_id for line in lines if line.fills})
    return Tally(
        counts=counts,
        gaps=gaps,
        missing=missing,
        doubled=doubled,
        filled=filled,
        latency_us=latency,
    )


def _sent_again(lines: Sequence[Order], placed: Sequence[str]) -> int:
    """Orders too many: of a name, by the journal or at the exchange; entries of a signal; decisions
    without an order."""
    intents = [line for line in lines if line.state == OrderState.INTENT]
    names = Counter(line.client_id for line in intents)
    entries = Counter(line.signal_id for line in intents if line.leg == Leg.ENTRY)
    decided = Counter(line.signal_id for line in lines if not line.client_id and line.signal_id)
    counted = (names, entries, decided, Counter(placed))
    return sum(number - 1 for counter in counted for number in counter.values())


def _notifications(entries: list[Entry[Notification]]) -> tuple[tuple[int, ...], int, int]:
    """(candles of claims without an outcome, signals that people were told, messages too many)."""
    claims: Counter[int] = Counter()
    outcomes: Counter[int] = Counter()
    sent: Counter[int] = Counter()
    for entry in entries:
        if entry.event is None:
            continue
        time_ms = entry.event.open_time_ms
        if entry.event.state == Delivery.SENDING:
            claims[time_ms] += 1
            continue
        outcomes[time_ms] += 1
        if entry.event.state == Delivery.SENT:
            sent[time_ms] += 1
    again = sum(number - 1 for number in claims.values())
    again += sum(number - 1 for number in sent.values())
    return tuple(sorted(claims.keys() - outcomes.keys())), len(sent), again


async def _entries(bus: Bus, window: Window, stream: Stream[Any]) -> list[Entry[Any]]:
    before_first = f"{window.first_ms - 1}-0"
    return await _all(bus, window.source(stream), after=before_first, upto=str(window.last_ms))


async def _all(
    bus: Bus, source: Source[Any], *, after: str | None = None, upto: str = "+"
) -> list[Entry[Any]]:
    found: list[Entry[Any]] = []
    while True:
        page = await bus.span(source, after=after, upto=upto)
        if not page:
            return found
        found.extend(page)
        after = page[-1].id
