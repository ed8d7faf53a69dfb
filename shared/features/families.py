"""The built-in features: what each form of name means. A new family is one more entry in FAMILIES
(and, if no quantity of the kernel is it, a new quantity there)."""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from shared.errors import Usage
from shared.features import kernel, ta
from shared.features.ta import OTHER, TaSpec
from shared.klines import DEPTH_COLUMNS, KLINE_COLUMNS

MAX_WINDOW = 525_600
"""Rows; a year of minutes. A slip of the finger should not ask for gigabytes of state."""


@dataclass(frozen=True, slots=True)
class Series:
    """A column of the source, or two columns combined row by row (kernel.COPY .. PRODUCT)."""

    recipe: int
    columns: tuple[str, ...]


def _column(name: str) -> Series:
    return Series(kernel.COPY, (name,))


CLOSE = _column("close")
VOLUME = _column("volume")
TURNOVER = Series(kernel.PRODUCT, ("close", "volume"))
SPAN = Series(kernel.DIFFERENCE, ("high", "low"))
TAKER_BASE = Series(kernel.RATIO, ("taker_base", "volume"))
TAKER_QUOTE = Series(kernel.RATIO, ("taker_quote", "quote_volume"))


@dataclass(frozen=True, slots=True)
class Family:
    """Features whose names differ in the window: `form` is `prefix_W`.

    quantity, part: what the kernel computes over the window, and which of its results.
    relative: 100 * (x_W - x_base) / x_base instead of x_W.
    least: the smallest window that can have a value.
    """

    prefix: str
    quantity: int
    series: tuple[Series, ...]
    part: int = 0
    relative: bool = True
    least: int = 1


@dataclass(frozen=True, slots=True)
class Source:
    """One input of the engine: its columns, what its feature names begin with, its base window."""

    name: str
    columns: tuple[str, ...]
    prefix: str
    base: int
    families: tuple[Family, ...]


KLINE_FAMILIES = (
    Family("close", kernel.VWAP, (CLOSE, VOLUME, TURNOVER)),
    Family("close_std", kernel.MOMENTS, (CLOSE,), part=0),
    Family("volume", kernel.MEAN, (VOLUME,)),
    Family("span", kernel.MEAN, (SPAN,)),
    Family("trades", kernel.MEAN, (_column("trades"),)),
    Family("tb_base", kernel.MEAN, (TAKER_BASE,)),
    Family("tb_quote", kernel.MEAN, (TAKER_QUOTE,)),
    Family("close_area", kernel.AREA, (CLOSE,), relative=False, least=2),
    Family("close_trend", kernel.MOMENTS, (CLOSE,), part=1, relative=False, least=2),
)
OTHER_FAMILIES = tuple(
    replace(
        family,
        series=tuple(
            Series(one.recipe, tuple(OTHER + name for name in one.columns)) for one in family.series
        ),
    )
    for family in KLINE_FAMILIES
)
DEPTH_FAMILIES = tuple(Family(name, kernel.MEAN, (_column(name),)) for name in DEPTH_COLUMNS)

SOURCES = (
    Source("kline", KLINE_COLUMNS, "", 1440, KLINE_FAMILIES),
    Source("futur", KLINE_COLUMNS, "f_", 360, KLINE_FAMILIES),
    Source("depth", DEPTH_COLUMNS, "", 30, DEPTH_FAMILIES),
    # The candles of this symbol and, behind them, those of another one.
    Source(
        "other",
        (*KLINE_COLUMNS, *(OTHER + name for name in KLINE_COLUMNS)),
        OTHER,
        1440,
        OTHER_FAMILIES,
    ),
)
FAMILIES = {
    source.prefix + family.prefix: (source, family)
    for source in SOURCES
    for family in source.families
}


@dataclass(frozen=True, slots=True)
class Spec:
    """A built-in feature, as its name says."""

    name: str
    source: Source
    family: Family
    window: int

    @property
    def lookback(self) -> int:
        return max(self.window, self.source.base) if self.family.relative else self.window


_NAME = re.compile(r"(?P<form>.+)_(?P<window>0|[1-9][0-9]*)")


def is_built_in(name: str) -> bool:
    """Whether the name has a built-in form, so that a user feature may not take it."""
    match = _NAME.fullmatch(name)
    return (match is not None and match["form"] in FAMILIES) or ta.is_ta(name)


def parse(name: str, user_names: Iterable[str] = ()) -> Spec | TaSpec:
    """What a built-in feature's name means.

    Raises:
        Usage: no such form, or a window for which the feature has no value; names the nearest form.
    """
    match = _NAME.fullmatch(name)
    if match is None or match["form"] not in FAMILIES:
        if ta.is_ta(name):
            return ta.parse(name, MAX_WINDOW)
        raise Usage(f"unknown feature {name!r}; {_nearest(name, user_names)}")
    source, family = FAMILIES[match["form"]]
    window = int(match["window"])
    if not family.least <= window <= MAX_WINDOW:
        raise Usage(
            f"feature {name!r}: the window of {match['form']}_W is"
            f" {family.least} to {MAX_WINDOW} rows"
        )
    return Spec(name, source, family, window)


def _nearest(name: str, user_names: Iterable[str]) -> str:
    forms = [f"{form}_W" for form in FAMILIES]
    of_ta = ta.forms()
    form = re.sub(r"\d+(?=_|$)", "W", name)
    known = [*forms, *of_ta, *user_names]
    near = difflib.get_close_matches(form, known, n=1, cutoff=0.0)[0]
    if near in forms:
        return f"the nearest form is {near} (W = window in rows, such as {near[:-1]}60)"
    if near in of_ta:
        return f"the nearest form is {near} (such as {ta.example(near)})"
    return f"the nearest known name is {near}"


def _names(prefix: str, windows: Iterable[int]) -> list[str]:
    return [f"{prefix}_{window}" for window in windows]


_WINDOWS = (1, 5, 15, 60, 180, 720)
KLINE_51 = (
    *_names("close", _WINDOWS),
    *_names("close_std", _WINDOWS[1:]),
    *(
        name
        for prefix in ("volume", "span", "trades", "tb_base", "tb_quote")
        for name in _names(prefix, _WINDOWS)
    ),
    *_names("close_area", (60, 120, 180, 300, 720)),
    *_names("close_trend", _WINDOWS[1:]),
)
"""The seed's `features_kline`: the default set."""

_FUTUR_WINDOWS = (1, 2, 5, 20, 60, 180)
FUTUR_38 = (
    *_names("f_close", _FUTUR_WINDOWS),
    *_names("f_close_std", _FUTUR_WINDOWS[1:]),
    *(
        name
        for prefix in ("f_volume", "f_span", "f_trades")
        for name in _names(prefix, _FUTUR_WINDOWS)
    ),
    *_names("f_close_area", (20, 60, 120, 180)),
    *_names("f_close_trend", _FUTUR_WINDOWS[1:]),
)
"""The seed's `features_futur`."""

DEPTH_33 = tuple(f"{column}_{window}" for column in DEPTH_COLUMNS for window in (2, 5, 10))
"""The seed's `features_depth`."""
