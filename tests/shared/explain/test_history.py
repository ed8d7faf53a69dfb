"""Rows read back from the bus, against what the featurizer made of them live."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import redis

from featurizer.service import serve
from shared.bus import Bus, Source
from shared.config import Settings, load
from shared.errors import BadInput, Usage
from shared.events import Depth, Feature, Kline
from shared.explain.history import History
from shared.features.configured import configured
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
