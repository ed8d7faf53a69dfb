"""`itb replay` over a bus that real services filled, and over files."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from deploy.cli import main
from shared.bundle import Bundle, invalid_reason
from shared.events import Prediction, Signal
from shared.features import FeatureSet
from shared.klines import KLINE_COLUMNS
from shared.releases import promote
from shared.rules import Costs, configured
from shared.streams import FEATURE, PREDICTION, SIGNAL
from tests.plain_trading import trade
from tests.played import FEATURES, LOOKBACK, Played

M = 60_000
NO_COSTS = {"fee": 0.0, "slippage": 0.0}


def config(played: Played, folder: Path, **keys: Any) -> Path:
    path = folder / f"config-{len(list(folder.iterdir()))}.json"
    found = {"symbol": "TESTUSDT", "model_folder": str(played.models)} | keys
    path.write_text(json.dumps(found))
    return path


class Itb:
    """Runs the command; `found` is the JSON that it printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.found: dict[str, Any] = {}
        self.out = self.err = ""

    def replay(self, *arguments: object) -> int:
        code = main(["replay", *map(str, arguments)])
        self.out, self.err = self._capsys.readouterr()
        if "--json" in arguments and self.out:
            self.found = json.loads(self.out)
        return code


@pytest.fixture
def itb(capsys: pytest.CaptureFixture[str]) -> Itb:
    return Itb(capsys)


def scores(played: Played, release: str) -> list[float]:
    """Row by row from the tape, by that release."""
    features = FeatureSet.of(FEATURES)
    values = features.batch(played.tape.first_index, played.tape.rows)
    bundle = Bundle.load(played.models / "releases" / release)
    found = []
    for row, (kline, vector) in enumerate(zip(played.tape.klines, values, strict=True)):
        covered = row + 1 >= LOOKBACK
        invalid = invalid_reason(vector, bundle.manifest, kline.gap, covered)
        found.append(math.nan if invalid else float(bundle.run(vector[None]).score[0]))
    return found


def traded(played: Played, score: list[float], settings: Any) -> tuple[list[float], list[Any]]:
    """(worth, trades) by the tests' own trading rules."""
    rules = configured(settings, M)
    costs = Costs(0.001, 0.0002, True)
    candles = [
        (*(getattr(kline, name) for name in KLINE_COLUMNS[:4]), one, math.nan)
        for kline, one in zip(played.tape.klines, score, strict=True)
    ]
    found: tuple[list[float], list[Any]] = trade(candles, rules, costs, 10_000.0, M)
    return found


def test_the_recorded_run_replays_to_equal_bits(played: Played, itb: Itb, tmp_path: Path) -> None:
    """Through restarts, holes and the change of the release."""
    assert (
        itb.replay("-c", config(played, tmp_path), "--redis-url", played.server.url, "--json") == 0
    )
    found = itb.found
    assert (found["equal"], found["unequal"]) == (True, 0)
    assert found["rows"] == found["signals"]["compared"] == len(played.tape.klines)
    assert (found["signals"]["other_score"], found["signals"]["other_side"]) == (0, 0)
    assert set(found["recorded"]["releases"]) == set(played.releases)
    assert found["recorded"] | {"name": ""} == found["replayed"] | {"name": ""}
    assert found["profit"]["difference"] == 0


def test_what_the_recorded_run_earns_is_what_the_rules_give(
    played: Played, itb: Itb, tmp_path: Path
) -> None:
    itb.replay("-c", config(played, tmp_path), "--redis-url", played.server.url, "--json")
    score = [math.nan if one.score is None else one.score for one in played.events(SIGNAL)]
    worth, trades = traded(played, score, played.settings)
    assert itb.found["profit"]["recorded"] == pytest.approx(worth[-1] - 10_000)
    assert itb.found["orders"]["recorded"] == len(trades) > 0


@pytest.mark.parametrize("stream", [FEATURE, PREDICTION, SIGNAL], ids=lambda one: one.name)
def test_one_other_bit_is_found(own: Played, itb: Itb, tmp_path: Path, stream: Any) -> None:
    def change(event: Any) -> Any:
        if isinstance(event, Signal):
            return replace(event, score=math.nextafter(event.score or 0.0, 2))
        if isinstance(event, Prediction):
            return replace(event, outputs=event.outputs | {"high_10_k_lc": 0.5})
        return replace(event, values=bytes([event.values[0] ^ 1]) + event.values[1:])

    own.change(stream, 100, change)
    arguments = ("-c", config(own, tmp_path), "--redis-url", own.server.url, "--json")
    assert itb.replay(*arguments) == 1
    assert (itb.found["equal"], itb.found["unequal"]) == (False, 1)
    assert itb.found["first_difference"].startswith(f"{own.signal_id(100)}: {stream.name} ")
    assert itb.err.startswith("itb: 1 candles are not equal; first ")


def test_another_release_gives_its_own_scores(played: Played, itb: Itb, tmp_path: Path) -> None:
    release = played.releases[1]
    arguments = ("-c", config(played, tmp_path), "--redis-url", played.server.url, "--json")
    assert itb.replay(*arguments, "--release", release) == 0
    found = itb.found
    expected = scores(played, release)
    before = [math.nan if one.score is None else one.score for one in played.events(SIGNAL)]
    moved = [
        abs(a - b) for a, b in zip(before, expected, strict=True) if a != b and not math.isnan(a)
    ]
    assert found["equal"] is None
    assert found["replayed"]["releases"] == {release: len(played.tape.klines)}
    assert found["signals"]["other_score"] == len(moved) > 0
    assert found["signals"]["largest_score_change"] == max(moved)
    worth, trades = traded(played, expected, played.settings)
    assert found["profit"]["replayed"] == pytest.approx(worth[-1] - 10_000)
    assert found["orders"]["replayed"] == len(trades)
    assert any("was trained on" in note for note in found["notes"]) is False  # other years


@pytest.mark.parametrize(
    ("options", "buy", "sell"),
    [
        (("--threshold", 0.3), 0.3, -0.3),
        (("--buy", 0.4), 0.4, -0.15),
        (("--sell", -0.5), 0.15, -0.5),
    ],
)
def test_other_thresholds_give_other_sides_and_trades(
    played: Played, itb: Itb, tmp_path: Path, options: tuple[Any, ...], buy: float, sell: float
) -> None:
    arguments = ("-c", config(played, tmp_path), "--redis-url", played.server.url, "--json")
    assert itb.replay(*arguments, *options) == 0
    found = itb.found
    score = [math.nan if one.score is None else one.score for one in played.events(SIGNAL)]
    assert found["replayed"]["buy"] == sum(one > buy for one in score)
    assert found["replayed"]["sell"] == sum(one < sell for one in score)
    sides = [one.side for one in played.events(SIGNAL)]
    wanted = ["BUY" if one > buy else "SELL" if one < sell else "" for one in score]
    assert found["signals"]["other_side"] == sum(a != b for a, b in zip(sides, wanted, strict=True))
    rules = {"buy_threshold": buy, "sell_threshold": sell}
    settings = played.settings.model_copy(
        update={
            "trader": played.settings.trader.model_copy(
                update={"rules": played.settings.trader.rules.model_copy(update=rules)}
            )
        }
    )
    worth, trades = traded(played, score, settings)
    assert found["profit"]["replayed"] == pytest.approx(worth[-1] - 10_000)
    assert found["orders"]["replayed"] == len(trades)


def test_another_config_trades_by_its_own_rules(played: Played, itb: Itb, tmp_path: Path) -> None:
    other = config(
        played,
        tmp_path,
        trader={"rules": {"stop_loss": 0.002, "max_candles": 9}},
        trainer={"backtest": NO_COSTS},
    )
    arguments = ("-c", config(played, tmp_path), "--redis-url", played.server.url, "--json")
    assert itb.replay(*arguments, "--with", other) == 0
    found = itb.found
    assert found["signals"]["other_side"] == 0
    assert found["replayed"]["performance"]["fees"] == 0
    assert found["recorded"]["performance"]["fees"] > 0
    assert found["orders"]["only_replayed"] or found["orders"]["other_exit"]


def test_a_stretch_is_as_long_as_it_is_asked_for(played: Played, itb: Itb, tmp_path: Path) -> None:
    first, last = (played.tape.klines[row].open_time_ms for row in (120, 219))
    arguments = ("-c", config(played, tmp_path), "--redis-url", played.server.url, "--json")
    assert itb.replay(*arguments, "--from", first, "--to", last) == 0
    assert (itb.found["rows"], itb.found["equal"]) == (100, True)
    day = str(np.datetime64(first, "ms")).partition(".")[0]
    assert itb.replay(*arguments, "--from", day, "--to", last) == 0
    assert itb.found["rows"] == 100


def test_files_are_compared_under_both_releases(played: Played, itb: Itb, tmp_path: Path) -> None:
    promote(played.models, played.releases[0])
    try:
        arguments = ("-c", config(played, tmp_path), "--klines", played.tape.path, "--json")
        assert itb.replay(*arguments, "--release", played.releases[1]) == 0
    finally:
        promote(played.models, played.releases[1])
    found = itb.found
    for name, release in (("recorded", played.releases[0]), ("replayed", played.releases[1])):
        expected = scores(played, release)
        assert found[name]["releases"] == {release: len(expected)}
        assert found[name]["scored"] == sum(not math.isnan(one) for one in expected)
        worth, _ = traded(played, expected, played.settings)
        assert found["profit"][name] == pytest.approx(worth[-1] - 10_000)


def test_a_person_sees_both_runs(played: Played, itb: Itb, tmp_path: Path) -> None:
    png, html = tmp_path / "replay.png", tmp_path / "replay.html"
    arguments = ("-c", config(played, tmp_path), "--redis-url", played.server.url)
    assert itb.replay(*arguments, "--threshold", 0.4, "--png", png, "--html", html) == 0
    assert "another side" in itb.out
    assert "+0.4, -0.4" in itb.out
    assert png.read_bytes().startswith(b"\x89PNG")
    page = html.read_text()
    assert "<script" not in page
    assert "://" not in page.replace("http://www.w3.org", "")
    assert "Replay of TESTUSDT 1m" in page


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (("--from", "2031-01-01"), 1, "no signal lies there"),
        (("--from", "tomorrow"), 2, "'tomorrow' is no time"),
        (("--threshold", "0.2", "--buy", "0.3"), 2, "--threshold stands for both"),
        (("--threshold", "7"), 2, "'7' is not a score"),
        (("--release", "20200101T000000Z-00000000"), 1, "cannot read the folder"),
        (("--symbol", "NOPE"), 1, "no signal lies there"),
        (("--buy", "-0.9"), 2, "exit_long -0.15 is above the buy threshold -0.9"),
    ],
)
def test_what_cannot_be_replayed_is_one_line(
    played: Played, itb: Itb, tmp_path: Path, options: tuple[str, ...], code: int, text: str
) -> None:
    arguments = ("-c", config(played, tmp_path), "--redis-url", played.server.url)
    assert itb.replay(*arguments, *options) == code
    assert text in itb.err
    assert itb.err.count("\n") == 1
    assert itb.out == ""


def test_trimmed_candles_are_told(own: Played, itb: Itb, tmp_path: Path) -> None:
    first_ms = own.tape.klines[50].open_time_ms
    with redis.Redis(port=own.server.port) as client:
        client.xtrim("kline:{TESTUSDT}:1m", minid=first_ms, approximate=False)
    arguments = ("-c", config(own, tmp_path), "--redis-url", own.server.url)
    assert itb.replay(*arguments) == 1
    assert "are trimmed; the bus begins at" in itb.err
    begin = own.tape.klines[50 + LOOKBACK].open_time_ms
    assert itb.replay(*arguments, "--from", begin) == 0
