"""What must be true of the orders when all is over (FAULTS I4 to I8), seen from three sides: the
exchange's engine, the journal file, and the journal on the bus."""

import json
import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from shared.events import FINAL, Leg, Order, OrderState, Signal
from shared.ledger import ledger_of
from tests.resilience.checks import Expected, Kept, Problems
from tests.resilience.system import Life
from tests.resilience.tape import M
from tests.trader.storm import differences, per_signal, totals
from trader.journal import Journal
from trader.orders import client_id

BASE, QUOTE = "TEST", "USDT"
# Our clock and the exchange's, as the trader measures it, are apart by less.
_NEAR_MS = 500
_SELLS_ONLY = (OrderState.REDUCED, OrderState.FLATTENED)


@dataclass(frozen=True, slots=True)
class Switched:
    """The switch's file said `word` from from_ms to to_ms, our clock."""

    word: str
    from_ms: int
    to_ms: int


@dataclass(slots=True)
class Totals:
    """What was traded. counts: of orders, fills and signals. difference: of what our fills did to
    the two balances, by our books less by the exchange's."""

    counts: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    entries_most: int = 0
    orders_most: int = 0
    profit: Decimal = Decimal(0)
    difference: Decimal = Decimal(0)

    def add(self, other: "Totals") -> None:
        self.counts.update(other.counts)
        self.states.update(other.states)
        self.entries_most = max(self.entries_most, other.entries_most)
        self.orders_most = max(self.orders_most, other.orders_most)
        self.profit += other.profit
        self.difference += other.difference

    def shown(self) -> dict[str, object]:
        return {
            **dict(sorted(self.counts.items())),
            "lines": dict(sorted(self.states.items())),
            "entry_orders_per_signal_most": self.entries_most,
            "orders_per_signal_and_leg_most": self.orders_most,
            "profit_after_fees": str(self.profit),
            "difference_to_the_exchange": str(self.difference),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the test knows of a round. state: the account as the exchange's engine has it."""

    state: Mapping[str, Any]
    deposits: Mapping[str, Any]
    lives: Sequence[Life]
    lost_ms: Sequence[int]
    switched: Sequence[Switched]
    max_age_ms: float


def read_file(folder: Path) -> list[Order]:
    """The lines of the journal file; the trader must have ended."""
    with Journal.open(folder / "journal" / "paper.journal") as journal:
        return list(journal.lines())


def cut_file(folder: Path, share: float) -> int:
    """What a power cut may take from the end of the journal file: a share of the lines behind the
    last one that had to be on the disk (an intent, a switch). Returns how many were lost."""
    path = folder / "journal" / "paper.journal"
    ends, offset, durable = [0], 0, 1  # the head is
    with path.open("rb") as file:
        for record in file:
            offset += len(record)
            ends.append(offset)
            state = json.loads(record[9:]).get("state")
            if state in (OrderState.INTENT, OrderState.HALTED, OrderState.RESUMED, *_SELLS_ONLY):
                durable = len(ends) - 1
    kept = len(ends) - 1 - round(share * (len(ends) - 1 - durable))
    os.truncate(path, ends[kept])
    return len(ends) - 1 - kept


def check_orders(
    kept: Kept, own: Sequence[Order], expected: Expected, told: Told
) -> tuple[Problems, Totals]:
    """Everything about orders; own: the lines of the file."""
    problems = Problems()
    lines = [line for _, line in kept.events("order", Order)]
    before = totals(told.deposits)
    for text in differences(told.state, lines, own, before, base=BASE, quote=QUOTE):
        problems.say("orders", text)
    placed = {order["clientOrderId"]: order for order in told.state["orders"]}
    _check_signals(problems, lines, placed, expected.signals)
    intents = {line.client_id: line for line in own if line.state == OrderState.INTENT}
    for name in placed:
        if name not in intents:
            problems.say("order without intent", name)
    sent = [intents[name] for name in placed if name in intents]
    counts = Counter({"orders": len(placed), "fills": len(told.state["trades"])})
    _check_age(problems, sent, told.max_age_ms)
    counts["entries_judged_by_their_start"] = _check_start(problems, sent, told)
    counts["switched"] = _check_file_switch(problems, sent, told.switched)
    _check_journalled_switch(problems, own, placed)
    return problems, _count(lines, own, placed, told, counts)


def _check_signals(
    problems: Problems,
    lines: Sequence[Order],
    placed: Mapping[str, Any],
    signals: Sequence[Signal],
) -> None:
    """Every signal with a side has its lines; only signals to buy have entries, one at most, and
    that by the names alone, whatever the journal says (I4)."""
    sides = {signal.id: signal for signal in signals if signal.side}
    for missing in sorted(sides.keys() - {line.signal_id for line in lines}):
        problems.say("signal without a line", missing)
    names = {client_id(s.id, Leg.ENTRY) for s in signals if s.side == "BUY"}
    for name, order in placed.items():
        if order["side"] == "BUY" and name not in names:
            problems.say("bought without a signal", name)
    for line in lines:
        of_signal = line.leg == Leg.ENTRY or (line.state == OrderState.DROPPED and not line.leg)
        if not of_signal or not line.signal_id:
            continue
        signal = sides.get(line.signal_id)
        if signal is None or (line.side, line.score) != (signal.side, signal.score):
            problems.say("order wrong", str(line))


def _check_age(problems: Problems, sent: Sequence[Order], max_age_ms: float) -> None:
    for line in sent:
        age_ms = line.market_ms - (line.open_time_ms + M)
        if line.leg == Leg.ENTRY and age_ms > max_age_ms:
            problems.say("order for an old signal", f"{age_ms} ms: {line}")


def _check_start(problems: Problems, sent: Sequence[Order], told: Told) -> int:
    """No life of the trader buys on a candle that was on the bus when it began; returns how many
    entries could be judged. A server that was ended may have lost candles: then nobody knows."""
    starts = [life.began_ms for life in told.lives]
    judged = 0
    for line in sent:
        place = bisect_right(starts, line.sent_ms) - 1
        if line.leg != Leg.ENTRY or place < 0:
            continue
        life = told.lives[place]
        unclear = any(life.began_ms - 2_000 <= ms <= line.sent_ms for ms in told.lost_ms)
        if life.kline_ms is None or unclear or line.sent_ms < life.began_ms + _NEAR_MS:
            continue
        judged += 1
        if line.open_time_ms < life.kline_ms:
            problems.say("order from before the start", f"{life}: {line}")
    return judged


def _check_file_switch(
    problems: Problems, sent: Sequence[Order], switched: Sequence[Switched]
) -> int:
    for one in switched:
        for line in sent:
            is_forbidden = one.word == "HALT" or line.side == "BUY"
            if is_forbidden and one.from_ms + _NEAR_MS < line.sent_ms < one.to_ms - _NEAR_MS:
                problems.say("order against the file", f"{one}: {line}")
    return len(switched)


def _check_journalled_switch(
    problems: Problems, own: Sequence[Order], placed: Container[str]
) -> None:
    """By the file's own order: what was written down after a HALTED is not at the exchange."""
    state = OrderState.RESUMED
    for line in own:
        if not line.client_id and line.state in (OrderState.HALTED, OrderState.RESUMED,
                                                 *_SELLS_ONLY):  # fmt: skip
            state = OrderState(line.state)
            continue
        is_forbidden = state == OrderState.HALTED or (state in _SELLS_ONLY and line.side == "BUY")
        if line.state == OrderState.INTENT and line.client_id in placed and is_forbidden:
            problems.say("order against the switch", f"{state}: {line}")


def _count(
    lines: Sequence[Order],
    own: Sequence[Order],
    placed: Mapping[str, Any],
    told: Told,
    counts: Counter[str],
) -> Totals:
    ledger = ledger_of(lines, BASE, QUOTE, "paper")
    entries = per_signal(placed, ledger, Leg.ENTRY)
    counts["entries"] = entries.total()
    counts["signals_traded"] = len({ledger.orders[n].signal_id for n in placed
                                    if n in ledger.orders})  # fmt: skip
    counts["lives"] = len(told.lives)
    counts["unresolved"] = sum(order.state not in FINAL for order in ledger.orders.values())
    counts["adopted"] = sum(line.is_adopted for line in own)
    most = max((per_signal(placed, ledger, leg).most_common(1) for leg in (Leg.ENTRY, Leg.EXIT)),
               key=lambda found: found[0][1] if found else 0)  # fmt: skip
    after, before = totals(told.state), totals(told.deposits)
    flow = after[QUOTE] - before[QUOTE]
    position = after.get(BASE, Decimal(0)) - before.get(BASE, Decimal(0))
    return Totals(
        counts=counts,
        states=Counter(str(line.state) for line in own),
        entries_most=max(entries.values(), default=0),
        orders_most=most[0][1] if most else 0,
        profit=ledger.profit,
        difference=abs(ledger.flow - flow) + abs(ledger.position - position),
    )
