"""Folders of a local run: one owner at a time, and nothing is deleted that is not ours."""

import fcntl
import os
import shutil
from pathlib import Path

from shared.errors import Failure

_MARK = ".itb"
_MOST = 100


class Workdir:
    """A folder held by this process until it ends, however it ends.

    Raises:
        Failure: another run holds it, it holds files of someone else, or it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            mark = path / _MARK
            if not mark.exists() and any(path.iterdir()):
                raise Failure(f"{path} holds other files; choose an empty or new --workdir")
            # Held open and locked for our whole life; children do not inherit it.
            self._descriptor = os.open(mark, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise Failure(f"{path}: cannot be used as work folder: {error.strerror}") from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._descriptor)
            raise InUse(
                f"{path} belongs to a run that is still going; choose another --workdir"
            ) from None

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def clean(self) -> None:
        """Removes what an earlier run left here."""
        for entry in self.path.iterdir():
            if entry.name == _MARK:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)

    def release(self) -> None:
        os.close(self._descriptor)


class InUse(Failure):
    """The folder belongs to a running one."""


def free_workdir(base: Path) -> Workdir:
    """`base`, or `base-2`, `base-3` ... while those belong to runs that are still going."""
    for number in range(1, _MOST):
        path = base if number == 1 else base.with_name(f"{base.name}-{number}")
        try:
            return Workdir(path)
        except InUse:
            continue
    raise Failure(f"{base} to {base.name}-{_MOST - 1} all belong to runs that are still going")
