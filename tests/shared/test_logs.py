"""Log lines are JSON and hold no secret."""

import json
import logging

import pytest

from shared import logs
from shared.config import load
from shared.logs import Redactor

TOKEN = "123456789:AAabcdefghijklmnopqrstuvwxyz0123456789"


@pytest.fixture(autouse=True)
def _own_root_logger(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)


def test_a_line_is_one_json_object_with_its_extras(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up("collector")
    logging.getLogger("x").info("gap\nfilled", extra={"symbol": "BTCUSDT", "rows": 3})
    (line,) = capsys.readouterr().err.splitlines()
    body = json.loads(line)
    assert body["event"] == "gap\nfilled"
    assert (body["service"], body["symbol"], body["rows"]) == ("collector", "BTCUSDT", 3)


def test_secrets_are_taken_out_of_messages_extras_and_tracebacks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = load(api_secret="canary-of-the-config", telegram_bot_token=TOKEN)
    logs.set_up("x", redact=Redactor.of(settings))
    try:
        raise RuntimeError(f"GET /bot{TOKEN}/getMe canary-of-the-config")
    except RuntimeError as error:
        logging.getLogger("x").warning(
            "failed for %s", TOKEN, exc_info=error, extra={"url": f"https://h/bot{TOKEN}/x"}
        )
    text = capsys.readouterr().err
    assert "canary" not in text
    assert "AAabc" not in text
    assert text.count("***") >= 4


@pytest.mark.parametrize(
    "text",
    [
        "redis://user:canary@host:1/0",
        "/api/v3/order?timestamp=1&signature=canary",
        f"https://h/bot{TOKEN.replace('AAabcdef', 'AAcanary')}/sendMessage",
    ],
)
def test_what_looks_secret_is_hidden_without_being_known(text: str) -> None:
    assert "canary" not in Redactor()(text)


def test_a_repeated_line_is_let_through_once_with_a_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    quiet = logs.Quiet(every_s=10)
    assert [quiet.allows("a") for _ in range(4)] == [0, None, None, None]
    assert quiet.allows("b") == 0
    clock[0] = 11
    assert quiet.allows("a") == 3
