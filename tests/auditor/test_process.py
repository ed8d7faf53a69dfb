"""`python -m auditor` beside a bus that is in use."""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import redis

from shared.streams import PARITY, RECORD, SIGNAL, health_key
from tests.played import Played
from tests.resilience.tape import SYMBOL
from tests.valkey import free_port
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
_PATIENCE_S = 60.0


def until(condition: Callable[[], Any], process: "subprocess.Popen[bytes]") -> Any:
    def met() -> Any:
        assert process.poll() is None, "it has ended"
        return condition()

    return wait_until(met, "what the auditor does")


def test_it_records_and_certifies_and_tells_how_far_it_is(own: Played, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    keys: dict[str, Any] = {
        "symbol": SYMBOL,
        "model_folder": str(own.models),
        "data_folder": str(tmp_path / "data"),
        "redis_url": own.server.url,
        "features_kline": list(own.settings.features_kline or ()),
        "auditor": {"pause_s": 0.1},
        "metrics_port": free_port(),
    }
    config.write_text(json.dumps(keys))
    process = subprocess.Popen(
        [sys.executable, "-m", "auditor", "-c", str(config)],
        cwd=ROOT,
        env=os.environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    rows = len(own.tape.klines)
    try:
        with redis.Redis(port=own.server.port) as client:

            def beat() -> dict[str, Any]:
                text: Any = client.get(health_key("auditor", "auditor"))
                found: dict[str, Any] = {} if text is None else json.loads(text)
                return found

            def is_done() -> bool:
                parity = beat().get("parity", {}).get(SYMBOL, {})
                return bool(parity.get("equal", 0) + parity.get("unequal", 0) == rows)

            until(is_done, process)
            found = beat()
            assert found["ready"] is True
            assert found["parity"][SYMBOL]["unequal"] == 0
            with urllib.request.urlopen(
                f"http://127.0.0.1:{keys['metrics_port']}/metrics"
            ) as reply:
                told = reply.read().decode()
            own_labels = f'instance="auditor",service="auditor",symbol="{SYMBOL}"'
            last_s = own.tape.klines[-1].open_time_ms / 1000
            for name, labels, value in (
                ("itb_parity_signals_total", 'instance="auditor",result="equal"', rows),
                ("itb_parity_signals_total", 'instance="auditor",result="unequal"', 0),
                ("itb_parity_behind_candles", own_labels, 0),
                ("itb_parity_last_candle_seconds", own_labels, last_s),
            ):
                found_ = [v for v in told.splitlines() if v.startswith(f"{name}{{{labels}")]
                assert [float(v.split()[-1]) for v in found_] == [value], (name, labels)
            newest: Any = client.xrevrange(RECORD.key(SYMBOL, "1m"), count=1)
            assert found["record"][SYMBOL]["hash"] == newest[0][1][b"hash"].decode()
            assert client.xlen(RECORD.key(SYMBOL, "1m")) == rows
            assert client.xlen(PARITY.key(SYMBOL, "1m")) >= 1
            groups: Any = client.xinfo_groups(SIGNAL.key(SYMBOL, "1m"))
            assert "auditor" not in {group["name"].decode() for group in groups}
            assert psutil.Process(process.pid).nice() == min(19, os.nice(0) + 10)  # after others
    finally:
        process.terminate()
        process.wait()
    assert process.returncode == 0
