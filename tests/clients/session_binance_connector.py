"""An ordinary session of binance-connector (official, deprecated) at an exchange here.

    python session_binance_connector.py http://127.0.0.1:PORT ws://127.0.0.1:PORT KEY SECRET

Prints one JSON object: what the client believes.
"""

import json
import queue
import sys

from binance.error import ClientError
from binance.spot import Spot
from binance.websocket.spot.websocket_api import SpotWebsocketAPIClient
from binance.websocket.spot.websocket_stream import SpotWebsocketStreamClient

REST, WS, KEY, SECRET = sys.argv[1:]
SYMBOL = "BTCUSDT"


def refusal(call):
    try:
        call()
    except ClientError as error:
        return [error.status_code, error.error_code]
    return []


def rest(told):
    client = Spot(api_key=KEY, api_secret=SECRET, base_url=REST)
    client.ping()
    assert client.time()["serverTime"] > 0
    info = client.exchange_info(symbol=SYMBOL)
    assert info["symbols"][0]["symbol"] == SYMBOL
    last = float(client.ticker_price(SYMBOL)["price"])
    assert len(client.klines(SYMBOL, "1m", limit=20)) == 20
    assert client.account()["canTrade"]
    bought = client.new_order(SYMBOL, "BUY", "MARKET", quantity=0.01)  # a float, in the query
    assert bought["status"] == "FILLED"
    told["bought"] = str(bought["orderId"])
    far = round(last * 1.3, 2)
    limit = {"timeInForce": "GTC", "quantity": 0.005, "price": far}
    client.new_order_test(SYMBOL, "SELL", "LIMIT", **limit)
    resting = client.new_order(SYMBOL, "SELL", "LIMIT", **limit)
    assert client.get_order(SYMBOL, orderId=resting["orderId"])["status"] == "NEW"
    replaced = client.cancel_and_replace(
        SYMBOL, "SELL", "LIMIT", "STOP_ON_FAILURE", cancelOrderId=resting["orderId"], **limit
    )
    assert replaced["cancelResult"] == replaced["newOrderResult"] == "SUCCESS"
    told["cancelled"] = str(resting["orderId"])
    placed = replaced["newOrderResponse"]["orderId"]
    assert [o["orderId"] for o in client.get_open_orders(SYMBOL)] == [placed]
    assert client.cancel_open_orders(SYMBOL)[0]["orderId"] == placed
    pair = client.new_oco_order(
        SYMBOL,
        "SELL",
        0.002,
        "LIMIT_MAKER",
        "STOP_LOSS_LIMIT",
        abovePrice=far,
        belowStopPrice=round(last * 0.8, 2),
        belowPrice=round(last * 0.79, 2),
        belowTimeInForce="GTC",
    )
    told["list"] = pair["orderListId"]
    assert client.get_oco_order(orderListId=pair["orderListId"])["listOrderStatus"] == "EXECUTING"
    client.cancel_oco_order(SYMBOL, orderListId=pair["orderListId"])
    told["errors"] = {
        "balance": refusal(lambda: client.new_order(SYMBOL, "BUY", "MARKET", quantity=100)),
        "gone": refusal(lambda: client.cancel_order(SYMBOL, orderId=resting["orderId"])),
        "missing": refusal(lambda: client.get_order(SYMBOL, orderId=999999999)),
        "key": refusal(lambda: Spot("nobody", SECRET, base_url=REST).account()),
        "secret": refusal(lambda: Spot(KEY, "wrong", base_url=REST).account()),
    }
    try:
        client.new_listen_key()
    except ClientError as error:
        told["errors"]["listen_key"] = [error.status_code]
    except ValueError:  # it expects JSON, and gets the HTML that Binance answers, too
        told["errors"]["listen_key"] = ["html"]
    assert {trade["orderId"] for trade in client.my_trades(SYMBOL)} == {bought["orderId"]}
    assert len(client.get_orders(SYMBOL)) >= 4
    assert client.get_order_rate_limit()
    assert client.query_commission_rates(SYMBOL)["standardCommission"]


def streams(told):
    seen = queue.Queue()
    client = SpotWebsocketStreamClient(
        stream_url=WS, on_message=lambda _, text: seen.put(json.loads(text)), is_combined=True
    )
    client.kline(symbol=SYMBOL.lower(), interval="1m")
    while (message := seen.get(timeout=60)).get("stream") != "btcusdt@kline_1m":
        pass
    told["candle"] = message["data"]["k"]["c"]
    client.stop()


def websocket_api(told):
    seen = queue.Queue()
    client = SpotWebsocketAPIClient(
        stream_url=f"{WS}/ws-api/v3",
        api_key=KEY,
        api_secret=SECRET,
        on_message=lambda _, text: seen.put(json.loads(text)),
    )
    client.new_order(
        id="order", symbol=SYMBOL, side="BUY", type="MARKET", quantity=0.01, newOrderRespType="FULL"
    )  # numbers, not texts
    placed = seen.get(timeout=60)
    assert placed["status"] == 200 and placed["result"]["status"] == "FILLED", placed
    told["watched"] = str(placed["result"]["orderId"])
    client.get_order(id="status", symbol=SYMBOL, orderId=placed["result"]["orderId"])
    assert seen.get(timeout=60)["result"]["status"] == "FILLED"
    client.new_order(id="bad", symbol=SYMBOL, side="BUY", type="MARKET", quantity=100)
    told["errors"]["websocket"] = seen.get(timeout=60)["error"]["code"]
    client.account(id="account")
    account = seen.get(timeout=60)["result"]
    told["balance"] = {
        held["asset"]: held["free"]
        for held in account["balances"]
        if held["asset"] in ("BTC", "USDT")
    }
    client.stop()


told = {}
rest(told)
streams(told)
websocket_api(told)
print(json.dumps(told))
