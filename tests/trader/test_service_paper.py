"""The whole trader at the simulator: real Valkey, real HTTP, a real journal file."""

from pathlib import Path

from tests.trader.rig import BUY, HOLD, SELL, floor, trades, trading
from tests.valkey import Server


async def test_it_buys_sells_and_its_books_are_the_exchange_s(
    valkey: Server, tmp_path: Path
) -> None:
    async with floor(valkey.url) as market:
        await market.candle(HOLD)
        before = await market.balances()
        async with trades(valkey.url, trading(tmp_path, market.ex)):
            await market.candle(BUY)
            await market.until_state("FILLED", count=1)
            await market.candle(HOLD)
            await market.candle(SELL)
            await market.until_state("FILLED", count=2)
        after = await market.balances()
        ledger = await market.ledger()
        assert ledger.flow == after["USDT"] - before["USDT"]
        assert ledger.position == after["BTC"] > 0
        told = [(line.state, line.side, line.leg) for line in await market.lines()]
        # ACKED where the user stream is faster than the reply.
        assert [one for one in told if one[0] != "ACKED"] == [
            ("INTENT", "BUY", "entry"), ("FILLED", "BUY", "entry"),
            ("INTENT", "SELL", "exit"), ("DUST", "SELL", "exit"), ("FILLED", "SELL", "exit"),
        ]  # fmt: skip
