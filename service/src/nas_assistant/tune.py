# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Tries how many threads, and how many tokens of a prompt at once, suit this machine and model."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nas_assistant.addresses import UnixAddress
from nas_assistant.cgroup import usable_threads
from nas_assistant.checks import CheckedModel, StartRefused
from nas_assistant.engine import Kind
from nas_assistant.engine_process import EngineFailed, EngineProcess
from nas_assistant.local_http import LocalHttpError, request
from nas_assistant.settings import Settings

# Tokens of a prompt at once; the first is what is usual.
BATCHES = (512, 128)
# What is not this much better is noise, or not worth a CPU that the NAS has for others.
_WORTH = 1.03
_ROUNDS = 2
_WRITTEN = 24  # tokens
_SECONDS = 600.0
# Some 350 tokens in most vocabularies.
_TEXT = "The keeper of the lighthouse counts the boats in the harbour, and writes it down. " * 20


@dataclass(frozen=True)
class Trial:
    """Tokens a second that were read and written with so many threads, so many tokens at once."""

    threads: int
    batch: int
    reading: float
    writing: float


def candidates(usable: int) -> list[int]:
    """Numbers of threads to try: all, one less for the rest of the NAS, half of them."""
    return sorted({usable, max(1, usable - 1), -(-usable // 2)}, reverse=True)


def best_threads(trials: Sequence[Trial]) -> int:
    """Writing counts, which takes most of the time; of those as good, the fewest threads."""
    first = max(trial.writing for trial in trials)
    return min(trial.threads for trial in trials if trial.writing * _WORTH >= first)


def best_batch(trials: Sequence[Trial]) -> int:
    """The one that is read fastest; the usual one unless another is worth it."""
    (usual,) = (trial for trial in trials if trial.batch == BATCHES[0])
    fastest = max(trials, key=lambda trial: trial.reading)
    return usual.batch if usual.reading * _WORTH >= fastest.reading else fastest.batch


async def tune(settings: Settings, model: CheckedModel, build: str) -> str:
    """Try, and return what came of it as JSON: ``threads`` and ``batch`` to use, and the trials.
    Raises StartRefused.
    """
    if model.model.kind not in (Kind.CHAT, Kind.TEXT):
        raise StartRefused(f"model {model.settings.name!r} writes no text, which is what is tried")
    trials: dict[tuple[int, int], Trial] = {}

    async def try_all(pairs: Iterable[tuple[int, int]]) -> None:
        """Again only when all had their turn, so that another load comes to each of them."""
        for number, (threads, batch) in enumerate([*pairs] * _ROUNDS):
            wish = replace(settings, batch=batch, slots=1)
            tried = replace(model, threads=threads)
            process = EngineProcess(wish, tried, build, Path(folder), number)
            trial = await _try(process, threads, batch)
            known = trials.get((threads, batch), trial)
            trials[threads, batch] = replace(
                trial,
                reading=max(trial.reading, known.reading),
                writing=max(trial.writing, known.writing),
            )

    with tempfile.TemporaryDirectory() as folder:
        await try_all((threads, BATCHES[0]) for threads in candidates(usable_threads()))
        threads = best_threads([*trials.values()])
        await try_all((threads, batch) for batch in BATCHES[1:])
    batch = best_batch([trial for trial in trials.values() if trial.threads == threads])
    tried = [asdict(trial) for trial in trials.values()]
    return json.dumps({"threads": threads, "batch": batch, "tried": tried})


async def _try(process: EngineProcess, threads: int, batch: int) -> Trial:
    try:
        await process.start()
        timings = await asyncio.to_thread(timings_of, process, _TEXT, _WRITTEN)
    except (EngineFailed, LocalHttpError, TimeoutError) as error:
        raise StartRefused(f"the engine did not do with {threads} threads: {error}") from error
    finally:
        await process.stop()
    return Trial(threads, batch, timings["prompt_per_second"], timings["predicted_per_second"])


def timings_of(process: EngineProcess, text: str, tokens: int) -> dict[str, float]:
    """llama.cpp's own figures (``timings``) for a text that it reads, and so many tokens that it
    writes on. Raises LocalHttpError.
    """
    body = {"prompt": text, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    timings: dict[str, float] = ask(process, "/v1/completions", body)["timings"]
    return timings


def ask(process: EngineProcess, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """One answer of an engine's own API. Raises LocalHttpError."""
    status, answer = request(
        UnixAddress(process.backend.socket),
        "POST",
        path,
        json.dumps(body).encode(),
        {"Authorization": f"Bearer {process.backend.api_key}", "Content-Type": "application/json"},
        _SECONDS,
    )
    if status != 200:
        raise LocalHttpError(f"{status}: {answer[:200].decode('utf-8', 'replace')}")
    return dict(json.loads(answer))
