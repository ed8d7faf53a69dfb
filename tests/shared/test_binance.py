"""The Binance client: what it understands, what it refuses, and that it never hammers."""

import asyncio
import contextlib
import json
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from shared.binance import (
    FUTURES,
    SPOT,
    Ack,
    Attempts,
    Busy,
    KlineUpdate,
    Rest,
    ShutdownWarning,
    Socket,
    Weights,
    is_closed_candle,
    kline_from_row,
    kline_stream,
    parse_message,
    stop_s,
)
from shared.errors import BadInput, Rejected, Unavailable

# The sample of Binance's own documentation.
EVENT: dict[str, Any] = {
    "e": "kline", "E": 1672515782136, "s": "BNBBTC",
    "k": {
        "t": 1672515780000, "T": 1672515839999, "s": "BNBBTC", "i": "1m", "f": 100, "L": 200,
        "o": "0.0010", "c": "0.0020", "h": "0.0025", "l": "0.0015", "v": "1000", "n": 100,
        "x": False, "q": "1.0000", "V": "500", "Q": "0.500", "B": "123456",
    },
}  # fmt: skip
ROW = [
    1499040000000, "0.01634790", "0.80000000", "0.01575800", "0.01577100", "148976.11427815",
    1499040059999, "2434.19055334", 308, "1756.87402397", "28.46694368", "0",
]  # fmt: skip


def compact(body: Any) -> str:
    return json.dumps(body, separators=(",", ":"))


# -- messages -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", ["", "bnbbtc@kline_1m"], ids=["raw", "combined"])
def test_a_kline_message_is_read_raw_and_combined(stream: str) -> None:
    body = {"stream": stream, "data": EVENT} if stream else EVENT
    update = parse_message(compact(body))
    assert isinstance(update, KlineUpdate)
    assert (update.stream, update.event_ms, update.closed) == (stream, 1672515782136, False)
    kline = update.kline
    assert (kline.symbol, kline.interval, kline.open_time_ms) == ("BNBBTC", "1m", 1672515780000)
    assert kline.row() == (0.001, 0.0025, 0.0015, 0.002, 1000.0, 1.0, 100.0, 500.0, 0.5)


def test_only_the_frame_that_closes_a_candle_says_so() -> None:
    closed = EVENT | {"k": EVENT["k"] | {"x": True}}
    assert is_closed_candle(compact({"stream": "bnbbtc@kline_1m", "data": closed}))
    assert not is_closed_candle(compact({"stream": "bnbbtc@kline_1m", "data": EVENT}))


def test_a_value_that_the_source_lacks_is_nan() -> None:
    update = parse_message(compact(EVENT | {"k": EVENT["k"] | {"n": "NaN", "V": "NaN"}}))
    assert isinstance(update, KlineUpdate)
    assert math.isnan(update.kline.trades)
    assert math.isnan(update.kline.taker_base)


@pytest.mark.parametrize(
    "body",
    [
        {"e": "serverShutdown", "E": 1770123456789},
        {"stream": "!serverShutdown", "data": {"e": "serverShutdown", "E": 1770123456789}},
    ],
    ids=["raw", "combined"],
)
def test_an_announced_shutdown_is_understood_in_both_shapes(body: Any) -> None:
    assert parse_message(compact(body)) == ShutdownWarning()


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"result": None, "id": 1}, ""),
        ({"code": 2, "msg": "Invalid request", "id": 1}, "2 Invalid request"),
        (
            {"error": {"code": 4, "msg": "Too many subscriptions"}, "id": 1},
            "4 Too many subscriptions",
        ),
    ],
)
def test_replies_to_control_messages_come_in_three_shapes(body: Any, error: str) -> None:
    assert parse_message(compact(body)) == Ack(id=1, error=error)


@pytest.mark.parametrize(
    "text",
    [
        '{"stream":"btcusdt@bookTicker","data":{"u":1,"s":"BTCUSDT","b":"1","B":"1","a":"2","A":"1"}}',
        '{"e":"aggTrade","E":1,"s":"BTCUSDT"}',
    ],
)
def test_other_events_are_passed_over(text: str) -> None:
    assert parse_message(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<html><body>502 Bad Gateway</body></html>",
        "[1,2]",
        "[" * 100_000,
        compact(EVENT)[: len(compact(EVENT)) // 2],
        compact(EVENT | {"k": None}),
        compact(EVENT | {"E": "soon"}),
        compact(EVENT | {"k": EVENT["k"] | {"x": "yes"}}),
        compact(EVENT | {"k": EVENT["k"] | {"c": "cheap"}}),
        compact(EVENT | {"k": EVENT["k"] | {"c": True}}),
        compact(EVENT | {"k": EVENT["k"] | {"t": -5}}),
        compact(EVENT | {"k": {n: v for n, v in EVENT["k"].items() if n != "v"}}),
    ],
)
def test_a_malformed_message_is_bad_input(text: str) -> None:
    with pytest.raises(BadInput):
        parse_message(text)


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(
        st.sampled_from(("e", "E", "k", "s", "t", "x", "stream", "data", "result", "code")),
        inner,
    ),
))  # fmt: skip
def test_no_json_makes_the_parser_fail_otherwise(body: Any) -> None:
    with contextlib.suppress(BadInput):
        parse_message(json.dumps(body))


@given(st.floats(min_value=1e-12, max_value=1e12))
def test_decimal_text_becomes_the_nearest_double(value: float) -> None:
    row = [*ROW[:4], repr(value), *ROW[5:]]
    assert kline_from_row(row, "BTCUSDT", "1m").close == value


def test_stream_names_are_lower_case() -> None:
    assert kline_stream("BTCUSDT", "1m") == "btcusdt@kline_1m"


# -- weight and attempts ------------------------------------------------------------------------


def test_weight_beyond_our_share_waits_for_the_next_clock_minute() -> None:
    weights = Weights(limit=100, share=0.5)
    now_s = 600.0 + 20
    for _ in range(25):
        assert weights.wait_s(2, now_s) == 0
        weights.sent(2, now_s)
    assert 40 <= weights.wait_s(2, now_s) <= 41
    assert weights.wait_s(2, 660.1) == 0


def test_what_others_of_our_address_use_leaves_a_reserve() -> None:
    weights = Weights(limit=100, share=0.5)
    weights.heard(95, 600.0)
    assert weights.wait_s(2, 600.0) > 0
    assert weights.wait_s(2, 660.0) == 0


def test_retry_after_stops_every_call() -> None:
    weights = Weights()
    weights.refused(130, 600.0)
    weights.refused(5, 601.0)  # a shorter one does not shorten it
    assert weights.wait_s(1, 700.0) == pytest.approx(30)
    assert weights.wait_s(1, 730.0) == 0


def test_connection_attempts_stay_below_the_exchanges_limit() -> None:
    attempts, now_s, made = Attempts(), 0.0, []
    while now_s < 900:
        wait_s = attempts.wait_s(now_s)
        if wait_s == 0:
            made.append(now_s)
            wait_s = 0.01
        now_s += wait_s
    for start in made:
        assert sum(start <= at < start + 300 for at in made) < 300


# -- REST over the wire -------------------------------------------------------------------------


@dataclass
class Host:
    """A server whose every reply the test chooses."""

    answer: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None
    requests: list[web.Request] = field(default_factory=list)
    url: str = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        assert self.answer is not None
        return await self.answer(request)

    def reply(self, *args: Any, **kwargs: Any) -> None:
        async def answer(_: web.Request) -> web.StreamResponse:
            return web.Response(*args, **kwargs)

        self.answer = answer


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    made = Host()
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", made.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def test_klines_are_asked_and_read(host: Host, http: aiohttp.ClientSession) -> None:
    host.reply(text=json.dumps([ROW]), headers={"X-Mbx-Used-Weight-1m": "77"})
    rest = Rest(http, host.url, SPOT, Weights())
    rows = await rest.klines("ETHBTC", "1m", start_ms=1499040000000, limit=5)
    request = host.requests[0]
    assert request.path == "/api/v3/klines"
    assert dict(request.query) == {
        "symbol": "ETHBTC", "interval": "1m", "limit": "5", "startTime": "1499040000000",
    }  # fmt: skip
    assert [row.open_time_ms for row in rows] == [1499040000000]
    assert rows[0].row() == (
        0.0163479, 0.8, 0.015758, 0.015771, 148976.11427815, 2434.19055334, 308.0, 1756.87402397,
        28.46694368,
    )  # fmt: skip
    assert rest.weights.total == 77


def shifted(by: int) -> list[Any]:
    return [ROW[0] + by, *ROW[1:]]  # type: ignore[operator]


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "<html>busy</html>",
        "null",
        '{"a":1}',
        json.dumps([ROW[:5]]),
        json.dumps([[*ROW[:4], None, *ROW[5:]]]),
        json.dumps([shifted(60_000), ROW]),
        json.dumps([ROW, ROW]),
        json.dumps([shifted(-60_000), ROW]),
        json.dumps([shifted(60_000 * i) for i in range(6)]),
    ],
    ids=[
        "empty", "cut", "html", "null", "object", "short row", "no close", "disorder", "twice",
        "before the start", "more than asked",
    ],
)  # fmt: skip
async def test_a_reply_that_cannot_be_trusted_is_no_reply(
    host: Host, http: aiohttp.ClientSession, body: str
) -> None:
    host.reply(text=body)
    rest = Rest(http, host.url, SPOT, Weights())
    with pytest.raises(Unavailable):
        await rest.klines("ETHBTC", "1m", start_ms=1499040000000, limit=5)
    assert rest.failures == 1


@pytest.mark.parametrize("status", [418, 429])
async def test_retry_after_is_obeyed(host: Host, http: aiohttp.ClientSession, status: int) -> None:
    host.reply(status=status, text="{}", headers={"Retry-After": "1"})
    rest = Rest(http, host.url, SPOT, Weights())
    with pytest.raises(Busy) as caught:
        await rest.klines("ETHBTC", "1m")
    assert caught.value.retry_after_s == 1
    started = time.monotonic()
    host.reply(text="[]")
    assert await rest.klines("ETHBTC", "1m") == []
    assert time.monotonic() - started >= 0.95


@pytest.mark.parametrize(
    ("header", "text", "wait_s"),
    [
        (None, "IP banned until 1700000300000. Please use", 300),
        ("20", "IP banned until 1700000300000. Please use", 20),
        (None, "IP banned until 1699999999000.", 1),
        (None, "IP banned until 99", 60),
        (None, "", 60),
        ("soon", "", 60),
    ],
)
def test_a_stop_lasts_as_long_as_its_header_or_else_its_text_says(
    header: str | None, text: str, wait_s: float
) -> None:
    assert stop_s(header, text, 1_700_000_000.0) == wait_s


async def test_a_ban_without_a_header_is_obeyed(host: Host, http: aiohttp.ClientSession) -> None:
    until_ms = round(1000 * (time.time() + 7_200))
    host.reply(status=418, text=f'{{"code":-1003,"msg":"IP banned until {until_ms}."}}')
    rest = Rest(http, host.url, SPOT, Weights())
    with pytest.raises(Busy) as caught:
        await rest.klines("ETHBTC", "1m")
    assert 7_190 < caught.value.retry_after_s <= 7_200


async def test_a_firewalls_403_stops_us_for_a_minute(
    host: Host, http: aiohttp.ClientSession
) -> None:
    host.reply(status=403, text="<html>forbidden</html>", content_type="text/html")
    rest = Rest(http, host.url, SPOT, Weights())
    with pytest.raises(Busy) as caught:
        await rest.klines("ETHBTC", "1m")
    assert caught.value.retry_after_s == 60


async def test_a_5xx_is_retried_later_and_later(host: Host, http: aiohttp.ClientSession) -> None:
    host.reply(status=503, text='{"code":-1000,"msg":"busy"}')
    rest = Rest(http, host.url, SPOT, Weights())
    times = []
    for _ in range(4):
        with pytest.raises(Unavailable):
            await rest.klines("ETHBTC", "1m")
        times.append(time.monotonic())
    pauses = [b - a for a, b in pairwise(times)]
    assert all(p >= 0.12 for p in pauses)
    assert pauses[2] > 0.45


async def test_a_wrong_request_is_rejected_with_the_exchanges_words(
    host: Host, http: aiohttp.ClientSession
) -> None:
    host.reply(status=400, text='{"code":-1121,"msg":"Invalid symbol."}')
    rest = Rest(http, host.url, FUTURES, Weights())
    with pytest.raises(Rejected, match="-1121 Invalid symbol"):
        await rest.klines("NOPE", "1m")
    assert host.requests[0].path == "/fapi/v1/klines"


async def test_a_dead_host_is_unavailable(http: aiohttp.ClientSession) -> None:
    rest = Rest(http, "http://127.0.0.1:1", SPOT, Weights())
    with pytest.raises(Unavailable):
        await rest.server_time_ms()


async def test_a_book_and_funding_are_read(host: Host, http: aiohttp.ClientSession) -> None:
    rest = Rest(http, host.url, FUTURES, Weights())
    host.reply(text='{"lastUpdateId":9,"bids":[["4.0","431"],["3.9","1"]],"asks":[["4.1","12"]]}')
    book = await rest.depth("BTCUSDT", 100)
    assert (book.last_update_id, book.bids, book.asks) == (
        9,
        ((4.0, 431.0), (3.9, 1.0)),
        ((4.1, 12.0),),
    )
    host.reply(text='{"lastUpdateId":9,"bids":[["3.9","431"],["4.0","1"]],"asks":[]}')
    with pytest.raises(Unavailable):
        await rest.depth("BTCUSDT", 100)
    host.reply(
        text='[{"symbol":"BTCUSDT","fundingTime":1570608000012,"fundingRate":"-0.0001","markPrice":""}]'
    )
    rest = Rest(http, host.url, FUTURES, Weights())
    rate = (await rest.funding("BTCUSDT", start_ms=0))[0]
    assert (rate.open_time_ms, rate.rate) == (1570608000000, -0.0001)
    assert math.isnan(rate.mark_price)


async def test_the_weight_limit_is_read_from_exchange_info(
    host: Host, http: aiohttp.ClientSession
) -> None:
    limits = [
        {"rateLimitType": "ORDERS", "interval": "DAY", "intervalNum": 1, "limit": 200000},
        {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": 1200},
    ]
    host.reply(text=json.dumps({"rateLimits": limits}))
    assert await Rest(http, host.url, SPOT, Weights()).weight_limit("BTCUSDT") == 1200


# -- streams over the wire ------------------------------------------------------------------------


async def test_a_pong_says_that_all_before_the_ping_was_handed_out(
    host: Host, http: aiohttp.ClientSession
) -> None:
    order: list[str] = []
    subscribed: list[Any] = []
    done = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        ws = web.WebSocketResponse(autoping=False)
        await ws.prepare(request)
        for _ in range(2):
            subscribed.append(await ws.receive_json())
        await ws.send_str("one")
        await ws.ping(b"are you there")
        pong = await ws.receive()
        order.append(f"pong {bytes(pong.data).decode()}")
        done.set()
        await ws.close()
        return ws

    host.answer = answer

    async def hold() -> None:
        order.append("held")

    socket = await Socket.open(http, host.url.replace("http", "ws"), FUTURES, before_pong=hold)
    streams = [f"s{i}usdt@kline_1m" for i in range(150)]
    started = time.monotonic()
    assert await socket.subscribe(streams) == 2
    assert time.monotonic() - started >= 0.25
    frame = await socket.receive()
    order.append(frame.text)
    assert abs(frame.received_us - time.time_ns() // 1000) < 5_000_000
    with pytest.raises(Unavailable):
        await socket.receive()
    await done.wait()
    await socket.close()
    assert order == ["one", "held", "pong are you there"]
    assert [len(m["params"]) for m in subscribed] == [100, 50]
    assert subscribed[0]["method"] == "SUBSCRIBE"
    assert host.requests[0].path == "/market/stream"


async def test_a_refused_connection_is_unavailable(host: Host, http: aiohttp.ClientSession) -> None:
    host.reply(status=503)
    with pytest.raises(Unavailable):
        await Socket.open(http, host.url.replace("http", "ws"), SPOT)
