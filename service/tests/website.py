# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The real gateway with a scripted engine, and those who visit its pages with a real browser."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import TypeVar

import uvicorn
from starlette.types import Receive, Scope, Send

from nas_assistant.gateway import create_app
from nas_assistant.keys import ApiKey, KeyRing
from nas_assistant.settings import Settings

from .browser import Browser, Page
from .fake_engine import FakeEngine

V = TypeVar("V", bound="Visit")


class Server:
    """The gateway on a port of its own; what it answers is up to ``engine``."""

    def __init__(self, settings: Settings, keys: Iterable[ApiKey]) -> None:
        self.engine = FakeEngine()
        self._settings = settings
        self._ring = KeyRing(keys)
        self._app = create_app(settings, self.engine, self._ring)
        # A server as fast as this one is no news: only what goes wrong is.
        self._server = uvicorn.Server(uvicorn.Config(self, port=0, log_config=None))
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]

    def reset(self, engine: FakeEngine) -> None:
        self.engine = engine
        self._app = create_app(self._settings, self.engine, self._ring)

    def close(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


class Visit:
    """What a person does on a page."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url

    def enter_key(self, key: str, *, remember: bool = False) -> None:
        self.page.wait("document.querySelector('#key').open")
        self.focus("#key-field")
        self.page.type(key)
        if remember:
            self.click("#key-remember")
        self.page.press("Enter")

    def click(self, selector: str) -> None:
        self.page.wait(f"document.querySelector({selector!r})?.checkVisibility()")
        self.page.run(f"document.querySelector({selector!r}).click()")

    def choose(self, dialog: str, value: str) -> None:
        """Press the button with this value in a dialog."""
        self.click(f"#{dialog} button[value={value}]")

    def focus(self, selector: str) -> None:
        self.page.run(f"document.querySelector({selector!r}).focus()")

    def text(self, selector: str) -> str:
        text = self.page.run(f"document.querySelector({selector!r})?.innerText ?? ''")
        return str(text).strip()

    def value(self, selector: str) -> str:
        return str(self.page.run(f"document.querySelector({selector!r}).value"))

    def count(self, selector: str) -> int:
        return int(self.page.run(f"document.querySelectorAll({selector!r}).length"))

    def storage(self, area: str) -> str:
        return str(self.page.run(f"JSON.stringify({area}Storage)"))


class Visits:
    """Opens pages of a server, with ``key`` unless told otherwise. All must be free of errors at
    the end.
    """

    def __init__(self, browser: Browser, key: str) -> None:
        self._browser = browser
        self._key = key
        self._visits: list[tuple[Visit, str, str]] = []

    def open(
        self,
        kind: type[V],
        server: Server,
        path: str,
        *,
        key: str | None = None,
        language: str = "en",
        scheme: str = "light",
        beside: Visit | None = None,
        script: str = "",
    ) -> V:
        """A page in a profile of its own, unless ``beside`` another one. ``script`` runs before
        those of the page.
        """
        shared = [context for visit, context, _ in self._visits if visit is beside]
        context = shared[0] if shared else self._browser.context()
        page = self._browser.page(context)
        agent = page.run("navigator.userAgent")
        page.call("Emulation.setUserAgentOverride", userAgent=agent, acceptLanguage=language)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.call("Emulation.setEmulatedMedia", features=features)
        origin = f"http://127.0.0.1:{server.port}"
        visit = kind(page, origin + path)
        self._visits.append((visit, context, origin))
        # Given to the first document alone: what becomes of it then is up to the page.
        key = self._key if key is None else key
        source = (
            f"if (location.port) {{ sessionStorage['nas-assistant.key'] ??= {key!r}; {script} }}"
        )
        added = page.call("Page.addScriptToEvaluateOnNewDocument", source=source)
        page.open(visit.url)
        page.call("Page.removeScriptToEvaluateOnNewDocument", **added)
        return visit

    def end(self) -> None:
        """Look for what went wrong, and close all."""
        for visit, _, origin in self._visits:
            assert not visit.page.seen("Runtime.exceptionThrown")
            # A request that was refused is there too, and meant to be.
            logged = [entry["entry"] for entry in visit.page.seen("Log.entryAdded")]
            assert [entry for entry in logged if entry["source"] != "network"] == []
            for request in visit.page.seen("Network.requestWillBeSent"):
                url = request["request"]["url"]
                assert url.startswith((f"{origin}/", "blob:", "about:")), request
        for context in {context for _, context, _ in self._visits}:
            self._browser.call("Target.disposeBrowserContext", browserContextId=context)
