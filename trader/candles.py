"""The candles of one symbol as the trader needs them: what the bus has, and the market's clock."""

import math
from collections import deque
from collections.abc import Iterator

from shared import rules
from shared.bus import Bus, Entry, Source, now_us
from shared.events import Kline, Signal
from shared.rules import NAN, Bar
from shared.streams import KLINE
from shared.times import floor_ms

_PAGE = 2_000
_KEPT = 4_096


class Candles:
    """Reads the kline stream as far as it goes. volatility_rows: 0 = nobody asks for it."""

    def __init__(
        self, bus: Bus, symbol: str, interval: str, *, speed: float, volatility_rows: int
    ) -> None:
        self._bus = bus
        self._source = Source(KLINE, symbol, interval)
        self._speed = speed
        self._rows = volatility_rows
        self._kept: deque[Kline] = deque(maxlen=max(_KEPT, volatility_rows + 1))
        self._after: str | None = None
        self._then_ms = 0  # the market's clock at `_at_us`, our own
        self._at_us = 0

    async def begin(self, since_ms: int | None) -> None:
        """Reads what stands there: from `since_ms` on, at least as much as a volatility needs."""
        newest = await self._bus.tail(self._source, max(1, self._rows))
        first_ms = newest[0].time_ms if newest else 0
        if since_ms is not None:
            first_ms = min(first_ms, since_ms)
        self._after = f"{max(0, first_ms - 1)}-0" if newest else None
        await self.refresh()

    async def refresh(self) -> None:
        """Takes in what is new."""
        while True:
            page = await self._bus.span(self._source, after=self._after, count=_PAGE)
            for entry in page:
                self._take(entry)
            if len(page) < _PAGE:
                return

    def _take(self, entry: Entry[Kline]) -> None:
        self._after = entry.id
        if entry.event is None:
            return
        self._kept.append(entry.event)
        meta = entry.meta
        self._then_ms = max(entry.event.close_time_ms + 1, meta.market_ms or 0)
        self._at_us = meta.published_us

    @property
    def market_ms(self) -> int | None:
        """The market's clock now; None where no candle tells it. As `shared.market`."""
        if not self._then_ms:
            return None
        elapsed_ms = max(0, now_us() - self._at_us) / 1000 if self._at_us else 0.0
        return self._then_ms + int(elapsed_ms * self._speed)

    def bars(self, after_ms: int, upto_ms: int | None = None) -> Iterator[Bar]:
        """What was read behind the candle `after_ms`, oldest first, without scores."""
        first = len(self._kept)
        while first and self._kept[first - 1].open_time_ms > after_ms:
            first -= 1
        for place in range(first, len(self._kept)):
            kline = self._kept[place]
            if upto_ms is not None and kline.open_time_ms > upto_ms:
                return
            yield Bar(kline.open_time_ms, kline.open, kline.high, kline.low, kline.close, NAN, NAN)

    def bar(self, signal: Signal) -> Bar | None:
        """The signal's candle with its score, None where the bus does not have it."""
        score = NAN if signal.score is None or signal.invalid else signal.score
        for place in range(len(self._kept) - 1, -1, -1):
            kline = self._kept[place]
            if kline.open_time_ms == signal.open_time_ms:
                return Bar(
                    kline.open_time_ms, kline.open, kline.high, kline.low, kline.close, score,
                    self._volatility(place),
                )  # fmt: skip
            if kline.open_time_ms < signal.open_time_ms:
                break
        return None

    def _volatility(self, place: int) -> float:
        if not self._rows or place + 1 < self._rows:
            return NAN
        closes = [self._kept[n].close for n in range(place + 1 - self._rows, place + 1)]
        return rules.volatility(closes)

    def day_open(self, market_ms: int) -> float | None:
        """The first price of the market's day, where it is among what is kept."""
        day_ms = floor_ms(market_ms, 86_400_000)
        for kline in self._kept:
            if kline.open_time_ms >= day_ms and not math.isnan(kline.open):
                return kline.open if kline.open_time_ms < day_ms + 3_600_000 else None
        return None
