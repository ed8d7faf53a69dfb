"""The featurizer on a real bus: same bits as batch, whatever ends it and whenever."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from featurizer.service import serve
from shared import codec
from shared.bus import Bus, Source, Write
from shared.config import Settings, load
from shared.errors import OutOfSync, Unavailable
from shared.events import Depth, Feature, Kline
from shared.features import FeatureSet
from shared.klines import DEPTH_COLUMNS
from shared.runtime import Health, Session
from shared.streams import DEPTH, FEATURE, FUTURES_KLINE, KLINE, NOTICE
from tests.kills import Killed, Plan, pairs, run_until_caught_up, singles
from tests.valkey import Server

M = 60_000
START = 28_000_000 * M
NAMES = ("close_trend_5", "close_trend_7", "close_area_9")
SOURCE = Source(KLINE, "BTCUSDT", "1m")
OUTPUT = Source(FEATURE, "BTCUSDT", "1m")


def settings(**keys: Any) -> Settings:
    return load(**({"features_kline": NAMES} | keys))


def klines(count: int, *, seed: int = 1, gaps: Sequence[int] = ()) -> list[Kline]:
    rng = random.Random(seed)
    price, found = 100.0, []
    for n in range(count):
        time_ms = START + n * M
        if n in gaps:
            found.append(Kline.gap_marker("BTCUSDT", "1m", time_ms, time_ms + M - 1))
            continue
        price *= 1 + rng.gauss(0, 0.001)
        found.append(
            Kline(
                symbol="BTCUSDT",
                interval="1m",
                open_time_ms=time_ms,
                close_time_ms=time_ms + M - 1,
                open=price,
                high=price * 1.001,
                low=price * 0.999,
                close=price,
                volume=rng.uniform(0, 5),
                quote_volume=rng.uniform(0, 500),
                trades=float(rng.randrange(9)),
                taker_base=rng.uniform(0, 5),
                taker_quote=rng.uniform(0, 500),
            )
        )
    return found


async def put(url: str, events: Sequence[Any], source: Source[Any] = SOURCE) -> None:
    async with Bus.session(url, service="collector", exclusive=False) as bus:
        await bus.write(
            *(Write(source=source, event=e, open_time_ms=e.open_time_ms) for e in events)
        )


async def outputs(url: str) -> list[Feature]:
    async with Bus.session(url, service="reader", exclusive=False) as bus:
        entries = await bus.tail(OUTPUT, 100_000)
    assert [e.problem for e in entries] == [""] * len(entries)
    assert [e.id for e in entries] == sorted({e.id for e in entries})
    return [e.event for e in entries if e.event is not None]


def batch(events: Sequence[Kline], names: Sequence[str] = NAMES) -> np.ndarray[Any, Any]:
    rows = np.array([e.row() for e in events])
    return FeatureSet.of(names).batch(START // M, rows)


def assert_equal_bits(found: Sequence[Feature], expected: np.ndarray[Any, Any]) -> None:
    got = np.array([np.frombuffer(f.values, "<f8") for f in found])
    assert got.shape == expected.shape
    assert got.tobytes() == np.ascontiguousarray(expected).tobytes()


async def test_live_equals_batch_bit_for_bit(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = klines(60, gaps=(20, 21, 40))
    await put(valkey.url, events)
    await run_until_caught_up(monkeypatch, valkey.url, "featurizer", serve, settings(), Plan())
    found = await outputs(valkey.url)
    assert_equal_bits(found, batch(events))
    assert [f.gap for f in found] == [e.gap for e in events]
    assert [f.covered for f in found] == [n >= 8 for n in range(60)]
    assert found[-1].close == events[-1].close
    assert np.isnan(np.frombuffer(found[3].values, "<f8")).all(), "warm-up is NaN"


async def test_the_schema_is_published_under_its_hash(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(valkey.url, klines(1))
    await run_until_caught_up(monkeypatch, valkey.url, "featurizer", serve, settings(), Plan())
    (feature,) = await outputs(valkey.url)
    with redis.Redis(port=valkey.port) as client:
        text = client.get(f"schema:{feature.schema}")
    assert text == b'["close_trend_5","close_trend_7","close_area_9"]'


async def test_killed_at_every_command_once_it_loses_doubles_and_changes_nothing(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _kill_everywhere(valkey, monkeypatch, singles, limit=None)


async def test_killed_twice_at_random_commands_it_still_does(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _kill_everywhere(valkey, monkeypatch, pairs, limit=60)


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_killed_twice_at_every_pair_of_commands_it_still_does(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _kill_everywhere(valkey, monkeypatch, pairs, limit=None)


async def _kill_everywhere(
    valkey: Server, monkeypatch: pytest.MonkeyPatch, plans: Any, *, limit: int | None
) -> None:
    """Half of the input is there at the start, half was processed by an earlier, healthy life."""
    events = klines(16, gaps=(11,))
    expected = batch(events)
    configured = settings()

    async def attempt(plan: Plan) -> None:
        with redis.Redis(port=valkey.port) as client:
            client.flushall()
        await put(valkey.url, events[:8])
        healthy = Plan()
        await run_until_caught_up(monkeypatch, valkey.url, "featurizer", serve, configured, healthy)
        await put(valkey.url, events[8:])
        await run_until_caught_up(monkeypatch, valkey.url, "featurizer", serve, configured, plan)
        assert_equal_bits(await outputs(valkey.url), expected)
        with redis.Redis(port=valkey.port) as client:
            assert client.xpending(SOURCE.key, "featurizer")["pending"] == 0

    undisturbed = Plan()
    await attempt(undisturbed)
    chosen = plans(undisturbed.calls)
    if limit is not None:
        chosen = random.Random(7).sample(chosen, limit)
    struck = 0
    for number, points in enumerate(chosen):
        plan = Plan(points=points, error=(Killed, Unavailable)[number % 2])
        await attempt(plan)
        struck += plan.struck
    assert struck >= len(chosen) * 0.9, "the plans did not strike"


async def test_an_undecodable_candle_is_a_gap_and_goes_to_the_dead_letters(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = klines(20)
    await put(valkey.url, events[:10])
    with redis.Redis(port=valkey.port) as client:
        client.xadd(SOURCE.key, {"data": b"junk"}, id=f"{events[10].open_time_ms}-0")
    await put(valkey.url, events[11:])
    await run_until_caught_up(monkeypatch, valkey.url, "featurizer", serve, settings(), Plan())
    found = await outputs(valkey.url)
    marker = Kline.gap_marker("BTCUSDT", "1m", 0, 0)
    assert_equal_bits(found, batch([*events[:10], marker, *events[11:]]))
    assert found[10].gap
    with redis.Redis(port=valkey.port) as client:
        ((_, letter),) = client.xrange("dead:kline:{BTCUSDT}:1m")
        assert letter[b"id"].decode() == f"{events[10].open_time_ms}-0"
        codes = [fields[b"code"] for _, fields in client.xrange("notice")]
    assert codes == [b"dead_letter"]


async def test_an_impossible_candle_is_never_scored_from(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its crc is right; its values would make a plausible feature (FAULTS R7)."""
    events = klines(20)
    bad = replace(events[10], high=events[10].low * 0.9)
    await put(valkey.url, [*events[:10], bad, *events[11:]])
    await run_until_caught_up(monkeypatch, valkey.url, "featurizer", serve, settings(), Plan())
    found = await outputs(valkey.url)
    marker = Kline.gap_marker("BTCUSDT", "1m", 0, 0)
    assert_equal_bits(found, batch([*events[:10], marker, *events[11:]]))
    assert (found[10].gap, np.isnan(found[10].close)) == (True, True)
    with redis.Redis(port=valkey.port) as client:
        ((_, letter),) = client.xrange("dead:kline:{BTCUSDT}:1m")
        notices = [fields[b"text"] for _, fields in client.xrange("notice")]
    assert b"high is below low" in letter[b"reason"]
    assert len(notices) == 1
    assert b"high is below low" in notices[0]


async def test_an_unreadable_companion_row_is_told_once_and_counts_as_missing(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    spot, futures = klines(30), klines(30, seed=2)
    bad = replace(futures[12], volume=-1.0)
    await put(
        valkey.url, [*futures[:12], bad, *futures[13:]], Source(FUTURES_KLINE, "BTCUSDT", "1m")
    )
    depth = np.random.default_rng(3).uniform(1, 9, (30, len(DEPTH_COLUMNS)))
    async with Bus.session(valkey.url, service="collector", exclusive=False) as bus:
        for n in range(30):
            values = depth[n].astype("<f8").tobytes()[: 87 if n == 15 else 88]
            event = Depth(
                symbol="BTCUSDT", interval="1m", open_time_ms=START + n * M, values=values
            )
            source = Source(DEPTH, "BTCUSDT")
            await bus.write(Write(source=source, event=event, open_time_ms=START + n * M))
    names = {
        "features_kline": ("close_trend_5",),
        "features_futur": ("f_close_trend_5",),
        "features_depth": ("bids_1_2",),
    }
    rows = np.array([e.row() for e in futures])
    rows[12] = depth[15] = np.nan
    expected = FeatureSet.of(("close_trend_5", "f_close_trend_5", "bids_1_2")).batch(
        START // M, np.array([e.row() for e in spot]), rows, depth
    )
    for part in (spot[:18], spot[18:]):  # the second life reads both again, and tells nothing
        await put(valkey.url, part)
        await run_until_caught_up(
            monkeypatch, valkey.url, "featurizer", serve, settings(**names), Plan()
        )
    assert_equal_bits(await outputs(valkey.url), expected)
    with redis.Redis(port=valkey.port) as client:
        told = [fields[b"text"] for _, fields in client.xrange("notice")]
        letters = [client.xlen(f"dead:{key}") for key in ("fkline:{BTCUSDT}:1m", "depth:{BTCUSDT}")]
    assert letters == [1, 1]
    assert [b"fkline" in told[0], b"depth" in told[1], len(told)] == [True, True, 2]


async def test_a_hole_without_a_marker_is_told_and_counts_as_empty_rows(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = klines(30)
    await put(valkey.url, [*events[:12], *events[14:]])
    await run_until_caught_up(monkeypatch, valkey.url, "featurizer", serve, settings(), Plan())
    found = await outputs(valkey.url)
    marker = Kline.gap_marker("BTCUSDT", "1m", 0, 0)
    expected = batch([*events[:12], marker, marker, *events[14:]])
    assert_equal_bits(found, np.delete(expected, [12, 13], axis=0))
    with redis.Redis(port=valkey.port) as client:
        notices = [fields for _, fields in client.xrange("notice")]
    assert [n[b"code"] for n in notices] == [b"hole"]
    assert b"2 candles before" in notices[0][b"text"]


async def test_deleted_outputs_are_computed_again(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = klines(25)
    await put(valkey.url, events)
    for lost in ("feature:{BTCUSDT}:1m", "kline:{BTCUSDT}:1m"):
        await run_until_caught_up(monkeypatch, valkey.url, "featurizer", serve, settings(), Plan())
        with redis.Redis(port=valkey.port) as client:
            client.delete(lost)
        if lost.startswith("kline"):  # the collector fills it again, and goes on
            more = klines(30)
            await put(valkey.url, more)
    await run_until_caught_up(monkeypatch, valkey.url, "featurizer", serve, settings(), Plan())
    assert_equal_bits(await outputs(valkey.url), batch(klines(30)))


async def test_futures_and_depth_rows_join_the_candle_of_their_minute(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    spot, futures = klines(50, gaps=(30,)), klines(50, seed=2, gaps=(25,))
    depth = np.random.default_rng(3).uniform(1, 9, (50, len(DEPTH_COLUMNS)))
    depth[10] = np.nan  # no snapshot was taken in that minute
    names = {
        "features_kline": ("close_trend_5",),
        "features_futur": ("f_close_trend_5",),
        "features_depth": ("gap_2", "bids_1_2"),
    }
    await put(valkey.url, futures, Source(FUTURES_KLINE, "BTCUSDT", "1m"))
    async with Bus.session(valkey.url, service="collector", exclusive=False) as bus:
        for n in range(50):
            if n != 10:
                event = Depth(
                    symbol="BTCUSDT",
                    interval="1m",
                    open_time_ms=START + n * M,
                    values=depth[n].astype("<f8").tobytes(),
                )
                source = Source(DEPTH, "BTCUSDT")
                await bus.write(Write(source=source, event=event, open_time_ms=START + n * M))
    expected = FeatureSet.of(("close_trend_5", "f_close_trend_5", "gap_2", "bids_1_2")).batch(
        START // M,
        np.array([e.row() for e in spot]),
        np.array([e.row() for e in futures]),
        depth,
    )
    for part in (spot[:35], spot[35:]):  # the second life rebuilds its window from three streams
        await put(valkey.url, part)
        await run_until_caught_up(
            monkeypatch, valkey.url, "featurizer", serve, settings(**names), Plan()
        )
    assert_equal_bits(await outputs(valkey.url), expected)


async def test_a_flat_copy_of_the_bus_gives_the_same_content(
    valkey: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    events = klines(20)
    kept: list[list[bytes]] = []
    for _ in range(2):
        with redis.Redis(port=valkey.port) as client:
            client.flushall()
        await put(valkey.url, events)
        await run_until_caught_up(monkeypatch, valkey.url, "featurizer", serve, settings(), Plan())
        with redis.Redis(port=valkey.port) as client:
            kept.append([fields[b"data"] for _, fields in client.xrange(OUTPUT.key)])
    assert all(codec.same_content(a, b) for a, b in zip(*kept, strict=True))


async def test_foreign_entries_go_to_the_dead_letters_and_change_nothing(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = klines(30)
    await put(valkey.url, events[:12])
    with redis.Redis(port=valkey.port) as client:
        ((last, fields),) = client.xrevrange(SOURCE.key, count=1)
        client.xadd(SOURCE.key, fields, id=last.replace(b"-0", b"-1"))
        client.xadd(SOURCE.key, {"foo": "x"}, id=f"{events[11].open_time_ms + 5}-0")
        client.xadd(SOURCE.key, {b"\xff": b"x"}, id=f"{events[11].open_time_ms + 6}-0")
    await put(valkey.url, events[12:20])
    await run_until_caught_up(monkeypatch, valkey.url, "featurizer", serve, settings(), Plan())
    await put(valkey.url, events[20:])
    await run_until_caught_up(monkeypatch, valkey.url, "featurizer", serve, settings(), Plan())
    assert_equal_bits(await outputs(valkey.url), batch(events))
    with redis.Redis(port=valkey.port) as client:
        assert client.xlen("dead:kline:{BTCUSDT}:1m") == 3


async def test_a_flush_in_mid_stream_begins_everything_again(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = klines(30)
    await put(valkey.url, events[:20])
    async with Bus.session(valkey.url, service="featurizer") as bus:
        session = Session(settings=settings(), bus=bus, health=Health(), alive=lambda: None)
        task = asyncio.create_task(serve(session))
        async with asyncio.timeout(10):
            while await bus.length(OUTPUT) < 20:  # noqa: ASYNC110  # the stage writes them
                await asyncio.sleep(0.01)
            with redis.Redis(port=valkey.port) as client:
                client.delete(OUTPUT.key)
            await put(valkey.url, events[20:21])
            with pytest.raises(ExceptionGroup) as caught:
                await task
    assert caught.group_contains(OutOfSync, match="somebody deleted it")
    await put(valkey.url, events[21:])
    await run_until_caught_up(monkeypatch, valkey.url, "featurizer", serve, settings(), Plan())
    assert_equal_bits(await outputs(valkey.url), batch(events))


def foreign(event: Kline) -> Feature:
    """What a featurizer of other code might have written for this candle."""
    values = np.full(len(NAMES), 1.25).tobytes()
    schema = FeatureSet.of(NAMES).schema
    return Feature(open_time_ms=event.open_time_ms, schema=schema, values=values, close=1.0)


async def told(url: str, code: str) -> list[str]:
    async with Bus.session(url, service="reader", exclusive=False) as bus:
        notices = [e.event for e in await bus.tail(Source(NOTICE), 999)]
    return [n.text for n in notices if n is not None and n.code == code and n.level == "alert"]


async def test_another_entry_under_our_id_stays_and_is_told(valkey: Server) -> None:
    """Rebuilding could not change what stands there: the stage says so and goes on."""
    events = klines(30)
    await put(valkey.url, events[:10])
    async with Bus.session(valkey.url, service="featurizer") as bus:
        session = Session(settings=settings(), bus=bus, health=Health(), alive=lambda: None)
        task = asyncio.create_task(serve(session))
        async with asyncio.timeout(10):
            while await bus.length(OUTPUT) < 10:  # noqa: ASYNC110  # the stage writes them
                await asyncio.sleep(0.01)
            await put(valkey.url, [foreign(events[10]), foreign(events[11])], OUTPUT)
            for event in events[10:]:  # one by one, as they close
                await put(valkey.url, [event])
                newest_ms = max(event.open_time_ms, events[11].open_time_ms)
                while await bus.last_id(OUTPUT) != f"{newest_ms}-0":  # noqa: ASYNC110  # as above
                    await asyncio.sleep(0.01)
            while not await told(valkey.url, "diverged"):  # noqa: ASYNC110  # as above
                await asyncio.sleep(0.01)
        assert not task.done(), "the session goes on"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    found = await outputs(valkey.url)
    assert found[10:12] == [foreign(events[10]), foreign(events[11])]
    assert_equal_bits(found[:10] + found[12:], np.delete(batch(events), [10, 11], axis=0))
    (text,) = await told(valkey.url, "diverged")
    assert f"{OUTPUT.key} {events[10].open_time_ms}-0: another entry stands there" in text


async def test_a_hole_in_our_output_is_rebuilt_once_and_told_and_never_loops(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = klines(30)
    await put(valkey.url, events[:10])
    async with Bus.session(valkey.url, service="featurizer") as bus:
        session = Session(settings=settings(), bus=bus, health=Health(), alive=lambda: None)
        task = asyncio.create_task(serve(session))
        async with asyncio.timeout(10):
            while await bus.length(OUTPUT) < 10:  # noqa: ASYNC110  # the stage writes them
                await asyncio.sleep(0.01)
            # Five candles ahead: the server takes none of ours before it any more.
            await put(valkey.url, [foreign(events[15])], OUTPUT)
            await put(valkey.url, events[10:11])
            with pytest.raises(ExceptionGroup) as caught:
                await task
    assert caught.group_contains(OutOfSync, match="is missing although newer ones exist")
    for event in events[11:]:
        await put(valkey.url, [event])
        await run_until_caught_up(monkeypatch, valkey.url, "featurizer", serve, settings(), Plan())
    found = await outputs(valkey.url)
    assert [f.open_time_ms for f in found] == [e.open_time_ms for e in (*events[:10], *events[15:])]
    expected = batch(events)
    assert_equal_bits(found[:10] + found[11:], np.delete(expected, range(10, 16), axis=0))
    assert [len(await told(valkey.url, code)) for code in ("diverged", "hole")] == [1, 4]
    assert "stay without" in (await told(valkey.url, "hole"))[0]


async def test_a_deleted_candle_stream_that_comes_back_longer_ends_the_warm_up(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The remedy for a window that is longer than the history on the bus."""
    events = klines(30)
    await put(valkey.url, events[20:25])
    await run_until_caught_up(monkeypatch, valkey.url, "featurizer", serve, settings(), Plan())
    with redis.Redis(port=valkey.port) as client:
        client.delete(SOURCE.key)
    await put(valkey.url, events)
    await run_until_caught_up(monkeypatch, valkey.url, "featurizer", serve, settings(), Plan())
    found = await outputs(valkey.url)
    assert [f.open_time_ms for f in found] == [e.open_time_ms for e in events[20:]]
    assert [f.covered for f in found] == [False] * 5 + [True] * 5
    assert_equal_bits(found[5:], batch(events)[25:])
    assert await told(valkey.url, "hole") == []
