"""A trader that is killed again and again, at an exchange that answers badly; and what must be
true when it is over."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from shared.events import FINAL, Leg, Order, OrderState
from shared.ledger import ZERO, Ledger, Tracked, ledger_of
from tests.simulator.exchange import HOST, Exchange
from tests.trader.rig import BUY, HOLD, SELL, Floor
from trader.journal import Journal

ROOT = Path(__file__).parents[2]
_RESTS = frozenset((OrderState.ACKED, OrderState.PARTIAL))
_THERE = _RESTS | {OrderState.FILLED, OrderState.CANCELED}
# What the journal must say of an order that the exchange has.
FATES = {
    "PENDING_NEW": _RESTS,
    "NEW": _RESTS,
    "PARTIALLY_FILLED": frozenset((OrderState.PARTIAL,)),
    "FILLED": frozenset((OrderState.FILLED,)),
    "CANCELED": frozenset((OrderState.CANCELED,)),
    "EXPIRED": frozenset((OrderState.CANCELED,)),
    "EXPIRED_IN_MATCH": frozenset((OrderState.CANCELED,)),
}


@dataclass(slots=True)
class Process:
    """The trader as anyone would start it. lives: how often it was started."""

    folder: Path
    url: str
    ex: Exchange
    trader: dict[str, Any] = field(default_factory=dict)
    lives: int = 0
    running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        config = {
            "redis_url": self.url,
            "data_folder": str(self.folder),
            "binance_rest_url": f"http://{HOST}:{self.ex.port}",
            "binance_ws_url": self.ex.ws_url,
            "binance_ws_api_url": f"{self.ex.ws_url}/ws-api/v3",
            "trader": {"mode": "paper"} | self.trader,
        }
        path = self.folder / "config.json"
        path.write_text(json.dumps(config))
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ITB_")}
        self.lives += 1
        with (self.folder / "trader.log").open("ab") as log:
            self.running = subprocess.Popen(
                [sys.executable, "-m", "trader", "-c", str(path)],
                env=environment | {"PYTHONPATH": str(ROOT)},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        assert self.running is not None
        if self.running.poll() is None:
            self.running.send_signal(signal.SIGKILL)
        self.running.wait()

    def log(self) -> str:
        return (self.folder / "trader.log").read_text(errors="replace")


async def break_orders(ex: Exchange, seed: int, share: float) -> None:
    """A share of orders and cancels answered by 503, half of them executed; questions are answered
    from books that are up to 3 s old."""
    for path, method in (("order", "POST"), ("orderList/oco", "POST"), ("order", "DELETE")):
        for executed in (True, False):
            seed += 1
            await ex.break_with(
                "status", status=503, path=path, method=method, probability=share / 2,
                seed=seed, executed=executed,
            )  # fmt: skip
    for number, ms in enumerate((1_000, 3_000)):
        await ex.break_with("lag", ms=ms, probability=0.3, seed=seed + 20 + number)


async def storm(
    market: Floor,
    trader: Process,
    *,
    signals: int,
    kill_every_s: float,
    pace_s: float,
    seed: int,
) -> Counter[str]:
    """So many signals with a side, some candles without one between them."""
    rng = random.Random(seed)
    seen: Counter[str] = Counter()
    over = asyncio.Event()

    async def kills() -> None:
        while not over.is_set():
            try:
                async with asyncio.timeout(kill_every_s * rng.uniform(0.5, 1.5)):
                    await over.wait()
            except TimeoutError:
                trader.kill()
                trader.start()
                seen["kills"] += 1

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(kills())
        while seen["signals"] < signals:
            score = rng.choice((BUY, SELL, BUY, SELL, HOLD))
            await market.candle(score)
            seen["signals"] += score != HOLD
            await asyncio.sleep(pace_s * rng.uniform(0.5, 1.5))
        over.set()
    return seen


async def until_final(market: Floor, *, limit_s: float = 120) -> list[Order]:
    """Waits until no order is without a final state (I8), what rests at the exchange is told as it
    is there, and the trader has read everything."""
    lines: list[Order] = []
    async with asyncio.timeout(limit_s):
        while True:
            lines = await market.lines()
            ledger = ledger_of(lines, "BTC", "USDT", "paper")
            waiting = [o for o in ledger.open.values() if o.leg not in (Leg.STOP, Leg.TARGET)]
            if not waiting and await market.desk.pending("trader") == 0:
                state = await market.ex.get("/control/account")
                there = {order["clientOrderId"]: order for order in state["orders"]}
                if all(_is_told(order, there) for order in ledger.open.values()):
                    return lines
            await asyncio.sleep(0.1)


def _is_told(order: Tracked, there: Mapping[str, Any]) -> bool:
    """Whether an order that rests by our books does so by the exchange's."""
    found = there.get(order.client_id)
    if found is None:
        return False
    return order.state in FATES[found["status"]] and order.executed == Decimal(found["executedQty"])


async def problems(
    market: Floor, lines: Sequence[Order], folder: Path, before: dict[str, Decimal]
) -> list[str]:
    """What is not as it must be (I4 to I7), once the trader has ended."""
    state = await market.ex.get("/control/account")
    with Journal.open(folder / "journal" / "paper.journal") as journal:
        own = list(journal.lines())
    return differences(state, lines, own, before, base="BTC", quote="USDT")


def differences(
    state: Mapping[str, Any],
    lines: Sequence[Order],
    own: Sequence[Order],
    before: Mapping[str, Decimal],
    *,
    base: str,
    quote: str,
) -> list[str]:
    """The exchange's books against ours. state: the account as its engine knows it. lines: of the
    journal on the bus, own: of the file. before: what the account held before the first order."""
    found = []
    ledger = ledger_of(lines, base, quote, "paper")
    placed = {order["clientOrderId"]: order for order in state["orders"]}
    times = Counter(order["clientOrderId"] for order in state["orders"])
    found += [f"{name} is at the exchange {n} times" for name, n in times.items() if n > 1]
    found += [f"the journal does not know {name}" for name in placed if name not in ledger.orders]
    most = per_signal(placed, ledger, Leg.ENTRY)
    found += [f"{n} entries for {signal_id}" for signal_id, n in most.items() if n > 1]
    for name, order in placed.items():
        if (known := ledger.orders.get(name)) is None:
            continue
        if known.executed != Decimal(order["executedQty"]):
            found.append(f"{name}: {known.executed} of {order['executedQty']} known")
        if known.state not in FATES[order["status"]]:
            found.append(f"{name} is {order['status']}, the journal says {known.state}")
    for known in ledger.orders.values():
        if known.state in _THERE and known.client_id not in placed:
            found.append(f"phantom {known.client_id}: {known.state}")
    if (trades := {trade["id"] for trade in state["trades"]}) != ledger.trades:
        found.append(f"trades of which one side knows nothing: {sorted(trades ^ ledger.trades)}")
    found += _open_ends(lines, ledger)
    after = totals(state)
    position = after.get(base, ZERO) - before.get(base, ZERO)
    if ledger.position != position:
        found.append(f"position {ledger.position}, the exchange has {position}")
    if ledger.flow != after[quote] - before[quote]:
        found.append(f"flow {ledger.flow}, the exchange's {after[quote] - before[quote]}")
    if ledger.profit - ledger.cost != ledger.flow:
        found.append(f"profit {ledger.profit} less cost {ledger.cost} is not {ledger.flow}")
    mine = [(line.journal, line.number) for line in own]
    theirs = [(line.journal, line.number) for line in lines]
    if sorted(set(theirs)) != sorted(theirs):
        found.append("the bus has lines of the journal twice")
    if lacking := sorted(set(mine) - set(theirs)):
        found.append(f"the bus lacks {len(lacking)} lines of the file: {lacking[:3]}")
    if more := sorted(set(theirs) - set(mine)):
        found.append(f"the file lacks {len(more)} lines of the bus: {more[:3]}")
    file = ledger_of(own, base, quote, "paper")
    if (file.position, file.flow) != (ledger.position, ledger.flow):
        found.append(f"file: {file.position} {file.flow}, bus: {ledger.position} {ledger.flow}")
    return found


def totals(state: Mapping[str, Any]) -> dict[str, Decimal]:
    """What an account holds of each asset, locked or not."""
    return {
        one["asset"]: Decimal(one["free"]) + Decimal(one["locked"]) for one in state["balances"]
    }


def per_signal(placed: Iterable[str], ledger: Ledger, leg: Leg) -> Counter[str]:
    """Orders at the exchange for each signal, of that leg."""
    orders = [ledger.orders[name] for name in placed if name in ledger.orders]
    return Counter(order.signal_id for order in orders if order.leg == leg)


def summary(
    state: Mapping[str, Any],
    lines: Sequence[Order],
    before: Mapping[str, Decimal],
    *,
    base: str,
    quote: str,
) -> dict[str, object]:
    """What was traded, for people. orders_per_signal_most: at the exchange, of any leg."""
    ledger, after = ledger_of(lines, base, quote, "paper"), totals(state)
    placed = [order["clientOrderId"] for order in state["orders"]]
    known = [ledger.orders[name] for name in placed if name in ledger.orders]
    entries = Counter(order.signal_id for order in known if order.leg == Leg.ENTRY)
    orders = Counter(order.signal_id for order in known)
    position = after.get(base, ZERO) - before.get(base, ZERO)
    return {
        "orders": len(placed),
        "filled": sum(order["status"] == "FILLED" for order in state["orders"]),
        "entry_orders_per_signal_most": max(entries.values(), default=0),
        "orders_per_signal_most": max(orders.values(), default=0),
        "times_unknown": sum(line.state == OrderState.UNKNOWN for line in lines),
        "not_placed": sum(line.state == OrderState.NOT_PLACED for line in lines),
        "unresolved": len(_open_ends(lines, ledger)),
        "position_difference": f"{ledger.position - position:f}",
        "profit_after_fees": f"{ledger.profit:f}",
        "profit_difference": f"{ledger.profit - ledger.cost - (after[quote] - before[quote]):f}",
    }


def _open_ends(lines: Sequence[Order], ledger: Ledger) -> list[str]:
    """Orders and signals without a final line. Only stop and target may rest on at the exchange."""
    last: dict[str, Order] = {line.signal_id: line for line in lines if line.signal_id}
    final = FINAL | {OrderState.DUST}
    return [
        f"{order.client_id} ends as {order.state} ({order.leg})"
        for order in ledger.open.values()
        if order.leg not in (Leg.STOP, Leg.TARGET) or order.state not in _RESTS
    ] + [
        f"{signal_id} ends as {line.state} ({line.leg})"
        for signal_id, line in last.items()
        if line.state not in final and line.leg not in (Leg.STOP, Leg.TARGET)
    ]
