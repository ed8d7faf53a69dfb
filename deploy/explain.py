"""`itb explain SIGNAL_ID`: why the system said so, and whether it says the same again."""

import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deploy.observer import Observer
from shared.bus import Bus
from shared.config import PREFIX, Settings, load
from shared.errors import Failure
from shared.explain import Explainer, Explanation, signal_place
from shared.heartbeats import heartbeats
from shared.times import iso

_PATIENCE_S = 3.0
_WIDTH = 110


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """redis_url: instead of the config's. png: where a picture goes."""

    signal_id: str
    config: Path | None = None
    redis_url: str | None = None
    json: bool = False
    png: Path | None = None


async def run(options: Options, out: TextIO) -> int:
    """Prints the explanation; the exit code is 1 where the bits differ."""
    signal_place(options.signal_id)  # refused before anything is connected
    settings = load(options.config)
    async with Observer(options.redis_url or settings.bus_url, patience_s=_PATIENCE_S) as bus:
        folder = await bus.ask(partial(model_folder, settings=settings, config=options.config))
        explainer = Explainer(settings, model_folder=folder, data_folder=settings.data_folder)
        found = await bus.ask(lambda one: explainer.explain(one, options.signal_id))
    if options.png is not None:
        from shared.explain.picture import png  # noqa: PLC0415  # matplotlib is slow to import

        content = png(found)
        try:
            options.png.write_bytes(content)
        except OSError as error:
            raise Failure(f"--png {options.png}: cannot be written: {error.strerror}") from None
    if options.json:
        out.write(json.dumps(found.as_dict(), ensure_ascii=False, allow_nan=False) + "\n")
    else:
        show(found, out)
    if not found.equal:
        out.flush()
        sys.stderr.write(f"itb: not equal: {found.difference}\n")
    return 0 if found.equal else 1


async def model_folder(bus: Bus, settings: Settings, config: Path | None) -> Path:
    """The config's; where no config was given, the one that the running predictor tells of."""
    given = config is not None or {f"{PREFIX}CONFIG", f"{PREFIX}MODEL_FOLDER"} & set(os.environ)
    if not given:
        beats = await heartbeats(bus)
        told = [
            Path(beat["model_folder"])
            for name, beat in beats.items()
            if name.partition(":")[0] == "predictor" and "model_folder" in beat
        ]
        if told:
            return told[0]
    return settings.model_folder


def show(found: Explanation, out: TextIO) -> None:
    """The explanation for a person."""
    console = Console(file=out, highlight=False)
    if not console.is_terminal:
        console = Console(file=out, highlight=False, width=_WIDTH)
    for part in _parts(found):
        console.print(part)


def _parts(found: Explanation) -> Iterator[Text | Table]:
    signal = found.signal
    yield Text.assemble(
        (str(signal["id"]), "bold"),
        f"   {iso(signal['open_time_ms'])}   close {_number(signal['close'])}   ",
        _verdict(signal),
    )
    yield _equality(found)
    yield from _score(found)
    yield from _features(found)
    yield from _novelty(found)
    yield from _guards(found)
    yield from _release(found)
    yield _latency(found)
    yield from _orders(found)
    yield from _messages(found)
    for note in found.notes:
        yield Text(f"note: {note}", style="yellow")


def _verdict(signal: Any) -> tuple[str, str]:
    if signal["score"] is None:
        return f"no score: {signal['invalid']}", "yellow"
    text = f"score {signal['score']:+.4f} {signal['side'] or 'no side'}"
    return text, "bold green" if signal["score"] > 0 else "bold red"


def _equality(found: Explanation) -> Text:
    what = (
        f"{found.compared['features']} features, {found.compared['outputs']} outputs, score and "
        "side"
    )
    if found.equal:
        return Text(
            f"computed again from the candles on the bus: all bits are equal ({what})",
            style="green",
        )
    return Text(
        f"computed again from the candles on the bus: NOT equal; {found.difference}",
        style="bold red",
    )


def _score(found: Explanation) -> Iterator[Text | Table]:
    steps = found.score
    if steps is None:
        return
    yield _head(f"How the outputs became the score ({steps.kind})")
    table = _table("model", "speaks for", "output", "AUC when tested", "log-odds", "base")
    for name, one in found.models.items():
        table.add_row(
            name,
            "a rise" if one.side == "high" else "a fall",
            f"{one.output:.4g}",
            _number(found.release["auc"].get(name), 3),
            _number(one.logit, 3),
            _number(one.base, 3),
        )
    yield table
    yield Text(f"high {steps.high:.6f}, low {steps.low:.6f}; score = {steps.formula}")
    yield Text(steps.text)


def _features(found: Explanation) -> Iterator[Text | Table]:
    if not found.top_features:
        return
    yield _head(f"Most telling features, of {len(found.features)}")
    table = _table(
        "feature", "value", "training median", "spreads", "score at median", "pull on the score", ""
    )
    table.columns[-1].justify = "left"
    for one in found.top_features:
        style = "green" if one.pull > 0 else "red"
        table.add_row(
            one.name,
            _number(one.value, 5),
            _number(one.median, 5),
            "none" if one.spreads is None else f"{one.spreads:+.1f}",
            "none" if one.score_at_median is None else f"{one.score_at_median:+.4f}",
            Text(f"{one.pull:+.4f}", style=style),
            Text(_bar(one.pull, found.top_features[0].pull), style=style),
        )
    yield table
    methods = sorted({one.method for one in found.models.values() if one.method})
    yield Text(
        f"pull: contributions to every model ({', '.join(methods)}), each by how much the score "
        "follows that model; score at median: with this one feature at its training median",
        style="dim",
    )


def _novelty(found: Explanation) -> Iterator[Text]:
    far = found.novelty
    if far is None:
        return
    yield _head("Distance from the training rows")
    yield Text(
        f"novelty {far.value:.2f} (1: as far out as the farthest hundredth of them)",
        style="yellow" if far.value > 1 else "",
    )
    yield Text(f"  of the values {far.own:.2f}; spreads from the median: {_told(far.farthest)}")
    if far.joint is not None:
        yield Text(
            f"  of their combination {far.joint:.2f}; deviations from what the other features let "
            f"expect: {_told(far.surprising)}"
        )


def _told(features: Sequence[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {z:+.1f}" for name, z in features)


def _guards(found: Explanation) -> Iterator[Text | Table]:
    yield _head("Guards")
    marks = {True: ("passed", "green"), False: ("FAILED", "bold red"), None: ("not asked", "dim")}
    table = _table("guard", "", "", plain=True)
    for guard in found.guards:
        mark, style = marks[guard.passed]
        table.add_row(guard.name, Text(mark, style=style), guard.text)
    yield table


def _release(found: Explanation) -> Iterator[Text]:
    release, candles = found.release, found.candles
    yield _head("Release and candles")
    yield Text(
        f"release {release['id']}, made by version {release['code_version']}, trained on "
        f"{', '.join(release['symbols'])} {release['interval']}, {release['trained_from']} .. "
        f"{release['trained_to']} ({release['rows']:,} rows), "
        f"{release['candles_since_training']:,} candles before this one"
    )
    yield Text(
        f"{candles.rows:,} candles, {iso(candles.first_ms)} .. {iso(candles.last_ms)}, "
        f"{candles.gaps} of them gaps; the longest window has {candles.lookback:,}"
    )


def _latency(found: Explanation) -> Text:
    spans = ", ".join(f"{name} {taken:.2f}" for name, taken in found.latency_ms.items())
    return Text(f"latency in ms: {spans}")


def _orders(found: Explanation) -> Iterator[Text | Table]:
    if not found.orders:
        side = found.signal["side"]
        missing = "no side, so there is nothing to trade" if not side else "no line about it yet"
        yield Text(f"trader's journal: {missing}")
        return
    yield _head("Trader's journal")
    table = _table("time", "state", "side", "quantity", "price", "reason", plain=True)
    for line in found.orders:
        table.add_row(
            iso(line["time_ms"]),
            *(str(line.get(name, "")) for name in ("state", "side", "quantity", "price", "reason")),
        )
    yield table
    for line in found.orders:
        for fill in line["fills"]:
            yield Text(
                f"fill {fill['trade_id']} at {iso(fill['time_ms'])}: {fill['side']} "
                f"{fill['quantity']} at {fill['price']}, fee {fill['fee']} {fill['fee_asset']}"
            )


def _messages(found: Explanation) -> Iterator[Text]:
    if not found.notifications:
        yield Text("message to people: none")
    for one in found.notifications[-1:]:
        reason = f" ({one['reason']})" if one["reason"] else ""
        yield Text(f"message to people: {one['text'] or 'silent'}, {one['state']}{reason}")


def _head(text: str) -> Text:
    return Text(f"\n{text}", style="bold")


def _table(*columns: str, plain: bool = False) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=any(columns[1:]))
    for at, name in enumerate(columns):
        table.add_column(name, justify="left" if plain or at == 0 else "right")
    return table


def _bar(pull: float, most: float) -> str:
    """Up to ten blocks, as long as the pull is beside the strongest."""
    return "█" * (round(10 * abs(pull) / abs(most)) if most else 0)


def _number(value: float | None, digits: int = 6) -> str:
    if value is None or not math.isfinite(value):
        return "none"
    return f"{value:,.{digits}g}"
