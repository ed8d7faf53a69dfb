"""What a release's models draw on: how much worse they get when a group of features is shuffled.

A group is a family of features that differ in their window (`close_std_5 .. close_std_720`). Its
columns are shuffled together, so that within a group nothing is torn apart, and the rest of each
row stays as it was; the loss of AUC and the rise of the log-loss say what the group was worth *to
these models*. Groups that carry the same news hide each other: shuffling one alone then costs
little. (Breiman 2001, section 10; grouped as in Gregorutti, Michel and Saint-Pierre 2015.)

The gain that LightGBM counts while it trains is not in a release, and would say nothing of the
other algorithms.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared.errors import Usage
from shared.features.families import parse
from shared.features.ta import FUNCTIONS, TaSpec
from trainer.evaluate import auc

Floats = npt.NDArray[np.float64]

CALENDAR = "calendar"
_WINDOW = re.compile(r"_\d+$")
_WINDOWS_AND_ENDINGS = re.compile(r"(_\d+)+(_.*)?$")
_MEANINGS = {
    "close": "price against its mean",
    "close_std": "volatility of closes",
    "volume": "traded volume",
    "span": "candle range (high - low)",
    "trades": "number of trades",
    "tb_base": "taker share of volume",
    "tb_quote": "taker share of turnover",
    "close_area": "past closes above or below now",
    "close_trend": "slope of closes",
    "gap": "spread of the book",
    CALENDAR: "time of day, day of week",
}
_FROM = {"f_": " of the futures", "o_": " of the other symbol"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """Of one group of features.

    features: how many. auc_drop, loss_rise: model -> mean over the repeats of what shuffling
    costs: AUC lost, log-loss gained (nats per row). auc_spread: model -> half the distance between
    the lowest and the highest repeat.
    """

    group: str
    features: int
    auc_drop: Mapping[str, float]
    auc_spread: Mapping[str, float]
    loss_rise: Mapping[str, float]

    @property
    def mean_drop(self) -> float:
        """Mean AUC drop over the models."""
        return float(np.mean(list(self.auc_drop.values())))

    @property
    def mean_spread(self) -> float:
        return float(np.mean(list(self.auc_spread.values())))

    @property
    def mean_rise(self) -> float:
        return float(np.mean(list(self.loss_rise.values())))


def group_of(name: str) -> str:
    """The family of a feature: its name without windows and what follows them; all calendar
    features are one family. A user's feature loses its window likewise."""
    try:
        spec = parse(name)
    except Usage:
        return _WINDOW.sub("", name)
    if isinstance(spec, TaSpec):
        return CALENDAR if spec.clock else _WINDOWS_AND_ENDINGS.sub("", name)
    return spec.source.prefix + spec.family.prefix


def meaning(group: str) -> str:
    """What a group of `group_of` tells, in words."""
    source = _FROM.get(group[:2], "")
    stem = group[2:] if source else group
    if stem in _MEANINGS:
        return _MEANINGS[stem] + source
    if stem.startswith(("bids_", "asks_")):
        return "volume in the order book"
    fitting = [name for name in FUNCTIONS if stem.rstrip("0123456789").endswith(name)]
    if not fitting:
        return "a feature of your own"
    function = max(fitting, key=len)
    column = stem.rstrip("0123456789").removesuffix(function).rstrip("_")
    return FUNCTIONS[function].formula + (f", x = {column}" if column else "") + source


def groups(names: Sequence[str]) -> dict[str, npt.NDArray[np.intp]]:
    """Group -> columns, in the order of their first feature."""
    found: dict[str, list[int]] = {}
    for column, name in enumerate(names):
        found.setdefault(group_of(name), []).append(column)
    return {group: np.array(columns, np.intp) for group, columns in found.items()}


def permuted(
    outputs_of: Callable[[Floats], Floats],
    x: Floats,
    truth: Mapping[str, Floats],
    columns: Mapping[str, npt.NDArray[np.intp]],
    *,
    repeats: int,
    seed: int,
    advance: Callable[[int, str], None] = lambda count, detail: None,
) -> list[Importance]:
    """The importance of each group, the costliest first.

    outputs_of: (n, n_features) -> (n, n_models) probabilities, columns in the order of `truth`.
    truth: model -> (n,) 0 or 1, NaN = not known (that row is left out of that model's figures).
    columns: group -> its columns of x. A model with one class only has no figures.
    """
    random = np.random.default_rng(seed)
    orders = [random.permutation(len(x)) for _ in range(repeats)]
    judged = {
        model: (at, ~np.isnan(y), y[~np.isnan(y)] > 0.5)
        for at, (model, y) in enumerate(truth.items())
    }
    judged = {model: one for model, one in judged.items() if 0 < one[2].sum() < len(one[2])}
    if not judged:
        return []

    def figures(outputs: Floats) -> dict[str, tuple[float, float]]:
        found = {}
        for model, (at, known, y) in judged.items():
            p = outputs[known, at]
            ranked = auc(y, p)
            assert ranked is not None  # noqa: S101 - both classes are there
            found[model] = (ranked, _log_loss(y, p))
        return found

    before = figures(outputs_of(x))
    advance(len(x), "")
    found = []
    for group, places in columns.items():
        after = []
        for order in orders:
            shuffled = x.copy()
            shuffled[:, places] = x[np.ix_(order, places)]
            after.append(figures(outputs_of(shuffled)))
            advance(len(x), group)
        drops = {m: np.array([before[m][0] - one[m][0] for one in after]) for m in judged}
        found.append(
            Importance(
                group=group,
                features=len(places),
                auc_drop={m: float(d.mean()) for m, d in drops.items()},
                auc_spread={m: float(np.ptp(d)) / 2 for m, d in drops.items()},
                loss_rise={
                    m: float(np.mean([one[m][1] for one in after])) - before[m][1] for m in judged
                },
            )
        )
    return sorted(found, key=lambda one: -one.mean_drop)


def _log_loss(y: npt.NDArray[np.bool_], p: Floats) -> float:
    kept = np.clip(p, 1e-15, 1 - 1e-15)
    return float(-np.mean(np.where(y, np.log(kept), np.log1p(-kept))))
