"""An order book folded into the eleven numbers of a depth row.

As the seed did it (predecessor.md 8.6): gap = best ask - best bid; the volumes of a side are put
into price bins from the best price outwards, where each level's volume acts as a step function that
holds until the next level; `bids_L` and `asks_L` are the means of the first L bins. Other than
there, a bin is `bin_share` of the best price wide, not 1 USDT, so that one setting suits a coin of
60,000 and one of 0.1.
"""

from collections.abc import Sequence

import numpy as np

from shared.binance import Book

BINS = (1, 2, 5, 10, 20)


def depth_values(book: Book, bin_share: float) -> bytes:
    """(11,) little-endian float64 in DEPTH_COLUMNS order; an empty side is NaN."""
    gap = float("nan")
    if book.bids and book.asks:
        gap = max(0.0, book.asks[0][0] - book.bids[0][0])
    values = [gap, *_side(book.bids, -1.0, bin_share), *_side(book.asks, 1.0, bin_share)]
    return np.array(values, dtype="<f8").tobytes()


def _side(levels: Sequence[tuple[float, float]], direction: float, bin_share: float) -> list[float]:
    """Mean volume of the first 1, 2, 5, 10 and 20 bins."""
    if not levels:
        return [float("nan")] * len(BINS)
    best = levels[0][0]
    width = best * bin_share
    count = BINS[-1]
    # Distances from the best price in bins; the last level holds to the end of its bin.
    starts = [direction * (price - best) / width for price, _ in levels]
    ends = [*starts[1:], float(int(starts[-1]) + 1)]
    bins = [0.0] * count
    for (_, volume), start, end in zip(levels, starts, ends, strict=True):
        first = int(start)
        for index in range(first, min(count, int(end) + 1)):
            covered = min(end, index + 1.0) - max(start, float(index))
            if covered > 0:
                bins[index] += volume * covered
    return [sum(bins[:n]) / n for n in BINS]
