"""The demo of docker-compose.yml on a real engine, from building the images to taking all down.

The tests of this file are one story and run in its order: `make docker-test`.
"""

import json
import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.docs.commands import How, every_command, rule_of
from tests.docs.registry import in_the_demo
from tests.valkey import free_port

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]
_ROOT = Path(__file__).parents[2]
_PROJECT = "itb-docker-test"
_BASE = os.environ.get("ITB_BASE", "python:3.11-slim-bookworm")
_TARGETS = ("live", "bus", "trainer")
_SERVICES = (
    "collector", "featurizer", "predictor", "notifier", "trader", "dashboard", "auditor",
)  # fmt: skip
_LIVE_BYTES = 400_000_000
_SIGNALS = "signal:{BTCUSDT}:1m"
_PATIENCE_S = 240.0
# Beside a system that runs here already, on the dashboard's usual port.
_ENVIRONMENT = {
    "COMPOSE_PROJECT_NAME": _PROJECT, "ITB_BASE": _BASE, "ITB_DASHBOARD_PORT": str(free_port()),
}  # fmt: skip


def _run(*command: str, check: bool = True, stdin: str = "", timeout_s: float = 600) -> str:
    done = subprocess.run(
        command, check=False, cwd=_ROOT, input=stdin, capture_output=True, encoding="utf-8",
        errors="backslashreplace", timeout=timeout_s,
        env=os.environ | _ENVIRONMENT,
    )  # fmt: skip
    if check and done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-40:])
        raise AssertionError(f"{' '.join(command)} ended with {done.returncode}:\n{tail}")
    return done.stdout


def _compose_command() -> tuple[str, ...]:
    try:
        done = subprocess.run(["docker", "compose", "version"], check=False, capture_output=True)
        return ("docker", "compose") if done.returncode == 0 else ("docker-compose",)
    except FileNotFoundError:
        return ("docker-compose",)


@dataclass(slots=True)
class Demo:
    """The running demo. up_s: how long it took from `up` until everything was healthy."""

    compose_command: tuple[str, ...] = field(default_factory=_compose_command)
    up_s: float = 0.0

    def compose(self, *arguments: str, check: bool = True, timeout_s: float = 600) -> str:
        line = (*self.compose_command, "--profile", "demo", *arguments)
        return _run(*line, check=check, timeout_s=timeout_s)

    def container(self, service: str) -> str:
        return self.compose("ps", "-q", f"demo-{service}").strip()

    def inspect(self, service: str) -> Any:
        return json.loads(_run("docker", "inspect", self.container(service)))[0]

    def health(self, service: str) -> str:
        state = self.inspect(service)["State"]
        return str(state.get("Health", {}).get("Status", "none")) if state["Running"] else "ended"

    def redis_cli(self, *arguments: str) -> str:
        return _run("docker", "exec", self.container("redis"), "redis-cli", *arguments).strip()

    def beat(self, service: str) -> dict[str, Any]:
        text = self.redis_cli("GET", f"health:{service}:{service}")
        return json.loads(text) if text else {}

    def inside(self, script: str) -> str:
        """Output of a Python program in a container of its own, signed in as the reader."""
        return _run(
            "docker", "run", "--rm", "-i", "--read-only", "--tmpfs", "/tmp",
            "--network", f"{_PROJECT}_demo", "-v", f"{_PROJECT}_keys-itb:/run/keys:ro",
            "-e", "ITB_REDIS_URL=redis://itb@redis:6379/0",
            "-e", "ITB_REDIS_PASSWORD_FILE=/run/keys/password", "-e", "ITB_MARKET_SPEED=60",
            "itb:live", "python", "-", stdin=script,
        )  # fmt: skip

    def count(self) -> dict[str, Any]:
        text = self.inside((Path(__file__).parent / "count.py").read_text())
        found: dict[str, Any] = json.loads(text)
        return found

    def until(self, condition: Callable[[], bool], what: str, patience_s: float = 0) -> float:
        """Waits; how long that took."""
        started = time.monotonic()
        while not condition():
            if time.monotonic() - started > (patience_s or _PATIENCE_S):
                raise AssertionError(
                    f"no {what} within {patience_s or _PATIENCE_S:.0f} s\n{self.tails()}"
                )
            time.sleep(0.5)  # containers tell nobody, and each look starts a process
        return time.monotonic() - started

    def until_healthy(self) -> float:
        waiting = [*_SERVICES, "redis", "exchange"]

        def all_are() -> bool:
            waiting[:] = [name for name in waiting if self.health(name) != "healthy"]
            return not waiting

        return self.until(all_are, "health of every service")

    def tails(self) -> str:
        return self.compose("ps", check=False) + self.compose("logs", "--tail=15", check=False)


@dataclass(slots=True)
class Typist:
    """Types the pages' commands in a folder of its own. ran: (page, command) of what worked."""

    demo: Demo
    folder: Path
    ran: set[tuple[str, str]] = field(default_factory=set)

    def type(self, page: str, command: str, *, exits: tuple[int, ...] = (0,)) -> str:
        """What it prints. The page must have this command, and the registry must say that it is
        run here."""
        (found,) = {
            (one.plain, rule.how)
            for one in every_command()
            if one.page == page and one.plain == command and (rule := rule_of(one)) is not None
        }
        assert found[1] is How.DOCKER
        compose = " ".join(self.demo.compose_command)
        line = in_the_demo(command, compose=compose, project=_PROJECT, base=_BASE)
        started = time.monotonic()
        done = subprocess.run(
            ["bash", "-c", line], check=False, capture_output=True, encoding="utf-8",
            errors="backslashreplace", stdin=subprocess.DEVNULL, timeout=600,
            cwd=_ROOT if line.startswith("docker build ") else self.folder,
            env=os.environ | {
                "COMPOSE_PROJECT_NAME": _PROJECT, "ITB_BASE": _BASE, "COMPOSE_PROFILES": "demo",
                "COMPOSE_FILE": str(_ROOT / "docker-compose.yml"),
            },
        )  # fmt: skip
        print(f"{time.monotonic() - started:5.1f} s  {line}")
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-40:])
        assert done.returncode in exits, f"{line} ended with {done.returncode}:\n{tail}"
        self.ran.add((page, command))
        return done.stdout


@pytest.fixture(scope="module")
def typist(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Typist:
    return Typist(demo, tmp_path_factory.mktemp("typed"))


@pytest.fixture(scope="module")
def images() -> dict[str, int]:
    """Bytes of each target's image."""
    _run("docker", "version")
    sizes = {}
    for target in _TARGETS:
        started = time.monotonic()
        _run("docker", "build", "--target", target, "--build-arg", f"BASE={_BASE}",
             "-t", f"itb:{target}", ".", timeout_s=900)  # fmt: skip
        shown = _run("docker", "image", "inspect", "--format", "{{.Size}}", f"itb:{target}")
        sizes[target] = int(shown)
        seconds = time.monotonic() - started
        print(f"itb:{target}: {sizes[target] / 1e6:.0f} MB, built in {seconds:.0f} s")
    return sizes


@pytest.fixture(scope="module")
def demo(images: dict[str, int]) -> Iterator[Demo]:
    """The demo, healthy."""
    it = Demo()
    it.compose("down", "-v", "--remove-orphans", check=False)
    try:
        started = time.monotonic()
        it.compose("up", "-d", "--no-build")
        it.until_healthy()
        it.up_s = time.monotonic() - started
        yield it
    finally:
        it.compose("down", "-v", "--remove-orphans", "-t", "5", check=False)


def test_the_live_image_is_small_and_has_neither_compiler_nor_trainer(
    images: dict[str, int],
) -> None:
    look = (
        "import importlib.util as u, os, shutil, json; print(json.dumps({"
        "'tools': [t for t in ('cc', 'gcc', 'ld', 'as', 'make', 'pip', 'curl') if shutil.which(t)],"
        "'stack': [m for m in ('lightgbm', 'sklearn', 'pandas', 'torch', 'pip') if u.find_spec(m)],"
        "'uid': os.getuid()}))"
    )
    found = json.loads(_run("docker", "run", "--rm", "itb:live", "python", "-c", look))
    assert found == {"tools": [], "stack": [], "uid": 10001}
    picture = (
        "import io; from matplotlib.figure import Figure; f = Figure(); f.subplots().plot([1, 2]);"
        "b = io.BytesIO(); f.savefig(b, format='png'); assert b.getvalue()[1:4] == b'PNG'"
    )
    _run("docker", "run", "--rm", "--read-only", "--tmpfs", "/tmp", "itb:live",
         "python", "-c", picture)  # fmt: skip
    assert images["live"] < _LIVE_BYTES
    assert images["live"] < images["trainer"]


def test_the_demo_is_soon_healthy_and_shows_signals(demo: Demo) -> None:
    print(f"healthy after {demo.up_s:.0f} s")
    demo.until(lambda: int(demo.redis_cli("XLEN", _SIGNALS)) > 1000, "signals")
    newest = demo.redis_cli("XREVRANGE", _SIGNALS, "+", "-", "COUNT", "1").splitlines()
    assert newest[0].endswith("-0")
    assert newest[1:6:2] == ["score", "side", "close"]
    groups = demo.redis_cli("XINFO", "GROUPS", _SIGNALS).splitlines()
    assert {"notifier", "trader"} <= set(groups)
    kline = "kline:{BTCUSDT}:1m"
    before = int(demo.redis_cli("XLEN", kline))
    demo.until(lambda: int(demo.redis_cli("XLEN", kline)) > before + 3, "further candles")


def test_no_container_may_more_than_it_must(demo: Demo) -> None:
    for service in (*_SERVICES, "redis", "exchange"):
        it = demo.inspect(service)
        host = it["HostConfig"]
        assert it["Config"]["User"] == "10001:10001", service
        assert host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"], service
        assert host["SecurityOpt"] == ["no-new-privileges:true"], service
        assert host["Memory"] > 0 and host["PidsLimit"] > 0 and host["Init"], service
        assert host["RestartPolicy"]["Name"] == "unless-stopped", service
        if service != "dashboard":
            assert not host["PortBindings"], service
            for network in it["NetworkSettings"]["Networks"]:
                text = _run("docker", "network", "inspect", "--format", "{{.Internal}}", network)
                assert text.strip() == "true", f"{service} is on {network}"
        ports = [p["HostIp"] for bound in host["PortBindings"].values() for p in bound]
        assert set(ports) <= {"127.0.0.1"}, service
        mounts = {m["Destination"]: m["RW"] for m in it["Mounts"]}
        assert not mounts.get("/models", False), f"{service} may write models"
        assert not mounts.get("/run/keys", False), service
        environment = " ".join(it["Config"]["Env"])
        assert "PASSWORD=" not in environment and "TOKEN=" not in environment, service
    # What is outside has not even a name there.
    ask = "import socket\ntry: socket.getaddrinfo('example.org', 443)\nexcept OSError: print('no')"
    inside = _run("docker", "exec", demo.container("collector"), "python", "-c", ask)
    assert inside.strip() == "no"
    names = {m["Name"].split("_", 1)[-1] for m in demo.inspect("predictor")["Mounts"]}
    assert names == {"demo-models", "keys-predictor"}


def test_everybody_stayed_within_the_rights_of_its_user(demo: Demo) -> None:
    assert demo.redis_cli("ACL", "LOG") == ""
    users = demo.redis_cli("CLIENT", "LIST")
    for service in _SERVICES:
        assert f"user={service}" in users
    assert "user=default" not in users


def test_the_predictor_takes_a_release_that_the_trainer_makes(demo: Demo, typist: Typist) -> None:
    before = demo.beat("predictor")["release"]
    for command in ("download", "merge", "train --promote"):
        typist.type("run.md", f"docker compose run --rm trainer {command}")
    demo.until(lambda: demo.beat("predictor").get("release", before) != before, "new release")
    release = demo.beat("predictor")["release"]

    def scored() -> bool:
        entry = demo.redis_cli("XREVRANGE", "prediction:{BTCUSDT}:1m", "+", "-", "COUNT", "1")
        return release in entry

    demo.until(scored, "prediction by the new release")


def test_a_signal_is_computed_again_to_the_same_bits(demo: Demo) -> None:
    newest = demo.redis_cli("XREVRANGE", _SIGNALS, "+", "-", "COUNT", "1").splitlines()
    signal_id = f"BTCUSDT-1m-{newest[0].split('-')[0]}"
    text = demo.compose("run", "--rm", "demo-itb", "explain", signal_id, "--json")
    explained = json.loads(text.strip().splitlines()[-1])
    assert explained["equal"] is True, explained


@pytest.mark.parametrize("service", [*_SERVICES, "redis", "exchange"])
def test_a_killed_container_comes_back_by_itself(demo: Demo, service: str) -> None:
    state = demo.inspect(service)["State"]
    os.kill(state["Pid"], signal.SIGKILL)
    demo.until(lambda: demo.inspect(service)["State"]["StartedAt"] != state["StartedAt"], "restart")
    took = demo.until(lambda: demo.health(service) == "healthy", f"health of {service}")
    print(f"{service}: healthy {took:.1f} s after its restart")
    before = int(demo.redis_cli("XLEN", _SIGNALS))
    demo.until(lambda: int(demo.redis_cli("XLEN", _SIGNALS)) > before, "signals")


def test_nothing_is_lost_or_doubled_by_the_kills(demo: Demo) -> None:
    _check(demo.count())


def test_everything_killed_at_once_goes_on_where_it_was(demo: Demo) -> None:
    before = demo.count()
    demo.compose("kill", "-s", "KILL")
    started = time.monotonic()
    demo.compose("up", "-d", "--no-build")
    demo.until_healthy()
    print(f"all healthy {time.monotonic() - started:.0f} s after `up`")
    demo.until(lambda: demo.count()["last_ms"] > before["last_ms"] + 600_000, "10 more candles")
    after = demo.count()
    assert after["bars"] > before["bars"]
    _check(after)
    assert demo.redis_cli("ACL", "LOG") == ""


def test_rotated_passwords_are_taken_after_a_restart(demo: Demo, typist: Typist) -> None:
    old = demo.redis_cli("ACL", "GETUSER", "trader")
    typist.type("operations.md", "docker compose run --rm keys keys")
    assert demo.redis_cli("ACL", "GETUSER", "trader") == old, "those that are there stay"
    typist.type("operations.md", "docker compose run --rm keys keys --rotate")
    typist.type("operations.md", "docker compose restart")
    demo.until_healthy()
    assert demo.redis_cli("ACL", "GETUSER", "trader") != old
    _check(demo.count())


def test_the_dashboard_has_another_token_after_it_was_deleted(typist: Typist, demo: Demo) -> None:
    cat = "docker compose --profile demo exec demo-dashboard cat /token/token"
    old = typist.type("run.md", cat)
    remove = """docker compose exec dashboard python -c "import os; os.unlink('/token/token')\""""
    typist.type("operations.md", remove)
    typist.type("operations.md", "docker compose restart dashboard")
    typist.type("operations.md", "docker compose restart notifier")
    demo.until_healthy()
    new = typist.type("run.md", cat)
    assert len(new.strip()) == len(old.strip()) > 20
    assert new != old


def test_what_stops_at_once_stops_and_goes_on(demo: Demo, typist: Typist) -> None:
    def switch(word: str) -> None:
        demo.until(lambda: demo.beat("trader").get("switch") == word, f"trader that is {word}")

    def typed(command: str) -> str:
        return typist.type("operations.md", command)

    assert "the trader has confirmed it" in typed("docker compose exec redis itb halt")
    switch("HALTED")
    typed("docker compose exec redis itb resume")
    switch("RESUMED")
    assert "the trader has confirmed it" in typed("docker compose exec redis itb flatten")
    switch("FLATTENED")
    typed("docker compose exec redis itb resume")
    switch("RESUMED")
    typed("docker compose exec live-trader sh -c 'echo HALT > /journal/control'")
    switch("HALTED")
    typed("docker compose exec live-trader rm /journal/control")
    switch("RESUMED")
    typed("docker compose stop live-trader")
    assert demo.health("trader") == "ended"
    typed("docker compose start live-trader")
    demo.until(lambda: demo.health("trader") == "healthy", "health of the trader")
    typed("docker compose restart live-trader")
    demo.until(lambda: demo.health("trader") == "healthy", "health of the trader")


def test_a_trader_whose_journal_was_moved_away_goes_on(demo: Demo, typist: Typist) -> None:
    typist.type("operations.md", "docker compose stop live-trader")
    typist.type(
        "operations.md",
        'docker run --rm -v itb_live-journal:/journal -v "$PWD:/out" --user 0 --entrypoint mv '
        "itb:bus /journal/live.journal /out/",
    )
    assert (typist.folder / "paper.journal").stat().st_size > 0
    typist.type("operations.md", "docker compose start live-trader")
    demo.until(lambda: demo.health("trader") == "healthy", "health of the trader")


def test_bus_journal_and_models_come_back_from_their_backups(demo: Demo, typist: Typist) -> None:
    def typed(command: str) -> str:
        return typist.type("operations.md", command)

    def into(name: str) -> str:
        return (
            f'docker run --rm -v itb_{name}:/{name}:ro -v "$PWD:/out" --user 0 --entrypoint tar '
            f"itb:bus -C /{name} -cf /out/{name}.tar ."
        )

    def journal() -> str:
        """Which journal the trader has: a new one would have another id."""
        trader = demo.container("trader")
        return _run("docker", "exec", trader, "head", "-1", "/journal/paper.journal")

    key, mark = "order:{BTCUSDT}", "only this bus knows it"
    demo.redis_cli("SET", "mark", mark)
    held = demo.redis_cli("XREVRANGE", _SIGNALS, "+", "-", "COUNT", "1").splitlines()[0]
    orders = demo.redis_cli("XRANGE", key, "-", "+", "COUNT", "50")
    kept = journal()
    release = demo.beat("predictor")["release"]
    typed("docker compose exec -T redis itb backup > bus.tar")
    typed(into("journal"))
    typed(into("models"))
    with tarfile.open(typist.folder / "models.tar") as archive:
        assert f"./releases/{release}/bundle.onnx" in archive.getnames()
    # A disk is gone: the bus and the trader's journal with it.
    typed("docker compose down")
    assert f"{_PROJECT}_demo-bus" in typed("docker volume ls")
    typed("docker volume rm itb_bus")
    _run("docker", "volume", "rm", f"{_PROJECT}_demo-journal")
    typed("docker compose run --rm -T redis itb restore - < bus.tar")
    typed(
        'docker run --rm -v itb_live-journal:/journal -v "$PWD:/in:ro" --user 0 --entrypoint tar '
        "itb:bus -C /journal -xpf /in/journal.tar"
    )
    typed("docker compose up -d")
    demo.until_healthy()
    assert demo.redis_cli("XRANGE", _SIGNALS, held, held).splitlines()[0] == held
    assert demo.redis_cli("GET", "mark") == mark
    assert demo.redis_cli("XRANGE", key, "-", "+", "COUNT", "50") == orders != ""
    assert journal() == kept
    typed("docker compose exec redis itb resume")
    before = int(demo.redis_cli("XLEN", _SIGNALS))
    demo.until(lambda: int(demo.redis_cli("XLEN", _SIGNALS)) > before + 3, "signals")
    _check(demo.count())


def test_the_further_commands_of_the_pages_work(demo: Demo, typist: Typist) -> None:
    for page in ("monitoring.md", "run.md"):
        assert "demo-trader" in typist.type(page, "docker compose ps")
    assert "demo-trader" in typist.type("run.md", "docker compose --profile demo ps")
    for page in ("operations.md", "run.md"):
        assert _SIGNALS in typist.type(page, "docker compose run --rm itb streams")
    doctor = typist.type("run.md", "docker compose run --rm itb doctor", exits=(1,))
    failed = [line.split()[1] for line in doctor.splitlines() if line.split()[0] == "fail"]
    assert set(failed) <= {"folders", "exchange"}, doctor
    typist.type(
        "run.md",
        "docker compose run --rm --no-deps -T itb init /dev/stdout --force > "
        "deploy/config/config.json",
    )
    assert "novelty_limit" in (typist.folder / "config.json").read_text()
    newest = (
        "docker compose --profile demo exec demo-redis redis-cli XREVRANGE "
        "'signal:{BTCUSDT}:1m' + - COUNT 3"
    )
    assert "close" in typist.type("run.md", newest).splitlines()
    typist.type("drift.md", "ITB_IMAGE=itb:trainer docker compose run --rm itb outcomes")
    typist.type("operations.md", "docker compose run --rm trainer rollback")
    for page in ("README.md", "run.md"):
        typist.type(page, "docker compose --profile demo up -d")
    typist.type("operations.md", "docker compose --profile paper --profile train build")
    typist.type("run.md", "docker compose build")
    typist.type("run.md", "docker compose build redis")
    typist.type("run.md", "docker build --target trainer -t itb:trainer .")
    typist.type("run.md", "docker compose --profile demo down -v")
    assert demo.container("redis") == ""


def test_every_command_of_the_pages_that_is_for_here_was_run(typist: Typist) -> None:
    pages = {
        (one.page, part)
        for one in every_command()
        if (rule := rule_of(one)) is not None and rule.how is How.DOCKER
        for part in one.plain.split(" && ")
    }
    typed = {part for _, command in typist.ran for part in command.split(" && ")}
    assert sorted((page, part) for page, part in pages if part not in typed) == []


def _check(found: dict[str, Any]) -> None:
    print(found)
    assert found["bars"] > 2_000
    assert found["lost"] == 0, found
    assert found["doubled"] == 0, found
    assert found["open_claims"] == 0, found
