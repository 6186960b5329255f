# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The real engine: llama.cpp's HTTP API on a Unix socket, a slot of which the supervisor grants."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from nas_assistant.control import Backend, ControlClient
from nas_assistant.engine import EngineState, EngineUnavailable, Outcome
from nas_assistant.keys import KeyRing

_GONE = "the engine ended while it was answering"


class LlamaEngine:
    """Implements ``engine.Engine`` in a gateway worker.

    ``control_socket`` is the supervisor's; ``ring`` gets its keys; ``lost`` is called when it can
    no longer be heard.
    """

    def __init__(self, control_socket: Path, ring: KeyRing, lost: Callable[[], None]) -> None:
        self._control = ControlClient(control_socket, ring, lost)

    @property
    def state(self) -> EngineState:
        """What the supervisor said last."""
        return self._control.state

    async def start(self) -> None:
        """Connect to the supervisor."""
        await self._control.connect()

    async def close(self) -> None:
        """Leave the supervisor."""
        await self._control.close()

    @asynccontextmanager
    async def generate(
        self, model: str, path: str, body: bytes, key: str
    ) -> AsyncIterator[LlamaAnswer]:
        """See ``engine.Engine.generate``."""
        async with (
            self._control.slot(model, key) as grant,
            _session(grant.backend) as session,
        ):
            try:
                response = await session.post(f"http://engine{path}", data=body)
            except aiohttp.ClientError as error:
                grant.outcome = Outcome(503)
                raise EngineUnavailable(_GONE) from error
            answer = LlamaAnswer(response)
            try:
                yield answer
            finally:
                # Before the slot goes to another request: the engine stops when its connection
                # ends.
                response.close()
                grant.outcome = answer.outcome

    async def report(self, what: str) -> str:
        """See ``engine.Engine.report``."""
        return await self._control.report(what)


class LlamaAnswer:
    """Implements ``engine.EngineAnswer``."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.outcome = Outcome(response.status)

    @property
    def status(self) -> int:
        """The engine's HTTP status."""
        return self._response.status

    async def read(self) -> bytes:
        """The whole body."""
        try:
            return await self._response.read()
        except aiohttp.ClientError as error:
            raise EngineUnavailable(_GONE) from error

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        try:
            async for chunk in self._response.content.iter_any():
                yield chunk
        except aiohttp.ClientError as error:
            raise EngineUnavailable(_GONE) from error


def _session(backend: Backend) -> aiohttp.ClientSession:
    # A connection a request: over a Unix socket it costs a tenth of a millisecond, while an idle
    # one would occupy a thread of the engine's HTTP server for seconds, and may be closed under the
    # next request.
    return aiohttp.ClientSession(
        connector=aiohttp.UnixConnector(backend.socket, force_close=True),
        headers={"Authorization": f"Bearer {backend.api_key}", "Content-Type": "application/json"},
        # A long answer is no failure; a dead engine shows as a closed connection.
        timeout=aiohttp.ClientTimeout(total=None, connect=10),
        cookie_jar=aiohttp.DummyCookieJar(),
    )
