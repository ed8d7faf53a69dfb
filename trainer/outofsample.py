"""Out-of-sample outputs of all folds, and what they say: per model, per label, and of the score."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.score import PLAIN_KINDS, ScoreFormula, ScoreKind, score
from trainer import baselines
from trainer.aggregates import fit_stacks, formula_of, pair_of
from trainer.evaluate import (
    Metrics,
    ScoreMetrics,
    auc,
    block_rows,
    calibration_curve,
    day_null,
    measure,
    measure_score,
    measure_values,
)
from trainer.folds import Fold
from trainer.labels import is_value, rows_ahead, side_of
from trainer.models.rows import Rows

Floats = npt.NDArray[np.float64]
Positions = npt.NDArray[np.intp]

NULL = (
    "95 % band of the AUC when whole days of outcomes change places within their weekday (less "
    "than two weeks: with any others; several symbols: all at once): what the time of day and of "
    "the week alone give this output"
)
SCORE_NULL = "95 % band of the AUC when the score is shifted in a circle against what happened"
# Highest honest figures of 12 quarters of BTCUSDT 1m at a horizon of 180 rows and their margin
# (reference on machine learning, section 0). An interval wholly above: look for a leak.
_ALARMS = {"fixed": 0.80, "scaled": 0.74, "direction": 0.58}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """What happened after each of the rows, (n,) each. y: label -> 0 or 1; t1_ms: label -> when the
    last candle opens that it looks at; returns, touch: see `trainer.outcomes`; NaN = not known."""

    open_ms: npt.NDArray[np.int64]
    symbol: npt.NDArray[np.int16]
    y: Mapping[str, Floats]
    t1_ms: Mapping[str, npt.NDArray[np.int64]]
    returns: Floats
    touch: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfSample:
    """positions: (n,) of the tested rows, in time order; fold: (n,) which fold; outputs: model or
    `label.baseline` -> (n,), NaN where it has none; train_base: label -> (n,) share of positives
    that its models were trained on; score: (n,) by the config's formula; scores: kind -> (n,)."""

    positions: Positions
    fold: npt.NDArray[np.int64]
    label_of: Mapping[str, str]
    outputs: Mapping[str, Floats]
    train_base: Mapping[str, Floats]
    score: Floats
    scores: Mapping[str, Floats]

    def only(self, keep: npt.NDArray[np.bool_]) -> "OutOfSample":
        return replace(
            self,
            positions=self.positions[keep],
            fold=self.fold[keep],
            outputs={name: values[keep] for name, values in self.outputs.items()},
            train_base={name: values[keep] for name, values in self.train_base.items()},
            score=self.score[keep],
            scores={name: values[keep] for name, values in self.scores.items()},
        )


def assemble(
    folds: Sequence[Fold],
    found: Mapping[tuple[int, str], Floats],
    names: Sequence[str],
    kind: str,
) -> OutOfSample:
    """One table of all folds; no row is tested by two of them.

    found: (fold, name) -> outputs of its test rows; names: of the models, in the order of columns;
    kind: of the config; the table has that score if it is one of PLAIN_KINDS, and `with_trained`
    adds the others.
    """
    positions = np.concatenate([fold.test for fold in folds])
    order = np.argsort(positions, kind="stable")
    starts = list(itertools.accumulate((len(fold.test) for fold in folds), initial=0))
    label_of = {job.name: job.label for fold in folds for job in fold.jobs}
    labels = list(dict.fromkeys(label_of[name] for name in names))
    every = [*names, *(f"{label}.{name}" for label in labels for name in baselines.NAMES)]
    outputs = {name: np.full(len(positions), np.nan) for name in every}
    train_base = {label: np.full(len(positions), np.nan) for label in labels}
    scores = {str(one): np.full(len(positions), np.nan) for one in PLAIN_KINDS}
    number = np.empty(len(positions), np.int64)
    for fold, start in zip(folds, starts, strict=False):
        here = slice(start, start + len(fold.test))
        number[here] = fold.number
        for name in every:
            if (fold.number, name) in found:
                outputs[name][here] = found[fold.number, name]
        for label in fold.labels:
            train_base[label][here] = fold.train_base[label]
        models = [name for name in names if (fold.number, name) in found]
        sides = {
            side: tuple(n for n in models if side_of(label_of[n]) == side)
            for side in ("high", "low")
        }
        if sides["high"] and sides["low"]:
            said = np.column_stack([outputs[name][here] for name in models])
            for one in PLAIN_KINDS:
                formula = ScoreFormula(kind=one, high=sides["high"], low=sides["low"])
                scores[str(one)][here] = score(formula, models, said)
    sorted_scores = {name: values[order] for name, values in scores.items()}
    return OutOfSample(
        positions=positions[order],
        fold=number[order],
        label_of=label_of,
        outputs={name: values[order] for name, values in outputs.items()},
        train_base={name: values[order] for name, values in train_base.items()},
        score=sorted_scores.get(kind, np.full(len(positions), np.nan)),
        scores=sorted_scores,
    )


def with_trained(
    table: OutOfSample,
    folds: Sequence[Fold],
    rows: Rows,
    outcomes: Outcomes,
    kind: str,
    wait_ms: int,
) -> tuple[OutOfSample, dict[int, str]]:
    """Adds the score of STACK, and the table's score where `kind` is that or "best".

    Both learn from out-of-sample outputs of the past: in each fold from those rows of earlier folds
    whose outcome was known when it began. A stack has no score in the first fold. "best" takes in
    each fold the formula whose direction was told best before (the first: LOGIT_MEAN). wait_ms: how
    long after its open time a row's direction is known. Also returns which formula each fold has.
    """
    stack = np.full(len(table.positions), np.nan)
    score_of = np.full(len(table.positions), np.nan)
    scores = dict(table.scores) | {str(ScoreKind.STACK): stack}
    times = outcomes.open_ms[table.positions]
    chosen: dict[int, str] = {}
    for fold in sorted(folds, key=lambda one: one.blocks[0].start_ms):
        start_ms, here = fold.blocks[0].start_ms, table.fold == fold.number
        past = times < start_ms
        names = [job.name for job in fold.jobs if not job.is_value]
        values = np.column_stack([table.outputs[name] for name in names])
        learned = past & ~np.isnan(values).any(axis=1)
        stacks = None
        if learned.any():
            at = table.positions[learned]
            pair = pair_of(rows, at, [table.label_of[name] for name in names])
            if pair is not None:
                stacks = fit_stacks(rows, names, values[learned], at, pair, start_ms)
        if stacks is not None:
            high, low = (
                [name for name in names if side_of(table.label_of[name]) == side]
                for side in ("high", "low")
            )
            formula = formula_of(ScoreKind.STACK, high, low, stacks)
            stack[here] = score(formula, names, values[here])
        chosen[fold.number] = kind
        if kind == "best":
            settled = past & (times + wait_ms < start_ms)
            chosen[fold.number] = _best_before(table, outcomes, scores, settled)
        score_of[here] = scores[chosen[fold.number]][here]
    return replace(table, score=score_of, scores=scores), chosen


def _best_before(
    table: OutOfSample,
    outcomes: Outcomes,
    scores: Mapping[str, Floats],
    settled: npt.NDArray[np.bool_],
) -> str:
    touch = outcomes.touch[table.positions]
    told: dict[str, float] = {}
    for kind, values in scores.items():
        keep = settled & (np.abs(touch) == 1) & ~np.isnan(values)
        found = auc(touch[keep] > 0, values[keep]) if keep.any() else None
        if found is not None:
            told[kind] = found
    return max(told, key=lambda kind: told[kind]) if told else str(ScoreKind.LOGIT_MEAN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Measures out-of-sample outputs. horizon: rows that labels look ahead (of one symbol) unless
    their name says otherwise; candle_ms: length of a candle; workers: threads."""

    horizon: int
    candle_ms: int
    seed: int
    workers: int

    def figures(
        self,
        table: OutOfSample,
        outcomes: Outcomes,
        folds: Sequence[Fold],
        advance: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """For metrics.json: models and baselines pooled and per fold, and the score."""
        symbols = len(np.unique(outcomes.symbol[table.positions]))
        numbers = [fold.number for fold in folds]
        parts = {None: table} | {n: table.only(table.fold == n) for n in numbers}
        names = list(table.outputs)
        tasks = [(part, name) for part in parts for name in names]
        with ThreadPoolExecutor(self.workers) as pool:
            done = {}
            work = pool.map(
                lambda task: self._one(parts[task[0]], outcomes, task[1], symbols), tasks
            )
            for task, figures in zip(tasks, work, strict=True):
                done[task] = figures
                advance()
            # on the same rows: a trained score has none in the first fold
            kinds = [one for one, said in table.scores.items() if not np.isnan(said).all()]
            common = np.all([~np.isnan(table.scores[one]) for one in kinds], axis=0)
            alike = table.only(common) if kinds else table
            of_kind = dict(
                zip(
                    kinds,
                    pool.map(
                        lambda one: self._score(alike, outcomes, alike.scores[one], symbols), kinds
                    ),
                    strict=True,
                )
            )
            of_fold = dict(
                zip(
                    numbers,
                    pool.map(
                        lambda n: self._score(parts[n], outcomes, parts[n].score, symbols), numbers
                    ),
                    strict=True,
                )
            )
        models = [name for name in names if "." not in name]
        pooled = {}
        for name in models:
            figures_of = [done[n, name].get("auc") for n in numbers]
            aucs = [float(value) for value in figures_of if value is not None]
            pooled[name] = done[None, name]
            if is_value(table.label_of[name]):
                continue
            pooled[name] |= {
                "folds": len(aucs),
                "auc_mean": round(float(np.mean(aucs)), 6) if aucs else None,
                "auc_sd": round(float(np.std(aucs)), 6) if aucs else None,
                "auc_least": min(aucs, default=None),
                "auc_most": max(aucs, default=None),
            }
        return {
            "models": pooled,
            "baselines": _by_label(done, None, names),
            "score": self._score(table, outcomes, table.score, symbols).as_dict(),
            "aggregates": {one: _short(figures) for one, figures in of_kind.items()},
            "best_aggregate": _best(of_kind),
            "folds": {
                n: {
                    "models": {name: done[n, name] for name in models if done[n, name]},
                    "baselines": _by_label(done, n, names),
                    "score": _short(of_fold[n]),
                }
                for n in numbers
            },
            "calibration": {
                name: _curve(table, outcomes, name)
                for name in models
                if not is_value(table.label_of[name])
            },
        }

    def _one(
        self, table: OutOfSample, outcomes: Outcomes, name: str, symbols: int
    ) -> dict[str, Any]:
        """Metrics of one model or baseline; empty where there is nothing to measure."""
        label = table.label_of.get(name, name.partition(".")[0])
        y = outcomes.y[label][table.positions]
        keep = ~np.isnan(y) & ~np.isnan(table.outputs[name])
        if not keep.any():
            return {}
        y, p = y[keep], table.outputs[name][keep]
        at = table.positions[keep]
        ahead = rows_ahead(
            label, self.horizon, outcomes.open_ms[at], outcomes.t1_ms[label][at], self.candle_ms
        )
        block = block_rows(ahead, symbols=symbols, rows=len(y))
        if is_value(label):
            return measure_values(y, p, block, self.seed).as_dict()
        base = table.train_base[label][keep]
        found: Metrics = measure(y, p, block, self.seed, base)
        figures: dict[str, Any] = found.as_dict()
        if "." not in name:
            low, high = day_null(
                y, p, outcomes.open_ms[at], self.candle_ms, self.seed, outcomes.symbol[at]
            )
            figures |= {
                "null_low": None if low is None else round(low, 6),
                "null_high": None if high is None else round(high, 6),
            }
        return figures

    def _score(
        self, table: OutOfSample, outcomes: Outcomes, values: Floats, symbols: int
    ) -> ScoreMetrics:
        at = table.positions
        return measure_score(
            values,
            outcomes.returns[at],
            outcomes.touch[at],
            block_rows(self.horizon, symbols=symbols),
            self.seed,
        )


def _curve(table: OutOfSample, outcomes: Outcomes, name: str) -> list[dict[str, float]]:
    y, p = outcomes.y[table.label_of[name]][table.positions], table.outputs[name]
    keep = ~np.isnan(y) & ~np.isnan(p)
    if not keep.any():
        return []
    return [
        {key: round(value, 6) for key, value in point.items()}
        for point in calibration_curve(y[keep], p[keep])
    ]


def _by_label(
    done: Mapping[tuple[int | None, str], dict[str, Any]], fold: int | None, names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """label -> base_rate, volatility, clock."""
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        label, dot, baseline = name.partition(".")
        if dot and done[fold, name]:
            figures = done[fold, name]
            of_label = found.setdefault(label, {})
            if "base_rate" in figures:
                of_label["base_rate"] = figures["base_rate"]
            of_label[baseline] = figures
    return found


def _short(found: ScoreMetrics) -> dict[str, Any]:
    figures = found.as_dict()
    del figures["deciles"]
    return figures


def _best(found: Mapping[str, ScoreMetrics]) -> str | None:
    """The formula with the highest AUC of direction."""
    known = {name: one.auc for name, one in found.items() if one.auc is not None}
    return max(known, key=lambda name: known[name]) if known else None


def alarms(figures: Mapping[str, Any], label_of: Mapping[str, str]) -> Iterator[str]:
    """What is too good to be true, one line each: intervals that lie wholly above what honest
    models have reached."""
    parts = [("all folds", figures)] + [(f"fold {n}", f) for n, f in figures["folds"].items()]
    for where, part in parts:
        found = [(name, label_of[name], one) for name, one in part["models"].items()]
        for name, label, one in [*found, ("score", "", part["score"])]:
            kind = "scaled" if label.startswith(("highv", "lowv")) else "fixed"
            highest = _ALARMS["direction" if not label else kind]
            if (one.get("auc_low") or 0) > highest:
                yield (
                    f"{name}, {where}: AUC {one['auc']:.3f}, surely above {one['auc_low']:.3f}, is "
                    f"more than honest ones reach ({highest:.2f}): run `python -m trainer leaks`"
                )
