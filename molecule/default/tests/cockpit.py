# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Cockpit's terminal, as somebody at a browser has it: the form, the page, the keys, the screen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.tests.browser import Browser, Page

# The terminal is in a frame of its own, which keeps its text for those who cannot see it.
FRAME = (
    "[...document.querySelectorAll('iframe')]"
    ".find(each => each.contentDocument?.querySelector('.xterm-accessibility-tree'))"
)
SCREEN = f"{FRAME}?.contentDocument.querySelector('.xterm-accessibility-tree').innerText"


class Terminal:
    """The terminal of an account that logs in at ``url``."""

    def __init__(self, page: Page, url: str, user: str, password: str) -> None:
        self._page = page
        # Whose certificate that is, is looked at elsewhere.
        page.call("Security.setIgnoreCertificateErrors", ignore=True)
        page.open(f"{url}/system/terminal")
        page.wait("document.querySelector('#login-user-input')?.checkVisibility()")
        for name, text in (("user", user), ("password", password)):
            page.run(f"document.querySelector('#login-{name}-input').value = {json.dumps(text)}")
        page.run("document.querySelector('#login-button').click()")
        # Its shell has written a prompt.
        page.wait(f"({SCREEN} ?? '').trim()")
        page.run(f"{FRAME}.contentDocument.querySelector('.xterm-helper-textarea').focus()")

    def enter(self, line: str) -> None:
        """Type a line, key by key."""
        for key in line:
            self._page.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=key)
            self._page.call("Input.dispatchKeyEvent", type="keyUp", key=key)
        self._page.press("Enter")

    def wait(self, *lines: str) -> None:
        """Wait until the screen has these lines, whole."""
        self._page.wait(lambda: set(lines) <= set(self.lines()))

    def lines(self) -> list[str]:
        """What is on the screen now."""
        return [line.rstrip() for line in str(self._page.run(SCREEN)).splitlines()]


@contextmanager
def terminal(
    executable: str, folder: Path, url: str, user: str, password: str
) -> Iterator[Terminal]:
    """A browser with the terminal open."""
    browser = Browser(executable, folder)
    try:
        yield Terminal(browser.page(browser.context()), url, user, password)
    finally:
        browser.close()
