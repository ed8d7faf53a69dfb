"""The raster of one symbol and interval: which candle may be written next, and what to ask REST.

Pure: messages, REST replies and times go in; rows to write, questions and remarks come out. What it
keeps to (DESIGN section 4, FAULTS C1-C10):

* A candle is written when every older one is on the stream, or its gap marker is.
* The closed REST row is the truth, the stream is only faster. A row that the stream missed, or that
  was refused, is a hole; holes are filled by REST.
* A gap marker needs a REST reply, asked at least 10 s after that minute closed, that has a later
  candle and not this one.
* What is written stays. A later difference is a remark: notice, ledger and archive tell it.

Refused rows (high < low, no number, zero, off the raster ...) are holes too. Where REST insists on
such a row it is refused until HOPELESS replies have shown it; then the minute becomes a gap marker,
so that one bad row cannot stop the pipeline. A close that moves by more than `max_price_jump` is
believed when a second message (REST after the stream, or REST twice) shows the same row: a real
crash passes within a second, a single wrong print does not.
"""

import math
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from shared.binance import PAGE, KlineUpdate
from shared.candles import problem_of
from shared.errors import Failure
from shared.events import Kline, Level
from shared.times import interval_ms, iso

GAP_AFTER_MS = 10_000  # REST is believed about a missing or final row this long after its close
FINAL_MS = 1_000  # before this, REST may still show the candle as it was
OVERDUE_MS = 5_000  # no message by then: ask REST
HOPELESS = 5
HELD = 4_096  # rows kept in memory while the bus is away; newer ones come from REST later
RECENT = 128  # written rows that are compared with what comes later
_RETRY_S = (0.5, 60.0)


class Origin(StrEnum):
    STREAM = "stream"
    REST = "rest"
    GAP = "gap"


@dataclass(frozen=True, slots=True)
class Row:
    """A candle to be written, and where it came from."""

    kline: Kline
    origin: Origin
    received_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """Something that people and the data ledger must know. code: gap, repair, revision, ..."""

    level: Level
    code: str
    text: str
    open_time_ms: int
    kline: Kline | None = None  # the true row, where there is one
    was: Kline | None = None  # of a revision: what was written before


class Purpose(StrEnum):
    NEWEST = "newest"  # which candle is open now?
    REPAIR = "repair"  # rows that are missing
    VERIFY = "verify"  # rows that are written


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A question to REST: `limit` candles from `start_ms` on (None: the newest)."""

    purpose: Purpose
    start_ms: int | None
    limit: int


def same_row(one: Kline, other: Kline) -> bool:
    """Equal values; NaN equals NaN."""
    if one.gap != other.gap:
        return False
    pairs = zip(one.row(), other.row(), strict=True)
    return all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in pairs)


@dataclass(slots=True, kw_only=True)
class Candles:
    """State of one symbol and interval.

    history_rows: candles wanted before the newest where the stream is empty.
    next_ms: the first candle that is not on the stream yet; None until that is known.
    newest_ms: open time of the newest candle that has begun; all before it are closed.
    """

    symbol: str
    interval: str
    history_rows: int
    max_price_jump: float
    step_ms: int = field(init=False)
    next_ms: int | None = field(init=False, default=None)
    newest_ms: int | None = field(init=False, default=None)
    counts: Counter[str] = field(init=False, default_factory=Counter)
    remarks: list[Remark] = field(init=False, default_factory=list)
    _held: dict[int, Row] = field(init=False, default_factory=dict)
    _recent: OrderedDict[int, Kline] = field(init=False, default_factory=OrderedDict)
    _unverified: set[int] = field(init=False, default_factory=set)
    _suspects: dict[int, Kline] = field(init=False, default_factory=dict)
    _bad_replies: Counter[int] = field(init=False, default_factory=Counter)
    _from_history_start: bool = field(init=False, default=False)
    _caught_up: bool = field(init=False, default=False)
    _asking: bool = field(init=False, default=False)
    _retry_s: float = field(init=False, default=_RETRY_S[0])
    _ask_at_s: float = field(init=False, default=0.0)
    _ask_from_ms: int | None = field(init=False, default=None)
    _verify_at_s: float = field(init=False, default=0.0)
    _doubt: bool = field(init=False, default=False)
    _clock_in_doubt: bool = field(init=False, default=False)
    _newest_at_s: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self.step_ms = interval_ms(self.interval)

    # -- the bus ------------------------------------------------------------------------------

    def rebase(self, last_ms: int | None, tail: Sequence[Kline]) -> None:
        """A new session: the stream ends with `last_ms` (None: empty), `tail` are its last rows.

        Rows from the exchange that are not on the stream stay in memory.
        """
        if last_ms is not None and last_ms % self.step_ms:
            raise Failure(
                f"{self.symbol} {self.interval}: the newest entry on the bus, {last_ms}, is not on "
                "the raster; somebody else wrote it: remove it (XDEL) and start again"
            )
        self.next_ms = None if last_ms is None else last_ms + self.step_ms
        self._from_history_start = last_ms is None
        self._recent = OrderedDict((kline.open_time_ms, kline) for kline in tail[-RECENT:])
        self._unverified.clear()
        self._caught_up = False
        self._asking = False
        self._hurry()
        if self.next_ms is not None:
            self._held = {t: row for t, row in self._held.items() if t >= self.next_ms}

    def ready(self, limit: int = PAGE) -> list[Row]:
        """Rows that may be written now, in order."""
        rows: list[Row] = []
        next_ms = self.next_ms
        while next_ms is not None and len(rows) < limit:
            row = self._held.get(next_ms)
            if row is None:
                break
            rows.append(row)
            next_ms += self.step_ms
        return rows

    def is_ready(self) -> bool:
        return self.next_ms is not None and self.next_ms in self._held

    def is_blocked(self) -> bool:
        """Whether closed candles wait for what REST can say now about older ones."""
        next_ms = self.next_ms
        return (
            next_ms is not None
            and self._ask_from_ms is None
            and next_ms not in self._held
            and any(open_time_ms > next_ms for open_time_ms in self._held)
        )

    def written(self, rows: Sequence[Row]) -> None:
        """These rows, as `ready` gave them, are on the stream."""
        for row in rows:
            open_time_ms = row.kline.open_time_ms
            del self._held[open_time_ms]
            self._recent[open_time_ms] = row.kline
            if row.origin is Origin.STREAM or self._caught_up:
                self._unverified.add(open_time_ms)
            self.next_ms = open_time_ms + self.step_ms
        while len(self._recent) > RECENT:
            self._unverified.discard(self._recent.popitem(last=False)[0])
        if self.newest_ms is not None and self.next_ms is not None:
            self._caught_up = self._caught_up or self.next_ms >= self.newest_ms

    def behind(self, now_ms: int | None) -> int | None:
        """Closed candles that are not on the stream yet, by the market's clock."""
        if self.next_ms is None or now_ms is None:
            return None
        return max(0, (now_ms - self.next_ms) // self.step_ms)

    def ahead(self, now_ms: int | None) -> int:
        """Candles by which the stream ends after the market's time: somebody else wrote those."""
        if self.next_ms is None or now_ms is None:
            return 0
        return max(0, (self.next_ms - now_ms) // self.step_ms)

    # -- the stream ---------------------------------------------------------------------------

    def update(self, update: KlineUpdate, received_us: int, now_ms: int | None) -> None:
        """A message of this candle's stream. now_ms: market time.

        While that is unknown nothing can be judged: what comes then is left to REST.
        """
        kline = update.kline
        if now_ms is None:
            return
        open_time_ms = kline.open_time_ms
        if kline.symbol != self.symbol or kline.interval != self.interval:
            self._refuse(kline, f"it names {kline.symbol} {kline.interval}")
            return
        if open_time_ms > now_ms + self.step_ms:
            self._refuse(kline, "it lies in the future", code="future")
            return
        if open_time_ms % self.step_ms:
            self._refuse(kline, problem_of(kline, self.step_ms))
            return
        self._begun(open_time_ms)
        if not update.closed:
            return
        if open_time_ms + self.step_ms > now_ms + FINAL_MS:
            self._refuse(kline, "it is called closed before its end", code="future")
            return
        if self.next_ms is not None and open_time_ms < self.next_ms:
            self._again(kline)
            return
        held = self._held.get(open_time_ms)
        if held is not None:
            if same_row(held.kline, kline):
                self.counts["repeated"] += 1
            elif held.origin is Origin.STREAM:
                # Two closed versions: REST knows which one is true.
                del self._held[open_time_ms]
                self.counts["contradicted"] += 1
                self._hurry()
            return
        reason = problem_of(kline, self.step_ms)
        if not reason and self._jumps(kline):
            self._suspects[open_time_ms] = kline
            reason = self._jump_text(kline)
        if reason:
            self._refuse(kline, reason)
            self._hurry()
            return
        self._hold(Row(kline, Origin.STREAM, received_us))

    def _again(self, kline: Kline) -> None:
        """A closed candle whose place on the stream is taken."""
        there = self._recent.get(kline.open_time_ms)
        if there is None or same_row(there, kline):
            self.counts["repeated"] += 1
            return
        self.counts["late"] += 1
        self._doubt, self._verify_at_s = True, 0.0  # the stream says otherwise now: REST decides

    # -- REST ---------------------------------------------------------------------------------

    def wants(self, now_ms: int | None, at_s: float) -> Ask | None:
        """What to ask REST now, if anything. at_s: our monotonic clock.

        The answer must come back through `reply` or `no_reply`; until then nothing more is asked.
        """
        if self._asking:
            return None
        ask = self._repair(now_ms, at_s) or self._verify(now_ms, at_s)
        self._asking = ask is not None
        return ask

    def _repair(self, now_ms: int | None, at_s: float) -> Ask | None:
        due = at_s >= self._ask_at_s
        newest = Ask(purpose=Purpose.NEWEST, start_ms=None, limit=2)
        if self._clock_in_doubt and at_s >= self._newest_at_s:
            return newest
        if now_ms is None or self.newest_ms is None:
            return newest if due else None
        if self.next_ms is None:
            self.next_ms = self.newest_ms - self.history_rows * self.step_ms
        if self.next_ms in self._held:
            return None
        closed_ms = self.next_ms + self.step_ms
        ripe = self._ask_from_ms is not None and now_ms >= self._ask_from_ms
        if not (due or ripe):
            return None
        # Known to be missing, or so late that something must be wrong.
        missing = any(t > self.next_ms for t in self._held) or (
            self.newest_ms > self.next_ms and now_ms >= closed_ms + FINAL_MS
        )
        if not missing and now_ms < closed_ms + OVERDUE_MS:
            return None
        self._ask_from_ms = None
        newest_ms = max(self.newest_ms, now_ms)
        rows = (newest_ms - self.next_ms) // self.step_ms + 2
        return Ask(purpose=Purpose.REPAIR, start_ms=self.next_ms, limit=max(2, min(PAGE, rows)))

    def _verify(self, now_ms: int | None, at_s: float) -> Ask | None:
        if now_ms is None or at_s < self._verify_at_s or not (self._doubt or self._unverified):
            return None
        final_ms = now_ms - GAP_AFTER_MS - self.step_ms
        if not self._doubt and min(self._unverified) > final_ms:
            return None
        start_ms = next(iter(self._recent), None)
        if start_ms is None or start_ms > final_ms:
            return None
        rows = (final_ms - start_ms) // self.step_ms + 2
        return Ask(purpose=Purpose.VERIFY, start_ms=start_ms, limit=max(2, min(PAGE, rows)))

    def ask_newest(self) -> None:
        """A message does not fit to the clock: let REST say which candle is open."""
        self._clock_in_doubt = True

    def no_reply(self, ask: Ask, at_s: float) -> None:
        """The question was not answered, or the answer cannot be trusted."""
        self._asking = False
        if ask.purpose is Purpose.VERIFY:
            self._verify_at_s = at_s + _RETRY_S[1] / 4
        else:
            self._newest_at_s = at_s + 1.0
            self._wait(at_s)

    def reply(
        self,
        ask: Ask,
        rows: Sequence[Kline],
        *,
        asked_ms: int | None,
        heard_ms: int | None,
        received_us: int,
        at_s: float,
        verify_every_s: float = 10.0,
    ) -> None:
        """REST's answer. asked_ms: market time when the question was sent.

        heard_ms: what the exchange itself last said its time is (not extrapolated). Rows that the
        clock does not believe must have been taken out.
        """
        self._asking = False
        if rows:
            self._begun(rows[-1].open_time_ms)
        closed = [
            row
            for row in rows
            if (self.newest_ms is not None and row.open_time_ms < self.newest_ms)
            or (heard_ms is not None and row.open_time_ms + self.step_ms + FINAL_MS <= heard_ms)
        ]
        if ask.purpose is Purpose.VERIFY:
            self._verify_at_s = at_s + verify_every_s
            self._compare(closed, rows, asked_ms or 0)
            return
        if ask.purpose is Purpose.NEWEST or self.next_ms is None or ask.start_ms is None:
            self._clock_in_doubt, self._newest_at_s = False, at_s + 1.0
            if self.newest_ms is None:
                self._wait(at_s)
            else:
                self._hurry()
            return
        before_ms, held = self.next_ms, len(self._held)
        if self._from_history_start and rows:
            # Nothing is on the stream yet: what the exchange does not have yet is no gap.
            self._from_history_start = False
            self.next_ms = max(
                self.next_ms, rows[0].open_time_ms - rows[0].open_time_ms % self.step_ms
            )
        for row in closed:
            if row.open_time_ms >= self.next_ms and not self._from_rest(
                row, asked_ms or 0, received_us
            ):
                break
        if rows:
            start_ms = max(self.next_ms, ask.start_ms)
            self._mark_gaps(start_ms, rows, asked_ms or 0, received_us)
        if self.next_ms != before_ms or len(self._held) != held:
            self._hurry()
        else:
            self._wait(at_s)

    def _from_rest(self, row: Kline, asked_ms: int, received_us: int) -> bool:
        """Takes a closed row. False: the rows after it cannot be judged before it is confirmed."""
        open_time_ms = row.open_time_ms
        held = self._held.get(open_time_ms)
        if held is not None:
            if not same_row(held.kline, row) and self._is_final(open_time_ms, asked_ms):
                reason = problem_of(row, self.step_ms)
                if not reason:
                    self._held[open_time_ms] = Row(row, Origin.REST, received_us)
                    self.counts["corrected"] += 1
            return True
        reason = problem_of(row, self.step_ms)
        if reason:
            if open_time_ms % self.step_ms == 0:
                self._bad_replies[open_time_ms] += 1
            if self._bad_replies[open_time_ms] <= 1:
                self._refuse(row, f"REST: {reason}")
            return True
        if self._jumps(row):
            suspect = self._suspects.get(open_time_ms)
            if suspect is None or not same_row(suspect, row):
                self._suspects[open_time_ms] = row
                self._refuse(row, f"REST: {self._jump_text(row)}")
                return False
            text = f"{self._jump_text(row)}, confirmed by REST: it is written"
            self._remark(Level.WARNING, "jump", row.open_time_ms, text, row)
        self._suspects.pop(open_time_ms, None)
        self._bad_replies.pop(open_time_ms, None)
        self._hold(Row(row, Origin.REST, received_us))
        if self._caught_up:
            self.counts["repaired"] += 1
        return True

    def _mark_gaps(
        self, start_ms: int, rows: Sequence[Kline], asked_ms: int, received_us: int
    ) -> None:
        """Minutes that REST leaves out although it shows a later one."""
        there = {
            row.open_time_ms
            for row in rows
            if self._bad_replies.get(row.open_time_ms, 0) < HOPELESS
        }
        gaps = []
        for open_time_ms in range(start_ms, rows[-1].open_time_ms, self.step_ms):
            if open_time_ms in there or open_time_ms in self._held:
                continue
            if not self._is_final(open_time_ms, asked_ms):
                self._ask_from_ms = open_time_ms + self.step_ms + GAP_AFTER_MS
                break
            marker = Kline.gap_marker(
                self.symbol, self.interval, open_time_ms, open_time_ms + self.step_ms - 1
            )
            if not self._hold(Row(marker, Origin.GAP, received_us)):
                break
            gaps.append(open_time_ms)
        self.counts["gaps"] += len(gaps)
        start = 0
        for end in range(1, len(gaps) + 1):
            if end < len(gaps) and gaps[end] == gaps[end - 1] + self.step_ms:
                continue
            count = end - start
            what = "candle does" if count == 1 else "candles do"
            text = f"{count} {what} not exist on the exchange, the last at {iso(gaps[end - 1])}"
            self._remark(Level.WARNING, "gap", gaps[start], text)
            start = end

    def _compare(self, closed: Sequence[Kline], rows: Sequence[Kline], asked_ms: int) -> None:
        """Written rows against REST (FAULTS C4): a difference is told, the stream stays."""
        if not rows:
            return
        self._doubt = False
        true = {row.open_time_ms: row for row in closed}
        for open_time_ms, there in list(self._recent.items()):
            if not rows[0].open_time_ms <= open_time_ms < rows[-1].open_time_ms:
                continue
            if not self._is_final(open_time_ms, asked_ms):
                continue
            self._unverified.discard(open_time_ms)
            row = true.get(open_time_ms)
            if row is None:
                if not there.gap:
                    self.counts["revisions"] += 1
                    gone = Kline.gap_marker(
                        self.symbol, self.interval, open_time_ms, there.close_time_ms
                    )
                    self._recent[open_time_ms] = gone
                    text = "REST no longer has this candle; the bus keeps it"
                    self._remark(Level.WARNING, "revision", open_time_ms, text, was=there)
                continue
            if not problem_of(row, self.step_ms) and not same_row(there, row):
                self.counts["revisions"] += 1
                self._recent[open_time_ms] = row
                text = f"REST now has close {row.close!r} volume {row.volume!r}, the bus keeps " + (
                    "a gap marker" if there.gap else f"{there.close!r} {there.volume!r}"
                )
                self._remark(Level.WARNING, "revision", open_time_ms, text, row, was=there)

    # -----------------------------------------------------------------------------------------

    def _begun(self, open_time_ms: int) -> None:
        if self.newest_ms is None or open_time_ms > self.newest_ms:
            self.newest_ms = open_time_ms - open_time_ms % self.step_ms

    def _hold(self, row: Row) -> bool:
        """Keeps a row until its turn. Full: the newest is left to REST, later."""
        if len(self._held) >= HELD:
            self.counts["left_to_rest"] += 1
            newest_ms = max(self._held)
            if row.kline.open_time_ms > newest_ms:
                return False
            del self._held[newest_ms]
        self._held[row.kline.open_time_ms] = row
        return True

    def _is_final(self, open_time_ms: int, asked_ms: int) -> bool:
        return asked_ms >= open_time_ms + self.step_ms + GAP_AFTER_MS

    def _previous_close(self, open_time_ms: int) -> float | None:
        before_ms = open_time_ms - self.step_ms
        held = self._held.get(before_ms)
        kline = held.kline if held is not None else self._recent.get(before_ms)
        if kline is not None and not kline.gap:
            return kline.close
        closes = [
            (t, row.kline.close)
            for t, row in self._held.items()
            if t < open_time_ms and not row.kline.gap
        ]
        if closes:
            return max(closes)[1]
        recent = [k.close for t, k in self._recent.items() if t < open_time_ms and not k.gap]
        return recent[-1] if recent else None

    def _jumps(self, kline: Kline) -> bool:
        close = self._previous_close(kline.open_time_ms)
        return close is not None and abs(kline.close / close - 1) > self.max_price_jump

    def _jump_text(self, kline: Kline) -> str:
        before = self._previous_close(kline.open_time_ms)
        return f"its close {kline.close!r} jumps away from {before!r}"

    def _refuse(self, kline: Kline, reason: str, *, code: str = "refused") -> None:
        self.counts[code] += 1
        text = f"the candle of {iso_or_number(kline.open_time_ms)} is refused: {reason}"
        self._remark(Level.ALERT, code, kline.open_time_ms, text, None)

    def _remark(
        self,
        level: Level,
        code: str,
        open_time_ms: int,
        text: str,
        kline: Kline | None = None,
        *,
        was: Kline | None = None,
    ) -> None:
        if len(self.remarks) < 1000:
            self.remarks.append(
                Remark(
                    level=level,
                    code=code,
                    text=text,
                    open_time_ms=open_time_ms,
                    kline=kline,
                    was=was,
                )
            )

    def _hurry(self) -> None:
        self._ask_at_s = 0.0
        self._ask_from_ms = None
        self._retry_s = _RETRY_S[0]

    def _wait(self, at_s: float) -> None:
        self._ask_at_s = at_s + self._retry_s
        self._retry_s = min(_RETRY_S[1], 2 * self._retry_s)


def iso_or_number(time_ms: int) -> str:
    """A time for people, whatever was sent as one."""
    try:
        return iso(time_ms)
    except (ValueError, OverflowError, OSError):
        return str(time_ms)
