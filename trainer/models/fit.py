"""Fits every label with every algorithm on chosen rows; what labels can share is made once."""

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # has no stubs

from shared.config import Algorithm
from trainer.models import gb, lc, nn, options
from trainer.models.scaling import Scaling

FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]
T = TypeVar("T")
Fitted = gb.Boosting | nn.Network | lc.Linear


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """An algorithm of the config, checked."""

    name: str
    algo: Literal["gb", "nn", "lc"]
    rows: options.RowChoice
    options: gb.Options | nn.Options | lc.Options


def recipes(algorithms: Sequence[Algorithm]) -> list[Recipe]:
    """Raises Usage where the config is wrong; nothing has been computed by then."""
    parsers: dict[str, Any] = {"gb": gb.parse, "nn": nn.parse, "lc": lc.parse}
    found: list[Recipe] = []
    for algorithm in algorithms:
        if any(recipe.name == algorithm.name for recipe in found):
            raise options.refused(algorithm, "two algorithms have this name")
        found.append(
            Recipe(
                name=algorithm.name,
                algo=algorithm.algo,
                rows=options.row_choice(algorithm),
                options=parsers[algorithm.algo](algorithm),
            )
        )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One fit: positions of the training rows and their (n,) labels, 0 or 1."""

    recipe: Recipe
    name: str
    positions: npt.NDArray[np.intp]
    y: FloatArray


class Fitter:
    """Fits on rows of one matrix, a fit per thread; what fits on the same rows share is made once.

    Every fit itself runs on one thread: small data gain nothing from more, and a model must not
    depend on how many cores there are.
    """

    def __init__(self, x: Float32Array, workers: int, seed: int) -> None:
        """x: (n, n_used) float32, the used columns of all rows."""
        self.x = x
        self._workers = workers
        self._seed = seed

    def fit_each(self, jobs: Sequence[Job], done: Callable[[Job, Fitted], T]) -> Iterator[T]:
        """Fits every job and yields what `done` (called in the fit's thread) makes of its model.

        The order is that of the row sets, not of the jobs.

        Raises:
            Failure: a library refused the arguments of the config.
        """
        groups: dict[bytes, list[Job]] = {}
        for job in jobs:
            groups.setdefault(job.positions.tobytes(), []).append(job)
        with _single_threaded_and_quiet(), ThreadPoolExecutor(self._workers) as pool:
            for group in groups.values():
                shared = _Shared(self.x[group[0].positions], self._seed)

                def work(job: Job, shared: _Shared = shared) -> T:
                    return done(job, shared.fit(job))

                longest_first = sorted(group, key=lambda job: _COST[job.recipe.algo])
                futures = [pool.submit(work, job) for job in longest_first]
                try:
                    for future in as_completed(futures):
                        yield future.result()
                finally:
                    for future in futures:
                        future.cancel()


_COST = {"gb": 0, "nn": 1, "lc": 2}


class _Shared:
    """What all fits on the same rows share."""

    def __init__(self, rows: Float32Array, seed: int) -> None:
        self._rows = rows
        self._seed = seed
        self._lock = threading.Lock()
        self._scalings: dict[bool, tuple[Scaling, FloatArray, Float32Array]] = {}
        # Binned rows carry the label that is being fitted: each thread has its own.
        self._of_thread = threading.local()

    def fit(self, job: Job) -> Fitted:
        match job.recipe.options:
            case gb.Options() as chosen:
                trainer = getattr(self._of_thread, "trainer", None)
                if trainer is None:
                    trainer = self._of_thread.trainer = gb.Trainer(self._rows, 1, self._seed)
                return trainer.fit(chosen, job.y, job.name)
            case lc.Options() as chosen:
                scaling, scaled, _ = self._scaled(chosen.is_scale)
                return lc.fit(chosen, scaling, scaled, job.y, self._seed, job.name)
            case nn.Options() as chosen:
                scaling, _, scaled32 = self._scaled(chosen.is_scale)
                return nn.fit(chosen, scaling, scaled32, job.y, self._seed, job.name)

    def _scaled(self, is_scale: bool) -> tuple[Scaling, FloatArray, Float32Array]:
        with self._lock:
            if is_scale not in self._scalings:
                scaling = Scaling.fit(self._rows, is_identity=not is_scale)
                scaled = scaling.apply(self._rows)
                self._scalings[is_scale] = (scaling, scaled, scaled.astype(np.float32))
            return self._scalings[is_scale]


@contextlib.contextmanager
def _single_threaded_and_quiet() -> Iterator[None]:
    """Around all fits, since both settings are the whole process's, not a thread's."""
    with threadpool_limits(1, user_api="blas"), warnings.catch_warnings():
        # Few epochs are meant, and so are the seed's solvers that stop early: metrics show it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield
