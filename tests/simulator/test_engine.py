"""The matching engine's rules, for any course of requests and public trades."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from simulator.exchange.amounts import UNIT, text, times, units
from simulator.exchange.effects import Effect, KeySet, Opened, SymbolSet, decode, encode
from simulator.exchange.engine import Engine, NewOrder, PublicTrade
from simulator.exchange.orders import STOPS, Account, Order, Side, Status, Stp, Type
from simulator.exchange.state import Report, State
from simulator.exchange.symbols import Refused, Symbol

CENT, LOT = units("0.01"), units("0.001")
START = units("100")
INFO: dict[str, Any] = {
    "symbol": "AAAUSDT",
    "status": "TRADING",
    "baseAsset": "AAA",
    "quoteAsset": "USDT",
    "orderTypes": [kind.value for kind in Type],
    "defaultSelfTradePreventionMode": "EXPIRE_MAKER",
    "allowedSelfTradePreventionModes": [mode.value for mode in Stp if mode is not Stp.NONE],
    "filters": [
        {
            "filterType": "PRICE_FILTER",
            "minPrice": "0.01",
            "maxPrice": "100000",
            "tickSize": "0.01",
        },
        {"filterType": "LOT_SIZE", "minQty": "0.001", "maxQty": "9000", "stepSize": "0.001"},
        {
            "filterType": "NOTIONAL",
            "minNotional": "1",
            "applyMinToMarket": True,
            "maxNotional": "900000",
            "applyMaxToMarket": False,
            "avgPriceMins": 5,
        },
        {"filterType": "MAX_NUM_ORDERS", "maxNumOrders": 12},
        {"filterType": "MAX_NUM_ALGO_ORDERS", "maxNumAlgoOrders": 4},
        {"filterType": "MAX_NUM_ORDER_LISTS", "maxNumOrderLists": 2},
        {"filterType": "MAX_POSITION", "maxPosition": "90"},
        {
            "filterType": "TRAILING_DELTA",
            "minTrailingAboveDelta": 10,
            "maxTrailingAboveDelta": 2000,
            "minTrailingBelowDelta": 10,
            "maxTrailingBelowDelta": 2000,
        },
    ],
}
NAME = INFO["symbol"]


@dataclass
class Quotes:
    """A small book around a price."""

    market_ms: int = 0
    last: int = START
    next_trade_id: int = 1
    bids: list[tuple[int, int]] = field(default_factory=list)
    asks: list[tuple[int, int]] = field(default_factory=list)

    @property
    def average(self) -> int:
        return self.last

    def _side(self, taker: Side) -> list[tuple[int, int]]:
        return self.asks if taker is Side.BUY else self.bids

    def best(self, taker: Side) -> int:
        side = self._side(taker)
        return side[0][0] if side else self.last

    def levels(self, taker: Side) -> Iterator[tuple[int, int]]:
        yield from self._side(taker)

    def amount(self, side: Side, price: int) -> int:
        return dict(self.bids if side is Side.BUY else self.asks).get(price, 0)


def book_around(last: int, market_ms: int, amounts: list[int]) -> Quotes:
    half = len(amounts) // 2
    return Quotes(
        market_ms,
        last,
        market_ms + 1,
        [(last - (2 * i) * CENT, q * LOT + 7) for i, q in enumerate(amounts[:half])],
        [(last + (2 * i + 1) * CENT, q * LOT + 7) for i, q in enumerate(amounts[half:])],
    )


def snapshot(state: State) -> Any:
    """All that a state says, comparable."""
    return {
        "accounts": {
            uid: (
                account.rates,
                {name: vars_of(key) for name, key in account.keys.items()},
                account.balances,
                {s: [o.ticket.order_id for o in some] for s, some in account.orders.items()},
                list(account.open),
                account.open_ids,
                account.known_ids,
                account.trades,
                list(account.open_lists),
                account.update_ms,
            )
            for uid, account in state.accounts.items()
        },
        "orders": {number: vars_of(order) for number, order in state.orders.items()},
        "lists": {number: vars_of(one) for number, one in state.lists.items()},
        "books": {
            (symbol, side): [entry[1] for entry in entries]
            for symbol, sides in state.books.items()
            for side, entries in sides.items()
            if entries
        },
        "armed": {s: [o.ticket.order_id for o in some] for s, some in state.armed.items() if some},
        "money": (state.fees, state.clearing),
        "counters": (
            state.last_order_id,
            state.last_list_id,
            state.executions,
            state.trade_ids,
            state.played_ms,
            state.prevented,
        ),
    }


def vars_of(thing: Any) -> dict[str, Any]:
    """Fields, but for the queue ahead and a trailing stop's extreme, which trades move unsaid."""
    return {
        name: list(value) if isinstance(value, list) else value
        for name in thing.__slots__
        if name not in ("queue", "extreme")
        for value in (getattr(thing, name),)
    }


PRICES = st.integers(-40, 40)
QUANTITIES = st.integers(0, 12_000)
SIDES = st.sampled_from(list(Side))
MODES = st.sampled_from(list(Stp))
IDS = st.sampled_from(["a", "b", "c", "d", "e", "f", "g", "h"])
TIFS = st.sampled_from(["GTC", "IOC", "FOK"])
AMOUNTS = st.lists(st.integers(1, 9_000), min_size=4, max_size=12)


class Trading(RuleBasedStateMachine):
    """Three accounts, one market."""

    def __init__(self) -> None:
        super().__init__()
        self.state = State({NAME: Symbol(INFO)})
        self.engine = Engine(self.state)
        self.journal: list[Effect] = []
        self.deposits: dict[str, int] = {}
        self.now_ms = 1_000_000
        self.market_ms = 0
        self.quotes = book_around(START, 0, [500, 700, 900, 400, 600, 800])
        self.reports: dict[int, list[Report]] = {}
        self.last_execution = 0

    @initialize(slippage=st.sampled_from([0, 50_000]))
    def open(self, slippage: int) -> None:
        self.engine.slippage = slippage
        for uid, rates in (
            (1, (100_000, 100_000, 0, 0)),
            (2, (75_000, 150_000, 10_000, 20_000)),
            (3, (0, 0, 0, 0)),
        ):
            self.engine.do(Opened(uid, *rates))
            self.engine.do(KeySet(uid, f"k{uid}", "s", "", True, False, False, True))
            for asset, amount in (("USDT", units("100000")), ("AAA", units("50"))):
                self.move(uid, asset, amount)
        self.engine.state.symbols[NAME] = Symbol(INFO)
        self.settle()

    def move(self, uid: int, asset: str, amount: int) -> None:
        self.engine.move_funds(self.state.accounts[uid], asset, amount, self.now_ms)
        self.deposits[asset] = self.deposits.get(asset, 0) + amount

    def settle(self) -> list[Effect]:
        """End the transaction."""
        changes = self.engine.take()
        self.journal += changes.effects
        for told in changes.told:
            if isinstance(told, Report):
                self.reports.setdefault(told.order.ticket.order_id, []).append(told)
                assert told.execution_id > self.last_execution
                self.last_execution = told.execution_id
        return changes.effects

    def attempt(self, act: Any) -> bool:
        """A request: what is refused changes nothing."""
        self.now_ms += 1
        before = snapshot(self.state)
        try:
            act()
        except Refused as refused:
            assert refused.code in (-1013, -2010, -2011)
            assert self.settle() == []
            assert snapshot(self.state) == before
            return False
        self.settle()
        return True

    def place(self, uid: int, **given: Any) -> None:
        order = NewOrder(symbol=NAME, **given)
        account = self.state.accounts[uid]
        self.attempt(lambda: self.engine.place(account, order, self.quotes, self.now_ms))

    @rule(uid=st.integers(1, 3), side=SIDES, quantity=QUANTITIES, client=IDS, mode=MODES)
    def market(self, uid: int, side: Side, quantity: int, client: str, mode: Stp) -> None:
        self.place(
            uid, side=side, type=Type.MARKET, quantity=quantity * LOT, client_id=client, stp=mode
        )

    @rule(uid=st.integers(1, 3), side=SIDES, quote=st.integers(1, 9_000_000), mode=MODES)
    def market_by_quote(self, uid: int, side: Side, quote: int, mode: Stp) -> None:
        self.place(
            uid, side=side, type=Type.MARKET, quote_quantity=quote * CENT, client_id="q", stp=mode
        )

    @rule(
        uid=st.integers(1, 3),
        side=SIDES,
        kind=st.sampled_from([Type.LIMIT, Type.LIMIT, Type.LIMIT_MAKER]),
        tif=TIFS,
        ticks=PRICES,
        quantity=QUANTITIES,
        client=IDS,
        mode=MODES,
    )
    def limit(
        self,
        uid: int,
        side: Side,
        kind: Type,
        tif: str,
        ticks: int,
        quantity: int,
        client: str,
        mode: Stp,
    ) -> None:
        self.place(
            uid,
            side=side,
            type=kind,
            tif=tif if kind is Type.LIMIT else "GTC",
            price=self.quotes.last + ticks * CENT,
            quantity=quantity * LOT,
            client_id=client,
            stp=mode,
        )

    @rule(uid=st.integers(1, 3), side=SIDES, ticks=st.integers(1, 9), more=st.integers(1, 999))
    def take_and_rest(self, uid: int, side: Side, ticks: int, more: int) -> None:
        """A limit order that takes all there is at better prices, and rests with what is left."""
        is_buy = side is Side.BUY
        limit = self.quotes.last + (ticks if is_buy else -ticks) * CENT
        there = sum(
            quantity // LOT
            for price, quantity in (self.quotes.asks if is_buy else self.quotes.bids)
            if (price <= limit if is_buy else price >= limit)
        )
        self.place(
            uid, side=side, type=Type.LIMIT, price=limit, quantity=(there + more) * LOT,
            client_id=f"rest{self.now_ms}",
        )  # fmt: skip

    @rule(
        uid=st.integers(1, 3),
        side=SIDES,
        kind=st.sampled_from(sorted(STOPS)),
        ticks=PRICES,
        beyond=PRICES,
        trailing=st.sampled_from([0, 0, 10, 20]),
        quantity=QUANTITIES,
        client=IDS,
    )
    def stop(
        self,
        uid: int,
        side: Side,
        kind: Type,
        ticks: int,
        beyond: int,
        trailing: int,
        quantity: int,
        client: str,
    ) -> None:
        is_limit = kind in (Type.STOP_LOSS_LIMIT, Type.TAKE_PROFIT_LIMIT)
        stop_price = self.quotes.last + ticks * CENT
        self.place(
            uid,
            side=side,
            type=kind,
            stop_price=0 if trailing and not is_limit else stop_price,
            trailing_bips=trailing,
            price=stop_price + beyond * CENT if is_limit else 0,
            quantity=quantity * LOT,
            client_id=client,
        )

    @rule(
        uid=st.integers(1, 3),
        side=SIDES,
        up=st.integers(1, 30),
        down=st.integers(1, 30),
        beyond=st.integers(-9, 9),
        as_limit=st.booleans(),
        quantity=QUANTITIES,
        client=IDS,
    )
    def oco(
        self,
        uid: int,
        side: Side,
        up: int,
        down: int,
        beyond: int,
        as_limit: bool,
        quantity: int,
        client: str,
    ) -> None:
        last = self.quotes.last
        edge, trigger = (
            (last + up * CENT, last - down * CENT)
            if side is Side.SELL
            else (last - down * CENT, last + up * CENT)
        )
        gain = NewOrder(
            symbol=NAME, client_id=client + "g", side=side, type=Type.LIMIT_MAKER,
            quantity=quantity * LOT, price=edge,
        )  # fmt: skip
        loss = NewOrder(
            symbol=NAME, client_id=client + "l", side=side,
            type=Type.STOP_LOSS_LIMIT if as_limit else Type.STOP_LOSS,
            quantity=quantity * LOT, stop_price=trigger,
            price=trigger + beyond * CENT if as_limit else 0,
        )  # fmt: skip
        above, below = (gain, loss) if side is Side.SELL else (loss, gain)
        account = self.state.accounts[uid]
        self.attempt(
            lambda: self.engine.place_oco(account, client, above, below, self.quotes, self.now_ms)
        )

    @precondition(lambda self: self.state.orders)
    @rule(which=st.integers(0, 10**6), whole_list=st.booleans())
    def cancel(self, which: int, whole_list: bool) -> None:
        order = self.state.orders[1 + which % len(self.state.orders)]
        number = order.ticket.list_id
        if whole_list and number >= 0:
            one = self.state.lists[number]
            done = self.attempt(lambda: self.engine.cancel_list(one, "x", self.now_ms))
        else:
            was_open = order.is_open
            done = self.attempt(lambda: self.engine.cancel(order, "x", self.now_ms))
            assert done == was_open
        if done:
            assert not order.is_open

    @rule(uid=st.integers(1, 3), asset=st.sampled_from(["USDT", "AAA"]),
          amount=st.integers(-(10**13), 10**13))  # fmt: skip
    def funds(self, uid: int, asset: str, amount: int) -> None:
        if self.attempt(
            lambda: self.engine.move_funds(self.state.accounts[uid], asset, amount, self.now_ms)
        ):
            self.deposits[asset] += amount

    @rule(steps=st.lists(st.tuples(st.integers(-15, 15), st.integers(1, 9_000), st.booleans()),
                         min_size=1, max_size=6), amounts=AMOUNTS)  # fmt: skip
    def trades(self, steps: list[tuple[int, int, bool]], amounts: list[int]) -> None:
        """The market moves: a resting order never gets more than the trades had."""
        self.now_ms += 1
        last = self.quotes.last
        public: list[PublicTrade] = []
        for step, lots, seller in steps:
            last = max(50 * UNIT, min(200 * UNIT, last + step * CENT))
            self.market_ms += 10
            public.append(PublicTrade(self.market_ms, last, lots * LOT + 3, self.market_ms, seller))
        books = {t.time_ms: book_around(t.price, t.time_ms, amounts) for t in public}
        waiting = {
            order.ticket.order_id: order.executed
            for order in self.state.orders.values()
            if order.is_on_book
        }
        self.engine.play(NAME, public, books.__getitem__, self.now_ms)
        self.settle()
        filled = sum(
            fill.quantity
            for number, executed in waiting.items()
            for fill in self.state.orders[number].fills
            if fill.counter == 0 and fill.time_ms == self.now_ms
        )
        if self.state.symbols[NAME].status == "TRADING":
            assert filled <= sum(trade.quantity for trade in public)
        else:
            assert filled == 0
        self.quotes = books[self.market_ms]

    @rule(status=st.sampled_from(["TRADING", "TRADING", "HALT", "CANCEL_ONLY"]))
    def set_status(self, status: str) -> None:
        self.engine.do(SymbolSet(NAME, json.dumps({**INFO, "status": status})))
        self.settle()

    # what always holds

    @invariant()
    def value_is_conserved(self) -> None:
        for asset, deposited in self.deposits.items():
            held = sum(
                sum(account.balances.get(asset, (0, 0))) for account in self.state.accounts.values()
            )
            assert held + self.state.fees.get(asset, 0) + self.state.clearing.get(asset, 0) == (
                deposited
            )

    @invariant()
    def balances_are_what_orders_hold(self) -> None:
        for account in self.state.accounts.values():
            locked: dict[str, int] = {}
            for order in account.open.values():
                asset = self.state.lock_asset(order.ticket)
                locked[asset] = locked.get(asset, 0) + order.locked
            for asset, (free, held) in account.balances.items():
                assert free >= 0
                assert held == locked.get(asset, 0)

    @invariant()
    def orders_are_the_sum_of_their_fills_and_reports(self) -> None:
        for order in self.state.orders.values():
            ticket = order.ticket
            assert order.executed == sum(f.quantity for f in order.fills)
            assert order.quote == sum(f.quote for f in order.fills)
            assert order.left >= 0
            assert order.is_open == (order.ended_ms is None)
            if order.status is Status.FILLED:
                assert order.executed == ticket.quantity - order.prevented
            if not order.is_open:
                assert order.locked == 0
                assert not order.is_on_book
            reports = self.reports[ticket.order_id]
            assert reports[0].kind == "NEW"
            last = reports[-1]
            assert (last.executed, last.quote, last.status) == (
                order.executed, order.quote, order.status,
            )  # fmt: skip
            for fill in order.fills:
                self.check_fill(order, fill.price, fill.counter)
                assert fill.quote == times(fill.price, fill.quantity)
                assert fill.quantity % LOT == 0
            self.check_kind(order)

    def check_fill(self, order: Order, price: int, counter: int) -> None:
        ticket = order.ticket
        if ticket.price:
            better = price <= ticket.price if ticket.side is Side.BUY else price >= ticket.price
            assert better
        if counter:
            assert self.state.orders[counter].ticket.account != ticket.account

    def check_kind(self, order: Order) -> None:
        ticket = order.ticket
        if ticket.type is Type.MARKET or (ticket.type is Type.LIMIT and ticket.tif != "GTC"):
            assert not order.is_open
            assert not any(fill.is_maker for fill in order.fills)
        if ticket.tif == "FOK":
            assert order.executed in (0, ticket.quantity - order.prevented)
        if ticket.type is Type.LIMIT_MAKER:
            assert all(fill.is_maker for fill in order.fills)
        if order.is_open and ticket.list_id < 0 and ticket.price:
            is_buy = ticket.side is Side.BUY
            assert order.locked == (times(ticket.price, order.left) if is_buy else order.left)

    @invariant()
    def trades_are_numbered_in_order(self) -> None:
        for account in self.state.accounts.values():
            for fills in account.trades.values():
                numbers = [fill.trade_id for fill in fills]
                assert numbers == sorted(set(numbers))

    @invariant()
    def fees_are_of_what_was_received(self) -> None:
        paid: dict[str, int] = {}
        for account in self.state.accounts.values():
            rates = account.rates
            for fills in account.trades.values():
                for fill in fills:
                    is_buy = self.state.orders[fill.order_id].ticket.side is Side.BUY
                    rate = (rates.maker if fill.is_maker else rates.taker) + (
                        rates.buyer if is_buy else rates.seller
                    )
                    received = fill.quantity if is_buy else fill.quote
                    assert fill.fee_asset == ("AAA" if is_buy else "USDT")
                    assert fill.fee == received * rate // UNIT
                    paid[fill.fee_asset] = paid.get(fill.fee_asset, 0) + fill.fee
        assert {a: n for a, n in self.state.fees.items() if n} == {
            a: n for a, n in paid.items() if n
        }

    @invariant()
    def lists_end_together(self) -> None:
        for one in self.state.lists.values():
            states = [self.state.orders[number] for number in one.order_ids]
            assert (one.ended_ms is None) == any(order.is_open for order in states)
            assert sum(bool(order.executed) for order in states) <= 1
            if any(order.executed or not order.is_open for order in states):
                assert sum(order.is_open for order in states) <= 1

    @invariant()
    def filters_hold(self) -> None:
        for account in self.state.accounts.values():
            assert len(account.open) <= 12
            assert sum(o.ticket.type in STOPS for o in account.open.values()) <= 4 + 1

    def teardown(self) -> None:
        """The journal, written and read, gives the same state."""
        again = State({NAME: Symbol(INFO)})
        for effect in self.journal:
            again.apply(decode(json.loads(json.dumps(encode(effect)))))
        assert snapshot(again) == snapshot(self.state)


Trading.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
test_trading = pytest.mark.timeout(300)(Trading.TestCase)


def new_engine() -> tuple[Engine, Account]:
    engine = Engine(State({NAME: Symbol(INFO)}))
    engine.do(Opened(1, 100_000, 100_000, 0, 0))
    account = engine.state.accounts[1]
    for asset, amount in (("USDT", "100000"), ("AAA", "50")):
        engine.move_funds(account, asset, units(amount), 1)
    return engine, account


@pytest.mark.parametrize(
    ("given", "expected"),
    [("0", 0), ("1", UNIT), ("0.00000001", 1), ("12.5", 1_250_000_000), ("007.10", 710_000_000),
     ("1.000000000000", UNIT)],
)  # fmt: skip
def test_amounts_are_read_exactly(given: str, expected: int) -> None:
    assert units(given) == expected
    assert units(text(expected)) == expected


@pytest.mark.parametrize("given", ["", ".", "1e3", "-1", "1,5", "0.000000001", "٣", "1.2.3", " 1"])
def test_what_is_no_amount_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match="decimal"):
        units(given)


def test_a_trade_at_the_price_fills_only_behind_the_lots_that_were_there_before() -> None:
    engine, account = new_engine()
    quotes = book_around(START, 5, [500, 500, 500, 500])  # the best bid shows 500 lots at START
    order = engine.place(
        account,
        NewOrder(
            symbol=NAME, client_id="a", side=Side.BUY, type=Type.LIMIT, price=START,
            quantity=300 * LOT,
        ),
        quotes,
        1,
    )  # fmt: skip
    ahead = 500 * LOT + 7

    def hit(market_ms: int, lots: int, price: int = START) -> int:
        trade = PublicTrade(market_ms, price, lots * LOT, market_ms, True)
        engine.play(NAME, [trade], lambda _: quotes, 2)
        return order.executed

    assert hit(5, 900) == 0  # a trade from before the order
    assert hit(6, 400) == 0
    assert order.queue == ahead - 400 * LOT
    assert hit(7, 201) == 100 * LOT  # 100.99993 lots came to it: whole lots only
    buyer = PublicTrade(8, START, 900 * LOT, 8, False)
    engine.play(NAME, [buyer], lambda _: quotes, 2)
    assert order.executed == 100 * LOT  # a buyer at this price takes from the other side
    assert hit(9, 50, START - CENT) == 150 * LOT  # through the price: no queue
    assert all(fill.price == START for fill in order.fills)


def test_trades_that_were_played_are_not_played_again() -> None:
    """After a crash between two writes the same trades come again."""
    engine, account = new_engine()
    quotes = book_around(START, 5, [1, 1])
    order = engine.place(
        account,
        NewOrder(
            symbol=NAME, client_id="a", side=Side.SELL, type=Type.LIMIT,
            price=START + 10 * CENT, quantity=300 * LOT,
        ),
        quotes,
        1,
    )  # fmt: skip
    through = [PublicTrade(t, START + 20 * CENT, 10 * LOT, t, False) for t in (6, 7, 7)]
    engine.play(NAME, through, lambda _: quotes, 2)
    assert order.executed == 30 * LOT  # two trades of one millisecond are two trades
    engine.play(NAME, through, lambda _: quotes, 2)
    assert order.executed == 30 * LOT


def test_a_trailing_stop_follows_the_best_price() -> None:
    engine, account = new_engine()
    quotes = book_around(START, 5, [500, 500, 500, 500])
    order = engine.place(
        account,
        NewOrder(
            symbol=NAME, client_id="a", side=Side.SELL, type=Type.STOP_LOSS, trailing_bips=100,
            quantity=10 * LOT,
        ),
        quotes,
        1,
    )  # fmt: skip

    def last(market_ms: int, price: str) -> Status:
        trade = PublicTrade(market_ms, units(price), LOT, market_ms, False)
        engine.play(NAME, [trade], lambda _: quotes, 2)
        return order.status

    assert last(6, "100") is Status.NEW
    assert last(7, "110") is Status.NEW
    assert last(8, "108.91") is Status.NEW  # 0.99 % below 110
    assert last(9, "108.90") is Status.FILLED  # 1 % below 110
    with pytest.raises(Refused, match="TRAILING_DELTA"):
        engine.place(
            account,
            NewOrder(
                symbol=NAME, client_id="b", side=Side.SELL, type=Type.STOP_LOSS, trailing_bips=9,
                quantity=10 * LOT,
            ),
            quotes,
            1,
        )  # fmt: skip
