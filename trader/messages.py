"""What goes into the trader's core and what comes out of it; nouns only."""

from dataclasses import dataclass, field
from decimal import Decimal

from shared.events import Level, Order
from shared.exchange import NewOco, NewOrder, OutsideWindow, is_market_closed


@dataclass(frozen=True, slots=True)
class Now:
    """The three clocks, ms. account: the exchange's, of orders. market: the data's, of candles.
    ours: of journal lines, for people."""

    account_ms: int
    market_ms: int
    ours_ms: int


@dataclass(frozen=True, slots=True)
class Place:
    """The one request of an intent. Only after its lines are durable, and not again.

    reduces: it can only make a position smaller.
    """

    order: NewOrder | NewOco
    timestamp_ms: int
    client_ids: tuple[str, ...]
    reduces: bool


@dataclass(frozen=True, slots=True)
class Cancel:
    client_id: str


@dataclass(frozen=True, slots=True)
class Query:
    """what: comes back with the answer."""

    client_id: str
    what: str


@dataclass(frozen=True, slots=True)
class FetchFills:
    """All fills of an order, of which some were not told."""

    client_id: str
    order_id: int


@dataclass(frozen=True, slots=True)
class FetchBalances:
    """What the account holds is not what we thought."""


@dataclass(frozen=True, slots=True)
class FetchRules:
    """The exchange says that the symbol's market is closed."""


@dataclass(frozen=True, slots=True)
class MeasureClock:
    """The exchange says that our clock is not its own."""


Request = Place | Cancel | Query | FetchFills | FetchBalances | FetchRules | MeasureClock


@dataclass(frozen=True, slots=True)
class News:
    """Something for people."""

    level: Level
    code: str
    text: str
    symbol: str = ""


@dataclass(slots=True)
class Output:
    """What one or more events led to: first `lines` are written, durably where anything is placed,
    then `requests` (each with its symbol) are made in their order; what they answer comes back as
    an event."""

    lines: list[Order] = field(default_factory=list)
    requests: list[tuple[str, Request]] = field(default_factory=list)
    news: list[News] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class NotSent:
    """A Place was not done, for sure: it is not on its way. passes: trying again may help, once
    wait_ms have passed."""

    reason: str
    passes: bool = False
    wait_ms: int = 0


@dataclass(frozen=True, slots=True)
class Refused:
    """The exchange refused a Place or Cancel, for sure. code: its own, 0 = not known."""

    code: int
    text: str
    is_about_key: bool = False

    @property
    def is_late(self) -> bool:
        return self.code == OutsideWindow.CODE

    @property
    def is_closed(self) -> bool:
        return is_market_closed(self.text)


@dataclass(frozen=True, slots=True)
class Unsure:
    """A Place or Cancel may or may not have been done."""

    reason: str


@dataclass(frozen=True, slots=True)
class Balances:
    """Per asset (free, locked), as they were at at_ms, account clock, or later."""

    amounts: dict[str, tuple[Decimal, Decimal]]
    at_ms: int
