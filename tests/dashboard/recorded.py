"""A bus as a run leaves it, and a release: candles, features, signals, a journal, notices."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from shared.bus import Bus, Source, Write
from shared.config import Settings
from shared.events import Feature, Kline, Level, Notice, Order, Signal
from shared.releases import Manifest, feature_schema, promote, write_release
from shared.streams import (
    FEATURE,
    KLINE,
    NOTICE,
    ORDER,
    SIGNAL,
    health_key,
    schema_key,
)
from tests.made_releases import made_release

MINUTE = 60_000
START = 1_700_000_040_000 // MINUTE * MINUTE
SYMBOL = "BTCUSDT"
NAMES = ("close_1", "close_5", "close_15", "close_60", "volume_5", "span_5")
MODELS = ("high_10_k_lc", "high_20_k_lc", "low_10_k_lc", "low_20_k_lc")
SERVICES = ("collector", "featurizer", "predictor", "notifier", "trader")


@cache
def _closes(rows: int, seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    steps = np.random.default_rng(seed).normal(0, 0.001, rows)
    return np.round(30_000 * np.exp(np.cumsum(steps)), 2)


@cache
def _scores(rows: int, seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    noise = np.random.default_rng(seed + 1).normal(0, 0.01, rows)
    return 0.25 * np.sin(np.arange(rows) / 23) + noise


@dataclass(frozen=True, slots=True)
class Recording:
    """`rows` candles of one symbol; a gap marker each time `gap_every` of them are over (0: none).

    The first `warm_up` have no score.
    """

    rows: int
    symbol: str = SYMBOL
    gap_every: int = 0
    warm_up: int = 0
    seed: int = 3
    release: str = "20231114T221320Z-00000000"
    schema: str = feature_schema(NAMES)

    def open_ms(self, number: int) -> int:
        return START + number * MINUTE

    def closes(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        return _closes(self.rows, self.seed)

    def scores(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Waves beyond the thresholds, and a little noise."""
        return _scores(self.rows, self.seed)

    def is_gap(self, number: int) -> bool:
        return bool(self.gap_every) and number % self.gap_every == self.gap_every - 1

    def kline(self, number: int) -> Kline:
        open_ms = self.open_ms(number)
        close_ms = open_ms + MINUTE - 1
        if self.is_gap(number):
            return Kline.gap_marker(self.symbol, "1m", open_ms, close_ms)
        closes = self.closes()
        opened, closed = float(closes[max(0, number - 1)]), float(closes[number])
        return Kline(
            symbol=self.symbol, interval="1m", open_time_ms=open_ms, close_time_ms=close_ms,
            open=opened, high=max(opened, closed) + 5.0, low=min(opened, closed) - 5.0,
            close=closed, volume=1.0 + number % 7,
        )  # fmt: skip

    def feature(self, number: int) -> Feature:
        values = np.sin(np.arange(len(NAMES)) + number / 11)
        if number < 5:
            values[3] = math.nan
        return Feature(
            open_time_ms=self.open_ms(number),
            schema=self.schema,
            values=values.astype("<f8").tobytes(),
            gap=self.is_gap(number),
        )

    def signal(self, number: int) -> Signal:
        score: float | None = float(self.scores()[number])
        invalid = ""
        if self.is_gap(number):
            score, invalid = None, "gap: the exchange has no such candle"
        elif number < self.warm_up:
            score, invalid = None, "warm-up: the longest window is not covered"
        side = "" if score is None else "BUY" if score > 0.15 else "SELL" if score < -0.15 else ""
        outputs = {} if score is None else {
            name: 0.5 + (0.4 if name.startswith("high") else -0.4) * score for name in MODELS
        }  # fmt: skip
        return Signal(
            open_time_ms=self.open_ms(number), symbol=self.symbol, interval="1m",
            close=self.kline(number).close, score=score, side=side, invalid=invalid,
            release=self.release, schema=self.schema, outputs=outputs,
        )  # fmt: skip

    def order(self, number: int) -> Order:
        signal = self.signal(number)
        return Order(
            signal_id=signal.id, symbol=self.symbol, interval="1m",
            open_time_ms=signal.open_time_ms, time_ms=signal.open_time_ms + MINUTE,
            state="OBSERVED", side=signal.side, quantity="", price=f"{signal.close:.2f}",
            reason="observe: no orders are sent", score=signal.score, release=self.release,
            mode="observe",
        )  # fmt: skip

    def writes(self, numbers: Sequence[int]) -> Iterator[Write[Any]]:
        """What the services write for these candles; each on the bus 40 ms after it closed."""
        for number in numbers:
            open_ms = self.open_ms(number)
            at = {"open_time_ms": open_ms, "market_ms": open_ms + MINUTE + 40}
            yield Write(source=Source(KLINE, self.symbol, "1m"), event=self.kline(number), **at)
            yield Write(source=Source(FEATURE, self.symbol, "1m"), event=self.feature(number), **at)
            signal = self.signal(number)
            yield Write(source=Source(SIGNAL, self.symbol, "1m"), event=signal, **at)
            if signal.side:
                yield Write(source=Source(ORDER, self.symbol), event=self.order(number))

    async def put(self, bus: Bus, numbers: Sequence[int] | None = None) -> None:
        await bus.put(schema_key(self.schema), json.dumps(NAMES))
        await bus.write(*self.writes(range(self.rows) if numbers is None else numbers))


def notice(text: str, *, level: Level = Level.ALERT, code: str = "gap") -> Write[Notice]:
    now_ms = time.time_ns() // 1_000_000
    event = Notice(service="collector", level=level, code=code, text=text, time_ms=now_ms)
    return Write(source=Source(NOTICE), event=event)


async def put_heartbeats(bus: Bus, services: Sequence[str] = SERVICES) -> None:
    for number, service in enumerate(services):
        beat = {
            "service": service, "instance": service, "version": "0.1.0", "pid": 100 + number,
            "time_ms": time.time_ns() // 1_000_000, "ready": True, "reason": "", "lag": 0,
            "last_ids": {},
        }  # fmt: skip
        await bus.put(health_key(service, service), json.dumps(beat))


def put_release(settings: Settings, seed: int = 0, *, is_live: bool = True) -> Manifest:
    """A real release in the model folder, with a report that tries to do harm."""
    manifest, files = made_release(seed, features=NAMES, created_s=1_700_000_000 + seed)
    report = b"<!doctype html><title>report</title><script>parent.alert(1)</script><p>report</p>"
    folder = write_release(settings.model_folder, manifest, files)
    (folder / "report.html").write_bytes(report)
    if is_live:
        promote(settings.model_folder, manifest.id)
    return manifest


def settings_for(folder: Path, url: str, **keys: Any) -> Settings:
    symbols = keys.pop("symbols", [SYMBOL])
    return Settings(
        symbols=symbols,
        redis_url=url,
        model_folder=folder / "models",
        data_folder=folder / "data",
        **keys,
    )
