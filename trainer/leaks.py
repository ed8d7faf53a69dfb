"""`trainer leaks`: looks for look-ahead in features, labels and the way of training.

(a) Features recomputed from candles that end earlier, or that go on otherwise, must be the same
bits: at rows anywhere, in the last label horizon and around gaps. Labels likewise, as far as their
t1 says. (b) Models trained on labels whose blocks were permuted, and on seeded random walks, must
have no skill, neither each by itself nor all together. (c) A user's own features must depend on
nothing but their window.

One verdict: a leak, no leak found, or not enough data to tell (where all models together would have
to be off by more than 0.1 of AUC to be noticed). Exit code 1 but for "no leak found". The evidence
is in `{data_folder}/{symbol}-{interval}-leaks/leaks.json`.
"""

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from shared import klinefiles
from shared.config import Settings
from shared.errors import Failure, Usage
from shared.features import FeatureSet
from shared.features.configured import configured, feature_names
from shared.klines import DEPTH_COLUMNS, KLINE_COLUMNS
from shared.times import interval_ms
from trainer import inputs, probes, rasters
from trainer.evaluate import BLOCK_WINDOWS, auc, aucs, permuted_blocks
from trainer.labels import is_value, rows_ahead
from trainer.models.cases import choose_labels, labels_to_compute
from trainer.models.fit import (
    Fitted,
    Fitter,
    Job,
    Recipe,
    check_labels,
    ends_before,
    inputs_of,
    jobs_of,
    recipes,
)
from trainer.models.rows import Rows, chosen, gather, stride_for
from trainer.probes import Finding
from trainer.progress import Bar, Progress

_DAY_MS = 86_400_000
LEVEL = 0.01
_PERMUTATIONS = 400
_FEWEST_BLOCKS = 6
# Half of the rows are tested: what is asked is whether there is skill, not how much.
_TEST_SHARE = 0.5
TOGETHER = "all models together"
# All models together that could be off by more than this and not be noticed say nothing.
WIDEST = 0.1
# The walk's standard deviation over a label's horizon: all of the seed's thresholds have cases.
_WALK_SIGMA = 0.013


def add_arguments(parser: argparse.ArgumentParser) -> None:
    inputs.add_options(parser)
    parser.add_argument("--cuts", type=int, default=16, metavar="N", help="rows anywhere (16)")
    parser.add_argument(
        "--days", type=float, default=180, metavar="D", help="trailing days for (b) (180)"
    )
    parser.add_argument("--walks", type=int, default=2, metavar="N", help="random walks (2)")
    parser.add_argument(
        "--walk-rows", type=int, default=60_000, metavar="N", help="candles of a walk (60,000)"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="default: trainer.seed")
    parser.add_argument("--quick", action="store_true", help="(a) and (c) only: train nothing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Skill:
    """One model on data without anything to learn. sd: of its AUC when blocks of the test rows'
    labels change places, as they did in `drawn`; z: (auc - 0.5) / sd; block: rows of a block."""

    test: str
    model: str
    auc: float
    sd: float
    rows: int
    block: int
    drawn: npt.NDArray[np.float64] = field(repr=False, compare=False)

    @property
    def z(self) -> float:
        return (self.auc - 0.5) / self.sd

    def as_dict(self, limit: float) -> dict[str, Any]:
        return {
            "test": self.test,
            "model": self.model,
            "auc": round(self.auc, 6),
            "low": round(0.5 - limit * self.sd, 6),
            "high": round(0.5 + limit * self.sd, 6),
            "rows": self.rows,
        }


def run(settings: Settings, args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    started = time.monotonic()
    for name, least in (("cuts", 1), ("walks", 0), ("days", 0.01), ("walk_rows", 3000)):
        if getattr(args, name) < least:
            raise Usage(f"--{name.replace('_', '-')}: at least {least:g}")
    plan = recipes(settings.algorithms)
    check_labels(plan, settings.labels)
    names = feature_names(settings)
    features = configured(settings)
    data = inputs.read(settings, args, features)
    seed = settings.trainer.seed if args.seed is None else args.seed
    threads = settings.trainer.threads or os.cpu_count() or 1
    findings, cuts = _structure(settings, args, data, names, seed, progress)
    skills: list[Skill] = []
    notes: list[str] = []
    if not args.quick:
        found, skills, notes = _training(
            settings, args, data, features, plan, seed, threads, progress
        )
        findings += found
    tests = list(dict.fromkeys(skill.test for skill in skills))
    together_ = [together([one for one in skills if one.test == test]) for test in tests]
    skills += together_
    limit = limit_of(len(skills))
    widest = max((limit * one.sd for one in together_), default=None)
    wanted = 0 if args.quick else 1 + args.walks
    enough = len(tests) == wanted and (widest is None or widest <= WIDEST)
    for skill in skills:
        if abs(skill.z) > limit:
            findings.append(
                Finding(
                    kind="training",
                    name=skill.model,
                    why=f"AUC {skill.auc:.3f} on {skill.test}, where there is nothing to learn; "
                    f"honest is {0.5 - limit * skill.sd:.3f} .. {0.5 + limit * skill.sd:.3f}",
                )
            )
    for note in notes:
        progress.note(note)
    result = {
        "command": "leaks",
        "leak": bool(findings),
        "enough": enough,
        "verdict": _verdict(findings, names, settings, cuts, skills, notes, widest, enough=enough),
        "findings": [finding.as_dict() for finding in findings],
        "symbols": [raster.symbol for raster in data],
        "interval": data[0].interval,
        "features": len(names),
        "labels": list(settings.labels),
        "cuts": cuts,
        "level": LEVEL,
        "level_note": f"{len(skills)} AUCs tested together: each interval is {limit:.2f} standard "
        f"deviations wide (Sidak), so that honest ones all pass with {1 - LEVEL:.0%}",
        "noticed_from": None if widest is None else round(widest, 6),
        "noticed_from_note": "an AUC of all models together that is off by so much is noticed",
        "skills": [skill.as_dict(limit) for skill in skills],
        "notes": notes,
        "rows": sum(len(raster) for raster in data),
        "seconds": round(time.monotonic() - started, 1),
    }
    text = json.dumps(_plain(result), allow_nan=False)
    for raster in data:
        folder = settings.data_folder / f"{raster.symbol}-{raster.interval}-leaks"
        with klinefiles.replacing(folder / "leaks.json") as unfinished:
            unfinished.write_text(text + "\n")
    if findings or not enough:
        if args.json:
            print(text, flush=True)
        raise Failure(str(result["verdict"]))
    return result


def summary(result: Mapping[str, Any]) -> str:
    return f"leaks: {result['verdict']}, {result['seconds']} s"


def limit_of(tests: int, level: float = LEVEL) -> float:
    """Standard deviations that one of `tests` independent figures may be off, either way, if with
    probability 1 - level none is (Sidak)."""
    each = 1 - (1 - level) ** (1 / max(tests, 1))
    return NormalDist().inv_cdf(1 - each / 2)


def _verdict(
    findings: Sequence[Finding],
    names: Sequence[str],
    settings: Settings,
    cuts: int,
    skills: Sequence[Skill],
    notes: Sequence[str],
    widest: float | None,
    *,
    enough: bool,
) -> str:
    if findings:
        more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
        return f"LEAK: {findings[0]}{more}"
    looked = f"{len(names)} features and {len(settings.labels)} labels at {cuts} cuts"
    if not enough:
        why = (
            f"all models together would have to be off by {widest:.2f} of AUC to be noticed, and "
            f"{WIDEST:g} is wanted"
            if widest is not None and widest > WIDEST
            else "; ".join(notes)
        )
        return (
            f"NOT ENOUGH DATA to tell whether the way of training leaks: {why}. Give more candles "
            f"(--days, --walk-rows), or --quick; {looked} do not look ahead"
        )
    if widest is None:
        return f"no leak found: {looked}; nothing was trained (--quick)"
    return (
        f"no leak found: {looked}, {len(skills)} AUCs without anything to learn; one of all models "
        f"together that is off by {widest:.2f} would have been noticed"
    )


# --- (a) and (c) ---------------------------------------------------------------------------------


def _structure(
    settings: Settings,
    args: argparse.Namespace,
    data: Sequence[rasters.Raster],
    names: Sequence[str],
    seed: int,
    progress: Progress,
) -> tuple[list[Finding], int]:
    path = settings.features_file
    own = probes.of_file(path, names)
    built_in = [name for name in names if name not in own]
    kernel = FeatureSet.of(built_in, interval_ms=settings.step_ms) if built_in else None
    horizon = settings.trainer.label_horizon
    lookback = configured(settings).lookback
    findings: list[Finding] = []
    count = 0
    for raster in data:
        if len(raster) < lookback + 2:
            raise Failure(
                f"{raster.symbol}: {len(raster):,} candles, and the longest feature window alone "
                f"needs {lookback:,}; give more history"
            )
        cuts = probes.cuts(raster, lookback - 1, horizon, args.cuts, seed)
        count += len(cuts)
        if kernel is not None:
            with progress.bar(f"features of {raster.symbol}", len(cuts), "cuts") as bar:
                findings += probes.features(raster, kernel, cuts, seed, bar.advance)
        if path is not None and own:
            with progress.bar(f"own features of {raster.symbol}", len(own), "features") as bar:
                findings += probes.user_features(raster, path, own, cuts, seed, bar.advance)
        with progress.bar(f"labels of {raster.symbol}", len(settings.labels), "labels") as bar:
            findings += probes.labels(raster, settings.labels, horizon, cuts, seed, bar.advance)
    return findings, count


# --- (b) -----------------------------------------------------------------------------------------


def _training(
    settings: Settings,
    args: argparse.Namespace,
    data: Sequence[rasters.Raster],
    features: FeatureSet,
    plan: Sequence[Recipe],
    seed: int,
    threads: int,
    progress: Progress,
) -> tuple[list[Finding], list[Skill], list[str]]:
    interval = data[0].interval
    tests: list[tuple[str, list[rasters.Raster], float, bool]] = [
        ("permuted labels", list(data), args.days, True)
    ]
    for walk in range(args.walks):
        walked = random_walk(interval, args.walk_rows, settings.trainer.label_horizon, seed + walk)
        days = (args.walk_rows + 1) * interval_ms(interval) / _DAY_MS
        tests.append((f"random walk {seed + walk}", [walked], days, False))
    findings: list[Finding] = []
    skills: list[Skill] = []
    notes: list[str] = []
    with progress.bar(
        "models without anything to learn", len(tests) * len(plan) * len(settings.labels), "models"
    ) as bar:
        for test, found, days, is_permuted in tests:
            try:
                rows = gather(
                    found,
                    features,
                    labels_to_compute(settings),
                    horizon=settings.trainer.label_horizon,
                    train_days=days,
                    nan_share=settings.limits.nan_share,
                    workers=threads,
                    advance=lambda count: None,
                )
                skills += skill_of(
                    rows, settings, features, plan, interval, seed, threads, test, is_permuted, bar
                )
            except Failure as error:
                if is_permuted or features.user_sha256 is None:
                    notes.append(f"{test}: not tested: {error}")
                else:
                    why = f"it fails on candles that it has not seen before: {error}"
                    findings.append(Finding(kind="feature", name="features_file", why=why))
    return findings, skills, notes


def random_walk(interval: str, rows: int, horizon: int, seed: int) -> rasters.Raster:
    """Candles without memory, of all sources: what comes next is independent of what was."""
    random = np.random.default_rng(seed)
    sigma = _WALK_SIGMA / horizon**0.5
    step = interval_ms(interval)

    def klines() -> npt.NDArray[np.float64]:
        # ten trades a candle: the price moves within it as it does from one to the next
        moves = random.normal(0, sigma / 10**0.5, (rows, 10))
        path = np.cumsum(moves, axis=1)
        start = np.concatenate([[0.0], np.cumsum(path[:-1, -1])])
        volume = random.lognormal(2, 0.5, rows)
        close = 100 * np.exp(start + path[:, -1])
        taker = volume * random.uniform(0.3, 0.7, rows)
        columns = {
            "open": 100 * np.exp(start),
            "high": 100 * np.exp(start + np.maximum(path.max(axis=1), 0)),
            "low": 100 * np.exp(start + np.minimum(path.min(axis=1), 0)),
            "close": close,
            "volume": volume,
            "quote_volume": volume * close,
            "trades": np.floor(volume * 10) + 1,
            "taker_base": taker,
            "taker_quote": taker * close,
        }
        return np.column_stack([columns[name] for name in KLINE_COLUMNS])

    first_ms = 1_600_000_000_000 // step * step
    return rasters.Raster(
        symbol="WALK",
        interval=interval,
        open_time_ms=first_ms + step * np.arange(rows, dtype=np.int64),
        kline=klines(),
        futur=klines(),
        depth=random.lognormal(0, 0.5, (rows, len(DEPTH_COLUMNS))),
        extra=dict(zip(rasters.OTHER_COLUMNS, klines().T, strict=True)),
    )


def skill_of(
    rows: Rows,
    settings: Settings,
    features: FeatureSet,
    plan: Sequence[Recipe],
    interval: str,
    seed: int,
    threads: int,
    test: str,
    is_permuted: bool,
    bar: Bar | None = None,
) -> list[Skill]:
    """Every label with every algorithm, trained as `train` does on the first half of the rows,
    measured on the others.

    A label of values is measured as "above the median". is_permuted: blocks of the labels, as long
    as they look ahead, change places, those that are
    trained on among themselves and those that are tested on among themselves.

    Raises:
        Failure: too little to train on.
    """
    config = settings.trainer
    candle_ms = interval_ms(interval)
    stride = config.stride or stride_for(len(rows))
    base = chosen(rows, candle_ms, stride)
    labels = choose_labels(rows, base, settings).kept
    start_ms = int(rows.open_ms[base[int(len(base) * (1 - _TEST_SHARE))]])

    symbols = len(np.unique(rows.symbol))

    def block_of(label: str) -> int:
        known = base[~np.isnan(rows.y[label][base])]
        ahead = rows_ahead(
            label, config.label_horizon, rows.open_ms[known], rows.t1_ms[label][known], candle_ms
        )
        return symbols * -(-ahead // stride)

    random = np.random.default_rng(seed)
    inputs_ = inputs_of(features)
    jobs = jobs_of(
        rows,
        plan,
        labels,
        step_ms=candle_ms,
        stride=stride,
        inputs=inputs_,
        allowed=ends_before(rows, start_ms),
    )
    tested = base[rows.open_ms[base] >= start_ms]
    truth: dict[str, tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]] = {}
    for label in labels:
        known = tested[~np.isnan(rows.y[label][tested])]
        y = rows.y[label][known]
        if is_permuted:
            y = permuted_blocks(y, block_of(label), random)
        truth[label] = known, y > (float(np.median(y)) if is_value(label) and len(y) else 0.5)
    if is_permuted:
        jobs = [_permuted(job, block_of(job.label), random) for job in jobs]
    usable = [
        job
        for job in jobs
        if job.cases >= 10
        and len(truth[job.label][0]) >= _FEWEST_BLOCKS * BLOCK_WINDOWS * block_of(job.label)
        and 0 < truth[job.label][1].mean() < 1
    ]
    if not usable:
        raise Failure(f"{len(rows):,} rows are too few to test whether models have skill")
    fitter = Fitter.of(rows, threads, config.seed)

    def measured(job: Job, model: Fitted) -> Skill:
        places, happened = truth[job.label]
        said = model.predict(fitter.x[places])
        return skill(test, job.name, happened, said, BLOCK_WINDOWS * block_of(job.label), seed)

    found = []
    for one in fitter.fit_each(usable, measured):
        found.append(one)
        if bar is not None:
            bar.advance(detail=f"{one.model}, {test}")
    return sorted(found, key=lambda one: one.model)


def skill(
    test: str,
    model: str,
    happened: npt.NDArray[np.bool_],
    said: npt.NDArray[np.float64],
    block: int,
    seed: int,
) -> Skill:
    """The AUC, and its spread when blocks of what happened change places."""
    random = np.random.default_rng(seed)
    found = auc(happened, said)
    drawn = np.concatenate(
        [
            aucs(np.stack([permuted_blocks(happened, block, random) for _ in range(50)]), said)
            for _ in range(0, _PERMUTATIONS, 50)
        ]
    )
    return Skill(
        test=test,
        model=model,
        auc=0.5 if found is None else found,
        sd=max(float(np.std(drawn)), 1e-9),
        rows=len(said),
        block=block,
        drawn=drawn,
    )


def together(skills: Sequence[Skill]) -> Skill:
    """The mean AUC of the models of one test, each by the inverse of its variance.

    What is wrong with the way of training is so for all models, and their mean varies less than
    each. Where they have the same test rows their labels' blocks changed places alike, so that
    what they have in common is in the spread of the mean; between others, full dependence is
    taken.
    """
    weights = np.array([one.sd**-2 for one in skills])
    weights /= weights.sum()
    sd = 0.0
    for group in {(one.rows, one.block) for one in skills}:
        inside = np.array([(one.rows, one.block) == group for one in skills])
        drawn = np.stack([one.drawn for one, keep in zip(skills, inside, strict=True) if keep])
        sd += float(np.std(weights[inside] @ drawn))
    return Skill(
        test=skills[0].test,
        model=TOGETHER,
        auc=float(weights @ [one.auc for one in skills]),
        sd=max(sd, 1e-9),
        rows=max(one.rows for one in skills),
        block=max(one.block for one in skills),
        drawn=skills[0].drawn[:0],
    )


def _permuted(job: Job, block: int, random: np.random.Generator) -> Job:
    return replace(job, y=permuted_blocks(job.y, block, random))


def _plain(value: Any) -> Any:
    """As JSON can hold it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
