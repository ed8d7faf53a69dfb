"""Words and numbers of the report: figures with units, times, what to run."""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.releases import Manifest
from trainer.evidence import SymbolEvidence

Floats = npt.NDArray[np.float64]


def number(value: float | int | None, digits: int = 3) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:,.{digits}f}"


def percent(share: float | None, digits: int = 1) -> str:
    return "–" if share is None or math.isnan(share) else f"{100 * share:.{digits}f} %"


def whole(value: float | int | None) -> str:
    return "–" if value is None else f"{int(value):,}"


def when(time_ms: int) -> str:
    """`2026-11-22 12:00`, UTC."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def minute(iso_time: Any) -> str:
    """`2026-11-22 12:00` of `2026-11-22T12:00:00Z`."""
    return str(iso_time).replace("T", " ").removesuffix("Z").removesuffix(":00")


def interval(low: Any, high: Any) -> str:
    return "–" if low is None or high is None else f"{low:.3f} .. {high:.3f}"


def lift(ap: Any, base: Any) -> str:
    return "–" if ap is None or not base else f"{ap / base:.1f}"


def level(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


def counted(count: int, noun: str, nouns: str = "") -> str:
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"


def nth(stride: int) -> str:
    """`every candle`, `every 10th candle`."""
    if stride == 1:
        return "every candle"
    ending = (
        "th" if 10 <= stride % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(stride % 10, "th")
    )
    return f"every {stride}{ending} candle"


def some(names: Sequence[str], most: int = 6) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def or_nan(value: Any) -> float:
    return math.nan if value is None else float(value)


def mapping(found: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A mapping inside JSON; empty where there is none."""
    inner = found.get(key)
    return inner if isinstance(inner, dict) else {}


def run_it(one: SymbolEvidence, what: str, command: str) -> str:
    return f"{what} of {one.symbol} {one.interval}: `python -m trainer {command}` gives them."


def horizon_of(manifest: Manifest) -> int:
    """The longest of the labels that are predicted, in candles."""
    return max(manifest.labels[model.label].horizon for model in manifest.models.values())


def values_at(times: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], values: Floats) -> Floats:
    """`values` of `rows` at `times`, both rising; NaN where there is no such row."""
    place = np.minimum(np.searchsorted(rows, times), len(rows) - 1)
    return np.where(rows[place] == times, values[place], np.nan)
