"""Features after more data: only what is new is computed, with the bits of a run from scratch."""

import dataclasses
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared import klinefiles
from shared.features import FeatureSet
from trainer import feature_months, rasters
from trainer.cli import main
from trainer.feature_months import update

MINUTE = 60_000
START = klinefiles.month_bounds("2021-02")[0] - 300 * MINUTE
NAMES = ["close_area_60", "close_EMA_5_rel_9", "close_QUANTILE25_20", "volume_SMA_30"]
FEATURES = FeatureSet.of(NAMES)
FEBRUARY = 28 * 1440


def raster_of(rows: int, start_ms: int = START) -> rasters.Raster:
    """January's last 300 minutes, February, and what remains in March."""
    random = np.random.default_rng(5)
    count = 45_000
    close = 100 * np.exp(np.cumsum(random.normal(0, 1e-3, count)))
    kline = np.column_stack([close] * 4 + [random.lognormal(0, 1, count)] * 5)
    kline[20_000:20_030] = np.nan
    first = (start_ms - START) // MINUTE
    return rasters.Raster(
        symbol="X",
        interval="1m",
        open_time_ms=START + MINUTE * np.arange(first, rows, dtype=np.int64),
        kline=np.ascontiguousarray(kline[first:rows]),
    )


def revised(raster: rasters.Raster, row: int) -> rasters.Raster:
    kline = raster.kline.copy()
    kline[row, 3] *= 1.01
    return dataclasses.replace(raster, kline=kline)


def run(folder: Path, raster: rasters.Raster, features: FeatureSet = FEATURES) -> int:
    done = []
    computed = update(folder, features, raster, 2, done.append)
    assert sum(done) == len(raster)
    return computed


def assert_as_from_scratch(
    folder: Path, raster: rasters.Raster, features: FeatureSet = FEATURES
) -> None:
    found = rasters.read_months(folder)
    assert list(found) == ["open_time_ms", *features.names]
    assert found["open_time_ms"].tolist() == raster.open_time_ms.tolist()
    truth = features.batch(raster.first_index, raster.kline)
    assert np.column_stack([found[n] for n in features.names]).tobytes() == truth.tobytes()
    assert not list(folder.parent.glob(".*"))


def files_of(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_ino for file in folder.iterdir()}


FIRST = 300 + FEBRUARY + 1440  # rows until the end of 1 March


def test_a_day_more_computes_a_day(tmp_path: Path) -> None:
    folder = tmp_path / "X-1m-features"
    assert run(folder, raster_of(FIRST)) == FIRST
    assert_as_from_scratch(folder, raster_of(FIRST))
    before = files_of(folder)
    assert sorted(before) == ["2021-01.parquet", "2021-02.parquet", "2021-03.parquet"]

    assert run(folder, raster_of(FIRST)) == 0
    assert files_of(folder) == before, "not even touched"

    more = raster_of(FIRST + 1440)
    assert run(folder, more) == 1440
    assert_as_from_scratch(folder, more)
    after = files_of(folder)
    assert after["2021-02.parquet"] == before["2021-02.parquet"], "the same file"
    assert after["2021-03.parquet"] != before["2021-03.parquet"]


LAST_DAY = 300 + FEBRUARY - 1


@pytest.mark.parametrize(
    ("change", "computed"),
    [
        (lambda: revised(raster_of(FIRST), 10), 300),
        (lambda: revised(raster_of(FIRST), 300 + 2_000), FEBRUARY),
        # The last row of February is looked back at by the first ones of March.
        (lambda: revised(raster_of(FIRST), LAST_DAY), FEBRUARY + 1440),
        (lambda: revised(raster_of(FIRST), FIRST - 1), 1440),
        (lambda: raster_of(FIRST - 7), 1440 - 7),
        # History that begins later or earlier changes what the first rows see.
        (lambda: raster_of(FIRST, START + 290 * MINUTE), 10 + FEBRUARY),
        (lambda: raster_of(300 + FEBRUARY), 0),
    ],
)
def test_what_a_change_touches_is_computed_again(
    change: Callable[[], rasters.Raster], computed: int, tmp_path: Path
) -> None:
    folder = tmp_path / "X-1m-features"
    run(folder, raster_of(FIRST))
    changed = change()
    assert run(folder, changed) == computed
    assert_as_from_scratch(folder, changed)


def test_other_features_code_or_user_file_begin_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, file = tmp_path / "X-1m-features", tmp_path / "mine.py"
    raster = raster_of(1_000)
    text = "from shared.features import feature\n@feature(lookback=2)\ndef mine(rows):\n    return "
    file.write_text(text + "rows[-1, 3] - rows[-2, 3]\n")
    names = [*NAMES, "mine"]
    first = FeatureSet.of(names, file)
    for features in (FEATURES, FeatureSet.of(NAMES[::-1]), first):
        assert run(folder, raster, features) == 1_000
        assert_as_from_scratch(folder, raster, features)
    file.write_text(text + "rows[-1, 3] + rows[-2, 3]\n")
    second = FeatureSet.of(names, file)
    assert second.schema == first.schema
    assert run(folder, raster, second) == 1_000
    assert_as_from_scratch(folder, raster, second)
    assert run(folder, raster, second) == 0
    monkeypatch.setattr(feature_months, "_code", lambda: "newer")
    assert run(folder, raster, second) == 1_000


def test_a_damaged_file_is_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "X-1m-features"
    raster = raster_of(FIRST)
    run(folder, raster)
    (folder / "2021-03.parquet").write_bytes(b"PAR1 and no more")
    assert run(folder, raster) == 1440
    assert_as_from_scratch(folder, raster)


_KILLED = """
import os, signal, sys
from pathlib import Path
from tests.trainer import test_feature_months as t
from trainer import rasters

real, left = rasters.write_fast, int(sys.argv[2])

def cut(*arguments):
    global left
    if left == 0:
        arguments[0].write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    real(*arguments)

rasters.write_fast = cut
t.update(Path(sys.argv[1]), t.FEATURES, t.raster_of(t.FIRST), 1, lambda rows: None)
"""


def test_after_a_kill_the_next_run_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "X-1m-features"
    old = raster_of(100)
    run(folder, old)
    for months_before_the_kill in (1, 1):
        done = subprocess.run(
            [sys.executable, "-c", _KILLED, str(folder), str(months_before_the_kill)], check=False
        )
        assert done.returncode == -signal.SIGKILL
        assert len(rasters.read_months(folder)["open_time_ms"]) == 100
    run_again = raster_of(FIRST)
    assert run(folder, run_again) < FIRST
    assert_as_from_scratch(folder, run_again)


def test_ctrl_c_keeps_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "X-1m-features"
    raster = raster_of(FIRST)

    def stop(rows: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        update(folder, FEATURES, raster, 1, stop)
    assert not folder.exists()
    [left] = tmp_path.glob(".*.tmp")
    left.rename(left.with_name(f".{folder.name}.{_dead_pid()}.tmp"))  # this process is still here
    assert run(folder, raster) <= FIRST - 300
    assert_as_from_scratch(folder, raster)


def _dead_pid() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_the_command_says_what_it_computed_and_writes_csv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ITB_DATA_FOLDER", str(tmp_path))
    raster = raster_of(900)

    def command(*arguments: str) -> dict[str, Any]:
        code = main(["features", "--symbol", "X", "--features", *NAMES, *arguments])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        result = json.loads(captured.out.splitlines()[-1]) if "--json" in arguments else {}
        return result if result else {"text": captured.out}

    for rows, computed in ((600, 600), (900, 300), (900, 0)):
        whole = raster_of(rows)
        rasters.MonthFolder(tmp_path / "X-1m").write([whole.columns()], {})
        result = command("--json", "--csv")
        assert (result["rows"], result["computed"]) == (rows, computed)
    assert "900 were there already" in command()["text"]
    wrote = tmp_path / "X-1m-features.csv"
    assert result["outputs"][0]["wrote"] == [str(tmp_path / "X-1m-features"), str(wrote)]
    lines = wrote.read_text().splitlines()
    assert lines[0] == ",".join(["open_time_ms", *NAMES])
    truth = FEATURES.batch(raster.first_index, raster.kline)
    cells = [line.split(",")[1:] for line in lines[1:]]
    found = np.array([[float(cell or "nan") for cell in row] for row in cells])
    assert np.array_equal(found, truth, equal_nan=True)


def test_the_list_shows_every_family_with_a_name_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from shared.features import feature\n@feature(lookback=7)\ndef mine(rows): return 1.0\n"
    )
    monkeypatch.setenv("ITB_FEATURES_FILE", str(file))
    assert main(["features", "--list", "--json"]) == 0
    families = json.loads(capsys.readouterr().out)["families"]
    assert main(["features", "--list"]) == 0
    text = capsys.readouterr().out
    examples = [family["example"] for family in families]
    assert len(set(examples)) == len(examples) > 70
    for family in families:
        features = FeatureSet.of([family["example"]], file, interval_ms=MINUTE)
        assert family["formula"]
        assert f"{family['form']}   looks back {family['lookback']} rows" in text
        lookback = family["lookback"].replace("max(W, ", "").replace(")", "")
        if lookback.isdigit():
            assert features.lookback == int(lookback), family
        elif family["lookback"] == "W":
            assert features.lookback in (14, 20, 60), family
    assert {"close_SMA_20", "close_RSI_20", "f_close_20", "gap_20", "mine"} <= set(examples)
