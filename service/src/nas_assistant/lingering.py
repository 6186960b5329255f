# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Reads on after an answer that came before all of its request: one without a key, or too long.

The kernel drops an answer when a connection is closed while something lies in it unread, and a
proxy that still sends then takes the service for broken.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nas_assistant.settings import MAX_BODY

_SECONDS = 2.0
_IDLE_SECONDS = 1.0


class Lingering:
    """For at most so many seconds and bytes; the answer is sent at once."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        names = {name for name, _ in scope.get("headers", ())}
        # Who waits to be told to go on sends nothing unless somebody reads.
        if b"expect" in names or not names & {b"content-length", b"transfer-encoding"}:
            await self._app(scope, receive, send)
            return
        more = True

        async def noting_receive() -> Message:
            nonlocal more
            message = await receive()
            more = message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def read_on() -> None:
            left = MAX_BODY
            with suppress(TimeoutError):
                async with asyncio.timeout(_SECONDS):
                    while more and left > 0:
                        async with asyncio.timeout(_IDLE_SECONDS):
                            left -= len((await noting_receive()).get("body", b""))

        async def lingering_send(message: Message) -> None:
            is_last = message["type"] == "http.response.body" and not message.get("more_body")
            if is_last and more:
                await send({**message, "more_body": True})
                await read_on()
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        await self._app(scope, noting_receive, lingering_send)
