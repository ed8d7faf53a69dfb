"""What the page says of signals whose horizon is over."""

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from shared.bus import Bus, Source, Write
from shared.events import Outcome
from shared.releases import write_release
from shared.streams import OUTCOME
from tests.dashboard.recorded import MINUTE, NAMES, START, SYMBOL, Recording, settings_for
from tests.dashboard.rig import running
from tests.made_releases import made_release
from tests.valkey import Server

MEASURED = {"releases": {"r": {"signals": 3}}, "trading": {"mode": "paper", "gap": None}}


@pytest.fixture
async def bus(valkey: Server) -> AsyncIterator[Bus]:
    async with Bus.session(valkey.url, service="desk") as bus:
        yield bus


@dataclass
class FakeCommand:
    """Stands for `itb outcomes`: records its command lines."""

    answer: tuple[int, str, str]
    lines: list[Sequence[str]] = field(default_factory=list)

    async def __call__(self, arguments: Sequence[str]) -> tuple[int, str, str]:
        self.lines.append(tuple(arguments))
        return self.answer


def outcome(time_ms: int, release: str, score: float, future: float, side: str) -> Outcome:
    return Outcome(
        open_time_ms=time_ms,
        horizon=10,
        release=release,
        score=score,
        side=side,
        close=100.0,
        future_return=future,
        highest=1.0,
        lowest=-1.0,
    )


async def test_it_is_measured_by_the_command_once_for_all_who_look(
    valkey: Server, bus: Bus, tmp_path: Path
) -> None:
    await Recording(5).put(bus, range(5))
    command = FakeCommand((0, f"{json.dumps(MEASURED)}\n", ""))
    async with (
        running(tmp_path, valkey.url, bus, password=False, measure=command) as rig,
        rig.browser() as browser,
    ):
        for _ in range(3):
            status, text, _ = await browser.get(f"/api/outcomes?symbol={SYMBOL}")
            assert status == 200
            found = json.loads(text)
            assert (found["measured"], found["problem"]) == (MEASURED, "")
            assert found["published"] is None, "no auditor has published any"
        assert command.lines == [("--json", "--symbol", SYMBOL, "-c", "config.json")]
        rig.clock[0] += 121
        await browser.get(f"/api/outcomes?symbol={SYMBOL}")
        assert len(command.lines) == 2
        assert (await browser.get("/api/outcomes?symbol=NOPE"))[0] == 404
        assert len(command.lines) == 2


@pytest.mark.parametrize(
    ("err", "told"),
    [
        ("itb: BTCUSDT 1m: no signal is recorded or on the bus\n", "BTCUSDT 1m: no signal is rec"),
        ("Traceback\nModuleNotFoundError: No module named 'trainer'\n", "the trainer is not insta"),
        ("", "it ended with exit code 1"),
    ],
)
async def test_where_it_cannot_be_measured_the_auditors_outcomes_are_shown_and_why(
    valkey: Server, bus: Bus, tmp_path: Path, err: str, told: str
) -> None:
    manifest, files = made_release(1, features=NAMES)
    trained = manifest.training.model_copy(update={"end_ms": START - 1})
    release = manifest.model_copy(update={"training": trained})
    write_release(settings_for(tmp_path, valkey.url).model_folder, release, files)
    await Recording(5).put(bus, range(5))
    first = START
    made = [
        outcome(first - 10 * MINUTE, release.id, 0.9, -0.5, "BUY"),  # it was trained on this one
        outcome(first, release.id, 0.3, 0.02, "BUY"),
        outcome(first + MINUTE, release.id, 0.2, 0.01, "BUY"),
        outcome(first + 2 * MINUTE, release.id, -0.4, -0.01, "SELL"),
        outcome(first + 3 * MINUTE, release.id, 0.25, -0.02, ""),
    ]
    source = Source(OUTCOME, SYMBOL, "1m")
    await bus.write(*(Write(source=source, event=e, open_time_ms=e.open_time_ms) for e in made))
    command = FakeCommand((1, "", err))
    async with (
        running(tmp_path, valkey.url, bus, password=False, measure=command) as rig,
        rig.browser() as browser,
    ):
        _, text, _ = await browser.get(f"/api/outcomes?symbol={SYMBOL}")
    found = json.loads(text)
    assert found["measured"] is None
    assert found["problem"].startswith(told)
    published = found["published"]
    assert (published["release"], published["rows"], published["horizon"]) == (release.id, 4, 10)
    assert published["auc"] == 3 / 4  # of 2 x 2 pairs the rise of 0.2 stands below the fall of 0.25
    assert published["counts"] == {"BUY": 2, "SELL": 1, "none": 1}
    assert published["mean_return"] == pytest.approx({"BUY": 1.5, "SELL": -1.0, "none": -2.0})
