"""The engine's view of the market: the simulator's book, trades and prices, in exact units."""

from collections.abc import Iterator

from simulator.book import DEPTH, best_bid, first_levels, ladder, lots_at
from simulator.exchange.amounts import DIGITS, UNIT
from simulator.exchange.engine import PublicTrade
from simulator.exchange.orders import Side
from simulator.market import Market, Series
from simulator.statistics import average_price

_FEW = 8  # levels that are made one by one
_AVERAGE_MS = 1000  # market time for which an average price is kept


class SeriesQuotes:
    """One symbol at one instant of market time."""

    def __init__(self, board: "Board", series: Series, market_ms: int) -> None:
        self.market_ms = market_ms
        self._board = board
        self._series = series
        self._tick: int = 10 ** (DIGITS - series.price_digits)
        self._lot: int = 10 ** (DIGITS - series.lot_digits)
        price, bought = series.last_price(market_ms)
        self._last = round(price * 10**series.price_digits), bought
        self.last = self._last[0] * self._tick
        self._bid = best_bid(*self._last)

    @property
    def average(self) -> int:
        return self._board.average(self._series, self.market_ms)

    @property
    def next_trade_id(self) -> int:
        return self._series.trades_until(self.market_ms) + 1

    def best(self, taker: Side) -> int:
        return (self._bid + 1 if taker is Side.BUY else self._bid) * self._tick

    def levels(self, taker: Side) -> Iterator[tuple[int, int]]:
        is_bid = taker is Side.SELL
        seen = 0
        for tick, lots in first_levels(
            self._series, self.market_ms, self._last, _FEW, is_bid=is_bid
        ):
            seen += 1
            yield tick * self._tick, lots * self._lot
        whole = ladder(self._series, self.market_ms, self._last, DEPTH, is_bid=is_bid)
        for tick, lots in whole[seen:]:
            yield tick * self._tick, lots * self._lot

    def amount(self, side: Side, price: int) -> int:
        if price % self._tick:
            return 0
        shown = lots_at(
            self._series,
            self.market_ms,
            self._last,
            price // self._tick,
            is_bid=side is Side.BUY,
        )
        return shown * self._lot


class Board:
    """The quotes of every symbol; the newest of each is kept."""

    def __init__(self, market: Market) -> None:
        self._market = market
        self._newest: dict[str, SeriesQuotes] = {}
        self._averages: dict[str, tuple[int, int]] = {}

    def at(self, symbol: str, market_ms: int) -> SeriesQuotes:
        newest = self._newest.get(symbol)
        if newest is None or newest.market_ms != market_ms:
            newest = SeriesQuotes(self, self._market.series[symbol], market_ms)
            self._newest[symbol] = newest
        return newest

    def average(self, series: Series, market_ms: int) -> int:
        """The five-minute average at the last whole second."""
        second = market_ms - market_ms % _AVERAGE_MS
        kept = self._averages.get(series.symbol)
        if kept is None or kept[0] != second:
            price, _ = average_price(series, second)
            kept = self._averages[series.symbol] = second, round(price * UNIT)
        return kept[1]

    def trades(self, symbol: str, after_ms: int, until_ms: int) -> Iterator[PublicTrade]:
        """Public trades with after_ms < time <= until_ms, oldest first."""
        series = self._market.series[symbol]
        lot = 10 ** (DIGITS - series.lot_digits)
        for trade in series.agg_trades(after_ms, until_ms):
            yield PublicTrade(
                trade.time_ms,
                round(trade.price * UNIT),
                trade.lots * lot,
                trade.first_id,
                trade.buyer_is_maker,
            )
