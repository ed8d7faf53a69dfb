"""The trader's journal on this machine's disk: a write-ahead log that comes before the bus.

An order may be sent only once its intent cannot be lost any more. The bus cannot promise that in
time (Redis writes its file to disk once a second: WAITAOF waits 90 ms in the median, and `always`
would slow every stream seven-fold), so each line is appended here first and, where an order hangs
on it, written to the platter (fdatasync, 0.1 ms). What the bus lacks is added to it from here.

A record is one line of text: crc32 of the rest in hex, a blank, JSON. The first names the file.
A record that a crash cut off is removed, and told; a damaged one in the middle is left out, and
told loudly. One process at a time: the file is locked.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import secrets
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from shared.errors import Failure, Unavailable
from shared.events import Order

VERSION = 1
_BEGIN_AGAIN = "start the trader again; it takes what the bus and the exchange know"
_DEFAULTS = {
    one.name: one.default_factory() if callable(one.default_factory) else one.default
    for one in fields(Order)
}
_decode = json.JSONDecoder().decode
_NAMES = frozenset(one.name for one in fields(Order))


class Taken(Exception):
    """Another process has the journal: it trades, this one waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What reading found besides lines. cut: bytes of an unfinished record at the end, which were
    removed. damaged: records in the middle that are not what was written."""

    lines: int = 0
    cut: int = 0
    damaged: int = 0


@dataclass(slots=True)
class OnBus:
    """What the bus was known to have: numbers of this file's newest lines, by symbol.

    acked: the server whose id is `server` had taken them. lasting: it had had them for so long
    that they are on its disk, too.
    """

    acked: dict[str, int] = field(default_factory=dict)
    lasting: dict[str, int] = field(default_factory=dict)
    server: str = ""


@dataclass(slots=True)
class Journal:
    """Use as `with Journal.open(path) as journal`; read it to its end before the first append.

    id: of this file, in every line that it was the first to hold. last: number of its newest.
    begun_ms: when it was made, our clock; 0 in one that an older version has made.
    """

    path: Path
    id: str = ""
    last: int = 0
    found: Found = Found()
    is_new: bool = False
    begun_ms: int = 0
    on_bus: OnBus = field(default_factory=OnBus)
    _fd: int = -1
    _size: int = 0
    _places: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    # By identity: how many of the symbol's lines stand before it.
    _taken_in: dict[tuple[str, int], int] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> "Journal":
        """Creates the file where there is none.

        Raises:
            Taken: another process has it.
            Failure: it cannot be used, by this user or at all.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise Failure(f"{path}: the trader needs its journal: {error.strerror}") from None
        journal = cls(path, _fd=fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            journal.close()
            raise Taken(f"another trader has {path}") from None
        try:
            journal._begin()
        except BaseException:
            journal.close()
            raise
        return journal

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _begin(self) -> None:
        """The first record; a file without one (or with half of one) is new."""
        self._size = os.fstat(self._fd).st_size
        with self.path.open("rb") as file:
            head = _body(file.readline())
        if head is None and not self._is_cut_head():
            raise Failure(
                f"{self.path} does not begin as a journal does: move it away; the trader takes "
                "what the bus and the exchange know"
            )
        if head is None:
            os.ftruncate(self._fd, 0)
            self._size, self.is_new = 0, True
            self.id = secrets.token_hex(8)
            self.begun_ms = time.time_ns() // 1_000_000
            head = {"journal": self.id, "version": VERSION, "begun_ms": self.begun_ms}
            self._append(_record(head))
            os.fsync(self._fd)
            with contextlib.suppress(OSError):  # the name must last, too, where the system can
                folder = os.open(self.path.parent, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
            return
        if head.get("version") != VERSION:
            raise Failure(f"{self.path} is a journal of another version: {head.get('version')!r}")
        self.id = str(head["journal"])
        self.begun_ms = int(head.get("begun_ms", 0))

    def _is_cut_head(self) -> bool:
        """Nothing but an unfinished first record."""
        with self.path.open("rb") as file:
            text = file.read(4096)
        return len(text) < 4096 and b"\n" not in text.rstrip(b"\n")

    # -- reading --------------------------------------------------------------------------------

    def lines(self) -> Iterator[Order]:
        """Every line, oldest first; afterwards `found` and `last` are known.

        Raises:
            Failure: the file was deleted.
        """
        if not self.path.exists():
            raise Failure(f"{self.path} was deleted while in use: {_BEGIN_AGAIN}")
        self._places.clear()
        self._taken_in.clear()
        self.last = 0
        self.on_bus = OnBus()
        offset = whole = count = damaged = pending = 0
        with self.path.open("rb") as file:
            for number, record in enumerate(file):
                start, offset = offset, offset + len(record)
                body = _body(record)
                if body is None:
                    pending += 1
                    continue
                damaged += pending
                pending, whole = 0, offset
                if number == 0:
                    continue
                if "on_bus" in body:
                    self._note_on_bus(body)
                    continue
                line = _line(body)
                if line is None:
                    damaged += 1
                    continue
                count += 1
                self._note(line, start)
                yield line
        cut = offset - whole
        if cut:
            os.ftruncate(self._fd, whole)
        self._size = whole
        self.found = Found(lines=count, cut=cut, damaged=damaged)

    def _note(self, line: Order, offset: int) -> None:
        places = self._places.setdefault(line.symbol, [])
        if line.journal == self.id:
            self.last = max(self.last, line.number)
            places.append((line.number, offset))
        else:
            self._taken_in[line.journal, line.number] = len(places)
            places.append((0, offset))

    def _note_on_bus(self, body: dict[str, Any]) -> None:
        found = {str(symbol): int(number) for symbol, number in body["on_bus"].items()}
        if body.get("lasting"):
            self.on_bus.lasting |= found
            return
        server = str(body.get("server", ""))
        # What another server had acknowledged is not known of this one.
        known = self.on_bus.acked if server == self.on_bus.server else {}
        self.on_bus.acked, self.on_bus.server = known | found, server

    def holds(self, line: Order) -> bool:
        """Whether a line of the bus is in here."""
        if line.journal == self.id:
            return line.number <= self.last
        return (line.journal, line.number) in self._taken_in

    def newest(self, symbol: str, *, before: Order | None = None) -> int:
        """Number of this file's own newest line of a symbol, 0 = none; before: that stands before
        this one, which it took in."""
        places = self._places.get(symbol, [])
        if before is not None:
            places = places[: self._taken_in[before.journal, before.number]]
        return max((number for number, _ in places), default=0)

    def knows(self, symbol: str) -> bool:
        """Whether it holds a line of that symbol."""
        return symbol in self._places

    def since(self, symbol: str, number: int) -> Iterator[Order]:
        """This file's own lines of a symbol behind `number`, oldest first; -1: all lines, those
        that it took in from other files included."""
        places = [place for place in self._places.get(symbol, []) if place[0] > number]
        with self.path.open("rb") as file:
            for _, offset in places:
                file.seek(offset)
                line = _line(_body(file.readline()) or {})
                if line is not None:
                    yield line

    # -- writing --------------------------------------------------------------------------------

    def append(self, lines: Sequence[Order]) -> list[Order]:
        """The lines with their identity, in the file (`sync` brings them to the disk).

        Raises:
            Unavailable: they are not in the file (the disk is full); nothing of them is.
        """
        numbered, records, size = [], [], self._size
        for line in lines:
            if not line.journal:
                self.last += 1
                line = replace(line, journal=self.id, number=self.last)  # noqa: PLW2901  # with its identity
            record = _record(_changed(line))
            self._note(line, size)
            size += len(record)
            numbered.append(line)
            records.append(record)
        self._append(b"".join(records))
        return numbered

    def _append(self, data: bytes) -> None:
        try:
            written = os.write(self._fd, data)
            if written != len(data):
                raise OSError(0, "the disk is full")
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
            raise Unavailable(f"{self.path} cannot be written: {error.strerror}") from None
        self._size += len(data)

    def bus_has(self, newest: Mapping[str, int], server: str, *, lasting: bool = False) -> None:
        """Notes what of this file's lines the bus has. Where that cannot be written, it is not
        known after a restart, and a bus that loses them is not told from one that never had them.
        """
        body = {"on_bus": dict(newest), "server": server, "lasting": lasting}
        self._note_on_bus(body)
        with contextlib.suppress(Unavailable):
            self._append(_record(body))

    def sync(self) -> None:
        """Brings everything to the disk. Blocks.

        Raises:
            Unavailable: it may not be there.
            Failure: the file was deleted, so that no restart would find it.
        """
        try:
            os.fdatasync(self._fd)
            is_named = os.fstat(self._fd).st_nlink > 0
        except OSError as error:
            raise Unavailable(f"{self.path} cannot be synced: {error.strerror}") from None
        if not is_named:
            raise Failure(f"{self.path} was deleted while in use: {_BEGIN_AGAIN}")


def _record(body: dict[str, Any]) -> bytes:
    text = json.dumps(body, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _body(record: bytes) -> dict[str, Any] | None:
    """None: it is not a whole record as it was written."""
    if len(record) < 12 or not record.endswith(b"\n") or record[8:9] != b" ":
        return None
    text = record[9:-1]
    try:
        if int(record[:8], 16) != zlib.crc32(text):
            return None
        body = _decode(text.decode())
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def _changed(line: Order) -> dict[str, Any]:
    """The fields that are not their default."""
    body: dict[str, Any] = {}
    for name in Order.__slots__:
        value = getattr(line, name)
        if name == "fills":
            value = {trade_id: fill.decode() for trade_id, fill in value.items()}
        elif name == "score" and value is not None and math.isnan(value):
            value = None  # JSON has no NaN
        if value != _DEFAULTS[name]:
            body[name] = value
    return body


def digest(line: Order) -> bytes:
    """Of everything that a record of the line says."""
    return hashlib.blake2b(_record(_changed(line)), digest_size=16).digest()


def _line(body: dict[str, Any]) -> Order | None:
    """None: it is no line of a journal. Fields that are not known here are left out."""
    values = body
    if not body.keys() <= _NAMES:
        values = {name: value for name, value in body.items() if name in _NAMES}
    if "fills" in values:
        values["fills"] = {key: text.encode() for key, text in values["fills"].items()}
    try:
        return Order(**values)
    except TypeError:
        return None
