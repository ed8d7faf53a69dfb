"""What a process measures of itself: every metric named once here, and kept in plain numbers.

A service says `session.metrics.set(WEIGHT_USED, 120, "spot")`; Prometheus' text is made of it only
when somebody asks (`shared.endpoint`). Every sample carries the labels `service` and `instance`.
`CATALOG` lists what there is; dashboards and alert rules are tested against it.
"""

import bisect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from shared.bus import Entry, Source, now_us
from shared.times import INTERVALS_MS

Kind = Literal["gauge", "counter", "histogram"]
_SECONDS = (
    0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0,
)  # fmt: skip
_SCORES = tuple(round(-0.9 + 0.1 * n, 1) for n in range(19))


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """One name. labels: besides `service` and `instance`. buckets: upper bounds, ascending."""

    name: str
    kind: Kind
    text: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


# Every service.
BUILD = Metric("itb_build_info", "gauge", "1; the version of the code", ("version",))
READY = Metric("itb_ready", "gauge", "1 while the service is caught up and can do its work")
LAG = Metric("itb_lag_candles", "gauge", "candles by which the slowest input is behind")
SESSIONS = Metric(
    "itb_bus_sessions_lost_total", "counter", "sessions with the bus that broke, by why", ("why",)
)
EVENTS = Metric("itb_events_total", "counter", "entries done, by the stream", ("stream",))
AGE = Metric(
    "itb_event_age_seconds",
    "gauge",
    "market time since the close of the newest candle that this service has done",
    ("stream", "symbol"),
)
LATENCY = Metric(
    "itb_close_latency_seconds",
    "histogram",
    "from a candle's close (market clock) until this service had done it; history left out",
    ("stream",),
    _SECONDS,
)
# Collector.
CANDLES = Metric(
    "itb_candle_remarks_total",
    "counter",
    "candles that were not as usual: gaps, repaired, late, repeated, refused, future, revisions, "
    "corrected",
    ("kind",),
)
RECONNECTS = Metric("itb_feed_reconnects_total", "counter", "market streams connected again")
TROUBLES = Metric(
    "itb_exchange_troubles_total", "counter", "what went wrong with the exchange", ("kind",)
)
WEIGHT_USED = Metric(
    "itb_request_weight_used", "gauge", "request weight of the running minute", ("venue",)
)
WEIGHT_LIMIT = Metric(
    "itb_request_weight_limit", "gauge", "request weight that the venue allows", ("venue",)
)
# Featurizer, predictor.
NAN_SHARE = Metric(
    "itb_feature_nan_share", "gauge", "share of NaN in the newest feature vector", ("symbol",)
)
SCORE = Metric("itb_score", "histogram", "scores given, -1 to +1", (), _SCORES)
SIGNALS = Metric(
    "itb_signals_total", "counter", "signals by side: BUY, SELL, none, invalid", ("side",)
)
RELEASE = Metric("itb_release_info", "gauge", "1; the model release in use", ("release",))
RELEASE_REFUSED = Metric(
    "itb_release_refused", "gauge", "1 while `current` is a release that cannot be used"
)
# Trader.
TRADER_STATE = Metric("itb_trader_state", "gauge", "1 for the state it is in", ("state",))
ORDERS = Metric("itb_orders_total", "counter", "journal lines by state", ("state",))
OPEN_ORDERS = Metric(
    "itb_open_orders", "gauge", "orders without a final state, by state", ("symbol", "state")
)
POSITION = Metric("itb_position", "gauge", "position in units of the base asset", ("symbol",))
PROFIT = Metric(
    "itb_profit_quote", "gauge", "profit and loss in quote units, by period", ("period",)
)
EQUITY = Metric("itb_equity_quote", "gauge", "the account's worth in quote units")
GUARD = Metric(
    "itb_guard_active",
    "gauge",
    "1 while it forbids entries: `switch`, `not_reconciled`, `diverged`, `clock`, `market_closed`",
    ("guard",),
)
CLOCK_SKEW = Metric("itb_clock_skew_seconds", "gauge", "the exchange's clock minus ours")
# Auditor.
PARITY_SIGNALS = Metric(
    "itb_parity_signals_total",
    "counter",
    "signals computed again: equal, unequal, unchecked (could not be)",
    ("symbol", "result"),
)
PARITY_LAST = Metric(
    "itb_parity_last_candle_seconds",
    "gauge",
    "open time of the newest candle whose signal was computed again, seconds since 1970",
    ("symbol",),
)
PARITY_BEHIND = Metric(
    "itb_parity_behind_candles",
    "gauge",
    "candles between that one and the newest signal",
    ("symbol",),
)
# Notifier: messages, and what it sees of everybody.
MESSAGES = Metric(
    "itb_messages_total", "counter", "messages to people by what became of them", ("state",)
)
WAITING = Metric("itb_messages_waiting", "gauge", "messages that wait to be sent")
MESSAGE_TROUBLE = Metric(
    "itb_message_trouble", "gauge", "1 while messages cannot be sent or are held back"
)
SILENT = Metric(
    "itb_silent_seconds",
    "gauge",
    "seconds since a service last gave a sign of life on the bus",
    ("of", "of_instance"),
)
OTHER_READY = Metric(
    "itb_service_ready", "gauge", "1 while that service says it is ready", ("of", "of_instance")
)
GROUP_LAG = Metric(
    "itb_group_lag_entries",
    "gauge",
    "entries that a group has not read yet; of the symbol that is furthest behind",
    ("stream", "group"),
)
GROUP_PENDING = Metric(
    "itb_group_pending_entries",
    "gauge",
    "entries read and not acknowledged, over all symbols",
    ("stream", "group"),
)
STREAM_ENTRIES = Metric(
    "itb_stream_entries", "gauge", "entries that stand on the streams of a kind", ("stream",)
)
REDIS_MEMORY = Metric("itb_redis_memory_bytes", "gauge", "memory that the server uses")
REDIS_MEMORY_LIMIT = Metric(
    "itb_redis_memory_limit_bytes", "gauge", "maxmemory, or the machine's memory where it has none"
)
REDIS_AOF_OK = Metric("itb_redis_aof_ok", "gauge", "1 while the server's append-only file is well")

CATALOG: tuple[Metric, ...] = tuple(v for v in list(globals().values()) if isinstance(v, Metric))


@dataclass(slots=True)
class _Histogram:
    counts: list[int]
    total: float = 0.0


Labels = tuple[str, ...]
Value = float | Callable[[], float]


@dataclass(slots=True, eq=False)
class Metrics:
    """The numbers of one process. Outlives the sessions with the bus.

    speed: market seconds per second, for ages.
    """

    service: str = ""
    instance: str = ""
    speed: float = 1.0
    _values: dict[Metric, dict[Labels, Value]] = field(default_factory=dict)
    _histograms: dict[Metric, dict[Labels, _Histogram]] = field(default_factory=dict)
    # By stream and symbol: milliseconds since the candle's close, and our clock's microseconds.
    _newest: dict[tuple[str, str], tuple[float, int]] = field(default_factory=dict)
    _counted: dict[str, int] = field(default_factory=dict)
    _latencies: dict[str, _Histogram] = field(default_factory=dict)

    def set(self, metric: Metric, value: Value, *labels: str) -> None:
        """The value as it is now, or what computes it when somebody asks; of a counter, too, where
        somebody else counts for good."""
        self._values.setdefault(metric, {})[labels] = value

    def add(self, metric: Metric, *labels: str, amount: float = 1.0) -> None:
        values = self._values.setdefault(metric, {})
        values[labels] = _number(values.get(labels, 0.0)) + amount

    def only(self, metric: Metric, *labels: str) -> None:
        """1 for these labels; what the metric said of others is forgotten."""
        self._values[metric] = {labels: 1.0}

    def forget(self, metric: Metric) -> None:
        """All of what the metric said."""
        self._values.pop(metric, None)

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        if math.isnan(value):
            return
        kept = self._histograms.setdefault(metric, {})
        one = kept.get(labels)
        if one is None:
            one = kept[labels] = _Histogram([0] * (len(metric.buckets) + 1))
        one.counts[bisect.bisect_left(metric.buckets, value)] += 1
        one.total += value

    def value(self, metric: Metric, *labels: str) -> float | None:
        """What was last said; None where nothing was."""
        value = self._values.get(metric, {}).get(labels)
        return None if value is None else _number(value)

    # -- candles ------------------------------------------------------------------------------

    def done(self, entries: Sequence[Entry[Any]]) -> None:
        """Entries that were read and are done now."""
        at_us = now_us()
        for entry in entries:
            meta, event = entry.meta, entry.event
            # As the id says, without parsing it; what could not be read has its id only.
            open_time_ms = entry.time_ms if event is None else event.open_time_ms
            self.progress(
                entry.source, open_time_ms, meta.market_ms, meta.published_us, meta.received_us,
                at_us,
            )  # fmt: skip

    def progress(
        self,
        source: Source[Any],
        open_time_ms: int,
        market_ms: int | None,
        published_us: int,
        received_us: int,
        at_us: int,
    ) -> None:
        """One entry is done at `at_us`, our clock. market_ms: the market's at `published_us`.

        A candle that was first seen later than one candle after its close is history that was
        fetched: it has no latency.
        """
        stream = source.stream.name
        counted = self._counted
        counted[stream] = counted.get(stream, 0) + 1
        step_ms = INTERVALS_MS.get(source.interval)
        if step_ms is None or not published_us:
            return
        speed = self.speed
        past_ms: float = 0.0 if market_ms is None else market_ms - open_time_ms - step_ms
        if past_ms < 0:
            past_ms = 0.0
        age_ms = past_ms
        if at_us > published_us:
            age_ms += (at_us - published_us) / 1000 * speed
        self._newest[stream, source.symbol] = age_ms, at_us
        if market_ms is not None and (
            past_ms - (published_us - received_us) / 1000 * speed < step_ms
        ):
            latency = self._latency(stream)
            seconds = age_ms / 1000 / speed
            latency.counts[bisect.bisect_left(_SECONDS, seconds)] += 1
            latency.total += seconds

    def _latency(self, stream: str) -> _Histogram:
        found = self._latencies.get(stream)
        if found is None:
            found = self._latencies[stream] = _Histogram([0] * (len(_SECONDS) + 1))
            self._histograms.setdefault(LATENCY, {})[stream,] = found
        return found

    # -- Prometheus ---------------------------------------------------------------------------

    def collect(self) -> Iterator[Any]:
        """Prometheus' metric families (this is a `prometheus_client.registry.Collector`)."""
        from prometheus_client import core  # noqa: PLC0415  # only where somebody asks

        at_us = now_us()
        ages: dict[Labels, Value] = {
            labels: (age_ms + (at_us - then_us) / 1000 * self.speed) / 1000
            for labels, (age_ms, then_us) in list(self._newest.items())
        }
        counted: dict[Labels, Value] = {(name,): count for name, count in self._counted.items()}
        kinds = {"gauge": core.GaugeMetricFamily, "counter": core.CounterMetricFamily}
        own = (self.service, self.instance)
        for metric in CATALOG:
            names = ("service", "instance", *metric.labels)
            if metric.kind == "histogram":
                kept = self._histograms.get(metric)
                if kept:
                    histogram = core.HistogramMetricFamily(metric.name, metric.text, labels=names)
                    for labels, one in list(kept.items()):
                        buckets = _cumulated(metric.buckets, one.counts)
                        histogram.add_metric((*own, *labels), buckets, one.total)
                    yield histogram
                continue
            values = {AGE: ages, EVENTS: counted}.get(metric, self._values.get(metric))
            if values:
                family = kinds[metric.kind](metric.name, metric.text, labels=names)
                for labels, value in list(values.items()):
                    family.add_metric((*own, *labels), _number(value))
                yield family


def _number(value: Value) -> float:
    return value() if callable(value) else value


def _cumulated(bounds: Iterable[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    total, found = 0, []
    for bound, count in zip((*bounds, math.inf), counts, strict=True):
        total += count
        found.append(("+Inf" if math.isinf(bound) else repr(float(bound)), float(total)))
    return found
