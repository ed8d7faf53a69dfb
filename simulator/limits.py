"""Request-weight accounting as Binance does it: fixed windows, 429, then a ban (418)."""

from dataclasses import dataclass, field
from typing import Protocol

_TEN_MS = 10_000
_MINUTE_MS = 60_000
_DAY_MS = 86_400_000


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

    def ban(self, until_ms: int) -> None:
        """Refuse everything until then."""
        self._banned_until_ms = until_ms

    def _banned(self, wall_ms: int) -> Refusal:
        return Refusal(
            418,
            max(1, -(-(self._banned_until_ms - wall_ms) // 1000)),
            f"Way too much request weight used; IP banned until {self._banned_until_ms}. Please "
            "use WebSocket Streams for live updates to avoid bans.",
        )


class OrderLimits(Protocol):
    """How many unfilled orders an account may place."""

    orders_10s: int
    orders_day: int


@dataclass(slots=True)
class OrderCounts:
    """One account's unfilled orders in the current windows of ten seconds and of a day (UTC)."""

    limits: OrderLimits
    in_10s: int = 0
    in_day: int = 0
    _ten: int = -1
    _day: int = -1

    def _turn(self, wall_ms: int) -> None:
        ten, day = wall_ms // _TEN_MS, wall_ms // _DAY_MS
        if ten != self._ten:
            self._ten, self.in_10s = ten, 0
        if day != self._day:
            self._day, self.in_day = day, 0

    def spend(self, orders: int, wall_ms: int) -> Refusal | None:
        """Count orders; a Refusal, and nothing counted, when there would be too many."""
        self._turn(wall_ms)
        for count, most, span, name in (
            (self.in_10s, self.limits.orders_10s, _TEN_MS, "10 SECOND"),
            (self.in_day, self.limits.orders_day, _DAY_MS, "1 DAY"),
        ):
            if count + orders > most:
                return Refusal(
                    429,
                    max(1, -(-(span - wall_ms % span) // 1000)),
                    f"Too many new orders; current limit is {most} orders per {name}.",
                )
        self.in_10s += orders
        self.in_day += orders
        return None

    def give_back(self, orders: int, wall_ms: int) -> None:
        self._turn(wall_ms)
        self.in_10s = max(0, self.in_10s - orders)
        self.in_day = max(0, self.in_day - orders)

    def now(self, wall_ms: int) -> tuple[int, int]:
        """(orders of these ten seconds, of this day)."""
        self._turn(wall_ms)
        return self.in_10s, self.in_day
