"""Features that compare two symbols, live: the bits of batch, nothing lost or doubled."""

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
from shared.errors import Unavailable, Usage
from shared.events import Feature, Kline
from shared.features import FeatureSet
from shared.features.configured import configured
from shared.streams import FEATURE, KLINE
from tests.featurizer.test_service import START, M, assert_equal_bits, klines, put
from tests.kills import Killed, Plan, run_until_caught_up, singles
from tests.valkey import Server

NAMES = ("close_CORREL_5", "close_BETA_4", "o_close_SMA_3", "volume_RCORREL_6", "close_EMA_2")
BTC, ETH = Source(KLINE, "BTCUSDT", "1m"), Source(KLINE, "ETHUSDT", "1m")


def settings(**keys: Any) -> Settings:
    defaults = {
        "features_kline": NAMES,
        "symbols": ("BTCUSDT", "ETHUSDT"),
        "features_other": "ETHUSDT",
    }
    return load(**(defaults | keys))


def ethereum(count: int, gaps: Sequence[int] = ()) -> list[Kline]:
    return [replace(event, symbol="ETHUSDT") for event in klines(count, seed=2, gaps=gaps)]


async def outputs(url: str, symbol: str) -> list[Feature]:
    async with Bus.session(url, service="reader", exclusive=False) as bus:
        entries = await bus.tail(Source(FEATURE, symbol, "1m"), 100_000)
    assert [e.id for e in entries] == sorted({e.id for e in entries})
    return [e.event for e in entries if e.event is not None]


def batch(own: Sequence[Kline], other: Sequence[Kline]) -> np.ndarray[Any, Any]:
    rows = [np.array([event.row() for event in events]) for events in (own, other)]
    return FeatureSet.of(NAMES).batch(START // M, rows[0], None, None, rows[1])


async def test_the_other_symbols_candle_joins_that_of_its_minute(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second life rebuilds its windows from both streams, of which one is further on."""
    btc, eth = klines(50, gaps=(30,)), ethereum(50, gaps=(12, 25))
    for own, other in ((btc[:20], eth[:33]), (btc[20:], eth[33:])):
        await put(valkey.url, other, ETH)
        await put(valkey.url, own, BTC)
        await run_until_caught_up(monkeypatch, valkey.url, "featurizer", serve, settings(), Plan())
    expected = batch(btc, eth)
    assert np.isfinite(expected).any(axis=0).all()
    assert_equal_bits(await outputs(valkey.url, "BTCUSDT"), expected)
    assert_equal_bits(await outputs(valkey.url, "ETHUSDT"), batch(eth, eth))


async def test_killed_at_any_command_it_loses_doubles_and_changes_nothing(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    btc, eth = klines(14, gaps=(11,)), ethereum(14, gaps=(9,))
    expected = batch(btc, eth), batch(eth, eth)

    async def attempt(plan: Plan) -> None:
        with redis.Redis(port=valkey.port) as client:
            client.flushall()
        for part, of_life in ((slice(0, 7), Plan()), (slice(7, 14), plan)):
            await put(valkey.url, btc[part], BTC)
            await put(valkey.url, eth[part], ETH)
            await run_until_caught_up(
                monkeypatch, valkey.url, "featurizer", serve, settings(), of_life
            )
        assert_equal_bits(await outputs(valkey.url, "BTCUSDT"), expected[0])
        assert_equal_bits(await outputs(valkey.url, "ETHUSDT"), expected[1])

    undisturbed = Plan()
    await attempt(undisturbed)
    chosen = random.Random(3).sample(list(singles(undisturbed.calls)), 15)
    struck = 0
    for number, points in enumerate(chosen):
        plan = Plan(points=points, error=(Killed, Unavailable)[number % 2])
        await attempt(plan)
        struck += plan.struck
    assert struck >= len(chosen) * 0.9


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"features_other": None}, "name it as `features_other`"),
        ({"features_other": "XRPUSDT"}, "XRPUSDT is not one of `symbols`"),
    ],
)
def test_another_symbol_that_nobody_collects_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(Usage, match=said):
        configured(settings(**keys))
