"""Market time: how far the data has been played, and when the next instant is due.

Two clocks run in the simulator. The account clock is wall time. The market clock is the data's: it
stands on an instant of the data and moves to the next one. Paced, instants are due at
`anchor + (market time passed) / speed`, computed from one anchor, so that lateness never adds up.
"""

import time
from dataclasses import dataclass

from simulator.market import Market

MAX, MANUAL = "max", "manual"
Speed = float | str  # seconds of market per wall second, "max" or "manual"

_UPDATE_MARKET_MS = 2_000  # Binance's cadence of open-candle updates
_UPDATE_WALL_MS = 250
_FEWEST_UPDATES = 3


def count_updates(step_ms: int, speed: Speed) -> int:
    """How many open-candle updates a candle gets: every 2 s of market, at most 4 a wall second."""
    if isinstance(speed, str):
        return _FEWEST_UPDATES
    spacing = max(_UPDATE_MARKET_MS, _UPDATE_WALL_MS * speed)
    return max(_FEWEST_UPDATES, int(step_ms / spacing) - 1)


@dataclass(slots=True)
class AccountClock:
    """The clock of `/time`, timestamps, orders and trades: wall time, moved by `skew_ms`."""

    skew_ms: int = 0

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000 + self.skew_ms


@dataclass(slots=True)
class Clock:
    """Where the market stands.

    position_ms: the last instant played. anchor: the pair (wall, market) that pacing counts from.
    """

    speed: Speed
    position_ms: int
    updates: int
    anchor_wall_ms: float = 0.0
    anchor_market_ms: int = 0
    paused_wall_ms: float | None = None

    @property
    def is_paced(self) -> bool:
        return not isinstance(self.speed, str)

    @property
    def is_paused(self) -> bool:
        return self.paused_wall_ms is not None

    def start(self, wall_ms: float) -> None:
        """Count from here."""
        self.anchor_wall_ms, self.anchor_market_ms = wall_ms, self.position_ms

    def pause(self, wall_ms: float) -> None:
        if self.paused_wall_ms is None:
            self.paused_wall_ms = wall_ms

    def resume(self, wall_ms: float) -> None:
        """Go on where the market stands: the pause does not count."""
        if self.paused_wall_ms is None:
            return
        self.anchor_wall_ms += wall_ms - self.paused_wall_ms
        self.paused_wall_ms = None
        if self.is_paced and self.due_ms(self.position_ms) > wall_ms:  # stepped while paused
            self.start(wall_ms)

    def due_ms(self, instant_ms: int) -> float:
        """Wall time at which a paced market reaches the instant."""
        return self.anchor_wall_ms + (instant_ms - self.anchor_market_ms) / float(self.speed)

    def now_ms(self, wall_ms: float, next_ms: int | None) -> int:
        """Market time: paced it flows between instants, otherwise it stands on the last one."""
        if isinstance(self.speed, str) or next_ms is None:
            return self.position_ms
        if self.paused_wall_ms is not None:
            wall_ms = self.paused_wall_ms
        flowing = self.anchor_market_ms + (wall_ms - self.anchor_wall_ms) * self.speed
        return max(self.position_ms, min(int(flowing), next_ms - 1))

    def instants(self, market: Market, close_ms: int) -> list[int]:
        """The instants still to play up to the close `close_ms`, which is the last of them."""
        start, parts = close_ms - market.step_ms, self.updates + 1
        between = (start + market.step_ms * j // parts for j in range(1, parts))
        return [*(t for t in between if t > self.position_ms), close_ms]
