"""What the page gets of a bus that is written to, lost, deleted and written to by strangers."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as redis

from dashboard.service import Dashboard
from shared.bus import Bus, Source, Write
from shared.config import Settings
from shared.errors import OutOfSync, Unavailable
from shared.events import Level, Notice, Parity
from shared.runtime import Health, Session
from shared.streams import KLINE, NOTICE, PARITY, health_key
from tests.dashboard.recorded import (
    MINUTE,
    NAMES,
    START,
    Recording,
    notice,
    put_heartbeats,
    put_release,
    settings_for,
)
from tests.dashboard.rig import running
from tests.valkey import Server, free_port
from tests.waiting import until


@pytest.fixture
async def bus(valkey: Server) -> AsyncIterator[Bus]:
    async with Bus.session(valkey.url, service="desk") as bus:
        yield bus


async def served_again_and_again(dashboard: Dashboard, settings: Settings) -> None:
    """One session after the other, as `shared.runtime` opens them; without its watchdog, which
    would end this process a minute after the test."""
    while True:
        try:
            async with Bus.session(settings.redis_url, service="dashboard") as bus:
                session = Session(settings=settings, bus=bus, health=Health(), alive=lambda: None)
                await dashboard.serve(session)
        except* (Unavailable, OutOfSync):
            pass  # the next one begins from the streams
        await asyncio.sleep(0.05)


async def test_a_page_gets_the_window_and_then_each_candle_as_it_comes(
    valkey: Server, bus: Bus, tmp_path: Path
) -> None:
    recording = Recording(120, gap_every=50)
    await recording.put(bus, range(100))
    await put_heartbeats(bus)
    await bus.write(notice("a <b>bold</b> notice"))
    release = put_release(settings_for(tmp_path, valkey.url))
    rig_ = running(tmp_path, valkey.url, bus, password=False)
    async with rig_ as rig, rig.browser() as browser, browser.live() as live:
        snapshot = await live.until("snapshot")
        assert snapshot["columns"]["time"] == [START + n * MINUTE for n in range(100)]
        assert snapshot["columns"]["release"] == [recording.release] * 100
        orders = await live.until("orders")
        sides = [n for n in range(100) if recording.signal(n).side]
        assert [o["open_time_ms"] for o in orders["orders"]] == [START + n * MINUTE for n in sides]
        assert (await live.until("notices"))["notices"][-1]["text"] == "a <b>bold</b> notice"
        status = await live.until("status")
        ready = {one["service"] for one in status["services"] if one["ready"]}
        assert {"collector", "featurizer", "predictor", "notifier", "trader"} <= ready
        releases = await live.until("releases")
        assert releases["live"] == release.id
        assert [one["name"] for one in releases["releases"][0]["models"]] == list(release.models)
        assert releases["releases"][0]["report"]
        for number in range(100, 120):
            await recording.put(bus, [number])
            row: list[Any] = []
            while not row or row[7:11] == [None, "", "", ""]:
                rows = (await live.until("rows"))["rows"]
                row = next(r for r in rows if r[0] == START + number * MINUTE)
            signal = recording.signal(number)
            assert row[8:11] == [signal.side, signal.invalid, signal.release]


async def test_every_page_sees_the_same(valkey: Server, bus: Bus, tmp_path: Path) -> None:
    recording = Recording(60)
    await recording.put(bus, range(20))
    rig_ = running(tmp_path, valkey.url, bus, password=False)
    async with rig_ as rig, rig.browser() as browser, AsyncExitStack() as stack:
        pages = [await stack.enter_async_context(browser.live()) for _ in range(10)]
        for page in pages:
            await page.until("releases")
        async with redis.Redis.from_url(valkey.url) as raw:
            named = [c["name"] for c in await raw.client_list()]
            assert sum(name.startswith("itb:dashboard:") for name in named) == 2  # links of one
            groups = await raw.xinfo_groups("kline:{BTCUSDT}:1m")
            assert groups == []
        await recording.put(bus, range(20, 60))

        async def followed(page: Any) -> dict[int, list[Any]]:
            rows: dict[int, list[Any]] = {}
            while len(rows) < 40 or not all(row[10] for row in rows.values()):
                rows.update({row[0]: row for row in (await page.until("rows"))["rows"]})
            return rows

        found = await asyncio.gather(*map(followed, pages))
        assert all(one == found[0] for one in found)


async def test_the_page_lives_through_the_loss_of_the_bus_and_has_all_of_it_afterwards(
    valkey: Server, bus: Bus, tmp_path: Path
) -> None:
    recording = Recording(40)
    await recording.put(bus, range(20))
    settings = settings_for(tmp_path, valkey.url)
    dashboard = Dashboard(settings)
    async with asyncio.timeout(90):
        task = asyncio.ensure_future(served_again_and_again(dashboard, settings))
        try:
            await until(lambda: dashboard.hub.board is not None)
            valkey.sync()
            valkey.kill9()
            await until(lambda: dashboard.hub.board is None)
            assert "no connection" in dashboard.hub.trouble
            valkey.start()
            async with Bus.session(valkey.url, service="desk2") as again:
                await recording.put(again, range(20, 40))
                await until(lambda: len(_rows(dashboard)) == 40)
            assert _rows(dashboard) == [START + n * MINUTE for n in range(40)]
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _rows(dashboard: Dashboard) -> Sequence[int]:
    if dashboard.hub.board is None:
        return ()
    found: Sequence[int] = dashboard.hub.board.tracks["BTCUSDT"].snapshot()["columns"]["time"]
    return found


async def test_streams_that_begin_again_are_read_again(
    valkey: Server, bus: Bus, tmp_path: Path
) -> None:
    await Recording(30).put(bus)
    settings = settings_for(tmp_path, valkey.url)
    dashboard = Dashboard(settings)
    async with asyncio.timeout(90), redis.Redis.from_url(valkey.url) as raw:
        task = asyncio.ensure_future(served_again_and_again(dashboard, settings))
        try:
            await until(lambda: dashboard.hub.board is not None)
            await raw.flushall()
            async with Bus.session(valkey.url, service="desk2") as again:
                await Recording(7, seed=9).put(again)
            await until(lambda: len(_rows(dashboard)) == 7)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_what_cannot_be_read_does_no_harm(valkey: Server, bus: Bus, tmp_path: Path) -> None:
    recording = Recording(12)
    await recording.put(bus, range(10))
    async with redis.Redis.from_url(valkey.url) as raw:
        await raw.xadd("kline:{BTCUSDT}:1m", {"data": b"\xc1"}, id=f"{START + 10 * MINUTE}-0")
        await raw.xadd("order:{BTCUSDT}", {"data": b"nonsense"})
        await raw.xadd("notice", {"x": "y"})
        await raw.set(health_key("collector", "collector"), b"{")
        await raw.set(health_key("trader", "trader"), b"[]")
        await raw.set(health_key("notifier", "notifier"), b'{"service": 3, "ready": "yes"}')
    rig_ = running(tmp_path, valkey.url, bus, password=False)
    async with rig_ as rig, rig.browser() as browser, browser.live() as live:
        snapshot = await live.until("snapshot")
        assert len(snapshot["columns"]["time"]) == 10
        status = await live.until("status")
        assert not any(one["ready"] is True for one in status["services"])
        found = json.loads((await browser.get("/api/ledger"))[1])
        assert found["counts"]["unreadable"] == 2  # the candle and the line of the journal
        await recording.put(bus, [11])
        row = (await live.until("rows"))["rows"][0]
        assert row[0] == START + 11 * MINUTE


async def test_features_without_their_names_are_told(
    valkey: Server, bus: Bus, tmp_path: Path
) -> None:
    recording = Recording(5)
    await bus.write(*recording.writes(range(5)))
    rig_ = running(tmp_path, valkey.url, bus, password=False)
    async with rig_ as rig, rig.browser() as browser:
        found = json.loads((await browser.get("/api/features"))[1])
        assert found["features"] == []
        assert "names of schema" in found["problem"]
        await bus.put(f"schema:{recording.schema}", json.dumps(NAMES))
        found = json.loads((await browser.get("/api/features"))[1])
        assert len(found["features"]) == 6


async def test_another_symbol_is_shown_when_the_page_asks_for_it(
    valkey: Server, bus: Bus, tmp_path: Path
) -> None:
    await Recording(5).put(bus)
    await Recording(8, symbol="ETHUSDT").put(bus)
    rig_ = running(tmp_path, valkey.url, bus, password=False, symbols=["BTCUSDT", "ETHUSDT"])
    async with rig_ as rig, rig.browser() as browser, browser.live() as live:
        assert len((await live.until("snapshot"))["columns"]["time"]) == 5
        assert set((await live.until("tickers"))["tickers"]) == {"BTCUSDT", "ETHUSDT"}
        await live.socket.send_str('{"symbol": "ETHUSDT"}')
        snapshot = await live.until("snapshot")
        assert (snapshot["symbol"], len(snapshot["columns"]["time"])) == ("ETHUSDT", 8)


async def test_the_parity_certificate_is_shown(valkey: Server, bus: Bus, tmp_path: Path) -> None:
    def certificate(number: int, unequal: int) -> Write[Parity]:
        event = Parity(
            open_time_ms=START + number * MINUTE, first_ms=START, equal=1, unequal=unequal,
            unchecked=0, total_equal=number, total_unequal=unequal, total_unchecked=2,
            first="score: 1 on the bus, 2 recomputed" if unequal else "",
        )  # fmt: skip
        source = Source(PARITY, "BTCUSDT", "1m")
        return Write(source=source, event=event, open_time_ms=event.open_time_ms)

    await bus.write(certificate(3, 0), certificate(5, 0))
    rig_ = running(tmp_path, valkey.url, bus, password=False)
    async with rig_ as rig, rig.browser() as browser, browser.live() as live:
        assert (await live.until("parity"))["total_equal"] == 5
        await bus.write(certificate(9, 1))
        found = await live.until("parity")
        assert (found["total_unequal"], found["first"][:5]) == (1, "score")


async def test_orders_and_notices_reach_the_page_as_text(
    valkey: Server, bus: Bus, tmp_path: Path
) -> None:
    rig_ = running(tmp_path, valkey.url, bus, password=False)
    async with rig_ as rig, rig.browser() as browser, browser.live() as live:
        await live.until("releases")
        text = '"><script>alert(1)</script>'
        event = Notice(service=text, level=Level.ALERT, code=text, text=text, time_ms=1)
        await bus.write(Write(source=Source(NOTICE), event=event))
        found = (await live.until("notices"))["notices"][0]
        assert (found["service"], found["code"], found["text"]) == (text, text, text)


# -- the process ----------------------------------------------------------------------------------


def start(url: str, **variables: str) -> "subprocess.Popen[str]":
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ITB_")}
    environment |= {"ITB_REDIS_URL": url} | variables
    return subprocess.Popen(
        [sys.executable, "-m", "dashboard"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


async def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    _, err = await asyncio.to_thread(process.communicate, timeout=60)
    return process.returncode, err


async def test_a_port_that_is_taken_is_told_in_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, err = await ended(start("redis://127.0.0.1:1/0", ITB_DASHBOARD__PORT=port))
    assert code == 1
    assert err.startswith("error: dashboard.host 127.0.0.1, dashboard.port")
    assert err.count("\n") == 1


async def test_an_open_door_without_a_login_is_refused_at_start() -> None:
    code, err = await ended(start("redis://127.0.0.1:1/0", ITB_DASHBOARD__HOST="0.0.0.0"))  # noqa: S104  # that is the fault
    assert code == 2
    assert "is open to other machines" in err


async def test_the_process_serves_without_a_bus_and_ends_when_told(tmp_path: Path) -> None:
    port = free_port()
    process = start("redis://127.0.0.1:1/0", ITB_DASHBOARD__PORT=str(port))
    try:
        import aiohttp

        async with asyncio.timeout(60), aiohttp.ClientSession() as session:
            while True:
                try:
                    async with session.get(f"http://127.0.0.1:{port}/healthz") as reply:
                        assert reply.status == 503
                        break
                except aiohttp.ClientConnectorError:
                    assert process.poll() is None
                    await asyncio.sleep(0.05)
            async with session.get(f"http://127.0.0.1:{port}/") as reply:
                assert reply.status == 200
            async with session.get(f"http://127.0.0.1:{port}/api/ledger") as reply:
                assert reply.status == 503
        process.terminate()
        code, err = await ended(process)
        assert code == 0, err
        assert KLINE.name not in err
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
