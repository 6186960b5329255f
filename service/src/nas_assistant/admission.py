# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Who may use the engine now, who waits, who is turned away: plain bookkeeping without input or
output.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable
from enum import Enum
from typing import Generic, TypeVar

Ticket = TypeVar("Ticket", bound=Hashable)

_LONGEST_RETRY = 60
# Of the queue, so that a key with many requests leaves room for one with few.
_SHARE_OF_ONE_KEY = 0.75


class Verdict(Enum):
    """The answer to a request for a slot."""

    GRANTED = "granted"
    WAITING = "waiting"
    FULL = "full"


class _Line(Generic[Ticket]):
    """Who waits for one model: the tickets of each key, first come first served."""

    def __init__(self, since: int) -> None:
        self.since = since
        self.keys: dict[str, deque[Ticket]] = {}

    def __len__(self) -> int:
        return sum(map(len, self.keys.values()))

    def join(self, ticket: Ticket, key: str) -> None:
        self.keys.setdefault(key, deque()).append(ticket)

    def leave(self, ticket: Ticket) -> None:
        for key, tickets in self.keys.items():
            if ticket in tickets:
                tickets.remove(ticket)
                if not tickets:
                    del self.keys[key]
                return

    def take(self, key: str) -> Ticket:
        ticket = self.keys[key][0]
        self.leave(ticket)
        return ticket


class Admission(Generic[Ticket]):
    """Slots per model and one bounded queue, in which keys take turns. A ticket is a request.

    Only a model that is open has slots; for another one, requests wait. Next is the key that has
    the fewest slots of the model; among equals, the one whose last turn is longest ago.
    """

    def __init__(self, slots: int, queue: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._slots = slots
        self._queue = queue
        self._clock = clock
        self._active: dict[Ticket, tuple[str, str, float]] = {}
        # The models that have slots, and how many.
        self._open: dict[str, int] = {}
        self._waiting: dict[str, _Line[Ticket]] = {}
        self._arrivals = itertools.count(1)
        # When each key had its last turn, as a number that grows.
        self._turns = itertools.count(1)
        self._last_turn: Counter[str] = Counter()
        # How long a slot was held lately, in seconds: an average that forgets.
        self._hold = 5.0

    def acquire(self, ticket: Ticket, model: str, key: str, *, alone: bool = True) -> Verdict:
        """Ask for a slot of ``model``. ``alone``: there is no other key to leave room for."""
        if self._free(model) > 0:
            self._grant(ticket, model, key)
            return Verdict.GRANTED
        own = sum(len(line.keys.get(key, ())) for line in self._waiting.values())
        most = self._queue if alone else math.ceil(self._queue * _SHARE_OF_ONE_KEY)
        if self.waiting >= self._queue or own >= most:
            return Verdict.FULL
        if model not in self._waiting:
            self._waiting[model] = _Line(next(self._arrivals))
        self._waiting[model].join(ticket, key)
        return Verdict.WAITING

    def release(self, ticket: Ticket) -> list[Ticket]:
        """Give a slot back, or stop waiting for one; return the tickets that have a slot from now
        on.
        """
        held = self._active.pop(ticket, None)
        if held is None:
            for model, line in list(self._waiting.items()):
                line.leave(ticket)
                if not line:
                    del self._waiting[model]
            return []
        model, _, since = held
        self._hold += 0.2 * (self._clock() - since - self._hold)
        return self._next(model)

    def open(self, model: str, slots: int | None = None) -> list[Ticket]:
        """Give a model its slots, as many as all have unless told otherwise; return the tickets
        that have one from now on.
        """
        self._open[model] = self._slots if slots is None else slots
        return self._next(model)

    def close(self, model: str) -> None:
        """Give no more slots of a model; who has one goes on."""
        self._open.pop(model, None)

    def wanted(self) -> list[str]:
        """The models that are waited for and not open; the one that is waited for longest first."""
        closed = [model for model in self._waiting if model not in self._open]
        return sorted(closed, key=lambda model: self._waiting[model].since)

    def forget_waiting(self, model: str) -> list[Ticket]:
        """Empty the queue of a model that is gone; return the tickets that were in it."""
        line = self._waiting.pop(model, None)
        return [ticket for tickets in line.keys.values() for ticket in tickets] if line else []

    def retry_after(self) -> int:
        """Seconds after which a request that was turned away has a fair chance."""
        return min(_LONGEST_RETRY, max(1, math.ceil(self._hold * (self.waiting + 1) / self._slots)))

    @property
    def waiting(self) -> int:
        """How many wait, for whatever model."""
        return sum(map(len, self._waiting.values()))

    def active(self, model: str) -> int:
        """How many slots of ``model`` are in use."""
        return self._held(model).total()

    def _next(self, model: str) -> list[Ticket]:
        granted: list[Ticket] = []
        while model in self._waiting and self._free(model) > 0:
            line, held_by = self._waiting[model], self._held(model)
            key = min(line.keys, key=lambda each: (held_by[each], self._last_turn[each]))
            granted.append(line.take(key))
            self._grant(granted[-1], model, key)
            if not line:
                del self._waiting[model]
        return granted

    def _grant(self, ticket: Ticket, model: str, key: str) -> None:
        self._active[ticket] = (model, key, self._clock())
        self._last_turn[key] = next(self._turns)

    def _held(self, model: str) -> Counter[str]:
        return Counter(key for name, key, _ in self._active.values() if name == model)

    def _free(self, model: str) -> int:
        return self._open.get(model, 0) - self.active(model)
