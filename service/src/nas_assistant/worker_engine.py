# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The engine of a gateway worker: llama.cpp on a Unix socket, or an upstream, whichever has the
model; each request with a slot that the supervisor grants.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp

from nas_assistant.cloud import Cloud
from nas_assistant.control import Backend, ControlClient
from nas_assistant.engine import (
    Call,
    EngineAnswer,
    EngineState,
    EngineUnavailable,
    Failure,
    Outcome,
)
from nas_assistant.errors import ApiError, from_engine
from nas_assistant.keys import KeyRing
from nas_assistant.settings import Upstream

_GONE = "the engine ended while it was answering"


class WorkerEngine:
    """Implements ``engine.Engine``.

    ``control_socket`` is the supervisor's; ``ring`` gets its keys; ``lost`` is called when it can
    no longer be heard.
    """

    def __init__(
        self,
        control_socket: Path,
        ring: KeyRing,
        lost: Callable[[], None],
        upstreams: Mapping[str, Upstream],
    ) -> None:
        self._control = ControlClient(control_socket, ring, lost)
        self._cloud = Cloud(upstreams)

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
        await self._cloud.close()

    @asynccontextmanager
    async def generate(self, call: Call) -> AsyncIterator[EngineAnswer]:
        """See ``engine.Engine.generate``."""
        async with self._control.slot(call) as grant:
            ask = self._cloud.ask if grant.backend.model.upstream else _ask_llama
            try:
                async with ask(grant.backend, call) as answer:
                    try:
                        yield answer
                    finally:
                        grant.outcome = answer.outcome
            except EngineUnavailable as error:
                grant.outcome = replace(
                    grant.outcome or Outcome(503), status=503, failure="not_ready"
                )
                error.had_slot = True
                raise

    def note(self, failure: Failure) -> None:
        """See ``engine.Engine.note``."""
        self._control.note(failure)

    async def report(self, what: str) -> str:
        """See ``engine.Engine.report``."""
        return await self._control.report(what)


@asynccontextmanager
async def _ask_llama(backend: Backend, call: Call) -> AsyncIterator[LlamaAnswer]:
    # A connection a request: over a Unix socket it costs a tenth of a millisecond, while an idle
    # one would occupy a thread of the engine's HTTP server for seconds, and may be closed under the
    # next request.
    async with aiohttp.ClientSession(
        connector=aiohttp.UnixConnector(backend.socket, force_close=True),
        headers={"Authorization": f"Bearer {backend.api_key}", "Content-Type": "application/json"},
        # A long answer is no failure; a dead engine shows as a closed connection.
        timeout=aiohttp.ClientTimeout(total=None, connect=10),
        cookie_jar=aiohttp.DummyCookieJar(),
    ) as session:
        try:
            response = await session.post(f"http://engine{call.path}", data=call.body)
        except aiohttp.ClientError as error:
            raise EngineUnavailable(_GONE) from error
        try:
            yield LlamaAnswer(response)
        finally:
            # Before the slot goes to another request: the engine stops when its connection ends.
            response.close()


class LlamaAnswer:
    """Implements ``engine.EngineAnswer``."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.outcome = Outcome(response.status)

    @property
    def status(self) -> int:
        """The engine's HTTP status."""
        return self._response.status

    def explain(self, body: bytes) -> ApiError:
        """See ``engine.EngineAnswer.explain``."""
        return from_engine(self.status, body)

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
