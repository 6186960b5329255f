# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The pages as files: how they are served, and what they must not contain."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from nas_assistant import pages
from nas_assistant.engine import Kind
from nas_assistant.gateway import create_app
from nas_assistant.keys import KeyRing
from nas_assistant.memory import MemoryNeed
from nas_assistant.openapi import describe
from nas_assistant.reference import reference
from nas_assistant.settings import Settings

from .conftest import api_key, minimal_config, settled
from .fake_engine import FakeEngine

WEB = Path(pages.__file__).with_name("web")
FILES = sorted(WEB.iterdir())
TEXTS = {file.name: file.read_text(encoding="utf-8") for file in FILES}
SOURCE = "\n".join(TEXTS.values())
PAGES = {"admin.html": "/admin", "chat.html": "/"}
API_PAGE = reference(describe())


@pytest.fixture
def client(write_config: Callable[[str], Path]) -> Iterator[TestClient]:
    settings = settled(Settings.load(write_config(minimal_config()), {}))
    with TestClient(create_app(settings, FakeEngine(), KeyRing([api_key()]))) as client:
        yield client


def path_of(file: Path) -> str:
    return PAGES.get(file.name, f"/assets/{file.name}")


def scripts_of(page: str) -> dict[str, str]:
    """The texts of all scripts that a page runs, by name."""
    found: dict[str, str] = {}
    wanted = re.findall(r'<script[^>]* src="/assets/([\w.-]+)"', TEXTS[page])
    while wanted:
        name = wanted.pop()
        if name not in found:
            found[name] = TEXTS[name]
            wanted += re.findall(r"from '\./([\w.-]+)'", TEXTS[name])
    return found


def test_all_pages_are_known() -> None:
    assert sorted(PAGES) == [file.name for file in FILES if file.suffix == ".html"]


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


def test_who_types_a_slash_sees_the_page_too(client: TestClient) -> None:
    assert client.get("/admin/").content == client.get("/admin").content
    assert client.get("/admin//").status_code == 401
    assert client.get("/admin/status/").status_code == 401


def test_the_api_still_needs_a_key(client: TestClient) -> None:
    assert client.get("/v1/models").status_code == 401
    assert client.get("/admin/status").status_code == 401


@pytest.mark.parametrize(
    "path",
    [
        *("/assets/", "/assets", "/assets/none.js", "/assets/../pages.py", "/assets/%2e%2e/x"),
        *("/assets/admin.html", "/chat.html"),
    ],
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


@pytest.mark.parametrize("address", [*PAGES.values(), "/api"])
def test_headers(client: TestClient, address: str) -> None:
    headers = client.get(address).headers
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


def test_all_files_are_used() -> None:
    pages = [API_PAGE, *(TEXTS[page] for page in PAGES)]
    linked = {name for page in pages for name in re.findall(r"/assets/([\w.-]+)", page)}
    assert linked == TEXTS.keys() - PAGES.keys()


def test_the_page_about_the_api(client: TestClient) -> None:
    response = client.get("/api")
    assert (response.status_code, response.text) == (200, API_PAGE)
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    description = describe()
    for path in description["paths"]:
        assert f"<code>{path}</code>" in API_PAGE
    for method, path in (("POST", "/v1/rerank"), ("GET", "/v1/models/{id}")):
        assert f"<h2><code>{method} {path}</code></h2>" in API_PAGE
    rows = re.findall(r"<th scope=row><code>(\w+)</code>(.*?)</th><td>(.*?)</td>", API_PAGE)
    assert ("temperature", "", "number from 0 to 2 or null") in rows
    assert ("query", " (required)", "text, not empty") in rows
    links = set(re.findall(r'href="#([\w.-]+)"', API_PAGE))
    assert links == set(re.findall(r'\bid="([\w.-]+)"', API_PAGE))
    assert not re.search(r"<script|<style|\sstyle=|\son\w+=", API_PAGE)


def test_a_description_cannot_be_markup() -> None:
    description = describe()
    description["info"]["summary"] = "<b>&"
    get = description["paths"]["/healthz"]["get"]
    get["summary"] = '<script src="x">'
    description["components"]["schemas"]["Model"]["properties"]["<i>"] = {"const": "<i>"}
    page = reference(description)
    assert "&lt;b&gt;&amp;" in page
    assert page.count("&lt;i&gt;") == 2
    assert not re.search(r"<(b|i|script)\b", page)


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_needs(page: str) -> None:
    scripts = scripts_of(page)
    # What is imported is loaded with the page, not one after the other.
    linked = re.findall(r"/assets/([\w.-]+\.js)", TEXTS[page])
    assert sorted(linked) == sorted(scripts)
    text = "\n".join([TEXTS[page], *scripts.values()])
    icons = set(re.findall(r"(?:href=\"#icon-|iconButton\('|'#icon-)(\w+)", text))
    assert icons == set(re.findall(r'<symbol id="icon-(\w+)"', TEXTS[page]))
    # These are asked for by their names.
    identifiers = set(re.findall(r'\bid="([\w-]+)"', TEXTS[page]))
    assert set(re.findall(r"\$\('([\w-]+)'\)", text)) <= identifiers
    references = r'(?:href="#|controls="|labelledby="|describedby=")([\w-]+)'
    assert set(re.findall(references, TEXTS[page])) <= identifiers


def test_the_form_for_the_key_is_the_same_everywhere() -> None:
    forms = [re.search(r'<dialog id="key".*?</dialog>', TEXTS[page], re.S) for page in PAGES]
    assert len({form and re.sub(r'"\w*[kK]eyWhy"', "", form[0]) for form in forms}) == 1
    assert all(forms)


def test_nothing_comes_from_outside() -> None:
    namespace = "http://www.w3.org/2000/svg"
    assert set(re.findall(r"https?://[^\s'\"`)]+", SOURCE)) == {namespace}
    for outside in ("@import", "url(", "//cdn", "import("):
        assert outside not in SOURCE


@pytest.mark.parametrize("page", PAGES)
def test_no_script_or_style_in_the_markup(page: str) -> None:
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", TEXTS[page])
    assert all(re.search(r"src=", tag) for tag in re.findall(r"<script[^>]*>", TEXTS[page]))
    for unsafe in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert unsafe not in SOURCE


def words_in(name: str) -> tuple[dict[str, str], dict[str, str]]:
    """The words of a script in English and Chinese."""
    texts = re.findall(r"^  (?:en|'zh-Hans'): \{\n(.*?)^  \},", TEXTS[name], re.M | re.S)
    english, chinese = (dict(re.findall(r"^    (\w+): (.*)$", text, re.M)) for text in texts)
    assert sum(text.count("\n") for text in texts) == len(english) + len(chinese)
    return english, chinese


def asked_in(text: str) -> set[str]:
    """The words that a page or a script asks for; of families, the beginning: ``kind_``."""
    asked = set(re.findall(r"say\('(\w+)'", text)) | set(re.findall(r"say\(`(\w+_)\$\{", text))
    asked |= set(re.findall(r'data-(?:word|label|placeholder)="(\w+)"', text))
    asked |= set(re.findall(r"iconButton\('[\w-]+', '[\w-]+', '(\w+)'\)", text))
    return asked | {
        word for pair in re.findall(r"say\([^()]* \? '(\w+)' : '(\w+)'[,)]", text) for word in pair
    }


WORDS = [name for name in TEXTS if name.endswith("words.js")]


@pytest.mark.parametrize("name", WORDS)
def test_both_languages_say_the_same(name: str) -> None:
    english, chinese = words_in(name)
    assert list(english) == list(chinese)
    for key, sentence in english.items():
        slots = set(re.findall(r"\{\w+\}", sentence))
        assert slots == set(re.findall(r"\{\w+\}", chinese[key])), key


def test_all_words_are_used() -> None:
    rest = "\n".join(text for name, text in TEXTS.items() if name not in WORDS)
    asked = asked_in(rest) | {"note_"}
    known = [key for name in WORDS for key in words_in(name)[0]]
    assert len(known) == len(set(known))
    assert asked == {re.sub(r"(?<=_).*", "", key) for key in known}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_knows_the_words_that_it_asks_for(page: str) -> None:
    scripts = scripts_of(page)
    known = {key for name in WORDS if name in scripts for key in words_in(name)[0]}
    for name, text in {page: TEXTS[page], **scripts}.items():
        if name not in WORDS:
            assert asked_in(text) <= known | {re.sub(r"(?<=_).*", "", key) for key in known}, name


def test_words_for_what_the_service_names() -> None:
    english, _ = words_in("admin-words.js")

    def of(family: str) -> set[str]:
        return {key.removeprefix(family) for key in english if key.startswith(family)}

    assert of("kind_") == set(Kind)
    assert of("memory_") == {part.name for part in fields(MemoryNeed)}


def test_the_sentences_about_errors_are_about_errors_that_exist() -> None:
    root = WEB.parents[3]
    proxy = root / "roles/proxy/templates/etc/nginx/conf.d/nas-assistant.conf.j2"
    sources = [*WEB.parent.glob("*.py"), proxy]
    texts = [file.read_text(encoding="utf-8") for file in sources]
    texts += [text for name, text in TEXTS.items() if name not in WORDS]
    for key in (key for name in WORDS for key in words_in(name)[0] if key.startswith("note_")):
        code = key.removeprefix("note_")
        assert code == "other" or re.search(rf"['\"]{code}['\"]", "\n".join(texts)), code


def _luminance(colour: str) -> float:
    def linear(part: float) -> float:
        return part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4

    red, green, blue = (linear(int(colour[i : i + 2], 16) / 255) for i in (0, 2, 4))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_contrast(scheme: int) -> None:
    """WCAG 2.2, level AA: 4.5 for text, 3 for what a control is known by."""
    found = re.findall(r"--([\w-]+): light-dark\(#(\w{6}), #(\w{6})\)", TEXTS["base.css"])
    colours = {name: pair[scheme] for name, *pair in found}
    surfaces = ("page", "side", "raised")
    pairs = [
        (text, on, 4.5) for text in ("text", "soft", "accent", "danger", "warm") for on in surfaces
    ]
    pairs += [("on-accent", "accent", 4.5), ("text", "you", 4.5)]
    pairs += [("edge", on, 3.0) for on in surfaces]
    for text, on, least in pairs:
        light, dark = sorted((_luminance(colours[text]), _luminance(colours[on])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= least, (text, on)


def test_no_colours_beside_those() -> None:
    shadow = "rgb(0 0 0 / 50%)"
    for name, text in TEXTS.items():
        if name.endswith(".css"):
            rest = re.sub(r"light-dark\(#\w{6}, #\w{6}\)", "", text) if name == "base.css" else text
            assert not re.search(r"#[0-9a-f]{3,8}\b(?=[;, )])|rgb|hsl", rest.replace(shadow, "")), (
                name
            )
            used = set(re.findall(r"var\(--([\w-]+)\)", text))
            assert used <= set(re.findall(r"--([\w-]+): light-dark", TEXTS["base.css"])), name
