# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What other quantizations of the same weights bring on the CPU at hand, and what they cost.

The model's matrices are written anew as other types, the table of words (``head``) apart from the
rest (``body``). An engine with each reads and writes in rounds that alternate; trust the ratios.
Perplexity is of a text of this project: the probability that each model gave to the word that comes
next, among the 4096 likeliest (of one that is not, that of the last, which flatters it). What was
quantized already loses a little more, so a file made from the full weights is at least as good.

    PYTHONPATH=$PWD/service/src python tests/bench/bench_weights.py MODEL.gguf RESULT.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import shutil
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench_speculation import ASKED, arguments, configuration, memory_mib
from gguf_files import Maker

from nas_assistant.checks import CheckedModel, check_start
from nas_assistant.engine_process import EngineProcess
from nas_assistant.settings import Settings
from nas_assistant.tune import ask, timings_of

TEXT = Path(__file__).parents[2] / "docs/backup.md"
LIKELIEST, WORDS = 4096, 384
# Types of head and body; none leaves them as they are.
WISHES = {
    "as it is": ("", ""),
    "head Q4_0": ("Q4_0", ""),
    "body Q4_0": ("", "Q4_0"),
    "all Q4_0": ("Q4_0", "Q4_0"),
    "all Q8_0": ("Q8_0", "Q8_0"),
}


def made(model: Path, folder: Path) -> dict[str, Path]:
    """The model in each form."""
    maker, found = Maker(folder), {}
    for name, (head, body) in WISHES.items():
        found[name] = folder / f"{name.replace(' ', '-')}.gguf"
        if head or body:
            maker.quantized(model, found[name], head, body)
        else:
            shutil.copyfile(model, found[name])
    return found


def surprises(engine: EngineProcess) -> list[float]:
    """What the model gave each word of the text, as negative logarithms."""
    text = TEXT.read_text(encoding="utf-8")
    tokens = ask(engine, "/tokenize", {"content": text, "add_special": True})["tokens"][:WORDS]
    found = []
    for at in range(1, len(tokens)):
        body = {"prompt": tokens[:at], "n_predict": 1, "n_probs": LIKELIEST, "temperature": 0}
        answer = ask(engine, "/completion", {**body, "cache_prompt": True})
        likely = answer["completion_probabilities"][0]["top_logprobs"]
        given = {each["id"]: each["logprob"] for each in likely}
        found.append(-given.get(tokens[at], min(given.values())))
    return found


async def bench(models: dict[str, Path], folder: Path, options: argparse.Namespace) -> Any:
    """Start one engine for each form, measure, stop them."""
    engines, checked = {}, {}
    for number, (name, path) in enumerate(models.items()):
        settings = Settings.load(configuration(folder, path), {})
        settings = replace(settings, slots=1)
        model = check_start(settings, path.parent, options.engine).models["default"]
        own: CheckedModel = replace(model, settings=replace(model.settings, name=f"form{number}"))
        checked[name] = own
        engines[name] = EngineProcess(settings, own, options.engine, folder, number)
    timings: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
    rows = {}
    try:
        for engine in engines.values():
            await engine.start()
        for turn in range(options.rounds):
            prompt = f"({turn}) {ASKED['copying']}"
            for name in list(engines)[:: 1 if turn % 2 else -1]:
                found = await asyncio.to_thread(timings_of, engines[name], prompt, options.tokens)
                timings[name].append(found)
        for name, engine in engines.items():
            given = await asyncio.to_thread(surprises, engine)
            rows[name] = {
                "mib": round(models[name].stat().st_size / 2**20),
                "perplexity": round(math.exp(statistics.fmean(given)), 2),
                "own_memory_mib": round(memory_mib(checked[name])),
            }
    finally:
        for engine in engines.values():
            await engine.stop()
    usual = timings["as it is"]
    for name, taken in timings.items():
        for what, key in (("reading", "prompt_per_second"), ("writing", "predicted_per_second")):
            rows[name][f"{what}_per_second"] = round(statistics.median(t[key] for t in taken), 1)
            ratios = [one[key] / other[key] for one, other in zip(taken, usual, strict=True)]
            rows[name][f"{what}_ratio"] = round(statistics.median(ratios), 2)
    return {"model": options.model.name, "forms": rows}


def main() -> None:
    """Measure, print, and write the result."""
    options = arguments(__doc__, rounds=7, tokens=48)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        folder = Path(scratch)
        result = asyncio.run(bench(made(options.model, folder), folder, options))
    print(json.dumps(result, indent=2))
    options.output.write_text(f"{json.dumps(result, indent=2)}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
