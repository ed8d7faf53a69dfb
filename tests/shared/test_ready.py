"""Which port is asked whether a service is ready."""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from deploy.up import STARTED
from shared.ready import PORTS, check
from tests.valkey import free_port


@contextlib.contextmanager
def answering(service: str, port: int, *, reason: str = "") -> Iterator[None]:
    """What `shared.endpoint` answers, in a thread.

    Raises: OSError where the port is taken.
    """

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"service": service, "ready": not reason, "reason": reason})
            self.send_response(503 if reason else 200)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Of a system whose collector is at the config's port and whose predictor is two after it."""
    monkeypatch.delenv("ITB_METRICS_PORT", raising=False)
    for _ in range(50):
        first = free_port()
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(answering("collector", first))
                stack.enter_context(answering("predictor", first + 2, reason="no release"))
            except (OSError, OverflowError):
                continue
            path = tmp_path / "config.json"
            path.write_text(json.dumps({"metrics_port": first}))
            yield path
            return
    raise AssertionError("no two ports are free")


def test_a_service_is_found_at_the_port_that_itb_up_gave_it(config: Path) -> None:
    assert check("collector", str(config)) == (True, "collector is ready")
    assert check("predictor", str(config)) == (False, "predictor is not ready: no release")
    ready, line = check("trader", str(config))
    assert not ready and "none of the services at the ports from" in line


def test_the_port_of_the_environment_is_that_service_s_own(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = json.loads(config.read_text())["metrics_port"]
    monkeypatch.setenv("ITB_METRICS_PORT", str(first))
    ready, line = check("predictor", str(config))
    assert (ready, line) == (False, "predictor is not ready: collector answers in its place")


def test_as_many_ports_are_looked_at_as_itb_up_gives_out() -> None:
    assert len(STARTED) == PORTS
