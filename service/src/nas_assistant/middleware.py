# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What happens to every request: a request id, a line in the log, the API key, and errors in one
shape.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nas_assistant.engine import CLIENT_GONE, Failure
from nas_assistant.errors import ApiError
from nas_assistant.keys import KeyRing, Role
from nas_assistant.logs import log

# Printable, short, and without anything that could forge a log line or a header.
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
KEY = "nas_assistant.key"
REQUEST_ID = "nas_assistant.request_id"
# The code of the error that a request was answered with, and whether it had a slot.
ERROR = "nas_assistant.error"
HAD_SLOT = "nas_assistant.had_slot"
# The header that says who gave an answer, see Model.served_by.
SERVED_BY = "x-served-by"


def error_response(error: ApiError, scope: Scope) -> Response:
    """``error`` as a response in the API's error shape, to the request of ``scope``."""
    scope[ERROR] = error.code
    return Response(error.body(), error.status, error.headers, "application/json")


def credentials(scope: Scope) -> tuple[str, str]:
    """What a request shows: the scheme, and the secret."""
    scheme, _, secret = Headers(scope=scope).get("authorization", "").partition(" ")
    return scheme, secret.strip()


class RequestLog:
    """Gives each request an id, logs it when it is over, and turns a crash into a clean 500. The
    books are told of errors by ``note``.
    """

    def __init__(self, app: ASGIApp, access_log: bool, note: Callable[[Failure], None]) -> None:
        self._app = app
        self._note = note
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex
        scope[REQUEST_ID] = request_id
        status, sent = CLIENT_GONE, 0
        served_by = None

        async def counting_send(message: Message) -> None:
            nonlocal status, sent, served_by
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                served_by = headers.get(SERVED_BY)
            else:
                sent += len(message.get("body", b""))
            await send(message)

        try:
            names = {name for name, _ in scope["headers"]}
            if {b"content-length", b"transfer-encoding"} <= names:
                await error_response(_two_lengths(), scope)(scope, receive, counting_send)
            else:
                await self._app(scope, receive, counting_send)
        except Exception:
            logging.getLogger("nas_assistant").exception(
                "a request failed",
                extra={"event": "request_failed", "fields": {"request_id": request_id}},
            )
            error = ApiError(500, "internal_error", "The service failed; its log says more.")
            failure = error_response(error, scope)
            if status == CLIENT_GONE:
                await failure(scope, receive, counting_send)
            elif scope["path"].startswith("/v1/"):
                self._note(Failure(500, error.code, had_slot=True))
        finally:
            self._tell(scope, status)
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
                    key=key.name if (key := scope.get(KEY)) else None,
                    served_by=served_by,
                )

    def _tell(self, scope: Scope, status: int) -> None:
        code, had_slot = scope.get(ERROR), scope.get(HAD_SLOT, False)
        # What had a slot ends there.
        ended = had_slot and code != "internal_error"
        if status >= 400 and code and not ended and scope["path"].startswith("/v1/"):
            self._note(Failure(status, code, had_slot))


def _two_lengths() -> ApiError:
    """What a proxy that believes the one, and a server that believes the other, take for two
    requests (RFC 9112, 6.1).
    """
    return ApiError(
        400,
        "invalid_http",
        "A request has a Content-Length or a Transfer-Encoding, not both.",
        headers={"Connection": "close"},
    )


class ApiKeyGuard:
    """Lets nothing under /v1 through without a key, whether the path exists or not; and nothing
    under /metrics and /admin without an admin's, save the page itself, which asks for it.
    """

    def __init__(self, app: ASGIApp, ring: KeyRing) -> None:
        self._app = app
        self._ring = ring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        if scope["type"] == "http":
            path = scope["path"] + "/"
            page = path in ("/admin/", "/admin//")
            for_admins = path.startswith(("/metrics/", "/admin/")) and not page
            if for_admins or path.startswith("/v1/"):
                error = self._refusal(scope, for_admins)
                if error is not None:
                    await error_response(error, scope)(scope, receive, send)
                    return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope, for_admins: bool) -> ApiError | None:
        """Note the request's key; return what is wrong with it."""
        scheme, secret = credentials(scope)
        key = self._ring.find(secret) if scheme.lower() == "bearer" else None
        if key is None or key.expired(datetime.now(UTC)):
            message = "You didn't provide an API key."
            if key is not None:
                message = f"The API key '{key.name}' was valid until {key.expires}."
            elif scheme:
                message = "Incorrect API key provided."
            return ApiError(
                401,
                "invalid_api_key",
                f"{message} Send one as 'Authorization: Bearer KEY'.",
                headers={"WWW-Authenticate": "Bearer"},
            )
        scope[KEY] = key
        if for_admins and key.role is not Role.ADMIN:
            return ApiError(
                403,
                "admin_only",
                f"The API key '{key.name}' is a user's; this needs an admin's.",
            )
        return None
