# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The real engine, without a gateway that would keep from it what it cannot bear."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from nas_assistant import engine_process
from nas_assistant.addresses import UnixAddress
from nas_assistant.checks import check_start
from nas_assistant.engine_process import EngineProcess
from nas_assistant.local_http import LocalHttpError, request
from nas_assistant.settings import Settings

from .conftest import BASE_MODEL, CHAT_MODEL, gguf_file
from .schema_cases import tree
from .service_process import SOURCE, Service


def stall(engine: EngineProcess) -> None:
    """Send what keeps the engine busy for longer than anybody waits."""
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": tree(36)}}
    body = {"messages": [{"role": "user", "content": "Hi"}], "response_format": schema}
    key = {"Authorization": f"Bearer {engine.backend.api_key}"}
    address = UnixAddress(engine.backend.socket)
    with pytest.raises(LocalHttpError):
        request(address, "POST", "/v1/chat/completions", json.dumps(body).encode(), key, 2)


def test_an_engine_that_is_stuck_is_killed(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))
    monkeypatch.setattr(engine_process, "_PROBE_SECONDS", 0.2)
    monkeypatch.setattr(engine_process, "_STUCK_SECONDS", 4)
    service = Service(tmp_path, models)
    settings = Settings.load(service.config, {})

    checked = check_start(settings, models, "wheel")

    async def run() -> None:
        engine = EngineProcess(settings, checked.models["default"], "wheel", tmp_path, 0)
        await engine.start()
        try:
            assert await engine.takes_work(5)
            ended = asyncio.create_task(engine.end())
            await asyncio.sleep(1)
            assert not ended.done()
            await asyncio.to_thread(stall, engine)
            assert await engine.healthy()
            async with asyncio.timeout(20):
                assert await ended == "the engine took up no work for 4 s and was killed"
        finally:
            await engine.stop()

    asyncio.run(run())


def test_a_model_that_the_engine_refuses_is_said_without_a_traceback(tmp_path: Path) -> None:
    for name in (CHAT_MODEL, BASE_MODEL):
        (tmp_path / name).write_bytes(gguf_file())
    code, lines = Service(tmp_path, tmp_path).run("serve")
    assert code == 78
    said = lines[-1]["message"]
    assert said.startswith("the engine ended with exit code 1")
    assert "the engine refused the model" in said
    assert "File " not in said
    assert "Traceback" not in said
