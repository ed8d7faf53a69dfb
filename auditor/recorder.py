"""Writes every signal down, once, as the next link of the track record."""

import logging

from auditor.archive import Archive
from shared.bus import Bus, Entry, Source, Write
from shared.errors import Failure
from shared.events import Level, Record, Signal
from shared.logs import Quiet
from shared.market import market_now_ms
from shared.record import GENESIS, link
from shared.runtime import Session
from shared.stage import is_foreign
from shared.streams import RECORD
from shared.times import iso

log = logging.getLogger(__name__)
_CHUNK = 256
_DAY_MS = 86_400_000
_AGAIN_S = 3_600.0  # people are told that often of an archive that cannot be written


class Recorder:
    """One symbol's chain. The stream, and before it the archive, say where it ends: nothing is
    remembered that is not written there.

    A signal that is older than the last recorded one is never recorded: what stands there stands.
    """

    def __init__(self, session: Session, source: Source[Signal], archive: Archive) -> None:
        self.source = source
        self.head = GENESIS
        self.after_ms: int | None = None
        self._session = session
        self._records = Source(RECORD, source.symbol, source.interval)
        self._archive = archive
        self._archived_ms: int | None = None  # days before this time are done
        self._quiet = Quiet(_AGAIN_S)

    async def rebuild(self) -> None:
        """Finds the end of the chain.

        Raises:
            Failure: the newest record cannot be read.
        """
        newest = await self._session.bus.tail(self._records, 1)
        last = newest[0].event if newest else None
        if newest and last is None:
            raise Failure(
                f"{self._records.key} {newest[0].id} cannot be read: {newest[0].problem}; nobody "
                "can continue this chain: remove that entry"
            )
        kept = self._archive.newest()
        if kept is not None and (last is None or kept.open_time_ms > last.open_time_ms):
            last = kept  # the bus was emptied
        if last is not None:
            self.head, self.after_ms = last.hash, last.open_time_ms

    @property
    def after(self) -> str:
        """Id of the last recorded signal."""
        return "0-0" if self.after_ms is None else f"{self.after_ms}-0"

    async def step(self) -> int:
        """Records what is new, up to `_CHUNK` signals; returns how many."""
        bus = self._session.bus
        entries = await bus.span(self.source, after=self.after, count=_CHUNK)
        fresh = [entry for entry in entries if not is_foreign(entry)]
        if fresh:
            now_ms = await market_now_ms(
                bus,
                self.source.symbol,
                self.source.interval,
                speed=self._session.settings.market_speed,
            )
            await self._record(bus, fresh, now_ms)
        await self._archive_days()
        return len(fresh)

    async def _record(self, bus: Bus, entries: list[Entry[Signal]], now_ms: int | None) -> None:
        step_ms = self._session.settings.step_ms
        head, last_ms = self.head, self.after_ms
        writes: list[Write[Record]] = []
        for entry in entries:
            if last_ms is not None and entry.time_ms > last_ms + step_ms:
                text = (
                    f"{self.source.key}: no signal from {iso(last_ms + step_ms)} to "
                    f"{iso(entry.time_ms - step_ms)} was there to be recorded"
                )
                await self._session.notice(
                    Level.WARNING, "record_hole", text, symbol=self.source.symbol
                )
            record = link(entry, head, now_ms)
            writes.append(
                Write(
                    source=self._records,
                    event=record,
                    open_time_ms=entry.time_ms,
                    received_us=entry.meta.published_us,
                    market_ms=now_ms,
                )
            )
            head, last_ms = record.hash, entry.time_ms
        diverged = await bus.write(*writes)
        if diverged:
            raise Failure(
                f"{self._records.key} {diverged[0].id}: somebody else writes this record; let one "
                "auditor run"
            )
        self.head, self.after_ms = head, last_ms

    async def _archive_days(self) -> None:
        """Every day that is over goes into a file of its own, and its last hash to people."""
        if self.after_ms is None:
            return
        today_ms = self.after_ms - self.after_ms % _DAY_MS
        if self._archived_ms is not None and self._archived_ms >= today_ms:
            return
        bus = self._session.bus
        oldest = await bus.span(self._records, after=None, count=1)
        if not oldest:
            return
        start_ms = max(oldest[0].time_ms - oldest[0].time_ms % _DAY_MS, self._archived_ms or 0)
        for day_ms in range(start_ms, today_ms, _DAY_MS):
            if not self._archive.has(day_ms):
                self._session.alive()
                if not await self._archive_day(bus, day_ms):
                    return
            self._archived_ms = day_ms + _DAY_MS
        self._archived_ms = today_ms

    async def _archive_day(self, bus: Bus, day_ms: int) -> bool:
        records: list[Record] = []
        after, upto = f"{day_ms - 1}-0", f"{day_ms + _DAY_MS - 1}-0"
        while page := await bus.span(self._records, after=after, upto=upto):
            after = page[-1].id
            records += [entry.event for entry in page if entry.event is not None]
        if not records:
            return True
        place = f"{self.source.symbol} {self.source.interval}"
        text = (
            f"track record of {place} for {iso(day_ms)[:10]}: {len(records):,} signals, the last "
            f"hash is {records[-1].hash}"
        )
        # Told before it is done: after a crash in between people are told twice, not never.
        await self._session.notice(
            Level.INFO, "record", text, symbol=self.source.symbol, open_time_ms=day_ms
        )
        try:
            self._archive.write(day_ms, records)
        except Failure as error:
            if self._quiet.allows(str(error)) is not None:
                await self._session.notice(
                    Level.WARNING, "record_archive", str(error), symbol=self.source.symbol
                )
            return False
        return True
