"""The 51 features over many candles: ours against pandas, polars, TA-Lib and the predecessor's way.

All in one run on one core, best and median of some runs, on candles without holes (TA-Lib cannot
skip a NaN). Peers do what they can do: pandas all 51 (close_area by its own Numba engine), polars
and TA-Lib all but close_area; each is compared with ours on the same features. The predecessor
calls Python for each window of each row, so that a slice must do. Each peer's values are checked.

Then, with --files, `trainer features` itself as a process on all cores: four years of minutes from
parquet to parquet, once more with nothing new, and after a day more.

    python -m benchmarks.features_batch [--rows N] [--runs N] [--slice N] [--files] [--json]
"""

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ["POLARS_MAX_THREADS"] = "1"  # read when polars is imported

import numpy as np
import pandas as pd
import polars as pl
import talib
from scipy.stats import linregress

from shared.features import KLINE_51, FeatureSet
from shared.klines import KLINE_COLUMNS
from tests.shared.features.candles import calm
from trainer import rasters

Columns = dict[str, np.ndarray]
BASE = 1440
NO_AREA = tuple(name for name in KLINE_51 if not name.startswith("close_area"))
MEANS = ("volume", "span", "trades", "tb_base", "tb_quote")
FIRST = 27_000_000
FOUR_YEARS = 4 * 365 * 1440 + 1440


def windows(form: str) -> list[int]:
    return [int(name.rsplit("_", 1)[1]) for name in KLINE_51 if name.rsplit("_", 1)[0] == form]


def inputs(rows: np.ndarray) -> Columns:
    """The columns that the definitions read; making them is part of every contestant's time."""
    one = {name: rows[:, at] for at, name in enumerate(KLINE_COLUMNS)}
    return {
        "close": one["close"],
        "volume": one["volume"],
        "turnover": one["close"] * one["volume"],
        "span": one["high"] - one["low"],
        "trades": one["trades"],
        "tb_base": one["taker_base"] / one["volume"],
        "tb_quote": one["taker_quote"] / one["quote_volume"],
    }


def by_windows(
    rows: np.ndarray,
    mean: Callable[[np.ndarray, int], np.ndarray],
    std: Callable[[np.ndarray, int], np.ndarray],
    slope: Callable[[np.ndarray, int], np.ndarray],
) -> np.ndarray:
    """All but close_area from a library's mean, std and slope, as (n, 46)."""
    one = inputs(rows)
    out = {}

    def relative(form: str, of: Callable[[int], np.ndarray]) -> None:
        base = of(BASE)
        for w in windows(form):
            out[f"{form}_{w}"] = 100.0 * (of(w) - base) / base

    relative("close", lambda w: mean(one["turnover"], w) / mean(one["volume"], w))
    relative("close_std", lambda w: std(one["close"], w))
    for form in MEANS:
        relative(form, lambda w, form=form: mean(one[form], w))
    for w in windows("close_trend"):
        out[f"close_trend_{w}"] = slope(one["close"], w)
    return np.column_stack([out[name] for name in NO_AREA])


def with_talib(rows: np.ndarray) -> np.ndarray:
    return by_windows(
        np.asfortranarray(rows),
        lambda x, w: x if w == 1 else talib.SMA(x, w),
        talib.STDDEV,
        talib.LINEARREG_SLOPE,
    )


def with_polars(rows: np.ndarray) -> np.ndarray:
    """Expressions over one frame; the slope by rolling sums, for polars has none."""
    frame = pl.DataFrame(inputs(rows))
    position = pl.int_range(pl.len()).cast(pl.Float64)
    expressions = []

    def relative(form: str, of: Callable[[int], pl.Expr]) -> None:
        expressions.extend(
            (100.0 * (of(w) - of(BASE)) / of(BASE)).alias(f"{form}_{w}") for w in windows(form)
        )

    relative(
        "close", lambda w: pl.col("turnover").rolling_mean(w) / pl.col("volume").rolling_mean(w)
    )
    relative("close_std", lambda w: pl.col("close").rolling_std(w, ddof=0))
    for form in MEANS:
        relative(form, lambda w, form=form: pl.col(form).rolling_mean(w))
    for w in windows("close_trend"):
        x = pl.col("close") - pl.col("close").first()
        covariance = (x * position).rolling_mean(w) - x.rolling_mean(w) * position.rolling_mean(w)
        expressions.append((covariance / ((w * w - 1) / 12)).alias(f"close_trend_{w}"))
    return frame.select(expressions).to_numpy()


def area(x: np.ndarray) -> float:
    total = absolute = 0.0
    for i in range(len(x)):
        d = x[i] - x[-1]
        total += d
        absolute += abs(d)
    return total / absolute if absolute > 0 else np.nan


def with_pandas(rows: np.ndarray) -> np.ndarray:
    """All 51 by `rolling`."""
    position = pd.Series(np.arange(float(len(rows))))
    rest = by_windows(
        rows,
        lambda x, w: pd.Series(x).rolling(w).mean().to_numpy(),
        lambda x, w: pd.Series(x).rolling(w).std(ddof=0).to_numpy(),
        lambda x, w: (
            pd.Series(x).rolling(w).cov(position, ddof=0) / ((w * w - 1) / 12)
        ).to_numpy(),
    )
    close = pd.Series(rows[:, KLINE_COLUMNS.index("close")])
    areas = [
        close.rolling(w).apply(area, raw=True, engine="numba").to_numpy()
        for w in windows("close_area")
    ]
    at = KLINE_51.index(f"close_area_{windows('close_area')[0]}")
    return np.column_stack([rest[:, :at], *areas, rest[:, at:]])


def as_the_predecessor(rows: np.ndarray) -> np.ndarray:
    """`rolling(w).apply(function)` with a Python call for each window."""

    def area_of(x: np.ndarray) -> float:
        d = x - x[-1]
        return float(np.sum(d) / np.sum(np.abs(d)))

    def slope_of(x: np.ndarray) -> float:
        return float(linregress(np.arange(len(x)), x).slope)

    def rolled(x: np.ndarray, w: int, function: Callable[[np.ndarray], float]) -> np.ndarray:
        return pd.Series(x).rolling(w).apply(function, raw=True).to_numpy()

    rest = by_windows(
        rows,
        lambda x, w: rolled(x, w, np.nanmean),
        lambda x, w: rolled(x, w, np.nanstd),
        lambda x, w: rolled(x, w, slope_of),
    )
    close = rows[:, KLINE_COLUMNS.index("close")]
    areas = [rolled(close, w, area_of) for w in windows("close_area")]
    at = KLINE_51.index(f"close_area_{windows('close_area')[0]}")
    return np.column_stack([rest[:, :at], *areas, rest[:, at:]])


def ours(names: tuple[str, ...], workers: int = 1) -> Callable[[np.ndarray], np.ndarray]:
    features = FeatureSet.of(names)
    return lambda rows: features.batch(FIRST, rows, workers=workers)


def measure(
    contestants: dict[str, Callable[[np.ndarray], np.ndarray]], rows: np.ndarray, runs: int
) -> dict[str, list[float]]:
    """Seconds of each run; they take turns, so that a noisy neighbour disturbs all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for contestant in contestants.values():
        contestant(rows[: 2 * BASE])  # compiles
    for run in range(runs):
        for name, contestant in contestants.items():
            if sys.stderr.isatty():
                sys.stderr.write(f"\rrun {run + 1} of {runs}: {name:40s}")
            start = time.perf_counter()
            contestant(rows)
            seconds[name].append(time.perf_counter() - start)
    if sys.stderr.isatty():
        sys.stderr.write("\r" + " " * 60 + "\r")
    return seconds


def differs(peer: np.ndarray, own: np.ndarray) -> float:
    """Largest difference beside the larger of 1 and the value, where both are numbers."""
    both = np.isfinite(peer) & np.isfinite(own)
    assert both.any()
    return float(np.max(np.abs(peer - own)[both] / np.maximum(1.0, np.abs(own[both]))))


def files(rows: int) -> dict[str, dict[str, float]]:
    """Wall and CPU seconds of the command on `rows` candles and, later, a day more."""
    taken = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        times = FIRST * 60_000 + 60_000 * np.arange(rows + 1440, dtype=np.int64)
        values = calm(np.random.default_rng(2), rows + 1440)

        def merged(stop: int) -> None:
            raster = rasters.Raster(
                symbol="X", interval="1m", open_time_ms=times[:stop], kline=values[:stop]
            )
            rasters.MonthFolder(folder / "X-1m").write([raster.columns()], {})

        def run(label: str, *arguments: str) -> None:
            before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "trainer", "features", *arguments],
                env=dict(os.environ) | {"ITB_DATA_FOLDER": name, "ITB_SYMBOLS": "X"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=True,
            )
            wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            taken[label] = {"wall_s": wall, "cpu_s": cpu}

        merged(rows)
        run("monthly parquet to monthly parquet")
        run("again, nothing new")
        merged(rows + 1440)
        run("again, a day more")
        table = {"open_time": times[:rows]}
        table |= {name: values[:rows, at] for at, name in enumerate(KLINE_COLUMNS)}
        bare = folder / "X-1m.parquet"
        rasters.write_fast(bare, table, {})
        run("one file to one file", "--klines", str(bare), "--out", str(folder / "out.parquet"))
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--slice", type=int, default=2_000, help="rows of the predecessor's way")
    parser.add_argument("--files", action="store_true", help="the command, from parquet to parquet")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # of pandas and scipy about warm-up rows
    cores = os.cpu_count() or 1
    with contextlib.suppress(AttributeError):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    rows = calm(np.random.default_rng(1), args.rows)
    contestants = {
        "ours, 51": ours(KLINE_51),
        "pandas rolling, 51": with_pandas,
        "ours, 46 without close_area": ours(NO_AREA),
        "polars, 46 without close_area": with_polars,
        "TA-Lib, 46 without close_area": with_talib,
    }
    seconds = measure(contestants, rows, args.runs)
    part = rows[: BASE + args.slice]
    start = time.perf_counter()
    predecessors = as_the_predecessor(part)[BASE:]
    # Rows before the base window is full cost less: what a further row costs is what counts.
    warm_up = time.perf_counter()
    as_the_predecessor(part[:BASE])
    end = time.perf_counter()
    per_row = ((warm_up - start) - (end - warm_up)) / args.slice
    seconds["predecessor's rolling().apply, 51"] = [per_row * args.rows]

    with contextlib.suppress(AttributeError):
        os.sched_setaffinity(0, range(cores))
    seconds |= measure({f"ours, 51, workers={cores}": ours(KLINE_51, cores)}, rows, args.runs)

    check = rows[:20_000]
    values = contestants["ours, 51"](check)
    columns = [KLINE_51.index(name) for name in NO_AREA]
    difference = {
        "pandas rolling, 51": differs(with_pandas(check), values),
        "polars, 46 without close_area": differs(with_polars(check), values[:, columns]),
        "TA-Lib, 46 without close_area": differs(with_talib(check), values[:, columns]),
        "predecessor's rolling().apply, 51": differs(
            predecessors, contestants["ours, 51"](part)[BASE:]
        ),
    }
    report = {}
    for name, runs in seconds.items():
        own = seconds["ours, 46 without close_area" if "46" in name else "ours, 51"]
        report[name] = {
            "best_s": min(runs),
            "median_s": statistics.median(runs),
            "rows_per_s": args.rows / min(runs),
            "times_ours": min(runs) / min(own),
            "times_ours_median": statistics.median(runs) / statistics.median(own),
            "largest_difference": difference.get(name),
        }
    of_files = files(FOUR_YEARS) if args.files else {}
    if args.json:
        sys.stdout.write(json.dumps(report | of_files) + "\n")
        return
    head = ("best s", "median s", "rows/s", "x ours", "x median", "differs by")
    sys.stdout.write(f"{args.rows:,} rows{'':24}" + "".join(f"{text:>12}" for text in head) + "\n")
    for name, one in report.items():
        by = one["largest_difference"]
        sys.stdout.write(
            f"{name:36}{one['best_s']:12.3f}{one['median_s']:12.3f}{one['rows_per_s']:12,.0f}"
            f"{one['times_ours']:12.2f}{one['times_ours_median']:12.2f}"
            f"{'' if by is None else f'{by:.1e}':>12}\n"
        )
    sys.stdout.write(f"The predecessor's time is extrapolated from {args.slice:,} rows.\n")
    if of_files:
        sys.stdout.write(f"`trainer features`, 51 features of {FOUR_YEARS:,} candles:\n")
    for name, taken in of_files.items():
        sys.stdout.write(f"{name:36}{taken['wall_s']:8.2f} s, CPU {taken['cpu_s']:.2f} s\n")


if __name__ == "__main__":
    main()
