"""Feature vectors in; of each one prediction and one signal out. Pure."""

from collections.abc import Sequence
from typing import Any, Protocol

from shared.bundle import Bundle
from shared.bus import Entry, Source, Write
from shared.events import Feature
from shared.streams import PREDICTION, SIGNAL
from shared.verdict import Asked, Verdict, events, judge


class Current(Protocol):
    """Whoever knows the release in use."""

    @property
    def bundle(self) -> Bundle: ...


class Judge:
    """Puts feature vectors through the release in use: all of a chunk at once, so that a hundred
    symbols whose candles close together cost little more than a few; the bits are the same.

    nan_share, novelty_limit: as `shared.verdict.judge` takes them. novelty: by symbol, that of the
    newest vector; None where the release does not know.
    """

    def __init__(self, current: Current, *, nan_share: float, novelty_limit: float | None) -> None:
        self._current = current
        self._nan_share = nan_share
        self._novelty_limit = novelty_limit
        self.novelty: dict[str, float | None] = {}
        self._verdicts: dict[tuple[str, str], Verdict] = {}

    @property
    def bundle(self) -> Bundle:
        return self._current.bundle

    def look(self, entries: Sequence[Entry[Any]]) -> None:
        """Judges these entries; what was judged before is forgotten."""
        asked = [
            Asked(symbol=e.source.symbol, feature=feature_of(e), problem=e.problem) for e in entries
        ]
        verdicts = judge(
            self.bundle, asked, nan_share=self._nan_share, novelty_limit=self._novelty_limit
        )
        for one, verdict in zip(asked, verdicts, strict=True):
            self.novelty[one.symbol] = verdict.novelty
        self._verdicts = {
            (e.source.key, e.id): verdict for e, verdict in zip(entries, verdicts, strict=True)
        }

    def verdict(self, entry: Entry[Any]) -> Verdict:
        """What `look` found, or finds now."""
        key = entry.source.key, entry.id
        if key not in self._verdicts:
            self.look([entry])
        return self._verdicts[key]


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
        time_ms = entry.time_ms
        prediction, signal = events(
            self._judge.bundle,
            self._judge.verdict(entry),
            feature_of(entry),
            symbol=self._source.symbol,
            interval=self._source.interval,
            open_time_ms=time_ms,
        )
        return (
            Write(source=self._prediction, event=prediction, open_time_ms=time_ms),
            Write(source=self._signal, event=signal, open_time_ms=time_ms),
        )


def feature_of(entry: Entry[Any]) -> Feature | None:
    return entry.event if isinstance(entry.event, Feature) else None
