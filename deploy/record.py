"""`itb record`: the track record, printed, exported and verified."""

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from deploy.observer import Observer
from deploy.screen import columns
from shared.bus import Bus, Entry, Source
from shared.config import Settings, load
from shared.errors import BadInput, Failure
from shared.events import Record
from shared.klinefiles import replacing
from shared.record import GENESIS, Verified, differing, files_of, line_of, read_file, verify
from shared.streams import RECORD, SIGNAL
from shared.times import iso

_PATIENCE_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """verify: check the chain; file: that of this file instead of what is archived and on the bus.
    export: where the whole record goes."""

    config: Path | None = None
    redis_url: str | None = None
    symbol: str | None = None
    verify: bool = False
    file: Path | None = None
    export: Path | None = None
    json: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What there is of one symbol's record. compared: signals still on the bus that it was held
    against; differing: ids of those that say another thing now."""

    name: str
    records: int
    first: str | None
    last: str | None
    anchor: str
    head: str
    problem: str
    compared: int = 0
    differing: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, name: str, found: Verified, compared: int = 0, other: Sequence[str] = ()
    ) -> "Account":
        return cls(
            name=name,
            records=found.records,
            first=None if found.first_ms is None else iso(found.first_ms),
            last=None if found.last_ms is None else iso(found.last_ms),
            anchor=found.anchor,
            head=found.head,
            problem=found.problem,
            compared=compared,
            differing=tuple(other),
        )

    @property
    def is_good(self) -> bool:
        return not self.problem and not self.differing


async def run(options: Options, out: TextIO) -> int:
    """Prints what is recorded; the exit code is 1 where a chain does not hold."""
    if options.file is not None:
        account = Account.of(str(options.file), verify(read_file(options.file)))
        return _print([account], options, out)
    settings = load(options.config)
    symbols = settings.symbols if options.symbol is None else (options.symbol,)
    if options.export is not None and len(symbols) > 1:
        raise Failure("--export holds one chain: name its --symbol")
    url = options.redis_url or settings.bus_url
    accounts = []
    async with Observer(url, patience_s=_PATIENCE_S) as observer:
        for symbol in symbols:
            look = partial(_look, settings=settings, symbol=symbol, options=options)
            accounts.append(await observer.ask(look))
    return _print(accounts, options, out)


async def _look(bus: Bus, settings: Settings, symbol: str, options: Options) -> Account:
    interval = settings.interval
    source = Source(RECORD, symbol, interval)
    records = [record async for record in _whole(bus, settings, source)]
    if options.export is not None:
        with replacing(options.export) as unfinished, unfinished.open("w") as file:
            file.writelines(f"{line_of(record)}\n" for record in records)
    found = verify(records)
    compared, other = 0, list[str]()
    if options.verify:
        signals = {e.time_ms: e async for e in _span(bus, Source(SIGNAL, symbol, interval), None)}
        compared = sum(record.open_time_ms in signals for record in records)
        other = list(differing(records, signals))
    return Account.of(f"{symbol} {interval}", found, compared, other)


async def _whole(bus: Bus, settings: Settings, source: Source[Record]) -> AsyncIterator[Record]:
    """The archived days, then what stands on the bus behind them."""
    last_ms: int | None = None
    for path in files_of(settings.data_folder, source.symbol, source.interval):
        for record in read_file(path):
            last_ms = record.open_time_ms
            yield record
    async for entry in _span(bus, source, last_ms):
        if entry.event is None:
            raise BadInput(f"{source.key} {entry.id} cannot be read: {entry.problem}")
        yield entry.event


async def _span(bus: Bus, source: Source[Any], after_ms: int | None) -> AsyncIterator[Entry[Any]]:
    after = None if after_ms is None else f"{after_ms}-0"
    while page := await bus.span(source, after=after):
        after = page[-1].id
        for entry in page:
            yield entry


def _print(accounts: list[Account], options: Options, out: TextIO) -> int:
    verified = options.verify or options.file is not None
    if options.json:
        found = [asdict(account) | {"good": account.is_good} for account in accounts]
        out.write(json.dumps(found) + "\n")
    else:
        out.write("\n".join(_lines(accounts, options, verified)) + "\n")
    return 0 if all(account.is_good for account in accounts) else 1


def _lines(accounts: list[Account], options: Options, verified: bool) -> Iterator[str]:
    rows = [["record", "signals", "first", "last", "last hash"]]
    for one in accounts:
        rows.append(
            [one.name, f"{one.records:,}", one.first or "", one.last or "", one.head[:16] + " ..."]
        )
    yield columns(rows)
    for one in accounts:
        if one.problem:
            yield f"{one.name}: BROKEN: {one.problem}"
        elif one.differing:
            yield (
                f"{one.name}: {len(one.differing)} signals on the bus are not what was recorded; "
                f"first {one.differing[0]}"
            )
        elif not one.records:
            yield f"{one.name}: nothing is recorded yet; `python -m auditor` does"
        elif verified:
            begin = "from its beginning" if one.anchor == GENESIS else f"after {one.anchor}"
            held = (
                f"; {one.compared:,} of them stand on the bus as recorded" if one.compared else ""
            )
            yield f"{one.name}: the chain holds {begin} to {one.head}{held}"
    if options.export is not None:
        yield f"written to {options.export}; `itb record --verify {options.export}` checks it"
