"""The trader over the wire: a real Valkey, the simulator, signals given by hand."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

from shared.bus import Source, Write
from shared.config import Settings, load
from shared.events import Kline, Order, Signal
from shared.ledger import Ledger, ledger_of
from shared.streams import KLINE, SIGNAL
from tests.notifier.desk import Desk, open_desk, serving
from tests.simulator.exchange import HOST, Exchange, exchange
from trader.service import Trader

SYMBOL = "BTCUSDT"
MINUTE = 60_000
BUY, SELL, HOLD = 0.5, -0.5, 0.0


def trading(folder: Path, ex: Exchange, **trader: Any) -> Settings:
    """Paper trading at the simulator, its journal in `folder`."""
    return load(
        None,
        data_folder=folder,
        binance_rest_url=f"http://{HOST}:{ex.port}",
        binance_ws_url=ex.ws_url,
        binance_ws_api_url=f"{ex.ws_url}/ws-api/v3",
        trader={"mode": "paper"} | trader,
    )


class Floor:
    """Candles and signals as the market of the simulator makes them."""

    def __init__(self, ex: Exchange, desk: Desk) -> None:
        self.ex = ex
        self.desk = desk
        self.opened: list[int] = []

    async def candle(self, score: float | None, *, side: str | None = None) -> Signal:
        """The market goes on by a candle, which the bus gets with a signal of that score."""
        await self.ex.advance(1)
        now_ms = int((await self.ex.state())["position_ms"])
        rows = await self.ex.klines(limit=2, endTime=now_ms - 1)
        row = [r for r in rows if r[6] < now_ms][-1]
        open_ms = int(row[0])
        kline = Kline(
            symbol=SYMBOL, interval="1m", open_time_ms=open_ms, close_time_ms=open_ms + MINUTE - 1,
            open=float(row[1]), high=float(row[2]), low=float(row[3]), close=float(row[4]),
            volume=float(row[5]),
        )  # fmt: skip
        if side is None:
            value = score or 0.0
            side = "BUY" if value > 0.15 else "SELL" if value < -0.15 else ""
        signal = Signal(
            open_time_ms=open_ms, symbol=SYMBOL, interval="1m", close=kline.close, score=score,
            side=side, invalid="" if score is not None else "test", release="r", schema="s",
        )  # fmt: skip
        await self.desk.bus.write(
            Write(source=Source(KLINE, SYMBOL, "1m"), event=kline, open_time_ms=open_ms,
                  market_ms=open_ms + MINUTE),
            Write(source=Source(SIGNAL, SYMBOL, "1m"), event=signal, open_time_ms=open_ms),
        )  # fmt: skip
        self.opened.append(open_ms)
        return signal

    async def lines(self) -> list[Order]:
        return await self.desk.orders()

    async def ledger(self) -> Ledger:
        return ledger_of(await self.lines(), "BTC", "USDT", "paper")

    async def until(
        self, condition: Callable[[list[Order]], bool], what: str, limit_s: float = 60
    ) -> list[Order]:
        """Waits for journal lines on the bus."""
        async with asyncio.timeout(limit_s):
            while True:
                found = await self.lines()
                if condition(found):
                    return found
                await asyncio.sleep(0.01)  # the stream tells nobody what it means

    async def until_state(self, *states: str, count: int = 1) -> list[Order]:
        return await self.until(
            lambda lines: sum(line.state in states for line in lines) >= count, f"{count} {states}"
        )

    async def balances(self) -> dict[str, Decimal]:
        state = await self.ex.get("/control/account")
        return {
            one["asset"]: Decimal(one["free"]) + Decimal(one["locked"]) for one in state["balances"]
        }


@contextlib.asynccontextmanager
async def floor(url: str, *options: str) -> AsyncIterator[Floor]:
    async with exchange(*options) as ex, open_desk(url) as desk:
        yield Floor(ex, desk)


@contextlib.asynccontextmanager
async def trades(url: str, settings: Settings) -> AsyncIterator[Any]:
    """A trader at work, once it is ready."""
    with Trader() as trader:
        async with serving(url, "trader", trader.serve, settings) as session:
            async with asyncio.timeout(60):
                while not session.health.ready:  # noqa: ASYNC110  # a plain flag of the service
                    await asyncio.sleep(0.01)
            yield session
