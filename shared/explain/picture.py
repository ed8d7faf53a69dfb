"""An explanation as one picture: the candles, what moved the score, what every model said.

matplotlib comes with the trainer's install group; a live service may be without it.
"""

import io
from datetime import UTC, datetime
from typing import Any

import numpy as np

from shared.candlesticks import draw_candles
from shared.errors import Failure
from shared.explain.explanation import Explanation
from shared.times import iso

_INK, _FAINT = "#1b1f24", "#8b939c"
_UP, _DOWN, _NEUTRAL = "#009e73", "#d55e00", "#0072b2"
_LABELLED_MODELS = 24


def png(found: Explanation) -> bytes:
    """
    Raises:
        Failure: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415  # as said above
    except ImportError:
        raise Failure(
            "no picture: matplotlib is not installed here; `pip install matplotlib` or the extra "
            "`train` brings it"
        ) from None
    figure = Figure(figsize=(10, 7.2), dpi=110, layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(1.15, 1))
    _draw_candles(figure.add_subplot(grid[0, :]), found)
    _draw_pulls(figure.add_subplot(grid[1, 0]), found)
    _draw_outputs(figure.add_subplot(grid[1, 1]), found)
    figure.suptitle(_title(found), fontsize=11, fontweight="bold", color=_INK)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _title(found: Explanation) -> str:
    signal = found.signal
    verdict = (
        f"no score: {signal['invalid']}"
        if signal["score"] is None
        else f"score {signal['score']:+.3f} {signal['side']}"
    )
    bits = "recomputed: equal bits" if found.equal else f"recomputed: UNEQUAL ({found.difference})"
    return f"{signal['id']}   {iso(signal['open_time_ms'])}   {verdict}\n{bits}"


def _draw_candles(axes: Any, found: Explanation) -> None:
    place = [found.candles.columns.index(name) for name in ("open", "high", "low", "close")]
    bars = np.array([[row[at] for at in place] for row in found.candles.newest])
    there = np.flatnonzero(np.isfinite(bars).all(axis=1))
    draw_candles(axes, there.tolist(), bars[there], width=0.7, up=_UP, down=_DOWN)
    last = len(found.candles.newest) - 1
    axes.axvline(last, color=_INK, lw=0.9, ls=":")
    ticks = [at for at in range(last + 1) if at % max(1, last // 6) == 0]
    axes.set_xticks(ticks, [_clock(found.candles.newest[at][0]) for at in ticks])
    axes.set_title(
        f"the newest {len(found.candles.newest)} of {found.candles.rows:,} candles that its "
        f"features looked at ({found.candles.gaps} gaps), UTC",
        fontsize=9,
        loc="left",
    )
    axes.tick_params(labelsize=8)
    axes.margins(x=0.01)
    axes.spines[["top", "right"]].set_visible(False)


def _clock(time_ms: float) -> str:
    return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%m-%d %H:%M}"


def _draw_pulls(axes: Any, found: Explanation) -> None:
    axes.set_title("what pulled the score up (right) or down", fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    if not found.top_features:
        axes.text(0.5, 0.5, "nothing was scored", ha="center", color=_FAINT)
        axes.set_axis_off()
        return
    shown = found.top_features[::-1]
    names = [f"{one.name} = {one.value:.4g}" for one in shown]
    pulls = [one.pull for one in shown]
    axes.barh(names, pulls, color=[_UP if pull > 0 else _DOWN for pull in pulls], height=0.65)
    axes.axvline(0, color=_INK, lw=0.8)


def _draw_outputs(axes: Any, found: Explanation) -> None:
    axes.set_title("outputs of the models", fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    if not found.outputs:
        axes.text(0.5, 0.5, "no outputs", ha="center", color=_FAINT)
        axes.set_axis_off()
        return
    names = list(found.outputs)[::-1]
    highs = {name for name, one in found.models.items() if one.side == "high"}
    colours = [_UP if name in highs else _DOWN for name in names]
    axes.barh(names, [found.outputs[name] for name in names], color=colours, height=0.65)
    axes.set_xlim(0, max(0.05, *found.outputs.values()) * 1.1)
    if len(names) > _LABELLED_MODELS:
        axes.tick_params(axis="y", labelsize=5)
