"""`trainer download`: history into the data folder, from Binance's bulk archive and REST.

A month that is missing comes as a monthly zip, else as daily zips, each checked against its
.CHECKSUM; what is still missing (the newest days, small holes, damaged zips) comes from REST. What
REST does not have either never existed, and is said. Months are written whole, so that a download
that is killed goes on where it stopped; a month that was looked through is marked and not asked for
again. A candle counts as closed once the exchange has a later one: true of a replayed market, too.
"""

import argparse
import asyncio
import contextlib
import hashlib
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import aiohttp
import numpy as np
import numpy.typing as npt

from shared import klinefiles
from shared.config import Settings
from shared.errors import BadInput, Failure, Rejected, Unavailable, Usage
from shared.klines import KlineTable
from shared.times import floor_ms, interval_ms, iso
from trainer import rasters
from trainer.progress import Bar, Progress

Times = npt.NDArray[np.int64]
Sleep = Callable[[float], Awaitable[None]]

PAGE = 1000
_DAY_MS = 86_400_000
_TRIES = 6
_LONGEST_WAIT_S = 300  # a ban of more is for a person to wait out
_FLUSH_ROWS = 20 * PAGE
_MONTHS_AT_ONCE = 4
_COMPLETE_FROM = "complete_from_ms"
_RANGES_SHOWN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Market:
    """Where one kind of candle is found."""

    name: str
    rest_url: str
    klines_path: str
    archive_path: str
    weight_per_minute: int
    klines_weight: int


def spot(rest_url: str) -> Market:
    return Market(
        name="spot",
        rest_url=rest_url,
        klines_path="/api/v3/klines",
        archive_path="spot",
        weight_per_minute=6000,
        klines_weight=2,
    )


def futures(rest_url: str) -> Market:
    return Market(
        name="futures",
        rest_url=rest_url,
        klines_path="/fapi/v1/klines",
        archive_path="futures/um",
        weight_per_minute=2400,
        klines_weight=5,
    )


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


class Rest:
    """One exchange's REST: inside its request weight, patient with what passes.

    budget: share of the weight per minute that we may use.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        market: Market,
        *,
        budget: float,
        sleep: Sleep = asyncio.sleep,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.market = market
        self._session = session
        self._allowed = market.weight_per_minute * budget
        self._sleep = sleep
        self._now = now
        self._turn = asyncio.Lock()
        self._not_before = 0.0
        self._used = 0.0
        self._minute = 0

    async def get(self, path: str, weight: int, **parameters: str | int) -> Any:
        """The reply's JSON.

        Raises:
            Unavailable: still no good reply after some tries.
            Rejected: the exchange refuses the request itself.
            Failure: it has banned this address for long.
        """
        url = self.market.rest_url.rstrip("/") + path
        reason = ""
        for attempt in range(_TRIES):
            if attempt:
                await self._sleep(min(30.0, 0.5 * 2**attempt) * random.uniform(0.5, 1.0))
            async with self._turn:
                await self._keep_budget(weight)
            try:
                async with self._session.get(url, params=parameters) as response:
                    status = response.status
                    self._note_weight(response.headers.get("X-MBX-USED-WEIGHT-1M"))
                    if status in (418, 429):
                        reason = f"HTTP {status}"
                        self._hold_back(response)
                        continue
                    reply = await response.json(content_type=None)
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                reason = str(error) or type(error).__name__
                continue
            if status == 200:
                return reply
            text = reply.get("msg", "") if isinstance(reply, dict) else ""
            reason = f"HTTP {status} {text}".strip()
            if status < 500 and status != 408:
                raise Rejected(f"{url}: {reason}")
        raise Unavailable(f"{url}: no good reply after {_TRIES} tries ({reason})")

    async def klines(self, symbol: str, interval: str, **parameters: int) -> list[Any]:
        """Rows, oldest first; `parameters` as the exchange has them: startTime, endTime, limit."""
        rows = await self.get(
            self.market.klines_path,
            self.market.klines_weight,
            symbol=symbol,
            interval=interval,
            **parameters,
        )
        if not isinstance(rows, list):
            raise Unavailable(f"{self.market.rest_url}: klines are not a list")
        return rows

    async def _keep_budget(self, weight: int) -> None:
        """Waits until there is weight left; the exchange counts per clock minute."""
        now = self._now()
        if now < self._not_before:
            await self._sleep(self._not_before - now)
            now = self._now()
        if int(now // 60) != self._minute:
            self._minute, self._used = int(now // 60), 0.0
        if self._used + weight > self._allowed and self._used:
            await self._sleep(60 - now % 60 + 0.5)
            self._minute, self._used = int(self._now() // 60), 0.0
        self._used += weight

    def _note_weight(self, used: str | None) -> None:
        with contextlib.suppress(TypeError, ValueError):
            self._used = max(self._used, float(used or ""))

    def _hold_back(self, response: aiohttp.ClientResponse) -> None:
        """No request before the time that the exchange names."""
        try:
            wait_s = float(response.headers.get("Retry-After", "60"))
        except ValueError:
            wait_s = 60.0
        if wait_s > _LONGEST_WAIT_S:
            raise Failure(
                f"{self.market.rest_url}: refuses requests for {wait_s:.0f} s (HTTP "
                f"{response.status}); run the download again after that"
            )
        self._not_before = self._now() + wait_s


class Archive:
    """The bulk archive, until it cannot be reached."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        note: Callable[[str], None],
        *,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._session = session
        self._url = url.rstrip("/")
        self._note = note
        self._sleep = sleep
        self.usable = bool(url)

    async def klines(
        self, market: Market, symbol: str, interval: str, date: str
    ) -> KlineTable | None:
        """The candles of one month (`2021-05`) or day (`2021-05-19`); None: REST must do."""
        period = "monthly" if len(date) == len("2021-05") else "daily"
        name = f"{symbol}-{interval}-{date}.zip"
        path = f"data/{market.archive_path}/{period}/klines/{symbol}/{interval}/{name}"
        url = f"{self._url}/{quote(path)}"
        for attempt in range(2):
            checksum = await self._get(f"{url}.CHECKSUM")
            archive = await self._get(url) if checksum is not None else None
            if checksum is None or archive is None:
                return None
            words = checksum.decode(errors="replace").split()
            if words and hashlib.sha256(archive).hexdigest() == words[0].lower():
                try:
                    return await asyncio.to_thread(
                        klinefiles.read_zip, archive, name, symbol=symbol, interval=interval
                    )
                except BadInput as error:
                    self._note(f"{error}: taken from REST instead")
                    return None
            if attempt == 0:  # files are replaced now and then: both may be of different days
                await self._sleep(1.0)
        self._note(f"{url}: does not match its checksum: taken from REST instead")
        return None

    async def _get(self, url: str) -> bytes | None:
        """None: not there, or the archive cannot be reached, which is said once."""
        reason = ""
        for attempt in range(3):
            if not self.usable:
                return None
            if attempt:
                await self._sleep(0.5 * 2**attempt)
            try:
                async with self._session.get(url) as response:
                    if response.status == 404:
                        return None
                    if response.status == 200:
                        return await response.read()
                    reason = f"HTTP {response.status}"
            except (aiohttp.ClientError, TimeoutError) as error:
                reason = str(error) or type(error).__name__
        if self.usable:
            self.usable = False
            self._note(f"the bulk archive {self._url} cannot be reached ({reason}): REST only")
        return None


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
        months = months_between(start_ms, end_ms)
        with progress.bar(f"{symbol} {self._interval} {market}", len(months), "months") as bar:
            await _each(
                months, lambda month: self._month(month, start_ms, end_ms, bar), _MONTHS_AT_ONCE
            )
        await asyncio.to_thread(self._look_through, start_ms, end_ms)
        return self.report

    async def _month(self, month: str, start_ms: int, end_ms: int, bar: Bar) -> None:
        month_start, month_end = klinefiles.month_bounds(month)
        start_ms, end_ms = max(start_ms, month_start), min(end_ms, month_end)
        path = self._folder / f"{month}.parquet"
        metadata = await asyncio.to_thread(klinefiles.read_metadata, path)
        if int(metadata.get(_COMPLETE_FROM, month_end)) <= start_ms:
            bar.advance(detail=month)
            return
        before = await asyncio.to_thread(self._read, start_ms, end_ms)
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
        if end_ms == klinefiles.month_bounds(month)[1]:
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
        for month in months_between(start_ms, end_ms):
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


def months_between(start_ms: int, end_ms: int) -> list[str]:
    """The months that have a moment of start_ms <= t < end_ms."""
    months = []
    while start_ms < end_ms:
        months.append(klinefiles.month_of(start_ms))
        start_ms = klinefiles.month_bounds(months[-1])[1]
    return months


def _ranges(times: Times, step_ms: int, reach: int) -> list[tuple[int, int]]:
    """[start, end) around the times; those less than `reach` steps apart share one."""
    if not len(times):
        return []
    cuts = np.flatnonzero(np.diff(times) > reach * step_ms)
    starts = times[np.concatenate([[0], cuts + 1])]
    ends = times[np.concatenate([cuts, [len(times) - 1]])] + step_ms
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


async def _each(items: list[str], work: Callable[[str], Awaitable[None]], at_once: int) -> None:
    """Works through all items, some at once; the first failure stops the rest."""
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(at_once):
                tasks.create_task(worker())
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


# --- funding -------------------------------------------------------------------------------------


def funding_folder(data_folder: Path, symbol: str) -> Path:
    """Monthly files of funding_time_ms (to the minute), funding_rate, mark_price."""
    return data_folder / f"{symbol}-funding"


async def complete_funding(
    rest: Rest, folder: Path, symbol: str, start_ms: int, end_ms: int
) -> dict[str, Any]:
    """Funding rates from `start_ms` on; whole months that are there are not asked for again."""
    months = klinefiles.kline_months(folder)
    held: dict[str, dict[int, tuple[float, float]]] = {}
    from_ms = start_ms
    if months and klinefiles.month_bounds(months[0])[0] <= start_ms:
        from_ms = max(start_ms, klinefiles.month_bounds(months[-1])[0])
    rows = 0
    while from_ms < end_ms:
        page = await rest.get(
            "/fapi/v1/fundingRate",
            1,
            symbol=symbol,
            startTime=from_ms,
            endTime=end_ms - 1,
            limit=PAGE,
        )
        if not page:
            break
        try:
            for row in page:
                # The exchange stamps a few milliseconds late.
                time_ms = floor_ms(int(row["fundingTime"]) + 30_000, 60_000)
                values = (float(row["fundingRate"]), float(row.get("markPrice") or "nan"))
                held.setdefault(klinefiles.month_of(time_ms), {})[time_ms] = values
            from_ms = int(page[-1]["fundingTime"]) + 1
        except (TypeError, KeyError, ValueError):
            raise Unavailable(f"{rest.market.rest_url}: no funding rates in the reply") from None
    for month, found in held.items():
        rates = found
        path = folder / f"{month}.parquet"
        if path.exists():
            old = klinefiles.read_columns(path)
            stored = zip(old["funding_rate"].tolist(), old["mark_price"].tolist(), strict=True)
            rates = dict(zip(old["funding_time_ms"].tolist(), stored, strict=True)) | found
        times = sorted(rates)
        columns = {
            "funding_time_ms": np.array(times, np.int64),
            "funding_rate": np.array([rates[time_ms][0] for time_ms in times]),
            "mark_price": np.array([rates[time_ms][1] for time_ms in times]),
        }
        await asyncio.to_thread(klinefiles.write_columns, path, columns)
        rows += len(times)
    return {"symbol": symbol, "rows": rows, "wrote": [folder]}


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
    parser.add_argument("--no-archive", action="store_true", help="REST only")


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
    sleep: Sleep = asyncio.sleep,
    now: Callable[[], float] = time.time,
) -> dict[str, Any]:
    """Completes the history of some symbols; returns what became of each.

    start_ms: default trainer.train_days and a month before the end; end_ms: default the newest.

    Raises:
        Failure: the exchange cannot be reached, or does not know the symbol.
    """
    days = settings.trainer.train_days + 31
    markets = [spot(settings.binance_rest_url)]
    if with_futures:
        markets.append(futures(settings.futures_rest_url))
    timeout = aiohttp.ClientTimeout(total=300, sock_connect=10, sock_read=30)
    outputs: list[dict[str, Any]] = []
    funding: list[dict[str, Any]] = []
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
                if report.missing:
                    progress.note(_missing_sentence(report))
                if market.name == "futures":
                    folder = funding_folder(settings.data_folder, symbol)
                    funding.append(
                        await complete_funding(rest, folder, symbol, report.first_ms, report.end_ms)
                    )
    result: dict[str, Any] = {
        "command": "download",
        "rows": sum(output["rows"] for output in outputs),
        "new": sum(output["from_archive"] + output["from_rest"] for output in outputs),
        "missing": sum(output["missing"] for output in outputs),
        "outputs": outputs,
    }
    return result | ({"funding": funding} if funding else {})


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
