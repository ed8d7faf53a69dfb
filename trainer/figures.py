"""The report's figures: arrays in, a matplotlib Figure out.

`svg` and `png` write one out. Both give equal bytes for equal figures: no date, no random id, no
setting of the machine. In the SVG the colours are CSS variables with the light theme's values, and
text stays text, so that the page may colour it for light, dark and print.

Nothing here computes a figure of merit: what is drawn was measured by others.
"""

import contextlib
import functools
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib as mpl
import matplotlib.style
import numpy as np
import numpy.typing as npt
from matplotlib import dates, ticker
from matplotlib.collections import LineCollection
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from shared import klinefiles

Floats = npt.NDArray[np.float64]
Times = npt.NDArray[np.int64]
P = ParamSpec("P")

_DAY_MS = 86_400_000
POINTS = 600
"""A line keeps about so many points; more than a screen has pixels says nothing."""
CANDLES = 160
_NARROW, _WIDE = 4.1, 9.4  # inches: of a phone's screen or half a page, of a whole page

# Okabe and Ito's colours, told apart by all common kinds of colour blindness. A series differs from
# its neighbour by marker or dashes too.
INK = "#1b1f24"
FAINT = "#8b939c"
BLUE = "#0072b2"
ORANGE = "#d55e00"
GREEN = "#009e73"
PINK = "#b8578e"
SERIES = (BLUE, ORANGE, GREEN, PINK)
VARIABLES: Mapping[str, str] = {
    INK: "currentColor",
    FAINT: f"var(--faint, {FAINT})",
    BLUE: f"var(--blue, {BLUE})",
    ORANGE: f"var(--orange, {ORANGE})",
    GREEN: f"var(--green, {GREEN})",
    PINK: f"var(--pink, {PINK})",
}
_MARKERS = ("o", "s", "^", "D")
_MARK_STYLES: Mapping[str, Mapping[str, Any]] = {
    "^": {"color": GREEN, "mec": "#ffffff", "mew": 0.6, "ms": 6.5},
    "v": {"color": PINK, "mec": "#ffffff", "mew": 0.6, "ms": 6.5},
    "x": {"color": INK, "mew": 1.2, "ms": 4.5},
}
_PLACES: tuple[Mapping[str, Any], ...] = (
    {"marker": "x", "ms": 6},
    {"marker": "o", "ms": 11},
    {"marker": "s", "ms": 8},
)
_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))

_RC: Any = {  # matplotlib has a type of 300 literals for it
    "font.family": "DejaVu Sans",  # matplotlib brings it: text has the same width everywhere
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": FAINT,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "lines.linewidth": 1.3,
    "text.parse_math": False,  # a name may hold a dollar
    "svg.fonttype": "none",
    "path.simplify": False,
}


@contextlib.contextmanager
def _style() -> Iterator[None]:
    with mpl.style.context("default"), mpl.rc_context(_RC):
        yield


def _styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draws from matplotlib's own defaults and _RC, whatever the machine is set to."""

    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with _style():
            return draw(*args, **kwargs)

    return styled


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """One row of `dots`: a value (NaN = none), its interval, and single measurements beside it.

    alarm: the value above which something is likely to be wrong; NaN = no such rule.
    """

    name: str
    value: float
    low: float = float("nan")
    high: float = float("nan")
    singles: Sequence[float] = ()
    alarm: float = float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A reliability curve. said: (bins,) mean output, happened: (bins,) share of cases."""

    panel: str
    name: str
    said: Floats
    happened: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """times: (n,) epoch ms; values: (n,), NaN = none."""

    name: str
    times: Times
    values: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """Points in time on the candles, at a price. marker: "^", "v" or "x"."""

    name: str
    times: Times
    prices: Floats
    marker: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Candles:
    """times: (n,) open times in epoch ms, in order; the rest (n,), NaN = gap."""

    times: Times
    open: Floats
    high: Floats
    low: Floats
    close: Floats

    def __len__(self) -> int:
        return len(self.times)

    def joined(self, most: int = CANDLES) -> "Candles":
        """As longer candles, so that there are at most so many."""
        size = max(1, -(-len(self) // most))
        if size == 1:
            return self
        starts = np.arange(0, len(self), size)
        known = ~np.isnan(self.close)
        any_known = np.logical_or.reduceat(known, starts)
        place = np.arange(len(self))
        # of an unknown stretch: any row; its close is NaN and it is not drawn
        first = np.minimum.reduceat(np.where(known, place, len(self) - 1), starts)
        last = np.maximum.reduceat(np.where(known, place, 0), starts)
        return Candles(
            times=self.times[starts],
            open=np.where(any_known, self.open[first], np.nan),
            high=np.fmax.reduceat(self.high, starts),
            low=np.fmin.reduceat(self.low, starts),
            close=np.where(any_known, self.close[last], np.nan),
        )


def thinned(times: Times, values: Floats, points: int = POINTS) -> tuple[Times, Floats]:
    """About `points` of the rows: of each stretch the first, the lowest, the highest and the last.

    So no peak and no trough is lost. Rows without a value are dropped where rows are.
    """
    size = -(-4 * len(values) // points)
    if size <= 4:
        return times, values
    kept: list[int] = []
    for start in range(0, len(values), size):
        part = values[start : start + size]
        known = np.flatnonzero(~np.isnan(part))
        if len(known):
            low, high = int(np.nanargmin(part)), int(np.nanargmax(part))
            kept += sorted({start + int(at) for at in (known[0], low, high, known[-1])})
        else:
            kept.append(start)  # the line is broken here
    return times[kept], values[kept]


@_styled
def dots(rows: Sequence[Spread], unit: str, chance: float | None = None) -> Figure:
    """A value per row with its interval, single measurements as rings, alarms as crosses."""
    figure, axes = _axes(height=1.0 + 0.21 * len(rows))
    places = np.arange(len(rows))
    value = np.array([row.value for row in rows])
    low = np.array([row.low for row in rows])
    high = np.array([row.high for row in rows])
    axes.hlines(places, low, high, color=BLUE, linewidth=2.2, alpha=0.55)
    singles = [(one, at) for at, row in enumerate(rows) for one in row.singles]
    legend = []
    if singles:
        x, y = zip(*singles, strict=True)
        axes.plot(x, y, "o", mfc="none", mec=FAINT, ms=3.6, mew=0.8)
        legend.append(_key("single fold", marker="o", mfc="none", mec=FAINT, ms=3.6))
    axes.plot(value, places, "o", color=BLUE, ms=4.5)
    legend.append(_key("all rows", marker="o", color=BLUE, ms=4.5))
    if np.isfinite(low).any():
        legend.append(_key("95 % interval", color=BLUE, linewidth=2.2, alpha=0.55, linestyle="-"))
    alarm = np.array([row.alarm for row in rows])
    if np.isfinite(alarm).any():
        axes.plot(alarm, places, "|", color=ORANGE, ms=9, mew=1.6)
        legend.append(_key("alarm above", marker="|", color=ORANGE, ms=9, mew=1.6))
    if chance is not None:
        axes.axvline(chance, color=INK, linewidth=1, linestyle=(0, (4, 2)))
        legend.append(_key("chance", color=INK, linewidth=1, linestyle=(0, (4, 2))))
    axes.set_yticks(places, [row.name for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(unit)
    axes.grid(visible=False, axis="y")
    _legend_below(figure, legend, 3)
    return figure


@_styled
def reliability(curves: Sequence[Curve]) -> Figure:
    """What was said against what happened, a panel for each label; the diagonal is the aim."""
    panels = list(dict.fromkeys(curve.panel for curve in curves))
    names = list(dict.fromkeys(curve.name for curve in curves))
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(_NARROW, 0.7 + 1.75 * rows), layout="constrained")
    grid = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for axes in grid[len(panels) :]:
        axes.remove()
    for panel, axes in zip(panels, grid, strict=False):
        here = [curve for curve in curves if curve.panel == panel]
        most = max(float(np.max([c.said.max(), c.happened.max()])) for c in here)
        most = min(1.0, 1.08 * most) or 1.0
        axes.plot([0, most], [0, most], color=FAINT, linewidth=1, linestyle=(0, (4, 2)))
        for curve in here:
            style = _series(names.index(curve.name))
            axes.plot(curve.said, curve.happened, ms=3.2, **style)
        axes.set(title=panel, xlim=(0, most), ylim=(0, most))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(ticker.MaxNLocator(3))
            axis.set_major_formatter(lambda share, _: f"{100 * share:.3g} %")
    for axes in grid[max(0, len(panels) - columns) : len(panels)]:
        axes.set_xlabel("model's output")
    for axes in grid[0 : len(panels) : columns]:
        axes.set_ylabel("share of cases")
    keys = [_key(name, ms=3.2, **_series(at)) for at, name in enumerate(names)]
    keys.append(_key("ideal", color=FAINT, linewidth=1, linestyle=(0, (4, 2))))
    _legend_below(figure, keys)
    return figure


@_styled
def bars(
    names: Sequence[str], values: Floats, errors: Floats, unit: str, title: str = ""
) -> Figure:
    """A bar per name, longest first as given; errors: half the width of the line on its end."""
    figure, axes = _axes(height=0.8 + 0.23 * len(names))
    places = np.arange(len(names))
    axes.barh(places, values, color=BLUE, height=0.62)
    axes.hlines(places, values - errors, values + errors, color=INK, linewidth=1.4)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(places, list(names))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(unit)
    axes.set_title(title)
    axes.grid(visible=False, axis="y")
    return figure


@_styled
def histogram(values: Floats, unit: str, lines: Mapping[str, float]) -> Figure:
    """How often each value; values: (n,) in [-1, 1], NaN left out. lines: name -> place."""
    figure, axes = _axes()
    known = values[~np.isnan(values)]
    edges = np.linspace(-1, 1, 81)
    counts, _ = np.histogram(known, edges)
    share = 100 * counts / max(1, len(known))
    axes.stairs(share, edges, fill=True, color=BLUE, alpha=0.75)
    legend = []
    for at, (name, place) in enumerate(lines.items()):
        style = {"color": (GREEN, ORANGE)[at % 2], "linestyle": _DASHES[at % 2]}
        axes.axvline(place, linewidth=1.5, **style)
        legend.append(_key(f"{name} {place:g}", linewidth=1.5, **style))
    reach = np.flatnonzero(counts)
    if len(reach):
        ends = [edges[reach[0]], edges[reach[-1] + 1], *lines.values()]
        axes.set_xlim(max(-1, min(ends) - 0.05), min(1, max(ends) + 0.05))
    axes.set_xlabel(unit)
    axes.set_ylabel("share of rows (%)")
    _legend_below(figure, legend)
    return figure


@_styled
def steps(
    classes: Sequence[str], mean: Floats, low: Floats, high: Floats, median: Floats, x: str, y: str
) -> Figure:
    """Mean as bars with its interval (NaN = none), median as diamonds, for each class of rows."""
    figure, axes = _axes()
    places = np.arange(len(mean))
    axes.bar(places, mean, color=BLUE, width=0.66)
    axes.vlines(places - 0.12, low, high, color=INK, linewidth=1.3)
    axes.plot(places + 0.12, median, "D", color=ORANGE, mec="#ffffff", mew=0.6, ms=5)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xticks(places, list(classes))
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(visible=False, axis="x")
    keys = [_key("mean", marker="s", color=BLUE, ms=6)]
    if np.isfinite(low).any():
        keys.append(_key("its 95 % interval", color=INK, linewidth=1.3, linestyle="-"))
    keys.append(_key("median", marker="D", color=ORANGE, ms=4.5))
    _legend_below(figure, keys)
    return figure


@_styled
def surface(
    buy: Floats,
    sell: Floats,
    values: Floats,
    marks: Mapping[str, tuple[float, float]],
    unit: str,
) -> Figure:
    """A map of values, white at 0.

    buy, sell: (n,), (m,) the thresholds in rising order, evenly spaced. values: (n, m), NaN = none.
    marks: name -> (buy, sell), at most three.
    """
    figure, axes = _axes(height=3.4)
    most = float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 1.0
    # purple is gain, orange is loss: told apart by every common kind of colour blindness
    image = axes.imshow(
        values,
        cmap="PuOr",
        norm=TwoSlopeNorm(0, -(most or 1.0), most or 1.0),
        origin="lower",
        extent=(*_cell_edges(sell), *_cell_edges(buy)),
        aspect="auto",
        interpolation="nearest",
    )
    keys = []
    for (name, (buy_at, sell_at)), shape in zip(marks.items(), _PLACES, strict=False):
        # black on a white halo, so that it shows on every colour of the map
        for style in ({"mec": "#ffffff", "mew": 3.6}, {"mec": "#101418", "mew": 1.5}):
            axes.plot(sell_at, buy_at, mfc="none", clip_on=False, zorder=3, **shape, **style)
        keys.append(_key(name, mfc="none", mec=INK, mew=1.5, **shape))
    axes.set(xlabel="sell threshold (score)", ylabel="buy threshold (score)")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5))
    axes.grid(visible=False)
    bar = figure.colorbar(image, ax=axes, shrink=0.95, pad=0.02)
    bar.set_label(unit)
    bar.outline.set_visible(False)
    _legend_below(figure, keys)
    return figure


@_styled
def equity(lines: Sequence[Line], *, wide: bool) -> Figure:
    """Growth of each line from its first value, in percent, and below it how far under its peak."""
    figure, (top, below) = _stacked(wide, (2.1, 1))
    for at, line in enumerate(lines):
        style = {"color": SERIES[at % 4], "linestyle": _DASHES[at % 4]}
        known = np.flatnonzero(~np.isnan(line.values))
        if not len(known):
            continue
        first = line.values[known[0]]
        growth = 100 * (line.values / first - 1)
        peak = np.fmax.accumulate(line.values)
        drawdown = 100 * (line.values / peak - 1)
        times, values = thinned(line.times, growth)
        top.plot(_days(times), values, label=line.name, **style)
        times, values = thinned(line.times, drawdown)
        below.plot(_days(times), values, **style)
        if at == 0:
            below.fill_between(_days(times), values, 0, color=style["color"], alpha=0.18, lw=0)
    top.axhline(0, color=FAINT, linewidth=0.8)
    top.set_ylabel("gain (%)")
    below.set_ylabel("below peak (%)")
    _time_axis(below)
    top.tick_params(labelbottom=False)
    _legend_below(figure, top.get_legend_handles_labels()[0], 4 if wide else 2)
    return figure


@_styled
def candles(
    rows: Candles,
    marks: Sequence[Marks],
    score: Line | None,
    thresholds: Mapping[str, float],
    *,
    wide: bool,
) -> Figure:
    """Candles with marks on them and, below, the score with its thresholds."""
    if score is None:
        figure, (top,) = _stacked(wide, (1,))
        below = None
    else:
        figure, (top, below) = _stacked(wide, (2.1, 1))
    shown = rows.joined(CANDLES if wide else CANDLES // 2)
    drawn = ~np.isnan(shown.close)
    at = _days(shown.times)
    width = float(np.min(np.diff(at))) if len(at) > 1 else 1.0
    at = at + width / 2  # the middle of the candle
    rose = shown.close >= shown.open
    for which, colour in ((drawn & rose, BLUE), (drawn & ~rose, ORANGE)):
        sticks = [((x, lo), (x, hi)) for x, lo, hi in _points(at, shown.low, shown.high, which)]
        top.add_collection(LineCollection(sticks, colors=colour, linewidths=0.7))
        bodies = [((x, o), (x, c)) for x, o, c in _points(at, shown.open, shown.close, which)]
        thick = 0.62 * (0.84 * figure.get_figwidth() * 72) / max(1, len(shown))
        top.add_collection(LineCollection(bodies, colors=colour, linewidths=thick, capstyle="butt"))
    if drawn.any():
        low, high = float(np.nanmin(shown.low)), float(np.nanmax(shown.high))
        room = 0.06 * (high - low) or 1.0
        top.set_ylim(low - room, high + room)
    top.set_xlim(at[0] - width, at[-1] + width)
    keys = [
        _key("rising candle", marker="s", color=BLUE, ms=5),
        _key("falling candle", marker="s", color=ORANGE, ms=5),
    ]
    for mark in marks:
        style = dict(_MARK_STYLES[mark.marker], marker=mark.marker)
        top.plot(_days(mark.times), mark.prices, linestyle="none", **style)
        keys.append(_key(mark.name, **style))
    top.set_ylabel("price")
    top.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.6g}"))
    if below is None or score is None:
        _time_axis(top)
    else:
        times, values = thinned(score.times, score.values, POINTS if wide else POINTS // 2)
        below.plot(_days(times), values, color=BLUE, linewidth=0.9)
        for number, (name, level) in enumerate(thresholds.items()):
            style = {"color": (GREEN, PINK)[number % 2], "linestyle": _DASHES[1]}
            below.axhline(level, linewidth=1.1, **style)
            keys.append(_key(f"{name} {level:g}", linewidth=1.1, **style))
        below.set_ylabel("score")
        below.set_xlim(top.get_xlim())
        top.tick_params(labelbottom=False)
        _time_axis(below)
    _legend_below(figure, keys, 7 if wide else 3)
    return figure


@_styled
def gaps(first_ms: int, last_ms: int, starts: Times, lengths: Times, *, wide: bool) -> Figure:
    """A stem for each gap: when it began and how many candles are missing.

    first_ms, last_ms: the data's range. starts: (n,) epoch ms; lengths: (n,) candles.
    """
    figure, (axes,) = _stacked(wide, (1,), height=2.6)
    at = _days(starts)
    axes.vlines(at, 0.7, lengths, color=ORANGE, linewidth=1)
    axes.plot(at, lengths, "o", color=ORANGE, ms=3.5)
    axes.set_yscale("log")
    axes.set_ylim(0.7, max(10.0, 1.6 * float(lengths.max(initial=1))))
    axes.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,g}"))
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())
    ends = _days(np.array([first_ms, last_ms]))
    room = 0.02 * (ends[1] - ends[0]) or 1.0
    axes.set_xlim(ends[0] - room, ends[1] + room)
    axes.set_ylabel("missing candles")
    _time_axis(axes)
    return figure


# --- writing -------------------------------------------------------------------------------------

_PROLOG = re.compile(r"^.*?(?=<svg)", re.DOTALL)
_METADATA = re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL)
_STYLE = re.compile(r"\s*<defs>\s*<style.*?</style>\s*</defs>", re.DOTALL)
_COMMENT = re.compile(r"\s*<!--.*?-->", re.DOTALL)
_SVG_TAG = re.compile(r"<svg[^>]*>")
_VIEW_BOX = re.compile(r'viewBox="([^"]*)"')
_FONT = re.compile(r"font: (?:(bold|\d{3}) )?([\d.]+)px [^;\"]*")
_PATH = re.compile(r'(?<= d=")[^"]*')
_LONG_NUMBER = re.compile(r"(\d+\.\d{2})\d+")


def svg(figure: Figure, name: str, label: str) -> str:
    """An `<svg>` element to stand inside an HTML page.

    name: unique in the page, of letters, digits and dashes; ids begin with it.
    label: what a screen reader says; the caller has escaped it.
    """
    out = io.StringIO()
    with _style(), mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None}, dpi=144)
    text = _PROLOG.sub("", out.getvalue(), count=1)
    for pattern in (_METADATA, _STYLE, _COMMENT):
        text = pattern.sub("", text)
    view = _VIEW_BOX.search(text)
    assert view is not None  # noqa: S101 - matplotlib always writes it
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{view[1]}" role="img" aria-label="{label}">'
    )
    text = re.sub(r' id="([^"]*)"', rf' id="{name}-\1"', text)
    text = re.sub(r'href="#([^"]*)"', rf'href="#{name}-\1"', text)
    text = re.sub(r"url\(#([^)]*)\)", rf"url(#{name}-\1)", text)
    text = _FONT.sub(
        lambda m: f"font-size: {m[2]}px" + ((m[1] and "; font-weight: bold") or ""), text
    )
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    text = _PATH.sub(lambda path: _LONG_NUMBER.sub(r"\1", path[0]), text)
    return _SVG_TAG.sub(lambda _: head, text, count=1).strip()


def png(figure: Figure, path: Path) -> None:
    """A PNG on white, 200 dots per inch."""
    with klinefiles.replacing(path) as unfinished, _style():
        figure.savefig(
            unfinished, format="png", dpi=200, facecolor="#ffffff", metadata={"Software": None}
        )


# --- parts ---------------------------------------------------------------------------------------


def _axes(height: float = 2.9) -> tuple[Figure, Any]:
    figure = Figure(figsize=(_NARROW, height), layout="constrained")
    return figure, figure.subplots()


def _stacked(
    wide: bool, ratios: Sequence[float], height: float | None = None
) -> tuple[Figure, tuple[Any, ...]]:
    size = (_WIDE, height or 4.2) if wide else (_NARROW, height or 3.8)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(ratios), 1, squeeze=False, sharex=True, height_ratios=list(ratios))
    return figure, tuple(grid[:, 0])


def _key(name: str, **style: Any) -> Line2D:
    return Line2D([], [], label=name, **{"linestyle": "none"} | style)


def _series(at: int) -> dict[str, Any]:
    at %= 4
    return {"color": SERIES[at], "marker": _MARKERS[at], "linestyle": _DASHES[at]}


def _legend_below(figure: Figure, keys: Sequence[Any], columns: int = 4) -> None:
    if keys:
        figure.legend(
            handles=list(keys),
            loc="outside lower center",
            ncols=min(columns, len(keys)),
            handletextpad=0.5,
            columnspacing=1.2,
        )


def _days(times: Times) -> Floats:
    """Epoch milliseconds as matplotlib counts time: days from 1970."""
    return np.asarray(times, np.float64) / _DAY_MS


def _time_axis(axes: Any) -> None:
    make: Any = dates  # its classes are not typed
    locator = make.AutoDateLocator(minticks=3, maxticks=7)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(make.ConciseDateFormatter(locator))
    axes.set_xlabel("time (UTC)")


def _cell_edges(centres: Floats) -> tuple[float, float]:
    half = float(centres[1] - centres[0]) / 2 if len(centres) > 1 else 0.5
    return float(centres[0]) - half, float(centres[-1]) + half


def _points(
    at: Floats, low: Floats, high: Floats, which: npt.NDArray[np.bool_]
) -> Iterator[tuple[float, float, float]]:
    return zip(at[which].tolist(), low[which].tolist(), high[which].tolist(), strict=True)
