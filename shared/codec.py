"""Bus entries to events and back.

An entry is a few plain text fields for people and `data`: one msgpack map keyed by field name with
`v` (shape version), `meta` (our own clocks) and `crc` (crc32 of the map without it).
"""

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from types import UnionType
from typing import Any, Generic, TypeVar, get_args, get_origin

import msgpack

from shared import events
from shared.errors import BadInput

VERSION = 1
E = TypeVar("E")
_CRC_KEY = b"\xa3crc"
_pack = msgpack.packb


def encode(event: Any, meta: events.Meta) -> bytes:
    """`data` of an entry."""
    body: dict[str, Any] = {"v": VERSION}
    for name in _names(type(event)):  # type: ignore[arg-type]  # a class is hashable
        body[name] = getattr(event, name)
    clocks: dict[str, int] = {
        "received_us": meta.received_us,
        "published_us": meta.published_us,
    }
    if meta.market_ms is not None:
        clocks["market_ms"] = meta.market_ms
    body["meta"] = clocks
    packed: bytes = _pack(body)
    tail = packed[_header_size(len(body)) :]
    return b"".join(
        (_map_header(len(body) + 1), tail, _CRC_KEY, _pack(zlib.crc32(packed)))  # crc comes last
    )


@dataclass(frozen=True, slots=True)
class Decoded(Generic[E]):
    event: E
    meta: events.Meta


def decode(kind: type[E], data: bytes | None, *, max_bytes: int = 1 << 20) -> Decoded[E]:
    """The event in `data`; unknown fields are ignored, missing ones take their default.

    Raises:
        BadInput: too long, not msgpack, wrong crc or version, a field missing or of another type,
            an infinite number.
    """
    if data is None:
        raise BadInput("the entry has no `data` field")
    if len(data) > max_bytes:
        raise BadInput(f"`data` has {len(data)} bytes, the limit is {max_bytes}")
    try:
        body = msgpack.unpackb(data)
    except (ValueError, msgpack.UnpackException, UnicodeDecodeError, TypeError) as error:
        raise BadInput(f"`data` is not a msgpack map: {type(error).__name__}") from None
    if not isinstance(body, dict) or "crc" not in body:
        raise BadInput("`data` is not a msgpack map with a crc")
    crc = body.pop("crc")
    if crc != _checksum(data, body, crc):
        raise BadInput("`data` does not match its crc")
    if body.get("v") != VERSION:
        raise BadInput(f"`data` has shape version {body.get('v')!r}, known is {VERSION}")
    values: dict[str, Any] = {}
    for name, plain, check, required in _checks(kind):  # type: ignore[arg-type]  # as above
        if name not in body:
            if required:
                raise BadInput(f"field `{name}` is missing")
            continue
        value: Any = body[name]
        # The common case first: the very type, and no infinity (inf - inf is NaN; so is NaN - NaN).
        if plain is float:
            simple = type(value) is float and value - value == 0
        else:
            simple = type(value) is plain
        if simple:
            values[name] = value
        else:
            values[name] = check(name, value)
    return Decoded(kind(**values), _meta(body.get("meta")))


def _checksum(data: bytes, body: dict[str, Any], crc: Any) -> int:
    """crc32 of the map without its crc, without packing it again where the crc stands last."""
    end = _CRC_KEY + _pack(crc)
    if not data.endswith(end):
        return zlib.crc32(_pack(body))
    start = _header_size(len(body) + 1)
    return zlib.crc32(memoryview(data)[start : -len(end)], zlib.crc32(_map_header(len(body))))


def _header_size(count: int) -> int:
    return 1 if count < 16 else 3


@cache
def _map_header(count: int) -> bytes:
    """msgpack's header of a map of `count` pairs."""
    return bytes([0x80 | count]) if count < 16 else b"\xde" + count.to_bytes(2, "big")


def content(data: bytes) -> dict[str, Any]:
    """What two entries are compared by: the map without `meta` and `crc`. NaN equals NaN."""
    body: dict[str, Any] = msgpack.unpackb(data)
    body.pop("crc", None)
    body.pop("meta", None)
    return body


def same_content(one: bytes, other: bytes) -> bool:
    """Bit-for-bit equality of two entries' content."""
    try:
        return bool(_pack(content(one)) == _pack(content(other)))
    except (ValueError, AttributeError, msgpack.UnpackException):
        return False


def _meta(clocks: Any) -> events.Meta:
    if not isinstance(clocks, dict):
        return events.Meta(received_us=0, published_us=0)
    market_ms = clocks.get("market_ms")
    return events.Meta(
        received_us=_whole("meta.received_us", clocks.get("received_us", 0)),
        published_us=_whole("meta.published_us", clocks.get("published_us", 0)),
        market_ms=None if market_ms is None else _whole("meta.market_ms", market_ms),
    )


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadInput(f"field `{name}` is not a number")
    number = float(value)
    if math.isinf(number):
        raise BadInput(f"field `{name}` is infinite")
    return number


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadInput(f"field `{name}` is not a whole number")
    return value


def _exactly(kind: type) -> Callable[[str, Any], Any]:
    def check(name: str, value: Any) -> Any:
        if not isinstance(value, kind):
            raise BadInput(f"field `{name}` is not {kind.__name__}")
        return value

    return check


def _mapping(name: str, value: Any) -> dict[str, float]:
    if not isinstance(value, Mapping):
        raise BadInput(f"field `{name}` is not a map")
    return {str(key): _number(f"{name}.{key}", number) for key, number in value.items()}


def _bytes_mapping(name: str, value: Any) -> dict[str, bytes]:
    if not isinstance(value, Mapping):
        raise BadInput(f"field `{name}` is not a map")
    return {str(k): v if isinstance(v, bytes) else str(v).encode() for k, v in value.items()}


def _check_of(annotation: Any) -> Callable[[str, Any], Any]:
    if isinstance(annotation, UnionType):
        inner = _check_of(next(a for a in get_args(annotation) if a is not type(None)))
        return lambda name, value: None if value is None else inner(name, value)
    if get_origin(annotation) is dict:
        return _mapping if get_args(annotation)[1] is float else _bytes_mapping
    if annotation is float:
        return _number
    if annotation is int:
        return _whole
    return _exactly(annotation)


@cache
def _names(kind: type[Any]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


@cache
def _checks(
    kind: type[Any],
) -> tuple[tuple[str, type | None, Callable[[str, Any], Any], bool], ...]:
    """Per field: name, the plain type that needs no closer look, the check, whether it must be."""
    return tuple(
        (
            f.name,
            f.type if f.type in (float, int, str, bytes, bool) else None,
            _check_of(f.type),
            f.default is MISSING and f.default_factory is MISSING,
        )
        for f in fields(kind)
    )
