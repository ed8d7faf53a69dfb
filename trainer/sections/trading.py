"""What trading on the score gives: thresholds, the account, its trades."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from shared.klines import KLINE_COLUMNS
from shared.releases import Thresholds
from trainer import figures
from trainer.evidence import Backtest, Evidence, Signals, SymbolEvidence
from trainer.page import Picture, Section, Table
from trainer.rasters import Raster
from trainer.sections.draft import Draft
from trainer.sections.words import (
    counted,
    level,
    mapping,
    minute,
    number,
    percent,
    run_it,
    values_at,
    when,
    whole,
)

_TRADES_SHOWN = 15
_TRADES_DRAWN = 40
_FEW_TRADES = 30
_PBO_HIGH = 0.5
_DIRECTIONS = {"long": 1, "short": -1, "both": 0}
_DIRECTION_WORDS = {"long": "long only", "short": "short only", "both": "long and short"}


def surface(evidence: Evidence, draft: Draft) -> Section:
    """What every pair of thresholds would have earned, and how much of the best is luck."""
    parts: list[Table | Picture | str] = []
    missing = []
    for one in evidence.symbols:
        if one.signals is None:
            missing.append(run_it(one, "No search over thresholds", "signals"))
            continue
        _same_scores(draft, one, "threshold search", one.signals.rows)
        parts += _surface_parts(one.symbol, one.signals, evidence.manifest.thresholds, draft)
    return Section(
        id="thresholds",
        title="Threshold surface",
        intro=(
            "The trading rules run with every pair of thresholds over the out-of-sample score, net "
            "of fees and slippage, orders filled in the next candle."
        ),
        parts=parts,
        missing=missing,
    )


def _surface_parts(
    symbol: str, signals: Signals, own: Thresholds, draft: Draft
) -> Iterator[Table | Picture | str]:
    summary = signals.summary
    direction = str(summary["direction"])
    found = mapping(mapping(summary, "directions"), direction)
    best, robust = found.get("best"), found.get("robust")
    marks = {
        name: (point["buy"], point["sell"])
        for name, point in (("best pair", best), ("robust pair", robust))
        if point is not None
    }
    grid = signals.grid
    here = grid["direction"] == _DIRECTIONS[direction]
    buy, sell = np.unique(grid["buy"][here]), np.unique(grid["sell"][here])
    if buy[0] <= own.buy <= buy[-1] and sell[0] <= own.sell <= sell[-1]:
        marks["this release"] = (own.buy, own.sell)

    def drawn(column: str, factor: float, unit: str) -> Figure:
        values = np.full((len(buy), len(sell)), np.nan)
        rows = np.searchsorted(buy, grid["buy"][here])
        values[rows, np.searchsorted(sell, grid["sell"][here])] = factor * grid[column][here]
        values[~np.isfinite(values)] = np.nan
        return figures.surface(buy, sell, values, marks, unit)

    words = _DIRECTION_WORDS[direction]
    gained = float(np.mean(grid["total_return"][here] > 0))
    yield draft.picture(
        f"{symbol}-surface-return",
        f"{symbol}: net return of each pair, {words}",
        lambda: drawn("total_return", 100.0, "net return (%)"),
        f"{percent(gained)} of {int(here.sum()):,} pairs gained after costs. A plateau is worth "
        "more than a peak: the robust pair is the best median among neighbours.",
        "what the best pair will earn: it was picked after the fact, among many.",
    )
    yield draft.picture(
        f"{symbol}-surface-sharpe",
        f"{symbol}: Sharpe ratio of each pair, {words}",
        lambda: drawn("sharpe", 1.0, "Sharpe ratio (a year)"),
        f"The best of this many pairs without any skill would show "
        f"{number(found.get('expected_best_sharpe'), 2)}; the best here shows "
        f"{number(best.get('sharpe') if best else None, 2)}.",
        "that pairs without a value (blank) are bad: they did not trade.",
    )
    yield Table(
        caption=f"{symbol}: pairs of thresholds, {words}",
        columns=(
            "pair",
            "buy above",
            "sell below",
            "net return",
            "round trips a month",
            "win rate",
            "profit factor",
            "Sharpe",
            "Sortino",
            "deepest drawdown",
            "exposure",
            "deflated Sharpe",
        ),
        rows=[
            (
                name,
                f"{point['buy']:g}",
                f"{point['sell']:g}",
                percent(point.get("total_return")),
                number(point.get("trades_per_month"), 1),
                percent(point.get("win_rate")),
                number(point.get("profit_factor"), 2),
                number(point.get("sharpe"), 2),
                number(point.get("sortino"), 2),
                percent(point.get("max_drawdown")),
                percent(point.get("exposure")),
                number(point.get("deflated_sharpe"), 2),
            )
            for name, point in (("best", best), ("robust", robust))
            if point is not None
        ],
    )
    forward = mapping(found, "walk_forward")
    yield Table(
        caption=f"{symbol}: thresholds chosen on all periods before, shown on the next, {words}",
        columns=(
            "from (UTC)",
            "until",
            "buy above",
            "sell below",
            "Sharpe where chosen",
            "Sharpe where shown",
            "net return",
        ),
        rows=[
            (
                minute(step["first"]),
                minute(step["last"]),
                level(step.get("buy")),
                level(step.get("sell")),
                number(step.get("sharpe_before"), 2),
                number(step.get("sharpe"), 2),
                percent(step.get("total_return")),
            )
            for step in forward.get("steps", ())
        ],
    )
    yield Table(
        caption=f"{symbol}: is the best pair luck?",
        columns=(
            "direction",
            "pairs",
            "with enough round trips",
            "best Sharpe",
            "deflated Sharpe (at least 0.95 wanted)",
            "probability of overfitting (at most 0.5 wanted)",
            "Sharpe, chosen beforehand",
            "net return, chosen beforehand",
        ),
        rows=[
            (
                _DIRECTION_WORDS.get(name, name),
                whole(each.get("points")),
                whole(each.get("candidates")),
                number(mapping(each, "best").get("sharpe"), 2),
                number(each.get("deflated_sharpe"), 2),
                number(each.get("overfitting"), 2),
                number(mapping(each, "walk_forward").get("sharpe"), 2),
                percent(mapping(each, "walk_forward").get("total_return")),
            )
            for name, each in mapping(summary, "directions").items()
        ],
    )
    for name, each in mapping(summary, "directions").items():
        yield f"{_DIRECTION_WORDS.get(name, name).capitalize()}: {each.get('verdict')}."
    if found.get("lucky") or best is None:
        draft.warn(f"{symbol}, thresholds, {words}: {found.get('verdict')}.")
    overfitting = found.get("overfitting")
    if overfitting is not None and overfitting > _PBO_HIGH:
        draft.warn(
            f"{symbol}: the thresholds are likely overfitted: with a probability of "
            f"{percent(overfitting, 0)} the best pair of one half of the data is below the median "
            "of the other."
        )
    if robust is not None and (robust["buy"], robust["sell"]) != (own.buy, own.sell):
        draft.warn(
            f"{symbol}: this release signals above {own.buy:g} and below {own.sell:g}, the robust "
            f"pair is {robust['buy']:g} and {robust['sell']:g}."
        )


def equity(evidence: Evidence, draft: Draft) -> Section:
    """The account of the backtest against buy and hold."""
    parts: list[Table | Picture | str] = []
    missing = []
    for one in evidence.symbols:
        if one.backtest is None:
            missing.append(run_it(one, "No account", "backtest"))
            continue
        _same_scores(draft, one, "backtest", one.backtest.rows)
        parts += _equity_parts(one, one.backtest, evidence.manifest.thresholds, draft)
    return Section(
        id="equity",
        title="Equity and drawdown",
        intro=(
            "The live trading rules themselves over the out-of-sample score, net of fees and "
            "slippage, orders filled in the next candle."
        ),
        parts=parts,
        missing=missing,
    )


def _equity_parts(
    one: SymbolEvidence, backtest: Backtest, own: Thresholds, draft: Draft
) -> Iterator[Table | Picture | str]:
    summary, rows = backtest.summary, backtest.rows
    found, held = mapping(summary, "performance"), mapping(summary, "buy_and_hold")
    rules, costs = mapping(summary, "rules"), mapping(summary, "costs")
    times = rows["open_time_ms"]
    lines = [
        figures.Line(name="these rules", times=times, values=rows["equity"]),
        figures.Line(name="buy and hold", times=times, values=rows["buy_and_hold"]),
    ]
    if one.signals is not None:
        chosen = one.signals.rows
        lines.append(
            figures.Line(
                name="thresholds chosen beforehand",
                times=chosen["open_time_ms"],
                values=chosen["equity"],
            )
        )
    gain, hold = found["total_return"], held["total_return"]
    trades = int(found["trades"])
    yield draft.broad(
        f"{one.symbol}-equity",
        f"{one.symbol}: gain and drawdown",
        functools.partial(_equity_figure, lines),
        f"{percent(gain)} in {counted(trades, 'round trip')} from {when(int(times[0]))} to "
        f"{when(int(times[-1]))} UTC, deepest drawdown {percent(found['max_drawdown'])}; buy and "
        f"hold {percent(hold)}, {percent(held['max_drawdown'])}. Fee "
        f"{level(_percent(costs, 'fee'))} %, slippage {level(_percent(costs, 'slippage'))} % of "
        "each trade.",
        "what is to come: one history, one market, and an order book that takes every order whole.",
    )
    yield Table(
        caption=f"{one.symbol}: figures of the account",
        columns=("measure", "these rules", "buy and hold"),
        rows=[
            ("net return", percent(gain), percent(hold)),
            ("a year (CAGR)", percent(found.get("cagr")), percent(held.get("cagr"))),
            (
                "Sharpe ratio (a year)",
                number(found.get("sharpe"), 2),
                number(held.get("sharpe"), 2),
            ),
            (
                "Sortino ratio (a year)",
                number(found.get("sortino"), 2),
                number(held.get("sortino"), 2),
            ),
            ("deepest drawdown", percent(found["max_drawdown"]), percent(held["max_drawdown"])),
            ("round trips", whole(trades), "–"),
            ("round trips a month", number(found.get("trades_per_month"), 1), "–"),
            ("win rate", percent(found.get("win_rate")), "–"),
            ("profit factor", number(found.get("profit_factor"), 2), "–"),
            ("exposure", percent(found.get("exposure")), percent(1.0)),
            ("turnover (accounts a year)", number(found.get("turnover"), 1), "–"),
            ("fees (quote units)", number(found.get("fees"), 2), "–"),
        ],
    )
    yield Table(
        caption=f"{one.symbol}: the same rules at other fees",
        columns=("fee", "slippage", "net return", "Sharpe"),
        rows=[
            (
                percent(each["fee"], 3),
                percent(each.get("slippage"), 3),
                percent(each.get("total_return")),
                number(each.get("sharpe"), 2),
            )
            for each in summary.get("by_fee", ())
        ],
    )
    if backtest.trades:
        last = backtest.trades[-_TRADES_SHOWN:]
        yield Table(
            caption=(
                f"{one.symbol}: the last {len(last)} of {counted(len(backtest.trades), 'trade')} "
                "(all are in trades.csv)"
            ),
            columns=(
                "entry (UTC)",
                "side",
                "price",
                "why",
                "exit (UTC)",
                "price",
                "why",
                "gain on the account",
            ),
            rows=[
                (
                    minute(trade["entry_time"]),
                    trade["side"],
                    f"{float(trade['entry_price']):,.6g}",
                    trade["entry_reason"],
                    minute(trade["exit_time"]),
                    f"{float(trade['exit_price']):,.6g}",
                    trade["exit_reason"],
                    percent(float(trade["profit_share"]), 2),
                )
                for trade in last
            ],
            texts=frozenset({1, 3, 6}),
        )
    if gain <= 0:
        draft.warn(f"{one.symbol}: the backtest loses after costs ({percent(gain)}).")
    if gain < hold:
        draft.warn(
            f"{one.symbol}: the backtest gains less ({percent(gain)}) than buying and holding "
            f"({percent(hold)})."
        )
    if trades < _FEW_TRADES:
        draft.warn(
            f"{one.symbol}: {counted(trades, 'round trip')} in the backtest: too few to tell skill "
            "from luck."
        )
    if (rules.get("buy"), rules.get("sell")) != (own.buy, own.sell):
        draft.warn(
            f"{one.symbol}: the backtest buys above {level(rules.get('buy'))} and sells below "
            f"{level(rules.get('sell'))}, this release signals above {own.buy:g} and below "
            f"{own.sell:g}."
        )


def _equity_figure(lines: Sequence[figures.Line], wide: bool) -> Figure:
    return figures.equity(lines, wide=wide)


def _percent(costs: Mapping[str, Any], name: str) -> float | None:
    """A share as percent, rounded so that it reads well."""
    return None if costs.get(name) is None else round(100 * costs[name], 6)


def _same_scores(
    draft: Draft, one: SymbolEvidence, what: str, rows: Mapping[str, npt.NDArray[Any]]
) -> None:
    """Warns where rows were traded on other scores than the walk-forward's."""
    rolling = one.rolling
    if rolling is None:
        draft.warn(
            f"{one.symbol}: the {what} has no walk-forward rows beside it: its scores may be of "
            "candles that the models were trained on (in-sample)."
        )
        return
    expected = values_at(rows["open_time_ms"], rolling.times, rolling.score)
    if not np.array_equal(expected, rows["score"], equal_nan=True):
        draft.warn(
            f"{one.symbol}: the {what} ran on other scores than the walk-forward rows hold now; "
            "they may be older, or in-sample. Run it again."
        )


def trades_picture(
    symbol: str, raster: Raster, trades: Sequence[Mapping[str, str]], draft: Draft
) -> Picture:
    """The candles under the last trades."""
    last = trades[-_TRADES_DRAWN:]
    entry = np.array([_epoch_ms(trade["entry_time"]) for trade in last])
    left = np.array([_epoch_ms(trade["exit_time"]) for trade in last])
    start = max(0, int(np.searchsorted(raster.open_time_ms, entry[0])) - 30)
    stop = int(np.searchsorted(raster.open_time_ms, left[-1])) + 31
    part = raster.rows(start, min(stop, len(raster)))
    prices = {
        name: part.kline[:, KLINE_COLUMNS.index(name)] for name in ("open", "high", "low", "close")
    }
    paid = np.array([float(trade["entry_price"]) for trade in last])
    got = np.array([float(trade["exit_price"]) for trade in last])
    is_open = np.array([trade["exit_reason"] == "open at the end" for trade in last])
    marks = [figures.Marks(name="exit", times=left[~is_open], prices=got[~is_open], marker="x")]
    for side, marker in (("long", "^"), ("short", "v")):
        these = np.array([trade["side"] == side for trade in last])
        if these.any():
            marks.append(
                figures.Marks(
                    name=f"{side} entry", times=entry[these], prices=paid[these], marker=marker
                )
            )
    rows = figures.Candles(times=part.open_time_ms, **prices)

    def draw(wide: bool) -> Figure:
        return figures.candles(rows, marks, None, {}, wide=wide)

    gained = sum(float(trade["profit"]) > 0 for trade in last)
    return draft.broad(
        f"{symbol}-trades",
        f"{symbol}: the last {counted(len(last), 'trade')} of the backtest",
        draw,
        f"{gained} of {len(last)} gained after costs. Marks stand at the price paid or got, "
        "slippage included, in the candle that filled the order.",
        "how the trades before these went: the equity figure does.",
    )


def _epoch_ms(iso_time: str) -> int:
    return int(datetime.fromisoformat(iso_time).timestamp() * 1000)
