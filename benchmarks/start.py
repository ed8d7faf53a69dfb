"""How long a service takes to be ready with a week of history on the bus, and what it weighs.

Per live service: import seconds (fresh process), seconds from start to the first heartbeat that
says ready, resident MiB then. The peer in the same run is an empty Python process that imports
redis-py and numpy and answers one PING.

    python -m benchmarks.start [--runs 5]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import redis
import uvloop

from benchmarks.pipeline import train_release
from shared.bus import Bus, Source, Write
from shared.events import Kline
from shared.klines import KLINE_COLUMNS
from shared.streams import KLINE
from tests.releases import START_MS, M, market
from tests.valkey import Server

ROOT = Path(__file__).parents[1]
WEEK = 7 * 1440
SERVICES = ("featurizer", "predictor", "notifier", "trader")
PEER = "import numpy, redis, sys; redis.Redis.from_url(sys.argv[1]).ping()"


async def fill(url: str) -> None:
    """A week of candles on the bus."""
    columns = market(WEEK)
    source = Source(KLINE, "TESTUSDT", "1m")
    async with Bus.session(url, service="collector") as bus:
        for start in range(0, WEEK, 500):
            writes = []
            for n in range(start, min(WEEK, start + 500)):
                time_ms = START_MS + n * M
                values = {name: float(columns[name][n]) for name in KLINE_COLUMNS}
                kline = Kline(
                    symbol="TESTUSDT",
                    interval="1m",
                    open_time_ms=time_ms,
                    close_time_ms=time_ms + M - 1,
                    **values,
                )
                writes.append(Write(source=source, event=kline, open_time_ms=time_ms))
            await bus.write(*writes)


def seconds_of(*command: str) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def start_once(
    service: str, environment: dict[str, str], client: "redis.Redis"
) -> tuple[float, float]:
    """Seconds until ready, and MiB resident then."""
    client.delete(f"health:{service}:{service}")
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", service],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while time.perf_counter() - started < 120:
            beat = client.get(f"health:{service}:{service}")
            if beat and json.loads(beat)["ready"]:
                seconds = time.perf_counter() - started
                return seconds, psutil.Process(process.pid).memory_info().rss / 2**20
            time.sleep(0.01)  # what is measured is looked at from outside, to 10 ms
        raise SystemExit(f"{service} did not become ready")
    finally:
        process.kill()
        process.wait()


def figures(values: Sequence[float]) -> str:
    return f"median {np.median(values):6.2f}  best {min(values):6.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    folder = Path(tempfile.gettempdir()) / "itb-bench-release"
    folder.mkdir(exist_ok=True)
    models = train_release(folder)
    work = Path(tempfile.mkdtemp(prefix="itb-bench-start-"))
    server = Server(work).start()
    environment = {
        "ITB_REDIS_URL": server.unix_url,
        "ITB_SYMBOL": "TESTUSDT",
        "ITB_MODEL_FOLDER": str(models),
        "ITB_TRADER__MODE": "observe",  # there is no exchange here
    }
    try:
        uvloop.run(fill(server.unix_url))
        client = redis.Redis(port=server.port)
        peer = [seconds_of(sys.executable, "-c", PEER, server.url) for _ in range(runs)]
        print(f"{'peer: import and one PING':<28} s {figures(peer)}")
        for service in SERVICES:
            start_once(service, environment, client)  # the first pass derives the week
            module = f"import {service}.service"
            imports = [seconds_of(sys.executable, "-c", module) for _ in range(runs)]
            found = [start_once(service, environment, client) for _ in range(runs)]
            ready, memory = zip(*found, strict=True)
            print(f"{service + ': import':<28} s {figures(imports)}")
            print(
                f"{service + ': ready after a week':<28} s {figures(ready)}"
                f"   ratio {np.median(ready) / np.median(peer):.1f}   {np.median(memory):.0f} MiB"
            )
    finally:
        server.stop()
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
