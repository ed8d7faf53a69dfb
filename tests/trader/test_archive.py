"""The journal's streams stay short, and whoever folds what is left gets the same sums."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dashboard.account import Account
from shared.bus import Bus, Source, Write
from shared.config import load
from shared.errors import Failure
from shared.events import Order
from shared.exchange import Fill
from shared.ledger import Ledger, ledger_of
from shared.runtime import Health, Session
from shared.streams import NOTICE, ORDER
from tests.shared.test_ledger import BOUGHT, SOLD, fill, line
from tests.trader.rig import BUY, HOLD, SELL, SYMBOL, floor, trades, trading
from tests.valkey import Server
from trader import archive
from trader.archive import WEEK_MS, Archivist, keep
from trader.journal import Journal
from trader.merge import merge

SOURCE = Source(ORDER, SYMBOL)
NOW_MS = time.time_ns() // 1_000_000
OLD_MS = NOW_MS - 40 * 86_400_000
TRADES = (BOUGHT, SOLD, fill(3, "BUY", "120", "2", "0.002", "BTC"))


def trade(number: int, one: Fill, at_ms: int, mode: str = "paper") -> list[Order]:
    name, keys = f"{mode}{number}", {"side": one.side, "time_ms": at_ms, "mode": mode}
    profit = {"profit": "9.78"} if one.side == "SELL" else {}
    return [
        line(name, "INTENT", price="99", worth="10000", **keys),
        line(name, "FILLED", one, **keys, **profit),
        line("", "DROPPED", client_id="", **(keys | {"signal_id": f"{name}-dropped"})),
    ]


def carried(lines: list[Order], mode: str = "paper") -> Order:
    """Behind these lines, older than signals are kept."""
    text = ledger_of(lines, "BTC", "USDT", mode).carried()
    return line(
        "", "CARRIED", client_id="", carried=text, mode=mode, time_ms=OLD_MS + 1, side="", leg=""
    )


class Desk:
    """The trader's half of it: a journal file, and the bus."""

    def __init__(self, bus: Bus, folder: Path, mode: str = "paper") -> None:
        settings = load(None, data_folder=folder, trader={"mode": mode})
        self.bus = bus
        self.told: list[str] = []
        self.session = Session(settings=settings, bus=bus, health=Health(), alive=lambda: None)
        self.carries: list[dict[str, str]] = []
        self.open: set[str] = set()

        async def carry(_symbol: str, others: Any) -> None:
            self.carries.append(dict(others))

        self.archivist = Archivist(
            self.session, mode, carry=carry, still_open=lambda _symbol: self.open
        )

    async def write(self, *lines: Order) -> None:
        numbered = [
            one if one.mode == "observe" else replace(one, journal="j", number=number)
            for number, one in enumerate(lines, await self.bus.length(SOURCE) + 1)
        ]
        for one in numbered:
            await self.bus.write(Write(source=SOURCE, event=one))

    async def lines(self) -> list[Order]:
        return [e.event for e in await self.bus.everything(SOURCE) if e.event is not None]


def archived(folder: Path) -> list[Order]:
    with Journal.open(folder / "journal" / "archive" / f"{SYMBOL}.journal") as journal:
        return list(journal.lines())


def sums(lines: list[Order], mode: str = "paper") -> str:
    return ledger_of(lines, "BTC", "USDT", mode).carried()


async def test_old_lines_go_into_the_archive_and_every_sum_stays(
    valkey: Server, tmp_path: Path
) -> None:
    old = [one for n, made in enumerate(TRADES) for one in trade(n, made, OLD_MS)]
    live = trade(7, fill(9, "BUY", "50", "3", "0.1", "USDT"), OLD_MS, "live")
    seen = line("o", "OBSERVED", mode="observe", client_id="", time_ms=OLD_MS)
    new = trade(8, fill(4, "SELL", "130", "2.5", "0.3", "USDT"), NOW_MS)
    all_old = [*live, seen, *old]
    async with Bus.session(valkey.url, service="trader") as bus:
        desk = Desk(bus, tmp_path)
        await desk.write(*all_old, carried(live, "live"), carried(old), *new)
        before = await desk.lines()
        assert await desk.archivist.look(SYMBOL) == len(all_old)
        after = await desk.lines()
        assert after == before[len(all_old) :]
        for mode in ("paper", "live"):
            assert sums(after, mode) == sums(before, mode)
            shown = [Account(SYMBOL, "BTC", "USDT", mode) for _ in range(2)]
            for account, lines in zip(shown, (before, after), strict=True):
                for one in lines:
                    account.add(one)
            whole, rest = (account.shown() for account in shown)
            assert {**whole, "trades": 0} == {**rest, "trades": 0}  # the list is of what is left
        plain = [replace(one, journal="", number=0) for one in archived(tmp_path)]
        assert plain == all_old
        assert await desk.archivist.look(SYMBOL) == 0


async def test_a_crash_before_the_cut_archives_nothing_twice(
    valkey: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = [*trade(0, BOUGHT, OLD_MS), line("o", "OBSERVED", mode="observe", time_ms=OLD_MS)]
    async with Bus.session(valkey.url, service="trader") as bus:
        desk = Desk(bus, tmp_path)
        await desk.write(*old, carried(old), *trade(1, SOLD, NOW_MS))

        async def dies(*_: Any) -> int:
            raise ConnectionError

        with monkeypatch.context() as patch:
            patch.setattr(bus, "trim_before", dies)
            with pytest.raises(ConnectionError):
                await desk.archivist.look(SYMBOL)
        assert await desk.archivist.look(SYMBOL) == len(old)
    assert len(archived(tmp_path)) == len(old)


async def test_what_does_not_come_to_what_is_carried_stays_and_people_are_told(
    valkey: Server, tmp_path: Path
) -> None:
    old = trade(0, BOUGHT, OLD_MS)
    async with Bus.session(valkey.url, service="trader") as bus:
        desk = Desk(bus, tmp_path)
        await desk.write(*old, carried(old[:1]), *trade(1, SOLD, NOW_MS))
        assert await desk.archivist.look(SYMBOL) == 0
        assert len(await desk.lines()) == 7
        told = await bus.tail(Source(NOTICE), 1)
        assert told[0].event is not None
        assert "do not come to what is carried" in told[0].event.text


async def test_a_sum_that_an_older_version_wrote_is_compared_as_this_one_would_write_it(
    valkey: Server, tmp_path: Path
) -> None:
    old = trade(0, BOUGHT, OLD_MS)
    sum_ = carried(old)
    body = json.loads(sum_.carried)
    for order in body["orders"].values():
        del order["is_former"]
    async with Bus.session(valkey.url, service="trader") as bus:
        desk = Desk(bus, tmp_path)
        await desk.write(*old, replace(sum_, carried=json.dumps(body)), *trade(1, SOLD, NOW_MS))
        assert await desk.archivist.look(SYMBOL) == len(old)


async def test_a_line_of_an_open_order_stays(valkey: Server, tmp_path: Path) -> None:
    old = [line("a", "INTENT", time_ms=OLD_MS), line("a", "ACKED", time_ms=OLD_MS)]
    async with Bus.session(valkey.url, service="trader") as bus:
        desk = Desk(bus, tmp_path)
        await desk.write(*old, carried(old), line("a", "FILLED", BOUGHT, time_ms=NOW_MS))
        desk.open = {"a"}
        assert await desk.archivist.look(SYMBOL) == 0
        desk.open = set()
        assert await desk.archivist.look(SYMBOL) == 2


async def test_the_sum_is_carried_once_a_week_and_only_behind_something_new(
    valkey: Server, tmp_path: Path
) -> None:
    live = trade(7, BOUGHT, OLD_MS, "live")
    young = NOW_MS - WEEK_MS // 2
    async with Bus.session(valkey.url, service="trader") as bus:
        desk = Desk(bus, tmp_path)
        await desk.write(*trade(0, BOUGHT, young))
        await desk.archivist.look(SYMBOL)
        assert desk.carries == []
        await bus.trim_before(SOURCE, "9999999999999-0")
        await desk.write(*live, *trade(0, BOUGHT, OLD_MS))
        await desk.archivist.look(SYMBOL)
        assert desk.carries == [{"live": sums(live, "live")}]
        sum_ = carried([*live, *trade(0, BOUGHT, OLD_MS)])
        await desk.write(carried(live, "live"), sum_)
        await desk.archivist.look(SYMBOL)
        assert len(desk.carries) == 1


async def test_observed_decisions_need_no_sum(valkey: Server, tmp_path: Path) -> None:
    seen = [
        line(f"o{n}", "OBSERVED", mode="observe", client_id="", open_time_ms=n, time_ms=OLD_MS)
        for n in range(5)
    ]
    new = line("o9", "OBSERVED", mode="observe", client_id="", time_ms=NOW_MS)
    async with Bus.session(valkey.url, service="trader") as bus:
        desk = Desk(bus, tmp_path, "observe")
        await desk.write(*seen, new)
        assert await desk.archivist.look(SYMBOL) == 5
        assert await desk.lines() == [new]
    assert [one.signal_id for one in archived(tmp_path)] == [one.signal_id for one in seen]


async def test_a_file_that_is_older_than_the_bus_is_refused_and_a_new_one_takes_the_sum(
    valkey: Server, tmp_path: Path
) -> None:
    old = trade(0, BOUGHT, OLD_MS)
    with Journal.open(tmp_path / "stale") as stale:
        list(stale.lines())
        stale.append(trade(5, fill(8, "BUY", "1", "1", "0", "BTC"), OLD_MS))
    async with Bus.session(valkey.url, service="trader") as bus:
        desk = Desk(bus, tmp_path)
        await desk.write(*old, carried(old), *trade(1, SOLD, NOW_MS))
        before = await desk.lines()
        await desk.archivist.look(SYMBOL)
        with Journal.open(tmp_path / "stale") as stale:
            list(stale.lines())
            with pytest.raises(Failure, match="move it away"):
                await merge(bus, stale, [SYMBOL], "paper")
        with Journal.open(tmp_path / "new") as new:
            list(new.lines())
            taken = (await merge(bus, new, [SYMBOL], "paper")).taken
            assert sums(taken) == sums(before)
            # And when the bus is lost, it gets all of it back.
            await bus.trim_before(SOURCE, "9999999999999-0")
            await merge(bus, new, [SYMBOL], "paper")
            assert sums(await desk.lines()) == sums(before)


async def test_a_server_that_came_again_with_all_of_it_is_known_to_have_it(
    valkey: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Bus.session(valkey.url, service="trader") as bus:
        with Journal.open(tmp_path / "j") as journal:
            list(journal.lines())
            lines = journal.append(trade(0, BOUGHT, NOW_MS))
            for one in lines:
                await bus.write(Write(source=SOURCE, event=one))
            told: list[str] = []
            for server in ("first", "another life"):
                monkeypatch.setattr(Bus, "server_id", server)
                await merge(bus, journal, [SYMBOL], "paper", told.append)
                list(journal.lines())
                assert journal.on_bus.acked == {SYMBOL: lines[-1].number}
                assert journal.on_bus.server == server
            size = journal.path.stat().st_size
            await merge(bus, journal, [SYMBOL], "paper", told.append)
            assert (journal.path.stat().st_size, told) == (size, [])
            await bus.trim_before(SOURCE, "9999999999999-0")
            await merge(bus, journal, [SYMBOL], "paper", told.append)
            assert "is gone, though the server has not been away" in told[0]


async def test_behind_a_sum_that_another_trader_told_nothing_is_written_again(
    valkey: Server, tmp_path: Path
) -> None:
    """paper, live, paper: of paper the bus holds the sum that live told, and nothing else."""
    halted = line("", "HALTED", client_id="", reason="limit: x", time_ms=OLD_MS)
    async with Bus.session(valkey.url, service="trader") as bus:
        desk = Desk(bus, tmp_path)
        with Journal.open(tmp_path / "j") as journal:
            list(journal.lines())
            own = journal.append([*trade(0, BOUGHT, OLD_MS), halted])
            [sum_] = journal.append([replace(carried(own), journal="live", number=9)])
            await bus.write(Write(source=SOURCE, event=sum_))
            for count in (0, 1, 0):
                list(journal.lines())
                own += (newer := journal.append(trade(count, SOLD, NOW_MS)[:count]))
                merged = await merge(bus, journal, [SYMBOL], "paper")
                assert (merged.taken, merged.unread) == ([], [])
                assert (await desk.lines())[0] == sum_
                assert (await desk.lines())[-len(newer) :][:count] == newer
            assert len(await desk.lines()) == 2
            assert sums(await desk.lines()) == sums(own)


@pytest.mark.parametrize("is_whole", [True, False])
async def test_a_sum_of_exactly_the_file_s_lines_that_the_file_lacks_is_taken_in(
    valkey: Server, tmp_path: Path, is_whole: bool
) -> None:
    """paper, live for weeks, paper: live told the sum of paper and cut the stream there."""
    async with Bus.session(valkey.url, service="trader") as bus:
        desk = Desk(bus, tmp_path)
        with Journal.open(tmp_path / "j") as journal:
            list(journal.lines())
            own = journal.append([*trade(0, BOUGHT, OLD_MS), *trade(1, SOLD, OLD_MS)])
            known = own if is_whole else [*own, *trade(2, TRADES[2], OLD_MS)]
            sum_ = replace(carried(known), journal="live", number=9)
            again = replace(sum_, number=12)
            live = replace(trade(7, BOUGHT, NOW_MS, "live")[1], journal="live", number=11)
            for one in (sum_, live, again):
                await bus.write(Write(source=SOURCE, event=one))
            if not is_whole:
                with pytest.raises(Failure, match="lacks what another trader did"):
                    await merge(bus, journal, [SYMBOL], "paper")
                return
            merged = await merge(bus, journal, [SYMBOL], "paper")
            assert merged.taken == [sum_, again]
            assert await desk.lines() == [sum_, live, again]
            own += (newer := journal.append(trade(2, TRADES[2], NOW_MS)))
            list(journal.lines())
            assert (await merge(bus, journal, [SYMBOL], "paper")).taken == []
            assert await desk.lines() == [sum_, live, again, *newer]
            assert sums(await desk.lines()) == sums(own) == sums(list(journal.lines()))


async def test_the_trader_cuts_its_stream_while_it_trades_and_a_new_machine_goes_on(
    valkey: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "WEEK_MS", 0)
    monkeypatch.setattr(archive, "kept_ms", lambda _step_ms: -60_000)
    async with floor(valkey.url) as market:
        await market.candle(HOLD)
        settings = trading(tmp_path, market.ex)
        async with trades(market.desk.url, settings):
            await market.candle(BUY)
            await market.until_state("FILLED")
            await market.candle(HOLD)
            await market.candle(SELL)
            await market.until_state("FILLED", count=2)
            await market.candle(BUY)
            await market.until_state("FILLED", count=3)
        before = await market.ledger()
        monkeypatch.setattr(archive, "FIRST_S", 0.0)
        monkeypatch.setattr(archive, "ROUND_S", 0.05)
        async with trades(market.desk.url, settings):
            await market.until(lambda lines: lines[0].state == "CARRIED", "a cut")
        monkeypatch.setattr(archive, "FIRST_S", 600.0)
        assert (await market.ledger()).carried() == before.carried()
        assert before.position > 0
        whole = [one for one in archived(tmp_path) if one.mode == "paper"] + await market.lines()
        assert sums(whole) == before.carried()
        async with trades(market.desk.url, trading(tmp_path / "new", market.ex)) as session:
            assert not session.health.facts.get("diverged")
            sold = await market.candle(SELL)
            lines = await market.until(
                lambda found: any(o.state == "FILLED" and o.side == "SELL" for o in found), "a sale"
            )
            assert [o.signal_id for o in lines if o.state == "FILLED"] == [sold.id]
        after: Ledger = await market.ledger()
        balances = await market.balances()
        assert after.position == balances["BTC"]
        assert after.trips == before.trips + 1
        assert after.flow == balances["USDT"] - 10_000


def test_the_archive_takes_what_it_has_not(tmp_path: Path) -> None:
    lines = [replace(one, journal="j", number=n) for n, one in enumerate(trade(0, BOUGHT, 1))]
    keep(tmp_path / "a", lines[:2])
    keep(tmp_path / "a", lines)
    with Journal.open(tmp_path / "a") as found:
        assert list(found.lines()) == lines


def test_numbers_that_were_given_out_again_after_a_restore_hide_no_line(tmp_path: Path) -> None:
    first = [replace(one, journal="j", number=n) for n, one in enumerate(trade(0, BOUGHT, 1))]
    other = [replace(one, journal="j", number=n) for n, one in enumerate(trade(1, SOLD, 2))]
    seen = line("o", "OBSERVED", mode="observe", client_id="", score=float("nan"))
    bare = [seen, replace(seen, signal_id="p")]
    for lines in (first, [*first, *other, *bare], [*other, *bare]):
        keep(tmp_path / "a", lines)
    with Journal.open(tmp_path / "a") as found:
        kept = list(found.lines())
        assert kept[: len([*first, *other])] == [*first, *other]
        assert [one.signal_id for one in kept[-2:]] == ["o", "p"]
        assert len(kept) == len(first) + len(other) + 2
