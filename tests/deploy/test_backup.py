"""The bus as one file: by the commands of docs/operations.md."""

import asyncio
import contextlib
import io
import os
import subprocess
import sys
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest
import redis

from deploy.backup import AOF, back_up, hold, restore
from shared.errors import BadInput, Failure
from tests.valkey import Server, free_port
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
STREAMS = ("kline:{BTCUSDT}:1m", "order:{BTCUSDT}")


def itb(*arguments: str, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [sys.executable, "-m", "deploy.cli", *arguments],
        cwd=ROOT, input=stdin, capture_output=True, check=False, timeout=100,
    )  # fmt: skip


def fill(server: Server, first: int, count: int) -> None:
    with redis.Redis.from_url(server.url) as client:
        for stream in STREAMS:
            for n in range(first, first + count):
                client.xadd(stream, {"data": b"\x00\xff" * 100}, id=f"{n}-0")
        if first == 1:
            client.xgroup_create(STREAMS[0], "featurizer", "0")
            client.xreadgroup("featurizer", "me", {STREAMS[0]: ">"}, count=5)
            client.xack(STREAMS[0], "featurizer", "1-0")
            client.set("schema:x", '["close_1"]')


def content(server: Server) -> object:
    """All entries, groups and plain keys."""
    with redis.Redis.from_url(server.url) as client:
        groups = client.xinfo_groups(STREAMS[0])
        pending = client.xpending_range(STREAMS[0], "featurizer", "-", "+", 100)
        return (
            {stream: client.xrange(stream) for stream in STREAMS},
            [(g["name"], g["last-delivered-id"], g["pending"], g["entries-read"]) for g in groups],
            [(one["message_id"], one["consumer"], one["times_delivered"]) for one in pending],
            client.get("schema:x"),
        )


def test_what_was_backed_up_is_all_there_again(tmp_path: Path) -> None:
    server = Server(tmp_path / "bus").start()
    file = tmp_path / "bus.tar"
    try:
        fill(server, 1, 500)
        before = content(server)
        done = itb("backup", str(file), "--redis-url", server.url)
        assert done.returncode == 0, done.stderr.decode()
        assert done.stdout.startswith(f"wrote {file}: 3 files".encode())
        fill(server, 501, 10)
        with redis.Redis.from_url(server.url) as client:
            assert client.config_get("auto-aof-rewrite-percentage") != {
                "auto-aof-rewrite-percentage": "0"
            }
            client.flushall()
    finally:
        server.stop()
    done = itb("restore", str(file), "--folder", str(server.dir))
    assert done.returncode == 0, done.stderr.decode()
    assert b"what stood there is kept as" in done.stderr
    again = Server(server.dir).start()
    try:
        assert content(again) == before
    finally:
        again.stop()


def test_it_is_taken_while_the_bus_is_written_to_and_goes_through_a_pipe(tmp_path: Path) -> None:
    server = Server(tmp_path / "bus").start()
    try:
        fill(server, 1, 50)
        writer = subprocess.Popen(
            [sys.executable, "-c",
             "import redis, sys\n"
             "c = redis.Redis.from_url(sys.argv[1])\n"
             "n = 1000\n"
             "while True:\n"
             "    c.xadd(sys.argv[2], {'data': 'x' * 500}, id=f'{n}-0'); n += 1\n",
             server.url, STREAMS[1]],
        )  # fmt: skip
        try:
            done = itb("backup", "--redis-url", server.url)
        finally:
            writer.kill()
            writer.wait()
        assert done.returncode == 0, done.stderr.decode()
        with redis.Redis.from_url(server.url) as client:
            written = [one for one, _ in client.xrange(STREAMS[1])]  # type: ignore[union-attr]
    finally:
        server.stop()
    there = Server(tmp_path / "other")
    put = itb("restore", "-", "--folder", str(there.dir), stdin=done.stdout)
    assert put.returncode == 0, put.stderr.decode()
    there.start()
    try:
        with redis.Redis.from_url(there.url) as client:
            found = [one for one, _ in client.xrange(STREAMS[1])]  # type: ignore[union-attr]
        assert found == written[: len(found)]  # without a hole
        assert len(found) >= 50
    finally:
        there.stop()


class Held(io.BytesIO):
    """A file that takes nothing until it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.go_on = threading.Event(), threading.Event()

    def write(self, data: Any, /) -> int:
        self.reached.set()
        assert self.go_on.wait(60)
        return super().write(data)


def share(server: Server) -> Any:
    """Growth, in percent, at which the server writes its files anew by itself; 0: never."""
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        found: Any = client.config_get("auto-aof-rewrite-percentage")
        return found["auto-aof-rewrite-percentage"]


async def test_of_two_backups_the_second_is_refused_and_the_files_are_written_anew_again(
    tmp_path: Path,
) -> None:
    server = Server(tmp_path / "bus", "--auto-aof-rewrite-percentage", "70").start()
    out = Held()
    try:
        fill(server, 1, 50)
        first = asyncio.create_task(back_up(server.url, out))
        assert await asyncio.to_thread(out.reached.wait, 60)
        assert share(server) == "0"
        with pytest.raises(Failure, match="another backup"):
            await back_up(server.url, io.BytesIO())
        assert share(server) == "0"
        out.go_on.set()
        assert await first == 3
        assert share(server) == "70"
    finally:
        out.go_on.set()
        server.stop()


def test_a_backup_after_one_that_was_killed_lets_the_files_be_written_anew_again(
    tmp_path: Path,
) -> None:
    server = Server(tmp_path / "bus").start()
    try:
        fill(server, 1, 50)
        with redis.Redis.from_url(server.url) as client:
            client.config_set("auto-aof-rewrite-percentage", 0)  # as the killed one left it
        assert itb("backup", "--redis-url", server.url).returncode == 0
        assert share(server) == "100"
    finally:
        server.stop()


def test_what_is_no_backup_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "bus"
    (folder / AOF).mkdir(parents=True)
    (folder / AOF / "mine").write_text("x")
    server = Server(tmp_path / "source").start()
    try:
        fill(server, 1, 500)
        whole = itb("backup", "--redis-url", server.url).stdout
    finally:
        server.stop()
    evil = io.BytesIO()
    with tarfile.open(fileobj=evil, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../outside"))
    for data in (b"", b"nonsense" * 1000, whole[:1024], whole[: len(whole) // 2], evil.getvalue()):
        with pytest.raises(BadInput, match="no backup of a bus"):
            restore(io.BytesIO(data), folder, print)
        assert [path.name for path in (folder / AOF).iterdir()] == ["mine"]
        assert not (folder / f"{AOF}.new").exists()
    assert not (tmp_path / "outside").exists()


async def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:

    descriptor = hold(tmp_path)
    with pytest.raises(Failure, match="a server runs on"):
        restore(io.BytesIO(), tmp_path, print)
    os.close(descriptor)
    server = await asyncio.start_unix_server(lambda *_: None, tmp_path / "valkey.sock")
    async with server:
        with pytest.raises(Failure, match="a server runs on"):
            restore(io.BytesIO(), tmp_path, print)


def test_the_server_of_a_container_holds_its_folder_until_it_ends(tmp_path: Path) -> None:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy.bus", "--port", str(port), "--bind", "127.0.0.1"],
        cwd=ROOT, stdout=subprocess.DEVNULL,
        env={**os.environ, "ITB_BUS_FOLDER": str(tmp_path / "bus"), "ITB_BUS_ACL": ""},
    )  # fmt: skip

    def answers() -> bool:
        with contextlib.suppress(redis.ConnectionError), redis.Redis(port=port) as client:
            return bool(client.ping())
        return False

    try:
        wait_until(answers, "the server")
        done = itb("restore", "-", "--folder", str(tmp_path / "bus"))
        assert done.returncode == 1
        assert b"stop everything first" in done.stderr
    finally:
        process.kill()
        process.wait()
    os.close(hold(tmp_path / "bus"))


def test_a_server_elsewhere_cannot_be_backed_up_from_here(tmp_path: Path) -> None:
    server = Server(tmp_path / "bus").start()
    try:
        with redis.Redis.from_url(server.url) as client:
            client.set("a", "b")
        (server.dir / AOF).rename(tmp_path / "away")
        done = itb("backup", str(tmp_path / "f"), "--redis-url", server.url)
        assert done.returncode == 1
        assert b"take the backup on the server's machine" in done.stderr
        assert not list(tmp_path.glob("f*"))
    finally:
        server.stop()
