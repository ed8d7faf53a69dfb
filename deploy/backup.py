"""`itb backup` and `itb restore`: the bus as one file.

A backup is a tar archive of the server's append-only files, taken while everything runs: the
server first writes them anew, and leaves that alone as long as they are read. What is added
meanwhile may be cut off in the middle of a command; a restore mends that. It must be taken where
the server's folder is: on its machine, or in its container.

A restore puts these files in the place of those of a server that does not run. What stood there is
kept beside them.
"""

import asyncio
import contextlib
import fcntl
import io
import os
import re
import shutil
import socket
import tarfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from deploy.valkey import repair
from shared.errors import BadInput, Failure
from shared.link import Link

AOF = "appendonlydir"
_NAME = re.compile(rf"{AOF}/[\w.-]+\.(?:aof|rdb|manifest)")
_LOCK = ".in-use"
_PAUSE_S = 0.05
_REWRITE_S = 600.0


async def back_up(url: str, out: BinaryIO) -> int:
    """Writes the archive; its number of files.

    Raises:
        Unavailable, Failure: the server does not answer, its files are not here, or another
            backup is being taken.
    """
    link = Link(url, name="itb:backup")
    await link.connect()
    try:
        folder = Path(await _setting(link, "dir")) / await _setting(link, "appenddirname")
        if not any(folder.glob("*.manifest")):
            raise Failure(
                f"{folder} is not here: take the backup on the server's machine, or in its "
                "container (docker compose exec -T redis itb backup)"
            )
        with _alone(folder):
            async with _left_alone(link):
                return await asyncio.to_thread(_pack, folder, out)
    finally:
        await link.close()


async def _setting(link: Link, name: str) -> str:
    reply = await link.one("CONFIG", "GET", name)
    return str(reply[1].decode())


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Of several backups at a time, one. The lock ends with its process, however that ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failure(f"another backup of {folder} is being taken: wait for its end") from None
        yield
    finally:
        os.close(descriptor)


@contextlib.asynccontextmanager
async def _left_alone(link: Link) -> AsyncIterator[None]:
    """The files are written anew, then not again until the end."""
    name = "auto-aof-rewrite-percentage"
    before = await _setting(link, name)
    if before == "0":  # a backup that was killed has left it so: back to the server's default
        before = "100"
    await link.one("CONFIG", "SET", name, 0)
    try:
        await _rewritten(link)
        await link.one("BGREWRITEAOF")
        await _rewritten(link)
        yield
    finally:
        await link.one("CONFIG", "SET", name, before)


async def _rewritten(link: Link) -> None:
    deadline = time.monotonic() + _REWRITE_S
    while time.monotonic() < deadline:
        lines = bytes(await link.one("INFO", "persistence")).decode().splitlines()
        facts = dict(line.partition(":")[::2] for line in lines)
        busy = ("aof_rewrite_in_progress", "aof_rewrite_scheduled")
        if all(facts[name] == "0" for name in busy):
            if facts["aof_last_bgrewrite_status"] != "ok":
                raise Failure("the server cannot write its files anew: is its disk full?")
            return
        await asyncio.sleep(_PAUSE_S)
    raise Failure(f"the server did not write its files anew within {_REWRITE_S:.0f} s")


def _pack(folder: Path, out: BinaryIO) -> int:
    """As the files are now: the last one may grow meanwhile."""
    manifest = next(folder.glob("*.manifest"))
    names = _listed(manifest)
    with tarfile.open(fileobj=out, mode="w|") as archive:
        for path in (manifest, *(folder / name for name in names)):
            with path.open("rb") as file:
                entry = archive.gettarinfo(arcname=f"{AOF}/{path.name}", fileobj=file)
                archive.addfile(entry, file)
    return 1 + len(names)


def restore(source: BinaryIO, folder: Path, say: Callable[[str], None]) -> int:
    """Puts the archive's files into `folder`; their number.

    Raises:
        BadInput: it is no backup; nothing was changed.
        Failure: a server runs on this folder, or the files cannot be mended.
    """
    new, place = folder / f"{AOF}.new", folder / AOF
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.close(hold(folder))
        if _answers(folder / "valkey.sock"):
            raise Failure(f"a server runs on {folder}: stop everything first")
        shutil.rmtree(new, ignore_errors=True)
        count = _unpack(source, new)
        if place.exists():
            kept = folder / f"{AOF}.before-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}"
            place.rename(kept)
            say(f"what stood there is kept as {kept}")
        new.rename(place)
    except OSError as error:
        raise Failure(f"{folder} cannot be written: {error.strerror}") from None
    repair(folder, say)
    return count


def hold(folder: Path) -> int:
    """A descriptor that keeps others from using the folder as long as it is open.

    Raises:
        Failure: another server, or a restore, has it.
    """
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise Failure(f"a server runs on {folder}: stop everything first") from None
    return descriptor


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _unpack(source: BinaryIO, folder: Path) -> int:
    found: set[str] = set()
    try:
        with tarfile.open(fileobj=source, mode="r|") as archive:
            folder.mkdir()
            for entry in archive:
                if not entry.isreg() or not _NAME.fullmatch(entry.name):
                    raise BadInput(f"this is no backup of a bus: it holds {entry.name}")
                file = archive.extractfile(entry) or io.BytesIO()
                with (folder / Path(entry.name).name).open("wb") as out:
                    shutil.copyfileobj(file, out)
                found.add(Path(entry.name).name)
        listed = {name for one in folder.glob("*.manifest") for name in _listed(one)}
        if not listed or not listed <= found:
            raise BadInput("this is no backup of a bus, or not all of it: files are missing")
    except tarfile.TarError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise BadInput(f"this is no backup of a bus, or not all of it: {error}") from None
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return len(found)


def _listed(manifest: Path) -> list[str]:
    return re.findall(r"^file (\S+)", manifest.read_text(), re.MULTILINE)
