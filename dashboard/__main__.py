"""`python -m dashboard -c config.json`: the page in the browser."""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence

from dashboard.actions import Actions
from dashboard.credentials import read_credentials
from dashboard.outcomes import Outcomes
from dashboard.service import Dashboard
from dashboard.web import Site, serving
from shared import logs
from shared.config import load
from shared.runtime import run, sessions


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until stopped, through every loss of the bus; returns the exit code."""

    async def serve() -> None:
        parser = argparse.ArgumentParser(prog="python -m dashboard", description=__doc__)
        parser.add_argument("-c", "--config", help="config.json (default: built-in settings)")
        config = parser.parse_args(argv).config
        settings = load(config)
        logs.set_up("dashboard", level=settings.log_level, redact=logs.Redactor.of(settings))
        credentials = read_credentials(settings)
        with contextlib.suppress(OSError):
            os.nice(5)  # who looks never takes the processor from who works
        dashboard = Dashboard(settings)
        actions = Actions(settings, dashboard, config or "")
        outcomes = Outcomes(settings, dashboard.library, config or "")
        site = Site(settings, credentials, dashboard, actions, outcomes)
        async with serving(site):
            await sessions(settings, "dashboard", dashboard.serve)

    return run(serve)


if __name__ == "__main__":
    sys.exit(main())
