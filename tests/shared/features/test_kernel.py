"""Where the compiled kernel is kept."""

import subprocess
import sys

from numba.core import caching

from shared.features import kernel


def plus(a):
    return a + 1.0


def test_without_a_place_for_the_cache_the_kernel_compiles_in_memory(monkeypatch):
    monkeypatch.setattr(caching.CompileResultCacheImpl, "_locator_classes", [])
    assert kernel.cached(plus)(1.0) == 2.0


def test_a_cache_folder_that_cannot_be_written_is_not_used(monkeypatch, tmp_path):
    occupied = tmp_path / "file"
    occupied.write_text("")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(occupied / "below"))
    assert kernel.cached(plus)(1.0) == 2.0


def test_the_kernel_does_without_scipy():
    """Live services must not pay for it; Numba would load it where it is installed."""
    script = (
        "import sys; from shared.features import FeatureSet;"
        "FeatureSet.of(['close_1']).window();"
        "assert not [m for m in sys.modules if m.split('.')[0] in ('scipy', 'pandas')];"
        "import scipy.linalg"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
