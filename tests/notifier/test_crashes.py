"""Killed at every command: no message is lost silently, none is sent twice."""

import asyncio
from typing import Any

import pytest

from notifier.channel import Message
from notifier.messages import DUPLICATE
from notifier.service import Notifier
from shared.bus import Bus, Source
from shared.errors import Unavailable
from shared.events import Delivery
from shared.link import Link
from shared.runtime import Health, Session
from shared.streams import ALERT
from tests.kills import Killed, Plan, pairs, singles
from tests.notifier.desk import Desk, notice, open_desk, settings
from tests.valkey import Server

FRESH = 2  # with a 90 s limit: the last two of the candles


class Ear:
    """A channel that hears every message; `plan` may end the process before or after it does."""

    name = "ear"
    chat = "7"

    def __init__(self, plan: Plan) -> None:
        self.heard: list[str] = []
        self.plan = plan

    async def check(self) -> None:
        return None

    async def send(self, message: Message) -> int | None:
        if self.plan.error is Killed:  # a lost bus does not touch this channel
            self.plan.calls += 1
            self.plan.strike("before")
        self.heard.append(message.text)
        if self.plan.error is Killed:
            self.plan.strike("after")
        return len(self.heard)

    async def close(self) -> None:
        return None


async def live(monkeypatch: pytest.MonkeyPatch, desk: Desk, plan: Plan) -> Ear:
    """Starts the notifier again after every strike, until everything has its outcome."""
    ear, notifier = Ear(plan), Notifier()
    real_call = Link.call

    async def call(self: Link, *commands: Any, wait_s: float = 0.0) -> list[Any]:
        if self._connection.client_name.startswith("itb:desk"):
            return await real_call(self, *commands, wait_s=wait_s)
        plan.calls += 1
        plan.strike("before")
        replies = await real_call(self, *commands, wait_s=wait_s)
        plan.strike("after")
        return replies

    async def open_channel(*_: object) -> Ear:
        return ear

    async def life() -> None:
        async with Bus.session(desk.url, service="notifier") as bus:
            config = settings(notifier={"max_age_s": 90})
            await notifier.serve(
                Session(settings=config, bus=bus, health=Health(), alive=lambda: None)
            )

    with monkeypatch.context() as patch:
        patch.setattr(Link, "call", call)
        patch.setattr("notifier.service.open_channel", open_channel)
        for _life in range(len(plan.points) + 1):
            task = asyncio.ensure_future(life())
            done = asyncio.ensure_future(settled(desk.url))
            async with asyncio.timeout(20):
                await asyncio.wait({task, done}, return_when=asyncio.FIRST_COMPLETED)
            ended = done.done() and not task.done()
            for one in (task, done):
                one.cancel()
            results = await asyncio.gather(task, done, return_exceptions=True)
            if ended:
                return ear
            kinds = {Killed, Unavailable, asyncio.CancelledError, asyncio.TimeoutError}
            assert set(_leaves(results[0])) <= kinds, results
    raise AssertionError("the notifier never came to rest")


def _leaves(error: Any) -> list[type[BaseException]]:
    if isinstance(error, BaseExceptionGroup):
        return [kind for one in error.exceptions for kind in _leaves(one)]
    return [type(error)]


async def settled(url: str) -> None:
    """Returns once all is read, acknowledged and has its outcome. (A link of its own: a call that
    is cancelled closes it.)"""
    async with open_desk(url) as desk:
        while True:
            await desk.until_read("notifier")
            scores = await desk.notifications()
            alerts = [e.event for e in await desk.bus.tail(Source(ALERT), 100) if e.event]
            if all(events and events[-1].state != Delivery.SENDING for events in (scores, alerts)):
                return
            await asyncio.sleep(0.001)


async def prepared(url: str) -> None:
    async with open_desk(url) as desk:
        await desk.candles(6)
        await desk.bus.write(*(notice(f"gap {n}") for n in range(3)))


def counted(alerts: list[str]) -> int:
    return sum(int(t.split("×")[1].split(" ")[0]) if "×" in t else 1 for t in alerts)


async def check(desk: Desk, ear: Ear, kills: int) -> None:
    events = await desk.notifications()
    claims = [e.signal_id for e in events if e.state == Delivery.SENDING]
    outcomes = {e.signal_id: e.state for e in events if e.state != Delivery.SENDING}
    assert len(claims) == len(set(claims)) == FRESH
    assert set(outcomes) == set(claims)
    scores = [text for text in ear.heard if text.startswith("₿")]
    sent = sum(state == Delivery.SENT for state in outcomes.values())
    unknown = sum(state == Delivery.UNKNOWN for state in outcomes.values())
    assert sent + unknown == FRESH
    assert unknown <= kills
    assert sent <= len(scores) <= FRESH
    alerts = [text for text in ear.heard if "🚨" in text]
    assert counted(alerts) >= 3
    assert counted([t for t in alerts if not t.endswith(DUPLICATE)]) <= 3  # a repeat says so
    covered = (await desk.bus.tail(Source(ALERT), 1))[0].id
    last = (await desk.bus.last_id(Source(notice("").source.stream))) or ""
    ms, _, sequence = last.partition("-")
    assert covered == f"{ms}-{2 * int(sequence) + 1}"


@pytest.mark.parametrize("error", [Killed, Unavailable])
async def test_no_single_kill_loses_or_doubles_a_message(
    valkey: Server, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    plan = Plan(error=error)
    await prepared(valkey.url)
    async with open_desk(valkey.url) as desk:
        await check(desk, await live(monkeypatch, desk, plan), 0)
        calls = plan.calls
        assert calls > 15
        for points in singles(calls):
            await desk.raw.flushall()
            await prepared(valkey.url)
            plan = Plan(points=points, error=error)
            ear = await live(monkeypatch, desk, plan)
            await check(desk, ear, plan.struck)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_no_two_kills_lose_or_double_a_message(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan()
    await prepared(valkey.url)
    async with open_desk(valkey.url) as desk:
        await check(desk, await live(monkeypatch, desk, plan), 0)
        for points in pairs(plan.calls)[::3]:
            await desk.raw.flushall()
            await prepared(valkey.url)
            plan = Plan(points=points)
            ear = await live(monkeypatch, desk, plan)
            await check(desk, ear, plan.struck)
