"""A bulk archive and REST klines beside it, on loopback, with the faults that real ones have."""

import hashlib
import io
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
from aiohttp import web

from shared.klinefiles import month_bounds
from shared.klines import KlineTable
from shared.times import interval_ms

_DAY_MS = 86_400_000
_FUTURES_PREFIX = "futures/um"


def row(table: KlineTable, index: int) -> list[object]:
    """A row as REST sends it: decimal strings, integers for times and trades."""
    opened = int(table.open_time_ms[index])
    open_, high, low, close, volume, quote, trades, base, taker_quote = (
        repr(float(value)) for value in table.values[index]
    )
    return [
        opened,
        open_,
        high,
        low,
        close,
        volume,
        opened + interval_ms(table.interval) - 1,
        quote,
        int(float(trades)),
        base,
        taker_quote,
        "0",
    ]


def zipped(
    table: KlineTable, name: str, *, header: bool = False, microseconds: bool = False
) -> bytes:
    """A zip of the bulk archive with these candles."""
    lines = []
    if header:
        lines.append(
            "open_time,open,high,low,close,volume,close_time,quote_volume,count,"
            "taker_buy_volume,taker_buy_quote_volume,ignore"
        )
    for index in range(len(table)):
        cells = row(table, index)
        if microseconds:
            cells[0] = int(str(cells[0])) * 1000
            cells[6] = int(str(cells[6])) * 1000 + 999
        lines.append(",".join(str(cell) for cell in cells))
    return packed(name, "\n".join(lines) + "\n")


def packed(name: str, text: str) -> bytes:
    """A zip with one csv, as the archive has them."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        member = zipfile.ZipInfo(name.removesuffix(".zip") + ".csv", (2025, 1, 1, 0, 0, 0))
        member.compress_type = zipfile.ZIP_DEFLATED
        archive.writestr(member, text)
    return held.getvalue()


@dataclass
class FakeBinance:
    """What it has and how it misbehaves; `requests` is what it was asked, in order.

    spot, futures: all candles there are, by symbol; the newest one counts as still open.
    funding: settlements (time, rate) that REST has, funding_zips: that the monthly archive has.
    books: symbol -> day -> the csv of its order-book levels.
    unpublished: archive files (by name) that are not there. damaged: whose zip is cut short, though
    the checksum fits. mismatched: whose checksum is of other bytes.
    rest_faults: taken one per REST request: a status, or "html", or "garbage".
    rest_dies_after: so many requests are answered, then only HTTP 500.
    """

    spot: dict[str, KlineTable] = field(default_factory=dict)
    futures: dict[str, KlineTable] = field(default_factory=dict)
    funding: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    funding_zips: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    books: dict[str, dict[str, str]] = field(default_factory=dict)
    unpublished: set[str] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)
    mismatched: set[str] = field(default_factory=set)
    archive_status: int = 200
    rest_faults: list[int | str] = field(default_factory=list)
    rest_dies_after: int = 1_000_000
    retry_after: str = "7"
    used_weight: str = "1"
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def asked_rest(self) -> list[str]:
        return [request for request in self.requests if "klines?" in request]

    def asked_zips(self) -> list[str]:
        return [request.rsplit("/", 1)[1] for request in self.requests if request.endswith(".zip")]

    def content(self, path: str, name: str) -> bytes | None:
        """An archive file; None: there is no such file."""
        symbol, interval, date = name.removesuffix(".zip").split("-", 2)
        held = self.futures if f"/{_FUTURES_PREFIX}/" in path else self.spot
        if interval == "fundingRate":
            return self.funding_zip(symbol, date, name)
        if interval == "bookDepth":
            text = self.books.get(symbol, {}).get(date)
            return None if text is None else packed(name, text)
        if symbol not in held or held[symbol].interval != interval:
            return None
        start, end = month_bounds(date[:7])
        if len(date) > 7:
            start += (int(date[8:]) - 1) * _DAY_MS
            end = start + _DAY_MS
        table = held[symbol]
        if end > int(table.open_time_ms[-1]):  # published once it is over
            return None
        part = table.between(start, end)
        if not len(part):
            return None
        return zipped(
            part,
            name,
            header=held is self.futures,
            microseconds=date >= "2025" and held is self.spot,
        )

    def funding_zip(self, symbol: str, month: str, name: str) -> bytes | None:
        start, end = month_bounds(month)
        rows = [r for r in self.funding_zips.get(symbol, []) if start <= r[0] < end]
        if not rows:
            return None
        lines = ["calc_time,funding_interval_hours,last_funding_rate"]
        lines += [f"{time_ms},8,{rate}" for time_ms, rate in rows]
        return packed(name, "\n".join(lines) + "\n")

    async def file(self, request: web.Request) -> web.Response:
        self.requests.append(request.path)
        if self.archive_status != 200:
            return web.Response(status=self.archive_status, text="<html>no</html>")
        name = request.path.rsplit("/", 1)[1].removesuffix(".CHECKSUM")
        found = None if name in self.unpublished else self.content(request.path, name)
        if found is None:
            return web.Response(status=404)
        data = found
        if name in self.damaged:
            data = data[: len(data) // 2]
        if request.path.endswith(".CHECKSUM"):
            digest = hashlib.sha256(b"other" if name in self.mismatched else data).hexdigest()
            return web.Response(text=f"{digest}  {name}\n")
        return web.Response(body=data)

    async def klines(self, request: web.Request) -> web.Response:
        self.requests.append(request.path_qs)
        headers = {"X-MBX-USED-WEIGHT-1M": self.used_weight}
        if len(self.asked_rest()) > self.rest_dies_after:
            self.rest_faults.append(500)
        if self.rest_faults:
            fault = self.rest_faults.pop(0)
            if fault == "html":
                return web.Response(text="<html>maintenance</html>", content_type="text/html")
            if fault == "garbage":
                return web.Response(text='[[1,"2"', content_type="application/json")
            headers["Retry-After"] = self.retry_after
            return web.json_response({"code": -1, "msg": "no"}, status=int(fault), headers=headers)
        held = self.futures if request.path.startswith("/fapi") else self.spot
        query = request.query
        symbol = query["symbol"]
        if symbol not in held or held[symbol].interval != query["interval"]:
            return web.json_response({"code": -1121, "msg": "Invalid symbol."}, status=400)
        table = held[symbol]
        limit = min(int(query.get("limit", "500")), 1000)
        times = table.open_time_ms
        start = int(np.searchsorted(times, int(query.get("startTime", "0"))))
        stop = int(np.searchsorted(times, int(query.get("endTime", str(2**62))), side="right"))
        if "startTime" in query:
            stop = min(stop, start + limit)
        else:
            start = max(start, stop - limit)
        rows = [row(table, index) for index in range(start, stop)]
        return web.json_response(rows, headers=headers)

    async def funding_rates(self, request: web.Request) -> web.Response:
        self.requests.append(request.path_qs)
        start, end = int(request.query["startTime"]), int(request.query["endTime"])
        rates = [
            {"symbol": request.query["symbol"], "fundingTime": time_ms, "fundingRate": rate}
            for time_ms, rate in self.funding.get(request.query["symbol"], [])
            if start <= time_ms <= end
        ]
        return web.json_response(rates[: int(request.query["limit"])])


@asynccontextmanager
async def serving(fake: FakeBinance) -> AsyncIterator[FakeBinance]:
    """Serves it on a free port; its `url` is the base of the archive and of both REST."""
    app = web.Application()
    app.router.add_get("/data/{path:.*}", fake.file)
    app.router.add_get("/api/v3/klines", fake.klines)
    app.router.add_get("/fapi/v1/klines", fake.klines)
    app.router.add_get("/fapi/v1/fundingRate", fake.funding_rates)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    fake.url = f"http://{host}:{port}"
    try:
        yield fake
    finally:
        await runner.cleanup()
