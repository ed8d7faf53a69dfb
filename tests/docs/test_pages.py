"""The pages in docs/: their tables are the code's, their commands parse, all are in the menu."""

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest

from deploy import cli
from deploy.reference import json_schema, with_tables
from shared.config import Settings
from trainer.cli import COMMANDS, parser_of

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_the_tables_of_the_code(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert with_tables(text) == text, "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_parse(page: Path) -> None:
    for line in commands(page.read_text(encoding="utf-8")):
        words = shlex.split(line, comments=True)
        if words[:2] == ["make", "demo"] and len(words) > 2:
            words = ["itb", "demo", *shlex.split(words[2].removeprefix("ARGS="))]
        words[0] = words[0].removeprefix(".venv/bin/")
        if words[0] == "itb":
            cli.parser().parse_args(words[1:])
        elif words[:3] == ["python", "-m", "trainer"]:
            module = importlib.import_module(COMMANDS[words[3]][0])
            parser_of(words[3], module).parse_args(words[3:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_in_the_menu_and_its_links_lead_somewhere(page: Path) -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert f": {page.name}\n" in menu
    for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if "://" not in link:
            assert (page.parent / link).exists(), link


def test_the_schema_that_editors_read_is_the_config_s() -> None:
    text = (ROOT / "docs" / "config.schema.json").read_text(encoding="utf-8")
    assert text == json_schema(), "run `make docs`"
    assert set(json.loads(text)["properties"]) == set(Settings.model_fields) | {"symbol"}


def commands(text: str) -> list[str]:
    """The lines of the shell blocks of a page; lines that a backslash joins are one."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
