"""`trainer promote`: makes a release live, once it has been verified as the predictor would."""

import argparse
from collections.abc import Mapping
from typing import Any

from shared.bundle import Bundle
from shared.config import Settings
from shared.errors import Failure
from shared.releases import list_releases, promote
from trainer.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("release", nargs="?", metavar="ID", help="default: the newest release")


def run(settings: Settings, args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    known = list_releases(settings.model_folder)
    if not known:
        raise Failure(
            f"{settings.model_folder}: no release to promote; run `python -m trainer train`"
        )
    release = args.release or known[-1]
    if release not in known:
        raise Failure(f"{settings.model_folder}: no release {release!r}; the newest is {known[-1]}")
    bundle = Bundle.load(settings.model_folder / "releases" / release, settings.limits.model_bytes)
    if bundle.note:
        progress.note(bundle.note)
    previous = promote(settings.model_folder, release)
    return {"command": "promote", "release": release, "previous": previous}


def summary(result: Mapping[str, Any]) -> str:
    before = f" (before: {result['previous']})" if result["previous"] else ""
    return f"promote: {result['release']} is live{before}"
