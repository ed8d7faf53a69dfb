"""What is never exceeded, by hand: the core alone, with journal lines made as the past needs."""

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from shared.control import Command, Word
from shared.events import Order
from shared.exchange import Fill, OrderReport, OrderType, Side, Status
from shared.ledger import DAY_MS, packed
from shared.rules import Bar
from tests.trader.world import BUY, FILTERS, MINUTE, RULES, SELL, START, SYMBOL, bar, signal
from trader.archive import Fold
from trader.core import Core, Limits
from trader.messages import (
    Balances,
    FetchRules,
    MeasureClock,
    Now,
    Place,
    Query,
    Refused,
)
from trader.summary import daily_summary

D = Decimal
ETH = replace(FILTERS, symbol="ETHUSDT", base="ETH")


def now(number: int) -> Now:
    at_ms = START + (number + 1) * MINUTE
    return Now(at_ms, at_ms, at_ms)


def core(*lines: Order, usdt: str = "10000", **limits: Any) -> Core:
    made = Core("paper", "1m", RULES, Limits(**({"max_age_ms": 120_000} | limits)))
    for symbol, filters in ((SYMBOL, FILTERS), ("ETHUSDT", ETH)):
        desk = made.open(symbol, filters.base, "USDT")
        desk.filters, desk.ready = filters, True
    made.skew_ms = 0.0
    made.load(lines)
    made.balances(Balances({"USDT": (D(usdt), D(0))}, START))
    return made


def decide(made: Core, number: int, score: float, *, symbol: str = SYMBOL, **changes: Any) -> Order:
    """The signal's (first) line."""
    one = replace(signal(number, score), symbol=symbol, **changes)
    made.desks[symbol].decide(one, bar(number, score), now(number))
    return next(line for line in made.out.lines if line.signal_id == one.id)


def past(name: str, side: str, price: str, number: int, *, profit: str = "", day: int = 0) -> Order:
    """A filled order: 1 unit at a price, with no fee, `day` days before."""
    fill = Fill(
        symbol=SYMBOL, trade_id=number, order_id=number, side=Side(side), price=D(price),
        quantity=D(1), quote_quantity=D(price), fee=D(0), fee_asset="USDT", time_ms=1,
        is_maker=False,
    )  # fmt: skip
    at_ms = START - day * DAY_MS
    return Order(
        signal_id=f"past-{name}", symbol=SYMBOL, interval="1m", open_time_ms=at_ms, time_ms=1,
        state="FILLED", side=side, quantity="1", price=price, reason="", score=None, release="r",
        mode="paper", leg="entry" if side == "BUY" else "exit", client_id=f"k1-{name}",
        order_quantity="1", market_ms=at_ms, profit=profit, fills={str(number): packed(fill)},
    )  # fmt: skip


def trip(number: int, bought: str, sold: str, *, day: int = 0) -> list[Order]:
    profit = str(D(sold) - D(bought))
    return [
        past(f"b{number}", "BUY", bought, 2 * number, day=day),
        past(f"s{number}", "SELL", sold, 2 * number + 1, day=day, profit=profit),
    ]


def halted(made: Core) -> bool:
    return made.switch == "HALTED"


def test_an_entry_is_sent_when_no_limit_forbids_it() -> None:
    line = decide(core(), 0, BUY)
    assert (line.state, line.quantity, line.worth) == ("INTENT", "99", "10000")


def test_an_entry_is_cut_down_to_the_largest_notional() -> None:
    assert decide(core(max_notional=D(500)), 0, BUY).quantity == "5"


def bought(made: Core, number: int, price: str) -> Order:
    """An entry that is filled at another price than the close of 100; its last line."""
    line = decide(made, number, BUY)
    place = next(r for _, r in made.take().requests if isinstance(r, Place))
    quantity = D(line.quantity)
    fill = Fill(
        symbol=SYMBOL, trade_id=1, order_id=1, side=Side.BUY, price=D(price), quantity=quantity,
        quote_quantity=quantity * D(price), fee=D(0), fee_asset="BTC", time_ms=1, is_maker=False,
    )  # fmt: skip
    report = OrderReport(
        symbol=SYMBOL, order_id=1, list_id=None, client_id=line.client_id, side=Side.BUY,
        type=OrderType.MARKET, status=Status.FILLED, quantity=quantity, price=D(0),
        stop_price=D(0), executed=quantity, executed_quote=quantity * D(price), time_ms=1,
        update_ms=1, fills=(fill,),
    )  # fmt: skip
    made.desks[SYMBOL].placed(place.client_ids, [report], now(number))
    return next(one for one in made.out.lines if one.state == "FILLED")


def test_an_entry_that_has_cost_more_than_the_largest_notional_halts() -> None:
    """FAULTS T17. The market may move by the 0.2 % that a market order is given; a thin book's 2 %
    are told."""
    for price, told in (("100.2", []), ("100.3", ["501.5"]), ("102", ["510"])):
        made = core(max_notional=D(500))
        bought(made, 0, price)
        assert not halted(made)
        alerts = [one.text for one in made.out.news if one.code == "max_notional"]
        assert [text.split("cost ")[1].split(",")[0] for text in alerts] == told
    made = core(max_notional=D(500))
    filled = bought(made, 0, "102.1")
    assert halted(made)
    assert "cost 510.5, trader.limits.max_notional is 500" in made.why_switched
    again = core(filled, *made.out.lines, max_notional=D(500))
    assert halted(again)
    assert "cost 510.5" in decide(again, 1, BUY, symbol="ETHUSDT").reason


def test_one_open_order_too_many_halts_until_an_operator_resumes() -> None:
    """FAULTS T17: of all symbols together, whatever they are for."""
    made = core(open_orders=1)
    assert decide(made, 0, BUY, symbol="ETHUSDT").state == "INTENT"
    line = decide(made, 0, BUY)
    assert (line.state, halted(made)) == ("DROPPED", True)
    assert "1 orders are open, trader.limits.open_orders allows no more" in line.reason
    again = core(*made.out.lines, open_orders=1)
    assert halted(again)
    assert decide(core(open_orders=2), 0, BUY).state == "INTENT"


def test_all_of_the_account_leaves_room_for_a_price_that_moves() -> None:
    made = core()
    made.desks[SYMBOL].rule = RULES._replace(share=1.0)
    assert D(decide(made, 0, BUY).quantity) * 100 < D(10_000) / D("1.0019")


def test_a_release_that_is_not_named_does_not_trade() -> None:
    made = core(releases=frozenset(("other",)))
    line = decide(made, 0, BUY)
    assert (line.state, halted(made)) == ("DROPPED", False)
    assert "not one of trader.releases" in line.reason


def test_open_positions_count_over_symbols_and_what_may_be_bought_counts() -> None:
    made = core(open_positions=1)
    assert decide(made, 0, BUY, symbol="ETHUSDT").state == "INTENT"
    line = decide(made, 0, BUY)
    assert "positions are open" in line.reason
    assert not halted(made)


def test_cash_that_an_intent_may_use_is_not_used_twice() -> None:
    made = core()
    assert decide(made, 0, BUY, symbol="ETHUSDT").quantity == "99"
    # 100 USDT are left, of which a share of 99 % of the worth may be used: all of it, less reserve.
    assert D(decide(made, 0, BUY).quantity) <= 1


def test_losses_of_the_day_halt_and_a_new_day_does_not_resume() -> None:
    lines = trip(1, "1000", "400")
    made = core(*lines, daily_loss=D("0.05"))
    line = decide(made, 0, BUY)
    assert "today's loss is 5.66 % of the account" in line.reason  # 600 of 10,600
    assert halted(made)
    again = core(*lines, *made.out.lines, daily_loss=D("0.05"))
    assert "today's loss" in decide(again, 1440, BUY).reason


def test_losses_of_yesterday_are_yesterday_s() -> None:
    made = core(*trip(1, "1000", "400", day=1), daily_loss=D("0.05"))
    assert decide(made, 0, BUY).state == "INTENT"


def test_the_best_that_the_account_ever_was_is_what_a_drawdown_counts_from() -> None:
    lines = [*trip(1, "100", "2100", day=9), *trip(2, "3000", "500", day=2)]
    made = core(*lines, drawdown=D("0.2"))  # 2,500 of 12,500
    assert "below its best" in decide(made, 0, BUY).reason
    assert halted(made)
    assert decide(core(*lines, drawdown=D("0.21")), 0, BUY).state == "INTENT"


def test_what_was_traded_at_another_interval_is_held_owed_and_forbidden_all_the_same() -> None:
    halt = replace(
        past("h", "SELL", "1", 9), state="HALTED", client_id="", reason="limit: x", fills={}
    )
    lines = [
        replace(line, interval="5m")
        for line in (*trip(1, "100", "90"), past("b3", "BUY", "100", 8), halt)
    ]
    made = core(*lines)
    desk = made.desks[SYMBOL]
    assert (desk.ledger.position, desk.ledger.losses, halted(made)) == (1, 1, True)
    fold = Fold("BTC", "USDT")
    for line in lines:
        fold.add(line)
    assert fold.carried() == {"paper": desk.ledger.carried()}
    # A signal's candle is told by the interval, too: what was decided there is not decided here.
    done = replace(signal(0, BUY), interval="5m")
    desk.load(replace(past("b9", "BUY", "100", 20), signal_id=done.id, interval="5m"))
    assert not desk.decisions.is_done(signal(0, BUY))


def test_losses_in_a_row_halt_and_a_resume_lets_them_count_anew() -> None:
    lines = [*trip(1, "100", "99"), *trip(2, "100", "99")]
    made = core(*lines, losses=2)
    assert "2 losses in a row" in decide(made, 0, BUY).reason
    made.command(Command(Word.RESUME, "RESUME 1 me"), now(0))
    assert decide(made, 1, BUY).state == "INTENT"
    # The same command again, as after a restart, is the same command.
    said = [line for line in made.out.lines if not line.client_id]
    again = core(*lines, *said, losses=2)
    again.halt("something else", now(2))
    again.command(Command(Word.RESUME, "RESUME 1 me"), now(2))
    assert halted(again)


def test_a_bare_word_that_is_written_again_stops_again_and_does_not_resume() -> None:
    """Nobody can tell it from an old content of the key that came back: safer is to stop."""
    made = core()

    def say(text: str) -> str:
        made.command(Command(Word(text.split(maxsplit=1)[0]), text), now(0))
        return made.desks[SYMBOL].ledger.switch.state

    for word, state in (("HALT", "HALTED"), ("REDUCE_ONLY", "REDUCED"), ("FLATTEN", "FLATTENED")):
        assert say(word) == state
        assert say(f"RESUME 1{state}") == "RESUMED"
        assert say(word) == state
        lines = len(made.out.lines)
        assert say(word) == state
        assert len(made.out.lines) == lines  # it stands there still
    assert say("RESUME") == "RESUMED"
    assert say("HALT") == "HALTED"
    assert say("RESUME") == "HALTED"
    assert say("RESUME") == "HALTED"
    told = [news for news in made.out.news if news.code == "not_resumed"]
    assert len(told) == 1
    assert say("RESUME 2") == "RESUMED"
    # A word with a time that comes back is an old one.
    assert say("RESUME 1HALTED") == "RESUMED"
    assert say("HALT 3") == "HALTED"
    assert say("RESUME 4") == "RESUMED"
    assert say("HALT 3") == "RESUMED"


def test_the_newest_command_is_in_force_and_beside_it_the_stricter_file() -> None:
    made = core()
    made.halt("a limit", now(0))
    made.command(Command(Word.REDUCE_ONLY, "REDUCE_ONLY 1"), now(0))
    assert made.switch == "REDUCED"
    made.file_says(Command(Word.HALT, "HALT (file, 1)"), now(0))
    made.command(Command(Word.FLATTEN, "FLATTEN 2"), now(0))
    assert halted(made)
    made.file_says(None, now(0))
    assert made.switch == "FLATTENED"


def test_a_bare_word_that_still_stands_there_is_not_obeyed_again_by_the_next_life() -> None:
    made = core()
    for text in ("HALT", "RESUME", "REDUCE_ONLY"):
        made.command(Command(Word(text), text), now(0))
    made.halt("a limit", now(0))
    again = core(*made.out.lines)
    again.command(Command(Word.REDUCE_ONLY, "REDUCE_ONLY"), now(1))
    assert halted(again)
    assert not again.is_new(Command(Word.REDUCE_ONLY, "REDUCE_ONLY"))


def test_orders_in_a_minute_of_the_market_halt() -> None:
    made = core(orders_per_minute=2)
    decide(made, 0, BUY)
    decide(made, 0, BUY, symbol="ETHUSDT")
    desk = made.desks["ETHUSDT"]
    name = next(
        r.client_ids
        for _, r in made.out.requests
        if isinstance(r, Place) and "ETH" in r.order.symbol
    )
    desk.placed(name, [], now(0))
    made.order_refusal(now(0))
    assert halted(made)
    fresh = core(orders_per_minute=2)
    decide(fresh, 0, BUY)
    assert decide(fresh, 2, BUY, symbol="ETHUSDT").state == "INTENT"
    assert fresh.order_refusal(now(4)) == ""


def holding(*symbols: str, **limits: Any) -> Core:
    """With one unit of each."""
    bases = {SYMBOL: "BTC", "ETHUSDT": "ETH"}
    lines = [replace(past(f"b{one}", "BUY", "100", 1), symbol=one) for one in symbols]
    made = core(*lines, **limits)
    made.balances(Balances({bases[one]: (D(1), D(0)) for one in symbols}, START))
    for one in symbols:
        made.desks[one].extend(bar(-1, 0.0))
    return made


def sales(made: Core) -> list[str]:
    """Symbols of the orders that the last events sent, which all sell."""
    placed = [r.order for _, r in made.take().requests if isinstance(r, Place)]
    assert all(order.side is Side.SELL for order in placed)
    return [order.symbol for order in placed]


def test_no_limit_on_the_number_of_orders_keeps_flatten_from_selling_everything() -> None:
    made = holding(SYMBOL, "ETHUSDT", open_orders=1, orders_per_minute=1)
    made.command(Command(Word.FLATTEN, "FLATTEN 1 me"), now(0))
    assert sales(made) == [SYMBOL, "ETHUSDT"]
    assert made.switch == "FLATTENED"


def test_an_exit_is_sent_while_as_many_orders_are_open_as_may_be() -> None:
    made = holding(SYMBOL, open_orders=1, orders_per_minute=1)
    assert decide(made, 0, BUY, symbol="ETHUSDT").state == "INTENT"
    made.take()
    assert decide(made, 0, SELL).state == "INTENT"
    assert sales(made) == [SYMBOL]
    assert not halted(made)


def test_protection_that_is_sent_too_often_goes_slowly_and_does_not_halt() -> None:
    """The exchange, or somebody else, ends each stop at once."""
    made = holding(SYMBOL, orders_per_minute=2)
    desk = made.desks[SYMBOL]
    desk.rule = RULES._replace(stop_loss=0.02)
    sent_ms, told = [], []
    for late_ms in range(0, 20_000, 500):
        at = Now(now(0).account_ms + late_ms, now(0).market_ms, 0)
        desk.advance(at)
        out = made.take()
        told += [one.code for one in out.news if one.code == "orders_per_minute"]
        for place in [r for _, r in out.requests if isinstance(r, Place)]:
            sent_ms.append(late_ms)
            gone = OrderReport(
                symbol=SYMBOL, order_id=late_ms + 1, list_id=None, client_id=place.client_ids[0],
                side=Side.SELL, type=OrderType.STOP_LOSS, status=Status.CANCELED, quantity=D(1),
                price=D(0), stop_price=D(98), executed=D(0), executed_quote=D(0), time_ms=1,
                update_ms=1,
            )  # fmt: skip
            desk.placed(place.client_ids, [gone], at)
    assert sent_ms == [0, 500, 1_000, *range(2_500, 20_000, 2_000)]
    assert told == ["orders_per_minute"]
    assert not halted(made)


def test_an_order_that_the_exchange_would_refuse_is_not_sent() -> None:
    line = decide(core(usdt="4"), 0, BUY)
    assert line.state == "DROPPED"
    assert "NOTIONAL" in line.reason
    assert decide(core(usdt="0"), 0, BUY).reason == "no cash"


def test_without_the_exchange_s_clock_or_balances_nothing_is_bought() -> None:
    made = core()
    made.skew_ms = None
    assert "clock is not known" in decide(made, 0, BUY).reason
    made.skew_ms = -500.0
    assert "-500 ms off" in decide(made, 1, BUY).reason


def test_while_the_exchange_says_that_our_clock_is_off_nothing_is_sent_for_any_symbol() -> None:
    made = core()
    line = decide(made, 0, BUY)
    made.take()
    refused = Refused(-1021, "Timestamp for this request is outside of the recvWindow.")
    made.desks[SYMBOL].placed([line.client_id], refused, now(0))
    assert (SYMBOL, MeasureClock()) in made.take().requests
    one = replace(signal(1, BUY), symbol="ETHUSDT")
    made.desks["ETHUSDT"].decide(one, bar(1, BUY), now(1))
    assert made.desks["ETHUSDT"].waits(one)
    assert made.take().requests == []
    made.clock_is_off = False
    made.advance(now(1))
    (place,) = [r for _, r in made.take().requests if isinstance(r, Place)]
    assert place.timestamp_ms == now(1).account_ms


def test_a_position_in_a_closed_market_is_neither_sold_nor_protected_again_and_again() -> None:
    made = core(past("b1", "BUY", "100", 1))
    desk = made.desks[SYMBOL]
    desk.rule = RULES._replace(stop_loss=0.02)
    made.balances(Balances({"BTC": (D(1), D(0))}, START))
    desk.extend(bar(-1, 0.0))
    desk.advance(now(0))
    (place,) = [r for _, r in made.take().requests if isinstance(r, Place)]
    desk.placed(place.client_ids, Refused(-2010, "Market is closed."), now(0))
    assert made.take().requests == [(SYMBOL, FetchRules())]
    # An exchange that refuses and says that it trades is not asked again at once.
    desk.filters = FILTERS
    desk.advance(Now(now(0).account_ms + 1_999, now(0).market_ms, 0))
    assert made.take().requests == []
    desk.filters = replace(FILTERS, status="BREAK")
    for number in range(1, 4):
        desk.decide(signal(number, SELL), bar(number, SELL), now(number))
        assert made.take().requests == []
    assert not halted(made)
    desk.filters = FILTERS
    desk.advance(now(4))
    assert [r.order.side for _, r in made.take().requests if isinstance(r, Place)] == [Side.SELL]


def test_a_market_that_says_it_trades_and_refuses_as_closed_is_tried_every_ten_seconds() -> None:
    made = holding(SYMBOL)
    desk = made.desks[SYMBOL]
    desk.rule = RULES._replace(stop_loss=0.02)
    sent_ms = []
    for late_ms in range(0, 45_000, 500):
        at = Now(now(0).account_ms + late_ms, now(0).market_ms + late_ms, 0)
        desk.ruled(FILTERS, at)
        for _, request in made.take().requests:
            if isinstance(request, Place):
                sent_ms.append(late_ms)
                desk.placed(request.client_ids, Refused(-2010, "Market is closed."), at)
    assert sent_ms == [0, 10_000, 20_000, 30_000, 40_000]
    assert not halted(made)


@pytest.mark.parametrize(
    "nothing", [Refused(-2010, "Market is closed."), Refused(-1021, "Timestamp for this request.")]
)
def test_refusals_that_are_not_about_the_order_do_not_count_towards_the_halt_of_one_that_is(
    nothing: Refused,
) -> None:
    """The market opens below the stop: what cannot be protected is sold."""
    made = holding(SYMBOL)
    desk = made.desks[SYMBOL]
    desk.rule = RULES._replace(stop_loss=0.02)
    answers = [nothing] * 5 + [Refused(-2010, "Stop price would trigger immediately.")]
    at = now(0)
    for answer in answers:
        desk.ruled(FILTERS, at)
        (place,) = [r for _, r in made.take().requests if isinstance(r, Place)]
        assert place.order.type == OrderType.STOP_LOSS
        desk.placed(place.client_ids, answer, at)
        made.clock_is_off = False
        at = Now(at.account_ms + 10_000, at.market_ms + 10_000, 0)
    assert not halted(made)
    (place,) = [r for _, r in made.take().requests if isinstance(r, Place)]
    assert place.order.type == OrderType.MARKET


def test_signals_that_lead_to_nothing_have_one_line_that_says_why() -> None:
    made = core()
    assert decide(made, 0, SELL).reason == "nothing to sell"
    desk = made.desks[SYMBOL]
    before = len(made.out.lines)
    desk.decide(signal(0, SELL), bar(0, SELL), now(0))
    assert len(made.out.lines) == before
    late = signal(1, BUY)
    desk.decide(late, bar(1, BUY), now(5))
    assert made.out.lines[-1].reason.startswith("too old: 240")
    desk.decide(signal(9, BUY), Bar(START, *(float("nan"),) * 6), now(9))
    assert made.out.lines[-1].reason == "its candle is not on the bus"


@pytest.mark.parametrize("word", ["HALT", "REDUCE_ONLY", "FLATTEN"])
def test_every_switch_stops_entries_and_reduce_only_still_sells(word: str) -> None:
    held = past("b1", "BUY", "100", 1)
    made = core(held)
    made.balances(Balances({"BTC": (D(1), D(0))}, START))
    made.desks[SYMBOL].extend(bar(-1, 0.0))
    made.command(Command(Word(word), f"{word} 1 me"), now(0))
    assert "halted" in decide(made, 0, BUY, symbol="ETHUSDT").reason
    sold = [r for _, r in made.out.requests if isinstance(r, Place)]
    assert [r.order.side for r in sold] == ([Side.SELL] if word == "FLATTEN" else [])
    if word != "FLATTEN":
        line = decide(made, 0, SELL)
        assert line.state == ("INTENT" if word == "REDUCE_ONLY" else "DROPPED")


def test_what_a_journal_may_have_lost_is_looked_for_and_not_sent() -> None:
    """FAULTS T9: the signal was traded perhaps by a former life, whose lines are gone."""
    made = core()
    desk = made.desks[SYMBOL]
    desk.suspect, desk.ready_ms = True, now(0).market_ms + 1
    line = decide(made, 0, BUY)
    assert (line.state, line.client_id[:3]) == ("UNKNOWN", "k1-")
    assert not [r for _, r in made.out.requests if isinstance(r, Place)]
    start = now(0)
    for later_ms in (1_000, 19_000, 21_000, 23_000):
        at = Now(start.account_ms + later_ms, start.market_ms + later_ms, 0)
        desk.tick(at)
        asked = [r for _, r in made.take().requests]
        assert asked == [Query(line.client_id, "query")]
        desk.found(line.client_id, None, at.account_ms, at, what="query")
    assert desk.ledger.orders[line.client_id].state == "NOT_PLACED"
    assert desk.unknown is None


def test_the_day_in_one_message() -> None:
    lines = [*trip(1, "100", "90"), *trip(2, "100", "130"), past("b3", "BUY", "120", 9)]
    made = core(*lines)
    ledger = made.desks[SYMBOL].ledger
    text = daily_summary(START // DAY_MS, [ledger], [125.0], [100.0], D("10025"))
    assert text == (
        "2023-11-14: holds 1 BTC; realised +20.00 USDT in 2 round trips (1 won); unrealised +5.00 "
        "USDT; fees none; slippage +0.00 USDT; account 10025.00 USDT; buy and hold BTC +25.00 %"
    )
