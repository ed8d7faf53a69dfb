"""`itb demo`: recorded (or synthetic) candles through the whole pipeline, on this machine alone.

An embedded Valkey, the simulator serving the files, models trained on everything before the last
N candles, every service as its own process; then those N candles, one after the other. At the end
the bus is read and every candle is accounted for.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from deploy import page
from deploy.observer import Observer, not_ready
from deploy.screen import Screen, View
from deploy.supervisor import Program, Supervisor, service
from deploy.tally import MAKERS, STAGES, Tally, Window, tally
from deploy.valkey import HOST, EmbeddedValkey, check_free, free_port
from deploy.warm import is_warm
from deploy.workdir import Workdir, free_workdir
from shared.bus import Bus, id_ms
from shared.config import PREFIX, SECRETS, Dashboard
from shared.errors import BadInput, Failure, Usage
from shared.events import Delivery
from shared.heartbeats import heartbeats
from shared.klinefiles import read_klines, write_columns
from shared.klines import KLINE_COLUMNS
from shared.streams import NOTIFICATION, SIGNAL
from shared.times import interval_ms, iso

SERVICES = ("collector", "featurizer", "predictor", "notifier", "trader")
STARTED = (*SERVICES, "auditor", page.NAME)
_METRICS_PORT = f"{PREFIX}METRICS_PORT"
MAX = "max"
BARS = 300
TRAINING_CANDLES = 4_000
_DEFAULT_WORKDIR = Path("work/demo")
_CANDLES_PER_S = 10  # the default speed: fast enough to end soon, slow enough to watch
_STALL_S = 60.0
_HOLE_S = 10.0  # entries that are missing once all stages are through get this long to appear
_POLL_S = 0.1
_COLLECTOR_START_S = 5.0
# The synthetic market: as many candles as give every label its cases, ending at a fixed time.
_SYNTHETIC_CANDLES = 40_000
_SYNTHETIC_END_MS = 1_735_689_600_000  # 2025-01-01T00:00Z


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """speed: seconds of market per second, MAX, or None for the default of 10 candles a second."""

    data: tuple[Path, ...] = ()
    symbol: str | None = None
    interval: str | None = None
    bars: int = BARS
    speed: float | str | None = None
    workdir: Path | None = None
    redis_port: int | None = None
    port: int | None = None
    hold: bool = False
    json: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is played. history: candles that are past when the simulator starts; until_ms: open
    time of the first candle it streams, the window's or one a little before."""

    files: tuple[Path, ...]
    window: Window
    history: int
    until_ms: int
    candles: int
    speed: float | str
    longest_gap_s: float


async def run(options: Options, screen: Screen) -> int:
    """The whole demo; returns the exit code."""
    workdir = Workdir(options.workdir) if options.workdir else free_workdir(_DEFAULT_WORKDIR)
    try:
        workdir.clean()
        for port, option in ((options.redis_port, "--redis-port"), (options.port, "--port")):
            if port is not None:
                check_free(port, option=option)
        server = EmbeddedValkey(
            folder=workdir.path / "valkey",
            port=options.redis_port or free_port(),
            say=screen.warn,
        )
        try:
            async with Supervisor(workdir.logs, screen.warn) as supervisor:
                return await _Demo(options, screen, workdir, supervisor, server).run()
        finally:
            server.remove_socket()
    finally:
        workdir.release()


def metrics_port(name: str, first: int | None) -> dict[str, str]:
    """The variable that gives a service of a run a port of its own, where there is a first one."""
    return {} if first is None else {_METRICS_PORT: str(first + STARTED.index(name))}


def _first_metrics_port(environment: Mapping[str, str]) -> int | None:
    """
    Raises:
        Usage: it is no port.
    """
    given = {name.upper(): text for name, text in environment.items()}.get(_METRICS_PORT, "")
    if not given or given == "null":
        return None
    if not given.isdecimal() or not 0 < int(given) <= 65_535 - len(STARTED):
        raise Usage(f"{_METRICS_PORT}: {given!r} is no port; such as 9100")
    return int(given)


def plan(options: Options, workdir: Path) -> Plan:
    """Reads the candles and says what is trained on and what is played.

    Raises:
        Failure: too few candles; files of more than one symbol or interval; bad files.
    """
    files = options.data or (_synthetic(options, workdir),)
    tables = read_klines(
        files,
        symbol=options.symbol,
        interval=options.interval,
        default_symbol=options.symbol or "BTCUSDT",
    )
    if len(tables) > 1:
        names = ", ".join(f"{t.symbol}-{t.interval}" for t in tables)
        raise BadInput(f"--data holds {names}: give the files of one symbol and interval")
    table = tables[0]
    needed = options.bars + TRAINING_CANDLES
    if len(table) < needed:
        raise BadInput(
            f"--bars {options.bars} needs {needed:,} candles ({TRAINING_CANDLES:,} to train on), "
            f"and there are {len(table):,} of {table.symbol}-{table.interval}: give more files "
            "or fewer bars"
        )
    step_ms = table.step_ms
    last_ms = int(table.open_time_ms[-1])
    window = Window(
        symbol=table.symbol,
        interval=table.interval,
        first_ms=last_ms - (options.bars - 1) * step_ms,
        last_ms=last_ms,
        step_ms=step_ms,
    )
    speed = options.speed or _CANDLES_PER_S * step_ms / 1000
    # A paced market moves on while the collector comes up: it starts that much earlier. An unpaced
    # one is told to wait, and may have sent one candle by then.
    lead = 1 if isinstance(speed, str) else int(_COLLECTOR_START_S * speed * 1000 / step_ms)
    lead = min(lead, TRAINING_CANDLES // 10)
    first = int(np.searchsorted(table.open_time_ms, window.first_ms)) - lead
    spacing_s = float(np.diff(table.open_time_ms[first - 1 :]).max()) / 1000
    return Plan(
        files=files,
        window=window,
        history=first,
        until_ms=int(table.open_time_ms[first]),
        candles=len(table),
        speed=speed,
        longest_gap_s=0.0 if isinstance(speed, str) else spacing_s / speed,
    )


def _synthetic(options: Options, workdir: Path) -> Path:
    """A seeded market as a kline file: the same path as real data from here on."""
    from simulator import synthetic  # noqa: PLC0415  # only where no file is given

    symbol, interval = options.symbol or "BTCUSDT", options.interval or "1m"
    rows = _SYNTHETIC_CANDLES + options.bars
    start_ms = _SYNTHETIC_END_MS - rows * interval_ms(interval)
    table = synthetic.generate(symbol, interval, start_ms, _SYNTHETIC_END_MS)
    path = workdir / f"{symbol}-{interval}.parquet"
    columns = {"open_time_ms": table.open_time_ms}
    write_columns(path, columns | {name: table.column(name) for name in KLINE_COLUMNS})
    return path


async def train(
    supervisor: Supervisor, command: str, *arguments: str, environment: Mapping[str, str]
) -> dict[str, Any]:
    """Runs `python -m trainer COMMAND`, its progress on our stderr; its JSON line.

    Raises:
        Usage: it was told something wrong, as by the config; it has said what.
        Failure: it failed; it has said why.
    """
    line = (sys.executable, "-m", "trainer", command, "--json", *arguments)
    program = Program(name="trainer", command=line, environment=environment)
    process = await supervisor.run(program, out=subprocess.PIPE)
    output, _ = await process.communicate()
    if process.returncode != 0:
        text = f"trainer {command} failed with exit code {process.returncode}"
        kind = Usage if process.returncode == Usage.exit_code else Failure
        raise kind(f"{text}; the lines above say why")
    result: dict[str, Any] = json.loads(output.decode().strip().splitlines()[-1])
    return result


class _Demo:
    """One run, from starting the processes to counting what they did."""

    def __init__(
        self,
        options: Options,
        screen: Screen,
        workdir: Workdir,
        supervisor: Supervisor,
        server: EmbeddedValkey,
    ) -> None:
        self._options = options
        self._screen = screen
        self._workdir = workdir
        self._supervisor = supervisor
        self._server = server
        self._port = options.port or free_port()
        self._metrics_port = _first_metrics_port(os.environ)

    async def run(self) -> int:
        started = time.monotonic()
        await self._supervisor.start(self._server.program())
        the_plan = await asyncio.to_thread(plan, self._options, self._workdir.path)
        window = the_plan.window
        is_unpaced = isinstance(the_plan.speed, str)
        self._screen.say(
            f"{window.symbol} {window.interval}: {the_plan.candles:,} candles, the last "
            f"{window.bars} of them will be streamed; work folder {self._workdir.path}"
        )
        environment = self._environment(the_plan)
        self._write_config(environment)
        await self._server.wait_ready()
        async with Observer(self._server.local_url) as observer:
            async with asyncio.TaskGroup() as tasks:
                if not is_warm():
                    await self._warm(environment)
                training = tasks.create_task(self._train(the_plan, environment))
                for name in SERVICES[1:]:
                    await self._start(name, environment)
                if self._options.hold:
                    variables, address = page.place(Dashboard())
                    await self._start(page.NAME, environment | variables)
                    self._screen.say(f"the dashboard is at {address}")
                if is_unpaced:
                    await self._start_market(the_plan, environment)
            trained = training.result()
            if is_unpaced:
                await self._until_ready(observer, SERVICES)
                await self._simulator("POST", "/control/resume")
            else:  # the trader is ready once there is an exchange
                await self._until_ready(observer, SERVICES[1:-1])
                await self._start_market(the_plan, environment)
            self._screen.say(f"streaming {window.bars} candles")
            found = await self._watch(observer, the_plan)
            result = self._result(the_plan, found, trained, time.monotonic() - started)
            self._report(result)
            if found.lost or found.doubled:
                self._screen.warn(_explain(found))
            if self._options.hold:
                await self._start("auditor", environment)
                self._screen.say(
                    f"all of it keeps running until Ctrl-C; look inside with `itb streams -c "
                    f"{self._workdir.path / 'config.json'}`"
                )
                await asyncio.Event().wait()
        return 1 if found.lost or found.doubled else 0

    # -- starting -----------------------------------------------------------------------------

    def _settings(self, the_plan: Plan) -> dict[str, Any]:
        rest, ws = f"http://{HOST}:{self._port}", f"ws://{HOST}:{self._port}"
        folder = self._workdir.path.absolute()
        replay = isinstance(the_plan.speed, str)
        # Ages are market time: ten seconds of ours for the messages of a service that was killed,
        # three for its orders. The history that is scored at the start is older than that: an order
        # at a price of two hours ago costs more than there is, and three such refusals are a halt.
        age_s = 180.0 if replay else max(180.0, 10.0 * float(the_plan.speed))
        trading_s = 180.0 if replay else max(180.0, 3.0 * float(the_plan.speed))
        return {
            "symbols": [the_plan.window.symbol],
            "interval": the_plan.window.interval,
            "data_folder": str(folder / "data"),
            "model_folder": str(folder / "models"),
            "redis_url": self._server.local_url,
            "binance_rest_url": rest,
            "binance_ws_url": ws,
            "binance_ws_api_url": f"{ws}/ws-api/v3",
            "futures_rest_url": rest,
            "futures_ws_url": ws,
            "archive_url": "",
            "market_speed": 1.0 if replay else float(the_plan.speed),
            "collector": {"follow": replay},
            # The collector comes last, once the models are trained: its silence is no news.
            "notifier": {"max_age_s": age_s, "watch": ["featurizer", "predictor", "trader"]},
            "trader": {"max_age_s": trading_s},
        }

    def _environment(self, the_plan: Plan) -> dict[str, str]:
        """Ours without the user's live config, and the settings of this run."""
        hidden = {f"{PREFIX}CONFIG", f"{PREFIX}SYMBOL", f"{PREFIX}INSTANCE", _METRICS_PORT}
        if f"{PREFIX}TELEGRAM_URL" not in map(
            str.upper, os.environ
        ):  # a replay must not write to a live channel
            secrets = {f"{PREFIX}{name.upper()}" for name in SECRETS}
            hidden |= secrets | {f"{name}_FILE" for name in secrets} | {f"{PREFIX}TELEGRAM_CHAT_ID"}
        ours: dict[str, str] = {}
        for name, value in self._settings(the_plan).items():
            pairs = value.items() if isinstance(value, dict) else (("", value),)
            for inner, one in pairs:
                variable = PREFIX + name.upper() + (f"__{inner.upper()}" if inner else "")
                ours[variable] = one if isinstance(one, str) else json.dumps(one)
        hidden |= set(ours)
        # The config reads variables in any case.
        theirs = {name: text for name, text in os.environ.items() if name.upper() not in hidden}
        return theirs | ours

    def _write_config(self, environment: Mapping[str, str]) -> None:
        """So that `itb streams -c work/demo/config.json` and the like find this run."""
        names = ("symbols", "interval", "data_folder", "model_folder", "market_speed")
        config: dict[str, Any] = {}
        for name in names:
            text = environment[PREFIX + name.upper()]
            config[name] = text if name.endswith("folder") or name == "interval" else None
            if config[name] is None:
                config[name] = json.loads(text)
        config["redis_url"] = self._server.url
        config["metrics_port"] = self._metrics_port
        config["binance_rest_url"] = f"http://{HOST}:{self._port}"
        config["binance_ws_url"] = f"ws://{HOST}:{self._port}"
        text = json.dumps(config, indent=2) + "\n"
        (self._workdir.path / "config.json").write_text(text, encoding="utf-8")

    async def _warm(self, environment: Mapping[str, str]) -> None:
        """Compiles the feature kernels, once on this machine. Where that does not work the trainer
        and the featurizer compile for themselves, and say what is wrong."""
        self._screen.say("compiling the feature kernels, once on this machine")
        line = (sys.executable, "-m", "deploy.warm")
        process = await self._supervisor.run(
            Program(name="warm", command=line, environment=environment)
        )
        await process.wait()

    async def _start_market(self, the_plan: Plan, environment: Mapping[str, str]) -> None:
        """Simulator and collector. At speed max the market stands still until it is told to go on;
        otherwise it runs from now on."""
        window = the_plan.window
        arguments = (
            "--port", str(self._port), "--data", *map(str, the_plan.files),
            "--symbol", window.symbol, "--interval", window.interval,
            "--history", str(the_plan.history), "--speed", str(the_plan.speed),
            "--workdir", str(self._workdir.path / "simulator"),
        )  # fmt: skip
        await self._supervisor.start(service("simulator", *arguments, environment=environment))
        if isinstance(the_plan.speed, str):
            await self._simulator("POST", "/control/pause")
        else:
            await self._simulator("GET", "/api/v3/ping")
        await self._start(SERVICES[0], environment)

    async def _start(self, name: str, environment: Mapping[str, str]) -> None:
        own = {**environment, **metrics_port(name, self._metrics_port)}
        await self._supervisor.start(service(name, environment=own))

    async def _simulator(self, method: str, path: str) -> None:
        """A request to the simulator, once it is up."""
        deadline = time.monotonic() + _STALL_S
        timeout = aiohttp.ClientTimeout(total=5)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                try:
                    async with session.request(
                        method, f"http://{HOST}:{self._port}{path}"
                    ) as reply:
                        reply.raise_for_status()
                        return
                except (aiohttp.ClientError, TimeoutError) as error:
                    if time.monotonic() > deadline:
                        raise self._stalled("simulator", str(error)) from None
                await asyncio.sleep(0.02)

    async def _train(self, the_plan: Plan, environment: Mapping[str, str]) -> dict[str, Any]:
        """`trainer train` on everything before the first streamed candle; its JSON line."""
        self._screen.say("starting the simulated exchange and the services, training the models")
        window = the_plan.window
        arguments = (
            "--promote", "--symbol", window.symbol, "--interval", window.interval,
            "--until", str(the_plan.until_ms), "--klines", *map(str, the_plan.files),
        )  # fmt: skip
        return await train(self._supervisor, "train", *arguments, environment=environment)

    async def _until_ready(self, observer: Observer, names: Sequence[str]) -> None:
        deadline = time.monotonic() + _STALL_S
        waiting = dict.fromkeys(names, "")
        while waiting:
            beats = await observer.ask(heartbeats)
            waiting = {n: why for n in waiting if (why := not_ready(beats, n)) is not None}
            if waiting and time.monotonic() > deadline:
                raise self._stalled(*next(iter(waiting.items())))
            await asyncio.sleep(0.05 if waiting else 0)

    def _stalled(self, name: str, what: str) -> Failure:
        last = self._supervisor.last_line(name)
        words = f"; its log ends with: {last[:500]}" if last else ""
        log = self._workdir.logs / f"{name}.log"
        return Failure(f"no progress for {_STALL_S:.0f} s: the {name} ({what}); see {log}{words}")

    # -- streaming ----------------------------------------------------------------------------

    async def _watch(self, observer: Observer, the_plan: Plan) -> Tally:
        """Follows the run until every candle is through and everyone is done with it."""
        window, screen = the_plan.window, self._screen
        limit_s = _STALL_S + 2 * the_plan.longest_gap_s
        view = View(title=f"{window.symbol} {window.interval}", total=window.bars)
        told = f"{window.first_ms - 1}-0"
        seen: object = None
        moved = time.monotonic()
        screen.open()
        try:
            while True:
                look = await observer.ask(partial(_look, window=window, told=told))
                told = look.told
                screen.messages(look.messages, quiet=self._options.json)
                look.fill(view, window)
                screen.show(view)
                if (state := look.state()) != seen:
                    seen, moved = state, time.monotonic()
                if look.is_through(window):
                    placed = await self._placed()
                    found = await observer.ask(partial(tally, window=window, placed=placed))
                    if not found.lost or time.monotonic() - moved > _HOLE_S:
                        return found
                elif time.monotonic() - moved > limit_s:
                    raise self._stalled(*look.culprit(window))
                await asyncio.sleep(_POLL_S)
        finally:
            screen.close()

    async def _placed(self) -> list[str]:
        """Client ids of the orders that the exchange has."""
        timeout = aiohttp.ClientTimeout(total=10)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"http://{HOST}:{self._port}/control/account") as reply,
        ):
            reply.raise_for_status()
            return [order["clientOrderId"] for order in (await reply.json())["orders"]]

    # -- the end ------------------------------------------------------------------------------

    def _result(
        self, the_plan: Plan, found: Tally, trained: Mapping[str, Any], seconds: float
    ) -> dict[str, Any]:
        window, counts = the_plan.window, found.counts
        restarts = {n: self._supervisor.restarts(n) for n in ("valkey", "simulator", *SERVICES)}
        return {
            "bars": window.bars,
            "klines": counts["kline"],
            "features": counts["feature"],
            "predictions": counts["prediction"],
            "signals": counts["signal"],
            "notifications": counts["notification"],
            "orders": counts["order"],
            "lost": found.lost,
            "doubled": found.doubled,
            "filled": found.filled,
            "gaps": found.gaps,
            "latency_ms": found.latency_ms(),
            "train": {
                "rows": trained["rows"],
                "features": trained["features"],
                "labels_left_out": trained["labels_left_out"],
                "labels_added": trained["labels_added"],
                "models": trained["models"],
                "release": trained["release"],
                "seconds": trained["seconds"],
            },
            "symbol": window.symbol,
            "interval": window.interval,
            "first": iso(window.first_ms),
            "last": iso(window.last_ms),
            "speed": the_plan.speed,
            "restarts": {name: count for name, count in restarts.items() if count},
            "redis_url": self._server.url,
            "exchange_url": f"http://{HOST}:{self._port}",
            "workdir": str(self._workdir.path),
            "seconds": round(seconds, 1),
        }

    def _report(self, result: Mapping[str, Any]) -> None:
        if not self._options.json:
            sys.stdout.write(summary(result) + "\n")
        sys.stdout.write(json.dumps(result, ensure_ascii=False, allow_nan=False) + "\n")
        sys.stdout.flush()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """One look at the bus. last: newest id in the window per stage; behind: groups of people's and
    orders' services, (delivered, pending) on the signal stream."""

    last: Mapping[str, int | None]
    behind: Mapping[str, tuple[int, int]]
    messages: Sequence[str]
    told: str
    signal: Any

    def state(self) -> object:
        return tuple(self.last.items()), tuple(self.behind.items()), self.told

    def is_through(self, window: Window) -> bool:
        return all(self._missing(window, stream.name) == 0 for stream in STAGES) and all(
            delivered >= window.last_ms and not pending
            for delivered, pending in self.behind.values()
        )

    def _missing(self, window: Window, name: str) -> int:
        last = self.last[name]
        return window.bars if last is None else (window.last_ms - last) // window.step_ms

    def culprit(self, window: Window) -> tuple[str, str]:
        """The first service that does not go on, and what it is short of."""
        before = 0
        for stream in STAGES:
            missing = self._missing(window, stream.name)
            if missing > before:
                return MAKERS[stream.name], f"{missing} of {window.bars} {stream.name} are missing"
            before = missing
        for name, (delivered, pending) in self.behind.items():
            if delivered < window.last_ms or pending:
                return name, "it has not finished with the signals"
        return MAKERS[SIGNAL.name], "entries are missing"

    def fill(self, view: View, window: Window) -> None:
        view.counts = {
            stream.name: window.bars - self._missing(window, stream.name) for stream in STAGES
        }
        if self.signal is not None:
            view.close = f"close {self.signal.close:,.6g}"
            view.time = iso(self.signal.open_time_ms)
            view.score, view.side = self.signal.score, self.signal.side
            view.invalid = self.signal.invalid


async def _look(bus: Bus, window: Window, told: str) -> _Look:
    last: dict[str, int | None] = {}
    for stream in STAGES:
        newest = await bus.last_id(window.source(stream))
        is_there = newest is not None and id_ms(newest) >= window.first_ms
        last[stream.name] = min(id_ms(newest), window.last_ms) if newest and is_there else None
    signals = window.source(SIGNAL)
    newest_signal = await bus.tail(signals, 1, upto=str(window.last_ms))
    groups = await bus.group_position(signals)
    messages = []
    for entry in await bus.span(window.source(NOTIFICATION), after=told):
        told = entry.id
        if entry.event is not None and entry.event.state == Delivery.SENT:
            messages.append(f"{iso(entry.time_ms)}  {entry.event.text}")
    return _Look(
        last=last,
        behind={
            name: (id_ms(groups[name][0]), groups[name][1]) if name in groups else (0, 0)
            for name in ("notifier", "trader")
        },
        messages=messages,
        told=told,
        signal=newest_signal[0].event if newest_signal and last[SIGNAL.name] else None,
    )


def _explain(found: Tally) -> str:
    parts = [
        f"{len(times)} {name} missing (first {iso(times[0])}, made by the {MAKERS[name]})"
        for name, times in found.missing.items()
        if times
    ]
    if found.doubled:
        parts.append(f"{found.doubled} entries or messages doubled")
    return "; ".join(parts)


def summary(result: Mapping[str, Any]) -> str:
    """The result for a person."""
    latency, train = result["latency_ms"], result["train"]
    aucs = [model["auc"] for model in train["models"].values() if model["auc"] is not None]
    quality = f", mean AUC {sum(aucs) / len(aucs):.3f} on later candles" if aucs else ""
    gaps = f" ({result['gaps']} of them gap markers)" if result["gaps"] else ""
    timing = ""
    if latency["p50"] is not None:
        timing = f", candle to signal {latency['p50']:.1f} ms (p99 {latency['p99']:.1f} ms)"
    return (
        f"{len(train['models'])} models trained on {train['rows']:,} rows in "
        f"{train['seconds']} s{quality}\n"
        f"{result['klines']} candles{gaps}, {result['features']} feature vectors, "
        f"{result['predictions']} predictions, {result['signals']} signals{timing}\n"
        f"{result['notifications']} messages to people, {result['orders']} trading decisions, "
        f"{result['filled']} orders filled (play money); {result['lost']} lost, "
        f"{result['doubled']} doubled"
    )
