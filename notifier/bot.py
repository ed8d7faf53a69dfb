"""The bot's other ear: reads what people write, follows those who may command, answers.

    update -> who is it? (gate) -> command -> facts from the bus -> reply

One update after the other, each once: the offset is on the bus before anything is done, except for
`/halt` and `/pause`, which are rather done twice than not. Nothing of this is on the way of scores
and alerts, and no answer is on the way of a command: a Telegram that is silent or busy only delays
answers.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from notifier.channel import Channel, Closed, Conflict, Incoming, Message, Slow
from notifier.chats import Recipient, updates_key
from notifier.gate import CODED, Codes, Command, command_of, objection
from notifier.messages import clean
from notifier.outbox import Pace
from notifier.words import LANGUAGES, say
from shared.errors import Failure, OutOfSync, Rejected, Unavailable, Unknown
from shared.events import Level
from shared.logs import Quiet
from shared.runtime import Session

log = logging.getLogger(__name__)
_WAIT_S = 25
_RETRY_S = (1.0, 30.0)
_ANSWER_TRIES = 3
_ANSWERS = 100  # that may wait for one chat
_TOLD_S = 3600.0  # people are told of the same trouble once an hour
# After a week without an update Telegram numbers the next one at random, perhaps below the offset,
# and an update below it counts as confirmed: nobody would ever hear of that /halt.
_NUMBERED_S = 6 * 86_400
MENU = (
    "status", "score", "why", "chart", "position", "balance", "profit", "trades", "performance",
    "model", "data", "latency", "health", "mute", "threshold", "pause", "resume", "halt",
    "flatten", "help",
)  # fmt: skip
_TWICE_RATHER = frozenset(("halt", "pause"))

# (arguments, who asks and where) -> the answer
Handler = Callable[["Asked"], Awaitable[Message]]


class Source(Protocol):
    """Where updates come from. bot_name: "" until `start`, or where it is not told."""

    bot_id: int
    bot_name: str

    async def start(self) -> None: ...
    async def next(self, offset: int | None, wait_s: int) -> list[Incoming]: ...
    async def set_commands(
        self, commands: Sequence[tuple[str, str]], language: str | None
    ) -> None: ...
    async def pressed(self, query_id: str) -> None: ...
    async def close(self) -> None: ...


class Asked:
    """A command with its place. recipient: the chat it came from, or the first one."""

    def __init__(
        self, command: Command, recipient: Recipient, user: int, *, is_own_chat: bool
    ) -> None:
        self.name = command.name
        self.arguments = command.arguments
        self.recipient = recipient
        self.user = user
        self.is_own_chat = is_own_chat

    @property
    def language(self) -> str:
        return self.recipient.chat.language

    def say(self, phrase: str, **values: object) -> str:
        return say(phrase, self.language, **values)

    def number(self, default: int, most: int, *, least: int = 1) -> int | None:
        """The one argument as a whole number; None where it is none, or out of range."""
        if not self.arguments:
            return default
        text = self.arguments[0]
        if len(self.arguments) > 1 or not text.isdecimal() or len(text) > 9:
            return None
        return int(text) if least <= int(text) <= most else None


class Bot:
    """Follows commands for as long as a session with the bus lasts.

    handlers: by the command's name. open_chat: a channel into any chat. pace: of a chat. reopen_s:
    pause after a token that was refused.
    """

    def __init__(
        self,
        session: Session,
        everybody: Sequence[Recipient],
        handlers: Mapping[str, Handler],
        source: Source,
        *,
        open_chat: Callable[[str], Awaitable[Channel]],
        pace: Callable[[str], Pace | None],
        retry_s: tuple[float, float] = _RETRY_S,
        reopen_s: float = 600.0,
    ) -> None:
        self._session = session
        self._bus = session.bus
        self._everybody = everybody
        self._users = frozenset(session.settings.notifier.users)
        self._chats = {r.chat.chat: r for r in everybody}
        self._handlers = handlers
        self._source = source
        self._open_chat = open_chat
        self._pace = pace
        self._retry_s = retry_s
        self._reopen_s = reopen_s
        self._codes = Codes()
        self._answers: dict[int, asyncio.Queue[Message]] = {}
        self._senders: dict[int, asyncio.Task[None]] = {}
        self._quiet, self._told = Quiet(), Quiet(_TOLD_S)
        self._counts = {"followed": 0, "ignored": 0}

    async def run(self) -> None:
        """For ever."""
        try:
            await self._source.start()
            await self._offer_commands()
            async with asyncio.TaskGroup() as tasks:
                await self._listen(tasks)
        finally:
            await self._source.close()

    async def _offer_commands(self) -> None:
        for language in LANGUAGES:
            menu = [(name, say(f"help_{name}", language)) for name in MENU]
            await self._source.set_commands(menu, None if language == "en" else language)

    async def _listen(self, tasks: asyncio.TaskGroup) -> None:
        key = updates_key(self._source.bot_id)
        offset, heard_s = _place(await self._bus.get(key), time.time())
        pause_s, is_closed = self._retry_s[0], False
        while True:
            if time.time() - heard_s > _NUMBERED_S:
                offset = None
            try:
                found = await self._source.next(offset, _WAIT_S)
            except Closed as error:
                if not is_closed:
                    text = f"{error}; no command reaches us, also no /halt"
                    await self._session.notice(Level.ALERT, "commands_stopped", text)
                is_closed = True
                await asyncio.sleep(self._reopen_s)
                continue
            except (Unavailable, Unknown, Rejected) as error:
                pause_s = await self._wait(error, pause_s)
                continue
            pause_s, is_closed = self._retry_s[0], False
            for incoming in found:
                if offset is not None and incoming.update_id < offset:
                    continue
                offset, heard_s = incoming.update_id + 1, time.time()
                command = command_of(incoming.text, self._source.bot_name)
                kept = f"{offset} {heard_s:.0f}"
                if command is not None and command.name in _TWICE_RATHER:
                    await self._follow(incoming, command, tasks)
                    await self._bus.put(key, kept)
                else:
                    await self._bus.put(key, kept)
                    await self._follow(incoming, command, tasks)

    async def _wait(self, error: Exception, pause_s: float) -> float:
        if isinstance(error, Conflict) and self._told.allows("conflict") is not None:
            text = f"{error}: commands may not reach us; only one bot with this token may run"
            await self._session.notice(Level.WARNING, "bot_conflict", text)
        elif (held := self._quiet.allows(type(error).__name__)) is not None:
            log.warning("no messages from people: %s", error, extra={"left_out": held})
        await asyncio.sleep(error.retry_after_s if isinstance(error, Slow) else pause_s)
        return min(self._retry_s[1], 2 * pause_s)

    async def _follow(
        self, incoming: Incoming, command: Command | None, tasks: asyncio.TaskGroup
    ) -> None:
        if command is None:
            return
        own = self._chats.get(str(incoming.chat_id))
        why = objection(
            incoming,
            command,
            users=self._users,
            chats={int(chat) for chat in self._chats if chat.lstrip("-").isdigit()},
            now_s=time.time(),
        )
        if why:
            self._counts["ignored"] += 1
            self._session.health.facts["commands"] = dict(self._counts)
            log.warning("a command was ignored: %s", why, extra={"update": incoming.update_id})
            return
        self._counts["followed"] += 1
        self._session.health.facts["commands"] = dict(self._counts)
        log.info("command /%s", command.name, extra={"user": incoming.user_id})
        recipient = own or self._everybody[0]
        asked = Asked(command, recipient, incoming.user_id, is_own_chat=own is not None)
        if incoming.query_id:
            await self._source.pressed(incoming.query_id)
        self._answer(incoming.chat_id, await self._reply(asked), tasks)

    async def _reply(self, asked: Asked) -> Message:
        handler = self._handlers.get(asked.name)
        if handler is None:
            return Message(text=asked.say("unknown_command"))
        if asked.name in CODED:
            refusal = self._code(asked)
            if refusal is not None:
                return refusal
        try:
            return await handler(asked)
        except (Unavailable, OutOfSync):
            raise  # the bus: begin a new session
        except Failure as error:
            return Message(text=asked.say("failed", reason=clean(str(error), 400)))

    def _code(self, asked: Asked) -> Message | None:
        """What a command without its code is answered; None = go on."""
        now_s = time.monotonic()
        if not asked.arguments:
            code = self._codes.give(asked.user, asked.name, now_s)
            text = asked.say("code", command=asked.name, code=code, seconds=60)
            return Message(text=text)
        if not self._codes.take(asked.user, asked.name, asked.arguments[0], now_s):
            return Message(text=asked.say("bad_code"))
        return None

    def _answer(self, chat: int, message: Message, tasks: asyncio.TaskGroup) -> None:
        """Has it sent behind the chat's other answers. Where too many wait the oldest goes."""
        if chat not in self._answers:
            self._answers[chat] = asyncio.Queue(_ANSWERS)
            self._senders[chat] = tasks.create_task(self._send_answers(chat))
        answers = self._answers[chat]
        if answers.full():
            answers.get_nowait()
            log.warning("an answer was not sent: %d more wait", _ANSWERS)
        answers.put_nowait(message)

    async def _send_answers(self, chat: int) -> None:
        channel = await self._open_chat(str(chat))
        try:
            while True:
                await self._send(channel, await self._answers[chat].get(), self._pace(str(chat)))
        finally:
            await channel.close()

    async def _send(self, channel: Channel, message: Message, pace: Pace | None) -> None:
        """Within the chat's pace; what does not get through is only logged."""
        for _ in range(_ANSWER_TRIES):
            if pace is not None:
                await asyncio.sleep(pace.wait_s(time.monotonic()))
                pace.sent(time.monotonic())
            try:
                await channel.send(message)
                return
            except Slow as error:
                if pace is not None:
                    pace.block(time.monotonic() + error.retry_after_s)
                problem: Exception = error
            except Unavailable as error:
                problem = error
                await asyncio.sleep(self._retry_s[0])
            except (Unknown, Rejected) as error:
                problem = error
                break
        log.warning("an answer was not sent: %s", problem)


def _place(kept: bytes | None, now_s: float) -> tuple[int | None, float]:
    """(offset, when the update before it came), as they were kept; an earlier version kept the
    offset alone. An offset of None begins with whatever Telegram still has."""
    number, _, at = (kept or b"").decode().partition(" ")
    return int(number) if number.isdigit() else None, float(at) if at.isdigit() else now_s
