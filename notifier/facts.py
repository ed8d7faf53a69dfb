"""What the bot tells people, read off the bus: heartbeats, signals, candles, the trader's journal.

Reads only, without a group of its own: nothing here moves anybody's position.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from shared.bus import Bus, Entry, Source
from shared.config import Settings
from shared.control import reason_of
from shared.events import Kline, Notice, Order, Signal
from shared.heartbeats import heartbeats
from shared.ledger import Ledger, ledger_of
from shared.streams import FEATURE, KLINE, NOTICE, ORDER, PREDICTION, SIGNAL, WATCHED_KEY

_PAGE = 2_000
_NOTICES = 2_000
_SAMPLE = 200
_LINES = 50
STAGES = (FEATURE, PREDICTION, SIGNAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What the trader holds of one symbol. price: of the newest candle, None where there is none.
    lines: its journal, oldest first."""

    symbol: str
    base: str
    quote: str
    mode: str
    ledger: Ledger
    lines: tuple[Order, ...]
    price: float | None

    @property
    def unrealised(self) -> Decimal | None:
        """At the newest close; None where there is a position and no price."""
        if self.price is None:
            return None if self.ledger.position else Decimal(0)
        return self.ledger.unrealised(Decimal(repr(self.price)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantiles:
    """Of latencies, milliseconds."""

    p50: float
    p99: float
    count: int


class Facts:
    """Asks the bus, anew each time."""

    def __init__(self, bus: Bus, settings: Settings) -> None:
        self.bus = bus
        self.settings = settings

    async def heartbeats(self) -> dict[str, dict[str, Any]]:
        """By `service:instance`; only those that beat within their time to live."""
        return await heartbeats(self.bus)

    async def silent(self, beats: Mapping[str, Any]) -> list[str]:
        """Who is waited for and does not beat: `service`, or `service:instance`."""
        heard = {name.partition(":")[0] for name in beats}
        missing = [name for name in self.settings.notifier.watch if name not in heard]
        for name in sorted(json.loads(await self.bus.get(WATCHED_KEY) or b"{}")):
            service, _, instance = name.partition(":")
            if instance and name not in beats and service not in missing:
                missing.append(service if instance == service else name)
        return missing

    async def newest_signal(self, symbol: str) -> Signal | None:
        entries = await self.bus.tail(Source(SIGNAL, symbol, self.settings.interval), 1)
        return entries[0].event if entries else None

    async def candles(self, symbol: str, count: int) -> list[Kline]:
        """The newest candles, gap markers included, oldest first."""
        entries = await self.bus.tail(Source(KLINE, symbol, self.settings.interval), count)
        return [entry.event for entry in entries if entry.event is not None]

    async def signals(self, symbol: str, count: int) -> list[Signal]:
        entries = await self.bus.tail(Source(SIGNAL, symbol, self.settings.interval), count)
        return [entry.event for entry in entries if entry.event is not None]

    async def notices(self, since_ms: int) -> list[Notice]:
        """Those since a time (our own clock), of the newest _NOTICES."""
        entries = await self.bus.tail(Source(NOTICE), _NOTICES)
        found = [entry.event for entry in entries if entry.event is not None]
        return [notice for notice in found if notice.time_ms >= since_ms]

    async def has_obeyed(self, command: str) -> bool:
        """Whether the newest lines of the journal tell that the trader has taken in a command."""
        lines = await self.bus.tail(Source(ORDER, self.settings.symbols[0]), _LINES)
        return any(e.event is not None and e.event.reason == reason_of(command) for e in lines)

    async def account(self, symbol: str) -> Account:
        """The fold of the trader's journal, in the mode that it trades in."""
        settings = self.settings
        entries = await self.bus.everything(Source(ORDER, symbol))
        mode = settings.trader.mode
        lines = tuple(
            entry.event for entry in entries if entry.event is not None and entry.event.mode == mode
        )
        base = settings.base_of(symbol)
        candles = await self.candles(symbol, 10)
        prices = [candle.close for candle in candles if math.isfinite(candle.close)]
        return Account(
            symbol=symbol,
            base=base,
            quote=settings.quote_asset,
            mode=mode,
            ledger=ledger_of(lines, base, settings.quote_asset, mode),
            lines=lines,
            price=prices[-1] if prices else None,
        )

    async def latency(self, symbol: str) -> dict[str, Quantiles]:
        """Per stage: from when a closed candle reached us until the stage had published."""
        interval = self.settings.interval
        klines = await self.bus.tail(Source(KLINE, symbol, interval), _SAMPLE)
        received = {entry.time_ms: entry.meta.received_us for entry in klines}
        found = {}
        for stream in STAGES:
            entries: list[Entry[Any]] = await self.bus.tail(
                Source(stream, symbol, interval), _SAMPLE
            )
            took = sorted(
                (entry.meta.published_us - received[entry.time_ms]) / 1000
                for entry in entries
                if entry.event is not None and received.get(entry.time_ms)
            )
            if took:
                found[stream.name] = Quantiles(
                    p50=took[len(took) // 2],
                    p99=took[math.ceil(0.99 * len(took)) - 1],
                    count=len(took),
                )
        return found
