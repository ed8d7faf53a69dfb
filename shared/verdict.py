"""What a release says about a feature vector, and the events that tell it. Pure.

The predictor writes them live; `itb explain`, replay and the auditor compute them again. All come
through here, because they must agree.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from shared import score
from shared.bundle import Bundle, invalid_output, invalid_reason
from shared.events import Feature, Prediction, Signal
from shared.reference import novelty_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A feature vector to be judged. feature is None where its entry cannot be read: `problem`."""

    symbol: str
    feature: Feature | None
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """outputs: the finite ones of the models, by name. score is None where `invalid` says why.

    novelty: how far the vector is from the training rows (`shared.reference`); None where the
    release does not know, or nothing was computed.
    """

    outputs: dict[str, float] = field(default_factory=dict)
    score: float | None = None
    invalid: str = ""
    novelty: float | None = None


def judge(
    bundle: Bundle, asked: Sequence[Asked], *, nan_share: float, novelty_limit: float | None
) -> list[Verdict]:
    """A verdict for each vector, in order. Many at once cost little more than a few, and have the
    same bits as alone.

    nan_share: above this share of features without a value there is no score. novelty_limit: above
    this novelty there is none, None: whatever it is. The outputs are told all the same.
    """
    verdicts: list[Verdict | None] = [None] * len(asked)
    places: list[int] = []
    vectors: list[npt.NDArray[np.float64]] = []
    for place, one in enumerate(asked):
        values = _values(bundle, one, nan_share)
        if isinstance(values, str):
            verdicts[place] = Verdict(invalid=values)
        else:
            places.append(place)
            vectors.append(values)
    if vectors:
        x = np.stack(vectors)
        rows = bundle.run(x)
        novelty: list[float | None] = [None] * len(x)
        if bundle.reference is not None:
            found = bundle.reference.novelty(x[:, bundle.reference_columns]).tolist()
            novelty = [value if math.isfinite(value) else None for value in found]
        for row, place in enumerate(places):
            value = float(rows.score[row])
            invalid = invalid_output(rows.outputs[row], bundle.manifest, value)
            if not invalid and novelty_limit is not None:
                invalid = _too_novel(bundle, x[row], novelty[row], novelty_limit)
            verdicts[place] = Verdict(
                outputs={k: v for k, v in rows.named(row).items() if math.isfinite(v)},
                score=None if invalid else value,
                invalid=invalid,
                novelty=novelty[row],
            )
    return [verdict for verdict in verdicts if verdict is not None]


def events(
    bundle: Bundle,
    verdict: Verdict,
    feature: Feature | None,
    *,
    symbol: str,
    interval: str,
    open_time_ms: int,
) -> tuple[Prediction, Signal]:
    """What the bus is told of a verdict."""
    manifest = bundle.manifest
    schema = manifest.schema_hash if feature is None else feature.schema
    prediction = Prediction(
        open_time_ms=open_time_ms,
        release=bundle.id,
        schema=schema,
        outputs=verdict.outputs,
    )
    signal = Signal(
        open_time_ms=open_time_ms,
        symbol=symbol,
        interval=interval,
        close=math.nan if feature is None else feature.close,
        score=verdict.score,
        side=str(score.side(verdict.score, manifest.thresholds.buy, manifest.thresholds.sell)),
        invalid=verdict.invalid,
        release=bundle.id,
        schema=schema,
        outputs=verdict.outputs,
    )
    return prediction, signal


def _too_novel(
    bundle: Bundle, values: npt.NDArray[np.float64], novelty: float | None, limit: float
) -> str:
    """Why a vector is too far from what the models have learnt from; "" where it is not."""
    if bundle.reference is None or novelty is None:
        return (
            f"release {bundle.id} does not know what it was trained on, so signaler.novelty_limit "
            "cannot be asked: train again, or set it to null"
        )
    if novelty <= limit:
        return ""
    found = novelty_of(values[bundle.reference_columns], bundle.reference)
    return f"novelty {found} is above the limit {limit:g}"


def _values(bundle: Bundle, asked: Asked, nan_share: float) -> npt.NDArray[np.float64] | str:
    """The feature vector, or why it gets no score."""
    manifest, feature = bundle.manifest, asked.feature
    if feature is None:
        return f"unreadable features: {asked.problem}"
    if asked.symbol not in manifest.symbols:
        known = ", ".join(manifest.symbols)
        return f"release {bundle.id} was trained on {known} only"
    if len(feature.values) % 8:
        return "features are no sequence of float64"
    values = np.frombuffer(feature.values, "<f8")
    invalid = invalid_reason(
        values,
        manifest,
        feature.gap,
        feature.covered,
        schema=feature.schema,
        nan_share=nan_share,
    )
    return invalid or values
