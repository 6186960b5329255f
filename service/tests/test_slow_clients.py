# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Clients that take their time, and thousands of connections on which nothing is asked, beside the
others that the real service answers meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import selectors
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nas_assistant.keys import Role

from .cloud_process import CHAT, CloudService, ScriptedCloud, Visitor, answer
from .conftest import SECRET, api_key
from .test_state_faults import end

# What a container has where nobody says otherwise.
DESCRIPTORS = 4096
IDLE = 3000
# What one of them costs is about 12 KiB; more than a head may have would be a leak.
MOST_MEMORY = IDLE * (48 << 10)
PATIENCE = 5.0  # of the others: seconds


@pytest.fixture
def cloud() -> Iterator[ScriptedCloud]:
    cloud = ScriptedCloud()
    yield cloud
    cloud.close()


@pytest.fixture
def service(cloud: ScriptedCloud, tmp_path: Path) -> Iterator[CloudService]:
    service = CloudService(tmp_path, cloud, parallel=1)
    yield service
    end(service)


def limited(service: CloudService, descriptors: int) -> None:
    service.prefix = ["prlimit", f"--nofile={descriptors}:{descriptors}"]


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Enough for the test itself."""
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = IDLE + 200
    if most != resource.RLIM_INFINITY and most < wanted:
        pytest.skip(f"only {most} descriptors may be had here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before, wanted), most))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))


def descriptors(service: CloudService) -> dict[int, int]:
    return {
        pid: len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in service.pids("nas_assistant")
    }


def memory(service: CloudService) -> int:
    """Bytes that its processes have for themselves."""
    sizes = []
    for pid in service.pids("nas_assistant"):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        sizes += [int(line.split()[1]) << 10 for line in lines if line.startswith("Private_Dirty:")]
    return sum(sizes)


def connect(service: CloudService, number: int, data: bytes) -> socket.socket:
    """Every second one as the proxy does."""
    if number % 2:
        client = socket.create_connection(("127.0.0.1", service.port), 10)
    else:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(10)
        client.connect(str(service.socket))
    with contextlib.suppress(OSError):
        client.sendall(data)
    return client


HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: nas\r\nAuthorization: Bearer {SECRET}\r\n".encode()
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: nas\r\n\r\n"
# Nothing, half a head, and one request with nothing after it.
IDLERS = [b"", HEAD, HEALTH]


def answered_soon(service: CloudService) -> bool:
    began = time.monotonic()
    return service.ask().status_code == 200 and time.monotonic() - began < PATIENCE


def wait_for_end(clients: list[socket.socket], seconds: float) -> int:
    """How many the service hung up on by then."""
    ended, deadline = 0, time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for client in clients:
            client.setblocking(False)
            selector.register(client, selectors.EVENT_READ, client)
        while selector.get_map() and time.monotonic() < deadline:
            for event, _ in selector.select(1):
                client = event.data
                with contextlib.suppress(ConnectionError):
                    if client.recv(65536):
                        continue
                selector.unregister(client)
                ended += 1
    return ended


@pytest.mark.usefixtures("many_descriptors")
def test_thousands_of_idle_connections(service: CloudService) -> None:
    """Others are answered at once, and afterwards nothing of them is left."""
    limited(service, DESCRIPTORS)
    service.patch(connection__HEAD_SECONDS=7)
    service.start()
    service.wait(lambda: len(service.pids("-m gunicorn")) == 3)
    assert answered_soon(service)
    before, small = descriptors(service), memory(service)
    with contextlib.ExitStack() as stack:
        idle = [
            stack.enter_context(connect(service, number, IDLERS[number % len(IDLERS)]))
            for number in range(IDLE)
        ]
        assert answered_soon(service)
        assert sum(descriptors(service).values()) - sum(before.values()) > IDLE / 2
        assert memory(service) - small < MOST_MEMORY
        assert wait_for_end(idle, 30) == IDLE
    assert answered_soon(service)
    # One connection to the cloud is kept, another worker's may be new.
    service.wait(lambda: sum(descriptors(service).values()) <= sum(before.values()) + 2, 10)
    assert memory(service) - small < MOST_MEMORY
    assert descriptors(service).keys() == before.keys()
    assert not [line for line in service.log if line["level"] in ("error", "warning")]


@pytest.mark.skipif(
    not os.environ.get("NAS_ASSISTANT_FULL"), reason="one of those that make test-full runs"
)
def test_more_connections_than_there_can_be(service: CloudService) -> None:
    """Those that have asked nothing for longest make room for who does."""
    limited(service, 200)
    service.patch(connection__HEAD_SECONDS=600)
    service.start()
    service.wait(lambda: len(service.pids("-m gunicorn")) == 3)
    before = descriptors(service)
    most = sum(before.values()) + 2 * 200 / 2
    with contextlib.ExitStack() as stack:
        for number in range(600):
            stack.enter_context(connect(service, number, b""))
            # Not all at once: a queue of more than there are descriptors is looked at again after
            # a second only.
            if number % 20 == 0:
                time.sleep(0.1)
            if number % 100 == 99:
                assert answered_soon(service)
        service.wait(lambda: sum(descriptors(service).values()) < most, 10)
    assert descriptors(service).keys() == before.keys()
    assert not [line for line in service.log if line["level"] == "error"]


def drip(service: CloudService, before: bytes) -> tuple[float, bytes]:
    """Send a byte now and then until the service hangs up; return when that was, and its answer."""
    began, answered = time.monotonic(), b""
    with connect(service, 1, before) as client:
        client.setblocking(False)
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - began < 20:
                with contextlib.suppress(BlockingIOError):
                    while part := client.recv(65536):
                        answered += part
                    break
                client.send(b"x")
                time.sleep(0.1)
    return time.monotonic() - began, answered


def test_what_comes_byte_by_byte(service: CloudService) -> None:
    """That something comes keeps no clock from running: not on a new connection, not on one that
    was used, not amid a body.
    """
    service.patch(connection__HEAD_SECONDS=2, bodies___BODY_SECONDS=3)
    service.start()
    starts = [b"", HEALTH, HEAD + b"Content-Length: 9000\r\n\r\n"]
    with ThreadPoolExecutor() as pool:
        new, used, body = pool.map(lambda start: drip(service, start), starts)
    assert new[1] == b""
    assert used[1].startswith(b"HTTP/1.1 200 ")
    assert body[1].startswith(b"HTTP/1.1 408 ")
    assert b'"code": "request_timeout"' in body[1]
    # After it was told, who sends a body has as long as who sends a head.
    for (took, _), seconds in zip((new, used, body), (2, 2, 5), strict=True):
        assert seconds - 0.5 < took < seconds + 4


def endless(visitor: Visitor, _: dict[str, Any]) -> None:
    visitor.head("text/event-stream")
    piece = json.dumps({"choices": [{"index": 0, "delta": {"content": "x" * 10_000}}]})
    while True:
        visitor.wfile.write(f"data: {piece}\n\n".encode())


WHOLE = json.dumps({"object": "chat.completion", "choices": [], "padding": "x" * (6 << 20)})


def whole(visitor: Visitor, _: dict[str, Any]) -> None:
    visitor.head("application/json", len(WHOLE))
    visitor.wfile.write(WHOLE.encode())


@pytest.mark.parametrize("then", ["keep-alive", "close"])
def test_a_client_that_reads_slowly_has_all_of_it(
    service: CloudService, cloud: ScriptedCloud, then: str
) -> None:
    """An answer that is written counts as complete, though the client is far from its end."""
    service.patch(connection__HEAD_SECONDS=1, connection__READ_SECONDS=1)
    service.start()
    cloud.behave = whole
    body = json.dumps({"messages": [{"role": "user", "content": "Hi"}]}).encode()
    request = HEAD + f"Connection: {then}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    began, answered = time.monotonic(), 0
    with connect(service, 0, request) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        while part := client.recv(1 << 17):
            answered += len(part)
            time.sleep(0.06)
        took = time.monotonic() - began
    assert answered > len(WHOLE)
    # Longer than either patience; then the connection goes as any other.
    assert 3 < took < 15


def test_a_client_that_does_not_read(service: CloudService, cloud: ScriptedCloud) -> None:
    """Its slot goes to others."""
    service.patch(connection__READ_SECONDS=2)
    service.allow(api_key("reader", "sk-reader", role=Role.USER, parallel=1))
    service.start()
    cloud.behave = endless
    body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "stream": True}).encode()
    request = HEAD.replace(SECRET.encode(), b"sk-reader")
    request += f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    in_use = 'nas_assistant_slots_in_use{model="default"}'
    with connect(service, 0, request):
        service.wait(lambda: service.figure(in_use) == 1, 10)
        # The only slot.
        service.wait(lambda: service.figure(in_use) == 0, 20)
        assert cloud.left.wait(10)
        cloud.behave = answer
        assert service.ask("sk-reader").status_code == 200
    ended = 'nas_assistant_requests_total{key="reader",model="default",status="499"}'
    assert service.figure(ended) == 1
    assert not [line for line in service.log if line["level"] == "error"]
