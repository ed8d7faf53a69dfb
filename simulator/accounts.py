"""`/control` about accounts: the truth of one, new ones, funds, keys and symbols."""

from dataclasses import replace
from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from shared.errors import Usage
from simulator import reports
from simulator.desk import Desk
from simulator.exchange.amounts import text, units
from simulator.exchange.orders import Account, Key, Rates
from simulator.wsapi import WsApi


class Body(BaseModel):
    """What is posted; an unknown field is an error."""

    model_config = ConfigDict(extra="forbid")


def _units(value: str) -> int:
    sign = -1 if value.startswith("-") else 1
    try:
        return sign * units(value.removeprefix("-"))
    except ValueError as error:
        raise ValueError(str(error)) from None


Amount = Annotated[int, BeforeValidator(lambda value: _units(str(value)))]


class NewAccount(Body):
    """Another account, with its first key. Rates are shares of what is received."""

    key: str
    secret: str = ""
    public_key: str = ""
    balances: dict[str, Amount] = Field(default_factory=dict)
    maker: Amount = 100_000
    taker: Amount = 100_000
    buyer: Amount = 0
    seller: Amount = 0


class Funds(Body):
    """A deposit, or with a negative amount a withdrawal. Of the key's account; the first one's
    where no key is named."""

    asset: str
    amount: Amount
    key: str | None = None


class KeyTerms(Body):
    """What a key may do; what is absent stays. secret or public_key: a new key of the account that
    `account` (a key) belongs to."""

    key: str
    account: str | None = None
    secret: str | None = None
    public_key: str | None = None
    can_trade: bool | None = None
    can_withdraw: bool | None = None
    ip_restricted: bool | None = None
    is_active: bool | None = None


class SymbolTerms(Body):
    """A symbol's status and filters. filters: exchangeInfo objects, each replaces the one of its
    filterType; without: filterTypes that go."""

    symbol: str
    status: Literal["TRADING", "END_OF_DAY", "HALT", "BREAK", "CANCEL_ONLY"] | None = None
    filters: list[dict[str, Any]] = Field(default_factory=list)
    without: list[str] = Field(default_factory=list)
    order_types: list[str] | None = None
    stp_default: str | None = None
    stp_allowed: list[str] | None = None


class AccountControl:
    """The handlers."""

    def __init__(self, desk: Desk, ws_api: WsApi) -> None:
        self._desk = desk
        self._ws_api = ws_api

    def _account(self, key: str | None) -> Account:
        """Raises: Usage."""
        state = self._desk.state
        account = state.accounts[1] if key is None else state.keys.get(key)
        if account is None:
            raise Usage(f"key: there is no {key}")
        return account

    async def show(self, request: web.Request) -> dict[str, object]:
        """Everything about an account, as the matching engine knows it: no lag, no limits."""
        desk = self._desk
        account = self._account(request.query.get("key"))
        orders = [order for some in account.orders.values() for order in some]
        orders.sort(key=lambda order: order.ticket.order_id)
        return {
            "uid": account.uid,
            "keys": {
                name: {
                    "can_trade": key.can_trade,
                    "can_withdraw": key.can_withdraw,
                    "ip_restricted": key.ip_restricted,
                    "is_active": key.is_active,
                }
                for name, key in account.keys.items()
            },
            "balances": reports.balances(account.balances, omit_zero=False),
            "orders": [
                {**reports.queried(order, 1), "clientOrderId": order.ticket.client_id}
                for order in orders
            ],
            "trades": [
                reports.trade(desk.state.orders[fill.order_id], fill, 1)
                for fills in account.trades.values()
                for fill in fills
            ],
            "lists": [reports.order_list(desk.state, one, 1) for one in account.lists],
            "fees": {asset: text(paid) for asset, paid in desk.state.fees.items()},
        }

    async def open(self, request: web.Request) -> dict[str, object]:
        body = NewAccount.model_validate_json(await request.read())
        key = Key(body.secret, body.public_key)
        rates = Rates(body.maker, body.taker, body.buyer, body.seller)
        account = self._desk.open_account({body.key: key}, body.balances, rates)
        return {"uid": account.uid}

    async def funds(self, request: web.Request) -> dict[str, object]:
        body = Funds.model_validate_json(await request.read())
        desk = self._desk
        account = self._account(body.key)
        now_ms = desk.account_ms()
        desk.engine.move_funds(account, body.asset, body.amount, now_ms)
        desk.commit(now_ms)
        return {"free": text(account.free(body.asset))}

    async def key(self, request: web.Request) -> dict[str, object]:
        body = KeyTerms.model_validate_json(await request.read())
        account = self._account(body.account if body.account is not None else body.key)
        held = account.keys.get(body.key, Key())
        given = body.model_dump(exclude_none=True, exclude={"key", "account"})
        changed = replace(held, **given)
        self._desk.set_key(account, body.key, changed)
        if not changed.is_active:
            self._ws_api.revoke(body.key)
        return {"uid": account.uid, **given}

    async def symbol(self, request: web.Request) -> dict[str, object]:
        body = SymbolTerms.model_validate_json(await request.read())
        desk = self._desk
        known = desk.state.symbols.get(body.symbol)
        if known is None:
            raise Usage(f"symbol: {body.symbol} is not in this market")
        replaced = {one.get("filterType") for one in body.filters} | set(body.without)
        kept = [one for one in known.info["filters"] if one["filterType"] not in replaced]
        info = {**known.info, "filters": [*kept, *body.filters]}
        for name, value in (
            ("status", body.status),
            ("orderTypes", body.order_types),
            ("defaultSelfTradePreventionMode", body.stp_default),
            ("allowedSelfTradePreventionModes", body.stp_allowed),
        ):
            if value is not None:
                info[name] = value
        desk.set_symbol(info)
        return info
