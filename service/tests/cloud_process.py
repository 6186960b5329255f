# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The real service without a model of its own, and the cloud that it asks, which does what a test
tells it: for what breaks beside the engine.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from nas_assistant.keys import ApiKey, render

from .conftest import SECRET, api_key
from .service_process import Service

TOKENS = 10  # of each answer of the cloud, both kinds together
CHAT = "/v1/chat/completions"
CONFIG = """
[model:default]
upstream = other
model = there
"""


class Visitor(BaseHTTPRequestHandler):
    """One request to the cloud."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, ScriptedCloud)
        fields = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.asked += 1
        try:
            server.behave(self, fields)
        except OSError:  # who asked is gone
            server.left.set()
            self.close_connection = True

    def head(self, kind: str, length: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        if length is None:
            self.send_header("Connection", "close")
            self.close_connection = True
        else:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, format: str, *words: Any) -> None:  # noqa: A002 - the name is theirs
        pass


def answer(visitor: Visitor, fields: dict[str, Any]) -> None:
    usage = {"prompt_tokens": 6, "completion_tokens": 4, "total_tokens": TOKENS}
    body = {"object": "chat.completion", "choices": [], "usage": usage}
    text = json.dumps(body).encode()
    visitor.head("application/json", len(text))
    visitor.wfile.write(text)


class ScriptedCloud(ThreadingHTTPServer):
    """Answers with ``behave``; ``asked`` counts, ``left`` tells that a client of it went away."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Visitor)
        self.behave: Callable[[Visitor, dict[str, Any]], None] = answer
        self.asked = 0
        self.left = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class CloudService(Service):
    """In mode cloud, with what ``upstream`` says of it."""

    def __init__(self, folder: Path, cloud: ScriptedCloud, **upstream: object) -> None:
        self._upstream = {"url": cloud.url, "retries": 0} | upstream
        super().__init__(folder, folder)
        document = {"upstreams": {"other": {"key": "sk-there"}}}
        (self.keys_dir / "upstreams.json").write_text(json.dumps(document), encoding="utf-8")

    def write_config(self, **server: object) -> None:
        options = {"bind": f"127.0.0.1:{self.port}, unix:{self.socket}", "mode": "cloud"} | server
        lines = ["[server]", *(f"{key} = {value}" for key, value in options.items())]
        lines += [
            "[upstream:other]",
            *(f"{key} = {value}" for key, value in self._upstream.items()),
        ]
        self.config.write_text("\n".join([*lines, CONFIG]), encoding="utf-8")

    def allow(self, *keys: ApiKey) -> None:
        """Have these keys beside the owner's."""
        (self.keys_dir / "keys.json").write_text(render([api_key(), *keys]), encoding="utf-8")

    def ask(self, secret: str = SECRET, **fields: Any) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": "Hi"}], **fields}
        headers = {"Authorization": f"Bearer {secret}"}
        return httpx.post(self.url + CHAT, json=body, headers=headers, timeout=60)

    def admin_status(self) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {SECRET}"}
        found: dict[str, Any] = httpx.get(f"{self.url}/admin/status", headers=headers).json()
        return found

    def figure(self, name: str) -> float:
        """One of /metrics."""
        headers = {"Authorization": f"Bearer {SECRET}"}
        for line in httpx.get(f"{self.url}/metrics", headers=headers).text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.rpartition(" ")[2])
        raise AssertionError(f"no {name}")
