# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""An engine that does what a test tells it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from threading import Event
from typing import Any

from nas_assistant.engine import (
    Call,
    EngineState,
    EngineUnavailable,
    Failure,
    Kind,
    Model,
    Outcome,
)
from nas_assistant.errors import ApiError, from_engine

READY = EngineState(
    ready=True,
    reason="",
    models={"default": Model("default", Kind.CHAT, created=1)},
    unusable={"large": "large.gguf is damaged"},
)


class FakeEngine:
    """Answers with ``status`` and ``parts``.

    A part that is an exception is raised, an event is waited for, None waits for ever.
    """

    def __init__(self, *parts: bytes | Exception | Event | None, status: int = 200) -> None:
        self.parts = parts
        self.status = status
        self.state = READY
        self.refusal: Exception | None = None
        self.reports: dict[str, str] = {}
        self.requests: list[tuple[str, str, dict[str, Any], str]] = []
        self.calls: list[Call] = []
        self.failures: list[Failure] = []
        self.active = 0
        self.outcome = Outcome(status)
        self.outcomes: list[Outcome] = []

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass

    @asynccontextmanager
    async def generate(self, call: Call) -> AsyncIterator[FakeEngine]:
        self.calls.append(call)
        if self.refusal:
            raise self.refusal
        self.requests.append((call.model, call.path, json.loads(call.body), call.key))
        self.active += 1
        try:
            yield self
        finally:
            self.active -= 1
            self.outcomes.append(self.outcome)

    def note(self, failure: Failure) -> None:
        self.failures.append(failure)

    async def report(self, what: str) -> str:
        if self.refusal:
            raise self.refusal
        return self.reports.get(what, f'"{what}"')

    def explain(self, body: bytes) -> ApiError:
        return from_engine(self.status, body)

    async def read(self) -> bytes:
        return b"".join([chunk async for chunk in self.chunks()])

    async def chunks(self) -> AsyncIterator[bytes]:
        for part in self.parts:
            if part is None:
                await asyncio.sleep(3600)
            elif isinstance(part, Event):
                # Of threads, since a test and a server that it started are two.
                await asyncio.to_thread(part.wait, 30)
            elif isinstance(part, Exception):
                raise part
            else:
                yield part


DIED = EngineUnavailable("the engine ended while it was answering")
