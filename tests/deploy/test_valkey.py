"""The embedded server starts as the services need it, and after what a power cut leaves."""

import os
import signal
from pathlib import Path

import pytest

from deploy.supervisor import Supervisor
from deploy.valkey import EmbeddedValkey, check_free, free_port, repair
from shared.bus import Bus
from shared.errors import Failure
from shared.link import Link
from tests.valkey import Server
from tests.waiting import until


async def test_services_accept_it_and_its_data_survives_a_kill(tmp_path: Path) -> None:
    said: list[str] = []
    server = EmbeddedValkey(folder=tmp_path / "valkey", port=free_port(), say=said.append)
    async with Supervisor(tmp_path / "logs", said.append) as supervisor:
        await supervisor.start(server.program())
        await server.wait_ready()
        for url in (server.url, server.local_url):
            async with Bus.session(url, service="test") as bus:  # checks version, AOF, policy
                await bus.put("key", "value")
        pid = supervisor.pid("valkey")
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: supervisor.restarts("valkey") == 1)
        await server.wait_ready()
        async with Bus.session(server.url, service="test") as bus:
            assert await bus.get("key") == b"value"
    server.remove_socket()
    assert len(said) == 1
    assert said[0].startswith("valkey was killed by signal 9")


async def test_a_path_too_long_for_a_socket_gets_a_short_one(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 60) / ("y" * 60)
    server = EmbeddedValkey(folder=folder, port=free_port(), say=lambda _: None)
    assert len(str(server.socket)) < 100
    server.remove_socket()
    assert not server.socket.parent.exists()


def _values(folder: Path) -> tuple[Server, Path]:
    server = Server(folder).start()
    return server, next((folder / "appendonlydir").glob("*.incr.aof"))


@pytest.mark.parametrize(
    ("damage", "kept"),
    [
        (lambda data: data + b"\0" * 4096, 20),  # the tail a power cut leaves on some file systems
        (lambda data: data[:-7], 19),  # cut inside EXEC: the whole transaction goes
        (lambda data: data, 20),
    ],
    ids=["zero-filled", "cut in a transaction", "whole"],
)
async def test_a_damaged_tail_is_cut_off_and_kept_as_a_copy(
    tmp_path: Path, damage: object, kept: int
) -> None:
    folder = tmp_path / "valkey"
    server, path = _values(folder)
    link = Link(server.url, name="test")
    await link.connect()
    for i in range(20):
        await link.call(("MULTI",), ("SET", f"a{i}", i), ("SET", f"b{i}", i), ("EXEC",))
    # A busy disk keeps acknowledged writes in the server's memory for a while.
    assert (await link.one("WAITAOF", 1, 0, 20_000, wait_s=20))[0] == 1
    await link.close()
    server.kill9()
    whole = path.read_bytes()
    damaged = damage(whole)  # type: ignore[operator]  # parametrized
    path.write_bytes(damaged)
    said: list[str] = []
    repair(folder, said.append)
    copies = list(folder.glob("*.damaged-*"))
    assert [copy.read_bytes() for copy in copies] == ([] if damaged == whole else [damaged])
    assert len(said) == len(copies)
    server.start()
    await link.connect()
    assert await link.one("DBSIZE") == 2 * kept
    await link.one("SET", "after", 1)  # what is written now survives the next start too
    await link.close()
    server.kill9()
    repair(folder, said.append)
    server.start()
    await link.connect()
    assert await link.one("DBSIZE") == 2 * kept + 1
    await link.close()
    server.stop()
    assert len(said) == len(copies)


def test_a_taken_port_is_named_with_the_remedy(valkey: Server) -> None:
    with pytest.raises(Failure, match=rf"port {valkey.port} .* is taken .*--redis-port"):
        check_free(valkey.port, option="--redis-port")
