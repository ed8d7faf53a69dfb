"""Journal file and bus made one at the start of a session: each gets what only the other has.

Lines that the bus lacks were written when it was not there, or were lost with it (it may lose the
last second). Lines that the file lacks come from another machine that traded meanwhile, or the file
itself is new. A bus that begins with a CARRIED line has no more of what came before: a file that
holds a part of that, and not the line, cannot be brought up to date.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from shared.bus import Bus, Source, Step, Write
from shared.errors import Failure
from shared.events import Order, OrderState
from shared.streams import ORDER
from trader.journal import Journal

_PAGE = 500
_BATCH = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """taken: lines that were new to the file, oldest first; they are in it now. unread: places of
    entries, newer than all that the file holds, that cannot be read."""

    taken: list[Order]
    unread: list[str]


async def merge(bus: Bus, journal: Journal, symbols: Sequence[str], mode: str) -> Merged:
    """Reads the journal's streams back to the file's own newest line there.

    Raises:
        Failure: the file is older than what is left on the bus.
    """
    merged = Merged(taken=[], unread=[])
    for symbol in symbols:
        source = Source(ORDER, symbol)
        there, lacking = await _behind(bus, journal, source, mode, merged.unread)
        missing = list(journal.since(symbol, there))
        merged.taken.extend(journal.append(lacking))
        for start in range(0, len(missing), _BATCH):
            some = missing[start : start + _BATCH]
            await bus.commit(
                [Step(input=None, writes=[Write(source=source, event=line)]) for line in some]
            )
    return merged


async def _behind(
    bus: Bus, journal: Journal, source: Source[Order], mode: str, unread: list[str]
) -> tuple[int, list[Order]]:
    """(number of the file's newest line that the bus has, lines that the file lacks). -1: the bus
    has none of what the file holds."""
    lacking: list[Order] = []
    there, upto = -1, "+"
    while there <= 0 and (page := await bus.tail(source, _PAGE, upto=upto)):
        upto = f"({page[0].id}"
        for entry in reversed(page):
            line = entry.event
            if line is None:
                unread.append(f"{source.key} {entry.id} ({entry.problem})")
            elif not line.journal or line.mode != mode:
                continue  # observed only, or of another account
            elif not journal.holds(line):
                lacking.append(line)
            elif line.journal == journal.id:
                there = line.number
                break
            else:
                there = 0
    lacking.reverse()
    is_cut = there < 0 and lacking and lacking[0].state == OrderState.CARRIED
    if is_cut and journal.knows(source.symbol):
        raise Failure(
            f"{journal.path} lacks what another trader did and {source.key} does not hold any "
            "more: move it away; the trader takes what the bus and the exchange know"
        )
    return there, lacking
