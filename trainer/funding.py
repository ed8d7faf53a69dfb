"""Funding rates of USD-M futures: monthly files from the archive, the newest from REST.

`{data_folder}/{symbol}-funding/YYYY-MM.parquet`: funding_time_ms (to the minute; the exchange
stamps some milliseconds late), funding_rate, mark_price (NaN: the archive does not have it).
"""

import asyncio
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from shared import klinefiles
from shared.errors import BadInput, Unavailable
from shared.times import floor_ms, iso
from trainer.binance import PAGE, Archive, Rest

# time -> (rate, mark price)
Rates = dict[int, tuple[float, float]]

_MINUTE_MS = 60_000
# The longest time between two settlements; more is a hole.
LONGEST_MS = 8 * 3_600_000
_COMPLETE_FROM = "complete_from_ms"
_SHOWN = 10


def folder_of(data_folder: Path, symbol: str) -> Path:
    return data_folder / f"{symbol}-funding"


async def complete(
    rest: Rest, archive: Archive, folder: Path, symbol: str, start_ms: int, end_ms: int
) -> dict[str, Any]:
    """Every settlement from `start_ms` to before `end_ms`; what ended months lack is said.

    A month that was looked through is marked and not asked for again.
    """
    rows, new = 0, 0
    every: list[int] = []
    for month in klinefiles.months_between(start_ms, end_ms):
        first, next_ms = klinefiles.month_bounds(month)
        from_ms, to_ms = max(start_ms, first), min(end_ms, next_ms)
        path = folder / f"{month}.parquet"
        metadata = await asyncio.to_thread(klinefiles.read_metadata, path)
        held = await asyncio.to_thread(_read, path)
        before = len(held)
        if int(metadata.get(_COMPLETE_FROM, next_ms)) > from_ms:
            is_over = to_ms == next_ms
            if is_over and _holes(held, from_ms, to_ms, is_over):
                held = _joined(held, await _from_archive(archive, symbol, month))
            for hole_start, hole_end in _holes(held, from_ms, to_ms, is_over):
                held = _joined(held, await _from_rest(rest, symbol, hole_start, hole_end))
            if held and (len(held) > before or is_over):
                mark = {_COMPLETE_FROM: str(from_ms)} if is_over else {}
                await asyncio.to_thread(_write, path, held, mark)
        every += [time_ms for time_ms in held if from_ms <= time_ms < to_ms]
        rows, new = rows + len(held), new + len(held) - before
    missing = [
        (start, stop - start)
        for start, stop in itertools.pairwise(sorted(every))
        if stop - start > LONGEST_MS
    ]
    longest = sorted(missing, key=lambda hole: -hole[1])[:_SHOWN]
    return {
        "symbol": symbol,
        "rows": rows,
        "new": new,
        "missing": len(missing),
        "missing_ranges": [
            {"after": iso(start), "hours": round(length / 3_600_000, 2)}
            for start, length in longest
        ],
        "wrote": [folder],
    }


def missing_sentence(found: dict[str, Any]) -> str:
    longest = found["missing_ranges"][0]
    return (
        f"{found['symbol']} funding: the exchange has no settlement within 8 hours at "
        f"{found['missing']} places; the longest is {longest['hours']:g} hours after "
        f"{longest['after']}"
    )


def _holes(held: Rates, from_ms: int, to_ms: int, is_over: bool) -> list[tuple[int, int]]:
    """[start, end) of the times in which a settlement may be missing.

    is_over: nothing new comes before to_ms; else the time since the last one is asked for anyway.
    """
    times = [from_ms - 1, *sorted(t for t in held if from_ms <= t < to_ms), to_ms]
    return [
        (start + 1, stop)
        for start, stop in itertools.pairwise(times)
        if stop - start > LONGEST_MS or (stop == to_ms and not is_over)
    ]


def _joined(below: Rates, above: Rates) -> Rates:
    """Both; a mark price that only one of them has stays."""
    found = dict(below)
    for time_ms, (rate, mark) in above.items():
        old = found.get(time_ms, (np.nan, np.nan))[1]
        found[time_ms] = (rate, old if np.isnan(mark) else mark)
    return found


async def _from_archive(archive: Archive, symbol: str, month: str) -> Rates:
    name = f"{symbol}-fundingRate-{month}.zip"
    content = await archive.fetch(f"futures/um/monthly/fundingRate/{symbol}/{name}")
    if content is None:
        return {}
    try:
        columns = klinefiles.read_zipped_columns(
            content, name, {"calc_time": "int64", "last_funding_rate": "float64"}
        )
    except BadInput as error:
        archive.note(f"{error}: not used")
        return {}
    first, next_ms = klinefiles.month_bounds(month)
    found = {
        _to_minute(time_ms): (rate, float("nan"))
        for time_ms, rate in zip(
            columns["calc_time"].tolist(), columns["last_funding_rate"].tolist(), strict=True
        )
    }
    if not all(first <= time_ms < next_ms for time_ms in found):
        archive.note(f"{name}: holds times of another month: not used")
        return {}
    return found


async def _from_rest(rest: Rest, symbol: str, from_ms: int, to_ms: int) -> Rates:
    found: Rates = {}
    while from_ms < to_ms:
        page = await rest.get(
            "/fapi/v1/fundingRate",
            1,
            symbol=symbol,
            startTime=from_ms,
            endTime=to_ms - 1,
            limit=PAGE,
        )
        if not page:
            break
        try:
            for row in page:
                values = (float(row["fundingRate"]), float(row.get("markPrice") or "nan"))
                found[_to_minute(int(row["fundingTime"]))] = values
            last_ms = int(page[-1]["fundingTime"])
        except (TypeError, KeyError, ValueError):
            raise Unavailable(f"{rest.market.rest_url}: no funding rates in the reply") from None
        if last_ms < from_ms:  # and would ask for the same for ever
            raise Unavailable(f"{rest.market.rest_url}: funding rates from before startTime")
        if len(page) < PAGE:
            break
        from_ms = last_ms + 1
    return found


def _to_minute(time_ms: int) -> int:
    return floor_ms(time_ms + _MINUTE_MS // 2, _MINUTE_MS)


def _read(path: Path) -> Rates:
    if not path.exists():
        return {}
    old = klinefiles.read_columns(path)
    values = zip(old["funding_rate"].tolist(), old["mark_price"].tolist(), strict=True)
    return dict(zip(old["funding_time_ms"].tolist(), values, strict=True))


def _write(path: Path, rates: Rates, metadata: dict[str, str]) -> None:
    times = sorted(rates)
    klinefiles.write_columns(
        path,
        {
            "funding_time_ms": np.array(times, np.int64),
            "funding_rate": np.array([rates[time_ms][0] for time_ms in times]),
            "mark_price": np.array([rates[time_ms][1] for time_ms in times]),
        },
        metadata,
    )
