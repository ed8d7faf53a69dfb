"""Signals and notices in, messages to people out.

A message is claimed before it is sent: the claim (state `sending`) and the acknowledgement of what
it is about are one step; a second entry tells what became of it. Until it is claimed a message is
only a pending entry on the bus, so what waits here is lost by no crash. A claim without an outcome
means that the notifier ended in between: a score is then left alone, an alert is sent again and
says that it may be a duplicate. To Telegram nothing is sent before the server has its claim on
disk: one that was lost with a power cut would be claimed, and sent, twice.

Two tasks a chat: the intake reads the bus and never waits for Telegram; the delivery sends. Each
chat has a group of its own on the bus, so that one that is slow, blocked or gone holds up no other.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from notifier.bands import last_band
from notifier.bot import Bot
from notifier.channel import TELEGRAM, Channel, Closed, Console, Message, Slow
from notifier.chats import SERVICE, Preferences, Recipient, preferences_key, recipients
from notifier.daily import LATE_MS, day_message, days
from notifier.facts import Facts
from notifier.messages import DUPLICATE, alert_text, clean
from notifier.outbox import Outbox, Pace, Score
from notifier.replies import Replies
from notifier.watch import dead_man, watch, watch_bus
from shared.bus import Bus, Entry, Source, Step, Write, by_key, id_order, now_us
from shared.config import Settings
from shared.errors import OutOfSync, Rejected, Unavailable, Unknown, Usage
from shared.events import Delivery, Level, Notice, Notification, Signal
from shared.logs import Quiet
from shared.market import market_now_ms
from shared.metrics import MESSAGE_TROUBLE, MESSAGES, WAITING
from shared.runtime import Health, Session
from shared.stage import dead_letter_janitor, janitor
from shared.streams import NOTICE, SIGNAL

log = logging.getLogger(__name__)
_NOTICES = Source(NOTICE)
_BATCH = 256
_FULL_MS = 100
_REASON = 300
_LAST_WORD_S = 3.0
_DUPLICATE_PAUSE = 5.0
_MEASURE_S = 5.0


@dataclass(slots=True)
class Line:
    """What outlives a session with the bus: how fast a chat may be written to, whether at all.

    pace: None = as fast as it goes. closed: why nothing can be sent, "" = it can; until again_s,
    of a clock that only goes forward, nothing is tried.
    """

    pace: Pace | None
    closed: str = ""
    again_s: float = 0.0

    @property
    def is_shut(self) -> bool:
        return bool(self.closed) and time.monotonic() < self.again_s


class Notifier:
    """What outlives a session with the bus.

    retry_s: shortest and longest pause before another attempt. answer_s: how long we wait for an
    answer before we take it that none comes. durable_s: how long a claim may take to reach the disk
    before we say so. reopen_s: after how long a chat that did not let us in is tried again, with
    what is to be said then. silent_s: after how long without a heartbeat a service is told to be
    silent. ping_s: pause between two calls of the dead-man address.
    """

    def __init__(
        self,
        *,
        retry_s: tuple[float, float] = (1.0, 60.0),
        answer_s: float = 30.0,
        durable_s: float = 5.0,
        reopen_s: float = 600.0,
        silent_s: float = 30.0,
        ping_s: float = 60.0,
    ) -> None:
        self.retry_s = retry_s
        self.answer_s = answer_s
        self.durable_s = durable_s
        self.reopen_s = reopen_s
        self.silent_s = silent_s
        self.ping_s = ping_s
        self._lines: dict[str, Line] = {}
        self._outboxes: dict[str, Outbox] = {}

    def line(self, settings: Settings, chat: str) -> Line:
        """The line to a chat, the same one for as long as we live."""
        if chat not in self._lines:
            has_token = settings.telegram_bot_token is not None
            pace = Pace(settings.notifier.messages_per_minute) if has_token else None
            self._lines[chat] = Line(pace)
        return self._lines[chat]

    async def serve(self, session: Session) -> None:
        """Every chat works until something breaks."""
        settings = session.settings
        everybody = recipients(settings)
        if settings.telegram_bot_token is not None and not settings.chats():
            raise Usage("telegram_chat_id is missing: whom should the bot write to?")
        await _forget_chats(session, everybody)
        read: list[Source[Any]] = [_NOTICES]
        read += [Source(SIGNAL, symbol, settings.interval) for symbol in settings.symbols]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(janitor(session, trimmed(everybody), least_rows=1))
            tasks.create_task(dead_letter_janitor(session, read))
            tasks.create_task(watch(session, silent_s=self.silent_s))
            tasks.create_task(watch_bus(session))
            tasks.create_task(self._measure(session))
            url = settings.notifier.dead_man_url
            if url is not None:
                healthy = partial(self._is_healthy, session)
                tasks.create_task(dead_man(url.get_secret_value(), healthy, every_s=self.ping_s))
            if settings.telegram_bot_token is not None and settings.notifier.users:
                tasks.create_task(self._listen(session, everybody))
            for recipient in everybody[1:]:
                tasks.create_task(self._further(session, recipient))
            await self._chat(session, everybody[0])

    async def _listen(self, session: Session, everybody: Sequence[Recipient]) -> None:
        """Follows the commands of those who may give any."""
        settings = session.settings

        def load() -> Any:
            from notifier.telegram import Updates  # noqa: PLC0415  # as in `open_channel`

            token = settings.telegram_bot_token
            assert token is not None  # noqa: S101  # asked before
            return Updates(token, base_url=settings.telegram_url, timeout_s=self.answer_s)

        bot = Bot(
            session,
            everybody,
            Replies(Facts(session.bus, settings)).handlers(),
            await asyncio.to_thread(load),
            open_chat=lambda chat: open_channel(settings, chat, self.answer_s),
            pace=lambda chat: self.line(settings, chat).pace,
            retry_s=self.retry_s,
            reopen_s=self.reopen_s,
        )
        await bot.run()

    async def _further(self, session: Session, recipient: Recipient) -> None:
        """A chat with connections and a group of its own."""
        settings = session.settings
        opening = Bus.session(
            settings.bus_url,
            service=recipient.group,
            instance=settings.instance,
            message_bytes=settings.limits.message_bytes,
            alive=session.alive,
        )
        health = Health()
        session.health.facts.setdefault("chats", {})[recipient.chat.chat] = health.facts
        async with opening as bus:
            own = replace(session, bus=bus, health=health)
            await self._chat(own, recipient)

    async def _chat(self, session: Session, recipient: Recipient) -> None:
        """Settles what an earlier life left open, then works until something breaks."""
        settings, bus = session.settings, session.bus
        stored = await bus.get(preferences_key(recipient.chat.chat))
        recipient.preferences = Preferences.from_json(stored)
        signals = by_key(Source(SIGNAL, symbol, settings.interval) for symbol in recipient.symbols)
        await bus.join((*signals.values(), _NOTICES))
        outbox, wake = Outbox(settings.notifier.queue), asyncio.Event()
        self._outboxes[recipient.chat.chat] = outbox
        line = self.line(settings, recipient.chat.chat)
        delivery = _Delivery(session, self, line, recipient, outbox, wake)
        intake = _Intake(session, recipient, outbox, wake, signals)
        for source in signals.values():
            intake.claimed[source.key] = await delivery.settle_score(source)
        intake.alerted = await delivery.settle_alert()
        told_ms = await delivery.settle_day()

        def due(due_ms: int) -> None:
            outbox.days.append(due_ms)
            wake.set()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(delivery.run(), name="delivery")
            tasks.create_task(days(recipient, told_ms, due))
            await intake.run()

    def _is_healthy(self, session: Session) -> bool:
        """Whether an alert that comes now would reach people, in the first chat."""
        return session.health.ready and not self._is_in_trouble(session)

    def _is_in_trouble(self, session: Session) -> bool:
        chat = recipients(session.settings)[0].chat.chat
        closed = self.line(session.settings, chat).closed
        return bool(closed or session.health.facts.get("trouble"))

    async def _measure(self, session: Session) -> None:
        while True:
            session.metrics.set(MESSAGE_TROUBLE, float(self._is_in_trouble(session)))
            session.metrics.set(WAITING, sum(map(len, self._outboxes.values())))
            await asyncio.sleep(_MEASURE_S)


async def _forget_chats(session: Session, everybody: Sequence[Recipient]) -> None:
    """Groups of chats that the config no longer names would keep the streams from being trimmed."""
    settings = session.settings
    read: list[Source[Any]] = [_NOTICES]
    read += [Source(SIGNAL, symbol, settings.interval) for symbol in settings.symbols]
    known = {recipient.group for recipient in everybody}
    for source in read:
        for group in await session.bus.group_position(source):
            if group.startswith(f"{SERVICE}@") and group not in known:
                await session.bus.leave(source, group)


def trimmed(everybody: Sequence[Recipient]) -> list[Source[Any]]:
    """The streams that the notifier keeps short: its own, and the notices that it reads."""
    said = [r.notifications(symbol) for r in everybody for symbol in r.symbols]
    told = [source for r in everybody for source in (r.alerts, r.days)]
    return [*said, *told, _NOTICES]


class _Intake:
    """Reads; acknowledges at once what stays silent; puts the rest into the outbox.

    claimed, alerted: what waits or was claimed up to here is not taken in again, whoever
    delivers it.
    """

    def __init__(
        self,
        session: Session,
        recipient: Recipient,
        outbox: Outbox,
        wake: asyncio.Event,
        signals: dict[str, Source[Signal]],
    ) -> None:
        self._session = session
        self._recipient = recipient
        self._settings = session.settings
        self._bus = session.bus
        self._outbox = outbox
        self._wake = wake
        self._signals = signals
        self.claimed: dict[str, int] = {}
        self.alerted = (0, 0)
        self._bands: dict[str, int] = {}  # of the signal before
        self._counts = dict.fromkeys(("silent", "too_old", "queued", "crowded_out"), 0)

    async def run(self) -> None:
        everything: dict[str, Source[Any]] = {**self._signals, _NOTICES.key: _NOTICES}
        for source in everything.values():
            self._session.alive()
            async for entries in self._bus.retries(await self._bus.own_pending(source)):
                await self._take(entries)
        block_ms = 1  # the first look does not wait, so that a start is ready at once
        while True:
            self._session.alive()
            room = self._outbox.room
            entries = await self._bus.read(
                everything if room else self._signals,  # what finds no room is safe on the bus
                count=max(1, min(_BATCH, room or _BATCH)),
                block_ms=block_ms if room else _FULL_MS,
            )
            await self._take(entries)
            if len(entries) < _BATCH:
                self._session.health.is_ready()
                block_ms = 1_000

    async def _take(self, entries: Sequence[Entry[Any]]) -> None:
        steps: list[Step] = []
        clocks: dict[str, int | None] = {}
        for entry in entries:
            if entry.source.stream is NOTICE:
                steps.extend(await self._notice(entry))
            else:
                steps.extend(await self._signal(entry, clocks))
        await self._bus.commit(steps)
        self._wake.set()
        health = self._session.health
        for entry in entries:
            health.last_ids[entry.source.key] = entry.id
        health.facts |= {"counts": dict(self._counts), "waiting": len(self._outbox)}
        if self._recipient.first:  # the others read the same entries
            self._session.metrics.done(entries)

    async def _signal(self, entry: Entry[Signal], clocks: dict[str, int | None]) -> list[Step]:
        source, signal = entry.source, entry.event
        if signal is None:
            return [self._poison(entry, entry.problem)]
        if (signal.symbol, signal.interval) != (source.symbol, source.interval):
            return [self._poison(entry, f"it is about {signal.symbol}-{signal.interval}")]
        before = await self._band_before(entry)
        self._bands[source.key] = self._recipient.band_of(signal, before)
        message = self._recipient.score_message(signal, before, now_ms=now_us() // 1000)
        if message is None or entry.time_ms <= self.claimed[source.key]:
            self._counts["silent"] += 1
            return [Step(input=entry)]
        if source.key not in clocks:
            clocks[source.key] = await _market_now_ms(self._session, source)
        if not _is_fresh(self._settings, signal, clocks[source.key]):
            self._counts["too_old"] += 1
            return [Step(input=entry)]
        self._counts["queued"] += 1
        self.claimed[source.key] = entry.time_ms
        return self._gone(self._outbox.add_score(Score(entry, message)))

    async def _band_before(self, entry: Entry[Signal]) -> int:
        """Band of the newest valid signal before this one; after a start it is on the bus."""
        given, key = self._settings.notifier.bands, entry.source.key
        if given is None:
            return 0
        if key not in self._bands:
            earlier = await self._bus.tail(entry.source, _BATCH, upto=f"({entry.id}")
            self._bands[key] = last_band([one.event for one in earlier], given)
        return self._bands[key]

    async def _notice(self, entry: Entry[Notice]) -> list[Step]:
        if entry.event is None:
            return [self._poison(entry, entry.problem)]
        if id_order(entry.id) <= self.alerted or self._recipient.loudness_of(entry.event) == "off":
            return [Step(input=entry)]
        return self._gone(self._outbox.add_alert(entry, entry.event))

    def _gone(self, scores: Sequence[Score]) -> list[Step]:
        self._counts["crowded_out"] += len(scores)
        return [Step(input=score.entry) for score in scores]

    def _poison(self, entry: Entry[Any], problem: str) -> Step:
        key = entry.source.key
        text = f"{key} {entry.id}: {problem}; dropped, kept under dead:{key}"
        notice = self._session.notice_write(
            Level.ALERT, "dead_letter", text, entry.source.symbol, entry.time_ms
        )
        return Step(input=entry, writes=[self._bus.dead_letter(entry, problem), notice])


@dataclass(frozen=True, slots=True)
class _Outcome:
    """is_shut: the chat takes no messages now; this one has not arrived, for sure."""

    state: Delivery
    reason: str = ""
    message_id: int | None = None
    is_shut: bool = False


class _Delivery:
    """Claims, sends and records, one message after the other.

    An alert that meets a chat which takes no messages is kept, claimed and without an outcome, and
    sent when the chat takes some again; those behind it wait in the outbox. Should they fill that,
    the oldest are given up.
    """

    def __init__(
        self,
        session: Session,
        notifier: Notifier,
        line: Line,
        recipient: Recipient,
        outbox: Outbox,
        wake: asyncio.Event,
    ) -> None:
        self._session = session
        self._settings = session.settings
        self._bus = session.bus
        self._notifier = notifier
        self._line = line
        self._recipient = recipient
        self._outbox = outbox
        self._wake = wake
        self._unfinished: Entry[Notification] | None = None
        self._kept: tuple[Write[Notification], Message] | None = None
        self._channel: Channel = Console()
        self._stopping = False
        self._held = False  # the newest claim took longer to reach the disk than it should
        self._quiet = Quiet()
        self._counts = {state.value: 0 for state in Delivery if state != Delivery.SENDING}

    # -- what an earlier life left open -------------------------------------------------------

    async def settle_score(self, signals: Source[Signal]) -> int:
        """Time of the newest claim. One without an outcome may have been sent: it stays at that,
        because a late or doubled score is worse than none."""
        source = self._recipient.notifications(signals.symbol)
        newest = await self._bus.tail(source, 1)
        if not newest:
            return -1
        claim = newest[0]
        if claim.event is not None and claim.event.state == Delivery.SENDING:
            outcome = _Outcome(Delivery.UNKNOWN, "the notifier ended while it was sent")
            await self._record(_claim(claim), outcome)
        return claim.time_ms

    async def settle_alert(self) -> tuple[int, int]:
        """Id of the newest notice that a claim covers; one without an outcome is sent again."""
        newest = await self._bus.tail(self._recipient.alerts, 1)
        if not newest:
            return (0, 0)
        claim = newest[0]
        if claim.event is not None and claim.event.state == Delivery.SENDING:
            self._unfinished = claim
        ms, sequence = id_order(claim.id)
        return ms, sequence // 2

    async def settle_day(self) -> int:
        """When the newest day that was claimed was due; one without an outcome stays at that."""
        newest = await self._bus.tail(self._recipient.days, 1)
        if not newest:
            return 0
        claim = newest[0]
        if claim.event is not None and claim.event.state == Delivery.SENDING:
            outcome = _Outcome(Delivery.UNKNOWN, "the notifier ended while it was sent")
            await self._record(_claim(claim), outcome)
        return claim.time_ms

    # -- sending ------------------------------------------------------------------------------

    async def run(self) -> None:
        self._channel = await open_channel(
            self._settings, self._recipient.chat.chat, self._notifier.answer_s
        )
        self._session.health.facts["channel"] = self._channel.name
        try:
            await self._check()
            if self._unfinished is not None:
                claim = _claim(self._unfinished)
                again = Message(text=claim.event.text + DUPLICATE)
                await self._deliver(claim, again, fresh=None)
            while True:
                await self._turn()
                if self._kept is not None and not self._line.is_shut:
                    claim, message = self._kept
                    self._kept = None
                    await self._deliver(claim, message, fresh=None)
                elif self._outbox.alerts and self._kept is None:
                    await self._alerts()
                elif self._outbox.alerts and not self._outbox.room:
                    await self._give_up()
                elif self._outbox.scores:
                    await self._score(self._outbox.scores.popleft())
                elif self._outbox.days:
                    await self._day(self._outbox.days.popleft())
                else:
                    await self._rest()
        finally:
            await self._channel.close()

    async def _rest(self) -> None:
        """Until there is something to send, or a kept alert may be tried again."""
        self._wake.clear()
        wait_s = None
        if self._kept is not None:
            wait_s = max(0.0, self._line.again_s - time.monotonic())
        # not `wait_for`: in Python 3.11 it loses a cancellation that comes with the event
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._wake.wait()

    async def _give_up(self) -> None:
        """The kept alert, for the newer ones that fill the outbox."""
        if self._kept is None:
            return
        (claim, message), self._kept = self._kept, None
        log.warning("an alert was not sent: %s", message.text, extra={"reason": self._line.closed})
        await self._record(claim, _Outcome(Delivery.FAILED, self._line.closed))

    async def _check(self) -> None:
        """A bad token is told at the start, not with the first message."""
        try:
            await self._channel.check()
        except Closed as error:
            await self._close(error)
        except (Unavailable, Unknown, Rejected) as error:
            log.warning("%s", error)

    async def _score(self, score: Score) -> None:
        signal = score.entry.event
        if signal is None or not await self._fresh(score.entry):
            await self._bus.commit([Step(input=score.entry)])
            return
        claim = Write(
            source=self._recipient.notifications(signal.symbol),
            event=Notification(
                signal_id=signal.id,
                symbol=signal.symbol,
                interval=signal.interval,
                open_time_ms=signal.open_time_ms,
                state=Delivery.SENDING,
                channel=self._channel.name,
                chat=self._channel.chat,
                text=score.message.text,
            ),
            open_time_ms=signal.open_time_ms,
            received_us=score.entry.meta.received_us,
        )
        if await self._claimed([Step(input=score.entry, writes=[claim])]):
            await self._deliver(claim, score.message, fresh=lambda: self._fresh(score.entry))

    async def _alerts(self) -> None:
        """All alerts that wait, as far as they fit, are one message."""
        waiting = list(self._outbox.alerts)
        alert = alert_text([notice for _, notice in waiting], now_us() // 1000)
        entries = [entry for entry, _ in waiting[: alert.notices]]
        told = (self._recipient.loudness_of(notice) for _, notice in waiting[: alert.notices])
        message = Message(text=alert.text, silent="loud" not in told)
        ms, sequence = id_order(entries[-1].id)
        claim = Write(
            source=self._recipient.alerts,
            event=Notification(
                signal_id="",
                symbol="",
                interval="",
                open_time_ms=ms,
                state=Delivery.SENDING,
                channel=self._channel.name,
                chat=self._channel.chat,
                text=message.text,
            ),
            open_time_ms=ms,
            sequence=2 * sequence,
        )
        steps = [Step(input=entry) for entry in entries[:-1]]
        claimed = await self._claimed([*steps, Step(input=entries[-1], writes=[claim])])
        for _ in entries:
            self._outbox.alerts.popleft()
        if claimed:
            await self._deliver(claim, message, fresh=None)

    async def _day(self, due_ms: int) -> None:
        """The picture of the day, a message a symbol."""
        facts = Facts(self._bus, self._settings)
        for number, symbol in enumerate(self._recipient.symbols):
            message = await day_message(facts, self._recipient, symbol)
            if message is None:
                continue
            claim = Write(
                source=self._recipient.days,
                event=Notification(
                    signal_id="",
                    symbol=symbol,
                    interval=self._settings.interval,
                    open_time_ms=due_ms,
                    state=Delivery.SENDING,
                    channel=self._channel.name,
                    chat=self._channel.chat,
                    text=message.text,
                ),
                open_time_ms=due_ms,
                sequence=2 * number,
            )
            if await self._claimed([Step(input=None, writes=[claim])]):
                await self._deliver(claim, message, fresh=partial(_is_young, due_ms))

    async def _claimed(self, steps: Sequence[Step]) -> bool:
        """Whether the claim is ours. If not, somebody else told people already."""
        if self._channel.name != TELEGRAM:
            diverged = await self._bus.commit(steps)
        else:
            diverged = await self._bus.commit_durably(steps)
        for found in diverged:
            log.warning("%s %s was claimed before: not sent", found.key, found.id)
        if not diverged and self._channel.name == TELEGRAM:
            await self._until_durable()
        return not diverged

    async def _until_durable(self) -> None:
        """Holds the message until its claim is on the server's disk, however long that takes."""
        self._held = False
        while not await self._bus.is_durable(self._notifier.durable_s):
            if not self._held:
                self._held = True
                reason = (
                    f"Redis has not written a claim to its disk for {self._notifier.durable_s:g} s "
                    "(appendfsync, a full or slow disk?): the message is held until it has"
                )
                log.warning("%s", reason)
                self._session.health.facts["trouble"] = reason
        if self._held:
            log.info("the claim is on disk now")
            self._session.health.facts["trouble"] = ""

    async def _deliver(
        self,
        claim: Write[Notification],
        message: Message,
        *,
        fresh: Callable[[], Awaitable[bool]] | None,
    ) -> None:
        """fresh: whether a score is still worth sending; None = an alert, sent for ever."""
        outcome = await self._attempts(message, fresh)
        if outcome.is_shut and fresh is None:
            self._kept = claim, message
            return
        if outcome.state == Delivery.FAILED and fresh is None:
            log.warning("an alert was not sent: %s", message.text, extra={"reason": outcome.reason})
        await self._record(claim, outcome)
        if self._stopping:
            raise asyncio.CancelledError

    async def _attempts(
        self, message: Message, fresh: Callable[[], Awaitable[bool]] | None
    ) -> _Outcome:
        attempt, reason, shown = 0, "", message
        while True:
            if self._line.is_shut:
                return _Outcome(Delivery.FAILED, self._line.closed, is_shut=True)
            await self._turn()
            if (attempt or self._held) and fresh is not None and not await fresh():
                why = "before its claim was on disk"
                if attempt:
                    why = f"after {attempt} attempts: {reason}"
                return _Outcome(Delivery.FAILED, f"too old {why}")
            attempt += 1
            shortest, longest = self._notifier.retry_s
            pause_s = min(longest, shortest * 2.0 ** min(attempt - 1, 16))
            try:
                message_id = await self._send(shown)
            except Slow as error:
                reason, pause_s = str(error), error.retry_after_s
            except Unavailable as error:
                reason, pause_s = str(error), pause_s * random.uniform(0.75, 1.25)
            except Unknown as error:
                if fresh is not None:
                    return _Outcome(Delivery.UNKNOWN, str(error))
                reason, pause_s = str(error), max(pause_s, _DUPLICATE_PAUSE * shortest)
                if not shown.text.endswith(DUPLICATE):
                    shown = replace(message, text=message.text + DUPLICATE)
            except Closed as error:
                await self._close(error)
                return _Outcome(Delivery.FAILED, str(error), is_shut=True)
            except Rejected as error:
                log.warning("a message was refused: %s", error)
                return _Outcome(Delivery.FAILED, str(error))
            else:
                self._session.health.facts["trouble"] = ""
                await self._open()
                return _Outcome(Delivery.SENT, message_id=message_id)
            self._session.health.facts["trouble"] = reason
            if (held := self._quiet.allows("retry")) is not None:
                log.warning("%s: next attempt in %.1f s", reason, pause_s, extra={"left_out": held})
            if self._stopping:
                return _Outcome(Delivery.SENDING)
            if self._line.pace is not None:
                self._line.pace.block(time.monotonic() + pause_s)

    async def _send(self, message: Message) -> int | None:
        """A SIGTERM while a message is on its way leaves it a moment, so that its outcome is
        known; the task then ends behind the record."""
        if self._line.pace is not None:
            self._line.pace.sent(time.monotonic())
        sending = asyncio.ensure_future(self._channel.send(message))
        try:
            return await asyncio.shield(sending)
        except asyncio.CancelledError:
            await asyncio.wait({sending}, timeout=_LAST_WORD_S)
            if not sending.done():
                sending.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await sending
                raise
            self._stopping = True
            return sending.result()

    async def _turn(self) -> None:
        """Waits until a message may be sent."""
        pace = self._line.pace
        while pace is not None and not self._line.is_shut:
            wait_s = pace.wait_s(time.monotonic())
            if wait_s <= 0:
                return
            await asyncio.sleep(wait_s)

    async def _record(self, claim: Write[Notification], outcome: _Outcome) -> None:
        """Writes what became of a claimed message beside its claim."""
        if outcome.state == Delivery.SENDING:
            return
        event = replace(
            claim.event,
            state=outcome.state,
            reason=clean(outcome.reason, _REASON),
            message_id=outcome.message_id,
            chat=self._channel.chat or claim.event.chat,
        )
        await self._bus.write(replace(claim, event=event, sequence=claim.sequence + 1))
        self._counts[outcome.state] += 1
        self._session.health.facts["outcomes"] = dict(self._counts)
        self._session.metrics.add(MESSAGES, outcome.state)

    async def _close(self, error: Closed) -> None:
        """Nothing can be sent for now: say so where people can still see it, go on reading."""
        is_news = not self._line.closed
        self._line.closed = str(error)
        self._line.again_s = time.monotonic() + self._notifier.reopen_s
        text = (
            f"{error}; scores are lost there, alerts wait and are tried every "
            f"{self._notifier.reopen_s:g} s"
        )
        if is_news:
            await self._session.notice(Level.ALERT, "messages_stopped", text)
        self._session.health.facts["trouble"] = text

    async def _open(self) -> None:
        """A message got through."""
        if self._line.closed:
            self._line.closed = ""
            text = f"messages reach the chat {self._recipient.chat.chat} again"
            await self._session.notice(Level.WARNING, "messages_resumed", text)

    async def _fresh(self, entry: Entry[Signal]) -> bool:
        now_ms = await _market_now_ms(self._session, entry.source)
        return entry.event is not None and _is_fresh(self._settings, entry.event, now_ms)


async def _market_now_ms(session: Session, source: Source[Signal]) -> int | None:
    return await market_now_ms(
        session.bus, source.symbol, source.interval, speed=session.settings.market_speed
    )


def _is_fresh(settings: Settings, signal: Signal, market_now_ms: int | None) -> bool:
    """Neither old, nor from the future, nor without a candle that tells the market's time."""
    if market_now_ms is None:
        return False
    age_ms = market_now_ms - (signal.open_time_ms + settings.step_ms)
    return 0 <= age_ms <= settings.notifier.max_age_s * 1000


async def _is_young(due_ms: int) -> bool:
    return now_us() // 1000 - due_ms < LATE_MS


def _claim(entry: Entry[Notification]) -> Write[Notification]:
    """The write that a claim on the bus was."""
    if entry.event is None:
        raise OutOfSync(f"{entry.source.key} {entry.id} cannot be read: {entry.problem}")
    ms, sequence = id_order(entry.id)
    return Write(source=entry.source, event=entry.event, open_time_ms=ms, sequence=sequence)


async def open_channel(settings: Settings, chat: str, answer_s: float) -> Channel:
    """Telegram with a token, else the console."""
    token = settings.telegram_bot_token
    if token is None or not chat:
        return Console()

    def load() -> Channel:
        from notifier.telegram import Telegram  # noqa: PLC0415  # takes seconds, and only here

        return Telegram(token, chat, base_url=settings.telegram_url, timeout_s=answer_s)

    return await asyncio.to_thread(load)
