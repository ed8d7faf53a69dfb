"""What can happen to the exchange's state: the entries of its journal.

Each is a flat tuple of integers, texts and None, so that a journal line is its JSON list. A ticket
is flattened into its entry. Never change a field's meaning: old journals are read back.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from simulator.exchange.orders import Side, Status, Stp, Ticket, Type


class Opened(NamedTuple):
    """An account exists; rates in units."""

    uid: int
    maker: int
    taker: int
    buyer: int
    seller: int


class KeySet(NamedTuple):
    """A key of an account, new or with other permissions."""

    uid: int
    key: str
    secret: str
    public_key: str
    can_trade: bool
    can_withdraw: bool
    ip_restricted: bool
    is_active: bool


class Moved(NamedTuple):
    """A deposit (delta > 0) or withdrawal: the only way that value comes or goes."""

    uid: int
    asset: str
    delta: int
    time_ms: int


class Accepted(NamedTuple):
    """An order is NEW and holds its lock."""

    ticket: Ticket


class Rejected(NamedTuple):
    """The matching engine did not take an order; it is told, and nowhere kept. reason: as
    executionReports give it."""

    reason: str
    ticket: Ticket


class Booked(NamedTuple):
    """It waits on the book, behind `queue` lots, for public trades after market_ms."""

    order_id: int
    queue: int
    market_ms: int
    time_ms: int


class Filled(NamedTuple):
    order_id: int
    trade_id: int
    price: int
    quantity: int
    quote: int
    fee: int
    fee_asset: str
    is_maker: bool
    counter: int
    time_ms: int


class Prevented(NamedTuple):
    """Self-trade prevention kept two orders of one account from trading `matched` at `price`.
    last: how much less of this order can be executed, counter_last: of the other."""

    order_id: int
    match_id: int
    is_taker: bool
    last: int
    matched: int
    price: int
    counter: int
    counter_last: int
    time_ms: int


class Triggered(NamedTuple):
    """A stop's price was reached. lock: what it holds from now on."""

    order_id: int
    lock: int
    market_ms: int
    time_ms: int


class TrailingStarted(NamedTuple):
    order_id: int
    time_ms: int


class Ended(NamedTuple):
    """No longer open; what it still held is free again."""

    order_id: int
    status: Status
    reason: str
    cancel_id: str
    time_ms: int


class ListOpened(NamedTuple):
    list_id: int
    uid: int
    symbol: str
    client_id: str
    first: int
    second: int
    time_ms: int


class ListEnded(NamedTuple):
    list_id: int
    cancel_id: str
    time_ms: int


class Played(NamedTuple):
    """Public trades of a symbol up to market_ms have been matched."""

    symbol: str
    market_ms: int


class SymbolSet(NamedTuple):
    """Another status or other filters; info: the exchangeInfo object as JSON."""

    symbol: str
    info: str


Effect = (
    Opened
    | KeySet
    | Moved
    | Accepted
    | Rejected
    | Booked
    | Filled
    | Prevented
    | Triggered
    | TrailingStarted
    | Ended
    | ListOpened
    | ListEnded
    | Played
    | SymbolSet
)
_KINDS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        Opened,
        KeySet,
        Moved,
        Booked,
        Filled,
        Prevented,
        Triggered,
        TrailingStarted,
        ListOpened,
        ListEnded,
        Played,
        SymbolSet,
    )
}


def encode(effect: Effect) -> list[Any]:
    """[kind, fields ...]"""
    if isinstance(effect, Accepted):
        return ["Accepted", *effect.ticket]
    if isinstance(effect, Rejected):
        return ["Rejected", effect.reason, *effect.ticket]
    return [type(effect).__name__, *effect]


def _ticket(fields: Sequence[Any]) -> Ticket:
    ticket = Ticket(*fields)
    return ticket._replace(side=Side(ticket.side), type=Type(ticket.type), stp=Stp(ticket.stp))


def decode(entry: Sequence[Any]) -> Effect:
    """Raises: ValueError when it is no effect."""
    kind, fields = entry[0], entry[1:]
    try:
        if kind == "Accepted":
            return Accepted(_ticket(fields))
        if kind == "Rejected":
            return Rejected(fields[0], _ticket(fields[1:]))
        if kind == "Ended":
            ended = Ended(*fields)
            return ended._replace(status=Status(ended.status))
        made: Effect = _KINDS[kind](*fields)
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{entry!r} is no journal entry") from error
    return made
