"""Waits on what other processes do: they send no event, so they are looked at again and again."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_LOOK_S = 0.02


async def until(condition: Callable[[], object], *, timeout_s: float = 60.0) -> None:
    """Raises: TimeoutError."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(_LOOK_S)


def wait_until(
    condition: Callable[[], T], what: str | Callable[[], str], *, timeout_s: float = 60.0
) -> T:
    """The first result that is true. what: is waited for; or makes the text of the failure.

    Raises: AssertionError: it never was, or the condition itself says that it cannot come.
    """
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited in vain: {what if isinstance(what, str) else what()}")
        time.sleep(_LOOK_S)  # a process that is looked at; see the module
    return found
