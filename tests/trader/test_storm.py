"""L2: the trader killed every few seconds at an exchange that answers 503, executes all the same,
and shows its books late. The long one (`make chaos`) has CHAOS_SIGNALS (1000) and a seed of its
own, which is printed, or CHAOS_SEED."""

import json
import os
import secrets
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.trader.rig import floor
from tests.trader.storm import Process, break_orders, problems, storm, summary, until_final
from tests.valkey import Server

SIGNALS = int(os.environ.get("CHAOS_SIGNALS", "1000"))
SEED = 7  # of the short ones
_SEED = os.environ.get("CHAOS_SEED")


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
        state = await market.ex.get("/control/account")
        told = summary(state, lines, before, base="BTC", quote="USDT")
        shown = {"seed": seed, **seen, "lives": trader.lives, **told, "violations": len(found)}
        sys.stderr.write(f"\nstorm: {json.dumps(shown)}\n")
        assert not found, f"seed {seed}: {found}\n{trader.log()[-3000:]}"
        assert told["filled"]
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
    seed = int(_SEED) if _SEED else secrets.randbelow(2**31)
    sys.stderr.write(f"\nstorm: to replay: CHAOS_SEED={seed} CHAOS_SIGNALS={SIGNALS}\n")
    await weather(
        valkey, tmp_path, signals=SIGNALS, kill_every_s=20, pace_s=0.5, seed=seed, share=0.05
    )
