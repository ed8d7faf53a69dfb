"""The trading rules: what is bought and sold on a score, the same live, in backtests and in grids.

Pure and exact: a step takes the account and one candle and returns the account and what was filled;
no clock, no randomness, no state elsewhere. The functions named in COMPILED use plain numbers only,
so that the trainer can hand the very same code to Numba; what it computes has the same bits.

Time within one candle t, in this order:

1. **Orders decided at the close of the candle before** (next-bar execution). A market order fills
   at the open of t. A limit order that the open already satisfies fills at the open, not worse than
   its limit; otherwise at its limit once the price has gone *through* it within t (low below a
   buy's limit, high above a sell's: a touch is no promise of a fill). A waiting limit exit fills
   after the stop and before the target, should t reach several of them.
   An exit comes before an entry; where the exit does not fill, the entry lapses.
2. **Protection that rests on the exchange**, of the position held, also of one entered just now:
   the stop is `entry * (1 - stop_loss)`, or where it is nearer `extreme * (1 - trailing_stop)` with
   the highest high since the entry up to the candle before (of a short: the mirror image, and never
   further than where the account would be empty: "liquidated"). The stop is checked before the
   target: where t reaches both, the stop is taken to have come first. A stop is touched at its
   price (low <= stop) and sells at market; where t opens beyond it, at the open. The target
   `entry * (1 + take_profit)` is a resting limit order: filled at its own price, never better, once
   t has gone through it. A position entered inside t (limit, not at the open) can be stopped in t
   but not reach its target in t: whether the high came after the entry is not known.
3. **The decision at the close.** Orders that did not fill are cancelled; what is wanted now is
   decided anew from the score (that is how the predecessor replaces an order that does not fill).
   A long is left when score < exit_long or after max_candles candles; flat, a long is entered when
   score > buy, a short when score < sell. With both directions a long left by its score is turned
   into a short at once where score < sell (and back). After an exit in candle e no entry is decided
   before the close of candle e + cool_down. Being between exit and entry threshold changes nothing
   (hysteresis).

Prices: market fills are `slippage` worse than the price named above, limit fills are not. A limit
order stands at `close * (1 - limit_price_adjustment)` for a buy, `(1 + ...)` for a sell.

Size: of the account's worth at the close, valued at the close: `share` (percent), at most `fixed`
quote units, at most `volatility / (the candles' volatility)` of it (volatility target). Never more
than the cash there is: no leverage. Quantities are not rounded to lots here.

Fees are a share of what is traded. On spot the exchange takes them from what is received: a buy
gets `spent / price * (1 - fee)` (from_received); otherwise they are paid in quote on top. Sales
receive quote either way, and futures (shorts) always pay in quote. Funding is not included.

Gaps: a candle without prices (NaN) fills and decides nothing. An exit order waits for the next
candle with prices, an entry order lapses (its signal is stale by then). A score that is NaN (none,
invalid) is no reason for anything: what is held is held, nothing is entered.
"""

# ruff: noqa: PLR0124 - x == x tells that x is not NaN, at the price of one comparison

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from shared.config import Settings

NAN = math.nan
# Why a position was left; also what `State.leave` holds. ENTRY: the fill that opened it.
NONE, ENTRY, SCORE, STOP, TRAILING, TARGET, TIME, LIQUIDATED = range(8)
REASONS = {
    ENTRY: "score",
    SCORE: "score",
    STOP: "stop-loss",
    TRAILING: "trailing stop",
    TARGET: "take-profit",
    TIME: "time",
    LIQUIDATED: "liquidated",
}
YEAR_MS = 365 * 86_400_000


class Bar(NamedTuple):
    """One closed candle and what is known at its close.

    NaN prices: a gap. score: NaN where there is none. volatility: standard deviation of the log
    return of one candle, NaN where not known; only the volatility target reads it.
    """

    open_time_ms: int
    open: float
    high: float
    low: float
    close: float
    score: float
    volatility: float


class Rules(NamedTuple):
    """The rules as numbers. Shares are fractions: 0.02 is two percent; 0 switches a rule off.

    sell <= exit_long <= buy and sell <= exit_short <= buy for the directions in use.
    limit: limit_price_adjustment, NaN = market orders. volatility: target per candle.
    max_candles, cool_down: candles.
    """

    step_ms: int
    longs: bool
    shorts: bool
    buy: float
    sell: float
    exit_long: float
    exit_short: float
    limit: float = NAN
    share: float = 0.99
    fixed: float = 0.0
    volatility: float = 0.0
    stop_loss: float = 0.0
    take_profit: float = 0.0
    trailing_stop: float = 0.0
    max_candles: int = 0
    cool_down: int = 0


class Costs(NamedTuple):
    """What trading is assumed to cost: fee and slippage as shares of price or notional."""

    fee: float
    slippage: float
    from_received: bool


class State(NamedTuple):
    """The account and what it has decided; begins as `start(cash)`.

    cash: quote units. quantity: base units, below 0 = short. entry_price: of the fill, slippage
    included; NaN when flat. entry_ms: open time of the candle of the entry. extreme: highest high
    (short: lowest low) since. staked: cash before the entry. leave: reason of the exit order that
    stands, NONE = no such order. enter: +1 buy, -1 sell short, 0 no such order. price: limit of
    these orders, NaN = market. budget: quote units that the entry may use. free_ms: no entry is
    decided on candles that open before.
    """

    cash: float
    quantity: float
    entry_price: float
    entry_ms: int
    extreme: float
    staked: float
    leave: int
    enter: int
    price: float
    budget: float
    free_ms: int


class Fill(NamedTuple):
    """One trade. reason NONE: nothing happened, ENTRY, or why the position was left.

    side: +1 bought, -1 sold. price: slippage included. quantity: base units traded, above 0.
    fee: its worth in quote units. profit: of a round trip, all fees off; 0.0 at an entry.
    cash: of the account afterwards.
    """

    reason: int
    side: int
    price: float
    quantity: float
    fee: float
    profit: float
    cash: float


class Protection(NamedTuple):
    """Prices that protect a position, NaN = none. reason: of the stop."""

    stop: float
    target: float
    reason: int


def start(cash: float) -> State:
    """An account with `cash` quote units and nothing else."""
    return State(cash, 0.0, NAN, 0, NAN, cash, NONE, 0, NAN, 0.0, 0)


def step(state: State, bar: Bar, rules: Rules, costs: Costs) -> tuple[State, Fill, Fill, Fill]:
    """One candle later: the account, and what filled in it: (exit order, entry order, protection).

    The orders that stand afterwards are in the state, and `protection` tells what rests beside.
    """
    if not is_candle(bar):
        if state.enter != 0:
            state = with_orders(state, state.leave, 0, state.price, 0.0)
        return state, nothing(), nothing(), nothing()
    state, left, entered, protected = execute(state, bar, rules, costs)
    return decide(state, bar, rules), left, entered, protected


def execute(state: State, bar: Bar, rules: Rules, costs: Costs) -> tuple[State, Fill, Fill, Fill]:
    """What the market does with the orders that stand: parts 1 and 2 above."""
    left, entered, protected = nothing(), nothing(), nothing()
    inside = False  # entered within the candle, not at its open
    if state.leave != NONE:
        side = -1 if state.quantity > 0.0 else 1
        price = at_open(side, state.price, bar, costs)
        if price == price:
            state, left = leave_at(state, price, state.leave, bar, rules, costs)
    if state.enter != 0 and state.quantity == 0.0:
        price = at_open(state.enter, state.price, bar, costs)
        if price != price:
            price = at_limit(state.enter, state.price, bar)
            inside = price == price
        if price == price:
            state, entered = enter_at(state, price, bar, costs)
    if state.quantity != 0.0:
        state, protected = protect(state, bar, rules, costs, inside)
    if state.quantity != 0.0:
        state = with_extreme(state, bar, inside)
    return state, left, entered, protected


def at_open(side: int, limit: float, bar: Bar, costs: Costs) -> float:
    """Price of an order that the candle's open fills, NaN where it does not."""
    price = bar.open * (1.0 + side * costs.slippage)
    if limit != limit:
        return price
    if side > 0:
        if bar.open > limit:
            return NAN
        return limit if price > limit else price
    if bar.open < limit:
        return NAN
    return limit if price < limit else price


def at_limit(side: int, limit: float, bar: Bar) -> float:
    """`limit` where the candle goes through it, NaN where it does not (or there is none)."""
    if (side > 0 and bar.low < limit) or (side < 0 and bar.high > limit):
        return limit
    return NAN


def enter_at(state: State, price: float, bar: Bar, costs: Costs) -> tuple[State, Fill]:
    """Opens the position that `state.enter` asks for."""
    side = state.enter
    spent = state.budget if state.budget < state.cash else state.cash
    if side > 0 and costs.from_received:
        fee = spent * costs.fee
        quantity = spent / price * (1.0 - costs.fee)
        traded = spent / price
        cash = state.cash - spent
    elif side > 0:
        traded = spent / (price * (1.0 + costs.fee))
        fee = traded * price * costs.fee
        quantity = traded
        cash = state.cash - spent
    else:
        traded = spent / price
        fee = spent * costs.fee
        quantity = -traded
        cash = state.cash + spent - fee
    entered = State(
        cash, quantity, price, bar.open_time_ms, price, state.cash,
        NONE, 0, NAN, 0.0, state.free_ms,
    )  # fmt: skip
    return entered, Fill(ENTRY, side, price, traded, fee, 0.0, cash)


def leave_at(
    state: State, price: float, reason: int, bar: Bar, rules: Rules, costs: Costs
) -> tuple[State, Fill]:
    """Closes the position; an entry that waits for it keeps waiting."""
    long = state.quantity > 0.0
    quantity = state.quantity if long else -state.quantity
    worth = quantity * price
    fee = worth * costs.fee
    cash = state.cash + worth - fee if long else state.cash - worth - fee
    cash = max(cash, 0.0)  # a short that the market ran away from loses its margin, no more
    left = State(
        cash, 0.0, NAN, 0, NAN, cash, NONE, state.enter, state.price, state.budget,
        bar.open_time_ms + rules.cool_down * rules.step_ms,
    )  # fmt: skip
    side = -1 if long else 1
    return left, Fill(reason, side, price, quantity, fee, cash - state.staked, cash)


def protection(state: State, rules: Rules, costs: Costs) -> Protection:
    """Where stop and target of the position held rest now."""
    if state.quantity == 0.0:
        return Protection(NAN, NAN, NONE)
    side = 1.0 if state.quantity > 0.0 else -1.0
    stop, reason = NAN, NONE
    if rules.stop_loss > 0.0:
        stop, reason = state.entry_price * (1.0 - side * rules.stop_loss), STOP
    if rules.trailing_stop > 0.0:
        trailing = state.extreme * (1.0 - side * rules.trailing_stop)
        if reason == NONE or side * trailing > side * stop:
            stop, reason = trailing, TRAILING
    if side < 0.0:
        empty = state.cash / (-state.quantity * (1.0 + costs.fee))
        if reason == NONE or empty < stop:
            stop, reason = empty, LIQUIDATED
    target = NAN
    if rules.take_profit > 0.0:
        target = state.entry_price * (1.0 + side * rules.take_profit)
    return Protection(stop, target, reason)


def protect(state: State, bar: Bar, rules: Rules, costs: Costs, inside: bool) -> tuple[State, Fill]:
    """Stop, waiting limit exit, target, in this order; nothing where the candle reaches none."""
    long = state.quantity > 0.0
    side = -1 if long else 1
    rests = protection(state, rules, costs)
    if rests.reason != NONE and (bar.low <= rests.stop if long else bar.high >= rests.stop):
        price = rests.stop
        if not inside and (bar.open < price if long else bar.open > price):
            price = bar.open
        price = price * (1.0 + side * costs.slippage)
        return leave_at(state, price, rests.reason, bar, rules, costs)
    if state.leave != NONE:
        price = at_limit(side, state.price, bar)
        if price == price:
            return leave_at(state, price, state.leave, bar, rules, costs)
    if not inside:
        price = at_limit(side, rests.target, bar)
        if price == price:
            return leave_at(state, price, TARGET, bar, rules, costs)
    return state, nothing()


def with_extreme(state: State, bar: Bar, inside: bool) -> State:
    """Takes the candle's high (of a short: low) into the extreme that a trailing stop follows.

    In a candle entered inside, the close instead: its extreme may have come before the entry.
    """
    extreme = state.extreme
    if state.quantity > 0.0:
        reached = bar.close if inside else bar.high
        extreme = reached if reached > extreme else extreme
    else:
        reached = bar.close if inside else bar.low
        extreme = reached if reached < extreme else extreme
    return State(
        state.cash, state.quantity, state.entry_price, state.entry_ms, extreme, state.staked,
        state.leave, state.enter, state.price, state.budget, state.free_ms,
    )  # fmt: skip


def decide(state: State, bar: Bar, rules: Rules) -> State:
    """The orders wanted at the close, in place of those that stood: part 3 above."""
    leave, enter = NONE, 0
    if state.quantity > 0.0:
        if bar.score < rules.exit_long:
            leave = SCORE
            if rules.shorts and rules.cool_down == 0 and bar.score < rules.sell:
                enter = -1
        elif is_old(state, bar, rules):
            leave = TIME
    elif state.quantity < 0.0:
        if bar.score > rules.exit_short:
            leave = SCORE
            if rules.longs and rules.cool_down == 0 and bar.score > rules.buy:
                enter = 1
        elif is_old(state, bar, rules):
            leave = TIME
    elif bar.open_time_ms >= state.free_ms:
        if rules.longs and bar.score > rules.buy:
            enter = 1
        elif rules.shorts and bar.score < rules.sell:
            enter = -1
    budget = 0.0
    if enter != 0:
        budget = size(state, bar, rules)
        if not budget > 0.0:
            enter, budget = 0, 0.0
    if leave == NONE and enter == 0 and state.leave == NONE and state.enter == 0:
        return state
    price = NAN
    if rules.limit == rules.limit:
        side = (-1 if state.quantity > 0.0 else 1) if leave != NONE else enter
        price = bar.close * (1.0 - side * rules.limit)
    return with_orders(state, leave, enter, price, budget)


def is_old(state: State, bar: Bar, rules: Rules) -> bool:
    """Held for max_candles candles at this close, that of the entry counted."""
    candles = (bar.open_time_ms - state.entry_ms) // rules.step_ms + 1
    return rules.max_candles > 0 and candles >= rules.max_candles


def size(state: State, bar: Bar, rules: Rules) -> float:
    """Quote units that an entry decided at this close may use; 0 where there is no telling."""
    share = rules.share
    if rules.volatility > 0.0:
        if bar.volatility != bar.volatility:
            return 0.0
        if bar.volatility * share > rules.volatility:
            share = rules.volatility / bar.volatility
    budget = share * equity(state, bar.close)
    return rules.fixed if 0.0 < rules.fixed < budget else budget


def equity(state: State, close: float) -> float:
    """Worth of the account in quote units with the position valued at `close`."""
    return state.cash + state.quantity * close


def with_orders(state: State, leave: int, enter: int, price: float, budget: float) -> State:
    return State(
        state.cash, state.quantity, state.entry_price, state.entry_ms, state.extreme, state.staked,
        leave, enter, price, budget, state.free_ms,
    )  # fmt: skip


def is_candle(bar: Bar) -> bool:
    """Whether the candle has its four prices; without all of them it is a gap."""
    return bar.open + bar.high + bar.low + bar.close == bar.open + bar.high + bar.low + bar.close


def nothing() -> Fill:
    return Fill(NONE, 0, NAN, 0.0, 0.0, 0.0, NAN)


COMPILED: tuple[Callable[..., Any], ...] = (
    nothing, is_candle, with_orders, equity, size, is_old, decide, with_extreme, protection,
    at_open, at_limit, leave_at, enter_at, protect, execute, step, start,
)  # fmt: skip
"""What a compiler of these rules must be given: no others are called by them."""


# --- how they are told in config and to people ---------------------------------------------------


def volatility(closes: Sequence[float]) -> float:
    """Standard deviation of the log return of one candle, over the steps between `closes`.

    closes: oldest first; NaN = a gap, whose steps are not counted. Population deviation, summed
    from left to right in two passes. NaN with fewer than 2 steps.
    """
    steps = [
        math.log(after / before)
        for before, after in itertools.pairwise(closes)
        if before == before and after == after
    ]
    if len(steps) < 2:
        return NAN
    total = 0.0
    for one in steps:
        total += one
    mean = total / len(steps)
    squares = 0.0
    for one in steps:
        squares += (one - mean) * (one - mean)
    return math.sqrt(squares / len(steps))


def configured(settings: Settings, step_ms: int) -> Rules:
    """The rules of `trader.rules` for candles of `step_ms`.

    Thresholds are by default those of `signaler.model`.
    """
    rules, model = settings.trader.rules, settings.signaler.model
    buy = model.buy_threshold if rules.buy_threshold is None else rules.buy_threshold
    sell = model.sell_threshold if rules.sell_threshold is None else rules.sell_threshold
    target = 0.0
    if rules.sizing == "volatility":
        target = rules.target_volatility * math.sqrt(step_ms / YEAR_MS)
    return Rules(
        step_ms=step_ms,
        longs=rules.direction != "short",
        shorts=rules.direction != "long",
        buy=buy,
        sell=sell,
        exit_long=sell if rules.exit_long is None else rules.exit_long,
        exit_short=buy if rules.exit_short is None else rules.exit_short,
        limit=NAN if rules.limit_price_adjustment is None else rules.limit_price_adjustment,
        share=rules.percentage_used_for_trade / 100.0,
        fixed=rules.fixed if rules.sizing == "fixed" else 0.0,
        volatility=target,
        stop_loss=rules.stop_loss or 0.0,
        take_profit=rules.take_profit or 0.0,
        trailing_stop=rules.trailing_stop or 0.0,
        max_candles=rules.max_candles or 0,
        cool_down=rules.cool_down,
    )


def problem_of(rules: Rules) -> str:
    """Why the thresholds contradict each other; "" where they do not."""
    if rules.longs and not rules.exit_long <= rules.buy:
        return f"exit_long {rules.exit_long:g} is above the buy threshold {rules.buy:g}"
    if rules.shorts and not rules.exit_short >= rules.sell:
        return f"exit_short {rules.exit_short:g} is below the sell threshold {rules.sell:g}"
    if rules.longs and rules.shorts and not rules.sell <= rules.exit_long:
        return (
            f"exit_long {rules.exit_long:g} is below the sell threshold {rules.sell:g}, at which "
            "a long becomes a short"
        )
    if rules.longs and rules.shorts and not rules.exit_short <= rules.buy:
        return (
            f"exit_short {rules.exit_short:g} is above the buy threshold {rules.buy:g}, at which "
            "a short becomes a long"
        )
    return ""


def text_of(fill: Fill, rules: Rules, score: float) -> str:
    """Why a fill happened, for people: `score 0.31 > 0.15`; score: at the deciding close."""
    if fill.reason == ENTRY:
        limit = rules.buy if fill.side > 0 else rules.sell
        return f"score {score:.6g} {'>' if fill.side > 0 else '<'} {limit:g}"
    if fill.reason == SCORE:
        limit = rules.exit_long if fill.side < 0 else rules.exit_short
        return f"score {score:.6g} {'<' if fill.side < 0 else '>'} {limit:g}"
    values = {
        STOP: f" {100 * rules.stop_loss:g} %",
        TRAILING: f" {100 * rules.trailing_stop:g} %",
        TARGET: f" {100 * rules.take_profit:g} %",
        TIME: f": {rules.max_candles} candles",
    }
    return REASONS[fill.reason] + values.get(fill.reason, "")
