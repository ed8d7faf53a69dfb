"""What replies, events, history and balances say agrees, seen from the wire alone."""

import random
from collections import defaultdict
from decimal import Decimal
from typing import Any

import pytest

from tests.simulator.client import SYMBOL, Client
from tests.simulator.exchange import Exchange, exchange

ZERO = Decimal(0)


async def trade_at_random(ex: Exchange, client: Client, seed: int, count: int) -> list[Any]:
    """Orders and cancels of every kind while the market moves; the replies to orders placed."""
    draw = random.Random(seed)
    placed: list[Any] = []
    for _ in range(count):
        last = float((await ex.get("/api/v3/ticker/price", symbol=SYMBOL))["price"])
        side = draw.choice(["BUY", "SELL"])
        quantity = f"{draw.randint(1, 4000) / 1000:.3f}"
        near = f"{last * (1 + draw.gauss(0, 0.0006)):.2f}"
        order: dict[str, Any] = {"symbol": SYMBOL, "side": side, "quantity": quantity}
        kind = draw.choice(["MARKET", "quote", "LIMIT", "LIMIT", "LIMIT_MAKER", "stop", "oco", "X"])
        path = "order"
        if kind == "quote":
            del order["quantity"]
            order |= {"type": "MARKET", "quoteOrderQty": draw.randint(10, 90_000)}
        elif kind == "LIMIT":
            tif = draw.choice(["GTC", "GTC", "IOC", "FOK"])
            order |= {"type": "LIMIT", "timeInForce": tif, "price": near}
        elif kind == "stop":
            order |= {"type": "STOP_LOSS", "stopPrice": near}
        elif kind == "oco":
            path = "orderList/oco"
            up, down = f"{last * 1.0004:.2f}", f"{last * 0.9996:.2f}"
            gain, loss = ("above", "below") if side == "SELL" else ("below", "above")
            edge, trigger = (up, down) if side == "SELL" else (down, up)
            order |= {
                f"{gain}Type": "LIMIT_MAKER", f"{gain}Price": edge,
                f"{loss}Type": "STOP_LOSS", f"{loss}StopPrice": trigger,
            }  # fmt: skip
        elif kind == "X":
            opened = await client.ask("GET", "openOrders", symbol=SYMBOL)
            if opened:
                number = draw.choice(opened)["orderId"]
                await client.ask("DELETE", "order", symbol=SYMBOL, orderId=number)
            await ex.advance()
            continue
        else:
            order |= {"type": kind, "price": near} if kind == "LIMIT_MAKER" else {"type": kind}
        status, body, _ = await client.send("POST", path, **order, newOrderRespType="FULL")
        if status == 200:
            placed += body.get("orderReports", [body])
        else:
            assert body["code"] in (-2010, -1013), body
        if draw.random() < 0.3:
            await ex.advance()
    return placed


def locks(orders: list[dict[str, Any]]) -> dict[str, Decimal]:
    """What the open orders must hold: a list with two open orders the dearer of the two."""
    found: dict[str, Decimal] = defaultdict(Decimal)
    groups: dict[Any, list[Decimal]] = defaultdict(list)
    for order in orders:
        if order["status"] in ("NEW", "PARTIALLY_FILLED"):
            left = Decimal(order["origQty"]) - Decimal(order["executedQty"])
            price = Decimal(order["price"]) or Decimal(order["stopPrice"])
            lock = left * price if order["side"] == "BUY" else left
            single = order["orderListId"] if order["orderListId"] >= 0 else -order["orderId"]
            groups["USDT" if order["side"] == "BUY" else "BTC", single].append(lock)
    for (asset, _), some in groups.items():
        found[asset] += max(some)
    return found


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_every_source_tells_the_same_to_the_last_decimal(seed: int) -> None:
    start = {"USDT": Decimal(500_000), "BTC": Decimal(8)}
    options = ("--balance", *(f"{asset}={amount}" for asset, amount in start.items()))
    async with exchange(*options, "--seed", str(seed)) as ex:
        client = Client(ex)
        async with client.socket() as socket:
            await socket.subscribe()
            placed = await trade_at_random(ex, client, seed, 90)
            await ex.control("funds", asset="BNB", amount="1")
            events: list[dict[str, Any]] = []
            while not events or events[-1]["e"] != "balanceUpdate":
                events += await socket.next(1)
            last_position = (await socket.next(1))[0]
        reports: dict[int, list[dict[str, Any]]] = defaultdict(list)
        held = dict(start)
        told: dict[str, tuple[str, str]] = {}
        numbers: list[int] = []
        newest = 0
        for event in [*events, last_position]:
            if event["e"] == "executionReport":
                reports[event["i"]].append(event)
                numbers.append(event["I"])
                newest = max(newest, event["T"])
                amount, quote = Decimal(event["l"]), Decimal(event["Y"])
                assert quote == amount * Decimal(event["L"])
                sign = 1 if event["S"] == "BUY" else -1
                held["BTC"] += sign * amount
                held["USDT"] -= sign * quote
                if event["N"] is not None:
                    held[event["N"]] -= Decimal(event["n"])
            elif event["e"] == "outboundAccountPosition":
                assert event["u"] >= newest
                told |= {row["a"]: (row["f"], row["l"]) for row in event["B"]}
        assert numbers == sorted(set(numbers))
        balances = await client.balances()
        assert balances == told | {"BNB": ("1.00000000", "0.00000000")}
        for asset, amount in held.items():
            assert sum(map(Decimal, balances[asset])) == amount

        trades = await client.ask("GET", "myTrades", symbol=SYMBOL, limit=1000)
        ids = [row["id"] for row in trades]
        assert ids == sorted(set(ids))
        rows: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for row in trades:
            assert Decimal(row["quoteQty"]) == Decimal(row["price"]) * Decimal(row["qty"])
            rows[row["orderId"]].append(row)
        orders = await client.ask("GET", "allOrders", symbol=SYMBOL, limit=1000)
        assert [o["orderId"] for o in orders] == sorted(o["orderId"] for o in placed)
        for order in orders:
            mine = reports[order["orderId"]]
            told_trades = [e for e in mine if e["x"] == "TRADE"]
            fills = rows[order["orderId"]]
            assert [
                (e["t"], e["L"], e["l"], e["n"], e["N"], e["T"], e["m"]) for e in told_trades
            ] == [
                (f["id"], f["price"], f["qty"], f["commission"], f["commissionAsset"], f["time"],
                 f["isMaker"])
                for f in fills
            ]  # fmt: skip
            executed = sum((Decimal(f["qty"]) for f in fills), ZERO)
            assert executed == Decimal(order["executedQty"]) == Decimal(mine[-1]["z"])
            quote = sum((Decimal(f["quoteQty"]) for f in fills), ZERO)
            assert quote == Decimal(order["cummulativeQuoteQty"]) == Decimal(mine[-1]["Z"])
            assert (order["status"], order["updateTime"]) == (mine[-1]["X"], mine[-1]["T"])
            assert (order["time"], mine[0]["x"]) == (mine[0]["O"], "NEW")
        locked = locks(orders)
        for asset in ("USDT", "BTC"):
            assert Decimal(balances[asset][1]) == locked[asset]
        for reply in placed:
            first = rows[reply["orderId"]][: len(reply.get("fills", []))]
            assert [(f["price"], f["qty"], f["commission"], f["tradeId"]) for f in
                    reply.get("fills", [])] == [
                (f["price"], f["qty"], f["commission"], f["id"]) for f in first
            ]  # fmt: skip
        assert len({order["status"] for order in orders}) >= 3
        assert len(trades) > 20


async def test_sparse_trades_have_public_ids_of_their_candle() -> None:
    """Rule 2: an account that trades now and then finds its trades inside the candles' ids."""
    async with exchange() as ex:
        client = Client(ex)
        found = []
        for _ in range(6):
            opened = (await ex.klines(limit=1))[0][0]
            order = await client.place("BUY", "MARKET", quantity="0.001")
            found.append((opened, order["fills"][0]["tradeId"]))
            await ex.advance(2)
        for opened, number in found:
            trades = await ex.get(
                "/api/v3/aggTrades", symbol=SYMBOL, startTime=opened, endTime=opened + 59_999
            )
            assert trades[0]["f"] <= number <= trades[-1]["l"]
