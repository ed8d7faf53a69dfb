"""What signals turned into, against the trainer's own labels and scikit-learn."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from shared.events import Signal
from shared.klines import KLINE_COLUMNS, KlineTable
from shared.outcomes import auc, outcome, summary
from trainer.labels import label
from trainer.outcomes import future_return

M = 60_000
HORIZON = 12


def signal(number: int, score: float | None, side: str = "") -> Signal:
    return Signal(
        open_time_ms=number * M,
        symbol="BTCUSDT",
        interval="1m",
        close=100.0,
        score=score,
        side=side,
        invalid="" if score is not None else "gap",
        release="r",
        schema="s",
    )


def market(rows: int, seed: int = 0, gaps: float = 0.02) -> np.ndarray:
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.002, rows)))
    values = np.full((rows, len(KLINE_COLUMNS)), np.nan)
    values[:, 0] = close
    values[:, 1] = close * (1 + rng.uniform(0, 0.003, rows))
    values[:, 2] = close * (1 - rng.uniform(0, 0.003, rows))
    values[:, 3] = close
    values[rng.random(rows) < gaps] = np.nan
    return values


def test_an_outcome_is_what_the_trainers_labels_look_at() -> None:
    values = market(400)
    table = KlineTable(
        symbol="BTCUSDT",
        interval="1m",
        open_time_ms=M * np.arange(400, dtype=np.int64),
        values=values,
    )
    returns = future_return(values[:, 3], HORIZON)
    highest, lowest = (label(f"{name}_{HORIZON}", table).y for name in ("high_max", "low_min"))
    unknown = 0
    for row in range(400 - HORIZON):
        found = outcome(signal(row, 0.1), values[row : row + HORIZON + 1], HORIZON)
        if np.isnan(returns[row]):
            assert found.future_return is None
        else:
            assert found.future_return == pytest.approx(returns[row])
        if np.isnan(highest[row]):
            unknown += 1
            assert (found.highest, found.lowest) == (None, None)
        else:
            assert found.highest == pytest.approx(highest[row])
            assert found.lowest == pytest.approx(lowest[row])
    assert 20 < unknown < 200


def test_the_area_is_that_of_scikit_learn_ties_included() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        scores = np.round(rng.normal(size=200), 1)
        truth = rng.random(200) < 1 / (1 + np.exp(-scores))
        assert auc(truth, scores) == pytest.approx(roc_auc_score(truth, scores))
    assert auc([True, True], np.array([0.1, 0.2])) is None


def test_a_summary_speaks_of_scored_signals_with_known_outcomes() -> None:
    values = market(200, gaps=0)
    sides = ("BUY", "SELL", "")
    rng = np.random.default_rng(2)
    found, kept = [], []
    for row in range(150):
        score = None if row % 10 == 0 else float(rng.uniform(-1, 1))
        one = outcome(signal(row, score, sides[row % 3]), values[row : row + HORIZON + 1], HORIZON)
        found.append(one)
        if score is not None and one.future_return is not None:
            kept.append((sides[row % 3] or "none", score, one.future_return))
    told = summary(found)
    assert told.rows == len(kept) == 135
    for side in ("BUY", "SELL", "none"):
        own = [100 * r for s, _, r in kept if s == side]
        assert told.counts[side] == len(own)
        assert told.mean_return[side] == pytest.approx(np.mean(own))
    truth = [r > 0 for _, _, r in kept]
    assert told.auc == pytest.approx(roc_auc_score(truth, [s for _, s, _ in kept]))
    nothing = summary([])
    assert (nothing.rows, nothing.auc) == (0, None)
    assert not math.isnan(told.auc or math.nan)
