"""What travels on the bus: one frozen dataclass per kind of event.

Market data and features are floats (NaN = the source has no such value); anything we own or send
is a decimal string. `None` means "not known". Times are UTC epoch milliseconds of the exchange's
clock. Our own clock's values live apart, in `Meta`.
"""

import math
from dataclasses import dataclass, field
from enum import StrEnum

from shared.klines import KLINE_COLUMNS


@dataclass(frozen=True, slots=True, kw_only=True)
class Meta:
    """Values of our own clock and of the moment; never part of an equality.

    received_us: when the cause of this event reached us. published_us: when it was sent on.
    market_ms: the market's clock when it was published (the exchange's time; in a replay the
    data's), or None where the publisher does not know it.
    """

    received_us: int
    published_us: int
    market_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Kline:
    """A closed candle, or (`gap`) the marker of one that the exchange never produced."""

    symbol: str
    interval: str
    open_time_ms: int
    close_time_ms: int
    open: float
    high: float
    low: float
    close: float
    volume: float
    quote_volume: float = math.nan
    trades: float = math.nan
    taker_base: float = math.nan
    taker_quote: float = math.nan
    gap: bool = False

    def row(self) -> tuple[float, ...]:
        """The nine values in KLINE_COLUMNS order."""
        return (
            self.open,
            self.high,
            self.low,
            self.close,
            self.volume,
            self.quote_volume,
            self.trades,
            self.taker_base,
            self.taker_quote,
        )

    @classmethod
    def gap_marker(
        cls, symbol: str, interval: str, open_time_ms: int, close_time_ms: int
    ) -> "Kline":
        """A row of NaN under the missing candle's time."""
        nothing = dict.fromkeys(KLINE_COLUMNS, math.nan)
        return cls(
            symbol=symbol,
            interval=interval,
            open_time_ms=open_time_ms,
            close_time_ms=close_time_ms,
            gap=True,
            **nothing,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """An order-book snapshot of the close of the candle `open_time_ms`, folded as the seed did.

    values: (11,) little-endian float64 in DEPTH_COLUMNS order: gap, bids_1 .. bids_20, asks_1 ..
    """

    symbol: str
    interval: str
    open_time_ms: int
    values: bytes
    last_update_id: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Funding:
    """A funding rate of a perpetual future; `open_time_ms` is the funding time, to the minute."""

    symbol: str
    open_time_ms: int
    rate: float
    mark_price: float = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One feature vector.

    values: little-endian float64 in the order of `schema:<schema>`. close and gap repeat the
    candle's, so that a score needs no second read; covered: the longest window lies wholly inside
    the candles on the bus.
    """

    open_time_ms: int
    schema: str
    values: bytes
    close: float = math.nan
    gap: bool = False
    covered: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Every model's output for one candle; no outputs where none were computed."""

    open_time_ms: int
    release: str
    schema: str
    outputs: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """The decision on one candle. score is None, and `invalid` says why, where there is none."""

    open_time_ms: int
    symbol: str
    interval: str
    close: float
    score: float | None
    side: str
    invalid: str
    release: str
    schema: str
    outputs: dict[str, float] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """`BTCUSDT-1m-1700000000000`: at most one entry order belongs to it."""
        return f"{self.symbol}-{self.interval}-{self.open_time_ms}"


class OrderState(StrEnum):
    """How far a signal has come in the trader's journal."""

    OBSERVED = "OBSERVED"  # would have been traded; the mode sends no orders
    DROPPED = "DROPPED"  # refused by a rule; `reason` says which


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One line of the trader's journal. quantity and price are decimal strings, "" = none."""

    signal_id: str
    symbol: str
    interval: str
    open_time_ms: int
    time_ms: int
    state: str
    side: str
    quantity: str
    price: str
    reason: str
    score: float | None
    release: str
    mode: str


class Delivery(StrEnum):
    """What became of a message to people."""

    SENDING = "sending"  # claimed: about to be sent, or the sender died before it could tell
    SENT = "sent"
    FAILED = "failed"  # refused for good; `reason` says why
    UNKNOWN = "unknown"  # no answer came: it may have arrived


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """A message about a signal, in two entries: `<open_time_ms>-0` claims it before it is sent
    (so nothing is sent twice), `<open_time_ms>-1` tells what became of it.

    channel: "telegram" or "console". message_id: Telegram's, where it answered.
    """

    signal_id: str
    symbol: str
    interval: str
    open_time_ms: int
    state: str
    channel: str
    chat: str
    text: str
    reason: str = ""
    message_id: int | None = None


class Level(StrEnum):
    """How loud a notice is."""

    INFO = "info"
    WARNING = "warning"
    ALERT = "alert"


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """A message of the system about itself. code is stable (`gap`, `revision`, `dead_letter`)."""

    service: str
    level: str
    code: str
    text: str
    time_ms: int
    symbol: str = ""
    open_time_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """What could not be processed, with the reason and the bytes as they were."""

    stream: str
    entry_id: str
    service: str
    reason: str
    time_ms: int
    fields: dict[str, bytes] = field(default_factory=dict)
