"""The commands of the pages, as a person types them, beside a demo that was played.

Those of the tutorial are run by test_tutorial.py, those of containers in tests/docker.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from deploy.valkey import free_port
from shared.klinefiles import write_columns
from shared.klines import KLINE_COLUMNS
from shared.times import interval_ms
from simulator import synthetic
from tests.docs.commands import ROOT, Command, How, every_command, rule_of
from tests.docs.registry import RULES
from tests.fakes.archive import zipped
from tests.waiting import wait_until

_BIN = Path(sys.executable).parent
_EVERY = every_command()
_LOCAL: dict[str, Command] = {}  # what several pages say is run once
for _one in _EVERY:
    if (_rule := rule_of(_one)) is not None and _rule.how is How.LOCAL:
        _LOCAL.setdefault(_one.plain.removeprefix(".venv/bin/"), _one)
_PATIENCE_S = 180.0
_CANDLES = 40_000
_START_MS = 1_704_067_200_000  # 2024-01-01T00:00Z


def test_a_test_runs_each_command_or_the_registry_says_why_none_does() -> None:
    bare = [str(one) for one in _EVERY if rule_of(one) is None]
    assert not bare, "tests/docs/registry.py says of these not how they are run"
    for rule in RULES:
        assert bool(rule.reason) == (rule.how is How.NOT_HERE), rule


def test_no_rule_is_for_a_command_that_is_gone() -> None:
    used = [rule_of(one) for one in _EVERY]
    assert [rule.pattern for rule in RULES if rule not in used] == []


@dataclass(slots=True)
class World:
    """A folder in which a demo was played and goes on, and what its commands are given."""

    folder: Path
    environment: dict[str, str]
    words: dict[str, str]

    def fill(self, text: str) -> str:
        for name, value in self.words.items():
            text = text.replace("{" + name + "}", value)
        return text

    def start(self, text: str, typed: str = "") -> subprocess.Popen[bytes]:
        with tempfile.TemporaryFile() as keys:
            keys.write(typed.encode())
            keys.seek(0)
            return subprocess.Popen(
                ["bash", "-c", text], cwd=self.folder, env=self.environment, start_new_session=True,
                stdin=keys, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip


def _shims(folder: Path) -> Path:
    """What the pages' words mean here: `make demo` without installing, no sudo for root."""
    place = folder / "bin"
    place.mkdir()
    scripts = {"make": '[ "$1" = demo ] || exit 9; eval "exec itb demo ${2#ARGS=}"'}
    if os.geteuid() == 0:
        scripts["sudo"] = 'exec "$@"'
    for name, text in scripts.items():
        (place / name).write_text(f"#!/bin/sh\n{text}\n")
        (place / name).chmod(0o755)
    (folder / ".venv").symlink_to(_BIN.parent)
    return place


def _candles(folder: Path) -> None:
    """The files that the pages name."""
    for name, rows, start_ms in (
        ("BTCUSDT-1m-2024-01.zip", _CANDLES, _START_MS),
        ("BTCUSDT-1m-2026-10.zip", 3_000, _START_MS),
        ("ETHUSDT-15m.parquet", 12_000, _START_MS),
    ):
        symbol, interval = name.split(".")[0].split("-")[:2]
        end_ms = start_ms + rows * interval_ms(interval)
        table = synthetic.generate(symbol, interval, start_ms, end_ms)
        if name.endswith(".zip"):
            (folder / name).write_bytes(zipped(table, name))
        else:
            columns = {name: table.column(name) for name in KLINE_COLUMNS}
            write_columns(folder / name, {"open_time_ms": table.open_time_ms} | columns)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("pages")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ITB_")}
    environment |= {
        "PYTHONPATH": str(ROOT),
        "PATH": f"{_shims(folder)}:{folder}/.venv/bin:{os.environ['PATH']}",
        "PASSWORD": "of Grafana",
        "TOKEN": "1:of-the-bot",
        # A few models for all: what is tested is the commands.
        "ITB_LABELS": "high_05,low_05",
        "ITB_ALGORITHMS": "lc",
    }
    _candles(folder)
    words = {name: str(free_port()) for name in ("bus", "dashboard")}
    it = World(folder, environment, words)
    demo = it.start(
        "itb demo --hold --data BTCUSDT-1m-2024-01.zip --bars 120 --speed max "
        f"--redis-port {words['bus']}"
    )
    try:
        _until(demo, '"lost": 0, "doubled": 0')
        _settle(it)
        yield it
    finally:
        _end(demo)


def _settle(it: World) -> None:
    """config.json: that of the demo, and what the pages' commands need beside it."""
    folder = it.folder
    config = json.loads((folder / "work/demo/config.json").read_text())
    config |= {
        "archive_url": "",
        "trainer": {"label_horizon": 60, "rolling": {"folds": 3}},
        "dashboard": {"port": int(it.words["dashboard"])},
        "account_rest_url": f"http://127.0.0.1:{free_port()}",
    }
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("other.json", "limited.json"):
        limited = config | {"signaler": {"novelty_limit": 1.5}}
        (folder / name).write_text(json.dumps(limited))
    shutil.copy(ROOT / ".env", folder / ".env")
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    subprocess.run(["git", "add", ".env"], cwd=folder, check=True)
    # Where a page names no config, the one of `itb up` is meant.
    for name in ("redis_url", "model_folder", "data_folder"):
        it.environment[f"ITB_{name.upper()}"] = config[name]
    merge = it.start("python -m trainer merge --klines BTCUSDT-1m-2024-01.zip")
    merge.communicate(timeout=_PATIENCE_S)
    assert merge.returncode == 0
    (release,) = (folder / "work/demo/models/releases").iterdir()
    newest_ms = _START_MS + (_CANDLES - 1) * 60_000
    it.words |= {
        "signal": f"BTCUSDT-1m-{newest_ms}",
        "release": release.name,
        "first": str(newest_ms - 60 * 60_000),
        "last": str(newest_ms),
        "split": str(newest_ms - 7 * 86_400_000),
    }
    with redis.Redis.from_url(config["redis_url"]) as client:
        # The auditor comes last, when everything was played.
        wait_until(
            lambda: (
                client.xlen("record:{BTCUSDT}:1m") == client.xlen("signal:{BTCUSDT}:1m")
                and client.xlen("drift:{BTCUSDT}:1m")
            ),
            "the auditor's record and drift",
        )


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("command", _LOCAL.values(), ids=str)
def test_a_command_of_the_pages_works(world: World, command: Command) -> None:
    rule = rule_of(command)
    assert rule is not None
    for name in ("redis-cli", "jq"):
        if name in command.plain and shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")
    world.words["port"] = str(free_port())
    if rule.before:
        subprocess.run(
            ["bash", "-c", world.fill(rule.before)], cwd=world.folder, env=world.environment,
            check=True,
        )  # fmt: skip
    text = command.text
    for old, new in rule.changes:
        text = text.replace(old, new)
    text = world.fill(text)
    running = world.start(text, rule.stdin)
    try:
        if not rule.until:
            printed = _text(running.communicate(timeout=_PATIENCE_S)[0])
        else:
            printed = _until(running, world.fill(rule.until))
            printed += _end(running)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
            running.communicate()
    print(printed)
    assert not rule.never or not re.search(rule.never, printed), printed
    assert running.returncode == 0, f"{text} ended with {running.returncode}:\n{printed[-3000:]}"


def _until(running: subprocess.Popen[bytes], works: str) -> str:
    """What it printed until it worked."""
    assert running.stdout is not None
    if works.startswith("port "):
        port = int(works.removeprefix("port "))
        wait_until(lambda: _listens(running, port), f"a listener on port {port}")
        return ""
    seen = ""
    silence = threading.Timer(_PATIENCE_S, os.killpg, (running.pid, signal.SIGKILL))
    silence.start()
    for line in running.stdout:
        seen += _text(line)
        if re.search(works, _text(line)):
            silence.cancel()
            return seen
    silence.cancel()
    raise AssertionError(f"ended with {running.wait()}, and never said {works}:\n{seen[-3000:]}")


def _listens(running: subprocess.Popen[bytes], port: int) -> bool:
    assert running.poll() is None, f"ended with {running.returncode}:\n{running.communicate()[0]!r}"
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


def _end(running: subprocess.Popen[bytes]) -> str:
    """Ctrl-C: the signal goes to the whole group, as from a terminal. What else it printed."""
    if running.poll() is None:
        os.killpg(running.pid, signal.SIGINT)
    return _text(running.communicate(timeout=60)[0])


def _text(printed: bytes) -> str:
    return printed.decode(errors="backslashreplace")
