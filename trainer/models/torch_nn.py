"""The same perceptron by PyTorch (`pip install "itb[nn]"`); its export is the same graph."""

import itertools

import numpy as np
import numpy.typing as npt

from shared.errors import Failure
from trainer.models import nn
from trainer.models.scaling import Scaling

FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]


def fit(
    chosen: nn.Options,
    scaling: Scaling,
    scaled: Float32Array,
    y: FloatArray,
    seed: int,
    name: str,
) -> nn.Network:
    """Adam on mini-batches with scikit-learn's L2 term; on a GPU where there is one.

    Raises:
        Failure: PyTorch is not installed.
    """
    try:
        import torch  # noqa: PLC0415 - optional, large
    except ImportError:
        raise Failure(
            f'{name}: params.backend "torch" needs PyTorch: pip install "itb[nn]", or use "sklearn"'
        ) from None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(seed)
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
            linear.weight.uniform_(-bound, bound, generator=generator)
            linear.bias.uniform_(-bound, bound, generator=generator)
    parts: list[torch.nn.Module] = []
    for linear in linears[:-1]:
        parts += [linear, layer_of()]
    network = torch.nn.Sequential(*parts, linears[-1]).to(device)

    batch = int(chosen.train.get("batch_size", nn.batch_size(len(y))))
    epochs = int(chosen.train.get("max_iter", nn.EPOCHS))
    alpha = float(chosen.train.get("alpha", nn.ALPHA))
    rate = float(chosen.train.get("learning_rate_init", 1e-3))
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    loss_of = torch.nn.BCEWithLogitsLoss()
    inputs = torch.from_numpy(np.ascontiguousarray(scaled)).to(device)
    targets = torch.from_numpy(y.astype(np.float32)).to(device)
    for _ in range(epochs):
        order = torch.randperm(len(y), generator=generator).to(device)
        for start in range(0, len(y), batch):
            rows = order[start : start + batch]
            optimizer.zero_grad()
            penalty = sum((linear.weight**2).sum() for linear in linears)
            loss = loss_of(network(inputs[rows]).squeeze(1), targets[rows])
            # scikit-learn's L2 term: alpha / 2 per sample of the batch
            (loss + 0.5 * alpha / len(rows) * penalty).backward()
            optimizer.step()
    network = network.to("cpu").eval()

    def predict(values: Float32Array) -> FloatArray:
        with torch.no_grad():
            logits = network(torch.from_numpy(np.ascontiguousarray(values))).squeeze(1)
            return np.asarray(torch.sigmoid(logits.double()).numpy(), np.float64)

    return nn.Network(
        scaling=scaling,
        weights=tuple(np.ascontiguousarray(n.weight.detach().numpy().T) for n in linears),
        biases=tuple(n.bias.detach().numpy().copy() for n in linears),
        activation=activation,
        native=predict,
    )
