"""Order lists (OCO) and cancel-replace: requests that are about more than one order."""

from typing import Any

from simulator import reports
from simulator.endpoints import ApiError
from simulator.exchange.engine import NewOrder
from simulator.exchange.orders import OrderList, Side, Type
from simulator.exchange.symbols import Refused
from simulator.trading import (
    Call,
    amount,
    cancelled_list,
    check_prices,
    check_restrictions,
    client_id,
    find_order,
    given_ids,
    missing,
    new_order,
    response_type,
    shown,
    side_of,
    stp_of,
    strategy,
    symbol_of,
    tif_of,
    type_of,
    window,
    within,
)

Json = dict[str, Any]
_LOSS = frozenset((Type.STOP_LOSS, Type.STOP_LOSS_LIMIT))
_GAIN = frozenset((Type.LIMIT_MAKER, Type.TAKE_PROFIT, Type.TAKE_PROFIT_LIMIT))


def _leg(call: Call, prefix: str, side: Side, quantity: int) -> NewOrder:
    """One order of `orderList/oco`: the parameters that begin with above or below."""
    params = call.params
    symbol = symbol_of(call)
    kind = type_of(params.need(f"{prefix}Type"))
    tif = params.get(f"{prefix}TimeInForce")
    price, stop_price = amount(params, f"{prefix}Price"), amount(params, f"{prefix}StopPrice")
    trailing = params.integer(f"{prefix}TrailingDelta") or 0
    check_prices(kind, tif, price, stop_price, trailing, prefix)
    strategy_id, strategy_type = strategy(params, prefix)
    return NewOrder(
        symbol=symbol.name,
        client_id=client_id(params, f"{prefix}ClientOrderId"),
        side=side,
        type=kind,
        tif=tif_of(tif) if tif else "GTC",
        quantity=quantity,
        price=price,
        stop_price=stop_price,
        trailing_bips=trailing,
        iceberg=amount(params, f"{prefix}IcebergQty"),
        stp=stp_of(params, symbol),
        strategy_id=strategy_id,
        strategy_type=strategy_type,
    )


def place_oco(call: Call) -> Json:
    """POST orderList/oco."""
    symbol_of(call)
    side = side_of(call.params.need("side"))
    quantity = amount(call.params, "quantity")
    if not quantity:
        raise missing("quantity")
    above, below = (_leg(call, prefix, side, quantity) for prefix in ("above", "below"))
    return _place(call, above, below)


def place_old_oco(call: Call) -> Json:
    """POST order/oco: deprecated, alive."""
    params = call.params
    symbol = symbol_of(call)
    side = side_of(params.need("side"))
    quantity = amount(params, "quantity")
    price, stop_price = amount(params, "price"), amount(params, "stopPrice")
    for name, value in (("quantity", quantity), ("price", price), ("stopPrice", stop_price)):
        if not value:
            raise missing(name)
    stop_limit = amount(params, "stopLimitPrice")
    tif = params.get("stopLimitTimeInForce")
    if stop_limit and not tif:
        raise missing("stopLimitTimeInForce")
    stp = stp_of(params, symbol)
    legs = []
    for prefix, kind in (
        ("limit", Type.LIMIT_MAKER),
        ("stop", Type.STOP_LOSS_LIMIT if stop_limit else Type.STOP_LOSS),
    ):
        is_stop = prefix == "stop"
        strategy_id, strategy_type = strategy(params, prefix)
        legs.append(
            NewOrder(
                symbol=symbol.name,
                client_id=client_id(params, f"{prefix}ClientOrderId"),
                side=side,
                type=kind,
                tif=tif_of(tif) if is_stop and tif else "GTC",
                quantity=quantity,
                price=stop_limit if is_stop else price,
                stop_price=stop_price if is_stop else 0,
                trailing_bips=(params.integer("trailingDelta") or 0) if is_stop else 0,
                iceberg=amount(params, f"{prefix}IcebergQty"),
                stp=stp,
                strategy_id=strategy_id,
                strategy_type=strategy_type,
            )
        )
    limit, stop = legs
    return _place(call, *((limit, stop) if side is Side.SELL else (stop, limit)))


def _place(call: Call, above: NewOrder, below: NewOrder) -> Json:
    kind = response_type(call.params) or "RESULT"
    list_id = client_id(call.params, "listClientOrderId")
    call.params.finish()
    is_sell = above.side is Side.SELL
    if above.type not in (_GAIN if is_sell else _LOSS) or below.type not in (
        _LOSS if is_sell else _GAIN
    ):
        raise ApiError(400, -1014, "Unsupported order combination.")
    desk = call.desk
    one = desk.engine.place_oco(
        call.account, list_id, above, below, desk.quotes(above.symbol), call.now_ms
    )
    desk.commit(call.now_ms)
    orders = [desk.state.orders[number] for number in one.order_ids]
    return {
        **reports.order_list(desk.state, one, call.unit),
        "orderReports": [shown(call, order, kind) for order in orders],
    }


def _list(call: Call, number: int | None, name: str | None) -> OrderList | None:
    if number is not None:
        one = call.desk.state.lists.get(number)
        return one if one is not None and one.account == call.account.uid else None
    for one in reversed(call.account.lists):
        if name in (one.client_id, one.cancel_id):
            return one
    return None


def cancel_list(call: Call) -> Json:
    """DELETE orderList."""
    symbol = symbol_of(call)
    number, name = call.params.integer("orderListId"), call.params.get("listClientOrderId")
    cancel_id = client_id(call.params, "newClientOrderId")
    call.params.finish()
    if number is None and name is None:
        raise ApiError(
            400,
            -1102,
            "Param 'orderListId' or 'listClientOrderId' must be sent, but both were empty/null!",
        )
    one = _list(call, number, name)
    if one is None or one.symbol != symbol.name:
        raise ApiError(400, -2011, "Unknown order list sent.")
    desk = call.desk
    desk.engine.cancel_list(one, cancel_id, call.now_ms)
    desk.commit(call.now_ms)
    return cancelled_list(call, one)


def query_list(call: Call) -> Json:
    number, name = call.params.integer("orderListId"), call.params.get("origClientOrderId")
    call.params.finish()
    if number is None and name is None:
        raise ApiError(
            400,
            -1102,
            "Param 'orderListId' or 'origClientOrderId' must be sent, but both were empty/null!",
        )
    one = _list(call, number, name)
    if one is None:
        raise ApiError(400, -2018, "Order list does not exist.")
    return reports.order_list(call.desk.state, one, call.unit)


def all_lists(call: Call) -> list[Json]:
    first = call.params.integer("fromId")
    start, end = window(call)
    limit = call.params.limit(500, 1000)
    call.params.finish()
    found = call.account.lists
    if first is not None:
        if start is not None or end is not None:
            raise ApiError(400, -1128, "Combination of optional parameters invalid.")
        found = [one for one in found if one.list_id >= first][:limit]
    else:
        found = within(found, lambda one: one.time_ms, start, end, limit)
    return [reports.order_list(call.desk.state, one, call.unit) for one in found]


def open_lists(call: Call) -> list[Json]:
    call.params.finish()
    return [
        reports.order_list(call.desk.state, one, call.unit)
        for one in call.account.open_lists.values()
    ]


def cancel_replace(call: Call) -> Json:
    """POST order/cancelReplace: filters first, then the cancel, then the new order.

    Raises: ApiError -2022 (nothing happened) or -2021 with status 409 (one of the two did).
    """
    params, desk = call.params, call.desk
    mode = params.need("cancelReplaceMode")
    if mode not in ("STOP_ON_FAILURE", "ALLOW_FAILURE"):
        raise ApiError(400, -1130, "Data sent for parameter 'cancelReplaceMode' is not valid.")
    on_limit = params.get("orderRateLimitExceededMode") or "DO_NOTHING"
    if on_limit not in ("DO_NOTHING", "CANCEL_ONLY"):
        raise ApiError(
            400, -1130, "Data sent for parameter 'orderRateLimitExceededMode' is not valid."
        )
    ids = given_ids(params, "cancelOrderId", "cancelOrigClientOrderId")
    cancel_id = client_id(params, "cancelNewClientOrderId")
    restrictions = params.get("cancelRestrictions")
    kind = response_type(params)
    new = new_order(call)
    params.finish()
    quotes = desk.quotes(new.symbol)
    gone = find_order(call, *ids)
    desk.engine.check(call.account, new, quotes, instead_of=gone)
    refusal = desk.order_counts(call.account).spend(1, call.now_ms)
    too_many = None
    if refusal is not None:
        too_many = ApiError(429, -1015, refusal.message, retry_after_s=refusal.retry_after_s)
        if on_limit == "DO_NOTHING":
            raise too_many
    data: Json = {
        "cancelResult": "SUCCESS",
        "newOrderResult": "SUCCESS",
        "cancelResponse": None,
        "newOrderResponse": None,
    }
    try:
        if gone is None:
            raise Refused(-2011, "Unknown order sent.")
        check_restrictions(gone, restrictions)
        desk.engine.cancel(gone, cancel_id, call.now_ms)
        data["cancelResponse"] = reports.cancelled(gone, call.unit)
    except (Refused, ApiError) as error:
        data["cancelResult"] = "FAILURE"
        data["cancelResponse"] = {"code": error.code, "msg": error.message}
        if mode == "STOP_ON_FAILURE":
            data["newOrderResult"] = "NOT_ATTEMPTED"
            raise ApiError(400, -2022, "Order cancel-replace failed.", data=data) from None
    try:
        if too_many is not None:
            raise too_many
        try:
            order = desk.engine.place(call.account, new, quotes, call.now_ms)
        except Refused as refused:
            if data["cancelResult"] == "SUCCESS" and refused.code == -2010:
                desk.engine.reject(call.account, new, refused, call.now_ms)
            raise
        data["newOrderResponse"] = shown(call, order, kind)
    except (Refused, ApiError) as error:
        data["newOrderResult"] = "FAILURE"
        data["newOrderResponse"] = {"code": error.code, "msg": error.message}
    desk.commit(call.now_ms)
    failed = [data[name] for name in ("cancelResult", "newOrderResult")].count("FAILURE")
    if failed == 2:
        raise ApiError(400, -2022, "Order cancel-replace failed.", data=data)
    if failed:
        raise ApiError(409, -2021, "Order cancel-replace partially failed.", data=data)
    return data


def prevented(call: Call) -> list[Json]:
    """GET myPreventedMatches."""
    symbol, params = symbol_of(call), call.params
    match_id, order_id = params.integer("preventedMatchId"), params.integer("orderId")
    first = params.integer("fromPreventedMatchId")
    limit = params.limit(500, 1000)
    params.finish()
    if match_id is None and order_id is None:
        raise ApiError(400, -1128, "Combination of optional parameters invalid.")
    rows = reports.prevented_matches(call.desk.state, call.account, symbol.name, call.unit)
    return [
        row
        for row in rows
        if match_id in (None, row["preventedMatchId"])
        and (order_id is None or order_id in (row["takerOrderId"], row["makerOrderId"]))
        and (first is None or row["preventedMatchId"] >= first)
    ][:limit]
