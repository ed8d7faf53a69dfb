"""Two small releases, trained once."""

from pathlib import Path

import pytest

from tests.releases import train


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A model folder with two releases, the first of them promoted, and both ids."""
    folder = tmp_path_factory.mktemp("trained")
    first = train(folder)
    second = train(folder, seed=8, promote=False, algorithms=["gb"])
    return folder / "models", first, second
