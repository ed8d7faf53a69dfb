"""Neural network: standardise, clip, a small perceptron by scikit-learn or PyTorch."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.neural_network import MLPClassifier, MLPRegressor

from shared.config import Algorithm
from shared.errors import Failure
from shared.score import LOGIT_MARGIN
from trainer.models import options, torch_nn
from trainer.models.scaling import Scaling

FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]

LAYERS = (64, 32)
EPOCHS = 6
_EPOCHS_TO_STOP = 50
ALPHA = 1e-2
TORCH_TRAIN = frozenset({"learning_rate_init", "alpha", "batch_size", "max_iter", "activation"})
ACTIVATIONS = ("relu", "tanh", "logistic", "identity")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """layers: hidden units; train: scikit-learn's arguments (torch: learning_rate_init, alpha,
    batch_size, max_iter, activation).

    backend: `sklearn` or `torch`; the config's `auto`, the default, is torch where it is installed
    and sees a GPU.
    """

    backend: str
    is_scale: bool
    layers: tuple[int, ...]
    train: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Dense layers in float32 over scaled inputs, one logistic output (of values: a plain one).

    weights: (n_in, n_out) per layer; activation: between layers, one of ACTIVATIONS. native: the
    library's own way from scaled inputs to the output.
    """

    scaling: Scaling
    weights: tuple[Float32Array, ...]
    biases: tuple[Float32Array, ...]
    activation: str
    native: Callable[[Float32Array], FloatArray]
    is_value: bool = False

    def raw(self, x: npt.NDArray[np.float32]) -> FloatArray:
        """Logits: of the probability, which is all that the libraries give, in double."""
        found = self.predict(x)
        if self.is_value:
            return found
        kept = np.clip(found, LOGIT_MARGIN, 1.0 - LOGIT_MARGIN)
        return np.asarray(np.log(kept / (1.0 - kept)))

    def predict(self, x: npt.NDArray[np.float32]) -> FloatArray:
        return self.native(self.scaling.apply(x, np.float32))


def parse(algorithm: Algorithm) -> tuple[Options, frozenset[bool]]:
    """The options, and for which kinds of labels they are (`options.kinds`).

    Raises:
        Usage: the config is wrong.
    """
    own = ("backend", "is_scale", "layers", "early_stopping", "patience")
    options.check_names(algorithm, "params", algorithm.params, (*own, *options.COMMON_PARAMS))
    backend = options.choice(algorithm, "backend", "auto", ("auto", "sklearn", "torch"))
    # validation_fraction and the like are of scikit-learn's own early stopping, on random rows
    known = set(MLPClassifier().get_params()) - {
        *("hidden_layer_sizes", "verbose", "warm_start", "early_stopping"),
        *("validation_fraction", "n_iter_no_change"),
    }
    if backend == "auto":
        fits = TORCH_TRAIN.issuperset(algorithm.train)
        backend = "torch" if fits and torch_nn.sees_a_gpu() else "sklearn"
    if backend == "torch":
        known = set(TORCH_TRAIN)
    kinds = options.kinds(algorithm, known, known)
    if algorithm.params.get("early_stopping") and algorithm.train.get("solver", "adam") == "lbfgs":
        raise options.refused(algorithm, "lbfgs knows no epochs: it has no early stopping")
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
    chosen = Options(
        backend=backend,
        is_scale=options.flag(algorithm, "is_scale", True),
        layers=tuple(layers),
        train=dict(algorithm.train),
    )
    return chosen, kinds


def batch_size(rows: int) -> int:
    """1,024, and less where rows are few, so that an epoch keeps about 75 steps; at least 32."""
    return min(1024, max(32, math.ceil(rows / 75)))


def fit(
    chosen: Options,
    scaling: Scaling,
    scaled: Float32Array,
    y: FloatArray,
    weights: FloatArray | None,
    seed: int,
    name: str,
    *,
    is_value: bool = False,
    epochs: int | None = None,
) -> Network:
    """scaled: float32 of what `scaling` made of the training rows; y: (n,) 0 or 1, or values;
    epochs: instead of those of the config.

    Raises:
        Failure: the library is missing or refused the arguments.
    """
    if chosen.backend == "torch":
        return torch_nn.fit(
            chosen, scaling, scaled, y, weights, seed, name, is_value=is_value, epochs=epochs
        )
    with _refusals(name, is_value):
        native = _native(chosen, len(y), seed, is_value, epochs)
        native.fit(scaled, y, sample_weight=weights)
    return _network(native, scaling, is_value)


def best_epochs(
    chosen: Options,
    scaled: Float32Array,
    y: FloatArray,
    weights: FloatArray | None,
    tail: Float32Array,
    tail_y: FloatArray,
    patience: int,
    seed: int,
    name: str,
    *,
    is_value: bool = False,
) -> int:
    """The number of epochs, up to the config's (unless it says: 50), with the least loss on the
    tail: log-loss, of values the squared error.

    scaled, tail: float32 after scaling.

    Raises:
        Failure: the library is missing or refused the arguments.
    """
    most = int(chosen.train.get("max_iter", _EPOCHS_TO_STOP))
    best, best_loss = 1, math.inf
    trained = _epochs(chosen, scaled, y, weights, seed, name, is_value)
    for epoch, predict in enumerate(trained, 1):
        found = predict(tail)
        if is_value:
            loss = float(np.mean((found - tail_y) ** 2))
        else:
            kept = np.clip(found, LOGIT_MARGIN, 1.0 - LOGIT_MARGIN)
            loss = float(-np.mean(np.where(tail_y > 0.5, np.log(kept), np.log1p(-kept))))
        if loss < best_loss:
            best, best_loss = epoch, loss
        if epoch - best >= patience or epoch >= most:
            break
    return best


def _epochs(
    chosen: Options,
    scaled: Float32Array,
    y: FloatArray,
    weights: FloatArray | None,
    seed: int,
    name: str,
    is_value: bool,
) -> Iterator[Callable[[Float32Array], FloatArray]]:
    """After each epoch, the network's way from scaled inputs to outputs; without end."""
    if chosen.backend == "torch":
        yield from torch_nn.epochs(chosen, scaled, y, weights, seed, name, is_value=is_value)
        return
    native = _native(chosen, len(y), seed, is_value, None)
    while True:
        with _refusals(name, is_value):
            if is_value:
                native.partial_fit(scaled, y, sample_weight=weights)
            else:
                native.partial_fit(scaled, y, sample_weight=weights, classes=[0.0, 1.0])
        yield partial(_outputs, native, is_value)


def _native(
    chosen: Options, rows: int, seed: int, is_value: bool, epochs: int | None
) -> MLPClassifier | MLPRegressor:
    arguments: dict[str, Any] = {
        "alpha": ALPHA,
        "batch_size": min(batch_size(rows), rows),
        "max_iter": EPOCHS,
        "random_state": seed,
    } | chosen.train
    if epochs is not None:
        arguments["max_iter"] = epochs
    kind = MLPRegressor if is_value else MLPClassifier
    return kind(hidden_layer_sizes=chosen.layers, **arguments)


def _outputs(
    native: MLPClassifier | MLPRegressor, is_value: bool, values: Float32Array
) -> FloatArray:
    if is_value:
        return np.asarray(native.predict(values), np.float64)
    return np.asarray(native.predict_proba(values)[:, 1], np.float64)


def _network(native: MLPClassifier | MLPRegressor, scaling: Scaling, is_value: bool) -> Network:
    return Network(
        scaling=scaling,
        weights=tuple(np.asarray(w, np.float32) for w in native.coefs_),
        biases=tuple(np.asarray(b, np.float32) for b in native.intercepts_),
        activation=str(native.activation),
        native=partial(_outputs, native, is_value),
        is_value=is_value,
    )


@contextlib.contextmanager
def _refusals(name: str, is_value: bool) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError) as error:
        which = "MLPRegressor" if is_value else "MLPClassifier"
        raise Failure(f"{name}: {which}: {' '.join(str(error).split())}") from None
