"""docs/faults.md lists every fault, and the tests that it names exist."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
COUNTS = {"I": 9, "R": 12, "C": 10, "V": 8, "F": 12, "T": 20, "N": 6, "H": 4}
NOT_PLAYED = "not played here: "


def rows() -> dict[str, str]:
    """What plays each fault, by id."""
    found = re.findall(r"^\| ([A-Z]\d+) \| [^|]+ \| (.+) \|$", PAGE, re.MULTILINE)
    assert len(found) == len(dict(found)), "an id stands twice"
    return dict(found)


@cache
def functions_of(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    functions = (
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return frozenset(function.name for function in functions)


def test_every_fault_has_its_row() -> None:
    wanted = {f"{letter}{n}" for letter, count in COUNTS.items() for n in range(1, count + 1)}
    assert rows().keys() == wanted


def test_every_row_names_a_test_or_says_why_there_is_none() -> None:
    for fault, played in rows().items():
        reason = played.removeprefix(NOT_PLAYED) if played.startswith(NOT_PLAYED) else ""
        assert "`tests/" in played or len(reason) > 20, fault


def test_every_named_test_exists() -> None:
    named = re.findall(r"`(tests/\S+?)::(\w+)`", PAGE)
    assert len(named) > 100
    missing = [f"{path}::{name}" for path, name in named if name not in functions_of(path)]
    assert not missing
