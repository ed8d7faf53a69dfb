"""The picture of candles, scores and trades, for a phone: arrays in, a PNG out.

matplotlib takes a second to load and is loaded with the first picture. Wherever it runs, the
figure is drawn by its object interface: no window, no global state.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from shared.candlesticks import draw_candles
from shared.errors import Failure
from shared.events import Kline, Signal

Floats = npt.NDArray[np.float64]
_UP, _DOWN, _SCORE, _INK, _FAINT = "#0b8f6a", "#d1495b", "#2f6fde", "#1b1f24", "#8b939c"
_MOST_CANDLES = 240
_DPI = 150


@dataclass(frozen=True, slots=True)
class Trade:
    """A fill to be marked: side +1 bought, -1 sold."""

    time_ms: int
    price: float
    side: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What is drawn. Scores of candles without one are left out; gaps stay gaps."""

    title: str
    zone: ZoneInfo
    step_ms: int
    candles: Sequence[Kline]
    signals: Sequence[Signal]
    trades: Sequence[Trade]
    buy: float
    sell: float


def draw(picture: Picture) -> bytes:
    """The PNG, 1350 x 900 pixels.

    Raises:
        Failure: there is no candle to draw, or matplotlib is not installed.
    """
    try:
        from matplotlib import dates as dates_  # noqa: PLC0415  # a second, and only here
        from matplotlib.figure import Figure  # noqa: PLC0415  # as above
    except ImportError:
        raise Failure("matplotlib is not installed: pip install matplotlib") from None
    dates: Any = dates_  # without types of its own
    bars = _folded(picture)
    if not len(bars):
        raise Failure("there is no candle to draw")
    figure = Figure(figsize=(9, 6), dpi=_DPI, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    days = [dates.date2num(datetime.fromtimestamp(t / 1000, UTC)) for t in bars[:, 0]]
    width = float(np.diff(days).min()) * 0.7 if len(days) > 1 else 1 / 1440
    draw_candles(above, days, bars[:, 1:], width=width, up=_UP, down=_DOWN)
    _trades(above, picture.trades, dates)
    _scores(below, picture, dates)
    last = bars[-1, 4]
    above.axhline(last, color=_FAINT, lw=0.6, ls=":")
    above.set_title(picture.title, loc="left", fontsize=13, fontweight="bold", color=_INK)
    for axes in (above, below):
        axes.grid(visible=True, color="#e7eaee", lw=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(colors=_INK, labelsize=9)
        axes.yaxis.tick_right()
        for side in ("top", "left"):
            axes.spines[side].set_visible(False)
    locator = dates.AutoDateLocator(tz=picture.zone, maxticks=8)
    below.xaxis.set_major_locator(locator)
    below.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator, tz=picture.zone))
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _folded(picture: Picture) -> Floats:
    """(n, 5) float64: open time, open, high, low, close; as many candles folded into one as leave
    at most _MOST_CANDLES."""
    real = [c for c in picture.candles if not c.gap and np.isfinite(c.row()[:4]).all()]
    if not real:
        return np.empty((0, 5))
    span = (real[-1].open_time_ms - real[0].open_time_ms) // picture.step_ms + 1
    wide_ms = picture.step_ms * max(1, -(-span // _MOST_CANDLES))
    folded: dict[int, list[float]] = {}
    for one in real:
        start = one.open_time_ms // wide_ms * wide_ms
        bar = folded.setdefault(start, [start, one.open, one.high, one.low, one.close])
        bar[2], bar[3], bar[4] = max(bar[2], one.high), min(bar[3], one.low), one.close
    return np.array([folded[start] for start in sorted(folded)])


def _trades(axes: Any, trades: Sequence[Trade], dates: Any) -> None:
    for side, marker, color, label in ((1, "^", _UP, "BUY"), (-1, "v", _DOWN, "SELL")):
        ours = [trade for trade in trades if trade.side == side]
        if ours:
            x = [dates.date2num(datetime.fromtimestamp(t.time_ms / 1000, UTC)) for t in ours]
            axes.plot(
                x, [t.price for t in ours], marker, color=color, ms=9, mec="white", mew=1.2,
                label=label, zorder=5,
            )  # fmt: skip
    if trades:
        axes.legend(loc="upper left", fontsize=9, frameon=False)


def _scores(axes: Any, picture: Picture, dates: Any) -> None:
    scored = [(s.open_time_ms, s.score) for s in picture.signals if s.score is not None]
    if scored:
        x = [dates.date2num(datetime.fromtimestamp(t / 1000, UTC)) for t, _ in scored]
        axes.plot(x, [score for _, score in scored], color=_SCORE, lw=1.1)
    axes.axhline(0, color=_INK, lw=0.6)
    for level, color in ((picture.buy, _UP), (picture.sell, _DOWN)):
        axes.axhline(level, color=color, lw=0.9, ls="--")
    most = max([abs(score) for _, score in scored] + [abs(picture.buy), abs(picture.sell)])
    axes.set_ylim(-1.15 * most, 1.15 * most)
    axes.set_ylabel("score", fontsize=9, color=_INK)
