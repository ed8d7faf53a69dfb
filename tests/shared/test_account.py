"""The account client against a scripted server: what is sent, and what each outcome is called."""

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import socket
import struct
import time
import traceback
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl

import pytest

from shared.account import BinanceAccount, _UserStream, user_event
from shared.binance import Busy, Weights
from shared.errors import BadInput, Unavailable, Unknown, Usage
from shared.exchange import (
    Account,
    Balance,
    BalancesChanged,
    Commission,
    Denied,
    Fill,
    KeyDenied,
    Locked,
    Moved,
    NewOco,
    NewOrder,
    OrderType,
    OutsideWindow,
    Permissions,
    Side,
    Status,
    StreamGap,
    StreamLost,
    UserEvent,
)
from tests.fakes.account import HTML, Answer, ScriptedAccount
from tests.waiting import until

D = Decimal
KEY = "canary-key-0123456789abcdef"
SECRET = "canary-secret-0123456789abcdef"
T0 = 1_780_000_000_000
ORDER = NewOrder(
    symbol="BTCUSDT",
    client_id="k1-abc",
    side=Side.BUY,
    type=OrderType.LIMIT,
    quantity=D("0.0100"),
    price=D("59000.10"),
    time_in_force="GTC",
)
PLACED: dict[str, Any] = {
    "symbol": "BTCUSDT",
    "orderId": 28,
    "orderListId": -1,
    "clientOrderId": "k1-abc",
    "transactTime": T0,
    "price": "59000.10000000",
    "origQty": "0.01000000",
    "executedQty": "0.00400000",
    "origQuoteOrderQty": "0.000000",
    "cummulativeQuoteQty": "235.99800000",
    "status": "PARTIALLY_FILLED",
    "timeInForce": "GTC",
    "type": "LIMIT",
    "side": "BUY",
    "workingTime": T0,
    "selfTradePreventionMode": "EXPIRE_MAKER",
    "fills": [
        {"price": "58999.50000000", "qty": "0.00400000", "commission": "0.00000400",
         "commissionAsset": "BTC", "tradeId": 56}
    ],
}  # fmt: skip
FOUND: dict[str, Any] = {k: v for k, v in PLACED.items() if k not in ("transactTime", "fills")} | {
    "stopPrice": "0.00000000",
    "icebergQty": "0.00000000",
    "time": T0,
    "updateTime": T0 + 5,
    "isWorking": True,
}
REPORT: dict[str, Any] = {
    "e": "executionReport", "E": T0 + 2, "s": "BTCUSDT", "c": "k1-abc", "S": "BUY", "o": "LIMIT",
    "f": "GTC", "q": "0.01000000", "p": "59000.10000000", "P": "0.00000000", "F": "0.00000000",
    "g": -1, "C": "", "x": "TRADE", "X": "PARTIALLY_FILLED", "r": "NONE", "i": 28,
    "l": "0.00400000", "z": "0.00400000", "L": "58999.50000000", "n": "0.00000400", "N": "BTC",
    "T": T0 + 1, "t": 56, "I": 8641984, "w": True, "m": True, "M": False, "O": T0,
    "Z": "235.99800000", "Y": "235.99800000", "Q": "0.00000000", "W": T0, "V": "EXPIRE_MAKER",
}  # fmt: skip


@contextlib.asynccontextmanager
async def talking(**options: Any) -> AsyncIterator[tuple[BinanceAccount, ScriptedAccount]]:
    async with (
        ScriptedAccount() as server,
        BinanceAccount(server.url, server.ws_url, key=KEY, secret=SECRET, **options) as account,
    ):
        yield account, server


def is_signed(payload: str) -> bool:
    """The signature is last, and of everything before it, as it was sent."""
    head, _, signature = payload.rpartition("&signature=")
    return hmac.new(SECRET.encode(), head.encode(), hashlib.sha256).hexdigest() == signature


def test_it_is_an_account() -> None:
    account: Account = BinanceAccount("http://h", "ws://h", key=KEY, secret=SECRET)
    assert SECRET not in repr(account) and KEY not in repr(account)
    for rest, ws in (("api.binance.com", "ws://h"), ("http://h", "https://h"), ("http://", "ws:")):
        with pytest.raises(Usage, match="no address"):
            BinanceAccount(rest, ws, key=KEY, secret=SECRET)


# -- placing ----------------------------------------------------------------------------------


async def test_an_order_is_sent_as_a_signed_form_with_the_callers_timestamp() -> None:
    async with talking() as (account, server):
        server.answers.append(Answer(PLACED, headers={"X-MBX-USED-WEIGHT-1M": "321"}))
        report = await account.place(ORDER, timestamp_ms=T0 - 7)
        (asked,) = server.asked
        assert (asked.method, asked.path, asked.query) == ("POST", "/api/v3/order", "")
        assert asked.headers["X-MBX-APIKEY"] == KEY
        assert asked.headers["Content-Type"] == "application/x-www-form-urlencoded"
        assert is_signed(asked.body.decode())
        assert dict(parse_qsl(asked.body.decode())) == {
            "symbol": "BTCUSDT", "side": "BUY", "type": "LIMIT", "timeInForce": "GTC",
            "quantity": "0.01", "price": "59000.1", "newClientOrderId": "k1-abc",
            "newOrderRespType": "FULL", "recvWindow": "5000", "timestamp": str(T0 - 7),
            "signature": asked.body.decode()[-64:],
        }  # fmt: skip
        assert account.weights.total == 321
    assert (report.order_id, report.list_id, report.client_id) == (28, None, "k1-abc")
    assert (report.status, report.executed) == (Status.PARTIALLY_FILLED, D("0.004"))
    assert report.executed_quote == D("235.998")
    assert (report.time_ms, report.update_ms) == (T0, T0)
    assert report.fills == (
        Fill(
            symbol="BTCUSDT", trade_id=56, order_id=28, side=Side.BUY, price=D("58999.5"),
            quantity=D("0.004"), quote_quantity=D("235.998"), fee=D("0.000004"), fee_asset="BTC",
            time_ms=T0, is_maker=False,
        ),
    )  # fmt: skip


async def test_every_kind_of_order_says_what_it_needs() -> None:
    cases: list[tuple[dict[str, Any], dict[str, str]]] = [
        ({"type": OrderType.MARKET, "price": None, "time_in_force": ""}, {"quantity": "0.01"}),
        (
            {"type": OrderType.MARKET, "price": None, "time_in_force": "", "quantity": None,
             "quote_quantity": D("1E+2")},
            {"quoteOrderQty": "100"},
        ),
        (
            {"type": OrderType.STOP_LOSS_LIMIT, "stop_price": D("58000")},
            {"quantity": "0.01", "price": "59000.1", "stopPrice": "58000", "timeInForce": "GTC"},
        ),
    ]  # fmt: skip
    common = {"symbol", "side", "type", "newClientOrderId", "newOrderRespType", "recvWindow",
              "timestamp", "signature"}  # fmt: skip
    async with talking() as (account, server):
        for changed, expected in cases:
            fields = {name: getattr(ORDER, name) for name in ORDER.__dataclass_fields__}
            order = NewOrder(**(fields | changed))
            server.answers.append(Answer(PLACED | {"type": order.type.value, "fills": []}))
            await account.place(order, timestamp_ms=T0)
            sent = dict(parse_qsl(server.asked[-1].body.decode()))
            assert {k: v for k, v in sent.items() if k not in common} == expected


async def test_symbols_of_other_scripts_are_encoded_before_they_are_signed() -> None:
    symbol = "这是测试币456"
    order = NewOrder(symbol=symbol, client_id="a", side=Side.SELL, type=OrderType.MARKET,
                     quantity=D(1))  # fmt: skip
    answer = PLACED | {"symbol": symbol, "clientOrderId": "a", "type": "MARKET", "side": "SELL"}
    async with talking() as (account, server):
        server.answers.append(Answer(answer))
        server.answers.append(Answer(FOUND | {"symbol": symbol}))
        await account.place(order, timestamp_ms=T0)
        await account.order(symbol, "k1-abc")
        for payload in (server.asked[0].body.decode(), server.asked[1].query):
            assert payload.isascii() and is_signed(payload)
            assert dict(parse_qsl(payload))["symbol"] == symbol


OCO = NewOco(
    symbol="BTCUSDT", list_client_id="list", side=Side.SELL, quantity=D("0.01"),
    target_client_id="up", target_price=D("62000"), stop_client_id="down", stop_price=D("58000"),
)  # fmt: skip


@pytest.mark.parametrize("side", Side)
@pytest.mark.parametrize("limit", [None, D("57900")])
async def test_an_oco_puts_the_target_above_for_a_sale_and_below_for_a_purchase(
    side: Side, limit: Decimal | None
) -> None:
    fields = {name: getattr(OCO, name) for name in OCO.__dataclass_fields__}
    oco = NewOco(**(fields | {"side": side, "stop_limit_price": limit}))
    stop_type = "STOP_LOSS" if limit is None else "STOP_LOSS_LIMIT"
    common = {"side": side.value, "status": "NEW", "fills": [], "orderListId": 3}
    stop = PLACED | common | {"clientOrderId": "down", "type": stop_type, "stopPrice": "58000.0"}
    target = PLACED | common | {"clientOrderId": "up", "type": "LIMIT_MAKER", "orderId": 29}
    body = {"orderListId": 3, "listClientOrderId": "list", "orderReports": [stop, target]}
    async with talking() as (account, server):
        server.answers.append(Answer(body))
        reports = await account.place_oco(oco, timestamp_ms=T0)
        (asked,) = server.asked
    assert asked.path == "/api/v3/orderList/oco" and is_signed(asked.body.decode())
    sent = dict(parse_qsl(asked.body.decode()))
    far, near = ("above", "below") if side is Side.SELL else ("below", "above")
    assert (sent[f"{far}Type"], sent[f"{far}Price"]) == ("LIMIT_MAKER", "62000")
    assert (sent[f"{near}Type"], sent[f"{near}StopPrice"]) == (stop_type, "58000")
    assert sent.get(f"{near}Price") == (None if limit is None else "57900")
    assert sent.get(f"{near}TimeInForce") == (None if limit is None else "GTC")
    assert (sent[f"{far}ClientOrderId"], sent[f"{near}ClientOrderId"]) == ("up", "down")
    assert (sent["listClientOrderId"], sent["quantity"]) == ("list", "0.01")
    assert f"{far}StopPrice" not in sent and f"{far}TimeInForce" not in sent
    assert [(r.client_id, r.list_id) for r in reports] == [("up", 3), ("down", 3)]


# -- what came of it ----------------------------------------------------------------------------


def error(code: int, text: str = "...", status: int = 400, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer({"code": code, "msg": text}, status=status, headers=named)


UNKNOWN = [
    Answer(cut="before"),
    Answer(PLACED, cut="headers"),
    error(-1000),
    error(-1001),
    error(-1006),
    error(-1007, "Timeout waiting for response from backend server.", 408),
    error(-1007, status=504),
    error(-1007, status=200),
    error(-1008),
    error(-1008, status=503),
    error(-2010, "Duplicate order sent."),
    error(-2010, status=500),
    Answer(HTML, status=502),
    Answer(HTML, status=200),
    Answer(HTML, status=400),
    Answer({}, status=503),
    Answer(b"", status=200),
    Answer(b'{"symbol":"BTCUSDT","ord', status=200),
    Answer([], status=200),
    Answer({}, status=200),
    Answer({}, status=302, headers={"Location": "/api/v3/time"}),
    Answer({"reason": "no code"}, status=400),
    Answer(PLACED | {"clientOrderId": "another"}),
    Answer(PLACED | {"symbol": "ETHUSDT"}),
    Answer(PLACED | {"side": "SELL"}),
    Answer(PLACED | {"executedQty": "NaN"}),
    Answer(PLACED | {"executedQty": "-1"}),
    Answer(PLACED | {"executedQty": 0.004}),
    Answer(PLACED | {"orderId": "28"}),
    Answer(PLACED | {"status": "SOMETHING_NEW"}),
    Answer(PLACED | {"transactTime": -5}),
    Answer({k: v for k, v in PLACED.items() if k != "origQty"}),
    Answer(PLACED | {"fills": [{}]}),
]


@pytest.mark.parametrize("answer", UNKNOWN, ids=lambda a: f"{a.status}-{str(a.body)[:50]}-{a.cut}")
async def test_an_order_whose_fate_was_not_told_is_unknown_and_was_sent_once(
    answer: Answer,
) -> None:
    async with talking() as (account, server):
        server.answers += [answer, Answer(PLACED)]
        with pytest.raises(Unknown):
            await account.place(ORDER, timestamp_ms=T0)
        assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("answer", "kind", "code"),
    [
        (error(-2010, "Account has insufficient balance for requested action."), Denied, -2010),
        (error(-1013, "Filter failure: LOT_SIZE"), Denied, -1013),
        (error(-1111), Denied, -1111),
        (error(-1021, "Timestamp for this request is outside of the recvWindow."), OutsideWindow,
         -1021),
        (error(-1022, "Signature for this request is not valid."), KeyDenied, -1022),
        (error(-2014, status=401), KeyDenied, -2014),
        (error(-2015, status=401), KeyDenied, -2015),
        (Answer(b"", status=401), KeyDenied, 0),
        (error(-1121, "Invalid symbol."), Denied, -1121),
        (error(-1020, status=404), Denied, -1020),
    ],
)  # fmt: skip
async def test_a_definite_refusal_says_why(answer: Answer, kind: type[Denied], code: int) -> None:
    async with talking() as (account, server):
        server.answers += [answer, answer]
        with pytest.raises(Denied) as caught:
            await account.place(ORDER, timestamp_ms=T0)
        assert type(caught.value) is kind and caught.value.code == code
        if isinstance(answer.body, dict):
            assert caught.value.text == answer.body["msg"]
        with pytest.raises(kind):  # a question is refused in the same words
            await account.balances()
        assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("answer", "wait_s"),
    [
        (error(-1003, status=429, Retry_After="5"), 5),
        (error(-1003, status=418, Retry_After="120"), 120),
        (error(-1003), 60),
        (Answer(HTML, status=403), 60),
    ],
)
async def test_a_stop_stops_every_call_until_its_time(answer: Answer, wait_s: float) -> None:
    async with talking() as (account, server):
        server.answers.append(answer)
        with pytest.raises(Busy) as caught:
            await account.place(ORDER, timestamp_ms=T0)
        assert caught.value.retry_after_s == wait_s
        for call in (
            account.place(ORDER, timestamp_ms=T0),
            account.cancel("BTCUSDT", "k1-abc"),
            account.balances(),
            account.clock_skew_ms(),
        ):
            with pytest.raises(Busy) as caught:
                await call
            assert wait_s - 5 < caught.value.retry_after_s <= wait_s
        assert len(server.asked) == 1


async def test_a_ban_without_a_header_holds_until_the_time_in_its_text() -> None:
    until_ms = round(1000 * (time.time() + 7_200))
    what = f"Way too much request weight used; IP banned until {until_ms}. Please use WebSocket"
    async with talking() as (account, server):
        server.answers.append(error(-1003, what, 418))
        with pytest.raises(Busy) as caught:
            await account.place(ORDER, timestamp_ms=T0)
        assert 7_190 < caught.value.retry_after_s <= 7_200
        with pytest.raises(Busy):
            await account.balances()
        assert len(server.asked) == 1


async def test_too_many_orders_stops_orders_only() -> None:
    async with talking() as (account, server):
        server.answers.append(error(-1015, "Too many new orders.", 429))
        server.answers.append(Answer(FOUND | {"origClientOrderId": "k1-abc", "transactTime": T0}))
        with pytest.raises(Busy) as caught:
            await account.place(ORDER, timestamp_ms=T0)
        assert caught.value.retry_after_s == 10
        assert await account.cancel("BTCUSDT", "k1-abc") is not None


async def test_where_no_connection_was_made_nothing_was_sent() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        async with BinanceAccount(
            f"http://127.0.0.1:{port}", f"ws://127.0.0.1:{port}", key=KEY, secret=SECRET
        ) as account:
            for call in (
                account.place(ORDER, timestamp_ms=T0),
                account.cancel("BTCUSDT", "a"),
                account.balances(),
            ):
                with pytest.raises(Unavailable) as caught:
                    await call
                assert type(caught.value) is Unavailable


async def test_an_answer_that_comes_too_late_is_none() -> None:
    late = asyncio.Event()
    async with talking(answer_s=0.2) as (account, server):
        server.answers += [Answer(PLACED, delay=late), Answer(FOUND, delay=late)]
        with pytest.raises(Unknown):
            await account.place(ORDER, timestamp_ms=T0)
        with pytest.raises(Unavailable):
            await account.order("BTCUSDT", "k1-abc")
        late.set()


@pytest.mark.parametrize("method", ["place", "cancel", "order"])
async def test_a_kept_connection_that_broke_is_not_tried_twice(method: str) -> None:
    """The server drops the connection when the second request is on it: sent, not answered."""
    requests: list[bytes] = []
    body = json.dumps({"serverTime": T0}).encode()
    account_body = json.dumps({"balances": []}).encode()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            requests.append(head)
            if b"/time" in head or b"/account" in head:
                text = body if b"/time" in head else account_body
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(text) + text)
            else:
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, linger
                )
                writer.close()
                return

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    async with server, BinanceAccount(url, "ws://h", key=KEY, secret=SECRET) as account:
        await account.clock_skew_ms()
        await account.balances()
        with pytest.raises(Unavailable if method == "order" else Unknown):
            if method == "place":
                await account.place(ORDER, timestamp_ms=T0)
            elif method == "cancel":
                await account.cancel("BTCUSDT", "a")
            else:
                await account.order("BTCUSDT", "a")
    assert len(requests) == 3


async def test_a_cancelled_order_is_told_under_its_own_id() -> None:
    cancelled = FOUND | {
        "origClientOrderId": "k1-abc", "clientOrderId": "random", "transactTime": T0 + 9,
        "status": "CANCELED",
    }  # fmt: skip
    async with talking() as (account, server):
        server.answers.append(Answer(cancelled))
        report = await account.cancel("BTCUSDT", "k1-abc")
        assert report is not None
        assert (report.client_id, report.status) == ("k1-abc", Status.CANCELED)
        asked = server.asked[0]
        assert (asked.method, asked.path, asked.body) == ("DELETE", "/api/v3/order", b"")
        assert is_signed(asked.query)
        server.answers.append(Answer({"orderListId": 1, "orderReports": [cancelled]}))
        assert await account.cancel("BTCUSDT", "k1-abc") == report
        server.answers.append(error(-2011, "Unknown order sent."))
        assert await account.cancel("BTCUSDT", "k1-abc") is None
        server.answers.append(error(-2011, "Order was not canceled due to cancel restrictions."))
        with pytest.raises(Denied):
            await account.cancel("BTCUSDT", "k1-abc")
        server.answers.append(Answer(cancelled | {"origClientOrderId": "other"}))
        with pytest.raises(Unknown):
            await account.cancel("BTCUSDT", "k1-abc")


# -- questions ----------------------------------------------------------------------------------


async def test_an_order_that_does_not_exist_is_none_and_a_cancelled_one_keeps_its_id() -> None:
    async with talking() as (account, server):
        server.answers.append(error(-2013, "Order does not exist."))
        assert await account.order("BTCUSDT", "k1-abc") is None
        server.answers.append(Answer(FOUND | {"clientOrderId": "id-of-the-cancel"}))
        report = await account.order("BTCUSDT", "k1-abc")
        assert report is not None and report.client_id == "k1-abc"
        assert (report.time_ms, report.update_ms, report.fills) == (T0, T0 + 5, ())
        assert is_signed(server.asked[0].query)
        sent = dict(parse_qsl(server.asked[0].query))
        assert (sent["origClientOrderId"], sent["symbol"]) == ("k1-abc", "BTCUSDT")


@pytest.mark.parametrize(
    "answer",
    [
        Answer(cut="before"),
        Answer(FOUND, cut="headers"),
        Answer(HTML, status=502),
        Answer(HTML, status=200),
        error(-1007, status=504),
        error(-1000),
        error(-1001, status=500),
        Answer({}),
        Answer(FOUND | {"executedQty": "x"}),
    ],
)
async def test_a_question_without_a_good_answer_is_unavailable_and_was_asked_once(
    answer: Answer,
) -> None:
    async with talking() as (account, server):
        server.answers += [answer, Answer(FOUND)]
        with pytest.raises(Unavailable):
            await account.order("BTCUSDT", "k1-abc")
        assert len(server.asked) == 1


async def test_orders_are_read_over_windows_of_a_day_and_within_them_by_pages() -> None:
    hour = 3_600_000
    async with talking() as (account, server):
        now = account.now_ms()
        start = now - 49 * hour  # two whole days and an hour
        dense = [
            FOUND | {"orderId": 1000 + i, "clientOrderId": f"o{i}", "time": start + 24 * hour + i}
            for i in range(1000)
        ]
        more = [FOUND | {"orderId": 2000, "clientOrderId": "more", "time": start + 25 * hour}]
        last = [FOUND | {"orderId": 3000, "clientOrderId": "last", "time": now - 5}]
        server.answers += [Answer([]), Answer(dense), Answer([dense[-1], *more]), Answer(last)]
        found = await account.orders_since("BTCUSDT", start)
    assert [report.order_id for report in found] == [*range(1000, 2000), 2000, 3000]
    windows = [dict(parse_qsl(asked.query)) for asked in server.asked]
    times = [(int(w["startTime"]) - start, "endTime" in w) for w in windows]
    assert times == [
        (0, True), (24 * hour, True), (24 * hour + 999, True), (48 * hour + 999, False),
    ]  # fmt: skip
    for window in windows:
        if "endTime" in window:
            assert int(window["endTime"]) - int(window["startTime"]) == 24 * hour - 1
        assert window["limit"] == "1000"


async def test_old_orders_are_read_by_id() -> None:
    async with talking() as (account, server):
        start = account.now_ms() - 400 * 86_400_000
        old = [FOUND | {"orderId": 1 + i, "time": start - 5} for i in range(1000)]
        new = [FOUND | {"orderId": 5000, "time": start}]
        server.answers += [Answer(old), Answer(new)]
        assert [o.order_id for o in await account.orders_since("BTCUSDT", start)] == [5000]
        asked = [dict(parse_qsl(a.query)) for a in server.asked]
        assert [a["orderId"] for a in asked] == ["1", "1001"]
        assert not any("startTime" in a for a in asked)
        server.answers.append(Answer(old))
        server.answers.append(Answer(old))
        with pytest.raises(Unavailable, match="none of them new"):
            await account.orders_since("BTCUSDT", start)


STRANGE = [{"status": "PENDING_CANCEL"}, {"type": "PEGGED"}]


@pytest.mark.parametrize("strange", STRANGE)
async def test_an_order_of_others_that_is_not_understood_hides_none_of_ours(
    strange: dict[str, Any],
) -> None:
    async with talking(prefix="k1-") as (account, server):
        now = account.now_ms()
        ours = FOUND | {"orderId": 7, "clientOrderId": "k1-abc", "time": now}
        others = FOUND | strange | {"orderId": 29, "clientOrderId": "web_1", "time": now}
        server.answers += [Answer([ours, others])] * 2
        assert [o.order_id for o in await account.open_orders("BTCUSDT")] == [7]
        assert [o.order_id for o in await account.orders_since("BTCUSDT", now - 1000)] == [7]


@pytest.mark.parametrize("name", ["k1-xyz", "", None])
@pytest.mark.parametrize("strange", STRANGE)
async def test_an_order_that_may_be_ours_and_is_not_understood_is_no_answer(
    strange: dict[str, Any], name: str | None
) -> None:
    async with talking(prefix="k1-") as (account, server):
        now = account.now_ms()
        ours = FOUND | {"orderId": 7, "clientOrderId": "k1-abc", "time": now}
        server.answers += [Answer([ours, FOUND | strange | {"clientOrderId": name}])] * 2
        with pytest.raises(Unavailable):
            await account.open_orders("BTCUSDT")
        with pytest.raises(Unavailable):
            await account.orders_since("BTCUSDT", now - 1000)


TRADE: dict[str, Any] = {
    "symbol": "BTCUSDT", "id": 56, "orderId": 28, "orderListId": -1, "price": "58999.50000000",
    "qty": "0.00400000", "quoteQty": "235.99800000", "commission": "0.00000400",
    "commissionAsset": "BTC", "time": T0 + 1, "isBuyer": True, "isMaker": True,
    "isBestMatch": True,
}  # fmt: skip


async def test_fills_are_read_to_the_end() -> None:
    async with talking() as (account, server):
        pages = [TRADE | {"id": i} for i in range(100, 1100)], [TRADE | {"id": 1105}]
        server.answers += [Answer(page) for page in pages]
        found = await account.fills("BTCUSDT", from_trade_id=100)
        assert [fill.trade_id for fill in found] == [*range(100, 1100), 1105]
        asked = [dict(parse_qsl(a.query)) for a in server.asked]
        assert [a["fromId"] for a in asked] == ["100", "1100"]
        server.answers += [Answer(page) for page in pages]
        assert len(await account.fills("BTCUSDT", order_id=28)) == 1001
        asked = [dict(parse_qsl(a.query)) for a in server.asked[2:]]
        assert [(a["orderId"], a.get("fromId")) for a in asked] == [("28", None), ("28", "1100")]
        server.answers.append(Answer([TRADE]))
        assert await account.fills("BTCUSDT") == [
            Fill(
                symbol="BTCUSDT", trade_id=56, order_id=28, side=Side.BUY, price=D("58999.5"),
                quantity=D("0.004"), quote_quantity=D("235.998"), fee=D("0.000004"),
                fee_asset="BTC", time_ms=T0 + 1, is_maker=True,
            )
        ]  # fmt: skip
        assert dict(parse_qsl(server.asked[-1].query))["fromId"] == "0"
        server.answers.append(Answer([TRADE | {"orderId": 29}]))
        with pytest.raises(Unavailable, match="not asked for"):
            await account.fills("BTCUSDT", order_id=28)


async def test_balances_permissions_commission_and_prices() -> None:
    status = {
        "canTrade": True,
        "canWithdraw": False,
        "balances": [{"asset": "BTC", "free": "1.5", "locked": "0.25"}],
    }
    restrictions = {
        "ipRestrict": True,
        "enableWithdrawals": True,
        "enableSpotAndMarginTrading": False,
        "enableReading": True,
    }
    part = {"maker": "0.00100000", "taker": "0.00120000", "buyer": "0.0001", "seller": "0.0002"}
    nothing = dict.fromkeys(part, "0")
    async with talking() as (account, server):
        server.by_path["/api/v3/account"] = Answer(status)
        found = await account.balances()
        assert found == {"BTC": Balance(asset="BTC", free=D("1.5"), locked=D("0.25"))}
        assert found["BTC"].total == D("1.75")
        server.answers.append(Answer(HTML, status=404))
        assert await account.permissions() == Permissions(can_trade=True, can_withdraw=False)
        server.answers.append(Answer(restrictions))
        assert await account.permissions() == Permissions(
            can_trade=False, can_withdraw=True, ip_restricted=True
        )
        for right in ("enableInternalTransfer", "permitsUniversalTransfer"):
            rights = {"enableInternalTransfer": False, "permitsUniversalTransfer": False}
            server.answers.append(Answer(restrictions | rights))
            assert (await account.permissions()).can_transfer is False
            server.answers.append(Answer(restrictions | rights | {right: True}))
            assert (await account.permissions()).can_transfer is True
        server.answers.append(
            Answer(
                {"symbol": "BTCUSDT", "standardCommission": part, "taxCommission": nothing,
                 "specialCommission": part}
            )
        )  # fmt: skip
        assert await account.commission("BTCUSDT") == Commission(maker=D("0.0024"),
                                                                 taker=D("0.0028"))  # fmt: skip
        # a reference price, none at the moment, and an exchange that does not know of them
        server.by_path["/api/v3/avgPrice"] = Answer({"mins": 5, "price": "60000.5"})
        reference = {"symbol": "BTCUSDT", "referencePrice": "60001.0", "timestamp": T0}
        server.answers.append(Answer(reference))
        assert await account.reference_price("BTCUSDT") == D("60001")
        server.answers.append(Answer(reference | {"referencePrice": None}))
        assert await account.reference_price("BTCUSDT") == D("60000.5")
        server.answers.append(error(-2043))
        assert await account.reference_price("BTCUSDT") == D("60000.5")
        assert await account.reference_price("BTCUSDT") == D("60000.5")  # not asked again
        server.answers.append(Answer(HTML, status=503))
        with pytest.raises(Unavailable):
            await account.reference_price("ETHUSDT")
        assert not server.answers


async def test_the_clock_is_measured_on_the_connection_of_orders_and_used_for_questions() -> None:
    async with talking() as (account, server):
        server.by_path["/api/v3/time"] = Answer({"serverTime": account.now_ms() + 10_000})
        skew = await account.clock_skew_ms()
        assert 9_000 < skew <= 10_001
        server.answers.append(Answer(PLACED))
        await account.place(ORDER, timestamp_ms=T0)
        assert len(server.connections) == 1
        server.answers.append(Answer([]))
        before = account.now_ms()
        await account.open_orders("BTCUSDT")
        sent = int(dict(parse_qsl(server.asked[-1].query))["timestamp"])
        assert before <= sent <= account.now_ms()
        server.by_path["/api/v3/time"] = Answer({"serverTime": "soon"})
        with pytest.raises(Unavailable):
            await account.clock_skew_ms()


async def test_questions_keep_to_the_weight_that_is_left_and_orders_do_not() -> None:
    weights = Weights(limit=6000)
    async with talking(weights=weights) as (account, server):
        server.answers.append(Answer(PLACED, headers={"x-mbx-used-weight-1m": "5999"}))
        await account.place(ORDER, timestamp_ms=T0)
        with pytest.raises(Busy, match="weight"):
            await account.balances()
        server.answers.append(Answer(PLACED))
        await account.place(ORDER, timestamp_ms=T0)
        assert len(server.asked) == 2


# -- secrets ------------------------------------------------------------------------------------


async def test_no_error_and_no_log_shows_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    echo = error(-1100, f"Illegal characters in {KEY}", 400)
    texts: list[str] = []
    async with talking(answer_s=1.0) as (account, server):
        never = asyncio.Event()
        for answer in (
            echo, error(-1007, KEY), error(-1003, KEY, 429, Retry_After="0"),
            Answer(cut="before"), Answer(HTML, status=502), Answer(delay=never),
        ):  # fmt: skip
            for _ in range(3):
                server.answers.append(answer)
            for call in (
                account.place(ORDER, timestamp_ms=T0),
                account.cancel("BTCUSDT", "a"),
                account.balances(),
            ):
                try:
                    await call
                except Exception as failure:  # noqa: BLE001 - whatever it is, its text counts
                    texts += [str(failure), repr(failure), repr(failure.args)]
                    texts += traceback.format_exception(failure)
        never.set()
        server.subscription = {"status": 401, "error": {"code": -2015, "msg": f"{KEY} is bad"}}
        events = account.user_events()
        (lost,) = await anext(events)
        assert isinstance(lost, StreamLost) and "-2015" in lost.reason
        texts += [repr(lost), repr(account), str(vars(account))]
        waiting = asyncio.ensure_future(anext(events))
        await until(lambda: len(server.subscribed) >= 2, timeout_s=60)
        waiting.cancel()
    texts += [caplog.text, *(str(vars(record)) for record in caplog.records)]
    everything = "\n".join(texts)
    assert "-1100" in everything and "[key]" in everything
    assert SECRET not in everything
    assert KEY not in everything.replace(f"'_key': '{KEY}'", "")  # the attribute itself


# -- user stream --------------------------------------------------------------------------------


async def test_the_user_stream_says_gap_first_and_after_every_connection() -> None:
    async with talking() as (account, server):
        events = account.user_events()
        assert await anext(events) == (StreamGap(since_ms=0),)
        asked = server.subscribed[0]
        assert asked["method"] == "userDataStream.subscribe.signature"
        params = asked["params"]
        payload = "&".join(f"{k}={params[k]}" for k in sorted(params) if k != "signature")
        digest = hmac.new(SECRET.encode(), payload.encode(), hashlib.sha256).hexdigest()
        assert params["signature"] == digest and params["apiKey"] == KEY

        await server.send(REPORT)
        (report,) = await anext(events)
        assert report == user_event(REPORT)
        await server.send({"e": "somethingNew", "E": T0})
        await server.send({"e": "listStatus", "E": T0})
        await server.sockets[-1].ping(b"x")
        await server.sockets[-1].send_json({"id": None, "status": 200})
        await server.send(REPORT)  # twice: the caller's to see
        assert await anext(events) == (report,)
        await server.send(REPORT | {"q": "NaN"})
        (gap,) = await anext(events)
        assert isinstance(gap, StreamGap) and gap.since_ms > 0

        await server.cut()
        (lost,) = await anext(events)
        assert isinstance(lost, StreamLost) and "1008" in lost.reason
        (gap,) = await anext(events)
        assert isinstance(gap, StreamGap) and 0 < gap.since_ms <= account.now_ms()
        await server.send({"e": "eventStreamTerminated", "E": T0})
        (lost,) = await anext(events)
        assert isinstance(lost, StreamLost) and "terminated" in lost.reason
        (gap,) = await anext(events)
        assert isinstance(gap, StreamGap)
        await events.aclose()  # type: ignore[attr-defined] - it is a generator


async def test_pings_are_answered_while_the_caller_does_something_else() -> None:
    async with talking() as (account, server):
        events = account.user_events()
        await anext(events)
        await server.sockets[-1].ping(b"are you there?")
        await asyncio.wait_for(server.ponged.wait(), 60)  # nobody asks for events
        assert server.pongs == [b"are you there?"]
        await server.send(REPORT)
        assert await anext(events) == (user_event(REPORT),)


async def test_events_that_nobody_reads_end_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    streams: list[Any] = []
    start = _UserStream.start
    monkeypatch.setattr("shared.account._UNREAD_EVENTS", 3)
    monkeypatch.setattr(_UserStream, "start", lambda one: (streams.append(one), start(one))[1])
    async with talking() as (account, server):
        events = account.user_events()
        await anext(events)
        for _ in range(5):
            await server.send(REPORT)
        await until(lambda: bool(streams[0]._reading and streams[0]._reading.done()), timeout_s=60)
        found = [await asyncio.wait_for(anext(events), 60) for _ in range(5)]
        assert found[:3] == [(user_event(REPORT),)] * 3
        (lost,), (gap,) = found[3:]
        assert isinstance(lost, StreamLost) and "unread" in lost.reason
        assert isinstance(gap, StreamGap)


async def test_a_silent_user_stream_is_replaced() -> None:
    async with talking(silence_s=0.2) as (account, server):
        events = account.user_events()
        assert await anext(events) == (StreamGap(since_ms=0),)
        (lost,) = await anext(events)
        assert isinstance(lost, StreamLost) and "silent" in lost.reason
        (gap,) = await anext(events)
        assert isinstance(gap, StreamGap)
        assert len(server.sockets) == 2


async def test_a_shutdown_is_answered_with_a_new_stream_before_the_old_ends() -> None:
    async with talking() as (account, server):
        events = account.user_events()
        await anext(events)
        old = server.sockets[-1]
        await server.send({"e": "serverShutdown", "E": T0})
        (gap,) = await anext(events)  # no StreamLost before it
        assert isinstance(gap, StreamGap) and len(server.sockets) == 2
        await until(lambda: old.closed, timeout_s=60)
        await server.send(REPORT)
        assert await anext(events) == (user_event(REPORT),)


async def test_a_stream_that_cannot_be_had_is_lost_once_and_tried_on() -> None:
    async with talking() as (account, server):
        server.ws_status = 503
        events = account.user_events()
        (lost,) = await anext(events)
        assert isinstance(lost, StreamLost) and "503" in lost.reason
        following = asyncio.ensure_future(anext(events))
        server.ws_status = 101
        (gap,) = await asyncio.wait_for(following, 60)
        assert gap == StreamGap(since_ms=0)
        server.ws_status = 429
        await server.cut()
        await anext(events)
        following = asyncio.ensure_future(anext(events))
        await until(lambda: account.weights.stopped_s(time.time()) > 0, timeout_s=60)
        with pytest.raises(Busy):
            await account.place(ORDER, timestamp_ms=T0)
        following.cancel()


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (
            {"e": "outboundAccountPosition", "E": T0, "u": T0 - 1,
             "B": [{"a": "BTC", "f": "1.0", "l": "0.5"}]},
            BalancesChanged(
                balances=(Balance(asset="BTC", free=D(1), locked=D("0.5")),), time_ms=T0 - 1
            ),
        ),
        (
            {"e": "balanceUpdate", "E": T0, "a": "BTC", "d": "-2.5", "T": T0 - 1},
            Moved(asset="BTC", delta=D("-2.5"), time_ms=T0 - 1),
        ),
        (
            {"e": "externalLockUpdate", "E": T0, "a": "NEO", "d": "10.0", "T": T0 - 1},
            Locked(asset="NEO", delta=D(10), time_ms=T0 - 1),
        ),
        ({"e": "listStatus", "E": T0}, None),
        ({"e": "brandNew"}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_user_events_are_read(event: dict[str, Any], expected: UserEvent | None) -> None:
    assert user_event(event) == expected


def test_an_execution_report_is_read() -> None:
    report = user_event(REPORT)
    assert report is not None and not isinstance(report, StreamGap)
    expected = {
        "symbol": "BTCUSDT", "order_id": 28, "list_id": None, "client_id": "k1-abc",
        "side": Side.BUY, "type": OrderType.LIMIT, "status": Status.PARTIALLY_FILLED,
        "quantity": D("0.01"), "price": D("59000.1"), "stop_price": D(0), "executed": D("0.004"),
        "executed_quote": D("235.998"), "time_ms": T0, "update_ms": T0 + 1, "reason": "",
    }  # fmt: skip
    assert {name: getattr(report, name) for name in expected} == expected
    assert report.fills == (  # type: ignore[union-attr] - it is a report
        Fill(
            symbol="BTCUSDT", trade_id=56, order_id=28, side=Side.BUY, price=D("58999.5"),
            quantity=D("0.004"), quote_quantity=D("235.998"), fee=D("0.000004"), fee_asset="BTC",
            time_ms=T0 + 1, is_maker=True,
        ),
    )  # fmt: skip
    cancelled = user_event(
        REPORT | {"x": "CANCELED", "X": "CANCELED", "c": "of-the-cancel", "C": "k1-abc",
                  "l": "0.00000000", "L": "0.00000000", "n": "0", "N": None, "t": -1}
    )  # fmt: skip
    assert (cancelled.client_id, cancelled.fills) == ("k1-abc", ())  # type: ignore[union-attr]
    rejected = user_event(REPORT | {"x": "REJECTED", "X": "REJECTED", "r": "INSUFFICIENT_BALANCES"})
    assert rejected.reason == "INSUFFICIENT_BALANCES"  # type: ignore[union-attr]
    expired = user_event(REPORT | {"x": "EXPIRED", "X": "EXPIRED", "eR": "OCO_TRIGGER", "g": 4})
    assert (expired.reason, expired.list_id) == ("OCO_TRIGGER", 4)  # type: ignore[union-attr]
    fine = {"L": "0.03333333", "l": "0.3333", "z": "0.3333", "Z": "0.01110999", "q": "1"}
    del (without := dict(REPORT | fine))["Y"]
    filled = user_event(without)
    assert filled.fills[0].quote_quantity == D("0.01110999")  # type: ignore[union-attr]
    for wrong in ({"X": "PENDING_CANCEL"}, {"i": None}, {"L": "0"}, {"n": "-1"}, {"g": "x"}):
        with pytest.raises(BadInput):
            user_event(REPORT | wrong)
