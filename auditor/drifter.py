"""Holds what the services see against what the release in use was trained on, every hour."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from shared.bundle import Bundle
from shared.bus import Entry, Source, Write
from shared.errors import BadInput
from shared.events import Drift, Feature, Level, Signal
from shared.explain import Explainer
from shared.logs import Quiet
from shared.reference import score_shift, shifts
from shared.runtime import Session
from shared.stage import is_foreign
from shared.streams import DRIFT, FEATURE

_HOUR_MS = 3_600_000
_AGAIN_S = 86_400.0  # people are told that often that it is all new to the models


@dataclass(slots=True)
class Standing:
    """What the heartbeat tells. problem: why there is nothing to tell."""

    last: Drift | None = None
    problem: str = "nothing was looked at yet"


class Drifter:
    """One symbol's drift, over as many candles as the reference's stretches have."""

    def __init__(self, session: Session, source: Source[Signal], explainer: Explainer) -> None:
        self.source = source
        self.standing = Standing()
        self._session = session
        self._explainer = explainer
        place = source.symbol, source.interval
        self._features = Source(FEATURE, *place)
        self._drifts = Source(DRIFT, *place)
        self._every_ms = max(_HOUR_MS, session.settings.step_ms)
        self._last_ms: int | None = None
        self._quiet = Quiet(_AGAIN_S)

    async def rebuild(self) -> None:
        newest = await self._session.bus.tail(self._drifts, 1)
        if newest:
            self._last_ms = newest[0].time_ms
        if newest and newest[0].event is not None:
            self.standing = Standing(last=newest[0].event, problem="")

    async def step(self) -> None:
        """Looks, where an hour of the market has gone by since."""
        bus = self._session.bus
        newest = await bus.tail(self.source, 1)
        if not newest or (signal := newest[0].event) is None or is_foreign(newest[0]):
            return
        time_ms = signal.open_time_ms
        if self._last_ms is not None and time_ms < self._last_ms + self._every_ms:
            return
        try:
            bundle = await self._explainer.bundle(signal.release)
        except BadInput as error:
            self.standing.problem = str(error)
            return
        if bundle.reference is None:
            self.standing.problem = (
                f"release {bundle.id} does not know what it was trained on (made by an earlier "
                "version): train again"
            )
            return
        rows = bundle.reference.stretch_rows
        vectors = await bus.tail(self._features, rows, upto=f"{time_ms}-0")
        signals = await bus.tail(self.source, rows, upto=f"{time_ms}-0")
        found = drift_of(bundle, vectors, signals)
        if found.rows < rows // 2:
            self.standing.problem = (
                f"{found.rows:,} of the {rows:,} candles of a stretch have whole features"
            )
            return
        write: list[Write[Any]] = [
            Write(source=self._drifts, event=found, open_time_ms=found.open_time_ms)
        ]
        if found.novelty_median > 1 and self._quiet.allows(found.release) is not None:
            text = (
                f"{self.source.symbol} {self.source.interval}: more than half of the last "
                f"{found.rows:,} candles are farther from what release {found.release} was trained "
                f"on than 99 % of that (novelty {found.novelty_median:.2f}); most unusual: "
                f"{', '.join(found.unusual[:3])}. Its scores mean little here: train on newer "
                "candles, or set signaler.novelty_limit"
            )
            write.append(
                self._session.notice_write(
                    Level.WARNING, "novelty", text, self.source.symbol, time_ms
                )
            )
        await bus.write(*write)
        self._last_ms = found.open_time_ms
        self.standing = Standing(last=found, problem="")


def drift_of(bundle: Bundle, vectors: list[Entry[Feature]], signals: list[Entry[Signal]]) -> Drift:
    """Of the vectors that the release can read, and its own scores. The release has a reference."""
    reference = bundle.reference
    assert reference is not None  # noqa: S101 - the caller has asked
    schema, size = bundle.manifest.schema_hash, 8 * len(bundle.manifest.features)
    kept = [
        entry.event
        for entry in vectors
        if entry.event is not None and entry.event.schema == schema
        if not entry.event.gap and entry.event.covered and len(entry.event.values) == size
    ]
    times = [entry.time_ms for entry in vectors] or [0]
    if not kept:
        return Drift(open_time_ms=times[-1], first_ms=times[0], release=bundle.id, rows=0)
    x = np.array([np.frombuffer(one.values, "<f8") for one in kept])[:, bundle.reference_columns]
    moved = shifts(x, reference)
    novelty = reference.novelty(x)
    novelty = novelty[np.isfinite(novelty)]
    scores = [
        entry.event.score
        for entry in signals
        if entry.event is not None and entry.event.release == bundle.id
        if entry.event.score is not None
    ]
    score = score_shift(np.array(scores, np.float64), reference)
    median, most = np.quantile(novelty, (0.5, 0.99)) if len(novelty) else (math.nan, math.nan)
    return Drift(
        open_time_ms=times[-1],
        first_ms=times[0],
        release=bundle.id,
        rows=len(kept),
        psi={name: one.psi for name, one in moved.items()},
        usual={name: one.usual for name, one in moved.items() if one.usual is not None},
        score_psi=None if score is None else score.psi,
        score_usual=None if score is None else score.usual,
        novelty_median=float(median),
        novelty_99=float(most),
        beyond=float((novelty > 1).mean()) if len(novelty) else math.nan,
    )
