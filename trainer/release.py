"""The release of what was trained: exported, through the parity gate, its manifest written."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnxruntime

from shared import klinefiles
from shared.bundle import Bundle, Runner
from shared.config import Settings
from shared.errors import BadInput
from shared.features import FeatureSet
from shared.reference import REFERENCE
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
    ValueEntry,
    cpu_kind,
    read_release,
    release_id,
)
from shared.score import ScoreFormula
from shared.times import interval_ms, iso
from trainer import rasters
from trainer.aggregates import Aggregates
from trainer.evaluate import Metrics, ValueMetrics
from trainer.export import parity
from trainer.export.graph import ML_OPSET, OPSET
from trainer.export.models import TrainedModel, export_bundle, export_model
from trainer.labels import definition, is_value, side_of, spec
from trainer.models.calibration import Isotonic, Platt
from trainer.models.gb import Boosting
from trainer.models.rows import Rows, span_text
from trainer.reference import reference

_ANNOUNCED = "release.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """Fitted on all rows; metrics are those of the same recipe fitted without the test rows.

    models: those of the score; values: regressions. metrics, value_metrics: name -> None where its
    test or training part has too few cases. labels_left_out, labels_added: name -> why. compared:
    every kind of score out of sample; formula: the one that the release gets. fits: how many there
    were, of which fits_kept an earlier run had left.
    """

    models: list[TrainedModel]
    values: list[TrainedModel]
    metrics: dict[str, Metrics | None]
    value_metrics: dict[str, ValueMetrics | None]
    formula: ScoreFormula
    compared: Aggregates
    notes: tuple[str, ...]
    labels_left_out: dict[str, str]
    labels_added: dict[str, str]
    stride: int
    rows: int
    fits: int
    fits_kept: int
    test_start_ms: int
    test_rows: int
    test_scores: npt.NDArray[np.float64] | None
    test_ms: npt.NDArray[np.int64]


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
    formula = trained.formula
    exported = {
        model.name: export_model(model, features.names) for model in (*models, *trained.values)
    }
    bundle = export_bundle(models, formula, features.names)
    runner = Runner(bundle, len(features.names), [model.name for model in models])
    thresholds = Thresholds(
        buy=settings.signaler.model.buy_threshold, sell=settings.signaler.model.sell_threshold
    )
    places = np.unique(np.linspace(0, len(rows) - 1, parity.ROWS).astype(np.intp))
    x = rows.x[places]
    passed = parity.check(
        models,
        exported,
        runner,
        formula,
        (thresholds.buy, thresholds.sell),
        x,
        threads,
    )
    if trained.values:
        passed["largest_value_difference"] = parity.check_values(trained.values, exported, x)
    figures = {name: figures_of(found) for name, found in trained.metrics.items()}
    values = {name: figures_of(found) for name, found in trained.value_metrics.items()}
    horizon = settings.trainer.label_horizon
    about = reference(
        rows, features.names, interval_ms(data[0].interval), trained.test_scores, trained.test_ms
    )
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
            name: _label_entry(name, horizon, trained)
            for name in (*settings.labels, *trained.labels_added)
            if not is_value(name)
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
                calibration=_calibration(model),
            )
            for model in models
        },
        values={
            model.name: ValueEntry(
                file=f"{model.name}.onnx",
                sha256=hashlib.sha256(exported[model.name]).hexdigest(),
                label=model.label,
                horizon=spec(model.label, horizon).window or horizon,
                definition=definition(model.label, horizon),
                inputs=model.inputs,
                algorithm=model.algorithm,
                opset=OPSET,
                ml_opset=ML_OPSET if model.algorithm == "gb" else None,
            )
            for model in trained.values
        },
        bundle_sha256=hashlib.sha256(bundle).hexdigest(),
        reference_sha256=hashlib.sha256(about).hexdigest(),
        score=ScoreEntry.of(formula),
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
        metrics=figures | values,
        parity=passed,
        runtime=Runtime(onnxruntime=onnxruntime.__version__, cpu=cpu_kind()),
        golden=_golden(rows, runner),
        made_from=_made_from(settings, rows),
    )
    release = Release(
        folder=settings.model_folder / "releases" / manifest.id,
        manifest=manifest,
        bundle=bundle,
        reference=about,
    )
    Bundle(release)  # refuses what a predictor would refuse, before anything is written
    report = {
        "models": figures,
        "values": values,
        "score": score_report(trained),
        "notes": list(trained.notes),
        "gain_importance": {
            model.name: gains
            for model in (*models, *trained.values)
            if (gains := _gains(model, features.names))
        },
        "parity": passed,
        "training": manifest.training.model_dump(mode="json"),
        "rows": span_text(rows),
        "candles": len(rows),
        "labels_left_out": trained.labels_left_out,
        "labels_added": trained.labels_added,
    }
    lines = [
        found.seed_line(name) if found is not None else f"{name}, not measured: too few cases"
        for name, found in (*trained.metrics.items(), *trained.value_metrics.items())
    ]
    files = {f"{name}.onnx": content for name, content in exported.items()}
    files[BUNDLE] = bundle
    files[REFERENCE] = about
    files["metrics.txt"] = "".join(f"{line}\n" for line in lines).encode()
    files["metrics.json"] = json.dumps(report, indent=1, allow_nan=False).encode() + b"\n"
    return manifest, files


def figures_of(found: Metrics | ValueMetrics | None) -> dict[str, float | int | None]:
    if found is None:
        return {"auc": None, "auc_low": None, "auc_high": None, "rows": 0}
    return found.as_dict()


def score_report(trained: Trained) -> dict[str, Any]:
    """Every kind of score out of sample, the best of them, and the one of the release."""
    compared = trained.compared
    return {
        "kind": str(trained.formula.kind),
        "best": None if compared.best is None else str(compared.best),
        "compared": {str(kind): found.as_dict() for kind, found in compared.found.items()},
    }


def _gains(model: TrainedModel, names: Sequence[str]) -> dict[str, float]:
    """Share of each feature in what the splits of a tree model gained on its training rows, the
    largest first; empty for other models. (Of training rows: the report's permutations are out of
    sample.)"""
    if not isinstance(model.core, Boosting):
        return {}
    gains = model.core.booster.feature_importance(importance_type="gain")
    total = float(gains.sum()) or 1.0
    of = {names[at]: float(gain) / total for at, gain in zip(model.columns, gains, strict=True)}
    largest = sorted(of, key=lambda name: -of[name])
    return {name: round(of[name], 6) for name in largest if of[name] > 0}


def _calibration(model: TrainedModel) -> Literal["none", "platt", "isotonic"]:
    match model.map:
        case Platt():
            return "platt"
        case Isotonic():
            return "isotonic"
        case _:
            return "none"


def _label_entry(name: str, horizon: int, trained: Trained) -> LabelEntry:
    side = side_of(name)
    assert side is not None  # noqa: S101 - not a value
    why = trained.labels_added.get(name)
    return LabelEntry(
        side=side,
        horizon=spec(name, horizon).window or horizon,
        definition=f"{definition(name, horizon)}{'' if why is None else f'; {why}'}",
        left_out=trained.labels_left_out.get(name, ""),
    )


def key_of(settings: Settings, fits_key: str) -> str:
    """Digest of all that the bytes of a release depend on: what its fits do, how they become a
    score, and the kind of machine."""
    text = json.dumps([fits_key, settings.signaler.model.model_dump(mode="json"), cpu_kind()])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def announce(folder: Path, manifest: Manifest, key: str) -> None:
    """Notes in a work folder which release is about to be written, for `written`."""
    with klinefiles.replacing(folder / _ANNOUNCED) as unfinished:
        unfinished.write_text(json.dumps({"release": manifest.id, "key": key}))


def written(folder: Path, model_folder: Path, key: str) -> Manifest | None:
    """The whole release that a run in this work folder wrote of the same things, before it was
    killed; None where there is none."""
    try:
        noted = json.loads((folder / _ANNOUNCED).read_bytes())
        if noted["key"] != key:
            return None
        return read_release(model_folder / "releases" / noted["release"]).manifest
    except (OSError, ValueError, BadInput):  # not there, or damaged
        return None


def _made_from(settings: Settings, rows: Rows) -> dict[str, Any]:
    """Equal ones give equal ONNX files, on one kind of machine."""
    rows_hash = hashlib.sha256(np.ascontiguousarray(rows.x).data)
    for name in sorted(rows.y):
        rows_hash.update(name.encode() + np.ascontiguousarray(rows.y[name]).tobytes())
    rows_hash.update(rows.open_ms.tobytes())
    return {
        "rows_sha256": rows_hash.hexdigest(),
        "libraries": {
            name: metadata.version(name)
            for name in ("lightgbm", "numpy", "onnx", "onnxruntime", "scikit-learn", "scipy")
        },
        "labels": list(settings.labels),
        "algorithms": [a.model_dump(mode="json") for a in settings.algorithms],
        "trainer": settings.trainer.model_dump(mode="json"),
    }


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
