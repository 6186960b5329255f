# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Which models are in memory: plain planning without input or output.

One that is asked for and fits is loaded. Where it does not fit, the ones that were used longest ago
go; one that is busy first finishes what it has, and is left alone for a while after it was loaded,
so that two models that are asked for in turn do not spend all their time on loading.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

_MIN_STAY = 20.0  # seconds


@dataclass(frozen=True)
class Demand:
    """What a model takes of memory, in bytes, and whether it stays once it is there."""

    memory: int
    pinned: bool = False


class Step(Enum):
    """What is to be done with a model."""

    LOAD = "load"
    UNLOAD = "unload"
    CLOSE = "close"  # no more requests, since it is to go
    REOPEN = "reopen"  # it need not go after all


class Pool:
    """Plans for ``room`` bytes, which may change. Who carries a step out says so with ``loaded``
    and ``unloaded``.

    ``last_use`` tells when somebody last asked a model, by whatever clock.
    """

    def __init__(
        self,
        room: int,
        demands: Mapping[str, Demand],
        last_use: Callable[[str], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.room = room
        self._demands = demands
        self._last_use = last_use
        self._clock = clock
        self._since: dict[str, float] = {}
        self._closing: set[str] = set()

    def loaded(self, model: str) -> None:
        """Note that a model is in memory."""
        self._since[model] = self._clock()

    def unloaded(self, model: str) -> None:
        """Note that it no longer is."""
        self._since.pop(model, None)
        self._closing.discard(model)

    def next(self, wanted: Sequence[str], busy: Callable[[str], bool]) -> tuple[Step, str] | None:
        """The next step for the models that are waited for, longest first; none while there is
        nothing to do, or nothing yet.
        """
        missing = [model for model in wanted if model not in self._since]
        for model in missing:
            if self._demands[model].memory <= self._free():
                return (Step.LOAD, model)
        if not missing:
            for model in sorted(self._closing):
                self._closing.discard(model)
                return (Step.REOPEN, model)
            return None
        victims = self._victims(self._demands[missing[0]].memory - self._free(), busy)
        for model in victims:
            if not busy(model):
                return (Step.UNLOAD, model)
        for model in victims:
            stayed = self._clock() - self._since[model]
            if model not in self._closing and stayed >= _MIN_STAY:
                self._closing.add(model)
                return (Step.CLOSE, model)
        return None

    def _free(self) -> int:
        return self.room - sum(self._demands[model].memory for model in self._since)

    def _victims(self, missing: int, busy: Callable[[str], bool]) -> list[str]:
        """Whoever must go to gain so many bytes: idle ones first, then by last use."""
        candidates = [model for model in self._since if not self._demands[model].pinned]
        candidates.sort(key=lambda model: (busy(model), self._last_use(model), self._since[model]))
        chosen: list[str] = []
        for model in candidates:
            if missing <= 0:
                break
            chosen.append(model)
            missing -= self._demands[model].memory
        return chosen
