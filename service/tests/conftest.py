# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nas_assistant.engine import Call
from nas_assistant.keys import ApiKey, Role
from nas_assistant.settings import AUTO, Settings

from .browser import Browser, find_chromium
from .website import Server, Visits

CHAT_MODEL = "smollm2-135m-instruct-q4_1.gguf"
BASE_MODEL = "gemma-3-270m-q4_k_m.gguf"
EMBEDDING_MODEL = "minilm-l6-v2-f16.gguf"
RERANK_MODEL = "minilm-l6-v2-ranker-f16.gguf"
SECRET = "sk-test-secret"
USER_SECRET = "sk-test-user"


def api_key(name: str = "owner", secret: str = SECRET, **limits: Any) -> ApiKey:
    limits = {"role": Role.ADMIN} | limits
    return ApiKey(name, hashlib.sha256(secret.encode()).hexdigest(), **limits)


def call_of(model: str, key: str = "owner", **more: Any) -> Call:
    return Call(model, "/v1/chat/completions", b"{}", key, **more)


def minimal_config(**server: object) -> str:
    lines = ["[server]", *(f"{key} = {value}" for key, value in server.items())]
    lines += ["[model:default]", "file = tiny.gguf", f"sha256 = {'0' * 64}"]
    return "\n".join(lines) + "\n"


def settled(settings: Settings) -> Settings:
    """With figures in the place of what is worked out from memory and models; it has none yet."""
    assert (settings.slots, settings.cache_mib) == (AUTO, AUTO)
    models = {name: replace(each, context=2048) for name, each in settings.models.items()}
    return replace(settings, slots=4, cache_mib=128, models=models)


HYBRID = """
[upstream:example]
url = http://127.0.0.1:9/v1
retries = 0
parallel = 1

[model:smart]
upstream = example
model = gpt-example
"""


@pytest.fixture(scope="session")
def models() -> Path:
    folder = os.environ.get("NAS_ASSISTANT_MODELS")
    if not folder:
        pytest.skip("NAS_ASSISTANT_MODELS does not name a folder with the test models")
    wanted = (CHAT_MODEL, BASE_MODEL, EMBEDDING_MODEL, RERANK_MODEL)
    missing = [name for name in wanted if not (Path(folder) / name).exists()]
    if missing:
        pytest.skip(f"{folder} lacks {', '.join(missing)}")
    return Path(folder)


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "config.ini"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def gguf_string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def gguf_file(
    *,
    template: str | None = None,
    context: int = 4096,
    vocabulary: int = 8,
    data: int = 64,
    pooling: int = 0,
    causal: bool = True,
    layers: int = 1,
) -> bytes:
    """A whole GGUF file: metadata, one float tensor of 16 values, its data. A token of context
    takes 128 bytes in each layer.
    """
    entries = [
        gguf_string("general.architecture") + struct.pack("<I", 8) + gguf_string("llama"),
        *(
            gguf_string(f"llama.{key}") + struct.pack("<II", 4, value)
            for key, value in {
                "context_length": context,
                "block_count": layers,
                "embedding_length": 64,
                "attention.head_count": 4,
                "attention.head_count_kv": 2,
                "pooling_type": pooling,
            }.items()
        ),
        gguf_string("llama.attention.causal") + struct.pack("<I?", 7, causal),
        gguf_string("tokenizer.ggml.tokens")
        + struct.pack("<IIQ", 9, 8, vocabulary)
        + b"".join(gguf_string(f"t{number}") for number in range(vocabulary)),
    ]
    if template is not None:
        entries.append(
            gguf_string("tokenizer.chat_template") + struct.pack("<I", 8) + gguf_string(template)
        )
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(entries)) + b"".join(entries)
    head += gguf_string("weight") + struct.pack("<IQIQ", 1, 16, 0, 0)
    return head + b"\0" * (-len(head) % 32) + b"\1" * data


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    executable = find_chromium()
    if not executable:
        pytest.skip("there is no Chromium (Debian's package chromium)")
    browser = Browser(executable, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="session")
def running_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = tmp_path_factory.mktemp("config") / "config.ini"
    config.write_text(minimal_config(mode="hybrid") + HYBRID, encoding="utf-8")
    user = api_key("child", USER_SECRET, role=Role.USER)
    server = Server(settled(Settings.load(config, {})), [api_key(), user])
    yield server
    server.close()


@pytest.fixture
def visits(browser: Browser) -> Iterator[Visits]:
    visits = Visits(browser, SECRET)
    yield visits
    visits.end()
