"""Releases: sets of models on disk, their manifest, and the link that says which one is live.

    model_folder/current -> releases/20261122T120000Z-1a2b3c4d
    model_folder/releases/<id>/manifest.json  bundle.onnx  high_20_k_gb.onnx ...  metrics.json
                               reference.json
    model_folder/history.jsonl

A release is built in a temporary folder, synced, renamed and never changed again. `current` is
replaced by one atomic rename. Readers take the bytes of a file once and check those bytes; only
JSON and ONNX are ever read, nothing that can run code when it is loaded.
"""

import hashlib
import json
import os
import platform
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from shared.errors import BadInput, Failure
from shared.klinefiles import is_running
from shared.reference import REFERENCE
from shared.score import ScoreFormula, ScoreKind, Stack
from shared.times import iso

MANIFEST = "manifest.json"
BUNDLE = "bundle.onnx"
MAX_MODEL_BYTES = 256 * 1024 * 1024
MAX_MANIFEST_BYTES = 16 * 1024 * 1024
# What a release may hold. Formats that run code on load (pickle, joblib, Python, shared
# libraries, HDF5 with lambdas) have no place in it, listed in the manifest or not.
_SUFFIXES = frozenset({".json", ".onnx", ".txt", ".html", ".parquet"})
_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}")
_STALE_BUILD_S = 3600

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*\.onnx$", max_length=120)]
# JSON has no NaN: a missing value is null there.
_Number = Annotated[
    float,
    BeforeValidator(lambda value: float("nan") if value is None else value),
    PlainSerializer(lambda value: None if value != value else value),  # noqa: PLR0124  # NaN
]


class _Entry(BaseModel):
    """Unknown fields are ignored, so that an older service reads a newer manifest."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=True)


class ModelEntry(_Entry):
    """One model. inputs: letters of the series it reads (k klines, f futures, d depth)."""

    file: FileName
    sha256: Sha256
    label: str
    inputs: str = Field(pattern=r"^k?f?d?$", min_length=1)
    algorithm: Literal["gb", "nn", "lc", "svc"]
    opset: int
    ml_opset: int | None = None
    calibration: Literal["none", "platt", "isotonic"] = "none"


class ValueEntry(_Entry):
    """One regression: a file beside the bundle, of which neither the bundle nor the score knows.

    Its output is in the unit of the label, which `definition` gives; horizon: rows after the candle
    that the label looks at.
    """

    file: FileName
    sha256: Sha256
    label: str
    horizon: int
    definition: str
    inputs: str = Field(pattern=r"^k?f?d?$", min_length=1)
    algorithm: Literal["gb", "nn", "lc", "svc"]
    opset: int
    ml_opset: int | None = None


class LabelEntry(_Entry):
    """What a label means. horizon: rows after the candle that it looks at."""

    side: Literal["high", "low"]
    horizon: int
    definition: str
    left_out: str = Field(default="", description="why no model predicts it; empty: one does")


class StackEntry(_Entry):
    """One side of a stack: a weight for every model of the score."""

    weights: dict[str, float]
    bias: float

    @property
    def stack(self) -> Stack:
        return Stack(weights=self.weights, bias=self.bias)


class ScoreEntry(_Entry):
    """The score's formula and its parameters; shared/score.py defines what `kind` means."""

    kind: ScoreKind
    high: tuple[str, ...] = Field(min_length=1)
    low: tuple[str, ...] = Field(min_length=1)
    high_stack: StackEntry | None = None
    low_stack: StackEntry | None = None

    @classmethod
    def of(cls, formula: ScoreFormula) -> "ScoreEntry":
        def entry(stack: Stack | None) -> StackEntry | None:
            if stack is None:
                return None
            return StackEntry(weights=dict(stack.weights), bias=stack.bias)

        return cls(
            kind=formula.kind,
            high=formula.high,
            low=formula.low,
            high_stack=entry(formula.high_stack),
            low_stack=entry(formula.low_stack),
        )

    @property
    def formula(self) -> ScoreFormula:
        """
        Raises:
            ValueError: a stack without weights for all models, or weights without a stack.
        """
        return ScoreFormula(
            kind=self.kind,
            high=self.high,
            low=self.low,
            high_stack=None if self.high_stack is None else self.high_stack.stack,
            low_stack=None if self.low_stack is None else self.low_stack.stack,
        )

    @model_validator(mode="after")
    def _is_whole(self) -> "ScoreEntry":
        _ = self.formula
        return self


class Thresholds(_Entry):
    """BUY above `buy`, SELL below `sell`."""

    buy: float = Field(ge=-1, le=1)
    sell: float = Field(ge=-1, le=1)


class TrainingRange(_Entry):
    """Open times of the first and last candle trained on, and how rows were chosen."""

    start_ms: int
    end_ms: int
    rows: int
    stride: int
    seed: int
    test_start_ms: int
    test_rows: int


class Golden(_Entry):
    """Input rows with the outputs and scores that the bundle gave on the training machine."""

    inputs: tuple[tuple[_Number, ...], ...] = Field(min_length=1)
    outputs: tuple[tuple[_Number, ...], ...]
    scores: tuple[_Number, ...]


class Runtime(_Entry):
    """Bits are promised for one onnxruntime version and CPU kind: these."""

    onnxruntime: str
    cpu: str


class Manifest(_Entry):
    """Everything that a reader of a release needs to know; `manifest.json`.

    features: names in the order of the input columns; left_out: those that no model uses.
    features_horizon: rows of candles that the longest feature window needs.
    models: in the order of the output columns. values: regressions, which no service runs.
    reference_sha256: of `reference.json`; None in releases of earlier versions, which have none.
    made_from: what the release was made from: sha256 of the rows, versions of the libraries, the
    config of algorithms and trainer.
    """

    format: Literal[1] = 1
    id: str
    created: str
    code_version: str
    symbols: tuple[str, ...] = Field(min_length=1)
    interval: str
    features: tuple[str, ...] = Field(min_length=1)
    schema_hash: str = Field(pattern=r"^[0-9a-f]{16}$")
    features_horizon: int = Field(ge=1)
    left_out: tuple[str, ...] = ()
    features_file_sha256: Sha256 | None = None
    labels: dict[str, LabelEntry]
    models: dict[str, ModelEntry] = Field(min_length=1)
    values: dict[str, ValueEntry] = Field(default_factory=dict)
    bundle_sha256: Sha256
    reference_sha256: Sha256 | None = None
    score: ScoreEntry
    thresholds: Thresholds
    training: TrainingRange
    metrics: dict[str, dict[str, float | int | None]]
    parity: dict[str, float | int | bool] = Field(default_factory=dict)
    runtime: Runtime
    golden: Golden
    made_from: dict[str, Any] = Field(default_factory=dict)

    @cached_property
    def used(self) -> npt.NDArray[np.intp]:
        """Columns of the features that at least one model uses."""
        left_out = set(self.left_out)
        return np.array([i for i, name in enumerate(self.features) if name not in left_out])

    @model_validator(mode="after")
    def _consistent(self) -> "Manifest":
        if not is_release_id(self.id):
            raise ValueError(f"id {self.id!r} is not of the form 20261122T120000Z-1a2b3c4d")
        if len(set(self.features)) != len(self.features):
            raise ValueError("a feature is listed twice")
        if feature_schema(self.features) != self.schema_hash:
            raise ValueError("the schema hash is not that of the features in this order")
        if unknown := set(self.left_out) - set(self.features):
            raise ValueError(f"left_out names an unknown feature {min(unknown)!r}")
        if not set(self.features) - set(self.left_out):
            raise ValueError("every feature is left out")
        if unknown := (set(self.score.high) | set(self.score.low)) - set(self.models):
            raise ValueError(f"the score names an unknown model {min(unknown)!r}")
        if len(self.score.high) + len(self.score.low) < len(self.models):
            raise ValueError("a model has no side in the score")
        if unknown := {model.label for model in self.models.values()} - set(self.labels):
            raise ValueError(f"a model names an unknown label {min(unknown)!r}")
        if twice := set(self.values) & set(self.models):
            raise ValueError(f"{min(twice)!r} is both a model and a regression")
        if self.thresholds.sell > self.thresholds.buy:
            raise ValueError("the sell threshold is above the buy threshold")
        rows = len(self.golden.inputs)
        if (
            len(self.golden.outputs) != rows
            or len(self.golden.scores) != rows
            or any(len(row) != len(self.features) for row in self.golden.inputs)
            or any(len(row) != len(self.models) for row in self.golden.outputs)
        ):
            raise ValueError("the golden rows do not fit the features and models")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A release whose every file was read once and has the bytes that its manifest names.

    reference: `shared.reference` reads it; None where the release has none.
    """

    folder: Path
    manifest: Manifest
    bundle: bytes
    reference: bytes | None = None

    @property
    def id(self) -> str:
        return self.manifest.id


def feature_schema(names: Sequence[str]) -> str:
    """Schema hash of feature names in order, as `schema:<hash>` on the bus (DESIGN section 3)."""
    text = json.dumps(list(names), separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cpu_kind() -> str:
    """System, machine and the vector instructions that change how numbers are summed."""
    parts = [platform.system().lower(), platform.machine().lower()]
    flags: set[str] = set()
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith(("flags", "Features")):
                    flags = set(line.partition(":")[2].split())
                    break
    except OSError:
        pass  # not Linux: the machine name stands for all
    known = ("avx", "avx2", "fma", "avx512f", "avx512_vnni", "amx_tile", "asimd", "sve")
    return "-".join([*parts, *(name for name in known if name in flags)])


def is_release_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def release_id(created_s: int, bundle: bytes) -> str:
    """`20261122T120000Z-1a2b3c4d`: creation time (UTC) and the head of the bundle's sha256."""
    when = datetime.fromtimestamp(created_s, UTC).strftime("%Y%m%dT%H%M%SZ")
    return f"{when}-{hashlib.sha256(bundle).hexdigest()[:8]}"


def write_release(model_folder: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Path:
    """Writes a release that is whole or not there; it does not become `current` by that.

    files: name -> bytes of every file but the manifest.

    Raises:
        BadInput: the files are not those that the manifest names.
        Failure: the folder cannot be written, or the release is already there.
    """
    releases = model_folder / "releases"
    target = releases / manifest.id
    build: Path | None = None
    try:
        releases.mkdir(parents=True, exist_ok=True)
        _sweep(releases)
        if target.exists():
            raise Failure(f"{target}: this release is already there and never changes")
        build = Path(tempfile.mkdtemp(prefix=".build-", dir=releases))
        # mkdtemp gives 0700; services of another user must be able to read.
        build.chmod(0o755)
        for name, content in files.items():
            _write_synced(build / name, content)
        text = json.dumps(manifest.model_dump(mode="json"), indent=1, allow_nan=False)
        _write_synced(build / MANIFEST, text.encode() + b"\n")
        _read_folder(build, MAX_MODEL_BYTES)
        _sync_folder(build)
        build.rename(target)
        build = None
        _sync_folder(releases)
    except OSError as error:
        raise Failure(f"{target}: cannot write the release: {error.strerror}") from None
    finally:
        if build is not None:
            shutil.rmtree(build, ignore_errors=True)
    return target


def read_release(folder: Path, max_bytes: int = MAX_MODEL_BYTES) -> Release:
    """Reads and verifies a release: every listed file's size and sha256, and the manifest.

    Raises:
        BadInput: anything about it is not what it must be; the text is one line.
    """
    folder = folder.resolve()
    release = _read_folder(folder, max_bytes)
    if release.manifest.id != folder.name:
        raise _refused(folder, f"its manifest is of release {release.manifest.id}")
    return release


def read_model(
    release: Release, entry: ModelEntry | ValueEntry, max_bytes: int = MAX_MODEL_BYTES
) -> bytes:
    """One model's own file, of a release that was read.

    Raises:
        BadInput: it is not the file that was released.
    """
    return _read_checked(release.folder, entry.file, entry.sha256, max_bytes)


def current_id(model_folder: Path) -> str | None:
    """Id of the live release, None where nothing was promoted yet. Costs one readlink.

    Raises:
        BadInput: `current` is there but is not a link to a release.
    """
    link = model_folder / "current"
    try:
        target = link.readlink()
    except FileNotFoundError:
        return None
    except OSError:
        raise BadInput(
            f"{link}: not a symlink to a release; remove it and promote a release"
        ) from None
    if not is_release_id(target.name) or target.parent != Path("releases"):
        raise BadInput(f"{link}: points to {target}, which is no release; promote a release")
    return target.name


def current_folder(model_folder: Path) -> Path | None:
    """Folder of the live release (the link resolved once), None where there is none."""
    found = current_id(model_folder)
    return None if found is None else model_folder / "releases" / found


def list_releases(model_folder: Path) -> list[str]:
    """Ids, oldest first."""
    releases = model_folder / "releases"
    if not releases.is_dir():
        return []
    return sorted(path.name for path in releases.iterdir() if is_release_id(path.name))


def promote(model_folder: Path, release: str) -> str | None:
    """Makes a release live; returns the one that was. The caller has verified it.

    Raises:
        Failure: there is no such release, or the link cannot be written.
    """
    return _switch(model_folder, release, "promote")


def rollback(model_folder: Path) -> tuple[str, str]:
    """Makes the release live again that was before; returns (now live, no longer live).

    Raises:
        Failure: there is none to go back to.
    """
    target = rollback_target(model_folder)
    previous = _switch(model_folder, target, "rollback")
    return target, previous or ""


def rollback_target(model_folder: Path) -> str:
    """The release that `rollback` would make live."""
    stack: list[str] = []

    def up_to(release: str | None) -> None:
        """What stands above it was never live, or is so no more."""
        if release is None:
            return
        if release not in stack:
            stack.append(release)
        while stack[-1] != release:
            stack.pop()

    for entry in history(model_folder):
        up_to(entry["previous"])  # a line is written before the switch, which a crash may prevent
        if entry["action"] == "rollback":
            up_to(entry["release"])
        elif not stack or stack[-1] != entry["release"]:
            stack.append(entry["release"])
    live = current_id(model_folder)
    up_to(live)
    while stack and (stack[-1] == live or not (model_folder / "releases" / stack[-1]).is_dir()):
        stack.pop()
    if not stack:
        raise Failure(f"{model_folder}: no earlier release to roll back to")
    return stack[-1]


def history(model_folder: Path) -> list[dict[str, Any]]:
    """Every promote and rollback, oldest first: {"time", "action", "release", "previous"}."""
    path = model_folder / "history.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(f"{path}: cannot read: {error}") from None
    entries: list[dict[str, Any]] = []
    for line in lines:
        try:
            entry = json.loads(line)
            if {"time", "action", "release", "previous"} <= set(entry):
                entries.append(entry)
        except (ValueError, TypeError):
            continue  # torn by a crash between the switch and the sync; the link is the truth
    return entries


def _switch(model_folder: Path, release: str, action: str) -> str | None:
    if not is_release_id(release) or not (model_folder / "releases" / release).is_dir():
        known = list_releases(model_folder)
        newest = f"; the newest is {known[-1]}" if known else ""
        raise Failure(f"{model_folder}: no release {release!r}{newest}")
    previous = current_id(model_folder)
    fresh = model_folder / f".current-{os.getpid()}-{time.monotonic_ns()}"
    entry = {
        "time": iso(time.time_ns() // 1_000_000),
        "action": action,
        "release": release,
        "previous": previous,
    }
    try:
        # First, so that a rollback that is killed and run again goes back once, not forth and back.
        _append_synced(model_folder / "history.jsonl", json.dumps(entry).encode() + b"\n")
        for left in model_folder.glob(".current-*"):
            if not is_running(int(left.name.split("-")[1])):
                left.unlink(missing_ok=True)
        fresh.symlink_to(Path("releases") / release)
        fresh.replace(model_folder / "current")
        _sync_folder(model_folder)
    except OSError as error:
        raise Failure(f"{model_folder}: cannot {action} {release}: {error.strerror}") from None
    finally:
        fresh.unlink(missing_ok=True)
    return previous


def _refused(folder: Path, why: str) -> BadInput:
    return BadInput(f"{folder}: release refused: {why}; train again or promote another release")


def _read_folder(folder: Path, max_bytes: int) -> Release:
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise _refused(folder, f"cannot read the folder: {error.strerror}") from None
    for name in names:
        if not name.startswith(".") and Path(name).suffix not in _SUFFIXES:
            raise _refused(folder, f"{name} has no place in a release")
    manifest = parse_manifest(_read_once(folder, MANIFEST, MAX_MANIFEST_BYTES), folder)
    bundle = _read_checked(folder, BUNDLE, manifest.bundle_sha256, max_bytes)
    for model in manifest.models.values():
        _read_checked(folder, model.file, model.sha256, max_bytes)
    for value in manifest.values.values():
        _read_checked(folder, value.file, value.sha256, max_bytes)
    reference = None
    if manifest.reference_sha256 is not None:
        reference = _read_checked(folder, REFERENCE, manifest.reference_sha256, max_bytes)
    return Release(folder=folder, manifest=manifest, bundle=bundle, reference=reference)


def parse_manifest(content: bytes, folder: Path) -> Manifest:
    """The manifest of `folder` from its bytes.

    Raises:
        BadInput: it is not JSON, or a field is missing or wrong; the first fault is named.
    """
    try:
        return Manifest.model_validate(json.loads(content))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise _refused(folder, f"{MANIFEST}: {where}{': ' * bool(where)}{message}") from None
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise _refused(folder, f"{MANIFEST} is not valid JSON: {reason}") from None


def _read_checked(folder: Path, name: str, sha256: str, max_bytes: int) -> bytes:
    content = _read_once(folder, name, max_bytes)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise _refused(folder, f"{name} is not the file that was released (sha256 differs)")
    return content


def _read_once(folder: Path, name: str, max_bytes: int) -> bytes:
    """Bytes of a regular file, opened once, never through a link and never more than the cap."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(folder / name, flags)
    except FileNotFoundError:
        raise _refused(folder, f"{name} is missing") from None
    except OSError as error:
        raise _refused(folder, f"cannot open {name}: {error.strerror}") from None
    with open(descriptor, "rb") as file:  # noqa: PTH123  # a descriptor, not a path
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise _refused(folder, f"{name} is not a regular file")
        try:
            content = file.read(max_bytes + 1) if info.st_size <= max_bytes else b""
        except OSError as error:
            raise _refused(folder, f"cannot read {name}: {error.strerror}") from None
    if info.st_size > max_bytes or len(content) > max_bytes:
        size = max(info.st_size, len(content))
        raise _refused(folder, f"{name} has {size} bytes, more than the limit of {max_bytes}")
    return content


def _sweep(releases: Path) -> None:
    """Removes what a killed trainer left half-built."""
    for path in releases.glob(".build-*"):
        if time.time() - path.stat().st_mtime > _STALE_BUILD_S:
            shutil.rmtree(path, ignore_errors=True)


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _append_synced(path: Path, line: bytes) -> None:
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a torn last line
                line = b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
