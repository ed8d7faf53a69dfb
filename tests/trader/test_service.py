"""The trader over a real Valkey: one line per signal, whatever breaks."""

import os
import signal as signals
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from shared.bus import Write
from shared.config import Settings
from shared.errors import Unavailable
from shared.events import Order
from tests.kills import Killed, Plan, pairs, run_until_caught_up, singles
from tests.notifier.desk import Desk, kline, open_desk, serving, signal
from tests.notifier.desk import settings as all_settings
from tests.valkey import Server
from trader.service import serve

JOURNAL = "order:{BTCUSDT}"


def settings() -> Settings:
    return all_settings(trader={"mode": "observe"})


@pytest.fixture
async def desk(valkey: Server) -> AsyncIterator[Desk]:
    async with open_desk(valkey.url) as desk:
        yield desk


def shown(line: Order) -> dict[str, Any]:
    """A line without the clocks' values."""
    values = {name: getattr(line, name) for name in line.__slots__ if name != "time_ms"}
    return values | {"reason": line.reason.split(":")[0]}


async def fill(desk: Desk) -> None:
    """Ten candles, a side on every other."""
    await desk.bus.write(*(kline(n) for n in range(10)))
    sides = ("BUY", "", "SELL", "")
    writes: list[Write[Any]] = [signal(n, 0.3, sides[n % 4]) for n in range(10)]
    await desk.bus.write(*writes)


async def test_every_signal_with_a_side_has_one_line(desk: Desk) -> None:
    async with serving(desk.url, "trader", serve, settings()) as session:
        await fill(desk)
        await desk.until(JOURNAL, 5)
        await desk.bus.write(kline(10), signal(10, 0.3, "SELL"))
        await desk.until(JOURNAL, 6)
        assert session.health.ready
        assert session.health.facts["mode"] == "observe"
    lines = await desk.orders()
    assert [line.open_time_ms for line in lines] == [
        signal(n).open_time_ms for n in (0, 2, 4, 6, 8, 10)
    ]
    assert [line.side for line in lines] == ["BUY", "SELL", "BUY", "SELL", "BUY", "SELL"]
    assert lines[-1].state == "OBSERVED"
    assert lines[-1].price == "60518.0"
    assert await desk.pending("trader") == 0
    (said,) = await desk.notices("trader")
    assert said.text == "observe: journals decisions, sends no orders"


async def test_a_new_group_or_a_replay_journals_nothing_twice(desk: Desk) -> None:
    await fill(desk)
    for _life in range(3):
        async with serving(desk.url, "trader", serve, settings()):
            await desk.until(JOURNAL, 5)
            await desk.until_read("trader", [signal(0).source])
        await desk.raw.xgroup_destroy("signal:{BTCUSDT}:1m", "trader")
    async with serving(desk.url, "trader", serve, settings()):
        await desk.bus.write(kline(12), signal(12, 0.3, "BUY"))
        lines = await desk.until(JOURNAL, 6)
    assert len(lines) == 6


async def test_a_poison_signal_is_kept_apart_and_never_acted_on(desk: Desk) -> None:
    key = "signal:{BTCUSDT}:1m"
    await desk.raw.xadd(key, {"data": b"\xc1 garbage", "side": "BUY"}, id="5-0")
    await desk.raw.xadd(key, {"side": "BUY"}, id="6-0")
    await desk.bus.write(signal(0, 0.3, "LONG"))
    await desk.bus.write(signal(1, 0.3, "BUY", symbol="ETHUSDT"))
    await desk.bus.write(Write(
        source=signal(0).source, event=signal(1, 0.3, "BUY").event,
        open_time_ms=signal(1).open_time_ms, sequence=1,
    ))  # fmt: skip
    async with serving(desk.url, "trader", serve, settings()):
        await desk.until(f"dead:{key}", 5)
        await desk.bus.write(kline(2), signal(2, 0.3, "BUY"))
        await desk.until(JOURNAL, 1)
    assert [line.open_time_ms for line in await desk.orders()] == [signal(2).open_time_ms]
    told = [n for n in await desk.notices("trader") if n.code == "dead_letter"]
    assert [n.level for n in told] == ["alert"] * 5
    assert "side 'LONG'" in told[2].text
    assert await desk.pending("trader") == 0


async def test_a_future_signal_is_dropped(desk: Desk) -> None:
    await desk.bus.write(kline(0), signal(1, 0.3, "BUY"))
    async with serving(desk.url, "trader", serve, settings()):
        await desk.until(JOURNAL, 1)
    (line,) = await desk.orders()
    assert line.state == "DROPPED"
    assert line.reason.startswith("from the future")


@pytest.mark.parametrize("error", [Killed, Unavailable])
async def test_no_single_kill_loses_or_doubles_a_line(
    valkey: Server, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    await _strike_everywhere(valkey, monkeypatch, error, twice=False)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_no_two_kills_lose_or_double_a_line(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _strike_everywhere(valkey, monkeypatch, Killed, twice=True)


async def _strike_everywhere(
    valkey: Server,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
    *,
    twice: bool,
) -> None:
    async def lived(plan: Plan) -> list[dict[str, Any]]:
        async with open_desk(valkey.url) as desk:
            await desk.raw.flushall()
            await fill(desk)
        await run_until_caught_up(monkeypatch, valkey.url, "trader", serve, settings(), plan)
        async with open_desk(valkey.url) as desk:
            assert await desk.pending("trader") == 0
            return [shown(line) for line in await desk.orders()]

    plan = Plan(error=error)
    undisturbed = await lived(plan)
    assert len(undisturbed) == 5
    for points in pairs(plan.calls)[::3] if twice else singles(plan.calls):
        assert await lived(Plan(points=points, error=error)) == undisturbed


async def test_sigterm_ends_the_process_with_zero(desk: Desk) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ITB_")}
    started = subprocess.Popen(  # noqa: ASYNC220  # returns at once
        [sys.executable, "-m", "trader"],
        env=environment | {"ITB_REDIS_URL": desk.url, "ITB_TRADER__MODE": "observe"},
        stderr=subprocess.PIPE,
    )
    await desk.bus.write(kline(0), signal(0, 0.3, "BUY"))
    await desk.until(JOURNAL, 1)
    started.send_signal(signals.SIGTERM)
    _, stderr = started.communicate(timeout=20)
    assert started.returncode == 0
    assert b"observe: journals decisions, sends no orders" in stderr
