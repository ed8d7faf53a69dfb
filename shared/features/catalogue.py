"""Every family of features with its formula and look-back, for `trainer features --list`."""

from dataclasses import asdict, dataclass
from pathlib import Path

from shared.features import ta
from shared.features.families import DEPTH_FAMILIES, KLINE_FAMILIES, SOURCES
from shared.features.user import read_user_file

_RELATIVE = "100 * (m_W - m_base) / m_base, m = "
_FORMULAS = {
    "close": _RELATIVE + "volume-weighted mean close, mean(close * volume) / mean(volume)",
    "close_std": _RELATIVE + "population standard deviation of close",
    "volume": _RELATIVE + "mean volume",
    "span": _RELATIVE + "mean of high - low",
    "trades": _RELATIVE + "mean number of trades",
    "tb_base": _RELATIVE + "mean of taker_base / volume",
    "tb_quote": _RELATIVE + "mean of taker_quote / quote_volume",
    "close_area": "sum(d) / sum(|d|), d = close - newest close, over W rows; in [-1, 1]",
    "close_trend": "slope per row of the least-squares line through W closes",
}
_NOUNS = {"kline": "candles", "futur": "futures candles", "other": "the other symbol's candles"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One family. form: the name with letters for its numbers; lookback: in rows, as a formula."""

    form: str
    formula: str
    lookback: str
    example: str

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def catalogue(user_file: Path | None = None) -> list[Entry]:
    """The seed's families, those in the TA manner, the clock's, and the user's own.

    Raises:
        Usage: a fault in the user's file.
    """
    found = []
    for source in SOURCES:
        for family, of in zip(source.families, _plain_families(source.name), strict=True):
            formula = _FORMULAS.get(of, _RELATIVE + f"mean of {of}")
            if source.name in ("futur", "other"):
                formula += f"; of {_NOUNS[source.name]}"
            found.append(
                Entry(
                    form=f"{source.prefix}{family.prefix}_W",
                    formula=formula.replace("m_base", f"m_{source.base}"),
                    lookback=f"max(W, {source.base})" if family.relative else "W",
                    example=f"{source.prefix}{family.prefix}_20",
                )
            )
    for name, function in ta.FUNCTIONS.items():
        example = function.example or (
            f"close_{name}_20" if function.of_any_column else f"{name}_20"
        )
        found.append(Entry(ta.form_of(name), function.formula, function.lookback, example))
    ends = {
        "_rel_B": "x / b, b being the same function at window B (several windows: B the first, "
        "the others in proportion, or all written: close_MACD_12_26_rel_60_120)",
        "_diff_B": "x - b",
        "_reldiff_B": "(x - b) / b",
        "_pct": "100 * x; behind the endings above",
        "_log": "ln x; behind all others",
    }
    for ending, formula in ends.items():
        found.append(
            Entry(
                form=f"COLUMN_FUNCTION_W{ending}",
                formula=formula,
                lookback="the longer of both" if ending.endswith("_B") else "that of x",
                example=f"close_SMA_20{ending.replace('B', '60')}",
            )
        )
    found += [Entry(name, formula, "1", name) for name, (_, formula) in ta.CALENDAR.items()]
    if user_file is not None:
        found += [
            Entry(name, f"{one.path}:{one.line}", str(one.lookback), name)
            for name, one in read_user_file(user_file)[0].items()
        ]
    return found


def _plain_families(source: str) -> list[str]:
    families = DEPTH_FAMILIES if source == "depth" else KLINE_FAMILIES
    return [family.prefix for family in families]
