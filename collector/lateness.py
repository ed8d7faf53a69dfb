"""When people are told that candles stay away, and that they are back. Pure."""

from dataclasses import dataclass

from shared.events import Level

LATE_S = 60.0
START_S = 900.0  # at a start: the history is fetched first

Told = tuple[Level, str, str]


@dataclass(slots=True)
class Lateness:
    """Looked at several times a second; at_s: our monotonic clock."""

    _was_ready: bool = False
    _is_told: bool = False
    _since_s: float | None = None

    def look(self, late: str, behind: int, at_s: float) -> list[Told]:
        """What to tell. late: a stream that is two candles or more behind the market, or of which
        nothing is known yet; "" = none is."""
        since_s = self._since_s
        if not late:
            was_told, self._is_told = self._is_told, False
            self._was_ready, self._since_s = True, None
            if not was_told or since_s is None:
                return []
            return [(Level.WARNING, "late", f"candles come again, after {at_s - since_s:.0f} s")]
        if since_s is None:
            self._since_s = since_s = at_s
        late_s = at_s - since_s
        if self._is_told or late_s < (LATE_S if self._was_ready else START_S):
            return []
        self._is_told = True
        text = (
            f"{late} has been behind the market for {late_s:.0f} s, by {behind} candles: there are "
            "no scores meanwhile; does the exchange answer (`itb doctor`)?"
        )
        return [(Level.ALERT, "late", text)]
