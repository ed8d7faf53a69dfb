"""The releases in the model folder, as the page shows them."""

import hashlib
import math
from pathlib import Path

from dashboard.account import Json
from shared.config import Settings
from shared.errors import BadInput, Failure
from shared.reference import REFERENCE, Reference, parse
from shared.releases import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    Manifest,
    current_id,
    history,
    is_release_id,
    list_releases,
    parse_manifest,
    rollback_target,
)

REPORT = "report.html"
_MOST = 50
_MOST_REPORT_BYTES = 32 << 20


class Library:
    """Reads a release's manifest once: a release never changes."""

    def __init__(self, settings: Settings) -> None:
        self._folder = settings.model_folder
        self._manifests: dict[str, Manifest | str] = {}
        self._references: dict[str, Reference] = {}

    def look(self) -> Json:
        """The newest releases, newest first; blocks on the disk."""
        try:
            live = current_id(self._folder)
            problem = ""
        except Failure as error:
            live, problem = None, str(error)
        known = list_releases(self._folder)
        shown = known[::-1][:_MOST]
        if live is not None and live not in shown:
            shown.append(live)
        self._manifests = {k: v for k, v in self._manifests.items() if k in shown}
        try:
            back = rollback_target(self._folder)
        except Failure:
            back = None
        return {
            "kind": "releases",
            "live": live,
            "back": back,
            "problem": problem,
            "count": len(known),
            "releases": [self._plain(name) for name in shown],
            "history": history(self._folder)[-20:],
        }

    def manifest(self, release: str) -> Manifest | None:
        """None where it cannot be read."""
        found = self._manifest(release)
        return None if isinstance(found, str) else found

    def reference(self, release: str) -> Reference | None:
        """What a release was trained on; None where it does not say. Blocks on the disk.

        Raises:
            BadInput: the file is not the one that was released.
        """
        if release not in self._references:
            manifest = self.manifest(release)
            if manifest is None or manifest.reference_sha256 is None:
                return None
            path = self._folder / "releases" / release / REFERENCE
            content = _read(path, MAX_MANIFEST_BYTES)
            if hashlib.sha256(content).hexdigest() != manifest.reference_sha256:
                raise BadInput(f"{REFERENCE} of {release} is not the file that was released")
            self._references = {
                release: parse(content)
            }  # the live one is asked for, again and again
        return self._references[release]

    def _manifest(self, release: str) -> Manifest | str:
        """The manifest, or what is wrong with it."""
        if release not in self._manifests:
            if not is_release_id(release):
                return "this is no release"
            folder = self._folder / "releases" / release
            try:
                content = _read(folder / MANIFEST, MAX_MANIFEST_BYTES)
                self._manifests[release] = parse_manifest(content, folder)
            except Failure as error:
                self._manifests[release] = str(error)
        return self._manifests[release]

    def _plain(self, release: str) -> Json:
        found = self._manifest(release)
        if isinstance(found, str):
            return {"id": release, "problem": found}
        training = found.training
        return {
            "id": release,
            "problem": "",
            "created": found.created,
            "code_version": found.code_version,
            "symbols": found.symbols,
            "interval": found.interval,
            "features": len(found.features),
            "features_horizon": found.features_horizon,
            "left_out": found.left_out,
            "score": found.score.kind,
            "buy": found.thresholds.buy,
            "sell": found.thresholds.sell,
            "models": [
                {
                    "name": name,
                    "label": model.label,
                    "side": found.labels[model.label].side,
                    "horizon": found.labels[model.label].horizon,
                    "definition": found.labels[model.label].definition,
                    "algorithm": model.algorithm,
                    "auc": _known(found.metrics.get(name, {}).get("auc")),
                    "auc_low": _known(found.metrics.get(name, {}).get("auc_low")),
                    "auc_high": _known(found.metrics.get(name, {}).get("auc_high")),
                }
                for name, model in found.models.items()
            ],
            "start_ms": training.start_ms,
            "end_ms": training.end_ms,
            "rows": training.rows,
            "test_rows": training.test_rows,
            "report": self.report_path(release) is not None,
        }

    # -- report -------------------------------------------------------------------------------

    def report_path(self, release: str) -> Path | None:
        """`report.html` of a release; None where there is none (or no such release)."""
        if not is_release_id(release):
            return None
        path = self._folder / "releases" / release / REPORT
        is_plain = path.is_file() and not path.is_symlink()
        return path if is_plain and path.stat().st_size <= _MOST_REPORT_BYTES else None


def _known(value: float | int | None) -> float | None:
    """JSON has no NaN."""
    return None if value is None or not math.isfinite(value) else float(value)


def _read(path: Path, most: int) -> bytes:
    """
    Raises:
        BadInput: it cannot be read, or is larger than `most`.
    """
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise BadInput(f"{path.name}: cannot read it: {error.strerror}") from None
    if len(content) > most:
        raise BadInput(f"{path.name}: more than {most} bytes")
    return content
