"""The definitions of the built-in features, one window at a time, in exact or very long arithmetic.

Nothing here is shared with the kernel: sums of doubles are exact fractions, so that a difference of
nearly equal means is right to the last digit.
"""

import math
from fractions import Fraction

import numpy as np

OPEN, HIGH, LOW, CLOSE, VOLUME, QUOTE_VOLUME, TRADES, TAKER_BASE, TAKER_QUOTE = range(9)
BASES = {"kline": 1440, "f_": 360, "depth": 30}


def _series(rows, name):
    """(n,) float64 as the definitions read it, NaN = missing."""
    with np.errstate(all="ignore"):
        series = {
            "close": lambda: rows[:, CLOSE],
            "volume": lambda: rows[:, VOLUME],
            "span": lambda: rows[:, HIGH] - rows[:, LOW],
            "trades": lambda: rows[:, TRADES],
            "tb_base": lambda: rows[:, TAKER_BASE] / rows[:, VOLUME],
            "tb_quote": lambda: rows[:, TAKER_QUOTE] / rows[:, QUOTE_VOLUME],
        }[name]().copy()
    series[~np.isfinite(series)] = np.nan
    return series


def _finite(values):
    return [Fraction(float(x)) for x in values if not math.isnan(x)]


def _mean(values):
    found = _finite(values)
    return sum(found) / len(found) if found else None


def _variance(values):
    found = _finite(values)
    if not found:
        return None
    mean = sum(found) / len(found)
    return sum((x - mean) ** 2 for x in found) / len(found)


def _vwap(close, volume):
    products = [
        Fraction(float(c)) * Fraction(float(v))
        for c, v in zip(close, volume, strict=True)
        if not (math.isnan(c) or math.isnan(v))
    ]
    weights = _finite(volume)
    if not products or not weights or not sum(weights):
        return None
    return (sum(products) / len(products)) / (sum(weights) / len(weights))


def _relative(x, base):
    if x is None or base is None or base == 0:
        return math.nan
    return float(100 * (x - base) / base)


def _relative_root(x, base):
    """As _relative, of the square roots."""
    if x is None or base is None or base == 0:
        return math.nan
    ratio = x / base - 1
    if abs(ratio) < Fraction(1, 2):  # no cancellation in sqrt(1 + ratio) - 1
        return 100 * float(ratio) / (1 + math.sqrt(1 + ratio))
    return 100 * (math.sqrt(x / base) - 1)


def _area(close):
    if math.isnan(close[-1]):
        return math.nan
    deltas = [x - Fraction(float(close[-1])) for x in _finite(close)]
    total = sum(abs(d) for d in deltas)
    return float(sum(deltas) / total) if total else math.nan


def _slope(close):
    points = [(i, Fraction(float(x))) for i, x in enumerate(close) if not math.isnan(x)]
    n = len(points)
    if n < 2:
        return math.nan
    mean_i = Fraction(sum(i for i, _ in points), n)
    mean_x = sum(x for _, x in points) / n
    top = sum((i - mean_i) * (x - mean_x) for i, x in points)
    return float(top / sum((i - mean_i) ** 2 for i, _ in points))


def value(name, rows, at):
    """The feature `name` of row `at`; rows: (n, 9) of its source, or (n, 11) for depth."""
    prefix, base = "", BASES["kline"]
    if name.startswith("f_"):
        prefix, base = "f_", BASES["f_"]
    form, window = name.removeprefix(prefix).rsplit("_", 1)
    w = int(window)

    def tail(series, count):
        return series[at + 1 - count : at + 1]

    if at + 1 < w:
        return math.nan
    if form == "close_area":
        return _area(tail(_series(rows, "close"), w))
    if form == "close_trend":
        return _slope(tail(_series(rows, "close"), w))
    depth = ["gap"] + [f"{side}_{bins}" for side in ("bids", "asks") for bins in (1, 2, 5, 10, 20)]
    if form in depth:
        base = BASES["depth"]
    if at + 1 < base:
        return math.nan
    if form == "close":
        close, volume = _series(rows, "close"), _series(rows, "volume")
        return _relative(
            _vwap(tail(close, w), tail(volume, w)), _vwap(tail(close, base), tail(volume, base))
        )
    if form == "close_std":
        close = _series(rows, "close")
        return _relative_root(_variance(tail(close, w)), _variance(tail(close, base)))
    series = rows[:, depth.index(form)] if form in depth else _series(rows, form)
    return _relative(_mean(tail(series, w)), _mean(tail(series, base)))
