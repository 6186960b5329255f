# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The line between supervisor and gateway workers: JSON lines over one Unix socket connection a
worker.

A worker sends ``{"op": "acquire", "id": 7, "model": "default", "key": "owner"}`` and ``{"op":
"release", "id": 7}``, the latter also to stop waiting. It gets ``{"event": "granted" | "full" |
"unavailable", "id": 7, …}``, and ``{"event": "state", …}`` at once and whenever the state changes.
A connection that ends gives everything back.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nas_assistant.admission import Admission, Verdict
from nas_assistant.engine import EngineBusy, EngineState, EngineUnavailable, LoadedModel
from nas_assistant.logs import log


@dataclass(frozen=True)
class Backend:
    """Where a loaded model answers: its engine's Unix socket, and the key of this start."""

    model: LoadedModel
    socket: str
    api_key: str


class ControlServer:
    """The supervisor's side: tells workers the state, and each request if it may go on."""

    def __init__(self, admission: Admission[tuple[int, int]]) -> None:
        self._admission = admission
        self._workers: dict[int, asyncio.StreamWriter] = {}
        self._connections: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count()
        self._backends: dict[str, Backend] = {}
        self._reason = "starting"
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

    def publish(self, backends: Mapping[str, Backend], reason: str) -> None:
        """Tell all workers which models can be asked; with none, ``reason`` says why."""
        for model in self._backends.keys() - backends.keys():
            for worker, number in self._admission.forget_waiting(model):
                self._send(worker, {"event": "unavailable", "id": number, "reason": reason})
        self._backends = dict(backends)
        self._reason = reason
        for worker in self._workers:
            self._send(worker, self._state())

    def _state(self) -> dict[str, Any]:
        return {
            "event": "state",
            "reason": self._reason,
            "backends": [asdict(backend) for backend in self._backends.values()],
        }

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        worker = next(self._numbers)
        self._workers[worker] = writer
        held: set[int] = set()
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
            self._release(worker, number)
        elif message["op"] == "acquire":
            model = str(message["model"])
            if model not in self._backends:
                self._send(worker, {"event": "unavailable", "id": number, "reason": self._reason})
                return
            verdict = self._admission.acquire((worker, number), model)
            if verdict is Verdict.FULL:
                self._send(
                    worker,
                    {"event": "full", "id": number, "retry_after": self._admission.retry_after()},
                )
                return
            held.add(number)
            if verdict is Verdict.GRANTED:
                self._send(worker, {"event": "granted", "id": number})
        else:
            raise ValueError(f"unknown op {message['op']!r}")

    def _release(self, worker: int, number: int) -> None:
        for next_worker, next_number in self._admission.release((worker, number)):
            self._send(next_worker, {"event": "granted", "id": next_number})

    def _send(self, worker: int, message: dict[str, Any]) -> None:
        writer = self._workers.get(worker)
        if writer is not None and not writer.is_closing():
            writer.write(json.dumps(message).encode() + b"\n")


class ControlClient:
    """A gateway worker's side; ``lost`` is called when the supervisor cannot be heard any more."""

    def __init__(self, path: Path, lost: Callable[[], None]) -> None:
        self._path = path
        self._lost = lost
        self._numbers = itertools.count()
        self._verdicts: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._first_state = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None
        self.backends: Mapping[str, Backend] = {}
        self.state = EngineState(ready=False, reason="starting")

    async def connect(self) -> None:
        """Connect and wait for the first state. Raises OSError when none comes."""
        reader, self._writer = await asyncio.open_unix_connection(str(self._path))
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
    async def slot(self, model: str, key: str) -> AsyncIterator[Backend]:
        """Hold a slot of ``model``, waiting for it in the supervisor's queue. Raises EngineBusy,
        EngineUnavailable.
        """
        number = next(self._numbers)
        verdict = asyncio.get_running_loop().create_future()
        self._verdicts[number] = verdict
        self._send({"op": "acquire", "id": number, "model": model, "key": key})
        try:
            message = await verdict
            if message["event"] == "full":
                raise EngineBusy(message["retry_after"])
            backend = self.backends.get(model)
            if message["event"] == "unavailable" or backend is None:
                raise EngineUnavailable(message.get("reason") or self.state.reason)
            yield backend
        finally:
            del self._verdicts[number]
            self._send({"op": "release", "id": number})

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
            self.backends = {}
            self.state = EngineState(ready=False, reason="the supervisor is gone")
            for verdict in self._verdicts.values():
                if not verdict.done():
                    verdict.set_result({"event": "unavailable", "reason": self.state.reason})
        # Not when this side hung up: that cancels this task.
        self._lost()

    def _receive(self, message: dict[str, Any]) -> None:
        if message["event"] == "state":
            backends = [
                Backend(LoadedModel(**item["model"]), item["socket"], item["api_key"])
                for item in message["backends"]
            ]
            self.backends = {backend.model.name: backend for backend in backends}
            self.state = EngineState(
                ready=bool(backends),
                reason=message["reason"],
                models={backend.model.name: backend.model for backend in backends},
            )
            self._first_state.set()
            return
        verdict = self._verdicts.get(message["id"])
        # A waiter that was cancelled may be granted its slot meanwhile; its release is on the way.
        if verdict is not None and not verdict.done():
            verdict.set_result(message)

    def _send(self, message: dict[str, Any]) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(json.dumps(message).encode() + b"\n")
