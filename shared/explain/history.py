"""The candles that a feature vector was made of, read back from the bus onto their raster."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.bus import Bus, Source
from shared.errors import BadInput, Usage
from shared.events import Depth, Kline
from shared.explain.archive import Archive
from shared.features import FeatureSet
from shared.klines import DEPTH_COLUMNS, KLINE_COLUMNS
from shared.stage import is_foreign
from shared.streams import DEPTH, FUTURES_KLINE, KLINE, Stream
from shared.times import interval_ms, iso

Floats = npt.NDArray[np.float64]
Row = Callable[[Any], "tuple[float, ...] | Floats"]

_COMPARED = 60  # rows that must be the same on the bus and in the archive, where both have them


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Raster rows first_ms .. last_ms of every series that the features read, gaps as NaN.

    kline, futur, other: (n, 9), depth: (n, 11); None where no feature reads it. begins_ms: the
    first candle there is (live, rows before it did not exist). archived: rows of all series that
    were read from the archive, since the bus no longer has them; where the bus began is not known
    then. doubtful: those of them that may not be what stood on the bus: absent (a gap, or lost),
    or replaced by a revision.
    """

    first_ms: int
    last_ms: int
    step_ms: int
    begins_ms: int
    kline: Floats
    archived: int = 0
    doubtful: int = 0
    futur: Floats | None = None
    depth: Floats | None = None
    other: Floats | None = None

    def batch(self, features: FeatureSet, start: int = 0, stop: int | None = None) -> Floats:
        """(n, n_features) of the rows [start, stop), by the kernels that run live."""
        stop = len(self.kline) if stop is None else stop
        warm = max(0, start - (features.lookback - 1))

        def part(rows: Floats | None) -> Floats | None:
            return None if rows is None else rows[warm:stop]

        found = features.batch(
            self.first_ms // self.step_ms + warm,
            self.kline[warm:stop],
            futur=part(self.futur),
            depth=part(self.depth),
            other=part(self.other),
        )
        return found[start - warm :]


class History:
    """One symbol's series, read from the bus as they are asked for and kept.

    A bus that is given later must be the same server.
    """

    def __init__(
        self, symbol: str, interval: str, *, other: str | None, data_folder: Path | None = None
    ) -> None:
        """other: the symbol whose candles features of another symbol read, None: none is known.

        data_folder: where the collector's archive lies; None: only the bus is read.
        """
        self._symbol, self._interval = symbol, interval
        self._step_ms = interval_ms(interval)

        def series(stream: Stream[Any], of: str, kind: type, row: Row, width: int) -> _Series:
            # depth is keyed by symbol alone
            source = Source(stream, of, interval if stream.keyed_by.endswith("interval") else "")
            archive = None
            if data_folder is not None:
                archive = Archive(data_folder, stream, of, interval, width)
            return _Series(source, self._step_ms, kind, row, width, archive)

        candles = len(KLINE_COLUMNS)
        self._series = {
            "kline": series(KLINE, symbol, Kline, Kline.row, candles),
            "futur": series(FUTURES_KLINE, symbol, Kline, Kline.row, candles),
            "depth": series(
                DEPTH, symbol, Depth, lambda e: np.frombuffer(e.values, "<f8"), len(DEPTH_COLUMNS)
            ),
        }
        if other is not None:
            self._series["other"] = series(KLINE, other, Kline, Kline.row, candles)

    async def stretch(self, bus: Bus, features: FeatureSet, first_ms: int, last_ms: int) -> Stretch:
        """The rows from `first_ms` to `last_ms` and those before that the features look back on.

        Where the candles began later, it begins with them, as live did.

        Raises:
            BadInput: candles that live had are no longer on the bus, nor in the archive.
            Usage: the features read another symbol's candles, and nobody says whose.
        """
        kline = self._series["kline"]
        begins_ms, is_whole = await kline.beginning(bus)
        wanted_ms = first_ms - (features.lookback - 1) * self._step_ms
        if wanted_ms < begins_ms and not is_whole:
            await kline.reach(wanted_ms)
            begins_ms = wanted_ms
        start_ms = max(wanted_ms, begins_ms)
        if start_ms > last_ms:
            raise BadInput(
                f"{kline.source.key}: the candle of {iso(last_ms)} is not on the bus, which begins "
                f"at {iso(begins_ms)}"
            )
        found: dict[str, Floats] = {}
        for name in ("futur", "depth", "other"):
            if name not in features.sources:
                continue
            if name not in self._series:
                raise Usage(
                    "the features read another symbol's candles: name it as `features_other` in "
                    "the config (-c)"
                )
            series = self._series[name]
            their_ms, their_whole = await series.beginning(bus)
            if start_ms < their_ms and not their_whole:
                await series.reach(start_ms)
            found[name] = await series.rows(bus, start_ms, last_ms)
        found["kline"] = await kline.rows(bus, start_ms, last_ms)
        used = [self._series[name] for name in found]
        return Stretch(
            first_ms=start_ms,
            last_ms=last_ms,
            step_ms=self._step_ms,
            begins_ms=begins_ms,
            archived=sum(series.archived(start_ms) for series in used),
            doubtful=sum(series.doubtful(start_ms) for series in used),
            **found,
        )

    async def candles(self, bus: Bus, first_ms: int, last_ms: int) -> Floats:
        """(n, 9) candles of the raster rows from first_ms to last_ms, NaN where there is none."""
        await self._series["kline"].beginning(bus)
        return await self._series["kline"].rows(bus, first_ms, last_ms)

    def forget(self, before_ms: int) -> None:
        """Lets go of rows before that time."""
        for series in self._series.values():
            series.forget(before_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """What was read from the archive at once. found, doubtful: numbers of rows."""

    last_ms: int
    found: int
    doubtful: int


class _Series:
    """One stream as rows on its raster; what was read once is not read again."""

    def __init__(
        self,
        source: Source[Any],
        step_ms: int,
        kind: type,
        row: Row,
        width: int,
        archive: Archive | None,
    ) -> None:
        self.source = source
        self._archive = archive
        self._from_archive: list[_Piece] = []
        self._step_ms = step_ms
        self._kind = kind
        self._row = row
        self._begins_ms = 0  # the oldest entry that we know of
        self._held_from_ms = 0  # the oldest that is still on the bus
        self._is_whole = False
        self._first_ms = 0
        self._rows: Floats = np.empty((0, width))

    async def beginning(self, bus: Bus) -> tuple[int, bool]:
        """(time of the oldest entry that we know of, whether none was ever before it).

        Raises:
            BadInput: the stream is empty.
        """
        after: str | None = None
        while True:
            page = await bus.span(self.source, after=after, count=16)
            first = next((entry for entry in page if not is_foreign(entry)), None)
            if first is not None or not page:
                break
            after = page[-1].id
        if first is None:
            raise BadInput(f"{self.source.key}: nothing is on the bus")
        if first.time_ms == self._held_from_ms:
            return self._begins_ms, self._is_whole
        if first.time_ms < self._held_from_ms or not self._begins_ms:
            # The first look, or the stream was made anew: what was read before is of no use.
            self._begins_ms = first.time_ms
            self._is_whole = await bus.removed(self.source) == 0
            self._rows = self._rows[:0]
            self._from_archive.clear()
        self._held_from_ms = first.time_ms
        return self._begins_ms, self._is_whole

    async def rows(self, bus: Bus, first_ms: int, last_ms: int) -> Floats:
        """(n, width), NaN where nothing stands or what stands cannot be read.

        Raises:
            BadInput: rows that were there are trimmed.
        """
        if not len(self._rows):
            self._rows, self._first_ms = await self._read(bus, first_ms, last_ms), first_ms
        if first_ms < self._first_ms:
            before = await self._read(bus, first_ms, self._first_ms - self._step_ms)
            self._rows, self._first_ms = np.concatenate([before, self._rows]), first_ms
        end_ms = self._first_ms + len(self._rows) * self._step_ms
        if last_ms >= end_ms:
            self._rows = np.concatenate([self._rows, await self._read(bus, end_ms, last_ms)])
        start = (first_ms - self._first_ms) // self._step_ms
        return self._rows[start : start + (last_ms - first_ms) // self._step_ms + 1]

    async def reach(self, first_ms: int) -> None:
        """Rows from that time on are wanted, and the bus begins later: the archive must have them.

        Raises:
            BadInput: there is none, or it has no file of that time.
        """
        archive = self._archive
        text = (
            f"{self.source.key}: the rows back to {iso(first_ms)} that its features look at are "
            f"trimmed; the bus begins at {iso(self._held_from_ms)}"
        )
        if archive is None:
            raise BadInput(text)
        if not await asyncio.to_thread(archive.has_file_of, first_ms):
            raise BadInput(f"{text}, and {archive.folder} has no candles of that time")
        self._begins_ms = min(self._begins_ms, first_ms)

    def archived(self, first_ms: int) -> int:
        """Rows from that time on that came from the archive."""
        return sum(piece.found for piece in self._from_archive if piece.last_ms >= first_ms)

    def doubtful(self, first_ms: int) -> int:
        """Rows from that time on that may not be what stood on the bus, at most."""
        return sum(piece.doubtful for piece in self._from_archive if piece.last_ms >= first_ms)

    async def _read(self, bus: Bus, first_ms: int, last_ms: int) -> Floats:
        parts: list[Floats] = []
        if self._begins_ms < self._held_from_ms and first_ms < self._held_from_ms:
            upto_ms = min(last_ms, self._held_from_ms - self._step_ms)
            parts.append(await self._read_archive(bus, first_ms, upto_ms))
            first_ms = upto_ms + self._step_ms
        if first_ms <= last_ms:
            parts.append(await self._read_bus(bus, first_ms, last_ms))
        return np.concatenate(parts)

    async def _read_archive(self, bus: Bus, first_ms: int, last_ms: int) -> Floats:
        if self._archive is None:
            raise BadInput(
                f"{self.source.key}: the rows from {iso(first_ms)} on are trimmed; the bus begins "
                f"at {iso(self._held_from_ms)}"
            )
        await self._check_archive(bus, self._archive)
        found = await asyncio.to_thread(self._archive.read, first_ms, last_ms)
        doubtful = found.missing + found.altered
        self._from_archive.append(_Piece(last_ms=last_ms, found=found.found, doubtful=doubtful))
        return found.rows

    async def _check_archive(self, bus: Bus, archive: Archive) -> None:
        """Rows that both still have must be the same, else it is some other market's archive.

        Raises:
            BadInput: it is.
        """
        first_ms = self._held_from_ms
        last_ms = first_ms + (_COMPARED - 1) * self._step_ms
        kept = await asyncio.to_thread(archive.read, first_ms, last_ms)
        there = await self._read_bus(bus, first_ms, last_ms)
        both = ~np.isnan(kept.rows).all(axis=1) & ~np.isnan(there).all(axis=1)
        if not kept.altered and not np.array_equal(kept.rows[both], there[both], equal_nan=True):
            raise BadInput(
                f"{archive.folder} is not the archive of this bus: its rows from {iso(first_ms)} "
                "on are others; give the config that the collector has (-c)"
            )

    async def _read_bus(self, bus: Bus, first_ms: int, last_ms: int) -> Floats:
        count = (last_ms - first_ms) // self._step_ms + 1
        rows = np.full((count, self._rows.shape[1]), np.nan)
        after, upto = f"{first_ms - 1}-0", f"{last_ms}-0"
        while True:
            page = await bus.span(self.source, after=after, upto=upto)
            for entry in page:
                off = (entry.time_ms - first_ms) % self._step_ms or entry.time_ms < first_ms
                if isinstance(entry.event, self._kind) and not off and not is_foreign(entry):
                    rows[(entry.time_ms - first_ms) // self._step_ms] = self._row(entry.event)
            if not page:
                return rows
            after = page[-1].id

    def forget(self, before_ms: int) -> None:
        drop = (before_ms - self._first_ms) // self._step_ms
        if drop > 0 and len(self._rows):
            self._rows = self._rows[drop:].copy()
            self._first_ms += drop * self._step_ms
