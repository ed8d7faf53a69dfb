"""How fast the simulator is: kline updates per second to one consumer, 600 symbols closing, orders.

    python benchmarks/simulator.py [--seconds S] [--only market|orders]

Server and consumer are separate processes. The consumer only reads frames and looks for closed
ones, so that the figures are the server's; the ratio is to a bare aiohttp server that sends ready
frames of the same size one by one, in the same run. Orders come signed from one process over
--lanes connections: market orders that fill, limit orders that rest and are cancelled; the bare
server of their ratio answers the same requests with a ready text of the same length. CPU
microseconds of the server per request tell more than rates where a machine does other things, too.
"""

import argparse
import asyncio
import hmac
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import psutil
import uvloop
from aiohttp import web

ROOT = Path(__file__).resolve().parents[1]
FRAME = b"x" * 400


@contextmanager
def simulator(*options: str) -> Iterator[str]:
    """Its address."""
    command = [sys.executable, "-m", "simulator", "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stderr is not None
    try:
        yield json.loads(process.stderr.readline())["event"].split(" at ")[1]
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)


async def subscribe(
    http: aiohttp.ClientSession, names: list[str]
) -> aiohttp.ClientWebSocketResponse:
    ws = await http.ws_connect("/stream", max_msg_size=0)
    await ws.send_json({"method": "SUBSCRIBE", "params": names, "id": 1})
    return ws


async def updates_per_second(address: str, symbols: list[str], seconds: float) -> float:
    """Kline updates (open and closed) that one consumer gets at --speed max."""
    async with aiohttp.ClientSession(address) as http:
        ws = await subscribe(http, [f"{s.lower()}@kline_1m" for s in symbols])
        await ws.receive()
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            await ws.receive()
            count += 1
        rate = count / (time.perf_counter() - start)
        await ws.close()
        return rate


async def bursts(address: str, symbols: list[str], rounds: int) -> list[float]:
    """Milliseconds from the first to the last closed candle of one minute, at the consumer."""
    spans = []
    async with aiohttp.ClientSession(address) as http:
        ws = await subscribe(http, [f"{s.lower()}@kline_1m" for s in symbols])
        for _ in range(rounds):
            seen, first = 0, 0.0
            while seen < len(symbols):
                if '"x":true' in (await ws.receive()).data:
                    first = first or time.perf_counter()
                    seen += 1
            spans.append((time.perf_counter() - first) * 1e3)
        await ws.close()
    return spans


async def bare(seconds: float) -> float:
    """Frames per second of a plain aiohttp server in a child process."""

    async def serve(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(compress=False)
        await ws.prepare(request)
        text = FRAME.decode()
        while True:
            await ws.send_str(text)

    with serving(serve, seconds) as address:
        async with aiohttp.ClientSession(address) as http, http.ws_connect("/") as ws:
            count, start = 0, time.perf_counter()
            while time.perf_counter() - start < seconds:
                await ws.receive()
                count += 1
            return count / (time.perf_counter() - start)


def signed(text: str) -> bytes:
    text += f"&recvWindow=60000&timestamp={time.time_ns() // 1_000_000}"
    return f"{text}&signature={hmac.new(b'demo', text.encode(), 'sha256').hexdigest()}".encode()


async def orders(address: str, kind: str, seconds: float, lanes: int) -> tuple[int, float]:
    """(requests answered, seconds): market orders, or limit orders and their cancels."""
    form = {"Content-Type": "application/x-www-form-urlencoded", "X-MBX-APIKEY": "demo"}
    head = "symbol=BTCUSDT&side=BUY&"
    count = 0
    connector = aiohttp.TCPConnector(limit=lanes)
    async with aiohttp.ClientSession(address, connector=connector, headers=form) as http:

        async def ask(method: str, text: str) -> bytes:
            nonlocal count
            async with http.request(method, "/api/v3/order", data=signed(text)) as reply:
                body = await reply.read()
                assert reply.status == 200, body
                count += 1
                return body

        many = {"orders_10s": 10**9, "orders_day": 10**9}
        await http.post("/control/limits", data=json.dumps(many))
        if kind == "limit":
            async with http.get("/api/v3/ticker/price?symbol=BTCUSDT") as reply:
                price = f"{float((await reply.json())['price']) * 0.7:.2f}"
        end = time.perf_counter() + seconds

        async def lane() -> None:
            while time.perf_counter() < end:
                if kind == "market":
                    await ask("POST", f"{head}type=MARKET&quantity=0.001")
                    continue
                limit = f"type=LIMIT&timeInForce=GTC&quantity=0.001&price={price}"
                placed = json.loads(await ask("POST", head + limit))
                await ask("DELETE", f"symbol=BTCUSDT&orderId={placed['orderId']}")

        start = time.perf_counter()
        await asyncio.gather(*(lane() for _ in range(lanes)))
        return count, time.perf_counter() - start


def order_rates(seconds: float, lanes: int) -> dict[str, float]:
    """Order requests per second, and the server's CPU microseconds for each."""
    found: dict[str, float] = {}
    for kind in ("market", "limit"):
        with simulator(
            "--speed", "1", "--history", "100", "--balance", "USDT=900000000"
        ) as address:
            server = next(p for p in psutil.Process().children() if "simulator" in p.cmdline())
            before = sum(server.cpu_times()[:2])
            count, took = uvloop.run(orders(address, kind, seconds, lanes))
            cpu = sum(server.cpu_times()[:2]) - before
        found[f"{kind}_orders_per_s"] = round(count / took)
        found[f"{kind}_order_cpu_us"] = round(cpu / count * 1e6)
    return found


def bare_order_rate(seconds: float, lanes: int) -> float:
    """Requests per second of an aiohttp server that answers each with a ready text."""
    ready = b'{"symbol":"BTCUSDT","orderId":1,"fills":[],"x":"' + b"x" * 500 + b'"}'

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(body=ready, content_type="application/json")

    with serving(answer, seconds) as address:
        count, took = uvloop.run(orders(address, "market", seconds, lanes))
    return count / took


@contextmanager
def serving(
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]], seconds: float
) -> Iterator[str]:
    """A plain aiohttp server in a child process: its address."""

    async def run(port_out: int) -> None:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        os.write(port_out, str(runner.addresses[0][1]).encode())
        await asyncio.sleep(seconds + 10)

    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        asyncio.set_event_loop(None)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(write_end))
        os._exit(0)
    try:
        yield f"http://127.0.0.1:{int(os.read(read_end, 16))}"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=3.0)
    options.add_argument("--lanes", type=int, default=16)
    options.add_argument("--only", choices=("market", "orders"), help="one half of it")
    given = options.parse_args()
    result: dict[str, object] = {}
    if given.only != "market":
        result |= order_rates(given.seconds, given.lanes)
        plain = bare_order_rate(given.seconds, given.lanes)
        result["bare_aiohttp_requests_per_s"] = round(plain)
    if given.only != "orders":
        result |= market_rates(given.seconds)
    sys.stdout.write(json.dumps(result) + "\n")


def market_rates(seconds: float) -> dict[str, object]:
    """Kline updates per second, and how close together 600 candles close."""
    result: dict[str, object] = {}
    result: dict[str, object] = {}
    for count in (1, 20, 200):
        symbols = [f"S{i}USDT" for i in range(count)]
        with simulator("--speed", "max", "--history", "100", "--symbol", *symbols) as address:
            rate = uvloop.run(updates_per_second(address, symbols, seconds))
        result[f"updates_per_s_{count}_symbols"] = round(rate)
    symbols = [f"S{i}USDT" for i in range(600)]
    options_ = ("--speed", "60", "--history", "30", "--updates", "1", "--symbol", *symbols)
    with simulator(*options_) as address:
        spans = uvloop.run(bursts(address, symbols, 8))[2:]
    result["burst_600_ms"] = {
        "p50": round(statistics.median(spans), 2),
        "max": round(max(spans), 2),
    }
    plain = asyncio.run(bare(seconds))
    result["bare_aiohttp_frames_per_s"] = round(plain)
    best = result["updates_per_s_200_symbols"]
    assert isinstance(best, int)
    result["ratio_to_bare"] = round(best / plain, 2)
    return result


if __name__ == "__main__":
    main()
