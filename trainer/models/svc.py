"""Support vectors: standardise, clip, scikit-learn's SVC (values: SVR) on a sample of the rows.

What an SVC says is no probability: the outputs come from a map fitted on a purged tail (Platt,
unless the config says isotonic), never from scikit-learn's own, whose random folds put
neighbouring rows, nearly equal, on both sides.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.svm import SVC, SVR

from shared.config import Algorithm
from shared.errors import Failure
from trainer.models import options
from trainer.models.scaling import Scaling

FloatArray = npt.NDArray[np.float64]

# Time grows with the square of the rows, and each row through the model costs a product with
# every support vector.
MAX_ROWS = 10_000
KERNELS = ("rbf", "linear", "poly")
_NOT_TAKEN = {"probability", "verbose", "class_weight", "decision_function_shape", "break_ties"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """is_scale: standardise and clip (the default); train: scikit-learn's own arguments."""

    is_scale: bool
    train: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """`sum_j weights[j] * kernel(scaled, vectors[j]) + bias`, all float64.

    vectors: (m, n_columns), one row for a linear kernel; weights: (m,). Kernels: `rbf`
    exp(-gamma |a - b|^2), `poly` (gamma a.b + coef0)^degree, `linear` a.b.
    """

    scaling: Scaling
    kernel: str
    vectors: FloatArray
    weights: FloatArray
    bias: float
    gamma: float
    coef0: float
    degree: int
    native: SVC | SVR

    def raw(self, x: npt.NDArray[np.float32]) -> FloatArray:
        scaled = self.scaling.apply(x)
        decide = getattr(self.native, "decision_function", self.native.predict)
        return np.asarray(decide(scaled), np.float64)


def parse(algorithm: Algorithm) -> tuple[Options, frozenset[bool]]:
    """The options, and for which kinds of labels they are (`options.kinds`).

    Raises:
        Usage: the config is wrong.
    """
    names = ("is_scale", "max_rows", *options.COMMON_PARAMS)
    options.check_names(algorithm, "params", algorithm.params, names)
    kinds = options.kinds(
        algorithm, set(SVC().get_params()) - _NOT_TAKEN, set(SVR().get_params()) - _NOT_TAKEN
    )
    if algorithm.train.get("kernel", "rbf") not in KERNELS:
        raise options.refused(algorithm, f"train.kernel must be one of: {', '.join(KERNELS)}")
    if algorithm.params.get("calibrate") == "none" and False in kinds:
        raise options.refused(
            algorithm, 'an SVC gives no probabilities: params.calibrate "platt" or "isotonic"'
        )
    chosen = Options(
        is_scale=options.flag(algorithm, "is_scale", True), train=dict(algorithm.train)
    )
    return chosen, kinds


def fit(
    chosen: Options,
    scaling: Scaling,
    scaled: FloatArray,
    y: FloatArray,
    weights: FloatArray | None,
    seed: int,
    name: str,
    *,
    is_value: bool,
) -> Vectors:
    """scaled: what `scaling` made of the training rows; y: (n,) 0 or 1, or values.

    Raises:
        Failure: scikit-learn refused the arguments.
    """
    try:
        seeded = {"random_state": seed} | chosen.train
        native = SVR(**chosen.train) if is_value else SVC(**seeded)
        native.fit(scaled, y, sample_weight=weights)
    except (ValueError, TypeError) as error:
        which = "SVR" if is_value else "SVC"
        raise Failure(f"{name}: {which}: {' '.join(str(error).split())}") from None
    vectors = np.asarray(native.support_vectors_, np.float64)
    dual = np.asarray(native.dual_coef_[0], np.float64)
    if native.kernel == "linear":
        vectors, dual = np.asarray(dual @ vectors)[None], np.ones(1)
    return Vectors(
        scaling=scaling,
        kernel=str(native.kernel),
        vectors=vectors,
        weights=dual,
        bias=float(native.intercept_[0]),
        gamma=float(native._gamma),  # "scale" and "auto" as numbers
        coef0=float(native.coef0),
        degree=int(native.degree),
        native=native,
    )
