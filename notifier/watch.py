"""Who watches: services that fall silent, the bus itself, and, from outside, this notifier.

Silence is measured by our own clock, between two changes of a heartbeat: clocks of other machines
do not matter. What is told goes to `notice`, as every alert does, so that it is sent once.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from shared.bus import GroupStanding, Source, id_order, part_name
from shared.config import Settings
from shared.events import Level
from shared.heartbeats import heartbeats
from shared.logs import Quiet
from shared.metrics import (
    GROUP_LAG,
    GROUP_PENDING,
    OTHER_READY,
    REDIS_AOF_OK,
    REDIS_MEMORY,
    REDIS_MEMORY_LIMIT,
    SILENT,
    STREAM_ENTRIES,
)
from shared.runtime import Session
from shared.streams import STREAMS, WATCHED_KEY

log = logging.getLogger(__name__)
_LOOK_S = 5.0
_BUS_S = 15.0
_FORGET_S = 86_400.0  # an instance that does not come back is no longer waited for
_PING_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Change:
    """Something to tell. silent_s: how long it has been (or was) silent."""

    name: str
    is_silent: bool
    silent_s: float


@dataclass(slots=True)
class _One:
    stamp: Any
    heard_s: float
    is_silent: bool = False


@dataclass(slots=True)
class Roll:
    """Who is waited for and when each was last heard. Pure: the clock is a parameter.

    Names are `service:instance`; `service:` among those expected is any instance of it.
    """

    silent_s: float
    expected: tuple[str, ...]
    _known: dict[str, _One] = field(default_factory=dict)

    def load(self, kept: Mapping[str, bool], now_s: float) -> None:
        """Who was known before, and whether people know that it is silent."""
        for name, is_silent in kept.items():
            self._known[name] = _One(None, now_s, is_silent)
        for name in self.expected:
            is_any = name.endswith(":") and any(_service(k) == name[:-1] for k in self._known)
            if not is_any:
                self._known.setdefault(name, _One(None, now_s))

    def kept(self) -> dict[str, bool]:
        return {name: one.is_silent for name, one in self._known.items()}

    def silence_s(self, now_s: float) -> dict[str, float]:
        return {name: now_s - one.heard_s for name, one in self._known.items()}

    def look(self, stamps: Mapping[str, Any], now_s: float) -> list[Change]:
        """stamps: of each heartbeat that stands there, something that changes with every beat."""
        changes = []
        for name, stamp in stamps.items():
            one = self._known.get(name)
            if one is None:
                one = self._known[name] = self._known.pop(f"{_service(name)}:", _One(None, now_s))
            if stamp == one.stamp:
                continue
            if one.is_silent:
                changes.append(Change(name, False, now_s - one.heard_s))
            one.stamp, one.heard_s, one.is_silent = stamp, now_s, False
        for name, one in list(self._known.items()):
            silent_s = now_s - one.heard_s
            if silent_s > self.silent_s and not one.is_silent:
                one.is_silent = True
                changes.append(Change(name, True, silent_s))
            elif silent_s > _FORGET_S and not self._is_last_expected(name):
                del self._known[name]
        return changes

    def _is_last_expected(self, name: str) -> bool:
        service = _service(name)
        if f"{service}:" in self.expected:
            return sum(_service(other) == service for other in self._known) == 1
        return name in self.expected


def expected(settings: Settings) -> tuple[str, ...]:
    """Who is waited for although it was never heard."""
    names: list[str] = []
    for service in settings.notifier.watch:
        parts = settings.parts_of(service)
        if parts == 1:
            names.append(f"{service}:")
        names += [f"{service}:{part_name(service, n, parts)}" for n in range(parts) if parts > 1]
    return tuple(names)


def _service(name: str) -> str:
    return name.partition(":")[0]


async def watch(session: Session, *, silent_s: float) -> None:
    """Tells who has been silent for more than `silent_s` and who is heard again, for ever.

    Whom people were told about stands on the bus: a restart repeats nothing.
    """
    bus, metrics = session.bus, session.metrics
    roll = Roll(silent_s, expected(session.settings))
    roll.load(json.loads(await bus.get(WATCHED_KEY) or b"{}"), time.monotonic())
    kept: dict[str, bool] = {}
    while True:
        beats = await heartbeats(bus)
        stamps = {name: (beat.get("pid"), beat.get("time_ms")) for name, beat in beats.items()}
        now_s = time.monotonic()
        for change in roll.look(stamps, now_s):
            level = Level.ALERT if change.is_silent else Level.WARNING
            code = "silent" if change.is_silent else "heard_again"
            await session.notice(level, code, _text(change))
        if roll.kept() != kept:
            kept = roll.kept()
            await bus.put(WATCHED_KEY, json.dumps(kept))
        metrics.forget(SILENT)
        metrics.forget(OTHER_READY)
        for name, silence_s in roll.silence_s(now_s).items():
            service, _, instance = name.partition(":")
            metrics.set(SILENT, silence_s, service, instance)
            ready = silence_s <= silent_s and beats.get(name, {}).get("ready") is True
            metrics.set(OTHER_READY, float(ready), service, instance)
        await asyncio.sleep(min(_LOOK_S, silent_s / 4))


def _text(change: Change) -> str:
    service, _, instance = change.name.partition(":")
    who = service if instance in ("", service) else f"{service} ({instance})"
    if not change.is_silent:
        return f"{who} is heard again, after {change.silent_s:.0f} s"
    if not instance:
        return f"{who} has not been heard at all: does it run, and can it reach Redis?"
    return (
        f"{who} has been silent for {change.silent_s:.0f} s: it has ended, hangs or cannot reach "
        "Redis; see its log"
    )


async def watch_bus(session: Session) -> None:
    """Streams, groups and the server's memory as metrics, for ever."""
    bus, metrics, settings = session.bus, session.metrics, session.settings
    while True:
        sources: dict[str, Source[Any]] = {}
        for stream in STREAMS:
            for symbol in settings.symbols:
                source = Source(stream, symbol, settings.interval)
                sources[source.key] = source
        lengths: dict[str, int] = {}
        lags: dict[tuple[str, str], int] = {}
        pending: dict[tuple[str, str], int] = {}
        standings = await bus.standings(list(sources))
        for source, standing in zip(sources.values(), standings, strict=True):
            name = source.stream.name
            lengths[name] = lengths.get(name, 0) + standing.length
            for group, facts in standing.groups.items():
                unread = _unread(facts, standing.last_id, settings.step_ms)
                lags[name, group] = max(lags.get((name, group), 0), unread)
                pending[name, group] = pending.get((name, group), 0) + facts.pending
        dead = await bus.standings(await bus.keys("dead:*"))
        lengths["dead"] = sum(standing.length for standing in dead)
        for metric, values in ((GROUP_LAG, lags), (GROUP_PENDING, pending)):
            metrics.forget(metric)
            for labels, count in values.items():
                metrics.set(metric, count, *labels)
        for name, length in lengths.items():
            metrics.set(STREAM_ENTRIES, length, name)
        _measure_server(session, await bus.server_facts())
        await asyncio.sleep(_BUS_S)


def _unread(group: GroupStanding, last_id: str | None, step_ms: int) -> int:
    """Entries that the group has still to read; by their times where the server cannot tell."""
    if group.unread is not None:
        return group.unread
    if last_id is None:
        return 0
    return max(0, id_order(last_id)[0] - id_order(group.delivered)[0]) // step_ms


def _measure_server(session: Session, facts: Mapping[str, str]) -> None:
    metrics = session.metrics
    metrics.set(REDIS_MEMORY, float(facts["used_memory"]))
    limit = int(facts.get("maxmemory", "0")) or int(facts.get("total_system_memory", "0"))
    metrics.set(REDIS_MEMORY_LIMIT, limit)
    is_well = all(
        facts.get(name, "ok") == "ok"
        for name in ("aof_last_write_status", "aof_last_bgrewrite_status")
    )
    metrics.set(REDIS_AOF_OK, float(is_well))


async def dead_man(url: str, is_healthy: Callable[[], bool], *, every_s: float) -> None:
    """Calls `url` while all is well, for ever; who listens there alerts when the calls stay away.

    A failed call is only logged: telling people is the other side's job.
    """
    quiet = Quiet(600.0)
    timeout = aiohttp.ClientTimeout(total=_PING_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as http:
        while True:
            if is_healthy():
                problem = await _call(http, url)
                if problem and quiet.allows("ping") is not None:
                    log.warning("the dead-man address does not take our call: %s", problem)
                await asyncio.sleep(every_s)
            else:
                await asyncio.sleep(min(1.0, every_s))


async def _call(http: aiohttp.ClientSession, url: str) -> str:
    """ "" where it was taken, else why not; the address is a secret and not part of that."""
    try:
        async with http.get(url) as reply:
            return "" if reply.status < 400 else f"HTTP {reply.status}"
    except (aiohttp.ClientError, TimeoutError) as error:
        return type(error).__name__
