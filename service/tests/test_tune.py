# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from nas_assistant.cgroup import usable_threads
from nas_assistant.tune import Trial, best_batch, best_threads, candidates

from .service_process import Service


@pytest.mark.parametrize(
    ("usable", "tried"), [(1, [1]), (2, [2, 1]), (4, [4, 3, 2]), (5, [5, 4, 3]), (8, [8, 7, 4])]
)
def test_candidates(usable: int, tried: list[int]) -> None:
    assert candidates(usable) == tried


@pytest.mark.parametrize(
    ("writing", "best"),
    [
        ({4: 10.0, 3: 8.0, 2: 6.0}, 4),
        ({4: 10.0, 3: 9.8, 2: 6.0}, 3),  # not worth a CPU
        ({4: 7.0, 3: 10.0, 2: 9.9}, 2),
        ({1: 3.0}, 1),
    ],
)
def test_best_threads(writing: dict[int, float], best: int) -> None:
    trials = [Trial(threads, 512, 100, speed) for threads, speed in writing.items()]
    assert best_threads(trials) == best


@pytest.mark.parametrize(("small", "best"), [(90.0, 512), (102.0, 512), (110.0, 128)])
def test_best_batch(small: float, best: int) -> None:
    assert best_batch([Trial(4, 512, 100.0, 10), Trial(4, 128, small, 10)]) == best


def test_a_real_model_is_tried(models: Path, tmp_path: Path) -> None:
    service = Service(tmp_path, models)
    done = subprocess.run(
        service.command("tune"), env=service.environ(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout
    found = json.loads(done.stdout)
    threads = {trial["threads"] for trial in found["tried"]}
    assert threads == set(candidates(usable_threads()))
    assert found["threads"] in threads
    assert {trial["batch"] for trial in found["tried"]} == {512, 128}
    assert all(trial["reading"] > 1 and trial["writing"] > 1 for trial in found["tried"])


def test_what_cannot_be_tried_is_said(models: Path, tmp_path: Path) -> None:
    service = Service(tmp_path, models)
    code, lines = service.run("tune", MODEL_VARIANT="none")
    assert code == 78
    assert "none" in lines[-1]["message"]
