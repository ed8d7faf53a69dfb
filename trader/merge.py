"""Journal file and bus made one at the start of a session: each gets what only the other has.

Lines that the bus lacks were written when it was not there, or were lost with it (it may lose the
last second). Lines that the file lacks come from another machine that traded meanwhile, or the file
itself is new. A bus that begins with a CARRIED line has what came before in that sum, and nothing
else of it: a file that holds another part of that, and not the line, cannot be brought up to date.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shared.bus import Bus, Source, Step, Write
from shared.errors import Failure
from shared.events import Order, OrderState
from shared.ledger import is_sum_of
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


async def merge(
    bus: Bus,
    journal: Journal,
    symbols: Sequence[str],
    mode: str,
    lost: Callable[[str], None] = lambda _why: None,
) -> Merged:
    """Reads the journal's streams back to the file's own newest line there.

    lost: is told before anything is written that the bus lacks more than a crash takes; it may
    append to the file what the bus then gets with the rest.

    Raises:
        Failure: the file is older than what is left on the bus.
    """
    merged = Merged(taken=[], unread=[])
    found = {}
    for symbol in symbols:
        source = Source(ORDER, symbol)
        found[symbol] = await _behind(bus, journal, source, mode, merged.unread)
    losses = [what for s, (there, _) in found.items() if (what := _loss(bus, journal, s, there))]
    if losses:
        lost("; ".join(losses))
    has: dict[str, int] = {}
    for symbol, (there, lacking) in found.items():
        source = Source(ORDER, symbol)
        missing = list(journal.since(symbol, there))
        merged.taken.extend(journal.append(lacking))
        for start in range(0, len(missing), _BATCH):
            some = missing[start : start + _BATCH]
            await bus.commit(
                [Step(input=None, writes=[Write(source=source, event=line)]) for line in some]
            )
        own = [line.number for line in missing if line.journal == journal.id]
        if (newest := max([there, *own])) > 0:
            has[symbol] = newest
    known = journal.on_bus
    if has and (known.server != bus.server_id or not has.items() <= known.acked.items()):
        journal.bus_has(has, bus.server_id)
    return merged


def _loss(bus: Bus, journal: Journal, symbol: str, there: int) -> str:
    """What the bus had and lacks, though no crash of its server explains it (FAULTS V4); "" =
    nothing. A server that starts again may lack its last second: what it had acknowledged before
    that is on its disk. One that still has a part of it is a replica that was behind (V8)."""
    key, known = Source(ORDER, symbol).key, journal.on_bus
    acked, lasting = known.acked.get(symbol, 0), known.lasting.get(symbol, 0)
    if acked > there and known.server == bus.server_id:
        what = "is gone" if there < 0 else "has lost its end"
        return f"{key} {what}, though the server has not been away"
    if lasting and there < 0:
        return f"{key} is gone"
    return ""


async def _behind(
    bus: Bus, journal: Journal, source: Source[Order], mode: str, unread: list[str]
) -> tuple[int, list[Order]]:
    """(number of the file's newest line that the bus has, at least in a sum, lines that the file
    lacks). -1: the bus has none of what the file holds."""
    lacking: list[Order] = []
    there, summed, upto = -1, 0, "+"
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
                if line.state == OrderState.CARRIED:
                    summed = journal.newest(source.symbol, before=line)
    if there == 0:
        there = summed
    lacking.reverse()
    is_cut = there < 0 and lacking and lacking[0].state == OrderState.CARRIED
    if is_cut and journal.knows(source.symbol):
        if _is_sum(lacking[0], journal):
            return journal.newest(source.symbol), lacking
        raise Failure(
            f"{journal.path} lacks what another trader did and {source.key} does not hold any "
            "more: move it away; the trader takes what the bus and the exchange know"
        )
    return there, lacking


def _is_sum(carried: Order, journal: Journal) -> bool:
    """Whether it is of all that the file holds, and of nothing else: a trader of another mode told
    it."""
    try:
        return is_sum_of(carried.carried, journal.since(carried.symbol, -1), carried.mode)
    except ValueError:
        return False
