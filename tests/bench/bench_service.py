# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What the gateway costs: the whole service against its engine alone, on the same machine at once.

Both run the same model with the same build, threads and slots, and get the same greedy requests in
rounds that alternate, so that another load on the machine hits both. Trust the ratios: a ratio is
the median over pairs that ran directly one after the other.

    PYTHONPATH=service/src python tests/bench/bench_service.py MODEL.gguf RESULT.json
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import json
import os
import platform
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from nas_assistant.addresses import UnixAddress
from nas_assistant.checks import check_start
from nas_assistant.child import child_command
from nas_assistant.engine_process import EngineProcess
from nas_assistant.keys import ApiKey, render
from nas_assistant.local_http import LocalHttpError, request
from nas_assistant.settings import Settings

LEVELS = (1, 4, 8)
REQUESTS_PER_CLIENT = 2
SUBJECTS = ("a lighthouse", "two brothers", "the last train", "an old baker")
RATIO_TARGET, FIRST_TOKEN_TARGET_MS = 0.90, 15.0


@dataclass(frozen=True)
class Target:
    """Something to ask: a Unix socket, the key for it, and the processes it consists of."""

    name: str
    socket: str
    key: str
    pids: Callable[[], list[int]]


@dataclass(frozen=True)
class Timing:
    """One request: seconds to the first token, and the number of tokens."""

    first_token: float
    tokens: int


async def ask(session: aiohttp.ClientSession, prompt: str, tokens: int) -> Timing:
    """Stream one completion. Raises RuntimeError when it does not end as it should."""
    body = {
        "model": "default",
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    started, first, last = time.perf_counter(), 0.0, b""
    async with session.post("http://local/v1/completions", json=body) as response:
        if response.status != 200:
            raise RuntimeError(await response.text())
        async for line in response.content:
            if line.startswith(b"data: {"):
                first = first or time.perf_counter() - started
                last = line
            elif line.strip() == b"data: [DONE]":
                return Timing(first, json.loads(last[6:])["usage"]["completion_tokens"])
    raise RuntimeError("the stream ended early")


@asynccontextmanager
async def client(target: Target) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of ``target`` with as many connections as it likes."""
    async with aiohttp.ClientSession(
        connector=aiohttp.UnixConnector(target.socket, limit=0, force_close=True),
        headers={"Authorization": f"Bearer {target.key}"},
        timeout=aiohttp.ClientTimeout(total=None),
    ) as session:
        yield session


async def tokens_per_second(target: Target, clients: int, tokens: int) -> float:
    """The throughput with ``clients`` at once, each of which asks one after the other."""

    async def work(number: int) -> int:
        total = 0
        for turn in range(REQUESTS_PER_CLIENT):
            subject = SUBJECTS[(number + turn) % len(SUBJECTS)]
            prompt = f"Story {number}-{turn} about {subject}. Once upon a time"
            total += (await ask(session, prompt, tokens)).tokens
        return total

    async with client(target) as session:
        started = time.perf_counter()
        counts = await asyncio.gather(*(work(number) for number in range(clients)))
        return sum(counts) / (time.perf_counter() - started)


async def first_token_ms(target: Target, prompt: str) -> float:
    """Milliseconds to the first token of one request on an idle service."""
    async with client(target) as session:
        return (await ask(session, prompt, 1)).first_token * 1000


def long_prompt(head: str) -> str:
    """About 500 tokens; a new ``head`` makes all of them new to the prompt cache."""
    return f"Report {head}. " + "The quick brown fox jumps over the lazy dog near the river. " * 36


async def measure(bare: Target, service: Target, rounds: int, tokens: int) -> dict[str, Any]:
    """Every figure, as medians of alternating rounds."""
    pairs = ((bare, service), (service, bare))
    order = itertools.cycle(pairs)
    speeds: dict[tuple[int, str], list[float]] = {}
    for _ in range(rounds):
        for level in LEVELS:
            for target in next(order):
                speed = await tokens_per_second(target, level, tokens)
                speeds.setdefault((level, target.name), []).append(speed)
    first: dict[tuple[str, str], list[float]] = {}
    for target in (bare, service):
        await first_token_ms(target, long_prompt("warm"))
    # Many pairs: the difference that is looked for is a hundredth of what one cold prompt takes.
    for turn in range(rounds * 8):
        for kind, head in (("warm", "warm"), ("cold", f"{turn} {secrets.token_hex(4)}")):
            for target in next(order):
                value = await first_token_ms(target, long_prompt(head))
                first.setdefault((kind, target.name), []).append(value)
    return {
        "tokens_per_second": {
            str(level): compare(speeds[level, "bare"], speeds[level, "service"]) for level in LEVELS
        },
        "first_token_ms": {
            kind: compare(first[kind, "bare"], first[kind, "service"]) for kind in ("cold", "warm")
        },
        "memory_mib": {target.name: memory_mib(target.pids()) for target in (bare, service)},
    }


def compare(bare: list[float], service: list[float]) -> dict[str, float]:
    """Medians of both, of the ratio and of the difference of each pair."""
    return {
        "bare": round(statistics.median(bare), 2),
        "service": round(statistics.median(service), 2),
        "ratio": round(statistics.median(s / b for b, s in zip(bare, service, strict=True)), 3),
        "added": round(statistics.median(s - b for b, s in zip(bare, service, strict=True)), 2),
    }


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
        while process.poll() is None and not is_ready(address):
            time.sleep(0.1)
        if process.poll() is not None:
            raise SystemExit((folder / "service.log").read_text(encoding="utf-8"))
        yield Target("service", address.path, "bench", lambda: descendants(process.pid))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def is_ready(address: UnixAddress) -> bool:
    """Whether the service at ``address`` can be asked."""
    try:
        return request(address, "GET", "/readyz")[0] == 200
    except LocalHttpError:
        return False


def write_config(folder: Path, options: argparse.Namespace) -> Path:
    """A configuration for the bench; the engine alone is started from it too."""
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
[model:default]
file = {options.model.name}
sha256 = {digest}
""",
        encoding="utf-8",
    )
    (folder / "keys").mkdir()
    (folder / "state").mkdir()
    key = ApiKey("bench", hashlib.sha256(b"bench").hexdigest())
    (folder / "keys/keys.json").write_text(render([key]), encoding="utf-8")
    return path


async def bench(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Start both, measure, stop both."""
    settings = Settings.load(write_config(folder, options), {})
    checked = check_start(settings, options.model.parent, options.engine)
    model = checked.models[settings.variant]
    with running_service(folder, options) as service:
        engine = EngineProcess(settings, model, options.engine, folder, 0)
        before = children(os.getpid())
        try:
            await engine.start()
            (pid,) = children(os.getpid()) - before
            bare = Target("bare", engine.backend.socket, engine.backend.api_key, lambda: [pid])
            figures = await measure(bare, service, options.rounds, options.tokens)
        finally:
            await engine.stop()
    setup = {name: str(value) for name, value in vars(options).items()}
    machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "threads": model.threads}
    return {"setup": setup, "machine": machine} | figures


def report(result: dict[str, Any]) -> str:
    """The figures as a table, with what was aimed at."""
    lines = [f"{'':28}{'bare':>10}{'service':>10}{'ratio':>8}{'added':>9}"]
    for level, row in result["tokens_per_second"].items():
        met = "met" if row["ratio"] >= RATIO_TARGET else f"MISSED (>= {RATIO_TARGET})"
        lines.append(_row(f"tokens/s, {level} client(s)", row) + f"  {met}")
    for kind, row in result["first_token_ms"].items():
        target = FIRST_TOKEN_TARGET_MS
        met = "met" if row["added"] <= target else f"MISSED (<= {target:g} ms)"
        lines.append(_row(f"first token, {kind} (ms)", row) + f"  {met}")
    memory = result["memory_mib"]
    lines.append(
        f"{'memory, PSS (MiB)':28}{memory['bare']:10.1f}{memory['service']:10.1f}"
        f"{memory['service'] / memory['bare']:8.3f}{memory['service'] - memory['bare']:9.1f}"
    )
    return "\n".join(lines)


def _row(name: str, row: dict[str, float]) -> str:
    return (
        f"{name:28}{row['bare']:10.1f}{row['service']:10.1f}{row['ratio']:8.3f}{row['added']:9.2f}"
    )


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("output", type=Path, help="where the result goes, as JSON")
    parser.add_argument("--engine", choices=("wheel", "source"), default="wheel")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    options = parser.parse_args()
    options.model = options.model.resolve()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        result = asyncio.run(bench(Path(folder), options))
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(report(result))


if __name__ == "__main__":
    main()
