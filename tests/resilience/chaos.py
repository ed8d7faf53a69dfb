"""Process chaos: everything that can break does, at random, several times a second, while the
market goes on and a trader trades on it; then all that stands on the bus is compared with a batch
computation, and the trader's books with the exchange's.

A run is a row of rounds. Each has its own market and its own draws, both from the run's seed and
the round's number, so that a round can be played alone.
"""

import asyncio
import contextlib
import json
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import numpy as np
import redis

from shared.control import CONTROL_FILE, CONTROL_KEY
from shared.events import OrderState
from shared.ledger import Ledger, ledger_of
from tests.resilience import checks, orders
from tests.resilience.conftest import BUY_ABOVE, FEATURES, SELL_BELOW
from tests.resilience.orders import Switched
from tests.resilience.proxy import Proxy, any_request, commits, reads
from tests.resilience.system import SERVICES, System
from tests.resilience.tape import M, record

HISTORY = 1_600  # more than the longest window, so that most scores are valid
LIVE = 1_200
# Candles that may wait for their signals before the market pauses, drawn for each round. With few
# the trader is mostly at the newest candle and trades, with many all have much to catch up with.
_LAGS = (10, 20, 40, 400)
_MEAN_PAUSE_S = 0.24  # between two draws, of which some find their victim down already
_SPARED = 0.85  # of those that have only just been started
_QUIET_S = 60.0  # FAULTS I8
_LAST = 30  # candles for which the trader sells all that it has; the tape ends without a hole
_MAX_AGE_S = 600 * M / 1000  # of market time, of which some twenty minutes pass in a second
# Notices that would mean that something was lost, doubled or wrong.
FORBIDDEN = frozenset(
    ("adopted", "diverged", "hole", "dead_letter", "journal", "future_entries", "messages_stopped",
     "order_lost")
)  # fmt: skip
# How the trader trades in a round: often, whatever the score does.
_RULES: tuple[dict[str, object], ...] = (
    {"max_candles": 3},
    {"max_candles": 5, "limit_price_adjustment": 0.0005},
    {"max_candles": 20, "stop_loss": 0.002, "take_profit": 0.002},
    {"max_candles": 20, "trailing_stop": 0.002, "limit_price_adjustment": 0.0005},
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
_ORDER = {"path": "order", "method": "POST"}
_CANCEL = {"path": "order", "method": "DELETE"}
_PAIR = {"path": "orderList/oco", "method": "POST"}
# The same about orders and the account.
_DESK: tuple[tuple[str, dict[str, object]], ...] = (
    *(
        ("status", {"status": 503, "executed": executed, "count": 1, **what})
        for what in (_ORDER, _CANCEL, _PAIR)
        for executed in (True, False)
    ),
    ("status", {"status": 504, "code": -1007, "executed": True, "count": 1, **_ORDER}),
    ("status", {"status": 504, "code": -1006, "count": 1, **_ORDER}),
    ("lost", {"count": 1, **_ORDER}),
    ("lost", {"count": 1, **_CANCEL}),
    ("lost", {"count": 1, **_PAIR}),
    ("timeout", {"ms": 1_500, "executed": True, "count": 1, **_ORDER}),
    ("timeout", {"ms": 1_500, "count": 1, **_ORDER}),
    ("timeout", {"ms": 500, "late_ms": 1_500, "engine_ms": 2_500, "count": 1, **_ORDER}),
    ("timeout", {"ms": 500, "late_ms": 4_900, "engine_ms": 9_900, "count": 1, **_ORDER}),
    ("garbage", {"on": "rest", "count": 1, **_ORDER}),
    ("html", {"status": 502, "count": 1, **_ORDER}),
    ("429", {"retry_after_s": 1, "count": 1, **_ORDER}),
    ("lag", {"ms": 3_000, "seconds": 4.0, "probability": 0.5}),
    ("lag", {"ms": 1_000, "seconds": 4.0}),
    ("status", {"status": 503, "count": 3, "path": "order", "method": "GET"}),
    ("status", {"status": 503, "count": 2, "path": "myTrades"}),
    ("drop", {"on": "user", "count": 3}),
    ("duplicate", {"on": "user", "count": 5}),
    ("delay", {"on": "user", "ms": 900, "count": 3}),
    ("reorder", {"on": "user", "count": 3}),
    ("silence", {"on": "user", "seconds": 2.0}),
)


@dataclass(slots=True)
class Report:
    """What a run was. faults: by kind. entries: compared with the truth, value by value.

    calm_s: from the last fault until all were ready and no order was of unknown fate. ready_s: from
    a kill until the service was ready again, when the faults are over.
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
    ready_s: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    traded: orders.Totals = field(default_factory=orders.Totals)
    halts: Counter[str] = field(default_factory=Counter)
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
                "kill_to_ready_s": {n: _worst(s) for n, s in sorted(self.ready_s.items())},
                "orders": self.traded.shown(),
                "halted_by_itself": dict(self.halts),
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
        self._rules = self._rng.choice(_RULES)
        self._lag = self._rng.choice(_LAGS)
        self._switched: list[Switched] = []
        self._switch_is_busy = False
        self._exchange_is_busy = False
        self._server_is_busy = False  # one fault of the server at a time
        self._busy: set[str] = set()  # services that are down or stopped by us

    async def play(self, storm_s: float) -> None:
        self._folder.mkdir(parents=True)
        tape = record(self._folder, history=HISTORY, live=LIVE, seed=self._tape_seed)
        expected = checks.expect(tape, FEATURES, self._models)
        report = self._report
        trader = {
            "mode": "paper",
            "max_age_s": _MAX_AGE_S,
            # Neither a market that hurries nor stops that come too late may end the trading.
            "limits": {"orders_per_minute": 0, "refused_orders": 0},
            "rules": {
                "percentage_used_for_trade": 10,
                "cool_down": 0,
                "buy_threshold": BUY_ABOVE,
                "sell_threshold": SELL_BELOW,
                **self._rules,
            },
        }
        running = System.running(
            self._folder / "run", tape, self._models, FEATURES, proxied=True, trader=trader
        )
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
            await self._until(self._nothing_is_unknown, "the fate of orders")
            report.calm_s.append(time.monotonic() - calm_s)
            for name, seconds in (await system.time_starts()).items():
                report.ready_s[name].append(seconds)
            kept = await self._to_the_end()
            problems = checks.check_bus(kept, expected, forbidden=FORBIDDEN, trades=True)
            problems.add(await self._look_at_orders(kept, expected))
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
            if system.played < wanted and system.behind <= self._lag:
                most = min(12, 1 + self._lag // 5)
                await system.advance(min(self._rng.randrange(1, most + 1), wanted - system.played))
            await asyncio.sleep(0.02)

    async def _to_the_end(self) -> checks.Kept:
        """The market ends; the trader sells what it has and stands still."""
        system = self._system
        with system.client as client:
            while (left := system.live - system.played) > 0:
                few = left <= _LAST
                if left == _LAST:
                    await self._say("FLATTEN")
                allowed = 1 if few else self._lag
                await system.until(lambda most=allowed: system.behind <= most, "signals")  # type: ignore[misc]
                await system.advance(1 if few else min(50, self._lag, left - _LAST))
            finished = checks.is_finished(client, system.tape.last_ms)
            await system.until(finished, "the last candle's signal")
            await self._say("HALT")
            await self._until(self._is_at_rest, "the trader to stand still")
            await system.until(finished, "the last notices")
            return checks.read_bus(client)

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        """As the system's, for a condition that takes its time."""
        while not condition():
            self._system.check_alive(what)
            await asyncio.sleep(0.5)

    async def _say(self, word: str) -> None:
        """A command to the trader, as an operator gives it."""

        def say() -> None:
            with redis.Redis(port=self._system.server.port, socket_timeout=1) as client:
                client.set(CONTROL_KEY, f"{word} {time.time_ns() // 1_000_000} chaos")

        await asyncio.to_thread(say)

    def _ledger(self) -> Ledger | None:
        """The fold of the journal on the bus; None where it cannot be read now."""
        try:
            with self._system.client as client:
                lines = checks.read_orders(client)
        except redis.RedisError:
            return None
        return ledger_of(lines, orders.BASE, orders.QUOTE, "paper")

    def _nothing_is_unknown(self) -> bool:
        ledger = self._ledger()
        unclear = (OrderState.INTENT, OrderState.UNKNOWN)
        return ledger is not None and all(o.state not in unclear for o in ledger.open.values())

    def _is_at_rest(self) -> bool:
        ledger = self._ledger()
        is_halted = ledger is not None and ledger.switch.state == OrderState.HALTED
        return ledger is not None and is_halted and not ledger.open

    async def _look_at_orders(
        self, kept: checks.Kept, expected: checks.Expected
    ) -> checks.Problems:
        system = self._system
        system.end("trader")
        own = orders.read_file(system.folder / "data")
        told = orders.Told(
            state=await system.ask("/account"),
            deposits=system.deposits,
            lives=system.lives["trader"],
            lost_ms=system.lost_ms,
            switched=self._switched,
            max_age_ms=1_000 * _MAX_AGE_S,
        )
        problems, traded = orders.check_orders(kept, own, expected, told)
        self._report.traded.add(traded)
        for line in own:
            if line.state == OrderState.HALTED and line.reason.startswith("limit"):
                self._report.halts[line.reason[:80]] += 1
        return problems

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
            (2, "exchange kill", self._exchange_kill),
            (24, "orders", lambda: self._exchange(*rng.choice(_DESK))),
            (3, "user stream cut", lambda: self._exchange_cut("ws-api")),
            (3, "trader kill", lambda: self._kill("trader")),
            (5, "trader power cut", self._power_cut),
            (1, "switch file", lambda: self._switch_file(seconds)),
            (1, "switch key", lambda: self._switch_key(seconds)),
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

    def _let_start(self, service: str) -> None:
        """Mostly it is ended while it is at work: on a slow machine it would never come to that."""
        if not self._system.is_at_work(service) and self._rng.random() < _SPARED:
            raise _NotNow

    async def _kill(self, service: str) -> None:
        with self._only_one(service):
            self._let_start(service)
            self._system.kill(service)

    async def _power_cut(self) -> None:
        """The trader ends, and with it what of its journal need not be on the disk."""
        with self._only_one("trader"):
            self._let_start("trader")
            self._system.end("trader")
            lost = orders.cut_file(self._system.folder / "data", self._rng.random())
            self._report.traded.counts["lines_cut_off"] += lost
            self._system.start("trader")

    async def _terminate(self, service: str) -> None:
        with self._only_one(service):
            self._let_start(service)
            self._report.stop_s.append(await self._system.stop(service))

    async def _stop(self, service: str, seconds: float) -> None:
        with self._only_one(service):
            self._system.pause(service, True)
            await asyncio.sleep(seconds)
            self._system.pause(service, False)

    async def _exchange(self, kind: str, more: dict[str, object]) -> None:
        more = {"seed": self._rng.randrange(2**31), **more}
        await self._command("faults", kind=kind, **more)

    async def _exchange_cut(self, route: str = "") -> None:
        await self._command("cut", abort=self._rng.random() < 0.5, route=route)

    async def _command(self, command: str, **body: object) -> None:
        try:
            await self._system.control(command, **body)
        except aiohttp.ClientError:
            raise _NotNow from None  # the exchange is ended

    async def _exchange_kill(self) -> None:
        """Its faults and limits are gone with it; orders, balances and the market are not."""
        if self._exchange_is_busy:
            raise _NotNow
        self._exchange_is_busy = True
        await self._system.kill_exchange(down_s=self._rng.choice((0.0, self._rng.uniform(0, 1.5))))
        self._exchange_is_busy = False

    @contextlib.contextmanager
    def _only_switch(self) -> "contextlib.Generator[None]":
        if self._switch_is_busy:
            raise _NotNow
        self._switch_is_busy = True
        try:
            yield
        finally:
            self._switch_is_busy = False

    async def _switch_file(self, seconds: float) -> None:
        """An operator's file says what is forbidden, for a while."""
        with self._only_switch():
            word = self._rng.choice(("HALT", "REDUCE_ONLY", "FLATTEN"))
            path = self._system.folder / "data" / "journal" / CONTROL_FILE
            new = path.with_name("control.new")
            new.write_text(word)
            new.replace(path)
            from_ms = time.time_ns() // 1_000_000
            await asyncio.sleep(1 + seconds)
            to_ms = time.time_ns() // 1_000_000
            path.unlink()
            self._switched.append(Switched(word, from_ms, to_ms))

    async def _switch_key(self, seconds: float) -> None:
        """The same by the key, which a server that is ended may lose again."""
        with self._only_switch():
            try:
                await self._say(self._rng.choice(("HALT", "REDUCE_ONLY", "FLATTEN")))
            except redis.RedisError:
                raise _NotNow from None
            await asyncio.sleep(1 + seconds)
            await self._resume()

    async def _resume(self) -> None:
        while True:
            try:
                await self._say("RESUME")
                return
            except redis.RedisError:
                await asyncio.sleep(0.05)

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
        await self._resume()  # a server that was ended may have lost the last one


class _NotNow(Exception):
    """A fault of this kind is at work already."""
