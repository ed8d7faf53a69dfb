"""vectorbt on a slice of the grid, in an environment of its own: `python _vectorbt.py IN.npz OUT`.

Imports nothing of ours, so that vectorbt may want whatever versions it likes. IN: times (epoch
ms), open, close, score (n,), points (m, 2) of buy and sell thresholds, fee, slippage, capital. OUT
(npz): worth (m,) at the end, cpu_s, version.
"""

import sys
import time

import numpy as np
import pandas as pd
import vectorbt as vbt


def run(given: dict[str, np.ndarray], rows: int, points: np.ndarray) -> np.ndarray:
    """Worth at the end of each pair; the other figures of our table are computed, too."""
    index = pd.to_datetime(given["times"][:rows], unit="ms")
    score = np.append(np.nan, given["score"][: rows - 1])[:, None]  # decided at the close before
    done = vbt.Portfolio.from_signals(
        pd.Series(given["close"][:rows], index),
        pd.DataFrame(score > points[:, 0], index),
        pd.DataFrame(score < points[:, 1], index),
        price=pd.Series(given["open"][:rows], index),
        fees=float(given["fee"]),
        slippage=float(given["slippage"]),
        init_cash=float(given["capital"]),
        freq="1min",
    )
    daily = done.value().resample("1D").last().pct_change()
    daily.mean() / daily.std()
    done.max_drawdown(), done.trades.win_rate(), done.trades.profit_factor()
    return np.asarray(done.final_value())


def main() -> None:
    given = dict(np.load(sys.argv[1]))
    points = given["points"]
    run(given, 5_000, points[:2])  # compiles
    start = time.process_time()
    worth = run(given, len(given["close"]), points)
    np.savez(sys.argv[2], worth=worth, cpu_s=time.process_time() - start, version=vbt.__version__)


if __name__ == "__main__":
    main()
