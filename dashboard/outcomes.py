"""What became of the signals, as the page shows it.

Two sources: what the auditor publishes of each signal once its horizon is over, which every page
has; and what `itb outcomes` measures of models, score and trading, by that very command in a
process of its own, since it takes the trainer's code. Where the trainer is not installed, as in the
live container, the page says so and shows the first alone.
"""

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict
from typing import Any

from dashboard.account import Json
from dashboard.children import run_module
from dashboard.library import Library
from shared.bus import Bus, Source
from shared.config import Settings
from shared.errors import Failure
from shared.outcomes import summary
from shared.streams import OUTCOME

_KEPT_S = 120.0
_MEASURE_S = 120.0
_ROWS = 10_080  # a week of minutes
_TAIL = 300

# Runs `itb outcomes` with these arguments: (exit code, stdout, stderr).
Measure = Callable[[Sequence[str]], Coroutine[Any, Any, tuple[int, str, str]]]


async def run_outcomes(arguments: Sequence[str]) -> tuple[int, str, str]:
    """Raises: Failure: it does not end."""
    return await run_module("deploy.cli", ["outcomes", *arguments], timeout_s=_MEASURE_S)


class Outcomes:
    """One measurement at a time, kept for two minutes, however many look.

    config: of the command line, "" = built-in settings. now_s: a clock that only moves forward.
    """

    def __init__(
        self,
        settings: Settings,
        library: Library,
        config: str = "",
        measure: Measure = run_outcomes,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._interval = settings.interval
        self._library = library
        self._config = ["-c", config] if config else []
        self._measure = measure
        self._now_s = now_s
        self._turn = asyncio.Lock()
        self._kept: dict[str, tuple[float, Json]] = {}

    async def of(self, bus: Bus, symbol: str) -> Json:
        """{"symbol", "published": of the newest release's outcomes, None where there is none,
        "measured": what `itb outcomes --json` prints or None, "problem": why it is None}."""
        async with self._turn:
            kept = self._kept.get(symbol)
            if kept is None or self._now_s() - kept[0] > _KEPT_S:
                found = {"symbol": symbol, "published": await self._published(bus, symbol)}
                found |= await self._measured(symbol)
                kept = self._kept[symbol] = self._now_s(), found
        return kept[1]

    async def _published(self, bus: Bus, symbol: str) -> Json | None:
        """Of candles that the release was not trained on: of others its models know the answers."""
        entries = await bus.tail(Source(OUTCOME, symbol, self._interval), _ROWS)
        outcomes = [entry.event for entry in entries if entry.event is not None]
        if not outcomes:
            return None
        release = outcomes[-1].release
        manifest = await asyncio.to_thread(self._library.manifest, release)
        if manifest is None:
            return None
        fresh = [
            one
            for one in outcomes
            if one.release == release and one.open_time_ms > manifest.training.end_ms
        ]
        return {
            "release": release,
            "horizon": outcomes[-1].horizon,
            "last": outcomes[-1].open_time_ms,
        } | asdict(summary(fresh))

    async def _measured(self, symbol: str) -> Json:
        try:
            code, out, err = await self._measure(["--json", "--symbol", symbol, *self._config])
        except Failure as error:
            return {"measured": None, "problem": str(error)}
        if code != 0:
            last = (err.strip().splitlines() or [f"it ended with exit code {code}"])[-1]
            if "ModuleNotFoundError" in last:
                last = "the trainer is not installed here; ask `itb outcomes` where it is"
            return {"measured": None, "problem": last.removeprefix("itb: ")[-_TAIL:]}
        return {"measured": json.loads(out.strip().splitlines()[-1]), "problem": ""}
