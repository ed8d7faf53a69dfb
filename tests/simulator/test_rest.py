"""The REST answers, over the wire."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shared.klinefiles import read_klines
from tests.simulator.exchange import exchange

START = 1_735_689_600_000  # where a synthetic market begins that is not live
MINUTE = 60_000


async def test_the_last_row_is_the_open_candle_and_rows_are_twelve_long() -> None:
    async with exchange() as ex:
        rows = await ex.klines(limit=3)
        assert [row[0] for row in rows] == [START - 2 * MINUTE, START - MINUTE, START]
        for row in rows:
            assert len(row) == 12
            assert row[6] == row[0] + MINUTE - 1
            assert all(isinstance(row[i], str) for i in (1, 2, 3, 4, 5, 7, 9, 10, 11))
            assert isinstance(row[8], int)
            assert len(row[1].split(".")[1]) == 8
        await ex.advance()
        later = await ex.klines(startTime=START, endTime=START)
        assert len(later) == 1
        assert float(later[0][5]) > float(rows[-1][5])


async def test_paging_loops_end() -> None:
    async with exchange() as ex:
        first = await ex.klines(startTime=0, limit=1)
        assert len(first) == 1
        seen: list[int] = []
        start = 0
        while page := await ex.klines(startTime=start, limit=7):
            seen += [row[0] for row in page]
            start = page[-1][0] + 1
        assert seen == list(range(first[0][0], START + MINUTE, MINUTE))
        assert await ex.klines(startTime=START + 10**9) == []


async def test_files_are_served_number_for_number(market_data: Path) -> None:
    files = [str(market_data / f"vision/BTCUSDT-1m-2021-05-{day}.zip") for day in (18, 19)]
    (table,) = read_klines(files)
    async with exchange("--data", *files, "--history", "900") as ex:
        rows = await ex.klines(limit=900, endTime=int(table.open_time_ms[899]))
        assert len(rows) == 900
        for row, opened, values in zip(rows, table.open_time_ms, table.values, strict=False):
            assert row[0] == opened
            got = [float(row[i]) for i in (1, 2, 3, 4, 5, 7, 8, 9, 10)]
            assert got == values.tolist()


async def test_what_a_file_lacks_is_not_made_up(tmp_path: Path) -> None:
    count = 200
    price = 100 + np.cumsum(np.random.default_rng(1).normal(0, 0.05, count)).round(2)
    columns = {
        "open_time": START + MINUTE * np.arange(count),
        "open": price,
        "high": price + 1,
        "low": price - 1,
        "close": price,
        "volume": np.full(count, 12.5),
    }
    path = tmp_path / "SOLUSDT-1m.parquet"
    pq.write_table(pa.table(columns), path)
    async with exchange("--data", str(path)) as ex:
        rows = await ex.get("/api/v3/klines", symbol="SOLUSDT", interval="5m", limit=5)
        for row in rows:
            assert [row[7], row[8], row[9], row[10]] == ["NaN"] * 4
        assert float(rows[0][5]) == 62.5
        async with ex.http.ws_connect("/ws/solusdt@kline_1m") as ws:
            await ex.advance()
            kline = (await ws.receive_json(timeout=5))["k"]
        assert [kline["q"], kline["n"], kline["V"], kline["Q"]] == ["NaN"] * 4
        assert kline["L"] > kline["f"] > 0


KLINES = "/api/v3/klines"
BTC = {"symbol": "BTCUSDT"}


@pytest.mark.parametrize(
    ("path", "params", "code", "part"),
    [
        (KLINES, {"interval": "1m"}, -1102, "Mandatory parameter 'symbol' was not sent"),
        (KLINES, BTC, -1102, "Mandatory parameter 'interval'"),
        (KLINES, {"symbol": "NOPEUSDT", "interval": "1m"}, -1121, "Invalid symbol."),
        (KLINES, {"symbol": "btcusdt", "interval": "1m"}, -1100, "parameter 'symbol'"),
        (KLINES, {**BTC, "interval": "7m"}, -1120, "Invalid interval."),
        (KLINES, {**BTC, "interval": "1s"}, -1120, "Invalid interval."),
        (KLINES, {**BTC, "interval": "1m", "limit": "ten"}, -1100, "parameter 'limit'"),
        (KLINES, {**BTC, "interval": "1m", "limit": "0"}, -1130, "'limit' is not valid"),
        (KLINES, {**BTC, "interval": "1m", "startTime": "-1"}, -1100, "'startTime'"),
        (KLINES, {**BTC, "interval": "1m", "timeZone": "15"}, -1130, "'timeZone'"),
        (KLINES, {**BTC, "interval": "1m", "x": "1"}, -1104, "read '2' parameter(s) but"),
        (KLINES, {**BTC, "interval": "1m", "startTime": ""}, -1105, "'startTime' was empty."),
        ("/api/v3/depth", {}, -1102, "'symbol'"),
        ("/api/v3/ticker", {}, -1102, "'symbol'"),
        ("/api/v3/ticker", {**BTC, "windowSize": "8d"}, -1130, "'windowSize'"),
        ("/api/v3/ticker/price", {**BTC, "symbols": '["BTCUSDT"]'}, -1128, "Combination"),
        ("/api/v3/ticker/price", {"symbols": "BTCUSDT"}, -1100, "parameter 'symbols'"),
        ("/api/v3/ticker/price", {"symbols": '["BTCUSDT","BTCUSDT"]'}, -1151, "multiple times"),
        ("/api/v3/aggTrades", {**BTC, "fromId": "1", "startTime": "1"}, -1128, "Combination"),
        ("/fapi/v1/depth", {**BTC, "limit": "7"}, -4021, "not valid depth limit"),
    ],
)  # fmt: skip
async def test_bad_parameters_get_the_exchanges_code_and_text(
    path: str, params: dict[str, str], code: int, part: str
) -> None:
    async with exchange() as ex:
        status, body = await ex.fails(path, **params)
        assert status == 400
        assert body["code"] == code
        assert part in body["msg"]


async def test_a_parameter_that_is_named_twice_is_refused() -> None:
    twice = f"{KLINES}?symbol=BTCUSDT&interval=1m&interval=1m"
    async with exchange() as ex, ex.http.get(twice) as reply:
        assert (reply.status, (await reply.json())["code"]) == (400, -1101)


async def test_weight_is_counted_then_refused_then_banned() -> None:
    async with exchange() as ex:
        async with ex.http.get("/api/v3/depth?symbol=BTCUSDT&limit=500") as reply:
            assert reply.headers["X-MBX-USED-WEIGHT"] == "25"
            assert reply.headers["X-MBX-USED-WEIGHT-1M"] == "25"
            assert reply.content_type == "application/json"
        await ex.control("limits", spot_weight=25, patience=1, ban_s=77)
        status, body = await ex.fails("/api/v3/ping")
        assert status == 429
        assert body["code"] == -1003
        assert "current limit is 25 request weight" in body["msg"]
        async with ex.http.get("/api/v3/ping") as reply:
            assert reply.status == 418
            assert reply.headers["Retry-After"] == "77"
            until = int((await reply.json())["msg"].split("banned until ")[1].split(".")[0])
        assert until > START
        assert await ex.get("/fapi/v1/ping") == {}
        await ex.control("reset")
        assert await ex.get("/api/v3/ping") == {}


async def test_signed_and_retired_endpoints_say_so() -> None:
    async with exchange("--key", "mine") as ex:
        assert await ex.fails("/api/v3/account") == (
            401, {"code": -2014, "msg": "API-key format invalid."},
        )  # fmt: skip
        for key, code in (("other", -2015), ("mine", -1020)):
            async with ex.http.post("/api/v3/sor/order", headers={"X-MBX-APIKEY": key}) as reply:
                assert (await reply.json())["code"] == code
        async with ex.http.post("/api/v3/userDataStream") as reply:
            assert reply.status == 410
            assert reply.content_type == "text/html"
            assert "<html>" in await reply.text()
        async with ex.http.get("/api/v3/nothing") as reply:
            assert reply.status == 404
        assert await ex.get("/sapi/v1/system/status") == {"status": 0, "msg": "normal"}
        assert await ex.get("/sapi/v1/capital/config/getall") == []
        assert await ex.get("/dapi/v1/exchangeInfo") == {"symbols": []}


async def test_exchange_info_offers_what_is_served_and_nothing_else() -> None:
    wanted = {
        "otoAllowed": "orderList/oto", "opoAllowed": "orderList/opo", "ocoAllowed": "orderList/oco",
        "amendAllowed": "order/amend/keepPriority", "cancelReplaceAllowed": "order/cancelReplace",
    }  # fmt: skip
    async with exchange("--key", "mine") as ex:
        (symbol,) = (await ex.get("/api/v3/exchangeInfo"))["symbols"]
        for flag, path in wanted.items():
            method = "PUT" if "amend" in path else "POST"
            async with ex.http.request(
                method, f"/api/v3/{path}", headers={"X-MBX-APIKEY": "mine"}
            ) as reply:
                assert symbol[flag] is ((await reply.json())["code"] != -1020), flag
        assert symbol["pegInstructionsAllowed"] is False


async def test_exchange_info_shows_the_limits_that_hold() -> None:
    async with exchange() as ex:
        for ten, day in ((100, 200_000), (7, 50)):
            rows = (await ex.get("/api/v3/exchangeInfo"))["rateLimits"]
            shown = {r["interval"]: r["limit"] for r in rows if r["rateLimitType"] == "ORDERS"}
            assert shown == {"SECOND": ten, "DAY": day}
            await ex.control("limits", orders_10s=7, orders_day=50)


async def test_exchange_info_by_symbol_symbols_or_all() -> None:
    async with exchange("--symbol", "BTCUSDT", "ETHUSDT", "XRPUSDT") as ex:
        whole = await ex.get("/api/v3/exchangeInfo")
        assert [s["symbol"] for s in whole["symbols"]] == ["BTCUSDT", "ETHUSDT", "XRPUSDT"]
        one = await ex.get("/api/v3/exchangeInfo", symbol="XRPUSDT")
        two = await ex.get("/api/v3/exchangeInfo", symbols='["ETHUSDT","XRPUSDT"]')
        assert two["symbols"][1] == one["symbols"][0]
        btc = {f["filterType"]: f for f in whole["symbols"][0]["filters"]}
        assert btc["PRICE_FILTER"]["tickSize"] == "0.01000000"
        assert btc["LOT_SIZE"]["stepSize"] == "0.00001000"
        assert btc["NOTIONAL"]["minNotional"] == "5.00000000"
        limits = {r["rateLimitType"]: r["limit"] for r in whole["rateLimits"]}
        assert limits["REQUEST_WEIGHT"] == 6000


async def test_microseconds_on_request() -> None:
    async with exchange() as ex:
        headers = {"X-MBX-TIME-UNIT": "MICROSECOND"}
        path = "/api/v3/klines?symbol=BTCUSDT&interval=1m&limit=1"
        async with ex.http.get(path, headers=headers) as reply:
            ((opened, *_, close, _q, _n, _tb, _tq, _i),) = await reply.json()
        assert opened == START * 1000
        assert close == START * 1000 + 59_999_999


async def test_trades_tickers_and_book_tell_the_same_story() -> None:
    async with exchange() as ex:
        await ex.advance(3)
        rows = await ex.klines(startTime=START, limit=3)
        orders: list[dict[str, Any]] = []
        start = (await ex.get("/api/v3/aggTrades", **BTC, startTime=START, limit=1))[0]["a"]
        while page := await ex.get("/api/v3/aggTrades", **BTC, fromId=start, limit=13):
            orders += page
            start = page[-1]["l"] + 1
        for row in rows:
            mine = [o for o in orders if row[0] <= o["T"] <= row[6]]
            assert sum(Decimal(o["q"]) for o in mine) == Decimal(row[5])
            assert sum(Decimal(o["q"]) for o in mine if not o["m"]) == Decimal(row[9])
            assert mine[-1]["p"] == row[4]
            assert mine[-1]["l"] - mine[0]["f"] + 1 == row[8]
        trades = await ex.get("/api/v3/trades", **BTC, limit=1000)
        ids = [t["id"] for t in trades]
        assert ids == list(range(ids[0], ids[0] + 1000))
        again = await ex.get("/api/v3/historicalTrades", **BTC, fromId=ids[400], limit=600)
        assert again == trades[400:]
        last = (await ex.get("/api/v3/ticker/price", **BTC))["price"]
        assert last == trades[-1]["price"] == (await ex.klines(limit=1))[0][4]
        book = await ex.get("/api/v3/depth", **BTC, limit=20)
        best = await ex.get("/api/v3/ticker/bookTicker", **BTC)
        assert book["bids"][0] == [best["bidPrice"], best["bidQty"]]
        assert book["asks"][0] == [best["askPrice"], best["askQty"]]
        assert last in (best["bidPrice"], best["askPrice"])
        bids, asks = ([Decimal(p) for p, _ in book[side]] for side in ("bids", "asks"))
        assert bids == sorted(set(bids), reverse=True)
        assert asks == sorted(set(asks))
        assert bids[0] < asks[0]
        hour = await ex.get("/api/v3/ticker", **BTC, windowSize="1h")
        minutes = await ex.klines(startTime=START - 57 * MINUTE)
        assert Decimal(hour["volume"]) == sum(Decimal(row[5]) for row in minutes[-60:])
        assert hour["lastPrice"] == last
        assert hour["count"] == sum(row[8] for row in minutes[-60:])


async def test_futures_are_near_spot_with_funding() -> None:
    async with exchange("--history", "1000") as ex:
        spot = await ex.klines(limit=50)
        perpetual = await ex.get("/fapi/v1/klines", **BTC, interval="1m", limit=50)
        for one, two in zip(spot, perpetual, strict=True):
            assert one[0] == two[0]
            assert abs(float(two[4]) / float(one[4]) - 1) < 0.002
            low, high = float(two[3]), float(two[2])
            assert low - 0.01 <= float(two[7]) / float(two[5]) <= high + 0.01
        mark = await ex.get("/fapi/v1/premiumIndex", **BTC)
        assert mark["nextFundingTime"] == START + 8 * 3_600_000
        rates = await ex.get("/fapi/v1/fundingRate", **BTC, startTime=START - 9 * 3_600_000)
        assert [r["fundingTime"] for r in rates] == [START - 8 * 3_600_000, START]
        assert len(await ex.get("/fapi/v1/continuousKlines", pair="BTCUSDT",
                                contractType="PERPETUAL", interval="5m", limit=7)) == 7  # fmt: skip
        info = await ex.get("/fapi/v1/exchangeInfo")
        assert info["symbols"][0]["contractType"] == "PERPETUAL"


async def test_recorded_futures_and_funding_are_served(market_data: Path) -> None:
    spot = str(market_data / "vision/BTCUSDT-1h-2023-07.zip")
    perpetual = str(market_data / "fixtures/BTCUSDT-PERP-1m-2023-07_08.parquet")
    funding = str(market_data / "fixtures/BTCUSDT-funding-2022_2026.parquet")
    options = ("--data", spot, "--futures-data", perpetual, "--funding-data", funding)
    async with exchange(*options, "--symbol", "BTCUSDT", "--history", "700") as ex:
        rows = await ex.get("/fapi/v1/klines", **BTC, interval="1m", limit=5)
        source = {int(r["open_time"]): r for r in pq.read_table(perpetual).to_pylist()}
        for row in rows[:-1]:
            assert float(row[4]) == source[row[0]]["close"]
        rates = await ex.get("/fapi/v1/fundingRate", **BTC, limit=3)
        recorded = {r["fundingTime"]: r["fundingRate"] for r in pq.read_table(funding).to_pylist()}
        for rate in rates:
            assert float(rate["fundingRate"]) == recorded[rate["fundingTime"]]


async def test_requests_are_counted_for_tests() -> None:
    async with exchange() as ex:
        await ex.klines(limit=2)
        await ex.klines(limit=2)
        seen = await ex.get("/control/requests")
        assert seen["counts"] == {"/api/v3/klines": 2}
        assert seen["newest"][-1]["query"]["limit"] == "2"
        assert json.dumps(seen)
