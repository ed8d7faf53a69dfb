"""Binance's bulk archive and REST, as a download needs them: patient, checked, within limits."""

import asyncio
import contextlib
import hashlib
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiohttp

from shared import klinefiles
from shared.errors import BadInput, Failure, Rejected, Unavailable
from shared.klines import KlineTable

Sleep = Callable[[float], Awaitable[None]]

PAGE = 1000
_TRIES = 6
_LONGEST_WAIT_S = 300  # a ban of more is for a person to wait out


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
        self.note = note
        self._sleep = sleep
        self.usable = bool(url)

    async def klines(
        self, market: Market, symbol: str, interval: str, date: str
    ) -> KlineTable | None:
        """The candles of one month (`2021-05`) or day (`2021-05-19`); None: REST must do."""
        period = "monthly" if len(date) == len("2021-05") else "daily"
        name = f"{symbol}-{interval}-{date}.zip"
        content = await self.fetch(
            f"{market.archive_path}/{period}/klines/{symbol}/{interval}/{name}"
        )
        if content is None:
            return None
        try:
            return await asyncio.to_thread(
                klinefiles.read_zip, content, name, symbol=symbol, interval=interval
            )
        except BadInput as error:
            self.note(f"{error}: not used")
            return None

    async def fetch(self, path: str) -> bytes | None:
        """One file below `data/`, checked against its .CHECKSUM (sha256).

        None: it is not there, does not match its checksum (which is said), or the archive cannot
        be reached (which is said once).
        """
        url = f"{self._url}/data/{quote(path)}"
        for attempt in range(2):
            checksum = await self._get(f"{url}.CHECKSUM")
            content = await self._get(url) if checksum is not None else None
            if checksum is None or content is None:
                return None
            words = checksum.decode(errors="replace").split()
            if words and hashlib.sha256(content).hexdigest() == words[0].lower():
                return content
            if attempt == 0:  # files are replaced now and then: both may be of different days
                await self._sleep(1.0)
        self.note(f"{url}: does not match its checksum: not used")
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
            self.note(f"the bulk archive {self._url} cannot be reached ({reason}): REST only")
        return None


async def each(items: list[str], work: Callable[[str], Awaitable[None]], at_once: int) -> None:
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
