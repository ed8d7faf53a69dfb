"""Which labels are trained on: those with enough cases, or one that follows the volatility."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared.config import Settings
from shared.errors import Failure
from trainer.labels import SCALED_LABELS, is_value, side_of
from trainer.models.rows import Rows

FEWEST_CASES = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """kept: labels to train; left_out: labels of the config that are not among them, and added:
    those among them that the config does not name; both name -> why."""

    kept: list[str]
    left_out: dict[str, str]
    added: dict[str, str]


def labels_to_compute(settings: Settings) -> tuple[str, ...]:
    """The config's labels, and those that may have to stand in for them."""
    spare = (name for names in SCALED_LABELS.values() for name in names)
    names = (*settings.labels, *(spare if settings.trainer.calm_labels else ()))
    return tuple(dict.fromkeys(names))


def choose_labels(rows: Rows, base: npt.NDArray[np.intp], settings: Settings) -> Choice:
    """Labels with enough cases of both classes (values: enough rows) among the rows `base`.

    A side of which the config has labels, but none with enough cases, gets the rarest label of
    SCALED_LABELS that has, unless the config forbids it.

    Raises:
        Failure: a side has none at all.
    """
    kept: list[str] = []
    left_out: dict[str, str] = {}
    added: dict[str, str] = {}
    for name in settings.labels:
        y = rows.y[name][base]
        too_few = _too_few_values(y) if is_value(name) else _too_few_cases(y)
        if too_few is None:
            kept.append(name)
        else:
            left_out[name] = too_few
    for side in ("high", "low"):
        if any(side_of(name) == side for name in kept):
            continue
        reasons = [f"{n}: {why}" for n, why in left_out.items() if side_of(n) == side]
        if not reasons:
            raise Failure(f"no {side} label to train: the config lists none in `labels`")
        spare = SCALED_LABELS[side] if settings.trainer.calm_labels else ()
        for name in spare:
            if name not in left_out and _too_few_cases(rows.y[name][base]) is None:
                kept.append(name)
                added[name] = f"added because no {side} label of the config is left ({reasons[0]})"
                break
        else:
            tried = f", nor are there for {spare[0]} .. {spare[-1]}" if spare else ""
            remedy = "" if spare else ", or set trainer.calm_labels"
            raise Failure(
                f"no {side} label to train ({reasons[0]}{tried}); give more candles, or livelier "
                f"ones{remedy}"
            )
    return Choice(kept=kept, left_out=left_out, added=added)


def _too_few_values(y: npt.NDArray[np.float64]) -> str | None:
    known = y[~np.isnan(y)]
    if len(known) < FEWEST_CASES:
        return f"{len(known):,} rows have a value, and {FEWEST_CASES} are needed"
    return None if np.ptp(known) else f"it is {known[0]:g} in all {len(known):,} rows"


def _too_few_cases(y: npt.NDArray[np.float64]) -> str | None:
    """Why a label cannot be trained on; None: it can."""
    known = y[~np.isnan(y)]
    true = int((known == 1).sum())
    if min(true, len(known) - true) >= FEWEST_CASES:
        return None
    return (
        f"{true:,} of {len(known):,} rows are cases, and {FEWEST_CASES} of either class are needed"
    )
