# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Asks over a Unix socket: the service's own, which refuses while it is away, or Docker's."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping


class SocketConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout: float = 5) -> None:
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self) -> None:
        """Open the Unix socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def ask(path: str) -> tuple[int, dict[str, object]]:
    """Return status and body of /readyz; status 0 and the reason when nobody answers."""
    connection = SocketConnection(path)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        answer = json.loads(response.read())
        return response.status, answer if isinstance(answer, dict) else {"reason": repr(answer)}
    except (OSError, http.client.HTTPException, ValueError) as error:
        return 0, {"reason": f"{path}: {error}"}
    finally:
        connection.close()


def reason(answer: Mapping[str, object]) -> str:
    """Return why the service is not ready, of what ``ask`` gives."""
    error = answer.get("error")
    said = error.get("message") if isinstance(error, dict) else answer.get("reason")
    return str(said or answer)
