"""The frame of the trainer's commands: exit codes, one line, JSON."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from shared.errors import BadInput, Rejected, Unavailable, Usage
from trainer import cli
from trainer.progress import Progress


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A command `probe`; a test sets what its run() does."""
    module = SimpleNamespace(
        add_arguments=lambda parser: parser.add_argument("--number", type=int),
        run=lambda settings, args, progress: {"command": "probe", "rows": 1234, "at": args.number},
    )
    monkeypatch.setitem(cli.COMMANDS, "probe", ("tests.trainer.probe", "does nothing"))
    monkeypatch.setitem(sys.modules, "tests.trainer.probe", module)  # type: ignore[arg-type]
    return module


def test_the_result_is_a_sentence_or_with_json_one_line_of_json(
    command: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["probe", "--number", "7"]) == 0
    assert capsys.readouterr().out == "probe: command probe, rows 1,234, at 7\n"
    assert cli.main(["probe", "--number", "7", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"command": "probe", "rows": 1234, "at": 7}
    command.summary = lambda result: f"all {result['rows']}"
    assert cli.main(["probe"]) == 0
    assert capsys.readouterr().out == "all 1234\n"


def test_json_holds_whatever_a_command_measured(
    command: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    command.run = lambda *_: {
        "path": Path("a") / "b",
        "auc": np.float64(0.5),
        "nothing": float("nan"),
        "many": (np.int64(3), {"x": np.array([1.5, np.inf])}),
    }
    assert cli.main(["probe", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "path": "a/b",
        "auc": 0.5,
        "nothing": None,
        "many": [3, {"x": [1.5, None]}],
    }


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (BadInput("x.csv: empty\nand more"), 1, "x.csv: empty and more"),
        (Usage("no such thing"), 2, "no such thing"),
        (Unavailable("away"), 1, "away"),
        (Rejected("no"), 1, "no"),
        (OSError(28, "No space left on device", "f.parquet"), 1, "f.parquet: No space left"),
        (MemoryError(), 1, "out of memory"),
        (KeyboardInterrupt(), 130, "stopped"),
        (TypeError("a bug"), 1, "this should not happen: TypeError: a bug (test_cli.py:"),
    ],
)
def test_an_error_is_one_line_and_its_exit_code(
    command: SimpleNamespace,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    text: str,
) -> None:
    def fails(*_: Any) -> None:
        raise error

    command.run = fails
    assert cli.main(["probe", "--json"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"trainer probe: {text}")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "give a command: download, merge, features, labels"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        (["probe", "--nubmer", "1"], "unrecognized arguments: --nubmer 1"),
        (["probe", "--number", "x"], "invalid int value: 'x'"),
        (["probe", "-c", "nowhere.json"], "nowhere.json: no such config file"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(
    command: SimpleNamespace,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    text: str,
) -> None:
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert text in captured.err
    assert captured.err.count("\n") == 1


def test_every_listed_command_can_be_imported_and_explains_itself(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in cli.COMMANDS:
        with pytest.raises(SystemExit) as ended:
            cli.main([name, "--help"])
        assert ended.value.code == 0
        assert "--json" in capsys.readouterr().out


def test_a_malformed_config_ends_in_one_line(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    for text, reason in (("{", "not valid JSON"), ('{"symbl": "X"}', "did you mean 'symbol'")):
        config.write_text(text)
        ended = subprocess.run(
            [sys.executable, "-m", "trainer", "labels", "-c", str(config)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 2
        assert ended.stdout == ""
        assert reason in ended.stderr
        assert ended.stderr.count("\n") == 1


def test_progress_writes_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("trainer.progress.time.monotonic", lambda: now)
    progress = Progress()
    with progress.bar("reading", 3000) as bar:
        for _ in range(3):
            now += 3.0
            bar.advance(1000, "there")
        progress.note("by the way [not markup]")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "reading: 2,000 of 3,000 rows there\nby the way [not markup]\n"
