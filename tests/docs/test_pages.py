"""The pages in docs/: their tables are the code's, their commands parse, all are in the menu."""

import importlib
import json
import re
import subprocess
from pathlib import Path

import pytest

from deploy import cli
from deploy.reference import json_schema, with_tables
from shared.config import Settings
from tests.docs.commands import Command, every_command, programs
from trainer.cli import COMMANDS, parser_of

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_the_tables_of_the_code(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert with_tables(text) == text, "run `make docs`"


@pytest.mark.parametrize("command", every_command(), ids=str)
def test_the_commands_of_a_page_parse(command: Command) -> None:
    subprocess.run(["bash", "-n", "-c", command.text], check=True)
    if "\n" in command.text:
        return  # a loop of other people's programs
    for words in programs(command.plain):
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
