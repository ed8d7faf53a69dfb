"""What an account's history says about a strategy, and how much of it may be luck.

Returns are daily (UTC), a year has 365 of them: crypto markets do not close.
"""

import itertools
import math
from dataclasses import asdict, dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

YEAR_DAYS = 365.0
MONTH_DAYS = 365.25 / 12
_EULER = 0.5772156649015329
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True, kw_only=True)
class Performance:
    """None where a figure is not defined (no trades, no losses, less than two days).

    total_return, cagr, max_drawdown, exposure, win_rate: fractions. sharpe, sortino: a year.
    exposure: share of candles at whose close a position was held. turnover: traded notional a year
    over the account's mean worth. trades: round trips; profit_factor: gains over losses of them.
    """

    total_return: float
    cagr: float | None
    sharpe: float | None
    sortino: float | None
    max_drawdown: float
    trades: int
    trades_per_month: float | None
    win_rate: float | None
    profit_factor: float | None
    exposure: float
    turnover: float | None
    fees: float

    def as_dict(self) -> dict[str, float | int | None]:
        return asdict(self)


def measure(
    equity: Floats,
    day_ends: npt.NDArray[np.int64],
    capital: float,
    days: float,
    profits: Floats,
    held: int,
    traded: float,
    fees: float,
) -> Performance:
    """equity: (n,) worth at each close. day_ends: last row of each UTC day. days: length in days.

    profits: of each round trip, fees off. held: closes with a position. traded: notional.
    """
    daily = daily_returns(equity[day_ends], capital)
    return Performance(
        total_return=float(equity[-1] / capital - 1),
        cagr=known(cagr(float(equity[-1] / capital), days)),
        sharpe=known(float(sharpe(daily))),
        sortino=known(float(sortino(daily))),
        max_drawdown=max_drawdown(equity, capital),
        trades=len(profits),
        trades_per_month=len(profits) / days * MONTH_DAYS if days > 0 else None,
        win_rate=float(np.mean(profits > 0)) if len(profits) else None,
        profit_factor=known(profit_factor(profits)),
        exposure=held / len(equity),
        turnover=traded / float(equity.mean()) / days * YEAR_DAYS if days > 0 else None,
        fees=fees,
    )


def known(value: float) -> float | None:
    """None in place of NaN and infinity."""
    return value if math.isfinite(value) else None


def daily_returns(worth: Floats, capital: float) -> Floats:
    """(..., days) returns from the worth at each day's end; the first day's begins with `capital`.

    An account that is empty stays so: 0.
    """
    before = np.concatenate([np.full((*worth.shape[:-1], 1), capital), worth[..., :-1]], axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(before > 0, worth / before - 1, 0.0)


def cagr(growth: float, days: float) -> float:
    """Growth factor a year less 1; NaN without time."""
    return growth ** (YEAR_DAYS / days) - 1 if days > 0 else math.nan


def sharpe(returns: Floats) -> Floats:
    """Mean over sample deviation along the last axis, times sqrt(365); NaN where it is 0."""
    return _ratio(returns.mean(axis=-1), _deviation(returns))


def sortino(returns: Floats) -> Floats:
    """Mean over the root mean square of the losses (of all days, gains as 0), times sqrt(365)."""
    losses = np.minimum(returns, 0)
    return _ratio(returns.mean(axis=-1), np.sqrt(np.mean(losses * losses, axis=-1)))


def _ratio(mean: Floats, risk: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(risk > 0, mean / risk * math.sqrt(YEAR_DAYS), np.nan)


def _deviation(returns: Floats) -> Floats:
    """Sample deviation; 0 where all returns are equal, whatever rounding leaves."""
    if returns.shape[-1] < 2:
        return np.zeros(returns.shape[:-1])
    flat = np.ptp(returns, axis=-1) == 0
    return np.where(flat, 0.0, returns.std(axis=-1, ddof=1))


def max_drawdown(equity: Floats, capital: float) -> float:
    """Deepest fall below the highest worth so far, as a share of that; `capital` counts as one."""
    return float(np.max(1 - equity / np.maximum(np.maximum.accumulate(equity), capital)))


def profit_factor(profits: Floats) -> float:
    """Gains over losses; infinite without losses, NaN without either."""
    gained, lost = float(profits[profits > 0].sum()), float(-profits[profits <= 0].sum())
    if lost > 0:
        return gained / lost
    return math.inf if gained > 0 else math.nan


# --- luck ----------------------------------------------------------------------------------------


def expected_best(variance: float, trials: int) -> float:
    """Sharpe that the best of `trials` strategies without skill shows on average.

    variance: of the trials' Sharpe ratios (same unit as the result, squared). Bailey and Lopez de
    Prado, "The Deflated Sharpe Ratio" (2014), equation 1: the expected maximum of normal draws.
    """
    if trials < 2:
        return 0.0
    first = _NORMAL.inv_cdf(1 - 1 / trials)
    second = _NORMAL.inv_cdf(1 - 1 / (trials * math.e))
    return math.sqrt(variance) * ((1 - _EULER) * first + _EULER * second)


def deflated_sharpe(
    sharpe: float, hurdle: float, observations: int, skew: float, kurtosis: float
) -> float:
    """Probability that the true Sharpe ratio is above 0, the search for the best allowed for.

    sharpe, hurdle: per observation, not a year; hurdle: `expected_best`. kurtosis: 3 for a normal.
    The same paper, equation 2.
    """
    spread = 1 - skew * sharpe + (kurtosis - 1) / 4 * sharpe * sharpe
    if observations < 2 or spread <= 0:
        return math.nan
    return _NORMAL.cdf((sharpe - hurdle) * math.sqrt(observations - 1) / math.sqrt(spread))


def shape(returns: Floats) -> tuple[float, float]:
    """Skewness and kurtosis (3 for a normal) of (n,) returns, population moments."""
    centred = returns - returns.mean()
    variance = float(np.mean(centred**2))
    if variance == 0:
        return 0.0, 3.0
    return float(np.mean(centred**3)) / variance**1.5, float(np.mean(centred**4)) / variance**2


def overfitting(returns: Floats, blocks: int) -> float:
    """Probability that the best of many strategies is worse than their median out of sample (PBO).

    returns: (strategies, days). Combinatorially symmetric cross-validation: the days are cut into
    `blocks` equal parts (what is left over at the start is not used), every half of the parts is
    once in sample. The strategy with the best Sharpe there has rank r of n among the Sharpe ratios
    on the other half; r / (n + 1) at or below one half counts. Bailey, Borwein, Lopez de Prado and
    Zhu, "The Probability of Backtest Overfitting" (2017). NaN with fewer than two strategies or
    two days a block.
    """
    strategies, days = returns.shape
    size = days // blocks
    if strategies < 2 or size < 2:
        return math.nan
    parts = returns[:, days - size * blocks :].reshape(strategies, blocks, size)
    sums, squares = parts.sum(axis=2), (parts * parts).sum(axis=2)
    count = size * blocks // 2
    over = 0
    halves = list(itertools.combinations(range(blocks), blocks // 2))
    for half in halves:
        inside = list(half)
        outside = [part for part in range(blocks) if part not in half]
        best = int(np.argmax(_sharpe_of_sums(sums, squares, inside, count)))
        there = _sharpe_of_sums(sums, squares, outside, count)
        below, equal = np.sum(there < there[best]), np.sum(there == there[best])
        rank = float(below) + (float(equal) + 1) / 2
        over += rank / (strategies + 1) <= 0.5
    return over / len(halves)


def _sharpe_of_sums(sums: Floats, squares: Floats, parts: list[int], count: int) -> Floats:
    """Sharpe ratio of each strategy over some parts, not a year; 0 where nothing varies."""
    total, square = sums[:, parts].sum(axis=1), squares[:, parts].sum(axis=1)
    mean = total / count
    variance = (square - total * mean) / (count - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(variance > 1e-30, mean / np.sqrt(np.maximum(variance, 0)), 0.0)
