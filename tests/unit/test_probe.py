# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What a rollout asks, and what it makes of the answers."""

from __future__ import annotations

import json
import socketserver
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from ansible_collections.nas.assistant.plugins.module_utils import _probe
from ansible_collections.nas.assistant.plugins.modules import service_probe

CHAT = [{"choices": [{"delta": {"role": "assistant"}}]}, {"choices": [{"delta": {"content": "x"}}]}]
WORDS = [{"choices": [{"text": "x"}]}, {"choices": []}]


class Service(socketserver.ThreadingUnixStreamServer):
    """Answers each question with what it was given."""

    status = 200
    pieces: tuple[str, ...] = ()
    template = True
    # What it says at other addresses, and what it was asked by name.
    pages: dict[str, str]
    asked: list[tuple[str, str]]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"

    def address_string(self) -> str:
        return "socket"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        assert isinstance(self.server, Service)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.server.pages[self.path].encode())

    def do_POST(self) -> None:
        assert isinstance(self.server, Service)
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.headers["Authorization"] == "Bearer secret"
        status = self.server.status
        self.server.asked.append((asked.get("model", ""), self.path))
        if "messages" in asked and not self.server.template:
            status = 400
        self.send_response(status)
        self.end_headers()
        text = [f"data: {piece}\n\n" for piece in self.server.pieces]
        self.wfile.write("".join(text).encode() if status == 200 else b'no chat template"')


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Service(str(tmp_path / "s"), Handler) as server:
        server.pages, server.asked = {}, []
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def lines(pieces: Sequence[object], end: str = "[DONE]") -> tuple[str, ...]:
    return (*map(json.dumps, pieces), end)


@pytest.mark.parametrize(
    ("template", "pieces"), [(True, lines(CHAT)), (False, lines(WORDS))], ids=["chat", "words"]
)
def test_answers_are_measured(service: Service, template: bool, pieces: tuple[str, ...]) -> None:
    service.template, service.pieces = template, pieces
    outcome = _probe.questions(str(service.server_address), "secret", 3, 4)
    assert outcome.errors == []
    assert len(outcome.first) == 3  # the first of four warms up
    assert 0 < outcome.median_ms < 5000


@pytest.mark.parametrize(
    ("status", "pieces", "said"),
    [
        (503, (), "503: "),
        (200, lines(CHAT, end="{}"), "ended before it was whole"),
        (200, lines(CHAT[:1]), "ended before it was whole"),
        (200, lines([{"error": {"message": "lost"}}]), "lost"),
        (200, ("{",), "JSONDecodeError"),
    ],
)
def test_what_is_no_answer(
    service: Service, status: int, pieces: tuple[str, ...], said: str
) -> None:
    service.status, service.pieces = status, pieces
    outcome = _probe.questions(str(service.server_address), "secret", 1, 4)
    assert len(outcome.errors) == 2
    assert said in outcome.errors[0]
    assert outcome.median_ms == 0


KINDS = {"default": "chat", "base": "text", "vectors": "embedding", "ranks": "rerank"}
OFFERED = {"data": [{"id": name, "kind": kind} for name, kind in KINDS.items()]}


def test_each_model_is_asked_as_its_kind_is(service: Service) -> None:
    service.pages = {"/v1/models": json.dumps(OFFERED)}
    service.pieces = lines([*CHAT, *WORDS])
    found = _probe.each(str(service.server_address), "secret", [*KINDS, "huge"], 4)
    assert found == _probe.Models(answered=list(KINDS), missing=["huge"])
    assert service.asked == [
        ("default", "/v1/chat/completions"),
        ("base", "/v1/completions"),
        ("vectors", "/v1/embeddings"),
        ("ranks", "/v1/rerank"),
    ]
    service.status = 500
    found = _probe.each(str(service.server_address), "secret", ["base", "ranks"], 4)
    assert found.answered == []
    assert [error.partition(": no")[0] for error in found.errors] == ["base: 500", "ranks: 500"]
    service.status, service.pieces = 200, lines(WORDS, end="{}")
    found = _probe.each(str(service.server_address), "secret", ["base"], 4)
    assert "base: ValueError: the answer ended" in found.errors[0]


def test_what_others_have_begun_is_waited_for(service: Service) -> None:
    text = 'nas_assistant_slots_in_use{{model="a"}} {}\nnas_assistant_waiting {}\n'
    assert _probe.busy(text.format("1.0", "2.0") + text.format("1.0", "0.0")) == 4
    assert _probe.busy("# HELP nas_assistant_waiting 7\n") == 0
    service.pages = {"/metrics": text.format("1.0", "0.0")}

    def waited(patience: float) -> float:
        began = time.monotonic()
        _probe.until_idle(str(service.server_address), "secret", patience)
        return time.monotonic() - began

    assert waited(0) < 0.4
    assert waited(0.6) >= 0.5
    service.pages = {"/metrics": text.format("0.0", "0.0")}
    assert waited(30) < 5


def test_nobody_there(tmp_path: Path) -> None:
    outcome = _probe.questions(str(tmp_path / "none"), "secret", 1, 4)
    assert "FileNotFoundError" in outcome.errors[0]
    assert _probe.get(str(tmp_path / "none"), "/metrics", "secret")[0] == 0


def test_requests_of_others_are_counted() -> None:
    text = (
        "# TYPE nas_assistant_requests_total counter\n"
        'nas_assistant_requests_total{key="a",model="default",status="200"} 40.0\n'
        'nas_assistant_requests_total{key="b",model="default",status="503"} 2.0\n'
        'nas_assistant_requests_total{key="b",model="default",status="499"} 1.0\n'
        'nas_assistant_requests_total{key="rollout",model="default",status="503"} 7.0\n'
        'nas_assistant_requests_created{key="b",model="default",status="500"} 1.7e+09\n'
        'nas_assistant_refused_total{reason="full"} 3.0\n'
        'nas_assistant_refused_total{reason="limited"} 90.0\n'
        'nas_assistant_refused_total{reason="revoked"} 90.0\n'
        'nas_assistant_refused_created{reason="full"} 1.7e+09\n'
    )
    assert _probe.ended(text) == (46, 5)
    assert _probe.ended("") == (0, 0)


AT_HOME = '403: {"error": {"code": "model_not_allowed"}}'


@pytest.mark.parametrize(
    ("errors", "keys"),
    [
        ([], 1),
        (["503: the engine does not start"], 1),  # the cloud is not asked in its place
        ([AT_HOME, "503: "], 1),
        ([AT_HOME, AT_HOME], 2),  # the default model is in the cloud
    ],
)
def test_what_is_asked_stays_at_home_where_the_model_is(
    monkeypatch: pytest.MonkeyPatch, errors: list[str], keys: int
) -> None:
    made: list[str] = []
    # Of the other models, asked once, with the key that stays at home.
    others = ["c: 500: "]

    def docker(command: list[str]) -> str:
        made.extend([" ".join(command)] if "create" in command else [])
        return "secret\n"

    def questions(*_: object) -> _probe.Outcome:
        return _probe.Outcome([0.2], errors if len(made) == 1 else [])

    monkeypatch.setattr(_probe, "docker", docker)
    monkeypatch.setattr(_probe, "until_known", lambda *_: None)
    monkeypatch.setattr(_probe, "counted", lambda *_: (40, 2))
    monkeypatch.setattr(_probe, "questions", questions)
    monkeypatch.setattr(
        _probe, "each", lambda *_: _probe.Models(answered=["a"], missing=["b"], errors=others)
    )
    asked = {"container": "x", "socket": "/none", "requests": 1, "tokens": 4, "watch": 0}
    asked |= {"models": ["a", "b", "c"], "settle": 0}
    found = service_probe.look(asked)
    assert ["--local-only" in each for each in made] == [True, False][:keys]
    assert found["errors"] == [*(errors if keys == 1 else []), *others]
    assert (found["answered"], found["missing"]) == (["a"], ["b"])
    assert (found["ended"], found["failed_requests"]) == (40, 2)
