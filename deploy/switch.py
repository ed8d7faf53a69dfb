"""`itb halt`, `itb resume`, `itb flatten`: the trader's switch, thrown by a person at a terminal.

The command goes onto the bus; where that does not answer, halting still works by the file that the
trader of this machine reads. Then the trader is watched until it says that it has understood.
"""

import asyncio
import time
from functools import partial
from pathlib import Path

from deploy.observer import Observer
from shared.bus import Bus
from shared.config import Settings
from shared.control import CONTROL_FILE, CONTROL_KEY, Word, text_of
from shared.errors import Failure
from shared.events import OrderState
from shared.heartbeats import heartbeats, trading
from shared.ledger import NEW_ACCOUNT
from trader.places import OBSERVE, journal_folder

_PATIENCE_S = 3.0
_CONFIRM_S = 10.0
_MEANS = {
    Word.HALT: (
        "HALTED",
        "no order is sent any more, no exit either; an entry that still waits is cancelled; stops "
        "and targets at the exchange stay",
    ),
    Word.REDUCE_ONLY: ("REDUCED", "nothing is bought; exits and protection go on"),
    Word.FLATTEN: ("FLATTENED", "everything is sold at market, then nothing is bought"),
    Word.RESUME: ("RESUMED", "trading goes on"),
}


async def throw(
    word: Word, settings: Settings, url: str, *, new_account: bool = False
) -> tuple[bool, str]:
    """(whether the trader has confirmed it, one line for the person).

    Raises:
        Failure: neither bus nor file could be written.
    """
    at_ms = time.time_ns() // 1_000_000
    text = text_of(word, at_ms, f"itb {NEW_ACCOUNT}" if new_account else "itb")
    file = journal_folder(settings) / CONTROL_FILE
    said = ""
    if word is Word.RESUME and file.exists():
        _remove(file)
        said = f"removed {file}; "
    try:
        async with Observer(url, patience_s=_PATIENCE_S) as observer:
            await observer.ask(partial(_put, text=text))
            state = await _confirmed(observer, word)
    except Failure as error:
        if word is Word.RESUME:
            raise Failure(f"{said}{error}: the trader was not told to go on") from None
        _write(file, f"{word}\n")
        return False, (
            f"{word}: {error}; so it stands in {file}, which a trader of this machine obeys within "
            "a second. `itb resume` takes it away"
        )
    wanted, meaning = _MEANS[word]
    if state == wanted:
        return True, f"{said}{word}: the trader has confirmed it: {meaning}"
    if state is None:
        return False, (
            f"{said}{word} stands on the bus; no trader is there now: the next one obeys it before "
            "anything else"
        )
    if settings.trader.mode == OBSERVE:
        return False, f"{said}{word} stands on the bus; the trader only observes"
    return False, f"{said}{word} stands on the bus, but the trader says {state}: see its log"


async def _put(bus: Bus, text: str) -> None:
    await bus.put(CONTROL_KEY, text)


async def _confirmed(observer: Observer, word: Word) -> str | None:
    """What the trader's heartbeat says of its switch; None where there is no trader."""
    deadline = time.monotonic() + _CONFIRM_S
    state: str | None = None
    while time.monotonic() < deadline:
        beats = await observer.ask(heartbeats)
        own = trading(beats)
        if own is None:
            return None
        state = str(own.get("switch", OrderState.OBSERVED))
        if state in (_MEANS[word][0], OrderState.OBSERVED):
            return state
        await asyncio.sleep(0.2)
    return state


def _write(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Failure(
            f"the bus does not answer, and {file} cannot be written: {error.strerror}"
        ) from None


def _remove(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        raise Failure(
            f"{file} cannot be removed ({error.strerror}): the halt it orders is still in force"
        ) from None
