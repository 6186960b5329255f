# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Logs: one JSON object a line on standard output, for every process of the service."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any


class JsonFormatter(logging.Formatter):
    """A record as one line: time (UTC), level, event, message and whatever is in ``fields``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, without its end."""
        entry: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": getattr(record, "event", record.name.partition(".")[0]),
        }
        message = record.getMessage()
        if message:
            entry["message"] = message
        entry.update(getattr(record, "fields", {}))
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


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
