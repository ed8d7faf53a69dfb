"""Neural network: standardise, clip, a small perceptron by scikit-learn or PyTorch."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.neural_network import MLPClassifier

from shared.config import Algorithm
from shared.errors import Failure
from trainer.models import options
from trainer.models.scaling import Scaling

FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]

LAYERS = (64, 32)
EPOCHS = 6
ALPHA = 1e-2
ACTIVATIONS = ("relu", "tanh", "logistic", "identity")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """layers: hidden units; backend: `sklearn` or `torch`; train: scikit-learn's arguments
    (torch: learning_rate_init, alpha, batch_size, max_iter, activation)."""

    backend: str
    is_scale: bool
    layers: tuple[int, ...]
    train: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Dense layers in float32 over scaled inputs, one logistic output.

    weights: (n_in, n_out) per layer; activation: between layers, one of ACTIVATIONS.
    """

    scaling: Scaling
    weights: tuple[Float32Array, ...]
    biases: tuple[Float32Array, ...]
    activation: str
    native: Callable[[Float32Array], FloatArray]

    def predict(self, x: npt.NDArray[np.float32]) -> FloatArray:
        return self.native(self.scaling.apply(x).astype(np.float32))


def parse(algorithm: Algorithm) -> Options:
    """Raises Usage where the config is wrong."""
    names = ("backend", "is_scale", "layers", *options.ROW_PARAMS)
    options.check_names(algorithm, "params", algorithm.params, names)
    backend = options.choice(algorithm, "backend", "sklearn", ("sklearn", "torch"))
    if backend == "torch":
        known = {"learning_rate_init", "alpha", "batch_size", "max_iter", "activation"}
    else:
        known = set(MLPClassifier().get_params()) - {"hidden_layer_sizes", "verbose", "warm_start"}
    options.check_names(algorithm, "train", algorithm.train, known)
    if algorithm.train.get("activation", "relu") not in ACTIVATIONS:
        raise options.refused(
            algorithm, f"train.activation must be one of: {', '.join(ACTIVATIONS)}"
        )
    layers = algorithm.params.get("layers", LAYERS)
    if (
        not isinstance(layers, list | tuple)
        or not layers
        or any(isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= 4096 for n in layers)
    ):
        raise options.refused(algorithm, "params.layers must be a list of whole numbers")
    return Options(
        backend=backend,
        is_scale=options.flag(algorithm, "is_scale", True),
        layers=tuple(layers),
        train=dict(algorithm.train),
    )


def batch_size(rows: int) -> int:
    """1,024, and less where rows are few, so that an epoch keeps about 75 steps; at least 32."""
    return min(1024, max(32, math.ceil(rows / 75)))


def fit(
    chosen: Options, scaling: Scaling, scaled: Float32Array, y: FloatArray, seed: int, name: str
) -> Network:
    """scaled: float32 of what `scaling` made of the training rows; y: (n,) 0 or 1.

    Raises:
        Failure: the library is missing or refused the arguments.
    """
    if chosen.backend == "torch":
        from trainer.models import torch_nn  # noqa: PLC0415 - an extra of 900 MB

        return torch_nn.fit(chosen, scaling, scaled, y, seed, name)
    arguments: dict[str, Any] = {
        "alpha": ALPHA,
        "batch_size": min(batch_size(len(y)), len(y)),
        "max_iter": EPOCHS,
        "random_state": seed,
    } | chosen.train
    try:
        native = MLPClassifier(hidden_layer_sizes=chosen.layers, **arguments)
        native.fit(scaled, y)
    except (ValueError, TypeError) as error:
        raise Failure(f"{name}: MLPClassifier: {' '.join(str(error).split())}") from None

    def predict(values: Float32Array) -> FloatArray:
        return np.asarray(native.predict_proba(values)[:, 1], np.float64)

    return Network(
        scaling=scaling,
        weights=tuple(np.asarray(w, np.float32) for w in native.coefs_),
        biases=tuple(np.asarray(b, np.float32) for b in native.intercepts_),
        activation=str(native.activation),
        native=predict,
    )
