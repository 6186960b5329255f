# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What was worked out, with the real engine: it starts with that, and takes no more memory."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from nas_assistant import checks
from nas_assistant.checks import CheckedModel, check_start
from nas_assistant.engine_process import EngineProcess
from nas_assistant.local_http import LocalHttpError
from nas_assistant.memory import MIB
from nas_assistant.settings import Settings
from nas_assistant.tune import ask

from .conftest import CHAT_MODEL, SECRET, minimal_config
from .service_process import SOURCE, Service

LONG = pytest.mark.skipif(
    not os.environ.get("NAS_ASSISTANT_FULL"), reason="one of those that make test-full runs"
)


@pytest.fixture
def settings(models: Path, write_config: Callable[[str], Path]) -> Settings:
    """Of the model that chats, with nothing set."""
    with (models / CHAT_MODEL).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    text = minimal_config().replace("tiny.gguf", CHAT_MODEL).replace("0" * 64, digest)
    return Settings.load(write_config(text), {})


def most_of_its_own(model: CheckedModel) -> int:
    """The most bytes that its engine ever had, without files that it maps."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            lines = (folder / "status").read_text(encoding="ascii").splitlines()
        except OSError:
            continue
        if str(model.path).encode() in words and b"nas_assistant.wheel_server" in words:
            figures = dict(line.split(":", 1) for line in lines)
            kib = [int(figures[each].split()[0]) for each in ("VmHWM", "RssFile")]
            return (kib[0] - kib[1]) << 10
    raise RuntimeError("the engine is gone")


@pytest.mark.parametrize(
    ("mib", "slots", "cache"),
    [
        # 208 + 96 + 94 + 2 * (45 + 7.5), which has room for two texts
        pytest.param(598, 2, 95, marks=LONG),
        (451, 1, 0),  # no room for a cache, nor to spare
    ],
)
def test_a_full_context_takes_no_more_than_was_worked_out(
    tmp_path: Path,
    models: Path,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    mib: int,
    slots: int,
    cache: int,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))
    monkeypatch.setattr(checks, "available_memory", lambda: (mib * MIB, "the container's limit"))
    checked = check_start(settings, models, "wheel")
    model = checked.models["default"]
    found = checked.settings
    assert (found.slots, model.settings.context, found.cache_mib) == (slots, 2048, cache)

    def read(number: int, words: int = 2030) -> int:
        """Have it read a text that is like no other; return how many tokens that was."""
        text = " ".join([f"{number}", *(["one", "two", "red", "sea"][number % 4],) * words])
        body = {"prompt": text, "max_tokens": 4, "ignore_eos": True}
        return int(ask(engine, "/v1/completions", body)["usage"]["prompt_tokens"])

    engine = EngineProcess(found, model, "wheel", tmp_path, 0)

    async def run() -> int:
        await engine.start()
        try:
            # Twice as many as there are slots: what was read goes to the prompt cache.
            for first in (0, slots):
                with ThreadPoolExecutor(slots) as pool:
                    jobs = list(pool.map(read, range(first, first + slots)))
                assert all(2030 < tokens <= 2044 for tokens in jobs)
            with pytest.raises(LocalHttpError, match=r"exceeds the available context size .*2048"):
                read(9, 2100)
            return most_of_its_own(model)
        finally:
            await engine.stop()

    taken = asyncio.run(run())
    assert model.need.kv_cache < taken < model.need.own - model.need.weights


def test_all_of_the_service_has_the_same_figures(models: Path, tmp_path: Path) -> None:
    """On the test's machine there is room for all that is taken without being asked for."""
    service = Service(tmp_path, models)
    text = service.config.read_text("utf-8")
    for line in ("slots = 2\n", "cache_mib = 16\n"):
        text = text.replace(line, "")
    # The other one's is set.
    text = text.replace("context = 1024\n", "", 1)
    service.config.write_text(text, "utf-8")
    service.start()
    try:
        status = httpx.get(f"{service.url}/admin/status", headers=auth()).json()
        shown = {
            each["name"]: (each["slots"], each["context"], each["memory"]["kv_cache"])
            for each in status["models"]
        }
        # 30 layers with 3 heads of 64, 18 with one of 256; keys and values of two bytes.
        assert shown == {
            "default": (4, 8192, 30 * 3 * 64 * 2 * 2 * 8192 * 4),
            "large": (4, 1024, 18 * 256 * 2 * 2 * 1024 * 4),
        }
        # Its workers say it, which have not worked out anything.
        body = {"model": "default", "prompt": "x" * (8192 * 16 + (64 << 10) + 1)}
        answer = httpx.post(f"{service.url}/v1/completions", headers=auth(), json=body)
        assert answer.status_code == 400
        assert "at most 196608 are taken for a context of 8192" in answer.json()["error"]["message"]
        passed = {
            line["message"].split("'")[1]: line["message"]
            for line in service.log
            if line["event"] == "check_passed"
        }
        assert "KV cache 720 + prompt cache 128 + " in passed["default"]
        assert ", and the " in passed["default"]
        assert passed["default"].endswith(
            " MiB. 4 slots of 8192 tokens, 128 MiB of prompt cache; it was trained for 8192"
        )
        assert passed["large"].endswith("prompt cache; the context is set")
        (engine,) = service.pids("-m nas_assistant.wheel_server")
        words = Path(f"/proc/{engine}/cmdline").read_bytes().split(b"\0")
        given = dict(itertools.pairwise(words))
        assert (given[b"--ctx-size"], given[b"--parallel"]) == (b"32768", b"4")
        assert given[b"--cache-ram"] == b"128"
    finally:
        assert service.stop() == 0


def auth() -> dict[str, str]:
    return {"Authorization": f"Bearer {SECRET}"}
