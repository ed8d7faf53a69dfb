"""A virtual exchange, disk, bus and clock around the trader's real core, to be crashed anywhere.

Nothing here waits or does I/O. `World.run` plays the shell's part in the shell's order: lines to
the disk (durably where something is placed), the claim, lines and acknowledgement to the bus, then
the requests. Each of these is an operation before or after which the process may die; another life
begins a second later from what the disk and the exchange hold.
"""

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from shared.events import Leg, Order, OrderState, Signal
from shared.exchange import Fill, NewOrder, OrderReport, OrderType, Side, Status
from shared.filters import Grid, SymbolRules, legs
from shared.ledger import Tracked
from shared.rules import NAN, Bar, Rules
from trader.core import Core, Limits
from trader.desk import Desk
from trader.messages import (
    Balances,
    Cancel,
    FetchFills,
    NotSent,
    Now,
    Place,
    Query,
    Refused,
    Unsure,
)

MINUTE = 60_000
START = 28_333_334 * MINUTE
SYMBOL = "BTCUSDT"
RECV_MS = 5_000
ENGINE_MS = 10_000
FEE = Decimal("0.001")
ZERO = Decimal(0)
FILTERS = SymbolRules(
    symbol=SYMBOL, base="BTC", quote="USDT", status="TRADING", base_precision=8, quote_precision=8,
    order_types=frozenset(OrderType), spot_allowed=True, oco_allowed=True,
    quote_quantity_allowed=True, tick=Grid(Decimal("0.01"), Decimal(1_000_000), Decimal("0.01")),
    lot=Grid(Decimal("0.00001"), Decimal(9000), Decimal("0.00001")),
    min_notional=Decimal(5), min_notional_at_market=True,
)  # fmt: skip
RULES = Rules(
    step_ms=MINUTE, longs=True, shorts=False, buy=0.15, sell=-0.15, exit_long=-0.15, exit_short=0.15
)
# What becomes of a request to place or cancel.
OK, REPLY_LOST, REQUEST_LOST, LATE, TOO_LATE = (
    "ok",
    "reply lost",
    "request lost",
    "late",
    "too late",
)
DONE_5XX, NOT_5XX, LATE_5XX, REFUSED = "5xx, done", "5xx, not done", "5xx, done late", "refused"
FATES = (OK, REPLY_LOST, REQUEST_LOST, LATE, TOO_LATE, DONE_5XX, NOT_5XX, LATE_5XX, REFUSED)
BUY, SELL = 0.5, -0.5


class Crash(BaseException):
    """The process is gone."""


@dataclass(slots=True)
class Resting:
    """An order in the exchange's books."""

    report: OrderReport
    at_ms: int
    fills: list[Fill]


def signal(number: int, score: float) -> Signal:
    """The close of candle `number`, which is at START + (number + 1) minutes."""
    side = "BUY" if score > RULES.buy else "SELL" if score < RULES.sell else ""
    return Signal(
        open_time_ms=START + number * MINUTE, symbol=SYMBOL, interval="1m", close=100.0,
        score=score, side=side, invalid="", release="r", schema="s",
    )  # fmt: skip


def bar(number: int, score: float, *, high: float = 100.0, low: float = 100.0) -> Bar:
    return Bar(START + number * MINUTE, 100.0, high, low, 100.0, score, NAN)


SIGNALS = [signal(0, BUY), signal(1, SELL)]
BARS = [bar(0, BUY), bar(1, SELL)]


class World:
    """One scenario. crashes: (number of the operation, "before" | "after").

    fates: of each place, in order. lag_ms: until the query side shows what the engine did. deaf:
    user stream events never come. disk: "safe", or "lies": a crash loses what this life wrote, on
    the disk and on the bus. fill: of waiting buys, when the cancel comes: "none", "part", "all".
    stop_after_ms: the market goes through a stop so long after it was placed.
    """

    def __init__(
        self,
        crashes: frozenset[tuple[int, str]] = frozenset(),
        fates: Sequence[str] = (),
        *,
        cancels: Sequence[str] = (),
        lag_ms: int = 0,
        deaf: bool = True,
        unavailable: int = 0,
        disk: str = "safe",
        rule: Rules = RULES,
        fill: str = "none",
        stop_after_ms: int | None = None,
        signals: Sequence[Signal] = SIGNALS,
        bars: Sequence[Bar] = BARS,
    ) -> None:
        self.crashes = crashes
        self.fates = iter(fates)
        self.cancels = iter(cancels)
        self.lag_ms = lag_ms
        self.deaf = deaf
        self.unavailable = unavailable
        self.disk = disk
        self.rule = rule
        self.fill = fill
        self.stop_after_ms = stop_after_ms
        self.signals = signals
        self.bars = bars
        self.t = START + MINUTE  # the close of the first candle
        self.operations = 0
        self.lives = 0
        self.file: list[Order] = []
        self.bus: list[Order] = []
        self.claims: set[str] = set()
        self.acked = 0
        self.orders: dict[str, list[Resting]] = {}
        self.trades: list[tuple[int, Fill]] = []
        self.held = {"USDT": Decimal(10_000), "BTC": ZERO}
        self.events: list[tuple[int, int, Callable[[], None]]] = []
        self.engine: list[tuple[int, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.pairs: dict[str, str] = {}
        self.placed = 0
        self.core: Core | None = None

    # -- what can be interrupted --------------------------------------------------------------

    def operation(self, effect: Callable[[], Any]) -> Any:
        self.operations += 1
        if (self.operations, "before") in self.crashes:
            raise Crash
        result = effect()
        if (self.operations, "after") in self.crashes:
            raise Crash
        return result

    # -- time ---------------------------------------------------------------------------------

    def at(self, time_ms: int, what: Callable[[], None]) -> None:
        """An event of this life."""
        heapq.heappush(self.events, (time_ms, next(self.order), what))

    def later(self, time_ms: int, what: Callable[[], None]) -> None:
        """An event at the exchange, whoever lives."""
        heapq.heappush(self.engine, (time_ms, next(self.order), what))

    def move(self, time_ms: int) -> None:
        """Time goes on, and the engine with it."""
        while self.engine and self.engine[0][0] <= time_ms:
            at_ms, _, what = heapq.heappop(self.engine)
            self.t = max(self.t, at_ms)
            what()
        self.t = max(self.t, time_ms)

    def now(self) -> Now:
        return Now(self.t, self.t, self.t)

    # -- the exchange -------------------------------------------------------------------------

    def execute(self, new: NewOrder) -> None:
        """The engine takes an order. Market orders fill at 100 at once."""
        number = 1 + sum(map(len, self.orders.values()))
        report = OrderReport(
            symbol=SYMBOL, order_id=number, list_id=None, client_id=new.client_id, side=new.side,
            type=new.type, status=Status.NEW, quantity=new.quantity or ZERO,
            price=new.price or ZERO,
            stop_price=new.stop_price or ZERO, executed=ZERO, executed_quote=ZERO,
            time_ms=self.t, update_ms=self.t,
        )  # fmt: skip
        one = Resting(report, self.t, [])
        self.orders.setdefault(new.client_id, []).append(one)
        self.set(one, Status.NEW, ZERO)
        if new.type is OrderType.MARKET:
            self.trade(one, report.quantity)
        elif new.type is OrderType.LIMIT and new.side is Side.SELL:
            self.later(self.t + 1_000, lambda: self.fill_rest(one))

    def trade(self, one: Resting, quantity: Decimal) -> None:
        old = one.report
        price = old.price or old.stop_price or Decimal(100)
        money = quantity * price
        is_buy = old.side is Side.BUY
        fee = (quantity if is_buy else money) * FEE
        fill = Fill(
            symbol=SYMBOL, trade_id=1 + len(self.trades), order_id=old.order_id, side=old.side,
            price=price, quantity=quantity, quote_quantity=money, fee=fee,
            fee_asset="BTC" if is_buy else "USDT", time_ms=self.t, is_maker=old.price > 0,
        )  # fmt: skip
        self.trades.append((self.t, fill))
        one.fills.append(fill)
        sign = 1 if is_buy else -1
        self.held["BTC"] += sign * quantity - (fee if is_buy else ZERO)
        self.held["USDT"] -= sign * money + (ZERO if is_buy else fee)
        executed = old.executed + quantity
        status = Status.FILLED if executed == old.quantity else Status.PARTIALLY_FILLED
        self.set(one, status, executed)

    def fill_rest(self, one: Resting) -> None:
        if one.report.status in (Status.NEW, Status.PARTIALLY_FILLED):
            self.trade(one, one.report.quantity - one.report.executed)

    def set(self, one: Resting, status: Status, executed: Decimal) -> None:
        old = one.report
        one.report = OrderReport(
            symbol=SYMBOL, order_id=old.order_id, list_id=None, client_id=old.client_id,
            side=old.side, type=old.type, status=status, quantity=old.quantity, price=old.price,
            stop_price=old.stop_price, executed=executed, executed_quote=ZERO,
            time_ms=old.time_ms, update_ms=self.t,
        )  # fmt: skip
        one.at_ms = self.t
        if not self.deaf and self.core is not None:
            desk, told = self.core.desks[SYMBOL], self.with_fills(old.client_id)
            self.at(self.t, lambda: desk.reported(told, self.now()))

    def cancel_at_engine(self, name: str) -> OrderReport | None:
        """What the market filled first; then it is cancelled, if it still stands."""
        for one in self.orders.get(name, []):
            if one.report.status not in (Status.NEW, Status.PARTIALLY_FILLED):
                continue
            left = one.report.quantity - one.report.executed
            if self.fill == "all":
                self.trade(one, left)
                return None
            if self.fill == "part" and not one.fills:
                self.trade(one, (left / 2).quantize(Decimal("0.00001")))
            self.set(one, Status.CANCELED, one.report.executed)
            self.end_sibling(name, Status.CANCELED)
            return one.report
        return None

    def end_sibling(self, name: str, status: Status) -> None:
        """One order of a pair has ended: so has the other."""
        for other in self.orders.get(self.pairs.get(name, ""), []):
            if other.report.status in (Status.NEW, Status.PARTIALLY_FILLED):
                self.set(other, status, other.report.executed)

    def trigger(self, target: str, stop: str) -> None:
        """The market goes through the stop, in two parts."""
        for one in self.orders[stop]:
            if one.report.status is Status.NEW:
                self.trade(one, (one.report.quantity / 3).quantize(Decimal("0.00001")))
                self.trade(one, one.report.quantity - one.report.executed)
                self.end_sibling(stop, Status.EXPIRED)

    def shown(self, name: str) -> OrderReport | None:
        for one in self.orders.get(name, []):
            if one.report.time_ms + self.lag_ms <= self.t and one.at_ms + self.lag_ms <= self.t:
                return one.report
        return None

    # -- a life ---------------------------------------------------------------------------------

    def live(self) -> None:
        """From start to crash, or to the end of everything."""
        self.lives += 1
        self.events = []
        core = self.core = Core("paper", "1m", self.rule, Limits(max_age_ms=120_000))
        desk = core.open(SYMBOL, "BTC", "USDT")
        core.load(self.file)
        core.skew_ms = 0.0
        desk.filters = FILTERS
        desk.begin(self.now())
        for candle, one in zip(self.bars, self.signals, strict=True):
            if one.open_time_ms + MINUTE <= self.t - (self.lives > 1):
                desk.extend(candle)
        self.flush(core, desk)
        self.sweep(core, desk)
        desk.ready = True
        desk.ready_ms = self.t if self.lives > 1 else START
        self.next_signal(core, desk)
        self.at(self.t + MINUTE, lambda: self.again(core, desk))
        desk.advance(self.now())
        self.flush(core, desk)
        self.loop(core, desk)

    def loop(self, core: Core, desk: Desk) -> None:
        end_ms = self.signals[-1].open_time_ms + 5 * MINUTE
        while self.t < end_ms and not self.is_over(desk):
            due_ms = desk.due_ms()
            times = [end_ms]
            times += [due_ms] if due_ms is not None else []
            times += [self.events[0][0]] if self.events else []
            self.move(max(self.t, min(times)))
            if self.events and self.events[0][0] <= self.t:
                heapq.heappop(self.events)[2]()
            else:
                desk.tick(self.now())
            self.flush(core, desk)

    def is_over(self, desk: Desk) -> bool:
        """Nothing can happen any more: a whole look has shown it."""
        is_quiet = self.acked == len(self.signals) and not self.engine and not desk.ledger.open
        return is_quiet and self.looked_ms > max((at for at, _ in self.trades), default=0) + 3_000

    def again(self, core: Core, desk: Desk) -> None:
        self.sweep(core, desk)
        desk.compare(self.now())
        self.at(self.t + MINUTE, lambda: self.again(core, desk))

    def next_signal(self, core: Core, desk: Desk) -> None:
        if self.acked < len(self.signals):
            one = self.signals[self.acked]
            due_ms = max(self.t, one.open_time_ms + MINUTE)
            number = self.acked
            self.at(due_ms, lambda: self.decide(core, desk, number))

    def decide(self, core: Core, desk: Desk, number: int) -> None:
        desk.decide(self.signals[number], self.bars[number], self.now())
        self.waiting = number

    waiting: int | None = None
    looked_ms: int = 0

    def sweep(self, core: Core, desk: Desk) -> None:
        def look() -> list[OrderReport]:
            names = list(self.orders)
            return [r for name in names if (r := self.shown(name)) is not None]

        reports = self.operation(look)
        self.looked_ms = self.t
        desk.swept(reports, self.now())
        amounts = {asset: (amount, ZERO) for asset, amount in self.held.items()}
        core.balances(Balances(amounts, self.t))

    def flush(self, core: Core, desk: Desk) -> None:
        """The shell's order of things."""
        while True:
            out = core.take()
            ack = self.waiting if self.waiting is not None and not out.requests else None
            ack = ack if desk.settled else None
            if not out.lines and not out.requests and ack is None:
                return
            places = [r for _, r in out.requests if isinstance(r, Place)]
            refused = []
            if out.lines:
                self.operation(lambda lines=out.lines: self.file.extend(lines))
            for place in places:
                name = place.client_ids[0]
                if name in self.claims and self.disk == "safe":
                    refused.append(place)
                self.operation(lambda name=name: self.claims.add(name))
            if out.lines or ack is not None:
                self.operation(lambda lines=out.lines, ack=ack: self.commit(lines, ack))
                if ack is not None:
                    self.waiting = None
                    self.next_signal(core, desk)
            for _, request in out.requests:
                self.request(core, desk, request, refused)

    def commit(self, lines: list[Order], ack: int | None) -> None:
        self.bus.extend(lines)
        if ack is not None:
            self.acked = ack + 1

    def request(self, core: Core, desk: Desk, request: Any, refused: list[Place]) -> None:
        if isinstance(request, Place):
            if request in refused:
                desk.placed(request.client_ids, NotSent("claimed"), self.now())
                return
            self.place(desk, request)
        elif isinstance(request, Query):
            asked_ms = self.t
            if self.unavailable > 0:
                self.unavailable -= 1
                self.at(self.t + 1000, lambda: self.silent(desk, request))
                return
            report = self.operation(lambda: self.shown(request.client_id))
            self.at(self.t + 100, lambda: self.answer(desk, request, report, asked_ms))
        elif isinstance(request, FetchFills):
            found = self.operation(lambda: self.fills_of(request.order_id))
            self.at(self.t + 100, lambda: desk.filled(request.client_id, found, self.now()))
        elif isinstance(request, Cancel):
            self.cancel(desk, request.client_id)

    def answer(self, desk: Desk, asked: Query, report: OrderReport | None, asked_ms: int) -> None:
        desk.found(asked.client_id, report, asked_ms, self.now(), what=asked.what)

    def silent(self, desk: Desk, asked: Query) -> None:
        desk.unanswered(asked.client_id, "no answer", self.now(), what=asked.what)

    def fills_of(self, order_id: int) -> list[Fill]:
        return [f for at, f in self.trades if f.order_id == order_id and at + self.lag_ms <= self.t]

    def place(self, desk: Desk, request: Place) -> None:
        order = request.order
        news = [order] if isinstance(order, NewOrder) else list(legs(order))
        fate = next(self.fates, OK)
        self.placed += 1
        names = request.client_ids

        def run() -> None:
            if self.t - request.timestamp_ms <= RECV_MS + ENGINE_MS:
                for new in news:
                    self.execute(new)
                if len(news) == 2:
                    one, other = (new.client_id for new in news)
                    self.pairs |= {one: other, other: one}
                    if self.stop_after_ms is not None:
                        self.later(self.t + self.stop_after_ms, lambda: self.trigger(one, other))

        def send() -> None:
            if fate in (OK, REPLY_LOST, DONE_5XX):
                run()
            elif fate == LATE:  # 4.9 s in the network, inside recvWindow, then 9.9 s in the engine
                self.later(self.t + RECV_MS - 100 + ENGINE_MS - 100, run)
            elif fate == LATE_5XX:
                self.later(self.t + ENGINE_MS - 100, run)

        self.operation(send)
        if fate == OK:
            reports = [self.with_fills(new.client_id) for new in news]
            self.at(self.t + 50, lambda: desk.placed(names, reports, self.now()))
        elif fate == REFUSED:
            refused = Refused(-2010, "Account has insufficient balance for requested action.")
            self.at(self.t + 50, lambda: desk.placed(names, refused, self.now()))
        else:
            wait_ms = 200 if "5xx" in fate else ENGINE_MS
            self.at(self.t + wait_ms, lambda: desk.placed(names, Unsure(fate), self.now()))

    def with_fills(self, name: str) -> OrderReport:
        one = self.orders[name][-1]
        r = one.report
        return OrderReport(
            symbol=r.symbol, order_id=r.order_id, list_id=r.list_id, client_id=r.client_id,
            side=r.side, type=r.type, status=r.status, quantity=r.quantity, price=r.price,
            stop_price=r.stop_price, executed=r.executed, executed_quote=r.executed_quote,
            time_ms=r.time_ms, update_ms=r.update_ms, fills=tuple(one.fills),
        )  # fmt: skip

    def cancel(self, desk: Desk, name: str) -> None:
        fate = next(self.cancels, OK)
        report: OrderReport | None = None

        def send() -> OrderReport | None:
            return None if fate in (REQUEST_LOST, NOT_5XX) else self.cancel_at_engine(name)

        report = self.operation(send)
        if fate == OK:
            self.at(self.t + 50, lambda: desk.cancelled(name, report, self.now()))
        else:
            wait_ms = 200 if "5xx" in fate else ENGINE_MS
            self.at(self.t + wait_ms, lambda: desk.cancelled(name, Unsure(fate), self.now()))

    # -- a scenario -------------------------------------------------------------------------------

    def run(self) -> "World":
        while True:
            saved = (list(self.file), list(self.bus), self.acked)
            self.waiting = None
            try:
                self.live()
                return self
            except Crash:
                if self.disk == "lies":
                    self.file, self.bus, self.acked = saved
                self.move(self.t + 1000)

    def is_resting(self, order: Tracked) -> bool:
        """It protects a position that is still held, at the exchange as in the journal."""
        placed = self.orders.get(order.client_id, [])
        is_open = bool(placed) and placed[0].report.status is Status.NEW
        return is_open and order.leg in (Leg.STOP, Leg.TARGET) and self.held["BTC"] > 1

    # -- the verdict ------------------------------------------------------------------------------

    def problems(self) -> list[str]:
        """What must not be: an order twice, one that the journal does not know, a wrong sum."""
        assert self.core is not None
        ledger = self.core.desks[SYMBOL].ledger
        found = []
        by_side = {Side.BUY: 0, Side.SELL: 0}
        for name, placed in self.orders.items():
            if len(placed) > 1:
                found.append(f"{name} executed {len(placed)} times")
            for one in placed:
                by_side[one.report.side] += 1
            known = ledger.orders.get(name)
            truth = placed[0].report
            if known is None or known.executed != truth.executed:
                found.append(f"ghost {name}: {known and known.state}, truth {truth.status}")
            elif known.state != _state_of(truth.status):
                found.append(f"{name} is {known.state}, truth {truth.status}")
        for order in ledger.orders.values():
            if not order.is_final and not self.is_resting(order):
                found.append(f"{order.client_id} ends as {order.state}")
            if order.state == OrderState.FILLED and order.client_id not in self.orders:
                found.append(f"phantom {order.client_id}")
        entries = sum(1 for name, p in self.orders.items() if p[0].report.side is Side.BUY)
        if entries > sum(1 for s in self.signals if s.side == "BUY"):
            found.append(f"{entries} entries")
        if ledger.position != self.held["BTC"]:
            found.append(f"position {ledger.position}, account {self.held['BTC']}")
        if ledger.flow != self.held["USDT"] - 10_000:
            found.append(f"flow {ledger.flow}, account {self.held['USDT'] - 10_000}")
        if self.held["BTC"] < 0 or self.held["USDT"] < 0:
            found.append(f"oversold {self.held}")
        return found


def _state_of(status: Status) -> OrderState:
    return {
        Status.FILLED: OrderState.FILLED,
        Status.CANCELED: OrderState.CANCELED,
        Status.EXPIRED: OrderState.CANCELED,
        Status.NEW: OrderState.ACKED,
        Status.PARTIALLY_FILLED: OrderState.PARTIAL,
    }[status]
