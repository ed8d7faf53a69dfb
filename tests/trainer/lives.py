"""Commands of the trainer as processes that end by SIGKILL wherever a test wants them to.

A command runs in a process forked from a server that has everything imported, so that a life costs
a second. There Python's own audit hooks count what is about to be done to files of the folder that
is looked at (open for writing, rename, link, remove, make a folder ...); at the n-th of these the
process ends itself, or a moment later by a timer: while it writes. And there is a kill from
outside, after a share of the time that an undisturbed life takes.
"""

import itertools
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_MODULES = (
    "backtest download features labels leaks merge predict promote releases report rollback "
    "rolling signals train tune"
)
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [__name__, "trainer.cli", *(f"trainer.{name}" for name in _MODULES.split())]
)
# event -> which of its arguments are paths
_EVENTS = {
    "open": (0,),
    "os.rename": (0, 1),
    "os.link": (0, 1),
    "os.symlink": (1,),
    "os.remove": (0,),
    "os.rmdir": (0,),
    "os.mkdir": (0,),
    "os.truncate": (0,),
    "shutil.rmtree": (0,),
    "sqlite3.connect": (0,),
}
_LONGEST_S = 300
KILLED = (-signal.SIGKILL, -signal.SIGALRM)


@dataclass(frozen=True, slots=True)
class Life:
    """How a process ended. exit_code: one of KILLED where it was ended; operations: on files of the
    folder; error: the last line on stderr; seconds: how long it took."""

    exit_code: int
    operations: int
    error: str
    seconds: float


def live(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    *,
    at_operation: int = 0,
    delay_s: float = 0.0,
    after_s: float | None = None,
) -> Life:
    """Runs `python -m trainer COMMAND` in a process of its own.

    at_operation: it ends itself before that operation (from 1), or `delay_s` after that; after_s:
    it is killed then.
    """
    log = folder.with_name(f"{folder.name}.log")
    log.write_text("")
    count = folder.with_name(f"{folder.name}.count")
    count.write_text("0")
    process = _CONTEXT.Process(
        target=_life,
        args=(list(command), folder, dict(environment), at_operation, delay_s, log, count),
    )
    started = time.monotonic()
    process.start()
    process.join(after_s if after_s is not None else _LONGEST_S)
    if process.is_alive():
        assert after_s is not None, f"{command[0]} hangs: {log.read_text()}"
        process.kill()
        process.join()
    seconds = time.monotonic() - started
    assert process.exitcode is not None
    last = log.read_text().strip().splitlines()[-1:] or [""]
    return Life(process.exitcode, int(count.read_text()), last[0], seconds)


def _life(
    command: list[str],
    folder: Path,
    environment: dict[str, str],
    at_operation: int,
    delay_s: float,
    log: Path,
    count: Path,
) -> None:
    from trainer.cli import main  # what is not imported yet would be counted

    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    os.environ.update(environment)
    os.chdir(folder)
    numbers = itertools.count(1)
    done = [0]
    inside = f"{folder}{os.sep}"

    def look(event: str, arguments: tuple[object, ...]) -> None:
        places = _EVENTS.get(event)
        if places is None:
            return
        if event == "open" and not _writes(arguments):
            return
        paths = [arguments[at] for at in places if at < len(arguments)]
        if not any(_inside(path, inside) for path in paths):
            return
        done[0] = next(numbers)
        if done[0] == at_operation and not delay_s:
            os.kill(os.getpid(), signal.SIGKILL)
        elif done[0] == at_operation:
            signal.setitimer(signal.ITIMER_REAL, delay_s)  # nobody handles it: the process ends

    sys.addaudithook(look)
    code = main(command)
    signal.setitimer(signal.ITIMER_REAL, 0)
    count.write_text(str(done[0]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _inside(path: object, folder: str) -> bool:
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    if isinstance(path, str | os.PathLike):
        return os.path.abspath(os.fspath(path)).startswith(folder)  # noqa: PTH100 - of any kind
    return isinstance(path, int) and path > 2


def _writes(arguments: tuple[object, ...]) -> bool:
    _, mode, flags = (*arguments, None, None, None)[:3]
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
