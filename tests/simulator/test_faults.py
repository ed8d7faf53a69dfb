"""Every fault of /control, seen from the wire."""

import json
from typing import Any

import aiohttp
import pytest

from tests.simulator.exchange import Exchange, exchange, until_closed

START = 1_735_689_600_000
MINUTE = 60_000
STREAM = "/ws/btcusdt@kline_1m"


async def closed(ex: Exchange, ws: aiohttp.ClientWebSocketResponse, minutes: int) -> list[int]:
    """Minutes (from the start) of the closed candles that arrive while `minutes` are played."""
    await ex.advance(minutes)
    await ws.send_json({"method": "LIST_SUBSCRIPTIONS", "id": 1})
    found = []
    while "result" not in (message := await ws.receive_json(timeout=5)):
        if message["k"]["x"]:
            found.append((message["k"]["t"] - START) // MINUTE)
    return found


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ({"kind": "drop", "count": 1}, [1, 2, 3]),
        ({"kind": "drop", "count": 2, "interval": "1m", "symbol": "BTCUSDT"}, [2, 3]),
        ({"kind": "drop", "interval": "5m"}, [0, 1, 2, 3]),
        ({"kind": "duplicate", "count": 1}, [0, 0, 1, 2, 3]),
        ({"kind": "reorder", "count": 1}, [1, 0, 2, 3]),
        ({"kind": "gap", "count": 2}, [2, 3]),
        ({"kind": "gap", "open_time_ms": START + 2 * MINUTE}, [0, 1, 3]),
        ({"kind": "silence"}, []),
    ],
)
async def test_closed_candles_on_the_stream(fault: dict[str, Any], expected: list[int]) -> None:
    async with exchange() as ex, ex.http.ws_connect(STREAM) as ws:
        given = await ex.control("faults", **fault)
        assert await closed(ex, ws, 4) == expected
        if fault["kind"] != "gap":
            assert len(await ex.klines(startTime=START, endTime=START + 3 * MINUTE)) == 4
        async with ex.http.delete(f"/control/faults/{given['id']}") as reply:
            assert reply.status == 200
        assert await closed(ex, ws, 1) == [4]


async def test_seeded_probability_repeats_itself() -> None:
    seen = []
    for _ in range(2):
        async with exchange() as ex, ex.http.ws_connect(STREAM) as ws:
            await ex.break_with("drop", probability=0.5, seed=7)
            seen.append(await closed(ex, ws, 12))
    assert seen[0] == seen[1]
    assert 0 < len(seen[0]) < 12


async def test_a_delayed_frame_comes_after_the_next_ones() -> None:
    async with exchange() as ex, ex.http.ws_connect(STREAM) as ws:
        await ex.break_with("delay", ms=150, count=1)
        assert await closed(ex, ws, 2) == [1]
        late = (await until_closed(ws))[-1]
        assert late["k"]["t"] == START


async def test_a_gap_never_existed_in_rest_either_and_can_end() -> None:
    async with exchange() as ex:
        given = await ex.break_with("gap", count=1)
        await ex.advance(3)
        opens = [row[0] for row in await ex.klines(startTime=START, limit=3)]
        assert START not in opens
        assert START + MINUTE in opens
        async with ex.http.delete(f"/control/faults/{given['id']}") as reply:
            assert (await reply.json())["ended"] == 1
        assert (await ex.klines(startTime=START, limit=3))[0][0] == START


async def test_a_revision_differs_between_stream_and_rest() -> None:
    async with exchange() as ex, ex.http.ws_connect(STREAM) as ws:
        await ex.break_with("revise", factor=1.01)
        await ex.advance(2)
        kline = (await until_closed(ws))[-1]["k"]
        first, second = await ex.klines(startTime=START, limit=2)
        assert float(first[4]) == pytest.approx(float(kline["c"]) * 1.01)
        assert float(first[2]) >= float(first[4])
        kline = (await until_closed(ws))[-1]["k"]
        assert second[4] == kline["c"]


async def test_a_revision_can_follow_on_the_stream() -> None:
    async with exchange() as ex, ex.http.ws_connect(STREAM) as ws:
        await ex.break_with("revise", on="resend", ms=30, factor=1.01)
        await ex.advance(1)
        one = (await until_closed(ws))[-1]["k"]
        two = (await until_closed(ws))[-1]["k"]
        assert one["t"] == two["t"] == START
        assert float(two["c"]) == pytest.approx(float(one["c"]) * 1.01)


async def test_garbage_on_the_stream_is_no_json() -> None:
    async with exchange() as ex, ex.http.ws_connect(STREAM) as ws:
        await ex.break_with("garbage", count=1)
        await ex.advance(1)
        for _ in range(3):
            await ws.receive_json(timeout=5)
        with pytest.raises(json.JSONDecodeError):
            await ws.receive_json(timeout=5)


@pytest.mark.parametrize(
    ("fault", "status", "code", "header"),
    [
        ({"kind": "429", "retry_after_s": 3}, 429, -1003, "3"),
        ({"kind": "418", "retry_after_s": 9}, 418, -1003, "9"),
        ({"kind": "status", "status": 500}, 500, -1000, None),
        ({"kind": "status", "status": 503}, 503, -1008, None),
        ({"kind": "status", "status": 504}, 504, -1007, None),
        ({"kind": "status", "status": 400, "code": -1021, "message": "late"}, 400, -1021, None),
    ],
)
async def test_rest_refusals(
    fault: dict[str, Any], status: int, code: int, header: str | None
) -> None:
    async with exchange() as ex:
        await ex.control("faults", path="klines", count=1, **fault)
        assert await ex.get("/api/v3/ping") == {}
        async with ex.http.get("/api/v3/klines?symbol=BTCUSDT&interval=1m") as reply:
            assert reply.status == status
            assert reply.headers.get("Retry-After") == header
            assert (await reply.json())["code"] == code
        assert len(await ex.klines(limit=2)) == 2


async def test_rest_answers_that_are_no_json() -> None:
    async with exchange() as ex:
        await ex.break_with("garbage", on="rest", count=1)
        async with ex.http.get("/api/v3/klines?symbol=BTCUSDT&interval=1m") as reply:
            assert reply.status == 200
            with pytest.raises(json.JSONDecodeError):
                json.loads(await reply.text())
        await ex.break_with("html", status=403, count=1)
        async with ex.http.get("/api/v3/klines?symbol=BTCUSDT&interval=1m") as reply:
            assert reply.status == 403
            assert reply.content_type == "text/html"
        await ex.break_with("timeout", seconds=0.5, ms=10)
        with pytest.raises(aiohttp.ClientError):
            await ex.klines()
        async with ex.http.delete("/control/faults") as reply:
            assert reply.status == 200
        assert len(await ex.klines(limit=2)) == 2


@pytest.mark.parametrize(
    ("body", "code"),
    [({}, 1000), ({"code": 1008, "reason": "kick"}, 1008), ({"abort": True}, 1006)],
)
async def test_all_connections_can_be_cut(body: dict[str, Any], code: int) -> None:
    async with exchange() as ex, ex.http.ws_connect(STREAM) as ws:
        assert (await ex.control("cut", **body))["ended"] == 1
        async for _ in ws:
            pass
        assert ws.close_code == code


async def test_server_shutdown_is_announced_then_happens() -> None:
    async with exchange() as ex, ex.http.ws_connect("/stream?streams=btcusdt@kline_1m") as ws:
        await ex.control("shutdown", ms=50)
        notice = await ws.receive_json(timeout=5)
        assert notice["stream"] == "!serverShutdown"
        assert notice["data"]["e"] == "serverShutdown"
        async for _ in ws:
            pass
        assert ws.close_code == 1001


async def test_connections_can_be_refused() -> None:
    async with exchange() as ex:
        await ex.break_with("refuse", status=503, count=1)
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await ex.http.ws_connect(STREAM)
        async with ex.http.ws_connect(STREAM) as ws:
            assert not ws.closed


async def test_pause_and_resume() -> None:
    async with exchange("--speed", "6000") as ex, ex.http.ws_connect(STREAM) as ws:
        await until_closed(ws)
        await ex.control("pause")
        stood = (await ex.state())["position_ms"]
        for _ in range(20):
            assert (await ex.state())["position_ms"] == stood
        stepped = await ex.advance(2)
        assert stepped["position_ms"] > stood
        await ex.control("resume")
        for _ in range(4):
            await until_closed(ws)


@pytest.mark.parametrize(
    ("path", "body", "part"),
    [
        ("faults", {"kind": "explode"}, "kind"),
        ("faults", {"kind": "drop", "colour": 1}, "colour"),
        ("faults", {"kind": "drop", "symbol": "NOPE"}, "NOPE"),
        ("faults", {"kind": "drop", "interval": "9m"}, "9m"),
        ("advance", {"candles": 0}, "candles"),
        ("limits", {"speed": 1}, "speed"),
    ],
)
async def test_bad_commands_are_refused_with_a_reason(
    path: str, body: dict[str, Any], part: str
) -> None:
    async with exchange() as ex, ex.http.post(f"/control/{path}", json=body) as reply:
        assert reply.status == 400
        assert part in (await reply.json())["error"]


async def test_advance_needs_a_market_that_stands() -> None:
    async with (
        exchange("--speed", "60") as ex,
        ex.http.post("/control/advance", json={}) as reply,
    ):
        assert reply.status == 400
