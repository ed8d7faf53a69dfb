"""The account's clock: as the exchange told it last, carried on by a clock that nobody sets."""

import time


class AccountClock:
    """Wall clocks jump; this one does not (FAULTS T19). Times are ms since the epoch."""

    def __init__(self) -> None:
        self._base_ms: float | None = None
        self._at_s = 0.0

    def measured(self, skew_ms: float) -> None:
        """skew_ms: the account's clock minus our wall clock, just now."""
        self._base_ms = time.time() * 1000 + skew_ms
        self._at_s = time.monotonic()

    @property
    def now_ms(self) -> int:
        """Before the first measurement our own."""
        if self._base_ms is None:
            return time.time_ns() // 1_000_000
        return int(self._base_ms + (time.monotonic() - self._at_s) * 1000)

    @property
    def skew_ms(self) -> float | None:
        """The account's clock minus our wall clock now; None before it was measured."""
        return None if self._base_ms is None else self.now_ms - time.time() * 1000

    @property
    def age_s(self) -> float:
        """Seconds since it was measured."""
        return time.monotonic() - self._at_s
