"""An ordinary session of python-binance at an exchange on this machine.

    python session_python_binance.py http://127.0.0.1:PORT ws://127.0.0.1:PORT KEY SECRET

Prints one JSON object: what the client believes.
"""

import asyncio
import json
import sys

from binance import AsyncClient, BinanceSocketManager, Client
from binance.exceptions import BinanceAPIException

REST, WS, KEY, SECRET = sys.argv[1:]
SYMBOL = "BTCUSDT"


class Here:
    """Its addresses are class attributes (which it formats: plain ones are fine)."""

    API_URL = f"{REST}/api"
    MARGIN_API_URL = f"{REST}/sapi"
    FUTURES_URL = f"{REST}/fapi"
    FUTURES_DATA_URL = f"{REST}/futures/data"
    WS_API_URL = f"{WS}/ws-api/v3"


class LocalClient(Here, Client):
    pass


class LocalAsyncClient(Here, AsyncClient):
    pass


class Sockets(BinanceSocketManager):
    STREAM_URL = f"{WS}/"
    FSTREAM_URL = f"{WS}/"


def code(call):
    try:
        call()
    except BinanceAPIException as error:
        return error.code
    return 0


def blocking(told):
    client = LocalClient(KEY, SECRET)
    info = client.get_symbol_info(SYMBOL)
    assert info["status"] == "TRADING"
    last = float(client.get_symbol_ticker(symbol=SYMBOL)["price"])
    newest = client.get_klines(symbol=SYMBOL, interval="1m", limit=60)
    first, last_closed = newest[0][0], newest[-2][0]
    paged = client.get_historical_klines(
        SYMBOL, "1m", first, last_closed
    )  # asks for the first ever
    assert paged == newest[:-1]
    assert client.get_account()["canTrade"]
    bought = client.order_market_buy(symbol=SYMBOL, quantity="0.01000")
    assert bought["status"] == "FILLED" and bought["fills"], bought
    told["bought"] = str(bought["orderId"])
    far = f"{last * 1.3:.2f}"
    resting = client.order_limit_sell(symbol=SYMBOL, quantity="0.00500", price=far)
    client.create_test_order(
        symbol=SYMBOL, side="BUY", type="LIMIT", timeInForce="GTC", quantity="0.001", price=far
    )
    assert [o["orderId"] for o in client.get_open_orders(symbol=SYMBOL)] == [resting["orderId"]]
    cancelled = client.cancel_order(symbol=SYMBOL, orderId=resting["orderId"])
    assert cancelled["status"] == "CANCELED"
    told["cancelled"] = str(resting["orderId"])
    pair = client.create_oco_order(
        symbol=SYMBOL,
        side="SELL",
        quantity="0.00200",
        aboveType="LIMIT_MAKER",
        abovePrice=far,
        belowType="STOP_LOSS",
        belowStopPrice=f"{last * 0.8:.2f}",
    )
    assert len(client.get_open_orders(symbol=SYMBOL)) == 2
    told["list"] = pair["orderListId"]
    client.cancel_order(symbol=SYMBOL, orderId=pair["orders"][0]["orderId"])
    assert client.get_open_orders(symbol=SYMBOL) == []
    told["errors"] = {
        "balance": code(lambda: client.order_market_buy(symbol=SYMBOL, quantity="100")),
        "lot": code(lambda: client.order_market_buy(symbol=SYMBOL, quantity="0.000000012")),
        "gone": code(lambda: client.cancel_order(symbol=SYMBOL, orderId=resting["orderId"])),
        "missing": code(lambda: client.get_order(symbol=SYMBOL, orderId=999999999)),
        "symbol": code(lambda: client.get_order_book(symbol="NONE")),
        "key": code(lambda: LocalClient("nobody", SECRET).get_account()),
        "secret": code(lambda: LocalClient(KEY, "wrong").get_account()),
    }
    orders = client.get_all_orders(symbol=SYMBOL)
    assert {bought["orderId"], resting["orderId"]} <= {order["orderId"] for order in orders}
    trades = client.get_my_trades(symbol=SYMBOL)
    assert {trade["orderId"] for trade in trades} == {bought["orderId"]}
    told["rate_limits"] = client.get_current_order_count()


async def streaming(told):
    client = await LocalAsyncClient.create(KEY, SECRET)
    try:
        sockets = Sockets(client)
        async with sockets.kline_socket(SYMBOL) as candles:
            assert (await candles.recv())["e"] == "kline"
        names = ["btcusdt@aggTrade", "btcusdt@bookTicker"]
        async with sockets.multiplex_socket(names) as several:
            seen = set()
            while seen != set(names):
                seen.add((await several.recv())["stream"])
        async with sockets.user_socket() as user:
            placed = await client.order_market_buy(symbol=SYMBOL, quoteOrderQty="120")
            events = []
            while not events or events[-1]["e"] != "outboundAccountPosition":
                message = await asyncio.wait_for(user.recv(), 30)
                event = message.get("event", message)
                if event.get("e") in ("executionReport", "outboundAccountPosition"):
                    events.append(event)
            assert events[0]["i"] == placed["orderId"], (events, placed)
            told["watched"] = str(placed["orderId"])
            told["events"] = [event.get("x", event["e"]) for event in events]
        account = await client.get_account()
        told["balance"] = {
            held["asset"]: held["free"]
            for held in account["balances"]
            if held["asset"] in ("BTC", "USDT")
        }
    finally:
        await client.close_connection()


told = {}
blocking(told)
asyncio.run(streaming(told))
print(json.dumps(told))
