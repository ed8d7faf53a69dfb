"""USD-M futures beside spot: perpetual candles near the spot price, mark prices and funding.

With no files of its own the futures market is the spot market moved by a small seeded basis that
drifts over hours, with three times the volume. What the spot data lacks is missing too.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from shared.klines import KlineTable
from simulator.events import Mark
from simulator.market import Market, Series
from simulator.trades import uniform

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

Recorded = dict[str, tuple[Ints, Floats]]

FUNDING_MS = 8 * 3_600_000
_HOUR_MS = 3_600_000
_VOLUME = 3.0


def basis(seed: int, time_ms: Ints) -> Floats:
    """Futures price over spot price, less one: within about 0.1 %, moving from hour to hour."""
    hour = time_ms // _HOUR_MS
    part = (time_ms % _HOUR_MS) / _HOUR_MS
    one = uniform(seed, hour, 31, 1)[:, 0]
    two = uniform(seed, hour + 1, 31, 1)[:, 0]
    return 0.0016 * (one + part * (two - one) - 0.45)


def derive(spot: Series, table: KlineTable) -> KlineTable:
    """Perpetual candles of the same minutes as `table` (of the spot series)."""
    shift = 1 + basis(spot.seed, table.open_time_ms)
    v = table.values
    unit = 10.0**spot.price_digits
    out = np.empty_like(v)
    out[:, :4] = np.rint(v[:, :4] * shift[:, None] * unit) / unit
    out[:, 4] = np.round(v[:, 4] * _VOLUME, 8)
    out[:, 6] = np.rint(v[:, 6] * _VOLUME)
    out[:, 7] = np.round(v[:, 7] * _VOLUME, 8)
    sold = out[:, 4] - out[:, 7]
    high, low = out[:, 1], out[:, 2]
    bought_quote = np.clip(v[:, 8] * _VOLUME * shift, out[:, 7] * low, out[:, 7] * high)
    sold_quote = np.clip((v[:, 5] - v[:, 8]) * _VOLUME * shift, sold * low, sold * high)
    out[:, 8] = np.round(bought_quote, 8)
    whole = np.where(np.isnan(v[:, 8]), v[:, 5] * _VOLUME * shift, out[:, 8] + sold_quote)
    out[:, 5] = np.round(whole, 8)
    return KlineTable(
        symbol=table.symbol,
        interval=table.interval,
        open_time_ms=table.open_time_ms,
        values=out,
    )


@dataclass(frozen=True, slots=True)
class Funding:
    """Funding rates: recorded ones where there are some, else seeded around 0.01 % per eight hours.

    recorded: symbol -> (times, rates), times as recorded (some ms late).
    """

    spot: Market
    recorded: Recorded = field(default_factory=dict)

    def rate(self, series: Series, paid_ms: int) -> float:
        """The rate paid at `paid_ms`, a multiple of eight hours."""
        known = self.recorded.get(series.symbol)
        if known is not None:
            index = int(np.searchsorted(known[0], paid_ms))
            if index < len(known[0]) and known[0][index] - paid_ms < 60_000:
                return float(known[1][index])
        draw = uniform(series.seed, np.array([paid_ms]), 32, 2)[0]
        return round(float(0.0001 + 0.0003 * (draw[0] - 0.5) * (draw[1] > 0.3)), 8)

    def history(self, series: Series, start_ms: int, end_ms: int) -> list[tuple[int, float]]:
        """(time, rate) of every payment in [start, end], oldest first."""
        known = self.recorded.get(series.symbol)
        if known is not None:
            low, high = np.searchsorted(known[0], [start_ms, end_ms + 1])
            return list(zip(known[0][low:high].tolist(), known[1][low:high].tolist(), strict=True))
        first = -(-start_ms // FUNDING_MS) * FUNDING_MS
        return [(t, self.rate(series, t)) for t in range(first, end_ms + 1, FUNDING_MS)]

    def mark(self, series: Series, now_ms: int) -> Mark:
        """Mark and index price now; the mark lies between the index and the last trade."""
        last = series.last_price(now_ms)[0]
        spot = self.spot.series.get(series.symbol)
        index = spot.last_price(now_ms)[0] if spot is not None else last
        digits = min(8, series.price_digits + 6)
        following = (now_ms // FUNDING_MS + 1) * FUNDING_MS
        return Mark(
            round(index + 0.5 * (last - index), digits),
            index,
            self.rate(series, following),
            following,
        )
