# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The supervisor's books and report, real ones, around engines that never start."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import astuple
from pathlib import Path

from nas_assistant.admission import Admission
from nas_assistant.checks import Checked, CheckedModel
from nas_assistant.control import ControlServer
from nas_assistant.desk import Desk
from nas_assistant.engine import Kind, Model
from nas_assistant.engines import Engines
from nas_assistant.keys import ApiKey, KeyRing
from nas_assistant.memory import MIB, MemoryNeed
from nas_assistant.metrics import Metrics
from nas_assistant.settings import Settings
from nas_assistant.state import Ledger
from nas_assistant.status import Status
from nas_assistant.upstreams import Upstreams

_NEED = MemoryNeed(*(size * MIB for size in (95, 180, 128, 0, 40, 96, 160)))


class Service:
    """Every model of ``settings`` is a good one; one more is not. ``folder`` is for the state."""

    need = astuple(_NEED)

    def __init__(self, settings: Settings, folder: Path, keys: Iterable[ApiKey]) -> None:
        self.ledger = Ledger(folder)
        admission: Admission[tuple[int, int]] = Admission(settings.slots, settings.queue)
        self.desk = Desk(admission, KeyRing(keys), self.ledger, Metrics())
        models = {
            name: CheckedModel(model, folder / model.file, Model(name, Kind.CHAT, 1), _NEED, 2)
            for name, model in settings.models.items()
        }
        checked = Checked(settings, models, {"damaged": "damaged.gguf is truncated"}, 1 << 30)
        control = ControlServer(self.desk, {})
        engines = Engines(settings, checked, "wheel", folder, self.desk, control)
        self._handlers = list(logging.getLogger("nas_assistant").handlers)
        upstreams = Upstreams(settings, {}, self.desk, control)
        self.status = Status(settings, self.desk, engines, upstreams)

    def close(self) -> None:
        """Have the log go on as before."""
        logging.getLogger("nas_assistant").handlers = self._handlers
