"""No secret in any log, metric, stream, exception or file that anybody else reads (FAULTS I9, N4).

The whole system runs with secrets that nothing else would ever contain, through failures that carry
them: a Telegram that is not there (its address holds the token), a server of the bus that dies and
comes back, refused passwords, an exchange of errors. Then everything it said is searched.
"""

import asyncio
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.resilience.conftest import (
    FEATURES,
    models,  # noqa: F401  # a fixture, used by name
)
from tests.resilience.system import SERVICES, System
from tests.resilience.tape import record
from tests.valkey import free_port

CANARIES = {
    "api_key": "canaryKey4711canaryKey4711canaryKey",
    "api_secret": "canarySecret0815canarySecret0815cana",
    "telegram_bot_token": "987654321:AAcanaryTokencanaryTokencanaryToken1",
    "redis_password": "canaryPassword-4242-canaryPassword",
}
_HALVES = [text[:20] for text in CANARIES.values()]  # a part of one is as bad


def _files(folder: Path) -> dict[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, text in CANARIES.items():
        path = folder / name
        path.write_text(text + "\n")
        found[f"ITB_{name.upper()}_FILE"] = str(path)
    return found


class _WithSecrets(System):
    """Every service knows every secret, and says all it can (log level debug)."""

    def __init__(self, folder: Path, *arguments: Any, **options: Any) -> None:
        super().__init__(folder, *arguments, **options)
        self.ports = {name: free_port() for name in SERVICES}
        self._secrets = _files(folder / "secrets")
        acl = folder / "users.acl"
        acl.write_text(
            "user default on nopass ~* &* +@all\n"
            f"user itb on >{CANARIES['redis_password']} ~* &* +@all\n"
        )
        self.server.options = ("--aclfile", str(acl))

    def environment(self, name: str) -> dict[str, str]:
        found = super().environment(name)
        if name not in SERVICES:
            return found
        return found | self._secrets | {
            "ITB_REDIS_URL": f"redis://itb@127.0.0.1:{self.server.port}/0",
            "ITB_TELEGRAM_URL": f"http://127.0.0.1:{free_port()}",
            "ITB_TELEGRAM_CHAT_ID": "4242",
            "ITB_LOG_LEVEL": "debug",
            "ITB_METRICS_PORT": str(self.ports[name]),
        }  # fmt: skip


def _page(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as reply:  # noqa: S310  # our own address
        found: bytes = reply.read()
    return found


def _in_trouble(metrics: bytes) -> bool:
    lines = [line for line in metrics.splitlines() if line.startswith(b"itb_message_trouble")]
    return any(float(line.split()[-1]) > 0 for line in lines)


def _dump(client: "redis.Redis") -> bytes:
    """Every key's whole content, as the server would save it."""
    parts = []
    for key in client.scan_iter("*", count=1000):
        kind = client.type(key)
        parts.append(key)
        if kind == b"stream":
            parts += [b" ".join(f.keys()) + b" ".join(f.values()) for _, f in client.xrange(key)]
        elif kind == b"string":
            parts.append(client.get(key))
    return b"\n".join(parts)


def _all_but_the_notifier(system: System) -> bool:
    """It cannot be ready: there is no Telegram."""
    return all(system.is_ready(name) for name in SERVICES if name != "notifier")


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_no_canary_is_found_anywhere_after_failures(
    tmp_path: Path,
    models: Path,  # noqa: F811  # the fixture
) -> None:
    tape = record(tmp_path, history=1_600, live=60, seed=3)
    async with _WithSecrets.running(tmp_path / "system", tape, models, FEATURES) as system:
        await system.until(lambda: _all_but_the_notifier(system), "services")
        await system.advance(20)
        await system.until(lambda: system.behind == 0, "signals")
        await system.control("faults", kind="status", status=503, count=5)
        await system.kill_valkey(lose=None, down_s=1.0)
        for name in SERVICES:
            system.kill(name)
        await system.until(lambda: _all_but_the_notifier(system), "services")
        await system.advance(10)
        await system.until(lambda: system.behind == 0, "signals after the failures")
        # Messages wait for the Telegram that is not there: its address, with the token, was tried.
        metrics = f"http://127.0.0.1:{system.ports['notifier']}/metrics"
        async with asyncio.timeout(60):
            while not _in_trouble(await asyncio.to_thread(_page, metrics)):  # noqa: ASYNC110  # HTTP
                await asyncio.sleep(0.2)
        said: dict[str, bytes] = {}
        for name, port in system.ports.items():
            for page in ("metrics", "ready", "live"):
                url = f"http://127.0.0.1:{port}/{page}"
                said[f"{name}/{page}"] = await asyncio.to_thread(_page, url)
        with system.client as client:
            said["bus"] = _dump(client)
            said["clients"] = repr(client.client_list()).encode()
    for path in (tmp_path / "system").rglob("*"):
        if path.is_file() and "secrets" not in path.parts and path.name != "users.acl":
            said[str(path.name)] = path.read_bytes()
    assert len(said) > 3 * len(SERVICES) + 2
    assert b"TESTUSDT" in said["bus"]
    logs = b"".join(text for name, text in said.items() if name.endswith(".log"))
    assert b"session lost" in logs  # the failures were met, and told
    hits = {name: half for name, text in said.items() for half in _HALVES if half.encode() in text}
    assert not hits


@pytest.mark.parametrize(
    ("service", "more"),
    [
        ("predictor", {"ITB_REDIS_URL": "redis://itb@127.0.0.1:{port}/0"}),
        ("predictor", {"ITB_REDIS_URL": "redis://itb@127.0.0.1:{port}/nothing"}),
        ("predictor", {"ITB_REDIS_URL": "strange://itb@127.0.0.1:{port}/0"}),
        ("notifier", {"ITB_INTERVAL": "7 weeks"}),
        ("notifier", {"ITB_API_KEY": "both", "ITB_REDIS_URL": "redis://itb:x@127.0.0.1:{port}/0"}),
    ],
)
def test_last_words_hold_no_secret(
    tmp_path: Path, valkey: Any, service: str, more: dict[str, str]
) -> None:
    """Refused users, bad addresses, bad values: one line each, and none of the secrets in it."""
    environment = _files(tmp_path / "secrets") | {
        name: text.format(port=valkey.port) for name, text in more.items()
    }
    done = subprocess.run(
        [sys.executable, "-m", service],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[2])} | environment,
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode in (1, 2), done.stderr
    said = done.stdout + done.stderr
    assert said.strip().splitlines()[-1].startswith("error: ")
    assert not [half for half in _HALVES if half in said]
