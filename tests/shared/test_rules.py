"""The trading rules candle by candle, by hand. The whole against a plain loop: test_backtest.py."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import rules as trading
from shared.config import Settings
from shared.rules import NAN, Bar, Costs, Fill, Rules, State, configured, problem_of, start, step

MINUTE = 60_000
FREE = Costs(0.0, 0.0, True)
BUY, SELL = 0.5, -0.5


def rules(**changes: Any) -> Rules:
    values: dict[str, Any] = {
        "step_ms": MINUTE, "longs": True, "shorts": False, "buy": 0.15, "sell": -0.15,
        "exit_long": -0.15, "exit_short": 0.15, "share": 1.0,
    }  # fmt: skip
    return Rules(**(values | changes))


def play(
    rule: Rules, candles: list[tuple[Any, ...]], costs: Costs = FREE, cash: float = 1000.0
) -> tuple[State, list[tuple[int, int, float]]]:
    """candles: (open, high, low, close, score[, volatility]), None = gap.

    Returns the account and (candle, reason, price) of each fill.
    """
    state, fills = start(cash), []
    for number, values in enumerate(candles):
        row = values or (NAN,) * 5
        bar = Bar(number * MINUTE, *row[:5], row[5] if len(row) > 5 else NAN)
        state, *happened = step(state, bar, rule, costs)
        fills += [(number, f.reason, f.price) for f in happened if f.reason != trading.NONE]
    return state, fills


def still(price: float, score: float, **kind: float) -> tuple[float, ...]:
    high, low = kind.get("high", price), kind.get("low", price)
    return (price, high, low, price, score)


def test_buys_above_sells_below_at_the_next_open() -> None:
    candles = [(100, 106, 99, 105, BUY), (110, 120, 108, 118, 0.0), (119, 121, 110, 112, SELL),
               (111, 115, 100, 114, 0.0)]  # fmt: skip
    state, fills = play(rules(), candles)
    assert fills == [(1, trading.ENTRY, 110.0), (3, trading.SCORE, 111.0)]
    assert state.cash == pytest.approx(1000 * 111 / 110)


def test_on_a_threshold_nothing_happens() -> None:
    assert play(rules(), [still(100, 0.15), still(100, -0.15), still(100, 0.1)])[1] == []


def test_between_the_thresholds_what_is_held_is_held() -> None:
    rule = rules(exit_long=0.05)
    scores = [0.2, 0.1, 0.06, 0.14, 0.04, 0.1, 0.16, 0.1]
    _, fills = play(rule, [still(100, score) for score in scores])
    assert [(at, reason) for at, reason, _ in fills] == [(1, trading.ENTRY), (5, trading.SCORE),
                                                         (7, trading.ENTRY)]  # fmt: skip


def test_a_stop_fills_at_its_price_and_a_gap_through_it_at_the_open() -> None:
    rule = rules(stop_loss=0.02)
    entered = [still(100, BUY), still(100, 0.0)]
    _, fills = play(rule, [*entered, (99, 100, 98, 99, 0.0)])
    assert fills[-1] == (2, trading.STOP, 98.0)
    _, fills = play(rule, [*entered, (95, 100, 94, 99, 0.0)])
    assert fills[-1] == (2, trading.STOP, 95.0)
    _, fills = play(rule, [*entered, (99, 100, 98.01, 99, 0.0)])
    assert len(fills) == 1


def test_a_stop_holds_in_the_candle_of_the_entry() -> None:
    state, fills = play(rules(stop_loss=0.02), [still(100, BUY), (100, 101, 90, 100, 0.0)])
    assert fills == [(1, trading.ENTRY, 100.0), (1, trading.STOP, 98.0)]
    assert state.cash == pytest.approx(980)


def test_a_target_is_gone_through_and_fills_at_its_own_price() -> None:
    rule = rules(take_profit=0.03)
    entered = [still(100, BUY), still(100, 0.0)]
    assert len(play(rule, [*entered, (101, 103, 100, 101, 0.0)])[1]) == 1  # touched only
    for opened in (102, 110):  # a resting order gets no better price from a gap
        _, fills = play(rule, [*entered, (opened, 111, 100, 105, 0.0)])
        assert fills[-1] == (2, trading.TARGET, 103.0)


def test_where_both_are_reached_the_stop_came_first() -> None:
    rule = rules(stop_loss=0.02, take_profit=0.03)
    _, fills = play(rule, [still(100, BUY), still(100, 0.0), (100, 110, 90, 105, 0.0)])
    assert fills[-1] == (2, trading.STOP, 98.0)


def test_a_trailing_stop_follows_the_high_from_the_next_candle_on() -> None:
    rule = rules(trailing_stop=0.10)
    held = [still(100, BUY), still(100, 0.0), (100, 120, 105, 119, 0.0)]
    _, fills = play(rule, held)  # 108 is below 120's stop, but came in the candle of the high
    assert len(fills) == 1
    _, fills = play(rule, [*held, (112, 113, 108, 110, 0.0)])
    assert fills[-1] == (3, trading.TRAILING, 108.0)
    _, fills = play(rule._replace(stop_loss=0.05), [*held[:2], (99, 99, 94, 96, 0.0)])
    assert fills[-1] == (2, trading.STOP, 95.0)  # the nearer of both


def test_a_position_is_left_after_its_time() -> None:
    _, fills = play(rules(max_candles=3), [still(100, s) for s in (BUY, 0, 0, 0, 0, 0)])
    assert fills == [(1, trading.ENTRY, 100.0), (4, trading.TIME, 100.0)]


@pytest.mark.parametrize(("cool_down", "again"), [(0, 3), (1, 4), (3, 6)])
def test_cool_down_delays_the_next_decision(cool_down: int, again: int) -> None:
    rule = rules(stop_loss=0.02, cool_down=cool_down)
    fall = (100, 100, 97, 100, BUY)
    _, fills = play(rule, [still(100, BUY), still(100, BUY), fall, *[still(100, BUY)] * 6])
    assert [at for at, reason, _ in fills if reason == trading.ENTRY] == [1, again]


def test_both_directions_turn_at_one_open() -> None:
    rule = rules(shorts=True)
    state, fills = play(rule, [still(100, BUY), still(100, SELL), still(110, BUY), still(99, 0)])
    assert fills == [
        (1, trading.ENTRY, 100.0), (2, trading.SCORE, 110.0), (2, trading.ENTRY, 110.0),
        (3, trading.SCORE, 99.0), (3, trading.ENTRY, 99.0),
    ]  # fmt: skip
    assert state.quantity > 0
    assert trading.equity(state, 99.0) == pytest.approx(1100 + 1000 / 110 * 11)
    assert len(play(rule._replace(cool_down=2), [still(100, BUY), still(100, SELL)] * 2)[1]) == 2


def test_the_predecessors_limit_order_is_replaced_until_it_fills() -> None:
    """Buy at close * (1 - adjustment); not filled in the next candle: cancelled, decided anew."""
    rule = rules(limit=0.01)
    waits = [still(100, BUY), (101, 102, 99, 102, BUY), (103, 104, 100.98, 103, BUY)]
    _, fills = play(rule, waits)
    assert fills == []  # 99 and 100.98 are touched, not gone through
    _, fills = play(rule, [*waits, (103, 104, 101.9, 103, 0.0)])
    assert fills == [(3, trading.ENTRY, 103 * 0.99)]
    _, fills = play(rule, [*waits[:2], (103, 104, 102, 103, 0.0), still(90, 0.0)])
    assert fills == []  # the score no longer asks for it: the order is gone
    _, fills = play(rule, [waits[0], still(95, 0.0)])
    assert fills == [(1, trading.ENTRY, 95.0)]  # the open is better than the limit


def test_an_exit_by_limit_is_replaced_too() -> None:
    rule = rules(limit=0.0)
    start_long = [still(100, BUY), still(100, 0.0)]
    _, fills = play(rule, [*start_long, still(100, SELL), still(99, SELL), still(99, 0.0)])
    assert fills == [(1, trading.ENTRY, 100.0), (4, trading.SCORE, 99.0)]
    _, fills = play(rule, [*start_long, still(100, SELL), still(99, 0.0), still(200, 0.0)])
    assert fills == [(1, trading.ENTRY, 100.0)]


def test_entered_inside_a_candle_it_may_be_stopped_there_but_not_reach_its_target() -> None:
    rule = rules(limit=0.01, stop_loss=0.05, take_profit=0.02)
    _, fills = play(rule, [still(100, BUY), (100, 150, 98, 100, 0.0)])
    assert fills == [(1, trading.ENTRY, 99.0)]
    _, fills = play(rule, [still(100, BUY), (100, 150, 90, 100, 0.0)])
    assert fills == [(1, trading.ENTRY, 99.0), (1, trading.STOP, 99 * 0.95)]


def test_an_entry_lapses_at_a_gap_and_an_exit_waits() -> None:
    _, fills = play(rules(), [still(100, BUY), None, still(100, 0.0), still(100, 0.0)])
    assert fills == []
    held = [still(100, BUY), still(100, SELL)]
    _, fills = play(rules(shorts=True), [*held, None, None, still(90, 0.0), still(90, 0.0)])
    assert fills == [(1, trading.ENTRY, 100.0), (4, trading.SCORE, 90.0)]


def test_a_score_that_is_none_is_no_reason() -> None:
    _, fills = play(rules(shorts=True), [still(100, NAN)] * 3)
    assert fills == []
    _, fills = play(rules(), [still(100, BUY), still(100, NAN), still(100, NAN)])
    assert len(fills) == 1
    _, fills = play(rules(max_candles=2), [still(100, BUY), *[still(100, NAN)] * 3])
    assert fills[-1] == (3, trading.TIME, 100.0)  # time and stops hold without a score


def test_sizes() -> None:
    def spent(rule: Rules, volatility: float = NAN) -> float:
        state, _ = play(rule, [(*still(100, BUY), volatility), still(100, 0.0)])
        return state.quantity * 100

    assert spent(rules(share=0.25)) == pytest.approx(250)
    assert spent(rules(fixed=300.0)) == pytest.approx(300)
    assert spent(rules(fixed=3000.0, share=0.9)) == pytest.approx(900)
    assert spent(rules(volatility=0.001), 0.004) == pytest.approx(250)
    assert spent(rules(volatility=0.001, share=0.9), 0.0001) == pytest.approx(900)
    assert spent(rules(volatility=0.001), 0.0) == pytest.approx(1000)
    assert spent(rules(volatility=0.001), NAN) == 0  # not known: no entry


def test_fees_come_from_what_is_received_or_on_top() -> None:
    candles = [still(100, BUY), still(100, 0.0)]
    state, _ = play(rules(), candles, Costs(0.01, 0.0, True))
    assert (state.cash, state.quantity) == (0.0, pytest.approx(9.9))
    state, _ = play(rules(), candles, Costs(0.01, 0.0, False))
    assert (state.cash, state.quantity) == (0.0, pytest.approx(1000 / 101))


def test_a_short_earns_from_a_fall_and_is_closed_before_it_costs_more_than_there_is() -> None:
    rule = rules(longs=False, shorts=True)
    costs = Costs(0.001, 0.0, True)
    state, _ = play(rule, [still(100, SELL), still(100, BUY), still(80, 0.0)], costs)
    assert state.cash == pytest.approx(1000 + 200 - 0.001 * (1000 + 800))
    state, fills = play(rule, [still(100, SELL), still(100, 0.0), still(500, 0.0)], costs)
    assert fills[-1] == (2, trading.LIQUIDATED, 500.0)
    assert state.cash == 0.0
    _, fills = play(rule, [still(100, SELL), *[still(500, SELL)] * 4], costs)
    assert len(fills) == 1  # entered at 500, not at the score's 100


def test_where_protection_rests() -> None:
    state, _ = play(rules(stop_loss=0.02, take_profit=0.05), [still(100, BUY), still(100, 0)])
    found = trading.protection(state, rules(stop_loss=0.02, take_profit=0.05), FREE)
    assert found == (98.0, 105.0, trading.STOP)
    assert all(math.isnan(x) for x in trading.protection(start(1.0), rules(), FREE)[:2])


bars = st.lists(
    st.tuples(st.floats(50, 200), st.floats(0, 0.1), st.floats(0, 0.1), st.floats(-1, 1),
              st.booleans()),
    min_size=2, max_size=25,
)  # fmt: skip


@given(bars, st.sampled_from([{}, {"stop_loss": 0.03, "take_profit": 0.02}, {"limit": 0.01}]))
def test_no_trade_makes_or_loses_value_beside_its_costs(rows: Any, changes: Any) -> None:
    """At the price of each fill the account is worth what it was less fee; never a coin or a quote
    unit below nothing; no fill better than the candle."""
    rule, costs = rules(**changes), Costs(0.002, 0.0, True)
    state = start(1000.0)
    for number, (price, up, down, score, gap) in enumerate(rows):
        values = (price, price * (1 + up), price * (1 - down), price * (1 + up / 2))
        bar = Bar(number * MINUTE, *((NAN,) * 4 if gap else values), score, NAN)
        before = state
        state, *fills = step(state, bar, rule, costs)
        happened: list[Fill] = [f for f in fills if f.reason != trading.NONE]
        assert not (gap and happened)
        assert state.cash >= 0
        assert state.quantity >= 0
        if len(happened) == 1:
            [fill] = happened
            lost = trading.equity(before, fill.price) - trading.equity(state, fill.price)
            assert lost == pytest.approx(fill.fee, abs=1e-9)
            assert fill.price <= bar.high if fill.side < 0 else fill.price >= bar.low
            assert fill.cash == state.cash
        if not happened:
            assert (state.cash, state.quantity) == (before.cash, before.quantity)


# --- from the config -----------------------------------------------------------------------------


def test_thresholds_are_the_models_unless_the_rules_have_their_own() -> None:
    found = configured(Settings(), MINUTE)
    assert (found.buy, found.sell, found.exit_long, found.exit_short) == (0.15, -0.15, -0.15, 0.15)
    assert (found.longs, found.shorts, found.share) == (True, False, 0.99)
    assert math.isnan(found.limit)
    told = {"buy_threshold": 0.3, "exit_long": 0.1, "direction": "both"}
    model = {"model": {"buy_threshold": 0.2, "sell_threshold": -0.4}}
    found = configured(Settings(signaler=model, trader={"rules": told}), MINUTE)
    assert (found.buy, found.sell, found.exit_long, found.exit_short) == (0.3, -0.4, 0.1, 0.3)
    assert (found.longs, found.shorts) == (True, True)


def test_a_volatility_target_is_told_a_year_and_used_a_candle() -> None:
    told = {"sizing": "volatility", "target_volatility": 0.5, "fixed": 10.0}
    found = configured(Settings(trader={"rules": told}), MINUTE)
    assert found.volatility == pytest.approx(0.5 / math.sqrt(365 * 1440))
    assert found.fixed == 0.0  # another way of sizing


def test_thresholds_that_contradict_each_other_are_named() -> None:
    assert problem_of(rules()) == ""
    assert "exit_long 0.2 is above the buy" in problem_of(rules(exit_long=0.2))
    assert "exit_short -0.2 is below" in problem_of(rules(shorts=True, exit_short=-0.2))
    assert "at which a long" in problem_of(rules(shorts=True, exit_long=-0.3))
    assert "at which a short" in problem_of(rules(shorts=True, exit_short=0.3))


def test_volatility_is_the_deviation_of_log_returns_without_gaps() -> None:
    closes = [100.0, 101.0, NAN, 99.0, 100.0, 98.0]
    steps = [math.log(101 / 100), math.log(100 / 99), math.log(98 / 100)]
    mean = sum(steps) / 3
    truth = math.sqrt(sum((s - mean) ** 2 for s in steps) / 3)
    assert trading.volatility(closes) == pytest.approx(truth)
    assert math.isnan(trading.volatility([1.0, 2.0]))
