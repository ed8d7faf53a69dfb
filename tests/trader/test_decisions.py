"""The rules by which a signal is acted upon, dropped or left alone."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.events import Order, Signal
from trader.decisions import Decisions, Rules, price_text

MINUTE = 60_000
START = 28_333_334 * MINUTE
RULES = Rules(mode="observe", step_ms=MINUTE, max_age_ms=120_000)


def signal(number: int = 0, side: str = "BUY", **changes: Any) -> Signal:
    values: dict[str, Any] = {
        "symbol": "BTCUSDT", "interval": "1m", "close": 60_518.3, "score": 0.3, "side": side,
        "invalid": "", "release": "r", "schema": "s",
    }  # fmt: skip
    return Signal(open_time_ms=START + number * MINUTE, **(values | changes))


def closed(number: int, later_ms: int = 0) -> int:
    """Market time at the close of candle `number`."""
    return START + (number + 1) * MINUTE + later_ms


def decide(decisions: Decisions, one: Signal, market_now_ms: int | None) -> Order | None:
    return decisions.decide(one, market_now_ms=market_now_ms, now_ms=1)


def test_a_fresh_signal_with_a_side_is_observed() -> None:
    line = decide(Decisions(RULES), signal(), closed(0, 40))
    assert line is not None
    assert (line.state, line.side, line.price, line.quantity) == ("OBSERVED", "BUY", "60518.3", "")
    assert line.reason == "observe: no orders are sent"
    assert line.signal_id == f"BTCUSDT-1m-{START}"


def test_a_signal_without_a_side_is_nothing() -> None:
    assert decide(Decisions(RULES), signal(side=""), closed(0)) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"invalid": "gap"}, "invalid: gap"),
        ({"score": None}, "invalid: score None"),
        ({"score": math.nan}, "invalid: score nan"),
        ({"score": 1.01}, "invalid: score 1.01"),
        ({"close": math.nan}, "invalid: close nan"),
        ({"close": -1.0}, "invalid: close -1.0"),
        ({"open_time_ms": START + 1}, "invalid: 1700000040001 is not a candle's time"),
    ],
)
def test_an_invalid_signal_is_dropped(changes: dict[str, Any], reason: str) -> None:
    one = signal()
    values = {name: getattr(one, name) for name in one.__slots__} | changes
    line = decide(Decisions(RULES), Signal(**values), closed(0))
    assert line is not None
    assert line.state == "DROPPED"
    assert line.reason.startswith(reason)


def test_age_is_measured_against_market_time() -> None:
    decisions = Decisions(RULES)
    states = [
        (line.state, line.reason)
        for number, age_ms in enumerate((120_001, 120_000, -1))
        if (line := decide(decisions, signal(number), closed(number, age_ms))) is not None
    ]
    assert states == [
        ("DROPPED", "too old: 120.001 s, limit 120 s"),
        ("OBSERVED", "observe: no orders are sent"),
        ("DROPPED", "from the future: its candle closes 0.001 s after market time"),
    ]


def test_without_a_candle_there_is_no_time_to_act_on() -> None:
    line = decide(Decisions(RULES), signal(), None)
    assert line is not None
    assert line.reason == "no candle on the bus tells the market's time"


def test_a_repeated_signal_is_decided_once() -> None:
    decisions = Decisions(RULES)
    assert decide(decisions, signal(), closed(0)) is not None
    assert decide(decisions, signal(), closed(0)) is None
    assert decide(decisions, signal(side="SELL"), closed(0)) is None


def test_a_signal_before_the_newest_decision_is_dropped() -> None:
    decisions = Decisions(RULES)
    decide(decisions, signal(1), closed(1))
    line = decide(decisions, signal(0), closed(1))
    assert line is not None
    assert line.reason == "late: 2023-11-14T22:15:00Z was decided before it"


def test_a_drop_from_the_future_does_not_stop_the_present() -> None:
    decisions = Decisions(RULES)
    decide(decisions, signal(1_000_000), closed(0))
    line = decide(decisions, signal(0), closed(0))
    assert line is not None
    assert line.state == "OBSERVED"


def test_what_memory_no_longer_holds_is_not_decided_again() -> None:
    decisions = Decisions(RULES, memory=3)
    for number in range(10):
        assert decide(decisions, signal(number), closed(number)) is not None
    assert all(decide(decisions, signal(n), closed(10)) is None for n in range(10))
    assert decide(decisions, signal(10), closed(10)) is not None


steps = st.lists(
    st.tuples(st.integers(0, 8), st.sampled_from(["BUY", "SELL", ""]), st.integers(-1, 4)),
    max_size=40,
)


@given(steps, st.integers(0, 40))
def test_a_restart_from_the_journal_decides_the_same(
    steps: list[tuple[int, str, int]], restart: int
) -> None:
    """The state is the fold of the journal, so a restart anywhere changes nothing; and no signal
    has two lines."""

    def run(stop: int | None) -> list[Order]:
        decisions = Decisions(RULES)
        journal: list[Order] = []
        for position, (number, side, age) in enumerate(steps):
            if position == stop:
                decisions = Decisions(RULES)
                for line in journal:
                    decisions.load(line)
            made = decide(decisions, signal(number, side), closed(number, age * MINUTE))
            journal += [made] if made is not None else []
        return journal

    journal = run(None)
    assert run(restart) == journal
    ids = [line.signal_id for line in journal]
    assert len(ids) == len(set(ids))
    assert {line.signal_id for line in journal} == {signal(n).id for n, side, _ in steps if side}
    observed = [line.open_time_ms for line in journal if line.state == "OBSERVED"]
    assert observed == sorted(observed)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_price_is_an_exact_decimal(price: float) -> None:
    text = price_text(price)
    assert float(text) == price
    assert set(text) <= set("-0123456789.")


def test_no_price_is_no_text() -> None:
    assert price_text(math.nan) == ""
