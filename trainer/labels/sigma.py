"""Trailing volatility, in which the volatility-scaled labels measure."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

SIGMA_ROWS = 720
_BLOCK_ROWS = 8_192  # at a time: what is made of so many rows stays in the CPU's cache


@dataclass(frozen=True, slots=True)
class _Spread:
    """Of runs of rows, one run starting at each row: how many numbers, their mean, and the sum of
    their squared distances from it."""

    count: Floats
    mean: Floats
    squares: Floats

    def followed_by(self, other: "_Spread", rows: int) -> "_Spread":
        """Each run of `rows` rows, and the other's run that begins after it, as one.

        The pairwise merge of Chan, Golub and LeVeque (1979): no difference of large sums.
        """
        size = len(other.count) - rows
        count_a, mean_a = self.count[:size], self.mean[:size]
        count_b, mean_b = other.count[rows:], other.mean[rows:]
        count, apart = count_a + count_b, mean_b - mean_a
        share = count_b / np.maximum(count, 1)
        return _Spread(
            count=count,
            mean=mean_a + apart * share,
            squares=self.squares[:size] + other.squares[rows:] + apart**2 * count_a * share,
        )


def trailing_sigma(close: Floats, window: int = SIGMA_ROWS) -> Floats:
    """Population standard deviation of the log returns of the last `window` rows, at each row.

    close: (n,), NaN in gaps. Result: (n,), NaN where the module's docstring says so. Runs of 1, 2,
    4, ... rows are merged into those of `window`: a row's value depends on nothing but the
    window + 1 closes up to it, bit for bit, and each row costs about 2 log2(window) merges.
    """
    sigma = np.full(len(close), np.nan)
    for start in range(window, len(close), _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, len(close))
        sigma[start:stop] = _sigma(close[start - window : stop], window)
    return sigma


def _sigma(close: Floats, window: int) -> Floats:
    """Of all rows that have `window` rows before them."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        returns = np.log(close[1:] / close[:-1])
    is_known = np.isfinite(returns)
    run = _Spread(
        count=is_known.astype(np.float64),
        mean=np.where(is_known, returns, 0.0),
        squares=np.zeros(len(returns)),
    )
    whole, rows, size = None, 0, 1
    while True:
        if window & size:
            whole = run if whole is None else whole.followed_by(run, rows)
            rows += size
            if rows == window:
                break
        run = run.followed_by(run, size)
        size *= 2
    enough = whole.count >= 2
    sigma = np.full(len(whole.count), np.nan)
    sigma[enough] = np.sqrt(whole.squares[enough] / whole.count[enough])
    return sigma
