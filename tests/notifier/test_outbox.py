"""What waits, what goes when there is no room, and when the next message may leave."""

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from notifier.channel import Message
from notifier.outbox import Outbox, Pace, Score
from shared.bus import Entry, Source
from shared.events import Meta, Notice
from shared.streams import NOTICE

NOTICE_EVENT = Notice(service="s", level="alert", code="c", text="t", time_ms=0)


def entry(number: int) -> Entry[Any]:
    meta = Meta(received_us=0, published_us=0)
    return Entry(source=Source(NOTICE), id=f"{number}-0", event=NOTICE_EVENT, meta=meta)


def test_the_oldest_scores_go_and_never_an_alert() -> None:
    box = Outbox(3)
    for number in range(3):
        assert box.add_score(Score(entry(number), Message(text="t"))) == []
    assert [gone.entry.id for gone in box.add_score(Score(entry(3), Message(text="t")))] == ["0-0"]
    assert [gone.entry.id for gone in box.add_alert(entry(4), NOTICE_EVENT)] == ["1-0"]
    assert [gone.entry.id for gone in box.add_alert(entry(5), NOTICE_EVENT)] == ["2-0"]
    assert [gone.entry.id for gone in box.add_alert(entry(6), NOTICE_EVENT)] == ["3-0"]
    assert box.room == 0
    assert [gone.entry.id for gone in box.add_score(Score(entry(7), Message(text="t")))] == ["7-0"]
    assert [e.id for e, _ in box.alerts] == ["4-0", "5-0", "6-0"]


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 10))
def test_nothing_leaves_the_box_unnoticed(alerts: list[bool], limit: int) -> None:
    box, gone = Outbox(limit), 0
    for number, is_alert in enumerate(alerts):
        if is_alert and box.room:
            gone += len(box.add_alert(entry(number), NOTICE_EVENT))
        elif is_alert:
            gone += 1  # the reader leaves it on the bus
        else:
            gone += len(box.add_score(Score(entry(number), Message(text="t"))))
        assert len(box) <= limit
    assert len(box) + gone == len(alerts)


@given(st.integers(1, 1800), st.lists(st.floats(0, 5), min_size=1, max_size=200))
def test_no_minute_has_more_messages_than_allowed(per_minute: int, idle_s: list[float]) -> None:
    pace, now, times = Pace(per_minute), 0.0, []
    for idle in idle_s:
        now += idle
        now += pace.wait_s(now)
        pace.sent(now)
        times.append(now)
    for first, last in zip(times, times[per_minute:], strict=False):
        assert last - first >= 60 - 1e-6
    for one, next_one in pairwise(times):
        assert next_one - one >= min(1.0, 60 / per_minute) - 1e-6


def test_a_block_holds_until_its_time() -> None:
    pace = Pace(20)
    pace.block(100.0)
    pace.block(50.0)
    assert pace.wait_s(30.0) == 70.0
    assert pace.wait_s(100.0) == 0.0
