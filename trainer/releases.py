"""`trainer releases`: every release, its figures, and which one is live."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from shared.config import Settings
from shared.errors import BadInput
from shared.releases import MANIFEST, Manifest, current_id, history, list_releases, parse_manifest
from shared.times import iso
from trainer.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--history", action="store_true", help="every promote and rollback as well, oldest first"
    )


def run(settings: Settings, args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    folder = settings.model_folder
    live = current_id(folder)
    known = list_releases(folder)
    if live is not None and live not in known:
        progress.note(f"{folder}: the live release {live} is not there any more; promote another")
    found: dict[str, Any] = {
        "command": "releases",
        "model_folder": folder,
        "live": live,
        "releases": [
            {"id": release, "live": release == live} | figures(folder / "releases" / release)
            for release in known
        ],
    }
    return found | ({"history": history(folder)} if args.history else {})


def figures(folder: Path) -> dict[str, Any]:
    """What a list tells of a release; `fault` alone where its manifest cannot be read."""
    try:
        manifest = parse_manifest((folder / MANIFEST).read_bytes(), folder)
    except BadInput as error:
        return {"fault": str(error)}
    except OSError as error:
        return {"fault": f"{folder / MANIFEST}: {error.strerror}"}
    training = manifest.training
    return {
        "created": manifest.created,
        "symbols": list(manifest.symbols),
        "interval": manifest.interval,
        "models": len(manifest.models),
        "labels": sorted({model.label for model in manifest.models.values()}),
        "features": len(manifest.features) - len(manifest.left_out),
        "score": str(manifest.score.kind),
        "trained": {
            "from": iso(training.start_ms),
            "to": iso(training.end_ms),
            "rows": training.rows,
        },
        "auc": mean_of(manifest, "auc"),
        "log_loss": mean_of(manifest, "log_loss"),
        "brier": mean_of(manifest, "brier"),
        "metrics": manifest.metrics,
    }


def mean_of(manifest: Manifest, figure: str) -> float | None:
    """The mean over the models that were measured; None: none was."""
    values = [found.get(figure) for found in manifest.metrics.values()]
    known = [value for value in values if value is not None]
    return round(fmean(known), 6) if known else None


def summary(result: Mapping[str, Any]) -> str:
    releases = result["releases"]
    if not releases:
        return f"releases: none in {result['model_folder']}; run `python -m trainer train`"
    lines = [f"  {'id':<25} {'trained to':<21} {'interval':<8} {'models':>6} {'AUC':>6}  symbols"]
    for found in releases:
        mark = "* " if found["live"] else "  "
        if "fault" in found:
            lines.append(f"{mark}{found['id']:<25} DAMAGED: {found['fault']}")
            continue
        auc = "-" if found["auc"] is None else f"{found['auc']:.3f}"
        lines.append(
            f"{mark}{found['id']:<25} {found['trained']['to']:<21} {found['interval']:<8} "
            f"{found['models']:>6} {auc:>6}  {' '.join(found['symbols'])}"
        )
    for entry in result.get("history", ()):
        before = f" (before: {entry['previous']})" if entry["previous"] else ""
        lines.append(f"  {entry['time']} {entry['action']} {entry['release']}{before}")
    live = "none is live" if result["live"] is None else f"* {result['live']} is live"
    lines.append(f"releases: {len(releases)} in {result['model_folder']}, {live}")
    return "\n".join(lines)
