"""Request-weight accounting as Binance does it: fixed windows, 429, then a ban (418)."""

from dataclasses import dataclass, field

_MINUTE_MS = 60_000


@dataclass(frozen=True, slots=True)
class Refusal:
    """The budget is spent: the status, when to come back, and the text."""

    status: int
    retry_after_s: int
    message: str


@dataclass(slots=True)
class Budget:
    """One address's budget. Times are wall milliseconds and arrive as arguments.

    per_minute: weight allowed in a minute. patience: how many calls beyond the budget are answered
    429 before the address is banned. ban_ms: length of the first ban; it doubles each time.
    """

    per_minute: int = 6000
    patience: int = 10
    ban_ms: int = 120_000
    used: int = 0
    _minute: int = field(default=0, repr=False)
    _over: int = field(default=0, repr=False)
    _bans: int = field(default=0, repr=False)
    _banned_until_ms: int = field(default=0, repr=False)

    def spend(self, weight: int, wall_ms: int) -> Refusal | None:
        """Count a request; a Refusal when it must not be served."""
        if wall_ms < self._banned_until_ms:
            return self._banned(wall_ms)
        minute = wall_ms // _MINUTE_MS
        if minute != self._minute:
            self._minute, self.used, self._over = minute, 0, 0
        self.used += weight
        if self.used <= self.per_minute:
            return None
        self._over += 1
        if self._over > self.patience:
            self._banned_until_ms = wall_ms + self.ban_ms * 2**self._bans
            self._bans += 1
            return self._banned(wall_ms)
        return Refusal(
            429,
            max(1, -(-((minute + 1) * _MINUTE_MS - wall_ms) // 1000)),
            f"Too much request weight used; current limit is {self.per_minute} request weight per "
            "1 MINUTE. Please use WebSocket Streams for live updates to avoid polling the API.",
        )

    def _banned(self, wall_ms: int) -> Refusal:
        return Refusal(
            418,
            max(1, -(-(self._banned_until_ms - wall_ms) // 1000)),
            f"Way too much request weight used; IP banned until {self._banned_until_ms}. Please "
            "use WebSocket Streams for live updates to avoid bans.",
        )
