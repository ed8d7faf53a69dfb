"""What the public REST endpoints answer: pure functions of the market, its time and the parameters.

Shapes, defaults, error codes and texts are Binance's (spot /api/v3, USD-M futures /fapi/v1).
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from shared.times import INTERVALS_MS
from simulator.market import Market, Series
from simulator.wire import Candle, kline_row, text

SPOT, FUTURES = "spot", "futures"


class ApiError(Exception):
    """An answer of the form {"code": .., "msg": ..}."""

    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message

    def body(self) -> bytes:
        return json.dumps({"code": self.code, "msg": self.message}, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Venue:
    """Spot or USD-M futures: its market and its name."""

    name: str
    market: Market


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a request sees: venue, market time, account (wall) time, time unit of the reply.

    adjust: candles as faults leave them (hidden or revised), identity without faults.
    """

    venue: Venue
    now_ms: int
    book_ms: int
    wall_ms: int
    unit: int
    weight_limit: int
    adjust: Callable[[str, str, list[Candle]], list[Candle]]


_SYMBOL = re.compile(r"^[\w\-.]{1,20}$")
_DIGITS = re.compile(r"^[0-9]{1,20}$")


class Params:
    """The parameters of one request, read by name; what is left unread is an error, as it is there."""

    def __init__(self, given: Mapping[str, str]) -> None:
        self._given = given
        self._read: set[str] = set()

    def get(self, name: str) -> str | None:
        self._read.add(name)
        return self._given.get(name) or None

    def need(self, name: str) -> str:
        value = self.get(name)
        if value is None:
            raise ApiError(
                400,
                -1102,
                f"Mandatory parameter '{name}' was not sent, was empty/null, or malformed.",
            )
        return value

    def integer(self, name: str, default: int | None = None) -> int | None:
        value = self.get(name)
        if value is None:
            return default
        if not _DIGITS.match(value):
            raise ApiError(
                400,
                -1100,
                f"Illegal characters found in parameter '{name}'; legal range is '^[0-9]{{1,20}}$'.",
            )
        return int(value)

    def limit(self, default: int, most: int) -> int:
        value = self.integer("limit", default)
        if not value:
            raise ApiError(400, -1130, "Data sent for parameter 'limit' is not valid.")
        return min(value, most)

    def time(self, name: str) -> int | None:
        """A time in milliseconds; microseconds are told by their size."""
        value = self.integer(name)
        return value // 1000 if value is not None and value > 10**14 else value

    def finish(self) -> None:
        """Raises: ApiError -1104 when a parameter was sent that this endpoint does not know."""
        known = sum(name in self._read for name in self._given)
        if known != len(self._given):
            raise ApiError(
                400,
                -1104,
                f"Not all sent parameters were read; read '{known}' parameter(s) but was sent "
                f"'{len(self._given)}'.",
            )


def series_of(view: View, symbol: str) -> Series:
    if not _SYMBOL.match(symbol) or symbol != symbol.upper():
        raise ApiError(
            400,
            -1100,
            "Illegal characters found in parameter 'symbol'; legal range is '^[A-Z0-9-_.]{1,20}$'.",
        )
    series = view.venue.market.series.get(symbol)
    if series is None:
        raise ApiError(400, -1121, "Invalid symbol.")
    return series


def interval_of(series: Series, interval: str) -> str:
    if interval not in INTERVALS_MS or not series.serves(interval):
        raise ApiError(400, -1120, "Invalid interval.")
    return interval


def ping(_view: View, params: Params) -> str:
    params.finish()
    return "{}"


def time(view: View, params: Params) -> str:
    params.finish()
    return f'{{"serverTime":{view.wall_ms * view.unit}}}'


_ZONE = re.compile(r"^([+-]?)(\d{1,2})(?::(\d{2}))?$")


def _zone_ms(params: Params) -> int:
    given = params.get("timeZone")
    if given is None:
        return 0
    match = _ZONE.match(given)
    if match:
        minutes = int(match[2]) * 60 + int(match[3] or 0)
        minutes = -minutes if match[1] == "-" else minutes
        if -720 <= minutes <= 840 and int(match[3] or 0) < 60:
            return minutes * 60_000
    raise ApiError(400, -1130, "Data sent for parameter 'timeZone' is not valid.")


def _rows(view: View, symbol: str, interval: str, candles: list[Candle]) -> str:
    shown = view.adjust(symbol, interval, candles)
    return "[" + ",".join(kline_row(candle, view.unit) for candle in shown) + "]"


def klines(view: View, params: Params) -> str:
    series = series_of(view, params.need("symbol"))
    interval = interval_of(series, params.need("interval"))
    return _klines(view, params, series, interval)


def _klines(view: View, params: Params, series: Series, interval: str) -> str:
    start, end = params.time("startTime"), params.time("endTime")
    futures = view.venue.name == FUTURES
    zone = 0 if futures else _zone_ms(params)
    limit = params.limit(500, 1500 if futures else 1000)
    params.finish()
    candles = series.klines(interval, start, end, limit, view.now_ms, zone)
    return _rows(view, series.symbol, interval, candles)


def _symbols(view: View, params: Params) -> tuple[list[Series], bool]:
    """(the series asked for, was it one `symbol`): symbol | symbols=["A","B"] | all."""
    one, many = params.get("symbol"), params.get("symbols")
    if one is not None and many is not None:
        raise ApiError(
            400,
            -1128,
            "Combination of optional parameters invalid. Recommendation: 'symbol' and 'symbols' "
            "cannot be used together.",
        )
    if one is not None:
        return [series_of(view, one)], True
    if many is None:
        return list(view.venue.market.series.values()), False
    try:
        names = json.loads(many)
    except ValueError:
        names = None
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise ApiError(
            400,
            -1100,
            "Illegal characters found in parameter 'symbols'; legal range is "
            '\'^\\["[A-Z0-9-_.]{1,20}"(,"[A-Z0-9-_.]{1,20}"){0,}\\]$\'.',
        )
    if len(set(names)) != len(names):
        raise ApiError(400, -1151, "Symbol is present multiple times in the list.")
    return [series_of(view, name) for name in names], False


_QUOTES = ("USDT", "USDC", "FDUSD", "TUSD", "BUSD", "BTC", "ETH", "BNB", "EUR", "TRY", "USD")


def assets(symbol: str) -> tuple[str, str]:
    """(base, quote) of a symbol."""
    for quote in _QUOTES:
        if symbol.endswith(quote) and len(symbol) > len(quote):
            return symbol.removesuffix(quote), quote
    return symbol[: len(symbol) // 2], symbol[len(symbol) // 2 :]


def _tick(series: Series) -> str:
    return text(10.0**-series.price_digits)


def _filters(series: Series) -> list[dict[str, object]]:
    """BTCUSDT's filters, with the symbol's own tick and a lot worth about a dollar at most."""
    price = float(series.base.values[0, 3])
    digits = min(5, series.lot_digits, max(0, round(math.log10(max(price, 1e-8)))))
    lot = text(10.0**-digits)
    largest = text(max(9000.0, float(10 ** round(math.log10(9e8 / max(price, 1e-8))))))
    tick = _tick(series)
    return [
        {
            "filterType": "PRICE_FILTER",
            "minPrice": tick,
            "maxPrice": "1000000.00000000",
            "tickSize": tick,
        },
        {"filterType": "LOT_SIZE", "minQty": lot, "maxQty": largest, "stepSize": lot},
        {"filterType": "ICEBERG_PARTS", "limit": 100},
        {
            "filterType": "MARKET_LOT_SIZE",
            "minQty": "0.00000000",
            "maxQty": "141.70000000" if price > 1000 else largest,
            "stepSize": "0.00000000",
        },
        {
            "filterType": "TRAILING_DELTA",
            "minTrailingAboveDelta": 10,
            "maxTrailingAboveDelta": 2000,
            "minTrailingBelowDelta": 10,
            "maxTrailingBelowDelta": 2000,
        },
        {
            "filterType": "PERCENT_PRICE_BY_SIDE",
            "bidMultiplierUp": "2",
            "bidMultiplierDown": "0.5",
            "askMultiplierUp": "2",
            "askMultiplierDown": "0.5",
            "avgPriceMins": 5,
        },
        {
            "filterType": "NOTIONAL",
            "minNotional": "5.00000000",
            "applyMinToMarket": True,
            "maxNotional": "9000000.00000000",
            "applyMaxToMarket": False,
            "avgPriceMins": 5,
        },
        {"filterType": "MAX_NUM_ORDERS", "maxNumOrders": 200},
        {"filterType": "MAX_NUM_ORDER_LISTS", "maxNumOrderLists": 20},
        {"filterType": "MAX_NUM_ALGO_ORDERS", "maxNumAlgoOrders": 5},
        {"filterType": "MAX_NUM_ORDER_AMENDS", "maxNumOrderAmends": 10},
    ]


def _spot_symbol(series: Series) -> dict[str, object]:
    base, quote = assets(series.symbol)
    return {
        "symbol": series.symbol,
        "status": "TRADING",
        "baseAsset": base,
        "baseAssetPrecision": 8,
        "quoteAsset": quote,
        "quotePrecision": 8,
        "quoteAssetPrecision": 8,
        "baseCommissionPrecision": 8,
        "quoteCommissionPrecision": 8,
        "orderTypes": [
            "LIMIT",
            "LIMIT_MAKER",
            "MARKET",
            "STOP_LOSS",
            "STOP_LOSS_LIMIT",
            "TAKE_PROFIT",
            "TAKE_PROFIT_LIMIT",
        ],
        "icebergAllowed": True,
        "ocoAllowed": True,
        "otoAllowed": True,
        "opoAllowed": True,
        "quoteOrderQtyMarketAllowed": True,
        "allowTrailingStop": True,
        "cancelReplaceAllowed": True,
        "amendAllowed": True,
        "pegInstructionsAllowed": True,
        "isSpotTradingAllowed": True,
        "isMarginTradingAllowed": True,
        "filters": _filters(series),
        "permissions": [],
        "permissionSets": [["SPOT", "MARGIN"]],
        "defaultSelfTradePreventionMode": "EXPIRE_MAKER",
        "allowedSelfTradePreventionModes": [
            "EXPIRE_TAKER",
            "EXPIRE_MAKER",
            "EXPIRE_BOTH",
            "DECREMENT",
            "TRANSFER",
        ],
    }


def _rate(kind: str, interval: str, count: int, limit: int) -> dict[str, object]:
    return {"rateLimitType": kind, "interval": interval, "intervalNum": count, "limit": limit}


def exchange_info(view: View, params: Params) -> str:
    chosen, _ = _symbols(view, params)
    permissions = params.get("permissions")
    params.get("showPermissionSets")
    status = params.get("symbolStatus")
    params.finish()
    if permissions is not None and "SPOT" not in permissions and "MARGIN" not in permissions:
        chosen = []
    if status not in (None, "TRADING"):
        chosen = []
    info = {
        "timezone": "UTC",
        "serverTime": view.wall_ms * view.unit,
        "rateLimits": [
            _rate("REQUEST_WEIGHT", "MINUTE", 1, view.weight_limit),
            _rate("ORDERS", "SECOND", 10, 100),
            _rate("ORDERS", "DAY", 1, 200_000),
            _rate("RAW_REQUESTS", "MINUTE", 5, 300_000),
        ],
        "exchangeFilters": [],
        "symbols": [_spot_symbol(series) for series in chosen],
    }
    return json.dumps(info, separators=(",", ":"))


def trade_fees(venue: Venue, symbol: str | None) -> str:
    names = [s for s in venue.market.series if symbol in (None, s)]
    fees = [{"symbol": s, "makerCommission": "0.001", "takerCommission": "0.001"} for s in names]
    return json.dumps(fees, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Route:
    """An endpoint: what it answers, and what it costs (a function of the parameters)."""

    answer: Callable[[View, Params], str]
    weight: Callable[[Mapping[str, str]], int]


def _fixed(weight: int) -> Callable[[Mapping[str, str]], int]:
    return lambda _: weight


SPOT_ROUTES: dict[str, Route] = {
    "ping": Route(ping, _fixed(1)),
    "time": Route(time, _fixed(1)),
    "exchangeInfo": Route(exchange_info, _fixed(20)),
    "klines": Route(klines, _fixed(2)),
    "uiKlines": Route(klines, _fixed(2)),
}


def _futures_kline_weight(query: Mapping[str, str]) -> int:
    given = query.get("limit", "")
    limit = int(given) if given.isdecimal() else 500
    return 1 if limit < 100 else 2 if limit < 500 else 5 if limit <= 1000 else 10


FUTURES_ROUTES: dict[str, Route] = {
    "ping": Route(ping, _fixed(1)),
    "time": Route(time, _fixed(1)),
    "klines": Route(klines, _futures_kline_weight),
}
