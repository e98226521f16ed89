"""Headless Chromium, driven over its debugging pipe: what a page looks like, and what it asks for.

with chromium(tmp_path) as browser:
    tab = browser.open("http://127.0.0.1:8080/", width=390, dark=True)
    tab.evaluate("document.title")
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def program() -> str | None:
    """The browser of this machine, if it has one."""
    return next((found for name in _NAMES if (found := shutil.which(name))), None)


needs_chromium = pytest.mark.skipif(
    program() is None, reason="no Chromium: contrib/install-packages test installs it"
)


@dataclass
class Tab:
    """One page, loaded. `asked` are the addresses that it requested, its own first."""

    browser: Browser
    target: str
    session: str
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, as the debugger sees the page."""
        answer = self.browser.call(
            "Runtime.evaluate", self.session, expression=expression, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG, also what is below the fold."""
        answer = self.browser.call(
            "Page.captureScreenshot", self.session, format="png", captureBeyondViewport=True
        )
        path.write_bytes(base64.b64decode(answer["data"]))

    def close(self) -> None:
        self.browser.call("Target.closeTarget", targetId=self.target)


class Browser:
    """The debugging protocol: a command, its answer, and the events in between."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands = os.fdopen(commands, "wb", buffering=0)
        self._answers = os.fdopen(answers, "rb")
        self._buffer = b""
        self._number = 0
        self._events: deque[dict[str, Any]] = deque()

    def close(self) -> None:
        self._commands.close()
        self._answers.close()

    def call(self, method: str, session: str = "", /, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        self._commands.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                found: dict[str, Any] = answer["result"]
                return found
            self._events.append(answer)

    def _event(self) -> dict[str, Any]:
        return self._events.popleft() if self._events else self._read()

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            more = os.read(self._answers.fileno(), 1 << 16)
            assert more, "the browser has gone"
            self._buffer += more
        raw, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(raw)
        return message

    def open(self, address: str, *, width: int, dark: bool) -> Tab:
        """Load a page in a tab of this width in CSS pixels; returns when it has loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Tab(self, target, session)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", session, features=scheme)
        screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", session, **screen)
        for domain in ("Network", "Page", "Log", "Runtime"):
            self.call(f"{domain}.enable", session)
        self.call("Page.navigate", session, url=address)
        while True:
            event = self._event()
            if event.get("sessionId") != session:
                continue  # another tab, which loads itself again
            match event.get("method"):
                case "Network.requestWillBeSent":
                    tab.asked.append(event["params"]["request"]["url"])
                case "Log.entryAdded":
                    tab.complaints.append(event["params"]["entry"]["text"])
                case "Page.loadEventFired" if tab.asked:  # not that of the empty page before
                    return tab


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """Run it until the block ends. profile: a directory for it alone."""
    found = program()
    assert found
    read_commands, commands = os.pipe()
    answers, write_answers = os.pipe()

    switches = ["--headless", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    switches += ["--disable-gpu", "--hide-scrollbars", "--force-color-profile=srgb"]
    switches += ["--disable-lcd-text", "--font-render-hinting=none"]  # small files
    switches += ["--disable-dev-shm-usage", "--no-first-run"]
    switches += ["--no-sandbox"] if os.getuid() == 0 else []
    pipes = f"3</proc/self/fd/{read_commands} 4>/proc/self/fd/{write_answers}"
    with subprocess.Popen(
        ["/bin/sh", "-c", f'exec "$0" "$@" {pipes}', found, *switches],
        pass_fds=(read_commands, write_answers),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        os.close(read_commands)
        os.close(write_answers)
        browser = Browser(commands, answers)
        try:
            yield browser
        finally:
            browser.close()
            process.kill()
