"""`itb up`: the live system on this machine, on an embedded Valkey; trains first where it must."""

import asyncio
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from deploy import page
from deploy.demo import SERVICES, STARTED, metrics_port, train
from deploy.doctor import RELEASE, Line, Mark
from deploy.observer import Observer, not_ready
from deploy.screen import Screen
from deploy.supervisor import Supervisor, service
from deploy.valkey import DEFAULT_PORT, EmbeddedValkey, check_free
from deploy.workdir import Workdir
from shared import config
from shared.bus import Bus, Entry, Source
from shared.config import PREFIX, Settings
from shared.errors import Failure, Usage
from shared.events import Delivery, Level, Notice, Notification, Signal
from shared.heartbeats import heartbeats
from shared.releases import current_id
from shared.streams import NOTICE, NOTIFICATION, SIGNAL, number_text
from shared.times import iso
from trader.places import PAPER, SIMULATOR, place_of

_DEFAULT_WORKDIR = Path("work/live")
_POLL_S = 0.25
_MOST_LINES = 8
_RETRY_S = (60.0, 3600.0)  # between attempts to download and train


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """config: None = built-in settings. train: whether to train where there is no release."""

    config: Path | None = None
    workdir: Path = _DEFAULT_WORKDIR
    redis_port: int = DEFAULT_PORT
    train: bool = True


async def run(options: Options, screen: Screen) -> int:
    """Runs until stopped."""
    settings = config.load(options.config)
    await _look(options.config, screen)
    workdir = Workdir(options.workdir)
    try:
        check_free(options.redis_port, option="--redis-port")
        server = EmbeddedValkey(
            folder=workdir.path / "valkey", port=options.redis_port, say=screen.warn
        )
        try:
            async with Supervisor(workdir.logs, screen.warn) as supervisor:
                await _live(options, settings, screen, supervisor, server)
        finally:
            server.remove_socket()
    finally:
        workdir.release()
    return 0


async def _look(path: Path | None, screen: Screen) -> None:
    """Says once what would go wrong with every candle.

    In a process of its own, which takes with it what had to be imported for that.

    Raises:
        Usage: nothing could run with this config.
    """
    arguments = [] if path is None else [str(path)]
    looking = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "deploy.doctor", *arguments, stdout=asyncio.subprocess.PIPE
    )
    found, _ = await looking.communicate()
    if looking.returncode:
        raise Failure("what the config lists could not be looked at; `itb doctor` says more")
    lines = [Line(**{**one, "mark": Mark(one["mark"])}) for one in json.loads(found)]
    for line in lines:
        if line.mark is Mark.FAIL and line.check != RELEASE:
            raise Usage(f"{line.check}: {line.text} -> {line.remedy}")
        if line.mark is not Mark.OK:
            screen.warn(f"{line.check} {line.text} -> {line.remedy}")


async def _live(
    options: Options,
    settings: Settings,
    screen: Screen,
    supervisor: Supervisor,
    server: EmbeddedValkey,
) -> None:
    environment = {**os.environ, f"{PREFIX}REDIS_URL": server.local_url}
    arguments = ("-c", str(options.config)) if options.config else ()
    if settings.trader.mode == PAPER and place_of(settings).rest_url == SIMULATOR:
        await _paper_exchange(options, screen, supervisor, arguments, environment)
    screen.say(f"starting Valkey at {server.url}")
    await supervisor.start(server.program())
    await server.wait_ready()
    variables, address = page.place(settings.dashboard)
    for name in STARTED:
        own = environment | variables if name == page.NAME else environment
        own = own | metrics_port(name, settings.metrics_port)
        await supervisor.start(service(name, *arguments, environment=own))
    screen.say(f"started {', '.join(STARTED)}; their logs are in {supervisor.logs}")
    screen.say(f"the dashboard is at {address}")
    async with asyncio.TaskGroup() as tasks, Observer(server.local_url) as observer:
        if current_id(settings.model_folder) is None:
            if options.train:
                tasks.create_task(_train(supervisor, settings, screen, arguments, environment))
            else:
                screen.say(
                    f"no release in {settings.model_folder}: the predictor waits until "
                    "`python -m trainer train --promote` has made one"
                )
        await _Watch(settings, screen).run(observer)


async def _paper_exchange(
    options: Options,
    screen: Screen,
    supervisor: Supervisor,
    arguments: tuple[str, ...],
    environment: Mapping[str, str],
) -> None:
    """The simulator on the live market, where nobody serves one yet. Its account stays in the work
    folder."""
    parts = urlsplit(SIMULATOR)
    try:
        check_free(parts.port or 0, option="account_rest_url")
    except Failure:
        screen.say(f"paper orders go to the exchange that is at {SIMULATOR} already")
        return
    more = ("--mirror", "--port", str(parts.port), "--workdir", str(options.workdir / "paper"))
    await supervisor.start(service("simulator", *arguments, *more, environment=environment))
    screen.say(f"paper orders go to a simulated exchange on the live market, at {SIMULATOR}")


async def _train(
    supervisor: Supervisor,
    settings: Settings,
    screen: Screen,
    arguments: tuple[str, ...],
    environment: Mapping[str, str],
) -> None:
    """History, one raster, models, live: each as a person would run it.

    A failure is told and tried again, later and later (what was downloaded stays); candles,
    features and alerts go on meanwhile. It ends when somebody else has promoted a release, or when
    the trainer says that it was told something wrong, which no further attempt would mend.
    """
    pause_s = _RETRY_S[0]
    while True:
        try:
            if current_id(settings.model_folder) is not None:
                return
            where = settings.model_folder
            screen.say(f"no release in {where} yet: downloading history and training")
            for command in ("download", "merge"):
                await train(supervisor, command, *arguments, environment=environment)
            result = await train(
                supervisor, "train", "--promote", *arguments, environment=environment
            )
        except Usage as error:
            screen.warn(
                f"{error}; it is not tried again: mend that and start `itb up` again, or promote a "
                "release by `python -m trainer train --promote`. The other services go on"
            )
            return
        except Failure as error:
            screen.warn(
                f"{error}; the other services go on, the predictor waits. Next attempt in "
                f"{pause_s:.0f} s; or mend it and run `python -m trainer train --promote`"
            )
            await asyncio.sleep(pause_s)
            pause_s = min(_RETRY_S[1], 2 * pause_s)
        else:
            screen.say(f"release {result['release']} is live: {len(result['models'])} models")
            return


@dataclass(slots=True)
class _Watch:
    """Tells a person what happens on the bus, from now on."""

    settings: Settings
    screen: Screen
    after: dict[str, str] = field(default_factory=dict)
    why: dict[str, str | None] = field(default_factory=dict)

    async def run(self, observer: Observer) -> None:
        interval = self.settings.interval
        sources: list[Source[Any]] = [
            Source(stream, symbol, interval)
            for symbol in self.settings.symbols
            for stream in (SIGNAL, NOTIFICATION)
        ]
        sources.append(Source(NOTICE))
        for source in sources:
            self.after[source.key] = await observer.ask(partial(_end, source=source))
        while True:
            self._tell_ready(await observer.ask(heartbeats))
            for source in sources:
                entries = await observer.ask(partial(self._new, source=source))
                if len(entries) > _MOST_LINES:
                    self.screen.say(f"{source.key}: {len(entries)} entries at once, as history")
                for entry in entries[-_MOST_LINES:]:
                    self._tell(entry)
            await asyncio.sleep(_POLL_S)

    async def _new(self, bus: Bus, source: Source[Any]) -> list[Entry[Any]]:
        entries = await bus.span(source, after=self.after[source.key])
        if entries:
            self.after[source.key] = entries[-1].id
        return entries

    def _tell_ready(self, beats: Mapping[str, Mapping[str, object]]) -> None:
        for name in SERVICES:
            why = not_ready(beats, name)
            # "2,880 candles behind" and then fewer is one piece of news.
            news = None if why is None else re.sub(r"\d+", "", why)
            if name not in self.why or news != self.why[name]:
                self.why[name] = news
                self.screen.say(f"{name} is ready" if why is None else f"{name}: {why}")

    def _tell(self, entry: Entry[Any]) -> None:
        event = entry.event
        if isinstance(event, Signal):
            verdict = event.invalid if event.score is None else f"{event.score:+.2f} {event.side}"
            close = number_text(event.close)
            self.screen.say(f"{event.symbol} {iso(event.open_time_ms)} close {close} {verdict}")
        elif isinstance(event, Notification) and event.state == Delivery.SENT:
            self.screen.say(event.text)
        elif isinstance(event, Notice) and event.level != Level.INFO:
            self.screen.warn(f"{event.service}: {event.text}")


async def _end(bus: Bus, source: Source[Any]) -> str:
    return await bus.last_id(source) or "0-0"
