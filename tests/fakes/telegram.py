"""A Telegram Bot API server for tests: strict about what the real one is strict about.

    async with FakeTelegram() as telegram:
        telegram.faults.append(RetryAfter(2))
        ...                                 # the bot talks to telegram.url
        telegram.texts(CHAT)                # what stands in the chat

Texts of errors are the real server's. Every call is kept in `calls`, decoded, with its files.
"""

import asyncio
import json
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

TOKEN = "123456789:AAcanary-0123456789abcdefghijklmnop"
CHAT = 4242
BOT = {"id": 123456789, "is_bot": True, "first_name": "itb", "username": "itb_bot",
       "can_join_groups": True, "can_read_all_group_messages": False,
       "supports_inline_queries": False}  # fmt: skip
_TAGS = frozenset(
    [
        "b",
        "strong",
        "i",
        "em",
        "u",
        "ins",
        "s",
        "strike",
        "del",
        "span",
        "tg-spoiler",
        "a",
        "tg-emoji",
        "code",
        "pre",
        "blockquote",
    ]
)
_ENTITY = re.compile(r"&(lt|gt|amp|quot|#\d+|#x[0-9a-fA-F]+);")
_NAMED = {"lt": "<", "gt": ">", "amp": "&", "quot": '"'}
_RESERVED = frozenset("_*[]()~`>#+-=|{}.!")
_MARKS = {"*": "Bold", "_": "Italic", "~": "Strikethrough", "||": "Spoiler", "__": "Underline"}


class ApiError(Exception):
    """An answer with `ok: false`."""

    def __init__(self, code: int, description: str, **parameters: Any) -> None:
        super().__init__(description)
        self.code = code
        self.description = description
        self.parameters = parameters


# -- faults: each strikes one call ------------------------------------------------------------


@dataclass(frozen=True)
class RetryAfter:
    """429 with `retry_after`; chat: only where the call is about it."""

    seconds: int
    chat: int | None = None


@dataclass(frozen=True)
class Status:
    """An error as JSON: 500, 401, 403 ..."""

    code: int
    description: str = "Internal Server Error"


@dataclass(frozen=True)
class Page:
    """An HTML page instead of Telegram's JSON."""

    code: int = 502


@dataclass(frozen=True)
class Migrated:
    """The group has become the supergroup `to`."""

    to: int


@dataclass(frozen=True)
class Reset:
    """The connection breaks, before or after the message is stored."""

    stored: bool


@dataclass(frozen=True)
class Hang:
    """No answer until `FakeTelegram.released` is set, before or after the message is stored."""

    stored: bool


Fault = RetryAfter | Status | Page | Migrated | Reset | Hang


@dataclass(frozen=True)
class Call:
    method: str
    params: dict[str, Any]
    files: dict[str, tuple[str, bytes]]
    time: float


@dataclass
class Chat:
    id: int
    type: str = "private"
    blocked: bool = False
    messages: dict[int, dict[str, Any]] = field(default_factory=dict)
    last_id: int = 0


class Bucket:
    """At most `size` at once, refilled at `rate` a second."""

    def __init__(self, rate: float, size: float) -> None:
        self.rate, self.size, self.left, self.at = rate, size, size, 0.0

    def wait(self, now: float) -> float:
        """Takes one and returns 0, or says how long there is none."""
        self.left = min(self.size, self.left + (now - self.at) * self.rate)
        self.at = now
        if self.left >= 1:
            self.left -= 1
            return 0.0
        return (1 - self.left) / self.rate


class FakeTelegram:
    """limits: enforce 1 message a second per chat, 20 a minute per group, 30 a second in all.
    clock: seconds, for the limits and the transcript; message dates follow it.
    """

    def __init__(
        self, token: str = TOKEN, *, limits: bool = False, clock: Callable[[], float] | None = None
    ) -> None:
        self.token = token
        self.limits = limits
        self.clock = clock or (lambda: asyncio.get_running_loop().time())
        self.chats = {CHAT: Chat(CHAT)}
        self.calls: list[Call] = []
        self.faults: deque[Fault] = deque()
        self.released = asyncio.Event()
        self.stored = asyncio.Condition()
        self.commands: list[Any] = []
        self.webhook = ""
        self.url = ""
        self._buckets: dict[Any, Bucket] = {}
        self._updates: list[dict[str, Any]] = []
        self._update_id = 1000
        self._new_update = asyncio.Condition()
        self._poller: asyncio.Task[Any] | None = None
        self._queries: dict[str, bool] = {}
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> "FakeTelegram":
        app = web.Application(client_max_size=60 << 20)
        app.router.add_route("*", "/bot{token}/{method}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.released.set()
        assert self._runner is not None
        await self._runner.cleanup()

    # -- what a test does and sees --------------------------------------------------------------

    def texts(self, chat: int = CHAT) -> list[str]:
        return [m.get("text", m.get("caption", "")) for m in self.chats[chat].messages.values()]

    def sends(self) -> list[Call]:
        return [call for call in self.calls if call.method == "sendmessage"]

    async def until(self, count: int, chat: int = CHAT) -> list[str]:
        """Waits until `count` messages stand in the chat."""
        async with self.stored:
            await self.stored.wait_for(
                lambda: chat in self.chats and len(self.chats[chat].messages) >= count
            )
        return self.texts(chat)

    async def until_called(self, count: int, method: str = "sendmessage") -> None:
        async with self.stored:
            await self.stored.wait_for(
                lambda: sum(call.method == method for call in self.calls) >= count
            )

    async def say(self, text: str, *, user: int = CHAT, chat: int = CHAT, **more: Any) -> int:
        """A person writes to the bot; returns the update's id. more: fields of the message."""
        place = self.chats[chat]
        place.last_id += 1
        message = self._message(place, place.last_id) | {"from": _person(user), "text": text} | more
        if text.startswith("/"):
            length = len(text.split(maxsplit=1)[0])
            message["entities"] = [{"type": "bot_command", "offset": 0, "length": length}]
        place.messages[place.last_id] = message
        return await self._update({"message": message})

    async def press(self, data: str, message_id: int, *, user: int = CHAT, chat: int = CHAT) -> str:
        """A person presses a button; returns the callback query's id."""
        query = f"q{len(self._queries)}"
        self._queries[query] = False
        message = self.chats[chat].messages[message_id]
        await self._update(
            {
                "callback_query": {
                    "id": query, "from": _person(user), "chat_instance": "1",
                    "message": message, "data": data,
                }
            }
        )  # fmt: skip
        return query

    async def block(self, chat: int = CHAT, *, blocked: bool = True) -> None:
        """The user blocks the bot, or lets it in again."""
        self.chats[chat].blocked = blocked
        states = ("member", "kicked") if blocked else ("kicked", "member")
        old, new = ({"status": state, "user": BOT} for state in states)
        await self._update(
            {
                "my_chat_member": {
                    "chat": self._message(self.chats[chat], 0)["chat"], "from": _person(chat),
                    "date": self._date(), "old_chat_member": old, "new_chat_member": new,
                }
            }
        )  # fmt: skip

    # -- transport ------------------------------------------------------------------------------

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        method = request.match_info["method"].lower()
        params, files = await _parameters(request)
        self.calls.append(Call(method, params, files, self.clock()))
        async with self.stored:
            self.stored.notify_all()
        try:
            if request.match_info["token"] != self.token:
                raise ApiError(401, "Unauthorized")
            fault = self._fault(params)
            match fault:
                case RetryAfter():
                    seconds = fault.seconds
                    text = f"Too Many Requests: retry after {seconds}"
                    raise ApiError(429, text, retry_after=seconds)
                case Status():
                    raise ApiError(fault.code, fault.description)
                case Page():
                    text = "<html><head><title>Bad Gateway</title></head></html>"
                    return web.Response(status=fault.code, text=text, content_type="text/html")
                case Migrated():
                    self.chats[fault.to] = Chat(fault.to, "supergroup")
                    text = "Bad Request: group chat was upgraded to a supergroup chat"
                    raise ApiError(400, text, migrate_to_chat_id=fault.to)
                case Reset(stored=False):
                    return self._abort(request)
                case Hang(stored=False):
                    await self.released.wait()
            result = await self._call(method, params, files)
            if isinstance(fault, Reset):
                return self._abort(request)
            if isinstance(fault, Hang):
                await self.released.wait()
            return web.json_response({"ok": True, "result": result})
        except ApiError as error:
            body: dict[str, Any] = {
                "ok": False, "error_code": error.code, "description": error.description,
            }  # fmt: skip
            if error.parameters:
                body["parameters"] = error.parameters
            wait = error.parameters.get("retry_after")
            headers = {"Retry-After": str(wait)} if wait else {}
            return web.json_response(body, status=error.code, headers=headers)

    def _fault(self, params: dict[str, Any]) -> Fault | None:
        if not self.faults or "chat_id" not in params:
            return None
        first = self.faults[0]
        if isinstance(first, RetryAfter) and first.chat not in (None, _chat_id(params)):
            return None
        return self.faults.popleft()

    @staticmethod
    def _abort(request: web.Request) -> web.Response:
        if request.transport is not None:
            request.transport.abort()
        return web.Response()

    async def _call(
        self, method: str, params: dict[str, Any], files: dict[str, tuple[str, bytes]]
    ) -> Any:
        match method:
            case "getme":
                return BOT
            case "getupdates":
                return await self._get_updates(params)
            case "setwebhook":
                self.webhook = params.get("url", "")
                return True
            case "deletewebhook":
                self.webhook = ""
                if params.get("drop_pending_updates") in ("true", True):
                    self._updates.clear()
                return True
            case "getwebhookinfo":
                waiting = len(self._updates)
                return {"url": self.webhook, "has_custom_certificate": False,
                        "pending_update_count": waiting}  # fmt: skip
            case "setmycommands":
                self.commands = _json(params["commands"])
                return True
            case "getmycommands":
                return self.commands
            case "answercallbackquery":
                return self._answer(params)
            case "sendchataction":
                self._chat(params)
                return True
            case "getchat":
                return self._message(self._chat(params), 0)["chat"]
            case "sendmessage":
                return await self._send_message(params)
            case "sendphoto" | "senddocument":
                return await self._send_file(method.removeprefix("send"), params, files)
            case "editmessagetext" | "editmessagereplymarkup":
                return self._edit(params)
            case "deletemessage":
                chat = self._chat(params)
                if chat.messages.pop(int(params["message_id"]), None) is None:
                    raise ApiError(400, "Bad Request: message to delete not found")
                return True
        raise ApiError(404, "Not Found: method not found")

    # -- messages -------------------------------------------------------------------------------

    async def _send_message(self, params: dict[str, Any]) -> dict[str, Any]:
        text, entities = _render(params.get("text", ""), params.get("parse_mode", ""))
        if not text.strip():
            raise ApiError(400, "Bad Request: message text is empty")
        if _units(text) > 4096:
            raise ApiError(400, "Bad Request: message is too long")
        content: dict[str, Any] = {"text": text}
        if entities:
            content["entities"] = entities
        return await self._store(params, content)

    async def _send_file(
        self, kind: str, params: dict[str, Any], files: dict[str, tuple[str, bytes]]
    ) -> dict[str, Any]:
        caption, entities = _render(params.get("caption", ""), params.get("parse_mode", ""))
        if _units(caption) > 1024:
            raise ApiError(400, "Bad Request: message caption is too long")
        given = str(params.get(kind, ""))
        name, body = files.get(given.removeprefix("attach://"), files.get(kind, (given, b"")))
        limit = (10 if kind == "photo" else 50) << 20
        if len(body) > limit:
            raise ApiError(413, "Request Entity Too Large")
        file = {"file_id": f"file-{len(self.calls)}", "file_unique_id": f"u{len(self.calls)}",
                "file_size": len(body)}  # fmt: skip
        content: dict[str, Any] = {"caption": caption} if caption else {}
        if entities:
            content["caption_entities"] = entities
        if kind == "photo":
            content["photo"] = [
                file | {"file_id": f"{file['file_id']}-{w}", "width": w, "height": w}
                for w in (90, 320)
            ]
        else:
            content["document"] = file | {"file_name": name}
        return await self._store(params, content)

    async def _store(self, params: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
        chat = self._chat(params)
        self._limit(chat)
        markup = _markup(params)
        reply_to = _json(params.get("reply_parameters", "{}")).get("message_id")
        if reply_to is not None and int(reply_to) not in chat.messages:
            raise ApiError(400, "Bad Request: message to be replied not found")
        chat.last_id += 1
        message = self._message(chat, chat.last_id) | {"from": BOT} | content
        if markup:
            message["reply_markup"] = markup
        chat.messages[chat.last_id] = message
        async with self.stored:
            self.stored.notify_all()
        return message

    def _edit(self, params: dict[str, Any]) -> dict[str, Any]:
        chat = self._chat(params)
        message = chat.messages.get(int(params.get("message_id", 0)))
        if message is None:
            raise ApiError(400, "Bad Request: message to edit not found")
        if message["from"] != BOT:
            raise ApiError(400, "Bad Request: message can't be edited")
        changed = dict(message)
        if "text" in params:
            changed["text"], entities = _render(params["text"], params.get("parse_mode", ""))
            if _units(changed["text"]) > 4096:
                raise ApiError(400, "Bad Request: MESSAGE_TOO_LONG")
            changed |= {"entities": entities} if entities else {}
        changed |= {"reply_markup": m} if (m := _markup(params)) else {}
        if changed == message:
            raise ApiError(
                400,
                "Bad Request: message is not modified: specified new message content and reply "
                "markup are exactly the same as a current content and reply markup of the message",
            )
        changed["edit_date"] = self._date()
        chat.messages[message["message_id"]] = changed
        return changed

    def _answer(self, params: dict[str, Any]) -> bool:
        query = params.get("callback_query_id", "")
        if self._queries.get(query, True):
            raise ApiError(
                400,
                "Bad Request: query is too old and response timeout expired or query ID is invalid",
            )
        self._queries[query] = True
        return True

    def _chat(self, params: dict[str, Any]) -> Chat:
        chat = self.chats.get(_chat_id(params))
        if chat is None:
            raise ApiError(400, "Bad Request: chat not found")
        if chat.blocked:
            raise ApiError(403, "Forbidden: bot was blocked by the user")
        return chat

    def _limit(self, chat: Chat) -> None:
        if not self.limits:
            return
        wanted = [("all", 30.0, 30.0), (chat.id, 1.0, 3.0)]
        if chat.id < 0:
            wanted.append(((chat.id, "minute"), 20 / 60, 20.0))
        for key, rate, size in wanted:
            wait = self._buckets.setdefault(key, Bucket(rate, size)).wait(self.clock())
            if wait > 0:
                seconds = int(wait) + 1
                text = f"Too Many Requests: retry after {seconds}"
                raise ApiError(429, text, retry_after=seconds)

    def _message(self, chat: Chat, message_id: int) -> dict[str, Any]:
        person = {"first_name": "Ada"} if chat.type == "private" else {"title": "Traders"}
        place = {"id": chat.id, "type": chat.type, **person}
        return {"message_id": message_id, "date": self._date(), "chat": place}

    def _date(self) -> int:
        return 1_700_000_000 + int(self.clock())

    # -- updates --------------------------------------------------------------------------------

    async def _update(self, content: dict[str, Any]) -> int:
        self._update_id += 1
        self._updates.append({"update_id": self._update_id, **content})
        async with self._new_update:
            self._new_update.notify_all()
        return self._update_id

    async def _get_updates(self, params: dict[str, Any]) -> list[dict[str, Any]]:
        if self.webhook:
            raise ApiError(
                409,
                "Conflict: can't use getUpdates method while webhook is active; use deleteWebhook "
                "to delete the webhook first",
            )
        offset = int(params.get("offset", 0))
        if offset < 0:
            self._updates = self._updates[offset:]
        else:
            self._updates = [u for u in self._updates if u["update_id"] >= offset]
        limit = min(100, max(1, int(params.get("limit", 100))))
        timeout = min(50.0, float(params.get("timeout", 0)))
        kinds = _json(params.get("allowed_updates", "[]"))

        def waiting() -> list[dict[str, Any]]:
            found = [u for u in self._updates if not kinds or any(k in u for k in kinds)]
            return found[:limit]

        if self._poller is not None and not self._poller.done():
            self._poller.cancel("conflict")
        self._poller = asyncio.ensure_future(self._wait_for(waiting, timeout))
        try:
            return list(await self._poller)
        except asyncio.CancelledError:
            raise ApiError(
                409,
                "Conflict: terminated by other getUpdates request; make sure that only one bot "
                "instance is running",
            ) from None

    async def _wait_for(
        self, waiting: Callable[[], list[dict[str, Any]]], timeout_s: float
    ) -> list[dict[str, Any]]:
        try:
            async with asyncio.timeout(timeout_s), self._new_update:
                await self._new_update.wait_for(lambda: bool(waiting()))
        except TimeoutError:
            pass
        return waiting()


async def _parameters(
    request: web.Request,
) -> tuple[dict[str, Any], dict[str, tuple[str, bytes]]]:
    """Query, form, multipart and JSON alike."""
    params: dict[str, Any] = dict(request.query)
    files: dict[str, tuple[str, bytes]] = {}
    if request.content_type == "application/json":
        params |= await request.json()
    elif request.method == "POST":
        for name, value in (await request.post()).items():
            if isinstance(value, web.FileField):
                files[name] = (value.filename, value.file.read())
            else:
                params[name] = value
    return params, files


def _json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _markup(params: dict[str, Any]) -> Any:
    markup = _json(params.get("reply_markup") or "{}")
    for row in markup.get("inline_keyboard", []):
        for button in row:
            if not 1 <= len(button.get("callback_data", "x").encode()) <= 64:
                raise ApiError(400, "Bad Request: BUTTON_DATA_INVALID")
    return markup


def _chat_id(params: dict[str, Any]) -> int:
    try:
        return int(params.get("chat_id", 0))
    except ValueError:
        return 0


def _person(user: int) -> dict[str, Any]:
    return {"id": user, "is_bot": False, "first_name": "Ada"}


def _units(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


def _render(source: str, mode: str) -> tuple[str, list[dict[str, Any]]]:
    """Text without markup and its entities. Raises: ApiError with the real server's words."""
    match mode.lower():
        case "" | "none":
            return source, []
        case "html":
            return _html(source)
        case "markdownv2":
            return _markdown(source)
        case "markdown":
            return source, []
    raise ApiError(400, "Bad Request: unsupported parse_mode")


def _cannot(problem: str) -> ApiError:
    return ApiError(400, f"Bad Request: can't parse entities: {problem}")


def _html(source: str) -> tuple[str, list[dict[str, Any]]]:
    text, entities = "", []
    open_tags: list[tuple[str, int]] = []
    at = 0
    while at < len(source):
        offset = len(source[:at].encode())
        character = source[at]
        if character == "&" and (found := _ENTITY.match(source, at)):
            name = found[1]
            number = name[1:]
            text += _NAMED.get(name) or chr(
                int(number[1:], 16) if number.startswith("x") else int(number)
            )
            at = found.end()
        elif character != "<":
            text += character
            at += 1
        elif source.startswith("</", at):
            end = source.find(">", at)
            name = source[at + 2 : end].strip().lower() if end >= 0 else ""
            if end < 0 or not open_tags:
                raise _cannot(f"Unexpected end tag at byte offset {offset}")
            opened, start = open_tags.pop()
            if name and name != opened:
                raise _cannot(
                    f'Unmatched end tag at byte offset {offset}, expected "</{opened}>", '
                    f'found "</{name}>"'
                )
            entities.append({"type": opened, "offset": start, "length": _units(text) - start})
            at = end + 1
        else:
            name = re.match(r"[^\s>/]*", source[at + 1 :])[0].lower()  # type: ignore[index]  # always matches
            if name not in _TAGS:
                raise _cannot(f'Unsupported start tag "{name}" at byte offset {offset}')
            end = source.find(">", at)
            if end < 0:
                raise _cannot(f"Unclosed start tag at byte offset {offset}")
            open_tags.append((name, _units(text)))
            at = end + 1
    if open_tags:
        raise _cannot(f'Can\'t find end tag corresponding to start tag "{open_tags[-1][0]}"')
    return text, entities


def _markdown(source: str) -> tuple[str, list[dict[str, Any]]]:
    """MarkdownV2: marks must pair, everything else reserved must be escaped."""
    text, entities = "", []
    marks: list[tuple[str, int, int]] = []
    at = 0
    while at < len(source):
        offset = len(source[:at].encode())
        two, one = source[at : at + 2], source[at]
        if one == "\\" and at + 1 < len(source) and 1 <= ord(source[at + 1]) <= 126:
            text += source[at + 1]
            at += 2
            continue
        mark = two if two in _MARKS else one
        if mark in _MARKS:
            if marks and marks[-1][0] == mark:
                _, start, _ = marks.pop()
                kind = _MARKS[mark].lower()
                entities.append({"type": kind, "offset": start, "length": _units(text) - start})
            else:
                marks.append((mark, _units(text), offset))
            at += len(mark)
        elif one == "`":
            end = source.find("`", at + 1)
            if end < 0:
                raise _cannot(f"Can't find end of Code entity at byte offset {offset}")
            body = source[at + 1 : end]
            entities.append({"type": "code", "offset": _units(text), "length": _units(body)})
            text += body
            at = end + 1
        elif one in _RESERVED:
            raise _cannot(
                f"Character '{one}' is reserved and must be escaped with the preceding '\\'"
            )
        else:
            text += one
            at += 1
    if marks:
        mark, _, offset = marks[-1]
        raise _cannot(f"Can't find end of {_MARKS[mark]} entity at byte offset {offset}")
    return text, entities
