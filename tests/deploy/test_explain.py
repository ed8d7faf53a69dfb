"""`itb explain` as a person runs it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.cli import main
from shared.events import Signal
from shared.streams import SIGNAL
from tests.played import Played


@pytest.fixture
def config(played: Played, tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_folder": str(played.models)}))
    return path


def test_a_person_reads_why(
    played: Played, config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    place = tmp_path / "why.png"
    arguments = [played.signal_id(290), "-c", str(config), "--redis-url", played.server.url]
    assert main(["explain", *arguments, "--png", str(place)]) == 0
    printed = capsys.readouterr()
    signal = played.events(SIGNAL)[290]
    assert f"score {signal.score:+.4f}" in printed.out
    assert "all bits are equal" in printed.out
    assert all(name in printed.out for name in signal.outputs)
    assert played.releases[1] in printed.out
    assert all(len(line) <= 110 for line in printed.out.splitlines())
    assert printed.err == ""
    assert place.read_bytes().startswith(b"\x89PNG")


def test_a_program_reads_one_object(
    played: Played, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [played.signal_id(290), "-c", str(config), "--redis-url", played.server.url]
    assert main(["explain", *arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["equal"] is True
    assert found["signal"]["id"] == played.signal_id(290)
    assert found["outputs"] == played.events(SIGNAL)[290].outputs
    assert {"name", "value", "median", "pull"} <= set(found["top_features"][0])
    assert found["latency_ms"]["predictor"] > 0


def test_a_difference_ends_with_one_line_and_exit_code_1(
    own: Played, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(signal: Signal) -> Signal:
        return replace(signal, side="SELL" if signal.side == "BUY" else "BUY")

    own.change(SIGNAL, 100, change)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_folder": str(own.models)}))
    arguments = [own.signal_id(100), "-c", str(config), "--redis-url", own.server.url]
    assert main(["explain", *arguments]) == 1
    printed = capsys.readouterr()
    assert "NOT equal; signal side: " in printed.out
    assert printed.err.startswith("itb: not equal: signal side: ")
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("signal_id", "code", "text"),
    [
        ("nonsense", 2, "'nonsense' is no signal's id"),
        ("TESTUSDT-1m-1600000020000", 1, "it is trimmed"),
        ("NOPE-1m-1700000040000", 1, "is empty"),
    ],
)
def test_what_cannot_be_explained_is_one_line(
    played: Played,
    config: Path,
    capsys: pytest.CaptureFixture[str],
    signal_id: str,
    code: int,
    text: str,
) -> None:
    arguments = [signal_id, "-c", str(config), "--redis-url", played.server.url]
    assert main(["explain", *arguments]) == code
    printed = capsys.readouterr()
    assert text in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
