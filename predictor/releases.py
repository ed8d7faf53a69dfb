"""The release in use: taken from the model folder, verified, swapped between two candles."""

import asyncio
import logging
import time
from pathlib import Path

from shared.bundle import Bundle
from shared.config import Settings
from shared.errors import BadInput
from shared.events import Level
from shared.metrics import RELEASE, RELEASE_REFUSED
from shared.releases import current_folder, current_id
from shared.runtime import Session

log = logging.getLogger(__name__)
_POLL_S = 0.5
_AGAIN_S = 60.0  # a refused release is looked at again: somebody may have mended it


class ReleaseInUse:
    """Watches `model_folder/current`; a new release is loaded beside the old one and verified.

    `bundle` changes only inside `swap`, which the stage calls between two batches: no candle is
    missed and none is scored by half. A release that is refused leaves the old one in place.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._settings = session.settings
        self._folder = session.settings.model_folder
        self._bundle: Bundle | None = None
        self._next: Bundle | None = None
        self._refused: tuple[str, ...] = ()
        self._refused_link: tuple[int, ...] = ()
        self._again_s = 0.0

    @property
    def bundle(self) -> Bundle:
        if self._bundle is None:
            raise RuntimeError("no release is loaded yet")  # a programming error, never a state
        return self._bundle

    async def first(self) -> None:
        """Waits, visibly, until there is a release that can be used."""
        while self._bundle is None:
            self._session.alive()
            await self._look()
            if self._next is None:
                self._session.health.not_ready(
                    self._refused[-1]
                    if self._refused
                    else f"no release in {self._folder}: run `python -m trainer train`"
                )
                await asyncio.sleep(_POLL_S)
            self.swap()

    async def watch(self) -> None:
        """Looks for a promoted release, for ever."""
        while True:
            await asyncio.sleep(_POLL_S)
            await self._look()

    def swap(self) -> None:
        """Takes the release that was loaded, if any. Cheap; to be called between two batches."""
        if self._next is None:
            return
        self._bundle, self._next = self._next, None
        facts = {"release": self._bundle.id, "model_folder": str(self._folder.absolute())}
        self._session.health.facts.update(facts)
        self._session.metrics.only(RELEASE, self._bundle.id)
        log.info("release in use", extra={"release": self._bundle.id})

    async def _look(self) -> None:
        await self._look_once()
        self._session.metrics.set(RELEASE_REFUSED, float(bool(self._refused)))

    async def _look_once(self) -> None:
        try:
            found = await asyncio.to_thread(current_id, self._folder)
            known = self._next or self._bundle
            if found is None:
                return
            if known is not None and known.id == found:
                self._refused = ()
                return
            # Another one, the same promoted again, or time to see whether it was mended.
            link = _link(self._folder)
            if self._refused and link == self._refused_link and time.monotonic() < self._again_s:
                return
            self._refused_link, self._again_s = link, time.monotonic() + _AGAIN_S
            bundle = await asyncio.to_thread(_load, self._folder, self._settings)
        except BadInput as error:
            await self._refuse(_current_text(self._folder), str(error))
            return
        if bundle is None:
            return
        self._refused = ()
        self._next = bundle
        left_out = ", ".join(bundle.manifest.left_out)
        text = f"release {bundle.id} loaded"
        text += f"; it does without {left_out}" if left_out else ""
        text += f"; {bundle.note}" if bundle.note else ""
        level = Level.WARNING if bundle.note else Level.INFO
        await self._session.notice(level, "release", text)

    async def _refuse(self, release: str, reason: str) -> None:
        if self._refused == (release, reason):
            return
        self._refused = (release, reason)
        stays = f"; {self._bundle.id} stays in use" if self._bundle is not None else ""
        await self._session.notice(Level.ALERT, "release_refused", f"{reason}{stays}")


def _load(folder: Path, settings: Settings) -> Bundle | None:
    """Reads and verifies `current`; in a thread, since it takes longer than a candle may."""
    release = current_folder(folder)
    if release is None:
        return None
    bundle = Bundle.load(release, settings.limits.model_bytes)
    if bundle.manifest.interval != settings.interval:
        raise BadInput(
            f"release {bundle.id} refused: made for {bundle.manifest.interval} candles, the "
            f"config says {settings.interval}; train one for {settings.interval}"
        )
    return bundle


def _link(folder: Path) -> tuple[int, ...]:
    """What changes with every promote, of the same release too."""
    try:
        status = (folder / "current").lstat()
    except OSError:
        return ()
    return status.st_ino, status.st_mtime_ns


def _current_text(folder: Path) -> str:
    try:
        return (folder / "current").readlink().name
    except OSError:
        return ""
