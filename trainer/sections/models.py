"""How good the models are: at training, over the folds, and as probabilities."""

import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from shared.releases import Manifest
from trainer import figures
from trainer.evidence import Evidence, Rolling, SymbolEvidence
from trainer.page import Picture, Section, Table
from trainer.sections.draft import Draft
from trainer.sections.words import (
    counted,
    horizon_of,
    interval,
    lift,
    mapping,
    minute,
    nth,
    number,
    or_nan,
    percent,
    run_it,
    some,
    when,
    whole,
)

# Fewer stretches of one label horizon, none of which overlap, than this say little.
_FEW_HORIZONS = 200
_WIDE_INTERVAL = 0.1
# machine-learning reference, section 0: label -> AUC above which an honest run has not been seen,
# (mean over folds, a single fold). Measured on 1m BTCUSDT candles with a horizon of 180.
_ALARMS = (
    (re.compile(r"(high|low)_\d\d"), (0.80, 0.86)),
    (re.compile(r"(high|low)v(_\d{3})?"), (0.74, 0.78)),
)


def tail(evidence: Evidence, draft: Draft) -> Section:
    """The release's own measurement: the purged end of its training data."""
    manifest = evidence.manifest
    found = {name: dict(manifest.metrics.get(name, {})) for name in manifest.models}
    measured = {name: m for name, m in found.items() if m.get("auc") is not None}
    training = manifest.training
    horizon = horizon_of(manifest)
    intro = (
        f"Each model was fitted once without the last {training.test_rows:,} rows (from "
        f"{when(training.test_start_ms)}, {nth(training.stride)}, purged of labels "
        "that look into them) and measured on them. The release's models were then fitted on all "
        "rows: these figures are of their recipe, not of themselves."
    )
    if not measured:
        missing = (
            "No model could be measured: too few cases at the end of the data. Train on more "
            "candles: `python -m trainer train`."
        )
        draft.warn("No model of this release was measured when it was trained.")
        return Section(id="tail", title="Models at training", intro=intro, missing=(missing,))
    rows = []
    for name, m in found.items():
        rows.append(
            (
                name,
                number(m.get("auc")),
                interval(m.get("auc_low"), m.get("auc_high")),
                number(m.get("ap")),
                lift(m.get("ap"), m.get("base_rate")),
                percent(m.get("base_rate")),
                number(m.get("brier"), 4),
                number(m.get("log_loss"), 4),
                whole(m.get("rows")),
            )
        )
    table = Table(
        caption="Models on the purged tail",
        columns=(
            "model",
            "AUC",
            "95 % interval",
            "AP",
            "AP / base rate",
            "base rate",
            "Brier",
            "log-loss (nats)",
            "rows",
        ),
        rows=rows,
    )
    spreads = [
        figures.Spread(
            name=name,
            value=or_nan(m.get("auc")),
            low=or_nan(m.get("auc_low")),
            high=or_nan(m.get("auc_high")),
            alarm=_alarm(manifest.models[name].label, manifest)[0],
        )
        for name, m in measured.items()
    ]
    values = [spread.value for spread in spreads]
    picture = draft.picture(
        "auc-tail",
        "AUC on the purged tail",
        lambda: figures.dots(spreads, "AUC (0.5 = chance, 1 = perfect ranking)", 0.5),
        f"{counted(len(values), 'model')} between {min(values):.3f} and {max(values):.3f}: the "
        "chance that a case is ranked above a row that is none.",
        "whether trading on it pays. Most of the AUC of a threshold label is volatility and time "
        "of day, which tell that the price will move and not where to.",
    )
    horizons = training.test_rows * training.stride / horizon
    if horizons < _FEW_HORIZONS:
        draft.warn(
            f"Few rows: the purged tail holds only {horizons:,.0f} label horizons of {horizon} "
            "candles that do not overlap; its figures are rough."
        )
    vague = [
        name
        for name, m in measured.items()
        if or_nan(m.get("auc_high")) - or_nan(m.get("auc_low")) > _WIDE_INTERVAL
    ]
    if vague:
        draft.warn(
            f"The 95 % interval of the AUC is wider than {_WIDE_INTERVAL} for "
            f"{some(vague)} on the purged tail."
        )
    chance = [
        name
        for name, m in measured.items()
        if m.get("auc_low") is not None and or_nan(m["auc_low"]) <= 0.5 <= or_nan(m.get("auc_high"))
    ]
    if chance:
        draft.warn(f"Not told apart from chance on the purged tail: {some(chance)}.")
    _alarms(
        draft,
        manifest,
        "on the purged tail",
        {name: (spread.value, ()) for name, spread in zip(measured, spreads, strict=True)},
    )
    unmeasured = [name for name in found if name not in measured]
    if unmeasured:
        draft.warn(f"Not measured, too few cases: {some(unmeasured)}.")
    parts: list[Table | Picture | str] = [picture, table]
    parts += [*_values(evidence), *_compared(evidence)]
    return Section(id="tail", title="Models at training", intro=intro, parts=parts)


def _values(evidence: Evidence) -> Iterator[Table]:
    """Regressions, which no service runs."""
    found = mapping(evidence.metrics, "values")
    if found:
        yield Table(
            caption="Models of values on the purged tail",
            columns=("model", "mean error", "R2", "rank correlation", "95 % interval", "rows"),
            rows=[
                (
                    name,
                    number(m.get("mae")),
                    number(m.get("r2")),
                    number(m.get("rank")),
                    interval(m.get("rank_low"), m.get("rank_high")),
                    whole(m.get("rows")),
                )
                for name, m in found.items()
            ],
        )


def _compared(evidence: Evidence) -> Iterator[Table]:
    """The formulas of the score, as training compared them."""
    found = mapping(evidence.metrics, "score")
    formulas = mapping(found, "compared")
    if formulas:
        yield Table(
            caption=(
                f"Does the score know the direction? Formulas on the purged tail (this release "
                f"uses {found.get('kind')}, the best of them is {found.get('best')})"
            ),
            columns=("formula", "AUC of direction", "95 % interval", "rank correlation", "cases"),
            rows=[
                (
                    name,
                    number(each.get("auc")),
                    interval(each.get("auc_low"), each.get("auc_high")),
                    number(each.get("rank_correlation")),
                    whole(each.get("cases")),
                )
                for name, each in formulas.items()
            ],
        )


def folds(evidence: Evidence, draft: Draft) -> Section:
    """Walk-forward figures, per model and per fold."""
    parts: list[Table | Picture | str] = []
    missing = []
    manifest = evidence.manifest
    for one in evidence.symbols:
        rolling = one.rolling
        if rolling is None:
            missing.append(run_it(one, "No walk-forward rows", "rolling"))
            continue
        _same_models(draft, one, rolling, manifest)
        for line in rolling.metrics.get("alarms", ()):
            draft.warn(f"Too good: {one.symbol}: {line}.")
        parts += _fold_parts(one, rolling, manifest, draft)
    if missing and len(missing) == len(evidence.symbols):
        draft.warn(
            "No walk-forward evaluation: all that is known of these models comes from one stretch "
            "of time. Run `python -m trainer rolling`."
        )
    return Section(
        id="folds",
        title="Walk-forward folds",
        intro=(
            "The recipes, retrained before each fold on the rows before it and purged by what the "
            "labels look at, and measured on the fold. The release's own models are not used: no "
            "row here was seen by the model that judged it."
        ),
        parts=parts,
        missing=missing,
    )


def _fold_parts(
    one: SymbolEvidence, rolling: Rolling, manifest: Manifest, draft: Draft
) -> Iterator[Table | Picture | str]:
    metrics = rolling.metrics
    of_fold = {int(n): fold for n, fold in mapping(metrics, "folds").items()}
    baselines = mapping(metrics, "baselines")
    rows: list[Sequence[str]] = []
    spreads: list[figures.Spread] = []
    no_better: list[str] = []
    for model, m in mapping(metrics, "models").items():
        if m.get("auc") is None:
            rows.append((model, *["–"] * 10, whole(m.get("rows"))))
            continue
        label = rolling.label_of(model)
        singles = [fold["models"].get(model, {}).get("auc") for fold in of_fold.values()]
        known = [single for single in singles if single is not None]
        beside = baselines.get(label, {})
        spreads.append(
            figures.Spread(
                name=model,
                value=m["auc"],
                low=or_nan(m.get("auc_low")),
                high=or_nan(m.get("auc_high")),
                singles=known,
                alarm=_alarm(label, manifest)[0],
            )
        )
        rows.append(
            (
                model,
                number(m["auc"]),
                interval(m.get("auc_low"), m.get("auc_high")),
                number(m.get("auc_mean")),
                f"{min(known):.3f} .. {max(known):.3f}" if known else "–",
                interval(m.get("null_low"), m.get("null_high")),
                number(beside.get("volatility", {}).get("auc")),
                number(beside.get("clock", {}).get("auc")),
                number(m.get("lift"), 1),
                number(m.get("brier"), 4),
                percent(m.get("skill")),
                whole(m.get("rows")),
            )
        )
        best = max(
            (
                b["auc"]
                for b in (beside.get("volatility"), beside.get("clock"))
                if b and b.get("auc") is not None
            ),
            default=None,
        )
        if best is not None and best >= m["auc"]:
            no_better.append(model)
    if no_better:
        draft.warn(
            f"{one.symbol}: {counted(len(no_better), 'model')} of {len(rows)} rank no better over "
            "the folds than volatility alone or the clock alone, which know no direction: "
            f"{some(no_better)}."
        )
    if spreads:
        values = [spread.value for spread in spreads]
        yield draft.picture(
            f"{one.symbol}-auc-folds",
            f"{one.symbol}: AUC over {counted(len(of_fold), 'fold')}",
            lambda: figures.dots(spreads, "AUC (0.5 = chance, 1 = perfect ranking)", 0.5),
            f"All rows together between {min(values):.3f} and {max(values):.3f}; each ring is one "
            "fold. Rings far apart: the skill came and went with the market.",
            "that the next fold lies among them, or that the score knows the direction.",
        )
    yield Table(
        caption=f"{one.symbol}: models over all folds",
        columns=(
            "model",
            "AUC",
            "95 % interval",
            "mean of folds",
            "lowest .. highest fold",
            "band without knowledge",
            "AUC of volatility alone",
            "AUC of the clock alone",
            "AP / base rate",
            "Brier",
            "log-loss saved",
            "rows",
        ),
        rows=rows,
    )
    if isinstance(metrics.get("null"), str):
        yield f"Band without knowledge: {metrics['null']}."
    yield Table(
        caption=f"{one.symbol}: folds",
        columns=(
            "fold",
            "tested from (UTC)",
            "until",
            "rows tested",
            "rows trained on",
            "mean AUC of models",
            "AUC of the score's direction",
        ),
        rows=[_fold_row(fold, of_fold.get(int(fold["fold"]), {})) for fold in metrics["plan"]],
    )
    for skipped in metrics.get("skipped", ()):
        draft.warn(
            f"{one.symbol}: fold {skipped.get('fold')} from {skipped.get('from')} was left out: "
            f"{skipped.get('why')}."
        )


def _fold_row(plan: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[str, ...]:
    aucs = [m.get("auc") for m in mapping(found, "models").values()]
    known = [value for value in aucs if value is not None]
    return (
        str(plan["fold"]),
        minute(plan["test"][0][0]),
        minute(plan["test"][-1][-1]),
        whole(plan.get("test_rows")),
        whole(plan.get("train_rows")),
        number(float(np.mean(known)) if known else None),
        number(mapping(found, "score").get("auc")),
    )


def calibration(evidence: Evidence, draft: Draft) -> Section:
    """Reliability of every model, out of sample."""
    parts: list[Table | Picture | str] = []
    missing = []
    for one in evidence.symbols:
        rolling = one.rolling
        if rolling is None:
            missing.append(run_it(one, "No outputs to compare with what happened", "rolling"))
            continue
        found = {
            name: bins for name, bins in mapping(rolling.metrics, "calibration").items() if bins
        }
        if not found:
            missing.append(run_it(one, "No row with an output and a known label", "rolling"))
            continue
        curves = [
            figures.Curve(
                panel=rolling.label_of(model),
                name=model.rpartition("_")[2],
                said=np.array([b["output"] for b in bins]),
                happened=np.array([b["happened"] for b in bins]),
            )
            for model, bins in found.items()
        ]
        of_model = mapping(rolling.metrics, "models")
        known = {m: of_model[m]["ece"] for m in found if of_model.get(m, {}).get("ece") is not None}
        worst = max(known, key=lambda model: known[model], default=None)
        parts.append(
            draft.picture(
                f"{one.symbol}-calibration",
                f"{one.symbol}: said and happened",
                functools.partial(figures.reliability, curves),
                "Rows sorted by output and cut into bins of equal size. On the dashed line an "
                "output of 20 % came true in 20 % of the cases."
                + (
                    f" The largest mean distance is {percent(known[worst])} ({worst})."
                    if worst
                    else ""
                ),
                "how well rows are told apart (that is the AUC), or that it stays so: calibration "
                "does not follow a change of volatility.",
            )
        )
        parts.append(
            Table(
                caption=f"{one.symbol}: calibration over all folds",
                columns=("model", "mean distance (ECE)", "mean output", "cases", "output / cases"),
                rows=[
                    (
                        model,
                        percent(of_model[model].get("ece"), 2),
                        percent(of_model[model].get("mean_output")),
                        percent(of_model[model].get("base_rate")),
                        number(of_model[model].get("calibration"), 2),
                    )
                    for model in known
                ],
            )
        )
        off = [m for m in known if not 0.5 <= or_nan(of_model[m].get("calibration")) <= 2]
        if off:
            draft.warn(
                f"{one.symbol}: outputs are no probabilities, on average more than twice or less "
                f"than half of what happened: {some(off)}."
            )
    return Section(
        id="calibration",
        title="Calibration",
        intro="Whether an output may be read as a probability, on the rows of the folds.",
        parts=parts,
        missing=missing,
    )


def _alarm(label: str, manifest: Manifest) -> tuple[float, float]:
    """AUC of all folds and of a single one above which a leak is likelier than skill; NaN: no rule
    (they were measured on candles of 1m with a horizon of 180)."""
    entry = manifest.labels.get(label)
    if entry is not None and (entry.horizon, manifest.interval) == (180, "1m"):
        for form, levels in _ALARMS:
            if form.fullmatch(label):
                return levels
    return math.nan, math.nan


def _alarms(
    draft: Draft,
    manifest: Manifest,
    where: str,
    judged: Mapping[str, tuple[float, Sequence[float]]],
) -> None:
    for model, (mean, singles) in judged.items():
        entry = manifest.models.get(model)
        label = entry.label if entry is not None else re.sub(r"_[kfd]+_\w+$", "", model)
        all_level, one_level = _alarm(label, manifest)
        if mean > all_level:
            found, level = mean, all_level
        elif singles and max(singles) > one_level:
            found, level = max(singles), one_level
        else:
            continue
        draft.warn(
            f"Too good: {model} has an AUC of {found:.3f} {where}, above the {level:.2f} that "
            "honest runs of this label stay below. Look for a leak before anything else."
        )


def _same_models(draft: Draft, one: SymbolEvidence, rolling: Rolling, manifest: Manifest) -> None:
    here, there = set(rolling.outputs), {*manifest.models, *manifest.values}
    if here != there:
        other = sorted(here ^ there)
        draft.warn(
            f"The walk-forward rows of {one.symbol} are of other models than this release "
            f"({some(other)}): their figures are not this release's. Run rolling with its config."
        )
