# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
# Numba infers the types of what it compiles.
"""Thousands of pairs of thresholds over years of candles: the shared rules, compiled.

Every candle at which anything can happen goes through `shared.rules.step` itself, compiled by
Numba; there is no second version of a rule. What makes it fast is what it does not look at: blocks
of candles whose highest and lowest score, high and low cannot touch the account are passed over
whole, so the work goes with the trades rather than with the candles. Between two fills the worth of
the account is `cash + quantity * close`; the deepest drawdown is found from the blocks' highest and
lowest close, and only blocks that can hold a deeper one are looked into. A test shows that all
figures have the bits of the rules run candle by candle in Python.
"""

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from numba.extending import register_jitable

from shared import rules as shared_rules
from shared.rules import (
    ENTRY,
    NONE,
    Bar,
    Costs,
    Rules,
    State,
    equity,
    protection,
    start,
    step,
    with_extreme,
)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

DAY_MS = 86_400_000
_SMALL, _LARGE = 32, 1024  # candles of a block; the larger is a multiple of the smaller
_STRETCH = 16 * _LARGE
_AT_ONCE = 40  # points of one call into compiled code: how often progress is told

# Columns of `Grid.figures`.
TRADES, WINS, GAINED, LOST, FEES, TRADED, HELD, DRAWDOWN, WORTH, OPEN = range(10)
_FIGURES = 10

# Inlined, structs of a dozen numbers stay in registers; calls would copy them through memory.
_part: Any = register_jitable(forceinline=True)
for _function in shared_rules.COMPILED:
    _part(_function)


@dataclass(frozen=True, kw_only=True)
class Market:
    """Candles and scores on a regular raster, each column (n,) float64.

    A gap is a row of NaN throughout; score and volatility are NaN where there is none.
    """

    open_time_ms: Ints
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    score: Floats
    volatility: Floats

    @classmethod
    def of(
        cls,
        open_time_ms: Ints,
        prices: Sequence[Floats],
        score: Floats,
        volatility: Floats | None = None,
    ) -> "Market":
        """prices: open, high, low, close. A row without all of them becomes a gap."""
        gap = np.isnan(np.sum(prices, axis=0))
        columns = [np.where(gap, np.nan, column) for column in (*prices, score)]
        if volatility is None:
            volatility = np.full(len(open_time_ms), np.nan)
        opened, high, low, close, scored = columns
        return cls(
            open_time_ms=open_time_ms,
            open=opened,
            high=high,
            low=low,
            close=close,
            score=scored,
            volatility=np.where(gap, np.nan, volatility),
        )

    def __len__(self) -> int:
        return len(self.open_time_ms)

    def rows(self, first: int, stop: int) -> "Market":
        """Rows [first, stop)."""
        names = ("open_time_ms", "open", "high", "low", "close", "score", "volatility")
        return Market(**{name: getattr(self, name)[first:stop] for name in names})

    @cached_property
    def last_close(self) -> Floats:
        """(n,) the close, at a gap that of the last candle before; NaN before the first."""
        at = np.where(np.isnan(self.close), -1, np.arange(len(self)))
        at = np.maximum.accumulate(at)
        return np.where(at < 0, np.nan, self.close[np.maximum(at, 0)])

    @cached_property
    def day_ends(self) -> Ints:
        """Last row of every UTC day."""
        days = self.open_time_ms // DAY_MS
        return np.append(np.flatnonzero(np.diff(days)), len(days) - 1).astype(np.int64)

    @cached_property
    def blocks(self) -> tuple[Floats, Floats]:
        """Bounds of the small and of the large blocks; columns as `_bounds` gives them."""
        columns = (self.score, self.score, self.high, self.low, self.close, self.close)
        return _bounds(columns, _SMALL), _bounds(columns, _LARGE)

    @property
    def arrays(self) -> tuple[Any, ...]:
        """As the compiled code takes it."""
        columns = (self.open, self.high, self.low, self.close, self.score, self.volatility)
        return (
            int(self.open_time_ms[0]),
            np.column_stack(columns),  # a candle in one place: its cells are read together
            self.high,
            self.low,
            self.close,
            self.score,
            self.last_close,
            self.day_ends,
            *self.blocks,
        )


def _bounds(columns: Sequence[Floats], size: int) -> Floats:
    """(blocks, 6): highest and lowest score, highest high, lowest low, both of the close.

    -inf and inf where a block has no value. The last block may be a part.
    """
    count = -(-len(columns[0]) // size)
    found = np.empty((count, len(columns)))
    whole = np.full(count * size, np.nan)
    for at, column in enumerate(columns):
        whole[: len(column)] = column
        block = whole.reshape(count, size)
        if at % 2 == 0:
            found[:, at] = np.where(np.isnan(block), -np.inf, block).max(axis=1)
        else:
            found[:, at] = np.where(np.isnan(block), np.inf, block).min(axis=1)
    return found


# --- compiled ------------------------------------------------------------------------------------


# Bounds are taken this much too near, so that no rounding in them can hide what the rules see.
_NEARER = 1e-9


@_part
def _next(state, row, stop, rules, costs, market):
    """The next row in [row, stop) where something may happen, else stop; the account before it.

    Nothing happens while scores stay within [below, above] and prices between floor and ceiling.
    """
    first_ms, high, low, score = market[0], market[2], market[3], market[5]
    small, large = market[8], market[9]
    if row >= stop or state.leave != NONE or state.enter != 0:
        return row, state
    above, below, ceiling, floor = np.inf, -np.inf, np.inf, -np.inf
    follows = False
    last = stop
    if state.quantity == 0.0:
        if rules.longs:
            above = rules.buy
        if rules.shorts:
            below = rules.sell
        if state.free_ms > first_ms:
            row = min(stop, max(row, (state.free_ms - first_ms) // rules.step_ms))
    else:
        follows = rules.trailing_stop > 0.0
        rests = protection(state, rules, costs)
        if state.quantity > 0.0:
            below = rules.exit_long
            if rests.stop == rests.stop:
                floor = rests.stop
            if rests.target == rests.target:
                ceiling = rests.target
        else:
            above = rules.exit_short
            if rests.stop == rests.stop:
                ceiling = rests.stop
            if rests.target == rests.target:
                floor = rests.target
        if rules.max_candles > 0:
            old = (state.entry_ms - first_ms) // rules.step_ms + rules.max_candles - 1
            last = min(stop, max(row, old))
    extreme = state.extreme
    long = state.quantity > 0.0
    away = _NEARER - rules.trailing_stop
    trail = 1.0 + away if long else 1.0 - away
    priced = follows or floor > -np.inf or ceiling < np.inf
    fresh = True
    while row < last:
        if fresh or row % _LARGE == 0:
            fresh = False
            end = min(last, (row // _LARGE + 1) * _LARGE)
            b = large[row // _LARGE]
            if not follows and b[0] <= above and b[1] >= below and b[2] < ceiling and b[3] > floor:
                row = end
                fresh = True
                continue
        end = min(last, (row // _SMALL + 1) * _SMALL)
        b = small[row // _SMALL]
        if b[0] <= above and b[1] >= below:
            if not follows:
                if b[2] < ceiling and b[3] > floor:
                    row = end
                    continue
            elif end - row == _SMALL:
                if long:
                    furthest = max(extreme, b[2])
                    if b[2] < ceiling and b[3] > max(floor, furthest * trail):
                        extreme = furthest
                        row = end
                        continue
                else:
                    furthest = min(extreme, b[3])
                    if b[3] > floor and b[2] < min(ceiling, furthest * trail):
                        extreme = furthest
                        row = end
                        continue
        if not priced:
            while row < end and not (score[row] > above or score[row] < below):
                row += 1
        else:
            while row < end:
                if score[row] > above or score[row] < below:
                    break
                if high[row] >= ceiling or low[row] <= floor:
                    break
                if follows:
                    if long:
                        if low[row] <= max(extreme, high[row]) * trail:
                            break
                        extreme = high[row] if high[row] > extreme else extreme
                    else:
                        if high[row] >= min(extreme, low[row]) * trail:
                            break
                        extreme = low[row] if low[row] < extreme else extreme
                row += 1
        if row < end:
            break
    if follows:
        state = with_extreme(state, Bar(0, 0.0, extreme, extreme, 0.0, 0.0, 0.0), False)
    return row, state


@_part
def _mark(state, row, stop, market, peak, found):
    """The account's peak after the closes of rows [row, stop), in which it stands still.

    Takes their drawdowns and the candles held into the point's figures.
    """
    close, small, large = market[4], market[8], market[9]
    if state.quantity == 0.0:
        if row < stop:
            peak = max(peak, state.cash)
            found[DRAWDOWN] = max(found[DRAWDOWN], 1.0 - state.cash / peak)
        return peak
    drawdown = found[DRAWDOWN]
    found[HELD] += stop - row
    long = state.quantity > 0.0
    fresh = True
    while row < stop:
        passed = False
        for level in range(2):
            if level == 0 and not fresh and row % _LARGE != 0:
                continue
            length = _LARGE if level == 0 else _SMALL
            b = large[row // _LARGE] if level == 0 else small[row // _SMALL]
            end = min(stop, (row // length + 1) * length)
            best = equity(state, b[4] if long else b[5])
            worst = equity(state, b[5] if long else b[4])
            if not best >= worst:  # gaps only
                passed = True
            elif best <= peak:
                passed = 1.0 - worst / peak <= drawdown
            elif end - row == length and 1.0 - worst / best <= drawdown:
                peak = best
                passed = True
            if passed:
                row = end
                fresh = level == 0
                break
        if passed:
            continue
        fresh = False
        end = min(stop, (row // _SMALL + 1) * _SMALL)
        while row < end:
            worth = equity(state, close[row])
            if worth > peak:
                peak = worth
            elif worth < peak * (1.0 - drawdown) * (1.0 + _NEARER):
                drawdown = max(drawdown, 1.0 - worth / peak)
            row += 1
    found[DRAWDOWN] = drawdown
    return peak


@_part
def _days(state, day, stop, market, daily):
    """Writes what the account was worth at the ends of the days before row `stop`."""
    last_close, day_ends = market[6], market[7]
    while day < len(day_ends) and day_ends[day] < stop:
        if state.quantity == 0.0:
            daily[day] = state.cash
        else:
            daily[day] = equity(state, last_close[day_ends[day]])
        day += 1
    return day


@_part
def _bar(market, row, step_ms):
    b = market[1][row]
    return Bar(market[0] + row * step_ms, b[0], b[1], b[2], b[3], b[4], b[5])


@_part
def _with_thresholds(rules, point):
    return Rules(
        rules.step_ms, rules.longs, rules.shorts, point[0], point[1], point[2], point[3],
        rules.limit, rules.share, rules.fixed, rules.volatility, rules.stop_loss,
        rules.take_profit, rules.trailing_stop, rules.max_candles, rules.cool_down,
    )  # fmt: skip


@_part
def _packed(state, since, day, peak):
    """A run between two stretches, as numbers; whole ones below 2**53 lose nothing."""
    return np.array([
        state.cash, state.quantity, state.entry_price, float(state.entry_ms), state.extreme,
        state.staked, float(state.leave), float(state.enter), state.price, state.budget,
        float(state.free_ms), float(since), float(day), peak,
    ])  # fmt: skip


@_part
def _unpacked(a):
    state = State(
        a[0], a[1], a[2], int(a[3]), a[4], a[5], int(a[6]), int(a[7]), a[8], a[9], int(a[10])
    )
    return state, int(a[11]), int(a[12]), a[13]


@_part
def _count(fill, found):
    """Adds a fill to a point's figures."""
    if fill.reason == NONE:
        return
    found[FEES] += fill.fee
    found[TRADED] += fill.price * fill.quantity
    if fill.reason == ENTRY:
        return
    found[TRADES] += 1.0
    if fill.profit > 0.0:
        found[WINS] += 1.0
        found[GAINED] += fill.profit
    else:
        found[LOST] -= fill.profit


def _compile(version: str) -> tuple[Any, Any]:
    """The compiled loops. version: hash of the rules; Numba's cache keeps it among the keys."""

    def search(points, rules, costs, capital, market, figures, daily, trips):
        if version == "":
            return
        rows = len(market[1])
        accounts = np.empty((len(points), 14))
        for at in range(len(points)):
            accounts[at] = _packed(start(capital), 0, 0, capital)
            figures[at] = 0.0
            trips[at] = 0
        # All points go through a stretch of candles before the next: it stays in the CPU's cache.
        for stretch in range(0, rows, _STRETCH):
            stop = min(rows, stretch + _STRETCH)
            for at in range(len(points)):
                one = _with_thresholds(rules, points[at])
                state, since, day, peak = _unpacked(accounts[at])
                found = figures[at]
                row = stretch
                while True:
                    row, state = _next(state, row, stop, one, costs, market)
                    if row >= stop:
                        break
                    after, left, entered, protected = step(
                        state, _bar(market, row, rules.step_ms), one, costs
                    )
                    if left.reason != NONE or entered.reason != NONE or protected.reason != NONE:
                        day = _days(state, day, row, market, daily[at])
                        peak = _mark(state, since, row, market, peak, found)
                        since = row
                        before = found[TRADES]
                        _count(left, found)
                        _count(entered, found)
                        _count(protected, found)
                        trips[at, day] += found[TRADES] - before
                    state = after
                    row += 1
                if stop == rows:
                    _days(state, day, rows, market, daily[at])
                peak = _mark(state, since, stop, market, peak, found)
                accounts[at] = _packed(state, stop, day, peak)
                if state.quantity != 0.0:
                    found[OPEN] = 1.0 if state.quantity > 0.0 else -1.0
                else:
                    found[OPEN] = 0.0
                found[WORTH] = daily[at, -1]

    def walk(state, rules, costs, market, first, stop, cash, quantity):
        if version == "":
            return state
        for row in range(first, stop):
            state, _, _, _ = step(state, _bar(market, row, rules.step_ms), rules, costs)
            cash[row] = state.cash
            quantity[row] = state.quantity
        return state

    return _jit(search), _jit(walk)


def _jit(function: Callable[..., Any]) -> Any:
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # no writable place for the cache: compile in every process instead
        return numba.njit(nogil=True, error_model="numpy")(function)


# Numba looks at this file only when it asks whether its cache is fresh.
_SOURCE = Path(shared_rules.__file__).read_bytes()
_search, _walk = _compile(hashlib.sha256(_SOURCE).hexdigest())


@_jit
def _volatilities(log_steps, rows, out):
    """`shared.rules.volatility` of the last `rows` closes at every row from rows - 1 on."""
    for row in range(rows - 1, len(out)):
        count, total = 0, 0.0
        for one in log_steps[row - rows + 2 : row + 1]:
            if one == one:  # noqa: PLR0124 - not NaN
                total += one
                count += 1
        if count < 2:
            continue
        mean, squares = total / count, 0.0
        for one in log_steps[row - rows + 2 : row + 1]:
            if one == one:  # noqa: PLR0124 - not NaN
                squares += (one - mean) * (one - mean)
        out[row] = math.sqrt(squares / count)


@_jit
def _log_steps(close, out):
    for row in range(1, len(close)):
        out[row] = math.log(close[row] / close[row - 1])


# --- called --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """What came of every point.

    points: (n, 4) buy, sell, exit_long, exit_short. figures: (n, 10), columns TRADES (round trips),
    WINS, GAINED and LOST (profit and loss of round trips, quote), FEES (quote), TRADED (quote),
    HELD (candles at whose close a position was held), DRAWDOWN (deepest, share of the peak, on
    closes), WORTH (at the last close), OPEN (+1 long, -1 short, 0: none at the end).
    daily: (n, days) worth of the account at the last close of each UTC day. trips: (n, days) int32,
    round trips that ended on it.
    """

    points: Floats
    figures: Floats
    daily: Floats
    trips: npt.NDArray[np.int32]


def search(
    market: Market,
    points: Floats,
    rules: Rules,
    costs: Costs,
    capital: float,
    *,
    workers: int | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> Grid:
    """Runs the rules with each point's thresholds in place of their own.

    points: (n, 4) float64: buy, sell, exit_long, exit_short. advance is told how many are done.
    """
    points = np.ascontiguousarray(points, np.float64)
    figures = np.empty((len(points), _FIGURES))
    daily = np.empty((len(points), len(market.day_ends)))
    trips = np.empty(daily.shape, np.int32)
    arrays = market.arrays

    def some(first: int) -> int:
        part = slice(first, first + _AT_ONCE)
        _search(
            points[part],
            compiled(rules),
            Costs(float(costs.fee), float(costs.slippage), bool(costs.from_received)),
            float(capital),
            arrays,
            figures[part],
            daily[part],
            trips[part],
        )
        return len(points[part])

    firsts = range(0, len(points), _AT_ONCE)
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        for done in pool.map(some, firsts):
            advance(done)
    return Grid(points=points, figures=figures, daily=daily, trips=trips)


def walk(
    market: Market,
    first: int,
    stop: int,
    state: State,
    rules: Rules,
    costs: Costs,
    cash: Floats,
    quantity: Floats,
) -> State:
    """Rows [first, stop) candle by candle; writes the account at each close into cash, quantity."""
    found: State = _walk(state, compiled(rules), costs, market.arrays, first, stop, cash, quantity)
    return found


def compiled(rules: Rules) -> Rules:
    """The same with every number of the type that the compiled code was made for."""
    whole = {"step_ms": int, "max_candles": int, "cool_down": int, "longs": bool, "shorts": bool}
    return Rules(*(whole.get(name, float)(value) for name, value in rules._asdict().items()))


def volatilities(close: Floats, rows: int) -> Floats:
    """(n,) `shared.rules.volatility` of the last `rows` closes; NaN before the rows-th row."""
    steps = np.full(len(close), np.nan)
    _log_steps(close, steps)
    out = np.full(len(close), np.nan)
    _volatilities(steps, rows, out)
    return out
