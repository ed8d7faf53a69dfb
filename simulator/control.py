"""`/control`: faults, the market clock, connections and counters, for tests and demonstrations.

Reachable from this machine only.
"""

import asyncio
import ipaddress
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from aiohttp import web
from pydantic import Field, ValidationError

from shared.errors import Usage
from shared.times import INTERVALS_MS, floor_ms
from simulator.accounts import AccountControl, Body
from simulator.endpoints import FUTURES, SPOT
from simulator.exchange.symbols import Refused
from simulator.faults import Active, Fault
from simulator.rest import wall_ms
from simulator.streams import WS_API

if TYPE_CHECKING:
    from simulator.server import Simulator


class Advance(Body):
    """taken: answer only once every consumer has read all of it."""

    taken: bool = False
    candles: int = Field(1, ge=1, le=1_000_000)


class Cut(Body):
    """End connections: with a close frame (code), or by hanging up (abort). route: "ws-api" = the
    WS API's, with their user data streams."""

    code: int = Field(1000, ge=1000, le=4999)
    reason: str = ""
    abort: bool = False
    venue: str = ""
    route: str = ""


class Shutdown(Body):
    """Announce `serverShutdown`, then end every connection after `ms`."""

    ms: int | None = Field(2000, ge=0)


class Limits(Body):
    """New limits; what is absent stays."""

    spot_weight: int | None = Field(None, ge=1)
    futures_weight: int | None = Field(None, ge=1)
    patience: int | None = Field(None, ge=0)
    ban_s: float | None = Field(None, gt=0)
    ping_s: float | None = Field(None, gt=0)
    pong_s: float | None = Field(None, gt=0)
    lifetime_s: float | None = Field(None, gt=0)
    messages_per_s: int | None = Field(None, ge=1)
    streams: int | None = Field(None, ge=1)
    connections_per_5m: int | None = Field(None, ge=1)
    orders_10s: int | None = Field(None, ge=0)
    orders_day: int | None = Field(None, ge=0)
    latency_ms: float | None = Field(None, ge=0)
    cancel_renames: bool | None = None


class Ban(Body):
    """Refuse this address (418) for a while."""

    seconds: float = Field(60.0, gt=0)


class Skew(Body):
    """Move the account clock; milliseconds from wall time."""

    skew_ms: int = 0


def _shown(active: Active) -> dict[str, object]:
    given = active.fault.model_dump(exclude_defaults=True)
    return {
        "id": active.number,
        **given,
        "hits": active.hits,
        "left": active.left,
        "from_ms": active.from_ms,
        "to_ms": active.to_ms,
    }


class Control:
    """The handlers of `/control`."""

    def __init__(self, simulator: "Simulator") -> None:
        self._simulator = simulator
        self._accounts = AccountControl(simulator.desk, simulator.ws_api)

    def routes(self) -> list[web.RouteDef]:
        posts = {
            "faults": self.add_fault,
            "pause": self.pause,
            "resume": self.resume,
            "advance": self.advance,
            "cut": self.cut,
            "shutdown": self.shutdown,
            "limits": self.limits,
            "reset": self.reset,
            "account": self._accounts.open,
            "funds": self._accounts.funds,
            "key": self._accounts.key,
            "symbol": self._accounts.symbol,
            "clock": self.clock,
            "ban": self.ban,
        }
        return [
            web.get("/control", self._local(self.state)),
            web.get("/control/faults", self._local(self.faults)),
            web.delete("/control/faults", self._local(self.end_faults)),
            web.delete("/control/faults/{number:\\d+}", self._local(self.end_faults)),
            web.get("/control/requests", self._local(self.requests)),
            web.get("/control/account", self._local(self._accounts.show)),
            *(web.post(f"/control/{name}", self._local(post)) for name, post in posts.items()),
        ]

    def _local(
        self, handler: Callable[[web.Request], Awaitable[dict[str, object]]]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def guarded(request: web.Request) -> web.Response:
            if not ipaddress.ip_address(request.remote or "0.0.0.0").is_loopback:  # noqa: S104
                return web.json_response({"error": "/control serves this machine only"}, status=403)
            try:
                return web.json_response(await handler(request))
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(map(str, first["loc"])) or "body"
                return web.json_response({"error": f"{where}: {first['msg']}"}, status=400)
            except (Usage, Refused) as error:
                return web.json_response({"error": str(error)}, status=400)

        return guarded

    async def state(self, _request: web.Request) -> dict[str, object]:
        simulator = self._simulator
        clock, market = simulator.clock, simulator.venues[SPOT].market
        now, position = simulator.now()
        return {
            "market_now_ms": now,
            "position_ms": position,
            "steps_done": market.steps_done(position),
            "steps_total": len(market.closes_ms),
            "step_ms": market.step_ms,
            "speed": clock.speed,
            "paused": clock.is_paused,
            "at_end": simulator.at_end,
            "symbols": {s.symbol: s.interval for s in market.series.values()},
            "connections": [
                {
                    "venue": c.venue,
                    "route": c.route,
                    "streams": len(c.topics),
                    "served": sum(t is not None for t in c.topics.values()),
                    "sent": c.sent,
                    "waiting": c.waiting,
                }
                for c in simulator.hub.connections
            ],
            "closed_sent": simulator.hub.closed_count,
            "used_weight": {name: b.used for name, b in simulator.rest.budgets.items()},
            "requests": dict(simulator.rest.transcript.counts),
            "faults": [_shown(active) for active in simulator.faults.active],
        }

    async def add_fault(self, request: web.Request) -> dict[str, object]:
        fault = Fault.model_validate_json(await request.read())
        simulator = self._simulator
        venue = simulator.venues[fault.venue or SPOT]
        if fault.symbol and fault.symbol not in venue.market.series:
            raise Usage(f"symbol: {fault.symbol} is not in this market")
        if fault.interval and fault.interval not in INTERVALS_MS:
            raise Usage(f"interval: {fault.interval} is not an interval")
        step = INTERVALS_MS[fault.interval] if fault.interval else venue.market.step_ms
        now, _ = simulator.now()
        active = simulator.faults.add(
            fault,
            now_s=time.monotonic(),
            open_ms=floor_ms(now, step),
            step_ms=step,
        )
        simulator.hub.version += 1  # frames made ahead are made again
        return _shown(active)

    async def faults(self, _request: web.Request) -> dict[str, object]:
        return {"faults": [_shown(active) for active in self._simulator.faults.active]}

    async def end_faults(self, request: web.Request) -> dict[str, object]:
        number = request.match_info.get("number")
        return {"ended": self._simulator.faults.remove(None if number is None else int(number))}

    async def requests(self, _request: web.Request) -> dict[str, object]:
        transcript = self._simulator.rest.transcript
        return {"counts": dict(transcript.counts), "newest": list(transcript.newest)}

    async def pause(self, request: web.Request) -> dict[str, object]:
        self._simulator.pause()
        return await self.state(request)

    async def resume(self, request: web.Request) -> dict[str, object]:
        self._simulator.resume()
        return await self.state(request)

    async def advance(self, request: web.Request) -> dict[str, object]:
        body = Advance.model_validate_json(await request.read() or b"{}")
        played = await self._simulator.advance(body.candles)
        if body.taken:
            await self._simulator.hub.all_taken()
        return {"played": played, **await self.state(request)}

    async def cut(self, request: web.Request) -> dict[str, object]:
        body = Cut.model_validate_json(await request.read() or b"{}")
        hub = self._simulator.hub
        chosen = [
            c
            for c in hub.connections
            if body.venue in ("", c.venue) and body.route in ("", c.route)
        ]
        for connection in chosen:
            hub.end(connection, body.code, body.reason.encode(), abort=body.abort)
        return {"ended": len(chosen)}

    async def shutdown(self, request: web.Request) -> dict[str, object]:
        body = Shutdown.model_validate_json(await request.read() or b"{}")
        hub = self._simulator.hub
        hub.announce_shutdown(wall_ms())
        told = list(hub.connections)

        def leave() -> None:
            for connection in told:
                hub.end(connection, 1001, b"serverShutdown")

        if body.ms is not None:
            asyncio.get_running_loop().call_later(body.ms / 1000, leave)
        return {"told": len(told)}

    async def limits(self, request: web.Request) -> dict[str, object]:
        body = Limits.model_validate_json(await request.read() or b"{}")
        budgets, hub = self._simulator.rest.budgets, self._simulator.hub
        if body.spot_weight is not None:
            budgets[SPOT].per_minute = body.spot_weight
        if body.futures_weight is not None:
            budgets[FUTURES].per_minute = body.futures_weight
        for budget in budgets.values():
            if body.patience is not None:
                budget.patience = body.patience
            if body.ban_s is not None:
                budget.ban_ms = int(body.ban_s * 1000)
        names = ("ping_s", "pong_s", "lifetime_s", "messages_per_s", "streams")
        given = body.model_dump(exclude_none=True, include={*names, "connections_per_5m"})
        hub.rules = replace(hub.rules, **given)
        terms = self._simulator.desk.terms
        terms_named = {"orders_10s", "orders_day", "latency_ms", "cancel_renames"}
        for name, value in body.model_dump(exclude_none=True, include=terms_named).items():
            setattr(terms, name, value)
        return body.model_dump(exclude_none=True)

    async def clock(self, request: web.Request) -> dict[str, object]:
        body = Skew.model_validate_json(await request.read() or b"{}")
        self._simulator.account_clock.skew_ms = body.skew_ms
        return {"skew_ms": body.skew_ms, "now_ms": self._simulator.account_clock.now_ms()}

    async def ban(self, request: web.Request) -> dict[str, object]:
        body = Ban.model_validate_json(await request.read() or b"{}")
        until_ms = wall_ms() + int(body.seconds * 1000)
        for budget in self._simulator.rest.budgets.values():
            budget.ban(until_ms)
        hub = self._simulator.hub
        for connection in [c for c in hub.connections if c.route == WS_API]:
            hub.end(connection, 1008, b"banned")
        return {"until_ms": until_ms}

    async def reset(self, _request: web.Request) -> dict[str, object]:
        """No faults, fresh counters and budgets, default limits; the market stays where it is."""
        self._simulator.reset()
        return {}
