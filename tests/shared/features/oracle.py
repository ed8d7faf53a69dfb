"""The definitions of the built-in features, one window at a time, in exact arithmetic.

Nothing here is shared with the kernel: sums of doubles are exact fractions, so that a difference of
nearly equal means is right to the last digit.
"""

import math
from fractions import Fraction
from functools import cache

import numpy as np

OPEN, HIGH, LOW, CLOSE, VOLUME, QUOTE_VOLUME, TRADES, TAKER_BASE, TAKER_QUOTE = range(9)
DEPTH = ["gap"] + [f"{side}_{bins}" for side in ("bids", "asks") for bins in (1, 2, 5, 10, 20)]


def value(name, rows, at):
    """The feature `name` of row `at`; rows: (n, 9) of its source, or (n, 11) for depth."""
    return Oracle(rows).value(name, at)


def agrees(expected, got, floor=0.0):
    """Whether a value is the expected one to 1e-9 relative, NaN included.

    floor: absolute difference that is let pass; 0 unless the data are made to be absurd.
    """
    if math.isnan(expected) or math.isnan(got):
        return math.isnan(expected) and math.isnan(got)
    return abs(expected - got) <= max(1e-9 * abs(expected), floor)


class Oracle:
    """The definitions on the rows of one source."""

    def __init__(self, rows):
        self._rows = np.asarray(rows, dtype=float)
        self.series = cache(self.series)
        self.mean = cache(self.mean)
        self.variance = cache(self.variance)
        self.vwap = cache(self.vwap)

    def value(self, name, at):
        base = 1440
        form, window = name.rsplit("_", 1)
        if form in DEPTH:
            base = 30
        elif form.startswith("f_"):
            form, base = form.removeprefix("f_"), 360
        w = int(window)
        if at + 1 < w:
            return math.nan
        if form == "close_area":
            return area(self.tail("close", w, at))
        if form == "close_trend":
            return slope(self.tail("close", w, at))
        if at + 1 < base:
            return math.nan
        if form == "close":
            return relative(self.vwap(w, at), self.vwap(base, at))
        if form == "close_std":
            return relative_root(self.variance("close", w, at), self.variance("close", base, at))
        return relative(self.mean(form, w, at), self.mean(form, base, at))

    def series(self, name):
        """(n,) float64 as the definitions read it, NaN = missing."""
        rows = self._rows
        with np.errstate(all="ignore"):
            if name in DEPTH:
                series = rows[:, DEPTH.index(name)]
            elif name == "span":
                series = rows[:, HIGH] - rows[:, LOW]
            elif name == "tb_base":
                series = rows[:, TAKER_BASE] / rows[:, VOLUME]
            elif name == "tb_quote":
                series = rows[:, TAKER_QUOTE] / rows[:, QUOTE_VOLUME]
            else:
                series = rows[:, {"close": CLOSE, "volume": VOLUME, "trades": TRADES}[name]]
        return np.where(np.isfinite(series), series, np.nan)

    def tail(self, name, w, at):
        return self.series(name)[at + 1 - w : at + 1]

    def mean(self, name, w, at):
        found = finite(self.tail(name, w, at))
        return sum(found) / len(found) if found else None

    def variance(self, name, w, at):
        found = finite(self.tail(name, w, at))
        if not found:
            return None
        return sum(x * x for x in found) / len(found) - (sum(found) / len(found)) ** 2

    def vwap(self, w, at):
        close, volume = self.tail("close", w, at), self.tail("volume", w, at)
        products = [
            Fraction(float(c)) * Fraction(float(v))
            for c, v in zip(close, volume, strict=True)
            if not (math.isnan(c) or math.isnan(v))
        ]
        weights = finite(volume)
        if not products or not sum(weights):
            return None
        return (sum(products) / len(products)) / (sum(weights) / len(weights))


def finite(values):
    return [Fraction(float(x)) for x in values if not math.isnan(x)]


def relative(x, base):
    if x is None or base is None or base == 0:
        return math.nan
    return float(100 * (x - base) / base)


def relative_root(x, base):
    """As relative, of the square roots."""
    if x is None or base is None or base == 0:
        return math.nan
    ratio = x / base - 1
    if abs(ratio) < Fraction(1, 2):  # no cancellation in sqrt(1 + ratio) - 1
        return 100 * float(ratio) / (1 + math.sqrt(1 + ratio))
    return 100 * (math.sqrt(x / base) - 1)


def area(close):
    if math.isnan(close[-1]):
        return math.nan
    deltas = [x - Fraction(float(close[-1])) for x in finite(close)]
    total = sum(abs(d) for d in deltas)
    return float(sum(deltas) / total) if total else math.nan


def slope(close):
    points = [(i, Fraction(float(x))) for i, x in enumerate(close) if not math.isnan(x)]
    n = len(points)
    if n < 2:
        return math.nan
    mean_i = Fraction(sum(i for i, _ in points), n)
    top = sum((i - mean_i) * x for i, x in points)
    return float(top / sum((i - mean_i) ** 2 for i, _ in points))
