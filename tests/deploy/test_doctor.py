"""The doctor finds what is wrong, names the remedy, and ends with the right exit code."""

import json
from pathlib import Path

import pytest

from deploy import cli
from deploy.doctor import Line, Mark, examine
from deploy.valkey import free_port
from shared.bus import Bus, Source, Write
from shared.events import DeadLetter, Kline
from shared.link import Link
from shared.releases import promote, read_release
from shared.streams import KLINE, dead_letters, health_key
from tests import made_releases
from tests.valkey import Server


async def _lines(config: Path | None, url: str | None = None) -> list[Line]:
    return [line async for line in examine(config, url)]


def _config(tmp_path: Path, **more: object) -> Path:
    nowhere = f"http://127.0.0.1:{free_port()}"
    folders = {"data_folder": str(tmp_path / "data"), "model_folder": str(tmp_path / "models")}
    content = {**folders, "binance_rest_url": nowhere, **more}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))
    return path


def _of(lines: list[Line], check: str) -> list[Line]:
    return [line for line in lines if line.check == check]


async def test_a_fresh_machine_gets_warnings_with_remedies(tmp_path: Path, valkey: Server) -> None:
    lines = await _lines(_config(tmp_path), valkey.url)
    (release,) = _of(lines, "release")
    assert release.mark is Mark.WARN
    assert "itb up" in release.remedy
    (exchange,) = _of(lines, "exchange")
    assert exchange.mark is Mark.FAIL
    assert exchange.remedy == "check the network, or binance_rest_url"
    (server,) = _of(lines, "server")
    assert server.mark is Mark.OK
    assert server.text.startswith("Valkey 9.")
    assert [line.mark for line in _of(lines, "services")] == [Mark.WARN] * 5
    assert all(line.mark is Mark.OK for line in _of(lines, "folders"))


async def test_a_mistyped_key_ends_the_examination(tmp_path: Path) -> None:
    lines = await _lines(_config(tmp_path, intervall="1m"))
    assert lines[-1].mark is Mark.FAIL
    assert "did you mean 'interval'" in lines[-1].text


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (("appendonly", "no"), "set `appendonly yes`"),
        (("maxmemory-policy", "allkeys-lru"), "set `maxmemory-policy noeviction`"),
    ],
)
async def test_a_server_that_may_lose_streams_fails(
    tmp_path: Path, valkey: Server, setting: tuple[str, str], words: str
) -> None:
    link = Link(valkey.url, name="test")
    await link.connect()
    await link.one("CONFIG", "SET", *setting)
    await link.close()
    (server,) = _of(await _lines(_config(tmp_path), valkey.url), "server")
    assert server.mark is Mark.FAIL
    assert words in server.text


async def test_no_server_is_a_failure_that_names_itb_up(tmp_path: Path) -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"
    (server,) = _of(await _lines(_config(tmp_path), url), "server")
    assert server.mark is Mark.FAIL
    assert "itb up" in server.remedy


async def test_a_broken_release_fails(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "current").write_text("not a link")
    (release,) = _of(await _lines(_config(tmp_path)), "release")
    assert release.mark is Mark.FAIL
    assert "rollback" in release.remedy


@pytest.mark.parametrize(
    ("keys", "check", "words"),
    [
        ({"features_kline": ["close_5", "clos_5"]}, "features", "clos_5"),
        ({"features_kline": ["close_CORREL_30"]}, "features", "features_other"),
        ({"features_futur": ["seed"]}, "features", "collector.futures is off"),
        ({"features_depth": ["gap_5"]}, "features", "collector.depth is off"),
        ({"features_file": "nowhere.py"}, "features", "nowhere.py"),
        ({"labels": ["high_10", "low_99"]}, "labels", "no label 'low_99'"),
        ({"labels": ["high_10", "high_20"]}, "labels", "speaks for a low"),
        ({"algorithms": [{"name": "x", "algo": "gb", "params": {"leaves": 3}}]}, "algorithms", "x"),
        ({"labels": ["high_10", "low_10", "high_max_60"], "algorithms": [
            {"name": "x", "algo": "lc", "params": {"is_regression": False}}]}, "algorithms",
            "high_max_60"),
    ],
)  # fmt: skip
async def test_a_config_that_nothing_can_run_with_fails(
    tmp_path: Path, keys: dict[str, object], check: str, words: str
) -> None:
    lines = await _lines(_config(tmp_path, **keys))
    found = [line for line in _of(lines, check) if line.mark is Mark.FAIL]
    assert len(found) == 1, lines
    assert words in found[0].text
    assert found[0].remedy


async def test_features_labels_and_algorithms_are_named(tmp_path: Path) -> None:
    lines = await _lines(_config(tmp_path, labels=["highlow2", "high_max_60"]))
    (features,), (labels,), (algorithms,) = (
        _of(lines, check) for check in ("features", "labels", "algorithms")
    )
    assert features.text == "51 features look back 1,440 candles at most"
    assert labels.text == "3 labels, of both sides; regressions beside the score: high_max_60"
    assert algorithms.text == "gb, nn, lc"


async def test_a_release_for_other_features_fails_and_says_which(tmp_path: Path) -> None:
    release = made_releases.write(tmp_path / "models")
    promote(tmp_path / "models", release.name)
    manifest = read_release(release).manifest
    own = [*manifest.features[1:], "close_7"]
    (line,) = _of(await _lines(_config(tmp_path, features_kline=own)), "release")
    assert line.mark is Mark.FAIL
    assert f"(with {manifest.features[0]}, without close_7): no candle is scored" in line.text
    turned = list(reversed(manifest.features))
    (line,) = _of(await _lines(_config(tmp_path, features_kline=turned)), "release")
    assert "other features than the config's (in another order)" in line.text


async def test_a_consumer_that_is_behind_and_dead_letters_are_warned_of(
    tmp_path: Path, valkey: Server
) -> None:
    source = Source(KLINE, "BTCUSDT", "1m")
    async with Bus.session(valkey.url, service="featurizer") as bus:
        await bus.join([source])
        for i in (1, 2, 3, 4, 5):
            kline = Kline.gap_marker("BTCUSDT", "1m", i * 60_000, i * 60_000 + 59_999)
            await bus.write(Write(source=source, event=kline, open_time_ms=i * 60_000))
        letter = DeadLetter(
            stream=source.key, entry_id="0-0", service="featurizer", reason="test", time_ms=1
        )
        await bus.write(Write(source=Source(dead_letters(source.key)), event=letter))
    streams = _of(await _lines(_config(tmp_path), valkey.url), "streams")
    texts = [line.text for line in streams if line.mark is Mark.WARN]
    assert texts == [
        "featurizer is 5 behind on kline:{BTCUSDT}:1m, 0 pending",
        "1 entries in dead:kline:{BTCUSDT}:1m could not be processed",
    ]


async def test_a_history_that_is_too_short_for_the_features_is_warned_of(
    tmp_path: Path, valkey: Server
) -> None:
    key = "kline:{BTCUSDT}:1m"
    async with Bus.session(valkey.url, service="collector") as bus:
        beat = {"ready": True, "reason": "", "short_history": {key: 120}}
        await bus.put(health_key("collector", "collector"), json.dumps(beat))
    (line,) = _of(await _lines(_config(tmp_path), valkey.url), "history")
    assert line.mark is Mark.WARN
    assert f"{key} has 120 candles less" in line.text
    assert f"DEL '{key}'" in line.remedy


def test_the_command_fails_when_a_check_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor", "-c", str(_config(tmp_path)), "--json"]) == 1
    lines = json.loads(capsys.readouterr().out)
    assert {line["mark"] for line in lines} >= {"ok", "warn", "fail"}
    assert all(line["remedy"] for line in lines if line["mark"] == "fail")
