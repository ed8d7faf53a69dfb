"""The report's sections: from what was measured to tables, figures and warnings.

Every section stands for itself: where its data is missing it says which command gives it.
"""

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from shared.klines import KLINE_COLUMNS
from shared.releases import Manifest, Thresholds
from trainer import figures
from trainer.evidence import Evidence, Rolling, SymbolEvidence
from trainer.importance import Importance, groups, meaning
from trainer.page import Page, Picture, Section, Table

Floats = npt.NDArray[np.float64]

# Fewer stretches of one label horizon, none of which overlap, than this say little.
_FEW_HORIZONS = 200
_WIDE_INTERVAL = 0.1
# machine-learning reference, section 0: label -> AUC above which an honest run has not been seen,
# (mean over folds, a single fold). Measured on 1m BTCUSDT candles with a horizon of 180.
_ALARMS = (
    (re.compile(r"(high|low)_\d\d"), (0.80, 0.86)),
    (re.compile(r"(high|low)v(_\d{3})?"), (0.74, 0.78)),
)
_GAPS_SHOWN = 15
_LAST_CANDLES = 960
_SHOWN_SHARE_OF_GAPS = 0.01


@dataclass(slots=True)
class Draft:
    """What the sections share while they are written. png: folder for every figure, or None."""

    png: Path | None = None
    warnings: list[str] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def picture(
        self, name: str, title: str, draw: Callable[[], Figure], says: str, says_not: str
    ) -> Picture:
        name = self._fresh(name)
        if (
            self.png is not None
        ):  # drawn anew: what was laid out once is laid out a little otherwise
            figures.png(draw(), self.png / f"{name}.png")
        narrow = figures.svg(draw(), name, escape(f"{title}. {says}"))
        return Picture(title=title, says=says, says_not=says_not, narrow=narrow)

    def broad(
        self, name: str, title: str, draw: Callable[[bool], Figure], says: str, says_not: str
    ) -> Picture:
        """A figure over the page's whole width, drawn once more for narrow screens."""
        name = self._fresh(name)
        if self.png is not None:
            figures.png(draw(True), self.png / f"{name}.png")
        label = escape(f"{title}. {says}")
        return Picture(
            title=title,
            says=says,
            says_not=says_not,
            narrow=figures.svg(draw(False), f"{name}-narrow", label),
            wide=figures.svg(draw(True), name, label),
            is_broad=True,
        )

    def _fresh(self, name: str) -> str:
        base = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        name, number = base, 1
        while name in self.figures:
            number += 1
            name = f"{base}-{number}"
        self.figures.append(name)
        return name


# --- how good the models are ---------------------------------------------------------------------


def tail(evidence: Evidence, draft: Draft) -> Section:
    """The release's own measurement: the purged end of its training data."""
    manifest = evidence.manifest
    found = {name: dict(manifest.metrics.get(name, {})) for name in manifest.models}
    measured = {name: m for name, m in found.items() if m.get("auc") is not None}
    training = manifest.training
    horizon = _horizon(manifest)
    intro = (
        f"Each model was fitted once without the last {training.test_rows:,} rows (from "
        f"{when(training.test_start_ms)}, every {_nth(training.stride)} candle, purged of labels "
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
                _interval(m.get("auc_low"), m.get("auc_high")),
                number(m.get("ap")),
                _lift(m.get("ap"), m.get("base_rate")),
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
            value=_nan(m.get("auc")),
            low=_nan(m.get("auc_low")),
            high=_nan(m.get("auc_high")),
            alarm=_alarm(manifest.models[name].label, manifest)[0],
        )
        for name, m in measured.items()
    ]
    values = [spread.value for spread in spreads]
    picture = draft.picture(
        "auc-tail",
        "AUC on the purged tail",
        lambda: figures.dots(spreads, "AUC (0.5 = chance, 1 = perfect ranking)", 0.5),
        f"{_span(len(values), 'model')} between {min(values):.3f} and {max(values):.3f}: the "
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
        if _nan(m.get("auc_high")) - _nan(m.get("auc_low")) > _WIDE_INTERVAL
    ]
    if vague:
        draft.warn(
            f"The 95 % interval of the AUC is wider than {_WIDE_INTERVAL} for "
            f"{_some(vague)} on the purged tail."
        )
    chance = [
        name
        for name, m in measured.items()
        if m.get("auc_low") is not None and _nan(m["auc_low"]) <= 0.5 <= _nan(m.get("auc_high"))
    ]
    if chance:
        draft.warn(f"Not told apart from chance on the purged tail: {_some(chance)}.")
    _alarms(
        draft,
        manifest,
        "on the purged tail",
        {name: (spread.value, ()) for name, spread in zip(measured, spreads, strict=True)},
    )
    unmeasured = [name for name in found if name not in measured]
    if unmeasured:
        draft.warn(f"Not measured, too few cases: {_some(unmeasured)}.")
    return Section(id="tail", title="Models at training", intro=intro, parts=(picture, table))


def folds(evidence: Evidence, draft: Draft) -> Section:
    """Walk-forward figures, per model and per fold."""
    parts: list[Table | Picture | str] = []
    missing = []
    manifest = evidence.manifest
    for one in evidence.symbols:
        rolling = one.rolling
        if rolling is None:
            missing.append(_run(one, "No walk-forward rows", "rolling"))
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
    of_fold = {int(n): fold for n, fold in _dict(metrics, "folds").items()}
    baselines = _dict(metrics, "baselines")
    rows: list[Sequence[str]] = []
    spreads: list[figures.Spread] = []
    no_better: list[str] = []
    for model, m in _dict(metrics, "models").items():
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
                low=_nan(m.get("auc_low")),
                high=_nan(m.get("auc_high")),
                singles=known,
                alarm=_alarm(label, manifest)[0],
            )
        )
        rows.append(
            (
                model,
                number(m["auc"]),
                _interval(m.get("auc_low"), m.get("auc_high")),
                number(m.get("auc_mean")),
                f"{min(known):.3f} .. {max(known):.3f}" if known else "–",
                _interval(m.get("null_low"), m.get("null_high")),
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
            f"{one.symbol}: {_span(len(no_better), 'model')} of {len(rows)} rank no better over "
            "the folds than volatility alone or the clock alone, which know no direction: "
            f"{_some(no_better)}."
        )
    if spreads:
        values = [spread.value for spread in spreads]
        yield draft.picture(
            f"{one.symbol}-auc-folds",
            f"{one.symbol}: AUC over {_span(len(of_fold), 'fold')}",
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
    aucs = [m.get("auc") for m in _dict(found, "models").values()]
    known = [value for value in aucs if value is not None]
    return (
        str(plan["fold"]),
        _short(plan["test"][0][0]),
        _short(plan["test"][-1][-1]),
        whole(plan.get("test_rows")),
        whole(plan.get("train_rows")),
        number(float(np.mean(known)) if known else None),
        number(_dict(found, "score").get("auc")),
    )


def calibration(evidence: Evidence, draft: Draft) -> Section:
    """Reliability of every model, out of sample."""
    parts: list[Table | Picture | str] = []
    missing = []
    for one in evidence.symbols:
        rolling = one.rolling
        if rolling is None:
            missing.append(_run(one, "No outputs to compare with what happened", "rolling"))
            continue
        found = {name: bins for name, bins in _dict(rolling.metrics, "calibration").items() if bins}
        if not found:
            missing.append(_run(one, "No row with an output and a known label", "rolling"))
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
        of_model = _dict(rolling.metrics, "models")
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
        off = [m for m in known if not 0.5 <= _nan(of_model[m].get("calibration")) <= 2]
        if off:
            draft.warn(
                f"{one.symbol}: outputs are no probabilities, on average more than twice or less "
                f"than half of what happened: {_some(off)}."
            )
    return Section(
        id="calibration",
        title="Calibration",
        intro="Whether an output may be read as a probability, on the rows of the folds.",
        parts=parts,
        missing=missing,
    )


# --- what the models draw on ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Importance on the rows of one symbol. missing: why there is none; "" = there is."""

    symbol: str
    found: Sequence[Importance] = ()
    rows: int = 0
    first_ms: int = 0
    last_ms: int = 0
    in_sample: bool = False
    missing: str = ""


def importance(evidence: Evidence, measured: Sequence[Measured], draft: Draft) -> Section:
    """What shuffling each group of features costs the release's models."""
    parts: list[Table | Picture | str] = []
    for one in measured:
        if one.missing:
            continue
        if one.in_sample:
            draft.warn(
                f"In-sample: the importance of feature groups on {one.symbol} was measured on rows "
                "that the release was trained on, as there are too few later ones."
            )
        first = one.found[0]
        parts.append(
            draft.picture(
                f"{one.symbol}-importance",
                f"{one.symbol}: AUC lost when a group is shuffled",
                lambda one=one: figures.bars(  # type: ignore[misc]
                    [i.group for i in one.found],
                    np.array([i.mean_drop for i in one.found]),
                    np.array([i.mean_spread for i in one.found]),
                    "AUC lost, mean over the models",
                ),
                f"{first.group} costs most: {first.mean_drop:.3f} of AUC when its "
                f"{_span(first.features, 'feature')} are shuffled. Lines: half the distance "
                "between the repeats.",
                "that a group with a short bar is useless: groups that carry the same news stand "
                "in for each other.",
            )
        )
        parts.append(
            Table(
                caption=(
                    f"{one.symbol}: {one.rows:,} rows from {when(one.first_ms)} to "
                    f"{when(one.last_ms)} UTC, "
                    + ("trained on" if one.in_sample else "later than the training data")
                ),
                columns=(
                    "group",
                    "meaning",
                    "features",
                    "AUC lost",
                    "log-loss gained (nats)",
                    "most affected model",
                ),
                rows=[
                    (
                        i.group,
                        meaning(i.group),
                        whole(i.features),
                        number(i.mean_drop, 4),
                        number(i.mean_rise, 4),
                        f"{(top := max(i.auc_drop, key=lambda m: i.auc_drop[m]))} "
                        f"({i.auc_drop[top]:.3f})",
                    )
                    for i in one.found
                ],
                texts=frozenset({1, 5}),
            )
        )
    return Section(
        id="importance",
        title="Importance by feature group",
        intro=(
            "A group is a family of features that differ in their window. Its values are shuffled "
            "among recent rows, and the release's own models run on them."
        ),
        parts=parts,
        missing=[one.missing for one in measured if one.missing],
    )


# --- the score -----------------------------------------------------------------------------------


def scores(evidence: Evidence, draft: Draft) -> Section:
    """Distribution of the out-of-sample score, and what followed each tenth of it."""
    parts: list[Table | Picture | str] = []
    missing = []
    manifest = evidence.manifest
    horizon = _horizon(manifest)
    buy, sell = manifest.thresholds.buy, manifest.thresholds.sell
    for one in evidence.symbols:
        if one.rolling is None:
            missing.append(_run(one, "No out-of-sample score", "rolling"))
            continue
        score = one.rolling.score
        known = score[~np.isnan(score)]
        if not len(known):
            missing.append(_run(one, "No row has a score", "rolling"))
            continue
        over, under = float((known > buy).mean()), float((known < sell).mean())
        parts.append(
            draft.picture(
                f"{one.symbol}-score",
                f"{one.symbol}: distribution of the score",
                lambda score=score: figures.histogram(  # type: ignore[misc]
                    score, "score (-1 .. +1)", {"buy above": buy, "sell below": sell}
                ),
                f"{percent(over)} of {len(known):,} rows lie above the buy threshold, "
                f"{percent(under)} below the sell threshold, half between "
                f"{np.quantile(known, 0.25):+.3f} and {np.quantile(known, 0.75):+.3f}.",
                "that a high score pays; see what followed.",
            )
        )
        if over + under == 0:
            draft.warn(
                f"{one.symbol}: no out-of-sample score crosses a threshold of this release: it "
                "would never signal."
            )
        parts += _direction(one, _dict(one.rolling.metrics, "score"), horizon, draft)
    return Section(
        id="score",
        title="Score",
        intro=(
            "The outputs of all models folded into one number between -1 (fall) and +1 (rise), on "
            "the rows of the walk-forward folds."
        ),
        parts=parts,
        missing=missing,
    )


def _direction(
    one: SymbolEvidence, found: Mapping[str, Any], horizon: int, draft: Draft
) -> Iterator[Table | Picture | str]:
    """What followed the score, as rolling measured it."""
    deciles = [d for d in found.get("deciles", ()) if d.get("mean_bp") is not None]
    if deciles:
        yield draft.picture(
            f"{one.symbol}-deciles",
            f"{one.symbol}: what followed, by tenth of the score",
            functools.partial(
                figures.steps,
                [str(at + 1) for at in range(len(deciles))],
                np.array([d["mean_bp"] for d in deciles]),
                np.array([_nan(d.get("mean_bp_low")) for d in deciles]),
                np.array([_nan(d.get("mean_bp_high")) for d in deciles]),
                np.array([_nan(d.get("median_bp")) for d in deciles]),
                "tenth of the rows by score (1 = lowest)",
                f"return {horizon} candles later (bp)",
            ),
            f"Mean return after {horizon} candles, before fees: {deciles[0]['mean_bp']:+.1f} bp in "
            f"the lowest tenth, {deciles[-1]['mean_bp']:+.1f} bp in the highest (1 bp = 0.01 %). "
            "Buying and selling at a fee of 0.1 % costs 20 bp.",
            "what a trade earns. Where the lines of two tenths overlap, they cannot be told apart.",
        )
        yield Table(
            caption=f"{one.symbol}: tenths of the score",
            columns=(
                "tenth",
                "score from",
                "to",
                "mean return (bp)",
                "95 % interval",
                "median return (bp)",
                "up before down",
                "rows",
            ),
            rows=[
                (
                    str(at + 1),
                    f"{d['score_from']:+.3f}",
                    f"{d['score_to']:+.3f}",
                    f"{d['mean_bp']:+.1f}",
                    "–"
                    if d.get("mean_bp_low") is None or d.get("mean_bp_high") is None
                    else f"{d['mean_bp_low']:+.1f} .. {d['mean_bp_high']:+.1f}",
                    "–" if d.get("median_bp") is None else f"{d['median_bp']:+.1f}",
                    percent(d.get("up_first")),
                    whole(d.get("rows")),
                )
                for at, d in enumerate(deciles)
            ],
        )
    yield Table(
        caption=f"{one.symbol}: does the score know the direction?",
        columns=("measure", "value", "95 % interval", "band without knowledge", "rows"),
        rows=[
            (
                "AUC: up one sigma before down one sigma",
                number(found.get("auc")),
                _interval(found.get("auc_low"), found.get("auc_high")),
                _interval(found.get("null_low"), found.get("null_high")),
                whole(found.get("resolved")),
            ),
            (
                f"rank correlation with the return of {horizon} candles",
                number(found.get("rank")),
                _interval(found.get("rank_low"), found.get("rank_high")),
                "–",
                whole(found.get("rows")),
            ),
        ],
    )
    value, high = found.get("auc"), found.get("null_high")
    if value is not None and high is not None and value <= high:
        draft.warn(
            f"{one.symbol}: the score does not tell up from down: its AUC of {value:.3f} is not "
            f"above what a score without knowledge reaches by luck ({high:.3f})."
        )


# --- signals and trades --------------------------------------------------------------------------


def candles(evidence: Evidence, draft: Draft) -> Section:
    """Signals on the last candles that have a score."""
    parts: list[Table | Picture | str] = []
    missing = []
    thresholds = evidence.manifest.thresholds
    for one in evidence.symbols:
        raster, rolling = one.raster, one.rolling
        if raster is None:
            missing.append(_run(one, "No candles", "merge"))
            continue
        if rolling is None:
            missing.append(_run(one, "No out-of-sample score", "rolling"))
            continue
        scored = rolling.times[~np.isnan(rolling.score)]
        if not len(scored):
            missing.append(_run(one, "No row has a score", "rolling"))
            continue
        # side by side on the raster, from the last scored candle backwards
        stop = int(np.searchsorted(raster.open_time_ms, scored[-1])) + 1
        start = max(0, stop - _LAST_CANDLES)
        times = raster.open_time_ms[start:stop]
        if stop > len(raster) or not stop:
            missing.append(
                f"The candles of {one.symbol} end before its score: run `trainer merge` again."
            )
            continue
        score = _at(times, rolling.times, rolling.score)
        sides = np.where(score > thresholds.buy, 1, np.where(score < thresholds.sell, -1, 0))
        before = np.concatenate([[0], sides[:-1]])
        prices = {
            name: raster.kline[start:stop, KLINE_COLUMNS.index(name)]
            for name in ("open", "high", "low", "close")
        }
        bought, sold = (np.flatnonzero((sides == side) & (before != side)) for side in (1, -1))
        marks = [
            figures.Marks(
                name="BUY begins", times=times[bought], prices=prices["low"][bought], up=True
            ),
            figures.Marks(
                name="SELL begins", times=times[sold], prices=prices["high"][sold], up=False
            ),
        ]
        line = figures.Line(name="score", times=times, values=score)
        parts.append(
            draft.broad(
                f"{one.symbol}-signals",
                f"{one.symbol}: signals over the last {len(times):,} scored candles",
                functools.partial(
                    _candles_figure, figures.Candles(times=times, **prices), marks, line, thresholds
                ),
                f"{_span(len(bought), 'stretch', 'stretches')} above the buy threshold and "
                f"{len(sold)} below the sell threshold begin between {when(int(times[0]))} and "
                f"{when(int(times[-1]))} UTC. Candles are joined so that they can be told apart; "
                "marks stand at the exact time.",
                "how signals fare in general: this is one stretch of time, the latest.",
            )
        )
    return Section(
        id="signals",
        title="Signals over the candles",
        intro=(
            "The out-of-sample score of the folds beside the price, and where it crosses this "
            "release's thresholds."
        ),
        parts=parts,
        missing=missing,
    )


def _candles_figure(
    rows: figures.Candles,
    marks: Sequence[figures.Marks],
    score: figures.Line,
    thresholds: Thresholds,
    wide: bool,
) -> Figure:
    lines = {"buy above": thresholds.buy, "sell below": thresholds.sell}
    return figures.candles(rows, marks, score, lines, wide=wide)


def _at(times: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], values: Floats) -> Floats:
    """`values` of `rows` at `times`, both rising; NaN where there is no such row."""
    place = np.minimum(np.searchsorted(rows, times), len(rows) - 1)
    return np.where(rows[place] == times, values[place], np.nan)


# --- the data ------------------------------------------------------------------------------------


def gaps(evidence: Evidence, draft: Draft) -> Section:
    """Candles that are missing in the merged data."""
    parts: list[Table | Picture | str] = []
    missing = []
    for one in evidence.symbols:
        raster = one.raster
        if raster is None:
            missing.append(_run(one, "No merged candles", "merge"))
            continue
        found = raster.gaps()
        lost = sum(rows for _, rows in found)
        span = f"{when(int(raster.open_time_ms[0]))} to {when(int(raster.open_time_ms[-1]))} UTC"
        if not found:
            parts.append(f"{one.symbol}: no candle is missing among {len(raster):,}, {span}.")
            continue
        share = lost / len(raster)
        if share > _SHOWN_SHARE_OF_GAPS:
            draft.warn(f"{one.symbol}: {percent(share)} of the candles are missing.")
        starts = np.array([start for start, _ in found], np.int64)
        lengths = np.array([rows for _, rows in found], np.float64)
        parts.append(
            draft.broad(
                f"{one.symbol}-gaps",
                f"{one.symbol}: missing candles",
                lambda wide, raster=raster, starts=starts, lengths=lengths: figures.gaps(  # type: ignore[misc]
                    int(raster.open_time_ms[0]),
                    int(raster.open_time_ms[-1]),
                    starts,
                    lengths,
                    wide=wide,
                ),
                f"{_span(len(found), 'gap')}, {lost:,} of {len(raster):,} candles "
                f"({percent(share, 3)}), {span}.",
                "why: the exchange was down, or the download is not complete "
                "(`python -m trainer download` repairs what it can).",
            )
        )
        longest = sorted(found, key=lambda gap: (-gap[1], gap[0]))[:_GAPS_SHOWN]
        parts.append(
            Table(
                caption=f"{one.symbol}: the longest gaps ({len(longest)} of {len(found):,})",
                columns=("first missing candle (UTC)", "missing candles"),
                rows=[(when(start), whole(rows)) for start, rows in longest],
            )
        )
    return Section(
        id="gaps",
        title="Data gaps",
        intro=(
            "A missing candle is a row without values. Features skip it, labels whose window holds "
            "one are not known, and no score is given for it."
        ),
        parts=parts,
        missing=missing,
    )


def origin(evidence: Evidence, draft: Draft) -> Section:
    """What the release was made from."""
    manifest = evidence.manifest
    left_out = set(manifest.left_out)
    if left_out:
        draft.warn(
            f"{_span(len(left_out), 'feature')} left out, without a value in more than half of the "
            f"training rows: {_some(sorted(left_out))}."
        )
    for name, label in manifest.labels.items():
        if label.left_out:
            draft.warn(f"No model predicts {name}: {label.left_out}.")
    by_group = groups(manifest.features)
    names = manifest.features
    parts: list[Table | Picture | str] = [
        Table(
            caption="Models and their files",
            columns=("model", "label", "algorithm", "speaks for", "file", "sha256"),
            rows=[
                (
                    name,
                    model.label,
                    model.algorithm,
                    "rise" if name in manifest.score.high else "fall",
                    model.file,
                    model.sha256[:16],
                )
                for name, model in manifest.models.items()
            ],
            texts=frozenset({1, 2, 3, 4, 5}),
        ),
        Table(
            caption="Labels",
            columns=("label", "candles ahead", "definition"),
            rows=[
                (name, whole(label.horizon), label.definition)
                for name, label in manifest.labels.items()
            ],
            texts=frozenset({2}),
        ),
        Table(
            caption=f"Features, {len(names)} in {_span(len(by_group), 'group')}",
            columns=("group", "features", "left out", "names"),
            rows=[
                (
                    group,
                    whole(len(columns)),
                    whole(sum(names[at] in left_out for at in columns)),
                    ", ".join(names[at] for at in columns),
                )
                for group, columns in by_group.items()
            ],
            texts=frozenset({3}),
        ),
    ]
    if manifest.parity:
        parts.append(
            Table(
                caption="Parity of the exported models with the trained ones",
                columns=("measure", "value"),
                rows=[
                    (
                        name.replace("_", " "),
                        f"{value:,}" if isinstance(value, int) else f"{value:.3g}",
                    )
                    for name, value in manifest.parity.items()
                ],
            )
        )
    return Section(
        id="origin",
        title="What it is made of",
        intro=f"Score: {manifest.score.kind} of the models that speak for a rise and for a fall.",
        parts=parts,
    )


# --- the page ------------------------------------------------------------------------------------

SECTIONS: tuple[Callable[[Evidence, Draft], Section], ...] = (
    tail,
    folds,
    calibration,
    scores,
    candles,
    gaps,
    origin,
)
"""All but importance, which needs more than what was read; it goes after calibration."""


def whole_page(evidence: Evidence, written: Sequence[Section], draft: Draft, note: str) -> Page:
    """note: what the bundle says about this machine; "" = nothing."""
    manifest = evidence.manifest
    training = manifest.training
    if note:
        draft.warn(f"{note}.")
    facts = (
        ("Symbols", ", ".join(manifest.symbols)),
        ("Candles", manifest.interval),
        ("Trained on", f"{when(training.start_ms)} to {when(training.end_ms)} UTC"),
        ("Rows", f"{training.rows:,}, every {_nth(training.stride)} candle"),
        (
            "Models",
            f"{len(manifest.models)} for {len({m.label for m in manifest.models.values()})} labels",
        ),
        (
            "Features",
            f"{len(manifest.used)} of {len(manifest.features)}, over the last "
            f"{manifest.features_horizon:,} candles",
        ),
        (
            "Thresholds",
            f"buy above {manifest.thresholds.buy:g}, sell below {manifest.thresholds.sell:g}",
        ),
        ("Code", f"itb {manifest.code_version}, onnxruntime {manifest.runtime.onnxruntime}"),
    )
    return Page(
        title=f"Release {manifest.id}",
        subtitle=f"Report on models made {manifest.created} (UTC)",
        facts=facts,
        warnings=draft.warnings,
        sections=written,
    )


# --- words and numbers ---------------------------------------------------------------------------


def number(value: float | int | None, digits: int = 3) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:,.{digits}f}"


def percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None or math.isnan(share) else f"{100 * share:.{digits}f} %"


def whole(value: float | int | None) -> str:
    return "–" if value is None else f"{int(value):,}"


def when(time_ms: int) -> str:
    """`2026-11-22 12:00`, UTC."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def _nan(value: Any) -> float:
    return math.nan if value is None else float(value)


def _dict(found: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A mapping inside JSON; empty where there is none."""
    inner = found.get(key)
    return inner if isinstance(inner, dict) else {}


def _interval(low: Any, high: Any) -> str:
    return "–" if low is None or high is None else f"{low:.3f} .. {high:.3f}"


def _lift(ap: Any, base: Any) -> str:
    return "–" if ap is None or not base else f"{ap / base:.1f}"


def _short(iso_time: Any) -> str:
    """`2026-11-22 12:00` of `2026-11-22T12:00:00Z`."""
    return str(iso_time).replace("T", " ").removesuffix("Z").removesuffix(":00")


def _span(count: int, noun: str, nouns: str = "") -> str:
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"


def _nth(stride: int) -> str:
    ending = (
        "th" if 10 <= stride % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(stride % 10, "th")
    )
    return f"{stride}{ending}"


def _some(names: Sequence[str], most: int = 6) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _run(one: SymbolEvidence, what: str, command: str) -> str:
    return f"{what} of {one.symbol} {one.interval}: `python -m trainer {command}` gives them."


def _horizon(manifest: Manifest) -> int:
    """The longest of the labels that are predicted, in candles."""
    return max(manifest.labels[model.label].horizon for model in manifest.models.values())


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
    here, there = set(rolling.outputs), set(manifest.models)
    if here != there:
        other = sorted(here ^ there)
        draft.warn(
            f"The walk-forward rows of {one.symbol} are of other models than this release "
            f"({_some(other)}): their figures are not this release's. Run rolling with its config."
        )
