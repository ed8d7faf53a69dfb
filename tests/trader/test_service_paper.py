"""The whole trader at the simulator: real Valkey, HTTP and journal file (FAULTS T1 to T20)."""

import asyncio
import contextlib
import json
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

import trader.service
from shared.account import BinanceAccount
from shared.bus import Bus, Source, Write
from shared.config import load
from shared.control import CONTROL_FILE, CONTROL_KEY
from shared.errors import Failure, Unavailable, Usage
from shared.events import Kline, Order
from shared.exchange import OrderReport, Permissions
from shared.ledger import NEW_ACCOUNT
from shared.runtime import Health, Session
from shared.streams import KLINE, intent_key
from shared.times import floor_ms
from tests.shared.test_ledger import line
from tests.simulator.client import Client
from tests.simulator.exchange import exchange
from tests.trader.rig import BUY, HOLD, MINUTE, SELL, SYMBOL, Floor, floor, trades, trading
from tests.valkey import Server
from tests.waiting import until
from trader.journal import Journal, Taken
from trader.orders import client_id
from trader.places import place_of
from trader.service import Trader


@pytest.fixture
async def market(valkey: Server) -> AsyncIterator[Floor]:
    async with floor(valkey.url) as market:
        await market.candle(HOLD)
        yield market


@contextlib.asynccontextmanager
async def at_work(market: Floor, folder: Path, **keys: Any) -> AsyncIterator[Any]:
    async with trades(market.desk.url, trading(folder, market.ex, **keys)) as session:
        yield session


async def orders(market: Floor) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await market.ex.get("/control/account"))["orders"]
    return found


async def reason(market: Floor, signal_id: str, state: str = "DROPPED") -> str:
    lines = await market.until(
        lambda found: any(one.signal_id == signal_id and one.state == state for one in found),
        f"{state} of {signal_id}",
    )
    return next(one.reason for one in lines if one.signal_id == signal_id and one.state == state)


async def codes(market: Floor) -> list[str]:
    return [notice.code for notice in await market.desk.notices("trader")]


def guards(session: Any) -> set[str]:
    """Those that forbid entries, as Prometheus is told."""
    family = next(one for one in session.metrics.collect() if one.name == "itb_guard_active")
    return {sample.labels["guard"] for sample in family.samples if sample.value}


async def until_told(market: Floor, code: str, count: int = 1) -> None:
    async with asyncio.timeout(60):
        while (await codes(market)).count(code) < count:  # noqa: ASYNC110  # a stream of notices
            await asyncio.sleep(0.02)


async def test_it_buys_sells_and_its_books_are_the_exchange_s(
    market: Floor, tmp_path: Path
) -> None:
    before = await market.balances()
    async with at_work(market, tmp_path):
        await market.candle(BUY)
        await market.until_state("FILLED", count=1)
        await market.candle(HOLD)
        await market.candle(SELL)
        await market.until_state("FILLED", count=2)
    after, ledger = await market.balances(), await market.ledger()
    assert ledger.flow == after["USDT"] - before["USDT"]
    assert ledger.position == after["BTC"] > 0
    told = [(line.state, line.side, line.leg) for line in await market.lines()]
    # ACKED where the user stream is faster than the reply.
    assert [one for one in told if one[0] != "ACKED"] == [
        ("INTENT", "BUY", "entry"), ("FILLED", "BUY", "entry"),
        ("INTENT", "SELL", "exit"), ("DUST", "SELL", "exit"), ("FILLED", "SELL", "exit"),
    ]  # fmt: skip
    said = [n.text for n in await market.desk.notices("trader") if n.code == "trader_mode"]
    assert len(said) == 1
    assert "trades BTCUSDT with play money at 127.0.0.1" in said[0]


async def test_an_answer_that_is_lost_is_asked_for_and_nothing_is_sent_again(
    market: Floor, tmp_path: Path
) -> None:
    await market.ex.break_with("lost", path="order", method="POST", executed=True, count=1)
    async with at_work(market, tmp_path):
        await market.candle(BUY)
        lines = await market.until_state("FILLED")
    assert [line.state for line in lines if line.state != "ACKED"][:2] == ["INTENT", "UNKNOWN"] or (
        # The user stream told of the fill before the connection broke.
        [line.state for line in lines] == ["INTENT", "ACKED", "FILLED"]
    )
    assert [o["status"] for o in await orders(market)] == ["FILLED"]


async def test_a_signal_that_waits_behind_an_unknown_order_is_not_forgotten_by_a_restart(
    market: Floor, tmp_path: Path
) -> None:
    async with at_work(market, tmp_path):
        await market.candle(BUY)
        await market.until_state("FILLED")
        await market.ex.break_with("status", status=503, path="order", method="POST", count=1)
        await market.candle(SELL)
        await market.until_state("UNKNOWN")
        second = await market.candle(SELL)
        with contextlib.suppress(TimeoutError):  # a trader that forgets it is done with it by then
            async with asyncio.timeout(3):
                while await market.desk.pending("trader"):  # noqa: ASYNC110  # as it says
                    await asyncio.sleep(0.02)
        assert not any(line.signal_id == second.id for line in await market.lines())
    async with at_work(market, tmp_path):
        assert "older than this start" in await reason(market, second.id)


async def test_a_signal_from_before_the_start_is_dropped_for_that_reason(
    market: Floor, tmp_path: Path
) -> None:
    async with at_work(market, tmp_path, max_age_s=1e6):
        await market.candle(HOLD)
    missed = await market.candle(BUY)
    for _ in range(3):
        await market.candle(HOLD)
    async with at_work(market, tmp_path, max_age_s=1e6):
        assert "older than this start" in await reason(market, missed.id)


async def test_refused_orders_halt_until_an_operator_resumes_and_no_restart_changes_that(
    market: Floor, tmp_path: Path
) -> None:
    await market.ex.break_with(
        "status", status=400, code=-2010, message="Account has insufficient balance.",
        path="order", method="POST",
    )  # fmt: skip
    async with at_work(market, tmp_path):
        for number in range(3):
            await market.candle(BUY)
            await market.until_state("REJECTED", count=number + 1)
        await market.until_state("HALTED")
        dropped = await market.candle(BUY)
        assert "3 orders in a row were refused" in await reason(market, dropped.id)
    async with market.ex.http.delete("/control/faults"):
        pass
    async with at_work(market, tmp_path) as session:
        dropped = await market.candle(BUY)
        assert "3 orders in a row were refused" in await reason(market, dropped.id)
        await session.bus.put(CONTROL_KEY, "RESUME 1 somebody")
        await market.until_state("RESUMED")
        await market.candle(BUY)
        await market.until_state("FILLED")
    assert {"halted", "order_refused", "resumed"} <= set(await codes(market))


async def test_the_switch_is_obeyed_at_the_last_moment_by_key_and_by_file(
    market: Floor, tmp_path: Path
) -> None:
    async with at_work(market, tmp_path) as session:
        await session.bus.put(CONTROL_KEY, "HALT 1 somebody")
        halted = await market.candle(BUY)
        assert "halted: operator: HALT 1 somebody" in await reason(market, halted.id)
        await session.bus.put(CONTROL_KEY, "RESUME 2 somebody")
        await market.until_state("RESUMED")
        file = tmp_path / "journal" / CONTROL_FILE
        file.write_text("reduce_only\n")
        reduced = await market.candle(BUY)
        assert "REDUCE_ONLY" in (await reason(market, reduced.id)).upper()
        file.unlink()
        await until_told(market, "resumed", 2)
        await market.candle(BUY)
        await market.until_state("FILLED")
        file.write_bytes(b"\xff\xfe")
        unreadable = await market.candle(SELL)
        assert "no text" in await reason(market, unreadable.id)
        file.unlink()
        await session.bus.put(CONTROL_KEY, "FLATTEN 3 somebody")
        lines = await market.until_state("FILLED", count=2)
        assert (lines[-1].leg, lines[-1].side) == ("flatten", "SELL")
        after = await market.candle(BUY)
        assert "FLATTEN" in await reason(market, after.id)
    assert (await market.balances())["BTC"] < 1e-4


async def test_what_another_trader_has_claimed_is_not_sent(market: Floor, tmp_path: Path) -> None:
    async with at_work(market, tmp_path) as session:
        opened = market.opened[-1] + 60_000
        name = client_id(f"{SYMBOL}-1m-{opened}", "entry")
        assert await session.bus.claim(intent_key(SYMBOL, name), "other", ttl_ms=60_000)
        one = await market.candle(BUY)
        assert "another trader" in await reason(market, one.id)
        with pytest.raises(Taken):
            Journal.open(tmp_path / "journal" / "paper.journal")
    assert await orders(market) == []


@pytest.mark.parametrize("broken", ["bus", "disk"])
async def test_what_is_not_durable_is_not_sent(
    market: Floor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    real = Bus.commit

    async def commit(self: Bus, steps: Any) -> Any:
        if any(getattr(w.event, "state", "") == "INTENT" for s in steps for w in s.writes):
            raise Unavailable("the bus is away")
        return await real(self, steps)

    def sync(self: Journal) -> None:
        raise Unavailable("the disk is away")

    with pytest.raises(BaseExceptionGroup), monkeypatch.context() as patch:
        if broken == "bus":
            patch.setattr(Bus, "commit", commit)
        else:
            patch.setattr(Journal, "sync", sync)
        async with at_work(market, tmp_path), asyncio.timeout(30):
            await market.candle(BUY)
            await asyncio.Event().wait()
    assert await orders(market) == []
    async with at_work(market, tmp_path):
        lines = await market.until_state("DROPPED")
    assert [line.state for line in lines] == ["INTENT", "DROPPED"]
    assert "away" in lines[-1].reason
    assert await orders(market) == []


async def test_a_lost_journal_file_is_rebuilt_from_the_bus(market: Floor, tmp_path: Path) -> None:
    async with at_work(market, tmp_path):
        await market.candle(BUY)
        await market.until_state("FILLED")
    held, lines = (await market.ledger()).position, await market.lines()
    (tmp_path / "journal" / "paper.journal").unlink()
    async with at_work(market, tmp_path) as session:
        await until(lambda: session.health.facts.get("positions") == {SYMBOL: str(held)})
        told = session.health.facts["balances"]
    amounts = {asset: Decimal(one["free"]) + Decimal(one["locked"]) for asset, one in told.items()}
    assert amounts == await market.balances()
    assert await market.lines() == lines


@pytest.mark.parametrize("life", ["before it starts", "under its hands"])
async def test_a_bus_that_was_emptied_halts_gets_the_file_s_lines_and_an_operator_resumes(
    market: Floor, tmp_path: Path, life: str
) -> None:
    """FAULTS V4."""
    async with at_work(market, tmp_path):
        await market.candle(BUY)
        await market.until_state("FILLED")
    held, lines = (await market.ledger()).position, await market.lines()
    if life == "under its hands":
        with pytest.raises(BaseExceptionGroup) as caught:
            async with at_work(market, tmp_path), asyncio.timeout(60):
                await market.desk.raw.delete("order:{BTCUSDT}")
                await market.candle(SELL)
                await asyncio.Event().wait()
        assert "somebody deleted it" in str(_first(caught.value))
    else:
        await market.desk.raw.delete("order:{BTCUSDT}")
    async with at_work(market, tmp_path) as session:
        assert (await market.lines())[: len(lines)] == lines
        assert (await market.ledger()).switch.state == "HALTED"
        assert "order:{BTCUSDT} is gone, though" in (await market.ledger()).switch.reason
        await until(lambda: session.health.facts.get("switch") == "HALTED")
        await until(lambda: guards(session) == {"switch"})
        sale = await market.candle(SELL)
        assert "is gone" in await reason(market, sale.id)
        assert (await market.ledger()).position == held
        await session.bus.put(CONTROL_KEY, "RESUME 1 somebody")
        await market.until_state("RESUMED")
        await market.candle(SELL)
        await market.until_state("FILLED", count=2)
    assert (await market.balances())["BTC"] < 1e-4
    async with at_work(market, tmp_path):
        assert (await market.ledger()).switch.state == "RESUMED"


@pytest.mark.parametrize(
    ("gone", "is_lasting", "halts"),
    [("end", False, False), ("end", True, False), ("all", False, False), ("all", True, True)],
)
async def test_a_server_that_lost_its_last_second_does_not_halt_and_one_without_a_past_does(
    market: Floor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gone: str,
    is_lasting: bool,
    halts: bool,
) -> None:
    """FAULTS V1, V4, V8: of a server that starts again, only what it had taken long before is to be
    there; a stale replica has a part of it."""
    monkeypatch.setattr(trader.service, "_LASTING_S", 0.0 if is_lasting else 60.0)
    monkeypatch.setattr(trader.service, "_CONTROL_S", 0.05)
    async with at_work(market, tmp_path):
        await market.candle(BUY)
        await market.until_state("FILLED")
        path = tmp_path / "journal" / "paper.journal"
        await until(lambda: not is_lasting or b'"lasting":true' in path.read_bytes())
    lines = await market.lines()
    if gone == "all":
        await market.desk.raw.delete("order:{BTCUSDT}")
    else:
        newest = await market.desk.raw.xrevrange("order:{BTCUSDT}", count=1)
        await market.desk.raw.xdel("order:{BTCUSDT}", newest[0][0])
    monkeypatch.setattr(Bus, "server_id", "another life")
    async with at_work(market, tmp_path):
        assert (await market.lines())[: len(lines)] == lines
        assert ((await market.ledger()).switch.state == "HALTED") == halts


@pytest.mark.parametrize("bus_has", ["nothing", "candles"])
async def test_with_both_journals_lost_no_signal_is_traded_twice_however_late_its_order_is(
    market: Floor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bus_has: str
) -> None:
    """FAULTS V4: the account's first order is under way while everything that told of it goes."""
    monkeypatch.setattr(trader.service, "_SETTLE_MS", 4_000)
    monkeypatch.setattr(trader.service, "_YOUNG_SWEEP_S", 0.5)
    # No answer, and carried out three seconds later; the books show it a second after that.
    await market.ex.break_with(
        "timeout", ms=200, engine_ms=3_000, path="order", method="POST", count=1
    )
    async with at_work(market, tmp_path):
        first = await market.candle(BUY)
        await market.until_state("UNKNOWN")
        await market.ex.break_with("lag", ms=1_000)
    kept = [
        (key, entry_id, fields)
        for key in ("kline:{BTCUSDT}:1m", "signal:{BTCUSDT}:1m")
        for entry_id, fields in await market.desk.raw.xrange(key)
    ]
    await market.desk.raw.flushall()
    shutil.rmtree(tmp_path / "journal")
    market.desk.bus._known.clear()

    async def again(what: str) -> None:
        for key, entry_id, fields in kept:
            if key.startswith(what):
                await market.desk.raw.xadd(key, fields, id=entry_id)

    if bus_has == "candles":
        await again("kline")
    async with at_work(market, tmp_path) as session:
        if bus_has == "nothing":
            await again("kline")
        await again("signal")
        assert "older than this start" in await reason(market, first.id)
        await until_told(market, "halted")
        (only,) = await orders(market)
        assert only["status"] == "FILLED"
        await market.until_state("FILLED")
        assert (await market.ledger()).position == (await market.balances())["BTC"]
        second = await market.candle(SELL)
        assert "halted" in await reason(market, second.id)
        await session.bus.put(CONTROL_KEY, "RESUME 1 somebody")
        await market.until_state("RESUMED")
        await market.candle(SELL)
        await market.until_state("FILLED", count=2)
    assert len(await orders(market)) == 2
    assert (await market.balances())["BTC"] < 1e-4


async def test_another_account_halts_once_and_after_the_operator_s_word_its_fills_count(
    market: Floor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trader.service, "_LOOK_BACK_MS", 0)
    async with at_work(market, tmp_path):
        await market.candle(BUY)
        await market.until_state("FILLED")
    async with exchange() as ex:
        await ex.advance(9)
        other = Floor(ex, market.desk)
        await other.candle(HOLD)
        async with at_work(other, tmp_path) as session:
            assert "does not know order" in (await other.ledger()).switch.reason
            await session.bus.put(CONTROL_KEY, f"RESUME 1 itb {NEW_ACCOUNT}")
            await other.until_state("RESUMED")
        async with at_work(other, tmp_path):
            assert (await other.ledger()).switch.state == "RESUMED"
            await other.candle(BUY)
            await other.until_state("FILLED", count=2)
        assert (await other.ledger()).position == (await other.balances())["BTC"] > 0


async def test_a_damaged_line_halts_until_an_operator_resumes_and_not_again_at_every_start(
    market: Floor, tmp_path: Path
) -> None:
    async with at_work(market, tmp_path):
        await market.candle(BUY)
        await market.until_state("FILLED")
        await market.candle(SELL)
        await market.until_state("FILLED", count=2)
    path = tmp_path / "journal" / "paper.journal"
    body = bytearray(path.read_bytes())
    body[body.index(b"INTENT")] ^= 1
    path.write_bytes(bytes(body))
    for _ in range(2):
        async with at_work(market, tmp_path) as session:
            switch = (await market.ledger()).switch
            assert (switch.state, "1 lines of" in switch.reason) == ("HALTED", True)
    async with at_work(market, tmp_path) as session:
        await session.bus.put(CONTROL_KEY, "RESUME 1 somebody")
        await market.until_state("RESUMED")
    async with at_work(market, tmp_path):
        assert (await market.ledger()).switch.state == "RESUMED"
    assert sum(line.state == "HALTED" for line in await market.lines()) == 1
    body[body.rindex(b"FILLED")] ^= 1
    whole = path.read_bytes()
    path.write_bytes(bytes(body) + whole[len(body) :])
    async with at_work(market, tmp_path):
        assert "2 lines of" in (await market.ledger()).switch.reason


async def test_orders_that_came_after_an_old_backup_of_bus_and_journal_are_taken_in_and_halt(
    market: Floor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long ago they ended: the journal's newest line says where to begin."""
    monkeypatch.setattr(trader.service, "_LOOK_BACK_MS", 100)
    async with at_work(market, tmp_path):
        await market.candle(BUY)
        await market.until_state("FILLED")
    shutil.copytree(tmp_path / "journal", tmp_path / "backup")
    bus = await market.desk.raw.dump("order:{BTCUSDT}")
    async with at_work(market, tmp_path):
        await market.candle(SELL)
        await market.until_state("FILLED", count=2)
        sold = await market.ledger()
        await market.candle(HOLD)
    await asyncio.sleep(0.2)  # more than _LOOK_BACK_MS
    shutil.rmtree(tmp_path / "journal")
    shutil.copytree(tmp_path / "backup", tmp_path / "journal")
    await market.desk.raw.restore("order:{BTCUSDT}", 0, bus, replace=True)
    assert (await market.ledger()).position > sold.position
    for _ in range(2):
        async with at_work(market, tmp_path):
            ledger = await market.ledger()
            assert (ledger.position, ledger.flow) == (sold.position, sold.flow)
            assert ledger.switch.state == "HALTED"
            assert "the journal does not know order" in ledger.switch.reason


async def test_what_the_bus_has_is_noted_once_in_a_while_and_of_the_newest_line_in_the_end(
    market: Floor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal" / "paper.journal"

    def noted() -> list[int]:
        records = [json.loads(text[9:]) for text in path.read_text().splitlines()]
        return [r["on_bus"][SYMBOL] for r in records if "on_bus" in r and not r["lasting"]]

    monkeypatch.setattr(trader.service, "_CONTROL_S", 0.05)
    monkeypatch.setattr(trader.service, "_NOTE_S", 3_600.0)
    async with at_work(market, tmp_path):
        for score, filled in ((BUY, 1), (SELL, 2), (BUY, 3)):
            await market.candle(score)
            await market.until_state("FILLED", count=filled)
    assert len(noted()) == 1
    monkeypatch.setattr(trader.service, "_NOTE_S", 0.2)
    async with at_work(market, tmp_path):
        assert noted()[1:] == [(await market.lines())[-1].number]
        await market.candle(SELL)
        await market.until_state("FILLED", count=4)
        newest = (await market.lines())[-1].number
        await until(lambda: noted()[-1] == newest)


def test_however_long_a_journal_is_its_reader_shows_that_it_lives() -> None:
    lines, signs, read = [line("a", "INTENT")] * 10_001, list[int](), list[Order]()
    for one in trader.service._showing_life(lines, lambda: signs.append(len(read))):
        read.append(one)
    assert len(read) == len(lines)
    assert signs == [0, 5_000, 10_000]


async def test_all_orders_of_a_lost_journal_are_taken_in_and_only_an_operator_goes_on(
    market: Floor, tmp_path: Path
) -> None:
    rules = {"stop_loss": 0.05, "take_profit": 0.05}
    async with at_work(market, tmp_path, rules=rules):
        for score, filled in ((BUY, 1), (SELL, 2), (BUY, 3)):
            await market.candle(score)
            await market.until_state("FILLED", count=filled)
        await market.until(
            lambda lines: sum(o.state == "ACKED" and o.leg == "stop" for o in lines) == 2, "a stop"
        )
    before, placed = await market.ledger(), await orders(market)
    await market.desk.raw.flushall()
    shutil.rmtree(tmp_path / "journal")
    market.desk.bus._known.clear()
    await market.candle(HOLD)
    async with at_work(market, tmp_path, rules=rules) as session:
        after = await market.ledger()
        assert (after.position, after.flow, after.cost) == (
            before.position, before.flow, before.cost,
        )  # fmt: skip
        assert after.switch.state == "HALTED"
        # Of a cancelled pair both go by the name of the one cancel.
        assert sorted(after.by_order_id) == sorted(before.by_order_id)
        assert sorted(after.open) == sorted(before.open)
        told = [n.text for n in await market.desk.notices("trader") if n.code == "rebuilt"]
        assert len(told) == 1
        assert f"the account has {len(placed)} of ours" in told[0]
        dropped = await market.candle(SELL)
        assert "halted" in await reason(market, dropped.id)
        assert len(await orders(market)) == len(placed)
        await session.bus.put(CONTROL_KEY, "RESUME 1 somebody")
        await market.until_state("RESUMED")
        await market.candle(SELL)
        await market.until(_sold, "the exit")
    assert (await market.ledger()).position == (await market.balances())["BTC"]


async def test_the_first_start_ever_trades_by_itself_also_where_no_candle_was_there_before(
    valkey: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trader.service, "_SETTLE_MS", 2_000)
    async with floor(valkey.url) as market, at_work(market, tmp_path):
        await market.candle(BUY)
        await market.until_state("FILLED")


async def test_where_the_exchange_tells_no_candles_its_clock_tells_the_time_of_a_live_market(
    market: Floor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def none(self: BinanceAccount, symbol: str, interval: str) -> int | None:
        raise Unavailable("404")

    monkeypatch.setattr(BinanceAccount, "candle_ms", none)
    monkeypatch.setattr(trader.service, "_SETTLE_MS", 600_000)  # a wait for it would be in vain
    open_ms = floor_ms(time.time_ns() // 1_000_000, MINUTE) - MINUTE
    kline = Kline(
        symbol=SYMBOL, interval="1m", open_time_ms=open_ms, close_time_ms=open_ms + MINUTE - 1,
        open=50_000.0, high=50_000.0, low=50_000.0, close=50_000.0, volume=1.0,
    )  # fmt: skip
    await market.desk.bus.write(
        Write(source=Source(KLINE, SYMBOL, "1m"), event=kline, open_time_ms=open_ms)
    )
    async with at_work(market, tmp_path) as session:
        assert session.health.ready


async def test_coins_that_are_gone_stop_entries_and_foreign_orders_are_left_alone(
    market: Floor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trader.service, "_SWEEP_S", 0.2)
    monkeypatch.setattr("trader.desk.QUIET_MS", -10_000)
    async with at_work(market, tmp_path) as session:
        client = Client(market.ex)
        await client.ask(
            "POST", "order", symbol=SYMBOL, side="BUY", type="LIMIT", timeInForce="GTC",
            quantity="0.001", price="45000", newClientOrderId="mine",
        )  # fmt: skip
        await market.candle(BUY)
        await market.until_state("FILLED")
        await until(lambda: guards(session) == set())
        await market.ex.control("funds", asset="BTC", amount="-0.1")
        await until_told(market, "diverged")
        await until(lambda: guards(session) == {"diverged"})
        await market.candle(SELL)
        lines = await market.until_state("FILLED", count=2)
        sold = [line for line in lines if line.side == "SELL" and line.state == "INTENT"]
        assert 0 < float(sold[0].order_quantity) < 0.06
        entry = await market.candle(BUY)
        assert "somebody else sold or moved it" in await reason(market, entry.id)
    mine = [o for o in await orders(market) if o["clientOrderId"] == "mine"]
    assert [o["status"] for o in mine] == ["NEW"]
    assert "foreign_order" in await codes(market)


async def test_a_clock_that_is_off_and_a_symbol_that_does_not_trade_stop_entries(
    market: Floor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trader.service, "_RULES_S", 0.1)
    await market.ex.control("clock", skew_ms=700)
    async with at_work(market, tmp_path) as session:
        one = await market.candle(BUY)
        assert "our clock is +" in await reason(market, one.id)
        await until(lambda: guards(session) == {"clock"})
    await market.ex.control("clock", skew_ms=0)
    async with at_work(market, tmp_path) as session:
        await market.ex.control("symbol", symbol=SYMBOL, status="HALT")
        await until_told(market, "symbol_status")
        await until(lambda: guards(session) == {"market_closed"})
        one = await market.candle(BUY)
        assert "BTCUSDT is HALT, not TRADING" in await reason(market, one.id)
    assert await orders(market) == []


async def test_a_clock_that_jumps_between_two_looks_is_measured_before_anything_else_is_sent(
    market: Floor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS T5, T19: the exchange's own refusal tells it first."""
    asked: list[tuple[str, str]] = []
    real = BinanceAccount._send

    async def send(self: Any, session: Any, what: str, method: str, url: Any, body: Any) -> Any:
        asked.append((method, url.path))
        return await real(self, session, what, method, url, body)

    async with at_work(market, tmp_path):
        await market.candle(BUY)
        await market.until_state("FILLED")
        monkeypatch.setattr(BinanceAccount, "_send", send)
        await market.ex.control("clock", skew_ms=10_000)
        late = await market.candle(SELL)
        assert "-1021" in await reason(market, late.id, "REJECTED")
        lines = await market.until_state("FILLED", count=2)  # the same exit, under another name
        dropped = await market.candle(BUY)
        assert "our clock is +" in await reason(market, dropped.id)
    path = [what for what in asked if what[1] in ("/api/v3/order", "/api/v3/time")]
    posts = [n for n, (method, _) in enumerate(path) if method == "POST"]
    assert len(posts) == 2
    assert ("GET", "/api/v3/time") in path[posts[0] : posts[1]]
    exits = [line for line in lines if line.leg == "exit" and line.state == "INTENT"]
    first, second = (line.sent_ms for line in exits)
    assert second - first > 9_000  # the first was the intent's, with the clock of before
    assert [(line.signal_id, line.attempt) for line in exits] == [(late.id, 1), (late.id, 2)]


async def test_a_market_that_closed_between_two_looks_shuts_its_guard_at_the_first_refusal(
    market: Floor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAULTS H4: no retries, nothing unknown, and it trades again by itself."""
    monkeypatch.setattr(trader.service, "_CLOSED_S", 0.1)
    async with at_work(market, tmp_path):
        await market.ex.control("symbol", symbol=SYMBOL, status="BREAK")
        one = await market.candle(BUY)
        assert "Market is closed" in await reason(market, one.id, "REJECTED")
        await until_told(market, "symbol_status")
        for _ in range(3):
            one = await market.candle(BUY)
            assert "BTCUSDT is BREAK, not TRADING" in await reason(market, one.id)
        await market.ex.control("symbol", symbol=SYMBOL, status="TRADING")
        await until_told(market, "symbol_status", 2)
        await market.candle(BUY)
        lines = await market.until_state("FILLED")
    states = [line.state for line in lines]
    assert (states.count("INTENT"), states.count("UNKNOWN"), states.count("HALTED")) == (2, 0, 0)


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ({"can_withdraw": True}, "this key may withdraw"),
        ({"can_trade": False}, "may not trade"),
        ({"is_active": False}, "does not accept this key"),
    ],
)
async def test_a_key_that_may_do_more_or_less_than_trade_is_refused_in_one_line(
    market: Floor, tmp_path: Path, terms: dict[str, bool], words: str
) -> None:
    await market.ex.control("key", key="demo", **terms)
    with pytest.raises(BaseExceptionGroup) as caught:
        async with at_work(market, tmp_path):
            pass
    failure = _first(caught.value)
    assert isinstance(failure, Failure)
    assert words in str(failure)


async def test_a_key_that_may_transfer_is_refused_in_one_line(
    market: Floor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The simulator has no such right to give; its answer is changed as Binance would say it."""
    real = BinanceAccount.permissions

    async def permissions(self: BinanceAccount) -> Permissions:
        return replace(await real(self), can_transfer=True)

    monkeypatch.setattr(BinanceAccount, "permissions", permissions)
    with pytest.raises(BaseExceptionGroup) as caught:
        async with at_work(market, tmp_path):
            pass
    failure = _first(caught.value)
    assert isinstance(failure, Failure)
    assert "this key may transfer" in str(failure)


@pytest.mark.parametrize("mode", ["paper", "live"])
async def test_a_key_of_another_exchange_is_refused_in_one_line(
    market: Floor, tmp_path: Path, mode: str
) -> None:
    """FAULTS T20: a testnet's key on the live exchange, and the reverse: neither is known there."""
    settings = trading(tmp_path, market.ex, mode=mode).model_copy(
        update={"api_key": SecretStr("of-elsewhere"), "api_secret": SecretStr("of-elsewhere-too")}
    )
    with pytest.raises(BaseExceptionGroup) as caught:
        async with trades(market.desk.url, settings):
            pass
    failure = _first(caught.value)
    assert isinstance(failure, Failure)
    assert "does not accept this key" in str(failure)
    assert "is it a key of another exchange (testnet and live have their own)" in str(failure)
    assert "of-elsewhere" not in str(failure)


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


async def test_until_the_exchange_answers_it_is_not_ready_and_sends_nothing(
    market: Floor, tmp_path: Path
) -> None:
    await market.ex.break_with("status", status=503, path="allOrders")
    settings = trading(tmp_path, market.ex)
    with Trader() as one:
        async with (
            asyncio.TaskGroup() as tasks,
            Bus.session(market.desk.url, service="trader") as bus,
        ):
            health = Health()
            session = Session(settings=settings, bus=bus, health=health, alive=lambda: None)
            task = tasks.create_task(one.serve(session))
            await until(lambda: "not reconciled" in health.reason)
            assert guards(session) == {"not_reconciled"}
            signal = await market.candle(BUY)
            async with market.ex.http.delete("/control/faults"):
                pass
            assert "older than this start" in await reason(market, signal.id)
            await until(lambda: health.ready)
            await until(lambda: guards(session) == set())
            task.cancel()
    assert await orders(market) == []


async def test_an_entry_is_protected_at_the_exchange_and_a_restart_finds_it_so(
    market: Floor, tmp_path: Path
) -> None:
    rules = {"stop_loss": 0.05, "take_profit": 0.05, "trailing_stop": 0.04}
    async with at_work(market, tmp_path, rules=rules):
        await market.candle(BUY)
        await market.until_state("ACKED", count=2)
    resting = [o for o in await orders(market) if o["status"] == "NEW"]
    assert sorted(o["type"] for o in resting) == ["LIMIT_MAKER", "STOP_LOSS"]
    # Somebody cancels it while we are away: a position found without protection is protected.
    client = Client(market.ex)
    await client.ask(
        "DELETE", "order", symbol=SYMBOL, origClientOrderId=resting[0]["clientOrderId"]
    )
    async with at_work(market, tmp_path, rules=rules):
        await market.until(
            lambda lines: len({o.client_id for o in lines if o.leg == "stop"}) == 2, "a new stop"
        )
        await market.until_state("ACKED", count=4)
        await market.candle(SELL)
        await market.until(_sold, "the exit")
    left = [o["status"] for o in await orders(market) if o["status"] == "NEW"]
    assert left == []
    ledger = await market.ledger()
    assert ledger.position == (await market.balances())["BTC"]


def _sold(lines: list[Order]) -> bool:
    return any(line.leg == "exit" and line.state == "FILLED" for line in lines)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"account_rest_url": "https://api.binance.com"}, "trader.mode is paper"),
        ({"binance_rest_url": "https://api1.binance.com"}, "trader.mode is paper"),
        ({"trader": {"mode": "live"}}, "api_key and api_secret are missing"),
        (
            {"trader": {"mode": "live"}, "account_rest_url": "https://testnet.binance.vision"},
            "is a testnet",
        ),
        (
            {
                "trader": {"mode": "live"},
                "account_rest_url": "http://api.binance.com",
                "api_key": "k",
                "api_secret": "s",
            },
            "https only",
        ),
        ({"trader": {"rules": {"direction": "both"}}}, "short positions need futures"),
    ],
)
def test_mode_address_and_key_must_belong_together(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(Usage, match=words):
        trader.service.check(load(None, **keys))


def test_addresses_follow_each_other() -> None:
    paper = place_of(load())
    assert (paper.rest_url, paper.ws_url, paper.key) == (
        "http://127.0.0.1:8290", "ws://127.0.0.1:8290/ws-api/v3", "demo",
    )  # fmt: skip
    live = place_of(load(trader={"mode": "live"}, api_key="k", api_secret="s"))
    assert (live.rest_url, live.ws_url) == (
        "https://api.binance.com", "wss://ws-api.binance.com:443/ws-api/v3",
    )  # fmt: skip
    testnet = place_of(
        load(account_rest_url="https://testnet.binance.vision", api_key="k", api_secret="s")
    )
    assert testnet.ws_url == "wss://ws-api.testnet.binance.vision/ws-api/v3"
    given = place_of(
        load(binance_rest_url="http://h:1", binance_ws_api_url="ws://h:2/ws-api/v3", api_key="k")
    )
    assert (given.rest_url, given.ws_url) == ("http://h:1", "ws://h:2/ws-api/v3")
    assert "key" not in repr(given)


async def test_symbols_that_are_reconciled_are_not_asked_about_again_because_of_others(
    valkey: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a hundred symbols one look at the account takes more than a minute's request weight."""
    asked: list[str] = []
    real = BinanceAccount.open_orders

    async def open_orders(self: BinanceAccount, symbol: str) -> list[OrderReport]:
        asked.append(symbol)
        if symbol == "ETHUSDT" and asked.count(symbol) < 4:
            raise Unavailable("no request weight left")
        return await real(self, symbol)

    monkeypatch.setattr(BinanceAccount, "open_orders", open_orders)
    async with floor(valkey.url, "--symbol", SYMBOL, "ETHUSDT") as market:
        await market.candle(HOLD)
        many = trading(tmp_path, market.ex).model_copy(update={"symbols": (SYMBOL, "ETHUSDT")})
        async with trades(market.desk.url, many):
            assert asked[:5] == [SYMBOL, *["ETHUSDT"] * 4]
