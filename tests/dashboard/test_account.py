"""What is held and was made, from the lines that the trader writes; sums are made by hand."""

from decimal import Decimal
from typing import Any

import pytest

from dashboard.account import Account
from dashboard.board import Board
from shared.bus import Entry, Source
from shared.config import Settings
from shared.events import Meta, Order
from shared.exchange import Fill, Side
from shared.ledger import ledger_of, packed
from shared.streams import ORDER
from tests.dashboard.recorded import MINUTE, START, Recording
from tests.dashboard.test_track import entries


def line(state: str, number: int = 0, **values: Any) -> Order:
    """About candle `number`, told when the next one opens."""
    known: dict[str, Any] = {
        "signal_id": f"BTCUSDT-1m-{START + number * MINUTE}", "symbol": "BTCUSDT",
        "interval": "1m", "open_time_ms": START + number * MINUTE, "time_ms": 1, "state": state,
        "side": "BUY", "quantity": "", "price": "", "reason": "", "score": 0.2, "release": "r",
        "mode": "paper", "market_ms": START + (number + 1) * MINUTE + 40,
    }  # fmt: skip
    return Order(**(known | values))


def fill(trade_id: int, side: Side, quantity: str, price: str, fee: str, asset: str) -> Any:
    amount = Decimal(quantity)
    return {
        str(trade_id): packed(
            Fill(
                symbol="BTCUSDT",
                trade_id=trade_id,
                order_id=trade_id,
                side=side,
                price=Decimal(price),
                quantity=amount,
                quote_quantity=amount * Decimal(price),
                fee=Decimal(fee),
                fee_asset=asset,
                time_ms=1,
                is_maker=False,
            )
        )
    }


BOUGHT = [
    line("INTENT", client_id="a", leg="entry", type="MARKET", order_quantity="0.1",
         price="30000", worth="10000"),
    line("FILLED", client_id="a", leg="entry",
         fills=fill(1, Side.BUY, "0.1", "30010", "0.0001", "BTC")),
    line("INTENT", client_id="s", leg="stop", side="SELL", type="STOP_LOSS_LIMIT", list_id="l",
         order_quantity="0.0999", order_price="29000", stop_price="29100"),
    line("ACKED", client_id="s", leg="stop", side="SELL", list_id="l"),
    line("INTENT", client_id="t", leg="target", side="SELL", type="LIMIT_MAKER", list_id="l",
         order_quantity="0.0999", order_price="31000"),
    line("ACKED", client_id="t", leg="target", side="SELL", list_id="l"),
]  # fmt: skip
SOLD = [
    line("CANCELED", 5, client_id="s", leg="stop", side="SELL", list_id="l"),
    line("FILLED", 5, client_id="t", leg="target", side="SELL", list_id="l", profit="92.8071",
         fills=fill(2, Side.SELL, "0.0999", "31000", "3.0969", "USDT")),
]  # fmt: skip


def account(lines: list[Order], mode: str = "paper") -> Account:
    found = Account("BTCUSDT", "BTC", "USDT", mode)
    for one in lines:
        found.add(one)
    return found


def test_what_is_held_is_shown_with_its_protection() -> None:
    shown = account(BOUGHT).shown()
    assert shown["quantity"] == pytest.approx(0.0999)
    assert (shown["entry"], shown["stop"], shown["target"]) == (30010, 29100, 31000)
    assert (shown["worth"], shown["realised"], shown["trips"]) == (10_000, 0, 0)
    assert [(one["leg"], one["state"]) for one in shown["open"]] == [
        ("stop", "ACKED"), ("target", "ACKED"),
    ]  # fmt: skip
    (trade,) = shown["trades"]
    assert (trade["side"], trade["price"], trade["quantity"]) == ("BUY", 30010, 0.1)
    assert trade["profit"] is None


def test_results_are_realised_and_unrealised_profit_after_fees_at_each_close() -> None:
    found = account([*BOUGHT, *SOLD])
    bought_ms, sold_ms = START + MINUTE + 40, START + 6 * MINUTE + 40
    assert found.result(30_500.0, bought_ms - 1) is None
    # 0.0999 are left of what cost 3001
    assert found.result(30_500.0, bought_ms) == pytest.approx(0.0999 * 30_500 - 3001)
    assert found.result(30_500.0, sold_ms - 1) == pytest.approx(0.0999 * 30_500 - 3001)
    profit = 0.0999 * 31_000 - 3.0969 - 3001
    assert found.result(99.0, sold_ms) == pytest.approx(profit)
    assert found.result(float("nan"), sold_ms) is None
    shown = found.shown()
    assert shown["realised"] == pytest.approx(profit)
    assert (shown["quantity"], shown["entry"], shown["stop"], shown["open"]) == (0, None, None, [])
    assert (shown["trips"], shown["won"]) == (1, 1)
    assert shown["trades"][-1]["profit"] == pytest.approx(92.8071)
    assert {asset: Decimal(fee) for asset, fee in shown["fees"].items()} == {
        "BTC": Decimal("0.0001"), "USDT": Decimal("3.0969"),
    }  # fmt: skip


def test_holding_begins_at_the_first_fill_of_all_however_much_of_the_journal_is_left() -> None:
    later = [
        line("FILLED", 20, client_id="c", leg="entry",
             fills=fill(3, Side.BUY, "0.1", "40000", "0", "BTC")),
        line("FILLED", 30, client_id="d", leg="exit", side="SELL", profit="100",
             fills=fill(4, Side.SELL, "0.1", "41000", "0", "USDT")),
    ]  # fmt: skip
    sum_ = ledger_of([*BOUGHT, *SOLD], "BTC", "USDT", "paper").carried()
    carried = line("CARRIED", 10, side="", carried=sum_)
    sold_ms, last_ms = START + 6 * MINUTE + 40, START + 31 * MINUTE + 40
    for lines, exit_ms, trades in (
        ([*BOUGHT, *SOLD], sold_ms, 2),
        ([carried], sold_ms, 0),
        ([carried, *later], last_ms, 2),
    ):
        shown = account(lines).shown()
        assert (shown["first_price"], shown["exit"]) == (30010, exit_ms)
        assert shown["since"] == START + MINUTE + 40
        assert len(shown["trades"]) == trades
    assert (account([]).shown()["first_price"], account([]).shown()["exit"]) == (None, None)


def test_lines_told_again_and_those_of_another_mode_change_nothing() -> None:
    once = account([*BOUGHT, *SOLD])
    again = account([*BOUGHT, *SOLD, *BOUGHT, *SOLD])
    assert again.shown()["realised"] == once.shown()["realised"]
    assert again.shown()["quantity"] == once.shown()["quantity"]
    other = account([line("FILLED", client_id="x", mode="live",
                          fills=fill(9, Side.BUY, "5", "1", "0", "BTC"))])  # fmt: skip
    assert other.shown()["quantity"] == 0
    assert other.result(1.0, START + 10 * MINUTE) is None


def test_a_trader_that_only_observes_has_no_account() -> None:
    found = account([line("OBSERVED", mode="observe")], mode="observe")
    assert found.shown() == {}
    assert not found.is_kept


def test_a_line_that_cannot_be_read_is_told_and_no_number_is_shown_as_if_it_were_right() -> None:
    found = account([*BOUGHT, line("FILLED", client_id="a", fills={"2": b"{}"})])
    assert "journal cannot be read" in found.shown()["problem"]
    assert found.result(30_000.0, START + 10 * MINUTE) is None


def test_what_an_operator_switched_off_is_shown() -> None:
    shown = account([line("HALTED", reason="HALT 1 itb")]).shown()
    assert (shown["switch"], shown["why"]) == ("HALTED", "HALT 1 itb")


def test_what_is_too_little_to_be_sold_is_no_position() -> None:
    rest = fill(2, Side.SELL, "0.0998", "31000", "0", "USDT")
    found = account(
        [*BOUGHT, line("FILLED", 5, client_id="e", leg="exit", side="SELL", fills=rest)]
    )
    assert found.shown()["is_dust"] is False
    found.add(line("DUST", 5, side="SELL", quantity="0.0001"))
    shown = found.shown()
    assert (shown["is_dust"], shown["quantity"]) == (True, pytest.approx(0.0001))


def test_a_fill_changes_the_rows_that_it_lies_in_and_those_after() -> None:
    settings = Settings(symbols=["BTCUSDT"], trader={"mode": "paper"})
    board, recording = Board(settings), Recording(9)
    for number in range(9):
        for entry in entries(recording, number):
            board.apply(entry)
    board.changes()

    def book(lines: list[Order]) -> dict[str, Any]:
        for number, one in enumerate(lines):
            nothing = Meta(received_us=0, published_us=0)
            source = Source(ORDER, "BTCUSDT")
            board.apply(Entry(source=source, id=f"5-{number}", event=one, meta=nothing))
        return {message["kind"]: message for _, message in board.changes()}

    told = book(BOUGHT)
    assert {"rows", "account", "orders"} <= set(told)
    # filled in candle 1, 40 ms after it opened
    assert [row[0] for row in told["rows"]["rows"]] == [START + n * MINUTE for n in range(1, 9)]
    results = [row[15] for row in told["rows"]["rows"]]
    closes = [recording.kline(n).close for n in range(1, 9)]
    assert results == pytest.approx([0.0999 * close - 3001 for close in closes], abs=1e-4)
    assert told["account"]["quantity"] == pytest.approx(0.0999)
    told = book(SOLD)
    assert [row[0] for row in told["rows"]["rows"]] == [START + n * MINUTE for n in range(6, 9)]
    assert all("fills" not in one for one in told["orders"]["orders"])
