# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""One engine process: its command, its start up to a warm model, and its end."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import secrets
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from nas_assistant.addresses import UnixAddress
from nas_assistant.checks import CheckedModel
from nas_assistant.child import child_command
from nas_assistant.control import Backend
from nas_assistant.engine import Kind
from nas_assistant.local_http import LocalHttpError, request
from nas_assistant.logs import log
from nas_assistant.settings import MOST_GUESSED, Settings

SOURCE_SERVER = "/opt/engine/llama-server"
_POLL_SECONDS = 0.1
# Weights come from a slow disk the first time they are touched.
_START_SECONDS = 600
_STOP_SECONDS = 5
_KEPT_LINES = 5
# What an engine writes when it gives up: a place in its source, or what it could not have.
_OF_ITS_CODE = re.compile(
    r"\S+\.(?:c|cc|cpp|cu|h|hpp):\d+: |terminate called after |"
    r"(?:[\d.]+ [EW] )?(?:ggml|llama)_\w+: failed to allocate "
)
_PROBE_SECONDS = 5
_PROBES_MISSED = 3
# A slow NAS takes a minute for a batch of a long prompt, and looks at its queue after it.
_STUCK_SECONDS = 300

# How often an OpenMP thread looks before it sleeps at a barrier (libgomp). By default it looks
# 300 000 times, and a thread that waits takes the CPU from the one that it waits for: with one
# other busy process on two cores, one client got 2 tokens/s; with this it got 16. The price on an
# idle machine is not settled: eight clients lost about a fifth in three of four rounds.
_SPIN_COUNT = "1000"


# The first request, by kind of model.
_FIRST: Mapping[Kind, tuple[str, dict[str, object]]] = {
    Kind.CHAT: (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4},
    ),
    Kind.TEXT: ("/v1/completions", {"prompt": "Hello", "max_tokens": 4}),
    Kind.EMBEDDING: ("/v1/embeddings", {"input": "Hello"}),
    Kind.RERANK: ("/v1/rerank", {"query": "Hello", "documents": ["Hello"]}),
}

# Kinds whose texts are read all at once, since each token looks at all others; what llama.cpp calls
# it.
_READS_AT_ONCE = {Kind.EMBEDDING: "--embeddings", Kind.RERANK: "--reranking"}


class EngineFailed(Exception):
    """The engine ended, or does not answer; the text says why."""


class EngineProcess:
    """An engine that serves ``model``. ``folder`` is private; ``number`` tells starts apart."""

    def __init__(
        self, settings: Settings, model: CheckedModel, build: str, folder: Path, number: int
    ) -> None:
        self._settings = settings
        self._model = model
        self._build = build
        name = f"engine-{model.settings.name}-{number}"
        # The socket's name must end in .sock for llama.cpp to take it for one.
        self._address = UnixAddress(str(folder / f"{name}.sock"))
        self._key_file = folder / f"{name}.key"
        self._api_key = secrets.token_urlsafe(32)
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._serves = False
        self._last_lines: deque[str] = deque(maxlen=_KEPT_LINES)

    @property
    def backend(self) -> Backend:
        """How gateway workers reach it."""
        return Backend(self._model.model, self._address.path, self._api_key)

    async def start(self) -> None:
        """Start, load, and answer one request for nobody. Raises EngineFailed."""
        started = time.monotonic()
        self._key_file.touch(mode=0o600)
        self._key_file.write_text(self._api_key, encoding="ascii")
        self._process = await asyncio.create_subprocess_exec(
            *child_command(signal.SIGKILL, self._command()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=_environ(),
            # The supervisor alone decides when it ends, also after Ctrl-C in a terminal.
            start_new_session=True,
        )
        self._reader = asyncio.create_task(self._read_output(self._process))
        async with asyncio.timeout(_START_SECONDS):
            while not await self.healthy():
                await self._still_running()
                await asyncio.sleep(_POLL_SECONDS)
        loaded = time.monotonic()
        await self._warm_up()
        self._serves = True
        log(
            logging.INFO,
            "engine_ready",
            model=self._model.settings.name,
            threads=self._model.threads,
            load_seconds=round(loaded - started, 2),
            warm_up_seconds=round(time.monotonic() - loaded, 2),
        )

    async def healthy(self) -> bool:
        """Whether it answers and its model is loaded."""
        try:
            status, _ = await asyncio.to_thread(request, self._address, "GET", "/health")
        except LocalHttpError:
            return False
        return status == 200

    async def takes_work(self, seconds: float) -> bool:
        """Whether the loop that generates looks at its queue within so many ``seconds``.

        /health is answered beside that loop, also while it is stuck; /metrics is answered by it.
        """
        asked = time.monotonic()
        key = {"Authorization": f"Bearer {self._api_key}"}
        try:
            await asyncio.to_thread(request, self._address, "GET", "/metrics", None, key, seconds)
        except LocalHttpError:
            return time.monotonic() - asked < seconds
        return True

    async def end(self) -> str:
        """Wait until it ends, or kill it when it no longer works; return the reason."""
        ended = asyncio.create_task(self.wait())
        working = asyncio.create_task(self.takes_work(_STUCK_SECONDS))
        missed, reason = 0, ""
        try:
            while not ended.done():
                await asyncio.wait((ended,), timeout=_PROBE_SECONDS)
                if ended.done():
                    break
                missed = 0 if await self.healthy() else missed + 1
                if missed == _PROBES_MISSED:
                    reason = f"the engine did not answer {missed} health checks and was killed"
                elif working.done() and not working.result():
                    reason = f"the engine took up no work for {_STUCK_SECONDS} s and was killed"
                elif working.done():
                    working = asyncio.create_task(self.takes_work(_STUCK_SECONDS))
                if reason:
                    self.kill()
                    await ended
            return reason or ended.result()
        finally:
            working.cancel()

    async def wait(self) -> str:
        """Wait for its end; return what is known about it."""
        assert self._process is not None
        code = await self._process.wait()
        if self._reader is not None:
            await self._reader
        what = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return " | ".join([f"the engine ended with {what}", *self._last_lines])

    async def stop(self) -> None:
        """End it: politely, then not. Harmless when it has ended."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            try:
                async with asyncio.timeout(_STOP_SECONDS):
                    await self._process.wait()
            except TimeoutError:
                self.kill()
                await self._process.wait()
        for path in (self._key_file, Path(self._address.path)):
            path.unlink(missing_ok=True)

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    def _command(self) -> list[str]:
        program = (
            [sys.executable, "-m", "nas_assistant.wheel_server"]
            if self._build == "wheel"
            # Off: the web page, other clients' prompts, guessing sizes by itself, and any download.
            else [SOURCE_SERVER, "--no-ui", "--no-slots", "--metrics", "--fit", "off", "--offline"]
        )
        settings, model = self._settings, self._model
        reads_at_once = _READS_AT_ONCE.get(model.model.kind, "")
        options: dict[str, object] = {
            "--model": model.path,
            "--alias": model.settings.name,
            "--host": self._address.path,
            "--api-key-file": self._key_file,
            "--ctx-size": model.settings.context * settings.slots,
            "--parallel": settings.slots,
            # Of a long prompt, so many tokens at once; in between the others get their next ones.
            "--batch-size": model.settings.context if reads_at_once else settings.batch,
            "--threads": model.threads,
            # One for each slot, and some for health and for connections that are just ending.
            "--threads-http": settings.slots + 4,
            "--cache-ram": 0 if reads_at_once else settings.cache_mib,
            "--cache-type-k": model.settings.kv_cache,
            "--cache-type-v": model.settings.kv_cache,
            "--verbosity": 3 if settings.log_level == "debug" else 1,
        }
        if reads_at_once:
            program.append(reads_at_once)
            options["--ubatch-size"] = model.settings.context
        if model.settings.speculation and not reads_at_once:
            # Where twelve tokens were there before, what followed is guessed, and weighed at once.
            options["--spec-type"] = "ngram-mod"
            options["--spec-ngram-mod-n-match"] = 12
            options["--spec-ngram-mod-n-min"] = 4
            options["--spec-ngram-mod-n-max"] = MOST_GUESSED
        template = model.settings.chat_template
        if template:
            options["--chat-template"] = template
            # Of its built-in templates llama.cpp has only this one for its Jinja interpreter.
            if template != "chatml":
                program.append("--no-jinja")
        return program + [str(word) for option in options.items() for word in option]

    async def _warm_up(self) -> None:
        """Answer a little: it touches every weight and compiles the chat template."""
        path, payload = _FIRST[self._model.model.kind]
        try:
            status, body = await asyncio.to_thread(
                request,
                self._address,
                "POST",
                path,
                json.dumps(payload).encode(),
                {"Authorization": f"Bearer {self._api_key}", "Content-Type": "application/json"},
                _START_SECONDS,
            )
        except LocalHttpError as error:
            await self._still_running()
            raise EngineFailed(f"the engine did not answer its first request: {error}") from error
        if status != 200:
            text = body.decode("utf-8", "replace")[:300]
            raise EngineFailed(f"the engine refused its first request with {status}: {text}")

    async def _still_running(self) -> None:
        assert self._process is not None
        if self._process.returncode is not None:
            raise EngineFailed(await self.wait())

    async def _read_output(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # longer than the reader's limit; what follows is read on
                continue
            if not line:
                return
            text = line.decode("utf-8", "replace").strip()
            if text and self._may_be_kept(text):
                self._last_lines.append(text[:200])
                log(logging.DEBUG, "engine_output", text)

    def _may_be_kept(self, line: str) -> bool:
        """Once it serves, what it writes may quote what somebody asked."""
        return self._settings.log_text or not self._serves or bool(_OF_ITS_CODE.match(line))


def _environ() -> dict[str, str]:
    # llama.cpp takes any option from LLAMA_ARG_*; here only the configuration counts.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_")}
    return kept | {"GOMP_SPINCOUNT": _SPIN_COUNT}
