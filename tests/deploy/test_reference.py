"""What users read about the config and the commands is what the code does."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deploy import cli
from deploy.reference import config_text, keys, with_tables, write_config
from shared.config import Settings, load
from shared.errors import Usage

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


def test_the_written_config_is_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    write_config(path, force=False)
    assert load(path) == Settings()


def test_the_written_config_names_every_key_with_a_comment_before_it() -> None:
    lines = [line.strip() for line in config_text().splitlines()]
    for key in keys():
        places = [i for i, line in enumerate(lines) if line.startswith(f'"{key.name}": ')]
        assert places, key.path
        assert any(lines[place - 1] == f"// {key.meaning}" for place in places), key.path
        assert key.meaning, key.path


def test_a_config_that_is_there_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("{}")
    with pytest.raises(Usage, match="is there already; --force"):
        write_config(path, force=False)
    assert path.read_text() == "{}"
    write_config(path, force=True)
    assert path.read_text() == config_text()


@pytest.mark.parametrize("key", list(keys()), ids=lambda key: key.path)
def test_every_key_has_an_example_that_differs_and_is_accepted(
    key: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert key.example is not None, f"{key.path}: give an example in deploy/reference.py"
    assert key.example != key.default
    data: dict[str, Any] = {}
    section = data
    *sections, name = key.path.split(".")
    for one in sections:
        section = section.setdefault(one, {})
    section[name] = key.example
    Settings(**data)
    monkeypatch.setenv(key.variable, _as_text(key.example))
    assert load() == Settings(**data)


def _as_text(value: Any) -> str:
    if isinstance(value, list) and not any(isinstance(one, dict) for one in value):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_the_readme_has_the_tables_of_the_code() -> None:
    text = README.read_text(encoding="utf-8")
    assert with_tables(text) == text, "run `make docs`"


def _shell_lines() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def test_every_command_line_of_the_readme_parses(tmp_path: Path) -> None:
    parsed = 0
    for line in _shell_lines():
        words = shlex.split(line, comments=True)
        if words[:2] == ["make", "demo"] and len(words) > 2:
            words = [".venv/bin/itb", "demo", *shlex.split(words[2].removeprefix("ARGS="))]
        if words and words[0] == ".venv/bin/itb":
            cli.parser().parse_args(words[1:])
            parsed += 1
    assert parsed >= 8


def test_every_make_target_of_the_readme_exists() -> None:
    makefile = (README.parent / "Makefile").read_text()
    named = set(
        re.findall(r"(?:^|`)make ([a-z-]+)", README.read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert {"demo", "test", "setup", "check", "bench"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_readme_config_loads(tmp_path: Path) -> None:
    (block,) = re.findall(r"```json5\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path / "config.json"
    path.write_text(block)
    assert load(path).symbols == ("BTCUSDT", "ETHUSDT")


def test_itb_init_to_stdout_writes_the_config_and_nothing_else(tmp_path: Path) -> None:
    """What deploy/config/README.md says for containers; the next step goes to stderr."""
    with (tmp_path / "config.json").open("wb") as out:
        done = subprocess.run(
            [sys.executable, "-m", "deploy.cli", "init", "/dev/stdout", "--force"],
            cwd=ROOT, stdout=out, stderr=subprocess.PIPE, text=True, check=False, timeout=60,
        )  # fmt: skip
    assert (done.returncode, done.stderr[:6]) == (0, "wrote ")
    assert (tmp_path / "config.json").read_text(encoding="utf-8") == config_text()
