"""The archive of USD-M order-book levels: kept as it is, in a folder of its own.

`{data_folder}/{symbol}-bookdepth/YYYY-MM.parquet`: time_ms, percentage, depth, notional, as the
archive has them: about every 30 s, and for each percentage from -5 to 5, what the futures book held
between the middle and that distance, in base and in quote asset.

This cannot become the rows that depth features read (`gap`, `bids_B`, `asks_B`): those are the
spread and the volumes in the first 20 hundredths of a percent, and the archive's first level is at
1 percent (of late 0.2), as a sum. Nor does the archive have the spread: its `bookTicker` files
ended in April 2024. So the history of depth features can only be rows that were recorded live (in
`{symbol}-{interval}-depth`, which merge reads), and these files are for studies of your own.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shared import klinefiles
from shared.errors import BadInput
from shared.times import floor_ms, iso
from trainer.binance import Archive, each
from trainer.progress import Progress

Columns = Mapping[str, npt.NDArray[Any]]

_DAY_MS = 86_400_000
_AT_ONCE = 4
_FLUSH_DAYS = 8
# A day that is not there so long after its end never will be.
_LATE_MS = 7 * _DAY_MS
_DAYS = "days"
_SHOWN = 10


def folder_of(data_folder: Path, symbol: str) -> Path:
    return data_folder / f"{symbol}-bookdepth"


async def complete(
    archive: Archive,
    folder: Path,
    symbol: str,
    start_ms: int,
    end_ms: int,
    progress: Progress,
    note: Callable[[str], None],
) -> dict[str, Any]:
    """Every whole day from `start_ms` to before `end_ms`; days that are there are not asked for.

    Written every few days, so that a download that is killed goes on where it stopped.
    """
    rows, new = 0, 0
    missing: list[str] = []
    first_ms = -(-start_ms // _DAY_MS) * _DAY_MS
    days = [iso(at)[:10] for at in range(first_ms, floor_ms(end_ms, _DAY_MS), _DAY_MS)]
    with progress.bar(f"{symbol} book depth", len(days), "days") as bar:
        for month in sorted({day[:7] for day in days}):
            of_month = [day for day in days if day[:7] == month]
            path = folder / f"{month}.parquet"
            asked = set(json.loads(klinefiles.read_metadata(path).get(_DAYS, "[]")))
            bar.advance(len(asked & set(of_month)), month)
            todo = [day for day in of_month if day not in asked]
            for at in range(0, len(todo), _FLUSH_DAYS):
                found: dict[str, Columns] = {}

                async def fetch(day: str, found: dict[str, Columns] = found) -> None:
                    columns = await _day(archive, symbol, day, note)
                    if columns is not None:
                        found[day] = columns
                    bar.advance(detail=day)

                part = todo[at : at + _FLUSH_DAYS]
                await each(part, fetch, _AT_ONCE)
                old = [day for day in part if _start(day) < end_ms - _LATE_MS]
                if archive.usable:
                    asked |= {*found, *old}
                new += sum(len(columns["time_ms"]) for columns in found.values())
                if found:
                    _add(path, found, asked)
            stored = klinefiles.read_columns(path) if path.exists() else {"time_ms": np.empty(0)}
            rows += len(stored["time_ms"])
            have = {iso(int(at) * _DAY_MS)[:10] for at in np.unique(stored["time_ms"] // _DAY_MS)}
            missing += [day for day in of_month if day not in have]
    if missing:
        note(
            f"{symbol} book depth: the archive has nothing of {len(missing)} of {len(days)} days, "
            f"the first is {missing[0]}"
        )
    return {
        "symbol": symbol,
        "rows": rows,
        "new": new,
        "missing_days": len(missing),
        "missing": missing[:_SHOWN],
        "wrote": [folder],
    }


def _start(day: str) -> int:
    first, _ = klinefiles.month_bounds(day[:7])
    return first + (int(day[8:]) - 1) * _DAY_MS


async def _day(
    archive: Archive, symbol: str, day: str, note: Callable[[str], None]
) -> Columns | None:
    name = f"{symbol}-bookDepth-{day}.zip"
    content = await archive.fetch(f"futures/um/daily/bookDepth/{symbol}/{name}")
    if content is None:
        return None
    try:
        found = klinefiles.read_zipped_columns(
            content,
            name,
            {
                "timestamp": "seconds",
                "percentage": "float64",
                "depth": "float64",
                "notional": "float64",
            },
        )
    except BadInput as error:
        note(f"{error}: not used")
        return None
    times = found["timestamp"]
    order = np.lexsort((found["percentage"], times))
    start = _start(day)
    if not len(times) or times.min() < start or times.max() >= start + _DAY_MS:
        note(f"{name}: holds times of another day, or none: not used")
        return None
    return {
        "time_ms": times[order],
        **{name: found[name][order] for name in ("percentage", "depth", "notional")},
    }


def _add(path: Path, found: Mapping[str, Columns], asked: set[str]) -> None:
    parts: list[Columns] = [klinefiles.read_columns(path)] if path.exists() else []
    parts += [found[day] for day in sorted(found)]
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[-1]}
    order = np.argsort(whole["time_ms"], kind="stable")
    klinefiles.write_columns(
        path,
        {name: column[order] for name, column in whole.items()},
        {_DAYS: json.dumps(sorted(asked))},
    )
