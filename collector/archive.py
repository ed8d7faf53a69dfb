"""The archive: what was seen, in monthly parquet files, and the data ledger beside them.

`{data_folder}/{symbol}-{interval}-klines/YYYY-MM.parquet` holds the true rows as far as they are
known: those that were written to the bus, and their later revisions in place of them. Gap markers
have no row there. `ledger.jsonl` in the same folder is the data ledger: one line per gap, repair,
refusal and revision, `{"time_ms", "code", "open_time_ms", "text", "row", "was"}`, only ever
appended to; `was` is the row that a revision replaced, null for a gap marker.
Futures candles lie in `{symbol}-{interval}-futures-klines`, the order-book rows of the bus in
`{symbol}-{interval}-depth`.

All work is done in a thread, every few minutes and at the end. What a crash loses is still on the
bus and comes back with the next start.
"""

import json
import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from collector.candles import Remark
from shared.errors import BadInput
from shared.events import Depth, Kline
from shared.klinefiles import (
    add_klines,
    kline_months,
    klines_folder,
    locked,
    month_bounds,
    month_of,
    read_columns,
    read_history,
    write_columns,
)
from shared.klines import DEPTH_COLUMNS, KlineTable

_MOST_ROWS = 12_000
_MOST_LINES = 10_000


class Archive:
    """The folder of one series. Rows and remarks gather in memory until `flush`."""

    def __init__(self, data_folder: Path, symbol: str, interval: str, *, futures: bool) -> None:
        folder = klines_folder(data_folder, symbol, interval)
        if futures:
            folder = folder.with_name(f"{symbol}-{interval}-futures-klines")
        self._folder = folder
        self._symbol = symbol
        self._interval = interval
        self.rows: dict[int, Kline] = {}
        self._lines: list[str] = []

    def add(self, klines: Iterable[Kline]) -> None:
        for kline in klines:
            if not kline.gap:
                self.rows[kline.open_time_ms] = kline

    def tell(self, remarks: Sequence[Remark]) -> None:
        """Into the ledger; a revised row replaces the archive's."""
        for remark in remarks:
            line: dict[str, object] = {
                "time_ms": time.time_ns() // 1_000_000,
                "code": remark.code,
                "open_time_ms": remark.open_time_ms,
                "text": remark.text,
            }
            if remark.kline is not None:
                line["row"] = _listed(remark.kline)
                self.add((remark.kline,))
            if remark.was is not None:
                line["was"] = None if remark.was.gap else _listed(remark.was)
            self._lines.append(json.dumps(line))

    def newest_ms(self) -> int | None:
        """Open time of the newest archived candle. Reads a file."""
        months = kline_months(self._folder)
        if not months:
            return None
        start, end = month_bounds(months[-1])
        try:
            table = read_history(
                self._folder,
                symbol=self._symbol,
                interval=self._interval,
                start_ms=start,
                end_ms=end,
            )
        except BadInput:
            return None
        return int(table.open_time_ms[-1]) if len(table) else None

    def take(self) -> tuple[list[Kline], list[str]]:
        """What is to be flushed; from now on it is the caller's."""
        rows = [self.rows[t] for t in sorted(self.rows)]
        lines = self._lines
        self.rows, self._lines = {}, []
        return rows, lines

    def give_back(self, rows: Sequence[Kline], lines: Sequence[str]) -> None:
        """A flush failed: newer rows and lines stay in front.

        While the folder cannot be written the oldest go, beyond what a week brings: rows are still
        on the bus and come back with the next start, remarks were told.
        """
        self.rows = {row.open_time_ms: row for row in rows} | self.rows
        for open_time_ms in sorted(self.rows)[: max(0, len(self.rows) - _MOST_ROWS)]:
            del self.rows[open_time_ms]
        self._lines = [*lines, *self._lines][-_MOST_LINES:]

    def flush(self, rows: Sequence[Kline], lines: Sequence[str]) -> None:
        """Writes to disk; for a thread.

        Raises:
            Failure: the folder cannot be written. BadInput: a file in it is damaged.
        """
        if rows:
            table = KlineTable(
                symbol=self._symbol,
                interval=self._interval,
                open_time_ms=np.array([row.open_time_ms for row in rows], dtype=np.int64),
                values=np.array([row.row() for row in rows], dtype=np.float64),
            )
            add_klines(self._folder, table)
        if lines:
            self._folder.mkdir(parents=True, exist_ok=True)
            with (self._folder / "ledger.jsonl").open("a", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in lines))


def _listed(row: Kline) -> list[float | None]:
    return [None if math.isnan(value) else value for value in row.row()]


def newest_book_ms(folder: Path) -> int | None:
    """Open time of the newest archived order-book row. Reads a file.

    Raises:
        BadInput: the file is damaged.
    """
    months = kline_months(folder)
    if not months:
        return None
    return int(read_columns(folder / f"{months[-1]}.parquet", ["open_time_ms"])["open_time_ms"][-1])


def add_books(folder: Path, books: Sequence[Depth]) -> None:
    """Adds order-book rows, oldest first, to the monthly files; for a thread. Safe to repeat.

    Raises:
        Failure: the folder cannot be written. BadInput: a file in it is damaged.
    """
    of_month: dict[str, dict[int, Depth]] = {}
    for book in books:
        of_month.setdefault(month_of(book.open_time_ms), {})[book.open_time_ms] = book
    with locked(folder):
        for month, rows in of_month.items():
            path = folder / f"{month}.parquet"
            times = np.array(list(rows), dtype=np.int64)
            values = np.array([np.frombuffer(row.values, "<f8") for row in rows.values()])
            columns = {"open_time_ms": times} | dict(zip(DEPTH_COLUMNS, values.T, strict=True))
            if path.exists():
                old = read_columns(path, ["open_time_ms", *DEPTH_COLUMNS])
                keep = ~np.isin(old["open_time_ms"], times)
                columns = {
                    name: np.concatenate([old[name][keep], column])
                    for name, column in columns.items()
                }
                order = np.argsort(columns["open_time_ms"])
                columns = {name: column[order] for name, column in columns.items()}
            write_columns(path, columns)
