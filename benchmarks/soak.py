"""Does anything grow? The whole system on a simulated market of many symbols, for a while.

Every process's resident memory and CPU are sampled; behind the warm-up a line is put through the
memory (Theil-Sen: the median of the slopes between all pairs of samples, which single jumps do not
move) and each stream's growth is set against the candles that were played. Ends with 1 where a
service's memory grows faster than the limit or a stream holds more than it was given.

    python -m benchmarks.soak --minutes 30 --symbols 100
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil
import redis.asyncio
import uvloop

from benchmarks.pipeline import children, log, release_for, train_release
from tests.valkey import Server, free_port

SERVICES = ("collector", "featurizer", "predictor", "notifier", "trader")
_EVERY_S = 5.0
_MIB = 2**20
# One entry per candle; a score is claimed and has its outcome.
_PER_CANDLE = {"kline": 1, "feature": 1, "prediction": 1, "signal": 1, "notification": 2}


@dataclass(slots=True)
class Track:
    """One process: (seconds since the start, resident MiB, CPU seconds)."""

    process: psutil.Process
    samples: list[tuple[float, float, float]] = field(default_factory=list)

    def sample(self, at_s: float) -> None:
        used = self.process.cpu_times()
        rss = self.process.memory_info().rss / _MIB
        self.samples.append((at_s, rss, used.user + used.system))

    def after(self, from_s: float) -> "np.ndarray[Any, Any]":
        return np.array([s for s in self.samples if s[0] >= from_s])


def slope_per_hour(samples: "np.ndarray[Any, Any]") -> float:
    """MiB an hour, by the median of all pairwise slopes. samples: (n, 3), see Track."""
    times, sizes = samples[:, 0], samples[:, 1]
    first, second = np.triu_indices(len(times), 1)
    return float(np.median((sizes[second] - sizes[first]) / (times[second] - times[first]))) * 3600


async def soak(args: argparse.Namespace) -> int:
    cache = Path(tempfile.gettempdir()) / "itb-bench-release"
    cache.mkdir(exist_ok=True)
    models = train_release(cache)
    symbols = [f"S{n}USDT" for n in range(args.symbols)]
    with tempfile.TemporaryDirectory(prefix="itb-soak-") as name:
        folder = Path(name)
        server = Server(folder / "valkey").start()
        try:
            return await _run(args, server, folder, release_for(models, symbols, folder), symbols)
        finally:
            server.stop()


async def _run(
    args: argparse.Namespace, server: Server, folder: Path, models: Path, symbols: list[str]
) -> int:
    port, metrics_ports = free_port(), [free_port() for _ in SERVICES]
    environment = {
        "ITB_REDIS_URL": server.unix_url,
        "ITB_SYMBOLS": ",".join(symbols),
        "ITB_MODEL_FOLDER": str(models),
        "ITB_DATA_FOLDER": str(folder / "data"),
        "ITB_BINANCE_REST_URL": f"http://127.0.0.1:{port}",
        "ITB_BINANCE_WS_URL": f"ws://127.0.0.1:{port}",
        "ITB_BINANCE_WS_API_URL": f"ws://127.0.0.1:{port}/ws-api/v3",
        "ITB_MARKET_SPEED": str(args.speed),
        "ITB_COLLECTOR__HISTORY_ROWS": "1500",
        "ITB_COLLECTOR__WEIGHT_BUDGET": "1",
        "ITB_TRADER__MODE": args.trader,
        "ITB_LOG_LEVEL": "warning",
    }
    tracks: dict[str, Track] = {}
    client = redis.asyncio.Redis.from_url(server.unix_url, socket_timeout=None)
    with children(environment, folder) as start:
        begin: Any = start
        simulator = begin(
            "simulator", "--port", str(port), "--symbol", *symbols, "--history", "1700",
            "--speed", str(args.speed),
        )  # fmt: skip
        tracks["valkey"] = Track(psutil.Process(server.pid))
        tracks["simulator"] = Track(psutil.Process(simulator.pid))
        async with aiohttp.ClientSession() as http:
            await _until_answers(http, f"http://127.0.0.1:{port}/api/v3/ping")
        for service, own_port in zip(SERVICES, metrics_ports, strict=True):
            os.environ["ITB_METRICS_PORT"] = str(own_port)
            tracks[service] = Track(psutil.Process(begin(service).pid))
        os.environ.pop("ITB_METRICS_PORT")
        await _until_ready(client, folder)
        log(f"all ready; {args.minutes:g} minutes of {len(symbols)} symbols begin")
        began_s = time.monotonic()
        before = await _lengths(client)
        first_ms = await _newest_ms(client, symbols[0])
        end_s = 60 * args.minutes
        async with aiohttp.ClientSession() as http:
            while (at_s := time.monotonic() - began_s) < end_s:
                for track in tracks.values():
                    track.sample(at_s)
                for own_port in metrics_ports:  # as a Prometheus would
                    async with http.get(f"http://127.0.0.1:{own_port}/metrics") as reply:
                        await reply.read()
                await asyncio.sleep(min(_EVERY_S, max(0.1, end_s - at_s)))
        after = await _lengths(client)
        candles = (await _newest_ms(client, symbols[0]) - first_ms) // 60_000
    await client.aclose()
    return _report(args, tracks, before, after, candles * len(symbols))


async def _until_answers(http: aiohttp.ClientSession, url: str) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            async with http.get(url):
                return
        except aiohttp.ClientError:
            if time.monotonic() > deadline:
                raise SystemExit(f"{url} does not answer") from None
            await asyncio.sleep(0.1)


async def _until_ready(client: "redis.asyncio.Redis", folder: Path) -> None:
    deadline = time.monotonic() + 600
    waits: dict[str, Any] = {}
    while time.monotonic() < deadline:
        waits = {}
        for service in SERVICES:
            beat = json.loads(await client.get(f"health:{service}:{service}") or b"{}")
            if not beat.get("ready"):
                waits[service] = beat.get("reason", "no heartbeat")
        if not waits:
            return
        await asyncio.sleep(0.5)
    logs = "\n".join(p.read_text()[-2000:] for p in folder.glob("*.log"))
    raise SystemExit(f"not ready: {waits}\n{logs}")


async def _lengths(client: "redis.asyncio.Redis") -> dict[str, int]:
    """Entries by kind of stream."""
    found: dict[str, int] = defaultdict(int)
    async for key in client.scan_iter(count=1000, _type="stream"):
        found[key.decode().split(":", 1)[0]] += await client.xlen(key)
    return dict(found)


async def _newest_ms(client: "redis.asyncio.Redis", symbol: str) -> int:
    ((entry_id, _),) = await client.xrevrange(f"signal:{{{symbol}}}:1m", count=1)
    return int(entry_id.split(b"-")[0])


def _report(
    args: argparse.Namespace,
    tracks: dict[str, Track],
    before: dict[str, int],
    after: dict[str, int],
    entries: int,
) -> int:
    """entries: candles times symbols that were played."""
    warm_s = 60 * (args.warm_up if args.warm_up is not None else args.minutes / 3)
    faults: list[str] = []
    found: dict[str, dict[str, float]] = {}
    print(f"{len(SERVICES)} services, {args.symbols} symbols, speed {args.speed:g}, "
          f"{args.minutes:g} minutes, of which {warm_s / 60:.1f} are warm-up")  # fmt: skip
    print(f"{'process':<12} {'RSS MiB':>9} {'slope MiB/h':>12} {'CPU %':>7}")
    for name, track in tracks.items():
        rows = track.after(warm_s)
        if len(rows) < 3:
            raise SystemExit("too short: there is nothing behind the warm-up")
        seconds, used = rows[-1, 0] - rows[0, 0], rows[-1, 2] - rows[0, 2]
        slope = slope_per_hour(rows)
        found[name] = {"rss": rows[-1, 1], "slope": slope, "cpu": 100 * used / seconds}
        print(f"{name:<12} {rows[-1, 1]:9.1f} {slope:12.2f} {100 * used / seconds:7.2f}")
        if name in SERVICES and slope > args.limit:
            faults.append(f"{name} grows by {slope:.1f} MiB/h, the limit is {args.limit:g}")
    print(f"{'stream':<14} {'before':>9} {'after':>9}")
    for kind in sorted({*before, *after}):
        grown = after.get(kind, 0) - before.get(kind, 0)
        print(f"{kind:<14} {before.get(kind, 0):9} {after.get(kind, 0):9}")
        most = _PER_CANDLE.get(kind)
        # A candle of each symbol may be under way at either end.
        if most is not None and grown > most * (entries + 2 * args.symbols):
            faults.append(f"{kind} grew by {grown}, {entries} candles were played")
    print(json.dumps({"processes": found, "candles": entries, "faults": faults}))
    for fault in faults:
        log(f"soak: {fault}")
    return 1 if faults else 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--symbols", type=int, default=100)
    parser.add_argument("--speed", type=float, default=1.0, help="market seconds per second (1)")
    parser.add_argument("--warm-up", type=float, help="minutes that do not count (a third)")
    parser.add_argument("--limit", type=float, default=1.0, help="MiB an hour (1)")
    parser.add_argument("--trader", choices=("observe", "paper"), default="paper")
    sys.exit(uvloop.run(soak(parser.parse_args())))


if __name__ == "__main__":
    main()
