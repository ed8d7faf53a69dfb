"""The collector over the wire: our simulator as the exchange, a real Valkey as the bus.

The C numbers are those of the fault matrix.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from collector.candles import same_row
from collector.service import history_rows
from shared.bus import Bus, Source, Write
from shared.config import load
from shared.errors import Failure, Unavailable
from shared.events import Depth, Funding, Kline
from shared.klinefiles import depth_folder, read_klines
from shared.klines import DEPTH_COLUMNS
from shared.link import Link
from shared.streams import DEPTH, FUNDING, KLINE
from tests.collector.rig import HISTORY, SYMBOL, M, Rig, ledger, rigged, truth
from tests.valkey import Server

NEXT = HISTORY  # index of the first candle that is not past at the start


@pytest.fixture
async def rig(tmp_path: Path, valkey: Server) -> AsyncIterator[Rig]:
    async with rigged(tmp_path, valkey) as made:
        yield made


def check_i1(rig: Rig, upto: int, symbol: str = SYMBOL, missing: Sequence[int] = ()) -> None:
    """Invariant I1: every closed candle once, in order, true, or its gap marker."""
    true = {k.open_time_ms: k for k in truth(symbol, missing=missing)}
    klines = rig.klines(symbol)
    start_ms = truth(symbol)[0].open_time_ms
    assert [k.open_time_ms for k in klines] == [start_ms + i * M for i in range(upto + 1)]
    for kline in klines:
        row = true.get(kline.open_time_ms)
        assert kline.gap == (row is None)
        assert row is None or same_row(kline, row)


async def test_history_then_live_candles_are_on_the_bus_in_order(rig: Rig) -> None:
    async with rig.collecting() as collector:
        await rig.until_written(NEXT - 1)
        check_i1(rig, NEXT - 1)
        for index in range(NEXT, NEXT + 5):
            await rig.advance()
            await rig.until_written(index)
        check_i1(rig, NEXT + 4)
        await rig.until(lambda: collector.health.ready)
        assert collector.market.series[0].candles.counts["repaired"] == 0
    assert rig.codes() == []


async def test_entries_carry_the_markets_clock_and_ours(rig: Rig) -> None:
    async with rig.collecting(market_speed=1):
        await rig.until_written(NEXT - 1)
        await rig.advance()
        await rig.until_written(NEXT)
        async with Bus.session(rig.valkey.url, service="reader") as bus:
            entry = (await bus.tail(Source(KLINE, SYMBOL, "1m"), 1))[0]
    close_ms = entry.time_ms + M
    assert entry.meta.market_ms is not None
    assert close_ms <= entry.meta.market_ms < close_ms + 5_000
    assert 0 < entry.meta.received_us <= entry.meta.published_us


async def test_many_symbols_share_few_connections(tmp_path: Path, valkey: Server) -> None:
    symbols = ["BTCUSDT", "ETHUSDT", "BNBUSDT", "SOLUSDT", "XRPUSDT"]
    async with rigged(tmp_path, valkey, *(truth(s) for s in symbols)) as rig:
        keys = {"symbols": symbols, "collector": {"streams_per_connection": 2}}
        async with rig.collecting(**keys):
            for symbol in symbols:
                await rig.until_written(NEXT - 1, symbol)
            connections = (await rig.state())["connections"]
            assert sorted(c["streams"] for c in connections) == [1, 2, 2]
            await rig.advance(3)
            for symbol in symbols:
                await rig.until_written(NEXT + 2, symbol)
                check_i1(rig, NEXT + 2, symbol)


async def test_an_unknown_symbol_ends_the_only_series_with_one_clear_line(rig: Rig) -> None:
    async with rig.collecting(symbols=["NOSUCHUSDT"]):
        with pytest.raises(BaseExceptionGroup) as caught:
            await rig.until(lambda: False)
    failure = caught.value.split(Failure)[0]
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]  # type: ignore[assignment]
    assert str(failure).startswith("the exchange has no NOSUCHUSDT 1m")


# -- C1: killed at any point ----------------------------------------------------------------------


class Killed(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("error", [Killed, Unavailable], ids=["C1 killed", "C9 reply lost"])
async def test_c1_c9_a_strike_at_any_write_leaves_no_trace(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, when: str, error: type[BaseException]
) -> None:
    """Killed (or cut) at the n-th transaction, before it is sent or after it took effect."""
    real, strikes, calls = Link.call, {2, 3, 5, 6, 9}, 0

    async def call(self: Link, *commands: Any, wait_s: float = 0.0) -> list[Any]:
        nonlocal calls
        if commands[0] != ("MULTI",):
            return await real(self, *commands, wait_s=wait_s)
        calls += 1
        number = calls
        if number in strikes and when == "before":
            raise error("struck")
        replies = await real(self, *commands, wait_s=wait_s)
        if number in strikes and when == "after":
            raise error("struck")
        return replies

    monkeypatch.setattr(Link, "call", call)
    upto = NEXT - 1
    for _ in range(12):
        with contextlib.suppress(Killed, BaseExceptionGroup):
            async with rig.collecting():
                while upto < NEXT + 11:
                    await rig.until_written(upto, SYMBOL)
                    upto += 1
                    await rig.advance()
                await rig.until_written(upto)
                break
    check_i1(rig, NEXT + 11)
    assert calls > max(strikes)


async def test_c1_after_an_absence_the_missed_candles_come_first(rig: Rig) -> None:
    async with rig.collecting():
        await rig.until_written(NEXT - 1)
    await rig.advance(20)
    async with rig.collecting():
        await rig.until_written(NEXT + 19)
        await rig.advance()
        await rig.until_written(NEXT + 20)
    check_i1(rig, NEXT + 20)


# -- C2, C3: connections --------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [{"abort": True}, {"code": 1008}], ids=["line cut", "closed"])
async def test_c2_after_a_cut_it_reconnects_and_fills_the_hole_first(
    rig: Rig, cut: dict[str, Any]
) -> None:
    async with rig.collecting() as collector:
        await rig.until_written(NEXT - 1)
        feed = collector.market.places[0].feeds[0]
        for round_number in range(1, 4):
            await rig.control("cut", **cut)
            await rig.advance(2)
            await rig.until(lambda n=round_number: feed.connections > n, 5)  # type: ignore[misc]
            await rig.advance()
            await rig.until_written(NEXT - 1 + 3 * round_number)
    check_i1(rig, NEXT + 8)


async def test_c2_rotation_and_shutdown_open_the_new_connection_first(rig: Rig) -> None:
    """No candle is missed by the streams: nothing had to come from REST."""
    async with rig.collecting(collector={"rotate_hours": 0.2 / 3600}) as collector:
        await rig.until_written(NEXT - 1)
        feed = collector.market.places[0].feeds[0]
        upto, announced = NEXT - 1, False
        while feed.connections < 4:
            if feed.connections == 2 and not announced:
                announced = bool(await rig.control("shutdown", ms=200))
            await rig.advance()
            upto += 1
            await rig.until_written(upto)
        assert collector.market.series[0].candles.counts["repaired"] == 0
    check_i1(rig, upto)


async def test_c2_pings_are_answered(rig: Rig) -> None:
    await rig.control("limits", ping_s=0.1, pong_s=0.3)
    async with rig.collecting() as collector:
        await rig.until_written(NEXT - 1)
        started = asyncio.get_running_loop().time()
        await rig.until(lambda: asyncio.get_running_loop().time() > started + 1.0)
        assert collector.market.places[0].feeds[0].connections == 1


async def test_c3_a_silent_stream_is_left_and_rest_brings_its_candles(rig: Rig) -> None:
    async with rig.collecting() as collector:
        await rig.until_written(NEXT - 1)
        feed = collector.market.places[0].feeds[0]
        await rig.control("faults", kind="silence", seconds=60)
        await rig.advance(3)
        await rig.until_written(NEXT + 2)
        await rig.until(lambda: feed.connections > 1, 6)
        assert feed.connections == 2
    check_i1(rig, NEXT + 2)
    assert "stream_silent" in rig.codes()


# -- C4, C5: candles repeated, late, out of order, missing, revised -------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "duplicate", "frames": "all"},
        {"kind": "delay", "ms": 150},
        {"kind": "reorder"},
        {"kind": "drop", "probability": 0.5},
        {"kind": "garbage", "on": "stream", "probability": 0.5},
    ],
    ids=lambda fault: fault["kind"],
)
async def test_c4_c5_what_the_stream_does_leaves_no_trace(rig: Rig, fault: dict[str, Any]) -> None:
    async with rig.collecting():
        await rig.until_written(NEXT - 1)
        await rig.control("faults", **fault)
        await rig.advance(10)
        await rig.until_written(NEXT + 8)
        await rig.control("reset")
        await rig.advance(2)
        await rig.until_written(NEXT + 11)
    check_i1(rig, NEXT + 11)


async def test_c4_a_revision_after_writing_is_told_and_archived_but_not_written(rig: Rig) -> None:
    async with rig.collecting() as collector:
        await rig.until_written(NEXT - 1)
        await rig.advance(2)
        await rig.until_written(NEXT + 1)
        revised = truth()[NEXT]
        await rig.control(
            "faults", kind="revise", on="rest", open_time_ms=revised.open_time_ms, factor=1.01
        )
        await rig.advance(1)
        await rig.until(lambda: "revision" in rig.codes())
        await rig.until_written(NEXT + 2)
        assert collector.market.series[0].candles.counts["revisions"] == 1
    check_i1(rig, NEXT + 2)
    notice = next(n for n in rig.notices() if n.code == "revision")
    assert notice.open_time_ms == revised.open_time_ms
    assert [line["code"] for line in ledger(rig.folder)] == ["revision"]
    table = read_klines([next((rig.folder / "data" / "BTCUSDT-1m-klines").glob("*.parquet"))])[0]
    position = list(table.open_time_ms).index(revised.open_time_ms)
    assert table.column("close")[position] == pytest.approx(revised.close * 1.01, rel=1e-6)


async def test_c5_minutes_that_never_existed_become_gap_markers(
    tmp_path: Path, valkey: Server
) -> None:
    missing = (5, 6, NEXT + 1, NEXT + 3, NEXT + 4, NEXT + 5)
    async with rigged(tmp_path, valkey, truth(missing=missing)) as rig:
        async with rig.collecting(collector={"history_rows": HISTORY + 20}):
            # 40 candles are past: the last of them is the one of index 42, then three are missing.
            await rig.until_written(NEXT)
            await rig.advance(4)
            await rig.until_written(NEXT + 9)
            await rig.until(lambda: rig.codes().count("gap") == 3)
        check_i1(rig, NEXT + 9, missing=missing)


# -- C6, C7: replies that cannot be used ----------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "429", "retry_after_s": 1},
        {"kind": "418", "retry_after_s": 1},
        {"kind": "status", "status": 503},
        {"kind": "html", "status": 502},
        {"kind": "garbage", "on": "rest"},
    ],
    ids=lambda fault: fault["kind"],
)
async def test_c6_a_bad_reply_writes_nothing_and_is_not_hammered(
    rig: Rig, fault: dict[str, Any]
) -> None:
    async with rig.collecting():
        await rig.until_written(NEXT - 1)
        await rig.control("reset")
        await rig.control("faults", kind="drop", count=1)
        await rig.control("faults", path="klines", count=2, **fault)
        await rig.advance(3)
        await rig.until_written(NEXT + 2)
        asked = (await rig.state())["requests"]
    check_i1(rig, NEXT + 2)
    assert sum(asked.values()) < 12, asked


async def test_c7_an_impossible_stream_row_comes_from_rest(rig: Rig) -> None:
    async with rig.collecting() as collector:
        await rig.until_written(NEXT - 1)
        await rig.control("faults", kind="revise", on="stream", factor=3.0)
        await rig.advance(2)
        await rig.until_written(NEXT + 1)
        assert collector.market.series[0].candles.counts["refused"] >= 1
        await rig.until(lambda: "refused" in rig.codes())
    check_i1(rig, NEXT + 1)


# -- C8: the bus is away --------------------------------------------------------------------------


async def test_c8_while_redis_is_down_the_websocket_stays_served(rig: Rig) -> None:
    async with rig.collecting() as collector:
        await rig.until_written(NEXT - 1)
        rig.valkey.kill9()
        await rig.advance(5)
        connected = (await rig.state())["connections"]
        assert [c["waiting"] for c in connected] == [False]
        rig.valkey.start()
        await rig.until_written(NEXT + 4)
        await rig.advance()
        await rig.until_written(NEXT + 5)
        assert collector.sessions > 1
        assert collector.market.places[0].feeds[0].connections == 1
    check_i1(rig, NEXT + 5)


async def test_c8_out_of_memory_is_waited_out(rig: Rig) -> None:
    async with rig.collecting():
        await rig.until_written(NEXT - 1)
        rig.redis.config_set("maxmemory", "1")
        await rig.advance(3)
        rig.redis.config_set("maxmemory", "0")
        await rig.until_written(NEXT + 2)
    check_i1(rig, NEXT + 2)


@pytest.mark.parametrize("a_reader_is_faster", [False, True])
async def test_v4_a_flushed_server_gets_the_history_again(
    rig: Rig, a_reader_is_faster: bool
) -> None:
    """The connection lives on: nothing but the streams tells that they are gone."""
    async with rig.collecting():
        await rig.until_written(NEXT - 1)
        await rig.advance(3)
        await rig.until_written(NEXT + 2)
        rig.redis.flushall()
        if a_reader_is_faster:  # the featurizer joins again, which makes an empty stream
            rig.redis.xgroup_create(f"kline:{{{SYMBOL}}}:1m", "featurizer", "0", mkstream=True)
        await rig.advance(1)
        await rig.until_written(NEXT + 3)
        await rig.until(lambda: len(rig.klines()) >= HISTORY)
    klines, first_ms = rig.klines(), truth()[0].open_time_ms
    assert all(same_row(k, truth()[(k.open_time_ms - first_ms) // M]) for k in klines)
    assert {b.open_time_ms - a.open_time_ms for a, b in pairwise(klines)} == {M}


async def test_a_longer_history_than_the_bus_has_is_told_and_fetched_once_it_is_deleted(
    rig: Rig,
) -> None:
    key = f"kline:{{{SYMBOL}}}:1m"
    async with rig.collecting(collector={"history_rows": 10}):
        await rig.until_written(NEXT - 1)
    assert len(rig.klines()) == 10
    assert rig.codes() == []
    async with rig.collecting(collector={"history_rows": 35}) as collector:
        await rig.until(lambda: "short_history" in rig.codes())
        (told,) = (n for n in rig.notices() if n.code == "short_history")
        assert f"{key} has 10 candles, the config wants 35" in told.text
        assert f"redis-cli DEL '{key}'" in told.text
        assert told.level == "warning", "people are told"
        await rig.until(lambda: collector.health.facts.get("short_history") == {key: 25})
        rig.redis.delete(key)
        await rig.advance(1)
        await rig.until_written(NEXT)
        await rig.until(lambda: collector.sessions > 1 and collector.health.ready)
        assert collector.health.facts["short_history"] == {}
    assert len(rig.klines()) >= 35
    assert rig.codes().count("short_history") == 1


async def test_a_backfill_that_was_broken_off_is_not_told_to_be_short(rig: Rig) -> None:
    async with rig.collecting(collector={"history_rows": 30}):
        await rig.until_written(NEXT - 1)
    ids = [entry_id for entry_id, _ in rig.redis.xrange(f"kline:{{{SYMBOL}}}:1m")]  # type: ignore[union-attr]
    rig.redis.delete(f"kline:{{{SYMBOL}}}:1m")
    async with Bus.session(rig.valkey.url, service="other") as bus:
        source = Source(KLINE, SYMBOL, "1m")
        for kline in truth()[NEXT - 30 : NEXT - 20]:
            assert f"{kline.open_time_ms}-0".encode() in ids
            await bus.write(Write(source=source, event=kline, open_time_ms=kline.open_time_ms))
    async with rig.collecting(collector={"history_rows": 30}) as collector:
        await rig.until_written(NEXT - 1)
        await rig.until(lambda: collector.health.ready)
        await rig.until(lambda: collector.health.facts.get("short_history") == {})
    assert rig.codes() == []


async def test_a_symbol_that_was_listed_lately_is_not_told_to_be_short(rig: Rig) -> None:
    async with rig.collecting(collector={"history_rows": HISTORY + 20}):
        await rig.until_written(NEXT - 1)
    async with rig.collecting(collector={"history_rows": HISTORY + 20}) as collector:
        await rig.advance(1)
        await rig.until_written(NEXT)
        await rig.until(lambda: collector.health.ready)
    assert rig.codes() == []


def test_the_history_covers_twice_what_any_feature_looks_back(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from shared.features import feature\n\n\n"
        "@feature(lookback=5000)\ndef far(history):\n    return history.close[-5000]\n"
    )
    assert history_rows(load()) == 2880
    assert history_rows(load(features_kline=("close_60", "close_RSI_180"))) == 2 * (24 * 180 + 1)
    assert history_rows(load(features_kline=("close_1600",))) == 3200
    own = load(features_kline=("close_60", "far"), features_file=tmp_path / "own.py")
    assert history_rows(own) == 10_000
    assert history_rows(load(collector={"history_rows": 7})) == 7


# -- T19: our own clock ---------------------------------------------------------------------------


async def test_t19_steps_of_our_own_clock_move_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The market's clock runs by messages and by a clock that never steps."""
    real, offsets_s = time.time_ns, [0]
    monkeypatch.setattr("time.time_ns", lambda: real() + offsets_s[-1] * 1_000_000_000)
    async with rig.collecting():
        await rig.until_written(NEXT - 1)
        for number, step_s in enumerate((3600, -86_400, 2, -10, 31_536_000, 0)):
            offsets_s.append(step_s)
            await rig.advance(3)
            await rig.until_written(NEXT + 3 * number + 2)
    check_i1(rig, NEXT + 17)
    assert not set(rig.codes()) & {"future_entries", "gap", "leap", "late"}


# -- C10: two collectors --------------------------------------------------------------------------


async def test_c10_two_collectors_write_each_candle_once(rig: Rig) -> None:
    async with (
        rig.collecting(instance="one"),
        rig.collecting(instance="two", data_folder=str(rig.folder / "x")),
    ):
        await rig.until_written(NEXT - 1)
        await rig.advance(10)
        await rig.until_written(NEXT + 9)
    check_i1(rig, NEXT + 9)
    assert "diverged" not in rig.codes()


async def test_c10_a_difference_to_what_another_wrote_is_an_alert(rig: Rig) -> None:
    async with rig.collecting():
        await rig.until_written(NEXT - 1)
        other = truth("ETHUSDT")[NEXT]
        event = Kline(**{f: getattr(other, f) for f in other.__slots__} | {"symbol": SYMBOL})
        async with Bus.session(rig.valkey.url, service="other") as bus:
            source = Source(KLINE, SYMBOL, "1m")
            await bus.write(Write(source=source, event=event, open_time_ms=event.open_time_ms))
        await rig.advance(2)
        await rig.until_written(NEXT + 1)
        await rig.until(lambda: "diverged" in rig.codes())
    assert next(n for n in rig.notices() if n.code == "diverged").level == "alert"


async def test_a_foreign_entry_of_the_future_is_told_and_never_called_ready(rig: Rig) -> None:
    """Nothing could be written before it, for however long: it must not look healthy."""
    async with rig.collecting() as collector:
        await rig.until_written(NEXT - 1)
        await rig.until(lambda: collector.health.ready)
        future = truth()[NEXT + 90]
        async with Bus.session(rig.valkey.url, service="other") as bus:
            source = Source(KLINE, SYMBOL, "1m")
            await bus.write(Write(source=source, event=future, open_time_ms=future.open_time_ms))
        await rig.advance(1)
        await rig.until(lambda: "future_entries" in rig.codes())
        await rig.until(lambda: "in the market's future" in collector.health.reason)
        (told,) = (n for n in rig.notices() if n.code == "future_entries")
        assert told.level == "alert"
        keys = [
            f"'{kind}:{{{SYMBOL}}}:1m'" for kind in ("kline", "feature", "prediction", "signal")
        ]
        assert f"redis-cli DEL {' '.join(keys)}" in told.text
        rig.redis.delete(*(key.strip("'") for key in keys))
        await rig.until_written(NEXT)
        await rig.until(lambda: collector.health.ready)
    check_i1(rig, NEXT)


async def test_an_archive_that_cannot_be_written_is_told_to_people(rig: Rig) -> None:
    (rig.folder / "data").mkdir()
    (rig.folder / "data" / "BTCUSDT-1m-klines").write_text("in the way")
    async with rig.collecting() as collector:
        await rig.until_written(NEXT - 1)
        archive = collector.market.series[0].archive
        assert archive is not None
        # What is on the bus already is put aside for the archive a moment later.
        await rig.until(lambda: len(archive.rows) == HISTORY)
        for _ in range(3):
            await collector.market.flush()
        await rig.until(lambda: "archive" in rig.codes())
        assert len(archive.rows) == HISTORY
        (told,) = (n for n in rig.notices() if n.code == "archive")
        assert (told.level, "is not written" in told.text) == ("warning", True)
        (rig.folder / "data" / "BTCUSDT-1m-klines").unlink()
        await collector.market.flush()
        assert len(archive.rows) == 0


# -- lock-step ------------------------------------------------------------------------------------


async def test_in_lock_step_a_candle_waits_for_the_consumers_of_the_last_one(rig: Rig) -> None:
    key = f"kline:{{{SYMBOL}}}:1m"
    rig.redis.xgroup_create(key, "featurizer", "0", mkstream=True)
    async with rig.collecting(collector={"follow": True}):
        await rig.until_written(NEXT - 1)
        advancing = asyncio.create_task(rig.advance(5))
        for index in range(NEXT - 1, NEXT + 5):
            await rig.until_written(index)
            # Nothing newer comes however long we wait; the ping is not answered either.
            for _ in range(5):
                await asyncio.sleep(0)
            entries: Any = rig.redis.xreadgroup("featurizer", "f", {key: ">"})
            ids = [entry_id for entry_id, _ in entries[0][1]]
            assert ids[-1] == f"{truth()[index].open_time_ms}-0".encode()
            assert len(ids) == (NEXT if index == NEXT - 1 else 1)
            rig.redis.xack(key, "featurizer", *ids)
        await advancing
    check_i1(rig, NEXT + 4)


async def test_in_lock_step_a_consumer_may_wait_for_the_same_candle_of_another_symbol(
    tmp_path: Path, valkey: Server
) -> None:
    """As the featurizer does for features that compare two symbols."""
    symbols = ["BTCUSDT", "ETHUSDT"]
    keys = [f"kline:{{{symbol}}}:1m" for symbol in symbols]
    async with rigged(tmp_path, valkey, *(truth(symbol) for symbol in symbols)) as rig:
        for key in keys:
            rig.redis.xgroup_create(key, "featurizer", "0", mkstream=True)
        async with rig.collecting(symbols=symbols, collector={"follow": True}):
            for symbol in symbols:
                await rig.until_written(NEXT - 1, symbol=symbol)
            advancing = asyncio.create_task(rig.advance(5))
            for index in range(NEXT - 1, NEXT + 5):
                for symbol in symbols:  # both are there before either is acknowledged
                    await rig.until_written(index, symbol=symbol)
                for key in keys if index % 2 else keys[::-1]:
                    entries: Any = rig.redis.xreadgroup("featurizer", "f", {key: ">"})
                    ids = [entry_id for entry_id, _ in entries[0][1]]
                    assert ids[-1] == f"{truth()[index].open_time_ms}-0".encode()
                    rig.redis.xack(key, "featurizer", *ids)
            await advancing
        for symbol in symbols:
            check_i1(rig, NEXT + 4, symbol)


@pytest.mark.parametrize("minutes", [1, 2, 5])
async def test_in_lock_step_no_candle_is_played_while_rest_is_asked_about_a_hole(
    tmp_path: Path, valkey: Server, minutes: int
) -> None:
    """After three minutes and more the clock does not believe the next message (FAULTS R1)."""
    missing = range(NEXT + 1, NEXT + 1 + minutes)
    after, last = missing.stop, missing.stop + 9  # the first candle behind the hole, the last
    table = truth(count=last + 1, missing=missing)
    async with rigged(tmp_path, valkey, table, options=("--speed", "max")) as rig:
        await rig.control("pause")
        async with rig.collecting(collector={"follow": True}):
            await rig.until_written(NEXT - 1)
            await rig.advance(1)
            await rig.until_written(NEXT)
            await rig.control("faults", kind="delay", on="rest", path="klines", ms=1000, count=1)
            await rig.control("resume")
            furthest_ms = seen_ms = 0
            while rig.klines()[-1].open_time_ms < truth()[after].open_time_ms:
                furthest_ms = max(furthest_ms, seen_ms)  # read while the candle was not there
                seen_ms = (await rig.state())["market_now_ms"]
                await asyncio.sleep(0.02)
            await rig.until_written(last)
        assert furthest_ms == truth()[after].open_time_ms + M
        check_i1(rig, last, missing=missing)


# -- other inputs ---------------------------------------------------------------------------------


async def test_an_order_book_is_taken_at_each_close_under_the_candles_id(rig: Rig) -> None:
    async with rig.collecting(collector={"depth": True}):
        await rig.until_written(NEXT - 1)
        key = f"depth:{{{SYMBOL}}}"
        for count in (1, 2, 3):
            await rig.advance()
            await rig.until(lambda n=count: rig.redis.xlen(key) == n)  # type: ignore[misc]
        async with Bus.session(rig.valkey.url, service="reader") as bus:
            entries = await bus.tail(Source(DEPTH, SYMBOL), 10)
    assert [entry.time_ms for entry in entries] == [
        k.open_time_ms for k in truth()[NEXT : NEXT + 3]
    ]
    for entry in entries:
        assert isinstance(entry.event, Depth)
        assert len(entry.event.values) == 8 * 11


async def test_order_books_are_archived_whatever_ended_the_process_that_took_them(rig: Rig) -> None:
    folder = depth_folder(rig.folder / "data", SYMBOL, "1m")
    key = f"depth:{{{SYMBOL}}}"
    async with rig.collecting(collector={"depth": True}):
        await rig.until_written(NEXT - 1)
        for count in (1, 2, 3):
            await rig.advance()
            await rig.until(lambda n=count: rig.redis.xlen(key) == n)  # type: ignore[misc]
    for _ in range(2):  # what the first run took is archived by the next one, and not twice
        async with rig.collecting(collector={"depth": True}):
            await rig.until(lambda: len(_archived(folder)) == 3)
    async with Bus.session(rig.valkey.url, service="reader") as bus:
        entries = await bus.tail(Source(DEPTH, SYMBOL), 10)
    rows = _archived(folder)
    assert sorted(rows) == [entry.time_ms for entry in entries]
    for entry in entries:
        assert isinstance(entry.event, Depth)
        assert rows[entry.time_ms] == np.frombuffer(entry.event.values, "<f8").tolist()


def _archived(folder: Path) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for path in sorted(folder.glob("*.parquet")):
        table = pq.read_table(path).to_pydict()
        for at, time_ms in enumerate(table["open_time_ms"]):
            assert time_ms not in found
            found[time_ms] = [table[name][at] for name in DEPTH_COLUMNS]
    return found


async def test_futures_klines_and_funding_have_their_own_streams(rig: Rig) -> None:
    async with rig.collecting(collector={"futures": True}):
        await rig.until_written(NEXT - 1, stream="fkline")
        await rig.advance(4)
        await rig.until_written(NEXT + 3, stream="fkline")
        await rig.until_written(NEXT + 3)
        connections = (await rig.state())["connections"]
        assert {(c["venue"], c["route"]) for c in connections} == {
            ("spot", ""),
            ("futures", "market"),
        }
    check_i1(rig, NEXT + 3)
    futures = rig.klines(stream="fkline")
    assert len(futures) == NEXT + 4
    assert not any(k.gap for k in futures)
    async with Bus.session(rig.valkey.url, service="reader") as bus:
        for entry in await bus.tail(Source(FUNDING, SYMBOL), 10):
            assert isinstance(entry.event, Funding)
            assert entry.time_ms % (8 * 3_600_000) == 0


async def test_the_archive_holds_what_was_seen_and_is_completed_from_the_bus(rig: Rig) -> None:
    folder = rig.folder / "data" / "BTCUSDT-1m-klines"
    async with rig.collecting(collector={"archive": False}):
        await rig.until_written(NEXT - 1)
    assert not folder.exists()
    async with rig.collecting() as collector:
        await rig.advance(2)
        await rig.until_written(NEXT + 1)
        archive = collector.market.series[0].archive
        assert archive is not None
        await rig.until(lambda: len(archive.rows) == NEXT + 2)
    table = read_klines([next(folder.glob("*.parquet"))])[0]
    assert list(table.open_time_ms) == [k.open_time_ms for k in truth()[: NEXT + 2]]
    assert list(table.column("close")) == [k.close for k in truth()[: NEXT + 2]]
