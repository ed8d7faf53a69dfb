"""The track record on a real bus: every signal once, whatever ends the auditor and when."""

import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis

from auditor import recorder as recording
from auditor.archive import Archive
from auditor.recorder import Recorder
from shared.bus import Bus, Source, Write
from shared.config import Settings, load
from shared.errors import Failure
from shared.events import Level, Notice, Record, Signal
from shared.link import Link
from shared.record import GENESIS, read_file, verify
from shared.runtime import Health, Session
from shared.streams import NOTICE, RECORD, SIGNAL
from tests.kills import Killed, Plan, singles
from tests.valkey import Server

H = 3_600_000
START = 480_000 * H  # a midnight
SOURCE = Source(SIGNAL, "TESTUSDT", "1h")
RECORDS = Source(RECORD, "TESTUSDT", "1h")


def settings(folder: Path) -> Settings:
    return load(symbol="TESTUSDT", interval="1h", data_folder=folder / "data")


def signal(hour: int, seed: int = 1) -> Signal:
    score = random.Random(hour * 100 + seed).uniform(-1, 1)
    return Signal(
        open_time_ms=START + hour * H,
        symbol="TESTUSDT",
        interval="1h",
        close=100.0 + hour,
        score=score,
        side="BUY" if score > 0.15 else "",
        invalid="",
        release="20261122T120000Z-1a2b3c4d",
        schema="0" * 16,
        outputs={"high_10_k_lc": (score + 1) / 2},
    )


async def put(url: str, hours: range, seed: int = 1) -> None:
    async with Bus.session(url, service="predictor", exclusive=False) as bus:
        events = [signal(hour, seed) for hour in hours]
        await bus.write(
            *(Write(source=SOURCE, event=e, open_time_ms=e.open_time_ms) for e in events)
        )


async def record(url: str, folder: Path) -> Recorder:
    """One life, until nothing is left to do."""
    own = settings(folder)
    async with Bus.session(url, service="auditor") as bus:
        session = Session(settings=own, bus=bus, health=Health(), alive=lambda: None)
        recorder = Recorder(session, SOURCE, Archive(own.data_folder, "TESTUSDT", "1h"))
        await recorder.rebuild()
        while await recorder.step():
            pass
        return recorder


@pytest.fixture
async def bus(valkey: Server) -> AsyncIterator[Bus]:
    async with Bus.session(valkey.url, service="itb", exclusive=False) as session:
        yield session


async def recorded(bus: Bus) -> list[Record]:
    entries = await bus.tail(RECORDS, 10_000)
    assert [e.problem for e in entries] == [""] * len(entries)
    return [e.event for e in entries if e.event is not None]


async def notices(bus: Bus, code: str) -> list[Notice]:
    found = [entry.event for entry in await bus.tail(Source(NOTICE), 1_000)]
    return [one for one in found if one is not None and one.code == code]


def days(folder: Path) -> list[Path]:
    return sorted((folder / "data" / "TESTUSDT-1h-record").glob("*"))


async def test_every_signal_is_a_link_of_one_chain(
    valkey: Server, bus: Bus, tmp_path: Path
) -> None:
    await put(valkey.url, range(10))
    await record(valkey.url, tmp_path)
    await put(valkey.url, range(10, 20))
    recorder = await record(valkey.url, tmp_path)
    records = await recorded(bus)
    found = verify(records)
    assert (found.records, found.anchor, found.head) == (20, GENESIS, recorder.head)
    assert found.is_whole
    for hour, one in enumerate(records):
        told = json.loads(one.text)
        assert told["id"] == f"TESTUSDT-1h-{START + hour * H}"
        assert told["signal"]["score"] == signal(hour).score


async def test_a_day_that_is_over_becomes_a_file_and_its_last_hash_is_told(
    valkey: Server, bus: Bus, tmp_path: Path
) -> None:
    await put(valkey.url, range(5, 60))  # two midnights
    await record(valkey.url, tmp_path)
    assert [path.name for path in days(tmp_path)] == ["2024-10-04.txt", "2024-10-05.txt"]
    records = await recorded(bus)
    kept = [one for path in days(tmp_path) for one in read_file(path)]
    assert kept == records[:43]  # 19 hours of the first day, 24 of the second
    told = await notices(bus, "record")
    assert [one.level for one in told] == [Level.INFO] * 2
    assert f"2024-10-04: 19 signals, the last hash is {records[18].hash}" in told[0].text
    assert f"2024-10-05: 24 signals, the last hash is {records[42].hash}" in told[1].text
    await put(valkey.url, range(60, 80))
    await record(valkey.url, tmp_path)
    assert [path.name for path in days(tmp_path)][2:] == ["2024-10-06.txt"]
    assert len(await notices(bus, "record")) == 3


async def test_ended_at_any_command_it_goes_on_with_the_same_chain(
    valkey: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "_CHUNK", 10)

    async def lives(plan: Plan, folder: Path) -> list[Record]:
        with redis.Redis(port=valkey.port) as client:
            client.flushall()
        await put(valkey.url, range(30))
        real = Link.call

        async def call(self: Link, *commands: Any, wait_s: float = 0.0) -> list[Any]:
            plan.calls += 1
            plan.strike("before")
            replies = await real(self, *commands, wait_s=wait_s)
            plan.strike("after")
            return replies

        with monkeypatch.context() as patch:
            patch.setattr(Link, "call", call)
            for _ in range(3):
                try:
                    await record(valkey.url, folder)
                except Killed:
                    continue
                break
        async with Bus.session(valkey.url, service="itb", exclusive=False) as bus:
            return await recorded(bus)

    undisturbed = Plan()
    whole = await lives(undisturbed, tmp_path / "whole")
    assert len(whole) == 30
    points = singles(undisturbed.calls)
    for number, points_of in enumerate(random.Random(2).sample(points, 24)):
        plan = Plan(points=points_of)
        folder = tmp_path / str(number)
        found = await lives(plan, folder)
        assert plan.struck == 1
        assert verify(found).is_whole
        assert [one.text.replace("null", "") for one in found] == [
            one.text.replace("null", "") for one in whole
        ]
        assert verify(read_file(days(folder)[0])).records == 24


async def test_after_the_bus_was_emptied_the_chain_goes_on_from_the_archive(
    valkey: Server, bus: Bus, tmp_path: Path
) -> None:
    """What was said about these candles stands: other signals about them are not recorded."""
    await put(valkey.url, range(30))
    before = await record(valkey.url, tmp_path)
    kept = list(read_file(days(tmp_path)[0]))
    with redis.Redis(port=valkey.port) as client:
        client.flushall()
    await put(valkey.url, range(40), seed=2)
    after = await record(valkey.url, tmp_path)
    records = await recorded(bus)
    assert records[0].previous == kept[-1].hash
    assert [json.loads(one.text)["id"] for one in records] == [
        f"TESTUSDT-1h-{START + hour * H}" for hour in range(24, 40)
    ]
    assert verify([*kept, *records]).is_whole
    assert before.head != after.head


async def test_signals_that_nobody_recorded_in_time_are_told(
    valkey: Server, bus: Bus, tmp_path: Path
) -> None:
    await put(valkey.url, range(5))
    await record(valkey.url, tmp_path)
    await put(valkey.url, range(9, 12))
    await record(valkey.url, tmp_path)
    (told,) = await notices(bus, "record_hole")
    assert told.level == Level.WARNING
    assert "no signal from 2024-10-04T05:00:00Z to 2024-10-04T08:00:00Z" in told.text


async def test_a_second_writer_ends_it_instead_of_forking_the_chain(
    valkey: Server, tmp_path: Path
) -> None:
    await put(valkey.url, range(5))
    own = settings(tmp_path)
    async with Bus.session(valkey.url, service="auditor") as bus:
        session = Session(settings=own, bus=bus, health=Health(), alive=lambda: None)
        archive = Archive(own.data_folder, "TESTUSDT", "1h")
        one, other = (Recorder(session, SOURCE, archive) for _ in range(2))
        await one.rebuild()
        await other.rebuild()
        await one.step()
        await put(valkey.url, range(5, 6))
        other.head = "1" * 64
        with pytest.raises(Failure, match="somebody else writes this record"):
            await other.step()


async def test_an_archive_that_cannot_be_written_stops_nothing_and_is_told(
    valkey: Server, bus: Bus, tmp_path: Path
) -> None:
    (tmp_path / "data").write_text("no folder")
    await put(valkey.url, range(50))
    await record(valkey.url, tmp_path)
    assert len(await recorded(bus)) == 50
    (told,) = await notices(bus, "record_archive")
    assert told.level == Level.WARNING
    (tmp_path / "data").unlink()
    await record(valkey.url, tmp_path)
    assert [path.name for path in days(tmp_path)] == ["2024-10-04.txt", "2024-10-05.txt"]
