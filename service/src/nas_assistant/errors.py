# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The one error shape of the whole API, which is OpenAI's."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

# What llama.cpp says of a text that is read at once and does not fit into its batch.
_TOO_LONG = re.compile(r"input \((\d+) tokens\) is too large to process.*batch size: (\d+)")
# And of a schema that it takes at first.
_UNUSABLE = {
    "failed to parse grammar": "the engine can make no grammar of it",
    "Unexpected empty grammar stack": "there is no text that fits it",
}
# What is taken over of an error of an upstream, or of the engine, which may repeat the request.
_CODE = re.compile(r"[a-z_]{1,64}")
_LONGEST_MESSAGE = 500


class ApiError(Exception):
    """An error that a client sees. ``param`` names the request's field."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = dict(headers or {})

    @property
    def type(self) -> str:
        """The class of error, derived from the status as OpenAI does."""
        if self.status == 429:
            return "rate_limit_error"
        return "invalid_request_error" if self.status < 500 else "server_error"

    def body(self) -> bytes:
        """The JSON body: ``{"error": {"message", "type", "param", "code"}}``."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        # A message may repeat what a client sent, such as half of a surrogate pair.
        return json.dumps({"error": error}, ensure_ascii=False).encode(errors="replace")


def bad_request(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """A 400."""
    return ApiError(400, code, message, param=param)


def unavailable(reason: str) -> ApiError:
    """A 503: trying again later may work."""
    return ApiError(
        503,
        "not_ready",
        f"The assistant cannot answer now: {reason}.",
        headers={"Retry-After": "5"},
    )


def from_cloud(upstream: str, status: int, headers: Mapping[str, str], body: bytes) -> ApiError:
    """An upstream's error in our shape. ``body`` may be anything. Inside a stream, whose ``status``
    is 200, it may say what kind of error it is.
    """
    try:
        error: Any = json.loads(body)["error"]
        message, code = str(error["message"])[:_LONGEST_MESSAGE], error.get("code")
    except (ValueError, KeyError, TypeError, AttributeError):
        message, code, error = f"HTTP {status}" if status != 200 else "it failed", None, {}
    if status == 200:
        status = _status_of(code, error.get("type"))
    said = f"The cloud '{upstream}' says: {message}"
    if status == 429:
        wait = headers.get("Retry-After", "")
        wait = wait if wait.isdecimal() and len(wait) < 6 else "10"
        return ApiError(429, "upstream_busy", said, headers={"Retry-After": wait})
    if status in (400, 413, 422):
        known = isinstance(code, str) and _CODE.fullmatch(code)
        return bad_request(said, None, str(code) if known else "invalid_value")
    if status in (401, 403):
        # Whose key is meant must be clear, and what is wrong with it is its owner's business.
        said = f"The cloud '{upstream}' does not let this service in: its key is not good there"
    elif 300 <= status < 400:
        said = f"The cloud '{upstream}' has moved to another address"
    return ApiError(503, "upstream_error", said, headers={"Retry-After": "30"})


def _status_of(code: Any, kind: Any) -> int:
    """The status that an error would have had, had it come before the answer began."""
    if isinstance(code, int) and not isinstance(code, bool) and 400 <= code < 600:
        return code
    if code == "invalid_api_key" or kind in ("authentication_error", "permission_error"):
        return 401
    return 429 if kind == "rate_limit_error" else 500


def from_engine(status: int, body: bytes) -> ApiError:
    """llama.cpp's error, whose code is a number, in our shape. ``body`` may be anything."""
    try:
        error: Any = json.loads(body)["error"]
        message, kind = str(error["message"])[:_LONGEST_MESSAGE], str(error.get("type", ""))
        status = int(error.get("code", status))
    except (ValueError, KeyError, TypeError, AttributeError):
        message, kind = "the engine answered with something that is not its error format", ""
    if kind == "exceed_context_size_error":
        return bad_request(message, "messages", "context_length_exceeded")
    too_long = _TOO_LONG.search(message)
    if too_long:
        text = f"A text has {too_long[1]} tokens, and the model's context {too_long[2]}."
        return bad_request(text, None, "context_length_exceeded")
    _, mark, fault = message.partition("JSON schema error ")
    if not mark:
        fault = next((why for said, why in _UNUSABLE.items() if said in message), "")
    if fault:
        # Of the response_format, or of a tool.
        return bad_request(f"The JSON schema cannot be used: {fault}.", None, "invalid_json_schema")
    if status == 503:
        return unavailable(message)
    if 400 <= status < 500 and status not in (401, 403):
        return bad_request(message, None, "invalid_value")
    return ApiError(500, "engine_error", f"The engine failed: {message}")
