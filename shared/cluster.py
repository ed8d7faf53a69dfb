"""The nodes of a Redis Cluster behind the interface of one connection (only `shared.bus` asks).

A key lives in a slot, a slot on a node; `{SYMBOL}` in a key puts all of a symbol into one slot. A
command goes to its key's node; commands for several nodes go out together, and their replies come
back in the order of the commands. Nothing is redirected: when slots move or a node is gone, the
session ends and the next one asks for the map again.
"""

import asyncio
import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from redis.crc import key_slot

from shared.errors import Unavailable, Usage
from shared.link import Command, Link, check

_SLOTS = 16_384
# Where a command's key stands; all others have it in second place.
_SECOND_WORD = frozenset(("XGROUP", "XINFO"))


def slot_of(key: str) -> int:
    return int(key_slot(key.encode()))


def key_of(command: Command) -> str | None:
    """The key that a command is about; None for one about the server."""
    name = command[0]
    if name in ("INFO", "CLIENT", "PING", "SCAN", "WAITAOF", "MULTI", "EXEC"):
        return None
    if name in ("XREADGROUP", "XREAD"):
        return str(command[command.index("STREAMS") + 1])
    return str(command[2 if name in _SECOND_WORD else 1])


@dataclass(frozen=True, slots=True)
class SlotMap:
    """Which node has a slot. ends: last slot of each range, ascending; urls: of its node."""

    ends: tuple[int, ...]
    urls: tuple[str, ...]

    @classmethod
    def of(cls, reply: Sequence[Any], url: str) -> "SlotMap":
        """From the reply of CLUSTER SLOTS, asked at `url`.

        Raises:
            Unavailable: not every slot has a node (the cluster forms or has failed).
        """
        ranges = sorted((int(first), int(last), node) for first, last, node, *_ in reply)
        expected = 0
        for first, last, _ in ranges:
            if first != expected:
                break
            expected = last + 1
        if expected != _SLOTS:
            raise Unavailable(f"the Redis cluster has no node for slot {expected}")
        return cls(
            tuple(last for _, last, _ in ranges),
            tuple(_at(url, node[0].decode(), int(node[1])) for _, _, node in ranges),
        )

    def url_of(self, key: str) -> str:
        return self.urls[bisect.bisect_left(self.ends, slot_of(key))]


def _at(url: str, host: str, port: int) -> str:
    """The same address, at another node; a node that does not know its own host is where we are."""
    parts = urlsplit(url)
    if parts.hostname is None:
        raise Usage(f"redis_url: a cluster is reached by host and port, not by {parts.scheme}://")
    host = host or parts.hostname
    user, at, _ = parts.netloc.rpartition("@")
    place = f"[{host}]" if ":" in host else host
    return urlunsplit(parts._replace(netloc=f"{user}{at}{place}:{port}"))


class Cluster:
    """One connection to each master. home: where `service` finds out who else works."""

    def __init__(self, slots: SlotMap, *, name: str, service: str) -> None:
        self._slots = slots
        self._links = {url: Link(url, name=name) for url in dict.fromkeys(slots.urls)}
        self.home = self._links[slots.url_of(service)]

    @property
    def nodes(self) -> list[Link]:
        return list(self._links.values())

    @property
    def is_open(self) -> bool:
        return all(link.is_open for link in self._links.values())

    async def connect(self) -> None:
        for link in self.nodes:
            await link.connect()

    async def close(self) -> None:
        for link in self.nodes:
            await link.close()

    def link_of(self, key: str) -> Link:
        return self._links[self._slots.url_of(key)]

    def url_of(self, key: str) -> str:
        return self._slots.url_of(key)

    async def call(self, *commands: Command, wait_s: float = 0.0) -> list[Any]:
        """As `Link.call`. A transaction (from MULTI to EXEC) is a call of its own, in one slot."""
        if commands and commands[0] == ("MULTI",):
            keys = [key for command in commands if (key := key_of(command)) is not None]
            return await self.link_of(keys[0]).call(*commands, wait_s=wait_s)
        places: dict[Link, list[int]] = {}
        for number, command in enumerate(commands):
            key = key_of(command)
            places.setdefault(self.home if key is None else self.link_of(key), []).append(number)
        calls = [
            link.call(*(commands[n] for n in numbers), wait_s=wait_s)
            for link, numbers in places.items()
        ]
        if len(calls) == 1:
            return await calls[0]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        replies: list[Any] = [None] * len(commands)
        for answer, numbers in zip(answers, places.values(), strict=True):
            if isinstance(answer, BaseException):
                raise answer
            for number, reply in zip(numbers, answer, strict=True):
                replies[number] = reply
        return replies

    async def one(self, *command: str | bytes | int | float, wait_s: float = 0.0) -> Any:
        return check((await self.call(command, wait_s=wait_s))[0])
