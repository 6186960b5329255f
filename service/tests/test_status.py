# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What an admin is told of the service's state."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from nas_assistant.engine import Failure, Outcome
from nas_assistant.keys import ApiKey, Role
from nas_assistant.logs import log
from nas_assistant.memory import MemoryNeed
from nas_assistant.quota import Usage
from nas_assistant.settings import Settings

from .conftest import api_key, minimal_config, settled
from .sample import Service

CHILD = api_key("child", "sk-child", role=Role.USER, models=("default",), expires="2030-12-31")


@pytest.fixture
def service(write_config: Callable[[str], Path], tmp_path: Path) -> Iterator[Service]:
    settings = settled(Settings.load(write_config(minimal_config(queue=3)), {}))
    service = Service(settings, tmp_path, [api_key(), CHILD])
    yield service
    service.close()


def told(service: Service, reason: str = "") -> dict[str, Any]:
    status: dict[str, Any] = json.loads(service.status.text(reason))
    return status


def test_a_service_that_has_just_begun(service: Service) -> None:
    status = told(service, "it is loading")
    assert (status["reason"], status["degraded"]) == ("it is loading", "")
    assert (status["waiting"], status["queue"]) == (0, 3)
    assert status["memory"]["limit"] > 0
    assert (status["not_written"], status["errors"]) == ("", [])
    assert status["unusable"] == {"damaged": "damaged.gguf is truncated"}
    (model,) = status["models"]
    assert model["memory"].keys() == {"total", *(part.name for part in fields(MemoryNeed))}
    assert model["memory"]["total"] == sum(service.need)
    shown = {name: model[name] for name in ("name", "kind", "in_memory", "pinned", "slots_in_use")}
    assert shown == {
        "name": "default",
        "kind": "chat",
        "in_memory": False,
        "pinned": False,
        "slots_in_use": 0,
    }
    assert model["served"] == {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0}
    assert model["tokens_per_second"] == model["first_token_seconds"] == 0


def test_why_a_cloud_answers(service: Service) -> None:
    status = json.loads(service.status.text("", "it is loading"))
    assert (status["reason"], status["degraded"]) == ("", "it is loading")


def test_what_was_served(service: Service) -> None:
    service.desk.open_model("default")
    service.desk.acquire((0, 1), "default", "child")
    service.desk.acquire((0, 2), "default", "owner")
    outcome = Outcome(200, 30, 20, first_seconds=0.25, writing_seconds=2.0)
    service.desk.release((0, 1), outcome)
    status = told(service)
    (model,) = status["models"]
    assert model["slots_in_use"] == 1
    assert model["served"] == {"requests": 1, "prompt_tokens": 30, "completion_tokens": 20}
    assert (model["tokens_per_second"], model["first_token_seconds"]) == (10.0, 0.25)
    owner, child = status["keys"]
    assert child["used_today"] == model["served"]
    assert owner["used_today"]["requests"] == 0


def test_keys_without_anything_secret(service: Service) -> None:
    key = told(service)["keys"][1]
    known = {field.name for field in fields(ApiKey)} - {"sha256"} | {"used_today"}
    assert key.keys() == known
    assert (key["name"], key["role"], key["models"]) == ("child", "user", ["default"])
    assert CHILD.sha256 not in service.status.text("")


def test_what_users_saw_as_errors_is_said_once_a_minute(service: Service) -> None:
    """Those that had a slot with the model; nothing of what was asked."""
    service.desk.open_model("default")
    for number in range(3):
        service.desk.acquire((0, number), "default", "owner")
        service.desk.release((0, number), Outcome(500, failure="engine_error"))
        service.desk.note_failure(Failure(503, "not_ready"))
        service.desk.note_failure(Failure(404, "model_not_found"))
        service.desk.note_failure(Failure(502, "queue_full"))
    errors = [(each["model"], each["message"]) for each in told(service)["errors"]]
    assert errors == [
        ("default", "a request ended with 500 (engine_error)"),
        ("", "a request ended with 503 (not_ready)"),
    ]


def test_the_last_errors(service: Service) -> None:
    log(logging.INFO, "unimportant")
    for number in range(30):
        log(logging.ERROR, "engine_ended", f"it ended {number}", model="default")
    errors = told(service)["errors"]
    assert [error["message"] for error in errors] == [f"it ended {n}" for n in range(10, 30)]
    assert (errors[0]["event"], errors[0]["model"]) == ("engine_ended", "default")
    assert errors[0]["time"].endswith("+00:00")
    log(logging.WARNING, "of_none", "no model")
    assert told(service)["errors"][-1]["model"] == ""


def test_usage_that_cannot_be_written(service: Service, tmp_path: Path) -> None:
    (tmp_path / "assistant.db").mkdir()
    service.ledger.add("2026-01-01", "owner", Usage(1))
    service.ledger.flush()
    assert "assistant.db" in told(service)["not_written"]
    (tmp_path / "assistant.db").rmdir()
    service.ledger.flush()
    assert told(service)["not_written"] == ""
