"""L2: the trader killed every few seconds at an exchange that answers 503, executes all the same,
and shows its books late. CHAOS_SIGNALS=1000 for the long one (`make chaos`)."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.trader.rig import floor
from tests.trader.storm import Process, break_orders, problems, storm, until_final
from tests.valkey import Server

SIGNALS = int(os.environ.get("CHAOS_SIGNALS", "1000"))
SEED = int(os.environ.get("CHAOS_SEED", "7"))


async def weather(
    valkey: Server,
    folder: Path,
    *,
    signals: int,
    kill_every_s: float,
    pace_s: float,
    seed: int,
    share: float,
    rules: dict[str, Any] | None = None,
) -> None:
    async with floor(valkey.url, "--history", "60") as market:
        trader = Process(folder, valkey.url, market.ex, {"rules": rules or {}, "max_age_s": 1e6})
        before = await market.balances()
        await market.candle(0.0)
        trader.start()
        try:
            await break_orders(market.ex, seed, share)
            seen = await storm(
                market, trader, signals=signals, kill_every_s=kill_every_s, pace_s=pace_s, seed=seed
            )
            async with market.ex.http.delete("/control/faults") as reply:
                assert reply.status == 200
            lines = await until_final(market)
        finally:
            trader.kill()
        found = await problems(market, lines, folder, before)
        filled = sum(line.state == "FILLED" for line in lines)
        unknown = sum(line.state == "UNKNOWN" for line in lines)
        sys.stderr.write(
            f"\nseed {seed}: {dict(seen)}, {trader.lives} lives, {filled} orders filled, "
            f"{unknown} times unknown\n"
        )
        assert not found, f"seed {seed}: {found}\n{trader.log()[-3000:]}"
        assert filled > 0
        assert trader.lives > 1


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "rules",
    [{}, {"limit_price_adjustment": 0.0002}, {"stop_loss": 0.002, "take_profit": 0.002}],
    ids=["market", "limit", "protected"],
)
async def test_killed_every_few_seconds_its_books_stay_those_of_the_exchange(
    valkey: Server, tmp_path: Path, rules: dict[str, Any]
) -> None:
    await weather(
        valkey, tmp_path, signals=60, kill_every_s=6, pace_s=0.5, seed=SEED, share=0.3, rules=rules
    )


@pytest.mark.chaos
@pytest.mark.timeout(7_200)
async def test_a_thousand_signals_with_a_kill_every_twenty_seconds(
    valkey: Server, tmp_path: Path
) -> None:
    await weather(
        valkey, tmp_path, signals=SIGNALS, kill_every_s=20, pace_s=0.5, seed=SEED, share=0.05
    )
