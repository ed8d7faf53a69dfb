"""Orders over the wire: what is executed at what price, and that every source tells the same."""

import asyncio
import json
import time
from decimal import ROUND_DOWN, ROUND_UP, Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.simulator.client import SYMBOL, Client
from tests.simulator.exchange import Exchange, exchange

FEE = Decimal("0.001")
SMALLEST = Decimal("0.00000001")
STEP = Decimal("0.00001")


def fee(amount: Decimal) -> Decimal:
    return (amount * FEE).quantize(SMALLEST, ROUND_DOWN)


async def book(ex: Exchange, limit: int = 1000) -> dict[str, list[tuple[Decimal, Decimal]]]:
    shown = await ex.get("/api/v3/depth", symbol=SYMBOL, limit=limit)
    return {
        side: [(Decimal(p), Decimal(q).quantize(STEP, ROUND_DOWN)) for p, q in shown[side]]
        for side in ("bids", "asks")
    }


def walk(levels: list[tuple[Decimal, Decimal]], wanted: Decimal) -> list[tuple[Decimal, Decimal]]:
    """The fills of a taker of that size, if it meets these levels."""
    fills = []
    for price, there in levels:
        if wanted and there:
            fills.append((price, min(wanted, there)))
            wanted -= min(wanted, there)
    return fills


def shown_fills(order: dict[str, Any]) -> list[tuple[Decimal, Decimal]]:
    return [(Decimal(f["price"]), Decimal(f["qty"])) for f in order["fills"]]


@pytest.mark.parametrize(("side", "levels"), [("BUY", "asks"), ("SELL", "bids")])
async def test_a_market_order_walks_the_book_that_depth_shows(side: str, levels: str) -> None:
    async with exchange("--balance", "USDT=100000000", "BTC=1000") as ex:
        shown = await book(ex)
        wanted = sum(q for _, q in shown[levels][:7]) + STEP
        order = await Client(ex).place(side, "MARKET", quantity=wanted)
        assert order["status"] == "FILLED"
        expected = walk(shown[levels], wanted)
        assert len(expected) == 8
        assert shown_fills(order) == expected
        for fill, (price, quantity) in zip(order["fills"], expected, strict=True):
            received = quantity if side == "BUY" else price * quantity
            assert Decimal(fill["commission"]) == fee(received)
            assert fill["commissionAsset"] == ("BTC" if side == "BUY" else "USDT")
        assert Decimal(order["cummulativeQuoteQty"]) == sum(p * q for p, q in expected)


async def test_what_was_taken_is_gone_until_the_level_changes() -> None:
    async with exchange("--balance", "USDT=100000000") as ex:
        client = Client(ex)
        price, there = (await book(ex))["asks"][0]
        first = await client.place("BUY", "MARKET", quantity=there)
        assert shown_fills(first) == [(price, there)]
        second = await client.place("BUY", "MARKET", quantity="0.001")
        assert shown_fills(second)[0][0] > price


async def test_a_quote_order_spends_at_most_its_amount_in_whole_lots() -> None:
    async with exchange() as ex:
        price, _ = (await book(ex))["asks"][0]
        order = await Client(ex).place("BUY", "MARKET", quoteOrderQty="1000")
        lots = (1000 / price).quantize(STEP, ROUND_DOWN)
        assert Decimal(order["executedQty"]) == Decimal(order["origQty"]) == lots
        assert Decimal(order["cummulativeQuoteQty"]) == lots * price
        assert order["status"] == "FILLED"
        held = await Client(ex).balances()
        assert Decimal(held["USDT"][0]) == 10000 - lots * price
        assert Decimal(held["BTC"][0]) == lots - fee(lots)
        sold = await Client(ex).refused("SELL", "MARKET", quantity=lots)  # the fee is missing
        assert sold == (400, -2010, "Account has insufficient balance for requested action.")


async def test_a_resting_order_fills_from_public_trades_within_their_volume() -> None:
    async with exchange("--balance", "USDT=100000000") as ex:
        client = Client(ex)
        start = (await ex.state())["market_now_ms"]
        last = Decimal((await ex.get("/api/v3/ticker/price", symbol=SYMBOL))["price"])
        price = (last * Decimal("0.9998")).quantize(Decimal("0.01"))
        order = await client.place("BUY", "LIMIT", quantity="140", price=price)
        assert order["status"] == "NEW"
        assert (await client.balances())["USDT"][1] == f"{price * 140:.8f}"
        for _ in range(30):
            await ex.advance()
            state = await client.order(order["orderId"])
            if state["status"] != "NEW":
                break
        assert state["status"] == "PARTIALLY_FILLED"
        now = (await ex.state())["market_now_ms"]
        through: dict[int, Decimal] = {}
        at_price = Decimal(0)
        for row in await ex.get(
            "/api/v3/aggTrades", symbol=SYMBOL, startTime=start + 1, endTime=now, limit=1000
        ):
            if Decimal(row["p"]) < price:
                through[row["a"]] = Decimal(row["q"]).quantize(STEP, ROUND_DOWN)
            elif Decimal(row["p"]) == price and row["m"]:
                at_price += Decimal(row["q"])
        trades = await client.ask("GET", "myTrades", symbol=SYMBOL)
        assert sum(through.values()) <= Decimal(state["executedQty"])
        assert Decimal(state["executedQty"]) <= sum(through.values()) + at_price
        for row in trades:
            assert Decimal(row["price"]) == price
            assert row["isMaker"] is True
            assert row["isBuyer"] is True
        assert {row["id"] for row in trades} >= set(through)
        left = (140 - Decimal(state["executedQty"])) * price
        assert Decimal((await client.balances())["USDT"][1]) == left


async def test_a_limit_order_that_crosses_takes_and_then_rests() -> None:
    async with exchange("--balance", "USDT=100000000") as ex:
        client = Client(ex)
        shown = await book(ex)
        limit = shown["asks"][2][0]
        there = sum(q for p, q in shown["asks"] if p <= limit)
        order = await client.place("BUY", "LIMIT", quantity=there + 1, price=limit)
        assert order["status"] == "PARTIALLY_FILLED"
        assert shown_fills(order) == walk(shown["asks"], there)
        held = await client.balances()
        assert Decimal(held["USDT"][1]) == limit  # one whole coin at the limit still waits
        spent = sum(p * q for p, q in shown_fills(order))
        assert Decimal(held["USDT"][0]) == 100000000 - spent - limit
        done = await client.ask("DELETE", "order", symbol=SYMBOL, orderId=order["orderId"])
        assert done["status"] == "CANCELED"
        assert done["origClientOrderId"] == order["clientOrderId"] != done["clientOrderId"]
        assert (await client.balances())["USDT"][1] == "0.00000000"
        again = await client.fails("DELETE", "order", symbol=SYMBOL, orderId=order["orderId"])
        assert again == (400, -2011, "Unknown order sent.")


async def test_ioc_and_fok_never_rest() -> None:
    async with exchange("--balance", "USDT=100000000") as ex:
        client = Client(ex)
        shown = await book(ex)
        best, there = shown["asks"][0]
        more = there + Decimal("0.5")
        fok = await client.place("BUY", "LIMIT", timeInForce="FOK", quantity=more, price=best)
        assert (fok["status"], fok["executedQty"]) == ("EXPIRED", "0.00000000")
        assert fok["expiryReason"] == "UNFILLED_FOK_ORDER_EXPIRED"
        ioc = await client.place("BUY", "LIMIT", timeInForce="IOC", quantity=more, price=best)
        assert (ioc["status"], Decimal(ioc["executedQty"])) == ("EXPIRED", there)
        assert ioc["expiryReason"] == "UNFILLED_IOC_QUANTITY_EXPIRED"
        assert await client.ask("GET", "openOrders", symbol=SYMBOL) == []
        assert (await client.balances())["USDT"][1] == "0.00000000"
        maker = await client.refused("BUY", "LIMIT_MAKER", quantity="0.01", price=best + 1)
        assert maker == (400, -2010, "Order would immediately match and take.")


async def test_reply_event_and_history_tell_the_same_trade() -> None:
    async with exchange("--balance", "USDT=100000000") as ex:
        client = Client(ex)
        async with client.socket() as socket:
            assert await socket.subscribe() == 0
            order = await client.place("BUY", "MARKET", quantity="5", newClientOrderId="one")
            events = await socket.next(len(order["fills"]) + 2)
        assert [e["e"] for e in events] == ["executionReport" for _ in range(len(events) - 1)] + [
            "outboundAccountPosition"
        ]
        new, *trades, position = events
        assert (new["x"], new["X"], new["c"], new["t"]) == ("NEW", "NEW", "one", -1)
        rows = await client.ask("GET", "myTrades", symbol=SYMBOL, orderId=order["orderId"])
        assert len(rows) == len(trades) == len(order["fills"])
        for fill, event, row in zip(order["fills"], trades, rows, strict=True):
            assert fill["tradeId"] == event["t"] == row["id"]
            assert fill["price"] == event["L"] == row["price"]
            assert fill["qty"] == event["l"] == row["qty"]
            assert fill["commission"] == event["n"] == row["commission"]
            assert event["Y"] == row["quoteQty"]
            assert order["transactTime"] == event["T"] == row["time"]
        assert trades[-1]["X"] == "FILLED"
        assert trades[-1]["z"] == order["executedQty"]
        assert trades[-1]["Z"] == order["cummulativeQuoteQty"]
        numbers = [e["I"] for e in events[:-1]]
        assert numbers == sorted(set(numbers))
        held = await client.balances()
        assert {row["a"]: (row["f"], row["l"]) for row in position["B"]} == held
        assert position["u"] >= order["transactTime"]
        stored = await client.order(order["orderId"])
        assert (stored["time"], stored["updateTime"]) == (new["O"], trades[-1]["T"])


async def test_a_client_id_is_unique_among_open_orders_only() -> None:
    async with exchange() as ex:
        client = Client(ex)
        low = {"quantity": "0.001", "price": "40000", "newClientOrderId": "same"}
        first = await client.place("BUY", "LIMIT", **low)
        assert await client.refused("BUY", "LIMIT", **low) == (400, -2010, "Duplicate order sent.")
        await client.ask("DELETE", "order", symbol=SYMBOL, origClientOrderId="same")
        second = await client.place("BUY", "LIMIT", **low)
        assert second["orderId"] > first["orderId"]
        found = await client.ask("GET", "order", symbol=SYMBOL, origClientOrderId="same")
        assert found["orderId"] == second["orderId"]
        assert await client.fails("GET", "order", symbol=SYMBOL, origClientOrderId="other") == (
            400, -2013, "Order does not exist.",
        )  # fmt: skip
        assert (await client.fails("GET", "openOrders", symbol=SYMBOL.lower()))[1] == -1100
        assert (await client.fails("GET", "openOrders", symbol="NOSUCH"))[1] == -1121
        code = await client.fails(
            "GET", "order", symbol=SYMBOL, origClientOrderId="other", orderId=second["orderId"]
        )
        assert code[1] == -2039
        assert (await client.fails("GET", "order", symbol=SYMBOL))[1] == -1102


@pytest.mark.parametrize(
    ("order", "code", "text"),
    [
        (("BUY", "LIMIT", "1.0", "60000.001"), -1013, "Filter failure: PRICE_FILTER"),
        (("BUY", "LIMIT", "0.000001", "60000"), -1013, "Filter failure: LOT_SIZE"),
        (("BUY", "LIMIT", "0.00015", "20000"), -1013, "Filter failure: PERCENT_PRICE_BY_SIDE"),
        (("BUY", "LIMIT", "0.00008", "60000"), -1013, "Filter failure: NOTIONAL"),
        (("BUY", "LIMIT", "10001", "60000"), -1013, "Filter failure: LOT_SIZE"),
        (("BUY", "LIMIT", "200", "60000"), -1013, "Filter failure: NOTIONAL"),
        (("BUY", "MARKET", "142", None), -1013, "Filter failure: MARKET_LOT_SIZE"),
        (("BUY", "MARKET", "0.00001", None), -1013, "Filter failure: NOTIONAL"),
        (("BUY", "LIMIT", "0.123456789", "60000"), -1111,
         "Parameter 'quantity' has too much precision."),
        (("BUY", "LIMIT", "1e-3", "60000"), -1100,
         "Illegal characters found in parameter 'quantity'; legal range is "
         "'^([0-9]{1,20})(\\.[0-9]{1,20})?$'."),
        (("BUY", "LIMIT", "0.001", None), -1102,
         "Mandatory parameter 'price' was not sent, was empty/null, or malformed."),
        (("BUY", "MARKET", "0.001", "60000"), -1106, "Parameter 'price' sent when not required."),
        (("HOLD", "MARKET", "0.001", None), -1117, "Invalid side."),
        (("BUY", "ICEBERG", "0.001", None), -1116, "Invalid orderType."),
        (("SELL", "MARKET", "0.001", None), -2010,
         "Account has insufficient balance for requested action."),
    ],
)  # fmt: skip
async def test_a_bad_order_is_refused_with_the_exchanges_words(
    order: tuple[str, str, str, str | None], code: int, text: str
) -> None:
    async with exchange() as ex:
        side, kind, quantity, price = order
        client = Client(ex)
        assert await client.refused(side, kind, quantity=quantity, price=price) == (400, code, text)
        assert await client.ask("GET", "allOrders", symbol=SYMBOL) == []


async def test_nothing_is_executed_without_a_good_signature_and_time() -> None:
    async with exchange() as ex:
        client = Client(ex)
        order: dict[str, Any] = {
            "symbol": SYMBOL, "side": "BUY", "type": "MARKET", "quantity": "0.001",
        }  # fmt: skip
        now = await ex.get("/api/v3/time")
        late = await client.fails("POST", "order", **order, timestamp=now["serverTime"] - 6000)
        assert late == (
            400, -1021, "Timestamp for this request is outside of the recvWindow.",
        )  # fmt: skip
        early = await client.fails("POST", "order", **order, timestamp=now["serverTime"] + 5000)
        assert early == (
            400, -1021, "Timestamp for this request was 1000ms ahead of the server's time.",
        )  # fmt: skip
        forged = Client(ex, sign=lambda _: "0" * 64)
        assert await forged.fails("POST", "order", **order) == (
            400, -1022, "Signature for this request is not valid.",
        )  # fmt: skip
        unknown = Client(ex, key="nobody")
        assert (await unknown.fails("GET", "account"))[:2] == (401, -2015)
        assert await client.ask("GET", "allOrders", symbol=SYMBOL) == []
        assert await client.ask(
            "POST", "order", **order, recvWindow="60000", timestamp=now["serverTime"] - 30000
        )
        for wide in ("60001", "60000.001", "100000", "99999999999"):
            window = await client.fails("POST", "order", **order, recvWindow=wide)
            assert window == (400, -1131, "recvWindow must be less than 60000.")
        for odd in ("-1", "5e3", "5000.0001"):
            window = await client.fails("POST", "order", **order, recvWindow=odd)
            assert window[:2] == (400, -1100)


async def test_empty_and_repeated_parameters_are_refused_by_name() -> None:
    async with exchange() as ex:
        client = Client(ex)
        order = {"symbol": SYMBOL, "side": "BUY", "type": "MARKET", "quantity": "0.001"}
        for name in (*order, "newClientOrderId", "newOrderRespType", "price"):
            assert await client.fails("POST", "order", **order | {name: ""}) == (
                400, -1105, f"Parameter '{name}' was empty.",
            )  # fmt: skip
        neither = await client.fails("GET", "order", symbol=SYMBOL, orderId="")
        assert neither == (
            400, -1102,
            "Param 'origClientOrderId' or 'orderId' must be sent, but both were empty/null!",
        )  # fmt: skip
        query = f"symbol={SYMBOL}&symbol={SYMBOL}&timestamp={int(time.time() * 1000)}"
        url = f"/api/v3/openOrders?{query}&signature={client.sign(query.encode())}"
        async with ex.http.get(url, headers={"X-MBX-APIKEY": client.key}) as reply:
            assert await reply.json() == {
                "code": -1101, "msg": "Duplicate values for a parameter detected.",
            }  # fmt: skip
        assert await client.ask("GET", "allOrders", symbol=SYMBOL) == []


async def test_the_market_moves_while_orders_wait() -> None:
    """A paced market fills what rests without anybody asking."""
    async with exchange("--speed", "600") as ex:
        client = Client(ex)
        last = Decimal((await ex.get("/api/v3/ticker/price", symbol=SYMBOL))["price"])
        price = (last * Decimal("0.9999")).quantize(Decimal("0.01"))
        async with client.socket() as socket:
            await socket.subscribe()
            await client.place("BUY", "LIMIT", quantity="0.001", price=price)
            async with asyncio.timeout(60):
                found: list[dict[str, Any]] = []
                while not any(e.get("X") == "FILLED" for e in found):
                    found += await socket.next(1)


async def test_slippage_makes_takers_pay_more_up_to_their_limit() -> None:
    async with exchange("--slippage-bps", "2.5", "--balance", "USDT=100000", "BTC=1") as ex:
        client = Client(ex)
        shown = await book(ex)
        cent = Decimal("0.01")
        ask, bid = shown["asks"][0][0], shown["bids"][0][0]
        bought = await client.place("BUY", "MARKET", quantity="0.001")
        worse = (ask * Decimal("1.00025")).quantize(cent, ROUND_UP)
        assert shown_fills(bought) == [(worse, Decimal("0.001"))]
        sold = await client.place("SELL", "MARKET", quantity="0.001")
        worse = (bid * Decimal("0.99975")).quantize(cent, ROUND_DOWN)
        assert shown_fills(sold) == [(worse, Decimal("0.001"))]
        limited = await client.place("BUY", "LIMIT", quantity="0.001", price=ask + 1)
        assert shown_fills(limited) == [(ask + 1, Decimal("0.001"))]


async def test_latency_passes_before_the_engine_and_counts_towards_the_window() -> None:
    async with exchange("--latency-ms", "120") as ex:
        client = Client(ex)
        start = time.monotonic()
        order = await client.place("BUY", "MARKET", quantity="0.001")
        assert time.monotonic() - start >= 0.12
        assert order["status"] == "FILLED"
        refused = await client.refused("BUY", "MARKET", quantity="0.001", recvWindow=100)
        assert refused == (400, -1021, "Timestamp for this request is outside of the recvWindow.")
        counted = await client.ask("GET", "rateLimit/order")
        assert counted[1]["count"] == 1  # refused late, counted all the same; the other has filled


async def test_trades_while_the_exchange_was_down_fill_what_rested(tmp_path: Path) -> None:
    """A live synthetic market goes on without the process."""
    day = 86_400_000
    options = ("--speed", "1", "--history", "3000", "--workdir", str(tmp_path))
    async with exchange(*options) as ex:
        client = Client(ex)
        rows = await ex.klines(limit=1000)
        price = min(Decimal(row[3]) for row in rows[:-1]) + Decimal("0.01")
        order = await client.place("BUY", "LIMIT", quantity="0.001", price=price)
        assert order["status"] == "NEW"
    # as if the process had ended a day ago
    position = tmp_path / "simulator-position"
    journal = tmp_path / "simulator-exchange.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    booked = next(entry for line in lines for entry in line if entry[0] == "Booked")
    booked[3] -= day
    position.write_text(f"{booked[3]}\n")
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    async with exchange(*options) as ex:
        found = await Client(ex).order(order["orderId"])
        assert found["status"] == "FILLED"
