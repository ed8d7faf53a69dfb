"""What the configured rules would have made of the scores shown: no account, no orders.

It is the machine of `shared.rules` that the backtest runs, over the candles on the page, begun with
the configured capital at the first of them. Buy-and-hold buys at the open after the first score,
with the same costs, for all the capital.
"""

import math
from collections import deque
from dataclasses import dataclass

from shared import rules
from shared.config import Settings
from shared.rules import ENTRY, NAN, NONE, Bar, Costs, Fill, Protection, Rules


@dataclass(frozen=True, slots=True, kw_only=True)
class Trade:
    """One fill. reason: in words; profit: of the round trip that it ends, None at an entry."""

    open_time_ms: int
    side: str
    price: float
    quantity: float
    fee: float
    reason: str
    profit: float | None


class WhatIf:
    """Goes through one symbol's candles in order; each exactly once.

    problem: why the rules cannot be run ("" where they can); then nothing is computed.
    """

    def __init__(self, settings: Settings) -> None:
        costs = settings.trainer.backtest
        self.rules: Rules = rules.configured(settings, settings.step_ms)
        self.costs = Costs(costs.fee, costs.slippage, costs.fee_from == "received")
        self.capital = costs.capital
        self.problem = rules.problem_of(self.rules)
        self.trades: deque[Trade] = deque(maxlen=1_000)
        self.since_ms: int | None = None  # the first candle with a score
        self._state = rules.start(self.capital)
        self._closes: deque[float] | None = None
        if self.rules.volatility > 0:
            self._closes = deque(maxlen=settings.trader.rules.volatility_candles)
        self._score = NAN  # of the candle before: what its orders were decided on
        self._close = NAN
        self._held: float | None = None  # base units that buy-and-hold has
        self._waits = False  # buy-and-hold buys at the next open

    def step(
        self, open_time_ms: int, prices: tuple[float, float, float, float], score: float | None
    ) -> tuple[float, float] | None:
        """One candle (open, high, low, close; NaN = a gap) and its score; worth at its close of
        (the account, buy-and-hold), None before the first score."""
        if self.problem:
            return None
        if self.since_ms is None and score is not None:
            self.since_ms = open_time_ms
        volatility = NAN
        if self._closes is not None:
            self._closes.append(prices[3])
            volatility = rules.volatility(self._closes)
        bar = Bar(open_time_ms, *prices, NAN if score is None else score, volatility)
        decided_on = self._score
        self._state, *fills = rules.step(self._state, bar, self.rules, self.costs)
        for fill in fills:
            if fill.reason != NONE:
                self.trades.append(self._trade(open_time_ms, fill, decided_on))
        self._hold(bar)
        self._score = bar.score
        if rules.is_candle(bar):
            self._close = bar.close
        if self.since_ms is None or math.isnan(self._close):
            return None
        held = self.capital if self._held is None else self._held * self._close
        return rules.equity(self._state, self._close), held

    def _hold(self, bar: Bar) -> None:
        if not rules.is_candle(bar):
            return
        if self._waits and self._held is None:
            price = bar.open * (1 + self.costs.slippage)
            if self.costs.from_received:
                self._held = self.capital / price * (1 - self.costs.fee)
            else:
                self._held = self.capital / (price * (1 + self.costs.fee))
        self._waits = self._waits or not math.isnan(bar.score)

    def _trade(self, open_time_ms: int, fill: Fill, score: float) -> Trade:
        return Trade(
            open_time_ms=open_time_ms,
            side="BUY" if fill.side > 0 else "SELL",
            price=fill.price,
            quantity=fill.quantity,
            fee=fill.fee,
            reason=rules.text_of(fill, self.rules, score),
            profit=None if fill.reason == ENTRY else fill.profit,
        )

    @property
    def quantity(self) -> float:
        """Base units held now; below 0: short."""
        return self._state.quantity

    @property
    def entry_price(self) -> float:
        return self._state.entry_price

    @property
    def protection(self) -> Protection:
        """Where stop and target of what is held rest now."""
        return rules.protection(self._state, self.rules, self.costs)
