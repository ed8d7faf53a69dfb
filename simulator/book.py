"""The order book as a function of the last trade and of time: it always fits the trade stream.

A book belongs to an instant of the market; its update id is that instant in milliseconds, so the
ids of bookTicker, depth snapshots and depth differences are one rising sequence.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.market import Series
from simulator.trades import uniform, uniform_one

Ints = npt.NDArray[np.int64]

DEPTH = 1000  # levels on a side
_LIFE_MS = 10_000  # how long a level keeps its amount


@dataclass(frozen=True, slots=True)
class Book:
    """Price -> amount, best first; update_id rises with time."""

    update_id: int
    bids: list[tuple[float, float]]
    asks: list[tuple[float, float]]


def best_bid(last: int, bought: bool) -> int:
    """The best bid in ticks, from the last price in ticks; the best ask is one tick above it."""
    return max(1, last - 1 if bought else last)


def spacing_at(last: int) -> int:
    """Ticks between the levels behind the best one."""
    return max(1, round(last * 1e-5))


def _ticks(bid: int, spacing: int, depth: int, *, is_bid: bool) -> Ints:
    """Where a side has levels, best first: at its best price, and on a fixed grid behind it."""
    steps = np.arange(1, depth, dtype=np.int64) * spacing
    if is_bid:
        below = np.append(bid, (bid - 1) // spacing * spacing + spacing - steps)
        return below[below > 0]
    return np.append(bid + 1, -(-(bid + 2) // spacing) * spacing - spacing + steps)


def _lots(series: Series, ticks: Ints, at_ms: int, bid: int, spacing: int, *, is_bid: bool) -> Ints:
    """How many lots stand at each tick of a side."""
    phase = (uniform(series.seed, ticks, 20, 1)[:, 0] * _LIFE_MS).astype(np.int64)
    epoch = (at_ms + phase) // _LIFE_MS
    draw = uniform(series.seed, ticks * 1_000_003 + epoch, 21 if is_bid else 22, 1)[:, 0]
    distance = np.abs(ticks - bid) / spacing
    typical = series.typical_lots * (0.02 + 0.002 * np.minimum(distance, 100.0))
    return np.maximum(np.rint(typical * -np.log1p(-draw)), 1.0).astype(np.int64)


def ladder(
    series: Series, at_ms: int, last: tuple[int, bool], depth: int, *, is_bid: bool
) -> list[tuple[int, int]]:
    """One side as (ticks, lots), best first. last: ticks of the last trade, did its taker buy."""
    bid, spacing = best_bid(*last), spacing_at(last[0])
    ticks = _ticks(bid, spacing, depth, is_bid=is_bid)
    lots = _lots(series, ticks, at_ms, bid, spacing, is_bid=is_bid)
    # two grid points can meet the best price: keep each price once
    return list(dict(zip(ticks.tolist(), lots.tolist(), strict=True)).items())


def _lots_of(series: Series, tick: int, at_ms: int, bid: int, spacing: int, *, is_bid: bool) -> int:
    """`_lots` of one tick."""
    phase = int(uniform_one(series.seed, tick, 20) * _LIFE_MS)
    epoch = (at_ms + phase) // _LIFE_MS
    draw = uniform_one(series.seed, tick * 1_000_003 + epoch, 21 if is_bid else 22)
    typical = series.typical_lots * (0.02 + 0.002 * min(abs(tick - bid) / spacing, 100.0))
    return max(round(typical * -float(np.log1p(-draw))), 1)


def first_levels(
    series: Series, at_ms: int, last: tuple[int, bool], count: int, *, is_bid: bool
) -> Iterator[tuple[int, int]]:
    """The first levels of `ladder`, one by one; there may be fewer."""
    bid, spacing = best_bid(*last), spacing_at(last[0])
    if is_bid:
        grid = (bid - 1) // spacing * spacing
        ticks = [bid, *range(grid, max(0, grid - (count - 1) * spacing), -spacing)]
    else:
        grid = -(-(bid + 2) // spacing) * spacing
        ticks = [bid + 1, *range(grid, grid + (count - 1) * spacing, spacing)]
    for tick in dict.fromkeys(ticks):
        yield tick, _lots_of(series, tick, at_ms, bid, spacing, is_bid=is_bid)


def lots_at(series: Series, at_ms: int, last: tuple[int, bool], tick: int, *, is_bid: bool) -> int:
    """What one side shows at one tick; 0 where it has no level."""
    bid, spacing = best_bid(*last), spacing_at(last[0])
    best = bid if is_bid else bid + 1
    behind = best - tick if is_bid else tick - best
    if behind < 0 or (behind and tick % spacing) or behind > spacing * (DEPTH - 1):
        return 0
    return _lots_of(series, tick, at_ms, bid, spacing, is_bid=is_bid)


def book_at(series: Series, at_ms: int, depth: int = DEPTH) -> Book:
    """The book after everything up to `at_ms`."""
    price, bought = series.last_price(at_ms)
    tick, lot = 10.0**series.price_digits, 10.0**series.lot_digits
    last = round(price * tick), bought
    bids, asks = (
        [(p / tick, q / lot) for p, q in ladder(series, at_ms, last, depth, is_bid=is_bid)]
        for is_bid in (True, False)
    )
    return Book(at_ms, bids, asks)


def changes(
    before: list[tuple[float, float]], after: list[tuple[float, float]]
) -> list[tuple[float, float]]:
    """Levels that differ, with their new amounts; 0 = gone."""
    old, new = dict(before), dict(after)
    gone = [(price, 0.0) for price in old if price not in new]
    return [level for level in after if old.get(level[0]) != level[1]] + gone
