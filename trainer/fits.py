"""Fits that survive a kill: each is a piece of work of its own, done anywhere, kept in a file.

The rows' features lie in one float32 file that every worker maps into memory. A piece of work fits
one model and leaves either its outputs on some rows or the model itself in the work folder, a
hidden folder inside `data_folder` that belongs to one command with its config, data and code
(`work_folder`). A run that was killed goes on with what is missing.

Models are kept as pickles, each behind its digest: they are read by the trainer alone, from the
folder that it wrote itself. What a service reads is the ONNX that is made from them.
"""

import contextlib
import hashlib
import json
import os
import pickle
import shutil
import socket
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shared import klinefiles
from shared.config import Settings
from shared.errors import BadInput, Failure
from shared.features import FeatureSet
from trainer import baselines, inputs
from trainer.fanout import Fanout, code_version
from trainer.labels import is_value
from trainer.models.fit import COST, Fitted, Job, fit_one, single_threaded_and_quiet
from trainer.models.rows import block_rows
from trainer.models.rowset import RowSet
from trainer.progress import Bar
from trainer.rasters import Raster

Floats = npt.NDArray[np.float64]
Positions = npt.NDArray[np.intp]
Found = Floats | Fitted

_DIGEST = 32  # bytes of a sha256
# Parts of the `trainer` section that no fit depends on.
_NOT_OF_FITS = frozenset({"threads", "rolling", "merge", "signals", "backtest", "tune"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One fit. What comes of it goes to `out`: its outputs on the rows `test`, (n_test,) float64;
    of a piece that keeps its model, the model.

    x: the (n, n_columns) file; columns: those that are read; job: its positions are rows of x.
    baseline: None: the job's recipe; a name: that baseline for the job's label.
    """

    name: str
    fold: int
    x: Path
    columns: Positions
    job: Job
    test: Positions
    seed: int
    out: Path
    baseline: baselines.Name | None = None
    keeps_model: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A piece and what came of it; kept: an earlier run had left it."""

    piece: Piece
    found: Found
    kept: bool


def work(piece: Piece) -> None:
    """Fits, and writes what comes of it.

    Raises:
        Failure: the data are not there, or a library refused the config's arguments.
    """
    with single_threaded_and_quiet():
        rows = _shared(piece)
        if piece.baseline is None:
            model: Fitted | baselines.Line = fit_one(piece.job, rows, piece.seed)
        else:
            of_values = is_value(piece.job.label)
            model = baselines.fit(
                rows.rows, piece.job.y, is_value=of_values, seed=piece.seed, name=piece.name
            )
        if piece.keeps_model:
            content = pickle.dumps(model, protocol=5)
            content = hashlib.sha256(content).digest() + content
        else:
            said = np.empty(len(piece.test))
            size = block_rows(len(piece.columns))
            for start in range(0, len(piece.test), size):
                block = piece.test[start : start + size]
                said[start : start + len(block)] = model.predict(rows.others(block))
    with klinefiles.replacing(piece.out) as unfinished:
        if piece.keeps_model:
            unfinished.write_bytes(content)
        else:
            with unfinished.open("wb") as out:
                np.save(out, said)


# Rows that several fits share, as long as one of them is at work, and the last ones besides.
_SHARED: weakref.WeakValueDictionary[tuple[str, int, int, bytes], RowSet] = (
    weakref.WeakValueDictionary()
)
_LAST: list[RowSet] = []
_LOCK = threading.Lock()


def _shared(piece: Piece) -> RowSet:
    try:
        there = piece.x.stat()
    except FileNotFoundError:
        raise Failure(
            f"worker on {socket.gethostname()} sees no {piece.x}: data_folder must lie where all "
            "workers see it under the same name"
        ) from None
    rows = hashlib.sha256(piece.job.positions.tobytes() + piece.columns.tobytes()).digest()
    key = (str(piece.x), there.st_ino, there.st_mtime_ns, rows)
    with _LOCK:
        found = _SHARED.get(key)
        if found is None:
            _LAST.clear()  # before the next ones are made: they may be as large
            x = np.load(piece.x, mmap_mode="r")
            found = RowSet(x, piece.job.positions, piece.seed, columns=piece.columns)
            _SHARED[key] = found
        _LAST[:] = [found]
        return found


def forget() -> None:
    """Lets go of the rows that are held for fits to come."""
    with _LOCK:
        _LAST.clear()


def result(piece: Piece) -> Found | None:
    """What `work` left; None where it has not yet, or the file is damaged."""
    try:
        if piece.keeps_model:
            content = piece.out.read_bytes()
            digest, content = content[:_DIGEST], content[_DIGEST:]
            if hashlib.sha256(content).digest() != digest:
                raise ValueError("not what was written")
            model: Fitted = pickle.loads(content)  # noqa: S301 - see the top of this file
            return model
        said = np.load(piece.out)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError):
        piece.out.unlink(missing_ok=True)
        return None
    if said.shape != piece.test.shape or said.dtype != np.float64:
        raise BadInput(f"{piece.out}: not what this fit writes; remove it and run again")
    return np.asarray(said)


def finish(pieces: Sequence[Piece], fanout: Fanout, bar: Bar) -> Iterator[Finished]:
    """Every piece and what came of it, as they are done; first those that an earlier run left.

    Raises:
        Failure: a fit failed, a worker died, or the cluster is not there.
    """
    left: list[Piece] = []
    kept = 0
    for piece in pieces:
        found = result(piece)
        if found is None:
            left.append(piece)
            continue
        kept += 1
        bar.advance(detail=piece.name)
        yield Finished(piece=piece, found=found, kept=True)
    if kept:
        fanout.note(f"{kept:,} of {len(pieces):,} fits are kept from an earlier run")
    # On one machine the fits of the same rows one after the other, so that these are held once.
    batches = [left]
    if fanout.scheduler is None:
        of_rows: dict[bytes, list[Piece]] = {}
        for piece in left:
            of_rows.setdefault(piece.job.positions.tobytes(), []).append(piece)
        batches = [sorted(batch, key=_longest_first) for batch in of_rows.values()]
        if fanout.backend == "processes":
            batches = [[piece for batch in batches for piece in batch]]
    for batch in batches:
        for at, _ in fanout.run(work, batch):
            found = result(batch[at])
            if found is None:
                raise Failure(f"{batch[at].out} is not there: do all workers see data_folder?")
            bar.advance(detail=batch[at].name)
            yield Finished(piece=batch[at], found=found, kept=False)
    forget()


def _longest_first(piece: Piece) -> int:
    return len(COST) if piece.baseline is not None else COST[piece.job.recipe.algo]


# --- the work folder -----------------------------------------------------------------------------


def key_of(
    settings: Settings, features: FeatureSet, data: Sequence[Raster], further: Mapping[str, Any]
) -> str:
    """Digest of all that fits depend on; further: what the command adds."""
    what = {
        "trainer": settings.trainer.model_dump(mode="json", exclude=set(_NOT_OF_FITS)),
        "labels": settings.labels,
        "algorithms": [a.model_dump(mode="json") for a in settings.algorithms],
        "features": features.names,
        "features_file": features.user_sha256,
        "nan_share": settings.limits.nan_share,
        "data": inputs.digest(data),
        "code": code_version(),
    }
    text = json.dumps(what | dict(further), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextlib.contextmanager
def work_folder(parent: Path, name: str, key: str) -> Iterator[Path]:
    """Where finished fits are kept; older ones of the same name go away at the end."""
    folder = parent / f"{name}-{key}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failure(f"{folder}: cannot be written ({error.strerror or error})") from error
    _drop_matrices(folder)
    try:
        yield folder.absolute()
        for other in parent.glob(f"{name}-{'?' * 16}"):
            if other != folder and not _drop_matrices(other):
                shutil.rmtree(other, ignore_errors=True)
    finally:
        for path in folder.glob(f"matrix-*-{os.getpid()}.*"):
            path.unlink(missing_ok=True)
        for empty in (folder, parent, parent.parent):
            with contextlib.suppress(OSError):  # it is not empty, or gone
                empty.rmdir()


def clear(folder: Path) -> None:
    """Removes a work folder whose fits are of no use any more, unless another run works in it."""
    if not _drop_matrices(folder):
        shutil.rmtree(folder, ignore_errors=True)


def matrix(folder: Path, name: str) -> Path:
    """A file of this process alone, which goes away with it."""
    return folder / f"matrix-{name}-{os.getpid()}.npy"


def _drop_matrices(folder: Path) -> bool:
    """Removes what killed runs left; True where a living one is at work."""
    lives = False
    for path in folder.glob("matrix-*"):
        pid = path.name.split("-")[2].partition(".")[0]
        if pid.isdigit() and int(pid) != os.getpid() and klinefiles.is_running(int(pid)):
            lives = True
        else:
            path.unlink(missing_ok=True)
    return lives
