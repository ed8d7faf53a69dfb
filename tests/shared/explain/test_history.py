"""Rows read back from the bus, against what the featurizer made of them live."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from collector.archive import Archive, add_books
from collector.candles import Remark
from featurizer.service import serve
from shared.bus import Bus, Source
from shared.config import Settings, load
from shared.errors import BadInput, Usage
from shared.events import Depth, Feature, Kline, Level
from shared.explain.history import History
from shared.features import FeatureSet
from shared.features.configured import configured
from shared.klinefiles import depth_folder
from shared.klines import DEPTH_COLUMNS
from shared.streams import DEPTH, FEATURE, FUTURES_KLINE, KLINE
from tests.featurizer.test_service import START, M, klines, put
from tests.kills import Plan, run_until_caught_up
from tests.valkey import Server

ROWS = 100
BTC, ETH = Source(KLINE, "BTCUSDT", "1m"), Source(KLINE, "ETHUSDT", "1m")
FUTURES, BOOK = Source(FUTURES_KLINE, "BTCUSDT", "1m"), Source(DEPTH, "BTCUSDT")


def settings() -> Settings:
    return load(
        symbols=("BTCUSDT", "ETHUSDT"),
        features_kline=("close_trend_5", "close_SMA_3", "close_CORREL_5"),
        features_futur=("f_close_trend_6",),
        features_depth=("bids_1_2",),
        features_other="ETHUSDT",
    )


def depth(count: int, holes: Sequence[int]) -> list[Depth]:
    rng = random.Random(4)
    return [
        Depth(
            symbol="BTCUSDT",
            interval="1m",
            open_time_ms=START + n * M,
            values=np.array([rng.uniform(1, 9) for _ in DEPTH_COLUMNS]).tobytes(),
        )
        for n in range(count)
        if n not in holes
    ]


@pytest.fixture
async def filled(valkey: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Four series with holes of their own, one that begins later, and the features of all."""
    count = ROWS
    futures = klines(count, seed=3, gaps=(12, 13, 44))[7:]
    books = depth(count, (20, 21, 50))
    await put(valkey.url, futures, FUTURES)
    await put(valkey.url, books, BOOK)
    for events, source in (  # the other symbol gets features, too
        (futures, Source(FUTURES_KLINE, "ETHUSDT", "1m")),
        (books, Source(DEPTH, "ETHUSDT")),
        (klines(count, seed=2), ETH),
    ):
        await put(valkey.url, [replace(one, symbol="ETHUSDT") for one in events], source)
    await put(valkey.url, klines(count, gaps=(30, 31)), BTC)
    await run_until_caught_up(monkeypatch, valkey.url, "featurizer", serve, settings(), Plan())
    return valkey


async def live(url: str) -> list[Feature]:
    async with Bus.session(url, service="reader", exclusive=False) as bus:
        entries = await bus.tail(Source(FEATURE, "BTCUSDT", "1m"), 1_000)
    return [entry.event for entry in entries if entry.event is not None]


@pytest.mark.parametrize("seed", [0, 1])
async def test_the_same_bits_in_any_order_and_any_pieces(filled: Server, seed: int) -> None:
    features, found = configured(settings()), await live(filled.url)
    assert len(found) == ROWS
    assert np.isfinite(np.frombuffer(found[-1].values)).all()
    random_rows = np.random.default_rng(seed)
    history = History("BTCUSDT", "1m", other="ETHUSDT")
    async with Bus.session(filled.url, service="itb", exclusive=False) as bus:
        for row in random_rows.permutation(ROWS).tolist():
            first = max(0, row - int(random_rows.integers(0, 20)))
            stretch = await history.stretch(bus, features, START + first * M, START + row * M)
            values = stretch.batch(features)[-(row - first + 1) :]
            expected = b"".join(one.values for one in found[first : row + 1])
            assert values.tobytes() == expected
            if random_rows.random() < 0.2:
                history.forget(START + int(random_rows.integers(0, ROWS)) * M)


@pytest.mark.parametrize("source", [BTC, FUTURES, BOOK, ETH], ids=lambda source: source.key)
async def test_rows_that_live_had_and_that_are_trimmed_are_not_taken_for_gaps(
    filled: Server, source: Source[Any]
) -> None:
    features = configured(settings())
    with redis.Redis(port=filled.port) as client:
        client.xtrim(source.key, minid=START + 60 * M, approximate=False)
    async with Bus.session(filled.url, service="itb", exclusive=False) as bus:
        history = History("BTCUSDT", "1m", other="ETHUSDT")
        with pytest.raises(BadInput, match="are trimmed; the bus begins at"):
            await history.stretch(bus, features, START + 62 * M, START + 62 * M)
        await history.stretch(bus, features, START + 95 * M, START + 95 * M)


async def test_a_stream_that_was_made_anew_is_read_anew(filled: Server) -> None:
    features = configured(settings())
    history = History("BTCUSDT", "1m", other="ETHUSDT")
    async with Bus.session(filled.url, service="itb", exclusive=False) as bus:
        before = await history.stretch(bus, features, START + 50 * M, START + 55 * M)
        with redis.Redis(port=filled.port) as client:
            client.delete(BTC.key)
        earlier = Kline.gap_marker("BTCUSDT", "1m", START - M, START - 1)
        await put(filled.url, [earlier, *klines(ROWS, seed=9)], BTC)
        after = await history.stretch(bus, features, START + 50 * M, START + 55 * M)
    assert (before.kline != after.kline).any()
    assert after.begins_ms == START - M


async def test_nobody_says_whose_candles_the_other_symbols_are(filled: Server) -> None:
    async with Bus.session(filled.url, service="itb", exclusive=False) as bus:
        history = History("BTCUSDT", "1m", other=None)
        with pytest.raises(Usage, match="features_other"):
            await history.stretch(bus, configured(settings()), START + 50 * M, START + 50 * M)


async def archived(url: str, folder: Path) -> None:
    """What stands on the bus now, as the collector archives it."""
    async with Bus.session(url, service="reader", exclusive=False) as bus:
        for source in (BTC, ETH, FUTURES):
            archive = Archive(folder, source.symbol, "1m", futures=source is FUTURES)
            entries = await bus.tail(source, 1_000)
            archive.add(entry.event for entry in entries if isinstance(entry.event, Kline))
            archive.flush(*archive.take())
        books = [entry.event for entry in await bus.tail(BOOK, 1_000)]
        add_books(depth_folder(folder, "BTCUSDT", "1m"), [one for one in books if one is not None])


def trim(server: Server, rows: int) -> None:
    with redis.Redis(port=server.port) as client:
        for source in (BTC, ETH, FUTURES, BOOK):
            client.xtrim(source.key, minid=START + rows * M, approximate=False)


@pytest.mark.parametrize("seed", [0, 1])
async def test_rows_that_are_trimmed_come_from_the_archive_with_the_same_bits(
    filled: Server, tmp_path: Path, seed: int
) -> None:
    features, found = configured(settings()), await live(filled.url)
    await archived(filled.url, tmp_path)
    trim(filled, 60)
    history = History("BTCUSDT", "1m", other="ETHUSDT", data_folder=tmp_path)
    rng = np.random.default_rng(seed)
    warm = features.lookback - 1
    async with Bus.session(filled.url, service="itb", exclusive=False) as bus:
        for row in (rng.permutation(ROWS - warm) + warm).tolist():
            first = max(warm, row - int(rng.integers(0, 20)))
            stretch = await history.stretch(bus, features, START + first * M, START + row * M)
            values = stretch.batch(features)[-(row - first + 1) :]
            assert values.tobytes() == b"".join(one.values for one in found[first : row + 1])
            assert stretch.archived > 0 or first - warm >= 60
            if rng.random() < 0.2:
                history.forget(START + int(rng.integers(0, ROWS)) * M)


async def test_a_revised_row_is_read_as_it_stood_on_the_bus(filled: Server, tmp_path: Path) -> None:
    await archived(filled.url, tmp_path)
    archive = Archive(tmp_path, "BTCUSDT", "1m", futures=False)
    true = klines(ROWS, seed=9)
    async with Bus.session(filled.url, service="itb", exclusive=False) as bus:
        there = [entry.event for entry in await bus.tail(BTC, 1_000)]
        for row, was in ((25, there[25]), (30, there[30]), (25, true[25])):  # 30 is a gap there
            archive.tell([revision(true[row], was)])
        archive.flush(*archive.take())
        features = configured(settings())
        first, last = START + 22 * M, START + 40 * M
        on_bus = await History("BTCUSDT", "1m", other="ETHUSDT").stretch(bus, features, first, last)
        trim(filled, 60)
        history = History("BTCUSDT", "1m", other="ETHUSDT", data_folder=tmp_path)
        found = await history.stretch(bus, features, first, last)
    np.testing.assert_array_equal(found.kline[-19:], on_bus.kline[-19:])


def revision(row: Kline, was: Kline | None) -> Remark:
    return Remark(
        level=Level.WARNING,
        code="revision",
        text="",
        open_time_ms=row.open_time_ms,
        kline=row,
        was=was,
    )


async def test_what_may_not_be_what_stood_on_the_bus_is_counted(
    filled: Server, tmp_path: Path
) -> None:
    await archived(filled.url, tmp_path)
    archive = Archive(tmp_path, "BTCUSDT", "1m", futures=False)
    archive.tell([revision(klines(ROWS, seed=9)[26], None)])  # an earlier version's line
    archive.flush(*archive.take())
    trim(filled, 60)
    features = FeatureSet.of(["close_SMA_3"])
    history = History("BTCUSDT", "1m", other=None, data_folder=tmp_path)
    async with Bus.session(filled.url, service="itb", exclusive=False) as bus:
        quiet = await history.stretch(bus, features, START + 40 * M, START + 42 * M)
        assert (quiet.archived, quiet.doubtful) == (5, 0)
        both = await history.stretch(bus, features, START + 26 * M, START + 31 * M)
        assert both.doubtful == 1 + 2, "a revised row and two gaps"


async def test_an_archive_that_does_not_reach_back_is_named(filled: Server, tmp_path: Path) -> None:
    trim(filled, 60)
    history = History("BTCUSDT", "1m", other="ETHUSDT", data_folder=tmp_path)
    async with Bus.session(filled.url, service="itb", exclusive=False) as bus:
        with pytest.raises(
            BadInput, match=r"trimmed; the bus begins at .*BTCUSDT-1m-klines has no"
        ):
            await history.stretch(bus, configured(settings()), START + 62 * M, START + 62 * M)


async def test_another_markets_archive_is_refused(filled: Server, tmp_path: Path) -> None:
    archive = Archive(tmp_path, "BTCUSDT", "1m", futures=False)
    archive.add(klines(ROWS, seed=9))
    archive.flush(*archive.take())
    trim(filled, 60)
    history = History("BTCUSDT", "1m", other=None, data_folder=tmp_path)
    async with Bus.session(filled.url, service="itb", exclusive=False) as bus:
        with pytest.raises(BadInput, match="is not the archive of this bus"):
            await history.stretch(
                bus, FeatureSet.of(["close_SMA_3"]), START + 61 * M, START + 61 * M
            )
