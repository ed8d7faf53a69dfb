"""The running simulator: plays the market along its clock and serves it.

`play` is the only task that moves market time. Everything else reads it.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web

from shared.errors import Failure, Usage
from shared.klines import KlineTable
from simulator import events
from simulator.clock import MANUAL, AccountClock, Clock
from simulator.control import Control
from simulator.desk import Desk, Terms
from simulator.endpoints import FUTURES, SPOT, Venue, symbol_info
from simulator.events import Message, Scene
from simulator.exchange.orders import Key
from simulator.exchange.symbols import Symbol
from simulator.faults import Faults
from simulator.journal import Journal
from simulator.limits import Budget
from simulator.market import Market, Series
from simulator.quick import kline_frames
from simulator.quotes import Board
from simulator.rest import Rest, wall_ms
from simulator.streams import Hub, Mail, Rules, asked_for, names_of
from simulator.wsapi import WsApi

log = logging.getLogger(__name__)

More = Callable[[int], list[KlineTable]]
_POSITION_BYTES = 24


class PositionFile:
    """Where the market stood, so that a killed one goes on there: one number in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1

    def load(self) -> int | None:
        try:
            text = self._path.read_text()
        except FileNotFoundError:
            return None
        if not text.strip().isdecimal():
            raise Failure(f"{self._path} does not hold a market time: remove it to start afresh")
        return int(text)

    def save(self, position_ms: int) -> None:
        if self._fd < 0:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o644)
        os.pwrite(self._fd, str(position_ms).ljust(_POSITION_BYTES - 1).encode() + b"\n", 0)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


_REPEAT_S = 1.0
_MOST_CANDLES, _MOST_MESSAGES = 32, 8_192  # written together


@dataclass(slots=True)
class _Script:
    """What one candle's instants say, to the subscriptions of one version of the hub."""

    close_ms: int
    version: int
    steps: list[tuple[int, Mail]]


@dataclass(kw_only=True)
class Simulator:
    """Everything that runs. venues: SPOT and FUTURES. more: makes later candles (synthetic).

    keys, balances (units): the first account, opened unless the journal knows it. infos: the
    exchangeInfo objects of symbols that do not have the default filters. ahead: candles that
    speed max sends before it waits for their consumers. played_ms: market
    time up to which the journal's orders have met the market; None = the clock's position.
    """

    venues: dict[str, Venue]
    clock: Clock
    account_clock: AccountClock = field(default_factory=AccountClock)
    journal: Journal | None = None
    keys: dict[str, Key] = field(default_factory=lambda: {"demo": Key("demo")})
    balances: dict[str, int] = field(default_factory=dict)
    slippage_bps: float = 0.0
    latency_ms: float = 0.0
    infos: dict[str, dict[str, Any]] = field(default_factory=dict)
    exchange_filters: list[dict[str, Any]] = field(default_factory=list)
    played_ms: int | None = None
    more: More | None = None
    position_file: PositionFile | None = None
    ahead: int = 1
    hub: Hub = field(default_factory=Hub)

    def __post_init__(self) -> None:
        self.faults = Faults()
        market = self.venues[SPOT].market
        self.desk = Desk(
            Board(market),
            [Symbol(self.infos.get(s.symbol) or symbol_info(s)) for s in market.series.values()],
            now=self.now,
            account_ms=self.account_clock.now_ms,
            journal=self.journal,
            slippage_bps=self.slippage_bps,
            latency_ms=self.latency_ms,
            exchange_filters=self.exchange_filters,
        )
        self.desk.start(self.keys, self.balances, self.played_ms or self.clock.position_ms)
        self.rest = Rest(
            venues=self.venues,
            now=self.now,
            faults=self.faults,
            desk=self.desk,
            clock=self.account_clock,
        )
        self.ws_api = WsApi(self.hub, self.rest)
        self.at_end = False
        self._moved = asyncio.Event()
        self._steps_done = 0
        self._next_instant: int | None = None
        self._scripts: deque[_Script] = deque()
        self._followed: tuple[int, list[tuple[Market, list[Series]]]] = (-1, [])
        self._steps_wanted = 0
        self._wake = self.hub.changed

    # market time

    def now(self) -> tuple[int, int]:
        """(market now, last instant played)."""
        position = self.clock.position_ms
        return self.clock.now_ms(wall_ms(), self._next_instant), position

    def _next_close(self, position_ms: int) -> int | None:
        close = self._close_after(position_ms)
        if close is None and self.more is not None:
            tables = self.more(position_ms)
            for venue in self.venues.values():
                venue.extend(tables)
            close = self._close_after(position_ms)
        return close

    def _close_after(self, position_ms: int) -> int | None:
        made = (venue for venue in self.venues.values() if venue.is_made)
        closes = [venue.market.next_close(position_ms) for venue in made]
        return min((close for close in closes if close is not None), default=None)

    def _foresee(self, from_ms: int, to_ms: int) -> None:
        """Have the trade paths of everything that is heard made together."""
        version, followed = self._followed
        if version != self.hub.version:
            heard: dict[str, dict[str, None]] = {}
            for name, topic in self.hub.topics:
                heard.setdefault(name, {})[topic.symbol] = None
            followed = []
            for name, symbols in heard.items():
                market = self.venues[name].market
                followed.append((market, [market.series[s] for s in symbols if s in market.series]))
            self._followed = self.hub.version, followed
        for market, series in followed:
            market.foresee(series, from_ms, to_ms)

    def _scenes(self, name: str, prev_ms: int, instants: list[int]) -> list[Scene]:
        venue = self.venues[name]
        marks = None if venue.funding is None else venue.funding.mark
        return [
            Scene(venue.market, before, now, name == FUTURES, marks)
            for before, now in pairwise([prev_ms, *instants])
        ]

    def _messages(self, prev_ms: int, instants: list[int]) -> list[list[tuple[str, Message]]]:
        """What all streams say at each of these instants, which follow prev_ms; frames ready."""
        self._foresee(prev_ms, instants[-1])
        found: list[list[tuple[str, Message]]] = [[] for _ in instants]
        scenes: dict[str, list[Scene]] = {}
        for name, topic in list(self.hub.topics):
            if name not in scenes:
                scenes[name] = self._scenes(name, prev_ms, instants)
            for step, messages in zip(found, events.messages(topic, scenes[name]), strict=True):
                step += [(name, message) for message in messages]
                self.hub.prepare(name, topic, messages)
        return found

    def _mail(self, prev_ms: int, instants: list[int]) -> list[Mail]:
        """The same as frames for each connection: messages would burden the garbage collector, and
        many klines are made quicker than one by one."""
        self._foresee(prev_ms, instants[-1])
        mails = [Mail() for _ in instants]
        scenes: dict[str, list[Scene]] = {}
        for name, topic in list(self.hub.topics):
            series = self.venues[name].market.series.get(topic.symbol)
            is_first = True
            for form, hearers in self.hub.forms(name, topic).items():
                quick = series and kline_frames(topic, series, prev_ms, instants, *form)
                if quick:
                    self.hub.address_frames(hearers, quick, mails, is_first=is_first)
                    is_first = False
                    continue
                if name not in scenes:
                    scenes[name] = self._scenes(name, prev_ms, instants)
                said = events.messages(topic, scenes[name])
                self.hub.address(hearers, said, mails, is_first=is_first)
                is_first = False
        return mails

    async def play(self) -> None:
        """Move the market, for ever; at the end of the data it stands still."""
        self.clock.start(wall_ms())
        self.desk.move(self.clock.position_ms)
        while True:
            close = self._next_close(self.clock.position_ms)
            if close is None:
                if not self.at_end:
                    log.info("end of the data: the market stands still")
                self.at_end, self._next_instant, self._steps_wanted = True, None, 0
                self._tell_moved()
                await self._woken(_REPEAT_S)
                self._repeat()
                continue
            self.at_end = False
            if self.clock.is_paced:
                for instant in self.clock.instants(self.venues[SPOT].market, close):
                    await self._paced(instant)
                self._steps_wanted = max(0, self._steps_wanted - 1)
                self._arrived()
            else:
                await self._unpaced(close)

    async def _unpaced(self, close: int) -> None:
        """Whole candles at once, `ahead` of them as soon as every consumer has taken those before;
        what the next ones say is made while they read."""
        self._next_instant = self.clock.instants(self.venues[SPOT].market, close)[0]
        wait = await self._may_go()
        played = 0
        following: int | None = close
        while following is not None and played < (self.ahead if wait else 1):
            self._play_candle(following)
            played += 1
            following = self._next_close(following)
        if wait:
            self.hub.ask()
        self.hub.flush()
        if wait:
            await asyncio.sleep(0)  # what was put goes out before more is made
            if not self._scripts and not self.faults.active and following is not None:
                self._write(following, self._in_one_go())
            await self.hub.taken()
        for _ in range(played):
            self._arrived()

    async def _may_go(self) -> bool:
        """Until there is something to play; whether consumers are then waited for."""
        while True:
            if self._steps_wanted:  # by hand: nobody is waited for
                self._steps_wanted -= 1
                return False
            waits = self.clock.speed == MANUAL or self.clock.is_paused
            if not waits and self.hub.consumers():
                return True
            await self._woken()

    def _in_one_go(self) -> int:
        """Candles that are written together: a stream's are near each other in memory. Only klines,
        so that requests do not wait long."""
        if any(topic.kind != "kline" for _, topic in self.hub.topics):
            return 1
        each = max(1, len(self.hub.topics)) * (self.clock.updates + 1)
        return max(1, min(_MOST_CANDLES, _MOST_MESSAGES // each))

    def _play_candle(self, close_ms: int) -> None:
        if self.faults.active:  # each message is looked at when it goes out
            self._scripts.clear()
            instants = self.clock.instants(self.venues[SPOT].market, close_ms)
            told = self._messages(self.clock.position_ms, instants)
            for instant, messages in zip(instants, told, strict=True):
                self.desk.move(instant)
                self._send(messages, instant)
                self.clock.position_ms = instant
        else:
            for instant, mail in self._script_to(close_ms).steps:
                self.desk.move(instant)
                self.hub.post(mail)
                self.clock.position_ms = instant
        self._save(close_ms)

    def _script_to(self, close_ms: int) -> _Script:
        """The next candle's, which closes at close_ms, written now unless it was before."""
        script = self._scripts.popleft() if self._scripts else None
        if script is None or (script.close_ms, script.version) != (close_ms, self.hub.version):
            self._scripts.clear()
            self._write(close_ms, 1)
            script = self._scripts.popleft()
        return script

    def _write(self, close_ms: int, candles: int) -> None:
        """Scripts from where the market stands: of the candle that closes at close_ms and after."""
        closes: list[int] = []
        instants: list[list[int]] = []
        following: int | None = close_ms
        while following is not None and len(closes) < candles:
            closes.append(following)
            instants.append(self.clock.instants(self.venues[SPOT].market, following))
            following = self._next_close(following)
        steps = [instant for candle in instants for instant in candle]
        said = iter(zip(steps, self._mail(self.clock.position_ms, steps), strict=True))
        for close, candle in zip(closes, instants, strict=True):
            self._scripts.append(_Script(close, self.hub.version, list(islice(said, len(candle)))))

    async def _paced(self, instant: int) -> None:
        self._next_instant = instant
        version = self.hub.version
        (messages,) = self._messages(self.clock.position_ms, [instant])
        while True:
            if self.clock.is_paused:
                if self._steps_wanted:
                    break
                await self._woken()
                continue
            wait = self.clock.due_ms(instant) - wall_ms()
            if wait <= 0:
                break
            await self._woken(wait / 1000)
        if self.hub.version != version:
            (messages,) = self._messages(self.clock.position_ms, [instant])
        self.desk.move(instant)
        self._save(instant)
        self.clock.position_ms = instant
        self._send(messages, instant)
        self.hub.flush()
        await asyncio.sleep(0)

    def _repeat(self) -> None:
        """At the end of the data nothing later will ever show that the last candles are closed:
        say it again, for who was not there when they closed."""
        position = self.clock.position_ms
        (messages,) = self._messages(position - 1, [position])
        closing = [(name, message) for name, message in messages if message.closed]
        self._send(closing, position)
        self.hub.flush()

    def _send(self, messages: list[tuple[str, Message]], now_ms: int) -> None:
        if not self.faults.active:
            self.hub.send(messages)
            return
        loop = asyncio.get_running_loop()
        at_once: list[tuple[str, Message]] = []
        for venue, message in messages:
            for ms, shaped in self.faults.shape(venue, message, now_ms, time.monotonic()):
                if ms:
                    loop.call_later(ms / 1000, self._send_late, venue, shaped)
                else:
                    at_once.append((venue, shaped))
        self.hub.send(at_once)

    def _send_late(self, venue: str, message: Message) -> None:
        self.hub.send([(venue, message)])
        self.hub.flush()

    def _save(self, position_ms: int) -> None:
        if self.position_file is not None:
            self.position_file.save(position_ms)

    def _arrived(self) -> None:
        self._steps_done += 1
        self._tell_moved()

    def _tell_moved(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    async def _woken(self, timeout_s: float | None = None) -> None:
        self._wake.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()
        except TimeoutError:
            return

    # commands

    def pause(self) -> None:
        self.clock.pause(wall_ms())
        self._wake.set()

    def resume(self) -> None:
        self.clock.resume(wall_ms())
        self._wake.set()

    async def advance(self, candles: int) -> int:
        """Play up to that many candles (closes of the time line) now; back when they are sent.

        Returns how many there were before the end of the data.
        """
        if self.clock.speed != MANUAL and not self.clock.is_paused:
            raise Usage("advance needs --speed manual or a paused market")
        target = self._steps_done + candles
        self._steps_wanted += candles
        while self._steps_done < target and not self.at_end:
            moved = self._moved
            self._wake.set()
            await moved.wait()
        return candles - max(0, target - self._steps_done)

    def reset(self) -> None:
        """No faults, fresh counters and budgets, default limits."""
        self.faults.remove()
        self.hub.rules = Rules()
        self.hub.forget_attempts()
        self.rest.budgets = {SPOT: Budget(6000), FUTURES: Budget(2400)}
        self.account_clock.skew_ms = 0
        self.desk.terms = Terms(latency_ms=self.latency_ms)
        self.desk.counts.clear()
        self.rest.transcript.counts.clear()
        self.rest.transcript.newest.clear()

    # the server

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 20)
        app.router.add_routes(Control(self).routes())
        app.router.add_route("*", "/api/v3/{tail:.*}", self.rest.api)
        app.router.add_route("*", "/fapi/v1/{tail:.*}", self.rest.fapi)
        app.router.add_route("*", "/sapi/v1/{tail:.*}", self.rest.sapi)
        app.router.add_route("*", "/dapi/v1/{tail:.*}", self.rest.dapi)
        app.router.add_get("/ws-api/v3", self._ws_api)
        for path in ("/ws", "/stream", "/ws/{names:.+}", "/stream/ws/{names:.+}"):
            app.router.add_get(path, self._spot_socket)
        for path in ("ws", "stream", "ws/{names:.+}", "stream/ws/{names:.+}"):
            app.router.add_get("/{route:public|market|private}/" + path, self._futures_socket)
        return app

    async def _ws_api(self, request: web.Request) -> web.StreamResponse:
        if not self.hub.admits(asyncio.get_running_loop().time()):
            return web.Response(status=429, headers={"Retry-After": "300"})
        refusal = self.faults.refuses(SPOT, time.monotonic())
        if refusal is not None:
            return web.Response(status=refusal.status)
        return await self.ws_api.serve(request)

    async def _spot_socket(self, request: web.Request) -> web.StreamResponse:
        return await self._socket(request, SPOT, "")

    async def _futures_socket(self, request: web.Request) -> web.StreamResponse:
        return await self._socket(request, FUTURES, request.match_info["route"])

    async def _socket(self, request: web.Request, venue: str, route: str) -> web.StreamResponse:
        if not self.hub.admits(asyncio.get_running_loop().time()):
            return web.Response(status=429, headers={"Retry-After": "300"})
        refusal = self.faults.refuses(venue, time.monotonic())
        if refusal is not None:
            return web.Response(status=refusal.status)
        raw = request.match_info.get("names")
        combined = raw is None and request.path.endswith("/stream")
        names = names_of(raw) if raw else asked_for(request.rel_url.raw_query_string)
        return await self.hub.serve(
            request, venue=venue, route=route, combined=combined, names=names
        )


class Exchange(Protocol):
    """What the simulator and the mirror have in common once they run."""

    hub: Hub
    desk: Desk
    position_file: PositionFile | None


@contextlib.asynccontextmanager
async def serving(
    simulator: Simulator, host: str, port: int
) -> AsyncIterator[tuple[int, asyncio.Future[Any]]]:
    """The simulator at work on host:port, as `at_work` says.

    Raises:
        Failure: the port cannot be had.
    """
    async with at_work(simulator, simulator.app(), simulator.play, host, port) as given:
        yield given


@contextlib.asynccontextmanager
async def at_work(
    exchange: Exchange,
    app: web.Application,
    play: Callable[[], Coroutine[Any, Any, None]],
    host: str,
    port: int,
) -> AsyncIterator[tuple[int, asyncio.Future[Any]]]:
    """An exchange that serves on host:port (0 = any free one) while `play` moves its market; ends
    with the block.

    Gives the port and its work, which is done only when it died: leave the block then, and its
    error is raised.

    Raises:
        Failure: the port cannot be had.
    """
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port, backlog=1024).start()
        except OSError as error:
            raise Failure(
                f"cannot listen on {host}:{port} ({error.strerror}): is another simulator "
                "running? Choose another --port"
            ) from error
        work = asyncio.gather(play(), exchange.hub.watch())
        try:
            yield runner.addresses[0][1], work
        finally:
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work
    finally:
        exchange.hub.hang_up()
        await runner.cleanup()
        exchange.desk.close()
        if exchange.position_file is not None:
            exchange.position_file.close()
