# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Numba infers the types of what it compiles.
# ruff: noqa: PLR0124  x != x is the test for NaN that LLVM vectorises best
"""The feature kernel: `advance` takes rows of one source and writes features; live gives it one
row, batch gives it all of them, and it is the same machine code.

Why the bits do not depend on where a computation started or on how many rows a call brings:
- Window sums are two stacks (van Herk): with the anchor `a`, the newest row whose absolute index is
  a multiple of the window `w`, the sum of a window is `suffix (its rows before a) + head (its rows
  from a on)`. Both are added up outwards from `a`, only ever over rows of this very window: nothing
  is subtracted, so nothing drifts, and an outlier is gone when it leaves the window.
- Sums whose difference matters (prices) are centred on the anchor row, a row of the window.
- No fastmath: LLVM may vectorise over rows, but not reorder the additions of one row.
- Where a result is a small difference of large terms (flat markets, a mean next to its base), it is
  computed again from the window's rows in twice the precision (`_careful_*`).

All compiled functions live in this one file, because Numba's cache is keyed by file: a helper
elsewhere could change without the cached kernel noticing.

An image for live services has no Numba, and no compiler: `advance` comes from an extension module
that the same Numba made of this file while the image was built, with the same bits (`ahead.py`).
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from shared.features.ahead import ahead, is_there

# Numba loads SciPy where it is installed, for its BLAS; the kernel has no use for it, and a live
# service would pay for it with half a second and 30 MB.
_hidden = "scipy" not in sys.modules
if _hidden:
    sys.modules["scipy"] = None  # type: ignore[assignment]  # how Python says "not to be found"
numba: Any = None
try:
    import numba.np.arraymath
except ImportError:
    if not is_there():
        raise
finally:
    if _hidden:
        del sys.modules["scipy"]

# How a series is derived from the columns of a source; a cell that is not finite is missing (NaN).
COPY, DIFFERENCE, RATIO, PRODUCT = range(4)

# What is computed over a window.
MEAN, MOMENTS, VWAP, AREA = range(4)
SUMS = {MEAN: 1, MOMENTS: 3, VWAP: 2, AREA: 0}  # doubles that its stacks keep for each row
RESULTS = {MEAN: 1, MOMENTS: 3, VWAP: 3, AREA: 1}  # per row, the third is scratch
# MOMENTS gives standard deviation and slope, VWAP the two parts (rest, middle) of its sum.

# What becomes of a result: it is the feature, or the feature is 100 * (x - base) / base.
PLAIN, RELATIVE = range(2)

# The table of `advance`: a head row, then a row per series, per slot and per output, of these:
ROW = 8
FILL, INDEX, FIRST, KEEP, N_SERIES, N_SLOTS, N_OUTPUTS, N_RESULTS = range(ROW)
RECIPE, LEFT, RIGHT = range(3)
KIND, SERIES, SERIES_B, SERIES_C, WINDOW, STACK, RESULT, PHASE = range(ROW)
COLUMN, FORM, SLOT, PART, BASE = range(5)
HEAD = 5  # doubles behind the stack of a slot: sums since the anchor (3), the two centres

ZERO = 1e-35
"""LightGBM treats |x| <= 1e-35 as zero, an ONNX graph does not: such values become 0 here."""

CLOSE_CALL = 1e-5
"""A difference smaller than this part of its terms is computed again in twice the precision."""

FLAT = 1e-7
"""The same for two mean prices, beside the price itself."""

NOISE = 1e-26
VARIANCE_NOISE = 1e-18
"""A difference smaller than this part of its terms is zero, as far as even that can tell."""

BLOCK = 32  # rows that `_area` works on side by side: enough to fill vector registers
GROUP = 6  # differences that `_area` adds up before it adds them to the sum of the window


_at = np.uintp  # as an index: Numba then does not ask whether it is negative, and LLVM vectorises


def _part(function: Callable[..., Any]) -> Any:
    """Parts are called by `advance` only: without entry points of their own they compile faster."""
    if numba is None:
        return function
    return numba.njit(
        nogil=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True
    )(function)


def cached(function: Callable[..., Any]) -> Any:
    """Compiles at the first call, and keeps the result on disk for later processes if it can."""
    if numba is None:
        return ahead(function)
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # no writable place for the cache: compile in every process instead
        return numba.njit(nogil=True, error_model="numpy")(function)


@_part
def _two_sum(a, b):
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


@_part
def _two_product(a, b):
    # Dekker: exact without a fused multiply-add, which not every CPU has.
    p = a * b
    t = 134217729.0 * a
    a1 = t - (t - a)
    a2 = a - a1
    t = 134217729.0 * b
    b1 = t - (t - b)
    b2 = b - b1
    return p, ((a1 * b1 - p) + a1 * b2 + a2 * b1) + a2 * b2


@_part
def _add(x, y):
    s, e = _two_sum(x[0], y[0])
    return _two_sum(s, e + (x[1] + y[1]))


@_part
def _multiply(x, y):
    p, e = _two_product(x[0], y[0])
    return _two_sum(p, e + (x[0] * y[1] + x[1] * y[0]))


# Sums below are pairs (sum, its rounding errors): Ogita, Rump and Oishi's Sum2 and Dot2.


@_part
def _careful_mean(y, p, w):
    """(numerator, denominator) of the mean of y[p - w + 1 .. p], each a pair of doubles."""
    s = e = n = 0.0
    for x in y[p + 1 - w : p + 1]:
        if x == x:
            s, lost = _two_sum(s, x)
            e += lost
            n += 1.0
    return _two_sum(s, e), (n, 0.0)


@_part
def _careful_variance(y, p, w):
    s = e = s2 = e2 = n = 0.0
    for x in y[p + 1 - w : p + 1]:
        if x == x:
            s, lost = _two_sum(s, x)
            e += lost
            square, below = _two_product(x, x)
            s2, lost = _two_sum(s2, square)
            e2 += lost + below
            n += 1.0
    total = _two_sum(s, e)
    square = _multiply(total, total)
    squares = _multiply(_two_sum(s2, e2), (n, 0.0))
    return _add(squares, (-square[0], -square[1])), _two_product(n, n)


@_part
def _careful_vwap(close, volume, p, w):
    s = e = v = ev = n = n_v = 0.0
    for i in range(p + 1 - w, p + 1):
        if volume[i] == volume[i]:
            v, lost = _two_sum(v, volume[i])
            ev += lost
            n_v += 1.0
            if close[i] == close[i]:
                product, below = _two_product(close[i], volume[i])
                s, lost = _two_sum(s, product)
                e += lost + below
                n += 1.0
    return _multiply(_two_sum(s, e), (n_v, 0.0)), _multiply(_two_sum(v, ev), (n, 0.0))


@_part
def _careful_slope(y, p, w):
    """Slope of the least-squares line through the finite points; NaN with fewer than two."""
    n = k1 = k2 = 0
    s = e = t = et = 0.0
    for k in range(w):
        x = y[p + 1 - w + k]
        if x == x:
            n += 1
            k1 += k
            k2 += k * k
            s, lost = _two_sum(s, x)
            e += lost
            product, below = _two_product(x, float(k))
            t, lost = _two_sum(t, product)
            et += lost + below
    if n < 2:
        return np.nan
    top = _multiply(_two_sum(t, et), (float(n), 0.0))
    less = _multiply(_two_sum(s, e), (float(-k1), 0.0))
    rise = _add(top, less)[0]
    if abs(rise) < NOISE * abs(less[0]):
        return 0.0
    return rise / (float(n) * float(k2) - float(k1) * float(k1))


@_part
def _careful_relative(slot, base, series, p, fallback):
    """100 * (x - b) / b from the window's rows in double-double."""
    kind = slot[KIND]
    y = series[slot[SERIES]]
    if kind == MEAN:
        constant = True  # a column that does not change at all: the common case of equal means
        for i in range(p + 1 - base[WINDOW], p + 1):
            if y[i] == y[i] and y[i] != y[p]:
                constant = False
                break
        if constant:
            return 0.0
        x_n, x_d = _careful_mean(y, p, slot[WINDOW])
        b_n, b_d = _careful_mean(y, p, base[WINDOW])
    elif kind == VWAP:
        volume = series[slot[SERIES_B]]
        x_n, x_d = _careful_vwap(y, volume, p, slot[WINDOW])
        b_n, b_d = _careful_vwap(y, volume, p, base[WINDOW])
    else:
        x_n, x_d = _careful_variance(y, p, slot[WINDOW])
        b_n, b_d = _careful_variance(y, p, base[WINDOW])
    less = _multiply(b_n, x_d)
    difference = _add(_multiply(x_n, b_d), (-less[0], -less[1]))[0]
    # A variance is itself the small difference of two sums of squares.
    if abs(difference) < (VARIANCE_NOISE if kind == MOMENTS else NOISE) * abs(less[0]):
        return 0.0
    ratio = difference / less[0]
    if not np.isfinite(ratio):  # beyond 1e300: the double result is the better one
        return fallback
    if kind == MOMENTS:  # of variances, so far
        ratio /= 1.0 + np.sqrt(1.0 + ratio)
    return 100.0 * ratio


@_part
def _derive(rows, r0, m, recipe, y, count, p0):
    """One series from the columns of m rows, and the running count of its finite values."""
    kind, a, b = recipe[RECIPE], recipe[LEFT], recipe[RIGHT]
    if kind == DIFFERENCE:
        for i in range(m):
            y[_at(p0 + i)] = rows[_at(r0 + i), a] - rows[_at(r0 + i), b]
    elif kind == RATIO:
        for i in range(m):
            y[_at(p0 + i)] = rows[_at(r0 + i), a] / rows[_at(r0 + i), b]
    elif kind == PRODUCT:
        for i in range(m):
            y[_at(p0 + i)] = rows[_at(r0 + i), a] * rows[_at(r0 + i), b]
    else:
        for i in range(m):
            y[_at(p0 + i)] = rows[_at(r0 + i), a]
    finite = count[p0]
    for i in range(m):
        x = y[_at(p0 + i)]
        y[_at(p0 + i)] = x if abs(x) < np.inf else np.nan
        finite += 1.0 if abs(x) < np.inf else 0.0
        count[_at(p0 + i + 1)] = finite


@_part
def _means(slots, series, counts, p0, m, age, stacks, results):
    """Mean of the finite values of the last w rows; NaN where there is none.

    series, counts: values (NaN = missing), and how many before a position are finite.
    p0, m: position of the first new row, and how many; age: how many rows there are before it.
    """
    for s in range(slots.shape[0]):
        y, w, stack, r = slots[s, SERIES], slots[s, WINDOW], slots[s, STACK], slots[s, RESULT]
        if w == 1:
            for j in range(m):
                results[r, _at(j)] = series[y, _at(p0 + j)]
            continue
        phase = slots[s, PHASE]
        total = stacks[stack + w]
        i = 0
        while i < m:
            if phase == 0:
                total = behind = 0.0
                stacks[stack + w - 1] = 0.0
                for k in range(1, min(w - 1, age + i) + 1):
                    x = series[y, _at(p0 + i - k)]
                    behind += x if x == x else 0.0
                    stacks[_at(stack + w - 1 - k)] = behind
            stop = min(m, i + w - phase)
            suffix = stack + phase - i
            for j in range(i, stop):
                x = series[y, _at(p0 + j)]
                total += x if x == x else 0.0
                results[r, _at(j)] = stacks[_at(suffix + j)] + total
            phase += stop - i
            if phase == w:
                phase = 0
            i = stop
        stacks[stack + w] = total
        slots[s, PHASE] = phase
        ready = min(m, max(0, w - 1 - age))
        for j in range(ready):
            results[r, j] = np.nan
        for j in range(ready, m):
            n = counts[y, _at(p0 + j + 1)] - counts[y, _at(p0 + j + 1 - w)]
            results[r, _at(j)] /= n


@_part
def _last_finite(y, p, rows):
    for k in range(rows):
        if y[p - k] == y[p - k]:
            return y[p - k]
    return np.nan


@_part
def _moments(slots, series, counts, p0, m, age, stacks, results):
    """Population standard deviation and least-squares slope per row over the last w rows.

    The sums are of (d, d * d, position * d) with d = y - centre. Head and suffix share the centre
    y[anchor]; where that is NaN each has its own, its finite value next to the anchor.
    """
    for s in range(slots.shape[0]):
        y, w, stack, r = slots[s, SERIES], slots[s, WINDOW], slots[s, STACK], slots[s, RESULT]
        phase = slots[s, PHASE]
        head = stack + 3 * w
        s1, s2, s3 = stacks[head], stacks[head + 1], stacks[head + 2]
        centre, behind_centre = stacks[head + 3], stacks[head + 4]
        ready = min(m, max(0, w - 1 - age))
        i = 0
        while i < m:
            if phase == 0:
                rows = min(w - 1, age + i)
                centre = series[y, p0 + i]
                behind_centre = centre
                if centre != centre:
                    behind_centre = _last_finite(series[y], p0 + i - 1, rows)
                s1 = s2 = s3 = 0.0
                b1 = b2 = b3 = 0.0
                stacks[head - 3] = stacks[head - 2] = stacks[head - 1] = 0.0
                for k in range(1, rows + 1):
                    x = series[y, _at(p0 + i - k)]
                    d = x - behind_centre if x == x else 0.0
                    b1 += d
                    b2 += d * d
                    b3 -= k * d
                    at = head - 3 - 3 * k
                    stacks[_at(at)] = b1
                    stacks[_at(at + 1)] = b2
                    stacks[_at(at + 2)] = b3
            stop = min(m, i + w - phase)
            for j in range(i, stop):
                x = series[y, _at(p0 + j)]
                if x == x:
                    if centre != centre:
                        centre = x
                    d = x - centre
                    s1 += d
                    s2 += d * d
                    s3 += phase * d
                at = stack + 3 * phase
                a1, a2, a3 = stacks[_at(at)], stacks[_at(at + 1)], stacks[_at(at + 2)]
                if behind_centre != centre and centre == centre and j >= ready:
                    n = counts[y, p0 + j - phase] - counts[y, p0 + j + 1 - w]
                    if n > 0.0:
                        shift = behind_centre - centre
                        a2 += 2.0 * shift * a1 + n * shift * shift
                        a1 += n * shift
                t1 = s1 + a1
                results[r, _at(j)] = s2 + a2
                results[r + 1, _at(j)] = (s3 + a3) - (phase - 0.5 * (w - 1)) * t1
                results[r + 2, _at(j)] = t1
                phase += 1
            if phase == w:
                phase = 0
            i = stop
        stacks[head], stacks[head + 1], stacks[head + 2] = s1, s2, s3
        stacks[head + 3], stacks[head + 4] = centre, behind_centre
        slots[s, PHASE] = phase

        for j in range(ready):
            results[r, j] = results[r + 1, j] = np.nan
        squares = w * (float(w) * w - 1.0) / 12.0
        # By Cauchy and Schwarz no term of the covariance is larger than root(t2 * w) * w.
        small = CLOSE_CALL * CLOSE_CALL * w * w * w
        odd = 0
        for j in range(ready, m):
            n = counts[y, _at(p0 + j + 1)] - counts[y, _at(p0 + j + 1 - w)]
            t2, covariance = results[r, _at(j)], results[r + 1, _at(j)]
            mean = results[r + 2, _at(j)] / n
            variance = t2 / n - mean * mean
            results[r, _at(j)] = np.sqrt(0.0 if variance < 0.0 else variance)
            results[r + 1, _at(j)] = covariance / squares
            is_odd = n != w or covariance * covariance < small * t2
            results[r + 2, _at(j)] = 1.0 if is_odd else 0.0
            odd += 1 if is_odd else 0
        if odd > 0:
            for j in range(ready, m):
                if results[r + 2, j] != 0.0:
                    results[r + 1, j] = _careful_slope(series[y], p0 + j, w)


@_part
def _vwaps(slots, series, counts, p0, m, age, stacks, results):
    """nanmean(close * volume) / nanmean(volume) over the last w rows, as rest + middle.

    The middle is a close of the window, so that the difference of two such means is exact where
    prices hardly move. Sums are of ((close - centre) * volume, volume) over rows that have both.
    """
    for s in range(slots.shape[0]):
        y, w, stack, r = slots[s, SERIES], slots[s, WINDOW], slots[s, STACK], slots[s, RESULT]
        z, paired = slots[s, SERIES_B], slots[s, SERIES_C]
        phase = slots[s, PHASE]
        head = stack + 2 * w
        s1, s2 = stacks[head], stacks[head + 1]
        centre, behind_centre = stacks[head + 3], stacks[head + 4]
        i = 0
        while i < m:
            if phase == 0:
                rows = min(w - 1, age + i)
                centre = series[y, p0 + i]
                behind_centre = centre
                if centre != centre:
                    behind_centre = _last_finite(series[y], p0 + i - 1, rows)
                s1 = s2 = b1 = b2 = 0.0
                stacks[head - 2] = stacks[head - 1] = 0.0
                for k in range(1, rows + 1):
                    x, v = series[y, _at(p0 + i - k)], series[z, _at(p0 + i - k)]
                    both = x == x and v == v
                    b1 += (x - behind_centre) * v if both else 0.0
                    b2 += v if both else 0.0
                    at = head - 2 - 2 * k
                    stacks[_at(at)] = b1
                    stacks[_at(at + 1)] = b2
            stop = min(m, i + w - phase)
            for j in range(i, stop):
                x, v = series[y, _at(p0 + j)], series[z, _at(p0 + j)]
                if x == x:
                    if centre != centre:
                        centre = x
                    if v == v:
                        s1 += (x - centre) * v
                        s2 += v
                at = stack + 2 * phase
                a1, a2 = stacks[_at(at)], stacks[_at(at + 1)]
                c = centre
                if behind_centre != c:
                    if c != c:
                        c = behind_centre
                    elif behind_centre == behind_centre:
                        shift = behind_centre - c
                        a1 += shift * a2
                        if abs(shift * (s2 + a2)) > abs(c * (s2 + a2) + (s1 + a1)):
                            c = np.nan  # see below
                results[r, _at(j)] = s1 + a1
                results[r + 1, _at(j)] = c
                results[r + 2, _at(j)] = s2 + a2
                phase += 1
            if phase == w:
                phase = 0
            i = stop
        stacks[head], stacks[head + 1] = s1, s2
        stacks[head + 3], stacks[head + 4] = centre, behind_centre
        slots[s, PHASE] = phase

        ready = min(m, max(0, w - 1 - age))
        for j in range(ready):
            results[r, j] = results[r + 1, j] = np.nan
        odd = 0
        for j in range(ready, m):
            n = counts[paired, _at(p0 + j + 1)] - counts[paired, _at(p0 + j + 1 - w)]
            n_volume = counts[z, _at(p0 + j + 1)] - counts[z, _at(p0 + j + 1 - w)]
            c = results[r + 1, _at(j)]
            rest = results[r, _at(j)] / results[r + 2, _at(j)]
            results[r, _at(j)] = rest
            # Where volumes lie on rows without a close, or a centre is far from the mean (by an
            # outlier, or over years), the definition itself is the more exact way.
            is_odd = n != n_volume or abs(rest) > abs(c + rest) or c != c
            results[r + 2, _at(j)] = 1.0 if is_odd else 0.0
            odd += 1 if is_odd else 0
        if odd > 0:
            for j in range(ready, m):
                if results[r + 2, j] != 0.0:
                    top, bottom = _careful_vwap(series[y], series[z], p0 + j, w)
                    results[r, j] = top[0] / bottom[0]
                    results[r + 1, j] = 0.0


@_part
def _area_row(slots, series, p, age, results, j):
    """sum(d) / sum(|d|), d = y[i] - y[p], over each slot's window; age: rows before p."""
    y = slots[0, SERIES]
    now = series[y, p]
    total = absolute = 0.0
    k = 0
    for s in range(slots.shape[0]):
        w = slots[s, WINDOW]
        if w > age + 1 or now != now:
            results[slots[s, RESULT], j] = np.nan
            continue
        while k + GROUP <= w:
            oldest = p + 1 - k - GROUP
            t = a = 0.0
            for g in range(GROUP):
                d = series[y, _at(oldest + g)] - now
                d = d if d == d else 0.0
                t += d
                a += abs(d)
            total += t
            absolute += a
            k += GROUP
        t, a = total, absolute
        for i in range(k, w):
            d = series[y, _at(p - i)] - now
            d = d if d == d else 0.0
            t += d
            a += abs(d)
        results[slots[s, RESULT], j] = t / a


@_part
def _areas(slots, series, counts, p0, m, age, results, sums):
    """`_area_row` for m rows, BLOCK of them side by side where no value is missing.

    The slots are of one series, by rising window. The additions of a row are those of `_area_row`,
    in the same order: the same bits.
    """
    y = slots[0, SERIES]
    widest = slots[slots.shape[0] - 1, WINDOW]
    j = 0
    while j < m:
        p = p0 + j
        if (
            j + BLOCK > m
            or age + j + 1 < widest
            or counts[y, p + BLOCK] - counts[y, p + 1 - widest] != widest + BLOCK - 1
        ):
            _area_row(slots, series, p, age + j, results, j)
            j += 1
            continue
        for b in range(BLOCK):
            sums[0, b] = sums[1, b] = 0.0
        k = 0
        for s in range(slots.shape[0]):
            w, r = slots[s, WINDOW], slots[s, RESULT]
            while k + GROUP <= w:
                oldest = p + 1 - k - GROUP
                for b in range(BLOCK):
                    now = series[y, _at(p + b)]
                    t = a = 0.0
                    for g in range(GROUP):
                        d = series[y, _at(oldest + b + g)] - now
                        t += d
                        a += abs(d)
                    sums[0, b] += t
                    sums[1, b] += a
                k += GROUP
            if k == w:
                for b in range(BLOCK):
                    results[r, _at(j + b)] = sums[0, b] / sums[1, b]
                continue
            for b in range(BLOCK):
                t, a = sums[0, b], sums[1, b]
                for i in range(k, w):
                    d = series[y, _at(p + b - i)] - series[y, _at(p + b)]
                    t += d
                    a += abs(d)
                results[r, j + b] = t / a
        j += BLOCK


@_part
def _finish(outputs, slots, series, results, p0, m, features, near):
    """Features from the results of their slots; near: (chunk,) scratch."""
    for o in range(outputs.shape[0]):
        slot = outputs[o, SLOT]
        x = slots[slot, RESULT] + outputs[o, PART]
        if outputs[o, FORM] == PLAIN:
            for i in range(m):
                value = results[x, _at(i)]
                features[o, _at(i)] = 0.0 if abs(value) <= ZERO else value
            continue
        base = outputs[o, BASE]
        b = slots[base, RESULT] + outputs[o, PART]
        close_calls = 0
        if slots[slot, KIND] == VWAP:
            for i in range(m):
                value, below = results[x, _at(i)], results[b, _at(i)]
                middle, middle_below = results[x + 1, _at(i)], results[b + 1, _at(i)]
                difference = (value - below) + (middle - middle_below)
                features[o, _at(i)] = 100.0 * difference / (below + middle_below)
                # The rests may be small because far prices cancel out: hence the second term.
                close = CLOSE_CALL * (abs(value) + abs(below)) + FLAT * abs(middle_below)
                near[_at(i)] = 1.0 if abs(difference) < close and difference != 0.0 else 0.0
                close_calls += 1 if abs(difference) < close and difference != 0.0 else 0
        else:
            for i in range(m):
                value, below = results[x, _at(i)], results[b, _at(i)]
                difference = value - below
                features[o, _at(i)] = 100.0 * difference / below
                close = CLOSE_CALL * (abs(value) + abs(below))
                near[_at(i)] = 1.0 if abs(difference) < close and difference != 0.0 else 0.0
                close_calls += 1 if abs(difference) < close and difference != 0.0 else 0
        if close_calls > 0:
            for i in range(m):
                if near[i] != 0.0 and abs(features[o, i]) < np.inf:
                    features[o, i] = _careful_relative(
                        slots[slot], slots[base], series, p0 + i, features[o, i]
                    )
        for i in range(m):
            value = features[o, _at(i)]
            value = value if abs(value) < np.inf else np.nan  # relative to a base of 0
            features[o, _at(i)] = 0.0 if abs(value) <= ZERO else value


@_part
def _write(outputs, features, m, r0, out):
    """Features (n_outputs, chunk) into their columns of rows r0 .. r0 + m of out.

    Eight rows at a time: they stay in the level-1 cache while their columns fill up.
    """
    for start in range(0, m, 8):
        for o in range(outputs.shape[0]):
            column = outputs[o, COLUMN]
            for i in range(start, min(m, start + 8)):
                out[_at(r0 + i), _at(column)] = features[o, _at(i)]


@cached
def advance(rows, out, table, history, stacks, scratch):
    """Takes rows of one source, oldest first, that follow those before; writes their features.

    rows: (n, columns); out: (n, n_features), of which the outputs name the columns written here.
    table: (_, ROW) int64, what to compute and where the state is:
        1 head row: FILL rows are in the history, the oldest has index INDEX, the first row ever had
            FIRST; KEEP rows are to be kept; how many rows of the other kinds there are;
        N_SERIES rows: how a series derives from the columns (RECIPE, LEFT, RIGHT);
        N_SLOTS rows: what is computed over which window, sorted by kind, series and window; PHASE
            is the next row's index modulo the window;
        N_OUTPUTS rows: a result as it is, or relative to that of another slot.
    history: (2 * N_SERIES, capacity + 1): the series, and how many of their values before a
        position are finite.
    stacks: for each slot SUMS[kind] * window suffix sums and HEAD doubles, from its STACK on.
    scratch: (N_RESULTS + N_OUTPUTS + 2, chunk), chunk >= BLOCK.
    """
    n_series, n_slots, n_outputs = table[0, N_SERIES], table[0, N_SLOTS], table[0, N_OUTPUTS]
    n_results = table[0, N_RESULTS]
    recipes = table[1 : 1 + n_series]
    slots = table[1 + n_series : 1 + n_series + n_slots]
    outputs = table[1 + n_series + n_slots :]
    series, counts = history[:n_series], history[n_series:]
    results, features = scratch[:n_results], scratch[n_results : n_results + n_outputs]
    sums = scratch[n_results + n_outputs :]
    chunk = scratch.shape[1]
    for r0 in range(0, rows.shape[0], chunk):
        m = min(chunk, rows.shape[0] - r0)
        p0 = table[0, FILL]
        if p0 + m >= history.shape[1]:
            keep = min(p0, table[0, KEEP])
            start = p0 - keep
            for s in range(2 * n_series):
                for i in range(keep + 1):
                    history[s, _at(i)] = history[s, _at(start + i)]
            table[0, INDEX] += start
            p0 = keep
        table[0, FILL] = p0 + m
        age = table[0, INDEX] + p0 - table[0, FIRST]
        for s in range(n_series):
            _derive(rows, r0, m, recipes[s], series[s], counts[s], p0)
        s = 0
        while s < n_slots:  # slots that belong together: of a kind, areas of a series too
            stop = s + 1
            while (
                stop < n_slots
                and slots[stop, KIND] == slots[s, KIND]
                and (slots[s, KIND] != AREA or slots[stop, SERIES] == slots[s, SERIES])
            ):
                stop += 1
            group = slots[s:stop]
            if slots[s, KIND] == MEAN:
                _means(group, series, counts, p0, m, age, stacks, results)
            elif slots[s, KIND] == MOMENTS:
                _moments(group, series, counts, p0, m, age, stacks, results)
            elif slots[s, KIND] == VWAP:
                _vwaps(group, series, counts, p0, m, age, stacks, results)
            else:
                _areas(group, series, counts, p0, m, age, results, sums)
            s = stop
        _finish(outputs, slots, series, results, p0, m, features, sums[0])
        _write(outputs, features, m, r0, out)
