"""The featurizer: `kline` (and, where features read them, `fkline`, `depth` and another symbol's
`kline`) to `feature`."""

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from featurizer.window import FeatureWindow, depth_row
from shared.bus import Entry, Source, Write, id_order
from shared.config import Settings
from shared.events import Depth, Feature, Kline
from shared.features import FeatureSet
from shared.features.configured import configured
from shared.metrics import NAN_SHARE
from shared.runtime import Session
from shared.stage import Core, Stage, dead_letter_janitor, is_foreign, janitor
from shared.streams import DEPTH, FEATURE, FUTURES_KLINE, KLINE, schema_key

_POLL_S = 0.05


async def serve(session: Session) -> None:
    """Rebuilds every window from the bus, then one feature entry per candle, for ever."""
    settings = session.settings
    features = configured(settings)
    await session.bus.put(schema_key(features.schema), features.schema_json)
    session.health.facts.update(schema=features.schema, features=len(features.names))
    sources = [Source(KLINE, symbol, settings.interval) for symbol in settings.symbols]
    companions = _Companions(session, features)

    def measure(write: Write[Any]) -> None:
        if isinstance(write.event, Feature):
            session.metrics.set(NAN_SHARE, partial(_nan_share, write.event), write.source.symbol)

    stage = Stage(
        session,
        sources,
        outputs=lambda source: [Source(FEATURE, source.symbol, source.interval)],
        core=lambda source: FeatureWindow(features, source),
        prepare=companions.fetch if companions.needed else None,
        told=measure,
    )
    await stage.rebuild()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(janitor(session, trimmed(settings), least_rows=2 * features.lookback))
        tasks.create_task(dead_letter_janitor(session, sources))
        await stage.work()


def trimmed(settings: Settings) -> list[Source[Any]]:
    """The streams that the featurizer writes and keeps short."""
    return [Source(FEATURE, symbol, settings.interval) for symbol in settings.symbols]


def _nan_share(feature: Feature) -> float:
    return float(np.isnan(np.frombuffer(feature.values, "<f8")).mean())


class _Companions:
    """The other series that a feature vector is made of.

    Their entries carry the candle's id. A candle waits until its companion stream has come at
    least as far: ids only grow, so from then on it is settled whether there is a row for it.
    """

    def __init__(self, session: Session, features: FeatureSet) -> None:
        self._session = session
        self._futures = "futur" in features.sources
        self._depth = "depth" in features.sources
        self._other = session.settings.features_other if "other" in features.sources else None
        self.needed = self._futures or self._depth or self._other is not None

    async def fetch(self, core: Core, entries: Sequence[Entry[Any]]) -> list[Entry[Any]]:
        """Hands the rows over; returns the entries that could not be read."""
        assert isinstance(core, FeatureWindow)  # noqa: S101  # the only core of this stage
        symbol, interval = core.source.symbol, core.source.interval
        unread: list[Entry[Any]] = []
        if self._futures:
            source = Source(FUTURES_KLINE, symbol, interval)
            for entry in await self._rows(source, entries):
                if isinstance(entry.event, Kline) and not is_foreign(entry):
                    core.futures[entry.time_ms] = np.array(entry.event.row())
                else:
                    unread.append(entry)
        if self._other is not None:
            other = Source(KLINE, self._other, interval)
            for entry in await self._rows(other, entries):
                if isinstance(entry.event, Kline):
                    core.other[entry.time_ms] = np.array(entry.event.row())
        if self._depth:
            depth = Source(DEPTH, symbol, interval)
            for entry in await self._rows(depth, entries):
                if isinstance(entry.event, Depth) and not is_foreign(entry):
                    core.depth[entry.time_ms] = depth_row(entry.event)
                else:
                    unread.append(entry)
        return unread

    async def _rows(self, source: Source[Any], entries: Sequence[Entry[Any]]) -> list[Entry[Any]]:
        first, last = entries[0].id, entries[-1].id
        started = time.monotonic()
        while id_order(await self._session.bus.last_id(source) or "0-0") < id_order(last):
            self._session.alive()
            if time.monotonic() - started > 1:
                self._session.health.not_ready(f"waits for {source.key} {last}")
            await asyncio.sleep(_POLL_S)
        if self._session.health.reason.startswith("waits for"):
            self._session.health.not_ready("catching up")
        found: list[Entry[Any]] = []
        before_first = f"{id_order(first)[0] - 1}-0"
        after: str | None = before_first
        while True:
            page = await self._session.bus.span(source, after=after, upto=last)
            found.extend(page)
            if not page:
                return found
            after = page[-1].id
