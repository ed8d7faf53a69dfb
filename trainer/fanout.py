"""Many independent pieces of work over threads, processes or a Dask cluster; the same results.

A piece of work is a plain function of one argument, both at the top of a module, so that they can
be sent to another process. What is large lies in files that every worker maps into memory.
"""

import argparse
import contextlib
import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeVar

from shared.config import Settings
from shared.errors import Failure, Usage

T = TypeVar("T")
R = TypeVar("R")
Backend = Literal["processes", "threads"]

# A cluster without a single worker for so long has lost them.
NO_WORKER_S = 30.0
_CONNECT_S = 10.0
_POLL_S = 1.0
_RESULT_S = 10.0  # for a result to come here; after that it is looked whether anybody is left
# What a fit's bits depend on besides our own code.
_LIBRARIES = ("numpy", "scipy", "scikit-learn", "lightgbm", "threadpoolctl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fanout:
    """Where work is done. scheduler: address of a Dask scheduler (`tcp://host:8786`), None: on this
    machine, by `workers` threads or processes. note: tells the person who waits one line."""

    workers: int = 1
    backend: Backend = "processes"
    scheduler: str | None = None
    note: Callable[[str], None] = lambda text: None

    def run(self, work: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[int, R]]:
        """(place among the items, result) of each, as they are done.

        Raises:
            Failure: a piece of work failed with one, a worker died, or the cluster is not there.
        """
        if not items:
            return
        if self.scheduler is not None:
            yield from _on_cluster(self.scheduler, work, items, self.note)
        elif self.workers == 1 or len(items) == 1:
            for at, item in enumerate(items):
                yield at, work(item)
        else:
            yield from _on_this_machine(self.workers, self.backend, work, items)


def add_options(parser: argparse.ArgumentParser, *, backend: Backend) -> None:
    """--workers, --backend, --scheduler. backend: the default."""
    parser.add_argument("--workers", type=int, metavar="N", help="default: trainer.threads")
    parser.add_argument(
        "--backend",
        choices=("processes", "threads"),
        default=backend,
        help=f"what works on this machine (default: {backend})",
    )
    parser.add_argument(
        "--scheduler", metavar="tcp://HOST:PORT", help="fit on this Dask cluster instead"
    )


def workers_of(args: argparse.Namespace, settings: Settings) -> int:
    """Raises: Usage: --workers is below one."""
    workers: int | None = args.workers
    if workers is not None and workers < 1:
        raise Usage(f"--workers {workers}: at least one")
    return workers or settings.trainer.threads or os.cpu_count() or 1


def of_options(args: argparse.Namespace, settings: Settings, note: Callable[[str], None]) -> Fanout:
    """What the options say. Raises: Usage: an option is wrong."""
    workers = workers_of(args, settings)
    if args.scheduler is not None:
        check_address(args.scheduler)
    return Fanout(workers=workers, backend=args.backend, scheduler=args.scheduler, note=note)


def _numbered(work: Callable[[T], R], at: int, item: T) -> tuple[int, R]:
    return at, work(item)


def _in_process(parent: int, work: Callable[[T], R], at: int, item: T) -> tuple[int, R]:
    _end_with(parent)
    return at, work(item)


@cache
def _end_with(parent: int) -> None:
    """Ends this worker when its parent is gone: after a `kill -9` nobody else would."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_S)  # in a thread of its own; no system tells it everywhere
        os._exit(1)

    if os.getpid() != parent:
        threading.Thread(target=watch, daemon=True).start()


def _on_this_machine(
    workers: int, backend: Backend, work: Callable[[T], R], items: Sequence[T]
) -> Iterator[tuple[int, R]]:
    import joblib  # noqa: PLC0415 - slow to import
    from joblib.externals.loky.process_executor import TerminatedWorkerError  # noqa: PLC0415

    inner: dict[str, Any] = {}
    if backend == "processes":
        inner = {"inner_max_num_threads": 1}
    kind = "loky" if backend == "processes" else "threading"
    with joblib.parallel_config(backend=kind, **inner):
        pool = joblib.Parallel(n_jobs=min(workers, len(items)), return_as="generator_unordered")
        try:
            one = joblib.delayed(_in_process)
            yield from pool(one(os.getpid(), work, at, i) for at, i in enumerate(items))
        except TerminatedWorkerError as error:
            raise Failure(
                "a worker process died (out of memory, or killed); what was finished is kept: run "
                "it again, with fewer --workers if memory is short"
            ) from error


def _on_cluster(
    address: str, work: Callable[[T], R], items: Sequence[T], note: Callable[[str], None]
) -> Iterator[tuple[int, R]]:
    with connected(address) as client:
        import distributed  # noqa: PLC0415 - slow to import
        from distributed.scheduler import KilledWorker  # noqa: PLC0415

        _check_workers(client, address)
        known = set(client.scheduler_info(n_workers=-1)["workers"])
        futures = {
            client.submit(_numbered, work, at, item, pure=False): at
            for at, item in enumerate(items)
        }
        as_completed: Any = distributed.as_completed
        finished = as_completed(futures, loop=client.loop)
        done: deque[Any] = deque()
        left, looked, alone_since = len(items), time.monotonic(), None
        try:
            while left:
                done.extend(finished.next_batch(block=False))
                while done:
                    try:
                        result = done[0].result(timeout=_RESULT_S)
                    except TimeoutError:
                        break  # its worker died with it: it is computed again, if anybody is left
                    done.popleft()
                    left -= 1
                    yield result
                time.sleep(_POLL_S / 50)  # a blocking batch would not see that all workers are gone
                if time.monotonic() - looked < _POLL_S:
                    continue
                looked = time.monotonic()
                now = set(client.scheduler_info(n_workers=-1)["workers"])
                for lost in sorted(known - now):
                    note(f"worker {lost} is gone; its work goes to the {len(now)} left")
                known = now
                alone_since = None if now else alone_since or looked
                if alone_since is not None and looked - alone_since > NO_WORKER_S:
                    raise Failure(
                        f"no worker is left at {address}; what was finished is kept: start workers "
                        f"(`dask worker {address}`) and run it again"
                    )
        except CancelledError as error:
            raise Failure(
                f"the scheduler at {address} is gone; what was finished is kept: run it again"
            ) from error
        except KilledWorker as error:
            raise Failure(
                f"a piece of work killed several workers of {address} (out of memory?), the last "
                f"{error.last_worker.address}; what was finished is kept"
            ) from error
        finally:
            client.cancel(list(futures))


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """A client of the scheduler.

    Raises:
        Usage: that is no address. Failure: nothing answers there.
    """
    check_address(address)
    import distributed  # noqa: PLC0415 - slow to import

    connect: Any = distributed.Client
    try:
        client = connect(address, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise Failure(
            f"no Dask scheduler answers at {address}; start one (`dask scheduler`) and workers "
            f"(`dask worker {address}`)"
        ) from error
    try:
        yield client
    finally:
        client.close()


def check_address(address: str) -> None:
    """Raises: Usage: that is no address of a scheduler."""
    if not address.startswith(("tcp://", "tls://")):
        raise Usage(f"--scheduler {address}: an address such as tcp://host:8786")


def _check_workers(client: Any, address: str) -> None:
    """Every worker must have our code and libraries, or results would depend on the worker."""
    deadline = time.monotonic() + NO_WORKER_S
    while not client.scheduler_info(n_workers=-1)["workers"]:
        if time.monotonic() > deadline:
            raise Failure(f"no worker at {address}; start some: `dask worker {address}`")
        time.sleep(_POLL_S)  # the scheduler is asked; it sends no word of a new worker
    ours = code_version()
    for worker, theirs in client.run(code_version).items():
        if theirs != ours:
            raise Failure(
                f"worker {worker} runs other code or libraries than this machine; install the "
                "same version on both"
            )


@cache
def code_version() -> str:
    """Digest of this program's sources and of the libraries that fits depend on."""
    root = Path(__file__).parents[1]
    found = hashlib.sha256()
    for package in ("shared", "trainer"):
        for path in sorted((root / package).rglob("*.py")):
            found.update(f"{path.relative_to(root)}\0".encode())
            found.update(hashlib.sha256(path.read_bytes()).digest())
    for name in _LIBRARIES:
        found.update(f"{name} {metadata.version(name)}\0".encode())
    return found.hexdigest()[:16]
