"""A live market as the engine sees it: the book, trades and average price of another exchange as
they were last heard, in units."""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from shared.events import Kline
from simulator.exchange.amounts import UNIT, units
from simulator.exchange.engine import PublicTrade
from simulator.exchange.orders import Side
from simulator.exchange.symbols import Refused

Level = tuple[int, int]  # price, quantity
_STEP_MS = 15_000  # between the trades that a candle stands for


@dataclass(slots=True)
class LiveSymbol:
    """One symbol, as the engine's `Quotes`.

    Times of trades are made strictly rising, a millisecond apart where the exchange gives several
    the same: what is compared with them then never takes two trades for one.

    stale_s: a market that says nothing for so long is closed. unplayed: trades that the engine has
    not seen yet.
    """

    name: str
    stale_s: float
    market_ms: int = 0
    last: int = 0
    last_id: int = 0
    average: int = 0
    heard_s: float = float("-inf")  # monotonic
    bids: list[Level] = field(default_factory=list)
    asks: list[Level] = field(default_factory=list)
    unplayed: deque[PublicTrade] = field(default_factory=deque)
    _book_id: int = 0

    @property
    def is_open(self) -> bool:
        is_known = self.last and self.average and self.bids and self.asks
        return bool(is_known) and time.monotonic() - self.heard_s < self.stale_s

    @property
    def next_trade_id(self) -> int:
        return self.last_id + 1

    def best(self, taker: Side) -> int:
        return self._met_by(taker)[0][0]

    def levels(self, taker: Side) -> Iterator[Level]:
        yield from self._met_by(taker)

    def amount(self, side: Side, price: int) -> int:
        resting = self.bids if side is Side.BUY else self.asks
        return next((quantity for at, quantity in resting if at == price), 0)

    def _met_by(self, taker: Side) -> list[Level]:
        return self.asks if taker is Side.BUY else self.bids

    # what is heard; each raises KeyError, TypeError or ValueError for what has another shape

    def start(self, book: Mapping[str, Any], average: str, newest: list[Mapping[str, Any]]) -> None:
        """The market at the begin of a connection; ids that began anew are taken as they are."""
        self._book_id = 0
        self.hear_book(book)
        self.hear_average(average)
        if newest and int(newest[-1]["l"]) < self.last_id:
            self.last_id = int(newest[-1]["f"]) - 1

    def hear_book(self, row: Mapping[str, Any]) -> None:
        """The best levels of both sides: `depth20`, or `GET depth`."""
        update_id, bids, asks = int(row["lastUpdateId"]), _levels(row["bids"]), _levels(row["asks"])
        if update_id > self._book_id and bids and asks:
            self._book_id, self.bids, self.asks = update_id, bids, asks

    def hear_best(self, row: Mapping[str, Any]) -> None:
        """`bookTicker`: a newer look at the best levels; the others stay where they fit to it."""
        ((bid, ask), update_id) = _levels([[row["b"], row["B"]], [row["a"], row["A"]]]), row["u"]
        if int(update_id) > self._book_id:
            self._book_id = int(update_id)
            self.bids = [bid, *(level for level in self.bids if level[0] < bid[0])]
            self.asks = [ask, *(level for level in self.asks if level[0] > ask[0])]

    def hear_average(self, price: str) -> None:
        self.average = units(price)

    def hear_trade(self, row: Mapping[str, Any]) -> PublicTrade | None:
        """`aggTrade`, or a row of `GET aggTrades`; None for one that was heard before."""
        first_id, last_id = int(row["f"]), int(row["l"])
        if last_id <= self.last_id:
            return None
        price, quantity = units(row["p"]), units(row["q"])
        self.last_id = last_id
        return self._traded(int(row["T"]), price, quantity, first_id, is_sale=bool(row["m"]))

    def hear_candle(self, candle: Kline, until_ms: int) -> list[PublicTrade]:
        """Four trades that stand for a candle whose own are not known: its open, the extreme nearer
        to it, the other one, its close; a quarter of the volume each, none later than until_ms."""
        prices = candle.open, candle.high, candle.low, candle.close
        opened, high, low, close = (round(price * UNIT) for price in prices)
        between = (high, low) if high - opened <= opened - low else (low, high)
        found, before = [], opened
        for number, price in enumerate((opened, *between, close)):
            at_ms = min(candle.open_time_ms + number * _STEP_MS, until_ms)
            quantity = round(candle.volume / 4 * UNIT)
            found.append(self._traded(at_ms, price, quantity, 0, is_sale=price < before))
            before = price
        return found

    def _traded(
        self, time_ms: int, price: int, quantity: int, first_id: int, *, is_sale: bool
    ) -> PublicTrade:
        self.market_ms = max(time_ms, self.market_ms + 1)
        self.last = price
        return PublicTrade(self.market_ms, price, quantity, first_id, is_sale)


class LiveBoard:
    """Every mirrored symbol."""

    def __init__(self, symbols: Iterable[str], stale_s: float) -> None:
        self.symbols = {name: LiveSymbol(name, stale_s) for name in symbols}

    @property
    def market_ms(self) -> int:
        return max((live.market_ms for live in self.symbols.values()), default=0)

    def at(self, symbol: str, market_ms: int) -> LiveSymbol:
        """As it is now. Raises: Refused: it has not been heard of lately, or is not mirrored."""
        live = self.symbols.get(symbol)
        if live is None or not live.is_open:
            raise Refused(-2010, "Market is closed.")
        return live

    def trades(self, symbol: str, after_ms: int, until_ms: int) -> Iterator[PublicTrade]:
        """Each once, whatever after_ms says."""
        live = self.symbols.get(symbol)
        while live is not None and live.unplayed and live.unplayed[0].time_ms <= until_ms:
            yield live.unplayed.popleft()


def _levels(rows: Any) -> list[Level]:
    return [(units(row[0]), units(row[1])) for row in rows]
