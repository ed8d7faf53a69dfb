"""An ordinary session of ccxt (async and pro) at an exchange on this machine.

    python session_ccxt.py http://127.0.0.1:PORT ws://127.0.0.1:PORT KEY SECRET

Prints one JSON object: what the client believes. Traps of pointing it here: reference in
`traps` below.
"""

import asyncio
import json
import sys

import ccxt.async_support as ccxt
from ccxt import pro

SYMBOL = "BTC/USDT"


def point(client, rest, ws):
    """ccxt has no base URL option: its table of literal addresses is rewritten.

    Trap: pro takes a stream for spot only where its URL contains `/stream`; elsewhere candles are
    filed under the linear swap of the same name and `watch_ohlcv` waits for ever.
    """
    for name, url in client.urls["api"].items():
        if isinstance(url, str):
            client.urls["api"][name] = f"{rest}/{url.split('/', 3)[3]}"
    if "ws" in client.urls["api"]:
        client.urls["api"]["ws"]["spot"] = f"{ws}/stream/ws"
        client.urls["api"]["ws"]["linear"] = f"{ws}/ws"
        client.urls["api"]["ws"]["ws-api"]["spot"] = f"{ws}/ws-api/v3"
    return client


async def refusal(call):
    try:
        await call
    except ccxt.BaseError as error:
        return type(error).__name__
    return "nothing"


async def rest_session(client, told):
    await client.load_markets()  # signed sapi calls too, unasked
    market = client.market(SYMBOL)
    assert market["spot"] and market["active"], market
    told["status"] = (await client.fetch_status())["status"]
    await client.fetch_time()
    ticker = await client.fetch_ticker(SYMBOL)
    book = await client.fetch_order_book(SYMBOL, limit=20)
    assert book["bids"][0][0] < book["asks"][0][0]
    candles = await client.fetch_ohlcv(SYMBOL, "1m", limit=20)
    assert len(candles) == 20
    assert await client.fetch_trades(SYMBOL, limit=10)
    fee = await client.fetch_trading_fee(SYMBOL)
    assert fee["taker"] is not None
    before = await client.fetch_balance()

    bought = await client.create_order(SYMBOL, "market", "buy", 0.01)
    assert bought["status"] == "closed" and bought["filled"] == 0.01, bought
    told["bought"] = bought["id"]
    spent = await client.create_order(SYMBOL, "market", "buy", None, None, {"cost": 150})
    assert spent["cost"] <= 150 and spent["status"] == "closed", spent
    far = float(client.price_to_precision(SYMBOL, ticker["last"] * 1.3))
    resting = await client.create_order(SYMBOL, "limit", "sell", 0.005, far)
    assert resting["status"] == "open"
    told["cancelled"] = resting["id"]
    maker = await client.create_order(SYMBOL, "limit", "sell", 0.001, far, {"postOnly": True})
    low = float(client.price_to_precision(SYMBOL, ticker["last"] * 0.8))
    stop = await client.create_order(
        SYMBOL, "limit", "sell", 0.001, low, {"stopPrice": low, "clientOrderId": "mine-1"}
    )
    await client.create_order(SYMBOL, "limit", "buy", 0.001, low, {"test": True})
    opened = await client.fetch_open_orders(SYMBOL)
    assert {order["id"] for order in opened} == {resting["id"], maker["id"], stop["id"]}, opened
    edited = await client.edit_order(maker["id"], SYMBOL, "limit", "sell", 0.001, far + 100)
    told["errors"] = {
        "balance": await refusal(client.create_order(SYMBOL, "limit", "buy", 100, low)),
        "small": await refusal(client.create_order(SYMBOL, "limit", "buy", 0.00001, low)),
        "taking": await refusal(
            client.create_order(SYMBOL, "limit", "buy", 0.001, far, {"postOnly": True})
        ),
        "duplicate": await refusal(
            client.create_order(SYMBOL, "limit", "sell", 0.001, far, {"clientOrderId": "mine-1"})
        ),
    }
    cancelled = await client.cancel_order(resting["id"], SYMBOL)
    assert cancelled["status"] == "canceled", cancelled
    told["errors"]["gone"] = await refusal(client.cancel_order(resting["id"], SYMBOL))
    told["errors"]["missing"] = await refusal(client.fetch_order("999999999", SYMBOL))
    await client.cancel_all_orders(SYMBOL)
    assert (await client.fetch_order(edited["id"], SYMBOL))["status"] == "canceled"
    assert await client.fetch_open_orders(SYMBOL) == []
    history = await client.fetch_orders(SYMBOL)
    assert {bought["id"], spent["id"], resting["id"]} <= {order["id"] for order in history}
    trades = await client.fetch_my_trades(SYMBOL)
    assert {trade["order"] for trade in trades} == {bought["id"], spent["id"]}
    after = await client.fetch_balance()
    assert after["BTC"]["total"] > before["BTC"]["total"] if "BTC" in before else True


async def pro_session(client, told):
    candle = await client.watch_ohlcv(SYMBOL, "1m")
    assert candle[-1][4] > 0
    trade = await client.watch_trades(SYMBOL)
    assert trade[-1]["price"] > 0
    book = await client.watch_order_book(SYMBOL)
    assert book["bids"] and book["asks"]
    assert (await client.watch_ticker(SYMBOL))["last"] > 0
    assert SYMBOL in await client.watch_bids_asks([SYMBOL])
    orders = asyncio.ensure_future(client.watch_orders(SYMBOL))
    balance = asyncio.ensure_future(client.watch_balance())
    while not any("ws-api" in url and c.connected.done() for url, c in client.clients.items()):  # noqa: ASYNC110  # ccxt sends no event
        await asyncio.sleep(0.05)
    await asyncio.sleep(1)  # nor one for its subscription
    placed = await client.create_order_ws(SYMBOL, "market", "buy", 0.002)
    seen = await asyncio.wait_for(orders, 30)
    assert seen[-1]["id"] == placed["id"], (seen, placed)
    told["watched"] = placed["id"]
    told["watched_balance"] = (await asyncio.wait_for(balance, 30))["BTC"]["total"]


async def main(rest, ws, key, secret):
    told = {}
    options = {"apiKey": key, "secret": secret}
    client = point(ccxt.binance(options), rest, ws)
    try:
        await rest_session(client, told)
    finally:
        await client.close()
    live = point(pro.binance(options), rest, ws)
    try:
        await pro_session(live, told)
        told["balance"] = {
            asset: live.number_to_string(amounts["total"])
            for asset, amounts in (await live.fetch_balance()).items()
            if asset in ("BTC", "USDT")
        }
    finally:
        await live.close()
    for name, wrong in (("key", {"apiKey": "nobody"}), ("secret", {"secret": "wrong"})):
        stranger = point(ccxt.binance({**options, **wrong}), rest, ws)
        try:
            told["errors"][name] = await refusal(stranger.fetch_balance())
        finally:
            await stranger.close()
    print(json.dumps(told))


asyncio.run(main(*sys.argv[1:]))
