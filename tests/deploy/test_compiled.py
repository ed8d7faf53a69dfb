"""The kernels compiled ahead of time: no Numba, the same bits."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import shared

# Features of both kernels over a market with gaps, idle minutes and an outlier; batch and live.
_SCRIPT = """
import sys
HIDE = sys.argv[1] == "hide"
if HIDE:
    import importlib.util
    sys.modules["numba"] = None
    spec = importlib.util.spec_from_file_location("shared.features.compiled", sys.argv[2])
    sys.modules[spec.name] = importlib.util.module_from_spec(spec)
import hashlib
import numpy as np
from shared.features import FeatureSet
from shared.features.families import KLINE_51
rng = np.random.default_rng(5)
n = 6_000
close = 100 * np.exp(np.cumsum(rng.normal(0, 0.001, n)))
opened = np.r_[close[0], close[:-1]]
high, low = np.maximum(opened, close) * 1.0003, np.minimum(opened, close) * 0.9996
volume = rng.lognormal(2, 0.5, n)
volume[2000:2100] = 0
taker = volume * rng.uniform(0, 1, n)
rows = np.column_stack([opened, high, low, close, volume, volume * close, np.round(volume),
                        taker, taker * close])
rows[rng.random(n) < 0.01] = np.nan
rows[3000] *= 1e6
features = FeatureSet.of([*KLINE_51, "close_SMA_20", "close_EMA_20", "close_RSI_14", "ATR_14",
                          "close_STDDEV_20", "close_LINEARREG_SLOPE_20"])
batch = features.batch(28_000_000, rows)
window = features.window()
window.load(28_000_000, rows[:4000])
live = np.array([window.step(28_000_000 + i, rows[i]) for i in range(4000, 4500)])
assert live.tobytes() == batch[4000:4500].tobytes()
assert np.isfinite(batch[-1]).mean() > 0.9
assert ("numba" in sys.modules and sys.modules["numba"] is not None) != HIDE
from shared.contributions import _shapley
m, k = 40, 120
start = np.sort(np.r_[0, rng.integers(0, k, m - 1), k]).astype(np.int64)
low = rng.normal(-1, 1, k)
out = np.zeros(8)
total = _shapley(np.r_[rng.normal(0, 1, 7), np.nan], rng.normal(0, 1, m), start,
                 rng.integers(0, 8, k), low, low + 2, rng.random(k) < 0.5, rng.random(k),
                 np.array([0.2, 0.7]), np.array([0.4, 0.6]), out)
assert np.isfinite(out).all() and out.any()
print(hashlib.sha256(batch.tobytes() + out.tobytes() + np.float64(total).tobytes()).hexdigest())
if HIDE:
    try:
        _shapley(*[np.zeros((2, 2))[:, 0]] * 11)
        raise AssertionError("an array that is not contiguous was taken")
    except TypeError:
        pass
"""


def _run(*arguments: str) -> str:
    root = str(Path(shared.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, *arguments],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": root},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kernels_compiled_ahead_have_the_same_bits(tmp_path: Path) -> None:
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        pytest.skip("no C compiler here: `make docker-test` compares them in images")
    subprocess.run([sys.executable, "-m", "deploy.compiled", str(tmp_path)], check=True)
    assert (
        _run("hide", str(next(tmp_path.glob("compiled.*"))))
        == _run("numba")
        != hashlib.sha256(b"").hexdigest()
    )


def test_without_numba_and_without_the_module_the_import_fails() -> None:
    code = "import sys; sys.modules['numba'] = None; import shared.features.kernel"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "numba" in done.stderr.splitlines()[-1]
