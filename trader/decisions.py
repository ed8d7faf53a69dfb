"""What the trader decides on a signal: a state machine whose state is the fold of its journal.

Pure: times come in with the call. The journal is `order:{symbol}`; every signal with a side leads
to exactly one line there, whatever is delivered again, replayed or read by a new group.
"""

import math
from collections import deque
from dataclasses import dataclass
from decimal import Decimal

from shared.events import Order, OrderState, Signal
from shared.times import iso

SIDES = frozenset(("BUY", "SELL"))
# Lines of the journal that are read at start: years of signals at one side in twenty candles.
MEMORY = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What may be traded. max_age_ms: market time since the candle's close."""

    mode: str
    step_ms: int
    max_age_ms: float


class Decisions:
    """The decisions on one symbol and interval so far.

    A signal whose line is (or may be) in the journal is not decided again. Signals older than the
    newest one that passed all rules are dropped: time runs forward only.
    """

    def __init__(self, rules: Rules, *, memory: int = MEMORY) -> None:
        self._rules = rules
        self._memory = memory
        self._ids: set[str] = set()
        self._order: deque[tuple[str, int]] = deque()
        self._newest_ms: int | None = None
        self._forgotten_ms: int | None = None

    def load(self, line: Order) -> None:
        """Takes in a line of the journal. Lines come oldest first."""
        if line.signal_id in self._ids:
            return
        self._ids.add(line.signal_id)
        self._order.append((line.signal_id, line.open_time_ms))
        if line.state == OrderState.OBSERVED:
            self._newest_ms = max(self._newest_ms or 0, line.open_time_ms)
        if len(self._order) > self._memory:
            self.forget_older()
            self._ids.discard(self._order.popleft()[0])

    def forget_older(self) -> None:
        """The journal is longer than the memory: what is older than its first line here may have
        been decided, so it is never decided again.

        Bounded by the last line, because the first may be a drop of a signal from the future.
        """
        if self._order:
            oldest_ms = min(self._order[0][1], self._order[-1][1])
            self._forgotten_ms = max(self._forgotten_ms or 0, oldest_ms)

    def decide(self, signal: Signal, *, market_now_ms: int | None, now_ms: int) -> Order | None:
        """The journal's next line; None where there is nothing to decide (no side, or done).

        market_now_ms: the market's clock, None where no candle tells it. now_ms: our own clock.
        """
        if signal.side not in SIDES or self.is_done(signal):
            return None
        refusal = self.refusal(signal, market_now_ms)
        line = Order(
            signal_id=signal.id,
            symbol=signal.symbol,
            interval=signal.interval,
            open_time_ms=signal.open_time_ms,
            time_ms=now_ms,
            state=OrderState.DROPPED if refusal else OrderState.OBSERVED,
            side=signal.side,
            quantity="",
            price=price_text(signal.close),
            reason=refusal or f"{self._rules.mode}: no orders are sent",
            score=signal.score,
            release=signal.release,
            mode=self._rules.mode,
        )
        self.load(line)
        return line

    def is_done(self, signal: Signal) -> bool:
        """Whether its line is, or may be, in the journal."""
        if signal.id in self._ids:
            return True
        return self._forgotten_ms is not None and signal.open_time_ms <= self._forgotten_ms

    def passed(self, signal: Signal) -> None:
        """It was acted upon: older ones are late from now on."""
        self._newest_ms = max(self._newest_ms or 0, signal.open_time_ms)

    def refusal(self, signal: Signal, market_now_ms: int | None) -> str:
        """The rule that forbids acting on the signal, "" for none."""
        rules = self._rules
        if signal.invalid:
            return f"invalid: {signal.invalid}"
        if signal.score is None or not -1 <= signal.score <= 1:
            return f"invalid: score {signal.score} is not in [-1, +1]"
        if not (math.isfinite(signal.close) and signal.close > 0):
            return f"invalid: close {signal.close} is no price"
        if signal.open_time_ms % rules.step_ms:
            return f"invalid: {signal.open_time_ms} is not a candle's time"
        if market_now_ms is None:
            return "no candle on the bus tells the market's time"
        age_ms = market_now_ms - (signal.open_time_ms + rules.step_ms)
        if age_ms < 0:
            return f"from the future: its candle closes {-age_ms / 1000:.3f} s after market time"
        if self._newest_ms is not None and signal.open_time_ms < self._newest_ms:
            return f"late: {iso(self._newest_ms)} was decided before it"
        if age_ms > rules.max_age_ms:
            return f"too old: {age_ms / 1000:.3f} s, limit {rules.max_age_ms / 1000:g} s"
        return ""


def price_text(close: float) -> str:
    """A price as a decimal string without exponent; "" for none."""
    return f"{Decimal(repr(close)):f}" if math.isfinite(close) else ""
