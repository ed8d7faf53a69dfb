"""The fold of the trader's journal: orders, position and profit.

Pure and exact: amounts are `Decimal`, fills are unique by trade id, so that lines of
`order:{symbol}` may be added again and, of different orders, in any order. Whoever shows what the
trader holds folds the same lines by the same code.

A position is what our own fills bought, less the fees taken from it, less what they sold. Its cost
is the quote asset spent on it; a sale takes out the part of the cost that it sells (average cost),
rounded to 1e-12, so that realised profit minus the cost of what is held is, to the last digit, what
our fills did to the quote balance. Fees in a third asset (BNB) are counted apart and are in no
profit: what they are worth is not known here.

A CARRIED line holds the sum of the lines before it, so that these can be taken off the bus: it
counts where it is the first line of a fold, and changes nothing elsewhere.
"""

import json
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal
from functools import cache

from pydantic import TypeAdapter

from shared.events import FINAL, Leg, Order, OrderState
from shared.exchange import Fill, OutsideWindow, Side, is_market_closed

ZERO = Decimal(0)
DAY_MS = 86_400_000
NEW_ACCOUNT = "new-account"  # in an operator's RESUME: from here on it is another account
_CENT = Decimal("1e-12")
_INTENTS = 1_000
_ENDED = 50  # orders of which fills may still be told
# Of what is carried: the exchange numbers a symbol's trades upwards, and tells none again that is
# older than these.
_CARRIED_TRADES = 1_000
# News of an order never leads back: a copy that comes late changes nothing.
RANKS: dict[str, int] = {
    OrderState.INTENT: 0,
    OrderState.UNKNOWN: 1,
    OrderState.ACKED: 2,
    OrderState.PARTIAL: 3,
    **dict.fromkeys(FINAL, 4),
}
_SWITCHES = frozenset(
    (OrderState.HALTED, OrderState.REDUCED, OrderState.FLATTENED, OrderState.RESUMED)
)


def packed(fill: Fill) -> bytes:
    """A fill as it stands in a line."""
    return json.dumps(
        {
            "order_id": fill.order_id,
            "side": fill.side,
            "price": str(fill.price),
            "quantity": str(fill.quantity),
            "quote": str(fill.quote_quantity),
            "fee": str(fill.fee),
            "fee_asset": fill.fee_asset,
            "time_ms": fill.time_ms,
            "maker": fill.is_maker,
        },
        separators=(",", ":"),
    ).encode()


def fills_of(line: Order) -> list[Fill]:
    """The fills that a line tells, in the order of their trade ids.

    Raises:
        ValueError, KeyError, ArithmeticError: it was not written by `packed`.
    """
    found = []
    for trade_id, text in sorted(line.fills.items(), key=lambda item: int(item[0])):
        body = json.loads(text)
        found.append(
            Fill(
                symbol=line.symbol,
                trade_id=int(trade_id),
                order_id=int(body["order_id"]),
                side=Side(body["side"]),
                price=Decimal(body["price"]),
                quantity=Decimal(body["quantity"]),
                quote_quantity=Decimal(body["quote"]),
                fee=Decimal(body["fee"]),
                fee_asset=body["fee_asset"],
                time_ms=int(body["time_ms"]),
                is_maker=bool(body["maker"]),
            )
        )
    return found


@dataclass(slots=True)
class Tracked:
    """One order of ours, as far as the journal knows. executed: base, of the fills known."""

    client_id: str
    signal_id: str
    open_time_ms: int
    leg: str
    attempt: int
    side: str
    type: str
    quantity: Decimal
    price: Decimal | None
    stop_price: Decimal | None
    list_id: str
    sent_ms: int
    state: OrderState
    reference: Decimal = ZERO
    order_id: int = 0
    executed: Decimal = ZERO
    quote: Decimal = ZERO
    reason: str = ""
    score: float | None = None
    release: str = ""
    is_former: bool = False  # of an account that is not traded any more

    @property
    def is_final(self) -> bool:
        return self.state in FINAL

    @property
    def average(self) -> Decimal | None:
        """Mean price of what is filled."""
        return self.quote / self.executed if self.executed else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """The newest HALTED, REDUCED, FLATTENED or RESUMED. RESUMED: nothing is switched off."""

    state: OrderState = OrderState.RESUMED
    reason: str = ""


@dataclass(slots=True)
class Day:
    """One day of the market. fees: by asset. slippage, trips, won: see Ledger."""

    fees: dict[str, Decimal] = field(default_factory=dict)
    slippage: Decimal = ZERO
    fills: int = 0
    trips: int = 0
    won: int = 0


@dataclass(slots=True)
class Ledger:
    """One symbol. base, quote: its assets.

    position: base. cost: quote spent on it. realised: profit of sales, days: what else was told, by
    the market's day (`market_ms // DAY_MS`). flow: what fills did to the quote balance. fees: by
    asset. entry_*: of the position held: base bought and quote paid at fill prices, market time of
    the first fill, and whether that fill was a maker's (within a candle, not at its open). exit_ms:
    market time of the last sale. losses: round trips lost in a row; trips, won: those that ended;
    trip_profit: of the one under way, so far. worth: of the account, as last told. slippage: quote
    units by which takers' fills were worse than the close that decided them. intents: market times
    of the newest. refusals: about the order, in a row. switch: what is in force; commands: reasons
    of all its lines. For limits, which an operator's RESUMED lets begin anew: day_profit, realised
    on the market's day `day`; curve and peak, all that was realised and the most that it ever was.
    since_ms, first_price: market time (0 = none) and price of the first fill. first_worth: of the
    account, at the first decision. dust: base that was left as too little to be sold, when that was
    last so. ended: orders that came to their end, the last ones.
    """

    base: str
    quote: str
    orders: dict[str, Tracked] = field(default_factory=dict)
    open: dict[str, Tracked] = field(default_factory=dict)
    by_order_id: dict[int, Tracked] = field(default_factory=dict)
    trades: set[int] = field(default_factory=set)
    position: Decimal = ZERO
    cost: Decimal = ZERO
    flow: Decimal = ZERO
    realised: dict[int, Decimal] = field(default_factory=dict)
    days: dict[int, Day] = field(default_factory=dict)
    fees: dict[str, Decimal] = field(default_factory=dict)
    entry_quantity: Decimal = ZERO
    entry_quote: Decimal = ZERO
    entry_ms: int = 0
    entry_inside: bool = False
    exit_ms: int = 0
    losses: int = 0
    trips: int = 0
    won: int = 0
    trip_profit: Decimal = ZERO
    worth: Decimal = ZERO
    slippage: Decimal = ZERO
    intents: deque[int] = field(default_factory=lambda: deque(maxlen=_INTENTS))
    refusals: int = 0
    switch: Switch = Switch()
    commands: set[str] = field(default_factory=set)
    day: int = 0
    day_profit: Decimal = ZERO
    curve: Decimal = ZERO
    peak: Decimal = ZERO
    since_ms: int = 0
    first_price: Decimal | None = None
    first_worth: Decimal | None = None
    dust: Decimal = ZERO
    ended: deque[str] = field(default_factory=lambda: deque(maxlen=_ENDED))
    _selling: bool = True
    _is_blank: bool = True

    def add(self, line: Order) -> None:
        """Takes in one line. Lines of one order come oldest first.

        Raises:
            ValueError, KeyError, ArithmeticError: the line cannot be what the trader wrote.
        """
        state = OrderState(line.state)
        if state == OrderState.CARRIED:
            if self._is_blank:
                self._take_up(line.carried)
            return
        self._is_blank = False
        if state in _SWITCHES:
            self.switch = Switch(state=state, reason=line.reason)
            self.commands.add(line.reason)
            if begins_anew(line):
                self._begin_anew()
            if state == OrderState.RESUMED:
                self.refusals = self.losses = 0
                self.day_profit = self.curve = self.peak = ZERO
                self.intents.clear()
            return
        order = self.orders.get(line.client_id)
        if order is not None and order.is_former:
            return
        if state == OrderState.DUST:
            self.dust = Decimal(line.quantity)
        if not line.client_id or state == OrderState.DUST:
            return
        if order is None:
            order = self.orders[line.client_id] = self.open[line.client_id] = _tracked(line, state)
            if state == OrderState.INTENT:
                self.intents.append(line.market_ms)
                if line.worth:
                    self.worth = Decimal(line.worth)
                    if self.first_worth is None:
                        self.first_worth = self.worth
        elif RANKS[state] > RANKS[order.state] or line.is_adopted:
            order.state = state
        if not order.quantity:  # its intent is lost: the exchange has told it since
            _set_terms(order, line)
        if line.order_id:
            order.order_id = line.order_id
            self.by_order_id[line.order_id] = order
        if line.reason:
            order.reason = line.reason
        if line.fills:
            for fill in fills_of(line):
                self.fill(order, fill, line.market_ms)
        if state == OrderState.REJECTED:
            is_counted = bool(line.list_id) and line.leg == Leg.STOP  # a pair counts once
            self.refusals += not is_counted and _is_about_order(line.reason)
        elif state in (OrderState.ACKED, OrderState.PARTIAL, OrderState.FILLED) or (
            state == OrderState.CANCELED and order.executed
        ):
            self.refusals = 0
        if order.state in FINAL:
            if self.open.pop(order.client_id, None) is not None:
                self.ended.append(order.client_id)
        else:
            self.open[order.client_id] = order
        if line.profit:
            profit = Decimal(line.profit)
            for one in (self, self._day(line.market_ms)):
                one.trips += 1
                one.won += profit > 0
            self.losses = 0 if profit > 0 else self.losses + 1
            self.trip_profit = ZERO

    def _begin_anew(self) -> None:
        """What is held was held in another account, which numbered its orders and trades itself."""
        self.position = self.cost = self.entry_quantity = self.entry_quote = ZERO
        self.trip_profit, self.dust, self._selling = ZERO, ZERO, True
        for order in self.open.values():
            order.state = OrderState.CANCELED
        for order in self.orders.values():
            order.is_former = True
        self.ended.extend(self.open)
        self.open.clear()
        self.by_order_id.clear()
        self.trades.clear()

    def fill(self, order: Tracked, fill: Fill, market_ms: int) -> None:
        """Counts a trade, once."""
        if fill.trade_id in self.trades:
            return
        self.trades.add(fill.trade_id)
        if not self.since_ms:
            self.since_ms, self.first_price = market_ms, fill.price
        order.executed += fill.quantity
        order.quote += fill.quote_quantity
        quantity, money = fill.quantity, fill.quote_quantity
        today = self._day(market_ms)
        today.fills += 1
        if fill.fee:
            for fees in (self.fees, today.fees):
                fees[fill.fee_asset] = fees.get(fill.fee_asset, ZERO) + fill.fee
        in_base = fill.fee if fill.fee_asset == self.base else ZERO
        in_quote = fill.fee if fill.fee_asset == self.quote else ZERO
        if order.reference and not fill.is_maker:
            worse = quantity * (fill.price - order.reference)
            worse = worse if fill.side is Side.BUY else -worse
            self.slippage += worse
            today.slippage += worse
        if fill.side is Side.BUY:
            if self._selling:
                self._selling = False
                self.entry_quantity = self.entry_quote = ZERO
                self.entry_ms, self.entry_inside = market_ms, fill.is_maker
            self.entry_quantity += quantity
            self.entry_quote += money
            self.position += quantity - in_base
            self.cost += money + in_quote
            self.flow -= money + in_quote
            return
        self._selling = True
        self.exit_ms = max(self.exit_ms, market_ms)
        sold = quantity + in_base
        part = self.cost
        if sold < self.position:
            part = (self.cost * sold / self.position).quantize(_CENT)
        self.position -= sold
        self.cost -= part
        self.flow += money - in_quote
        profit = money - in_quote - part
        self.trip_profit += profit
        day = market_ms // DAY_MS
        self.realised[day] = self.realised.get(day, ZERO) + profit
        if day > self.day:
            self.day, self.day_profit = day, ZERO
        self.day_profit += profit
        self.curve += profit
        self.peak = max(self.peak, self.curve)

    def carried(self) -> str:
        """Everything that a fold needs which begins behind the lines so far: what is open, what
        ended of late, the newest order that filled, all sums. Equal folds give equal texts."""
        filled = [
            order
            for order in self.orders.values()
            if order.executed and order.is_final and not order.is_former
        ]
        filled.sort(key=lambda order: (order.sent_ms, order.client_id))
        ended = [self.orders[name] for name in self.ended]
        kept = {o.client_id: o for o in (*filled[-1:], *ended, *self.open.values())}
        short = replace(
            self, orders=kept, by_order_id={}, trades=set(sorted(self.trades)[-_CARRIED_TRADES:])
        )
        body = _adapter().dump_python(short, mode="json")
        for name in ("trades", "commands"):
            body[name].sort()
        return json.dumps(body, separators=(",", ":"), sort_keys=True, ensure_ascii=False)

    def _take_up(self, text: str) -> None:
        """Raises: ValueError: it was not written by `carried`."""
        found = _adapter().validate_json(text)
        if (found.base, found.quote) != (self.base, self.quote):
            raise ValueError(f"carried is of {found.base} and {found.quote}")
        for one in fields(Ledger):
            setattr(self, one.name, getattr(found, one.name))
        self.intents = deque(found.intents, maxlen=_INTENTS)
        self.ended = deque(found.ended, maxlen=_ENDED)
        self.open = {name: self.orders[name] for name in found.open}
        self.by_order_id = {
            o.order_id: o for o in self.orders.values() if o.order_id and not o.is_former
        }
        self._is_blank = False

    def _day(self, market_ms: int) -> Day:
        return self.days.setdefault(market_ms // DAY_MS, Day())

    @property
    def entry_price(self) -> Decimal | None:
        """Mean price of the fills that opened the position, fees left out."""
        return self.entry_quote / self.entry_quantity if self.entry_quantity else None

    @property
    def profit(self) -> Decimal:
        """Of all sales, after fees in base and quote."""
        return sum(self.realised.values(), ZERO)

    def unrealised(self, price: Decimal) -> Decimal:
        """Worth of what is held at `price` less its cost."""
        return self.position * price - self.cost


@cache
def _adapter() -> TypeAdapter[Ledger]:
    return TypeAdapter(Ledger)


def begins_anew(line: Order) -> bool:
    """Whether an operator said that from this line on it is another account."""
    return line.state == OrderState.RESUMED and NEW_ACCOUNT in line.reason.split()


def is_sum_of(carried: str, lines: Iterable[Order], mode: str) -> bool:
    """Whether all that a mode's lines of one symbol come to is what is carried, to the last digit,
    whichever version wrote that.

    Raises: ValueError: it was not written by `Ledger.carried`.
    """
    told = _adapter().validate_json(carried)
    return ledger_of(lines, told.base, told.quote, mode).carried() == told.carried()


def rewritten(carried: str) -> str:
    """What is carried as this version writes it; what an older one did not tell has its default.

    Raises: ValueError: it was not written by `Ledger.carried`.
    """
    return _adapter().validate_json(carried).carried()


def open_in(carried: str) -> set[str]:
    """Names of the orders that were open where this was carried."""
    return set(json.loads(carried)["open"])


def _set_terms(order: Tracked, line: Order) -> None:
    """What was ordered."""
    order.type = line.type
    order.quantity = Decimal(line.order_quantity or "0")
    order.price = Decimal(line.order_price) if line.order_price else None
    order.stop_price = Decimal(line.stop_price) if line.stop_price else None


def _is_about_order(reason: str) -> bool:
    """Of a refusal, "CODE TEXT": what comes too late or to a closed market is not looked at."""
    return not reason.startswith(f"{OutsideWindow.CODE} ") and not is_market_closed(reason)


def _tracked(line: Order, state: OrderState) -> Tracked:
    order = Tracked(
        client_id=line.client_id,
        signal_id=line.signal_id,
        open_time_ms=line.open_time_ms,
        leg=line.leg,
        attempt=line.attempt,
        side=line.side,
        type="",
        quantity=ZERO,
        price=None,
        stop_price=None,
        list_id=line.list_id,
        sent_ms=line.sent_ms,
        state=state,
        reference=Decimal(line.price) if state == OrderState.INTENT and line.price else ZERO,
        score=line.score,
        release=line.release,
    )
    _set_terms(order, line)
    return order


def ledger_of(lines: Iterable[Order], base: str, quote: str, mode: str) -> Ledger:
    """The fold of one symbol's lines in a mode; those of other modes are another account's."""
    ledger = Ledger(base=base, quote=quote)
    for line in lines:
        if line.mode == mode:
            ledger.add(line)
    return ledger
