"""Bands of the score against the predecessor's sample, with its two faults mended."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notifier.bands import arrow, is_told, last_band, place_of
from notifier.chats import recipients
from shared.config import Band, Bands
from shared.events import Signal
from tests.notifier.desk import MINUTE, START, settings
from tests.notifier.desk import signal as signal_write

SAMPLE = Bands(
    positive=(
        Band(edge=0.05, frequency=10, sign="〉", text="weak"),
        Band(edge=0.15, frequency=2, sign="〉〉〉📈", bold=True, text="BUY ZONE"),
        Band(edge=0.10, frequency=5, sign="〉〉", text="strong"),
    ),
    negative=(
        Band(edge=-0.05, frequency=10, sign="〈", text="weak"),
        Band(edge=-0.15, frequency=2, sign="〈〈〈📉", bold=True, text="SELL ZONE"),
    ),
)


@pytest.mark.parametrize(
    ("score", "number", "text"),
    [
        (0.2, 3, "BUY ZONE"),
        (0.15, 3, "BUY ZONE"),
        (0.149, 2, "strong"),
        (0.05, 1, "weak"),
        (0.0499, 0, None),
        (0.0, 0, None),
        (-0.05, 0, None),
        (-0.0501, -1, "weak"),
        (-0.9, -2, "SELL ZONE"),
        (None, 0, None),
        (float("nan"), 0, None),
    ],
)
def test_a_score_lies_in_the_strongest_band_that_it_reaches(
    score: float | None, number: int, text: str | None
) -> None:
    place = place_of(score, SAMPLE)
    assert place.number == number
    assert (place.band.text if place.band else None) == text


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=30))
def test_every_turn_and_every_strengthening_is_told(scores: list[float]) -> None:
    places = [place_of(score, SAMPLE) for score in scores]
    for before, now in itertools.pairwise(places):
        stronger = abs(now.number) > abs(before.number)
        turned = (before.number > 0 > now.number) or (before.number < 0 < now.number)
        # 7 minutes after a full hour: a multiple of no frequency.
        told = is_told(before.number, now, SAMPLE, close_time_ms=7 * MINUTE)
        assert told == (stronger or turned)


def test_a_band_is_told_again_at_its_frequency() -> None:
    zone = place_of(0.2, SAMPLE)
    minutes = range(60)
    told = [m for m in minutes if is_told(3, zone, SAMPLE, close_time_ms=m * MINUTE)]
    assert told == [m for m in minutes if m % 2 == 0]


def test_weakening_is_told_where_it_is_wanted() -> None:
    nowhere = place_of(0.0, SAMPLE)
    assert not is_told(2, nowhere, SAMPLE, close_time_ms=7 * MINUTE)
    both = SAMPLE.model_copy(update={"band_down": True})
    assert is_told(2, nowhere, both, close_time_ms=7 * MINUTE)
    assert (arrow(2, 0), arrow(0, -1), arrow(1, 1), arrow(2, -1)) == ("↓", "↑", "", "↑")


def test_the_band_before_is_that_of_the_newest_valid_signal() -> None:
    events: list[Signal | None] = [
        signal_write(0, 0.2).event,
        None,
        signal_write(1, None, invalid="gap").event,
    ]
    assert last_band(events, SAMPLE) == 3
    assert last_band([], SAMPLE) == 0


def test_the_message_of_a_zone_has_its_sign_its_arrow_and_its_words() -> None:
    config = settings(telegram_chat_id="4242", notifier={"bands": SAMPLE.model_dump()})
    (recipient,) = recipients(config)
    message = recipient.score_message(signal_write(0, -0.26).event, 3, now_ms=START)
    assert message is not None
    assert message.text == "〈〈〈📉 ₿ 60,518 Score: -0.26 ↑ SELL ZONE"
    assert message.bold
