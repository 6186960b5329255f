# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The models of upstreams, as the supervisor offers them: while their upstream answers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

from nas_assistant.breaker import Breaker
from nas_assistant.control import Backend, ControlServer
from nas_assistant.desk import Desk
from nas_assistant.engine import CLIENT_GONE, Model, Outcome
from nas_assistant.logs import log
from nas_assistant.settings import Settings
from nas_assistant.upstream_keys import UpstreamKey


class Upstreams:
    """Offers them, and leaves an upstream alone that fails again and again."""

    def __init__(
        self,
        settings: Settings,
        keys: Mapping[str, UpstreamKey],
        desk: Desk,
        control: ControlServer,
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._desk = desk
        self._control = control
        self._breakers = {name: Breaker() for name in settings.upstreams}
        self._paused: dict[str, str] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        now = int(time.time())
        self.models = {
            name: Model(name, each.kind, now, each.upstream)
            for name, each in settings.cloud_models.items()
        }
        desk.observe(self._note)

    def start(self) -> None:
        """Offer all of them."""
        for name in self.models:
            self._open(name)
        self._publish()

    def replace_keys(self, keys: Mapping[str, UpstreamKey]) -> None:
        """Use other keys from now on."""
        changed = {name for name in keys if keys[name] != self._keys.get(name)}
        self._keys = keys
        for name in changed:
            self._resume(name)

    def report(self) -> list[dict[str, Any]]:
        """For the admin page."""
        return [
            {
                "name": name,
                "url": upstream.url,
                "failures": self._breakers[name].failures,
                "paused": self._paused.get(name, ""),
                "models": [
                    {
                        "name": model.name,
                        "model": self._settings.cloud_models[model.name].model,
                        "kind": model.kind,
                        "slots": upstream.parallel,
                        "slots_in_use": self._desk.active(model.name),
                        **self._desk.speed(model.name),
                        "served": vars(self._desk.served(model.name)),
                    }
                    for model in self._of(name)
                ],
            }
            for name, upstream in self._settings.upstreams.items()
        ]

    def _of(self, upstream: str) -> list[Model]:
        return [model for model in self.models.values() if model.upstream == upstream]

    def _note(self, name: str, outcome: Outcome) -> None:
        model = self.models.get(name)
        if model is None or outcome.status == CLIENT_GONE:
            return
        breaker = self._breakers[model.upstream]
        if outcome.status < 500:
            breaker.succeeded()
            return
        pause = breaker.failed()
        # Those that were on their way when it was paused fail too, and prove nothing new.
        if pause and model.upstream not in self._paused:
            self._pause(model.upstream, pause)

    def _pause(self, upstream: str, seconds: float) -> None:
        reason = (
            f"the cloud {upstream!r} failed {self._breakers[upstream].failures} times in a row and "
            f"is left alone for {seconds:g} s"
        )
        log(logging.ERROR, "upstream_paused", reason, upstream=upstream)
        self._paused[upstream] = reason
        for model in self._of(upstream):
            self._desk.note_end(model.name)
        self._publish()
        loop = asyncio.get_running_loop()
        self._timers[upstream] = loop.call_later(seconds, self._resume, upstream)

    def _resume(self, upstream: str) -> None:
        self._paused.pop(upstream, None)
        # Another key ends a pause early; the next pause must not end with the timer of this one.
        timer = self._timers.pop(upstream, None)
        if timer is not None:
            timer.cancel()
        # First told, then opened: what is not offered has nobody waiting.
        self._publish()
        for model in self._of(upstream):
            self._open(model.name)

    def _open(self, name: str) -> None:
        model = self.models[name]
        key = self._keys[model.upstream]
        self._desk.note_upstream(name)
        self._control.open(
            Backend(model, "", key.key, key.certificates),
            self._settings.upstreams[model.upstream].parallel,
        )

    def _publish(self) -> None:
        usable = [each for each in self.models.values() if each.upstream not in self._paused]
        lost = {
            each.name: self._paused[each.upstream]
            for each in self.models.values()
            if each.upstream in self._paused
        }
        self._control.publish("upstreams", usable, lost, lost.get(self._settings.variant, ""))
