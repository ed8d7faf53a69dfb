"""An ordinary session of binance-sdk-spot (the official connector of today) at an exchange here.

    python session_binance_sdk_spot.py http://127.0.0.1:PORT ws://127.0.0.1:PORT KEY SECRET

Prints one JSON object: what the client believes.
"""

import asyncio
import json
import sys

from binance_common.configuration import (
    ConfigurationRestAPI,
    ConfigurationWebSocketAPI,
    ConfigurationWebSocketStreams,
)
from binance_common.errors import Error
from binance_sdk_spot.spot import Spot

REST, WS, KEY, SECRET = sys.argv[1:]
SYMBOL = "BTCUSDT"


def spot(key=KEY, secret=SECRET):
    # Its default of 1 s is short for a machine that does other things besides.
    rest = ConfigurationRestAPI(api_key=key, api_secret=secret, base_path=REST, timeout=20000)
    api = ConfigurationWebSocketAPI(
        api_key=key, api_secret=secret, stream_url=f"{WS}/ws-api/v3", timeout=20000
    )
    return Spot(rest, api, ConfigurationWebSocketStreams(stream_url=WS))


def refusal(call):
    try:
        call()
    except Error as error:
        return [type(error).__name__, getattr(error, "status_code", None)]
    return []


def rest(told):
    client = spot().rest_api
    client.ping()
    assert client.time().data().server_time > 0
    info = client.exchange_info(symbol=SYMBOL).data()
    assert info.symbols[0].symbol == SYMBOL
    last = float(client.ticker_book_ticker(symbol=SYMBOL).data().actual_instance.bid_price)
    assert len(client.klines(SYMBOL, "1m", limit=20).data()) == 20
    assert client.get_account().data().can_trade
    bought = client.new_order(SYMBOL, "BUY", "MARKET", quantity=0.01).data()
    assert bought.status == "FILLED", bought
    told["bought"] = str(bought.order_id)
    far = round(last * 1.3, 2)
    limit = {"time_in_force": "GTC", "quantity": 0.005, "price": far}
    client.order_test(SYMBOL, "SELL", "LIMIT", **limit)
    resting = client.new_order(SYMBOL, "SELL", "LIMIT", **limit).data()
    assert [o.order_id for o in client.get_open_orders(SYMBOL).data()] == [resting.order_id]
    gone = client.delete_order(SYMBOL, order_id=resting.order_id).data()
    assert gone.status == "CANCELED"
    told["cancelled"] = str(resting.order_id)
    pair = client.order_list_oco(
        SYMBOL,
        "SELL",
        0.002,
        "LIMIT_MAKER",
        "STOP_LOSS",
        above_price=far,
        below_stop_price=round(last * 0.8, 2),
    ).data()
    told["list"] = pair.order_list_id
    client.delete_order_list(SYMBOL, order_list_id=pair.order_list_id)
    told["errors"] = {
        "balance": refusal(lambda: client.new_order(SYMBOL, "BUY", "MARKET", quantity=100.0)),
        "gone": refusal(lambda: client.delete_order(SYMBOL, order_id=resting.order_id)),
        "missing": refusal(lambda: client.get_order(SYMBOL, order_id=999999999)),
        "key": refusal(spot(key="nobody").rest_api.get_account),
        "secret": refusal(spot(secret="wrong").rest_api.get_account),
    }
    assert {trade.order_id for trade in client.my_trades(SYMBOL).data()} == {bought.order_id}
    assert len(client.all_orders(SYMBOL).data()) == 4


async def streams(told):
    client = spot()
    connection = await client.websocket_streams.create_connection()
    candle = asyncio.get_running_loop().create_future()
    handle = await connection.kline(symbol=SYMBOL.lower(), interval="1m")
    handle.on("message", lambda data: candle.done() or candle.set_result(data))
    told["candle"] = (await asyncio.wait_for(candle, 60)).k.c
    await handle.unsubscribe()
    await connection.close_connection(close_session=True)

    api = await client.websocket_api.create_connection()
    events, done = [], asyncio.get_running_loop().create_future()

    def note(event):
        told_as = event.actual_instance if hasattr(event, "actual_instance") else event
        events.append(type(told_as).__name__)
        if "OutboundAccountPosition" in events[-1] and not done.done():
            done.set_result(None)

    user = await api.user_data_stream_subscribe_signature()
    user.stream.on("message", note)
    placed = (await api.order_place(SYMBOL, "BUY", "MARKET", quantity=0.01)).data().result
    await asyncio.wait_for(done, 60)
    told["watched"], told["events"] = str(placed.order_id), events
    account = (await api.account_status()).data().result
    told["balance"] = {
        held.asset: held.free for held in account.balances if held.asset in ("BTC", "USDT")
    }
    await api.close_connection(close_session=True)


told = {}
rest(told)
asyncio.run(streams(told))
print(json.dumps(told))
