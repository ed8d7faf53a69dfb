"""Why trading earned another sum than a backtest over the same signals. Pure.

Round trips are matched by the candle whose signal opened them. Of a matched one, at the live
quantity: what it cost in fees beyond the backtest's, what its fills were worse by, and what another
size makes of the backtest's profit. A fill on the same signal that came in a later candle than the
backtest's is late by the move between both candles' opens (latency); the rest of the difference is
slippage. An exit on another signal, or by a stop in another candle, is counted by itself, and so is
one that the backtest has not made yet. What the backtest traded alone was missed, what was traded
alone live is extra; what live still holds is compared when it has ended. The parts sum to the
difference.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from shared.events import Leg, Order
from shared.exchange import Fill, Side
from shared.ledger import fills_of
from shared.times import floor_ms
from trainer.backtest import Trade
from trainer.grid import Market

PARTS = ("fees", "slippage", "latency", "other_exits", "size", "missed", "extra", "rest")
_OPEN_AT_END = "open at the end"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trip:
    """A round trip that has ended. signal_ms: candle of the signal that opened it. *_ms: market
    time of the first buy and the last sale. bought: base; *_price: mean of the fills. fees: quote
    units, of fees in base and quote. profit: after those. exit_signal_ms: candle of the signal that
    closed it, None where a stop, a target or a person did."""

    signal_ms: int
    entry_ms: int
    exit_ms: int
    bought: float
    entry_price: float
    exit_price: float
    fees: float
    profit: float
    exit_signal_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Profits of the round trips that ended, in quote units, and the parts of their difference."""

    live: float
    backtest: float
    parts: Mapping[str, float]
    live_trips: int
    backtest_trips: int
    both: int


def live_trips(lines: Iterable[Order], *, speed: float = 1.0) -> list[Trip]:
    """The round trips of a journal; a line with `profit` ends one.

    lines: of one symbol and mode, oldest first; where they begin within a round trip, that one is
    left out. speed: seconds of market per second.
    """
    return _walk(lines, speed)[0]


def held_since(lines: Iterable[Order]) -> int | None:
    """Candle of the signal behind what is held now, None where nothing is."""
    return _walk(lines, 1.0)[1]


def _walk(lines: Iterable[Order], speed: float) -> tuple[list[Trip], int | None]:
    found: list[Trip] = []
    seen: set[int] = set()
    buys: list[tuple[int, float, float]] = []
    sales: list[tuple[int, float, float]] = []
    fees, signal_ms = 0.0, 0
    exit_signal_ms: int | None = None
    for line in lines:
        for fill in fills_of(line):
            if fill.trade_id in seen:
                continue
            seen.add(fill.trade_id)
            filled = (
                _filled_ms(line, fill, speed), float(fill.quantity), float(fill.quote_quantity)
            )  # fmt: skip
            if fill.side is Side.BUY:
                if not buys or line.leg == Leg.ENTRY:
                    signal_ms = line.open_time_ms
                buys.append(filled)
            else:
                exit_signal_ms = line.open_time_ms if line.leg == Leg.EXIT else None
                sales.append(filled)
            if line.symbol.startswith(fill.fee_asset):
                fees += float(fill.fee * fill.price)
            elif line.symbol.endswith(fill.fee_asset):
                fees += float(fill.fee)
        if line.profit and buys and sales:
            bought, spent = sum(q for _, q, _ in buys), sum(m for *_, m in buys)
            sold, gained = sum(q for _, q, _ in sales), sum(m for *_, m in sales)
            found.append(
                Trip(
                    signal_ms=signal_ms,
                    entry_ms=buys[0][0],
                    exit_ms=sales[-1][0],
                    bought=bought,
                    entry_price=spent / bought,
                    exit_price=gained / sold,
                    fees=fees,
                    profit=float(line.profit),
                    exit_signal_ms=exit_signal_ms,
                )
            )
        if line.profit:
            buys, sales, fees = [], [], 0.0
    return found, signal_ms if buys else None


def _filled_ms(line: Order, fill: Fill, speed: float) -> int:
    """The market's time of a fill, which its line of the journal tells of a little later."""
    told_ms = line.market_ms - speed * max(0, line.time_ms - fill.time_ms)
    return max(line.open_time_ms, round(told_ms))


def gap_of(
    trips: Sequence[Trip],
    trades: Sequence[Trade],
    market: Market,
    step_ms: int,
    held_ms: int | None = None,
) -> Gap:
    """trades: of the backtest over `market`; those still open at its end count for nothing, and
    neither does the one of the signal held_ms, whose position live still holds."""
    opens = dict(zip(market.open_time_ms.tolist(), market.open.tolist(), strict=True))
    still_open = {
        _ms(trade.entry_time) - step_ms for trade in trades if trade.exit_reason == _OPEN_AT_END
    }
    ended = [
        trade
        for trade in trades
        if trade.exit_reason != _OPEN_AT_END and _ms(trade.entry_time) - step_ms != held_ms
    ]
    by_signal = {_ms(trade.entry_time) - step_ms: trade for trade in ended}
    parts = dict.fromkeys(PARTS, 0.0)
    both = 0
    for trip in trips:
        trade = by_signal.pop(trip.signal_ms, None)
        if trade is None:
            alone = "other_exits" if trip.signal_ms in still_open else "extra"
            parts[alone] += trip.profit
            continue
        both += 1
        scale = trip.bought * trip.entry_price / (trade.quantity * trade.entry_price)
        parts["size"] += trade.profit * (scale - 1)
        parts["fees"] -= trip.fees - trade.fees * scale
        worse = -trip.bought * (trip.entry_price - trade.entry_price)
        late = _late(opens, floor_ms(trip.entry_ms, step_ms), _ms(trade.entry_time))
        parts["latency"] -= trip.bought * late
        parts["slippage"] += worse + trip.bought * late
        better = trip.bought * (trip.exit_price - trade.exit_price)
        left_ms, tested_ms = floor_ms(trip.exit_ms, step_ms), _ms(trade.exit_time)
        if trip.exit_signal_ms is not None and trip.exit_signal_ms + step_ms == tested_ms:
            gained = trip.bought * _late(opens, left_ms, tested_ms)
            parts["latency"] += gained
            parts["slippage"] += better - gained
        else:
            parts["slippage" if left_ms == tested_ms else "other_exits"] += better
    parts["missed"] -= sum(trade.profit for trade in by_signal.values())
    live, tested = sum(trip.profit for trip in trips), sum(trade.profit for trade in ended)
    parts["rest"] = live - tested - sum(parts.values())
    return Gap(
        live=live,
        backtest=tested,
        parts=parts,
        live_trips=len(trips),
        backtest_trips=len(ended),
        both=both,
    )


def _late(opens: Mapping[int, float], live_ms: int, tested_ms: int) -> float:
    """By how much the market had moved up between the two candles' opens; 0 where one is a gap."""
    moved = opens.get(live_ms, float("nan")) - opens.get(tested_ms, float("nan"))
    return moved if live_ms > tested_ms and moved == moved else 0.0  # noqa: PLR0124 - NaN


def _ms(time: str) -> int:
    return round(datetime.fromisoformat(time.replace("Z", "+00:00")).timestamp() * 1000)
