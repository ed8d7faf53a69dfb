"""The same perceptron by PyTorch (`pip install "itb[nn]"`); its export is the same graph."""

import importlib.util
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from shared.errors import Failure
from trainer.models.scaling import Scaling

if TYPE_CHECKING:
    from trainer.models import nn

FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]


def sees_a_gpu() -> bool:
    """Whether PyTorch is installed and finds a GPU that it can use."""
    if importlib.util.find_spec("torch") is None:
        return False
    import torch  # noqa: PLC0415 - optional, large

    return bool(torch.cuda.is_available())


def device_name() -> str:
    return "a GPU" if sees_a_gpu() else "the CPU"


def fit(
    chosen: "nn.Options",
    scaling: Scaling,
    scaled: Float32Array,
    y: FloatArray,
    weights: FloatArray | None,
    seed: int,
    name: str,
    *,
    is_value: bool,
    epochs: int | None,
) -> "nn.Network":
    """Adam on mini-batches with scikit-learn's L2 term; on a GPU where there is one.

    Raises:
        Failure: PyTorch is not installed.
    """
    from trainer.models import nn  # noqa: PLC0415 - which imports this module

    network = _Trained(chosen, scaled, y, weights, seed, name, is_value)
    for _ in range(epochs or int(chosen.train.get("max_iter", nn.EPOCHS))):
        network.epoch()
    weights_, biases = network.weights()
    activation = str(chosen.train.get("activation", "relu"))
    return nn.Network(
        scaling=scaling,
        weights=weights_,
        biases=biases,
        activation=activation,
        native=partial(_outputs, weights_, biases, activation, is_value),
        is_value=is_value,
    )


def _outputs(
    weights: Sequence[Float32Array],
    biases: Sequence[Float32Array],
    activation: str,
    is_value: bool,
    values: Float32Array,
) -> FloatArray:
    """PyTorch's own way from scaled inputs to outputs, on the CPU, of a network that was trained
    anywhere."""
    import torch  # noqa: PLC0415 - optional, large

    torch.set_num_threads(1)  # as all fits: sums in another number of threads have other bits
    between = {"relu": torch.relu, "tanh": torch.tanh, "logistic": torch.sigmoid}
    with torch.no_grad():
        found = torch.from_numpy(np.ascontiguousarray(values))
        for at, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            if at and activation in between:
                found = between[activation](found)
            found = torch.nn.functional.linear(
                found, torch.from_numpy(np.ascontiguousarray(weight.T)), torch.from_numpy(bias)
            )
        raw = found.squeeze(1).double()
        return np.asarray((raw if is_value else torch.sigmoid(raw)).numpy())


def epochs(
    chosen: "nn.Options",
    scaled: Float32Array,
    y: FloatArray,
    weights: FloatArray | None,
    seed: int,
    name: str,
    *,
    is_value: bool,
) -> Iterator[Callable[[Float32Array], FloatArray]]:
    """After each epoch, the network's way from scaled inputs to outputs; without end."""
    network = _Trained(chosen, scaled, y, weights, seed, name, is_value)
    while True:
        network.epoch()
        yield network.predict


class _Trained:
    """A network that is being trained; all that is random comes from its own generator."""

    def __init__(
        self,
        chosen: "nn.Options",
        scaled: Float32Array,
        y: FloatArray,
        weights: FloatArray | None,
        seed: int,
        name: str,
        is_value: bool,
    ) -> None:
        """
        Raises:
            Failure: PyTorch is not installed.
        """
        from trainer.models import nn  # noqa: PLC0415 - which imports this module

        # cuBLAS gives equal bits only with a workspace of its own, set before its first use
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        try:
            import torch  # noqa: PLC0415 - optional, large
        except ImportError:
            raise Failure(
                f'{name}: params.backend "torch" needs PyTorch: pip install "itb[nn]", or use '
                '"sklearn"'
            ) from None
        torch.use_deterministic_algorithms(True)
        torch.set_num_threads(1)
        self._torch: Any = torch
        self._is_value = is_value
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._generator = torch.Generator().manual_seed(seed)
        activation = str(chosen.train.get("activation", "relu"))
        layer_of = {
            "relu": torch.nn.ReLU,
            "tanh": torch.nn.Tanh,
            "logistic": torch.nn.Sigmoid,
            "identity": torch.nn.Identity,
        }[activation]
        sizes = (scaled.shape[1], *chosen.layers, 1)
        linears = [torch.nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
        for linear in linears:  # Glorot, as scikit-learn does, from our own generator
            bound = (6.0 / (linear.in_features + linear.out_features)) ** 0.5
            with torch.no_grad():
                linear.weight.uniform_(-bound, bound, generator=self._generator)
                linear.bias.uniform_(-bound, bound, generator=self._generator)
        parts: list[Any] = []
        for linear in linears[:-1]:
            parts += [linear, layer_of()]
        self._network = torch.nn.Sequential(*parts, linears[-1]).to(device)
        self._batch = int(chosen.train.get("batch_size", nn.batch_size(len(y))))
        self._alpha = float(chosen.train.get("alpha", nn.ALPHA))
        rate = float(chosen.train.get("learning_rate_init", 1e-3))
        self._optimizer = torch.optim.Adam(self._network.parameters(), lr=rate)
        losses = torch.nn.MSELoss if is_value else torch.nn.BCEWithLogitsLoss
        self._loss_of = losses(reduction="none")
        self._device = device
        self._inputs = torch.from_numpy(np.ascontiguousarray(scaled)).to(device)
        self._targets = torch.from_numpy(y.astype(np.float32)).to(device)
        counts = np.ones(len(y)) if weights is None else weights
        self._weights = torch.from_numpy(counts.astype(np.float32)).to(device)

    def linears(self) -> list[Any]:
        return [m for m in self._network if isinstance(m, self._torch.nn.Linear)]

    def weights(self) -> tuple[tuple[Float32Array, ...], tuple[Float32Array, ...]]:
        """(n_in, n_out) per layer, and the biases."""
        linears = self.linears()
        return (
            tuple(np.ascontiguousarray(n.weight.detach().cpu().numpy().T) for n in linears),
            tuple(n.bias.detach().cpu().numpy().copy() for n in linears),
        )

    def epoch(self) -> None:
        count = len(self._targets)
        order = self._torch.randperm(count, generator=self._generator).to(self._device)
        for start in range(0, count, self._batch):
            rows = order[start : start + self._batch]
            self._optimizer.zero_grad()
            penalty = sum((linear.weight**2).sum() for linear in self.linears())
            losses = self._loss_of(
                self._network(self._inputs[rows]).squeeze(1), self._targets[rows]
            )
            if self._is_value:  # half the square, as scikit-learn
                losses = 0.5 * losses
            loss = (losses * self._weights[rows]).sum() / self._weights[rows].sum()
            # scikit-learn's L2 term: alpha / 2 per sample of the batch
            (loss + 0.5 * self._alpha / len(rows) * penalty).backward()
            self._optimizer.step()

    def predict(self, values: Float32Array) -> FloatArray:
        torch = self._torch
        with torch.no_grad():
            inputs = torch.from_numpy(np.ascontiguousarray(values)).to(self._device)
            raw = self._network(inputs).squeeze(1).double()
            return np.asarray((raw if self._is_value else torch.sigmoid(raw)).cpu().numpy())
