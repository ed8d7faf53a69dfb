"""`python -m predictor` whose model is too slow, or takes all memory (FAULTS F11)."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import redis

from shared.bundle import Bundle
from shared.streams import health_key
from tests.predictor.test_service import FEATURES, SET, features, outputs, put, signals_of
from tests.valkey import Server

ROOT = Path(__file__).parents[2]
# A model that does what the file says, as long as it is there. The limit on memory is the kernel's.
SERVICE = """
import resource, sys, time
from pathlib import Path
import numpy as np
from predictor.service import serve
from shared import runtime
from shared.bundle import Runner

orders, real = Path(sys.argv.pop(1)), Runner.run

def run(self, *arguments, **named):
    kind = orders.read_text() if orders.exists() else ""
    if kind == "slow":
        runtime.STALL_S = 3.0
        time.sleep(600)  # a model that never ends: the watch has to end us
    if kind == "memory":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + (1 << 26)
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        taken = []
        while True:
            taken.append(np.ones(1 << 20))
    return real(self, *arguments, **named)

Runner.run = run
runtime.run_service("predictor", serve)
"""


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("kind", "words"), [("slow", "predictor stood still for 3 s"), ("memory", "MemoryError")]
)
async def test_a_model_that_ends_its_process_leaves_a_backlog_that_is_done_afterwards(
    valkey: Server, trained: tuple[Path, str, str], tmp_path: Path, kind: str, words: str
) -> None:
    config, orders = tmp_path / "config.json", tmp_path / "orders"
    keys = {
        "symbol": "TESTUSDT",
        "model_folder": str(trained[0]),
        "features_kline": FEATURES,
        "redis_url": valkey.url,
        "data_folder": str(tmp_path / "data"),
    }
    config.write_text(json.dumps(keys))

    def start() -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-c", SERVICE, str(orders), "-c", str(config)],
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    async def until_signals(count: int) -> None:
        async with asyncio.timeout(90):
            while len(await signals_of(valkey.url)) < count:
                assert process.poll() is None, "it has ended"
                await asyncio.sleep(0.05)

    def is_ready() -> bool:
        with redis.Redis(port=valkey.port) as client:
            text = client.get(health_key("predictor", "predictor"))
        return text is not None and bool(json.loads(str(text, "utf-8"))["ready"])  # type: ignore[arg-type]

    events = features(90)
    await put(valkey.url, events[:60])
    process = start()
    try:
        await until_signals(60)
        async with asyncio.timeout(60):
            while not is_ready():  # noqa: ASYNC110  # a key of the server
                await asyncio.sleep(0.05)
        orders.write_text(kind)
        await put(valkey.url, events[60:])
        _, said = await asyncio.to_thread(process.communicate, timeout=90)
        assert process.returncode not in (0, None)
        assert words in said
        assert len(await signals_of(valkey.url)) == 60  # nothing half done
        orders.unlink()
        process = start()
        await until_signals(90)
        process.terminate()
        await asyncio.to_thread(process.communicate, timeout=60)
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()
    predictions, signals = await outputs(valkey.url)
    assert [s.open_time_ms for s in signals] == [e.open_time_ms for e in events]
    bundle = Bundle.load(trained[0] / "current")
    for event, prediction, signal in zip(events, predictions, signals, strict=True):
        if event.covered:
            expected = bundle.run(np.frombuffer(event.values, "<f8").reshape(1, -1))
            assert prediction.outputs == signal.outputs == expected.named()
            assert signal.score == expected.score[0]
    assert sum(s.score is not None for s in signals) == 90 - SET.lookback + 1
