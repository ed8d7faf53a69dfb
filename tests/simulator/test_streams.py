"""The websocket streams, over the wire, with two client libraries."""

import asyncio
import json
from decimal import Decimal
from itertools import pairwise
from typing import Any

import aiohttp
import pytest
import websockets

from tests.simulator.exchange import events, exchange, until_closed

START = 1_735_689_600_000
MINUTE = 60_000


def numbers(kline: dict[str, Any]) -> dict[str, Decimal]:
    return {key: Decimal(str(kline[key])) for key in "ohlcvnqVQ"}


async def test_open_updates_converge_to_the_closed_candle_which_is_the_rest_row() -> None:
    async with exchange() as ex, ex.http.ws_connect("/ws/btcusdt@kline_1m") as ws:
        await ex.advance(4)
        for minute in range(4):
            updates = await until_closed(ws)
            assert len(updates) >= 4
            klines = [u["k"] for u in updates]
            assert [k["x"] for k in klines] == [False] * (len(klines) - 1) + [True]
            assert {k["t"] for k in klines} == {START + minute * MINUTE}
            for before, after in pairwise(klines):
                b, a = numbers(before), numbers(after)
                assert a["o"] == b["o"]
                assert a["h"] >= b["h"]
                assert a["l"] <= b["l"]
                assert all(a[key] >= b[key] for key in "vnqVQ")
                assert after["f"] == before["f"]
                assert after["L"] - after["f"] + 1 == after["n"]
            final = klines[-1]
            assert 0 <= updates[-1]["E"] - final["T"] < 2_000
            (row,) = await ex.klines(startTime=final["t"], limit=1)
            assert row[:11] == [
                final["t"], final["o"], final["h"], final["l"], final["c"], final["v"],
                final["T"], final["q"], final["n"], final["V"], final["Q"],
            ]  # fmt: skip


async def test_larger_intervals_close_with_their_last_minute() -> None:
    async with exchange() as ex:
        path = "/stream?streams=btcusdt@kline_5m/btcusdt@kline_1m"
        async with ex.http.ws_connect(path) as ws:
            await ex.advance(5)
            closed: list[tuple[str, dict[str, Any]]] = []
            while len(closed) < 6:
                message = await ws.receive_json(timeout=5)
                if message["data"]["k"]["x"]:
                    closed.append((message["stream"], message["data"]["k"]))
        five = next(k for name, k in closed if name.endswith("5m"))
        minutes = [k for name, k in closed if name.endswith("1m")]
        assert sum(Decimal(k["v"]) for k in minutes) == Decimal(five["v"])
        assert five["o"] == minutes[0]["o"]
        assert five["c"] == minutes[-1]["c"]
        assert (await ex.klines("5m", startTime=START, limit=1))[0][5] == five["v"]


@pytest.mark.parametrize(
    "path", ["/ws", "/ws/0", "/stream/ws/0", "/stream", "/market/ws", "/market/stream/ws/1"]
)
async def test_every_path_takes_a_subscription(path: str) -> None:
    async with exchange() as ex, websockets.connect(ex.ws_url + path) as ws:
        await ws.send(json.dumps({"method": "SUBSCRIBE", "params": ["btcusdt@kline_1m"], "id": 1}))
        assert json.loads(await ws.recv()) == {"result": None, "id": 1}
        await ex.advance()
        message = json.loads(await ws.recv())
        assert ("stream" in message) == (path == "/stream")
        assert message.get("data", message)["e"] == "kline"


@pytest.mark.parametrize(
    ("request_", "reply"),
    [
        ({"method": "LIST_SUBSCRIPTIONS", "id": 3}, {"result": ["btcusdt@kline_1m"], "id": 3}),
        ({"method": "GET_PROPERTY", "params": ["combined"], "id": 2}, {"result": False, "id": 2}),
        (
            {"method": "SET_PROPERTY", "params": ["combined", True], "id": "a-b"},
            {"result": None, "id": "a-b"},
        ),
        (
            {"method": "SET_PROPERTY", "params": ["other", True], "id": 1},
            {"code": 0, "msg": "Unknown property", "id": 1},
        ),
        (
            {"method": "SET_PROPERTY", "params": ["combined", 1], "id": 1},
            {"code": 1, "msg": "Invalid value type: expected Boolean", "id": 1},
        ),
        ({"method": "SUBSCRIBE", "params": ["X@kline_1m"], "id": 1}, {"result": None, "id": 1}),
        ({"method": "UNSUBSCRIBE", "params": ["no@x"], "id": None}, {"result": None, "id": None}),
    ],
)  # fmt: skip
async def test_control_messages(request_: dict[str, Any], reply: dict[str, Any]) -> None:
    async with exchange() as ex, ex.http.ws_connect("/ws/btcusdt@kline_1m") as ws:
        await ws.send_json(request_)
        assert await ws.receive_json(timeout=5) == reply


@pytest.mark.parametrize(
    ("text", "code", "part"),
    [
        ("{nonsense", 3, "Invalid JSON"),
        ('{"id":1}', 2, "missing field `method`"),
        ('{"method":"JUMP","id":1}', 2, "unknown variant `JUMP`"),
        ('{"method":"SUBSCRIBE","params":"x","id":1}', 2, "array of stream names"),
        ('{"method":"LIST_SUBSCRIPTIONS","params":[1],"id":1}', 2, "too many parameters"),
        ('{"method":"LIST_SUBSCRIPTIONS","id":1.5}', 2, "request ID"),
    ],
)
async def test_bad_control_messages(text: str, code: int, part: str) -> None:
    async with exchange() as ex, ex.http.ws_connect("/ws") as ws:
        await ws.send_str(text)
        reply = await ws.receive_json(timeout=5)
        assert reply["code"] == code
        assert part in reply["msg"]
        assert "result" not in reply


async def test_too_many_streams_are_refused_in_the_older_shape() -> None:
    async with exchange() as ex, ex.http.ws_connect("/ws") as ws:
        names = [f"s{i}usdt@kline_1m" for i in range(1025)]
        await ws.send_json({"method": "SUBSCRIBE", "params": names, "id": 9})
        reply = await ws.receive_json(timeout=5)
        assert reply == {"error": {"code": 4, "msg": "Too many subscriptions"}, "id": 9}


async def test_uppercase_and_unknown_streams_are_accepted_and_silent() -> None:
    async with exchange() as ex:
        path = "/stream?streams=BTCUSDT@kline_1m/nope@kline_1m/btcusdt@kline_9m/btcusdt@kline_1m"
        async with ex.http.ws_connect(path) as ws:
            await ex.advance()
            await ws.send_json({"method": "LIST_SUBSCRIPTIONS", "id": 1})
            while True:
                message = await ws.receive_json(timeout=5)
                if "result" in message:
                    break
                assert message["stream"] == "btcusdt@kline_1m"
            assert len(message["result"]) == 4


async def test_futures_streams_speak_only_on_their_own_route() -> None:
    async with exchange() as ex:
        names = "btcusdt@kline_1m/btcusdt@bookTicker/btcusdt@markPrice@1s"
        heard: dict[str, set[str]] = {}
        for route in ("market", "public"):
            async with ex.http.ws_connect(f"/{route}/stream?streams={names}") as ws:
                await ex.advance()
                await ws.send_json({"method": "LIST_SUBSCRIPTIONS", "id": 1})
                heard[route] = set()
                while "result" not in (message := await ws.receive_json(timeout=5)):
                    heard[route].add(message["data"]["e"])
        assert heard == {"market": {"kline", "markPriceUpdate"}, "public": {"bookTicker"}}


async def test_microseconds_and_time_zone() -> None:
    async with exchange("--history", "2000") as ex:
        path = "/stream?streams=btcusdt@kline_1d@+08:00&timeUnit=MICROSECOND"
        async with ex.http.ws_connect(path) as ws:
            await ex.advance()
            (event, *_) = await events(ws, 1)
        assert event["k"]["t"] == (START - 8 * 3_600_000) * 1000
        assert event["k"]["T"] == event["k"]["t"] + 86_400_000_000 - 1


async def test_a_flood_of_messages_is_closed_with_1008() -> None:
    async with exchange() as ex, ex.http.ws_connect("/ws") as ws:
        for number in range(6):
            await ws.send_json({"method": "LIST_SUBSCRIPTIONS", "id": number})
        async for _ in ws:
            pass
        assert ws.close_code == 1008


async def test_depth_events_carry_a_snapshot_forward() -> None:
    async with exchange() as ex:
        async with ex.http.ws_connect("/ws/btcusdt@depth@100ms") as ws:
            await ex.advance()
            first = (await events(ws, 1))[0]
            snapshot = await ex.get("/api/v3/depth", symbol="BTCUSDT", limit=5000)
            assert snapshot["lastUpdateId"] >= first["U"]
            book = {s: {Decimal(p): Decimal(q) for p, q in snapshot[s]} for s in ("bids", "asks")}
            known = snapshot["lastUpdateId"]
            await ex.advance(2)
            after = await ex.get("/api/v3/depth", symbol="BTCUSDT", limit=5000)
            while known < after["lastUpdateId"]:
                (event,) = await events(ws, 1)
                if event["u"] <= known:
                    continue
                assert event["U"] == known + 1
                for side, short in (("bids", "b"), ("asks", "a")):
                    for price, amount in event[short]:
                        book[side][Decimal(price)] = Decimal(amount)
                known = event["u"]
        for side in ("bids", "asks"):
            now = {Decimal(p): Decimal(q) for p, q in after[side]}
            assert {p: q for p, q in book[side].items() if q} == now


async def test_trade_streams_add_up_to_the_candle() -> None:
    async with exchange() as ex:
        path = "/stream?streams=btcusdt@aggTrade/btcusdt@trade/btcusdt@kline_1m"
        async with ex.http.ws_connect(path) as ws:
            await ex.advance()
            found: dict[str, list[dict[str, Any]]] = {"aggTrade": [], "trade": [], "kline": []}
            while not (found["kline"] and found["kline"][-1]["k"]["x"]):
                (event,) = await events(ws, 1)
                found[event["e"]].append(event)
        kline = found["kline"][-1]["k"]
        for name in ("aggTrade", "trade"):
            # the candle's first trade stands at the minute's very start, before the subscription
            volume = sum(Decimal(e["q"]) for e in found[name] if e["T"] <= kline["T"])
            opened = await ex.get("/api/v3/aggTrades", symbol="BTCUSDT", startTime=START, limit=1)
            assert volume + Decimal(opened[0]["q"]) == Decimal(kline["v"])
        assert [e["t"] for e in found["trade"]] == list(
            range(found["trade"][0]["t"], found["trade"][-1]["t"] + 1)
        )


async def test_at_full_speed_the_market_waits_for_its_slowest_consumer() -> None:
    async with exchange("--speed", "max") as ex:
        assert (await ex.state())["steps_done"] == 60  # nobody listens: it stands still
        async with (
            ex.http.ws_connect("/ws/btcusdt@kline_1m") as quick,
            ex.http.ws_connect("/ws/btcusdt@kline_1m") as frozen,
        ):
            await until_closed(quick)
            await until_closed(quick)
            for _ in range(20):
                held = (await ex.state())["steps_done"]
            assert held == 62

            async def read(ws: aiohttp.ClientWebSocketResponse, candles: int) -> None:
                for _ in range(candles):
                    await until_closed(ws)

            await asyncio.gather(read(frozen, 3), read(quick, 2))
            assert (await ex.state())["steps_done"] > held


async def test_an_advance_waits_for_its_readers_when_it_is_told_to() -> None:
    async with exchange() as ex, ex.http.ws_connect("/ws/btcusdt@kline_1m") as ws:
        advancing = asyncio.create_task(ex.control("advance", candles=2, taken=True))
        while (await ex.state())["steps_done"] < 62:
            pass
        for _ in range(20):
            await ex.state()
        assert not advancing.done()
        for _ in range(2):
            await until_closed(ws)
        reading = asyncio.create_task(ws.receive())  # the ping stands behind the last candle
        assert (await asyncio.wait_for(advancing, 30))["played"] == 2
        reading.cancel()


async def test_at_full_speed_some_candles_may_go_ahead() -> None:
    async with (
        exchange("--speed", "max", "--ahead", "3") as ex,
        ex.http.ws_connect("/ws/btcusdt@kline_1m") as ws,
    ):
        await until_closed(ws)
        for _ in range(20):
            assert (await ex.state())["steps_done"] == 63
        for _ in range(3):  # the ping stands behind the third
            await until_closed(ws)
        assert (await ex.state())["steps_done"] == 66


@pytest.mark.parametrize("path", ["/stream", "/ws", "/stream?timeUnit=MICROSECOND"])
async def test_what_is_written_ahead_is_what_is_written_when_it_goes_out(path: str) -> None:
    """A fault makes every message be looked at singly; this one strikes nothing."""
    names = [f"{s}usdt@{kind}" for kind in ("kline_1m", "kline_5m", "aggTrade") for s in "ab"]
    heard: list[list[str]] = []
    for speed, is_watched in (("max", False), ("manual", False), ("manual", True)):
        async with (
            exchange("--symbol", "AUSDT", "BUSDT", "--speed", speed) as ex,
            ex.http.ws_connect(path) as ws,
        ):
            if is_watched:
                await ex.break_with("drop", symbol="AUSDT", interval="1h")
            await ws.send_json({"method": "SUBSCRIBE", "params": names, "id": 1})
            assert "result" in await ws.receive_json(timeout=30)
            if speed == "manual":
                await ex.advance(70)
            heard.append([await ws.receive_str(timeout=30) for _ in range(5_000)])
    assert heard[0] == heard[1] == heard[2]


async def test_a_subscription_between_two_candles_is_heard_from_the_next_one_on() -> None:
    async with (
        exchange("--speed", "max", "--symbol", "AUSDT", "BUSDT") as ex,
        ex.http.ws_connect("/stream?streams=ausdt@kline_1m") as ws,
    ):
        for _ in range(3):
            while not (await ws.receive_json(timeout=30))["data"]["k"]["x"]:
                pass
        await ws.send_json({"method": "SUBSCRIBE", "params": ["busdt@kline_1m"], "id": 1})
        while "result" not in (await ws.receive_json(timeout=30)):
            pass
        opens: dict[str, list[int]] = {"AUSDT": [], "BUSDT": []}
        while len(opens["BUSDT"]) < 40:
            kline = (await ws.receive_json(timeout=30))["data"]["k"]
            if kline["x"]:
                opens[kline["s"]].append(kline["t"])
        for times in opens.values():
            assert times == list(range(times[0], times[-1] + 1, MINUTE))


async def test_a_client_that_never_answers_pings_is_dropped() -> None:
    async with exchange("--speed", "max") as ex:
        await ex.control("limits", ping_s=0.1, pong_s=0.3)
        async with (
            ex.http.ws_connect("/ws/btcusdt@kline_1m", autoping=False) as deaf,
            ex.http.ws_connect("/ws/btcusdt@kline_1m") as quick,
        ):
            for _ in range(5):
                await until_closed(quick)
            while not deaf.closed:
                await deaf.receive(timeout=5)


async def test_paced_time_does_not_drift() -> None:
    async with exchange("--speed", "600") as ex, ex.http.ws_connect("/ws/btcusdt@kline_1m") as ws:
        loop = asyncio.get_running_loop()
        await until_closed(ws)
        start = loop.time()
        for _ in range(10):
            await until_closed(ws)
        assert loop.time() - start == pytest.approx(1.0, abs=0.2)


async def test_connections_end_after_their_lifetime() -> None:
    async with exchange() as ex, ex.http.ws_connect("/ws/btcusdt@kline_1m") as ws:
        await ex.control("limits", lifetime_s=0.05, ping_s=0.1)
        async for _ in ws:
            pass
        assert ws.close_code == 1000


async def test_at_the_end_of_the_data_the_market_stands_still() -> None:
    async with exchange("--interval", "1h", "--history", "5") as ex:
        ex.simulator.more = None
        total = (await ex.state())["steps_total"]
        answer = await ex.advance(total)
        assert answer["played"] == total - 5
        assert answer["at_end"]
        rows = await ex.klines("1h", limit=1)
        assert rows[0][6] < answer["market_now_ms"]
