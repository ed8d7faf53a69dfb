"""The Telegram adapter alone: what it shows of its secret, and what it asks for."""

import logging
import traceback

import pytest
from pydantic import SecretStr

from notifier.channel import Message
from notifier.telegram import Telegram
from shared.errors import Rejected, Unavailable, Unknown, Usage
from tests.fakes.telegram import CHAT, TOKEN, FakeTelegram, Fault, Hang, Page, Reset, Status

SECRET = TOKEN.split(":")[1]


async def attempt(url: str, token: str = TOKEN) -> list[Exception]:
    """What check and send raise, as whoever logs it would see it."""
    bot = Telegram(SecretStr(token), str(CHAT), base_url=url, timeout_s=0.2)
    found: list[Exception] = []
    for call in (bot.check(), bot.send(Message(text="x"))):
        try:
            await call
        except (Rejected, Unavailable, Unknown) as error:
            found.append(error)
    await bot.close()
    return found


def shown(error: BaseException | None) -> str:
    """The error with everything that hangs on it, hidden causes included."""
    text = ""
    while error is not None:
        text += "".join(traceback.format_exception(error)) + repr(error) + repr(error.args)
        error = error.__cause__ or error.__context__
    return text


@pytest.mark.parametrize(
    "fault",
    [
        Status(500, f"bot{TOKEN} broke"),
        Status(400, f"Bad Request: bot{TOKEN}"),
        Status(403, f"Forbidden: {TOKEN}"),
        Page(502),
        Page(200),
        Reset(stored=False),
        Hang(stored=True),
    ],
)
async def test_no_error_carries_the_token(fault: Fault, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with FakeTelegram() as telegram:
        telegram.faults.append(fault)
        (error,) = await attempt(telegram.url)
    assert SECRET not in shown(error)
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9", "nonsense", "http://", "http://[", "ftp://x"]
)
async def test_no_error_about_a_bad_place_carries_the_token(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    errors = await attempt(url)
    assert len(errors) == 2
    for error in errors:
        assert SECRET not in shown(error)
    assert SECRET not in caplog.text


async def test_a_revoked_token_is_told_with_the_remedy() -> None:
    async with FakeTelegram(token="1:other") as telegram:
        errors = await attempt(telegram.url)
    assert [str(e) for e in errors] == ["Telegram: Unauthorized; check telegram_bot_token"] * 2


@pytest.mark.parametrize("token", ["canary", "canary:x", "12 3:canary", ":canary"])
def test_what_is_no_token_is_a_wrong_config(token: str) -> None:
    with pytest.raises(Usage) as raised:
        Telegram(SecretStr(token), "1", base_url="http://x")
    assert "canary" not in shown(raised.value)
    assert "@BotFather" in str(raised.value)


async def test_a_message_of_an_unknown_shape_was_sent_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with FakeTelegram() as telegram:
        real = telegram._message
        monkeypatch.setattr(telegram, "_message", lambda *a: real(*a) | {"chat": "new shape"})
        bot = Telegram(SecretStr(TOKEN), str(CHAT), base_url=telegram.url)
        assert await bot.send(Message(text="<x> & y")) == 1
        await bot.close()
    assert telegram.texts() == ["<x> & y"]
