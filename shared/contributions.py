# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# Numba infers the types of what it compiles.
"""How much each feature moved each model's output, from the ONNX files that a release holds.

In log-odds, before an isotonic map where a model has one. By algorithm:

* `treeshap` (gb): the Shapley values of "path-dependent" TreeSHAP (Lundberg et al. 2020), exact:
  `base`, the mean over the training rows, plus all contributions is the model's logit. A leaf is a
  box: per feature on its path an interval, whether NaN goes there, and the share of the training
  rows that do (`z`). With o = 1 where the row lies in the interval, else 0, feature i gets
  `leaf * (o_i - z_i) * integral over t from 0 to 1 of prod over j != i of (t o_j + (1 - t) z_j)`,
  which is Shapley's weighted sum over subsets; the integrand is a polynomial, so Gauss and
  Legendre's nodes give it exactly. LightGBM's `pred_contrib` gives the same numbers.
* `linear` (lc): `weight * (scaled value - scaled training median)`; `base` is the logit of a row of
  medians. Exact, too.
* `occlusion` (nn, svc): the mean of what changes when the feature alone is put back to its training
  median, and when it alone is put into a row of medians. Exact as long as features interact at most
  in pairs; `remainder` is what is left over.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.bundle import Bundle
from shared.errors import BadInput
from shared.features.kernel import cached
from shared.onnxfile import Graph, Node, read_graph
from shared.releases import read_model
from shared.score import logit, score

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_LEQ = 0  # TreeEnsemble's node mode x <= split
_STEP = 1e-4  # log-odds
_ADDS_UP = 1e-9  # in probability: far above rounding, far below what anybody looks at


class Method(StrEnum):
    """How the contributions to a model were computed."""

    TREESHAP = "treeshap"
    LINEAR = "linear"
    OCCLUSION = "occlusion"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contributions:
    """Of one row, to one model. values: (n_features,) log-odds, 0 where a model does not look.

    logit: `base + sum(values) + remainder`, the log-odds that the model gave, before an isotonic
    map. base: the log-odds without any knowledge of the row.
    """

    method: Method
    base: float
    logit: float
    values: Floats

    @property
    def remainder(self) -> float:
        return self.logit - self.base - float(self.values.sum())


class Contributor:
    """The models of one release, read and ready. Threads may share one.

    medians: (n_features,) training median of each feature, NaN where no model of the release
    holds one. missing: model -> why there are no contributions to it.
    """

    def __init__(self, bundle: Bundle) -> None:
        """
        Raises:
            BadInput: a model's file is not the one that was released, or not one of ours.
        """
        self._bundle = bundle
        width = len(bundle.manifest.features)
        self.medians = np.full(width, np.nan)
        self.missing: dict[str, str] = {}
        self._trees: dict[str, _Trees] = {}
        self._lines: dict[str, _Linear] = {}
        self._others: list[str] = []
        for name, entry in bundle.manifest.models.items():
            try:
                graph = read_graph(read_model(bundle.release, entry))
                if entry.algorithm == "gb":
                    if "leaf_counts" not in graph.metadata:
                        self.missing[name] = (
                            "its file does not say how many training rows each leaf had (made by "
                            "an earlier version): train again"
                        )
                        continue
                    self._trees[name] = _Trees(graph, width)
                    continue
                if entry.algorithm == "lc":
                    self._lines[name] = _Linear(graph, width)
                else:
                    self._others.append(name)
                columns, median = _medians(graph, width)
                unknown = np.isnan(self.medians[columns])
                self.medians[columns[unknown]] = median[unknown]
            except BadInput as error:
                raise BadInput(f"{bundle.release.folder}: {entry.file}: {error}") from None

    def of(self, row: Floats) -> dict[str, Contributions]:
        """Contributions to each model that has any, in the order of the release's models.

        row: (n_features,) float64, one that gets a score.

        Raises:
            BadInput: they do not add up to what the bundle gives.
        """
        with np.errstate(over="ignore"):  # beyond float32 is infinite, in the graph as well
            x = row.astype(np.float32).astype(np.float64)
        found: dict[str, Contributions] = {
            **{name: trees.of(x) for name, trees in self._trees.items()},
            **{name: line.of(x) for name, line in self._lines.items()},
            **self._occluded(x),
        }
        models = self._bundle.manifest.models
        outputs = self._bundle.run(row[None]).named()
        for name, one in found.items():
            is_mapped = models[name].calibration == "isotonic" and name not in self._others
            if is_mapped:
                continue
            said = 1.0 / (1.0 + math.exp(-min(max(one.logit, -700.0), 700.0)))
            if not abs(said - outputs[name]) <= _ADDS_UP:  # NaN must not pass
                raise BadInput(
                    f"{self._bundle.release.folder}: the contributions to {name} add up to "
                    f"{said:g}, the model gives {outputs[name]:g}"
                )
        return {name: found[name] for name in models if name in found}

    def weights(self, outputs: Mapping[str, float]) -> dict[str, float]:
        """model -> by how much the score moves per unit of the model's log-odds, at these outputs:
        the slope of `shared.score`, by central differences.

        outputs: of every model.
        """
        models = self._bundle.models
        here = logit(np.array([outputs[name] for name in models]))
        steps = _STEP * np.eye(len(models))
        moved = 1.0 / (1.0 + np.exp(-np.concatenate([here + steps, here - steps])))
        scores = score(self._bundle.manifest.score.formula, models, moved)
        slopes = (scores[: len(models)] - scores[len(models) :]) / (2.0 * _STEP)
        return dict(zip(models, slopes.tolist(), strict=True))

    def pulls(self, found: Mapping[str, Contributions], outputs: Mapping[str, float]) -> Floats:
        """(n_features,) by how much each feature pulls the score up (+) or down (-), to first
        order: its contributions to all models, each by the model's weight.

        Models without contributions are left out.
        """
        total = np.zeros(len(self._bundle.manifest.features))
        for name, weight in self.weights(outputs).items():
            if name in found:
                total += weight * found[name].values
        return total

    def _occluded(self, x: Floats) -> dict[str, Contributions]:
        """All models that are asked by taking features away; NaN stands for the training median,
        because that is what their graphs put in its place."""
        if not self._others:
            return {}
        used = self._bundle.manifest.used
        count = len(used)
        rows = np.full((2 * count + 2, len(x)), np.nan)
        rows[: count + 1] = x
        rows[np.arange(1, count + 1), used] = np.nan
        rows[np.arange(count + 1, 2 * count + 1), used] = x[used]
        outputs = self._bundle.run(rows)
        found = {}
        for name in self._others:
            logits = logit(outputs.outputs[:, outputs.models.index(name)])
            values = np.zeros(len(x))
            without, alone = logits[1 : count + 1], logits[count + 1 : 2 * count + 1]
            values[used] = 0.5 * ((logits[0] - without) + (alone - logits[-1]))
            found[name] = Contributions(
                method=Method.OCCLUSION,
                base=float(logits[-1]),
                logit=float(logits[0]),
                values=values,
            )
        return found


class _Trees:
    """A tree ensemble as boxes; its node's outputs are the negated sum of the leaves."""

    def __init__(self, graph: Graph, width: int) -> None:
        node = graph.only("TreeEnsemble")
        counts = np.array(json.loads(graph.metadata["leaf_counts"]), np.float64)
        self._boxes = _Boxes.of(node, counts)
        factor, offset, _ = _line(graph, node.outputs[0])
        self._factor = -factor
        self._offset = -offset
        self._width = width

    def of(self, x: Floats) -> Contributions:
        values = np.zeros(self._width)
        total = self._boxes.shapley(x, values)
        base = self._factor * self._boxes.mean + self._offset
        return Contributions(
            method=Method.TREESHAP,
            base=base,
            logit=self._factor * total + self._offset,
            values=self._factor * values,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Boxes:
    """Every leaf of an ensemble with the conditions on the way to it, those on one feature joined.

    leaf: (n,) values; start: (n + 1,) where each leaf's conditions begin. Per condition: feature,
    low < x <= high, nan (whether NaN goes there), share (of the training rows that meet it, of
    those that come there). nodes, weights: Gauss and Legendre's on [0, 1]. mean: of the leaves
    over the training rows.
    """

    leaf: Floats
    start: Integers
    feature: Integers
    low: Floats
    high: Floats
    nan: npt.NDArray[np.bool_]
    share: Floats
    nodes: Floats
    weights: Floats
    mean: float

    @classmethod
    def of(cls, node: Node, counts: Floats) -> "_Boxes":
        """counts: (n_leaves,) training rows of each leaf.

        Raises:
            BadInput: trees that are not of our making.
        """
        ensemble = _Ensemble(node, counts)
        leaves: list[float] = []
        starts = [0]
        conditions: list[tuple[int, float, float, bool, float]] = []
        mean = 0.0
        for value, box in ensemble.leaves():
            leaves.append(value)
            conditions += [(feature, *rest) for feature, rest in box.items()]
            starts.append(len(conditions))
            mean += value * math.prod(rest[-1] for rest in box.values())
        feature, low, high, nan, share = zip(*conditions, strict=True)
        start = np.array(starts, np.int64)
        order = -(-int(np.diff(start).max()) // 2)  # exact up to degree 2 * order - 1
        nodes, weights = np.polynomial.legendre.leggauss(max(1, order))
        return cls(
            leaf=np.array(leaves),
            start=start,
            feature=np.array(feature, np.int64),
            low=np.array(low, np.float64),
            high=np.array(high, np.float64),
            nan=np.array(nan, np.bool_),
            share=np.array(share, np.float64),
            nodes=(nodes + 1.0) / 2.0,
            weights=weights / 2.0,
            mean=mean,
        )

    def shapley(self, x: Floats, out: Floats) -> float:
        """Adds each feature's Shapley value to out; returns the sum of the leaves that x is in."""
        total: float = _shapley(
            x, self.leaf, self.start, self.feature, self.low, self.high, self.nan, self.share,
            self.nodes, self.weights, out,
        )  # fmt: skip
        return total


class _Ensemble:
    """The columns of a TreeEnsemble node."""

    def __init__(self, node: Node, counts: Floats) -> None:
        def column(name: str) -> list[Any]:
            if name not in node.attributes:
                raise BadInput(f"its TreeEnsemble has no {name}")
            values: list[Any] = np.atleast_1d(node.attributes[name]).tolist()
            return values

        self._roots = column("tree_roots")
        self._feature = column("nodes_featureids")
        self._split = column("nodes_splits")
        self._nan_true = column("nodes_missing_value_tracks_true")
        self._true, self._true_leaf = column("nodes_truenodeids"), column("nodes_trueleafs")
        self._false, self._false_leaf = column("nodes_falsenodeids"), column("nodes_falseleafs")
        self._leaf = column("leaf_weights")
        if set(column("nodes_modes")) != {_LEQ} or set(column("leaf_targetids")) != {0}:
            raise BadInput("its trees are not of this project's making")
        if len(counts) != len(self._leaf):
            raise BadInput(f"it has {len(self._leaf)} leaves and counts of {len(counts)}")
        self._leaf_counts = counts.tolist()
        self._counts: list[float] = [-1.0] * len(self._feature)

    def leaves(self) -> "list[tuple[float, dict[int, tuple[float, float, bool, float]]]]":
        """(value, per feature: low, high, nan, share) of every leaf of every tree."""
        found: list[tuple[float, dict[int, tuple[float, float, bool, float]]]] = []
        for root in self._roots:
            self._count(root)
            whole: dict[int, tuple[float, float, bool, float]] = {}
            pending = [(root, False, whole)]
            while pending:
                place, is_leaf, box = pending.pop()
                if is_leaf:
                    found.append((self._leaf[place], box))
                    continue
                feature, split = self._feature[place], self._split[place]
                nan_true = bool(self._nan_true[place])
                low, high, nan, share = box.get(feature, (-math.inf, math.inf, True, 1.0))
                sides = self._sides(place)
                both = sum(self._of(*side) for side in sides)
                if not both > 0:
                    raise BadInput("a node of its trees had no training rows")
                for side, is_true in zip(sides, (True, False), strict=True):
                    inside = (low, min(high, split)) if is_true else (max(low, split), high)
                    condition = (
                        *inside,
                        nan and nan_true is is_true,
                        share * self._of(*side) / both,
                    )
                    pending.append((*side, box | {feature: condition}))
        return found

    def _sides(self, place: int) -> tuple[tuple[int, bool], tuple[int, bool]]:
        return (
            (self._true[place], bool(self._true_leaf[place])),
            (self._false[place], bool(self._false_leaf[place])),
        )

    def _of(self, place: int, is_leaf: bool) -> float:
        return self._leaf_counts[place] if is_leaf else self._counts[place]

    def _count(self, root: int) -> None:
        """Training rows of each node below `root`: the sum of its leaves'."""
        order, pending = [], [root]
        while pending:
            place = pending.pop()
            order.append(place)
            pending += [child for child, is_leaf in self._sides(place) if not is_leaf]
        for place in reversed(order):
            self._counts[place] = sum(self._of(*side) for side in self._sides(place))


@cached
def _shapley(x, leaf, start, feature, low, high, nan, share, nodes, weights, out):
    total = 0.0
    met = np.zeros(len(feature))
    for at in range(len(leaf)):
        first, stop = start[at], start[at + 1]
        inside = True
        never = False
        for place in range(first, stop):
            value = x[feature[place]]
            is_met = nan[place] if np.isnan(value) else low[place] < value <= high[place]
            met[place] = 1.0 if is_met else 0.0
            inside = inside and is_met
            never = never or (not is_met and share[place] == 0.0)
        if inside:
            total += leaf[at]
        if never:  # neither the row nor any training row: every product below is 0
            continue
        for node in range(len(nodes)):
            t = nodes[node]
            product = weights[node] * leaf[at]
            for place in range(first, stop):
                product *= t * met[place] + (1.0 - t) * share[place]
            for place in range(first, stop):
                without = product / (t * met[place] + (1.0 - t) * share[place])
                out[feature[place]] += without * (met[place] - share[place])
    return total


class _Linear:
    """A linear classifier: the scaling before its one product, its weights, the line behind."""

    def __init__(self, graph: Graph, width: int) -> None:
        self._graph = graph
        node = graph.only("Gemm")
        self._scaled = node.inputs[0]
        weights = _constant(graph, node.inputs[1])
        bias = _constant(graph, node.inputs[2])
        if weights.ndim != 2 or weights.shape[1] != 1 or bias.size != 1:
            raise BadInput("it is more than one linear model")
        factor, offset, _ = _line(graph, node.outputs[0])
        self._weights = factor * weights[:, 0]
        self._bias = factor * float(bias.ravel()[0]) + offset
        self._columns = _medians(graph, width)[0]
        self._width = width
        self._median = self._scale(np.full(width, np.nan))

    def of(self, x: Floats) -> Contributions:
        scaled = self._scale(x)
        values = np.zeros(self._width)
        values[self._columns] = self._weights * (scaled - self._median)
        return Contributions(
            method=Method.LINEAR,
            base=float(self._median @ self._weights) + self._bias,
            logit=float(scaled @ self._weights) + self._bias,
            values=values,
        )

    def _scale(self, x: Floats) -> Floats:
        return np.asarray(_value(self._graph, self._scaled, x[None])[0])


def _medians(graph: Graph, width: int) -> tuple[Integers, Floats]:
    """(columns, training median of each) of a model that fills NaN with it."""
    node = graph.only("Where")
    median = _constant(graph, node.inputs[1])
    gathered = graph.maker(node.inputs[2])
    columns = np.arange(width)
    if gathered is not None and gathered.kind == "Gather":
        columns = _constant(graph, gathered.inputs[1]).astype(np.int64)
    if median.shape != columns.shape:
        raise BadInput(f"it fills {median.size} of {columns.size} columns")
    return columns, median


def _line(graph: Graph, name: str) -> tuple[float, float, str]:
    """(factor, offset, end): what `Mul`, `Add` and `Sub` by single constants make of a value on its
    way: `end = factor * value + offset`."""
    factor, offset = 1.0, 0.0
    while True:
        takers = graph.takers(name)
        if len(takers) != 1 or takers[0].kind not in {"Mul", "Add", "Sub"}:
            return factor, offset, name
        node = takers[0]
        if node.inputs[0] != name or node.inputs[1] not in graph.constants:
            return factor, offset, name
        constant = _constant(graph, node.inputs[1])
        if constant.size != 1:
            raise BadInput(f"its {node.kind} is of more than one model")
        number = float(constant.ravel()[0])
        if node.kind == "Mul":
            factor, offset = factor * number, offset * number
        else:
            offset += number if node.kind == "Add" else -number
        name = node.outputs[0]


def _value(graph: Graph, name: str, features: Floats) -> Floats:
    """A value of the graph before its first product, by the few operators that stand there."""
    if name == "features":
        return features
    node = graph.maker(name)
    if node is None:
        return _constant(graph, name)
    inputs = [_value(graph, one, features) for one in node.inputs]
    match node.kind:
        case "Cast":  # the row has float32's values already
            return inputs[0]
        case "Gather":
            return inputs[0][:, inputs[1].astype(np.int64)]
        case "IsNaN":
            return np.isnan(inputs[0]).astype(np.float64)
        case "Where":
            return np.where(inputs[0] != 0, inputs[1], inputs[2])
        case "Sub":
            return np.asarray(inputs[0] - inputs[1])
        case "Div":
            return np.asarray(inputs[0] / inputs[1])
        case "Clip":
            return np.clip(inputs[0], inputs[1], inputs[2])
        case kind:
            raise BadInput(f"{kind} stands before its linear model")


def _constant(graph: Graph, name: str) -> Floats:
    if name not in graph.constants:
        raise BadInput(f"{name} is no constant")
    return np.asarray(graph.constants[name], np.float64)
