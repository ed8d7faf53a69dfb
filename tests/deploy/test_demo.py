"""`itb demo`, whole: separate processes, a real Valkey, the simulator, models trained here."""

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import psutil
import pytest
import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from deploy.demo import STARTED, Options, Plan, _Demo, metrics_port
from deploy.screen import Screen
from deploy.supervisor import Supervisor
from deploy.tally import Window
from deploy.valkey import EmbeddedValkey
from deploy.workdir import Workdir
from shared.bus import Bus
from shared.config import Settings, load
from shared.errors import Failure, Usage
from shared.explain import Explainer
from shared.klinefiles import klines_folder, read_history, write_columns
from shared.klines import KLINE_COLUMNS
from simulator import synthetic
from tests.waiting import wait_until

_STEP_MS = 60_000
_END_MS = 1_735_689_600_000
_BARS = 60
_ITB = (sys.executable, "-m", "deploy.cli")
# Two small models are enough to make scores; the gates and the path are the same.
_QUICK = {
    "ITB_LABELS": '["high_10", "low_10"]',
    "ITB_ALGORITHMS": '["lc"]',
    "ITB_TRAINER__LABEL_HORIZON": "60",
}


def _market(path: Path, rows: int, *, missing: slice = slice(0, 0)) -> list[int]:
    """Writes a seeded OHLCV file; returns the open times of its candles."""
    table = synthetic.generate("TESTUSDT", "1m", _END_MS - rows * _STEP_MS, _END_MS, seed=3)
    keep = np.ones(rows, dtype=bool)
    keep[missing] = False
    columns = {"open_time": table.open_time_ms[keep]}
    columns |= {name: table.column(name)[keep] for name in KLINE_COLUMNS[:5]}
    write_columns(path, columns)
    times: list[int] = table.open_time_ms[keep].tolist()
    return times


@dataclass
class _Run:
    """A demo in a process of its own. line: the JSON that it prints, once it has."""

    process: subprocess.Popen[str]
    errors: Path

    def line(self, timeout_s: float = 110) -> dict[str, Any]:
        assert self.process.stdout is not None
        started = time.monotonic()
        for text in self.process.stdout:
            if text.startswith("{"):
                result: dict[str, Any] = json.loads(text)
                return result
            assert time.monotonic() - started < timeout_s
        raise AssertionError(f"no JSON line: {self.errors.read_text()}")

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def child(self, name: str, timeout_s: float = 30) -> psutil.Process:
        """The process of that name, once there is one: it may be between two lives."""

        def found() -> psutil.Process | None:
            for process in self.family():
                with contextlib.suppress(psutil.NoSuchProcess):  # a zombie is one of these
                    if name in " ".join(process.cmdline()[:4]):
                        return process
            return None

        process = wait_until(
            found, lambda: f"{name}: {self.errors.read_text()}", timeout_s=timeout_s
        )
        assert process is not None
        return process

    def until_streaming(self, timeout_s: float) -> None:
        def is_streaming() -> bool:
            assert self.process.poll() is None, self.errors.read_text()
            return "streaming" in self.errors.read_text()

        wait_until(is_streaming, self.errors.read_text, timeout_s=timeout_s)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    runs: list[_Run] = []

    def begin(*arguments: str, **variables: str) -> _Run:
        errors = tmp_path / "stderr"
        log = errors.open("w")
        process = subprocess.Popen(
            [*_ITB, "demo", "--workdir", str(tmp_path / "work"), *arguments],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=tmp_path,
            env={**os.environ, **_QUICK, **variables},
        )
        log.close()
        runs.append(_Run(process, errors))
        return runs[-1]

    yield begin
    for run in runs:
        if run.process.poll() is None:
            run.process.kill()
        run.process.wait()
        assert run.process.stdout is not None
        run.process.stdout.close()


def _entries(server: redis.Redis, key: str) -> dict[int, dict[str, Any]]:
    """An entry per candle, read without any of our code."""
    found: dict[int, dict[str, Any]] = {}
    for entry_id, fields in server.xrange(key):
        milliseconds, sequence = entry_id.decode().split("-")
        assert sequence == "0"
        found[int(milliseconds)] = msgpack.unpackb(fields[b"data"])
    return found


def test_every_candle_goes_through_every_stage_and_a_gap_is_marked(
    start: Any, tmp_path: Path
) -> None:
    rows = 4_000 + _BARS + 4
    data = tmp_path / "TESTUSDT-1m.parquet"
    times = _market(data, rows, missing=slice(rows - 20, rows - 17))
    run = start("--data", str(data), "--bars", str(_BARS), "--speed", "max", "--json", "--hold")
    result = run.line()
    expected = [_END_MS - (_BARS - i) * _STEP_MS for i in range(_BARS)]
    server = redis.Redis.from_url(result["redis_url"])
    streams = {
        name: _entries(server, f"{name}:{{TESTUSDT}}:1m")
        for name in ("kline", "feature", "prediction", "signal")
    }
    for entries in streams.values():
        assert [t for t in entries if t >= expected[0]] == expected
    gaps = [t for t in expected if streams["kline"][t]["gap"]]
    assert gaps == sorted(set(expected) - set(times))
    assert len(gaps) == 3
    assert all(streams["signal"][t]["invalid"] for t in gaps)
    scored = [streams["signal"][t] for t in expected if streams["signal"][t]["score"] is not None]
    assert len(scored) == _BARS - 3
    sides = {s["open_time_ms"] for s in scored if s["side"]}
    orders = [msgpack.unpackb(f[b"data"]) for _, f in server.xrange("order:{TESTUSDT}")]
    assert sides == {o["open_time_ms"] for o in orders if o["open_time_ms"] >= expected[0]}
    loud = {s["open_time_ms"] for s in scored if np.floor(abs(s["score"]) / 0.05 + 1e-9) >= 4}
    told = [
        msgpack.unpackb(fields[b"data"])["open_time_ms"]
        for _, fields in server.xrange("notification:{TESTUSDT}:1m", min=expected[0])
        if fields[b"state"] == b"sent"
    ]
    # Those held back by the gap were too old for people when it was settled.
    assert {t for t in loud if t < gaps[0]} <= set(told) <= loud
    stages = ("bars", "klines", "features", "predictions", "signals")
    assert [result[stage] for stage in stages] == [_BARS] * len(stages)
    assert result["lost"] == result["doubled"] == 0
    assert result["gaps"] == 3
    assert result["orders"] == len(sides)
    assert result["notifications"] == len(told) == len(set(told))
    latency = [
        (streams["signal"][t]["meta"]["published_us"] - streams["kline"][t]["meta"]["received_us"])
        / 1000
        for t in expected
        if t not in gaps
    ]
    assert result["latency_ms"]["p50"] == pytest.approx(np.percentile(latency, 50), abs=1e-3)
    assert result["latency_ms"]["p99"] == pytest.approx(np.percentile(latency, 99), abs=1e-3)
    manifest = json.loads((tmp_path / "work/models/current/manifest.json").read_text())
    assert manifest["training"]["end_ms"] < expected[0]
    assert result["train"]["rows"] == manifest["training"]["rows"]
    assert set(result["train"]["models"]) == {"high_10_k_lc", "low_10_k_lc"}
    server.close()
    family = run.family()
    assert {"-m"} <= {p.cmdline()[1] for p in family if "python" in p.cmdline()[0]}
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(timeout=8) == 0
    _, alive = psutil.wait_procs(family, timeout=1)
    assert not alive


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("victim", ["featurizer", "predictor", "valkey-server", "collector"])
def test_a_killed_process_loses_and_doubles_nothing(
    start: Any, tmp_path: Path, victim: str
) -> None:
    data = tmp_path / "TESTUSDT-1m.csv"
    rows = 4_000 + _BARS + 80
    table = synthetic.generate("TESTUSDT", "1m", _END_MS - rows * _STEP_MS, _END_MS, seed=4)
    lines = [
        ",".join([str(t), *(repr(v) for v in row[:5])])
        for t, row in zip(table.open_time_ms.tolist(), table.values.tolist(), strict=True)
    ]
    data.write_text("open_time,open,high,low,close,volume\n" + "\n".join(lines) + "\n")
    run = start("--data", str(data), "--bars", str(_BARS), "--speed", "600", "--json")
    run.until_streaming(90)
    run.child(victim).kill()
    result = run.line()
    assert run.process.wait(timeout=10) == 0
    assert result["lost"] == result["doubled"] == 0
    assert result["klines"] == result["signals"] == _BARS
    assert sum(result["restarts"].values()) == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_thousand_signals_are_explained_with_equal_bits_after_kills_in_the_middle(
    start: Any, tmp_path: Path
) -> None:
    bars = 600
    data = tmp_path / "TESTUSDT-1m.parquet"
    _market(data, 5_000 + bars)
    run = start("--data", str(data), "--bars", str(bars), "--speed", "1200", "--json", "--hold")
    run.until_streaming(120)
    config = load(tmp_path / "work" / "config.json")
    server = redis.Redis.from_url(config.redis_url, retry=Retry(ConstantBackoff(0.1), 300))
    signals = "signal:{TESTUSDT}:1m"
    first_ms = _END_MS - bars * _STEP_MS
    victims = ("featurizer", "valkey-server", "predictor", "collector") * 2
    for number, victim in enumerate(victims):
        wanted = first_ms + _STEP_MS * (bars * number // 9)
        reached = partial(server.xrange, signals, min=wanted, count=1)
        wait_until(reached, f"signal {wanted}", timeout_s=240)
        run.child(victim).kill()
    result = run.line()
    assert result["lost"] == result["doubled"] == 0
    assert sum(result["restarts"].values()) == len(victims)

    newest = [_id_ms(entry) for entry, _ in server.xrevrange(signals)]
    chosen = random.Random(7).sample(newest, 1_000)
    assert asyncio.run(_unequal(config, None, chosen)) == {}

    # What the janitor takes away after eight days: all but the newest hundred candles.
    run.child("collector").terminate()  # its archive is complete then
    archive = klines_folder(config.data_folder, "TESTUSDT", "1m")

    def is_archived() -> bool:
        kept = read_history(archive, symbol="TESTUSDT", interval="1m")
        return len(kept) > 0 and bool(kept.open_time_ms[-1] >= newest[100])

    wait_until(is_archived, "the archive", timeout_s=300)
    candles = "kline:{TESTUSDT}:1m"
    beginning = _id_ms(server.xrange(candles, count=1)[0][0])
    server.xtrim(candles, minid=newest[100], approximate=False)
    whole = beginning + 1_439 * _STEP_MS  # earlier ones are of the warm-up
    covered = [time_ms for time_ms in chosen if time_ms >= whole]
    assert asyncio.run(_unequal(config, config.data_folder, covered)) == {}
    signal_id = f"TESTUSDT-1m-{newest[bars - 1]}"
    shown = subprocess.run(
        [*_ITB, "explain", signal_id, "-c", str(tmp_path / "work" / "config.json"), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(shown.stdout)["equal"] is True


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_gap_to_the_backtest_of_a_real_run_is_told_in_parts_that_sum_up(
    start: Any, tmp_path: Path
) -> None:
    data = tmp_path / "TESTUSDT-1m.parquet"
    _market(data, 5_000 + 500)
    # Low ones, so that there are trades; the trader and the backtest must have the same.
    thresholds = {
        "ITB_SIGNALER__MODEL__BUY_THRESHOLD": "0.02",
        "ITB_SIGNALER__MODEL__SELL_THRESHOLD": "-0.02",
    }
    arguments = ("--data", str(data), "--bars", "500", "--speed", "600", "--json", "--hold")
    run = start(*arguments, **thresholds)
    result = run.line()
    server = redis.Redis.from_url(result["redis_url"])
    lines = [msgpack.unpackb(f[b"data"]) for _, f in server.xrange("order:{TESTUSDT}")]
    assert "HALTED" not in {line["state"] for line in lines}
    profits = [float(line["profit"]) for line in lines if line["profit"]]
    assert profits, "no round trip has ended"
    shown = subprocess.run(
        [*_ITB, "outcomes", "-c", str(tmp_path / "work" / "config.json"), "--json"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | thresholds,
    )
    gap = json.loads(shown.stdout)["trading"]["gap"]
    assert gap["trips"]["live"] == len(profits)
    assert gap["live"] == pytest.approx(sum(profits))
    assert sum(gap["parts"].values()) == pytest.approx(gap["live"] - gap["backtest"])
    assert gap["trips"]["both"] > 0
    # Dust and rounding: a lot of 0.00001 at each end of a trip.
    assert abs(gap["parts"]["rest"]) < 2 * len(profits)
    if gap["trips"]["live"] == gap["trips"]["backtest"] == gap["trips"]["both"]:
        assert gap["parts"]["other_exits"] == 0, "the same rules on the same scores"


def _id_ms(entry_id: bytes) -> int:
    return int(entry_id.split(b"-")[0])


async def _unequal(
    config: Settings, data_folder: Path | None, times: Sequence[int]
) -> dict[int, str]:
    """Of the signals of these candles those that cannot be explained, or not with equal bits."""
    assert times
    explainer = Explainer(config, data_folder=data_folder)
    found: dict[int, str] = {}
    async with Bus.session(config.bus_url, service="itb", exclusive=False) as bus:
        for time_ms in times:
            try:
                one = await explainer.explain(bus, f"TESTUSDT-1m-{time_ms}")
            except Failure as error:
                found[time_ms] = str(error)
            else:
                if not one.equal:
                    found[time_ms] = str(one.difference)
    return found


def test_a_replay_never_sees_the_users_live_settings_in_whatever_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.upper().startswith("ITB_")]:
        monkeypatch.delenv(name)
    live = {
        "itb_telegram_bot_token": "12:live",
        "Itb_Telegram_Chat_Id": "@live",
        "itb_api_secret_file": "/run/live",
        "itb_redis_url": "redis://live",
        "itb_collector__follow": "false",
        "itb_symbol": "LIVEUSDT",
        "itb_labels": '["high_10", "low_10"]',
    }
    for name, value in live.items():
        monkeypatch.setenv(name, value)
    workdir = Workdir(tmp_path / "work")
    server = EmbeddedValkey(folder=tmp_path, port=1, say=print)
    demo = _Demo(Options(port=1), Screen(), workdir, Supervisor(tmp_path, print), server)
    window = Window(symbol="TESTUSDT", interval="1m", first_ms=0, last_ms=0, step_ms=_STEP_MS)
    plan = Plan(
        files=(), window=window, history=1, until_ms=0, candles=1, speed="max", longest_gap_s=0
    )
    found = demo._environment(plan)
    workdir.release()
    assert {name for name in found if name.lower().startswith("itb_")} & set(live) == {"itb_labels"}
    monkeypatch.setattr(os, "environ", found)
    settings = load()
    assert settings.telegram_bot_token is settings.telegram_chat_id is settings.api_secret is None
    assert (settings.symbols, settings.labels) == (("TESTUSDT",), ("high_10", "low_10"))
    assert settings.collector.follow


def test_each_service_of_a_run_gets_a_metrics_port_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = [metrics_port(name, 9100)["ITB_METRICS_PORT"] for name in STARTED]
    assert ports == [str(9100 + number) for number in range(7)]
    assert metrics_port("trader", None) == {}

    def demo() -> _Demo:
        server = EmbeddedValkey(folder=tmp_path / "valkey", port=1, say=print)
        return _Demo(Options(port=1), Screen(), workdir, Supervisor(tmp_path, print), server)

    workdir = Workdir(tmp_path / "work")
    workdir.release()
    for text in ("0", "65535", "nine", "-1"):
        monkeypatch.setenv("itb_metrics_port", text)
        with pytest.raises(Usage, match="is no port"):
            demo()
    monkeypatch.setenv("itb_metrics_port", "9100")
    assert demo()._metrics_port == 9100


@pytest.mark.parametrize(
    ("rows", "arguments", "code", "words"),
    [
        (4_059, ("--bars", "60"), 1, "--bars 60 needs 4,060 candles"),
        (4_059, ("--bars", "0"), 2, "'0' is not a whole number above 0"),
        (4_059, ("--speed", "fast"), 2, "'fast' is neither a number above 0 nor `max`"),
        (0, (), 1, "no such file"),
    ],
)
def test_what_cannot_be_played_is_refused_in_one_line(
    tmp_path: Path, rows: int, arguments: tuple[str, ...], code: int, words: str
) -> None:
    data = tmp_path / "TESTUSDT-1m.parquet"
    if rows:
        _market(data, rows)
    done = subprocess.run(
        [*_ITB, "demo", "--workdir", "work", "--data", str(data), "--json", *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        timeout=60,
    )
    assert done.returncode == code
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert words in lines[-1]
    assert lines[-1].startswith("itb: ")
    assert "Traceback" not in done.stderr
