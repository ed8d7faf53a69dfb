"""Time as integers: UTC epoch milliseconds and the raster that candles lie on."""

import time
from datetime import UTC, datetime

from shared.errors import Usage

_SECOND = 1_000
_MINUTE = 60 * _SECOND
_HOUR = 60 * _MINUTE
_DAY = 24 * _HOUR

INTERVALS_MS = {
    "1s": _SECOND,
    "1m": _MINUTE,
    "3m": 3 * _MINUTE,
    "5m": 5 * _MINUTE,
    "15m": 15 * _MINUTE,
    "30m": 30 * _MINUTE,
    "1h": _HOUR,
    "2h": 2 * _HOUR,
    "4h": 4 * _HOUR,
    "6h": 6 * _HOUR,
    "8h": 8 * _HOUR,
    "12h": 12 * _HOUR,
    "1d": _DAY,
}


def steady_us() -> int:
    """Microseconds by a clock that never steps, for durations; it begins anywhere."""
    return time.monotonic_ns() // 1_000


def interval_ms(interval: str) -> int:
    """Length of a candle in milliseconds.

    Raises:
        Usage: the interval is unknown, or has no regular raster from the epoch (3d, 1w, 1M).
    """
    try:
        return INTERVALS_MS[interval]
    except KeyError:
        known = " ".join(INTERVALS_MS)
        raise Usage(f"interval {interval!r} is not supported; use one of: {known}") from None


def floor_ms(time_ms: int, step_ms: int) -> int:
    """The raster time at or before `time_ms`."""
    return time_ms - time_ms % step_ms


def iso(time_ms: int) -> str:
    """`2026-11-22T12:00:00Z`, with milliseconds only where there are some."""
    text = datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds")
    return text.removesuffix("+00:00").removesuffix(".000") + "Z"
