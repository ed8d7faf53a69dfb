"""The bus in, one board out, for all viewers: a single reader, whoever looks.

It reads without a consumer group and writes only its own heartbeat, and notices of what somebody
did on the page: nothing that others do depends on it.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

from dashboard.account import Json
from dashboard.board import NOTICES, Board
from dashboard.explanations import Explanations
from dashboard.hub import Hub
from dashboard.library import Library
from shared.bus import Bus, Entry, Source, id_order
from shared.config import Settings
from shared.errors import OutOfSync
from shared.heartbeats import heartbeats as every_heartbeat
from shared.runtime import Session
from shared.streams import DRIFT, FEATURE, KLINE, NOTICE, ORDER, PARITY, SIGNAL

log = logging.getLogger(__name__)
_PACE_S = 0.1  # between two updates of the pages: what comes faster is told together
_LOOK_S = 1.0
_LIBRARY_S = 5.0
SERVICES = ("collector", "featurizer", "predictor", "notifier", "trader")
_DERIVED = (KLINE, FEATURE, SIGNAL)  # a candle before what is made of it


class Dashboard:
    """What outlives a session with the bus: the viewers, and the session to act through."""

    def __init__(self, settings: Settings) -> None:
        self.hub = Hub()
        self.library = Library(settings)
        self.explanations = Explanations(settings)
        self.session: Session | None = None

    async def serve(self, session: Session) -> None:
        """Reads the window, then follows the bus until something breaks."""
        bus, board = session.bus, Board(session.settings)
        sources = sources_of(session.settings)
        after = await self._load(session, board, sources)
        await self._look(bus, board)
        board.releases = await asyncio.to_thread(self.library.look)
        self.hub.open(board)
        self.session = session
        session.health.is_ready()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._watch(session, board, sources, after))
                tasks.create_task(self._read_library(board))
                while True:
                    session.alive()
                    entries = await bus.follow(sources, after)
                    self._take(session, board, entries, after)
                    if entries:
                        await asyncio.sleep(_PACE_S)
        finally:
            self.session = None
            self.hub.close("no connection to the bus; trying again")

    async def _load(
        self, session: Session, board: Board, sources: dict[str, Source[Any]]
    ) -> dict[str, str]:
        """The newest part of every stream; the id of each behind which to follow.

        Streams are read from the last to the first: what was derived from a candle then never
        stands on the page's streams before the candle does.
        """
        after = dict.fromkeys(sources, "0-0")
        tails: dict[str, list[Entry[Any]]] = {}
        counts = {NOTICE.name: NOTICES, PARITY.name: 1, DRIFT.name: 1}
        for key, source in reversed(sources.items()):
            session.alive()
            if source.stream is ORDER:
                # What is held is the sum of all of it.
                tails[key] = await session.bus.everything(source, alive=session.alive)
                continue
            count = counts.get(source.stream.name, board.candles)
            tails[key] = await session.bus.tail(source, count)
        for key in sources:
            self._take(session, board, tails[key], after, publish=False)
        return after

    def _take(
        self,
        session: Session,
        board: Board,
        entries: Sequence[Entry[Any]],
        after: dict[str, str],
        *,
        publish: bool = True,
    ) -> None:
        for entry in entries:
            after[entry.source.key] = entry.id
            board.apply(entry)
            if entry.source.stream is KLINE:
                session.health.last_ids[entry.source.key] = entry.id
        if entries and publish:
            self.hub.publish()

    async def _watch(
        self,
        session: Session,
        board: Board,
        sources: dict[str, Source[Any]],
        after: dict[str, str],
    ) -> None:
        """Heartbeats of all services; and whether the streams are still those that we follow."""
        while True:
            await asyncio.sleep(_LOOK_S)
            ends = await session.bus.newest_ids(list(sources))
            for key, newest in zip(sources, ends, strict=True):
                if id_order(newest or "0-0") < id_order(after[key]):
                    raise OutOfSync(f"{key} begins again: somebody deleted it")
            await self._look(session.bus, board)
            self.hub.publish()

    async def _look(self, bus: Bus, board: Board) -> None:
        latency = {symbol: track.latency() for symbol, track in board.tracks.items()}
        board.status = {
            "kind": "status",
            "now_ms": time.time_ns() // 1_000_000,
            "services": await heartbeats(bus),
            "latency": latency,
        }

    async def _read_library(self, board: Board) -> None:
        while True:
            await asyncio.sleep(_LIBRARY_S)
            board.releases = await asyncio.to_thread(self.library.look)


def sources_of(settings: Settings) -> dict[str, Source[Any]]:
    """Every stream that is followed, by key, in the order in which entries are to be applied."""
    found: list[Source[Any]] = [
        Source(stream, symbol, settings.interval)
        for stream in _DERIVED
        for symbol in settings.symbols
    ]
    found += [
        Source(stream, symbol, settings.interval)
        for stream in (PARITY, DRIFT)
        for symbol in settings.symbols
    ]
    found += [Source(ORDER, symbol) for symbol in settings.symbols]
    found.append(Source(NOTICE))
    return {source.key: source for source in found}


async def heartbeats(bus: Bus) -> list[Json]:
    """The last heartbeat of every service instance; a bare name for a service that has none."""
    found: list[Json] = list((await every_heartbeat(bus)).values())
    there = {beat.get("service") for beat in found}
    silent = [name for name in SERVICES if name not in there]
    found += [{"service": name, "ready": False, "reason": "no heartbeat"} for name in silent]
    rank = {name: place for place, name in enumerate(SERVICES)}
    return sorted(found, key=lambda beat: rank.get(str(beat.get("service")), len(rank)))
