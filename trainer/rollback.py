"""`trainer rollback`: makes the release live again that was before, if it is still whole."""

import argparse
from collections.abc import Mapping
from typing import Any

from shared.bundle import Bundle
from shared.config import Settings
from shared.releases import rollback, rollback_target
from trainer.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None of its own."""


def run(settings: Settings, args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    target = rollback_target(settings.model_folder)
    Bundle.load(settings.model_folder / "releases" / target, settings.limits.model_bytes)
    release, previous = rollback(settings.model_folder)
    return {"command": "rollback", "release": release, "previous": previous}


def summary(result: Mapping[str, Any]) -> str:
    return f"rollback: {result['release']} is live again (before: {result['previous']})"
