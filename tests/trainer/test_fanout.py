"""Work over threads, processes and a real Dask cluster."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared import klinefiles
from shared.errors import Failure, Usage
from tests.waiting import wait_until
from trainer import fanout
from trainer.fanout import Fanout


def square(value: int) -> int:
    return value * value


def die(value: int) -> int:
    if value == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return value


def refuse(value: int) -> int:
    raise Failure(f"no {value} for me")


@pytest.mark.parametrize(
    "fan",
    [Fanout(), Fanout(workers=2, backend="threads"), Fanout(workers=2, backend="processes")],
    ids=["alone", "threads", "processes"],
)
def test_every_item_is_done_once(fan: Fanout) -> None:
    assert sorted(fan.run(square, range(20))) == [(at, at * at) for at in range(20)]
    assert list(fan.run(square, [])) == []


@pytest.mark.parametrize("backend", ["threads", "processes"])
def test_a_failure_keeps_its_line(backend: Any) -> None:
    with pytest.raises(Failure, match=r"^no \d for me$"):
        list(Fanout(workers=2, backend=backend).run(refuse, range(4)))


def test_a_dead_worker_is_one_clear_line() -> None:
    with pytest.raises(Failure, match="a worker process died"):
        list(Fanout(workers=2).run(die, range(6)))


def tell_and_wait(file: str) -> None:
    with Path(file).open("a") as out:
        out.write(f"{os.getpid()}\n")
    time.sleep(60)  # at work still, when the parent is killed


def test_workers_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    code = (
        "from trainer.fanout import Fanout; from tests.trainer.test_fanout import tell_and_wait; "
        f"list(Fanout(workers=2).run(tell_and_wait, [{str(file)!r}] * 2))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    try:

        def are_both_at_work() -> bool:
            assert parent.poll() is None
            return file.exists() and len(file.read_text().split()) >= 2

        wait_until(are_both_at_work, "two workers")
    finally:
        parent.kill()
        parent.wait()
    workers = [int(pid) for pid in file.read_text().split()]
    wait_until(lambda: not any(klinefiles.is_running(pid) for pid in workers), f"end of {workers}")


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(Usage, match="tcp://host:8786"):
        list(Fanout(scheduler="localhost:8786").run(square, range(4)))


def test_the_code_version_is_that_of_the_sources(tmp_path: Path) -> None:
    assert fanout.code_version() == fanout.code_version.__wrapped__()
    assert len(fanout.code_version()) == 16


# --- a cluster -----------------------------------------------------------------------------------


class Cluster:
    """A scheduler and workers as processes of their own, on loopback."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.workers: list[subprocess.Popen[bytes]] = []
        file = folder / "scheduler.json"
        self._scheduler = self._start(
            "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
            "--scheduler-file", str(file),
        )  # fmt: skip
        wait_until(lambda: file.exists() and file.read_text(), (folder / "log").read_text)
        self.address: str = json.loads(file.read_text())["address"]
        for _ in range(2):
            self.add_worker()

    def add_worker(self) -> None:
        self.workers.append(
            self._start(
                "worker", self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard",
                "--host", "127.0.0.1", "--local-directory", str(self._folder),
            )
        )  # fmt: skip

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "dask", *arguments],
                stdout=log,
                stderr=log,
                cwd=Path(__file__).parents[2],
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            )

    def stop(self) -> None:
        for process in (*self.workers, self._scheduler):
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    found = Cluster(tmp_path_factory.mktemp("dask"))
    yield found
    found.stop()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Dask's own
def test_a_cluster_gives_the_same_bits(cluster: Cluster, tmp_path: Path) -> None:
    from tests.trainer import test_rolling  # workers of the other tests need not import all that

    here = test_rolling.walk(tmp_path / "here", "--workers", "1")
    there = test_rolling.walk(tmp_path / "there", "--scheduler", cluster.address)
    assert there["fits_kept"] == 0
    a, b = (test_rolling.rows_of(tmp_path / name) for name in ("here", "there"))
    assert list(a) == list(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
    assert here["models"] == there["models"]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_cluster_trains_the_same_graphs(cluster: Cluster, tmp_path: Path) -> None:
    from tests.trainer import test_train

    path = test_train.write(tmp_path / "TESTUSDT-1m.parquet", test_train.candles(3500))
    for name, options in (("here", ()), ("there", ("--scheduler", cluster.address))):
        settings = test_train.Settings(**test_train.kinds(tmp_path / name))
        found = test_train.run(settings, "--klines", str(path), *options)
        assert found["fits_kept"] == 0
    here, there = (test_train.files_of(tmp_path / name) for name in ("here", "there"))
    assert len(here) == 13
    assert here == there


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_worker_that_dies_is_told_and_its_work_done_by_others(cluster: Cluster) -> None:
    notes: list[str] = []
    fan = Fanout(scheduler=cluster.address, note=notes.append)
    found = []
    for at, result in fan.run(slowly, range(40)):
        found.append((at, result))
        if len(found) == 2:
            cluster.workers[0].kill()
    assert sorted(found) == [(at, at) for at in range(40)]
    assert len(notes) == 1 and "is gone" in notes[0]
    cluster.workers.pop(0).wait()
    cluster.add_worker()


def slowly(value: int) -> int:
    time.sleep(0.2)  # so that workers are killed before all is done
    return value


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_result_whose_worker_dies_before_it_arrives_is_waited_for_and_not_for_ever(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    import distributed  # slow, and for the slow tests only

    waits: list[float | None] = []
    result = distributed.Future.result

    def late(future: Any, timeout: float | None = None) -> Any:
        waits.append(timeout)
        if len(waits) in (1, 4):
            raise TimeoutError
        return result(future, timeout)

    monkeypatch.setattr(distributed.Future, "result", late)
    found = dict(Fanout(scheduler=cluster.address).run(square, range(8)))
    assert found == {n: n * n for n in range(8)}
    assert len(waits) == 10
    assert None not in waits


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_no_scheduler_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fanout, "_CONNECT_S", 1.0)
    with pytest.raises(Failure, match="no Dask scheduler answers at tcp://"):
        list(Fanout(scheduler="tcp://127.0.0.1:9").run(square, range(4)))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_cluster_without_workers_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanout, "NO_WORKER_S", 3.0)
    cluster = Cluster(tmp_path)
    try:
        found = Fanout(scheduler=cluster.address).run(slowly, range(40))
        next(found)
        for worker in cluster.workers:
            worker.kill()
        with pytest.raises(Failure, match="no worker is left at tcp://"):
            list(found)
        with pytest.raises(Failure, match="no worker at tcp://"):
            list(Fanout(scheduler=cluster.address).run(slowly, range(2)))
    finally:
        cluster.stop()
