"""The paper exchange on a live market, which is a second simulator here."""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.account import BinanceAccount
from shared.errors import Unavailable, Usage
from shared.events import Kline
from shared.exchange import (
    Denied,
    NewOrder,
    OrderReport,
    OrderType,
    Side,
    Status,
    StreamGap,
)
from simulator.__main__ import build_mirror, parser
from simulator.exchange.amounts import UNIT, units
from simulator.exchange.orders import Key
from simulator.exchange.orders import Side as EngineSide
from simulator.exchange.symbols import Refused
from simulator.journal import Journal
from simulator.live import LiveBoard, LiveSymbol
from simulator.mirror import Mirror, mirroring
from simulator.server import PositionFile
from tests.fakes.account import Answer, ScriptedAccount
from tests.simulator.exchange import Exchange, exchange
from tests.waiting import until

D = Decimal
SYMBOL = "BTCUSDT"
ROOT = Path(__file__).parents[2]


class Paper:
    """A mirror at work."""

    def __init__(self, mirror: Mirror, port: int, account: BinanceAccount) -> None:
        self.mirror, self.port, self.account = mirror, port, account
        self.live = mirror.board.symbols[SYMBOL]
        self.url = f"http://127.0.0.1:{port}"

    async def followed(self, ex: Exchange) -> None:
        """Back when the mirror has seen the newest trade of the market."""
        newest = (await ex.get("/api/v3/aggTrades", symbol=SYMBOL, limit=1))[-1]
        await until(lambda: self.live.is_open and self.live.last_id >= newest["l"], timeout_s=60)

    async def advance(self, ex: Exchange, candles: int = 1) -> None:
        await ex.advance(candles)
        await self.followed(ex)


@contextlib.asynccontextmanager
async def paper(ex: Exchange, folder: Path | None = None, **more: Any) -> AsyncIterator[Paper]:
    upstream = f"http://127.0.0.1:{ex.port}"
    mirror = Mirror(
        rest_url=f"{upstream}/",
        ws_url=ex.ws_url,
        futures_rest_url=upstream,
        futures_ws_url=ex.ws_url,
        symbols=(SYMBOL,),
        keys={"paper": Key("secret")},
        balances={"USDT": units("10000"), "BTC": units("1")},
        journal=Journal(folder / "journal") if folder else None,
        position_file=PositionFile(folder / "position") if folder else None,
        **{"stale_s": 600.0} | more,
    )
    async with mirroring(mirror, "127.0.0.1", 0) as (port, work):
        url = f"127.0.0.1:{port}"
        account = BinanceAccount(
            f"http://{url}", f"ws://{url}/ws-api/v3", key="paper", secret="secret"
        )
        async with account:
            yield Paper(mirror, port, account)
        assert not work.done()


def order(client_id: str, side: Side, kind: OrderType, quantity: str, **more: Any) -> NewOrder:
    if kind in (OrderType.LIMIT, OrderType.STOP_LOSS_LIMIT):
        more["time_in_force"] = "GTC"
    return NewOrder(
        symbol=SYMBOL, client_id=client_id, side=side, type=kind, quantity=D(quantity), **more
    )


def now() -> int:
    return time.time_ns() // 1_000_000


class Tape:
    """The public trades of the live market from now on."""

    def __init__(self, ex: Exchange, after_id: int) -> None:
        self.ex, self.next_id = ex, after_id + 1
        self.trades: list[dict[str, Any]] = []

    async def read(self) -> list[dict[str, Any]]:
        """All of them so far."""
        await self.ex.control("limits", spot_weight=10**6)
        while page := await self.ex.get(
            "/api/v3/aggTrades", symbol=SYMBOL, fromId=self.next_id, limit=1000
        ):
            self.trades += page
            self.next_id = page[-1]["l"] + 1
        return self.trades


async def test_a_market_order_buys_what_the_live_book_offers() -> None:
    async with exchange() as ex, paper(ex) as there:
        await there.followed(ex)
        book = await ex.get("/api/v3/depth", symbol=SYMBOL, limit=20)
        events = there.account.user_events()
        assert await anext(events) == (StreamGap(since_ms=0),)
        placed = await there.account.place(
            order("a", Side.BUY, OrderType.MARKET, "0.1"), timestamp_ms=now()
        )
        assert placed.status is Status.FILLED
        left, cost = D("0.1"), D(0)
        for price, offered in book["asks"]:
            taken = min(left, D(offered))
            cost, left = cost + taken * D(price), left - taken
        assert left == 0 and placed.executed_quote == cost
        (first,) = await asyncio.wait_for(anext(events), 30)
        assert isinstance(first, OrderReport) and first.order_id == placed.order_id
        held = await there.account.balances()
        assert held["USDT"].total == 10_000 - cost
        with pytest.raises(Denied, match="LOT_SIZE"):
            await there.account.place(
                order("b", Side.BUY, OrderType.MARKET, "0.000001"), timestamp_ms=now()
            )


async def test_filters_and_market_data_are_those_of_the_live_exchange() -> None:
    async with exchange() as ex, paper(ex) as there, aiohttp.ClientSession() as http:
        await there.followed(ex)
        live = BinanceAccount(f"http://127.0.0.1:{ex.port}", "ws://h", key="demo", secret="demo")
        async with live:
            assert await there.account.rules(SYMBOL) == await live.rules(SYMBOL)
            ours = await there.account.reference_price(SYMBOL)
            assert ours == D(there.live.average).scaleb(-8) == await live.reference_price(SYMBOL)
        query = f"klines?symbol={SYMBOL}&interval=1m&limit=5"
        async with http.get(f"{there.url}/api/v3/{query}") as got:
            assert "X-MBX-USED-WEIGHT-1M" in got.headers
            assert await got.json() == await ex.klines(limit=5)
        async with http.get(f"{there.url}/api/v3/klines?symbol=NONE&interval=1m") as got:
            assert got.status == 400 and (await got.json())["code"] == -1121
        async with http.get(f"{there.url}/fapi/v1/premiumIndex?symbol={SYMBOL}") as got:
            assert (await got.json())["symbol"] == SYMBOL
        assert abs(await there.account.clock_skew_ms()) < 30_000
        async with http.ws_connect(f"ws://127.0.0.1:{there.port}/ws-api/v3") as ws:
            params = {"symbol": SYMBOL, "interval": "1m", "limit": 2}
            await ws.send_json({"id": 1, "method": "klines", "params": params})
            assert (await ws.receive_json(timeout=30))["result"] == await ex.klines(limit=2)
            await ws.send_json({"id": 2, "method": "klines", "params": {"symbol": "NONE"}})
            assert (await ws.receive_json(timeout=30))["error"]["code"] < -1000
        async with http.get(f"{there.url}/control") as got:
            state = await got.json()
            assert state["symbols"][SYMBOL]["open"] is True


async def test_market_streams_are_passed_on_frame_by_frame() -> None:
    async with exchange() as ex, paper(ex) as there, aiohttp.ClientSession() as http:
        await there.followed(ex)
        base = f"ws://127.0.0.1:{there.port}"
        async with (
            http.ws_connect(f"{base}/stream") as combined,
            http.ws_connect(f"{base}/stream/ws/0") as raw,
            http.ws_connect(f"{base}/market/ws/btcusdt@kline_1m") as futures,
        ):
            names = ["btcusdt@kline_1m"]
            for ws in (combined, raw):
                await ws.send_json({"method": "SUBSCRIBE", "params": names, "id": 1})
                assert await ws.receive_json(timeout=30) == {"result": None, "id": 1}
            await ex.advance()
            told = await combined.receive_json(timeout=30)
            assert told["stream"] == names[0]
            assert await raw.receive_json(timeout=30) == told["data"]
            assert (await futures.receive_json(timeout=30))["e"] == "kline"
            await ex.control("cut", code=1008, reason="policy")
            while (await combined.receive(timeout=30)).type is not aiohttp.WSMsgType.CLOSE:
                pass
            assert combined.close_code == 1008


async def test_a_resting_order_fills_with_the_first_live_trade_beyond_its_price() -> None:
    async with exchange("--seed", "3") as ex, paper(ex) as there:
        await there.followed(ex)
        tape, last = Tape(ex, there.live.last_id), D(there.live.last).scaleb(-8)
        price = (last * D("0.9995")).quantize(D("0.01"))
        placed = await there.account.place(
            order("a", Side.BUY, OrderType.LIMIT, "0.001", price=price), timestamp_ms=now()
        )
        assert placed.status is Status.NEW
        for _ in range(200):
            await there.advance(ex)
            found = await there.account.order(SYMBOL, "a")
            assert found is not None
            trades = await tape.read()
            beyond = [trade for trade in trades if D(trade["p"]) < price]
            at_price = [trade for trade in trades if D(trade["p"]) == price and trade["m"]]
            if not beyond and not at_price:
                assert found.status is Status.NEW
            if beyond:
                assert found.status is Status.FILLED
                break
        (fill,) = await there.account.fills(SYMBOL)
        assert fill.price == price and fill.is_maker
        assert beyond[0]["f"] >= fill.trade_id or fill.trade_id in {t["f"] for t in at_price}


async def test_a_stop_fires_when_a_live_trade_reaches_it() -> None:
    async with exchange("--seed", "3") as ex, paper(ex) as there:
        await there.followed(ex)
        tape, last = Tape(ex, there.live.last_id), D(there.live.last).scaleb(-8)
        stop = (last * D("0.9995")).quantize(D("0.01"))
        await there.account.place(
            order("s", Side.SELL, OrderType.STOP_LOSS, "0.001", stop_price=stop),
            timestamp_ms=now(),
        )
        for _ in range(200):
            await there.advance(ex)
            found = await there.account.order(SYMBOL, "s")
            assert found is not None
            is_reached = any(D(trade["p"]) <= stop for trade in await tape.read())
            assert (found.status is Status.FILLED) is is_reached
            if is_reached:
                break
        assert is_reached
        (fill,) = await there.account.fills(SYMBOL)
        assert not fill.is_maker and abs(fill.price / stop - 1) < D("0.01")


async def test_while_the_market_is_away_it_is_closed_and_what_was_missed_is_made_up_for() -> None:
    async with exchange("--seed", "3") as ex, paper(ex) as there:
        await there.followed(ex)
        last = D(there.live.last).scaleb(-8)
        price = (last * D("0.9995")).quantize(D("0.01"))
        await there.account.place(
            order("a", Side.BUY, OrderType.LIMIT, "0.001", price=price), timestamp_ms=now()
        )
        tape = Tape(ex, there.live.last_id)
        fault = await ex.break_with("refuse", status=503)
        await ex.control("cut", abort=True)
        there.live.stale_s = 0.0  # time passes
        with pytest.raises(Denied, match="Market is closed"):
            await there.account.place(
                order("b", Side.BUY, OrderType.MARKET, "0.001"), timestamp_ms=now()
            )
        assert await there.account.reference_price(SYMBOL) > 0  # from the live exchange
        there.live.stale_s = 600.0
        beyond = False
        while not beyond:
            await ex.advance(1)
            beyond = any(D(trade["p"]) < price for trade in await tape.read())
        still = await there.account.order(SYMBOL, "a")
        assert still is not None and still.status is Status.NEW
        async with ex.http.delete(f"/control/faults/{fault['id']}") as done:
            assert done.status == 200
        await there.followed(ex)
        found = await there.account.order(SYMBOL, "a")
        assert found is not None and found.status is Status.FILLED


@pytest.mark.parametrize("candles", [5, 60])
async def test_a_restarted_mirror_knows_its_orders_and_makes_up_for_the_time_between(
    tmp_path: Path, candles: int
) -> None:
    """Five minutes are read trade by trade, an hour candle by candle."""
    async with exchange("--seed", "3") as ex:
        async with paper(ex, tmp_path) as there:
            await there.followed(ex)
            await there.advance(ex)  # a trade on the stream: the position is saved
            last = D(there.live.last).scaleb(-8)
            rows = await ex.klines(limit=1)
            assert rows
            await there.account.place(
                order("low", Side.BUY, OrderType.LIMIT, "0.001",
                      price=(last * D("0.9999")).quantize(D("0.01"))),
                timestamp_ms=now(),
            )  # fmt: skip
            await there.account.place(
                order("far", Side.BUY, OrderType.LIMIT, "0.001",
                      price=(last * D("0.6")).quantize(D("0.01"))),
                timestamp_ms=now(),
            )  # fmt: skip
            start_ms = there.live.market_ms
        await ex.advance(candles)
        crossed = False
        while not crossed:
            lows = [D(row[3]) for row in await ex.klines(startTime=start_ms + 60_000)]
            crossed = bool(lows) and min(lows) < (last * D("0.9998")).quantize(D("0.01"))
            if not crossed:
                await ex.advance(1)
        async with paper(ex, tmp_path) as there:
            await there.followed(ex)
            low = await there.account.order(SYMBOL, "low")
            far = await there.account.order(SYMBOL, "far")
            assert low is not None and low.status is Status.FILLED
            assert far is not None and far.status is Status.NEW


async def test_no_key_goes_on_to_the_live_exchange() -> None:
    async with ScriptedAccount() as upstream:
        upstream.by_path["/api/v3/klines"] = Answer([])
        mirror = Mirror(
            rest_url=upstream.url,
            ws_url="ws://127.0.0.1:9",  # nobody
            futures_rest_url=upstream.url,
            futures_ws_url="ws://127.0.0.1:9",
            symbols=(SYMBOL,),
            keys={"canarykey": Key("secret")},
            balances={},
        )
        async with (
            mirroring(mirror, "127.0.0.1", 0) as (port, _),
            aiohttp.ClientSession(headers={"X-MBX-APIKEY": "canarykey"}) as http,
        ):
            async with http.get(f"http://127.0.0.1:{port}/api/v3/klines?symbol=X") as got:
                assert got.status == 200
            async with http.get(f"http://127.0.0.1:{port}/fapi/v1/account?signature=x") as got:
                assert got.status == 404
            async with http.ws_connect(f"ws://127.0.0.1:{port}/ws-api/v3"):
                pass
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await http.ws_connect(f"ws://127.0.0.1:{port}/ws")
            account = BinanceAccount(
                f"http://127.0.0.1:{port}", "ws://h", key="canarykey", secret="secret"
            )
            async with account:
                assert await account.balances() == {}
                with pytest.raises(Denied):  # nothing was heard of the symbol yet
                    await account.place(
                        order("a", Side.BUY, OrderType.MARKET, "1"), timestamp_ms=now()
                    )
        assert [asked.path for asked in upstream.asked] == ["/api/v3/klines"]
        assert "canarykey" not in str(upstream.asked)


async def test_it_runs_as_a_process_on_the_market_of_the_config(
    tmp_path: Path,
) -> None:
    async with exchange("--speed", "30") as ex:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "ITB_BINANCE_REST_URL": f"http://127.0.0.1:{ex.port}",
            "ITB_BINANCE_WS_URL": ex.ws_url,
            "ITB_SYMBOLS": SYMBOL,
        }
        options = ["--mirror", "--port", "0", "--workdir", str(tmp_path)]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "simulator", *options, env=environment,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stderr is not None
        try:
            port = 0
            while not port:
                line = json.loads(await asyncio.wait_for(process.stderr.readline(), 60))
                if line["event"].startswith("simulator ready at"):
                    port = int(line["event"].rpartition(":")[2])
            url = f"127.0.0.1:{port}"
            account = BinanceAccount(
                f"http://{url}", f"ws://{url}/ws-api/v3", key="demo", secret="demo"
            )
            async with account:
                async with asyncio.timeout(60):
                    placed = None
                    while placed is None:
                        with contextlib.suppress(Denied, Unavailable):
                            placed = await account.place(
                                order("a", Side.BUY, OrderType.MARKET, "0.01"),
                                timestamp_ms=now(),
                            )
                assert placed.status is Status.FILLED
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 30) == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


@pytest.mark.parametrize("option", [["--speed", "5"], ["--data", "x.csv"], ["--seed", "1"]])
def test_options_of_a_replay_do_not_go_with_it(option: list[str]) -> None:
    with pytest.raises(Usage, match=f"{option[0]} does not go with --mirror"):
        build_mirror(parser().parse_args(["--mirror", *option]))


# -- the board ------------------------------------------------------------------------------------


def heard(stale_s: float = 60.0) -> LiveSymbol:
    live = LiveSymbol(SYMBOL, stale_s)
    book = {"lastUpdateId": 10, "bids": [["9.9", "1"], ["9.8", "2"]], "asks": [["10.1", "3"]]}
    trade = {"f": 5, "l": 6, "p": "10.0", "q": "1", "T": 1000, "m": False}
    live.start(book, "10.05", [trade])
    assert live.hear_trade(trade) is not None
    live.heard_s = time.monotonic()
    return live


def test_a_symbol_is_open_only_while_all_of_it_is_known_and_fresh() -> None:
    assert heard().is_open
    assert not heard(stale_s=0.0).is_open
    assert not LiveSymbol(SYMBOL, 60.0).is_open
    board = LiveBoard([SYMBOL], 60.0)
    for name in (SYMBOL, "ETHUSDT"):
        with pytest.raises(Refused, match="Market is closed"):
            board.at(name, 0)
        assert list(board.trades(name, 0, 10**15)) == []


def test_a_newer_best_price_removes_the_levels_that_it_contradicts() -> None:
    live = heard()
    live.hear_best({"u": 9, "b": "1", "B": "1", "a": "2", "A": "1"})  # older than the book
    assert live.best(EngineSide.BUY) == units("10.1")
    live.hear_best({"u": 11, "b": "9.85", "B": "7", "a": "9.95", "A": "8"})
    assert list(live.levels(EngineSide.SELL)) == [
        (units("9.85"), units("7")),
        (units("9.8"), units("2")),
    ]
    assert list(live.levels(EngineSide.BUY)) == [
        (units("9.95"), units("8")),
        (units("10.1"), units("3")),
    ]
    assert live.amount(EngineSide.BUY, units("9.8")) == units("2")
    assert live.amount(EngineSide.BUY, units("9.7")) == 0
    live.hear_book({"lastUpdateId": 10, "bids": [["1", "1"]], "asks": [["2", "1"]]})
    assert live.best(EngineSide.BUY) == units("9.95")


def test_a_trade_is_heard_once_and_times_rise_strictly() -> None:
    live = heard()
    row = {"f": 7, "l": 7, "p": "10.2", "q": "1", "T": 1000, "m": True}
    second = live.hear_trade(row)
    assert second is not None and second.time_ms == 1001
    assert live.hear_trade(row) is None
    later = live.hear_trade(row | {"f": 8, "l": 9, "T": 5000})
    assert later is not None and later.time_ms == 5000 and live.next_trade_id == 10
    live.start({"lastUpdateId": 1, "bids": [["1", "1"]], "asks": [["2", "1"]]}, "1.5",
               [row | {"f": 1, "l": 2}])  # fmt: skip
    assert live.hear_trade(row | {"f": 1, "l": 2}) is not None  # ids that began anew
    assert live.best(EngineSide.BUY) == units("2")


prices = st.integers(1, 10**6).map(lambda cents: cents / 100)


@given(st.lists(prices, min_size=4, max_size=4), st.floats(0, 1e6))
def test_the_trades_of_a_candle_have_its_prices_and_volume(
    drawn: list[float], volume: float
) -> None:
    low, one, two, high = sorted(drawn)
    candle = Kline(
        symbol=SYMBOL, interval="1m", open_time_ms=60_000, close_time_ms=119_999, open=one,
        high=high, low=low, close=two, volume=volume, quote_volume=0, trades=0, taker_base=0,
        taker_quote=0,
    )  # fmt: skip
    trades = LiveSymbol(SYMBOL, 60.0).hear_candle(candle, 10**15)
    told = [trade.price / UNIT for trade in trades]
    assert told[0] == one and told[-1] == two and {min(told), max(told)} == {low, high}
    walked = sum(abs(b - a) for a, b in itertools.pairwise(told))
    other = [told[0], told[2], told[1], told[3]]
    assert abs(told[1] - told[0]) <= abs(told[2] - told[0]) or walked == sum(
        abs(b - a) for a, b in itertools.pairwise(other)
    )
    assert abs(sum(trade.quantity for trade in trades) - volume * UNIT) <= 4
    times = [trade.time_ms for trade in trades]
    assert times == [60_000, 75_000, 90_000, 105_000]
