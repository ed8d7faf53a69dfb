"""`itb outcomes`: what became of the signals, beside what training and a backtest promised."""

import json
import math
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from deploy.explain import model_folder
from deploy.gap import Gap, gap_of, held_since, live_trips
from deploy.observer import Observer
from deploy.screen import columns
from shared.bundle import Bundle
from shared.bus import Bus, Entry, Source
from shared.config import Settings, load
from shared.errors import BadInput
from shared.events import Leg, OrderState
from shared.explain.explanation import plain
from shared.klinefiles import klines_folder, read_history
from shared.klines import KLINE_COLUMNS, KlineTable
from shared.record import files_of, read_file
from shared.streams import KLINE, ORDER, SIGNAL
from shared.times import interval_ms, iso
from trainer import backtest
from trainer.evaluate import auc, auc_interval, measure
from trainer.grid import Market, volatilities
from trainer.labels import SIGMA_ROWS, label, trailing_sigma
from trainer.outcomes import first_touch
from trainer.scored import rules_and_costs

_PATIENCE_S = 3.0
_SEED = 7
_TOLD = ("auc", "auc_low", "auc_high", "calibration", "base_rate", "mean_output", "rows")
_PRICES = [KLINE_COLUMNS.index(name) for name in ("open", "high", "low", "close")]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    config: Path | None = None
    redis_url: str | None = None
    symbol: str | None = None
    json: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One signal. score: NaN where there was none."""

    time_ms: int
    release: str
    score: float
    side: str
    outputs: Mapping[str, float]


async def run(options: Options, out: TextIO) -> int:
    settings = load(options.config)
    url = options.redis_url or settings.bus_url
    async with Observer(url, patience_s=_PATIENCE_S) as observer:
        folder = await observer.ask(partial(model_folder, settings=settings, config=options.config))
        settings = settings.model_copy(update={"model_folder": folder})
        symbol = options.symbol or settings.symbols[0]
        found = plain(await observer.ask(partial(_look, settings=settings, symbol=symbol)))
    if options.json:
        out.write(json.dumps(found, allow_nan=False) + "\n")
    else:
        out.write("\n".join(_lines(found)) + "\n")
    return 0


async def _look(bus: Bus, settings: Settings, symbol: str) -> dict[str, Any]:
    interval = settings.interval
    signals = await _signals(bus, settings, symbol)
    if not signals:
        raise BadInput(f"{symbol} {interval}: no signal is recorded or on the bus")
    table = await _candles(bus, settings, symbol, signals[0].time_ms)
    releases = {}
    for release in dict.fromkeys(one.release for one in signals):
        own = [one for one in signals if one.release == release]
        releases[release] = _release(settings, release, own, table)
    lines = [e.event async for e in _span(bus, Source(ORDER, symbol), None) if e.event is not None]
    mode = settings.trader.mode
    journal = [one for one in lines if one.mode == mode and one.interval == interval]
    trips = live_trips(journal, speed=settings.market_speed)
    trading: dict[str, Any] = {"mode": mode, "gap": None}
    if trips:
        # From the first entry that was tried, filled or not: what failed before is missed, too.
        tried = [o for o in journal if o.leg == Leg.ENTRY and o.state != OrderState.DROPPED]
        first_ms = min(trips[0].signal_ms, *(one.open_time_ms for one in tried))
        worth = next((float(one.worth) for one in lines if one.worth and one.mode == mode), None)
        market = _market(settings, signals, table, first_ms)
        rules, costs = rules_and_costs(settings, interval_ms(interval))
        done = backtest.replay(market, rules, costs, worth or settings.trainer.backtest.capital)
        held_ms = held_since(journal)
        found = gap_of(trips, done.trades, market, interval_ms(interval), held_ms)
        trading["gap"] = _gap(found)
    return {
        "symbol": symbol,
        "interval": interval,
        "first": iso(signals[0].time_ms),
        "last": iso(signals[-1].time_ms),
        "signals": len(signals),
        "scored": sum(math.isfinite(one.score) for one in signals),
        "releases": releases,
        "trading": trading,
    }


# -- what is read ---------------------------------------------------------------------------------


async def _signals(bus: Bus, settings: Settings, symbol: str) -> list[Said]:
    """The track record's days, then the bus."""
    found: dict[int, Said] = {}
    for path in files_of(settings.data_folder, symbol, settings.interval):
        for record in read_file(path):
            told = json.loads(record.text).get("signal")
            if told is not None:
                found[record.open_time_ms] = Said(
                    time_ms=record.open_time_ms,
                    release=told["release"],
                    score=math.nan if told["score"] is None else float(told["score"]),
                    side=told["side"],
                    outputs=told["outputs"],
                )
    async for entry in _span(bus, Source(SIGNAL, symbol, settings.interval), None):
        event = entry.event
        if event is not None:
            found.setdefault(
                event.open_time_ms,
                Said(
                    time_ms=event.open_time_ms,
                    release=event.release,
                    score=math.nan if event.score is None else event.score,
                    side=event.side,
                    outputs=event.outputs,
                ),
            )
    return [found[time_ms] for time_ms in sorted(found)]


async def _candles(bus: Bus, settings: Settings, symbol: str, first_ms: int) -> KlineTable:
    """Archive and bus together on one raster, from where the labels of the first signal begin."""
    interval, step_ms = settings.interval, settings.step_ms
    begin_ms = first_ms - SIGMA_ROWS * step_ms
    rows: dict[int, tuple[float, ...]] = {}
    folder = klines_folder(settings.data_folder, symbol, interval)
    if folder.is_dir():
        kept = read_history(folder, symbol=symbol, interval=interval, start_ms=begin_ms)
        rows.update(zip(kept.open_time_ms.tolist(), map(tuple, kept.values.tolist()), strict=True))
    async for entry in _span(bus, Source(KLINE, symbol, interval), begin_ms):
        if entry.event is not None:
            rows[entry.time_ms] = entry.event.row()
    if not rows:
        raise BadInput(f"{symbol} {interval}: no candles are archived or on the bus")
    times = np.arange(min(rows), max(rows) + step_ms, step_ms, dtype=np.int64)
    nothing = (math.nan,) * len(KLINE_COLUMNS)
    values = np.array([rows.get(time_ms, nothing) for time_ms in times.tolist()])
    return KlineTable(symbol=symbol, interval=interval, open_time_ms=times, values=values)


async def _span(bus: Bus, source: Source[Any], from_ms: int | None) -> AsyncIterator[Entry[Any]]:
    after = None if from_ms is None else f"{max(0, from_ms - 1)}-0"
    while page := await bus.span(source, after=after):
        after = page[-1].id
        for entry in page:
            yield entry


# -- what is measured -----------------------------------------------------------------------------


def _release(
    settings: Settings, release: str, signals: Sequence[Said], table: KlineTable
) -> dict[str, Any]:
    """Every model and the score of one release, live and as its training measured them.

    Only on candles behind the last one that it was trained on: history that was scored at a start
    lies before, and there its models know the answers.
    """
    step_ms = table.step_ms
    first_ms, last_ms = (int(table.open_time_ms[at]) for at in (0, -1))
    told: dict[str, Any] = {"signals": len(signals), "problem": "", "models": {}, "score": None}
    try:
        bundle = Bundle.load(
            settings.model_folder / "releases" / release, settings.limits.model_bytes
        )
    except BadInput as error:
        return told | {"problem": str(error)}
    manifest = bundle.manifest
    fresh = [one for one in signals if one.time_ms > manifest.training.end_ms]
    told["in_training"] = len(signals) - len(fresh)
    known = [one for one in fresh if one.outputs and first_ms <= one.time_ms <= last_ms]
    places = np.array([(one.time_ms - first_ms) // step_ms for one in known], np.intp)
    sigma = trailing_sigma(table.column("close"))
    for name, entry in manifest.models.items():
        horizon = manifest.labels[entry.label].horizon
        truth = label(entry.label, table, horizon, sigma).y[places]
        said = np.array([one.outputs.get(name, math.nan) for one in known])
        there = ~np.isnan(truth) & ~np.isnan(said)
        live: dict[str, Any] = dict.fromkeys(_TOLD)
        live["rows"] = int(there.sum())
        if there.any():
            figures = measure(truth[there], said[there], horizon, _SEED).as_dict()
            live = {key: figures[key] for key in _TOLD}
        trained = manifest.metrics.get(name, {})
        told["models"][name] = {"live": live, "training": {k: trained.get(k) for k in _TOLD}}
    horizon = max(entry.horizon for entry in manifest.labels.values())
    told["score"] = _score(known, places, table, sigma, horizon)
    return told


def _score(
    signals: Sequence[Said],
    places: npt.NDArray[np.intp],
    table: KlineTable,
    sigma: Floats,
    horizon: int,
) -> dict[str, Any]:
    """Whether scores before a rise of one sigma stand above those before such a fall, as training
    measures it; and the mean return after each side, in percent."""
    close, high, low = (table.column(name) for name in ("close", "high", "low"))
    touch = first_touch(close, high, low, sigma, horizon)[places]
    scores = np.array([one.score for one in signals])
    cases = np.isfinite(scores) & np.isfinite(touch) & (touch != 0)
    rises, said = touch[cases] > 0, scores[cases]
    low_end, high_end = auc_interval(rises, said, horizon, _SEED) if cases.any() else (None, None)
    later = np.full(len(close), np.nan)
    if len(close) > horizon:
        later[:-horizon] = 100 * (close[horizon:] / close[:-horizon] - 1)
    sides = {}
    for side in ("BUY", "SELL", ""):
        own = np.array([one.side == side and math.isfinite(one.score) for one in signals], bool)
        returns = later[places][own]
        returns = returns[np.isfinite(returns)]
        sides[side or "none"] = {
            "signals": len(returns),
            "mean_return": float(returns.mean()) if len(returns) else None,
        }
    return {
        "horizon": horizon,
        "auc": auc(rises, said) if cases.any() else None,
        "auc_low": low_end,
        "auc_high": high_end,
        "cases": int(cases.sum()),
        "sides": sides,
    }


def _market(
    settings: Settings, signals: Sequence[Said], table: KlineTable, first_ms: int
) -> Market:
    """The candles from first_ms to the last signal with the scores that were recorded."""
    inside = (table.open_time_ms >= first_ms) & (table.open_time_ms <= signals[-1].time_ms)
    times = table.open_time_ms[inside]
    scores = {one.time_ms: one.score for one in signals}
    prices = [np.ascontiguousarray(table.values[inside, column]) for column in _PRICES]
    rules = settings.trader.rules
    volatility = None
    if rules.sizing == "volatility":
        volatility = volatilities(prices[3], rules.volatility_candles)
    said = np.array([scores.get(time_ms, math.nan) for time_ms in times.tolist()])
    return Market.of(times, prices, said, volatility)


def _gap(found: Gap) -> dict[str, Any]:
    return {
        "live": found.live,
        "backtest": found.backtest,
        "difference": found.live - found.backtest,
        "parts": dict(found.parts),
        "trips": {"live": found.live_trips, "backtest": found.backtest_trips, "both": found.both},
    }


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"{found['symbol']} {found['interval']}, {found['first']} .. {found['last']}: "
        f"{found['signals']:,} signals, {found['scored']:,} with a score"
    )
    for release, told in found["releases"].items():
        yield ""
        yield f"release {release}, {told['signals']:,} signals"
        if told["problem"]:
            yield f"  not measured: {told['problem']}"
            continue
        if told["in_training"]:
            yield (
                f"  {told['in_training']:,} of them lie inside its training range and are not "
                "measured: its models know what became of them"
            )
        rows = [["model", "AUC live", "95 %", "AUC in training", "calibration live", "rows"]]
        for name, one in told["models"].items():
            live, trained = one["live"], one["training"]
            span = f"{_number(live['auc_low'])} .. {_number(live['auc_high'])}"
            rows.append(
                [
                    name, _number(live["auc"]), span, _number(trained["auc"]),
                    _number(live["calibration"]), f"{live['rows']:,}",
                ]
            )  # fmt: skip
        yield columns(rows)
        score = told["score"]
        yield (
            f"score: AUC of rises against falls {_number(score['auc'])} "
            f"({_number(score['auc_low'])} .. {_number(score['auc_high'])}), "
            f"{score['cases']:,} cases"
        )
        for side, one in score["sides"].items():
            mean = "none" if one["mean_return"] is None else f"{one['mean_return']:+.3f} %"
            yield f"  {side}: {one['signals']:,} signals, mean return {mean} after the horizon"
    yield ""
    gap = found["trading"]["gap"]
    if gap is None:
        yield f"trading ({found['trading']['mode']}): no round trip has ended yet"
        return
    yield (
        f"trading ({found['trading']['mode']}): round trips earned {gap['live']:+,.2f}, the "
        f"backtest over the same signals {gap['backtest']:+,.2f}; the difference of "
        f"{gap['difference']:+,.2f} is"
    )
    yield columns(
        [[name.replace("_", " "), f"{part:+,.2f}"] for name, part in gap["parts"].items()]
    )


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
