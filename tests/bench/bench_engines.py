# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Our service against what else serves the same model on the same machine at once.

All get the same greedy requests in turn; a ratio is the median over rounds, each of which asks all
of them. Trust the ratios. The bare engine is ours; the others are named by options, and are no
part of this project:

- llama-server: of an image with the engine from source (``docker cp``), or built from llama.cpp
- llama-cpp-python: a Python that has ``llama-cpp-python[server]``
- dasllama: the program ``dasllama-server`` of that package

    PYTHONPATH=$PWD/service/src python tests/bench/bench_engines.py MODEL.gguf RESULT.json \
        --llama-server /opt/engine/llama-server --llama-cpp-python venv/bin/python
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import secrets
import statistics
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from bench_speculation import ASKED
from rivals import RIVALS, running_rival
from serving import (
    Client,
    Target,
    arguments,
    bare_engine,
    first_token_ms,
    long_prompt,
    memory_mib,
    running_service,
    stories_per_second,
    tokens_per_second,
    write_config,
)

from nas_assistant.gguf import read_head
from nas_assistant.settings import Settings

LEVELS = (1, 4, 8, 16)
SERVICE = "service"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "colours": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 4},
        "age": {"type": "integer"},
    },
    "required": ["name", "colours", "age"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "cat", "schema": SCHEMA, "strict": True}}
# Whose own words for it differ.
FORMATS: dict[str, dict[str, Any]] = {
    "llama_cpp_python": {"type": "json_object", "schema": SCHEMA},
}
Measure = Callable[[Target], Awaitable[float]]


async def schema_per_second(target: Target, clients: int, tokens: int) -> float:
    """The throughput of answers that keep to a schema."""
    wish = {"response_format": FORMATS.get(target.name, FORMAT)}

    async def work(client: Client, number: int) -> int:
        text = f"Invent cat number {number} and describe it in JSON."
        return (await client.chat(text, tokens, **wish)).tokens

    return await tokens_per_second(target, clients, work)


async def copies_per_second(target: Target, turn: int, tokens: int) -> float:
    """The throughput of one client that has a text copied; ours guesses then."""
    if target.name == SERVICE:
        target = replace(target, model="guessing")

    async def work(client: Client, number: int) -> int:
        return (await client.complete(f"({turn}) {ASKED['copying']}", tokens)).tokens

    return await tokens_per_second(target, 1, work)


def measures(turn: int, tokens: int, chats: bool) -> dict[str, Measure]:
    """What one round asks of each, by name."""
    found: dict[str, Measure] = {}
    for level in LEVELS:
        what = f"tokens/s, {level} client(s)"
        found[what] = partial(stories_per_second, clients=level, tokens=tokens)
    if chats:
        for level in (1, 4):
            what = f"tokens/s, schema, {level} client(s)"
            found[what] = partial(schema_per_second, clients=level, tokens=tokens)
    found["tokens/s, copying"] = partial(copies_per_second, turn=turn, tokens=tokens)
    unknown = long_prompt(f"{turn} {secrets.token_hex(4)}")
    found["first token, cold (ms)"] = partial(first_token_ms, prompt=unknown)
    # It was asked just before.
    found["first token, warm (ms)"] = partial(first_token_ms, prompt=unknown)
    return found


async def bench(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Start all, measure in turn, stop all."""
    chats = bool(read_head(options.model).chat_template)
    settings = Settings.load(write_config(folder, options), {})
    values: dict[str, dict[str, list[float]]] = {}
    async with AsyncExitStack() as stack:
        targets = [stack.enter_context(running_service(folder, options))]
        bare, options.threads = await stack.enter_async_context(
            bare_engine(folder, settings, options)
        )
        targets.append(bare)
        for name in RIVALS:
            if getattr(options, name):
                targets.append(stack.enter_context(running_rival(name, options, folder)))
        memory = {target.name: [memory_mib(target.pids())] for target in targets}
        # Its model for this is loaded by the first request.
        await copies_per_second(targets[0], -1, 1)
        for turn in range(options.rounds):
            for what, measure in measures(turn, options.tokens, chats).items():
                # Who comes first changes, since the machine is not the same all the time.
                first = turn % len(targets)
                for target in targets[first:] + targets[:first]:
                    row = values.setdefault(what, {}).setdefault(target.name, [])
                    row.append(await measure(target))
        for target in targets:
            memory[target.name].append(memory_mib(target.pids()))
    setup = {name: str(value) for name, value in vars(options).items()}
    machine = {"cpus": os.cpu_count(), "machine": platform.machine()}
    figures = {what: compared(row) for what, row in values.items()}
    return {"setup": setup, "machine": machine, "figures": figures, "memory_mib": memory}


def compared(row: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Of each the median, and that of ours divided by it in the same round."""
    return {
        name: {
            "median": round(statistics.median(values), 2),
            "ours": round(
                statistics.median(
                    our / other for our, other in zip(row[SERVICE], values, strict=True)
                ),
                3,
            ),
        }
        for name, values in row.items()
    }


def report(result: dict[str, Any]) -> str:
    """The figures as a table: each one's, and in brackets ours divided by it."""
    names = list(result["memory_mib"])
    lines = [f"{'':30}" + "".join(f"{name:>24}" for name in names)]
    for what, row in result["figures"].items():
        cells = (f"{row[name]['median']:.1f} ({row[name]['ours']:.2f})" for name in names)
        lines.append(f"{what:30}" + "".join(f"{cell:>24}" for cell in cells))
    cells = (" to ".join(f"{value:.0f}" for value in result["memory_mib"][name]) for name in names)
    lines.append(f"{'memory, PSS (MiB)':30}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write the result."""
    parser = arguments(__doc__, slots=8, tokens=48)
    for name in RIVALS:
        parser.add_argument(f"--{name.replace('_', '-')}", help="the other to compare with")
    options = parser.parse_args()
    options.model = options.model.resolve()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        result = asyncio.run(bench(Path(folder), options))
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(report(result))


if __name__ == "__main__":
    main()
