"""What two runs over the same candles have in common and what not, as values and as text."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deploy.replay_outcome import Outcome, Side
from deploy.screen import columns
from shared.times import iso
from trainer.backtest import Trade

_SHOWN = 20
_FIGURES = {
    "total_return": "return",
    "max_drawdown": "deepest drawdown",
    "trades": "round trips",
    "win_rate": "win rate",
    "sharpe": "Sharpe (a year)",
    "exposure": "exposure",
    "fees": "fees",
}


def report(outcome: Outcome) -> dict[str, Any]:
    """Ready for JSON."""
    recorded, replayed = outcome.recorded, outcome.replayed
    pairs = list(zip(recorded.decisions, replayed.decisions, strict=True))
    both = [(one, two) for one, two in pairs if one is not None and two is not None]
    moved = [abs(one.score - two.score) for one, two in both if not _is_same(one.score, two.score)]
    other_sides = Counter(
        f"{one.side or 'none'} -> {two.side or 'none'}" for one, two in both if one.side != two.side
    )
    changed = [
        {
            "time": iso(int(time_ms)),
            "recorded": _told(one),
            "replayed": _told(two),
        }
        for time_ms, (one, two) in zip(recorded.market.open_time_ms, pairs, strict=True)
        if one is not None
        and two is not None
        and (one.side, one.invalid) != (two.side, two.invalid)
    ]
    trades = _trades(recorded.trading.trades, replayed.trading.trades)
    ends = [float(side.trading.equity[-1]) for side in (recorded, replayed)]
    return {
        "symbol": outcome.symbol,
        "interval": outcome.interval,
        "first": iso(int(recorded.market.open_time_ms[0])),
        "last": iso(int(recorded.market.open_time_ms[-1])),
        "rows": len(pairs),
        "equal": None if outcome.unequal is None else outcome.unequal == 0,
        "unequal": outcome.unequal,
        "first_difference": outcome.first or None,
        "signals": {
            "compared": len(both),
            "other_score": len(moved),
            "largest_score_change": max((one for one in moved if math.isfinite(one)), default=0.0),
            "other_side": sum(other_sides.values()),
            "sides": dict(other_sides.most_common()),
            "changed": changed[:_SHOWN],
        },
        "orders": trades,
        "profit": {
            "capital": outcome.capital,
            "recorded": ends[0] - outcome.capital,
            "replayed": ends[1] - outcome.capital,
            "difference": ends[1] - ends[0],
        },
        "recorded": _of(recorded),
        "replayed": _of(replayed),
        "notes": list(outcome.notes),
    }


def _is_same(one: float, two: float) -> bool:
    return one == two or (one != one and two != two)  # noqa: PLR0124 - NaN


def _told(decision: Any) -> dict[str, Any]:
    score = decision.score if decision.score == decision.score else None
    return {"score": score, "side": decision.side, "invalid": decision.invalid}


def _of(side: Side) -> dict[str, Any]:
    there = [one for one in side.decisions if one is not None]
    releases = Counter(one.release for one in there)
    return {
        "name": side.name,
        "releases": dict(releases),
        "signals": len(there),
        "scored": sum(one.score == one.score for one in there),
        "buy": sum(one.side == "BUY" for one in there),
        "sell": sum(one.side == "SELL" for one in there),
        "thresholds": {"buy": side.rules.buy, "sell": side.rules.sell},
        "performance": dict(side.performance),
    }


def _trades(one: Sequence[Trade], two: Sequence[Trade]) -> dict[str, Any]:
    """Round trips by when and which way they begin, and how they end."""
    first = {(trade.entry_time, trade.side): trade for trade in one}
    second = {(trade.entry_time, trade.side): trade for trade in two}
    common = first.keys() & second.keys()
    same = {
        key
        for key in common
        if (first[key].exit_time, first[key].exit_reason)
        == (second[key].exit_time, second[key].exit_reason)
    }
    return {
        "recorded": len(one),
        "replayed": len(two),
        "same": len(same),
        "other_exit": len(common) - len(same),
        "only_recorded": [_trade(first[key]) for key in sorted(first.keys() - common)][:_SHOWN],
        "only_replayed": [_trade(second[key]) for key in sorted(second.keys() - common)][:_SHOWN],
    }


def _trade(trade: Trade) -> dict[str, Any]:
    return {
        "side": trade.side,
        "entry_time": trade.entry_time,
        "entry_price": trade.entry_price,
        "exit_time": trade.exit_time,
        "exit_price": trade.exit_price,
        "exit_reason": trade.exit_reason,
        "profit": trade.profit,
    }


def text(found: Mapping[str, Any]) -> str:
    """For a person."""
    lines = [
        f"{found['symbol']} {found['interval']}, {found['first']} .. {found['last']}, "
        f"{found['rows']:,} candles"
    ]
    if found["equal"] is True:
        lines.append(
            f"equal: all {found['signals']['compared']:,} recorded signals were computed again "
            "from the candles, features, outputs and scores with the same bits"
        )
    elif found["equal"] is False:
        lines.append(f"NOT EQUAL: {found['unequal']:,} candles; first {found['first_difference']}")
    one, two = found["recorded"], found["replayed"]
    rows = [["", one["name"], two["name"]]]
    for name in ("scored", "buy", "sell"):
        rows.append([f"signals: {name}", f"{one[name]:,}", f"{two[name]:,}"])
    rows.append(["release", _releases(one), _releases(two)])
    rows.append(["buy above, sell below", *(_thresholds(side) for side in (one, two))])
    for name, shown in _FIGURES.items():
        values = [side["performance"][name] for side in (one, two)]
        rows.append([shown, *(_figure(name, value) for value in values)])
    profit = found["profit"]
    rows.append(["profit", f"{profit['recorded']:,.2f}", f"{profit['replayed']:,.2f}"])
    lines += ["", columns(rows)]
    signals, orders = found["signals"], found["orders"]
    lines += [
        "",
        f"{signals['other_score']:,} of {signals['compared']:,} signals have another score (by up "
        f"to {signals['largest_score_change']:.4g}), {signals['other_side']:,} another side",
        *(f"  {count:,} x {change}" for change, count in signals["sides"].items()),
        f"{orders['same']:,} round trips are the same, {orders['other_exit']:,} end differently, "
        f"{orders['recorded'] - orders['same'] - orders['other_exit']:,} are gone, "
        f"{orders['replayed'] - orders['same'] - orders['other_exit']:,} are new (with one that is "
        "still open)",
        f"profit {profit['difference']:+,.2f} on {profit['capital']:,.0f}, fees and slippage "
        "included; what trading on past candles earns says little about the next ones",
        *(f"note: {note}" for note in found["notes"]),
    ]
    return "\n".join(lines)


def _releases(side: Mapping[str, Any]) -> str:
    return ", ".join(side["releases"]) or "none"


def _thresholds(side: Mapping[str, Any]) -> str:
    return f"{side['thresholds']['buy']:+g}, {side['thresholds']['sell']:+g}"


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return "none"
    if name in ("total_return", "max_drawdown", "win_rate", "exposure"):
        return f"{100 * value:.2f} %"
    return f"{value:,}" if isinstance(value, int | np.integer) else f"{value:,.2f}"
