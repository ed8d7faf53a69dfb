"""Feature vectors in; of each one prediction and one signal out. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

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


class Judge:
    """Puts feature vectors through the release in use: all of a chunk at once, so that a hundred
    symbols whose candles close together cost little more than a few; the bits are the same.

    nan_share: above this share of features without a value there is no score.
    """

    def __init__(self, current: Current, *, nan_share: float) -> None:
        self._current = current
        self._nan_share = nan_share
        self._verdicts: dict[tuple[str, str], _Verdict] = {}

    @property
    def bundle(self) -> Bundle:
        return self._current.bundle

    def look(self, entries: Sequence[Entry[Any]]) -> None:
        """Judges these entries; what was judged before is forgotten."""
        found: dict[tuple[str, str], _Verdict] = {}
        asked: list[tuple[str, str]] = []
        vectors: list[npt.NDArray[np.float64]] = []
        for entry in entries:
            values = self._values(entry)
            if isinstance(values, str):
                found[entry.source.key, entry.id] = _Verdict({}, None, values)
            else:
                asked.append((entry.source.key, entry.id))
                vectors.append(values)
        if vectors:
            rows = self.bundle.run(np.stack(vectors))
            for row, key in enumerate(asked):
                value = float(rows.score[row])
                invalid = invalid_output(rows.outputs[row], self.bundle.manifest, value)
                outputs = {k: v for k, v in rows.named(row).items() if math.isfinite(v)}
                found[key] = _Verdict(outputs, None if invalid else value, invalid)
        self._verdicts = found

    def verdict(self, entry: Entry[Any]) -> _Verdict:
        """What `look` found, or finds now."""
        key = entry.source.key, entry.id
        if key not in self._verdicts:
            self.look([entry])
        return self._verdicts[key]

    def _values(self, entry: Entry[Any]) -> npt.NDArray[np.float64] | str:
        """The feature vector, or why it gets no score."""
        if not isinstance(entry.event, Feature):
            return f"unreadable features: {entry.problem}"
        manifest, feature = self.bundle.manifest, entry.event
        if entry.source.symbol not in manifest.symbols:
            known = ", ".join(manifest.symbols)
            return f"release {self.bundle.id} was trained on {known} only"
        if len(feature.values) % 8:
            return "features are no sequence of float64"
        values = np.frombuffer(feature.values, "<f8")
        invalid = invalid_reason(
            values,
            manifest,
            feature.gap,
            feature.covered,
            schema=feature.schema,
            nan_share=self._nan_share,
        )
        return invalid or values


class Scorer:
    """Scores one symbol's features (a `shared.stage.Core`); it remembers nothing."""

    history = 1

    def __init__(self, judge: Judge, source: Source[Any]) -> None:
        self._judge = judge
        self._source = source
        self._prediction = Source(PREDICTION, source.symbol, source.interval)
        self._signal = Source(SIGNAL, source.symbol, source.interval)

    def load(self, entries: Sequence[Entry[Any]]) -> None:
        """Nothing to remember."""

    def skip(self, missing: int) -> None:
        """Nothing to remember."""

    def step(self, entry: Entry[Any]) -> Sequence[Write[Any]]:
        bundle = self._judge.bundle
        time_ms = entry.time_ms
        feature = entry.event if isinstance(entry.event, Feature) else None
        verdict = self._judge.verdict(entry)
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
