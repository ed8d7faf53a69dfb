"""Many viewers of one board: nobody waits for the slowest, and everybody ends with the same."""

import asyncio
import json
from typing import Any

from dashboard.board import Board
from dashboard.hub import Hub, Viewer
from shared.config import Settings
from tests.dashboard.recorded import MINUTE, START, Recording
from tests.dashboard.test_track import entries


def board(**keys: Any) -> Board:
    settings = Settings(symbols=["BTCUSDT", "ETHUSDT"], trader={"mode": "observe"}, **keys)
    return Board(settings)


def feed(board: Board, recording: Recording, numbers: range) -> None:
    for number in numbers:
        for entry in entries(recording, number):
            board.apply(entry)


def joined(hub: Hub, symbol: str = "BTCUSDT") -> Viewer:
    viewer = Viewer(symbol)
    hub.viewers.add(viewer)
    return viewer


async def taken(viewer: Viewer, hub: Hub) -> list[dict[str, Any]]:
    async with asyncio.timeout(30):
        return [json.loads(text) for text in await viewer.next(hub)]


async def test_a_viewer_gets_the_whole_first_and_then_what_is_new() -> None:
    hub, recording = Hub(), Recording(10)
    viewer = joined(hub)
    first = asyncio.ensure_future(taken(viewer, hub))
    await asyncio.sleep(0)
    assert not first.done()  # no bus yet
    one = board()
    feed(one, recording, range(4))
    hub.open(one)
    snapshot, *rest = await first
    assert snapshot["kind"] == "snapshot"
    assert len(snapshot["columns"]["time"]) == 4
    assert {message["kind"] for message in rest} == {"whatif", "tickers", "orders", "notices"}
    feed(one, recording, range(4, 6))
    hub.publish()
    rows = (await taken(viewer, hub))[0]
    assert [row[0] for row in rows["rows"]] == [START + n * MINUTE for n in (4, 5)]


async def test_rows_go_to_those_who_look_at_the_symbol() -> None:
    hub, one = Hub(), board()
    hub.open(one)
    looks, other = joined(hub), joined(hub, "ETHUSDT")
    await taken(looks, hub)
    await taken(other, hub)
    feed(one, Recording(3), range(3))
    hub.publish()
    assert [m["kind"] for m in await taken(looks, hub)] == ["rows", "whatif", "tickers"]
    assert [m["kind"] for m in await taken(other, hub)] == ["tickers"]


async def test_one_that_does_not_keep_up_gets_the_whole_again_and_holds_up_nobody() -> None:
    hub, one, recording = Hub(), board(), Recording(200)
    hub.open(one)
    quick, slow = joined(hub), joined(hub)
    for viewer in (quick, slow):
        await taken(viewer, hub)
    seen = 0
    for number in range(200):
        feed(one, recording, range(number, number + 1))
        hub.publish()
        seen += sum(len(m["rows"]) for m in await taken(quick, hub) if m["kind"] == "rows")
    assert seen == 200
    assert len(slow._waiting) <= 64
    snapshot = (await taken(slow, hub))[0]
    assert snapshot["kind"] == "snapshot"
    assert len(snapshot["columns"]["time"]) == 200
    feed(one, Recording(201), range(200, 201))
    hub.publish()
    assert (await taken(slow, hub))[0]["kind"] == "rows"


async def test_the_whole_is_made_once_for_all_who_come_before_the_next_change() -> None:
    hub, one, recording = Hub(), board(), Recording(6)
    feed(one, recording, range(5))
    hub.open(one)
    first = hub.whole("BTCUSDT")
    assert hub.whole("BTCUSDT") is first
    feed(one, recording, range(5, 6))
    hub.publish()
    assert hub.whole("BTCUSDT") is not first


async def test_when_the_bus_goes_pages_are_told_and_begin_again_when_it_is_back() -> None:
    hub, one = Hub(), board()
    hub.open(one)
    viewer = joined(hub)
    await taken(viewer, hub)
    hub.close("no connection")
    assert await taken(viewer, hub) == [{"kind": "trouble", "text": "no connection"}]
    assert hub.whole("BTCUSDT") == []
    hub.open(board())
    assert (await taken(viewer, hub))[0]["kind"] == "snapshot"


def test_candles_are_shared_out_where_there_are_many_symbols() -> None:
    few = Board(Settings(symbols=["A", "B"], dashboard={"candles": 5000}))
    many = Board(Settings(symbols=[f"S{n}" for n in range(100)], dashboard={"candles": 5000}))
    assert (few.candles, many.candles) == (5000, 600)
