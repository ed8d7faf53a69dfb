# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Numba infers the types of what it compiles.
"""What the closes ahead look like: the area about today's close, and the clearest trend.

Both add up differences to the close of row t, in the order of the rows: the bits of a row's value
depend on nothing else. Rows are worked on side by side, so that the compiler uses vectors.
"""

import numpy as np
import numpy.typing as npt

from shared.features.kernel import cached

Floats = npt.NDArray[np.float64]

FIRST_SPAN = 20
SPAN_STEP = 5
LARGEST_T = 1e5
_BLOCK = 256  # rows side by side
_GROUP = 8  # differences that are added up before the sum of the window is touched
_at = np.uintp  # as an index: Numba then does not ask whether it is negative, and LLVM vectorises


def area_ahead(close: Floats, window: int) -> Floats:
    """sum(d) / sum(|d|) over d = close[r] - close[t], r = t .. t+window-1; in [-1, 1].

    NaN where a close is, where the window is not whole, and where it is flat.
    """
    y = np.full(len(close), np.nan)
    if len(close) >= window:
        _area(close, window, y[: len(close) - window + 1])
    return y


def spans(window: int) -> tuple[int, ...]:
    """Rows ahead of the lines that a trend is looked for with: 20, 25, 30 ... and the window."""
    return tuple(sorted({*range(FIRST_SPAN, window + 1, SPAN_STEP), window}))


def clearest_trend(close: Floats, window: int) -> Floats:
    """The t-value of largest size among those of the least-squares lines through the closes of rows
    t .. t+L, for L of `spans`.

    López de Prado, Machine Learning for Asset Managers (2020), section 5.4. A line's t-value is its
    slope over the slope's standard error, sqrt(RSS / (L - 1) / sum((i - L/2)^2)). Of equal sizes
    the shortest line counts. 0 where all closes are the same; a size beyond 100,000 (a line as
    good as straight) is 100,000. NaN where a close is, and where the window is not whole.
    """
    y = np.full(len(close), np.nan)
    if len(close) > window:
        _trend(close, np.array(spans(window)), y[: len(close) - window])
    return y


@cached
def _area(close, window, out):
    total = np.empty(_BLOCK)
    size = np.empty(_BLOCK)
    for start in range(0, len(out), _BLOCK):
        here = min(_BLOCK, len(out) - start)
        for b in range(here):
            total[b] = size[b] = 0.0
        i = 1
        while i + _GROUP <= window:
            for b in range(here):
                now = close[_at(start + b)]
                t = a = 0.0
                for g in range(_GROUP):
                    d = close[_at(start + b + i + g)] - now
                    t += d
                    a += abs(d)
                total[b] += t
                size[b] += a
            i += _GROUP
        for b in range(here):
            t, a = total[b], size[b]
            for r in range(i, window):
                d = close[_at(start + b + r)] - close[_at(start + b)]
                t += d
                a += abs(d)
            out[_at(start + b)] = t / a


@cached
def _trend(close, ends, out):
    sum_d = np.empty(_BLOCK)
    sum_id = np.empty(_BLOCK)
    sum_dd = np.empty(_BLOCK)
    best = np.empty(_BLOCK)  # square of the t-value, with its sign
    largest = LARGEST_T * LARGEST_T
    for start in range(0, len(out), _BLOCK):
        here = min(_BLOCK, len(out) - start)
        for b in range(here):
            sum_d[b] = sum_id[b] = sum_dd[b] = best[b] = 0.0
        i = 1
        for end in ends:
            while i <= end:
                if i + SPAN_STEP - 1 <= end:
                    for b in range(here):
                        now = close[_at(start + b)]
                        s, si, ss = sum_d[b], sum_id[b], sum_dd[b]
                        for g in range(SPAN_STEP):
                            d = close[_at(start + b + i + g)] - now
                            s += d
                            si += (i + g) * d
                            ss += d * d
                        sum_d[b], sum_id[b], sum_dd[b] = s, si, ss
                    i += SPAN_STEP
                else:
                    for b in range(here):
                        d = close[_at(start + b + i)] - close[_at(start + b)]
                        sum_d[b] += d
                        sum_id[b] += i * d
                        sum_dd[b] += d * d
                    i += 1
            n = end + 1.0
            spread = n * (n * n - 1.0) / 12.0  # of the rows 0 .. end about their mean
            for b in range(here):
                together = sum_id[b] - 0.5 * end * sum_d[b]
                explained = together * together / spread
                rest = sum_dd[b] - sum_d[b] * sum_d[b] / n - explained
                square = (n - 2.0) * explained
                square = largest if rest * largest <= square else square / rest
                square = square if together != 0.0 else 0.0
                signed = -square if together < 0.0 else square
                # A NaN becomes the best and stays: no comparison with it is true.
                best[b] = best[b] if square <= abs(best[b]) else signed
        for b in range(here):
            root = np.sqrt(abs(best[b]))
            out[_at(start + b)] = -root if best[b] < 0.0 else root
