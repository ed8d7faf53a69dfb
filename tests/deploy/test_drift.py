"""`itb drift` over what the auditor publishes."""

import asyncio
import json
from pathlib import Path

import pytest

from deploy.cli import main
from shared.bus import Bus, Source, Write
from shared.events import Drift
from shared.streams import DRIFT, health_key
from tests.valkey import Server

M = 60_000
FOUND = Drift(
    open_time_ms=2_000 * M,
    first_ms=561 * M,
    release="20261122T120000Z-1a2b3c4d",
    rows=1_440,
    psi={"close_5": 0.9, "close_60": 0.2, "volume_5": 0.4},
    usual={"close_5": 0.3, "close_60": 0.3, "volume_5": 0.1},
    score_psi=0.25,
    score_usual=0.5,
    novelty_median=0.4,
    novelty_99=1.2,
    beyond=0.025,
)


async def put(url: str, event: Drift | None, problem: str) -> None:
    async with Bus.session(url, service="auditor", exclusive=False) as bus:
        if event is not None:
            source = Source(DRIFT, "BTCUSDT", "1m")
            await bus.write(Write(source=source, event=event, open_time_ms=event.open_time_ms))
        beat = {"service": "auditor", "drift": {"BTCUSDT": {"problem": problem}}}
        await bus.put(health_key("auditor", "auditor"), json.dumps(beat))


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_features_that_differ_more_than_usual_come_first(
    valkey: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(put(valkey.url, FOUND, ""))
    assert main(["drift", "--redis-url", valkey.url]) == 0
    out = capsys.readouterr().out
    assert "2 of 3 features differ more from training" in out
    lines = [line.split()[0] for line in out.splitlines() if line.startswith(("close", "volume"))]
    assert lines == ["volume_5", "close_5"]  # 4 times the usual, 3 times
    assert "2.5 % of the candles" in out
    assert main(["drift", "--redis-url", valkey.url, "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["drift"]["unusual"] == ["volume_5", "close_5"]
    assert told["drift"]["psi"] == FOUND.psi


def test_without_anything_known_it_says_why(
    valkey: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["drift", "--redis-url", valkey.url]) == 0
    assert "no auditor runs" in capsys.readouterr().out
    asyncio.run(put(valkey.url, None, "release x does not know what it was trained on"))
    assert main(["drift", "--redis-url", valkey.url]) == 0
    assert "release x does not know" in capsys.readouterr().out
