"""The depth row: gap, and mean volumes of price bins from the best price outwards."""

import math
from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from collector.book import BINS, depth_values
from shared.binance import Book
from shared.klines import DEPTH_COLUMNS


def row(book: Book, share: float) -> dict[str, float]:
    values = np.frombuffer(depth_values(book, share), dtype="<f8")
    return dict(zip(DEPTH_COLUMNS, values.tolist(), strict=True))


def test_levels_hold_until_the_next_one_and_the_last_to_the_end_of_its_bin() -> None:
    # Bins of 1: 100 -> [100, 101), ...; 4 until 100.5, then 2 until 102.25, then 8 to 103.
    asks = ((100.0, 4.0), (100.5, 2.0), (102.25, 8.0))
    found = row(Book(last_update_id=1, bids=((99.0, 1.0),), asks=asks), 0.01)
    bins = [4 * 0.5 + 2 * 0.5, 2.0, 2 * 0.25 + 8 * 0.75, 0.0, 0.0]
    assert found["gap"] == 1.0
    assert found["asks_1"] == bins[0]
    assert found["asks_2"] == (bins[0] + bins[1]) / 2
    assert found["asks_5"] == sum(bins) / 5
    assert found["asks_20"] == sum(bins) / 20


def test_an_empty_side_has_no_numbers() -> None:
    found = row(Book(last_update_id=1, bids=(), asks=((1.0, 1.0),)), 0.01)
    assert math.isnan(found["gap"])
    assert all(math.isnan(found[f"bids_{n}"]) for n in BINS)
    assert found["asks_1"] == 1.0


@given(
    steps=st.lists(st.integers(1, 400), min_size=0, max_size=30),
    volumes=st.lists(st.integers(0, 50), min_size=31, max_size=31),
)
def test_bins_hold_the_exact_integral_of_the_step_function(
    steps: list[int], volumes: list[int]
) -> None:
    """Independent: exact rational integration. Prices in 1/128ths, so that doubles are exact."""
    prices = [Fraction(64)]
    for step in steps:
        prices.append(prices[-1] + Fraction(step, 128))
    levels = list(zip(prices, volumes, strict=False))
    book = Book(
        last_update_id=1,
        bids=tuple((128.0 - float(p), float(v)) for p, v in levels if p < 127),
        asks=tuple((float(p), float(v)) for p, v in levels),
    )
    found = row(book, 1 / 64)  # bins of exactly 1 on both sides

    def integral(levels: list[tuple[Fraction, int]], low: Fraction, high: Fraction) -> Fraction:
        total = Fraction(0)
        last_end = 64 + Fraction(int(levels[-1][0] - 64) + 1)
        for index, (price, volume) in enumerate(levels):
            end = levels[index + 1][0] if index + 1 < len(levels) else last_end
            total += volume * max(Fraction(0), min(high, end) - max(low, price))
        return total

    for side, part in (("asks", levels), ("bids", [(p, v) for p, v in levels if p < 127])):
        for count in BINS:
            exact = integral(part, Fraction(64), Fraction(64 + count)) / count
            assert math.isclose(found[f"{side}_{count}"], float(exact), rel_tol=1e-12)
