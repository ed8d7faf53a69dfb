"""The gap between live and backtest, by hand."""

from dataclasses import replace
from decimal import Decimal

import numpy as np
import pytest

from deploy.gap import PARTS, Trip, gap_of, held_since, live_trips
from shared.events import Order, OrderState
from shared.exchange import Fill, Side
from shared.ledger import packed
from shared.times import iso
from trainer.backtest import Trade
from trainer.grid import Market

M = 60_000
START = 28_000_000 * M


def at(minute: int) -> int:
    return START + minute * M


def market(opens: list[float]) -> Market:
    times = START + M * np.arange(len(opens), dtype=np.int64)
    prices = [np.array(opens)] * 4
    return Market.of(times, prices, np.zeros(len(opens)))


def trade(entry: int, leave: int, bought: float, sold: float, quantity: float = 2.0) -> Trade:
    fees = 0.001 * quantity * (bought + sold)
    return Trade(
        side="long",
        entry_time=iso(at(entry)),
        entry_price=bought,
        entry_reason="score",
        exit_time=iso(at(leave)),
        exit_price=sold,
        exit_reason="score",
        quantity=quantity,
        candles=leave - entry,
        fees=fees,
        profit=quantity * (sold - bought) - fees,
        profit_share=0.0,
        equity=0.0,
    )


def trip(
    signal: int, entry: int, leave: int, bought: float, sold: float, *, quantity: float = 2.0,
    fees: float | None = None,
) -> Trip:  # fmt: skip
    paid = 0.001 * quantity * (bought + sold) if fees is None else fees
    return Trip(
        signal_ms=at(signal),
        entry_ms=at(entry) + 700,
        exit_ms=at(leave) + 900,
        bought=quantity,
        entry_price=bought,
        exit_price=sold,
        fees=paid,
        profit=quantity * (sold - bought) - paid,
    )


OPENS = [100.0, 100.0, 101.0, 102.5, 103.0, 103.0, 104.0]


def check(trips: list[Trip], trades: list[Trade], expected: dict[str, float]) -> None:
    found = gap_of(trips, trades, market(OPENS), M)
    assert found.live == pytest.approx(sum(one.profit for one in trips))
    assert sum(found.parts.values()) == pytest.approx(found.live - found.backtest)
    for name in PARTS:
        tolerance = 0.02 if name == "rest" else 1e-9
        assert found.parts[name] == pytest.approx(expected.get(name, 0.0), abs=tolerance), name


def test_equal_trades_have_no_gap() -> None:
    check([trip(1, 2, 5, 101.0, 103.0)], [trade(2, 5, 101.0, 103.0)], {})


def test_worse_fills_in_the_same_candles_are_slippage() -> None:
    check(
        [trip(1, 2, 5, 101.5, 102.8, fees=0.408)],
        [trade(2, 5, 101.0, 103.0)],
        {"slippage": 2 * -0.5 + 2 * -0.2, "fees": -(0.408 - 0.408 * 101.5 / 101.0),
         "size": (4 - 0.408) * (101.5 / 101.0 - 1)},
    )  # fmt: skip


def test_a_fill_in_a_later_candle_is_late_by_the_move_in_between() -> None:
    found = gap_of([trip(1, 3, 5, 102.6, 103.0)], [trade(2, 5, 101.0, 103.0)], market(OPENS), M)
    assert found.parts["latency"] == pytest.approx(-2 * 1.5)  # 101 to 102.5
    assert found.parts["slippage"] == pytest.approx(-2 * 0.1)


def test_another_exit_is_told_by_itself() -> None:
    found = gap_of([trip(1, 2, 6, 101.0, 104.0)], [trade(2, 5, 101.0, 103.0)], market(OPENS), M)
    assert found.parts["other_exits"] == pytest.approx(2.0)
    assert found.parts["slippage"] == 0


def test_an_exit_on_the_same_signal_in_a_later_candle_is_late() -> None:
    one = replace(trip(1, 2, 6, 101.0, 103.7), exit_signal_ms=at(4))
    found = gap_of([one], [trade(2, 5, 101.0, 103.0)], market(OPENS), M)
    assert found.parts["latency"] == pytest.approx(2 * 1.0)  # 103 to 104
    assert found.parts["slippage"] == pytest.approx(2 * -0.3)
    assert found.parts["other_exits"] == 0


def test_what_is_still_held_is_not_missed_and_what_the_backtest_still_holds_is_not_extra() -> None:
    held = gap_of([], [trade(2, 5, 101.0, 103.0)], market(OPENS), M, at(1))
    assert (held.backtest, held.parts["missed"]) == (0, 0)
    left = trip(1, 2, 4, 101.0, 103.0)
    tested = replace(trade(2, 6, 101.0, 104.0), exit_reason="open at the end")
    found = gap_of([left], [tested], market(OPENS), M)
    assert found.parts["extra"] == 0
    assert found.parts["other_exits"] == pytest.approx(left.profit)


def test_a_fill_is_dated_back_to_its_own_moment_in_a_market_that_runs_faster() -> None:
    bought = replace(fill(1, Side.BUY, "100", "1", "0", "BTC"), time_ms=10_000)
    sold = replace(fill(2, Side.SELL, "101", "1", "0", "USDT"), time_ms=11_000)
    lines = [  # written half a second later: 300 seconds of this market
        replace(order("entry", Side.BUY, [bought], 1), time_ms=10_500, market_ms=at(9)),
        replace(order("exit", Side.SELL, [sold], 12, "1"), time_ms=11_100, market_ms=at(14)),
    ]
    (found,) = live_trips(lines, speed=600)
    assert (found.entry_ms, found.exit_ms) == (at(4), at(13))
    assert found.exit_signal_ms == at(12)
    assert held_since(lines) is None
    assert held_since(lines[:1]) == at(1)


def test_dearer_fees_and_a_smaller_position_are_told_apart() -> None:
    one = trip(1, 2, 5, 101.0, 103.0, quantity=1.0, fees=0.5)
    found = gap_of([one], [trade(2, 5, 101.0, 103.0)], market(OPENS), M)
    assert found.parts["fees"] == pytest.approx(-(0.5 - 0.204))
    assert found.parts["size"] == pytest.approx(-(4 - 0.408) / 2)


def test_trades_of_one_side_only_are_missed_or_extra() -> None:
    missed, extra = trade(2, 3, 101.0, 102.0), trip(4, 5, 6, 103.0, 104.0)
    check([extra], [missed], {"missed": -missed.profit, "extra": extra.profit})
    found = gap_of([extra], [missed], market(OPENS), M)
    assert (found.live_trips, found.backtest_trips, found.both) == (1, 1, 0)


def order(leg: str, side: Side, fills: list[Fill], minute: int, profit: str = "") -> Order:
    return Order(
        signal_id=f"BTCUSDT-1m-{at(minute)}",
        symbol="BTCUSDT",
        interval="1m",
        open_time_ms=at(minute),
        time_ms=1,
        state=OrderState.FILLED,
        side=str(side),
        quantity="1",
        price="1",
        reason="",
        score=0.3,
        release="r",
        mode="paper",
        leg=leg,
        client_id=f"{leg}{minute}",
        market_ms=at(minute + 1) + 500,
        profit=profit,
        fills={str(fill.trade_id): packed(fill) for fill in fills},
    )


def fill(number: int, side: Side, price: str, quantity: str, fee: str, asset: str) -> Fill:
    return Fill(
        symbol="BTCUSDT",
        trade_id=number,
        order_id=1,
        side=side,
        price=Decimal(price),
        quantity=Decimal(quantity),
        quote_quantity=Decimal(price) * Decimal(quantity),
        fee=Decimal(fee),
        fee_asset=asset,
        time_ms=1,
        is_maker=False,
    )


def test_round_trips_are_read_from_the_journal() -> None:
    buys = [
        fill(1, Side.BUY, "100", "1", "0.001", "BTC"),
        fill(2, Side.BUY, "102", "3", "0.003", "BTC"),
    ]
    sale = fill(3, Side.SELL, "105", "3.996", "0.4", "USDT")
    lines = [
        order("entry", Side.BUY, buys[:1], 1),
        order("entry", Side.BUY, buys, 1),  # told again with one more
        order("exit", Side.SELL, [sale], 7, profit="12.5"),
        order("entry", Side.BUY, [fill(4, Side.BUY, "100", "1", "0", "BNB")], 9),  # still open
    ]
    (found,) = live_trips(lines)
    assert found.signal_ms == at(1)
    assert found.entry_ms == at(2) + 500
    assert found.exit_ms == at(8) + 500
    assert found.bought == 4
    assert found.entry_price == pytest.approx((100 + 306) / 4)
    assert found.exit_price == 105
    assert found.fees == pytest.approx(0.001 * 100 + 0.003 * 102 + 0.4)
    assert found.profit == 12.5


def test_a_round_trip_whose_entry_is_no_longer_there_leaves_nothing_to_the_next() -> None:
    lines = [
        order("exit", Side.SELL, [fill(2, Side.SELL, "90", "2", "5", "USDT")], 3, profit="-25"),
        order("entry", Side.BUY, [fill(3, Side.BUY, "100", "1", "0.1", "USDT")], 9),
        order("exit", Side.SELL, [fill(4, Side.SELL, "110", "1", "0.11", "USDT")], 12, "9.79"),
    ]
    (found,) = live_trips(lines)
    assert (found.signal_ms, found.entry_ms, found.exit_ms) == (at(9), at(10) + 500, at(13) + 500)
    assert (found.entry_price, found.exit_price, found.profit) == (100, 110, 9.79)
    assert found.fees == pytest.approx(0.21)
