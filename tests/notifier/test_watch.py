"""Silence is told once, an end of it too, and the notifier itself is watched from outside."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from notifier.service import Notifier
from notifier.watch import Roll, expected
from shared.events import Level
from shared.metrics import (
    GROUP_LAG,
    GROUP_PENDING,
    REDIS_AOF_OK,
    REDIS_MEMORY,
    SILENT,
    STREAM_ENTRIES,
)
from shared.streams import health_key
from tests.notifier.desk import Desk, open_desk, serving, settings, signal
from tests.valkey import Server

A, B = "featurizer:featurizer", "featurizer:f2"


@pytest.fixture
async def desk(valkey: Server) -> AsyncIterator[Desk]:
    async with open_desk(valkey.url) as desk:
        yield desk


def names(roll: Roll, stamps: dict[str, Any], now_s: float) -> list[tuple[str, bool]]:
    return [(change.name, change.is_silent) for change in roll.look(stamps, now_s)]


def test_who_beats_is_never_told() -> None:
    roll = Roll(30, ())
    roll.load({}, 0)
    assert all(names(roll, {A: beat}, 5.0 * beat) == [] for beat in range(100))


def test_silence_is_told_once_after_its_time_and_then_its_end() -> None:
    roll = Roll(30, ())
    roll.load({}, 0)
    assert names(roll, {A: 1}, 100) == []
    assert names(roll, {A: 1}, 130) == [], "30 s are not more than 30 s"
    assert names(roll, {}, 130.1) == [(A, True)], "whether or not its key has expired"
    assert names(roll, {}, 200) == []
    assert roll.look({A: 2}, 210)[0].silent_s == 110
    assert names(roll, {A: 2}, 241) == [(A, True)]


def test_an_expected_service_that_never_comes_is_told_and_any_instance_of_it_will_do() -> None:
    roll = Roll(30, ("collector:", "featurizer:"))
    roll.load({}, 0)
    assert names(roll, {B: 1}, 29) == []
    assert names(roll, {B: 2}, 31) == [("collector:", True)]
    assert names(roll, {B: 3, "collector:collector": 1}, 40) == [("collector:collector", False)]


def test_a_restart_of_the_notifier_repeats_nothing_and_forgets_nobody() -> None:
    roll = Roll(30, ("featurizer:",))
    roll.load({}, 0)
    names(roll, {A: 1, B: 1}, 1)
    assert names(roll, {B: 2}, 32) == [(A, True)]
    again = Roll(30, ("featurizer:",))
    again.load(json.loads(json.dumps(roll.kept())), 1000)
    assert names(again, {B: 2}, 1010) == []
    assert names(again, {B: 2}, 1041) == [(B, True)], "it beats no more"
    assert names(again, {A: 7}, 1050) == [(A, False)]


def test_an_instance_that_does_not_come_back_is_forgotten_but_not_an_expected_service() -> None:
    roll = Roll(30, ("collector:",))
    roll.load({}, 0)
    names(roll, {A: 1, "collector:collector": 1}, 1)
    assert len(names(roll, {}, 100)) == 2
    assert names(roll, {}, 90_000) == []
    assert set(roll.kept()) == {"collector:collector"}


def test_of_replicas_that_share_the_symbols_every_one_is_expected() -> None:
    names_ = expected(settings(shards={"featurizer": 2}))
    assert names_ == (
        "collector:",
        "featurizer:featurizer-0of2",
        "featurizer:featurizer-1of2",
        "predictor:",
    )
    roll = Roll(30, names_)
    roll.load({}, 0)
    heard = dict.fromkeys(("collector:c", "predictor:p", names_[1]), 1)
    assert names(roll, heard, 29) == []
    assert (names_[2], True) in names(roll, heard, 31)


async def beat(desk: Desk, number: int) -> None:
    body = {"ready": True, "pid": 7, "time_ms": number}
    await desk.bus.put(health_key("featurizer", "featurizer"), json.dumps(body))


async def test_people_are_told_of_silence_and_of_its_end(desk: Desk) -> None:
    await beat(desk, 1)
    config = settings(notifier={"watch": []})
    notifier = Notifier(silent_s=0.4)
    async with serving(desk.url, "notifier", notifier.serve, config) as session:
        await desk.until("alert", 2)
        assert (session.metrics.value(SILENT, "featurizer", "featurizer") or 0) > 0.4
        await beat(desk, 2)
        await desk.until("alert", 4)
    told = await desk.notices("notifier")
    ours = [(n.level, n.code) for n in told if "featurizer" in n.text]
    assert ours[:2] == [(Level.ALERT, "silent"), (Level.WARNING, "heard_again")]
    assert re.search(r"featurizer has been silent for \d+ s", told[0].text)


async def test_the_bus_is_measured_from_outside(desk: Desk) -> None:
    await desk.candles(3)
    await desk.bus.join([signal(0).source])  # a group `desk` that reads nothing
    config = settings()
    async with serving(desk.url, "notifier", Notifier().serve, config) as session:
        while session.metrics.value(REDIS_AOF_OK) is None:  # noqa: ASYNC110  # no event
            await asyncio.sleep(0.01)
        value = session.metrics.value
        assert value(GROUP_LAG, "signal", "desk") == 3
        assert value(GROUP_PENDING, "signal", "desk") == 0
        assert value(STREAM_ENTRIES, "kline") == 3
        assert value(STREAM_ENTRIES, "order") == 0
        assert (value(REDIS_MEMORY) or 0) > 100_000
        assert value(REDIS_AOF_OK) == 1


class Listener:
    """Who is called while all is well."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.calls = asyncio.Queue[str]()
        self.url = ""

    async def __aenter__(self) -> "Listener":
        app = web.Application()
        app.router.add_get("/{secret}", self._called)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/canary-5d1f"
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._runner.cleanup()

    async def _called(self, request: web.Request) -> web.Response:
        self.calls.put_nowait(request.path)
        return web.Response(status=self.status)


async def test_the_dead_man_address_is_called_while_messages_can_be_sent(desk: Desk) -> None:
    async with Listener() as listener:
        config = settings(notifier={"dead_man_url": listener.url})
        notifier = Notifier(ping_s=0.05)
        async with serving(desk.url, "notifier", notifier.serve, config) as session:
            for _ in range(3):
                async with asyncio.timeout(30):
                    assert await listener.calls.get() == "/canary-5d1f"
            session.health.facts["trouble"] = "Telegram does not answer"
            await asyncio.sleep(0)
            while not listener.calls.empty():
                listener.calls.get_nowait()
            await asyncio.sleep(0.3)
            assert listener.calls.qsize() <= 1, "one may have been under way"
            session.health.facts["trouble"] = ""
            async with asyncio.timeout(30):
                await listener.calls.get()


async def test_a_refused_call_is_logged_without_the_address(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    async with Listener(status=500) as listener:
        config = settings(notifier={"dead_man_url": listener.url})
        async with serving(desk.url, "notifier", Notifier(ping_s=0.01).serve, config):
            async with asyncio.timeout(30):
                await listener.calls.get()
                await listener.calls.get()
    assert "does not take our call: HTTP 500" in caplog.text
    assert "canary" not in caplog.text
