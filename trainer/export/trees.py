"""LightGBM boosters as TreeEnsemble nodes in double: the booster's own thresholds and leaves.

LightGBM compares `x <= threshold` in double, adds the leaves in the order of the trees and takes
`1 / (1 + exp(-sum))`. ONNX-ML 5's TreeEnsemble does the first two in double as well, so the output
has the booster's very bits. Float32 trees (ONNX-ML 3) would need thresholds rounded down
and would sum in float32.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import numpy_helper

from shared.errors import Failure
from trainer.export.graph import ML_DOMAIN, Graph
from trainer.models.gb import Boosting

_LEQ = 0
_ZERO = float(np.float32(1e-35))  # LightGBM's kZeroThreshold


@dataclass(slots=True)
class _Arrays:
    """The columns of a TreeEnsemble; a leaf's place counts in leaf_values."""

    roots: list[int] = field(default_factory=list)
    features: list[int] = field(default_factory=list)
    thresholds: list[float] = field(default_factory=list)
    nan_left: list[int] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    right: list[int] = field(default_factory=list)
    left_is_leaf: list[int] = field(default_factory=list)
    right_is_leaf: list[int] = field(default_factory=list)
    leaf_values: list[float] = field(default_factory=list)
    leaf_counts: list[int] = field(default_factory=list)


def add_trees(graph: Graph, model: Boosting, features: str, columns: Sequence[int]) -> str:
    """Adds the ensemble and returns the name of the negated raw score, (n, 1) double.

    features: name of the (n, n_features) double input; columns: which of them the booster saw.
    Leaves are stored negated: a sum of negated numbers has the negated sum's bits.

    Raises:
        Failure: the booster has something that the graph cannot say.
    """
    dump = model.booster.dump_model()
    if dump["num_tree_per_iteration"] != 1 or dump["average_output"]:
        raise Failure("LightGBM: only one sum of trees can be exported")
    slope = 1.0 if model.is_value else _logistic_slope(dump)
    arrays = _Arrays()
    for tree in dump["tree_info"]:
        _add_tree(arrays, tree["tree_structure"], columns)
    minus_raw = graph.add(
        "TreeEnsemble",
        features,
        domain=ML_DOMAIN,
        aggregate_function=1,  # SUM
        post_transform=0,  # NONE
        n_targets=1,
        tree_roots=arrays.roots,
        nodes_featureids=arrays.features,
        nodes_splits=numpy_helper.from_array(np.array(arrays.thresholds, np.float64)),
        nodes_modes=numpy_helper.from_array(np.full(len(arrays.features), _LEQ, np.uint8)),
        nodes_missing_value_tracks_true=arrays.nan_left,
        nodes_truenodeids=arrays.left,
        nodes_trueleafs=arrays.left_is_leaf,
        nodes_falsenodeids=arrays.right,
        nodes_falseleafs=arrays.right_is_leaf,
        leaf_targetids=[0] * len(arrays.leaf_values),
        leaf_weights=numpy_helper.from_array(np.array(arrays.leaf_values, np.float64)),
    )
    if slope != 1.0:
        minus_raw = graph.add("Mul", minus_raw, graph.constant(slope, np.float64))
    return minus_raw


def leaf_counts(model: Boosting) -> list[int]:
    """Training rows of each leaf, in the order in which `add_trees` stores leaves: what TreeSHAP
    weighs branches by, which the graph has no place for."""
    arrays = _Arrays()
    for tree in model.booster.dump_model()["tree_info"]:
        _add_tree(arrays, tree["tree_structure"], range(model.booster.num_feature()))
    return arrays.leaf_counts


def _logistic_slope(dump: Mapping[str, Any]) -> float:
    """`s` of `1 / (1 + exp(-s * raw))`."""
    kind, *settings = str(dump["objective"]).split()
    if kind == "cross_entropy":
        return 1.0
    if kind != "binary":
        raise Failure(f"LightGBM: objective {kind!r} gives no probability; use binary")
    return float(dict(item.split(":") for item in settings).get("sigmoid", "1"))


def _add_tree(arrays: _Arrays, root: Mapping[str, Any], columns: Sequence[int]) -> None:
    arrays.roots.append(len(arrays.features))
    if "split_feature" not in root:  # LightGBM found no split: a constant, which ONNX lacks
        leaf = _add_leaf(arrays, root)
        _add_node(arrays, columns[0], 0.0, nan_left=True)
        _join(arrays, len(arrays.features) - 1, True, (leaf, 1))
        _join(arrays, len(arrays.features) - 1, False, (leaf, 1))
        return
    # (tree, parent, whether it is the parent's left side); parents come before children
    pending: list[tuple[Mapping[str, Any], int, bool]] = [(root, -1, True)]
    while pending:
        tree, parent, is_left = pending.pop()
        if "split_feature" not in tree:
            _join(arrays, parent, is_left, (_add_leaf(arrays, tree), 1))
            continue
        place = _add_node(
            arrays, columns[tree["split_feature"]], tree["threshold"], nan_left=_nan_left(tree)
        )
        if parent >= 0:
            _join(arrays, parent, is_left, (place, 0))
        pending.append((tree["right_child"], place, False))
        pending.append((tree["left_child"], place, True))


def _nan_left(tree: Mapping[str, Any]) -> bool:
    if tree["decision_type"] != "<=":
        raise Failure("LightGBM: categorical splits cannot be exported")
    match tree["missing_type"]:
        case "NaN":
            return bool(tree["default_left"])
        case "None":  # no NaN in training: LightGBM reads one as 0
            return bool(tree["threshold"] >= 0.0)
        case kind:
            raise Failure(f"LightGBM: missing_type {kind!r} cannot be exported")


def _add_node(arrays: _Arrays, feature: int, threshold: float, *, nan_left: bool) -> int:
    arrays.features.append(int(feature))
    arrays.thresholds.append(_with_zeros(float(threshold)))
    arrays.nan_left.append(int(nan_left))
    for column in (arrays.left, arrays.right, arrays.left_is_leaf, arrays.right_is_leaf):
        column.append(0)
    return len(arrays.features) - 1


def _with_zeros(threshold: float) -> float:
    """LightGBM reads |x| <= 1e-35 as 0: a threshold in there must leave them on zero's side."""
    if -_ZERO <= threshold < 0.0:
        return float(np.nextafter(-_ZERO, -1.0))
    if 0.0 <= threshold < _ZERO:
        return _ZERO
    return threshold


def _add_leaf(arrays: _Arrays, leaf: Mapping[str, Any]) -> int:
    if "leaf_const" in leaf:
        raise Failure("LightGBM: linear trees cannot be exported")
    arrays.leaf_values.append(-float(leaf["leaf_value"]))
    arrays.leaf_counts.append(int(leaf["leaf_count"]))
    return len(arrays.leaf_values) - 1


def _join(arrays: _Arrays, parent: int, is_left: bool, child: tuple[int, int]) -> None:
    place, is_leaf = child
    (arrays.left if is_left else arrays.right)[parent] = place
    (arrays.left_is_leaf if is_left else arrays.right_is_leaf)[parent] = is_leaf
