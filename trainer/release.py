"""The release of what was trained: exported, through the parity gate, its manifest written."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata

import numpy as np
import onnxruntime

from shared.bundle import Bundle, Runner
from shared.config import Settings
from shared.features import FeatureSet
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
    release_id,
)
from shared.score import ScoreFormula, ScoreKind
from shared.times import iso
from trainer import rasters
from trainer.evaluate import Metrics
from trainer.export import parity
from trainer.export.graph import ML_OPSET, OPSET
from trainer.export.models import TrainedModel, export_bundle, export_model
from trainer.labels import SIGMA_ROWS, sigmas
from trainer.models.cases import LABEL, label_side
from trainer.models.rows import Rows, span_text


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
        high=tuple(m.name for m in models if label_side(m.label) == "high"),
        low=tuple(m.name for m in models if label_side(m.label) == "low"),
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
    figures = {name: figures_of(found) for name, found in trained.metrics.items()}
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


def figures_of(found: Metrics | None) -> dict[str, float | int | None]:
    if found is None:
        return {"auc": None, "auc_low": None, "auc_high": None, "rows": 0}
    return found.as_dict()


def _label_entry(name: str, horizon: int, trained: Trained) -> LabelEntry:
    found = LABEL.fullmatch(name)
    assert found is not None  # noqa: S101 - label_side has seen it
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
        side=label_side(name),
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
