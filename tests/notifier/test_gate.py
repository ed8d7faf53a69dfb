"""Who may command the bot: each rule alone, and the codes."""

from dataclasses import replace

import pytest

from notifier.channel import Incoming
from notifier.gate import CODE_S, Codes, Command, command_of, objection

NOW = 1_700_000_000.0
GOOD = Incoming(update_id=1, user_id=7, chat_id=7, is_private=True, text="/status", date_s=NOW - 1)
STATUS = Command("status", ())


def why(incoming: Incoming, command: Command = STATUS) -> str:
    return objection(incoming, command, users={7}, chats={-100}, now_s=NOW)


def test_a_fresh_command_of_a_listed_user_is_followed() -> None:
    assert why(GOOD) == ""
    assert why(replace(GOOD, chat_id=-100, is_private=False)) == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"user_id": 8}, "not in notifier.users"),
        ({"user_id": 0}, "not in notifier.users"),
        ({"chat_id": -200, "is_private": False}, "none of ours"),
        ({"is_forwarded": True}, "forwarded"),
        ({"date_s": NOW - 61}, "61 s old"),
        ({"date_s": NOW + 3600}, "old"),
    ],
)
def test_every_other_is_ignored(changes: dict[str, object], words: str) -> None:
    assert words in why(replace(GOOD, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["halt", "pause", "resume", "flatten"])
def test_trading_is_commanded_by_typing_in_private_only(name: str) -> None:
    command = Command(name, ())
    assert why(GOOD, command) == ""
    assert "private" in why(replace(GOOD, chat_id=-100, is_private=False), command)
    assert "typed" in why(replace(GOOD, query_id="q"), command)


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("/why BTCUSDT-1m-1", Command("why", ("BTCUSDT-1m-1",))),
        ("/Status@itb_bot", Command("status", ())),
        ("  /mute   5 ", Command("mute", ("5",))),
        ("hello", None),
        ("", None),
    ],
)
def test_a_command_begins_with_a_slash(text: str, command: Command | None) -> None:
    assert command_of(text) == command


def test_a_command_to_another_bot_is_none_of_ours() -> None:
    assert command_of("/status@My_Bot", "my_bot") == STATUS
    assert command_of("/status@other_bot", "my_bot") is None
    assert command_of("/status@other_bot") == STATUS  # we do not know our name


def test_a_code_is_good_once_for_its_user_and_command_and_not_for_long() -> None:
    codes = Codes()
    code = codes.give(7, "resume", 0.0)
    assert not codes.take(8, "resume", code, 1.0)
    assert not codes.take(7, "flatten", code, 1.0)
    assert codes.take(7, "resume", code, 1.0)
    assert not codes.take(7, "resume", code, 1.0)
    late = codes.give(7, "resume", 0.0)
    assert not codes.take(7, "resume", late, CODE_S + 1)
    guessed = codes.give(7, "resume", 0.0)
    wrong = f"{(int(guessed) + 1) % 1_000_000:06d}"
    assert not codes.take(7, "resume", wrong, 1.0)
    assert not codes.take(7, "resume", guessed, 1.0), "one try"
