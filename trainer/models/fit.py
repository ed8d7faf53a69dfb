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
from shared.features import FeatureSet
from trainer.models import gb, lc, nn, options
from trainer.models.rows import Rows, chosen
from trainer.models.scaling import Scaling

FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
T = TypeVar("T")
Fitted = gb.Boosting | nn.Network | lc.Linear
# label -> (n,) True for the rows that its models may be fitted on
Allowed = Callable[[str], BoolArray]
_LETTERS = {"kline": "k", "futur": "f", "depth": "d"}


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
    """One fit. name: of the model, `high_20_k_gb`.

    positions: rows of the fitter's matrix that are fitted on, in time order; y: their (n,) labels,
    0 or 1; open_ms, t1_ms: their (n,) open times and those of the last candle each label looks at.
    """

    recipe: Recipe
    label: str
    name: str
    positions: npt.NDArray[np.intp]
    y: FloatArray
    open_ms: npt.NDArray[np.int64]
    t1_ms: npt.NDArray[np.int64]

    @property
    def cases(self) -> int:
        """Rows of the rarer class."""
        true = int(self.y.sum())
        return min(true, len(self.y) - true)


def ends_before(rows: Rows, ms: int) -> Allowed:
    """The purge: rows whose label looks at no candle that opens at or after `ms`."""
    return lambda label: rows.t1_ms[label] < ms


def inputs_of(features: FeatureSet) -> str:
    """Letters of the series that the features read, as they stand in a model's name."""
    return "".join(letter for source, letter in _LETTERS.items() if source in features.sources)


def jobs_of(
    rows: Rows,
    plan: Sequence[Recipe],
    labels: Sequence[str],
    *,
    step_ms: int,
    stride: int,
    inputs: str,
    allowed: Allowed | None = None,
) -> list[Job]:
    """Every recipe with every label, on the rows that are allowed and whose label is known.

    A recipe's own `every_nth_row` goes before `stride`; its `length` counts raster rows back from
    the last row that it may be fitted on. Jobs without any row are left out.
    """
    found = []
    for recipe in plan:
        wanted = chosen(rows, step_ms, recipe.rows.stride or stride)
        for label in labels:
            keep = ~np.isnan(rows.y[label][wanted])
            if allowed is not None:
                keep &= allowed(label)[wanted]
            positions = wanted[keep]
            if not len(positions):
                continue
            if recipe.rows.length is not None:
                first_ms = rows.open_ms[positions[-1]] - (recipe.rows.length - 1) * step_ms
                positions = positions[rows.open_ms[positions] >= first_ms]
            found.append(
                Job(
                    recipe=recipe,
                    label=label,
                    name=f"{label}_{inputs}_{recipe.name}",
                    positions=positions,
                    y=rows.y[label][positions],
                    open_ms=rows.open_ms[positions],
                    t1_ms=rows.t1_ms[label][positions],
                )
            )
    return found


def fit_models(
    rows: Rows,
    fitter: "Fitter",
    plan: Sequence[Recipe],
    labels: Sequence[str],
    done: Callable[[Job, "Fitted"], T],
    *,
    step_ms: int,
    stride: int,
    inputs: str,
    allowed: Allowed | None = None,
    fewest: int = 1,
) -> Iterator[T]:
    """Fits every label with every recipe and yields what `done` makes of each model.

    A walk-forward step is `fit_models(rows, fitter, plan, labels, predictions(fitter, test), ...,
    allowed=ends_before(rows, test_start_ms))`: names and out-of-sample outputs of the test rows.

    rows: as `gather` gives them; fitter: `Fitter.of(rows, workers, seed)`, to be used again for
    other rows of the same matrix; plan: `recipes(settings.algorithms)`.
    done: called in the fit's thread with the job and its model; the model's `predict` takes
    `fitter.x[positions]` and is not to be kept where many models are fitted.
    step_ms: length of a candle; stride: train on every n-th candle, for recipes that do not say
    it themselves (`stride_for(len(rows))`); inputs: `inputs_of(features)`.
    allowed: which rows each label's models may see; None: all whose label is known.
    fewest: jobs whose rarer class has fewer rows are not fitted and yield nothing.

    Models depend on rows, plan and seed only, not on the number of workers; their order is that
    of the row sets, not of the plan.

    Raises:
        Failure: a library refused the arguments of the config.
    """
    jobs = jobs_of(
        rows, plan, labels, step_ms=step_ms, stride=stride, inputs=inputs, allowed=allowed
    )
    yield from fitter.fit_each([job for job in jobs if job.cases >= fewest], done)


def predictions(
    fitter: "Fitter", positions: npt.NDArray[np.intp]
) -> Callable[[Job, "Fitted"], tuple[str, FloatArray]]:
    """For `fit_models`: the model's name and its (len(positions),) outputs on those rows."""
    return lambda job, model: (job.name, model.predict(fitter.x[positions]))


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

    @classmethod
    def of(cls, rows: Rows, workers: int, seed: int) -> "Fitter":
        """For the columns of the rows that are not left out."""
        x = rows.x[:, ~rows.left_out] if rows.left_out.any() else rows.x
        return cls(x, workers, seed)

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
