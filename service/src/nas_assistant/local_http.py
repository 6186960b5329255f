# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""A small blocking HTTP client for this machine: the engine's Unix socket and the health check need
no more.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException

from nas_assistant.addresses import Address, TcpAddress, UnixAddress


class LocalHttpError(Exception):
    """No answer came; the text says why."""


class _UnixConnection(HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def request(
    address: Address,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = 5.0,
) -> tuple[int, bytes]:
    """Send one request; return status and body. Raises LocalHttpError.

    ``timeout`` is in seconds, for each step.
    """
    connection = (
        _UnixConnection(address.path, timeout)
        if isinstance(address, UnixAddress)
        else HTTPConnection(_reachable(address), address.port, timeout=timeout)
    )
    try:
        connection.request(method, path, body, dict(headers or {}))
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, HTTPException) as error:
        raise LocalHttpError(f"{address}: {error or type(error).__name__}") from error
    finally:
        connection.close()


def _reachable(address: TcpAddress) -> str:
    """A service that listens everywhere is asked over the loopback."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)
