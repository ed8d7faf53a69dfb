"""The filters of real symbols, against the rules written once more in Decimal."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.exchange.amounts import units
from simulator.exchange.orders import Order, Side, Status, Stp, Ticket, Type
from simulator.exchange.symbols import Refused, Symbol, check_counts, count_limits
from tests.simulator.client import SYMBOL, Client
from tests.simulator.exchange import exchange

FIXTURES = ("exchangeInfo-spot-2021-10-12.subset.json", "exchangeInfo-spot-2024-09-08.subset.json")


def refusals(symbol: Symbol, side: Side, price: int, quantity: int, average: int) -> set[str]:
    """The filters that a limit order breaks."""
    found = set()
    for check in (
        lambda: symbol.check_price(price),
        lambda: symbol.check_percent(side, price, average),
        lambda: symbol.check_quantity(quantity, market=False),
        lambda: symbol.check_notional(price * quantity // 10**8, market=False),
    ):
        try:
            check()
        except Refused as refused:
            assert refused.code == -1013
            found.add(refused.message.removeprefix("Filter failure: "))
    return found


def expected(
    filters: list[dict[str, Any]], side: Side, price: Decimal, quantity: Decimal, average: Decimal
) -> set[str]:
    """The same from the documentation's sentences."""
    found = set()
    for rule in filters:
        kind = rule["filterType"]
        low, high, step = (
            Decimal(str(rule.get(name, 0)))
            for name in (
                ("minPrice", "maxPrice", "tickSize")
                if kind == "PRICE_FILTER"
                else ("minQty", "maxQty", "stepSize")
            )
        )
        if kind in ("PRICE_FILTER", "LOT_SIZE"):
            value = price if kind == "PRICE_FILTER" else quantity
            if (
                (low and value < low)
                or (high and value > high)
                or (step and (value / step) != (value / step).to_integral_value())
            ):
                found.add(kind)
        elif kind in ("NOTIONAL", "MIN_NOTIONAL"):
            most = Decimal(rule.get("maxNotional", "Infinity"))
            if not Decimal(rule["minNotional"]) <= price * quantity <= most:
                found.add(kind)
        elif kind == "PERCENT_PRICE":
            up, down = Decimal(rule["multiplierUp"]), Decimal(rule["multiplierDown"])
            if not average * down <= price <= average * up:
                found.add(kind)
        elif kind == "PERCENT_PRICE_BY_SIDE":
            word = "bid" if side is Side.BUY else "ask"
            up = Decimal(rule[f"{word}MultiplierUp"])
            down = Decimal(rule[f"{word}MultiplierDown"])
            if not average * down <= price <= average * up:
                found.add(kind)
    return found


@pytest.fixture(scope="module")
def symbols(market_data: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name in FIXTURES:
        found += json.loads((market_data / "fixtures" / name).read_text())["symbols"]
    return found


def test_a_limit_order_breaks_the_filters_that_the_documents_name(
    symbols: list[dict[str, Any]],
) -> None:
    @settings(max_examples=600, deadline=None)
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        info = data.draw(st.sampled_from(symbols))
        symbol = Symbol(info)
        rules = {rule["filterType"]: rule for rule in info["filters"]}
        tick, step = units(rules["PRICE_FILTER"]["tickSize"]), units(rules["LOT_SIZE"]["stepSize"])
        average = tick * data.draw(st.integers(1, 10**7))
        price = data.draw(
            st.one_of(
                st.integers(1, 10**15),
                st.integers(1, 10**8).map(lambda n: n * tick),
                st.integers(1, 700).map(lambda percent: average * percent // 100 // tick * tick),
            )
        )
        quantity = data.draw(
            st.one_of(
                st.integers(1, 10**14),
                st.integers(1, 10**8).map(lambda n: n * step),
                st.sampled_from([symbol.min_quantity, symbol.max_quantity]),
            )
        )
        side = data.draw(st.sampled_from(list(Side)))
        decimals = [Decimal(n) / 10**8 for n in (price, quantity, average)]
        found = refusals(symbol, side, price, quantity, average)
        assert found == expected(info["filters"], side, *decimals)

    check()


@pytest.mark.parametrize(
    ("average", "price", "is_good"),
    [("100", "500", True), ("100", "500.01", False), ("100", "20", True), ("100", "19.99", False)],
)
def test_percent_price_takes_its_very_bounds(average: str, price: str, is_good: bool) -> None:
    rule = {"filterType": "PERCENT_PRICE", "multiplierUp": "5", "multiplierDown": "0.2"}
    info = {
        "symbol": "AB", "status": "TRADING", "baseAsset": "A", "quoteAsset": "B", "orderTypes": [],
        "filters": [rule, {"filterType": "T_PLUS_SELL", "endTime": 1}],
    }  # fmt: skip
    if is_good:
        Symbol(info).check_percent(Side.BUY, units(price), units(average))
    else:
        with pytest.raises(Refused, match="PERCENT_PRICE"):
            Symbol(info).check_percent(Side.BUY, units(price), units(average))


def order(kind: Type, iceberg: int = 0) -> Order:
    ticket = Ticket(
        "AB", 1, -1, 1, "x", Side.BUY, kind, "GTC", 1, 0, 1, 0, 0, iceberg, Stp.NONE, None, None,
        0, 0,
    )  # fmt: skip
    return Order(ticket, Status.NEW)


@pytest.mark.parametrize(
    ("kind", "iceberg", "broken"),
    [
        (Type.LIMIT, 0, None),
        (Type.STOP_LOSS, 0, "MAX_NUM_ALGO_ORDERS"),
        (Type.LIMIT, 5, "MAX_NUM_ICEBERG_ORDERS"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "EXCHANGE_"])
def test_counting_filters_count_what_they_are_about(
    prefix: str, kind: Type, iceberg: int, broken: str | None
) -> None:
    limits = count_limits(
        [
            {"filterType": f"{prefix}MAX_NUM_ORDERS", "maxNumOrders": 4},
            {"filterType": f"{prefix}MAX_NUM_ALGO_ORDERS", "maxNumAlgoOrders": 1},
            {"filterType": f"{prefix}MAX_NUM_ICEBERG_ORDERS", "maxNumIcebergOrders": 1},
        ]
    )
    held = [order(Type.LIMIT), order(Type.TAKE_PROFIT_LIMIT), order(Type.LIMIT, iceberg=3)]
    if broken is None:
        check_counts(limits, prefix, held, [(kind, iceberg)])
        with pytest.raises(Refused, match=f"{prefix}MAX_NUM_ORDERS"):
            check_counts(limits, prefix, held, [(kind, iceberg)] * 2)
    else:
        with pytest.raises(Refused, match=f": {prefix}{broken}$"):
            check_counts(limits, prefix, held, [(kind, iceberg)])


async def test_a_file_of_exchange_info_is_what_is_served_and_kept(market_data: Path) -> None:
    path = market_data / "fixtures" / FIXTURES[0]
    real = {one["symbol"]: one for one in json.loads(path.read_text())["symbols"]}
    async with exchange("--exchange-info", str(path)) as ex:
        served = await ex.get("/api/v3/exchangeInfo", symbol=SYMBOL)
        assert served["symbols"] == [real[SYMBOL]]
        refused = await Client(ex).refused("BUY", "MARKET", quantity="0.000011")
        assert refused == (400, -1013, "Filter failure: LOT_SIZE")
        refused = await Client(ex).refused("BUY", "MARKET", quantity="0.0001")
        assert refused == (400, -1013, "Filter failure: MIN_NOTIONAL")  # 10 USDT in 2021
        unsupported = await Client(ex).refused(
            "BUY", "STOP_LOSS", quantity="0.001", stopPrice="90000"
        )
        assert unsupported == (
            400, -2010, "Stop loss orders are not supported for this symbol.",
        )  # fmt: skip
