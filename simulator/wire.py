"""How the exchange writes: decimal texts, candles as REST rows and stream events, websocket frames.

Every number survives the trip: float(text(x)) == x. Eight decimals where they are enough (Binance's
own form), more digits where they are not, never an exponent. A value that the source does not have
is the text "NaN": the real exchange always has these values, and a made-up one would be worse.
"""

import json
import math
import struct
from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache
from typing import NamedTuple

MILLISECONDS = 1
MICROSECONDS = 1000


class Candle(NamedTuple):
    """One candle as the exchange shows it, open or closed.

    values: the nine numbers in KLINE_COLUMNS order; NaN = the source has no such value.
    first_id, last_id: public trade ids in it, -1 when there was no trade.
    is_plain: eight decimals are known to hold every value exactly.
    """

    open_time_ms: int
    close_time_ms: int
    values: tuple[float, ...]
    first_id: int
    last_id: int
    is_plain: bool = False


def text(value: float) -> str:
    """Decimal text that reads back as exactly this double; "NaN" for a missing value."""
    short = f"{value:.8f}"
    if float(short) == value:
        return short
    if math.isnan(value):
        return "NaN"
    return f"{Decimal(repr(value)):f}"


def count_text(value: float) -> str:
    """JSON for a number of trades: an integer, or the string "NaN"."""
    return str(int(value)) if not math.isnan(value) else '"NaN"'


def stamp(time_ms: int, unit: int) -> int:
    return time_ms * unit


def end_stamp(close_time_ms: int, unit: int) -> int:
    """Close times end in 999 in milliseconds and in 999999 in microseconds."""
    return close_time_ms if unit == 1 else (close_time_ms + 1) * unit - 1


def kline_row(candle: Candle, unit: int = MILLISECONDS) -> str:
    """The REST row of twelve."""
    o, h, low, c, v, q, n, tb, tq = candle.values
    return (
        f'[{candle.open_time_ms * unit},"{text(o)}","{text(h)}","{text(low)}","{text(c)}",'
        f'"{text(v)}",{end_stamp(candle.close_time_ms, unit)},"{text(q)}",{count_text(n)},'
        f'"{text(tb)}","{text(tq)}","0"]'
    )


@lru_cache(maxsize=65536)
def _plain_form(symbol: str, interval: str, closed: bool) -> bytes:
    """The event of a plain candle but for its numbers."""
    symbol, interval = symbol.replace("%", "%%"), interval.replace("%", "%%")
    return (
        f'{{"e":"kline","E":%d,"s":"{symbol}","k":{{"t":%d,"T":%d,"s":"{symbol}","i":"{interval}",'
        '"f":%d,"L":%d,"o":"%.8f","c":"%.8f","h":"%.8f","l":"%.8f","v":"%.8f","n":%d,'
        f'"x":{"true" if closed else "false"},"q":"%.8f","V":"%.8f","Q":"%.8f","B":"0"}}}}'
    ).encode()


def kline_event(
    symbol: str, interval: str, candle: Candle, *, event_ms: int, closed: bool, unit: int
) -> bytes:
    """The payload of `<symbol>@kline_<interval>`."""
    o, h, low, c, v, q, n, tb, tq = candle.values
    if candle.is_plain:
        start, end = candle.open_time_ms * unit, end_stamp(candle.close_time_ms, unit)
        first, last = candle.first_id, candle.last_id
        numbers = (event_ms * unit, start, end, first, last, o, c, h, low, v, n, q, tb, tq)
        return _plain_form(symbol, interval, closed) % numbers
    return (
        f'{{"e":"kline","E":{event_ms * unit},"s":"{symbol}",'
        f'"k":{{"t":{candle.open_time_ms * unit},'
        f'"T":{end_stamp(candle.close_time_ms, unit)},"s":"{symbol}","i":"{interval}",'
        f'"f":{candle.first_id},"L":{candle.last_id},"o":"{text(o)}","c":"{text(c)}",'
        f'"h":"{text(h)}","l":"{text(low)}","v":"{text(v)}","n":{count_text(n)},'
        f'"x":{"true" if closed else "false"},"q":"{text(q)}","V":"{text(tb)}","Q":"{text(tq)}",'
        f'"B":"0"}}}}'
    ).encode()


def levels(side: Sequence[tuple[float, float]]) -> str:
    """Book levels as JSON."""
    return "[" + ",".join(f'["{text(p)}","{text(q)}"]' for p, q in side) + "]"


def wrapped(stream: str, payload: bytes) -> bytes:
    """The form of combined connections."""
    return b"%b%b}" % (_wrapping(stream), payload)


@lru_cache(maxsize=65536)
def _wrapping(stream: str) -> bytes:
    return b'{"stream":' + json.dumps(stream).encode() + b',"data":'


_TEXT, _PING = 0x81, 0x89


def frame(payload: bytes, *, head: int = _TEXT) -> bytes:
    """One unmasked, unfragmented websocket frame (RFC 6455 section 5.2), as a server sends it."""
    size = len(payload)
    if size < 126:
        return bytes((head, size)) + payload
    if size < 65536:
        return struct.pack("!BBH", head, 126, size) + payload
    return struct.pack("!BBQ", head, 127, size) + payload


def ping_frame(payload: bytes) -> bytes:
    return frame(payload, head=_PING)
