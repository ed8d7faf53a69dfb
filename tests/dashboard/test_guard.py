"""Hosts, logins, tickets and limits: what a stranger can and cannot do."""

import itertools

import pytest

from dashboard import guard
from dashboard.guard import (
    ANYWHERE,
    Attempts,
    Logins,
    Tickets,
    allowed_names,
    host_name,
    is_loopback,
    is_same_origin,
)


@pytest.mark.parametrize(
    ("authority", "name"),
    [
        ("localhost", "localhost"),
        ("LOCALHOST:8260", "localhost"),
        ("127.0.0.1:1", "127.0.0.1"),
        ("[::1]:8260", "::1"),
        ("bot.example.org.", "bot.example.org"),
        ("", ""),
        ("localhost:port", ""),
        ("localhost:99999", ""),
        ("localhost/x", ""),
        ("evil.example@localhost", ""),
        ("localhost\\evil", ""),
        ("[::1", ""),
    ],
)
def test_a_host_header_names_one_host_or_none(authority: str, name: str) -> None:
    assert host_name(authority) == name


def test_only_our_names_are_hosts() -> None:
    names = allowed_names("127.0.0.1", ["Bot.Example.org:443", "[fd00::1]"])
    assert {"localhost", "127.0.0.1", "::1", "bot.example.org", "fd00::1"} == names
    assert "192.168.1.4" in allowed_names("192.168.1.4", [])
    assert not {*ANYWHERE} & allowed_names(ANYWHERE[0], [])
    assert "" not in names


def test_loopback_is_what_no_other_machine_reaches() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.9.9.9", "::1")))
    assert not any(map(is_loopback, (*ANYWHERE, "10.0.0.1", "localhost.evil.example", "")))


def test_an_origin_is_ours_if_host_and_port_are_the_same() -> None:
    assert is_same_origin("http://localhost:8260", "localhost:8260")
    assert is_same_origin("https://bot.example.org", "bot.example.org")
    for origin in (
        None,
        "",
        "null",
        "http://localhost:8261",
        "http://localhost:8260.evil.example",
        "http://evil.example#localhost:8260",
        "chrome-extension://localhost:8260",
        "http://x@localhost:8260",
    ):
        assert not is_same_origin(origin, "localhost:8260"), origin


def test_a_login_ends_with_its_time_and_when_it_is_closed() -> None:
    logins = Logins(100.0)
    cookie, login = logins.open("10.0.0.1", 0.0)
    assert logins.find(cookie, 99.9) is login
    assert logins.is_open(login, 99.9)
    assert logins.find(cookie, 100.0) is None
    assert not logins.is_open(login, 100.0)
    other, again = logins.open("10.0.0.1", 50.0)
    assert other != cookie
    assert again.csrf != login.csrf
    logins.close(other)
    assert logins.find(other, 51.0) is None
    assert not logins.is_open(again, 51.0)
    for unknown in (None, "", "x", cookie[:-1], cookie.swapcase(), "\ud800"):
        assert logins.find(unknown, 1.0) is None


def test_many_logins_push_out_the_oldest_and_take_no_more_room() -> None:
    logins = Logins(100.0)
    cookies = [logins.open("10.0.0.1", 0.0)[0] for _ in range(150)]
    alive = [logins.find(cookie, 1.0) is not None for cookie in cookies]
    assert alive == [False] * 50 + [True] * 100


def test_only_the_right_csrf_token_may_act() -> None:
    _, login = Logins(1.0).open("a", 0.0)
    assert login.may_act(login.csrf)
    assert not any(map(login.may_act, (None, "", login.csrf[:-1], login.csrf + "x", "é")))


def test_a_question_is_answered_once_and_soon() -> None:
    _, login = Logins(1e6).open("a", 0.0)
    number = login.ask("halt", "", "", 0.0)
    found = login.confirm(number, 59.9)
    assert found is not None
    assert found.action == "halt"
    assert login.confirm(number, 59.9) is None
    assert login.confirm(login.ask("halt", "", "", 0.0), 60.0) is None
    assert login.confirm("x", 0.0) is None
    first, *_ = [login.ask("resume", str(n), "", 0.0) for n in range(17)]
    assert login.confirm(first, 0.0) is None
    assert len(login.questions) == 16


def test_a_ticket_is_good_once_and_for_ten_minutes() -> None:
    tickets = Tickets()
    ticket = tickets.issue(1000.0)
    assert tickets.redeem(ticket, 1599.0)
    assert not tickets.redeem(ticket, 1599.0)
    assert not tickets.redeem(tickets.issue(1000.0), 1600.0)
    assert not Tickets().redeem(tickets.issue(1000.0), 1001.0)
    until, middle, signature = tickets.issue(1000.0).split(".")
    for forged in ("", ".", "..", f"9{until}.{middle}.{signature}", f"{until}.{middle}.", "é.é"):
        assert not tickets.redeem(forged, 1001.0), forged


def test_a_redeemed_ticket_stays_used_for_as_long_as_it_would_be_good() -> None:
    tickets = Tickets()
    early, late = tickets.issue(0.0), tickets.issue(500.0)
    assert tickets.redeem(late, 500.0)
    assert tickets.redeem(early, 501.0)
    assert not tickets.redeem(late, 1099.0)


def test_five_wrong_passwords_make_an_address_wait_and_no_other() -> None:
    attempts = Attempts()
    for second in range(5):
        assert attempts.wait_s("10.0.0.1", second) == 0
        attempts.failed("10.0.0.1", second)
    assert attempts.wait_s("10.0.0.1", 5.0) == pytest.approx(895.0)
    assert attempts.wait_s("10.0.0.2", 5.0) == 0
    assert attempts.wait_s("10.0.0.1", 900.0) == 0
    attempts.failed("10.0.0.1", 900.0)
    assert attempts.wait_s("10.0.0.1", 900.5) == pytest.approx(0.5)
    attempts.succeeded("10.0.0.1")
    assert attempts.wait_s("10.0.0.1", 900.5) == 0


def test_a_subscribers_ipv6_addresses_are_one_and_their_number_costs_no_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attempts = Attempts()
    for n in range(5):
        attempts.failed(f"2001:db8::{n:x}", 0.0)
    assert attempts.wait_s("2001:db8::ffff", 1.0) > 0
    assert attempts.wait_s("2001:db8:0:1::1", 1.0) == 0
    monkeypatch.setattr(guard, "_MOST_ADDRESSES", 10)
    for a, b in itertools.product(range(4), range(50)):
        attempts.failed(f"10.0.{a}.{b}", 0.0)
    assert len(attempts._failures) == 10
