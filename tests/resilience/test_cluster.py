"""On a Redis Cluster the same entries with the same bits as on one server, kills included."""

import asyncio
import os
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from featurizer.service import serve
from notifier.service import Notifier
from shared.bus import Bus, Source, Step, Write
from shared.cluster import SlotMap, slot_of
from shared.config import Settings, load
from shared.errors import Unavailable
from shared.events import Feature, Kline, Level, Notice
from shared.features import FeatureSet
from shared.streams import ALERT, FEATURE, KLINE, NOTICE
from tests.cluster import ThreeNodes
from tests.kills import Plan, run_until_caught_up, singles
from tests.notifier.desk import serving
from tests.resilience.conftest import FEATURES, kill_seed
from tests.resilience.tape import Tape, record
from tests.valkey import Server

SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT", "XRPUSDT", "ADAUSDT", "DOGEUSDT")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreeNodes]:
    nodes = ThreeNodes(tmp_path_factory.mktemp("cluster"))
    try:
        yield nodes.start()
    finally:
        nodes.stop()


@pytest.fixture
def cluster(nodes: ThreeNodes) -> ThreeNodes:
    nodes.empty()
    return nodes


@pytest.fixture(scope="module")
def tape(tmp_path_factory: pytest.TempPathFactory) -> Tape:
    return record(tmp_path_factory.mktemp("tape"), history=20, live=60, seed=11)


def settings() -> Settings:
    return load(symbols=SYMBOLS, features_kline=FEATURES)


def klines(tape: Tape, symbol: str) -> list[Write[Kline]]:
    """The tape under another name."""
    source = Source(KLINE, symbol, "1m")
    made = []
    for kline in tape.klines:
        values = {name: getattr(kline, name) for name in Kline.__slots__}  # type: ignore[attr-defined]  # slots
        event = Kline(**values | {"symbol": symbol})
        made.append(Write(source=source, event=event, open_time_ms=event.open_time_ms))
    return made


async def put(url: str, tape: Tape) -> None:
    async with Bus.session(url, service="collector", exclusive=False) as bus:
        for symbol in SYMBOLS:
            assert await bus.write(*klines(tape, symbol)) == []


async def check(cluster: ThreeNodes, tape: Tape) -> None:
    """Every vector of every symbol stands where it must, once, with the batch's bits."""
    wanted = FeatureSet.of(FEATURES).batch(tape.first_index, tape.rows)
    async with Bus.session(cluster.url, service="test", exclusive=False) as bus:
        for symbol in SYMBOLS:
            source = Source(FEATURE, symbol, "1m")
            found = await bus.span(source, after=None)
            assert [e.time_ms for e in found] == [k.open_time_ms for k in tape.klines], symbol
            events = [e.event for e in found]
            assert all(isinstance(event, Feature) for event in events)
            assert b"".join(e.values for e in events if e is not None) == wanted.tobytes(), symbol
            assert cluster.on(source.key).xlen(source.key) == len(tape.klines)
            positions = await bus.group_position(Source(KLINE, symbol, "1m"))
            assert positions["featurizer"][1] == 0, "nothing is pending"


def test_the_symbols_of_this_test_lie_on_every_node(cluster: ThreeNodes) -> None:
    nodes = {cluster.node_of(Source(KLINE, symbol, "1m").key) for symbol in SYMBOLS}
    assert nodes == {0, 1, 2}
    for symbol in SYMBOLS:
        names = (f"kline:{{{symbol}}}:1m", f"dead:kline:{{{symbol}}}:1m", f"order:{{{symbol}}}")
        assert len({slot_of(name) for name in names}) == 1


async def test_a_stage_on_a_cluster_gives_what_a_batch_gives(
    cluster: ThreeNodes, monkeypatch: pytest.MonkeyPatch, tape: Tape
) -> None:
    await put(cluster.url, tape)
    await run_until_caught_up(monkeypatch, cluster.url, "featurizer", serve, settings(), Plan())
    await check(cluster, tape)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_killed_at_any_command_on_a_cluster_nothing_is_lost_doubled_or_wrong(
    cluster: ThreeNodes, monkeypatch: pytest.MonkeyPatch, tape: Tape
) -> None:
    plan = Plan()
    await put(cluster.url, tape)
    await run_until_caught_up(monkeypatch, cluster.url, "featurizer", serve, settings(), plan)
    rng = random.Random(kill_seed(5))
    points = rng.sample(singles(plan.calls), int(os.environ.get("ITB_KILLS", "40")))
    for error in (None, Unavailable):
        for point in points:
            cluster.empty()
            await put(cluster.url, tape)
            one = Plan(points=point)
            one.error = error or one.error
            await run_until_caught_up(
                monkeypatch, cluster.url, "featurizer", serve, settings(), one
            )
            await check(cluster, tape)


async def test_a_step_that_writes_elsewhere_is_done_whole_and_again_without_harm(
    cluster: ThreeNodes,
) -> None:
    """A claim about notices lies in another slot than they do."""
    assert slot_of("alert") != slot_of("notice")
    notice = Notice(service="x", level=Level.ALERT, code="c", text="t", time_ms=1)
    async with Bus.session(cluster.url, service="notifier") as bus:
        await bus.join([Source(NOTICE)])
        await bus.write(Write(source=Source(NOTICE), event=notice))
        (entry,) = await bus.read({"notice": Source(NOTICE)})
        claim = Write(source=Source(ALERT), event=_claim(), open_time_ms=5)
        for _ in range(2):
            assert await bus.commit([Step(input=entry, writes=[claim])]) == []
        assert await bus.length(Source(ALERT)) == 1
        assert (await bus.group_position(Source(NOTICE)))["notifier"][1] == 0
        durable = [Step(input=None, writes=[claim])]
        assert await bus.commit_durably(durable) == []
        assert await bus.is_durable(10)


def _claim() -> Any:
    from shared.events import Delivery, Notification

    return Notification(
        signal_id="", symbol="", interval="", open_time_ms=5, state=Delivery.SENDING,
        channel="console", chat="", text="t",
    )  # fmt: skip


async def test_people_are_told_from_a_cluster_too(cluster: ThreeNodes) -> None:
    text = "candle missing"
    notice = Notice(service="collector", level=Level.ALERT, code="gap", text=text, time_ms=1)
    config = load(symbols=SYMBOLS, notifier={"watch": []})
    async with Bus.session(cluster.url, service="desk") as bus:
        async with serving(cluster.url, "notifier", Notifier().serve, config):
            await bus.write(Write(source=Source(NOTICE), event=notice))
            async with asyncio.timeout(30):
                while await bus.length(Source(ALERT)) < 2:  # noqa: ASYNC110  # the server's change
                    await asyncio.sleep(0.01)
        entries = await bus.tail(Source(ALERT), 2)
        assert [e.event.state for e in entries if e.event is not None] == ["sending", "sent"]
        assert text in entries[0].event.text if entries[0].event else False


async def test_reads_wait_on_a_connection_per_stream_and_no_more(
    cluster: ThreeNodes, tape: Tape
) -> None:
    """FAULTS R5 on a cluster: 3 nodes, and one connection for each stream that is read."""
    sources = {(s := Source(KLINE, symbol, "1m")).key: s for symbol in SYMBOLS}
    async with Bus.session(cluster.url, service="featurizer") as bus:
        await bus.join(sources.values())
        assert await bus.read(sources, block_ms=10) == []
        assert bus.connections == 3 + len(SYMBOLS)
        for _ in range(3):
            assert await bus.read(sources, block_ms=10) == []
        assert bus.connections == 3 + len(SYMBOLS)
        reading = asyncio.create_task(bus.read(sources, block_ms=20_000))
        await asyncio.sleep(0)
        await put(cluster.url, tape)
        async with asyncio.timeout(15):
            entries = await reading
        assert entries
        read = {entry.id for entry in entries}
        while len(read) < len(tape.klines):
            read |= {entry.id for entry in await bus.read(sources, block_ms=20_000)}
    async with asyncio.timeout(30):
        while _named(cluster):  # noqa: ASYNC110  # all are closed with the session
            await asyncio.sleep(0.01)


async def test_who_only_looks_sees_every_stream_of_a_cluster(
    cluster: ThreeNodes, tape: Tape
) -> None:
    sources = {(s := Source(KLINE, symbol, "1m")).key: s for symbol in SYMBOLS}
    async with Bus.session(cluster.url, service="dashboard") as bus:
        nothing = dict.fromkeys(sources, "0")
        assert await bus.follow(sources, nothing, block_ms=1) == []
        looking = asyncio.create_task(bus.follow(sources, nothing, block_ms=20_000))
        await put(cluster.url, tape)
        async with asyncio.timeout(30):
            assert await looking
        entries = await bus.follow(sources, nothing, count=2, block_ms=20_000)
        assert Counter(entry.source.key for entry in entries) == dict.fromkeys(sources, 2)


def _named(cluster: ThreeNodes) -> int:
    return sum(
        client["name"].startswith("itb:featurizer:")
        for node in range(3)
        for client in cluster.client(node).client_list()
    )


async def test_the_second_of_one_name_stands_by_on_a_cluster(
    cluster: ThreeNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = 0

    def alive() -> None:
        nonlocal waited
        waited += 1

    async def second() -> int:
        async with Bus.session(cluster.url, service="featurizer", alive=alive):
            return waited

    async with Bus.session(cluster.url, service="featurizer"):
        monkeypatch.setattr("shared.bus._PROCESS", "another")
        task = asyncio.create_task(second())
        async with asyncio.timeout(30):
            while waited < 2:  # noqa: ASYNC110  # counted by the callback
                await asyncio.sleep(0.01)
        assert not task.done()
    async with asyncio.timeout(30):
        assert await task >= 2


def test_a_cluster_without_a_node_for_a_slot_is_not_there_yet() -> None:
    with pytest.raises(Unavailable, match="no node for slot 100"):
        SlotMap.of([[0, 99, [b"127.0.0.1", 7000]]], "redis://127.0.0.1:7000/0")
    slots = SlotMap.of(
        [[100, 16_383, [b"", 7001]], [0, 99, [b"10.0.0.2", 7000]]],
        "rediss://me:secret@host:7000/0?x=1",
    )
    assert slots.urls == (
        "rediss://me:secret@10.0.0.2:7000/0?x=1",
        "rediss://me:secret@host:7001/0?x=1",
    )


def test_one_server_needs_no_map(valkey: Server) -> None:
    async def count() -> int:
        async with Bus.session(valkey.url, service="x") as bus:
            return bus.connections

    assert asyncio.run(count()) == 2


async def test_slots_that_move_end_the_session_and_the_next_one_knows(
    cluster: ThreeNodes, tape: Tape
) -> None:
    """The last test of this file: the map is another one afterwards."""
    source = Source(KLINE, SYMBOLS[0], "1m")
    slot, old = slot_of(source.key), cluster.node_of(source.key)
    new = (old + 1) % 3
    ids = [cluster.client(n).execute_command("CLUSTER", "MYID").decode() for n in range(3)]
    async with Bus.session(cluster.url, service="collector") as bus:
        cluster.client(new).execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[new])
        cluster.client(old).execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[new])
        cluster.client(new).execute_command("CLUSTER", "BUMPEPOCH")
        with pytest.raises(Unavailable, match="MOVED"):
            await bus.write(klines(tape, SYMBOLS[0])[0])
    cluster.until(
        lambda: all(_owner(cluster, node, slot) == cluster.servers[new].port for node in range(3)),
        "all nodes knowing where the slot is",
    )
    async with Bus.session(cluster.url, service="collector") as bus:
        assert await bus.write(*klines(tape, SYMBOLS[0])) == []
    assert cluster.client(new).xlen(source.key) == len(tape.klines)


def _owner(cluster: ThreeNodes, node: int, slot: int) -> int:
    raw = redis.Redis(port=cluster.servers[node].port)
    for first, last, (_, port, *_), *_ in _slots(raw):
        if first <= slot <= last:
            return int(port)
    return 0


def _slots(client: "redis.Redis") -> Any:
    client.response_callbacks.pop("CLUSTER SLOTS", None)
    return client.execute_command("CLUSTER", "SLOTS")
