"""`trainer train`: features and labels in, a verified release of ONNX models out.

The rows' features lie in a memory-mapped file, finished fits beside it (`trainer.fits`): a run that
was killed goes on with what is missing. One that was killed behind the last step, when the release
was written, finds that release again. All of it goes away at the end.
"""

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.config import Settings
from shared.errors import Failure, Usage
from shared.features import FeatureSet
from shared.features.configured import configured
from shared.releases import Manifest, current_id, write_release
from shared.score import ScoreFormula, ScoreKind, score
from shared.times import interval_ms, iso
from trainer import aggregates, fanout, fits, inputs, outcomes, promote, rasters
from trainer.evaluate import Metrics, ValueMetrics, block_rows, measure, measure_values
from trainer.export.models import TrainedModel
from trainer.fanout import Fanout
from trainer.fits import Finished, Piece
from trainer.labels import rows_ahead, side_of
from trainer.models import nn, torch_nn
from trainer.models.cases import choose_labels, labels_to_compute
from trainer.models.fit import (
    Job,
    Recipe,
    check_labels,
    ends_before,
    inputs_of,
    jobs_of,
    recipes,
)
from trainer.models.rows import Rows, chosen, gather, stride_for
from trainer.progress import Bar, Progress
from trainer.release import Trained, announce, build, key_of, written

_DAY_MS = 86_400_000
WORK = ".train"
# On fewer cases than this before the test rows a measured model would say nothing.
_FEWEST_TO_MEASURE = 10
# job, its figures (None: no test row's label is known), its outputs on the test rows
_Measured = tuple[Job, Metrics | ValueMetrics | None, npt.NDArray[np.float64]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    inputs.add_options(parser)
    parser.add_argument("--promote", action="store_true", help="make the new release live")
    fanout.add_options(parser, backend="threads")


def run(settings: Settings, args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    started = time.monotonic()
    plan = recipes(settings.algorithms)
    if not plan:
        raise Usage("config: algorithms: name at least one")
    check_labels(plan, settings.labels)
    features = configured(settings)
    fan = fanout.of_options(args, settings, progress.note)
    data = inputs.read(settings, args, features)
    name = f"{'+'.join(r.symbol for r in data)}-{data[0].interval}"
    key = fits.key_of(settings, features, data, {"until": args.until})
    release_key = key_of(settings, key)
    made = None
    with fits.work_folder(settings.data_folder / WORK, name, key) as folder:
        manifest = written(folder, settings.model_folder, release_key)
        if manifest is None:
            made, manifest = _make(
                settings, plan, features, data, folder, release_key, fan, progress
            )
        else:
            progress.note(
                f"release {manifest.id} was written by an earlier run of the same data, config, "
                "seed and program, which was stopped: there is nothing left to train"
            )
        try:
            if args.promote and current_id(settings.model_folder) != manifest.id:
                promote.newest(settings, manifest.id, data, progress)
        except Failure:  # said why, and what to do
            fits.clear(folder)
            raise
        # All that was kept for another attempt is in the release.
        fits.clear(folder)
    place = settings.model_folder / "releases" / manifest.id
    report = json.loads((place / "metrics.json").read_bytes())
    training = manifest.training
    return {
        "command": "train",
        "release": manifest.id,
        "folder": place,
        "promoted": bool(args.promote),
        "was_there": made is None,
        "symbols": list(manifest.symbols),
        "interval": manifest.interval,
        "rows": training.rows,
        "fits": 0 if made is None else made.fits,
        "fits_kept": 0 if made is None else made.fits_kept,
        "candles": report["candles"],
        "first": iso(training.start_ms),
        "last": iso(training.end_ms),
        "stride": training.stride,
        "features": {
            "used": len(manifest.features) - len(manifest.left_out),
            "left_out": list(manifest.left_out),
        },
        "labels_left_out": report["labels_left_out"],
        "labels_added": report["labels_added"],
        "test": {"from": iso(training.test_start_ms), "rows": training.test_rows},
        "models": report["models"],
        "values": report["values"],
        "score": report["score"],
        "notes": report["notes"],
        "parity": dict(manifest.parity),
        "seconds": round(time.monotonic() - started, 1),
    }


def _make(
    settings: Settings,
    plan: Sequence[Recipe],
    features: FeatureSet,
    data: Sequence[rasters.Raster],
    folder: Path,
    key: str,
    fan: Fanout,
    progress: Progress,
) -> tuple[Trained, Manifest]:
    """Trains and writes the release; folder: where finished fits are kept until then."""
    with progress.bar("features", _rows_to_compute(settings, data, features)) as bar:
        rows = _rows(settings, features, data, fan.workers, bar, fits.matrix(folder, "x"))
    left_out = [n for n, out in zip(features.names, rows.left_out, strict=True) if out]
    if left_out:
        progress.note(
            f"left out, without a value in more than half of the rows: {', '.join(left_out)}"
        )
    with progress.bar("training", 2 * len(plan) * len(settings.labels), "models") as bar:
        trained = train(rows, plan, settings, features, data, folder, fan, bar)
    for name, why in trained.labels_left_out.items():
        progress.note(f"label {name} left out: {why}")
    for name, why in trained.labels_added.items():
        progress.note(f"label {name} {why}")
    for text in trained.notes:
        progress.note(text)
    with progress.bar("parity gate and release", 1, "releases") as bar:
        manifest, files = build(settings, features, rows, trained, data, fan.workers)
        announce(folder, manifest, key)
        write_release(settings.model_folder, manifest, files)
        bar.advance()
    return trained, manifest


def summary(result: Mapping[str, Any]) -> str:
    aucs = [m["auc"] for m in result["models"].values() if m["auc"] is not None]
    mean = f", mean AUC {sum(aucs) / len(aucs):.3f} out of sample" if aucs else ""
    added = "".join(f", label {name} {why}" for name, why in result["labels_added"].items())
    values = f" and {len(result['values'])} regressions" if result["values"] else ""
    score, best = result["score"]["kind"], result["score"]["best"]
    told = f"score {score}"
    if best is not None:
        found = result["score"]["compared"][best]
        told += f" (best out of sample: {best}, direction AUC {found['auc']:.3f}, "
        if found["auc_low"] is None:
            told += "of too few rows to mean anything)"
        else:
            told += f"{found['auc_low']:.3f} .. {found['auc_high']:.3f})"
    live = "live" if result["promoted"] else "not live yet: `python -m trainer promote`"
    if result["was_there"]:
        live = f"was there already, {live}"
    return (
        f"train: {len(result['models'])} models{values} on {result['rows']:,} rows{mean}, {told}, "
        f"release {result['release']} ({live}), {result['seconds']} s{added}"
    )


def train(
    rows: Rows,
    plan: Sequence[Recipe],
    settings: Settings,
    features: FeatureSet,
    data: Sequence[rasters.Raster],
    folder: Path,
    fan: Fanout,
    bar: Bar,
) -> Trained:
    """Every label with every recipe: first without the test rows, to measure; then on all.

    The test rows are the last `trainer.test_share` of the time; no training row's label looks at
    or beyond the first of them.

    rows: their x lies in `matrix(folder, "x")`; folder: where finished fits are kept.

    Raises:
        Failure: no label of a side is left, an algorithm's rows hold one class only, or the score
            that the config asks for cannot be had from so few rows.
    """
    config = settings.trainer
    step_ms = interval_ms(data[0].interval)
    stride = config.stride or stride_for(len(rows))
    base = chosen(rows, step_ms, stride)
    if not len(base):
        raise Failure(f"{len(rows):,} rows and a stride of {stride}: none is left to train on")
    choice = choose_labels(rows, base, settings)
    labels = choice.kept
    test_start_ms = int(rows.open_ms[base[int(len(base) * (1 - config.test_share))]])
    test = base[rows.open_ms[base] >= test_start_ms]
    columns = tuple(np.flatnonzero(~rows.left_out).tolist())
    letters = inputs_of(features)

    def block_of(label: str, at: npt.NDArray[np.intp]) -> int:
        ahead = rows_ahead(
            label, config.label_horizon, rows.open_ms[at], rows.t1_ms[label][at], step_ms
        )
        return block_rows(ahead, stride, len(data), len(at))

    def pieces(jobs: Sequence[Job], *, final: bool) -> list[Piece]:
        kind = "final" if final else "measured"
        return [
            Piece(
                name=job.name,
                fold=int(final),
                x=fits.matrix(folder, "x"),
                columns=np.array(columns),
                job=job,
                test=test[:0] if final else test,
                seed=config.seed,
                out=folder / f"{kind}-{job.name}.{'model' if final else 'npy'}",
                keeps_model=final,
            )
            for job in jobs
        ]

    def measured(one: Finished) -> _Measured:
        job, outputs = one.piece.job, one.found
        assert isinstance(outputs, np.ndarray)  # noqa: S101 - it does not keep its model
        y = rows.y[job.label][test]
        known = ~np.isnan(y)
        figures: Metrics | ValueMetrics | None = None
        if known.any():
            measured_by = measure_values if job.is_value else measure
            figures = measured_by(
                y[known], outputs[known], block_of(job.label, test[known]), config.seed
            )
        return job, figures, outputs

    final = jobs_of(rows, plan, labels, step_ms=step_ms, stride=stride, inputs=letters)
    before = jobs_of(
        rows,
        plan,
        labels,
        step_ms=step_ms,
        stride=stride,
        inputs=letters,
        allowed=ends_before(rows, test_start_ms),
    )
    before = [job for job in before if job.cases >= _FEWEST_TO_MEASURE]
    bar.advance(max(0, 2 * len(plan) * len(settings.labels) - len(final) - len(before)))
    for job in final:
        if not job.cases:
            raise Failure(
                f"{job.name}: the {len(job.y):,} rows that its algorithm's params.length and "
                "params.every_nth_row leave hold no two classes (where it stops early or is "
                "calibrated, in both parts); let it have more"
            )
    done = list(fits.finish(pieces(before, final=False), fan, bar))
    with ThreadPoolExecutor(fan.workers) as pool:
        found = {one[0].name: one for one in pool.map(measured, done)}
    in_score = {f.name: f.label for f in _ordered(final, labels, plan) if not f.is_value}
    happened = outcomes.after(data, rows.symbol[test], rows.open_ms[test], config.label_horizon)
    compared = aggregates.compare(
        rows,
        {name: found[name][2] for name in in_score if name in found},
        test,
        in_score,
        *happened,
        block=block_rows(config.label_horizon, stride, len(data)),
        seed=config.seed,
    )
    formula = _formula(settings.signaler.model.aggregate, in_score, compared)
    fitted: dict[str, TrainedModel] = {}
    for one in fits.finish(pieces(final, final=True), fan, bar):
        assert not isinstance(one.found, np.ndarray)  # noqa: S101 - it keeps its model
        done.append(one)
        fitted[one.piece.name] = TrainedModel(
            name=one.piece.name,
            label=one.piece.job.label,
            inputs=letters,
            algorithm=one.piece.job.recipe.algo,
            columns=columns,
            fitted=one.found,
            is_value=one.piece.job.is_value,
        )
    metrics: dict[str, Metrics | None] = {}
    value_metrics: dict[str, ValueMetrics | None] = {}
    for job in _ordered(final, labels, plan):
        figures = found[job.name][1] if job.name in found else None
        if job.is_value:
            value_metrics[job.name] = figures if isinstance(figures, ValueMetrics) else None
        else:
            metrics[job.name] = figures if isinstance(figures, Metrics) else None
    return Trained(
        models=[fitted[name] for name in metrics],
        values=[fitted[name] for name in value_metrics],
        metrics=metrics,
        value_metrics=value_metrics,
        formula=formula,
        compared=compared,
        labels_left_out=choice.left_out,
        labels_added=choice.added,
        notes=tuple(_notes(final)),
        stride=stride,
        rows=len(base),
        fits=len(done),
        fits_kept=sum(one.kept for one in done),
        test_start_ms=test_start_ms,
        test_rows=len(test),
        test_scores=_out_of_sample(formula, {name: found[name][2] for name in found}),
        test_ms=rows.open_ms[test],
    )


def _rows(
    settings: Settings,
    features: FeatureSet,
    data: Sequence[rasters.Raster],
    workers: int,
    bar: Bar,
    file: Path,
) -> Rows:
    try:
        return gather(
            data,
            features,
            labels_to_compute(settings),
            horizon=settings.trainer.label_horizon,
            train_days=settings.trainer.train_days,
            nan_share=settings.limits.nan_share,
            workers=workers,
            advance=bar.advance,
            file=file,
        )
    except OSError as error:
        raise Failure(f"{file}: cannot be written ({error.strerror or error})") from error


def _out_of_sample(
    formula: ScoreFormula, outputs: Mapping[str, npt.NDArray[np.float64]]
) -> npt.NDArray[np.float64] | None:
    """The release's score of the test rows, None where a model of it was not measured.

    outputs: model -> (n,) of the test rows.
    """
    names = [*formula.high, *formula.low]
    if not set(names) <= set(outputs):
        return None
    return score(formula, names, np.column_stack([outputs[name] for name in names]))


def _ordered(jobs: Sequence[Job], labels: Sequence[str], plan: Sequence[Recipe]) -> list[Job]:
    """By label, then by algorithm, as the config names them."""
    names = [recipe.name for recipe in plan]
    return sorted(jobs, key=lambda job: (labels.index(job.label), names.index(job.recipe.name)))


def _formula(
    wanted: str, in_score: Mapping[str, str], compared: aggregates.Aggregates
) -> ScoreFormula:
    """in_score: model -> label, in order."""
    if wanted == "best":
        if compared.best is None:
            raise Failure(
                'signaler.model.aggregate "best": the purged tail has too few rises and falls to '
                "tell; name one, or give more candles"
            )
        kind = compared.best
    else:
        kind = ScoreKind(wanted)
    if kind is ScoreKind.STACK and compared.stacks is None:
        raise Failure(
            'signaler.model.aggregate "stack": the purged tail has too few cases to fit it on; use '
            "another, or give more candles"
        )
    high, low = (
        [name for name, label in in_score.items() if side_of(label) == side]
        for side in ("high", "low")
    )
    return aggregates.formula_of(kind, high, low, compared.stacks)


def _notes(jobs: Sequence[Job]) -> Iterator[str]:
    """What a person should know about how models were fitted, once per algorithm."""
    for recipe in dict.fromkeys(job.recipe.name for job in jobs):
        of_recipe = [job for job in jobs if job.recipe.name == recipe]
        thinned = [job for job in of_recipe if job.thinned_from is not None]
        if thinned:
            most = max(job.thinned_from or 0 for job in thinned)
            yield (
                f"NOTE: {recipe} is fitted on {len(thinned[0].y):,} of {most:,} rows (every n-th, "
                f"params.max_rows {thinned[0].recipe.rows.most:,}): its time grows with their "
                "square"
            )
        around = of_recipe[0].recipe.around
        if around.class_weight != "none" and around.calibrate == "none":
            yield (
                f"NOTE: {recipe}: balanced classes make its outputs no probabilities, and the "
                'score takes them for such; params.calibrate "platt" makes them probabilities again'
            )
        own = of_recipe[0].recipe.options
        if isinstance(own, nn.Options) and own.backend == "torch":
            yield f"{recipe} is fitted by PyTorch on {torch_nn.device_name()}"


def _rows_to_compute(
    settings: Settings, data: Sequence[rasters.Raster], features: FeatureSet
) -> int:
    wanted = int(settings.trainer.train_days * _DAY_MS / interval_ms(data[0].interval)) + 1
    return sum(max(0, min(len(r) - features.lookback + 1, wanted)) for r in data)
