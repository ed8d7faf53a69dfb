"""`trainer download`: history into the data folder, from Binance's bulk archive and REST.

A month that is missing comes as a monthly zip, else as daily zips, each checked against its
.CHECKSUM; what is still missing (the newest days, small holes, damaged zips) comes from REST. What
REST does not have either never existed, and is said. Months are written whole, so that a download
that is killed goes on where it stopped; a month that was looked through is marked and not asked for
again. A candle counts as closed once the exchange has a later one: true of a replayed market, too.
With futures come the USD-M candles and the funding rates (`trainer/funding.py`), with --depth the
archive of order-book levels (`trainer/bookdepth.py`).
"""

import argparse
import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import numpy as np
import numpy.typing as npt

from shared import klinefiles
from shared.config import Settings
from shared.errors import BadInput, Failure, Rejected, Unavailable, Usage
from shared.klines import KLINE_COLUMNS, KlineTable
from shared.times import floor_ms, interval_ms, iso
from trainer import bookdepth, funding, rasters
from trainer.binance import PAGE, Archive, Market, Rest, Sleep, each, futures, spot
from trainer.csvfiles import write_csv
from trainer.progress import Bar, Progress

Times = npt.NDArray[np.int64]

_DAY_MS = 86_400_000
_FLUSH_ROWS = 20 * PAGE
_MONTHS_AT_ONCE = 4
_COMPLETE_FROM = "complete_from_ms"
_RANGES_SHOWN = 10
# Monthly spot files that differ from the daily ones and from REST, which agree: binance.md 13.
_WRONG_MONTHS = frozenset({"2020-12", "2021-09"})


@dataclass(slots=True, kw_only=True)
class Report:
    """What became of one symbol of one market."""

    symbol: str
    interval: str
    market: str
    folder: Path
    first_ms: int = 0
    end_ms: int = 0
    rows: int = 0
    from_archive: int = 0
    from_rest: int = 0
    missing: list[tuple[int, int]] = field(default_factory=list)  # (open time, rows)

    def plain(self) -> dict[str, Any]:
        longest = sorted(self.missing, key=lambda gap: -gap[1])[:_RANGES_SHOWN]
        return {
            "symbol": self.symbol,
            "interval": self.interval,
            "market": self.market,
            "first": iso(self.first_ms),
            "end": iso(self.end_ms),
            "rows": self.rows,
            "from_archive": self.from_archive,
            "from_rest": self.from_rest,
            "missing": sum(rows for _, rows in self.missing),
            "missing_ranges": [{"from": iso(start), "rows": rows} for start, rows in longest],
            "wrote": [self.folder],
        }


# --- one symbol ----------------------------------------------------------------------------------


class History:
    """Completes the months of one symbol."""

    def __init__(
        self, rest: Rest, archive: Archive, folder: Path, symbol: str, interval: str
    ) -> None:
        self._rest = rest
        self._archive = archive
        self._symbol = symbol
        self._interval = interval
        self._step_ms = interval_ms(interval)
        self._folder = folder
        self.report = Report(
            symbol=symbol, interval=interval, market=rest.market.name, folder=folder
        )

    async def complete(
        self, start_ms: int | None, end_ms: int | None, days: float, progress: Progress
    ) -> Report:
        """Every candle from `start_ms` to `end_ms`, as far as the exchange has closed candles.

        start_ms None: `days` before the end, or a little more. end_ms None: the newest candle.
        """
        symbol, market = self._symbol, self._rest.market.name
        try:
            newest = await self._rest.klines(symbol, self._interval, limit=1)
            oldest = await self._rest.klines(symbol, self._interval, startTime=0, limit=1)
            if not newest or not oldest:
                raise Failure(f"{symbol} ({market}): the exchange has no candles of it")
            first_ms, last_ms = int(oldest[0][0]), int(newest[-1][0])
        except Rejected as error:
            raise Failure(f"{symbol} ({market}): {error}") from None
        except (TypeError, ValueError, IndexError, KeyError):
            url = self._rest.market.rest_url
            raise Failure(f"{url}: its klines are not rows of klines") from None
        end_ms = floor_ms(last_ms if end_ms is None else min(end_ms, last_ms), self._step_ms)
        if start_ms is None:
            month = klinefiles.month_of(max(0, end_ms - int(days * _DAY_MS)))
            start_ms = klinefiles.month_bounds(month)[0]
        start_ms = -(-max(start_ms, first_ms) // self._step_ms) * self._step_ms
        if start_ms >= end_ms:
            raise Failure(
                f"{symbol} ({market}): no closed candle between {iso(start_ms)} and {iso(end_ms)}"
            )
        self.report.first_ms, self.report.end_ms = start_ms, end_ms
        months = klinefiles.months_between(start_ms, end_ms)
        with progress.bar(f"{symbol} {self._interval} {market}", len(months), "months") as bar:
            await each(
                months, lambda month: self._month(month, start_ms, end_ms, bar), _MONTHS_AT_ONCE
            )
        await asyncio.to_thread(self._look_through, start_ms, end_ms)
        return self.report

    async def _month(self, month: str, start_ms: int, end_ms: int, bar: Bar) -> None:
        month_start, month_end = klinefiles.month_bounds(month)
        start_ms, end_ms = max(start_ms, month_start), min(end_ms, month_end)
        path = self._folder / f"{month}.parquet"
        try:
            metadata = await asyncio.to_thread(klinefiles.read_metadata, path)
            if int(metadata.get(_COMPLETE_FROM, month_end)) <= start_ms:
                bar.advance(detail=month)
                return
            before = await asyncio.to_thread(self._read, start_ms, end_ms)
        except BadInput as error:
            raise BadInput(f"{error}; remove the file and run the download again") from None
        table = await self._from_archive(before, month, start_ms, end_ms)
        if len(table) > len(before):
            await asyncio.to_thread(klinefiles.add_klines, self._folder, table)
        table = await self._from_rest(table, start_ms, end_ms)
        if end_ms == month_end:
            await asyncio.to_thread(self._mark, month, start_ms)
        bar.advance(detail=month)

    async def _from_archive(
        self, table: KlineTable, month: str, start_ms: int, end_ms: int
    ) -> KlineTable:
        """The month's zip, or the zips of days: where that is fewer requests than REST."""
        if len(self._missing(table, start_ms, end_ms)) <= PAGE:
            return table
        is_wrong = self._rest.market.name == "spot" and month in _WRONG_MONTHS
        if end_ms == klinefiles.month_bounds(month)[1] and not is_wrong:
            table = await self._add_zip(table, month, start_ms, end_ms)
        for day_ms in range(floor_ms(start_ms, _DAY_MS), end_ms - _DAY_MS + 1, _DAY_MS):
            if not self._archive.usable:
                break
            day_start = max(start_ms, day_ms)
            if len(self._missing(table, day_start, day_ms + _DAY_MS)) > PAGE:
                date = iso(day_ms)[: len("2021-05-19")]
                table = await self._add_zip(table, date, start_ms, end_ms)
        return table

    async def _add_zip(
        self, table: KlineTable, date: str, start_ms: int, end_ms: int
    ) -> KlineTable:
        found = await self._archive.klines(self._rest.market, self._symbol, self._interval, date)
        if found is None:
            return table
        joined = klinefiles.overlay(found.between(start_ms, end_ms), table)
        self.report.from_archive += len(joined) - len(table)
        return joined

    async def _from_rest(self, table: KlineTable, start_ms: int, end_ms: int) -> KlineTable:
        """Asks for every hole, page by page, and writes now and then."""
        unwritten = klinefiles.no_klines(self._symbol, self._interval)
        for hole_start, hole_end in _ranges(
            self._missing(table, start_ms, end_ms), self._step_ms, PAGE
        ):
            from_ms = hole_start
            while from_ms < hole_end:
                rows = await self._rest.klines(
                    self._symbol,
                    self._interval,
                    startTime=from_ms,
                    endTime=hole_end - 1,
                    limit=PAGE,
                )
                if not rows:
                    break
                page = klinefiles.read_rows(
                    rows, self._rest.market.rest_url, symbol=self._symbol, interval=self._interval
                ).between(from_ms, hole_end)
                last_ms = int(rows[-1][0])
                if last_ms < from_ms:  # and would ask for the same for ever
                    raise Unavailable(f"{self._rest.market.rest_url}: klines from before startTime")
                unwritten = klinefiles.overlay(page, unwritten)
                # Off the raster there may be candles in between.
                from_ms = last_ms + 1 if last_ms + self._step_ms < hole_end else hole_end
                if len(unwritten) >= _FLUSH_ROWS:
                    table = await self._flush(table, unwritten)
                    unwritten = klinefiles.no_klines(self._symbol, self._interval)
        return await self._flush(table, unwritten)

    async def _flush(self, table: KlineTable, rows: KlineTable) -> KlineTable:
        if not len(rows):
            return table
        joined = klinefiles.overlay(rows, table)  # what is on disk already stays
        self.report.from_rest += len(joined) - len(table)
        await asyncio.to_thread(klinefiles.add_klines, self._folder, joined)
        return joined

    def _missing(self, table: KlineTable, start_ms: int, end_ms: int) -> Times:
        raster = np.arange(start_ms, end_ms, self._step_ms, dtype=np.int64)
        return np.setdiff1d(raster, table.open_time_ms, assume_unique=True)

    def _read(self, start_ms: int, end_ms: int) -> KlineTable:
        return klinefiles.read_history(
            self._folder,
            symbol=self._symbol,
            interval=self._interval,
            start_ms=start_ms,
            end_ms=end_ms,
        )

    def _mark(self, month: str, start_ms: int) -> None:
        """All of an ended month was asked for: what it lacks does not exist."""
        with klinefiles.locked(self._folder):
            table = self._read(*klinefiles.month_bounds(month))
            if len(table):
                metadata = {_COMPLETE_FROM: str(start_ms)}
                klinefiles.write_month(self._folder, month, table, metadata)

    def _look_through(self, start_ms: int, end_ms: int) -> None:
        for month in klinefiles.months_between(start_ms, end_ms):
            first_ms, next_ms = klinefiles.month_bounds(month)
            table = self._read(max(start_ms, first_ms), min(end_ms, next_ms))
            self.report.rows += len(table)
            missing = self._missing(table, max(start_ms, first_ms), min(end_ms, next_ms))
            for hole_start, hole_end in _ranges(missing, self._step_ms, 1):
                rows = (hole_end - hole_start) // self._step_ms
                last = self.report.missing[-1] if self.report.missing else (0, 0)
                if last[0] + last[1] * self._step_ms == hole_start:
                    self.report.missing[-1] = (last[0], last[1] + rows)
                else:
                    self.report.missing.append((hole_start, rows))


def _ranges(times: Times, step_ms: int, reach: int) -> list[tuple[int, int]]:
    """[start, end) around the times; those less than `reach` steps apart share one."""
    if not len(times):
        return []
    cuts = np.flatnonzero(np.diff(times) > reach * step_ms)
    starts = times[np.concatenate([[0], cuts + 1])]
    ends = times[np.concatenate([cuts, [len(times) - 1]])] + step_ms
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


# --- the command ---------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--symbol", action="append", metavar="S", help="instead of the config's")
    parser.add_argument("--interval", metavar="I", help="instead of the config's")
    parser.add_argument(
        "--start",
        metavar="YYYY-MM-DD",
        help="first day; default: what training looks at (trainer.train_days, and a month more)",
    )
    parser.add_argument("--end", metavar="YYYY-MM-DD", help="day after the last; default: now")
    parser.add_argument(
        "--futures",
        action="store_true",
        help="USD-M klines and funding as well; default where the config uses futures",
    )
    parser.add_argument(
        "--depth",
        action="store_true",
        help="the archive of USD-M order-book levels at whole percents as well (no features of it)",
    )
    parser.add_argument("--no-archive", action="store_true", help="REST only")
    parser.add_argument("--csv", action="store_true", help="write each as one csv file as well")


def run(settings: Settings, args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    interval = args.interval or settings.interval
    interval_ms(interval)
    start_ms = None if args.start is None else _day_ms("--start", args.start)
    end_ms = None if args.end is None else _day_ms("--end", args.end)
    if start_ms is not None and end_ms is not None and start_ms >= end_ms:
        raise Usage(f"--start {args.start} is not before --end {args.end}")
    return asyncio.run(
        download(
            settings,
            progress,
            symbols=args.symbol or settings.symbols,
            interval=interval,
            start_ms=start_ms,
            end_ms=end_ms,
            with_futures=args.futures
            or bool(settings.features_futur)
            or settings.collector.futures,
            with_archive=not args.no_archive,
            with_depth=args.depth,
            with_csv=args.csv,
        )
    )


async def download(
    settings: Settings,
    progress: Progress,
    *,
    symbols: list[str] | tuple[str, ...],
    interval: str,
    start_ms: int | None = None,
    end_ms: int | None = None,
    with_futures: bool = False,
    with_archive: bool = True,
    with_depth: bool = False,
    with_csv: bool = False,
    sleep: Sleep = asyncio.sleep,
    now: Callable[[], float] = time.time,
) -> dict[str, Any]:
    """Completes the history of some symbols; returns what became of each.

    start_ms: default trainer.train_days and a month before the end; end_ms: default the newest.

    Raises:
        Failure: the exchange cannot be reached, or does not know the symbol.
    """
    days = settings.trainer.train_days + 31
    if with_depth and not with_archive:
        raise Usage("--depth comes from the archive alone: leave out --no-archive")
    markets = [spot(settings.binance_rest_url)]
    if with_futures:
        markets.append(futures(settings.futures_rest_url))
    timeout = aiohttp.ClientTimeout(total=300, sock_connect=10, sock_read=30)
    outputs: list[dict[str, Any]] = []
    rates: list[dict[str, Any]] = []
    books: list[dict[str, Any]] = []
    spans: dict[str, tuple[int, int]] = {}
    async with aiohttp.ClientSession(timeout=timeout, trust_env=True) as session:
        for market in markets:
            url = archive_for(settings, market, progress) if with_archive else ""
            archive = Archive(session, url, progress.note, sleep=sleep)
            budget = settings.collector.weight_budget
            rest = Rest(session, market, budget=budget, sleep=sleep, now=now)
            place = rasters.futures_folder if market.name == "futures" else klinefiles.klines_folder
            for symbol in symbols:
                folder = place(settings.data_folder, symbol, interval)
                history = History(rest, archive, folder, symbol, interval)
                report = await history.complete(start_ms, end_ms, days, progress)
                outputs.append(report.plain())
                spans[symbol] = (report.first_ms, report.end_ms)
                if report.missing:
                    progress.note(_missing_sentence(report))
                if with_csv:
                    outputs[-1]["wrote"].append(
                        await asyncio.to_thread(_write_csv, report, progress)
                    )
                if market.name == "futures":
                    folder = funding.folder_of(settings.data_folder, symbol)
                    found = await funding.complete(
                        rest, archive, folder, symbol, report.first_ms, report.end_ms
                    )
                    if found["missing"]:
                        progress.note(funding.missing_sentence(found))
                    if with_csv:
                        found["wrote"].append(await asyncio.to_thread(_csv_of, folder, progress))
                    rates.append(found)
        if with_depth:
            market = futures(settings.futures_rest_url)
            url = archive_for(settings, market, progress)
            if not url:
                raise Usage(
                    "--depth comes from the archive alone, and there is none for this exchange; "
                    "set archive_url"
                )
            archive = Archive(session, url, progress.note, sleep=sleep)
            for symbol in symbols:
                folder = bookdepth.folder_of(settings.data_folder, symbol)
                found = await bookdepth.complete(
                    archive, folder, symbol, *spans[symbol], progress, progress.note
                )
                if with_csv and found["rows"]:
                    found["wrote"].append(await asyncio.to_thread(_csv_of, folder, progress))
                books.append(found)
    result: dict[str, Any] = {
        "command": "download",
        "rows": sum(output["rows"] for output in outputs),
        "new": sum(output["from_archive"] + output["from_rest"] for output in outputs),
        "missing": sum(output["missing"] for output in outputs),
        "outputs": outputs,
    }
    return result | ({"funding": rates} if rates else {}) | ({"depth": books} if books else {})


def _csv_of(folder: Path, progress: Progress) -> Path:
    """One csv file beside a monthly folder, of all its months."""
    months = [
        klinefiles.read_columns(folder / f"{month}.parquet")
        for month in klinefiles.kline_months(folder)
    ]
    path = folder.with_name(f"{folder.name}.csv")
    if months:
        columns = {name: np.concatenate([month[name] for month in months]) for name in months[0]}
        write_csv(path, columns, progress)
    return path


def _write_csv(report: Report, progress: Progress) -> Path:
    """One csv file beside the monthly folder of some candles."""
    table = klinefiles.read_history(report.folder, symbol=report.symbol, interval=report.interval)
    columns: dict[str, npt.NDArray[Any]] = {"open_time_ms": table.open_time_ms}
    columns |= {name: table.column(name) for name in KLINE_COLUMNS}
    columns["close_time_ms"] = table.open_time_ms + (table.step_ms - 1)
    path = report.folder.with_name(f"{report.folder.name}.csv")
    write_csv(path, columns, progress)
    return path


def summary(result: Mapping[str, Any]) -> str:
    places = ", ".join(str(output["wrote"][0]) for output in result["outputs"])
    return (
        f"download: {result['rows']:,} candles ({result['new']:,} new, {result['missing']:,} that "
        f"the exchange does not have) in {places}"
    )


def archive_for(settings: Settings, market: Market, progress: Progress) -> str:
    """The archive's URL, or nothing where it would be of another market than REST.

    Binance's own archive beside a simulator's REST would mix two different pasts.
    """
    default = type(settings).model_fields["archive_url"].default
    host = urlsplit(market.rest_url).hostname or ""
    own = host.endswith((".binance.com", ".binance.vision")) and "testnet" not in host
    if settings.archive_url == default and not own:
        progress.note(f"{host} is not Binance itself: without Binance's bulk archive, REST only")
        return ""
    return settings.archive_url


def _missing_sentence(report: Report) -> str:
    start_ms, rows = max(report.missing, key=lambda gap: gap[1])
    total = sum(count for _, count in report.missing)
    return (
        f"{report.symbol} {report.interval} {report.market}: the exchange has no candle for "
        f"{total:,} of the raster's rows, in {len(report.missing)} gaps; the longest is {rows:,} "
        f"rows from {iso(start_ms)}"
    )


def _day_ms(option: str, text: str) -> int:
    try:
        day = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise Usage(f"{option} {text!r}: give a day as YYYY-MM-DD") from None
    return int(day.timestamp()) * 1000
