"""`python -m shared.ready SERVICE [-c config.json]`: is that service ready? One line, exit 0 or 1.

For health checks of containers. Where `metrics_port` is set the service itself is asked, over HTTP
(by the environment variable alone, which names its very port, nothing but the standard library is
loaded: a check costs little although it runs often); otherwise its heartbeat on the bus is read.
"""

import argparse
import asyncio
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

_TIMEOUT_S = 4.0
PORTS = 7  # that `itb up` gives out, one a service
_OLD_S = 15.0  # three heartbeats
_ANYWHERE = frozenset(("0.0.0.0", "::", ""))  # noqa: S104  # compared, not bound


def main(argv: Sequence[str] | None = None) -> int:
    """0 ready, 1 not, 2 a bad option or config."""
    parser = argparse.ArgumentParser(prog="python -m shared.ready", description=__doc__)
    parser.add_argument("service", help="collector, featurizer, predictor, notifier, trader ...")
    parser.add_argument("-c", "--config", help="config.json (default: built-in settings)")
    args = parser.parse_args(argv)
    ready, line = check(args.service, args.config)
    sys.stdout.write(f"{line}\n")
    return 0 if ready else 1


def check(service: str, config: str | None = None) -> tuple[bool, str]:
    """Whether it is ready, and a line that says so or why not.

    Raises:
        Usage: the config cannot be read.
    """
    port = os.environ.get("ITB_METRICS_PORT", "")
    host = os.environ.get("ITB_METRICS_HOST", "127.0.0.1")
    if port.isdigit():
        return _verdict(service, *_ask(host, int(port)))
    from shared.config import load  # noqa: PLC0415  # costs ten times what the rest does

    settings = load(config)
    if settings.metrics_port is not None:
        return _verdict(service, *_find(settings.metrics_host, settings.metrics_port, service))
    return _verdict(service, *asyncio.run(_heartbeat(settings, service)))


def _verdict(service: str, beat: dict[str, Any] | None, problem: str) -> tuple[bool, str]:
    if beat is None:
        return False, f"{service} is not ready: {problem}"
    if beat.get("service") != service:
        return False, f"{service} is not ready: {beat.get('service')} answers in its place"
    if beat.get("ready") is not True:
        return False, f"{service} is not ready: {beat.get('reason') or 'it gives no reason'}"
    return True, f"{service} is ready"


def _find(host: str, first: int, service: str) -> tuple[dict[str, Any] | None, str]:
    """That service's answer on the config's port or one after it, as `itb up` gives them out."""
    answering, problem = 0, ""
    for port in range(first, min(first + PORTS, 65_536)):
        beat, why = _ask(host, port)
        if beat is not None and beat.get("service") == service:
            return beat, ""
        answering += beat is not None
        problem = problem or why
    if answering:
        problem = f"none of the services at the ports from {first} on is it"
    return None, problem


def _ask(host: str, port: int) -> tuple[dict[str, Any] | None, str]:
    place = "127.0.0.1" if host in _ANYWHERE else host
    url = f"http://{f'[{place}]' if ':' in place else place}:{port}/ready"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_TIMEOUT_S) as reply:
            body = reply.read()
    except urllib.error.HTTPError as error:  # 503: not ready, with the reason
        body = error.read()
    except OSError as error:
        return None, f"{url} does not answer: {getattr(error, 'reason', error)}"
    try:
        beat = json.loads(body)
    except ValueError:
        return None, f"{url} is not one of our services"
    return (beat, "") if isinstance(beat, dict) else (None, f"{url} is not one of our services")


async def _heartbeat(settings: Any, service: str) -> tuple[dict[str, Any] | None, str]:
    from shared.bus import Bus, part_name  # noqa: PLC0415  # see above
    from shared.errors import Failure, OutOfSync, Unavailable  # noqa: PLC0415
    from shared.streams import health_key  # noqa: PLC0415

    instance = settings.instance or service
    if (parts := settings.parts_of(service)) > 1:
        if settings.shard is None:
            return None, "which part is it? Set `shard`, or `metrics_port` so that it can be asked"
        instance = part_name(service, settings.shard, parts)
    key = health_key(service, instance)
    try:
        async with (
            asyncio.timeout(_TIMEOUT_S),
            Bus.session(settings.bus_url, service=service, exclusive=False) as bus,
        ):
            text = await bus.get(key)
    except (Unavailable, OutOfSync, Failure, TimeoutError) as error:
        return None, str(error) or "Redis does not answer"
    if text is None:
        return None, f"no heartbeat at {key}"
    beat = json.loads(text)
    age_s = time.time() - beat["time_ms"] / 1000
    if age_s > _OLD_S:
        return None, f"its last heartbeat is {age_s:.0f} s old"
    return beat, ""


if __name__ == "__main__":
    from shared.errors import Failure

    try:
        sys.exit(main())
    except Failure as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
