"""Signatures of every kind, and the WS API, over the wire."""

import base64
import hashlib
import hmac
import json
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa

from simulator.auth import rest_payload, verifies, ws_payload
from simulator.exchange.orders import Key
from tests.simulator.client import SYMBOL, Client, Socket
from tests.simulator.exchange import Exchange, exchange

# binance.md section 4: the examples of Binance's own documents
SECRET = "NhqPtmdSJYdKjVHjA7PZj4Mge3R5YNiP1e3UZjInClVN65XAbvqqM6A7H5fATj0j"
REST_TEXT = (
    "symbol={}&side=BUY&type=LIMIT&timeInForce=GTC&quantity=1&price=0.1&recvWindow=5000"
    "&timestamp=1499827319559"
)


@pytest.mark.parametrize(
    ("symbol", "signature"),
    [
        ("LTCBTC", "c8db56825ae71d6d79447849e617115f4a920fa2acdcab2b053c4b2838bd6b71"),
        ("%EF%BC%91%EF%BC%92%EF%BC%93%EF%BC%94%EF%BC%95%EF%BC%96",
         "e1353ec6b14d888f1164ae9af8228a3dbd508bc82eb867db8ab6046442f33ef3"),
    ],
)  # fmt: skip
def test_rest_signatures_are_those_of_the_documents(symbol: str, signature: str) -> None:
    text = REST_TEXT.format(symbol)
    for query, body in (
        (f"{text}&signature={signature}", ""),
        ("", f"{text}&signature={signature}"),
        (text[:30], f"{text[30:]}&signature={signature}"),
        (f"signature={signature}&{text}", ""),
    ):
        payload, found = rest_payload(query, body)
        assert found == signature
        assert payload == text.encode()
        assert verifies(Key(SECRET), payload, signature.upper())
        assert not verifies(Key(SECRET), payload + b" ", signature)


def test_a_ws_signature_is_that_of_the_documents() -> None:
    params = {
        "symbol": "BTCUSDT", "side": "SELL", "type": "LIMIT", "timeInForce": "GTC",
        "quantity": "0.01000000", "price": "52000.00", "recvWindow": "100",
        "timestamp": "1645423376532",
        "apiKey": "vmPUZE6mv9SD5VNHk4HlWFsOr6aKE2zvsw0MuIgwCIPy6utIco14y7Ju91duEh8A",
        "signature": "not part of it",
    }  # fmt: skip
    signature = "aa1b5712c094bc4e57c05a1a5c1fd8d88dcd628338ea863fec7b88e59fe2db24"
    assert verifies(Key(SECRET), ws_payload(params), signature)


def pem_of(key: Any) -> str:
    public: bytes = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return public.decode()


async def with_key(ex: Exchange, kind: str) -> Client:
    """Another key of the first account, and a client that signs with it."""
    if kind == "Ed25519":
        private = ed25519.Ed25519PrivateKey.generate()
        await ex.control("key", key=kind, account="demo", public_key=pem_of(private))
        return Client(ex, kind, lambda payload: base64.b64encode(private.sign(payload)).decode())
    secret = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    await ex.control("key", key=kind, account="demo", public_key=pem_of(secret))
    return Client(
        ex,
        kind,
        lambda payload: base64.b64encode(
            secret.sign(payload, padding.PKCS1v15(), hashes.SHA256())
        ).decode(),
    )


@pytest.mark.parametrize("kind", ["Ed25519", "RSA"])
async def test_public_key_signatures_are_accepted_and_checked(kind: str) -> None:
    async with exchange() as ex:
        client = await with_key(ex, kind)
        order = await client.place("BUY", "MARKET", quantity="0.001")
        assert order["status"] == "FILLED"
        good = client.sign
        client.sign = lambda payload: good(payload + b"x")
        assert (await client.fails("GET", "account"))[1] == -1022
        client.sign = lambda _: "not base64"
        assert (await client.fails("GET", "account"))[1] == -1022


async def test_the_first_account_may_have_an_ed25519_key(tmp_path: Path) -> None:
    private = ed25519.Ed25519PrivateKey.generate()
    path = tmp_path / "key.pem"
    path.write_text(pem_of(private))
    async with exchange("--key", "mine", "--public-key", str(path)) as ex:
        client = Client(ex, "mine", lambda p: base64.b64encode(private.sign(p)).decode())
        assert (await client.balances())["USDT"] == ("10000.00000000", "0.00000000")


async def test_a_request_may_be_in_the_body_or_in_both() -> None:
    """python-binance sends DELETE with a form body, ccxt POST; Binance takes any mixture."""
    async with exchange() as ex:

        async def send(method: str, query: str, body: str) -> tuple[int, Any]:
            query += f"&timestamp={int(time.time() * 1000)}"
            signature = hmac.new(b"demo", (query + body).encode(), hashlib.sha256).hexdigest()
            body += f"{'&' if body else ''}signature={signature}"
            async with ex.http.request(
                method,
                f"/api/v3/order?{query}",
                data=body,
                headers={
                    "X-MBX-APIKEY": "demo",
                    "Content-Type": "application/x-www-form-urlencoded",
                },
            ) as reply:
                return reply.status, await reply.json()

        status, order = await send(
            "POST", "symbol=BTCUSDT&side=BUY", "type=LIMIT&timeInForce=GTC&quantity=0.001&price=4e4"
        )
        assert (status, order["code"]) == (400, -1100)
        status, order = await send(
            "POST",
            "symbol=BTCUSDT&side=BUY",
            "type=LIMIT&timeInForce=GTC&quantity=0.001&price=40000&symbol=NOTHING",
        )
        assert status == 200  # what is in both is the query's
        status, gone = await send("DELETE", "symbol=BTCUSDT", f"orderId={order['orderId']}")
        assert (status, gone["status"]) == (200, "CANCELED")
        status, unread = await send("DELETE", "symbol=BTCUSDT&orderId=1&colour=red", "")
        assert (status, unread["code"]) == (400, -1104)


async def test_json_numbers_are_signed_as_they_are_written() -> None:
    """The deprecated connector sends price and quantity as JSON numbers."""
    async with exchange() as ex:
        client = Client(ex)
        async with client.socket() as socket:
            now = int(time.time() * 1000)
            literal = {
                "apiKey": '"demo"', "price": "40000.10", "quantity": "0.0010", "recvWindow": "5000",
                "side": '"BUY"', "symbol": '"BTCUSDT"', "timeInForce": '"GTC"',
                "timestamp": str(now), "type": '"LIMIT"',
            }  # fmt: skip
            payload = "&".join(f"{k}={v.strip(chr(34))}" for k, v in sorted(literal.items()))
            literal["signature"] = f'"{client.sign(payload.encode())}"'
            params = ",".join(f'"{k}":{v}' for k, v in literal.items())
            await socket.ws.send_str(f'{{"id":"x-1","method":"order.place","params":{{{params}}}}}')
            reply = await socket.ws.receive_json(timeout=30)
        assert (reply["id"], reply["status"]) == ("x-1", 200), reply
        assert reply["result"]["price"] == "40000.10000000"
        kinds = [(row["rateLimitType"], row["interval"]) for row in reply["rateLimits"]]
        assert kinds == [("ORDERS", "SECOND"), ("ORDERS", "DAY"), ("REQUEST_WEIGHT", "MINUTE")]


async def test_both_dialects_tell_the_same() -> None:
    async with exchange("--balance", "USDT=100000", "BTC=1") as ex:
        client = Client(ex)
        async with client.socket() as socket:
            placed = await socket.signed(
                "order.place", symbol=SYMBOL, side="BUY", type="MARKET", quantity="0.001"
            )
            number = placed["result"]["orderId"]
            low = {
                "symbol": SYMBOL, "side": "BUY", "type": "LIMIT", "timeInForce": "GTC",
                "quantity": "0.001", "price": "40000",
            }  # fmt: skip
            assert (await socket.signed("order.test", **low))["result"] == {}
            waiting = await socket.signed("v3/order.place", **low)
            for method, rest, params in (
                ("order.status", "order", {"symbol": SYMBOL, "orderId": number}),
                ("openOrders.status", "openOrders", {"symbol": SYMBOL}),
                ("allOrders", "allOrders", {"symbol": SYMBOL}),
                ("myTrades", "myTrades", {"symbol": SYMBOL}),
                ("account.status", "account", {}),
                ("account.commission", "account/commission", {"symbol": SYMBOL}),
                ("account.rateLimits.orders", "rateLimit/order", {}),
                ("allOrderLists", "allOrderList", {}),
                ("openOrderLists.status", "openOrderList", {}),
            ):
                reply = await socket.signed(method, **params)
                assert reply["status"] == 200, reply
                assert reply["result"] == await client.ask("GET", rest, **params)
            gone = await socket.signed(
                "order.cancel", symbol=SYMBOL, orderId=waiting["result"]["orderId"]
            )
            assert gone["result"]["status"] == "CANCELED"
            refused = await socket.signed(
                "order.cancel", symbol=SYMBOL, orderId=waiting["result"]["orderId"]
            )
            assert (refused["status"], refused["error"]["code"]) == (400, -2011)
            last = multiples(await ex.get("/api/v3/ticker/price", symbol=SYMBOL))
            made = await socket.signed(
                "orderList.place.oco", symbol=SYMBOL, side="SELL", quantity="0.5",
                aboveType="LIMIT_MAKER", abovePrice=last(1.01), belowType="STOP_LOSS",
                belowStopPrice=last(0.99),
            )  # fmt: skip
            assert made["result"]["listOrderStatus"] == "EXECUTING", made
            swept = await socket.signed("openOrders.cancelAll", symbol=SYMBOL)
            assert len(swept["result"][0]["orderReports"]) == 2
            for method, path, params in (
                ("time", None, {}),
                ("ping", "ping", {}),
                ("exchangeInfo", None, {"symbols": [SYMBOL]}),
                ("depth", "depth", {"symbol": SYMBOL, "limit": 5}),
                ("klines", "klines", {"symbol": SYMBOL, "interval": "1m", "limit": 3}),
                ("trades.recent", "trades", {"symbol": SYMBOL, "limit": 3}),
                ("ticker.price", "ticker/price", {"symbol": SYMBOL}),
                ("ticker.book", "ticker/bookTicker", {"symbol": SYMBOL}),
                ("ticker.24hr", "ticker/24hr", {"symbol": SYMBOL}),
                ("avgPrice", "avgPrice", {"symbol": SYMBOL}),
            ):
                reply = await socket.request(method, params)
                assert reply["status"] == 200, reply
                if path is not None:
                    assert reply["result"] == await ex.get(f"/api/v3/{path}", **params)
            unknown = await socket.request("order.dream")
            assert unknown["error"]["code"] == -1020
            silent = await socket.request("time", {"returnRateLimits": False})
            assert "rateLimits" not in silent
            await socket.ws.send_str("{")
            broken = await socket.ws.receive_json(timeout=30)
            assert (broken["id"], broken["error"]["code"]) == (None, -1135)


def multiples(ticker: dict[str, str]) -> Any:
    """Factor -> that multiple of the price, on the tick."""
    return lambda factor: f"{float(ticker['price']) * factor:.2f}"


async def test_a_session_logs_on_with_an_ed25519_key_only() -> None:
    async with exchange() as ex:
        async with Client(ex).socket() as socket:
            refused = await socket.signed("session.logon")
            assert (refused["status"], refused["error"]["code"]) == (400, -4056)
            stranger = await socket.request("userDataStream.subscribe")
            assert stranger["status"] == 401
        client = await with_key(ex, "Ed25519")
        async with client.socket() as socket:
            assert (await socket.request("session.status"))["result"]["apiKey"] is None
            logged = await socket.signed("session.logon")
            assert logged["result"]["apiKey"] == "Ed25519"
            assert (await socket.request("userDataStream.subscribe"))["result"] == {
                "subscriptionId": 0
            }
            again = await socket.signed("userDataStream.subscribe.signature")
            assert again["error"]["code"] == -2035
            now = {"timestamp": int(time.time() * 1000)}
            placed = await socket.request(  # no key, no signature: the session's
                "order.place",
                {"symbol": SYMBOL, "side": "BUY", "type": "MARKET", "quantity": "0.001", **now},
            )
            assert placed["result"]["status"] == "FILLED"
            events = await socket.next(3)
            assert [e.get("x") for e in events] == ["NEW", "TRADE", None]
            assert (await socket.request("session.subscriptions"))["result"] == [
                {"subscriptionId": 0}
            ]
            await socket.request("session.logout")
            assert (await socket.next(1))[0]["e"] == "eventStreamTerminated"
            late = await socket.request("account.status", now)
            assert late["status"] == 401
            assert (await socket.request("userDataStream.unsubscribe"))["error"]["code"] == -2036


async def test_a_revoked_key_ends_its_session() -> None:
    async with exchange() as ex:
        client = await with_key(ex, "Ed25519")
        async with client.socket() as socket:
            await socket.signed("session.logon")
            await ex.control("key", key="Ed25519", is_active=False)
            told = await socket.ws.receive_json(timeout=30)
            assert (told["id"], told["status"], told["error"]["code"]) == (None, 401, -2015)
            assert (await socket.request("session.status"))["result"]["apiKey"] is None


async def test_times_are_microseconds_on_request() -> None:
    async with exchange() as ex:
        client = Client(ex, headers={"X-MBX-TIME-UNIT": "MICROSECOND"})
        async with client.socket("?timeUnit=MICROSECOND") as socket:
            await socket.subscribe()
            micro = int(time.time() * 1_000_000)
            order = await client.ask(
                "POST", "order", symbol=SYMBOL, side="BUY", type="MARKET", quantity="0.001",
                timestamp=micro,
            )  # fmt: skip
            assert abs(order["transactTime"] - micro) < 60_000_000
            new, trade, position = await socket.next(3)
            assert new["T"] == order["transactTime"] == trade["T"]
            assert position["E"] > 10**15


async def test_a_slow_request_holds_up_no_other() -> None:
    async with exchange() as ex:
        client = Client(ex)
        async with client.socket() as socket:
            await ex.break_with("delay", on="ws", path="account", ms=2000, count=1)
            given = {"apiKey": "demo", "timestamp": int(time.time() * 1000)}
            text = f"apiKey=demo&timestamp={given['timestamp']}"
            slow = {**given, "signature": client.sign(text.encode())}
            await socket.ws.send_json({"id": "slow", "method": "account.status", "params": slow})
            await socket.ws.send_json({"id": "quick", "method": "ping"})
            first = await socket.ws.receive_json(timeout=30)
            assert first["id"] == "quick"
            assert (await socket.ws.receive_json(timeout=30))["id"] == "slow"


async def test_ws_requests_meet_faults_too() -> None:
    async with exchange() as ex:
        client = Client(ex)
        order = {"symbol": SYMBOL, "side": "BUY", "type": "MARKET", "quantity": "0.001"}
        async with client.socket() as socket:
            await ex.break_with("status", status=504, code=-1007, on="ws", executed=True, count=1)
            told = await socket.signed("order.place", **order)
            assert (told["status"], told["error"]["code"]) == (504, -1007)
            await ex.break_with("lost", on="ws", path="order", count=1)
            with pytest.raises((AssertionError, TypeError, aiohttp.ClientError)):
                await socket.signed("order.place", **order)
        held = await ex.get("/control/account")
        assert [o["status"] for o in held["orders"]] == ["FILLED", "FILLED"]


async def test_several_clients_hear_the_same_account() -> None:
    async with exchange() as ex:
        client = Client(ex)
        async with client.socket() as one, client.socket() as two:
            await one.subscribe()
            await two.subscribe()
            await client.place("BUY", "MARKET", quantity="0.001")
            assert json.dumps(await one.next(3)) == json.dumps(await two.next(3))
            await two.request("userDataStream.unsubscribe", {"subscriptionId": 0})
            await client.place("BUY", "MARKET", quantity="0.001")
            assert len(await one.next(3)) == 3
            assert await heard(two) == ["eventStreamTerminated"]


async def heard(socket: Socket) -> list[str]:
    """Kinds of the events that came before the answer to a ping."""
    await socket.request("ping")
    found, socket.events = socket.events, []
    return [event["e"] for event in found]
