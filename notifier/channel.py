"""How a message leaves: what every channel does, and the console, the one without a vendor."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from shared.errors import Rejected, Unavailable

TELEGRAM = "telegram"


class Slow(Unavailable):
    """Asked to wait: nothing may be sent for `retry_after_s`."""

    def __init__(self, reason: str, retry_after_s: float) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class Closed(Rejected):
    """The target takes no message any more, this one or another, until a person mends it."""


@dataclass(frozen=True, slots=True)
class Button:
    """Something to press below a message; data comes back with the press, 64 bytes at most."""

    text: str
    data: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What is sent. text: plain, up to 4096 UTF-16 units (1024 below a picture). mono: with a
    typewriter's letters, for columns. picture: a PNG. silent: without a sound."""

    text: str
    bold: bool = False
    mono: bool = False
    silent: bool = False
    picture: bytes | None = None
    buttons: Sequence[Sequence[Button]] = ()


class Conflict(Unavailable):
    """Somebody else reads the same bot's messages: only one of us can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Incoming:
    """Something that a person wrote to the bot or pressed. user_id 0: nobody that we know of.

    query_id: of a button; `text` is then what the button says. date_s: the server's clock, None
    for a button.
    """

    update_id: int
    user_id: int = 0
    chat_id: int = 0
    is_private: bool = False
    text: str = ""
    date_s: float | None = None
    is_forwarded: bool = False
    query_id: str = ""


class Channel(Protocol):
    """Where messages go. name and chat are written into the journal of notifications."""

    @property
    def name(self) -> str: ...

    @property
    def chat(self) -> str: ...

    async def check(self) -> None:
        """Asks whether messages can be sent at all. Raises as `send` does."""

    async def send(self, message: Message) -> int | None:
        """Sends it; returns the message's id where there is one.

        Raises:
            Unavailable: not sent, try again later (Slow: not before ...).
            Unknown: no answer; it may have arrived.
            Rejected: refused for good (Closed: and so will be every other).
        """

    async def close(self) -> None: ...


class Console:
    """Messages are lines on stdout: the product of a notifier without a token."""

    name = "console"
    chat = ""

    async def check(self) -> None:
        return None

    async def send(self, message: Message) -> int | None:
        try:
            # Bytes, because the terminal's own encoding may have no such characters.
            sys.stdout.buffer.write(message.text.encode() + b"\n")
            sys.stdout.buffer.flush()
        except (OSError, ValueError) as error:
            raise Closed(f"stdout is closed: {error}") from None
        return None

    async def close(self) -> None:
        return None
