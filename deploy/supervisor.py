"""Keeps child processes running: restarts those that die, ends all of them, leaves none behind.

Every child is a plain command with its own log file. All are in one process group whose leader is
a guard: a shell that waits on a pipe from us. When we are gone, however that happened (`kill -9`
too), the pipe ends and the guard kills the group, grandchildren included. That works alike on Linux
and macOS.
"""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from shared.errors import Failure

_GUARD = "trap '' HUP INT TERM; read -r _; kill -KILL 0"
_STOP_S = 3.0  # for the services; what is left of 5 s is for those that stop last
_LAST_STOP_S = 1.0
_BACKOFF_S = (0.1, 10.0)
_CALM_S = 60.0  # a restart this long ago no longer slows the next one
_LOG_BYTES = 32 * 1024 * 1024
_USAGE = 2

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A child process.

    environment: the whole of it; empty = ours. prepare: awaited before every start. stops_last:
    others still need it while they end.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[], Awaitable[None]] | None = None
    stops_last: bool = False


def service(name: str, *arguments: str, environment: Mapping[str, str]) -> Program:
    """`python -m NAME`, as anyone would start it by hand."""
    command = (sys.executable, "-m", name, *arguments)
    return Program(name=name, command=command, environment=environment)


@dataclass(slots=True)
class _Child:
    program: Program
    process: asyncio.subprocess.Process | None = None
    starts: int = 0
    recent: deque[float] = field(default_factory=deque)
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Supervisor:
    """`async with Supervisor(folder, say) as supervisor: await supervisor.start(program)`.

    logs: folder of NAME.log. say: gets one loud line for each child that died.
    A child that ends with the exit code of bad usage cannot be helped by a restart: that raises
    Failure in the body.
    """

    def __init__(self, logs: Path, say: Say) -> None:
        self.logs = logs
        self._say = say
        self._children: dict[str, _Child] = {}
        self._tasks = asyncio.TaskGroup()
        self._stopping = False
        self._guard: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> Self:
        self.logs.mkdir(parents=True, exist_ok=True)
        self._guard = subprocess.Popen(  # noqa: S603, ASYNC220  # a fixed command; forks at once
            ["/bin/sh", "-c", _GUARD],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        try:
            await self.stop()
            await self._tasks.__aexit__(*error)  # type: ignore[arg-type]  # the triple as it came
        finally:
            assert self._guard is not None and self._guard.stdin is not None  # noqa: S101  # __aenter__ made it
            # Whatever is still in the group goes with its guard.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._guard.pid, signal.SIGKILL)
            self._guard.stdin.close()
            self._guard.wait()

    # -- children -----------------------------------------------------------------------------

    async def start(self, program: Program) -> None:
        """Starts a child and keeps it running from now on."""
        child = self._children[program.name] = _Child(program)
        await self._spawn(child)
        self._tasks.create_task(self._keep(child), name=program.name)

    def pid(self, name: str) -> int | None:
        """None while it is down."""
        process = self._children[name].process
        return process.pid if process is not None and process.returncode is None else None

    def restarts(self, name: str) -> int:
        return self._children[name].starts - 1

    def last_line(self, name: str) -> str:
        """The last line of a child's log; "" where there is none."""
        try:
            with (self.logs / f"{name}.log").open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
                lines = file.read().decode(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1].strip() if lines else ""

    async def run(self, program: Program, *, out: int | None = None) -> asyncio.subprocess.Process:
        """Starts a child that has an end of its own (the trainer); its owner waits for it.

        out: file descriptor or subprocess.PIPE for its stdout; stderr is inherited.
        """
        return await self._execute(program, stdout=out, stderr=None)

    async def stop(self) -> None:
        """Ends every child, the ones that others need last, within 5 s."""
        self._stopping = True
        for last, patience_s in ((False, _STOP_S), (True, _LAST_STOP_S)):
            some = [c for c in self._children.values() if c.program.stops_last is last]
            await self._end(some, patience_s)

    async def _end(self, children: Sequence[_Child], patience_s: float) -> None:
        running = [c.process for c in children if c.process and c.process.returncode is None]
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        if not running:
            return
        waits = [asyncio.ensure_future(process.wait()) for process in running]
        _, late = await asyncio.wait(waits, timeout=patience_s)
        for process in running:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
        if late:
            await asyncio.wait(late)

    async def _keep(self, child: _Child) -> None:
        while True:
            assert child.process is not None  # noqa: S101  # start() made it
            code = await child.process.wait()
            if self._stopping:
                return
            name = child.program.name
            if code == _USAGE:
                raise Failure(f"{name} cannot start: {self.last_line(name) or 'bad usage'}")
            delay_s = self._delay_s(child)
            how = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            last = self.last_line(name)
            words = f"; its last words: {last[:300]}" if last and code > 0 else ""
            self._say(f"{name} was {how}; it starts again in {delay_s:.1f} s{words}")
            await asyncio.sleep(delay_s)
            await self._spawn(child)

    def _delay_s(self, child: _Child) -> float:
        """Doubles with each restart of the last minute, up to 10 s."""
        now = time.monotonic()
        while child.recent and now - child.recent[0] > _CALM_S:
            child.recent.popleft()
        least, most = _BACKOFF_S
        delay_s = min(most, least * 2.0 ** len(child.recent))
        child.recent.append(now)
        return delay_s * random.uniform(0.8, 1.0)

    async def _spawn(self, child: _Child) -> None:
        program = child.program
        if program.prepare is not None:
            await program.prepare()
        path = self.logs / f"{program.name}.log"
        with contextlib.suppress(OSError):
            if path.stat().st_size > _LOG_BYTES:
                path.replace(path.with_suffix(".log.1"))
        with path.open("ab") as log:
            child.process = await self._execute(program, stdout=log.fileno(), stderr=log.fileno())
        child.starts += 1

    async def _execute(
        self, program: Program, *, stdout: int | None, stderr: int | None
    ) -> asyncio.subprocess.Process:
        assert self._guard is not None  # noqa: S101  # inside `async with`
        try:
            return await asyncio.create_subprocess_exec(
                *program.command,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env=program.environment or None,
                process_group=self._guard.pid,
            )
        except OSError as error:
            raise Failure(f"{program.name} cannot be started: {error.strerror}") from None
