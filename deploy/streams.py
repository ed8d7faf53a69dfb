"""`itb streams` and `itb tail`: what stands on the bus, readable."""

import asyncio
import dataclasses
import itertools
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TextIO

from deploy.observer import Observer
from deploy.screen import columns
from shared.bus import Bus, Entry, Source, id_order
from shared.errors import Usage
from shared.streams import ALERT, DAILY, NOTIFICATION, STREAMS, dead_letters, of_chat
from shared.times import iso

_KEY = re.compile(
    r"(?P<name>[a-z]+)(?:@(?P<chat>@?[\w-]+))?(?::\{(?P<symbol>[^{}]+)\}(?::(?P<interval>\w+))?)?"
)
_MESSAGES = (NOTIFICATION, ALERT, DAILY)  # further chats have their own
_LAG_CAP = 10_000
_POLL_S = 0.1
_CHOOSE_EVERY = 20  # polls; a stream that comes up later is found then
_VALUES_SHOWN = 6


def source_of(key: str) -> Source[Any] | None:
    """The stream of a key such as `kline:{BTCUSDT}:1m` or `dead:kline:{BTCUSDT}:1m`."""
    if key.startswith("dead:"):
        return Source(dead_letters(key.removeprefix("dead:")))
    match = _KEY.fullmatch(key)
    if match is None:
        return None
    kinds, name = STREAMS, match["name"]
    if (chat := match["chat"]) is not None:
        kinds, name = tuple(of_chat(stream, chat) for stream in _MESSAGES), f"{name}@{chat}"
    stream = next((stream for stream in kinds if stream.name == name), None)
    if stream is None:
        return None
    source = Source(stream, match["symbol"] or "", match["interval"] or "")
    return source if source.key == key else None


async def sources_on(bus: Bus) -> list[Source[Any]]:
    """Every stream that is there, in the order of the pipeline."""
    rank = {stream.name: position for position, stream in enumerate(STREAMS)}
    patterns = (*(f"{stream.name}*" for stream in STREAMS), "dead:*")
    keys = {key for pattern in patterns for key in await bus.keys(pattern)}
    found = [source for key in sorted(keys) if (source := source_of(key)) is not None]
    return sorted(found, key=lambda s: (rank.get(_kind(s.stream.name), len(rank)), s.key))


def _kind(name: str) -> str:
    """`alert` of `alert@-100123`, a further chat's."""
    return name.partition("@")[0]


async def describe(bus: Bus) -> list[dict[str, Any]]:
    """Per stream: key, length, last id, and per group how far it is behind."""
    found = []
    for source in await sources_on(bus):
        groups = {}
        for name, (delivered, pending) in sorted((await bus.group_position(source)).items()):
            waiting = len(await bus.span(source, after=delivered, count=_LAG_CAP))
            groups[name] = {"delivered": delivered, "lag": waiting, "pending": pending}
        found.append(
            {
                "stream": source.key,
                "length": await bus.length(source),
                "last_id": await bus.last_id(source),
                "groups": groups,
            }
        )
    return found


def describe_text(streams: Sequence[dict[str, Any]]) -> str:
    if not streams:
        return "the bus is empty: `itb up` or `itb demo --hold` fills it"
    rows = [["stream", "length", "last id", "its time", "groups: lag (pending)"]]
    for stream in streams:
        last = stream["last_id"]
        groups = [
            f"{name} {group['lag']}{'+' if group['lag'] == _LAG_CAP else ''} ({group['pending']})"
            for name, group in stream["groups"].items()
        ]
        time = iso(id_order(last)[0]) if last else ""
        rows.append([stream["stream"], str(stream["length"]), last or "", time, "  ".join(groups)])
    return columns(rows)


def entry_text(entry: Entry[Any]) -> str:
    """`2026-11-22T12:00:00Z signal:{BTCUSDT}:1m score=+0.31 side=BUY ...`, one line."""
    time = iso(entry.time_ms)
    head = f"{time}  {entry.source.key}  {entry.id}"
    if entry.event is None:
        return f"{head}  cannot be read: {entry.problem}"
    body = "  ".join(f"{k}={_shown(v)}" for k, v in _fields(entry).items())
    return f"{head}  {body}"


def entry_json(entry: Entry[Any]) -> str:
    """One JSON object: stream, id, the event's fields, meta. NaN is null."""
    event = _fields(entry, whole=True) if entry.event is not None else None
    content = {
        "stream": entry.source.key,
        "id": entry.id,
        "event": event,
        "meta": dataclasses.asdict(entry.meta),
    }
    if entry.problem:
        content["problem"] = entry.problem
    return json.dumps(content, ensure_ascii=False)


def _fields(entry: Entry[Any], *, whole: bool = False) -> dict[str, Any]:
    """The event's fields. whole: all, as JSON can hold them; else what the key does not say."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(entry.source.stream.event):
        value = getattr(entry.event, field.name)
        if isinstance(value, bytes):
            value = memoryview(value).cast("d").tolist() if len(value) % 8 == 0 else value.hex()
        if whole:
            found[field.name] = _json_value(value)
        elif field.name not in ("symbol", "interval", "open_time_ms") and not _is_empty(value):
            found[field.name] = value
    return found


def _json_value(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_json_value(one) for one in value]
    if isinstance(value, dict):
        return {k: _json_value(v) for k, v in value.items()}
    return value.hex() if isinstance(value, bytes) else value


def _is_empty(value: Any) -> bool:
    return value is None or value in ("", {}) or (isinstance(value, float) and math.isnan(value))


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        head = ", ".join(_shown(one) for one in value[:_VALUES_SHOWN])
        more = f", ... {len(value)} in all" if len(value) > _VALUES_SHOWN else ""
        return f"[{head}{more}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_shown(v)}" for k, v in value.items()) + "}"
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if " " in text else text


async def choose(bus: Bus, name: str) -> list[Source[Any]]:
    """The streams that `name` means: a key, or the first part of keys (`signal`).

    Raises:
        Usage: there is no such stream.
    """
    exact = source_of(name)
    if exact is not None and (exact.symbol or not exact.stream.keyed_by):
        return [exact]
    known = {stream.name for stream in STREAMS} | {"dead"}
    if _kind(name.partition(":")[0]) not in known:
        raise Usage(f"no stream is called {name!r}; there are {', '.join(sorted(known))}")
    return [s for s in await sources_on(bus) if s.key == name or s.key.startswith(name + ":")]


async def tail(url: str, name: str, *, count: int, follow: bool, as_json: bool, out: TextIO) -> int:
    """Prints the last `count` entries, then (follow) what comes, until stopped."""
    last: dict[str, str | None] = {}
    show = entry_json if as_json else entry_text
    async with Observer(url, patience_s=float("inf") if follow else 5.0) as observer:
        for turn in itertools.count():
            if turn % _CHOOSE_EVERY == 0:
                sources = await observer.ask(partial(choose, name=name))
            fresh: list[Entry[Any]] = []
            for source in sources:
                new = partial(_new, source=source, last=last, count=count)
                entries = await observer.ask(new)
                last[source.key] = entries[-1].id if entries else last.get(source.key)
                fresh += entries
            for entry in sorted(fresh, key=lambda e: id_order(e.id)):
                out.write(show(entry) + "\n")
            out.flush()
            if not any(last.values()) and (not follow or turn == 0):
                sys.stderr.write(f"itb tail: nothing on {name!r} yet{_hint(name)}\n")
            if not follow:
                break
            await asyncio.sleep(_POLL_S)
    return 0


def _hint(name: str) -> str:
    """Keys carry the symbol in braces, which are easily forgotten."""
    parts = name.split(":")
    if len(parts) > 1 and "{" not in name:
        parts[1] = f"{{{parts[1]}}}"
        return f"; did you mean '{':'.join(parts)}'?"
    return "; `itb streams` lists what there is"


async def _new(
    bus: Bus, source: Source[Any], last: Mapping[str, str | None], count: int
) -> list[Entry[Any]]:
    if source.key in last:
        return await bus.span(source, after=last[source.key])
    return await bus.tail(source, count)
