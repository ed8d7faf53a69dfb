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
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

# How a series is derived from the columns of a source; a cell that is not finite is missing (NaN).
COPY, DIFFERENCE, RATIO, PRODUCT = range(4)

# What is computed over a window; the columns of a slot are named below.
MEAN, MOMENTS, VWAP, AREA = range(4)
KIND, SERIES, SERIES_B, SERIES_C, WINDOW, SUFFIX, RESULT = range(7)
SLOT_FIELDS = 7
# Doubles that a slot keeps per window row (its suffix sums), and results per row, by kind.
SUFFIX_SUMS = {MEAN: 1, MOMENTS: 3, VWAP: 2, AREA: 0}
RESULTS = {MEAN: 1, MOMENTS: 2, VWAP: 2, AREA: 1}  # MOMENTS: std, slope; VWAP: rest, centre

# What becomes of the results; the columns of an output are named below.
PLAIN, RELATIVE = range(2)
COLUMN, FORM, SLOT, PART, BASE = range(5)
OUTPUT_FIELDS = 5

HEAD_FIELDS = 5  # per slot: sums since the anchor (3), centre of the head, centre of the suffix
# `clock`: rows in the buffer, index of its row 0, index of the first row ever, rows to keep.
FILL, INDEX, FIRST, KEEP = range(4)

ZERO = 1e-35
"""LightGBM treats |x| <= 1e-35 as zero, an ONNX graph does not: such values become 0 here."""

CLOSE_CALL = 1e-5
"""A difference smaller than this part of its terms is computed again in twice the precision."""

BLOCK = 32  # rows that `_area` works on at once: enough to fill vector registers


def _compiled(function: Callable[..., Any]) -> Any:
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # no writable place for the cache: compile in every process instead
        return numba.njit(nogil=True, error_model="numpy")(function)


@_compiled
def _two_sum(a, b):
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


@_compiled
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


@_compiled
def _add(x, y):
    s, e = _two_sum(x[0], y[0])
    return _two_sum(s, e + (x[1] + y[1]))


@_compiled
def _multiply(x, y):
    p, e = _two_product(x[0], y[0])
    return _two_sum(p, e + (x[0] * y[1] + x[1] * y[0]))


@_compiled
def _careful_mean(y, p, w):
    """(numerator, denominator) of the mean of y[p - w + 1 .. p], each a double-double."""
    s = (0.0, 0.0)
    n = 0.0
    for i in range(p + 1 - w, p + 1):
        if y[i] == y[i]:
            s = _add(s, (y[i], 0.0))
            n += 1.0
    return s, (n, 0.0)


@_compiled
def _careful_variance(y, p, w):
    s = (0.0, 0.0)
    q = (0.0, 0.0)
    n = 0.0
    for i in range(p + 1 - w, p + 1):
        if y[i] == y[i]:
            s = _add(s, (y[i], 0.0))
            q = _add(q, _two_product(y[i], y[i]))
            n += 1.0
    s = _multiply(s, s)
    return _add(_multiply(q, (n, 0.0)), (-s[0], -s[1])), _two_product(n, n)


@_compiled
def _careful_vwap(close, volume, p, w):
    s = (0.0, 0.0)
    v = (0.0, 0.0)
    n_s = 0.0
    n_v = 0.0
    for i in range(p + 1 - w, p + 1):
        if volume[i] == volume[i]:
            v = _add(v, (volume[i], 0.0))
            n_v += 1.0
            if close[i] == close[i]:
                s = _add(s, _two_product(close[i], volume[i]))
                n_s += 1.0
    return _multiply(s, (n_v, 0.0)), _multiply(v, (n_s, 0.0))


@_compiled
def _careful_slope(y, p, w):
    """Slope of the least-squares line through the finite points; NaN with fewer than two."""
    n = 0
    k1 = 0
    k2 = 0
    s = (0.0, 0.0)
    t = (0.0, 0.0)
    for k in range(w):
        x = y[p + 1 - w + k]
        if x == x:
            n += 1
            k1 += k
            k2 += k * k
            s = _add(s, (x, 0.0))
            t = _add(t, _two_product(x, float(k)))
    if n < 2:
        return np.nan
    t = _multiply(t, (float(n), 0.0))
    s = _multiply(s, (float(-k1), 0.0))
    return _add(t, s)[0] / (float(n) * float(k2) - float(k1) * float(k1))


@_compiled
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
    difference = _multiply(b_n, x_d)
    difference = _add(_multiply(x_n, b_d), (-difference[0], -difference[1]))[0]
    ratio = difference / (b_n[0] * x_d[0])
    if not np.isfinite(ratio):  # beyond 1e300: the double result is the better one
        return fallback
    if kind == MOMENTS:  # of variances, so far
        ratio /= 1.0 + np.sqrt(1.0 + ratio)
    return 100.0 * ratio


@_compiled
def _mean(y, count, p0, m, index, first, w, suffix, head, result):
    """Mean of the finite values of the last w rows; NaN where there is none.

    y, count: the series (NaN = missing) and how many of its values before a position are finite.
    p0, m: position of the first new row in the buffer, and how many; index: its absolute index.
    """
    if w == 1:
        for i in range(m):
            result[i] = y[p0 + i]
        return
    i = 0
    total = head[0]
    while i < m:
        phase = (index + i) % w
        if phase == 0:
            rows = min(w - 1, index + i - first)
            behind = 0.0
            suffix[w - 1] = 0.0
            for k in range(1, rows + 1):
                x = y[p0 + i - k]
                behind += x if x == x else 0.0
                suffix[w - 1 - k] = behind
            total = 0.0
        stop = min(m, i + w - phase)
        for j in range(i, stop):
            x = y[p0 + j]
            total += x if x == x else 0.0
            result[j] = suffix[phase + j - i] + total
        i = stop
    head[0] = total
    ready = min(m, max(0, first + w - 1 - index))
    for j in range(ready):
        result[j] = np.nan
    for j in range(ready, m):
        result[j] /= count[p0 + j + 1] - count[p0 + j + 1 - w]


@_compiled
def _last_finite(y, p, rows):
    for k in range(rows):
        if y[p - k] == y[p - k]:
            return y[p - k]
    return np.nan


@_compiled
def _moments(y, count, p0, m, index, first, w, suffix, head, std, slope):
    """Population standard deviation and least-squares slope per row over the last w rows.

    The sums are of (d, d * d, position * d) with d = y - centre. Head and suffix share the centre
    y[anchor]; where that is NaN each has its own, its finite value next to the anchor.
    """
    i = 0
    s1, s2, s3 = head[0], head[1], head[2]
    centre, behind_centre = head[3], head[4]
    squares = w * (float(w) * w - 1.0) / 12.0
    while i < m:
        phase = (index + i) % w
        if phase == 0:
            rows = min(w - 1, index + i - first)
            centre = y[p0 + i]
            behind_centre = centre
            if centre != centre:
                behind_centre = _last_finite(y, p0 + i - 1, rows)
            b1 = b2 = b3 = 0.0
            suffix[3 * w - 3] = suffix[3 * w - 2] = suffix[3 * w - 1] = 0.0
            for k in range(1, rows + 1):
                x = y[p0 + i - k]
                d = x - behind_centre if x == x else 0.0
                b1 += d
                b2 += d * d
                b3 -= k * d
                at = 3 * (w - 1 - k)
                suffix[at] = b1
                suffix[at + 1] = b2
                suffix[at + 2] = b3
            s1 = s2 = s3 = 0.0
        stop = min(m, i + w - phase)
        for j in range(i, stop):
            p = p0 + j
            x = y[p]
            if x == x:
                if centre != centre:
                    centre = x
                d = x - centre
                s1 += d
                s2 += d * d
                s3 += phase * d
            if index + j - first + 1 < w:
                std[j] = slope[j] = np.nan
                phase += 1
                continue
            a1, a2, a3 = suffix[3 * phase], suffix[3 * phase + 1], suffix[3 * phase + 2]
            n = count[p + 1] - count[p + 1 - w]
            if centre == centre and behind_centre != centre:
                n_behind = count[p - phase] - count[p + 1 - w]
                if n_behind > 0.0:
                    shift = behind_centre - centre
                    a2 += 2.0 * shift * a1 + n_behind * shift * shift
                    a1 += n_behind * shift
            t1 = s1 + a1
            t2 = s2 + a2
            mean = t1 / n
            std[j] = np.sqrt(max(t2 / n - mean * mean, 0.0)) if n > 0.0 else np.nan
            if n == w:
                covariance = (s3 + a3) - (phase - 0.5 * (w - 1)) * t1
                # By Cauchy and Schwarz no term above is larger than the root of the right side.
                if covariance * covariance < CLOSE_CALL * CLOSE_CALL * t2 * w * w * w:
                    slope[j] = _careful_slope(y, p, w)
                else:
                    slope[j] = covariance / squares
            else:
                slope[j] = _careful_slope(y, p, w) if n >= 2.0 else np.nan
            phase += 1
        i = stop
    head[0], head[1], head[2] = s1, s2, s3
    head[3], head[4] = centre, behind_centre


@_compiled
def _vwap(close, volume, n_paired, n_volume, p0, m, index, first, w, suffix, head, rest, middle):
    """nanmean(close * volume) / nanmean(volume) over the last w rows, as middle + rest.

    The middle is a close of the window, so that the difference of two such means is exact where
    prices hardly move. Sums are of ((close - centre) * volume, volume) over rows that have both.
    """
    i = 0
    s1, s2 = head[0], head[1]
    centre, behind_centre = head[3], head[4]
    while i < m:
        phase = (index + i) % w
        if phase == 0:
            rows = min(w - 1, index + i - first)
            centre = close[p0 + i]
            behind_centre = centre
            if centre != centre:
                behind_centre = _last_finite(close, p0 + i - 1, rows)
            b1 = b2 = 0.0
            suffix[2 * w - 2] = suffix[2 * w - 1] = 0.0
            for k in range(1, rows + 1):
                x, v = close[p0 + i - k], volume[p0 + i - k]
                if x == x and v == v:
                    b1 += (x - behind_centre) * v
                    b2 += v
                at = 2 * (w - 1 - k)
                suffix[at] = b1
                suffix[at + 1] = b2
            s1 = s2 = 0.0
        stop = min(m, i + w - phase)
        for j in range(i, stop):
            p = p0 + j
            x, v = close[p], volume[p]
            if x == x:
                if centre != centre:
                    centre = x
                if v == v:
                    s1 += (x - centre) * v
                    s2 += v
            if index + j - first + 1 < w:
                rest[j] = middle[j] = np.nan
                phase += 1
                continue
            a1, a2 = suffix[2 * phase], suffix[2 * phase + 1]
            c = centre
            if c != c:
                c = behind_centre
            elif behind_centre == behind_centre and behind_centre != c:
                a1 += (behind_centre - c) * a2
            n = n_paired[p + 1] - n_paired[p + 1 - w]
            r = (s1 + a1) / (s2 + a2)
            # Where volumes lie on rows without a close, or the centre is far from the mean (an
            # outlier, or years of candles), the definition itself is the more exact way.
            if n != n_volume[p + 1] - n_volume[p + 1 - w] or abs(r) > abs(c + r):
                top, bottom = _careful_vwap(close, volume, p, w)
                r = top[0] / bottom[0]
                c = 0.0
            rest[j] = r
            middle[j] = c
            phase += 1
        i = stop
    head[0], head[1] = s1, s2
    head[3], head[4] = centre, behind_centre


@_compiled
def _area_row(y, p, rows, slots, results, j):
    """sum(d) / sum(|d|), d = y[i] - y[p], over each slot's window that fits into `rows` rows."""
    now = y[p]
    total = 0.0
    absolute = 0.0
    k = 0
    for s in range(slots.shape[0]):
        w = slots[s, WINDOW]
        if w > rows or now != now:
            results[slots[s, RESULT], j] = np.nan
            continue
        while k + 4 <= w:
            d0, d1, d2, d3 = (
                y[p - k] - now,
                y[p - k - 1] - now,
                y[p - k - 2] - now,
                y[p - k - 3] - now,
            )
            d0 = d0 if d0 == d0 else 0.0
            d1 = d1 if d1 == d1 else 0.0
            d2 = d2 if d2 == d2 else 0.0
            d3 = d3 if d3 == d3 else 0.0
            total += (d0 + d1) + (d2 + d3)
            absolute += (abs(d0) + abs(d1)) + (abs(d2) + abs(d3))
            k += 4
        t, a = total, absolute
        for i in range(k, w):
            d = y[p - i] - now
            d = d if d == d else 0.0
            t += d
            a += abs(d)
        results[slots[s, RESULT], j] = t / a


@_compiled
def _area(y, count, p0, m, index, first, slots, results, sums):
    """`_area_row` for m rows, BLOCK of them side by side where no value is missing.

    The additions of a row are those of `_area_row`, in the same order: the same bits.
    """
    widest = slots[slots.shape[0] - 1, WINDOW]
    total = sums[0]
    absolute = sums[1]
    j = 0
    while j < m:
        p = p0 + j
        rows = index + j - first + 1
        if (
            j + BLOCK > m
            or rows < widest
            or count[p + BLOCK] - count[p + 1 - widest] != widest + BLOCK - 1
        ):
            _area_row(y, p, rows, slots, results, j)
            j += 1
            continue
        now = y[p : p + BLOCK]
        total[:] = 0.0
        absolute[:] = 0.0
        k = 0
        for s in range(slots.shape[0]):
            w = slots[s, WINDOW]
            while k + 4 <= w:
                x = y[p - k - 3 : p - k + BLOCK]
                for b in range(BLOCK):
                    c = now[b]
                    d0, d1, d2, d3 = x[b + 3] - c, x[b + 2] - c, x[b + 1] - c, x[b] - c
                    total[b] += (d0 + d1) + (d2 + d3)
                    absolute[b] += (abs(d0) + abs(d1)) + (abs(d2) + abs(d3))
                k += 4
            result = results[slots[s, RESULT]]
            for b in range(BLOCK):
                t, a = total[b], absolute[b]
                for i in range(k, w):
                    d = y[p + b - i] - now[b]
                    t += d
                    a += abs(d)
                result[j + b] = t / a
        j += BLOCK


@_compiled
def _derive(rows, r0, m, recipe, y, count, p0):
    """One series from the columns of m rows, and the running count of its finite values."""
    kind, a, b = recipe[0], recipe[1], recipe[2]
    for i in range(m):
        x = rows[r0 + i, a]
        if kind == DIFFERENCE:
            x -= rows[r0 + i, b]
        elif kind == RATIO:
            x /= rows[r0 + i, b]
        elif kind == PRODUCT:
            x *= rows[r0 + i, b]
        finite = abs(x) < np.inf
        y[p0 + i] = x if finite else np.nan
        count[p0 + i + 1] = count[p0 + i] + (1.0 if finite else 0.0)


@_compiled
def _write(output, slots, series, results, p0, r0, m, out):
    """One feature of m rows."""
    column, slot = output[COLUMN], slots[output[SLOT]]
    x = results[slot[RESULT] + output[PART]]
    if output[FORM] == PLAIN:
        for i in range(m):
            out[r0 + i, column] = x[i] if abs(x[i]) > ZERO or x[i] != x[i] else 0.0
        return
    base = slots[output[BASE]]
    b = results[base[RESULT] + output[PART]]
    centred = slot[KIND] == VWAP
    x_middle = results[slot[RESULT] + (1 if centred else 0)]
    b_middle = results[base[RESULT] + (1 if centred else 0)]
    for i in range(m):
        difference = x[i] - b[i]
        below = b[i]
        if centred:
            difference += x_middle[i] - b_middle[i]
            below += b_middle[i]
        value = 100.0 * difference / below
        if (
            abs(difference) < CLOSE_CALL * (abs(x[i]) + abs(b[i]))
            and difference != 0.0
            and below != 0.0
        ):
            value = _careful_relative(slot, base, series, p0 + i, value)
        if below == 0.0 or abs(value) == np.inf:
            value = np.nan
        out[r0 + i, column] = value if abs(value) > ZERO or value != value else 0.0


@_compiled
def advance(
    rows, out, recipes, slots, outputs, clock, series, counts, suffixes, heads, results, sums
):
    """Takes rows of one source, oldest first, that follow those before; writes their features.

    rows: (n, columns); out: (n, features), of which `outputs` names the columns written here.
    recipes: (n_series, 3): COPY .. PRODUCT and its columns.
    slots: (n_slots, SLOT_FIELDS): what is computed over which window; the AREA slots come last, by
        series and rising window.
    outputs: (n_outputs, OUTPUT_FIELDS): a result as it is (PLAIN), or relative to that of a base.
    The rest is state: clock (4,), series (n_series, capacity), counts (n_series, capacity + 1),
    suffixes, heads (n_slots, HEAD_FIELDS). Scratch: results (n_results, chunk), sums (2, BLOCK).
    """
    chunk = results.shape[1]
    capacity = series.shape[1]
    n_slots = slots.shape[0]
    areas = n_slots
    while areas > 0 and slots[areas - 1, KIND] == AREA:
        areas -= 1
    for r0 in range(0, rows.shape[0], chunk):
        m = min(chunk, rows.shape[0] - r0)
        p0 = clock[FILL]
        if p0 + m > capacity:
            keep = min(p0, clock[KEEP])
            start = p0 - keep
            for s in range(series.shape[0]):
                for i in range(keep):
                    series[s, i] = series[s, start + i]
                for i in range(keep + 1):
                    counts[s, i] = counts[s, start + i]
            clock[INDEX] += start
            p0 = keep
        clock[FILL] = p0 + m
        index = clock[INDEX] + p0
        first = clock[FIRST]
        for s in range(series.shape[0]):
            _derive(rows, r0, m, recipes[s], series[s], counts[s], p0)
        for s in range(areas):
            slot = slots[s]
            w = slot[WINDOW]
            a = slot[SERIES]
            suffix = suffixes[slot[SUFFIX] :]
            result = results[slot[RESULT]]
            if slot[KIND] == MEAN:
                _mean(series[a], counts[a], p0, m, index, first, w, suffix, heads[s], result)
            elif slot[KIND] == MOMENTS:
                slope = results[slot[RESULT] + 1]
                _moments(
                    series[a], counts[a], p0, m, index, first, w, suffix, heads[s], result, slope
                )
            else:
                b = slot[SERIES_B]
                middle = results[slot[RESULT] + 1]
                paired = counts[slot[SERIES_C]]
                _vwap(
                    series[a],
                    series[b],
                    paired,
                    counts[b],
                    p0,
                    m,
                    index,
                    first,
                    w,
                    suffix,
                    heads[s],
                    result,
                    middle,
                )
        s = areas
        while s < n_slots:
            a = slots[s, SERIES]
            stop = s + 1
            while stop < n_slots and slots[stop, SERIES] == a:
                stop += 1
            _area(series[a], counts[a], p0, m, index, first, slots[s:stop], results, sums)
            s = stop
        for o in range(outputs.shape[0]):
            _write(outputs[o], slots, series, results, p0, r0, m, out)
