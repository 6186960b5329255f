# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Who may use the engine now, who waits, who is turned away: plain bookkeeping without input or
output.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Hashable
from enum import Enum
from typing import Generic, TypeVar

Ticket = TypeVar("Ticket", bound=Hashable)

_LONGEST_RETRY = 60


class Verdict(Enum):
    """The answer to a request for a slot."""

    GRANTED = "granted"
    WAITING = "waiting"
    FULL = "full"


class Admission(Generic[Ticket]):
    """Slots per model and one bounded queue, first come first served. A ticket is a request."""

    def __init__(self, slots: int, queue: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._slots = slots
        self._queue = queue
        self._clock = clock
        self._active: dict[Ticket, tuple[str, float]] = {}
        self._waiting: dict[str, deque[Ticket]] = {}
        # How long a slot was held lately, in seconds: an average that forgets.
        self._hold = 5.0

    def acquire(self, ticket: Ticket, model: str) -> Verdict:
        """Ask for a slot of ``model``."""
        if self._free(model) > 0:
            self._active[ticket] = (model, self._clock())
            return Verdict.GRANTED
        if sum(map(len, self._waiting.values())) >= self._queue:
            return Verdict.FULL
        self._waiting.setdefault(model, deque()).append(ticket)
        return Verdict.WAITING

    def release(self, ticket: Ticket) -> list[Ticket]:
        """Give a slot back, or stop waiting for one; return the tickets that have a slot from now
        on.
        """
        held = self._active.pop(ticket, None)
        if held is None:
            for tickets in self._waiting.values():
                if ticket in tickets:
                    tickets.remove(ticket)
            return []
        model, since = held
        self._hold += 0.2 * (self._clock() - since - self._hold)
        granted = []
        tickets = self._waiting.get(model, deque())
        while tickets and self._free(model) > 0:
            following = tickets.popleft()
            self._active[following] = (model, self._clock())
            granted.append(following)
        return granted

    def forget_waiting(self, model: str) -> list[Ticket]:
        """Empty the queue of a model that is gone; return the tickets that were in it."""
        return list(self._waiting.pop(model, deque()))

    def retry_after(self) -> int:
        """Seconds after which a request that was turned away has a fair chance."""
        waiting = sum(map(len, self._waiting.values()))
        return min(_LONGEST_RETRY, max(1, math.ceil(self._hold * (waiting + 1) / self._slots)))

    def _free(self, model: str) -> int:
        return self._slots - sum(1 for name, _ in self._active.values() if name == model)
