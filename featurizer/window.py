"""One symbol's candles in, one feature vector per candle out. Pure."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.bus import Entry, Source, Write
from shared.events import Depth, Feature, Kline
from shared.features import FeatureSet
from shared.klines import DEPTH_COLUMNS, KLINE_COLUMNS
from shared.streams import FEATURE
from shared.times import interval_ms

Row = npt.NDArray[np.float64]
_NO_KLINE = (math.nan,) * len(KLINE_COLUMNS)


class FeatureWindow:
    """The state behind one symbol's feature stream (a `shared.stage.Core`).

    Rows of the futures and depth series and of the other symbol's candles are handed over in
    `futures`, `depth` and `other`, by open time, before the candles that they belong to; a minute
    without one is a row of NaN.
    """

    def __init__(self, features: FeatureSet, source: Source[Any]) -> None:
        self.history = features.lookback
        self.futures: dict[int, Row] = {}
        self.depth: dict[int, Row] = {}
        self.other: dict[int, Row] = {}
        self.source = source
        self._features = features
        self._window = features.window()
        self._output = Source(FEATURE, source.symbol, source.interval)
        self._step_ms = interval_ms(source.interval)
        self._rows = 0

    def load(self, entries: Sequence[Entry[Any]]) -> None:
        if not entries:
            return
        first, last = entries[0].time_ms, entries[-1].time_ms
        count = (last - first) // self._step_ms + 1
        kline = np.full((count, len(KLINE_COLUMNS)), np.nan)
        for entry in entries:
            if isinstance(entry.event, Kline):
                kline[(entry.time_ms - first) // self._step_ms] = entry.event.row()
        times = [first + self._step_ms * row for row in range(count)]
        self._window.load(
            first // self._step_ms,
            kline,
            _rows(self.futures, times, len(KLINE_COLUMNS)),
            _rows(self.depth, times, len(DEPTH_COLUMNS)),
            _rows(self.other, times, len(KLINE_COLUMNS)),
        )
        self._rows = count

    def skip(self, missing: int) -> None:
        for _ in range(missing):
            index = self._window.index
            if index is None:
                return
            time_ms = (index + 1) * self._step_ms
            self._advance(time_ms, _NO_KLINE)

    def step(self, entry: Entry[Any]) -> Sequence[Write[Any]]:
        kline = entry.event if isinstance(entry.event, Kline) else None
        values = self._advance(entry.time_ms, _NO_KLINE if kline is None else kline.row())
        event = Feature(
            open_time_ms=entry.time_ms,
            schema=self._features.schema,
            values=values.astype("<f8", copy=False).tobytes(),
            close=math.nan if kline is None else kline.close,
            gap=kline is None or kline.gap,
            covered=self._rows >= self._features.lookback,
        )
        return (Write(source=self._output, event=event, open_time_ms=entry.time_ms),)

    def _advance(self, time_ms: int, kline: tuple[float, ...]) -> Row:
        self._rows += 1
        return self._window.step(
            time_ms // self._step_ms,
            kline,
            self.futures.pop(time_ms, None),
            self.depth.pop(time_ms, None),
            self.other.pop(time_ms, None),
        )


def depth_row(event: Depth) -> Row:
    """(11,) float64 in DEPTH_COLUMNS order; the bus has checked the length."""
    return np.frombuffer(event.values, "<f8")


def _rows(by_time: dict[int, Row], times: list[int], width: int) -> Row:
    nothing = np.full(width, np.nan)
    return np.array([by_time.pop(time, nothing) for time in times]).reshape(-1, width)
