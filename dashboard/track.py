"""What the page shows of one symbol: a window of candles with all that was derived from each.

Pure. Entries of the streams come in as they stand on the bus; `snapshot` is the whole window by
columns, `changes` the rows that entries have touched since it was last called.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from dashboard.account import Account, Json
from dashboard.whatif import WhatIf
from shared.bus import Entry, id_order
from shared.events import Feature, Kline, Order, Signal

# Of a row, before its outputs; the page reads rows by this order.
FIELDS = (
    "time", "open", "high", "low", "close", "volume", "gap", "score", "side", "invalid", "release",
    "late_ms", "total_us", "equity", "held", "result",
)  # fmt: skip
STAGES = ("collector", "featurizer", "predictor", "total")
_MEASURED = 500  # newest candles over which latencies are told
_MOST_RUNS = 200


@dataclass(slots=True)
class Row:
    """One candle. Clocks are ours, microseconds; None = that entry has not come (yet).

    late_ms: market time from its close to its entry on the bus.
    """

    kline: Kline
    late_ms: int | None
    received_us: int
    kline_us: int
    feature_us: int | None = None
    signal: Signal | None = None
    signal_us: int | None = None
    equity: float | None = None
    held: float | None = None

    @property
    def is_live(self) -> bool:
        """Published before the next candle closed: what is backfilled says nothing of latency."""
        kline = self.kline
        length = kline.close_time_ms + 1 - kline.open_time_ms
        return not kline.gap and self.late_ms is not None and self.late_ms < length

    def stages_us(self) -> tuple[int, int, int, int] | None:
        """Our own time in each of STAGES; None where the signal is not there."""
        if self.feature_us is None or self.signal_us is None:
            return None
        return (
            self.kline_us - self.received_us,
            self.feature_us - self.kline_us,
            self.signal_us - self.feature_us,
            self.signal_us - self.received_us,
        )


@dataclass(frozen=True, slots=True)
class FeatureVector:
    """One candle's features. values: float64, in the order of `schema:<schema>`."""

    open_time_ms: int
    schema: str
    values: bytes


class Track:
    """One symbol's window of at most `most` candles."""

    def __init__(
        self, symbol: str, step_ms: int, most: int, whatif: WhatIf, account: Account
    ) -> None:
        self.symbol = symbol
        self.whatif = whatif
        self.account = account
        self.models: list[str] = []  # in order of appearance; only ever grows
        self.vectors: deque[FeatureVector] = deque(maxlen=most)
        self.unreadable = 0
        self._step_ms = step_ms
        self._most = most
        self._rows: dict[int, Row] = {}
        self._done_ms = -1  # the rules have gone through the candles up to here
        self._changed: dict[int, None] = {}
        self._latency: Json | None = None

    # -- in -----------------------------------------------------------------------------------

    def apply(self, entry: Entry[Any]) -> None:
        """Takes in an entry of one of the symbol's streams. A candle comes before what is derived
        from it; what has no candle in the window is left out."""
        event = entry.event
        is_placed = not entry.source.stream.event_time or not (
            id_order(entry.id)[1] or entry.time_ms % self._step_ms
        )
        if event is None or not is_placed:
            self.unreadable += 1
            return
        if isinstance(event, Kline):
            self._add(event, entry)
            return
        if isinstance(event, Order):
            self._book(event)
            return
        row = self._rows.get(entry.time_ms)
        if row is None:
            return
        if isinstance(event, Feature) and row.feature_us is None:
            row.feature_us = entry.meta.published_us
            self.vectors.append(FeatureVector(entry.time_ms, event.schema, event.values))
        elif isinstance(event, Signal) and row.signal is None:
            row.signal, row.signal_us = event, entry.meta.published_us
            self._latency = None
            self.models.extend(name for name in event.outputs if name not in self.models)
            self._trade(entry.time_ms)
        self._changed[entry.time_ms] = None

    def _add(self, kline: Kline, entry: Entry[Kline]) -> None:
        time_ms, meta = kline.open_time_ms, entry.meta
        if self._rows and time_ms <= next(reversed(self._rows)):
            return
        late_ms = None
        if meta.market_ms is not None:
            late_ms = max(0, meta.market_ms - (kline.close_time_ms + 1))
        self._rows[time_ms] = Row(kline, late_ms, meta.received_us, meta.published_us)
        self._changed[time_ms] = None
        while len(self._rows) > self._most:
            oldest = next(iter(self._rows))
            del self._rows[oldest]
            self._changed.pop(oldest, None)

    def _book(self, line: Order) -> None:
        """A line of the trader's journal; results change from its fills on."""
        since_ms = self.account.add(line)
        if since_ms is None:
            return
        for time_ms in reversed(self._rows):
            if time_ms + self._step_ms <= since_ms:
                break
            self._changed[time_ms] = None

    def _trade(self, upto_ms: int) -> None:
        """The rules over every candle up to the one whose signal came now, each once."""
        pending = []
        for time_ms in reversed(self._rows):
            if time_ms <= self._done_ms:
                break
            if time_ms <= upto_ms:
                pending.append(time_ms)
        for time_ms in reversed(pending):
            row = self._rows[time_ms]
            kline, signal = row.kline, row.signal
            prices = (kline.open, kline.high, kline.low, kline.close)
            worth = self.whatif.step(time_ms, prices, None if signal is None else signal.score)
            if worth is not None:
                row.equity, row.held = worth
            self._changed[time_ms] = None
            self._done_ms = time_ms

    # -- out ----------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def newest(self) -> Row | None:
        return self._rows[next(reversed(self._rows))] if self._rows else None

    @property
    def release(self) -> str:
        """That scored the newest candle which has a signal; "" where there is none."""
        for row in reversed(self._rows.values()):
            if row.signal is not None:
                return row.signal.release
        return ""

    def row(self, open_time_ms: int) -> Row | None:
        return self._rows.get(open_time_ms)

    def changes(self) -> list[list[Any]]:
        """Rows that were touched since the last call, oldest first: FIELDS, then the outputs in the
        order of `models`; None where there is no value."""
        changed = [self._rows[t] for t in sorted(self._changed) if t in self._rows]
        self._changed.clear()
        return [[*self._plain(row), *self._outputs(row)] for row in changed]

    def snapshot(self) -> Json:
        """The window, one list per field, without the outputs."""
        return {
            "symbol": self.symbol,
            "models": list(self.models),
            "columns": _by_name(FIELDS, (self._plain(row) for row in self._rows.values())),
        }

    def outputs(self) -> Json:
        """Every model's outputs over the window."""
        rows = self._rows.values()
        return {
            "symbol": self.symbol,
            "time": [row.kline.open_time_ms for row in rows],
            "outputs": _by_name(self.models, (self._outputs(row) for row in rows)),
        }

    def _plain(self, row: Row) -> list[Any]:
        """The values of FIELDS as JSON can hold them."""
        kline, signal, stages = row.kline, row.signal, row.stages_us()
        said = (None, "", "", "") if signal is None else (
            _number(signal.score, 5), signal.side, signal.invalid, signal.release
        )  # fmt: skip
        return [
            kline.open_time_ms,
            *map(_number, (kline.open, kline.high, kline.low, kline.close, kline.volume)),
            kline.gap,
            *said,
            row.late_ms,
            stages[3] if stages is not None and row.is_live else None,
            _number(row.equity, 2),
            _number(row.held, 2),
            _number(self.account.result(kline.close, kline.close_time_ms), 4),
        ]

    def _outputs(self, row: Row) -> list[float | None]:
        found = {} if row.signal is None else row.signal.outputs
        return [_number(found.get(name), 5) for name in self.models]

    def latency(self) -> Json:
        """Per stage p50, p90, p99 and the largest of the newest live candles, milliseconds."""
        if self._latency is None:
            self._latency = self._measured()
        return self._latency

    def _measured(self) -> Json:
        times = [
            stages
            for row in islice(reversed(self._rows.values()), _MEASURED)
            if row.is_live and (stages := row.stages_us()) is not None
        ]
        if not times:
            return {"candles": 0, "stages": {}}
        found = np.percentile(np.array(times, np.float64), (50, 90, 99, 100), axis=0) / 1000
        names = ("p50", "p90", "p99", "max")
        by_stage = {
            stage: dict(zip(names, (round(float(v), 3) for v in found[:, n]), strict=True))
            for n, stage in enumerate(STAGES)
        }
        return {"candles": len(times), "stages": by_stage}

    def ledger(self) -> Json:
        """What is whole and what is not among the candles shown.

        runs: of consecutive rows, newest first: [kind, first, last, rows]; a "gap" is a minute that
        the exchange never produced and that is marked, a "hole" one that is not on the bus.
        """
        counts = {"candles": 0, "gap": 0, "hole": 0, "backfilled": 0, "unreadable": self.unreadable}
        runs: list[list[Any]] = []
        for kind, first_ms, last_ms in self._kinds():
            rows = (last_ms - first_ms) // self._step_ms + 1
            counts[kind] += rows
            if kind in ("candles", "backfilled"):
                continue
            if runs and runs[-1][0] == kind and runs[-1][2] == first_ms - self._step_ms:
                runs[-1][2] = last_ms
                runs[-1][3] += rows
            else:
                runs.append([kind, first_ms, last_ms, rows])
        late = [r.late_ms for r in self._rows.values() if r.is_live and r.late_ms is not None]
        return {
            "symbol": self.symbol,
            "counts": counts,
            "runs": runs[: -_MOST_RUNS - 1 : -1],
            "first": next(iter(self._rows), None),
            "last": next(reversed(self._rows), None),
            "late_ms": None
            if not late
            else {"p50": float(np.median(late)), "max": float(max(late))},
        }

    def _kinds(self) -> Iterator[tuple[str, int, int]]:
        """(kind, first, last) of each row and of what lies between two rows."""
        expected = None
        for time_ms, row in self._rows.items():
            if expected is not None and time_ms > expected:
                yield "hole", expected, time_ms - self._step_ms
            kind = "gap" if row.kline.gap else "candles" if row.is_live else "backfilled"
            yield kind, time_ms, time_ms
            expected = time_ms + self._step_ms


def _number(value: float | None, digits: int | None = None) -> float | None:
    """JSON has no NaN."""
    if value is None or not math.isfinite(value):
        return None
    return value if digits is None else round(value, digits)


def _by_name(names: Iterable[str], rows: Iterable[list[Any]]) -> dict[str, list[Any]]:
    names = list(names)
    columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in names]
    return dict(zip(names, columns, strict=True))
