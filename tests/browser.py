"""A headless Chromium that opens a page and tells what it did: for tests marked `browser`.

Spoken to over the DevTools protocol, with the websockets library that the services use anyway.
Debian has it as the package `chromium`.
"""

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

from tests.waiting import wait_until

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_TIMEOUT_S = 60


def find_chromium() -> str:
    """Skips the test, and says so, where there is none."""
    for name in _NAMES:
        path = shutil.which(name)
        if path is not None:
            return path
    pytest.skip(f"no browser: none of {', '.join(_NAMES)} is on PATH (apt-get install chromium)")


class Tab:
    """One page. requests: addresses asked for, the page's own too (`data:` asks nobody).

    messages: of the console, of errors in scripts and of the browser's log (refusals of the content
    policy, for one).
    """

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._loaded = False
        self._numbers = itertools.count(1)
        self.requests: list[str] = []
        self.messages: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        deadline = time.monotonic() + _TIMEOUT_S
        while True:
            assert time.monotonic() < deadline, f"{method}: no answer: {parameters}"
            message = self._receive()
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                result: dict[str, Any] = message["result"]
                return result

    def open(self, page: Path | str, *, width: int, dark: bool = False, height: int = 900) -> None:
        """Loads a file or an address anew on a screen of this size (CSS pixels; under 600: a
        phone's)."""
        url = page.resolve().as_uri() if isinstance(page, Path) else page
        self.requests.clear()
        self.messages.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        for address in ("about:blank", url):  # what differs only behind # is loaded anew, too
            self._loaded = False
            self.call("Page.navigate", url=address)
            while not self._loaded:
                self._receive()

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, by the debugger: no script runs in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, expression: str) -> None:
        """Waits until the expression is true, on whatever page there is then."""
        safe = f"(() => {{ try {{ return Boolean({expression}); }} catch {{ return false; }} }})()"
        wait_until(lambda: self.evaluate(safe), expression, timeout_s=_TIMEOUT_S)

    def press(self, *keys: str) -> None:
        """Keys by their names (`Tab`, `ArrowLeft`, `Enter`, `Shift+Tab`) or one character."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, "End": 35, "Home": 36,
                 "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}  # fmt: skip
        for key in keys:
            name = key.rpartition("Shift+")[2]
            event: dict[str, Any] = {"key": name, "modifiers": 8 if name != key else 0}
            if name in codes:
                event |= {"code": name, "windowsVirtualKeyCode": codes[name]}
            text = {"Enter": "\r"}.get(name, "" if name in codes else name)
            self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **event)
            self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def screenshot(self, path: Path) -> None:
        """The whole page, also below the fold."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        found = self.call(
            "Page.captureScreenshot",
            format="png",
            captureBeyondViewport=True,
            clip={"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1},
        )
        path.write_bytes(base64.b64decode(found["data"]))

    def pdf(self) -> bytes:
        """As it would be printed."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=False)["data"])

    def _receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._connection.recv(timeout=_TIMEOUT_S))
        parameters = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                url = parameters["request"]["url"]
                if not url.startswith(("data:", "about:")):
                    self.requests.append(url)
            case "Network.webSocketCreated":
                self.requests.append(parameters["url"])
            case "Runtime.consoleAPICalled":
                texts = [str(arg.get("value")) for arg in parameters["args"]]
                self.messages.append(f"console {parameters['type']}: {' '.join(texts)}")
            case "Runtime.exceptionThrown":
                details = parameters["exceptionDetails"]
                what = details.get("exception", {}).get("description", "")
                self.messages.append(f"exception: {details['text']} {what}")
            case "Log.entryAdded":
                self.messages.append(f"log: {parameters['entry']['text']}")
        return message


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Tab]:
    """A fresh browser with one tab. folder: for its profile."""
    command = [
        find_chromium(),
        "--headless=new",
        "--remote-debugging-port=0",
        f"--user-data-dir={folder / 'profile'}",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--force-color-profile=srgb",
        "--hide-scrollbars",
    ]
    if os.geteuid() == 0:
        command.append("--no-sandbox")  # it refuses to run as root with it
    with (folder / "chromium.log").open("w") as log:
        process = subprocess.Popen([*command, "about:blank"], stdout=log, stderr=log)
        try:
            port = _port(folder, process)
            with urllib.request.urlopen(
                f"http://127.0.0.1:{port}/json/list", timeout=_TIMEOUT_S
            ) as answer:
                tabs = json.load(answer)
            address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
            with connect(address, max_size=None, proxy=None) as connection:
                yield Tab(connection)
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _port(folder: Path, process: "subprocess.Popen[bytes]") -> int:
    """What Chromium writes once it listens: its log is read until then."""
    file = folder / "profile" / "DevToolsActivePort"
    log = folder / "chromium.log"

    def lines() -> list[str]:
        assert process.poll() is None, log.read_text()
        return file.read_text().splitlines() if file.exists() else []

    return int(wait_until(lines, log.read_text, timeout_s=_TIMEOUT_S)[0])
