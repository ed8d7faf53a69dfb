"""Rows that are trimmed from the bus, read from the collector's archive as they stood there."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.klinefiles import (
    depth_folder,
    kline_months,
    klines_folder,
    month_of,
    months_between,
    read_columns,
    read_history,
)
from shared.klines import DEPTH_COLUMNS, KLINE_COLUMNS
from shared.streams import DEPTH, FUTURES_KLINE, Stream
from shared.times import interval_ms

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Archived:
    """rows: (n, width), NaN where the archive has none. found: rows that it has. missing: rows that
    it lacks; gaps have none there. altered: rows that a later revision replaced while nobody wrote
    down what had stood on the bus, and lines of the ledger that cannot be read."""

    rows: Floats
    found: int
    missing: int
    altered: int


class Archive:
    """The folder of one series; it need not exist."""

    def __init__(
        self, data_folder: Path, stream: Stream[Any], symbol: str, interval: str, width: int
    ) -> None:
        self._is_depth = stream is DEPTH
        if self._is_depth:
            self.folder = depth_folder(data_folder, symbol, interval)
        else:
            self.folder = klines_folder(data_folder, symbol, interval)
        if stream is FUTURES_KLINE:
            self.folder = self.folder.with_name(f"{symbol}-{interval}-futures-klines")
        self._symbol, self._interval = symbol, interval
        self._step_ms = interval_ms(interval)
        self._width = width

    def has_file_of(self, time_ms: int) -> bool:
        """Whether there is a file of that month. Lists a folder."""
        return month_of(time_ms) in kline_months(self.folder)

    def read(self, first_ms: int, last_ms: int) -> Archived:
        """The raster rows first_ms .. last_ms. Reads files; for a thread.

        Raises:
            BadInput: a file is damaged, or is not of this interval.
        """
        count = (last_ms - first_ms) // self._step_ms + 1
        rows = np.full((count, self._width), np.nan)
        if self._is_depth:
            times, values = self._books(first_ms, last_ms)
        else:
            table = read_history(
                self.folder,
                symbol=self._symbol,
                interval=self._interval,
                start_ms=first_ms,
                end_ms=last_ms + 1,
            )
            times, values = table.open_time_ms, table.values
        at = (times - first_ms) // self._step_ms
        rows[at] = values
        altered = 0
        for time_ms, was in self._revised():
            if time_ms is None or was is None:
                altered += time_ms is None or first_ms <= time_ms <= last_ms
            elif first_ms <= time_ms <= last_ms:
                rows[(time_ms - first_ms) // self._step_ms] = was
        return Archived(rows=rows, found=len(at), missing=count - len(at), altered=altered)

    def _books(self, first_ms: int, last_ms: int) -> tuple[npt.NDArray[np.int64], Floats]:
        months = set(kline_months(self.folder)) & set(months_between(first_ms, last_ms + 1))
        times, values = [np.empty(0, np.int64)], [np.empty((0, self._width))]
        for month in sorted(months):
            columns = read_columns(
                self.folder / f"{month}.parquet", ["open_time_ms", *DEPTH_COLUMNS]
            )
            times.append(columns["open_time_ms"])
            values.append(np.column_stack([columns[name] for name in DEPTH_COLUMNS]))
        all_times, all_values = np.concatenate(times), np.concatenate(values)
        wanted = (all_times >= first_ms) & (all_times <= last_ms)
        return all_times[wanted], all_values[wanted]

    def _revised(self) -> Iterator[tuple[int | None, list[float] | None]]:
        """(open time, the row that stood on the bus) of every row that the archive replaced.

        Of several revisions of a row the first tells of the bus. None: it cannot be read, or was
        written by a version that did not keep it.
        """
        path = self.folder / "ledger.jsonl"
        if self._is_depth or not path.is_file():
            return
        seen: set[int] = set()
        with path.open(encoding="utf-8") as file:
            for text in file:
                try:
                    line = json.loads(text)
                    code, time_ms = line["code"], int(line["open_time_ms"])
                    was = line.get("was", ())
                except (ValueError, KeyError, TypeError, AttributeError):
                    yield None, None
                    continue
                if code != "revision" or time_ms in seen:
                    continue
                seen.add(time_ms)
                if was is None:
                    yield time_ms, [math.nan] * self._width
                elif len(was) == len(KLINE_COLUMNS):
                    yield time_ms, [math.nan if one is None else one for one in was]
                else:
                    yield time_ms, None
