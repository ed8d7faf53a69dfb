"""The trader's shell: signals from the bus and news from the exchange go into the core, journal
lines and requests come out.

Everything goes through one queue, so the core sees one event after the other. What comes out is
brought out in this order, and whatever breaks in between leaves nothing undecided:

    1. lines into the journal file, on the disk before anything is sent
    2. the intent's name claimed on the bus (of two traders one gets it)
    3. lines onto the bus, in one transaction with the acknowledgement of signals that are done
    4. the switch is read, last
    5. requests

A signal is acknowledged once nothing that it led to is on its way, so that a replay at full speed
waits for its orders, and once the journal or nobody needs to know of it: one that waits behind
an order of unknown fate is read again after a crash.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from functools import partial
from typing import Any

from shared.account import BinanceAccount
from shared.binance import Busy
from shared.bus import Bus, Entry, Source, Step, Write, by_key, now_us
from shared.config import Settings
from shared.control import CONTROL_KEY, Command, command_of, read_file
from shared.errors import Failure, OutOfSync, Unavailable, Unknown
from shared.events import Level, Order, OrderState, Signal
from shared.exchange import (
    Balance,
    BalancesChanged,
    Denied,
    Fill,
    KeyDenied,
    NewOco,
    OrderReport,
    OutsideWindow,
    StreamGap,
    UserEvent,
)
from shared.filters import SymbolRules
from shared.ledger import DAY_MS, ZERO
from shared.logs import Quiet
from shared.metrics import (
    CLOCK_SKEW,
    EQUITY,
    GUARD,
    OPEN_ORDERS,
    ORDERS,
    POSITION,
    PROFIT,
    TRADER_STATE,
)
from shared.rules import NAN, Bar
from shared.runtime import Session
from shared.streams import ORDER, SIGNAL, intent_key
from shared.times import floor_ms
from trader.archive import Archivist
from trader.candles import Candles
from trader.core import NOT_RECONCILED, Core
from trader.desk import SETTLE_MS, TRADING, Desk
from trader.journal import Journal, Taken
from trader.merge import merge
from trader.messages import (
    Balances,
    Cancel,
    FetchBalances,
    FetchFills,
    FetchRules,
    MeasureClock,
    NotSent,
    Now,
    Place,
    Query,
    Refused,
    Request,
    Unsure,
)
from trader.observe import observe, problem_of
from trader.orders import PREFIX, is_ours
from trader.places import (
    LIVE,
    OBSERVE,
    journal_folder,
    limits_of,
    place_of,
    rule_of,
    what_it_may,
)
from trader.places import Place as Exchange
from trader.summary import daily_summary

log = logging.getLogger(__name__)
_BATCH = 256
_MOST_WAITING = 2_000  # signals that were read and not done
_TICK_S = 0.25
_CONTROL_S = 1.0
_SWEEP_S = 60.0
_CLOCK_S = 10.0
_CLOCK_AGAIN_S = 1.0
_CLOSED_S = 10.0
_RULES_S = 300.0
_LOOK_BACK_MS = 600_000
_DURABLE_S = 2.0
_LAG_MS = 5_000
# Requests of a life that no journal tells of: what is older is not executed any more.
_SETTLE_MS = SETTLE_MS
_SETTLE_S = 1.0
_NOTE_S = 1.0
_SIGN_LINES = 5_000
_LASTING_S = 2.5  # appendfsync everysec may lose two
_YOUNG_SWEEP_S = 5.0
_CLAIM_MS = 2 * 86_400_000
_RECONCILE_S = (0.25, 1.0)
_LASTING = frozenset(
    (OrderState.HALTED, OrderState.REDUCED, OrderState.FLATTENED, OrderState.RESUMED)
)


def check(settings: Settings) -> None:
    """Refuses at start what cannot be traded.

    Raises:
        Usage: the settings contradict each other.
    """
    if settings.trader.mode != OBSERVE:
        place_of(settings)
        rule_of(settings)


async def serve(session: Session) -> None:
    """One session of a trader of its own."""
    with Trader() as trader:
        await trader.serve(session)


class Trader:
    """What outlives a session with the bus: the journal's lock, and that the key was looked at."""

    def __init__(self) -> None:
        self._journal: Journal | None = None
        self._is_permitted = False
        self._said = ""
        self._trouble = Quiet(60.0)

    def __enter__(self) -> "Trader":
        return self

    def __exit__(self, *_: object) -> None:
        if self._journal is not None:
            self._journal.close()

    async def serve(self, session: Session) -> None:
        """Reconciles, then trades until something breaks."""
        settings = session.settings
        if settings.trader.mode == OBSERVE:
            await observe(session)
            return
        exchange = place_of(settings)
        journal = await self._open(session, exchange)
        session.metrics.set(GUARD, 1.0, NOT_RECONCILED)
        account = BinanceAccount(
            exchange.rest_url,
            exchange.ws_url,
            key=exchange.key,
            secret=exchange.secret,
            prefix=PREFIX,
        )
        async with account:
            while not self._is_permitted:
                session.alive()
                try:
                    await _look_at_key(session, exchange, account)
                    self._is_permitted = True
                except Unavailable as error:
                    session.health.not_ready(f"HALT: the exchange does not answer: {error}")
                    await asyncio.sleep(_RECONCILE_S[0])
            shell = Shell(session, exchange, account, journal, self._trouble)
            if self._said != (said := what_it_may(exchange, settings, shell.core.limits)):
                self._said = said
                level = Level.WARNING if exchange.mode == LIVE else Level.INFO
                await session.notice(level, "trader_mode", said)
            await shell.start()
            await shell.run()

    async def _open(self, session: Session, exchange: Exchange) -> Journal:
        """The journal, once no other process has it."""
        path = journal_folder(session.settings) / f"{exchange.mode}.journal"
        while self._journal is None:
            session.alive()
            try:
                self._journal = Journal.open(path)
            except Taken as error:
                session.health.not_ready(f"stands by: {error}")
                await asyncio.sleep(_TICK_S)
        return self._journal


async def _look_at_key(session: Session, exchange: Exchange, account: BinanceAccount) -> None:
    """Refuses a key that can do more, or less, than trade (FAULTS T20).

    Raises:
        Failure: as said; a person must make another key.
    """
    try:
        may = await account.permissions()
    except KeyDenied as error:
        raise Failure(
            f"{exchange.host} does not accept this key ({error.text}): is it a key of another "
            "exchange (testnet and live have their own), or bound to another address?"
        ) from None
    except Denied as error:
        log.warning("the exchange does not tell what the key may do: %s", error)
        return
    if not may.can_trade:
        raise Failure(
            f"this key may not trade at {exchange.host}: allow spot trading for it, or make one "
            "that may"
        )
    if may.can_withdraw and may.ip_restricted is not None:
        raise Failure(
            f"this key may withdraw from {exchange.host}: make one that may only trade, so that "
            "whoever steals it cannot take the coins away"
        )
    if may.can_transfer:
        raise Failure(
            f"this key may transfer from one wallet or sub-account to another at {exchange.host}: "
            "take that right (internal or universal transfer) from it, so that whoever steals it "
            "reaches what is here and nothing more"
        )
    if may.ip_restricted is False and exchange.mode == LIVE:
        await session.notice(
            Level.WARNING, "key", "the key works from every address: bind it to this one"
        )


class Shell:
    """One session: everything around the core."""

    def __init__(
        self,
        session: Session,
        exchange: Exchange,
        account: BinanceAccount,
        journal: Journal,
        trouble: Quiet,
    ) -> None:
        settings = session.settings
        self._session = session
        self._bus: Bus = session.bus
        self._exchange = exchange
        self._account = account
        self._journal = journal
        self._folder = journal_folder(settings)
        self._clock = account.clock
        self.core = Core(exchange.mode, settings.interval, rule_of(settings), limits_of(settings))
        rows = settings.trader.rules.volatility_candles
        if settings.trader.rules.sizing != "volatility":
            rows = 0
        self._candles: dict[str, Candles] = {}
        for symbol in settings.symbols:
            self.core.open(symbol, settings.base_of(symbol), settings.quote_asset)
            self._candles[symbol] = Candles(
                self._bus, symbol, settings.interval, speed=settings.market_speed,
                volatility_rows=rows,
            )  # fmt: skip
        self._sources = by_key(
            Source(SIGNAL, symbol, settings.interval) for symbol in settings.symbols
        )
        self._queue: asyncio.Queue[Callable[[], None]] = asyncio.Queue(maxsize=10_000)
        self._signals: dict[str, deque[Entry[Signal]]] = {s: deque() for s in settings.symbols}
        self._decided: dict[str, list[Entry[Signal]]] = {s: [] for s in settings.symbols}
        self._steps: list[Step] = []
        self._room = asyncio.Event()
        self._room.set()
        self._caught_up = False
        self._tasks: asyncio.TaskGroup | None = None
        self._look, self._clock_off = asyncio.Event(), asyncio.Event()
        self._counts: dict[str, int] = {}
        self._quiet, self._trouble = Quiet(60.0), trouble
        self._day: int | None = None
        self._reconciled: set[str] = set()
        self._opened: dict[str, int] = {}  # the candle in which the exchange's market was at start
        self._acked: dict[str, int] = {}  # on the bus, not noted yet
        self._noted_s = -math.inf
        self._fresh: deque[tuple[float, dict[str, int]]] = deque()  # on the bus, when
        self._untimed: set[str] = set()  # of symbols without a candle on the bus then

    # -- clocks -------------------------------------------------------------------------------

    def now(self, symbol: str) -> Now:
        ours_ms = now_us() // 1000
        market_ms = self._candles[symbol].market_ms
        return Now(self._clock.now_ms, ours_ms if market_ms is None else market_ms, ours_ms)

    def _any_now(self) -> Now:
        return self.now(next(iter(self.core.desks)))

    # -- start: HALT, reconcile, READY (FAULTS T16) -------------------------------------------

    async def start(self) -> None:
        """From the journal and the bus what we know, from the exchange what is true."""
        health = self._session.health
        health.facts["mode"] = self._exchange.mode
        health.not_ready("reading the journal")
        self.core.load(_showing_life(self._journal.lines(), self._session.alive))
        await self._tell_found()
        await self._bus.join(self._sources.values())
        await self._bus.take_over(list(self._sources.values()))
        for symbol, desk in self.core.desks.items():
            self._session.alive()
            since_ms = desk.ledger.entry_ms if desk.ledger.position > 0 else None
            await self._candles[symbol].begin(since_ms)
        merged = await merge(
            self._bus, self._journal, list(self.core.desks), self._exchange.mode, self._lost
        )
        self.core.load(merged.taken)
        for symbol in self.core.desks:
            if self._journal.knows(symbol):
                self._bus.must_exist(Source(ORDER, symbol))
        await self._measure()
        for symbol, desk in self.core.desks.items():
            for bar in self._candles[symbol].bars(-1):
                desk.extend(bar)
            # The file is another one than the trader's who wrote on the bus: its own may know more.
            desk.suspect = bool(self._journal.found.damaged) or (
                self._journal.is_new and bool(merged.taken)
            )
            desk.begin(self.now(symbol))
        if merged.unread:
            why = f"a line of the journal cannot be read: {merged.unread[0]}"
            self.core.halt(why, self._any_now())
        await self._drain()
        await self._until_reconciled()
        await self._settle()
        await self._read_control()
        await self._make_ready()

    def _lost(self, what: str) -> None:
        """Somebody emptied the bus. The file is whole, but a person must look (FAULTS V4)."""
        why = (
            f"{what}: it gets the lines of {self._journal.path} again, and the exchange is asked; "
            "look whether both are right"
        )
        self.core.halt(why, self._any_now())
        lines, self.core.out.lines = self.core.out.lines, []
        self._journal.append(lines)

    async def _until_reconciled(self) -> None:
        health, delay_s = self._session.health, _RECONCILE_S[0]
        while True:
            self._session.alive()
            try:
                await self._reconcile()
                return
            except (Unavailable, Denied) as error:
                if isinstance(error, KeyDenied):
                    raise Failure(f"{self._exchange.host} refuses the key: {error}") from None
                health.not_ready(f"HALT: not reconciled with the exchange: {error}")
                if (held := self._quiet.allows("reconcile")) is not None:
                    text = f"no orders are sent: not reconciled with the exchange: {error}"
                    log.warning(text, extra={"left_out": held})
                    await self._session.notice(Level.WARNING, "not_reconciled", text)
                await asyncio.sleep(delay_s)
                delay_s = min(_RECONCILE_S[1], 2 * delay_s)

    async def _settle(self) -> None:
        """A journal that was just begun may be the first ever, or come after one that was lost with
        the bus, whose last order may be under way still, seen by nobody (FAULTS V4).

        Either it is certain which candles closed before this start, because bus and exchange tell
        the same time: no order of a lost journal can be about a younger one. Or all is waited out
        that may be under way, and looked at again.
        """
        left_ms = self._journal.begun_ms + _SETTLE_MS - now_us() // 1000
        until_s = time.monotonic() + min(left_ms, _SETTLE_MS) / 1000
        has_waited = False
        while (left_s := until_s - time.monotonic()) > 0 and not await self._knows_time():
            self._session.alive()
            has_waited = True
            self._session.health.not_ready(
                f"HALT: the journal is new: for {left_s:.0f} s more an order of a lost one may come"
            )
            await asyncio.sleep(min(left_s, _SETTLE_S))
        if has_waited:
            self._reconciled.clear()
            await self._until_reconciled()

    async def _knows_time(self) -> bool:
        """Whether bus and exchange agree on the candle in which every market is."""
        for symbol in self.core.desks:
            await self._candles[symbol].refresh()
            if not (await self._ask_time(symbol) and self._agree(symbol)):
                return False
        return True

    async def _ask_time(self, symbol: str) -> bool:
        opened_ms = None
        with contextlib.suppress(Unavailable, Denied):
            opened_ms = await self._account.candle_ms(symbol, self.core.interval)
        if opened_ms is None and self._clock.skew_ms is not None:
            # An exchange that tells no candles tells the time; a market that is played does not go
            # by it, and a bus that is behind is not at it.
            clock_ms = floor_ms(self._clock.now_ms, self.core.rule.step_ms)
            market_ms = self._candles[symbol].market_ms
            if market_ms is not None and abs(market_ms - clock_ms) <= 2 * self.core.rule.step_ms:
                opened_ms = clock_ms
        if opened_ms is not None:
            self._opened[symbol] = opened_ms
        return opened_ms is not None

    def _agree(self, symbol: str) -> bool:
        market_ms, opened_ms = self._candles[symbol].market_ms, self._opened.get(symbol)
        if market_ms is None or opened_ms is None:
            return False
        return abs(market_ms - opened_ms) <= 2 * self.core.rule.step_ms

    def _begin_trading(self, symbol: str) -> None:
        """Signals of candles that had closed by now are not traded."""
        desk, market_ms = self.core.desks[symbol], self._candles[symbol].market_ms
        opened_ms = self._opened.get(symbol)
        if market_ms is None:
            self._untimed.add(symbol)
            desk.ready_ms = 0 if opened_ms is None else opened_ms + 1
        elif self._agree(symbol) and opened_ms is not None:
            desk.ready_ms = max(market_ms, opened_ms + 1)
        else:
            desk.ready_ms = market_ms

    def _see_time(self, symbol: str) -> None:
        """The bus had no candle at the start and has one now: which signals are older than it? By
        the exchange's market; where that tells another time, or none, all there are by now."""
        market_ms = self._candles[symbol].market_ms
        if market_ms is not None and symbol in self._untimed:
            self._untimed.discard(symbol)
            desk = self.core.desks[symbol]
            desk.ready_ms = self._opened[symbol] if self._agree(symbol) else market_ms
            desk.ready_ms += 1

    async def _tell_found(self) -> None:
        found, path = self._journal.found, self._journal.path
        if found.cut:
            text = f"{path}: its end was cut off ({found.cut} bytes); the exchange is asked"
            await self._session.notice(Level.WARNING, "journal", text)
        if found.damaged:
            why = f"{found.damaged} lines of {path} are damaged: compare with the exchange"
            if not self.core.has_halted(why):  # else an operator knows: they stay as they are
                await self._session.notice(Level.ALERT, "journal", why)
                self.core.halt(why, self._any_now())

    async def _reconcile(self) -> None:
        """Rules, orders, fills and balances of every symbol; of many symbols, which ask for more
        than a minute's request weight, those that were not reached before.

        Raises:
            Unavailable, Denied: the exchange does not say; nothing is sent until it does.
        """
        for symbol, desk in self.core.desks.items():
            if symbol in self._reconciled:
                continue
            self._session.alive()
            desk.filters = await self._account.rules(symbol)
            await self._check_account(symbol, desk)
            asked_ms = self._clock.now_ms
            oldest_ms = min(
                (order.sent_ms for order in desk.ledger.open.values()), default=asked_ms
            )
            if not desk.knows_orders:
                await self._rebuild(symbol, desk)
            else:
                # Bus and journal may be of an old backup: what came after them is asked for, too.
                known_ms = min(asked_ms, desk.known_ms or asked_ms)
                since_ms = min(oldest_ms, known_ms - _LOOK_BACK_MS)
                reports = await self._account.orders_since(symbol, since_ms)
                reports += await self._account.open_orders(symbol)
                desk.swept(await self._with_fills(symbol, desk, reports), self.now(symbol))
            self._reconciled.add(symbol)
        await self._fetch_balances()
        await self._drain()

    async def _rebuild(self, symbol: str, desk: Desk) -> None:
        """The journal knows of no order: all that the account ever had, which may be ours."""
        reports = {r.order_id: r for r in await self._account.orders_since(symbol, 0)}
        reports |= {r.order_id: r for r in await self._account.open_orders(symbol)}
        fills: dict[int, list[Fill]] = {}
        if any(is_ours(r.client_id) and r.executed for r in reports.values()):
            for fill in await self._account.fills(symbol):
                fills.setdefault(fill.order_id, []).append(fill)
        found = [
            replace(reports[order_id], fills=tuple(fills.get(order_id, ())))
            for order_id in sorted(reports)
        ]
        desk.rebuild(found, self.now(symbol))

    async def _check_account(self, symbol: str, desk: Desk) -> None:
        """The newest order that filled must be known there: else it is another account, or one
        that was reset, and what we hold is not there."""
        old_ms = self._clock.now_ms - 2 * _LOOK_BACK_MS
        # One that was cancelled goes by another name.
        filled = [
            order
            for order in desk.ledger.orders.values()
            if order.state == OrderState.FILLED and order.sent_ms < old_ms and not order.is_former
        ]
        if not filled or self.core.switch == OrderState.HALTED:
            return
        name = filled[-1].client_id
        with contextlib.suppress(Denied):
            if await self._account.order(symbol, name) is None:
                why = (
                    f"{self._exchange.host} does not know order {name} of the journal: another "
                    "account, or it was reset? `itb resume --new-account` begins anew there"
                )
                self.core.halt(why, self.now(symbol))

    async def _with_fills(
        self, symbol: str, desk: Desk, reports: Sequence[OrderReport]
    ) -> list[OrderReport]:
        """Orders of ours with the fills that the journal lacks; the others as they are."""
        found = []
        for report in reports:
            known = desk.ledger.by_order_id.get(report.order_id)
            executed = known.executed if known is not None else ZERO
            if is_ours(report.client_id) and report.executed > executed:
                fills = await self._account.fills(symbol, order_id=report.order_id)
                found.append(replace(report, fills=tuple(fills)))
            else:
                found.append(report)
        return found

    async def _make_ready(self) -> None:
        for symbol, desk in self.core.desks.items():
            self._session.alive()
            await self._candles[symbol].refresh()
            for bar in self._candles[symbol].bars(desk.seen_ms):
                desk.extend(bar)
            if self._candles[symbol].market_ms is None:
                await self._ask_time(symbol)
            self._begin_trading(symbol)
            desk.ready = True
            now = self.now(symbol)
            desk.compare(now)
            desk.advance(now)
        held = [
            f"{desk.ledger.position} {desk.ledger.base}"
            for desk in self.core.desks.values()
            if desk.ledger.position > 0
        ]
        unknown = sum(desk.unknown is not None for desk in self.core.desks.values())
        text = f"reconciled with {self._exchange.host}: holds {', '.join(held) or 'nothing'}"
        if unknown:
            text += f"; {unknown} orders of unknown fate are being looked for"
        self.core.news(Level.INFO, "reconciled", text)
        await self._drain()

    # -- running ------------------------------------------------------------------------------

    async def run(self) -> None:
        for source in self._sources.values():
            async for entries in self._bus.retries(await self._bus.own_pending(source)):
                await self._take(entries)
                await self._drain()
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            for work in (
                self._read_signals, self._listen, self._sweep, self._keep_clock, self._keep_rules,
                self._watch_closed, self._watch_control, self._tick, self._archivist().run,
            ):  # fmt: skip
                tasks.create_task(work(), name=work.__name__)
            while True:
                event = await self._queue.get()
                event()
                while not self._queue.empty():
                    self._queue.get_nowait()()
                await self._drain()

    async def _drain(self) -> None:
        """What the core wants, until it wants nothing more for now."""
        while True:
            self._feed()
            if not await self._flush():
                return
            self._session.alive()  # it gets on

    async def _put(self, event: Callable[[], None]) -> None:
        await self._queue.put(event)

    # -- signals ------------------------------------------------------------------------------

    async def _read_signals(self) -> None:
        block_ms = 1  # the first look does not wait, so that a start is ready at once
        count = max(1, min(_BATCH, _MOST_WAITING // len(self._sources)))  # of each
        while True:
            self._session.alive()
            await self._room.wait()
            entries = await self._bus.read(self._sources, count=count, block_ms=block_ms)
            if entries:
                await self._take(entries)
                await self._put(_nothing)
            for symbol in tuple(self._untimed):
                await self._candles[symbol].refresh()
                await self._put(partial(self._see_time, symbol))
            if len(entries) < count:
                self._caught_up = True
                self._ready_when_done()
                block_ms = 1_000

    def _ready_when_done(self) -> None:
        if self._caught_up and not any(self._signals.values()):
            self._session.health.is_ready()

    async def _take(self, entries: Sequence[Entry[Signal]]) -> None:
        """Signals that were read, with the candles that they are about."""
        for symbol in dict.fromkeys(entry.source.symbol for entry in entries):
            self._session.alive()
            await self._candles[symbol].refresh()
        for entry in entries:
            self._signals[entry.source.symbol].append(entry)
        self._make_room()

    def _make_room(self) -> None:
        if sum(map(len, self._signals.values())) < _MOST_WAITING:
            self._room.set()
        else:
            self._room.clear()

    def _feed(self) -> None:
        """Gives each desk its next signals, as long as it has nothing on its way."""
        for symbol, waiting in self._signals.items():
            desk, decided = self.core.desks[symbol], self._decided[symbol]
            while True:
                if decided:
                    if not desk.settled:
                        break
                    for entry in [one for one in decided if not desk.waits(one.event)]:
                        decided.remove(entry)
                        self._done(entry)
                if not waiting:
                    break
                entry = waiting.popleft()
                problem = problem_of(entry)
                if entry.event is None or problem:
                    self._poison(entry, problem)
                    continue
                self._decide(desk, symbol, entry.event)
                decided.append(entry)
        self._make_room()
        self._ready_when_done()

    def _decide(self, desk: Desk, symbol: str, signal: Signal) -> None:
        self._see_time(symbol)
        candles, now = self._candles[symbol], self.now(symbol)
        for bar in candles.bars(desk.seen_ms, signal.open_time_ms - 1):
            desk.extend(bar)
        bar_ = candles.bar(signal) or Bar(signal.open_time_ms, NAN, NAN, NAN, NAN, NAN, NAN)
        self.core.skew_ms = self._clock.skew_ms
        desk.decide(signal, bar_, now)
        self._new_day(now)

    def _done(self, entry: Entry[Signal]) -> None:
        self._steps.append(Step(input=entry))
        self._session.health.last_ids[entry.source.key] = entry.id

    def _poison(self, entry: Entry[Signal], problem: str) -> None:
        key = entry.source.key
        text = f"{key} {entry.id}: {problem}; dropped, kept under dead:{key}"
        notice = self._session.notice_write(
            Level.ALERT, "dead_letter", text, entry.source.symbol, entry.time_ms
        )
        writes: list[Write[Any]] = [self._bus.dead_letter(entry, problem), notice]
        self._steps.append(Step(input=entry, writes=writes))
        self._session.health.last_ids[key] = entry.id

    # -- out ----------------------------------------------------------------------------------

    async def _flush(self) -> bool:
        """Brings out what the core wants; whether there was anything."""
        out, steps = self.core.take(), self._steps
        self._steps = []
        places = [request for _, request in out.requests if isinstance(request, Place)]
        if not (out.lines or out.requests or out.news or steps):
            return False
        refused: dict[str, str] = {}
        try:
            lines = self._journal.append(out.lines)
        except Unavailable as error:
            await self._tell_journal(error)
            raise
        try:
            if places:
                _, refused = await asyncio.gather(self._make_durable(), self._claim(out.requests))
            elif any(line.state in _LASTING for line in lines):
                await self._make_durable()
            await self._publish(lines, steps, out.news)
            if places:
                await self._read_control()
        except (Unavailable, OutOfSync, Failure) as error:
            self._not_sent(out.requests, f"{error}")
            raise
        for symbol, request in out.requests:
            why = ""
            if isinstance(request, Place):
                why = refused.get(request.client_ids[0], "") or self._forbidden(request)
            if why and isinstance(request, Place):
                desk = self.core.desks[symbol]
                desk.placed(request.client_ids, NotSent(why), self.now(symbol))
            elif self._tasks is not None:
                self._tasks.create_task(self._do(symbol, request))
            else:
                await self._do(symbol, request)
                while not self._queue.empty():
                    self._queue.get_nowait()()
        self._published(lines)
        if steps:
            self._session.metrics.done([s.input for s in steps if s.input is not None])
        return True

    async def _tell_journal(self, error: Unavailable) -> None:
        """Nothing is sent that cannot be written down first."""
        if self._trouble.allows("journal") is not None:
            text = f"no orders are sent: {error}"
            await self._session.notice(Level.ALERT, "journal", text)

    async def _make_durable(self) -> None:
        """Raises: Unavailable where the disk does not take it in time."""
        try:
            async with asyncio.timeout(_DURABLE_S):
                await asyncio.to_thread(self._journal.sync)
        except TimeoutError:
            raise Unavailable(
                f"{self._journal.path} was not on the disk within {_DURABLE_S:g} s"
            ) from None

    async def _claim(self, requests: Sequence[tuple[str, Request]]) -> dict[str, str]:
        """Names that another trader has claimed."""
        refused = {}
        for symbol, request in requests:
            if isinstance(request, Place):
                name = request.client_ids[0]
                key = intent_key(symbol, name)
                if not await self._bus.claim(key, self._journal.id, ttl_ms=_CLAIM_MS):
                    refused[name] = "another trader has claimed it"
        return refused

    async def _publish(
        self, lines: Sequence[Order], steps: Sequence[Step], news: Sequence[Any]
    ) -> None:
        written: list[Step] = []
        for line in lines:
            self._counts[line.state] = self._counts.get(line.state, 0) + 1
            self._session.metrics.add(ORDERS, line.state)
            write = Write(source=Source(ORDER, line.symbol), event=line)
            written.append(Step(input=None, writes=[write]))
        for one in news:
            notice = self._session.notice_write(one.level, one.code, one.text, one.symbol)
            written.append(Step(input=None, writes=[notice]))
        if written or steps:
            await self._bus.commit([*written, *steps])

    def _published(self, lines: Sequence[Order]) -> None:
        """The bus has them now: if it ever lacks them, it was not because they never came."""
        newest = {line.symbol: line.number for line in lines if line.journal == self._journal.id}
        if newest:
            self._acked |= newest
            self._note_acked()
            self._fresh.append((time.monotonic(), newest))
            for symbol in newest:
                self._bus.must_exist(Source(ORDER, symbol))

    def _note_acked(self) -> None:
        """At most once in a while: else the file would grow by a record for every line. What a
        session does not come to note, the next one finds on the bus."""
        if self._acked and time.monotonic() - self._noted_s >= _NOTE_S:
            self._journal.bus_has(self._acked, self._bus.server_id)
            self._acked, self._noted_s = {}, time.monotonic()

    def _bus_answers(self) -> None:
        """What it acknowledged some seconds ago is on its disk: a crash does not take it."""
        self._note_acked()
        lasting: dict[str, int] = {}
        while self._fresh and time.monotonic() - self._fresh[0][0] > _LASTING_S:
            lasting |= self._fresh.popleft()[1]
        if lasting:
            self._journal.bus_has(lasting, self._bus.server_id, lasting=True)

    def _not_sent(self, requests: Sequence[tuple[str, Request]], why: str) -> None:
        """Before it could be sent, something broke: that stands in the file at least (T8)."""
        for symbol, request in requests:
            if isinstance(request, Place):
                desk = self.core.desks[symbol]
                desk.placed(request.client_ids, NotSent(why), self.now(symbol))
        with contextlib.suppress(Unavailable):
            self._journal.append(self.core.take().lines)

    def _forbidden(self, place: Place) -> str:
        """What the switch says, at the last moment."""
        switch = self.core.switch
        if switch == OrderState.HALTED or (switch != OrderState.RESUMED and not place.reduces):
            return f"halted: {self.core.why_switched}"
        return ""

    def _archivist(self) -> Archivist:
        async def carry(symbol: str, others: Mapping[str, str]) -> None:
            await self._put(lambda: self.core.desks[symbol].carry(self.now(symbol), others))

        return Archivist(
            self._session,
            self._exchange.mode,
            carry=carry,
            still_open=lambda symbol: set(self.core.desks[symbol].ledger.open),
        )

    # -- the exchange -------------------------------------------------------------------------

    async def _do(self, symbol: str, request: Request) -> None:
        """One request; its answer becomes an event."""
        desk = self.core.desks[symbol]
        if isinstance(request, Place):
            result = await self._place(request)
            names = request.client_ids
            await self._put(lambda: desk.placed(names, result, self.now(symbol)))
        elif isinstance(request, Cancel):
            ended = await self._cancel(symbol, request.client_id)
            await self._put(lambda: desk.cancelled(request.client_id, ended, self.now(symbol)))
        elif isinstance(request, Query):
            await self._query(symbol, request)
        elif isinstance(request, FetchFills):
            await self._fetch_fills(symbol, request)
        elif isinstance(request, FetchBalances):
            with contextlib.suppress(Unavailable, Denied):  # the next sweep asks again
                await self._fetch_balances()
        elif isinstance(request, FetchRules):
            with contextlib.suppress(Unavailable, Denied):  # it is asked again while it is closed
                await self._fetch_rules(symbol)
        elif isinstance(request, MeasureClock):
            self._clock_off.set()

    async def _place(self, place: Place) -> Sequence[OrderReport] | NotSent | Refused | Unsure:
        try:
            if isinstance(place.order, NewOco):
                return await self._account.place_oco(place.order, timestamp_ms=place.timestamp_ms)
            return [await self._account.place(place.order, timestamp_ms=place.timestamp_ms)]
        except Busy as error:
            return NotSent(str(error), passes=True, wait_ms=round(1000 * error.retry_after_s))
        except Unavailable as error:
            return NotSent(str(error), passes=True)
        except Unknown as error:
            return Unsure(str(error))
        except Denied as error:
            return Refused(error.code, error.text, isinstance(error, KeyDenied))

    async def _cancel(
        self, symbol: str, name: str
    ) -> OrderReport | Refused | Unsure | NotSent | None:
        try:
            return await self._account.cancel(symbol, name)
        except Unavailable as error:
            return NotSent(str(error), passes=True)
        except Unknown as error:
            return Unsure(str(error))
        except Denied as error:
            return Refused(error.code, error.text)

    async def _query(self, symbol: str, query: Query) -> None:
        desk, name, what = self.core.desks[symbol], query.client_id, query.what
        asked_ms = self._clock.now_ms
        try:
            report = await self._account.order(symbol, name)
        except (Unavailable, Denied) as error:
            why = str(error)
            if isinstance(error, OutsideWindow):
                self._clock_off.set()
            await self._put(lambda: desk.unanswered(name, why, self.now(symbol), what=what))
            return
        await self._put(lambda: desk.found(name, report, asked_ms, self.now(symbol), what=what))

    async def _fetch_fills(self, symbol: str, request: FetchFills) -> None:
        desk, name = self.core.desks[symbol], request.client_id
        try:
            fills = await self._account.fills(symbol, order_id=request.order_id)
        except (Unavailable, Denied) as error:
            why = str(error)
            await self._put(lambda: desk.unanswered(name, why, self.now(symbol)))
            return
        await self._put(lambda: desk.filled(name, fills, self.now(symbol)))

    async def _fetch_balances(self) -> None:
        # The books that answer may be behind the engine.
        at_ms = self._clock.now_ms - _LAG_MS
        found = await self._account.balances()
        assets = {a for d in self.core.desks.values() for a in (d.ledger.base, d.ledger.quote)}
        amounts = {
            asset: _amounts(found[asset]) if asset in found else (ZERO, ZERO) for asset in assets
        }
        self.core.balances(Balances(amounts, at_ms))

    async def _listen(self) -> None:
        async for events in self._account.user_events():
            for event in events:
                await self._put(partial(self._heard, event))

    def _heard(self, event: UserEvent) -> None:
        if isinstance(event, OrderReport):
            desk = self.core.desks.get(event.symbol)
            if desk is not None:
                desk.reported(event, self.now(event.symbol))
        elif isinstance(event, BalancesChanged):
            amounts = {one.asset: _amounts(one) for one in event.balances}
            self.core.balances(Balances(amounts, event.time_ms))
        elif isinstance(event, StreamGap):
            self._look.set()

    def _sweep_s(self) -> float:
        """Behind a journal that was just begun an order may come that nothing tells of."""
        is_young = now_us() // 1000 < self._journal.begun_ms + 2 * _SETTLE_MS
        return min(_YOUNG_SWEEP_S, _SWEEP_S) if is_young else _SWEEP_S

    async def _sweep(self) -> None:
        """Everything once a minute, and after each gap: nothing rests on the user stream alone."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._sweep_s()):
                    await self._look.wait()
            self._look.clear()
            with contextlib.suppress(Unavailable, Denied):  # the next sweep asks again
                await self._fetch_balances()
            for symbol, desk in self.core.desks.items():
                since_ms = self._clock.now_ms - _LOOK_BACK_MS
                oldest_ms = min(
                    (order.sent_ms for order in desk.ledger.open.values()), default=since_ms
                )
                try:
                    reports = await self._account.orders_since(symbol, min(since_ms, oldest_ms))
                    reports += await self._account.open_orders(symbol)
                except (Unavailable, Denied) as error:
                    if (held := self._quiet.allows("sweep")) is not None:
                        log.warning("the account was not looked at: %s", error,
                                    extra={"left_out": held})  # fmt: skip
                    continue
                await self._put(partial(self._swept, symbol, reports))

    def _swept(self, symbol: str, reports: Sequence[OrderReport]) -> None:
        desk = self.core.desks[symbol]
        desk.swept(reports, self.now(symbol))
        desk.compare(self.now(symbol))

    async def _keep_clock(self) -> None:
        """Measures the account's clock, which also keeps the order connection open."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOCK_S):
                    await self._clock_off.wait()
            try:
                await self._measure()
            except (Unavailable, Denied):
                await asyncio.sleep(_CLOCK_AGAIN_S)
                continue
            self._clock_off.clear()
            await self._put(self._clock_measured)

    def _clock_measured(self) -> None:
        if self.core.clock_is_off:
            self.core.clock_is_off = False
            self.core.advance(self._any_now())

    async def _measure(self) -> None:
        try:
            await self._account.clock_skew_ms()
        except (Unavailable, Denied):
            if self._clock.skew_ms is not None:
                raise
        self.core.skew_ms = self._clock.skew_ms
        if self._clock.skew_ms is not None:
            self._session.metrics.set(CLOCK_SKEW, self._clock.skew_ms / 1000)

    async def _keep_rules(self) -> None:
        while True:
            for symbol in self.core.desks:
                await asyncio.sleep(_RULES_S / len(self.core.desks))
                with contextlib.suppress(Unavailable, Denied):  # those of before hold on
                    await self._fetch_rules(symbol)

    async def _watch_closed(self) -> None:
        """Symbols that do not trade are asked for more often."""
        while True:
            await asyncio.sleep(_CLOSED_S)
            for symbol, desk in self.core.desks.items():
                if desk.filters is not None and desk.filters.status != TRADING:
                    with contextlib.suppress(Unavailable, Denied):
                        await self._fetch_rules(symbol)

    async def _fetch_rules(self, symbol: str) -> None:
        """Raises: Unavailable, Denied."""
        found = await self._account.rules(symbol)
        await self._put(partial(self._ruled, symbol, found))

    def _ruled(self, symbol: str, found: SymbolRules) -> None:
        self.core.desks[symbol].ruled(found, self.now(symbol))

    # -- the switch, time ---------------------------------------------------------------------

    async def _watch_control(self) -> None:
        while True:
            await asyncio.sleep(_CONTROL_S)
            command = command_of(await self._bus.get(CONTROL_KEY))
            self._bus_answers()
            file = read_file(self._folder)
            if (command is not None and self.core.is_new(command)) or file != self.core.file:
                await self._put(partial(self._control, command, file))

    async def _read_control(self) -> None:
        self._control(command_of(await self._bus.get(CONTROL_KEY)), read_file(self._folder))

    def _control(self, command: Command | None, file: Command | None) -> None:
        now = self._any_now()
        self.core.file_says(file, now)
        self.core.command(command, now)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            self._tell_health()
            now_ms = self._clock.now_ms
            for symbol, desk in self.core.desks.items():
                due_ms = desk.due_ms()
                if due_ms is not None and due_ms <= now_ms:
                    await self._put(partial(self._due, symbol))

    def _due(self, symbol: str) -> None:
        self.core.desks[symbol].tick(self.now(symbol))

    # -- for people ---------------------------------------------------------------------------

    def _new_day(self, now: Now) -> None:
        """The summary of the day before, with the first signal of a new one."""
        day = now.market_ms // DAY_MS
        before, self._day = self._day, day
        if before is None or before == day:
            return
        desks = self.core.desks.values()
        text = daily_summary(
            before,
            [desk.ledger for desk in desks],
            [desk.close for desk in desks],
            [self._candles[symbol].day_open(before * DAY_MS) for symbol in self.core.desks],
            self.core.worth(),
        )
        self.core.news(Level.INFO, "daily_summary", text)

    def _tell_health(self) -> None:
        facts, metrics = self._session.health.facts, self._session.metrics
        switch = self.core.switch
        facts["switch"] = switch
        facts["decisions"] = dict(self._counts)
        facts["balances"] = {
            asset: {"free": f"{free:f}", "locked": f"{locked:f}"}
            for asset, (free, locked) in sorted(self.core.amounts().items())
        }
        facts["positions"] = {s: str(d.ledger.position) for s, d in self.core.desks.items()}
        facts["unknown"] = [o.client_id for d in self.core.desks.values() if (o := d.unknown)]
        facts["diverged"] = [d.diverged for d in self.core.desks.values() if d.diverged]
        for symbol, desk in self.core.desks.items():
            metrics.set(POSITION, float(desk.ledger.position), symbol)
            for state in (OrderState.UNKNOWN, OrderState.ACKED, OrderState.PARTIAL):
                count = sum(o.state == state for o in desk.ledger.open.values())
                metrics.set(OPEN_ORDERS, count, symbol, state)
        metrics.only(TRADER_STATE, "HALT" if switch == OrderState.HALTED else str(switch))
        metrics.set(EQUITY, float(self.core.worth()))
        profit = sum((d.ledger.profit for d in self.core.desks.values()), Decimal(0))
        metrics.set(PROFIT, float(profit), "all")
        for guard, is_active in self.core.guards().items():
            metrics.set(GUARD, float(is_active), guard)


def _showing_life(lines: Iterable[Order], alive: Callable[[], None]) -> Iterator[Order]:
    """For the watchdog, the lines of a journal of years."""
    for number, line in enumerate(lines):
        if number % _SIGN_LINES == 0:
            alive()
        yield line


def _nothing() -> None:
    """An event that only wakes the loop."""


def _amounts(balance: Balance) -> tuple[Decimal, Decimal]:
    return balance.free, balance.locked
