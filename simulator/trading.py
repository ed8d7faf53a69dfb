"""The signed endpoints: what REST and WS API requests about orders and accounts do and answer.

Every endpoint is a function of a `Call`; both dialects share them. Checks that need the parameters
alone are made here (codes -11xx), those that need the market or the account in the engine.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from simulator import lag, reports
from simulator.desk import Desk, random_id
from simulator.endpoints import ApiError, Params, check_symbol
from simulator.exchange.amounts import DIGITS, text, units
from simulator.exchange.engine import NewOrder
from simulator.exchange.orders import STOPS, Account, Key, Order, OrderList, Side, Stp, Type
from simulator.exchange.symbols import Symbol

Json = dict[str, Any]
_CLIENT_ID = re.compile(r"^[a-zA-Z0-9-_]{1,36}$")
_NUMBER = re.compile(r"^([0-9]{1,20})(\.[0-9]{1,20})?$")
_DAY_MS = 86_400_000
_LIMITED = frozenset((Type.LIMIT, Type.STOP_LOSS_LIMIT, Type.TAKE_PROFIT_LIMIT))


@dataclass(slots=True)
class Call:
    """One signed request on its way: who asks what, when. unit: of the reply's times. as_of_ms:
    queries see the books as they were then, None = now."""

    desk: Desk
    account: Account
    key: Key
    params: Params
    now_ms: int
    unit: int
    as_of_ms: int | None = None


def missing(name: str) -> ApiError:
    return ApiError(
        400, -1102, f"Mandatory parameter '{name}' was not sent, was empty/null, or malformed."
    )


def _unwanted(name: str) -> ApiError:
    return ApiError(400, -1106, f"Parameter '{name}' sent when not required.")


def _illegal(name: str, pattern: str) -> ApiError:
    return ApiError(
        400,
        -1100,
        f"Illegal characters found in parameter '{name}'; legal range is '{pattern}'.",
    )


def symbol_of(call: Call) -> Symbol:
    name = call.params.need("symbol")
    check_symbol(name)
    symbol = call.desk.state.symbols.get(name)
    if symbol is None:
        raise ApiError(400, -1121, "Invalid symbol.")
    return symbol


def amount(params: Params, name: str) -> int:
    """A decimal parameter in units; 0 when it was not sent.

    Raises: ApiError when it was sent and is malformed, too fine, or zero.
    """
    value = params.get(name)
    if value is None:
        return 0
    if not _NUMBER.match(value):
        raise _illegal(name, "^([0-9]{1,20})(\\.[0-9]{1,20})?$")
    if len(value.partition(".")[2].rstrip("0")) > DIGITS:
        raise ApiError(400, -1111, f"Parameter '{name}' has too much precision.")
    found = units(value)
    if not found and "ceberg" not in name:
        what = "price" if "rice" in name else "quantity"
        raise ApiError(400, -1013, f"Invalid {what}.")
    return found


def client_id(params: Params, name: str) -> str:
    value = params.get(name)
    if value is None:
        return random_id()
    if not _CLIENT_ID.match(value):
        raise _illegal(name, "^[a-zA-Z0-9-_]{1,36}$")
    return value


def type_of(value: str) -> Type:
    try:
        return Type(value)
    except ValueError:
        raise ApiError(400, -1116, "Invalid orderType.") from None


def side_of(value: str) -> Side:
    try:
        return Side(value)
    except ValueError:
        raise ApiError(400, -1117, "Invalid side.") from None


def tif_of(value: str) -> str:
    if value not in ("GTC", "IOC", "FOK"):
        raise ApiError(400, -1115, "Invalid timeInForce.")
    return value


def stp_of(params: Params, symbol: Symbol) -> Stp:
    value = params.get("selfTradePreventionMode") or symbol.stp_default
    try:
        return Stp(value)
    except ValueError:
        raise ApiError(
            400, -1130, "Data sent for parameter 'selfTradePreventionMode' is not valid."
        ) from None


def response_type(params: Params) -> str | None:
    value = params.get("newOrderRespType")
    if value not in (None, "ACK", "RESULT", "FULL"):
        raise ApiError(400, -1130, "Data sent for parameter 'newOrderRespType' is not valid.")
    return value


def strategy(params: Params, leg: str = "") -> tuple[int | None, int | None]:
    """(strategyId, strategyType); leg: prefix of a list's parameters."""
    number = params.integer(f"{leg}StrategyId" if leg else "strategyId")
    kind = params.integer(f"{leg}StrategyType" if leg else "strategyType")
    if kind is not None and kind < 1_000_000:
        raise ApiError(400, -1134, "`strategyType` was less than 1000000.")
    return number, kind


def new_order(call: Call) -> NewOrder:
    """The order that a request asks for, its parameters complete and well-formed."""
    params = call.params
    symbol = symbol_of(call)
    side, kind = side_of(params.need("side")), type_of(params.need("type"))
    tif = params.get("timeInForce")
    quantity = amount(params, "quantity")
    quote_quantity = amount(params, "quoteOrderQty")
    price, stop_price = amount(params, "price"), amount(params, "stopPrice")
    trailing = params.integer("trailingDelta") or 0
    iceberg = amount(params, "icebergQty")
    if kind is Type.MARKET:
        if not quantity and not quote_quantity:
            raise missing("quantity")
        if quantity and quote_quantity:
            raise ApiError(400, -1128, "Combination of optional parameters invalid.")
    else:
        if quote_quantity:
            raise _unwanted("quoteOrderQty")
        if not quantity:
            raise missing("quantity")
    check_prices(kind, tif, price, stop_price, trailing)
    if iceberg and (kind not in _LIMITED | {Type.LIMIT_MAKER} or (tif or "GTC") != "GTC"):
        raise _unwanted("icebergQty")
    strategy_id, strategy_type = strategy(params)
    return NewOrder(
        symbol=symbol.name,
        client_id=client_id(params, "newClientOrderId"),
        side=side,
        type=kind,
        tif=tif_of(tif) if tif else "GTC",
        quantity=quantity,
        quote_quantity=quote_quantity,
        price=price,
        stop_price=stop_price,
        trailing_bips=trailing,
        iceberg=iceberg,
        stp=stp_of(params, symbol),
        strategy_id=strategy_id,
        strategy_type=strategy_type,
    )


def check_prices(
    kind: Type, tif: str | None, price: int, stop_price: int, trailing: int, leg: str = ""
) -> None:
    """What a type must and must not have. leg: prefix of a list's parameters."""

    def name(word: str) -> str:
        return leg + word[0].upper() + word[1:] if leg else word

    if kind in _LIMITED:
        if not tif:
            raise missing(name("timeInForce"))
        if not price:
            raise missing(name("price"))
    elif tif:
        raise _unwanted(name("timeInForce"))
    if kind is Type.LIMIT_MAKER and not price:
        raise missing(name("price"))
    if kind in (Type.MARKET, Type.STOP_LOSS, Type.TAKE_PROFIT) and price:
        raise _unwanted(name("price"))
    if kind in STOPS:
        if not stop_price and not trailing:
            raise missing(name("stopPrice"))
    elif stop_price:
        raise _unwanted(name("stopPrice"))
    elif trailing:
        raise _unwanted(name("trailingDelta"))


def shown(call: Call, order: Order, kind: str | None) -> Json:
    """An order as the answer to placing it."""
    if kind is None:
        kind = "FULL" if order.ticket.type in (Type.MARKET, Type.LIMIT) else "ACK"
    if kind == "ACK":
        return reports.ack(order, call.unit)
    if kind == "RESULT":
        return reports.result(order, call.unit)
    return reports.full(order, call.unit, call.desk.state)


def place(call: Call) -> Json:
    kind = response_type(call.params)
    new = new_order(call)
    call.params.finish()
    desk = call.desk
    order = desk.engine.place(call.account, new, desk.quotes(new.symbol), call.now_ms)
    desk.commit(call.now_ms)
    return shown(call, order, kind)


def test(call: Call) -> Json:
    """Validation without the engine."""
    with_rates = call.params.get("computeCommissionRates") == "true"
    response_type(call.params)
    new = new_order(call)
    call.params.finish()
    call.desk.engine.check(call.account, new, call.desk.quotes(new.symbol))
    if not with_rates:
        return {}
    commission = commission_of(call.account, new.symbol)
    return {
        "standardCommissionForOrder": {
            side: commission["standardCommission"][side] for side in ("maker", "taker")
        },
        "specialCommissionForOrder": {"maker": text(0), "taker": text(0)},
        "taxCommissionForOrder": {"maker": text(0), "taker": text(0)},
        "discount": commission["discount"],
    }


def find_order(call: Call, order_id: int | None, client: str | None) -> Order | None:
    """The account's order of the given symbol and ids; None where there is none.

    Raises: ApiError -2039 when the two ids name different orders.
    """
    symbol = symbol_of(call)
    if order_id is not None:
        order = call.desk.state.orders.get(order_id)
        mine = order is not None and order.ticket.account == call.account.uid
        if order is None or not mine or order.ticket.symbol != symbol.name:
            return None
        if client is not None and client not in (order.ticket.client_id, order.cancel_id):
            raise ApiError(400, -2039, "Client order ID and order ID do not match the same order.")
        return order
    return call.desk.find(call.account, symbol.name, client or "")


def given_ids(
    params: Params, by_number: str = "orderId", by_client: str = "origClientOrderId"
) -> tuple[int | None, str | None]:
    """(order id, client id) of a request, one of them at least."""
    if not params.has(by_number, by_client):
        raise ApiError(
            400,
            -1102,
            f"Param '{by_client}' or '{by_number}' must be sent, but both were empty/null!",
        )
    return params.integer(by_number), params.get(by_client)


def query(call: Call) -> Json:
    symbol_of(call)
    ids = given_ids(call.params)
    call.params.finish()
    order = find_order(call, *ids)
    if order is not None and call.as_of_ms is not None:
        order = lag.order_at(order, call.as_of_ms)
    if order is None:
        raise ApiError(400, -2013, "Order does not exist.")
    return _queried(call, order)


def _queried(call: Call, order: Order) -> Json:
    shown = reports.queried(order, call.unit)
    if not call.desk.terms.cancel_renames:
        shown["clientOrderId"] = order.ticket.client_id
    return shown


def cancel(call: Call) -> Json:
    symbol_of(call)
    ids = given_ids(call.params)
    restrictions = call.params.get("cancelRestrictions")
    cancel_id = client_id(call.params, "newClientOrderId")
    call.params.finish()
    order = find_order(call, *ids)
    if order is None:
        raise ApiError(400, -2011, "Unknown order sent.")
    check_restrictions(order, restrictions)
    call.desk.engine.cancel(order, cancel_id, call.now_ms)
    call.desk.commit(call.now_ms)
    return reports.cancelled(order, call.unit)


def check_restrictions(order: Order, restrictions: str | None) -> None:
    wanted = {None: None, "ONLY_NEW": "NEW", "ONLY_PARTIALLY_FILLED": "PARTIALLY_FILLED"}
    if restrictions not in wanted:
        raise ApiError(
            400,
            -1145,
            "`cancelRestrictions` has to be either `ONLY_NEW` or `ONLY_PARTIALLY_FILLED`.",
        )
    if order.is_open and wanted[restrictions] not in (None, order.status):
        raise ApiError(400, -2011, "Order was not canceled due to cancel restrictions.")


def cancel_all(call: Call) -> list[Json]:
    """DELETE openOrders: every open order of a symbol, lists as one object each."""
    symbol = symbol_of(call)
    call.params.finish()
    desk = call.desk
    found: list[Json] = []
    mine = [o for o in call.account.open.values() if o.ticket.symbol == symbol.name]
    if not mine:
        raise ApiError(400, -2011, "Unknown order sent.")
    for order in mine:
        if not order.is_open:
            continue
        desk.engine.cancel(order, random_id(), call.now_ms)
        if order.ticket.list_id < 0:
            found.append(reports.cancelled(order, call.unit))
        else:
            one = desk.state.lists[order.ticket.list_id]
            found.append(cancelled_list(call, one))
    desk.commit(call.now_ms)
    return found


def cancelled_list(call: Call, one: OrderList) -> Json:
    """The answer to the cancel of a list."""
    state = call.desk.state
    return {
        **reports.order_list(state, one, call.unit),
        "orderReports": [reports.cancelled(state.orders[i], call.unit) for i in one.order_ids],
    }


def open_orders(call: Call) -> list[Json]:
    symbol = symbol_of(call).name if call.params.get("symbol") else None
    call.params.finish()
    if call.as_of_ms is None:
        found = list(call.account.open.values())
    else:
        everything = (o for some in call.account.orders.values() for o in some)
        found = [o for o in lag.orders_at(everything, call.as_of_ms) if o.is_open]
    found = [o for o in found if symbol in (None, o.ticket.symbol)]
    return [_queried(call, order) for order in found]


def window(call: Call) -> tuple[int | None, int | None]:
    start, end = call.params.time("startTime"), call.params.time("endTime")
    if start is not None and end is not None:
        if start > end:
            raise ApiError(400, -1127, "Start time is greater than end time.")
        if end - start > _DAY_MS:
            raise ApiError(400, -1127, "More than 24 hours between startTime and endTime.")
    return start, end


def all_orders(call: Call) -> list[Json]:
    symbol = symbol_of(call)
    first = call.params.integer("orderId")
    start, end = window(call)
    limit = call.params.limit(500, 1000)
    call.params.finish()
    found = call.account.orders.get(symbol.name, [])
    if call.as_of_ms is not None:
        found = lag.orders_at(found, call.as_of_ms)
    if first is not None:
        found = [o for o in found if o.ticket.order_id >= first][:limit]
    else:
        found = within(found, lambda o: o.ticket.time_ms, start, end, limit)
    return [_queried(call, order) for order in found]


Row = TypeVar("Row")


def within(
    rows: list[Row], time_of: Callable[[Row], int], start: int | None, end: int | None, limit: int
) -> list[Row]:
    """Rows (oldest first) of a window: the oldest `limit` with a start, else the newest."""
    if start is None and end is None:
        return rows[-limit:]
    found = [
        row
        for row in rows
        if (start is None or time_of(row) >= start) and (end is None or time_of(row) <= end)
    ]
    return found[:limit] if start is not None else found[-limit:]


def my_trades(call: Call) -> list[Json]:
    symbol = symbol_of(call)
    params = call.params
    order_id, first = params.integer("orderId"), params.integer("fromId")
    start, end = window(call)
    limit = params.limit(500, 1000)
    params.finish()
    if (start is not None or end is not None) and (first is not None or order_id is not None):
        raise ApiError(400, -1128, "Combination of optional parameters invalid.")
    found = call.account.trades.get(symbol.name, [])
    if call.as_of_ms is not None:
        found = lag.fills_at(found, call.as_of_ms)
    if order_id is not None:
        found = [fill for fill in found if fill.order_id == order_id]
    if first is not None:
        found = [fill for fill in found if fill.trade_id >= first][:limit]
    else:
        found = within(found, lambda fill: fill.time_ms, start, end, limit)
    return [reports.trade(call.desk.state.orders[fill.order_id], fill, call.unit) for fill in found]


def account(call: Call) -> Json:
    omit = call.params.get("omitZeroBalances") == "true"
    call.params.finish()
    held = call.account
    rates = held.rates
    balances = held.balances if call.as_of_ms is None else call.desk.history(held).at(call.as_of_ms)
    return {
        "makerCommission": reports.bips(rates.maker),
        "takerCommission": reports.bips(rates.taker),
        "buyerCommission": reports.bips(rates.buyer),
        "sellerCommission": reports.bips(rates.seller),
        "commissionRates": {
            "maker": text(rates.maker),
            "taker": text(rates.taker),
            "buyer": text(rates.buyer),
            "seller": text(rates.seller),
        },
        "canTrade": call.key.can_trade,
        "canWithdraw": call.key.can_withdraw,
        "canDeposit": True,
        "brokered": False,
        "requireSelfTradePrevention": False,
        "preventSor": False,
        "updateTime": held.update_ms * call.unit,
        "accountType": "SPOT",
        "balances": reports.balances(balances, omit_zero=omit),
        "permissions": ["SPOT"],
        "uid": held.uid,
    }


def commission_of(held: Account, symbol: str) -> Json:
    zero = dict.fromkeys(("maker", "taker", "buyer", "seller"), text(0))
    rates = held.rates
    return {
        "symbol": symbol,
        "standardCommission": {
            "maker": text(rates.maker),
            "taker": text(rates.taker),
            "buyer": text(rates.buyer),
            "seller": text(rates.seller),
        },
        "specialCommission": zero,
        "taxCommission": zero,
        "discount": {
            "enabledForAccount": False,
            "enabledForSymbol": False,
            "discountAsset": "BNB",
            "discount": "0.75000000",
        },
    }


def commission(call: Call) -> Json:
    symbol = symbol_of(call)
    call.params.finish()
    return commission_of(call.account, symbol.name)


def order_limits(call: Call) -> list[Json]:
    call.params.finish()
    return order_limit_rows(call.desk, call.account, call.now_ms)


def order_limit_rows(desk: Desk, held: Account, now_ms: int) -> list[Json]:
    """An account's order counts beside their limits."""
    terms = desk.terms
    ten, day = desk.order_counts(held).now(now_ms)
    return [
        {
            "rateLimitType": "ORDERS",
            "interval": "SECOND",
            "intervalNum": 10,
            "limit": terms.orders_10s,
            "count": ten,
        },
        {
            "rateLimitType": "ORDERS",
            "interval": "DAY",
            "intervalNum": 1,
            "limit": terms.orders_day,
            "count": day,
        },
    ]
