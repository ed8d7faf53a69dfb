"""What opens the page, and what is refused as a key to it."""

import hashlib
import io
import stat
from pathlib import Path
from typing import Any

import pytest

from dashboard.credentials import (
    Credentials,
    PasswordHash,
    read_credentials,
    write_password,
)
from dashboard.guard import ANYWHERE
from deploy import cli
from shared.config import Settings
from shared.errors import Usage

CHEAP = (16, 8, 1)
PASSWORD = "correct horse battery"


def settings(**keys: Any) -> Settings:
    return Settings(dashboard=keys)


def test_a_hash_is_scrypt_of_its_salt_and_tells_right_from_wrong() -> None:
    made = PasswordHash.of(PASSWORD, cost=CHEAP)
    assert made.digest == hashlib.scrypt(PASSWORD.encode(), salt=made.salt, n=16, r=8, p=1)
    assert made.is_of(PASSWORD)
    assert not made.is_of(PASSWORD + " ")
    assert not made.is_of("")
    assert PasswordHash.of(PASSWORD, cost=CHEAP).salt != made.salt
    assert PasswordHash.parse(str(made)) == made


def test_the_default_cost_takes_the_memory_that_it_claims() -> None:
    made = PasswordHash.of(PASSWORD)
    assert 128 * made.n * made.r == 32 << 20
    assert made.is_of(PASSWORD)


@pytest.mark.parametrize("password", ["", "short", "x" * 2000])
def test_a_password_that_is_too_short_or_too_long_is_refused(password: str) -> None:
    with pytest.raises(Usage, match="10 to 1024 characters"):
        PasswordHash.of(password, cost=CHEAP)


@pytest.mark.parametrize(
    "text",
    [
        "",
        PASSWORD,
        "bcrypt$16$8$1$c2FsdHNhbHQ=$" + "AAAA" * 8,
        "scrypt$17$8$1$c2FsdHNhbHQ=$" + "AAAA" * 8,  # no power of two
        "scrypt$16777216$8$1$c2FsdHNhbHQ=$" + "AAAA" * 8,  # 16 GiB
        "scrypt$16$8$1$c2FsdA==$" + "AAAA" * 8,  # a short salt
        "scrypt$16$8$1$c2FsdHNhbHQ=$",
        "scrypt$16$8$1$c2FsdHNhbHQ=",
    ],
)
def test_a_password_file_that_holds_something_else_stops_the_service(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "password"
    path.write_text(text)
    with pytest.raises(Usage, match="holds no password hash; `itb dashboard-password"):
        read_credentials(settings(password_file=path))


def test_password_and_token_each_open_the_page_and_nothing_else_does(tmp_path: Path) -> None:
    write_password(tmp_path / "password", PasswordHash.of(PASSWORD, cost=CHEAP))
    found = read_credentials(
        settings(password_file=tmp_path / "password", token_file=tmp_path / "token")
    )
    token = (tmp_path / "token").read_text().strip()
    assert found.accept(PASSWORD)
    assert found.accept(token)
    for wrong in ("", token[:-1], token + "x", PASSWORD.upper(), "x" * 5000, "\ud800"):
        assert not found.accept(wrong)
    assert not Credentials().accept("")
    assert PASSWORD not in repr(found)
    assert token not in repr(found)


def test_a_token_is_made_once_and_is_ours_alone(tmp_path: Path) -> None:
    path = tmp_path / "token"
    first = read_credentials(settings(token_file=path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(path.read_text().strip()) >= 43  # 256 bits
    assert read_credentials(settings(token_file=path)) == first
    path.write_text("too-short\n")
    with pytest.raises(Usage, match="needs 24 to 1024 characters; delete the file"):
        read_credentials(settings(token_file=path))


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(Usage, match=r"dashboard\.password_file: cannot read .*No such file"):
        read_credentials(settings(password_file=tmp_path / "none"))
    with pytest.raises(Usage, match=r"dashboard\.token_file: cannot write .*No such file"):
        read_credentials(settings(token_file=tmp_path / "none" / "token"))
    with pytest.raises(Usage, match="cannot be written: No such file"):
        write_password(tmp_path / "none" / "password", PasswordHash.of(PASSWORD, cost=CHEAP))


def test_a_password_file_is_replaced_whole_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "password"
    write_password(path, PasswordHash.of(PASSWORD, cost=CHEAP))
    second = PasswordHash.of("another password", cost=CHEAP)
    write_password(path, second)
    assert PasswordHash.parse(path.read_text()) == second
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["password"]


@pytest.mark.parametrize("host", [*ANYWHERE, "192.168.1.4", "bot.example.org"])
def test_without_a_login_the_page_is_for_this_machine_alone(host: str) -> None:
    with pytest.raises(Usage, match="is open to other machines"):
        read_credentials(settings(host=host))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_without_a_login_this_machine_may_look_but_not_act(host: str) -> None:
    assert not read_credentials(settings(host=host)).are_set
    with pytest.raises(Usage, match=r"dashboard\.control needs a login"):
        read_credentials(settings(host=host, control=True))


def test_the_command_writes_a_hash_of_what_it_is_given_and_says_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "password"
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{PASSWORD}\n"))
    assert cli.main(["dashboard-password", str(path)]) == 0
    assert PasswordHash.parse(path.read_text()).is_of(PASSWORD)
    monkeypatch.setattr("sys.stdin", io.StringIO("short\n"))
    assert cli.main(["dashboard-password", str(path)]) == 2
    assert PasswordHash.parse(path.read_text()).is_of(PASSWORD)
    said = capsys.readouterr()
    assert "10 to 1024 characters" in said.err
    assert PASSWORD not in said.out + said.err + path.read_text()
