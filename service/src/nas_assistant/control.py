# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The line between supervisor and gateway workers: JSON lines over one Unix socket connection a
worker.

A worker sends ``{"op": "acquire", "id": 7, "model": "default", "key": "owner", …}`` and ``{"op":
"release", "id": 7, "outcome": {…}}``, the latter also to stop waiting; ``{"op": "failed", "id": 8,
"failure": {…}}``; and ``{"op": "report", "id": 9, "what": "metrics"}``. It gets ``{"event":
"granted" | "waiting" | "full" | "limited" | "revoked" | "unavailable" | "report", "id": 7, …}``, of
which only "waiting" has another one follow; and ``{"event": "state", …}`` and ``{"event": "keys",
…}`` at once and whenever these change. A connection that ends gives everything back.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nas_assistant.desk import Desk, Ticket
from nas_assistant.engine import (
    Call,
    EngineBusy,
    EngineState,
    EngineUnavailable,
    Failure,
    Kind,
    Model,
    Outcome,
    QuotaExceeded,
)
from nas_assistant.keys import KeyRing, parse_key
from nas_assistant.logs import log

_SLOW_RETRY = 10  # seconds, told to who waited as long as it would
_LONGEST = 16 << 20  # bytes of a message to a worker: a report, or many keys


@dataclass(frozen=True)
class Backend:
    """Where a model answers: the Unix socket of its engine, which is empty for one of an upstream,
    and the key to use there. ``certificates``: PEM, trusted beside the usual ones.
    """

    model: Model
    socket: str
    api_key: str = field(repr=False)
    certificates: str = ""


@dataclass(frozen=True)
class _Published:
    models: tuple[Model, ...]
    unusable: Mapping[str, str]
    reason: str


class ControlServer:
    """The supervisor's side: tells workers the state, and each request if it may go on.

    ``reports`` are functions by name, each of which gives a text. ``changed`` is set whenever
    somebody may wait for another model, or a model may have become idle. ``kinds``, ``degraded``,
    ``loading``: see ``EngineState``; ``stand_in``: see ``Settings``.
    """

    def __init__(self, desk: Desk, reports: Mapping[str, Callable[[], str]]) -> None:
        self._desk = desk
        self._reports = reports
        self.changed = asyncio.Event()
        self._workers: dict[int, asyncio.StreamWriter] = {}
        self._connections: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count()
        self._published: dict[str, _Published] = {}
        self._models: dict[str, Model] = {}
        self._unusable: dict[str, str] = {}
        self._backends: dict[str, Backend] = {}
        self.kinds: dict[str, Kind] = {}
        self.reason = "starting"
        self.degraded = ""
        self.loading = False
        self.stand_in = ""
        self._server: asyncio.Server | None = None

    async def start(self, path: Path) -> None:
        """Listen on the Unix socket ``path``."""
        self._server = await asyncio.start_unix_server(self._accept, path)

    async def close(self) -> None:
        """Stop listening and hang up on every worker."""
        if self._server is not None:
            self._server.close()
        for writer in self._workers.values():
            writer.close()
        await asyncio.gather(*self._connections)

    def publish(
        self, owner: str, models: Iterable[Model], unusable: Mapping[str, str], reason: str
    ) -> None:
        """Tell all workers which models of ``owner`` can be asked, and why others of its cannot.
        ``reason`` says why the chosen one cannot: then the service is not ready, unless there is
        another one in its place. Empty while it can.
        """
        self._published[owner] = _Published(tuple(models), dict(unusable), reason)
        before, owners = self._models, self._published.values()
        self._models = {model.name: model for each in owners for model in each.models}
        self._unusable = {name: why for each in owners for name, why in each.unusable.items()}
        self.reason = next((each.reason for each in owners if each.reason), "")
        self._degrade(self.reason if self.stand_in in self._models else "")
        for name in before.keys() - self._models.keys():
            self._turn_away(name, self._unusable.get(name, self.reason))
        self._tell(self._state())

    def _degrade(self, reason: str) -> None:
        """Note why another model answers in the place of the chosen one, or that none need to."""
        if reason:
            self.reason = ""
        if reason and not self.degraded:
            level = logging.WARNING if self.loading else logging.ERROR
            instead = f"{self.stand_in!r} answers, save for keys that stay at home"
            log(level, "degraded", f"{reason}. Meanwhile {instead}", model=self.stand_in)
        elif self.degraded and not reason and not self.reason:
            log(logging.INFO, "degraded_no_more", "no other model need answer any more")
        self.degraded = reason
        self._desk.note_degraded(bool(reason))

    def open(self, backend: Backend, slots: int | None = None) -> None:
        """Let requests go to a model that is in memory, or of an upstream; ``slots`` at once, where
        it is not as many as all have.
        """
        self._backends[backend.model.name] = backend
        self._grant(self._desk.open_model(backend.model.name, slots))

    def close_model(self, name: str) -> None:
        """Let no more requests go to a model."""
        self._desk.close_model(name)

    def publish_keys(self) -> None:
        """Tell all workers which keys count."""
        self._tell(self._keys())

    def _turn_away(self, name: str, reason: str) -> None:
        """Let nobody wait any more for a model that is gone."""
        self._desk.close_model(name)
        for worker, number in self._desk.forget_waiting(name):
            self._send(worker, {"event": "unavailable", "id": number, "reason": reason})

    def _tell(self, message: dict[str, Any]) -> None:
        for worker in self._workers:
            self._send(worker, message)

    def _state(self) -> dict[str, Any]:
        return {
            "event": "state",
            "reason": self.reason,
            "degraded": self.degraded,
            "loading": self.loading,
            "models": [asdict(model) for model in self._models.values()],
            "unusable": self._unusable,
            "kinds": self.kinds,
        }

    def _keys(self) -> dict[str, Any]:
        return {"event": "keys", "keys": [asdict(key) for key in self._desk.api_keys]}

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        worker = next(self._numbers)
        self._workers[worker] = writer
        held: set[int] = set()
        self._send(worker, self._keys())
        self._send(worker, self._state())
        try:
            while line := await reader.readline():
                self._handle(worker, held, json.loads(line))
        except (OSError, ValueError, KeyError, TypeError) as error:
            log(
                logging.WARNING,
                "control_broken",
                f"dropped a worker's control connection: {error!r}",
            )
        finally:
            del self._workers[worker]
            for number in held:
                self._release(worker, number)
            writer.close()

    def _handle(self, worker: int, held: set[int], message: dict[str, Any]) -> None:
        number = int(message["id"])
        if message["op"] == "release":
            held.discard(number)
            outcome = message.get("outcome")
            self._release(worker, number, Outcome(**outcome) if outcome else None)
        elif message["op"] == "failed":
            self._desk.note_failure(Failure(**message["failure"]))
        elif message["op"] == "report":
            text = self._reports[message["what"]]()
            self._send(worker, {"event": "report", "id": number, "text": text})
        elif message["op"] == "acquire":
            model = str(message["model"])
            if model not in self._models:
                reason = self._unusable.get(model, self.reason)
                self._send(worker, {"event": "unavailable", "id": number, "reason": reason})
                return
            answer = self._desk.acquire(
                (worker, number),
                model,
                str(message["key"]),
                str(message.get("fallback", "")),
                again=bool(message.get("again")),
            )
            if answer is None:
                held.add(number)
                self._send(worker, {"event": "waiting", "id": number})
                self.changed.set()
            elif answer["event"] == "granted":
                held.add(number)
                self._grant([(worker, number)])
            else:
                self._send(worker, {**answer, "id": number})
        else:
            raise ValueError(f"unknown op {message['op']!r}")

    def _release(self, worker: int, number: int, outcome: Outcome | None = None) -> None:
        self._grant(self._desk.release((worker, number), outcome))
        self.changed.set()

    def _grant(self, tickets: Iterable[Ticket]) -> None:
        for worker, number in tickets:
            backend = self._backends[self._desk.model_of((worker, number))]
            self._send(worker, {"event": "granted", "id": number, "backend": asdict(backend)})

    def _send(self, worker: int, message: dict[str, Any]) -> None:
        writer = self._workers.get(worker)
        if writer is not None and not writer.is_closing():
            writer.write(json.dumps(message).encode() + b"\n")


@dataclass
class Grant:
    """A slot that is held: where to ask, and how it went, which its holder says."""

    backend: Backend
    outcome: Outcome | None = None


class ControlClient:
    """A gateway worker's side. ``ring`` is kept up to date; ``lost`` is called when the supervisor
    cannot be heard any more.
    """

    def __init__(self, path: Path, ring: KeyRing, lost: Callable[[], None]) -> None:
        self._path = path
        self._ring = ring
        self._lost = lost
        self._numbers = itertools.count()
        self._replies: dict[int, asyncio.Queue[dict[str, Any]]] = {}
        self._first_state = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None
        self.state = EngineState(ready=False, reason="starting")

    async def connect(self) -> None:
        """Connect and wait for the first state. Raises OSError when none comes."""
        reader, self._writer = await asyncio.open_unix_connection(str(self._path), limit=_LONGEST)
        self._task = asyncio.create_task(self._listen(reader))
        first = asyncio.create_task(self._first_state.wait())
        await asyncio.wait((self._task, first), return_when=asyncio.FIRST_COMPLETED)
        if not first.done():
            first.cancel()
            raise ConnectionError("the supervisor hung up before it said anything")

    async def close(self) -> None:
        """Hang up, which gives back every slot."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._writer is not None:
            self._writer.close()

    @asynccontextmanager
    async def slot(self, call: Call) -> AsyncIterator[Grant]:
        """Hold a slot of a model, waiting for it in the supervisor's queue. Raises EngineBusy,
        QuotaExceeded, EngineUnavailable.
        """
        outcome: Outcome | None = None
        wish = {"op": "acquire", "model": call.model, "key": call.key, "fallback": call.fallback}
        async with self._question({**wish, "again": call.again}) as (number, replies):
            try:
                message = await replies.get()
                waited = message["event"] == "waiting"
                if waited:
                    # Not before: who has no patience may have a slot that is free.
                    try:
                        async with asyncio.timeout(call.patience):
                            message = await replies.get()
                    except TimeoutError as error:
                        raise EngineBusy(_SLOW_RETRY) from error
                if message["event"] == "full":
                    raise EngineBusy(message["retry_after"])
                if message["event"] in ("limited", "revoked"):
                    raise QuotaExceeded(message["message"], message.get("retry_after", 1))
                if message["event"] != "granted":
                    reason = message.get("reason") or self.state.reason
                    raise EngineUnavailable(reason, counted=waited)
                grant = Grant(_backend(message["backend"]))
                try:
                    yield grant
                finally:
                    outcome = grant.outcome
            finally:
                told = {"outcome": asdict(outcome)} if outcome else {}
                self._send({"op": "release", "id": number, **told})

    def note(self, failure: Failure) -> None:
        """Tell of a request that ended with an error."""
        self._send({"op": "failed", "id": next(self._numbers), "failure": asdict(failure)})

    async def report(self, what: str) -> str:
        """A text of the supervisor's, see ``ControlServer``. Raises EngineUnavailable."""
        async with self._question({"op": "report", "what": what}) as (_, replies):
            message = await replies.get()
        if message["event"] != "report":
            raise EngineUnavailable(message.get("reason") or self.state.reason)
        return str(message["text"])

    @asynccontextmanager
    async def _question(
        self, message: dict[str, Any]
    ) -> AsyncIterator[tuple[int, asyncio.Queue[dict[str, Any]]]]:
        number = next(self._numbers)
        replies: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._replies[number] = replies
        self._send({**message, "id": number})
        try:
            yield number, replies
        finally:
            del self._replies[number]

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                self._receive(json.loads(line))
        except (OSError, ValueError, KeyError, TypeError) as error:
            log(logging.ERROR, "control_broken", f"the supervisor's line broke: {error!r}")
        else:
            log(logging.ERROR, "control_broken", "the supervisor hung up")
        finally:
            # Without its supervisor a worker may not use the engine: nobody would count.
            self.state = EngineState(ready=False, reason="the supervisor is gone")
            for replies in self._replies.values():
                replies.put_nowait({"event": "unavailable", "reason": self.state.reason})
        # Not when this side hung up: that cancels this task.
        self._lost()

    def _receive(self, message: dict[str, Any]) -> None:
        if message["event"] == "state":
            models = [_model(item) for item in message["models"]]
            self.state = EngineState(
                ready=not message["reason"],
                reason=message["reason"],
                degraded=message["degraded"],
                loading=message["loading"],
                models={model.name: model for model in models},
                unusable=message["unusable"],
                kinds={name: Kind(kind) for name, kind in message["kinds"].items()},
            )
            self._first_state.set()
            return
        if message["event"] == "keys":
            self._ring.replace(parse_key(entry, "control") for entry in message["keys"])
            return
        replies = self._replies.get(message["id"])
        # A waiter that was cancelled may be granted its slot meanwhile; its release is on the way.
        if replies is not None:
            replies.put_nowait(message)

    def _send(self, message: dict[str, Any]) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(json.dumps(message).encode() + b"\n")


def _backend(message: dict[str, Any]) -> Backend:
    return Backend(**{**message, "model": _model(message["model"])})


def _model(message: dict[str, Any]) -> Model:
    return Model(**{**message, "kind": Kind(message["kind"])})
