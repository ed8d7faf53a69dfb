"""A stage: reads one kind of stream, derives another under the same ids, loses and doubles nothing.

The truth is on the bus. At the start of a session the state of each symbol is rebuilt from the
input's history up to the last output; whatever was delivered after that output is computed again,
whether it was acknowledged or not; only then are new entries read.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from shared.bus import Divergence, Entry, Source, Step, Write, by_key, id_order
from shared.errors import OutOfSync
from shared.events import Level
from shared.logs import Quiet
from shared.runtime import Session
from shared.streams import dead_letters
from shared.times import interval_ms

_PAGE = 1_000
_CHUNK = 64
_READ = 4_096  # entries taken at once, over all streams


_KEEP_MS = 8 * 86_400_000  # a week for people and replays, and a day to spare
_KEEP_ROWS = 11_520  # and of longer candles as many as that is of minutes
_KEEP_DEAD_MS = 30 * 86_400_000
_MOST_DEAD = 1_000  # letters of a stream; each may be as large as a message
_JANITOR_S = 60.0
_DIVERGED_S = 60.0  # people are told that often of one output


class Core(Protocol):
    """The pure part of a stage, for one input stream.

    history: how many input entries before the next one the state is made of.
    """

    history: int

    def load(self, entries: Sequence[Entry[Any]]) -> None:
        """Forgets all and takes in history whose outputs exist already."""

    def step(self, entry: Entry[Any]) -> Sequence[Write[Any]]:
        """What the next entry leads to. `entry.event` is None where it could not be read."""

    def skip(self, missing: int) -> None:
        """`missing` raster rows before the next entry exist neither as candles nor as markers."""


# Fetches what a core needs besides its input, before it is given these entries. Returns what of it
# could not be read; that is told once, with the step of the candle of the same time.
Prepare = Callable[[Core, Sequence[Entry[Any]]], Awaitable[Sequence[Entry[Any]]]]


@dataclass(slots=True)
class _Track:
    """Where one input stream stands. done: outputs exist up to this id; last: fed to the core.

    is_told: people know that outputs below `done` are missing.
    """

    core: Core
    done: str | None = None
    last: str | None = None
    is_told: bool = False


class Stage:
    """Runs cores over their inputs. `outputs` names the streams that a core writes per input id.

    prepare: fetches what a core needs besides its input. look: sees the entries of all inputs that
    come next, before the cores are given them one by one: to compute for many at once. told: sees
    each output that is on the bus now.
    """

    def __init__(
        self,
        session: Session,
        sources: Sequence[Source[Any]],
        *,
        outputs: Callable[[Source[Any]], Sequence[Source[Any]]],
        core: Callable[[Source[Any]], Core],
        prepare: Prepare | None = None,
        look: Callable[[Sequence[Entry[Any]]], None] | None = None,
        told: Callable[[Write[Any]], None] | None = None,
    ) -> None:
        self._session = session
        self._bus = session.bus
        self._sources = by_key(sources)
        self._outputs = outputs
        self._core = core
        self._prepare = prepare
        self._look = look
        self._told = told
        self._tracks: dict[str, _Track] = {}
        self._ends: dict[str, str] = {}  # of each output, when the state was rebuilt
        self._quiet = Quiet(_DIVERGED_S)

    async def rebuild(self) -> None:
        """State from the streams; then everything that was delivered and has no output."""
        await self._bus.join(self._sources.values())
        await self._bus.take_over(list(self._sources.values()))
        for source in self._sources.values():
            self._session.alive()
            await self._rebuild(source)

    async def work(self, *, between: Callable[[], None] | None = None) -> None:
        """New entries, for ever. `between` is called before each batch (a safe point to swap).

        The service is ready once it has done what stood on the streams when it began.
        """
        count = max(1, _READ // len(self._sources))
        newest = {key: await self._bus.last_id(s) or "0-0" for key, s in self._sources.items()}
        while True:
            behind = [key for key in newest if self._behind(key, newest[key])]
            newest = {key: newest[key] for key in behind}
            if not behind:
                self._session.health.is_ready()
            else:
                self._session.health.not_ready(f"catching up: {behind[0]}")
            self._session.alive()
            entries = await self._bus.read(self._sources, count=count)
            if between is not None:
                between()
            if entries:
                await self._do(entries)

    def _behind(self, key: str, newest: str) -> bool:
        return id_order(self._tracks[key].last or "0-0") < id_order(newest)

    async def _rebuild(self, source: Source[Any]) -> None:
        ids = [await self._bus.last_id(output) for output in self._outputs(source)]
        done = None if None in ids else min((i for i in ids if i), key=id_order)
        for output, last in zip(self._outputs(source), ids, strict=True):
            self._ends[output.key] = last or "0-0"
        track = self._tracks[source.key] = _Track(core=self._core(source), done=done)
        if done is not None:
            newest = await self._bus.tail(source, track.core.history, upto=done)
            history = [entry for entry in newest if not is_foreign(entry)]
            if self._prepare is not None and history:
                await self._prepare(track.core, history)
            track.core.load(history)
            track.last = history[-1].id if history else None
        pending = {entry.id: entry for entry in await self._bus.own_pending(source)}
        delivered = await self._bus.delivered_id(source)
        after = done
        while id_order(after or "0-0") < id_order(delivered):
            self._session.alive()
            entries = await self._bus.span(source, after=after, upto=delivered, count=_PAGE)
            if not entries:
                break
            known = [pending.pop(entry.id, entry) for entry in entries]
            async for some in self._bus.retries(known):
                await self._do(some)
            after = entries[-1].id
        # What is left was done before, or is no longer on the stream.
        await self._bus.commit([Step(input=entry) for entry in pending.values()])

    async def _do(self, entries: Sequence[Entry[Any]]) -> None:
        """In chunks: what follows us begins on the first while we compute the next, and neither
        the heartbeat nor the watchdog waits for a long backlog."""
        for start in range(0, len(entries), _CHUNK):
            self._session.alive()
            await self._do_chunk(entries[start : start + _CHUNK])

    async def _do_chunk(self, entries: Sequence[Entry[Any]]) -> None:
        unread: dict[tuple[str, int], list[Entry[Any]]] = {}
        if self._prepare is not None:
            for key in dict.fromkeys(entry.source.key for entry in entries):
                own = [entry for entry in entries if entry.source.key == key]
                for other in await self._prepare(self._tracks[key].core, own):
                    unread.setdefault((key, other.time_ms), []).append(other)
        if self._look is not None:
            self._look(entries)
        steps: list[Step] = []
        outlived: list[Entry[Any]] = []
        for entry in entries:
            track = self._tracks[entry.source.key]
            if is_foreign(entry):
                steps.append(Step(input=entry, writes=self._poison(entry)))
                continue
            if track.last is not None and id_order(entry.id) <= id_order(track.last):
                steps.append(Step(input=entry))
                outlived.append(entry)
                continue
            steps.extend(await self._raster(track, entry))
            writes = list(track.core.step(entry))
            if track.done is not None and id_order(entry.id) <= id_order(track.done):
                writes = []  # the outputs outlived their input: only the state needs it
                outlived.append(entry)
            else:
                bad = unread.pop((entry.source.key, entry.time_ms), [])
                for one in [entry, *bad] if entry.event is None else bad:
                    writes += self._poison(one)
            steps.append(Step(input=entry, writes=writes))
            track.last = entry.id
        for key in dict.fromkeys(entry.source.key for entry in outlived):
            steps.extend(await self._missing([e for e in outlived if e.source.key == key]))
        diverged = await self._bus.commit(steps)
        for entry in entries:
            self._session.health.last_ids[entry.source.key] = entry.id
        self._session.metrics.done(entries)
        if self._told is not None:
            for step in steps:
                for write in step.writes:
                    if write.source.key in self._ends:
                        self._told(write)
        if diverged:
            await self._tell(diverged)

    async def _raster(self, track: _Track, entry: Entry[Any]) -> list[Step]:
        """Checks that nothing is missing between the last entry and this one (FAULTS F5)."""
        source = entry.source
        if track.last is None or not source.interval:
            return []
        step_ms = interval_ms(source.interval)
        last_ms = id_order(track.last)[0]
        missing = (entry.time_ms - last_ms) // step_ms - 1
        if missing <= 0:
            return []
        between = await self._bus.span(source, after=track.last, upto=f"({entry.id}", count=1)
        if between:
            raise OutOfSync(f"{source.key}: {between[0].id} was not delivered to us")
        track.core.skip(missing)
        text = (
            f"{source.key}: {missing} candles before {entry.id} are missing on the bus without a "
            "gap marker; they count as empty rows"
        )
        notice = self._session.notice_write(
            Level.ALERT, "hole", text, source.symbol, last_ms + step_ms
        )
        return [Step(input=None, writes=[notice])]

    def _poison(self, entry: Entry[Any]) -> list[Write[Any]]:
        reason = entry.problem or "its id is not one of ours: `<open_time_ms>-0`, on the raster"
        text = f"{entry.source.key} {entry.id}: {reason}; kept under dead:{entry.source.key}"
        notice = self._session.notice_write(
            Level.ALERT, "dead_letter", text, entry.source.symbol, entry.time_ms
        )
        return [self._bus.dead_letter(entry, reason), notice]

    async def _missing(self, entries: Sequence[Entry[Any]]) -> list[Step]:
        """Entries of one source that lie below the end of its outputs: their own outputs should
        stand there. Where they do not, nobody can add them any more, and people are told, once.
        """
        source = entries[0].source
        track = self._tracks[source.key]
        for output in self._outputs(source):
            if track.is_told:
                break
            oldest = await self._bus.span(output, after=None, count=1)
            first_ms = oldest[0].time_ms if oldest else 0
            before = f"{entries[0].time_ms - 1}-0"
            span = await self._bus.span(
                output, after=before, upto=entries[-1].id, count=2 * len(entries)
            )
            there = {entry.id for entry in span}
            absent = [e for e in entries if e.time_ms > first_ms and e.id not in there]
            if not absent:
                continue
            track.is_told = True
            text = (
                f"{output.key} has no entry for {absent[0].id} although newer ones exist, up to "
                f"{track.done}: somebody else wrote there; candles in between stay without"
            )
            notice = self._session.notice_write(
                Level.ALERT, "hole", text, source.symbol, absent[0].time_ms
            )
            return [Step(input=None, writes=[notice])]
        return []

    async def _tell(self, diverged: Sequence[Divergence]) -> None:
        """A different entry stays: rebuilding cannot change what stands there, and whoever reads
        it reads the same. An absent one is a hole. If the output went past it after we had rebuilt,
        memory and streams disagree: rebuild. If it had before, that would change nothing.

        Raises:
            OutOfSync: as said.
        """
        absent = [d for d in diverged if d.found is None]
        first = (absent or diverged)[0]
        if absent:
            text = f"{first.key} {first.id}: is missing although newer ones exist"
        else:
            text = f"{first.key} {first.id}: another entry stands there than we computed; it stays"
        text += f" ({len(absent or diverged)} entries); does a second {self._bus.service} write?"
        if self._quiet.allows(f"{first.key} {bool(absent)}") is not None:
            await self._session.notice(Level.ALERT, "diverged", text)
        if any(id_order(self._ends[d.key]) < id_order(d.id) for d in absent if d.key in self._ends):
            raise OutOfSync(text)


def is_foreign(entry: Entry[Any]) -> bool:
    """Whether nobody of ours can have written an entry under this id."""
    ms, sequence = id_order(entry.id)
    interval = entry.source.interval
    return bool(sequence or (interval and ms % interval_ms(interval)))


def kept_ms(step_ms: int, least_rows: int = 0) -> int:
    """How long an entry of a candle stays on its stream."""
    return max(_KEEP_MS, max(least_rows, _KEEP_ROWS) * step_ms)


async def janitor(session: Session, outputs: Sequence[Source[Any]], *, least_rows: int) -> None:
    """Trims the streams that a service writes, for ever: only what every group has acknowledged
    and nobody needs to rebuild from (FAULTS R11).

    least_rows: candles that are kept at any rate; `_KEEP_MS` and `_KEEP_ROWS` may be fewer.
    """
    keep_ms = kept_ms(session.settings.step_ms, least_rows)
    while True:
        await asyncio.sleep(_JANITOR_S)
        for source in outputs:
            newest = await session.bus.last_id(source)
            if newest is not None:
                await session.bus.trim(source, keep_from_ms=id_order(newest)[0] - keep_ms)


async def dead_letter_janitor(session: Session, inputs: Sequence[Source[Any]]) -> None:
    """Trims what a service keeps of inputs that it could not process, for ever: a month, and at
    most `_MOST_DEAD` letters of each."""
    bus = session.bus
    letters = [Source(dead_letters(source.key)) for source in inputs]
    while True:
        await asyncio.sleep(_JANITOR_S)
        newest = await bus.newest_ids([letter.key for letter in letters])
        for letter, last in zip(letters, newest, strict=True):
            if last is not None:
                await bus.cap(letter, _MOST_DEAD)
                await bus.trim(letter, keep_from_ms=id_order(last)[0] - _KEEP_DEAD_MS)
