"""Rolling-window statistics: what the ticker endpoints and streams show."""

from dataclasses import dataclass

import numpy as np

from simulator.market import Series

DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Stats:
    """One window. Volumes are NaN where the source has none."""

    open_ms: int
    close_ms: int
    open: float
    high: float
    low: float
    last: float
    last_quantity: float
    before: float
    volume: float
    quote_volume: float
    first_id: int
    last_id: int

    @property
    def change(self) -> float:
        return round(self.last - self.open, 8)

    @property
    def change_percent(self) -> float:
        return round(100 * (self.last - self.open) / self.open, 3)

    @property
    def average(self) -> float:
        """Volume-weighted; NaN where the source lacks the quote volume."""
        return round(self.quote_volume / self.volume, 8) if self.volume else self.last

    @property
    def count(self) -> int:
        return self.last_id - self.first_id + 1 if self.first_id >= 0 else 0


def window(series: Series, now_ms: int, length_ms: int, start_ms: int | None = None) -> Stats:
    """Statistics of the candles that opened in (now - length, now], or from start_ms on."""
    base = series.base
    start = now_ms - length_ms + 1 if start_ms is None else start_ms
    done = base.closed(now_ms)
    low = min(int(np.searchsorted(base.open_time_ms, start)), max(done - 1, 0))
    opened = series.open_candle(series.interval, now_ms)
    rows = base.values[low:done]
    candles = [*rows, *([np.array(opened.values)] if opened is not None else [])]
    table = np.array(candles) if candles else base.values[:1]
    totals = np.round(table[:, 4:6].sum(axis=0), 8)
    last = candles[-1] if candles else table[0]
    firsts = base.first_id[low:done]
    ids = [int(i) for i in firsts[firsts >= 0][:1]]
    if not ids and opened is not None:
        ids = [opened.first_id]
    last_id = opened.last_id if opened is not None else int(base.last_id[done - 1]) if done else -1
    return Stats(
        open_ms=start,
        close_ms=now_ms,
        open=float(table[0, 0]),
        high=float(table[:, 1].max()),
        low=float(table[:, 2].min()),
        last=float(last[3]),
        last_quantity=series.last_quantity(now_ms),
        before=float(base.values[max(low - 1, 0), 3]),
        volume=float(totals[0]),
        quote_volume=float(totals[1]),
        first_id=ids[0] if ids else -1,
        last_id=last_id,
    )


def average_price(series: Series, now_ms: int, minutes: int = 5) -> tuple[float, int]:
    """(volume-weighted price of the trades of the last minutes, time of the last one)."""
    found = series.agg_trades(now_ms - minutes * 60_000, now_ms)
    volume = sum(trade.quantity for trade in found)
    if not volume:
        return series.last_price(now_ms)[0], now_ms
    total = sum(trade.price * trade.quantity for trade in found)
    return round(total / volume, 8), found[-1].time_ms
