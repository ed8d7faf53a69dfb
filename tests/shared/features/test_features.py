"""The feature engine against the definitions, and live against batch."""

import hashlib
import json

import numpy as np
import pytest

from shared.errors import OutOfSync, Usage
from shared.features import DEPTH_33, FUTUR_38, KLINE_51, FeatureSet
from tests.shared.features import candles, oracle

MORE = (
    "close_std_33",
    "close_trend_7",
    "close_area_33",
    "close_2000",
    "close_std_2",
    "volume_1440",
)
ALL = (*KLINE_51, *FUTUR_38, *DEPTH_33, *MORE)
FIRST = 27_123_457


def inputs_of(seed, n):
    rng = np.random.default_rng(seed)
    return candles.wild(rng, n), candles.wild(rng, n), candles.depth(rng, n)


def assert_equals_definition(names, sources, out, rows):
    kline, futur, depth = sources
    for at in rows:
        for column, name in enumerate(names):
            source = futur if name.startswith("f_") else depth if name in DEPTH_33 else kline
            expected, got = oracle.value(name, source, at), out[at, column]
            assert np.isnan(expected) == np.isnan(got), (name, at, expected, got)
            assert np.isnan(expected) or abs(expected - got) <= 1e-9 * abs(expected), (name, at)


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
    sources = inputs_of(seed, n)
    out = FeatureSet.of(ALL).batch(FIRST, *sources)
    rng = np.random.default_rng(seed + 100)
    assert_equals_definition(ALL, sources, out, [0, 29, 359, 1439, 1440, *rng.integers(0, n, 8)])


@pytest.mark.parametrize("seed", range(2))
def test_live_gives_the_bits_of_batch_wherever_it_starts(seed):
    n = 6_000
    sources = inputs_of(seed, n)
    features = FeatureSet.of(ALL)
    out = features.batch(FIRST, *sources)
    window = features.window()
    for start in np.random.default_rng(seed).integers(1, n - 700, 8):
        begin = max(0, start - features.lookback + 1)
        window.load(FIRST + begin, *(source[begin:start] for source in sources))
        for at in range(start, start + 700):
            live = window.step(FIRST + at, *(source[at] for source in sources))
            assert live.tobytes() == out[at].tobytes(), at


def test_schema_is_the_hash_of_the_names_text():
    features = FeatureSet.of(["close_1", "volume_60"])
    assert features.schema_json == '["close_1","volume_60"]'
    assert json.loads(features.schema_json) == list(features.names)
    assert features.schema == hashlib.sha256(features.schema_json.encode()).hexdigest()[:16]
    assert features.lookback == 1440
    assert features.sources == {"kline"}
    assert features.user_sha256 is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("close_sdt_60", "close_std_W"),
        ("closes_60", "close_W"),
        ("bids_3_5", "bids_"),
        ("close_60 ", "close_W"),
        ("close_060", "close_W"),
        ("close_0", "window"),
        ("close_trend_1", "window"),
        ("close_99999999", "window"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_form(name, said):
    with pytest.raises(Usage, match=r"close|bids|gap") as error:
        FeatureSet.of(["close_1", name])
    assert said in str(error.value)


def test_a_hole_between_rows_is_out_of_sync():
    features = FeatureSet.of(["close_1"])
    window = features.window()
    window.step(10, np.ones(9))
    with pytest.raises(OutOfSync, match="12 does not follow row 10"):
        window.step(12, np.ones(9))
