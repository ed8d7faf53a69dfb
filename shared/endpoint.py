"""What a process answers over HTTP: `/metrics` for Prometheus, `/live` and `/ready` for whoever
starts and stops it.

live: its loop turns and its work does not stand still; if not, only a restart helps. ready: it is
caught up and can do its work; if not, `reason` says why, and a restart helps nobody.
"""

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from shared.errors import Failure
from shared.metrics import Metrics

Answer = Callable[[], dict[str, Any]]


@contextlib.asynccontextmanager
async def serving(
    metrics: Metrics, *, host: str, port: int, live: Callable[[], bool], ready: Answer
) -> AsyncIterator[None]:
    """Answers while the block runs, inside this loop: one that stands still answers nobody.

    Raises:
        Failure: the port cannot be had.
    """
    from aiohttp import web  # noqa: PLC0415  # only where a port is wanted
    from prometheus_client import CollectorRegistry, exposition  # noqa: PLC0415  # as above
    from prometheus_client.process_collector import ProcessCollector  # noqa: PLC0415  # as above

    registry = CollectorRegistry()
    registry.register(metrics)
    ProcessCollector(registry=registry)

    async def tell_metrics(_: web.Request) -> web.Response:
        text = exposition.generate_latest(registry)
        return web.Response(
            body=text, headers={"Content-Type": exposition.CONTENT_TYPE_PLAIN_0_0_4}
        )

    async def tell_live(_: web.Request) -> web.Response:
        alive = live()
        return web.json_response({"live": alive}, status=200 if alive else 503)

    async def tell_ready(_: web.Request) -> web.Response:
        answer = ready()
        return web.json_response(answer, status=200 if answer["ready"] else 503, dumps=_dumps)

    app = web.Application(client_max_size=1024)
    app.add_routes(
        [web.get("/metrics", tell_metrics), web.get("/live", tell_live),
         web.get("/ready", tell_ready)]
    )  # fmt: skip
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise Failure(
                f"metrics_port {port} of {host} cannot be had ({error.strerror}): give each "
                "service of a machine its own, or none"
            ) from None
        yield
    finally:
        await runner.cleanup()


def _dumps(value: Any) -> str:
    return json.dumps(value, default=str)
