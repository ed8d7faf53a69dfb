"""From a signal on the bus to the POST on the wire; how soon a trader with a long past is ready.

    python -m benchmarks trader

Signals are written to a real Valkey (AOF everysec, unix socket); the exchange is a bare HTTP server
in a process of its own that notes when an order's bytes arrive. The peer of the same run is one
round trip of a signal alone: XADD to a blocked reader, and a bare POST to the same server.
"""

import argparse
import asyncio
import contextlib
import multiprocessing
import multiprocessing.connection
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from shared.bus import Bus, Source, Write
from shared.config import load
from shared.events import Kline, Order, Signal
from shared.exchange import Fill, Side
from shared.ledger import packed
from shared.link import Link
from shared.runtime import Health, Session
from shared.streams import KLINE, SIGNAL
from tests.trader.world import MINUTE, START, SYMBOL
from tests.valkey import Server, free_port
from trader import places
from trader.journal import Journal
from trader.service import Trader

FILTERS = [
    {"filterType": "PRICE_FILTER", "minPrice": "0.01", "maxPrice": "1000000", "tickSize": "0.01"},
    {"filterType": "LOT_SIZE", "minQty": "0.00001", "maxQty": "9000", "stepSize": "0.00001"},
    {"filterType": "NOTIONAL", "minNotional": "5", "applyMinToMarket": True,
     "maxNotional": "9000000", "applyMaxToMarket": False, "avgPriceMins": 5},
]  # fmt: skip


def exchange(port: int, told: "multiprocessing.connection.Connection") -> None:
    """Answers as a Binance that fills every market order at 100 does; tells when each came."""
    from aiohttp import web

    count = 0

    async def handle(request: web.Request) -> web.StreamResponse:
        nonlocal count
        came_ns = time.time_ns()
        path, query = request.path, dict(request.query)
        if path == "/api/v3/order" and request.method == "POST":
            form = dict(part.split("=", 1) for part in (await request.text()).split("&"))
            told.send(came_ns)
            count += 1
            quantity, side = form["quantity"], form["side"]
            money = str(Decimal(quantity) * 100)
            return web.json_response({
                "symbol": SYMBOL, "orderId": count, "orderListId": -1,
                "clientOrderId": form["newClientOrderId"], "transactTime": came_ns // 1_000_000,
                "price": "0.00", "origQty": quantity, "executedQty": quantity,
                "cummulativeQuoteQty": money, "status": "FILLED", "timeInForce": "GTC",
                "type": "MARKET", "side": side, "workingTime": 1, "selfTradePreventionMode": "NONE",
                "fills": [{"price": "100", "qty": quantity, "commission": "0",
                           "commissionAsset": "USDT", "tradeId": count}],
            })  # fmt: skip
        if path == "/api/v3/time":
            return web.json_response({"serverTime": came_ns // 1_000_000})
        if path == "/api/v3/exchangeInfo":
            return web.json_response({"rateLimits": [], "symbols": [{
                "symbol": SYMBOL, "status": "TRADING", "baseAsset": "BTC", "quoteAsset": "USDT",
                "baseAssetPrecision": 8, "quotePrecision": 8, "quoteAssetPrecision": 8,
                "orderTypes": ["LIMIT", "MARKET"], "filters": FILTERS,
            }]})  # fmt: skip
        if path == "/api/v3/account":
            balances = [{"asset": a, "free": f, "locked": "0"}
                        for a, f in (("USDT", "10000"), ("BTC", "1"))]  # fmt: skip
            return web.json_response({"canTrade": True, "canWithdraw": False, "balances": balances})
        if path in ("/api/v3/allOrders", "/api/v3/openOrders", "/api/v3/myTrades"):
            return web.json_response([])
        if path == "/api/v3/order" and query:
            return web.json_response({"code": -2026, "msg": "archived"}, status=400)
        return web.json_response({"code": -1, "msg": "no"}, status=404)

    async def main() -> None:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", handle)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        told.send(0)
        await asyncio.Event().wait()

    uvloop.run(main())


@contextlib.contextmanager
def serving() -> "Iterator[tuple[int, multiprocessing.connection.Connection]]":
    port, (ours, theirs) = free_port(), multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=exchange, args=(port, theirs))
    process.start()
    try:
        assert ours.poll(30) and ours.recv() == 0, "the exchange does not start"
        yield port, ours
    finally:
        process.kill()
        process.join()


def candle(number: int, score: float) -> tuple[Write[Kline], Write[Signal]]:
    open_ms = START + number * MINUTE
    kline = Kline(
        symbol=SYMBOL, interval="1m", open_time_ms=open_ms, close_time_ms=open_ms + MINUTE - 1,
        open=100.0, high=100.0, low=100.0, close=100.0, volume=1.0,
    )  # fmt: skip
    side = "BUY" if score > 0 else "SELL"
    signal = Signal(
        open_time_ms=open_ms, symbol=SYMBOL, interval="1m", close=100.0, score=score, side=side,
        invalid="", release="r", schema="s",
    )  # fmt: skip
    return (
        Write(source=Source(KLINE, SYMBOL, "1m"), event=kline, open_time_ms=open_ms,
              market_ms=open_ms + MINUTE),
        Write(source=Source(SIGNAL, SYMBOL, "1m"), event=signal, open_time_ms=open_ms),
    )  # fmt: skip


@contextlib.asynccontextmanager
async def trading(url: str, port: int, folder: Path) -> AsyncIterator[float]:
    """A trader of this process, ready; how many seconds that took."""
    settings = load(
        None, data_folder=folder, binance_rest_url=f"http://127.0.0.1:{port}",
        trader={"mode": "paper", "max_age_s": 1e9, "limits": {"orders_per_minute": 0}},
    )  # fmt: skip
    started = time.perf_counter()
    with Trader() as trader:
        async with Bus.session(url, service="trader") as bus, asyncio.TaskGroup() as tasks:
            health = Health()
            session = Session(settings=settings, bus=bus, health=health, alive=lambda: None)
            task = tasks.create_task(trader.serve(session))
            while not health.ready:
                if task.done():
                    task.result()
                await asyncio.sleep(0.005)
            yield time.perf_counter() - started
            task.cancel()


async def latency(url: str, port: int, told: Any, folder: Path, *, rounds: int) -> list[float]:
    """Milliseconds from XADD of the signal to its POST at the exchange."""
    found = []
    loop = asyncio.get_running_loop()
    async with Bus.session(url, service="desk") as bus:
        await bus.write(*candle(0, 0.0001))
        async with trading(url, port, folder):
            for number in range(1, rounds + 1):
                kline, signal = candle(number, 0.5 if number % 2 else -0.5)
                await bus.write(kline)
                await asyncio.sleep(0.02)
                sent_ns = time.time_ns()
                await bus.write(signal)
                assert await loop.run_in_executor(None, told.poll, 20), "no order came"
                found.append((told.recv() - sent_ns) / 1e6)
                await asyncio.sleep(0.02)
    return found[5:]


async def bare(url: str, port: int, told: Any, rounds: int) -> list[float]:
    """XADD to a blocked reader, then a POST, with nothing in between."""
    import aiohttp

    found = []
    reader, writer = Link(url, name="reader"), Link(url, name="writer")
    await reader.connect()
    await writer.connect()
    form = "quantity=1&side=BUY&newClientOrderId=x"
    async with aiohttp.ClientSession() as session:
        for number in range(rounds):
            waiting = asyncio.create_task(
                reader.one("XREAD", "BLOCK", 5000, "STREAMS", "bare", "$", wait_s=5)
            )
            await asyncio.sleep(0.02)
            sent_ns = time.time_ns()
            await writer.one("XADD", "bare", "*", "n", number)
            await waiting
            async with session.post(f"http://127.0.0.1:{port}/api/v3/order", data=form) as reply:
                await reply.read()
            assert told.poll(5)
            found.append((told.recv() - sent_ns) / 1e6)
    await reader.close()
    await writer.close()
    return found[5:]


def past(folder: Path, orders: int) -> None:
    """A journal of so many filled orders, five lines each."""
    lines = []
    for number in range(orders):
        side = Side.BUY if number % 2 == 0 else Side.SELL
        fill = Fill(
            symbol=SYMBOL, trade_id=number, order_id=number, side=side, price=Decimal("100.01"),
            quantity=Decimal("0.5"), quote_quantity=Decimal("50.005"), fee=Decimal("0.0005"),
            fee_asset="BNB", time_ms=number, is_maker=False,
        )  # fmt: skip
        base = Order(
            signal_id=f"past-{number}", symbol=SYMBOL, interval="1m", open_time_ms=number,
            time_ms=1, state="INTENT", side=side, quantity="0.5", price="100", reason="", score=0.1,
            release="r", mode="paper", leg="entry", attempt=1, client_id=f"k1-{number}",
            type="MARKET", order_quantity="0.5", sent_ms=number, market_ms=number,
        )  # fmt: skip
        lines += [
            base, replace(base, state="UNKNOWN"), replace(base, state="ACKED", order_id=number),
            replace(base, state="PARTIAL", order_id=number),
            replace(base, state="FILLED", fills={str(number): packed(fill)}),
        ]  # fmt: skip
    with Journal.open(folder / "journal" / f"{places.PAPER}.journal") as journal:
        list(journal.lines())
        journal.append(lines)
        journal.sync()


def figures(name: str, values: list[float]) -> str:
    p50, p99 = np.percentile(values, (50, 99))
    return f"{name:<44} p50 {p50:7.2f} ms   p99 {p99:7.2f} ms   best {min(values):7.2f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--orders", type=int, default=10_000)
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="itb-bench-trader-"))
    server = Server(work / "valkey").start()
    try:
        with serving() as (port, told):
            url = server.unix_url
            peer = uvloop.run(bare(url, port, told, args.rounds))
            print(figures("peer: XADD, wake, bare POST", peer))
            with_sync = uvloop.run(latency(url, port, told, work / "synced", rounds=args.rounds))
            print(figures("signal to POST, journal on the disk first", with_sync))
            flush_all(url)
            real, Journal.sync = Journal.sync, lambda self: None  # type: ignore[method-assign]
            without = uvloop.run(latency(url, port, told, work / "unsynced", rounds=args.rounds))
            Journal.sync = real  # type: ignore[method-assign]
            print(figures("the same without the sync", without))
            flush_all(url)
            past(work / "past", args.orders)
            for name in ("bus empty: its lines go there", "again"):
                before_s = time.process_time()
                seconds = uvloop.run(ready(url, port, work / "past"))
                own_s = time.process_time() - before_s
                print(
                    f"ready with {args.orders:,} past orders, {name:<32} {seconds:6.2f} s"
                    f"   ({own_s:.2f} s of processor)"
                )
    finally:
        server.stop()
        shutil.rmtree(work, ignore_errors=True)


def flush_all(url: str) -> None:
    async def flush() -> None:
        link = Link(url, name="flush")
        await link.connect()
        await link.one("FLUSHALL")
        await link.close()

    uvloop.run(flush())


async def ready(url: str, port: int, folder: Path) -> float:
    async with trading(url, port, folder) as seconds:
        return seconds


if __name__ == "__main__":
    main()
