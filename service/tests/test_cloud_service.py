# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Two real services with real models, of which one is the other's cloud."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from nas_assistant.keys import render

from .conftest import BASE_MODEL, SECRET, api_key
from .service_process import Service

CHAT = "/v1/chat/completions"
# Its key is one that only the home knows.
CLOUD_SECRET = "sk-of-the-cloud"
FRANCE: list[openai.types.chat.ChatCompletionMessageParam] = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France?"},
]
UPSTREAM = """
fallback = remote

[upstream:other]
url = {url}/v1
timeout = 6
retries = 1

[model:smart]
upstream = other
model = default

[model:remote]
upstream = other
model = large
kind = text
"""


@pytest.fixture
def cloud(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    # A short name: those of sockets in it may have 107 bytes.
    service = Service(tmp_path_factory.mktemp("c"), models)
    (service.keys_dir / "keys.json").write_text(
        render([api_key("home", CLOUD_SECRET)]), encoding="utf-8"
    )
    service.start()
    yield service
    end(service)


@pytest.fixture
def home(
    cloud: Service, models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("h"), models)
    service.more_config = UPSTREAM.format(url=cloud.url)
    service.write_config(mode="hybrid", variant="large")
    write_key(service, CLOUD_SECRET)
    (service.keys_dir / "keys.json").write_text(
        render([api_key(), api_key("child", "sk-child", local_only=True)]), encoding="utf-8"
    )
    yield service
    end(service)


def write_key(service: Service, key: str) -> None:
    document = {"upstreams": {"other": {"key": key}}}
    (service.keys_dir / "upstreams.json").write_text(json.dumps(document), encoding="utf-8")


def end(service: Service) -> None:
    if service.process is not None and service.process.poll() is None:
        service.stop(signal.SIGKILL)
    service.wait(lambda: not service.pids("nas_assistant"), 10)


def ask(service: Service, secret: str = SECRET, **fields: Any) -> httpx.Response:
    body = {"max_tokens": 8, "temperature": 0, **fields}
    path = "/v1/completions" if "prompt" in body else CHAT
    headers = {"Authorization": f"Bearer {secret}"}
    return httpx.post(service.url + path, json=body, headers=headers, timeout=60)


def status(service: Service) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {SECRET}"}
    answer: dict[str, Any] = httpx.get(f"{service.url}/admin/status", headers=headers).json()
    return answer


def readiness(service: Service) -> dict[str, Any]:
    """What is told of a service that can be asked."""
    answer = httpx.get(f"{service.url}/readyz")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_hybrid(home: Service, cloud: Service) -> None:
    home.start()
    client = openai.OpenAI(base_url=f"{home.url}/v1", api_key=SECRET, max_retries=0, timeout=60)
    answer = client.chat.completions.create(
        model="smart", messages=FRANCE, temperature=0, max_tokens=16
    )
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.usage is not None
    who = {"served_by": "cloud:other", "upstream_served_by": "local"}
    assert answer.usage.model_extra == who
    stream = client.chat.completions.create(
        model="smart",
        messages=FRANCE,
        temperature=0,
        max_tokens=16,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "Paris" in "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.model_extra == who
    client.close()

    # The engine here is gone: the cloud answers, but not for whom it must not.
    local = ask(home, prompt="Once upon a")
    assert local.headers["x-served-by"] == "local"
    (engine,) = home.pids("wheel_server")
    os.kill(engine, signal.SIGSTOP)
    os.kill(engine, signal.SIGKILL)
    home.wait(lambda: readiness(home)["status"] == "degraded")
    assert "SIGKILL, it is being started again" in readiness(home)["reason"]
    outside = ask(home, prompt="Once upon a")
    assert outside.headers["x-served-by"] == "cloud:other"
    assert outside.json()["choices"] == local.json()["choices"]
    assert ask(home, "sk-child", model="smart", messages=FRANCE).status_code == 403
    assert ask(home, "sk-child", prompt="Once").headers.get("x-served-by") in (None, "local")
    home.wait(lambda: readiness(home)["status"] == "ready")
    # Too long for the context here, and there.
    too_long = ask(home, prompt="word " * 3000).json()["error"]
    assert too_long["code"] == "context_length_exceeded"
    assert ask(home, prompt="Once").headers["x-served-by"] == "local"
    served = {model["name"]: model["served"] for model in status(home)["upstreams"][0]["models"]}
    assert served["smart"]["requests"] == 2
    assert served["remote"]["requests"] >= 1
    entries = [entry for entry in home.log if entry.get("served_by") == "cloud:other"]
    assert len(entries) >= 3
    assert CLOUD_SECRET not in home.log_path.read_text("utf-8")


def test_a_cloud_that_fails(home: Service, cloud: Service) -> None:
    home.start()
    write_key(home, "sk-wrong")
    home.wait(lambda: any(entry["event"] == "keys_changed" for entry in home.log))
    error = ask(home, model="smart", messages=FRANCE).json()["error"]
    assert (error["code"], "does not let this service in" in error["message"]) == (
        "upstream_error",
        True,
    )
    write_key(home, CLOUD_SECRET)
    home.wait(lambda: ask(home, model="smart", messages=FRANCE).status_code == 200)

    # It hangs: a client waits as long as it was told to, no longer.
    for pid in cloud.pids("nas_assistant"):
        os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    error = ask(home, model="smart", messages=FRANCE).json()["error"]
    assert "said nothing for 6 s" in error["message"]
    assert time.monotonic() - began < 14
    for pid in cloud.pids("nas_assistant"):
        os.kill(pid, signal.SIGKILL)
    for _ in range(2):
        error = ask(home, model="smart", messages=FRANCE).json()["error"]
        assert "the cloud 'other'" in error["message"]
    # After three failures nobody waits for it any more, and the local model goes on.
    home.wait(lambda: status(home)["upstreams"][0]["paused"])
    error = ask(home, model="smart", messages=FRANCE).json()["error"]
    assert "failed 3 times in a row and is left alone for 30 s" in error["message"]
    assert ask(home, prompt="Once").headers["x-served-by"] == "local"
    assert home.status("/readyz") == 200


def test_a_home_without_its_model(home: Service, cloud: Service, tmp_path: Path) -> None:
    """It begins with what it can, and has its model as soon as that is there."""
    models, home.models = home.models, tmp_path
    assert home.run("check")[0] == 78, "a new configuration must be good"
    home.start()
    told = readiness(home)
    assert (told["status"], told["loading"]) == ("degraded", False)
    assert f"{BASE_MODEL} does not exist" in told["reason"]
    assert status(home)["degraded"] == told["reason"]
    health = home.run("healthcheck")
    assert (health[0], health[1][0]["status"]) == (0, "degraded")
    assert ask(home, prompt="Once upon a").headers["x-served-by"] == "cloud:other"
    refused = ask(home, "sk-child", prompt="Once upon a")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    assert f"{BASE_MODEL} does not exist" in refused.json()["error"]["message"]
    (warned,) = [entry for entry in home.log if entry["event"] == "degraded"]
    assert warned["level"] == "error"
    pid = home.pids("nas_assistant serve")

    part = tmp_path / "model.part"
    shutil.copyfile(models / BASE_MODEL, part)
    part.rename(tmp_path / BASE_MODEL)
    home.wait(lambda: readiness(home)["status"] == "ready")
    for secret in (SECRET, "sk-child"):
        assert ask(home, secret, prompt="Once upon a").headers["x-served-by"] == "local"
    assert home.pids("nas_assistant serve") == pid

    # A restart is no reason to send anything out.
    home.stop()
    home.start()
    assert readiness(home)["status"] == "ready"


def test_cloud_alone_needs_no_model(home: Service, cloud: Service, tmp_path: Path) -> None:
    home.models = tmp_path / "none"
    home.config.write_text(
        home.config.read_text("utf-8")
        .replace("mode = hybrid", "mode = cloud")
        .replace("variant = large", "variant = smart"),
        encoding="utf-8",
    )
    home.start()
    assert not home.pids("wheel_server")
    answer = ask(home, messages=FRANCE)
    assert answer.headers["x-served-by"] == "cloud:other"
    assert "Paris" in answer.text
    assert "mode = cloud" in ask(home, model="default", messages=FRANCE).json()["error"]["message"]


def test_a_cloud_without_a_key_is_refused(home: Service, cloud: Service) -> None:
    (home.keys_dir / "upstreams.json").unlink()
    code, lines = home.run("check")
    assert code == 78
    assert "upstreams.json must be an object" in lines[-1]["message"]
