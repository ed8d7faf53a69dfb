"""Answers to "why?": `shared.explain`, as the page shows it."""

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from dashboard.account import Json
from shared.bus import Bus
from shared.config import Settings
from shared.errors import Failure

if TYPE_CHECKING:
    from shared.explain import Explainer, Explanation

_MOST_WAITING = 8
_CONTRIBUTIONS = 4  # of each model, the largest


class Explanations:
    """One is computed at a time; the others wait, up to a limit."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._explainer: Explainer | None = None
        self._waiting = 0
        self._turn = asyncio.Lock()

    async def of(self, bus: Bus, signal_id: str) -> Json:
        """
        Raises:
            Failure: the signal cannot be explained, or too many are asked for at once.
        """
        if self._waiting >= _MOST_WAITING:
            raise Failure("many explanations are being computed; try again in a moment")
        self._waiting += 1
        try:
            async with self._turn:
                if self._explainer is None:
                    self._explainer = await asyncio.to_thread(self._open)
                return shown(await self._explainer.explain(bus, signal_id))
        finally:
            self._waiting -= 1

    def _open(self) -> "Explainer":
        """Models and feature kernels are 100 MB: they are loaded when somebody asks first."""
        from shared.explain import Explainer  # noqa: PLC0415  # as said

        return Explainer(self._settings, data_folder=self._settings.data_folder)


def shown(found: "Explanation") -> Json:
    """What the page shows of it: without the candles and the lesser contributions."""
    models = {
        name: replace(
            share,
            contributions=dict(
                sorted(share.contributions.items(), key=lambda one: -abs(one[1]))[:_CONTRIBUTIONS]
            ),
        )
        for name, share in found.models.items()
    }
    candles = replace(found.candles, columns=(), newest=())
    return replace(found, models=models, candles=candles, features=()).as_dict()
