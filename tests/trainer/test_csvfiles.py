"""A csv file reads back as the numbers that were written."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from shared.errors import Failure
from trainer import csvfiles
from trainer.progress import Progress


def test_numbers_read_back_as_they_were_whatever_the_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(3)
    times = np.arange(50, dtype=np.int64) * 60_000 + 2**60
    values = random.normal(0, 1, 50) * 10.0 ** random.integers(-300, 300, 50)
    values[[0, 7, 49]] = np.nan
    values[3] = -0.0
    for block_rows in (7, 50, 1000):
        monkeypatch.setattr(csvfiles, "_BLOCK_ROWS", block_rows)
        path = tmp_path / f"{block_rows}.csv"
        columns = {"open_time_ms": times, "value": values}
        csvfiles.write_csv(path, columns, Progress(quiet=True))
        with path.open() as file:
            rows = list(csv.DictReader(file))
        assert [int(row["open_time_ms"]) for row in rows] == times.tolist()
        found = [float(row["value"]) if row["value"] else math.nan for row in rows]
        assert np.array(found).tobytes() == values.tobytes()


def test_no_rows_give_the_header_alone(tmp_path: Path) -> None:
    path = tmp_path / "empty.csv"
    columns = {"open_time_ms": np.empty(0, np.int64), "value": np.empty(0)}
    csvfiles.write_csv(path, columns, Progress(quiet=True))
    assert path.read_text() == "open_time_ms,value\n"


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Failure, match=r"file/x\.csv: cannot be written"):
        csvfiles.write_csv(
            tmp_path / "file" / "x.csv", {"value": np.zeros(1)}, Progress(quiet=True)
        )
