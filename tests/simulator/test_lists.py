"""Stops, OCO lists, cancel-replace and self-trade prevention, over the wire."""

from collections.abc import Callable
from decimal import ROUND_DOWN, Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.simulator.client import SYMBOL, Client, hmac_of
from tests.simulator.exchange import Exchange, exchange

CENT = Decimal("0.01")
LOT = Decimal("0.00001")
RICH = ("--balance", "USDT=10000000", "BTC=100")


async def last_price(ex: Exchange) -> Decimal:
    return Decimal((await ex.get("/api/v3/ticker/price", symbol=SYMBOL))["price"])


def times(price: Decimal, factor: str) -> Decimal:
    return (price * Decimal(factor)).quantize(CENT, ROUND_DOWN)


async def until(ex: Exchange, done: Callable[[], Any], candles: int = 600) -> Any:
    """Play the market until done() gives something."""
    for _ in range(candles):
        found = await done()
        if found:
            return found
        await ex.advance()
    raise AssertionError("it never happened")


async def trades_between(ex: Exchange, start: int, end: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while start <= end:
        rows = await ex.get(
            "/api/v3/aggTrades", symbol=SYMBOL, startTime=start, endTime=end, limit=1000
        )
        if not rows:
            break
        found += rows
        start = rows[-1]["T"] + 1
    return found


@pytest.mark.parametrize(
    ("side", "kind", "factor"),
    [
        ("SELL", "STOP_LOSS", "0.999"),
        ("BUY", "TAKE_PROFIT", "0.999"),
        ("BUY", "STOP_LOSS", "1.001"),
        ("SELL", "TAKE_PROFIT", "1.001"),
    ],
)
async def test_a_stop_becomes_a_market_order_when_the_last_price_reaches_it(
    side: str, kind: str, factor: str
) -> None:
    async with exchange(*RICH) as ex:
        client = Client(ex)
        start = (await ex.state())["market_now_ms"]
        stop = times(await last_price(ex), factor)
        order = await client.place(side, kind, quantity="0.5", stopPrice=stop)
        assert set(order) == {
            "symbol", "orderId", "orderListId", "clientOrderId", "transactTime",
        }  # fmt: skip
        waiting = await client.order(order["orderId"])
        assert (waiting["isWorking"], waiting["workingTime"]) == (False, -1)

        async def is_done() -> Any:
            found = await client.order(order["orderId"])
            return found if found["status"] != "NEW" else None

        found = await until(ex, is_done)
        assert found["status"] == "FILLED"
        end = (await ex.state())["market_now_ms"]
        prices = [Decimal(t["p"]) for t in await trades_between(ex, start + 1, end)]
        reached = next(p for p in prices if (p <= stop if factor < "1" else p >= stop))
        average = Decimal(found["cummulativeQuoteQty"]) / Decimal("0.5")
        assert abs(average / reached - 1) < Decimal("0.0005")
        assert found["isWorking"] is True


async def test_a_stop_on_the_wrong_side_is_refused() -> None:
    async with exchange(*RICH) as ex:
        client = Client(ex)
        last = await last_price(ex)
        for side, kind, factor in (
            ("SELL", "STOP_LOSS", "1.01"),
            ("BUY", "STOP_LOSS", "0.99"),
            ("SELL", "TAKE_PROFIT", "0.99"),
            ("BUY", "TAKE_PROFIT", "1.01"),
        ):
            refused = await client.refused(side, kind, quantity="1", stopPrice=times(last, factor))
            assert refused == (400, -2010, "Order would trigger immediately.")
        for _ in range(5):
            await client.place("SELL", "STOP_LOSS", quantity="1", stopPrice=times(last, "0.9"))
        refused = await client.refused(
            "SELL", "STOP_LOSS", quantity="1", stopPrice=times(last, "0.9")
        )
        assert refused == (400, -1013, "Filter failure: MAX_NUM_ALGO_ORDERS")


async def test_a_stop_limit_rests_at_its_price_once_triggered() -> None:
    async with exchange(*RICH) as ex:
        client = Client(ex)
        last = await last_price(ex)
        stop, price = times(last, "0.9995"), times(last, "1.2")
        async with client.socket() as socket:
            await socket.subscribe()
            order = await client.place(
                "SELL", "STOP_LOSS_LIMIT", quantity="0.5", stopPrice=stop, price=price
            )

            async def is_working() -> Any:
                found = await client.order(order["orderId"])
                return found if found["isWorking"] else None

            found = await until(ex, is_working)
            assert (found["status"], found["price"]) == ("NEW", f"{price:.8f}")
            assert (await client.balances())["BTC"] == ("99.50000000", "0.50000000")
            new, _, triggered, _ = await socket.next(4)
            assert (new["w"], "W" in new) == (False, False)
            assert (triggered["x"], triggered["w"]) == ("NEW", True)
            assert triggered["W"] == found["workingTime"]


def sell_oco(last: Decimal, **more: Any) -> dict[str, Any]:
    return {
        "symbol": SYMBOL,
        "side": "SELL",
        "quantity": "0.5",
        "aboveType": "LIMIT_MAKER",
        "abovePrice": times(last, "1.0008"),
        "aboveClientOrderId": "target",
        "belowType": "STOP_LOSS_LIMIT",
        "belowStopPrice": times(last, "0.9992"),
        "belowPrice": times(last, "0.99"),
        "belowTimeInForce": "GTC",
        "belowClientOrderId": "stop",
        "listClientOrderId": "pair",
        **more,
    }


async def test_one_leg_of_an_oco_ends_the_other_and_the_lock_is_held_once() -> None:
    async with exchange(*RICH) as ex:
        client = Client(ex)
        async with client.socket() as socket:
            await socket.subscribe()
            made = await client.ask("POST", "orderList/oco", **sell_oco(await last_price(ex)))
            assert (made["listStatusType"], made["listOrderStatus"]) == (
                "EXEC_STARTED",
                "EXECUTING",
            )
            assert [o["clientOrderId"] for o in made["orders"]] == ["target", "stop"]
            assert [o["type"] for o in made["orderReports"]] == ["LIMIT_MAKER", "STOP_LOSS_LIMIT"]
            assert (await client.balances())["BTC"] == ("99.50000000", "0.50000000")
            events = await socket.next(4)
            assert [e["e"] for e in events] == [
                "executionReport", "executionReport", "listStatus", "outboundAccountPosition",
            ]  # fmt: skip
            assert len(await client.ask("GET", "openOrderList")) == 1

            async def is_over() -> Any:
                return not await client.ask("GET", "openOrderList")

            await until(ex, is_over)
            orders = {
                o["clientOrderId"]: o for o in await client.ask("GET", "allOrders", symbol=SYMBOL)
            }
            states = {name: order["status"] for name, order in orders.items()}
            assert states in (
                {"target": "FILLED", "stop": "EXPIRED"}, {"target": "EXPIRED", "stop": "FILLED"},
            )  # fmt: skip
            expired = next(o for o in orders.values() if o["status"] == "EXPIRED")
            assert expired["expiryReason"] == "OCO_TRIGGER"
            found = await client.ask("GET", "orderList", origClientOrderId="pair")
            assert found["listOrderStatus"] == "ALL_DONE"
            assert (await client.balances())["BTC"] == ("99.50000000", "0.00000000")
            seen: list[dict[str, Any]] = []
            while not any(e["e"] == "listStatus" for e in seen):
                seen += await socket.next(1)
            assert seen[-1]["L"] == "ALL_DONE"
            expiry = next(i for i, e in enumerate(seen) if e.get("x") == "EXPIRED")
            trade = next(i for i, e in enumerate(seen) if e.get("x") == "TRADE")
            assert expiry < trade


async def test_cancelling_a_leg_cancels_the_list() -> None:
    async with exchange(*RICH) as ex:
        client = Client(ex)
        last = await last_price(ex)
        await client.ask("POST", "orderList/oco", **sell_oco(last))
        gone = await client.ask("DELETE", "order", symbol=SYMBOL, origClientOrderId="target")
        assert gone["status"] == "CANCELED"
        assert await client.ask("GET", "openOrders", symbol=SYMBOL) == []
        assert (await client.balances())["BTC"] == ("100.00000000", "0.00000000")
        again = await client.fails("DELETE", "orderList", symbol=SYMBOL, listClientOrderId="pair")
        assert again[1] == -2011
        made = await client.ask("POST", "orderList/oco", **sell_oco(last))
        done = await client.ask(
            "DELETE", "orderList", symbol=SYMBOL, orderListId=made["orderListId"]
        )
        assert done["listOrderStatus"] == "ALL_DONE"
        assert [o["status"] for o in done["orderReports"]] == ["CANCELED", "CANCELED"]
        await client.ask("POST", "orderList/oco", **sell_oco(last))
        await client.place("BUY", "LIMIT", quantity="1", price=times(last, "0.9"))
        all_gone = await client.ask("DELETE", "openOrders", symbol=SYMBOL)
        assert sorted("orderReports" in one for one in all_gone) == [False, True]


async def test_the_old_oco_endpoint_makes_the_same_pair() -> None:
    async with exchange(*RICH) as ex:
        client = Client(ex)
        last = await last_price(ex)
        made = await client.ask(
            "POST", "order/oco", symbol=SYMBOL, side="BUY", quantity="1",
            price=times(last, "0.98"), stopPrice=times(last, "1.02"),
        )  # fmt: skip
        kinds = {o["type"]: o for o in made["orderReports"]}
        assert set(kinds) == {"LIMIT_MAKER", "STOP_LOSS"}
        # a BUY list locks what the dearer of its orders may cost
        assert Decimal((await client.balances())["USDT"][1]) == times(last, "1.02")


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({"abovePrice": "1.00", "belowStopPrice": "0.90", "belowPrice": "0.90"}, -2010,
         "The relationship of the prices for the orders is not correct."),
        ({"aboveType": "STOP_LOSS_LIMIT", "aboveStopPrice": "1.1", "aboveTimeInForce": "GTC"},
         -1014, "Unsupported order combination."),
        ({"belowTimeInForce": None}, -1102,
         "Mandatory parameter 'belowTimeInForce' was not sent, was empty/null, or malformed."),
        ({"quantity": "120"}, -2010, "Account has insufficient balance for requested action."),
        ({"belowClientOrderId": "target"}, -2010, "Duplicate order sent."),
    ],
)  # fmt: skip
async def test_a_bad_list_is_refused_whole(changes: dict[str, Any], code: int, text: str) -> None:
    async with exchange(*RICH) as ex:
        client = Client(ex)
        last = await last_price(ex)
        scaled = {
            name: times(last, value) if name.endswith("Price") and value else value
            for name, value in changes.items()
        }
        asked = sell_oco(last, **scaled)
        assert await client.fails("POST", "orderList/oco", **asked) == (400, code, text)
        assert await client.ask("GET", "allOrders", symbol=SYMBOL) == []
        assert (await client.balances())["BTC"] == ("100.00000000", "0.00000000")


async def test_a_buy_list_s_trailing_stop_needs_no_stop_price() -> None:
    async with exchange(*RICH) as ex:
        client = Client(ex)
        last = await last_price(ex)
        asked: dict[str, Any] = {
            "symbol": SYMBOL, "side": "BUY", "quantity": "1", "aboveType": "STOP_LOSS",
            "aboveTrailingDelta": "100", "belowType": "LIMIT_MAKER",
        }  # fmt: skip
        made = await client.ask("POST", "orderList/oco", **asked, belowPrice=times(last, "0.98"))
        assert {o["status"] for o in made["orderReports"]} == {"NEW"}
        bad = await client.fails("POST", "orderList/oco", **asked, belowPrice=times(last, "1.02"))
        assert bad == (400, -2010, "The relationship of the prices for the orders is not correct.")


async def test_cancel_replace_says_what_became_of_either_half() -> None:
    async with exchange(*RICH) as ex:
        client = Client(ex)
        last = await last_price(ex)
        low = times(last, "0.95")
        first = await client.place("BUY", "LIMIT", quantity="1", price=low)
        new = {
            "symbol": SYMBOL, "side": "BUY", "type": "LIMIT", "timeInForce": "GTC",
            "quantity": "2", "price": low,
        }  # fmt: skip
        done = await client.ask(
            "POST", "order/cancelReplace", **new,
            cancelReplaceMode="STOP_ON_FAILURE", cancelOrderId=first["orderId"],
        )  # fmt: skip
        assert (done["cancelResult"], done["newOrderResult"]) == ("SUCCESS", "SUCCESS")
        assert done["cancelResponse"]["orderId"] == first["orderId"]
        second = done["newOrderResponse"]
        assert Decimal((await client.balances())["USDT"][1]) == 2 * low

        status, body, _ = await client.send(
            "POST", "order/cancelReplace", **new,
            cancelReplaceMode="STOP_ON_FAILURE", cancelOrderId=first["orderId"],
        )  # fmt: skip
        assert (status, body["code"]) == (400, -2022)
        assert body["data"]["newOrderResult"] == "NOT_ATTEMPTED"

        status, body, _ = await client.send(
            "POST", "order/cancelReplace", **new,
            cancelReplaceMode="ALLOW_FAILURE", cancelOrderId=first["orderId"],
        )  # fmt: skip
        assert (status, body["code"]) == (409, -2021)
        assert body["data"]["cancelResponse"] == {"code": -2011, "msg": "Unknown order sent."}
        assert body["data"]["newOrderResponse"]["status"] == "NEW"

        status, body, _ = await client.send(
            "POST", "order/cancelReplace", **{**new, "quantity": "140"},
            cancelReplaceMode="STOP_ON_FAILURE", cancelOrderId=second["orderId"],
            newClientOrderId=body["data"]["newOrderResponse"]["clientOrderId"],
        )  # fmt: skip
        assert (status, body["code"]) == (409, -2021)
        assert body["data"]["cancelResult"] == "SUCCESS"
        assert body["data"]["newOrderResponse"]["msg"] == "Duplicate order sent."

        before = await client.ask("GET", "openOrders", symbol=SYMBOL)
        refused = await client.fails(
            "POST", "order/cancelReplace", **{**new, "quantity": "0.000001"},
            cancelReplaceMode="STOP_ON_FAILURE", cancelOrderId=before[0]["orderId"],
        )  # fmt: skip
        assert refused == (400, -1013, "Filter failure: LOT_SIZE")
        assert await client.ask("GET", "openOrders", symbol=SYMBOL) == before


@pytest.mark.parametrize(
    ("changed", "reason", "text"),
    [
        (
            {"side": "SELL", "quantity": "130", "price": "1.05"},
            "INSUFFICIENT_BALANCES",
            "Account has insufficient balance for requested action.",
        ),
        (
            {"type": "LIMIT_MAKER", "timeInForce": None, "price": "1.05"},
            "WOULD_MATCH_IMMEDIATELY",
            "Order would immediately match and take.",
        ),
        (
            {"type": "STOP_LOSS_LIMIT", "stopPrice": "0.99"},
            "STOP_PRICE_WOULD_TRIGGER_IMMEDIATELY",
            "Order would trigger immediately.",
        ),
        ({"newClientOrderId": "other"}, "NONE", "Duplicate order sent."),
    ],
)
async def test_a_replacement_that_the_engine_refuses_is_told_as_rejected(
    changed: dict[str, Any], reason: str, text: str, tmp_path: Path
) -> None:
    options = (*RICH, "--workdir", str(tmp_path))
    async with exchange(*options) as ex:
        client = Client(ex)
        last = await last_price(ex)
        low = times(last, "0.95")
        await client.place("BUY", "LIMIT", quantity="1", price=low, newClientOrderId="other")
        gone = await client.place("BUY", "LIMIT", quantity="1", price=low)
        new = {
            "symbol": SYMBOL, "side": "BUY", "type": "LIMIT", "timeInForce": "GTC",
            "quantity": "1", "price": low, "newClientOrderId": "new", **changed,
        }  # fmt: skip
        for name in ("price", "stopPrice"):
            if name in changed:
                new[name] = times(last, changed[name])
        async with client.socket() as ws:
            await ws.subscribe()
            status, body, _ = await client.send(
                "POST", "order/cancelReplace", **new,
                cancelReplaceMode="STOP_ON_FAILURE", cancelOrderId=gone["orderId"],
            )  # fmt: skip
            assert (status, body["code"]) == (409, -2021)
            assert body["data"]["newOrderResponse"] == {"code": -2010, "msg": text}
            cancelled, rejected, position = await ws.next(3)
        assert (cancelled["x"], cancelled["i"]) == ("CANCELED", gone["orderId"])
        assert (rejected["x"], rejected["X"], rejected["r"]) == ("REJECTED", "REJECTED", reason)
        assert (rejected["c"], rejected["C"], rejected["w"]) == (new["newClientOrderId"], "", False)
        assert rejected["i"] > gone["orderId"]
        assert rejected["I"] > cancelled["I"]
        assert Decimal(rejected["q"]) == Decimal(new["quantity"])
        assert (Decimal(rejected["z"]), rejected["t"], "W" in rejected) == (0, -1, False)
        assert position["e"] == "outboundAccountPosition"
        assert Decimal((await client.balances())["USDT"][1]) == low  # of the other order
        known = await client.ask("GET", "allOrders", symbol=SYMBOL)
        assert rejected["i"] not in [order["orderId"] for order in known]
    async with exchange(*options) as ex:  # as the journal tells
        again = await Client(ex).place("BUY", "LIMIT", quantity="1", price=low)
        assert again["orderId"] > rejected["i"]


@pytest.mark.parametrize(
    ("mode", "maker", "taker", "left"),
    [
        ("EXPIRE_MAKER", "EXPIRED_IN_MATCH", "PARTIALLY_FILLED", "3"),
        ("EXPIRE_TAKER", "NEW", "EXPIRED_IN_MATCH", "0"),
        ("EXPIRE_BOTH", "EXPIRED_IN_MATCH", "EXPIRED_IN_MATCH", "0"),
        ("DECREMENT", "EXPIRED_IN_MATCH", "PARTIALLY_FILLED", "2"),
        ("TRANSFER", "EXPIRED_IN_MATCH", "PARTIALLY_FILLED", "2"),
    ],
)
async def test_an_account_does_not_trade_with_itself(
    mode: str, maker: str, taker: str, left: str
) -> None:
    """A taker meets the market's lots at a price first, then its own order behind them."""
    async with exchange(*RICH) as ex:
        client = Client(ex)
        depth = await ex.get("/api/v3/depth", symbol=SYMBOL, limit=5)
        ask, there = depth["asks"][0]
        ahead = Decimal(there).quantize(LOT, ROUND_DOWN)
        resting = await client.place("SELL", "LIMIT_MAKER", quantity="1", price=ask)
        order = await client.place(
            "BUY", "LIMIT", quantity=ahead + 3, price=ask, selfTradePreventionMode=mode
        )
        assert Decimal(order["executedQty"]) == ahead
        assert order["status"] == taker
        held = await client.order(resting["orderId"])
        assert held["status"] == maker
        matches = await client.ask(
            "GET", "myPreventedMatches", symbol=SYMBOL, orderId=order["orderId"]
        )
        assert [m["makerOrderId"] for m in matches] == [resting["orderId"]]
        assert order["preventedMatches"][0]["preventedMatchId"] == matches[0]["preventedMatchId"]
        assert ("makerPreventedQuantity" in matches[0]) == (maker != "NEW")
        assert ("takerPreventedQuantity" in matches[0]) == (left != "3")
        prevented = Decimal(order.get("preventedQuantity", "0"))
        assert Decimal(order["origQty"]) - ahead - prevented == Decimal(left)
        assert all(
            row["isMaker"] is False for row in await client.ask("GET", "myTrades", symbol=SYMBOL)
        )
        held_now = await client.balances()
        assert Decimal(held_now["USDT"][1]) == Decimal(left) * Decimal(ask)
        assert Decimal(held_now["BTC"][1]) == (1 if maker == "NEW" else 0)


async def test_two_accounts_trade_with_each_other() -> None:
    async with exchange(*RICH) as ex:
        await ex.control("account", key="other", secret="hush", balances={"USDT": "1000000"})
        seller, buyer = Client(ex), Client(ex, "other", hmac_of("hush"))
        depth = await ex.get("/api/v3/depth", symbol=SYMBOL, limit=5)
        ask, there = depth["asks"][0]
        resting = await seller.place("SELL", "LIMIT_MAKER", quantity="1", price=ask)
        wanted = (Decimal(there) + Decimal("0.4")).quantize(Decimal("0.00001"), ROUND_DOWN)
        bought = await buyer.place("BUY", "MARKET", quantity=wanted)
        assert bought["status"] == "FILLED"
        sold = await seller.ask("GET", "myTrades", symbol=SYMBOL, orderId=resting["orderId"])
        mine = await buyer.ask("GET", "myTrades", symbol=SYMBOL)
        assert len(sold) == 1
        assert sold[0]["isMaker"] is True
        common = [row for row in mine if row["id"] == sold[0]["id"]]
        assert len(common) == 1
        assert common[0]["qty"] == sold[0]["qty"]
        assert common[0]["price"] == sold[0]["price"] == ask
        assert (sold[0]["commissionAsset"], common[0]["commissionAsset"]) == ("USDT", "BTC")
