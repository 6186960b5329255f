# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What breaks beneath the real service with a real model, and what its clients see of that."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from .conftest import CHAT_MODEL, SECRET
from .service_process import Service
from .test_service import client_of

AUTH = {"Authorization": f"Bearer {SECRET}"}
ENGINE = "-m nas_assistant.wheel_server"
STREAMS = 8


@pytest.fixture
def service(models: Path, tmp_path: Path) -> Iterator[Service]:
    """A service with a copy of a model that may be damaged."""
    own = tmp_path / "models"
    own.mkdir()
    shutil.copyfile(models / CHAT_MODEL, own / CHAT_MODEL)
    service = Service(tmp_path, models)
    service.models = own
    yield service
    if service.process is not None and service.process.poll() is None:
        service.stop(signal.SIGKILL)
    service.wait(lambda: not service.pids("nas_assistant"), 10)


def kill_engine(service: Service) -> None:
    (engine,) = service.pids(ENGINE)
    os.kill(engine, signal.SIGKILL)


def reason(service: Service) -> str:
    text: str = httpx.get(f"{service.url}/readyz").text
    return text


def test_engine_killed_while_eight_stream(service: Service) -> None:
    """Those that were being answered are told so, the others wait for the new one or are too."""
    service.start()
    begun = threading.Semaphore(0)
    ends: list[str] = []

    def stream(client: openai.OpenAI) -> None:
        asked = {"model": "default", "prompt": "A story:", "max_tokens": 400}
        try:
            with client.completions.create(stream=True, **asked) as answer:  # type: ignore[call-overload]
                next(iter(answer))
                begun.release()
                list(answer)
        except openai.APIError as error:
            ends.append(str(error))
        else:
            ends.append("answered")

    with client_of(service) as client:
        threads = [threading.Thread(target=stream, args=(client,)) for _ in range(STREAMS)]
        for thread in threads:
            thread.start()
        for _ in range(2):  # as many as there are slots
            assert begun.acquire(timeout=30)
        kill_engine(service)
        service.wait(lambda: service.status("/readyz") == 503, 5)
        assert service.status("/healthz") == 200
        for thread in threads:
            thread.join(60)
        assert len(ends) == STREAMS
        told = [end for end in ends if end != "answered"]
        assert len(told) >= 2
        assert all("cannot answer now" in end for end in told)
        service.wait(lambda: service.status("/readyz") == 200)
        assert client.completions.create(model="default", prompt="Hi", max_tokens=2).usage
    status = httpx.get(f"{service.url}/admin/status", headers=AUTH).json()
    assert (status["waiting"], status["models"][0]["slots_in_use"]) == (0, 0)
    ended = [line for line in service.log if line["event"] == "engine_ended"]
    assert "SIGKILL" in ended[0]["message"]


def waits(service: Service) -> list[str]:
    """After which an engine that ended was started again."""
    ends = [line["message"] for line in service.log if line["event"] == "engine_ended"]
    return [end.partition("starting it again in ")[2] for end in ends]


def test_an_engine_that_ends_again_and_again(service: Service) -> None:
    """It is left alone longer each time, and who asks hears why."""
    service.start()
    for waited in (["1 s"], ["1 s", "2 s"], ["1 s", "2 s", "4 s"]):
        service.wait(lambda: service.pids(ENGINE), 30)
        kill_engine(service)
        service.wait(lambda: "SIGKILL, it is being started again" in reason(service), 5)
        service.wait(lambda waited=waited: waits(service) == waited, 5)  # type: ignore[misc]
    service.wait(lambda: service.status("/readyz") == 200)
    with client_of(service) as client:
        assert client.completions.create(model="default", prompt="Hi", max_tokens=2).usage


@pytest.mark.parametrize("damage", ["byte", "cut"])
def test_a_model_that_its_disk_damaged(service: Service, damage: str) -> None:
    """An engine that ended is not started on it again, before it is mended."""
    service.start()
    file = service.models / CHAT_MODEL
    whole = service.folder / "whole"
    shutil.copyfile(file, whole)
    with file.open("r+b") as model:
        if damage == "byte":
            model.seek(50_000_000)
            byte = model.read(1)[0]
            model.seek(-1, os.SEEK_CUR)
            model.write(bytes([byte ^ 1]))
        else:
            model.truncate(50_000_000)
    if damage == "byte":
        kill_engine(service)
    else:
        # It ends at what is no longer there, which nobody can read.
        with client_of(service) as client, pytest.raises(openai.APIError):
            client.completions.create(model="default", prompt="Hi", max_tokens=2)
    service.wait(lambda: "has SHA-256" in reason(service), 30)
    assert service.pids(ENGINE) == []
    shutil.copyfile(whole, file)
    service.wait(lambda: service.status("/readyz") == 200, 60)
    with client_of(service) as client:
        assert client.completions.create(model="default", prompt="Hi", max_tokens=2).usage
