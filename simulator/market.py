"""The market as a function of its data and of market time: candles of every interval, and trades.

Nothing here knows a clock or a socket: `now_ms` is an argument. A candle is closed once now_ms has
reached its open time plus its interval; before that it is the fold of its trades so far. A minute
that the data does not have does not exist, neither here nor in any larger interval.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from shared.errors import BadInput
from shared.klines import KlineTable
from shared.times import INTERVALS_MS, floor_ms
from simulator.trades import SLOTS, Paths, Rows, count_trades, make_paths, running_sums
from simulator.wire import Candle

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_CHUNK = 32  # candles of one symbol whose paths are made together
_TOGETHER = 16  # chunks, of any symbols, that one NumPy call makes
_PLAIN_MOST = 9e7  # below it a double times 1e8 is an exact integer


@dataclass(frozen=True, slots=True)
class AggTrade:
    """One taker order: trades first_id..last_id at one price and time."""

    agg_id: int
    price: float
    quantity: float
    first_id: int
    last_id: int
    time_ms: int
    buyer_is_maker: bool
    lots: int
    lot_unit: float

    def trades(self) -> list[tuple[int, float]]:
        """(trade id, quantity) of every trade in the order."""
        count = self.last_id - self.first_id + 1
        each = self.lots // count
        first = self.lots - each * (count - 1)
        return [(self.first_id + i, (each if i else first) / self.lot_unit) for i in range(count)]


@dataclass(slots=True)
class Level:
    """Closed candles of one interval; its columns never change.

    start: index of each candle's first base row.
    """

    step_ms: int
    open_time_ms: Ints
    values: Floats
    start: Ints
    first_id: Ints
    last_id: Ints
    is_plain: Bools
    _closed: int = field(default=0, init=False)  # the last answer of `closed`,
    _since_ms: int = field(default=0, init=False)  # which holds from here
    _until_ms: int = field(default=0, init=False)  # to before this

    def __len__(self) -> int:
        return len(self.open_time_ms)

    def closed(self, now_ms: int) -> int:
        """How many candles are closed at `now_ms`."""
        if self._since_ms <= now_ms < self._until_ms:
            return self._closed
        at, step, times = now_ms - self.step_ms, self.step_ms, self.open_time_ms
        count = int(times.searchsorted(at, side="right"))
        self._closed = count
        self._since_ms = times.item(count - 1) + step if count else now_ms
        self._until_ms = times.item(count) + step if count < len(times) else now_ms + 1
        return count

    def candle(self, index: int) -> Candle:
        open_time = self.open_time_ms.item(index)
        return Candle(
            open_time,
            open_time + self.step_ms - 1,
            tuple(self.values[index].tolist()),
            self.first_id.item(index),
            self.last_id.item(index),
            self.is_plain.item(index),
        )


class _Chunk(NamedTuple):
    """The trades of consecutive candles, and their running sums: position i = after the i-th order.

    sums: (candles, SLOTS, 8) float64: high, low, price, volume, quote, trades, taker, taker quote.
    """

    paths: Paths
    sums: Floats


class _Tape(NamedTuple):
    """One candle out of a chunk; sums: (SLOTS, 8) as there, time_ms: of its orders."""

    at: int
    time_ms: list[int]
    sums: Floats
    whole: Candle


class Series:
    """One symbol: its finest candles, everything that follows from them, and their trades."""

    def __init__(self, table: KlineTable, seed: int) -> None:
        self.symbol = table.symbol
        self.interval = table.interval
        self.step_ms = table.step_ms
        self.seed = _symbol_seed(seed, table.symbol)
        self._levels: dict[tuple[int, int], Level] = {}
        self.kept_chunks = 2
        self._chunks: dict[int, _Chunk] = {}
        self._newest: _Tape | None = None
        self._load(table)

    def _load(self, table: KlineTable) -> None:
        prices = table.values[:, :4]
        there = ~np.isnan(prices).any(axis=1)
        if not there.all():  # a raster table: a row of NaN is a candle that never existed
            table = KlineTable(
                symbol=table.symbol,
                interval=table.interval,
                open_time_ms=table.open_time_ms[there],
                values=table.values[there],
            )
        if not len(table):
            raise BadInput(f"{table.symbol}-{table.interval}: there is no candle in the data")
        self.table = table
        self.price_digits = _digits(table.values[:, :4], 9e6)
        self.lot_digits = _lot_digits(table.values, self.price_digits)
        lots = np.rint(np.nan_to_num(table.values[:, 4]) * 10.0**self.lot_digits).astype(np.int64)
        self.trade_counts = count_trades(self.seed, table.open_time_ms, lots, table.values[:, 6])
        after = np.cumsum(self.trade_counts)
        first = after - self.trade_counts + 1
        self._first_trade = first
        self.typical_lots = max(1.0, float(np.mean(lots[:10_000]))) * 60_000 / self.step_ms
        none = self.trade_counts == 0
        rows = np.arange(len(table), dtype=np.int64)
        self.base = Level(
            self.step_ms,
            table.open_time_ms,
            table.values,
            rows,
            np.where(none, -1, first),
            np.where(none, -1, after),
            _are_plain(table.values),
        )
        self._levels = {(self.step_ms, 0): self.base}
        self._named: dict[tuple[str, int], Level] = {}

    def extend(self, table: KlineTable) -> None:
        """Append later candles (the synthetic market grows as time passes)."""
        old = self.table
        self._load(
            KlineTable(
                symbol=old.symbol,
                interval=old.interval,
                open_time_ms=np.concatenate([old.open_time_ms, table.open_time_ms]),
                values=np.concatenate([old.values, table.values]),
            )
        )
        self._newest = None
        last = len(old) // _CHUNK
        self._chunks = {k: chunk for k, chunk in self._chunks.items() if k < last}

    def serves(self, interval: str) -> bool:
        """Whether candles of this interval can be made from the data: a multiple of its own."""
        step = INTERVALS_MS.get(interval)
        return step is not None and step >= self.step_ms and step % self.step_ms == 0

    def level(self, interval: str, offset_ms: int = 0) -> Level:
        """Candles of an interval; offset_ms moves its raster, as a time zone east of UTC does."""
        level = self._named.get((interval, offset_ms))
        if level is None:
            step = INTERVALS_MS[interval]
            key = (step, offset_ms % step % INTERVALS_MS["1d"])
            level = self._levels.get(key)
            if level is None:
                level = self._levels[key] = self._fold(*key)
            self._named[interval, offset_ms] = level
        return level

    def _fold(self, step: int, offset: int) -> Level:
        shifted = self.base.open_time_ms + offset
        bucket = shifted - shifted % step - offset
        start = np.flatnonzero(np.diff(bucket, prepend=bucket[0] - step))
        values = self.base.values
        folded = np.empty((len(start), 9))
        end = np.append(start[1:], len(bucket)) - 1
        folded[:, 0] = values[start, 0]
        folded[:, 1] = np.maximum.reduceat(values[:, 1], start)
        folded[:, 2] = np.minimum.reduceat(values[:, 2], start)
        folded[:, 3] = values[end, 3]
        folded[:, 4:] = np.round(np.add.reduceat(values[:, 4:], start, axis=0), 8)
        before = self._first_trade[start] - 1
        after = self._first_trade[end] + self.trade_counts[end] - 1
        none = after == before
        return Level(
            step,
            bucket[start],
            folded,
            start.astype(np.int64),
            np.where(none, -1, before + 1),
            np.where(none, -1, after),
            _are_plain(folded),
        )

    # trades

    def _chunk(self, index: int) -> _Chunk:
        """The trades of the candles around `index`."""
        number = index // _CHUNK
        if number not in self._chunks:
            _make_chunks([(self, number)])
        return self._chunks[number]

    def rows(self, number: int) -> slice:
        """The base candles of one chunk."""
        return slice(number * _CHUNK, min((number + 1) * _CHUNK, len(self.table)))

    def foresee(self, from_ms: int, to_ms: int, chunks: int) -> list[int]:
        """Numbers of chunks to be made, if one from from_ms to to_ms is missing: from it on, at
        least `chunks` of them."""
        base, made = self.base, self._chunks
        last = base.closed(to_ms) // _CHUNK
        first = base.closed(from_ms) // _CHUNK
        while first in made and first < last:
            first += 1
        if first in made:
            return []
        end = (len(self.table) - 1) // _CHUNK
        return list(range(first, min(max(last, first + chunks - 1), end) + 1))

    def keep(self, number: int, chunk: _Chunk) -> None:
        self._chunks.pop(number, None)
        while len(self._chunks) >= self.kept_chunks:
            del self._chunks[next(iter(self._chunks))]
        self._chunks[number] = chunk

    def _tape(self, index: int) -> "_Tape":
        """The running sums of candle `index`; the newest one is kept."""
        if self._newest is not None and self._newest.at == index:
            return self._newest
        paths, sums = self._chunk(index)
        i = index % _CHUNK
        times = paths.time_ms[i, : paths.orders.item(i)].tolist()
        self._newest = _Tape(index, times, sums[i], self.base.candle(index))
        return self._newest

    def partial(self, index: int, now_ms: int) -> Candle | None:
        """Base candle `index` as its trades up to now leave it; None before the first."""
        _, time_ms, sums, whole = self._tape(index)
        orders = len(time_ms)
        if not orders:
            still = whole.values[0]
            empty = [0.0 if value == value else value for value in whole.values[4:]]  # noqa: PLR0124
            return whole._replace(values=(still, still, still, still, *empty), is_plain=False)
        last = bisect_right(time_ms, now_ms) - 1
        if last < 0:
            return None
        if last == orders - 1:
            return whole
        values: tuple[float, ...] = (whole.values[0], *sums[last].tolist())
        count = int(values[6])
        if not whole.is_plain:  # a column that the source lacks is missing while open, too
            values = tuple(
                part if final == final else final  # noqa: PLR0124
                for part, final in zip(values, whole.values, strict=True)
            )
        first_id = whole.first_id
        return Candle(
            whole.open_time_ms,
            whole.close_time_ms,
            values,
            first_id,
            first_id + count - 1,
            whole.is_plain,
        )

    def sums_at(self, index: Ints, now_ms: Ints) -> tuple[Floats, Bools] | None:
        """Base candles as their trades up to now_ms leave them: ((m, 8) columns high ... taker
        quote volume of those that have more to come, (n,) which those are); None when one has no
        trade by then."""
        found = np.empty((len(index), 8))
        is_part = np.empty(len(index), dtype=np.bool_)
        numbers = index // _CHUNK
        for number in sorted(set(numbers.tolist())):
            paths, sums = self._chunk(number * _CHUNK)
            here = np.flatnonzero(numbers == number)
            i = index[here] % _CHUNK
            count = paths.orders[i]
            happened = paths.time_ms[i] <= now_ms[here, None]
            happened &= np.arange(SLOTS) < count[:, None]
            last = happened.sum(axis=1) - 1
            if (last < 0).any():
                return None
            found[here] = sums[i, last]
            is_part[here] = last < count - 1
        return found[is_part], is_part

    def open_candle(self, interval: str, now_ms: int, offset_ms: int = 0) -> Candle | None:
        """The candle that contains `now_ms`, as it stands; None where there is none (yet)."""
        base = self.base
        done = base.closed(now_ms)
        part = None
        if done < len(base) and base.open_time_ms.item(done) <= now_ms:
            part = self.partial(done, now_ms)
        step = INTERVALS_MS[interval]
        if step == self.step_ms:
            return part
        bucket = floor_ms(now_ms + offset_ms, step) - offset_ms
        start = int(np.searchsorted(base.open_time_ms, bucket))
        candles = [base.candle(i) for i in range(start, done)] if step <= 64 * self.step_ms else []
        if not candles and start < done:
            candles = [_fold_rows(base, start, done, self.step_ms)]
        if part is not None:
            candles.append(part)
        return _fold_candles(candles, bucket, step) if candles else None

    def klines(
        self,
        interval: str,
        start_ms: int | None,
        end_ms: int | None,
        limit: int,
        now_ms: int,
        offset_ms: int = 0,
    ) -> list[Candle]:
        """Candles whose open time lies in [start_ms, end_ms], oldest first, the open one last.

        Without start: the newest `limit`; with it: the oldest.
        """
        level = self.level(interval, offset_ms)
        done = level.closed(now_ms)
        opened = self.open_candle(interval, now_ms, offset_ms)
        if opened is not None and start_ms is not None and opened.open_time_ms < start_ms:
            opened = None
        if opened is not None and end_ms is not None and opened.open_time_ms > end_ms:
            opened = None
        low = 0 if start_ms is None else int(np.searchsorted(level.open_time_ms, start_ms))
        high = done
        if end_ms is not None:
            high = min(done, int(np.searchsorted(level.open_time_ms, end_ms, side="right")))
        more = 1 if opened is not None else 0
        if start_ms is None:
            low = max(low, high + more - limit)
        elif high - low + more > limit:
            high = min(high, low + limit)
            if high - low + more > limit:
                opened = None
        candles = [level.candle(i) for i in range(low, high)]
        if opened is not None:
            candles.append(opened)
        return candles

    def agg_trades(self, after_ms: int, until_ms: int) -> list[AggTrade]:
        """Taker orders with after_ms < time <= until_ms, oldest first."""
        base = self.base
        low = int(np.searchsorted(base.open_time_ms, after_ms - self.step_ms, side="left"))
        high = int(np.searchsorted(base.open_time_ms, until_ms, side="right"))
        found: list[AggTrade] = []
        for index in range(low, high):
            found += (t for t in self.candle_trades(index) if after_ms < t.time_ms <= until_ms)
        return found

    def candle_trades(self, index: int) -> list[AggTrade]:
        """Every taker order of base candle `index`."""
        paths = self._chunk(index).paths
        i = index % _CHUNK
        first = int(self._first_trade[index])
        tick, lot = 10.0**self.price_digits, 10.0**self.lot_digits
        return [
            AggTrade(
                first + before,  # an aggregate's id is its first trade's: rising, and stateless
                price / tick,
                lots / lot,
                first + before,
                first + before + count - 1,
                time_ms,
                not buy,
                lots,
                lot,
            )
            for price, lots, before, count, time_ms, buy in zip(
                paths.price[i].tolist(),
                paths.lots[i].tolist(),
                paths.before[i].tolist(),
                paths.trades[i].tolist(),
                paths.time_ms[i].tolist(),
                paths.buy[i].tolist(),
                strict=True,
            )
            if count
        ]

    def first_trade_at(self, time_ms: int) -> int:
        """Id of the first trade in the candle that contains the time, or in the next one."""
        index = int(np.searchsorted(self.base.open_time_ms + self.step_ms, time_ms, side="right"))
        if index == len(self.base):
            return int(self._first_trade[-1] + self.trade_counts[-1])
        return int(self._first_trade[index])

    def newest_trades(self, now_ms: int, count: int, orders: int | None = None) -> list[AggTrade]:
        """The orders of the newest `count` trades up to now, or the newest `orders`; oldest first.

        There may be some more at the front, and are fewer at the beginning of the data.
        """
        index = int(np.searchsorted(self.base.open_time_ms, now_ms, side="right")) - 1
        found: list[AggTrade] = []
        have = 0
        while index >= 0 and have < count and (orders is None or len(found) < orders):
            some = [t for t in self.candle_trades(index) if t.time_ms <= now_ms]
            have += sum(t.last_id - t.first_id + 1 for t in some)
            found = some + found
            index -= 1
        return found

    def trades_from(self, trade_id: int, now_ms: int, orders: int) -> list[AggTrade]:
        """Orders that end at or after the trade, up to now: `orders` of them, or some more."""
        index = self.candle_of_trade(trade_id)
        found: list[AggTrade] = []
        while index < len(self.base) and len(found) < orders + SLOTS:
            if self.base.open_time_ms[index] > now_ms:
                break
            some = self.candle_trades(index)
            found += (t for t in some if t.time_ms <= now_ms and t.last_id >= trade_id)
            index += 1
        return found

    def last_quantity(self, now_ms: int) -> float:
        """Size of the last order at or before now; 0 when there was none yet."""
        found = self.newest_trades(now_ms, 1)
        return found[-1].quantity if found else 0.0

    def candle_of_trade(self, trade_id: int) -> int:
        """Index of the base candle that holds the trade, or of the next one with a trade."""
        after = self._first_trade + self.trade_counts - 1
        return int(np.searchsorted(after, trade_id))

    def last_price(self, now_ms: int) -> tuple[float, bool]:
        """Price and side (did the taker buy?) of the last trade at or before now."""
        base = self.base
        index = int(np.searchsorted(base.open_time_ms, now_ms, side="right")) - 1
        if index < 0:
            return float(base.values[0, 0]), True
        paths = self._chunk(index).paths
        i = index % _CHUNK
        orders = int(paths.orders[i])
        last = int(np.searchsorted(paths.time_ms[i, :orders], now_ms, side="right")) - 1
        if last < 0:
            before = base.values[index - 1, 3] if index and not orders else base.values[index, 0]
            return float(before), True
        return float(paths.price[i, last]) / 10.0**self.price_digits, bool(paths.buy[i, last])

    def trades_until(self, now_ms: int) -> int:
        """Id of the last public trade at or before now."""
        index = int(np.searchsorted(self.base.open_time_ms, now_ms, side="right")) - 1
        if index < 0:
            return 0
        paths = self._chunk(index).paths
        i = index % _CHUNK
        orders = int(paths.orders[i])
        done = int(np.searchsorted(paths.time_ms[i, :orders], now_ms, side="right"))
        within = int(paths.before[i, done - 1] + paths.trades[i, done - 1]) if done else 0
        return int(self._first_trade[index]) - 1 + within


def _make_chunks(wanted: Sequence[tuple[Series, int]]) -> None:
    """Make chunks (series, number) in one go, and give them to their series to keep."""
    slices = [series.rows(number) for series, number in wanted]
    sizes = [rows.stop - rows.start for rows in slices]

    def each(values: Iterable[int], dtype: type = np.int64) -> npt.NDArray[Any]:
        return np.repeat(np.fromiter(values, dtype, len(sizes)), sizes)

    def joined(parts: Iterable[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        return np.concatenate([part[rows] for part, rows in zip(parts, slices, strict=True)])

    of = Rows(
        seed=each((series.seed for series, _ in wanted), np.uint64),
        open_time_ms=joined(series.base.open_time_ms for series, _ in wanted),
        step_ms=each(series.step_ms for series, _ in wanted),
        values=joined(series.base.values for series, _ in wanted),
        trades=joined(series.trade_counts for series, _ in wanted),
        price_digits=each(series.price_digits for series, _ in wanted),
        lot_digits=each(series.lot_digits for series, _ in wanted),
    )
    paths = make_paths(of)
    sums = running_sums(of, paths)
    start = 0
    for (series, number), size in zip(wanted, sizes, strict=True):
        stop = start + size
        series.keep(number, _Chunk(paths.part(start, stop), sums[start:stop]))
        start = stop


class Market:
    """All symbols on one time line."""

    def __init__(self, tables: Sequence[KlineTable], *, seed: int = 0) -> None:
        self.seed = seed
        self.series: dict[str, Series] = {}
        for table in sorted(tables, key=lambda t: t.step_ms):
            self.series.setdefault(table.symbol, Series(table, seed))
        self._ahead = max(1, _TOGETHER // max(1, len(self.series)))
        for series in self.series.values():
            series.kept_chunks = 1 + self._ahead
        self.closes_ms = _union(self.series.values())

    @property
    def step_ms(self) -> int:
        """The shortest base interval: the length of one step of the time line."""
        return min(series.step_ms for series in self.series.values())

    def extend(self, tables: Iterable[KlineTable]) -> None:
        for table in tables:
            self.series[table.symbol].extend(table)
        self.closes_ms = _union(self.series.values())

    def foresee(self, followed: Iterable[Series], from_ms: int, to_ms: int) -> None:
        """Make the paths that these series need in that time, many in one go; they would come by
        themselves, but one by one."""
        wanted = [(s, n) for s in followed for n in s.foresee(from_ms, to_ms, self._ahead)]
        for start in range(0, len(wanted), _TOGETHER):
            _make_chunks(wanted[start : start + _TOGETHER])

    def next_close(self, after_ms: int) -> int | None:
        """When the next candle of any symbol closes; None at the end of the data."""
        index = int(np.searchsorted(self.closes_ms, after_ms, side="right"))
        return int(self.closes_ms[index]) if index < len(self.closes_ms) else None

    def steps_done(self, now_ms: int) -> int:
        return int(np.searchsorted(self.closes_ms, now_ms, side="right"))


def _union(series: Iterable[Series]) -> Ints:
    """Every time at which some candle closes."""
    distinct: list[Ints] = []
    for one in series:
        closes = one.base.open_time_ms + one.step_ms
        if not any(np.array_equal(closes, other) for other in distinct):
            distinct.append(closes)
    return distinct[0] if len(distinct) == 1 else np.unique(np.concatenate(distinct))


def _fold_rows(base: Level, start: int, stop: int, step: int) -> Candle:
    values = base.values[start:stop]
    first = base.first_id[start:stop]
    ids = first[first >= 0]
    last = base.last_id[start:stop]
    open_time = int(base.open_time_ms[start])
    return Candle(
        open_time,
        open_time + step - 1,
        (
            float(values[0, 0]),
            float(values[:, 1].max()),
            float(values[:, 2].min()),
            float(values[-1, 3]),
            *np.round(values[:, 4:].sum(axis=0), 8).tolist(),
        ),
        int(ids[0]) if len(ids) else -1,
        int(last.max()),
    )


def _fold_candles(candles: Sequence[Candle], open_time_ms: int, step_ms: int) -> Candle:
    values = [candle.values for candle in candles]
    sums = (round(sum(column), 8) for column in list(zip(*values, strict=True))[4:])
    return Candle(
        open_time_ms,
        open_time_ms + step_ms - 1,
        (
            values[0][0],
            max(v[1] for v in values),
            min(v[2] for v in values),
            values[-1][3],
            *sums,
        ),
        next((c.first_id for c in candles if c.first_id >= 0), -1),
        max(c.last_id for c in candles),
    )


def _symbol_seed(seed: int, symbol: str) -> int:
    digest = 0xCBF29CE484222325  # FNV-1a
    for byte in f"{seed}:{symbol}".encode():
        digest = (digest ^ byte) * 0x100000001B3 % (1 << 64)
    return digest


def _digits(values: Floats, limit: float) -> int:
    """The fewest decimals that print every value exactly, at most eight."""
    largest = float(np.nanmax(values)) if values.size else 1.0
    for digits in range(9):
        scaled = values * 10.0**digits
        if (np.rint(scaled) / 10.0**digits == values).all():
            return digits
        if largest * 10.0 ** (digits + 1) > limit * 1e6:
            return digits
    return 8


def _are_plain(values: Floats) -> Bools:
    """(n,) rows whose every value is the double nearest to a number of eight decimals."""
    plain: Bools = np.ones(len(values), dtype=np.bool_)
    for column in values.T:  # NaN is not plain
        plain &= (column < _PLAIN_MOST) & (np.rint(column * 1e8) / 1e8 == column)
    return plain


def _lot_digits(values: Floats, price_digits: int) -> int:
    """The most decimals, up to eight, that keep every volume an exact integer of lots; but no more
    than are needed where lots times ticks would leave the integers otherwise."""
    volume = values[:, 4]
    largest = max(float(np.nanmax(volume, initial=0.0)), 1e-8)
    most = next((digits for digits in range(8, 0, -1) if largest * 10.0**digits < 2.0**52), 0)
    ticks = np.nan_to_num((values[:, 1] - values[:, 2]) * volume) * 10.0**price_digits
    if float(ticks.max()) * 10.0**most < 2.0**63:
        return most
    return min(most, _digits(np.nan_to_num(volume), 9e6))
