# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What the gateway asks of an engine, whatever stands behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from nas_assistant.errors import ApiError


class Kind(StrEnum):
    """What a model is for: to chat (it has a template for that), to go on with a text, to turn
    texts into vectors, or to rank them by what they say to a question.
    """

    CHAT = "chat"
    TEXT = "text"
    EMBEDDING = "embedding"
    RERANK = "rerank"


@dataclass(frozen=True)
class Model:
    """A model that can be asked; where it is not in memory, it is loaded for the first who does.
    ``created``: Unix time. ``upstream``: who answers it, empty for this machine. ``tools``: it can
    be offered some, as far as is known.
    """

    name: str
    kind: Kind
    created: int
    upstream: str = ""
    tools: bool = True

    @property
    def served_by(self) -> str:
        """Who answers, as clients are told."""
        return f"cloud:{self.upstream}" if self.upstream else "local"


@dataclass(frozen=True)
class EngineState:
    """Whether requests can be answered, if not why, and the models that can be asked; those of
    the configuration that cannot, with the reason. ``kinds``: of models of this machine, as far as
    they are known, of those that cannot be asked too. ``degraded``: why a cloud model answers in
    the place of the chosen one; empty while that can itself. ``loading``: it is on its way.
    """

    ready: bool
    reason: str
    models: Mapping[str, Model] = field(default_factory=dict)
    unusable: Mapping[str, str] = field(default_factory=dict)
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    degraded: str = ""
    loading: bool = False


# Nginx's word for a client that went away before it was answered.
CLIENT_GONE = 499


@dataclass(frozen=True)
class Outcome:
    """How a request that had a slot ended, as far as is known.

    ``status`` is HTTP's, CLIENT_GONE where the client left; ``failure`` the code of an error, where
    one is known. ``cached_tokens`` are those of the
    prompt that the engine had already. ``first_seconds``: from the request to the first piece of
    the answer. ``writing_seconds``: what the engine took for the tokens of the answer.
    """

    status: int
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    first_seconds: float | None = None
    writing_seconds: float = 0.0
    failure: str = ""


@dataclass(frozen=True)
class Failure:
    """How a request ended that had an error for an answer: nothing of its text, nor of what was
    answered. ``had_slot``: it is in the books by its outcome already.
    """

    status: int
    code: str
    had_slot: bool = False


@dataclass(frozen=True)
class Call:
    """What an engine is asked: ``body`` goes to ``path`` of the model, on the account of ``key``.

    ``fallback``: why another model cannot answer, in whose place this one does; empty where none
    is meant. ``again``: the request was counted when that one was asked. ``patience``: seconds to
    wait for a slot, 0 to take one that is free or none; None for as long as the queue lets one.
    """

    model: str
    path: str
    body: bytes
    key: str
    stream: bool = False
    fallback: str = ""
    again: bool = False
    patience: float | None = None


class EngineBusy(Exception):
    """Every slot is taken and the queue is full, or too slow. ``retry_after`` is in seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"try again in {retry_after} s")
        self.retry_after = retry_after


class QuotaExceeded(Exception):
    """A limit of the key is reached; the text says which. ``retry_after`` is in seconds."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineUnavailable(Exception):
    """The engine cannot answer, or stopped answering; the text says why. ``counted``: the request
    counts for its key's limits. ``sent``: an upstream may have read it. ``had_slot``: it is in the
    books by its outcome.
    """

    had_slot = False

    def __init__(self, reason: str, *, counted: bool = True, sent: bool = False) -> None:
        super().__init__(reason)
        self.counted = counted
        self.sent = sent


class EngineAnswer(Protocol):
    """An answer that has begun. Reading raises EngineUnavailable when the engine ends.

    Who reads it says with ``outcome`` how it went, for the books.
    """

    outcome: Outcome

    @property
    def status(self) -> int:
        """The HTTP status."""

    def explain(self, body: bytes) -> ApiError:
        """What to tell the client of an answer whose status is not 200."""

    async def read(self) -> bytes:
        """The whole body."""

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes."""


class Engine(Protocol):
    """An engine behind the gateway."""

    @property
    def state(self) -> EngineState:
        """The last known state; costs nothing."""

    async def start(self) -> None:
        """Called once, before the first request."""

    async def close(self) -> None:
        """Called once, after the last request."""

    def generate(self, call: Call) -> AbstractAsyncContextManager[EngineAnswer]:
        """Wait for a slot, send the call, and hold the slot until the context is left.

        Raises EngineBusy, QuotaExceeded or EngineUnavailable. Leaving early or being cancelled
        makes the engine stop.
        """

    def note(self, failure: Failure) -> None:
        """Have the books know of a request that ended with an error."""

    async def report(self, what: str) -> str:
        """``metrics`` as Prometheus reads them, or ``status`` as JSON. Raises EngineUnavailable."""
