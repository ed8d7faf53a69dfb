"""Bands of the score: a message when it enters one, in place of steps of 0.05. Pure.

The predecessor's later version, without two of its faults: a score that turns from one side to the
other is told although its band is as strong, and the band before is that of the signal before on
the bus, so a restart tells nothing anew.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from shared.config import Band, Bands
from shared.events import Signal
from shared.times import INTERVALS_MS


@dataclass(frozen=True, slots=True)
class Place:
    """Where a score lies. number: 0 = in no band; 1 .. n upwards, -1 .. -n downwards, by strength.
    band: None where number is 0."""

    number: int
    band: Band | None


NOWHERE = Place(0, None)


def place_of(score: float | None, bands: Bands) -> Place:
    """The strongest band that a score reaches: score >= edge above 0, score < edge below.

    None or NaN lies in none.
    """
    if score is None or math.isnan(score):
        return NOWHERE
    upwards = sorted(bands.positive, key=lambda band: band.edge)
    for number in range(len(upwards), 0, -1):
        if score >= upwards[number - 1].edge:
            return Place(number, upwards[number - 1])
    downwards = sorted(bands.negative, key=lambda band: -band.edge)
    for number in range(len(downwards), 0, -1):
        if score < downwards[number - 1].edge:
            return Place(-number, downwards[number - 1])
    return NOWHERE


def is_told(before: int, now: Place, bands: Bands, *, close_time_ms: int) -> bool:
    """Whether a score in `now` makes a message, after one in band `before`.

    Stronger, or turned to the other side: `band_up`. Weaker, into no band included: `band_down`.
    Else at every `frequency`-th minute of the candle's close (time since the epoch).
    """
    turned = now.number * before < 0
    if bands.band_up and (abs(now.number) > abs(before) or turned):
        return True
    if bands.band_down and abs(now.number) < abs(before):
        return True
    frequency = None if now.band is None else now.band.frequency
    return frequency is not None and close_time_ms // INTERVALS_MS["1m"] % frequency == 0


def last_band(signals: Sequence[Signal | None], bands: Bands) -> int:
    """The band of the newest valid signal, oldest first; 0 where there is none."""
    for signal in reversed(signals):
        if signal is not None and signal.score is not None and not signal.invalid:
            return place_of(signal.score, bands).number
    return 0


def arrow(before: int, now: int) -> str:
    """`↑` where the score has got stronger in either direction, `↓` where weaker, else ``."""
    if before * now < 0 or abs(now) > abs(before):
        return "↑"
    return "↓" if abs(now) < abs(before) else ""
