"""Looks at the bus from outside, through restarts of the server."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Self, TypeVar

from shared.bus import Bus
from shared.errors import Failure, OutOfSync, Unavailable

T = TypeVar("T")
_PATIENCE_S = 60.0
_PAUSE_S = 0.1


class Observer:
    """Asks questions of the bus; a question is asked again while the server is away.

    Never a consumer: it takes nothing away from the services.
    """

    def __init__(self, url: str, *, patience_s: float = _PATIENCE_S) -> None:
        self._url = url
        self._patience_s = patience_s
        self._stack = AsyncExitStack()
        self._bus: Bus | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def ask(self, question: Callable[[Bus], Awaitable[T]]) -> T:
        """
        Raises:
            Failure: the server is away for longer than our patience, or is not one for us.
        """
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                if self._bus is None:
                    self._bus = await self._stack.enter_async_context(
                        Bus.session(self._url, service="itb", exclusive=False)
                    )
                return await question(self._bus)
            except (Unavailable, OutOfSync) as error:
                self._bus = None
                await self._stack.aclose()
                if time.monotonic() >= deadline:
                    raise Failure(str(error)) from None
                await asyncio.sleep(_PAUSE_S)


def not_ready(beats: Mapping[str, Mapping[str, Any]], service: str) -> str | None:
    """Why a service cannot work yet; None: it can."""
    own = [beat for name, beat in beats.items() if name.partition(":")[0] == service]
    if not own:
        return "it has not come up yet"
    return None if any(beat["ready"] for beat in own) else str(own[0]["reason"])
