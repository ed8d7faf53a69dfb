"""Faults of the order side: what the client is told, and what the exchange really did."""

import asyncio
import time
from typing import Any

import aiohttp
import pytest

from tests.simulator.client import SYMBOL, Client, hmac_of
from tests.simulator.exchange import Exchange, exchange

MARKET: dict[str, Any] = {
    "symbol": SYMBOL, "side": "BUY", "type": "MARKET", "quantity": "0.001",
}  # fmt: skip


async def truth(ex: Exchange, key: str = "demo") -> dict[str, Any]:
    """The account as the engine knows it."""
    found: dict[str, Any] = await ex.get("/control/account", key=key)
    return found


async def orders_there(ex: Exchange, count: int) -> list[dict[str, Any]]:
    """The account's orders, once there are so many."""
    async with asyncio.timeout(30):
        while True:
            orders: list[dict[str, Any]] = (await truth(ex))["orders"]
            if len(orders) >= count:
                return orders
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("executed", [False, True])
@pytest.mark.parametrize(
    ("status", "code", "text"),
    [
        (503, -1006,
         "An unexpected response was received from the message bus. Execution status unknown."),
        (504, -1007, "Timeout waiting for response from backend server. Send status unknown; "
         "execution status unknown."),
        (503, -1008, "Server is currently overloaded with other requests. Please try again in a "
         "few minutes."),
        (500, -1000, "An unknown error occurred while processing the request."),
    ],
)  # fmt: skip
async def test_an_error_may_or_may_not_hide_an_execution(
    executed: bool, status: int, code: int, text: str
) -> None:
    async with exchange() as ex:
        client = Client(ex)
        await ex.break_with(
            "status", status=status, code=code, executed=executed, path="order", method="POST",
            count=1,
        )  # fmt: skip
        told = await client.fails("POST", "order", **MARKET, newClientOrderId="one")
        assert told == (status, code, text)
        held = await truth(ex)
        assert [o["clientOrderId"] for o in held["orders"]] == (["one"] if executed else [])
        assert len(held["trades"]) == executed
        assert (await client.ask("POST", "order", **MARKET))["status"] == "FILLED"


@pytest.mark.parametrize("kind", ["lost", "timeout"])
async def test_a_reply_is_lost_after_the_execution(kind: str) -> None:
    async with exchange() as ex:
        client = Client(ex)
        await ex.break_with(kind, executed=True, ms=1, path="order", method="POST", count=1)
        with pytest.raises(aiohttp.ClientError):
            await client.send("POST", "order", **MARKET, newClientOrderId="one")
        found = await client.ask("GET", "order", symbol=SYMBOL, origClientOrderId="one")
        assert found["status"] == "FILLED"


async def test_a_request_is_executed_late() -> None:
    async with exchange() as ex:
        client = Client(ex)
        await ex.break_with(
            "timeout", ms=1, late_ms=50, engine_ms=150, path="order", method="POST", count=1
        )
        with pytest.raises(aiohttp.ClientError):
            await client.send("POST", "order", **MARKET, newClientOrderId="late")
        assert (await client.fails("GET", "order", symbol=SYMBOL, origClientOrderId="late"))[
            1
        ] == -2013
        (order,) = await orders_there(ex, 1)
        assert order["clientOrderId"] == "late"


async def test_a_request_that_comes_too_late_is_refused_before_the_engine() -> None:
    """The age is checked again on the way; what is late inside the engine is executed."""
    async with exchange() as ex:
        client = Client(ex)
        for field, expected in (("late_ms", []), ("engine_ms", ["old"])):
            await ex.break_with(
                "status", status=504, code=-1007, path="order", method="POST", count=1,
                **{field: 200},
            )  # fmt: skip
            told = await client.fails(
                "POST", "order", **MARKET, recvWindow=100, newClientOrderId="old"
            )
            assert told[1] == -1007
            await client.place("BUY", "MARKET", quantity="0.001", newClientOrderId=f"after-{field}")
            await asyncio.sleep(0.3)  # longer than the delay: what has not come by now never comes
            names = [o["clientOrderId"] for o in (await truth(ex))["orders"]]
            assert [n for n in names if n == "old"] == expected


async def test_queries_lag_behind_the_engine() -> None:
    async with exchange("--balance", "USDT=10000", "BTC=1") as ex:
        client = Client(ex)
        fault = await ex.break_with("lag", ms=60_000)
        before = await client.balances()
        order = await client.place("BUY", "MARKET", quantity="0.001", newClientOrderId="one")
        low = await client.place("BUY", "LIMIT", quantity="0.001", price="40000")
        told = await client.fails("GET", "order", symbol=SYMBOL, origClientOrderId="one")
        assert told == (400, -2013, "Order does not exist.")
        assert await client.ask("GET", "myTrades", symbol=SYMBOL) == []
        assert await client.ask("GET", "openOrders", symbol=SYMBOL) == []
        assert await client.ask("GET", "allOrders", symbol=SYMBOL) == []
        assert await client.balances() == before
        await ex.http.delete(f"/control/faults/{fault['id']}")
        assert (await client.order(order["orderId"]))["status"] == "FILLED"
        assert [o["orderId"] for o in await client.ask("GET", "openOrders")] == [low["orderId"]]
        assert len(await client.ask("GET", "myTrades", symbol=SYMBOL)) == 1
        assert await client.balances() != before


async def test_a_lagging_book_still_shows_what_has_just_ended() -> None:
    async with exchange() as ex:
        client = Client(ex)
        order = await client.place("BUY", "LIMIT", quantity="0.001", price="40000")
        minute = (await ex.control("clock", skew_ms=60_000))["now_ms"]
        asked = {"symbol": SYMBOL, "orderId": order["orderId"], "timestamp": minute}
        gone = await client.ask("DELETE", "order", **asked)
        assert gone["transactTime"] >= order["transactTime"] + 60_000
        await ex.break_with("lag", ms=30_000)
        seen = await client.ask("GET", "order", **asked)
        assert seen["status"] == "NEW"
        assert seen["clientOrderId"] == order["clientOrderId"]


@pytest.mark.parametrize(
    ("kind", "count"), [("drop", 0), ("silence", 0), ("duplicate", 2), ("delay", 1)]
)
async def test_a_user_event_is_lost_doubled_or_late(kind: str, count: int) -> None:
    async with exchange() as ex:
        client = Client(ex)
        async with client.socket() as socket:
            await socket.subscribe()
            await ex.break_with(kind, on="user", event="TRADE", ms=300, count=1)
            order = await client.place("BUY", "MARKET", quantity="0.001")
            await ex.control("funds", asset="ETH", amount="1")
            seen: list[dict[str, Any]] = []
            while (
                not any(e["e"] == "balanceUpdate" for e in seen)
                or sum(e.get("x") == "TRADE" for e in seen) < count
            ):
                seen += await socket.next(1)
            trades = [e for e in seen if e.get("x") == "TRADE"]
            assert [e["i"] for e in trades] == [order["orderId"]] * count
            if kind == "delay":
                assert seen.index(trades[0]) > 2


async def test_user_events_come_in_the_wrong_order() -> None:
    async with exchange() as ex:
        client = Client(ex)
        async with client.socket() as socket:
            await socket.subscribe()
            await ex.break_with("reorder", on="user", event="NEW", count=1)
            await client.place("BUY", "MARKET", quantity="0.001")
            seen = await socket.next(3)
            assert [e.get("x") for e in seen] == ["TRADE", "NEW", None]


async def test_the_user_stream_is_cut_and_nothing_is_said_twice() -> None:
    async with exchange() as ex:
        client = Client(ex)
        async with client.socket() as socket:
            await socket.subscribe()
            assert (await ex.control("cut", route="ws-api", abort=True))["ended"] == 1
            message = await socket.ws.receive(timeout=30)
            assert message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSE)
        await client.place("BUY", "MARKET", quantity="0.001")
        async with client.socket() as socket:
            await socket.subscribe()
            await ex.control("funds", asset="ETH", amount="1")
            first = await socket.next(1)
            assert first[0]["e"] == "balanceUpdate"


async def test_a_ban_refuses_everything() -> None:
    async with exchange() as ex:
        client = Client(ex)
        await ex.control("ban", seconds=60)
        status, body, headers = await client.send("POST", "order", **MARKET)
        assert (status, body["code"]) == (418, -1003)
        assert 50 <= int(dict(headers)["Retry-After"]) <= 60
        assert "banned until" in body["msg"]
        await ex.control("reset")
        assert (await client.place("BUY", "MARKET", quantity="0.001"))["status"] == "FILLED"


async def test_a_banned_ws_client_is_told_and_cut() -> None:
    async with exchange() as ex, Client(ex).socket() as socket:
        await ex.control("limits", spot_weight=1, patience=0, ban_s=30)
        reply = await socket.request("exchangeInfo")
        assert (reply["status"], reply["error"]["code"]) == (418, -1003)
        wait_ms = reply["error"]["data"]["retryAfter"] - reply["error"]["data"]["serverTime"]
        assert 29_000 <= wait_ms <= 31_000
        assert (await socket.ws.receive(timeout=30)).type is aiohttp.WSMsgType.CLOSE


async def test_a_shutdown_is_announced_on_the_ws_api_in_its_own_shape() -> None:
    async with exchange() as ex, Client(ex).socket() as socket:
        await socket.request("ping")
        await ex.control("shutdown", ms=None)
        told = await socket.ws.receive_json(timeout=30)
        assert told["event"]["e"] == "serverShutdown"


async def test_orders_beyond_the_limit_are_refused_until_some_have_filled() -> None:
    async with exchange("--balance", "USDT=100000") as ex:
        client = Client(ex)
        await ex.control("limits", orders_10s=3, orders_day=100)
        placed = 0
        low = {"symbol": SYMBOL, "side": "BUY", "type": "LIMIT", "timeInForce": "GTC",
               "quantity": "0.001", "price": "40000"}  # fmt: skip
        while placed < 30:
            status, body, headers = await client.send("POST", "order", **low)
            if status != 200:
                break
            placed += 1
        assert (status, body["code"]) == (429, -1015)
        assert body["msg"] == "Too many new orders; current limit is 3 orders per 10 SECOND."
        assert 1 <= int(dict(headers)["Retry-After"]) <= 10
        limits = await client.ask("GET", "rateLimit/order")
        assert [(row["interval"], row["limit"]) for row in limits] == [("SECOND", 3), ("DAY", 100)]
        assert limits[1]["count"] == placed
        # cancels do not count and are always allowed
        assert len(await client.ask("DELETE", "openOrders", symbol=SYMBOL)) == placed


async def test_successful_orders_cost_no_weight_and_failed_ones_do() -> None:
    async with exchange() as ex:
        client = Client(ex)
        status, _, headers = await client.send("POST", "order", **MARKET)
        assert (status, dict(headers)["X-MBX-USED-WEIGHT-1M"]) == (200, "0")
        assert dict(headers)["X-MBX-ORDER-COUNT-1D"] == "0"  # it has filled: no longer counted
        await client.fails("POST", "order", **{**MARKET, "quantity": "5000"})
        _, _, headers = await client.send("GET", "account")
        assert dict(headers)["X-MBX-USED-WEIGHT-1M"] == "21"


async def test_control_moves_funds_symbols_keys_and_the_clock() -> None:
    async with exchange() as ex:
        client = Client(ex)
        async with client.socket() as socket:
            await socket.subscribe()
            await ex.control("funds", asset="USDT", amount="-250.5")
            moved, position = await socket.next(2)
            assert (moved["e"], moved["d"]) == ("balanceUpdate", "-250.50000000")
            assert position["B"] == [{"a": "USDT", "f": "9749.50000000", "l": "0.00000000"}]

        await ex.control("symbol", symbol=SYMBOL, status="HALT")
        assert await client.refused("BUY", "MARKET", quantity="0.001") == (
            400, -2010, "Market is closed.",
        )  # fmt: skip
        info = await ex.get("/api/v3/exchangeInfo", symbol=SYMBOL)
        assert info["symbols"][0]["status"] == "HALT"
        lot = {
            "filterType": "LOT_SIZE", "minQty": "0.5", "maxQty": "10", "stepSize": "0.5",
        }  # fmt: skip
        await ex.control("symbol", symbol=SYMBOL, status="TRADING", filters=[lot])
        assert (await client.refused("BUY", "MARKET", quantity="0.7"))[2].endswith("LOT_SIZE")

        restrictions = await client.ask("GET", "/sapi/v1/account/apiRestrictions")
        assert restrictions["enableWithdrawals"] is False
        await ex.control("key", key="demo", can_withdraw=True, can_trade=False)
        restrictions = await client.ask("GET", "/sapi/v1/account/apiRestrictions")
        assert restrictions["enableWithdrawals"] is True
        assert (await client.refused("BUY", "MARKET", quantity="0.5"))[:2] == (401, -2015)
        await ex.control("key", key="demo", is_active=False)
        assert (await client.fails("GET", "account"))[:2] == (401, -2015)
        await ex.control("key", key="second", account="demo", secret="new")
        assert "USDT" in await Client(ex, "second", hmac_of("new")).balances()

        await ex.control("clock", skew_ms=7000)
        assert (await Client(ex, "second", hmac_of("new")).fails("GET", "account"))[1] == -1021
        skew = (await ex.get("/api/v3/time"))["serverTime"] - time.time() * 1000
        assert 6000 < skew < 8000
