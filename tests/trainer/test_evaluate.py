"""Metrics against scikit-learn and brute force."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics as sk

from shared.klines import KLINE_COLUMNS
from tests.releases import market
from trainer import baselines, evaluate, outcomes
from trainer.evaluate import auc, auc_interval, average_precision, measure
from trainer.rasters import Raster


def sample(seed: int, rows: int = 400, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    y = (random.random(rows) < 0.3).astype(float)
    p = np.clip(0.3 + 0.2 * y + random.normal(0, 0.2, rows), 0, 1)
    return y, np.round(p, 1) if ties else p


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_figures_are_scikit_learns(seed: int, ties: bool) -> None:
    y, p = sample(seed, ties=ties)
    found = measure(y, p, block=10, seed=0)
    said = p > 0.5
    assert found.auc == pytest.approx(sk.roc_auc_score(y, p), abs=1e-12)
    assert found.ap == pytest.approx(sk.average_precision_score(y, p), abs=1e-12)
    assert found.brier == pytest.approx(sk.brier_score_loss(y, p), abs=1e-12)
    kept = np.clip(p, 1e-15, 1 - 1e-15)
    assert found.log_loss == pytest.approx(sk.log_loss(y, kept), abs=1e-9)
    assert found.f1 == pytest.approx(sk.f1_score(y, said), abs=1e-12)
    assert found.precision == pytest.approx(sk.precision_score(y, said), abs=1e-12)
    assert found.recall == pytest.approx(sk.recall_score(y, said), abs=1e-12)
    assert found.base_rate == y.mean()
    assert found.rows == len(y)


def test_one_class_has_no_ranking() -> None:
    found = measure(np.zeros(100), np.linspace(0, 1, 100), block=5, seed=0)
    assert (found.auc, found.auc_low, found.auc_high, found.ap) == (None, None, None, None)
    assert found.base_rate == 0


def test_the_interval_is_that_of_resampled_blocks() -> None:
    y, p = sample(3, 300, ties=True)
    truth, block = y > 0.5, 20
    # the same draws, resampled row by row and measured by scikit-learn
    random = np.random.default_rng(11)
    found = []
    for _ in range(8):
        for starts in random.integers(0, 300 - block + 1, (25, 15)):
            rows = np.concatenate([np.arange(start, start + block) for start in starts])
            found.append(sk.roc_auc_score(y[rows], p[rows]))
    assert auc_interval(truth, p, block, 11) == pytest.approx(widened(found, 300 / 20), abs=1e-12)


def widened(draws: list[float], blocks: float) -> tuple[float, ...]:
    """Draws' quantiles, as far from their median as Student's law is wider than the normal one."""
    student = stats.t(1.5 * (blocks - 1)).ppf(0.975) / stats.norm.ppf(0.975)
    lost = 1 - 1 / blocks  # of the variance, which is that of means of overlapping batches
    middle = np.median(draws)
    return tuple(
        middle + (edge - middle) * student / np.sqrt(lost)
        for edge in np.quantile(draws, (0.025, 0.975))
    )


def test_a_block_is_four_windows_of_all_symbols() -> None:
    assert evaluate.block_rows(180) == 720
    assert evaluate.block_rows(180, 10) == 72
    assert evaluate.block_rows(35, 10, 3) == 4 * 4 * 3
    assert [evaluate.block_rows(180, rows=n) for n in (2000, 901, 200)] == [720, 450, 180]


def test_intervals_cover_what_is_so_though_windows_overlap() -> None:
    """Labels and outputs of independent walks, the AUC and the rank correlation being 0.5 and 0:
    of 95 % intervals about 95 % must say so. (Blocks of one window: 83 % of 8 and 20 windows.)"""
    random = np.random.default_rng(8)
    ahead, covered = 30, []
    for windows in np.repeat([8, 20, 60], 100):
        price, other = random.normal(0, 1, (2, ahead * (windows + 1))).cumsum(axis=1)
        moved, said = price[ahead:] - price[:-ahead], other[ahead:] - other[:-ahead]
        block = evaluate.block_rows(ahead)
        low, high = auc_interval(moved > 0, said, block, 0)
        if low is not None and high is not None:  # else most resamples have one class only
            covered.append(low <= 0.5 <= high)
        low, high = evaluate.rank_interval(said, moved, block, 0)
        assert low is not None
        assert high is not None
        covered.append(low <= 0 <= high)
    assert len(covered) > 580
    assert np.mean(covered) > 0.92


@pytest.mark.parametrize("symbols", [1, 2, 3, 4])
def test_the_interval_of_several_symbols_holds_the_figure_of_all(symbols: int) -> None:
    """Rows of symbols take turns; only those of the last one are told apart."""
    random = np.random.default_rng(symbols)
    y = (random.random(24_000 * symbols) < 0.3).astype(float)
    knows = np.arange(len(y)) % symbols == symbols - 1
    p = np.clip(0.3 + 0.3 * y * knows + random.normal(0, 0.2, len(y)), 0, 1)
    low, high = auc_interval(y > 0.5, p, 100, 1)
    whole = auc(y > 0.5, p)
    assert low is not None
    assert high is not None
    assert whole is not None
    assert low < whole < high
    assert high - low < 0.06


def test_too_few_rows_for_two_blocks_have_no_interval() -> None:
    y, p = sample(0, 30)
    assert auc_interval(y > 0.5, p, 16, 0) == (None, None)


def test_perfect_and_inverted_ranking() -> None:
    truth = np.array([False, False, True, True])
    assert auc(truth, np.array([0.1, 0.2, 0.3, 0.4])) == 1.0
    assert auc(truth, np.array([0.4, 0.3, 0.2, 0.1])) == 0.0
    assert auc(truth, np.full(4, 0.5)) == 0.5
    assert average_precision(truth, np.array([0.1, 0.2, 0.3, 0.4])) == 1.0


def test_the_seeds_line_of_metrics_txt() -> None:
    y, p = sample(1)
    line = measure(y, p, 10, 0).seed_line("high_10_k_gb")
    name, rest = line.split(", ", 1)
    assert name == "high_10_k_gb"
    assert list(eval(rest)) == ["auc", "ap", "f1", "precision", "recall"]  # noqa: S307 - our own text


# --- calibration and skill -----------------------------------------------------------------------


def test_skill_and_lift_are_against_the_base_rates() -> None:
    y, p = sample(4)
    found = measure(y, p, 10, 0, train_base=0.2)
    clipped = np.clip(p, 1e-15, 1 - 1e-15)
    of_base = sk.log_loss(y, np.full(len(y), 0.2))
    assert found.skill == pytest.approx(1 - sk.log_loss(y, clipped) / of_base, abs=1e-9)
    assert found.lift == pytest.approx(sk.average_precision_score(y, p) / y.mean(), abs=1e-9)
    assert found.calibration == pytest.approx(p.mean() / y.mean(), abs=1e-12)
    # rows of folds with other base rates
    bases = np.where(np.arange(len(y)) < 200, 0.1, 0.4)
    skill = measure(y, p, 10, 0, train_base=bases).skill
    assert skill == pytest.approx(1 - sk.log_loss(y, clipped) / sk.log_loss(y, bases), abs=1e-9)


def test_calibration_error_is_that_of_equally_large_bins() -> None:
    y, p = sample(9, 1500)
    assert len(np.unique(p)) > 1400
    p = np.clip(p + np.random.default_rng(0).uniform(0, 1e-9, len(p)), 0, 2)  # no ties
    order = np.argsort(p)
    expected = sum(
        len(part) / len(p) * abs(p[part].mean() - y[part].mean())
        for part in np.array_split(order, 15)
    )
    assert evaluate.calibration_error(y, p) == pytest.approx(expected, abs=1e-12)
    curve = evaluate.calibration_curve(y, p)
    assert sum(point["rows"] for point in curve) == len(p)
    assert [point["happened"] for point in curve] == pytest.approx(
        [y[part].mean() for part in np.array_split(order, 15)]
    )
    assert evaluate.calibration_error(y, np.full(len(y), y.mean())) == pytest.approx(0, abs=1e-12)


def test_values_are_measured_as_scikit_learn_and_scipy_do() -> None:
    random = np.random.default_rng(2)
    y = np.round(random.normal(0, 1, 500), 1)
    p = np.round(0.5 * y + random.normal(0, 1, 500), 1)
    found = evaluate.measure_values(y, p, 10, 0)
    assert found.mae == pytest.approx(sk.mean_absolute_error(y, p))
    assert found.r2 == pytest.approx(sk.r2_score(y, p))
    assert found.rank == pytest.approx(stats.spearmanr(y, p).statistic)
    assert found.rank_low is not None and found.rank_high is not None and found.rank is not None
    assert found.rank_low < found.rank < found.rank_high
    assert "'mae'" in found.seed_line("high_max_180_k_gb")
    assert evaluate.measure_values(np.ones(9), p[:9], 1, 0).rank is None


def test_the_interval_of_a_rank_correlation_is_that_of_resampled_ranks() -> None:
    random = np.random.default_rng(3)
    a = random.normal(0, 1, 300)
    b = a + random.normal(0, 2, 300)
    ranks = stats.rankdata(a), stats.rankdata(b)
    random = np.random.default_rng(11)
    found = []
    for _ in range(8):
        for starts in random.integers(0, 300 - 20 + 1, (25, 15)):
            rows = np.concatenate([np.arange(start, start + 20) for start in starts])
            found.append(np.corrcoef(ranks[0][rows], ranks[1][rows])[0, 1])
    assert evaluate.rank_interval(a, b, 20, 11) == pytest.approx(widened(found, 300 / 20), abs=1e-9)


# --- the score -----------------------------------------------------------------------------------


def test_deciles_are_those_of_pandas() -> None:
    random = np.random.default_rng(6)
    score, returns = random.normal(0, 1, 2000), random.normal(0, 0.01, 2000)
    touch = np.where(random.random(2000) < 0.3, 0.0, np.sign(score + random.normal(0, 3, 2000)))
    score[:50], returns[100:120], touch[200:260] = np.nan, np.nan, np.nan
    found = evaluate.measure_score(score, returns, touch, 20, 0)
    table = pd.DataFrame({"score": score, "returns": returns, "touch": touch})
    known = table.dropna(subset=["score", "returns"])
    by = known.groupby(pd.qcut(known.score, 10, labels=False))
    assert [d.rows for d in found.deciles] == by.size().tolist()
    assert [d.mean_bp for d in found.deciles] == pytest.approx((1e4 * by.returns.mean()).tolist())
    assert [d.median_bp for d in found.deciles] == pytest.approx(
        (1e4 * by.returns.median()).tolist()
    )
    up = by.touch.apply(lambda t: (t[t != 0].dropna() > 0).mean())
    assert [d.up_first for d in found.deciles] == pytest.approx(up.tolist())
    for decile in found.deciles:
        assert decile.mean_bp_low is not None and decile.mean_bp_high is not None
        assert decile.mean_bp is not None
        assert decile.mean_bp_low < decile.mean_bp < decile.mean_bp_high
    assert found.rank == pytest.approx(stats.spearmanr(known.score, known.returns).statistic)
    resolved = table[table.touch.isin([1.0, -1.0]) & table.score.notna()]
    assert found.resolved == len(resolved)
    assert found.auc == pytest.approx(sk.roc_auc_score(resolved.touch > 0, resolved.score))


def test_a_shifted_score_gives_the_null_band() -> None:
    random = np.random.default_rng(1)
    walk = np.cumsum(random.normal(0, 1, 3000))
    truth = np.diff(walk, append=walk[-1]) > 0
    low, high = evaluate.shift_null(truth, walk, 50, 5)
    assert low is not None and high is not None
    drawn = np.random.default_rng(5).integers(50, 3000 - 50 + 1, 200)
    expected = [sk.roc_auc_score(np.roll(truth, -shift), walk) for shift in drawn]
    assert (low, high) == pytest.approx(tuple(np.quantile(expected, (0.025, 0.975))))
    assert evaluate.shift_null(truth[:100], walk[:100], 50, 5) == (None, None)


def test_days_exchanged_within_their_weekday_keep_the_clock_and_lose_the_rest() -> None:
    random = np.random.default_rng(0)
    hours = np.arange(24 * 7 * 20)
    times = hours * 3_600_000
    clock = np.sin(2 * np.pi * (hours % 24) / 24)
    wild = np.repeat(random.normal(0, 1, len(hours) // 24), 24)  # a level for each day
    y = (random.normal(0, 0.5, len(hours)) + clock + wild > 0).astype(float)

    def null(p: np.ndarray) -> tuple[float, float]:
        low, high = evaluate.day_null(y, p, times, 3_600_000, 3)
        assert low is not None and high is not None
        return low, high

    of_clock, of_level = null(clock), null(wild)
    assert evaluate.auc(y > 0.5, clock) == pytest.approx(np.mean(of_clock), abs=0.02)
    assert of_clock[0] > 0.6
    assert of_level[0] < 0.5 < of_level[1]
    known = evaluate.auc(y > 0.5, wild)
    assert known is not None and known > of_level[1] + 0.1
    assert evaluate.day_null(y[:72], clock[:72], times[:72], 3_600_000, 3) == (None, None)


def test_days_of_less_than_two_weeks_change_places_with_any_others() -> None:
    random = np.random.default_rng(0)
    hours = np.arange(24 * 10)
    times = hours * 3_600_000
    p = np.repeat(random.normal(0, 1, 10), 24) + np.sin(hours / 4)
    y = (random.normal(0, 0.5, len(hours)) + p > 0).astype(float)
    low, high = evaluate.day_null(y, p, times, 3_600_000, 3)
    drawn = np.random.default_rng(3)
    happened, expected = y.reshape(10, 24), []
    for _ in range(200):
        order = drawn.permutation(10)
        expected.append(sk.roc_auc_score(happened[order].ravel(), p))
    assert (low, high) == pytest.approx(tuple(np.quantile(expected, (0.025, 0.975))))


def test_of_several_symbols_all_days_change_places_together() -> None:
    """Two symbols that do the same are no more evidence than one."""
    random = np.random.default_rng(1)
    hours = np.arange(24 * 21)
    times = hours * 3_600_000
    p = np.repeat(random.normal(0, 1, 21), 24)
    y = (random.normal(0, 1, len(hours)) + p > 0).astype(float)
    one = evaluate.day_null(y, p, times, 3_600_000, 3)
    twice = [np.repeat(values, 2) for values in (y, p, times)]
    symbol = np.tile([0, 1], len(y))
    assert evaluate.day_null(*twice, 3_600_000, 3, symbol) == pytest.approx(one)
    apart = evaluate.day_null(
        np.concatenate([y, random.permutation(y)]),
        np.concatenate([p, random.normal(0, 1, len(p))]),
        np.concatenate([times, times]),
        3_600_000,
        3,
        np.repeat([0, 1], len(y)),
    )
    assert None not in (*one, *apart)
    assert apart[1] - apart[0] < 0.8 * (one[1] - one[0])  # type: ignore[operator]


def test_permuted_blocks_keep_neighbours_together() -> None:
    random = np.random.default_rng(0)
    values = np.arange(1000.0)
    found = evaluate.permuted_blocks(values, 50, random)
    assert sorted(found.tolist()) == values.tolist()
    assert 15 < (np.diff(found) != 1).sum() <= 21
    assert evaluate.permuted_blocks(values[:0], 50, random).size == 0


# --- what happened after each candle -------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_first_touch_is_that_of_a_plain_loop(seed: int) -> None:
    random = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(random.normal(0, 0.01, 200)))
    high, low = (
        close * (1 + random.uniform(0, 0.02, 200)),
        close * (1 - random.uniform(0, 0.02, 200)),
    )
    close[60], high[60], low[60] = np.nan, np.nan, np.nan
    sigma = np.full(200, 0.008)
    sigma[:5] = np.nan
    found = outcomes.first_touch(close, high, low, sigma, 12)
    for row in range(200):
        ahead = range(row + 1, row + 13)
        if row + 12 >= 200 or row < 5 or np.isnan(close[[row, *ahead]]).any():
            assert np.isnan(found[row])
            continue
        width = 0.008 * np.sqrt(12)
        expected = 0
        for at in ahead:
            up, down = high[at] >= close[row] * (1 + width), low[at] <= close[row] * (1 - width)
            if up or down:
                expected = int(up) - int(down)
                break
        assert found[row] == expected
    assert {-1.0, 1.0} <= set(found[~np.isnan(found)].tolist())
    returns = outcomes.future_return(close, 12)
    expected_returns = pd.Series(close).shift(-12) / close - 1
    np.testing.assert_allclose(returns, expected_returns, equal_nan=True)
    assert np.isnan(outcomes.future_return(close[:5], 12)).all()
    assert np.isnan(outcomes.first_touch(close[:5], high[:5], low[:5], sigma[:5], 12)).all()


# --- baselines -----------------------------------------------------------------------------------


def test_baselines_see_volatility_and_the_clock_and_nothing_else() -> None:
    columns = market(4000)
    raster = Raster(
        symbol="TESTUSDT",
        interval="1m",
        open_time_ms=columns["open_time_ms"],
        kline=np.column_stack([columns[name] for name in KLINE_COLUMNS]),
    )
    raster.kline[2000:2010] = np.nan
    keep = np.array([3, 700, 1990, 2015, 2500, 3999])
    found = baselines.features(raster, keep)
    close = pd.Series(raster.kline[:, 3])
    returns = np.log(close / close.shift(1))
    for column, window in enumerate(baselines.VOLATILITY_WINDOWS):
        expected = np.log(returns.rolling(window, min_periods=2).std(ddof=0))
        expected[:window] = np.nan
        np.testing.assert_allclose(found[:, column], expected[keep], rtol=1e-4)
    times = pd.to_datetime(raster.open_time_ms[keep], unit="ms")
    day = (times.hour * 60 + times.minute) / 1440
    np.testing.assert_allclose(found[:, 5], np.sin(2 * np.pi * day), atol=1e-6)
    np.testing.assert_allclose(found[:, 10], np.cos(6 * np.pi * day), atol=1e-6)
    for weekday in range(1, 7):
        assert (found[:, 10 + weekday] == (times.day_of_week == weekday)).all()
    # no look ahead
    other = raster.kline.copy()
    other[2501:] *= 3
    again = baselines.features(Raster(**{**fields_of(raster), "kline": other}), keep[:5])
    np.testing.assert_array_equal(again, found[:5])


def fields_of(raster: Raster) -> dict[str, Any]:
    names = ("symbol", "interval", "open_time_ms", "kline")
    return {name: getattr(raster, name) for name in names}


def test_a_baseline_finds_what_there_is() -> None:
    random = np.random.default_rng(0)
    x = random.normal(0, 1, (3000, 5)).astype(np.float32)
    x[::50, 0] = np.nan
    y = (random.random(3000) < 1 / (1 + np.exp(-2 * np.nan_to_num(x[:, 1])))).astype(float)
    model = baselines.fit(x, y, is_value=False, seed=0, name="high_10.volatility")
    assert (evaluate.auc(y > 0.5, model.predict(x)) or 0) > 0.75
    value = baselines.fit(x, 3 * x[:, 1] + 1.0, is_value=True, seed=0, name="high_max.clock")
    inside = np.abs(x[:, 1]) < 4
    np.testing.assert_allclose(value.predict(x)[inside], (3 * x[:, 1] + 1)[inside], atol=1e-4)
