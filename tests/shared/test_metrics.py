"""The numbers that a process tells Prometheus."""

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from shared.bus import Entry, Source
from shared.events import Meta
from shared.metrics import (
    AGE,
    CATALOG,
    EVENTS,
    LATENCY,
    NAN_SHARE,
    READY,
    RELEASE,
    SCORE,
    SIGNALS,
    Metrics,
)
from shared.streams import KLINE, NOTICE

M = 60_000
OPEN = 1_700_000_040_000
CLOSE_US = (OPEN + M) * 1000


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """As Prometheus reads them off the page, by name and labels."""
    registry = CollectorRegistry()
    registry.register(metrics)
    text = generate_latest(registry).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def labels(**values: str) -> frozenset[tuple[str, str]]:
    return frozenset({"service": "predictor", "instance": "p1", **values}.items())


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("predictor", "p1")


def test_a_page_holds_what_was_said_and_nothing_else(metrics: Metrics) -> None:
    metrics.set(READY, 1)
    metrics.add(SIGNALS, "BUY")
    metrics.add(SIGNALS, "BUY", amount=2)
    shares = [0.5]
    metrics.set(NAN_SHARE, lambda: shares[-1], "BTCUSDT")
    shares.append(0.25)
    metrics.only(RELEASE, "old")
    metrics.only(RELEASE, "new")
    assert samples(metrics) == {
        ("itb_ready", labels()): 1,
        ("itb_signals_total", labels(side="BUY")): 3,
        ("itb_release_info", labels(release="new")): 1,
        ("itb_feature_nan_share", labels(symbol="BTCUSDT")): 0.25,
    }


def test_a_histogram_counts_up_to_each_bound_with_the_bound(metrics: Metrics) -> None:
    for score in (-0.95, -0.9, 0.05, 1.0, float("nan")):
        metrics.observe(SCORE, score)
    found = samples(metrics)
    assert found["itb_score_bucket", labels(le="-0.9")] == 2
    assert found["itb_score_bucket", labels(le="0.0")] == 2
    assert found["itb_score_bucket", labels(le="0.1")] == 3
    assert found["itb_score_bucket", labels(le="+Inf")] == 4, "NaN is no score"


def progress(metrics: Metrics, *, seen_s: float, done_s: float, market: bool = True) -> None:
    """A candle that was first seen and then done so many market seconds after its close."""
    metrics.progress(
        Source(KLINE, "BTCUSDT", "1m"),
        OPEN,
        market_ms=OPEN + M + int(seen_s * 1000) if market else None,
        published_us=CLOSE_US + int(seen_s * 1e6),
        received_us=CLOSE_US + int(seen_s * 1e6),
        at_us=CLOSE_US + int(done_s * 1e6),
    )


def test_latency_is_from_the_close_on_the_market_clock_to_the_end_of_the_work(
    metrics: Metrics,
) -> None:
    progress(metrics, seen_s=0.04, done_s=0.05)
    found = samples(metrics)
    assert found["itb_close_latency_seconds_sum", labels(stream="kline")] == pytest.approx(0.05)
    assert found["itb_close_latency_seconds_bucket", labels(stream="kline", le="0.05")] == 1
    assert found["itb_close_latency_seconds_bucket", labels(stream="kline", le="0.02")] == 0


def test_history_that_is_fetched_has_no_latency_but_a_late_service_has_one(
    metrics: Metrics,
) -> None:
    progress(metrics, seen_s=3600, done_s=3600.1)
    assert samples(metrics)[EVENTS.name, labels(stream="kline")] == 1
    assert not any(name.startswith("itb_close_latency") for name, _ in samples(metrics))
    progress(metrics, seen_s=0.1, done_s=600)
    assert samples(metrics)["itb_close_latency_seconds_sum", labels(stream="kline")] == 600


def test_age_goes_on_between_candles_with_the_speed_of_the_market(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    metrics = Metrics("predictor", "p1", speed=10)
    progress(metrics, seen_s=1, done_s=2)
    monkeypatch.setattr("shared.metrics.now_us", lambda: CLOSE_US + 5_000_000)
    age = samples(metrics)[AGE.name, labels(stream="kline", symbol="BTCUSDT")]
    assert age == pytest.approx(1 + 4 * 10)


def test_without_the_markets_clock_there_is_an_age_but_no_latency(metrics: Metrics) -> None:
    progress(metrics, seen_s=1, done_s=2, market=False)
    names = {name for name, _ in samples(metrics)}
    assert AGE.name in names
    assert f"{LATENCY.name}_count" not in names


def test_what_is_about_no_candle_is_only_counted(metrics: Metrics) -> None:
    meta = Meta(received_us=1, published_us=1)
    metrics.done([Entry(source=Source(NOTICE), id="5-0", event=None, meta=meta)])
    assert samples(metrics) == {("itb_events_total", labels(stream="notice")): 1}


def test_every_metric_is_named_once_with_a_text_and_by_prometheus_rules() -> None:
    names = [metric.name for metric in CATALOG]
    assert len(names) == len(set(names)) > 25
    for metric in CATALOG:
        assert metric.name.startswith("itb_"), metric
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric
        assert metric.text, metric
        assert list(metric.buckets) == sorted(set(metric.buckets)), metric
        assert not set(metric.labels) & {"service", "instance", "job", "le"}, metric
