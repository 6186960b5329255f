# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""A client's connection: HTTP/1.1, and the patience with who keeps one and does not use it.

uvicorn alone would keep a connection on which nothing is asked, and one whose client does not read
its answer, for ever: a few thousand of the one take all descriptors of a worker, a few of the other
all slots of a model.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from nas_assistant.errors import bad_request

# For the head of a request, from the connection or from the answer before.
HEAD_SECONDS = 20.0
# In which a client reads so much of what is written and waits in this process, beyond what the
# kernel holds.
READ_SECONDS = 60.0
_LEAST_READ = 16 << 10
# In which what a client sent with its connection was read.
_GLANCE_SECONDS = 0.05
# Descriptors that a worker needs for itself.
_OWN = 64


def _most() -> int:
    """Connections that a worker may have, each of which may need another one to who answers."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, (descriptors - _OWN) // 2)


class PatientProtocol(H11Protocol):
    """One connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unasked: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._most = _most()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by asyncio."""
        super().connection_made(transport)
        self._watch()
        if len(self.connections) > self._most:
            self.loop.call_later(_GLANCE_SECONDS, self._make_room)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        super().connection_lost(exc)
        for timer in (self._unasked, self._unread):
            if timer is not None:
                timer.cancel()

    def handle_events(self) -> None:
        """Called when something came."""
        super().handle_events()
        self._watch()

    def on_response_complete(self) -> None:
        """Called when an answer was written."""
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        """Called by asyncio when too much waits to be read."""
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        """Called by asyncio when most of it was read."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def send_400_response(self, msg: str) -> None:
        """Say that it is no HTTP, in the API's error shape."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            # Amid an answer, or after one, there is no place to say it.
            self.transport.close()
            return
        body = bad_request("The request is not HTTP/1.1.", None, "invalid_http").body()
        head = h11.Response(
            status_code=400,
            headers=[
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ],
            reason="Bad Request",
        )
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _make_room(self) -> None:
        """Hang up on who has asked nothing for longest, where there are still too many."""
        if len(self.connections) <= self._most:
            return
        idle = [
            (each._unasked.when(), id(each), each)
            for each in self.connections
            if isinstance(each, PatientProtocol)
            and each._unasked is not None
            and not each._unsent()
        ]
        if idle:
            _, _, longest = min(idle)
            # Not counted any more, though the loop closes it a moment later.
            self.connections.discard(longest)
            longest.transport.abort()

    def _watch(self) -> None:
        """Run the clock while nothing is asked; what comes meanwhile, but is no request, does not
        stop it.
        """
        asked = self.cycle is not None and not self.cycle.response_complete
        if asked and self._unasked is not None:
            self._unasked.cancel()
            self._unasked = None
        elif not asked and self._unasked is None:
            self._unasked = self.loop.call_later(HEAD_SECONDS, self._nothing_asked)

    def _unsent(self) -> int:
        """Bytes of answers that the client has not read, and the kernel does not hold."""
        return self.transport.get_write_buffer_size()

    def _nothing_asked(self) -> None:
        """Hang up, unless the client is busy reading: an answer counts as complete once it lies in
        the buffer.
        """
        if not self._unsent():
            self.transport.abort()
            return
        if self._unread is None:
            self._watch_reader()
        self._unasked = self.loop.call_later(HEAD_SECONDS, self._nothing_asked)

    def _watch_reader(self) -> None:
        self._unread = self.loop.call_later(READ_SECONDS, self._look_at_reader, self._unsent())

    def _look_at_reader(self, before: int) -> None:
        """Go on while the client reads. An answer that is under way hears of the end as of a client
        that left, and gives its slot back.
        """
        self._unread = None
        unsent = self._unsent()
        if unsent and before - unsent < _LEAST_READ:
            self.transport.abort()
        elif unsent:
            self._watch_reader()
