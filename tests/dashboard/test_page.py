"""The page in a real browser, served by the real process, on a bus as a run leaves it."""

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from dashboard.credentials import PasswordHash, write_password
from shared.bus import Bus, Source, Write
from shared.ledger import ledger_of
from shared.streams import ORDER
from tests.browser import Tab, browser
from tests.dashboard.axe import audit
from tests.dashboard.recorded import (
    Recording,
    notice,
    put_heartbeats,
    put_release,
    settings_for,
)
from tests.dashboard.test_account import BOUGHT, SOLD, line
from tests.valkey import Server, free_port
from tests.waiting import wait_until

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
PASSWORD = "correct horse battery"
CANDLES = 3_000
MORE = 60
TABS = ("trades", "models", "features", "data", "pipeline", "releases")
# Only for people: where the pictures go that a run makes.
SHOTS = os.environ.get("DASHBOARD_PICTURES")


@dataclass
class Served:
    """The process and its bus. written: candles that stand on the bus."""

    folder: Path
    server: Server
    port: int
    recording: Recording
    variables: dict[str, str]
    written: int = 0
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ITB_")}
        environment |= {
            "ITB_REDIS_URL": self.server.url,
            "ITB_MODEL_FOLDER": str(self.folder / "models"),
            "ITB_DATA_FOLDER": str(self.folder / "data"),
            "ITB_DASHBOARD__PORT": str(self.port),
        } | self.variables
        with (self.folder / "dashboard.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dashboard"], env=environment, stderr=log
            )
        process, log_file = self.process, self.folder / "dashboard.log"

        def answers() -> bool:
            assert process.poll() is None, log_file.read_text()
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.url}healthz", timeout=5)  # noqa: S310  # our http
                return True
            return False

        wait_until(answers, log_file.read_text)

    def stop(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def put(self, numbers: Sequence[int], *more: Write[Any]) -> None:
        """Candles, and other entries, onto the bus."""

        async def put() -> None:
            async with Bus.session(self.server.url, service="desk") as bus:
                await put_heartbeats(bus)
                await self.recording.put(bus, numbers)
                if more:
                    await bus.write(*more)

        asyncio.run(put())
        self.written = max([self.written, *(n + 1 for n in numbers)])


@contextlib.contextmanager
def serving(folder: Path, rows: int = 300, **variables: str) -> Iterator[Served]:
    server = Server(folder / "valkey").start()
    settings = settings_for(folder, server.url)
    put_release(settings, 1)
    live = put_release(settings, 2)
    recording = Recording(rows + MORE, gap_every=97, warm_up=5, release=live.id)
    served = Served(folder, server, free_port(), recording, variables)
    try:
        served.put(range(rows), notice("3 candles were missing and are repaired"))
        served.start()
        yield served
    finally:
        if served.process is not None:
            served.stop()
        server.stop()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("dashboard"), CANDLES) as served:
        yield served


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("browser")) as tab:
        yield tab


def show(tab: Tab, served: Served, *, width: int = 1440, dark: bool = False, at: str = "") -> None:
    tab.open(served.url + at, width=width, dark=dark)
    tab.until("document.querySelector('#price').textContent !== '–'")
    tab.until("document.querySelector('#health').textContent !== '–'")


def picture(tab: Tab, name: str, folder: Path) -> None:
    tab.screenshot((Path(SHOTS) if SHOTS else folder) / f"{name}.png")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1440])
def test_every_part_is_shown_on_every_screen_without_a_fault(
    served: Served, tab: Tab, width: int, dark: bool, tmp_path: Path
) -> None:
    for name in TABS:
        show(tab, served, width=width, dark=dark, at=f"#{name}")
        tab.until(f"document.querySelector('#panel-{name} table, #panel-{name} .empty')")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width, name
        outside = tab.evaluate(
            "[...document.querySelectorAll('main *')].filter(e => "
            "!e.closest('.scroll, .hidden, .plot') && "
            f"e.getBoundingClientRect().right > {width} + 1).map(e => e.id || e.className)"
        )
        assert outside == [], name
        background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (int(re.findall(r"\d+", background)[0]) < 60) == dark
        assert audit(tab) == [], name
        picture(tab, f"{name}-{width}-{'dark' if dark else 'light'}", tmp_path)
        assert tab.messages == [], name
        elsewhere = [u for u in tab.requests if f"127.0.0.1:{served.port}/" not in u]
        assert elsewhere == []


def test_thousands_of_candles_stay_fluid_and_what_they_take_is_printed(
    served: Served, tab: Tab
) -> None:
    """The aims are a first paint within 1 s and an update within 50 ms: the figures are printed. A
    busy machine misses them, so that only ten times as much is a fault."""
    paints = []
    for _ in range(3):
        show(tab, served)
        tab.until("performance.getEntriesByName('itb-snapshot').length")
        first = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
        drawn = "(e => e.startTime + e.duration)(performance.getEntriesByName('itb-snapshot')[0])"
        paints.append((tab.evaluate(first), tab.evaluate(drawn)))
    tab.call("Performance.enable", timeDomain="threadTicks")

    def busy_s() -> float:
        metrics = tab.call("Performance.getMetrics")["metrics"]
        return next(float(one["value"]) for one in metrics if one["name"] == "TaskDuration")

    rows = "performance.getEntriesByName('itb-rows')"
    count = tab.evaluate(f"{rows}.length")
    before_s = busy_s()
    for number in range(CANDLES, CANDLES + 30):
        served.put([number])
        count += 1
        tab.until(f"{rows}.length >= {count}")
    each_ms = 1000 * (busy_s() - before_s) / 30
    took = sorted(tab.evaluate(f"{rows}.map(e => e.duration)"))
    print(
        f"\n{CANDLES} candles: first paint {min(paints)[0]:.0f} ms, all of them drawn "
        f"{min(paints)[1]:.0f} ms; {len(took)} updates, each {each_ms:.1f} ms of the page's "
        f"thread; by the clock to the frame that shows it: best {took[0]:.1f} ms, median "
        f"{took[len(took) // 2]:.1f} ms, worst {took[-1]:.1f} ms"
    )
    assert min(paints)[0] < 10_000
    assert each_ms < 500
    shown = f"{served.recording.closes()[CANDLES + 29]:,.2f}"
    tab.until(f"document.querySelector('#price').textContent === '{shown}'")


def test_the_keyboard_reaches_and_works_everything(
    served: Served, tab: Tab, tmp_path: Path
) -> None:
    show(tab, served)
    focus = "document.activeElement.id || document.activeElement.textContent"
    tab.press("Tab")
    assert tab.evaluate(focus) == "Skip to content"
    tab.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "main"
    reached = []
    for _ in range(60):
        tab.press("Tab")
        reached.append(tab.evaluate(focus))
        if reached[-1] == "chart":
            break
    assert reached[-1] == "chart", reached
    newest = tab.evaluate("document.querySelector('#legend').textContent")
    tab.press("ArrowLeft")
    before = tab.evaluate("document.querySelector('#legend').textContent")
    assert before != newest
    assert tab.evaluate("document.querySelector('#chart-said').textContent") == before
    tab.press("ArrowLeft", "ArrowRight")
    assert tab.evaluate("document.querySelector('#legend').textContent") == before
    tab.press("Enter")
    assert tab.evaluate("document.querySelector('#why').open") is True
    assert before[:17].strip() in tab.evaluate("document.querySelector('#why').textContent")
    tab.until("document.querySelector('#why .verdict')")
    verdict = tab.evaluate("document.querySelector('#why .verdict').textContent")
    assert "NOT equal" in verdict  # the recording's features are made up
    picture(tab, "why", tmp_path)
    assert audit(tab) == []
    tab.press("Escape")
    assert tab.evaluate("document.querySelector('#why').open") is False
    assert tab.evaluate("document.activeElement.id") == "chart"
    tab.press("-", "+", "End")
    tab.evaluate("document.querySelector('#tab-trades').focus()")
    for name in (*TABS[1:], TABS[0]):
        tab.press("ArrowRight")
        assert tab.evaluate(focus) == f"tab-{name}"
        assert tab.evaluate(f"document.querySelector('#panel-{name}').hidden") is False
        shown = "[...document.querySelectorAll('[role=tabpanel]')].filter(e => !e.hidden).length"
        assert tab.evaluate(shown) == 1
    tab.press("Tab")
    assert tab.evaluate(focus) == "panel-trades"
    assert tab.messages == []


def test_the_theme_that_was_chosen_stays(served: Served, tab: Tab) -> None:
    dark = "parseInt(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]) < 60"
    show(tab, served)
    assert tab.evaluate(dark) is False
    tab.evaluate("document.querySelector('#theme').click()")
    assert tab.evaluate(dark) is True
    show(tab, served)
    assert tab.evaluate(dark) is True
    tab.evaluate("document.querySelector('#theme').click()")
    tab.evaluate("localStorage.clear()")
    assert tab.evaluate(dark) is False


def test_text_from_the_bus_is_text(served: Served, tab: Tab) -> None:
    hostile = (
        "<img src=/x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    )
    show(tab, served, at="#data")
    served.put([], notice(hostile))
    tab.until("document.querySelector('#panel-data').textContent.includes('onerror')")
    assert hostile in tab.evaluate("document.querySelector('#alert-text').textContent")
    assert (
        tab.evaluate("document.querySelectorAll('main img, .strip img, main script').length") == 0
    )
    assert "owned" not in tab.evaluate("document.title")
    assert tab.messages == []


def test_an_account_whose_trades_are_no_longer_on_the_bus_is_compared_from_its_first(
    tmp_path: Path, tab: Tab
) -> None:
    sum_ = ledger_of([*BOUGHT, *SOLD], "BTC", "USDT", "paper").carried()
    carried = line("CARRIED", 10, side="", carried=sum_)
    with serving(tmp_path, ITB_TRADER__MODE="paper") as served:
        served.put([served.written], Write(source=Source(ORDER, "BTCUSDT"), event=carried))
        show(tab, served, at="#trades")
        # Bought for 30,010; the one sale made 92.80 on 10,000.
        gain = 100 * (served.recording.closes()[served.written - 1] / 30_010 - 1)
        tab.until("document.querySelector('#equity').textContent === '+0.93 %'")
        note = tab.evaluate("document.querySelector('#equity-note').textContent")
        sign = "−" if gain < 0 else "+"
        assert note == f"+92.80 USDT · 1 round trips · held instead {sign}{abs(gain):.2f} %"
        assert tab.evaluate("document.querySelector('#position').textContent") == "flat"
        since = tab.evaluate("document.querySelector('#position-note').textContent")
        assert since.startswith("since ")
        tab.until("document.querySelector('#panel-trades section .empty')")
        empty = tab.evaluate("document.querySelector('#panel-trades section .empty').textContent")
        assert empty == "What was filled is no longer on the bus."
        picture(tab, "carried", tmp_path)
        assert tab.messages == []


def test_the_page_comes_back_by_itself_when_the_server_does(tmp_path: Path, tab: Tab) -> None:
    with serving(tmp_path) as served:
        show(tab, served)
        served.stop()
        tab.until("document.querySelector('#connection').dataset.kind === 'down'")
        served.put([served.written])
        served.start()
        tab.until("document.querySelector('#connection').dataset.kind === 'up'")
        close = f"{served.recording.closes()[served.written - 1]:,.2f}"
        tab.until(f"document.querySelector('#price').textContent === '{close}'")


def test_a_login_opens_the_page_and_confirmed_actions_are_done(tmp_path: Path, tab: Tab) -> None:
    write_password(tmp_path / "password", PasswordHash.of(PASSWORD, cost=(16, 8, 1)))
    variables = {
        "ITB_DASHBOARD__PASSWORD_FILE": str(tmp_path / "password"),
        "ITB_DASHBOARD__CONTROL": "true",
    }
    with serving(tmp_path, **variables) as served:
        tab.open(served.url, width=390)
        assert tab.evaluate("location.pathname") == "/login"
        assert audit(tab) == []
        picture(tab, "login", tmp_path)

        actions = "[...document.querySelectorAll('#control button')]"

        def log_in(password: str) -> None:
            tab.evaluate(f"document.querySelector('#password').value = '{password}'")
            tab.evaluate("document.querySelector('form').requestSubmit()")

        log_in("wrong password")
        tab.until("document.querySelector('.problem').textContent.includes('not the password')")
        log_in(PASSWORD)
        tab.until("document.querySelector('#price').textContent !== '–'")
        assert tab.evaluate("document.cookie") == ""
        tab.open(served.url, width=360)
        tab.until("document.querySelector('#price').textContent !== '–'")
        assert tab.evaluate("document.documentElement.scrollWidth") <= 360
        assert tab.evaluate("document.querySelector('#control-open').hidden") is False
        tab.evaluate("document.querySelector('#control-open').click()")
        assert audit(tab) == []
        picture(tab, "control", tmp_path)
        tab.evaluate(f"{actions}.find(b => b.textContent === 'Halt').click()")
        tab.until("!document.querySelector('#confirm-yes').disabled")
        tab.evaluate("document.querySelector('#confirm-yes').click()")
        told = "document.querySelector('#confirm-problem').textContent"
        tab.until(f"{told}.includes('the trader says nothing of it')")  # it is a recording
        tab.press("Escape")
        tab.evaluate(f"{actions}.find(b => b.textContent === 'Flatten').click()")
        tab.until("!document.querySelector('#confirm-type').hidden")
        assert tab.evaluate("document.querySelector('#confirm-yes').disabled") is True
        tab.press(*"FLATTEN")
        assert tab.evaluate("document.querySelector('#confirm-yes').disabled") is False
        assert audit(tab) == []
        tab.press("Escape")
        tab.evaluate("document.querySelector('#tab-releases').click()")
        button = "[...document.querySelectorAll('#panel-releases button')]"
        tab.until(f"{button}.some(b => b.textContent === 'Roll back')")
        live = "document.querySelector('#panel-releases .badge').closest('tr').textContent"
        before = tab.evaluate(live)
        tab.evaluate(f"{button}.find(b => b.textContent === 'Roll back').click()")
        tab.until("!document.querySelector('#confirm-yes').disabled")
        picture(tab, "confirm", tmp_path)
        assert "live again in place of" in tab.evaluate(
            "document.querySelector('#confirm-text').textContent"
        )
        tab.press("Escape")
        assert tab.evaluate(live) == before
        tab.evaluate(f"{button}.find(b => b.textContent === 'Roll back').click()")
        tab.until("!document.querySelector('#confirm-yes').disabled")
        tab.evaluate("document.querySelector('#confirm-yes').click()")
        tab.until("!document.querySelector('#confirm').open")
        tab.until(f"{live} !== {before!r}")
        tab.evaluate("document.querySelector('#logout').click()")
        tab.until("location.pathname === '/login'")
        tab.open(served.url, width=390)
        assert tab.evaluate("location.pathname") == "/login"


def test_times_are_in_the_viewers_own_zone_where_that_is_chosen(served: Served, tab: Tab) -> None:
    """Darwin is half an hour off the hours of UTC, so nothing is right by accident."""
    tab.call("Emulation.setTimezoneOverride", timezoneId="Australia/Darwin")
    try:
        show(tab, served, width=390)
        note = "document.querySelector('#price-note').textContent"
        newest = tab.evaluate("document.querySelector('.signal time').dateTime")
        moment = datetime.fromisoformat(newest.replace("Z", "+00:00"))
        assert tab.evaluate("document.querySelector('#zone').textContent") == "UTC"
        shown = "document.querySelector('.signal time').textContent"
        assert tab.evaluate(shown).endswith(f"{moment:%H:%M}")
        before = tab.evaluate(note)
        tab.evaluate("document.querySelector('#zone').click()")
        tab.until(f"{note} !== {json.dumps(before)}")
        local = moment.astimezone(ZoneInfo("Australia/Darwin"))
        assert tab.evaluate(shown).endswith(f"{local:%H:%M}")
        told = "document.querySelector('#zone-told').textContent"
        assert "Australia/Darwin (UTC+09:30)" in tab.evaluate(told)
        assert tab.evaluate("document.querySelector('#zone').textContent") == "Darwin"
        show(tab, served, width=390)
        assert tab.evaluate(shown).endswith(f"{local:%H:%M}"), "it is remembered"
        tab.evaluate("document.querySelector('#zone').click()")
        tab.until(f"{note} === {json.dumps(before)}")
        assert tab.evaluate(told) == "All times are UTC."
        assert tab.messages == []
    finally:
        tab.evaluate("localStorage.removeItem('itb-zone')")
        tab.call("Emulation.setTimezoneOverride", timezoneId="")


def test_on_a_phone_no_table_is_cut_off(served: Served, tab: Tab) -> None:
    for name in TABS:
        show(tab, served, width=390, at=f"#{name}")
        panel = f"#panel-{name}"
        tab.until(f"document.querySelector('{panel} table') !== null")
        cut = tab.evaluate(
            f"[...document.querySelectorAll('{panel} .scroll')]"
            ".filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.ariaLabel)"
        )
        assert cut == [], name


def test_what_became_of_the_signals_is_what_the_command_prints(
    served: Served, tab: Tab, tmp_path: Path
) -> None:
    show(tab, served, width=390, at="#models")
    section = "document.querySelector('#panel-models section')"
    tab.until(f"{section}.textContent.includes('AUC of the score, live')")
    tab.until(f"{section}.querySelector('tbody') !== null")
    rows = tab.evaluate(
        f"[...{section}.querySelectorAll('tbody tr')]"
        ".map(row => [...row.children].map(cell => cell.textContent))"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ITB_")}
    printed = subprocess.run(
        [sys.executable, "-m", "deploy.cli", "outcomes", "--json"],
        capture_output=True,
        check=True,
        env=environment
        | {
            "ITB_REDIS_URL": served.server.url,
            "ITB_MODEL_FOLDER": str(served.folder / "models"),
            "ITB_DATA_FOLDER": str(served.folder / "data"),
        },
    )
    (told,) = json.loads(printed.stdout)["releases"].values()
    assert told["models"]
    shown = {row[0]: (row[1], row[-1]) for row in rows}
    for name, one in told["models"].items():
        auc = one["live"]["auc"]
        assert shown[name][0] == ("–" if auc is None else f"{auc:.3f}"), name
        assert shown[name][1] == f"{one['live']['rows']:,}", name
    picture(tab, "outcomes", tmp_path)
    assert tab.messages == []
