"""Small releases for tests: linear models of made-up weights, real ONNX files, a real manifest."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from sklearn.linear_model import LogisticRegression

from shared.bundle import Runner
from shared.reference import REFERENCE
from shared.releases import (
    BUNDLE,
    Golden,
    LabelEntry,
    Manifest,
    ModelEntry,
    Runtime,
    ScoreEntry,
    Thresholds,
    TrainingRange,
    cpu_kind,
    feature_schema,
    release_id,
    write_release,
)
from shared.score import ScoreFormula, ScoreKind, Stack
from shared.times import iso
from trainer.export.models import TrainedModel, export_bundle, export_model
from trainer.models.lc import Linear
from trainer.models.scaling import Scaling
from trainer.release import _calibration

FEATURES = ("close_1", "close_5", "close_15", "close_60", "volume_5", "span_5")


def made_models(features: int, seed: int, labels: tuple[str, ...]) -> list[TrainedModel]:
    random = np.random.default_rng(seed)
    scaling = Scaling(
        median=random.normal(size=features),
        mean=random.normal(size=features),
        scale=random.uniform(0.5, 2, features),
    )
    return [
        TrainedModel(
            name=f"{label}_k_lc",
            label=label,
            inputs="k",
            algorithm="lc",
            columns=tuple(range(features)),
            fitted=Linear(
                scaling=scaling,
                weights=random.normal(size=features),
                bias=float(random.normal()),
                native=LogisticRegression(),
            ),
        )
        for label in labels
    ]


def made_release(
    seed: int = 0,
    *,
    features: tuple[str, ...] = FEATURES,
    labels: tuple[str, ...] = ("high_10", "high_20", "low_10", "low_20"),
    kind: ScoreKind = ScoreKind.RATIO,
    created_s: int = 1_700_000_000,
    left_out: tuple[str, ...] = (),
    symbols: tuple[str, ...] = ("BTCUSDT",),
    interval: str = "1m",
    horizon: int = 60,
) -> tuple[Manifest, dict[str, bytes]]:
    """A manifest and its files, not written yet."""
    return release_of(
        made_models(len(features), seed, labels),
        features,
        seed=seed,
        kind=kind,
        created_s=created_s,
        left_out=left_out,
        symbols=symbols,
        interval=interval,
        horizon=horizon,
    )


def release_of(
    models: Sequence[TrainedModel],
    features: tuple[str, ...],
    *,
    seed: int = 0,
    kind: ScoreKind = ScoreKind.RATIO,
    created_s: int = 1_700_000_000,
    left_out: tuple[str, ...] = (),
    symbols: tuple[str, ...] = ("BTCUSDT",),
    interval: str = "1m",
    horizon: int = 60,
    reference: bytes | None = None,
    label_horizon: int = 180,
) -> tuple[Manifest, dict[str, bytes]]:
    """Those models as a release, not written yet.

    reference: its `reference.json`; None: it has none, as in earlier versions.
    """
    names = [model.name for model in models]
    stacks: list[Stack | None] = [None, None]
    if kind is ScoreKind.STACK:
        random = np.random.default_rng(seed)
        stacks = [
            Stack(weights=dict(zip(names, weights.tolist(), strict=True)), bias=0.25)
            for weights in random.normal(size=(2, len(names)))
        ]
    formula = ScoreFormula(
        kind=kind,
        high=tuple(n for n in names if n.startswith("high")),
        low=tuple(n for n in names if n.startswith("low")),
        high_stack=stacks[0],
        low_stack=stacks[1],
    )
    bundle = export_bundle(models, formula, features)
    files = {f"{model.name}.onnx": export_model(model, features) for model in models}
    inputs = np.random.default_rng(seed).normal(size=(3, len(features)))
    inputs[-1, 0] = np.nan
    found = Runner(bundle, len(features), names).run(inputs)
    manifest = Manifest(
        id=release_id(created_s, bundle),
        created=iso(created_s * 1000),
        code_version="test",
        symbols=symbols,
        interval=interval,
        features=features,
        schema_hash=feature_schema(features),
        features_horizon=horizon,
        left_out=left_out,
        labels={
            model.label: LabelEntry(
                side="high" if model.label.startswith("high") else "low",
                horizon=label_horizon,
                definition=model.label,
            )
            for model in models
        },
        models={
            model.name: ModelEntry(
                file=f"{model.name}.onnx",
                sha256=hashlib.sha256(files[f"{model.name}.onnx"]).hexdigest(),
                label=model.label,
                inputs="k",
                algorithm=model.algorithm,
                opset=21,
                calibration=_calibration(model),
            )
            for model in models
        },
        bundle_sha256=hashlib.sha256(bundle).hexdigest(),
        reference_sha256=None if reference is None else hashlib.sha256(reference).hexdigest(),
        score=ScoreEntry.of(formula),
        thresholds=Thresholds(buy=0.15, sell=-0.15),
        training=TrainingRange(
            start_ms=0, end_ms=1, rows=1, stride=1, seed=seed, test_start_ms=1, test_rows=0
        ),
        metrics={},
        runtime=Runtime(onnxruntime=onnxruntime.__version__, cpu=cpu_kind()),
        golden=Golden(
            inputs=tuple(map(tuple, inputs.tolist())),
            outputs=tuple(map(tuple, found.outputs.tolist())),
            scores=tuple(found.score.tolist()),
        ),
    )
    files[BUNDLE] = bundle
    if reference is not None:
        files[REFERENCE] = reference
    return manifest, files


def write(model_folder: Path, seed: int = 0, **options: Any) -> Path:
    manifest, files = made_release(seed, **options)
    return write_release(model_folder, manifest, files)


def rehashed(manifest: Manifest, files: Mapping[str, bytes]) -> Manifest:
    """The manifest with the hashes of changed files, as an attacker would write it."""
    return manifest.model_copy(update={"bundle_sha256": hashlib.sha256(files[BUNDLE]).hexdigest()})
