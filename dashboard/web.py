"""What the browser talks to: the page, its live data, logins, and (where it is allowed) actions.

Every request passes `_checked` first: the host by which we are asked for, then who asks, then,
where something is to be changed, that a page of ours asks. Text from the bus goes out as JSON and
is never put into HTML here.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import WSCloseCode, WSMsgType, web
from aiohttp.http_exceptions import BadHttpMessage

from dashboard.actions import Actions
from dashboard.assets import Asset, read_assets
from dashboard.board import shown_candles
from dashboard.credentials import LONGEST, Credentials
from dashboard.features import against_training, drift_shown
from dashboard.guard import (
    Attempts,
    Login,
    Logins,
    Tickets,
    allowed_names,
    host_name,
    is_same_origin,
)
from dashboard.hub import Viewer, encode
from dashboard.outcomes import Outcomes
from dashboard.service import Dashboard
from dashboard.track import Track
from shared.config import Settings
from shared.errors import BadInput, Failure, OutOfSync, Unavailable
from shared.runtime import code_version
from shared.streams import schema_key

log = logging.getLogger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_COOKIE = "itb_login"
_TICKET = "itb_ticket"
# A body that is not what its headers say: of another encoding, charset or length.
_UNREADABLE = (ValueError, LookupError, BadHttpMessage, web.RequestPayloadError)
_OPEN = frozenset(("/login", "/healthz"))  # and /page/...
_SEND_S = 15.0  # a page that takes nothing for so long is gone
_CHECKED_S = 5.0  # how soon an open page notices that its login has ended
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
    "Cache-Control": "no-store",
}
# A report is a page by itself, with its styles inside: it may show itself and do nothing.
_REPORT_POLICY = (
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


@dataclass
class Site:
    """The web server's state. now_s: a clock that only moves forward."""

    settings: Settings
    credentials: Credentials
    dashboard: Dashboard
    actions: Actions
    outcomes: Outcomes
    now_s: Callable[[], float] = time.monotonic
    assets: dict[str, Asset] = field(default_factory=read_assets)

    def __post_init__(self) -> None:
        config = self.settings.dashboard
        self.logins = Logins(config.session_hours * 3600)
        self.tickets = Tickets()
        self.attempts = Attempts()
        self.names = allowed_names(config.host, config.hosts)
        self.candles = shown_candles(self.settings)
        self.verifying = asyncio.Semaphore(1)  # each takes 32 MiB

    # -- the frame ----------------------------------------------------------------------------

    def app(self) -> web.Application:
        app = web.Application(client_max_size=16 << 10, middlewares=[self._checked])
        app.on_response_prepare.append(_guarded)  # also of what aiohttp itself answers
        app.add_routes(
            [
                web.get("/", self._index),
                web.get("/healthz", self._healthz),
                web.get("/page/{name:.+}", self._asset),
                web.get("/ws", self._live),
                web.get("/api/outputs", self._outputs),
                web.get("/api/features", self._features),
                web.get("/api/ledger", self._ledger),
                web.get("/api/outcomes", self._outcomes_of),
                web.get("/api/why", self._why),
                web.get("/releases/{release}/report.html", self._report),
            ]
        )
        if self.credentials.are_set:
            app.add_routes(
                [
                    web.get("/login", self._login_form),
                    web.post("/login", self._log_in),
                    web.post("/logout", self._log_out),
                ]
            )
        if self.settings.dashboard.control:
            app.add_routes(
                [
                    web.post("/api/action", self._ask),
                    web.post("/api/confirm", self._confirm),
                ]
            )
        return app

    @web.middleware
    async def _checked(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            self._check(request)
            return await handler(request)
        except web.HTTPException as error:
            return web.Response(
                status=error.status, text=error.text, headers=_carried(error.headers)
            )
        except (Unavailable, OutOfSync) as error:
            return web.Response(status=503, text=f"{error}\n")

    def _check(self, request: web.Request) -> None:
        """
        Raises:
            HTTPException: the request is refused.
        """
        if host_name(request.headers.get("Host", "")) not in self.names:
            raise web.HTTPMisdirectedRequest(
                text="this page is not served under that name; dashboard.hosts lists its names\n"
            )
        is_socket = request.path == "/ws"
        if request.method not in ("GET", "HEAD") or is_socket:
            origin = request.headers.get("Origin")
            if not is_same_origin(origin, request.headers["Host"]):
                raise web.HTTPForbidden(text="only the page itself may ask this\n")
        if request.path in _OPEN or request.path.startswith("/page/"):
            return
        login = self._login(request)
        if self.credentials.are_set and login is None:
            if request.path == "/" and request.method == "GET":
                raise web.HTTPSeeOther("/login")
            raise web.HTTPUnauthorized(text="log in first\n")
        if request.method not in ("GET", "HEAD") and not (
            login is not None and login.may_act(request.headers.get("X-CSRF-Token"))
        ):
            raise web.HTTPForbidden(text="the request does not carry the page's token\n")

    def _login(self, request: web.Request) -> Login | None:
        return self.logins.find(request.cookies.get(self._cookie(_COOKIE)), self.now_s())

    def _cookie(self, name: str) -> str:
        return f"__Host-{name}" if self.settings.dashboard.https else name

    def _set_cookie(self, response: web.StreamResponse, name: str, value: str) -> None:
        """Ends with the browser; when it ends here is known here."""
        response.set_cookie(
            self._cookie(name),
            value,
            httponly=True,
            samesite="Strict",
            secure=self.settings.dashboard.https,
            path="/",
        )

    def _drop_cookie(self, response: web.StreamResponse, name: str) -> None:
        response.del_cookie(
            self._cookie(name),
            httponly=True,
            samesite="Strict",
            secure=self.settings.dashboard.https,
            path="/",
        )

    # -- the page -----------------------------------------------------------------------------

    async def _index(self, request: web.Request) -> web.StreamResponse:
        return self._file(request, "index.html")

    async def _asset(self, request: web.Request) -> web.StreamResponse:
        return self._file(request, request.match_info["name"])

    def _file(self, request: web.Request, name: str) -> web.StreamResponse:
        asset = self.assets.get(name)
        if asset is None:
            raise web.HTTPNotFound(text="there is no such page\n")
        headers = {"ETag": asset.etag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
        if request.headers.get("If-None-Match") == asset.etag:
            return web.Response(status=304, headers=headers)
        headers["Content-Type"] = asset.kind
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            headers["Content-Encoding"] = "gzip"
            return web.Response(body=asset.compressed, headers=headers)
        return web.Response(body=asset.content, headers=headers)

    async def _healthz(self, request: web.Request) -> web.StreamResponse:
        ready = self.dashboard.hub.board is not None
        return web.json_response({"ready": ready}, status=200 if ready else 503)

    async def _report(self, request: web.Request) -> web.StreamResponse:
        path = self.dashboard.library.report_path(request.match_info["release"])
        if path is None:
            raise web.HTTPNotFound(text="this release has no report.html\n")
        content = await asyncio.to_thread(path.read_bytes)
        response = web.Response(body=content, content_type="text/html", charset="utf-8")
        response.headers["Content-Security-Policy"] = _REPORT_POLICY
        response.enable_compression()
        return response

    # -- logging in and out -------------------------------------------------------------------

    async def _login_form(self, request: web.Request) -> web.StreamResponse:
        return self._form("", 200)

    def _form(self, problem: str, status: int) -> web.Response:
        """problem: one of our own sentences."""
        ticket = self.tickets.issue(self.now_s())
        page = self.assets["login.html"].content.decode()
        page = page.replace("{{ticket}}", ticket).replace("{{problem}}", problem)
        response = web.Response(status=status, text=page, content_type="text/html")
        self._set_cookie(response, _TICKET, ticket)
        return response

    async def _log_in(self, request: web.Request) -> web.StreamResponse:
        address, now_s = request.remote or "", self.now_s()
        wait_s = self.attempts.wait_s(address, now_s)
        if wait_s > 0 or self.verifying.locked():
            response = self._form("Too many attempts. Try again later.", 429)
            response.headers["Retry-After"] = str(max(1, round(wait_s)))
            return response
        if request.content_type != "application/x-www-form-urlencoded":  # as our own form
            return self._form("That did not work.", 400)
        try:
            form = await request.post()
        except _UNREADABLE:
            return self._form("That did not work.", 400)
        ticket, secret = form.get("ticket"), form.get("password")
        if not (isinstance(ticket, str) and isinstance(secret, str) and len(secret) <= LONGEST):
            return self._form("That did not work.", 400)
        if request.cookies.get(self._cookie(_TICKET)) != ticket or not self.tickets.redeem(
            ticket, now_s
        ):
            return self._form("The form was too old or used before. Try again.", 403)
        self.attempts.failed(address, now_s)  # until it is known to be right
        async with self.verifying:
            is_right = await asyncio.to_thread(self.credentials.accept, secret)
        if not is_right:
            log.warning("a login was refused", extra={"address": address})
            return self._form("That is not the password.", 403)
        self.attempts.succeeded(address)
        self.logins.close(request.cookies.get(self._cookie(_COOKIE)))
        cookie, _ = self.logins.open(address, self.now_s())
        log.info("somebody logged in", extra={"address": address})
        response = web.Response(status=303, headers={"Location": "/"})
        self._set_cookie(response, _COOKIE, cookie)
        self._drop_cookie(response, _TICKET)
        return response

    async def _log_out(self, request: web.Request) -> web.StreamResponse:
        self.logins.close(request.cookies.get(self._cookie(_COOKIE)))
        response = web.json_response({"done": True})
        self._drop_cookie(response, _COOKIE)
        return response

    # -- data ---------------------------------------------------------------------------------

    def _symbol(self, request: web.Request) -> str:
        symbol = request.query.get("symbol", self.settings.symbols[0])
        if symbol not in self.settings.symbols:
            raise web.HTTPNotFound(text="that symbol is not followed here\n")
        return symbol

    async def _outputs(self, request: web.Request) -> web.StreamResponse:
        return self._json(self._track(request).outputs())

    async def _features(self, request: web.Request) -> web.StreamResponse:
        track, session, board = (
            self._track(request),
            self.dashboard.session,
            self.dashboard.hub.board,
        )
        vectors = list(track.vectors)
        drift = None if board is None else board.drift.get(track.symbol)
        answer: dict[str, Any] = {
            "symbol": track.symbol, "time": None, "candles": len(vectors), "problem": "",
            "features": [], "novelty": None, "drift": drift_shown(drift),
        }  # fmt: skip
        if not vectors or session is None:
            return self._json(answer)
        schema = vectors[-1].schema
        text = await session.bus.get(schema_key(schema))
        if text is None:
            problem = f"the names of schema {schema} are not on the bus"
            return self._json(answer | {"problem": problem})
        names = [str(name) for name in json.loads(text)]
        release = track.release
        try:
            reference = await asyncio.to_thread(self.dashboard.library.reference, release)
            found = await asyncio.to_thread(against_training, names, vectors, reference, drift)
        except BadInput as error:
            found = await asyncio.to_thread(against_training, names, vectors, None, drift)
            answer["problem"] = str(error)
        return self._json(answer | found | {"time": vectors[-1].open_time_ms})

    async def _ledger(self, request: web.Request) -> web.StreamResponse:
        return self._json(self._track(request).ledger())

    async def _outcomes_of(self, request: web.Request) -> web.StreamResponse:
        symbol, session = self._symbol(request), self.dashboard.session
        if session is None:
            raise web.HTTPServiceUnavailable(text=f"{self.dashboard.hub.trouble}\n")
        return self._json(await self.outcomes.of(session.bus, symbol))

    async def _why(self, request: web.Request) -> web.StreamResponse:
        """What `itb explain` says of a signal."""
        session = self.dashboard.session
        if session is None:
            raise web.HTTPServiceUnavailable(text=f"{self.dashboard.hub.trouble}\n")
        signal_id = request.query.get("id", "")
        symbol = signal_id.partition("-")[0]
        if symbol not in self.settings.symbols:
            raise web.HTTPNotFound(text="that symbol is not followed here\n")
        try:
            found = await self.dashboard.explanations.of(session.bus, signal_id)
        except Failure as error:
            raise web.HTTPConflict(text=f"{error}\n") from None
        return self._json(found)

    def _track(self, request: web.Request) -> Track:
        symbol, board = self._symbol(request), self.dashboard.hub.board
        if board is None:
            raise web.HTTPServiceUnavailable(text=f"{self.dashboard.hub.trouble}\n")
        return board.tracks[symbol]

    def _json(self, content: Any) -> web.Response:
        response = web.Response(text=encode(content), content_type="application/json")
        response.enable_compression()
        return response

    async def _live(self, request: web.Request) -> web.StreamResponse:
        """The live data of one page, until either side goes."""
        hub = self.dashboard.hub
        if len(hub.viewers) >= self.settings.dashboard.viewers:
            raise web.HTTPServiceUnavailable(text="too many pages are open\n")
        viewer = Viewer(self._symbol(request))
        login = self._login(request)
        socket = web.WebSocketResponse(heartbeat=20.0, max_msg_size=1024)
        await socket.prepare(request)
        hub.viewers.add(viewer)
        try:
            await socket.send_str(encode(self._hello(login)))
            async with asyncio.TaskGroup() as tasks:
                sender = tasks.create_task(self._send(socket, viewer, request))
                ends = tasks.create_task(self._end_with_login(socket, login))
                await self._listen(socket, viewer)
                sender.cancel()
                ends.cancel()
        except* (ConnectionError, TimeoutError):
            pass  # the page is gone
        finally:
            hub.viewers.discard(viewer)
            with contextlib.suppress(ConnectionError, TimeoutError):
                await socket.close()
        return socket

    def _hello(self, login: Login | None) -> dict[str, Any]:
        settings = self.settings
        return {
            "kind": "hello",
            "version": code_version(),
            "now_ms": time.time_ns() // 1_000_000,
            "symbols": settings.symbols,
            "interval": settings.interval,
            "step_ms": settings.step_ms,
            "quote": settings.quote_asset,
            "bases": {symbol: settings.base_of(symbol) for symbol in settings.symbols},
            "mode": settings.trader.mode,
            "candles": self.candles,
            "login": login is not None,
            "csrf": None if login is None else login.csrf,
            "actions": self.actions.names if settings.dashboard.control and login else [],
            "trouble": self.dashboard.hub.trouble,
        }

    async def _send(
        self, socket: web.WebSocketResponse, viewer: Viewer, request: web.Request
    ) -> None:
        while True:
            for text in await viewer.next(self.dashboard.hub):
                try:
                    async with asyncio.timeout(_SEND_S):
                        await socket.send_str(text)
                except TimeoutError:
                    if request.transport is not None:
                        request.transport.abort()
                    raise

    async def _listen(self, socket: web.WebSocketResponse, viewer: Viewer) -> None:
        """The page says one thing only: which symbol it shows."""
        async for message in socket:
            if message.type is not WSMsgType.TEXT:
                continue
            try:
                symbol = json.loads(message.data)["symbol"]
            except (ValueError, KeyError, TypeError, RecursionError):
                symbol = None
            if not isinstance(symbol, str) or symbol not in self.settings.symbols:
                await socket.close(code=WSCloseCode.POLICY_VIOLATION, message=b"no such symbol")
                return
            viewer.symbol = symbol
            viewer.restart()

    async def _end_with_login(self, socket: web.WebSocketResponse, login: Login | None) -> None:
        while login is None or self.logins.is_open(login, self.now_s()):  # noqa: ASYNC110  # time ends a login, no event
            await asyncio.sleep(_CHECKED_S)
        await socket.close(code=4401, message=b"the login has ended")

    # -- actions ------------------------------------------------------------------------------

    async def _ask(self, request: web.Request) -> web.StreamResponse:
        """What an action would do, and the id under which it can be confirmed, once."""
        body = await _object(request)
        action, argument = body.get("action"), body.get("argument", "")
        login = self._login(request)
        if login is None or not isinstance(action, str) or not isinstance(argument, str):
            raise web.HTTPBadRequest(text="give an action\n")
        try:
            found = await self.actions.describe(action, argument)
        except Failure as error:
            raise web.HTTPConflict(text=f"{error}\n") from None
        number = login.ask(action, argument, found.typed, self.now_s())
        return web.json_response({"confirm": number, "text": found.text, "typed": found.typed})

    async def _confirm(self, request: web.Request) -> web.StreamResponse:
        body = await _object(request)
        login, number = self._login(request), body.get("confirm")
        question = None
        if login is not None and isinstance(number, str):
            question = login.confirm(number, self.now_s())
        if login is None or question is None:
            raise web.HTTPConflict(text="that was confirmed before, or too late; begin again\n")
        if body.get("typed", "") != question.typed:
            raise web.HTTPConflict(text=f"type {question.typed} to confirm it; begin again\n")
        try:
            text = await self.actions.do(question.action, question.argument, login.address)
        except Failure as error:
            raise web.HTTPConflict(text=f"{error}\n") from None
        return web.json_response({"text": text})


async def _object(request: web.Request) -> dict[str, Any]:
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(text="send JSON\n")
    try:
        body = json.loads(await request.text())
    except (*_UNREADABLE, RecursionError):
        raise web.HTTPBadRequest(text="that is no JSON\n") from None
    if not isinstance(body, dict):
        raise web.HTTPBadRequest(text="send a JSON object\n")
    return body


async def _guarded(_: web.Request, response: web.StreamResponse) -> None:
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers["Server"] = "itb"  # without aiohttp's version


def _carried(headers: Any) -> dict[str, str]:
    """Of the headers of an error those that say more than its text."""
    return {name: headers[name] for name in ("Location", "Allow") if name in headers}


@contextlib.asynccontextmanager
async def serving(site: Site) -> AsyncIterator[str]:
    """Serves while the block runs; gives the address.

    Raises:
        Failure: host or port cannot be had.
    """
    config = site.settings.dashboard
    runner = web.AppRunner(site.app(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, config.host, config.port).start()
        except OSError as error:
            raise Failure(
                f"dashboard.host {config.host}, dashboard.port {config.port}: cannot be served "
                f"({error.strerror or error}); set another dashboard.port"
            ) from None
        host = f"[{config.host}]" if ":" in config.host else config.host
        yield f"http://{host}:{config.port}/"
    finally:
        await runner.cleanup()
