# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The line of a container's log that an owner should read, and /readyz over a Unix socket."""

from __future__ import annotations

import itertools
import socketserver
import threading
from pathlib import Path

import pytest
from ansible_collections.nas.assistant.plugins.modules import container_ready
from ansible_collections.nas.assistant.plugins.modules.container_ready import ask, last_error

REFUSED = '{"level": "error", "event": "start_refused", "message": "MODEL_VARIANT=huge: unknown"}'


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (REFUSED, "MODEL_VARIANT=huge: unknown"),
        (f'{{"level": "info", "message": "starting"}}\n{REFUSED}', "MODEL_VARIANT=huge: unknown"),
        (f"{REFUSED}\nTerminated", "MODEL_VARIANT=huge: unknown"),
        ("exec /app/start.sh: exec format error", "exec /app/start.sh: exec format error"),
        ("", ""),
        ('["a list"]', '["a list"]'),
    ],
)
def test_last_error(log: str, message: str) -> None:
    assert last_error(log) == message


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


@pytest.mark.parametrize(
    ("refused", "said"), [(True, "MODEL_VARIANT=huge: unknown"), (False, "exited, exit code 78")]
)
def test_a_refusal_that_was_logged_before_its_life_began(
    monkeypatch: pytest.MonkeyPatch, refused: bool, said: str
) -> None:
    """As it was found on a slow CPU. What another end was logged with may have been mended."""
    monkeypatch.setattr(
        container_ready, "docker", lambda words: "" if "--since" in words else REFUSED
    )
    message = container_ready.give_up(
        "nas", "2026-01-01T00:00:00Z", "exited, exit code 78", refused
    )
    assert message.startswith(f"nas: {said} (")


@pytest.mark.parametrize("since", ["2026-01-02", "2026-01-05"])
def test_a_log_that_a_power_cut_damaged(monkeypatch: pytest.MonkeyPatch, since: str) -> None:
    """Docker 20.10 prints what is before the damage, and ends with 0. The life may be noted to have
    begun after its first words.
    """
    old = ("2026-01-01", '{"level": "error", "message": "mended since"}')
    new = ("2026-01-03", '{"level": "error", "message": "this CPU lacks avx2"}')
    log = [old] * 30 + [("", "\0" * 300)] + [new] * 4

    def docker(words: list[str]) -> str:
        if "logs" not in words:
            return ""
        lines = log[-int(words[words.index("--tail") + 1]) :]
        whole = itertools.takewhile(lambda line: "\0" not in line[1], lines)
        least = words[words.index("--since") + 1] if "--since" in words else ""
        return "\n".join(text for when, text in whole if when >= least)

    monkeypatch.setattr(container_ready, "docker", docker)
    message = container_ready.give_up("nas", since, "exited, exit code 78", refused=True)
    assert message.startswith("nas: this CPU lacks avx2 (")
