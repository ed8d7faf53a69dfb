"""Kills a stage at its n-th Redis command, before it is sent or after it took effect.

The stage's own code runs in this process against a real Valkey; only `Link.call` is wrapped. A
kill is a BaseException that no code of ours catches; a "cut" is what a lost connection looks like.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from shared.bus import Bus
from shared.config import Settings
from shared.errors import OutOfSync, Unavailable
from shared.link import Link
from shared.runtime import Health, Session

Serve = Callable[[Session], Awaitable[None]]


class Killed(BaseException):
    """The process is gone."""


class CaughtUp(Exception):  # an event of the test, not an error
    """The stage has nothing left to read."""


@dataclass(slots=True)
class Plan:
    """Where to strike: pairs of (number of the call, "before" or "after")."""

    points: frozenset[tuple[int, str]] = frozenset()
    error: type[BaseException] = Killed
    calls: int = 0
    struck: int = 0
    log: list[str] = field(default_factory=list)

    def strike(self, when: str) -> None:
        if (self.calls, when) in self.points:
            self.struck += 1
            raise self.error(f"at call {self.calls}, {when}")


async def run_until_caught_up(
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    service: str,
    serve: Serve,
    settings: Settings,
    plan: Plan,
) -> None:
    """Starts the stage again after every strike until it has read everything."""
    real_call, real_read = Link.call, Bus.read

    async def call(self: Link, *commands: Any, wait_s: float = 0.0) -> list[Any]:
        plan.calls += 1
        plan.strike("before")
        replies = await real_call(self, *commands, wait_s=wait_s)
        plan.strike("after")
        return replies

    async def read(self: Bus, sources: Any, **options: Any) -> Any:
        entries = await real_read(self, sources, **options | {"count": 3, "block_ms": 1})
        if not entries:
            raise CaughtUp
        return entries

    with monkeypatch.context() as patch:
        patch.setattr(Link, "call", call)
        patch.setattr(Bus, "read", read)
        for _life in range(len(plan.points) + 2):
            try:
                async with asyncio.timeout(20), Bus.session(url, service=service) as bus:
                    session = Session(
                        settings=settings, bus=bus, health=Health(), alive=lambda: None
                    )
                    await serve(session)
            except BaseException as error:  # sorted right below
                kinds = set(_leaves(error))
                if kinds == {CaughtUp}:
                    return
                if not kinds <= {Killed, Unavailable, OutOfSync, asyncio.CancelledError}:
                    raise
        raise AssertionError("the stage never caught up")


def _leaves(error: BaseException) -> Iterator[type[BaseException]]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _leaves(one)
    else:
        yield type(error)


def singles(calls: int) -> list[frozenset[tuple[int, str]]]:
    return [frozenset({(n, when)}) for n in range(1, calls + 1) for when in ("before", "after")]


def pairs(calls: int) -> list[frozenset[tuple[int, str]]]:
    """Two kills: the second anywhere in the second life."""
    return [
        frozenset({(n, one), (n + m, other)})
        for n in range(1, calls + 1)
        for m in range(1, calls + 1)
        for one in ("before", "after")
        for other in ("before", "after")
    ]
