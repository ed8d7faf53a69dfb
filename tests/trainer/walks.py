"""Made candles for the tests of labels."""

import numpy as np

from shared.klines import KLINE_COLUMNS, KlineTable

MINUTE = 60_000
HIGH, LOW, CLOSE = (KLINE_COLUMNS.index(name) for name in ("high", "low", "close"))


def table_of(values: np.ndarray) -> KlineTable:
    return KlineTable(
        symbol="X",
        interval="1m",
        open_time_ms=MINUTE * np.arange(len(values), dtype=np.int64),
        values=values,
    )


def walk(count: int, seed: int, gaps: list[tuple[int, int]] = ()) -> np.ndarray:  # type: ignore[assignment]
    random = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(random.normal(0, 0.004, count)))
    values = np.full((count, 9), 1.0)
    values[:, CLOSE] = close
    values[:, HIGH] = close * (1 + random.exponential(0.002, count))
    values[:, LOW] = close * (1 - random.exponential(0.002, count))
    for first, rows in gaps:
        values[first : first + rows] = np.nan
    return values


def coarse(count: int, seed: int, gaps: list[tuple[int, int]] = ()) -> np.ndarray:  # type: ignore[assignment]
    """Prices in whole numbers that move little: full of ties and flat stretches."""
    random = np.random.default_rng(seed)
    values = np.full((count, 9), 1.0)
    close = 1000.0 + np.cumsum(random.integers(-2, 3, count) * random.integers(0, 2, count))
    values[:, CLOSE] = close
    values[:, HIGH] = close + random.integers(0, 4, count)
    values[:, LOW] = close - random.integers(0, 4, count)
    for first, rows in gaps:
        values[first : first + rows] = np.nan
    return values
