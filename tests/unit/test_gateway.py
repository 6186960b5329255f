# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""/readyz over a Unix socket."""

from __future__ import annotations

import socketserver
import threading
from pathlib import Path

import pytest
from ansible_collections.nas.assistant.plugins.module_utils._gateway import ask, reason


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        ("200 OK", b'{"status": "ready"}', (200, {"status": "ready"})),
        ("503 Busy", b'{"reason": "warming up"}', (503, {"reason": "warming up"})),
    ],
)
def test_ask(tmp_path: Path, status: str, body: bytes, expected: object) -> None:
    class Service(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            assert self.rfile.readline().startswith(b"GET /readyz ")
            head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n"
            self.wfile.write(head.encode() + body)

    path = str(tmp_path / "s")
    with socketserver.UnixStreamServer(path, Service) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert ask(path) == expected
        thread.join()


def test_ask_nobody(tmp_path: Path) -> None:
    status, answer = ask(str(tmp_path / "none"))
    assert status == 0
    assert "none" in str(answer["reason"])
    assert reason(answer) == answer["reason"]


def test_the_reason_of_an_error() -> None:
    message = "The assistant cannot answer now: warming up."
    assert reason({"error": {"message": message, "code": "service_unavailable"}}) == message
    assert reason({"odd": 1}) == "{'odd': 1}"
