"""How a service runs: config, logs, sessions on the bus, heartbeat, metrics, watchdog, exit codes.

A service is `async def serve(session: Session)`: it is called with a fresh session, rebuilds its
state from the streams and works until something breaks. After a lost connection or a lost stream
it is called again; any other error ends the process, and the supervisor starts a new one.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn

from shared import logs
from shared.bus import Bus, Source, Write, id_order
from shared.config import Settings, load
from shared.endpoint import serving
from shared.errors import Failure, OutOfSync, Unavailable, Usage
from shared.events import Level, Notice
from shared.metrics import BUILD, LAG, READY, SESSIONS, Metrics
from shared.streams import NOTICE, health_key

log = logging.getLogger(__name__)
HEARTBEAT_S = 5.0
READY_LAG = 2  # candles (FAULTS R10)
STALL_S = 60.0
_BACKOFF_S = (0.05, 2.0)
_NOTICES = Source(NOTICE)


def code_version() -> str:
    """Version of this code, as the manifest and the heartbeat state it."""
    try:
        return version("itb")
    except PackageNotFoundError:
        return "0.1.0"


@dataclass(slots=True)
class Health:
    """What the heartbeat tells. ready: caught up and able to do the work; reason: why not."""

    ready: bool = False
    reason: str = "starting"
    last_ids: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def is_ready(self) -> None:
        self.ready, self.reason = True, ""

    def not_ready(self, reason: str) -> None:
        self.ready, self.reason = False, reason


@dataclass(frozen=True, slots=True)
class Session:
    """What a service works with while one connection to the bus lasts."""

    settings: Settings
    bus: Bus
    health: Health
    alive: Callable[[], None]
    metrics: Metrics = field(default_factory=Metrics)

    async def notice(
        self,
        level: Level,
        code: str,
        text: str,
        *,
        symbol: str = "",
        open_time_ms: int | None = None,
    ) -> None:
        """Tells people and other services something about this one."""
        await self.bus.write(self.notice_write(level, code, text, symbol, open_time_ms))

    def notice_write(
        self,
        level: Level,
        code: str,
        text: str,
        symbol: str = "",
        open_time_ms: int | None = None,
    ) -> Write[Notice]:
        """The same as a write, to be part of a step."""
        log.log(
            logging.INFO if level is Level.INFO else logging.WARNING,
            text,
            extra={"code": code, "symbol": symbol, "open_time_ms": open_time_ms},
        )
        event = Notice(
            service=self.bus.service,
            level=level,
            code=code,
            text=text,
            time_ms=time.time_ns() // 1_000_000,
            symbol=symbol,
            open_time_ms=open_time_ms,
        )
        return Write(source=_NOTICES, event=event)


Serve = Callable[[Session], Awaitable[None]]


def service_arguments(service: str, argv: Sequence[str] | None = None) -> Settings:
    """`-c config.json`, the one option that every service takes."""
    parser = argparse.ArgumentParser(prog=f"python -m {service}")
    parser.add_argument("-c", "--config", help="config.json (default: built-in settings)")
    return load(parser.parse_args(argv).config)


def run_service(
    service: str,
    serve: Serve,
    argv: Sequence[str] | None = None,
    *,
    check: Callable[[Settings], object] | None = None,
    alone: bool = False,
) -> NoReturn:
    """The whole `__main__` of a service. check: refuses settings before anything is connected.
    alone: of all its processes, whatever their names, one works and the others stand by."""

    async def main() -> None:
        settings = service_arguments(service, argv)
        logs.set_up(service, level=settings.log_level, redact=logs.Redactor.of(settings))
        if check is not None:
            check(settings)
        await sessions(settings, service, serve, alone=alone)

    sys.exit(run(main))


def run(main: Callable[[], Awaitable[None]]) -> int:
    """Runs `main` until it ends, fails or SIGTERM comes; returns the exit code.

    A Failure is one line on stderr. This is the one place that catches everything: what nobody
    expected is logged and ends the process.
    """
    try:
        import uvloop  # noqa: PLC0415  # not on every platform

        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = uvloop.new_event_loop
    except ImportError:
        loop_factory = None
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        try:
            return runner.run(_until_stopped(main))
        except Failure as error:
            logs.last_words(str(error))
            return error.exit_code
        except Exception as error:  # the one place: report and let the supervisor restart
            log.critical("ended by an unexpected error", exc_info=error)
            logs.last_words(f"unexpected {type(error).__name__}: {error}")
            return 1


async def _until_stopped(main: Callable[[], Awaitable[None]]) -> int:
    task = asyncio.ensure_future(main())
    loop = asyncio.get_running_loop()
    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        await task
    except asyncio.CancelledError:
        if not stopped:
            raise
    except BaseExceptionGroup as group:
        leaves = list(_leaves(group))
        if stopped and all(isinstance(e, asyncio.CancelledError) for e in leaves):
            return 0
        raise leaves[0] from None
    return 0


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


class Process:
    """What outlives the sessions of a process: its metrics, its watchdog, what it last said."""

    def __init__(self, settings: Settings, service: str, *, alone: bool = False) -> None:
        self.service = service
        self.alone = alone
        self.parts = settings.parts_of(service)
        if settings.shard is not None and settings.shard >= self.parts:
            raise Usage(
                f"shard {settings.shard}: {service} has {self.parts} part(s), counted from 0; see "
                "`shards`"
            )
        self.instance = settings.instance or service
        self.metrics = Metrics(service, self.instance, settings.market_speed)
        self.metrics.only(BUILD, code_version())
        self.watchdog = _Watchdog(service)
        self._beat: dict[str, Any] = {}
        self._beat_s = 0.0
        self._why = ""
        self.no_session("starts")

    def no_session(self, why: str) -> None:
        """Not ready, whatever the last session said."""
        self._why = why
        self.metrics.set(READY, 0)

    def works_as(self, instance: str) -> None:
        """The name of this session: with parts, that of the part that it has."""
        self.instance = self.metrics.instance = instance

    def said(self, beat: dict[str, Any]) -> None:
        """A heartbeat, as it stands on the bus now."""
        self._beat, self._beat_s, self._why = beat, time.monotonic(), ""
        self.metrics.set(READY, float(beat["ready"]))
        self.metrics.set(LAG, float(beat["lag"]))

    def is_live(self) -> bool:
        return not self.watchdog.stands_still()

    def readiness(self) -> dict[str, Any]:
        """The last heartbeat, unless it is none any more: `ready` (bool) and `reason` (text)."""
        why = self._why
        if not why and (silent_s := time.monotonic() - self._beat_s) > 3 * HEARTBEAT_S:
            why = f"no heartbeat has reached the bus for {silent_s:.0f} s"
        own = {"service": self.service, "instance": self.instance}
        return self._beat | own | ({"ready": False, "reason": why} if why else {})


async def sessions(settings: Settings, service: str, serve: Serve, *, alone: bool = False) -> None:
    """Calls `serve` with one session after the other, for ever. Answers over HTTP meanwhile, where
    the config names a port."""
    process = Process(settings, service, alone=alone)
    async with contextlib.AsyncExitStack() as stack:
        if settings.metrics_port is not None:
            endpoint = serving(
                process.metrics,
                host=settings.metrics_host,
                port=settings.metrics_port,
                live=process.is_live,
                ready=process.readiness,
            )
            await stack.enter_async_context(endpoint)
        await _sessions(settings, serve, process)


async def _sessions(settings: Settings, serve: Serve, process: Process) -> None:
    quiet = logs.Quiet()
    delay_s = _BACKOFF_S[0]
    while True:
        process.watchdog.alive()
        started = time.monotonic()
        try:
            # In a task of its own: where a TaskGroup waits for a child that then fails, Python 3.11
            # leaves its task `cancelling`, which is asked for below.
            await asyncio.create_task(_one_session(settings, serve, process))
            return
        except (Unavailable, OutOfSync) as error:
            lost: Exception = error
        except BaseExceptionGroup as group:
            leaves = list(_leaves(group))
            fatal = [e for e in leaves if not isinstance(e, Unavailable | OutOfSync)]
            if fatal:
                raise fatal[0] from None
            lost = leaves[0]  # type: ignore[assignment]  # no fatal one: all are ours
        if (task := asyncio.current_task()) is not None and task.cancelling():
            raise asyncio.CancelledError  # a SIGTERM that the loss of the session has covered
        if time.monotonic() - started > 10 * _BACKOFF_S[1]:
            delay_s = _BACKOFF_S[0]
        process.metrics.add(SESSIONS, type(lost).__name__)
        process.no_session(f"session lost: {lost}")
        if (held := quiet.allows(type(lost).__name__)) is not None:
            log.warning("session lost: %s", lost, extra={"left_out": held})
        await asyncio.sleep(delay_s * random.uniform(0.5, 1.5))
        delay_s = min(_BACKOFF_S[1], delay_s * 2)


async def _one_session(settings: Settings, serve: Serve, process: Process) -> None:
    health = Health()
    alive = process.watchdog.alive

    def stands_by() -> None:
        alive()
        who = f"another process works as {process.instance}"
        if process.parts > 1:
            who = f"other processes have all {process.parts} parts, or another number of parts"
        process.no_session(f"stands by: {who}")

    opening = Bus.session(
        settings.bus_url,
        service=process.service,
        instance=settings.instance,
        message_bytes=settings.limits.message_bytes,
        alive=stands_by,
        parts=process.parts,
        part=settings.shard,
        alone=process.alone,
    )
    async with opening as bus, asyncio.TaskGroup() as tasks:
        process.works_as(bus.instance)
        settings = settings.of_part(bus.part, process.parts)
        heart = tasks.create_task(_heartbeat(bus, health, settings.step_ms, process))
        session = Session(
            settings=settings, bus=bus, health=health, alive=alive, metrics=process.metrics
        )
        await (serve(session) if settings.symbols else _idle(session))
        heart.cancel()


async def _idle(session: Session) -> None:
    """There are fewer symbols than parts: nothing falls to this one."""
    log.info("no symbol falls to this part")
    session.health.is_ready()
    while True:
        session.alive()
        await session.bus.get(health_key(session.bus.service, session.bus.instance))
        await asyncio.sleep(HEARTBEAT_S / 5)


async def _heartbeat(bus: Bus, health: Health, step_ms: int, process: Process) -> None:
    key = health_key(bus.service, bus.instance)
    while True:
        lag = await _lag(bus, health, step_ms)
        ready, reason = health.ready, health.reason
        if ready and lag >= READY_LAG:
            ready, reason = False, f"{lag} candles behind"
        now_ms = time.time_ns() // 1_000_000
        beat = {
            "service": bus.service,
            "instance": bus.instance,
            "version": code_version(),
            "pid": os.getpid(),
            "time_ms": now_ms,
            "ready": ready,
            "reason": reason,
            "lag": lag,
            "last_ids": health.last_ids,
            **health.facts,
        }
        await bus.put(key, json.dumps(beat), ttl_ms=int(6 * HEARTBEAT_S * 1000))
        process.said(beat)
        # Often while not ready, so that a start is seen at once; then each 5 s (FAULTS R10).
        await asyncio.sleep(HEARTBEAT_S if ready else 0.25)


async def _lag(bus: Bus, health: Health, step_ms: int) -> int:
    """Candles by which the slowest of our streams is behind its newest entry."""
    own = {key: last for key, last in health.last_ids.items() if "{" in key}
    newest = await bus.newest_ids(list(own))
    behind = [
        (id_order(new)[0] - id_order(last)[0]) // step_ms
        for last, new in zip(own.values(), newest, strict=True)
        if new is not None
    ]
    return max([0, *behind])


class _Watchdog:
    """Ends the process when its loop or its work has stood still for STALL_S (FAULTS R9)."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._last = time.monotonic()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def alive(self) -> None:
        self._last = time.monotonic()

    def stands_still(self) -> bool:
        return time.monotonic() - self._last >= STALL_S

    def _watch(self) -> None:
        pause = threading.Event()
        while not self.stands_still():
            pause.wait(1.0)
        logs.last_words(
            f"{self._service} stood still for {STALL_S:.0f} s and ends; it is restarted"
        )
        os._exit(70)
