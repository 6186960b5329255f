# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Drives a headless Chromium over the DevTools protocol, by a pipe: no port, no driver, no package.

https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

# Long enough for a machine that does other work too; nothing waits longer than it must.
TIMEOUT = 30.0


class Browser:
    """One Chromium. ``folder`` becomes its profile."""

    def __init__(self, executable: str, folder: Path) -> None:
        # Chromium reads commands from descriptor 3 and answers on 4. Ours are out of the way there.
        (command_read, self._write), (self._read, answer_write) = _pipe(), _pipe()
        command = [
            *(executable, "--headless", "--remote-debugging-pipe", f"--user-data-dir={folder}"),
            # Where the tests run as root, Chromium refuses to start with its sandbox.
            *(("--no-sandbox",) if os.geteuid() == 0 else ()),
            *("--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--no-proxy-server"),
            *("--disable-background-networking", "--disable-component-update", "about:blank"),
        ]
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{command_read} 4>&{answer_write}', "bash", *command],
            pass_fds=(command_read, answer_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(command_read)
        os.close(answer_write)
        self._held = b""
        self._count = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self._pages: dict[str, Page] = {}
        self.call("Browser.getVersion")

    def close(self) -> None:
        """End the process."""
        with suppress(OSError):
            self.call("Browser.close")
        self._process.wait(timeout=TIMEOUT)
        os.close(self._write)
        os.close(self._read)

    def call(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its result."""
        self._count += 1
        number = self._count
        message = {"id": number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + TIMEOUT
        while number not in self._answers:
            self.listen(end - time.monotonic())
        answer = self._answers.pop(number)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    def listen(self, seconds: float) -> None:
        """Take in what the browser says, for at most ``seconds`` until it says something."""
        if not select.select([self._read], [], [], max(seconds, 0))[0]:
            raise TimeoutError("the browser says nothing")
        self._held += os.read(self._read, 1 << 20)
        *messages, self._held = self._held.split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self._answers[message["id"]] = message
            elif page := self._pages.get(message.get("sessionId", "")):
                page.events.append((message["method"], message["params"]))

    def context(self) -> str:
        """A new profile that shares nothing with the others, for pages to be opened in."""
        identifier: str = self.call("Target.createBrowserContext")["browserContextId"]
        return identifier

    def page(self, context: str) -> Page:
        """A new page."""
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        page = Page(self, attached["sessionId"])
        self._pages[attached["sessionId"]] = page
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.call(f"{domain}.enable")
        return page


class Page:
    """One page; ``events`` are those of the protocol, as (method, parameters)."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self.events: list[tuple[str, dict[str, Any]]] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol to this page."""
        return self._browser.call(method, self._session, **parameters)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, which may be a promise."""
        answer = self.call(
            "Runtime.evaluate",
            expression=script,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def open(self, url: str) -> None:
        """Go to ``url``, and wait until its scripts ran."""
        self.call("Page.navigate", url=url)
        self.wait("location.href !== 'about:blank' && document.readyState === 'complete'")

    def reload(self) -> None:
        """Load the page anew."""
        self.run("window.old = true")
        self.call("Page.reload")
        self.wait("!window.old && document.readyState === 'complete'")

    def wait(self, condition: str | Callable[[], object], seconds: float = TIMEOUT) -> None:
        """Wait until a JavaScript expression, or a function, gives something true."""
        end = time.monotonic() + seconds
        while True:
            # While a page is exchanged for another one there is none to ask.
            with suppress(RuntimeError):
                if self.run(f"Boolean({condition})") if isinstance(condition, str) else condition():
                    return
            if time.monotonic() > end:
                raise AssertionError(f"{condition} did not come true; {self.run(_TEXT)}")
            time.sleep(0.02)

    def press(self, key: str, modifiers: int = 0) -> None:
        """Press and release a key by its name; ``modifiers``: 8 is Shift."""
        codes = {"Enter": 13, "Escape": 27, "Tab": 9, " ": 32}
        key_event = {"key": key, "modifiers": modifiers, "windowsVirtualKeyCode": codes[key]}
        text = {"Enter": "\r", " ": " "}.get(key)
        down = key_event | ({"text": text} if text else {})
        self.call("Input.dispatchKeyEvent", type="keyDown", **down)
        self.call("Input.dispatchKeyEvent", type="keyUp", **key_event)

    def type(self, text: str) -> None:
        """Insert ``text`` where the focus is."""
        self.call("Input.insertText", text=text)

    def seen(self, method: str) -> list[dict[str, Any]]:
        """The parameters of all events of this kind until now."""
        self.run("0")
        return [parameters for name, parameters in self.events if name == method]


_TEXT = "document.body.innerText"


def find_chromium() -> str | None:
    """The path of a Chromium, if this machine has one."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


def _pipe() -> tuple[int, int]:
    ends = os.pipe()
    moved = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return moved[0], moved[1]
