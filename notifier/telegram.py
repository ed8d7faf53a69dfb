"""Telegram as a channel, over aiogram: what an answer, or none, means for a message.

aiogram takes seconds to import and 130 MB: only a notifier with a token loads this module.

The token stands in every URL and so in many errors of the HTTP client. No such error leaves this
file: each becomes one of ours, with a text that was redacted, outside of its `except`.
"""

import html
import logging
from collections.abc import Awaitable, Sequence
from typing import Any

from aiogram import Bot
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer
from aiogram.exceptions import (
    AiogramError,
    ClientDecodeError,
    TelegramAPIError,
    TelegramBadRequest,
    TelegramConflictError,
    TelegramEntityTooLarge,
    TelegramForbiddenError,
    TelegramMigrateToChat,
    TelegramNetworkError,
    TelegramNotFound,
    TelegramRetryAfter,
    TelegramServerError,
    TelegramUnauthorizedError,
)
from aiogram.methods import Response, TelegramMethod
from aiogram.types import (
    BotCommand,
    BufferedInputFile,
    InlineKeyboardButton,
    InlineKeyboardMarkup,
    LinkPreviewOptions,
    Update,
)
from aiogram.utils.token import TokenValidationError
from aiohttp import ClientConnectorError, ClientTimeout, ConnectionTimeoutError, InvalidURL
from pydantic import SecretStr, ValidationError

from notifier.channel import TELEGRAM, Closed, Conflict, Incoming, Message, Slow
from shared.errors import Rejected, Unavailable, Unknown, Usage
from shared.logs import Redactor

log = logging.getLogger(__name__)
_CONNECT_S = 10.0
_SLOW_S = 30.0
_POLL_SLACK_S = 10
_NO_LINKS = LinkPreviewOptions(is_disabled=True)


class _NoAnswer(AiogramError):
    """Something answered, but not Telegram: a proxy's page, half a reply."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status} without Telegram's JSON")
        self.status = status


class _Session(AiohttpSession):
    """A connection per message: an idle one that the server closed looks like a lost reply."""

    def __init__(self, base_url: str, timeout_s: float) -> None:
        super().__init__(api=TelegramAPIServer.from_base(base_url))
        self._connector_init["force_close"] = True
        # aiohttp gets this as it is; aiogram declares seconds.
        self.timeout = ClientTimeout(total=timeout_s, connect=_CONNECT_S)  # type: ignore[assignment]  # see above

    async def close(self) -> None:
        """Without aiogram's pause: no connection outlives its message here."""
        if self._session is not None:
            await self._session.close()

    def check_response(
        self, bot: Bot, method: TelegramMethod[Any], status_code: int, content: str
    ) -> Response[Any]:
        """As aiogram's, but the status survives where the body is not Telegram's."""
        try:
            return super().check_response(bot, method, status_code, content)
        except ClientDecodeError as error:
            reply = error.data
        # A message of a kind that aiogram does not know yet was sent all the same.
        if isinstance(reply, dict) and reply.get("ok") is True and status_code < 300:
            return Response[Any].model_construct(ok=True, result=reply.get("result"))
        raise _NoAnswer(status_code)


class _Api:
    """A bot over the wire, with its errors as ours."""

    def __init__(self, token: SecretStr, *, base_url: str, timeout_s: float) -> None:
        self.chat = ""
        self._redact = Redactor([token.get_secret_value()])
        session = _Session(base_url, timeout_s)
        try:
            bot = Bot(token.get_secret_value(), session=session)
        except TokenValidationError:
            bot = None
        if bot is None:
            raise Usage("telegram_bot_token: not a bot token (<digits>:<letters>, from @BotFather)")
        self._bot = bot

    async def close(self) -> None:
        await self._bot.session.close()

    def _meaning(self, error: BaseException) -> Exception:
        """One of our errors, without the token, for one of aiogram's or the HTTP client's."""
        if isinstance(error, _NoAnswer):
            # A gateway that timed out, or an OK that we cannot read: it may have been sent.
            unknown = error.status == 504 or error.status < 300
            return Unknown(str(error)) if unknown else Unavailable(str(error))
        if not isinstance(error, TelegramAPIError):
            return Unknown(f"Telegram: {type(error).__name__}")
        reason = self._redact(f"Telegram: {' '.join(error.message.split())}")
        match error:
            case TelegramRetryAfter():
                return Slow(f"Telegram asks for {error.retry_after} s", float(error.retry_after))
            case TelegramEntityTooLarge():
                return Rejected(reason)
            case TelegramNetworkError():
                return self._network(error)
            case TelegramServerError():
                return Unavailable(reason)
            case TelegramUnauthorizedError() | TelegramNotFound():
                return Closed(f"{reason}; check telegram_bot_token")
            case TelegramForbiddenError():
                return Closed(f"{reason}; let the bot into the chat {self.chat} again")
            case TelegramBadRequest() if "chat not found" in error.message:
                return Closed(f"{reason}; check telegram_chat_id, and write to the bot once")
            case _ if error.message.startswith("Too Many Requests"):
                return Slow(reason, _SLOW_S)
            case _:
                return Rejected(reason)

    def _network(self, error: TelegramNetworkError) -> Exception:
        cause = error.__cause__
        kind = type(cause).__name__
        if isinstance(cause, InvalidURL):
            return Closed("Telegram: telegram_url is not a URL")
        if isinstance(cause, ClientConnectorError | ConnectionTimeoutError):
            return Unavailable(f"Telegram is not reachable: {kind}")
        return Unknown(f"Telegram did not answer: {kind}")


class Telegram(_Api):
    """One bot and one chat."""

    name = TELEGRAM

    def __init__(
        self, token: SecretStr, chat: str, *, base_url: str, timeout_s: float = 30.0
    ) -> None:
        super().__init__(token, base_url=base_url, timeout_s=timeout_s)
        self.chat = chat

    async def check(self) -> None:
        """Is the token good? Raises as `send`."""
        try:
            await self._bot.get_me()
            return
        except (AiogramError, TimeoutError, OSError) as error:
            failure = self._meaning(error)
        raise failure

    async def send(self, message: Message) -> int | None:
        """Sends it; follows a chat that moved; where the markup is refused sends it bare."""
        marked = True
        for _attempt in range(3):
            try:
                return _message_id(await self._post(message, marked=marked))
            except TelegramMigrateToChat as error:
                self.chat = str(error.migrate_to_chat_id)
                log.warning("the chat moved: it is %s now; write that into the config", self.chat)
            except TelegramBadRequest as error:
                if "can't parse entities" not in error.message or not marked:
                    failure = self._meaning(error)
                    break
                marked = False
            except (AiogramError, TimeoutError, OSError) as error:
                failure = self._meaning(error)
                break
        else:
            failure = Rejected("Telegram: the chat moves on and on")
        raise failure

    async def _post(self, message: Message, *, marked: bool) -> Any:
        body, mode = message.text, ""
        if marked:
            body, mode = html.escape(body, quote=False), "HTML"
            if message.bold:
                body = f"<b>{body}</b>"
            if message.mono:
                body = f"<pre>{body}</pre>"
        quiet = message.silent or None
        keyboard = None
        if message.buttons:
            rows = [
                [InlineKeyboardButton(text=b.text, callback_data=b.data) for b in row]
                for row in message.buttons
            ]
            keyboard = InlineKeyboardMarkup(inline_keyboard=rows)
        if message.picture is not None:
            return await self._bot.send_photo(
                self.chat,
                BufferedInputFile(message.picture, "chart.png"),
                caption=body,
                parse_mode=mode,
                disable_notification=quiet,
                reply_markup=keyboard,
            )
        return await self._bot.send_message(
            self.chat,
            body,
            parse_mode=mode,
            link_preview_options=_NO_LINKS,
            disable_notification=quiet,
            reply_markup=keyboard,
        )


class Updates(_Api):
    """What people write to the bot. Raises, `next`: as `Telegram.send`, and Conflict."""

    def __init__(self, token: SecretStr, *, base_url: str, timeout_s: float = 30.0) -> None:
        super().__init__(token, base_url=base_url, timeout_s=timeout_s)
        self.bot_id = self._bot.id
        self.bot_name = ""

    async def next(self, offset: int | None, wait_s: int) -> list[Incoming]:
        """Updates from `offset` on, oldest first; [] after `wait_s` without one."""
        try:
            found = await self._bot.get_updates(
                offset=offset,
                timeout=wait_s,
                allowed_updates=["message", "callback_query"],
                request_timeout=wait_s + _POLL_SLACK_S,
            )
            return [_incoming(update) for update in found]
        except TelegramConflictError:
            failure: Exception = Conflict("another program reads this bot's messages")
        except (AiogramError, TimeoutError, OSError) as error:
            failure = self._meaning(error)
        raise failure

    async def start(self) -> None:
        """A webhook that somebody has set would keep all messages from us."""
        await self._quietly(self._bot.delete_webhook(drop_pending_updates=False))
        await self._quietly(self._learn_name())

    async def _learn_name(self) -> None:
        self.bot_name = (await self._bot.get_me()).username or ""

    async def set_commands(self, commands: Sequence[tuple[str, str]], language: str | None) -> None:
        """The bot's own menu. language: two letters, None = everybody else's."""
        menu = [BotCommand(command=name, description=text) for name, text in commands]
        await self._quietly(self._bot.set_my_commands(menu, language_code=language))

    async def pressed(self, query_id: str) -> None:
        """Ends the spinner on a button."""
        await self._quietly(self._bot.answer_callback_query(query_id))

    async def _quietly(self, call: Awaitable[Any]) -> None:
        """Nice to have: a failure is only logged."""
        try:
            await call
        except (AiogramError, TimeoutError, OSError) as error:
            log.info("%s", self._meaning(error))


def _incoming(update: Any) -> Incoming:
    """What we need of an update. Where aiogram does not know the kind of one of them it gives all
    that came together as dicts: the others are read by themselves, and that one is nothing."""
    if isinstance(update, dict):
        try:
            update = Update.model_validate(update)
        except ValidationError:
            return Incoming(update_id=int(update["update_id"]))
    query, message = update.callback_query, update.message
    if query is not None:
        place = query.message
        return Incoming(
            update_id=update.update_id,
            user_id=query.from_user.id,
            chat_id=place.chat.id if place is not None else 0,
            is_private=place is not None and place.chat.type == "private",
            text=query.data or "",
            query_id=query.id,
        )
    if message is None:
        return Incoming(update_id=update.update_id)
    return Incoming(
        update_id=update.update_id,
        user_id=message.from_user.id if message.from_user is not None else 0,
        chat_id=message.chat.id,
        is_private=message.chat.type == "private",
        text=message.text or "",
        date_s=message.date.timestamp(),
        # Since Bot API 7.0 the first; older servers tell the others.
        is_forwarded=message.forward_origin is not None
        or message.forward_date is not None
        or message.forward_from is not None
        or message.forward_from_chat is not None
        or message.forward_sender_name is not None,
    )


def _message_id(message: Any) -> int | None:
    if isinstance(message, dict):
        found = message.get("message_id")
    else:
        found = getattr(message, "message_id", None)
    return found if isinstance(found, int) else None
