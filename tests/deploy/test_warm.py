"""The kernels are compiled once, into Numba's cache, before processes need them side by side."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import warm


def _warm(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deploy.warm", *arguments],
        env=os.environ | {"NUMBA_CACHE_DIR": str(folder)} | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


@pytest.mark.slow
def test_a_second_process_finds_what_the_first_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert not warm.is_warm()
    assert _warm(tmp_path).returncode == 0
    assert warm.is_warm()
    compiled = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("kernel.*")}
    assert any(path.suffix == ".nbc" for path in compiled)
    done = _warm(tmp_path)
    assert done.stderr.startswith("the feature kernels are compiled")
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("kernel.*")} == compiled


def test_a_cache_that_is_older_than_the_kernel_is_not_warm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert not warm.is_warm()
    index = tmp_path / "features_1" / "kernel.advance-1.py311.nbi"
    index.parent.mkdir()
    index.touch()
    assert warm.is_warm()
    os.utime(index, (0, 0))
    assert not warm.is_warm()


def test_an_unknown_feature_is_one_line(tmp_path: Path) -> None:
    done = _warm(tmp_path, ITB_FEATURES_KLINE="close_x")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
