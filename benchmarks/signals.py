"""The 1,600-point threshold grid against the predecessor's loop and vectorbt, in one run.

Ours: every pair with fees, slippage, next-bar execution, and all its figures, daily returns and
drawdown included, over all rows. The predecessor's: its loop over rows in Python, per pair (buy
above, sell below at the close, no costs, sums of profits), on a few pairs, extrapolated. vectorbt
(no dependency: installed into a throw-away environment, or left out with a word):
`Portfolio.from_signals` with the same orders and costs and the same figures, on fewer rows and
pairs, extrapolated; its final worth must be ours.

    python -m benchmarks.signals [--rows 2000000] [--no-vectorbt] [--json]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from shared.rules import Costs, Rules
from trainer import grid, performance
from trainer.grid import Market
from trainer.signals import points_of, steps_of

MINUTE = 60_000
COSTS = Costs(0.001, 0.0002, False)
CAPITAL = 10_000.0
_LONGEST_S = 600
BUY, SELL = steps_of((0.10, 0.49, 0.01)), steps_of((-0.10, -0.49, 0.01))


def made(rows: int) -> Market:
    """A random walk, and a score that changes side every hour or so."""
    random = np.random.default_rng(1)
    close = 30_000 * np.exp(np.cumsum(random.normal(0, 6e-4, rows)))
    opened = np.append(close[0], close[:-1])
    high = np.maximum(opened, close) * (1 + np.abs(random.normal(0, 3e-4, rows)))
    low = np.minimum(opened, close) * (1 - np.abs(random.normal(0, 3e-4, rows)))
    noise = pd.Series(random.normal(0, 1, rows)).ewm(alpha=0.02).mean().to_numpy()
    times = 25_000_000 * MINUTE + MINUTE * np.arange(rows, dtype=np.int64)
    return Market.of(times, [opened, high, low, close], np.clip(noise / noise.std() / 5, -1, 1))


def rules(**changes: Any) -> Rules:
    values: dict[str, Any] = {
        "step_ms": MINUTE, "longs": True, "shorts": False, "buy": 0.15, "sell": -0.15,
        "exit_long": float("nan"), "exit_short": float("nan"), "share": 1.0,
    }  # fmt: skip
    return Rules(**(values | changes))


def ours(market: Market, own: Rules, points: np.ndarray) -> grid.Grid:
    found = grid.search(market, points, own, COSTS, CAPITAL)
    returns = performance.daily_returns(found.daily, CAPITAL)
    performance.sharpe(returns), performance.sortino(returns)
    return found


def predecessor(rows: pd.DataFrame, buy: float, sell: float) -> dict[str, float]:
    """`train_signal_models` of the predecessor (predecessor.md 8.5)."""
    bought = 0.0
    profits = []
    for row in rows.itertuples():
        if not bought:
            if row.score > buy:
                bought = row.close
        elif row.score < sell:
            profits.append(row.close - bought)
            bought = 0.0
    gained = np.array(profits)
    return {
        "profit_sum": float(gained.sum()),
        "profit_avg": float(gained.mean()),
        "profit_std": float(gained.std()),
        "profitable_percent": 100 * float((gained > 0).mean()),
        "sell_t_per_month": len(gained) / len(rows) * 43_920,
    }


def with_vectorbt(market: Market, points: np.ndarray) -> dict[str, Any] | str:
    """worth (m,), cpu_s and version; or why it could not be had.

    vectorbt is installed into an environment that is thrown away: it wants other versions of numpy
    and pandas than ours, which must not decide what we are compared in.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("installing vectorbt into a throw-away environment ...", file=sys.stderr, flush=True)
        python = folder / "venv" / "bin" / "python"
        steps = (
            [sys.executable, "-m", "venv", str(folder / "venv")],
            [str(python), "-m", "pip", "install", "-q", "--prefer-binary", "vectorbt"],
        )
        np.savez(
            folder / "in.npz",
            times=market.open_time_ms,
            open=market.open,
            close=market.close,
            score=market.score,
            points=points,
            fee=COSTS.fee,
            slippage=COSTS.slippage,
            capital=CAPITAL,
        )
        script = Path(__file__).with_name("_vectorbt.py")
        run = [str(python), "-W", "ignore", str(script), str(folder / "in.npz")]
        for step in (*steps, [*run, str(folder / "out.npz")]):
            try:
                done = subprocess.run(
                    step,
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=_LONGEST_S,
                    cwd=folder,
                )
            except subprocess.TimeoutExpired:
                return f"`{' '.join(step[1:4])}` took more than {_LONGEST_S} s"
            if done.returncode:
                last = (done.stderr.strip() or done.stdout.strip() or "no word").splitlines()[-1]
                return f"`{' '.join(step[1:4])}` failed: {last[:200]}"
        found = np.load(folder / "out.npz")
        return {name: found[name] for name in ("worth", "cpu_s", "version")}


def seconds(call: Callable[[], Any]) -> tuple[float, float, Any]:
    """Wall and CPU seconds of the process, and what came of it."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = call()
    return time.perf_counter() - wall, time.process_time() - cpu, found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--slice", type=int, default=200_000, help="rows of the slower ways")
    parser.add_argument("--no-vectorbt", action="store_true", help="do not install and run it")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    market, own = made(args.rows), rules()
    points = points_of(BUY, SELL, own)
    few = points[:: len(points) // 4][:4]
    ours(market.rows(0, 5_000), own, points[:2])  # compiles, or reads the cache
    prepared, _, _ = seconds(lambda: market.arrays)
    cores = os.cpu_count() or 1
    report: dict[str, Any] = {"rows": args.rows, "points": len(points), "cores": cores}
    kinds = {
        "ours": own,
        "ours, long and short": own._replace(shorts=True),
        "ours, stop, target, trailing, time": own._replace(
            stop_loss=0.02, take_profit=0.03, trailing_stop=0.015, max_candles=600, cool_down=10
        ),
    }
    for name, kind in kinds.items():
        wall, cpu, found = seconds(lambda kind=kind: ours(market, kind, points))
        trades = float(found.figures[:, grid.TRADES].mean())
        report[name] = {"wall_s": wall, "cpu_s": cpu, "round_trips": trades}
    report["ours"]["blocks_s"] = prepared
    cpu = report["ours"]["cpu_s"]

    part = market.rows(0, args.slice)
    frame = pd.DataFrame({"close": part.close, "score": part.score})
    scale = args.rows / args.slice * len(points) / len(few)
    _, theirs, _ = seconds(lambda: [predecessor(frame, p[0], p[1]) for p in few])
    report["predecessor"] = {"cpu_s": theirs * scale, "times_ours": theirs * scale / cpu}
    if args.no_vectorbt:
        report["vectorbt"] = {"left_out": "--no-vectorbt"}
    else:
        many = points[:: len(points) // 20]
        theirs = with_vectorbt(part, many)
        if isinstance(theirs, str):
            report["vectorbt"] = {"left_out": theirs}
        else:
            truth = grid.search(part, many, own, COSTS, CAPITAL).figures[:, grid.WORTH]
            apart = float(np.max(np.abs(theirs["worth"] / truth - 1)))
            assert apart < 1e-9, f"vectorbt's accounts end elsewhere: {apart:.1e}"
            whole = float(theirs["cpu_s"]) * args.rows / args.slice * len(points) / len(many)
            report["vectorbt"] = {
                "version": str(theirs["version"]),
                "cpu_s": whole,
                "times_ours": whole / cpu,
                "worths_apart": apart,
            }

    if args.json:
        sys.stdout.write(json.dumps(report) + "\n")
        return 0
    print(f"{len(points):,} pairs of thresholds over {args.rows:,} candles, {cores} cores")
    for name in kinds:
        one = report[name]
        print(
            f"  {name:36} wall {one['wall_s']:8.2f} s   CPU {one['cpu_s']:8.2f} s   "
            f"{one['round_trips']:,.0f} round trips a pair"
        )
    for name in ("predecessor", "vectorbt"):
        one = report[name]
        if "left_out" in one:
            print(f"  {name:36} SKIPPED, no comparison: {one['left_out']}")
        else:
            peer = f"{name} {one.get('version', '')}".strip()
            print(
                f"  {peer + ', extrapolated':36} CPU {one['cpu_s']:21,.0f} s   "
                f"{one['times_ours']:,.0f}x ours"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
