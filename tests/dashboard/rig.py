"""The dashboard as its viewers meet it: the real server on a free port, a real bus behind it."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from dashboard.actions import Actions
from dashboard.credentials import PasswordHash, read_credentials, write_password
from dashboard.outcomes import Measure, Outcomes, run_outcomes
from dashboard.service import Dashboard
from dashboard.web import Site, serving
from shared.bus import Bus
from tests.dashboard.recorded import settings_for
from tests.notifier.desk import serving as session_serving
from tests.valkey import free_port

PASSWORD = "correct horse battery"
WAIT_S = 60


class Browser:
    """What a browser does: it keeps cookies, and says where a request comes from."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.session = aiohttp.ClientSession(
            cookie_jar=aiohttp.CookieJar(unsafe=True),
            timeout=aiohttp.ClientTimeout(total=WAIT_S),
        )
        self.csrf = ""

    async def get(self, path: str, **headers: str) -> tuple[int, str, Any]:
        """(status, text, headers); redirects are not followed."""
        async with self.session.get(
            self.url + path, headers=headers, allow_redirects=False
        ) as reply:
            return reply.status, await reply.text(), reply.headers

    async def post(self, path: str, body: Any, **headers: str | None) -> tuple[int, str]:
        """As our own page would; a header of None is left out."""
        own: dict[str, str | None] = {"Origin": self.url, "X-CSRF-Token": self.csrf}
        sent = {k: v for k, v in (own | headers).items() if v is not None}
        async with self.session.post(
            self.url + path, json=body, headers=sent, allow_redirects=False
        ) as reply:
            return reply.status, await reply.text()

    async def ticket(self) -> str:
        """From the login form."""
        _, text, _ = await self.get("/login")
        found = re.search(r'name="ticket" value="([^"]+)"', text)
        assert found is not None
        return found[1]

    async def log_in(
        self, password: str = PASSWORD, *, ticket: str | None = None, **headers: str
    ) -> tuple[int, str]:
        form = {"ticket": await self.ticket() if ticket is None else ticket, "password": password}
        async with self.session.post(
            f"{self.url}/login",
            data=form,
            headers={"Origin": self.url} | headers,
            allow_redirects=False,
        ) as reply:
            return reply.status, await reply.text()

    @contextlib.asynccontextmanager
    async def live(self, symbol: str = "", **headers: str) -> AsyncIterator["Live"]:
        query = f"?symbol={symbol}" if symbol else ""
        async with self.session.ws_connect(
            f"{self.url}/ws{query}", headers={"Origin": self.url} | headers, max_msg_size=0
        ) as socket:
            live = Live(socket)
            hello = await live.until("hello")
            self.csrf = hello["csrf"] or ""
            yield live


class Live:
    """A page's websocket."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.seen: list[dict[str, Any]] = []

    async def until(self, kind: str) -> dict[str, Any]:
        """The next message of a kind."""
        async with asyncio.timeout(WAIT_S):
            while True:
                message: dict[str, Any] = json.loads(await self.socket.receive_str())
                self.seen.append(message)
                if message["kind"] == kind:
                    return message

    async def closed(self) -> int | None:
        """Waits for the server to close; its code."""
        async with asyncio.timeout(WAIT_S):
            while not self.socket.closed:
                await self.socket.receive()
        return self.socket.close_code


@dataclass
class FakeTrainer:
    """Stands for `python -m trainer`: records its command lines."""

    answer: tuple[int, str, str] = (0, "", "")
    lines: list[Sequence[str]] = field(default_factory=list)

    async def __call__(self, line: Sequence[str]) -> tuple[int, str, str]:
        self.lines.append(tuple(line))
        return self.answer


@dataclass
class Rig:
    """site: the server's state. now_s: its clock, to be set."""

    site: Site
    url: str
    bus: Bus
    trainer: FakeTrainer
    clock: list[float]

    @contextlib.asynccontextmanager
    async def browser(self) -> AsyncIterator[Browser]:
        browser = Browser(self.url)
        try:
            yield browser
        finally:
            await browser.session.close()


@contextlib.asynccontextmanager
async def running(
    folder: Path,
    url: str,
    bus: Bus,
    *,
    password: bool = True,
    measure: Measure = run_outcomes,
    **keys: Any,
) -> AsyncIterator[Rig]:
    """The dashboard in this process, connected to the bus and ready. keys: of `dashboard`."""
    config: dict[str, Any] = {"port": free_port()} | keys
    symbols, mode = config.pop("symbols", ["BTCUSDT"]), config.pop("mode", "observe")
    if password:
        path = folder / "password"
        write_password(path, PasswordHash.of(PASSWORD, cost=(16, 8, 1)))
        config["password_file"] = path
    settings = settings_for(folder, url, dashboard=config, symbols=symbols, trader={"mode": mode})
    dashboard, trainer, clock = Dashboard(settings), FakeTrainer(), [1_000.0]
    outcomes = Outcomes(settings, dashboard.library, "config.json", measure, lambda: clock[0])
    site = Site(
        settings,
        read_credentials(settings),
        dashboard,
        Actions(settings, dashboard, "config.json", trainer),
        outcomes,
        now_s=lambda: clock[0],
    )
    async with (
        serving(site) as address,
        session_serving(url, "dashboard", dashboard.serve, settings),
    ):
        async with asyncio.timeout(WAIT_S):
            while dashboard.hub.board is None:  # noqa: ASYNC110  # it tells nobody when it is there
                await asyncio.sleep(0.01)
        yield Rig(site, address.rstrip("/"), bus, trainer, clock)
