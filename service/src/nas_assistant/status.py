# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The state of the service as one JSON object, for the admin page."""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from nas_assistant import __version__
from nas_assistant.cgroup import available_memory, used_memory
from nas_assistant.checks import CheckedModel
from nas_assistant.desk import Desk
from nas_assistant.engines import Engines
from nas_assistant.settings import Settings
from nas_assistant.upstreams import Upstreams

_KEPT = 20


class Status:
    """Gathers it. From its making on, it keeps the last warnings and errors of this process."""

    def __init__(
        self, settings: Settings, desk: Desk, engines: Engines, upstreams: Upstreams
    ) -> None:
        self._settings = settings
        self._desk = desk
        self._engines = engines
        self._upstreams = upstreams
        self._started = time.time()
        self._errors = _LastErrors()
        logging.getLogger("nas_assistant").addHandler(self._errors)

    def text(self, reason: str, degraded: str = "") -> str:
        """All of it. Times are UTC, sizes bytes; ``reason`` says why nothing can be asked,
        ``degraded`` why a cloud model answers for the chosen one, and ``not_written`` why usage is
        counted in memory alone.
        """
        limit, source = available_memory()
        used = self._desk.used_today()
        return json.dumps(
            {
                "version": __version__,
                "started": _moment(self._started),
                "reason": reason,
                "degraded": degraded,
                "log_text": self._settings.log_text,
                "models": [
                    self._model(name, model) for name, model in self._engines.models.items()
                ],
                "unusable": dict(self._engines.unusable),
                "mode": self._settings.mode,
                "upstreams": self._upstreams.report(),
                "waiting": self._desk.waiting,
                "queue": self._settings.queue,
                "memory": {"used": used_memory(), "limit": limit, "limit_is": source},
                "keys": [
                    {
                        **{name: value for name, value in asdict(key).items() if name != "sha256"},
                        "used_today": asdict(used[key.name]),
                    }
                    for key in self._desk.api_keys
                ],
                "not_written": self._desk.complaint,
                "errors": list(self._errors.entries),
            }
        )

    def _model(self, name: str, model: CheckedModel) -> dict[str, Any]:
        return {
            "name": name,
            "file": model.settings.file,
            "kind": model.model.kind,
            "in_memory": self._engines.in_memory(name),
            "pinned": model.settings.pinned,
            "context": model.settings.context,
            "threads": model.threads,
            "slots": self._settings.slots,
            "slots_in_use": self._desk.active(name),
            "memory": {**asdict(model.need), "total": model.need.total},
            **self._desk.speed(name),
            "served": asdict(self._desk.served(name)),
        }


class _LastErrors(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.entries: deque[dict[str, str]] = deque(maxlen=_KEPT)

    def emit(self, record: logging.LogRecord) -> None:
        event = str(getattr(record, "event", record.name))
        self.entries.append(
            {
                "time": _moment(record.created),
                "event": event,
                "model": str(getattr(record, "fields", {}).get("model", "")),
                "message": record.getMessage(),
            }
        )


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
