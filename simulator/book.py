"""The order book as a function of the last trade and of time: it always fits the trade stream.

A book belongs to an instant of the market; its update id is that instant in milliseconds, so the
ids of bookTicker, depth snapshots and depth differences are one rising sequence.
"""

from dataclasses import dataclass

import numpy as np

from simulator.market import Series
from simulator.trades import uniform

DEPTH = 1000  # levels on a side
_LIFE_MS = 10_000  # how long a level keeps its amount


@dataclass(frozen=True, slots=True)
class Book:
    """Price -> amount, best first; update_id rises with time."""

    update_id: int
    bids: list[tuple[float, float]]
    asks: list[tuple[float, float]]


def book_at(series: Series, at_ms: int, depth: int = DEPTH) -> Book:
    """The book after everything up to `at_ms`."""
    price, bought = series.last_price(at_ms)
    unit = 10.0**series.price_digits
    last = round(price * unit)
    bid = max(1, last - 1 if bought else last)
    spacing = max(1, round(last * 1e-5))
    steps = np.arange(1, depth, dtype=np.int64) * spacing
    below = np.append(bid, (bid - 1) // spacing * spacing + spacing - steps)
    above = np.append(bid + 1, -(-(bid + 2) // spacing) * spacing - spacing + steps)
    return Book(
        at_ms,
        _side(series, below[below > 0], at_ms, bid, spacing, 21),
        _side(series, above, at_ms, bid, spacing, 22),
    )


def _side(
    series: Series,
    ticks: "np.typing.NDArray[np.int64]",
    at_ms: int,
    best: int,
    spacing: int,
    lane: int,
) -> list[tuple[float, float]]:
    phase = (uniform(series.seed, ticks, 20, 1)[:, 0] * _LIFE_MS).astype(np.int64)
    epoch = (at_ms + phase) // _LIFE_MS
    draw = uniform(series.seed, ticks * 1_000_003 + epoch, lane, 1)[:, 0]
    distance = np.abs(ticks - best) / spacing
    typical = series.typical_lots * (0.02 + 0.002 * np.minimum(distance, 100.0))
    lots = np.maximum(np.rint(typical * -np.log1p(-draw)), 1.0)
    prices = ticks / 10.0**series.price_digits
    amounts = lots / 10.0**series.lot_digits
    # two grid points can meet the best price: keep each price once
    unique = dict(zip(prices.tolist(), amounts.tolist(), strict=True))
    return list(unique.items())


def changes(
    before: list[tuple[float, float]], after: list[tuple[float, float]]
) -> list[tuple[float, float]]:
    """Levels that differ, with their new amounts; 0 = gone."""
    old, new = dict(before), dict(after)
    gone = [(price, 0.0) for price in old if price not in new]
    return [level for level in after if old.get(level[0]) != level[1]] + gone
