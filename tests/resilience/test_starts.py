"""How long it takes from a kill until the service is ready again; printed, and held to three times
of what is promised (5 s, with the bus 10 s), since other work may share the machine."""

import json
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.resilience.conftest import FEATURES
from tests.resilience.system import SERVICES, VALKEY, System
from tests.resilience.tape import record

_TIMES = 3
_PROMISED_S = dict.fromkeys(SERVICES, 5.0) | {VALKEY: 10.0}
_SLACK = 3


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_whoever_is_killed_is_soon_ready_again(tmp_path: Path, models: Path) -> None:
    tape = record(tmp_path, history=1_600, live=100, seed=8)
    running = System.running(
        tmp_path / "run", tape, models, FEATURES, trader={"mode": "paper", "max_age_s": 1e6}
    )
    took: defaultdict[str, list[float]] = defaultdict(list)
    async with running as system:
        await system.until_ready()
        for _ in range(_TIMES):
            await system.advance(10)
            await system.until(lambda: system.behind == 0, "signals")
            for name, seconds in (await system.time_starts()).items():
                took[name].append(seconds)
        assert not system.surprises
    shown = {name: sorted(round(s, 2) for s in seconds) for name, seconds in took.items()}
    sys.stderr.write(f"\nkill to ready, seconds: {json.dumps(shown)}\n")
    for name, promised_s in _PROMISED_S.items():
        assert max(took[name]) < _SLACK * promised_s, f"{name}: {shown}"
