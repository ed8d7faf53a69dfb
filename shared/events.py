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
    """How far a signal, or an order of ours, has come in the trader's journal."""

    OBSERVED = "OBSERVED"  # would have been traded; the mode sends no orders
    DROPPED = "DROPPED"  # nothing was sent, nothing will be; `reason` says why
    INTENT = "INTENT"  # about to be sent, once, with the timestamp `sent_ms`
    UNKNOWN = "UNKNOWN"  # it may have been executed: only the exchange's word ends this
    ACKED = "ACKED"  # the exchange has it
    PARTIAL = "PARTIAL"  # a part is filled
    FILLED = "FILLED"
    CANCELED = "CANCELED"  # ended without all of it: cancelled, expired; a part may be filled
    REJECTED = "REJECTED"  # the exchange refused it
    NOT_PLACED = "NOT_PLACED"  # it never reached the exchange and cannot any more
    DUST = "DUST"  # `quantity` is too small to be sold; it is carried
    HALTED = "HALTED"  # no orders from here on, by an operator or a limit; about all symbols
    REDUCED = "REDUCED"  # from here on nothing but exits and protection; about all symbols
    FLATTENED = "FLATTENED"  # everything is sold at market, then nothing; about all symbols
    RESUMED = "RESUMED"  # an operator has ended the three above
    CARRIED = "CARRIED"  # `carried` is the sum of all lines before it, which may be gone


# Of an order: nothing can follow but fills that were not told yet.
FINAL = frozenset(
    (
        OrderState.FILLED,
        OrderState.CANCELED,
        OrderState.REJECTED,
        OrderState.NOT_PLACED,
        OrderState.DROPPED,
    )
)


class Leg(StrEnum):
    """What an order of ours is for."""

    ENTRY = "entry"
    EXIT = "exit"
    STOP = "stop"  # rests on the exchange
    TARGET = "target"  # rests on the exchange
    FLATTEN = "flatten"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One line of the trader's journal: a decision, or news of one of our orders.

    Amounts are decimal strings, "" = none. quantity (base) and price (quote): what is wanted, at
    market the close; once something is filled, how much and at what average. order_quantity,
    order_price, stop_price: of the order itself ("" price: at market).

    leg: see Leg, "" = no order. client_id: ours. list_id: of the pair that a stop and a target
    form. order_id: the exchange's, 0 = not known. sent_ms: timestamp of the one request, account
    clock. market_ms: the market's clock at this line. worth: of the account at the decision,
    quote units. profit: of the round trip that this line ends, after all fees in its two assets.
    fills: by trade id, those told by this line; `shared.ledger` reads them. is_adopted: the order
    was thought to be nowhere, or not known at all. journal, number: the line's identity: the
    journal file that it was first written to, and its place in there. carried: what all lines
    before this one come to (`shared.ledger`), "" in every line that is not CARRIED.
    """

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
    leg: str = ""
    attempt: int = 0
    client_id: str = ""
    list_id: str = ""
    order_id: int = 0
    type: str = ""
    order_quantity: str = ""
    order_price: str = ""
    stop_price: str = ""
    sent_ms: int = 0
    market_ms: int = 0
    worth: str = ""
    profit: str = ""
    fills: dict[str, bytes] = field(default_factory=dict)
    is_adopted: bool = False
    journal: str = ""
    number: int = 0
    carried: str = ""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A link of the track record: `hash` = sha256 of "`previous` `text`", as hex digits.

    text: the signal as canonical JSON and the market's clock when it was recorded
    (`shared.record`). previous: hash of the signal recorded before, 64 zeros at the first.
    """

    open_time_ms: int
    previous: str
    hash: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """What came of computing signals again, those from `first_ms` to `open_time_ms`.

    equal, unequal: signals whose features, outputs, score and side have (not) the very bits that
    stand on the bus; unchecked: those that could not be computed again, `reason` says why. first:
    the first difference in words. total_*: since the auditor began, these included.
    """

    open_time_ms: int
    first_ms: int
    equal: int
    unequal: int
    unchecked: int
    total_equal: int
    total_unequal: int
    total_unchecked: int
    first: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How the newest stretch of candles differs from what a release was trained on
    (`shared.reference` says what each number means).

    rows: feature vectors looked at, from first_ms to open_time_ms. psi: of each feature; usual:
    what 95 % of the stretches of training stay below, of the features for which that is known;
    score_psi, score_usual: of the score, None where nothing is known. novelty_*: median and 99 %
    quantile; beyond: share of the vectors with a novelty above 1 (in training 1 to 2 %).
    """

    open_time_ms: int
    first_ms: int
    release: str
    rows: int
    psi: dict[str, float] = field(default_factory=dict)
    usual: dict[str, float] = field(default_factory=dict)
    score_psi: float | None = None
    score_usual: float | None = None
    novelty_median: float = math.nan
    novelty_99: float = math.nan
    beyond: float = math.nan

    @property
    def unusual(self) -> list[str]:
        """Features that differ more than 95 % of the stretches of training, the most first."""
        out = [name for name, usual in self.usual.items() if self.psi[name] > usual]
        return sorted(out, key=lambda name: -self.psi[name] / max(self.usual[name], 1e-12))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a signal, `horizon` candles later. None: not known, for a candle was a gap.

    future_return: of the close over the horizon, as a share. highest, lowest: percent from the
    close to the highest high and the lowest low of these candles.
    """

    open_time_ms: int
    horizon: int
    release: str
    score: float | None
    side: str
    close: float
    future_return: float | None
    highest: float | None
    lowest: float | None


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
