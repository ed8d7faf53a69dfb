"""Process chaos: everything that can break does, at random, several times a second, while the
market goes on; then all that stands on the bus is compared with a batch computation.

A run is a row of rounds. Each has its own market and its own draws, both from the run's seed and
the round's number, so that a round can be played alone.
"""

import asyncio
import contextlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import redis

from tests.resilience import checks
from tests.resilience.conftest import FEATURES
from tests.resilience.proxy import Proxy, any_request, commits, reads
from tests.resilience.system import SERVICES, System
from tests.resilience.tape import record

HISTORY = 1_600  # more than the longest window, so that most scores are valid
LIVE = 2_500
_LAG = 400  # candles that may wait for their signals before the market pauses
_MEAN_PAUSE_S = 0.28  # between two faults: more than three begin in a second
_QUIET_S = 60.0  # FAULTS I8
# Notices that would mean that something was lost, doubled or wrong.
FORBIDDEN = frozenset(
    ("diverged", "hole", "dead_letter", "journal", "future_entries", "messages_stopped")
)
# (kind, on, more): what the exchange does wrong; none of them changes what the truth is.
_EXCHANGE: tuple[tuple[str, dict[str, object]], ...] = (
    ("drop", {"count": 2}),
    ("duplicate", {"count": 3}),
    ("reorder", {"count": 2}),
    ("delay", {"ms": 700, "count": 3}),
    ("garbage", {"count": 2}),
    ("silence", {"seconds": 1.5}),
    ("refuse", {"status": 503, "seconds": 1.0}),
    ("429", {"retry_after_s": 1, "count": 2}),
    ("status", {"status": 503, "count": 3}),
    ("html", {"status": 502, "count": 2}),
    ("garbage", {"on": "rest", "path": "klines", "count": 2}),
    ("timeout", {"ms": 800, "count": 2}),
    ("delay", {"on": "rest", "ms": 900, "count": 3}),
)


@dataclass(slots=True)
class Report:
    """What a run was. faults: by kind. entries: compared with the truth, value by value.

    ready_s: from a kill until the service was ready again, while all else went on.
    """

    seed: int
    rounds: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    storm_s: float = 0.0
    links: Counter[str] = field(default_factory=Counter)  # what the proxies did
    entries: int = 0
    candles: int = 0
    calm_s: list[float] = field(default_factory=list)
    stop_s: list[float] = field(default_factory=list)
    problems: checks.Problems = field(default_factory=checks.Problems)

    def line(self) -> str:
        total = self.faults.total()
        return json.dumps(
            {
                "seed": self.seed,
                "rounds": self.rounds,
                "faults": total,
                "faults_per_s": round(total / max(self.storm_s, 1e-9), 2),
                "kinds": dict(sorted(self.faults.items())),
                "links": dict(sorted(self.links.items())),
                "candles": self.candles,
                "entries_compared": self.entries,
                "all_ready_after_the_last_fault_s": _worst(self.calm_s),
                "sigterm_to_end_s": _worst(self.stop_s),
                "violations": dict(self.problems.counts),
            }
        )


def _worst(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    return {"median": round(float(np.median(values)), 2), "worst": round(max(values), 2)}


async def run(folder: Path, models: Path, *, minutes: float, seed: int, only: int | None) -> Report:
    """Rounds until the time is over, or the one round `only`; ends with the first bad one."""
    report = Report(seed)
    until_s = time.monotonic() + 60 * minutes
    number = only or 0
    while report.problems.none() and (not report.rounds or time.monotonic() < until_s):
        left_s = max(10.0, until_s - time.monotonic())
        sys.stderr.write(f"\nchaos: to replay: CHAOS_SEED={seed} CHAOS_ROUND={number}\n")
        sys.stderr.flush()
        await _Round(folder / f"round-{number}", models, seed, number, report).play(
            min(60.0, left_s)
        )
        report.rounds += 1
        if only is not None:
            break
        number += 1
    return report


Fault = Callable[[], Awaitable[None]]


class _Round:
    def __init__(self, folder: Path, models: Path, seed: int, number: int, report: Report) -> None:
        self._folder = folder
        self._models = models
        self._rng = random.Random(f"chaos {seed} {number}")
        self._tape_seed = self._rng.randrange(2**31)
        self._report = report
        self._server_is_busy = False  # one fault of the server at a time
        self._busy: set[str] = set()  # services that are down or stopped by us

    async def play(self, storm_s: float) -> None:
        self._folder.mkdir(parents=True)
        tape = record(self._folder, history=HISTORY, live=LIVE, seed=self._tape_seed)
        expected = checks.expect(tape, FEATURES, self._models)
        report = self._report
        running = System.running(self._folder / "run", tape, self._models, FEATURES, proxied=True)
        async with running as system:
            self._system = system
            await system.until_ready()
            began_s = time.monotonic()
            async with asyncio.TaskGroup() as tasks:
                market = tasks.create_task(self._market(began_s, storm_s))
                while (left_s := began_s + storm_s - time.monotonic()) > 0:
                    name, fault = self._draw()
                    tasks.create_task(self._strike(name, fault))
                    pause_s = self._rng.expovariate(1 / _MEAN_PAUSE_S)
                    await asyncio.sleep(min(pause_s, left_s))
                market.cancel()
            report.storm_s += time.monotonic() - began_s
            await self._calm()
            calm_s = time.monotonic()
            await system.until_ready()
            report.calm_s.append(time.monotonic() - calm_s)
            kept = await self._to_the_end()
            problems = checks.check_bus(kept, expected, forbidden=FORBIDDEN)
            for name, proxy in system.proxies.items():
                if not proxy.stats["connections"]:
                    problems.say("no fault", f"the proxy of the {name} was never used")
            report.links.update(sum((p.stats for p in system.proxies.values()), Counter()))
            for surprise in system.surprises:
                problems.say("ended by itself", surprise)
            if report.calm_s[-1] > _QUIET_S:
                problems.say("not ready", f"{report.calm_s[-1]:.0f} s after the last fault")
            report.candles += system.played
            report.entries += sum(len(kept.streams[stream.name]) for stream in checks.DATA)
            report.problems.add(problems)
            if not problems.none():
                report.problems.texts.append(system.tails())

    async def _market(self, began_s: float, storm_s: float) -> None:
        """The market goes on whoever is down; it stops only where too much waits."""
        system = self._system
        while True:
            share = min(1.0, (time.monotonic() - began_s) / storm_s)
            wanted = int(0.9 * share * system.live)
            if system.played < wanted and system.behind <= _LAG:
                await system.advance(min(self._rng.randrange(1, 12), wanted - system.played))
            await asyncio.sleep(0.02)

    async def _to_the_end(self) -> checks.Kept:
        system = self._system
        with system.client as client:
            while (left := system.live - system.played) > 0:
                allowed = _LAG if left > 5 else 1
                await system.until(lambda most=allowed: system.behind <= most, "signals")  # type: ignore[misc]
                await system.advance(min(50, left - 5) if left > 5 else 1)
            finished = checks.is_finished(client, system.tape.last_ms)
            await system.until(finished, "the last candle's signal")
            return checks.read_bus(client)

    # -- faults -----------------------------------------------------------------------------------

    def _draw(self) -> tuple[str, Fault]:
        rng = self._rng
        service = rng.choice(SERVICES)
        proxy = self._system.proxies[service]
        seconds = rng.uniform(0.2, 2.5)
        match = rng.choice((any_request, commits, commits, reads))
        kinds: list[tuple[float, str, Fault]] = [
            (10, "kill", lambda: self._kill(service)),
            (4, "terminate", lambda: self._terminate(service)),
            (6, "stop", lambda: self._stop(service, seconds)),
            (10, "cut", lambda: self._now(proxy.cut)),
            (4, "cut all", lambda: self._now(self._cut_all)),
            (12, "lose reply", lambda: self._now(lambda: proxy.lose_reply(match))),
            (8, "lose request", lambda: self._now(lambda: proxy.lose_request(match))),
            (8, "cut inside", lambda: self._now(proxy.cut_inside)),
            (6, "freeze", lambda: self._for(proxy, "frozen", True, seconds)),
            (6, "delay", lambda: self._for(proxy, "delay_s", rng.uniform(0.02, 0.5), seconds)),
            (6, "chop", lambda: self._for(proxy, "chop", rng.choice((1, 2, 7, 100)), seconds)),
            (4, "throttle", lambda: self._for(proxy, "bytes_per_s", 20_000, seconds)),
            (4, "refuse", lambda: self._for(proxy, "refuse", True, seconds)),
            (10, "exchange", lambda: self._exchange(*rng.choice(_EXCHANGE))),
            (3, "exchange cut", self._exchange_cut),
            (3, "server kill", lambda: self._server_kill(None, 0)),
            (2, "server tail cut", lambda: self._server_kill(rng.random(), 0)),
            (2, "server zeros", lambda: self._server_kill(rng.random(), rng.randrange(1, 5000))),
            (2, "server freeze", lambda: self._server_freeze(rng.choice((0.5, 1.5, 5.6)))),
            (3, "server full", lambda: self._server_full(seconds)),
        ]
        weights = [weight for weight, _, _ in kinds]
        _, name, fault = rng.choices(kinds, weights)[0]
        return name, fault

    async def _strike(self, name: str, fault: Fault) -> None:
        """Counts what really began."""
        before = self._report.faults[name]
        self._report.faults[name] += 1
        try:
            await fault()
        except _NotNow:
            self._report.faults[name] = max(before, self._report.faults[name] - 1)

    async def _now(self, fault: Callable[[], None]) -> None:
        fault()

    async def _for(self, proxy: Proxy, name: str, value: object, seconds: float) -> None:
        if getattr(proxy, name):
            raise _NotNow
        quiet = getattr(proxy, name)
        setattr(proxy, name, value)
        await asyncio.sleep(seconds)
        setattr(proxy, name, quiet)

    def _cut_all(self) -> None:
        for proxy in self._system.proxies.values():
            proxy.cut()

    @contextlib.contextmanager
    def _only_one(self, service: str) -> "contextlib.Generator[None]":
        if service in self._busy:
            raise _NotNow
        self._busy.add(service)
        try:
            yield
        finally:
            self._busy.discard(service)

    async def _kill(self, service: str) -> None:
        with self._only_one(service):
            self._system.kill(service)

    async def _terminate(self, service: str) -> None:
        with self._only_one(service):
            self._report.stop_s.append(await self._system.stop(service))

    async def _stop(self, service: str, seconds: float) -> None:
        with self._only_one(service):
            self._system.pause(service, True)
            await asyncio.sleep(seconds)
            self._system.pause(service, False)

    async def _exchange(self, kind: str, more: dict[str, object]) -> None:
        await self._system.control("faults", kind=kind, **more)

    async def _exchange_cut(self) -> None:
        await self._system.control("cut", abort=self._rng.random() < 0.5)

    @contextlib.contextmanager
    def _only_server(self) -> "contextlib.Generator[None]":
        if self._server_is_busy:
            raise _NotNow
        self._server_is_busy = True
        try:
            yield
        finally:
            self._server_is_busy = False

    async def _server_kill(self, lose: float | None, zeros: int) -> None:
        with self._only_server():
            down_s = self._rng.choice((0.0, 0.0, self._rng.uniform(0, 1.0)))
            await self._system.kill_valkey(lose=lose, down_s=down_s, zeros=zeros)

    async def _server_freeze(self, seconds: float) -> None:
        with self._only_server(), self._system.looking_away():
            self._system.server.freeze(True)
            await asyncio.sleep(seconds)
            self._system.server.freeze(False)

    async def _server_full(self, seconds: float) -> None:
        """Every write is refused for a while, reads and acknowledgements are not (FAULTS V5)."""
        with self._only_server(), redis.Redis(port=self._system.server.port) as client:
            client.config_set("maxmemory", 1)
            await asyncio.sleep(seconds)
            client.config_set("maxmemory", 0)

    async def _calm(self) -> None:
        """All faults are over: what was only set for the next request, too."""
        for proxy in self._system.proxies.values():
            proxy.calm()
        await self._system.end_exchange_faults()


class _NotNow(Exception):
    """A fault of this kind is at work already."""
