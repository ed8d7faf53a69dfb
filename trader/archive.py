"""Keeps `order:{symbol}` short (FAULTS R11): old lines go into an archive file, then off the bus.

What is held, made and lost is the sum of all lines, so a stream is cut only where a CARRIED line
holds the sum of what came before it:

1. once a week the trader writes a CARRIED line for each mode whose lines stand there;
2. once that is older than signals are kept, the lines before it are folded once more, and what they
   come to must be what the CARRIED line says, to the last digit; else people are told;
3. they go into `archive/SYMBOL.journal` beside the journal, on the disk;
4. the stream is cut, so that it begins with the CARRIED line.

A line of an order that is open still stays, and all that came after it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from shared.bus import Bus, Entry, Source, now_us
from shared.config import Settings
from shared.errors import Failure, Unavailable
from shared.events import Level, Order, OrderState
from shared.ledger import DAY_MS, Ledger, open_in, rewritten
from shared.logs import Quiet
from shared.runtime import Session
from shared.stage import kept_ms
from shared.streams import ORDER
from trader.journal import Journal, Taken, digest
from trader.places import OBSERVE, journal_folder

FIRST_S = 600.0
ROUND_S = 6 * 3600.0
WEEK_MS = 7 * DAY_MS
_TOLD_S = 86_400.0


class Unequal(Exception):
    """The stream must not be cut: the text says why."""


@dataclass(slots=True)
class Fold:
    """All modes' sums of one symbol's lines. OBSERVE has none: its lines are about no order."""

    base: str
    quote: str
    ledgers: dict[str, Ledger] = field(default_factory=dict)

    def add(self, line: Order) -> None:
        if line.mode == OBSERVE:
            return
        ledger = self.ledgers.get(line.mode)
        if ledger is None:
            ledger = self.ledgers[line.mode] = Ledger(base=self.base, quote=self.quote)
        ledger.add(line)

    def carried(self) -> dict[str, str]:
        """By mode."""
        return {mode: ledger.carried() for mode, ledger in self.ledgers.items()}


def is_due(lines: Sequence[Entry[Order]], now_ms: int) -> bool:
    """Whether the sum is to be carried: that was not done for a week, and something has happened
    since. lines: oldest first."""
    if not lines or _is_carried(lines[-1]):
        return False
    carried = [e.event.time_ms for e in lines if _is_carried(e) and e.event is not None]
    first = next((e.event.time_ms for e in lines if e.event is not None), now_ms)
    return now_ms - max(carried, default=first) >= WEEK_MS


def cut_of(
    lines: Sequence[Entry[Order]], mode: str, fold: Fold, *, before_ms: int, still_open: set[str]
) -> int:
    """How many of the oldest entries can go: those before the newest CARRIED line that is older
    than `before_ms` and in which nothing was open that is open still. fold: a new one.

    Raises:
        Unequal: they do not come to what is carried, or cannot be read.
    """
    if mode == OBSERVE:
        return _observed(lines, before_ms)
    place = 0
    for n, entry in enumerate(lines):
        line = entry.event
        if line is None or line.mode != mode or not _is_carried(entry):
            continue
        if line.time_ms < before_ms and not still_open & open_in(line.carried):
            place = n
    if not place:
        return 0
    told: dict[str, str] = {}
    # The modes' lines were written together.
    while place >= 0 and _is_carried(lines[place]):
        line = lines[place].event
        assert line is not None  # noqa: S101  # as it is carried
        told.setdefault(line.mode, rewritten(line.carried))
        place -= 1
    place += 1
    for entry in lines[:place]:
        if entry.event is None:
            raise Unequal(f"entry {entry.id} cannot be read: {entry.problem}")
        fold.add(entry.event)
    for name, sum_ in fold.carried().items():
        if told.get(name) != sum_:
            raise Unequal(
                f"its {name} lines before {lines[place].id} do not come to what is carried there"
            )
    return place


def _observed(lines: Sequence[Entry[Order]], before_ms: int) -> int:
    for n, entry in enumerate(lines):
        line = entry.event
        if line is None or line.mode != OBSERVE or line.time_ms >= before_ms:
            return n
    return len(lines)


def keep(path: Path, lines: Sequence[Order]) -> None:
    """Adds those that are not in the archive file yet, and brings them to the disk. Blocks.

    Raises:
        Taken, Failure, Unavailable: as `Journal`.
    """
    with Journal.open(path) as archive:
        there = {_digest(line, archive.id) for line in archive.lines()}
        archive.append([line for line in lines if _digest(line, archive.id) not in there])
        archive.sync()


def _digest(line: Order, archive: str) -> bytes:
    """Of the line as the bus has it: one of OBSERVE got its number here. A number alone names no
    line: a journal that was restored gives those behind its end out again."""
    return digest(replace(line, journal="", number=0) if line.journal == archive else line)


def _is_carried(entry: Entry[Order]) -> bool:
    return entry.event is not None and entry.event.state == OrderState.CARRIED


class Archivist:
    """Does that for the streams of a session. carry: writes the symbol's CARRIED line, given the
    sums of the other modes; still_open: the symbol's open orders.
    """

    def __init__(
        self,
        session: Session,
        mode: str,
        *,
        carry: Callable[[str, Mapping[str, str]], Awaitable[None]],
        still_open: Callable[[str], set[str]],
    ) -> None:
        self._session = session
        self._bus: Bus = session.bus
        self._settings: Settings = session.settings
        self._mode = mode
        self._carry = carry
        self._still_open = still_open
        self._folder = journal_folder(session.settings) / "archive"
        self._quiet = Quiet(_TOLD_S)

    async def run(self) -> None:
        """For ever."""
        await asyncio.sleep(FIRST_S)
        while True:
            for symbol in self._settings.symbols:
                await self.look(symbol)
            await asyncio.sleep(ROUND_S)

    async def look(self, symbol: str) -> int:
        """One symbol; how many lines went off the bus."""
        source, now_ms = Source(ORDER, symbol), now_us() // 1000
        first = await self._bus.span(source, after=None, count=1)
        if not first or (first[0].event and now_ms - first[0].event.time_ms < WEEK_MS):
            return 0
        lines = await self._bus.everything(source)
        assets = self._settings.base_of(symbol), self._settings.quote_asset
        try:
            if self._mode != OBSERVE and is_due(lines, now_ms):
                others = [e.event for e in lines if e.event and e.event.mode != self._mode]
                await self._carry(symbol, await asyncio.to_thread(_sums, Fold(*assets), others))
            count = await asyncio.to_thread(
                cut_of, lines, self._mode, Fold(*assets),
                before_ms=now_ms - 2 * kept_ms(self._settings.step_ms),
                still_open=self._still_open(symbol),
            )  # fmt: skip
            if not count:
                return 0
            gone = [entry.event for entry in lines[:count] if entry.event is not None]
            await asyncio.to_thread(keep, self._folder / f"{symbol}.journal", gone)
        except (Unequal, ValueError, KeyError, ArithmeticError, Taken, Failure, Unavailable) as bad:
            await self._tell(symbol, f"{source.key} is not cut, it grows: {bad}")
            return 0
        if count == len(lines):  # the last line stays, so that the stream does
            return await self._bus.trim_before(source, lines[-1].id)
        return await self._bus.trim_before(source, lines[count].id)

    async def _tell(self, symbol: str, text: str) -> None:
        if self._quiet.allows(symbol) is not None:
            await self._session.notice(Level.WARNING, "archive", text, symbol=symbol)


def _sums(fold: Fold, lines: Sequence[Order]) -> dict[str, str]:
    for line in lines:
        fold.add(line)
    return fold.carried()
