# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What guesses bring: the same engine and model with and without n-gram speculation, at once.

Both get the same greedy requests in rounds that alternate: one that has a text copied with a small
change, and one that has a new text written. Trust the ratios.

    PYTHONPATH=$PWD/service/src python tests/bench/bench_speculation.py MODEL.gguf RESULT.json
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from nas_assistant.checks import CheckedModel, check_start
from nas_assistant.engine_process import EngineProcess
from nas_assistant.settings import Settings
from nas_assistant.tune import timings_of

TEXT = (
    "The keeper walked down the stairs before the sun was up. Three boats lay in the harbour, and "
    "their nets were still wet. He counted them twice, wrote the number in his book, and went up "
    "again to trim the lamp, since there would be fog. "
)
# The beginning of the copy is given, so that a small model sees what is wanted.
ASKED = {
    "copying": f"A text:\n{TEXT}\n\nThe same text once more:\n{TEXT[:60]}",
    "new text": "A long story about a dragon that learned how to cook, told by itself:\n",
}
SLOTS = 4


def configuration(folder: Path, model: Path) -> Path:
    """Of one model, for an engine with as many slots as usual; the same on every machine."""
    with model.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    path = folder / "config.ini"
    lines = ["[engine]", f"slots = {SLOTS}", "cache_mib = 128"]
    lines += ["[model:default]", f"file = {model.name}", "context = 2048"]
    path.write_text("\n".join([*lines, f"sha256 = {digest}"]) + "\n", encoding="utf-8")
    return path


def speed(engine: EngineProcess, prompt: str, tokens: int) -> float:
    """Tokens a second that it writes."""
    return timings_of(engine, prompt, tokens)["predicted_per_second"]


def memory_mib(model: CheckedModel) -> float:
    """What an engine has for itself, found by the name of its model's socket."""
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        words = command.read_bytes().split(b"\0")
        if (
            b"--alias" in words
            and words[words.index(b"--alias") + 1] == model.settings.name.encode()
        ):
            lines = (command.parent / "smaps_rollup").read_text(encoding="ascii").splitlines()
            return (
                sum(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:")) / 1024
            )
    raise RuntimeError("the engine is gone")


async def bench(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Start both, measure, stop both."""
    settings = Settings.load(configuration(folder, options.model), {})
    model = check_start(settings, options.model.parent, options.engine).models["default"]
    models = {
        name: replace(
            model, settings=replace(model.settings, name=name, speculation=name == "guessing")
        )
        for name in ("plain", "guessing")
    }
    engines = {
        name: EngineProcess(settings, each, options.engine, folder, 0)
        for name, each in models.items()
    }
    speeds: dict[str, dict[str, list[float]]] = {
        kind: {name: [] for name in engines} for kind in ASKED
    }
    try:
        for engine in engines.values():
            await engine.start()
        for turn in range(options.rounds):
            for kind, prompt in ASKED.items():
                # Another beginning each time: what was guessed of the last one is not to count.
                asked = f"({turn}) {prompt}"
                for name in list(engines)[:: 1 if turn % 2 else -1]:
                    found = await asyncio.to_thread(speed, engines[name], asked, options.tokens)
                    speeds[kind][name].append(found)
        # All slots at once.
        for name in engines:
            await asyncio.gather(
                *(
                    asyncio.to_thread(speed, engines[name], f"[{slot}] {ASKED['copying']}", 64)
                    for slot in range(SLOTS)
                )
            )
        memory = {name: round(memory_mib(each)) for name, each in models.items()}
    finally:
        for engine in engines.values():
            await engine.stop()
    return {
        "model": options.model.name,
        "tokens_per_second": {
            kind: {
                **{name: round(statistics.median(found), 1) for name, found in of.items()},
                "ratio": round(
                    statistics.median(
                        guessing / plain
                        for plain, guessing in zip(of["plain"], of["guessing"], strict=True)
                    ),
                    2,
                ),
            }
            for kind, of in speeds.items()
        },
        "memory_mib": memory,
    }


def arguments(doc: str, rounds: int, tokens: int) -> argparse.Namespace:
    """What the command line says to a bench of one model that ``doc`` describes."""
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("output", type=Path, help="where the result goes, as JSON")
    parser.add_argument("--engine", choices=("wheel", "source"), default="wheel")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--tokens", type=int, default=tokens, help="of each answer")
    options = parser.parse_args()
    options.model = options.model.resolve()
    return options


def main() -> None:
    """Measure, print, and write the result."""
    options = arguments(__doc__, rounds=6, tokens=56)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        result = asyncio.run(bench(Path(folder), options))
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for kind, row in result["tokens_per_second"].items():
        print(f"{kind:10}", *(f"{name} {value}" for name, value in row.items()), "tokens/s")
    print(
        f"{'memory':10}", *(f"{name} {value} MiB" for name, value in result["memory_mib"].items())
    )


if __name__ == "__main__":
    main()
