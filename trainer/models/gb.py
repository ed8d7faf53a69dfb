"""Gradient-boosted trees by LightGBM."""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# OpenMP threads that spin while they wait make fits many times slower on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import lightgbm
import numpy as np
import numpy.typing as npt

from shared.config import Algorithm
from shared.errors import Failure
from trainer.models import options

FloatArray = npt.NDArray[np.float64]

# Small trees and no class weights: more capacity lost AUC and log-loss out of sample, and weights
# make the outputs no probabilities.
PRESETS: dict[str, dict[str, Any]] = {
    "default": {
        "objective": "binary",
        "num_boost_round": 200,
        "num_leaves": 7,
        "learning_rate": 0.05,
        "feature_fraction": 0.6,
        "bagging_fraction": 0.7,
        "bagging_freq": 1,
        "lambda_l2": 5.0,
        "max_bin": 127,
    },
    # The predecessor's settings of 2021.
    "seed": {
        "objective": "cross_entropy",
        "num_boost_round": 1500,
        "max_depth": 1,
        "num_leaves": 32,
        "learning_rate": 0.01,
        "lambda_l1": 1.0,
        "lambda_l2": 1.0,
        "is_unbalance": True,
    },
}
_ROUNDS = [
    "num_boost_round",
    "num_iterations",
    "num_iteration",
    "n_iter",
    "num_tree",
    "num_trees",
    "num_round",
    "num_rounds",
    "nrounds",
    "n_estimators",
    "max_iter",
]
_LEAF_ROWS = [
    "min_data_in_leaf",
    "min_data_per_leaf",
    "min_data",
    "min_child_samples",
    "min_samples_leaf",
]
# Each would need another graph than sum of leaves + logistic, or makes NaN ambiguous.
_REFUSED = [
    "linear_tree",
    "linear_trees",
    "categorical_feature",
    "cat_feature",
    "categorical_column",
    "cat_column",
    "categorical_features",
    "zero_as_missing",
    "num_class",
    "num_classes",
    "boosting_type",
    "machine",
    "num_machines",
    "device",
    "device_type",
    "early_stopping_round",  # params.early_stopping: on a purged tail
    "early_stopping_rounds",
    "early_stopping",
    "n_iter_no_change",
    "reg_sqrt",
    "input_model",
]
_CLASSIFY = frozenset({"binary", "cross_entropy", "xentropy"})
# Those whose prediction is the plain sum of the leaves.
_REGRESS = frozenset(
    {"regression", "regression_l1", "l1", "l2", "mae", "mse", "huber", "fair", "quantile", "mape"}
)
# Arguments that speak of two classes.
_OF_CLASSES = frozenset({"is_unbalance", "unbalance", "scale_pos_weight", "sigmoid"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """preset: defaults below `train`, which holds LightGBM's own parameters."""

    preset: str
    train: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Boosting:
    """A fitted booster over the columns that it was given."""

    booster: lightgbm.Booster
    slope: float = 1.0  # LightGBM's `sigmoid`: the logit is slope times the sum of the leaves
    is_value: bool = False

    def raw(self, x: npt.NDArray[np.float32]) -> FloatArray:
        found = np.asarray(self.booster.predict(x, num_threads=1, raw_score=True), np.float64)
        return found if self.slope == 1.0 else self.slope * found

    def predict(self, x: npt.NDArray[np.float32]) -> FloatArray:
        return np.asarray(self.booster.predict(x, num_threads=1), np.float64)


class _Log:
    """LightGBM's own messages, of the thread that imported it; the others get none."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def info(self, text: str) -> None:
        self.texts.append(text)

    warning = info


_LOG = _Log()
lightgbm.register_logger(_LOG)


def parse(algorithm: Algorithm) -> tuple[Options, frozenset[bool]]:
    """The options, and for which kinds of labels they are (`options.kinds`).

    Raises:
        Usage: the config is wrong.
    """
    own = ("preset", "is_scale", "early_stopping", "patience")
    options.check_names(algorithm, "params", algorithm.params, (*own, *options.COMMON_PARAMS))
    if options.flag(algorithm, "is_scale", False):
        raise options.refused(algorithm, "trees need no scaling: remove params.is_scale")
    for name in algorithm.train:
        if name in _REFUSED:
            raise options.refused(algorithm, f"train.{name} cannot be exported or has no use here")
    boosting = algorithm.train.get("boosting", "gbdt")
    if boosting not in {"gbdt", "goss", "dart"}:
        raise options.refused(algorithm, "train.boosting must be gbdt, goss or dart")
    if boosting == "dart" and algorithm.params.get("early_stopping"):
        raise options.refused(algorithm, "dart changes earlier trees: it has no early stopping")
    preset = options.choice(algorithm, "preset", "default", tuple(PRESETS))
    chosen = Options(preset=preset, train=dict(algorithm.train))
    kinds = _kinds(algorithm)
    for is_value in sorted(kinds):
        _try(algorithm, chosen, is_value)
    return chosen, kinds


def _kinds(algorithm: Algorithm) -> frozenset[bool]:
    objective = algorithm.train.get("objective")
    if objective is not None and objective not in _CLASSIFY | _REGRESS:
        raise options.refused(
            algorithm,
            "train.objective must be binary or cross_entropy, and for values one of "
            f"{', '.join(sorted(_REGRESS))}",
        )
    found = {False, True}
    if objective in _CLASSIFY or _OF_CLASSES.intersection(algorithm.train):
        found.discard(True)
    if objective in _REGRESS:
        found.discard(False)
    return options.checked_kinds(algorithm, frozenset(found))


def _try(algorithm: Algorithm, chosen: Options, is_value: bool) -> None:
    """One round on next to nothing: LightGBM itself says what it does not accept."""
    merged, _ = parameters(chosen, 64, 1, 0, is_value)
    merged["verbosity"] = 0
    _LOG.texts.clear()
    x = np.linspace(0, 1, 64)[:, None]
    try:
        with _without_stderr():
            lightgbm.train(merged, lightgbm.Dataset(x, (x[:, 0] > 0.5).astype(float)), 1)
    except (lightgbm.basic.LightGBMError, TypeError, ValueError) as error:
        text, _, _ = " ".join(str(error).split()).partition(" at /")  # a place in its source
        raise options.refused(algorithm, f"train: LightGBM: {text}") from None
    for text in _LOG.texts:
        if "Unknown parameter" in text:
            name = text.partition(": ")[2].strip()
            raise options.refused(algorithm, f"LightGBM knows no train.{name}")


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """LightGBM writes to the descriptor itself what it raises as well."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def leaf_rows(rows: int) -> int:
    """Fewest rows in a leaf: 300 where there are many, a 250th of fewer, never under 20."""
    return min(300, max(20, rows // 250))


def parameters(
    chosen: Options, rows: int, threads: int, seed: int, is_value: bool = False
) -> tuple[dict[str, Any], int]:
    """LightGBM's parameters and the number of rounds."""
    merged: dict[str, Any] = {**PRESETS[chosen.preset]}
    if is_value:
        merged["objective"] = "regression"
        merged.pop("is_unbalance", None)
    if any(name in chosen.train for name in _ROUNDS):
        del merged["num_boost_round"]
    merged |= chosen.train
    rounds = int(next(merged.pop(name) for name in _ROUNDS if name in merged))
    if not any(name in merged for name in _LEAF_ROWS):
        share = max(1, rows // 100)  # the predecessor's rule: 1 % of the rows
        merged["min_data_in_leaf"] = share if chosen.preset == "seed" else leaf_rows(rows)
    merged |= {
        "seed": merged.get("seed", seed),
        "num_threads": threads,
        "deterministic": True,
        "force_row_wise": True,
        "feature_pre_filter": False,
        "verbosity": -1,
    }
    return merged, rounds


class Trainer:
    """Fits many labels on the same rows: their values are binned once."""

    def __init__(self, x: npt.NDArray[np.float32], threads: int, seed: int) -> None:
        """x: (n, n_columns) float32, NaN = missing."""
        self._x = x
        self._threads = threads
        self._seed = seed
        self._binned: dict[str, lightgbm.Dataset] = {}

    def fit(
        self,
        chosen: Options,
        y: FloatArray,
        name: str,
        *,
        weights: FloatArray | None = None,
        is_value: bool = False,
        rounds: int | None = None,
    ) -> Boosting:
        """y: (n,) 0 or 1, or values; rounds: instead of those of the config.

        Raises:
            Failure: LightGBM refused the parameters; the text is its own.
        """
        merged, configured = parameters(chosen, len(y), self._threads, self._seed, is_value)
        with _refusals(name):
            dataset = self._dataset(merged).set_label(y).set_weight(weights)
            booster = lightgbm.train(merged, dataset, rounds or configured)
        return Boosting(
            booster=booster,
            slope=1.0 if is_value else float(merged.get("sigmoid", 1.0)),
            is_value=is_value,
        )

    def best_rounds(
        self,
        chosen: Options,
        y: FloatArray,
        name: str,
        tail: npt.NDArray[np.float32],
        tail_y: FloatArray,
        patience: int,
        *,
        weights: FloatArray | None = None,
        is_value: bool = False,
    ) -> int:
        """The number of rounds, up to the config's, with the least loss on the tail.

        Raises:
            Failure: LightGBM refused the parameters; the text is its own.
        """
        merged, configured = parameters(chosen, len(y), self._threads, self._seed, is_value)
        with _refusals(name):
            dataset = self._dataset(merged).set_label(y).set_weight(weights)
            watched = lightgbm.Dataset(tail, tail_y, reference=dataset, params=dict(merged))
            booster = lightgbm.train(
                merged,
                dataset,
                configured,
                valid_sets=[watched],
                callbacks=[lightgbm.early_stopping(patience, verbose=False)],
            )
        return max(1, int(booster.best_iteration))

    def _dataset(self, parameters_: Mapping[str, Any]) -> lightgbm.Dataset:
        key = repr(sorted(parameters_.items(), key=lambda item: item[0]))
        if key not in self._binned:
            self._binned.clear()
            dataset = lightgbm.Dataset(self._x, params=dict(parameters_), free_raw_data=False)
            self._binned[key] = dataset.set_label(np.zeros(len(self._x))).construct()
        return self._binned[key]


@contextlib.contextmanager
def _refusals(name: str) -> Iterator[None]:
    try:
        yield
    except lightgbm.basic.LightGBMError as error:
        raise Failure(f"{name}: LightGBM: {' '.join(str(error).split())}") from None
