# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What the gateway costs: the whole service against its engine alone, on the same machine at once.

Both run the same model with the same build, threads and slots, and get the same greedy requests in
rounds that alternate, so that another load on the machine hits both. Trust the ratios: a ratio is
the median over pairs that ran directly one after the other.

    PYTHONPATH=$PWD/service/src python tests/bench/bench_service.py MODEL.gguf RESULT.json
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import secrets
import statistics
import tempfile
from pathlib import Path
from typing import Any

from serving import (
    Target,
    arguments,
    bare_engine,
    first_token_ms,
    long_prompt,
    memory_mib,
    request_ms,
    running_service,
    stories_per_second,
    write_config,
)

from nas_assistant.settings import Settings

LEVELS = (1, 4, 8, 16)
RATIO_TARGET, MEMORY_TARGET_MIB = 0.95, 150.0
# Of a first token after a long prompt, and of a whole request that asks for hardly anything.
ADDED_TARGET_MS = {"cold": 5.0, "warm": 5.0, "whole": 3.0}


async def measure(bare: Target, service: Target, rounds: int, tokens: int) -> dict[str, Any]:
    """Every figure, as medians of alternating rounds."""
    pairs = ((bare, service), (service, bare))
    order = itertools.cycle(pairs)
    speeds: dict[tuple[int, str], list[float]] = {}
    for _ in range(rounds):
        for level in LEVELS:
            for target in next(order):
                speed = await stories_per_second(target, level, tokens)
                speeds.setdefault((level, target.name), []).append(speed)
    waits: dict[tuple[str, str], list[float]] = {}
    for target in (bare, service):
        await first_token_ms(target, long_prompt("warm"))
    # Many pairs: the difference that is looked for is a hundredth of what one cold prompt takes.
    for turn in range(rounds * 8):
        for kind, head in (("warm", "warm"), ("cold", f"{turn} {secrets.token_hex(4)}")):
            for target in next(order):
                value = await first_token_ms(target, long_prompt(head))
                waits.setdefault((kind, target.name), []).append(value)
        for target in next(order):
            waits.setdefault(("whole", target.name), []).append(await request_ms(target, "Hi"))
    return {
        "tokens_per_second": {
            str(level): compare(speeds[level, "bare"], speeds[level, "service"]) for level in LEVELS
        },
        "waits_ms": {
            kind: compare(waits[kind, "bare"], waits[kind, "service"]) for kind in ADDED_TARGET_MS
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


async def bench(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Start both, measure, stop both."""
    settings = Settings.load(write_config(folder, options), {})
    with running_service(folder, options) as service:
        async with bare_engine(folder, settings, options) as (bare, threads):
            figures = await measure(bare, service, options.rounds, options.tokens)
    setup = {name: str(value) for name, value in vars(options).items()}
    machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "threads": threads}
    return {"setup": setup, "machine": machine} | figures


def report(result: dict[str, Any]) -> str:
    """The figures as a table, with what was aimed at."""
    lines = [f"{'':28}{'bare':>10}{'service':>10}{'ratio':>8}{'added':>9}"]
    for level, row in result["tokens_per_second"].items():
        met = "met" if row["ratio"] >= RATIO_TARGET else f"MISSED (>= {RATIO_TARGET})"
        lines.append(_row(f"tokens/s, {level} client(s)", row) + f"  {met}")
    for kind, row in result["waits_ms"].items():
        target = ADDED_TARGET_MS[kind]
        met = "met" if row["added"] <= target else f"MISSED (<= {target:g} ms)"
        name = "request of one token (ms)" if kind == "whole" else f"first token, {kind} (ms)"
        lines.append(_row(name, row) + f"  {met}")
    memory = compare(*([result["memory_mib"][name]] for name in ("bare", "service")))
    met = "met" if memory["added"] <= MEMORY_TARGET_MIB else f"MISSED (<= {MEMORY_TARGET_MIB:g})"
    lines.append(_row("memory, PSS (MiB)", memory) + f"  {met}")
    return "\n".join(lines)


def _row(name: str, row: dict[str, float]) -> str:
    return (
        f"{name:28}{row['bare']:10.1f}{row['service']:10.1f}{row['ratio']:8.3f}{row['added']:9.2f}"
    )


def main() -> None:
    """Measure, print, and write the result."""
    options = arguments(__doc__, slots=4, tokens=64).parse_args()
    options.model = options.model.resolve()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        result = asyncio.run(bench(Path(folder), options))
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(report(result))


if __name__ == "__main__":
    main()
