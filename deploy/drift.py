"""`itb drift`: how far the newest candles are from what the models were trained on."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from deploy.observer import Observer
from deploy.screen import columns
from shared.bus import Bus, Source
from shared.config import Settings, load
from shared.events import Drift
from shared.explain.explanation import plain
from shared.heartbeats import heartbeats
from shared.streams import DRIFT
from shared.times import iso

_PATIENCE_S = 3.0
_SHOWN = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    config: Path | None = None
    redis_url: str | None = None
    json: bool = False


async def run(options: Options, out: TextIO) -> int:
    settings = load(options.config)
    url = options.redis_url or settings.bus_url
    async with Observer(url, patience_s=_PATIENCE_S) as observer:
        found = await observer.ask(partial(_look, settings=settings))
    if options.json:
        out.write(json.dumps(found, allow_nan=False) + "\n")
    else:
        out.write("\n".join(line for one in found for line in _lines(one)) + "\n")
    return 0


async def _look(bus: Bus, settings: Settings) -> list[dict[str, Any]]:
    beats = await heartbeats(bus)
    problems: dict[str, str] = {}
    for name, beat in beats.items():
        if name.partition(":")[0] == "auditor":
            told = beat.get("drift", {})
            problems |= {symbol: one.get("problem", "") for symbol, one in told.items()}
    found = []
    for symbol in settings.symbols:
        newest = await bus.tail(Source(DRIFT, symbol, settings.interval), 1)
        event = newest[0].event if newest else None
        problem = problems.get(symbol, "" if event else "no auditor runs: `python -m auditor`")
        found.append(_told(symbol, settings.interval, event, problem))
    return found


def _told(symbol: str, interval: str, event: Drift | None, problem: str) -> dict[str, Any]:
    told: dict[str, Any] = {"symbol": symbol, "interval": interval, "problem": problem}
    if event is None:
        return told | {"drift": None}
    drift: dict[str, Any] = plain(event)
    return told | {"drift": drift | {"unusual": event.unusual}}


def _lines(one: Mapping[str, Any]) -> Iterator[str]:
    drift = one["drift"]
    if drift is None:
        yield f"{one['symbol']} {one['interval']}: nothing is known: {one['problem']}"
        return
    yield (
        f"{one['symbol']} {one['interval']}, {iso(drift['first_ms'])} .. "
        f"{iso(drift['open_time_ms'])}, {drift['rows']:,} candles against release "
        f"{drift['release']}"
    )
    if one["problem"]:
        yield f"not newer, because: {one['problem']}"
    yield (
        f"novelty: median {_number(drift['novelty_median'])}, 99 % "
        f"{_number(drift['novelty_99'])}; {_percent(drift['beyond'])} of the candles are farther "
        "from the training rows than 99 % of those are (1 % would be usual)"
    )
    known = f", usual below {_number(drift['score_usual'])}" if drift["score_usual"] else ""
    yield f"score: stability index {_number(drift['score_psi'])}{known}"
    unusual, usual = drift["unusual"], drift["usual"]
    yield (
        f"{len(unusual)} of {len(usual)} features differ more from training than 19 of 20 such "
        f"stretches of the training data did (about {len(usual) / 20:.0f} would be usual)"
    )
    if unusual:
        rows = [["feature", "stability index", "usual below"]]
        rows += [
            [name, _number(drift["psi"][name]), _number(usual[name])] for name in unusual[:_SHOWN]
        ]
        yield columns(rows)


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.3g}"


def _percent(share: float | None) -> str:
    return "an unknown share" if share is None else f"{100 * share:.1f} %"
