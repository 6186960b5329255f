# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The socket at which a proxy asks. Somebody outside keeps it, so that who comes while the service
is started again waits in its queue instead of being turned away.

The keeper listens at a Unix socket of its own. Who connects there gets the listening socket, says
``SERVES`` once it takes requests, and stops being counted when it hangs up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket

from nas_assistant.checks import StartRefused
from nas_assistant.logs import log

SERVES = b"s"
# Of the gateway's environment: the number of the socket, or nothing.
FRONT_FD = "NAS_ASSISTANT_FRONT_FD"
_SECONDS = 10.0
_AGAIN = 1.0


class Front:
    """The socket, and the line to who keeps it at ``path``."""

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self._line, self.listener = _fetch(path)
        except OSError as error:
            raise StartRefused(
                f"the proxy's socket cannot be fetched at {path}: {error.strerror or error}. See "
                "whether nas-assistant-fetch.socket runs on the NAS"
            ) from error
        self._identity = _identity(self.listener)
        self._serves = False

    def serve(self) -> None:
        """Tell the keeper that requests are taken."""
        self._serves = True
        self._say()

    def leave(self) -> None:
        """Tell the keeper that none are taken any more. Who comes waits for the next service."""
        self._serves = False
        self._line.close()

    async def lost(self) -> None:
        """Go on while it is kept, also by a keeper that began anew; return when there is another
        socket, where this service would hear nobody.
        """
        loop = asyncio.get_running_loop()
        while True:
            self._line.setblocking(False)
            with contextlib.suppress(OSError):
                # It never says anything: this returns when it is gone.
                await loop.sock_recv(self._line, 1)
            self._line.close()
            if not await self._return():
                return

    async def _return(self) -> bool:
        """Whether the keeper has the same socket as before."""
        complaint = ""
        while True:
            try:
                self._line, listener = await asyncio.to_thread(_fetch, self._path)
            except OSError as error:
                if str(error) != complaint:
                    complaint = str(error)
                    log(
                        logging.WARNING,
                        "front_lost",
                        f"nobody keeps the proxy's socket at {self._path}: {error}",
                    )
                await asyncio.sleep(_AGAIN)
                continue
            with listener:
                same = _identity(listener) == self._identity
            if same and self._serves:
                self._say()
            return same

    def _say(self) -> None:
        with contextlib.suppress(OSError):  # that it is gone is noticed elsewhere
            self._line.send(SERVES)


def _fetch(path: str) -> tuple[socket.socket, socket.socket]:
    """The line to the keeper, and the socket. Raises OSError."""
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        line.settimeout(_SECONDS)
        line.connect(path)
        _, descriptors, _, _ = socket.recv_fds(line, 1, 1)
        if len(descriptors) != 1:
            raise OSError("it gave none")
    except BaseException:
        line.close()
        raise
    return line, socket.socket(fileno=descriptors[0])


def _identity(listener: socket.socket) -> tuple[int, int]:
    found = os.fstat(listener.fileno())
    return found.st_dev, found.st_ino
