"""The nouns of the order side: orders, order lists, fills, accounts.

All amounts are units (`amounts`). Times are wall milliseconds of the account clock (`..._ms`)
except `market_ms`, which is market time.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple


class Side(StrEnum):
    BUY = "BUY"
    SELL = "SELL"


class Type(StrEnum):
    MARKET = "MARKET"
    LIMIT = "LIMIT"
    LIMIT_MAKER = "LIMIT_MAKER"
    STOP_LOSS = "STOP_LOSS"
    STOP_LOSS_LIMIT = "STOP_LOSS_LIMIT"
    TAKE_PROFIT = "TAKE_PROFIT"
    TAKE_PROFIT_LIMIT = "TAKE_PROFIT_LIMIT"


class Status(StrEnum):
    NEW = "NEW"
    PARTIALLY_FILLED = "PARTIALLY_FILLED"
    FILLED = "FILLED"
    CANCELED = "CANCELED"
    EXPIRED = "EXPIRED"
    EXPIRED_IN_MATCH = "EXPIRED_IN_MATCH"
    REJECTED = "REJECTED"  # in reports only


class Stp(StrEnum):
    """Self-trade prevention: what happens when an order would meet one of its own account."""

    NONE = "NONE"
    EXPIRE_TAKER = "EXPIRE_TAKER"
    EXPIRE_MAKER = "EXPIRE_MAKER"
    EXPIRE_BOTH = "EXPIRE_BOTH"
    DECREMENT = "DECREMENT"
    TRANSFER = "TRANSFER"


OPEN = frozenset((Status.NEW, Status.PARTIALLY_FILLED))
STOPS = frozenset((Type.STOP_LOSS, Type.STOP_LOSS_LIMIT, Type.TAKE_PROFIT, Type.TAKE_PROFIT_LIMIT))
PRICED = frozenset((Type.LIMIT, Type.LIMIT_MAKER, Type.STOP_LOSS_LIMIT, Type.TAKE_PROFIT_LIMIT))
NO_LIST = -1


class Ticket(NamedTuple):
    """An order as it was accepted: what never changes.

    quantity: base; of a MARKET order by quote_quantity the one that the engine derived. lock: taken
    from the free balance (quote of a BUY, base of a SELL). stop_price, trailing_bips, iceberg: 0 =
    none. tif: GTC, IOC or FOK.
    """

    symbol: str
    order_id: int
    list_id: int
    account: int
    client_id: str
    side: Side
    type: Type
    tif: str
    quantity: int
    quote_quantity: int
    price: int
    stop_price: int
    trailing_bips: int
    iceberg: int
    stp: Stp
    strategy_id: int | None
    strategy_type: int | None
    lock: int
    time_ms: int


@dataclass(slots=True, eq=False)
class Order:
    """A ticket and where it stands.

    executed, quote, prevented: sums over fills and prevented matches. locked: what it still holds
    of the balance. working_ms: when it went to the book or was executed, -1 = not yet (a stop).
    queue: lots ahead of it at its price when it went to the book. market_ms: only later public
    trades fill it. cancel_id: client id of the cancel that ended it.
    """

    ticket: Ticket
    status: Status = Status.NEW
    executed: int = 0
    quote: int = 0
    prevented: int = 0
    prevented_id: int | None = None
    locked: int = 0
    update_ms: int = 0
    working_ms: int = -1
    is_on_book: bool = False
    queue: int = 0
    market_ms: int = 0
    cancel_id: str = ""
    reason: str = ""
    ended_ms: int | None = None
    trailing_ms: int = -1
    extreme: int = 0
    fills: "list[Fill]" = field(default_factory=list)

    @property
    def left(self) -> int:
        """What can still be executed."""
        return self.ticket.quantity - self.executed - self.prevented

    @property
    def is_open(self) -> bool:
        return self.status in OPEN

    @property
    def is_armed(self) -> bool:
        """A stop that has not been triggered."""
        return self.working_ms < 0 and self.status is Status.NEW


class Fill(NamedTuple):
    """One trade of one order. quote: price * quantity. counter: order id of the other side, 0 = the
    market."""

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


@dataclass(slots=True, eq=False)
class OrderList:
    """An OCO: two orders of which one ends the other."""

    list_id: int
    account: int
    symbol: str
    client_id: str
    order_ids: tuple[int, ...]
    time_ms: int
    ended_ms: int | None = None
    cancel_id: str = ""


@dataclass(slots=True)
class Key:
    """What an API key may do. secret: of HMAC; public_key: PEM of Ed25519 or RSA."""

    secret: str = ""
    public_key: str = ""
    can_trade: bool = True
    can_withdraw: bool = False
    ip_restricted: bool = False
    is_active: bool = True


class Rates(NamedTuple):
    """Shares of the received amount, in units: 100000 = 0.1 %."""

    maker: int = 100_000
    taker: int = 100_000
    buyer: int = 0
    seller: int = 0


@dataclass(slots=True, eq=False)
class Account:
    """Balances by asset as [free, locked]. open_ids, known_ids: (symbol, client id) -> order id of
    the open orders, and of the newest order that had this id or whose cancel had it."""

    uid: int
    rates: Rates
    keys: dict[str, Key] = field(default_factory=dict)
    balances: dict[str, list[int]] = field(default_factory=dict)
    orders: dict[str, list[Order]] = field(default_factory=dict)
    open: dict[int, Order] = field(default_factory=dict)
    open_ids: dict[tuple[str, str], int] = field(default_factory=dict)
    known_ids: dict[tuple[str, str], int] = field(default_factory=dict)
    lists: list[OrderList] = field(default_factory=list)
    open_lists: dict[int, OrderList] = field(default_factory=dict)
    trades: dict[str, list[Fill]] = field(default_factory=dict)
    update_ms: int = 0

    def free(self, asset: str) -> int:
        held = self.balances.get(asset)
        return held[0] if held else 0
