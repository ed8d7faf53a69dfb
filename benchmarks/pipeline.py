"""Closed-candle frame on the socket to signal on the bus, against a bare redis-py chain.

Both run as separate processes on one Valkey with AOF everysec, over a unix socket:

    peer:  source -XADD-> copy -XADD-> copy -XADD-> reader      (redis-py, hiredis, uvloop; no work)
    ours:  simulator -ws-> collector -> featurizer -> predictor -> reader

The time is from the source's XADD (peer) or the frame's arrival at the collector (ours) to the
reader's wake-up with the last stream's entry. The release is real: the default 18 models, trained
here on a seeded market. For the bursts its manifest is told that it knows every symbol.

    python -m benchmarks.pipeline [--candles 300] [--symbols 1 100 600]
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import aiohttp
import msgpack
import numpy as np
import psutil
import redis.asyncio
import uvloop

from tests.releases import write_market
from tests.valkey import Server, free_port

ROOT = Path(__file__).parents[1]
_PAUSE_S = 0.03  # between two candles: the chain is idle again


def log(text: str) -> None:
    sys.stderr.write(text + "\n")


# -- the peer ---------------------------------------------------------------------------------


async def copy(url: str, source: str, target: str) -> None:
    """A stage of the peer: reads, writes, acknowledges, nothing else."""
    client = redis.asyncio.Redis.from_url(url, socket_timeout=None)
    with contextlib.suppress(redis.ResponseError):
        await client.xgroup_create(source, "g", "0", mkstream=True)
    while True:
        reply = await client.xreadgroup("g", "c", {source: ">"}, count=256, block=1000)
        for _, entries in reply or ():
            pipe = client.pipeline(transaction=True)
            for entry_id, fields in entries:
                pipe.xadd(target, fields, id=entry_id)
                pipe.xack(source, "g", entry_id)
            await pipe.execute()


async def feed(url: str, count: int, burst: int) -> None:
    """The peer's source: `count` times, `burst` entries one after the other in one pipeline."""
    client = redis.asyncio.Redis.from_url(url, socket_timeout=None)
    number = 0
    for _ in range(count):
        stamp = time.time_ns() // 1000
        pipe = client.pipeline(transaction=False)
        for _ in range(burst):
            number += 1
            pipe.xadd("s0", {"t": stamp, "data": b"x" * 200}, id=f"{number}-0")
        await pipe.execute()
        await asyncio.sleep(_PAUSE_S + burst * 0.0004)
    await client.aclose()


async def peer_latencies(server: Server, count: int, burst: int) -> list[float]:
    """Milliseconds from the source's stamp to the last entry of each burst."""
    client = redis.asyncio.Redis.from_url(server.unix_url, socket_timeout=None)
    await client.flushall()
    with children() as start:
        for source, target in (("s0", "s1"), ("s1", "s2")):
            start("benchmarks.pipeline", "--copy", server.unix_url, source, target)
        while len([c for c in await client.client_list() if c["cmd"] == "xreadgroup"]) < 2:
            await asyncio.sleep(0.05)
        start("benchmarks.pipeline", "--feed", server.unix_url, str(count), str(burst))
        found: list[float] = []
        last = b"$"
        seen = 0
        last = b"0"
        while len(found) < count:
            reply = await client.xread({"s2": last}, count=1000, block=5000)
            arrived = time.time_ns() // 1000
            for _, entries in reply:
                seen += len(entries)
                last = entries[-1][0]
                if seen % burst == 0:
                    found.append((arrived - int(entries[-1][1][b"t"])) / 1000)
    await client.aclose()
    return found


# -- ours -------------------------------------------------------------------------------------


@contextlib.contextmanager
def children(env: dict[str, str] | None = None, logs: Path | None = None) -> Iterator[object]:
    """Starts `python -m MODULE ARGS`; ends all of them at the end."""
    started: list[subprocess.Popen[bytes]] = []

    def start(module: str, *arguments: str) -> subprocess.Popen[bytes]:
        err = (logs / f"{module}.log").open("wb") if logs else subprocess.DEVNULL
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env=os.environ | (env or {}),
            stdout=subprocess.DEVNULL,
            stderr=err,
        )
        started.append(process)
        return process

    try:
        yield start
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait()


def train_release(folder: Path) -> Path:
    """The default 18 models on a seeded market; kept for the next run."""
    models = folder / "models"
    if not (models / "current").exists():
        log("training a release of the default 18 models ...")
        data = write_market(folder / "TESTUSDT-1m.parquet", 20_000)
        environment = os.environ | {"ITB_MODEL_FOLDER": str(models), "ITB_SYMBOL": "TESTUSDT"}
        subprocess.run(
            [sys.executable, "-m", "trainer", "train", "--klines", str(data), "--promote"],
            cwd=ROOT,
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return models


def release_for(models: Path, symbols: Sequence[str], folder: Path) -> Path:
    """A copy of the release whose manifest knows these symbols."""
    copied = folder / "models"
    shutil.copytree(models, copied, symlinks=True)
    manifest = copied / "current" / "manifest.json"
    body = json.loads(manifest.read_text())
    body["symbols"] = list(symbols)
    manifest.write_text(json.dumps(body))
    return copied


async def our_latencies(
    server: Server, models: Path, count: int, symbols: Sequence[str]
) -> tuple[list[float], dict[str, tuple[float, float]]]:
    """Milliseconds from the first frame's arrival to the last signal, per candle; and per
    process its CPU milliseconds for one candle of all symbols, and its resident MiB."""
    client = redis.asyncio.Redis.from_url(server.unix_url, socket_timeout=None)
    await client.flushall()
    folder = Path(tempfile.mkdtemp(prefix="itb-bench-"))
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    environment = {
        "ITB_REDIS_URL": server.unix_url,
        "ITB_SYMBOLS": ",".join(symbols),
        "ITB_MODEL_FOLDER": str(release_for(models, symbols, folder)),
        "ITB_DATA_FOLDER": str(folder / "data"),
        "ITB_BINANCE_REST_URL": base,
        "ITB_BINANCE_WS_URL": f"ws://127.0.0.1:{port}",
        "ITB_COLLECTOR__HISTORY_ROWS": "1500",
        "ITB_COLLECTOR__ARCHIVE": "false",
        "ITB_COLLECTOR__WEIGHT_BUDGET": "1",
        "ITB_LOG_LEVEL": "warning",
    }
    facts: dict[str, tuple[float, float]] = {}
    try:
        async with aiohttp.ClientSession() as http:
            with children(environment, folder) as start:
                simulator = start(
                    "simulator", "--port", str(port), "--symbol", *symbols,
                    "--history", "1700", "--speed", "manual", "--updates", "1",
                )  # fmt: skip
                await _answers(http, f"{base}/api/v3/ping")
                processes = {"valkey": psutil.Process(server.pid)}
                processes["simulator"] = psutil.Process(simulator.pid)
                for name in ("collector", "featurizer", "predictor"):
                    processes[name] = psutil.Process(start(name).pid)
                keys = [f"signal:{{{symbol}}}:1m" for symbol in symbols]
                # The first candle shows that all are through their history.
                await _ready(client, keys, len(symbols), folder)
                position: dict[bytes | str, bytes] = {}
                for key in keys:
                    ((entry_id, _),) = await client.xrevrange(key, count=1)
                    position[key] = entry_id
                found = []
                before = {name: sum(p.cpu_times()[:2]) for name, p in processes.items()}
                for _ in range(count):
                    found.append(await _one_candle(client, http, base, symbols, position))
                    await asyncio.sleep(_PAUSE_S)
                for name, process in processes.items():
                    spent_s = sum(process.cpu_times()[:2]) - before[name]
                    memory = process.memory_info().rss / 2**20
                    facts[name] = (spent_s / count * 1000, memory)
    finally:
        await client.aclose()
        shutil.rmtree(folder, ignore_errors=True)
    return found, facts


async def _answers(http: aiohttp.ClientSession, url: str) -> None:
    for _ in range(1200):
        with contextlib.suppress(aiohttp.ClientError):
            async with http.get(url) as reply:
                if reply.status == 200:
                    return
        await asyncio.sleep(0.1)
    raise SystemExit(f"{url} does not answer")


async def _ready(
    client: "redis.asyncio.Redis", keys: Sequence[str], count: int, folder: Path
) -> None:
    deadline = time.monotonic() + 60 + 1.5 * count
    while time.monotonic() < deadline:
        beats = [
            await client.get(f"health:{s}:{s}") for s in ("collector", "featurizer", "predictor")
        ]
        if all(beat and json.loads(beat)["ready"] for beat in beats):
            lengths = [await client.xlen(key) for key in (keys[0], keys[-1])]
            if min(lengths) >= 1500:
                return
        await asyncio.sleep(0.2)
    logs = "\n".join(p.read_text()[-2000:] for p in folder.glob("*.log"))
    raise SystemExit(f"the services did not become ready:\n{logs}")


async def _one_candle(
    client: "redis.asyncio.Redis",
    http: aiohttp.ClientSession,
    base: str,
    symbols: Sequence[str],
    position: dict[bytes | str, bytes],
) -> float:
    async def advance() -> None:
        async with http.post(f"{base}/control/advance", json={"candles": 1}) as reply:
            reply.raise_for_status()

    task = asyncio.create_task(advance())
    waiting = set(position)
    arrived = 0
    while waiting:
        reply = await client.xread({k: position[k] for k in waiting}, block=10_000)
        arrived = time.time_ns() // 1000
        if not reply:
            raise SystemExit(f"no signal on {sorted(map(str, waiting))[:3]}")
        for key, entries in reply:
            name = key.decode()
            position[name] = entries[-1][0]
            waiting.discard(name)
    await task
    first = None
    pipe = client.pipeline(transaction=False)
    for symbol in symbols:
        pipe.xrevrange(f"kline:{{{symbol}}}:1m", count=1)
    for ((_, fields),) in await pipe.execute():
        received = msgpack.unpackb(fields[b"data"])["meta"]["received_us"]
        first = received if first is None else min(first, received)
    assert first is not None
    return (arrived - first) / 1000


# -- the report -------------------------------------------------------------------------------


def _figures(name: str, values: Sequence[float]) -> str:
    p50, p99, best = np.percentile(values, 50), np.percentile(values, 99), min(values)
    return (
        f"{name:<34} p50 {p50:8.2f} ms   p99 {p99:8.2f} ms   best {best:8.2f} ms   n {len(values)}"
    )


async def report(candles: int, sizes: Sequence[int]) -> None:
    folder = Path(tempfile.gettempdir()) / "itb-bench-release"
    folder.mkdir(exist_ok=True)
    models = train_release(folder)
    work = Path(tempfile.mkdtemp(prefix="itb-bench-valkey-"))
    server = Server(work).start()
    try:
        for size in sizes:
            count = candles if size == 1 else max(20, candles // 10)
            symbols = ["TESTUSDT"] if size == 1 else [f"S{n}USDT" for n in range(size)]
            peer = await peer_latencies(server, count, size)
            ours, facts = await our_latencies(server, models, count, symbols)
            print(f"-- {size} symbol(s) closing at once: frame on the socket to last signal read")
            print(_figures("bare three-hop redis-py chain", peer))
            print(_figures("collector, featurizer, predictor", ours))
            print(f"ratio of medians {np.median(ours) / np.median(peer):.2f}")
            for name, (cpu_ms, memory) in facts.items():
                print(f"  {name:<12} CPU {cpu_ms:7.2f} ms a candle   RSS {memory:5.0f} MiB")
            sys.stdout.flush()
    finally:
        server.stop()
        shutil.rmtree(work, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--candles", type=int, default=300)
    parser.add_argument("--symbols", type=int, nargs="+", default=[1, 100, 600])
    parser.add_argument("--copy", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--feed", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.copy:
        uvloop.run(copy(*args.copy))
    elif args.feed:
        uvloop.run(feed(args.feed[0], int(args.feed[1]), int(args.feed[2])))
    else:
        uvloop.run(report(args.candles, args.symbols))


if __name__ == "__main__":
    main()
