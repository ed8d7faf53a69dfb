"""Bare files as the source of training: the second symbol that features compare with."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared import klinefiles
from shared.config import Settings
from shared.errors import Usage
from shared.features.configured import configured
from shared.klines import KLINE_COLUMNS
from tests.releases import market
from trainer import inputs, leaks, merge, rasters, rolling, train, tune
from trainer.progress import Progress

KEYS: dict[str, Any] = {
    "symbols": ["AUSDT", "BUSDT"],
    "features_kline": ["close_5", "close_CORREL_30", "o_close_15"],
    "features_other": "BUSDT",
}


def written(folder: Path, symbol: str, seed: int) -> str:
    path = folder / f"{symbol}-1m.parquet"
    klinefiles.write_columns(path, market(2000, seed))
    return str(path)


def read(command: Any, *options: str, **keys: Any) -> list[rasters.Raster]:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    settings = Settings(**(KEYS | keys))
    return inputs.read(settings, parser.parse_args(options), configured(settings))


@pytest.mark.parametrize("command", [train, rolling, tune, leaks])
def test_every_command_that_trains_takes_the_other_symbol_from_a_file(
    command: Any, tmp_path: Path
) -> None:
    one, other = written(tmp_path, "AUSDT", 1), written(tmp_path, "BUSDT", 2)
    [raster] = read(command, "--klines", one, "--other", other)
    assert raster.symbol == "AUSDT"
    [table] = klinefiles.read_klines([other])
    np.testing.assert_array_equal(raster.inputs(0, 2000)["other"], table.values)


def test_the_other_symbol_may_stand_among_the_files(tmp_path: Path) -> None:
    one, other = written(tmp_path, "AUSDT", 1), written(tmp_path, "BUSDT", 2)
    a, b = read(train, "--klines", one, other)
    assert (a.symbol, b.symbol) == ("AUSDT", "BUSDT")
    for raster in (a, b):  # as `merge` puts it beside both
        np.testing.assert_array_equal(raster.inputs(0, 2000)["other"], b.kline)
    parser = argparse.ArgumentParser()
    merge.add_arguments(parser)
    settings = Settings(**KEYS, data_folder=tmp_path / "data")
    merge.run(settings, parser.parse_args(["--klines", one, other]), Progress(quiet=True))
    for raster in (a, b):
        merged = rasters.read_merged(tmp_path / "data", raster.symbol, "1m")
        assert list(merged.extra) == [f"o_{name}" for name in KLINE_COLUMNS]
        np.testing.assert_array_equal(merged.inputs(0, 2000)["other"], b.kline)


def test_without_it_one_line_says_what_to_give(tmp_path: Path) -> None:
    one, other = written(tmp_path, "AUSDT", 1), written(tmp_path, "BUSDT", 2)
    with pytest.raises(Usage, match=r"features read other rows, .* or give --other"):
        read(train, "--klines", one)
    with pytest.raises(Usage, match="--futures and --other go with --klines"):
        read(train, "--other", other)
    with pytest.raises(Usage, match="one symbol and interval"):
        read(train, "--klines", one, "--other", one, other)
