"""Filters, against the exchange's own statement of them in exact fractions."""

import json
import math
import os
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from shared.errors import BadInput
from shared.exchange import NewOco, NewOrder, OrderType, Side
from shared.filters import Problem, Standing, SymbolRules, plain, problem_of, problem_of_oco
from shared.filters import rules_from as rules_of

D = Decimal
DATA = Path(os.environ.get("ITB_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
PRICED = ("LIMIT", "LIMIT_MAKER", "STOP_LOSS_LIMIT", "TAKE_PROFIT_LIMIT")
STOPPED = ("STOP_LOSS", "STOP_LOSS_LIMIT", "TAKE_PROFIT", "TAKE_PROFIT_LIMIT")

# BTCUSDT as of 2026 (binance.md section 5), with the two filters that it lacks.
BTCUSDT: dict[str, Any] = {
    "symbol": "BTCUSDT",
    "status": "TRADING",
    "baseAsset": "BTC",
    "baseAssetPrecision": 8,
    "quoteAsset": "USDT",
    "quotePrecision": 8,
    "quoteAssetPrecision": 8,
    "orderTypes": [kind.value for kind in OrderType],
    "ocoAllowed": True,
    "quoteOrderQtyMarketAllowed": True,
    "isSpotTradingAllowed": True,
    "filters": [
        {"filterType": "PRICE_FILTER", "minPrice": "0.01000000", "maxPrice": "1000000.00000000",
         "tickSize": "0.01000000"},
        {"filterType": "LOT_SIZE", "minQty": "0.00001000", "maxQty": "9000.00000000",
         "stepSize": "0.00001000"},
        {"filterType": "ICEBERG_PARTS", "limit": 100},
        {"filterType": "MARKET_LOT_SIZE", "minQty": "0.00000000", "maxQty": "141.70000000",
         "stepSize": "0.00000000"},
        {"filterType": "TRAILING_DELTA", "minTrailingAboveDelta": 10, "maxTrailingAboveDelta": 2000,
         "minTrailingBelowDelta": 10, "maxTrailingBelowDelta": 2000},
        {"filterType": "PERCENT_PRICE_BY_SIDE", "bidMultiplierUp": "2", "bidMultiplierDown": "0.5",
         "askMultiplierUp": "2", "askMultiplierDown": "0.5", "avgPriceMins": 5},
        {"filterType": "NOTIONAL", "minNotional": "5.00000000", "applyMinToMarket": True,
         "maxNotional": "9000000.00000000", "applyMaxToMarket": False, "avgPriceMins": 5},
        {"filterType": "MAX_NUM_ORDERS", "maxNumOrders": 200},
        {"filterType": "MAX_NUM_ORDER_LISTS", "maxNumOrderLists": 20},
        {"filterType": "MAX_NUM_ALGO_ORDERS", "maxNumAlgoOrders": 5},
        {"filterType": "MAX_POSITION", "maxPosition": "10.00000000"},
        {"filterType": "T_PLUS_SELL", "endTime": 1774000000000},
    ],
}  # fmt: skip
REFERENCE = D("60000.00")


def rules(**changed: Any) -> SymbolRules:
    return rules_of({"symbols": [BTCUSDT | changed]}, "BTCUSDT")


def without(*kinds: str, **filters: Any) -> dict[str, Any]:
    """The symbol with other filters."""
    kept = [part for part in BTCUSDT["filters"] if part["filterType"] not in kinds]
    return BTCUSDT | {"filters": kept + [{"filterType": k, **v} for k, v in filters.items()]}


def order(kind: str, quantity: Any = "0.01", **more: Any) -> NewOrder:
    if kind in PRICED:
        more.setdefault("price", D("59000"))
    if kind in STOPPED:
        more.setdefault("stop_price", D("59500"))
    if kind in PRICED and kind != "LIMIT_MAKER":
        more.setdefault("time_in_force", "GTC")
    return NewOrder(
        symbol="BTCUSDT",
        client_id="k1-test",
        side=Side(more.pop("side", "BUY")),
        type=OrderType(kind),
        quantity=None if quantity is None else D(quantity),
        **more,
    )


def refused(one: NewOrder, by: SymbolRules | None = None, **more: Any) -> str | None:
    problem = problem_of(one, by or rules(), reference=REFERENCE, **more)
    return None if problem is None else problem.filter


# -- single rules, by hand ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "more", "expected"),
    [
        ("LIMIT", {}, None),
        ("LIMIT", {"price": D("59000.001")}, "PRICE_FILTER"),
        ("LIMIT", {"price": D("0")}, "PRICE_FILTER"),
        ("LIMIT", {"price": D("1000000.01")}, "PRICE_FILTER"),
        ("STOP_LOSS_LIMIT", {"stop_price": D("59500.005")}, "PRICE_FILTER"),
        ("LIMIT", {"quantity": "0.000011"}, "LOT_SIZE"),
        ("LIMIT", {"quantity": "0"}, "LOT_SIZE"),
        ("LIMIT", {"quantity": "9000.00001"}, "LOT_SIZE"),
        ("LIMIT", {"quantity": "0.00001"}, "NOTIONAL"),
        ("LIMIT", {"quantity": "0.00008"}, "NOTIONAL"),  # 4.72
        ("LIMIT", {"quantity": "0.00009"}, None),  # 5.31
        ("MARKET", {"quantity": "0.00008"}, "NOTIONAL"),  # 4.80 at the reference
        ("MARKET", {"quantity": "0.00009"}, None),
        ("MARKET", {"quantity": "141.70001", "side": "SELL"}, "MARKET_LOT_SIZE"),
        ("STOP_LOSS", {"quantity": "141.70001", "side": "SELL"}, "MARKET_LOT_SIZE"),
        ("LIMIT", {"quantity": "141.70001", "side": "SELL"}, None),
        ("LIMIT", {"quantity": "153", "side": "SELL"}, "NOTIONAL"),  # 9,027,000
        ("LIMIT", {"price": D("29999.99")}, "PERCENT_PRICE"),
        ("LIMIT", {"price": D("30000")}, None),
        ("LIMIT", {"price": D("120000")}, None),
        ("LIMIT", {"price": D("120000.01"), "side": "SELL"}, "PERCENT_PRICE"),
        ("LIMIT", {"quantity": "0.000000011"}, "precision"),
        ("LIMIT", {"price": D("59000.000000001")}, "precision"),
        ("LIMIT", {"price": D("NaN")}, "precision"),
        ("LIMIT", {"quantity": "-1"}, "precision"),
        ("MARKET", {"quantity": None, "quote_quantity": D("100")}, None),
        ("MARKET", {"quantity": None, "quote_quantity": D("5")}, "NOTIONAL"),  # buys 4.80 worth
        ("MARKET", {"quantity": None, "quote_quantity": D("0.1")}, "LOT_SIZE"),
        ("LIMIT", {"quantity": "10"}, None),
        ("LIMIT", {"quantity": "10.00001"}, "MAX_POSITION"),
    ],
)
def test_each_filter_refuses_at_its_bound(
    kind: str, more: dict[str, Any], expected: str | None
) -> None:
    assert refused(order(kind, **more)) == expected


def test_trailing_zeros_and_exponents_are_the_same_number() -> None:
    assert refused(order("LIMIT", "0.0100000000000000", price=D("5.9E+4"))) is None
    assert plain(D("5.90E+4")) == "59000"
    assert plain(D("0.0100")) == "0.01"
    assert plain(D("0E-8")) == "0"
    assert plain(D("100")) == "100"


def test_open_orders_and_the_position_count() -> None:
    assert refused(order("LIMIT"), standing=Standing(open_orders=199)) is None
    assert refused(order("LIMIT"), standing=Standing(open_orders=200)) == "MAX_NUM_ORDERS"
    stop = order("STOP_LOSS", side="SELL")
    assert refused(stop, standing=Standing(open_orders=5, open_algo_orders=4)) is None
    assert (
        refused(stop, standing=Standing(open_orders=5, open_algo_orders=5)) == "MAX_NUM_ALGO_ORDERS"
    )
    assert refused(order("LIMIT"), standing=Standing(open_algo_orders=5)) is None
    held = Standing(base_total=D("9"), open_buys=D("0.99"))
    assert refused(order("LIMIT"), standing=held) is None
    assert refused(order("LIMIT", "0.01001"), standing=held) == "MAX_POSITION"
    assert refused(order("LIMIT", "0.01001", side="SELL"), standing=held) is None


def test_a_symbol_that_does_not_trade_or_lacks_the_type_takes_nothing() -> None:
    assert refused(order("LIMIT"), rules(status="CANCEL_ONLY")) == "status"
    assert refused(order("LIMIT"), rules(isSpotTradingAllowed=False)) == "symbol"
    assert refused(order("STOP_LOSS"), rules(orderTypes=["LIMIT"])) == "symbol"
    no_quote = rules(quoteOrderQtyMarketAllowed=False)
    assert refused(order("MARKET", None, quote_quantity=D("100")), no_quote) == "symbol"


def test_a_part_that_is_zero_is_switched_off_and_unknown_filters_are_ignored() -> None:
    off = {"minPrice": "0", "maxPrice": "0.0", "tickSize": "0.00000000"}
    body = without("PRICE_FILTER", "PERCENT_PRICE_BY_SIDE", "NOTIONAL", PRICE_FILTER=off)
    free = rules_of({"symbols": [body]}, "BTCUSDT")
    assert refused(order("LIMIT", price=D("0.00000001")), free) is None
    assert free.round_price(D("1.23456789")) == D("1.23456789")


def test_the_older_notional_filter_and_both_percent_filters_hold() -> None:
    body = without(
        "NOTIONAL",
        MIN_NOTIONAL={"minNotional": "10", "applyToMarket": False, "avgPriceMins": 5},
        PERCENT_PRICE={"multiplierUp": "1.5", "multiplierDown": "0.2", "avgPriceMins": 5},
    )
    older = rules_of({"symbols": [body]}, "BTCUSDT")
    assert refused(order("LIMIT", "0.00016"), older) == "NOTIONAL"
    assert refused(order("MARKET", "0.00016"), older) is None
    assert refused(order("LIMIT", price=D("90000.01")), older) == "PERCENT_PRICE"
    assert refused(order("LIMIT", price=D("29999")), older) == "PERCENT_PRICE"


def test_fields_that_do_not_belong_together_are_a_bug_of_the_caller() -> None:
    for wrong in (
        order("MARKET", price=D("1")),
        order("LIMIT", price=None),
        order("STOP_LOSS", stop_price=None),
        order("MARKET", quote_quantity=D("5")),
        order("MARKET", None),
        order("LIMIT", None, quote_quantity=D("5")),
        order("MARKET", time_in_force="GTC"),
    ):
        with pytest.raises(ValueError, match=r"with|one of|takes no"):
            problem_of(wrong, rules(), reference=REFERENCE)
    with pytest.raises(ValueError, match="reference price"):
        problem_of(order("LIMIT"), rules(), reference=D("0"))


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, None),
        ({"target_price": D("58000")}, "prices"),
        ({"side": Side.BUY}, "prices"),
        ({"side": Side.BUY, "target_price": D("58000"), "stop_price": D("62000")}, None),
        ({"stop_price": D("58000.001")}, "PRICE_FILTER"),
        ({"stop_limit_price": D("29000")}, "PERCENT_PRICE"),
        ({"quantity": D("0.00001")}, "NOTIONAL"),
    ],
)
def test_both_legs_of_an_oco_are_checked(more: dict[str, Any], expected: str | None) -> None:
    given_fields: dict[str, Any] = {
        "side": Side.SELL,
        "quantity": D("0.01"),
        "target_price": D("62000"),
        "stop_price": D("58000"),
    }
    oco = NewOco(
        symbol="BTCUSDT",
        list_client_id="l",
        target_client_id="t",
        stop_client_id="s",
        **(given_fields | more),
    )
    problem = problem_of_oco(oco, rules(), reference=REFERENCE)
    assert (problem and problem.filter) == expected
    if expected is None:
        assert problem_of_oco(oco, rules(ocoAllowed=False), reference=REFERENCE) is not None
        counted = Standing(open_orders=199)
        assert problem_of_oco(oco, rules(), reference=REFERENCE, standing=counted) == Problem(
            "MAX_NUM_ORDERS", "200 are open"
        )


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        {},
        {"symbols": [{"symbol": "ETHUSDT"}]},
        {"symbols": [{"symbol": "BTCUSDT"}]},
        {"symbols": [BTCUSDT | {"filters": [{"filterType": "PRICE_FILTER"}]}]},
        {
            "symbols": [
                without("LOT_SIZE", LOT_SIZE={"minQty": "x", "maxQty": "1", "stepSize": "1"})
            ]
        },
        {
            "symbols": [
                without("LOT_SIZE", LOT_SIZE={"minQty": 0.1, "maxQty": "1", "stepSize": "1"})
            ]
        },
        {"symbols": [BTCUSDT | {"filters": None}]},
    ],
)
def test_an_exchange_info_of_another_shape_is_refused(wrong: Any) -> None:
    with pytest.raises(BadInput, match="exchangeInfo"):
        rules_of(wrong, "BTCUSDT")


# -- the rule for all inputs ----------------------------------------------------------------------


def fixture_symbols() -> list[dict[str, Any]]:
    found = [BTCUSDT]
    for path in sorted((DATA / "fixtures").glob("exchangeInfo-spot-*.json")):
        found += json.loads(path.read_text())["symbols"]
    return found


SYMBOLS = fixture_symbols()


def exact(value: Any) -> Fraction:
    return Fraction(str(value))


def broken_filters(
    symbol: dict[str, Any], kind: str, side: str, quantity: str, price: str | None,
    stop: str | None, average: Fraction, open_orders: int, open_algos: int, base: Fraction,
) -> set[str]:  # fmt: skip
    """What the exchange would say, after its documentation, in fractions."""
    filters = {part["filterType"]: part for part in symbol["filters"]}
    found = set()

    def off_grid(value: Fraction, least: str, most: str, step: str) -> bool:
        low, high, unit = exact(least), exact(most), exact(step)
        return (
            value <= 0
            or (low != 0 and value < low)
            or (high != 0 and value > high)
            or (unit != 0 and (value / unit).denominator != 1)
        )

    part = filters.get("PRICE_FILTER")
    for text in (price, stop):
        if text and part and off_grid(
            exact(text), part["minPrice"], part["maxPrice"], part["tickSize"]
        ):  # fmt: skip
            found.add("PRICE_FILTER")
    amount = exact(quantity)
    part = filters["LOT_SIZE"]
    if off_grid(amount, part["minQty"], part["maxQty"], part["stepSize"]):
        found.add("LOT_SIZE")
    part = filters.get("MARKET_LOT_SIZE")
    sizes = part and (part["minQty"], part["maxQty"], part["stepSize"])
    if kind == "MARKET" and sizes and off_grid(amount, *sizes):
        found.add("MARKET_LOT_SIZE")
    notional = amount * (exact(price) if price else average)
    low, high = Fraction(0), None
    part = filters.get("MIN_NOTIONAL")
    if part and (kind != "MARKET" or part["applyToMarket"]):
        low = exact(part["minNotional"])
    part = filters.get("NOTIONAL")
    if part and (kind != "MARKET" or part["applyMinToMarket"]):
        low = exact(part["minNotional"])
    if part and (kind != "MARKET" or part["applyMaxToMarket"]):
        high = exact(part["maxNotional"])
    if notional < low or (high is not None and notional > high):
        found.add("NOTIONAL")
    if price:
        part = filters.get("PERCENT_PRICE")
        if part:
            low, high = exact(part["multiplierDown"]), exact(part["multiplierUp"])
            if not average * low <= exact(price) <= average * high:
                found.add("PERCENT_PRICE")
        part = filters.get("PERCENT_PRICE_BY_SIDE")
        if part:
            name = "bid" if side == "BUY" else "ask"
            low, high = exact(part[f"{name}MultiplierDown"]), exact(part[f"{name}MultiplierUp"])
            if not average * low <= exact(price) <= average * high:
                found.add("PERCENT_PRICE")
    part = filters.get("MAX_NUM_ORDERS")
    if part and open_orders >= part["maxNumOrders"]:
        found.add("MAX_NUM_ORDERS")
    part = filters.get("MAX_NUM_ALGO_ORDERS")
    if part and kind in STOPPED and open_algos >= part["maxNumAlgoOrders"]:
        found.add("MAX_NUM_ALGO_ORDERS")
    part = filters.get("MAX_POSITION")
    if part and side == "BUY" and base + amount > exact(part["maxPosition"]):
        found.add("MAX_POSITION")
    return found


def text(value: Decimal | None) -> str | None:
    return None if value is None else str(value)


amounts = st.builds(
    lambda digits, scale: D(digits).scaleb(-scale),
    st.integers(1, 10**12),
    st.integers(0, 12),
)


@settings(max_examples=500, deadline=None)
@given(data=st.data())
def test_an_order_without_a_problem_breaks_no_filter_and_one_with_a_problem_does(
    data: st.DataObject,
) -> None:
    symbol = data.draw(st.sampled_from(SYMBOLS))
    by = rules_of({"symbols": [symbol]}, symbol["symbol"])
    kind = data.draw(st.sampled_from([k for k in OrderType if k in symbol["orderTypes"]]))
    side = data.draw(st.sampled_from(Side))
    # Most draws lie on the grid and near the market, so that every filter decides some of them.
    average = by.tick.step * data.draw(st.integers(1, 10**7))
    price = stop = None
    near = ["0.9", "0.999", "1", "1.001", "1.1", "1.9", "0.6"]
    factors = st.sampled_from([D(factor) for factor in [*near, "0.19", "0.5", "2", "5.1"]])
    if kind in PRICED:
        price = average * data.draw(factors)
        price = by.round_price(price) if data.draw(st.integers(0, 4)) else price
    if kind in STOPPED:
        stop = by.ceil_price(average * data.draw(factors))
    balance = by.min_notional * data.draw(st.one_of(st.decimals("0.5", "3", places=3), amounts))
    quantity = balance / (price or average)
    if data.draw(st.integers(0, 7)):
        quantity = by.floor_quantity(quantity, at_market=kind not in PRICED)
        assert quantity <= balance / (price or average)
    else:
        quantity = round(quantity, 8)
    standing = Standing(
        open_orders=data.draw(st.sampled_from([0, 1, 2, 3, 198, 199, 200])),
        open_algo_orders=data.draw(st.integers(0, 5)),
        base_total=data.draw(st.one_of(st.just(D(0)), amounts)),
    )
    assume(max(quantity, price or 0, stop or 0) < 10**20)
    one = NewOrder(
        symbol=symbol["symbol"],
        client_id="a",
        side=side,
        type=kind,
        quantity=quantity,
        price=price,
        stop_price=stop,
        time_in_force="GTC" if kind in PRICED and kind != "LIMIT_MAKER" else "",
    )
    problem = problem_of(one, by, reference=average, standing=standing)
    broken = broken_filters(
        symbol, kind, side, str(quantity), text(price), text(stop),
        exact(average), standing.open_orders, standing.open_algo_orders,
        exact(standing.base_total),
    )  # fmt: skip
    event("none" if problem is None else problem.filter)
    if problem is None:
        assert not broken
    elif problem.filter in ("MARKET_LOT_SIZE", "NOTIONAL") and kind in STOPPED:
        pass  # deliberately stricter for stops that fire at market
    elif problem.filter != "precision":
        assert problem.filter in broken


@settings(max_examples=200, deadline=None)
@given(value=amounts, data=st.data())
def test_rounding_lands_on_the_grid_next_to_the_value(value: Decimal, data: st.DataObject) -> None:
    symbol = data.draw(st.sampled_from(SYMBOLS))
    by = rules_of({"symbols": [symbol]}, symbol["symbol"])
    tick = exact(by.tick.step)
    steps = exact(value) / tick
    assert exact(by.floor_price(value)) == math.floor(steps) * tick
    assert exact(by.ceil_price(value)) == math.ceil(steps) * tick
    assert abs(exact(by.round_price(value)) - exact(value)) * 2 <= tick
    step, most = exact(by.lot.step), exact(by.lot.most)
    expected = math.floor(min(exact(value), most) / step) * step
    assert exact(by.floor_quantity(value)) == expected


def test_a_quantity_just_below_a_step_is_not_rounded_up_to_it() -> None:
    almost = D("0.01999999999999999999999999999999")  # more digits than a quotient keeps
    assert rules().floor_quantity(almost) == D("0.01999")


def test_the_recorded_exchange_infos_are_read() -> None:
    if len(SYMBOLS) == 1:
        pytest.skip(f"no recorded exchangeInfo in {DATA}/fixtures")
    assert len(SYMBOLS) >= 20
    for symbol in SYMBOLS:
        by = rules_of({"symbols": [symbol]}, symbol["symbol"])
        assert by.tick.step > 0 and by.lot.step > 0 and by.min_notional > 0
        assert by.sell_band.up > 1 and 0 < by.buy_band.down < 1
