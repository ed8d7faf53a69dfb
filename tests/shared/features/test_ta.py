"""The features in the TA manner against their definitions and TA-Lib, and live against batch."""

import re

import numpy as np
import pandas as pd
import pytest
import talib
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from shared.errors import Usage
from shared.features import FeatureSet, ta
from shared.klinefiles import read_klines
from shared.klines import KLINE_COLUMNS, to_raster
from tests.shared.features import candles, ta_oracle
from tests.shared.features.oracle import Oracle, agrees

FIRST = 27_123_457
MINUTE = 60_000
ONE_COLUMN = [
    *("SMA_20", "SMA_1", "EMA_5", "EMA_1", "WMA_9", "STDDEV_30", "LINEARREG_SLOPE_14", "RSI_7"),
    *("ROC_10", "MACD_3_7", "MACDSIGNAL_3_7_4", "MACDHIST_3_7_4", "BBPOS_20", "SKEW_33"),
    *("KURTOSIS_33", "QUANTILE25_60", "QUANTILE0_9", "QUANTILE100_9", "QUANTILE50_41", "RANK_30"),
    *("lsbm_40", "fmax_40", "RVOL_15", "CORREL_30", "RCORREL_30", "BETA_30"),
]
ENDED = [
    *(
        "close_SMA_5_rel_60",
        "close_SMA_5_diff_60",
        "close_SMA_5_reldiff_60_pct",
        "volume_SMA_5_log",
    ),
    *("close_EMA_3_rel_9_log", "close_STDDEV_5_rel_50_pct", "ATR_3_reldiff_10", "close_ROC_3_log"),
    *("trades_SMA_60_pct", "volume_WMA_5_rel_20_pct_log", "close_ATR_1_diff_4"),
    *("close_MACD_12_26_rel_18", "close_MACD_2_3_diff_3_5_pct", "STOCHD_14_3_rel_28_log"),
    *(
        "STOCHD_5_3_reldiff_9_2",
        "close_MACDSIGNAL_12_26_9_rel_20_30_9",
        "close_MACDHIST_2_3_2_diff_3_4_2",
    ),
]
NO_COLUMN = ["ATR_7", "STOCHK_14", "STOCHD_14_3", "OBV_20", "VWAPDIST_20", "close_ATR_1"]
NAMES = [
    *(f"close_{form}" for form in ONE_COLUMN),
    *(f"volume_{form}" for form in ONE_COLUMN),
    *NO_COLUMN,
    *(f"f_{name}" for name in NO_COLUMN),
    *(f"o_{name}" for name in NO_COLUMN),
    *ENDED,
    *(f"{column}_SMA_3" for column in KLINE_COLUMNS),
    *("f_quote_volume_RANK_5", "o_taker_base_STDDEV_5", "o_close_EMA_3_diff_1"),
    *ta.CALENDAR,
]


def sources_of(seed, n):
    rng = np.random.default_rng(seed)
    return candles.wild(rng, n), candles.wild(rng, n), candles.wild(rng, n)


def assert_as_defined(names, sources, out, rows, first=FIRST, floor=0.0):
    for at in rows:
        for column, name in enumerate(names):
            expected, got = ta_oracle.value(name, at, *sources, first=first), out[at, column]
            assert agrees(expected, got, floor or floor_of(name, expected)), (
                *(name, at, expected, got),
            )


def floor_of(name, expected):
    """Differences that may come out as zero: what is left of the digits of prices."""
    if re.search(r"MACD.*_rel_", name):  # one such rest divided by another
        return 1e-7
    if re.search(r"_(diff|reldiff)_|MACD|SKEW|KURTOSIS|_log|SLOPE|CORREL|BETA|BBPOS", name):
        return 1e-11
    return 0.0


def run(names, kline, futur, other, first=FIRST):
    return FeatureSet.of(names, interval_ms=MINUTE).batch(first, kline, futur, None, other)


def test_every_function_is_tested():
    functions = {ta_oracle.NAME.fullmatch(n)["function"] for n in NAMES if n not in ta.CALENDAR}
    assert functions == set(ta.FUNCTIONS)


@pytest.mark.parametrize("seed", range(2))
def test_values_are_those_of_the_definitions(seed):
    n = 1_500
    sources = sources_of(seed, n)
    out = run(NAMES, *sources)
    rows = np.random.default_rng(seed + 100).integers(0, n, 8)
    assert_as_defined(NAMES, sources, out, [0, 1, 7, 83, n - 1, *rows.tolist()])


def test_live_gives_the_bits_of_batch_wherever_it_starts():
    n = 2_500
    kline, futur, other = sources_of(3, n)
    features = FeatureSet.of(NAMES, interval_ms=MINUTE)
    out = features.batch(FIRST, kline, futur, None, other)
    window = features.window()
    for start in [0, 1, 300, *np.random.default_rng(4).integers(1, n - 10, 6).tolist()]:
        begin = max(0, start - features.lookback + 1)
        past = slice(begin, start)
        window.load(FIRST + begin, kline[past], futur[past], None, other[past])
        for at in range(start, min(n, start + 700)):
            live = window.step(FIRST + at, kline[at], futur[at], None, other[at])
            assert live.tobytes() == out[at].tobytes(), (start, at)
    assert features.batch(FIRST, kline, futur, None, other, workers=3).tobytes() == out.tobytes()


CELLS = st.one_of(
    st.just(np.nan),
    st.sampled_from([0.0, 1.0, 0.1, 1e12, 1e-12, np.inf]),
    st.floats(min_value=1e-9, max_value=1e6),
    st.floats(min_value=0.9999, max_value=1.0001),
)
COLUMN = st.lists(CELLS, min_size=1, max_size=60)
FORMS = st.sampled_from(
    [
        *("SMA_W", "EMA_W", "WMA_W", "STDDEV_W", "LINEARREG_SLOPE_W", "RSI_W", "ROC_W", "BBPOS_W"),
        *("QUANTILE30_W", "RANK_W", "lsbm_W", "fmax_W", "CORREL_W", "BETA_W", "SMA_W_rel_3"),
    ]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    COLUMN,
    COLUMN,
    st.lists(st.tuples(FORMS, st.integers(2, 12)), min_size=1, max_size=3, unique=True),
    st.integers(min_value=0, max_value=10**10),
    st.integers(min_value=0, max_value=60),
)
def test_any_cells_and_windows_live_from_anywhere_are_batch(close, other, forms, first, start):
    n = min(len(close), len(other))
    kline, second = np.full((n, 9), np.nan), np.full((n, 9), np.nan)
    kline[:, 3], second[:, 3] = close[:n], other[:n]
    names = ["close_" + re.sub(r"_W(?=_|$)", f"_{w}", form) for form, w in forms]
    names = list(dict.fromkeys([*names, "o_close_SMA_2"]))
    features = FeatureSet.of(names)
    out = features.batch(first, kline, None, None, second)
    live = features.window()
    start = min(start, n - 1)
    begin = max(0, start - features.lookback + 1)
    live.load(first + begin, kline[begin:start], None, None, second[begin:start])
    for at in range(start, n):
        got = live.step(first + at, kline[at], None, None, second[at])
        assert got.tobytes() == out[at].tobytes()


EXACT = [
    *("close_SMA_W", "close_WMA_W", "close_QUANTILE30_W", "close_RANK_W", "close_lsbm_W"),
    *("close_fmax_W", "close_STDDEV_W", "close_EMA_W", "OBV_W", "VWAPDIST_W", "close_ROC_W"),
    *("STOCHK_W", "ATR_W"),
]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=60), st.integers(1, 9))
def test_any_cells_give_the_defined_values(cells, window):
    """Sums of prices of 1e12 and 1e-12 keep the digits of the larger one: hence the floor."""
    kline = np.full((len(cells), 9), np.nan)
    kline[:, 3:5] = cells
    kline[:, 1] = kline[:, 3] * 1.25
    kline[:, 2] = kline[:, 3] * 0.75
    names = [re.sub(r"_W$", f"_{window}", name) for name in EXACT]
    out = FeatureSet.of(names).batch(FIRST, kline)
    largest = np.max(np.where(np.isfinite(kline), kline, 0.0))
    for at in {0, len(cells) // 2, len(cells) - 1}:
        for column, name in enumerate(names):
            expected, got = ta_oracle.value(name, at, kline), out[at, column]
            of_prices = name.startswith(("close_SMA", "close_WMA", "close_STD", "close_EMA", "ATR"))
            floor = 1e-14 * largest if of_prices else 1e-6 if name.startswith("VWAP") else 0.0
            assert agrees(expected, got, floor), (name, at, expected, got)


def test_flat_markets_and_minutes_without_volume_have_no_noise():
    """0.1 is no binary fraction: sums of it would leave noise where the definition has 0."""
    row = [0.1, 0.1, 0.1, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0]
    names = [name for name in NAMES if not name.startswith("f_") and name not in ta.CALENDAR]
    flat = np.tile(row, (400, 1))
    found = dict(zip(names, run(names, flat, None, flat)[-1], strict=True))
    for name in ("STDDEV_30", "LINEARREG_SLOPE_14", "ROC_10", "MACD_3_7", "MACDHIST_3_7_4"):
        assert found[f"close_{name}"] == 0.0, name
    assert found["close_SMA_20"] == found["close_EMA_5"] == found["close_QUANTILE25_60"] == 0.1
    assert found["close_SMA_5_rel_60"] == 1.0
    for name in ("SMA_5_diff_60", "SMA_5_reldiff_60_pct", "EMA_3_rel_9_log", "RVOL_15", "lsbm_40"):
        assert found[f"close_{name}"] == 0.0, name
    for name in ("BBPOS_20", "SKEW_33", "KURTOSIS_33", "RSI_7", "CORREL_30", "BETA_30"):
        assert np.isnan(found[f"close_{name}"]), name
    for name in ("STOCHK_14", "OBV_20", "VWAPDIST_20", "volume_SMA_5_log", "volume_ROC_10"):
        assert np.isnan(found[name]), name
    assert found["ATR_7"] == 0.0
    assert found["close_RANK_30"] == pytest.approx(15.5 / 30, rel=1e-15)


def test_an_outlier_is_gone_when_its_window_is_over():
    n = 700
    rows = candles.calm(np.random.default_rng(5), n)
    names = [name for name in NAMES if not name.startswith(("f_", "o_")) and "CORREL" not in name]
    names = [name for name in names if "BETA" not in name]
    features = FeatureSet.of(names, interval_ms=MINUTE)
    clean = features.batch(FIRST, rows)
    rows[100, :5] = 1e12
    dirty = features.batch(FIRST, rows)
    after = 100 + features.lookback
    assert dirty[after:].tobytes() == clean[after:].tobytes()
    assert dirty[:100].tobytes() == clean[:100].tobytes()


def test_conventions_are_those_of_talib():
    kline = candles.calm(np.random.default_rng(6), 3_000)
    other = candles.calm(np.random.default_rng(7), 3_000)
    high, low, close, volume = kline[:, 1], kline[:, 2], kline[:, 3], kline[:, 4]
    macd, signal, hist = talib.MACD(close, 12, 26, 9)
    k, d = talib.STOCHF(high, low, close, 14, 3)
    expected = {
        "close_SMA_20": talib.SMA(close, 20),
        "volume_EMA_20": talib.EMA(volume, 20),
        "close_WMA_20": talib.WMA(close, 20),
        "close_STDDEV_60": talib.STDDEV(close, 60),
        "close_LINEARREG_SLOPE_60": talib.LINEARREG_SLOPE(close, 60),
        "close_RSI_14": talib.RSI(close, 14),
        "ATR_14": talib.ATR(high, low, close, 14),
        "close_ROC_10": talib.ROC(close, 10),
        "STOCHK_14": k,
        "STOCHD_14_3": d,
        "close_CORREL_30": talib.CORREL(close, other[:, 3], 30),
        "close_BETA_30": talib.BETA(other[:, 3], close, 30),
    }
    names = [*expected, "close_MACD_12_26", "close_MACDSIGNAL_12_26_9", "close_MACDHIST_12_26_9"]
    out = FeatureSet.of(names).batch(FIRST, kline, None, None, other)
    for column, (name, values) in enumerate(expected.items()):
        # TA-Lib's own running sums are good to some 1e-9 of the prices they are made of.
        scale = 1e-9 * 6e4 / 60 if name[6:].startswith(("STDDEV", "LINEARREG", "CORREL")) else 0
        got = out[600:, column]
        assert np.allclose(got, values[600:], rtol=1e-8, atol=scale * 1e-1), name
    for column, values in zip((-3, -2, -1), (macd, signal, hist), strict=True):
        assert np.max(np.abs(out[600:, column] - values[600:])) < 1e-9 * 6e4


def test_statistics_are_those_of_pandas_and_scipy():
    close = pd.Series(candles.calm(np.random.default_rng(8), 400)[:, 3])
    kline = np.full((400, 9), np.nan)
    kline[:, 3] = close
    w = 60
    windows = np.lib.stride_tricks.sliding_window_view(close.to_numpy(), w)
    expected = {
        "close_SKEW_60": stats.skew(windows, axis=1),
        "close_KURTOSIS_60": stats.kurtosis(windows, axis=1),
        "close_QUANTILE90_60": close.rolling(w).quantile(0.9).to_numpy()[w - 1 :],
        "close_RANK_60": close.rolling(w).rank(pct=True).to_numpy()[w - 1 :],
        "close_STDDEV_60": close.rolling(w).std(ddof=0).to_numpy()[w - 1 :],
    }
    out = FeatureSet.of(list(expected)).batch(FIRST, kline)
    assert np.isnan(out[: w - 1]).all()
    for column, (name, values) in enumerate(expected.items()):
        assert np.allclose(out[w - 1 :, column], values, rtol=1e-9, atol=1e-9), name


def test_the_clock_is_utc_for_any_interval():
    for interval_ms in (1_000, 60_000, 900_000, 14_400_000, 86_400_000):
        features = FeatureSet.of(list(ta.CALENDAR), interval_ms=interval_ms)
        first = 1_700_000_000_000 // interval_ms
        out = features.batch(first, np.full((40, 9), np.nan))
        for at in range(40):
            for column, name in enumerate(ta.CALENDAR):
                expected = ta_oracle.calendar(name, (first + at) * interval_ms)
                assert out[at, column] == pytest.approx(expected, abs=1e-15), (interval_ms, name)


def test_the_clock_must_know_the_interval():
    with pytest.raises(Usage, match="'time_of_day' needs the interval"):
        FeatureSet.of(["time_of_day"])


def test_the_other_symbols_seed_features_are_those_of_its_own_candles():
    kline, _, other = sources_of(9, 2_000)
    out = FeatureSet.of(["o_close_60", "o_tb_base_5"]).batch(FIRST, kline, None, None, other)
    own = FeatureSet.of(["close_60", "tb_base_5"]).batch(FIRST, other)
    assert out.tobytes() == own.tobytes()
    assert agrees(Oracle(other).value("close_60", 1_999), out[-1, 0])


def test_lookback_is_where_the_first_value_is():
    rows = candles.calm(np.random.default_rng(10), 500)
    for name in NAMES:
        if "_log" in name or name in ta.CALENDAR:
            continue
        features = FeatureSet.of([name])
        out = features.batch(FIRST, rows, rows, None, rows)[:, 0]
        first = int(np.flatnonzero(np.isfinite(out))[0])
        assert first == features.lookback - 1, name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("close_SMMA_20", "close_SMA_W"),
        ("close_RSI14", "close_RSI_W"),
        ("SMA_20", "close_SMA_20"),
        ("volume_ATR_14", "write ATR_14"),
        ("close_MACD_12", "COLUMN_MACD_F_S"),
        ("close_MACD_12_26_rel_9", "write all of them, such as _rel_9_20"),
        ("close_MACDHIST_3_7_4_rel_9_20", "has 3 windows, and behind _rel stand 2"),
        ("STOCHD_14_3_rel_28_6_1", "STOCHD_W_D has 2 windows"),
        ("close_SMA_20_rel_30_40", "has 1 windows"),
        ("close_SMA_20_rell_60", "the endings are"),
        ("close_SMA_20_log_pct", "the endings are"),
        ("close_SMA_20_rel", "the endings are"),
        ("close_QUANTILE101_20", "0 to 100 percent"),
        ("close_QUANTILE_20", "COLUMN_QUANTILEQ_W"),
        ("close_SMA7_20", "COLUMN_SMA_W"),
        ("close_SMA_0", "1 to 525600"),
        ("close_RSI_1", "2 to 525600"),
        ("close_EMA_99999", "looks back"),
        ("f_close_BETA_20", "write close_BETA_20"),
        ("o_close_BETA_20", "write close_BETA_20"),
        ("time_of_day_tan", "time_of_day"),
    ],
)
def test_a_name_that_is_wrong_is_told_what_is_right(name, said):
    with pytest.raises(Usage) as error:
        FeatureSet.of([name], interval_ms=MINUTE)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_every_form_has_an_example_that_is_a_feature():
    for form in ta.forms():
        FeatureSet.of([ta.example(form)], interval_ms=MINUTE)


def test_real_candles_of_two_symbols_with_a_gap(market_data):
    """BTCUSDT of 2021-04-25 lacks 284 minutes; ETHUSDT's file begins later, so beside it stand
    the candles of another week."""

    def days(symbol, at):
        table = read_klines([market_data / f"{symbol}-1m.parquet"])[0]
        return to_raster(table.between(at - 86_400_000, at + 86_400_000))

    table = days("BTCUSDT", 1_619_308_800_000)
    kline, other = table.values, days("ETHUSDT", 1_711_929_600_000).values
    assert len(kline) == len(other) == 2_880
    first = int(table.open_time_ms[0]) // MINUTE
    names = [name for name in NAMES if not name.startswith("f_")]
    out = run(names, kline, None, other, first)
    gap = np.flatnonzero(np.isnan(kline[:, 3]))
    assert len(gap) == 284
    rows = [gap[0] - 1, gap[0], gap[-1], gap[-1] + 1, gap[-1] + 9, gap[-1] + 200]
    assert_as_defined(names, (kline, None, other), out, rows, first)
