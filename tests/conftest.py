"""Fixtures that every test may use."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.features import FeatureSet
from tests.valkey import Server


def pytest_configure(config: pytest.Config) -> None:
    """Compiles the feature kernels once, on a fresh checkout: tests that start services give them
    seconds, not the half minute that this takes for two of them at once."""
    if not hasattr(config, "workerinput"):
        FeatureSet.of(["close_1", "close_SMA_2", "close_CORREL_2", "close_QUANTILE50_2"]).window()


@pytest.fixture(scope="session")
def market_data() -> Path:
    """Folder of real candles beside the checkout; a user has none, so its tests skip, loudly."""
    folder = Path(os.environ.get("ITB_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        reason = f"no market data in {folder}: set ITB_TEST_DATA to run the tests on real candles"
        pytest.skip(reason)
    return folder


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Server]:
    """A fresh Valkey of its own."""
    server = Server(tmp_path / "valkey").start()
    yield server
    server.stop()
