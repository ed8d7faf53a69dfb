"""`python -m simulator`: a Binance-compatible exchange on this machine."""

import argparse
import asyncio
import logging
import signal
import sys
from pathlib import Path

import uvloop
from aiohttp import web

from shared.errors import Failure, Usage
from shared.klines import KlineTable
from shared.times import floor_ms, interval_ms
from simulator import synthetic
from simulator.clock import MANUAL, MAX, Clock, Speed, count_updates
from simulator.endpoints import FUTURES, SPOT, Venue
from simulator.market import Market
from simulator.rest import wall_ms
from simulator.server import More, PositionFile, Simulator

log = logging.getLogger("simulator")

_HISTORY = 2_880
_REPLAY_START_MS = 1_735_689_600_000  # 2025-01-01T00:00Z: synthetic markets that are not live
_DAY_MS = 86_400_000


def speed(text: str) -> Speed:
    if text in (MAX, MANUAL):
        return text
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a speed: a number, max or manual")
    return value


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m simulator", description=__doc__)
    add = options.add_argument
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=8290, help="0 = any free one")
    add("--data", nargs="+", default=[], metavar="FILE", help="kline files to replay")
    add("--symbol", nargs="+", default=[], metavar="S")
    add("--interval", metavar="I", help="interval of the data, or of the synthetic market (1m)")
    add("--speed", type=speed, default=1.0, metavar="X|max|manual")
    add("--history", type=int, metavar="ROWS", help="candles that are past at the start")
    add("--start-at", type=int, metavar="MS", help="market time at the start")
    add("--updates", type=int, metavar="N", help="open-candle updates per candle")
    add("--seed", type=int, default=0)
    add("--workdir", type=Path, metavar="DIR", help="keeps the market's position over restarts")
    add("--key", default="demo")
    add("--secret", default="demo")
    add("--balance", nargs="+", default=["USDT=10000"], metavar="ASSET=AMOUNT")
    return options


def load_files(paths: list[str], symbols: list[str], interval: str | None) -> list[KlineTable]:
    from shared.klinefiles import read_klines

    only = symbols[0] if len(symbols) == 1 else None
    tables = read_klines(
        [Path(path) for path in paths],
        symbol=only,
        interval=interval,
        default_symbol=only or "BTCUSDT",
    )
    return [table for table in tables if not symbols or table.symbol in symbols]


def build(options: argparse.Namespace) -> Simulator:
    """The simulator that the options describe, not yet started."""
    workdir: Path | None = options.workdir
    position_file = PositionFile(workdir / "simulator-position") if workdir else None
    saved = position_file.load() if position_file else None
    more: More | None = None
    if options.data:
        tables = load_files(options.data, options.symbol, options.interval)
        if not tables:
            raise Usage(f"no candles of {' '.join(options.symbol)} in the files of --data")
        market = Market(tables, seed=options.seed)
        total = len(market.closes_ms)
        history = options.history or min(_HISTORY, total // 2)
        if not 1 <= history <= total:
            raise Usage(f"--history {history}: the data has {total} candles")
        start = options.start_at or int(market.closes_ms[history - 1])
    else:
        interval = options.interval or "1m"
        step = interval_ms(interval)
        symbols = options.symbol or ["BTCUSDT"]
        live = options.speed == 1.0
        start = options.start_at or (wall_ms() if live else _REPLAY_START_MS)
        if live and options.start_at is None:
            saved = None  # a live synthetic market is where the clock is
        first = floor_ms(saved or start, step) - (options.history or _HISTORY) * step
        ahead = max(_DAY_MS, 16 * step)

        def grow(position_ms: int) -> dict[str, list[KlineTable]]:
            begin = int(market.closes_ms[-1])
            return {SPOT: [make(s, begin, position_ms + ahead) for s in symbols]}

        def make(symbol: str, begin: int, end: int) -> KlineTable:
            return synthetic.generate(symbol, interval, begin, end, seed=options.seed)

        market = Market([make(s, first, start + ahead) for s in symbols], seed=options.seed)
        more = grow
    if saved is not None:
        start = saved
    first_ms, last_ms = int(market.closes_ms[0]), int(market.closes_ms[-1])
    if not first_ms <= start <= last_ms:
        raise Usage(f"market time {start} is outside the data ({first_ms} to {last_ms})")
    updates = options.updates or count_updates(market.step_ms, options.speed)
    return Simulator(
        venues={SPOT: Venue(name=SPOT, market=market), FUTURES: Venue(name=FUTURES, market=market)},
        clock=Clock(options.speed, start, updates),
        key=options.key,
        more=more,
        position_file=position_file,
    )


async def run(options: argparse.Namespace) -> None:
    simulator = build(options)
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    runner = web.AppRunner(simulator.app(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, options.host, options.port, backlog=1024)
    try:
        await site.start()
    except OSError as error:
        await runner.cleanup()
        raise Failure(
            f"cannot listen on {options.host}:{options.port} ({error.strerror}): is another "
            "simulator running? Choose another --port"
        ) from error
    host, port = runner.addresses[0][:2]
    log.info("simulator ready at http://%s:%s", host, port)
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(simulator.play()),
                tasks.create_task(simulator.hub.watch()),
            ]
            await stop.wait()
            for task in running:
                task.cancel()
    finally:
        simulator.hub.abort()
        await runner.cleanup()
        if simulator.position_file is not None:
            simulator.position_file.close()


def main() -> None:
    options = parser().parse_args()
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(options))
    except Failure as error:
        sys.stderr.write(f"simulator: {error}\n")
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
