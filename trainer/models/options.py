"""Reads an algorithm's `params` and `train` from the config before anything long begins."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from shared.config import Algorithm
from shared.errors import Usage

# What any algorithm may say about its rows: `length` trailing rows, every n-th of them.
ROW_PARAMS = ("length", "every_nth_row")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowChoice:
    """Which training rows an algorithm wants; None: what the trainer's config says."""

    length: int | None
    stride: int | None


def row_choice(algorithm: Algorithm) -> RowChoice:
    return RowChoice(length=_count(algorithm, "length"), stride=_count(algorithm, "every_nth_row"))


def check_names(
    algorithm: Algorithm, section: str, given: Mapping[str, Any], known: Collection[str]
) -> None:
    """Raises Usage for a name that is not known, with the nearest one."""
    for name in given:
        if name not in known:
            close = get_close_matches(name, list(known), n=1, cutoff=0.4)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise refused(algorithm, f"unknown key {section}.{name}{hint}")


def flag(algorithm: Algorithm, name: str, default: bool) -> bool:
    value = algorithm.params.get(name, default)
    if not isinstance(value, bool):
        raise refused(algorithm, f"params.{name} must be true or false")
    return value


def choice(algorithm: Algorithm, name: str, default: str, known: Collection[str]) -> str:
    value = algorithm.params.get(name, default)
    if value not in known:
        raise refused(algorithm, f"params.{name} must be one of: {', '.join(known)}")
    return str(value)


def refused(algorithm: Algorithm, why: str) -> Usage:
    return Usage(f"config: algorithms: {algorithm.name}: {why}")


def _count(algorithm: Algorithm, name: str) -> int | None:
    value = algorithm.params.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise refused(algorithm, f"params.{name} must be a whole number above 0")
    return value
