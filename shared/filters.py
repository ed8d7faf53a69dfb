"""What a symbol's orders must look like: its filters, in exact decimal arithmetic.

Parsed from one symbol of `GET exchangeInfo` (binance.md section 8). Whoever makes an order rounds
the price to the tick and the quantity down to the step, then asks `problem_of`: an order without a
problem is not refused for a filter, unless rules, reference price or open orders have changed.

The exchange's own limits over all symbols (EXCHANGE_MAX_NUM_ORDERS, MAX_ASSET) are not here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Context, Decimal, InvalidOperation, localcontext
from typing import Any

from shared.errors import BadInput
from shared.exchange import NewOco, NewOrder, OrderType, Side

ZERO = Decimal(0)
_UNBOUNDED = Decimal("Infinity")
_CLIENT_ID = re.compile(r"[a-zA-Z0-9\-_]{1,36}")
_EXACT = Context(prec=60)  # products of two amounts of at most 28 digits
_PRICED = frozenset(
    (
        OrderType.LIMIT,
        OrderType.LIMIT_MAKER,
        OrderType.STOP_LOSS_LIMIT,
        OrderType.TAKE_PROFIT_LIMIT,
    )
)
_STOPPED = frozenset(
    (
        OrderType.STOP_LOSS,
        OrderType.STOP_LOSS_LIMIT,
        OrderType.TAKE_PROFIT,
        OrderType.TAKE_PROFIT_LIMIT,
    )
)
_TIMED = frozenset((OrderType.LIMIT, OrderType.STOP_LOSS_LIMIT, OrderType.TAKE_PROFIT_LIMIT))


@dataclass(frozen=True, slots=True)
class Grid:
    """Allowed values: least to most, in multiples of step. 0 switches a part off."""

    least: Decimal = ZERO
    most: Decimal = ZERO
    step: Decimal = ZERO

    def floor(self, value: Decimal) -> Decimal:
        """The multiple of step at or below a value >= 0; the value itself where there is no step.

        In whole steps: a quotient that is rounded could reach the next one.
        """
        return value // self.step * self.step if self.step else value

    def ceil(self, value: Decimal) -> Decimal:
        floor = self.floor(value)
        return floor if floor == value else floor + self.step

    def problem(self, name: str, value: Decimal) -> str | None:
        if self.least and value < self.least:
            return f"{name} {plain(value)} is below {plain(self.least)}"
        if self.most and value > self.most:
            return f"{name} {plain(value)} is above {plain(self.most)}"
        if self.step and value % self.step:
            return f"{name} {plain(value)} is not a multiple of {plain(self.step)}"
        return None


@dataclass(frozen=True, slots=True)
class Band:
    """Factors of the reference price between which a limit price must lie. 0: no such bound."""

    down: Decimal = ZERO
    up: Decimal = ZERO


@dataclass(frozen=True, slots=True, kw_only=True)
class SymbolRules:
    """The rules of one symbol. None: no such limit.

    tick, lot, market_lot: grids of prices (quote), quantities (base) and of quantities that are
    traded at market. Bands: of limit prices. Notionals are quote amounts.
    """

    symbol: str
    base: str
    quote: str
    status: str
    base_precision: int
    quote_precision: int
    order_types: frozenset[str]
    spot_allowed: bool
    oco_allowed: bool
    quote_quantity_allowed: bool
    tick: Grid = Grid()
    lot: Grid = Grid()
    market_lot: Grid = Grid()
    min_notional: Decimal = ZERO
    min_notional_at_market: bool = False
    max_notional: Decimal = _UNBOUNDED
    max_notional_at_market: bool = False
    buy_band: Band = Band()
    sell_band: Band = Band()
    max_orders: int | None = None
    max_algo_orders: int | None = None
    max_order_lists: int | None = None
    max_position: Decimal | None = None

    def floor_price(self, price: Decimal) -> Decimal:
        """Down to the tick."""
        return self.tick.floor(price)

    def ceil_price(self, price: Decimal) -> Decimal:
        """Up to the tick."""
        return self.tick.ceil(price)

    def round_price(self, price: Decimal) -> Decimal:
        """To the nearer tick, the lower one of two equally near."""
        low, high = self.tick.floor(price), self.tick.ceil(price)
        return low if price - low <= high - price else high

    def floor_quantity(self, quantity: Decimal, *, at_market: bool = False) -> Decimal:
        """Down to the lot's step, and to its largest quantity; it may be too small then.

        at_market: of an order that takes at any price (MARKET, STOP_LOSS, TAKE_PROFIT).
        """
        grids = (self.lot, self.market_lot) if at_market else (self.lot,)
        for grid in grids:
            if grid.most:
                quantity = min(quantity, grid.most)
        # Both steps hold at once where one is a multiple of the other, as they are.
        steps = sorted((grid for grid in grids if grid.step), key=lambda grid: grid.step)
        if not steps:
            return Grid(step=Decimal(1).scaleb(-self.base_precision)).floor(quantity)
        return steps[-1].floor(quantity)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What the account has on the symbol now; the limits on numbers and position need it.

    open_orders: all that rest, stops included. base_total: free and locked. open_buys: base that
    resting buys may still add.
    """

    open_orders: int = 0
    open_algo_orders: int = 0
    open_lists: int = 0
    base_total: Decimal = ZERO
    open_buys: Decimal = ZERO


NOTHING = Standing()


@dataclass(frozen=True, slots=True)
class Problem:
    """Why an order would be refused. filter: the exchange's name for the rule."""

    filter: str
    text: str

    def __str__(self) -> str:
        return f"{self.filter}: {self.text}"


# -- exchangeInfo -------------------------------------------------------------------------------


def rules_from(body: Any, symbol: str) -> SymbolRules:
    """The rules of one symbol, from the reply to `GET exchangeInfo`. Unknown filters are ignored.

    Raises:
        BadInput: the symbol is not in it, or it has another shape.
    """
    symbols = body.get("symbols") if isinstance(body, dict) else None
    for item in symbols if isinstance(symbols, list) else ():
        if isinstance(item, dict) and item.get("symbol") == symbol:
            try:
                return _rules(item)
            except (KeyError, TypeError, ValueError, InvalidOperation) as error:
                raise BadInput(
                    f"exchangeInfo of {symbol}: {type(error).__name__} {error}"
                ) from None
    raise BadInput(f"exchangeInfo has no {symbol}")


def _rules(item: dict[str, Any]) -> SymbolRules:
    filters = {part["filterType"]: part for part in item["filters"]}
    low, high, by_min, by_max = ZERO, _UNBOUNDED, False, False
    if (part := filters.get("MIN_NOTIONAL")) is not None:
        low, by_min = _decimal(part["minNotional"]), bool(part.get("applyToMarket", True))
    if (part := filters.get("NOTIONAL")) is not None:
        low = max(low, _decimal(part["minNotional"]))
        by_min = by_min or bool(part.get("applyMinToMarket", True))
        high = _decimal(part["maxNotional"]) or _UNBOUNDED
        by_max = bool(part.get("applyMaxToMarket", True))
    buy_band, sell_band = _bands(filters.get("PERCENT_PRICE"), filters.get("PERCENT_PRICE_BY_SIDE"))
    return SymbolRules(
        symbol=_text(item["symbol"]),
        base=_text(item["baseAsset"]),
        quote=_text(item["quoteAsset"]),
        status=_text(item["status"]),
        base_precision=int(item["baseAssetPrecision"]),
        quote_precision=int(item.get("quoteAssetPrecision", item["quotePrecision"])),
        order_types=frozenset(map(_text, item["orderTypes"])),
        spot_allowed=bool(item.get("isSpotTradingAllowed", True)),
        oco_allowed=bool(item.get("ocoAllowed", False)),
        quote_quantity_allowed=bool(item.get("quoteOrderQtyMarketAllowed", False)),
        tick=_grid(filters.get("PRICE_FILTER"), "minPrice", "maxPrice", "tickSize"),
        lot=_grid(filters.get("LOT_SIZE"), "minQty", "maxQty", "stepSize"),
        market_lot=_grid(filters.get("MARKET_LOT_SIZE"), "minQty", "maxQty", "stepSize"),
        min_notional=low,
        min_notional_at_market=by_min,
        max_notional=high,
        max_notional_at_market=by_max,
        buy_band=buy_band,
        sell_band=sell_band,
        max_orders=_limit(filters.get("MAX_NUM_ORDERS"), "maxNumOrders"),
        max_algo_orders=_limit(filters.get("MAX_NUM_ALGO_ORDERS"), "maxNumAlgoOrders"),
        max_order_lists=_limit(filters.get("MAX_NUM_ORDER_LISTS"), "maxNumOrderLists"),
        max_position=_decimal(part["maxPosition"])
        if (part := filters.get("MAX_POSITION")) is not None
        else None,
    )


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is no name")
    return value


def _decimal(value: Any) -> Decimal:
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise ValueError(f"{value!r} is no decimal")
    number = Decimal(value)
    if not number.is_finite() or number < 0:
        raise ValueError(f"{value!r} is no amount")
    return number


def _grid(part: Mapping[str, Any] | None, least: str, most: str, step: str) -> Grid:
    if part is None:
        return Grid()
    return Grid(_decimal(part[least]), _decimal(part[most]), _decimal(part[step]))


def _limit(part: Mapping[str, Any] | None, name: str) -> int | None:
    # MAX_NUM_ORDERS says `limit` in some replies.
    return None if part is None else int(part[name] if name in part else part["limit"])


def _bands(both: Mapping[str, Any] | None, by_side: Mapping[str, Any] | None) -> tuple[Band, Band]:
    """Of buys and of sells; where both filters exist, both hold."""
    bands = [Band(), Band()]
    if both is not None:
        bands = [Band(_decimal(both["multiplierDown"]), _decimal(both["multiplierUp"]))] * 2
    if by_side is not None:
        for i, name in enumerate(("bid", "ask")):
            down = _decimal(by_side[f"{name}MultiplierDown"])
            up = _decimal(by_side[f"{name}MultiplierUp"])
            old = bands[i]
            bands[i] = Band(max(down, old.down), min(up or old.up, old.up or up))
    return bands[0], bands[1]


# -- what is wrong with an order ----------------------------------------------------------------


def problem_of(
    order: NewOrder,
    rules: SymbolRules,
    *,
    reference: Decimal,
    standing: Standing = NOTHING,
) -> Problem | None:
    """The first rule that the order would break, None = none.

    reference: what the exchange measures by (`Account.reference_price`). An order without a limit
    price has its notional there and, a stop, at its stop price, too: either may be meant. A
    quote_quantity is taken to buy at the reference; the exchange takes the book.

    Raises:
        ValueError: the order is for another symbol, its fields do not belong together, or the
            reference is no price.
    """
    with localcontext(_EXACT):
        return _problem_of(order, rules, reference, standing)


def _problem_of(
    order: NewOrder, rules: SymbolRules, reference: Decimal, standing: Standing
) -> Problem | None:
    _check_fields(order, rules)
    if not ZERO < reference < _UNBOUNDED:
        raise ValueError(f"{reference} is no reference price")
    found = _symbol_problem(order, rules) or _format_problem(order, rules)
    if found is not None:
        return found
    prices = [price for price in (order.price, order.stop_price) if price is not None]
    for price in prices:
        text = "the price is zero" if not price else rules.tick.problem("price", price)
        if text is not None:
            return Problem("PRICE_FILTER", text)
    notionals = []
    if order.quantity is not None:
        quantity = order.quantity
    elif order.quote_quantity is not None:
        quantity = rules.lot.floor(order.quote_quantity / reference)
        notionals.append(order.quote_quantity)
    else:
        raise ValueError("an order has one of quantity and quote_quantity")
    text = "the quantity is zero" if not quantity else rules.lot.problem("quantity", quantity)
    if text is not None:
        return Problem("LOT_SIZE", text)
    if order.price is None and (text := rules.market_lot.problem("quantity", quantity)) is not None:
        return Problem("MARKET_LOT_SIZE", text)
    if order.price is not None:
        found = _band_problem(order.side, order.price, rules, reference)
        if found is not None:
            return found
    levels = [order.price] if order.price is not None else [reference, *prices]
    notionals += (quantity * level for level in levels)
    for notional in notionals:
        found = _notional_problem(notional, order.type is OrderType.MARKET, rules)
        if found is not None:
            return found
    return _count_problem(order.side, order.type, quantity, rules, standing)


def problem_of_oco(
    oco: NewOco, rules: SymbolRules, *, reference: Decimal, standing: Standing = NOTHING
) -> Problem | None:
    """As `problem_of`, for both orders of the list and the list itself.

    The stop must lie on the other side of the market than the target; whether the market is between
    them is known to the exchange only.
    """
    if not rules.oco_allowed:
        return Problem("symbol", f"{rules.symbol} takes no OCO orders")
    if (oco.target_price > oco.stop_price) is not (oco.side is Side.SELL):
        return Problem("prices", "the target is not on the profitable side of the stop")
    if rules.max_order_lists is not None and standing.open_lists >= rules.max_order_lists:
        return Problem("MAX_NUM_ORDER_LISTS", f"{standing.open_lists} are open")
    target, stop = legs(oco)
    found = problem_of(target, rules, reference=reference, standing=standing)
    if found is not None:
        return found
    beside = replace(standing, open_orders=standing.open_orders + 1)
    return problem_of(stop, rules, reference=reference, standing=beside)


def legs(oco: NewOco) -> tuple[NewOrder, NewOrder]:
    """Target and stop as single orders."""
    target = NewOrder(
        symbol=oco.symbol,
        client_id=oco.target_client_id,
        side=oco.side,
        type=OrderType.LIMIT_MAKER,
        quantity=oco.quantity,
        price=oco.target_price,
    )
    limited = oco.stop_limit_price is not None
    stop = NewOrder(
        symbol=oco.symbol,
        client_id=oco.stop_client_id,
        side=oco.side,
        type=OrderType.STOP_LOSS_LIMIT if limited else OrderType.STOP_LOSS,
        quantity=oco.quantity,
        price=oco.stop_limit_price,
        stop_price=oco.stop_price,
        time_in_force="GTC" if limited else "",
    )
    return target, stop


def plain(value: Decimal) -> str:
    """As the exchange writes decimals: no exponent, no trailing zeros."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _check_fields(order: NewOrder, rules: SymbolRules) -> None:
    if order.symbol != rules.symbol:
        raise ValueError(f"the order is for {order.symbol}, the rules are for {rules.symbol}")
    if order.quantity is not None and order.quote_quantity is not None:
        raise ValueError("an order has one of quantity and quote_quantity")
    if _CLIENT_ID.fullmatch(order.client_id) is None:
        raise ValueError(f"{order.client_id!r} is no client id")
    if order.quote_quantity is not None and order.type is not OrderType.MARKET:
        raise ValueError(f"{order.type} takes no quote_quantity")
    if (order.price is not None) is not (order.type in _PRICED):
        raise ValueError(f"{order.type} with price {order.price}")
    if (order.stop_price is not None) is not (order.type in _STOPPED):
        raise ValueError(f"{order.type} with stop_price {order.stop_price}")
    if bool(order.time_in_force) is not (order.type in _TIMED):
        raise ValueError(f"{order.type} with time_in_force {order.time_in_force!r}")


def _symbol_problem(order: NewOrder, rules: SymbolRules) -> Problem | None:
    if rules.status != "TRADING":
        return Problem("status", f"{rules.symbol} is {rules.status}, not TRADING")
    if not rules.spot_allowed:
        return Problem("symbol", f"{rules.symbol} has no spot trading")
    if order.type not in rules.order_types:
        return Problem("symbol", f"{rules.symbol} takes no {order.type} orders")
    if order.quote_quantity is not None and not rules.quote_quantity_allowed:
        return Problem("symbol", f"{rules.symbol} takes no quantity in {rules.quote}")
    return None


def _format_problem(order: NewOrder, rules: SymbolRules) -> Problem | None:
    """`^([0-9]{1,20})(\\.[0-9]{1,20})?$`, with no more digits than the asset has (-1100, -1111)."""
    for name, value, digits in (
        ("quantity", order.quantity, rules.base_precision),
        ("quote_quantity", order.quote_quantity, rules.quote_precision),
        ("price", order.price, rules.quote_precision),
        ("stop_price", order.stop_price, rules.quote_precision),
    ):
        if value is None:
            continue
        if not value.is_finite() or value < 0:
            return Problem("precision", f"{name} {value} is no amount")
        whole, _, fraction = plain(value).partition(".")
        if len(whole) > 20 or len(fraction) > digits:
            return Problem("precision", f"{name} {plain(value)} has more than {digits} decimals")
    return None


def _band_problem(
    side: Side, price: Decimal, rules: SymbolRules, reference: Decimal
) -> Problem | None:
    band = rules.buy_band if side is Side.BUY else rules.sell_band
    low, high = reference * band.down, reference * (band.up or _UNBOUNDED)
    if low <= price <= high:
        return None
    return Problem(
        "PERCENT_PRICE", f"{side} at {plain(price)} is outside {plain(low)} to {plain(high)}"
    )


def _notional_problem(notional: Decimal, at_market: bool, rules: SymbolRules) -> Problem | None:
    if notional < rules.min_notional and (rules.min_notional_at_market or not at_market):
        return Problem("NOTIONAL", f"{plain(notional)} is below {plain(rules.min_notional)}")
    if notional > rules.max_notional and (rules.max_notional_at_market or not at_market):
        return Problem("NOTIONAL", f"{plain(notional)} is above {plain(rules.max_notional)}")
    return None


def _count_problem(
    side: Side, kind: OrderType, quantity: Decimal, rules: SymbolRules, standing: Standing
) -> Problem | None:
    if rules.max_orders is not None and standing.open_orders >= rules.max_orders:
        return Problem("MAX_NUM_ORDERS", f"{standing.open_orders} are open")
    if (
        kind in _STOPPED
        and rules.max_algo_orders is not None
        and standing.open_algo_orders >= rules.max_algo_orders
    ):
        return Problem("MAX_NUM_ALGO_ORDERS", f"{standing.open_algo_orders} are open")
    if side is Side.BUY and rules.max_position is not None:
        after = standing.base_total + standing.open_buys + quantity
        if after > rules.max_position:
            return Problem("MAX_POSITION", f"{plain(after)} is above {plain(rules.max_position)}")
    return None
