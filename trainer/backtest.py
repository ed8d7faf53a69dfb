"""`trainer backtest`: the trading rules that run live, over out-of-sample scores.

`shared.rules` goes through the candles one by one, as it does live; nothing is computed another
way. Written to `{symbol}-{interval}-backtest/`: in `_about` `trades.csv` (every round trip with its
reasons) and `backtest.json`; monthly files of open_time_ms, close, score, position (-1, 0, +1),
quantity, cash, equity, buy_and_hold and drawdown at each close.

The account is valued at the last close known; a position still open at the end is valued there,
too, and is no round trip. Buy-and-hold buys at the open after the first score, with the same costs,
for all the capital.
"""

import argparse
import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.config import Settings
from shared.rules import (
    ENTRY,
    NAN,
    NONE,
    Bar,
    Costs,
    Fill,
    Rules,
    State,
    start,
    step,
    text_of,
)
from shared.times import interval_ms, iso
from trainer import grid, performance
from trainer.grid import Market
from trainer.performance import Performance
from trainer.progress import Bar as ProgressBar
from trainer.progress import Progress
from trainer.scored import add_options, rules_and_costs, scored, threads, write

Floats = npt.NDArray[np.float64]

_TOLD_EVERY = 50_000
# Fees beside the configured one at which the same rules are run, to show what they cost.
_FEES = (0.0, 0.0004, 0.001, 0.002)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trade:
    """A round trip, or a position still open at the end (exit_reason "open at the end").

    Prices include slippage. quantity: base units that were held. fees, profit: quote units, profit
    after all fees (of an open one: valued at the last close). profit_share: of the account before.
    """

    side: str
    entry_time: str
    entry_price: float
    entry_reason: str
    exit_time: str
    exit_price: float
    exit_reason: str
    quantity: float
    candles: int
    fees: float
    profit: float
    profit_share: float
    equity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What the rules did: each column (n,), at the closes."""

    trades: list[Trade]
    cash: Floats
    quantity: Floats
    equity: Floats
    traded: float
    fees: float
    state: State


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser)


def run(settings: Settings, args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    outputs = []
    for one in scored(settings, args, "backtest", progress):
        rules, costs = rules_and_costs(settings, interval_ms(one.interval))
        market, capital = one.market, settings.trainer.backtest.capital
        with progress.bar(f"backtest of {one.symbol} {one.interval}", len(market)) as bar:
            done = replay(market, rules, costs, capital, bar)
        held = buy_and_hold(market, costs, capital)
        report: dict[str, Any] = {
            "symbol": one.symbol,
            "interval": one.interval,
            "rows": len(market),
            "scored": int((~np.isnan(market.score)).sum()),
            "gaps": int(np.isnan(market.close).sum()),
            "first": iso(int(market.open_time_ms[0])),
            "last": iso(int(market.open_time_ms[-1])),
            "capital": capital,
            "equity": float(done.equity[-1]),
            "buy_and_hold_equity": float(held[-1]),
            "open_at_end": float(done.quantity[-1]),
            "performance": measured(market, done, capital).as_dict(),
            "buy_and_hold": _of_holding(market, held, capital),
            "reasons": _reasons(done.trades),
            "by_fee": by_fee(market, rules, costs, capital, threads(settings)),
            "rules": plain(rules._asdict()),
            "costs": costs._asdict(),
        }
        csv_told = progress if args.csv else None
        wrote = _write(one.folder, market, done, held, report, csv_told)
        outputs.append(report | {"read": one.read, "wrote": wrote})
    return {
        "command": "backtest",
        "rows": sum(output["rows"] for output in outputs),
        "trades": sum(output["performance"]["trades"] for output in outputs),
        "outputs": outputs,
    }


def summary(result: Mapping[str, Any]) -> str:
    parts = []
    for one in result["outputs"]:
        found = one["performance"]
        still = " and a position that is open still" if one["open_at_end"] else ""
        parts.append(
            f"{one['symbol']} {100 * found['total_return']:+.2f} % in {found['trades']:,} round "
            f"trips{still} (buy and hold {100 * one['buy_and_hold']['total_return']:+.2f} %), "
            f"Sharpe {number(found['sharpe'])}, drawdown {100 * found['max_drawdown']:.1f} %, in "
            f"{one['wrote'][0]}"
        )
    return f"backtest: {'; '.join(parts)}"


def replay(
    market: Market,
    rules: Rules,
    costs: Costs,
    capital: float,
    bar: ProgressBar | None = None,
) -> Run:
    """The rules candle by candle, as the trader runs them."""
    state = start(capital)
    rows = len(market)
    cash, quantity = np.empty(rows), np.empty(rows)
    trades: list[Trade] = []
    opened: tuple[int, Fill, str, float] | None = None
    traded = fees = 0.0
    columns = (market.open, market.high, market.low, market.close, market.score, market.volatility)
    candles = zip(market.open_time_ms.tolist(), *(c.tolist() for c in columns), strict=True)
    decided = NAN  # the score at the close where the orders that now stand were decided
    for row, values in enumerate(candles):
        candle = Bar(*values)
        before = state
        state, *fills = step(before, candle, rules, costs)
        for fill in fills:
            if fill.reason == NONE:
                continue
            traded += fill.price * fill.quantity
            fees += fill.fee
            reason = text_of(fill, rules, decided)
            if fill.reason == ENTRY:
                staked = before.cash if before.quantity == 0.0 else trades[-1].equity
                opened = (row, fill, reason, staked)
            elif opened is not None:
                trades.append(_trade(market, opened, row, fill, reason))
                opened = None
        if candle.close == candle.close:
            decided = candle.score
        cash[row], quantity[row] = state.cash, state.quantity
        if bar is not None and row % _TOLD_EVERY == _TOLD_EVERY - 1:
            bar.advance(_TOLD_EVERY)
    worth = np.where(quantity == 0, cash, cash + quantity * market.last_close)
    if opened is not None:
        last = float(market.last_close[-1])
        side = -1 if state.quantity > 0 else 1
        profit = float(worth[-1]) - opened[3]
        end = Fill(NONE, side, last, abs(state.quantity), 0.0, profit, float(worth[-1]))
        trades.append(_trade(market, opened, rows - 1, end, "open at the end"))
    return Run(
        trades=trades,
        cash=cash,
        quantity=quantity,
        equity=worth,
        traded=traded,
        fees=fees,
        state=state,
    )


def _trade(
    market: Market, opened: tuple[int, Fill, str, float], row: int, left: Fill, reason: str
) -> Trade:
    since, entered, why, staked = opened
    return Trade(
        side="long" if entered.side > 0 else "short",
        entry_time=iso(int(market.open_time_ms[since])),
        entry_price=entered.price,
        entry_reason=why,
        exit_time=iso(int(market.open_time_ms[row])),
        exit_price=left.price,
        exit_reason=reason,
        quantity=left.quantity,
        candles=row - since,
        fees=entered.fee + left.fee,
        profit=left.profit,
        profit_share=left.profit / staked,
        equity=left.cash,
    )


def measured(market: Market, done: Run, capital: float) -> Performance:
    """The run's figures."""
    closed = [trade.profit for trade in done.trades if trade.exit_reason != "open at the end"]
    return performance.measure(
        done.equity,
        market.day_ends,
        capital,
        days(market),
        np.array(closed, np.float64),
        int(np.count_nonzero(done.quantity)),
        done.traded,
        done.fees,
    )


def days(market: Market) -> float:
    """Length of the data in days, the last candle included."""
    step_ms = int(market.open_time_ms[1] - market.open_time_ms[0]) if len(market) > 1 else 0
    return float(market.open_time_ms[-1] - market.open_time_ms[0] + step_ms) / grid.DAY_MS


def buy_and_hold(market: Market, costs: Costs, capital: float) -> Floats:
    """(n,) worth of all capital spent at the first open after the first score, and held."""
    worth = np.full(len(market), capital)
    later = np.flatnonzero(~np.isnan(market.open))
    later = later[later > 0]
    if len(later):
        first = int(later[0])
        price = market.open[first] * (1.0 + costs.slippage)
        if costs.from_received:
            quantity = capital / price * (1.0 - costs.fee)
        else:
            quantity = capital / (price * (1.0 + costs.fee))
        worth[first:] = quantity * market.last_close[first:]
    return worth


def _of_holding(market: Market, worth: Floats, capital: float) -> dict[str, float | None]:
    daily = performance.daily_returns(worth[market.day_ends], capital)
    return {
        "total_return": float(worth[-1] / capital - 1),
        "cagr": performance.known(performance.cagr(float(worth[-1] / capital), days(market))),
        "sharpe": performance.known(float(performance.sharpe(daily))),
        "sortino": performance.known(float(performance.sortino(daily))),
        "max_drawdown": performance.max_drawdown(worth, capital),
    }


def by_fee(
    market: Market, rules: Rules, costs: Costs, capital: float, workers: int
) -> list[dict[str, float | None]]:
    """Return and Sharpe of the same rules at other fees (and no slippage where there is no fee)."""
    point = np.array([[rules.buy, rules.sell, rules.exit_long, rules.exit_short]])
    found = []
    for fee in sorted({*_FEES, costs.fee}):
        assumed = costs._replace(fee=fee, slippage=costs.slippage if fee else 0.0)
        one = grid.search(market, point, rules, assumed, capital, workers=workers)
        daily = performance.daily_returns(one.daily[0], capital)
        found.append(
            {
                "fee": fee,
                "slippage": assumed.slippage,
                "total_return": float(one.figures[0, grid.WORTH] / capital - 1),
                "sharpe": performance.known(float(performance.sharpe(daily))),
            }
        )
    return found


def _reasons(trades: list[Trade]) -> dict[str, int]:
    """How often each kind of exit happened."""
    found: dict[str, int] = {}
    for trade in trades:
        kind = "score" if trade.exit_reason.startswith("score ") else trade.exit_reason
        found[kind] = found.get(kind, 0) + 1
    return found


def _write(
    folder: Path,
    market: Market,
    done: Run,
    held: Floats,
    report: Mapping[str, Any],
    csv_told: Progress | None,
) -> list[Path]:
    peak = np.maximum(np.maximum.accumulate(done.equity), report["capital"])
    columns = {
        "open_time_ms": market.open_time_ms,
        "close": market.close,
        "score": market.score,
        "position": np.sign(done.quantity).astype(np.int64),
        "quantity": done.quantity,
        "cash": done.cash,
        "equity": done.equity,
        "buy_and_hold": held,
        "drawdown": 1 - done.equity / peak,
    }

    def about(unfinished: Path) -> None:
        with (unfinished / "trades.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            names = list(Trade.__dataclass_fields__)
            writer.writerow(["number", *names])
            for count, trade in enumerate(done.trades, 1):
                writer.writerow([count, *(getattr(trade, name) for name in names)])
        write_json(unfinished / "backtest.json", report)

    return write(folder, columns, "backtest", about, csv_told)


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    text = json.dumps(report, indent=1, allow_nan=False, default=str)
    path.write_text(text + "\n", encoding="utf-8")


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """NaN (a rule that is off) as None."""
    return {k: None if v != v else v for k, v in values.items()}  # noqa: PLR0124 - NaN


def number(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"
