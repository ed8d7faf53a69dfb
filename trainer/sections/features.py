"""What the models draw on: importance by group of features."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer import figures
from trainer.evidence import Evidence
from trainer.importance import Importance, meaning
from trainer.page import Picture, Section, Table
from trainer.sections.draft import Draft
from trainer.sections.words import counted, number, when, whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Importance on the rows of one symbol. missing: why there is none; "" = there is."""

    symbol: str
    found: Sequence[Importance] = ()
    rows: int = 0
    first_ms: int = 0
    last_ms: int = 0
    in_sample: bool = False
    missing: str = ""


def importance(evidence: Evidence, measured: Sequence[Measured], draft: Draft) -> Section:
    """What shuffling each group of features costs the release's models."""
    parts: list[Table | Picture | str] = []
    for one in measured:
        if one.missing:
            continue
        if one.in_sample:
            draft.warn(
                f"In-sample: the importance of feature groups on {one.symbol} was measured on rows "
                "that the release was trained on, as there are too few later ones."
            )
        first = one.found[0]
        parts.append(
            draft.picture(
                f"{one.symbol}-importance",
                f"{one.symbol}: AUC lost when a group is shuffled",
                lambda one=one: figures.bars(  # type: ignore[misc]
                    [i.group for i in one.found],
                    np.array([i.mean_drop for i in one.found]),
                    np.array([i.mean_spread for i in one.found]),
                    "AUC lost, mean over the models",
                ),
                f"{first.group} costs most: {first.mean_drop:.3f} of AUC when the values of "
                f"its {counted(first.features, 'feature')} are shuffled. Lines: half the distance "
                "between the repeats.",
                "that a group with a short bar is useless: groups that carry the same news stand "
                "in for each other.",
            )
        )
        parts.append(
            Table(
                caption=(
                    f"{one.symbol}: {one.rows:,} rows from {when(one.first_ms)} to "
                    f"{when(one.last_ms)} UTC, "
                    + ("trained on" if one.in_sample else "later than the training data")
                ),
                columns=(
                    "group",
                    "meaning",
                    "features",
                    "AUC lost",
                    "log-loss gained (nats)",
                    "most affected model",
                ),
                rows=[
                    (
                        i.group,
                        meaning(i.group),
                        whole(i.features),
                        number(i.mean_drop, 4),
                        number(i.mean_rise, 4),
                        f"{(top := max(i.auc_drop, key=lambda m: i.auc_drop[m]))} "
                        f"({i.auc_drop[top]:.3f})",
                    )
                    for i in one.found
                ],
                texts=frozenset({1, 5}),
            )
        )
    return Section(
        id="importance",
        title="Importance by feature group",
        intro=(
            "A group is a family of features that differ in their window. Its values are shuffled "
            "among recent rows, and the release's own models run on them."
        ),
        parts=parts,
        missing=[one.missing for one in measured if one.missing],
    )
