"""The bus: what this system may do with Redis Streams, and the only file that knows how.

* Ids are event time (`<open_time_ms>-0`): the server refuses a repeat and keeps the order.
* A batch of steps is one transaction, `MULTI {XADD out <same id> ...; XACK in} EXEC`: it is done
  whole or not at all, so an output never runs ahead of, or behind, its acknowledgement.
* On a cluster a symbol is one slot. A batch is then one transaction per slot; what a step writes
  elsewhere (a notice) is written before: after a crash in between it may be told twice.
* Nothing here is retried. An error ends the session; its owner opens a new one and rebuilds.
* What ends the process that does it is found by `Bus.retries`: the server's delivery count of a
  pending entry is one (it was delivered) and one for each process since that began it and was not
  heard of again.
"""

import asyncio
import contextlib
import itertools
import re
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from shared import codec
from shared.candles import depth_problem_of, gap_problem_of, problem_of
from shared.cluster import Cluster, SlotMap, slot_of
from shared.errors import BadInput, Failure, OutOfSync, Unavailable
from shared.events import DeadLetter, Depth, Kline, Meta
from shared.link import Command, Link, check, error_code
from shared.streams import Stream, dead_letters
from shared.times import INTERVALS_MS

E = TypeVar("E")
BLOCK_MS = 1_000
MAX_DELIVERIES = 5
_PAGE = 2_000
_BATCH = 256
_STEPS = 128
_RETRIED = 64  # entries that are begun together while none of them is suspected
_STAND_BY_S = 0.25
_LOOK_S = 0.05
_PART = re.compile(r"-(\d+)of(\d+)$")
_PROCESS = secrets.token_hex(4)
# What this process has begun again and not finished, because its session ended: it is alive, so
# that was not the entry's doing. (process, consumer and stream, entry id)
_BEGUN: set[tuple[str, str, str]] = set()


def now_us() -> int:
    """Our own clock, microseconds since the epoch."""
    return time.time_ns() // 1_000


@dataclass(frozen=True, slots=True)
class Source(Generic[E]):
    """One stream of one symbol: where entries come from or go to."""

    stream: Stream[E]
    symbol: str = ""
    interval: str = ""

    @property
    def key(self) -> str:
        return self.stream.key(self.symbol, self.interval)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry(Generic[E]):
    """What stands on a stream. event is None where it cannot be read: `problem` says why.

    deliveries: where `own_pending` gave it, the server's count; 0 otherwise.
    """

    source: Source[E]
    id: str
    event: E | None
    meta: Meta
    problem: str = ""
    fields: Mapping[str, bytes] = field(default_factory=dict)
    deliveries: int = 0

    @property
    def time_ms(self) -> int:
        """Event time of the id."""
        return id_ms(self.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Write(Generic[E]):
    """An entry to add. sequence: second part of an event-time id."""

    source: Source[E]
    event: E
    open_time_ms: int | None = None
    sequence: int = 0
    received_us: int = 0
    market_ms: int | None = None

    @property
    def id(self) -> str:
        return "*" if self.open_time_ms is None else f"{self.open_time_ms}-{self.sequence}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """An input entry and what it leads to; None = a write that no input caused."""

    input: Entry[Any] | None
    writes: Sequence[Write[Any]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """A write that found its place taken by something else, or passed by (`found` is None)."""

    key: str
    id: str
    found: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStanding:
    """How far a group has come on a stream. unread: None where the server cannot tell."""

    delivered: str
    pending: int
    unread: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What a stream looks like from outside. last_id: None for an empty or missing one."""

    length: int
    last_id: str | None
    groups: Mapping[str, GroupStanding]


def part_name(service: str, part: int, parts: int) -> str:
    """Instance name of the process that does part `part` of `parts` of a service's work."""
    return f"{service}-{part}of{parts}"


def _in_the_way(other: str, own: str) -> bool:
    """Whether an instance works on symbols of ours: it has our name, or the work was divided into
    another number of parts."""
    parts = [int(found[2]) if (found := _PART.search(name)) else 1 for name in (other, own)]
    return other == own or parts[0] != parts[1]


def id_ms(entry_id: str) -> int:
    return int(entry_id.split("-", 1)[0])


def id_order(entry_id: str) -> tuple[int, int]:
    """Sort key of an entry id."""
    ms, _, sequence = entry_id.partition("-")
    return int(ms), int(sequence or 0)


class Bus:
    """One session with the server, for one consumer.

    `async with Bus.session(...)` connects, checks the server and waits until no other live
    process uses the same instance name. Every method may raise Unavailable (no answer: open a new
    session), OutOfSync (rebuild in a new session) or Failure (a person must help).
    """

    def __init__(self, url: str, *, service: str, instance: str, message_bytes: int) -> None:
        self.service = service
        self.instance = instance
        self.message_bytes = message_bytes
        self._alone = False
        self._url = url
        self._name = f"itb:{service}:{instance}:{_PROCESS}"
        self._link: Link | Cluster = Link(url, name=self._name)
        self._blocking = Link(url, name=self._name)
        self._durable: Link | Cluster = Link(url, name=self._name)
        self._durable_keys: frozenset[str] = frozenset()  # that the last durable commit wrote to
        # On a cluster: a connection per stream, and the read that waits on it.
        self._readers: dict[str, Link] = {}
        self._reads: dict[str, asyncio.Task[Any]] = {}
        self._server_ids: list[str] = []
        self._known: set[str] = set()  # data streams that were there: not to be made anew

    @classmethod
    @contextlib.asynccontextmanager
    async def session(
        cls,
        url: str,
        *,
        service: str,
        instance: str | None = None,
        message_bytes: int = 1 << 20,
        exclusive: bool = True,
        alive: Callable[[], None] | None = None,
        parts: int = 1,
        part: int | None = None,
        alone: bool = False,
    ) -> AsyncIterator["Bus"]:
        """Opens, yields and closes. exclusive: wait while another process has our name; `alive` is
        called as long as that takes.

        alone: wait while any process of this service is there, whatever its name.
        parts: how many processes share the service's work; each has a part, `part` or the first
        that is free, and is named after it.
        """
        names = [instance or service]
        if parts > 1:
            wanted = range(parts) if part is None else [part]
            names = [part_name(service, number, parts) for number in wanted]
        while True:
            for name in names:
                bus = cls(url, service=service, instance=name, message_bytes=message_bytes)
                bus._alone = alone
                try:
                    await bus._connect()
                    if exclusive and len(names) == 1:
                        await bus._stand_by(alive)
                    if len(names) == 1 or await bus._is_free_for_long():
                        yield bus
                        return
                finally:
                    await bus._close()
            if alive is not None:
                alive()
            await asyncio.sleep(_STAND_BY_S)

    # -- the server ---------------------------------------------------------------------------

    async def _connect(self) -> None:
        await self._link.connect()
        info = _info(await self._link.one("INFO", "server"))
        if "cluster" in (info.get("server_mode"), info.get("redis_mode")):  # Valkey, Redis
            assert isinstance(self._link, Link)  # noqa: S101  # not asked before
            slots = SlotMap.of(await self._link.one("CLUSTER", "SLOTS"), self._url)
            await self._link.close()
            self._link = Cluster(slots, name=self._name, service=self.service)
            self._durable = Cluster(slots, name=self._name, service=self.service)
            await self._link.connect()
        else:
            await self._blocking.connect()
        for node in self._link.nodes:
            await self._check_server(node)

    async def _close(self) -> None:
        for task in self._reads.values():
            task.cancel()
        await asyncio.gather(*self._reads.values(), return_exceptions=True)
        self._reads.clear()
        for link in (self._link, self._blocking, self._durable, *self._readers.values()):
            await link.close()

    @property
    def part(self) -> int:
        """Which part of the service's work is ours, from 0."""
        found = _PART.search(self.instance)
        return int(found[1]) if found else 0

    @property
    def connections(self) -> int:
        """How many are open: on a cluster one per node and one per stream that is read."""
        own = [*self._link.nodes, *self._durable.nodes, self._blocking, *self._readers.values()]
        return sum(link.is_open for link in own)

    def must_exist(self, source: Source[Any]) -> None:
        """The stream was there: if it is gone at the next write (OutOfSync), none is begun anew."""
        self._known.add(source.key)

    @property
    def server_id(self) -> str:
        """Of the server's (on a cluster: all masters') present life. One that starts again, and may
        have lost its last second, has another."""
        return " ".join(sorted(self._server_ids))

    async def _check_server(self, node: Link) -> None:
        info = _info(await node.one("INFO", "server"))
        self._server_ids.append(info.get("run_id", ""))
        valkey = info.get("valkey_version")
        version = _version(valkey or info.get("redis_version", "0"))
        if version < ((9, 1, 2) if valkey else (7, 2, 0)):
            kind = "Valkey" if valkey else "Redis"
            number = ".".join(map(str, version))
            raise Failure(f"{kind} {number} is too old: use Valkey >= 9.1.2 or Redis >= 7.2")
        persistence = _info(await node.one("INFO", "persistence"))
        if persistence.get("loading") == "1":
            raise Unavailable("Redis is loading its data")
        if persistence.get("aof_enabled") != "1":
            raise Failure("Redis runs without AOF: set `appendonly yes`")
        memory = _info(await node.one("INFO", "memory"))
        if memory.get("maxmemory_policy", "noeviction") != "noeviction":
            raise Failure("Redis may evict streams: set `maxmemory-policy noeviction`")

    async def _stand_by(self, alive: Callable[[], None] | None) -> None:
        """Returns once no older connection of another process stands in our way.

        The server drops a killed process's connections at once, so this needs no expiring lease;
        the lowest connection id is the one that works, the others wait.
        """
        while not await self._is_free():
            if alive is not None:
                alive()
            await asyncio.sleep(_STAND_BY_S)

    async def _is_free_for_long(self) -> bool:
        """Looked at twice: somebody older may have been about to say its name."""
        if not await self._is_free():
            return False
        await asyncio.sleep(_STAND_BY_S / 2)
        return await self._is_free()

    async def _is_free(self) -> bool:
        home = self._link.home
        own_id = int(await home.one("CLIENT", "ID"))
        prefix = f"itb:{self.service}:"
        for line in bytes(await home.one("CLIENT", "LIST")).decode().splitlines():
            client = dict(part.partition("=")[::2] for part in line.split(" "))
            name = client.get("name", "")
            if not name.startswith(prefix) or int(client["id"]) >= own_id:
                continue
            instance, _, process = name.removeprefix(prefix).rpartition(":")
            if process != _PROCESS and (self._alone or _in_the_way(instance, self.instance)):
                return False
        return True

    # -- reading ------------------------------------------------------------------------------

    async def last_id(self, source: Source[Any]) -> str | None:
        """Id of the newest entry, None for an empty or missing stream."""
        reply = await self._link.one("XREVRANGE", source.key, "+", "-", "COUNT", 1)
        if not reply:
            return None
        if source.stream.event_time:
            self._known.add(source.key)
        return str(reply[0][0].decode())

    async def newest_ids(self, keys: Sequence[str]) -> list[str | None]:
        """Ids of the newest entries of many streams, in the order of `keys`."""
        commands = [("XREVRANGE", key, "+", "-", "COUNT", 1) for key in keys]
        replies = [check(reply) for reply in await self._link.call(*commands)] if keys else []
        return [reply[0][0].decode() if reply else None for reply in replies]

    async def tail(self, source: Source[E], count: int, *, upto: str = "+") -> list[Entry[E]]:
        """The newest `count` entries at or before `upto`, oldest first."""
        found: list[Entry[E]] = []
        while len(found) < count:
            page = min(_PAGE, count - len(found))
            reply = await self._link.one("XREVRANGE", source.key, upto, "-", "COUNT", page)
            if reply and source.stream.event_time:
                self._known.add(source.key)
            found.extend(self._entry(source, *raw) for raw in reply)
            if len(reply) < page:
                break
            upto = "(" + found[-1].id
        found.reverse()
        return found

    async def span(
        self, source: Source[E], *, after: str | None, upto: str = "+", count: int = _PAGE
    ) -> list[Entry[E]]:
        """Up to `count` entries with after < id <= upto, oldest first."""
        start = "-" if after is None else f"({after}"
        reply = await self._link.one("XRANGE", source.key, start, upto, "COUNT", count)
        return [self._entry(source, *raw) for raw in reply]

    async def everything(
        self, source: Source[E], *, alive: Callable[[], None] | None = None
    ) -> list[Entry[E]]:
        """All entries, oldest first. alive: called before each page."""
        found: list[Entry[E]] = []
        while page := await self.span(source, after=found[-1].id if found else None):
            found.extend(page)
            if alive is not None:
                alive()
        return found

    async def at(self, source: Source[E], entry_id: str) -> Entry[E] | None:
        reply = await self._link.one("XRANGE", source.key, entry_id, entry_id)
        return self._entry(source, *reply[0]) if reply else None

    async def length(self, source: Source[Any]) -> int:
        return int(await self._link.one("XLEN", source.key))

    async def removed(self, source: Source[Any]) -> int:
        """Entries that were on the stream and are no more (trimmed, deleted), since it was made."""
        reply = (await self._link.call(("XINFO", "STREAM", source.key)))[0]
        if isinstance(reply, Exception) and "no such key" in str(reply):
            return 0
        facts = _pairs(check(reply))
        return int(facts["entries-added"]) - int(facts["length"])

    # -- groups -------------------------------------------------------------------------------

    async def join(self, sources: Iterable[Source[Any]]) -> None:
        """Creates this service's group on each stream, from its beginning."""
        commands: list[Command] = [
            ("XGROUP", "CREATE", s.key, self.service, "0", "MKSTREAM") for s in sources
        ]
        for reply in await self._link.call(*commands):
            if not (isinstance(reply, Exception) and error_code(reply) == "BUSYGROUP"):
                check(reply)

    async def take_over(self, sources: Sequence[Source[Any]]) -> None:
        """What other consumers of this group have read and not done becomes ours; how often each
        entry was delivered stays. For who alone reads these streams from now on."""
        starts = {source.key: "-" for source in sources}
        while starts:
            commands: list[Command] = [
                ("XPENDING", key, self.service, start, "+", _PAGE) for key, start in starts.items()
            ]
            claims: list[Command] = []
            further: dict[str, str] = {}
            for key, reply in zip(starts, await self._link.call(*commands), strict=True):
                pending = [(i, consumer.decode()) for i, consumer, *_ in check(reply)]
                if len(pending) == _PAGE:
                    further[key] = f"({pending[-1][0].decode()}"
                if ids := [i for i, consumer in pending if consumer != self.instance]:
                    own = (key, self.service, self.instance, 0)
                    claims.append(("XCLAIM", *own, *ids, "JUSTID"))
            for reply in await self._link.call(*claims) if claims else ():
                check(reply)
            starts = further

    async def leave(self, source: Source[Any], group: str) -> None:
        """Ends a group, with what it has not acknowledged: for one that will not come back."""
        await self._link.one("XGROUP", "DESTROY", source.key, group)

    async def delivered_id(self, source: Source[Any]) -> str:
        """How far this service's group has read; `0-0` at the beginning."""
        for group in await self._link.one("XINFO", "GROUPS", source.key):
            facts = _pairs(group)
            if facts["name"].decode() == self.service:
                return str(facts["last-delivered-id"].decode())
        raise OutOfSync(f"group {self.service} is gone from {source.key}")

    async def group_position(self, source: Source[Any]) -> dict[str, tuple[str, int]]:
        """Per group of a stream: last delivered id and number of entries not acknowledged."""
        reply = (await self._link.call(("XINFO", "GROUPS", source.key)))[0]
        if isinstance(reply, Exception):
            if "no such key" in str(reply):
                return {}
            check(reply)
        groups = (_pairs(group) for group in reply)
        return {
            g["name"].decode(): (g["last-delivered-id"].decode(), int(g["pending"])) for g in groups
        }

    async def standings(self, keys: Sequence[str]) -> list[Standing]:
        """Of many streams at once, in the order of `keys`."""
        commands: list[Command] = []
        for key in keys:
            commands += [
                ("XLEN", key),
                ("XREVRANGE", key, "+", "-", "COUNT", 1),
                ("XINFO", "GROUPS", key),
            ]
        replies = await self._link.call(*commands) if commands else []
        found = []
        for length, newest, groups in zip(*[iter(replies)] * 3, strict=True):
            missing = isinstance(groups, Exception) and "no such key" in str(groups)
            facts = [] if missing else [_pairs(group) for group in check(groups)]
            found.append(
                Standing(
                    length=int(check(length)),
                    last_id=check(newest)[0][0].decode() if newest else None,
                    groups={
                        g["name"].decode(): GroupStanding(
                            delivered=g["last-delivered-id"].decode(),
                            pending=int(g["pending"]),
                            unread=None if g.get("lag") is None else int(g["lag"]),
                        )
                        for g in facts
                    },
                )
            )
        return found

    async def server_facts(self) -> dict[str, str]:
        """What the server says of its memory and its persistence (INFO's fields); of a cluster,
        the node whose memory is fullest."""
        found = []
        for node in self._link.nodes:
            memory = _info(await node.one("INFO", "memory"))
            found.append(memory | _info(await node.one("INFO", "persistence")))
        return max(found, key=lambda facts: int(facts["used_memory"]))

    async def own_pending(self, source: Source[E]) -> list[Entry[E]]:
        """Everything delivered to us and not acknowledged, oldest first: for `retries`."""
        found: list[Entry[E]] = []
        start = "-"
        while True:
            reply = await self._link.one(
                "XPENDING", source.key, self.service, start, "+", _PAGE, self.instance
            )
            counts = {pending_id.decode(): int(count) for pending_id, _, _, count in reply}
            if not counts:
                return found
            reads = [("XRANGE", source.key, one, one) for one in counts]
            for one, raw in zip(counts, await self._link.call(*reads), strict=True):
                there = check(raw)
                entry = self._entry(source, one.encode(), there[0][1] if there else None)
                found.append(replace(entry, deliveries=counts[one]))
            start = f"({found[-1].id}"

    async def retries(self, entries: Sequence[Entry[E]]) -> AsyncIterator[list[Entry[E]]]:
        """The same entries (of one source, in order) in lists that are to be done one after the
        other: who asks for the next list has survived the last.

        An entry that an earlier process began and did not survive comes alone; one that has ended
        MAX_DELIVERIES processes comes back as unreadable. Lives that ended before they began an
        entry, or in which only the session was lost, do not count against it. Entries that are not
        pending (`deliveries` 0) are not counted.
        """
        left, survived = list(entries), list[Entry[E]]()
        while True:
            chunk = _begun_together(left)
            left = left[len(chunk) :]
            counts = {e.id: self._next_count(e) for e in chunk if e.deliveries}
            chunk = [
                _poisoned(e, counts[e.id]) if counts.get(e.id, 0) > MAX_DELIVERIES else e
                for e in chunk
            ]
            # One without an event ends nobody; and of a trimmed one, this would be the last trace.
            begun = [e for e in chunk if e.deliveries and e.event is not None]
            by_count = {1: survived}
            for entry in begun:
                by_count.setdefault(counts[entry.id], []).append(entry)
            _BEGUN.update(self._lives(begun))
            commands = [self._counted(count, same) for count, same in by_count.items() if same]
            for reply in await self._link.call(*commands) if commands else ():
                check(reply)
            _BEGUN.difference_update(self._lives(survived))
            if not chunk:
                return
            yield chunk
            survived = begun

    def _counted(self, count: int, entries: Sequence[Entry[Any]]) -> Command:
        """Sets the delivery count of those that are still pending; the others are left alone."""
        key, ids = entries[0].source.key, [entry.id for entry in entries]
        return ("XCLAIM", key, self.service, self.instance, 0, *ids, "RETRYCOUNT", count, "JUSTID")

    def _next_count(self, entry: Entry[Any]) -> int:
        """Its delivery count once this process has begun it."""
        return entry.deliveries + (not _BEGUN.issuperset(self._lives([entry])))

    def _lives(self, entries: Sequence[Entry[Any]]) -> set[tuple[str, str, str]]:
        consumer = f"{self._url} {self.service} {self.instance}"
        return {(_PROCESS, f"{consumer} {entry.source.key}", entry.id) for entry in entries}

    async def read(
        self, sources: Mapping[str, Source[Any]], *, count: int = _BATCH, block_ms: int = BLOCK_MS
    ) -> list[Entry[Any]]:
        """New entries for this group, in order per stream; [] after `block_ms` of silence.

        sources: by key, see `by_key`.
        """
        if isinstance(self._link, Cluster):
            return await self._read_each(sources, count, block_ms)
        reply = await self._blocking.one(
            "XREADGROUP", "GROUP", self.service, self.instance, "COUNT", count,
            "BLOCK", block_ms, "STREAMS", *sources, *(">" for _ in sources),
            wait_s=block_ms / 1000,
        )  # fmt: skip
        return [
            self._entry(sources[key.decode()], *item)
            for key, items in reply or ()
            for item in items
        ]

    async def follow(
        self,
        sources: Mapping[str, Source[Any]],
        after: Mapping[str, str],
        *,
        count: int = _BATCH,
        block_ms: int = BLOCK_MS,
    ) -> list[Entry[Any]]:
        """What stands behind the ids `after`, up to `count` per stream, in order per stream; []
        after `block_ms` of silence. No group: who only looks takes nothing away from anybody.

        sources, after: by key, see `by_key`.
        """
        if isinstance(self._link, Cluster):
            return await self._look_each(sources, after, count, block_ms)
        reply = await self._blocking.one(
            "XREAD", "COUNT", count, "BLOCK", block_ms, "STREAMS",
            *sources, *(after[key] for key in sources), wait_s=block_ms / 1000,
        )  # fmt: skip
        return [
            self._entry(sources[key.decode()], *item)
            for key, items in reply or ()
            for item in items
        ]

    async def _read_each(
        self, sources: Mapping[str, Source[Any]], count: int, block_ms: int
    ) -> list[Entry[Any]]:
        """As `read`. One command reads one slot only, so each stream has a read of its own that
        waits on a connection of its own, from one call to the next. What a stream gives that is not
        asked for now is kept for the call that does."""
        silent: set[str] = set()
        entries: list[Entry[Any]] = []
        while not entries and len(silent) < len(sources):
            for key in sources:
                if key not in self._reads:
                    self._reads[key] = asyncio.create_task(self._wait_for(key, count, block_ms))
            waiting = [self._reads[key] for key in sources]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for key, source in sources.items():
                if not self._reads[key].done():
                    continue
                reply = self._reads.pop(key).result()
                if not reply:
                    silent.add(key)
                for _, items in reply or ():
                    entries.extend(self._entry(source, *item) for item in items)
        return entries

    async def _look_each(
        self,
        sources: Mapping[str, Source[Any]],
        after: Mapping[str, str],
        count: int,
        block_ms: int,
    ) -> list[Entry[Any]]:
        """As `follow`: looks again and again, which is quick enough for people's eyes."""
        until_s = time.monotonic() + block_ms / 1000
        while True:
            commands = [("XREAD", "COUNT", count, "STREAMS", key, after[key]) for key in sources]
            entries = [
                self._entry(source, *item)
                for source, reply in zip(
                    sources.values(), await self._link.call(*commands), strict=True
                )
                for _, items in check(reply) or ()
                for item in items
            ]
            if entries or time.monotonic() >= until_s:
                return entries
            await asyncio.sleep(_LOOK_S)

    async def _wait_for(self, key: str, count: int, block_ms: int) -> Any:
        assert isinstance(self._link, Cluster)  # noqa: S101  # asked by the caller
        reader = self._readers.get(key)
        if reader is None:
            reader = self._readers[key] = Link(self._link.url_of(key), name=self._name)
            await reader.connect()
        return await reader.one(
            "XREADGROUP", "GROUP", self.service, self.instance, "COUNT", count,
            "BLOCK", block_ms, "STREAMS", key, ">", wait_s=block_ms / 1000,
        )  # fmt: skip

    # -- writing ------------------------------------------------------------------------------

    async def commit(self, steps: Sequence[Step]) -> list[Divergence]:
        """Does the steps, in order, each chunk as one transaction.

        Returns the writes that the streams contradict: the caller says so and decides. A write
        that stands there already with equal content is done.
        """
        diverged: list[Divergence] = []
        for start in range(0, len(steps), _STEPS):
            chunk = steps[start : start + _STEPS]
            diverged.extend(await self._commit(chunk, self._link))
        return diverged

    async def _commit(self, steps: Sequence[Step], link: Link | Cluster) -> list[Divergence]:
        if not isinstance(link, Cluster):
            return await self._transaction(steps, link)
        diverged: list[Divergence] = []
        for parts in _by_slot(steps):
            done = await asyncio.gather(
                *(self._transaction(part, link) for part in parts), return_exceptions=True
            )
            for found in done:
                if isinstance(found, BaseException):
                    raise found
                diverged.extend(found)
        return diverged

    async def commit_durably(self, steps: Sequence[Step]) -> list[Divergence]:
        """As `commit`, on a connection of its own that `is_durable` then speaks of. Few steps."""
        if not self._durable.is_open:
            await self._durable.connect()
        writes = frozenset(write.source.key for step in steps for write in step.writes)
        self._durable_keys = writes
        return await self._commit(steps, self._durable)

    async def is_durable(self, wait_s: float) -> bool:
        """Whether what `commit_durably` did last is on the server's disk; waits up to `wait_s`.

        An acknowledged write that is not may be lost with the server (FAULTS V1).
        """
        wait_ms = max(1, int(wait_s * 1000))
        links = {self._durable.home}
        if isinstance(self._durable, Cluster):
            links = {self._durable.link_of(key) for key in self._durable_keys}
        for link in links:
            local, _ = await link.one("WAITAOF", 1, 0, wait_ms, wait_s=wait_s)
            if not local:
                return False
        return True

    async def write(self, *writes: Write[Any]) -> list[Divergence]:
        """Adds entries that no input caused."""
        return await self.commit([Step(input=None, writes=writes)])

    async def _transaction(self, steps: Sequence[Step], link: Link | Cluster) -> list[Divergence]:
        commands: list[Command] = [("MULTI",)]
        places: list[tuple[int, Write[Any], bytes]] = []
        published_us = now_us()
        for step in steps:
            for write in step.writes:
                data = self._encode(write, step.input, published_us)
                places.append((len(commands) - 1, write, data))
                commands.append(_xadd(write, data, known=write.source.key in self._known))
            if step.input is not None:
                key = step.input.source.key
                commands.append(("XACK", key, self.service, step.input.id))
        known = dict.fromkeys(w.source.key for _, w, _ in places if w.source.key in self._known)
        lengths = len(commands) - 1
        commands.extend(("XLEN", key) for key in known)
        commands.append(("EXEC",))
        replies = await link.call(*commands)
        refused = next((r for r in replies[:-1] if isinstance(r, Exception)), None)
        if refused is not None:
            check(refused)
        results = check(replies[-1])
        added = Counter(w.source.key for n, w, _ in places if isinstance(results[n], bytes))
        for key, length in zip(known, results[lengths:], strict=True):
            if added[key] and check(length) == added[key]:
                await self._begin_again(key)
        diverged = []
        for position, write, data in places:
            result = results[position]
            if result is None:
                self._known.discard(write.source.key)
                raise OutOfSync(f"{write.source.key} is gone: somebody deleted it")
            if not isinstance(result, Exception):
                if write.open_time_ms is not None:
                    self._known.add(write.source.key)
                continue
            if "equal or smaller" not in str(result):
                check(result)
            found = await self.at(write.source, write.id)
            there = found.fields.get("data") if found is not None else None
            if there is None or not codec.same_content(there, data):
                diverged.append(Divergence(key=write.source.key, id=write.id, found=there))
        return diverged

    async def _begin_again(self, key: str) -> None:
        """A stream that we knew held nothing but what we have just added: somebody deleted it, and
        a reader that joined again made an empty one. It must not begin in its middle, because the
        server takes no older ids any more: it goes, and all of it is written again (FAULTS V4).
        """
        await self._link.one("DEL", key)
        self._known.discard(key)
        raise OutOfSync(f"{key} is gone: somebody deleted it")

    def _encode(self, write: Write[Any], cause: Entry[Any] | None, published_us: int) -> bytes:
        received_us = write.received_us or published_us
        if not write.received_us and cause is not None and cause.meta.received_us:
            received_us = cause.meta.received_us
        market_ms = write.market_ms
        if market_ms is None and cause is not None and cause.meta.market_ms is not None:
            elapsed_ms = (published_us - cause.meta.published_us) // 1000
            market_ms = cause.meta.market_ms + max(0, elapsed_ms)
        meta = Meta(received_us=received_us, published_us=published_us, market_ms=market_ms)
        return codec.encode(write.event, meta)

    def dead_letter(self, entry: Entry[Any], reason: str) -> Write[DeadLetter]:
        """The write that keeps an entry which cannot be processed, bytes and all."""
        key = entry.source.key
        letter = DeadLetter(
            stream=key,
            entry_id=entry.id,
            service=self.service,
            reason=reason,
            time_ms=now_us() // 1000,
            fields={name: value[: self.message_bytes] for name, value in entry.fields.items()},
        )
        return Write(source=Source(dead_letters(key)), event=letter)

    # -- keys ---------------------------------------------------------------------------------

    async def get(self, key: str) -> bytes | None:
        reply: bytes | None = await self._link.one("GET", key)
        return reply

    async def put(self, key: str, value: str | bytes, *, ttl_ms: int | None = None) -> None:
        expiry: tuple[str | int, ...] = () if ttl_ms is None else ("PX", ttl_ms)
        await self._link.one("SET", key, value, *expiry)

    async def claim(self, key: str, value: str | bytes, *, ttl_ms: int) -> bool:
        """Sets a key that nobody has set; whether it is ours now."""
        return await self._link.one("SET", key, value, "NX", "PX", ttl_ms) is not None

    async def keys(self, pattern: str) -> list[str]:
        """Keys that match, by SCAN."""
        found: set[str] = set()
        for node in self._link.nodes:
            cursor = b"0"
            while True:
                cursor, page = await node.one("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
                found.update(key.decode() for key in page)
                if cursor == b"0":
                    break
        return sorted(found)

    # -- trimming -----------------------------------------------------------------------------

    async def trim(self, source: Source[Any], *, keep_from_ms: int) -> int:
        """Removes entries older than `keep_from_ms` that every group has acknowledged."""
        floor = await self._done_below(source, (max(0, keep_from_ms), 0))
        return int(await self._link.one("XTRIM", source.key, "MINID", f"{floor[0]}-{floor[1]}"))

    async def trim_before(self, source: Source[Any], entry_id: str) -> int:
        """Removes all entries before this one; none where a group has not acknowledged them all."""
        if await self._done_below(source, id_order(entry_id)) < id_order(entry_id):
            return 0
        return int(await self._link.one("XTRIM", source.key, "MINID", entry_id))

    async def _done_below(self, source: Source[Any], floor: tuple[int, int]) -> tuple[int, int]:
        """`floor`, or the id before which every group has acknowledged everything."""
        for name, (delivered, pending) in (await self.group_position(source)).items():
            floor = min(floor, id_order(delivered))
            if pending:
                first = (await self._link.one("XPENDING", source.key, name))[1]
                if first is not None:  # acknowledged meanwhile: only newer ones can be pending
                    floor = min(floor, id_order(first.decode()))
        return floor

    async def cap(self, source: Source[Any], most: int) -> int:
        """Removes the oldest entries beyond `most`, of a stream that no group reads."""
        if await self.group_position(source):
            return 0
        return int(await self._link.one("XTRIM", source.key, "MAXLEN", most))

    # -----------------------------------------------------------------------------------------

    def _entry(self, source: Source[E], raw_id: bytes, raw: list[bytes] | None) -> Entry[E]:
        entry_id = raw_id.decode()
        names = [name.decode("utf-8", "replace") for name in raw[::2]] if raw else []
        fields = dict(zip(names, raw[1::2], strict=True)) if raw else {}
        nothing = Meta(received_us=0, published_us=0)
        if not fields:
            return Entry(
                source=source, id=entry_id, event=None, meta=nothing, problem="entry was trimmed"
            )
        try:
            decoded = codec.decode(
                source.stream.event, fields.get("data"), max_bytes=self.message_bytes
            )
            _check_place(source, decoded.event, entry_id)
        except BadInput as error:
            return Entry(
                source=source,
                id=entry_id,
                event=None,
                meta=nothing,
                problem=str(error),
                fields=fields,
            )
        return Entry(
            source=source, id=entry_id, event=decoded.event, meta=decoded.meta, fields=fields
        )


def _check_place(source: Source[Any], event: Any, entry_id: str) -> None:
    """Refuses an event that does not belong where it stands (FAULTS R7)."""
    event_ms = getattr(event, "open_time_ms", None)
    if source.stream.event_time and event_ms != id_ms(entry_id):
        raise BadInput(f"the id is not the event's time {event_ms}")
    for name in ("symbol", "interval"):
        own, given = getattr(source, name), getattr(event, name, "")
        if own and given and own != given:
            raise BadInput(f"the event is of {given}, the stream of {own}")
    problem = ""
    if isinstance(event, Kline):
        step_ms = INTERVALS_MS.get(event.interval, 1)
        problem = gap_problem_of(event) if event.gap else problem_of(event, step_ms)
    elif isinstance(event, Depth):
        problem = depth_problem_of(event)
    if problem:
        raise BadInput(f"an impossible value: {problem}")


def _by_slot(steps: Sequence[Step]) -> tuple[list[list[Step]], list[list[Step]]]:
    """Steps as parts that lie in one slot each, in order: first what they write outside their
    input's slot, then the rest with the acknowledgements."""
    outside: dict[int, list[Step]] = {}
    inside: dict[int, list[Step]] = {}
    for step in steps:
        home = None if step.input is None else slot_of(step.input.source.key)
        here: list[Write[Any]] = []
        for write in step.writes:
            slot = slot_of(write.source.key)
            if slot == home:
                here.append(write)
            else:
                outside.setdefault(slot, []).append(Step(input=None, writes=(write,)))
        if step.input is not None and home is not None:
            inside.setdefault(home, []).append(Step(input=step.input, writes=here))
    return list(outside.values()), list(inside.values())


def by_key(sources: Iterable[Source[E]]) -> dict[str, Source[E]]:
    return {source.key: source for source in sources}


def _begun_together(entries: Sequence[Entry[E]]) -> list[Entry[E]]:
    """The first of them alone where a life began it and did not get to its end; else with those
    behind it of which that is not known either."""
    if entries and entries[0].deliveries > 1:
        return [entries[0]]
    return list(itertools.takewhile(lambda entry: entry.deliveries <= 1, entries[:_RETRIED]))


def _poisoned(entry: Entry[E], deliveries: int) -> Entry[E]:
    problem = f"delivered {deliveries} times without being done"
    return replace(entry, event=None, problem=entry.problem or problem)


def _xadd(write: Write[Any], data: bytes, *, known: bool) -> Command:
    """known: the stream was there in this session. If it is not any more (FLUSHALL, DEL), a new
    one must not begin here in the middle (FAULTS V4)."""
    summary = write.source.stream.summary(write.event)
    plain = [part for pair in summary.items() for part in pair]
    option = ("NOMKSTREAM",) if known else ()
    return ("XADD", write.source.key, *option, write.id, *plain, "data", data)


def _info(reply: bytes) -> dict[str, str]:
    lines = reply.decode().splitlines()
    return dict(line.partition(":")[::2] for line in lines if ":" in line)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:3] if part.isdigit())


def _pairs(flat: list[Any]) -> dict[str, Any]:
    return {flat[i].decode(): flat[i + 1] for i in range(0, len(flat), 2)}
