"""What a lagging copy of the books shows: orders, trades and balances as they were at a time.

Binance answers queries from memory and databases that follow the matching engine; a fault of kind
`lag` makes them follow late.
"""

from collections import deque
from collections.abc import Iterable
from copy import copy

from simulator.exchange.orders import Account, Fill, Order, Status

_KEPT = 10_000


def order_at(order: Order, at_ms: int) -> Order | None:
    """The order as it was; None when there was none yet."""
    if order.ticket.time_ms > at_ms:
        return None
    if order.update_ms <= at_ms:
        return order
    seen = copy(order)
    seen.fills = [fill for fill in order.fills if fill.time_ms <= at_ms]
    seen.executed = sum(fill.quantity for fill in seen.fills)
    seen.quote = sum(fill.quote for fill in seen.fills)
    if order.working_ms > at_ms:
        seen.working_ms = -1
    if order.ended_ms is not None and order.ended_ms > at_ms:
        seen.status = Status.PARTIALLY_FILLED if seen.executed else Status.NEW
        seen.ended_ms = None
        seen.cancel_id = seen.reason = ""
        seen.prevented = 0
        seen.prevented_id = None
    elif order.is_open:
        seen.status = Status.PARTIALLY_FILLED if seen.executed else Status.NEW
    times = (order.ticket.time_ms, seen.working_ms, *(fill.time_ms for fill in seen.fills))
    seen.update_ms = max(times)
    return seen


def orders_at(orders: Iterable[Order], at_ms: int) -> list[Order]:
    return [seen for order in orders if (seen := order_at(order, at_ms)) is not None]


def fills_at(fills: Iterable[Fill], at_ms: int) -> list[Fill]:
    return [fill for fill in fills if fill.time_ms <= at_ms]


class BalanceHistory:
    """The last changes of one account's balances."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._known = {asset: tuple(held) for asset, held in account.balances.items()}
        self._changes: deque[tuple[int, str, tuple[int, ...]]] = deque(maxlen=_KEPT)

    def note(self, assets: Iterable[str], now_ms: int) -> None:
        """These balances have changed by now; what they were before is kept."""
        for asset in assets:
            self._changes.append((now_ms, asset, self._known.get(asset, (0, 0))))
            self._known[asset] = tuple(self._account.balances[asset])

    def at(self, at_ms: int) -> dict[str, list[int]]:
        """Balances as they were."""
        seen = {asset: list(held) for asset, held in self._account.balances.items()}
        for time_ms, asset, before in reversed(self._changes):
            if time_ms <= at_ms:
                break
            seen[asset] = list(before)
        return seen
