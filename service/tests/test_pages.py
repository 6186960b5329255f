# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The chat page as files: how they are served, and what they must not contain."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from nas_assistant import pages
from nas_assistant.gateway import create_app
from nas_assistant.keys import KeyRing
from nas_assistant.settings import Settings

from .conftest import api_key, minimal_config
from .fake_engine import FakeEngine

WEB = Path(pages.__file__).with_name("web")
FILES = sorted(WEB.iterdir())
SOURCE = "\n".join(file.read_text(encoding="utf-8") for file in FILES)


@pytest.fixture
def client(write_config: Callable[[str], Path]) -> Iterator[TestClient]:
    settings = Settings.load(write_config(minimal_config()), {})
    with TestClient(create_app(settings, FakeEngine(), KeyRing([api_key()]))) as client:
        yield client


def path_of(file: Path) -> str:
    return "/" if file.name == "chat.html" else f"/assets/{file.name}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_each_file_is_served_without_a_key(client: TestClient, file: Path) -> None:
    response = client.get(path_of(file))
    assert response.status_code == 200
    assert response.content == file.read_bytes()
    kinds = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
    assert response.headers["content-type"].split(";")[0] == kinds.get(file.suffix, "image/svg+xml")
    head = client.head(path_of(file))
    assert (head.status_code, head.headers["etag"]) == (200, response.headers["etag"])
    assert client.post(path_of(file)).status_code == 405


def test_the_api_still_needs_a_key(client: TestClient) -> None:
    assert client.get("/v1/models").status_code == 401


@pytest.mark.parametrize(
    "path", ["/assets/", "/assets", "/assets/none.js", "/assets/../pages.py", "/assets/%2e%2e/x"]
)
def test_what_is_not_a_file_of_the_page(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"


def test_an_unchanged_file_is_not_sent_again(client: TestClient) -> None:
    etag = client.get("/").headers["etag"]
    for known in (etag, f"W/{etag}", f'"old", {etag}'):
        response = client.get("/", headers={"If-None-Match": known})
        assert (response.status_code, response.content) == (304, b"")
        assert response.headers["etag"] == etag
        assert response.headers["cache-control"] == "no-cache"
    assert client.get("/", headers={"If-None-Match": '"old"'}).status_code == 200
    assert client.get("/assets/chat.js").headers["etag"] != etag


def test_headers(client: TestClient) -> None:
    headers = client.get("/").headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy.pop("require-trusted-types-for") == "'script'"
    assert policy.pop("trusted-types") == "'none'"
    own = ("connect-src", "img-src", "script-src", "style-src")
    assert sorted(name for name, value in policy.items() if value == "'self'") == sorted(own)
    assert all(value == "'none'" for name, value in policy.items() if name not in own)
    assert {"default-src", "base-uri", "form-action", "frame-ancestors"} <= policy.keys()
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert "camera=()" in headers["permissions-policy"]
    assert headers["cache-control"] == "no-cache"


def test_the_package_contains_the_files() -> None:
    project = tomllib.loads((WEB.parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["setuptools"]["package-data"] == {"nas_assistant": ["web/*"]}


def test_all_references_lead_to_files_of_the_page() -> None:
    used = set(re.findall(r"/assets/([\w.-]+)", SOURCE))
    imported = set(re.findall(r"from '\./([\w.]+)'", SOURCE))
    names = {file.name for file in FILES}
    assert used | imported <= names
    # What is imported is loaded with the page, not one after the other.
    assert imported | {"chat.js", "chat.css", "icon.svg"} == used == names - {"chat.html"}
    icons = set(re.findall(r'(?:href="#icon-|iconButton\(\'|\'#icon-)(\w+)', SOURCE))
    assert icons == set(re.findall(r'<symbol id="icon-(\w+)"', SOURCE))


def test_nothing_comes_from_outside() -> None:
    namespace = "http://www.w3.org/2000/svg"
    assert set(re.findall(r"https?://[^\s'\"`)]+", SOURCE)) == {namespace}
    for outside in ("@import", "url(", "//cdn", "import("):
        assert outside not in SOURCE


def test_no_script_or_style_in_the_markup() -> None:
    page = (WEB / "chat.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", page)
    assert all(re.search(r"src=", tag) for tag in re.findall(r"<script[^>]*>", page))
    for unsafe in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert unsafe not in SOURCE
    # These are asked for by their names.
    identifiers = set(re.findall(r'\bid="([\w-]+)"', page))
    for name in re.findall(r"\$\('([\w-]+)'\)", SOURCE):
        assert name in identifiers, name
    assert set(re.findall(r'(?:href="#|controls="|labelledby="|describedby=")([\w-]+)', page)) <= (
        identifiers
    )


def test_both_languages_have_the_words_that_are_used() -> None:
    words = (WEB / "words.js").read_text(encoding="utf-8")
    english, chinese = re.findall(r"^  (?:en|'zh-Hans'): \{\n(.*?)^  \},", words, re.M | re.S)
    keys = re.findall(r"^    (\w+): ", english, re.M)
    assert keys == re.findall(r"^    (\w+): ", chinese, re.M)
    assert len(keys) == len(set(keys))
    for key in keys:
        of_key = rf"^    {key}: (.*)$"
        (one,), (other,) = (re.findall(of_key, text, re.M) for text in (english, chinese))
        assert set(re.findall(r"\{\w+\}", one)) == set(re.findall(r"\{\w+\}", other)), key
    rest = SOURCE.replace(words, "")
    asked = set(re.findall(r"say\('(\w+)'", rest)) | set(
        re.findall(r'data-(?:word|label|placeholder)="(\w+)"', rest)
    )
    asked |= set(re.findall(r"iconButton\('[\w-]+', '[\w-]+', '(\w+)'\)", rest))
    asked |= set(re.findall(r"say\(role === 'user' \? '(\w+)' : '(\w+)'\)", rest)[0])
    assert asked == {key for key in keys if not key.startswith("note_")}


def test_the_sentences_about_errors_are_about_errors_that_exist() -> None:
    words = (WEB / "words.js").read_text(encoding="utf-8")
    root = WEB.parents[3]
    proxy = root / "roles/proxy/templates/etc/nginx/conf.d/nas-assistant.conf.j2"
    sources = [*WEB.parent.glob("*.py"), *WEB.glob("*.js"), proxy]
    text = "\n".join(file.read_text(encoding="utf-8") for file in sources).replace(words, "")
    for code in set(re.findall(r"note_(\w+):", words)) - {"other"}:
        assert re.search(rf"['\"]{code}['\"]", text), code


def _luminance(colour: str) -> float:
    def linear(part: float) -> float:
        return part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4

    red, green, blue = (linear(int(colour[i : i + 2], 16) / 255) for i in (0, 2, 4))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_contrast(scheme: int) -> None:
    """WCAG 2.2, level AA: 4.5 for text, 3 for what a control is known by."""
    style = (WEB / "chat.css").read_text(encoding="utf-8")
    found = re.findall(r"--([\w-]+): light-dark\(#(\w{6}), #(\w{6})\)", style)
    colours = {name: pair[scheme] for name, *pair in found}
    surfaces = ("page", "side", "raised")
    pairs = [(text, on, 4.5) for text in ("text", "soft", "accent", "danger") for on in surfaces]
    pairs += [("on-accent", "accent", 4.5), ("text", "you", 4.5), ("warm", "page", 4.5)]
    pairs += [("edge", on, 3.0) for on in surfaces]
    for text, on, least in pairs:
        light, dark = sorted((_luminance(colours[text]), _luminance(colours[on])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= least, (text, on)
