"""A seeded synthetic market: candles that look like a liquid pair's, for every instant since 2017.

The candle at a time is a pure function of (seed, symbol, interval, time): any day can be made alone
and a restarted simulator finds the same past. Days hang on a daily path (regimes of drift and
volatility, mean-reverting in the long run, so that prices stay in a plausible range over years);
inside a day, steps with clustered volatility and heavy tails are bent to meet the day's two ends.
Symbols share a common factor. Volume and trade counts follow volatility and the hour of the day,
the taker share follows direction. All nine columns agree with each other and with the trades.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shared.klines import KlineTable
from shared.times import interval_ms

Floats = npt.NDArray[np.float64]

_DAY_MS = 86_400_000
EPOCH_MS = 1_483_228_800_000  # 2017-01-01T00:00Z: no candle before it
_REGIMES = np.array(  # daily drift, daily volatility; the middle one is where the market mostly is
    [[0.0035, 0.022], [0.0002, 0.015], [-0.0040, 0.035], [0.0000, 0.060]]
)
_STAY = 0.965


@dataclass(frozen=True, slots=True)
class Profile:
    """Scale of a symbol: typical price, base volume per minute, tick and lot digits."""

    price: float
    volume: float
    price_digits: int
    lot_digits: int


_KNOWN = {
    "BTCUSDT": Profile(60_000.0, 22.0, 2, 5),
    "ETHUSDT": Profile(3_000.0, 260.0, 2, 4),
    "BNBUSDT": Profile(550.0, 120.0, 2, 3),
    "SOLUSDT": Profile(150.0, 1_900.0, 2, 3),
    "XRPUSDT": Profile(0.6, 190_000.0, 4, 0),
    "DOGEUSDT": Profile(0.15, 900_000.0, 5, 0),
}


def profile(symbol: str) -> Profile:
    """A known symbol's scale, or one drawn from the symbol's name."""
    known = _KNOWN.get(symbol)
    if known is not None:
        return known
    draw = _generator(0, symbol, "profile").random(2)
    price = float(10 ** (4 * draw[0] - 1))
    digits = max(2, 4 - int(np.floor(np.log10(price))))
    return Profile(price, float(4e5 * (0.3 + draw[1]) / price), digits, 1 if price > 10 else 0)


def generate(
    symbol: str, interval: str, start_ms: int, end_ms: int, *, seed: int = 0
) -> KlineTable:
    """Candles with start_ms <= open time < end_ms, no gaps, all nine columns."""
    step = interval_ms(interval)
    start = max(start_ms, EPOCH_MS)
    first_day, last_day = (start - EPOCH_MS) // _DAY_MS, (end_ms - 1 - EPOCH_MS) // _DAY_MS
    days = np.arange(first_day, max(last_day, first_day) + 1)
    scale = profile(symbol)
    level, sigma = _daily(symbol, seed, int(days[-1]) + 2)
    rows = _DAY_MS // step
    blocks = [_day(symbol, interval, seed, int(day), rows, scale, level, sigma) for day in days]
    open_time = (EPOCH_MS + days[:, None] * _DAY_MS + np.arange(rows) * step).reshape(-1)
    table = KlineTable(
        symbol=symbol,
        interval=interval,
        open_time_ms=open_time.astype(np.int64),
        values=np.concatenate(blocks),
    )
    return table.between(start, end_ms)


def _generator(seed: int, *names: str | int) -> np.random.Generator:
    words = [seed & 0xFFFFFFFF]
    for name in names:
        words += [name] if isinstance(name, int) else list(name.encode())
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))


def _daily(symbol: str, seed: int, count: int) -> tuple[Floats, Floats]:
    """(log price at each midnight, volatility of each day) for days 0 .. count-1."""
    common = _generator(seed, "days", "market")
    own = _generator(seed, "days", symbol)
    length = 1 + count // 1024 * 1024 + 1024  # whole blocks: a longer path has the same beginning
    jumps, picks = common.random(length), common.integers(0, len(_REGIMES), length)
    factor, private = common.standard_normal(length), own.standard_normal(length)
    spot = np.log(profile(symbol).price)
    level, sigma = np.empty(count), np.empty(count)
    regime, price, heat = 1, spot, 0.0
    for day in range(count):
        level[day] = price
        if jumps[day] > _STAY:
            regime = int(picks[day])
        drift, volatility = _REGIMES[regime]
        sigma[day] = volatility * np.exp(heat)
        move = sigma[day] * (0.8 * factor[day] + 0.6 * private[day])
        price += drift + move - 0.004 * (price - spot)
        heat = 0.9 * heat + 0.08 * (abs(factor[day]) - 0.8)
    return level, sigma


def _clusters(random: np.random.Generator, rows: int, step_minutes: float) -> Floats:
    """Relative volatility of each row, mean about 1: slow and fast waves around the day's."""
    if rows < 8:
        return np.ones(rows)
    waves = np.zeros(rows)
    for minutes, size in ((240.0, 0.30), (45.0, 0.30), (8.0, 0.25)):
        span = max(minutes / step_minutes, 1.0)
        knots = int(rows / span) + 3
        at = np.arange(rows) / span
        waves += size * np.interp(at, np.arange(knots), random.standard_normal(knots))
    return np.exp(waves - 0.5 * 0.2)


def _day(
    symbol: str,
    interval: str,
    seed: int,
    day: int,
    rows: int,
    scale: Profile,
    level: Floats,
    sigma: Floats,
) -> Floats:
    """(rows, 9) candles of one day, from its level at midnight to the next midnight's."""
    random = _generator(seed, "day", symbol, interval, day)
    shared = _generator(seed, "day", "market", interval, day)
    minutes = 1440 / rows
    hours = (np.arange(rows) + 0.5) / rows * 24
    season = 1 + 0.35 * np.cos((hours - 15) / 24 * 2 * np.pi) + 0.15 * np.exp(-((hours - 0.5) ** 2))
    market, private = _clusters(shared, rows, minutes), _clusters(random, rows, minutes)
    volatility = season * market**0.7 * private**0.5
    per_row = sigma[day] * volatility / np.sqrt(rows * np.mean(volatility**2))
    tails = random.standard_t(4, rows) / np.sqrt(2)
    steps = per_row * (0.75 * shared.standard_normal(rows) + 0.66 * tails)
    weight = per_row**2 / np.sum(per_row**2)
    steps += (level[day + 1] - level[day] - steps.sum()) * weight
    close = np.exp(level[day] + np.cumsum(steps))
    opened = np.append(np.exp(level[day]), close[:-1])
    reach = per_row * np.abs(random.standard_normal((2, rows))) * 0.6
    unit, lot = 10.0**scale.price_digits, 10.0**scale.lot_digits
    o, c = np.rint(opened * unit), np.rint(close * unit)
    jump = random.integers(-1, 2, rows)  # the first trade is rarely at the last candle's very price
    o = np.maximum(o + jump, 1)
    c = np.maximum(c, 1)
    top, bottom = np.maximum(o, c), np.minimum(o, c)
    high = np.maximum(np.floor(top * np.exp(reach[0])), top)
    low = np.maximum(np.minimum(np.ceil(bottom * np.exp(-reach[1])), bottom), 1)

    activity = season * (0.3 + 0.7 * (np.abs(steps) / per_row)) * volatility**0.8
    noise = np.exp(0.45 * random.standard_normal(rows) - 0.1)
    heat = (sigma[day] / 0.02) ** 0.6
    turnover = scale.volume * minutes * activity * noise * heat * scale.price / close
    volume = np.maximum(np.rint(turnover * lot), 400)
    trades = np.clip(
        np.rint(900 * minutes**0.9 * (activity * noise * heat) ** 0.8), 40, volume // 4
    )
    lean = np.tanh(steps / per_row) * 0.12
    share = np.clip(0.5 + lean + 0.05 * random.standard_normal(rows), 0.12, 0.88)
    taker = np.clip(np.rint(volume * share), 100, volume - 100)

    place = np.clip(0.5 + 0.12 * random.standard_normal((2, rows)), 0.2, 0.8)
    average = [np.where(high > low, low + part * (high - low), low) for part in place]
    taker_quote = np.round(taker / lot * (average[0] / unit), 8)
    rest_quote = np.round((volume - taker) / lot * (average[1] / unit), 8)
    return np.column_stack(
        [
            o / unit,
            high / unit,
            low / unit,
            c / unit,
            volume / lot,
            np.round(taker_quote + rest_quote, 8),
            trades,
            taker / lot,
            taker_quote,
        ]
    )
