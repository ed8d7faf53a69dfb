"""The public trades inside a candle: one deterministic path from its seed and its nine numbers.

Folding the trades gives the candle back: open, high, low, close, volume, number of trades and taker
volume exactly, both quote volumes to their last printed decimal, wherever a candle has at least ten
taker orders (with fewer, or with source rows that contradict themselves, the quote volumes are as
near as the order sizes allow). Where the source has no trade count or taker columns, the path has a
plausible number of its own; candles never show it.

A candle has up to SLOTS taker orders, each at one price (Binance's aggregate trade) and each made
of one or more trades. All are integers: prices in 10**-price_digits, amounts in 10**-lot_digits.
"""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint64]

SLOTS = 48
_SHAPED = 10  # orders needed for a path that meets both quote volumes exactly
_POWERS = np.array([10.0**digits for digits in range(17)])
_PARTS = np.array([10.0**-digits for digits in range(17)])
_WHOLE = 10 ** np.arange(17, dtype=np.int64)
_EXACT = 2.0**53  # up to here a double holds every integer
_ROOM = 2.0**62  # up to here an int64 holds sums and differences of two


@dataclass(frozen=True, slots=True)
class Rows:
    """Candles of any symbols whose paths are made together; no row knows of another.

    seed: (n,) uint64; open_time_ms, step_ms, trades (as count_trades gives them), price_digits,
    lot_digits: (n,) int64; values: (n, 9) float64 in KLINE_COLUMNS order.
    """

    seed: Words
    open_time_ms: Ints
    step_ms: Ints
    values: Floats
    trades: Ints
    price_digits: Ints
    lot_digits: Ints


@dataclass(frozen=True, slots=True)
class Paths:
    """Taker orders of consecutive candles: (candles, SLOTS) arrays, times rising along a row.

    orders: (candles,) how many slots of the row are used. price and lots in integer units, buy =
    the taker bought, trades = trades in the order, before = trades of the candle before it.
    """

    orders: Ints
    time_ms: Ints
    price: Ints
    lots: Ints
    buy: Bools
    trades: Ints
    before: Ints

    def part(self, start: int, stop: int) -> "Paths":
        """The candles of these rows."""
        return Paths(*(getattr(self, one.name)[start:stop] for one in fields(self)))


def uniform(seed: int | Words, keys: Ints, lane: int, width: int = SLOTS) -> Floats:
    """(len(keys), width) float64 in [0, 1), a pure function of its arguments (splitmix64).

    seed: one, or (len(keys),).
    """
    mask = (1 << 64) - 1
    seeds = np.uint64(seed & mask) if isinstance(seed, int) else seed
    with np.errstate(over="ignore"):
        salt = seeds + np.uint64(lane * 0xD1B54A32D192ED03 & mask)
        start = keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + salt
        places = np.arange(1, width + 1, dtype=np.uint64) * np.uint64(0xBF58476D1CE4E5B9)
        x = start[:, None] + places
        y = x >> np.uint64(30)
        x ^= y
        x *= np.uint64(0xBF58476D1CE4E5B9)
        np.right_shift(x, np.uint64(27), out=y)
        x ^= y
        x *= np.uint64(0x94D049BB133111EB)
        np.right_shift(x, np.uint64(31), out=y)
        x ^= y
        x >>= np.uint64(11)
    drawn: Floats = x.astype(np.float64)
    drawn *= 2.0**-53
    return drawn


def uniform_one(seed: int, key: int, lane: int) -> float:
    """uniform(seed, [key], lane, 1) of one key: the same bits, without arrays."""
    mask = (1 << 64) - 1
    salt = seed + lane * 0xD1B54A32D192ED03 + 0xBF58476D1CE4E5B9
    x = (key * 0x9E3779B97F4A7C15 + salt) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return ((x ^ (x >> 31)) >> 11) * 2.0**-53


def count_trades(seed: int, open_time_ms: Ints, volume_lots: Ints, trades: Floats) -> Ints:
    """(n,) trades per candle: the source's, else a plausible number; 0 without volume."""
    own = 24 + (uniform(seed, open_time_ms, 11, 1)[:, 0] * 40).astype(np.int64)
    known = ~np.isnan(trades)
    count = np.where(known, np.nan_to_num(trades).astype(np.int64), own)
    return np.where(volume_lots > 0, np.maximum(np.minimum(count, volume_lots), 1), 0)


def make_paths(of: Rows) -> Paths:
    """The trade paths of some candles."""
    values, trades = of.values, of.trades
    rows = np.arange(len(trades))
    unit = _POWERS[of.price_digits]
    first, high, low, last = (np.rint(values[:, i] * unit).astype(np.int64) for i in range(4))
    volume = _lots(values[:, 4], of.lot_digits)
    orders = np.minimum(trades, SLOTS)
    valid = np.arange(SLOTS) < orders[:, None]
    u = [uniform(of.seed, of.open_time_ms, lane) for lane in range(6)]

    price, shaped, low_at, high_at = _prices(first, high, low, last, orders, u[0], u[1])
    buy, taker, regular = _sides(
        _lots(values[:, 7], of.lot_digits),
        np.isnan(values[:, 7]),
        volume,
        orders,
        shaped,
        low_at,
        high_at,
        u[2],
        u[1][:, 5],
    )
    height = price - low[:, None]
    weight = _pauses(u[3])
    weight += 0.05
    fine = shaped & regular & (high > low)
    scale = of.price_digits + of.lot_digits
    nothing = np.zeros(len(rows))
    bought = _targets(values[:, 8], nothing, scale, low, taker)
    sold = _targets(values[:, 5], values[:, 8], scale, low, volume - taker)
    lots = _side_lots(buy & valid, taker, bought, weight, height, fine, low_at)
    lots += _side_lots(~buy & valid, volume - taker, sold, weight, height, fine, low_at + 2)

    extra = np.maximum(trades - orders, 0)
    spread = np.where(valid, _pauses(u[4]), 0.0)
    spread_sum = np.maximum(spread.sum(axis=1), 1e-300)
    per_order = np.floor(spread * (extra / spread_sum)[:, None]).astype(np.int64)
    per_order[rows, np.argmax(spread, axis=1)] += extra - per_order.sum(axis=1)
    per_order += 1
    per_order *= valid

    pause = _pauses(u[5])
    pause += 1e-3
    pause *= valid
    part = np.cumsum(pause, axis=1)
    whole = np.maximum(part[:, -1:], 1e-300)
    part -= pause[:, :1]
    part /= whole
    step = of.step_ms[:, None]
    part *= step
    time_ms = np.minimum(part.astype(np.int64), step - 1)
    time_ms += of.open_time_ms[:, None]
    before = np.cumsum(per_order, axis=1) - per_order
    return Paths(orders, time_ms, price, lots, buy, per_order, before)


def running_sums(of: Rows, paths: Paths) -> Floats:
    """(n, SLOTS, 8) float64, position i = after the i-th order of a candle: high, low, price,
    volume, quote volume, trades, taker volume, taker quote volume."""
    height = paths.price - paths.price[:, :1]
    low = paths.price[:, :1]
    tick_unit, lot_unit = _POWERS[of.price_digits][:, None], _POWERS[of.lot_digits][:, None]
    tick, lot = _PARTS[of.price_digits][:, None], _PARTS[of.lot_digits][:, None]
    both = tick * lot
    sums = np.empty((*paths.price.shape, 8))
    sums[..., 0] = np.maximum.accumulate(paths.price, axis=1) / tick_unit
    sums[..., 1] = np.minimum.accumulate(paths.price, axis=1) / tick_unit
    sums[..., 2] = paths.price / tick_unit
    sums[..., 5] = paths.before + paths.trades
    for amounts, volume, quote in ((paths.lots, 3, 4), (paths.lots * paths.buy, 6, 7)):
        lots = np.cumsum(amounts, axis=1)
        sums[..., volume] = lots / lot_unit
        # sums relative to the first price stay exact integers
        above = np.cumsum(height * amounts, axis=1)
        sums[..., quote] = np.round(low * tick * (lots * lot) + above * both, 8)
    return sums


def _pauses(u: Floats) -> Floats:
    """Exponential draws from uniform ones."""
    return -np.log1p(-u)


def _lots(amount: Floats, digits: Ints) -> Ints:
    lots: Ints = np.rint(np.nan_to_num(amount) * _POWERS[digits]).astype(np.int64)
    return lots


def _units(quote: float, scale: int) -> int:
    """A quote amount as an exact integer of 10**-scale."""
    if scale >= 8:
        return round(quote * 1e8) * int(10 ** (scale - 8))
    return round(quote * 10.0**scale)


@dataclass(frozen=True, slots=True)
class _Target:
    """What one side's orders pay above the lowest price: lots times ticks.

    known: (n,) whether the source says; mean: over the side's volume.
    """

    known: Bools
    amount: Ints
    mean: Floats


def _targets(quote: Floats, less: Floats, scale: Ints, low: Ints, total: Ints) -> _Target:
    """quote - less in units of 10**-scale, above `low` for each of `total` lots, exactly."""
    known = ~(np.isnan(quote) | np.isnan(less))
    factor, more = _POWERS[np.minimum(scale, 8)], np.maximum(scale - 8, 0)
    parts = [np.rint(np.where(known, amount, 0.0) * factor) for amount in (quote, less)]
    largest = np.maximum(*parts) * _POWERS[more]
    is_small = (largest < _ROOM) & (low * total.astype(np.float64) < _ROOM)
    units = [np.where(is_small, part, 0.0).astype(np.int64) for part in parts]
    amount = (units[0] - units[1]) * _WHOLE[more] - np.where(is_small, low * total, 0)
    mean = amount / np.maximum(total, 1)
    for i in np.flatnonzero(known & (~is_small | (np.abs(amount) >= _EXACT))).tolist():
        exact = _units(quote.item(i), scale.item(i)) - _units(less.item(i), scale.item(i))
        exact -= low.item(i) * total.item(i)
        amount[i], mean[i] = exact, exact / max(total.item(i), 1)
    return _Target(known, amount, mean)


def _prices(
    first: Ints, high: Ints, low: Ints, last: Ints, orders: Ints, u: Floats, v: Floats
) -> tuple[Ints, Bools, Ints, Ints]:
    """Prices from open over both extremes to close.

    Rows with at least _SHAPED orders visit low, low + 1 tick, low, low + 1 tick in one block and
    the high twice in another: either side has an order at each, which meets any average price.
    Returns (prices, shaped, first slot of the low block, first slot of the high block).
    """
    rows = np.arange(len(orders))
    shaped = orders >= _SHAPED
    low_first = (last >= first) ^ (v[:, 0] < 0.2)
    one, two = np.where(low_first, low, high), np.where(low_first, high, low)
    size_one = np.where(low_first, 4, 2)
    room = np.maximum(orders - 8, 0)
    at_one = 1 + np.floor(room * (0.05 + 0.45 * v[:, 1])).astype(np.int64)
    left = room - (at_one - 1)
    at_two = at_one + size_one + np.floor(left * (0.3 + 0.65 * v[:, 2])).astype(np.int64)
    at_one = np.where(shaped, at_one, 1)
    at_two = np.where(shaped, at_two, 2)
    end = np.maximum(orders - 1, 1)

    j = np.arange(SLOTS)[None, :]
    a, b, e = at_one[:, None], at_two[:, None], end[:, None]
    f, x, y, z = (s[:, None].astype(np.float64) for s in (first, one, two, last))
    line = np.where(
        j < a,
        f + (x - f) * j / a,
        np.where(
            j < b, x + (y - x) * (j - a) / (b - a), y + (z - y) * (j - b) / np.maximum(e - b, 1)
        ),
    )
    span = (high - low)[:, None]
    price = np.rint(line + (u - 0.5) * 0.3 * span).astype(np.int64)
    price = np.clip(price, low[:, None], high[:, None])

    low_at = np.where(low_first, at_one, at_two)
    high_at = np.where(low_first, at_two, at_one)
    up = np.minimum(low + 1, high)
    full = rows[shaped]
    for offset, level in ((0, low), (1, up), (2, low), (3, up)):
        price[full, low_at[shaped] + offset] = level[shaped]
    for offset in (0, 1):
        price[full, high_at[shaped] + offset] = high[shaped]
    some = ~shaped & (orders >= 4)
    price[rows[some], 1] = one[some]
    price[rows[some], 2] = two[some]
    three = orders == 3
    top = np.maximum(first, last)
    price[rows[three], 1] = np.where(high > top, high, low)[three]
    price[rows, 0] = first
    many = orders > 1
    price[rows[many], (orders - 1)[many]] = last[many]
    return price, shaped, low_at, high_at


def _sides(
    known: Ints,
    unknown: Bools,
    volume: Ints,
    orders: Ints,
    shaped: Bools,
    low_at: Ints,
    high_at: Ints,
    draw: Floats,
    lean: Floats,
) -> tuple[Bools, Ints, Bools]:
    """Which orders bought, how many lots buyers took, and which rows are not too small.

    known: lots that buyers took, as the source says, but for the unknown.

    A side that took anything has an order, one that took nothing has none, and no side has more
    orders than lots.
    """
    rows = np.arange(len(volume))
    guess = np.rint(volume * (0.35 + 0.3 * lean)).astype(np.int64)
    taker = np.where(unknown, guess, np.clip(known, 0, volume))
    tiny = (volume < 4 * SLOTS) | (orders == 1)  # too little for two sides
    taker = np.where(tiny, np.where(2 * taker >= volume, volume, 0), taker)
    other = volume - taker
    buy = draw < (taker / np.maximum(volume, 1))[:, None]
    mixed = (taker > 0) & (other > 0)
    lone = mixed & (np.minimum(taker, other) < SLOTS)
    buy[lone] = (taker > other)[lone, None]
    buy[rows[lone], 0] = (taker < other)[lone]
    both = mixed & ~lone
    few = both & ~shaped
    buy[rows[few], 0] = True
    buy[rows[few], (orders - 1)[few]] = False
    full = both & shaped
    for at, is_buy in (
        (low_at, True),
        (low_at + 1, True),
        (low_at + 2, False),
        (low_at + 3, False),
        (high_at, True),
        (high_at + 1, False),
    ):
        buy[rows[full], at[full]] = is_buy
    return buy, taker, ~lone


def _side_lots(
    on: Bools,
    total: Ints,
    wanted: _Target,
    weight: Floats,
    height: Ints,
    fine: Bools,
    low_at: Ints,
) -> Ints:
    """Amounts of one side's orders: they sum to `total`, and height * amount to `wanted`.

    Random weights, mixed with as much of the highest (or lowest) order as the average price needs,
    rounded down to lots; what is left is moved between orders of known price difference.
    """
    rows = np.arange(len(total))
    share = np.where(on, weight, 0.0)
    share /= np.maximum(share.sum(axis=1, keepdims=True), 1e-300)
    top = np.argmax(np.where(on, height, -1), axis=1)
    bottom = np.argmin(np.where(on, height, np.iinfo(np.int64).max), axis=1)
    peak, floor = height[rows, top], height[rows, bottom]
    mean = (share * height).sum(axis=1)
    goal = np.where(wanted.known, wanted.mean, mean)
    with np.errstate(divide="ignore", invalid="ignore"):
        rise = np.where(goal > mean, (goal - mean) / (peak - mean), 0.0)
        fall = np.where(goal < mean, (mean - goal) / (mean - floor), 0.0)
    rise = np.clip(np.nan_to_num(rise, posinf=0.0), 0.0, 1.0)
    fall = np.clip(np.nan_to_num(fall, posinf=0.0), 0.0, 1.0)
    share *= (1 - rise - fall)[:, None]
    share[rows, top] += rise
    share[rows, bottom] += fall
    lots = np.floor(share * total[:, None]).astype(np.int64)
    lots = np.where(on, np.maximum(lots, 1), 0)
    used = on.any(axis=1)
    largest = np.argmax(lots, axis=1)
    lots[rows[used], largest[used]] += (total - lots.sum(axis=1))[used]

    know = wanted.known & used & (peak > floor)
    have = (lots * height).sum(axis=1)
    rest = np.where(know, wanted.amount - have, 0)
    gap = np.maximum(peak - floor, 1)
    move = rest // gap
    move = np.clip(move, 1 - lots[rows, top], lots[rows, bottom] - 1)
    move = np.where(know, move, 0)
    lots[rows, top] += move
    lots[rows, bottom] -= move
    rest = rest - move * gap
    at = np.where(fine, low_at, 0)
    move = np.clip(rest, 1 - lots[rows, np.minimum(at + 1, SLOTS - 1)], lots[rows, at] - 1)
    move = np.where(know & fine, move, 0)
    lots[rows, at] -= move
    lots[rows, np.minimum(at + 1, SLOTS - 1)] += move
    return lots
