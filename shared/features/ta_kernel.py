# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Numba infers the types of what it compiles.
# ruff: noqa: PLR0124  x != x is the test for NaN that LLVM vectorises best
"""The second feature kernel: the features in the TA manner (`shared.features.ta`).

Here every value is computed anew from the rows of its own window, oldest first: nothing is carried
from row to row, so that it cannot matter where a computation started or how many rows a call
brings. (The one thing that is kept, the sorted window of a quantile, is exact: values go in and
out, nothing is added up.) Many rows are worked on side by side, the window's rows in the outer
loop: LLVM vectorises over rows, and the additions of one row keep their order.

Sums of prices are centred on the window's newest value, and a result is a pair (centre, rest):
the difference of two of them is then exact where prices hardly move. Spreads are two-pass.

What was said of kernel.py holds here: all compiled functions of `advance` live in this one file,
because Numba's cache is keyed by file; nothing compiled is imported from elsewhere. It is a file of
its own so that who uses no such feature does not compile it.
"""

import numpy as np

from shared.features.kernel import _part as part
from shared.features.kernel import cached

# How a series is derived from the columns of a source and the row before.
COPY, DELTA, RETURN, LOG_RETURN, TRUE_RANGE, FLOW = range(6)

# What is computed over a window (`shared.features.ta` says what each of them is).
(
    SMA,
    EMA,
    WILDER,
    WMA,
    STDDEV,
    SLOPE,
    SKEW,
    KURTOSIS,
    BOLLINGER,
    RSI,
    ROC,
    MACD,
    MACD_SIGNAL,
    MACD_HIST,
    STOCHASTIC,
    FLOW_SHARE,
    VWAP_DISTANCE,
    VOLATILITY,
    RANK,
    QUANTILE,
    LSBM,
    FMAX,
    CORREL,
    BETA,
    DAY_TIME,
    DAY_SINE,
    DAY_COSINE,
    WEEK_DAY,
    WEEK_SINE,
    WEEK_COSINE,
) = range(30)

# Relative to the same over another window.
PLAIN, RATIO, DIFFERENCE, RELATIVE = range(4)

# The table of `advance`: a head row, then a row per series, per slot and per output, of these:
ROW = 10
FILL, INDEX, FIRST, KEEP, N_SERIES, N_SLOTS, N_OUTPUTS = range(7)
RECIPE, LEFT, RIGHT, THIRD = range(4)
KIND, SERIES, SERIES_B, SERIES_C, ROWS, WINDOW, SECOND, THIRD_WINDOW, STATE = range(9)
COLUMN, SLOT, BASE, FORM, PERCENT, LOGARITHM = range(6)

SPANS = 12
"""Rows of an EMA's kernel, in windows: its weights end at exp(-24) of the newest."""

WILDER_SPANS = 24
"""The same of Wilder's smoothing, whose weights fall half as fast."""

ACCUMULATORS = 8

ZERO = 1e-35  # as in kernel.py

_at = np.uintp


@part
def _two_sum(a, b):
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


@part
def _two_product(a, b):
    p = a * b
    t = 134217729.0 * a
    a1 = t - (t - a)
    a2 = a - a1
    t = 134217729.0 * b
    b1 = t - (t - b)
    b2 = b - b1
    return p, ((a1 * b1 - p) + a1 * b2 + a2 * b1) + a2 * b2


@part
def _sign(x):
    """NaN of what is not finite."""
    if not abs(x) < np.inf:
        return np.nan
    return 1.0 if x > 0.0 else -1.0 if x < 0.0 else 0.0


@part
def _derive(rows, r0, m, recipe, y, p0, last):
    """One series from the columns of m rows; last: the row before them (NaN where none was)."""
    kind, a, b, c = recipe[RECIPE], recipe[LEFT], recipe[RIGHT], recipe[THIRD]
    for i in range(m):
        x = rows[_at(r0 + i), a]
        if kind != COPY:
            before = last[a] if i == 0 else rows[_at(r0 + i - 1), a]
            if kind == DELTA:
                x = x - before
            elif kind == RETURN:
                x = (x - before) / before
            elif kind == LOG_RETURN:
                # Of the ratio where the step is large, else of the step: exact in both.
                step = (x - before) / before
                ratio = x / before
                if not (x > 0.0 and before > 0.0):
                    x = np.nan
                else:
                    x = np.log1p(step) if abs(step) < 0.5 else np.log(ratio)
            elif kind == TRUE_RANGE:
                high, low = rows[_at(r0 + i), b], rows[_at(r0 + i), c]
                if before == before and high == high and low == low:
                    x = max(high, before) - min(low, before)
                else:
                    x = np.nan
            else:
                x = _sign(x - before) * rows[_at(r0 + i), b]
        y[_at(p0 + i)] = x if abs(x) < np.inf else np.nan


@part
def _centres(y, p0, m, rows, c):
    """The newest finite value of each row's window, NaN where there is none."""
    found = p0 - rows
    for k in range(1, rows):
        if y[p0 - k] == y[p0 - k]:
            found = p0 - k
            break
    for b in range(m):
        p = p0 + b
        if y[p] == y[p]:
            found = p
        c[b] = y[found] if found > p - rows else np.nan


@part
def _mean(y, p0, m, rows, c, r, n):
    """r = nanmean(y - c), n = how many, over the last `rows` rows."""
    for b in range(m):
        r[b] = n[b] = 0.0
    for k in range(rows):
        oldest = p0 + 1 - rows + k
        for b in range(m):
            x = y[_at(oldest + b)]
            r[_at(b)] += x - c[_at(b)] if x == x else 0.0
            n[_at(b)] += 1.0 if x == x else 0.0
    for b in range(m):
        r[b] /= n[b]


@part
def _weighted(y, p0, m, rows, decay, c, r, n):
    """r = mean of y - c with the weight decay ** age, over the finite values of the last rows."""
    if m == 1:  # live: the same additions, in registers
        total = weight = 0.0
        for i in range(p0 + 1 - rows, p0 + 1):
            x = y[_at(i)]
            total = total * decay + (x - c[0] if x == x else 0.0)
            weight = weight * decay + (1.0 if x == x else 0.0)
        r[0] = total / weight
        return
    for b in range(m):
        r[b] = n[b] = 0.0
    for k in range(rows):
        oldest = p0 + 1 - rows + k
        for b in range(m):
            x = y[_at(oldest + b)]
            r[_at(b)] = r[_at(b)] * decay + (x - c[_at(b)] if x == x else 0.0)
            n[_at(b)] = n[_at(b)] * decay + (1.0 if x == x else 0.0)
    for b in range(m):
        r[b] /= n[b]


@part
def _linear(y, p0, m, rows, c, r, n):
    for b in range(m):
        r[b] = n[b] = 0.0
    for k in range(rows):
        oldest = p0 + 1 - rows + k
        weight = k + 1.0
        for b in range(m):
            x = y[_at(oldest + b)]
            r[_at(b)] += weight * (x - c[_at(b)]) if x == x else 0.0
            n[_at(b)] += weight if x == x else 0.0
    for b in range(m):
        r[b] /= n[b]


@part
def _second(y, p0, m, rows, c, mean, n, s2):
    """s2 = population variance; c, mean, n as `_mean` left them."""
    for b in range(m):
        s2[b] = 0.0
    for k in range(rows):
        oldest = p0 + 1 - rows + k
        for b in range(m):
            x = y[_at(oldest + b)]
            e = (x - c[_at(b)]) - mean[_at(b)]
            s2[_at(b)] += e * e if x == x else 0.0
    for b in range(m):
        s2[b] /= n[b]


@part
def _higher(y, p0, m, rows, kind, c, mean, n, s2, s4):
    """Skewness or excess kurtosis of the population, into s4."""
    for b in range(m):
        s2[b] = s4[b] = 0.0
    for k in range(rows):
        oldest = p0 + 1 - rows + k
        for b in range(m):
            x = y[_at(oldest + b)]
            e = (x - c[_at(b)]) - mean[_at(b)]
            e = e if x == x else 0.0
            s2[_at(b)] += e * e
            s4[_at(b)] += e * e * e if kind == SKEW else e * e * (e * e)
    for b in range(m):
        variance = s2[b] / n[b]
        if kind == SKEW:
            s4[b] = s4[b] / n[b] / (variance * np.sqrt(variance))
        else:
            s4[b] = s4[b] / n[b] / (variance * variance) - 3.0


@part
def _slope(y, p0, m, rows, c, mean, n, st, stt, se, ste):
    """Least-squares slope per row, into ste."""
    for b in range(m):
        st[b] = stt[b] = se[b] = ste[b] = 0.0
    for k in range(rows):
        oldest = p0 + 1 - rows + k
        t = k - 0.5 * (rows - 1)
        for b in range(m):
            x = y[_at(oldest + b)]
            e = (x - c[_at(b)]) - mean[_at(b)]
            e = e if x == x else 0.0
            st[_at(b)] += t if x == x else 0.0
            stt[_at(b)] += t * t if x == x else 0.0
            se[_at(b)] += e
            ste[_at(b)] += t * e
    for b in range(m):
        top = n[b] * ste[b] - st[b] * se[b]
        bottom = n[b] * stt[b] - st[b] * st[b]
        ste[b] = top / bottom if n[b] >= 2.0 else np.nan


@part
def _rsi(y, p0, m, rows, decay, r, up, both):
    if m == 1:  # live: the same additions, in registers
        gain = total = 0.0
        for i in range(p0 + 1 - rows, p0 + 1):
            d = y[_at(i)]
            d = d if d == d else 0.0
            gain = gain * decay + (d if d > 0.0 else 0.0)
            total = total * decay + abs(d)
        r[0] = 100.0 * (gain / total)
        return
    for b in range(m):
        up[b] = both[b] = 0.0
    for k in range(rows):
        oldest = p0 + 1 - rows + k
        for b in range(m):
            d = y[_at(oldest + b)]
            d = d if d == d else 0.0
            up[_at(b)] = up[_at(b)] * decay + (d if d > 0.0 else 0.0)
            both[_at(b)] = both[_at(b)] * decay + abs(d)
    for b in range(m):
        r[b] = 100.0 * (up[b] / both[b])


@part
def _macd(y, p0, m, kind, fast, slow, signal, c, r, acc):
    """The line EMA_fast - EMA_slow, its EMA, or their difference, into r."""
    a1, a2, a3 = 1.0 - 2.0 / (fast + 1.0), 1.0 - 2.0 / (slow + 1.0), 1.0 - 2.0 / (signal + 1.0)
    rows = SPANS * slow
    later = 0 if kind == MACD else SPANS * signal - 1
    for i in range(6):
        for b in range(m):
            acc[i, b] = 0.0
    s1, n1, s2, n2, s3, n3 = acc[0], acc[1], acc[2], acc[3], acc[4], acc[5]
    for k in range(rows + later):
        oldest = p0 + 1 - (rows + later) + k
        for b in range(m):
            x = y[_at(oldest + b)]
            d = x - c[_at(b)] if x == x else 0.0
            one = 1.0 if x == x else 0.0
            s1[_at(b)] = s1[_at(b)] * a1 + d
            n1[_at(b)] = n1[_at(b)] * a1 + one
            s2[_at(b)] = s2[_at(b)] * a2 + d
            n2[_at(b)] = n2[_at(b)] * a2 + one
        if later > 0 and k >= rows - 1:
            for b in range(m):
                line = s1[_at(b)] / n1[_at(b)] - s2[_at(b)] / n2[_at(b)]
                s3[_at(b)] = s3[_at(b)] * a3 + (line if line == line else 0.0)
                n3[_at(b)] = n3[_at(b)] * a3 + (1.0 if line == line else 0.0)
    for b in range(m):
        line = s1[b] / n1[b] - s2[b] / n2[b]
        smooth = s3[b] / n3[b]
        r[b] = line if kind == MACD else smooth if kind == MACD_SIGNAL else line - smooth


@part
def _stochastic(close, high, low, p0, m, rows, smooth, r, n, top, bottom):
    """Mean over the last `smooth` rows of 100 * (close - lowest) / (highest - lowest)."""
    for b in range(m):
        r[b] = n[b] = 0.0
    for j in range(smooth):
        for b in range(m):
            top[b], bottom[b] = -np.inf, np.inf
        for k in range(rows):
            oldest = p0 + 1 - rows + k - (smooth - 1 - j)
            for b in range(m):
                h, x = high[_at(oldest + b)], low[_at(oldest + b)]
                top[_at(b)] = h if h > top[_at(b)] else top[_at(b)]
                bottom[_at(b)] = x if x < bottom[_at(b)] else bottom[_at(b)]
        for b in range(m):
            value = (close[p0 + b - (smooth - 1 - j)] - bottom[b]) / (top[b] - bottom[b])
            if abs(value) < np.inf:
                r[b] += 100.0 * value
                n[b] += 1.0
    for b in range(m):
        r[b] /= n[b]


@part
def _flow_share(flow, volume, p0, m, rows, r, n):
    for b in range(m):
        r[b] = n[b] = 0.0
    for k in range(rows):
        oldest = p0 + 1 - rows + k
        for b in range(m):
            x, v = flow[_at(oldest + b)], volume[_at(oldest + b)]
            r[_at(b)] += x if x == x else 0.0
            n[_at(b)] += v if x == x else 0.0
    for b in range(m):
        r[b] /= n[b]


@part
def _vwap_distance(close, volume, p0, m, rows, r, n, total):
    """From the centred sum where the difference is small, beside the sum of terms of one sign."""
    for b in range(m):
        r[b] = n[b] = total[b] = 0.0
    for k in range(rows):
        oldest = p0 + 1 - rows + k
        for b in range(m):
            x, v = close[_at(oldest + b)], volume[_at(oldest + b)]
            both = x == x and v == v
            r[_at(b)] += (x - close[_at(p0 + b)]) * v if both else 0.0
            n[_at(b)] += v if both else 0.0
            total[_at(b)] += x * v if both else 0.0
    for b in range(m):
        r[b] = -100.0 * (r[b] / n[b]) / (total[b] / n[b])


@part
def _volatility(y, p0, m, rows, r, n):
    for b in range(m):
        r[b] = n[b] = 0.0
    for k in range(rows):
        oldest = p0 + 1 - rows + k
        for b in range(m):
            x = y[_at(oldest + b)]
            r[_at(b)] += x * x if x == x else 0.0
            n[_at(b)] += 1.0 if x == x else 0.0
    for b in range(m):
        r[b] = np.sqrt(rows * (r[b] / n[b]))


@part
def _rank(y, p0, m, rows, r, n, less):
    """Share of the window that the newest value is above or equal to; ties count by half."""
    for b in range(m):
        r[b] = n[b] = less[b] = 0.0
    for k in range(rows):
        oldest = p0 + 1 - rows + k
        for b in range(m):
            x, now = y[_at(oldest + b)], y[_at(p0 + b)]
            n[_at(b)] += 1.0 if x == x else 0.0
            less[_at(b)] += 1.0 if x < now else 0.0
            r[_at(b)] += 1.0 if x == now else 0.0
    for b in range(m):
        now = y[p0 + b]
        r[b] = (less[b] + 0.5 * (r[b] + 1.0)) / n[b] if now == now else np.nan


@part
def _place(values, count, x):
    """How many of the sorted values are below x."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if values[middle] < x:
            low = middle + 1
        else:
            high = middle
    return low


@part
def _quantiles(y, p0, m, rows, percent, values, r):
    """values: the finite ones of the window before, sorted; then how many (at `rows`)."""
    count = int(values[rows])
    for b in range(m):
        old, new = y[p0 + b - rows], y[p0 + b]
        if old == old:
            at = _place(values, count, old)
            count -= 1
            for i in range(at, count):
                values[_at(i)] = values[_at(i + 1)]
        if new == new:
            at = _place(values, count, new)
            for i in range(count, at, -1):
                values[_at(i)] = values[_at(i - 1)]
            values[at] = new
            count += 1
        if count == 0:
            r[b] = np.nan
            continue
        # Percent times rows is exact; a quotient may lie beside the whole number it should be.
        share = percent * (count - 1)
        below = share // 100
        fraction = (share - 100 * below) / 100.0
        x = values[below]
        r[b] = x + (values[below + 1] - x) * fraction if fraction > 0.0 else x
    values[rows] = count


@part
def _lsbm(y, p0, m, rows, r):
    """Rows of the longest run below the window's mean, compared in twice the precision."""
    for b in range(m):
        first = p0 + b + 1 - rows
        s = e = n = 0.0
        for i in range(first, first + rows):
            x = y[_at(i)]
            if x == x:
                s, lost = _two_sum(s, x)
                e += lost
                n += 1.0
        longest = run = 0
        for i in range(first, first + rows):
            x = y[_at(i)]
            if x == x:
                product, below = _two_product(n, x)
                run = run + 1 if (product - s) + (below - e) < 0.0 else 0
                longest = max(longest, run)
        r[b] = longest if n > 0.0 else np.nan


@part
def _fmax(y, p0, m, rows, r):
    """Place of the first maximum among the finite values, from 0, over their number."""
    for b in range(m):
        first = p0 + b + 1 - rows
        n = at = 0
        best = -np.inf
        for i in range(first, first + rows):
            x = y[_at(i)]
            if x == x:
                if x > best:
                    best = x
                    at = n
                n += 1
        r[b] = at / n if n > 0 else np.nan


@part
def _pair(y, z, p0, m, rows, kind, r, acc):
    """Correlation of y and z, or the slope of y against z, over the rows that have both."""
    for i in range(8):
        for b in range(m):
            acc[i, b] = 0.0
    c, d, n, ey, ez = acc[0], acc[1], acc[2], acc[3], acc[4]
    _centres(y, p0, m, rows, c)
    _centres(z, p0, m, rows, d)
    for k in range(rows):
        oldest = p0 + 1 - rows + k
        for b in range(m):
            x, v = y[_at(oldest + b)], z[_at(oldest + b)]
            both = x == x and v == v
            ey[_at(b)] += x - c[_at(b)] if both else 0.0
            ez[_at(b)] += v - d[_at(b)] if both else 0.0
            n[_at(b)] += 1.0 if both else 0.0
    for b in range(m):
        ey[b] /= n[b]
        ez[b] /= n[b]
    xx, xz, zz = acc[5], acc[6], acc[7]
    for k in range(rows):
        oldest = p0 + 1 - rows + k
        for b in range(m):
            x, v = y[_at(oldest + b)], z[_at(oldest + b)]
            both = x == x and v == v
            x = (x - c[_at(b)]) - ey[_at(b)]
            v = (v - d[_at(b)]) - ez[_at(b)]
            xx[_at(b)] += x * x if both else 0.0
            xz[_at(b)] += x * v if both else 0.0
            zz[_at(b)] += v * v if both else 0.0
    for b in range(m):
        if n[b] < 2.0:
            r[b] = np.nan
        elif kind == BETA:
            r[b] = xz[b] / zz[b]
        else:
            value = xz[b] / (np.sqrt(xx[b]) * np.sqrt(zz[b]))
            r[b] = 1.0 if value > 1.0 else -1.0 if value < -1.0 else value


@part
def _calendar(kind, index, m, day, r):
    """day: rows of a day; 1970-01-01 was a Thursday, the fourth day from Monday."""
    for b in range(m):
        time = ((index + b) % day) / day
        weekday = ((index + b) // day + 3) % 7
        if kind == DAY_TIME:
            r[b] = time
        elif kind == DAY_SINE:
            r[b] = np.sin(2.0 * np.pi * time)
        elif kind == DAY_COSINE:
            r[b] = np.cos(2.0 * np.pi * time)
        elif kind == WEEK_DAY:
            r[b] = weekday
        elif kind == WEEK_SINE:
            r[b] = np.sin(2.0 * np.pi * weekday / 7.0)
        else:
            r[b] = np.cos(2.0 * np.pi * weekday / 7.0)


@part
def _compute(slot, series, p0, m, index, state, c, r, acc):
    """One slot for m rows: the value is c + r."""
    kind, rows, w = slot[KIND], slot[ROWS], slot[WINDOW]
    y, z, v = series[slot[SERIES]], series[slot[SERIES_B]], series[slot[SERIES_C]]
    n = acc[0]
    if kind <= BOLLINGER or kind in (MACD, MACD_SIGNAL, MACD_HIST):
        _centres(y, p0, m, rows, c)
    if kind == EMA:
        _weighted(y, p0, m, rows, 1.0 - 2.0 / (w + 1.0), c, r, n)
    elif kind == WILDER:
        _weighted(y, p0, m, rows - 1, 1.0 - 1.0 / w, c, r, n)
    elif kind == WMA:
        _linear(y, p0, m, rows, c, r, n)
    elif kind <= BOLLINGER:
        _mean(y, p0, m, rows, c, r, n)
        if kind in (STDDEV, BOLLINGER):
            _second(y, p0, m, rows, c, r, n, acc[1])
            for b in range(m):
                deviation = np.sqrt(acc[1, b])
                if kind == BOLLINGER:
                    away = (y[p0 + b] - c[b]) - r[b]
                    r[b] = 0.5 + 0.25 * (away / deviation)
                else:
                    r[b] = deviation
        elif kind == SLOPE:
            _slope(y, p0, m, rows, c, r, n, acc[1], acc[2], acc[3], acc[4])
            r[:m] = acc[4, :m]
        elif kind in (SKEW, KURTOSIS):
            _higher(y, p0, m, rows, kind, c, r, n, acc[1], acc[2])
            r[:m] = acc[2, :m]
    elif kind == RSI:
        _rsi(y, p0, m, rows - 1, 1.0 - 1.0 / w, r, acc[0], acc[1])
    elif kind == ROC:
        for b in range(m):
            before = y[p0 + b - w]
            r[b] = 100.0 * ((y[p0 + b] - before) / before)
    elif kind <= MACD_HIST:
        _macd(y, p0, m, kind, w, slot[SECOND], slot[THIRD_WINDOW], c, r, acc)
    elif kind == STOCHASTIC:
        _stochastic(y, z, v, p0, m, w, slot[SECOND], r, acc[0], acc[1], acc[2])
    elif kind == FLOW_SHARE:
        _flow_share(y, z, p0, m, w, r, n)
    elif kind == VWAP_DISTANCE:
        _vwap_distance(y, z, p0, m, w, r, n, acc[1])
    elif kind == VOLATILITY:
        _volatility(y, p0, m, w, r, n)
    elif kind == RANK:
        _rank(y, p0, m, w, r, n, acc[1])
    elif kind == QUANTILE:
        _quantiles(y, p0, m, w, slot[SECOND], state[slot[STATE] : slot[STATE] + w + 1], r)
    elif kind == LSBM:
        _lsbm(y, p0, m, w, r)
    elif kind == FMAX:
        _fmax(y, p0, m, w, r)
    elif kind <= BETA:
        _pair(y, z, p0, m, w, kind, r, acc)
    else:
        _calendar(kind, index, m, w, r)
    # A mean lies at its centre; everything else is itself.
    if kind > WMA:
        for b in range(m):
            c[b] = 0.0


@part
def _finish(output, results, m, r0, out):
    """Writes a feature's column: its slot as it is, or beside the slot of another window."""
    form, percent, logarithm = output[FORM], output[PERCENT], output[LOGARITHM]
    c, r = results[2 * output[SLOT]], results[2 * output[SLOT] + 1]
    base_c, base_r = results[2 * output[BASE]], results[2 * output[BASE] + 1]
    for b in range(m):
        value = c[b] + r[b]
        if form != PLAIN:
            base = base_c[b] + base_r[b]
            difference = (c[b] - base_c[b]) + (r[b] - base_r[b])
            if form == DIFFERENCE:
                value = difference
            else:
                share = difference / base
                value = share if form == RELATIVE else value / base
                if form == RATIO and logarithm != 0 and percent == 0 and abs(share) < 0.5:
                    value = np.log1p(share)
                    out[r0 + b, output[COLUMN]] = 0.0 if abs(value) <= ZERO else value
                    continue
        if percent != 0:
            value *= 100.0
        if logarithm != 0:
            value = np.log(value) if value > 0.0 else np.nan
        value = value if abs(value) < np.inf else np.nan
        out[r0 + b, output[COLUMN]] = 0.0 if abs(value) <= ZERO else value


@cached
def advance(rows, out, table, history, last, state, scratch):
    """Takes rows of one source, oldest first, that follow those before; writes their features.

    rows: (n, columns); out: (n, n_features), of which the outputs name the columns written here.
    table: (_, ROW) int64, what to compute:
        1 head row: FILL positions of the history are taken, the newest but FILL - 1 being the row
            of index INDEX - 1, the first row ever had the index FIRST; KEEP rows are to be kept;
            how many rows of the other kinds there are;
        N_SERIES rows: how a series derives from the columns (RECIPE, LEFT, RIGHT, THIRD);
        N_SLOTS rows: what is computed (KIND) from which series; ROWS it depends on;
        N_OUTPUTS rows: the features.
    history: (N_SERIES, capacity), KEEP positions of NaN before the first row; last: (columns,), the
    row before; state: sorted windows; scratch: (ACCUMULATORS + 2 * N_SLOTS, chunk).
    """
    n_series, n_slots, n_outputs = table[0, N_SERIES], table[0, N_SLOTS], table[0, N_OUTPUTS]
    recipes = table[1 : 1 + n_series]
    slots = table[1 + n_series : 1 + n_series + n_slots]
    outputs = table[1 + n_series + n_slots :]
    acc, results = scratch[:ACCUMULATORS], scratch[ACCUMULATORS:]
    chunk = scratch.shape[1]
    for r0 in range(0, rows.shape[0], chunk):
        m = min(chunk, rows.shape[0] - r0)
        p0 = table[0, FILL]
        if p0 + m > history.shape[1]:
            keep = table[0, KEEP]
            start = p0 - keep
            for s in range(n_series):
                for i in range(keep):
                    history[s, _at(i)] = history[s, _at(start + i)]
            p0 = keep
        table[0, FILL] = p0 + m
        index = table[0, INDEX]
        table[0, INDEX] = index + m
        age = index - table[0, FIRST]
        for s in range(n_series):
            _derive(rows, r0, m, recipes[s], history[s], p0, last)
        for i in range(last.shape[0]):
            last[i] = rows[r0 + m - 1, i]
        for s in range(n_slots):
            c, r = results[2 * s], results[2 * s + 1]
            _compute(slots[s], history, p0, m, index, state, c, r, acc)
            for b in range(min(m, max(0, slots[s, ROWS] - 1 - age))):
                r[b] = np.nan
        for o in range(n_outputs):
            _finish(outputs[o], results, m, r0, out)
