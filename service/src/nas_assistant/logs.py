# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Logs: one JSON object a line on standard output, for every process of the service."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from typing import Any


class JsonFormatter(logging.Formatter):
    """A record as one line: time (UTC), level, event, message and whatever is in ``fields``.

    ``quotes``: whether an exception has its own words in it, which may quote what somebody asked.
    """

    def __init__(self, *, quotes: bool = True) -> None:
        super().__init__()
        self._quotes = quotes

    def format(self, record: logging.LogRecord) -> str:
        """One line, without its end."""
        entry: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": getattr(record, "event", record.name.partition(".")[0]),
        }
        message = record.getMessage()
        error = record.exc_info[1] if record.exc_info else None
        if error and not self._quotes:
            # asyncio's next lines have the exception too.
            message = message.partition("\n")[0]
        if message:
            entry["message"] = message
        entry.update(getattr(record, "fields", {}))
        if error and not self._quotes:
            entry["traceback"] = _places(error)
        elif record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


def _places(error: BaseException) -> str:
    """What kind of exception it is and where it came from, the one before it first."""
    before = error.__cause__ or error.__context__
    places = "".join(traceback.format_tb(error.__traceback__))
    return f"{_places(before) if before else ''}{places}{type(error).__name__}\n"


def quote_nothing() -> None:
    """From now on, log of exceptions what they are and where they came from, not what they say."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(JsonFormatter(quotes=False))


def configure(level: str) -> None:
    """Send everything that is logged to standard output as JSON lines."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())


_logger = logging.getLogger("nas_assistant")


def log(level: int, event: str, message: str = "", **fields: object) -> None:
    """Log ``event`` (a fixed, searchable word), a message for people, fields for machines."""
    _logger.log(level, message, extra={"event": event, "fields": fields})
