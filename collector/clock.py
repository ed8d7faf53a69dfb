"""The market's clock: what time it is on the exchange, as far as its messages tell.

Live that is the exchange's time, in a replay the data's, years away from ours. Never the server
time of REST: in a replay that is the account's clock.
"""

from dataclasses import dataclass

_BEHIND_MS = 30_000
_BEHIND_US = 5_000_000
_BEHIND = 8


@dataclass(slots=True)
class MarketClock:
    """Fed with event times (`E`) of messages and open times of candles that REST shows.

    slack_ms: how far one message may move the clock ahead of where it already runs. A larger leap
    counts only when the streams and REST agree on it, or REST repeats it, so that one wrong message
    cannot poison the bus with ids of the future (FAULTS R1).
    speed: market milliseconds per millisecond of ours; 0 = it moves by messages only (lock-step).
    Our times are those of a clock that never steps (FAULTS T19).
    """

    slack_ms: int
    speed: float = 1.0
    heard_ms: int | None = None
    _at_us: int = 0
    _leap_event_ms: int | None = None
    _leap_candle_ms: int | None = None
    _behind_since_us: int | None = None
    _behind: int = 0

    def now_ms(self, at_us: int) -> int | None:
        """Market time at our time `at_us`, None before the first sign of life."""
        if self.heard_ms is None:
            return None
        return self.heard_ms + int(max(0, at_us - self._at_us) * self.speed) // 1000

    def event(self, event_ms: int, at_us: int) -> bool:
        """A message says that it is `event_ms`; False when that is too far ahead to be believed."""
        if self._is_plausible(event_ms, at_us) or self._agree(event_ms, self._leap_candle_ms):
            self._move(event_ms, at_us)
            return True
        self._leap_event_ms = event_ms
        return False

    def candle(self, open_time_ms: int, at_us: int) -> bool:
        """REST shows a candle that has begun: a lower bound. False: not to be believed."""
        if (
            self.heard_ms is None
            or self._is_plausible(open_time_ms, at_us)
            or self._agree(self._leap_event_ms, open_time_ms)
            or self._agree(self._leap_candle_ms, open_time_ms)
        ):
            now_ms = self.now_ms(at_us)
            if now_ms is None or open_time_ms > now_ms:
                self._move(open_time_ms, at_us)
            return True
        self._leap_candle_ms = open_time_ms
        return False

    def _is_plausible(self, time_ms: int, at_us: int) -> bool:
        now_ms = self.now_ms(at_us)
        return now_ms is not None and time_ms <= now_ms + self.slack_ms

    def _agree(self, one_ms: int | None, other_ms: int | None) -> bool:
        if one_ms is None or other_ms is None:
            return False
        return abs(one_ms - other_ms) <= self.slack_ms

    def _move(self, time_ms: int, at_us: int) -> None:
        now_ms = self.now_ms(at_us)
        if now_ms is None or time_ms > now_ms or self._stood(time_ms, now_ms, at_us):
            self.heard_ms, self._at_us = time_ms, at_us
        self._leap_event_ms = self._leap_candle_ms = None

    def _stood(self, time_ms: int, now_ms: int, at_us: int) -> bool:
        """Messages have been far behind for some seconds on end: the market had stood still (a
        paused replay). A burst of late messages after a stalled link is not that.
        """
        if time_ms > now_ms - _BEHIND_MS:
            self._behind_since_us, self._behind = None, 0
            return False
        if self._behind_since_us is None:
            self._behind_since_us = at_us
        self._behind += 1
        if at_us - self._behind_since_us < _BEHIND_US or self._behind < _BEHIND:
            return False
        self._behind_since_us = None
        return True
