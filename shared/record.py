"""The track record: a chain of hashes over every signal, so that none can be made up afterwards.

Each signal is written down once, as canonical JSON, and hashed together with the hash before it. To
change, add or leave out one signal, every later hash would have to change: whoever has kept a
single later hash (a message of the day, a line of a log) can tell.

A line of a file, and what is hashed:

    <hash> <previous> <text>          hash = sha256("<previous> <text>")

so that any shell can check it: `cut -d' ' -f2- | tr -d '\\n' | sha256sum` of one line.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared import codec
from shared.bus import Entry
from shared.errors import BadInput
from shared.events import Record, Signal

GENESIS = "0" * 64
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_LINE = re.compile(r"([0-9a-f]{64}) ([0-9a-f]{64}) (\{.*\})")


def text_of(entry: Entry[Signal], recorded_ms: int | None) -> str:
    """The canonical JSON of a signal as it stands on the bus: keys sorted, no blanks, ASCII; a
    float by its shortest digits that give the same float back, NaN as null.

    recorded_ms: the market's clock; None where nobody knows it. An entry that cannot be read is
    recorded by the hash of its bytes.
    """
    source = entry.source
    told: dict[str, Any] = {
        "id": f"{source.symbol}-{source.interval}-{entry.time_ms}",
        "recorded_ms": recorded_ms,
    }
    data = entry.fields.get("data", b"")
    if entry.event is None:
        told["unreadable"] = hashlib.sha256(data).hexdigest()
    else:
        told["signal"] = _plain(codec.content(data))
    return json.dumps(told, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, float) and math.isnan(value):
        return None
    return value


def hash_of(previous: str, text: str) -> str:
    return hashlib.sha256(f"{previous} {text}".encode()).hexdigest()


def link(entry: Entry[Signal], previous: str, recorded_ms: int | None) -> Record:
    """The next link of the chain."""
    text = text_of(entry, recorded_ms)
    return Record(
        open_time_ms=entry.time_ms, previous=previous, hash=hash_of(previous, text), text=text
    )


def line_of(record: Record) -> str:
    return f"{record.hash} {record.previous} {record.text}"


def record_of(line: str) -> Record:
    """
    Raises:
        BadInput: it is no line of a track record.
    """
    match = _LINE.fullmatch(line.rstrip("\n"))
    if match is None:
        raise BadInput("it is no line `hash previous {...}`")
    try:
        told = json.loads(match[3])
        time_ms = int(str(told["id"]).rsplit("-", 1)[1])
    except (ValueError, KeyError, IndexError, TypeError):
        raise BadInput("its text is not what a signal is recorded as") from None
    return Record(open_time_ms=time_ms, previous=match[2], hash=match[1], text=match[3])


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What a chain is worth. records: its length. head: its last hash; anchor: the hash before the
    first of these, 64 zeros where the chain begins here. problem: the first thing that is wrong,
    "" where nothing is."""

    records: int
    first_ms: int | None
    last_ms: int | None
    anchor: str
    head: str
    problem: str

    @property
    def is_whole(self) -> bool:
        return not self.problem


def verify(records: Iterable[Record]) -> Verified:
    """Walks the chain to its end or to the first link that does not hold."""
    count, anchor, head, problem = 0, GENESIS, GENESIS, ""
    first_ms: int | None = None
    last_ms: int | None = None
    for record in records:
        where = f"record {count + 1} ({record.open_time_ms})"
        if count == 0:
            anchor, first_ms = record.previous, record.open_time_ms
        elif record.previous != head:
            problem = f"{where} does not follow the one before: something was taken out or put in"
        elif last_ms is not None and record.open_time_ms <= last_ms:
            problem = f"{where} is not later than the one before"
        if not problem and hash_of(record.previous, record.text) != record.hash:
            problem = f"{where} was changed: its hash is not that of its text"
        if problem:
            break
        count, head, last_ms = count + 1, record.hash, record.open_time_ms
    return Verified(
        records=count, first_ms=first_ms, last_ms=last_ms, anchor=anchor, head=head, problem=problem
    )


def differing(records: Iterable[Record], signals: Mapping[int, Entry[Signal]]) -> Iterator[str]:
    """Ids of records that say another thing than the signals that still stand on the bus.

    signals: by open time.
    """
    for record in records:
        entry = signals.get(record.open_time_ms)
        if entry is None:
            continue
        told = json.loads(record.text)
        if text_of(entry, told.get("recorded_ms")) != record.text:
            yield str(told["id"])


def files_of(data_folder: Path, symbol: str, interval: str) -> list[Path]:
    """The archived days, oldest first (`auditor.archive` writes them)."""
    folder = data_folder / f"{symbol}-{interval}-record"
    return sorted(path for path in folder.glob("*.txt") if _DAY.fullmatch(path.stem))


def read_file(path: Path) -> Iterator[Record]:
    """The records of a file, line by line.

    Raises:
        BadInput: it cannot be read, or a line is none; the text names it.
    """
    try:
        with path.open(encoding="ascii") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    yield record_of(line)
                except BadInput as error:
                    raise BadInput(f"{path}: line {number}: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not ASCII text"
        raise BadInput(f"{path}: cannot read the record: {reason}") from None
