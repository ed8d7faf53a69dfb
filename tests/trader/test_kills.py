"""L1: the trader killed at its n-th I/O, before or after it took effect: every Redis command, every
write and sync of the journal, every request to the exchange; once, and twice.

The trader's own code runs in this process, against a real Valkey and the simulator. Times that
otherwise bound how late an order can be executed are short here, since none is late.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from shared.account import BinanceAccount
from shared.bus import Bus
from shared.errors import OutOfSync, Unavailable
from shared.link import Link
from shared.runtime import Health, Session
from tests.kills import Killed, Plan, _leaves
from tests.notifier.desk import SIGNALS
from tests.trader.rig import BUY, HOLD, SELL, Floor, floor, trading
from tests.trader.storm import problems, until_final
from tests.valkey import Server
from trader import desk
from trader.journal import Journal
from trader.service import Trader

_STEPS = (BUY, HOLD, SELL, BUY)


class Striking:
    """The plan's strikes at the trader's I/O; what the test itself does is not counted."""

    def __init__(self, patch: pytest.MonkeyPatch, plan: Plan) -> None:
        self.plan = plan
        self.names: list[str] = []
        self._wrap(patch, Link, "call", lambda link, *_: ":trader:" in link._connection.client_name)
        self._wrap(patch, BinanceAccount, "_send", lambda *_: True)
        for name in ("append", "sync"):
            self._wrap_plain(patch, name)

    def _wrap(
        self, patch: pytest.MonkeyPatch, kind: type, name: str, counts: Callable[..., bool]
    ) -> None:
        real: Callable[..., Awaitable[Any]] = getattr(kind, name)

        async def wrapped(one: Any, *args: Any, **more: Any) -> Any:
            if not counts(one, *args):
                return await real(one, *args, **more)
            self.begin(f"{kind.__name__}.{name} {str(args[:2])[:80]}")
            result = await real(one, *args, **more)
            self.plan.strike("after")
            return result

        patch.setattr(kind, name, wrapped)

    def _wrap_plain(self, patch: pytest.MonkeyPatch, name: str) -> None:
        real = getattr(Journal, name)

        def wrapped(one: Journal, *args: Any) -> Any:
            self.begin(f"Journal.{name}")
            result = real(one, *args)
            self.plan.strike("after")
            return result

        patch.setattr(Journal, name, wrapped)

    def begin(self, name: str) -> None:
        self.plan.calls += 1
        self.names.append(name)
        self.plan.strike("before")


async def lives(market: Floor, folder: Path) -> None:
    """One life of the trader after the other, each until it is killed."""
    settings = trading(folder, market.ex, max_age_s=1e6)
    while True:
        try:
            with Trader() as trader:
                async with Bus.session(market.desk.url, service="trader") as bus:
                    session = Session(
                        settings=settings, bus=bus, health=Health(), alive=lambda: None
                    )
                    await trader.serve(session)
        except BaseException as error:  # sorted right below
            kinds = set(_leaves(error))
            if not kinds <= {Killed, Unavailable, OutOfSync}:
                raise


async def play(url: str, folder: Path, patch: pytest.MonkeyPatch, plan: Plan) -> list[str]:
    """The steps of the market, each taken once the last one's signal is done; what is wrong."""
    async with floor(url) as market:
        await market.desk.raw.flushall()
        market.desk.bus._known.clear()
        await market.candle(HOLD)
        before = await market.balances()
        with patch.context() as patched:
            striking = Striking(patched, plan)
            for name, value in (
                ("SETTLE_MS", 300), ("ASK_MS", 50), ("FIRST_ASK_MS", 20), ("POLL_MS", 200),
            ):  # fmt: skip
                patched.setattr(desk, name, value)
            living = asyncio.create_task(lives(market, folder))
            try:
                async with asyncio.timeout(90):
                    for score in (*_STEPS, SELL):
                        await until_read(market, living)
                        await market.candle(score)
                    await until_read(market, living)
                lines = await until_final(market)
            finally:
                living.cancel()
                await asyncio.gather(living, return_exceptions=True)
        plan.log[:] = striking.names
        found = await problems(market, lines, folder, before)
        if not plan.points and sum(line.state == "FILLED" for line in lines) < len(_STEPS) - 1:
            found.append("hardly anything was traded")
        return found


async def until_read(market: Floor, living: "asyncio.Task[None]") -> None:
    """Until the trader has done all signals, or is dead for a reason that nobody planned."""
    while True:
        if living.done():
            living.result()
        positions = await market.desk.bus.group_position(SIGNALS)
        newest = await market.desk.bus.last_id(SIGNALS)
        delivered, pending = positions.get("trader", ("0-0", 0))
        if delivered == newest and not pending:
            return
        await asyncio.sleep(0.005)


async def strike_all(
    valkey: Server, folder: Path, patch: pytest.MonkeyPatch, every: int, start: int, *, twice: bool
) -> int:
    plan = Plan()
    assert await play(valkey.url, folder / "undisturbed", patch, plan) == []
    calls = plan.calls
    points = [(n, when) for n in range(1, calls + 1) for when in ("before", "after")]
    plans = [frozenset({point}) for point in points]
    if twice:
        plans = [
            frozenset({(n, when), (n + m, other)})
            for (n, when), m, other in itertools.product(
                points, range(1, calls, 7), ("before", "after")
            )
        ]
    done = 0
    for strikes in plans[start::every]:
        plan = Plan(points=strikes)
        found = await play(valkey.url, folder / f"plan-{done}", patch, plan)
        at = [plan.log[n - 1] for n, _ in sorted(strikes) if n <= len(plan.log)]
        assert not found, f"{sorted(strikes)} {at}: {found}"
        done += 1
    return done


async def test_killed_at_some_of_its_steps_every_book_stays_right(
    valkey: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await strike_all(valkey, tmp_path, monkeypatch, 23, 3, twice=False) >= 5


@pytest.mark.slow
@pytest.mark.timeout(1_800)
async def test_killed_at_every_step_every_book_stays_right(
    valkey: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await strike_all(valkey, tmp_path, monkeypatch, 1, 0, twice=False) >= 100


@pytest.mark.slow
@pytest.mark.timeout(1_800)
async def test_killed_twice_every_book_stays_right(
    valkey: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await strike_all(valkey, tmp_path, monkeypatch, 61, 5, twice=True) >= 50
