"""Whom the server lets look, whom it lets act, and what it sends with every answer."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from shared.bus import Bus
from shared.control import CONTROL_KEY, Word, command_of
from shared.streams import health_key
from tests.dashboard.recorded import (
    NAMES,
    SYMBOL,
    Recording,
    notice,
    put_heartbeats,
    put_release,
    settings_for,
)
from tests.dashboard.rig import PASSWORD, Rig, running
from tests.valkey import Server

EVERY_PATH = (
    "/", "/ws", "/api/outputs", "/api/features", "/api/ledger",
    "/releases/20231114T221320Z-00000000/report.html",
)  # fmt: skip


@pytest.fixture
async def bus(valkey: Server) -> AsyncIterator[Bus]:
    async with Bus.session(valkey.url, service="desk") as bus:
        yield bus


@pytest.fixture
async def locked(valkey: Server, bus: Bus, tmp_path: Path) -> AsyncIterator[Rig]:
    """With a password, and actions allowed."""
    await Recording(30).put(bus)
    async with running(tmp_path, valkey.url, bus, control=True) as rig:
        yield rig


@pytest.fixture
async def open_page(valkey: Server, bus: Bus, tmp_path: Path) -> AsyncIterator[Rig]:
    """Without a password: this machine may look."""
    await Recording(30).put(bus)
    async with running(tmp_path, valkey.url, bus, password=False) as rig:
        yield rig


# -- strangers ------------------------------------------------------------------------------------


async def test_a_stranger_sees_the_login_and_nothing_else(locked: Rig) -> None:
    async with locked.browser() as browser:
        status, _, headers = await browser.get("/")
        assert (status, headers["Location"]) == (303, "/login")
        for path in EVERY_PATH[1:]:
            status, text, _ = await browser.get(path, Origin=browser.url)
            assert (status, text) == (401, "log in first\n"), path
        for path in ("/api/action", "/api/confirm", "/logout"):
            assert (await browser.post(path, {}))[0] == 401
        for path in ("/login", "/healthz", "/page/app.css", "/page/login.html"):
            assert (await browser.get(path))[0] == 200, path


async def test_a_forged_host_is_refused_whatever_it_asks_for(locked: Rig, open_page: Rig) -> None:
    for rig in (locked, open_page):
        async with rig.browser() as browser:
            for host in (
                "evil.example",
                "evil.example:8260",
                "localhost.evil.example",
                "x@localhost",
            ):
                for path in (*EVERY_PATH, "/login", "/healthz", "/page/app.css"):
                    status, text, _ = await browser.get(path, Host=host)
                    assert status == 421, (host, path)
                    assert "not served under that name" in text


async def test_a_websocket_of_another_site_is_refused(open_page: Rig) -> None:
    async with open_page.browser() as browser:
        for origin in ("http://evil.example", "null", "", browser.url + "0", "file://"):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                async with browser.live(Origin=origin):
                    pass
            assert refused.value.status == 403, origin
        async with browser.live() as live:
            assert (await live.until("snapshot"))["symbol"] == SYMBOL


async def test_a_websocket_needs_the_login(locked: Rig) -> None:
    async with locked.browser() as browser:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            async with browser.live():
                pass
        assert refused.value.status == 401


async def test_without_a_password_nothing_can_be_changed(open_page: Rig) -> None:
    async with open_page.browser() as browser:
        async with browser.live() as live:
            hello = live.seen[0]
            assert (hello["login"], hello["csrf"], hello["actions"]) == (False, None, [])
        for path in ("/api/action", "/api/confirm", "/login", "/logout", "/", "/api/ledger"):
            status, _ = await browser.post(path, {"action": "rollback"})
            assert status in (403, 404, 405), path
        assert open_page.trainer.lines == []


async def test_with_a_password_but_no_control_there_are_no_actions(
    valkey: Server, bus: Bus, tmp_path: Path
) -> None:
    async with running(tmp_path, valkey.url, bus) as rig, rig.browser() as browser:
        assert (await browser.log_in())[0] == 303
        async with browser.live() as live:
            assert live.seen[0]["actions"] == []
        for path in ("/api/action", "/api/confirm"):
            assert (await browser.post(path, {"action": "rollback"}))[0] == 404


# -- logins ---------------------------------------------------------------------------------------


async def test_the_password_opens_the_page_and_its_cookie_is_no_scripts_business(
    locked: Rig,
) -> None:
    async with locked.browser() as browser:
        assert (await browser.log_in())[0] == 303
        status, text, _ = await browser.get("/")
        assert status == 200
        assert PASSWORD not in text
        form = {"ticket": await browser.ticket(), "password": PASSWORD}
        async with browser.session.post(
            f"{browser.url}/login",
            data=form,
            headers={"Origin": browser.url},
            allow_redirects=False,
        ) as reply:
            cookie = reply.cookies["itb_login"]
        assert cookie["httponly"]
        assert cookie["samesite"] == "Strict"
        assert cookie["path"] == "/"
        assert not cookie["expires"]
        assert len(cookie.value) >= 43


async def test_behind_tls_the_login_is_sent_over_https_alone(
    valkey: Server, bus: Bus, tmp_path: Path
) -> None:
    async with running(tmp_path, valkey.url, bus, https=True) as rig, rig.browser() as browser:
        form = {"ticket": (ticket := await browser.ticket()), "password": PASSWORD}
        async with browser.session.post(
            f"{browser.url}/login",
            data=form,
            headers={"Origin": browser.url, "Cookie": f"__Host-itb_ticket={ticket}"},
            allow_redirects=False,
        ) as reply:
            assert reply.status == 303
            assert reply.cookies["__Host-itb_login"]["secure"]


async def test_a_login_that_was_recorded_and_is_sent_again_does_nothing(locked: Rig) -> None:
    async with locked.browser() as browser, locked.browser() as thief:
        ticket = await browser.ticket()
        cookies = {c.key: c.value for c in browser.session.cookie_jar}
        assert (await browser.log_in(ticket=ticket))[0] == 303
        thief.session.cookie_jar.update_cookies(cookies)
        status, text = await thief.log_in(ticket=ticket)
        assert status == 403
        assert "used before" in text
        assert (await thief.get("/api/ledger"))[0] == 401
        assert (await browser.get("/api/ledger"))[0] == 200


async def test_a_login_without_our_form_or_from_another_site_does_nothing(locked: Rig) -> None:
    async with locked.browser() as browser, locked.browser() as other:
        foreign = await other.ticket()
        for ticket in ("", "x", foreign):  # that of another browser: its cookie is not here
            assert (await browser.log_in(ticket=ticket))[0] == 403
        assert (await browser.log_in(Origin="http://evil.example"))[0] == 403
        assert (await browser.get("/api/ledger"))[0] == 401


async def test_after_logging_out_or_too_long_the_cookie_opens_nothing(locked: Rig) -> None:
    async with locked.browser() as browser:
        await browser.log_in()
        cookies = {c.key: c.value for c in browser.session.cookie_jar}
        async with browser.live():
            pass
        assert (await browser.post("/logout", {}))[0] == 200
        browser.session.cookie_jar.update_cookies(cookies)
        assert (await browser.get("/api/ledger"))[0] == 401
        await browser.log_in()
        assert (await browser.get("/api/ledger"))[0] == 200
        locked.clock[0] += 12 * 3600
        assert (await browser.get("/api/ledger"))[0] == 401


async def test_an_open_page_is_closed_when_its_login_ends(
    locked: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dashboard.web._CHECKED_S", 0.01)
    async with locked.browser() as browser:
        await browser.log_in()
        async with browser.live() as live:
            await live.until("snapshot")
            locked.clock[0] += 12 * 3600
            assert await live.closed() == 4401


async def test_five_wrong_passwords_and_that_address_waits(locked: Rig) -> None:
    async with locked.browser() as browser:
        for _ in range(5):
            status, text = await browser.log_in("wrong password")
            assert status == 403
            assert "wrong password" not in text
        status, text = await browser.log_in()
        assert status == 429
        assert "Too many attempts" in text
        locked.clock[0] += 901
        assert (await browser.log_in())[0] == 303


async def test_nonsense_in_the_form_is_refused(locked: Rig) -> None:
    async with locked.browser() as browser:
        assert (await browser.log_in("x" * 2000))[0] == 400
        async with browser.session.post(
            f"{browser.url}/login", data=b"x" * 100_000, headers={"Origin": browser.url}
        ) as reply:
            assert reply.status in (400, 413)
        for kind, encoding, body in (
            ("multipart/form-data", "", b"abcde"),
            ("multipart/form-data; boundary=x", "", b"abcde"),
            ("application/x-www-form-urlencoded; charset=none", "", b"a=b"),
            ("application/x-www-form-urlencoded", "", b"a=\xff\xfe"),
            ("application/x-www-form-urlencoded", "gzip", b"abcde"),
        ):
            headers = {"Origin": browser.url, "Content-Type": kind}
            headers |= {"Content-Encoding": encoding} if encoding else {}
            async with browser.session.post(
                f"{browser.url}/login", data=body, headers=headers
            ) as reply:
                assert reply.status == 400, (kind, encoding, body)
                assert "default-src 'none'" in reply.headers["Content-Security-Policy"]
        assert (await browser.get("/api/ledger"))[0] == 401


async def test_what_aiohttp_answers_by_itself_is_guarded_too_and_names_no_version(
    locked: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError

    async with locked.browser() as browser:
        async with browser.session.post(
            f"{browser.url}/login", headers={"Expect": "nothing"}
        ) as reply:
            answers = [(reply.status, reply.headers)]
        monkeypatch.setattr(locked.site.tickets, "issue", broken)
        status, _, headers = await browser.get("/login")
        answers.append((status, headers))
    assert [status for status, _ in answers] == [417, 500]
    for _, headers in answers:
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Server"] == "itb"


# -- actions --------------------------------------------------------------------------------------


async def ask(browser: Any, action: str, argument: str = "", **headers: Any) -> tuple[int, str]:
    found: tuple[int, str] = await browser.post(
        "/api/action", {"action": action, "argument": argument}, **headers
    )
    return found


async def test_an_action_is_described_confirmed_once_and_done(
    locked: Rig, tmp_path: Path, valkey: Server
) -> None:
    settings = settings_for(tmp_path, valkey.url)
    live, other = put_release(settings, 1), put_release(settings, 2, is_live=False)
    done = {"release": other.id, "warnings": ["few rows"]}
    locked.trainer.answer = (0, f"words\n{json.dumps(done)}\n", "")
    async with locked.browser() as browser:
        await browser.log_in()
        async with browser.live() as page:
            status, text = await ask(browser, "promote", other.id)
            assert status == 200
            asked = json.loads(text)
            assert other.id in asked["text"]
            assert live.id in asked["text"]
            assert locked.trainer.lines == []
            confirm = {"confirm": asked["confirm"]}
            status, text = await browser.post("/api/confirm", confirm)
            assert status == 200
            assert json.loads(text)["text"].startswith(f"promote: release {other.id} is live")
            assert locked.trainer.lines == [("promote", other.id, "--json", "-c", "config.json")]
            told = await page.until("notices")
            while (
                told["notices"][-1:] == [] or "by the dashboard" not in told["notices"][-1]["text"]
            ):
                told = await page.until("notices")
            assert "few rows" in told["notices"][-1]["text"]
        assert (await browser.post("/api/confirm", confirm))[0] == 409
        assert len(locked.trainer.lines) == 1


async def switched(rig: Rig, browser: Any, action: str, **body: Any) -> tuple[int, str]:
    asked = json.loads((await ask(browser, action))[1])
    found: tuple[int, str] = await browser.post(
        "/api/confirm", {"confirm": asked["confirm"]} | body
    )
    return found


async def beat(bus: Bus, **facts: Any) -> None:
    known = {"service": "trader", "time_ms": 1, "ready": True} | facts
    await bus.put(health_key("trader", "trader"), json.dumps(known))


async def test_the_traders_switch_is_thrown_and_its_answer_told(
    valkey: Server, bus: Bus, tmp_path: Path
) -> None:
    rig_ = running(tmp_path, valkey.url, bus, control=True, mode="paper")
    async with rig_ as rig, rig.browser() as browser:
        await browser.log_in()
        async with browser.live() as page:
            await page.until("releases")
            status, text = await switched(rig, browser, "halt")
            assert (status, "no trader is there now" in text) == (200, True)
            command = command_of(await bus.get(CONTROL_KEY))
            assert command is not None
            assert command.word is Word.HALT
            assert "dashboard 127.0.0.1" in command.text
            told = (await page.until("notices"))["notices"][-1]
            assert (told["level"], told["code"]) == ("warning", "dashboard_halt")
        await beat(bus, switch="HALTED")
        status, text = await switched(rig, browser, "halt")
        assert (status, "has confirmed it" in text) == (200, True)


async def test_what_costs_money_is_confirmed_by_typing_it(
    valkey: Server, bus: Bus, tmp_path: Path
) -> None:
    rig_ = running(tmp_path, valkey.url, bus, control=True, mode="live")
    async with rig_ as rig, rig.browser() as browser:
        await browser.log_in()
        async with browser.live():
            pass
        await beat(bus, switch="FLATTENED")
        asked = json.loads((await ask(browser, "flatten"))[1])
        assert asked["typed"] == "FLATTEN"
        assert "real money" in asked["text"]
        for body in ({}, {"typed": "flatten"}, {"typed": ["FLATTEN"]}):
            status, text = await switched(rig, browser, "flatten", **body)
            assert (status, "type FLATTEN" in text) == (409, True)
        assert await bus.get(CONTROL_KEY) is None
        assert (await switched(rig, browser, "flatten", typed="FLATTEN"))[0] == 200
        command = command_of(await bus.get(CONTROL_KEY))
        assert command is not None
        assert command.word is Word.FLATTEN


async def test_a_trader_that_does_not_obey_is_told(
    valkey: Server, bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dashboard.actions._CONFIRM_S", 0.5)
    rig_ = running(tmp_path, valkey.url, bus, control=True, mode="paper")
    async with rig_ as rig, rig.browser() as browser:
        await browser.log_in()
        async with browser.live():
            pass
        await beat(bus, switch="HALTED")
        status, text = await switched(rig, browser, "resume", typed="RESUME")
        assert status == 409
        assert "the trader says HALTED" in text
        assert "control file" in text


async def test_a_trader_that_observes_has_no_switch(locked: Rig) -> None:
    async with locked.browser() as browser:
        await browser.log_in()
        async with browser.live():
            pass
        for action in ("halt", "resume", "flatten", "reduce_only"):
            status, text = await ask(browser, action)
            assert (status, "only observes" in text) == (409, True)
        assert await locked.bus.get(CONTROL_KEY) is None


async def test_what_is_not_confirmed_within_a_minute_is_not_done(
    locked: Rig, tmp_path: Path, valkey: Server
) -> None:
    settings = settings_for(tmp_path, valkey.url)
    put_release(settings, 1)
    put_release(settings, 2)
    async with locked.browser() as browser, locked.browser() as other:
        for one in (browser, other):
            await one.log_in()
            async with one.live():
                pass
        asked = json.loads((await ask(browser, "rollback"))[1])
        assert (await other.post("/api/confirm", {"confirm": asked["confirm"]}))[0] == 409
        locked.clock[0] += 61
        assert (await browser.post("/api/confirm", {"confirm": asked["confirm"]}))[0] == 409
        assert locked.trainer.lines == []


async def test_another_sites_post_does_nothing_even_with_the_cookie(locked: Rig) -> None:
    async with locked.browser() as browser:
        await browser.log_in()
        async with browser.live():
            pass
        for headers in (
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Origin": None},
            {"X-CSRF-Token": None},
            {"X-CSRF-Token": "x"},
        ):
            for path in ("/api/action", "/api/confirm", "/logout"):
                assert (await browser.post(path, {"action": "rollback"}, **headers))[0] == 403
        async with browser.session.post(
            f"{browser.url}/api/action",
            data={"action": "rollback"},
            headers={"Origin": browser.url, "X-CSRF-Token": browser.csrf},
        ) as reply:
            assert reply.status == 415
        assert locked.trainer.lines == []
        assert (await browser.get("/api/ledger"))[0] == 200


async def test_actions_that_cannot_be_done_say_why(
    locked: Rig, tmp_path: Path, valkey: Server
) -> None:
    settings = settings_for(tmp_path, valkey.url)
    live = put_release(settings, 1)
    other = put_release(settings, 2, is_live=False)
    async with locked.browser() as browser:
        await browser.log_in()
        async with browser.live():
            pass
        for action, argument, why in (
            ("promote", live.id, "live already"),
            ("promote", "../../etc", "that is no release"),
            ("rollback", "", "no earlier release"),
            ("format", "", "no such action"),
        ):
            status, text = await ask(browser, action, argument)
            assert (status, why in text) == (409, True), text
        for body in ([], {}, {"action": 1}, {"action": "rollback", "argument": {}}):
            assert (await browser.post("/api/action", body))[0] == 400
        for answer, why in (
            ((1, "", "note\ntrainer promote: it fails the gates"), "it fails the gates"),
            ((1, "", "ModuleNotFoundError: No module named 'lightgbm'"), "is not installed here"),
            ((3, "", ""), "exit code 3"),
        ):
            locked.trainer.answer = answer
            asked = json.loads((await ask(browser, "promote", other.id))[1])
            status, text = await browser.post("/api/confirm", {"confirm": asked["confirm"]})
            assert (status, why in text) == (409, True), text


# -- what is sent ---------------------------------------------------------------------------------


async def test_every_answer_forbids_what_a_page_of_ours_never_needs(locked: Rig) -> None:
    async with locked.browser() as browser:
        await browser.log_in()
        for path in (
            "/",
            "/login",
            "/api/ledger",
            "/healthz",
            "/page/app.js",
            "/nothing",
            "/api/x",
        ):
            _, _, headers = await browser.get(path)
            policy = headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
            assert headers["Referrer-Policy"] == "same-origin"
        _, _, headers = await browser.get("/", Host="evil.example")
        assert "default-src 'none'" in headers["Content-Security-Policy"]


async def test_a_report_is_shown_in_a_sandbox(locked: Rig, tmp_path: Path, valkey: Server) -> None:
    live = put_release(settings_for(tmp_path, valkey.url), 1)
    async with locked.browser() as browser:
        await browser.log_in()
        status, text, headers = await browser.get(f"/releases/{live.id}/report.html")
        assert status == 200
        assert "<p>report</p>" in text
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("sandbox; default-src 'none'")
        assert "script" not in policy
        for path in (
            "/releases/20231114T221320Z-ffffffff/report.html",
            "/releases/..%2f..%2f/report.html",
            "/releases/current/report.html",
            f"/releases/{live.id}/manifest.json",
            "/page/..%2f..%2fpyproject.toml",
            "/page/../web.py",
        ):
            status, text, _ = await browser.get(path)
            assert status == 404, path
            assert "report" not in text or "no report" in text


async def test_files_are_asked_for_again_only_when_they_changed(open_page: Rig) -> None:
    async with open_page.browser() as browser:
        status, _, headers = await browser.get("/page/app.js")
        assert status == 200
        assert headers["Content-Type"] == "text/javascript; charset=utf-8"
        status, text, _ = await browser.get("/page/app.js", **{"If-None-Match": headers["ETag"]})
        assert (status, text) == (304, "")


async def test_data_are_given_of_the_symbols_followed_and_no_others(open_page: Rig) -> None:
    async with open_page.browser() as browser:
        for path in ("/api/outputs", "/api/features", "/api/ledger"):
            status, text, _ = await browser.get(f"{path}?symbol={SYMBOL}")
            assert status == 200
            assert json.loads(text)["symbol"] == SYMBOL
            assert (await browser.get(f"{path}?symbol=ETHUSDT"))[0] == 404
            assert (await browser.get(f"{path}?symbol="))[0] == 404
        _, text, _ = await browser.get("/api/features")
        found = json.loads(text)
        assert found["candles"] == 30
        assert {row["name"] for row in found["features"]} == {
            "close_1", "close_5", "close_15", "close_60", "volume_5", "span_5",
        }  # fmt: skip


async def test_why_is_computed_again_and_what_differs_is_named(
    valkey: Server, bus: Bus, tmp_path: Path
) -> None:
    """The recording's features are made up, so that they cannot be those of its candles."""
    live = put_release(settings_for(tmp_path, valkey.url), 1)
    recording = Recording(70, release=live.id)
    await recording.put(bus)
    rig_ = running(tmp_path, valkey.url, bus, password=False)
    async with rig_ as rig, rig.browser() as browser:
        signal = recording.signal(69)
        answers = await asyncio.gather(*(browser.get(f"/api/why?id={signal.id}") for _ in range(5)))
        assert {status for status, _, _ in answers} == {200}
        found = json.loads(answers[0][1])
        assert all(json.loads(text) == found for _, text, _ in answers)
        assert found["signal"]["score"] == signal.score
        assert found["equal"] is False
        assert found["difference"]["field"] in NAMES
        assert set(found["models"]) == set(signal.outputs)
        assert all(len(one["contributions"]) <= 4 for one in found["models"].values())
        for signal_id, status in (
            (f"{SYMBOL}-1m-{recording.open_ms(500)}", 409),
            (f"{SYMBOL}-1m-x", 409),
            (f"{SYMBOL}-1m-" + "9" * 400, 409),
            ("ETHUSDT-1m-1700000040000", 404),
            ("", 404),
        ):
            code, text, _ = await browser.get(f"/api/why?id={signal_id}")
            assert code == status, signal_id
            assert "Traceback" not in text


async def test_a_page_that_asks_for_another_symbol_or_talks_nonsense_is_closed(
    open_page: Rig,
) -> None:
    async with open_page.browser() as browser:
        for text in ('{"symbol": "ETHUSDT"}', "{", "[]", '{"symbol": {}}', "[" * 500):
            async with browser.live() as live:
                await live.socket.send_str(text)
                assert await live.closed() == 1008
        async with browser.live() as live:
            await live.socket.send_str("x" * 5000)
            assert await live.closed() == 1009


async def test_no_more_pages_than_allowed_are_open_at_once(
    valkey: Server, bus: Bus, tmp_path: Path
) -> None:
    rig_ = running(tmp_path, valkey.url, bus, password=False, viewers=2)
    async with rig_ as rig, rig.browser() as browser:
        async with browser.live(), browser.live():
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                async with browser.live():
                    pass
            assert refused.value.status == 503
        async with asyncio.timeout(30):
            while rig.site.dashboard.hub.viewers:  # noqa: ASYNC110  # nobody tells
                await asyncio.sleep(0.01)
        async with browser.live():
            pass


async def test_no_secret_is_in_anything_that_is_sent(
    valkey: Server, bus: Bus, tmp_path: Path
) -> None:
    await Recording(5).put(bus)
    await put_heartbeats(bus)
    await bus.write(notice("<script>alert(1)</script>"))
    token = tmp_path / "token"
    rig_ = running(tmp_path, valkey.url, bus, control=True, token_file=token)
    async with rig_ as rig, rig.browser() as browser:
        secret = token.read_text().strip()
        assert (await browser.log_in(secret))[0] == 303
        sent = []
        async with browser.live() as live:
            await live.until("status")
            sent = [json.dumps(message) for message in live.seen]
        for path in rig.site.assets:
            sent.append((await browser.get(f"/page/{path}"))[1])
        for path in ("/", "/login", "/api/ledger", "/api/outputs", "/api/features"):
            sent.append((await browser.get(path))[1])
        digest = (tmp_path / "password").read_text().strip()
        for text in sent:
            for canary in (secret, PASSWORD, digest, digest.rsplit("$", 1)[1], valkey.url):
                assert canary not in text
