"""Takes a signal apart: reads it and all that led to it off the bus, and computes it again."""

import asyncio
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.bundle import Bundle
from shared.bus import Bus, Entry, Source
from shared.config import Settings
from shared.contributions import Contributions, Contributor
from shared.errors import BadInput, Usage
from shared.events import Feature, Kline, Order, Prediction, Signal
from shared.explain.chain import Computed, compare, play
from shared.explain.explanation import (
    Candles,
    Explanation,
    Far,
    FeatureValue,
    Guard,
    ModelShare,
    Steps,
    plain,
    signal_place,
)
from shared.explain.history import History, Stretch
from shared.features import FeatureSet
from shared.klines import KLINE_COLUMNS
from shared.ledger import fills_of
from shared.reference import novelty_of
from shared.releases import is_release_id, list_releases
from shared.score import ScoreFormula, ScoreKind, logit
from shared.streams import FEATURE, KLINE, NOTIFICATION, ORDER, PREDICTION, SIGNAL, schema_key
from shared.times import interval_ms, iso

Floats = npt.NDArray[np.float64]

TOP = 10
"""Features that are named as the most telling."""
_NEWEST = 120  # candles that are shown
_SHOWN_COLUMNS = ("open_time_ms", *KLINE_COLUMNS[:5])
_ORDER_SLACK_MS = 60_000  # the journal's ids are the server's time, signals tell ours


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What stands on the bus about one candle."""

    signal: Entry[Signal]
    prediction: Entry[Prediction] | None
    feature: Entry[Feature]
    kline: Entry[Kline] | None


class Explainer:
    """Answers questions about signals. What it has read (releases, candles, the journal) it keeps,
    so that the next answer is quick; a later session on the same server may take over.

    model_folder: instead of the config's. data_folder: where the collector's archive lies, for
    candles that are trimmed from the bus; None: only the bus is read.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        model_folder: Path | None = None,
        data_folder: Path | None = None,
    ) -> None:
        self._settings = settings
        self._turn = asyncio.Lock()
        self._folder = model_folder or settings.model_folder
        self._data_folder = data_folder
        self._bundles: dict[str, Bundle] = {}
        self._contributors: dict[str, Contributor] = {}
        self._sets: dict[str, FeatureSet] = {}
        self._histories: dict[tuple[str, str], History] = {}
        self._journals: dict[str, _Journal] = {}

    async def explain(self, bus: Bus, signal_id: str) -> Explanation:
        """
        Raises:
            Usage: it is no signal's id, or the config does not fit the signal's features.
            BadInput: the signal, or what it was made of, is no longer there; the text says what.
        """
        symbol, interval, time_ms = signal_place(signal_id)
        async with self._turn:
            return await self._explain(bus, signal_id, symbol, interval, time_ms)

    async def _explain(
        self, bus: Bus, signal_id: str, symbol: str, interval: str, time_ms: int
    ) -> Explanation:
        found = await self._found(bus, signal_id, symbol, interval, time_ms)
        signal = found.signal.event
        assert signal is not None  # noqa: S101 - _found has checked
        bundle = await self.bundle(signal.release)
        vector = found.feature.event
        schema = bundle.manifest.schema_hash if vector is None else vector.schema
        features = await self.feature_set(bus, schema, bundle, interval)
        stretch = await self.history(symbol, interval).stretch(bus, features, time_ms, time_ms)
        again = await asyncio.to_thread(self._recompute, found, bundle, features, stretch)
        orders = await self._journal(symbol).lines(
            bus, signal_id, since_ms=found.signal.meta.published_us // 1000 - _ORDER_SLACK_MS
        )
        told = await self._notifications(bus, symbol, interval, time_ms)
        return await asyncio.to_thread(
            self._explanation, found, again, bundle, features, stretch, orders, told
        )

    # -- what stands on the bus ---------------------------------------------------------------

    async def _found(
        self, bus: Bus, signal_id: str, symbol: str, interval: str, time_ms: int
    ) -> _Found:
        place = f"{time_ms}-0"
        signals = Source(SIGNAL, symbol, interval)
        signal = await bus.at(signals, place)
        if signal is None:
            raise BadInput(await self._why_absent(bus, signal_id, signals, time_ms))
        if signal.event is None:
            raise BadInput(f"{signals.key} {place} cannot be read: {signal.problem}")
        features, candles = Source(FEATURE, symbol, interval), Source(KLINE, symbol, interval)
        feature = await bus.at(features, place)
        if feature is None:
            raise BadInput(f"{signal_id}: its entry of {features.key} is trimmed")
        kline = await bus.at(candles, place)
        if kline is None and self._data_folder is None:
            raise BadInput(f"{signal_id}: its candle is trimmed from {candles.key}")
        prediction = await bus.at(Source(PREDICTION, symbol, interval), place)
        return _Found(signal=signal, prediction=prediction, feature=feature, kline=kline)

    async def _why_absent(self, bus: Bus, signal_id: str, source: Source[Any], time_ms: int) -> str:
        first = await bus.span(source, after=None, count=1)
        last = await bus.last_id(source)
        if not first or last is None:
            return (
                f"no signal {signal_id}: {source.key} is empty; `itb streams` shows what is there"
            )
        last_ms = int(last.partition("-")[0])
        held = f"{source.key} holds {iso(first[0].time_ms)} .. {iso(last_ms)}"
        if time_ms < first[0].time_ms:
            return f"no signal {signal_id}: it is trimmed, or never was; {held}"
        if time_ms > last_ms:
            return f"no signal {signal_id} yet: {held}"
        return f"no signal {signal_id}: {held}, but none of this candle"

    async def _notifications(
        self, bus: Bus, symbol: str, interval: str, time_ms: int
    ) -> tuple[Mapping[str, Any], ...]:
        source = Source(NOTIFICATION, symbol, interval)
        entries = await bus.span(source, after=f"{time_ms - 1}-0", upto=f"{time_ms}", count=8)
        return tuple(
            plain(entry.event) | {"published_us": entry.meta.published_us}
            for entry in entries
            if entry.event is not None and entry.time_ms == time_ms
        )

    # -- what is kept -------------------------------------------------------------------------

    async def bundle(self, release: str) -> Bundle:
        """
        Raises:
            BadInput: the release is gone, or must not be used.
        """
        if not is_release_id(release):
            raise BadInput(f"the signal names {release!r}, which is no release")
        if release not in self._bundles:
            folder = self._folder / "releases" / release
            if not folder.is_dir():
                known = list_releases(self._folder)
                there = f"there are {', '.join(known)}" if known else "there is none"
                raise BadInput(
                    f"release {release} is not in {self._folder} ({there}); give the config that "
                    "names its model_folder (-c)"
                )
            self._bundles[release] = await asyncio.to_thread(
                Bundle.load, folder, self._settings.limits.model_bytes
            )
        return self._bundles[release]

    async def feature_set(self, bus: Bus, schema: str, bundle: Bundle, interval: str) -> FeatureSet:
        """The features of a schema, by the release or by the bus.

        Raises:
            Usage: the config does not fit them.
            BadInput: nobody knows the schema.
        """
        if schema not in self._sets:
            names = await self._names(bus, schema, bundle)
            try:
                features = await asyncio.to_thread(
                    FeatureSet.of,
                    names,
                    self._settings.features_file,
                    interval_ms=interval_ms(interval),
                )
            except Usage as error:
                raise Usage(
                    f"schema {schema}: {error}; give the config that the featurizer has (-c)"
                ) from None
            self._sets[schema] = features
        return self._sets[schema]

    async def _names(self, bus: Bus, schema: str, bundle: Bundle) -> Sequence[str]:
        if schema == bundle.manifest.schema_hash:
            return bundle.manifest.features
        text = await bus.get(schema_key(schema))
        if text is None:
            raise BadInput(f"{schema_key(schema)} is not on the bus: nobody knows its features")
        names: Sequence[str] = json.loads(text)
        return names

    def history(self, symbol: str, interval: str) -> History:
        key = symbol, interval
        if key not in self._histories:
            other = self._settings.features_other
            self._histories[key] = History(
                symbol, interval, other=other, data_folder=self._data_folder
            )
        return self._histories[key]

    def _journal(self, symbol: str) -> "_Journal":
        return self._journals.setdefault(symbol, _Journal(symbol))

    def _contributor(self, bundle: Bundle) -> Contributor:
        if bundle.id not in self._contributors:
            self._contributors[bundle.id] = Contributor(bundle)
        return self._contributors[bundle.id]

    # -- computing ----------------------------------------------------------------------------

    def _recompute(
        self, found: _Found, bundle: Bundle, features: FeatureSet, stretch: Stretch
    ) -> Computed:
        source, time_ms = found.signal.source, found.signal.time_ms
        (computed,) = play(
            stretch,
            features,
            bundle,
            symbol=source.symbol,
            interval=source.interval,
            nan_share=self._settings.limits.nan_share,
            novelty_limit=self._settings.signaler.novelty_limit,
            first_ms=time_ms,
            last_ms=time_ms,
        )
        return computed

    def _explanation(
        self,
        found: _Found,
        again: Computed,
        bundle: Bundle,
        features: FeatureSet,
        stretch: Stretch,
        orders: Sequence[Entry[Order]],
        told: tuple[Mapping[str, Any], ...],
    ) -> Explanation:
        signal = found.signal.event
        assert signal is not None  # noqa: S101 - _found has checked
        differs = compare(found.feature, found.prediction, found.signal, again, features.names)
        if differs is not None and stretch.archived + stretch.doubtful:
            _check_decidable(signal, found.feature.event, stretch)
        contributor = self._contributor(bundle)
        values = _values(found.feature, bundle)
        shares = contributor.of(values) if signal.outputs and values is not None else {}
        shown = _features(bundle, contributor, values, shares, signal)
        novelty = _far(bundle, values, self._settings.signaler.novelty_limit)
        ranked = sorted(
            (one for one in shown if one.pull == one.pull and one.is_used),
            key=lambda one: -abs(one.pull),
        )[:TOP]
        top = _at_medians(bundle, values, ranked)
        return Explanation(
            signal={"id": signal.id} | plain(signal),
            equal=differs is None,
            difference=differs,
            compared={"features": len(features.names), "outputs": len(signal.outputs)},
            outputs=dict(signal.outputs),
            score=_steps(bundle, signal),
            top_features=top,
            features=shown,
            models=_models(bundle, contributor, shares, signal),
            guards=_guards(bundle, found, signal, novelty, self._settings.limits.nan_share),
            novelty=novelty,
            release=_release(bundle, signal),
            candles=_candles(stretch, features),
            orders=tuple(
                _line(entry.id, entry.event) for entry in orders if entry.event is not None
            ),
            notifications=told,
            latency_ms=_latency(found, orders, told),
            notes=tuple(_notes(bundle, features, contributor, signal, stretch)),
        )


def _check_decidable(signal: Signal, vector: Feature | None, stretch: Stretch) -> None:
    """Equal bits prove what rows of the archive are; other bits say something of the services only
    where the archive is known to hold what stood on the bus.

    Raises:
        BadInput: it is not.
    """
    if vector is not None and not vector.covered:
        raise BadInput(
            f"{signal.id}: it is of the warm-up, which depends on where the candles began, and "
            "that is trimmed"
        )
    if stretch.doubtful:
        raise BadInput(
            f"{signal.id}: cannot be computed again: of the candles that it looks at and that are "
            f"trimmed from the bus, {stretch.doubtful} are missing in the archive or were revised "
            "there"
        )


class _Journal:
    """The lines of the trader's journal by the signal that they are about."""

    def __init__(self, symbol: str) -> None:
        self._source = Source(ORDER, symbol)
        self._by_signal: dict[str, list[Entry[Order]]] = {}
        self._from_ms: int | None = None
        self._after = ""

    async def lines(self, bus: Bus, signal_id: str, *, since_ms: int) -> Sequence[Entry[Order]]:
        """since_ms: no line about the signal is older."""
        if self._from_ms is None or since_ms < self._from_ms:
            self._by_signal.clear()
            self._from_ms, self._after = since_ms, f"{max(0, since_ms - 1)}-0"
        while page := await bus.span(self._source, after=self._after):
            self._after = page[-1].id
            for entry in page:
                if entry.event is not None:
                    self._by_signal.setdefault(entry.event.signal_id, []).append(entry)
        return self._by_signal.get(signal_id, [])


def _values(entry: Entry[Feature], bundle: Bundle) -> Floats | None:
    """The vector on the bus, None where the release cannot read it."""
    event, manifest = entry.event, bundle.manifest
    if event is None or event.schema != manifest.schema_hash:
        return None
    if len(event.values) != 8 * len(manifest.features):
        return None
    return np.frombuffer(event.values, "<f8")


def _features(
    bundle: Bundle,
    contributor: Contributor,
    values: Floats | None,
    shares: Mapping[str, Contributions],
    signal: Signal,
) -> tuple[FeatureValue, ...]:
    if values is None:
        return ()
    manifest, reference = bundle.manifest, bundle.reference
    medians = contributor.medians.copy()
    spreads: dict[int, float] = {}
    if reference is not None:
        columns = bundle.reference_columns
        medians[columns] = [one.median for one in reference.features.values()]
        far = reference.spreads(values[None, columns])[0]
        spreads = dict(zip(columns.tolist(), far.tolist(), strict=True))
    pulls = contributor.pulls(shares, signal.outputs) if shares else np.full(len(values), np.nan)
    used = set(manifest.used.tolist())
    return tuple(
        FeatureValue(
            name=name,
            value=float(values[at]),
            median=float(medians[at]),
            pull=float(pulls[at]),
            is_used=at in used,
            spreads=spreads.get(at),
        )
        for at, name in enumerate(manifest.features)
    )


def _far(bundle: Bundle, values: Floats | None, limit: float | None) -> Far | None:
    if values is None or bundle.reference is None:
        return None
    found = novelty_of(values[bundle.reference_columns], bundle.reference)
    if not math.isfinite(found.value):
        return None
    return Far(**asdict(found), limit=limit)


def _at_medians(
    bundle: Bundle, values: Floats | None, ranked: Sequence[FeatureValue]
) -> tuple[FeatureValue, ...]:
    """The score again with each of these features at its training median."""
    if values is None or not ranked:
        return tuple(ranked)
    names = bundle.manifest.features
    rows = np.repeat(values[None], len(ranked), axis=0)
    for row, one in enumerate(ranked):
        rows[row, names.index(one.name)] = one.median
    scores = bundle.run(rows).score.tolist()
    return tuple(
        dataclasses.replace(one, score_at_median=score if math.isfinite(score) else None)
        if math.isfinite(one.median)
        else one
        for one, score in zip(ranked, scores, strict=True)
    )


def _models(
    bundle: Bundle, contributor: Contributor, shares: Mapping[str, Contributions], signal: Signal
) -> dict[str, ModelShare]:
    names = bundle.manifest.features
    weights = contributor.weights(signal.outputs) if shares else {}
    found = {}
    for name, output in signal.outputs.items():
        entry = bundle.manifest.models.get(name)
        if entry is None:
            continue
        share = shares.get(name)
        if share is None:
            found[name] = ModelShare(
                output=output,
                label=entry.label,
                side=bundle.manifest.labels[entry.label].side,
                algorithm=entry.algorithm,
                missing=contributor.missing.get(name, "its features are not those of the release"),
            )
            continue
        moved = np.flatnonzero(share.values)
        found[name] = ModelShare(
            output=output,
            label=entry.label,
            side=bundle.manifest.labels[entry.label].side,
            algorithm=entry.algorithm,
            method=str(share.method),
            base=share.base,
            logit=share.logit,
            remainder=share.remainder,
            weight=weights[name],
            contributions={names[at]: float(share.values[at]) for at in moved.tolist()},
        )
    return found


def _steps(bundle: Bundle, signal: Signal) -> Steps | None:
    """None where there are no outputs."""
    manifest = bundle.manifest
    formula = manifest.score.formula
    if not set(bundle.models) <= set(signal.outputs):
        return None
    high, low = sides(formula, bundle.models, signal.outputs)
    thresholds = manifest.thresholds
    described = {
        ScoreKind.RATIO: "2 * high / (high + low) - 1; high, low: the mean output of each side",
        ScoreKind.DIFFERENCE: "high - low; high, low: the mean output of each side",
        ScoreKind.LOGIT_MEAN: "high - low; high, low: logistic(mean of the outputs' log-odds)",
        ScoreKind.STACK: "high - low; high, low: logistic(weighted sum of all log-odds + bias)",
    }[formula.kind]
    if signal.score is None:
        text = f"no score: {signal.invalid}"
    elif signal.side == "BUY":
        text = f"{signal.score:+.4f} is above the buy threshold {thresholds.buy:+g}: BUY"
    elif signal.side == "SELL":
        text = f"{signal.score:+.4f} is below the sell threshold {thresholds.sell:+g}: SELL"
    else:
        text = (
            f"{signal.score:+.4f} lies between the thresholds {thresholds.sell:+g} and "
            f"{thresholds.buy:+g}: no side"
        )
    return Steps(
        kind=str(formula.kind),
        formula=described,
        high=high,
        low=low,
        score=signal.score,
        buy=thresholds.buy,
        sell=thresholds.sell,
        side=signal.side,
        text=text,
    )


def sides(
    formula: ScoreFormula, models: Sequence[str], outputs: Mapping[str, float]
) -> tuple[float, float]:
    """What speaks for a rise and for a fall, each a probability, from which the score is taken."""
    row = np.array([outputs[name] for name in models])
    if formula.kind is ScoreKind.STACK:
        found = []
        for stack in formula.stacks:
            weights = np.array([stack.weights[name] for name in models])
            found.append(float(1 / (1 + np.exp(-(logit(row) @ weights + stack.bias)))))
        return found[0], found[1]
    high, low = (row[columns] for columns in formula.columns(models))
    if formula.kind is ScoreKind.LOGIT_MEAN:
        return tuple(  # type: ignore[return-value]  # two sides
            float(1 / (1 + np.exp(-logit(side).mean()))) for side in (high, low)
        )
    return float(high.mean()), float(low.mean())


def _guards(
    bundle: Bundle, found: _Found, signal: Signal, novelty: Far | None, nan_share: float
) -> tuple[Guard, ...]:
    """Every rule in the order in which it is asked; those after the first that fails are not."""
    manifest, feature = bundle.manifest, found.feature.event
    asked: list[tuple[str, bool, str]] = []
    if feature is None:
        asked.append(("readable", False, f"the features cannot be read: {found.feature.problem}"))
    else:
        values = np.frombuffer(feature.values[: len(feature.values) // 8 * 8], "<f8")
        fits = feature.schema == manifest.schema_hash and len(values) == len(manifest.features)
        used = values[manifest.used] if fits else values
        missing, limit = int(np.isnan(used).sum()), nan_share * len(used)
        asked += [
            (
                "symbol",
                signal.symbol in manifest.symbols,
                f"the release was trained on {', '.join(manifest.symbols)}",
            ),
            (
                "schema",
                fits,
                f"the features have schema {feature.schema}, the release {manifest.schema_hash}",
            ),
            ("candle", not feature.gap, "the exchange has such a candle, no gap"),
            ("coverage", feature.covered, "the longest window lies wholly inside the candles"),
            (
                "missing",
                missing <= limit,
                f"{missing} of {len(used)} features have no value, at most {int(limit)} may",
            ),
            ("finite", not np.isinf(used).any(), "no feature is infinite"),
            (
                "outputs",
                len(signal.outputs) == len(bundle.models),
                f"{len(signal.outputs)} of {len(bundle.models)} models gave a probability",
            ),
        ]
    if novelty is not None:
        limit = math.inf if novelty.limit is None else novelty.limit
        told = "no limit is set" if novelty.limit is None else f"at most {novelty.limit:g} may be"
        asked.append(("novelty", novelty.value <= limit, f"novelty {novelty.value:.2f}, {told}"))
    asked.append(("score", signal.score is not None, signal.invalid or "there is a score"))
    guards: list[Guard] = []
    failed = False
    for name, passed, text in asked:
        guards.append(Guard(name=name, passed=None if failed else passed, text=text))
        failed = failed or not passed
    return tuple(guards)


def _release(bundle: Bundle, signal: Signal) -> dict[str, Any]:
    manifest, training = bundle.manifest, bundle.manifest.training
    step_ms = interval_ms(signal.interval)
    return {
        "id": manifest.id,
        "created": manifest.created,
        "code_version": manifest.code_version,
        "symbols": list(manifest.symbols),
        "interval": manifest.interval,
        "trained_from": iso(training.start_ms),
        "trained_to": iso(training.end_ms),
        "rows": training.rows,
        "tested_from": iso(training.test_start_ms),
        "candles_since_training": (signal.open_time_ms - training.end_ms) // step_ms,
        "auc": {name: manifest.metrics.get(name, {}).get("auc") for name in manifest.models},
        "left_out": list(manifest.left_out),
        "onnxruntime": manifest.runtime.onnxruntime,
        "cpu": manifest.runtime.cpu,
    }


def _candles(stretch: Stretch, features: FeatureSet) -> Candles:
    rows = stretch.kline
    close = rows[:, KLINE_COLUMNS.index("close")]
    first = max(0, len(rows) - _NEWEST)
    times = [stretch.first_ms + stretch.step_ms * at for at in range(first, len(rows))]
    newest = tuple(
        (float(time_ms), *row[:5].tolist())
        for time_ms, row in zip(times, rows[first:], strict=True)
    )
    return Candles(
        first_ms=stretch.first_ms,
        last_ms=stretch.last_ms,
        rows=len(rows),
        gaps=int(np.isnan(close).sum()),
        lookback=features.lookback,
        columns=_SHOWN_COLUMNS,
        newest=newest,
    )


def _line(entry_id: str, line: Order) -> dict[str, Any]:
    """A line of the journal with its fills taken apart."""
    try:
        fills = [plain(fill) for fill in fills_of(line)]
    except (ValueError, KeyError, ArithmeticError) as error:
        raise BadInput(
            f"{entry_id} of the journal has fills that cannot be read: {error}"
        ) from None
    return {"entry": entry_id, **plain(dataclasses.replace(line, fills={})), "fills": fills}


def _latency(
    found: _Found, orders: Sequence[Entry[Order]], told: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """Milliseconds on our own clock, per stage; `market`, from the close to the bus, on the
    market's. Only what both ends were stamped for."""
    kline, feature, signal = found.kline, found.feature, found.signal
    stamps = {
        "received": kline.meta.received_us if kline is not None else 0,
        "kline": kline.meta.published_us if kline is not None else 0,
        "feature": feature.meta.published_us,
        "signal": signal.meta.published_us,
        "order": orders[0].meta.published_us if orders else 0,
        "notification": told[-1]["published_us"] if told else 0,
    }
    spans = {
        "collector": ("received", "kline"),
        "featurizer": ("kline", "feature"),
        "predictor": ("feature", "signal"),
        "candle_to_signal": ("received", "signal"),
        "trader": ("signal", "order"),
        "notifier": ("signal", "notification"),
    }
    taken = {
        name: (stamps[end] - stamps[start]) / 1000
        for name, (start, end) in spans.items()
        if stamps[start] and stamps[end]
    }
    if kline is not None and kline.meta.market_ms is not None and kline.event is not None:
        taken["market"] = float(kline.meta.market_ms - (kline.event.close_time_ms + 1))
    return taken


def _notes(
    bundle: Bundle,
    features: FeatureSet,
    contributor: Contributor,
    signal: Signal,
    stretch: Stretch,
) -> list[str]:
    manifest = bundle.manifest
    notes = [bundle.note] if bundle.note else []
    if stretch.archived:
        notes.append(
            "candles that are trimmed from the bus were read from the archive, as they stood there"
        )
    if features.user_sha256 != manifest.features_file_sha256:
        notes.append("the feature file is not the one that the release was trained with")
    if contributor.missing:
        first = next(iter(contributor.missing))
        notes.append(
            f"no contributions to {', '.join(contributor.missing)}: {contributor.missing[first]}"
        )
    if bundle.reference is None:
        notes.append(
            "how far this candle is from the training rows is not known: the release was made by "
            "an earlier version; train again"
        )
    if manifest.training.start_ms <= signal.open_time_ms <= manifest.training.end_ms:
        notes.append("the candle lies inside the training range: the models have seen it")
    return notes
