"""The mode observe: signals in, journal lines out, no exchange. A line and the signal's
acknowledgement are one step."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from shared.bus import Entry, Source, Step, Write, by_key, id_order, now_us
from shared.events import Level, OrderState, Signal
from shared.market import market_now_ms
from shared.runtime import Session
from shared.streams import ORDER, SIGNAL
from trader.archive import Archivist
from trader.decisions import MEMORY, SIDES, Decisions, Rules
from trader.places import OBSERVE

_BATCH = 256


async def observe(session: Session) -> None:
    """Rebuilds the decisions from the journal, does what is pending, then what is new."""
    settings, bus = session.settings, session.bus
    session.health.facts["mode"] = settings.trader.mode
    text = f"{settings.trader.mode}: journals decisions, sends no orders"
    await session.notice(Level.INFO, "trader_mode", text)
    rules = Rules(
        mode=settings.trader.mode,
        step_ms=settings.step_ms,
        max_age_ms=settings.trader.max_age_s * 1000,
    )
    sources = by_key(Source(SIGNAL, symbol, settings.interval) for symbol in settings.symbols)
    await bus.join(sources.values())
    trader = _Trader(session, {key: Decisions(rules) for key in sources})
    for source in sources.values():
        session.alive()
        await trader.rebuild(source)
        async for entries in bus.retries(await bus.own_pending(source)):
            await trader.do(entries)
    archivist = Archivist(session, OBSERVE, carry=_nothing, still_open=lambda _: set())
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(archivist.run())
        block_ms = 1  # the first look does not wait, so that a start is ready at once
        while True:
            session.alive()
            entries = await bus.read(sources, count=_BATCH, block_ms=block_ms)
            await trader.do(entries)
            if len(entries) < _BATCH:
                session.health.is_ready()
                block_ms = 1_000


async def _nothing(_symbol: str, _others: Mapping[str, str]) -> None:
    """No order, no sum to carry."""


class _Trader:
    """Applies decisions to batches of entries; one transaction a batch."""

    def __init__(self, session: Session, decisions: dict[str, Decisions]) -> None:
        self._session = session
        self._bus = session.bus
        self._decisions = decisions
        self._counts = {state.value: 0 for state in OrderState}

    async def rebuild(self, source: Source[Signal]) -> None:
        """The state is the fold of the journal; a line that cannot be read is told to people."""
        decisions = self._decisions[source.key]
        journal = Source(ORDER, source.symbol)
        lines = await self._bus.tail(journal, MEMORY)
        for line in lines:
            if line.event is None:
                text = f"{journal.key} {line.id}: the journal cannot be read here: {line.problem}"
                await self._session.notice(Level.ALERT, "journal", text, symbol=source.symbol)
            elif line.event.interval == source.interval:
                decisions.load(line.event)
        if len(lines) == MEMORY:
            decisions.forget_older()

    async def do(self, entries: Sequence[Entry[Signal]]) -> None:
        clocks: dict[str, int | None] = {}
        steps = []
        for entry in entries:
            signal, problem = entry.event, problem_of(entry)
            if signal is None or problem:
                steps.append(Step(input=entry, writes=self._poison(entry, problem)))
                continue
            key = entry.source.key
            if signal.side and key not in clocks:
                clocks[key] = await market_now_ms(
                    self._bus,
                    entry.source.symbol,
                    entry.source.interval,
                    speed=self._session.settings.market_speed,
                )
            line = self._decisions[key].decide(
                signal, market_now_ms=clocks.get(key), now_ms=now_us() // 1000
            )
            writes = []
            if line is not None:
                self._counts[line.state] += 1
                writes.append(
                    Write(
                        source=Source(ORDER, line.symbol),
                        event=line,
                        received_us=entry.meta.received_us,
                    )
                )
            steps.append(Step(input=entry, writes=writes))
        await self._bus.commit(steps)
        health = self._session.health
        for entry in entries:
            health.last_ids[entry.source.key] = entry.id
        health.facts["decisions"] = dict(self._counts)

    def _poison(self, entry: Entry[Signal], problem: str) -> list[Write[Any]]:
        key = entry.source.key
        text = f"{key} {entry.id}: {problem}; dropped, kept under dead:{key}"
        notice = self._session.notice_write(
            Level.ALERT, "dead_letter", text, entry.source.symbol, entry.time_ms
        )
        return [self._bus.dead_letter(entry, problem), notice]


def problem_of(entry: Entry[Signal]) -> str:
    """Why an entry is not a signal of its stream; "" where it is one."""
    signal = entry.event
    if signal is None:
        return entry.problem
    if (signal.symbol, signal.interval) != (entry.source.symbol, entry.source.interval):
        return f"the signal is about {signal.symbol}-{signal.interval}"
    if signal.side and signal.side not in SIDES:
        return f"side {signal.side!r} is neither BUY, SELL nor empty"
    if id_order(entry.id)[1]:
        return "a candle has one signal, under <open_time_ms>-0"
    return ""
