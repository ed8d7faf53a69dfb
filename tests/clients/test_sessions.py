"""Other people's clients, unchanged, each in its own environment: an ordinary session.

`make test-clients` builds the environments from locks and runs these. Afterwards the exchange is
asked by our own client whether what the session believes is so.
"""

import asyncio
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from shared.account import BinanceAccount
from shared.exchange import Status
from tests.simulator.exchange import exchange

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
SYMBOL = "BTCUSDT"
EXPECTED_ERRORS: dict[str, dict[str, Any]] = {
    "ccxt": {
        "balance": "InsufficientFunds",
        "small": "BadRequest",
        "taking": "OrderImmediatelyFillable",
        "duplicate": "InvalidOrder",
        "gone": "OrderNotFound",
        "missing": "OrderNotFound",
        "key": "AuthenticationError",
        "secret": "AuthenticationError",
    },
    "python_binance": {
        "balance": -2010,
        "lot": -1111,
        "gone": -2011,
        "missing": -2013,
        "symbol": -1121,
        "key": -2015,
        "secret": -1022,
    },
    "binance_connector": {
        "balance": [400, -2010],
        "gone": [400, -2011],
        "missing": [400, -2013],
        "key": [401, -2015],
        "secret": [400, -1022],
        "listen_key": [410],
        "websocket": -2010,
    },
    "binance_sdk_spot": {
        "balance": ["BadRequestError", -2010],
        "gone": ["BadRequestError", -2011],
        "missing": ["BadRequestError", -2013],
        "key": ["UnauthorizedError", -2015],
        "secret": ["BadRequestError", -1022],
    },
}


async def session(name: str, rest: str, ws: str) -> dict[str, Any]:
    python = ROOT / ".venv-clients" / name.replace("_", "-") / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{name} is not installed: run `make test-clients`")
    script = Path(__file__).with_name(f"session_{name}.py")
    process = await asyncio.create_subprocess_exec(
        python, "-W", "ignore", script, rest, ws, "demo", "demo",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()[-6000:]
    told: dict[str, Any] = json.loads(out.decode().splitlines()[-1])
    return told


@pytest.mark.parametrize("name", sorted(EXPECTED_ERRORS))
async def test_an_ordinary_session_of_another_client_works(name: str) -> None:
    async with exchange("--speed", "30", "--history", "120") as ex:
        rest = f"http://127.0.0.1:{ex.port}"
        told = await session(name, rest, ex.ws_url)
        assert told["errors"] == EXPECTED_ERRORS[name]
        async with BinanceAccount(
            rest, f"{ex.ws_url}/ws-api/v3", key="demo", secret="demo"
        ) as account:
            orders = {str(o.order_id): o for o in await account.orders_since(SYMBOL, 1)}
            assert orders[told["bought"]].status is Status.FILLED
            assert orders[told["watched"]].status is Status.FILLED
            assert orders[told["cancelled"]].status is Status.CANCELED
            assert await account.open_orders(SYMBOL) == []
            fills = await account.fills(SYMBOL)
            assert {str(fill.order_id) for fill in fills} >= {told["bought"], told["watched"]}
            executed = sum((order.executed for order in orders.values()), Decimal(0))
            assert executed == sum((fill.quantity for fill in fills), Decimal(0))
            balances = await account.balances()
            for asset in ("BTC", "USDT"):
                assert Decimal(told["balance"][asset]) == balances[asset].total
