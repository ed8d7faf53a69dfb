"""A paper exchange on a live market: `python -m simulator --mirror`.

Orders, accounts and user streams are the simulator's own; the market is another exchange's, the
one that the config names (`binance_rest_url`, `binance_ws_url`). Takers walk its book as it stands
(the best 20 levels), what rests meets its trades, stops look at them; its symbols keep their
filters. Questions about the market and market streams are passed on, pings and pongs included.
What is signed stays here, and no key goes on.

While a market is not heard, it is closed: orders are refused. Trades that were missed meet what
rests afterwards: those of the last ten minutes as they were, older ones as their candles tell.
"""

import asyncio
import contextlib
import json
import logging
import random
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import aiohttp
from aiohttp import WSMsgType, web

from shared import binance
from shared.binance import Attempts, Busy, Socket, Weights, retry_after_s
from shared.errors import Failure, Rejected, Unavailable
from shared.times import floor_ms
from simulator.clock import AccountClock
from simulator.desk import Desk
from simulator.endpoints import SPOT_ROUTES, ApiError
from simulator.exchange.amounts import text
from simulator.exchange.engine import PublicTrade
from simulator.exchange.orders import Key
from simulator.faults import Faults
from simulator.journal import Journal
from simulator.live import LiveBoard, LiveSymbol
from simulator.rest import Rest, time_unit
from simulator.server import PositionFile, at_work
from simulator.streams import Hub
from simulator.wsapi import WsApi

log = logging.getLogger(__name__)

STALE_S = 30.0
_STREAMS = ("aggTrade", "bookTicker", "depth20@100ms", "avgPrice")
_RULES_S = 600.0  # between two looks at the filters
_BACKOFF_S = (0.25, 30.0)
_TIMEOUT = aiohttp.ClientTimeout(total=15, connect=5)
_EXACT_MS = 600_000  # how far back missed trades are read one by one
_PAGE = 1000
_MINUTE_MS = 60_000
_HANDED_ON = ("Content-Type", "Retry-After", "X-MBX-USED-WEIGHT", "X-MBX-USED-WEIGHT-1M")
_NO_ANSWER = ApiError(503, -1001, "The live exchange does not answer.")


@dataclass(kw_only=True)
class Mirror:
    """Everything that runs. keys, balances (units): the first account, unless the journal has it.

    stale_s: a market that says nothing for so long is closed.
    """

    rest_url: str
    ws_url: str
    futures_rest_url: str
    futures_ws_url: str
    symbols: tuple[str, ...]
    keys: dict[str, Key]
    balances: dict[str, int]
    journal: Journal | None = None
    position_file: PositionFile | None = None
    slippage_bps: float = 0.0
    latency_ms: float = 0.0
    stale_s: float = STALE_S
    clock: AccountClock = field(default_factory=AccountClock)
    hub: Hub = field(default_factory=Hub)

    def __post_init__(self) -> None:
        for name in ("rest_url", "ws_url", "futures_rest_url", "futures_ws_url"):
            setattr(self, name, getattr(self, name).rstrip("/"))
        self.board = LiveBoard(self.symbols, self.stale_s)
        self.desk = Desk(
            self.board,
            [],  # they come with their filters, and are kept in the journal
            now=lambda: (self.board.market_ms, self.board.market_ms),
            account_ms=self.clock.now_ms,
            journal=self.journal,
            slippage_bps=self.slippage_bps,
            latency_ms=self.latency_ms,
        )
        self.desk.start(self.keys, self.balances, 0)
        self._played_ms = (self.position_file and self.position_file.load()) or 0
        self._saved_s = 0
        self._rules_s = float("-inf")

    # following the market

    async def follow(self, http: aiohttp.ClientSession) -> None:
        """For ever. Raises: Failure: the live exchange does not know a symbol."""
        attempts, failures = Attempts(), 0
        rest = binance.Rest(http, self.rest_url, binance.SPOT, Weights())
        while True:
            since_s = time.monotonic()
            try:
                if (wait_s := attempts.wait_s(since_s)) > 0:
                    raise Busy("too many connections", wait_s)
                await self._hear(http, rest)
            except (Unavailable, Rejected) as error:
                failures = 1 if time.monotonic() - since_s > _BACKOFF_S[1] else failures + 1
                longest_s = min(_BACKOFF_S[1], _BACKOFF_S[0] * 2 ** min(failures - 1, 10))
                wait_s = longest_s * random.uniform(0.5, 1.0)
                if isinstance(error, Busy):
                    wait_s = max(wait_s, error.retry_after_s)
                told = {"reason": str(error), "retry_in_s": round(wait_s, 2)}
                log.warning("the live market is away", extra=told)
                await asyncio.sleep(wait_s)

    async def _hear(self, http: aiohttp.ClientSession, rest: binance.Rest) -> None:
        """One connection, until it ends. Raises: Unavailable, Rejected, Failure."""
        socket = await Socket.open(http, self.ws_url, binance.SPOT)
        try:
            names = [f"{s.lower()}@{stream}" for s in self.symbols for stream in _STREAMS]
            await socket.subscribe(names)
            await self._learn_rules(http)
            for live in self.board.symbols.values():
                await self._look(http, rest, live)
            log.info("the live market is followed", extra={"symbols": list(self.symbols)})
            while True:
                try:
                    async with asyncio.timeout(self.stale_s):
                        frame = await socket.receive()
                except TimeoutError:
                    raise Unavailable(f"silent for {self.stale_s:.0f} s") from None
                self._take(frame.text)
                if time.monotonic() - self._rules_s > _RULES_S:
                    await self._learn_rules(http)
        finally:
            await socket.close()

    async def _learn_rules(self, http: aiohttp.ClientSession) -> None:
        """The symbols as the live exchange has them now."""
        self._rules_s = time.monotonic()
        wanted = json.dumps(list(self.symbols), separators=(",", ":"))
        try:
            body = await self._ask(http, "exchangeInfo", symbols=wanted)
        except Rejected as error:
            if all(name in self.desk.state.symbols for name in self.symbols):
                raise
            raise Failure(f"the live exchange does not trade {wanted}: {error}") from None
        with _Understood("exchangeInfo"):
            infos = {info["symbol"]: info for info in body["symbols"]}
            for name in self.symbols:
                known = self.desk.state.symbols.get(name)
                if known is None or known.info != infos[name]:
                    self.desk.set_symbol(infos[name])

    async def _look(
        self, http: aiohttp.ClientSession, rest: binance.Rest, live: LiveSymbol
    ) -> None:
        """The market as it is, after what was missed of it."""
        book = await self._ask(http, "depth", symbol=live.name, limit="20")
        average = await self._ask(http, "avgPrice", symbol=live.name)
        newest = await self._ask(http, "aggTrades", symbol=live.name, limit="1")
        since_ms = live.market_ms or self._played_ms
        with _Understood("depth, avgPrice or aggTrades"):
            live.start(book, average["price"], newest)
            until_ms = int(newest[-1]["T"]) if newest else 0
        live.heard_s = time.monotonic()
        if 0 < since_ms < until_ms and self.desk.engine.is_waiting(live.name):
            told = {"symbol": live.name, "from_ms": since_ms, "until_ms": until_ms}
            log.info("missed trades are made up for", extra=told)
            live.market_ms = since_ms
            if until_ms - since_ms <= _EXACT_MS:
                await self._make_up(http, live, since_ms)
            else:
                await self._make_up_by_candles(rest, live, since_ms, until_ms)
        self._play(live, self._trades(live, newest))

    async def _make_up(self, http: aiohttp.ClientSession, live: LiveSymbol, since_ms: int) -> None:
        """Let what rests meet the trades since then."""
        start = {"startTime": str(since_ms + 1)}
        while True:
            page = await self._ask(http, "aggTrades", symbol=live.name, limit=str(_PAGE), **start)
            self._play(live, self._trades(live, page))
            if len(page) < _PAGE:
                return
            with _Understood("aggTrades"):
                start = {"fromId": str(int(page[-1]["a"]) + 1)}

    async def _make_up_by_candles(
        self, rest: binance.Rest, live: LiveSymbol, since_ms: int, until_ms: int
    ) -> None:
        start_ms = floor_ms(since_ms, _MINUTE_MS) + _MINUTE_MS
        while True:
            candles = await rest.klines(live.name, "1m", start_ms=start_ms, limit=_PAGE)
            for candle in candles:
                live.heard_s = time.monotonic()
                self._play(live, live.hear_candle(candle, until_ms))
            if len(candles) < _PAGE:
                return
            start_ms = candles[-1].open_time_ms + _MINUTE_MS

    def _trades(self, live: LiveSymbol, rows: Any) -> list[PublicTrade]:
        """Those that were not heard before. Raises: Unavailable."""
        with _Understood("aggTrades"):
            heard = [live.hear_trade(row) for row in rows]
        live.heard_s = time.monotonic()
        return [trade for trade in heard if trade is not None]

    def _play(self, live: LiveSymbol, trades: list[PublicTrade]) -> None:
        """Let what rests meet them."""
        if trades and self.desk.engine.is_waiting(live.name):
            live.unplayed += trades
            self.desk.move(live.market_ms)

    def _take(self, frame: str) -> None:
        """A message of the streams. Raises: Unavailable: it is not what it must be."""
        with _Understood("a message"):
            body = json.loads(frame)
            stream, data = body.get("stream"), body.get("data")
            if stream is None:
                if body.get("error") or "code" in body:
                    raise Unavailable(f"the subscription was refused: {frame[:200]}")
                return
            name, _, kind = stream.partition("@")
            live = self.board.symbols.get(name.upper())
            if live is None:
                return
            live.heard_s = time.monotonic()
            if kind == "bookTicker":
                live.hear_best(data)
            elif kind == "avgPrice":
                live.hear_average(data["w"])
            elif kind != "aggTrade":
                live.hear_book(data)
        if kind == "aggTrade":
            self._play(live, self._trades(live, [data]))
            self._save()

    def _save(self) -> None:
        """How far the market was seen, once a second."""
        now_s = int(time.monotonic())
        if self.position_file is not None and now_s != self._saved_s:
            self._saved_s = now_s
            self.position_file.save(self.board.market_ms)

    async def _ask(self, http: aiohttp.ClientSession, path: str, **params: str) -> Any:
        """Raises: Unavailable, Rejected."""
        try:
            async with http.get(
                f"{self.rest_url}/api/v3/{path}", params=params, timeout=_TIMEOUT
            ) as reply:
                status, body = reply.status, await reply.read()
                after = reply.headers.get("Retry-After")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(f"{path}: no answer ({type(error).__name__})") from None
        if status in (400, 404):
            raise Rejected(f"{path}: HTTP {status} {body[:200].decode(errors='replace')}")
        if status in (403, 418, 429):
            raise Busy(f"{path}: HTTP {status}", retry_after_s(after))
        if status != 200:
            raise Unavailable(f"{path}: HTTP {status}")
        try:
            return json.loads(body)
        except ValueError:
            raise Unavailable(f"{path}: the reply is not JSON") from None

    # the server

    def app(self, http: aiohttp.ClientSession) -> web.Application:
        rest = MirrorRest(
            venues={},
            now=self.desk.now,
            faults=Faults(),
            desk=self.desk,
            clock=self.clock,
            mirror=self,
            http=http,
        )
        ws_api = WsApi(self.hub, rest)

        async def user_socket(request: web.Request) -> web.StreamResponse:
            if not self.hub.admits(asyncio.get_running_loop().time()):
                return web.Response(status=429, headers={"Retry-After": "300"})
            return await ws_api.serve(request)

        async def spot_socket(request: web.Request) -> web.StreamResponse:
            path = request.raw_path.removeprefix("/stream/ws")
            path = request.raw_path if path == request.raw_path else f"/ws{path}"
            return await _relay(http, request, self.ws_url + path)

        async def futures_socket(request: web.Request) -> web.StreamResponse:
            return await _relay(http, request, self.futures_ws_url + request.raw_path)

        app = web.Application(client_max_size=1 << 20)
        app.router.add_get("/control", self._state)
        app.router.add_route("*", "/api/v3/{tail:.*}", rest.api)
        app.router.add_route("*", "/fapi/v1/{tail:.*}", rest.fapi)
        app.router.add_route("*", "/sapi/v1/{tail:.*}", rest.sapi)
        app.router.add_route("*", "/dapi/v1/{tail:.*}", rest.dapi)
        app.router.add_get("/ws-api/v3", user_socket)
        for tail in ("/ws", "/stream", "/ws/{names:.+}", "/stream/ws/{names:.+}"):
            app.router.add_get(tail, spot_socket)
            app.router.add_get("/{route:public|market|private}" + tail, futures_socket)
        return app

    async def _state(self, _request: web.Request) -> web.Response:
        """What is mirrored, and whether it is heard."""
        symbols = {
            name: {"open": live.is_open, "last": text(live.last), "market_ms": live.market_ms}
            for name, live in self.board.symbols.items()
        }
        return web.json_response({"mirror": self.rest_url, "symbols": symbols})


@dataclass(slots=True, kw_only=True)
class MirrorRest(Rest):
    """REST: signed requests here, everything about the market from the live exchange."""

    mirror: Mirror
    http: aiohttp.ClientSession

    async def api(self, request: web.Request) -> web.Response:
        path = request.match_info["tail"]
        if request.method != "GET" or path not in SPOT_ROUTES:
            return await Rest.api(self, request)
        own = self._own(path, request.query, time_unit(request))
        if own is not None:
            return self._json(request, 200, own.encode(), {})
        return await self._pass_on(request, self.mirror.rest_url)

    async def fapi(self, request: web.Request) -> web.Response:
        if request.method != "GET" or "signature" in request.query:
            return self._html(request, 404, "404 Not Found")
        return await self._pass_on(request, self.mirror.futures_rest_url)

    async def sapi(self, request: web.Request) -> web.Response:
        if request.match_info["tail"] != "asset/tradeFee":
            return await Rest.sapi(self, request)
        wanted = request.query.get("symbol")
        rows = [
            {"symbol": name, "makerCommission": "0.001", "takerCommission": "0.001"}
            for name in self.mirror.symbols
            if wanted in (None, name)
        ]
        return self._json(request, 200, json.dumps(rows).encode(), {})

    async def public(self, path: str, params: Mapping[str, str], unit: int) -> str:
        own = self._own(path, params, unit)
        if own is not None:
            return own
        url = f"{self.mirror.rest_url}/api/v3/{path}"
        headers = {"X-MBX-TIME-UNIT": "MICROSECOND"} if unit != 1 else {}
        try:
            async with self.http.get(url, params=params, headers=headers, timeout=_TIMEOUT) as got:
                status, body = got.status, await got.text()
        except (aiohttp.ClientError, TimeoutError, OSError):
            raise _NO_ANSWER from None
        if status != 200:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                error = json.loads(body)
                raise ApiError(status, int(error["code"]), str(error["msg"]))
            raise _NO_ANSWER
        return body

    def _own(self, path: str, params: Mapping[str, str], unit: int) -> str | None:
        """The answer to what this exchange knows itself: its clock, and the average price that its
        filters use."""
        if path == "ping":
            return "{}"
        if path == "time":
            return f'{{"serverTime":{self.clock.now_ms() * unit}}}'
        live = self.mirror.board.symbols.get(params.get("symbol", ""))
        if path == "avgPrice" and live is not None and live.is_open:
            price = text(live.average)
            return f'{{"mins":5,"price":"{price}","closeTime":{live.market_ms * unit}}}'
        return None

    async def _pass_on(self, request: web.Request, base: str) -> web.Response:
        headers = {
            name: request.headers[name] for name in ("X-MBX-TIME-UNIT",) if name in request.headers
        }
        try:
            async with self.http.get(
                base + request.raw_path, headers=headers, timeout=_TIMEOUT
            ) as got:
                body = await got.read()
                handed = {name: got.headers[name] for name in _HANDED_ON if name in got.headers}
                return web.Response(status=got.status, body=body, headers=handed)
        except (aiohttp.ClientError, TimeoutError, OSError):
            return self._json(request, _NO_ANSWER.status, _NO_ANSWER.body(), {})


class _Understood:
    """What has another shape than it must counts as no answer."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyError | TypeError | ValueError | IndexError):
            raise Unavailable(f"{self._what} is not understood: {error!r}") from None


async def _relay(http: aiohttp.ClientSession, request: web.Request, url: str) -> web.StreamResponse:
    """A market stream, frame by frame, in both directions."""
    try:
        theirs = await http.ws_connect(url, autoping=False, max_msg_size=4 << 20, timeout=_WS_CLOSE)
    except (aiohttp.ClientError, TimeoutError, OSError):
        return web.Response(status=503)
    ours = web.WebSocketResponse(autoping=False, compress=False)
    await ours.prepare(request)
    up = asyncio.create_task(_pump(ours, theirs))
    down = asyncio.create_task(_pump(theirs, ours))
    try:
        await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (up, down):
            task.cancel()
        await asyncio.gather(up, down, return_exceptions=True)
        await ours.close(code=theirs.close_code or 1000)
        await theirs.close()
    return ours


_WS_CLOSE = aiohttp.ClientWSTimeout(ws_close=1.0)


async def _pump(
    source: aiohttp.ClientWebSocketResponse | web.WebSocketResponse,
    sink: aiohttp.ClientWebSocketResponse | web.WebSocketResponse,
) -> None:
    async for message in source:
        if message.type is WSMsgType.TEXT:
            await sink.send_str(message.data)
        elif message.type is WSMsgType.PING:
            await sink.ping(message.data)
        elif message.type is WSMsgType.PONG:
            await sink.pong(message.data)


@contextlib.asynccontextmanager
async def mirroring(
    mirror: Mirror, host: str, port: int
) -> AsyncIterator[tuple[int, asyncio.Future[Any]]]:
    """The mirror at work on host:port, as `at_work` says.

    Raises:
        Failure: the port cannot be had.
    """
    async with (
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http,
        at_work(mirror, mirror.app(http), partial(mirror.follow, http), host, port) as given,
    ):
        yield given
