"""One candle's 51 features, and 100 in the TA manner, live: in the kernel, from Python, for many
symbols closing at once; the warm start, the state's size, and what a process waits for before its
first candle.

    python -m benchmarks.features_live [--steps 20000] [--symbols 100 600] [--json]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time

import numba
import numpy as np

from shared.features import KLINE_51, FeatureSet, kernel
from tests.shared.features.candles import calm

FIRST = 27_000_000
_OF_COLUMNS = (
    *("SMA", "EMA", "WMA", "STDDEV", "LINEARREG_SLOPE", "RSI", "ROC", "SKEW", "KURTOSIS"),
    *("QUANTILE25", "RANK", "lsbm", "fmax", "RVOL"),
)
_OF_CANDLES = ("ATR", "STOCHK", "OBV", "VWAPDIST", "close_BBPOS", "close_CORREL", "close_BETA")
TA_100 = (
    *(
        f"{column}_{form}_{w}"
        for column in ("close", "volume")
        for form in _OF_COLUMNS
        for w in (5, 14, 60)
    ),
    *(f"{form}_{w}" for form in _OF_CANDLES for w in (14, 60)),
    *("close_MACD_12_26", "close_MACDSIGNAL_12_26_9"),
)

START = """
import time; start = time.perf_counter()
from shared.features import FeatureSet, KLINE_51
imported = time.perf_counter()
FeatureSet.of(KLINE_51).window()
print(imported - start, time.perf_counter() - imported)
"""


@numba.njit
def one_by_one(rows, out, table, history, stacks, scratch):  # type: ignore[no-untyped-def]
    """As live calls the kernel, a row at a time, without Python between the calls."""
    for at in range(rows.shape[0]):
        kernel.advance(rows[at : at + 1], out, table, history, stacks, scratch)


def percentiles(nanoseconds: list[int]) -> dict[str, float]:
    points = np.percentile(nanoseconds, [50, 99, 99.9]) / 1e3
    return dict(zip(("p50_us", "p99_us", "p99.9_us"), points.tolist(), strict=True))


def in_kernel(rows: np.ndarray) -> float:
    """Mean microseconds of a row inside the kernel."""
    window = FeatureSet.of(KLINE_51).window()
    window.load(FIRST, rows[:1440])
    (_, state), out = window._states[0], np.empty((1, len(KLINE_51)))
    arrays = (state._table, state._history, state._stacks, state._scratch)
    rest = np.frombuffer(rows[1440:].tobytes()).reshape(-1, rows.shape[1])
    one_by_one(rest[:0], out, *arrays)
    start = time.perf_counter()
    one_by_one(rest, out, *arrays)
    return (time.perf_counter() - start) / len(rest) * 1e6


def steps(rows: np.ndarray) -> dict[str, float]:
    window = FeatureSet.of(KLINE_51).window()
    window.load(FIRST, rows[:1440])
    taken = []
    for at in range(1440, len(rows)):
        start = time.perf_counter_ns()
        window.step(FIRST + at, rows[at])
        taken.append(time.perf_counter_ns() - start)
    return percentiles(taken)


def ta_steps(rows: np.ndarray) -> dict[str, float]:
    """A hundred features in the TA manner, of two symbols."""
    window = FeatureSet.of(TA_100).window()
    begin = FeatureSet.of(TA_100).lookback
    other = rows[::-1].copy()
    window.load(FIRST, rows[:begin], None, None, other[:begin])
    taken = []
    for at in range(begin, len(rows)):
        start = time.perf_counter_ns()
        window.step(FIRST + at, rows[at], None, None, other[at])
        taken.append(time.perf_counter_ns() - start)
    return percentiles(taken)


def burst(rows: np.ndarray, symbols: int, candles: int = 30) -> dict[str, float]:
    """All symbols close at once: until the last one's features are there."""
    features = FeatureSet.of(KLINE_51)
    windows = [features.window() for _ in range(symbols)]
    for shift, window in enumerate(windows):
        window.load(FIRST, rows[shift : shift + 1440])
    taken = []
    for at in range(candles):
        start = time.perf_counter_ns()
        for shift, window in enumerate(windows):
            window.step(FIRST + 1440 + at, rows[shift + 1440 + at])
        taken.append(time.perf_counter_ns() - start)
    return percentiles(taken)


def warm_start(rows: np.ndarray) -> dict[str, float]:
    window = FeatureSet.of(KLINE_51).window()
    taken = []
    for _ in range(200):
        start = time.perf_counter_ns()
        window.load(FIRST, rows[:1440])
        taken.append(time.perf_counter_ns() - start)
    return percentiles(taken)


def process_start() -> dict[str, float]:
    """Seconds of a new process, with and without the compiled kernel on disk."""
    report = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("first", "cached"):
            run = subprocess.run(
                [sys.executable, "-c", START],
                env={"PATH": "", "NUMBA_CACHE_DIR": folder},
                capture_output=True,
                text=True,
                check=True,
            )
            imported, ready = map(float, run.stdout.split())
            report |= {f"{kind}_import_s": imported, f"{kind}_window_s": ready}
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--symbols", type=int, nargs="*", default=[100, 600])
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = calm(np.random.default_rng(2), 1440 + args.steps)
    report: dict[str, object] = {
        "kernel": {"mean_us": in_kernel(rows)},
        "step from Python": steps(rows),
        f"{len(TA_100)} in the TA manner": ta_steps(rows),
    }
    for symbols in args.symbols:
        report[f"{symbols} symbols at once"] = burst(rows, symbols)
    report["warm start, 1440 rows"] = warm_start(rows)
    report["state of a symbol"] = {"bytes": FeatureSet.of(KLINE_51).window().nbytes}
    report["new process"] = process_start()
    if args.json:
        sys.stdout.write(json.dumps(report) + "\n")
        return
    for name, figures in report.items():
        assert isinstance(figures, dict)
        text = "  ".join(f"{key} {figure:,.2f}" for key, figure in figures.items())
        sys.stdout.write(f"{name:24}{text}\n")


if __name__ == "__main__":
    main()
