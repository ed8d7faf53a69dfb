"""Fixtures that every test may use."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import Phase, settings

from shared.features import FeatureSet
from tests import played as playing
from tests.played import Played, Trained
from tests.valkey import Server

# Property tests draw the same examples in every run, so that a change alone decides whether the
# suite is green; `make explore` draws new ones. Explaining a failure takes minutes on Python 3.11.
_PHASES = [phase for phase in Phase if phase is not Phase.explain]
settings.register_profile("same", derandomize=True, deadline=None, phases=_PHASES)
settings.register_profile("explore", deadline=None, phases=_PHASES, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


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


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A model folder with two releases, trained once."""
    return playing.trained(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="session")
def played(made: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    """A bus as a run leaves it, for all that only look at it."""
    folder: Path = tmp_path_factory.mktemp("played")
    server = Server(folder / "valkey").start()
    with pytest.MonkeyPatch.context() as patch:
        yield asyncio.run(playing.play(server, folder, made, patch))
    server.stop()


@pytest.fixture
def own(valkey: Server, tmp_path: Path, made: Trained, monkeypatch: pytest.MonkeyPatch) -> Played:
    """The same, shorter, for a test that changes it."""
    return asyncio.run(playing.play(valkey, tmp_path, made, monkeypatch, rows=120))
