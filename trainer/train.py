"""`trainer train`: features and labels in, a verified release of ONNX models out."""

import argparse
import hashlib
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnxruntime

from shared.bundle import Bundle, Runner
from shared.config import Settings
from shared.errors import Failure, Usage
from shared.features import FeatureSet
from shared.features.configured import configured
from shared.releases import (
    BUNDLE,
    Golden,
    LabelEntry,
    Manifest,
    ModelEntry,
    Release,
    Runtime,
    ScoreEntry,
    Thresholds,
    TrainingRange,
    cpu_kind,
    promote,
    release_id,
    write_release,
)
from shared.score import ScoreFormula, ScoreKind
from shared.times import interval_ms, iso
from trainer import rasters
from trainer.evaluate import Metrics, measure
from trainer.export import parity
from trainer.export.graph import ML_OPSET, OPSET
from trainer.export.models import TrainedModel, export_bundle, export_model
from trainer.labels import SCALED_LABELS, SIGMA_ROWS, sigmas
from trainer.models.fit import Fitted, Fitter, Job, Recipe, recipes
from trainer.models.rows import Rows, chosen, gather, span_text, stride_for
from trainer.progress import Bar, Progress

_DAY_MS = 86_400_000
FEWEST_CASES = 50
# On fewer cases than this before the test rows a measured model would say nothing.
_FEWEST_TO_MEASURE = 10
_LABEL = re.compile(r"(high|low)(?:_(\d\d)|v(?:_(?!000)\d{3})?)")
_LETTERS = {"kline": "k", "futur": "f", "depth": "d"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """Fitted on all rows; metrics are those of the same recipe fitted without the test rows.

    metrics: model name -> None where its test or training part has too few cases.
    labels_left_out, labels_added: name -> why.
    """

    models: list[TrainedModel]
    metrics: dict[str, Metrics | None]
    labels_left_out: dict[str, str]
    labels_added: dict[str, str]
    stride: int
    rows: int
    test_start_ms: int
    test_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """kept: labels to train; left_out: labels of the config that are not among them, and added:
    those among them that the config does not name; both name -> why."""

    kept: list[str]
    left_out: dict[str, str]
    added: dict[str, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--symbol", action="append", metavar="S", help="instead of the config's")
    parser.add_argument("--interval", metavar="I", help="instead of the config's or the file's")
    parser.add_argument(
        "--klines",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="train on these kline files instead of the merged data",
    )
    parser.add_argument(
        "--futures", nargs="+", type=Path, metavar="FILE", help="futures klines beside --klines"
    )
    parser.add_argument(
        "--until",
        type=int,
        metavar="MS",
        help="use no candle that opens at or after this time (epoch ms), in labels neither",
    )
    parser.add_argument("--promote", action="store_true", help="make the new release live")


def run(settings: Settings, args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    started = time.monotonic()
    plan = recipes(settings.algorithms)
    if not plan:
        raise Usage("config: algorithms: name at least one")
    for name in settings.labels:
        _label_side(name)
    features = configured(settings)
    data = _read(settings, args, features)
    threads = settings.trainer.threads or os.cpu_count() or 1
    with progress.bar("features", _rows_to_compute(settings, data, features)) as bar:
        rows = gather(
            data,
            features,
            labels_to_compute(settings),
            horizon=settings.trainer.label_horizon,
            train_days=settings.trainer.train_days,
            nan_share=settings.limits.nan_share,
            workers=threads,
            advance=bar.advance,
        )
    left_out = [n for n, out in zip(features.names, rows.left_out, strict=True) if out]
    if left_out:
        progress.note(
            f"left out, without a value in more than half of the rows: {', '.join(left_out)}"
        )
    step_ms = interval_ms(data[0].interval)
    with progress.bar("training", 2 * len(plan) * len(settings.labels), "models") as bar:
        trained = train(rows, plan, settings, features, step_ms, threads, bar)
    for name, why in trained.labels_left_out.items():
        progress.note(f"label {name} left out: {why}")
    for name, why in trained.labels_added.items():
        progress.note(f"label {name} {why}")
    with progress.bar("parity gate and release", 1, "releases") as bar:
        manifest, files = build(settings, features, rows, trained, data, threads)
        folder = write_release(settings.model_folder, manifest, files)
        bar.advance()
    if args.promote:
        promote(settings.model_folder, manifest.id)
    return {
        "command": "train",
        "release": manifest.id,
        "folder": folder,
        "promoted": bool(args.promote),
        "symbols": list(manifest.symbols),
        "interval": manifest.interval,
        "rows": trained.rows,
        "candles": len(rows),
        "first": iso(int(rows.open_ms[0])),
        "last": iso(int(rows.open_ms[-1])),
        "stride": trained.stride,
        "features": {"used": len(features.names) - len(left_out), "left_out": left_out},
        "labels_left_out": trained.labels_left_out,
        "labels_added": trained.labels_added,
        "test": {"from": iso(trained.test_start_ms), "rows": trained.test_rows},
        "models": {name: _figures(found) for name, found in trained.metrics.items()},
        "parity": dict(manifest.parity),
        "seconds": round(time.monotonic() - started, 1),
    }


def summary(result: Mapping[str, Any]) -> str:
    aucs = [m["auc"] for m in result["models"].values() if m["auc"] is not None]
    mean = f", mean AUC {sum(aucs) / len(aucs):.3f} out of sample" if aucs else ""
    added = "".join(f", label {name} {why}" for name, why in result["labels_added"].items())
    live = "live" if result["promoted"] else "not live yet: `python -m trainer promote`"
    return (
        f"train: {len(result['models'])} models on {result['rows']:,} rows{mean}, "
        f"release {result['release']} ({live}), {result['seconds']} s{added}"
    )


def train(
    rows: Rows,
    plan: Sequence[Recipe],
    settings: Settings,
    features: FeatureSet,
    step_ms: int,
    threads: int,
    bar: Bar,
) -> Trained:
    """Every label with every recipe: first without the test rows, to measure; then on all.

    The test rows are the last `trainer.test_share` of the time; no training row's label looks at
    or beyond the first of them.

    Raises:
        Failure: no label of a side is left, or an algorithm's rows hold one class only.
    """
    config = settings.trainer
    stride = config.stride or stride_for(len(rows))
    base = chosen(rows, step_ms, stride)
    if not len(base):
        raise Failure(f"{len(rows):,} rows and a stride of {stride}: none is left to train on")
    choice = choose_labels(rows, base, settings)
    labels = choice.kept
    test_start_ms = int(rows.open_ms[base[int(len(base) * (1 - config.test_share))]])
    test = base[rows.open_ms[base] >= test_start_ms]
    columns = np.flatnonzero(~rows.left_out)
    fitter = Fitter(
        rows.x if len(columns) == rows.x.shape[1] else rows.x[:, columns], threads, config.seed
    )
    inputs = "".join(_LETTERS[source] for source in _LETTERS if source in features.sources)
    bar.advance(2 * len(plan) * (len(settings.labels) - len(labels)))

    def jobs(before_ms: int | None) -> list[Job]:
        found = []
        for recipe in plan:
            wanted = chosen(rows, step_ms, recipe.rows.stride or stride, recipe.rows.length)
            for label in labels:
                known = wanted[~np.isnan(rows.y[label][wanted])]
                if before_ms is not None:
                    known = known[rows.t1_ms[label][known] < before_ms]
                name = f"{label}_{inputs}_{recipe.name}"
                label_of[name] = label
                found.append(Job(recipe=recipe, name=name, positions=known, y=rows.y[label][known]))
        return found

    def measured(job: Job, model: Fitted) -> tuple[Job, Metrics | None]:
        y = rows.y[label_of[job.name]]
        after = test[~np.isnan(y[test])]
        if not len(after):
            return job, None
        block = -(-config.label_horizon // stride)
        found = measure(y[after], model.predict(fitter.x[after]), block, config.seed)
        return job, found

    def exported(job: Job, model: Fitted) -> tuple[Job, TrainedModel]:
        return job, TrainedModel(
            name=job.name,
            label=label_of[job.name],
            inputs=inputs,
            algorithm=job.recipe.algo,
            columns=tuple(columns.tolist()),
            fitted=model,
        )

    label_of: dict[str, str] = {}
    metrics: dict[str, Metrics | None] = {}
    final = jobs(None)
    for job in final:
        if not 0 < job.y.sum() < len(job.y):
            raise Failure(
                f"{job.name}: the {len(job.y):,} rows that its algorithm's params.length and "
                "params.every_nth_row leave hold no two classes; let it have more"
            )
    measurable = [job for job in jobs(test_start_ms) if _can_measure(job)]
    for job, figures in fitter.fit_each(measurable, measured):
        metrics[job.name] = figures
        bar.advance(detail=job.name)
    bar.advance(len(labels) * len(plan) - len(measurable))
    fitted: dict[str, TrainedModel] = {}
    for job, model in fitter.fit_each(final, exported):
        fitted[job.name] = model
        bar.advance(detail=job.name)
    order = [f"{label}_{inputs}_{recipe.name}" for label in labels for recipe in plan]
    return Trained(
        models=[fitted[name] for name in order],
        metrics={name: metrics.get(name) for name in order},
        labels_left_out=choice.left_out,
        labels_added=choice.added,
        stride=stride,
        rows=len(base),
        test_start_ms=test_start_ms,
        test_rows=len(test),
    )


def build(
    settings: Settings,
    features: FeatureSet,
    rows: Rows,
    trained: Trained,
    data: Sequence[rasters.Raster],
    threads: int,
) -> tuple[Manifest, dict[str, bytes]]:
    """The release in memory: exported, through the parity gate, its golden rows tried.

    Raises:
        Failure: the parity gate failed.
    """
    models = trained.models
    formula = ScoreFormula(
        kind=ScoreKind(settings.signaler.model.aggregate),
        high=tuple(m.name for m in models if _label_side(m.label) == "high"),
        low=tuple(m.name for m in models if _label_side(m.label) == "low"),
    )
    exported = {model.name: export_model(model, features.names) for model in models}
    bundle = export_bundle(models, formula, features.names)
    runner = Runner(bundle, len(features.names), [model.name for model in models])
    thresholds = Thresholds(
        buy=settings.signaler.model.buy_threshold, sell=settings.signaler.model.sell_threshold
    )
    places = np.unique(np.linspace(0, len(rows) - 1, parity.ROWS).astype(np.intp))
    passed = parity.check(
        models,
        exported,
        runner,
        formula,
        (thresholds.buy, thresholds.sell),
        rows.x[places],
        threads,
    )
    figures = {name: _figures(found) for name, found in trained.metrics.items()}
    created_s = int(time.time())
    while (settings.model_folder / "releases" / release_id(created_s, bundle)).exists():
        created_s += 1
    manifest = Manifest(
        id=release_id(created_s, bundle),
        created=iso(created_s * 1000),
        code_version=_code_version(),
        symbols=tuple(raster.symbol for raster in data),
        interval=data[0].interval,
        features=features.names,
        schema_hash=features.schema,
        features_horizon=features.lookback,
        left_out=tuple(n for n, out in zip(features.names, rows.left_out, strict=True) if out),
        features_file_sha256=features.user_sha256,
        labels={
            name: _label_entry(name, settings.trainer.label_horizon, trained)
            for name in (*settings.labels, *trained.labels_added)
        },
        models={
            model.name: ModelEntry(
                file=f"{model.name}.onnx",
                sha256=hashlib.sha256(exported[model.name]).hexdigest(),
                label=model.label,
                inputs=model.inputs,
                algorithm=model.algorithm,
                opset=OPSET,
                ml_opset=ML_OPSET if model.algorithm == "gb" else None,
            )
            for model in models
        },
        bundle_sha256=hashlib.sha256(bundle).hexdigest(),
        score=ScoreEntry(kind=formula.kind, high=formula.high, low=formula.low),
        thresholds=thresholds,
        training=TrainingRange(
            start_ms=int(rows.open_ms[0]),
            end_ms=int(rows.open_ms[-1]),
            rows=trained.rows,
            stride=trained.stride,
            seed=settings.trainer.seed,
            test_start_ms=trained.test_start_ms,
            test_rows=trained.test_rows,
        ),
        metrics=figures,
        parity=passed,
        runtime=Runtime(onnxruntime=onnxruntime.__version__, cpu=cpu_kind()),
        golden=_golden(rows, runner),
    )
    release = Release(
        folder=settings.model_folder / "releases" / manifest.id, manifest=manifest, bundle=bundle
    )
    Bundle(release)  # refuses what a predictor would refuse, before anything is written
    report = {
        "models": figures,
        "parity": passed,
        "training": manifest.training.model_dump(mode="json"),
        "rows": span_text(rows),
        "labels_left_out": trained.labels_left_out,
        "labels_added": trained.labels_added,
    }
    lines = [
        found.seed_line(name) if found is not None else f"{name}, not measured: too few cases"
        for name, found in trained.metrics.items()
    ]
    files = {f"{name}.onnx": content for name, content in exported.items()}
    files[BUNDLE] = bundle
    files["metrics.txt"] = "".join(f"{line}\n" for line in lines).encode()
    files["metrics.json"] = json.dumps(report, indent=1, allow_nan=False).encode() + b"\n"
    return manifest, files


def _read(
    settings: Settings, args: argparse.Namespace, features: FeatureSet
) -> list[rasters.Raster]:
    if args.klines is not None:
        found = [rasters.join(*pair) for pair in rasters.read_bare(args, settings)]
    elif args.futures is not None:
        raise Usage("--futures goes with --klines")
    else:
        interval = args.interval or settings.interval
        symbols = args.symbol or settings.symbols
        found = [rasters.read_merged(settings.data_folder, s, interval) for s in symbols]
    if len({raster.interval for raster in found}) > 1:
        intervals = ", ".join(sorted({raster.interval for raster in found}))
        raise Usage(f"models are trained on one interval, and these are {intervals}: --interval")
    for raster in found:
        for source in ("futur", "depth"):
            if source in features.sources and getattr(raster, source) is None:
                raise Usage(
                    f"{raster.symbol}: features read {source} rows, and there are none: download "
                    f"and merge them, or take features_{source} out of the config"
                )
    if args.until is not None:
        found = [_before(raster, args.until) for raster in found]
    return found


def _before(raster: rasters.Raster, until_ms: int) -> rasters.Raster:
    stop = int(np.searchsorted(raster.open_time_ms, until_ms))
    if not stop:
        raise Usage(f"--until {until_ms}: {raster.symbol} has no candle before that")
    return rasters.Raster(
        symbol=raster.symbol,
        interval=raster.interval,
        open_time_ms=raster.open_time_ms[:stop],
        kline=raster.kline[:stop],
        futur=None if raster.futur is None else raster.futur[:stop],
        depth=None if raster.depth is None else raster.depth[:stop],
    )


def _rows_to_compute(
    settings: Settings, data: Sequence[rasters.Raster], features: FeatureSet
) -> int:
    wanted = int(settings.trainer.train_days * _DAY_MS / interval_ms(data[0].interval)) + 1
    return sum(max(0, min(len(r) - features.lookback + 1, wanted)) for r in data)


def labels_to_compute(settings: Settings) -> tuple[str, ...]:
    """The config's labels, and those that may have to stand in for them."""
    spare = (name for names in SCALED_LABELS.values() for name in names)
    names = (*settings.labels, *(spare if settings.trainer.calm_labels else ()))
    return tuple(dict.fromkeys(names))


def choose_labels(rows: Rows, base: npt.NDArray[np.intp], settings: Settings) -> Choice:
    """Labels with enough cases of both classes among the rows `base`.

    A side of which the config has labels, but none with enough cases, gets the rarest label of
    SCALED_LABELS that has, unless the config forbids it.

    Raises:
        Failure: a side has none at all.
    """
    kept: list[str] = []
    left_out: dict[str, str] = {}
    added: dict[str, str] = {}
    for name in settings.labels:
        too_few = _too_few_cases(rows.y[name][base])
        if too_few is None:
            kept.append(name)
        else:
            left_out[name] = too_few
    for side in ("high", "low"):
        if any(_label_side(name) == side for name in kept):
            continue
        reasons = [f"{n}: {why}" for n, why in left_out.items() if _label_side(n) == side]
        if not reasons:
            raise Failure(f"no {side} label to train: the config lists none in `labels`")
        spare = SCALED_LABELS[side] if settings.trainer.calm_labels else ()
        for name in spare:
            if name not in left_out and _too_few_cases(rows.y[name][base]) is None:
                kept.append(name)
                added[name] = f"added because no {side} label of the config is left ({reasons[0]})"
                break
        else:
            tried = f", nor are there for {spare[0]} .. {spare[-1]}" if spare else ""
            remedy = "" if spare else ", or set trainer.calm_labels"
            raise Failure(
                f"no {side} label to train ({reasons[0]}{tried}); give more candles, or livelier "
                f"ones{remedy}"
            )
    return Choice(kept=kept, left_out=left_out, added=added)


def _too_few_cases(y: npt.NDArray[np.float64]) -> str | None:
    """Why a label cannot be trained on; None: it can."""
    known = y[~np.isnan(y)]
    true = int((known == 1).sum())
    if min(true, len(known) - true) >= FEWEST_CASES:
        return None
    return (
        f"{true:,} of {len(known):,} rows are cases, and {FEWEST_CASES} of either class are needed"
    )


def _can_measure(job: Job) -> bool:
    true = int(job.y.sum())
    return min(true, len(job.y) - true) >= _FEWEST_TO_MEASURE


def _figures(found: Metrics | None) -> dict[str, float | int | None]:
    if found is None:
        return {"auc": None, "auc_low": None, "auc_high": None, "rows": 0}
    return found.as_dict()


def _label_side(name: str) -> Literal["high", "low"]:
    """The side that a label speaks for; `high_01 .. 04` (no rise above) speak for a fall."""
    found = _LABEL.fullmatch(name)
    if found is None:
        raise Usage(f"config: labels: {name!r} is no yes-or-no label such as high_10 or lowv")
    is_far = found[2] is None or int(found[2]) >= 10
    return "high" if (found[1] == "high") is is_far else "low"


def _label_entry(name: str, horizon: int, trained: Trained) -> LabelEntry:
    found = _LABEL.fullmatch(name)
    assert found is not None  # noqa: S101 - _label_side has seen it
    is_high = found[1] == "high"
    extreme, sign = ("max(high", "+") if is_high else ("min(low", "-")
    scale = sigmas(name)
    if scale is None:
        is_far, move, where = int(found[2]) >= 10, f"{int(found[2]) / 10:g} %", ""
    else:
        is_far, move = True, f"{scale:g} * sigma[t] * sqrt({horizon})"
        where = (
            ", sigma[t] = population standard deviation of ln(close[r] / close[r-1]) over "
            f"r = t-{SIGMA_ROWS - 1} .. t"
        )
    why = trained.labels_added.get(name)
    return LabelEntry(
        side=_label_side(name),
        horizon=horizon,
        definition=f"{extreme}[t+1 .. t+{horizon}]) {'>=' if is_far is is_high else '<='} "
        f"close[t] * (1 {sign} {move}){where}{'' if why is None else f'; {why}'}",
        left_out=trained.labels_left_out.get(name, ""),
    )


def _golden(rows: Rows, runner: Runner) -> Golden:
    """Three real rows from first to last, and the last one with values missing."""
    places = [0, len(rows) // 2, len(rows) - 1]
    inputs = rows.x[[*places, places[-1]]].astype(np.float64)
    inputs[-1, ::7] = np.nan
    found = runner.run(inputs)
    return Golden(
        inputs=tuple(map(tuple, inputs.tolist())),
        outputs=tuple(map(tuple, found.outputs.tolist())),
        scores=tuple(found.score.tolist()),
    )


def _code_version() -> str:
    try:
        return metadata.version("itb")
    except metadata.PackageNotFoundError:
        return "unknown"
