"""Who may command the bot, and the codes that commands about money need. Pure.

A message counts only from a listed numeric user id, in a private chat or one that gets messages,
not forwarded, younger than OLD_S, and once (FAULTS N2). What moves money the dangerous way needs a
private chat and a code of one use besides, so that neither a wrong tap nor a message that comes
again does anything.
"""

import hmac
import secrets
from collections.abc import Container
from dataclasses import dataclass, field

from notifier.channel import Incoming

OLD_S = 60.0
CODE_S = 60.0
CODED = frozenset(("resume", "flatten"))
PRIVATE = CODED | {"halt", "pause"}


@dataclass(frozen=True, slots=True)
class Command:
    """`/why BTCUSDT-1m-1700000000000` is why with one argument."""

    name: str
    arguments: tuple[str, ...]


def command_of(text: str, bot: str = "") -> Command | None:
    """The command in a text, None where there is none. `/status@my_bot` is status; to another bot
    than ours it is none. bot: our name, "" = not known."""
    words = text.split()
    if not words or not words[0].startswith("/"):
        return None
    name, _, to = words[0][1:].lower().partition("@")
    if to and bot and to != bot.lower():
        return None
    return Command(name, tuple(words[1:8]))


def objection(
    incoming: Incoming,
    command: Command,
    *,
    users: Container[int],
    chats: Container[int],
    now_s: float,
) -> str:
    """Why a command is not followed, "" where it is. now_s: seconds since the epoch.

    users: who may command. chats: those that get messages.
    """
    if incoming.user_id not in users:
        return f"user {incoming.user_id} is not in notifier.users"
    if not incoming.is_private and incoming.chat_id not in chats:
        return f"chat {incoming.chat_id} is none of ours"
    if incoming.is_forwarded:
        return "it was forwarded"
    if incoming.date_s is not None and not -OLD_S < now_s - incoming.date_s <= OLD_S:
        return f"it is {now_s - incoming.date_s:.0f} s old"
    if command.name in PRIVATE and not incoming.is_private:
        return f"/{command.name} works only in a private chat"
    if command.name in PRIVATE and incoming.query_id:
        return f"/{command.name} is typed, not pressed"
    return ""


@dataclass(slots=True)
class Codes:
    """Codes that were given out, per user and command: of one use and one try, for CODE_S."""

    _given: dict[tuple[int, str], tuple[str, float]] = field(default_factory=dict)

    def give(self, user: int, command: str, now_s: float) -> str:
        """A new code; an earlier one is void. now_s: a clock that only goes forward."""
        code = f"{secrets.randbelow(1_000_000):06d}"
        self._given[user, command] = (code, now_s + CODE_S)
        return code

    def take(self, user: int, command: str, code: str, now_s: float) -> bool:
        """Whether the code is the one given; it is void from here on, right or wrong."""
        given, until_s = self._given.pop((user, command), ("", 0.0))
        return bool(given) and now_s <= until_s and hmac.compare_digest(given, code)
