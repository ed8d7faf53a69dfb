"""The names of labels, what each means, and how it is computed.

A name is its specification. Of the numbers in it, two digits are tenths of a percent and three are
hundredths (`high2_20_04` = `high2_200_040`: 2 % and 0.4 %); of sigma they are hundredths; W and H
are rows. A name without W or H looks as far ahead as `trainer.label_horizon` says (180).

The seed's names have the seed's formulas (the predecessor's original version, its
`generate_labels_thresholds`; `high_05`, `high_30` and their mirror images are from its later
version, whose formulas are the same). One thing differs: there, every window needs only a tenth of
its rows (later: half), so that rows at the end and around gaps are False; here they are NaN. And
its files hold `high_max_W` and `low_min_W` as they are after the step that `high_to_low_W` begins
with (never below 0, the lower one negated), because it overwrites its columns; here they are the
percentages that all thresholds are compared with. `close_area_future_W` counts row t among its W
rows, as the seed's does.

`high2` is the predecessor's later `highlow2`, with the stop in percent, not as a share of the
target: `high2_20_04` is its threshold 2.0 with tolerance 0.2. There, a candle that passes both
prices is a success for both sides, and so is a gap; here it is the stop, and NaN. `top2` is its
`topbot2` with the tolerance in percent of the price, not as a share of the level; see `turns`. The
bare words, where labels are listed, stand for both sides with these numbers
(`shared.config.LABEL_WORDS`).

Thresholds in percent have no cases in a calm market and little else in a wild one: `highv`, `lowv`
and the triple barrier measure in sigma(t), the population standard deviation of the log returns
ln(close[r] / close[r-1]) of the 720 rows r = t-719 .. t: a plain window, the same from wherever the
data starts. Returns at a gap are not counted; NaN with fewer than 2 returns or where the window
begins before the data (close[t - 720] is its first). The 1.25 of `highv` is from the reference on
machine learning, sections 0 and 2, measured there with an exponentially weighted sigma. With this
one it is a case in 17 to 20 percent of BTCUSDT's minutes in every year from 2021 to 2025 (high_10:
in 14 to 41 percent).
"""

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from shared.config import LABEL_WORDS
from shared.errors import Usage
from shared.klines import KlineTable
from trainer.labels import moves, paths, touch, turns
from trainer.labels.sigma import SIGMA_ROWS, trailing_sigma

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Side = Literal["high", "low"]

HORIZON = 180
_SIGMAS = 1.25
# side: its volatility-scaled labels, rarest first
SCALED_LABELS: Mapping[str, tuple[str, ...]] = {
    side: (f"{side}v", f"{side}v_100", f"{side}v_075", f"{side}v_050") for side in ("high", "low")
}
SIGMA_IS = (
    "sigma[t] = population standard deviation of ln(close[r] / close[r-1]) over "
    f"r = t-{SIGMA_ROWS - 1} .. t"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """y: (n,) float64: 0, 1 or a value, NaN = not known. t1: (n,) int64, the last row looked at."""

    y: Floats
    t1: Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What one name means.

    side: which way the price goes where y is 1; None: y is a value, something to regress on.
    window: y is known where this many rows follow; None: there is no bound.
    sigmas: how many sigma it asks for; None: it does not measure in sigma.
    compute: of a table on its raster and the `trailing_sigma` of its closes, where that is at hand.
    """

    name: str
    side: Side | None
    window: int | None
    sigmas: float | None
    definition: str
    t1: str
    compute: Callable[[KlineTable, Floats | None], Label]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A family of names. shown: how they are written; examples: some of them.

    read: what a name that matches means at a horizon, which it may replace by its own; raises Usage
    where its numbers make no sense.
    """

    shown: str
    pattern: re.Pattern[str]
    examples: tuple[str, ...]
    read: Callable[[re.Match[str], int], Spec]
    note: str = ""


def rows_ahead(name: str, horizon: int, open_ms: Rows, t1_ms: Rows, candle_ms: int) -> int:
    """How many candles a label looks ahead: its window; where that has no bound, the mean of what
    the rows took that are given, (n,) when they and their t1 open."""
    window = spec(name, horizon).window
    if window is not None:
        return window
    return (
        max(horizon, int(np.ceil(np.mean(t1_ms - open_ms) / candle_ms))) if len(t1_ms) else horizon
    )


def label(
    name: str, table: KlineTable, horizon: int = HORIZON, sigma: Floats | None = None
) -> Label:
    """One label of each row.

    table: on its regular raster, gaps as rows of NaN.
    horizon: rows that the label looks ahead, unless its name says how many.
    sigma: `trailing_sigma` of the table's closes, where it is at hand.

    Raises:
        Usage: there is no such label.
    """
    return spec(name, horizon).compute(table, sigma)


def spec(name: str, horizon: int = HORIZON) -> Spec:
    """What a name means.

    Raises:
        Usage: there is no such label.
    """
    for form in FORMS:
        found = form.pattern.fullmatch(name)
        if found is not None:
            return form.read(found, horizon)
    known = (*known_labels(), *LABEL_WORDS)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    raise Usage(f"no label {name!r}; did you mean {close[0]!r}?")


def known_labels() -> tuple[str, ...]:
    """Names of every form; most forms have more, with other numbers."""
    return tuple(name for form in FORMS for name in form.examples)


def side_of(name: str) -> Side | None:
    """The side that a yes-or-no label speaks for: where it is 1 the price goes up (`high`) or down.

    None: it is a value. `high_01 .. 05` (no rise above) speak for a fall, `low_01 .. 05` for a
    rise; a top for a fall, a bottom for a rise.

    Raises:
        Usage: there is no such label.
    """
    return spec(name).side


def is_value(name: str) -> bool:
    """Whether a label is a number to regress on, not yes or no.

    Raises:
        Usage: there is no such label.
    """
    return spec(name).side is None


def definition(name: str, horizon: int = HORIZON) -> str:
    """The formula, as a release's manifest states it.

    Raises:
        Usage: there is no such label.
    """
    return spec(name, horizon).definition


def sigmas(name: str) -> float | None:
    """How many sigma a volatility-scaled label asks for; None for every other name."""
    try:
        return spec(name).sigmas
    except Usage:
        return None


# --- forms ----------------------------------------------------------------------------------------


def _hundredths(digits: str) -> int:
    """`20` and `200` as 200."""
    return int(digits) * (10 if len(digits) == 2 else 1)


def _closes(table: KlineTable) -> Floats:
    """A copy, in one piece."""
    return np.array(table.column("close"))


def _fixed(y: Floats, window: int) -> Label:
    """A label that looks at all of its window, or as much as there is."""
    rows = np.arange(len(y), dtype=np.int64)
    return Label(y=y, t1=np.minimum(rows + window, max(len(y) - 1, 0)))


def _yes_or_no(hit: npt.NDArray[np.bool_], known: npt.NDArray[np.bool_]) -> Floats:
    return np.where(known, hit.astype(np.float64), np.nan)


def _threshold(found: re.Match[str], horizon: int) -> Spec:
    of, percent, is_far = found[1], int(found[2]) / 10, int(found[2]) >= 10
    is_high = of == "high"
    is_at_least = is_far is is_high

    def compute(table: KlineTable, _: Floats | None) -> Label:
        move = moves.extreme_move(table, of, horizon)
        edge = percent if is_high else -percent
        hit = move >= edge if is_at_least else move <= edge
        return _fixed(_yes_or_no(hit, ~np.isnan(move)), horizon)

    return Spec(
        name=found[0],
        side="high" if is_at_least else "low",
        window=horizon,
        sigmas=None,
        definition=_extreme_text(is_high, is_at_least, f"{percent:g} %", horizon),
        t1=_end_text(horizon),
        compute=compute,
    )


def _scaled(found: re.Match[str], horizon: int) -> Spec:
    of = found[1]
    is_high = of == "high"
    scale = _SIGMAS if found[2] is None else int(found[2]) / 100

    def compute(table: KlineTable, sigma: Floats | None) -> Label:
        move = moves.extreme_move(table, of, horizon)
        if sigma is None:
            sigma = trailing_sigma(table.column("close"))
        threshold = scale * 100 * sigma * math.sqrt(horizon)
        hit = move >= threshold if is_high else move <= -threshold
        return _fixed(_yes_or_no(hit, ~(np.isnan(move) | np.isnan(threshold))), horizon)

    edge = f"{scale:g} * sigma[t] * sqrt({horizon})"
    return Spec(
        name=found[0],
        side="high" if is_high else "low",
        window=horizon,
        sigmas=scale,
        definition=f"{_extreme_text(is_high, is_high, edge, horizon)}, {SIGMA_IS}",
        t1=_end_text(horizon),
        compute=compute,
    )


def _extreme_text(is_high: bool, is_at_least: bool, edge: str, horizon: int) -> str:
    extreme, sign = ("max(high", "+") if is_high else ("min(low", "-")
    return (
        f"{extreme}[t+1 .. t+{horizon}]) {'>=' if is_at_least else '<='} close[t] * (1 {sign} "
        f"{edge})"
    )


def _end_text(window: int) -> str:
    return f"t+{window}"


def _extreme(found: re.Match[str], _: int) -> Spec:
    of, window = found[1] or found[3], int(found[2] or found[4])
    extreme = "max(high" if of == "high" else "min(low"
    return Spec(
        name=found[0],
        side=None,
        window=window,
        sigmas=None,
        definition=f"100 * ({extreme}[t+1 .. t+{window}]) - close[t]) / close[t]",
        t1=_end_text(window),
        compute=lambda table, _: _fixed(moves.extreme_move(table, of, window), window),
    )


def _high_to_low(found: re.Match[str], _: int) -> Spec:
    window = int(found[1])
    return Spec(
        name=found[0],
        side=None,
        window=window,
        sigmas=None,
        definition=f"2 * up / (up + down) - 1, up = max(high_max_{window}, 0), "
        f"down = max(-low_min_{window}, 0); NaN where both are 0",
        t1=_end_text(window),
        compute=lambda table, _: _fixed(moves.high_to_low(table, window), window),
    )


def _area(found: re.Match[str], _: int) -> Spec:
    window = int(found[1])
    if window < 2:
        raise Usage(f"label {found[0]}: the window holds row t itself, so give it 2 rows or more")
    return Spec(
        name=found[0],
        side=None,
        window=window - 1,
        sigmas=None,
        definition="sum(d) / sum(|d|), d = close[r] - close[t] for the rows r = t .. "
        f"t+{window - 1}; NaN where all are 0",
        t1=_end_text(window - 1),
        compute=lambda table, _: _fixed(paths.area_ahead(_closes(table), window), window - 1),
    )


def _target_before_stop(found: re.Match[str], horizon: int) -> Spec:
    of, target, stop = found[1], _hundredths(found[2]) / 100, _hundredths(found[3]) / 100
    window = horizon if found[4] is None else int(found[4])
    if not target or not stop:
        raise Usage(f"label {found[0]}: target and stop are percentages above 0")
    is_high = of == "high"
    sign = 1 if is_high else -1

    def compute(table: KlineTable, _: Floats | None) -> Label:
        close = _closes(table)
        y, t1 = touch.target_first(
            table,
            of,
            close * (1 + sign * target / 100),
            close * (1 - sign * stop / 100),
            window,
            strict=True,
        )
        return Label(y=y, t1=t1)

    return Spec(
        name=found[0],
        side="high" if is_high else "low",
        window=window,
        sigmas=None,
        definition=_race_text(is_high, (">", "<"), f"{target:g} %", f"{stop:g} %", window),
        t1=_touch_text(window),
        compute=compute,
    )


def _barrier(found: re.Match[str], horizon: int) -> Spec:
    is_high = found[1] == "up"
    target = 1.0 if found[2] is None else int(found[2]) / 100
    stop = target if found[3] is None else int(found[3]) / 100
    window = horizon if found[4] is None else int(found[4])
    if not target or not stop:
        raise Usage(f"label {found[0]}: both barriers are hundredths of sigma above 0")
    sign = 1 if is_high else -1

    def compute(table: KlineTable, sigma: Floats | None) -> Label:
        close = _closes(table)
        if sigma is None:
            sigma = trailing_sigma(close)
        far = np.where(sigma > 0, sigma, np.nan) * math.sqrt(window)
        y, t1 = touch.target_first(
            table,
            "high" if is_high else "low",
            close * (1 + sign * target * far),
            close * (1 - sign * stop * far),
            window,
            strict=False,
        )
        return Label(y=y, t1=t1)

    edge = f"{{:g}} * sigma[t] * sqrt({window})".format
    race = _race_text(is_high, (">=", "<="), edge(target), edge(stop), window)
    return Spec(
        name=found[0],
        side="high" if is_high else "low",
        window=window,
        sigmas=target,
        definition=f"{race}; NaN where sigma is 0, {SIGMA_IS}",
        t1=_touch_text(window),
        compute=compute,
    )


def _race_text(is_high: bool, compare: tuple[str, str], target: str, stop: str, window: int) -> str:
    above = f"high[r] {compare[0]} close[t] * (1 + {target if is_high else stop})"
    below = f"low[r] {compare[1]} close[t] * (1 - {stop if is_high else target})"
    first, second = (above, below) if is_high else (below, above)
    return f"{first} for a row r of t+1 .. t+{window}, and before it, or in it, never {second}"


def _touch_text(window: int) -> str:
    return f"the first row that reaches either price, else t+{window}"


def _turn(found: re.Match[str], _: int) -> Spec:
    of, level, tolerance = found[1], _hundredths(found[2]), _hundredths(found[3])
    if not 0 < tolerance <= level:
        raise Usage(
            f"label {found[0]}: the tolerance ({tolerance / 100:g} %) must be above 0 and no more "
            f"than the level ({level / 100:g} %)"
        )

    def compute(table: KlineTable, _: Floats | None) -> Label:
        y, t1 = turns.near_a_turn(_closes(table), of, level / 10_000, tolerance / 10_000)
        return Label(y=y, t1=t1)

    is_top = of == "top"
    extreme, side, other, sign = (
        ("top", "above", "below", "-") if is_top else ("bottom", "below", "above", "+")
    )
    edge = f"v * (1 {sign} {tolerance / 100:g} %)"
    return Spec(
        name=found[0],
        side="low" if is_top else "high",
        window=None,
        sigmas=None,
        definition=f"close[t] is in the unbroken run of closes not {other} {edge} about a {extreme}"
        f" of price v: on both sides a close {other} v * (1 {sign} {level / 100:g} %) comes before "
        f"any {side} v",
        t1="the row that confirms the first turning point, top or bottom, at or after t",
        compute=compute,
    )


def _trend(found: re.Match[str], horizon: int) -> Spec:
    what = found[1]
    window = horizon if found[2] is None else int(found[2])
    if window < 2:
        raise Usage(f"label {found[0]}: a trend needs a horizon of 2 rows or more")

    def compute(table: KlineTable, _: Floats | None) -> Label:
        t = paths.clearest_trend(_closes(table), window)
        if what == "t":
            return _fixed(t, window)
        return _fixed(_yes_or_no(t > 0 if what == "up" else t < 0, ~np.isnan(t)), window)

    lengths = paths.spans(window)
    shown = ", ".join(map(str, lengths if len(lengths) < 5 else (*lengths[:3], "..", lengths[-1])))
    value = (
        "the t-value of largest size of the slopes of the least-squares lines through "
        f"close[t .. t+L], L = {shown.replace(', ..,', ' ..')}"
    )
    return Spec(
        name=found[0],
        side=_TREND_SIDES.get(what),
        window=window,
        sigmas=None,
        definition=value if what == "t" else f"{'>' if what == 'up' else '<'} 0: {value}",
        t1=_end_text(window),
        compute=compute,
    )


_TREND_SIDES: Mapping[str, Side] = {"up": "high", "down": "low"}
_W = r"([1-9]\d{0,4})"
_H = r"(?:_h([1-9]\d{0,4}))?"
FORMS: tuple[Form, ...] = (
    Form(
        shown="high_NN, low_NN",
        pattern=re.compile("(high|low)_(10|15|20|25|30|0[1-5])"),
        examples=tuple(
            f"{of}_{digits}"
            for of in ("high", "low")
            for digits in ("10", "15", "20", "25", "30", "01", "02", "03", "04", "05")
        ),
        read=_threshold,
    ),
    Form(
        shown="high_max_W, low_min_W",
        pattern=re.compile(f"(high)_max_{_W}|(low)_min_{_W}"),
        examples=tuple(
            f"{of}_{window}" for of in ("high_max", "low_min") for window in (60, 120, 180)
        ),
        read=_extreme,
    ),
    Form(
        shown="high_to_low_W",
        pattern=re.compile(f"high_to_low_{_W}"),
        examples=("high_to_low_60", "high_to_low_120", "high_to_low_180"),
        read=_high_to_low,
    ),
    Form(
        shown="highv, lowv, highv_NNN, lowv_NNN",
        pattern=re.compile(r"(high|low)v(?:_(?!000)(\d{3}))?"),
        examples=(*SCALED_LABELS["high"], *SCALED_LABELS["low"]),
        read=_scaled,
    ),
    Form(
        shown="close_area_future_W",
        pattern=re.compile(f"close_area_future_{_W}"),
        examples=tuple(f"close_area_future_{window}" for window in (60, 120, 180, 300)),
        read=_area,
        note="W >= 2; takes longer for a longer W",
    ),
    Form(
        shown="high2_TARGET_STOP[_hH], low2_TARGET_STOP[_hH]",
        pattern=re.compile(rf"(high|low)2_(\d\d\d?)_(\d\d\d?){_H}"),
        examples=("high2_20_04", "low2_20_04"),
        read=_target_before_stop,
        note="percent, NN tenths or NNN hundredths; a candle that passes both is the stop",
    ),
    Form(
        shown="tb_up[_NNN[_NNN]][_hH], tb_down[_NNN[_NNN]][_hH]",
        pattern=re.compile(rf"tb_(up|down)(?:_(\d{{3}}))?(?:_(\d{{3}}))?{_H}"),
        examples=("tb_up", "tb_down"),
        read=_barrier,
        note="triple barrier: target, and stop if it is another, in hundredths of sigma (100); a "
        "candle that reaches both is the stop",
    ),
    Form(
        shown="trend_up[_hH], trend_down[_hH], trend_t[_hH]",
        pattern=re.compile(f"trend_(up|down|t){_H}"),
        examples=("trend_up", "trend_down", "trend_t"),
        read=_trend,
        note="trend scanning; takes longer for a longer horizon",
    ),
    Form(
        shown="top2_LEVEL_TOLERANCE, bot2_LEVEL_TOLERANCE",
        pattern=re.compile(r"(top|bot)2_(\d\d\d?)_(\d\d\d?)"),
        examples=("top2_20_05", "bot2_20_05"),
        read=_turn,
        note="percent, NN tenths or NNN hundredths; known after hours or days: purge by t1",
    ),
)
