"""`itb outcomes` over a bus that real services filled."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from deploy.cli import main
from shared.klines import KLINE_COLUMNS
from shared.streams import SIGNAL
from tests.played import LABEL_HORIZON, Played


@pytest.fixture
def run(played: Played, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    config = tmp_path / "config.json"
    keys = {
        "symbol": "TESTUSDT",
        "model_folder": str(played.models),
        "data_folder": str(tmp_path / "data"),
    }
    config.write_text(json.dumps(keys))

    def itb(*arguments: str) -> tuple[int, str, str]:
        line = ["outcomes", "-c", str(config), "--redis-url", played.server.url, *arguments]
        code = main(line)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return itb


def test_every_model_is_measured_against_what_happened(played: Played, run: Any) -> None:
    code, out, _ = run("--json")
    assert code == 0
    found = json.loads(out)
    signals = played.events(SIGNAL)
    assert found["signals"] == len(signals)
    assert set(found["releases"]) == set(played.releases)
    rows = played.tape.rows
    high, low, close = (rows[:, KLINE_COLUMNS.index(name)] for name in ("high", "low", "close"))
    measured = 0
    for release, told in found["releases"].items():
        for name, one in told["models"].items():
            truths, said = [], []
            for row, signal in enumerate(signals):
                ahead = slice(row + 1, row + LABEL_HORIZON + 1)
                window = np.concatenate(
                    [close[row : row + LABEL_HORIZON + 1], high[ahead], low[ahead]]
                )
                if (
                    signal.release != release
                    or not signal.outputs
                    or row + LABEL_HORIZON >= len(rows)
                ):
                    continue
                if np.isnan(window).any():
                    continue
                up = 100 * (high[ahead].max() / close[row] - 1) > 1
                down = 100 * (low[ahead].min() / close[row] - 1) < -1
                truths.append(up if name.startswith("high") else down)
                said.append(signal.outputs[name])
            assert one["live"]["rows"] == len(truths)
            if len(set(truths)) == 2:
                measured += 1
                expected = roc_auc_score(truths, said)
                assert one["live"]["auc"] == pytest.approx(expected, abs=1e-6)
                base = float(np.mean(truths))
                assert one["live"]["base_rate"] == pytest.approx(base, abs=1e-6)
    assert found["trading"]["gap"] is None
    assert measured > 0  # or equality would say little


def test_a_person_reads_a_table_per_release(played: Played, run: Any) -> None:
    code, out, err = run()
    assert (code, err) == (0, "")
    for release in played.releases:
        assert f"release {release}" in out
    assert "AUC live" in out
    assert "no round trip has ended yet" in out


def test_candles_that_a_release_was_trained_on_are_not_measured(
    own: Played, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release = own.releases[1]
    manifest = own.models / "releases" / release / "manifest.json"
    told = json.loads(manifest.read_text())
    signals = [one for one in own.events(SIGNAL) if one.release == release]
    told["training"]["end_ms"] = signals[5].open_time_ms
    manifest.write_text(json.dumps(told))
    config = tmp_path / "config.json"
    keys = {"symbol": "TESTUSDT", "model_folder": str(own.models), "data_folder": str(tmp_path)}
    config.write_text(json.dumps(keys))
    line = ["outcomes", "-c", str(config), "--redis-url", own.server.url]
    assert main([*line, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["releases"][release]
    assert (found["signals"], found["in_training"]) == (len(signals), 6)
    counted = sum(one["signals"] for one in found["score"]["sides"].values())
    assert counted <= len(signals) - 6
    assert main(line) == 0
    assert "6 of them lie inside its training range" in capsys.readouterr().out


def test_without_signals_it_is_one_line(
    valkey: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["outcomes", "--redis-url", valkey.url]) == 1
    assert "no signal is recorded or on the bus" in capsys.readouterr().err
