"""The files of a release: every model by itself, and the bundle of all with the score."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from shared.score import LOGIT_MARGIN, ScoreFormula, ScoreKind
from trainer.export.dense import add_linear, add_networks, add_scaling
from trainer.export.graph import Graph
from trainer.export.trees import add_trees
from trainer.models.gb import Boosting
from trainer.models.lc import Linear
from trainer.models.nn import Network


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedModel:
    """One fitted model. name: `high_20_k_gb`; columns: the features that it reads."""

    name: str
    label: str
    inputs: str
    algorithm: Literal["gb", "nn", "lc"]
    columns: tuple[int, ...]
    fitted: Boosting | Network | Linear


def export_model(model: TrainedModel, features: Sequence[str]) -> bytes:
    """One model as a file: `features` (n, n_features) -> `output` (n,), a probability."""
    graph = Graph()
    probability = _add_probabilities(graph, [model], len(features))
    graph.add("Squeeze", probability, graph.constant([1], np.int64), called="output")
    metadata = {"name": model.name, "label": model.label, "features": list(features)}
    return graph.model(len(features), {"output": ["n"]}, metadata)


def export_bundle(
    models: Sequence[TrainedModel], formula: ScoreFormula, features: Sequence[str]
) -> bytes:
    """All models and the score: `features` -> `outputs` (n, n_models), `score` (n,)."""
    graph = Graph()
    outputs = _add_probabilities(graph, models, len(features), called="outputs")
    _add_score(graph, formula, [model.name for model in models], outputs)
    metadata = {"models": [model.name for model in models], "features": list(features)}
    return graph.model(len(features), {"outputs": ["n", len(models)], "score": ["n"]}, metadata)


def _add_probabilities(
    graph: Graph, models: Sequence[TrainedModel], width: int, called: str | None = None
) -> str:
    """(n, len(models)) double, `1 / (1 + exp(-logit))`, columns in the order of `models`.

    The exponential of a tree model is the C library's `exp`, as in LightGBM. No step of any model
    lets a row's bits depend on how many rows there are.
    """
    # What float32 cannot tell apart, the models must not either: they were trained on float32.
    features = graph.cast(graph.cast("features", np.float32), np.float64)
    exponentials: list[str] = []
    trees: list[str] = []
    order: list[int] = []
    for place, model in enumerate(models):
        if isinstance(model.fitted, Boosting):
            trees.append(add_trees(graph, model.fitted, features, model.columns))
            order.append(place)
    if trees:
        exponentials.append(graph.exp_alone(_concat(graph, trees), len(trees)))
    dense: list[str] = []
    for places, add in _groups(models):
        first = models[places[0]]
        assert not isinstance(first.fitted, Boosting)  # noqa: S101 - for the type checker
        scaled = add_scaling(graph, first.fitted.scaling, features, first.columns, width)
        dense.append(add(graph, scaled))
        order += places
    if dense:
        logits = _concat(graph, dense)
        exponentials.append(graph.each("Exp", graph.add("Neg", logits), len(models) - len(trees)))
    together = _concat(graph, exponentials)
    if order != list(range(len(models))):
        back = np.argsort(order)
        together = graph.add("Gather", together, graph.constant(back, np.int64), axis=1)
    one = graph.constant(1.0, np.float64)
    return graph.add("Div", one, graph.add("Add", one, together), called=called)


def _groups(
    models: Sequence[TrainedModel],
) -> list[tuple[list[int], Callable[[Graph, str], str]]]:
    """Dense models that can share their products: same scaling, same columns, same shape."""
    linear: dict[tuple[object, ...], list[int]] = defaultdict(list)
    networks: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for place, model in enumerate(models):
        if isinstance(model.fitted, Boosting):
            continue
        scaling = model.fitted.scaling
        before = (
            model.columns,
            scaling.is_identity,
            *(part.tobytes() for part in (scaling.median, scaling.mean, scaling.scale)),
        )
        if isinstance(model.fitted, Linear):
            linear[before].append(place)
        else:
            shapes = tuple(weights.shape for weights in model.fitted.weights)
            networks[*before, model.fitted.activation, shapes].append(place)
    groups: list[tuple[list[int], Callable[[Graph, str], str]]] = []
    for places in linear.values():
        fitted = [f for i in places if isinstance(f := models[i].fitted, Linear)]
        groups.append((places, partial(add_linear, models=fitted)))
    for places in networks.values():
        nets = [f for i in places if isinstance(f := models[i].fitted, Network)]
        groups.append((places, partial(add_networks, models=nets)))
    return groups


def _concat(graph: Graph, parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else graph.add("Concat", *parts, axis=1)


def _add_score(graph: Graph, formula: ScoreFormula, names: list[str], outputs: str) -> None:
    """shared/score.py, node by node."""
    one = graph.constant(1.0, np.float64)
    values = outputs
    if formula.kind is ScoreKind.LOGIT_MEAN:
        low, high = (
            graph.constant(bound, np.float64) for bound in (LOGIT_MARGIN, 1.0 - LOGIT_MARGIN)
        )
        kept = graph.add("Clip", outputs, low, high)
        odds = graph.add("Div", kept, graph.add("Sub", one, kept))
        values = graph.each("Log", odds, len(names))
    columns = [values]
    if len(names) > 1:
        first = graph.add("Split", values, axis=1, num_outputs=len(names), outputs=len(names))
        columns = [first, *(f"{first}_{i}" for i in range(1, len(names)))]
    high_mean, low_mean = (
        _mean(graph, [columns[i] for i in side]) for side in formula.columns(names)
    )
    match formula.kind:
        case ScoreKind.RATIO:
            top = graph.add("Mul", graph.constant(2.0, np.float64), high_mean)
            ratio = graph.add("Div", top, graph.add("Add", high_mean, low_mean))
            score = graph.add("Sub", ratio, one)
        case ScoreKind.DIFFERENCE:
            score = graph.add("Sub", high_mean, low_mean)
        case ScoreKind.LOGIT_MEAN:
            both = _logistic(graph, graph.add("Concat", high_mean, low_mean, axis=1), 2)
            high = graph.add("Split", both, axis=1, num_outputs=2, outputs=2)
            score = graph.add("Sub", high, f"{high}_1")
    graph.add("Squeeze", score, graph.constant([1], np.int64), called="score")


def _mean(graph: Graph, columns: Sequence[str]) -> str:
    total = columns[0] if len(columns) == 1 else graph.add("Sum", *columns)
    return graph.add("Div", total, graph.constant(float(len(columns)), np.float64))


def _logistic(graph: Graph, value: str, width: int) -> str:
    one = graph.constant(1.0, np.float64)
    exponential = graph.each("Exp", graph.add("Neg", value), width)
    return graph.add("Div", one, graph.add("Add", one, exponential))
