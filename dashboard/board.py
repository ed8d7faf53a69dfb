"""All that the page shows, as one object that is folded from the bus. Pure.

`apply` takes entries in; `changes` gives what viewers must be told since it was last called;
`whole` what a new viewer must be told.
"""

import dataclasses
import math
from collections import deque
from typing import Any

from dashboard.account import Account, Json
from dashboard.track import FIELDS, Track
from dashboard.whatif import WhatIf
from shared.bus import Entry, id_order
from shared.config import Settings
from shared.events import Drift, Notice, Order, OrderState, Parity

ORDERS = 500  # lines of the journal that are shown, of all symbols; and as many of what was dropped
NOTICES = 300
_ALL_CANDLES = 60_000  # of all symbols together
_FEWEST = 300
_TRADES = 200


def shown_candles(settings: Settings) -> int:
    """How many candles of each symbol are kept: what the config says, less where many share."""
    share = _ALL_CANDLES // len(settings.symbols)
    return max(min(settings.dashboard.candles, share), _FEWEST)


class Board:
    """candles: how many are kept of each symbol."""

    def __init__(self, settings: Settings) -> None:
        self.candles = shown_candles(settings)
        self.tracks = {
            symbol: Track(
                symbol,
                settings.step_ms,
                self.candles,
                WhatIf(settings),
                Account(
                    symbol, settings.base_of(symbol), settings.quote_asset, settings.trader.mode
                ),
            )
            for symbol in settings.symbols
        }
        self.orders: deque[Json] = deque(maxlen=ORDERS)
        self.dropped: deque[Json] = deque(maxlen=ORDERS)
        self.notices: deque[Json] = deque(maxlen=NOTICES)
        self.parity: dict[str, Json] = {}
        self.drift: dict[str, Drift] = {}
        self.status: Json = {}
        self.releases: Json = {}
        self._told: dict[str, Json] = {}
        self._new_orders: list[Json] = []
        self._new_notices: list[Json] = []

    # -- in -----------------------------------------------------------------------------------

    def apply(self, entry: Entry[Any]) -> None:
        event = entry.event
        if isinstance(event, Order):
            if event.state != OrderState.CARRIED:
                line = {"id": entry.id, "us": entry.meta.published_us, **_plain(event)}
                is_dropped = event.state == OrderState.DROPPED
                (self.dropped if is_dropped else self.orders).append(line)
                self._new_orders.append(line)
            self.tracks[entry.source.symbol].apply(entry)
        elif isinstance(event, Notice):
            notice = {"id": entry.id, **_plain(event)}
            self.notices.append(notice)
            self._new_notices.append(notice)
        elif isinstance(event, Parity):
            symbol = entry.source.symbol
            self.parity[symbol] = {"kind": "parity", "symbol": symbol, **_plain(event)}
        elif isinstance(event, Drift):
            self.drift[entry.source.symbol] = event
        elif (track := self.tracks.get(entry.source.symbol)) is not None:
            track.apply(entry)

    # -- out ----------------------------------------------------------------------------------

    def changes(self) -> list[tuple[str, Json]]:
        """(symbol that it is about or "" for all, message)."""
        found: list[tuple[str, Json]] = []
        for symbol, track in self.tracks.items():
            found.extend((symbol, one) for one in self._if_new(self.parity.get(symbol, {})))
            rows = track.changes()
            if rows:
                message = {"kind": "rows", "symbol": symbol, "models": track.models, "rows": rows}
                found.append((symbol, message))
                found.extend((symbol, one) for one in self._if_new(self._whatif(track)))
            if rows or self._new_orders:
                found.extend((symbol, one) for one in self._if_new(track.account.shown()))
        if found:
            found.extend(("", one) for one in self._if_new(self._tickers()))
        if self._new_orders:
            found.append(("", {"kind": "orders", "orders": self._new_orders}))
        if self._new_notices:
            found.append(("", {"kind": "notices", "notices": self._new_notices}))
        self._new_orders, self._new_notices = [], []
        for message in (self.status, self.releases):
            found.extend(("", one) for one in self._if_new(message))
        return found

    def _if_new(self, message: Json) -> list[Json]:
        if not message:
            return []
        key = f"{message['kind']} {message.get('symbol', '')}"
        if self._told.get(key) == message:
            return []
        self._told[key] = message
        return [message]

    def whole(self, symbol: str) -> list[Json]:
        """Everything about the symbol and about the system, to begin with."""
        track = self.tracks[symbol]
        messages = [
            {"kind": "snapshot", "fields": FIELDS, **track.snapshot()},
            self._whatif(track),
            track.account.shown(),
            self.parity.get(symbol, {}),
            self._tickers(),
            {"kind": "orders", "all": True, "orders": self._journal()},
            {"kind": "notices", "all": True, "notices": list(self.notices)},
            self.status,
            self.releases,
        ]
        return [message for message in messages if message]

    def _journal(self) -> list[Json]:
        return sorted((*self.orders, *self.dropped), key=lambda line: id_order(line["id"]))

    def _tickers(self) -> Json:
        """Newest price and score of every symbol, where there are several."""
        if len(self.tracks) == 1:
            return {}
        tickers = {}
        for symbol, track in self.tracks.items():
            row = track.newest
            if row is not None:
                signal = row.signal
                score = None if signal is None else signal.score
                close = None if row.kline.gap else row.kline.close
                tickers[symbol] = [close, score, "" if signal is None else signal.side]
        return {"kind": "tickers", "tickers": tickers}

    def _whatif(self, track: Track) -> Json:
        """What the rules would hold now, and what they did."""
        whatif = track.whatif
        rests = whatif.protection
        known = {
            "entry": whatif.entry_price,
            "stop": rests.stop,
            "target": rests.target,
        }
        return {
            "kind": "whatif",
            "symbol": track.symbol,
            "problem": whatif.problem,
            "capital": whatif.capital,
            "fee": whatif.costs.fee,
            "slippage": whatif.costs.slippage,
            "since": whatif.since_ms,
            "quantity": whatif.quantity,
            **{k: v if v == v else None for k, v in known.items()},  # noqa: PLR0124  # NaN
            "trades": [dataclasses.asdict(t) for t in list(whatif.trades)[-_TRADES:]],
        }


def _plain(event: Any) -> Json:
    """An event's fields that JSON can hold as they are."""
    found: Json = {}
    for one in dataclasses.fields(event):
        value = getattr(event, one.name)
        if value is None or isinstance(value, str | int):
            found[one.name] = value
        elif isinstance(value, float):
            found[one.name] = value if math.isfinite(value) else None
    return found
