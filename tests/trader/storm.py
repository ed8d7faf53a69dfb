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
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from shared.events import FINAL, Leg, Order, OrderState
from shared.ledger import Ledger, ledger_of
from tests.simulator.exchange import HOST, Exchange
from tests.trader.rig import BUY, HOLD, SELL, Floor
from trader.journal import Journal

ROOT = Path(__file__).parents[2]


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
    """Waits until no order is without a final state (I8), and the trader has read everything."""
    lines: list[Order] = []
    async with asyncio.timeout(limit_s):
        while True:
            lines = await market.lines()
            ledger = ledger_of(lines, "BTC", "USDT", "paper")
            waiting = [o for o in ledger.open.values() if o.leg not in (Leg.STOP, Leg.TARGET)]
            if not waiting and await market.desk.pending("trader") == 0:
                return lines
            await asyncio.sleep(0.1)


async def problems(
    market: Floor, lines: Sequence[Order], folder: Path, before: dict[str, Decimal]
) -> list[str]:
    """What is not as it must be (I4 to I7)."""
    found = []
    state = await market.ex.get("/control/account")
    ledger = ledger_of(lines, "BTC", "USDT", "paper")
    placed = Counter(order["clientOrderId"] for order in state["orders"])
    found += [f"{name} is at the exchange {n} times" for name, n in placed.items() if n > 1]
    found += [f"the journal does not know {name}" for name in placed if name not in ledger.orders]
    entries = Counter(
        order.signal_id for name in placed if (order := ledger.orders[name]).leg == Leg.ENTRY
    )
    found += [f"{n} entries for {signal_id}" for signal_id, n in entries.items() if n > 1]
    for order in state["orders"]:
        known = ledger.orders[order["clientOrderId"]]
        if known.executed != Decimal(order["executedQty"]):
            found.append(f"{known.client_id}: {known.executed} of {order['executedQty']} known")
    for order in ledger.orders.values():
        if order.state == OrderState.FILLED and order.client_id not in placed:
            found.append(f"phantom {order.client_id}")
    found += _open_ends(lines, ledger)
    after = await market.balances()
    position = after.get("BTC", Decimal(0)) - before.get("BTC", Decimal(0))
    if ledger.position != position:
        found.append(f"position {ledger.position}, the exchange has {position}")
    if ledger.flow != after["USDT"] - before["USDT"]:
        found.append(f"flow {ledger.flow}, the exchange's {after['USDT'] - before['USDT']}")
    if ledger.profit - ledger.cost != ledger.flow:
        found.append(f"profit {ledger.profit} less cost {ledger.cost} is not {ledger.flow}")
    with Journal.open(folder / "journal" / "paper.journal") as journal:
        own = ledger_of(journal.lines(), "BTC", "USDT", "paper")
    if (own.position, own.flow) != (ledger.position, ledger.flow):
        found.append(f"file: {own.position} {own.flow}, bus: {ledger.position} {ledger.flow}")
    return found


def _open_ends(lines: Sequence[Order], ledger: Ledger) -> list[str]:
    """Signals whose last line is not a final one, signals without any."""
    last: dict[str, Order] = {line.signal_id: line for line in lines if line.signal_id}
    final = FINAL | {OrderState.DUST}
    return [
        f"{signal_id} ends as {line.state} ({line.leg})"
        for signal_id, line in last.items()
        if line.state not in final and line.leg not in (Leg.STOP, Leg.TARGET)
    ]
