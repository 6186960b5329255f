# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What an answer took, read off the bytes of the engine while they pass."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

from nas_assistant.engine import Outcome

# An object of figures, with one level of objects in it. In a generated text the quotes would be
# escaped, so nothing that a model writes can be taken for it.
_FIGURES = rb'"%s":\s*(\{(?:[^{}]|\{[^{}]*\})*\})'
_USAGE = re.compile(_FIGURES % b"usage")
_TIMINGS = re.compile(_FIGURES % b"timings")
# Where the engine did not come to say: about so many bytes of a request are a token.
_BYTES_PER_TOKEN = 4


class Meter:
    """Counts one answer. ``request_bytes``: of what the engine was sent."""

    def __init__(self, request_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()
        self._request_bytes = request_bytes
        self._first: float | None = None
        self._pieces = 0
        self._usage: dict[str, Any] = {}
        self._timings: dict[str, Any] = {}

    def feed(self, data: bytes) -> None:
        """See a body, or some whole events of a stream."""
        if self._first is None:
            self._first = self._clock() - self._started
        self._pieces += data.count(b"\n\n")
        if b'"usage"' in data:
            self._usage = _last(_USAGE, data) or self._usage
        if b'"timings"' in data:
            self._timings = _last(_TIMINGS, data) or self._timings

    def outcome(self, status: int) -> Outcome:
        """What is known now. An answer that was cut off counts by its pieces."""
        prompt = _whole(self._usage.get("prompt_tokens"), self._request_bytes // _BYTES_PER_TOKEN)
        writing = _whole(self._timings.get("predicted_ms"), 0) / 1000
        first = self._first
        if first is not None and not self._pieces:
            # A whole answer comes when all of it is written.
            first = max(0.0, first - writing)
        return Outcome(
            status=status,
            prompt_tokens=prompt,
            completion_tokens=_whole(self._usage.get("completion_tokens"), self._pieces),
            cached_tokens=min(prompt, _whole(self._timings.get("cache_n"), 0)),
            first_seconds=first,
            writing_seconds=writing,
        )


def _last(pattern: re.Pattern[bytes], data: bytes) -> dict[str, Any]:
    for found in reversed(pattern.findall(data)):
        try:
            figures = json.loads(found)
        except ValueError:
            continue
        if isinstance(figures, dict):
            return figures
    return {}


def _whole(value: Any, otherwise: int) -> int:
    return int(value) if isinstance(value, int | float) and value >= 0 else otherwise
