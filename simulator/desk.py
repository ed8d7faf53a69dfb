"""The order side at work: the engine, its journal, its place in the market, and who listens.

Every change is one transaction: decided by the engine, written to the journal, told to the user
streams, and only then answered.
"""

import json
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from shared.errors import Usage
from simulator import reports
from simulator.auth import load_public_key
from simulator.exchange.amounts import UNIT
from simulator.exchange.effects import KeySet, Opened, SymbolSet
from simulator.exchange.engine import Changes, Engine, PublicTrade, Quotes
from simulator.exchange.orders import Account, Key, Order, Rates
from simulator.exchange.state import ListReport, Report, State, Told
from simulator.exchange.symbols import Symbol, count_limits
from simulator.journal import Journal
from simulator.lag import BalanceHistory
from simulator.limits import OrderCounts

Render = Callable[[int], dict[str, Any]]


class Event:
    """One user stream event, written once per time unit. names: its kind, and an executionReport's
    execution type."""

    __slots__ = ("_render", "_texts", "names", "symbol")

    def __init__(self, render: Render, *names: str, symbol: str = "") -> None:
        self.names = names
        self.symbol = symbol
        self._render = render
        self._texts: dict[int, str] = {}

    def text(self, unit: int) -> str:
        written = self._texts.get(unit)
        if written is None:
            written = json.dumps(self._render(unit), separators=(",", ":"))
            self._texts[unit] = written
        return written


class Listener(Protocol):
    """A user data subscription."""

    def tell(self, events: list[Event]) -> None: ...


@dataclass(slots=True)
class Terms:
    """What may be changed while it runs. cancel_renames: after a cancel, queries show the cancel's
    client id in place of the order's (Binance's documents say so), not the order's own."""

    latency_ms: float = 0.0
    cancel_renames: bool = True
    orders_10s: int = 100
    orders_day: int = 200_000


class QuoteBoard(Protocol):
    """The market as the engine sees it."""

    def at(self, symbol: str, market_ms: int) -> Quotes:
        """Raises: Refused where there is none now."""
        ...

    def trades(self, symbol: str, after_ms: int, until_ms: int) -> Iterator[PublicTrade]:
        """Public trades with after_ms < time <= until_ms, oldest first."""
        ...


class Desk:
    """Accounts and orders on a market."""

    def __init__(
        self,
        board: QuoteBoard,
        symbols: Iterable[Symbol],
        *,
        now: Callable[[], tuple[int, int]],
        account_ms: Callable[[], int],
        journal: Journal | None = None,
        slippage_bps: float = 0.0,
        latency_ms: float = 0.0,
        exchange_filters: Iterable[dict[str, Any]] = (),
    ) -> None:
        self.exchange_filters = list(exchange_filters)
        self.board = board
        self.state = State({symbol.name: symbol for symbol in symbols})
        self.engine = Engine(
            self.state, round(slippage_bps * UNIT / 10_000), count_limits(self.exchange_filters)
        )
        self.terms = Terms(latency_ms=latency_ms)
        self.listeners: dict[int, list[Listener]] = {}
        self.counts: dict[int, OrderCounts] = {}
        self.now = now
        self.account_ms = account_ms
        self._journal = journal
        self.last_played_ms = 0
        self._histories: dict[int, BalanceHistory] = {}
        if journal is not None:
            for effects in journal.read():
                for effect in effects:
                    self.state.apply(effect)
            self.engine.take()
            for account in self.state.accounts.values():
                self.history(account)

    # accounts

    def start(self, keys: dict[str, Key], balances: dict[str, int], played_ms: int) -> None:
        """Open the first account, or give the one of the journal these keys too."""
        self.last_played_ms = played_ms
        first = self.state.accounts.get(1)
        if first is None:
            self.open_account(keys, balances)
            return
        for name, key in keys.items():
            if first.keys.get(name) is None:
                self.set_key(first, name, key)

    def open_account(
        self, keys: dict[str, Key], balances: dict[str, int], rates: Rates | None = None
    ) -> Account:
        """A new account with its first balances (units).

        Raises: Usage when a key is taken or a public key cannot be read.
        """
        for name, key in keys.items():
            if name in self.state.keys:
                raise Usage(f"key: {name} belongs to another account")
            self._check_key(key)
        uid = len(self.state.accounts) + 1
        self.engine.do(Opened(uid, *(rates or Rates(100_000, 100_000, 0, 0))))
        for name, key in keys.items():
            self._set_key(uid, name, key)
        account = self.state.accounts[uid]
        self.history(account)
        now_ms = self.account_ms()
        for asset, amount in balances.items():
            self.engine.move_funds(account, asset, amount, now_ms)
        self.commit(now_ms)
        return account

    def set_key(self, account: Account, name: str, key: Key) -> None:
        """Add a key, or change what it may do.

        Raises: Usage.
        """
        owner = self.state.keys.get(name)
        if owner is not None and owner is not account:
            raise Usage(f"key: {name} belongs to another account")
        self._check_key(key)
        self._set_key(account.uid, name, key)
        self.commit(self.account_ms())

    def _check_key(self, key: Key) -> None:
        if key.public_key:
            try:
                load_public_key(key.public_key)
            except ValueError as error:
                raise Usage(f"public_key: {error}") from error

    def _set_key(self, uid: int, name: str, key: Key) -> None:
        self.engine.do(
            KeySet(
                uid,
                name,
                key.secret,
                key.public_key,
                key.can_trade,
                key.can_withdraw,
                key.ip_restricted,
                key.is_active,
            )
        )

    def set_symbol(self, info: dict[str, Any]) -> None:
        """Another status or other filters of a symbol.

        Raises: Usage when the filters cannot be read.
        """
        try:
            Symbol(info)
        except (KeyError, ValueError, TypeError) as error:
            raise Usage(f"symbol: filters cannot be read: {error!r}") from error
        self.engine.do(SymbolSet(info["symbol"], json.dumps(info)))
        self.commit(self.account_ms())

    def history(self, account: Account) -> BalanceHistory:
        """What the account's balances were, from now on."""
        history = self._histories.get(account.uid)
        if history is None:
            history = self._histories[account.uid] = BalanceHistory(account)
        return history

    def order_counts(self, account: Account) -> OrderCounts:
        counts = self.counts.get(account.uid)
        if counts is None:
            counts = self.counts[account.uid] = OrderCounts(self.terms)
        return counts

    # the market

    def quotes(self, symbol: str) -> Quotes:
        """The market of this moment."""
        return self.board.at(symbol, self.now()[0])

    def move(self, until_ms: int) -> None:
        """Market time has come to until_ms: what rests meets the trades since the last call."""
        since, self.last_played_ms = self.last_played_ms, until_ms
        for symbol in self.engine.waiting():
            now_ms = self.account_ms()
            self.engine.play(
                symbol,
                self.board.trades(symbol, since, until_ms),
                partial(self.board.at, symbol),
                now_ms,
            )
            self.commit(now_ms)

    # transactions

    def commit(self, now_ms: int) -> None:
        """Write down and tell what the engine did since the last commit."""
        changes = self.engine.take()
        if not changes.effects:
            return
        if self._journal is not None:
            self._journal.append(changes.effects)
        for uid, assets in changes.touched.items():
            self.history(self.state.accounts[uid]).note(assets, now_ms)
        self._count_fills(changes, now_ms)
        if self.listeners:
            self._tell(changes, now_ms)

    def _count_fills(self, changes: Changes, now_ms: int) -> None:
        """An order's first fill gives its account order count back: 1 as taker, 5 as maker."""
        for told in changes.told:
            if isinstance(told, Report) and told.kind == "TRADE":
                first = told.order.fills[0]
                if told.executed == first.quantity:
                    account = self.state.accounts[told.order.ticket.account]
                    self.order_counts(account).give_back(5 if first.is_maker else 1, now_ms)

    def _tell(self, changes: Changes, now_ms: int) -> None:
        per_account: dict[int, list[Event]] = {uid: [] for uid in self.listeners}
        for told in changes.told:
            if isinstance(told, Report):
                uid = told.order.ticket.account
            elif isinstance(told, ListReport):
                uid = told.order_list.account
            else:
                uid = told.uid
            if uid in per_account:
                per_account[uid].append(self._event(told, now_ms))
        for uid, events in per_account.items():
            assets = changes.touched.get(uid)
            if assets:
                whole = reports.position(self.state.accounts[uid], assets, now_ms)
                events.append(Event(partial(reports.in_unit, whole), whole["e"]))
            if events:
                for listener in list(self.listeners[uid]):
                    listener.tell(events)

    def _event(self, told: Told, now_ms: int) -> Event:
        if isinstance(told, Report):
            return Event(
                partial(reports.execution, told, now_ms),
                "executionReport",
                told.kind,
                symbol=told.order.ticket.symbol,
            )
        if isinstance(told, ListReport):
            return Event(
                partial(reports.list_status, self.state, told, now_ms),
                "listStatus",
                symbol=told.order_list.symbol,
            )
        return Event(partial(reports.moved, told, now_ms), "balanceUpdate")

    def listen(self, account: Account, listener: Listener) -> None:
        self.listeners.setdefault(account.uid, []).append(listener)

    def leave(self, account: Account, listener: Listener) -> None:
        own = self.listeners.get(account.uid, [])
        if listener in own:
            own.remove(listener)
        if not own:
            self.listeners.pop(account.uid, None)

    def find(self, account: Account, symbol: str, client_id: str) -> Order | None:
        """The newest order with this client id, or whose cancel had it."""
        number = account.known_ids.get((symbol, client_id))
        return None if number is None else self.state.orders[number]

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()


def random_id() -> str:
    """A client id as Binance makes one: 22 letters and digits."""
    return secrets.token_urlsafe(24).replace("-", "a").replace("_", "b")[:22]
