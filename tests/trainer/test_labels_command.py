"""`trainer labels` itself: what it writes, and what it prints."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from shared.config import Settings
from shared.klinefiles import read_columns, write_columns
from shared.klines import KLINE_COLUMNS, KlineTable
from tests.trainer.walks import MINUTE, walk
from trainer import cli
from trainer.labels import definition, known_labels, label

START = 28_000_000 * MINUTE  # a whole minute in 2023


@pytest.fixture
def candles(tmp_path: Path) -> tuple[Path, KlineTable]:
    values = walk(900, 8)
    times = START + MINUTE * np.arange(900, dtype=np.int64)
    path = tmp_path / "AAAUSDT-1m.parquet"
    columns = {name: values[:, at] for at, name in enumerate(KLINE_COLUMNS)}
    write_columns(path, {"open_time_ms": times, **columns})
    return path, KlineTable(symbol="AAAUSDT", interval="1m", open_time_ms=times, values=values)


def test_labels_and_their_t1_are_written_as_parquet_and_csv(
    candles: tuple[Path, KlineTable], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, table = candles
    names = ["high_10", "tb_up", "top2_20_05", "high_max_30"]
    out = tmp_path / "out" / "labels.parquet"
    arguments = ["labels", "--klines", str(path), "--out", str(out), "--horizon", "20", "--json"]
    assert cli.main([*arguments, "--t1", "--csv", "--labels", *names, "high_10"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["labels"] == names
    assert result["outputs"][0]["wrote"] == [str(out), str(out.with_suffix(".csv"))]
    written = pq.read_table(out)
    assert written.column_names == [
        "open_time_ms",
        *(column for name in names for column in (name, f"{name}_t1")),
    ]
    with out.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in names:
        wanted = label(name, table, 20)
        np.testing.assert_array_equal(written[name].to_numpy(), wanted.y)
        np.testing.assert_array_equal(
            written[f"{name}_t1"].to_numpy(), table.open_time_ms[wanted.t1]
        )
        cells = [float(row[name]) if row[name] else np.nan for row in rows]
        np.testing.assert_array_equal(cells, wanted.y)
        assert [int(row[f"{name}_t1"]) for row in rows] == table.open_time_ms[wanted.t1].tolist()
        mean = result["outputs"][0]["mean"][name]
        assert mean == pytest.approx(np.nanmean(wanted.y), abs=1e-6)


def test_a_label_that_no_row_has_a_value_of_is_said(
    candles: tuple[Path, KlineTable], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "labels.parquet")
    arguments = ["labels", "--klines", str(candles[0]), "--out", out, "--labels", "high_10"]
    assert cli.main([*arguments, "high_max_30", "--horizon", "900"]) == 0
    [line] = capsys.readouterr().err.splitlines()
    assert "AAAUSDT: no row has a value of high_10: it looks at rows up to t+900" in line
    assert "there are 900" in line


def test_the_monthly_folder_gets_its_csv_beside_it(
    candles: tuple[Path, KlineTable],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ITB_DATA_FOLDER", str(tmp_path / "data"))
    assert cli.main(["labels", "--klines", str(candles[0]), "--labels", "trend_up", "--csv"]) == 0
    folder = tmp_path / "data" / "AAAUSDT-1m-labels"
    assert [file.suffix for file in folder.iterdir()] == [".parquet"]
    assert (
        folder.with_name("AAAUSDT-1m-labels.csv").read_text().startswith("open_time_ms,trend_up\n")
    )
    said = capsys.readouterr().out
    assert said.startswith("labels: 1 labels of 900 rows in ")
    assert "AAAUSDT-1m-labels.csv" in said


def test_list_prints_every_form_with_definition_and_t1(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["labels", "--list", "--horizon", "33"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in known_labels():
        [line] = [line for line in lines if line.split()[:1] == [name]]
        assert definition(name, 33).split(", sigma[t] =")[0] in line
        assert "; t1 = " in line
    assert cli.main(["labels", "--list", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    listed = [one for form in result["forms"] for one in form["labels"]]
    assert [one["name"] for one in listed] == list(known_labels())
    assert {one["side"] for one in listed} == {"high", "low", None}


def test_an_unknown_label_is_one_line_before_anything_is_read(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["labels", "--klines", "nowhere.parquet", "--labels", "high_10", "tb_pu"]) == 2
    assert capsys.readouterr().err == "trainer labels: no label 'tb_pu'; did you mean 'tb_up'?\n"


def test_a_bare_word_stands_for_both_sides(
    candles: tuple[Path, KlineTable], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.parquet"
    words = ["highlow2", "topbot2", "triple_barrier", "trend_scanning", "tb_up"]
    options = ["--labels", *words, "--out", str(out)]
    assert cli.main(["labels", "--klines", str(candles[0]), *options]) == 0
    assert list(read_columns(out)) == [
        *("open_time_ms", "high2_20_04", "low2_20_04", "top2_20_05", "bot2_20_05"),
        *("tb_up", "tb_down", "trend_up", "trend_down"),
    ]
    assert Settings(labels=["high_10", "highlow2"]).labels == (
        *("high_10", "high2_20_04", "low2_20_04"),
    )
    capsys.readouterr()
    assert cli.main(["labels", "--list"]) == 0
    assert "  highlow2              high2_20_04, low2_20_04\n" in capsys.readouterr().out
    assert cli.main(["labels", "--klines", "nowhere.csv", "--labels", "topbot"]) == 2
    assert "did you mean 'topbot2'?" in capsys.readouterr().err
