"""The predictor on a real bus, with releases that the trainer made."""

import asyncio
import json
import math
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from predictor.service import serve
from shared.bundle import Bundle
from shared.bus import Bus, Source, Write
from shared.config import Settings, load
from shared.errors import Unavailable
from shared.events import Feature, Prediction, Signal
from shared.features import FeatureSet
from shared.klines import KLINE_COLUMNS
from shared.releases import promote
from shared.runtime import Health, Session
from shared.streams import FEATURE, PREDICTION, SIGNAL
from tests.kills import Killed, Plan, pairs, run_until_caught_up, singles
from tests.releases import FEATURES, START_MS, M, market
from tests.valkey import Server

SOURCE = Source(FEATURE, "TESTUSDT", "1m")
SET = FeatureSet.of(FEATURES)


@pytest.fixture
def models(trained: tuple[Path, str, str], tmp_path: Path) -> Path:
    """A copy of the model folder that the test may change."""
    folder = tmp_path / "models"
    shutil.copytree(trained[0], folder, symlinks=True)
    return folder


def settings(models: Path, **keys: Any) -> Settings:
    return load(symbol="TESTUSDT", model_folder=models, features_kline=FEATURES, **keys)


def features(count: int, **change: Any) -> list[Feature]:
    columns = market(count)
    values = SET.batch(START_MS // M, np.column_stack([columns[c] for c in KLINE_COLUMNS]))
    return [
        Feature(
            **{
                "open_time_ms": START_MS + n * M,
                "schema": SET.schema,
                "values": values[n].astype("<f8").tobytes(),
                "close": float(columns["close"][n]),
                "covered": n + 1 >= SET.lookback,
            }
            | change
        )
        for n in range(count)
    ]


async def put(url: str, events: Sequence[Feature]) -> None:
    async with Bus.session(url, service="featurizer", exclusive=False) as bus:
        await bus.write(
            *(Write(source=SOURCE, event=e, open_time_ms=e.open_time_ms) for e in events)
        )


async def outputs(url: str) -> tuple[list[Prediction], list[Signal]]:
    async with Bus.session(url, service="reader", exclusive=False) as bus:
        predictions = await bus.tail(Source(PREDICTION, "TESTUSDT", "1m"), 10_000)
        signals = await bus.tail(Source(SIGNAL, "TESTUSDT", "1m"), 10_000)
    assert [e.id for e in predictions] == [e.id for e in signals]
    return (
        [e.event for e in predictions if e.event is not None],
        [e.event for e in signals if e.event is not None],
    )


async def signals_of(url: str) -> list[Signal]:
    """The signals while the predictor is still writing, when two reads would see two moments."""
    async with Bus.session(url, service="reader", exclusive=False) as bus:
        entries = await bus.tail(Source(SIGNAL, "TESTUSDT", "1m"), 10_000)
    return [e.event for e in entries if e.event is not None]


async def run(monkeypatch: pytest.MonkeyPatch, valkey: Server, config: Settings) -> None:
    await run_until_caught_up(monkeypatch, valkey.url, "predictor", serve, config, Plan())


async def test_every_feature_entry_gives_one_prediction_and_one_signal(
    valkey: Server, models: Path, trained: tuple[Path, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    events = features(80)
    await put(valkey.url, events)
    await run(monkeypatch, valkey, settings(models))
    predictions, signals = await outputs(valkey.url)
    bundle = Bundle.load(models / "current")
    assert bundle.id == trained[1]
    for event, prediction, signal in zip(events, predictions, signals, strict=True):
        assert signal.id == f"TESTUSDT-1m-{event.open_time_ms}"
        assert (signal.close, signal.release) == (event.close, bundle.id)
        if not event.covered:
            assert (signal.score, signal.side, signal.outputs) == (None, "", {})
            assert signal.invalid.startswith("warm-up")
            continue
        expected = bundle.run(np.frombuffer(event.values, "<f8").reshape(1, -1))
        assert prediction.outputs == signal.outputs == expected.named()
        assert signal.score == expected.score[0]
        side = "BUY" if signal.score > 0.15 else "SELL" if signal.score < -0.15 else ""
        assert (signal.side, signal.invalid) == (side, "")
    assert sum(s.score is not None for s in signals) == 80 - SET.lookback + 1
    with redis.Redis(port=valkey.port) as client:
        ((_, shown),) = client.xrevrange("signal:{TESTUSDT}:1m", count=1)
    assert shown[b"score"].decode() == f"{signals[-1].score:+.4f}"
    assert {b"score", b"side", b"close"} < set(shown)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"gap": True, "close": math.nan}, "gap: the exchange has no such candle"),
        ({"schema": "0" * 16}, "features have schema 0000000000000000, release"),
        ({"values": b"\0" * 16}, "2 features, release"),
        ({"values": b"\0" * 7}, "features are no sequence of float64"),
        ({"values": np.full(3, np.inf).tobytes()}, "is infinite"),
        ({"values": np.full(3, np.nan).tobytes()}, "3 of 3 features have no value"),
    ],
)
async def test_what_cannot_be_scored_says_why_and_has_no_side(
    valkey: Server,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    reason: str,
) -> None:
    await put(valkey.url, features(1, covered=True, **change))
    await run(monkeypatch, valkey, settings(models))
    (prediction,), (signal,) = await outputs(valkey.url)
    assert reason in signal.invalid
    assert (signal.score, signal.side, prediction.outputs) == (None, "", {})


async def test_a_symbol_that_the_release_does_not_know_gets_no_score(
    valkey: Server, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = features(80)[-1]
    source = Source(FEATURE, "OTHERUSDT", "1m")
    async with Bus.session(valkey.url, service="featurizer", exclusive=False) as bus:
        await bus.write(Write(source=source, event=event, open_time_ms=event.open_time_ms))
    config = load(symbol="OTHERUSDT", model_folder=models)
    await run(monkeypatch, valkey, config)
    async with Bus.session(valkey.url, service="reader", exclusive=False) as bus:
        (entry,) = await bus.tail(Source(SIGNAL, "OTHERUSDT", "1m"), 9)
    assert entry.event is not None
    assert "was trained on TESTUSDT only" in entry.event.invalid


async def test_killed_at_every_command_it_loses_doubles_and_changes_nothing(
    valkey: Server, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = features(72)[60:]
    config = settings(models)

    async def attempt(plan: Plan) -> Any:
        with redis.Redis(port=valkey.port) as client:
            client.flushall()
        await put(valkey.url, events[:6])
        await run_until_caught_up(monkeypatch, valkey.url, "predictor", serve, config, Plan())
        await put(valkey.url, events[6:])
        await run_until_caught_up(monkeypatch, valkey.url, "predictor", serve, config, plan)
        return await outputs(valkey.url)

    undisturbed = Plan()
    expected = await attempt(undisturbed)
    assert all(s.score is not None for s in expected[1])
    chosen = singles(undisturbed.calls)
    for number, points in enumerate(random.Random(3).sample(chosen, min(40, len(chosen)))):
        plan = Plan(points=points, error=(Killed, Unavailable)[number % 2])
        assert await attempt(plan) == expected, points
        assert plan.struck == 1


async def test_killed_twice_at_random_commands_it_still_does(
    valkey: Server, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS F1: the second kill anywhere in the second life."""
    events = features(72)[60:]
    config = settings(models)

    async def attempt(plan: Plan) -> Any:
        with redis.Redis(port=valkey.port) as client:
            client.flushall()
        await put(valkey.url, events)
        await run_until_caught_up(monkeypatch, valkey.url, "predictor", serve, config, plan)
        return await outputs(valkey.url)

    undisturbed = Plan()
    expected = await attempt(undisturbed)
    for points in random.Random(4).sample(pairs(undisturbed.calls), 15):
        plan = Plan(points=points)
        assert await attempt(plan) == expected, points
        assert plan.struck >= 1


async def _until(condition: Any, what: str) -> Any:
    for _ in range(1000):
        if found := await condition():
            return found
        await asyncio.sleep(0.01)
    raise AssertionError(f"waited in vain: {what}")


async def test_it_waits_visibly_for_a_release_and_swaps_a_promoted_one_without_a_miss(
    valkey: Server, models: Path, trained: tuple[Path, str, str]
) -> None:
    _, first, second = trained
    (models / "current").unlink()
    events = features(160)[60:]
    health = Health()
    async with Bus.session(valkey.url, service="predictor") as bus:
        session = Session(settings=settings(models), bus=bus, health=health, alive=lambda: None)
        task = asyncio.create_task(serve(session))

        async def said() -> bool:
            return health.reason.startswith("no release in")

        await _until(said, "the reason")
        assert not health.ready
        await put(valkey.url, events[:30])
        promote(models, first)

        async def scored(count: int) -> Any:
            found = await signals_of(valkey.url)
            return found if len(found) >= count else None

        signals = await _until(lambda: scored(30), "the first 30 signals")
        assert {s.release for s in signals} == {first}
        promote(models, second)

        async def swapped() -> bool:
            return bool(health.facts.get("release") == second)

        for n in range(30, 100):  # candles go on while the release is loaded and swapped
            await put(valkey.url, [events[n]])
            await _until(lambda n=n: scored(n + 1), f"signal {n}")
        await put(valkey.url, [])
        await _until(swapped, "the swap")
        signals = await scored(100)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    bundles = {release: Bundle.load(models / "releases" / release) for release in (first, second)}
    assert [s.open_time_ms for s in signals] == [e.open_time_ms for e in events]
    for event, signal in zip(events, signals, strict=True):
        found = bundles[signal.release].run(np.frombuffer(event.values, "<f8").reshape(1, -1))
        assert signal.outputs == found.named()


@pytest.mark.parametrize("damage", ["flip", "truncate", "missing", "pickle"])
async def test_a_damaged_release_is_refused_and_the_old_one_stays(
    valkey: Server, models: Path, trained: tuple[Path, str, str], damage: str
) -> None:
    _, first, second = trained
    bundle = models / "releases" / second / "bundle.onnx"
    content = bytearray(bundle.read_bytes())
    match damage:
        case "flip":
            content[len(content) // 2] ^= 1
            bundle.write_bytes(content)
        case "truncate":
            bundle.write_bytes(content[:1000])
        case "missing":
            bundle.unlink()
        case "pickle":
            (bundle.parent / "high_10.pickle").write_bytes(b"\x80\x04.")
    health = Health()
    events = features(80)[60:]
    async with Bus.session(valkey.url, service="predictor") as bus:
        session = Session(settings=settings(models), bus=bus, health=health, alive=lambda: None)
        task = asyncio.create_task(serve(session))

        async def ready() -> bool:
            return health.ready

        await _until(ready, "the first release")
        promote(models, second)

        async def refused() -> Any:
            with redis.Redis(port=valkey.port) as client:
                return [
                    fields[b"text"].decode()
                    for _, fields in client.xrange("notice")
                    if fields[b"code"] == b"release_refused"
                ]

        (text,) = await _until(refused, "the alert")
        assert f"{first} stays in use" in text
        await put(valkey.url, events)

        async def scored() -> Any:
            found = await signals_of(valkey.url)
            return found if len(found) == len(events) else None

        signals = await _until(scored, "the signals")
        assert {s.release for s in signals} == {first}
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("way", ["promoted again", "after the old one", "in place"])
async def test_a_refused_release_is_taken_once_it_is_mended(
    valkey: Server,
    models: Path,
    trained: tuple[Path, str, str],
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    _, first, second = trained
    monkeypatch.setattr("predictor.releases._POLL_S", 0.02)
    monkeypatch.setattr("predictor.releases._AGAIN_S", 0.3 if way == "in place" else 600.0)
    bundle = models / "releases" / second / "bundle.onnx"
    content = bundle.read_bytes()
    bundle.write_bytes(content[:1000])
    health = Health()

    async def refusals() -> int:
        with redis.Redis(port=valkey.port) as client:
            return [f[b"code"] for _, f in client.xrange("notice")].count(b"release_refused")

    async def uses_second() -> bool:
        await put(valkey.url, [next(more)])  # a swap happens between two candles
        return bool(health.facts.get("release") == second)

    more = iter(features(1000))
    async with Bus.session(valkey.url, service="predictor") as bus:
        session = Session(settings=settings(models), bus=bus, health=health, alive=lambda: None)
        task = asyncio.create_task(serve(session))
        await _until(lambda: asyncio.sleep(0, health.ready), "the first release")
        promote(models, second)
        await _until(refusals, "the alert")
        if way == "after the old one":
            promote(models, first)
            await asyncio.sleep(0.2)  # ten looks
        bundle.write_bytes(content)
        if way != "in place":
            promote(models, second)
        await _until(uses_second, "the mended release")
        assert await refusals() == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_release_for_another_interval_is_refused(valkey: Server, models: Path) -> None:
    health = Health()
    async with Bus.session(valkey.url, service="predictor") as bus:
        config = settings(models, interval="5m")
        session = Session(settings=config, bus=bus, health=health, alive=lambda: None)
        task = asyncio.create_task(serve(session))

        async def said() -> bool:
            return "made for 1m candles, the config says 5m" in health.reason

        await _until(said, "the reason")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert json.dumps(health.facts) == "{}"
