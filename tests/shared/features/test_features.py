"""The feature engine against the definitions, and live against batch."""

import hashlib
import json
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from shared.errors import OutOfSync, Usage
from shared.features import DEPTH_33, FUTUR_38, KLINE_51, FeatureSet
from shared.klinefiles import read_klines
from shared.klines import KLINE_COLUMNS, to_raster
from tests.shared.features import candles
from tests.shared.features.oracle import Oracle, agrees

MORE = (
    *("close_std_33", "close_trend_7", "close_area_33", "close_2000", "close_std_2", "volume_1440"),
    *("f_tb_base_7", "f_tb_quote_400", "close_std_1", "span_1500", "gap_30", "asks_20_44"),
)
ALL = (*KLINE_51, *FUTUR_38, *DEPTH_33, *MORE)
FIRST = 27_123_457


def sources_of(seed, n):
    rng = np.random.default_rng(seed)
    return candles.wild(rng, n), candles.wild(rng, n), candles.depth(rng, n)


def of_depth(name):
    return name.startswith(("gap_", "bids_", "asks_"))


def assert_as_defined(names, sources, out, rows, floor=0.0):
    kline, futur, depth = (Oracle(source) for source in sources)
    for at in rows:
        for column, name in enumerate(names):
            oracle = futur if name.startswith("f_") else depth if of_depth(name) else kline
            expected, got = oracle.value(name, at), out[at, column]
            assert agrees(expected, got, floor), (name, at, expected, got)


def assert_live_is_batch(features, sources, out, first, starts, steps):
    """sources: kline alone, kline and futur, or all three."""
    window = features.window()
    for start in starts:
        begin = max(0, start - features.lookback + 1)
        window.load(first + begin, *(source[begin:start] for source in sources))
        for at in range(start, min(start + steps, len(out))):
            live = window.step(first + at, *(source[at] for source in sources))
            assert live.tobytes() == out[at].tobytes(), (start, at)


def test_names_are_the_seeds_sets():
    assert (len(KLINE_51), len(FUTUR_38), len(DEPTH_33)) == (51, 38, 33)
    assert KLINE_51[:7] == (
        *("close_1", "close_5", "close_15", "close_60", "close_180", "close_720"),
        "close_std_5",
    )
    assert KLINE_51[-5:] == tuple(f"close_trend_{w}" for w in (5, 15, 60, 180, 720))
    assert len(set(ALL)) == len(ALL)


@pytest.mark.parametrize("seed", range(3))
def test_values_are_those_of_the_definitions(seed):
    n = 5_000
    sources = sources_of(seed, n)
    out = FeatureSet.of(ALL).batch(FIRST, *sources)
    rows = np.random.default_rng(seed + 100).integers(1440, n, 6)
    assert_as_defined(ALL, sources, out, [0, 29, 359, 1438, 1439, *rows.tolist()])


@pytest.mark.parametrize("seed", range(2))
def test_live_gives_the_bits_of_batch_wherever_it_starts(seed):
    n = 6_000
    sources = sources_of(seed, n)
    features = FeatureSet.of(ALL)
    out = features.batch(FIRST, *sources)
    starts = np.random.default_rng(seed).integers(1, n - 700, 8).tolist()
    assert_live_is_batch(features, sources, out, FIRST, [*starts, n - 20], 700)


CELLS = st.one_of(
    st.just(np.nan),
    st.sampled_from([0.0, 1.0, 0.1, 1e12, 1e-12]),
    st.floats(min_value=1e-9, max_value=1e6),
    st.floats(min_value=0.9999, max_value=1.0001),
)
COLUMN = st.lists(CELLS, min_size=1, max_size=90)
WINDOW = st.integers(min_value=2, max_value=80)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(COLUMN, COLUMN, WINDOW, st.integers(min_value=0, max_value=10**10))
def test_any_cells_and_windows_give_the_defined_values(close, gap, window, first):
    n = min(len(close), len(gap))
    kline, depth = np.full((n, 9), np.nan), np.full((n, 11), np.nan)
    kline[:, 3], depth[:, 0] = close[:n], gap[:n]
    names = [f"close_trend_{window}", f"close_area_{window}", f"gap_{window}", "gap_1"]
    features = FeatureSet.of(names)
    out = features.batch(first, kline=kline, depth=depth)
    assert_as_defined(names, (kline, kline, depth), out, range(n))
    live = features.window()
    for at in range(n):
        assert live.step(first + at, kline[at], None, depth[at]).tobytes() == out[at].tobytes()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example([(1.0, 91.0, math.nan), (math.nan,) * 3, (0.0, 1e-12, math.nan)], 188, 0)
@given(
    st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=30),
    st.integers(min_value=1, max_value=400),
    st.integers(min_value=0, max_value=10**9),
)
def test_futures_prices_and_volumes_repeat_as_defined(pattern, window, first):
    """A repeated pattern makes flat windows, means equal to their base, and every kind of hole."""
    n = 420
    rows = np.resize(np.array(pattern), (n, 3))
    futur = np.full((n, 9), np.nan)
    futur[:, 3], futur[:, 4], futur[:, 7] = rows.T
    names = [f"f_{form}_{window}" for form in ("close", "close_std", "volume", "tb_base")]
    features = FeatureSet.of(names)
    out = features.batch(first, None, futur)
    # The two means of 100 * (x - base) / base are each right to a last digit or two (2^-52).
    assert_as_defined(names, (futur, futur, futur), out, [n - 1, 400], floor=2e-13)
    live = features.window()
    begin = n - features.lookback
    live.load(first + begin, None, futur[begin:-1])
    assert live.step(first + n - 1, None, futur[-1]).tobytes() == out[-1].tobytes()


def test_a_flat_market_has_no_deviation_at_all():
    """0.1 is no binary fraction: sums of it would leave noise where the definition has 0."""
    row = [0.1, 0.1, 0.1, 0.1, 0.1, 0.01, 3.0, 0.05, 0.005]
    out = FeatureSet.of(KLINE_51).batch(FIRST, np.tile(row, (3_000, 1)))
    for name, value in zip(KLINE_51, out[-1], strict=True):
        if name.startswith(("close_std", "close_area", "span")):
            assert np.isnan(value), name  # relative to 0, or 0 / 0
        else:
            assert value == 0.0, name


def test_columns_that_a_file_does_not_have_leave_only_their_features_nan():
    rng = np.random.default_rng(5)
    rows = candles.calm(rng, 2_000)
    rows[:, 5:] = np.nan  # OHLCV
    out = FeatureSet.of(KLINE_51).batch(FIRST, rows)
    absent = [name.startswith(("trades", "tb_")) for name in KLINE_51]
    assert np.array_equal(np.isnan(out[1439:]).all(axis=0), absent)
    assert np.array_equal(np.isnan(out[1439:]).any(axis=0), absent)


def test_an_infinite_cell_is_a_missing_one():
    rng = np.random.default_rng(6)
    rows = candles.calm(rng, 2_000)
    holes = rows.copy()
    rows[1_500, 3], holes[1_500, 3] = np.inf, np.nan
    features = FeatureSet.of(KLINE_51)
    assert features.batch(FIRST, rows).tobytes() == features.batch(FIRST, holes).tobytes()


@pytest.mark.slow
def test_an_outlier_is_forgotten_four_million_rows_later():
    rng = np.random.default_rng(7)
    n = 4_000_000
    rows = np.tile(candles.calm(rng, 100_000), (n // 100_000, 1))
    rows[1_000, 3:] = 1e12
    out = FeatureSet.of(KLINE_51).batch(FIRST, rows)
    at = n - 5_000
    tail = FeatureSet.of(KLINE_51).batch(FIRST + at, rows[at:])
    assert out[at + 1439 :].tobytes() == tail[1439:].tobytes()
    assert_as_defined(KLINE_51, (rows[at:],) * 3, out[at:], [1_500, 4_999])


def test_threads_give_the_same_bits():
    rows = candles.calm(np.random.default_rng(8), 45_000)
    rows[22_000:22_600] = np.nan  # across the border of two blocks
    features = FeatureSet.of(KLINE_51)
    alone = features.batch(FIRST, rows)
    assert features.batch(FIRST, rows, workers=2).tobytes() == alone.tobytes()


def test_a_real_outage_gives_the_defined_values(market_data):
    """BTCUSDT of 2021-04-25 lacks 284 minutes."""
    table = read_klines([market_data / "BTCUSDT-1m.parquet"])[0]
    at = 1_619_308_800_000  # 2021-04-25T00:00Z
    table = to_raster(table.between(at - 2 * 86_400_000, at + 86_400_000))
    rows, first = table.values, int(table.open_time_ms[0]) // 60_000
    gap = np.flatnonzero(np.isnan(rows[:, 3]))
    assert len(gap) == 284
    features = FeatureSet.of(KLINE_51)
    out = features.batch(first, rows)
    around = [gap[0] - 1, gap[0], gap[9], gap[-1], gap[-1] + 1, gap[-1] + 3, gap[-1] + 100]
    assert_as_defined(KLINE_51, (rows,) * 3, out, [*around, len(rows) - 1])
    starts = [int(gap[0]) - 3, int(gap[100]), int(gap[-1]) + 1]
    assert_live_is_batch(features, (rows,), out, first, starts, 900)


def test_real_futures_with_all_columns_give_the_defined_values(market_data):
    table = to_raster(read_klines([market_data / "vision/um/FILUSDT-1m-2023-09.zip"])[0])
    rows, first = table.values, int(table.open_time_ms[0]) // table.step_ms
    names = (*KLINE_51, *FUTUR_38)
    features = FeatureSet.of(names)
    out = features.batch(first, rows, rows)
    assert not np.isnan(out[1439:]).all(axis=0).any()
    assert_as_defined(names, (rows,) * 3, out, [1439, 7_777, 20_000, len(rows) - 1])
    assert_live_is_batch(features, (rows, rows), out, first, [5_000, len(rows) - 300], 800)


def test_schema_is_the_hash_of_the_names_text():
    features = FeatureSet.of(["close_1", "volume_60"])
    assert features.schema_json == '["close_1","volume_60"]'
    assert json.loads(features.schema_json) == list(features.names)
    assert features.schema == hashlib.sha256(features.schema_json.encode()).hexdigest()[:16]
    assert (features.lookback, features.sources) == (1440, {"kline"})
    assert FeatureSet.of(["gap_2", "f_close_area_20"]).sources == {"depth", "futur"}
    assert FeatureSet.of(["close_area_20"]).lookback == 20


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("close_sdt_60", "close_std_W"),
        ("closes_60", "close_W"),
        ("bids_3_5", "bids_"),
        ("close_60 ", "close_W"),
        ("close_060", "close_W"),
        ("close", "close_W"),
        ("", "W"),
        ("close_0", "window"),
        ("close_trend_1", "window"),
        ("close_99999999", "window"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_form(name, said):
    with pytest.raises(Usage) as error:
        FeatureSet.of(["close_1", name])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("names", [[], ["close_1", "close_5", "close_1"]])
def test_no_names_and_repeated_names_are_refused(names):
    with pytest.raises(Usage, match=r"no features|listed twice"):
        FeatureSet.of(names)


def test_rows_of_another_shape_are_refused():
    features = FeatureSet.of(["close_area_5", "gap_2"])
    kline, depth = np.ones((10, len(KLINE_COLUMNS))), np.ones((10, 11))
    with pytest.raises(Usage, match="depth"):
        features.batch(0, kline)
    with pytest.raises(Usage, match=r"\(10, 11\), expected \(n, 9\)"):
        features.batch(0, depth, None, depth)
    with pytest.raises(Usage, match="same rows"):
        features.batch(0, kline[1:], None, depth)
    assert features.batch(0, kline[:0], None, depth[:0]).shape == (0, 2)


def test_a_hole_between_rows_is_out_of_sync():
    window = FeatureSet.of(["close_area_5"]).window()
    window.step(10, np.ones(9))
    for index in (10, 12, 9):
        with pytest.raises(OutOfSync, match=f"row {index} does not follow row 10"):
            window.step(index, np.ones(9))
    window.step(11, np.ones(9))
    assert window.index == 11


def test_a_source_of_which_nothing_is_known_is_a_row_of_nan():
    sources = sources_of(9, 800)
    features = FeatureSet.of(FUTUR_38)
    known, unknown = features.window(), features.window()
    sources[1][500] = np.nan
    for at in range(800):
        row = None if at == 500 else sources[1][at]
        same = (
            known.step(at, None, sources[1][at]).tobytes() == unknown.step(at, None, row).tobytes()
        )
        assert same, at


def test_read_only_and_strided_rows_are_taken():
    rows = candles.calm(np.random.default_rng(10), 3_000)
    features = FeatureSet.of(KLINE_51)
    out = features.batch(FIRST, rows).tobytes()
    frozen = np.frombuffer(rows.tobytes()).reshape(rows.shape)
    assert features.batch(FIRST, frozen).tobytes() == out
    assert features.batch(FIRST, np.asfortranarray(rows)).tobytes() == out


def test_state_of_a_symbol_is_small():
    assert FeatureSet.of(KLINE_51).window().nbytes < 1_000_000


def test_an_old_window_starts_anew_when_loaded():
    rows = candles.calm(np.random.default_rng(11), 3_000)
    features = FeatureSet.of(KLINE_51)
    used, fresh = features.window(), features.window()
    used.load(5, rows[:2_000])
    for window in (used, fresh):
        window.load(777, rows[2_500:2_510])
    for at in range(2_510, 2_600):
        row = rows[at]
        assert (
            used.step(777 + at - 2_500, row).tobytes()
            == fresh.step(777 + at - 2_500, row).tobytes()
        )
