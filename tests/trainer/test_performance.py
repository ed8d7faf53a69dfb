"""Metrics by hand, and the measures of luck against papers and an independent library."""

import math

import numpy as np
import pytest

from trainer import performance
from trainer.performance import Performance


def test_daily_returns_begin_with_the_capital() -> None:
    returns = performance.daily_returns(np.array([[110.0, 99.0], [50.0, 0.0]]), 100.0)
    np.testing.assert_allclose(returns, [[0.1, -0.1], [-0.5, -1.0]])
    assert performance.daily_returns(np.array([0.0, 0.0]), 100.0).tolist() == [-1.0, 0.0]


def test_sharpe_and_sortino_by_hand() -> None:
    returns = np.array([0.01, -0.02, 0.03, 0.0])
    mean = 0.005
    deviation = math.sqrt((0.005**2 + 0.025**2 + 0.025**2 + 0.005**2) / 3)
    assert performance.sharpe(returns) == pytest.approx(mean / deviation * math.sqrt(365))
    downside = math.sqrt(0.02**2 / 4)
    assert performance.sortino(returns) == pytest.approx(mean / downside * math.sqrt(365))


@pytest.mark.parametrize("returns", [[0.0, 0.0, 0.0], [0.1, 0.1, 0.1], [0.1], [0.3]])
def test_without_movement_there_is_no_sharpe(returns: list[float]) -> None:
    assert math.isnan(performance.sharpe(np.array(returns)))
    assert math.isnan(performance.sortino(np.array(returns)))


def test_drawdown_counts_from_the_capital_too() -> None:
    assert performance.max_drawdown(np.array([90.0, 120.0, 60.0, 130.0]), 100.0) == 0.5
    assert performance.max_drawdown(np.array([80.0, 100.0]), 100.0) == pytest.approx(0.2)
    assert performance.max_drawdown(np.array([100.0, 110.0]), 100.0) == 0.0


def test_profit_factor() -> None:
    assert performance.profit_factor(np.array([3.0, -1.0, 2.0, -1.0])) == 2.5
    assert performance.profit_factor(np.array([1.0])) == math.inf
    assert math.isnan(performance.profit_factor(np.array([])))


def test_growth_a_year() -> None:
    assert performance.cagr(1.21, 2 * 365) == pytest.approx(0.1)
    assert math.isnan(performance.cagr(1.0, 0))


def test_all_figures_of_an_account() -> None:
    equity = np.array([100.0, 110.0, 110.0, 99.0, 120.0, 121.0])
    found = performance.measure(
        equity, np.array([1, 3, 5]), 100.0, 3.0, np.array([10.0, -11.0, 22.0]), 4, 600.0, 1.5
    )
    assert isinstance(found, Performance)
    assert found.total_return == pytest.approx(0.21)
    assert found.cagr == pytest.approx(1.21 ** (365 / 3) - 1)
    daily = np.array([0.1, -0.1, 121 / 99 - 1])
    assert found.sharpe == pytest.approx(daily.mean() / daily.std(ddof=1) * math.sqrt(365))
    assert found.sortino == pytest.approx(daily.mean() / (0.1 / math.sqrt(3)) * math.sqrt(365))
    assert found.max_drawdown == pytest.approx(0.1)
    assert found.trades == 3
    assert found.trades_per_month == pytest.approx(30.4375)
    assert found.win_rate == pytest.approx(2 / 3)
    assert found.profit_factor == pytest.approx(32 / 11)
    assert found.exposure == pytest.approx(4 / 6)
    assert found.turnover == pytest.approx(600 / 110 * 365 / 3)
    assert found.fees == 1.5


def test_undefined_figures_are_none() -> None:
    found = performance.measure(
        np.array([100.0]), np.array([0]), 100.0, 1.0, np.array([]), 0, 0.0, 0.0
    )
    assert found.sharpe is found.sortino is found.win_rate is found.profit_factor is None
    assert (found.total_return, found.trades, found.exposure) == (0.0, 0, 0.0)


# --- luck ----------------------------------------------------------------------------------------


def test_deflated_sharpe_is_that_of_the_papers_example() -> None:
    """Bailey and Lopez de Prado (2014), "A numerical example": 5 years of 250 days, the best of 100
    trials has an annual Sharpe ratio of 2.5, the trials' variance is 0.5, skew -3, kurtosis 10:
    expected maximum 0.1132 (a day), deflated Sharpe ratio 0.9004."""
    hurdle = performance.expected_best(0.5 / 250, 100)
    assert hurdle == pytest.approx(0.1132, abs=5e-5)
    found = performance.deflated_sharpe(2.5 / math.sqrt(250), hurdle, 1250, -3, 10)
    assert found == pytest.approx(0.9004, abs=5e-5)


def test_expected_best_is_near_the_mean_of_simulated_maxima() -> None:
    random = np.random.default_rng(1)
    for trials in (10, 200):
        simulated = random.normal(0, 0.3, (20_000, trials)).max(axis=1).mean()
        assert performance.expected_best(0.09, trials) == pytest.approx(simulated, rel=0.03)
    assert performance.expected_best(0.09, 1) == 0.0


def test_without_search_and_shape_it_is_a_t_test() -> None:
    """No hurdle, normal moments, small Sharpe: the normal probability of sqrt(T - 1) * SR."""
    found = performance.deflated_sharpe(0.01, 0.0, 10_001, 0.0, 3.0)
    t = 1.0 / math.sqrt(1 + 0.5 * 0.01**2)
    assert found == pytest.approx(0.5 * (1 + math.erf(t / math.sqrt(2))))
    assert math.isnan(performance.deflated_sharpe(0.1, 0.0, 1, 0.0, 3.0))


def test_shape_of_returns() -> None:
    values = np.array([1.0, 2.0, 2.0, 7.0])
    centred = values - 3
    variance = np.mean(centred**2)
    skew, kurtosis = performance.shape(values)
    assert skew == pytest.approx(np.mean(centred**3) / variance**1.5)
    assert kurtosis == pytest.approx(np.mean(centred**4) / variance**2)
    assert performance.shape(np.ones(5)) == (0.0, 3.0)


def test_overfitting_equals_an_independent_library() -> None:
    """Values of purgedcv 0.1.11, probability_of_backtest_overfitting(returns, n_splits)."""
    random = np.random.default_rng(42)
    skilled = random.normal(0.0002, 0.01, (24, 600)) + np.linspace(-4e-4, 6e-4, 24)[:, None]
    luck = random.normal(0.0002, 0.01, (24, 600))
    assert performance.overfitting(skilled, 10) == pytest.approx(0.5436507936507936, abs=1e-12)
    assert performance.overfitting(luck, 10) == pytest.approx(0.3611111111111111, abs=1e-12)
    assert performance.overfitting(skilled, 8) == pytest.approx(0.7285714285714285, abs=1e-12)


def test_overfitting_of_a_sure_thing_and_of_none() -> None:
    random = np.random.default_rng(2)
    returns = random.normal(0, 0.01, (50, 500))
    returns[7] += 0.01
    assert performance.overfitting(returns, 10) == 0.0
    mirrored = np.repeat([[1.0, -1.0]], 250, axis=0).ravel() * 0.01
    worst = np.stack([np.where(np.arange(500) < 250, 1, -1) * 0.01, mirrored])
    assert performance.overfitting(worst + random.normal(0, 1e-4, worst.shape), 2) == 1.0
    assert math.isnan(performance.overfitting(returns[:1], 10))
    assert math.isnan(performance.overfitting(returns[:, :15], 10))


def test_overfitting_of_pure_luck_is_about_one_half() -> None:
    random = np.random.default_rng(3)
    found = [performance.overfitting(random.normal(0, 0.01, (30, 240)), 6) for _ in range(60)]
    assert np.mean(found) == pytest.approx(0.5, abs=0.08)
