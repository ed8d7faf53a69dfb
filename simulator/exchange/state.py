"""The state of the exchange: the fold of its effects.

Balances are conserved: what users and fees hold, plus what the market holds (`clearing`, the other
side of every fill: negative where it gave more than it took), changes by deposits and withdrawals
only.
"""

import json
from bisect import bisect_left, insort
from collections.abc import Callable
from typing import Any, NamedTuple

from simulator.exchange.amounts import times
from simulator.exchange.effects import (
    Accepted,
    Booked,
    Effect,
    Ended,
    Filled,
    KeySet,
    ListEnded,
    ListOpened,
    Moved,
    Opened,
    Played,
    Prevented,
    Rejected,
    SymbolSet,
    TrailingStarted,
    Triggered,
)
from simulator.exchange.orders import (
    Account,
    Fill,
    Key,
    Order,
    OrderList,
    Rates,
    Side,
    Status,
    Ticket,
    Type,
)
from simulator.exchange.symbols import Symbol


class Report(NamedTuple):
    """One executionReport: an order just after an effect. kind: NEW, TRADE, CANCELED, EXPIRED,
    REJECTED or TRADE_PREVENTION."""

    order: Order
    kind: str
    status: Status
    executed: int
    quote: int
    execution_id: int
    is_on_book: bool
    working_ms: int
    prevented: int
    time_ms: int
    effect: Effect


class ListReport(NamedTuple):
    """One listStatus."""

    order_list: OrderList
    time_ms: int
    is_done: bool


class BalanceReport(NamedTuple):
    """One balanceUpdate."""

    uid: int
    asset: str
    delta: int
    time_ms: int


Told = Report | ListReport | BalanceReport


class State:
    """Everything that the exchange knows, by symbol, order id and account."""

    def __init__(self, symbols: dict[str, Symbol]) -> None:
        self.symbols = symbols
        self.accounts: dict[int, Account] = {}
        self.keys: dict[str, Account] = {}
        self.orders: dict[int, Order] = {}
        self.lists: dict[int, OrderList] = {}
        self.books: dict[str, dict[Side, list[tuple[int, int, Order]]]] = {}
        self.armed: dict[str, list[Order]] = {}
        self.fees: dict[str, int] = {}
        self.clearing: dict[str, int] = {}
        self.trade_ids: dict[str, int] = {}
        self.played_ms: dict[str, int] = {}
        self.prevented: list[Prevented] = []
        self.prevented_matches = 0
        self.last_order_id = 0
        self.last_list_id = 0
        self.executions = 0
        self.told: list[Told] = []
        self.touched: dict[int, set[str]] = {}
        self._apply: dict[type, Callable[[Any], None]] = {
            Opened: self._opened,
            KeySet: self._key_set,
            Moved: self._moved,
            Accepted: self._accepted,
            Rejected: self._rejected,
            Booked: self._booked,
            Filled: self._filled,
            Prevented: self._prevented,
            Triggered: self._triggered,
            TrailingStarted: self._trailing_started,
            Ended: self._ended,
            ListOpened: self._list_opened,
            ListEnded: self._list_ended,
            Played: self._played,
            SymbolSet: self._symbol_set,
        }

    def apply(self, effect: Effect) -> None:
        """Change the state; what users are to be told is appended to `told` and `touched`."""
        self._apply[type(effect)](effect)

    def book(self, symbol: str, side: Side) -> list[tuple[int, int, Order]]:
        """Resting orders of a side, best first: (price key, order id, order)."""
        sides = self.books.get(symbol)
        if sides is None:
            sides = self.books[symbol] = {Side.BUY: [], Side.SELL: []}
        return sides[side]

    # accounts

    def _opened(self, effect: Opened) -> None:
        self.accounts[effect.uid] = Account(effect.uid, Rates(*effect[1:]))

    def _key_set(self, effect: KeySet) -> None:
        account = self.accounts[effect.uid]
        account.keys[effect.key] = Key(*effect[2:])
        self.keys[effect.key] = account

    def _moved(self, effect: Moved) -> None:
        account = self.accounts[effect.uid]
        self._add(account, effect.asset, effect.delta)
        account.update_ms = max(account.update_ms, effect.time_ms)
        self.told.append(BalanceReport(effect.uid, effect.asset, effect.delta, effect.time_ms))

    def _held(self, account: Account, asset: str) -> list[int]:
        held = account.balances.get(asset)
        if held is None:
            held = account.balances[asset] = [0, 0]
        touched = self.touched.get(account.uid)
        if touched is None:
            touched = self.touched[account.uid] = set()
        touched.add(asset)
        return held

    def _add(self, account: Account, asset: str, amount: int) -> None:
        self._held(account, asset)[0] += amount

    def lock_asset(self, ticket: Ticket) -> str:
        """What an order holds while it is open: quote of a BUY, base of a SELL."""
        symbol = self.symbols[ticket.symbol]
        return symbol.quote if ticket.side is Side.BUY else symbol.base

    def _relock(self, order: Order, lock: int) -> None:
        """Hold `lock` from now on; the difference comes from, or goes to, the free balance."""
        ticket = order.ticket
        held = self._held(self.accounts[ticket.account], self.lock_asset(ticket))
        held[0] += order.locked - lock
        held[1] += lock - order.locked
        order.locked = lock

    # orders

    def _tell(
        self, order: Order, kind: str, effect: Effect, time_ms: int, *, on_book: bool
    ) -> None:
        self.executions += 1
        order.update_ms = time_ms
        account = self.accounts[order.ticket.account]
        account.update_ms = max(account.update_ms, time_ms)
        self.told.append(
            Report(
                order,
                kind,
                order.status,
                order.executed,
                order.quote,
                self.executions,
                on_book,
                order.working_ms,
                order.prevented,
                time_ms,
                effect,
            )
        )

    def _accepted(self, effect: Accepted) -> None:
        ticket = effect.ticket
        account = self.accounts[ticket.account]
        order = Order(ticket)
        self.orders[ticket.order_id] = order
        self.last_order_id = ticket.order_id
        account.orders.setdefault(ticket.symbol, []).append(order)
        account.open[ticket.order_id] = order
        account.open_ids[ticket.symbol, ticket.client_id] = ticket.order_id
        account.known_ids[ticket.symbol, ticket.client_id] = ticket.order_id
        if ticket.stop_price or ticket.trailing_bips:
            self.armed.setdefault(ticket.symbol, []).append(order)
        else:
            order.working_ms = ticket.time_ms
        if ticket.lock:
            self._relock(order, ticket.lock)
        self._tell(order, "NEW", effect, ticket.time_ms, on_book=order.working_ms >= 0)

    def _rejected(self, effect: Rejected) -> None:
        self.last_order_id = effect.ticket.order_id
        order = Order(effect.ticket, Status.REJECTED)
        self._tell(order, "REJECTED", effect, effect.ticket.time_ms, on_book=False)

    def _booked(self, effect: Booked) -> None:
        order = self.orders[effect.order_id]
        order.is_on_book = True
        order.queue = effect.queue
        order.market_ms = effect.market_ms
        order.working_ms = effect.time_ms
        ticket = order.ticket
        insort(
            self.book(ticket.symbol, ticket.side),
            (_price_key(ticket), ticket.order_id, order),
            key=_by_price_and_age,
        )

    def _filled(self, effect: Filled) -> None:
        order = self.orders[effect.order_id]
        ticket = order.ticket
        symbol = self.symbols[ticket.symbol]
        account = self.accounts[ticket.account]
        quantity, quote = effect.quantity, effect.quote
        clearing = self.clearing
        order.executed += quantity
        order.quote += quote
        fill = Fill(*effect)
        order.fills.append(fill)
        account.trades.setdefault(ticket.symbol, []).append(fill)
        self.trade_ids[ticket.symbol] = max(effect.trade_id, self.trade_ids.get(ticket.symbol, 0))
        is_buy = ticket.side is Side.BUY
        given, taken = (symbol.quote, symbol.base) if is_buy else (symbol.base, symbol.quote)
        paid, got = (quote, quantity) if is_buy else (quantity, quote)
        held = self._held(account, given)
        held[1] -= paid
        order.locked -= paid
        self._add(account, taken, got)
        self._add(account, effect.fee_asset, -effect.fee)
        self.fees[effect.fee_asset] = self.fees.get(effect.fee_asset, 0) + effect.fee
        clearing[given] = clearing.get(given, 0) + paid
        clearing[taken] = clearing.get(taken, 0) - got
        if order.left:
            order.status = Status.PARTIALLY_FILLED
            if ticket.type is not Type.MARKET and ticket.price:
                left = times(ticket.price, order.left) if is_buy else order.left
                self._relock(order, left)
        else:
            order.status = Status.FILLED
            self._close(order, effect.time_ms)
        self._tell(
            order, "TRADE", effect, effect.time_ms, on_book=order.is_on_book and order.is_open
        )

    def _prevented(self, effect: Prevented) -> None:
        order = self.orders[effect.order_id]
        order.prevented += effect.last
        order.prevented_id = effect.match_id
        self.prevented.append(effect)
        self.prevented_matches = effect.match_id + 1
        if order.left == 0:
            order.status = Status.EXPIRED_IN_MATCH
            self._close(order, effect.time_ms)
        elif order.ticket.price:
            is_buy = order.ticket.side is Side.BUY
            self._relock(order, times(order.ticket.price, order.left) if is_buy else order.left)
        self._tell(
            order,
            "TRADE_PREVENTION",
            effect,
            effect.time_ms,
            on_book=order.is_on_book and order.is_open,
        )

    def _triggered(self, effect: Triggered) -> None:
        order = self.orders[effect.order_id]
        self.armed[order.ticket.symbol].remove(order)
        order.working_ms = effect.time_ms
        order.market_ms = effect.market_ms
        self._relock(order, effect.lock)
        self._tell(order, "NEW", effect, effect.time_ms, on_book=True)

    def _trailing_started(self, effect: TrailingStarted) -> None:
        self.orders[effect.order_id].trailing_ms = effect.time_ms

    def _ended(self, effect: Ended) -> None:
        order = self.orders[effect.order_id]
        was_working = order.working_ms >= 0
        order.status = effect.status
        order.reason = effect.reason
        order.cancel_id = effect.cancel_id
        if effect.cancel_id:
            ticket = order.ticket
            known = self.accounts[ticket.account].known_ids
            known.setdefault((ticket.symbol, effect.cancel_id), ticket.order_id)
        if not was_working:
            self.armed[order.ticket.symbol].remove(order)
        self._close(order, effect.time_ms)
        kind = "CANCELED" if effect.status is Status.CANCELED else "EXPIRED"
        self._tell(order, kind, effect, effect.time_ms, on_book=False)

    def _close(self, order: Order, time_ms: int) -> None:
        ticket = order.ticket
        account = self.accounts[ticket.account]
        order.ended_ms = time_ms
        del account.open[ticket.order_id]
        if account.open_ids.get((ticket.symbol, ticket.client_id)) == ticket.order_id:
            del account.open_ids[ticket.symbol, ticket.client_id]
        if order.is_on_book:
            order.is_on_book = False
            book = self.book(ticket.symbol, ticket.side)
            key = _price_key(ticket), ticket.order_id
            del book[bisect_left(book, key, key=_by_price_and_age)]
        if order.locked:
            self._relock(order, 0)

    # order lists

    def _list_opened(self, effect: ListOpened) -> None:
        made = OrderList(
            effect.list_id,
            effect.uid,
            effect.symbol,
            effect.client_id,
            (effect.first, effect.second),
            effect.time_ms,
        )
        self.lists[effect.list_id] = made
        self.last_list_id = effect.list_id
        account = self.accounts[effect.uid]
        account.lists.append(made)
        account.open_lists[effect.list_id] = made
        self.told.append(ListReport(made, effect.time_ms, is_done=False))

    def _list_ended(self, effect: ListEnded) -> None:
        ended = self.lists[effect.list_id]
        ended.ended_ms = effect.time_ms
        ended.cancel_id = effect.cancel_id
        del self.accounts[ended.account].open_lists[effect.list_id]
        self.told.append(ListReport(ended, effect.time_ms, is_done=True))

    # the market

    def _played(self, effect: Played) -> None:
        self.played_ms[effect.symbol] = effect.market_ms

    def _symbol_set(self, effect: SymbolSet) -> None:
        self.symbols[effect.symbol] = Symbol(json.loads(effect.info))


def _price_key(ticket: Ticket) -> int:
    return -ticket.price if ticket.side is Side.BUY else ticket.price


def _by_price_and_age(entry: tuple[int, int, Order]) -> tuple[int, int]:
    return entry[0], entry[1]
