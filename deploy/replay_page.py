"""Two runs over the same candles, drawn: a picture, and a page that holds it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deploy.replay_outcome import Outcome, Side
from shared.errors import Failure
from shared.klinefiles import replacing
from trainer import page
from trainer.page import Page, Picture, Section, Table

try:
    from matplotlib.figure import Figure

    from trainer import figures
except ImportError:
    raise Failure(
        "no picture: matplotlib is not installed here; `pip install matplotlib` or the extra "
        "`train` brings it"
    ) from None

_DAY_MS = 86_400_000


def write(
    outcome: Outcome, found: Mapping[str, Any], *, png: Path | None, html: Path | None
) -> None:
    """
    Raises:
        Failure: a file cannot be written.
    """
    if png is not None:
        figures.png(draw(outcome), png)
    if html is not None:
        with replacing(html) as unfinished:
            unfinished.write_text(render(outcome, found), encoding="utf-8")


def draw(outcome: Outcome) -> Figure:
    """The price with every entry and exit, both scores, and what both accounts are worth."""
    figure = Figure(figsize=(9.4, 7.6), layout="constrained")
    price, scores, worth = figure.subplots(3, 1, sharex=True, height_ratios=(2, 1.2, 1.2))
    market = outcome.recorded.market
    price.plot(*_line(market.open_time_ms, market.close), color=figures.FAINT, lw=0.9)
    looks = ((outcome.recorded, figures.BLUE, "o"), (outcome.replayed, figures.ORANGE, "x"))
    for side, colour, mark in looks:
        times, prices = _entries(side)
        price.plot(times, prices, mark, color=colour, ms=7, mfc="none", label=f"entry, {side.name}")
        scores.plot(
            *_line(market.open_time_ms, side.market.score), color=colour, lw=0.9, label=side.name
        )
        for level in (side.rules.buy, side.rules.sell):
            scores.axhline(level, color=colour, lw=0.8, ls="--")
        gain = 100 * (side.trading.equity / outcome.capital - 1)
        worth.plot(*_line(market.open_time_ms, gain), color=colour, lw=1.2, label=side.name)
    price.set_ylabel("close")
    scores.set_ylabel("score")
    worth.set_ylabel("gain (%)")
    worth.xaxis_date("UTC")
    figure.set_facecolor("none")  # the page's own ground, light or dark
    for axes in (price, scores, worth):
        axes.set_facecolor("none")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3, lw=0.6)
        axes.legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def _line(times: Any, values: Any) -> tuple[Any, Any]:
    """Thinned to what a picture can show; time in days, as matplotlib counts it."""
    shown, thinned = figures.thinned(times, values)
    return shown / _DAY_MS, thinned


def _entries(side: Side) -> tuple[list[float], list[float]]:
    entries = [trade.entry_time for trade in side.trading.trades]
    times = [float(np.datetime64(time.rstrip("Z"), "ms").astype(np.int64)) for time in entries]
    return [time / _DAY_MS for time in times], [t.entry_price for t in side.trading.trades]


def render(outcome: Outcome, found: Mapping[str, Any]) -> str:
    """The page."""
    one, two = outcome.recorded, outcome.replayed
    picture = Picture(
        title="Both runs",
        says="The close with every entry, the scores with the thresholds of the trading rules, and "
        "what the account gained after fees and slippage.",
        says_not="what the next candles will bring.",
        narrow=figures.svg(draw(outcome), "replay", "Price, scores and gains of both runs"),
        is_broad=True,
    )
    figures_of = [
        (name, _text(found["recorded"], name), _text(found["replayed"], name))
        for name in found["recorded"]["performance"]
    ]
    equal = {
        True: "Every recorded signal was computed again with the same bits.",
        False: f"{found['unequal']} candles were computed again with OTHER bits; first: "
        f"{found['first_difference']}",
        None: "Something was changed on purpose, so the runs need not be equal.",
    }[found["equal"]]
    sections = [
        Section(
            id="runs",
            title="What differs",
            intro=equal,
            parts=[
                picture,
                Table(
                    caption="Figures of the trading rules over both runs",
                    columns=("figure", one.name, two.name),
                    rows=figures_of,
                ),
                _signals(found["signals"]["changed"]),
                *(
                    _trades(f"Round trips of one run only: {name}", found["orders"][key])
                    for name, key in ((one.name, "only_recorded"), (two.name, "only_replayed"))
                ),
            ],
        )
    ]
    return page.render(
        Page(
            title=f"Replay of {found['symbol']} {found['interval']}",
            subtitle=f"{found['first']} .. {found['last']}, {found['rows']:,} candles",
            facts=[
                ("other sides", f"{found['signals']['other_side']:,}"),
                ("profit", f"{found['profit']['difference']:+,.2f}"),
            ],
            warnings=[
                *([equal] if found["equal"] is False else []),
                *found["notes"],
                "Both runs trade on candles that are past: what that earns says little about the "
                "next ones.",
            ],
            sections=sections,
        )
    )


def _text(side: Mapping[str, Any], name: str) -> str:
    value = side["performance"][name]
    return "none" if value is None else f"{value:,.6g}"


def _signals(changed: Sequence[Mapping[str, Any]]) -> Table:
    def told(one: Mapping[str, Any]) -> str:
        if one["score"] is None:
            return one["invalid"] or "no score"
        return f"{one['score']:+.4f} {one['side']}"

    return Table(
        caption="The first signals with another side",
        columns=("candle", "recorded", "replayed"),
        rows=[(one["time"], told(one["recorded"]), told(one["replayed"])) for one in changed],
        texts=frozenset({1, 2}),
    )


def _trades(caption: str, trades: Sequence[Mapping[str, Any]]) -> Table:
    return Table(
        caption=caption,
        columns=("entry", "side", "price", "exit", "price", "why", "profit"),
        rows=[
            (
                one["entry_time"],
                one["side"],
                f"{one['entry_price']:,.6g}",
                one["exit_time"],
                f"{one['exit_price']:,.6g}",
                one["exit_reason"],
                f"{one['profit']:+,.2f}",
            )
            for one in trades
        ],
        texts=frozenset({1, 5}),
    )
