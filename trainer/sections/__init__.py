"""The report's sections: from what was measured to tables, figures and warnings.

Every section stands for itself: where its data is missing it says which command gives it.
"""

from collections.abc import Callable, Sequence

from trainer.evidence import Evidence
from trainer.page import Page, Section
from trainer.sections.data import gaps, origin
from trainer.sections.draft import Draft
from trainer.sections.features import Measured, importance
from trainer.sections.models import calibration, folds, tail
from trainer.sections.score import candles, scores
from trainer.sections.trading import equity, surface
from trainer.sections.words import nth, when

__all__ = ["SECTIONS", "Draft", "Measured", "calibration", "importance", "whole_page"]

SECTIONS: tuple[Callable[[Evidence, Draft], Section], ...] = (
    tail,
    folds,
    calibration,
    scores,
    surface,
    equity,
    candles,
    gaps,
    origin,
)
"""All but importance, which needs more than what was read; it goes after calibration."""


def whole_page(evidence: Evidence, written: Sequence[Section], draft: Draft, note: str) -> Page:
    """note: what the bundle says about this machine; "" = nothing."""
    manifest = evidence.manifest
    training = manifest.training
    if note:
        draft.warn(f"{note}.")
    facts = (
        ("Symbols", ", ".join(manifest.symbols)),
        ("Candles", manifest.interval),
        ("Trained on", f"{when(training.start_ms)} to {when(training.end_ms)} UTC"),
        ("Rows", f"{training.rows:,}, {nth(training.stride)}"),
        (
            "Models",
            f"{len(manifest.models)} for {len({m.label for m in manifest.models.values()})} labels",
        ),
        (
            "Features",
            f"{len(manifest.used)} of {len(manifest.features)}, over the last "
            f"{manifest.features_horizon:,} candles",
        ),
        (
            "Thresholds",
            f"buy above {manifest.thresholds.buy:g}, sell below {manifest.thresholds.sell:g}",
        ),
        ("Code", f"itb {manifest.code_version}, onnxruntime {manifest.runtime.onnxruntime}"),
    )
    return Page(
        title=f"Release {manifest.id}",
        subtitle=f"Report on models made {manifest.created} (UTC)",
        facts=facts,
        warnings=draft.warnings,
        sections=written,
    )
