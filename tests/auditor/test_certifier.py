"""Certificates over what real services left on a real bus."""

import random
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import redis

from auditor.certifier import Certifier
from shared.bus import Bus, Source
from shared.events import Feature, Level, Notice, Parity
from shared.explain import Explainer
from shared.link import Link
from shared.runtime import Health, Session
from shared.streams import FEATURE, KLINE, NOTICE, PARITY, PREDICTION, SIGNAL
from tests.kills import Killed, Plan, singles
from tests.played import LOOKBACK, Played
from tests.resilience.tape import SYMBOL

SOURCE = Source(SIGNAL, SYMBOL, "1m")
CERTIFICATES = Source(PARITY, SYMBOL, "1m")


async def certify(played: Played, *, chunk: int = 64) -> Certifier:
    """One life, until nothing is left to do."""
    async with Bus.session(played.server.url, service="auditor") as bus:
        session = Session(settings=played.settings, bus=bus, health=Health(), alive=lambda: None)
        certifier = Certifier(session, SOURCE, Explainer(played.settings), chunk)
        await certifier.rebuild()
        while await certifier.step():
            pass
        return certifier


@pytest.fixture
async def bus(own: Played) -> AsyncIterator[Bus]:
    async with Bus.session(own.server.url, service="itb", exclusive=False) as session:
        yield session


async def certificates(bus: Bus) -> list[Parity]:
    entries = await bus.tail(CERTIFICATES, 10_000)
    assert [e.problem for e in entries] == [""] * len(entries)
    return [e.event for e in entries if e.event is not None]


async def alerts(bus: Bus) -> list[Notice]:
    found = [entry.event for entry in await bus.tail(Source(NOTICE), 1_000)]
    return [one for one in found if one is not None and one.code == "parity"]


def check_rows(found: list[Parity], own: Played) -> None:
    """Every signal is in exactly one certificate, and the totals are the sums."""
    times = [kline.open_time_ms for kline in own.tape.klines]
    covered = [t for one in found for t in times if one.first_ms <= t <= one.open_time_ms]
    assert covered == times
    for name in ("equal", "unequal", "unchecked"):
        sums = np.cumsum([getattr(one, name) for one in found]).tolist()
        assert [getattr(one, f"total_{name}") for one in found] == sums


@pytest.mark.parametrize("chunk", [1, 7, 64, 4_096])
async def test_every_signal_is_certified_once(own: Played, bus: Bus, chunk: int) -> None:
    """Warm-up, holes, restarts and the change of the release included."""
    certifier = await certify(own, chunk=chunk)
    rows = len(own.tape.klines)
    assert (certifier.totals.equal, certifier.totals.unequal) == (rows, 0)
    assert certifier.totals.unchecked == 0
    found = await certificates(bus)
    check_rows(found, own)
    assert len(found) == -(-rows // chunk)
    assert await alerts(bus) == []


async def test_one_other_bit_is_an_alert_that_names_it(own: Played, bus: Bus) -> None:
    def change(feature: Feature) -> Feature:
        values = np.frombuffer(feature.values, "<u8").copy()
        values[2] ^= 1
        return replace(feature, values=values.tobytes())

    own.change(FEATURE, 90, change)
    own.change(FEATURE, 95, change)
    certifier = await certify(own)
    assert certifier.totals.unequal == 2
    (told,) = await alerts(bus)
    assert told.level == Level.ALERT
    assert f"2 of 56 signals of signal:{{{SYMBOL}}}:1m" in told.text
    assert f"first {own.signal_id(90)}: feature close_area_60: " in told.text
    (wrong,) = [one for one in await certificates(bus) if one.unequal]
    assert wrong.first.startswith(own.signal_id(90))


async def test_a_signal_without_its_prediction_is_unequal(own: Played, bus: Bus) -> None:
    with redis.Redis(port=own.server.port) as client:
        key = PREDICTION.key(SYMBOL, "1m")
        client.xdel(key, f"{own.tape.klines[100].open_time_ms}-0")
    certifier = await certify(own)
    assert certifier.totals.unequal == 1
    (told,) = await alerts(bus)
    assert f"{own.signal_id(100)}: prediction entry: absent" in told.text


async def test_what_cannot_be_computed_again_is_not_called_equal(own: Played, bus: Bus) -> None:
    """The first release is gone, and the oldest features are trimmed."""
    (own.models / "releases" / own.releases[0]).rename(own.models / "elsewhere")
    by_first = sum(one.release == own.releases[0] for one in own.events(SIGNAL))
    certifier = await certify(own)
    rows = len(own.tape.klines)
    assert 0 < certifier.totals.unchecked == by_first < rows
    assert certifier.totals.equal == rows - by_first
    reasons = [one.reason for one in await certificates(bus) if one.unchecked]
    assert all(f"release {own.releases[0]} is not in" in reason for reason in reasons)
    assert await alerts(bus) == []


@pytest.mark.parametrize("stream", [KLINE, FEATURE, PREDICTION], ids=lambda one: one.name)
async def test_trimmed_entries_are_unchecked_not_unequal(
    own: Played, bus: Bus, stream: Any
) -> None:
    with redis.Redis(port=own.server.port) as client:
        first_ms = own.tape.klines[40].open_time_ms
        client.xtrim(stream.key(SYMBOL, "1m"), minid=first_ms, approximate=False)
    certifier = await certify(own, chunk=10)
    assert certifier.totals.unequal == 0
    expected = 40 if stream is not KLINE else 40 + LOOKBACK - 1
    assert expected <= certifier.totals.unchecked < expected + 10
    assert certifier.totals.equal == len(own.tape.klines) - certifier.totals.unchecked
    assert await alerts(bus) == []


async def test_ended_at_any_command_it_goes_on_where_it_was(
    own: Played, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Link.call

    async def lives(plan: Plan) -> None:
        with redis.Redis(port=own.server.port) as client:
            client.delete(CERTIFICATES.key)

        async def call(self: Link, *commands: Any, wait_s: float = 0.0) -> list[Any]:
            plan.calls += 1
            plan.strike("before")
            replies = await real(self, *commands, wait_s=wait_s)
            plan.strike("after")
            return replies

        with monkeypatch.context() as patch:
            patch.setattr(Link, "call", call)
            for _ in range(3):
                try:
                    await certify(own, chunk=50)
                except Killed:
                    continue
                break

    undisturbed = Plan()
    await lives(undisturbed)
    whole = await certificates(bus)
    check_rows(whole, own)
    for points in random.Random(4).sample(singles(undisturbed.calls), 16):
        plan = Plan(points=points)
        await lives(plan)
        assert plan.struck == 1
        assert await certificates(bus) == whole
