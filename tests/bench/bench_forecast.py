# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""How near the tokens a second that preflight expects come to those that the engine writes.

Preflight takes a share of the speed at which memory is read, over the bytes of the weights. Here,
its own measurement and an answer of the engine, for one client, take turns: the share that was
reached is what comes out. The first model is made larger too, with weights by chance: an engine
takes as long for them as for real ones.

    PYTHONPATH=$PWD/service/src python tests/bench/bench_forecast.py RESULT.json MODEL.gguf …
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from ansible_collections.nas.assistant.plugins.filter.preflight import REACHED
from ansible_collections.nas.assistant.plugins.modules.nas_info import speed
from bench_speculation import ASKED, configuration
from gguf_files import Maker, Shape

from nas_assistant.checks import check_start
from nas_assistant.engine_process import EngineProcess
from nas_assistant.settings import Settings
from nas_assistant.tune import timings_of

# As Qwen3 has them, but for the words, of which it has three times as many.
SHAPES = {
    "1.7B": Shape(width=2048, layers=28, inner=6144, heads=16, heads_kv=8, length=128),
    "4B": Shape(width=2560, layers=36, inner=9728, heads=32, heads_kv=8, length=128),
}


async def bench(folder: Path, path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Start an engine with one model, measure, stop it."""
    settings = Settings.load(configuration(folder, path), {})
    model = check_start(settings, path.parent, options.engine).models["default"]
    engine = EngineProcess(settings, model, options.engine, folder, 0)
    weights = path.stat().st_size
    tokens, memory = [], []
    try:
        await engine.start()
        for turn in range(options.rounds):
            memory.append(await asyncio.to_thread(speed))
            prompt = f"({turn}) {ASKED['new text']}"
            found = await asyncio.to_thread(timings_of, engine, prompt, options.tokens)
            tokens.append(found["predicted_per_second"])
    finally:
        await engine.stop()
    reached = [each * weights / fast for each, fast in zip(tokens, memory, strict=True)]
    return {
        "model": path.name,
        "weights": weights,
        "memory_gb_per_second": round(statistics.median(memory) / 1e9, 1),
        "tokens_per_second": round(statistics.median(tokens), 1),
        "expected": round(statistics.median(memory) * REACHED / weights, 1),
        "reached": round(statistics.median(reached), 2),
    }


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path, help="where the result goes, as JSON")
    parser.add_argument("models", type=Path, nargs="+", help="GGUF files")
    parser.add_argument("--engine", choices=("wheel", "source"), default="wheel")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        folder = Path(scratch)
        models, maker = [model.resolve() for model in options.models], Maker(folder)
        for name, shape in SHAPES.items():
            models.append(folder / f"{name}-q4_k-by-chance.gguf")
            maker.shaped(options.models[0], models[-1], shape)
        result = [asyncio.run(bench(folder, model, options)) for model in models]
    print(json.dumps(result, indent=2))
    options.output.write_text(f"{json.dumps(result, indent=2)}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
