"""The definitions of the features in the TA manner, one window at a time.

Plain loops over exact fractions, or over 80-bit floats where a weight or a root is not rational;
pandas and scipy where they have the statistic. Nothing is shared with the kernel but the names.
"""

import math
import re
from datetime import UTC, datetime
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pandas as pd
from scipy import stats

COLUMNS = (
    "open high low close volume quote_volume trades taker_base taker_quote".split()  # noqa: SIM905
)
NAME = re.compile(
    r"(?P<prefix>[fo]_)?(?:(?P<column>[a-z_]+)_)??(?P<function>[A-Z]+(?:_SLOPE)?|lsbm|fmax)"
    r"(?P<percent>\d+)?(?P<windows>(?:_\d+)+)(?P<endings>.*)"
)
Long = np.longdouble


def value(name, at, kline, futur=None, other=None, step_ms=60_000, first=0):
    """The feature `name` of row `at`; sources are (n, 9)."""
    if name.startswith(("time_of_day", "day_of_week")):
        return calendar(name, (first + at) * step_ms)
    match = NAME.fullmatch(name)
    rows = {"f_": futur, "o_": other, None: kline}[match["prefix"]]
    windows = [int(w) for w in match["windows"][1:].split("_")]

    def plain(of):
        found = window_value(
            match["function"], match["column"] or "close", of, at, rows, other, match["percent"]
        )
        return math.nan if found is None else found

    x = plain(windows)
    ending = re.fullmatch(r"(?:_(rel|diff|reldiff)((?:_\d+)+))?(_pct)?(_log)?", match["endings"])
    if ending[1]:
        of = [int(w) for w in ending[2][1:].split("_")]
        if len(of) < len(windows):
            of = [int(Fraction(of[0], windows[0]) * w) for w in windows]
        base = plain(of)
        if not (math.isfinite(x) and math.isfinite(base)):
            return math.nan
        if ending[1] != "diff" and base == 0:
            return math.nan
        x, base = Fraction(x), Fraction(base)
        x = {"rel": lambda: x / base, "diff": lambda: x - base}.get(
            ending[1], lambda: (x - base) / base
        )()
    if ending[3]:
        x = 100 * x
    if ending[4]:
        if not x > 0:
            return math.nan
        return math.log1p(x - 1) if abs(x - 1) < 0.1 else math.log(x)
    return float(x)


def window_value(function, column, windows, at, rows, other, percent):
    """None or NaN: no value. Fractions are returned exactly."""
    w = windows[0]

    def series(source, name, count):
        """The last `count` cells, None where missing; None if they are not all inside."""
        if at + 1 < count:
            return None
        cells = source[at + 1 - count : at + 1, COLUMNS.index(name)]
        return [Fraction(float(x)) if math.isfinite(x) else None for x in cells]

    def steps(source, name, count, make):
        """make(now, before) of `count` neighbours."""
        cells = series(source, name, count + 1)
        if cells is None:
            return None
        return [None if a is None or b is None else make(b, a) for a, b in pairwise(cells)]

    def finite(cells):
        return [x for x in cells if x is not None]

    def relative_step(now, before):
        return (now - before) / before if before else None

    if function in ("SMA", "WMA", "STDDEV", "SKEW", "KURTOSIS", "QUANTILE", "RANK", "BBPOS"):
        cells = series(rows, column, w)
        if cells is None or not finite(cells):
            return None
        found = finite(cells)
        mean = sum(found) / len(found)
        variance = sum((x - mean) ** 2 for x in found) / len(found)
        if function == "SMA":
            return mean
        if function == "WMA":
            pairs = [(k + 1, x) for k, x in enumerate(cells) if x is not None]
            return sum(k * x for k, x in pairs) / sum(k for k, _ in pairs)
        if function == "STDDEV":
            return root(variance)
        if function == "QUANTILE":
            return float(np.percentile([float(x) for x in found], int(percent)))
        if function in ("RANK", "BBPOS") and cells[-1] is None:
            return None
        if function == "RANK":
            return float(pd.Series([float(x) for x in found]).rank(pct=True).iloc[-1])
        if variance == 0:
            return None
        if function == "BBPOS":
            return float(Fraction(1, 2) + (cells[-1] - mean) / (4 * Fraction(root(variance))))
        centred = np.array([float(x - mean) for x in found])
        return float((stats.skew if function == "SKEW" else stats.kurtosis)(centred))
    if function == "EMA":
        cells = series(rows, column, 1 if w == 1 else 12 * w)
        return None if cells is None else smooth(cells, Fraction(w - 1, w + 1))
    if function == "LINEARREG_SLOPE":
        cells = series(rows, column, w)
        points = [(i, x) for i, x in enumerate(cells or []) if x is not None]
        if len(points) < 2:
            return None
        mean = Fraction(sum(i for i, _ in points), len(points))
        top = sum((i - mean) * x for i, x in points)
        return top / sum((i - mean) ** 2 for i, _ in points)
    if function == "RSI":
        moves = steps(rows, column, 24 * w, lambda now, before: now - before)
        if moves is None:
            return None
        decay = Fraction(w - 1, w)
        up = smooth([None if x is None else max(x, Fraction(0)) for x in moves], decay)
        all_ = smooth([None if x is None else abs(x) for x in moves], decay)
        return None if all_ is None or all_ == 0 else float(100 * up / all_)
    if function == "ATR":
        count = 1 if w == 1 else 24 * w
        high, low = series(rows, "high", count + 1), series(rows, "low", count + 1)
        close = series(rows, "close", count + 1)
        if close is None:
            return None
        ranges = [
            None
            if None in (high[i], low[i], close[i - 1])
            else max(high[i], close[i - 1]) - min(low[i], close[i - 1])
            for i in range(1, count + 1)
        ]
        return smooth(ranges, Fraction(w - 1, w))
    if function == "ROC":
        cells = series(rows, column, w + 1)
        if cells is None or cells[0] is None or cells[-1] is None or cells[0] == 0:
            return None
        return 100 * (cells[-1] / cells[0] - 1)
    if function.startswith("MACD"):
        return macd(function, windows, at, rows[:, COLUMNS.index(column)])
    if function in ("STOCHK", "STOCHD"):
        d = windows[1] if function == "STOCHD" else 1
        if at + 1 < w + d - 1:
            return None
        found = []
        for end in range(at - d + 1, at + 1):
            part = rows[end + 1 - w : end + 1]
            high = [x for x in part[:, 1] if math.isfinite(x)]
            low = [x for x in part[:, 2] if math.isfinite(x)]
            close = part[-1, 3]
            if high and low and math.isfinite(close) and max(high) != min(low):
                top, bottom = Fraction(max(high)), Fraction(min(low))
                found.append(100 * (Fraction(close) - bottom) / (top - bottom))
        return sum(found) / len(found) if found else None
    if function == "OBV":
        sign = steps(rows, "close", w, lambda now, before: (now > before) - (now < before))
        if sign is None:
            return None
        volume = series(rows, "volume", w)
        pairs = [
            (s, v) for s, v in zip(sign, volume, strict=True) if s is not None and v is not None
        ]
        total = sum(v for _, v in pairs)
        return Fraction(sum(s * v for s, v in pairs)) / total if total else None
    if function == "VWAPDIST":
        close, volume = series(rows, "close", w), series(rows, "volume", w)
        if close is None or close[-1] is None:
            return None
        pairs = [
            (c, v) for c, v in zip(close, volume, strict=True) if c is not None and v is not None
        ]
        total = sum(v for _, v in pairs)
        if not total:
            return None
        vwap = sum(c * v for c, v in pairs) / total
        return 100 * (close[-1] - vwap) / vwap if vwap else None
    if function in ("lsbm", "fmax"):
        cells = series(rows, column, w)
        if cells is None or not finite(cells):
            return None
        found = finite(cells)
        if function == "fmax":
            return found.index(max(found)) / len(found)
        mean, longest, run = sum(found) / len(found), 0, 0
        for x in found:
            run = run + 1 if x < mean else 0
            longest = max(longest, run)
        return longest
    if function == "RVOL":
        ratios = steps(rows, column, w, lambda a, b: a / b if a > 0 and b > 0 else None)
        if ratios is None or not finite(ratios):
            return None
        logs = [math.log1p(r - 1) if abs(r - 1) < 0.1 else math.log(r) for r in finite(ratios)]
        return math.sqrt(w * math.fsum(x * x for x in logs) / len(logs))
    if function in ("CORREL", "RCORREL", "BETA"):
        if function == "CORREL":
            y, z = series(rows, column, w), series(other, column, w)
        else:
            y = steps(rows, column, w, relative_step)
            z = steps(other, column, w, relative_step)
        if y is None:
            return None
        pairs = [(a, b) for a, b in zip(y, z, strict=True) if a is not None and b is not None]
        n = len(pairs)
        if n < 2:
            return None
        mean_y, mean_z = sum(a for a, _ in pairs) / n, sum(b for _, b in pairs) / n
        yy = sum((a - mean_y) ** 2 for a, _ in pairs)
        zz = sum((b - mean_z) ** 2 for _, b in pairs)
        yz = sum((a - mean_y) * (b - mean_z) for a, b in pairs)
        if function == "BETA":
            return yz / zz if zz else None
        return float(Fraction(yz) / (Fraction(root(yy)) * Fraction(root(zz)))) if yy * zz else None
    raise AssertionError(function)


def root(x):
    """Square root of a fraction, to the last digits of a double also where it is tiny."""
    return float(np.sqrt(Long(float(x))))


def smooth(cells, decay):
    """Mean of the cells with weights decay ** age, exact: integers over a common denominator."""
    top, total = Fraction(0), Fraction(0)
    p, q = decay.numerator, decay.denominator
    count = len(cells)
    for k, x in enumerate(cells):
        if x is not None:
            weight = p ** (count - 1 - k) * q**k
            top += x * weight
            total += weight
    return top / total if total else None


def macd(function, windows, at, column):
    fast, slow, *rest = windows
    signal = rest[0] if rest else 0
    rows = 12 * slow
    later = 12 * signal - 1 if signal else 0
    if at + 1 < rows + later:
        return None
    x = column[at + 1 - rows - later : at + 1].astype(Long)
    known = np.isfinite(x)
    x = np.where(known, x, 0)

    def ema(values, known, w):
        weights = (1 - Long(2) / (w + 1)) ** np.arange(len(values) - 1, -1, -1)
        total = np.sum(weights[known])
        return np.sum(weights[known] * values[known]) / total if known.any() else Long(math.nan)

    lines = []
    for end in range(rows, rows + later + 1):
        part, here = x[:end], known[:end]
        lines.append(ema(part, here, fast) - ema(part, here, slow))
    line = lines[-1]
    if function == "MACD":
        return float(line)
    lines = np.array(lines)
    smoothed = ema(lines, np.isfinite(lines), signal)
    return float(smoothed if function == "MACDSIGNAL" else line - smoothed)


def calendar(name, time_ms):
    at = datetime.fromtimestamp(time_ms / 1000, UTC)
    day = (at.hour * 3600 + at.minute * 60 + at.second) / 86400
    share = day if name.startswith("time_of_day") else at.weekday() / 7
    if name.endswith("_sin"):
        return math.sin(2 * math.pi * share)
    if name.endswith("_cos"):
        return math.cos(2 * math.pi * share)
    return day if name == "time_of_day" else float(at.weekday())
