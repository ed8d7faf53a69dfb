"""What may be done on the page: each is described first, and done only when that was confirmed.

Releases are promoted and rolled back by the trainer's own commands, so that no gate is passed by
here which holds there.
"""

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from dashboard.service import Dashboard
from shared.errors import Failure
from shared.events import Level
from shared.releases import is_release_id

_TRAINER_S = 600.0
_TAIL = 400

# Runs `python -m trainer` with these arguments: (exit code, stdout, stderr).
Trainer = Callable[[Sequence[str]], Any]


async def run_trainer(arguments: Sequence[str]) -> tuple[int, str, str]:
    """
    Raises:
        Failure: it does not end.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "trainer",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_TRAINER_S):
            out, err = await process.communicate()
    except TimeoutError:
        raise Failure(f"trainer {arguments[0]} did not end within {_TRAINER_S:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace")


class Actions:
    """config: of the command line, for the commands that are run; "" = built-in settings."""

    names = ("promote", "rollback")

    def __init__(
        self, dashboard: Dashboard, config: str = "", trainer: Trainer = run_trainer
    ) -> None:
        self._dashboard = dashboard
        self._config = ("-c", config) if config else ()
        self._trainer = trainer
        self._busy = asyncio.Lock()

    async def describe(self, action: str, argument: str) -> str:
        """What would happen, in words.

        Raises:
            Failure: there is no such action, or it cannot be done.
        """
        releases = await asyncio.to_thread(self._dashboard.library.look)
        live = releases["live"] or "none"
        if action == "promote":
            if not is_release_id(argument):
                raise Failure("that is no release")
            if argument == live:
                raise Failure(f"{argument} is live already")
            return (
                f"Make release {argument} live in place of {live}. The gates of `trainer promote` "
                "decide; the predictor takes it from the next candle on."
            )
        if action == "rollback":
            if releases["back"] is None:
                raise Failure("there is no earlier release to roll back to")
            return f"Make the earlier release {releases['back']} live again in place of {live}."
        raise Failure("there is no such action")

    async def do(self, action: str, argument: str, address: str) -> str:
        """Does it; what was done, in words. The bus is told who did it.

        Raises:
            Failure: it was refused or failed; the text says why.
        """
        await self.describe(action, argument)  # may have changed meanwhile
        if self._busy.locked():
            raise Failure("another action is under way; wait for it")
        async with self._busy:
            line = (action, *((argument,) if action == "promote" else ()), "--json", *self._config)
            text = await self._train(line)
        await self._tell(action, f"{text}, by the dashboard ({address})")
        return text

    async def _train(self, line: Sequence[str]) -> str:
        code, out, err = await self._trainer(line)
        if code:
            last = " ".join(err.strip().splitlines()[-1:])[-_TAIL:]
            if "No module named" in err:
                last = "the trainer is not installed here; run the command where it is"
            raise Failure(last or f"trainer {line[0]} failed with exit code {code}")
        result = json.loads(out.strip().splitlines()[-1])
        text = f"{line[0]}: release {result['release']} is live"
        if result.get("warnings"):
            text += f"; warnings: {'; '.join(map(str, result['warnings']))}"
        return text

    async def _tell(self, action: str, text: str) -> None:
        session = self._dashboard.session
        if session is not None:
            await session.notice(Level.INFO, f"dashboard_{action}", text)
