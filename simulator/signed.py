"""The table of signed endpoints: what each costs and needs, and how a request is carried out."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from simulator import lists, trading
from simulator.auth import Caller
from simulator.desk import Desk
from simulator.endpoints import ApiError, Params
from simulator.exchange.symbols import Refused
from simulator.faults import Fault
from simulator.trading import Call

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A signed endpoint. weight: a function of its parameters; free: costs nothing when it
    succeeds; orders: how many it adds to the order count; counted: it counts them itself; trades:
    needs the trading permission."""

    answer: Callable[[Call], Any]
    weight: Callable[[Mapping[str, str]], int]
    trades: bool = False
    orders: int = 0
    free: bool = False
    counted: bool = False


def _fixed(weight: int) -> Callable[[Mapping[str, str]], int]:
    return lambda _: weight


class Struck(Exception):
    """A fault answers in place of the exchange."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.kind)
        self.fault = fault


class Background:
    """Requests that are carried out although nobody waits for them any more."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, ApiError):
            log.info("a late request was refused", extra={"code": error.code})
        elif error is not None:
            log.error("a late request failed", exc_info=error)


@dataclass(frozen=True, slots=True)
class Delays:
    """How late a request comes to the engine: late_ms before its age is checked for the last time,
    engine_ms after it."""

    late_ms: float = 0.0
    engine_ms: float = 0.0


ON_TIME = Delays()


Answer = TypeVar("Answer")


async def carry_out(
    work: Callable[[Delays], Coroutine[Any, Any, Answer]],
    fault: Fault | None,
    background: Background,
) -> Answer:
    """Do the work of a request as the fault that it meets will have it.

    Raises:
        Struck: the fault answers, whether or not the work was done.
        ApiError: from the work.
    """
    if fault is None:
        return await work(ON_TIME)
    delays = Delays(fault.late_ms, fault.engine_ms)
    if fault.kind in ("delay", "garbage"):
        if fault.kind == "delay":
            await asyncio.sleep(fault.ms / 1000)
        answer = await work(delays)
        await asyncio.sleep(fault.after_ms / 1000)
        return answer
    if delays != ON_TIME:
        background.start(work(delays))
    elif fault.executed or fault.kind == "lost":
        with contextlib.suppress(ApiError):
            await work(ON_TIME)
    await asyncio.sleep(fault.after_ms / 1000)
    raise Struck(fault)


async def perform(
    desk: Desk,
    endpoint: Endpoint,
    caller: Caller,
    params: Params,
    unit: int,
    *,
    delays: Delays = ON_TIME,
    lag_ms: int = 0,
) -> Any:
    """Do what a request with a good signature asks for. lag_ms: how old the books are that a query
    sees.

    Raises: ApiError: nothing was done, or what was done is in its data.
    """
    if endpoint.trades and not caller.key.can_trade:
        raise ApiError(401, -2015, "Invalid API-key, IP, or permissions for action.")
    counts = desk.order_counts(caller.account)
    now_ms = desk.account_ms()
    if endpoint.orders:
        refusal = counts.spend(endpoint.orders, now_ms)
        if refusal is not None:
            raise ApiError(429, -1015, refusal.message, retry_after_s=refusal.retry_after_s)
    way_ms = desk.terms.latency_ms + delays.late_ms
    if way_ms:
        await asyncio.sleep(way_ms / 1000)
        now_ms = desk.account_ms()
        caller.check_age(now_ms)
    if delays.engine_ms:
        await asyncio.sleep(delays.engine_ms / 1000)
        now_ms = desk.account_ms()
    as_of = now_ms - lag_ms if lag_ms else None
    try:
        return endpoint.answer(Call(desk, caller.account, caller.key, params, now_ms, unit, as_of))
    except Refused as refused:
        if refused.code == -1013:
            counts.give_back(endpoint.orders, now_ms)
        raise ApiError(400, refused.code, refused.message) from None
    except ApiError:
        counts.give_back(endpoint.orders, now_ms)
        raise


REST: dict[tuple[str, str], Endpoint] = {
    ("POST", "order"): Endpoint(trading.place, _fixed(1), trades=True, orders=1, free=True),
    ("GET", "order"): Endpoint(trading.query, _fixed(4)),
    ("DELETE", "order"): Endpoint(trading.cancel, _fixed(1), trades=True, free=True),
    ("POST", "order/test"): Endpoint(
        trading.test,
        lambda p: 20 if p.get("computeCommissionRates") == "true" else 1,
        trades=True,
    ),
    ("GET", "openOrders"): Endpoint(trading.open_orders, lambda p: 6 if p.get("symbol") else 80),
    ("DELETE", "openOrders"): Endpoint(trading.cancel_all, _fixed(1), trades=True, free=True),
    ("GET", "allOrders"): Endpoint(trading.all_orders, _fixed(20)),
    ("GET", "myTrades"): Endpoint(trading.my_trades, lambda p: 5 if p.get("orderId") else 20),
    ("GET", "account"): Endpoint(trading.account, _fixed(20)),
    ("GET", "account/commission"): Endpoint(trading.commission, _fixed(20)),
    ("GET", "rateLimit/order"): Endpoint(trading.order_limits, _fixed(40)),
    ("POST", "order/cancelReplace"): Endpoint(
        lists.cancel_replace, _fixed(1), trades=True, free=True, counted=True
    ),
    ("POST", "orderList/oco"): Endpoint(
        lists.place_oco, _fixed(1), trades=True, orders=2, free=True
    ),
    ("POST", "order/oco"): Endpoint(
        lists.place_old_oco, _fixed(1), trades=True, orders=2, free=True
    ),
    ("GET", "orderList"): Endpoint(lists.query_list, _fixed(4)),
    ("DELETE", "orderList"): Endpoint(lists.cancel_list, _fixed(1), trades=True, free=True),
    ("GET", "allOrderList"): Endpoint(lists.all_lists, _fixed(20)),
    ("GET", "openOrderList"): Endpoint(lists.open_lists, _fixed(6)),
    ("GET", "myPreventedMatches"): Endpoint(
        lists.prevented, lambda p: 2 if p.get("preventedMatchId") else 20
    ),
}
