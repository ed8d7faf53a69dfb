"""The exchange's account clock: as it told it last, carried on by a clock that nobody sets."""

import time


class AccountClock:
    """Wall clocks jump; this one does not (FAULTS T19). Times are ms since the epoch."""

    def __init__(self) -> None:
        self._told: tuple[float, float] | None = None  # (when, monotonic s; what it was then)

    def measured(self, at_s: float, there_ms: float) -> None:
        """at_s: on the monotonic clock, when it was `there_ms`."""
        self._told = at_s, there_ms

    @property
    def now_ms(self) -> int:
        """Before the first measurement our own wall clock."""
        if self._told is None:
            return time.time_ns() // 1_000_000
        at_s, there_ms = self._told
        return int(there_ms + (time.monotonic() - at_s) * 1000)

    @property
    def skew_ms(self) -> float | None:
        """The account's clock minus our wall clock now; None before it was measured."""
        return None if self._told is None else self.now_ms - time.time() * 1000
