"""The 1,600-point threshold grid against the predecessor's loop and vectorbt, in one run.

Ours: every pair with fees, slippage, next-bar execution, and all its figures, daily returns and
drawdown included, over all rows. The predecessor's: its loop over rows in Python, per pair (buy
above, sell below at the close, no costs, sums of profits), on a few pairs, extrapolated. vectorbt
(not a dependency; installed or left out): `Portfolio.from_signals` with the same orders and costs
and the same figures, on fewer rows and pairs, extrapolated; its final worth must be ours.

    python -m benchmarks.signals [--rows 2000000] [--json]
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
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


def with_vectorbt(vbt: Any, market: Market, points: np.ndarray) -> np.ndarray:
    """Worth at the end of each pair; the other figures of our table are computed, too."""
    index = pd.to_datetime(market.open_time_ms, unit="ms")
    score = np.append(np.nan, market.score[:-1])[:, None]  # decided at the close before
    done = vbt.Portfolio.from_signals(
        pd.Series(market.close, index),
        pd.DataFrame(score > points[:, 0], index),
        pd.DataFrame(score < points[:, 1], index),
        price=pd.Series(market.open, index),
        fees=COSTS.fee,
        slippage=COSTS.slippage,
        init_cash=CAPITAL,
        freq="1min",
    )
    daily = done.value().resample("1D").last().pct_change()
    daily.mean() / daily.std()
    done.max_drawdown(), done.trades.win_rate(), done.trades.profit_factor()
    return np.asarray(done.final_value())


def seconds(call: Callable[[], Any]) -> tuple[float, float, Any]:
    """Wall and CPU seconds of the process, and what came of it."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = call()
    return time.perf_counter() - wall, time.process_time() - cpu, found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--slice", type=int, default=200_000, help="rows of the slower ways")
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
    try:
        import vectorbt
    except ImportError:
        report["vectorbt"] = None
    else:
        many = points[:: len(points) // 20]
        with_vectorbt(vectorbt, part.rows(0, 5_000), many[:2])
        _, theirs, worth = seconds(lambda: with_vectorbt(vectorbt, part, many))
        truth = grid.search(part, many, own, COSTS, CAPITAL).figures[:, grid.WORTH]
        assert np.allclose(worth, truth, rtol=1e-9), "vectorbt's accounts end elsewhere"
        theirs *= args.rows / args.slice * len(points) / len(many)
        report["vectorbt"] = {"cpu_s": theirs, "times_ours": theirs / cpu}

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
        if one is None:
            print(f"  {name:36} not installed: left out (pip install vectorbt)")
        else:
            print(
                f"  {name + ', extrapolated':36} CPU {one['cpu_s']:21,.0f} s   "
                f"{one['times_ours']:,.0f}x ours"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
