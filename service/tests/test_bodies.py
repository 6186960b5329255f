# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""How much of requests is read and held: as much as memory.py counts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.testclient import TestClient

from nas_assistant.bodies import Bodies, Longest, read_body
from nas_assistant.errors import ApiError, bad_request
from nas_assistant.gateway import create_app
from nas_assistant.generation import parse_chat
from nas_assistant.keys import KeyRing
from nas_assistant.memory import MIB
from nas_assistant.settings import MOST_HELD, Settings, longest_body

from .conftest import SECRET, api_key, minimal_config, settled
from .fake_engine import FakeEngine

CHAT = "/v1/chat/completions"
LONGEST = Longest(longest_body(8192), bad_request("too long", None, "context_length_exceeded"))


async def read(body: bytes, bodies: Bodies, header: int | None = None) -> int:
    """Read a body that comes in pieces; return what is held of all bodies while it is."""

    async def pieces() -> AsyncIterator[dict[str, Any]]:
        for at in range(0, len(body), 1 << 16):
            yield {"type": "http.request", "body": body[at : at + (1 << 16)], "more_body": True}
        yield {"type": "http.request", "body": b"", "more_body": False}

    coming = pieces()
    headers = [] if header is None else [(b"content-length", str(header).encode())]
    request = Request({"type": "http", "headers": headers}, lambda: anext(coming))
    with bodies.share() as share:
        assert await read_body(request, LONGEST, share) == body
        return bodies.held


def code_of(body: bytes, bodies: Bodies | None = None, header: int | None = None) -> str:
    try:
        asyncio.run(read(body, bodies or Bodies(), header))
    except ApiError as error:
        return error.code
    return ""


def test_what_is_held_is_given_back() -> None:
    bodies = Bodies()
    assert asyncio.run(read(b"x" * 100_000, bodies)) == 100_000
    assert bodies.held == 0
    bodies.held = MOST_HELD - 90_000
    assert code_of(b"x" * 100_000, bodies) == "too_many_bytes"
    # What is short takes no more than a connection does anyway.
    bodies.held = MOST_HELD
    assert code_of(b"x" * 1000, bodies) == ""
    assert bodies.held == MOST_HELD


@pytest.mark.parametrize(
    ("body", "header", "code"),
    [
        # Not read at all.
        (b"", 5 * MIB, "request_too_large"),
        (b"", 2 * MIB, "context_length_exceeded"),
        (b"x" * 2 * MIB, None, "context_length_exceeded"),
        # Read, and no JSON of it.
        (b'{"messages":[' + b"{}," * 150_000 + b"{}]}", None, "context_length_exceeded"),
        # A letter that is written with six.
        (b'{"prompt":"' + b"\\u0041" * 190_000 + b'"}', None, ""),
        (b'{"prompt":"' + b"\\\\u0041" * 140_000 + b'"}', None, "context_length_exceeded"),
        (b"x" * 200_000, None, ""),
    ],
    ids=["larger", "long", "long-no-header", "empty-objects", "escapes", "no-escapes", "fine"],
)
def test_what_no_model_takes_is_not_read(body: bytes, header: int | None, code: str) -> None:
    assert code_of(body, header=header) == code


def test_what_is_read_is_what_is_counted() -> None:
    """One that takes the most for its length, by the kernel's figures."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def kib(name: str) -> int:
        lines = status.read_text("ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name))

    body = b'{"messages":[' + b'{"a":{}},' * (LONGEST.size // 9) + b"{}]}"
    clear.write_text("5", "ascii")
    before = kib("VmRSS:")
    with pytest.raises(ApiError):
        parse_chat(body)
    assert (kib("VmHWM:") - before) * 1024 < 32 * len(body)


def test_the_longest_of_any_model_is_said(write_config: Callable[[str], Path]) -> None:
    settings = settled(Settings.load(write_config(minimal_config()), {}))
    engine = FakeEngine(b'{"choices":[]}')
    headers = {"Authorization": f"Bearer {SECRET}"}
    with TestClient(create_app(settings, engine, KeyRing([api_key()])), headers=headers) as client:
        request = {"messages": [{"role": "user", "content": "x " * 500_000}]}
        error = client.post(CHAT, json=request).json()["error"]
        assert error["code"] == "context_length_exceeded"
        assert "at most 98304 are taken for a context of 2048 tokens" in error["message"]
        text = "é" * 90_000  # three times as long, and six in JSON
        answer = client.post(CHAT, content=json.dumps({"messages": [{"role": "user"}], "x": text}))
        assert answer.json()["error"]["param"] == "messages[0]"
    assert not engine.calls
