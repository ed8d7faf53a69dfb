"""The market's clock: follows the exchange, cannot be poisoned, survives a paused replay."""

from collector.clock import MarketClock

M = 60_000
S = 1_000_000  # one second of ours, microseconds
T0 = 1_700_000_000_000


def clock(speed: float = 1.0) -> MarketClock:
    made = MarketClock(slack_ms=3 * M, speed=speed)
    assert made.candle(T0, 0)
    return made


def test_nothing_is_known_before_rest_has_shown_a_candle() -> None:
    made = MarketClock(slack_ms=3 * M)
    assert made.now_ms(0) is None
    assert not made.event(T0, 0)
    assert made.now_ms(5 * S) is None


def test_it_runs_on_between_messages_at_the_markets_speed() -> None:
    assert clock().now_ms(10 * S) == T0 + 10_000
    assert clock(60).now_ms(10 * S) == T0 + 600_000
    assert clock(0).now_ms(10 * S) == T0


def test_a_later_message_moves_it_and_an_earlier_one_does_not() -> None:
    made = clock()
    assert made.event(T0 + 30_000, S)
    assert made.now_ms(S) == T0 + 30_000
    assert made.event(T0 + 29_000, 2 * S)
    assert made.now_ms(2 * S) == T0 + 31_000


def test_one_message_of_the_far_future_is_not_believed() -> None:
    made = clock()
    assert not made.event(T0 + 1_000 * M, S)
    assert made.now_ms(S) == T0 + 1_000
    assert made.candle(T0, 2 * S)  # REST knows nothing of it
    assert not made.event(T0 + 1_000 * M, 3 * S)
    assert made.now_ms(3 * S) == T0 + 3_000


def test_a_leap_counts_when_stream_and_rest_agree_in_either_order() -> None:
    made = clock()
    assert not made.event(T0 + 1_000 * M, S)
    assert made.candle(T0 + 999 * M, 2 * S)
    assert made.event(T0 + 1_000 * M, 3 * S)
    other = clock()
    assert not other.candle(T0 + 999 * M, S)
    assert other.event(T0 + 1_000 * M, 2 * S)


def test_a_leap_counts_when_rest_repeats_it() -> None:
    made = clock()
    assert not made.candle(T0 + 500 * M, S)
    assert made.candle(T0 + 500 * M, 2 * S)


def test_after_a_pause_it_goes_on_where_the_market_stood() -> None:
    made = clock()
    resumed_us = 600 * S
    for second in range(12):
        assert made.event(T0 + second * 1000, resumed_us + second * S)
    assert made.now_ms(resumed_us + 11 * S) is not None
    assert made.now_ms(resumed_us + 11 * S) == T0 + 11_000


def test_a_burst_of_late_messages_does_not_turn_it_back() -> None:
    made = clock()
    for index in range(100):
        assert made.event(T0 + index, 600 * S + index)
    assert made.now_ms(601 * S) == T0 + 601_000
