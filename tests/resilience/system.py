"""The whole system as processes: Valkey, the simulated exchange and the five services.

A service that ends is started again at once, whoever ended it; the exchange keeps its orders and
its place in the market in a folder of its own, so that it can be ended, too. A shell in the same
process group ends everything when this process is gone, however that happened.
"""

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import redis

from deploy.valkey import repair
from shared.streams import KLINE, SIGNAL, health_key
from tests.resilience.proxy import Proxy
from tests.resilience.tape import SYMBOL, M, Tape
from tests.valkey import Server, free_port

ROOT = Path(__file__).parents[2]
SERVICES = ("collector", "featurizer", "predictor", "notifier", "trader")
VALKEY = "valkey"
EXCHANGE = "simulator"
HOST = "127.0.0.1"
_LOOK_S = 0.02
_GUARD = "trap '' HUP INT TERM; read -r _; kill -KILL 0"
_STALL_S = 60.0
_LOSS_S = 1.0


class Stalled(AssertionError):
    """Nothing moves any more."""


@dataclass(frozen=True, slots=True)
class Life:
    """A start of a service. began_ms: our clock. kline_ms: the newest candle on the bus then, None
    where that is not known."""

    began_ms: int
    kline_ms: int | None


class System:
    """Use as `async with System.running(...)`.

    kills: how often each part was ended by us. surprises: ends that nobody asked for.
    played: candles since the market opened, by `advance`. lives: starts of each service. lost_ms:
    when the server was ended (our clock). deposits: what the account held
    before anybody traded.
    """

    def __init__(
        self, folder: Path, tape: Tape, config: dict[str, Any], speed: str, *, proxied: bool
    ) -> None:
        folder.mkdir(parents=True)
        self._proxied = proxied
        self.proxies: dict[str, Proxy] = {}
        self.environments: dict[str, dict[str, str]] = {}
        self.folder = folder
        self.lock_step = speed == "max"
        self.tape = tape
        self.server = Server(folder / "valkey")
        self.kills: Counter[str] = Counter()
        self.surprises: list[str] = []
        self.lost_bytes = 0  # of acknowledged writes, by our hand
        self.repairs: list[str] = []
        self.played = 0
        self.signals_ms = 0  # the newest signal's candle
        self.lives: defaultdict[str, list[Life]] = defaultdict(list)
        self.lost_ms: list[int] = []
        self.deposits: dict[str, Any] = {}
        self._kline_ms: int | None = None
        self._exchange_is_up = asyncio.Event()
        self._port = free_port()
        self._speed = speed
        self.config = folder / "config.json"
        self._settings = config
        self._guard: subprocess.Popen[bytes] | None = None
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._held: set[str] = set()
        self._beats: dict[str, dict[str, Any]] = {}
        self._aof: deque[tuple[float, Path, int]] = deque(maxlen=200)
        self._valkey_is_up = False
        self._http: aiohttp.ClientSession | None = None
        self._moved_s = time.monotonic()

    @classmethod
    @contextlib.asynccontextmanager
    async def running(
        cls,
        folder: Path,
        tape: Tape,
        models: Path,
        features: Sequence[str],
        *,
        lock_step: bool = False,
        collector: dict[str, Any] | None = None,
        proxied: bool = False,
        trader: dict[str, Any] | None = None,
        environments: Mapping[str, Mapping[str, str]] | None = None,
    ) -> AsyncIterator["System"]:
        """Starts everything; at the end nothing of it is left.

        lock_step: the market waits for every consumer; else it moves when `advance` says so.
        proxied: every service reaches Valkey through a proxy of its own. trader: its settings; it
        only journals decisions unless they say more. environments: further variables of a service.
        """
        config = {
            "symbol": SYMBOL,
            "features_kline": list(features),
            "model_folder": str(models),
            "data_folder": str(folder / "data"),
            "archive_url": "",
            # More than there is, so that the first candle on the bus is always the file's.
            "collector": {"follow": lock_step, "history_rows": 100_000} | (collector or {}),
            "signaler": {"notification_threshold": 0},
            # Nothing may be dropped for its age or for lack of room, however long somebody is down.
            "notifier": {"max_age_s": 1e9, "queue": 100_000},
            "trader": {"max_age_s": 1e9, "mode": "observe"} | (trader or {}),
        }
        system = cls(folder, tape, config, "max" if lock_step else "manual", proxied=proxied)
        for name, variables in (environments or {}).items():
            system.environments[name] = dict(variables)
        watching: asyncio.Task[None] | None = None
        try:
            await system._start()
            watching = asyncio.create_task(system._watch())
            yield system
            if watching.done():
                watching.result()
        finally:
            if watching is not None:
                watching.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await watching
            await system._end()

    # -- what the test does ---------------------------------------------------------------------

    @property
    def client(self) -> "redis.Redis":
        return redis.Redis(
            unix_socket_path=str(self.server.socket),
            socket_timeout=5,
            single_connection_client=True,
        )

    def kill(self, name: str) -> None:
        """SIGKILL, and the next life begins."""
        process = self._processes[name]
        if process.poll() is not None:
            self._surprise(name, process)
        else:
            process.kill()
            process.wait()
            self.kills[name] += 1
        self._spawn(name)

    def end(self, name: str) -> None:
        """SIGKILL; it stays away until `start`."""
        self._held.add(name)
        self._processes[name].kill()
        self._processes[name].wait()

    def start(self, name: str) -> None:
        self._held.discard(name)
        self._spawn(name)

    async def kill_valkey(self, *, lose: float | None, down_s: float = 0.0, zeros: int = 0) -> None:
        """SIGKILL and a new start, as the start script does it (FAULTS V2).

        lose: which share of the last second's writes never reached the disk (AOF everysec promises
        no more), cut at any byte; None = the kernel kept all. zeros: so many bytes of zeros stand
        behind the cut, as a file system may leave them.
        """
        self._valkey_is_up = False
        self._kline_ms = None
        self.lost_ms.append(_wall_ms())
        await asyncio.to_thread(self.server.kill9)
        self.kills[VALKEY] += 1
        if lose is not None:
            self._cut_aof(lose, zeros)
        await asyncio.sleep(down_s)
        await asyncio.to_thread(repair, self.server.dir, self.repairs.append)
        await asyncio.to_thread(self.server.start)
        self.lost_ms.append(_wall_ms())
        self._valkey_is_up = True

    async def kill_exchange(self, *, down_s: float = 0.0) -> None:
        """SIGKILL of the simulator and a new start: it goes on where it stood."""
        self._exchange_is_up.clear()
        self._held.add(EXCHANGE)
        self._processes[EXCHANGE].kill()
        self._processes[EXCHANGE].wait()
        self.kills[EXCHANGE] += 1
        await asyncio.sleep(down_s)
        self.start(EXCHANGE)
        await self._until_exchange()

    async def fail_over(self, replica: Server) -> None:
        """The server is gone; every proxy leads to the replica now."""
        self._valkey_is_up = False
        await asyncio.to_thread(self.server.stop)
        self.server = replica
        for proxy in self.proxies.values():
            proxy.upstream_port = replica.port
            proxy.cut()
        self._valkey_is_up = True

    def pause(self, name: str, paused: bool) -> None:
        """SIGSTOP or SIGCONT."""
        process = self._processes[name]
        if process.poll() is None:
            process.send_signal(signal.SIGSTOP if paused else signal.SIGCONT)

    async def stop(self, name: str) -> float:
        """SIGTERM, and the next life begins; returns the seconds that it took to end."""
        process = self._processes[name]
        self._held.add(name)
        began_s = time.monotonic()
        process.terminate()
        code = await asyncio.to_thread(process.wait, 60)
        took_s = time.monotonic() - began_s
        if code not in (0, -signal.SIGTERM):  # the latter before it could have a handler
            self._surprise(name, process)
        self.start(name)
        return took_s

    def is_ready(self, name: str) -> bool:
        beat = self._beats.get(name, {})
        return bool(beat.get("ready")) and beat.get("pid") == self._processes[name].pid

    def is_at_work(self, name: str) -> bool:
        """Whether it is past its start: ready, or on the way to the newest candle."""
        beat = self._beats.get(name, {})
        is_behind = str(beat.get("reason", "")).endswith("candles behind")
        is_there = bool(beat.get("ready")) or is_behind
        return is_there and beat.get("pid") == self._processes[name].pid

    async def time_starts(self) -> dict[str, float]:
        """Seconds from a SIGKILL until it is ready again, while all else stands: each service, and
        with the server until the last service is, too."""
        began_s, began_ms = time.monotonic(), _wall_ms()
        await self.kill_valkey(lose=None)
        await self.until(
            lambda: all(
                self.is_ready(name) and self._beats[name]["time_ms"] > began_ms for name in SERVICES
            ),
            "all to be ready",
        )
        took = {VALKEY: time.monotonic() - began_s}
        for name in SERVICES:
            began_s = time.monotonic()
            self.kill(name)
            await self.until(lambda: self.is_ready(name), f"the {name} to be ready")  # noqa: B023  # awaited here
            took[name] = time.monotonic() - began_s
        return took

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Waits; fails when nothing of the system moves for a minute."""
        while not condition():
            self.check_alive(what)
            await asyncio.sleep(_LOOK_S)

    def check_alive(self, what: str) -> None:
        quiet_s = time.monotonic() - self._moved_s
        if quiet_s > _STALL_S:
            raise Stalled(
                f"no progress for {quiet_s:.0f} s while waiting for {what}\n{self.tails()}"
            )

    async def until_ready(self) -> None:
        await self.until(lambda: all(map(self.is_ready, SERVICES)), "all services to be ready")

    async def control(self, command: str, **body: Any) -> dict[str, Any]:
        assert self._http is not None
        async with self._http.post(f"/control/{command}", json=body) as reply:
            answer: dict[str, Any] = await reply.json()
            assert reply.status == 200, answer
            return answer

    async def advance(self, candles: int) -> None:
        """The market goes on by so many candles, or by fewer where the exchange is ended."""
        try:
            state = await self.control("advance", candles=candles)
        except aiohttp.ClientError:
            await self._exchange_is_up.wait()
            state = await self.ask("")
        self.played = int(state["steps_done"]) - self.tape.history

    async def ask(self, what: str) -> dict[str, Any]:
        """What the exchange itself knows: "" about the market, "/account" about the account."""
        assert self._http is not None
        async with self._http.get(f"/control{what}") as reply:
            answer: dict[str, Any] = await reply.json()
            assert reply.status == 200, answer
            return answer

    async def end_exchange_faults(self) -> None:
        assert self._http is not None
        async with self._http.delete("/control/faults") as reply:
            assert reply.status == 200

    @contextlib.contextmanager
    def looking_away(self) -> Iterator[None]:
        """The watch asks Valkey nothing: it would wait for an answer."""
        was_up, self._valkey_is_up = self._valkey_is_up, False
        try:
            yield
        finally:
            self._valkey_is_up = was_up

    @property
    def live(self) -> int:
        """Candles that the market plays in all."""
        return self.tape.candles - self.tape.history

    @property
    def behind(self) -> int:
        """Minutes from the newest signal to the newest candle that was played."""
        newest_ms = self.tape.there[self.tape.history + self.played - 1]
        return (newest_ms - self.signals_ms) // M

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def tails(self, lines: int = 15) -> str:
        """What everybody said last, for the message of a failure."""
        parts = [f"kills: {dict(self.kills)}, {self.lost_bytes} bytes of the AOF cut off"]
        parts.append(f"ended by themselves: {self.surprises}")
        beats = {n: {k: b.get(k) for k in ("ready", "reason")} for n, b in self._beats.items()}
        parts.append(f"heartbeats: {beats}")
        for name in (*SERVICES, "simulator"):
            tail = [line[:400] for line in self.log(name).splitlines()[-lines:]]
            parts.append(f"-- {name}.log\n" + "\n".join(tail))
        return "\n".join(parts)

    # -- processes ------------------------------------------------------------------------------

    async def _start(self) -> None:
        self.config.write_text(json.dumps(self._settings | self._places()))
        self._guard = subprocess.Popen(  # noqa: ASYNC220  # forks at once
            ["/bin/sh", "-c", _GUARD], stdin=subprocess.PIPE, process_group=0
        )
        await asyncio.to_thread(self.server.start)
        self._valkey_is_up = True
        if self._proxied:
            for name in SERVICES:
                self.proxies[name] = await Proxy(self.server.port).__aenter__()
                own = self.environments.setdefault(name, {})
                own["ITB_REDIS_URL"] = self.proxies[name].url
        self._spawn(EXCHANGE)
        self._http = aiohttp.ClientSession(
            f"http://{HOST}:{self._port}", timeout=aiohttp.ClientTimeout(total=60)
        )
        await self._until_exchange()
        self.deposits = await self.ask("/account")
        for name in SERVICES:
            self._spawn(name)

    async def _until_exchange(self) -> None:
        deadline = time.monotonic() + 30
        while True:
            try:
                await self.control(
                    "limits", connections_per_5m=100_000, spot_weight=1_000_000, orders_10s=100_000
                )
                await self.control("pause")  # nobody listens yet: it stands
                break
            except aiohttp.ClientConnectionError:
                if time.monotonic() > deadline or self._processes[EXCHANGE].poll() is not None:
                    raise Stalled(f"the simulator does not start\n{self.tails()}") from None
                await asyncio.sleep(_LOOK_S)
        self._exchange_is_up.set()

    def _places(self) -> dict[str, str]:
        return {
            "redis_url": self.server.unix_url,
            "binance_rest_url": f"http://{HOST}:{self._port}",
            "binance_ws_url": f"ws://{HOST}:{self._port}",
            "binance_ws_api_url": f"ws://{HOST}:{self._port}/ws-api/v3",
        }

    def environment(self, name: str) -> dict[str, str]:
        """What a process is started with."""
        own = {k: v for k, v in os.environ.items() if not k.startswith("ITB_")}
        return own | {"PYTHONPATH": str(ROOT)} | self.environments.get(name, {})

    def beat(self, name: str) -> dict[str, Any]:
        """The last heartbeat that was seen."""
        return self._beats.get(name, {})

    def _spawn(self, name: str) -> None:
        arguments = ["-c", str(self.config)]
        if name == EXCHANGE:
            arguments = ["--port", str(self._port), "--data", str(self.tape.path)]
            arguments += ["--history", str(self.tape.history), "--speed", self._speed]
            arguments += ["--workdir", str(self.folder / "exchange")]
        assert self._guard is not None
        environment = self.environment(name)
        self.lives[name].append(Life(_wall_ms(), self._kline_ms))
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", name, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.folder,
                process_group=self._guard.pid,
            )

    def _surprise(self, name: str, process: subprocess.Popen[bytes]) -> None:
        last = self.log(name).strip().splitlines()[-1:]
        self.surprises.append(f"{name} ended with {process.returncode}: {last}")

    async def _end(self) -> None:
        if self._http is not None:
            await self._http.close()
        for process in self._processes.values():
            process.kill()
            process.wait()
        for proxy in self.proxies.values():
            await proxy.__aexit__()
        self.server.stop()
        if self._guard is not None and self._guard.stdin is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._guard.pid, signal.SIGKILL)
            self._guard.stdin.close()
            self._guard.wait()

    # -- watching -------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Heartbeats, the newest signal, the AOF's growth; restarts what ended by itself."""
        server, client = self.server, self.client
        signals, klines = SIGNAL.key(SYMBOL, "1m"), KLINE.key(SYMBOL, "1m")
        keys = [health_key(name, name) for name in SERVICES]
        try:
            while True:
                for name in set(SERVICES) - self._held:
                    process = self._processes[name]
                    if process.poll() is not None:
                        self._surprise(name, process)
                        self._spawn(name)
                if EXCHANGE not in self._held:
                    assert self._processes[EXCHANGE].poll() is None, self.tails()
                self._sample_aof()
                if server is not self.server:
                    client.close()
                    server, client = self.server, self.client
                if self._valkey_is_up:
                    with contextlib.suppress(redis.RedisError):
                        beats: Any = client.mget(keys)
                        newest: Any = client.xrevrange(signals, count=1)
                        candle: Any = client.xrevrange(klines, count=1)
                        self._note(beats, newest)
                        self._kline_ms = _time_ms(candle) if self._valkey_is_up else None
                await asyncio.sleep(_LOOK_S)
        finally:
            client.close()

    def _note(self, beats: list[bytes | None], newest: list[Any]) -> None:
        before = [b.get("last_ids") for b in self._beats.values()], self.signals_ms
        for name, beat in zip(SERVICES, beats, strict=True):
            self._beats[name] = json.loads(beat) if beat else {}
        self.signals_ms = _time_ms(newest)
        if before != ([b.get("last_ids") for b in self._beats.values()], self.signals_ms):
            self._moved_s = time.monotonic()

    def _sample_aof(self) -> None:
        files = (self.server.dir / "appendonlydir").glob("*.incr.aof")
        with contextlib.suppress(ValueError, FileNotFoundError):
            newest = max(files, key=lambda path: int(path.name.split(".")[-3]))
            self._aof.append((time.monotonic(), newest, newest.stat().st_size))

    def _cut_aof(self, share: float, zeros: int) -> None:
        if not self._aof:
            return
        now_s, path, _ = self._aof[-1]
        size = path.stat().st_size
        sizes = [s for at_s, p, s in self._aof if p == path and at_s > now_s - _LOSS_S]
        keep = size - int(share * (size - min(sizes, default=size)))
        os.truncate(path, keep)
        self.lost_bytes += size - keep
        if zeros:
            with path.open("ab") as file:
                file.write(bytes(zeros))


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


def _time_ms(newest: list[Any]) -> int:
    """Time of a stream's newest entry; 0 = there is none."""
    return int(newest[0][0].split(b"-")[0]) if newest else 0


async def strike(
    system: System, name: str, times: int, rng: random.Random, done: Counter[str]
) -> None:
    """Ends one service so many times: mostly when it has just become ready and is at work, now and
    then while it starts."""
    while done[name] < times:
        if rng.random() < 0.2:
            await asyncio.sleep(rng.uniform(0, 1.0))
        else:
            await system.until(lambda: system.is_ready(name), f"the {name} to be ready")
            await asyncio.sleep(rng.uniform(0, 0.3))
        system.kill(name)
        done[name] += 1


async def strike_valkey(
    system: System, times: int, rng: random.Random, done: Counter[str], *, lose: bool
) -> None:
    """Ends Valkey so many times, each time after signals have moved."""
    while done[VALKEY] < times:
        before_ms = system.signals_ms
        await system.until(
            lambda seen=before_ms: system.signals_ms != seen,  # type: ignore[misc]
            "signals after a restart of Valkey",
        )
        await asyncio.sleep(rng.uniform(0, 0.3))
        share = rng.random() if lose and rng.random() < 0.5 else None
        await system.kill_valkey(lose=share, down_s=rng.choice((0.0, 0.0, rng.uniform(0, 0.5))))
        done[VALKEY] += 1
