"""What waits to be sent, and when the next message may go. Pure: the clock is a parameter.

Alerts go before scores. The box holds at most `limit` messages; to stay below it the oldest scores
go, never an alert: when alerts fill it, `room` tells the reader to leave further ones on the bus.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from notifier.channel import Message
from shared.bus import Entry
from shared.events import Notice, Signal

_WINDOW_S = 60.0


@dataclass(frozen=True, slots=True)
class Score:
    """A score that people are to be told. entry: the signal, not acknowledged yet."""

    entry: Entry[Signal]
    message: Message


@dataclass(slots=True)
class Outbox:
    limit: int
    alerts: deque[tuple[Entry[Any], Notice]] = field(default_factory=deque)
    scores: deque[Score] = field(default_factory=deque)
    days: deque[int] = field(default_factory=deque)  # when they were due

    def __len__(self) -> int:
        return len(self.alerts) + len(self.scores)

    @property
    def room(self) -> int:
        """How many more alerts fit."""
        return max(0, self.limit - len(self.alerts))

    def add_alert(self, entry: Entry[Any], notice: Notice) -> list[Score]:
        """Takes in an alert; returns the scores that had to go for it."""
        self.alerts.append((entry, notice))
        return self._shed()

    def add_score(self, score: Score) -> list[Score]:
        """Takes in a score; returns those that had to go, this one where alerts fill the box."""
        self.scores.append(score)
        return self._shed()

    def _shed(self) -> list[Score]:
        gone = []
        while len(self) > self.limit and self.scores:
            gone.append(self.scores.popleft())
        return gone


class Pace:
    """At most `per_minute` messages in any minute, a second apart where that still allows it."""

    def __init__(self, per_minute: int) -> None:
        self._times: deque[float] = deque(maxlen=per_minute)
        self._apart_s = min(1.0, _WINDOW_S / per_minute)
        self._blocked_until_s = 0.0

    def wait_s(self, now_s: float) -> float:
        """Seconds until the next message may go."""
        until = self._blocked_until_s
        if self._times:
            until = max(until, self._times[-1] + self._apart_s)
        if len(self._times) == self._times.maxlen:
            until = max(until, self._times[0] + _WINDOW_S)
        return max(0.0, until - now_s)

    def sent(self, now_s: float) -> None:
        self._times.append(now_s)

    def block(self, until_s: float) -> None:
        """Nothing may go before then (Telegram's `retry_after`)."""
        self._blocked_until_s = max(self._blocked_until_s, until_s)
