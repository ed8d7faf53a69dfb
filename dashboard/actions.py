"""What may be done on the page: each is described first, and done only when that was confirmed.

Releases are promoted and rolled back by the trainer's own commands, so that no gate is passed by
here which holds there. The trader's switch is thrown as `itb halt` throws it, by the key that it
reads last before every order.
"""

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dashboard.account import OBSERVE
from dashboard.children import run_module
from dashboard.service import Dashboard
from shared.config import Settings
from shared.control import CONTROL_KEY, Word, text_of
from shared.errors import Failure, OutOfSync, Unavailable
from shared.events import Level, OrderState
from shared.heartbeats import heartbeats, trading
from shared.releases import is_release_id
from shared.runtime import Session

_TRAINER_S = 600.0
_CONFIRM_S = 10.0
_LOOK_S = 0.2
_TAIL = 400

# Runs `python -m trainer` with these arguments: (exit code, stdout, stderr).
Trainer = Callable[[Sequence[str]], Coroutine[Any, Any, tuple[int, str, str]]]


@dataclass(frozen=True, slots=True)
class _Command:
    """What a command to the trader means. is_typed: it is confirmed by typing its name."""

    word: Word
    state: OrderState
    meaning: str
    is_typed: bool = False


_COMMANDS: Mapping[str, _Command] = {
    "halt": _Command(
        Word.HALT, OrderState.HALTED,
        "No order is sent any more, no exit either. An entry that still waits is cancelled; stops "
        "and targets at the exchange stay.",
    ),
    "reduce_only": _Command(
        Word.REDUCE_ONLY, OrderState.REDUCED, "Nothing is bought. Exits and protection go on."
    ),
    "flatten": _Command(
        Word.FLATTEN, OrderState.FLATTENED,
        "Everything that the trader holds is sold at market, then nothing is bought.",
        is_typed=True,
    ),
    "resume": _Command(
        Word.RESUME, OrderState.RESUMED, "Trading goes on, and limits count anew.", is_typed=True
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Description:
    """What an action would do. typed: what is to be typed to confirm it, "" = nothing."""

    text: str
    typed: str = ""


async def run_trainer(arguments: Sequence[str]) -> tuple[int, str, str]:
    """Raises: Failure: it does not end."""
    return await run_module("trainer", arguments, timeout_s=_TRAINER_S)


class Actions:
    """config: of the command line, for the commands that are run; "" = built-in settings."""

    names = ("promote", "rollback", *_COMMANDS)

    def __init__(
        self,
        settings: Settings,
        dashboard: Dashboard,
        config: str = "",
        trainer: Trainer = run_trainer,
    ) -> None:
        self._mode = settings.trader.mode
        self._dashboard = dashboard
        self._config = ("-c", config) if config else ()
        self._trainer = trainer
        self._busy = asyncio.Lock()

    async def describe(self, action: str, argument: str) -> Description:
        """What would happen.

        Raises:
            Failure: there is no such action, or it cannot be done.
        """
        if (command := _COMMANDS.get(action)) is not None:
            if self._mode == OBSERVE:
                raise Failure("the trader only observes: there is nothing to switch")
            account = "real money" if self._mode == "live" else f"{self._mode} account"
            typed = action.upper() if command.is_typed else ""
            return Description(f"{command.meaning} ({account})", typed)
        releases = await asyncio.to_thread(self._dashboard.library.look)
        live = releases["live"] or "none"
        if action == "promote":
            if not is_release_id(argument):
                raise Failure("that is no release")
            if argument == live:
                raise Failure(f"{argument} is live already")
            return Description(
                f"Make release {argument} live in place of {live}. The gates of `trainer promote` "
                "decide; the predictor takes it from the next candle on."
            )
        if action == "rollback":
            if releases["back"] is None:
                raise Failure("there is no earlier release to roll back to")
            return Description(
                f"Make the earlier release {releases['back']} live again in place of {live}."
            )
        raise Failure("there is no such action")

    async def do(self, action: str, argument: str, address: str) -> str:
        """Does it; what was done, in words. The bus is told who did it.

        Raises:
            Failure: it was refused or failed; the text says why.
        """
        await self.describe(action, argument)  # may have changed meanwhile
        if (command := _COMMANDS.get(action)) is not None:
            return await self._throw(action, command, address)
        if self._busy.locked():
            raise Failure("another action is under way; wait for it")
        async with self._busy:
            line = (action, *((argument,) if action == "promote" else ()), "--json", *self._config)
            text = await self._train(line)
        if (session := self._dashboard.session) is not None:
            await _tell(session, action, text, address)
        return text

    # -- the trader ---------------------------------------------------------------------------

    async def _throw(self, action: str, command: _Command, address: str) -> str:
        session = self._dashboard.session
        remedy = "on the trader's machine `itb halt` works without the bus"
        if session is None:
            raise Failure(f"{self._dashboard.hub.trouble}; {remedy}")
        text = text_of(command.word, time.time_ns() // 1_000_000, f"dashboard {address}")
        try:
            await session.bus.put(CONTROL_KEY, text)
            await _tell(session, action, f"{command.word} is ordered", address)
            state = await _state(session, command.state)
        except (Unavailable, OutOfSync) as error:
            raise Failure(f"{error}: nobody knows whether it was ordered; {remedy}") from None
        if state == command.state:
            return f"{command.word}: the trader has confirmed it"
        if state is None:
            return (
                f"{command.word} is ordered; no trader is there now, and the next one obeys it "
                "before anything else"
            )
        raise Failure(
            f"{command.word} is ordered, but the trader says {state}: see its log, and whether a "
            "control file on its machine orders something else"
        )

    # -- the trainer --------------------------------------------------------------------------

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


async def _tell(session: Session, action: str, text: str, address: str) -> None:
    text = f"{text}, by the dashboard ({address})"
    await session.notice(Level.WARNING, f"dashboard_{action}", text)


async def _state(session: Session, wanted: OrderState) -> str | None:
    """What the trader says of its switch, as soon as it is what is wanted, at the latest after
    _CONFIRM_S; None where there is no trader."""
    deadline = time.monotonic() + _CONFIRM_S
    while True:
        own = trading(await heartbeats(session.bus))
        state = None if own is None else str(own.get("switch", "nothing of it"))
        if state in (None, wanted) or time.monotonic() >= deadline:
            return state
        await asyncio.sleep(_LOOK_S)
