# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What happens to every request: a request id, a line in the log, the API key, and errors in one
shape.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nas_assistant.errors import ApiError
from nas_assistant.logs import log
from nas_assistant.settings import ApiKey

# Printable, short, and without anything that could forge a log line or a header.
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
KEY_NAME = "nas_assistant.key"
# nginx's word for a client that went away before it was answered.
CLIENT_GONE = 499


def error_response(error: ApiError) -> Response:
    """``error`` as a response in the API's error shape."""
    return Response(error.body(), error.status, error.headers, "application/json")


class RequestLog:
    """Gives each request an id, logs it when it is over, and turns a crash into a clean 500."""

    def __init__(self, app: ASGIApp, access_log: bool) -> None:
        self._app = app
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex
        status, sent = CLIENT_GONE, 0

        async def counting_send(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            else:
                sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, counting_send)
        except Exception:
            logging.getLogger("nas_assistant").exception(
                "a request failed",
                extra={"event": "request_failed", "fields": {"request_id": request_id}},
            )
            if status == CLIENT_GONE:
                failure = error_response(
                    ApiError(500, "internal_error", "The service failed; its log says more.")
                )
                await failure(scope, receive, counting_send)
        finally:
            if self._access_log:
                log(
                    logging.INFO,
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    ms=round((time.perf_counter() - started) * 1000, 1),
                    bytes=sent,
                    request_id=request_id,
                    key=scope.get(KEY_NAME),
                )


class ApiKeyGuard:
    """Lets nothing under /v1 through without a key, whether the path exists or not."""

    def __init__(self, app: ASGIApp, keys: tuple[ApiKey, ...]) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        if scope["type"] == "http" and (scope["path"] + "/").startswith("/v1/"):
            scheme, _, secret = Headers(scope=scope).get("authorization", "").partition(" ")
            name = self._name_of(secret.strip()) if scheme.lower() == "bearer" else None
            if name is None:
                message = (
                    "Incorrect API key provided." if scheme else "You didn't provide an API key."
                )
                error = ApiError(
                    401,
                    "invalid_api_key",
                    f"{message} Send it as 'Authorization: Bearer KEY'.",
                    headers={"WWW-Authenticate": "Bearer"},
                )
                await error_response(error)(scope, receive, send)
                return
            scope[KEY_NAME] = name
        await self._app(scope, receive, send)

    def _name_of(self, secret: str) -> str | None:
        """The name of the key, found in a time that does not depend on the secret or on which key
        it is.
        """
        digest = hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(digest, key.digest):
                found = key.name
        return found
