# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What the log has of what is asked and answered: nothing, unless that was switched on."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from nas_assistant import engine_process, worker
from nas_assistant.engine import EngineBusy, EngineUnavailable, QuotaExceeded
from nas_assistant.gateway import create_app
from nas_assistant.keys import KeyRing
from nas_assistant.logs import JsonFormatter, quote_nothing
from nas_assistant.settings import Settings
from nas_assistant.transcript import LONGEST, Transcript

from .conftest import HYBRID, SECRET, api_key, minimal_config
from .fake_engine import FakeEngine
from .service_process import Service
from .test_hybrid import TwoEngines

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
ASKED, ANSWER = "my knee hurts", "Seek «advice»"
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": ASKED}]}
STREAM = HELLO | {"stream": True}
WHOLE = json.dumps({"choices": [{"message": {"content": ANSWER}}], "usage": {}}).encode()
PIECES = tuple(
    b"data: " + json.dumps({"choices": [{"delta": {"content": each}}]}).encode() + b"\n\n"
    for each in ("Seek ", "«advice»")
)
BROKEN = EngineUnavailable(f"it wrote {ANSWER}")
QUOTING = json.dumps({"error": {"code": 400, "message": f"no {ASKED} {ANSWER}"}}).encode()

# What is asked, of which engine, and the status; then what the log has of the answer, if it has any
# of the question.
PATHS: list[tuple[dict[str, Any] | bytes, FakeEngine, int, str | None]] = [
    (HELLO, FakeEngine(WHOLE), 200, ANSWER),
    (STREAM, FakeEngine(*PIECES, b"data: [DONE]\n\n"), 200, ANSWER),
    (STREAM, FakeEngine(PIECES[0], BROKEN), 200, "Seek "),
    (HELLO, FakeEngine(WHOLE[:-9], BROKEN), 503, ""),
    (HELLO, FakeEngine(QUOTING, status=400), 400, ""),
    (HELLO, FakeEngine(QUOTING, status=500), 400, ""),
    (HELLO, FakeEngine(f"{ASKED} {ANSWER}".encode(), status=500), 500, ""),
    (HELLO, FakeEngine(ValueError(f"odd: {ASKED} {ANSWER}")), 500, ""),
    (STREAM, FakeEngine(PIECES[0], ValueError(f"odd: {ASKED} {ANSWER}")), 200, "Seek "),
    (HELLO | {"temperature": ASKED}, FakeEngine(), 400, None),
    (HELLO | {"model": ASKED}, FakeEngine(), 404, ""),
    (HELLO | {"tool_choice": ASKED}, FakeEngine(), 400, None),
    (f'{{"messages": [{ASKED}'.encode(), FakeEngine(), 400, None),
    (f'{{"messages": "{ASKED}\ud800"}}'.encode("utf-8", "surrogatepass"), FakeEngine(), 400, None),
]


@pytest.fixture(autouse=True)
def written() -> Iterator[io.StringIO]:
    """What a gateway process writes, on the level that has most."""
    written, root = io.StringIO(), logging.getLogger()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonFormatter())
    before, level = root.handlers, root.level
    root.handlers = [handler]
    root.setLevel(logging.DEBUG)
    yield written
    root.handlers = before
    root.setLevel(level)


Open = Callable[..., TestClient]


@pytest.fixture
def open_client(write_config: Callable[[str], Path], written: io.StringIO) -> Iterator[Open]:
    clients: list[TestClient] = []

    def open_client(engine: FakeEngine | None, *, on: bool) -> TestClient:
        """None is for one here that cannot, and one in a cloud that can."""
        text = minimal_config(mode="hybrid", log_text="yes" if on else "no")
        settings = Settings.load(write_config(f"{text}fallback = smart\n{HYBRID}"), {})
        if engine is None:
            engine = TwoEngines(settings)
            engine.here.refusal, engine.there.parts = BROKEN, (WHOLE,)
        if not on:
            quote_nothing()
        ring = KeyRing([api_key(), api_key("kids", "sk-kids", local_only=True)])
        headers = {"Authorization": f"Bearer {SECRET}", "X-Request-ID": "r-1"}
        app = create_app(settings, engine, ring)
        client = TestClient(app, headers=headers, raise_server_exceptions=False)
        clients.append(client.__enter__())
        return client

    yield open_client
    for client in clients:
        client.__exit__(None, None, None)


def ask(client: TestClient, body: dict[str, Any] | bytes, **options: Any) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post(CHAT, content=content, **options)


def texts(log: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in log.splitlines()]
    return [line for line in lines if line["event"] == "text"]


@pytest.mark.parametrize(("body", "engine", "status", "_"), PATHS)
def test_no_text_while_it_is_off(
    open_client: Open,
    written: io.StringIO,
    body: dict[str, Any] | bytes,
    engine: FakeEngine,
    status: int,
    _: str | None,
) -> None:
    assert ask(open_client(engine, on=False), body).status_code == status
    log = written.getvalue()
    assert '"request_id": "r-1"' in log
    assert ASKED not in log
    assert "advice" not in log
    assert "Seek" not in log


@pytest.mark.parametrize(("body", "engine", "status", "answer"), PATHS)
def test_all_text_once_while_it_is_on(
    open_client: Open,
    written: io.StringIO,
    body: dict[str, Any] | bytes,
    engine: FakeEngine,
    status: int,
    answer: str | None,
) -> None:
    assert ask(open_client(engine, on=True), body).status_code == status
    found = texts(written.getvalue())
    if answer is None:  # it was never a request that a model could have been asked
        assert found == []
        return
    (line,) = found
    assert (line["request_id"], line["key"]) == ("r-1", "owner")
    assert (line["asked"], line["answer"]) == (f"user: {ASKED}", answer)
    assert SECRET not in written.getvalue()


@pytest.mark.parametrize(
    "refusal", [EngineBusy(1), QuotaExceeded("no more", 1), EngineUnavailable("it ended")]
)
def test_who_gets_no_answer(open_client: Open, written: io.StringIO, refusal: Exception) -> None:
    engine = FakeEngine()
    engine.refusal = refusal
    assert ask(open_client(engine, on=True), HELLO).status_code >= 429
    (line,) = texts(written.getvalue())
    assert (line["asked"], line["answer"]) == (f"user: {ASKED}", "")


@pytest.mark.parametrize("on", [True, False])
def test_a_fallback(open_client: Open, written: io.StringIO, *, on: bool) -> None:
    client = open_client(None, on=on)
    assert ask(client, HELLO).headers["x-served-by"] == "cloud:example"
    kids = {"Authorization": "Bearer sk-kids", "X-Request-ID": "r-2"}
    assert ask(client, HELLO, headers=kids).status_code == 503
    if not on:
        assert ASKED not in written.getvalue()
        assert "advice" not in written.getvalue()
        return
    cloud, here = texts(written.getvalue())
    assert (cloud["model"], cloud["served_by"]) == ("smart", "cloud:example")
    assert (cloud["key"], cloud["answer"]) == ("owner", ANSWER)
    # A key that stays at home has no other rule.
    assert (here["key"], here["request_id"], here["served_by"]) == ("kids", "r-2", "local")
    assert (here["asked"], here["answer"]) == (f"user: {ASKED}", "")


def test_a_key_that_is_in_a_text(open_client: Open, written: io.StringIO) -> None:
    said = json.dumps({"choices": [{"message": {"content": f"it is {SECRET}!"}}]}).encode()
    asked = {"messages": [{"role": "user", "content": f"Is {SECRET} a good key?"}]}
    ask(open_client(FakeEngine(said), on=True), asked)
    (line,) = texts(written.getvalue())
    assert (line["asked"], line["answer"]) == ("user: Is *** a good key?", "it is ***!")
    assert SECRET not in written.getvalue()


@pytest.mark.parametrize(
    ("path", "body", "asked"),
    [
        (COMPLETION, {"prompt": "Once"}, "Once"),
        ("/v1/embeddings", {"input": "one"}, "one"),
        ("/v1/embeddings", {"input": ["one", "two"]}, "one\ntwo"),
        ("/v1/rerank", {"query": "which?", "documents": ["one", "two"]}, "which?\none\ntwo"),
    ],
)
def test_what_is_asked_elsewhere(
    open_client: Open, written: io.StringIO, path: str, body: dict[str, Any], asked: str
) -> None:
    """Whoever answers there: the question was taken in."""
    client = open_client(FakeEngine(b'{"choices": [{"text": "upon"}]}'), on=True)
    client.post(path, json=body)
    (line,) = texts(written.getvalue())
    assert line["asked"] == asked
    assert line["answer"] == ("upon" if path == COMPLETION else "")


def transcript(asked: str, *answer: bytes, secret: str = SECRET) -> dict[str, Any]:
    """The fields of its line."""
    records: list[logging.LogRecord] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handler, logger = Keeper(), logging.getLogger("nas_assistant")
    logger.addHandler(handler)
    try:
        kept = Transcript(json.dumps({"prompt": asked}).encode(), secret)
        kept.begin("default", "local")
        for each in answer:
            kept.feed(each)
        kept.log("r-1", "owner")
    finally:
        logger.removeHandler(handler)
    (record,) = records
    return dict(vars(record)["fields"])


def event(**delta: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": delta}]}).encode() + b"\n\n"


def call(**function: str) -> bytes:
    return event(tool_calls=[{"index": 0, "function": function}])


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ([event(reasoning_content="Hm. "), event(content="Yes")], "Hm. Yes"),
        ([call(name="open"), call(arguments='{"door": '), call(arguments="1}")], 'open{"door": 1}'),
        ([b": a comment\n\n" + event(content="a") + event(content="b")], "ab"),
        ([b'{\n "choices": [\n {"message": {"content": "pretty"}}]}'], "pretty"),
        ([event(content="half \ud800")], "half ?"),
        # Of an upstream that may send anything.
        ([b"data: 1\n\n", b"data: {\n\n", b'{"choices": 5}', b'{"choices": [5]}', b""], ""),
        ([b'{"choices": [{"message": {"content": 5, "tool_calls": [7]}}]}'], ""),
        ([b'{"choices":' + b"[" * 100_000], ""),
    ],
)
def test_answers(answer: list[bytes], text: str) -> None:
    assert transcript("x", *answer)["answer"] == text


def test_texts_are_bounded() -> None:
    pieces = [event(content="y" * 999) for _ in range(1000)]
    fields = transcript("a" * 90_000 + "z" * 90_000, *pieces)
    assert len(fields["answer"]) == LONGEST
    asked = fields["asked"]
    # How it began, and what came last.
    assert (asked[0], asked[-1], "[…]" in asked) == ("a", "z", True)
    assert len(asked) <= LONGEST
    assert transcript("b" * LONGEST)["asked"] == "b" * LONGEST


@pytest.mark.parametrize("at", range(LONGEST - len(SECRET), LONGEST + 2))
def test_no_half_of_a_key(at: int) -> None:
    """Where a text is cut off."""
    text = "x" * at + SECRET
    fields = transcript(text + "x" * 9000, event(content=text), event(content="x" * 9000))
    for each in (fields["asked"], fields["answer"]):
        assert "sk" not in each


@pytest.mark.parametrize("shift", range(0, len(SECRET) + 2, 3))
def test_no_beginning_of_a_key(shift: int) -> None:
    """Of many, the last of which is cut off, or ends with the answer."""
    many = "x" * shift + f"{SECRET} " * 300
    assert SECRET[:4] not in transcript("x", event(content=many))["answer"]
    assert SECRET[:4] not in transcript("x", event(content=SECRET[:-1]))["answer"]


def test_a_task_that_nobody_asked_after(written: io.StringIO) -> None:
    """What asyncio logs has what an exception says, twice."""

    async def fail() -> None:
        try:
            raise KeyError(ASKED)
        except KeyError as error:
            raise ValueError(ANSWER) from error

    async def forget() -> None:
        task = asyncio.create_task(fail())
        await asyncio.sleep(0)
        del task

    def log() -> str:
        asyncio.run(forget())
        return written.getvalue()

    assert ASKED in log()
    written.truncate(0)
    written.seek(0)
    quote_nothing()
    said = log()
    (line,) = [json.loads(each) for each in said.splitlines() if "never retrieved" in each]
    assert ASKED not in said
    assert ANSWER not in said
    assert line["message"] == "Task exception was never retrieved"
    # Enough to find the mistake.
    assert "KeyError\n" in line["traceback"]
    assert line["traceback"].endswith("ValueError\n")
    assert "raise ValueError(ANSWER) from error" in line["traceback"]


@pytest.mark.parametrize("on", [True, False])
def test_a_gateway_process_quotes_what_it_may(
    write_config: Callable[[str], Path],
    written: io.StringIO,
    monkeypatch: pytest.MonkeyPatch,
    *,
    on: bool,
) -> None:
    config = write_config(minimal_config(log_text="yes" if on else "no"))
    monkeypatch.setenv(worker.PRIVATE_DIR, str(config.parent))
    worker.application()
    try:
        raise ValueError(ASKED)
    except ValueError:
        logging.getLogger("uvicorn.error").exception("it failed")
    assert (ASKED in written.getvalue()) is on
    assert "it failed" in written.getvalue()


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("/src/ggml/src/ggml-cpu.c:2999: GGML_ASSERT(x) failed", True),
        ("terminate called after throwing an instance of 'std::bad_alloc'", True),
        ("0.03.1 E ggml_backend_alloc: failed to allocate buffer of size 99", True),
        ("  what():  cannot read my knee hurts", False),
        ('0.03.1 W srv operator(): got exception: {"error": "my knee hurts"}', False),
        ("my knee hurts", False),
    ],
)
def test_what_an_engine_may_say_while_it_serves(line: str, *, kept: bool) -> None:
    assert bool(engine_process._OF_ITS_CODE.match(line)) is kept


@pytest.fixture
def service(models: Path, tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path, models)
    yield service
    if service.process is not None and service.process.poll() is None:
        service.stop(signal.SIGKILL)
    service.wait(lambda: not service.pids("nas_assistant"), 10)


WORD = "zqxjk"


@pytest.mark.parametrize("on", [False, True])
def test_a_real_service(service: Service, *, on: bool) -> None:
    """On the level that has most, with requests that llama.cpp itself complains of."""
    service.write_config(log_level="debug", log_text="yes" if on else "no")
    service.start()
    headers = {"Authorization": f"Bearer {SECRET}"}
    number = 0

    def post(path: str, **body: Any) -> httpx.Response:
        nonlocal number
        number += 1
        named = headers | {"X-Request-ID": f"r-{number}"}
        body = {"max_tokens": 12, "temperature": 0, **body}
        return httpx.post(service.url + path, json=body, headers=named, timeout=60)

    user = [{"role": "user", "content": f"Say {WORD}. What is the capital of France?"}]
    whole = post(CHAT, messages=user)
    said = whole.json()["choices"][0]["message"]["content"]
    assert post(CHAT, messages=user, stream=True).status_code == 200
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": WORD}}}
    assert post(CHAT, messages=user, response_format=schema).status_code == 400
    assert post(COMPLETION, prompt=f"{WORD} " * 2000).status_code == 400
    # Killed in the middle of an answer.
    body = {"prompt": f"A story of {WORD}:", "max_tokens": 900, "stream": True}
    named = headers | {"X-Request-ID": "r-5"}
    with httpx.stream("POST", service.url + COMPLETION, json=body, headers=named) as answer:
        pieces = answer.iter_lines()
        next(pieces)
        (engine,) = service.pids("-m nas_assistant.wheel_server")
        os.kill(engine, signal.SIGABRT)
        assert "not_ready" in "".join(pieces)
    service.wait(lambda: any(line["event"] == "engine_ended" for line in service.log))
    service.stop()

    text = service.log_path.read_text("utf-8")
    assert SECRET not in text
    found = {line["request_id"]: line for line in texts(text)}
    warned = [line["level"] for line in service.log if line["event"] == "text_is_logged"]
    if not on:
        assert WORD not in text
        assert "capital" not in text
        assert said not in text
        assert (found, warned) == ({}, [])
        return
    assert warned == ["warning"]
    assert sorted(found) == [f"r-{each}" for each in range(1, 6)]
    assert len(texts(text)) == 5
    assert found["r-1"]["answer"] == found["r-2"]["answer"] == said
    assert found["r-1"]["asked"] == f"user: {user[0]['content']}"
    assert found["r-5"]["answer"]
    assert all(WORD in line["asked"] for line in found.values())
