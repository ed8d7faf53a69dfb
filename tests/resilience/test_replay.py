"""The same numbers wherever a computation starts, and as often as it is played."""

from collections.abc import Sequence

import numpy as np
import pytest
import redis

from featurizer.service import serve
from shared import codec
from shared.bus import Bus, Source, Write
from shared.config import Settings, load
from shared.events import Feature, Kline
from shared.features import FeatureSet
from shared.streams import FEATURE, KLINE
from tests.kills import Plan, run_until_caught_up
from tests.resilience.conftest import FEATURES
from tests.resilience.tape import SYMBOL, M, Tape, record
from tests.valkey import Server

CANDLES = Source(KLINE, SYMBOL, "1m")
VALUES = Source(FEATURE, SYMBOL, "1m")
LOOKBACK = FeatureSet.of(FEATURES).lookback


@pytest.fixture(scope="module")
def tape(tmp_path_factory: pytest.TempPathFactory) -> Tape:
    return record(tmp_path_factory.mktemp("tape"), history=60, live=LOOKBACK + 300, seed=9)


def settings() -> Settings:
    return load(symbol=SYMBOL, features_kline=FEATURES)


async def put(url: str, klines: Sequence[Kline]) -> None:
    async with Bus.session(url, service="collector", exclusive=False) as bus:
        await bus.write(
            *(Write(source=CANDLES, event=k, open_time_ms=k.open_time_ms) for k in klines)
        )


async def run(url: str, patch: pytest.MonkeyPatch) -> None:
    await run_until_caught_up(patch, url, "featurizer", serve, settings(), Plan())


def entries(server: Server) -> list[tuple[str, bytes]]:
    with redis.Redis(port=server.port) as client:
        return [(i.decode(), fields[b"data"]) for i, fields in client.xrange(VALUES.key)]


def values(found: Sequence[tuple[str, bytes]]) -> bytes:
    return b"".join(codec.decode(Feature, data).event.values for _, data in found)


@pytest.mark.parametrize("start", [1, 59, 117])
async def test_a_featurizer_on_a_part_of_the_candles_gives_the_same_bits_as_on_all(
    valkey: Server, monkeypatch: pytest.MonkeyPatch, tape: Tape, start: int
) -> None:
    await put(valkey.url, tape.klines[start:])
    await run(valkey.url, monkeypatch)
    found = entries(valkey)
    whole = FeatureSet.of(FEATURES).batch(tape.first_index, tape.rows)
    part = FeatureSet.of(FEATURES).batch(tape.first_index + start, tape.rows[start:])
    assert values(found) == part.tobytes()
    covered = start + LOOKBACK - 1
    assert values(found[covered - start :]) == whole[covered:].tobytes()
    assert np.isfinite(whole[covered:]).any(axis=0).all(), "the comparison says something"


@pytest.mark.parametrize("done", [0, 1, 59, 60])
async def test_started_on_a_history_of_exactly_the_needed_rows_it_gives_the_same_bits(
    valkey: Server, monkeypatch: pytest.MonkeyPatch, tape: Tape, done: int
) -> None:
    """`done` candles after the longest window was first covered, all older ones are trimmed."""
    at = LOOKBACK + done
    await put(valkey.url, tape.klines[:at])
    await run(valkey.url, monkeypatch)
    first_ms = tape.klines[at].open_time_ms - (LOOKBACK - 1) * M
    with redis.Redis(port=valkey.port) as client:
        client.xtrim(CANDLES.key, minid=first_ms, approximate=False)
        assert client.xlen(CANDLES.key) == LOOKBACK - 1
    await put(valkey.url, tape.klines[at:])
    await run(valkey.url, monkeypatch)
    whole = FeatureSet.of(FEATURES).batch(tape.first_index, tape.rows)
    found = entries(valkey)
    assert values(found) == whole.tobytes()
    flags = [codec.decode(Feature, data).event.covered for _, data in found]
    assert flags == [n >= LOOKBACK - 1 for n in range(len(tape.klines))]


async def test_the_same_candles_played_twice_give_the_same_content(
    valkey: Server, monkeypatch: pytest.MonkeyPatch, tape: Tape
) -> None:
    """Once in one piece, once in many, with a new life of the featurizer for each."""
    await put(valkey.url, tape.klines)
    await run(valkey.url, monkeypatch)
    once = entries(valkey)
    with redis.Redis(port=valkey.port) as client:
        client.flushall()
    for start in range(0, len(tape.klines), 300):
        await put(valkey.url, tape.klines[start : start + 300])
        await run(valkey.url, monkeypatch)
    again = entries(valkey)
    assert [i for i, _ in once] == [i for i, _ in again]
    assert all(codec.same_content(a, b) for (_, a), (_, b) in zip(once, again, strict=True))
