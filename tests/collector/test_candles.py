"""The raster's rules: whatever the exchange sends, the stream is whole, in order and true."""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.candles import (
    GAP_AFTER_MS,
    HOPELESS,
    Ask,
    Candles,
    Purpose,
    problem_of,
    same_row,
)
from collector.clock import MarketClock
from shared.binance import KlineUpdate
from shared.events import Kline, Level

M = 60_000
START = 28_000_000 * M


def candle(index: int, close: float | None = None, **changes: object) -> Kline:
    """A candle of which every number tells the index."""
    close = 100 + index % 7 if close is None else close
    made = Kline(
        symbol="BTCUSDT",
        interval="1m",
        open_time_ms=START + index * M,
        close_time_ms=START + index * M + M - 1,
        open=close - 0.25,
        high=close + 1,
        low=close - 1,
        close=close,
        volume=float(index),
        quote_volume=2.0 * index,
        trades=float(index),
        taker_base=0.5 * index,
        taker_quote=float(index),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def message(kline: Kline, *, closed: bool = True, event_ms: int | None = None) -> KlineUpdate:
    event_ms = kline.open_time_ms + M + 20 if event_ms is None else event_ms
    return KlineUpdate(stream="btcusdt@kline_1m", event_ms=event_ms, closed=closed, kline=kline)


class Desk:
    """A core at work, with a clock that the test moves and a stream that it writes to."""

    def __init__(self, *, history: int = 5, on_stream: int | None = None) -> None:
        self.core = Candles(
            symbol="BTCUSDT", interval="1m", history_rows=history, max_price_jump=0.5
        )
        self.stream: list[Kline] = []
        self.now_ms = START
        self.asked: list[Ask] = []
        if on_stream is not None:
            self.stream = [candle(i) for i in range(on_stream + 1)]
        last = self.stream[-1].open_time_ms if self.stream else None
        self.core.rebase(last, self.stream)

    def send(self, kline: Kline, *, closed: bool = True, at_ms: int | None = None) -> None:
        self.now_ms = max(self.now_ms, kline.open_time_ms + M + 20 if at_ms is None else at_ms)
        self.core.update(message(kline, closed=closed), 1, self.now_ms)
        self.write()

    def begin(self, index: int, after_ms: int = 2_000) -> None:
        """The first update of a candle."""
        self.send(candle(index), closed=False, at_ms=START + index * M + after_ms)

    def ask(self, at_s: float | None = None) -> Ask | None:
        ask = self.core.wants(self.now_ms, self.now_ms / 1000 if at_s is None else at_s)
        if ask is not None:
            self.asked.append(ask)
        return ask

    def answer(self, ask: Ask, rows: list[Kline]) -> None:
        self.core.reply(
            ask,
            rows,
            asked_ms=self.now_ms,
            heard_ms=self.now_ms,
            received_us=2,
            at_s=self.now_ms / 1000,
        )
        self.write()

    def repair(self, *rows: Kline) -> Ask:
        ask = self.ask()
        assert ask is not None
        assert ask.purpose is Purpose.REPAIR
        assert ask.start_ms is not None
        self.answer(ask, [row for row in rows if row.open_time_ms >= (ask.start_ms or 0)])
        return ask

    def write(self) -> None:
        rows = self.core.ready()
        self.stream.extend(row.kline for row in rows)
        self.core.written(rows)

    @property
    def codes(self) -> list[str]:
        return [remark.code for remark in self.core.remarks]

    def indices(self) -> list[int]:
        return [(kline.open_time_ms - START) // M for kline in self.stream]


def test_a_closed_candle_that_follows_is_written_at_once() -> None:
    desk = Desk(on_stream=3)
    desk.send(candle(4))
    assert desk.indices() == [0, 1, 2, 3, 4]


def test_an_open_candle_is_never_written() -> None:
    desk = Desk(on_stream=3)
    desk.begin(4)
    desk.send(candle(4, 105.0), closed=False, at_ms=START + 4 * M + 50_000)
    assert desk.indices() == [0, 1, 2, 3]


def test_new_candles_wait_in_memory_until_the_hole_before_them_is_filled() -> None:
    desk = Desk(on_stream=3)
    desk.send(candle(6))
    desk.send(candle(7))
    assert desk.indices()[-1] == 3
    ask = desk.repair(*(candle(i) for i in range(4, 9)))
    assert ask.start_ms == START + 4 * M
    assert desk.indices() == list(range(8))


def test_the_open_candle_at_the_end_of_a_rest_reply_is_left_out() -> None:
    desk = Desk(on_stream=3)
    desk.begin(6)
    desk.repair(candle(4), candle(5), candle(6, 105.5))
    assert desk.indices() == [0, 1, 2, 3, 4, 5]


def test_an_empty_stream_is_backfilled_by_history_rows() -> None:
    desk = Desk(history=5)
    desk.now_ms = START + 20 * M + 5_000
    ask = desk.core.wants(None, 0.0)
    assert ask == Ask(purpose=Purpose.NEWEST, start_ms=None, limit=2)
    desk.answer(ask, [candle(19), candle(20)])
    desk.repair(*(candle(i) for i in range(15, 21)))
    assert desk.indices() == [15, 16, 17, 18, 19]


def test_what_the_exchange_did_not_have_yet_before_the_first_candle_is_no_gap() -> None:
    desk = Desk(history=50)
    desk.now_ms = START + 20 * M + 15_000
    ask = desk.core.wants(None, 0.0)
    assert ask is not None
    desk.answer(ask, [candle(20)])
    desk.repair(*(candle(i) for i in range(12, 21)))
    assert desk.indices() == list(range(12, 20))
    assert desk.codes == []


def test_a_repeated_candle_changes_nothing() -> None:
    desk = Desk(on_stream=3)
    for _ in range(3):
        desk.send(candle(4))
    desk.send(candle(2), at_ms=desk.now_ms)
    assert desk.indices() == [0, 1, 2, 3, 4]
    assert desk.core.counts["repeated"] == 3
    assert desk.codes == []


def test_candles_out_of_order_are_written_in_order() -> None:
    desk = Desk(on_stream=3)
    for index in (6, 5, 4, 7):
        desk.send(candle(index))
    assert desk.indices() == list(range(8))


def test_two_closed_versions_of_a_held_candle_are_settled_by_rest() -> None:
    desk = Desk(on_stream=3)
    desk.send(candle(5))
    desk.send(candle(5, 107.0))
    desk.send(candle(4))
    assert desk.indices()[-1] == 4
    desk.begin(6, 15_000)
    desk.repair(candle(5, 107.0), candle(6))
    assert desk.stream[-1].close == 107.0


# -- gaps -----------------------------------------------------------------------------------------


def test_a_gap_marker_needs_a_later_candle_ten_seconds_after_the_close() -> None:
    desk = Desk(on_stream=3)
    desk.begin(5, 3_000)  # candle 4 never came
    desk.repair(candle(5))
    assert desk.indices()[-1] == 3
    assert desk.core.wants(START + 5 * M + GAP_AFTER_MS - 1, desk.now_ms / 1000) is None
    desk.now_ms = START + 5 * M + GAP_AFTER_MS
    desk.repair(candle(5))
    assert desk.indices() == [0, 1, 2, 3, 4]
    assert desk.stream[-1].gap
    assert all(math.isnan(value) for value in desk.stream[-1].row())
    assert desk.codes == ["gap"]


def test_without_a_later_candle_there_is_no_gap_marker() -> None:
    desk = Desk(on_stream=3)
    desk.now_ms = START + 30 * M
    desk.core.newest_ms = START + 3 * M
    for _ in range(3):
        desk.now_ms += 3 * M
        desk.repair()
    assert desk.indices()[-1] == 3
    assert desk.codes == []


def test_an_outage_of_hours_is_one_question_and_one_remark() -> None:
    desk = Desk(on_stream=3)
    desk.begin(604, 15_000)
    desk.repair(candle(603), candle(604))
    assert desk.indices() == list(range(604))
    assert [k.gap for k in desk.stream[4:603]] == [True] * 599
    assert not desk.stream[603].gap
    assert desk.codes == ["gap"]
    assert len(desk.asked) == 1


def test_each_run_of_missing_minutes_is_told_apart() -> None:
    desk = Desk(on_stream=3)
    desk.begin(11, 15_000)
    desk.repair(candle(5), candle(8), candle(9), candle(11))
    assert desk.indices() == list(range(11))
    told = [(r.code, (r.open_time_ms - START) // M, r.text[0]) for r in desk.core.remarks]
    assert told == [("gap", 4, "1"), ("gap", 6, "2"), ("gap", 10, "1")]


def test_a_long_absence_is_fetched_page_by_page() -> None:
    desk = Desk(on_stream=3)
    desk.begin(2_500, 15_000)
    while desk.stream[-1].open_time_ms < START + 2_499 * M:
        ask = desk.ask()
        assert ask is not None
        assert ask.start_ms is not None
        first = (ask.start_ms - START) // M
        desk.answer(ask, [candle(i) for i in range(first, min(first + ask.limit, 2_501))])
    assert desk.indices() == list(range(2_500))
    assert len(desk.asked) == 3


def test_a_fruitless_question_is_repeated_ever_more_rarely() -> None:
    desk = Desk(on_stream=3)
    desk.begin(5, 2_000)
    at_s, times = 0.0, []
    while at_s < 300:
        ask = desk.core.wants(desk.now_ms, at_s)
        if ask is not None:
            times.append(at_s)
            desk.core.no_reply(ask, at_s)
        at_s += 0.25
    assert len(times) < 15
    assert times[-1] - times[-2] >= 30


# -- refusals -------------------------------------------------------------------------------------

BAD = {
    "high below low": {"high": 90.0, "low": 110.0},
    "close above high": {"high": 100.0, "low": 90.0, "open": 95.0, "close": 105.0},
    "NaN": {"close": math.nan},
    "infinite": {"high": math.inf},
    "zero": {"low": 0.0},
    "negative": {"open": -1.0, "low": -2.0},
    "negative volume": {"volume": -1.0},
    "no volume": {"volume": math.nan},
    "other symbol": {"symbol": "ETHUSDT"},
    "other interval": {"interval": "5m"},
    "off the raster": {"open_time_ms": START + 4 * M + 14_789},
    "price jump": {"open": 400.0, "high": 401.0, "low": 399.0, "close": 400.0},
}


@pytest.mark.parametrize("changes", BAD.values(), ids=BAD.keys())
def test_a_candle_that_cannot_be_is_refused_and_comes_from_rest(
    changes: dict[str, object],
) -> None:
    desk = Desk(on_stream=3)
    desk.send(candle(4, **changes))
    assert desk.indices() == [0, 1, 2, 3]
    assert desk.codes == ["refused"]
    assert desk.core.remarks[0].level is Level.ALERT
    assert desk.core.counts["refused"] == 1
    desk.begin(5)
    desk.repair(candle(4), candle(5))
    assert desk.indices() == [0, 1, 2, 3, 4]
    assert same_row(desk.stream[-1], candle(4))


def test_missing_taker_columns_are_no_fault() -> None:
    nan = math.nan
    kline = candle(4, quote_volume=nan, trades=nan, taker_base=nan, taker_quote=nan)
    assert problem_of(kline, M) == ""


def test_a_real_crash_that_rest_confirms_is_written() -> None:
    desk = Desk(on_stream=3)
    crash = candle(4, 40.0)
    desk.send(crash)
    assert desk.indices()[-1] == 3
    desk.begin(5)
    desk.repair(crash, candle(5))
    assert desk.indices()[-1] == 4
    assert desk.codes == ["refused", "jump"]


def test_a_crash_in_the_history_passes_when_rest_shows_it_twice() -> None:
    desk = Desk(on_stream=3)
    desk.begin(7)
    rows = [candle(4), candle(5, 40.0), candle(6, 41.0), candle(7, 41.0)]
    desk.repair(*rows)
    assert desk.indices()[-1] == 4
    desk.now_ms += 1_000
    desk.repair(*rows)
    assert desk.indices()[-1] == 6


def test_a_row_that_rest_always_shows_broken_becomes_a_gap() -> None:
    desk = Desk(on_stream=3)
    desk.begin(7, 15_000)
    rows = [candle(4), candle(5, high=1.0), candle(6), candle(7)]
    replies = 0
    while desk.indices()[-1] < 6:
        desk.now_ms += 61_000
        desk.repair(*rows)
        replies += 1
    assert replies == HOPELESS
    assert [k.gap for k in desk.stream[4:7]] == [False, True, False]


def test_a_candle_of_the_future_is_refused() -> None:
    desk = Desk(on_stream=3)
    desk.now_ms = START + 5 * M
    desk.core.update(message(candle(500)), 1, desk.now_ms)
    desk.core.update(message(candle(5)), 1, desk.now_ms)  # closed before its end
    desk.write()
    assert desk.indices()[-1] == 3
    assert desk.codes == ["future", "future"]


# -- revisions ------------------------------------------------------------------------------------


def test_a_revision_leaves_the_stream_and_is_told_once() -> None:
    desk = Desk(on_stream=3)
    desk.send(candle(4))
    revised = candle(4, 104.5)
    for index in (5, 6):
        desk.begin(index, 20_000)
        ask = desk.ask()
        assert ask is not None
        assert ask.purpose is Purpose.VERIFY
        desk.answer(
            ask, [*(candle(i) for i in range(4)), revised, candle(5), candle(6)][: index + 1]
        )
        desk.send(candle(index))
    assert desk.indices() == list(range(7))
    assert same_row(desk.stream[4], candle(4))
    assert desk.codes == ["revision"]
    assert desk.core.remarks[0].kline == revised


def test_rows_that_rest_confirms_are_not_asked_about_again() -> None:
    desk = Desk(on_stream=3)
    desk.send(candle(4))
    desk.begin(5, 20_000)
    ask = desk.ask()
    assert ask is not None
    assert ask.purpose is Purpose.VERIFY
    desk.answer(ask, [candle(i) for i in range(6)])
    assert desk.ask(1e9) is None
    assert desk.codes == []


def test_a_late_other_version_makes_rest_decide() -> None:
    desk = Desk(on_stream=3)
    desk.send(candle(4))
    desk.begin(5, 20_000)
    ask = desk.ask()
    assert ask is not None
    desk.answer(ask, [candle(i) for i in range(6)])
    desk.send(candle(4, 104.5), at_ms=desk.now_ms + 1)
    ask = desk.ask()
    assert ask is not None
    assert ask.purpose is Purpose.VERIFY
    desk.answer(ask, [*(candle(i) for i in range(4)), candle(4, 104.5), candle(5)])
    assert desk.codes == ["revision"]
    assert len(desk.stream) == 5


# -- the rule for all inputs ----------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(5, 25),
    loss=st.floats(0, 0.7),
    repeat=st.floats(0, 0.5),
    delay=st.floats(0, 0.8),
    rest_down=st.floats(0, 0.7),
    outage=st.floats(0, 0.3),
    crash=st.floats(0, 0.2),
)
def test_loss_order_and_repetition_of_frames_leave_no_trace(
    seed: int,
    count: int,
    loss: float,
    repeat: float,
    delay: float,
    rest_down: float,
    outage: float,
    crash: float,
) -> None:
    """A truthful REST: the stream is the truth, each minute once, whatever the frames do.

    Sessions end at random, too, and the server may have lost the newest entries with them.
    """
    rng = random.Random(seed)
    history = 4
    first = -history
    # Minutes that the exchange never produced; the first and the last do exist.
    exists = {i for i in range(first, count) if i in (first, count - 1) or rng.random() >= outage}
    truth = {START + i * M: candle(i + 50, open_time_ms=START + i * M) for i in exists}
    core = Candles(symbol="BTCUSDT", interval="1m", history_rows=history, max_price_jump=0.5)
    clock = MarketClock(slack_ms=2 * M + 60_000)
    stream: list[Kline] = []
    core.rebase(None, [])

    frames: list[tuple[int, KlineUpdate]] = []
    for index in range(count):
        kline = truth.get(START + index * M)
        if kline is None:
            continue
        close_ms = kline.open_time_ms + M
        for part in (2_000, 31_000, 58_000):
            at_ms = kline.open_time_ms + part
            half = replace(kline, close=kline.open, volume=kline.volume / 2)
            frames.append((at_ms, message(half, closed=False, event_ms=at_ms)))
        for _ in range(1 + (rng.random() < repeat)):
            late_ms = rng.randrange(5 * M) if rng.random() < delay else 20
            frames.append((close_ms + late_ms, message(kline, event_ms=close_ms + 20)))
    frames = [f for f in frames if rng.random() >= loss]
    end_ms = START + count * M
    ticks = range(START + 500, end_ms + 20 * M, 1_000)
    frames.sort(key=lambda frame: frame[0])

    for now_ms in ticks:
        at_us, at_s = now_ms * 1000, now_ms / 1000
        while frames and frames[0][0] <= now_ms:
            update = frames.pop(0)[1]
            if clock.event(update.event_ms, at_us):
                core.update(update, at_us, clock.now_ms(at_us))
        ask = core.wants(clock.now_ms(at_us), at_s)
        if (
            ask is not None
            and ask.purpose is not Purpose.NEWEST
            and rng.random() < rest_down
            and now_ms < end_ms
        ):
            core.no_reply(ask, at_s)
        elif ask is not None:
            shown = [truth[t] for t in sorted(truth) if t <= now_ms]
            if now_ms >= end_ms:  # the market goes on
                shown.append(candle(0, open_time_ms=now_ms - now_ms % M))
            else:
                shown[-1:] = [
                    replace(row, close=row.open) if row.open_time_ms + M > now_ms else row
                    for row in shown[-1:]
                ]
            if ask.start_ms is None:
                rows = shown[-ask.limit :]
            else:
                rows = [row for row in shown if row.open_time_ms >= ask.start_ms][: ask.limit]
            asked_ms = clock.now_ms(at_us)
            while rows and not clock.candle(rows[-1].open_time_ms, at_us):
                rows.pop()
            core.reply(
                ask,
                rows,
                asked_ms=asked_ms,
                heard_ms=clock.heard_ms,
                received_us=at_us,
                at_s=at_s,
            )
        if rng.random() < 0.9:
            ready = core.ready()
            stream.extend(row.kline for row in ready)
            core.written(ready)
        if stream and rng.random() < crash / 20:
            del stream[max(1, len(stream) - rng.randrange(3)) :]
            core.rebase(stream[-1].open_time_ms, stream[-10:])
        if stream and stream[-1].open_time_ms >= end_ms - M:
            break

    wanted = range(stream[0].open_time_ms, end_ms, M)
    assert stream[0].open_time_ms <= START
    assert [k.open_time_ms for k in stream if k.open_time_ms < end_ms] == list(wanted)
    for kline in stream:
        true = truth.get(kline.open_time_ms)
        if kline.open_time_ms < end_ms:
            assert kline.gap == (true is None)
            assert true is None or same_row(kline, true)
