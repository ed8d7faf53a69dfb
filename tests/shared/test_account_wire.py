"""The account client and the filters at an exchange, over the wire."""

import asyncio
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import event, given, settings
from hypothesis import strategies as st

from shared.account import BinanceAccount
from shared.errors import Unknown
from shared.exchange import (
    BalancesChanged,
    Denied,
    KeyDenied,
    NewOco,
    NewOrder,
    OrderReport,
    OrderType,
    OutsideWindow,
    Side,
    Status,
    StreamGap,
    StreamLost,
)
from shared.filters import Standing, SymbolRules, problem_of, problem_of_oco
from simulator.exchange.orders import Key
from simulator.limits import Budget
from tests.shared.test_filters import SYMBOLS
from tests.simulator.exchange import Exchange, exchange

D = Decimal
SYMBOL = "BTCUSDT"
KEY = "demo"
PRICED = (
    OrderType.LIMIT,
    OrderType.LIMIT_MAKER,
    OrderType.STOP_LOSS_LIMIT,
    OrderType.TAKE_PROFIT_LIMIT,
)


def account_at(ex: Exchange, key: str = KEY, secret: str = KEY) -> BinanceAccount:
    url = f"http://127.0.0.1:{ex.port}"
    return BinanceAccount(url, f"{ex.ws_url}/ws-api/v3", key=key, secret=secret)


def market(client_id: str, side: Side, quantity: str, symbol: str = SYMBOL) -> NewOrder:
    return NewOrder(
        symbol=symbol,
        client_id=client_id,
        side=side,
        type=OrderType.MARKET,
        quantity=D(quantity),
    )


def limit(client_id: str, side: Side, quantity: str, price: Decimal) -> NewOrder:
    return NewOrder(
        symbol=SYMBOL,
        client_id=client_id,
        side=side,
        type=OrderType.LIMIT,
        quantity=D(quantity),
        price=price,
        time_in_force="GTC",
    )


@pytest.mark.parametrize("symbol", [SYMBOL, "DOGEUSDT"])
async def test_reply_stream_and_history_tell_the_same_fills_and_balances_follow_them(
    symbol: str,
) -> None:
    """DOGE here: tick and lot have more decimals together than the eight of what is paid."""
    base, quote = symbol.removesuffix("USDT"), "USDT"
    async with exchange("--symbol", symbol) as ex, account_at(ex) as account:
        assert abs(await account.clock_skew_ms()) < 30_000
        before = await account.balances()
        events = account.user_events()
        assert await anext(events) == (StreamGap(since_ms=0),)
        lot = {
            "filterType": "LOT_SIZE",
            "minQty": "0.00001",
            "maxQty": "1000",
            "stepSize": "0.00001",
        }
        await ex.control("symbol", symbol=symbol, filters=[lot])
        quantity = "0.15" if symbol == SYMBOL else "333.33333"
        placed = await account.place(
            market("a", Side.BUY, quantity, symbol), timestamp_ms=account.now_ms()
        )
        assert placed.status is Status.FILLED
        streamed: list[OrderReport] = []
        told: dict[str, Decimal] = {}
        while not told:
            (found,) = await asyncio.wait_for(anext(events), 30)
            if isinstance(found, OrderReport):
                streamed.append(found)
            else:
                assert isinstance(found, BalancesChanged)
                told = {balance.asset: balance.total for balance in found.balances}
        fills = await account.fills(symbol)
        assert list(placed.fills) == fills
        assert [fill for report in streamed for fill in report.fills] == fills
        assert await account.fills(symbol, order_id=placed.order_id) == fills
        last = fills[-1].trade_id
        assert await account.fills(symbol, from_trade_id=last) == fills[-1:]
        assert await account.fills(symbol, from_trade_id=last + 1) == []
        after = await account.balances()
        exact = all(f.price * f.quantity == f.quote_quantity for f in fills)
        assert exact is (symbol == SYMBOL)
        spent = sum((fill.quote_quantity for fill in fills), D(0))
        got = sum((fill.quantity - fill.fee for fill in fills), D(0))
        assert placed.executed_quote == spent
        assert after[quote].total == before[quote].total - spent == told[quote]
        assert after[base].total == got == told[base]
        commission = await account.commission(symbol)
        assert fills[0].fee == fills[0].quantity * commission.taker


async def test_an_order_rests_is_found_is_cancelled_and_keeps_its_id() -> None:
    async with exchange() as ex, account_at(ex) as account:
        rules = await account.rules(SYMBOL)
        low = rules.floor_price(await account.reference_price(SYMBOL) * D("0.8"))
        assert await account.order(SYMBOL, "mine") is None
        assert await account.cancel(SYMBOL, "mine") is None
        placed = await account.place(limit("mine", Side.BUY, "0.01", low), timestamp_ms=now())
        assert placed.status is Status.NEW
        found = await account.order(SYMBOL, "mine")
        assert found is not None and found.order_id == placed.order_id
        assert [report.client_id for report in await account.open_orders(SYMBOL)] == ["mine"]
        cancelled = await account.cancel(SYMBOL, "mine")
        assert cancelled is not None
        assert (cancelled.client_id, cancelled.status) == ("mine", Status.CANCELED)
        assert await account.cancel(SYMBOL, "mine") is None
        found = await account.order(SYMBOL, "mine")
        assert found is not None and (found.client_id, found.status) == ("mine", Status.CANCELED)
        assert await account.open_orders(SYMBOL) == []
        listed = await account.orders_since(SYMBOL, now() - 3 * 86_400_000)
        assert [report.order_id for report in listed] == [placed.order_id]


async def test_refusals_of_the_exchange_are_told_apart() -> None:
    async with exchange() as ex, account_at(ex) as account:
        order = market("a", Side.BUY, "0.001")
        for stale in (now() - 6000, now() + 60_000):
            with pytest.raises(OutsideWindow):
                await account.place(order, timestamp_ms=stale)
        with pytest.raises(Denied, match="insufficient balance"):
            await account.place(market("a", Side.BUY, "100"), timestamp_ms=now())
        with pytest.raises(Denied, match="LOT_SIZE"):
            await account.place(market("a", Side.BUY, "0.000001"), timestamp_ms=now())
        with pytest.raises(Denied, match="-1121"):
            await account.rules("NOSUCH")
        for key, secret in (("nobody", "demo"), ("demo", "wrong")):
            async with account_at(ex, key, secret) as stranger:
                with pytest.raises(KeyDenied):
                    await stranger.place(order, timestamp_ms=now())
                events = stranger.user_events()
                (lost,) = await asyncio.wait_for(anext(events), 30)
                assert isinstance(lost, StreamLost)
        assert await account.orders_since(SYMBOL, 1) == []


async def test_an_ed25519_key_signs_for_rest_and_for_the_user_stream() -> None:
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    async with exchange() as ex:
        desk = ex.simulator.desk
        desk.set_key(desk.state.accounts[1], "edkey", Key("", public.decode()))
        async with account_at(ex, "edkey", pem) as account:
            events = account.user_events()
            assert await anext(events) == (StreamGap(since_ms=0),)
            for number in range(5):  # signatures with and without +, / and =
                order = market(f"a{number}", Side.BUY, "0.001")
                assert (await account.place(order, timestamp_ms=now())).status is Status.FILLED
            assert len(await account.orders_since(SYMBOL, now() - 60_000)) == 5


async def test_a_cut_user_stream_comes_back_and_says_so() -> None:
    async with exchange() as ex, account_at(ex) as account:
        events = account.user_events()
        await anext(events)
        await ex.control("cut", abort=True)
        (lost,) = await asyncio.wait_for(anext(events), 30)
        assert isinstance(lost, StreamLost)
        (gap,) = await asyncio.wait_for(anext(events), 30)
        assert isinstance(gap, StreamGap) and gap.since_ms > 0


@pytest.mark.parametrize(
    ("fault", "executed"),
    [
        ({"kind": "lost"}, True),
        ({"kind": "timeout", "ms": 100}, False),
        ({"kind": "timeout", "ms": 100, "executed": True}, True),
        ({"kind": "status", "status": 503}, False),
        ({"kind": "status", "status": 503, "executed": True}, True),
        ({"kind": "status", "status": 504, "code": -1007, "executed": True}, True),
        ({"kind": "status", "status": 400, "code": -1006, "executed": True}, True),
        ({"kind": "status", "status": 400, "code": -1008}, False),
        ({"kind": "html", "status": 502, "executed": True}, True),
        ({"kind": "garbage", "on": "rest"}, True),
    ],
)
async def test_an_unknown_order_is_found_where_it_was_executed_and_nowhere_else(
    fault: dict[str, Any], executed: bool
) -> None:
    async with exchange() as ex, account_at(ex) as account:
        more = {name: value for name, value in fault.items() if name != "kind"}
        await ex.break_with(fault["kind"], path="order", method="POST", count=1, **more)
        with pytest.raises(Unknown):
            await account.place(market("a", Side.BUY, "0.001"), timestamp_ms=now())
        found = await account.order(SYMBOL, "a")
        assert (found is not None) is executed
        assert len(await account.orders_since(SYMBOL, now() - 60_000)) == executed
        posts = [
            asked
            for asked in (await ex.get("/control/requests"))["newest"]
            if asked["method"] == "POST" and asked["path"] == "/api/v3/order"
        ]
        assert len(posts) == 1


async def test_a_list_is_placed_and_ends_with_the_cancel_of_a_leg() -> None:
    async with exchange() as ex, account_at(ex) as account:
        rules, last = await account.rules(SYMBOL), await account.reference_price(SYMBOL)
        await account.place(market("a", Side.BUY, "0.05"), timestamp_ms=now())
        for side, up, down in (
            (Side.SELL, D("1.2"), D("0.8")),
            (Side.BUY, D("0.8"), D("1.2")),
        ):
            oco = NewOco(
                symbol=SYMBOL,
                list_client_id=f"l{side}",
                side=side,
                quantity=D("0.01"),
                target_client_id=f"t{side}",
                target_price=rules.round_price(last * up),
                stop_client_id=f"s{side}",
                stop_price=rules.round_price(last * down),
                stop_limit_price=None if side is Side.SELL else rules.round_price(last * down),
            )
            assert problem_of_oco(oco, rules, reference=last) is None
            target, stop = await account.place_oco(oco, timestamp_ms=now())
            assert (target.client_id, target.status) == (f"t{side}", Status.NEW)
            assert (stop.client_id, stop.stop_price) == (f"s{side}", oco.stop_price)
            assert target.list_id == stop.list_id is not None
            opened = {report.client_id for report in await account.open_orders(SYMBOL)}
            assert opened == {f"t{side}", f"s{side}"}
            ended = await account.cancel(SYMBOL, f"s{side}")
            assert ended is not None and ended.status is Status.CANCELED
            assert await account.open_orders(SYMBOL) == []
            target_now = await account.order(SYMBOL, f"t{side}")
            assert target_now is not None and target_now.status is Status.CANCELED


def now() -> int:
    return time.time_ns() // 1_000_000


# -- filters ------------------------------------------------------------------------------------


class Desk:
    """A running exchange with the recorded symbols, and the loop that it runs in."""

    def __init__(self, runner: asyncio.Runner, ex: Exchange) -> None:
        self.runner, self.ex = runner, ex
        self.accounts = 0
        self.references: dict[str, Decimal] = {}

    def open_account(self, base: str, quote: str, held: tuple[int, int]) -> BinanceAccount:
        """held: base and quote, in units of 1e-8."""
        self.accounts += 1
        name = f"key{self.accounts}"
        balances = {base: held[0], quote: held[1]}
        self.ex.simulator.desk.open_account({name: Key(f"s{self.accounts}")}, balances)
        account = account_at(self.ex, name, f"s{self.accounts}")
        account.weights.share = account.weights.limit = 10**9
        return account


@pytest.fixture(scope="module")
def desk() -> Iterator[Desk]:
    names = sorted({symbol["symbol"] for symbol in SYMBOLS})
    with asyncio.Runner() as runner:
        opened = exchange("--symbol", *names)
        ex = runner.run(opened.__aenter__())
        ex.simulator.desk.terms.orders_10s = 10**9
        ex.simulator.rest.budgets["spot"] = Budget(10**9)
        yield Desk(runner, ex)
        runner.run(opened.__aexit__(None, None, None))


async def outcome(account: BinanceAccount, order: NewOrder) -> Denied | OrderReport:
    async with account:
        try:
            return await account.place(order, timestamp_ms=now())
        except Denied as error:
            return error


async def rules_and_reference(account: BinanceAccount, symbol: str) -> tuple[SymbolRules, Decimal]:
    async with account:
        return await account.rules(symbol), await account.reference_price(symbol)


def drawn_order(
    data: st.DataObject, by: SymbolRules, reference: Decimal, spend: Decimal
) -> NewOrder:
    """An order as the trader makes one: rounded, of what the balance allows, near the market."""
    kinds = [k for k in OrderType if k in by.order_types]
    kind = data.draw(st.sampled_from([*kinds, OrderType.MARKET, OrderType.LIMIT]))
    side = data.draw(st.sampled_from(Side))
    factor = data.draw(st.decimals("0.15", "6", places=3) | st.decimals("0.95", "1.05", places=4))
    price = stop = quote = None
    if kind in PRICED:
        price = by.round_price(reference * factor)
    if kind in (OrderType.STOP_LOSS_LIMIT, OrderType.TAKE_PROFIT_LIMIT, OrderType.STOP_LOSS,
                OrderType.TAKE_PROFIT):  # fmt: skip
        stop = by.round_price(reference * data.draw(st.decimals("0.7", "1.3", places=3)))
    quantity: Decimal | None = by.floor_quantity(
        spend / (price or reference), at_market=price is None
    )
    if kind is OrderType.MARKET and data.draw(st.booleans()):
        quantity, quote = None, Grid8.floor(spend)
    if not data.draw(st.integers(0, 9)):  # now and then what no rounding made
        quantity = None if quantity is None else Grid8.floor(quantity * D("1.00001234"))
        price = None if price is None else Grid8.floor(price * D("1.00001234"))
    return NewOrder(
        symbol=by.symbol, client_id="a", side=side, type=kind, quantity=quantity,
        quote_quantity=quote, price=price, stop_price=stop,
        time_in_force="GTC" if kind in PRICED and kind is not OrderType.LIMIT_MAKER else "",
    )  # fmt: skip


class Grid8:
    """Eight decimals, which every amount may have."""

    @staticmethod
    def floor(value: Decimal) -> Decimal:
        return value // D("0.00000001") * D("0.00000001")


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_what_the_filters_let_through_the_exchange_does_not_refuse_for_a_filter(
    desk: Desk, data: st.DataObject
) -> None:
    """And what they hold back it would refuse: -1013 exactly where we say so."""
    symbol: dict[str, Any] = data.draw(st.sampled_from(SYMBOLS))
    name = symbol["symbol"]
    desk.ex.simulator.desk.set_symbol(symbol)
    rich = st.just((10**18, 10**18))
    held = data.draw(rich | st.tuples(st.integers(0, 10**16), st.integers(0, 10**16)))
    account = desk.open_account(symbol["baseAsset"], symbol["quoteAsset"], held)
    by, reference = desk.runner.run(rules_and_reference(account, name))
    least, most = by.min_notional, D(held[1]).scaleb(-8)
    spend = data.draw(st.sampled_from([least, 20 * least, most, D(10) ** 7]))
    spend *= data.draw(st.decimals("0.5", "2", places=3))
    order = drawn_order(data, by, reference, spend)
    standing = Standing(base_total=D(held[0]).scaleb(-8))
    problem = problem_of(order, by, reference=reference, standing=standing)
    told = desk.runner.run(outcome(account, order))
    code = told.code if isinstance(told, Denied) else 0
    event(f"{'none' if problem is None else problem.filter} {code}")
    if problem is None:
        assert code in (0, -2010), told
    elif problem.filter == "precision":
        assert code in (-1100, -1111, -1013), (problem, told)
    elif order.quote_quantity is None and order.stop_price is None:
        assert code == -1013, (problem, told)
