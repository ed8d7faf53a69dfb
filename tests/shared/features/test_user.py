"""A user's own features: the same rules, and a clear line where they are broken."""

import hashlib
import textwrap

import numpy as np
import pytest

from shared.errors import Failure, Usage
from shared.features import FeatureSet
from tests.shared.features import candles

GOOD = """
    import numpy as np
    from shared.features import feature

    CLOSE = 3

    @feature(lookback=30)
    def momentum(rows):
        return rows[-1, CLOSE] / rows[0, CLOSE] - 1

    @feature(lookback=7, name="jitted", jit=True)
    def anything(rows):
        total = 0.0
        for i in range(rows.shape[0]):
            if not np.isnan(rows[i, 4]):
                total += rows[i, 4]
        return total
"""


@pytest.fixture
def write(tmp_path):
    def write_file(text):
        path = tmp_path / "mine.py"
        path.write_text(textwrap.dedent(text))
        return path

    return write_file


def test_user_features_stand_beside_built_in_ones_live_and_batch(write):
    path = write(GOOD)
    rows = candles.wild(np.random.default_rng(1), 400)
    features = FeatureSet.of(["momentum", "close_area_20", "jitted"], path)
    assert features.lookback == 30
    assert features.user_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    out = features.batch(100, rows)
    close, volume = rows[:, 3], rows[:, 4]
    assert np.isnan(out[:29, 0]).all()
    assert np.isnan(out[:6, 2]).all()
    for at in range(29, 400):
        expected = close[at] / close[at - 29] - 1
        assert out[at, 0] == expected or np.isnan(expected) == np.isnan(out[at, 0])
        assert out[at, 2] == pytest.approx(np.nansum(volume[at - 6 : at + 1]), rel=1e-12)
    for start in (1, 29, 150):
        window = features.window()
        begin = max(0, start - 29)
        window.load(100 + begin, rows[begin:start])
        for at in range(start, 400):
            assert window.step(100 + at, rows[at]).tobytes() == out[at].tobytes()


def test_only_user_features_need_no_kernel_source(write):
    features = FeatureSet.of(["momentum"], write(GOOD))
    assert features.sources == {"kline"}
    rows = candles.calm(np.random.default_rng(2), 50)
    out = features.batch(0, rows, workers=2)
    window = features.window()
    assert [window.step(at, rows[at])[0] for at in range(29, 50)] != []
    assert np.isfinite(out[29:]).all()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = (", "mine.py:1:"),
        ("\n\nraise ValueError('no luck')", "mine.py:3: ValueError: no luck"),
        ("import not_there_at_all", "mine.py:1: ModuleNotFoundError"),
        ("y = 1", "no function in it has the decorator"),
        (GOOD.replace("lookback=30", "lookback=0"), "lookback must be 1"),
        (GOOD.replace("lookback=30", "lookback='a'"), "lookback must be a number"),
        (GOOD.replace("lookback=30", "30"), "mine.py:"),
        (GOOD.replace('name="jitted"', 'name="close_std_9"'), "built-in"),
        (GOOD.replace('name="jitted"', 'name="momentum"'), "second feature"),
        (GOOD.replace('name="jitted"', 'name="a b"'), "letters, digits"),
        (GOOD.replace("total = 0.0", "total = rows.nothing"), "cannot be compiled"),
    ],
)
def test_a_faulty_file_is_refused_with_file_and_line(write, text, said):
    with pytest.raises(Usage) as error:
        FeatureSet.of(["momentum"], write(text))
    assert said in str(error.value)
    assert "mine.py" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(Usage, match="No such file"):
        FeatureSet.of(["momentum"], tmp_path / "none.py")


def test_a_mistyped_user_feature_is_told_its_nearest_name(write):
    with pytest.raises(Usage, match="momentum"):
        FeatureSet.of(["momentun"], write(GOOD))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return 1 / 0", r"'faulty' \(.*mine.py:5\) failed: ZeroDivisionError"),
        ("rows[0, 0] = 1", "read-only"),
        ("return None", "returned NoneType"),
        ("return 'x'", "returned str"),
        ("return True", "returned bool"),
        ("return rows[0]", "returned ndarray"),
    ],
)
def test_a_function_that_fails_is_named(write, body, said):
    text = "from shared.features import feature\n\n@feature(lookback=2)\ndef faulty(rows):\n    "
    features = FeatureSet.of(["faulty"], write(text + body + "\n"))
    rows = np.ones((5, 9))
    with pytest.raises(Failure, match=said) as error:
        features.batch(0, rows)
    assert "\n" not in str(error.value)
    window = features.window()
    window.step(0, rows[0])
    with pytest.raises(Failure, match=said):
        window.step(1, rows[1])


def test_an_infinite_result_is_no_value_and_a_tiny_one_is_zero(write):
    text = """
        from shared.features import feature

        @feature(lookback=1)
        def mine(rows):
            return rows[0, 0]
    """
    features = FeatureSet.of(["mine"], write(text))
    rows = np.zeros((4, 9))
    rows[:, 0] = [np.inf, 1e-36, -1e-35, 2.5]
    assert features.batch(0, rows)[:, 0].tobytes() == np.array([np.nan, 0.0, 0.0, 2.5]).tobytes()
