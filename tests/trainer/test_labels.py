"""Labels against their definitions, row by row in plain Python."""

import math
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import Usage
from shared.klinefiles import read_klines
from shared.klines import KlineTable, to_raster
from tests.trainer.walks import CLOSE, HIGH, LOW, table_of, walk
from trainer.labels import (
    definition,
    is_value,
    known_labels,
    label,
    rows_ahead,
    side_of,
    trailing_sigma,
)

SEED: dict[str, Callable[[float, float], bool]] = {
    "high_10": lambda high, low: high >= 1.0,
    "high_15": lambda high, low: high >= 1.5,
    "high_20": lambda high, low: high >= 2.0,
    "high_25": lambda high, low: high >= 2.5,
    "high_30": lambda high, low: high >= 3.0,
    "high_01": lambda high, low: high <= 0.1,
    "high_02": lambda high, low: high <= 0.2,
    "high_03": lambda high, low: high <= 0.3,
    "high_04": lambda high, low: high <= 0.4,
    "high_05": lambda high, low: high <= 0.5,
    "low_01": lambda high, low: low >= -0.1,
    "low_02": lambda high, low: low >= -0.2,
    "low_03": lambda high, low: low >= -0.3,
    "low_04": lambda high, low: low >= -0.4,
    "low_05": lambda high, low: low >= -0.5,
    "low_10": lambda high, low: low <= -1.0,
    "low_15": lambda high, low: low <= -1.5,
    "low_20": lambda high, low: low <= -2.0,
    "low_25": lambda high, low: low <= -2.5,
    "low_30": lambda high, low: low <= -3.0,
}


def moves(values: np.ndarray, horizon: int) -> list[tuple[float, float]]:
    """(high_max, low_min) in percent of every row, as the definitions read; NaN = not known."""
    found = []
    for t in range(len(values)):
        close = float(values[t, CLOSE])
        future = values[t + 1 : t + 1 + horizon]
        highs, lows = future[:, HIGH].tolist(), future[:, LOW].tolist()
        if len(future) < horizon or math.isnan(close) or any(map(math.isnan, highs + lows)):
            found.append((math.nan, math.nan))
        else:
            found.append((100 * (max(highs) - close) / close, 100 * (min(lows) - close) / close))
    return found


@given(
    count=st.integers(0, 90),
    horizon=st.integers(1, 100),
    seed=st.integers(0, 10**6),
    gaps=st.lists(st.tuples(st.integers(0, 89), st.integers(1, 20)), max_size=3),
)
@settings(max_examples=150, deadline=None)
def test_every_label_is_its_definition(
    count: int, horizon: int, seed: int, gaps: list[tuple[int, int]]
) -> None:
    values = walk(count, seed, gaps)
    truth = moves(values, horizon)
    for name, rule in SEED.items():
        found = label(name, table_of(values), horizon)
        wanted = [math.nan if math.isnan(high) else float(rule(high, low)) for high, low in truth]
        np.testing.assert_array_equal(found.y, wanted)
        assert found.t1.tolist() == [min(t + horizon, count - 1) for t in range(count)]
    for at, name in ((0, f"high_max_{horizon}"), (1, f"low_min_{horizon}")):
        found = label(name, table_of(values), 7)  # its own window holds, whatever the horizon
        np.testing.assert_array_equal(found.y, [move[at] for move in truth])
        assert found.t1.tolist() == [min(t + horizon, count - 1) for t in range(count)]


@pytest.mark.parametrize("window", [1, 3, 60])
def test_high_to_low_is_the_share_of_the_way_up(window: int) -> None:
    values = walk(200, 5, [(80, 2)])
    values[20:90, [HIGH, LOW, CLOSE]] = 100.0  # flat: neither up nor down
    wanted = []
    for high, low in moves(values, window):
        up, down = max(high, 0.0), -min(low, 0.0)
        wanted.append(2 * (up / (up + down)) - 1 if up + down > 0 else math.nan)
    found = label(f"high_to_low_{window}", table_of(values), 7)
    np.testing.assert_array_equal(found.y, wanted)
    assert np.isnan(found.y[20 : 80 - window]).all()
    assert np.nanmin(found.y) == -1 or window == 60
    assert found.t1.tolist() == [min(t + window, 199) for t in range(200)]


def test_a_move_of_exactly_the_threshold_counts() -> None:
    values = np.full((3, 9), 100.0)
    values[1, HIGH], values[1, LOW] = 101.0, 99.0
    table = table_of(values)
    assert label("high_10", table, 1).y[0] == 1
    assert label("low_10", table, 1).y[0] == 1
    values[1, HIGH], values[1, LOW] = 100.1, 99.9
    high, low = moves(values, 1)[0]
    assert label("high_01", table, 1).y[0] == float(high <= 0.1)
    assert label("low_01", table, 1).y[0] == float(low >= -0.1)


@pytest.fixture(scope="module")
def bitcoin(market_data: Path) -> KlineTable:
    [table] = read_klines([market_data / "BTCUSDT-1m.parquet"])
    return to_raster(table)


def test_real_candles_around_an_outage(bitcoin: KlineTable) -> None:
    start = 1_619_308_800_000  # 2021-04-25T00:00Z, the day without candles from 04:01 to 08:45
    day = bitcoin.between(start, start + 86_400_000)
    for name in ("high_10", "low_10", "high_max_60"):
        horizon = 60 if name.endswith("60") else 180
        y = label(name, day, 180).y
        truth = moves(day.values, horizon)
        wanted = [high for high, _ in truth]
        if name in SEED:
            wanted = [math.nan if math.isnan(h) else float(SEED[name](h, lo)) for h, lo in truth]
        np.testing.assert_array_equal(y, wanted)
        gap = np.flatnonzero(np.isnan(day.column("close")))
        assert len(gap) == 284
        assert np.isnan(y[gap[0] - horizon : gap[-1] + 1]).all()
        assert not np.isnan(y[[gap[0] - horizon - 1, gap[-1] + 1]]).any()


# --- scaled by volatility -------------------------------------------------------------------------


def sigma_of(close: np.ndarray, t: int) -> float:
    """The definition, one row at a time and in exact fractions; NaN = not known."""
    if t < 720:
        return math.nan
    pairs = [(float(close[r - 1]), float(close[r])) for r in range(t - 719, t + 1)]
    returns = [math.log(b / a) for a, b in pairs if not math.isnan(a + b)]
    return statistics.pstdev(returns) if len(returns) >= 2 else math.nan


@pytest.mark.parametrize(
    ("horizon", "gaps"),
    [
        (1, []),
        (30, [(0, 3), (400, 1), (760, 25)]),
        (180, [(300, 40), (1100, 1)]),
        (5, [(50, 760)]),  # the first rows after it have no return in their window, then 1, then 2
    ],
)
def test_scaled_labels_are_their_definition(horizon: int, gaps: list[tuple[int, int]]) -> None:
    count = 1200
    values = walk(count, horizon, gaps)
    sigmas = [sigma_of(values[:, CLOSE], t) for t in range(count)]
    names = {"v": 1.25, "v_100": 1.0, "v_075": 0.75, "v_050": 0.5}
    truth = moves(values, horizon)
    for name, scale in names.items():
        high, low = (label(side + name, table_of(values), horizon) for side in ("high", "low"))
        edges = [scale * 100 * sigma * math.sqrt(horizon) for sigma in sigmas]
        known = [not math.isnan(e + move[0]) for e, move in zip(edges, truth, strict=True)]
        for found, at, sign in ((high, 0, 1), (low, 1, -1)):
            wanted = [
                float(sign * move[at] >= edge) if ok else math.nan
                for ok, move, edge in zip(known, truth, edges, strict=True)
            ]
            np.testing.assert_array_equal(found.y, wanted)
            assert {0.0, 1.0} <= set(found.y.tolist())
            assert found.t1.tolist() == [min(t + horizon, count - 1) for t in range(count)]


def test_sigma_of_a_window_with_few_returns() -> None:
    values = walk(1700, 3, [(730, 731)])  # 730 .. 1460
    sigma = trailing_sigma(values[:, CLOSE])
    assert np.isnan(sigma[:720]).all()
    assert not np.isnan(sigma[720:1448]).any()  # 1447's window holds the returns of 728 and 729 ..
    assert np.isnan(sigma[1448:1463]).all()  # .. and 1462's only its own
    assert not np.isnan(sigma[1463:]).any()
    for t in (720, 1447, 1463, 1699):
        assert sigma[t] == pytest.approx(sigma_of(values[:, CLOSE], t), rel=1e-12)


def test_sigma_is_exact_beside_a_steep_trend() -> None:
    """A percent a row, and a spread of a ten-thousandth of that: sums of squares would lose it."""
    steps = 0.01 + np.random.default_rng(4).normal(0, 1e-6, 2000)
    close = np.exp(np.cumsum(steps))
    for t in (720, 1111, 1999):
        assert trailing_sigma(close)[t] == pytest.approx(sigma_of(close, t), rel=1e-10)


@given(start=st.integers(0, 400), seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_scaled_labels_do_not_depend_on_where_the_data_starts(start: int, seed: int) -> None:
    values = walk(1300, seed, [(500, 7)])
    whole, late = (trailing_sigma(values[first:, CLOSE]) for first in (0, start))
    assert np.isnan(late[:720]).all()
    assert late[720:].tobytes() == whole[start + 720 :].tobytes()
    for name in ("highv", "lowv_050"):
        y = label(name, table_of(values), 60).y
        np.testing.assert_array_equal(
            label(name, table_of(values[start:]), 60).y[720:], y[start + 720 :]
        )


def test_scaled_labels_are_as_frequent_in_every_year(bitcoin: KlineTable) -> None:
    sigma = trailing_sigma(bitcoin.column("close"))
    for name in ("highv", "lowv"):
        y = label(name, bitcoin, sigma=sigma).y
        for year in range(2021, 2026):
            first, end = (
                int(np.searchsorted(bitcoin.open_time_ms, np.datetime64(f"{y_}", "ms").astype(int)))
                for y_ in (year, year + 1)
            )
            assert 0.15 < np.nanmean(y[first:end]) < 0.22


def test_the_seeds_set_is_known_and_another_name_is_a_usage_error() -> None:
    extremes = ("high_max", "low_min", "high_to_low", "close_area_future")
    scales = ("", "_100", "_075", "_050")
    assert set(known_labels()) == {
        *SEED,
        *(f"{of}_{w}" for of in extremes for w in (60, 120, 180)),
        "close_area_future_300",
        *(f"{side}v{scale}" for side in ("high", "low") for scale in scales),
        *("high2_20_04", "low2_20_04", "tb_up", "tb_down", "top2_20_05", "bot2_20_05"),
        *("trend_up", "trend_down", "trend_t"),
    }
    table = table_of(walk(5, 1))
    for name, nearest in (
        ("high_12", "high_"),
        ("hihg_20", "high_20"),
        ("low_max_60", "low_min"),
        ("highv_000", "highv"),
        ("lowv_5", "lowv"),
        ("high2_20_4", "high2_20_04"),
        ("tb_up_1", "tb_up"),
        ("trend_up_h0", "trend_up"),
        ("top2_20_5", "top2_20_05"),
    ):
        with pytest.raises(Usage, match=f"no label '{name}'; did you mean '{nearest}"):
            label(name, table, 2)


@pytest.mark.parametrize(
    ("name", "horizon", "text"),
    [
        ("high2_00_04", 9, "above 0"),
        ("low2_20_000", 9, "above 0"),
        ("tb_up_000", 9, "above 0"),
        ("tb_down_100_000_h5", 9, "above 0"),
        ("top2_05_10", 9, r"tolerance \(1 %\) .* no more than the level \(0.5 %\)"),
        ("bot2_05_00", 9, r"tolerance \(0 %\) must be above 0"),
        ("close_area_future_1", 9, "2 rows or more"),
        ("trend_up", 1, "horizon of 2 rows or more"),
        ("trend_t_h1", 9, "horizon of 2 rows or more"),
    ],
)
def test_numbers_that_make_no_sense_are_a_usage_error(name: str, horizon: int, text: str) -> None:
    with pytest.raises(Usage, match=f"^label {name}: .*{text}"):
        label(name, table_of(walk(50, 1)), horizon)


def test_a_label_knows_its_side_and_its_definition() -> None:
    others = ("close_area_future_60", "trend_t", "trend_t_h30")
    sides = {
        **dict.fromkeys(
            ("high2_20_04", "tb_up", "tb_up_150_h60", "trend_up", "bot2_20_05"), "high"
        ),
        **dict.fromkeys(("low2_15_150_h9", "tb_down_100_050", "trend_down", "top2_200_05"), "low"),
        **dict.fromkeys(others),
        **dict.fromkeys(("high_10", "high_30", "low_01", "low_05", "highv", "highv_050"), "high"),
        **dict.fromkeys(("low_10", "low_30", "high_01", "high_05", "lowv", "lowv_100"), "low"),
        **dict.fromkeys(("high_max_60", "low_min_77", "high_to_low_180")),
    }
    for name, side in sides.items():
        assert side_of(name) == side
        assert is_value(name) is (side is None)
    assert definition("low_10") == "min(low[t+1 .. t+180]) <= close[t] * (1 - 1 %)"
    assert definition("high_03", 60) == "max(high[t+1 .. t+60]) <= close[t] * (1 + 0.3 %)"
    assert definition("high_25") == "max(high[t+1 .. t+180]) >= close[t] * (1 + 2.5 %)"
    assert definition("lowv_050", 30) == (
        "min(low[t+1 .. t+30]) <= close[t] * (1 - 0.5 * sigma[t] * sqrt(30)), sigma[t] = "
        "population standard deviation of ln(close[r] / close[r-1]) over r = t-719 .. t"
    )
    for unknown in (side_of, is_value, definition):
        with pytest.raises(Usage, match="no label 'highw'"):
            unknown("highw")


def test_a_label_without_bound_looks_as_far_ahead_as_it_took() -> None:
    table = table_of(walk(3000, seed=4))
    found = label("top2_20_05", table, 180)
    t1_ms = table.open_time_ms[found.t1]
    expected = math.ceil(statistics.fmean((found.t1 - np.arange(3000)).tolist()))
    assert 10 < expected < 180
    assert rows_ahead("top2_20_05", 10, table.open_time_ms, t1_ms, 60_000) == expected
    assert rows_ahead("high_max_60", 180, table.open_time_ms, t1_ms, 60_000) == 60
    assert rows_ahead("high_10", 180, table.open_time_ms, t1_ms, 60_000) == 180
    nothing = np.empty(0, np.int64)
    assert rows_ahead("bot2_20_05", 180, nothing, nothing, 60_000) == 180
