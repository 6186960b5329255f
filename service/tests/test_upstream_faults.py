# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Upstreams that take a request and do not come to an end, beneath the real service."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .cloud_process import CloudService, ScriptedCloud, Visitor, answer
from .test_state_faults import end

SILENCE = 1  # seconds that an upstream may say nothing
IN_USE = 'nas_assistant_slots_in_use{model="default"}'
Behaviour = Callable[[Visitor, dict[str, Any]], None]


@pytest.fixture(scope="module")
def cloud() -> Iterator[ScriptedCloud]:
    cloud = ScriptedCloud()
    yield cloud
    cloud.close()


@pytest.fixture(scope="module")
def service(
    cloud: ScriptedCloud, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CloudService]:
    """One that waits twice as long for a whole answer as for a word."""
    service = CloudService(tmp_path_factory.mktemp("u"), cloud, timeout=SILENCE, parallel=1)
    service.patch(cloud___TIMES_SILENCE=2, breaker___FIRST_PAUSE=2)
    service.start()
    yield service
    end(service)


def nothing(visitor: Visitor, _: dict[str, Any]) -> None:
    visitor.rfile.read(1)  # until who asked hangs up


def head_alone(visitor: Visitor, fields: dict[str, Any]) -> None:
    visitor.head("text/event-stream" if fields.get("stream") else "application/json")
    nothing(visitor, fields)


def drip(visitor: Visitor, text: bytes) -> None:
    while True:
        for number in range(len(text)):
            visitor.wfile.write(text[number : number + 1])
            time.sleep(SILENCE / 5)


def head_drips(visitor: Visitor, _: dict[str, Any]) -> None:
    visitor.wfile.write(b"HTTP/1.1 200 OK\r\n")
    drip(visitor, b"X: y\r\n")


def body_drips(visitor: Visitor, fields: dict[str, Any]) -> None:
    visitor.head("text/event-stream" if fields.get("stream") else "application/json")
    drip(visitor, b"data: ")


SILENT, SLOW = "said nothing for 1 s", "sends too slowly"


@pytest.mark.parametrize(
    ("behave", "stream", "why"),
    [
        (nothing, False, SILENT),
        (nothing, True, SILENT),
        (head_alone, False, SILENT),
        (head_alone, True, SILENT),
        (head_drips, False, SLOW),
        (body_drips, False, SLOW),
        (body_drips, True, SLOW),
    ],
)
def test_what_does_not_end(
    service: CloudService, cloud: ScriptedCloud, behave: Behaviour, stream: bool, why: str
) -> None:
    """A client is told within the time that was set, and the slot is free."""
    cloud.behave = behave
    cloud.asked = 0
    cloud.left.clear()
    began = time.monotonic()
    told = service.ask(stream=stream)
    # Twice the silence, and what a busy machine takes.
    assert time.monotonic() - began < 2 * SILENCE + 3
    begun = stream and behave in (head_alone, body_drips)
    assert told.status_code == (200 if begun else 503)
    error = json.loads(told.text.removeprefix("data: "))["error"]
    assert error["code"] == "not_ready"
    assert why in error["message"]
    # It was not asked to do the same work again.
    assert cloud.asked == 1
    service.wait(lambda: service.figure(IN_USE) == 0, 5)
    cloud.behave = answer
    assert service.ask().status_code == 200


def breaks_inside(visitor: Visitor, _: dict[str, Any]) -> None:
    visitor.head("text/event-stream")
    visitor.wfile.write(b'event: error\ndata: { "error": {"message": "out of order"}}\n\n')


@pytest.mark.parametrize(
    ("behave", "stream", "why"),
    [(nothing, False, "said nothing"), (breaks_inside, True, "says: out of order")],
)
def test_one_that_fails_again_and_again(
    service: CloudService, cloud: ScriptedCloud, behave: Behaviour, stream: bool, why: str
) -> None:
    """It is left alone, so that nobody waits for it; and asked again after that."""
    cloud.behave = behave
    for _ in range(3):
        event = service.ask(stream=stream).text.strip().removeprefix("data: ")
        assert why in json.loads(event)["error"]["message"]
    service.wait(lambda: service.status("/readyz") == 503, 5)
    cloud.behave = answer
    cloud.asked = 0
    began = time.monotonic()
    told = service.ask()
    assert time.monotonic() - began < SILENCE
    assert told.status_code == 503
    assert int(told.headers["Retry-After"]) > 0
    assert "failed 3 times in a row and is left alone" in told.json()["error"]["message"]
    assert cloud.asked == 0
    service.wait(lambda: service.status("/readyz") == 200, 10)
    assert service.ask().status_code == 200


def slow_but_alive(visitor: Visitor, _: dict[str, Any]) -> None:
    """Whole events, each within the time, all of them together not."""
    visitor.head("text/event-stream")
    for _number in range(8):
        for part in (b": still", b" at it\n", b"\n"):
            visitor.wfile.write(part)
            time.sleep(SILENCE / 8)
    visitor.wfile.write(b"data: [DONE]\n\n")


def test_a_stream_that_is_slow_but_alive(service: CloudService, cloud: ScriptedCloud) -> None:
    cloud.behave = slow_but_alive
    told = service.ask(stream=True)
    assert told.text.endswith("data: [DONE]\n\n")
    assert "error" not in told.text
