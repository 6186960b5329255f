# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What the role assistant does in which order, from each of its ways in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from ansible_collections.nas.assistant.plugins.filter.assistant_models import (
    assistant_local_models,
)
from expressions import load as load_trusted, templar, trusted

TASKS = Path(__file__).parents[2] / "roles/assistant/tasks"
INCLUDE, IMPORT = "ansible.builtin.include_tasks", "ansible.builtin.import_tasks"
HERE = {"file": "a.gguf", "sha256": "0" * 64, "url": "https://example.com/a.gguf"}
MODELS = {"here": HERE, "there": {"upstream": "example"}}


def load(name: str) -> list[dict[str, Any]]:
    tasks: list[dict[str, Any]] = yaml.safe_load((TASKS / name).read_text(encoding="utf-8"))
    return tasks


def in_order(tasks: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """All tasks that there are, those of other files and of blocks in their place."""
    for task in tasks:
        other = task.get(IMPORT) or task.get(INCLUDE, {}).get("file")
        yield from in_order(load(other)) if other else [task]
        for part in ("block", "rescue", "always"):
            yield from in_order(task.get(part, []))


@pytest.mark.parametrize("way_in", ["main.yml", "change_models.yml"])
def test_what_the_configuration_needs_is_there_before_it(way_in: str) -> None:
    tasks = list(in_order(load(way_in)))
    names = [task["name"] for task in tasks]
    written = names.index("Write the configuration")
    # What was found by assistant_autotune, without which it would be taken back.
    tuned = [task.get("register") for task in tasks].index("__assistant_tuned_there")
    keys = names.index(
        "Write the keys, in a folder of their own beside that for what the service keeps"
    )
    assert tuned < written
    assert keys < written


@pytest.mark.parametrize("way_in", ["main.yml", "change_models.yml"])
@pytest.mark.parametrize("on", [True, False])
def test_each_run_warns_of_text_in_the_log(way_in: str, on: bool) -> None:
    (task,) = [task for task in in_order(load(way_in)) if "log_text" in str(task)]
    environment = jinja2.Environment(autoescape=True)
    environment.filters["bool"] = bool
    assert environment.compile_expression(task["when"])(__assistant_server={"log_text": on}) is on
    assert "assistant_server.log_text=true" in task["ansible.builtin.debug"]["msg"]


@pytest.mark.parametrize(
    ("mode", "variant", "tried"),
    [
        ("local", "here", True),
        ("hybrid", "here", True),
        ("hybrid", "there", False),
        ("cloud", "there", False),
    ],
)
def test_only_a_model_of_the_nas_is_tuned(mode: str, variant: str, tried: bool) -> None:
    (task,) = [task for task in load("main.yml") if task.get(INCLUDE, {}).get("file") == "tune.yml"]
    environment = jinja2.Environment(autoescape=True)
    environment.filters["bool"] = bool
    condition = environment.compile_expression(task["when"])
    assert tried is condition(
        assistant_state="present",
        assistant_autotune=True,
        assistant_mode=mode,
        assistant_model_variant=variant,
        __assistant_local_models=assistant_local_models(MODELS, mode),
    )


def test_all_models_are_brought_in_one_step() -> None:
    (task,) = [each for each in load("models.yml") if "nas.assistant.model_file" in each]
    engine = templar(
        "assistant",
        [],
        __assistant_local_models={
            "small": HERE,
            "same": {**HERE, "context": 2048},
            "large": {"file": "b.gguf", "sha256": "1" * 64, "package": ["x==1"]},
        },
        __assistant_models_dir="/models",
        **trusted(task["vars"]),
    )
    wanted = engine.template(trusted(task["nas.assistant.model_file"]["models"]))
    none = {"url": None, "src": None, "package": None}
    assert wanted == [
        {"path": "/models/a.gguf", "sha256": "0" * 64, **none, "url": HERE["url"]},
        {"path": "/models/b.gguf", "sha256": "1" * 64, **none, "package": ["x==1"]},
    ]


@pytest.mark.parametrize(
    ("server", "more", "fine"),
    [
        ({}, {}, True),
        ({"patience": 0}, {}, True),
        ({"patience": 60}, {}, False),
        ({"patience": 129}, {}, False),
        ({"patience": 130}, {}, True),
        ({"timeout": 20, "patience": 30}, {}, True),
        ({"timeout": 300}, {}, False),
        ({"timeout": 300, "patience": 400}, {}, True),
        # Nginx would give up before.
        ({"patience": 600}, {}, False),
        ({}, {"proxy_read_timeout": 200}, False),
        ({"patience": 800}, {"proxy_read_timeout": 1000}, True),
    ],
)
def test_who_asks_waits_for_longer_than_the_last_answers_take(
    server: dict[str, int], more: dict[str, int], fine: bool
) -> None:
    rows = [each for task in load_trusted(TASKS / "assert.yml") for each in task.get("loop", [])]
    (row,) = [each for each in rows if each["label"] == "server"]
    role = templar("assistant", [], assistant_server=server, **more)
    assert role.evaluate_conditional(row["that"]) is fine
