"""`itb doctor`: is everything here that the system needs? One line per answer, with the remedy."""

import os
import platform
import shutil
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import aiohttp

from deploy.demo import SERVICES
from deploy.observer import heartbeats
from deploy.streams import describe
from deploy.valkey import binary
from shared import config
from shared.binance import SPOT, Rest, Weights
from shared.bundle import Bundle
from shared.bus import Bus
from shared.config import Settings
from shared.errors import BadInput, Failure, OutOfSync, Rejected, Unavailable
from shared.features.configured import configured
from shared.link import Link
from shared.releases import current_folder
from shared.times import iso

_SKEW_MS = 500  # the exchange and our own rules refuse more (FAULTS R10)
_FREE_BYTES = 2 * 1024**3
_LAG = 2


class Mark(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Line:
    """One answer; remedy: what to do about it ("" where nothing is to be done)."""

    mark: Mark
    check: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f" -> {self.remedy}" if self.remedy else ""
        return f"{self.mark:4}  {self.check:9}  {self.text}{remedy}"


async def examine(path: Path | None, redis_url: str | None = None) -> AsyncIterator[Line]:
    """Every check, one after the other. redis_url: instead of the config's."""
    yield _machine()
    try:
        settings = config.load(path)
    except Failure as error:
        yield Line(Mark.FAIL, "config", str(error), "mend the key, or see `itb init`")
        return
    where = str(path) if path else "built-in defaults"
    symbols = ", ".join(settings.symbols)
    yield Line(Mark.OK, "config", f"{where}: {symbols} {settings.interval}")
    for line in (*_folders(settings), *_release(settings), _telegram(settings)):
        yield line
    async for line in _exchange(settings):
        yield line
    async for line in _server(redis_url or settings.redis_url):
        yield line


def _machine() -> Line:
    version = platform.python_version()
    where = f"Python {version}, {platform.system()} {platform.machine()}"
    if sys.platform not in ("linux", "darwin"):
        return Line(Mark.WARN, "machine", where, "only Linux and macOS are supported")
    try:
        binary()
    except Failure as error:
        return Line(Mark.WARN, "machine", f"{where}; {error}")
    return Line(Mark.OK, "machine", f"{where}, embedded Valkey is here")


def _folders(settings: Settings) -> Iterator[Line]:
    for name in ("data_folder", "model_folder"):
        folder: Path = getattr(settings, name)
        there = folder
        while not there.exists() and there != there.parent:
            there = there.parent
        if not os.access(there, os.W_OK | os.X_OK) or not there.is_dir():
            remedy = "give this user write access, or set another folder"
            yield Line(Mark.FAIL, "folders", f"{name} {folder} cannot be written", remedy)
            continue
        free = shutil.disk_usage(there).free
        text = f"{name} {folder}, {free / 1024**3:.1f} GiB free"
        if free < _FREE_BYTES:
            yield Line(Mark.WARN, "folders", text, "make room: history and logs need some GiB")
        else:
            yield Line(Mark.OK, "folders", text)


def _release(settings: Settings) -> Iterator[Line]:
    train = "`python -m trainer train --promote`, or `itb up`, which trains first"
    try:
        folder = current_folder(settings.model_folder)
        if folder is None:
            yield Line(Mark.WARN, "release", f"none in {settings.model_folder}", train)
            return
        bundle = Bundle.load(folder, settings.limits.model_bytes)
        features = configured(settings)
    except (BadInput, Failure) as error:
        yield Line(Mark.FAIL, "release", str(error), "`python -m trainer rollback`, or train again")
        return
    manifest = bundle.manifest
    text = (
        f"{manifest.id}: {len(manifest.models)} models of {', '.join(manifest.symbols)} "
        f"{manifest.interval}, trained up to {iso(manifest.training.end_ms)}"
    )
    if manifest.schema_hash != features.schema:
        yield Line(
            Mark.FAIL, "release", f"{text}; made for other features than the config's", train
        )
    elif manifest.interval != settings.interval:
        remedy = f"set interval to {manifest.interval}, or train on {settings.interval}"
        yield Line(Mark.FAIL, "release", f"{text}; the config says {settings.interval}", remedy)
    elif others := set(settings.symbols) - set(manifest.symbols):
        text = f"{text}; not trained on {', '.join(sorted(others))}"
        yield Line(Mark.WARN, "release", text, "train on them as well")
    else:
        yield Line(Mark.OK, "release", f"{text}{f'; {bundle.note}' if bundle.note else ''}")


def _telegram(settings: Settings) -> Line:
    if settings.telegram_bot_token is None:
        return Line(Mark.OK, "telegram", "no token: messages go to the notifier's log")
    if not settings.telegram_chat_id:
        return Line(Mark.FAIL, "telegram", "a token, but no telegram_chat_id", "set it")
    return Line(Mark.OK, "telegram", f"messages go to chat {settings.telegram_chat_id}")


async def _exchange(settings: Settings) -> AsyncIterator[Line]:
    url = settings.binance_rest_url
    async with aiohttp.ClientSession() as session:
        rest = Rest(session, url, SPOT, Weights())
        try:
            best: tuple[float, float] | None = None
            for _ in range(3):  # the quickest answer tells the time best
                before_s = time.time()
                theirs_ms = await rest.server_time_ms()
                after_s = time.time()
                offset_ms = theirs_ms - 500 * (before_s + after_s)
                best = min(best or (10.0, 0.0), (after_s - before_s, offset_ms))
            assert best is not None  # noqa: S101  # three turns
        except (Unavailable, Rejected, BadInput) as error:
            remedy = "check the network, or binance_rest_url"
            yield Line(Mark.FAIL, "exchange", f"{url} does not answer: {error}", remedy)
            return
        yield Line(Mark.OK, "exchange", f"{url} answers in {best[0] * 1000:.0f} ms")
        skew = f"{best[1]:+.0f} ms from the exchange's"
        if abs(best[1]) >= _SKEW_MS:
            yield Line(Mark.FAIL, "clock", skew, "set the clock by NTP (chrony, systemd-timesyncd)")
        else:
            yield Line(Mark.OK, "clock", skew)
        for symbol in settings.symbols:
            try:
                candles = await rest.klines(symbol, settings.interval, limit=1)
            except (Unavailable, Rejected, BadInput) as error:
                remedy = "check `symbols` and `interval`"
                yield Line(Mark.FAIL, "symbol", f"{symbol} {settings.interval}: {error}", remedy)
                continue
            newest = f"newest candle {iso(candles[-1].open_time_ms)}" if candles else "no candles"
            mark = Mark.OK if candles else Mark.WARN
            yield Line(mark, "symbol", f"{symbol} {settings.interval}: {newest}")


@asynccontextmanager
async def _link(url: str) -> AsyncIterator[Link]:
    link = Link(url, name="itb:doctor", timeout_s=3.0)
    await link.connect()
    try:
        yield link
    finally:
        await link.close()


async def _server(url: str) -> AsyncIterator[Line]:
    try:
        async with _link(url) as link:
            text = bytes(await link.one("INFO", "server")).decode()
        facts = dict(line.partition(":")[::2] for line in text.splitlines() if ":" in line)
        kind = "valkey" if "valkey_version" in facts else "redis"
        name = f"{kind.capitalize()} {facts[f'{kind}_version']}"
        async with Bus.session(url, service="itb", exclusive=False) as bus:
            yield Line(Mark.OK, "server", f"{name}, AOF on, no eviction")
            async for line in _pipeline(bus):
                yield line
    except Unavailable as error:
        remedy = "`itb up` runs one, or set redis_url"
        yield Line(Mark.FAIL, "server", f"{error}", remedy)
    except (Failure, OutOfSync) as error:
        yield Line(Mark.FAIL, "server", str(error), "`itb up` runs one that fits")


async def _pipeline(bus: Bus) -> AsyncIterator[Line]:
    beats = await heartbeats(bus)
    for name in SERVICES:
        own = {k: beat for k, beat in beats.items() if k.partition(":")[0] == name}
        if not own:
            remedy = f"`itb up`, or `python -m {name} -c config.json`"
            yield Line(Mark.WARN, "services", f"{name} does not run", remedy)
        for beat in own.values():
            if beat["ready"]:
                yield Line(Mark.OK, "services", f"{name} is ready")
            else:
                yield Line(Mark.WARN, "services", f"{name} is not ready: {beat['reason']}")
            for key, rows in beat.get("short_history", {}).items():
                text = f"{key} has {rows} candles less than the config's features look back"
                remedy = f"redis-cli DEL '{key}' while all runs: it is fetched again, whole"
                yield Line(Mark.WARN, "history", text, remedy)
    for stream in await describe(bus):
        key = str(stream["stream"])
        if key.startswith("dead:"):
            text = f"{stream['length']} entries in {key} could not be processed"
            yield Line(Mark.WARN, "streams", text, f"`itb tail '{key}' --no-follow` shows why")
            continue
        behind = {
            name: group
            for name, group in stream["groups"].items()
            if name in SERVICES and group["lag"] + group["pending"] > _LAG
        }
        for name, group in behind.items():
            text = f"{name} is {group['lag']} behind on {key}, {group['pending']} pending"
            yield Line(Mark.WARN, "streams", text, f"see the log of {name}")
        if stream["groups"] and not behind:
            yield Line(Mark.OK, "streams", f"{key}: {stream['length']} entries, all groups are up")
