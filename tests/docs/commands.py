"""The shell commands of the pages, and how each of them is run by a test.

A page's commands are the lines of its `sh` blocks, the lines after `$ ` of blocks that show what is
printed, indented blocks all of whose lines begin with a program, and in the text what stands
between backticks and has more words than a command's name. Everything else is output, code, config.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md")
_PROGRAMS = {"itb", "python", "make", "docker", "kubectl", "redis-cli", "git", "curl", "pip"}
_ASSIGNMENT = re.compile(r"\w+=\S*$")
_OPENS, _CLOSES = re.compile(r"(?:^|;\s*)(?:do|then)\b"), re.compile(r"^(?:done|fi)\b")
# In the text a name (`itb tail`) is no command, nor one with a word to fill in (`ready SERVICE`).
_SPAN = re.compile(r"`([^`\n]+)`")
_NAME_ONLY, _UNFINISHED = 2, re.compile(r" [A-Z_]+( |$)|\.\.\.|docker compose exec redis$")
_BETWEEN = {"&&", "||", "|", ";"}


@dataclass(frozen=True, slots=True)
class Command:
    """text: as on the page, its comments too; of several lines where the shell needs them."""

    page: str
    line: int
    text: str

    @property
    def plain(self) -> str:
        """Without comments, and with single spaces."""
        text = " ".join(map(_without_comment, self.text.replace("\\\n", " ").splitlines()))
        return re.sub(r"\s+", " ", text).strip()

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.plain}"


def commands(page: Path) -> list[Command]:
    """All of a page, from top to bottom."""
    lines = page.read_text(encoding="utf-8").splitlines()
    found = sorted([*_commands(lines), *_spans(lines)])
    return [Command(page.name, line, one) for line, one in found]


def every_command() -> list[Command]:
    return [one for page in PAGES for one in commands(page)]


def programs(plain: str) -> list[list[str]]:
    """The words of each program that a command of one line calls, without assignments before it,
    redirections behind it, and the container that it is called in."""
    found: list[list[str]] = [[]]
    for word in shlex.split(plain):
        if word in _BETWEEN:
            found.append([])
        elif found[-1] or not _ASSIGNMENT.match(word):
            found[-1].append(word)
    return [_inside(words) for words in found if words]


def _inside(words: list[str]) -> list[str]:
    cut = next((at for at, word in enumerate(words) if word in {"<", ">", ">>"}), len(words))
    words = words[:cut]
    if words[:2] == ["make", "demo"]:
        return ["itb", "demo", *shlex.split(" ".join(words[2:]).removeprefix("ARGS="))]
    if words[:2] == ["docker", "compose"] and ("exec" in words or "run" in words):
        rest = words[words.index("exec" if "exec" in words else "run") + 1 :]
        service, *inner = [word for word in rest if not word.startswith("--") and word != "-T"]
        if "run" not in words:
            return inner
        if service == "itb":
            return ["itb", *rest[rest.index(service) + 1 :]]
        if service == "trainer":
            return ["python", "-m", "trainer", *rest[rest.index(service) + 1 :]]
        return rest[rest.index(service) + 1 :]
    return [words[0].removeprefix(".venv/bin/"), *words[1:]]


def _commands(lines: list[str]) -> Iterator[tuple[int, str]]:
    """Each command with the number of its first line."""
    for first, language, block in _blocks(lines):
        if language == "sh":
            yield from _whole(first, block)
        elif language == "":
            shown = [(at, one[2:]) for at, one in enumerate(block, first) if one[:2] == "$ "]
            yield from shown
        elif language == "indented" and all(map(_is_command, block)):
            yield from _whole(first, block)


def _blocks(lines: list[str]) -> Iterator[tuple[int, str, list[str]]]:
    """Number of the first line, language (`indented` where there is no fence) and lines of each."""
    block: list[str] = []
    language: str | None = None
    before = ""
    for number, line in enumerate([*lines, ""], 1):
        fence = re.match(r"```(\w*)", line)
        if language not in {None, "indented"}:
            if fence:
                yield number - len(block), str(language), block
                language, block = None, []
            else:
                block.append(line)
        elif fence:
            language = fence[1]
        elif line.startswith("    ") and (language or not before.strip()):
            language = "indented"
            block.append(line[4:])
        elif language and line.strip():
            yield number - len(block), "indented", [one for one in block if one.strip()]
            language, block = None, []
        elif language:
            block.append(line)
        before = line
    if language == "indented":
        yield len(lines) + 1 - len(block), "indented", [one for one in block if one.strip()]


def _spans(lines: list[str]) -> Iterator[tuple[int, str]]:
    fenced = False
    for number, line in enumerate(lines, 1):
        fenced ^= line.startswith("```")
        if fenced or line.startswith("    "):
            continue
        for text in _SPAN.findall(line):
            is_long = len(text.replace("python -m ", "").split()) > _NAME_ONLY
            if is_long and _is_command(text) and not _UNFINISHED.search(text):
                yield number, text


def _without_comment(line: str) -> str:
    return re.sub(r"(^|\s)#\s.*", "", line).strip()


def _is_command(line: str) -> bool:
    words = [word for word in line.split() if not _ASSIGNMENT.match(word)]
    return bool(words) and words[0].removeprefix(".venv/bin/") in _PROGRAMS


def _whole(first: int, block: list[str]) -> Iterator[tuple[int, str]]:
    """Lines that belong together as one: after a backslash, within a loop or a condition."""
    depth, start, held = 0, first, ""
    for number, line in enumerate(block, first):
        if not held:
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            start = number
        held += line + "\n"
        words = _without_comment(line)
        depth += bool(_OPENS.search(words)) - bool(_CLOSES.match(words))
        if depth == 0 and not line.endswith("\\"):
            yield start, held.rstrip("\n")
            held = ""
    assert not held, f"line {start} begins what does not end"


class How(StrEnum):
    """Who runs a command."""

    TUTORIAL = "test_tutorial.py"
    LOCAL = "test_commands.py"
    DOCKER = "tests/docker/test_demo.py"
    NOT_HERE = "no test"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What matches `pattern` on one of `pages` (none: all) and no earlier rule is run by `how`.

    reason: why no test runs it. until: it keeps running until Ctrl-C, and works once it has printed
    this; `port N`: once it listens there. before: what must have been typed. stdin: what is typed
    into it. never: what it must not print. changes: what is put in the place of which words, where
    those of the page cannot be meant here.
    """

    pattern: str
    how: How
    pages: tuple[str, ...] = ()
    reason: str = ""
    until: str = ""
    before: str = ""
    stdin: str = ""
    never: str = ""
    changes: tuple[tuple[str, str], ...] = ()

    def matches(self, command: Command) -> bool:
        if self.pages and command.page not in self.pages:
            return False
        return re.fullmatch(self.pattern, command.plain) is not None


def rule_of(command: Command) -> Rule | None:
    from tests.docs.registry import RULES

    return next((rule for rule in RULES if rule.matches(command)), None)
