"""`python -m collector -c config.json`"""

import asyncio
import sys
from functools import partial

from collector.service import Market, own_part, serve
from shared import logs
from shared.runtime import run, service_arguments, sessions


async def main() -> None:
    settings = service_arguments("collector")
    logs.set_up("collector", level=settings.log_level, redact=logs.Redactor.of(settings))
    async with Market.opened(own_part(settings)) as market, asyncio.TaskGroup() as tasks:
        # The exchange is listened to while the bus is away, too.
        listening = tasks.create_task(market.listen())
        await sessions(settings, "collector", partial(serve, market))
        listening.cancel()


if __name__ == "__main__":
    sys.exit(run(main))
