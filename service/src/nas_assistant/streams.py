# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What is changed in an answer's bytes on their way to the client. Inside a generated text the
quotes would be escaped: nothing that a model writes can be taken for what is looked for here.
"""

from __future__ import annotations

import re

from nas_assistant.errors import from_engine

_NO_CHOICES = re.compile(rb'"choices":\s*\[\]')
_THEIRS = re.compile(rb'"served_by"\s*:')
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


def rewrite(events: bytes) -> bytes:
    """Give errors in a stream our shape."""
    if b'{"error"' not in events:
        return events
    rewritten = []
    for event in events.split(b"\n\n"):
        name, _, data = event.partition(b":")
        if name in (b"data", b"error") and data.lstrip().startswith(b'{"error"'):
            event = b"data: " + from_engine(500, data).body()
        rewritten.append(event)
    return b"\n\n".join(rewritten)
