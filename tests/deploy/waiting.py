"""Waits on a condition of the outside world that sends no event of its own."""

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], bool], *, timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  # another process makes it true
            await asyncio.sleep(0.01)
