"""The collector as a process: killed with SIGKILL, ended with SIGTERM."""

import asyncio
import os
import random
import signal
import sys
import time
from pathlib import Path

from collector.candles import same_row
from shared.klinefiles import read_klines
from tests.collector.rig import HISTORY, START, M, Rig, rigged, truth
from tests.valkey import Server


async def start(rig: Rig, folder: Path) -> asyncio.subprocess.Process:
    settings = rig.settings()
    places = {
        "ITB_REDIS_URL": settings.redis_url,
        "ITB_BINANCE_REST_URL": settings.binance_rest_url,
        "ITB_BINANCE_WS_URL": settings.binance_ws_url,
        "ITB_DATA_FOLDER": str(folder),
        "ITB_MARKET_SPEED": "600",
        "ITB_COLLECTOR__HISTORY_ROWS": str(HISTORY),
    }
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "collector", env=os.environ | places, stderr=asyncio.subprocess.PIPE
    )


def archived(data: Path) -> list[int]:
    table = read_klines([next((data / "BTCUSDT-1m-klines").glob("*.parquet"))])[0]
    return [int(time_ms) for time_ms in table.open_time_ms]


async def test_c1_killed_again_and_again_it_loses_and_doubles_nothing(
    tmp_path: Path, valkey: Server
) -> None:
    rng = random.Random(7)
    data = tmp_path / "data"
    async with rigged(tmp_path, valkey, options=("--speed", "600")) as rig:
        upto = HISTORY - 1
        for _ in range(3):
            process = await start(rig, data)
            await rig.until_written(upto + 8)
            await asyncio.sleep(rng.random() / 5)  # a random moment is the point
            process.kill()
            await process.communicate()
            upto = (rig.klines()[-1].open_time_ms - START) // M
        process = await start(rig, data)
        await rig.until_written(upto + 8)
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, errors = await process.communicate()
        assert process.returncode == 0, errors
        assert time.monotonic() - started < 5
        klines = rig.klines()
        # What the end left no time to archive, the next start takes from the bus.
        times = [k.open_time_ms for k in klines]
        process = await start(rig, data)
        async with asyncio.timeout(60):
            while archived(data)[: len(times)] != times:  # noqa: ASYNC110  # of another process
                await asyncio.sleep(0.05)
        process.kill()
        await process.communicate()
    # The market has gone on before the first collector came: it starts HISTORY candles back.
    first = (klines[0].open_time_ms - START) // M
    rows = truth()[first : first + len(klines)]
    assert times == [row.open_time_ms for row in rows]
    assert all(same_row(k, row) for k, row in zip(klines, rows, strict=True))
