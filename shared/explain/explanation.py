"""What is found out about one signal; plain values, ready for JSON."""

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from shared.errors import Usage
from shared.explain.compare import Difference
from shared.reference import Novelty
from shared.times import INTERVALS_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureValue:
    """One feature of the vector.

    value, median (over the training rows): NaN where there is none. pull: by how much it moves the
    score up (+) or down (-), to first order; NaN where nothing was scored. score_at_median: the
    score had this feature been at its training median, None where that is not known. spreads: how
    many spreads of the training rows it is above its median, None where that is not known.
    """

    name: str
    value: float
    median: float
    pull: float
    is_used: bool
    score_at_median: float | None = None
    spreads: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShare:
    """One model's part. side: high or low.

    contributions: by feature, in log-odds; base + their sum + remainder = logit. missing: why there
    are none. weight: by how much the score moves per unit of its log-odds.
    """

    output: float
    label: str
    side: str
    algorithm: str
    method: str = ""
    base: float = math.nan
    logit: float = math.nan
    remainder: float = math.nan
    weight: float = 0.0
    contributions: Mapping[str, float] = field(default_factory=dict)
    missing: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """How the outputs became the score. high, low: the two sides' values that `formula` names."""

    kind: str
    formula: str
    high: float
    low: float
    score: float | None
    buy: float
    sell: float
    side: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """A rule that a signal must pass. passed: None where it was not asked."""

    name: str
    passed: bool | None
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Far(Novelty):
    """How far the vector is from the training rows. limit: above which there is no score, None:
    there is none."""

    limit: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candles:
    """The window that the features looked at, and its newest candles.

    rows: raster rows; gaps: those without a candle. columns: of `newest`, oldest first.
    """

    first_ms: int
    last_ms: int
    rows: int
    gaps: int
    lookback: int
    columns: tuple[str, ...]
    newest: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Everything about one signal.

    equal: whether all that was computed again has the same bits as what stands on the bus;
    difference: the first thing that has not. compared: how many numbers were. release: what
    scored it. novelty: None where the release does not know what it was trained on, or the vector
    is not of its features. orders: the lines of the trader's journal about it, oldest first;
    notifications: what became of the message. latency_ms: per stage. notes: what a reader must know
    besides.
    """

    signal: Mapping[str, Any]
    equal: bool
    difference: Difference | None
    compared: Mapping[str, int]
    outputs: Mapping[str, float]
    score: Steps | None
    top_features: tuple[FeatureValue, ...]
    features: tuple[FeatureValue, ...]
    models: Mapping[str, ModelShare]
    guards: tuple[Guard, ...]
    novelty: Far | None
    release: Mapping[str, Any]
    candles: Candles
    orders: tuple[Mapping[str, Any], ...]
    notifications: tuple[Mapping[str, Any], ...]
    latency_ms: Mapping[str, float]
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it: NaN is null."""
        found = plain(self)
        assert isinstance(found, dict)  # noqa: S101 - a dataclass becomes one
        return found


def plain(value: Any) -> Any:
    """Dataclasses as dicts, tuples as lists, decimals as text, numbers that are not finite as
    None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: plain(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, Decimal) else value


def signal_place(signal_id: str) -> tuple[str, str, int]:
    """(symbol, interval, open time) of `BTCUSDT-1m-1700000000000`.

    Raises:
        Usage: it is no id of a signal.
    """
    parts = signal_id.rsplit("-", 2)
    if len(parts) == 3 and parts[1] in INTERVALS_MS and re.fullmatch(r"[0-9]{1,15}", parts[2]):
        symbol, interval, time_ms = parts[0], parts[1], int(parts[2])
        is_symbol = symbol and symbol == symbol.upper() and not set(symbol) & set("{}:/ \t\n")
        if is_symbol and not time_ms % INTERVALS_MS[interval]:
            return symbol, interval, time_ms
    raise Usage(
        f"{signal_id!r} is no signal's id: they are like BTCUSDT-1m-1700000000000, the symbol, the "
        "interval and when the candle opens in milliseconds; `itb tail signal` shows some"
    )
