"""What placing an order costs this process, against a bare aiohttp POST of the same bytes.

    python -m benchmarks.orders

The other side is a server in a process of its own that answers every order at once.
"""

import asyncio
import multiprocessing
import statistics
import time
from collections.abc import Awaitable, Callable
from decimal import Decimal
from multiprocessing.connection import Connection

import aiohttp
import uvloop

from shared.account import BinanceAccount
from shared.exchange import NewOrder, OrderType, Side

_ROUNDS = 3
_ORDERS = 1000
_BODY = (
    b'{"symbol":"BTCUSDT","orderId":28,"orderListId":-1,"clientOrderId":"k1-abc",'
    b'"transactTime":1780000000000,"price":"59000.10000000","origQty":"0.01000000",'
    b'"executedQty":"0.01000000","origQuoteOrderQty":"0.000000",'
    b'"cummulativeQuoteQty":"590.00000000","status":"FILLED","timeInForce":"GTC","type":"LIMIT",'
    b'"side":"BUY","workingTime":1780000000000,"selfTradePreventionMode":"EXPIRE_MAKER","fills":'
    b'[{"price":"59000.00000000","qty":"0.01000000","commission":"0.00001000",'
    b'"commissionAsset":"BTC","tradeId":56}]}'
)
_REPLY = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json;charset=UTF-8\r\n"
    b"X-MBX-USED-WEIGHT-1M: 1\r\nContent-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)
)
_ORDER = NewOrder(
    symbol="BTCUSDT",
    client_id="k1-abc",
    side=Side.BUY,
    type=OrderType.LIMIT,
    quantity=Decimal("0.01"),
    price=Decimal("59000.1"),
    time_in_force="GTC",
)


def _server(ready: Connection) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                return
            await reader.readexactly(int(head.lower().split(b"content-length:")[1].split()[0]))
            writer.write(_REPLY)

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(run())


async def _measure(call: Callable[[], Awaitable[object]]) -> tuple[float, float]:
    """(CPU of this process, median round trip) in microseconds an order."""
    for _ in range(50):
        await call()
    took, cpu = [], time.process_time()
    for _ in range(_ORDERS):
        start = time.perf_counter()
        await call()
        took.append(time.perf_counter() - start)
    return (time.process_time() - cpu) / _ORDERS * 1e6, statistics.median(took) * 1e6


async def _run(url: str) -> None:
    body = b"x" * 250

    async with (
        BinanceAccount(url, "ws://127.0.0.1", key="key", secret="secret") as account,  # noqa: S106 - signs nothing of worth
        aiohttp.ClientSession() as http,
    ):

        async def bare() -> bytes:
            async with http.post(f"{url}/api/v3/order", data=body) as reply:
                return await reply.read()

        for _ in range(_ROUNDS):
            ours = await _measure(lambda: account.place(_ORDER, timestamp_ms=1780000000000))
            peer = await _measure(bare)
            print(
                f"place: {ours[0]:.0f} us of CPU, {ours[1]:.0f} us round trip; "
                f"bare aiohttp: {peer[0]:.0f} us, {peer[1]:.0f} us; ratio {ours[0] / peer[0]:.2f}"
            )


def main() -> None:
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=_server, args=(theirs,))
    server.start()
    try:
        uvloop.run(_run(f"http://127.0.0.1:{ours.recv()}"))
    finally:
        server.kill()
        server.join()


if __name__ == "__main__":
    main()
