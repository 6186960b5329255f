# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The admin page in a real browser, against the real gateway with a scripted engine.

What it shows is the supervisor's real report, changed here and there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nas_assistant.engine import EngineUnavailable
from nas_assistant.memory import MIB
from nas_assistant.settings import Settings

from .conftest import HYBRID, SECRET, USER_SECRET, api_key, minimal_config, settled
from .fake_engine import FakeEngine
from .sample import Service
from .website import Server, Visit, Visits

# Time goes by fifty times as fast, and what is waited for is noted.
FASTER = (
    "window.waits = []; const real = setTimeout;"
    "window.setTimeout = (what, ms) => { waits.push(ms); return real(what, ms / 50); };"
)
SHOWN = "document.querySelector('#figures table')"
OFFLINE = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}


class Admin(Visit):
    """What an owner does."""

    def wait_for(self, text: str, selector: str = "main") -> None:
        found = f"document.querySelector({selector!r}).innerText.includes({text!r})"
        self.page.wait(f"document.querySelector({selector!r}) && {found}")

    def cells(self, table: int, row: int) -> list[str]:
        rows = f"document.querySelectorAll('table')[{table}].tBodies[0].rows"
        cells: list[str] = self.page.run(f"[...{rows}[{row}].cells].map((cell) => cell.innerText)")
        return cells


@pytest.fixture
def status(tmp_path: Path) -> dict[str, Any]:
    """The report of a service that has been in use."""
    config = tmp_path / "config.ini"
    other = f"[model:vectors]\nfile = a/vectors.gguf\nsha256 = {'1' * 64}\n"
    config.write_text(minimal_config() + other, encoding="utf-8")
    keys = [
        api_key(),
        api_key(
            "phone",
            "sk-phone",
            requests_per_minute=20,
            tokens_per_day=50_000,
            models=("default", "vectors"),
            local_only=True,
            expires="2020-02-29",
        ),
    ]
    service = Service(settled(Settings.load(config, {})), tmp_path, keys)
    status: dict[str, Any] = json.loads(service.status.text(""))
    service.close()
    default, vectors = status["models"]
    default |= {"in_memory": True, "pinned": True, "slots_in_use": 1, "tokens_per_second": 21.3}
    default |= {"first_token_seconds": 0.312}
    default["served"] = {"requests": 1234, "prompt_tokens": 56789, "completion_tokens": 4321}
    vectors["kind"] = "embedding"
    status["keys"][1]["used_today"] = {
        "requests": 7,
        "prompt_tokens": 2345,
        "completion_tokens": 678,
    }
    status |= {"version": "1.2.3", "started": "2026-07-04T10:20:30+00:00", "waiting": 2}
    status["memory"] = {"used": 812 * MIB, "limit": 2048 * MIB, "limit_is": "the limit"}
    status["errors"] = [error("first", "2026-07-04T11:00:00+00:00"), error("second")]
    return status


def error(message: str, time: str = "2026-07-04T12:00:00+00:00") -> dict[str, str]:
    return {"time": time, "event": "engine_ended", "model": "default", "message": message}


@pytest.fixture
def tell(running_server: Server) -> Callable[[dict[str, Any]], None]:
    """Has the service tell this state from now on."""

    def tell(status: dict[str, Any]) -> None:
        running_server.engine.reports = {"status": json.dumps(status)}

    return tell


@pytest.fixture
def server(
    running_server: Server, status: dict[str, Any], tell: Callable[[dict[str, Any]], None]
) -> Server:
    running_server.reset(FakeEngine())
    tell(status)
    return running_server


@pytest.fixture
def new_admin(server: Server, visits: Visits) -> Callable[..., Admin]:
    """Opens the page, as ``Visits.open`` says."""

    def make(**how: Any) -> Admin:
        admin = visits.open(Admin, server, "/admin", script=FASTER, **how)
        if how.get("key", SECRET) == SECRET:
            admin.page.wait(SHOWN)
        return admin

    return make


@pytest.fixture
def admin(new_admin: Callable[..., Admin]) -> Admin:
    return new_admin()


def test_what_is_shown(admin: Admin) -> None:
    admin.page.call("Emulation.setTimezoneOverride", timezoneId="Asia/Shanghai")
    admin.page.reload()
    admin.page.wait(SHOWN)
    assert admin.text("#health") == "The assistant is ready."
    assert admin.text("h1") == "State of the assistant"
    facts = admin.page.run(
        "Object.fromEntries([...document.querySelectorAll('.summary > div')]"
        ".map(({ children: [name, value] }) => [name.innerText, value.innerText.trim()]))"
    )
    assert facts == {
        "Memory": "812 MiB of 2 GiB in use",
        "Queue": "2 waiting, 32 at most",
        "Answered on this NAS since the start": (
            "Requests: 1,234\nTokens read: 56,789, written: 4,321"
        ),
        "Running since": "Jul 4, 2026, 6:20 PM",
        "Version": "1.2.3",
    }
    meter = "(({ value, max }) => [value, max])(document.querySelector('meter'))"
    assert admin.page.run(meter) == [812 * MIB, 2048 * MIB]
    assert admin.cells(0, 0) == [
        "default\nchats\ntiny.gguf",
        "in memory\npinned",
        "1 of 4",
        "2,048",
        "21.3",
        "0.31s",
        "699 MiB",
        "Requests: 1,234\nTokens read: 56,789, written: 4,321",
    ]
    assert admin.cells(0, 1)[:2] == [
        "vectors\nmakes vectors\na/vectors.gguf",
        "on request",
    ]
    assert admin.cells(0, 1)[4:6] == ["–", "–"]  # noqa: RUF001
    assert admin.cells(0, 2) == ["damaged", "cannot be asked\ndamaged.gguf is truncated"]
    admin.click("details summary")
    assert admin.text(".sum").split("\n")[:4] == [
        "Weights",
        "95 MiB",
        "Context of all slots",
        "180 MiB",
    ]
    assert admin.cells(1, 0) == ["owner", "admin", "none", "all", "none", "Requests: 0"]
    assert admin.cells(1, 1) == [
        "phone",
        "admin",
        "Requests a minute: 20\nTokens a day: 50,000\nNothing leaves this NAS",
        "default, vectors",
        "Feb 29, 2020\nexpired",
        "Requests: 7\nTokens read: 2,345, written: 678",
    ]
    # Newest first, in the time zone of whoever looks.
    assert admin.cells(2, 0) == ["Jul 4, 2026, 8:00:00 PM", "engine_ended\ndefault", "second"]
    assert admin.page.run("document.querySelector('section:last-child time').title") == (
        "2026-07-04 12:00:00 UTC"
    )
    assert admin.page.run("document.querySelector('header a').pathname") == "/"


def test_who_answers_elsewhere(
    admin: Admin, tell: Callable[[dict[str, Any]], None], tmp_path: Path
) -> None:
    config = tmp_path / "hybrid.ini"
    config.write_text(minimal_config(mode="hybrid") + HYBRID, encoding="utf-8")
    service = Service(settled(Settings.load(config, {})), tmp_path, [api_key()])
    status: dict[str, Any] = json.loads(service.status.text(""))
    service.close()
    tell(status)
    admin.wait_for("In the cloud")
    row = ["smart\nchats\ngpt-example", "example\nhttp://127.0.0.1:9/v1", "offered", "0 of 1"]
    assert admin.cells(1, 0) == [*row, "–", "Requests: 0"]  # noqa: RUF001
    status["upstreams"][0]["paused"] = "the cloud 'example' failed"
    tell(status)
    admin.wait_for("cannot be asked\nthe cloud 'example' failed")


def test_it_is_kept_up_to_date_without_a_flicker(
    admin: Admin, status: dict[str, Any], tell: Callable[[dict[str, Any]], None]
) -> None:
    admin.click("details summary")
    admin.focus("details summary")
    admin.page.run("getSelection().selectAllChildren(document.querySelector('section td'))")
    admin.page.run(
        "window.kept = [...document.querySelectorAll('#figures *')]; window.changes = [];"
        "const observer = new MutationObserver((all) => changes.push(...all));"
        "for (const node of document.querySelectorAll('#health, #figures')) observer.observe(node,"
        " { subtree: true, childList: true, attributes: true, characterData: true })"
    )
    # Nothing is touched for the same figures.
    requests = len(admin.page.seen("Network.requestWillBeSent"))
    admin.page.wait(lambda: len(admin.page.seen("Network.requestWillBeSent")) > requests + 2)
    assert admin.page.run("changes.length") == 0
    assert set(admin.page.run("waits")) == {5000}
    status["waiting"] = 3
    status["errors"].append(error("second"))
    status["errors"].append(error("third", "2026-07-04T13:00:00+00:00"))
    tell(status)
    admin.wait_for("third")
    assert "3 waiting" in admin.text(".summary")
    assert [admin.cells(2, row)[2] for row in range(4)] == ["third", "second", "second", "first"]
    assert admin.page.run("kept.every((node) => node.isConnected)")
    kinds = admin.page.run(
        "[...new Set(changes.map(({ type, target }) => type + target.nodeName))]"
    )
    assert sorted(kinds) == ["characterData#text", "childListTBODY"]
    assert admin.page.run("document.activeElement.localName") == "summary"
    assert admin.page.run("document.querySelector('details').open")
    assert admin.page.run("String(getSelection())").startswith("in memory")


def test_nobody_looks(admin: Admin) -> None:
    def hide(hidden: str) -> None:
        admin.page.run(
            f"Object.defineProperty(document, 'hidden', {{ value: {hidden}, configurable: true }});"
            "document.dispatchEvent(new Event('visibilitychange'))"
        )

    hide("true")
    admin.page.run("new Promise((resolve) => setTimeout(resolve, 10_000))")
    before = len(admin.page.seen("Network.requestWillBeSent"))
    admin.page.run("new Promise((resolve) => setTimeout(resolve, 15_000))")
    assert len(admin.page.seen("Network.requestWillBeSent")) == before
    hide("false")
    admin.page.wait(lambda: len(admin.page.seen("Network.requestWillBeSent")) > before + 1)


def test_health_is_said_once_and_figures_are_not(
    admin: Admin, status: dict[str, Any], tell: Callable[[dict[str, Any]], None]
) -> None:
    assert admin.text("#status") == "The assistant is ready."
    admin.page.run(
        "window.said = []; new MutationObserver(() => said.push(document.querySelector('#status')"
        ".textContent)).observe(document.querySelector('#status'), { childList: true })"
    )
    reason = "the engine ended with signal SIGKILL, it is being started again"
    status |= {"reason": reason, "unusable": {"default": reason}}
    status |= {"waiting": 5, "not_written": "/state/assistant.db: disk is full"}
    tell(status)
    admin.wait_for("5 waiting")
    sentence = f"The assistant is not ready: {reason}."
    assert sentence in admin.text("#health")
    assert "counted in memory only" in admin.text("#health .warning")
    assert admin.cells(0, 0)[1] == f"cannot be asked\n{reason}"
    status |= {"reason": "", "degraded": reason, "waiting": 7, "log_text": True}
    tell(status)
    admin.wait_for("7 waiting")
    instead = f"A model in the cloud answers in the place of the one on this NAS: {reason}."
    assert instead in admin.text("#health.unwell")
    assert "is being written to the log" in admin.text("#health .warning:last-child")
    status |= {"degraded": "", "unusable": {}, "waiting": 6, "not_written": "", "log_text": False}
    tell(status)
    admin.wait_for("6 waiting")
    assert admin.text("#health") == "The assistant is ready."
    assert admin.page.run("said") == [sentence, instead, "The assistant is ready."]
    assert admin.page.run("document.querySelectorAll('[aria-live], [role=status]').length") == 1


def test_a_users_key_is_not_enough(new_admin: Callable[..., Admin]) -> None:
    admin = new_admin(key=USER_SECRET)
    admin.page.wait("document.querySelector('#key').open")
    assert admin.text("#key-note") == "This key is a user’s. This page needs an admin’s."  # noqa: RUF001
    admin.enter_key("wrong")
    admin.wait_for("does not know this key", "#key-note")
    # What was good for the chat is not lost for a slip.
    assert USER_SECRET in admin.storage("session")
    admin.choose("key", "cancel")
    admin.page.wait("!document.querySelector('#key').open")
    # It is asked again whether the key has become an admin's, but not again for another one.
    admin.wait_for("This key is a user’s", "#health")  # noqa: RUF001
    admin.page.run("new Promise((resolve) => setTimeout(resolve, 15_000))")
    assert not admin.page.run("document.querySelector('#key').open")
    admin.click("#enter-key")
    admin.enter_key(SECRET, remember=True)
    admin.page.wait(SHOWN)
    admin.page.wait("document.activeElement.id === 'heading'")
    assert not admin.page.run("document.querySelector('#enter-key').checkVisibility()")
    assert SECRET in admin.storage("local")
    assert USER_SECRET not in admin.storage("session")


def test_no_key(new_admin: Callable[..., Admin]) -> None:
    admin = new_admin(key="")
    admin.page.wait("document.querySelector('#key').open")
    admin.page.press("Escape")
    admin.page.wait("!document.querySelector('#key').open")
    assert admin.text("#health") == "This page needs an admin’s key."  # noqa: RUF001
    assert admin.count("#figures *") == 0
    admin.page.run("new Promise((resolve) => setTimeout(resolve, 10_000))")
    requests = admin.page.seen("Network.requestWillBeSent")
    assert not [each for each in requests if each["request"]["url"].endswith("/admin/status")]
    # One that is given in another window, for this device, counts here too.
    admin.page.run(f"localStorage['nas-assistant.key'] = {SECRET!r}")
    admin.page.wait(SHOWN)


def test_a_key_that_is_taken_away(admin: Admin) -> None:
    admin.page.run("sessionStorage['nas-assistant.key'] = 'old'")
    admin.page.wait("document.querySelector('#key').open")
    assert admin.text("#key-note") == "The assistant does not know this key."
    assert admin.count("#figures.old") == 1
    admin.enter_key(SECRET)
    admin.page.wait("!document.querySelector('#figures.old')")
    assert admin.text("#health") == "The assistant is ready."


def test_trouble_on_the_way(admin: Admin, server: Server) -> None:
    admin.page.call("Network.emulateNetworkConditions", offline=True, **OFFLINE)
    admin.wait_for("The NAS cannot be reached.", "#health")
    assert "The figures below are from " in admin.text("#health")
    assert "ago." in admin.text("#health")
    assert admin.count("#figures.old") == 1
    assert admin.cells(0, 0)[0].startswith("default")
    admin.page.call("Network.emulateNetworkConditions", offline=False, **OFFLINE)
    admin.page.wait("!document.querySelector('#figures.old')")
    assert admin.text("#health") == "The assistant is ready."
    server.engine.refusal = EngineUnavailable("the supervisor is gone")
    admin.wait_for("the supervisor is gone", "#health")
    assert admin.count("#figures.old") == 1
    server.engine.refusal = None
    admin.wait_for("The assistant is ready.", "#health")
    for strange in ("{}", "null", "<html>"):
        told, server.engine.reports = server.engine.reports, {"status": strange}
        admin.page.wait("document.querySelector('#figures.old')")
        assert admin.cells(0, 0)[0].startswith("default")
        server.engine.reports = told
        admin.page.wait("!document.querySelector('#figures.old')")


EVIL = "<img src=x onerror=window.hacked=1><script>window.hacked=1</script>"


def test_hostile_texts_are_only_texts(
    new_admin: Callable[..., Admin], status: dict[str, Any], tell: Callable[[dict[str, Any]], None]
) -> None:
    status["errors"] = [error(f"{EVIL} {'A' * 5000}"), error(EVIL, "2026-07-04T12:00:00+00:00")]
    status["errors"][0] |= {"event": EVIL, "model": EVIL}
    status["models"][0] |= {"name": EVIL, "file": f"{'b' * 300}{EVIL}"}
    status["keys"][0] |= {"name": EVIL, "models": [EVIL, '"><b>']}
    status |= {"unusable": {EVIL: EVIL, "__proto__": "x"}, "reason": EVIL, "not_written": EVIL}
    status |= {"degraded": EVIL}
    tell(status)
    admin = new_admin()
    for place in ("#health", "#sentence", ".warning", "section", "section:last-child"):
        assert EVIL in admin.text(place), place
    assert admin.count("img, main script, b") == 0
    for width in (1200, 320):
        metrics = {"width": width, "height": 700, "deviceScaleFactor": 1, "mobile": False}
        admin.page.call("Emulation.setDeviceMetricsOverride", **metrics)
        assert admin.page.run("document.documentElement.scrollWidth") <= width
    assert admin.page.run("window.hacked") is None


def test_nothing_to_show(
    new_admin: Callable[..., Admin], status: dict[str, Any], tell: Callable[[dict[str, Any]], None]
) -> None:
    status |= {"models": [], "unusable": {}, "keys": [], "errors": []}
    status["memory"]["used"] = 0
    tell(status)
    admin = new_admin(key="")
    admin.enter_key(SECRET)
    admin.wait_for("Nothing has gone wrong since the start.")
    assert "No model is on this NAS." in admin.text("main")
    assert "There are no keys" in admin.text("main")
    assert admin.count("table, meter") == 0


def test_chinese(new_admin: Callable[..., Admin]) -> None:
    admin = new_admin(language="zh-CN")
    assert admin.page.run("document.documentElement.lang") == "zh-Hans"
    assert admin.page.run("document.title") == "助手状态 – 助手"  # noqa: RUF001
    assert admin.text("#health") == "助手已就绪。"
    assert "2026年7月4日" in admin.text(".summary")
    assert "2 个等待，上限 32 个" in admin.text(".summary")  # noqa: RUF001
    assert admin.cells(0, 0)[5] == "0.31秒"
    admin.page.call("Network.emulateNetworkConditions", offline=True, **OFFLINE)
    admin.wait_for("秒钟前的数据。", "#health")
    # What the service says itself is English.
    assert (
        admin.page.run("document.querySelector('section:last-child td:last-child > *').lang")
        == "en"
    )


def test_the_way_from_the_chat_and_back(server: Server, visits: Visits) -> None:
    visit = visits.open(Admin, server, "/")
    visit.click("#open-settings")
    visit.click("#settings a")
    visit.page.wait(f"location.pathname === '/admin' && {SHOWN}")
    visit.click("header a")
    visit.page.wait("location.pathname === '/' && document.querySelector('#model').value")


def test_dark(new_admin: Callable[..., Admin]) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    admin = new_admin(scheme="dark")
    assert admin.page.run(colour) == "rgb(23, 25, 28)"
    # As it was chosen in the chat.
    admin.page.run("localStorage['nas-assistant.theme'] = 'light'")
    admin.page.reload()
    assert admin.page.run(colour) == "rgb(252, 251, 249)"


def test_a_narrow_screen(new_admin: Callable[..., Admin]) -> None:
    admin = new_admin()
    metrics = {"width": 320, "height": 568, "deviceScaleFactor": 1, "mobile": True}
    admin.page.call("Emulation.setDeviceMetricsOverride", **metrics)
    assert admin.page.run("document.documentElement.scrollWidth") <= 320
    # Cells say what they are, save the first and those that need no name; nothing is out of sight.
    cells = admin.page.run(
        "[...document.querySelectorAll('tbody :is(th, td)')].map((cell) => [cell.scrollWidth <="
        " cell.clientWidth && cell.getBoundingClientRect().right <= 320,"
        " getComputedStyle(cell, '::before').content.split('\"')[1] ?? ''])"
    )
    assert all(seen for seen, _ in cells)
    named = ["State", "Slots in use", "Context", "Tokens a second", "First token after"]
    assert [name for _, name in cells[:8]] == ["", *named, "Memory needed", "Answered on this NAS"]
    assert [name for _, name in cells[-3:]] == ["", "Event", ""]


def test_by_keyboard_and_by_ear(admin: Admin) -> None:
    reached = []
    for _ in range(6):
        admin.page.press("Tab")
        reached.append(admin.page.run("document.activeElement.localName"))
        assert admin.page.run(
            "document.activeElement === document.body ||"
            " getComputedStyle(document.activeElement).outlineStyle !== 'none'"
        )
    assert reached[:3] == ["a", "a", "summary"]
    admin.focus("summary")
    admin.page.press("Enter")
    admin.page.wait("document.querySelector('details').open")
    # Also where CSS stacks the cells, as it does here.
    nodes = admin.page.call("Accessibility.getFullAXTree")["nodes"]
    seen = [node for node in nodes if not node["ignored"]]
    roles = [node["role"]["value"] for node in seen]
    assert {"main", "heading", "meter", "status", "banner"} <= set(roles)
    assert (roles.count("table"), roles.count("columnheader")) == (3, 8 + 6 + 3)
    named = ("link", "table", "meter", "heading", "columnheader", "rowheader")
    assert not [
        node
        for node in seen
        if node["role"]["value"] in named and not node.get("name", {}).get("value")
    ]
