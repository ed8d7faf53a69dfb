"""Linear models: standardise, clip, logistic regression by scikit-learn (values: ridge)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression, Ridge

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
    """`logistic(scaled @ weights + bias)`, of values without the logistic; weights (n_columns,)
    float64."""

    scaling: Scaling
    weights: FloatArray
    bias: float
    native: LogisticRegression | Ridge
    is_value: bool = False

    def raw(self, x: npt.NDArray[np.float32]) -> FloatArray:
        scaled = self.scaling.apply(x)
        if isinstance(self.native, Ridge):
            return np.asarray(self.native.predict(scaled), np.float64)
        return np.asarray(self.native.decision_function(scaled), np.float64)

    def predict(self, x: npt.NDArray[np.float32]) -> FloatArray:
        if isinstance(self.native, Ridge):
            return self.raw(x)
        return np.asarray(self.native.predict_proba(self.scaling.apply(x))[:, 1], np.float64)


def parse(algorithm: Algorithm) -> tuple[Options, frozenset[bool]]:
    """The options, and for which kinds of labels they are (`options.kinds`).

    Raises:
        Usage: the config is wrong.
    """
    names = ("is_scale", *options.COMMON_PARAMS)
    options.check_names(algorithm, "params", algorithm.params, names)
    kinds = options.kinds(
        algorithm,
        set(LogisticRegression().get_params()) - {"n_jobs", "warm_start", "verbose"},
        Ridge().get_params(),
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
    seed: int,
    name: str,
    *,
    weights: FloatArray | None = None,
    is_value: bool = False,
) -> Linear:
    """scaled: what `scaling` made of the training rows; y: (n,) 0 or 1, or values.

    Raises:
        Failure: scikit-learn refused the arguments.
    """
    try:
        if is_value:
            native = Ridge(**({"random_state": seed} | chosen.train))
        else:
            native = LogisticRegression(**({"random_state": seed} | DEFAULTS | chosen.train))
        native.fit(scaled, y, sample_weight=weights)
    except (ValueError, TypeError) as error:
        raise Failure(
            f"{name}: {'Ridge' if is_value else 'LogisticRegression'}: "
            f"{' '.join(str(error).split())}"
        ) from None
    return Linear(
        scaling=scaling,
        weights=np.asarray(np.ravel(native.coef_), np.float64),
        bias=float(np.ravel(native.intercept_)[0]),
        native=native,
        is_value=is_value,
    )
