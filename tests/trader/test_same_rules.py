"""The live trader decides as the backtest does: the same trades at the same candles.

The desk runs against an exchange that fills as `shared.rules` says the backtest does (market at the
next open, limits that are gone through, the stop before the target); the expected trades come from
the tests' own oracle of the rules, `tests.plain_trading`.
"""

import math
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from shared.events import Signal
from shared.exchange import Fill, NewOco, NewOrder, OrderReport, OrderType, Side, Status
from shared.filters import Grid, SymbolRules, legs
from shared.rules import NAN, Bar, Costs, Rules
from tests.plain_trading import trade
from tests.trader.world import FILTERS
from trader.core import Core, Limits
from trader.messages import Balances, Cancel, NotSent, Now, Place, Query, Refused

MINUTE = 60_000
FREE = Costs(0.0, 0.0, True)
FINE = SymbolRules(
    symbol="BTCUSDT", base="BTC", quote="USDT", status="TRADING", base_precision=18,
    quote_precision=18, order_types=FILTERS.order_types, spot_allowed=True, oco_allowed=True,
    quote_quantity_allowed=True, tick=Grid(step=Decimal("1e-12")), lot=Grid(step=Decimal("1e-12")),
)  # fmt: skip


class Market:
    """Plays candles; fills orders as part 1 and 2 of `shared.rules` say."""

    def __init__(self, rule: Rules) -> None:
        self.core = Core("paper", "1m", rule, Limits(max_age_ms=1e9, refusals=None))
        self.desk = self.core.open("BTCUSDT", "BTC", "USDT")
        self.desk.filters = FINE
        self.desk.ready = True
        self.core.skew_ms = 0.0
        self.usdt, self.btc = Decimal(1000), Decimal(0)
        self.open: dict[str, OrderReport] = {}
        self.newest: dict[str, OrderReport] = {}
        self.pairs: dict[str, str] = {}
        self.number = 0
        self.trades: list[tuple[int, str, float]] = []
        self.row = 0
        self.is_down = False
        self.now_ms = 0
        self.balances()

    def now(self) -> Now:
        return Now(self.now_ms, self.now_ms, self.now_ms)

    def balances(self) -> None:
        amounts = {"USDT": (self.usdt, Decimal(0)), "BTC": (self.btc, Decimal(0))}
        self.core.balances(Balances(amounts, self.now_ms + 1))

    def report(self, order: NewOrder, status: Status, fills: tuple[Fill, ...] = ()) -> OrderReport:
        quantity = order.quantity or Decimal(0)
        report = self.newest[order.client_id] = OrderReport(
            symbol="BTCUSDT", order_id=self.number, list_id=None, client_id=order.client_id,
            side=order.side, type=order.type, status=status, quantity=quantity,
            price=order.price or Decimal(0), stop_price=order.stop_price or Decimal(0),
            executed=quantity if fills else Decimal(0), executed_quote=Decimal(0),
            time_ms=self.now_ms, update_ms=self.now_ms, fills=fills,
        )  # fmt: skip
        return report

    def fill(self, order: OrderReport, price: float, *, maker: bool, why: str) -> OrderReport:
        at = Decimal(repr(price))
        money = order.quantity * at
        sign = 1 if order.side is Side.BUY else -1
        self.btc += sign * order.quantity
        self.usdt -= sign * money
        trade = Fill(
            symbol="BTCUSDT", trade_id=len(self.trades), order_id=order.order_id, side=order.side,
            price=at, quantity=order.quantity, quote_quantity=money, fee=Decimal(0),
            fee_asset="BTC", time_ms=self.now_ms, is_maker=maker,
        )  # fmt: skip
        self.trades.append((self.row, why, price))
        self.balances()
        new = NewOrder(
            symbol="BTCUSDT", client_id=order.client_id, side=order.side, type=order.type,
            quantity=order.quantity, price=order.price or None, stop_price=order.stop_price or None,
        )  # fmt: skip
        return self.report(new, Status.FILLED, (trade,))

    def pump(self, opened: float) -> None:
        """Answers every request; orders that come meet the open of the candle now beginning."""
        while (out := self.core.take()).requests:
            for _, request in out.requests:
                if isinstance(request, Place) and self.is_down and not self.protects(request):
                    self.desk.placed(request.client_ids, NotSent("down", passes=True), self.now())
                elif isinstance(request, Place):
                    self.place(request, math.nan if self.protects(request) else opened)
                elif isinstance(request, Cancel):
                    report = self.cancel(request.client_id)
                    self.desk.cancelled(request.client_id, report, self.now())
                elif isinstance(request, Query):
                    name = request.client_id
                    report = self.newest[name]
                    self.desk.found(name, report, self.now_ms, self.now(), what=request.what)

    def protects(self, request: Place) -> bool:
        """What rests is there within a moment of the close: before the next candle opens."""
        legs_ = {self.desk.ledger.orders[name].leg for name in request.client_ids}
        return legs_ <= {"stop", "target"}

    def cancel(self, name: str) -> OrderReport | None:
        found = None
        for one in (name, self.pairs.get(name, "")):
            order = self.open.pop(one, None)
            if order is not None:
                ended = self.report(_new(order), Status.CANCELED)
                if one == name:
                    found = ended
                else:
                    self.desk.reported(ended, self.now())
        return found

    def place(self, request: Place, opened: float) -> None:
        order = request.order
        news = list(legs(order)) if isinstance(order, NewOco) else [order]
        if len(news) == 2:
            if float(news[0].price or 0) <= opened:
                text = "Order would immediately match and take."
                self.desk.placed(request.client_ids, Refused(-2010, text), self.now())
                return
            one, other = (new.client_id for new in news)
            self.pairs |= {one: other, other: one}
        reports = []
        for new in news:
            self.number += 1
            report = self.report(new, Status.NEW)
            limit = None if new.price is None else float(new.price)
            takes = new.type is OrderType.MARKET or (
                new.type is OrderType.LIMIT
                and limit is not None
                and (opened <= limit if new.side is Side.BUY else opened >= limit)
            )
            if takes:
                report = self.fill(report, opened, maker=False, why=str(new.side))
            else:
                self.open[new.client_id] = report
            reports.append(report)
        self.desk.placed(request.client_ids, reports, self.now())

    def within(self, high: float, low: float, opened: float) -> None:
        """What waits and is reached within the candle: entry, stop, exit, target, in this order.
        What protects a position that was entered inside the candle comes to rest after that."""
        entered = False
        for order in list(self.open.values()):
            if order.side is Side.BUY and low < float(order.price):
                del self.open[order.client_id]
                filled = self.fill(order, float(order.price), maker=True, why="BUY")
                self.desk.reported(filled, self.now())
                self.pump(math.nan)
                entered = True
        for order in list(self.open.values()):
            stop = float(order.stop_price)
            if order.type is OrderType.STOP_LOSS and low <= stop:
                price = opened if opened < stop and not entered else stop
                self.done(order, price, maker=False)
                return
        for order in sorted(self.open.values(), key=lambda o: o.price):
            is_reached = order.stop_price == 0 and high > float(order.price)
            if order.side is Side.SELL and is_reached and not entered:
                self.done(order, float(order.price), maker=True)
                return

    def done(self, order: OrderReport, price: float, *, maker: bool) -> None:
        del self.open[order.client_id]
        filled = self.fill(order, price, maker=maker, why="SELL")
        other = self.open.pop(self.pairs.get(order.client_id, ""), None)
        self.desk.reported(filled, self.now())
        if other is not None:
            self.desk.reported(self.report(_new(other), Status.EXPIRED), self.now())
        self.pump(math.nan)

    def play(self, candles: list[tuple[float, ...]]) -> None:
        for row, (opened, high, low, close, score, volatility) in enumerate(candles):
            self.row = row
            is_gap = math.isnan(opened)
            self.now_ms = row * MINUTE + 1
            # While the exchange makes no candles it takes no orders that could fill at once.
            self.is_down = is_gap
            self.desk.tick(self.now())
            self.pump(opened)
            if not is_gap:
                self.now_ms = row * MINUTE + 30_000
                self.within(high, low, opened)
            if any(0 < float(o.price) < close for o in self.open.values() if o.side is Side.SELL):
                # Entered within the candle, which closes beyond the target: the backtest leaves
                # open what happened, no market would.
                reject()
            self.now_ms = (row + 1) * MINUTE + 1
            side = "BUY" if score > self.core.rule.buy else "SELL" if score < -0.15 else ""
            signal = Signal(
                open_time_ms=row * MINUTE, symbol="BTCUSDT", interval="1m", close=close,
                score=None if math.isnan(score) or is_gap else score,
                side="" if is_gap else side, invalid="gap" if is_gap or math.isnan(score) else "",
                release="r", schema="s",
            )  # fmt: skip
            bar = Bar(row * MINUTE, opened, high, low, close, score, volatility)
            self.desk.decide(signal, bar, self.now())


def _new(order: OrderReport) -> NewOrder:
    return NewOrder(
        symbol="BTCUSDT", client_id=order.client_id, side=order.side, type=order.type,
        quantity=order.quantity, price=order.price or None, stop_price=order.stop_price or None,
    )  # fmt: skip


def rules(**changes: Any) -> Rules:
    values: dict[str, Any] = {
        "step_ms": MINUTE, "longs": True, "shorts": False, "buy": 0.15, "sell": -0.15,
        "exit_long": -0.15, "exit_short": 0.15, "share": 0.9,
    }  # fmt: skip
    return Rules(**(values | changes))


prices = st.floats(90, 110).map(lambda x: round(x, 2))


@st.composite
def candles(draw: st.DrawFn) -> list[tuple[float, ...]]:
    rows: list[tuple[float, ...]] = []
    for _ in range(draw(st.integers(5, 25))):
        if rows and draw(st.integers(0, 9)) == 0:
            rows.append((NAN, NAN, NAN, NAN, NAN, NAN))
            continue
        four = [draw(prices) for _ in range(4)]
        score = draw(st.sampled_from([-0.5, -0.1, 0.0, 0.1, 0.5, 0.5, NAN]))
        rows.append((four[0], max(four), min(four), four[3], score, 0.001))
    return rows


def expected(rows: list[tuple[float, ...]], rule: Rules) -> list[tuple[int, str, float]]:
    _, trades = trade(rows, rule, FREE, 1000.0, MINUTE)
    found = []
    for one in trades:
        found.append((one["entry"], "BUY", one["entry_price"]))
        if "exit" in one:
            found.append((one["exit"], "SELL", one["exit_price"]))
    return found


VARIANTS = [
    {},
    {"exit_long": 0.05},
    {"stop_loss": 0.02},
    {"take_profit": 0.03},
    {"stop_loss": 0.02, "take_profit": 0.03},
    {"trailing_stop": 0.02},
    {"trailing_stop": 0.03, "stop_loss": 0.02, "take_profit": 0.05, "cool_down": 3},
    {"max_candles": 3},
    {"cool_down": 4, "fixed": 200.0},
    {"volatility": 0.0005},
    {"limit": 0.005},
    {"limit": -0.002},
    {"limit": 0.005, "stop_loss": 0.02},
    {"limit": 0.003, "stop_loss": 0.02, "take_profit": 0.03},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@settings(max_examples=40, deadline=None)
@given(rows=candles())
def test_live_trades_are_those_of_the_backtest(
    changes: dict[str, Any], rows: list[tuple[float, ...]]
) -> None:
    rule = rules(**changes)
    market = Market(rule)
    market.play(rows)
    wanted = expected(rows, rule)
    assert [(row, side) for row, side, _ in market.trades] == [(r, s) for r, s, _ in wanted]
    for (_, _, price), (_, _, other) in zip(market.trades, wanted, strict=True):
        assert price == pytest.approx(other, rel=1e-11)
