"""Each service's user of the server: its work is allowed, everything else is denied (FAULTS H3)."""

import asyncio
import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from deploy import keys
from deploy.acl import ACCESS, ADMIN, READER, USERS, acl_file
from notifier.service import Notifier
from shared import bus as bus_module
from shared.bus import Bus, Source, Step, Write
from shared.config import load
from shared.errors import Failure
from shared.events import Level, Notice
from shared.streams import (
    KLINE,
    NOTICE,
    ORDER,
    SIGNAL,
    STREAMS,
    Stream,
    dead_letters,
    health_key,
)
from tests.fakes.telegram import CHAT, TOKEN, FakeTelegram
from tests.notifier.desk import serving, settings
from tests.resilience.conftest import (
    FEATURES,
    models,  # noqa: F401  # a fixture, used by name
)
from tests.resilience.system import SERVICES, System
from tests.resilience.tape import record
from tests.valkey import Server

PASSWORDS = {name: f"password-of-{name}" for name in USERS}
_WATCHER = "user default on nopass ~* &* +@all"  # the tests' own eyes


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Server]:
    """A server with our ACL file; its default user, off in ours, is the test's."""
    server = _guarded(tmp_path / "guarded").start()
    yield server
    server.stop()


def _guarded(folder: Path) -> Server:
    folder.mkdir(parents=True)
    path = folder / "users.acl"
    lines = acl_file(PASSWORDS).splitlines()
    path.write_text("\n".join([_WATCHER, *lines[1:]]) + "\n")
    return Server(folder, "--aclfile", str(path))


def _admin(server: Server) -> "redis.Redis":
    return redis.Redis(port=server.port, decode_responses=True)


def _url(server: Server, user: str) -> str:
    return f"redis://{user}:{PASSWORDS[user]}@127.0.0.1:{server.port}/0"


def _key(stream: Stream[Any]) -> str:
    return stream.key("BTCUSDT", "1m")


def _allows(client: "redis.Redis", user: str, command: str) -> bool:
    """What the server would say, without doing it."""
    answer = client.execute_command("ACL", "DRYRUN", user, *shlex.split(command))
    return bool(answer == "OK")


def test_the_default_user_is_off_and_no_password_is_in_the_file() -> None:
    text = acl_file(PASSWORDS)
    assert text.splitlines()[0] == "user default off resetchannels -@all"
    assert not [password for password in PASSWORDS.values() if password in text]


def test_every_command_of_the_bus_is_granted_to_somebody() -> None:
    code = Path(bus_module.__file__).read_text()
    words = set(re.findall(r'"([A-Z]{3,})"', code))
    sub = {
        "STREAM",
        "SLOTS",
        "MAXLEN",
        "GROUPS",
        "CREATE",
        "DESTROY",
        "GROUP",
        "COUNT",
        "BLOCK",
        "STREAMS",
        "MKSTREAM",
    }
    sub |= {"MATCH", "MINID", "NOMKSTREAM", "BUSYGROUP", "LIST", "RETRYCOUNT", "JUSTID"}
    used = {word.lower() for word in words - sub}
    granted = set(re.findall(r"\+([a-z]+)", acl_file(PASSWORDS)))
    assert used <= granted, f"not granted to anybody: {used - granted}"
    assert {"xadd", "xack", "xreadgroup", "exec", "waitaof"} <= used  # the search finds them


@pytest.mark.parametrize("service", ACCESS)
async def test_a_service_may_do_its_work(guarded: Server, service: str) -> None:
    access = ACCESS[service]
    client = _admin(guarded)
    written = [*access.writes, NOTICE, *(dead_letters(_key(s)) for s in access.consumes)]
    commands = ["PING", "MULTI", "EXEC", "INFO server", "WAITAOF 1 0 10"]
    commands += ["CLIENT ID", "CLIENT LIST", f"CLIENT SETNAME itb:{service}"]
    for stream in written:
        key = f"'{_key(stream)}'"
        commands += [f"XADD {key} NOMKSTREAM 1-0 a b", f"XTRIM {key} MINID 1-0", f"DEL {key}"]
        commands += [f"XREVRANGE {key} + - COUNT 1", f"XLEN {key}", f"XINFO GROUPS {key}"]
        commands += [f"XPENDING {key} {service}"]
    for stream in access.consumes:
        key = f"'{_key(stream)}'"
        commands += [f"XGROUP CREATE {key} {service} 0 MKSTREAM", f"XACK {key} {service} 1-0"]
        commands += [f"XREADGROUP GROUP {service} me COUNT 1 BLOCK 1 STREAMS {key} >"]
        commands += [f"XPENDING {key} {service} - + 1 me", f"XRANGE {key} - + COUNT 1"]
        commands += [f"XCLAIM {key} {service} me 0 1-0 RETRYCOUNT 1 JUSTID"]
        commands += [f"XAUTOCLAIM {key} {service} me 0 0-0 COUNT 1 JUSTID"]
    for stream in access.looks:
        commands += [f"XRANGE '{_key(stream)}' - +", f"XINFO GROUPS '{_key(stream)}'"]
        commands += [f"XREAD COUNT 1 STREAMS '{_key(stream)}' 0", f"XINFO STREAM '{_key(stream)}'"]
    commands += [f"SET {health_key(service, 'one')} x PX 1", f"GET {health_key(service, 'one')}"]
    denied = [command for command in commands if not _allows(client, service, command)]
    assert not denied


@pytest.mark.parametrize("service", ACCESS)
def test_a_stolen_password_opens_nothing_else(guarded: Server, service: str) -> None:
    access = ACCESS[service]
    client = _admin(guarded)
    writes = {stream.name for stream in (*access.writes, NOTICE)}
    commands = [
        "EVAL 'return 1' 0", "EVALSHA x 0", "FUNCTION LOAD x", "SCRIPT LOAD x", "FCALL x 0",
        "CONFIG GET *", "CONFIG SET dir /tmp", "FLUSHALL", "FLUSHDB", "KEYS *", "SHUTDOWN",
        "DEBUG SLEEP 1", "REPLICAOF 127.0.0.1 1", "MODULE LOAD x", "ACL LIST", "ACL SETUSER x on",
        "CLIENT KILL ID 1", "CLIENT PAUSE 1000", "SAVE", "BGREWRITEAOF", "MONITOR", "SWAPDB 0 1",
        "MIGRATE 127.0.0.1 1 x 0 1", "RENAME a b", "SUBSCRIBE x", "PUBLISH x y",
        "SET other x", "GET other", f"SET {health_key('somebody', 'x')} x",
    ]  # fmt: skip
    for stream in STREAMS:
        if stream.name in writes:
            continue
        key = f"'{_key(stream)}'"
        commands += [f"XADD {key} 1-0 a b", f"DEL {key}", f"XTRIM {key} MINID 1-0"]
        commands += [f"XSETID {key} 9-0", f"XDEL {key} 1-0"]
        if stream not in access.consumes:
            commands += [f"XGROUP CREATE {key} g 0", f"XACK {key} g 1-0"]
    allowed = [command for command in commands if _allows(client, service, command)]
    assert not allowed


def test_the_reader_reads_everything_and_writes_nothing(guarded: Server) -> None:
    client = _admin(guarded)
    for stream in STREAMS:
        key = f"'{_key(stream)}'"
        assert _allows(client, READER, f"XRANGE {key} - +")
        assert _allows(client, READER, f"XINFO GROUPS {key}")
        assert not _allows(client, READER, f"XADD {key} 1-0 a b")
        assert not _allows(client, READER, f"XREADGROUP GROUP g me STREAMS {key} >")
        assert not _allows(client, READER, f"DEL {key}")
    assert _allows(client, READER, "SCAN 0")
    assert _allows(client, READER, "CLIENT LIST")
    assert not _allows(client, READER, "CONFIG GET *")
    assert not _allows(client, READER, "CLIENT KILL ID 1")
    assert _allows(client, ADMIN, "CONFIG GET *")


async def test_a_session_by_user_and_password_file(
    guarded: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "password"
    secret.write_text(PASSWORDS["predictor"] + "\n")
    monkeypatch.setenv("ITB_REDIS_URL", f"redis://predictor@127.0.0.1:{guarded.port}/0")
    monkeypatch.setenv("ITB_REDIS_PASSWORD_FILE", str(secret))
    settings = load()
    assert PASSWORDS["predictor"] not in repr(settings)
    signals = Source(SIGNAL, "BTCUSDT", "1m")
    async with Bus.session(settings.bus_url, service="predictor") as bus:
        assert await bus.last_id(signals) is None
        notice = Notice(
            service="predictor", level=Level.INFO, code="x", text="hello", time_ms=1,
            symbol="", open_time_ms=None,
        )  # fmt: skip
        await bus.commit([Step(input=None, writes=[Write(source=Source(NOTICE), event=notice)])])
        with pytest.raises(Failure, match="check the user's ACL"):
            await bus.get("other")
        with pytest.raises(Failure, match="check the user's ACL"):
            await bus.join([Source(KLINE, "BTCUSDT", "1m")])
        with pytest.raises(Failure, match="check the user's ACL"):
            await bus.length(Source(ORDER, "BTCUSDT"))


async def test_a_wrong_password_is_one_clear_line(guarded: Server) -> None:
    url = f"redis://predictor:wrong@127.0.0.1:{guarded.port}/0"
    with pytest.raises(Failure, match="check the user in redis_url") as error:
        async with Bus.session(url, service="predictor"):
            pass
    assert "wrong" not in str(error.value).replace("WRONGPASS", "")


def test_passwords_are_made_once_kept_and_rotated(tmp_path: Path) -> None:
    assert set(keys.make(tmp_path)) == set(USERS)
    first = {user: keys.password_file(tmp_path, user).read_text() for user in USERS}
    assert len(set(first.values())) == len(USERS)
    assert min(len(text.strip()) for text in first.values()) >= 43  # 256 bits
    modes = {keys.password_file(tmp_path, user).stat().st_mode & 0o777 for user in USERS}
    assert modes == {0o400}
    assert keys.make(tmp_path) == []
    assert {user: keys.password_file(tmp_path, user).read_text() for user in USERS} == first
    assert set(keys.make(tmp_path, rotate=True)) == set(USERS)
    second = {user: keys.password_file(tmp_path, user).read_text() for user in USERS}
    assert not set(first.values()) & set(second.values())


def test_the_server_takes_the_file_that_is_made(tmp_path: Path) -> None:
    keys.make(tmp_path / "keys")
    path = tmp_path / "keys" / "redis" / "users.acl"
    password = keys.password_file(tmp_path / "keys", "trader").read_text().strip()
    # The default user is off: the test's server asks with nobody's name, so it is put in first.
    text = path.read_text().replace("user default off", "user default on nopass", 1)
    path.chmod(0o600)
    path.write_text(text.replace("nopass resetchannels -@all", "nopass +ping", 1))
    server = Server(tmp_path / "server", "--aclfile", str(path)).start()
    try:
        client = redis.Redis(port=server.port, username="trader", password=password)
        assert client.ping()
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.set("x", "y")
    finally:
        server.stop()


class _Guarded(System):
    """The whole system, each service signed in as its own user."""

    def __init__(self, folder: Path, *arguments: Any, **options: Any) -> None:
        super().__init__(folder, *arguments, **options)
        self.server = _guarded(folder / "guarded")

    def environment(self, name: str) -> dict[str, str]:
        found = super().environment(name)
        if name in SERVICES:
            found["ITB_REDIS_URL"] = _url(self.server, name)
        return found


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_the_whole_system_works_under_its_users(
    tmp_path: Path,
    models: Path,  # noqa: F811  # the fixture
) -> None:
    tape = record(tmp_path, history=300, live=40, seed=1)
    async with _Guarded.running(tmp_path / "system", tape, models, FEATURES) as system:
        await system.until_ready()
        await system.advance(20)
        await system.until(lambda: system.behind == 0, "the signals of 20 candles")
        with _admin(system.server) as client:
            log = client.execute_command("ACL", "LOG")
            users = {line["user"] for line in client.client_list()}
        assert not system.surprises, system.tails()
    assert log == []
    assert set(SERVICES) <= users


async def test_the_bot_hears_and_answers_under_its_user(guarded: Server) -> None:
    """What it keeps about Telegram's updates is a key like any other."""
    async with FakeTelegram(clock=lambda: time.time() - 1_700_000_000) as telegram:
        config = settings(
            redis_url=_url(guarded, "notifier"),
            telegram_bot_token=TOKEN,
            telegram_chat_id=str(CHAT),
            telegram_url=telegram.url,
            notifier={"messages_per_minute": 1800, "users": [CHAT], "watch": []},
        )
        notifier = Notifier(retry_s=(0.01, 0.05))
        async with serving(config.bus_url, "notifier", notifier.serve, config):
            for command, words in (
                ("/score", "No signal"), ("/mute 5", "muted"), ("/halt", "HALT"),
                ("/resume", "within 60 s"), ("/status", "ready"), ("/trades", "No trades"),
            ):  # fmt: skip
                sent = len(telegram.chats[CHAT].messages)
                await telegram.say(command)
                async with asyncio.timeout(60):
                    await telegram.until(sent + 2)  # the command, and what it is answered
                assert words.lower() in telegram.texts()[-1].lower()
    assert _admin(guarded).get(f"telegram:{TOKEN.partition(':')[0]}:offset")
