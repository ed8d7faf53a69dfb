"""Kline events of many steps at once: the bytes that `events` and `wire` make one by one.

For a stream of the data's own interval whose numbers all have eight decimals; anything else is left
to `events`. Numbers are split into the digits before and after the point by NumPy, since writing
integers takes Python half the time of writing doubles.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from simulator.events import Topic, event_ms
from simulator.market import Series
from simulator.wire import frame, wrapped

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_UNIT = 10**8
_MOST = 2.0**26  # below it doubles are closer to each other than eight decimals
_COLUMNS = (0, 3, 1, 2, 4, 5, 7, 8)  # in the event's order: o c h l v q V Q


def kline_frames(
    topic: Topic, series: Series, prev_ms: int, instants: list[int], unit: int, combined: bool
) -> list[tuple[bytes, bool] | None] | None:
    """(frame, is it a close) at each instant, None where the stream says nothing.

    None for everything where `events` must say it.
    """
    base = series.base
    if topic.kind != "kline" or not series.serves(topic.interval):
        return None
    if series.level(topic.interval, topic.offset_ms) is not base:
        return None
    now = np.array(instants, dtype=np.int64)
    done = base.open_time_ms.searchsorted(now - base.step_ms, side="right")
    before = np.concatenate(([base.closed(prev_ms)], done[:-1]))
    closes = done > before
    index = np.where(closes, done - 1, np.minimum(done, len(base) - 1))
    says = closes | ((done < len(base)) & (base.open_time_ms[index] <= now))
    if not says.any() or (done - before > 1).any() or not base.is_plain[index[says]].all():
        return None
    values, first, last = base.values[index], base.first_id[index], base.last_id[index]
    opened = np.flatnonzero(says & ~closes)
    if len(opened):
        part = series.sums_at(index[opened], now[opened])
        if part is None:
            return None
        sums, is_part = part
        rows = opened[is_part]
        values[rows, 1:] = sums
        last[rows] = first[rows] + sums[:, 5].astype(np.int64) - 1
    values[~says] = 0.0
    wanted = values[:, _COLUMNS]
    digits = np.rint(wanted * _UNIT)
    if not (wanted < _MOST).all() or not (digits / _UNIT == wanted).all():
        return None
    table = np.empty((len(now), 22), dtype=np.int64)
    start = base.open_time_ms[index]
    ends = start + base.step_ms
    table[:, 0] = np.where(closes, event_ms(topic.symbol, ends), now) * unit
    table[:, 1], table[:, 2] = start * unit, ends * unit - 1
    table[:, 3], table[:, 4] = first, last
    parts = np.divmod(digits.astype(np.int64), _UNIT)
    table[:, 5:15:2], table[:, 6:15:2] = parts[0][:, :5], parts[1][:, :5]
    table[:, 15] = values[:, 6]
    table[:, 16::2], table[:, 17::2] = parts[0][:, 5:], parts[1][:, 5:]
    forms = [_form(topic, is_close, combined) for is_close in (False, True)]
    return [
        (frame(forms[is_close] % tuple(numbers)), is_close) if is_said else None
        for numbers, is_close, is_said in zip(
            table.tolist(), closes.tolist(), says.tolist(), strict=True
        )
    ]


@lru_cache(maxsize=65536)
def _form(topic: Topic, is_close: bool, combined: bool) -> bytes:
    """The payload but for its numbers."""
    symbol, interval = topic.symbol.replace("%", "%%"), topic.interval.replace("%", "%%")
    decimal = '"%d.%08d"'
    form = (
        f'{{"e":"kline","E":%d,"s":"{symbol}","k":{{"t":%d,"T":%d,"s":"{symbol}","i":"{interval}",'
        f'"f":%d,"L":%d,"o":{decimal},"c":{decimal},"h":{decimal},"l":{decimal},"v":{decimal},'
        f'"n":%d,"x":{"true" if is_close else "false"},"q":{decimal},"V":{decimal},"Q":{decimal},'
        f'"B":"0"}}}}'
    ).encode()
    return wrapped(topic.name.replace("%", "%%"), form) if combined else form
