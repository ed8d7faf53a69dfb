"""A release and one undisturbed run, shared by the tests that compare with them."""

import os
from pathlib import Path

import pytest

from tests import releases

FEATURES = (
    "close_5", "close_60", "close_std_60", "volume_15", "tb_base_60", "trades_60", "span_15",
    "close_trend_15", "close_trend_60", "close_area_60",
)  # fmt: skip

# About the middle of the scores that the release gives on a tape, so that both sides come often.
BUY_ABOVE, SELL_BELOW = 0.38, 0.28

# Taken out of the environment: the config refuses ITB_ variables that it does not know.
_SEED = os.environ.pop("ITB_KILL_SEED", None)
_KILLS = os.environ.pop("ITB_KILLS", None)


def kill_seed(default: int) -> int:
    """Seed of a run's kill times; the variable replays a printed one."""
    return default if _SEED is None else int(_SEED)


def kill_count(default: int) -> int:
    """Kills per service of each run."""
    return default if _KILLS is None else int(_KILLS)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a promoted release over FEATURES."""
    folder = tmp_path_factory.mktemp("release")
    thresholds = {"buy_threshold": BUY_ABOVE, "sell_threshold": SELL_BELOW}
    releases.train(folder, features_kline=FEATURES, signaler={"model": thresholds})
    return folder / "models"
