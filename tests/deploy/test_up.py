"""`itb up` from nothing: downloads, trains, promotes and goes live, against the simulator."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from deploy.valkey import free_port
from tests.valkey import Server


@pytest.mark.slow
def test_a_machine_without_models_trains_and_goes_live(tmp_path: Path) -> None:
    port = free_port()
    now_ms = time.time_ns() // 1_000_000 // 60_000 * 60_000
    config = tmp_path / "config.json"
    settings = {
        "data_folder": str(tmp_path / "data"),
        "model_folder": str(tmp_path / "models"),
        "archive_url": "",
        "market_speed": 60,
        "binance_rest_url": f"http://127.0.0.1:{port}",
        "binance_ws_url": f"ws://127.0.0.1:{port}",
        "labels": ["high_10", "low_10"],
        "algorithms": ["lc"],
        "trainer": {"train_days": 6},
        "signaler": {"notification_threshold": 0},
    }
    config.write_text(json.dumps(settings))
    exchange = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "simulator",
            "--port",
            str(port),
            "--history",
            "12000",
            "--speed",
            "60",
            "--start-at",
            str(now_ms),
        ],
        stderr=subprocess.DEVNULL,
    )
    up = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "deploy.cli",
            "up",
            "-c",
            str(config),
            "--redis-port",
            str(free_port()),
        ],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    try:
        assert up.stderr is not None
        seen = []
        for line in up.stderr:
            seen.append(line)
            if "Score:" in line and any("is live: 2 models" in one for one in seen):
                break
        assert "Score:" in seen[-1], "".join(seen)
        family = psutil.Process(up.pid).children(recursive=True)
        names = {p.cmdline()[2] for p in family if p.cmdline()[1:2] == ["-m"]}
        assert names == {"collector", "featurizer", "predictor", "notifier", "trader"}
        up.send_signal(signal.SIGTERM)
        assert up.wait(timeout=8) == 0
        _, alive = psutil.wait_procs(family, timeout=1)
        assert not alive
    finally:
        for process in (up, exchange):
            process.kill()
            process.wait()
        if up.stderr is not None:
            up.stderr.close()


def test_a_taken_port_is_one_line(tmp_path: Path, valkey: Server) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deploy.cli", "up", "--redis-port", str(valkey.port)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"itb: port {valkey.port} of 127.0.0.1 is taken")
    assert len(done.stderr.splitlines()) == 1
