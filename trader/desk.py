"""One symbol's trading as a pure state machine: events in, journal lines and requests out.

What is true stands in the journal's fold (`shared.ledger`); what is wanted is decided anew at each
candle by `shared.rules`, the functions that the backtest runs. `advance` compares the two and takes
the one next step, whenever nothing is on its way:

    orders of unknown fate?          wait: only the exchange's word ends that
    orders that are not wanted?      cancel them, and count what they filled meanwhile
    something to sell or to buy?     journal the intent, then send it, once
    a position without protection?   put stop and target onto the exchange

An intent is sent once. An entry that did not get through is given up; an exit may be tried again
under a new name once it is certain that the last attempt never will be executed.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING

from shared import filters, rules
from shared.events import FINAL, Leg, Level, Order, OrderState, Signal
from shared.exchange import (
    CANCEL_SUFFIX,
    Fill,
    NewOco,
    NewOrder,
    OrderReport,
    OrderType,
    Side,
    Status,
)
from shared.filters import SymbolRules
from shared.ledger import RANKS, ZERO, Ledger, Tracked, begins_anew, packed
from shared.rules import NAN, NONE, Bar, Costs, State
from shared.times import floor_ms, iso
from trader.decisions import SIDES, Decisions, price_text
from trader.messages import (
    Cancel,
    FetchBalances,
    FetchFills,
    FetchRules,
    MeasureClock,
    NotSent,
    Now,
    Place,
    Query,
    Refused,
    Request,
    Unsure,
)
from trader.orders import PREFIX, client_id, is_ours, list_id, text, why_ended

if TYPE_CHECKING:
    from trader.core import Core

# recvWindow 5 s, engine 10 s, lag of the query side 5 s: what is not found later than this after
# the intent's timestamp is not executed any more (reliability.md section 3).
SETTLE_MS = 20_000
ASK_MS = 2_000
FIRST_ASK_MS = 500
POLL_MS = 5_000
ALARM_MS = 60_000
MISSES = 2
QUIET_MS = 10_000
# The exchange may take no calls for days: so often it is looked whether it does again, at least.
STOPPED_MS = 60_000
# So long after a refusal as closed the exchange is not believed that the market trades.
CLOSED_MS = 10_000
# A stop where the symbol takes no STOP_LOSS: a limit this far below its price.
STOP_LIMIT = Decimal("0.01")
# A market order of the whole account leaves this much for a price that moves until it is there.
RESERVE = Decimal("0.002")
TRADING = "TRADING"  # the status of a symbol that takes orders
_STATES = {
    Status.PENDING_NEW: OrderState.ACKED,
    Status.NEW: OrderState.ACKED,
    Status.PARTIALLY_FILLED: OrderState.PARTIAL,
    Status.FILLED: OrderState.FILLED,
    Status.CANCELED: OrderState.CANCELED,
    Status.EXPIRED: OrderState.CANCELED,
    Status.EXPIRED_IN_MATCH: OrderState.CANCELED,
    Status.REJECTED: OrderState.REJECTED,
}
_WORKING = (OrderState.ACKED, OrderState.PARTIAL)
# Of lines about no order, those that only a trader writes that has been reconciled.
_AT_WORK = (OrderState.DROPPED, OrderState.CARRIED)
_OPEN_QUESTION = (OrderState.INTENT, OrderState.UNKNOWN)
_NOWHERE = (OrderState.NOT_PLACED, OrderState.REJECTED, OrderState.DROPPED)
_STOOD = (*_WORKING, OrderState.CANCELED)
_RESTING = (Leg.STOP, Leg.TARGET)
# What a sale is for, of which nothing is known but its type.
_LEGS = {
    OrderType.STOP_LOSS: Leg.STOP,
    OrderType.STOP_LOSS_LIMIT: Leg.STOP,
    OrderType.LIMIT_MAKER: Leg.TARGET,
}
_PLACE, _CANCEL, _QUERY, _FILLS, _POLL = "place", "cancel", "query", "fills", "poll"
_FREE = Costs(0.0, 0.0, True)  # only shorts look at costs here
_PLACES = Decimal("1e-10")
_CENTS = Decimal("1e-8")
_INSUFFICIENT, _MISFIT = -2010, -1013
_DUPLICATE = "duplicate order sent"
_SHUT = "closed"  # the status of a symbol that refused an order so


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What the newest candle wants. leave: the rule's reason to sell, NONE = it wants to buy.
    price: limit, NaN = market. budget: quote units. attempt: of the exit. alone: not
    as a pair with a stop, which the exchange has refused."""

    signal: Signal
    leave: int = NONE
    price: float = NAN
    budget: float = 0.0
    attempt: int = 1
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Protection:
    """Where stop and target must rest now, on the tick; None = there is none."""

    stop: Decimal | None
    target: Decimal | None


@dataclass(frozen=True, slots=True)
class _Told:
    """What the exchange says of an order whose fills we do not all know yet. since_ms: account
    clock."""

    executed: Decimal
    state: OrderState
    reason: str
    since_ms: int


class Desk:
    """One symbol and interval. Use through `Core`."""

    def __init__(
        self,
        core: "Core",
        symbol: str,
        interval: str,
        rule: rules.Rules,
        ledger: Ledger,
        decisions: Decisions,
    ) -> None:
        self.core = core
        self.symbol = symbol
        self.interval = interval
        self.rule = rule
        self.ledger = ledger
        self.decisions = decisions
        self.filters: SymbolRules | None = None
        self.ready = False
        self.ready_ms = 0  # market time: signals of candles that closed before are not traded
        self.goal: Goal | None = None
        self.decided_ms = -1  # open time of the newest candle that was decided
        self.priced_ms = -1  # of the newest candle with prices that was seen
        self.seen_ms = -1  # of the newest candle that was seen
        self.extreme = NAN
        self.close = NAN
        self.signal: Signal | None = None
        self.diverged = ""
        self.short = 0  # sweeps in a row that found less than the position
        self.is_short = False  # the exchange has refused a sale for want of coins
        self.active_ms = 0  # account time of the newest fill
        self.asking: set[tuple[str, str]] = set()  # (what, client id): requests on their way
        self.ask_ms: dict[str, int] = {}  # when the order is asked about next, account clock
        self.misses: dict[str, list[int]] = {}  # when it was not found, account clock
        self.told: dict[str, _Told] = {}
        self.alarmed: set[str] = set()
        self.pause_ms = 0  # account clock: no step before
        self.closed_ms = 0  # account clock: when it last refused an order as closed
        self.misfit: SymbolRules | None = None  # by which an order was made that a filter refused
        self.foreign: set[int] = set()
        self.is_rebuilding = False
        self.knows_orders = False  # the journal has told of one, ever
        self.known_ms = 0  # what was sent until then, account clock, stands in the journal
        self.suspect = False  # the journal may have lost what a former life did

    # -- the journal --------------------------------------------------------------------------

    def load(self, line: Order) -> None:
        """A line that stands in the journal already."""
        if line.interval == self.interval:
            self.decisions.load(line)
        if line.mode == self.core.mode:
            self._add(line)

    def _add(self, line: Order) -> None:
        self.ledger.add(line)
        if begins_anew(line):
            self.told.clear()
        if line.client_id or line.state == OrderState.CARRIED:
            self.knows_orders = True
        if line.client_id:
            self.known_ms = max(self.known_ms, line.sent_ms)
        elif line.state in _AT_WORK:
            self.known_ms = max(self.known_ms, line.time_ms)

    def _write(self, line: Order) -> None:
        self.decisions.load(line)
        self._add(line)
        self.core.out.lines.append(line)

    def _about(
        self,
        order: Tracked,
        state: OrderState,
        now: Now,
        *,
        fills: Sequence[Fill] = (),
        reason: str = "",
        profit: str = "",
        worth: str = "",
        adopted: bool = False,
        quantity: Decimal | None = None,
    ) -> Order:
        """A line about an order of ours."""
        price = order.price or order.stop_price or order.reference or None
        if order.average is not None:
            price = order.average.quantize(_PLACES)
        if quantity is None:
            quantity = order.executed or order.quantity or None
        return Order(
            signal_id=order.signal_id,
            symbol=self.symbol,
            interval=self.interval,
            open_time_ms=order.open_time_ms,
            time_ms=now.ours_ms,
            state=state,
            side=order.side,
            quantity=text(quantity),
            price=text(price),
            reason=reason,
            score=order.score,
            release=order.release,
            mode=self.core.mode,
            leg=order.leg,
            attempt=order.attempt,
            client_id=order.client_id,
            list_id=order.list_id,
            order_id=order.order_id,
            type=order.type,
            order_quantity=text(order.quantity),
            order_price=text(order.price),
            stop_price=text(order.stop_price),
            sent_ms=order.sent_ms,
            market_ms=now.market_ms,
            worth=worth,
            profit=profit,
            fills={str(fill.trade_id): packed(fill) for fill in fills},
            is_adopted=adopted,
        )

    def _drop(self, signal: Signal, reason: str, now: Now) -> None:
        """The signal's one line: nothing is sent for it."""
        if signal.side not in SIDES or self.decisions.is_done(signal):
            return
        price = price_text(signal.close)
        line = self._bare(OrderState.DROPPED, reason, now)
        self._write(
            replace(
                line,
                signal_id=signal.id,
                open_time_ms=signal.open_time_ms,
                side=signal.side,
                price=price,
                score=signal.score,
                release=signal.release,
            )
        )

    def switch_line(self, state: OrderState, reason: str, now: Now) -> None:
        """HALTED, REDUCED, FLATTENED or RESUMED."""
        self._write(self._bare(state, reason, now))

    def carry(self, now: Now, others: Mapping[str, str]) -> None:
        """What all lines so far come to, in lines behind which a fold can begin: first those of
        other modes, given by mode."""
        line = self._bare(OrderState.CARRIED, "", now)
        self.core.out.lines += [replace(line, mode=m, carried=text) for m, text in others.items()]
        self._write(replace(line, carried=self.ledger.carried()))

    def _bare(self, state: OrderState, reason: str, now: Now) -> Order:
        """A line about no order."""
        return Order(
            signal_id="",
            symbol=self.symbol,
            interval=self.interval,
            open_time_ms=self.seen_ms,
            time_ms=now.ours_ms,
            state=state,
            side="",
            quantity="",
            price="",
            reason=reason,
            score=None,
            release="",
            mode=self.core.mode,
            market_ms=now.market_ms,
        )

    def _news(self, level: Level, code: str, what: str) -> None:
        self.core.news(level, code, f"{self.symbol}: {what}", self.symbol)

    # -- start --------------------------------------------------------------------------------

    def begin(self, now: Now) -> None:
        """After the journal is loaded: what a former life was about to send may have been sent."""
        for order in list(self.ledger.open.values()):
            if order.state == OrderState.INTENT:
                self._unknown(order, "found at start", now, wait_ms=0)
            else:
                self.ask_ms[order.client_id] = now.account_ms

    def expect(self, signal: Signal, now: Now) -> None:
        """The journal may have lost what a former life did about this signal: it is only looked
        for, by the name that its entry would have."""
        name = client_id(signal.id, Leg.ENTRY)
        if self.decisions.is_done(signal) or name in self.ledger.orders:
            return
        order = _tracked(signal, Leg.ENTRY, 1, name, Side.BUY, "", ZERO, now.account_ms)
        self.ledger.orders[name] = order
        self._unknown(order, "older than this start, and the journal may have lost it", now)

    def ruled(self, found: SymbolRules, now: Now) -> None:
        """The exchange's rules for the symbol, asked for again. They may say that it trades while
        every order is refused as closed: then one may be tried again only after a while."""
        before, until_ms = self.filters, self.closed_ms + CLOSED_MS
        if before is not None and found.status == TRADING and before.status == _SHUT:
            found = replace(found, status=_SHUT if now.account_ms < until_ms else TRADING)
        if before is not None and found.status != before.status:
            what = f"{self.symbol} is {found.status} now, before {before.status}"
            self.core.news(Level.ALERT, "symbol_status", what, self.symbol)
        self.filters = found
        self.advance(now)

    # -- candles ------------------------------------------------------------------------------

    def extend(self, bar: Bar) -> None:
        """The next candle: what a trailing stop follows."""
        if bar.open_time_ms <= self.seen_ms:
            return
        self.seen_ms = bar.open_time_ms
        if not rules.is_candle(bar):
            return
        self.priced_ms, self.close = bar.open_time_ms, bar.close
        if self.ledger.position <= 0:
            self.extreme = NAN
            return
        entry_ms = self._entry_ms()
        if bar.open_time_ms >= entry_ms:
            inside = self.ledger.entry_inside and bar.open_time_ms == entry_ms
            self.extreme = rules.with_extreme(self._held(), bar, inside).extreme

    def decide(self, signal: Signal, bar: Bar, now: Now) -> None:
        """The close of a candle. bar: its prices and score, NaN where there are none."""
        self.extend(bar)
        if not self.decisions.is_done(signal) and signal.open_time_ms > self.decided_ms:
            refusal = self.decisions.refusal(signal, now.market_ms)
            is_candle = rules.is_candle(bar)
            is_old = signal.open_time_ms + self.rule.step_ms < self.ready_ms
            if not is_candle:  # those of before this start are not read
                refusal = refusal or ("" if is_old else "its candle is not on the bus")
            elif not refusal and not math.isclose(signal.close, bar.close, rel_tol=1e-6):
                refusal = f"invalid: close {signal.close:g} is not its candle's, {bar.close:g}"
            if refusal and not (signal.invalid and is_candle):
                self._drop(signal, refusal, now)
            elif self._may_have_been_traded(signal):
                self.expect(signal, now)
            elif is_old:
                self._drop(signal, "older than this start: it is not acted upon any more", now)
            elif not self.ready:
                self._drop(signal, "not reconciled with the exchange yet", now)
            else:
                self.decided_ms = signal.open_time_ms
                self.signal = signal
                self._give_up("the next candle came first", now)
                self.decisions.passed(signal)
                self._want(signal, bar, refusal, now)
        self.advance(now)

    def _may_have_been_traded(self, signal: Signal) -> bool:
        """By a former life just before this one, whose journal is not whole."""
        closed_ms = signal.open_time_ms + self.rule.step_ms
        recent_ms = self.ready_ms - self.core.limits.max_age_ms - ALARM_MS
        return self.suspect and signal.side == "BUY" and recent_ms < closed_ms < self.ready_ms

    def _give_up(self, why: str, now: Now) -> None:
        """What an older candle wanted is not wanted any more."""
        goal, self.goal = self.goal, None
        if goal is not None:
            self._drop(goal.signal, why, now)

    def _want(self, signal: Signal, bar: Bar, refusal: str, now: Now) -> None:
        wanted = rules.decide(self._state(bar), bar, self.rule)
        if wanted.leave != NONE:
            self.goal = Goal(signal=signal, leave=wanted.leave, price=wanted.price)
        elif wanted.enter <= 0:
            self._drop(signal, refusal or self._why_nothing(signal, bar), now)
        elif (order := self.unknown) is not None:
            what = f"an order of unknown fate ({order.client_id}) is not resolved yet"
            self._drop(signal, what, now)
        else:
            self.goal = Goal(signal=signal, price=wanted.price, budget=wanted.budget)

    def _why_nothing(self, signal: Signal, bar: Bar) -> str:
        held = self.sellable(bar.close)
        if signal.side == "SELL":
            return "held: the rules want no exit" if held else "nothing to sell"
        if held:
            return "held already"
        if bar.open_time_ms < self._free_ms():
            return f"cool-down until {iso(self._free_ms())}"
        return "the rules want no entry" if self.core.cash() > 0 else "no cash"

    # -- the rules' view of the account -------------------------------------------------------

    def _entry_ms(self) -> int:
        return floor_ms(self.ledger.entry_ms, self.rule.step_ms)

    def _free_ms(self) -> int:
        if not self.ledger.exit_ms:
            return 0
        step_ms = self.rule.step_ms
        return floor_ms(self.ledger.exit_ms, step_ms) + self.rule.cool_down * step_ms

    def _held(self) -> State:
        """The position as the rules see it."""
        paid = self.ledger.entry_price
        entry = NAN if paid is None else float(paid)
        extreme = entry if math.isnan(self.extreme) else self.extreme
        return State(
            0.0, float(self.ledger.position), entry, self._entry_ms(), extreme, 0.0,
            NONE, 0, NAN, 0.0, self._free_ms(),
        )  # fmt: skip

    def _state(self, bar: Bar) -> State:
        cash = float(self.core.cash())
        if self.sellable(bar.close):
            return self._held()._replace(cash=cash)
        return rules.start(cash)._replace(free_ms=self._free_ms())

    def sellable(self, price: float) -> Decimal:
        """How much of the position an order may sell; 0 where it is dust."""
        known = self.filters
        if known is None or self.ledger.position <= 0 or not price > 0:
            return ZERO
        quantity = self.ledger.position
        if self.diverged or self.is_short:
            quantity = min(quantity, self.covered)
        quantity = known.floor_quantity(quantity, at_market=True)
        if quantity <= 0 or quantity < max(known.lot.least, known.market_lot.least):
            return ZERO
        if quantity * Decimal(repr(price)) < known.min_notional:
            return ZERO
        return quantity

    @property
    def covered(self) -> Decimal:
        """Base asset that we could sell: what is free, and what our own sales lock (free again once
        they are cancelled). What somebody else's orders lock is not ours to sell."""
        locked: dict[str, Decimal] = {}
        for order in self.ledger.open.values():
            if order.side == Side.SELL and order.state in (OrderState.ACKED, OrderState.PARTIAL):
                # The two orders of a pair lock the same coins.
                place = order.list_id or order.client_id
                left = order.quantity - order.executed
                locked[place] = max(left, locked.get(place, ZERO))
        ours = sum(locked.values(), self.core.held(self.ledger.base))
        return min(ours, self.core.held(self.ledger.base, whole=True))

    # -- what to do next ----------------------------------------------------------------------

    @property
    def settled(self) -> bool:
        """Nothing is on its way that a decision waits for."""
        return not self.asking or all(what == _POLL for what, _ in self.asking)

    def waits(self, signal: Signal | None) -> bool:
        """Whether it is still to be acted upon, and no line of the journal says so."""
        if self.goal is None or signal is None or self.goal.signal.id != signal.id:
            return False
        return not self.decisions.is_done(signal)

    @property
    def unknown(self) -> Tracked | None:
        """An order of which nobody knows whether it was executed."""
        for order in self.ledger.open.values():
            if order.state in _OPEN_QUESTION:
                return order
        return None

    def advance(self, now: Now) -> None:
        """Takes the next step, if it is time for one."""
        if not self.ready or not self.settled or self.told or self.unknown is not None:
            return
        if now.account_ms < self.pause_ms or self.core.clock_is_off:
            return
        self.pause_ms = 0
        switch = self.core.switch
        flatten = switch == OrderState.FLATTENED
        quantity = self.sellable(self.close)
        if self.goal is not None and self.goal.leave != NONE and not quantity:
            self._give_up("nothing to sell", now)
        leave = flatten or (self.goal is not None and self.goal.leave != NONE)
        protection = self._protection() if quantity and not leave else None
        unwanted = self._unwanted(leave, protection, quantity, now)
        if unwanted is not None:
            self._ask(_CANCEL, unwanted.client_id, Cancel(unwanted.client_id))
            return
        if switch == OrderState.HALTED:
            self._give_up(f"halted: {self.core.why_switched}", now)
        elif flatten:
            self._give_up(f"halted: {self.core.why_switched}", now)
            if quantity:
                self._flatten(quantity, now)
        elif leave:
            self._leave(quantity, now)
        elif self.goal is not None:
            self._enter(self.goal, now)
        elif protection is not None and not self._standing(_RESTING):
            self._protect(protection, quantity, now)

    def _ask(self, what: str, name: str, request: Request) -> None:
        self.asking.add((what, name))
        self.core.request(self.symbol, request)

    def _standing(self, legs: Collection[str]) -> list[Tracked]:
        return [order for order in self.ledger.open.values() if order.leg in legs]

    def _unwanted(
        self, leave: bool, protection: Protection | None, quantity: Decimal, now: Now
    ) -> Tracked | None:
        """An order at the exchange that must go before anything else is done."""
        if not self.ledger.open:
            return None
        switch = self.core.switch
        for order in self._standing((Leg.ENTRY,)):
            lapses_ms = order.open_time_ms + 2 * self.rule.step_ms + self.core.limits.max_age_ms
            if (
                leave
                or switch != OrderState.RESUMED
                or order.open_time_ms < self.seen_ms
                or now.market_ms > lapses_ms
            ):
                return order
        if switch == OrderState.HALTED:
            return None
        exits = self._standing((Leg.EXIT,))
        for order in exits:
            if switch == OrderState.FLATTENED or order.open_time_ms < self.priced_ms:
                return order
        resting = self._standing(_RESTING)
        if exits or not resting or not quantity:
            return None
        return resting[0] if leave or not _is_as_wanted(resting, protection, quantity) else None

    # -- sending ------------------------------------------------------------------------------

    def _enter(self, goal: Goal, now: Now) -> None:
        self.goal = None
        signal, known = goal.signal, self.filters
        refusal = self._stale(signal, now) or self.core.entry_refusal(self, signal, now)
        if refusal or known is None:
            self._drop(signal, refusal or "the symbol's rules are not known yet", now)
            return
        close = Decimal(repr(signal.close))
        price = None if math.isnan(goal.price) else known.floor_price(_decimal(goal.price))
        cash = self.core.cash()
        budget = min(_decimal(goal.budget), cash)
        if price is None:
            budget = min(budget, cash / (1 + RESERVE))
        if self.core.limits.max_notional is not None:
            budget = min(budget, self.core.limits.max_notional)
        quantity = known.floor_quantity(budget / (price or close), at_market=price is None)
        order = NewOrder(
            symbol=self.symbol,
            client_id=client_id(signal.id, Leg.ENTRY),
            side=Side.BUY,
            type=OrderType.MARKET if price is None else OrderType.LIMIT,
            quantity=quantity,
            price=price,
            time_in_force="" if price is None else "GTC",
        )
        problem = self._problem(order, close)
        if problem:
            self._drop(signal, problem, now)
        elif order.client_id in self.ledger.orders:
            self._drop(signal, f"its order {order.client_id} was sent before", now)
        else:
            worth = text(self.core.worth().quantize(_CENTS))
            self._send(signal, [(Leg.ENTRY, order)], order, now, reference=close, worth=worth)

    def _leave(self, quantity: Decimal, now: Now) -> None:
        goal, known = self.goal, self.filters
        if goal is None or known is None or self._standing((Leg.EXIT,)):
            return
        signal = goal.signal
        if goal.leave == rules.SCORE and (refusal := self._stale(signal, now)):
            self._give_up(refusal, now)
            return
        price = None if math.isnan(goal.price) else known.ceil_price(_decimal(goal.price))
        name = client_id(signal.id, Leg.EXIT, goal.attempt)
        if name in self.ledger.orders:
            self.goal = None
            return
        close = Decimal(repr(self.close))
        protection = self._protection() if price is not None and not goal.alone else None
        if protection is not None and protection.target is not None and price is not None:
            price = min(price, protection.target)
        stop = protection.stop if protection is not None else None
        if price is not None and stop is not None and price > close > stop and known.oco_allowed:
            # The waiting exit and the stop share the coins: as one pair of orders they can.
            self._send_pair(signal, Leg.EXIT, goal.attempt, price, stop, quantity, now)
            return
        order = NewOrder(
            symbol=self.symbol,
            client_id=name,
            side=Side.SELL,
            type=OrderType.MARKET if price is None else OrderType.LIMIT,
            quantity=quantity,
            price=price,
            time_in_force="" if price is None else "GTC",
        )
        problem = self._problem(order, close)
        if problem:
            self._give_up(problem, now)
            self._alarm(f"exit {problem}", "unsold", f"cannot be sold now: {problem}")
            return
        reference = close if signal.open_time_ms == self.priced_ms else ZERO
        self._send(
            signal, [(Leg.EXIT, order)], order, now, attempt=goal.attempt, reference=reference
        )

    def _flatten(self, quantity: Decimal, now: Now) -> None:
        if self._standing((Leg.FLATTEN,)):
            return
        signal = self._placeholder()
        attempt = self._attempt(signal, Leg.FLATTEN)
        order = NewOrder(
            symbol=self.symbol,
            client_id=client_id(signal.id, Leg.FLATTEN, attempt),
            side=Side.SELL,
            type=OrderType.MARKET,
            quantity=quantity,
        )
        problem = self._problem(order, Decimal(repr(self.close)))
        if problem:
            self._alarm(f"flatten {problem}", "unsold", f"cannot be sold now: {problem}")
            return
        self._send(signal, [(Leg.FLATTEN, order)], order, now, attempt=attempt)

    def _protection(self) -> Protection | None:
        """What the rules want to rest at the exchange; None = nothing."""
        if self.filters is None:
            return None
        wanted = rules.protection(self._held(), self.rule, _FREE)
        stop = target = None
        if not math.isnan(wanted.stop):
            stop = self.filters.floor_price(_decimal(wanted.stop))
            if self.rule.trailing_stop > 0.0:
                # A candle that the bus does not hold any more may have moved it further.
                stop = max([stop, *self._stops()])
        if not math.isnan(wanted.target):
            target = self.filters.ceil_price(_decimal(wanted.target))
        return None if stop is target is None else Protection(stop, target)

    def _stops(self) -> list[Decimal]:
        """Where stops of this position have rested."""
        since_ms = self._entry_ms()
        return [
            order.stop_price
            for order in self.ledger.orders.values()
            if order.leg == Leg.STOP
            and not order.is_former
            and order.stop_price is not None
            and order.open_time_ms + self.rule.step_ms > since_ms
            and order.state in _STOOD
        ]

    def _protect(self, wanted: Protection, quantity: Decimal, now: Now) -> None:
        known = self.filters
        if known is None:
            return
        signal = self._placeholder()
        stop, target = wanted.stop, wanted.target
        if stop is not None and target is not None and not known.oco_allowed:
            self._alarm("oco", "unprotected", "takes no pairs of orders: only the stop rests there")
            target = None
        if stop is not None and target is not None:
            attempt = self._attempt(signal, Leg.STOP, Leg.TARGET)
            self._send_pair(signal, Leg.TARGET, attempt, target, stop, quantity, now)
            return
        leg = Leg.STOP if stop is not None else Leg.TARGET
        attempt = self._attempt(signal, leg)
        kind, limit = self._stop_type(stop)
        order = NewOrder(
            symbol=self.symbol,
            client_id=client_id(signal.id, leg, attempt),
            side=Side.SELL,
            type=kind if stop is not None else OrderType.LIMIT,
            quantity=quantity,
            price=limit if stop is not None else target,
            stop_price=stop,
            time_in_force="GTC" if stop is None or limit is not None else "",
        )
        problem = self._problem(order, Decimal(repr(self.close)))
        if problem:
            self._alarm(f"protect {problem}", "unprotected", f"is not protected: {problem}")
            return
        self._send(signal, [(leg, order)], order, now, attempt=attempt)

    def _send_pair(
        self,
        signal: Signal,
        leg: Leg,
        attempt: int,
        target: Decimal,
        stop: Decimal,
        quantity: Decimal,
        now: Now,
    ) -> None:
        """A target (or an exit that waits) and a stop of which one ends the other."""
        if self.filters is None:
            return
        stop_attempt = self._attempt(signal, Leg.STOP)
        oco = NewOco(
            symbol=self.symbol,
            list_client_id=list_id(signal.id, leg, attempt),
            side=Side.SELL,
            quantity=quantity,
            target_client_id=client_id(signal.id, leg, attempt),
            target_price=target,
            stop_client_id=client_id(signal.id, Leg.STOP, stop_attempt),
            stop_price=stop,
            stop_limit_price=self._stop_type(stop)[1],
        )
        problem = filters.problem_of_oco(
            oco, self.filters, reference=Decimal(repr(self.close)), standing=self._numbers()
        )
        if problem is not None:
            self._alarm(f"pair {problem}", "unprotected", f"is not protected: {problem}")
            if leg == Leg.EXIT:
                self._give_up(str(problem), now)
            return
        target_order, stop_order = filters.legs(oco)
        self._send(
            signal, [(leg, target_order), (Leg.STOP, stop_order)], oco, now, attempt=attempt,
            attempts={Leg.STOP: stop_attempt},
        )  # fmt: skip

    def _at_any_price(self) -> Goal:
        """To sell at market, whatever was tried on this candle before."""
        signal = self._placeholder()
        return Goal(signal=signal, leave=rules.STOP, attempt=self._attempt(signal, Leg.EXIT))

    def _stop_type(self, stop: Decimal | None) -> tuple[OrderType, Decimal | None]:
        """(type, limit price or None) of a stop."""
        known = self.filters
        if stop is None or known is None or OrderType.STOP_LOSS in known.order_types:
            return OrderType.STOP_LOSS, None
        return OrderType.STOP_LOSS_LIMIT, known.floor_price(stop * (1 - STOP_LIMIT))

    def _send(
        self,
        signal: Signal,
        orders: Sequence[tuple[Leg, NewOrder]],
        request: NewOrder | NewOco,
        now: Now,
        *,
        attempt: int = 1,
        attempts: Mapping[Leg, int] | None = None,
        reference: Decimal = ZERO,
        worth: str = "",
    ) -> None:
        """The intent's lines, then its one request."""
        if self.core.is_busy(now):  # it sells or protects: it must get through, but not in a rush
            self.pause_ms = now.account_ms + ASK_MS
            what = "trader.limits.orders_per_minute is reached: what sells or protects goes slowly"
            self._alarm("busy", "orders_per_minute", what)
        names = []
        for leg, new in orders:
            number = (attempts or {}).get(leg, attempt)
            order = _tracked(
                signal, leg, number, new.client_id, new.side, new.type,
                new.quantity or ZERO, now.account_ms,
            )  # fmt: skip
            order.price, order.stop_price, order.reference = new.price, new.stop_price, reference
            if isinstance(request, NewOco):
                order.list_id = request.list_client_id
            names.append(new.client_id)
            self._write(self._about(order, OrderState.INTENT, now, worth=worth))
            self.asking.add((_PLACE, new.client_id))
        reduces = all(new.side is Side.SELL for _, new in orders)
        place = Place(request, now.account_ms, tuple(names), reduces)
        self.core.request(self.symbol, place)

    def _attempt(self, signal: Signal, *legs: Leg) -> int:
        """The first attempt whose names are not used yet."""
        number = 1
        while any(client_id(signal.id, leg, number) in self.ledger.orders for leg in legs):
            number += 1
        return number

    def _placeholder(self) -> Signal:
        """The newest candle's signal, or one with its id: what no signal caused is filed there."""
        if self.signal is not None and self.signal.open_time_ms == self.seen_ms:
            return self.signal
        return Signal(
            open_time_ms=self.seen_ms, symbol=self.symbol, interval=self.interval,
            close=self.close, score=None, side="", invalid="", release="", schema="",
        )  # fmt: skip

    def _stale(self, signal: Signal, now: Now) -> str:
        age_ms = now.market_ms - (signal.open_time_ms + self.rule.step_ms)
        if age_ms <= self.core.limits.max_age_ms:
            return ""
        return f"too old by now: {age_ms / 1000:.3f} s"

    def _numbers(self) -> filters.Standing:
        """Our open orders and position, for the limits on them."""
        open_orders = list(self.ledger.open.values())
        stops = [order for order in open_orders if order.leg == Leg.STOP]
        buys = [order.quantity - order.executed for order in open_orders if order.side == "BUY"]
        return filters.Standing(
            open_orders=len(open_orders),
            open_algo_orders=len(stops),
            open_lists=len({order.list_id for order in open_orders if order.list_id}),
            base_total=self.core.held(self.ledger.base, whole=True),
            open_buys=sum(buys, ZERO),
        )

    def _problem(self, order: NewOrder, reference: Decimal) -> str:
        """Why the exchange would refuse it, "" = it would not."""
        if self.filters is None:
            return "the symbol's rules are not known yet"
        found = filters.problem_of(
            order, self.filters, reference=reference, standing=self._numbers()
        )
        return "" if found is None else str(found)

    # -- what the exchange says ---------------------------------------------------------------

    def placed(
        self,
        names: Sequence[str],
        result: Sequence[OrderReport] | NotSent | Refused | Unsure,
        now: Now,
    ) -> None:
        """The one request of an intent has ended."""
        for name in names:
            self.asking.discard((_PLACE, name))
        # Of one that the user stream has told of meanwhile, the answer says nothing new.
        orders = [
            order
            for name in names
            if (order := self.ledger.orders[name]).state == OrderState.INTENT
            or not isinstance(result, NotSent | Refused | Unsure)
        ]
        if isinstance(result, NotSent):
            state = OrderState.NOT_PLACED if result.passes else OrderState.DROPPED
            for order in orders:
                self._ended(order, state, f"not sent: {result.reason}", now)
            if result.wait_ms:
                until_ms = now.account_ms + min(result.wait_ms, STOPPED_MS)
                self.pause_ms = max(self.pause_ms, until_ms)
        elif isinstance(result, Unsure):
            for order in orders:
                self._unknown(order, result.reason, now)
        elif isinstance(result, Refused) and _DUPLICATE in result.text.lower():
            for order in orders:
                self._unknown(order, result.text, now)
        elif isinstance(result, Refused):
            goal = self.goal
            for order in orders:
                self._ended(order, OrderState.REJECTED, f"{result.code} {result.text}", now)
            if orders:
                self._refused(orders[0], goal, result, now)
        else:
            for report in result:
                self._report(report, now)
            for order in orders:
                if order.state == OrderState.INTENT:  # a reply that does not tell of all
                    self._unknown(order, "the reply does not tell of it", now)
        self.advance(now)

    def _refused(self, order: Tracked, goal: Goal | None, result: Refused, now: Now) -> None:
        what = f"the exchange refuses the {order.leg} order: {result.code} {result.text}"
        self._news(Level.WARNING, "order_refused", what)
        if result.is_about_key:
            self.core.halt(f"the exchange refuses the key: {result.text}", now)
        if result.is_late:
            self.core.clock_is_off = True
            self.core.request(self.symbol, MeasureClock())
        if result.is_closed and self.filters is not None:
            # Until the exchange tells what it is, and by the newest word trades again.
            self.filters = replace(self.filters, status=_SHUT)
            self.closed_ms = now.account_ms
            self.core.request(self.symbol, FetchRules())
        elif result.code == _MISFIT:
            self.core.request(self.symbol, FetchRules())
        elif result.code == _INSUFFICIENT:
            self.core.request(self.symbol, FetchBalances())
            if order.leg == Leg.EXIT and goal is not None and not self.is_short:
                # Somebody else sold or locked our coins: what is left is sold, once it is known.
                self.is_short = True
                self.goal = replace(goal, attempt=goal.attempt + 1)
        if result.is_late or result.is_closed:
            # No word about the order: it may be sent under another name.
            is_wanted = goal is not None and goal.signal.id == order.signal_id
            if result.is_late and order.leg == Leg.EXIT and goal is not None and is_wanted:
                self.goal = replace(goal, attempt=goal.attempt + 1)
            if order.leg != Leg.ENTRY:  # but not at once
                self.pause_ms = now.account_ms + ASK_MS
            return
        most = self.core.limits.refusals
        if most and self.core.refusals() >= most:
            self.core.halt(f"{most} orders in a row were refused, last: {result.text}", now)
        # The filters may be others by now: what sells or protects is made anew by the newest, once.
        is_misfit = result.code == _MISFIT and self.misfit != self.filters
        if is_misfit:
            self.misfit = self.filters
        if is_misfit or (order.leg in (Leg.EXIT, Leg.FLATTEN) and not order.list_id):
            self.pause_ms = now.account_ms + ASK_MS
        if order.leg == Leg.EXIT and goal is not None and (order.list_id or is_misfit):
            # Without a filter in its way a pair is refused where the market is at the exit's price
            # already: a limit order alone takes it.
            alone = goal.alone or not is_misfit
            self.goal = replace(goal, attempt=goal.attempt + 1, alone=alone)
        if order.leg in _RESTING and self.core.switch != OrderState.HALTED and not is_misfit:
            self._news(Level.ALERT, "unprotected", "cannot be protected: it is sold at market")
            self.goal = self._at_any_price()

    def _unknown(
        self, order: Tracked, reason: str, now: Now, *, wait_ms: int = FIRST_ASK_MS
    ) -> None:
        order.reason = reason
        self._write(self._about(order, OrderState.UNKNOWN, now, reason=reason))
        self.ask_ms[order.client_id] = now.account_ms + wait_ms
        what = f"it is not known whether the {order.leg} order {order.client_id} was executed"
        self._news(Level.WARNING, "order_unknown", f"{what} ({reason}); the exchange is asked")

    def found(
        self, name: str, report: OrderReport | None, asked_ms: int, now: Now, *, what: str
    ) -> None:
        """A query's answer; None: there is no such order. asked_ms: when it was asked, account
        clock."""
        self.asking.discard((what, name))
        order = self.ledger.orders.get(name)
        if report is not None:
            self.misses.pop(name, None)
            self._report(report, now)
        elif order is not None and not order.is_final:
            # Before that it may be under way still: the answer proves nothing.
            if asked_ms > order.sent_ms + SETTLE_MS:
                self.misses.setdefault(name, []).append(asked_ms)
            missed = self.misses.get(name, [])
            if order.state in _WORKING:
                self.pause_ms = now.account_ms + ASK_MS
                if missed and asked_ms - missed[0] > ALARM_MS:
                    self._lost(order, now)
            elif len(missed) >= MISSES:
                self._ended(order, OrderState.NOT_PLACED, "it never reached the exchange", now)
        is_working = order is not None and order.state in _WORKING
        self.ask_ms[name] = now.account_ms + (POLL_MS if is_working else ASK_MS)
        self._forget(name)
        self.advance(now)

    def _lost(self, order: Tracked, now: Now) -> None:
        """The exchange had it and has not known it for a minute: the account was reset, or it is
        another one."""
        what = f"the exchange does not know its own order {order.client_id} any more"
        self._ended(order, OrderState.CANCELED, what, now)
        self._raise_alarm("order_lost", what, now)

    def unanswered(self, name: str, reason: str, now: Now, *, what: str = _FILLS) -> None:
        """A query, or a request for fills, had no answer."""
        self.asking.discard((what, name))
        self.ask_ms[name] = now.account_ms + ASK_MS
        order = self.ledger.orders.get(name)
        if order is not None and order.state == OrderState.UNKNOWN:
            late_ms = now.account_ms - order.sent_ms
            if late_ms > ALARM_MS:
                what = f"order {name} is unknown for {late_ms // 1000} s: {reason}"
                self._alarm(f"unknown {name}", "order_unknown", what)
        self._alarm_of_fills(name, reason, now)

    def _alarm_of_fills(self, name: str, reason: str, now: Now) -> None:
        """An order that has filled blocks its symbol until it is known at which prices."""
        order, told = self.ledger.orders.get(name), self.told.get(name)
        if order is None or told is None or now.account_ms - told.since_ms <= ALARM_MS:
            return
        late_s = (now.account_ms - told.since_ms) // 1000
        what = (
            f"{text(told.executed)} of order {name} filled, prices and fees of "
            f"{text(told.executed - order.executed)} are unknown for {late_s} s: {reason}"
        )
        self._alarm(f"fills {name}", "order_unknown", what)

    def cancelled(
        self, name: str, result: OrderReport | Refused | Unsure | NotSent | None, now: Now
    ) -> None:
        """The answer to a cancel. None: there is no such open order: it may have filled."""
        self.asking.discard((_CANCEL, name))
        order = self.ledger.orders.get(name)
        if isinstance(result, OrderReport):
            self._report(result, now)
        elif order is not None and not order.is_final:
            if result is not None:  # an exchange that is in trouble is not asked again at once
                self.pause_ms = now.account_ms + ASK_MS
            self._ask(_QUERY, name, Query(name, _QUERY))
        if order is not None and order.list_id:
            for other in self.ledger.open.values():
                if other.list_id == order.list_id and other is not order:
                    self._ask(_QUERY, other.client_id, Query(other.client_id, _QUERY))
        self.advance(now)

    def reported(self, report: OrderReport, now: Now) -> None:
        """News of an order, from whatever source, however often and in whatever order."""
        self._report(report, now)
        self.advance(now)

    def filled(self, name: str, fills: Sequence[Fill], now: Now) -> None:
        """All fills of an order, asked for because some were not told."""
        order, told = self.ledger.orders.get(name), self.told.get(name)
        if order is not None and told is not None:
            self._news_of(order, told.state, told.executed, fills, told.reason, now)
        self.asking.discard((_FILLS, name))
        if name in self.told:  # the books that tell of fills are behind those of orders
            self.ask_ms[name] = now.account_ms + ASK_MS
            self._alarm_of_fills(name, "its trades are not told", now)
        self.advance(now)

    def _report(self, report: OrderReport, now: Now) -> None:
        state = _STATES[report.status]
        name = report.client_id.removesuffix(CANCEL_SUFFIX)
        order = self.ledger.orders.get(name)
        if order is not None and order.is_former:
            return
        is_other = order is not None and order.order_id not in (0, report.order_id)
        if order is None or (is_other and name != report.client_id):
            # Once cancelled it goes by the name of the cancel, a pair by that of one of both.
            order = self.ledger.by_order_id.get(report.order_id)
        if order is None:
            if not is_ours(report.client_id):
                self._foreign(report)
                return
            order = self._adopt(report, name, now)
        elif order.state in _NOWHERE and state != OrderState.REJECTED:
            what = f"order {order.client_id} is {report.status}, though it was {order.state}"
            order.order_id = report.order_id
            self._write(self._about(order, OrderState.ACKED, now, reason=what, adopted=True))
            self._raise_alarm("adopted", f"{what}: it is taken in", now)
        if not order.quantity:  # of an order whose intent is lost
            # In the digits of the line that will tell it.
            order.quantity, order.type = Decimal(text(report.quantity)), report.type
            order.price = Decimal(text(report.price)) if report.price else None
            order.stop_price = Decimal(text(report.stop_price)) if report.stop_price else None
        is_new = order.order_id != report.order_id
        order.order_id = report.order_id
        self._news_of(
            order, state, report.executed, report.fills, why_ended(report), now, is_new=is_new
        )

    def _news_of(
        self,
        order: Tracked,
        state: OrderState,
        executed: Decimal,
        fills: Sequence[Fill],
        reason: str,
        now: Now,
        *,
        is_new: bool = False,
    ) -> None:
        """Counts what is filled; the order ends once its fills are those that the exchange says."""
        name = order.client_id
        new = {fill.trade_id: fill for fill in fills if fill.trade_id not in self.ledger.trades}
        for fill in new.values():
            self.ledger.fill(order, fill, now.market_ms)
            self.core.count(fill, self.ledger)
            self.active_ms = max(self.active_ms, fill.time_ms)
        if new and (what := self.core.spent(order, now)):
            self._alarm(f"cost {name}", "max_notional", what)
        told = self.told.get(name)
        if told is not None and (
            told.executed > executed or (told.executed == executed and _is_final(told.state))
        ):
            executed, state, reason = told.executed, told.state, told.reason  # this one is older
        if order.executed < executed:
            since_ms = now.account_ms if told is None else told.since_ms
            self.told[name] = _Told(executed, state, reason, since_ms)
            if (_FILLS, name) not in self.asking:
                self._ask(_FILLS, name, FetchFills(name, order.order_id))
            state = OrderState.PARTIAL
        else:
            self.told.pop(name, None)
        if state == OrderState.ACKED and order.executed:
            state = OrderState.PARTIAL
        if state == OrderState.PARTIAL and not order.executed:
            state = OrderState.ACKED
        rank = RANKS[state]
        if not new and not is_new and rank <= RANKS[order.state]:
            return
        if rank < RANKS[order.state]:
            state = order.state
        if _is_final(state) and not order.is_final:
            self._ended(order, state, reason, now, fills=tuple(new.values()))
            return
        if state == OrderState.ACKED and RANKS[order.state] < rank and order.type != "MARKET":
            what = f"{order.leg} {order.side} {text(order.quantity)} rests at"
            self._news(
                Level.INFO, "order_placed", f"{what} {text(order.stop_price or order.price)}"
            )
        self._write(self._about(order, state, now, fills=tuple(new.values())))
        if not order.is_final:
            self.ask_ms[name] = now.account_ms + POLL_MS

    def _ended(
        self,
        order: Tracked,
        state: OrderState,
        reason: str,
        now: Now,
        *,
        fills: Sequence[Fill] = (),
    ) -> None:
        """The order's last line; what follows from it for what is wanted."""
        average = order.average
        profit = ""
        if average is not None and not self.sellable(float(average)):
            if order.side == Side.SELL:
                profit = text(self.ledger.trip_profit)
            if self.ledger.position > 0:
                line = self._about(
                    order, OrderState.DUST, now, quantity=self.ledger.position,
                    reason="too little to be sold: it is carried",
                )  # fmt: skip
                self._write(line)
        self._write(
            self._about(
                order, state, now, fills=fills, reason=reason or order.reason, profit=profit
            )
        )
        self._forget(order.client_id)
        self._tell(order, state, reason, profit)
        goal = self.goal
        # At market the book was too thin for all of it: the rest is still to be sold.
        is_short = order.side == Side.SELL and order.type == OrderType.MARKET
        is_short = is_short and state == OrderState.CANCELED
        if goal is not None and goal.leave != NONE and goal.signal.id == order.signal_id:
            if state == OrderState.NOT_PLACED or is_short:
                self.goal = replace(goal, attempt=goal.attempt + 1)
            elif order.leg in (Leg.EXIT, Leg.FLATTEN):
                self.goal = None
        if state == OrderState.NOT_PLACED or is_short:
            self.pause_ms = now.account_ms + ASK_MS

    def _tell(self, order: Tracked, state: OrderState, reason: str, profit: str) -> None:
        what = f"{order.leg} {order.side}"
        if order.average is not None:
            text_ = f"{what} {text(order.executed)} at {text(order.average.quantize(_PLACES))}"
            if state != OrderState.FILLED:
                text_ += f", then {state}" + (f" ({reason})" if reason else "")
            if profit:
                text_ += f"; profit after fees {profit} {self.ledger.quote}"
            self._news(Level.INFO, "order_filled", text_)
        elif state == OrderState.NOT_PLACED:
            self._news(Level.WARNING, "order_not_placed", f"{what}: {reason}")
        elif state == OrderState.DROPPED:
            self._news(Level.WARNING, "order_not_sent", f"{what}: {reason}")

    def _forget(self, name: str) -> None:
        order = self.ledger.orders.get(name)
        if order is None or order.is_final:
            for memory in (self.misses, self.ask_ms):
                memory.pop(name, None)

    def rebuild(self, reports: Sequence[OrderReport], now: Now) -> None:
        """The journal knows of no order. What the account has by our prefix, oldest first, is taken
        in: a journal was lost, and only an operator says that trading goes on (FAULTS V4)."""
        told = len(self.core.out.news)
        self.is_rebuilding = True
        for report in reports:
            at = replace(now, market_ms=min(now.market_ms, report.time_ms))
            self._report(report, at)
        self.is_rebuilding = False
        ours = [order.client_id for order in self.ledger.orders.values()]
        if ours:
            del self.core.out.news[told:]
            what = (
                f"the journal knew of no order, the account has {len(ours)} of ours "
                f"({', '.join(ours[-3:])}): they are taken in, {text(self.ledger.position)} "
                f"{self.ledger.base} is held"
            )
            self._raise_alarm("rebuilt", what, now)

    def _adopt(self, report: OrderReport, name: str, now: Now) -> Tracked:
        """An order with our prefix that the journal does not know."""
        leg = _LEGS.get(report.type, Leg.EXIT) if report.side is Side.SELL else Leg.ENTRY
        if name in self.ledger.orders:
            name = f"{PREFIX}{report.order_id}"
        order = Tracked(
            client_id=name,
            signal_id=f"{self.symbol}-adopted-{report.order_id}",
            open_time_ms=floor_ms(now.market_ms, self.rule.step_ms),
            leg=leg,
            attempt=1,
            side=report.side,
            type=report.type,
            quantity=report.quantity,
            price=report.price or None,
            stop_price=report.stop_price or None,
            list_id="" if report.list_id is None else str(report.list_id),
            sent_ms=report.time_ms,
            state=OrderState.ACKED,
            order_id=report.order_id,
        )
        what = f"the journal does not know order {name} ({report.side} {report.status})"
        self._write(self._about(order, OrderState.ACKED, now, reason=what, adopted=True))
        if not self.is_rebuilding:
            self._raise_alarm("adopted", f"{what}: it is taken in", now)
        return self.ledger.orders[name]

    def _raise_alarm(self, code: str, what: str, now: Now) -> None:
        self._news(Level.ALERT, code, what)
        self.core.halt(f"{self.symbol}: {what}", now)

    def _foreign(self, report: OrderReport) -> None:
        if report.order_id not in self.foreign:
            self.foreign.add(report.order_id)
            if not self.ready:
                return
            what = (
                f"order {report.order_id} ({report.side} {text(report.quantity)}, {report.status}) "
                "is not ours: it is left alone"
            )
            self._news(Level.INFO, "foreign_order", what)

    def _alarm(self, key: str, code: str, what: str) -> None:
        """Tells once of each position."""
        if key not in self.alarmed:
            self.alarmed.add(key)
            self._news(Level.ALERT, code, what)

    # -- time ---------------------------------------------------------------------------------

    def tick(self, now: Now) -> None:
        """What is due: questions about orders, then the next step."""
        for name in self.told:
            if (_FILLS, name) not in self.asking and now.account_ms >= self.ask_ms.get(name, 0):
                self._ask(_FILLS, name, FetchFills(name, self.ledger.orders[name].order_id))
        for name, order in self.ledger.open.items():
            if name in self.told or now.account_ms < self.ask_ms.get(name, 0):
                continue
            if order.state == OrderState.UNKNOWN and (_QUERY, name) not in self.asking:
                self._ask(_QUERY, name, Query(name, _QUERY))
            elif order.state in _WORKING and not any(on == name for _, on in self.asking):
                self._ask(_POLL, name, Query(name, _POLL))
        self.advance(now)

    def due_ms(self) -> int | None:
        """When a `tick` has something to do, account clock; None = not without another event."""
        is_free = self.settled and not self.told and self.unknown is None
        times = [self.pause_ms] if self.pause_ms and is_free else []
        for name in {*self.told, *self.ledger.open}:
            if not any(on == name for _, on in self.asking):
                times.append(self.ask_ms.get(name, 0))
        return min(times, default=None)

    def swept(self, reports: Sequence[OrderReport], now: Now) -> None:
        """All orders of the account on this symbol of late, ours or not: what was missed, and what
        came late."""
        for report in reports:
            self._report(report, now)
        seen = {report.client_id for report in reports}
        for name, order in self.ledger.open.items():
            if order.state in _WORKING and name not in seen:
                self.ask_ms[name] = now.account_ms
        self.advance(now)

    def compare(self, now: Now) -> None:
        """Position against balance, once nothing has moved for a while (FAULTS T12).

        A lag of the exchange's own books is no difference: it must show in two looks.
        """
        held = self.covered
        step = self.filters.lot.step if self.filters is not None else ZERO
        quiet = self.core.balances_ms > self.active_ms + QUIET_MS
        if self.unknown is not None or self.told or not quiet:
            return
        if held + step >= self.ledger.position:
            self.short, self.is_short = 0, False
            if self.diverged:
                self.diverged = ""
                self._news(Level.WARNING, "reconciled", "the balance covers the position again")
            return
        self.short += 1
        if self.short >= 2 and not self.diverged:
            self.diverged = (
                f"the account holds {text(held)} {self.ledger.base}, our orders bought "
                f"{text(self.ledger.position)}: somebody else sold or moved it"
            )
            self._news(Level.ALERT, "diverged", f"{self.diverged}; no entries until it is back")


def _is_final(state: OrderState) -> bool:
    return state in FINAL


def _decimal(value: float) -> Decimal:
    """The decimal that the double prints as."""
    return Decimal(repr(value))


def _is_as_wanted(resting: Sequence[Tracked], wanted: Protection | None, quantity: Decimal) -> bool:
    if wanted is None:
        return False
    found: dict[str, Decimal | None] = {Leg.STOP: None, Leg.TARGET: None}
    for order in resting:
        if order.quantity - order.executed != quantity:
            return False
        found[order.leg] = order.stop_price if order.leg == Leg.STOP else order.price
    return found == {Leg.STOP: wanted.stop, Leg.TARGET: wanted.target}


def _tracked(
    signal: Signal,
    leg: Leg,
    attempt: int,
    name: str,
    side: Side,
    kind: str,
    quantity: Decimal,
    sent_ms: int,
) -> Tracked:
    return Tracked(
        client_id=name,
        signal_id=signal.id,
        open_time_ms=signal.open_time_ms,
        leg=leg,
        attempt=attempt,
        side=side,
        type=kind,
        quantity=quantity,
        price=None,
        stop_price=None,
        list_id="",
        sent_ms=sent_ms,
        state=OrderState.INTENT,
        score=signal.score,
        release=signal.release,
    )
