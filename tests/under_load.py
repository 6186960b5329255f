# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""All that clients can ask of an assistant at once, while its container has no more memory than was
worked out for it: under either version of control groups nothing is killed.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx

On = Callable[[str], str]
Post = Callable[[float], int]
CONTAINER = "nas-assistant"
CHAT = "/v1/chat/completions"
LEFT = 0  # in the place of a status: whoever asked has left
# Whatever is too much is told so; nothing fails.
FINE = {LEFT, 200, 400, 413, 429}
# As the container sees its own group, whichever version of them that is.
_EVENTS = "/sys/fs/cgroup/memory.events /sys/fs/cgroup/memory/memory.oom_control"
KILLS = f"docker exec {CONTAINER} cat {_EVENTS} 2>/dev/null | sed -n 's/^oom_kill //p'"
RESTARTS = "docker inspect --format '{{.RestartCount}} {{.State.Pid}} {{.State.StartedAt}}' "
LIMITS = "docker inspect --format '{{.HostConfig.Memory}} {{.HostConfig.MemorySwap}}' "
# Slots and places in the queue, as the role has them unless told otherwise.
SLOTS, QUEUE = 4, 32


def asks(client: httpx.Client) -> Iterator[tuple[str, Post]]:
    """Requests, each by what it is."""

    def post(body: bytes | dict[str, Any]) -> Post:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}

        def ask(seconds: float) -> int:
            try:
                timeout = httpx.Timeout(seconds, connect=30)
                answer = client.post(CHAT, content=content, headers=headers, timeout=timeout)
            except httpx.TimeoutException:
                return LEFT
            return answer.status_code

        return ask

    def text(content: str, **more: Any) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": content}], "max_tokens": 4, **more}

    names = {f"field{number}": {"type": "string", "maxLength": 20} for number in range(20)}
    schema = {"type": "object", "properties": names, "required": list(names)}
    form = {"type": "json_schema", "json_schema": {"name": "form", "schema": schema}}
    for number in range(4):
        yield "schema", post(text(f"Fill in form {number}.", response_format=form))
    # The longest that the engine is handed, which finds that they are too long; the first of them
    # come before all slots are taken for long. Then contexts that are full: seven tokens each time.
    # No two begin alike, so that nothing is shared.
    lengths = [("long", "x y " * 24_000)] * (SLOTS + QUEUE + 16)
    lengths[SLOTS:SLOTS] = [("full", "The cat sat on the mat. " * 270)] * SLOTS
    for number, (kind, words) in enumerate(lengths):
        yield kind, post(text(f"{number}: {words}"))
    # What costs most for its length: of the largest that Nginx passes on, and of the largest that
    # is read as JSON.
    for size in (*[(4 << 20) - 1024] * 50, *[255 << 10] * 20):
        yield f"{size >> 10} KiB", post(b'{"messages":[' + b"{}," * (size // 3 - 10) + b"{}]}")


def load(client: httpx.Client, seconds: float) -> Counter[tuple[str, int]]:
    """Ask for all of it at once; return how often which kind ended with which status. Clients leave
    when the time is over.
    """
    end = time.monotonic() + seconds
    wishes = list(asks(client))

    def ask(wish: tuple[str, Post]) -> tuple[str, int]:
        kind, post = wish
        return kind, post(max(1.0, end - time.monotonic()))

    # Fewer than Nginx has at once of one address (proxy_limits), so that all that there are get in.
    with ThreadPoolExecutor(95) as pool:
        return Counter(pool.map(ask, wishes))


@contextmanager
def no_more_memory_than(on: On, size: int) -> Iterator[None]:
    """Have the kernel hold the container that runs to so many bytes."""
    memory, swap = map(int, on(LIMITS + CONTAINER).split())
    update = f"docker update --memory {{}}b --memory-swap {{}}b {CONTAINER}"
    on(update.format(size, size + swap - memory))
    try:
        yield
    finally:
        on(update.format(memory, swap))


def check_nothing_is_killed(
    on: On, client: httpx.Client, seconds: float
) -> Counter[tuple[str, int]]:
    """Fail where anything was killed, started again, or answered with an error of the service."""
    # The model is in memory, and no other one.
    status = client.post(CHAT, json={"messages": [{"role": "user", "content": "Hi"}]}).status_code
    assert status == 200
    told = client.get("/admin/status").json()
    (model,) = [each for each in told["models"] if each["in_memory"]]
    assert (model["name"], model["slots"], told["queue"]) == ("default", SLOTS, QUEUE)
    need = -(-model["memory"]["total"] // (1 << 20)) << 20
    assert need < told["memory"]["limit"]
    before = on(KILLS), on(RESTARTS + CONTAINER)
    assert before[0].isdecimal(), "the kernel does not say what it killed"
    with no_more_memory_than(on, need):
        seen = load(client, seconds)
        short = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}
        after = client.post(CHAT, json=short)
    assert (on(KILLS), on(RESTARTS + CONTAINER)) == before, seen
    assert {status for _, status in seen} <= FINE, seen
    assert after.status_code == 200, after.text
    # It was too much at each place: for a slot and the queue, for a context, and to be read.
    assert {400, 429} <= {status for _, status in seen}, seen
    assert {status for kind, status in seen if kind.endswith("KiB")} <= {LEFT, 400, 413, 429}, seen
    return seen
