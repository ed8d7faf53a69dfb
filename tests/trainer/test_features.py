"""The features command: the kernel's batch, cut into blocks and written whole."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shared import klinefiles
from shared.features import DEPTH_33, FUTUR_38, KLINE_51, FeatureSet
from shared.klines import KLINE_COLUMNS, KlineTable, to_raster
from tests.shared.features import candles, oracle
from trainer import features, rasters
from trainer.cli import main

MINUTE = 60_000


def run(*arguments: Any, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    code = main([str(argument) for argument in arguments] + ["--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    result = json.loads(captured.out.splitlines()[-1])
    assert isinstance(result, dict)
    return result


@pytest.fixture(autouse=True)
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ITB_DATA_FOLDER", str(tmp_path / "DATA"))
    return tmp_path / "DATA"


def test_bare_files_give_a_row_per_raster_row_equal_to_one_batch(
    market_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted((market_data / "vision").glob("BTCUSDT-1m-2021-05-*.zip"))
    files = [files[0], *files[2:]]  # a day is missing
    out = tmp_path / "out.parquet"
    result = run("features", "--klines", *files, "--out", out, capsys=capsys)
    table = pq.read_table(out)
    assert table.column_names == ["open_time_ms", *KLINE_51]
    assert table.schema.field("open_time_ms").type == pa.int64()
    assert {table.schema.field(name).type for name in KLINE_51} == {pa.float64()}
    assert result["rows"] == table.num_rows == 6 * 1440

    [klines] = klinefiles.read_klines(files)
    whole = to_raster(klines)
    assert table["open_time_ms"].to_pylist() == whole.open_time_ms.tolist()
    first_index = int(whole.open_time_ms[0]) // MINUTE
    truth = FeatureSet.of(KLINE_51).batch(first_index, kline=whole.values)
    found = np.column_stack([table[name].to_numpy() for name in KLINE_51])
    assert found.tobytes() == truth.tobytes()
    assert np.isnan(found[0]).any()  # warm-up is written, too
    assert np.isnan(table["close_1"].to_numpy()[1440:2880]).all()


def test_values_are_their_definitions_on_real_candles(
    market_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A few rows and names here; every feature has its own tests beside the kernel."""
    names = [
        "close_20",
        "close_std_60",
        "volume_5",
        "tb_base_15",
        "close_trend_60",
        "close_area_60",
    ]
    file = market_data / "vision" / "um" / "FILUSDT-1m-2023-08.zip"
    out = tmp_path / "out.parquet"
    run("features", "--klines", file, "--features", ",".join(names), "--out", out, capsys=capsys)
    table = pq.read_table(out)
    [klines] = klinefiles.read_klines([file])
    for row in (1439, 5000, len(klines) - 1):
        for name in names:
            truth = oracle.value(name, klines.values, row)
            assert table[name][row].as_py() == pytest.approx(truth, rel=1e-9), (name, row)


@pytest.mark.parametrize("block_rows", [1, 700, 10**9])
def test_blocks_of_any_size_are_the_bits_of_one_batch(
    block_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(3)
    count = 120 if block_rows == 1 else 3000
    values = 100 * np.exp(np.cumsum(random.normal(0, 1e-3, (count, 1)), axis=0)) * np.ones((1, 9))
    values[random.random(count) < 0.05] = np.nan
    times = 28_000_123 * MINUTE + MINUTE * np.arange(count, dtype=np.int64)
    names = (*KLINE_51, *FUTUR_38, *DEPTH_33)
    chosen = FeatureSet.of(names)
    raster = rasters.Raster(
        symbol="X",
        interval="1m",
        open_time_ms=times,
        kline=values,
        futur=values[::-1].copy(),
        depth=np.column_stack([values, values[:, :2]]),
    )
    monkeypatch.setattr(features, "BLOCK_ROWS", block_rows)
    blocks = list(features.feature_blocks(chosen, raster))
    assert len(blocks) == -(-count // block_rows)
    found = np.concatenate([np.column_stack([b[name] for name in names]) for b in blocks])
    truth = chosen.batch(28_000_123, values, raster.futur, raster.depth)
    assert found.tobytes() == truth.tobytes()
    assert np.concatenate([b["open_time_ms"] for b in blocks]).tolist() == times.tolist()


def test_the_data_folder_gives_monthly_files_by_the_config(
    tmp_path: Path, data_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = klinefiles.month_bounds("2021-05")[1] - 100 * MINUTE
    count = 300
    random = np.random.default_rng(1)
    close = 100 * np.exp(np.cumsum(random.normal(0, 1e-3, count)))
    table = KlineTable(
        symbol="ETHUSDT",
        interval="1m",
        open_time_ms=start + MINUTE * np.arange(count, dtype=np.int64),
        values=np.repeat(close[:, None], len(KLINE_COLUMNS), axis=1),
    )
    for folder in (klinefiles.klines_folder, rasters.futures_folder):
        klinefiles.add_klines(folder(data_folder, "ETHUSDT", "1m"), table)
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps(
            {
                "symbol": "ETHUSDT",
                "features_kline": ["close_area_60", "close_trend_15"],
                "features_futur": ["f_close_area_20"],
            }
        )
    )
    run("merge", "-c", config, capsys=capsys)
    result = run("features", "-c", config, capsys=capsys)
    folder = data_folder / "ETHUSDT-1m-features"
    assert result["outputs"][0]["wrote"] == [str(folder)]
    assert klinefiles.kline_months(folder) == ["2021-05", "2021-06"]
    assert pq.read_table(folder / "2021-05.parquet").num_rows == 100
    found = rasters.read_months(folder)
    names = ["close_area_60", "close_trend_15", "f_close_area_20"]
    assert list(found) == ["open_time_ms", *names]
    chosen = FeatureSet.of(names)
    truth = chosen.batch(start // MINUTE, table.values, table.values)
    assert np.column_stack([found[name] for name in names]).tobytes() == truth.tobytes()
    metadata = klinefiles.read_metadata(folder / "2021-05.parquet")
    assert metadata["schema"] == chosen.schema
    assert metadata["features"] == chosen.schema_json
    assert result["schema"] == chosen.schema


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["--features", "clse_20"], 2, "clse_20"),
        (["--features", "f_close_20"], 2, "features read futur rows; give --futures"),
        (["--out", "x.csv"], 2, "name it .parquet"),
        (["--klines", "nowhere-1m.csv"], 1, "nowhere-1m.csv: no such file"),
        (["--interval", "1w"], 2, "'1w' is not supported"),
        (["--symbol", "A", "--symbol", "B"], 2, "one --symbol"),
    ],
)
def test_mistakes_end_in_one_line_and_write_nothing(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    reason: str,
) -> None:
    file = tmp_path / "X-1m.csv"
    lines = [f"{1_621_123_200_000 + i * MINUTE},1,2,1,2,5" for i in range(5)]
    file.write_text("\n".join(lines))
    before = sorted(tmp_path.rglob("*"))
    given = arguments if "--klines" in arguments else ["--klines", str(file), *arguments]
    assert main(["features", *given]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    errors = [line for line in captured.err.splitlines() if line.startswith("trainer features: ")]
    assert len(errors) == 1
    assert reason in errors[0]
    assert "Traceback" not in captured.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_window_longer_than_the_candles_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "XUSDT-1m.csv", tmp_path / "features.parquet"
    lines = [f"{1_621_123_200_000 + i * MINUTE},1,2,1,2,5" for i in range(100)]
    file.write_text("\n".join(lines))
    given = ["--features", "close_SMA_20", "close_SMA_101", "--out", str(out)]
    assert main(["features", "--klines", str(file), *given]) == 0
    [line] = capsys.readouterr().err.splitlines()
    assert "XUSDT: the longest feature window looks back 101 rows, and there are 100" in line


def test_files_of_two_symbols_do_not_go_into_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("A-1m.csv", "B-1m.csv"):
        (tmp_path / name).write_text("1621123200000,1,2,1,2,5\n1621123260000,1,2,1,2,5\n")
    files = [str(tmp_path / name) for name in ("A-1m.csv", "B-1m.csv")]
    code = main(["features", "--klines", *files, "--out", str(tmp_path / "out.parquet")])
    assert code == 2
    assert "A 1m, B 1m" in capsys.readouterr().err


def test_another_symbols_candles_come_from_its_files_or_through_merge(
    tmp_path: Path, data_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(2)
    count = 200
    start = klinefiles.month_bounds("2021-05")[1] - 100 * MINUTE
    times = start + MINUTE * np.arange(count, dtype=np.int64)
    tables = {
        symbol: KlineTable(
            symbol=symbol,
            interval="1m",
            open_time_ms=times,
            values=candles.calm(random, count),
        )
        for symbol in ("BTCUSDT", "ETHUSDT")
    }
    tables["ETHUSDT"] = tables["ETHUSDT"].rows(20, 190)  # begins later, ends earlier
    btc, eth = tables["BTCUSDT"].values, np.full((count, 9), np.nan)
    eth[20:190] = tables["ETHUSDT"].values
    names = ["close_CORREL_20", "close_BETA_20", "o_close_SMA_5", "time_of_day"]
    chosen = FeatureSet.of(names, interval_ms=MINUTE)
    truth = chosen.batch(start // MINUTE, btc, None, None, eth)
    assert np.isfinite(truth[150]).all()

    files = {}
    for symbol, table in tables.items():
        klinefiles.add_klines(klinefiles.klines_folder(data_folder, symbol, "1m"), table)
        files[symbol] = tmp_path / f"{symbol}-1m.parquet"
        columns = {"open_time": table.open_time_ms}
        columns |= {name: table.column(name) for name in KLINE_COLUMNS}
        klinefiles.write_columns(files[symbol], columns)
    out = tmp_path / "out.parquet"
    given = ["--klines", files["BTCUSDT"], "--features", *names, "--out", out]
    run("features", *given, "--other", files["ETHUSDT"], capsys=capsys)
    found = pq.read_table(out)
    assert np.column_stack([found[name] for name in names]).tobytes() == truth.tobytes()
    assert main(["features", *map(str, given)]) == 2
    assert "features read other rows; give --other" in capsys.readouterr().err

    config = tmp_path / "config.json"
    config.write_text(
        json.dumps(
            {
                "symbols": ["BTCUSDT", "ETHUSDT"],
                "features_kline": names,
                "features_other": "ETHUSDT",
            }
        )
    )
    run("merge", "-c", config, capsys=capsys)
    run("features", "-c", config, capsys=capsys)
    found = rasters.read_months(data_folder / "BTCUSDT-1m-features")
    assert np.column_stack([found[name] for name in names]).tobytes() == truth.tobytes()
    own = rasters.read_months(data_folder / "ETHUSDT-1m-features")
    correlation = own["close_CORREL_20"]
    assert np.isnan(correlation[:19]).all()
    assert (np.abs(correlation[19:] - 1.0) < 1e-15).all()
