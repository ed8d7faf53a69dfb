"""Reads an algorithm's `params` and `train` from the config before anything long begins."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from shared.config import Algorithm
from shared.errors import Usage

# Understood by every algorithm, next to its own; `around` says what each means.
COMMON_PARAMS = (
    "length",
    "every_nth_row",
    "is_regression",
    "calibrate",
    "tail_share",
    "class_weight",
    "weights",
)
_TAIL_SHARE = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class RowChoice:
    """Which training rows an algorithm wants; None: what the trainer's config says, or all.

    length: trailing raster rows (`params.length`); stride: every n-th (`params.every_nth_row`);
    most: evenly thinned to so many at most (`params.max_rows`).
    """

    length: int | None
    stride: int | None
    most: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What stands around a library's fit, alike for all algorithms.

    calibrate (`params.calibrate`): `platt` or `isotonic` map the model's outputs to probabilities;
    the map is fitted on the last `tail_share` of the rows, and the model on those before whose
    labels look at none of them. `none` is the default: the default models need none, and Platt
    costs them the newest rows.
    early_stopping, patience (`params.early_stopping`, `params.patience`): the loss on that same
    tail chooses the number of rounds or epochs; it ends the search once it has not improved for
    `patience` of them. Without calibration the model is then fitted again on all rows.
    class_weight (`params.class_weight`): `balanced` gives both classes equal weight. The default is
    `none`: the ranking stays as it is, and outputs are no probabilities any more unless they are
    calibrated.
    weights (`params.weights`): `uniqueness` weighs a row by how much of its label's window it does
    not share with others (weights.py). It says nothing for labels that all look equally far ahead.
    """

    calibrate: Literal["none", "platt", "isotonic"] = "none"
    tail_share: float = _TAIL_SHARE
    early_stopping: bool = False
    patience: int = 0
    class_weight: Literal["none", "balanced"] = "none"
    weights: Literal["none", "uniqueness"] = "none"

    @property
    def has_tail(self) -> bool:
        return self.early_stopping or self.calibrate != "none"


def row_choice(algorithm: Algorithm, most: int | None = None) -> RowChoice:
    return RowChoice(
        length=count(algorithm, "length"), stride=count(algorithm, "every_nth_row"), most=most
    )


def around(algorithm: Algorithm, *, calibrate: str = "none", patience: int | None = None) -> Around:
    """calibrate: the default; patience: likewise, None where nothing can be stopped early.

    Raises:
        Usage: a value is not allowed.
    """
    share = algorithm.params.get("tail_share", _TAIL_SHARE)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        raise refused(algorithm, "params.tail_share must be between 0 and 1")
    stops = patience is not None and flag(algorithm, "early_stopping", False)
    return Around(
        calibrate=choice(algorithm, "calibrate", calibrate, ("none", "platt", "isotonic")),  # type: ignore[arg-type]  # checked
        tail_share=float(share),
        early_stopping=stops,
        patience=(count(algorithm, "patience") or patience or 0) if stops else 0,
        class_weight=choice(algorithm, "class_weight", "none", ("none", "balanced")),  # type: ignore[arg-type]  # checked
        weights=choice(algorithm, "weights", "none", ("none", "uniqueness")),  # type: ignore[arg-type]  # checked
    )


def kinds(
    algorithm: Algorithm, classifier: Collection[str], regressor: Collection[str]
) -> frozenset[bool]:
    """For which labels the algorithm is meant: True for values, False for yes-or-no labels.

    Both, unless `params.is_regression` says one or `train` names an argument that only the
    library's classifier, or only its regressor, has.

    Raises:
        Usage: neither has such an argument, or they contradict each other.
    """
    check_names(algorithm, "train", algorithm.train, {*classifier, *regressor})
    known = {False: set(classifier), True: set(regressor)}
    return checked_kinds(
        algorithm, frozenset(kind for kind in known if known[kind].issuperset(algorithm.train))
    )


def checked_kinds(algorithm: Algorithm, found: frozenset[bool]) -> frozenset[bool]:
    """`found` (by the arguments in `train`), as far as `params.is_regression` says nothing else.

    Raises:
        Usage: nothing is left, or what is left has no use for other parameters.
    """
    wanted = algorithm.params.get("is_regression")
    if wanted is not None:
        found &= {flag(algorithm, "is_regression", False)}
    if not found:
        raise refused(
            algorithm, "train: these arguments are not all for classes, or not all for values"
        )
    if False not in found:
        for name in ("calibrate", "class_weight"):
            if algorithm.params.get(name, "none") != "none":
                raise refused(algorithm, f"params.{name} is for yes-or-no labels, not for values")
    return found


def check_names(
    algorithm: Algorithm, section: str, given: Mapping[str, Any], known: Collection[str]
) -> None:
    """Raises Usage for a name that is not known, with the nearest one."""
    for name in given:
        if name not in known:
            close = get_close_matches(name, list(known), n=1, cutoff=0.4)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise refused(algorithm, f"unknown key {section}.{name}{hint}")


def flag(algorithm: Algorithm, name: str, default: bool) -> bool:
    value = algorithm.params.get(name, default)
    if not isinstance(value, bool):
        raise refused(algorithm, f"params.{name} must be true or false")
    return value


def choice(algorithm: Algorithm, name: str, default: str, known: Collection[str]) -> str:
    value = algorithm.params.get(name, default)
    if value not in known:
        raise refused(algorithm, f"params.{name} must be one of: {', '.join(known)}")
    return str(value)


def refused(algorithm: Algorithm, why: str) -> Usage:
    return Usage(f"config: algorithms: {algorithm.name}: {why}")


def count(algorithm: Algorithm, name: str) -> int | None:
    value = algorithm.params.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise refused(algorithm, f"params.{name} must be a whole number above 0")
    return value
