"""Every form of label over years of minutes, and beside it the predecessor's way on a slice.

The predecessor calls Python for each window of each row (`rolling(w).apply`), finds target and stop
by a Numba window function and then a Python call per row, and tops by a recursion over pandas
slices. It has no triple barrier and no trend scanning: there, the usual plain way stands in (NumPy
per row, and least squares per row and span). Where both give a value it must be the same.

CPU seconds of one core; the slice's time is extrapolated to all rows. Data: --data, else
BTCUSDT-1m.parquet of the test data, else a made walk.

    python -m benchmarks.labels [--data FILE ...] [--rows N] [--runs 3] [--slice 20000] [--json]
"""

import argparse
import contextlib
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import linregress

from shared.klinefiles import read_klines
from shared.klines import KLINE_COLUMNS, KlineTable, to_raster
from tests.shared.features.candles import calm
from trainer.labels import label, paths, trailing_sigma

ROWS = 2_363_407
H = 180
NAMES = (
    *("high_10", "low_02", "high_max_60", "high_max_180", "high_to_low_180"),
    *("close_area_future_60", "close_area_future_300", "highv", "high2_20_04", "tb_up"),
    *("trend_t", "top2_20_05", "bot2_20_05"),
)
LONGER = ("high_10", "high2_20_04", "tb_up")  # at 8 times the horizon as well


def candles(files: list[Path], rows: int | None) -> KlineTable:
    home = Path(os.environ.get("ITB_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not files and (home / "BTCUSDT-1m.parquet").exists():
        files = [home / "BTCUSDT-1m.parquet"]
    if files:
        table = to_raster(read_klines(files)[0])
        return table if rows is None else table.tail(rows)
    count = rows or ROWS
    times = 60_000 * np.arange(27_000_000, 27_000_000 + count, dtype=np.int64)
    values = calm(np.random.default_rng(1), count)
    return KlineTable(symbol="MADE", interval="1m", open_time_ms=times, values=values)


# --- the predecessor's way ------------------------------------------------------------------------


def applied(x: pd.Series, window: int, function: Callable[[np.ndarray], float]) -> pd.Series:
    """Of rows t+1 .. t+window."""
    return x.rolling(window).apply(function, raw=True).shift(-window)


def high_max(frame: pd.DataFrame, window: int = H) -> pd.Series:
    return 100.0 * (applied(frame["high"], window, np.max) - frame["close"]) / frame["close"]


def low_min(frame: pd.DataFrame, window: int = H) -> pd.Series:
    return 100.0 * (applied(frame["low"], window, np.min) - frame["close"]) / frame["close"]


def high_to_low(frame: pd.DataFrame) -> pd.Series:
    up = high_max(frame).clip(lower=0)
    down = low_min(frame).clip(upper=0) * -1
    return up / (up + down) * 2 - 1


def area(frame: pd.DataFrame, window: int) -> pd.Series:
    def one(x: np.ndarray) -> float:
        d = x - x[0]
        a, b = np.nansum(d), np.nansum(np.absolute(d))
        return (b + a) / 2 / b * 2 - 1

    return frame["close"].rolling(window).apply(one, raw=True).shift(-(window - 1))


def scaled(frame: pd.DataFrame) -> pd.Series:
    returns = np.log(frame["close"]).diff()
    sigma = returns.rolling(720).apply(np.std, raw=True)
    return (high_max(frame) >= 1.25 * 100 * sigma * np.sqrt(H)).where(sigma.notna())


def first_crossing(frame: pd.DataFrame, column: str, factor: float) -> pd.Series:
    def one(x):
        edge = x[0, 0] * factor
        for i in range(1, x.shape[0]):
            if (factor > 1 and x[i, 1] > edge) or (factor < 1 and x[i, 1] < edge):
                return np.full(x.shape[1], float(i - 1))
        return np.full(x.shape[1], np.nan)

    windows = frame[["close", column]].rolling(H + 1, method="table")
    return windows.apply(one, raw=True, engine="numba")[column].shift(-H)


def target_first(frame: pd.DataFrame) -> pd.Series:
    both = pd.DataFrame(
        {
            "up": first_crossing(frame, "high", 1 + 2.0 / 100),
            "down": first_crossing(frame, "low", 1 - 0.4 / 100),
        }
    )

    def one(x: np.ndarray) -> bool:
        if np.isnan(x[0]):
            return False
        return bool(np.isnan(x[1]) or x[0] < x[1])  # there <=: a candle with both is a success

    return both.apply(one, raw=True, axis=1)


def barrier(frame: pd.DataFrame) -> pd.Series:
    close, high, low = (frame[name].to_numpy() for name in ("close", "high", "low"))
    far = pd.Series(np.log(close)).diff().rolling(720).std(ddof=0).to_numpy() * np.sqrt(H)
    y = np.full(len(close), np.nan)
    for t in range(720, len(close) - H):
        up = np.flatnonzero(high[t + 1 : t + H + 1] >= close[t] * (1 + far[t]))
        down = np.flatnonzero(low[t + 1 : t + H + 1] <= close[t] * (1 - far[t]))
        y[t] = len(up) > 0 and (not len(down) or up[0] < down[0])
    return pd.Series(y)


def trend(frame: pd.DataFrame) -> pd.Series:
    def one(x: np.ndarray) -> float:
        best = 0.0
        for span in paths.spans(H):
            line = linregress(np.arange(span + 1), x[: span + 1])
            size = line.slope / line.stderr
            best = size if abs(size) > abs(best) else best
        return best

    return frame["close"].rolling(H + 1).apply(one, raw=True).shift(-H)


def turn(frame: pd.DataFrame, *, is_top: bool) -> pd.Series:
    prices = frame["close"].reset_index(drop=True) * (1 if is_top else -1)
    y = pd.Series(0.0, index=prices.index)
    intervals = [(0, len(prices) - 1)]
    while intervals:
        start, end = intervals.pop()
        part = prices.loc[start:end]
        top = part.idxmax()
        value = part.loc[top]
        left, right = part.loc[:top], part.loc[top:]
        level, near = (value - f * abs(value) for f in (0.02, 0.005))
        before, after = left[left < level], right[right < level]
        if len(before) and len(after):
            run = left[left < near].index[-1] + 1, right[right < near].index[0] - 1
            y.loc[run[0] : run[1]] = 1.0
        if len(before) and start < before.index[-1]:
            intervals.append((start, before.index[-1]))
        if len(after) and after.index[0] < end:
            intervals.append((after.index[0], end))
    return y


# label: (the predecessor's way, rows of the slice that it gets)
PREDECESSOR: dict[str, tuple[Callable[[pd.DataFrame], pd.Series], float]] = {
    "high_10": (lambda frame: high_max(frame) >= 1.0, 1),
    "low_02": (lambda frame: low_min(frame) >= -0.2, 1),
    "high_max_60": (lambda frame: high_max(frame, 60), 1),
    "high_max_180": (high_max, 1),
    "high_to_low_180": (high_to_low, 1),
    "close_area_future_60": (lambda frame: area(frame, 60), 1),
    "close_area_future_300": (lambda frame: area(frame, 300), 1),
    "highv": (scaled, 1),
    "high2_20_04": (target_first, 1),
    "tb_up": (barrier, 1),
    "trend_t": (trend, 0.04),
    "top2_20_05": (lambda frame: turn(frame, is_top=True), 10),
    "bot2_20_05": (lambda frame: turn(frame, is_top=False), 10),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """cpu_s: best run over all rows; predecessor_s: extrapolated to them; differs: largest
    difference of the values that both know, None = not compared."""

    name: str
    horizon: int
    cpu_s: float
    predecessor_s: float | None = None
    differs: float | None = None
    compared: int = 0


def measure(name: str, table: KlineTable, horizon: int, runs: int) -> float:
    label(name, table.rows(0, 2000), horizon)  # compiles
    taken = []
    for _ in range(runs):
        start = time.process_time()
        label(name, table, horizon)
        taken.append(time.process_time() - start)
    return min(taken)


def beside(name: str, table: KlineTable, rows: int) -> tuple[float, float, int]:
    """(CPU seconds per row of the predecessor's way, largest difference, values compared)."""
    way, share = PREDECESSOR[name]
    part = table.tail(max(int(rows * share), 2 * H))
    frame = pd.DataFrame(part.values[:, :5], columns=KLINE_COLUMNS[:5])
    if name == "high2_20_04":
        way(frame.head(2 * H))  # compiles
    start = time.process_time()
    theirs = way(frame).astype(np.float64).to_numpy()
    taken = time.process_time() - start
    own = label(name, part, H).y
    both = ~np.isnan(own) & ~np.isnan(theirs)
    assert both.any(), name
    return taken / len(part), float(np.abs(own - theirs)[both].max()), int(both.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", type=Path, default=[], metavar="FILE")
    parser.add_argument("--rows", type=int, help="the last N only")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--slice", type=int, default=20_000, help="rows of the predecessor's way")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # of pandas about empty windows
    with contextlib.suppress(AttributeError):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    table = candles(args.data, args.rows)
    results = []
    for name in NAMES:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{name:30s}")
        per_row, differs, compared = beside(name, table, args.slice)
        results.append(
            Result(
                name=name,
                horizon=H,
                cpu_s=measure(name, table, H, args.runs),
                predecessor_s=per_row * len(table),
                differs=differs,
                compared=compared,
            )
        )
    results += [
        Result(name=name, horizon=8 * H, cpu_s=measure(name, table, 8 * H, args.runs))
        for name in LONGER
    ]
    closes = table.column("close")
    start = time.process_time()
    trailing_sigma(closes)
    sigma_s = time.process_time() - start
    if sys.stderr.isatty():
        sys.stderr.write("\r" + " " * 30 + "\r")
    if args.json:
        report = {
            f"{one.name} {one.horizon}": {
                "cpu_s": one.cpu_s,
                "predecessor_s": one.predecessor_s,
                "times_ours": one.predecessor_s and one.predecessor_s / one.cpu_s,
                "differs": one.differs,
                "compared": one.compared,
            }
            for one in results
        }
        print(json.dumps({"rows": len(table), "sigma_s": sigma_s, "labels": report}))
        return
    print(f"{table.symbol}, {len(table):,} rows, CPU seconds; sigma alone {sigma_s:.2f}")
    head = ("horizon", "ours", "predecessor's", "x ours", "differs by", "compared")
    print(f"{'':24}" + "".join(f"{text:>14}" for text in head))
    for one in results:
        line = f"{one.name:24}{one.horizon:14}{one.cpu_s:14.3f}"
        if one.predecessor_s is not None:
            line += f"{one.predecessor_s:14.1f}{one.predecessor_s / one.cpu_s:14.0f}"
            line += f"{one.differs:14.1e}{one.compared:14,}"
        print(line)
    print(f"The predecessor's time is extrapolated from {args.slice:,} rows.")


if __name__ == "__main__":
    main()
