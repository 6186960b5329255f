# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What is changed in an answer's bytes on their way to the client. Inside a generated text the
quotes would be escaped: nothing that a model writes can be taken for what is looked for here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from nas_assistant.errors import ApiError

_NO_CHOICES = re.compile(rb'"choices":\s*\[\]')
_THEIRS = re.compile(rb'"served_by"\s*:')
_ERROR_EVENT = re.compile(rb"^event:[ ]*error", re.MULTILINE)
_USAGE = re.compile(rb'"usage":\s*\{(\s*\})?')


def say_who(data: bytes, served_by: str) -> bytes:
    """Note in the figures of an answer who gave it."""
    if b'"usage"' not in data:
        return data
    # An upstream may be one of us, and say so of itself.
    data = _THEIRS.sub(b'"upstream_served_by":', data)
    who = b'"usage":{"served_by":"%s"' % served_by.encode()
    return _USAGE.sub(lambda found: who + (b"}" if found[1] else b","), data)


def without_usage(events: bytes) -> bytes:
    """Leave out a stream's figures: a chat's event with figures has no text, and one with text no
    figures.
    """
    if not _NO_CHOICES.search(events):
        return events
    return b"\n\n".join(event for event in events.split(b"\n\n") if not _NO_CHOICES.search(event))


def rewrite(events: bytes, explain: Callable[[bytes], ApiError]) -> tuple[bytes, int]:
    """Give errors in a stream our shape. Returns the events and the status of the last error, 0
    where there is none.
    """
    if b'"error"' not in events and not _ERROR_EVENT.search(events):
        return events, 0
    rewritten, status = [], 0
    for event in events.split(b"\n\n"):
        data = _error_in(event)
        if data is not None:
            error = explain(data)
            event, status = b"data: " + error.body(), error.status
        rewritten.append(event)
    return b"\n\n".join(rewritten), status


def _error_in(event: bytes) -> bytes | None:
    """What an event says of an error; None where it is none."""
    fields = [line.partition(b":")[::2] for line in event.split(b"\n")]
    # The engine has had errors as a field of their own.
    data = b"\n".join(value.lstrip() for name, value in fields if name in (b"data", b"error"))
    if any(name == b"event" and value.strip() == b"error" for name, value in fields):
        return data
    if b'"error"' not in data:
        return None
    try:
        found: Any = json.loads(data)
    except ValueError:
        return None
    return data if isinstance(found, dict) and found.get("error") else None
