"""`itb up` from nothing: downloads, trains, promotes and goes live, against the simulator."""

import asyncio
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from deploy import up as up_module
from deploy.screen import Screen
from deploy.supervisor import Supervisor
from deploy.valkey import free_port
from shared.config import load
from shared.errors import Usage
from shared.releases import promote
from tests import made_releases
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
        services = {"collector", "featurizer", "predictor", "notifier", "trader"}
        assert names == services | {"auditor", "dashboard"}
        up.send_signal(signal.SIGTERM)
        assert up.wait(timeout=8) == 0
        _, alive = psutil.wait_procs(family, timeout=5)
        # One that has ended, and that only its new parent (init) has not heard of yet, is gone.
        assert not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    finally:
        for process in (up, exchange):
            process.kill()
            process.wait()
        if up.stderr is not None:
            up.stderr.close()


async def test_what_no_service_can_run_with_ends_it_before_anything_is_started(
    tmp_path: Path,
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_folder": str(tmp_path), "labels": ["high_10", "lo_10"]}))
    with pytest.raises(Usage, match=r"^labels: no label 'lo_10'; did you mean .* -> mend the name"):
        await up_module.run(
            up_module.Options(config=config, workdir=tmp_path / "work"), Screen(io.StringIO())
        )
    assert not (tmp_path / "work").exists()


async def test_a_release_of_other_features_is_told_once_at_the_start(tmp_path: Path) -> None:
    release = made_releases.write(tmp_path / "models")
    promote(tmp_path / "models", release.name)
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps({"model_folder": str(tmp_path / "models"), "features_kline": ["close_7"]})
    )
    out = io.StringIO()
    await up_module._look(config, Screen(out))
    (line,) = out.getvalue().splitlines()
    assert "made for other features than the config's" in line
    assert "no candle is scored -> `python -m trainer train --promote`" in line


async def _attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, *, until: str
) -> list[str]:
    """Lines that `itb up` shows, up to one with `until`, where the trainer is `script`."""
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "__main__.py").write_text(script)
    monkeypatch.chdir(tmp_path)  # `python -m trainer` finds this one there
    monkeypatch.setattr(up_module, "_RETRY_S", (0.01, 0.02))
    out = io.StringIO()
    settings = load(model_folder=tmp_path / "models")
    async with Supervisor(tmp_path / "logs", print) as supervisor:
        training = asyncio.create_task(
            up_module._train(
                supervisor,
                settings,
                Screen(out),
                (),
                {"PYTHONPATH": str(tmp_path), "OUT": str(tmp_path)},
            )
        )
        async with asyncio.timeout(20):
            while until not in out.getvalue():  # another process shows it
                await asyncio.sleep(0.01)
                assert not training.done() or until in out.getvalue()
            await asyncio.sleep(0.05)
            training.cancel()
            await asyncio.gather(training, return_exceptions=True)
        assert training.cancelled() or training.exception() is None
    return out.getvalue().splitlines()


_COUNTING = """
import json, os, pathlib, sys
calls = pathlib.Path(os.environ["OUT"]) / "calls"
with calls.open("a") as file:
    file.write(sys.argv[1] + "\\n")
"""


async def test_a_failed_download_is_tried_again_while_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        _COUNTING
        + """
if sys.argv[1] == "download" and calls.read_text().count("download") < 3:
    sys.exit("the exchange does not answer")
print(json.dumps({"release": "r-1", "models": {"high_10_k_gb": {}}}))
"""
    )
    lines = await _attempts(tmp_path, monkeypatch, script, until="is live")
    calls = (tmp_path / "calls").read_text().split()
    assert calls == ["download"] * 3 + ["merge", "train"]
    told = [line for line in lines if "!" in line]
    assert len(told) == 2
    assert "trainer download failed with exit code 1" in told[0]
    assert "the other services go on" in told[0]
    assert "Next attempt in" in told[0]
    assert lines[-1].endswith("release r-1 is live: 1 models")


async def test_what_no_attempt_would_mend_is_told_and_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = await _attempts(
        tmp_path, monkeypatch, _COUNTING + "sys.exit(2)", until="not tried again"
    )
    assert (tmp_path / "calls").read_text().split() == ["download"]
    assert "the other services go on" in lines[-1].lower()


async def test_no_attempt_is_made_once_somebody_has_promoted_a_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        _COUNTING
        + f"""
models = pathlib.Path({str(tmp_path)!r}) / "models"
release = "releases/20261122T120000Z-1a2b3c4d"
(models / release).mkdir(parents=True)
(models / "current").symlink_to(release)
sys.exit(1)
"""
    )
    await _attempts(tmp_path, monkeypatch, script, until="Next attempt")
    assert (tmp_path / "calls").read_text().split() == ["download"]


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
