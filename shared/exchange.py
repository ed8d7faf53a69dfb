"""An account on an exchange: what may be asked of it and what it answers.

Nouns only: the trader decides with them, `shared.account` speaks Binance's dialect,
`shared.filters` knows what an order must look like. Prices, quantities, fees and balances are
`Decimal`; times are UTC epoch milliseconds of the account clock.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from shared.errors import Rejected

if TYPE_CHECKING:
    from shared.filters import SymbolRules


# Behind an order's name, the name of its cancel, by which exchanges call it from then on.
CANCEL_SUFFIX = "-c"


class Denied(Rejected):
    """The exchange refused, definitely. code, text: its own (-2010, "Account has ...")."""

    def __init__(self, what: str, code: int, text: str) -> None:
        super().__init__(f"{what}: {code} {text}")
        self.code = code
        self.text = text


class OutsideWindow(Denied):
    """-1021, the timestamp is too old or ahead: measure the clock; an order is not repeated."""

    CODE = -1021


def is_market_closed(text: str) -> bool:
    """Whether a refusal's text says that the symbol does not trade now (-1013, -2010)."""
    return "market is closed" in text.lower()


class KeyDenied(Denied):
    """The key, its permissions, this address or the signature: nothing will work; tell a person."""


class Side(StrEnum):
    """Direction of an order."""

    BUY = "BUY"
    SELL = "SELL"


class OrderType(StrEnum):
    """Types of single orders, as Binance names them."""

    MARKET = "MARKET"
    LIMIT = "LIMIT"
    LIMIT_MAKER = "LIMIT_MAKER"
    STOP_LOSS = "STOP_LOSS"
    STOP_LOSS_LIMIT = "STOP_LOSS_LIMIT"
    TAKE_PROFIT = "TAKE_PROFIT"
    TAKE_PROFIT_LIMIT = "TAKE_PROFIT_LIMIT"


class Status(StrEnum):
    """Where an order stands at the exchange. One that has ended may have fills all the same."""

    PENDING_NEW = "PENDING_NEW"
    NEW = "NEW"
    PARTIALLY_FILLED = "PARTIALLY_FILLED"
    FILLED = "FILLED"
    CANCELED = "CANCELED"
    REJECTED = "REJECTED"
    EXPIRED = "EXPIRED"
    EXPIRED_IN_MATCH = "EXPIRED_IN_MATCH"


ENDED = frozenset(
    (Status.FILLED, Status.CANCELED, Status.REJECTED, Status.EXPIRED, Status.EXPIRED_IN_MATCH)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewOrder:
    """An order as it is sent. Exactly one of quantity (base) and quote_quantity is given.

    client_id: `^[a-zA-Z0-9-_]{1,36}$`, used once for ever. price: of a limit. time_in_force: GTC,
    IOC or FOK for the limit types, "" where the type has none.
    """

    symbol: str
    client_id: str
    side: Side
    type: OrderType
    quantity: Decimal | None = None
    quote_quantity: Decimal | None = None
    price: Decimal | None = None
    stop_price: Decimal | None = None
    time_in_force: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewOco:
    """Two orders of one side and quantity of which one cancels the other: a resting target (a
    LIMIT_MAKER at target_price) and a stop (STOP_LOSS at stop_price, sold at market; with
    stop_limit_price a STOP_LOSS_LIMIT, GTC)."""

    symbol: str
    list_client_id: str
    side: Side
    quantity: Decimal
    target_client_id: str
    target_price: Decimal
    stop_client_id: str
    stop_price: Decimal
    stop_limit_price: Decimal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fill:
    """One trade of ours. quantity: base; quote_quantity = price * quantity; fee in fee_asset."""

    symbol: str
    trade_id: int
    order_id: int
    side: Side
    price: Decimal
    quantity: Decimal
    quote_quantity: Decimal
    fee: Decimal
    fee_asset: str
    time_ms: int
    is_maker: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderReport:
    """An order as the exchange tells it. list_id: of its order list, None = single order.

    client_id: the one it was placed with, also after a cancel. executed: base; executed_quote:
    quote. fills: those told with this report, which may not be all (`Account.fills` has all).
    """

    symbol: str
    order_id: int
    list_id: int | None
    client_id: str
    side: Side
    type: OrderType
    status: Status
    quantity: Decimal
    price: Decimal
    stop_price: Decimal
    executed: Decimal
    executed_quote: Decimal
    time_ms: int
    update_ms: int
    reason: str = ""
    fills: tuple[Fill, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """What the account holds of one asset."""

    asset: str
    free: Decimal
    locked: Decimal

    @property
    def total(self) -> Decimal:
        return self.free + self.locked


@dataclass(frozen=True, slots=True, kw_only=True)
class Permissions:
    """What the key may do. can_transfer: between wallets, or between a master account and its
    sub-accounts. None: the exchange does not tell."""

    can_trade: bool
    can_withdraw: bool
    can_transfer: bool = False
    ip_restricted: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Commission:
    """Shares of what is received, buyer's and seller's parts included."""

    maker: Decimal
    taker: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class BalancesChanged:
    """Absolute balances of the assets that may have changed."""

    balances: tuple[Balance, ...]
    time_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """A deposit, withdrawal or transfer; never a trade."""

    asset: str
    delta: Decimal
    time_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Locked:
    """Something outside trading locked (delta > 0) or released a part of an asset."""

    asset: str
    delta: Decimal
    time_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamGap:
    """The user stream is there (again): anything may have happened before; reconcile.

    since_ms: the last sign of life before it, 0 for the first connection.
    """

    since_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamLost:
    """The user stream is away: poll until the next StreamGap."""

    reason: str


UserEvent = OrderReport | BalancesChanged | Moved | Locked | StreamGap | StreamLost


class Account(Protocol):
    """One account. Every call asks once and is never repeated in here.

    Raises, each call:
        Unavailable: not done for sure, for reasons that pass (no connection was made, 429/418 as
            `binance.Busy` with retry_after_s); a read: no answer.
        Denied: not done for sure, and asking again would not help.
        Unknown: an order or cancel may or may not have been done: ask before anything else.
    """

    async def place(self, order: NewOrder, *, timestamp_ms: int) -> OrderReport:
        """timestamp_ms: of the intent; the exchange refuses it 5 s later, so that a paused trader
        cannot send an order that is not wanted any more."""
        ...

    async def place_oco(self, oco: NewOco, *, timestamp_ms: int) -> tuple[OrderReport, ...]: ...

    async def cancel(self, symbol: str, client_id: str) -> OrderReport | None:
        """The cancelled order; None where the exchange knows no such open order (it may have
        filled: query it). Cancelling a leg cancels its list."""
        ...

    async def order(self, symbol: str, client_id: str) -> OrderReport | None:
        """None: the exchange says that it does not exist (which is no proof for some seconds)."""
        ...

    async def open_orders(self, symbol: str) -> list[OrderReport]: ...

    async def orders_since(self, symbol: str, start_ms: int) -> list[OrderReport]:
        """All orders from `start_ms` to now, oldest first (pages over the 24 h windows)."""
        ...

    async def fills(
        self, symbol: str, *, order_id: int | None = None, from_trade_id: int | None = None
    ) -> list[Fill]:
        """All fills of the order, or all from the trade id on, oldest first; with neither: all
        that the account ever had."""
        ...

    async def balances(self) -> Mapping[str, Balance]: ...

    async def permissions(self) -> Permissions: ...

    async def commission(self, symbol: str) -> Commission: ...

    async def rules(self, symbol: str) -> "SymbolRules":
        """What its orders must look like, as of now. Denied: there is no such symbol."""
        ...

    async def reference_price(self, symbol: str) -> Decimal:
        """What the exchange measures notionals and price bands by, now."""
        ...

    async def candle_ms(self, symbol: str, interval: str) -> int | None:
        """Open time of the candle that its market is in now, by the market's clock; None where it
        has none yet."""
        ...

    async def clock_skew_ms(self) -> float:
        """Account clock minus ours, now."""
        ...

    def user_events(self) -> AsyncIterator[Sequence[UserEvent]]:
        """For ever; reconnects by itself and says StreamGap first after every connection.

        Events may come twice, late and out of order, as the exchange sends them.
        """
        ...
