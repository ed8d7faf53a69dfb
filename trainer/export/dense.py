"""Linear classifiers and networks as matrix products, with the scaling that stands before them."""

from collections.abc import Sequence

import numpy as np

from trainer.export.graph import Graph
from trainer.models.lc import Linear
from trainer.models.nn import Network
from trainer.models.scaling import CLIP, Scaling
from trainer.models.svc import Vectors

_ACTIVATION = {"relu": "Relu", "tanh": "Tanh", "logistic": "Sigmoid"}


def add_scaling(
    graph: Graph, scaling: Scaling, features: str, columns: Sequence[int], width: int
) -> str:
    """Name of the scaled columns, (n, len(columns)) double.

    features: name of the (n, width) double input, values as float32 has them.
    """
    x = features
    if list(columns) != list(range(width)):
        x = graph.add("Gather", x, graph.constant(columns, np.int64), axis=1)
    x = graph.add("Where", graph.add("IsNaN", x), graph.constant(scaling.median, np.float64), x)
    if scaling.is_identity:
        return x
    x = graph.add("Sub", x, graph.constant(scaling.mean, np.float64))
    x = graph.add("Div", x, graph.constant(scaling.scale, np.float64))
    return graph.add("Clip", x, graph.constant(-CLIP, np.float64), graph.constant(CLIP, np.float64))


def add_linear(graph: Graph, scaled: str, models: Sequence[Linear]) -> str:
    """Logits of classifiers that share their scaling, (n, len(models)) double."""
    weights = np.column_stack([model.weights for model in models])
    biases = [model.bias for model in models]
    return graph.add(
        "Gemm", scaled, graph.constant(weights, np.float64), graph.constant(biases, np.float64)
    )


def add_networks(graph: Graph, scaled: str, models: Sequence[Network]) -> str:
    """Logits of networks of one shape that share their scaling, (n, len(models)) double.

    The first layers stand side by side in one product, the others are one batched product over
    (models, n, units): fewer and larger nodes than one chain for each. In double, because
    onnxruntime adds up a batched float32 product of one row in another order than of several.
    """
    count, activation = len(models), _ACTIVATION.get(models[0].activation)
    x = scaled
    first = np.column_stack([model.weights[0] for model in models])
    first_bias = np.concatenate([model.biases[0] for model in models])
    x = graph.add(
        "Gemm", x, graph.constant(first, np.float64), graph.constant(first_bias, np.float64)
    )
    layers = len(models[0].weights)
    for layer in range(1, layers):
        if activation == "Relu":
            x = graph.add(activation, x)
        elif activation is not None:  # in double the bits would depend on a number's neighbours
            x = graph.cast(graph.add(activation, graph.cast(x, np.float32)), np.float64)
        if layer == 1 and count > 1:
            shape = graph.constant([-1, count, first.shape[1] // count], np.int64)
            x = graph.add("Transpose", graph.add("Reshape", x, shape), perm=[1, 0, 2])
        weights = [model.weights[layer] for model in models]
        biases = [model.biases[layer] for model in models]
        if count == 1:
            x = graph.add(
                "Gemm",
                x,
                graph.constant(weights[0], np.float64),
                graph.constant(biases[0], np.float64),
            )
        else:
            x = graph.add("MatMul", x, graph.constant(np.stack(weights), np.float64))
            x = graph.add("Add", x, graph.constant(np.stack(biases)[:, None, :], np.float64))
    if count > 1:  # (models, n, 1) -> (n, models)
        x = graph.add("Transpose", x, perm=[1, 2, 0])
        x = graph.add("Reshape", x, graph.constant([-1, count], np.int64))
    return x


def add_vectors(graph: Graph, scaled: str, model: Vectors) -> str:
    """Decision values of a support-vector machine, (n, 1) double.

    The squared distance of rbf as libsvm has it, `x.x + v.v - 2 x.v`: one product for all vectors.
    """
    across = model.vectors.T
    if model.kernel == "linear":
        kernel = graph.add("MatMul", scaled, graph.constant(across, np.float64))
    elif model.kernel == "poly":
        products = graph.add("MatMul", scaled, graph.constant(model.gamma * across, np.float64))
        base = graph.add("Add", products, graph.constant(model.coef0, np.float64))
        kernel = graph.add("Pow", base, graph.constant(float(model.degree), np.float64))
    else:
        twice = graph.constant(2.0 * model.gamma * across, np.float64)
        own = graph.constant(-model.gamma * (model.vectors**2).sum(axis=1), np.float64)
        squares = graph.add(
            "ReduceSum",
            graph.add("Mul", scaled, scaled),
            graph.constant([1], np.int64),
            keepdims=1,
        )
        of_rows = graph.add("Mul", squares, graph.constant(model.gamma, np.float64))
        minus = graph.add("Sub", graph.add("Gemm", scaled, twice, own), of_rows)
        kernel = graph.each("Exp", minus, len(model.vectors))
    weights = graph.constant(model.weights[:, None], np.float64)
    return graph.add("Gemm", kernel, weights, graph.constant([model.bias], np.float64))
