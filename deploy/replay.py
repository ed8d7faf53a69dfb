"""`itb replay`: a stretch of the bus, or of files, through the whole chain once more.

Features, outputs, score and side by the code that runs live, then the trading rules as the backtest
runs them. Without a change it must give the recorded run's very bits; with another release, config
or threshold it tells what would have been different.
"""

import argparse
import json
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from deploy import replay_report
from deploy.explain import model_folder
from deploy.observer import Observer
from deploy.replay_outcome import Decision, Outcome, Side
from shared import score
from shared.bundle import Bundle
from shared.bus import Bus, Entry, Source
from shared.config import Settings, load
from shared.errors import BadInput, Failure, Usage
from shared.events import Signal
from shared.explain import Explainer
from shared.explain.chain import Computed, compare, play
from shared.explain.history import Stretch
from shared.features import FeatureSet
from shared.klines import KLINE_COLUMNS
from shared.releases import current_id
from shared.stage import is_foreign
from shared.streams import FEATURE, PREDICTION, SIGNAL, Stream
from shared.times import interval_ms
from trainer import backtest, rasters
from trainer.grid import Market, volatilities
from trainer.predict import features_of
from trainer.scored import rules_and_costs

_PATIENCE_S = 3.0
_PRICES = [KLINE_COLUMNS.index(name) for name in ("open", "high", "low", "close")]
_STREAMS: tuple[Stream[Any], ...] = (FEATURE, PREDICTION, SIGNAL)
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """first_ms, last_ms: candles that open between them, both included; None: all there are.

    release, other (a config), buy, sell: what is changed; None: nothing. klines: files instead of
    the bus. png, html: where pictures go.
    """

    config: Path | None = None
    redis_url: str | None = None
    symbol: str | None = None
    interval: str | None = None
    klines: tuple[Path, ...] = ()
    first_ms: int | None = None
    last_ms: int | None = None
    release: str | None = None
    other: Path | None = None
    buy: float | None = None
    sell: float | None = None
    json: bool = False
    png: Path | None = None
    html: Path | None = None

    @property
    def is_changed(self) -> bool:
        given = (self.release, self.other, self.buy, self.sell)
        return any(one is not None for one in given)


async def run(options: Options, out: TextIO) -> int:
    """Replays and prints; the exit code is 1 where the recorded run does not give its own bits."""
    settings = load(options.config)
    if options.klines:
        outcome = _from_files(options, settings)
    else:
        async with Observer(
            options.redis_url or settings.bus_url, patience_s=_PATIENCE_S
        ) as observer:
            folder = await observer.ask(
                partial(model_folder, settings=settings, config=options.config)
            )
            settings = settings.model_copy(update={"model_folder": folder})
            outcome = await observer.ask(partial(_from_bus, options=options, settings=settings))
    found = replay_report.report(outcome)
    if options.png is not None or options.html is not None:
        from deploy import replay_page  # noqa: PLC0415  # matplotlib is slow to import

        replay_page.write(outcome, found, png=options.png, html=options.html)
    if options.json:
        out.write(json.dumps(found, ensure_ascii=False, allow_nan=False) + "\n")
    else:
        out.write(replay_report.text(found) + "\n")
    if outcome.unequal:
        out.flush()
        sys.stderr.write(f"itb: {outcome.unequal} candles are not equal; first {outcome.first}\n")
    return 1 if outcome.unequal else 0


# -- from the bus ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Segment:
    """Neighbouring signals that one release made of features of one schema."""

    first_ms: int
    last_ms: int
    bundle: Bundle
    features: FeatureSet


async def _from_bus(bus: Bus, options: Options, settings: Settings) -> Outcome:
    symbol, interval = options.symbol or settings.symbols[0], options.interval or settings.interval
    other = load(options.other) if options.other is not None else settings
    explainer = Explainer(settings)
    kept: dict[str, dict[int, Entry[Any]]] = {}
    for stream in _STREAMS:
        source = Source(stream, symbol, interval)
        kept[stream.name] = {e.time_ms: e async for e in _span(bus, source, options)}
    signals = [entry for entry in kept[SIGNAL.name].values() if entry.event is not None]
    if not signals:
        key = Source(SIGNAL, symbol, interval).key
        raise BadInput(f"{key}: no signal lies there; `itb streams` shows what is on the bus")
    first_ms, last_ms = signals[0].time_ms, signals[-1].time_ms
    if options.release is not None:
        bundle = _load(other, options.release)
        segments = [
            _Segment(
                first_ms=first_ms,
                last_ms=last_ms,
                bundle=bundle,
                features=features_of(bundle.manifest, other),
            )
        ]
    else:
        segments = await _segments(bus, explainer, signals, kept[FEATURE.name])
    history = explainer.history(symbol, interval)
    again: dict[int, Decision] = {}
    unequal, first = 0, ""
    for segment in segments:
        stretch = await history.stretch(bus, segment.features, segment.first_ms, segment.last_ms)
        for one in _played(stretch, segment, symbol, interval, other):
            time_ms = one.signal.open_time_ms
            vector, prediction, signal = (kept[stream.name].get(time_ms) for stream in _STREAMS)
            if signal is None or signal.event is None:
                continue
            again[time_ms] = _decision(one.signal, options)
            differs = compare(vector, prediction, signal, one, segment.features.names)
            if differs is not None and not options.is_changed:
                unequal += 1
                first = first or f"{one.signal.id}: {differs}"
    candles = await history.candles(bus, first_ms, last_ms)
    recorded = {e.time_ms: _decision(e.event, Options()) for e in signals if e.event is not None}
    return Outcome(
        symbol=symbol,
        interval=interval,
        capital=other.trainer.backtest.capital,
        recorded=_side("recorded", recorded, candles, first_ms, settings, interval),
        replayed=_side("replayed", again, candles, first_ms, _traded(other, options), interval),
        unequal=None if options.is_changed else unequal,
        first=first,
        notes=_seen_in_training(segments),
    )


async def _span(bus: Bus, source: Source[Any], options: Options) -> AsyncIterator[Entry[Any]]:
    after = None if options.first_ms is None else f"{options.first_ms - 1}-0"
    upto = "+" if options.last_ms is None else f"{options.last_ms}-0"
    while page := await bus.span(source, after=after, upto=upto):
        after = page[-1].id
        for entry in page:
            if not is_foreign(entry):
                yield entry


async def _segments(
    bus: Bus,
    explainer: Explainer,
    signals: Sequence[Entry[Signal]],
    vectors: Mapping[int, Entry[Any]],
) -> list[_Segment]:
    """The signals by who made them, in order."""
    found: list[_Segment] = []
    last: tuple[str, str] | None = None
    for entry in signals:
        assert entry.event is not None  # noqa: S101 - the caller has left those out
        key = entry.event.release, entry.event.schema
        if key == last:
            found[-1] = _until(found[-1], entry.time_ms)
            continue
        last = key
        vector = vectors.get(entry.time_ms)
        if vector is None:
            raise BadInput(f"{entry.event.id}: its features are trimmed; begin later with --from")
        bundle = await explainer.bundle(entry.event.release)
        schema = bundle.manifest.schema_hash if vector.event is None else vector.event.schema
        found.append(
            _Segment(
                first_ms=entry.time_ms,
                last_ms=entry.time_ms,
                bundle=bundle,
                features=await explainer.feature_set(bus, schema, bundle, entry.source.interval),
            )
        )
    return found


def _until(segment: _Segment, last_ms: int) -> _Segment:
    return _Segment(
        first_ms=segment.first_ms,
        last_ms=last_ms,
        bundle=segment.bundle,
        features=segment.features,
    )


# -- from files -----------------------------------------------------------------------------------


def _from_files(options: Options, settings: Settings) -> Outcome:
    """The candles under the config as it is, and with what is changed."""
    args = argparse.Namespace(
        klines=list(options.klines),
        futures=None,
        other=None,
        interval=options.interval,
        symbol=None if options.symbol is None else [options.symbol],
    )
    tables = rasters.read_bare(args, settings)
    if len(tables) > 1:
        raise Usage("--klines holds several symbols or intervals: give the files of one")
    (raster,) = rasters.joined_bare(args, settings, tables)
    symbol, interval = raster.symbol, raster.interval
    inside = np.ones(len(raster), bool)
    if options.first_ms is not None:
        inside &= raster.open_time_ms >= options.first_ms
    if options.last_ms is not None:
        inside &= raster.open_time_ms <= options.last_ms
    if not inside.any():
        span = rasters.span(raster)
        raise Usage(f"--from and --to: the files hold {span['first']} .. {span['last']}")
    rows = np.flatnonzero(inside)
    first_ms, last_ms = (int(raster.open_time_ms[row]) for row in (rows[0], rows[-1]))
    begins_ms = int(raster.open_time_ms[0])
    stretch = Stretch(
        first_ms=begins_ms,
        last_ms=int(raster.open_time_ms[-1]),
        step_ms=interval_ms(interval),
        begins_ms=begins_ms,
        **raster.inputs(0, len(raster)),
    )
    other = load(options.other) if options.other is not None else settings
    live = current_id(settings.model_folder)
    if live is None:
        raise Failure(
            f"{settings.model_folder}: no release is live; run `python -m trainer train --promote`"
        )

    segments: list[_Segment] = []

    def decided(own: Settings, release: str, changed: Options) -> dict[int, Decision]:
        bundle = _load(own, release)
        if bundle.manifest.interval != interval:
            raise Usage(
                f"release {bundle.id} is for {bundle.manifest.interval} candles, these are "
                f"{interval}"
            )
        features = features_of(bundle.manifest, own)
        lacking = raster.lacks(features.sources)
        if lacking is not None:
            raise Usage(f"release {bundle.id} reads {lacking} rows, and these files hold none")
        segment = _Segment(first_ms=first_ms, last_ms=last_ms, bundle=bundle, features=features)
        segments.append(segment)
        return {
            one.signal.open_time_ms: _decision(one.signal, changed)
            for one in _played(stretch, segment, symbol, interval, own)
        }

    before = decided(settings, live, Options())
    after = decided(other, options.release or live, options) if options.is_changed else before
    candles = raster.kline[rows[0] : rows[-1] + 1]
    return Outcome(
        symbol=symbol,
        interval=interval,
        capital=other.trainer.backtest.capital,
        recorded=_side("as it is", before, candles, first_ms, settings, interval),
        replayed=_side("changed", after, candles, first_ms, _traded(other, options), interval),
        unequal=None,
        notes=_seen_in_training(segments),
    )


# -- both -----------------------------------------------------------------------------------------


def _load(settings: Settings, release: str) -> Bundle:
    folder = settings.model_folder / "releases" / release
    return Bundle.load(folder, settings.limits.model_bytes)


def _seen_in_training(segments: Sequence[_Segment]) -> list[str]:
    """A note for each release that was trained on candles which it scores here."""
    seen: dict[str, int] = {}
    for segment in segments:
        manifest = segment.bundle.manifest
        first_ms = max(segment.first_ms, manifest.training.start_ms)
        last_ms = min(segment.last_ms, manifest.training.end_ms)
        rows = (last_ms - first_ms) // interval_ms(manifest.interval) + 1
        if rows > 0:
            seen[manifest.id] = max(rows, seen.get(manifest.id, 0))
    return [
        f"release {release} was trained on {rows:,} of these candles: there its scores, and what "
        "they earn, look better than they are"
        for release, rows in seen.items()
    ]


def _played(
    stretch: Stretch, segment: _Segment, symbol: str, interval: str, settings: Settings
) -> Iterator[Computed]:
    return play(
        stretch,
        segment.features,
        segment.bundle,
        symbol=symbol,
        interval=interval,
        nan_share=settings.limits.nan_share,
        novelty_limit=settings.signaler.novelty_limit,
        first_ms=segment.first_ms,
        last_ms=segment.last_ms,
    )


def _decision(signal: Signal, options: Options) -> Decision:
    """A signal's decision; its side by the options' thresholds, where they give any.

    A threshold that is not given stays where the signal's own side shows that it was passed.
    """
    side = signal.side
    if options.buy is not None or options.sell is not None:
        buy = options.buy
        sell = options.sell
        if signal.score is None:
            side = ""
        elif (buy is not None and signal.score > buy) or (buy is None and side == "BUY"):
            side = str(score.Side.BUY)
        elif (sell is not None and signal.score < sell) or (sell is None and side == "SELL"):
            side = str(score.Side.SELL)
        else:
            side = ""
    return Decision(
        score=float("nan") if signal.score is None else signal.score,
        side=side,
        invalid=signal.invalid,
        release=signal.release,
    )


def _traded(settings: Settings, options: Options) -> Settings:
    """The config with the options' thresholds in its trading rules."""
    given = {"buy_threshold": options.buy, "sell_threshold": options.sell}
    change = {name: value for name, value in given.items() if value is not None}
    if not change:
        return settings
    rules = settings.trader.rules.model_copy(update=change)
    trader = settings.trader.model_copy(update={"rules": rules})
    return settings.model_copy(update={"trader": trader})


def _side(
    name: str,
    decisions: Mapping[int, Decision],
    candles: Floats,
    first_ms: int,
    settings: Settings,
    interval: str,
) -> Side:
    """candles: (n, 9) of the raster rows from first_ms on."""
    step_ms = interval_ms(interval)
    rules, costs = rules_and_costs(settings, step_ms)
    times = first_ms + step_ms * np.arange(len(candles), dtype=np.int64)
    rows = [decisions.get(time_ms) for time_ms in times.tolist()]
    prices = [np.ascontiguousarray(candles[:, column]) for column in _PRICES]
    volatility = None
    if settings.trader.rules.sizing == "volatility":
        volatility = volatilities(prices[3], settings.trader.rules.volatility_candles)
    scores = np.array([np.nan if row is None else row.score for row in rows])
    market = Market.of(times, prices, scores, volatility)
    capital = settings.trainer.backtest.capital
    trading = backtest.replay(market, rules, costs, capital)
    return Side(
        name=name,
        decisions=rows,
        rules=rules,
        market=market,
        trading=trading,
        performance=backtest.measured(market, trading, capital).as_dict(),
    )
