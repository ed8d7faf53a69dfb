"""Fits every label with every algorithm on chosen rows; what labels can share is made once."""

import contextlib
import hashlib
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
from shared.errors import Failure, Usage
from shared.features import FeatureSet
from trainer.labels import is_value
from trainer.models import gb, lc, nn, options, svc
from trainer.models.calibration import Core, Mapped, Rescale, fit_isotonic, fit_platt
from trainer.models.options import Around, RowChoice
from trainer.models.rows import Rows, chosen
from trainer.models.rowset import RowSet
from trainer.models.weights import row_weights

FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
Positions = npt.NDArray[np.intp]
T = TypeVar("T")
Fitted = gb.Boosting | nn.Network | lc.Linear | Mapped
# label -> (n,) True for the rows that its models may be fitted on
Allowed = Callable[[str], BoolArray]
_LETTERS = {"kline": "k", "futur": "f", "depth": "d"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """An algorithm of the config, checked.

    kinds: for which labels it is: False for yes-or-no labels, True for values.
    """

    name: str
    algo: Literal["gb", "nn", "lc", "svc"]
    rows: RowChoice
    options: gb.Options | nn.Options | lc.Options | svc.Options
    around: Around
    kinds: frozenset[bool]


def recipes(algorithms: Sequence[Algorithm]) -> list[Recipe]:
    """Raises Usage where the config is wrong; nothing has been computed by then."""
    parsers: dict[str, Any] = {"gb": gb.parse, "nn": nn.parse, "lc": lc.parse, "svc": svc.parse}
    patience = {"gb": 50, "nn": 3}
    found: list[Recipe] = []
    for algorithm in algorithms:
        if any(recipe.name == algorithm.name for recipe in found):
            raise options.refused(algorithm, "two algorithms have this name")
        parsed, kinds = parsers[algorithm.algo](algorithm)
        is_svc = algorithm.algo == "svc"
        most = (options.count(algorithm, "max_rows") or svc.MAX_ROWS) if is_svc else None
        found.append(
            Recipe(
                name=algorithm.name,
                algo=algorithm.algo,
                rows=options.row_choice(algorithm, most),
                options=parsed,
                around=options.around(
                    algorithm,
                    calibrate="platt" if is_svc else "none",
                    patience=patience.get(algorithm.algo),
                ),
                kinds=kinds,
            )
        )
    return found


def check_labels(plan: Sequence[Recipe], labels: Sequence[str]) -> None:
    """Raises Usage where no algorithm is for a label of the config."""
    for label in labels:
        if not any(is_value(label) in recipe.kinds for recipe in plan):
            kind = "values" if is_value(label) else "yes-or-no labels"
            raise Usage(f"config: algorithms: none of them is for {kind} such as {label}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One fit. name: of the model, `high_20_k_gb`.

    positions: rows of the fitter's matrix that are fitted on, in time order; y: their (n,) labels,
    0 or 1, or values; open_ms, t1_ms: their (n,) open times and those of the last candle each label
    looks at. thinned_from: how many rows there were, where the algorithm takes a sample of them.
    """

    recipe: Recipe
    label: str
    name: str
    positions: Positions
    y: FloatArray
    open_ms: npt.NDArray[np.int64]
    t1_ms: npt.NDArray[np.int64]
    thinned_from: int | None = None

    @property
    def is_value(self) -> bool:
        return is_value(self.label)

    @property
    def cases(self) -> int:
        """Rows of the rarer class (values: rows); where a tail is cut off, in the part that has
        fewer."""
        parts = [self.y]
        if self.recipe.around.has_tail:
            parts = [self.y[part] for part in self.parts()]
        return min(_cases(y, self.is_value) for y in parts)

    def parts(self) -> tuple[Positions, Positions]:
        """Places of the rows before the purged tail and of those in it, among the job's rows.

        The tail is the last `tail_share` of the rows; no label before it looks at its first candle
        or beyond.
        """
        count = len(self.positions)
        first = min(count - 1, int(count * (1 - self.recipe.around.tail_share)))
        start_ms = self.open_ms[first]
        before = np.flatnonzero(self.t1_ms < start_ms)
        return before, np.flatnonzero(self.open_ms >= start_ms)


def _cases(y: FloatArray, of_values: bool) -> int:
    if of_values:
        return len(y)
    true = int(y.sum())
    return min(true, len(y) - true)


def _digest(values: npt.NDArray[Any]) -> bytes:
    found = hashlib.sha256(values.dtype.str.encode())
    found.update(np.ascontiguousarray(values).data)
    return found.digest()


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
    the last row that it may be fitted on; of more rows than its `max_rows` every n-th is taken.
    Jobs without any row are left out, and so are labels that a recipe is not for.
    """
    found = []
    # Equal arrays are held once: most jobs have the same rows, and those can be many.
    held: dict[bytes, npt.NDArray[Any]] = {}

    def once(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return held.setdefault(_digest(values), values)

    for recipe in plan:
        wanted = chosen(rows, step_ms, recipe.rows.stride or stride)
        for label in labels:
            if is_value(label) not in recipe.kinds:
                continue
            keep = ~np.isnan(rows.y[label][wanted])
            if allowed is not None:
                keep &= allowed(label)[wanted]
            positions = wanted[keep]
            if not len(positions):
                continue
            if recipe.rows.length is not None:
                first_ms = rows.open_ms[positions[-1]] - (recipe.rows.length - 1) * step_ms
                positions = positions[rows.open_ms[positions] >= first_ms]
            count, most = len(positions), recipe.rows.most
            if most is not None and count > most:
                positions = positions[:: -(-count // most)]
            found.append(
                Job(
                    recipe=recipe,
                    label=label,
                    name=f"{label}_{inputs}_{recipe.name}",
                    positions=once(positions),
                    y=once(rows.y[label][positions]),
                    open_ms=once(rows.open_ms[positions]),
                    t1_ms=once(rows.t1_ms[label][positions]),
                    thinned_from=count if len(positions) < count else None,
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
    fewest: jobs whose rarer class has fewer rows (values: jobs with fewer rows) are not fitted and
    yield nothing; of a job whose algorithm cuts a tail off, each part needs so many.

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
    fitter: "Fitter", positions: Positions
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
            groups.setdefault(_digest(job.positions), []).append(job)
        with single_threaded_and_quiet(), ThreadPoolExecutor(self._workers) as pool:
            for group in groups.values():
                shared = RowSet(self.x, group[0].positions, self._seed)

                def work(job: Job, shared: RowSet = shared) -> T:
                    return done(job, fit_one(job, shared, self._seed))

                longest_first = sorted(group, key=lambda job: COST[job.recipe.algo])
                futures = [pool.submit(work, job) for job in longest_first]
                try:
                    for future in as_completed(futures):
                        yield future.result()
                finally:
                    for future in futures:
                        future.cancel()


# Which algorithms take longest, first.
COST = {"svc": 0, "gb": 1, "nn": 2, "lc": 3}


def fit_one(job: Job, rows: RowSet, seed: int) -> Fitted:
    """The job's model: fitted on all its rows, or on those before the tail and mapped on it.

    rows: the job's; within `single_threaded_and_quiet`.

    Raises:
        Failure: a library refused the arguments of the config.
    """
    around = job.recipe.around
    if not around.has_tail:
        return _finished(_fit_core(job, rows, slice(None), seed, None))
    before, tail = job.parts()
    if not job.cases:
        raise Failure(
            f"{job.name}: {len(before):,} rows and a purged tail of {len(tail):,} do not both hold "
            "two classes: early stopping and calibration need that; give more candles, change "
            "params.tail_share or do without"
        )
    inner, watched = rows.part(before), rows.part(tail)
    length = None
    if around.early_stopping:
        length = _best_length(job, inner, before, watched, tail, seed)
    if around.calibrate == "none" or job.is_value:
        return _finished(_fit_core(job, rows, slice(None), seed, length))
    core, _ = _fit_core(job, inner, before, seed, length)
    fit_map = fit_platt if around.calibrate == "platt" else fit_isotonic
    return Mapped(core=core, map=fit_map(core.raw(watched.rows), job.y[tail]))


def _finished(found: tuple[Core, Rescale | None]) -> Fitted:
    core, rescale = found
    if rescale is not None:
        return Mapped(core=core, map=rescale)
    assert not isinstance(core, svc.Vectors)  # noqa: S101 - always mapped
    return core


def _weights_of(job: Job, part: Positions | slice) -> FloatArray | None:
    return row_weights(job.recipe.around, job.y[part], job.open_ms[part], job.t1_ms[part])


def _target(job: Job, part: Positions | slice) -> tuple[FloatArray, Rescale | None]:
    """The labels, standardised where an algorithm needs numbers of one size, and the way back."""
    y = job.y[part]
    if not job.is_value or job.recipe.algo in {"gb", "lc"}:
        return y, None
    mean, scale = float(y.mean()), float(y.std()) or 1.0
    return (y - mean) / scale, Rescale(slope=scale, offset=mean)


def _fit_core(
    job: Job, rows: RowSet, part: Positions | slice, seed: int, length: int | None
) -> tuple[Core, Rescale | None]:
    """Fits on `rows`, which are the job's rows at the places `part`; length: rounds, epochs."""
    y, rescale = _target(job, part)
    weights, values, name = _weights_of(job, part), job.is_value, job.name
    core: Core
    match job.recipe.options:
        case gb.Options() as own:
            core = rows.binned().fit(own, y, name, weights=weights, is_value=values, rounds=length)
        case lc.Options() as own:
            scaling, scaled = rows.scaling(own.is_scale), rows.scaled(own.is_scale)
            core = lc.fit(own, scaling, scaled, y, seed, name, weights=weights, is_value=values)
        case svc.Options() as own:
            scaling, scaled = rows.scaling(own.is_scale), rows.scaled(own.is_scale)
            core = svc.fit(own, scaling, scaled, y, weights, seed, name, is_value=values)
        case nn.Options() as own:
            scaling, scaled32 = rows.scaling(own.is_scale), rows.scaled32(own.is_scale)
            core = nn.fit(
                own, scaling, scaled32, y, weights, seed, name, is_value=values, epochs=length
            )
    return core, rescale


def _best_length(
    job: Job, inner: RowSet, before: Positions, watched: RowSet, tail: Positions, seed: int
) -> int:
    """Rounds or epochs after which the model of the rows before the tail is best on the tail."""
    y, rescale = _target(job, before)
    tail_y = job.y[tail]
    if rescale is not None:
        tail_y = (tail_y - rescale.offset) / rescale.slope
    weights, patience = _weights_of(job, before), job.recipe.around.patience
    match job.recipe.options:
        case gb.Options() as own:
            return inner.binned().best_rounds(
                own,
                y,
                job.name,
                watched.rows,
                tail_y,
                patience,
                weights=weights,
                is_value=job.is_value,
            )
        case nn.Options() as own:
            scaling = inner.scaling(own.is_scale)
            return nn.best_epochs(
                own,
                inner.scaled32(own.is_scale),
                y,
                weights,
                scaling.apply(watched.rows, np.float32),
                tail_y,
                patience,
                seed,
                job.name,
                is_value=job.is_value,
            )
        case _:
            raise AssertionError("only gb and nn have early stopping")


class _Quiet:
    """Who is inside, for the settings of the whole process that fits need."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.undo = contextlib.ExitStack()


_QUIET = _Quiet()


@contextlib.contextmanager
def single_threaded_and_quiet() -> Iterator[None]:
    """Around fits. Both settings are the whole process's, not a thread's: the first thread that
    comes makes them, the last one that leaves takes them back."""
    with _QUIET.lock:
        if not _QUIET.inside:
            # sums in another number of threads have other bits
            _QUIET.undo.enter_context(threadpool_limits(1, user_api="blas"))
            _QUIET.undo.enter_context(warnings.catch_warnings())
            # Few epochs are meant, and so are the seed's solvers that stop early: metrics show it.
            warnings.simplefilter("ignore", ConvergenceWarning)
            warnings.simplefilter("ignore", FutureWarning)
        _QUIET.inside += 1
    try:
        yield
    finally:
        with _QUIET.lock:
            _QUIET.inside -= 1
            if not _QUIET.inside:
                _QUIET.undo.close()
