"""Candles as arrays: what files hold, what the feature kernel reads, what the simulator replays."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared.errors import BadInput
from shared.times import interval_ms, iso

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
    """Every raster row from the first candle to the last; a missing minute is a row of NaN.

    Raises:
        BadInput: nearly all of it would be gaps; see `hole_too_wide`.
    """
    if not len(table):
        return table
    step = table.step_ms
    position = (table.open_time_ms - table.open_time_ms[0]) // step
    count = int(position[-1]) + 1
    if count == len(table):
        return table
    found = hole_too_wide(table.open_time_ms, step)
    if found is not None:
        raise BadInput(
            f"{table.symbol} {table.interval}: {found.text(table.interval)}; correct its time, or "
            "give the candles before and after the hole apart"
        )
    values = np.full((count, len(KLINE_COLUMNS)), np.nan)
    values[position] = table.values
    open_time_ms = table.open_time_ms[0] + step * np.arange(count, dtype=np.int64)
    return KlineTable(
        symbol=table.symbol, interval=table.interval, open_time_ms=open_time_ms, values=values
    )


# Rows that no outage of an exchange comes near: five weeks of minutes.
_WIDE = 50_000
_FEW = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Hole:
    """The widest hole of some candles, and what stands apart beyond it.

    index: the candle that stands apart, the first of `candles` on the smaller side of the hole.
    rows: raster rows without a candle between both sides. total: candles in all. raster: rows.
    """

    index: int
    open_time_ms: int
    candles: int
    rows: int
    total: int
    raster: int

    def text(self, interval: str) -> str:
        """`1 candle (from 2035-..) stands apart from the other 1,440 by 5,000,000 ..`."""
        which = "1 candle" if self.candles == 1 else f"{self.candles:,} candles"
        verb = "stands" if self.candles == 1 else "stand"
        return (
            f"{which} (from {iso(self.open_time_ms)}) {verb} apart from the other "
            f"{self.total - self.candles:,} by {self.rows:,} missing rows of {interval}, and of "
            f"{self.raster:,} rows in all {self.raster - self.total:,} would be gaps"
        )


def hole_too_wide(open_time_ms: npt.NDArray[np.int64], step_ms: int) -> Hole | None:
    """The hole that makes a raster senseless; None: the raster is what it should be.

    One wrong timestamp years away turns a day of minutes into 41 million rows. So where more than
    50,000 rows are missing, it is refused that less than a tenth of the raster is there, or that
    one hole is wider than all candles together, or that it cuts off ten candles or fewer.

    open_time_ms: (n,) increasing.
    """
    if len(open_time_ms) < 2:
        return None
    present = len(open_time_ms)
    total = (int(open_time_ms[-1]) - int(open_time_ms[0])) // step_ms + 1
    if total - present <= _WIDE:
        return None
    at = int(np.diff(open_time_ms).argmax())
    rows = (int(open_time_ms[at + 1]) - int(open_time_ms[at])) // step_ms - 1
    before, after = at + 1, present - at - 1
    few = min(before, after)
    cuts_off_few = rows > _WIDE and few <= _FEW
    if total < 10 * present and rows <= present and not cuts_off_few:
        return None
    index = 0 if before < after else at + 1
    return Hole(
        index=index,
        open_time_ms=int(open_time_ms[index]),
        candles=few,
        rows=rows,
        total=present,
        raster=total,
    )
