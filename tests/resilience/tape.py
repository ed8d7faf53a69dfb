"""Candles with holes for the simulated exchange, and what the bus must hold of them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shared.events import Kline
from shared.klines import KLINE_COLUMNS

M = 60_000
SYMBOL = "TESTUSDT"  # what tests.releases trains for
START_MS = 28_100_000 * M


@dataclass(frozen=True, slots=True)
class Tape:
    """A file of candles. history: how many of them are past when the market opens.

    klines: every raster row from the first candle to the last, a gap marker where there is none.
    there: open times of those that exist.
    """

    path: Path
    history: int
    klines: tuple[Kline, ...]
    there: tuple[int, ...]

    @property
    def candles(self) -> int:
        return len(self.there)

    @property
    def rows(self) -> npt.NDArray[np.float64]:
        """(n, 9) float64 in KLINE_COLUMNS order."""
        return np.array([kline.row() for kline in self.klines])

    @property
    def first_index(self) -> int:
        return self.klines[0].open_time_ms // M

    @property
    def last_ms(self) -> int:
        return self.klines[-1].open_time_ms


def record(folder: Path, *, history: int, live: int, seed: int) -> Tape:
    """A seeded market; about one minute in 150 begins a hole of one to four minutes.

    The last 30 minutes have no hole: at the end every candle must be known to be there.
    """
    rng = np.random.default_rng(seed)
    rows = history + live
    close = np.round(100 * np.exp(np.cumsum(rng.normal(0, 0.001, rows))), 2)
    opened = np.append(close[0], close[:-1])
    reach = 1 + np.abs(rng.normal(0, 0.0005, (2, rows)))
    volume = np.round(rng.lognormal(2, 0.5, rows), 5)
    taker = np.round(volume * rng.uniform(0.2, 0.8, rows), 5)
    columns = {
        "open": opened,
        "high": np.round(np.maximum(opened, close) * reach[0], 2),
        "low": np.round(np.minimum(opened, close) / reach[1], 2),
        "close": close,
        "volume": volume,
        "quote_volume": np.round(volume * close, 8),
        "trades": np.floor(volume * 10) + 1,
        "taker_base": taker,
        "taker_quote": np.round(taker * close, 8),
    }
    times = START_MS + M * np.arange(rows, dtype=np.int64)
    there = np.ones(rows, dtype=bool)
    for first in np.flatnonzero(rng.random(rows) < 1 / 150):
        there[first : first + rng.integers(1, 5)] = False
    there[:5] = there[history - 5 : history] = there[-30:] = True
    path = folder / f"{SYMBOL}-1m.parquet"
    table = {"open_time_ms": times[there], **{n: c[there] for n, c in columns.items()}}
    pq.write_table(pa.table(table), path)
    values = np.column_stack([columns[name] for name in KLINE_COLUMNS])
    klines = tuple(
        _kline(int(time_ms), values[n]) if there[n] else _marker(int(time_ms))
        for n, time_ms in enumerate(times)
    )
    past = int(there[:history].sum())
    return Tape(path=path, history=past, klines=klines, there=tuple(times[there].tolist()))


def _marker(time_ms: int) -> Kline:
    return Kline.gap_marker(SYMBOL, "1m", time_ms, time_ms + M - 1)


def _kline(time_ms: int, row: npt.NDArray[np.float64]) -> Kline:
    return Kline(
        symbol=SYMBOL,
        interval="1m",
        open_time_ms=time_ms,
        close_time_ms=time_ms + M - 1,
        **dict(zip(KLINE_COLUMNS, row.tolist(), strict=True)),
    )
