"""`trainer train`: features and labels in, a verified release of ONNX models out."""

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shared.config import Settings
from shared.errors import Failure, Usage
from shared.features import FeatureSet
from shared.features.configured import configured
from shared.releases import promote, write_release
from shared.times import interval_ms, iso
from trainer import rasters
from trainer.evaluate import Metrics, measure
from trainer.export.models import TrainedModel
from trainer.models.cases import choose_labels, label_side, labels_to_compute
from trainer.models.fit import (
    Fitted,
    Fitter,
    Job,
    Recipe,
    ends_before,
    fit_models,
    inputs_of,
    jobs_of,
    recipes,
)
from trainer.models.rows import Rows, chosen, gather, stride_for
from trainer.progress import Bar, Progress
from trainer.release import Trained, build, figures_of

_DAY_MS = 86_400_000
# On fewer cases than this before the test rows a measured model would say nothing.
_FEWEST_TO_MEASURE = 10


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
        label_side(name)
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
        "models": {name: figures_of(found) for name, found in trained.metrics.items()},
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
    columns = tuple(np.flatnonzero(~rows.left_out).tolist())
    fitter = Fitter.of(rows, threads, config.seed)
    inputs = inputs_of(features)
    bar.advance(2 * len(plan) * (len(settings.labels) - len(labels)))

    def measured(job: Job, model: Fitted) -> tuple[Job, Metrics | None]:
        y = rows.y[job.label]
        after = test[~np.isnan(y[test])]
        if not len(after):
            return job, None
        block = -(-config.label_horizon // stride)
        return job, measure(y[after], model.predict(fitter.x[after]), block, config.seed)

    def exported(job: Job, model: Fitted) -> TrainedModel:
        return TrainedModel(
            name=job.name,
            label=job.label,
            inputs=inputs,
            algorithm=job.recipe.algo,
            columns=columns,
            fitted=model,
        )

    final = jobs_of(rows, plan, labels, step_ms=step_ms, stride=stride, inputs=inputs)
    for job in final:
        if not job.cases:
            raise Failure(
                f"{job.name}: the {len(job.y):,} rows that its algorithm's params.length and "
                "params.every_nth_row leave hold no two classes; let it have more"
            )
    metrics: dict[str, Metrics | None] = {}
    for job, figures in fit_models(
        rows,
        fitter,
        plan,
        labels,
        measured,
        step_ms=step_ms,
        stride=stride,
        inputs=inputs,
        allowed=ends_before(rows, test_start_ms),
        fewest=_FEWEST_TO_MEASURE,
    ):
        metrics[job.name] = figures
        bar.advance(detail=job.name)
    bar.advance(len(final) - len(metrics))
    fitted: dict[str, TrainedModel] = {}
    for model in fitter.fit_each(final, exported):
        fitted[model.name] = model
        bar.advance(detail=model.name)
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
