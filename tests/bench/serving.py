# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What the benches of the service share: how to ask, what it takes, and the service to be asked."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp

from nas_assistant.addresses import UnixAddress
from nas_assistant.checks import check_start
from nas_assistant.child import child_command
from nas_assistant.engine_process import EngineProcess
from nas_assistant.keys import ApiKey, render
from nas_assistant.local_http import LocalHttpError, request
from nas_assistant.settings import Settings

REQUESTS_PER_CLIENT = 2
START_SECONDS = 120
SUBJECTS = ("a lighthouse", "two brothers", "the last train", "an old baker")


def arguments(doc: str, slots: int, tokens: int) -> argparse.ArgumentParser:
    """The command line of a bench that ``doc`` describes, with its defaults."""
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("output", type=Path, help="where the result goes, as JSON")
    parser.add_argument("--engine", choices=("wheel", "source"), default="wheel")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--slots", type=int, default=slots)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=tokens, help="of each answer")
    return parser


@dataclass(frozen=True)
class Target:
    """Something to ask: a Unix socket or a port of this machine, the key for it, the name of its
    model, and the processes it consists of.
    """

    name: str
    at: str | int
    key: str
    pids: Callable[[], list[int]]
    model: str = "default"

    @property
    def url(self) -> str:
        """Where its API begins."""
        return f"http://127.0.0.1:{self.at}/v1" if isinstance(self.at, int) else "http://local/v1"

    @property
    def connector(self) -> aiohttp.BaseConnector:
        """As many connections as there are requests, each for one."""
        if isinstance(self.at, int):
            return aiohttp.TCPConnector(limit=0, force_close=True)
        return aiohttp.UnixConnector(self.at, limit=0, force_close=True)


@dataclass(frozen=True)
class Timing:
    """One request: seconds to the first token, and the number of tokens."""

    first_token: float
    tokens: int


class Client:
    """One that asks ``target``; with ``async with``, since it has connections."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._session = aiohttp.ClientSession(
            connector=target.connector,
            headers={"Authorization": f"Bearer {target.key}"},
            timeout=aiohttp.ClientTimeout(total=None),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def complete(self, prompt: str, tokens: int) -> Timing:
        """Stream a greedy text. Raises RuntimeError when it does not end as it should."""
        return await self._stream("completions", {"prompt": prompt, "max_tokens": tokens})

    async def chat(self, text: str, tokens: int, **more: Any) -> Timing:
        """Stream a greedy answer; ``more`` goes into the request."""
        messages = [{"role": "user", "content": text}]
        wish = {"messages": messages, "max_tokens": tokens, **more}
        return await self._stream("chat/completions", wish)

    async def _stream(self, path: str, wish: dict[str, Any]) -> Timing:
        common = {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
        body = {"model": self._target.model, **common, **wish}
        started, first, pieces, usage, line = time.perf_counter(), 0.0, 0, None, b""
        async with self._session.post(f"{self._target.url}/{path}", json=body) as response:
            if response.status != 200:
                raise RuntimeError(f"{self._target.name}: {await response.text()}")
            async for line in response.content:
                if line.strip() == b"data: [DONE]":
                    # Not every server counts; then each piece of text is taken for a token.
                    return Timing(first, usage["completion_tokens"] if usage else pieces)
                if line.startswith(b"data: {"):
                    first = first or time.perf_counter() - started
                    event = json.loads(line[6:])
                    usage = event.get("usage") or usage
                    pieces += any(_text_of(choice) for choice in event.get("choices") or ())
        raise RuntimeError(f"{self._target.name}: the stream ended early, with {line!r}")


def _text_of(choice: dict[str, Any]) -> str:
    return choice.get("text") or (choice.get("delta") or {}).get("content") or ""


async def tokens_per_second(
    target: Target, clients: int, work: Callable[[Client, int], Awaitable[int]]
) -> float:
    """The throughput with ``clients`` at once; ``work`` is what each of them (by number) does, and
    gives the tokens that it got.
    """
    async with Client(target) as client:
        started = time.perf_counter()
        counts = await asyncio.gather(*(work(client, number) for number in range(clients)))
        return sum(counts) / (time.perf_counter() - started)


async def stories_per_second(target: Target, clients: int, tokens: int) -> float:
    """The throughput when each of ``clients`` asks for two stories, one after the other."""

    async def work(client: Client, number: int) -> int:
        total = 0
        for turn in range(REQUESTS_PER_CLIENT):
            subject = SUBJECTS[(number + turn) % len(SUBJECTS)]
            prompt = f"Story {number}-{turn} about {subject}. Once upon a time"
            total += (await client.complete(prompt, tokens)).tokens
        return total

    return await tokens_per_second(target, clients, work)


async def first_token_ms(target: Target, prompt: str) -> float:
    """Milliseconds to the first token of one request on an idle service."""
    async with Client(target) as client:
        return (await client.complete(prompt, 1)).first_token * 1000


async def request_ms(target: Target, prompt: str) -> float:
    """Milliseconds of one request for one token on an idle service, connection and all."""
    started = time.perf_counter()
    async with Client(target) as client:
        await client.complete(prompt, 1)
    return (time.perf_counter() - started) * 1000


def long_prompt(head: str) -> str:
    """About 500 tokens; a new ``head`` makes all of them new to the prompt cache."""
    return f"Report {head}. " + "The quick brown fox jumps over the lazy dog near the river. " * 36


def memory_mib(pids: list[int]) -> float:
    """The proportional set size of all ``pids`` together."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return round(total / 1024, 1)


def children(parent: int) -> set[int]:
    """The processes that ``parent`` started, but not theirs."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text(encoding="utf-8").rpartition(")")[2].split()[1]) == parent:
                found.add(int(stat.parent.name))
        except OSError:  # it ended meanwhile
            continue
    return found


def descendants(root: int) -> list[int]:
    """``root`` and every process below it."""
    found = [root]
    for pid in found:
        found += children(pid)
    return found


@contextmanager
def running_service(folder: Path, options: argparse.Namespace) -> Iterator[Target]:
    """The whole service on its own configuration, as the container runs it."""
    address = UnixAddress(str(folder / "gateway.sock"))
    command = [
        *(sys.executable, "-m", "nas_assistant", "serve"),
        *("--config", str(folder / "config.ini"), "--models-dir", str(options.model.parent)),
        *("--keys-dir", str(folder / "keys"), "--state-dir", str(folder / "state")),
        *("--engine", options.engine),
    ]
    with (folder / "service.log").open("wb") as log:
        # So that a bench that is cut short leaves nothing running.
        command = child_command(signal.SIGTERM, command)
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while process.poll() is None and not is_ready(address) and time.monotonic() < deadline:
            time.sleep(0.1)
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit((folder / "service.log").read_text(encoding="utf-8"))
        yield Target("service", address.path, "bench", lambda: descendants(process.pid))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@asynccontextmanager
async def bare_engine(
    folder: Path, settings: Settings, options: argparse.Namespace
) -> AsyncIterator[tuple[Target, int]]:
    """The engine alone, as the service starts it, and its number of threads."""
    checked = check_start(settings, options.model.parent, options.engine)
    model = checked.models[settings.variant]
    engine = EngineProcess(settings, model, options.engine, folder, 0)
    before = children(os.getpid())
    try:
        await engine.start()
        (pid,) = children(os.getpid()) - before
        backend = engine.backend
        yield Target("bare", backend.socket, backend.api_key, lambda: [pid]), model.threads
    finally:
        await engine.stop()


def is_ready(address: UnixAddress) -> bool:
    """Whether the service at ``address`` can be asked."""
    try:
        return bool(request(address, "GET", "/readyz")[0] == 200)
    except LocalHttpError:
        return False


def write_config(folder: Path, options: argparse.Namespace) -> Path:
    """A configuration for the bench; the engine alone is started from it too.

    The model is there a second time, as ``guessing``, which is loaded when somebody asks for it.
    """
    with options.model.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    path = folder / "config.ini"
    path.write_text(
        f"""
[server]
bind = unix:{folder}/gateway.sock
[engine]
threads = {options.threads}
slots = {options.slots}
cache_mib = 128
[model:default]
file = {options.model.name}
sha256 = {digest}
context = 2048
[model:guessing]
file = {options.model.name}
sha256 = {digest}
context = 2048
speculation = yes
""",
        encoding="utf-8",
    )
    (folder / "keys").mkdir()
    (folder / "state").mkdir()
    key = ApiKey("bench", hashlib.sha256(b"bench").hexdigest())
    (folder / "keys/keys.json").write_text(render([key]), encoding="utf-8")
    return path
