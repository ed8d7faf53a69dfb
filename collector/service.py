"""The collector: candles from the exchange to `kline`, once, in order and without a hole.

Two halves. `Market` lives as long as the process: connections, clock, REST and the candles' cores,
which gather what the exchange says whether or not the bus is there. `serve` lives as long as one
session with the bus: it tells the cores where the streams end, writes what they have ready, and
asks REST what they want to know.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from collector.archive import Archive, add_books, newest_book_ms
from collector.book import depth_values
from collector.candles import Ask, Candles, Origin, Remark, Row, iso_or_number
from collector.clock import MarketClock
from collector.feed import Feed
from collector.lateness import Lateness
from shared.binance import (
    FUTURES,
    PAGE,
    SPOT,
    Attempts,
    Busy,
    Frame,
    KlineUpdate,
    Message,
    Rest,
    Venue,
    Weights,
    kline_stream,
)
from shared.bus import Bus, Divergence, Source, Step, Write, id_ms, id_order, now_us
from shared.config import Settings
from shared.errors import BadInput, Failure, OutOfSync, Rejected, Unavailable, Usage
from shared.events import Depth, Funding, Kline, Level
from shared.klinefiles import depth_folder
from shared.logs import Quiet
from shared.metrics import CANDLES, RECONNECTS, TROUBLES, WEIGHT_LIMIT, WEIGHT_USED
from shared.runtime import Session
from shared.stage import janitor
from shared.streams import (
    DEPTH,
    FEATURE,
    FUNDING,
    FUTURES_KLINE,
    KLINE,
    PREDICTION,
    SIGNAL,
    Stream,
)
from shared.times import iso, steady_us

log = logging.getLogger(__name__)
_TICK_S = 0.25
_BATCH = 4_096  # candles written in one go
_TAIL = 128
_FLUSH_S = (20.0, 300.0)  # to the first flush of the archive; doubled up to this
_HOLD_S = 15.0  # a pong is never held back for longer; the exchange gives up after 60 s
_AT_ONCE = 8  # REST calls under way
_FUNDING_S = 1_800.0
_ARCHIVE_TOLD_S = 3_600.0
_QUIETEST_S = 2.0
_NOTICES = 1_000
_SEED_LOOKBACK = 1_440  # rows, of the seed's features of klines, futures and depth
_DOUBTFUL = 10_000  # beyond that the oldest are left to REST
_LOUD = {"subscribe_refused": Level.ALERT, "rest_refused": Level.ALERT, "busy": Level.WARNING}


@dataclass(slots=True, kw_only=True, eq=False)
class Place:
    """One venue: its REST side, its clock, its connections.

    doubtful: messages that the clock does not believe yet; REST's next answer settles them. At the
    start that is what the streams say before REST has shown where the market is.
    """

    venue: Venue
    rest: Rest
    clock: MarketClock
    feeds: list[Feed] = field(default_factory=list)
    doubtful: deque[tuple[KlineUpdate, Frame]] = field(
        default_factory=lambda: deque(maxlen=_DOUBTFUL)
    )


@dataclass(slots=True, kw_only=True, eq=False)
class Series:
    """One stream of candles on the bus and where they come from."""

    source: Source[Kline]
    place: Place
    candles: Candles
    archive: Archive | None
    closed_ms: int = 0  # open time of the newest candle known to be closed, from the stream


def history_rows(settings: Settings) -> int:
    """Candles to have on the bus at start: twice the longest look-back of any feature.

    Raises:
        Usage: an unknown feature, or a fault in the user's feature file.
    """
    if settings.collector.history_rows is not None:
        return settings.collector.history_rows
    seed = ((), ("seed",), None)
    lists = (settings.features_kline, settings.features_futur, settings.features_depth)
    lookback = _SEED_LOOKBACK
    if settings.features_file is not None or any(names not in seed for names in lists):
        # Costs the import of numba, which the collector does without otherwise.
        from shared.features.configured import configured  # noqa: PLC0415  # as said

        lookback = max(lookback, configured(settings).lookback)
    return max(2 * lookback, settings.signaler.analysis.features_horizon)


def own_part(settings: Settings) -> Settings:
    """The settings of this replica: it listens to its own symbols whether or not the bus is there,
    so it must be told which part is its own.

    Raises:
        Usage: it is not, or nothing falls to it.
    """
    parts = settings.parts_of("collector")
    if parts == 1:
        return settings
    if settings.shard is None:
        raise Usage(f"collector: say which of the {parts} parts this is: set `shard`")
    own = settings.of_part(settings.shard, parts)
    if not own.symbols:
        raise Usage(f"collector: no symbol falls to part {settings.shard} of {parts}: use fewer")
    return own


class Market:
    """Everything that is known of the exchange. Outlives the sessions with the bus."""

    def __init__(self, settings: Settings, http: aiohttp.ClientSession) -> None:
        self.settings = settings
        self.counts: Counter[str] = Counter()
        self.history_rows = history_rows(settings)
        self.told_short: set[str] = set()  # series whose history is told to be short
        self.told_ahead: set[str] = set()  # .. to end in the future
        self.lateness = Lateness()
        self.notices: deque[tuple[Level, str, str]] = deque(maxlen=_NOTICES)
        self.dirty: set[Series] = set()  # may have rows to write
        self.wake = asyncio.Event()  # the writer has something to do
        self.look = asyncio.Event()  # a core may want to ask
        self.turned = asyncio.Event()  # a candle has closed
        # All that was heard is written and, in lock-step, taken.
        self.idle = asyncio.Event()
        self.idle.set()
        self.places = [self._place(SPOT, settings.binance_rest_url, http)]
        if settings.collector.futures:
            self.places.append(self._place(FUTURES, settings.futures_rest_url, http))
        self.series = [
            self._new_series(place, symbol) for place in self.places for symbol in settings.symbols
        ]
        self._by_stream = {
            (s.place.venue.name, kline_stream(s.source.symbol, s.source.interval)): s
            for s in self.series
        }
        self._quiet = Quiet()
        self._archive_quiet = Quiet(_ARCHIVE_TOLD_S)
        attempts = Attempts()
        for place in self.places:
            self._add_feeds(place, http, attempts)

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(cls, settings: Settings) -> AsyncIterator["Market"]:
        """Opens the HTTP session; at the end the archive is flushed."""
        connector = aiohttp.TCPConnector(limit=0, limit_per_host=0)
        async with aiohttp.ClientSession(connector=connector) as http:
            market = cls(settings, http)
            try:
                yield market
            finally:
                for series in market.series:
                    if series.archive is not None:
                        series.archive.tell(series.candles.remarks)
                await market.flush()

    def _place(self, venue: Venue, url: str, http: aiohttp.ClientSession) -> Place:
        settings = self.settings
        limit = 6000 if venue is SPOT else 2400
        weights = Weights(limit=limit, share=settings.collector.weight_budget)
        speed = 0.0 if settings.collector.follow else settings.market_speed
        clock = MarketClock(slack_ms=2 * settings.step_ms + 60_000, speed=speed)
        return Place(venue=venue, rest=Rest(http, url, venue, weights), clock=clock)

    def _new_series(self, place: Place, symbol: str) -> Series:
        settings, futures = self.settings, place.venue is FUTURES
        candles = Candles(
            symbol=symbol,
            interval=settings.interval,
            history_rows=self.history_rows,
            max_price_jump=settings.collector.max_price_jump,
        )
        archive = None
        if settings.collector.archive:
            archive = Archive(settings.data_folder, symbol, settings.interval, futures=futures)
        stream = FUTURES_KLINE if futures else KLINE
        return Series(
            source=Source(stream, symbol, settings.interval),
            place=place,
            candles=candles,
            archive=archive,
        )

    def _add_feeds(self, place: Place, http: aiohttp.ClientSession, attempts: Attempts) -> None:
        settings = self.settings.collector
        names = [kline_stream(s, self.settings.interval) for s in self.settings.symbols]
        # A replay sends at most four updates a second.
        update_s = 1.0 if self.settings.interval == "1s" else place.venue.update_s
        silence_s = settings.silence_factor * update_s / min(self.settings.market_speed, 8.0)
        spot = place.venue is SPOT
        size = settings.streams_per_connection
        for start in range(0, len(names), size):
            place.feeds.append(
                Feed(
                    http,
                    self.settings.binance_ws_url if spot else self.settings.futures_ws_url,
                    place.venue,
                    names[start : start + size],
                    on_message=lambda message, frame: self.on_message(place, message, frame),
                    on_trouble=self.trouble,
                    attempts=attempts,
                    silence_s=max(_QUIETEST_S, silence_s),
                    rotate_s=3600 * settings.rotate_hours,
                    hold=self._until_idle if settings.follow else None,
                )
            )

    # -- listening ------------------------------------------------------------------------------

    async def listen(self) -> None:
        """Connections and the archive, for ever."""
        async with asyncio.TaskGroup() as tasks:
            for place in self.places:
                tasks.create_task(self._learn_limit(place))
                for feed in place.feeds:
                    tasks.create_task(feed.run())
            # Soon at first, so that what the writer needs of memory is needed from the start on.
            pause_s, most_s = _FLUSH_S
            while True:
                await asyncio.sleep(pause_s)
                await self.flush()
                pause_s = min(most_s, 2 * pause_s)

    def on_message(
        self, place: Place, message: Message, frame: Frame, *, again: bool = False
    ) -> None:
        """The critical path: a frame's message to the core of its series.

        again: REST has answered since; what the clock still does not believe is left out.
        """
        if not isinstance(message, KlineUpdate):
            return
        series = self._by_stream.get((place.venue.name, message.stream))
        if series is None:
            self.counts["unknown_stream"] += 1
            return
        clock, candles = place.clock, series.candles
        if not clock.event(message.event_ms, frame.steady_us):
            # At the start nothing is known yet; later it is a leap that REST must confirm.
            if again:
                candles.counts["future"] += 1
                return
            if clock.heard_ms is not None:
                self.trouble("leap", f"a message says that it is {message.event_ms}")
                candles.ask_newest()
            place.doubtful.append((message, frame))
            self.idle.clear()
            self.look.set()
            return
        newest_ms = candles.newest_ms
        candles.update(message, frame.received_us, clock.now_ms(frame.steady_us))
        if message.closed:
            self.idle.clear()
            if candles.is_ready():
                self.dirty.add(series)
                self.wake.set()
            else:
                self.look.set()
        closed_ms = series.closed_ms
        if message.closed and candles.newest_ms == message.kline.open_time_ms:
            closed_ms = candles.newest_ms
        elif candles.newest_ms is not None and candles.newest_ms != newest_ms:
            closed_ms = candles.newest_ms - candles.step_ms
        if closed_ms > series.closed_ms:
            series.closed_ms = closed_ms
            self.turned.set()

    def trouble(self, code: str, text: str) -> None:
        """Something about the exchange that people may want to know; repeats are left out."""
        self.counts[code] += 1
        if self._quiet.allows(code) is not None:
            self.notices.append((_LOUD.get(code, Level.INFO), code, text))

    def waits_for_rest(self) -> bool:
        """Whether something that the streams said cannot be written before REST has answered."""
        return any(place.doubtful for place in self.places) or any(
            series.candles.is_blocked() for series in self.series
        )

    async def _until_idle(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_HOLD_S):
                await self.idle.wait()

    async def _learn_limit(self, place: Place) -> None:
        """The venue's request-weight limit, where it tells us; the documented one otherwise."""
        with contextlib.suppress(Unavailable, Rejected):
            limit = await place.rest.weight_limit(self.settings.symbols[0])
            if limit is not None and limit > 0:
                place.rest.weights.limit = limit

    async def flush(self) -> None:
        """The archive to disk, in a thread."""
        for series in self.series:
            archive = series.archive
            if archive is None:
                continue
            rows, lines = archive.take()
            if not rows and not lines:
                continue
            try:
                await asyncio.to_thread(archive.flush, rows, lines)
            except (Failure, BadInput, OSError) as error:
                archive.give_back(rows, lines)
                self.counts["archive"] += 1
                if self._archive_quiet.allows(series.source.key) is not None:
                    text = f"the archive of {series.source.key} is not written: {error}"
                    self.notices.append((Level.WARNING, "archive", text))

    # -- asking ---------------------------------------------------------------------------------

    def verify_every_s(self) -> float:
        """Pause between two verifications of a series: all together use a quarter of the budget."""
        weights = self.places[0].rest.weights
        per_minute = max(1.0, weights.limit * weights.share / 4)
        return max(10.0, 60 * 2 * len(self.series) / per_minute)

    async def ask(self, series: Series, ask: Ask) -> None:
        """Puts a core's question to REST and hands it the answer."""
        place, candles = series.place, series.candles
        asked_ms = place.clock.now_ms(steady_us())
        try:
            rows = await place.rest.klines(
                series.source.symbol, series.source.interval, start_ms=ask.start_ms, limit=ask.limit
            )
        except Rejected as error:
            candles.no_reply(ask, time.monotonic())
            if len(self.series) == len(self.places) and candles.newest_ms is None:
                raise Failure(
                    f"the exchange has no {series.source.symbol} {series.source.interval} "
                    f"({error}): check `symbols` and `interval`"
                ) from None
            self.trouble("rest_refused", f"{series.source.symbol}: {error}")
            return
        except Unavailable as error:
            candles.no_reply(ask, time.monotonic())
            self.trouble("busy" if isinstance(error, Busy) else "rest", str(error))
            return
        received_us = now_us()
        while rows and not place.clock.candle(rows[-1].open_time_ms, steady_us()):
            self.trouble("leap", f"REST shows a candle of {rows[-1].open_time_ms}")
            rows.pop()
        candles.reply(
            ask,
            rows,
            asked_ms=asked_ms,
            heard_ms=place.clock.heard_ms,
            received_us=received_us,
            at_s=time.monotonic(),
            verify_every_s=self.verify_every_s(),
        )
        if candles.is_ready():
            self.dirty.add(series)
            self.idle.clear()
            self.wake.set()
        for message, frame in [place.doubtful.popleft() for _ in range(len(place.doubtful))]:
            self.on_message(place, message, frame, again=True)
        self.look.set()


# -- a session with the bus --------------------------------------------------------------------


def trimmed(settings: Settings) -> list[Source[Any]]:
    """The streams that the collector writes and keeps short."""
    streams: list[Stream[Any]] = [KLINE]
    if settings.collector.depth:
        streams.append(DEPTH)
    if settings.collector.futures:
        streams += [FUTURES_KLINE, FUNDING]
    return [
        Source(stream, symbol, settings.interval)
        for stream in streams
        for symbol in settings.symbols
    ]


async def serve(market: Market, session: Session) -> None:
    """Writes until the session breaks."""
    for series in market.series:
        tail = await session.bus.tail(series.source, _TAIL)
        last_ms = tail[-1].time_ms if tail else None
        series.candles.rebase(last_ms, [e.event for e in tail if e.event is not None])
        if tail:
            session.health.last_ids[series.source.key] = tail[-1].id
        market.dirty.add(series)
    market.wake.set()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_ask(market))
        tasks.create_task(_keep_house(session, market))
        tasks.create_task(_look_back(session, market))
        own = trimmed(market.settings)
        tasks.create_task(janitor(session, own, least_rows=market.history_rows))
        if market.settings.collector.archive:
            tasks.create_task(_complete_archive(session, market))
        if market.settings.collector.depth:
            tasks.create_task(_snapshots(session, market))
            if market.settings.collector.archive:
                tasks.create_task(_archive_books(session, market))
        if market.settings.collector.futures:
            tasks.create_task(_funding(session, market))
        await _write(session, market)


async def _look_back(session: Session, market: Market) -> None:
    """Tells where a stream begins later than the features want, although the exchange has more:
    ids only grow, so a longer window in the config cannot be filled in before what stands there.
    """
    short: dict[str, int] = {}
    session.health.facts["short_history"] = short
    for series in market.series:
        source, step_ms = series.source, series.candles.step_ms
        oldest = await session.bus.span(source, after=None, count=1)
        if not oldest:
            continue  # it is filled from its beginning now
        while series.candles.newest_ms is None:  # noqa: ASYNC110  # a core has no events
            await asyncio.sleep(_TICK_S)
        first_ms = oldest[0].time_ms
        rows = (series.candles.newest_ms - first_ms) // step_ms
        if rows >= market.history_rows:
            continue
        try:
            older = await series.place.rest.klines(
                source.symbol, source.interval, end_ms=first_ms - 1, limit=1
            )
        except (Unavailable, Rejected) as error:
            market.trouble("rest", f"is there history before {iso(first_ms)}? {error}")
            continue
        if not older:
            continue  # listed then: there is none
        short[source.key] = market.history_rows - rows
        if source.key not in market.told_short:
            market.told_short.add(source.key)
            await session.notice(Level.WARNING, "short_history", _short_text(source, rows, market))


def _short_text(source: Source[Kline], rows: int, market: Market) -> str:
    return (
        f"{source.key} has {rows} candles, the config wants {market.history_rows}: features that "
        "look back further have no value, and there is no score, until enough have come. To fetch "
        f"them now delete the stream while all runs: redis-cli DEL '{source.key}'"
    )


async def _write(session: Session, market: Market) -> None:
    """What is ready goes out in one commit: all candles that closed together.

    In lock-step a series waits until its last candle is taken; the others go on meanwhile, since
    who takes this candle may wait for theirs.
    """
    follow = market.settings.collector.follow
    untaken: dict[Series, str] = {}
    while True:
        await market.wake.wait()
        market.wake.clear()
        session.alive()
        while (batch := _batch(market, follow, untaken)) or untaken:
            writes = [
                Step(input=None, writes=(_kline_write(series, row),))
                for series, rows in batch
                for row in rows
            ]
            diverged = await session.bus.commit(writes)
            _measure(session, batch)
            for series, rows in batch:
                series.candles.written(rows)
                if series.archive is not None:
                    series.archive.add(row.kline for row in rows)
                key = series.source.key
                last_id = session.health.last_ids[key] = f"{rows[-1].kline.open_time_ms}-0"
                if follow:
                    untaken[series] = last_id
            if diverged:
                await _tell_divergence(session, diverged)
            session.alive()
            await _until_taken(session, market, untaken)
        if not (follow and market.waits_for_rest()):
            market.idle.set()


def _measure(session: Session, batch: list[tuple[Series, list[Row]]]) -> None:
    at_us, steady = now_us(), steady_us()
    for series, rows in batch:
        market_ms = series.place.clock.now_ms(steady)
        for row in rows:
            session.metrics.progress(
                series.source,
                row.kline.open_time_ms,
                market_ms=market_ms,
                published_us=at_us,
                received_us=row.received_us,
                at_us=at_us,
            )


def _batch(
    market: Market, lock_step: bool, untaken: Collection[Series]
) -> list[tuple[Series, list[Row]]]:
    """Rows to write now. In lock-step at most one live candle of each series."""
    batch = []
    left = _BATCH
    for series in [series for series in market.dirty if series not in untaken]:
        rows = series.candles.ready(min(PAGE, left))
        if not rows:
            market.dirty.discard(series)
            continue
        if lock_step:
            history = next((i for i, r in enumerate(rows) if r.origin is Origin.STREAM), len(rows))
            rows = rows[: max(1, history)]
        batch.append((series, rows))
        left -= len(rows)
        if left <= 0:
            break
    return batch


def _kline_write(series: Series, row: Row) -> Write[Kline]:
    return Write(
        source=series.source,
        event=row.kline,
        open_time_ms=row.kline.open_time_ms,
        received_us=row.received_us,
        market_ms=series.place.clock.now_ms(steady_us()),
    )


async def _tell_divergence(session: Session, diverged: list[Divergence]) -> None:
    """Somebody else has written here (FAULTS C10)."""
    first = diverged[0]
    what = "is missing although newer ones exist" if first.found is None else "differs"
    text = (
        f"{first.key} {first.id}: what another collector wrote {what} ({len(diverged)} entries); "
        "is there a second one with other sources?"
    )
    await session.notice(Level.ALERT, "diverged", text, open_time_ms=id_ms(first.id))
    if any(d.found is None for d in diverged):
        raise OutOfSync(text)


async def _until_taken(session: Session, market: Market, untaken: dict[Series, str]) -> None:
    """Lock-step: until every consumer has acknowledged what was written, or another series may
    have something to write."""
    pause_s = 0.0005
    while untaken:
        for series, entry_id in list(untaken.items()):
            if await _is_taken(session.bus, series.source, entry_id):
                del untaken[series]
        session.alive()
        if not market.dirty <= untaken.keys():
            return
        if untaken:
            await asyncio.sleep(pause_s)
            pause_s = min(0.02, pause_s * 1.5)


async def _is_taken(bus: Bus, source: Source[Kline], entry_id: str) -> bool:
    wanted = id_order(entry_id)

    async def is_behind(stream: Source[Any]) -> bool:
        positions = (await bus.group_position(stream)).values()
        return any(id_order(delivered) < wanted or pending for delivered, pending in positions)

    symbol, interval = source.symbol, source.interval
    if await is_behind(source):
        return False
    if source.stream is not KLINE:
        return True
    feature: Source[Any] = Source(FEATURE, symbol, interval)
    signal: Source[Any] = Source(SIGNAL, symbol, interval)
    if await bus.group_position(feature):
        # Somebody makes signals of features: wait for this candle's.
        last = await bus.last_id(signal)
        if last is None or id_order(last) < wanted:
            return False
    for stream in (feature, Source(PREDICTION, symbol, interval), signal):
        if await is_behind(stream):
            return False
    return True


async def _ask(market: Market) -> None:
    """Puts the cores' questions to REST, a few at a time."""
    slots = asyncio.Semaphore(_AT_ONCE)

    async def one(series: Series, ask: Ask) -> None:
        async with slots:
            await market.ask(series, ask)

    async with asyncio.TaskGroup() as tasks:
        while True:
            market.look.clear()
            at_us, at_s = steady_us(), time.monotonic()
            for series in market.series:
                ask = series.candles.wants(series.place.clock.now_ms(at_us), at_s)
                if ask is not None:
                    tasks.create_task(one(series, ask))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):
                    await market.look.wait()


async def _keep_house(session: Session, market: Market) -> None:
    """Notices, health, and a pulse for the watchdog."""
    while True:
        for series in market.series:
            remarks, series.candles.remarks = series.candles.remarks, []
            if series.archive is not None:
                series.archive.tell(remarks)
            await _tell(session, series, remarks)
        while market.notices:
            level, code, text = market.notices[0]
            await session.notice(level, code, text)
            market.notices.popleft()
        ahead = _report(session, market)
        if ahead is not None:
            # Nothing is written now that could show that somebody has mended it.
            last = await session.bus.last_id(ahead.source)
            if last is None or id_ms(last) + ahead.candles.step_ms != ahead.candles.next_ms:
                raise OutOfSync(f"{ahead.source.key} was mended")
        market.wake.set()
        await asyncio.sleep(_TICK_S)


async def _tell(session: Session, series: Series, remarks: list[Remark]) -> None:
    most = 20
    writes = [
        session.notice_write(
            remark.level,
            remark.code,
            f"{series.source.key} {iso(remark.open_time_ms)}: {remark.text}",
            series.source.symbol,
            remark.open_time_ms,
        )
        for remark in remarks[:most]
    ]
    if len(remarks) > most:
        text = f"{series.source.key}: {len(remarks) - most} more remarks are in the data ledger"
        writes.append(session.notice_write(Level.WARNING, "ledger", text, series.source.symbol))
    if writes:
        await session.bus.write(*writes)


def _report(session: Session, market: Market) -> Series | None:
    """What the heartbeat tells (FAULTS R10). Returns a series that ends in the future, if any."""
    at_us = steady_us()
    counts: Counter[str] = Counter(market.counts)
    behind, late = 0, ""
    ahead: Series | None = None
    for series in market.series:
        counts.update(series.candles.counts)
        now_ms = series.place.clock.now_ms(at_us)
        if series.candles.ahead(now_ms) >= 2:
            ahead = series
        lag = series.candles.behind(now_ms)
        if lag is None or lag >= 2:
            late = late or series.source.key
        behind = max(behind, lag or 0)
    connections = sum(feed.connections for place in market.places for feed in place.feeds)
    feeds = sum(len(place.feeds) for place in market.places)
    facts: dict[str, object] = {
        "lag": behind,
        "reconnects": max(0, connections - feeds),
        "weight": {place.venue.name: place.rest.weights.total for place in market.places},
    }
    names = ("gaps", "repaired", "late", "repeated", "refused", "future", "revisions", "corrected")
    facts |= {name: counts[name] for name in names}
    session.health.facts.update(facts)
    metrics = session.metrics
    for name in names:
        metrics.set(CANDLES, counts[name], name)
    for name, count in market.counts.items():
        metrics.set(TROUBLES, count, name)
    metrics.set(RECONNECTS, max(0, connections - feeds))
    for place in market.places:
        weights = place.rest.weights
        metrics.set(WEIGHT_USED, weights.used(time.time()), place.venue.name)
        metrics.set(WEIGHT_LIMIT, weights.limit, place.venue.name)
    if ahead is not None:
        key = ahead.source.key
        session.health.not_ready(f"{key} ends in the market's future")
        if key not in market.told_ahead:
            market.told_ahead.add(key)
            market.notices.append((Level.ALERT, "future_entries", _ahead_text(ahead)))
    elif late:
        session.health.not_ready(f"{late} is {behind} candles behind the market")
    else:
        session.health.is_ready()
    market.notices.extend(market.lateness.look(late, behind, time.monotonic()))
    return ahead


def _ahead_text(series: Series) -> str:
    source = series.source
    last_ms = (series.candles.next_ms or 0) - series.candles.step_ms
    derived = [
        f"'{stream.key(source.symbol, source.interval)}'"
        for stream in (FEATURE, PREDICTION, SIGNAL)
    ]
    return (
        f"{source.key} ends with {iso_or_number(last_ms)}, in the market's future: nothing can be "
        "written before that time. To begin again from the exchange's history delete it, and what "
        f"was made of it: redis-cli DEL '{source.key}' {' '.join(derived)}"
    )


async def _complete_archive(session: Session, market: Market) -> None:
    """What an earlier process wrote to the bus and could not archive any more."""
    for series in market.series:
        archive = series.archive
        if archive is None:
            continue
        newest_ms = await asyncio.to_thread(archive.newest_ms)
        after = None if newest_ms is None else f"{newest_ms}-0"
        while page := await session.bus.span(series.source, after=after):
            archive.add(entry.event for entry in page if entry.event is not None)
            after = page[-1].id


async def _archive_books(session: Session, market: Market) -> None:
    """Order-book rows from the bus to disk, for ever. What is not there yet when the process ends
    is still on the bus, and comes with the next start."""
    settings = market.settings
    while True:
        for symbol in settings.symbols:
            source = Source(DEPTH, symbol)
            folder = depth_folder(settings.data_folder, symbol, settings.interval)
            try:
                newest_ms = await asyncio.to_thread(newest_book_ms, folder)
                after = None if newest_ms is None else f"{newest_ms}-0"
                while page := await session.bus.span(source, after=after):
                    after = page[-1].id
                    books = [entry.event for entry in page if entry.event is not None]
                    if books:
                        await asyncio.to_thread(add_books, folder, books)
            except (Failure, BadInput, OSError) as error:
                market.trouble("archive", f"order books are not archived: {error}")
        await asyncio.sleep(_FLUSH_S[1])


async def _snapshots(session: Session, market: Market) -> None:
    """An order book per candle, taken at its close and written under its id: the seed's rows are
    labelled with the start of the interval that the book ends (predecessor.md 8.6).
    """
    place = market.places[0]
    spot = [s for s in market.series if s.place is place]
    settings = market.settings.collector
    done: dict[str, int] = {}
    for series in spot:
        last = await session.bus.last_id(Source(DEPTH, series.source.symbol))
        done[series.source.symbol] = -1 if last is None else id_ms(last)

    async def snapshot(series: Series, open_time_ms: int) -> Write[Depth] | None:
        symbol = series.source.symbol
        try:
            book = await place.rest.depth(symbol, settings.depth_limit)
        except (Unavailable, Rejected) as error:
            market.trouble("depth", f"{symbol}: {error}")
            return None
        if series.closed_ms != open_time_ms:
            market.trouble("depth", f"{symbol}: the book of {iso(open_time_ms)} came too late")
            return None
        event = Depth(
            symbol=symbol,
            interval=series.source.interval,
            open_time_ms=open_time_ms,
            values=depth_values(book, settings.depth_bin),
            last_update_id=book.last_update_id,
        )
        return Write(
            source=Source(DEPTH, symbol),
            event=event,
            open_time_ms=open_time_ms,
            market_ms=place.clock.now_ms(steady_us()),
        )

    while True:
        await market.turned.wait()
        market.turned.clear()
        now_ms = place.clock.now_ms(steady_us())
        due = []
        for series in spot:
            closed_ms, step_ms = series.closed_ms, series.candles.step_ms
            if now_ms is None or closed_ms <= done[series.source.symbol]:
                continue
            done[series.source.symbol] = closed_ms
            if now_ms - (closed_ms + step_ms) <= step_ms // 2:
                due.append(snapshot(series, closed_ms))
        writes = [w for w in await asyncio.gather(*due) if w is not None]
        await session.bus.commit([Step(input=None, writes=(w,)) for w in writes])


async def _funding(session: Session, market: Market) -> None:
    """Funding rates of every future, as far back as the candles go, then every half hour."""
    place = next(p for p in market.places if p.venue is FUTURES)
    futures = [s for s in market.series if s.place is place]
    while True:
        for series in futures:
            now_ms = place.clock.now_ms(steady_us())
            while now_ms is None:
                await asyncio.sleep(_TICK_S)
                now_ms = place.clock.now_ms(steady_us())
            symbol = series.source.symbol
            source = Source(FUNDING, symbol)
            last = await session.bus.last_id(source)
            history_ms = max(10 * 86_400_000, series.candles.history_rows * series.candles.step_ms)
            start_ms = now_ms - history_ms if last is None else id_ms(last) + 60_000
            try:
                rates = await place.rest.funding(symbol, start_ms=start_ms)
            except (Unavailable, Rejected) as error:
                market.trouble("funding", f"{symbol}: {error}")
                continue
            await _write_funding(session, source, rates, now_ms)
        # Each of the market's half hours, however fast it runs.
        await asyncio.sleep(max(5.0, _FUNDING_S / market.settings.market_speed))


async def _write_funding(
    session: Session, source: Source[Funding], rates: Iterable[Funding], now_ms: int
) -> None:
    writes = [
        Write(source=source, event=rate, open_time_ms=rate.open_time_ms, market_ms=now_ms)
        for rate in rates
        if rate.open_time_ms <= now_ms + 60_000
    ]
    await session.bus.commit([Step(input=None, writes=(write,)) for write in writes])
