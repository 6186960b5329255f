# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What a rollout asks, and what it makes of the answers."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from ansible_collections.nas.assistant.plugins.module_utils import _probe

CHAT = [{"choices": [{"delta": {"role": "assistant"}}]}, {"choices": [{"delta": {"content": "x"}}]}]
WORDS = [{"choices": [{"text": "x"}]}, {"choices": []}]


class Service(socketserver.ThreadingUnixStreamServer):
    """Answers each question with what it was given."""

    status = 200
    pieces: tuple[str, ...] = ()
    template = True


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"

    def address_string(self) -> str:
        return "socket"

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        assert isinstance(self.server, Service)
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.headers["Authorization"] == "Bearer secret"
        status = self.server.status
        if "messages" in asked and not self.server.template:
            status = 400
        self.send_response(status)
        self.end_headers()
        text = [f"data: {piece}\n\n" for piece in self.server.pieces]
        self.wfile.write("".join(text).encode() if status == 200 else b'no chat template"')


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Service(str(tmp_path / "s"), Handler) as server:
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
        'nas_assistant_requests_created{key="b",model="default",status="500"} 1.7e+09\n'
    )
    assert _probe.ended(text) == (43, 2)
    assert _probe.ended("") == (0, 0)
