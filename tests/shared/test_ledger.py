"""The fold of journal lines: positions and profits by hand, and what must hold for any fills."""

from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from shared import ledger
from shared.events import Order
from shared.exchange import Fill, Side
from shared.ledger import DAY_MS, Ledger, packed

D = Decimal


def fill(number: int, side: str, price: str, quantity: str, fee: str, asset: str) -> Fill:
    return Fill(
        symbol="BTCUSDT", trade_id=number, order_id=1, side=Side(side), price=D(price),
        quantity=D(quantity), quote_quantity=D(price) * D(quantity), fee=D(fee), fee_asset=asset,
        time_ms=1, is_maker=False,
    )  # fmt: skip


def line(name: str, state: str, *fills: Fill, **changes: Any) -> Order:
    values: dict[str, Any] = {
        "signal_id": name, "symbol": "BTCUSDT", "interval": "1m", "open_time_ms": 0, "time_ms": 0,
        "state": state, "side": "BUY", "quantity": "", "price": "", "reason": "", "score": None,
        "release": "", "mode": "paper", "client_id": name, "leg": "entry", "market_ms": DAY_MS,
        "order_quantity": "1", "fills": {str(f.trade_id): packed(f) for f in fills},
    }  # fmt: skip
    return Order(**(values | changes))


def fold(*lines: Order) -> Ledger:
    return ledger.ledger_of(lines, "BTC", "USDT", "paper")


BOUGHT = fill(1, "BUY", "100", "1", "0.001", "BTC")
SOLD = fill(2, "SELL", "110", "0.999", "0.10989", "USDT")


def test_a_round_trip_by_hand() -> None:
    found = fold(
        line("a", "INTENT", price="99", worth="10000"),
        line("a", "FILLED", BOUGHT),
        line("b", "INTENT", side="SELL", price="111"),
        line("b", "FILLED", SOLD, side="SELL", profit="9.78"),
    )
    assert found.position == 0
    assert found.flow == found.profit == D("-100") + D("110") * D("0.999") - D("0.10989")
    assert found.fees == {"BTC": D("0.001"), "USDT": D("0.10989")}
    assert (found.trips, found.won, found.losses) == (1, 1, 0)
    # Bought 1 above the close that decided it, sold 1 below.
    assert found.slippage == D("1") + D("0.999")
    assert found.worth == 10_000
    assert found.first_price == 100
    assert not found.open


def test_while_it_is_held_the_cost_is_what_was_paid() -> None:
    found = fold(line("a", "INTENT"), line("a", "PARTIAL", BOUGHT))
    assert (found.position, found.cost, found.profit) == (D("0.999"), 100, 0)
    assert found.entry_price == 100
    assert found.unrealised(D(101)) == D("0.999") * 101 - 100
    assert list(found.open) == ["a"]


def test_a_third_asset_pays_fees_that_are_counted_apart() -> None:
    found = fold(
        line("a", "INTENT"), line("a", "FILLED", fill(1, "BUY", "100", "1", "0.01", "BNB"))
    )
    assert (found.position, found.flow, found.fees) == (1, -100, {"BNB": D("0.01")})


def test_lines_that_come_again_or_late_change_nothing() -> None:
    lines = [
        line("a", "INTENT"), line("a", "UNKNOWN"), line("a", "FILLED", BOUGHT),
        line("a", "INTENT"), line("a", "PARTIAL", BOUGHT), line("a", "FILLED", BOUGHT),
    ]  # fmt: skip
    assert fold(*lines).position == D("0.999")
    assert fold(*lines).orders["a"].state == "FILLED"


def test_an_order_that_was_nowhere_and_is_adopted_lives() -> None:
    found = fold(
        line("a", "INTENT"), line("a", "NOT_PLACED"), line("a", "ACKED", is_adopted=True),
        line("a", "FILLED", BOUGHT),
    )  # fmt: skip
    assert found.orders["a"].state == "FILLED"
    assert found.position == D("0.999")


def test_lines_of_another_mode_are_another_account() -> None:
    assert fold(line("a", "FILLED", BOUGHT, mode="live")).position == 0


def test_losses_in_a_row_and_refusals_end_with_a_profit_an_order_or_an_operator() -> None:
    lost = [line(n, "FILLED", side="SELL", profit="-1") for n in "ab"]
    assert fold(*lost).losses == 2
    assert fold(*lost, line("c", "FILLED", side="SELL", profit="0.1")).losses == 0
    resumed = line("", "RESUMED", client_id="")
    assert fold(*lost, resumed).losses == 0
    refused = [line(n, "REJECTED") for n in "ab"]
    assert fold(*refused).refusals == 2
    pair = [line("s", "REJECTED", list_id="l", leg="stop"), line("t", "REJECTED", list_id="l")]
    assert fold(*refused, *pair).refusals == 3
    assert fold(*refused, line("c", "ACKED")).refusals == 0


def test_the_switch_is_what_was_said_last() -> None:
    halted = line("", "HALTED", client_id="", reason="limit: loss")
    assert fold(halted).switch.state == "HALTED"
    assert fold(halted, line("", "RESUMED", client_id="")).switch.state == "RESUMED"
    assert fold(halted).commands == {"limit: loss"}


def test_in_a_new_account_nothing_of_the_old_one_is_held_and_profits_stay() -> None:
    sold = line("b", "FILLED", fill(2, "SELL", "110", "0.5", "0", "USDT"), side="SELL")
    old = [line("a", "FILLED", BOUGHT), sold, line("c", "INTENT")]
    new = line("", "RESUMED", client_id="", reason=f"operator: RESUME 1 itb {ledger.NEW_ACCOUNT}")
    found = fold(*old, new)
    assert (found.position, found.cost, list(found.open)) == (0, 0, [])
    assert found.profit == fold(*old).profit > 0
    again = fold(*old, new, line("d", "FILLED", fill(3, "BUY", "10", "2", "0", "USDT")))
    assert (again.position, again.cost, again.entry_price) == (2, 20, 10)


def test_a_new_account_numbers_its_orders_and_trades_from_one_again() -> None:
    new = line("", "RESUMED", client_id="", reason=f"operator: RESUME 1 itb {ledger.NEW_ACCOUNT}")
    begun = [line("a", "FILLED", BOUGHT, order_id=1), line("c", "ACKED", order_id=2), new]
    late = line("c", "FILLED", fill(5, "BUY", "100", "7", "0", "USDT"), order_id=2)
    again = line("d", "FILLED", fill(1, "BUY", "10", "2", "0", "USDT"), order_id=2)
    sum_ = line("", "CARRIED", client_id="", carried=fold(*begun).carried())
    for found in (fold(*begun, late, again), fold(sum_, late, again)):
        assert (found.position, found.cost, found.since_ms) == (2, 20, DAY_MS)
        assert {number: o.client_id for number, o in found.by_order_id.items()} == {2: "d"}
        assert [n for n, o in found.orders.items() if not o.is_former] == ["d"]
        assert found.orders["a"].executed == 1  # what was done there can still be shown


amounts = st.decimals("0.00001", "5", places=5)
prices = st.decimals("1", "1000", places=2)


@given(st.lists(st.tuples(st.booleans(), prices, amounts, st.integers(0, 3)), max_size=30))
def test_profit_less_cost_is_what_the_fills_did_to_the_balance(
    trades: list[tuple[bool, Decimal, Decimal, int]],
) -> None:
    usdt, btc, found = D(0), D(0), Ledger(base="BTC", quote="USDT")
    found.add(line("a", "INTENT"))
    for number, (is_buy, price, wanted, day) in enumerate(trades):
        quantity = wanted if is_buy else min(wanted, btc)
        if quantity <= 0:
            continue
        fee = (quantity if is_buy else price * quantity) * D("0.001")
        one = fill(number, "BUY" if is_buy else "SELL", str(price), str(quantity), str(fee),
                   "BTC" if is_buy else "USDT")  # fmt: skip
        found.add(line("a", "PARTIAL", one, market_ms=day * DAY_MS))
        btc += quantity - fee if is_buy else -quantity
        usdt += -price * quantity if is_buy else price * quantity - fee
    assert found.position == btc
    assert found.flow == usdt
    assert found.profit - found.cost == usdt


# An order's lines in their order; of some a fill is told behind the end.
LIVES = (
    ("INTENT", "ACKED", "PARTIAL fill", "FILLED"),
    ("INTENT", "REJECTED"),
    ("INTENT", "UNKNOWN", "CANCELED", "CANCELED fill"),
    ("INTENT", "FILLED fill"),
)


@given(turns=st.lists(st.integers(0, 3), max_size=40), cut=st.integers(0, 40))
def test_a_fold_that_begins_with_what_is_carried_comes_to_the_same(
    turns: list[int], cut: int
) -> None:
    lines, begun, steps = [], [0] * 4, [0] * 4
    for number, who in enumerate(turns):
        life = LIVES[(who + begun[who]) % len(LIVES)]
        state, *has_fill = life[steps[who]].split()
        name, side = f"{who}-{begun[who]}", "BUY" if who % 2 else "SELL"
        one = fill(number, side, str(90 + number), "1.5", "0.001", "BTC" if who % 2 else "USDT")
        lines.append(
            line(
                name, state, *([one] if has_fill else []), side=side, worth=str(number),
                order_id=1 + 4 * begun[who] + who, sent_ms=number, price=str(80 + number),
                profit="1.5" if who == 2 and state == "FILLED" else "",
                market_ms=number * DAY_MS // 3,
            )
        )  # fmt: skip
        steps[who] += 1
        if steps[who] == len(life):
            begun[who], steps[who] = begun[who] + 1, 0
    lines.insert(3, line("", "HALTED", client_id="", reason="limit: x"))
    sum_ = line("", "CARRIED", client_id="", carried=fold(*lines[:cut]).carried())
    whole, rest = fold(*lines), fold(sum_, *lines[cut:])
    assert rest.carried() == whole.carried()
    assert {n: o.state for n, o in rest.open.items()} == {n: o.state for n, o in whole.open.items()}
    assert fold(*lines[:cut], sum_, *lines[cut:]).carried() == whole.carried()
