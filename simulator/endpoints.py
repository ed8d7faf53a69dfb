"""What the public REST endpoints answer: pure functions of the market, its time and the parameters.

Shapes, defaults, error codes and texts are Binance's (spot /api/v3, USD-M futures /fapi/v1).
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from shared.klines import KlineTable
from shared.times import INTERVALS_MS, floor_ms
from simulator.book import DEPTH, book_at
from simulator.futures import FUNDING_MS, Funding
from simulator.market import AggTrade, Market, Series
from simulator.statistics import DAY_MS, Stats, average_price, window
from simulator.wire import Candle, kline_row, levels, text

SPOT, FUTURES = "spot", "futures"


class ApiError(Exception):
    """An answer of the form {"code": .., "msg": ..}."""

    def __init__(
        self,
        status: int,
        code: int,
        message: str,
        *,
        retry_after_s: int | None = None,
        data: object = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s
        self.data = data

    def body(self) -> bytes:
        told: dict[str, object] = {"code": self.code, "msg": self.message}
        if self.data is not None:
            told["data"] = self.data
        return json.dumps(told, separators=(",", ":")).encode()


class Venue:
    """Spot or USD-M futures: its name, its market, and on futures its funding.

    The futures market is made when somebody first asks for it.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], Market],
        *,
        funding: Funding | None = None,
        grow: Callable[[list[KlineTable]], list[KlineTable]] | None = None,
    ) -> None:
        self.name = name
        self.funding = funding
        self._make = make
        self._grow = grow
        self._market: Market | None = None

    @property
    def market(self) -> Market:
        if self._market is None:
            self._market = self._make()
        return self._market

    @property
    def is_made(self) -> bool:
        return self._market is not None

    def extend(self, spot_tables: list[KlineTable]) -> None:
        """Append the continuation of the synthetic market."""
        if self._market is not None:
            tables = spot_tables if self._grow is None else self._grow(spot_tables)
            self._market.extend(tables)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a request sees: venue, market time, account (wall) time, time unit of the reply.

    adjust: candles as faults leave them (hidden or revised), identity without faults.
    symbol_info: the exchangeInfo object of a spot symbol, as it is now. order_limits: orders in ten
    seconds and in a day.
    """

    venue: Venue
    now_ms: int
    book_ms: int
    wall_ms: int
    unit: int
    weight_limit: int
    order_limits: tuple[int, int]
    adjust: Callable[[str, str, list[Candle]], list[Candle]]
    symbol_info: Callable[[str], dict[str, Any]]
    exchange_filters: list[dict[str, Any]]


_SYMBOL = re.compile(r"^[\w\-.]{1,20}$")
_DIGITS = re.compile(r"^[0-9]{1,20}$")


class Params:
    """The parameters of one request, read by name; one left unread is an error."""

    def __init__(self, given: Mapping[str, str]) -> None:
        self._given = given
        self._read: set[str] = set()

    def get(self, name: str) -> str | None:
        """Raises: ApiError -1105 when it was sent with nothing in it."""
        self._read.add(name)
        value = self._given.get(name)
        if value == "":
            raise ApiError(400, -1105, f"Parameter '{name}' was empty.")
        return value

    def has(self, *names: str) -> bool:
        """Whether one of them was sent, with something in it."""
        return any(self._given.get(name) for name in names)

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
                f"Illegal characters found in parameter '{name}'; legal range is "
                "'^[0-9]{1,20}$'.",
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

    def skip(self, *names: str) -> None:
        """These have been read elsewhere."""
        self._read.update(names)

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


def check_symbol(symbol: str) -> None:
    """Raises: ApiError -1100 when it is no name of a symbol."""
    if not _SYMBOL.match(symbol) or symbol != symbol.upper():
        raise ApiError(
            400,
            -1100,
            "Illegal characters found in parameter 'symbol'; legal range is '^[A-Z0-9-_.]{1,20}$'.",
        )


def series_of(view: View, symbol: str) -> Series:
    check_symbol(symbol)
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


def symbol_info(series: Series) -> dict[str, object]:
    """The exchangeInfo object of a spot symbol, as it is before anybody changes it."""
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
        "otoAllowed": False,
        "opoAllowed": False,
        "quoteOrderQtyMarketAllowed": True,
        "allowTrailingStop": True,
        "cancelReplaceAllowed": True,
        "amendAllowed": False,
        "pegInstructionsAllowed": False,
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
    infos = [view.symbol_info(series.symbol) for series in chosen]
    infos = [one for one in infos if status in (None, one["status"])]
    info = {
        "timezone": "UTC",
        "serverTime": view.wall_ms * view.unit,
        "rateLimits": [
            _rate("REQUEST_WEIGHT", "MINUTE", 1, view.weight_limit),
            _rate("ORDERS", "SECOND", 10, view.order_limits[0]),
            _rate("ORDERS", "DAY", 1, view.order_limits[1]),
            _rate("RAW_REQUESTS", "MINUTE", 5, 300_000),
        ],
        "exchangeFilters": view.exchange_filters,
        "symbols": infos,
    }
    return json.dumps(info, separators=(",", ":"))


def trade_fees(venue: Venue, symbol: str | None) -> str:
    names = [s for s in venue.market.series if symbol in (None, s)]
    fees = [{"symbol": s, "makerCommission": "0.001", "takerCommission": "0.001"} for s in names]
    return json.dumps(fees, separators=(",", ":"))


def depth(view: View, params: Params) -> str:
    series = series_of(view, params.need("symbol"))
    if view.venue.name == FUTURES:
        limit = params.limit(500, 1000)
        if limit not in (5, 10, 20, 50, 100, 500, 1000):
            raise ApiError(400, -4021, f"'{limit}' is not valid depth limit.")
    else:
        limit = params.limit(100, 5000)
    params.finish()
    book = book_at(series, view.book_ms, min(limit + 2, DEPTH))
    stamp = view.book_ms * view.unit
    times = f'"E":{stamp},"T":{stamp},' if view.venue.name == FUTURES else ""
    return (
        f'{{"lastUpdateId":{book.update_id},{times}"bids":{levels(book.bids[:limit])},'
        f'"asks":{levels(book.asks[:limit])}}}'
    )


def _bool(value: bool) -> str:
    return "true" if value else "false"


def _trade_rows(orders: list[AggTrade], view: View, limit: int, from_id: int | None) -> str:
    rows = [
        (number, quantity, order)
        for order in orders
        for number, quantity in order.trades()
        if from_id is None or number >= from_id
    ]
    rows = rows[-limit:] if from_id is None else rows[:limit]
    best = "" if view.venue.name == FUTURES else ',"isBestMatch":true'
    return (
        "["
        + ",".join(
            f'{{"id":{number},"price":"{text(order.price)}","qty":"{text(quantity)}",'
            f'"quoteQty":"{text(round(order.price * quantity, 8))}",'
            f'"time":{order.time_ms * view.unit},'
            f'"isBuyerMaker":{_bool(order.buyer_is_maker)}{best}}}'
            for number, quantity, order in rows
        )
        + "]"
    )


def trades(view: View, params: Params) -> str:
    series = series_of(view, params.need("symbol"))
    limit = params.limit(500, 1000)
    params.finish()
    return _trade_rows(series.newest_trades(view.now_ms, limit), view, limit, None)


def historical_trades(view: View, params: Params) -> str:
    series = series_of(view, params.need("symbol"))
    limit = params.limit(500, 1000)
    first = params.integer("fromId")
    params.finish()
    if first is None:
        return _trade_rows(series.newest_trades(view.now_ms, limit), view, limit, None)
    return _trade_rows(series.trades_from(first, view.now_ms, limit), view, limit, first)


def agg_trades(view: View, params: Params) -> str:
    series = series_of(view, params.need("symbol"))
    limit = params.limit(500, 1000)
    start, end, first = params.time("startTime"), params.time("endTime"), params.integer("fromId")
    params.finish()
    if first is not None and (start is not None or end is not None):
        raise ApiError(400, -1128, "Combination of optional parameters invalid.")
    until = view.now_ms if end is None else min(end, view.now_ms)
    if first is not None:
        found = series.trades_from(first, view.now_ms, limit)
    elif start is not None:
        begin = series.first_trade_at(start)
        found = [t for t in series.trades_from(begin, until, limit) if t.time_ms >= start]
    else:
        found = series.newest_trades(until, limit * 1000, orders=limit)
    rows = found[:limit] if first is not None or start is not None else found[-limit:]
    best = "" if view.venue.name == FUTURES else ',"M":true'
    return (
        "["
        + ",".join(
            f'{{"a":{t.agg_id},"p":"{text(t.price)}","q":"{text(t.quantity)}","f":{t.first_id},'
            f'"l":{t.last_id},"T":{t.time_ms * view.unit},"m":{_bool(t.buyer_is_maker)}{best}}}'
            for t in rows
        )
        + "]"
    )


def avg_price(view: View, params: Params) -> str:
    series = series_of(view, params.need("symbol"))
    params.finish()
    price, last_ms = average_price(series, view.now_ms)
    return f'{{"mins":5,"price":"{text(price)}","closeTime":{last_ms * view.unit}}}'


def _several(
    view: View, params: Params, write: Callable[[Series], str], *, always: bool = False
) -> str:
    """An object for one `symbol`, an array otherwise. always: naming symbols is mandatory."""
    if always and params.get("symbol") is None and params.get("symbols") is None:
        params.need("symbol")
    chosen, single = _symbols(view, params)
    status = params.get("symbolStatus")
    params.finish()
    if status is not None:
        chosen = [s for s in chosen if view.symbol_info(s.symbol)["status"] == status]
        if single and not chosen:
            raise ApiError(
                400, -1220, "The symbol's status does not match the requested symbolStatus."
            )
    rows = [write(series) for series in chosen]
    return rows[0] if single else "[" + ",".join(rows) + "]"


def ticker_price(view: View, params: Params) -> str:
    def write(series: Series) -> str:
        price = text(series.last_price(view.now_ms)[0])
        more = f',"time":{view.now_ms * view.unit}' if view.venue.name == FUTURES else ""
        return f'{{"symbol":"{series.symbol}","price":"{price}"{more}}}'

    return _several(view, params, write)


def ticker_book(view: View, params: Params) -> str:
    def write(series: Series) -> str:
        book = book_at(series, view.book_ms, 5)
        (bid, bid_size), (ask, ask_size) = book.bids[0], book.asks[0]
        more = f',"time":{view.book_ms * view.unit}' if view.venue.name == FUTURES else ""
        return (
            f'{{"symbol":"{series.symbol}","bidPrice":"{text(bid)}","bidQty":"{text(bid_size)}",'
            f'"askPrice":"{text(ask)}","askQty":"{text(ask_size)}"{more}}}'
        )

    return _several(view, params, write)


def _stats_text(series: Series, stats: Stats, view: View, *, mini: bool, full: bool) -> str:
    """The statistics object; full = with the fields that only ticker/24hr has."""
    unit = view.unit
    head = f'{{"symbol":"{series.symbol}",'
    change = (
        ""
        if mini
        else (
            f'"priceChange":"{text(stats.change)}","priceChangePercent":"{stats.change_percent:.3f}",'
            f'"weightedAvgPrice":"{text(stats.average)}",'
        )
    )
    quotes = ""
    if full and not mini:
        if view.venue.name == SPOT:
            book = book_at(series, view.book_ms, 5)
            (bid, bid_size), (ask, ask_size) = book.bids[0], book.asks[0]
            quotes = (
                f'"prevClosePrice":"{text(stats.before)}","bidPrice":"{text(bid)}",'
                f'"bidQty":"{text(bid_size)}","askPrice":"{text(ask)}","askQty":"{text(ask_size)}",'
            )
        quotes += f'"lastQty":"{text(stats.last_quantity)}",'
    return (
        f'{head}{change}{quotes}"openPrice":"{text(stats.open)}","highPrice":"{text(stats.high)}",'
        f'"lowPrice":"{text(stats.low)}","lastPrice":"{text(stats.last)}",'
        f'"volume":"{text(stats.volume)}","quoteVolume":"{text(stats.quote_volume)}",'
        f'"openTime":{stats.open_ms * unit},"closeTime":{stats.close_ms * unit},'
        f'"firstId":{stats.first_id},"lastId":{stats.last_id},"count":{stats.count}}}'
    )


def _is_mini(params: Params) -> bool:
    kind = params.get("type")
    if kind not in (None, "FULL", "MINI"):
        raise ApiError(400, -1130, "Data sent for parameter 'type' is not valid.")
    return kind == "MINI"


def ticker_24hr(view: View, params: Params) -> str:
    mini = _is_mini(params)
    return _several(
        view,
        params,
        lambda s: _stats_text(s, window(s, view.now_ms, DAY_MS), view, mini=mini, full=True),
    )


_WINDOW = re.compile(r"^([1-9]\d?)([mhd])$")


def ticker_window(view: View, params: Params) -> str:
    mini = _is_mini(params)
    match = _WINDOW.match(params.get("windowSize") or "1d")
    most = {"m": 59, "h": 23, "d": 7}
    if not match or int(match[1]) > most[match[2]]:
        raise ApiError(400, -1130, "Data sent for parameter 'windowSize' is not valid.")
    length = int(match[1]) * {"m": 60_000, "h": 3_600_000, "d": DAY_MS}[match[2]]
    return _several(
        view,
        params,
        lambda s: _stats_text(s, window(s, view.now_ms, length), view, mini=mini, full=False),
        always=True,
    )


def ticker_day(view: View, params: Params) -> str:
    mini = _is_mini(params)
    zone = _zone_ms(params)
    start = floor_ms(view.now_ms + zone, DAY_MS) - zone
    return _several(
        view,
        params,
        lambda s: _stats_text(
            s, window(s, view.now_ms, DAY_MS, start), view, mini=mini, full=False
        ),
        always=True,
    )


def continuous_klines(view: View, params: Params) -> str:
    series = series_of(view, params.need("pair"))
    if params.need("contractType") != "PERPETUAL":
        raise ApiError(400, -1121, "Invalid symbol.")
    return _klines(view, params, series, interval_of(series, params.need("interval")))


def _funding(view: View) -> Funding:
    if view.venue.funding is None:
        raise ApiError(404, -5000, "Path is invalid")
    return view.venue.funding


def premium_index(view: View, params: Params) -> str:
    funding = _funding(view)

    def write(series: Series) -> str:
        mark = funding.mark(series, view.now_ms)
        return (
            f'{{"symbol":"{series.symbol}","markPrice":"{text(mark.price)}",'
            f'"indexPrice":"{text(mark.index)}","estimatedSettlePrice":"{text(mark.price)}",'
            f'"lastFundingRate":"{text(mark.rate)}","interestRate":"0.00010000",'
            f'"nextFundingTime":{mark.next_ms},"time":{view.now_ms}}}'
        )

    return _several(view, params, write)


def funding_rate(view: View, params: Params) -> str:
    funding = _funding(view)
    symbol = params.get("symbol")
    chosen = [series_of(view, symbol)] if symbol else list(view.venue.market.series.values())
    start, end = params.time("startTime"), params.time("endTime")
    limit = params.limit(100, 1000)
    params.finish()
    until = view.now_ms if end is None else min(end, view.now_ms)
    rows = []
    for series in chosen:
        first = int(series.base.open_time_ms[0])
        begin = max(first, start if start is not None else until - limit * FUNDING_MS)
        rows += [(paid, rate, series) for paid, rate in funding.history(series, begin, until)]
    rows.sort(key=lambda row: row[0])
    rows = rows[:limit] if start is not None else rows[-limit:]
    return (
        "["
        + ",".join(
            f'{{"symbol":"{s.symbol}","fundingRate":"{text(rate)}","fundingTime":{paid},'
            f'"markPrice":"{text(s.last_price(paid)[0])}"}}'
            for paid, rate, s in rows
        )
        + "]"
    )


def funding_info(_view: View, params: Params) -> str:
    params.finish()
    return "[]"  # only symbols with adjusted caps or hours are listed


def futures_exchange_info(view: View, params: Params) -> str:
    params.finish()
    symbols = []
    for series in view.venue.market.series.values():
        base, quote = assets(series.symbol)
        shared = ("PRICE_FILTER", "LOT_SIZE", "MARKET_LOT_SIZE", "MAX_NUM_ORDERS")
        filters = [f for f in _filters(series) if f["filterType"] in shared]
        filters.append({"filterType": "MIN_NOTIONAL", "notional": "100"})
        symbols.append(
            {
                "symbol": series.symbol,
                "pair": series.symbol,
                "contractType": "PERPETUAL",
                "deliveryDate": 4133404800000,
                "onboardDate": int(series.base.open_time_ms[0]),
                "status": "TRADING",
                "baseAsset": base,
                "quoteAsset": quote,
                "marginAsset": quote,
                "pricePrecision": series.price_digits,
                "quantityPrecision": min(3, series.lot_digits),
                "baseAssetPrecision": 8,
                "quotePrecision": 8,
                "underlyingType": "COIN",
                "filters": filters,
                "orderTypes": ["LIMIT", "MARKET", "STOP", "STOP_MARKET", "TAKE_PROFIT"],
                "timeInForce": ["GTC", "IOC", "FOK", "GTX"],
            }
        )
    info = {
        "timezone": "UTC",
        "serverTime": view.wall_ms,
        "rateLimits": [
            _rate("REQUEST_WEIGHT", "MINUTE", 1, view.weight_limit),
            _rate("ORDERS", "MINUTE", 1, 1200),
            _rate("ORDERS", "SECOND", 10, 300),
        ],
        "exchangeFilters": [],
        "assets": [],
        "symbols": symbols,
    }
    return json.dumps(info, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Route:
    """An endpoint: what it answers, and what it costs (a function of the parameters)."""

    answer: Callable[[View, Params], str]
    weight: Callable[[Mapping[str, str]], int]


def _fixed(weight: int) -> Callable[[Mapping[str, str]], int]:
    return lambda _: weight


def _given(query: Mapping[str, str]) -> int | None:
    """How many symbols a query names; None = all."""
    if query.get("symbol"):
        return 1
    many = query.get("symbols")
    return many.count(",") + 1 if many else None


def _depth_weight(query: Mapping[str, str]) -> int:
    given = query.get("limit", "")
    limit = int(given) if given.isdecimal() else 100
    return 5 if limit <= 100 else 25 if limit <= 500 else 50 if limit <= 1000 else 250


def _day_weight(query: Mapping[str, str]) -> int:
    count = _given(query)
    return 80 if count is None or count > 100 else 2 if count <= 20 else 40


def _one_or_many(query: Mapping[str, str]) -> int:
    return 2 if query.get("symbol") else 4


def _per_symbol(query: Mapping[str, str]) -> int:
    return min(200, 4 * (_given(query) or 1))


def _futures_kline_weight(query: Mapping[str, str]) -> int:
    given = query.get("limit", "")
    limit = int(given) if given.isdecimal() else 500
    return 1 if limit < 100 else 2 if limit < 500 else 5 if limit <= 1000 else 10


def _futures_depth_weight(query: Mapping[str, str]) -> int:
    given = query.get("limit", "")
    limit = int(given) if given.isdecimal() else 500
    return 2 if limit <= 50 else 5 if limit <= 100 else 10 if limit <= 500 else 20


def _single_cheap(query: Mapping[str, str]) -> int:
    return 1 if query.get("symbol") else 10


SPOT_ROUTES: dict[str, Route] = {
    "ping": Route(ping, _fixed(1)),
    "time": Route(time, _fixed(1)),
    "exchangeInfo": Route(exchange_info, _fixed(20)),
    "klines": Route(klines, _fixed(2)),
    "uiKlines": Route(klines, _fixed(2)),
    "depth": Route(depth, _depth_weight),
    "trades": Route(trades, _fixed(25)),
    "historicalTrades": Route(historical_trades, _fixed(25)),
    "aggTrades": Route(agg_trades, _fixed(4)),
    "avgPrice": Route(avg_price, _fixed(2)),
    "ticker/price": Route(ticker_price, _one_or_many),
    "ticker/bookTicker": Route(ticker_book, _one_or_many),
    "ticker/24hr": Route(ticker_24hr, _day_weight),
    "ticker": Route(ticker_window, _per_symbol),
    "ticker/tradingDay": Route(ticker_day, _per_symbol),
}

FUTURES_ROUTES: dict[str, Route] = {
    "ping": Route(ping, _fixed(1)),
    "time": Route(time, _fixed(1)),
    "exchangeInfo": Route(futures_exchange_info, _fixed(1)),
    "klines": Route(klines, _futures_kline_weight),
    "continuousKlines": Route(continuous_klines, _futures_kline_weight),
    "depth": Route(depth, _futures_depth_weight),
    "trades": Route(trades, _fixed(5)),
    "historicalTrades": Route(historical_trades, _fixed(200)),
    "aggTrades": Route(agg_trades, _fixed(20)),
    "premiumIndex": Route(premium_index, _single_cheap),
    "fundingRate": Route(funding_rate, _fixed(1)),
    "fundingInfo": Route(funding_info, _fixed(1)),
    "ticker/price": Route(ticker_price, _one_or_many),
    "ticker/bookTicker": Route(ticker_book, _one_or_many),
    "ticker/24hr": Route(ticker_24hr, _single_cheap),
}
