"""Candles as arrays: what files hold, what the feature kernel reads, what the simulator replays."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared.times import interval_ms

KLINE_COLUMNS = (
    "open",
    "high",
    "low",
    "close",
    "volume",
    "quote_volume",
    "trades",
    "taker_base",
    "taker_quote",
)
DEPTH_COLUMNS = (
    "gap",
    *(f"{side}_{bins}" for side in ("bids", "asks") for bins in (1, 2, 5, 10, 20)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KlineTable:
    """Candles of one symbol and interval.

    open_time_ms: (n,) int64, strictly increasing, on the raster but not necessarily without holes.
    values: (n, 9) float64, columns in KLINE_COLUMNS order; NaN = the source has no such value.
    """

    symbol: str
    interval: str
    open_time_ms: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.open_time_ms)

    @property
    def step_ms(self) -> int:
        return interval_ms(self.interval)

    def column(self, name: str) -> npt.NDArray[np.float64]:
        """(n,) float64, one of KLINE_COLUMNS."""
        return self.values[:, KLINE_COLUMNS.index(name)]

    def rows(self, start: int, stop: int) -> "KlineTable":
        """Rows [start, stop) by position."""
        return KlineTable(
            symbol=self.symbol,
            interval=self.interval,
            open_time_ms=self.open_time_ms[start:stop],
            values=self.values[start:stop],
        )

    def between(self, start_ms: int, end_ms: int) -> "KlineTable":
        """Rows with start_ms <= open_time_ms < end_ms."""
        start, stop = np.searchsorted(self.open_time_ms, [start_ms, end_ms])
        return self.rows(int(start), int(stop))

    def tail(self, count: int) -> "KlineTable":
        return self.rows(max(0, len(self) - count), len(self))


def to_raster(table: KlineTable) -> KlineTable:
    """Every raster row from the first candle to the last; a missing minute is a row of NaN."""
    if not len(table):
        return table
    step = table.step_ms
    position = (table.open_time_ms - table.open_time_ms[0]) // step
    count = int(position[-1]) + 1
    if count == len(table):
        return table
    values = np.full((count, len(KLINE_COLUMNS)), np.nan)
    values[position] = table.values
    open_time_ms = table.open_time_ms[0] + step * np.arange(count, dtype=np.int64)
    return KlineTable(
        symbol=table.symbol, interval=table.interval, open_time_ms=open_time_ms, values=values
    )
