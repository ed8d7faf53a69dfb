"""`trainer tune`: searches model and label parameters out of sample, with Optuna.

One study per kind: `gb`, `nn`, `lc`, `svc` (the parameters of one algorithm, labels as configured)
and `labels` (horizon and threshold, algorithms as configured). `trainer.tune.space` says what is
tried:

    "gb": {"train.num_leaves": [3, 31],                      whole numbers
           "train.learning_rate": [0.01, 0.2, "log"],        numbers, by their logarithm
           "train.max_bin": {"choices": [63, 127, 255]}}

What a trial is worth is measured on walk-forward folds in the second half of the tuning period: of
each fold, models are fitted on the rows before it whose labels look at nothing of it. A model
study maximises the log-loss skill (1 - loss / loss of the training base rate; mean over labels and
folds). Labels cannot be compared by how well they are predicted, so the label study maximises what
the score is for: its AUC between candles after which the price rose by one sigma of the configured
horizon first and those after which it fell first. Trials that fall behind the median of the others
after a fold are pruned. The last `trainer.tune.holdout_share` of the time takes no part; best and
configured parameters are shown on it once, at the end, for the best of many trials is optimistic.

--storage shares a study between processes and machines (`sqlite:///tune.db`, `postgresql://..`,
`redis://..`; default: a SQLite file in the data folder), and a run that was killed goes on. A study
is that of its data, space and settings: with other candles a new one begins.
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import logging
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import optuna
from optuna.storages.journal import JournalRedisBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import DatabaseError, SQLAlchemyError

from shared.config import Algorithm, Settings
from shared.errors import Failure, Usage
from shared.features import FeatureSet
from shared.features.configured import configured
from shared.klinefiles import is_running
from shared.score import PLAIN_KINDS, ScoreFormula, ScoreKind, score
from shared.times import interval_ms, iso
from trainer import inputs
from trainer.evaluate import auc
from trainer.labels import is_value, side_of, trailing_sigma
from trainer.models.fit import Fitter, ends_before, fit_models, inputs_of, predictions, recipes
from trainer.models.rows import Rows, chosen, gather, stride_for
from trainer.outcomes import first_touch
from trainer.progress import Bar, Progress
from trainer.rasters import CLOSE, Raster

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]
Kind = Literal["gb", "nn", "lc", "svc", "labels"]

KINDS: tuple[Kind, ...] = ("gb", "nn", "lc", "svc", "labels")
# What a threshold stands for: percent (`high_15`) or hundredths of sigma (`highv_100`).
_DEFAULT_SPACE: dict[str, dict[str, Any]] = {
    "gb": {
        "train.num_leaves": [3, 31, "log"],
        "train.num_boost_round": [50, 400, "log"],
        "train.learning_rate": [0.02, 0.15, "log"],
        "train.min_data_in_leaf": [20, 1000, "log"],
        "train.feature_fraction": [0.3, 1.0],
        "train.lambda_l2": [0.1, 50.0, "log"],
    },
    "nn": {
        "train.alpha": [1e-4, 1.0, "log"],
        "train.learning_rate_init": [3e-4, 1e-2, "log"],
        "train.max_iter": [2, 15, "log"],
    },
    "lc": {"train.C": [1e-4, 10.0, "log"]},
    "svc": {"train.C": [1e-2, 10.0, "log"]},
    "labels": {
        "horizon": {"choices": [60, 120, 180, 240, 360]},
        "threshold": {"choices": ["10", "15", "20", "v_075", "v_100", "v", "v_150"]},
    },
}
_STARTUP = 8
_FEWEST = 10
_DONE = (TrialState.COMPLETE, TrialState.PRUNED)
_SMALLEST = 1e-15
_KILLED = "killed"
_PROCESS = "process"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """Rows that open at or after start_ms and before stop_ms are tested on."""

    start_ms: int
    stop_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """folds: where trials are measured; holdout: what no trial sees."""

    folds: tuple[Fold, ...]
    holdout: Fold


def add_arguments(parser: argparse.ArgumentParser) -> None:
    inputs.add_options(parser)
    parser.add_argument(
        "--what",
        nargs="+",
        metavar="KIND",
        help="gb, nn, lc, svc, labels; default: the config's algorithms, then labels",
    )
    parser.add_argument("--trials", type=int, metavar="N", help="of each study, all runs together")
    parser.add_argument(
        "--storage", metavar="URL", help="sqlite:///FILE, postgresql://.., redis://..: shared"
    )
    parser.add_argument(
        "--no-holdout", action="store_true", help="do not look at the held-out rows yet"
    )


def run(settings: Settings, args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    started = time.monotonic()
    trials = settings.trainer.tune.trials if args.trials is None else args.trials
    if trials < 1:
        raise Usage(f"--trials {trials}: at least one")
    kinds = kinds_of(settings, args.what)
    if not yes_or_no(settings.labels):
        raise Usage("config: labels: none is a yes-or-no label such as high_10; tune needs one")
    features = configured(settings)
    data = inputs.read(settings, args, features)
    for kind in kinds:
        check_space(settings, kind)
    url = args.storage or _default_storage(settings, data)
    bench = Bench(settings, features, data, progress)
    studies = []
    with _quiet():
        storage = storage_of(url)
        for kind in kinds:
            studies.append(
                _tune(bench, storage, kind, trials, progress, holdout=not args.no_holdout)
            )
    return {
        "command": "tune",
        "storage": url,
        "symbols": [raster.symbol for raster in data],
        "interval": data[0].interval,
        "studies": studies,
        "config": merged_config(settings, studies),
        "seconds": round(time.monotonic() - started, 1),
    }


def summary(result: Mapping[str, Any]) -> str:
    lines = []
    for study in result["studies"]:
        best, before = study["best"], study["configured"]
        counts = f"{study['complete']} trials, {study['pruned']} more pruned"
        line = f"  {study['what']}: {study['objective']} {before:.4f} as configured"
        if best is None:
            lines.append(f"{line}, nothing better in {counts}")
            continue
        line += f", {best['value']:.4f} at best ({counts})"
        held = study["holdout"]
        if held is not None:
            line += (
                f"; on the holdout {held['configured']:.4f} as configured, {held['best']:.4f} with "
                "the best"
            )
            if not held["best"] > held["configured"]:
                line += ": it does not confirm them, keep what is configured"
        lines.append(line)
    lines.append(
        "  the best of many trials is optimistic: only the holdout counts, and only at first sight"
    )
    if result["config"]:
        lines.append("for your config.json:")
        lines += [
            f'  "{key}": {json.dumps(value)},' for key, value in sorted(result["config"].items())
        ]
    lines.append(f"tune: {len(result['studies'])} studies in {result['storage']}")
    return "\n".join(lines)


# --- what is tried -------------------------------------------------------------------------------


def kinds_of(settings: Settings, given: Sequence[str] | None) -> list[Kind]:
    """Raises: Usage: an unknown kind, or an algorithm that the config does not have."""
    configured_ones = {algorithm.algo for algorithm in settings.algorithms}
    if given is None:
        return [kind for kind in KINDS if kind in configured_ones or kind == "labels"]
    found: list[Kind] = []
    for name in given:
        kind = next((known for known in KINDS if known == name), None)
        if kind is None:
            raise Usage(f"--what {name}: known are {', '.join(KINDS)}")
        if kind != "labels" and kind not in configured_ones:
            raise Usage(f"--what {name}: the config has no algorithm of that kind")
        if kind not in found:
            found.append(kind)
    return found


def space_of(settings: Settings, kind: Kind) -> dict[str, Any]:
    """name -> range, of the config or the default."""
    return dict(settings.trainer.tune.space.get(kind, _DEFAULT_SPACE[kind]))


def yes_or_no(labels: Sequence[str]) -> tuple[str, ...]:
    """Those that are no values; a score is made of them, and a log-loss is theirs."""
    return tuple(name for name in labels if not is_value(name))


def check_space(settings: Settings, kind: Kind) -> None:
    """Raises: Usage: a range or a name of the config's space that is not one."""
    unknown = set(settings.trainer.tune.space) - set(KINDS)
    if unknown:
        raise Usage(f"config: trainer.tune.space: {min(unknown)!r} is none of {', '.join(KINDS)}")
    space = space_of(settings, kind)
    if not space:
        raise Usage(f"config: trainer.tune.space.{kind}: nothing to try")
    lowest = {name: _first(kind, name, given) for name, given in space.items()}
    if kind == "labels":
        for name in space:
            if name not in ("horizon", "threshold"):
                raise Usage(
                    f"config: trainer.tune.space.labels: {name!r}; known are horizon, threshold"
                )
        labels_of(settings, lowest)
        return
    recipes(algorithms_of(settings, kind, lowest))


def _first(kind: Kind, name: str, given: Any) -> Any:
    """The first value of a range.

    Raises:
        Usage: it is no range.
    """
    if isinstance(given, Mapping) and isinstance(given.get("choices"), list) and given["choices"]:
        return given["choices"][0]
    if (
        isinstance(given, list | tuple)
        and len(given) in (2, 3)
        and all(isinstance(n, int | float) and not isinstance(n, bool) for n in given[:2])
        and given[0] < given[1]
        and (len(given) == 2 or (given[2] == "log" and given[0] > 0))
    ):
        return given[0]
    raise Usage(
        f'config: trainer.tune.space.{kind}.{name}: give [low, high], [low, high, "log"] or '
        '{"choices": [...]}'
    )


def suggested(trial: optuna.Trial, space: Mapping[str, Any]) -> dict[str, Any]:
    """A value for every name."""
    found: dict[str, Any] = {}
    for name, given in space.items():
        if isinstance(given, Mapping):
            found[name] = trial.suggest_categorical(name, given["choices"])
            continue
        low, high, log = given[0], given[1], len(given) == 3
        if isinstance(low, int) and isinstance(high, int):
            found[name] = trial.suggest_int(name, low, high, log=log)
        else:
            found[name] = trial.suggest_float(name, low, high, log=log)
    return found


def algorithms_of(
    settings: Settings, kind: Kind, values: Mapping[str, Any]
) -> tuple[Algorithm, ...]:
    """The config's algorithms of this kind with these values (`train.C`, `params.layers`).

    Raises:
        Usage: a name that is not of that form.
    """
    found = []
    for algorithm in settings.algorithms:
        if algorithm.algo != kind:
            continue
        sections: dict[str, dict[str, Any]] = {
            "params": dict(algorithm.params),
            "train": dict(algorithm.train),
        }
        for name, value in values.items():
            section, _, key = name.partition(".")
            if section not in sections or not key:
                raise Usage(
                    f"config: trainer.tune.space.{kind}: {name!r} is not train.NAME or params.NAME"
                )
            sections[section][key] = value
        found.append(algorithm.model_copy(update=sections))
    return tuple(found)


def labels_of(settings: Settings, values: Mapping[str, Any]) -> tuple[tuple[str, ...], int]:
    """Labels and horizon of these values.

    Raises:
        Usage: there is no such label.
    """
    horizon = values.get("horizon", settings.trainer.label_horizon)
    if isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 1:
        raise Usage(f"config: trainer.tune.space.labels.horizon: {horizon!r} is no number of rows")
    threshold = values.get("threshold")
    if threshold is None:
        return yes_or_no(settings.labels), horizon
    text = str(threshold)
    joint = "" if text.startswith("v") else "_"
    labels = tuple(f"{side}{joint}{text}" for side in ("high", "low"))
    for name in labels:
        if side_of(name) is None:
            raise Usage(f"config: trainer.tune.space.labels.threshold: {text!r}: no label {name!r}")
    return labels, horizon


# --- what a trial is worth -----------------------------------------------------------------------


class Bench:
    """Measures parameters on folds of the same candles; keeps what trials share."""

    def __init__(
        self, settings: Settings, features: FeatureSet, data: Sequence[Raster], progress: Progress
    ) -> None:
        self.settings = settings
        self.features = features
        self.digest = inputs.digest(data)
        self._data = data
        self._progress = progress
        self._step_ms = interval_ms(data[0].interval)
        self._threads = settings.trainer.threads or os.cpu_count() or 1
        self._labels = yes_or_no(settings.labels)
        self.rows = self._gather(self._labels, settings.trainer.label_horizon)
        self._fitter = Fitter.of(self.rows, self._threads, settings.trainer.seed)
        self.plan = plan_of(
            self.rows, settings.trainer.tune.folds, settings.trainer.tune.holdout_share
        )

    def measure(
        self, kind: Kind, values: Mapping[str, Any], folds: Iterable[Fold], limit_ms: int
    ) -> Iterable[float]:
        """What these values are worth on each fold; nothing that opens at limit_ms or later is
        looked at.

        Raises:
            Failure: a fold has too few cases, or a library refused the values.
        """
        if kind == "labels":
            labels, horizon = labels_of(self.settings, values)
            rows = self._gather(labels, horizon)
            fitter = Fitter.of(rows, self._threads, self.settings.trainer.seed)
            algorithms = self.settings.algorithms
        else:
            labels, rows, fitter = self._labels, self.rows, self._fitter
            algorithms = algorithms_of(self.settings, kind, values)
        worth = self._of_score if kind == "labels" else self._of_outputs
        stride = self.settings.trainer.stride or stride_for(len(rows))
        every = chosen(rows, self._step_ms, stride)
        for fold in folds:
            inside = (rows.open_ms[every] >= fold.start_ms) & (rows.open_ms[every] < fold.stop_ms)
            test = every[inside]
            outputs = dict(
                fit_models(
                    rows,
                    fitter,
                    recipes(algorithms),
                    labels,
                    predictions(fitter, test),
                    step_ms=self._step_ms,
                    stride=stride,
                    inputs=inputs_of(self.features),
                    allowed=ends_before(rows, fold.start_ms),
                    fewest=_FEWEST,
                )
            )
            value = worth(rows, labels, test, outputs, fold, limit_ms)
            if value is None:
                raise Failure(
                    f"the fold from {iso(fold.start_ms)} has too few cases to measure on; give "
                    "more candles, fewer folds (trainer.tune.folds) or other labels"
                )
            yield value

    def _gather(self, labels: Sequence[str], horizon: int) -> Rows:
        trainer = self.settings.trainer
        total = sum(len(raster) for raster in self._data)
        with self._progress.bar("features", total) as bar:
            return gather(
                self._data,
                self.features,
                labels,
                horizon=horizon,
                train_days=trainer.train_days,
                nan_share=self.settings.limits.nan_share,
                workers=self._threads,
                advance=bar.advance,
            )

    def _of_outputs(
        self,
        rows: Rows,
        labels: Sequence[str],
        test: Places,
        outputs: Mapping[str, Floats],
        fold: Fold,
        limit_ms: int,
    ) -> float | None:
        """Mean log-loss skill over the models; None: none could be measured."""
        skills = []
        for name, p in outputs.items():
            label = next(one for one in labels if name.startswith(f"{one}_"))
            y = rows.y[label]
            before = rows.t1_ms[label] < fold.start_ms
            base = float(np.nanmean(y[before]))
            known = ~np.isnan(y[test]) & (rows.t1_ms[label][test] < limit_ms)
            truth = y[test][known]
            if not 0 < truth.sum() < len(truth):
                continue
            loss = _log_loss(truth, p[known])
            skills.append(1 - loss / _log_loss(truth, np.full(len(truth), base)))
        return float(np.mean(skills)) if skills else None

    def _of_score(
        self,
        rows: Rows,
        labels: Sequence[str],
        test: Places,
        outputs: Mapping[str, Floats],
        fold: Fold,
        limit_ms: int,
    ) -> float | None:
        """AUC of the score between rises and falls of one sigma of the configured horizon."""
        names = list(outputs)
        sides = {
            name: side_of(next(one for one in labels if name.startswith(f"{one}_")))
            for name in names
        }
        kind = self.settings.signaler.model.aggregate
        formula = ScoreFormula(
            # A stack, or a choice of the best, would need outputs out of sample of its own.
            kind=ScoreKind(kind) if kind in PLAIN_KINDS else ScoreKind.LOGIT_MEAN,
            high=tuple(name for name in names if sides[name] == "high"),
            low=tuple(name for name in names if sides[name] == "low"),
        )
        if not formula.high or not formula.low:
            return None
        said = score(formula, names, np.column_stack([outputs[name] for name in names]))
        horizon = self.settings.trainer.label_horizon
        first = np.full(len(test), np.nan)
        for at, raster in enumerate(self._data):
            here = rows.symbol[test] == at
            close, high, low = raster.kline[:, CLOSE], raster.kline[:, 1], raster.kline[:, 2]
            touched = first_touch(close, high, low, trailing_sigma(close), horizon)
            first[here] = touched[rows.index[test][here] - raster.first_index]
        looked_at = rows.open_ms[test] + horizon * self._step_ms
        known = (np.abs(first) == 1) & ~np.isnan(said) & (looked_at < limit_ms)
        return auc(first[known] > 0, said[known]) if known.any() else None


def plan_of(rows: Rows, folds: int, holdout_share: float) -> Plan:
    """Equal folds in the second half of the tuning period, and the holdout behind it.

    Raises:
        Failure: too few rows.
    """
    open_ms = rows.open_ms
    end_ms = int(open_ms[-1]) + 1
    held = int(len(open_ms) * (1 - holdout_share))
    edges = np.linspace(held // 2, held, folds + 1).astype(int)
    if len(set(edges.tolist())) <= folds or held >= len(open_ms):
        raise Failure(f"{len(open_ms):,} rows are too few for {folds} folds and a holdout")
    times = [int(open_ms[at]) for at in edges]
    return Plan(
        folds=tuple(
            Fold(start_ms=start, stop_ms=stop) for start, stop in itertools.pairwise(times)
        ),
        holdout=Fold(start_ms=times[-1], stop_ms=end_ms),
    )


def _log_loss(truth: Floats, p: Floats) -> float:
    p = np.clip(p, _SMALLEST, 1 - _SMALLEST)
    return float(-np.mean(np.where(truth > 0.5, np.log(p), np.log1p(-p))))


# --- studies -------------------------------------------------------------------------------------


def _tune(
    bench: Bench,
    storage: Any,
    kind: Kind,
    trials: int,
    progress: Progress,
    *,
    holdout: bool,
) -> dict[str, Any]:
    settings, space = bench.settings, space_of(bench.settings, kind)
    name = f"{kind}-{fingerprint(bench, kind, space)}"
    study = _with_storage(
        lambda: optuna.create_study(
            study_name=name,
            storage=storage,
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=0),
        )
    )
    limit_ms = bench.plan.holdout.start_ms
    folds = bench.plan.folds
    _bury(study)
    if "configured" not in study.user_attrs:
        worth = _mean(bench.measure(kind, {}, folds, limit_ms))
        study.set_user_attr("configured", worth)
    configured_worth = float(study.user_attrs["configured"])
    done = len(study.get_trials(deepcopy=False, states=_DONE))
    if done:
        progress.note(f"{kind}: going on with study {name}, {done} trials of {trials} done")
    with progress.bar(f"tuning {kind}", trials, "trials") as bar:
        bar.advance(min(done, trials))
        while len(study.get_trials(deepcopy=False, states=_DONE)) < trials:
            _one_trial(bench, study, kind, space, folds, limit_ms)
            _show(bar, study, trials)
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    best = max(complete, key=lambda trial: (trial.value or -np.inf, -trial.number), default=None)
    if best is not None and not (best.value or -np.inf) > configured_worth:
        best = None
    held = None
    if best is not None and holdout:
        held = _holdout(bench, study, kind, best, progress)
    return {
        "what": kind,
        "study": name,
        "objective": "score AUC" if kind == "labels" else "log-loss skill",
        "folds": [{"from": iso(f.start_ms), "to": iso(f.stop_ms)} for f in folds],
        "configured": configured_worth,
        "complete": len(complete),
        "pruned": len(study.get_trials(deepcopy=False, states=(TrialState.PRUNED,))),
        "failed": len(study.get_trials(deepcopy=False, states=(TrialState.FAIL,))),
        "best": None
        if best is None
        else {"trial": best.number, "value": best.value, "values": dict(best.params)},
        "holdout": held,
        "seed": settings.trainer.seed,
    }


def _one_trial(
    bench: Bench,
    study: optuna.Study,
    kind: Kind,
    space: Mapping[str, Any],
    folds: Sequence[Fold],
    limit_ms: int,
) -> None:
    # By the number of trials so far: a run that goes on draws what the first one would have drawn
    # (those that were killed count for nothing), and two processes do not draw the same.
    drawn = len(study.get_trials(deepcopy=False)) - len(study.user_attrs.get(_KILLED, ()))
    seed = (bench.settings.trainer.seed * 1_000_003 + drawn) % 2**32
    study.sampler = optuna.samplers.TPESampler(
        multivariate=True, n_startup_trials=_STARTUP, seed=seed
    )
    trial = study.ask()
    trial.set_user_attr(_PROCESS, f"{socket.gethostname()}:{os.getpid()}")
    try:
        values = suggested(trial, space)
        measured: list[float] = []
        for number, value in enumerate(bench.measure(kind, values, folds, limit_ms)):
            measured.append(value)
            trial.report(float(np.mean(measured)), number)
            if number + 1 < len(folds) and trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                return
        study.tell(trial, float(np.mean(measured)))
    except BaseException:
        # What cannot even be told any more is buried by the next run.
        study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
        raise


def _show(bar: Bar, study: optuna.Study, trials: int) -> None:
    finished = study.get_trials(deepcopy=False, states=_DONE)
    values = [trial.value for trial in finished if trial.state == TrialState.COMPLETE]
    known = [value for value in values if value is not None]
    detail = f"best {max(known):.4f}" if known else ""
    bar.advance(max(0, min(len(finished), trials) - bar.done), detail)


def _bury(study: optuna.Study) -> None:
    """Trials of processes of this machine that are gone will never end by themselves."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        host, _, pid = str(trial.user_attrs.get(_PROCESS, "")).rpartition(":")
        if host == socket.gethostname() and pid.isdigit() and not is_running(int(pid)):
            killed = {trial.number, *study.user_attrs.get(_KILLED, ())}
            study.set_user_attr(_KILLED, sorted(killed))
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def _holdout(
    bench: Bench, study: optuna.Study, kind: Kind, best: FrozenTrial, progress: Progress
) -> dict[str, Any]:
    """What the best trial and the config are worth on rows that no trial has seen."""
    looks = dict(study.user_attrs.get("holdout", {}))
    held = bench.plan.holdout
    key = str(best.number)
    if key not in looks:
        if looks:
            progress.note(
                f"{kind}: the holdout has been looked at for {len(looks)} other best trial(s) "
                "before: choosing by it again makes it optimistic, too"
            )
        looks[key] = _mean(bench.measure(kind, best.params, [held], held.stop_ms))
        looks.setdefault("configured", _mean(bench.measure(kind, {}, [held], held.stop_ms)))
        study.set_user_attr("holdout", looks)
    return {
        "from": iso(held.start_ms),
        "to": iso(held.stop_ms),
        "best": looks[key],
        "configured": looks["configured"],
        "looks": len(looks) - 1,
    }


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def fingerprint(bench: Bench, kind: Kind, space: Mapping[str, Any]) -> str:
    """16 hex digits of all that a trial's worth depends on."""
    settings, rows = bench.settings, bench.rows
    names = settings.algorithms
    of_kind = [a.model_dump() for a in names if kind in ("labels", a.algo)]
    text = json.dumps(
        {
            "space": dict(space),
            "algorithms": of_kind,
            "labels": settings.labels,
            "aggregate": settings.signaler.model.aggregate,
            "trainer": settings.trainer.model_dump(
                mode="json", include={"train_days", "stride", "label_horizon", "seed"}
            ),
            "folds": [(fold.start_ms, fold.stop_ms) for fold in bench.plan.folds],
            "holdout": bench.plan.holdout.start_ms,
            "schema": bench.features.schema,
            "user": bench.features.user_sha256,
            "rows": [len(rows), int(rows.open_ms[0]), int(rows.open_ms[-1])],
            "candles": bench.digest,
        },
        sort_keys=True,
        default=str,
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def merged_config(settings: Settings, studies: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Top-level config keys with the best values in place; nothing where nothing was better."""
    best = {study["what"]: study["best"]["values"] for study in studies if study["best"]}
    found: dict[str, Any] = {}
    if set(best) - {"labels"}:
        entries = []
        for algorithm in settings.algorithms:
            kind: Kind = algorithm.algo
            changed = next(
                one
                for one in algorithms_of(settings, kind, best.get(kind, {}))
                if one.name == algorithm.name
            )
            entries.append({k: v for k, v in changed.model_dump().items() if v != {}})
        found["algorithms"] = entries
    if "labels" in best:
        labels, horizon = labels_of(settings, best["labels"])
        found["labels"] = list(labels)
        found["trainer"] = {"label_horizon": horizon}
    return found


# --- storage -------------------------------------------------------------------------------------


def _default_storage(settings: Settings, data: Sequence[Raster]) -> str:
    symbols = "_".join(raster.symbol for raster in data)
    settings.data_folder.mkdir(parents=True, exist_ok=True)
    path = (settings.data_folder / f"{symbols}-{data[0].interval}-tune.db").absolute()
    return f"sqlite:///{path}"


def storage_of(url: str) -> Any:
    """Optuna's storage behind a URL.

    Raises:
        Usage: not a URL of a kind that is known. Failure: it cannot be reached.
    """
    if url.startswith(("redis://", "rediss://", "unix://")):
        backend = JournalRedisBackend(url, prefix="itb-tune")
        return _with_storage(lambda: optuna.storages.JournalStorage(backend))
    if "://" not in url:
        raise Usage(f"--storage {url}: give a URL such as sqlite:///tune.db or redis://host:6379/1")
    # Processes that share a SQLite file wait for each other rather than fail.
    engine = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}

    def tables() -> Any:
        # Of processes that make the tables of an empty storage at once, one wins; the others find
        # them there.
        for pause_s in (0.2, 1.0):
            with contextlib.suppress(DatabaseError):
                return optuna.storages.RDBStorage(url, engine_kwargs=engine)
            time.sleep(pause_s)
        return optuna.storages.RDBStorage(url, engine_kwargs=engine)

    return _with_storage(tables)


def _with_storage(work: Callable[[], Any]) -> Any:
    """Raises: Failure: the storage cannot be used; says why in one line."""
    from redis.exceptions import RedisError  # noqa: PLC0415 - only where a storage may be Redis

    try:
        return work()
    except (SQLAlchemyError, RedisError, ImportError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Failure(f"the storage cannot be used: {reason}; see --storage") from None


class _quiet:  # noqa: N801 - reads as a context manager
    """Optuna says nothing by itself: the bar and the notes do."""

    def __enter__(self) -> None:
        self._before = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._caught = warnings.catch_warnings()
        self._caught.__enter__()
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        logging.getLogger("alembic").setLevel(logging.WARNING)

    def __exit__(self, *_: object) -> None:
        self._caught.__exit__(None, None, None)
        optuna.logging.set_verbosity(self._before)
