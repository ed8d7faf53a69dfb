"""`trainer signals`: a search over all pairs of thresholds, and how much of the best is luck.

Every pair of `trainer.signals.buy` and `.sell` (1,600 by default) is run by the trading rules over
out-of-sample scores, with fees, slippage and next-bar execution, for each direction. Of each pair:
return, round trips a month, win rate, profit factor, Sharpe, Sortino (daily returns, sqrt(365)),
deepest drawdown, exposure.

* **Robust choice.** A pair is judged by the median of the objective over its neighbours (a plateau,
  not a peak), among pairs with enough round trips.
* **Walk-forward.** The data is cut into periods; for each but the first the pair is chosen on all
  periods before and shown on it: one account goes through all of them, changing thresholds on the
  way. That account is what the folder's rows hold.
* **Luck.** Beside the best pair stand the deflated Sharpe ratio (the probability that its true
  Sharpe ratio is above 0, with so many tried) and the probability of backtest overfitting. Their
  trials are the pairs with enough round trips whose costs alone do not decide the result. A pair
  that does not pass both and the walk-forward is called lucky, in words.

Written to `{symbol}-{interval}-signals/`: in `_about` `grid.parquet` (a row per pair and direction)
and `signals.json`; monthly files of open_time_ms, close, score, side (+1 buy, -1 sell, 0: of the
thresholds in force), position (-1, 0, +1), equity, buy_threshold, sell_threshold; the latter two
are NaN, and nothing is held, in the first period, before anything was chosen. The thresholds are
not written into a release: copy the config lines that are printed.
"""

import argparse
import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shared import klinefiles
from shared.config import Settings, SignalSearch
from shared.errors import Failure, Usage
from shared.rules import NAN, Costs, Rules, problem_of, start
from shared.times import interval_ms, iso
from trainer import grid, performance
from trainer.backtest import buy_and_hold, days, number, plain, write_json
from trainer.grid import Grid, Market
from trainer.progress import Progress
from trainer.scored import add_options, rules_and_costs, scored, threads, write

Floats = npt.NDArray[np.float64]

DIRECTIONS = {"long": 1, "short": -1, "both": 0}
# A pair is a trial of the search for skill only where its costs take less than so much Sharpe.
_COST_SHARPE = 3.0
_DSR_ENOUGH, _PBO_ENOUGH = 0.95, 0.5
_FEWEST_DAYS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Surface:
    """The grid of one direction. buy, sell: the thresholds in the order of the grid's points.

    returns, trips: (buy x sell, days). table: columns of grid.parquet.
    """

    direction: str
    buy: Floats
    sell: Floats
    grid: Grid
    returns: Floats
    table: dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A pair of thresholds: point is its place in the grid, value what it was judged by."""

    point: int
    buy: float
    sell: float
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One step of the walk-forward; chosen on all days before `first`. None: nothing to choose."""

    first: str
    last: str
    buy: float | None
    sell: float | None
    chosen_by: float | None
    sharpe_before: float | None
    sharpe: float | None
    total_return: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser)


def run(settings: Settings, args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    outputs = []
    for one in scored(settings, args, "signals", progress):
        search = settings.trainer.signals
        rules, costs = rules_and_costs(settings, interval_ms(one.interval))
        capital = settings.trainer.backtest.capital
        days = len(one.market.day_ends)
        if days < _FEWEST_DAYS:
            raise Failure(
                f"{one.symbol}: scores of {days} days, and {_FEWEST_DAYS} are the fewest that "
                "thresholds can be chosen on and shown on others; score more candles"
            )
        if days < search.periods:
            progress.note(
                f"{one.symbol}: scores of {days} days cannot be cut into {search.periods} periods "
                f"(trainer.signals.periods): {days} it is; so few days tell little"
            )
            search = search.model_copy(update={"periods": days})
        fixed = settings.trader.rules
        rules = rules._replace(
            exit_long=NAN if fixed.exit_long is None else fixed.exit_long,
            exit_short=NAN if fixed.exit_short is None else fixed.exit_short,
        )
        directions = dict.fromkeys((*search.directions, fixed.direction))
        found = {}
        for direction in directions:
            label = f"{one.symbol} {one.interval} {direction}"
            found[direction] = surface(
                one.market, rules, costs, capital, search, direction, threads(settings),
                progress, label,
            )  # fmt: skip
        reports = {}
        for direction, each in found.items():
            own = _directed(rules, direction)
            path, steps = walk_forward(one.market, each, own, costs, capital, search)
            reports[direction] = (judged(each, steps, path, one.market, capital, search), path)
        main, path = reports[fixed.direction]
        held = buy_and_hold(one.market, costs, capital)
        report = {
            "symbol": one.symbol,
            "interval": one.interval,
            "rows": len(one.market),
            "scored": int((~np.isnan(one.market.score)).sum()),
            "first": iso(int(one.market.open_time_ms[0])),
            "last": iso(int(one.market.open_time_ms[-1])),
            "direction": fixed.direction,
            "objective": search.objective,
            "capital": capital,
            "buy_and_hold_return": float(held[-1] / capital - 1),
            "rules": plain(rules._asdict()),
            "costs": costs._asdict(),
            "config": main["config"],
            "verdict": main["verdict"],
            "lucky": main["lucky"],
            "directions": {name: report for name, (report, _) in reports.items()},
        }
        csv = progress if args.csv else None
        wrote = _write(one.folder, one.market, list(found.values()), path, report, csv)
        for name, (each_report, _) in reports.items():
            progress.note(f"{one.symbol} {name}: {each_report['verdict']}")
        if main["config"] is not None:
            progress.note(f"config lines of the robust choice: {_lines(main['config'])}")
        outputs.append(report | {"read": one.read, "wrote": wrote})
    return {
        "command": "signals",
        "rows": sum(output["rows"] for output in outputs),
        "points": sum(one["points"] for output in outputs for one in output["directions"].values()),
        "outputs": outputs,
    }


def summary(result: Mapping[str, Any]) -> str:
    parts = []
    for one in result["outputs"]:
        main = one["directions"][one["direction"]]
        chosen = main["robust"]
        if chosen is None:
            text = "no pair had enough round trips"
        else:
            text = (
                f"buy {chosen['buy']:g} sell {chosen['sell']:g}, Sharpe "
                f"{number(chosen['sharpe'])} in sample, {number(main['walk_forward']['sharpe'])} "
                f"walk-forward, {'LUCKY' if main['lucky'] else 'not lucky'} (deflated Sharpe "
                f"{number(main['deflated_sharpe'])}, overfitting {number(main['overfitting'])})"
            )
        parts.append(f"{one['symbol']} {one['direction']}: {text}, in {one['wrote'][0]}")
    return f"signals: {result['points']:,} pairs; {'; '.join(parts)}"


# --- the grid ------------------------------------------------------------------------------------


def steps_of(bounds: tuple[float, float, float]) -> Floats:
    """`(from, to, step)` as values, both ends included; the step's sign does not matter.

    Raises:
        Usage: a step of 0, or more than 1,000 values.
    """
    first, last, step = bounds
    if step == 0 or abs(last - first) / abs(step) > 1000:
        raise Usage(f"trainer.signals: {list(bounds)} is not from, to, step of a threshold")
    count = int(abs(last - first) / abs(step) + 1e-9) + 1
    values = first + np.sign(last - first) * abs(step) * np.arange(count)
    if np.abs(values).max() > 1:
        raise Usage(f"trainer.signals: thresholds of {list(bounds)} leave [-1, +1]")
    return np.asarray(np.round(values, 10))


def points_of(buy: Floats, sell: Floats, rules: Rules) -> Floats:
    """(buy x sell, 4) for `grid.search`: exits are the opposite thresholds unless rules fix them.

    rules: with exit_long, exit_short NaN where they follow the pair.
    """
    pairs = np.array([(b, s) for b in buy for s in sell])
    exit_long = pairs[:, 1] if rules.exit_long != rules.exit_long else rules.exit_long
    exit_short = pairs[:, 0] if rules.exit_short != rules.exit_short else rules.exit_short
    return np.column_stack(
        [pairs, np.broadcast_to(exit_long, len(pairs)), np.broadcast_to(exit_short, len(pairs))]
    )


def surface(
    market: Market,
    rules: Rules,
    costs: Costs,
    capital: float,
    search: SignalSearch,
    direction: str,
    workers: int,
    progress: Progress,
    label: str,
) -> Surface:
    """Runs every pair in one direction.

    Raises:
        Usage: a fixed exit threshold that lies beyond one of the pairs.
    """
    buy, sell = steps_of(search.buy), steps_of(search.sell)
    rules = _directed(rules, direction)
    points = points_of(buy, sell, rules)
    for point in points:
        problem = problem_of(rules._replace(**dict(zip(_THRESHOLDS, point.tolist(), strict=True))))
        if problem:
            raise Usage(f"trainer.signals against trader.rules: {problem}")
    with progress.bar(f"grid of {label}", len(points), "pairs") as bar:
        found = grid.search(
            market, points, rules, costs, capital, workers=workers, advance=bar.advance
        )
    returns = performance.daily_returns(found.daily, capital)
    f = found.figures
    length = days(market)
    with np.errstate(invalid="ignore", divide="ignore"):
        table: dict[str, npt.NDArray[Any]] = {
            "direction": np.full(len(points), DIRECTIONS[direction], np.int64),
            "buy": points[:, 0].copy(),
            "sell": points[:, 1].copy(),
            "total_return": f[:, grid.WORTH] / capital - 1,
            "trades": f[:, grid.TRADES].astype(np.int64),
            "trades_per_month": f[:, grid.TRADES] / length * performance.MONTH_DAYS,
            "win_rate": f[:, grid.WINS] / f[:, grid.TRADES],
            "profit_factor": f[:, grid.GAINED] / f[:, grid.LOST],
            "sharpe": performance.sharpe(returns),
            "sortino": performance.sortino(returns),
            "max_drawdown": f[:, grid.DRAWDOWN].copy(),
            "exposure": f[:, grid.HELD] / len(market),
            "fees": f[:, grid.FEES].copy(),
        }
    table["robust"] = smoothed(
        _objective(returns, search.objective), len(buy), len(sell), search.neighbourhood
    )
    return Surface(
        direction=direction, buy=buy, sell=sell, grid=found, returns=returns, table=table
    )


_THRESHOLDS = ("buy", "sell", "exit_long", "exit_short")


def _directed(rules: Rules, direction: str) -> Rules:
    return rules._replace(longs=direction != "short", shorts=direction != "long")


def _objective(returns: Floats, name: str) -> Floats:
    """(points,) what pairs are judged by; NaN without any movement."""
    if name == "sharpe":
        return performance.sharpe(returns)
    if name == "sortino":
        return performance.sortino(returns)
    return np.asarray(np.prod(1 + returns, axis=1) - 1)


def smoothed(values: Floats, buys: int, sells: int, reach: int) -> Floats:
    """Median over the neighbours up to `reach` steps away on the grid, itself included.

    NaN where a value or most of its neighbours are; at the edges there are fewer neighbours.
    """
    surface = np.full((buys + 2 * reach, sells + 2 * reach), np.nan)
    surface[reach : reach + buys, reach : reach + sells] = values.reshape(buys, sells)
    exists = np.zeros(surface.shape, bool)
    exists[reach : reach + buys, reach : reach + sells] = True
    window = (2 * reach + 1, 2 * reach + 1)
    around = np.lib.stride_tricks.sliding_window_view(surface, window).reshape(buys * sells, -1)
    there = np.lib.stride_tricks.sliding_window_view(exists, window).reshape(buys * sells, -1)
    known = ~np.isnan(around)
    enough = ~np.isnan(values) & (2 * known.sum(axis=1) > there.sum(axis=1))
    out = np.full(len(values), np.nan)
    if enough.any():
        out[enough] = np.nanmedian(around[enough], axis=1)
    return out


# --- choosing ------------------------------------------------------------------------------------


def choose(each: Surface, stop_day: int, search: SignalSearch) -> Choice | None:
    """The robust pair of the days [0, stop_day); None where no pair has enough round trips."""
    returns = each.returns[:, :stop_day]
    trades = each.grid.trips[:, :stop_day].sum(axis=1)
    value = _objective(returns, search.objective)
    value[trades < search.min_trades] = np.nan
    robust = smoothed(value, len(each.buy), len(each.sell), search.neighbourhood)
    if np.isnan(robust).all():
        return None
    point = int(np.nanargmax(robust))
    buy, sell = each.grid.points[point, :2].tolist()
    return Choice(point=point, buy=buy, sell=sell, value=float(robust[point]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The walk-forward account at each close, and the thresholds in force; each (n,)."""

    equity: Floats
    quantity: Floats
    buy: Floats
    sell: Floats
    first_row: int


def walk_forward(
    market: Market,
    each: Surface,
    rules: Rules,
    costs: Costs,
    capital: float,
    search: SignalSearch,
) -> tuple[Account, list[Shown]]:
    """Each period but the first with the pair chosen on all days before it, in one account."""
    ends = market.day_ends
    cuts = [len(ends) * part // search.periods for part in range(search.periods + 1)]
    rows = len(market)
    cash, quantity = np.full(rows, capital), np.zeros(rows)
    buy, sell = np.full(rows, np.nan), np.full(rows, np.nan)
    state = start(capital)
    worth = np.full(rows, capital)
    shown = []
    for first_day, stop_day in itertools.pairwise(cuts[1:]):
        first, stop = int(ends[first_day - 1]) + 1, int(ends[stop_day - 1]) + 1
        chosen = choose(each, first_day, search)
        if chosen is None:
            # Nothing to trade by: what is held is left at the next open, and nothing is entered.
            own = rules._replace(buy=np.inf, sell=-np.inf, exit_long=np.inf, exit_short=-np.inf)
        else:
            own = rules._replace(
                **dict(zip(_THRESHOLDS, each.grid.points[chosen.point].tolist(), strict=True))
            )
            buy[first:stop], sell[first:stop] = chosen.buy, chosen.sell
        state = grid.walk(market, first, stop, state, own, costs, cash, quantity)
        part = slice(first, stop)
        worth[part] = np.where(
            quantity[part] == 0,
            cash[part],
            cash[part] + quantity[part] * market.last_close[part],
        )
        before = float(worth[first - 1])
        daily = performance.daily_returns(worth[ends[first_day:stop_day]], before)
        ahead = None if chosen is None else each.returns[chosen.point, :first_day]
        shown.append(
            Shown(
                first=iso(int(market.open_time_ms[first])),
                last=iso(int(market.open_time_ms[stop - 1])),
                buy=None if chosen is None else chosen.buy,
                sell=None if chosen is None else chosen.sell,
                chosen_by=None if chosen is None else performance.known(chosen.value),
                sharpe_before=(
                    None if ahead is None else performance.known(float(performance.sharpe(ahead)))
                ),
                sharpe=performance.known(float(performance.sharpe(daily))),
                total_return=float(worth[stop - 1] / before - 1),
            )
        )
    path = Account(
        equity=worth, quantity=quantity, buy=buy, sell=sell, first_row=int(ends[cuts[1] - 1]) + 1
    )
    return path, shown


# --- luck ----------------------------------------------------------------------------------------


def judged(
    each: Surface,
    steps: list[Shown],
    path: Account,
    market: Market,
    capital: float,
    search: SignalSearch,
) -> dict[str, Any]:
    """What there is to say of one direction: best, robust choice, walk-forward, luck."""
    table, returns = each.table, each.returns
    enough = table["trades"] >= search.min_trades
    value = np.where(enough, _objective(returns, search.objective), np.nan)
    chosen = choose(each, returns.shape[1], search)
    cut = int(np.searchsorted(market.day_ends, path.first_row))
    later = performance.daily_returns(path.equity[market.day_ends[cut:]], capital)
    forward: dict[str, Any] = {
        "steps": [asdict(step) for step in steps],
        "sharpe": performance.known(float(performance.sharpe(later))),
        "sortino": performance.known(float(performance.sortino(later))),
        "total_return": float(path.equity[-1] / capital - 1),
        "max_drawdown": performance.max_drawdown(path.equity, capital),
    }
    report: dict[str, Any] = {
        "points": len(value),
        "candidates": int(enough.sum()),
        "best": None,
        "robust": None,
        "walk_forward": forward,
        "config": None,
        "deflated_sharpe": None,
        "overfitting": None,
        "expected_best_sharpe": None,
        "lucky": False,
    }
    if chosen is None or np.isnan(value).all():
        need = f"{search.min_trades} round trips"
        return report | {
            "verdict": f"none of {len(value):,} pairs has {need} and neighbours that have: nothing "
            "can be chosen; score more candles, or search lower thresholds"
        }
    best = int(np.nanargmax(value))
    sane = np.flatnonzero(enough & (_cost_sharpe(each, capital) < _COST_SHARPE))
    own = performance.sharpe(returns) / np.sqrt(performance.YEAR_DAYS)
    trials = own[sane][~np.isnan(own[sane])]
    hurdle = (
        performance.expected_best(float(np.var(trials, ddof=1)), len(value))
        if len(trials) > 1
        else 0.0
    )
    dsr = _deflated(returns[best], float(own[best]), hurdle)
    robust_dsr = _deflated(returns[chosen.point], float(own[chosen.point]), hurdle)
    pbo = performance.overfitting(returns[sane], search.blocks) if len(sane) > 1 else float("nan")
    lucky, verdict = _verdict(
        _name(each, best), len(value), dsr, pbo, forward["sharpe"], forward["total_return"],
        hurdle * np.sqrt(performance.YEAR_DAYS), float(table["sharpe"][best]),
    )  # fmt: skip
    return report | {
        "best": _point(each, best) | {"deflated_sharpe": performance.known(dsr)},
        "robust": _point(each, chosen.point) | {"deflated_sharpe": performance.known(robust_dsr)},
        "config": {
            "signaler": {"model": {"buy_threshold": chosen.buy, "sell_threshold": chosen.sell}}
        },
        "trials": len(trials),
        "expected_best_sharpe": hurdle * float(np.sqrt(performance.YEAR_DAYS)),
        "deflated_sharpe": performance.known(dsr),
        "overfitting": performance.known(pbo),
        "lucky": lucky,
        "verdict": verdict,
    }


def _cost_sharpe(each: Surface, capital: float) -> Floats:
    """(points,) Sharpe that fees alone take: their mean share of the account a day."""
    mean_worth = np.maximum(each.grid.daily.mean(axis=1), 1e-9 * capital)
    daily = each.grid.figures[:, grid.FEES] / mean_worth / each.returns.shape[1]
    deviation = each.returns.std(axis=1, ddof=1) if each.returns.shape[1] > 1 else np.zeros(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = daily / deviation * np.sqrt(performance.YEAR_DAYS)
    return np.where(np.isnan(found), np.inf, found)


def _deflated(returns: Floats, sharpe: float, hurdle: float) -> float:
    skew, kurtosis = performance.shape(returns)
    return performance.deflated_sharpe(sharpe, hurdle, len(returns), skew, kurtosis)


def _verdict(
    name: str,
    points: int,
    dsr: float,
    pbo: float,
    forward: float | None,
    forward_return: float,
    expected: float,
    best: float,
) -> tuple[bool, str]:
    """(called lucky, why in words). What cannot be computed does not count as passed."""
    against = []
    head = f"the best pair, {name} with a Sharpe of {best:.2f},"
    if best <= 0:
        return True, f"{head} loses: no pair of these thresholds earns after costs"
    if not dsr >= _DSR_ENOUGH:
        against.append(
            f"its deflated Sharpe ratio is {dsr:.2f} (at least {_DSR_ENOUGH} wanted): the best of "
            f"{points:,} pairs without any skill shows a Sharpe of {expected:.2f}"
        )
    if math.isnan(pbo):
        against.append("too few trades to tell the probability of overfitting")
    elif pbo > _PBO_ENOUGH:
        against.append(
            f"the probability of overfitting is {pbo:.2f} (at most {_PBO_ENOUGH} wanted)"
        )
    if forward is None or forward <= 0 or forward_return <= 0:
        text = "did not move" if forward is None else f"has a Sharpe of {forward:.2f}"
        against.append(f"the account of thresholds chosen beforehand {text}")
    if against:
        return True, f"{head} is lucky: {'; '.join(against)}"
    return False, (
        f"{head} holds up: deflated Sharpe ratio {dsr:.2f}, probability of overfitting {pbo:.2f}, "
        f"Sharpe {forward:.2f} with thresholds chosen beforehand"
    )


def _name(each: Surface, point: int) -> str:
    buy, sell = each.grid.points[point, :2]
    return f"buy {buy:g} sell {sell:g}"


def _point(each: Surface, point: int) -> dict[str, float | int | None]:
    """A row of the table as JSON holds it."""
    values = {name: column[point].item() for name, column in each.table.items()}
    return {
        name: performance.known(value) if isinstance(value, float) else value
        for name, value in values.items()
    }


def _lines(config: Mapping[str, Any]) -> str:
    model = config["signaler"]["model"]
    return (
        f'"signaler": {{"model": {{"buy_threshold": {model["buy_threshold"]:g}, '
        f'"sell_threshold": {model["sell_threshold"]:g}}}}}'
    )


def _write(
    folder: Path,
    market: Market,
    found: list[Surface],
    path: Account,
    report: Mapping[str, Any],
    csv: Progress | None,
) -> list[Path]:
    over, under = market.score > path.buy, market.score < path.sell
    columns = {
        "open_time_ms": market.open_time_ms,
        "close": market.close,
        "score": market.score,
        "side": over.astype(np.int64) - under.astype(np.int64),
        "position": np.sign(path.quantity).astype(np.int64),
        "equity": path.equity,
        "buy_threshold": path.buy,
        "sell_threshold": path.sell,
    }
    tables = [each.table for each in found]
    whole = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}

    def about(unfinished: Path) -> None:
        klinefiles.write_columns(unfinished / "grid.parquet", whole)
        write_json(unfinished / "signals.json", report)

    return write(folder, columns, "signals", about, csv)
