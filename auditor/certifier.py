"""The parity certificate: what the services said is computed again, a little at a time."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shared.bus import Bus, Entry, Source, Write
from shared.errors import BadInput, Failure, Usage
from shared.events import Level, Parity, Signal
from shared.explain import Explainer
from shared.explain.chain import compare, play
from shared.runtime import Session
from shared.stage import is_foreign
from shared.streams import FEATURE, PARITY, PREDICTION
from shared.times import iso

_REST = 3.0  # times as long as the work took
_KEPT_ROWS = 2_048  # of candles, beyond what the features look back on


@dataclass(slots=True)
class Totals:
    """What was found since the first certificate that is on the bus."""

    equal: int = 0
    unequal: int = 0
    unchecked: int = 0


@dataclass(slots=True)
class _Found:
    """What came of one stretch."""

    equal: int = 0
    unequal: int = 0
    unchecked: int = 0
    first: str = ""
    reasons: list[str] = field(default_factory=list)


class Certifier:
    """Follows one symbol's signals and computes each again from the candles on the bus.

    Its last certificate says how far it has come.
    """

    def __init__(
        self, session: Session, source: Source[Signal], explainer: Explainer, chunk: int
    ) -> None:
        self.source = source
        self.totals = Totals()
        self.last_ms: int | None = None
        self._session = session
        self._explainer = explainer
        self._chunk = chunk
        place = source.symbol, source.interval
        self._place = place
        self._certificates = Source(PARITY, *place)
        self._features, self._predictions = Source(FEATURE, *place), Source(PREDICTION, *place)

    async def rebuild(self) -> None:
        """Goes on behind the last certificate."""
        newest = await self._session.bus.tail(self._certificates, 1)
        if newest:
            self.last_ms = newest[0].time_ms
        if newest and (last := newest[0].event) is not None:
            self.totals = Totals(last.total_equal, last.total_unequal, last.total_unchecked)

    async def step(self) -> int:
        """Certifies the next signals, up to a chunk of them; returns how many.

        Rests afterwards, in proportion to the work: everybody else comes first.
        """
        bus = self._session.bus
        after = "0-0" if self.last_ms is None else f"{self.last_ms}-0"
        entries = await bus.span(self.source, after=after, count=self._chunk)
        signals = [entry for entry in entries if not is_foreign(entry)]
        if not signals:
            return 0
        started = time.monotonic()
        found = await self._check(bus, signals)
        await self._publish(bus, signals, found)
        await asyncio.sleep(_REST * (time.monotonic() - started))
        return len(signals)

    async def _check(self, bus: Bus, signals: Sequence[Entry[Signal]]) -> _Found:
        span = signals[0].time_ms, signals[-1].time_ms
        vectors = {e.time_ms: e for e in await _between(bus, self._features, *span)}
        predictions = {e.time_ms: e for e in await _between(bus, self._predictions, *span)}
        oldest_ms = max(
            [await _oldest_ms(bus, source) for source in (self._features, self._predictions)]
        )
        found = _Found()
        groups: list[list[Entry[Signal]]] = []
        for entry in signals:
            if entry.event is None:
                found.unchecked += 1
                found.reasons.append(f"the signal of {iso(entry.time_ms)}: {entry.problem}")
            elif entry.time_ms < oldest_ms:
                found.unchecked += 1
                found.reasons.append("what it was made of is trimmed")
            elif groups and _made_by(groups[-1][-1]) == _made_by(entry):
                groups[-1].append(entry)
            else:
                groups.append([entry])
        for group in groups:
            try:
                await self._check_group(bus, group, vectors, predictions, found)
            except (BadInput, Usage) as error:
                found.unchecked += len(group)
                found.reasons.append(str(error))
        return found

    async def _check_group(
        self,
        bus: Bus,
        group: Sequence[Entry[Signal]],
        vectors: Mapping[int, Entry[Any]],
        predictions: Mapping[int, Entry[Any]],
        found: _Found,
    ) -> None:
        """Signals of one release and schema."""
        symbol, interval = self._place
        event = group[0].event
        assert event is not None  # noqa: S101 - they were sorted out
        bundle = await self._explainer.bundle(event.release)
        features = await self._explainer.feature_set(bus, event.schema, bundle, interval)
        history = self._explainer.history(symbol, interval)
        first_ms, last_ms = group[0].time_ms, group[-1].time_ms
        stretch = await history.stretch(bus, features, first_ms, last_ms)
        wanted = {entry.time_ms: entry for entry in group}

        def compute() -> None:
            for again in play(
                stretch,
                features,
                bundle,
                symbol=symbol,
                interval=interval,
                nan_share=self._session.settings.limits.nan_share,
                novelty_limit=self._session.settings.signaler.novelty_limit,
                first_ms=first_ms,
                last_ms=last_ms,
            ):
                time_ms = again.signal.open_time_ms
                if time_ms not in wanted:
                    continue
                differs = compare(
                    vectors.get(time_ms),
                    predictions.get(time_ms),
                    wanted[time_ms],
                    again,
                    features.names,
                )
                if differs is None:
                    found.equal += 1
                    continue
                found.unequal += 1
                found.first = found.first or f"{again.signal.id}: {differs}"

        await asyncio.to_thread(compute)
        history.forget(last_ms - (features.lookback + _KEPT_ROWS) * stretch.step_ms)

    async def _publish(self, bus: Bus, signals: Sequence[Entry[Signal]], found: _Found) -> None:
        totals = self.totals
        last_ms = signals[-1].time_ms
        certificate = Parity(
            open_time_ms=last_ms,
            first_ms=signals[0].time_ms,
            equal=found.equal,
            unequal=found.unequal,
            unchecked=found.unchecked,
            total_equal=totals.equal + found.equal,
            total_unequal=totals.unequal + found.unequal,
            total_unchecked=totals.unchecked + found.unchecked,
            first=found.first,
            reason=found.reasons[0] if found.reasons else "",
        )
        writes: list[Write[Any]] = [
            Write(source=self._certificates, event=certificate, open_time_ms=last_ms)
        ]
        if found.unequal:
            text = (
                f"parity: {found.unequal} of {len(signals)} signals of {self.source.key} do not "
                f"give their own bits again; first {found.first}"
            )
            writes.append(
                self._session.notice_write(
                    Level.ALERT, "parity", text, self.source.symbol, signals[0].time_ms
                )
            )
        diverged = await bus.write(*writes)
        if diverged:
            raise Failure(
                f"{self._certificates.key} {diverged[0].id}: somebody else certifies this symbol; "
                "let one auditor run"
            )
        self.last_ms = last_ms
        self.totals = Totals(
            certificate.total_equal, certificate.total_unequal, certificate.total_unchecked
        )


def _made_by(entry: Entry[Signal]) -> tuple[str, str]:
    event = entry.event
    return ("", "") if event is None else (event.release, event.schema)


async def _oldest_ms(bus: Bus, source: Source[Any]) -> int:
    """Time of the oldest entry, 0 where there is none."""
    oldest = await bus.span(source, after=None, count=1)
    return oldest[0].time_ms if oldest else 0


async def _between(bus: Bus, source: Source[Any], first_ms: int, last_ms: int) -> list[Entry[Any]]:
    found: list[Entry[Any]] = []
    after, upto = f"{first_ms - 1}-0", f"{last_ms}-0"
    while page := await bus.span(source, after=after, upto=upto):
        found += [entry for entry in page if not is_foreign(entry)]
        after = page[-1].id
    return found
