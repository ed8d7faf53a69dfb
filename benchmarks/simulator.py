"""How fast the simulator plays: kline updates per second to one consumer, and 600 symbols closing.

    python benchmarks/simulator.py [--seconds S]

Server and consumer are separate processes. The consumer only reads frames and looks for closed
ones, so that the figures are the server's; the ratio is to a bare aiohttp server that sends ready
frames of the same size one by one, in the same run.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
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

    async def run(port_out: int) -> None:
        app = web.Application()
        app.router.add_get("/", serve)
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
    port = int(os.read(read_end, 16))
    try:
        async with aiohttp.ClientSession() as http, http.ws_connect(f"ws://127.0.0.1:{port}") as ws:
            count, start = 0, time.perf_counter()
            while time.perf_counter() - start < seconds:
                await ws.receive()
                count += 1
            return count / (time.perf_counter() - start)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=3.0)
    given = options.parse_args()
    result: dict[str, object] = {}
    for count in (1, 20, 200):
        symbols = [f"S{i}USDT" for i in range(count)]
        with simulator("--speed", "max", "--history", "100", "--symbol", *symbols) as address:
            rate = uvloop.run(updates_per_second(address, symbols, given.seconds))
        result[f"updates_per_s_{count}_symbols"] = round(rate)
    symbols = [f"S{i}USDT" for i in range(600)]
    options_ = ("--speed", "60", "--history", "30", "--updates", "1", "--symbol", *symbols)
    with simulator(*options_) as address:
        spans = uvloop.run(bursts(address, symbols, 8))[2:]
    result["burst_600_ms"] = {
        "p50": round(statistics.median(spans), 2),
        "max": round(max(spans), 2),
    }
    plain = asyncio.run(bare(given.seconds))
    result["bare_aiohttp_frames_per_s"] = round(plain)
    best = result["updates_per_s_200_symbols"]
    assert isinstance(best, int)
    result["ratio_to_bare"] = round(best / plain, 2)
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
