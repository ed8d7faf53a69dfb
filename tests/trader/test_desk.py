"""Exits that the exchange refuses or fills in part, step by step over the trader's real core."""

from dataclasses import replace
from decimal import Decimal

import pytest

from shared.control import Command, Word
from shared.events import OrderState
from shared.exchange import Fill, NewOco, NewOrder, OrderReport, OrderType, Side, Status
from shared.filters import Grid
from shared.ledger import NEW_ACCOUNT, ledger_of
from shared.rules import NAN, Bar, Rules
from tests.trader.world import BUY, FILTERS, MINUTE, RULES, SELL, START, SYMBOL, bar, signal
from trader.core import Core, Limits
from trader.desk import Desk
from trader.messages import Balances, FetchFills, FetchRules, NotSent, Now, Place, Refused

STOPS = RULES._replace(stop_loss=0.02, take_profit=0.03)
WRONG_SIDE = Refused(-2010, "The relationship of the prices for the orders is not correct.")


class Table:
    """A desk with 10,000 USDT, and an exchange that answers what the test says."""

    def __init__(self, rule: Rules) -> None:
        self.core = Core("paper", "1m", rule, Limits(max_age_ms=120_000))
        self.desk: Desk = self.core.open(SYMBOL, "BTC", "USDT")
        self.desk.filters = FILTERS
        self.desk.ready, self.desk.ready_ms = True, START
        self.core.skew_ms = 0.0
        self.t = START + MINUTE
        self.trades = 0
        amounts = {"USDT": (Decimal(10_000), Decimal(0)), "BTC": (Decimal(0), Decimal(0))}
        self.core.balances(Balances(amounts, self.t))

    @property
    def now(self) -> Now:
        return Now(self.t, self.t, self.t)

    def sent(self) -> Place | None:
        """What the last events sent, None = no order."""
        places = [r for _, r in self.core.take().requests if isinstance(r, Place)]
        assert len(places) <= 1
        return places[0] if places else None

    def fill(self, place: Place, quantity: Decimal, price: str, status: Status) -> None:
        """The reply: so much was filled, and the order has that status."""
        order = place.order
        assert isinstance(order, NewOrder)
        assert order.quantity is not None
        self.trades += 1
        fill = Fill(
            symbol=SYMBOL, trade_id=self.trades, order_id=self.trades, side=order.side,
            price=Decimal(price), quantity=quantity, quote_quantity=quantity * Decimal(price),
            fee=Decimal(0), fee_asset="USDT", time_ms=self.t, is_maker=False,
        )  # fmt: skip
        report = OrderReport(
            symbol=SYMBOL, order_id=self.trades, list_id=None, client_id=order.client_id,
            side=order.side, type=order.type, status=status, quantity=order.quantity,
            price=Decimal(0), stop_price=Decimal(0), executed=quantity, executed_quote=Decimal(0),
            time_ms=self.t, update_ms=self.t, fills=(fill,),
        )  # fmt: skip
        self.desk.placed(place.client_ids, [report], self.now)

    def bought(self) -> Decimal:
        """The first candle's entry, filled at 100."""
        self.desk.decide(signal(0, BUY), bar(0, BUY), self.now)
        entry = self.sent()
        assert entry is not None
        assert isinstance(entry.order, NewOrder)
        assert entry.order.quantity is not None
        self.fill(entry, entry.order.quantity, "100", Status.FILLED)
        return entry.order.quantity


def market_sale(place: Place | None) -> Decimal:
    """How much it sells at market."""
    assert place is not None
    assert isinstance(place.order, NewOrder)
    assert (place.order.side, place.order.type) == (Side.SELL, OrderType.MARKET)
    assert place.order.quantity is not None
    return place.order.quantity


def test_a_position_that_cannot_be_protected_is_sold_to_its_last_lot_however_thin_the_book() -> (
    None
):
    table = Table(STOPS)
    held = table.bought()
    pair = table.sent()
    assert pair is not None
    assert isinstance(pair.order, NewOco)
    table.desk.placed(pair.client_ids, WRONG_SIDE, table.now)
    first = table.sent()
    assert market_sale(first) == held
    assert first is not None
    table.fill(first, Decimal("40"), "90", Status.EXPIRED)
    assert table.sent() is None  # an exchange in trouble is not asked again at once
    table.t += 2_000
    table.desk.tick(table.now)
    second = table.sent()
    assert market_sale(second) == held - 40
    assert second is not None
    table.fill(second, held - 40, "89", Status.FILLED)
    assert table.sent() is None
    assert table.desk.ledger.position == 0
    assert table.core.switch == OrderState.RESUMED


def test_a_position_below_its_stop_is_sold_anew_at_every_candle_until_it_is_gone() -> None:
    table = Table(STOPS)
    held = table.bought()
    pair = table.sent()
    assert pair is not None
    for number, close, left in ((1, 90.0, held), (2, 80.0, held - 30), (3, 70.0, held - 60)):
        table.desk.placed(pair.client_ids, WRONG_SIDE, table.now)
        sale = table.sent()
        assert market_sale(sale) == left
        assert sale is not None
        table.fill(sale, Decimal("30"), f"{close}", Status.EXPIRED)
        assert table.core.switch == OrderState.RESUMED
        table.t += MINUTE
        crash = Bar(START + number * MINUTE, close, close, close, close, 0.0, NAN)
        table.desk.decide(replace(signal(number, 0.0), close=close), crash, table.now)
        pair = table.sent()
        assert pair is not None
        assert isinstance(pair.order, NewOco)


@pytest.mark.parametrize("score", [BUY, SELL])
def test_a_signal_whose_close_is_not_its_candle_s_is_dropped(score: float) -> None:
    table = Table(RULES)
    if score == SELL:
        table.bought()
        assert table.sent() is None
    number = 0 if score == BUY else 1
    table.t = START + (number + 1) * MINUTE
    table.desk.decide(replace(signal(number, score), close=1.0), bar(number, score), table.now)
    out = table.core.take()
    assert [request for _, request in out.requests if isinstance(request, Place)] == []
    assert [(line.state, line.reason) for line in out.lines] == [
        ("DROPPED", "invalid: close 1 is not its candle's, 100")
    ]


LATE = Refused(-1021, "Timestamp for this request is outside of the recvWindow.")


def measured(table: Table) -> None:
    """The exchange's clock is known again, and what was held back goes on."""
    table.core.clock_is_off = False
    table.t += 2_000
    table.core.advance(table.now)


def test_protection_that_is_refused_for_its_time_is_sent_again_and_nothing_is_sold() -> None:
    table = Table(STOPS)
    table.bought()
    names = set()
    for _ in range(5):
        pair = table.sent()
        assert pair is not None
        assert isinstance(pair.order, NewOco)
        names |= set(pair.client_ids)
        table.desk.placed(pair.client_ids, LATE, table.now)
        assert table.sent() is None
        measured(table)
    assert len(names) == 10
    assert table.core.switch == OrderState.RESUMED


def selling() -> tuple[Table, Decimal, Place]:
    """Bought, and the exit of all that is held has been sent at market."""
    table = Table(RULES)
    held = table.bought()
    table.t += MINUTE
    table.desk.decide(signal(1, SELL), bar(1, SELL), table.now)
    first = table.sent()
    assert market_sale(first) == held
    assert first is not None
    return table, held, first


def test_an_exit_that_is_refused_for_its_time_is_sent_again_under_another_name() -> None:
    table, held, first = selling()
    table.desk.placed(first.client_ids, LATE, table.now)
    assert table.sent() is None
    measured(table)
    second = table.sent()
    assert market_sale(second) == held
    assert second is not None
    assert second.client_ids != first.client_ids
    table.fill(second, held, "100", Status.FILLED)
    assert table.sent() is None
    assert table.desk.ledger.position == 0


def test_an_entry_that_is_refused_for_its_time_is_never_sent_again() -> None:
    table = Table(RULES)
    table.desk.decide(signal(0, BUY), bar(0, BUY), table.now)
    entry = table.sent()
    assert entry is not None
    table.desk.placed(entry.client_ids, LATE, table.now)
    measured(table)
    assert table.sent() is None
    assert table.core.switch == OrderState.RESUMED


NO_COINS = Refused(-2010, "Account has insufficient balance for requested action.")


def test_an_exit_sells_what_is_left_where_somebody_else_has_sold_or_locked_our_coins() -> None:
    table, held, first = selling()
    table.desk.placed(first.client_ids, NO_COINS, table.now)
    assert table.sent() is None
    # A foreign order locks 60 of them, 10 are gone.
    free = held - 70
    table.t += 2_000
    amounts = {"USDT": (Decimal(0), Decimal(0)), "BTC": (free, Decimal(60))}
    table.core.balances(Balances(amounts, table.t))
    table.desk.tick(table.now)
    second = table.sent()
    assert market_sale(second) == free
    assert second is not None
    assert second.client_ids != first.client_ids
    table.fill(second, free, "100", Status.FILLED)
    assert table.sent() is None
    assert table.desk.ledger.position == 70
    assert table.core.switch == OrderState.RESUMED


def test_an_order_that_goes_by_the_name_of_its_cancel_is_still_ours() -> None:
    table = Table(RULES._replace(limit=0.001))
    table.desk.decide(signal(0, BUY), bar(0, BUY), table.now)
    entry = table.sent()
    assert entry is not None
    assert isinstance(entry.order, NewOrder)
    assert entry.order.quantity is not None
    report = OrderReport(
        symbol=SYMBOL, order_id=77, list_id=None, client_id=entry.order.client_id, side=Side.BUY,
        type=OrderType.LIMIT, status=Status.NEW, quantity=entry.order.quantity,
        price=Decimal("99.9"), stop_price=Decimal(0), executed=Decimal(0),
        executed_quote=Decimal(0), time_ms=table.t, update_ms=table.t,
    )  # fmt: skip
    table.desk.placed(entry.client_ids, [report], table.now)
    table.core.take()
    renamed = replace(report, client_id="a-cancel", status=Status.CANCELED)
    table.desk.reported(renamed, table.now)
    out = table.core.take()
    assert [line.state for line in out.lines] == [OrderState.CANCELED]
    assert "foreign_order" not in [news.code for news in out.news]
    table.desk.reported(replace(renamed, order_id=78), table.now)
    assert [news.code for news in table.core.take().news] == ["foreign_order"]


def test_behind_a_new_account_no_news_of_the_old_one_counts() -> None:
    """The exchange may be the same one: the coins were moved away, its orders are still told."""
    table = Table(RULES)
    held = table.bought()
    old = table.desk.ledger.orders[table.core.take().lines[-1].client_id]
    # Of one more fill of it nothing but the amount is known yet.
    report = OrderReport(
        symbol=SYMBOL, order_id=old.order_id, list_id=None, client_id=old.client_id, side=Side.BUY,
        type=OrderType.MARKET, status=Status.FILLED, quantity=held, price=Decimal(0),
        stop_price=Decimal(0), executed=held + 1, executed_quote=Decimal(0), time_ms=table.t,
        update_ms=table.t,
    )  # fmt: skip
    table.desk.reported(report, table.now)
    command = Command(Word.RESUME, f"RESUME 1 itb {NEW_ACCOUNT}")
    table.core.command(command, table.now)
    table.core.take()
    fills = tuple(
        Fill(
            symbol=SYMBOL, trade_id=number, order_id=old.order_id, side=Side.BUY,
            price=Decimal(100), quantity=quantity, quote_quantity=100 * quantity, fee=Decimal(0),
            fee_asset="USDT", time_ms=table.t, is_maker=False,
        )
        for number, quantity in ((1, held), (9, Decimal(1)))
    )  # fmt: skip
    table.desk.swept([replace(report, fills=fills)], table.now)
    table.desk.filled(old.client_id, fills, table.now)
    table.t += MINUTE
    table.desk.tick(table.now)
    assert table.desk.ledger.position == 0
    assert (table.core.switch, table.core.take().requests) == (OrderState.RESUMED, [])
    table.desk.reported(replace(report, client_id="by-hand"), table.now)
    assert [news.code for news in table.core.take().news] == ["foreign_order"]


def test_of_an_order_whose_intent_is_lost_the_journal_tells_what_the_desk_knows() -> None:
    table = Table(RULES)
    table.desk.expect(signal(0, BUY), table.now)
    name = next(iter(table.desk.ledger.open))
    report = OrderReport(
        symbol=SYMBOL, order_id=77, list_id=None, client_id=name, side=Side.BUY,
        type=OrderType.LIMIT, status=Status.NEW, quantity=Decimal("1.50000000"),
        price=Decimal("99.90000000"), stop_price=Decimal(0), executed=Decimal(0),
        executed_quote=Decimal(0), time_ms=table.t, update_ms=table.t,
    )  # fmt: skip
    for status in (Status.NEW, Status.CANCELED):
        table.desk.reported(replace(report, status=status), table.now)
        known = table.desk.ledger
        lines = table.core.out.lines
        assert ledger_of(lines, "BTC", "USDT", "paper").carried() == known.carried()
        told = known.orders[name]
        assert (told.type, told.quantity, told.price, told.stop_price) == (
            "LIMIT", Decimal("1.5"), Decimal("99.9"), None,
        )  # fmt: skip


def test_books_that_do_not_tell_the_fills_yet_are_asked_again_in_a_while_and_then_it_is_told() -> (
    None
):
    table = Table(RULES)
    table.desk.decide(signal(0, BUY), bar(0, BUY), table.now)
    entry = table.sent()
    assert entry is not None
    assert isinstance(entry.order, NewOrder)
    assert entry.order.quantity is not None
    held, name = entry.order.quantity, entry.order.client_id
    report = OrderReport(
        symbol=SYMBOL, order_id=1, list_id=None, client_id=name, side=Side.BUY,
        type=OrderType.MARKET, status=Status.FILLED, quantity=held, price=Decimal(0),
        stop_price=Decimal(0), executed=held, executed_quote=Decimal(0), time_ms=table.t,
        update_ms=table.t,
    )  # fmt: skip
    table.desk.placed(entry.client_ids, [report], table.now)
    asked: list[int] = []
    news = []
    begun = table.t
    while table.t < begun + 90_000:
        out = table.core.take()
        news += [one.text for one in out.news if one.code == "order_unknown"]
        for _, request in out.requests:
            assert isinstance(request, FetchFills)
            asked.append(table.t - begun)
            table.desk.filled(name, (), table.now)
        table.t += 250
        table.desk.tick(table.now)
    assert asked == list(range(0, 90_000, 2_000))
    (said,) = news
    assert f"99 of order {name} filled" in said
    fill = Fill(
        symbol=SYMBOL, trade_id=1, order_id=1, side=Side.BUY, price=Decimal(100), quantity=held,
        quote_quantity=100 * held, fee=Decimal(0), fee_asset="USDT", time_ms=begun, is_maker=False,
    )  # fmt: skip
    table.desk.filled(name, (fill,), table.now)
    assert table.desk.ledger.position == held
    assert table.desk.ledger.orders[name].state == OrderState.FILLED


MISFIT = Refused(-1013, "Filter failure: LOT_SIZE")
COARSE = replace(FILTERS, lot=Grid(Decimal("0.001"), Decimal(9000), Decimal("0.001")))


def refused_for_its_size(table: Table, place: Place) -> None:
    """The refusal, after which the rules are asked for and nothing is sent."""
    table.desk.placed(place.client_ids, MISFIT, table.now)
    requests = [request for _, request in table.core.take().requests]
    assert requests == [FetchRules()]


@pytest.mark.parametrize("is_changed", [True, False])
def test_an_exit_that_a_filter_refuses_is_sent_once_more_by_the_newest_rules(
    is_changed: bool,
) -> None:
    table, held, first = selling()
    refused_for_its_size(table, first)
    table.desk.ruled(COARSE if is_changed else replace(FILTERS), table.now)
    assert table.sent() is None
    table.t += 2_000
    table.desk.tick(table.now)
    second = table.sent()
    assert second is not None
    assert second.client_ids != first.client_ids
    assert market_sale(second) == (COARSE if is_changed else FILTERS).floor_quantity(
        held, at_market=True
    )
    if not is_changed:
        table.desk.placed(second.client_ids, MISFIT, table.now)
        table.t += 10_000
        table.desk.tick(table.now)
        assert table.sent() is None  # the next candle decides
    assert table.core.switch == OrderState.RESUMED


@pytest.mark.parametrize("is_changed", [True, False])
def test_protection_that_a_filter_refuses_is_tried_by_the_newest_rules_before_it_is_sold(
    is_changed: bool,
) -> None:
    table = Table(STOPS)
    held = table.bought()
    pair = table.sent()
    assert pair is not None
    refused_for_its_size(table, pair)
    table.desk.ruled(COARSE if is_changed else replace(FILTERS), table.now)
    table.t += 2_000
    table.desk.tick(table.now)
    second = table.sent()
    assert second is not None
    assert isinstance(second.order, NewOco)
    assert second.order.quantity == (COARSE if is_changed else FILTERS).floor_quantity(held)
    if not is_changed:
        table.desk.placed(second.client_ids, MISFIT, table.now)
        assert market_sale(table.sent()) == held


def test_while_the_exchange_takes_no_calls_nothing_is_written_that_cannot_be_sent() -> None:
    table = Table(STOPS)
    table.bought()
    pair = table.sent()
    assert pair is not None
    stop = NotSent("no calls for 40 s", passes=True, wait_ms=40_000)
    table.desk.placed(pair.client_ids, stop, table.now)
    table.core.take()
    for _ in range(39):
        table.t += 1_000
        table.desk.tick(table.now)
        out = table.core.take()
        assert (out.lines, out.requests) == ([], [])
    table.t += 1_000
    table.desk.tick(table.now)
    again = table.sent()
    assert again is not None
    assert isinstance(again.order, NewOco)
