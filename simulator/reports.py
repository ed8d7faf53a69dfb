"""How the exchange writes about orders: REST and WS API objects, and user stream events.

`unit` is that of the reply's times: 1 = milliseconds, 1000 = microseconds.
"""

from collections.abc import Mapping
from typing import Any

from simulator.exchange.amounts import text, times
from simulator.exchange.effects import Ended, Filled, Prevented, Rejected
from simulator.exchange.orders import Account, Fill, Order, OrderList, Ticket
from simulator.exchange.state import BalanceReport, ListReport, Report, State

Json = dict[str, Any]


def _conditional(order: Order) -> Json:
    """Fields that are there only where they mean something."""
    ticket = order.ticket
    more: Json = {}
    if ticket.trailing_bips:
        more["trailingDelta"] = ticket.trailing_bips
        more["trailingTime"] = order.trailing_ms
    if ticket.strategy_id is not None:
        more["strategyId"] = ticket.strategy_id
    if ticket.strategy_type is not None:
        more["strategyType"] = ticket.strategy_type
    if order.prevented_id is not None:
        more["preventedMatchId"] = order.prevented_id
        more["preventedQuantity"] = text(order.prevented)
    if order.reason:
        more["expiryReason"] = order.reason
    return more


def ack(order: Order, unit: int) -> Json:
    ticket = order.ticket
    return {
        "symbol": ticket.symbol,
        "orderId": ticket.order_id,
        "orderListId": ticket.list_id,
        "clientOrderId": ticket.client_id,
        "transactTime": order.update_ms * unit,
    }


def _body(order: Order) -> Json:
    ticket = order.ticket
    return {
        "price": text(ticket.price),
        "origQty": text(ticket.quantity),
        "executedQty": text(order.executed),
        "origQuoteOrderQty": text(ticket.quote_quantity),
        "cummulativeQuoteQty": text(order.quote),
        "status": order.status,
        "timeInForce": ticket.tif,
        "type": ticket.type,
        "side": ticket.side,
    }


def _stop(ticket: Ticket) -> Json:
    more: Json = {}
    if ticket.stop_price:
        more["stopPrice"] = text(ticket.stop_price)
    if ticket.iceberg:
        more["icebergQty"] = text(ticket.iceberg)
    return more


def _working(order: Order, unit: int) -> int:
    return order.working_ms * unit if order.working_ms >= 0 else -1


def result(order: Order, unit: int) -> Json:
    return {
        **ack(order, unit),
        **_body(order),
        **_stop(order.ticket),
        "workingTime": _working(order, unit),
        "selfTradePreventionMode": order.ticket.stp,
        **_conditional(order),
    }


def full(order: Order, unit: int, state: State) -> Json:
    fills = [
        {
            "price": text(fill.price),
            "qty": text(fill.quantity),
            "commission": text(fill.fee),
            "commissionAsset": fill.fee_asset,
            "tradeId": fill.trade_id,
        }
        for fill in order.fills
    ]
    whole = result(order, unit)
    stp = whole.pop("selfTradePreventionMode")
    whole["fills"] = fills
    matches = [
        _match(pair)
        for pair in _pairs(state, order.ticket.time_ms)
        if pair[0] == order.ticket.order_id
    ]
    if matches:
        whole["preventedMatches"] = [
            {k: v for k, v in match.items() if k not in ("takerOrderId", "tradeGroupId")}
            for match in matches
        ]
    return {**whole, "selfTradePreventionMode": stp}


def _pairs(state: State, since_ms: int) -> list[tuple[int, int, list[Prevented]]]:
    """(taker's order id, maker's, what it cost each) of the prevented matches since then."""
    found: dict[int, list[Prevented]] = {}
    for effect in reversed(state.prevented):
        if effect.time_ms < since_ms:
            break
        found.setdefault(effect.match_id, []).append(effect)
    pairs = []
    for effects in reversed(found.values()):
        one = effects[0]
        taker, maker = (one.order_id, one.counter) if one.is_taker else (one.counter, one.order_id)
        pairs.append((taker, maker, effects))
    return pairs


def _match(pair: tuple[int, int, list[Prevented]]) -> Json:
    taker, maker, effects = pair
    row: Json = {
        "preventedMatchId": effects[0].match_id,
        "takerOrderId": taker,
        "makerOrderId": maker,
        "tradeGroupId": -1,
        "price": text(effects[0].price),
    }
    for effect in effects:
        who = "taker" if effect.is_taker else "maker"
        row[f"{who}PreventedQuantity"] = text(effect.last)
    return row


def prevented_matches(state: State, account: Account, symbol: str, unit: int) -> list[Json]:
    """Rows of myPreventedMatches, oldest first."""
    rows = []
    for pair in _pairs(state, 0):
        ticket = state.orders[pair[0]].ticket
        if ticket.account == account.uid and ticket.symbol == symbol:
            row = _match(pair)
            rows.append(
                {
                    "symbol": symbol,
                    **row,
                    "selfTradePreventionMode": ticket.stp,
                    "transactTime": pair[2][0].time_ms * unit,
                }
            )
    return rows


def cancelled(order: Order, unit: int) -> Json:
    ticket = order.ticket
    return {
        "symbol": ticket.symbol,
        "origClientOrderId": ticket.client_id,
        "orderId": ticket.order_id,
        "orderListId": ticket.list_id,
        "clientOrderId": order.cancel_id,
        "transactTime": order.update_ms * unit,
        **_body(order),
        **_stop(ticket),
        "selfTradePreventionMode": ticket.stp,
        **_conditional(order),
    }


def queried(order: Order, unit: int) -> Json:
    """GET order, openOrders, allOrders."""
    ticket = order.ticket
    body = _body(order)
    quote_quantity = body.pop("origQuoteOrderQty")
    return {
        "symbol": ticket.symbol,
        "orderId": ticket.order_id,
        "orderListId": ticket.list_id,
        "clientOrderId": order.cancel_id or ticket.client_id,
        **body,
        "stopPrice": text(ticket.stop_price),
        "icebergQty": text(ticket.iceberg),
        "time": ticket.time_ms * unit,
        "updateTime": order.update_ms * unit,
        "isWorking": order.working_ms >= 0,
        "workingTime": _working(order, unit),
        "origQuoteOrderQty": quote_quantity,
        "selfTradePreventionMode": ticket.stp,
        **_conditional(order),
    }


def trade(order: Order, fill: Fill, unit: int) -> Json:
    """A row of myTrades."""
    return {
        "symbol": order.ticket.symbol,
        "id": fill.trade_id,
        "orderId": fill.order_id,
        "orderListId": order.ticket.list_id,
        "price": text(fill.price),
        "qty": text(fill.quantity),
        "quoteQty": text(fill.quote),
        "commission": text(fill.fee),
        "commissionAsset": fill.fee_asset,
        "time": fill.time_ms * unit,
        "isBuyer": order.ticket.side == "BUY",
        "isMaker": fill.is_maker,
        "isBestMatch": True,
    }


def order_list(
    state: State, one: OrderList, unit: int, *, status: tuple[str, str] | None = None
) -> Json:
    """An order list without its orders' reports. status: (listStatusType, listOrderStatus)."""
    done = ("ALL_DONE", "ALL_DONE")
    kind, stage = status or (done if one.ended_ms is not None else ("EXEC_STARTED", "EXECUTING"))
    return {
        "orderListId": one.list_id,
        "contingencyType": "OCO",
        "listStatusType": kind,
        "listOrderStatus": stage,
        "listClientOrderId": one.client_id,
        "transactionTime": (one.ended_ms or one.time_ms) * unit,
        "symbol": one.symbol,
        "orders": [
            {
                "symbol": one.symbol,
                "orderId": number,
                "clientOrderId": state.orders[number].ticket.client_id,
            }
            for number in one.order_ids
        ],
    }


def balances(held: Mapping[str, list[int]], *, omit_zero: bool) -> list[Json]:
    return [
        {"asset": asset, "free": text(free), "locked": text(locked)}
        for asset, (free, locked) in sorted(held.items())
        if not omit_zero or free or locked
    ]


def bips(rate: int) -> int:
    """A rate in basis points."""
    return rate // 10_000


# user stream events


def execution(report: Report, event_ms: int, unit: int) -> Json:
    """executionReport."""
    order, effect = report.order, report.effect
    ticket = order.ticket
    cancel_id = effect.cancel_id if isinstance(effect, Ended) else ""
    fill = effect if isinstance(effect, Filled) else None
    event: Json = {
        "e": "executionReport",
        "E": event_ms * unit,
        "s": ticket.symbol,
        "c": cancel_id or ticket.client_id,
        "S": ticket.side,
        "o": ticket.type,
        "f": ticket.tif,
        "q": text(ticket.quantity),
        "p": text(ticket.price),
        "P": text(ticket.stop_price),
        "F": text(ticket.iceberg),
        "g": ticket.list_id,
        "C": ticket.client_id if cancel_id else "",
        "x": report.kind,
        "X": report.status,
        "r": effect.reason if isinstance(effect, Rejected) else "NONE",
        "i": ticket.order_id,
        "l": text(fill.quantity if fill else 0),
        "z": text(report.executed),
        "L": text(fill.price if fill else 0),
        "n": text(fill.fee) if fill else "0",
        "N": fill.fee_asset if fill else None,
        "T": report.time_ms * unit,
        "t": fill.trade_id if fill else -1,
        "I": report.execution_id,
        "w": report.is_on_book,
        "m": fill.is_maker if fill else False,
        "M": fill is not None,
        "O": ticket.time_ms * unit,
        "Z": text(report.quote),
        "Y": text(fill.quote if fill else 0),
        "Q": text(ticket.quote_quantity),
        "V": ticket.stp,
    }
    if report.working_ms >= 0:
        event["W"] = report.working_ms * unit
    if ticket.trailing_bips:
        event["d"] = ticket.trailing_bips
        event["D"] = order.trailing_ms * unit if order.trailing_ms >= 0 else -1
    if ticket.strategy_id is not None:
        event["j"] = ticket.strategy_id
    if ticket.strategy_type is not None:
        event["J"] = ticket.strategy_type
    if isinstance(effect, Prevented):
        event |= {
            "v": effect.match_id,
            "A": text(report.prevented),
            "B": text(effect.last),
            "u": -1,
            "U": effect.counter,
            "Cs": ticket.symbol,
            "pl": text(effect.matched),
            "pL": text(effect.price),
            "pY": text(times(effect.price, effect.matched)),
        }
    if isinstance(effect, Ended) and effect.reason:
        event["eR"] = effect.reason
    return event


def position(account: Account, assets: set[str], event_ms: int) -> Json:
    """outboundAccountPosition, as the balances are now; times in milliseconds."""
    return {
        "e": "outboundAccountPosition",
        "E": event_ms,
        "u": account.update_ms,
        "B": [
            {
                "a": asset,
                "f": text(account.balances[asset][0]),
                "l": text(account.balances[asset][1]),
            }
            for asset in sorted(assets)
        ],
    }


def in_unit(event: Json, unit: int) -> Json:
    """An outboundAccountPosition in another time unit."""
    return {**event, "E": event["E"] * unit, "u": event["u"] * unit}


def moved(report: BalanceReport, event_ms: int, unit: int) -> Json:
    """balanceUpdate."""
    return {
        "e": "balanceUpdate",
        "E": event_ms * unit,
        "a": report.asset,
        "d": text(report.delta),
        "T": report.time_ms * unit,
    }


def list_status(state: State, report: ListReport, event_ms: int, unit: int) -> Json:
    """listStatus."""
    one = report.order_list
    return {
        "e": "listStatus",
        "E": event_ms * unit,
        "s": one.symbol,
        "g": one.list_id,
        "c": "OCO",
        "l": "ALL_DONE" if report.is_done else "EXEC_STARTED",
        "L": "ALL_DONE" if report.is_done else "EXECUTING",
        "r": "NONE",
        "C": one.client_id,
        "T": report.time_ms * unit,
        "O": [
            {"s": one.symbol, "i": number, "c": state.orders[number].ticket.client_id}
            for number in one.order_ids
        ],
    }
