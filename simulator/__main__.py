"""A Binance-compatible exchange on this machine, from kline files or a seeded synthetic market.

REST under /api/v3 and /fapi/v1, streams under /ws, /stream and /public|market, faults and the
clock under /control. Two clocks: the account's is wall time, the market's is the data's and moves
at --speed X (paced), max (as fast as consumers follow) or manual (by /control/advance). README.md
in this folder states the model and lists every fault with an example.
"""

import argparse
import asyncio
import json
import logging
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import uvloop
from pyarrow import ArrowException

from shared import logs
from shared.config import load
from shared.errors import BadInput, Failure, Usage
from shared.klinefiles import read_klines
from shared.klines import KlineTable
from shared.times import floor_ms, interval_ms, iso
from simulator import synthetic
from simulator.auth import load_public_key
from simulator.clock import MANUAL, MAX, Clock, Speed, count_updates
from simulator.endpoints import FUTURES, SPOT, Venue
from simulator.exchange.amounts import units
from simulator.exchange.orders import Key
from simulator.exchange.symbols import Symbol, count_limits
from simulator.futures import Funding, Recorded, derive
from simulator.journal import Journal
from simulator.market import Market
from simulator.mirror import Mirror, mirroring
from simulator.rest import wall_ms
from simulator.server import More, PositionFile, Simulator, serving

log = logging.getLogger("simulator")

_HISTORY = 2_880
_REPLAY_START_MS = 1_735_689_600_000  # 2025-01-01T00:00Z: synthetic markets that are not live
_DAY_MS = 86_400_000


def _port(text: str) -> int:
    if text.isdigit() and int(text) <= 65535:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no port (0 to 65535)")


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


def _not_negative(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return value


def _count(text: str) -> int:
    if text.isdecimal() and 0 < int(text) <= 10_000:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a count from 1 to 10000")


def balance(text: str) -> tuple[str, int]:
    """(asset, units) of `ASSET=AMOUNT`."""
    asset, _, amount = text.partition("=")
    try:
        if not asset.isalnum() or not asset.isupper():
            raise ValueError
        return asset, units(amount)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no balance: ASSET=AMOUNT, as in USDT=10000"
        ) from None


def key_of(options: argparse.Namespace) -> Key:
    """The first account's key."""
    if options.public_key is None:
        return Key(options.secret)
    try:
        pem = options.public_key.read_text()
        load_public_key(pem)
    except (OSError, ValueError) as error:
        raise BadInput(f"{options.public_key}: {error}") from error
    return Key(public_key=pem)


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m simulator", description=__doc__)
    add = options.add_argument
    add("-c", "--config", metavar="FILE", help="symbols and interval of a config.json")
    add("--host", default="127.0.0.1")
    add("--port", type=_port, default=8290, help="0 = any free one")
    add("--data", nargs="+", default=[], metavar="FILE", help="kline files to replay")
    add("--futures-data", nargs="+", default=[], metavar="FILE", help="USD-M klines")
    add("--funding-data", nargs="+", default=[], metavar="FILE", help="SYMBOL-*.parquet")
    add("--symbol", nargs="+", default=[], metavar="S")
    add("--interval", metavar="I", help="interval of the data, or of the synthetic market (1m)")
    add("--speed", type=speed, default=1.0, metavar="X|max|manual")
    add("--history", type=int, metavar="ROWS", help="candles that are past at the start")
    add("--start-at", type=int, metavar="MS", help="market time at the start")
    add("--updates", type=int, metavar="N", help="open-candle updates per candle")
    add("--ahead", type=_count, default=1, metavar="N", help="candles per wait at --speed max")
    add("--seed", type=int, default=0)
    add("--workdir", type=Path, metavar="DIR", help="keeps the market's position over restarts")
    add("--key", default="demo")
    add("--secret", default="demo")
    add("--public-key", type=Path, metavar="PEM", help="Ed25519 or RSA, in place of --secret")
    add(
        "--balance",
        nargs="+",
        type=balance,
        default=[("USDT", units("10000"))],
        metavar="ASSET=AMOUNT",
    )
    add("--mirror", action="store_true", help="paper exchange on the config's live market")
    add("--exchange-info", type=Path, metavar="JSON", help="real filters of its symbols")
    add("--slippage-bps", type=_not_negative, default=0.0, metavar="X")
    add("--latency-ms", type=_not_negative, default=0.0, metavar="MS")
    return options


def load_files(paths: list[str], symbols: list[str], interval: str | None) -> list[KlineTable]:
    """The tables of --data, only those of --symbol where given."""
    only = symbols[0] if len(symbols) == 1 else None
    tables = read_klines(paths, symbol=only, interval=interval, default_symbol=only or "BTCUSDT")
    chosen = [table for table in tables if not symbols or table.symbol in symbols]
    if not chosen:
        raise Usage(f"no candles of {' '.join(symbols) or 'any symbol'} in {' '.join(paths)}")
    return chosen


def load_funding(paths: list[str], symbols: list[str]) -> Recorded:
    """`SYMBOL-*.parquet` with the columns fundingTime (ms) and fundingRate."""
    found: Recorded = {}
    for path in map(Path, paths):
        symbol = path.name.split("-")[0]
        try:
            table = pq.read_table(path, columns=["fundingTime", "fundingRate"])
        except (OSError, ValueError, KeyError, ArrowException) as error:
            raise BadInput(
                f"{path}: not a funding file (fundingTime, fundingRate): {error}"
            ) from error
        times = table["fundingTime"].to_numpy().astype(np.int64)
        found[symbol if symbol in symbols else symbols[0]] = (
            times,
            table["fundingRate"].to_numpy().astype(np.float64),
        )
    return found


def replay(options: argparse.Namespace) -> tuple[Market, int]:
    """The market of --data, and where it starts."""
    market = Market(load_files(options.data, options.symbol, options.interval), seed=options.seed)
    total = len(market.closes_ms)
    history = options.history or max(1, min(_HISTORY, total // 2))
    if not 1 <= history <= total:
        raise Usage(f"--history {history}: the data has {total} candles")
    return market, int(market.closes_ms[history - 1])


def synthesise(options: argparse.Namespace, saved: int | None) -> tuple[Market, int, More]:
    """The seeded market, where it starts, and its continuation. At real time it is where we are."""
    interval = options.interval or "1m"
    step = interval_ms(interval)
    symbols = options.symbol or ["BTCUSDT"]
    start = wall_ms() if options.speed == 1.0 else saved or _REPLAY_START_MS
    start = options.start_at or start
    ahead = max(_DAY_MS * max(1, 32 // len(symbols)), 16 * step)
    first = floor_ms(start, step) - (options.history or _HISTORY) * step
    if first < synthetic.EPOCH_MS:
        raise Usage(
            f"market time {iso(start)} is outside the data: the synthetic market begins at "
            f"{iso(synthetic.EPOCH_MS)}, {options.history or _HISTORY} candles of history included"
        )

    def make(symbol: str, begin: int, end: int) -> KlineTable:
        return synthetic.generate(symbol, interval, begin, end, seed=options.seed)

    market = Market([make(s, first, start + ahead) for s in symbols], seed=options.seed)

    def more(position_ms: int) -> list[KlineTable]:
        begin = int(market.closes_ms[-1])
        return [make(s, begin, position_ms + ahead) for s in symbols]

    return market, start, more


def build(options: argparse.Namespace) -> Simulator:
    """The simulator that the options describe, not yet started."""
    if options.config:
        settings = load(options.config)
        options.symbol = options.symbol or list(settings.symbols)
        options.interval = options.interval or (None if options.data else settings.interval)
    workdir: Path | None = options.workdir
    position_file = PositionFile(workdir / "simulator-position") if workdir else None
    saved = position_file.load() if position_file else None
    more: More | None = None
    if options.data:
        market, start = replay(options)
        start = saved or options.start_at or start
    else:
        market, start, more = synthesise(options, saved)
    first_ms, last_ms = int(market.closes_ms[0]), int(market.closes_ms[-1])
    if not first_ms <= start <= last_ms:
        hint = f" (remove {workdir}/simulator-position to start afresh)" if saved else ""
        raise Usage(f"market time {iso(start)} is outside the data{hint}")
    updates = options.updates or count_updates(market.step_ms, options.speed)
    info = load_info(options.exchange_info) if options.exchange_info else {}
    return Simulator(
        venues={SPOT: spot_venue(market), FUTURES: futures_venue(options, market)},
        clock=Clock(options.speed, start, updates),
        journal=Journal(workdir / "simulator-exchange.jsonl") if workdir else None,
        keys={options.key: key_of(options)},
        balances=dict(options.balance),
        slippage_bps=options.slippage_bps,
        latency_ms=options.latency_ms,
        infos={one["symbol"]: one for one in info.get("symbols", [])},
        exchange_filters=info.get("exchangeFilters", []),
        played_ms=saved,
        more=more,
        position_file=position_file,
        ahead=options.ahead,
    )


def build_mirror(options: argparse.Namespace) -> Mirror:
    """The paper exchange on the live market that the config names."""
    plain = parser()
    for name in ("data", "futures_data", "funding_data", "exchange_info", "interval", "speed",
                 "history", "start_at", "updates", "ahead", "seed"):  # fmt: skip
        if getattr(options, name) != plain.get_default(name):
            option = name.replace("_", "-")
            raise Usage(f"--{option} does not go with --mirror: the market is the live one")
    settings = load(options.config)
    workdir: Path | None = options.workdir
    return Mirror(
        rest_url=settings.binance_rest_url,
        ws_url=settings.binance_ws_url,
        futures_rest_url=settings.futures_rest_url,
        futures_ws_url=settings.futures_ws_url,
        symbols=tuple(options.symbol or settings.symbols),
        keys={options.key: key_of(options)},
        balances=dict(options.balance),
        journal=Journal(workdir / "mirror-exchange.jsonl") if workdir else None,
        position_file=PositionFile(workdir / "mirror-position") if workdir else None,
        slippage_bps=options.slippage_bps,
        latency_ms=options.latency_ms,
    )


def load_info(path: Path) -> dict[str, Any]:
    """The reply of `GET /api/v3/exchangeInfo` that a file holds."""
    try:
        info: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for one in info["symbols"]:
            Symbol(one)
        count_limits(info.get("exchangeFilters", []))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: no exchangeInfo: {error!r}") from error
    return info


def spot_venue(market: Market) -> Venue:
    venue = Venue(SPOT, lambda: market)
    assert venue.market is market  # noqa: S101 - made at once: the clock runs on it
    return venue


def futures_venue(options: argparse.Namespace, spot: Market) -> Venue:
    """USD-M futures: from files, else derived from spot when somebody first asks."""
    funding = Funding(spot, load_funding(options.funding_data, list(spot.series)))
    if options.futures_data:
        own = Market(
            load_files(options.futures_data, options.symbol, options.interval),
            seed=options.seed + 1,
        )
        venue = Venue(FUTURES, lambda: own, funding=funding, grow=lambda _: [])
        assert venue.market is own  # noqa: S101 - its candles are part of the time line
        return venue

    def grown(tables: list[KlineTable]) -> list[KlineTable]:
        return [derive(spot.series[table.symbol], table) for table in tables]

    def make() -> Market:
        return Market(grown([s.table for s in spot.series.values()]), seed=options.seed + 1)

    return Venue(FUTURES, make, funding=funding, grow=grown)


async def run(options: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT."""
    told: dict[str, object]
    if options.mirror:
        mirror = build_mirror(options)
        told, opened = {"mirror": mirror.rest_url}, mirroring(mirror, options.host, options.port)
    else:
        simulator = build(options)
        told = {"market_now_ms": simulator.clock.position_ms, "speed": options.speed}
        opened = serving(simulator, options.host, options.port)
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    async with opened as (port, work):
        log.info("simulator ready at http://%s:%s", options.host, port, extra=told)
        work.add_done_callback(lambda _: stop.set())
        await stop.wait()


def main() -> None:
    options = parser().parse_args()
    logs.set_up("simulator")
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(options))
    except Failure as error:
        sys.stderr.write(f"simulator: {error}\n")
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
