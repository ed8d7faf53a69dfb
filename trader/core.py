"""All symbols' trading: what they share, and what must not be exceeded by all of them together.

Pure: no clock, no network, no file. Times and answers come in, journal lines, requests and news go
out (`take`). The limits are computed from the journal's fold, so that a restart forgets none.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from shared import rules
from shared.control import Command, Word, reason_of
from shared.events import Leg, Level, Order, OrderState, Signal
from shared.exchange import Fill, Side
from shared.ledger import DAY_MS, ZERO, Ledger, Switch, Tracked
from trader.decisions import Decisions
from trader.decisions import Rules as Gates
from trader.desk import RESERVE, TRADING, Desk
from trader.messages import Balances, News, Now, Output, Request
from trader.orders import text

NOT_RECONCILED = "not_reconciled"
# An entry may cost so much more than `max_notional` before it halts.
SLIPPAGE = Decimal("0.02")
_MINUTE_MS = 60_000
_STATES = {
    Word.HALT: OrderState.HALTED,
    Word.REDUCE_ONLY: OrderState.REDUCED,
    Word.FLATTEN: OrderState.FLATTENED,
    Word.RESUME: OrderState.RESUMED,
}
_STRICTNESS = (
    OrderState.RESUMED,
    OrderState.REDUCED,
    OrderState.FLATTENED,
    OrderState.HALTED,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What is not exceeded. None or 0: no such limit.

    max_notional: quote units of one entry. daily_loss, drawdown: shares of the account's worth.
    open_orders: of ours, at the exchange. orders_per_minute: of market time. releases: those that
    may trade, none named = all.
    """

    max_age_ms: float
    max_notional: Decimal | None = None
    open_orders: int | None = None
    open_positions: int | None = None
    orders_per_minute: int | None = None
    daily_loss: Decimal | None = None
    drawdown: Decimal | None = None
    losses: int | None = None
    refusals: int | None = 3
    skew_ms: float = 500.0
    releases: frozenset[str] = frozenset()


class Core:
    """The trader without its shell. desks: by symbol. out: what the last events led to."""

    def __init__(self, mode: str, interval: str, rule: rules.Rules, limits: Limits) -> None:
        self.mode = mode
        self.interval = interval
        self.rule = rule
        self.limits = limits
        self.desks: dict[str, Desk] = {}
        self.out = Output()
        self.skew_ms: float | None = None
        self.clock_is_off = False  # the exchange says so: nothing is sent before it is measured
        self.balances_ms = 0
        self.file: Command | None = None
        self._ordered = ""  # reason of the newest line about the key
        self._refused = ""
        self._amounts: dict[str, tuple[Decimal, Decimal]] = {}
        self._amounts_ms: dict[str, int] = {}  # when they were told, account clock
        self._filled_ms: dict[str, int] = {}  # newest fill that was counted on top

    def open(self, symbol: str, base: str, quote: str) -> Desk:
        """The desk of one more symbol."""
        gates = Gates(mode=self.mode, step_ms=self.rule.step_ms, max_age_ms=self.limits.max_age_ms)
        desk = self.desks[symbol] = Desk(
            self, symbol, self.interval, self.rule, Ledger(base=base, quote=quote),
            Decisions(gates),
        )  # fmt: skip
        return desk

    def load(self, lines: Iterable[Order]) -> None:
        """What stands in the journal, oldest first. Lines of other symbols are left out; those of
        another interval are about the same account."""
        for line in lines:
            desk = self.desks.get(line.symbol)
            if desk is not None:
                desk.load(line)
                if line.mode == self.mode and line.reason.startswith(reason_of("")):
                    self._ordered = line.reason

    def take(self) -> Output:
        """What has come out since the last call."""
        out, self.out = self.out, Output()
        return out

    def request(self, symbol: str, request: Request) -> None:
        self.out.requests.append((symbol, request))

    def news(self, level: Level, code: str, what: str, symbol: str = "") -> None:
        self.out.news.append(News(level, code, what, symbol))

    # -- the switch ---------------------------------------------------------------------------

    @property
    def switch(self) -> OrderState:
        """The strictest of what the journal and the file say."""
        return self._switched().state

    @property
    def why_switched(self) -> str:
        return self._switched().reason

    def _switched(self) -> Switch:
        found = [desk.ledger.switch for desk in self.desks.values()]
        if self.file is not None:
            found.append(Switch(state=_STATES[self.file.word], reason=self.file.text))
        return max(found, key=lambda one: _STRICTNESS.index(one.state), default=Switch())

    def halt(self, why: str, now: Now) -> None:
        """A limit is reached: nothing is sent any more until an operator resumes."""
        if self._journalled() == OrderState.HALTED:
            return
        for desk in self.desks.values():
            desk.switch_line(OrderState.HALTED, f"limit: {why}", now)
        self.news(Level.ALERT, "halted", f"HALT: {why}; no orders are sent until `itb resume`")

    def has_halted(self, why: str) -> bool:
        """Whether the journal knows of such a HALT, in force or not."""
        return any(f"limit: {why}" in desk.ledger.commands for desk in self.desks.values())

    def _journalled(self) -> OrderState:
        states = [desk.ledger.switch.state for desk in self.desks.values()]
        return max(states, key=_STRICTNESS.index, default=OrderState.RESUMED)

    def command(self, command: Command | None, now: Now) -> None:
        """What the Redis key says. Each command counts once, also over restarts."""
        if command is None or not self.is_new(command):
            return
        if self._is_repeated(command) and command.word is Word.RESUME:
            self._refused = command.text
            self.news(
                Level.WARNING, "not_resumed",
                f"{command.text!r} in the key was obeyed before, word for word: put the time "
                "behind it, or say `itb resume`",
            )  # fmt: skip
            return
        self._ordered, self._refused = reason_of(command.text), ""
        state = _STATES[command.word]
        for desk in self.desks.values():
            desk.switch_line(state, reason_of(command.text), now)
        if state == OrderState.RESUMED:
            still = f", but {self.why_switched} is in force" if self.file is not None else ""
            self.news(Level.WARNING, "resumed", f"an operator resumes trading{still}")
        else:
            self.news(Level.ALERT, "halted", f"an operator's command: {command.text}")
        self.advance(now)

    def is_new(self, command: Command) -> bool:
        """Whether there is something to do about it: the journal does not hold it yet, or it is a
        bare word that comes again after another command."""
        if not self._is_repeated(command):
            return True
        is_newest = reason_of(command.text) == self._ordered
        return command.is_bare and not is_newest and command.text != self._refused

    def _is_repeated(self, command: Command) -> bool:
        text = reason_of(command.text)
        return any(text in desk.ledger.commands for desk in self.desks.values())

    def file_says(self, command: Command | None, now: Now) -> None:
        """What the file says holds as long as it stands there."""
        if command == self.file:
            return
        before, self.file = self.file, command
        if command is not None and command.word is not Word.RESUME:
            self.news(Level.ALERT, "halted", f"an operator's command: {command.text}")
        elif before is not None:
            self.news(Level.WARNING, "resumed", f"the file does not say {before.word} any more")
        self.advance(now)

    def advance(self, now: Now) -> None:
        for desk in self.desks.values():
            desk.advance(now)

    # -- the account --------------------------------------------------------------------------

    def balances(self, told: Balances) -> None:
        """Absolute amounts of some assets, or all. What is older than what is known changes
        nothing."""
        for asset, amounts in told.amounts.items():
            newest_ms = max(self._amounts_ms.get(asset, 0), self._filled_ms.get(asset, 0))
            if told.at_ms >= newest_ms:
                self._amounts[asset] = amounts
                self._amounts_ms[asset] = told.at_ms
        self.balances_ms = max(self.balances_ms, told.at_ms)

    def count(self, fill: Fill, ledger: Ledger) -> None:
        """A fill that the balances do not hold yet. What an order had locked is left locked, so
        that rather too little than too much counts as free."""
        sign = 1 if fill.side is Side.BUY else -1
        for asset, delta in (
            (ledger.base, sign * fill.quantity),
            (ledger.quote, -sign * fill.quote_quantity),
            (fill.fee_asset, -fill.fee),
        ):
            if fill.time_ms > self._amounts_ms.get(asset, 0):
                free, locked = self._amounts.get(asset, (ZERO, ZERO))
                self._amounts[asset] = (max(ZERO, free + delta), locked)
                self._filled_ms[asset] = max(fill.time_ms, self._filled_ms.get(asset, 0))

    def amounts(self) -> dict[str, tuple[Decimal, Decimal]]:
        """(free, locked) of our assets, as far as they are known."""
        return dict(self._amounts)

    def held(self, asset: str, *, whole: bool = False) -> Decimal:
        """Free amount of an asset; whole: with what is locked."""
        free, locked = self._amounts.get(asset, (ZERO, ZERO))
        return free + locked if whole else free

    def cash(self) -> Decimal:
        """Quote units that an entry may use: what is free, less what intents may have used, more
        what our waiting entries hold (they go before another one is sent)."""
        cash = ZERO
        for quote in {desk.ledger.quote for desk in self.desks.values()}:
            cash += self.held(quote)
        for desk in self.desks.values():
            for order in desk.ledger.open.values():
                if order.side == Side.BUY:
                    price = order.price or order.reference
                    left = (order.quantity - order.executed) * price
                    is_booked = order.state not in (OrderState.INTENT, OrderState.UNKNOWN)
                    cash += left if is_booked and order.price else ZERO
                    cash -= ZERO if is_booked else left
        return max(ZERO, cash)

    def worth(self) -> Decimal:
        """Of the quote asset and of all positions at their last closes."""
        total = self.cash()
        for desk in self.desks.values():
            if desk.ledger.position > 0 and desk.close == desk.close:
                total += desk.ledger.position * Decimal(repr(desk.close))
        return total

    # -- the limits ---------------------------------------------------------------------------

    def entry_refusal(self, desk: Desk, signal: Signal, now: Now) -> str:
        """Why no entry may be sent now, "" = one may. A limit that is reached halts."""
        limits = self.limits
        if limits.releases and signal.release not in limits.releases:
            return f"release {signal.release!r} is not one of trader.releases"
        if self.switch != OrderState.RESUMED:
            return f"halted: {self.why_switched}"
        if desk.diverged:
            return f"diverged: {desk.diverged}"
        if why := self._clock_refusal() or _market_refusal(desk):
            return why
        if not self.balances_ms:
            return "the balances are not known yet"
        held = sum(1 for other in self.desks.values() if other is not desk and _buys(other))
        if limits.open_positions and held >= limits.open_positions:
            return f"{held} positions are open, trader.limits.open_positions allows no more"
        return self._loss_refusal(now) or self.order_refusal(now)

    def guards(self) -> dict[str, bool]:
        """Whether each guard forbids entries now, of one symbol at least. Limits that halt show as
        the switch."""
        desks = self.desks.values()
        return {
            "switch": self.switch != OrderState.RESUMED,
            NOT_RECONCILED: not all(desk.ready for desk in desks),
            "diverged": any(desk.diverged for desk in desks),
            "clock": bool(self._clock_refusal()),
            "market_closed": any(_market_refusal(desk) for desk in desks),
        }

    def _clock_refusal(self) -> str:
        if self.skew_ms is None:
            return "the exchange's clock is not known yet"
        if abs(self.skew_ms) >= self.limits.skew_ms:
            return f"our clock is {self.skew_ms:+.0f} ms off the exchange's"
        return ""

    def _loss_refusal(self, now: Now) -> str:
        limits, why = self.limits, ""
        ledgers = [desk.ledger for desk in self.desks.values()]
        losses = max(ledger.losses for ledger in ledgers)
        if limits.losses and losses >= limits.losses:
            why = f"{losses} losses in a row"
        worth = self.worth()
        today = now.market_ms // DAY_MS
        lost = -sum((one.day_profit for one in ledgers if one.day == today), ZERO)
        lost += max(ZERO, -self._unrealised())
        if limits.daily_loss and lost > 0 and lost >= limits.daily_loss * (worth + lost):
            why = why or f"today's loss is {_percent(lost, worth + lost)} of the account"
        fallen = sum((one.peak - one.curve for one in ledgers), ZERO)
        if limits.drawdown and fallen > 0 and fallen >= limits.drawdown * (worth + fallen):
            why = why or f"the account is {_percent(fallen, worth + fallen)} below its best"
        if why:
            self.halt(why, now)
        return why

    def _unrealised(self) -> Decimal:
        total = ZERO
        for desk in self.desks.values():
            if desk.ledger.position > 0 and desk.close == desk.close:
                total += desk.ledger.unrealised(Decimal(repr(desk.close)))
        return total

    def order_refusal(self, now: Now) -> str:
        """Why no further entry may be sent now, by the number of orders. What sells or protects is
        not refused for it: `Desk` slows it down."""
        if self.is_busy(now):
            why = (
                f"{self._sent(now)} orders within a minute, "
                f"trader.limits.orders_per_minute is {self.limits.orders_per_minute}"
            )
            self.halt(why, now)
            return why
        standing = sum(len(desk.ledger.open) for desk in self.desks.values())
        if self.limits.open_orders and standing >= self.limits.open_orders:
            why = f"{standing} orders are open, trader.limits.open_orders allows no more"
            self.halt(why, now)
            return why
        return ""

    def is_busy(self, now: Now) -> bool:
        """Whether as many orders were sent within a minute of the market as may be."""
        most = self.limits.orders_per_minute
        return bool(most) and self._sent(now) >= (most or 0)

    def _sent(self, now: Now) -> int:
        since_ms = now.market_ms - _MINUTE_MS
        return sum(_since(desk.ledger.intents, since_ms) for desk in self.desks.values())

    def spent(self, order: Tracked, now: Now) -> str:
        """An entry is sized to the limit at the price that decided it; the market may have gone
        further than what is left to it (`RESERVE`). What is to be told of that, "" = nothing; far
        beyond (`SLIPPAGE`) it is no slippage any more, and halts."""
        most = self.limits.max_notional
        if not most or order.leg != Leg.ENTRY or order.quote <= most * (1 + RESERVE):
            return ""
        what = (
            f"entry {order.client_id} cost {text(order.quote)}, "
            f"trader.limits.max_notional is {text(most)}"
        )
        if order.quote > most * (1 + SLIPPAGE):
            self.halt(what, now)
            return ""
        return what

    def refusals(self) -> int:
        """Orders that the exchange refused in a row, on the worst symbol."""
        return max(desk.ledger.refusals for desk in self.desks.values())


def _market_refusal(desk: Desk) -> str:
    status = "unknown" if desk.filters is None else desk.filters.status
    return "" if status == TRADING else f"{desk.symbol} is {status}, not {TRADING}"


def _buys(desk: Desk) -> bool:
    """Whether it holds something, or an order of it may buy."""
    is_held = desk.sellable(desk.close) > 0
    return is_held or any(order.side == Side.BUY for order in desk.ledger.open.values())


def _since(times: Sequence[int], since_ms: int) -> int:
    """How many of `times`, oldest first, are later."""
    return sum(1 for _ in itertools.takewhile(lambda at_ms: at_ms > since_ms, reversed(times)))


def _percent(part: Decimal, whole: Decimal) -> str:
    return f"{float(100 * part / whole):.2f} %" if whole else "all"
