"""One feature vector in, one prediction and one signal out. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from shared import score
from shared.bundle import Bundle, invalid_output, invalid_reason
from shared.bus import Entry, Source, Write
from shared.events import Feature, Prediction, Signal
from shared.streams import PREDICTION, SIGNAL


class Current(Protocol):
    """Whoever knows the release in use."""

    @property
    def bundle(self) -> Bundle: ...


@dataclass(frozen=True, slots=True)
class _Verdict:
    outputs: dict[str, float]
    score: float | None
    invalid: str


class Scorer:
    """Scores one symbol's features (a `shared.stage.Core`); it remembers nothing.

    nan_share: above this share of features without a value there is no score.
    """

    history = 1

    def __init__(self, current: Current, source: Source[Any], *, nan_share: float) -> None:
        self._current = current
        self._source = source
        self._nan_share = nan_share
        self._prediction = Source(PREDICTION, source.symbol, source.interval)
        self._signal = Source(SIGNAL, source.symbol, source.interval)

    def load(self, entries: Sequence[Entry[Any]]) -> None:
        """Nothing to remember."""

    def skip(self, missing: int) -> None:
        """Nothing to remember."""

    def step(self, entry: Entry[Any]) -> Sequence[Write[Any]]:
        bundle = self._current.bundle
        time_ms = entry.time_ms
        feature = entry.event if isinstance(entry.event, Feature) else None
        verdict = self._judge(bundle, feature, entry.problem)
        schema = bundle.manifest.schema_hash if feature is None else feature.schema
        thresholds = bundle.manifest.thresholds
        prediction = Prediction(
            open_time_ms=time_ms,
            release=bundle.id,
            schema=schema,
            outputs=verdict.outputs,
        )
        signal = Signal(
            open_time_ms=time_ms,
            symbol=self._source.symbol,
            interval=self._source.interval,
            close=math.nan if feature is None else feature.close,
            score=verdict.score,
            side=str(score.side(verdict.score, thresholds.buy, thresholds.sell)),
            invalid=verdict.invalid,
            release=bundle.id,
            schema=schema,
            outputs=verdict.outputs,
        )
        return (
            Write(source=self._prediction, event=prediction, open_time_ms=time_ms),
            Write(source=self._signal, event=signal, open_time_ms=time_ms),
        )

    def _judge(self, bundle: Bundle, feature: Feature | None, problem: str) -> _Verdict:
        if feature is None:
            return _Verdict({}, None, f"unreadable features: {problem}")
        manifest = bundle.manifest
        if self._source.symbol not in manifest.symbols:
            known = ", ".join(manifest.symbols)
            return _Verdict({}, None, f"release {bundle.id} was trained on {known} only")
        if len(feature.values) % 8:
            return _Verdict({}, None, "features are no sequence of float64")
        values = np.frombuffer(feature.values, "<f8")
        invalid = invalid_reason(
            values,
            manifest,
            feature.gap,
            feature.covered,
            schema=feature.schema,
            nan_share=self._nan_share,
        )
        if invalid:
            return _Verdict({}, None, invalid)
        found = bundle.run(values.reshape(1, -1))
        value = float(found.score[0])
        invalid = invalid_output(found.outputs[0], manifest, value)
        outputs = {k: v for k, v in found.named().items() if math.isfinite(v)}
        return _Verdict(outputs, None if invalid else value, invalid)
