# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The bodies of requests: how much a worker reads of one, and holds of all of them.

Nothing else bounds them before a request is admitted, and what they take is in the sum that the
container's memory must hold (see memory.py).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request

from nas_assistant.errors import ApiError
from nas_assistant.settings import BESIDE_TEXT, MAX_BODY, MOST_HELD

_BODY_SECONDS = 60
# What the kernel's and uvicorn's buffers hold of a connection anyway: it is never turned away.
_SMALL = 64 << 10
# JSON may write a letter of one byte with six.
_ESCAPED = 6
_ESCAPE = re.compile(rb"(?<!\\)\\u")


@dataclass(frozen=True)
class Longest:
    """Bytes of text that any model can take of a request, and what to say to who sends more."""

    size: int
    error: ApiError

    def may_be(self, length: int) -> bool:
        """Whether a body of so many bytes may be short enough, however it is written."""
        return length <= self.size * _ESCAPED + BESIDE_TEXT

    def may_hold(self, body: bytes | bytearray) -> bool:
        """Whether a body may be, by what it is written with: JSON is read at 30 times its size."""
        most = self.size + BESIDE_TEXT
        return len(body) <= most or (
            len(body) - (_ESCAPED - 1) * sum(1 for _ in _ESCAPE.finditer(body)) <= most
        )


class Share:
    """What one request has of it."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._size = 0

    def hold(self, size: int) -> None:
        """Have so many bytes in the place of those before. Raises ApiError (429)."""
        self._bodies.held += size - self._size
        self._size = size
        if size > _SMALL and self._bodies.held > MOST_HELD:
            raise ApiError(
                429,
                "too_many_bytes",
                "Too many long requests are there already. Try again later.",
                headers={"Retry-After": "1"},
            )


class Bodies:
    """Of all requests of a worker together, until they are answered. ``held``: bytes."""

    def __init__(self) -> None:
        self.held = 0

    @contextmanager
    def share(self) -> Iterator[Share]:
        """For one request, as long as it is there."""
        share = Share(self)
        try:
            yield share
        finally:
            share.hold(0)


async def read_body(request: Request, longest: Longest, share: Share) -> bytes:
    """The whole body. Raises ApiError."""
    too_large = ApiError(413, "request_too_large", f"The body is larger than {MAX_BODY >> 20} MiB.")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > MAX_BODY:
        raise too_large
    if not longest.may_be(int(length)):
        raise longest.error
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.stream():
                share.hold(len(body) + len(chunk))
                body += chunk
                if len(body) > MAX_BODY:
                    raise too_large
                if not longest.may_be(len(body)):
                    raise longest.error
    except TimeoutError as error:
        raise ApiError(
            408, "request_timeout", f"The body did not arrive within {_BODY_SECONDS} s."
        ) from error
    except ClientDisconnect as error:
        raise ApiError(
            400, "client_closed_request", "The client left before the body was complete."
        ) from error
    if not longest.may_hold(body):
        raise longest.error
    return bytes(body)
