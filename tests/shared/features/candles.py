"""Candles with everything that real ones have at times: gaps, missing cells, flat stretches,
minutes without trades, absurd prints."""

import numpy as np

COLUMNS = 9


def calm(rng, n):
    """(n, 9) rows of a random walk, decimal prices and volumes as an exchange prints them."""
    close = np.round(6e4 * np.exp(np.cumsum(rng.normal(0, 5e-4, n))), 2)
    high = np.round(close * (1 + rng.exponential(2e-4, n)), 2)
    low = np.round(close * (1 - rng.exponential(2e-4, n)), 2)
    volume = np.round(rng.lognormal(2, 1, n), 5)
    share = rng.uniform(0.2, 0.8, n)
    return np.column_stack(
        [
            close,
            high,
            low,
            close,
            volume,
            np.round(volume * close, 8),
            rng.integers(1, 900, n).astype(float),
            np.round(volume * share, 5),
            np.round(volume * close * share, 8),
        ]
    )


def wild(rng, n):
    """As calm, with faults at random places."""
    rows = calm(rng, n)

    def stretch(longest):
        start = int(rng.integers(0, n))
        return slice(start, start + int(rng.integers(1, longest)))

    flat = stretch(n // 3)
    rows[flat] = rows[flat.start]
    still = stretch(200)
    rows[still, :4] = rows[still.start, 3]
    rows[still, 4:] = 0.0
    rows[rng.random(rows.shape) < 0.001] = np.nan
    rows[stretch(300)] = np.nan
    for column in (3, 4, 7):
        rows[int(rng.integers(0, n)), column] = 1e12
    rows[int(rng.integers(0, n)), 4] = 1e-12
    return rows


def depth(rng, n):
    """(n, 11) order-book rows with gaps."""
    rows = np.round(rng.lognormal(0, 1, (n, 11)), 3)
    rows[rng.random(rows.shape) < 0.05] = np.nan
    start = int(rng.integers(0, n))
    rows[start : start + 60] = np.nan
    return rows
