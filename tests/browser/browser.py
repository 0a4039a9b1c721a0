"""Chromium without a window, driven over WebDriver: what the tests of the page need of it, with nothing to install.

`chromedriver` comes with Debian's chromium. Where either is missing, `missing()` says so.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
_PATIENCE_S = 30.0
_FLAGS = (
    "--headless",
    "--no-sandbox",  # CI's containers run as root
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--window-size=1366,768",
)


def missing() -> str:
    """What is not installed here, "" where all is there."""
    return ", ".join(name for name in ("chromium", "chromedriver") if shutil.which(name) is None)


class Browser:
    """One tab. Every method waits for the browser; `until` waits for the page."""

    def __init__(self, url: str, capabilities: dict[str, Any]) -> None:
        self._url = url
        self._session = ""
        found = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
        self._session = f"/session/{found['sessionId']}"

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        data = None if method != "POST" else json.dumps(body or {}).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            value = json.load(error)["value"]
            raise AssertionError(f"{value['error']}: {value['message']}") from None

    def do(self, path: str, body: Any = None) -> Any:
        """Gives one command of the protocol."""
        return self._ask("POST", self._session + path, body)

    def devtools(self, command: str, **parameters: Any) -> Any:
        """Gives one command of Chromium's own protocol."""
        return self.do("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def open(self, url: str) -> None:
        self.do("/url", {"url": url})

    def close(self) -> None:
        self._ask("DELETE", self._session)

    def run(self, script: str, *arguments: Any) -> Any:
        """Runs the body of a function in the page, past its Content-Security-Policy."""
        return self.do("/execute/sync", {"script": script, "args": list(arguments)})

    def text(self, selector: str) -> str:
        """The words of the first element, as they lie in the document; "" where there is none."""
        return str(self.run("return document.querySelector(arguments[0])?.textContent ?? ''", selector))

    def element(self, selector: str) -> str:
        found = self.do("/element", {"using": "css selector", "value": selector})
        return str(found[_ELEMENT])

    def click(self, selector: str) -> None:
        """Clicks where a mouse would: what is hidden or covered is an error."""
        self.do(f"/element/{self.element(selector)}/click")

    def fill(self, selector: str, text: str) -> None:
        """Types into a field in place of what it has."""
        element = self.element(selector)
        self.do(f"/element/{element}/clear")
        self.do(f"/element/{element}/value", {"text": text})

    def press(self, *keys: str) -> None:
        """Presses keys wherever the focus is, one after another."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.do("/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def until(self, holds: Callable[[], Any], what: str) -> Any:
        """Returns what `holds` returns once that is true; fails with `what` where it never is."""
        deadline = time.monotonic() + _PATIENCE_S
        while not (found := holds()):
            assert time.monotonic() < deadline, (
                f"it never came to that: {what}; {' '.join(self.text('main').split())[:1000]}"
            )
            time.sleep(0.05)
        return found

    def log(self, kind: str) -> list[dict[str, Any]]:
        """What came since the last look: `browser` has the console, `performance` the requests."""
        found: list[dict[str, Any]] = self.do("/se/log", {"type": kind})
        return found

    def screenshot(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self._ask("GET", self._session + "/screenshot")))


@contextmanager
def browser(directory: Path) -> Iterator[Browser]:
    """Runs Chromium with a new profile in `directory` until the scope is left."""
    options = {"args": [*_FLAGS, f"--user-data-dir={directory}/profile"], "binary": shutil.which("chromium")}
    capabilities = {
        "browserName": "chrome",
        "goog:chromeOptions": options,
        "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
    }
    driver, port = _driver(directory)
    try:
        tab = Browser(f"http://127.0.0.1:{port}", capabilities)
        try:
            yield tab
        finally:
            tab.close()
    finally:
        _end(driver)


def _driver(directory: Path) -> tuple[subprocess.Popen[str], int]:
    """Starts the driver on a free port. It takes one for IPv4 and wants the same for IPv6, where it may be taken: then
    it ends at once, and another try finds another."""
    for _ in range(5):
        driver = subprocess.Popen(
            ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=directory
        )
        assert driver.stdout is not None
        said = []
        for line in driver.stdout:
            said.append(line)
            if "started successfully on port" in line:
                return driver, int(line.rsplit(" ", 1)[1].strip(".\n"))
        _end(driver)
    raise AssertionError("chromedriver does not start: " + "".join(said))


def _end(driver: subprocess.Popen[str]) -> None:
    driver.terminate()
    driver.wait(20)
    assert driver.stdout is not None
    driver.stdout.close()
