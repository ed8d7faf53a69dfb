"""A release and one undisturbed run, shared by the tests that compare with them."""

from pathlib import Path

import pytest

from tests import releases

FEATURES = (
    "close_5", "close_60", "close_std_60", "volume_15", "tb_base_60", "trades_60", "span_15",
    "close_trend_15", "close_trend_60", "close_area_60",
)  # fmt: skip


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a promoted release over FEATURES."""
    folder = tmp_path_factory.mktemp("release")
    releases.train(folder, features_kline=FEATURES)
    return folder / "models"
