"""The gate before a release: what the graphs compute is what the models computed."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from shared.bundle import Outputs, Runner, open_session
from shared.errors import Failure
from shared.score import ScoreFormula, score, side
from trainer.export.models import TrainedModel
from trainer.models.gb import Boosting

ROWS = 50_000
LARGEST_DIFFERENCE = 1e-5
_FILE_ROWS = 1_000


def check(
    models: Sequence[TrainedModel],
    files: Mapping[str, bytes],
    runner: Runner,
    formula: ScoreFormula,
    thresholds: tuple[float, float],
    x: npt.NDArray[np.float32],
    threads: int,
) -> dict[str, float | int | bool]:
    """Compares the bundle, and the single files, with the native models on real rows.

    files: model name -> its ONNX bytes. thresholds: (buy, sell). x: (n, n_features) float32.

    Raises:
        Failure: trees are not bit for bit equal, another model is off by 1e-5 or more, a score
            changes its side, or the batch size changes a bit. No release must be written then.
    """
    found = runner.run(x.astype(np.float64), threads)
    native = np.column_stack([model.fitted.predict(x[:, list(model.columns)]) for model in models])
    largest = 0.0
    for column, model in enumerate(models):
        difference = np.abs(found.outputs[:, column] - native[:, column])
        if isinstance(model.core, Boosting):
            wrong = int((difference != 0).sum())
            if wrong:
                raise _failed(f"{model.name} differs on {wrong} of {len(x)} rows")
        # "not below": NaN must not pass
        elif not (difference < LARGEST_DIFFERENCE).all():
            raise _failed(f"{model.name} is off by up to {difference.max():.1e}")
        largest = max(largest, float(difference.max()))
    names = [model.name for model in models]
    native_score = score(formula, names, native)
    flipped = sum(
        side(ours, *thresholds) is not side(theirs, *thresholds)
        for ours, theirs in zip(found.score.tolist(), native_score.tolist(), strict=True)
    )
    if flipped or not np.array_equal(np.isnan(found.score), np.isnan(native_score)):
        raise _failed(f"the score's side differs on {flipped} of {len(x)} rows")
    few = x[:: max(1, len(x) // _FILE_ROWS)].astype(np.float64)
    _check_batch(runner, few, found, max(1, len(x) // _FILE_ROWS))
    for column, model in enumerate(models):
        alone = open_session(files[model.name]).run(None, {"features": few})[0]
        in_bundle = found.outputs[:: max(1, len(x) // _FILE_ROWS), column]
        if not (np.abs(alone - in_bundle) < LARGEST_DIFFERENCE).all():
            raise _failed(f"the file of {model.name} is not the model in the bundle")
    return {
        "rows": len(x),
        "largest_difference": largest,
        "largest_score_difference": _largest(np.abs(found.score - native_score)),
        "trees_equal": True,
        "sides_flipped": 0,
    }


def _check_batch(runner: Runner, few: npt.NDArray[np.float64], found: Outputs, step: int) -> None:
    """Rows by themselves against the same rows within the large batch."""
    for row, values in enumerate(few):
        alone = runner.run(values[None])
        same = np.array_equal(alone.outputs[0], found.outputs[row * step], equal_nan=True)
        if not same or not np.array_equal(
            alone.score, found.score[row * step : row * step + 1], equal_nan=True
        ):
            raise _failed("a row has other bits alone than in a batch")


def _largest(values: npt.NDArray[np.float64]) -> float:
    values = values[~np.isnan(values)]
    return float(values.max()) if len(values) else 0.0


def _failed(why: str) -> Failure:
    return Failure(
        f"parity gate: {why}; no release was written: try fewer or default train settings, and "
        "please report it"
    )


def check_values(
    models: Sequence[TrainedModel], files: Mapping[str, bytes], x: npt.NDArray[np.float32]
) -> float:
    """Compares the files of regressions with the native models; returns the largest difference.

    Raises:
        Failure: one is off by 1e-5 or more, in units of its outputs' spread (at least 1).
    """
    largest = 0.0
    few = x[:: max(1, len(x) // _FILE_ROWS)]
    for model in models:
        native = model.fitted.predict(few[:, list(model.columns)])
        found = open_session(files[model.name]).run(None, {"features": few.astype(np.float64)})[0]
        difference = np.abs(found - native) / max(1.0, float(native.std()))
        if not (difference < LARGEST_DIFFERENCE).all():  # NaN must not pass
            raise _failed(f"{model.name} is off by up to {difference.max():.1e}")
        largest = max(largest, float(difference.max()))
    return largest
