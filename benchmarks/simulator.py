"""How fast the simulator is: kline updates per second to one consumer, 600 symbols closing, orders.

    python benchmarks/simulator.py [--seconds S] [--only market|orders]

Server and consumer are separate processes. The consumer of updates is a bare socket that counts
frames by their headers and answers pings, so that the figures are the server's; the ratio is to a
plain aiohttp server that sends ready frames of the same size one by one to the same consumer, in
the same run. Orders come signed from one process over
--lanes connections: market orders that fill, limit orders that rest and are cancelled; the bare
server of their ratio answers the same requests with a ready text of the same length. CPU
microseconds of the server per request tell more than rates where a machine does other things, too.
"""

import argparse
import asyncio
import base64
import hmac
import json
import os
import signal
import socket
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
Started = Callable[[], object]
_WARM_UP_S = 1.0
_PING = 0x89


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


def connected(address: str, path: str) -> socket.socket:
    """A websocket after its handshake (RFC 6455 section 4.1); nothing is read beyond it."""
    host, port = address.removeprefix("http://").split(":")
    plain = socket.create_connection((host, int(port)), timeout=30)
    key = base64.b64encode(os.urandom(16)).decode()
    plain.sendall(
        f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
        "\r\n".encode()
    )
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += plain.recv(1)
    assert head.startswith(b"HTTP/1.1 101"), head
    return plain


def frames_per_second(address: str, path: str, seconds: float, started: Started) -> float:
    """Data frames that a bare socket gets, once it has run for a second; pings are answered."""
    with connected(address, path) as plain:
        waiting, count, start = b"", 0, 0.0
        begin = time.perf_counter()
        while True:
            waiting += plain.recv(1 << 20)
            now = time.perf_counter()
            if not start and now - begin >= _WARM_UP_S:
                start, count = now, 0
                started()
            elif start and now - start >= seconds:
                return count / (now - start)
            at, end = 0, len(waiting)
            while at + 4 <= end:
                size, head = waiting[at + 1], 2
                if size == 126:
                    size, head = waiting[at + 2] << 8 | waiting[at + 3], 4
                after = at + head + size
                if after > end:
                    break
                if waiting[at] == _PING:
                    mask = b"\x8a" + bytes((0x80 | size,)) + bytes(4)  # a mask of zeros
                    plain.sendall(mask + waiting[at + head : after])
                else:
                    count += 1
                at = after
            waiting = waiting[at:]


def update_rate(count: int, seconds: float, *more: str) -> tuple[float, float]:
    """(kline updates, open and closed, per second at --speed max; server's CPU µs for each)."""
    symbols = [f"S{i}USDT" for i in range(count)]
    path = "/stream?streams=" + "/".join(f"{s.lower()}@kline_1m" for s in symbols)
    options = ("--speed", "max", "--history", "100", *more, "--symbol", *symbols)
    with simulator(*options) as address:
        server = next(p for p in psutil.Process().children() if "simulator" in p.cmdline())
        before: list[float] = []
        rate = frames_per_second(
            address, path, seconds, lambda: before.append(sum(server.cpu_times()[:2]))
        )
        cpu = sum(server.cpu_times()[:2]) - before[0]
    return rate, cpu / (rate * seconds) * 1e6


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


def bare(seconds: float) -> float:
    """Frames per second of a plain aiohttp server in a child process."""

    async def serve(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(compress=False)
        await ws.prepare(request)
        text = FRAME.decode()
        while True:
            await ws.send_str(text)

    with serving(serve, seconds) as address:
        return frames_per_second(address, "/", seconds, lambda: None)


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
    rates = []
    for count, ahead in ((1, 1), (1, 32), (20, 1), (200, 1)):
        rate, cpu_us = update_rate(count, seconds, "--ahead", str(ahead))
        rates.append(rate)
        name = f"{count}_symbols" if ahead == 1 else f"{count}_symbols_{ahead}_ahead"
        result[f"updates_per_s_{name}"] = round(rate)
        result[f"update_cpu_us_{name}"] = round(cpu_us, 1)
    symbols = [f"S{i}USDT" for i in range(600)]
    options_ = ("--speed", "60", "--history", "30", "--updates", "1", "--symbol", *symbols)
    with simulator(*options_) as address:
        spans = uvloop.run(bursts(address, symbols, 8))[2:]
    result["burst_600_ms"] = {
        "p50": round(statistics.median(spans), 2),
        "max": round(max(spans), 2),
    }
    plain = bare(seconds)
    result["bare_aiohttp_frames_per_s"] = round(plain)
    result["ratio_to_bare"] = round(rates[-1] / plain, 2)
    return result


if __name__ == "__main__":
    main()
