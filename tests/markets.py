"""Made-up candles and scores with everything that real ones have: gaps, jumps, missing scores."""

import numpy as np

from shared.rules import NAN, Costs, Rules
from trainer.grid import Market

MINUTE = 60_000


def market(rows: int, seed: int, *, gaps: float = 0.02, wild: float = 0.004) -> Market:
    random = np.random.default_rng(seed)
    moves = random.normal(0, wild, rows) * np.where(random.random(rows) < 0.02, 8, 1)
    close = 100 * np.exp(np.cumsum(moves))
    opened = np.append(100.0, close[:-1]) * np.exp(random.normal(0, wild / 4, rows))
    high = np.maximum(opened, close) * (1 + np.abs(random.normal(0, wild, rows)))
    low = np.minimum(opened, close) * (1 - np.abs(random.normal(0, wild, rows)))
    score = np.zeros(rows)
    for row in range(1, rows):
        score[row] = 0.9 * score[row - 1] + random.normal(0, 0.1)
    score = np.clip(score, -1, 1)
    score[random.random(rows) < 0.03] = NAN
    start = random.integers(0, rows, int(rows * gaps / 3))
    for first in start:
        close[first : first + random.integers(1, 6)] = NAN
    volatility = np.abs(random.normal(wild, wild / 4, rows))
    volatility[random.random(rows) < 0.05] = NAN
    times = 28_333_334 * MINUTE + MINUTE * np.arange(rows, dtype=np.int64)
    return Market.of(times, [opened, high, low, close], score, volatility)


def rules(**changes: float) -> Rules:
    values: dict[str, float] = {
        "step_ms": MINUTE, "longs": True, "shorts": False,
        "buy": 0.15, "sell": -0.15, "exit_long": -0.15, "exit_short": 0.15,
    }  # fmt: skip
    return Rules(**(values | changes))  # type: ignore[arg-type]


COSTS = Costs(0.001, 0.0005, True)
NO_COSTS = Costs(0.0, 0.0, True)
# Every rule at least once, alone and with others.
KINDS: dict[str, dict[str, float]] = {
    "seed": {},
    "limit orders, as the predecessor": {"limit": 0.002},
    "limit orders that are marketable": {"limit": -0.001},
    "short": {"longs": False, "shorts": True},
    "both": {"shorts": True},
    "both with hysteresis": {"shorts": True, "exit_long": 0.0, "exit_short": 0.05},
    "both by limit orders": {"shorts": True, "limit": 0.001},
    "stop": {"stop_loss": 0.01},
    "target": {"take_profit": 0.01},
    "trailing": {"trailing_stop": 0.012},
    "all protection, both": {
        "shorts": True, "stop_loss": 0.01, "take_profit": 0.015, "trailing_stop": 0.008,
        "max_candles": 30, "cool_down": 7,
    },
    "all protection, limit orders": {
        "shorts": True, "limit": 0.003, "stop_loss": 0.01, "take_profit": 0.015,
        "trailing_stop": 0.008, "max_candles": 30,
    },
    "time": {"max_candles": 12},
    "cool-down": {"cool_down": 25, "shorts": True},
    "fixed": {"fixed": 1500.0, "share": 0.5},
    "volatility": {"volatility": 0.002, "shorts": True, "stop_loss": 0.02},
}  # fmt: skip
