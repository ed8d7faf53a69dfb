"""The matching engine: what a request or a public trade does to the state.

Takers walk the market's book of the moment together with other accounts' resting orders, price
first; at one price the market's lots that stood before a resting order go first. Resting orders
fill from public trades: one that goes through their price fills them, one at their price once the
lots ahead have traded, never more than the trade's own quantity in all. Stops look at the last
price of public trades. The market does not react: it keeps its own trades and book, except that
lots taken from a level are gone until the level changes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from simulator.exchange.amounts import UNIT, times
from simulator.exchange.effects import (
    Accepted,
    Booked,
    Effect,
    Ended,
    Filled,
    ListEnded,
    ListOpened,
    Moved,
    Played,
    Prevented,
    Rejected,
    TrailingStarted,
    Triggered,
)
from simulator.exchange.orders import (
    NO_LIST,
    STOPS,
    Account,
    Order,
    OrderList,
    Side,
    Status,
    Stp,
    Ticket,
    Type,
)
from simulator.exchange.state import State, Told
from simulator.exchange.symbols import Refused, Symbol, check_counts, filter_failure

_USED_MOST = 10_000
_BALANCE = "Account has insufficient balance for requested action."
_WOULD_TRIGGER = "Order would trigger immediately."
_WOULD_MATCH = "Order would immediately match and take."
_REASONS = {  # why, as executionReports say it
    _BALANCE: "INSUFFICIENT_BALANCES",
    _WOULD_TRIGGER: "STOP_PRICE_WOULD_TRIGGER_IMMEDIATELY",
    _WOULD_MATCH: "WOULD_MATCH_IMMEDIATELY",
}
_UNKNOWN_ORDER = "Unknown order sent."
_MARKET_TYPES = frozenset((Type.MARKET, Type.STOP_LOSS, Type.TAKE_PROFIT))
_UNSUPPORTED = {
    Type.MARKET: "Market orders are not supported for this symbol.",
    Type.LIMIT_MAKER: "Limit maker orders are not supported for this symbol.",
    Type.STOP_LOSS: "Stop loss orders are not supported for this symbol.",
    Type.STOP_LOSS_LIMIT: "Stop loss limit orders are not supported for this symbol.",
    Type.TAKE_PROFIT: "Take profit orders are not supported for this symbol.",
    Type.TAKE_PROFIT_LIMIT: "Take profit limit orders are not supported for this symbol.",
}


class Quotes(Protocol):
    """A symbol's market at one instant, in units."""

    @property
    def market_ms(self) -> int: ...

    @property
    def last(self) -> int:
        """Price of the last public trade."""
        ...

    @property
    def average(self) -> int:
        """Volume-weighted price of the last five minutes."""
        ...

    @property
    def next_trade_id(self) -> int:
        """Id of the first public trade after this instant."""
        ...

    def best(self, taker: Side) -> int:
        """Price of the first of `levels`."""
        ...

    def levels(self, taker: Side) -> Iterator[tuple[int, int]]:
        """(price, quantity) of what a taker of this side meets, best first."""
        ...

    def amount(self, side: Side, price: int) -> int:
        """What the market's own book shows at a price on a side (BUY = bids)."""
        ...


class PublicTrade(NamedTuple):
    """One taker order of the public market."""

    time_ms: int
    price: int
    quantity: int
    first_id: int
    buyer_is_maker: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NewOrder:
    """An order as it is asked for, 0 = not given. It has a quantity or a quote_quantity."""

    symbol: str
    client_id: str
    side: Side
    type: Type
    tif: str = "GTC"
    quantity: int = 0
    quote_quantity: int = 0
    price: int = 0
    stop_price: int = 0
    trailing_bips: int = 0
    iceberg: int = 0
    stp: Stp = Stp.EXPIRE_MAKER
    strategy_id: int | None = None
    strategy_type: int | None = None


class _Step(NamedTuple):
    """A match that a taker will have, at a level of the book and the price that it pays there.
    shown: what the market shows at the level. maker None: the market. prevented: of its own
    account."""

    price: int
    quantity: int
    level: int
    shown: int
    maker: Order | None
    prevented: bool


@dataclass(slots=True)
class _Plan:
    """What a taker will meet. is_dry: liquidity within the limit ended before the order did."""

    steps: list[_Step] = field(default_factory=list)
    filled: int = 0
    cost: int = 0
    prevented: int = 0
    is_dry: bool = False


class Changes(NamedTuple):
    """What one transaction did: for the journal, and for the users."""

    effects: list[Effect]
    told: list[Told]
    touched: dict[int, set[str]]


class Engine:
    """Decides; every change goes through `State.apply`. slippage: what takers pay more (get less)
    than the book says, in units (1e-8 of the price). exchange_limits: of EXCHANGE_MAX_NUM_*."""

    def __init__(
        self, state: State, slippage: int = 0, exchange_limits: Mapping[str, int] | None = None
    ) -> None:
        self.state = state
        self.slippage = slippage
        self.exchange_limits = exchange_limits or {}
        self._effects: list[Effect] = []
        self._used: dict[str, dict[tuple[Side, int], tuple[int, int]]] = {}

    def do(self, effect: Effect) -> None:
        self.state.apply(effect)
        self._effects.append(effect)

    def take(self) -> Changes:
        """The changes since the last call."""
        state = self.state
        changes = Changes(self._effects, state.told, state.touched)
        self._effects, state.told, state.touched = [], [], {}
        return changes

    # requests

    def check(
        self,
        account: Account,
        new: NewOrder,
        quotes: Quotes,
        *,
        instead_of: Order | None = None,
    ) -> None:
        """Everything that is checked before the matching engine. instead_of: an order that will be
        cancelled first.

        Raises: Refused.
        """
        symbol = self.state.symbols[new.symbol]
        self._check_order(symbol, new, quotes)
        self._check_counts(account, symbol, [new], instead_of)

    def place(self, account: Account, new: NewOrder, quotes: Quotes, now_ms: int) -> Order:
        """A new order, executed as far as it goes at once.

        Raises: Refused: nothing has changed.
        """
        self.check(account, new, quotes)
        symbol = self.state.symbols[new.symbol]
        self._check_duplicate(account, new)
        plan, quantity = self._entry(account, symbol, new, quotes)
        lock = self._lock(new, quantity, plan)
        needed = max(lock, new.quote_quantity) if new.side is Side.BUY else lock
        held = symbol.quote if new.side is Side.BUY else symbol.base
        if needed > account.free(held):
            raise Refused(-2010, _BALANCE)
        order = self._accept(account, new, NO_LIST, quantity, lock, now_ms)
        if plan is not None:
            self._execute(order, plan, quotes, now_ms)
        return order

    def reject(self, account: Account, new: NewOrder, refused: Refused, now_ms: int) -> None:
        """Tell of an order that `place` refused: Binance does so where it was to replace another
        one, which is gone."""
        reason = _REASONS.get(refused.message, "NONE")
        ticket = self._ticket(account, new, NO_LIST, new.quantity, 0, now_ms)
        self.do(Rejected(reason, ticket))

    def place_oco(
        self,
        account: Account,
        list_client_id: str,
        above: NewOrder,
        below: NewOrder,
        quotes: Quotes,
        now_ms: int,
    ) -> OrderList:
        """Two orders of which one ends the other. One of them rests as LIMIT_MAKER or waits as
        TAKE_PROFIT(_LIMIT), the other waits as STOP_LOSS(_LIMIT).

        Raises: Refused: nothing has changed.
        """
        symbol = self.state.symbols[above.symbol]
        if not symbol.allows("ocoAllowed"):
            raise Refused(-2010, "OCO orders are not supported for this symbol")
        legs = (above, below)
        for leg in legs:
            self._check_order(symbol, leg, quotes)
        self._check_counts(account, symbol, [above, below])
        open_lists = sum(one.symbol == symbol.name for one in account.open_lists.values())
        for limits, kind, there in (
            (symbol.limits, "MAX_NUM_ORDER_LISTS", open_lists),
            (self.exchange_limits, "EXCHANGE_MAX_NUM_ORDER_LISTS", len(account.open_lists)),
        ):
            if there >= limits.get(kind, there + 1):
                raise filter_failure(kind)
        if any(one.client_id == list_client_id for one in account.open_lists.values()):
            raise Refused(-2010, "Duplicate order sent.")
        if above.client_id == below.client_id:
            raise Refused(-2010, "Duplicate order sent.")
        # a trailing stop that begins at once has no price
        high, low = (leg.stop_price or (0 if leg.trailing_bips else leg.price) for leg in legs)
        if (high and high <= quotes.last) or low >= quotes.last:
            raise Refused(-2010, "The relationship of the prices for the orders is not correct.")
        for leg in legs:
            self._check_duplicate(account, leg)
            self._check_resting(symbol, account, leg, quotes)
        is_buy = above.side is Side.BUY
        lock = max(self._lock(leg, leg.quantity, None) for leg in legs)
        if lock > account.free(symbol.quote if is_buy else symbol.base):
            raise Refused(-2010, _BALANCE)
        list_id = self.state.last_list_id + 1
        # the leg that can rest on the book holds the lock of both
        holder = next((leg for leg in legs if leg.type not in STOPS), above)
        orders = [
            self._accept(account, leg, list_id, leg.quantity, lock if leg is holder else 0, now_ms)
            for leg in legs
        ]
        made = ListOpened(
            list_id,
            account.uid,
            symbol.name,
            list_client_id,
            orders[0].ticket.order_id,
            orders[1].ticket.order_id,
            now_ms,
        )
        self.do(made)
        for order in orders:
            if not order.is_armed:
                self._rest(order, quotes, now_ms)
        return self.state.lists[list_id]

    def cancel(self, order: Order, cancel_id: str, now_ms: int) -> None:
        """End an open order; one leg of a list ends the list.

        Raises: Refused -2011 when it is not open, or its market takes no cancels.
        """
        if not order.is_open:
            raise Refused(-2011, _UNKNOWN_ORDER)
        if self.state.symbols[order.ticket.symbol].status == "BREAK":
            raise Refused(-2011, "Market is closed.")
        if order.ticket.list_id != NO_LIST:
            self.cancel_list(self.state.lists[order.ticket.list_id], cancel_id, now_ms)
        else:
            self.do(Ended(order.ticket.order_id, Status.CANCELED, "", cancel_id, now_ms))

    def cancel_list(self, order_list: OrderList, cancel_id: str, now_ms: int) -> None:
        """Raises: Refused -2011 when it has ended."""
        if order_list.ended_ms is not None:
            raise Refused(-2011, _UNKNOWN_ORDER)
        for order_id in order_list.order_ids:
            if self.state.orders[order_id].is_open:
                self.do(Ended(order_id, Status.CANCELED, "", cancel_id, now_ms))
        self.do(ListEnded(order_list.list_id, cancel_id, now_ms))

    def move_funds(self, account: Account, asset: str, delta: int, now_ms: int) -> None:
        """A deposit or withdrawal.

        Raises: Refused: a withdrawal of more than is free.
        """
        if account.free(asset) + delta < 0:
            raise Refused(-2010, _BALANCE)
        self.do(Moved(account.uid, asset, delta, now_ms))

    # checks

    def _check_order(self, symbol: Symbol, new: NewOrder, quotes: Quotes) -> None:
        if symbol.status != "TRADING":
            raise Refused(-2010, "Market is closed.")
        if new.type not in symbol.order_types:
            raise Refused(-2010, _UNSUPPORTED.get(new.type, "Unsupported order combination"))
        for is_asked, flag, text in (
            (new.iceberg, "icebergAllowed", "Iceberg orders"),
            (new.trailing_bips, "allowTrailingStop", "Trailing stop orders"),
            (new.quote_quantity, "quoteOrderQtyMarketAllowed", "Quote order qty market orders"),
        ):
            if is_asked and not symbol.allows(flag):
                raise Refused(-2010, f"{text} are not supported for this symbol.")
        if new.stp not in symbol.stp_allowed:
            raise Refused(
                -1013, "This symbol does not allow the specified self-trade prevention mode."
            )
        if not new.quantity and not new.quote_quantity:
            raise Refused(-1013, "Invalid quantity.")
        for price in (new.price, new.stop_price):
            if price:
                symbol.check_price(price)
        if new.price and symbol.wants_average:
            reference = quotes.last if symbol.by_last else quotes.average
            symbol.check_percent(new.side, new.price, reference)
        if new.trailing_bips:
            symbol.check_trailing(new.side, new.type, new.trailing_bips)
        is_market = new.type in _MARKET_TYPES
        if new.quantity:
            symbol.check_quantity(new.quantity, market=is_market)
            price = new.price or (quotes.last if symbol.by_last else quotes.average)
            symbol.check_notional(times(price, new.quantity), market=is_market)
        if new.quote_quantity:
            symbol.check_notional(new.quote_quantity, market=is_market)
        if new.iceberg:
            symbol.check_iceberg(new.quantity, new.iceberg)

    def _check_counts(
        self,
        account: Account,
        symbol: Symbol,
        orders: list[NewOrder],
        instead_of: Order | None = None,
    ) -> None:
        mine = [
            o
            for o in account.open.values()
            if o.ticket.symbol == symbol.name and o is not instead_of
        ]
        kinds = [(new.type, new.iceberg) for new in orders]
        check_counts(symbol.limits, "", mine, kinds)
        others = (o for o in account.open.values() if o is not instead_of)
        check_counts(self.exchange_limits, "EXCHANGE_", others, kinds)
        if orders[0].side is Side.BUY and symbol.max_position() is not None:
            held = sum(account.balances.get(symbol.base, (0, 0)))
            bought = sum(o.left for o in mine if o.ticket.side is Side.BUY)
            symbol.check_position(held, bought + orders[0].quantity)

    def _check_duplicate(self, account: Account, new: NewOrder) -> None:
        if (new.symbol, new.client_id) in account.open_ids:
            raise Refused(-2010, "Duplicate order sent.")

    def _check_resting(
        self, symbol: Symbol, account: Account, new: NewOrder, quotes: Quotes
    ) -> None:
        """A stop that would trigger, or a LIMIT_MAKER that would match, is refused."""
        if new.type in STOPS:
            if new.stop_price and _is_reached(new.side, new.type, new.stop_price, quotes.last):
                raise Refused(-2010, _WOULD_TRIGGER)
        elif new.type is Type.LIMIT_MAKER:
            plan = self._plan(account, symbol, new.side, new.price, 1, 0, new.stp, quotes)
            if plan.steps:
                raise Refused(-2010, _WOULD_MATCH)

    def _entry(
        self, account: Account, symbol: Symbol, new: NewOrder, quotes: Quotes
    ) -> tuple[_Plan | None, int]:
        """(what it meets now, its quantity); None where it only waits."""
        self._check_resting(symbol, account, new, quotes)
        if new.type in STOPS:
            return None, new.quantity
        limit = new.price
        plan = self._plan(
            account,
            symbol,
            new.side,
            limit,
            0 if new.quote_quantity else new.quantity,
            new.quote_quantity,
            new.stp,
            quotes,
        )
        if not new.quote_quantity:
            return plan, new.quantity
        quantity = plan.filled + plan.prevented
        if plan.is_dry:
            if not plan.steps:
                raise Refused(
                    -2010,
                    "Order book liquidity is less than `LOT_SIZE` filter minimum quantity.",
                )
            quantity += max(
                symbol.step,
                symbol.round_down((new.quote_quantity - plan.cost) * UNIT // plan.steps[-1].price),
            )
        symbol.check_quantity(quantity, market=True)
        if not quantity:
            raise filter_failure("LOT_SIZE")
        return plan, quantity

    def _lock(self, new: NewOrder, quantity: int, plan: _Plan | None) -> int:
        """What the order must hold: its own price where it has one, else what it will pay."""
        if new.side is Side.SELL:
            return quantity
        if new.price:
            return times(new.price, quantity)
        if plan is not None:
            return plan.cost
        return times(new.stop_price, quantity)

    # matching

    def _plan(
        self,
        account: Account,
        symbol: Symbol,
        side: Side,
        limit: int,
        quantity: int,
        budget: int,
        stp: Stp,
        quotes: Quotes,
    ) -> _Plan:
        """What a taker meets: up to `quantity`, or as many lots as `budget` of quote pays.

        limit: 0 = none.
        """
        plan = _Plan()
        is_buy = side is Side.BUY
        left = quantity
        for price, offered, shown, maker in self._offers(symbol, side, limit, quotes):
            if limit and (price > limit if is_buy else price < limit):
                break
            paid = price if maker is not None else self._paid(is_buy, price, limit, symbol)
            if budget:
                left = symbol.round_down((budget - plan.cost) * UNIT // paid)
            if not left:
                return plan
            amount = min(left, offered)
            if maker is not None and maker.ticket.account == account.uid and stp is not Stp.NONE:
                plan.steps.append(_Step(paid, amount, price, shown, maker, True))
                if stp in (Stp.EXPIRE_TAKER, Stp.EXPIRE_BOTH):
                    return plan
                if stp is Stp.EXPIRE_MAKER:
                    continue
                plan.prevented += amount
            else:
                plan.steps.append(_Step(paid, amount, price, shown, maker, False))
                plan.filled += amount
                plan.cost += times(paid, amount)
            left -= amount
            if not left and not budget:
                return plan
        plan.is_dry = True
        return plan

    def _offers(
        self, symbol: Symbol, taker: Side, limit: int, quotes: Quotes
    ) -> Iterator[tuple[int, int, int, Order | None]]:
        """(price, quantity, what the market shows there, whose; None = the market's), in the order
        in which a taker who takes all of each meets them."""
        is_buy = taker is Side.BUY
        makers = iter(self.state.book(symbol.name, _other(taker)))
        maker = _next_order(makers)
        best = quotes.best(taker)
        if not limit or (best <= limit if is_buy else best >= limit):
            used = self._used.get(symbol.name, {})
            for price, shown in quotes.levels(taker):
                while maker is not None and (
                    maker.ticket.price < price if is_buy else maker.ticket.price > price
                ):
                    yield maker.ticket.price, maker.left, 0, maker
                    maker = _next_order(makers)
                gone = used.get((taker, price), (0, 0))
                left = symbol.round_down(shown) - (gone[1] if gone[0] == shown else 0)
                passed = 0
                while maker is not None and maker.ticket.price == price:
                    ahead = symbol.round_down(min(left, max(0, maker.queue - passed)))
                    if ahead > 0:
                        yield price, ahead, shown, None
                        left -= ahead
                        passed += ahead
                    yield price, maker.left, shown, maker
                    maker = _next_order(makers)
                if left > 0:
                    yield price, left, shown, None
        while maker is not None:
            yield maker.ticket.price, maker.left, 0, maker
            maker = _next_order(makers)

    def _paid(self, is_buy: bool, price: int, limit: int, symbol: Symbol) -> int:
        """The level's price made worse by the slippage, on a tick, never beyond the limit."""
        if not self.slippage:
            return price
        worse = price * self.slippage // UNIT
        tick = symbol.tick or 1
        if is_buy:
            paid = -(-(price + worse) // tick) * tick
            return min(paid, limit) if limit else paid
        paid = max(tick, (price - worse) // tick * tick)
        return max(paid, limit)

    def _execute(self, order: Order, plan: _Plan, quotes: Quotes, now_ms: int) -> None:
        """Carry out the plan of a taker; what is left then waits or expires."""
        ticket = order.ticket
        is_limit = ticket.type not in _MARKET_TYPES
        wanted = ticket.quantity - plan.prevented
        if ticket.tif == "FOK" and is_limit and plan.filled < wanted:
            self._expire(order, "UNFILLED_FOK_ORDER_EXPIRED", now_ms)
            return
        for step in plan.steps:
            if step.prevented:
                assert step.maker is not None  # noqa: S101 - the market is no account
                self._prevent(order, step.maker, step, now_ms)
            else:
                self._trade(order, step, quotes, now_ms)
        if not order.is_open:
            return
        if not is_limit:
            self._expire(order, "INSUFFICIENT_LIQUIDITY", now_ms)
        elif ticket.tif == "IOC":
            self._expire(order, "UNFILLED_IOC_QUANTITY_EXPIRED", now_ms)
        else:
            self._rest(order, quotes, now_ms)

    def _trade(self, taker: Order, step: _Step, quotes: Quotes, now_ms: int) -> None:
        symbol = taker.ticket.symbol
        number = max(quotes.next_trade_id, self.state.trade_ids.get(symbol, 0) + 1)
        maker = step.maker
        counter = maker.ticket.order_id if maker is not None else 0
        self._fill(taker, number, step.price, step.quantity, False, counter, now_ms)
        if maker is not None:
            self._fill(
                maker, number, step.price, step.quantity, True, taker.ticket.order_id, now_ms
            )
            return
        key = taker.ticket.side, step.level
        used = self._used.setdefault(symbol, {})
        if len(used) >= _USED_MOST:  # prices of long ago
            used.clear()
        before = used.get(key)
        gone = before[1] if before is not None and before[0] == step.shown else 0
        used[key] = step.shown, gone + step.quantity
        for _, _, waiting in self.state.book(symbol, _other(taker.ticket.side)):
            if waiting.ticket.price == step.level:
                waiting.queue = max(0, waiting.queue - step.quantity)

    def _fill(
        self,
        order: Order,
        trade_id: int,
        price: int,
        quantity: int,
        is_maker: bool,
        counter: int,
        now_ms: int,
    ) -> None:
        ticket = order.ticket
        symbol = self.state.symbols[ticket.symbol]
        rates = self.state.accounts[ticket.account].rates
        quote = times(price, quantity)
        rate = rates.maker if is_maker else rates.taker
        if ticket.side is Side.BUY:
            fee, asset = times(quantity, rate + rates.buyer), symbol.base
        else:
            fee, asset = times(quote, rate + rates.seller), symbol.quote
        if ticket.list_id != NO_LIST:
            self._end_sibling(order, now_ms)
        self.do(
            Filled(
                ticket.order_id,
                trade_id,
                price,
                quantity,
                quote,
                fee,
                asset,
                is_maker,
                counter,
                now_ms,
            )
        )
        self._settle_list(order, now_ms)

    def _prevent(self, taker: Order, maker: Order, step: _Step, now_ms: int) -> None:
        """Two orders of one account meet: the taker's mode says which gives way."""
        mode = taker.ticket.stp
        number = self.state.prevented_matches
        both = mode in (Stp.DECREMENT, Stp.TRANSFER)
        lost = {
            taker: step.quantity if both else 0 if mode is Stp.EXPIRE_MAKER else taker.left,
            maker: step.quantity if both else 0 if mode is Stp.EXPIRE_TAKER else maker.left,
        }
        for order, other in ((taker, maker), (maker, taker)):
            if not lost[order]:
                continue
            self.do(
                Prevented(
                    order.ticket.order_id,
                    number,
                    order is taker,
                    lost[order],
                    step.quantity,
                    step.price,
                    other.ticket.order_id,
                    lost[other],
                    now_ms,
                )
            )
            if not order.is_open:
                self._end_sibling(order, now_ms)
                self._settle_list(order, now_ms)

    def _rest(self, order: Order, quotes: Quotes, now_ms: int) -> None:
        """Put it on the book, behind what the market shows at its price."""
        ticket = order.ticket
        shown = quotes.amount(ticket.side, ticket.price)
        self.do(Booked(ticket.order_id, shown, quotes.market_ms, now_ms))

    def _accept(
        self,
        account: Account,
        new: NewOrder,
        list_id: int,
        quantity: int,
        lock: int,
        now_ms: int,
    ) -> Order:
        ticket = self._ticket(account, new, list_id, quantity, lock, now_ms)
        self.do(Accepted(ticket))
        return self.state.orders[ticket.order_id]

    def _ticket(
        self,
        account: Account,
        new: NewOrder,
        list_id: int,
        quantity: int,
        lock: int,
        now_ms: int,
    ) -> Ticket:
        return Ticket(
            new.symbol,
            self.state.last_order_id + 1,
            list_id,
            account.uid,
            new.client_id,
            new.side,
            new.type,
            new.tif,
            quantity,
            new.quote_quantity,
            new.price,
            new.stop_price,
            new.trailing_bips,
            new.iceberg,
            new.stp,
            new.strategy_id,
            new.strategy_type,
            lock,
            now_ms,
        )

    def _expire(self, order: Order, reason: str, now_ms: int) -> None:
        self.do(Ended(order.ticket.order_id, Status.EXPIRED, reason, "", now_ms))
        self._settle_list(order, now_ms)

    def _end_sibling(self, order: Order, now_ms: int) -> None:
        """The other leg of its list expires."""
        if order.ticket.list_id == NO_LIST:
            return
        for order_id in self.state.lists[order.ticket.list_id].order_ids:
            other = self.state.orders[order_id]
            if other is not order and other.is_open:
                self.do(Ended(order_id, Status.EXPIRED, "OCO_TRIGGER", "", now_ms))

    def _settle_list(self, order: Order, now_ms: int) -> None:
        """A list is over once both of its orders are."""
        if order.ticket.list_id == NO_LIST:
            return
        its = self.state.lists[order.ticket.list_id]
        if its.ended_ms is None and not any(self.state.orders[i].is_open for i in its.order_ids):
            self.do(ListEnded(its.list_id, "", now_ms))

    # the market

    def is_waiting(self, symbol: str) -> bool:
        """Whether any order waits for public trades of the symbol."""
        books = self.state.books.get(symbol)
        return bool(self.state.armed.get(symbol)) or (
            books is not None and bool(books[Side.BUY] or books[Side.SELL])
        )

    def waiting(self) -> list[str]:
        """Symbols of which an order waits for public trades."""
        seen = self.state.books.keys() | self.state.armed.keys()
        return [symbol for symbol in seen if self.is_waiting(symbol)]

    def play(
        self,
        name: str,
        trades: Iterable[PublicTrade],
        quotes_at: Callable[[int], Quotes],
        now_ms: int,
    ) -> None:
        """Let public trades, oldest first, fill what rests and trigger what waits."""
        played = newest = self.state.played_ms.get(name, 0)
        symbol = self.state.symbols[name]
        before = len(self._effects)
        for trade in trades:
            if trade.time_ms <= played:
                continue
            if symbol.status == "TRADING":
                self._match(symbol, trade, now_ms)
                self._trigger(symbol, trade, quotes_at, now_ms)
            newest = trade.time_ms
        if len(self._effects) > before:
            self.do(Played(name, newest))

    def _match(self, symbol: Symbol, trade: PublicTrade, now_ms: int) -> None:
        available = trade.quantity
        for side in (Side.BUY, Side.SELL):
            is_buy = side is Side.BUY
            book = self.state.book(symbol.name, side)
            if not book:
                continue
            hits = trade.buyer_is_maker is is_buy  # the taker took from this side
            for _, _, order in list(book):
                price = order.ticket.price
                beyond = price - trade.price if is_buy else trade.price - price
                if beyond < 0 or (beyond == 0 and not hits):
                    break
                if trade.time_ms <= order.market_ms:
                    continue
                room = available
                if beyond == 0:
                    room = min(room, max(0, trade.quantity - order.queue))
                    order.queue = max(0, order.queue - trade.quantity)
                quantity = symbol.round_down(min(order.left, room))
                if not quantity:
                    continue
                number = max(trade.first_id, self.state.trade_ids.get(symbol.name, 0) + 1)
                self._fill(order, number, price, quantity, True, 0, now_ms)
                available -= quantity

    def _trigger(
        self,
        symbol: Symbol,
        trade: PublicTrade,
        quotes_at: Callable[[int], Quotes],
        now_ms: int,
    ) -> None:
        armed = self.state.armed.get(symbol.name)
        if not armed:
            return
        for order in list(armed):
            if order.is_armed and self._is_due(order, trade, now_ms):
                self._fire(symbol, order, quotes_at(trade.time_ms), now_ms)

    def _is_due(self, order: Order, trade: PublicTrade, now_ms: int) -> bool:
        ticket = order.ticket
        if trade.time_ms <= order.market_ms:
            return False
        reached = ticket.stop_price and _is_reached(
            ticket.side, ticket.type, ticket.stop_price, trade.price
        )
        if not ticket.trailing_bips:
            return bool(reached)
        if order.trailing_ms < 0:
            if ticket.stop_price and not reached:
                return False
            self.do(TrailingStarted(ticket.order_id, now_ms))
            order.extreme = trade.price
        rises = _triggers_above(ticket.side, ticket.type)
        extreme = order.extreme or trade.price
        order.extreme = min(extreme, trade.price) if rises else max(extreme, trade.price)
        reach = order.extreme * ticket.trailing_bips
        moved = (trade.price - order.extreme) * 10_000
        return moved >= reach if rises else -moved >= reach

    def _fire(self, symbol: Symbol, order: Order, quotes: Quotes, now_ms: int) -> None:
        """A stop becomes the order that it announced."""
        ticket = order.ticket
        self._end_sibling(order, now_ms)
        account = self.state.accounts[ticket.account]
        is_buy = ticket.side is Side.BUY
        plan = self._plan(
            account, symbol, ticket.side, ticket.price, ticket.quantity, 0, ticket.stp, quotes
        )
        lock = ticket.quantity
        if is_buy:
            lock = times(ticket.price, ticket.quantity) if ticket.price else plan.cost
        funds = order.locked + account.free(symbol.quote if is_buy else symbol.base)
        if lock > funds:  # the market ran away from a BUY: it buys what it can pay
            plan = self._plan(
                account, symbol, ticket.side, ticket.price, 0, funds, ticket.stp, quotes
            )
            lock = plan.cost
        self.do(Triggered(ticket.order_id, lock, quotes.market_ms, now_ms))
        self._execute(order, plan, quotes, now_ms)


def _other(side: Side) -> Side:
    return Side.SELL if side is Side.BUY else Side.BUY


def _triggers_above(side: Side, kind: Type) -> bool:
    """STOP_LOSS BUY and TAKE_PROFIT SELL wait above the market, the others below."""
    return (side is Side.BUY) == (kind in (Type.STOP_LOSS, Type.STOP_LOSS_LIMIT))


def _is_reached(side: Side, kind: Type, stop_price: int, last: int) -> bool:
    return last >= stop_price if _triggers_above(side, kind) else last <= stop_price


def _next_order(makers: Iterator[tuple[int, int, Order]]) -> Order | None:
    entry = next(makers, None)
    return entry[2] if entry is not None else None
