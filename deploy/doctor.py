"""`itb doctor`: is everything here that the system needs? One line per answer, with the remedy."""

import json
import os
import platform
import shutil
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

import aiohttp

from deploy.demo import SERVICES
from deploy.streams import describe
from deploy.valkey import binary
from shared import config
from shared.binance import SPOT, Rest, Weights
from shared.bundle import Bundle
from shared.bus import Bus
from shared.config import Settings
from shared.errors import BadInput, Failure, OutOfSync, Rejected, Unavailable
from shared.features.configured import configured
from shared.heartbeats import heartbeats
from shared.link import Link
from shared.releases import current_folder
from shared.times import iso

_SKEW_MS = 500  # the exchange and our own rules refuse more (FAULTS R10)
_FREE_BYTES = 2 * 1024**3
_LAG = 2
RELEASE = "release"


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
        return f"{self.mark:4}  {self.check:10}  {self.text}{remedy}"


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
    parts = (_features, _labels, _algorithms, _folders, _release, _telegram)
    for line in (line for part in parts for line in part(settings)):
        yield line
    async for line in _exchange(settings):
        yield line
    async for line in _server(redis_url or settings.bus_url):
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


def looked_at(path: Path | None) -> list[Line]:
    """What can be said of a config and its release before anything runs; no release is fine.

    Of the algorithms the trainer itself says what is wrong: its libraries take long to import.
    """
    settings = config.load(path)
    is_there = os.path.lexists(settings.model_folder / "current")
    release = _release(settings) if is_there else ()
    return [*_features(settings), *_labels(settings), *release]


def _features(settings: Settings) -> Iterator[Line]:
    try:
        features = configured(settings)
    except (Failure, BadInput) as error:
        remedy = "mend the name; `python -m trainer features --list` shows all"
        yield Line(Mark.FAIL, "features", str(error), remedy)
        return
    off = [
        (source, key)
        for source, key in (("futur", "futures"), ("depth", "depth"))
        if source in features.sources and not getattr(settings.collector, key)
    ]
    for source, key in off:
        text = f"some read {source} rows, and collector.{key} is off: live they have no value"
        yield Line(Mark.FAIL, "features", text, f"set collector.{key}, or leave them out")
    if not off:
        text = f"{len(features.names)} features look back {features.lookback:,} candles at most"
        yield Line(Mark.OK, "features", text)


def _labels(settings: Settings) -> Iterator[Line]:
    from trainer.labels import side_of  # noqa: PLC0415 - only here

    try:
        sides = {name: side_of(name) for name in settings.labels}
    except Failure as error:
        remedy = "mend the name; `python -m trainer labels --list` shows all"
        yield Line(Mark.FAIL, "labels", str(error), remedy)
        return
    for side in ("high", "low"):
        if side not in sides.values():
            text = f"none of {', '.join(settings.labels)} speaks for a {side}: no score comes of it"
            yield Line(Mark.FAIL, "labels", text, f"add one, such as {side}_10")
            return
    values = [name for name, side in sides.items() if side is None]
    beside = f"; regressions beside the score: {', '.join(values)}" if values else ""
    yield Line(Mark.OK, "labels", f"{len(sides)} labels, of both sides{beside}")


def _algorithms(settings: Settings) -> Iterator[Line]:
    try:
        from trainer.models.fit import check_labels, recipes  # noqa: PLC0415 - slow, only here
    except ImportError as error:
        text = f"not looked at: {error.name} is not installed here, so nothing is trained here"
        yield Line(Mark.OK, "algorithms", text)
        return
    try:
        plan = recipes(settings.algorithms)
        check_labels(plan, settings.labels)
    except Failure as error:
        yield Line(Mark.FAIL, "algorithms", str(error), "mend `algorithms` in the config")
        return
    yield Line(Mark.OK, "algorithms", ", ".join(recipe.name for recipe in plan))


def _release(settings: Settings) -> Iterator[Line]:
    train = "`python -m trainer train --promote`, or `itb up`, which trains first"
    try:
        folder = current_folder(settings.model_folder)
        if folder is None:
            yield Line(Mark.WARN, RELEASE, f"none in {settings.model_folder}", train)
            return
        bundle = Bundle.load(folder, settings.limits.model_bytes)
        features = configured(settings)
    except (BadInput, Failure) as error:
        yield Line(Mark.FAIL, RELEASE, str(error), "`python -m trainer rollback`, or train again")
        return
    manifest = bundle.manifest
    text = (
        f"{manifest.id}: {len(manifest.models)} models of {', '.join(manifest.symbols)} "
        f"{manifest.interval}, trained up to {iso(manifest.training.end_ms)}"
    )
    if manifest.schema_hash != features.schema:
        text = f"{text}; made for {_apart(features.names, manifest.features)}: no candle is scored"
        yield Line(Mark.FAIL, RELEASE, text, train)
    elif manifest.interval != settings.interval:
        remedy = f"set interval to {manifest.interval}, or train on {settings.interval}"
        yield Line(Mark.FAIL, RELEASE, f"{text}; the config says {settings.interval}", remedy)
    elif others := set(settings.symbols) - set(manifest.symbols):
        text = f"{text}; not trained on {', '.join(sorted(others))}"
        yield Line(Mark.WARN, RELEASE, text, "train on them as well")
    else:
        yield Line(Mark.OK, RELEASE, f"{text}{f'; {bundle.note}' if bundle.note else ''}")


def _apart(ours: Sequence[str], theirs: Sequence[str]) -> str:
    """How the features of a release differ from the config's."""
    less = [name for name in theirs if name not in ours]
    more = [name for name in ours if name not in theirs]
    found = [
        f"{word} {names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}"
        for word, names in (("with", less), ("without", more))
        if names
    ]
    return f"other features than the config's ({', '.join(found) or 'in another order'})"


def _telegram(settings: Settings) -> Iterator[Line]:
    if settings.telegram_bot_token is None:
        yield Line(Mark.OK, "telegram", "no token: messages go to the notifier's log")
    elif not settings.telegram_chat_id:
        yield Line(Mark.FAIL, "telegram", "a token, but no telegram_chat_id", "set it")
    else:
        yield Line(Mark.OK, "telegram", f"messages go to chat {settings.telegram_chat_id}")


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


if __name__ == "__main__":  # `itb up` asks so, and has none of what is imported for it
    given = Path(sys.argv[1]) if sys.argv[1:] else None
    print(json.dumps([asdict(line) for line in looked_at(given)]))
