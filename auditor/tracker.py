"""What each signal turned into, once its horizon is over."""

from collections import deque
from typing import Any

from shared.bus import Bus, Entry, Source, Write
from shared.errors import BadInput
from shared.events import Outcome, Signal
from shared.explain import Explainer
from shared.outcomes import Summary, outcome, summary
from shared.runtime import Session
from shared.stage import is_foreign
from shared.streams import KLINE, OUTCOME
from shared.times import interval_ms

_CHUNK = 256
_REMEMBERED = 10_080  # outcomes of which the heartbeat tells: a week of minutes
_HORIZON = 180  # of a signal whose release is gone


class Tracker:
    """Follows one symbol's signals, a horizon behind. The last outcome says how far it has come."""

    def __init__(self, session: Session, source: Source[Signal], explainer: Explainer) -> None:
        self.source = source
        self.last_ms: int | None = None
        self._session = session
        self._explainer = explainer
        place = source.symbol, source.interval
        self._outcomes, self._candles = Source(OUTCOME, *place), Source(KLINE, *place)
        self._recent: deque[Outcome] = deque(maxlen=_REMEMBERED)
        self._releases: dict[str, tuple[int, int | None]] = {}
        self.summary: Summary = summary(())  # of the last `_REMEMBERED` outcomes

    async def rebuild(self) -> None:
        entries = await self._session.bus.tail(self._outcomes, _REMEMBERED)
        if entries:
            self.last_ms = entries[-1].time_ms
        for entry in entries:
            if entry.event is not None:
                await self._remember(entry.event)
        self.summary = summary(self._recent)

    async def step(self) -> int:
        """Publishes the outcomes of the next signals whose horizon is over; returns how many."""
        bus = self._session.bus
        after = "0-0" if self.last_ms is None else f"{self.last_ms}-0"
        entries = await bus.span(self.source, after=after, count=_CHUNK)
        newest = await bus.tail(self._candles, 1)
        if not entries or not newest:
            return 0
        step_ms = interval_ms(self.source.interval)
        over: list[tuple[Entry[Signal], int]] = []
        for entry in entries:
            if is_foreign(entry):
                continue
            horizon = await self._horizon(entry.event)
            if entry.time_ms + horizon * step_ms > newest[0].time_ms:
                break
            over.append((entry, horizon))
        if not over:
            return 0
        oldest = await bus.span(self._candles, after=None, count=1)
        # Of those whose candles are trimmed nobody can say any more what became of them.
        known = [(e, horizon) for e, horizon in over if e.time_ms >= oldest[0].time_ms]
        if known:
            await self._publish(bus, known, step_ms)
        self.last_ms = over[-1][0].time_ms
        return len(over)

    async def _publish(self, bus: Bus, over: list[tuple[Entry[Signal], int]], step_ms: int) -> None:
        first_ms = over[0][0].time_ms
        last_ms = max(entry.time_ms + horizon * step_ms for entry, horizon in over)
        history = self._explainer.history(self.source.symbol, self.source.interval)
        candles = await history.candles(bus, first_ms, last_ms)
        writes: list[Write[Any]] = []
        for entry, horizon in over:
            if entry.event is None:
                continue
            row = (entry.time_ms - first_ms) // step_ms
            found = outcome(entry.event, candles[row : row + horizon + 1], horizon)
            await self._remember(found)
            writes.append(Write(source=self._outcomes, event=found, open_time_ms=entry.time_ms))
        await bus.write(*writes)
        self.summary = summary(self._recent)

    async def _remember(self, found: Outcome) -> None:
        """Only of candles that the release was not trained on: of the others its models know the
        answers. Where the release is gone nobody can tell."""
        trained_to_ms = (await self._about(found.release))[1]
        if trained_to_ms is not None and found.open_time_ms > trained_to_ms:
            self._recent.append(found)

    async def _horizon(self, signal: Signal | None) -> int:
        """Candles that the labels of its release look ahead, the longest of them."""
        return _HORIZON if signal is None else (await self._about(signal.release))[0]

    async def _about(self, release: str) -> tuple[int, int | None]:
        """(longest horizon of its labels, last candle that it was trained on)."""
        if release not in self._releases:
            try:
                manifest = (await self._explainer.bundle(release)).manifest
            except BadInput:
                self._releases[release] = _HORIZON, None
            else:
                longest = max(one.horizon for one in manifest.labels.values())
                self._releases[release] = longest, manifest.training.end_ms
        return self._releases[release]
