"""Children are restarted, stopped in order, and never outlive their parent."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from deploy.supervisor import Program, Supervisor
from shared.errors import Failure
from tests.waiting import until, wait_until

# Children sleep for longer than any test: each is ended, which is what is looked at.
_SLEEP = (sys.executable, "-c", "import time; time.sleep(600)")


async def test_a_killed_child_is_started_again_and_people_are_told(tmp_path: Path) -> None:
    said: list[str] = []
    async with Supervisor(tmp_path, said.append) as supervisor:
        await supervisor.start(Program(name="worker", command=_SLEEP))
        first = supervisor.pid("worker")
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: supervisor.pid("worker") not in (None, first))
        assert supervisor.restarts("worker") == 1
    assert len(said) == 1
    assert said[0].startswith("worker was killed by signal 9; it starts again in ")


async def test_a_child_that_keeps_failing_is_restarted_ever_more_slowly(tmp_path: Path) -> None:
    said: list[str] = []
    failing = (sys.executable, "-c", "raise SystemExit('no such exchange')")
    async with Supervisor(tmp_path, said.append) as supervisor:
        await supervisor.start(Program(name="worker", command=failing))
        await until(lambda: len(said) >= 4)
    delays = [float(line.split(" again in ")[1].split(" s")[0]) for line in said[:4]]
    assert delays == sorted(delays)
    assert delays[3] >= 4 * delays[0] > 0
    assert said[0].endswith("; its last words: no such exchange")


async def test_bad_usage_of_a_child_ends_everything_with_its_own_words(tmp_path: Path) -> None:
    refusing = (sys.executable, "-c", "import sys; print('error: no such key'); sys.exit(2)")
    with pytest.raises(ExceptionGroup) as caught:
        async with Supervisor(tmp_path, lambda _: None) as supervisor:
            await supervisor.start(Program(name="other", command=_SLEEP))
            other = supervisor.pid("other")
            await supervisor.start(Program(name="worker", command=refusing))
            await asyncio.Event().wait()
    (error,) = caught.value.exceptions
    assert isinstance(error, Failure)
    assert str(error) == "worker cannot start: error: no such key"
    assert other is not None
    assert not psutil.pid_exists(other)


async def test_children_that_ignore_sigterm_end_within_five_seconds(tmp_path: Path) -> None:
    stubborn = (
        sys.executable,
        "-c",
        "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print('ready', flush=True); time.sleep(600)",
    )
    async with Supervisor(tmp_path, lambda _: None) as supervisor:
        for name in ("one", "two"):
            await supervisor.start(Program(name=name, command=stubborn))
        await until(lambda: supervisor.last_line("one") == supervisor.last_line("two") == "ready")
        pids = [supervisor.pid("one"), supervisor.pid("two")]
        started = time.monotonic()
    assert time.monotonic() - started < 5
    assert not any(psutil.pid_exists(pid) for pid in pids if pid is not None)


async def test_what_others_need_ends_last(tmp_path: Path) -> None:
    """Each child notes when SIGTERM reached it."""
    note = (
        "import pathlib, signal, sys, time\n"
        "def end(*_):\n"
        "    pathlib.Path(sys.argv[1]).write_text(str(time.monotonic_ns()))\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end); print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )

    def program(name: str, *, last: bool) -> Program:
        command = (sys.executable, "-c", note, str(tmp_path / f"{name}.time"))
        return Program(name=name, command=command, stops_last=last)

    async with Supervisor(tmp_path, lambda _: None) as supervisor:
        await supervisor.start(program("bus", last=True))
        await supervisor.start(program("service", last=False))
        await until(
            lambda: supervisor.last_line("bus") == supervisor.last_line("service") == "ready"
        )
    at = {n: int((tmp_path / f"{n}.time").read_text()) for n in ("bus", "service")}
    assert at["service"] < at["bus"]


_PARENT = """
import asyncio, sys
from pathlib import Path
from deploy.supervisor import Program, Supervisor

child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; " \\
    "print(1, flush=True); time.sleep(600)'])"

async def main():
    async with Supervisor(Path(sys.argv[1]), print) as supervisor:
        await supervisor.start(Program(name="worker", command=(sys.executable, "-c", child)))
        await asyncio.Event().wait()

asyncio.run(main())
"""


def test_no_child_or_grandchild_outlives_a_killed_parent(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", _PARENT, str(tmp_path)])
    try:
        log = tmp_path / "worker.log"
        wait_until(lambda: log.exists() and log.read_text().strip(), "the grandchild")
        family = psutil.Process(parent.pid).children(recursive=True)
        assert len(family) >= 3  # guard, child, grandchild
    finally:
        parent.kill()
        parent.wait()
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


async def test_preparation_comes_before_every_start(tmp_path: Path) -> None:
    prepared: list[int] = []

    async def prepare() -> None:
        prepared.append(len(prepared))

    async with Supervisor(tmp_path, lambda _: None) as supervisor:
        await supervisor.start(Program(name="worker", command=_SLEEP, prepare=prepare))
        pid = supervisor.pid("worker")
        assert pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        await until(lambda: supervisor.pid("worker") not in (None, pid))
    assert prepared == [0, 1]
