"""What a symbol allows: its exchangeInfo object, and every filter as exact integer arithmetic.

Source: Binance's filter documentation. PRICE_FILTER: min <= p <= max and p % tick == 0, each part
off when 0; LOT_SIZE likewise with q % step == 0; unknown filter types are ignored.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from simulator.exchange.amounts import UNIT, units
from simulator.exchange.orders import STOPS, Order, Side, Type


class Refused(Exception):
    """The exchange answers an error and nothing has changed: Binance's code and text."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def filter_failure(kind: str) -> Refused:
    return Refused(-1013, f"Filter failure: {kind}")


class Symbol:
    """One symbol. info: its exchangeInfo object, as it is served."""

    def __init__(self, info: dict[str, Any]) -> None:
        self.info = info
        self.name: str = info["symbol"]
        self.status: str = info["status"]
        self.base: str = info["baseAsset"]
        self.quote: str = info["quoteAsset"]
        self.order_types = frozenset(info["orderTypes"])
        self.stp_default: str = info.get("defaultSelfTradePreventionMode", "NONE")
        self.stp_allowed = frozenset(info.get("allowedSelfTradePreventionModes", ["NONE"]))
        self._filters = {f["filterType"]: f for f in info["filters"]}
        price, lot = self._limits("PRICE_FILTER", "Price"), self._limits("LOT_SIZE", "Qty")
        self.min_price, self.max_price, self.tick = price
        self.min_quantity, self.max_quantity, self.step = lot
        self.market_lot = self._limits("MARKET_LOT_SIZE", "Qty")
        notional = self._filters.get("NOTIONAL", {})
        older = self._filters.get("MIN_NOTIONAL", {})
        self.notional_kind = "NOTIONAL" if notional else "MIN_NOTIONAL"
        self.min_notional = units(notional.get("minNotional") or older.get("minNotional") or "0")
        self.max_notional = units(notional.get("maxNotional") or "0")
        self.min_to_market = bool(notional.get("applyMinToMarket") or older.get("applyToMarket"))
        self.max_to_market = bool(notional.get("applyMaxToMarket"))
        self._percent = self._percent_bounds()
        self.trailing = self._filters.get("TRAILING_DELTA")
        # an average over no minutes is the last price
        self.by_last = any(f.get("avgPriceMins", 1) == 0 for f in info["filters"])
        self.limits = count_limits(info["filters"])

    def allows(self, flag: str) -> bool:
        """A permission of the exchangeInfo object (`ocoAllowed`); what it does not name, it
        allows."""
        return bool(self.info.get(flag, True))

    def _limits(self, kind: str, name: str) -> tuple[int, int, int]:
        """(min, max, step); 0 = that part is off."""
        given = self._filters.get(kind)
        if given is None:
            return 0, 0, 0
        step = given["tickSize"] if name == "Price" else given["stepSize"]
        return units(given[f"min{name}"]), units(given[f"max{name}"]), units(step)

    def _percent_bounds(self) -> dict[Side, tuple[str, int, int]]:
        """Side -> (filter, lowest, highest multiple of the average price in units)."""
        by_side, both = (
            self._filters.get(kind) for kind in ("PERCENT_PRICE_BY_SIDE", "PERCENT_PRICE")
        )
        if by_side is not None:
            return {
                side: (
                    "PERCENT_PRICE_BY_SIDE",
                    units(by_side[f"{word}MultiplierDown"]),
                    units(by_side[f"{word}MultiplierUp"]),
                )
                for side, word in ((Side.BUY, "bid"), (Side.SELL, "ask"))
            }
        if both is not None:
            bounds = "PERCENT_PRICE", units(both["multiplierDown"]), units(both["multiplierUp"])
            return {Side.BUY: bounds, Side.SELL: bounds}
        return {}

    def max_position(self) -> int | None:
        given = self._filters.get("MAX_POSITION")
        return None if given is None else units(given["maxPosition"])

    # the checks; each raises Refused

    def check_price(self, price: int) -> None:
        """PRICE_FILTER, of price and stopPrice."""
        if (
            price < self.min_price
            or (self.max_price and price > self.max_price)
            or (self.tick and price % self.tick)
        ):
            raise filter_failure("PRICE_FILTER")

    def check_percent(self, side: Side, price: int, average: int) -> None:
        """PERCENT_PRICE(_BY_SIDE) around the average price."""
        bounds = self._percent.get(side)
        if bounds is None:
            return
        kind, low, high = bounds
        if not average * low <= price * UNIT <= average * high:
            raise filter_failure(kind)

    @property
    def wants_average(self) -> bool:
        return bool(self._percent)

    def check_quantity(self, quantity: int, *, market: bool) -> None:
        """LOT_SIZE, and MARKET_LOT_SIZE for a MARKET order."""
        _check_lot(quantity, (self.min_quantity, self.max_quantity, self.step), "LOT_SIZE")
        if market:
            _check_lot(quantity, self.market_lot, "MARKET_LOT_SIZE")

    def check_notional(self, notional: int, *, market: bool) -> None:
        """NOTIONAL (or MIN_NOTIONAL); of a MARKET order only what applies to it."""
        if notional < self.min_notional and (self.min_to_market or not market):
            raise filter_failure(self.notional_kind)
        if (
            self.max_notional
            and notional > self.max_notional
            and (self.max_to_market or not market)
        ):
            raise filter_failure(self.notional_kind)

    def check_iceberg(self, quantity: int, iceberg: int) -> None:
        """LOT_SIZE of the part, and the number of parts."""
        if iceberg > quantity:
            raise Refused(-2010, "IcebergQty exceeds QTY.")
        _check_lot(iceberg, (self.min_quantity, self.max_quantity, self.step), "LOT_SIZE")
        parts = self.limits.get("ICEBERG_PARTS")
        if parts is not None and -(-quantity // iceberg) > parts:
            raise filter_failure("ICEBERG_PARTS")

    def check_trailing(self, side: Side, kind: Type, bips: int) -> None:
        """TRAILING_DELTA: above limits where the trigger lies above the market, else below."""
        if self.trailing is None:
            raise filter_failure("TRAILING_DELTA")
        is_above = (side is Side.BUY) == (kind in (Type.STOP_LOSS, Type.STOP_LOSS_LIMIT))
        word = "Above" if is_above else "Below"
        low = self.trailing[f"minTrailing{word}Delta"]
        high = self.trailing[f"maxTrailing{word}Delta"]
        if not low <= bips <= high:
            raise filter_failure("TRAILING_DELTA")

    def check_position(self, held: int, bought: int) -> None:
        """MAX_POSITION: base held plus open and new buys."""
        most = self.max_position()
        if most is not None and held + bought > most:
            raise filter_failure("MAX_POSITION")

    def round_down(self, quantity: int) -> int:
        """To whole lots."""
        return quantity - quantity % self.step if self.step else quantity


_COUNTING = {
    "ICEBERG_PARTS": "limit",
    "MAX_NUM_ORDERS": "maxNumOrders",
    "MAX_NUM_ALGO_ORDERS": "maxNumAlgoOrders",
    "MAX_NUM_ICEBERG_ORDERS": "maxNumIcebergOrders",
    "MAX_NUM_ORDER_LISTS": "maxNumOrderLists",
    "EXCHANGE_MAX_NUM_ORDERS": "maxNumOrders",
    "EXCHANGE_MAX_NUM_ALGO_ORDERS": "maxNumAlgoOrders",
    "EXCHANGE_MAX_NUM_ICEBERG_ORDERS": "maxNumIcebergOrders",
    "EXCHANGE_MAX_NUM_ORDER_LISTS": "maxNumOrderLists",
}


def count_limits(filters: Iterable[dict[str, Any]]) -> dict[str, int]:
    """The numbers of the counting filters, of a symbol or of the exchange, by filter type."""
    found = {}
    for one in filters:
        name = _COUNTING.get(one["filterType"])
        if name is not None:
            found[one["filterType"]] = int(one[name] if name in one else one["limit"])
    return found


def check_counts(
    limits: Mapping[str, int], prefix: str, orders: Iterable[Order], new: list[tuple[Type, int]]
) -> None:
    """MAX_NUM_* (prefix "") of a symbol's open orders, EXCHANGE_MAX_NUM_* of all. new: (type,
    iceberg) of each order that comes.

    Raises: Refused.
    """
    if not limits:
        return
    held = list(orders)
    counted = (
        ("MAX_NUM_ORDERS", len(held), len(new)),
        (
            "MAX_NUM_ALGO_ORDERS",
            sum(o.ticket.type in STOPS for o in held),
            sum(kind in STOPS for kind, _ in new),
        ),
        (
            "MAX_NUM_ICEBERG_ORDERS",
            sum(o.ticket.iceberg > 0 for o in held),
            sum(iceberg > 0 for _, iceberg in new),
        ),
    )
    for name, there, more in counted:
        most = limits.get(prefix + name)
        if most is not None and more and there + more > most:
            raise filter_failure(prefix + name)


def _check_lot(quantity: int, limits: tuple[int, int, int], kind: str) -> None:
    low, high, step = limits
    if quantity < low or (high and quantity > high) or (step and quantity % step):
        raise filter_failure(kind)
