# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What the gateway lets through as a schema, and what it keeps from the engine, with the real one:
its memory is watched, and that another client is answered meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from .conftest import SECRET
from .schema_cases import FINE, HARMFUL
from .service_process import Service

CHAT = "/v1/chat/completions"
AUTH = {"Authorization": f"Bearer {SECRET}"}
# Which makes brackets likely, and few of these schemas end a text before so many tokens.
QUESTION = "Go on: [[[[[[[[[[[[[[[["
ASK = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 2}
# MiB and seconds: an engine that fails at one of them takes all there is.
MOST_GROWTH = 64
PATIENCE = 10
# Deep enough for what doubles with each bracket.
TOKENS = 60


@pytest.fixture(scope="module")
def service(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("s"), models)
    # If one gets through, it is not to take this machine's memory.
    service.prefix = ["prlimit", "--as=3000000000"]
    service.start()
    engines = service.pids("wheel_server")
    post(service, ASK)
    yield service
    try:
        assert service.pids("wheel_server") == engines
        assert not [line for line in service.log if line["level"] == "error"]
    finally:
        service.stop()


def post(service: Service, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(service.url + CHAT, json=body, headers=AUTH, timeout=60)


def shaped(schema: dict[str, Any]) -> dict[str, Any]:
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return {**ASK, "max_tokens": TOKENS, "response_format": shape, "temperature": 0}


def highest(service: Service) -> int:
    """The most memory that the engine had since it was last forgotten, in MiB."""
    (pid,) = service.pids("wheel_server")
    lines = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) >> 10


def forget(service: Service) -> int:
    """Have the highest be what it is now, and return that."""
    (pid,) = service.pids("wheel_server")
    Path(f"/proc/{pid}/clear_refs").write_text("5", "ascii")
    return highest(service)


def others_wait(service: Service, body: dict[str, Any]) -> tuple[httpx.Response, float]:
    """The answer, and how long another client waited at most until it was there."""
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(post, service, body)
        longest = 0.0
        while True:
            began = time.monotonic()
            assert post(service, ASK).status_code == 200
            longest = max(longest, time.monotonic() - began)
            if asked.done():
                return asked.result(), longest


@pytest.mark.parametrize("schema", FINE)
def test_fine(service: Service, schema: dict[str, Any]) -> None:
    before = forget(service)
    answer, waited = others_wait(service, shaped(schema))
    assert answer.status_code == 200, answer.text[:500]
    assert waited < PATIENCE
    assert highest(service) - before < MOST_GROWTH


@pytest.mark.parametrize("schema", [schema for schema, _ in HARMFUL])
def test_harmful(service: Service, schema: dict[str, Any]) -> None:
    before = forget(service)
    for body in (
        shaped(schema),
        {**shaped(schema), "stream": True},
        {**ASK, "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]},
    ):
        began = time.monotonic()
        answer = post(service, body)
        assert (answer.status_code, time.monotonic() - began < PATIENCE) == (400, True)
        assert answer.json()["error"]["code"] in ("invalid_json_schema", "context_length_exceeded")
    assert post(service, ASK).status_code == 200
    assert highest(service) - before < MOST_GROWTH
