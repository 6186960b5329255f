# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Binds the addresses that the gateway listens on."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

from nas_assistant.addresses import Address, TcpAddress
from nas_assistant.checks import StartRefused


def bind_all(addresses: tuple[Address, ...]) -> list[socket.socket]:
    """Bind each address without listening yet: a mistake shows at start, and no client comes before
    there is an answer.

    A Unix socket is for the owner and its folder's group (0660). gunicorn would bind it too, but
    give it its own group. Raises StartRefused.
    """
    listeners = []
    for address in addresses:
        try:
            listeners.append(
                _tcp(address) if isinstance(address, TcpAddress) else _unix(Path(address.path))
            )
        except OSError as error:
            raise StartRefused(
                f"cannot listen on {address} as uid {os.getuid()} gid {os.getgid()}: "
                f"{error.strerror}. "
                "For a Unix socket, give its folder on the host to that user; for a port, see who "
                "has it"
            ) from error
    return listeners


def _tcp(address: TcpAddress) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address.host, address.port))
    return listener


def _unix(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    _remove_stale(path)
    before = os.umask(0o117)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    return listener


def _remove_stale(path: Path) -> None:
    """Remove the socket that a killed process left; refuse when a living one answers there."""
    if not path.exists() or not stat.S_ISSOCK(path.stat().st_mode):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise StartRefused(f"{path} is in use: another instance serves there. Stop it first")
