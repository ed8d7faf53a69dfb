"""Features in the TA manner: `close_SMA_20`, `ATR_14`, `close_EMA_12_rel_60_log`: what the names
mean. A new one is one more entry in FUNCTIONS and a branch in the kernel beside this file.

A name is `[f_|o_][column_]FUNCTION_WINDOW...[_rel_W|_diff_W|_reldiff_W][_pct][_log]`. The endings
are applied from left to right, `x` being the value so far and `b` the same function at window W:
`_rel_W` is x / b, `_diff_W` x - b, `_reldiff_W` (x - b) / b, `_pct` 100 * x, `_log` ln x. Where the
function has several windows W is the first and the others grow with it (`STOCHD_14_3_rel_56` is
against STOCHD_56_12), or all are written (`close_MACD_12_26_rel_60_120`).

Conventions are TA-Lib's where it has the function. NaN inputs are skipped, never interpolated; a
window must lie wholly inside the data; what is undefined (0 / 0, the logarithm of what is not
positive) is NaN. Smoothings that never end are cut: an EMA's kernel after 12 windows, Wilder's
after 24 (exp(-24) = 4e-11 of the newest weight), and divided by the sum of the weights that are
left.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from shared.errors import Usage
from shared.features import ta_kernel as kernel
from shared.klines import KLINE_COLUMNS

DAY_MS = 86_400_000

ANY = ""
"""In the place of a column: the one that the name begins with."""

OTHER = "o_"
"""Before a column: the same of the other symbol."""


@dataclass(frozen=True, slots=True)
class Series:
    """recipe: kernel.COPY .. FLOW; columns: what it is made of."""

    recipe: int
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """One function: what its name's numbers are, what it reads and how far it looks back.

    series: what the kernel reads, with ANY for the column of the name.
    parameters: letters of the windows in the name, in order; least: the smallest of each.
    rows: look-back in rows, the current one included, from the windows; lookback: the same in
        words; formula: for people, x being the column and W the (first) window.
    percent: the name holds a share in percent, directly behind the function (QUANTILE25_60).
    """

    kind: int
    series: tuple[Series, ...]
    formula: str
    lookback: str
    rows: Callable[..., int]
    parameters: str = "W"
    least: tuple[int, ...] = (1,)
    percent: bool = False
    example: str = ""

    @property
    def of_any_column(self) -> bool:
        return any(ANY in one.columns for one in self.series)

    @property
    def needs_other(self) -> bool:
        return any(name.startswith(OTHER) for one in self.series for name in one.columns)


def _of(recipe: int, *columns: str) -> Series:
    return Series(recipe, columns)


_X = _of(kernel.COPY, ANY)
_CLOSE = _of(kernel.COPY, "close")
_HIGH = _of(kernel.COPY, "high")
_LOW = _of(kernel.COPY, "low")
_VOLUME = _of(kernel.COPY, "volume")
_RANGE = _of(kernel.TRUE_RANGE, "close", "high", "low")


def _w(w: int) -> int:
    return w


def _w_and_one(w: int) -> int:
    return w + 1


def _ema_rows(w: int) -> int:
    return 1 if w == 1 else kernel.SPANS * w


def _wilder_rows(w: int) -> int:
    return 2 if w == 1 else kernel.WILDER_SPANS * w + 1


def _macd_rows(fast: int, slow: int, signal: int = 0) -> int:
    return kernel.SPANS * slow + max(0, kernel.SPANS * signal - 1)


_WILDER = "smoothed by Wilder's weights (1 - 1/W)^age over 24 W rows"
_EMA_LOOKBACK = "12 W (W = 1: 1)"
_WILDER_LOOKBACK = "24 W + 1 (W = 1: 2)"

FUNCTIONS: Mapping[str, Function] = {
    "SMA": Function(
        kind=kernel.SMA, series=(_X,), rows=_w, formula="mean of x over W rows", lookback="W"
    ),
    "EMA": Function(
        kind=kernel.EMA,
        series=(_X,),
        rows=_ema_rows,
        formula="mean of x with weights (1 - 2/(W + 1))^age over 12 W rows",
        lookback=_EMA_LOOKBACK,
    ),
    "WMA": Function(
        kind=kernel.WMA,
        series=(_X,),
        rows=_w,
        formula="mean of x with weights 1 (oldest) .. W (newest)",
        lookback="W",
    ),
    "STDDEV": Function(
        kind=kernel.STDDEV,
        series=(_X,),
        rows=_w,
        formula="population standard deviation of x over W rows",
        lookback="W",
    ),
    "LINEARREG_SLOPE": Function(
        kind=kernel.SLOPE,
        series=(_X,),
        rows=_w,
        least=(2,),
        formula="slope per row of the least-squares line through W rows of x",
        lookback="W",
    ),
    "RSI": Function(
        kind=kernel.RSI,
        series=(_of(kernel.DELTA, ANY),),
        rows=_wilder_rows,
        least=(2,),
        formula=f"100 * up / (up + down), gains and losses of x from row to row {_WILDER}",
        lookback="24 W + 1",
    ),
    "ATR": Function(
        kind=kernel.WILDER,
        series=(_RANGE,),
        rows=_wilder_rows,
        formula=f"true range max(high, close before) - min(low, close before), {_WILDER}",
        lookback=_WILDER_LOOKBACK,
    ),
    "ROC": Function(
        kind=kernel.ROC,
        series=(_X,),
        rows=_w_and_one,
        formula="100 * (x - x of W rows ago) / x of W rows ago",
        lookback="W + 1",
    ),
    "MACD": Function(
        kind=kernel.MACD,
        series=(_X,),
        rows=_macd_rows,
        parameters="FS",
        least=(1, 1),
        formula="EMA_F - EMA_S of x, both over 12 S rows",
        lookback="12 S",
        example="close_MACD_12_26",
    ),
    "MACDSIGNAL": Function(
        kind=kernel.MACD_SIGNAL,
        series=(_X,),
        rows=_macd_rows,
        parameters="FSG",
        least=(1, 1, 1),
        formula="EMA_G of MACD_F_S over 12 G rows",
        lookback="12 S + 12 G - 1",
        example="close_MACDSIGNAL_12_26_9",
    ),
    "MACDHIST": Function(
        kind=kernel.MACD_HIST,
        series=(_X,),
        rows=_macd_rows,
        parameters="FSG",
        least=(1, 1, 1),
        formula="MACD_F_S - MACDSIGNAL_F_S_G",
        lookback="12 S + 12 G - 1",
        example="close_MACDHIST_12_26_9",
    ),
    "BBPOS": Function(
        kind=kernel.BOLLINGER,
        series=(_X,),
        rows=_w,
        least=(2,),
        formula="place in the Bollinger bands: (x - lower) / (upper - lower), bands SMA_W -+ 2 "
        "STDDEV_W",
        lookback="W",
    ),
    "STOCHK": Function(
        kind=kernel.STOCHASTIC,
        series=(_CLOSE, _HIGH, _LOW),
        rows=_w,
        formula="fast %K: 100 * (close - lowest low) / (highest high - lowest low) of W rows",
        lookback="W",
        example="STOCHK_14",
    ),
    "STOCHD": Function(
        kind=kernel.STOCHASTIC,
        series=(_CLOSE, _HIGH, _LOW),
        rows=lambda w, d: w + d - 1,
        parameters="WD",
        least=(1, 1),
        formula="fast %D: mean of STOCHK_W over D rows",
        lookback="W + D - 1",
        example="STOCHD_14_3",
    ),
    "OBV": Function(
        kind=kernel.FLOW_SHARE,
        series=(_of(kernel.FLOW, "close", "volume"), _VOLUME),
        rows=_w_and_one,
        formula="volume flow: sum of sign(close - close before) * volume over W rows / sum of "
        "volume, in [-1, 1]",
        lookback="W + 1",
    ),
    "VWAPDIST": Function(
        kind=kernel.VWAP_DISTANCE,
        series=(_CLOSE, _VOLUME),
        rows=_w,
        formula="100 * (close - vwap) / vwap, vwap = sum(close * volume) / sum(volume) of W rows",
        lookback="W",
    ),
    "SKEW": Function(
        kind=kernel.SKEW,
        series=(_X,),
        rows=_w,
        least=(2,),
        formula="skewness of x over W rows (of the population: scipy.stats.skew)",
        lookback="W",
    ),
    "KURTOSIS": Function(
        kind=kernel.KURTOSIS,
        series=(_X,),
        rows=_w,
        least=(2,),
        formula="excess kurtosis of x over W rows (of the population: scipy.stats.kurtosis)",
        lookback="W",
    ),
    "QUANTILE": Function(
        kind=kernel.QUANTILE,
        series=(_X,),
        rows=_w,
        percent=True,
        formula="Q-th percentile of x over W rows, Q = 0 .. 100, linear between two values",
        lookback="W",
        example="close_QUANTILE25_60",
    ),
    "RANK": Function(
        kind=kernel.RANK,
        series=(_X,),
        rows=_w,
        formula="rank of x among W rows / their number, in (0, 1]; equal ones share their mean "
        "rank",
        lookback="W",
    ),
    "lsbm": Function(
        kind=kernel.LSBM,
        series=(_X,),
        rows=_w,
        formula="longest strike below mean: rows of the longest run with x < mean of W rows",
        lookback="W",
    ),
    "fmax": Function(
        kind=kernel.FMAX,
        series=(_X,),
        rows=_w,
        formula="first location of the maximum among W rows, counted from 0 at the oldest, / W",
        lookback="W",
    ),
    "RVOL": Function(
        kind=kernel.VOLATILITY,
        series=(_of(kernel.LOG_RETURN, ANY),),
        rows=_w_and_one,
        formula="realised volatility: root of W * mean of squared log returns of x over W rows",
        lookback="W + 1",
    ),
    "CORREL": Function(
        kind=kernel.CORREL,
        series=(_X, _of(kernel.COPY, OTHER)),
        rows=_w,
        least=(2,),
        formula="correlation of x with x of the other symbol over W rows",
        lookback="W",
    ),
    "RCORREL": Function(
        kind=kernel.CORREL,
        series=(_of(kernel.RETURN, ANY), _of(kernel.RETURN, OTHER)),
        rows=_w_and_one,
        least=(2,),
        formula="correlation of the returns of x with those of the other symbol over W rows",
        lookback="W + 1",
    ),
    "BETA": Function(
        kind=kernel.BETA,
        series=(_of(kernel.RETURN, ANY), _of(kernel.RETURN, OTHER)),
        rows=_w_and_one,
        least=(2,),
        formula="covariance of the returns of x with those of the other symbol over W rows / "
        "variance of the latter",
        lookback="W + 1",
    ),
}

CALENDAR: Mapping[str, tuple[int, str]] = {
    "time_of_day": (kernel.DAY_TIME, "share of the UTC day at the candle's open, in [0, 1)"),
    "time_of_day_sin": (kernel.DAY_SINE, "sin(2 pi time_of_day)"),
    "time_of_day_cos": (kernel.DAY_COSINE, "cos(2 pi time_of_day)"),
    "day_of_week": (kernel.WEEK_DAY, "0 (Monday, UTC) .. 6 (Sunday)"),
    "day_of_week_sin": (kernel.WEEK_SINE, "sin(2 pi day_of_week / 7)"),
    "day_of_week_cos": (kernel.WEEK_COSINE, "cos(2 pi day_of_week / 7)"),
}
"""Of the clock alone: they have a value in gaps, too, and look back one row."""

ENDINGS = "_rel_W, _diff_W, _reldiff_W, then _pct, then _log"
_FORMS = {
    None: kernel.PLAIN,
    "rel": kernel.RATIO,
    "diff": kernel.DIFFERENCE,
    "reldiff": kernel.RELATIVE,
}


@dataclass(frozen=True, slots=True)
class Slot:
    """What the kernel computes; `series` with the columns of the source. windows: up to three."""

    kind: int
    series: tuple[Series, ...]
    rows: int
    windows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TaSpec:
    """A feature in the TA manner, as its name says.

    source: "kline", "futur" or "other". base: what it is relative to; form: kernel.PLAIN ..
    RELATIVE. clock: a calendar feature, whose slot lacks the rows of a day.
    """

    name: str
    source: str
    slot: Slot
    base: Slot | None = None
    form: int = kernel.PLAIN
    percent: bool = False
    logarithm: bool = False
    clock: bool = False

    @property
    def lookback(self) -> int:
        return max(self.slot.rows, self.base.rows if self.base is not None else 1)


_NUMBER = "(?:0|[1-9][0-9]*)"
_NAME = re.compile(
    rf"(?P<prefix>f_|o_)?(?:(?P<column>{'|'.join(sorted(KLINE_COLUMNS, key=len, reverse=True))})_)?"
    rf"(?P<function>{'|'.join(sorted(FUNCTIONS, key=len, reverse=True))})(?P<percent>{_NUMBER})?"
    rf"(?P<windows>(?:_{_NUMBER})+)(?P<endings>.*)"
)
_ENDINGS = re.compile(
    rf"(?:_(?P<form>rel|diff|reldiff)(?P<base>(?:_{_NUMBER})+))?(?P<pct>_pct)?(?P<log>_log)?"
)
_SOURCES = {None: "kline", "f_": "futur", "o_": "other"}


def is_ta(name: str) -> bool:
    """Whether the name has a form of this file, right or wrong in its details."""
    return name in CALENDAR or _NAME.fullmatch(name) is not None


def parse(name: str, max_window: int) -> TaSpec:
    """What a name means for which `is_ta` holds.

    Raises:
        Usage: a window or an ending that the function does not have, or a column that is not its.
    """
    if name in CALENDAR:
        return TaSpec(name, "kline", Slot(CALENDAR[name][0], (), 1, ()), clock=True)
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(name)
    function = FUNCTIONS[match["function"]]
    column, source = match["column"], _SOURCES[match["prefix"]]
    if function.of_any_column and column is None:
        raise Usage(
            f"feature {name!r}: {match['function']} is of a column; write it before, such as"
            f" close_{match['function']}{match['windows']}"
        )
    if not function.of_any_column and column not in (None, "close"):
        raise Usage(
            f"feature {name!r}: {match['function']} has its own columns; write"
            f" {match['prefix'] or ''}{match['function']}{match['windows']}"
        )
    if function.needs_other:
        if source != "kline":
            raise Usage(
                f"feature {name!r}: {match['function']} compares this symbol's spot candles with"
                f" the other's; write {name[2:]}"
            )
        source = "other"
    windows = [int(part) for part in match["windows"][1:].split("_")]
    form = form_of(match["function"])
    if len(windows) != len(function.parameters):
        raise Usage(f"feature {name!r}: the form is {form}")
    if (match["percent"] is not None) != function.percent:
        raise Usage(f"feature {name!r}: the form is {form}")
    percent = int(match["percent"] or 0)
    if percent > 100:
        raise Usage(f"feature {name!r}: a quantile is of 0 to 100 percent")

    endings = _ENDINGS.fullmatch(match["endings"])
    if endings is None:
        raise Usage(f"feature {name!r}: the endings are {ENDINGS}, not {match['endings']!r}")
    prefix = OTHER if source == "other" and not function.needs_other else ""

    def slot(of: list[int]) -> Slot:
        for window, least in zip(of, function.least, strict=True):
            if not least <= window <= max_window:
                raise Usage(
                    f"feature {name!r}: the window of {form} is {least} to {max_window} rows"
                )
        rows = function.rows(*of)
        if rows > max_window:
            raise Usage(
                f"feature {name!r} looks back {rows} rows ({function.lookback}); {max_window} is"
                " the most"
            )
        used = (of[0], percent) if function.percent else tuple(of)
        return Slot(function.kind, series, rows, used)

    def resolved(one: Series) -> Series:
        own = {ANY: str(column), OTHER: f"{OTHER}{column}"}
        return Series(one.recipe, tuple(prefix + own.get(c, c) for c in one.columns))

    series = tuple(resolved(one) for one in function.series)
    return TaSpec(
        name=name,
        source=source,
        slot=slot(windows),
        base=None if endings["form"] is None else slot(_base(name, windows, endings, form)),
        form=_FORMS[endings["form"]],
        percent=endings["pct"] is not None,
        logarithm=endings["log"] is not None,
    )


def _base(name: str, windows: list[int], endings: re.Match[str], form: str) -> list[int]:
    """The windows that an ending names: all of them, or the first and the others in proportion.

    Raises:
        Usage: too few or too many, or the others come out as no whole rows.
    """
    given = [int(part) for part in endings["base"][1:].split("_")]
    if len(given) == len(windows):
        return given
    ending = f"_{endings['form']}"
    if len(given) > 1:
        raise Usage(
            f"feature {name!r}: {form} has {len(windows)} windows, and behind {ending} stand "
            f"{len(given)}"
        )
    if any(window * given[0] % (windows[0] or 1) for window in windows):
        nearest = "_".join(str(round(window * given[0] / windows[0])) for window in windows)
        raise Usage(
            f"feature {name!r}: with {given[0]} for {windows[0]} the other windows are no whole "
            f"rows; write all of them, such as {ending}_{nearest}"
        )
    return [window * given[0] // (windows[0] or 1) for window in windows]


def form_of(function: str) -> str:
    """The name with letters for its numbers: COLUMN_SMA_W."""
    known = FUNCTIONS[function]
    column = "" if not known.of_any_column else "COLUMN_"
    share = "Q" if known.percent else ""
    return f"{column}{function}{share}_{'_'.join(known.parameters)}"


def forms() -> list[str]:
    """Every function for every column, numbers as W: where an unknown name's nearest is sought."""
    found = list(CALENDAR)
    for name, function in FUNCTIONS.items():
        tail = f"{name}{'W' if function.percent else ''}{'_W' * len(function.parameters)}"
        columns = [f"{column}_" for column in KLINE_COLUMNS] if function.of_any_column else [""]
        found += [f"{column}{tail}" for column in columns]
    return found


def example(form: str) -> str:
    """A name of one of `forms`."""
    for name, function in FUNCTIONS.items():
        if function.example and re.search(rf"(^|_){name}W?_", form):
            column = form[: form.index(name)]
            return column + function.example.removeprefix("close_")
    return re.sub(r"_W(?=_|$)", "_20", form)
