# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What was asked and answered, for the log of a service whose owner switched that on."""

from __future__ import annotations

import json
import logging
from typing import Any

from nas_assistant.logs import log

# Characters of a question, and of an answer. Docker cuts lines of more than 16 KiB in pieces.
LONGEST = 2000
_LEFT_OUT = " […] "
# So that a key is never cut in two, of which one half would not be known for one.
_LONGEST_SECRET = 512
_HIDDEN = "***"


class Transcript:
    """Of one request, whose checked body is ``body``. ``secret``: what it showed as its key, which
    is left out of all texts.
    """

    def __init__(self, body: bytes, secret: str) -> None:
        self._secret = secret
        asked = self._hide(_question(json.loads(body)))
        half = (LONGEST - len(_LEFT_OUT)) // 2
        # Of a conversation, how it began and what was asked last.
        whole = len(asked) <= LONGEST
        self._asked = asked if whole else asked[:half] + _LEFT_OUT + asked[-half:]
        self._answer = ""
        self._model, self._served_by = "", ""

    def begin(self, model: str, served_by: str) -> None:
        """Note who answers from now on, in whole."""
        self._model, self._served_by, self._answer = model, served_by, ""

    def feed(self, data: bytes) -> None:
        """See an answer, or some whole events of one."""
        for line in [data] if data.lstrip().startswith(b"{") else data.split(b"\n"):
            if len(self._answer) < LONGEST + _LONGEST_SECRET:
                self._answer += _written(line.removeprefix(b"data:"))[: LONGEST + _LONGEST_SECRET]

    def log(self, request_id: str, key: str) -> None:
        """Log it all in one line."""
        log(
            logging.INFO,
            "text",
            request_id=request_id,
            key=key,
            model=self._model or None,
            served_by=self._served_by or None,
            asked=self._asked,
            answer=self._hide(self._answer)[:LONGEST],
        )

    def _hide(self, text: str) -> str:
        # What no encoding knows, such as half of a surrogate pair, could not be written.
        known = text.encode(errors="replace").decode()
        if not self._secret:
            return known
        hidden = known.replace(self._secret, _HIDDEN)
        # The beginning of one more, at which the text was cut or the answer ended.
        begun = next(
            (end for end in range(len(self._secret), 3, -1) if hidden.endswith(self._secret[:end])),
            0,
        )
        return hidden[:-begun] + _HIDDEN if begun else hidden


def _question(fields: dict[str, Any]) -> str:
    """What is meant for the model, as text. ``fields`` are those of a checked request."""
    if "messages" in fields:
        return "\n".join(f"{each['role']}: {_said(each)}" for each in fields["messages"])
    texts = fields.get("input") or [fields[name] for name in ("prompt", "query") if name in fields]
    return "\n".join([*texts, *fields.get("documents", [])])


def _said(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, list):
        content = "".join(part["text"] for part in content)
    return "".join([message.get("reasoning_content") or "", content, *_calls(message)])


def _written(data: bytes) -> str:
    """The text in an answer, or in an event of one; none where there is none. An upstream may have
    sent anything.
    """
    try:
        choices = json.loads(data)["choices"]
        found: list[Any] = []
        for choice in choices:
            part = choice.get("delta") or choice.get("message") or {}
            found += [part.get("reasoning_content"), part.get("content"), choice.get("text")]
            found += _calls(part)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""
    return "".join(each for each in found if isinstance(each, str))


def _calls(message: dict[str, Any]) -> list[str]:
    """What a message calls, and with what."""
    functions = [call.get("function") or {} for call in message.get("tool_calls") or []]
    parts = [each.get(name) for each in functions for name in ("name", "arguments")]
    return [part for part in parts if isinstance(part, str)]
