"""Linear classifier: standardise, clip, logistic regression by scikit-learn."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression

from shared.config import Algorithm
from shared.errors import Failure
from trainer.models import options
from trainer.models.scaling import Scaling

FloatArray = npt.NDArray[np.float64]

# newton-cholesky: many more rows than columns, a handful of steps to full precision.
DEFAULTS: dict[str, Any] = {"C": 0.1, "solver": "newton-cholesky", "max_iter": 100}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """is_scale: standardise and clip (the default); train: scikit-learn's own arguments."""

    is_scale: bool
    train: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """`logistic(scaled @ weights + bias)`; weights (n_columns,) float64."""

    scaling: Scaling
    weights: FloatArray
    bias: float
    native: LogisticRegression

    def predict(self, x: npt.NDArray[np.float32]) -> FloatArray:
        return np.asarray(self.native.predict_proba(self.scaling.apply(x))[:, 1], np.float64)


def parse(algorithm: Algorithm) -> Options:
    """Raises Usage where the config is wrong."""
    options.check_names(algorithm, "params", algorithm.params, ("is_scale", *options.ROW_PARAMS))
    known = set(LogisticRegression().get_params()) - {"n_jobs", "warm_start", "verbose"}
    options.check_names(algorithm, "train", algorithm.train, known)
    return Options(is_scale=options.flag(algorithm, "is_scale", True), train=dict(algorithm.train))


def fit(
    chosen: Options, scaling: Scaling, scaled: FloatArray, y: FloatArray, seed: int, name: str
) -> Linear:
    """scaled: what `scaling` made of the training rows; y: (n,) 0 or 1.

    Raises:
        Failure: scikit-learn refused the arguments.
    """
    arguments = {"random_state": seed} | DEFAULTS | chosen.train
    try:
        native = LogisticRegression(**arguments).fit(scaled, y)
    except (ValueError, TypeError) as error:
        raise Failure(f"{name}: LogisticRegression: {' '.join(str(error).split())}") from None
    return Linear(
        scaling=scaling,
        weights=np.asarray(native.coef_[0], np.float64),
        bias=float(native.intercept_[0]),
        native=native,
    )
