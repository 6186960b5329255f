# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What breaks beneath the real service with a real model, and what its clients see of that."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

from nas_assistant.keys import Role, render

from .conftest import BASE_MODEL, CHAT_MODEL, SECRET, USER_SECRET, api_key
from .service_process import Service
from .test_service import client_of, figures

AUTH = {"Authorization": f"Bearer {SECRET}"}
ENGINE = "-m nas_assistant.wheel_server"
STREAMS = 8
IN_USE = 'nas_assistant_slots_in_use{model="default"}'
READY = 'nas_assistant_model_ready{model="default"}'


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
    """Each hears an error in the API's shape and no end that is none; nothing of them is left."""
    text = service.config.read_text("utf-8").replace("slots = 2", f"slots = {STREAMS}")
    service.config.write_text(text, "utf-8")
    service.keys_dir.joinpath("keys.json").write_text(
        render([api_key(), api_key("child", USER_SECRET, role=Role.USER, parallel=STREAMS)]),
        encoding="utf-8",
    )
    service.start()
    asked = {
        "prompt": "A story:",
        "max_tokens": 900,
        "logit_bias": {"0": -100, "2": -100},  # its two end tokens: it cannot end before it dies
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    begun = threading.Semaphore(0)

    def stream(_: int) -> str:
        request = {"json": asked, "headers": {"Authorization": f"Bearer {USER_SECRET}"}}
        with httpx.stream("POST", f"{service.url}/v1/completions", timeout=60, **request) as answer:  # type: ignore[arg-type]
            assert answer.status_code == 200
            parts = answer.iter_text()
            told = next(parts)
            begun.release()
            return told + "".join(parts)

    with ThreadPoolExecutor(STREAMS) as pool:
        streams = [pool.submit(stream, number) for number in range(STREAMS)]
        for _ in streams:
            assert begun.acquire(timeout=60)
        assert figures(service)[IN_USE] == STREAMS
        killed = time.monotonic()
        kill_engine(service)
        service.wait(lambda: service.status("/readyz") == 503, 5)
        assert service.status("/healthz") == 200
        ends = [each.result(20) for each in streams]
        assert time.monotonic() - killed < 5
    for told in ends:
        *pieces, last, nothing = told.split("\n\n")
        assert nothing == ""
        error = json.loads(last.removeprefix("data: "))["error"]
        assert (error["type"], error["code"], error["param"]) == ("server_error", "not_ready", None)
        assert "the engine ended while it was answering" in error["message"]
        for piece in pieces:
            assert json.loads(piece.removeprefix("data: "))["choices"][0]["finish_reason"] is None
    # Nothing is left of them while there is no engine, and with the next one all slots are free.
    service.wait(lambda: figures(service)[IN_USE] == 0, 5)
    after = figures(service)
    assert after["nas_assistant_waiting"] == 0
    assert after[READY] == 0
    failed = 'nas_assistant_requests_total{key="child",model="default",status="503"}'
    assert after[failed] == STREAMS
    service.wait(lambda: service.status("/readyz") == 200)
    assert figures(service)[READY] == 1

    def ask(_: int) -> int:
        short = {"prompt": "Hi", "max_tokens": 2}
        headers = {"Authorization": f"Bearer {USER_SECRET}"}
        url = f"{service.url}/v1/completions"
        return httpx.post(url, json=short, headers=headers, timeout=60).status_code

    # As many as the key may have at once, which counts none of those.
    with ThreadPoolExecutor(STREAMS) as pool:
        assert set(pool.map(ask, range(STREAMS))) == {200}
    status = httpx.get(f"{service.url}/admin/status", headers=AUTH).json()
    assert (status["waiting"], status["models"][0]["slots_in_use"]) == (0, 0)
    (used,) = [key["used_today"] for key in status["keys"] if key["name"] == "child"]
    assert used["requests"] == 2 * STREAMS
    # What they had of their answers counts.
    assert used["completion_tokens"] >= STREAMS
    ended = [line for line in service.log if line["event"] == "engine_ended"]
    assert "SIGKILL" in ended[0]["message"]


def test_those_who_wait_when_the_engine_is_killed(service: Service) -> None:
    """They wait for the new one, or are told; the official client says it as an error."""
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
    if damage == "byte":
        flip(file)
    else:
        os.truncate(file, 50_000_000)
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


def test_a_model_that_is_damaged_before_it_is_loaded(service: Service, models: Path) -> None:
    """Who asks for it is told so, others are answered; mended, it is loaded for the next."""
    file = service.models / BASE_MODEL
    shutil.copyfile(models / BASE_MODEL, file)
    service.patch(engines___NOT_AGAIN=3)
    service.start()
    flip(file)

    def ask(model: str) -> httpx.Response:
        body = {"model": model, "prompt": "Hi", "max_tokens": 2}
        return httpx.post(f"{service.url}/v1/completions", json=body, headers=AUTH, timeout=60)

    told = ask("large")
    assert told.status_code == 503
    assert "has SHA-256" in told.json()["error"]["message"]
    assert ask("default").status_code == 200
    assert service.status("/readyz") == 200
    status = httpx.get(f"{service.url}/admin/status", headers=AUTH).json()
    assert "has SHA-256" in status["unusable"]["large"]
    flip(file)
    service.wait(lambda: ask("large").status_code == 200, 30)


def flip(file: Path) -> None:
    """Change one bit of it."""
    with file.open("r+b") as model:
        model.seek(50_000_000)
        byte = model.read(1)[0]
        model.seek(-1, os.SEEK_CUR)
        model.write(bytes([byte ^ 1]))
