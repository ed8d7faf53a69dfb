"""What the trader holds of one symbol, and has made: the fold of its journal. Pure.

The fold is `shared.ledger`, the trader's own. Lines of another mode are another account's. Amounts
are exact until they are shown.
"""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from shared.events import Leg, Order, OrderState
from shared.ledger import ZERO, Ledger, Tracked

OBSERVE = "observe"
_TRADES = 200
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Point:
    """The account from `market_ms` on: realised profit and cost in quote, position in base."""

    market_ms: int
    profit: Decimal
    position: Decimal
    cost: Decimal


class Account:
    """mode: of the trader; OBSERVE has no account. problem: why nothing can be told any more."""

    def __init__(self, symbol: str, base: str, quote: str, mode: str) -> None:
        self.symbol = symbol
        self.mode = mode
        self.problem = ""
        self._ledger = Ledger(base=base, quote=quote)
        self._points: list[_Point] = []
        self._filled_ms: dict[str, int] = {}  # by client id, of the first fill
        self._profits: dict[str, Decimal] = {}

    @property
    def is_kept(self) -> bool:
        return self.mode != OBSERVE

    def add(self, line: Order) -> int | None:
        """Takes in a line, oldest first; the market time from which on results change."""
        if not self.is_kept or line.mode != self.mode or self.problem:
            return None
        ledger = self._ledger
        before = (ledger.profit, ledger.position, ledger.cost)
        try:
            ledger.add(line)
            if line.profit:
                self._profits[line.client_id] = Decimal(line.profit)
        except (ValueError, KeyError, ArithmeticError) as error:
            self.problem = f"the journal cannot be read: {type(error).__name__} in {line.signal_id}"
            self._points.clear()
            return 0
        after = (ledger.profit, ledger.position, ledger.cost)
        if after == before and not line.fills:
            return None
        if line.fills:
            self._filled_ms.setdefault(line.client_id, line.market_ms)
        at_ms = max(line.market_ms, self._points[-1].market_ms if self._points else 0)
        self._points.append(_Point(at_ms, *after))
        return at_ms

    def result(self, close: float, at_ms: int) -> float | None:
        """Realised and unrealised profit at a close, quote units; None before the first fill."""
        place = bisect_right(self._points, at_ms, key=lambda point: point.market_ms)
        if not place or close != close:  # noqa: PLR0124  # NaN: a gap
            return None
        point = self._points[place - 1]
        worth = point.position * Decimal(repr(close)) - point.cost
        return float(point.profit + worth)

    def shown(self) -> Json:
        """As the page shows it; {} where there is no account."""
        if not self.is_kept:
            return {}
        ledger = self._ledger
        resting = [order for order in ledger.open.values() if order.price or order.stop_price]
        orders = [ledger.orders[name] for name in self._filled_ms]
        return {
            "kind": "account",
            "symbol": self.symbol,
            "mode": self.mode,
            "problem": self.problem,
            "quantity": float(ledger.position),
            "is_dust": 0 < ledger.position <= ledger.dust,
            "entry": _number(ledger.entry_price) if ledger.position else None,
            "stop": _number(_of(Leg.STOP, resting, "stop_price")),
            "target": _number(_of(Leg.TARGET, resting, "price")),
            "worth": _number(ledger.first_worth),
            "since": ledger.since_ms or None,
            "first_price": _number(ledger.first_price),
            "exit": ledger.exit_ms or None,
            "realised": float(ledger.profit),
            "cost": float(ledger.cost),
            "fees": {asset: str(fee) for asset, fee in ledger.fees.items()},
            "slippage": float(ledger.slippage),
            "trips": ledger.trips,
            "won": ledger.won,
            "switch": ledger.switch.state,
            "why": ledger.switch.reason,
            "open": [_open(order) for order in ledger.open.values()],
            "trades": [
                _trade(order, self._filled_ms, self._profits) for order in orders[-_TRADES:]
            ],
        }


def _of(leg: Leg, orders: list[Tracked], name: str) -> Decimal | None:
    """The price of the resting order for `leg`."""
    for order in orders:
        price: Decimal | None = getattr(order, name)
        if order.leg == leg and price is not None:
            return price
    return None


def _open(order: Tracked) -> Json:
    return {
        "signal_ms": order.open_time_ms,
        "leg": order.leg,
        "side": order.side,
        "type": order.type,
        "state": order.state,
        "quantity": _text(order.quantity),
        "executed": _text(order.executed),
        "price": "" if order.price is None else _text(order.price),
        "stop_price": "" if order.stop_price is None else _text(order.stop_price),
        "is_unknown": order.state == OrderState.UNKNOWN,
    }


def _trade(order: Tracked, filled_ms: Mapping[str, int], profits: Mapping[str, Decimal]) -> Json:
    return {
        "market_ms": filled_ms[order.client_id],
        "signal_ms": order.open_time_ms,
        "side": order.side,
        "leg": order.leg,
        "state": order.state,
        "price": _number(order.average),
        "quantity": float(order.executed),
        "profit": _number(profits.get(order.client_id)),
        "score": order.score,
        "reason": order.reason,
    }


def _number(value: Decimal | None) -> float | None:
    return None if value is None else float(value)


def _text(value: Decimal) -> str:
    """Without exponent and trailing zeros."""
    return f"{value.normalize():f}" if value != ZERO else "0"
