"""The files of a release: every model by itself, and the bundle of all with the score."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from shared.score import LOGIT_MARGIN, ScoreFormula, ScoreKind
from trainer.export.dense import add_linear, add_networks, add_scaling, add_vectors
from trainer.export.graph import Graph
from trainer.export.maps import add_isotonic, add_lines
from trainer.export.trees import add_trees, leaf_counts
from trainer.models.calibration import Core, Isotonic, Map, Mapped
from trainer.models.fit import Fitted
from trainer.models.gb import Boosting
from trainer.models.lc import Linear
from trainer.models.nn import Network
from trainer.models.svc import Vectors


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedModel:
    """One fitted model. name: `high_20_k_gb`; columns: the features that it reads.

    is_value: its output is a number in the label's own unit, no probability.
    """

    name: str
    label: str
    inputs: str
    algorithm: Literal["gb", "nn", "lc", "svc"]
    columns: tuple[int, ...]
    fitted: Fitted
    is_value: bool = False

    @property
    def core(self) -> Core:
        """What the library fitted, without the map behind it."""
        return self.fitted.core if isinstance(self.fitted, Mapped) else self.fitted

    @property
    def map(self) -> Map | None:
        return self.fitted.map if isinstance(self.fitted, Mapped) else None


def export_model(model: TrainedModel, features: Sequence[str]) -> bytes:
    """One model as a file: `features` (n, n_features) -> `output` (n,), probability or value."""
    graph = Graph()
    add = _add_value if model.is_value else _add_probability
    output = add(graph, model, len(features))
    graph.add("Squeeze", output, graph.constant([1], np.int64), called="output")
    return graph.model(len(features), {"output": ["n"]}, _metadata(model, features))


def _metadata(model: TrainedModel, features: Sequence[str]) -> dict[str, object]:
    """leaf_counts: what `shared.contributions` weighs the branches of trees by."""
    found: dict[str, object] = {
        "name": model.name,
        "label": model.label,
        "features": list(features),
    }
    if isinstance(model.core, Boosting):
        found["leaf_counts"] = leaf_counts(model.core)
    return found


def export_bundle(
    models: Sequence[TrainedModel], formula: ScoreFormula, features: Sequence[str]
) -> bytes:
    """All models and the score: `features` -> `outputs` (n, n_models), `score` (n,)."""
    graph = Graph()
    outputs = _add_probabilities(graph, models, len(features), called="outputs")
    _add_score(graph, formula, [model.name for model in models], outputs)
    metadata = {"models": [model.name for model in models], "features": list(features)}
    return graph.model(len(features), {"outputs": ["n", len(models)], "score": ["n"]}, metadata)


def _add_probability(graph: Graph, model: TrainedModel, width: int) -> str:
    return _add_probabilities(graph, [model], width)


def _add_value(graph: Graph, model: TrainedModel, width: int) -> str:
    """(n, 1) double: what a regression says."""
    features = _add_features(graph)
    if isinstance(model.core, Boosting):
        return graph.add("Neg", add_trees(graph, model.core, features, model.columns))
    ((_, add),) = _groups([model])
    raw = add(graph, add_scaling(graph, model.core.scaling, features, model.columns, width))
    return add_lines(graph, raw, [model.map])


def _add_features(graph: Graph) -> str:
    # What float32 cannot tell apart, the models must not either: they were trained on float32.
    return graph.cast(graph.cast("features", np.float32), np.float64)


def _add_probabilities(
    graph: Graph, models: Sequence[TrainedModel], width: int, called: str | None = None
) -> str:
    """(n, len(models)) double, `1 / (1 + exp(-logit))`, columns in the order of `models`.

    The exponential of a tree model is the C library's `exp`, as in LightGBM. No step of any model
    lets a row's bits depend on how many rows there are.
    """
    features = _add_features(graph)
    exponentials: list[str] = []
    trees: list[str] = []
    order: list[int] = []
    for place, model in enumerate(models):
        if isinstance(model.core, Boosting):
            minus_raw = add_trees(graph, model.core, features, model.columns)
            trees.append(add_lines(graph, minus_raw, [model.map], negated=True))
            order.append(place)
    if trees:
        exponentials.append(graph.exp_alone(_concat(graph, trees), len(trees)))
    dense: list[str] = []
    for places, add in _groups(models):
        first = models[places[0]]
        assert not isinstance(first.core, Boosting)  # noqa: S101 - for the type checker
        scaled = add_scaling(graph, first.core.scaling, features, first.columns, width)
        dense.append(add(graph, scaled))
        order += places
    if dense:
        maps = [models[place].map for place in order[len(trees) :]]
        logits = add_lines(graph, _concat(graph, dense), maps)
        exponentials.append(graph.each("Exp", graph.add("Neg", logits), len(models) - len(trees)))
    together = _concat(graph, exponentials)
    if order != list(range(len(models))):
        back = np.argsort(order)
        together = graph.add("Gather", together, graph.constant(back, np.int64), axis=1)
    one = graph.constant(1.0, np.float64)
    steps = [model.map if isinstance(model.map, Isotonic) else None for model in models]
    if not any(steps):
        return graph.add("Div", one, graph.add("Add", one, together), called=called)
    return add_isotonic(
        graph, graph.add("Div", one, graph.add("Add", one, together)), steps, called=called
    )


def _groups(
    models: Sequence[TrainedModel],
) -> list[tuple[list[int], Callable[[Graph, str], str]]]:
    """Dense models that can share their products: same scaling, same columns, same shape."""
    linear: dict[tuple[object, ...], list[int]] = defaultdict(list)
    networks: dict[tuple[object, ...], list[int]] = defaultdict(list)
    groups: list[tuple[list[int], Callable[[Graph, str], str]]] = []
    for place, model in enumerate(models):
        core = model.core
        if isinstance(core, Boosting):
            continue
        if isinstance(core, Vectors):
            groups.append(([place], partial(add_vectors, model=core)))
            continue
        scaling = core.scaling
        before = (
            model.columns,
            scaling.is_identity,
            *(part.tobytes() for part in (scaling.median, scaling.mean, scaling.scale)),
        )
        if isinstance(core, Linear):
            linear[before].append(place)
        else:
            shapes = tuple(weights.shape for weights in core.weights)
            networks[*before, core.activation, shapes].append(place)
    for places in linear.values():
        fitted = [f for i in places if isinstance(f := models[i].core, Linear)]
        groups.append((places, partial(add_linear, models=fitted)))
    for places in networks.values():
        nets = [f for i in places if isinstance(f := models[i].core, Network)]
        groups.append((places, partial(add_networks, models=nets)))
    return groups


def _concat(graph: Graph, parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else graph.add("Concat", *parts, axis=1)


def _add_score(graph: Graph, formula: ScoreFormula, names: list[str], outputs: str) -> None:
    """shared/score.py, node by node."""
    one = graph.constant(1.0, np.float64)
    values = outputs
    if formula.kind in {ScoreKind.LOGIT_MEAN, ScoreKind.STACK}:
        low, high = (
            graph.constant(bound, np.float64) for bound in (LOGIT_MARGIN, 1.0 - LOGIT_MARGIN)
        )
        kept = graph.add("Clip", outputs, low, high)
        odds = graph.add("Div", kept, graph.add("Sub", one, kept))
        values = graph.each("Log", odds, len(names))
    high_columns, low_columns = formula.columns(names)
    if formula.kind is ScoreKind.STACK:
        sides = [
            _weighted(graph, values, [stack.weights[name] for name in names], stack.bias)
            for stack in formula.stacks
        ]
        graph.add(
            "Squeeze",
            _difference_of_logistics(graph, *sides),
            graph.constant([1], np.int64),
            called="score",
        )
        return
    columns = _columns(graph, values, len(names))
    high_mean, low_mean = (
        _mean(graph, [columns[i] for i in side]) for side in (high_columns, low_columns)
    )
    match formula.kind:
        case ScoreKind.RATIO:
            top = graph.add("Mul", graph.constant(2.0, np.float64), high_mean)
            ratio = graph.add("Div", top, graph.add("Add", high_mean, low_mean))
            score = graph.add("Sub", ratio, one)
        case ScoreKind.DIFFERENCE:
            score = graph.add("Sub", high_mean, low_mean)
        case ScoreKind.LOGIT_MEAN:
            score = _difference_of_logistics(graph, high_mean, low_mean)
        case _:
            raise AssertionError(formula.kind)
    graph.add("Squeeze", score, graph.constant([1], np.int64), called="score")


def _columns(graph: Graph, values: str, width: int) -> list[str]:
    if width == 1:
        return [values]
    first = graph.add("Split", values, axis=1, num_outputs=width, outputs=width)
    return [first, *(f"{first}_{i}" for i in range(1, width))]


def _weighted(graph: Graph, logits: str, weights: Sequence[float], bias: float) -> str:
    """`sum_j weights[j] * logits[j] + bias`, from left to right, (n, 1)."""
    parts = _columns(
        graph, graph.add("Mul", logits, graph.constant([weights], np.float64)), len(weights)
    )
    total = parts[0] if len(parts) == 1 else graph.add("Sum", *parts)
    return graph.add("Add", total, graph.constant(bias, np.float64))


def _difference_of_logistics(graph: Graph, high: str, low: str) -> str:
    both = _logistic(graph, graph.add("Concat", high, low, axis=1), 2)
    first = graph.add("Split", both, axis=1, num_outputs=2, outputs=2)
    return graph.add("Sub", first, f"{first}_1")


def _mean(graph: Graph, columns: Sequence[str]) -> str:
    total = columns[0] if len(columns) == 1 else graph.add("Sum", *columns)
    return graph.add("Div", total, graph.constant(float(len(columns)), np.float64))


def _logistic(graph: Graph, value: str, width: int) -> str:
    one = graph.constant(1.0, np.float64)
    exponential = graph.each("Exp", graph.add("Neg", value), width)
    return graph.add("Div", one, graph.add("Add", one, exponential))
