"""The whole chain over candles, as the services run it: features, outputs, score, side. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shared.bundle import Bundle
from shared.bus import Entry
from shared.events import Feature, Prediction, Signal
from shared.explain.compare import Difference, difference
from shared.explain.history import Stretch
from shared.features import FeatureSet
from shared.klines import KLINE_COLUMNS
from shared.verdict import Asked, events, judge

_CHUNK = 4_096  # rows computed at once
_CLOSE = KLINE_COLUMNS.index("close")


@dataclass(frozen=True, slots=True, kw_only=True)
class Computed:
    """What a candle leads to. novelty: of its vector, None where nobody knows."""

    feature: Feature
    prediction: Prediction
    signal: Signal
    novelty: float | None = None


def play(
    stretch: Stretch,
    features: FeatureSet,
    bundle: Bundle,
    *,
    symbol: str,
    interval: str,
    nan_share: float,
    novelty_limit: float | None,
    first_ms: int,
    last_ms: int,
) -> Iterator[Computed]:
    """Every raster row from first_ms to last_ms, which lie in the stretch, in order.

    nan_share, novelty_limit: as `shared.verdict.judge` takes them.
    """
    step_ms = stretch.step_ms
    first, stop = (
        (time_ms - stretch.first_ms) // step_ms for time_ms in (first_ms, last_ms + step_ms)
    )
    for start in range(first, stop, _CHUNK):
        end = min(start + _CHUNK, stop)
        values = stretch.batch(features, start, end)
        closes = stretch.kline[start:end, _CLOSE].tolist()
        vectors = []
        for row, close in enumerate(closes):
            time_ms = stretch.first_ms + (start + row) * step_ms
            rows_there = (time_ms - stretch.begins_ms) // step_ms + 1
            vectors.append(
                Feature(
                    open_time_ms=time_ms,
                    schema=features.schema,
                    values=values[row].astype("<f8", copy=False).tobytes(),
                    close=close,
                    gap=bool(np.isnan(close)),
                    covered=rows_there >= features.lookback,
                )
            )
        asked = [Asked(symbol=symbol, feature=vector) for vector in vectors]
        verdicts = judge(bundle, asked, nan_share=nan_share, novelty_limit=novelty_limit)
        for vector, verdict in zip(vectors, verdicts, strict=True):
            prediction, signal = events(
                bundle,
                verdict,
                vector,
                symbol=symbol,
                interval=interval,
                open_time_ms=vector.open_time_ms,
            )
            yield Computed(
                feature=vector, prediction=prediction, signal=signal, novelty=verdict.novelty
            )


def compare(
    feature: Entry[Any] | None,
    prediction: Entry[Any] | None,
    signal: Entry[Any] | None,
    again: Computed,
    names: Sequence[str],
) -> Difference | None:
    """The first thing on the bus that has other bits than what was computed again.

    names: of the features, in order.
    """
    for stage, entry, computed in (
        ("feature", feature, again.feature),
        ("prediction", prediction, again.prediction),
        ("signal", signal, again.signal),
    ):
        found = difference(stage, None if entry is None else entry.event, computed, names)
        if found is not None:
            return found
    return None
