"""The candles that a feature vector was made of, read back from the bus onto their raster."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.bus import Bus, Source
from shared.errors import BadInput, Usage
from shared.events import Depth, Kline
from shared.features import FeatureSet
from shared.klines import DEPTH_COLUMNS, KLINE_COLUMNS
from shared.stage import is_foreign
from shared.streams import DEPTH, FUTURES_KLINE, KLINE, Stream
from shared.times import interval_ms, iso

Floats = npt.NDArray[np.float64]
Row = Callable[[Any], "tuple[float, ...] | Floats"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Raster rows first_ms .. last_ms of every series that the features read, gaps as NaN.

    kline, futur, other: (n, 9), depth: (n, 11); None where no feature reads it. begins_ms: the
    first candle there is (live, rows before it did not exist).
    """

    first_ms: int
    last_ms: int
    step_ms: int
    begins_ms: int
    kline: Floats
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

    def __init__(self, symbol: str, interval: str, *, other: str | None) -> None:
        """other: the symbol whose candles features of another symbol read, None: none is known."""
        self._symbol, self._interval = symbol, interval
        self._step_ms = interval_ms(interval)

        def series(stream: Stream[Any], of: str, kind: type, row: Row, width: int) -> _Series:
            # depth is keyed by symbol alone
            source = Source(stream, of, interval if stream.keyed_by.endswith("interval") else "")
            return _Series(source, self._step_ms, kind, row, width)

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
            BadInput: candles that live had are no longer on the bus.
            Usage: the features read another symbol's candles, and nobody says whose.
        """
        kline = self._series["kline"]
        begins_ms, is_whole = await kline.beginning(bus)
        wanted_ms = first_ms - (features.lookback - 1) * self._step_ms
        if wanted_ms < begins_ms and not is_whole:
            raise BadInput(
                f"{kline.source.key}: the candles back to {iso(wanted_ms)} that its features look "
                f"at are trimmed; the bus begins at {iso(begins_ms)}"
            )
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
                raise BadInput(
                    f"{series.source.key}: the rows back to {iso(start_ms)} that its features look "
                    f"at are trimmed; the bus begins at {iso(their_ms)}"
                )
            found[name] = await series.rows(bus, start_ms, last_ms)
        return Stretch(
            first_ms=start_ms,
            last_ms=last_ms,
            step_ms=self._step_ms,
            begins_ms=begins_ms,
            kline=await kline.rows(bus, start_ms, last_ms),
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


class _Series:
    """One stream as rows on its raster; what was read once is not read again."""

    def __init__(self, source: Source[Any], step_ms: int, kind: type, row: Row, width: int) -> None:
        self.source = source
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

    async def _read(self, bus: Bus, first_ms: int, last_ms: int) -> Floats:
        if self._begins_ms < self._held_from_ms and first_ms < self._held_from_ms:
            raise BadInput(
                f"{self.source.key}: the rows from {iso(first_ms)} on are trimmed; the bus begins "
                f"at {iso(self._held_from_ms)}"
            )
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
