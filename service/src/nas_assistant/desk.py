# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The supervisor's books: who may go on, who has used how much, and the figures of it all.

There is one, so two gateway workers never double a limit. It does no input and no output.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nas_assistant.admission import Admission, Verdict
from nas_assistant.engine import CLIENT_GONE, Failure, Outcome
from nas_assistant.keys import ApiKey, KeyRing
from nas_assistant.logs import log
from nas_assistant.metrics import Metrics
from nas_assistant.quota import Quotas, Usage
from nas_assistant.state import Ledger

Ticket = tuple[int, int]  # a worker's connection, and the number it gave its request
_LAST = 20  # answers that a speed is worked out from
# Seconds after which the same failure of the same model is logged again: one that lasts would push
# everything else out of the last errors.
_SAY_AGAIN = 60.0
# Refusals of this desk, by the codes that clients see; they are counted when they are made.
_OWN_CODES = ("queue_full", "rate_limit_exceeded")


@dataclass
class _Held:
    model: str
    key: str
    granted: bool = False


class _Speed:
    """Of the last answers of a model."""

    def __init__(self) -> None:
        self._speeds: deque[tuple[int, float]] = deque(maxlen=_LAST)
        self._first: deque[float] = deque(maxlen=_LAST)

    def note(self, outcome: Outcome) -> None:
        if outcome.writing_seconds > 0:
            self._speeds.append((outcome.completion_tokens, outcome.writing_seconds))
        if outcome.first_seconds is not None:
            self._first.append(outcome.first_seconds)

    def figures(self) -> dict[str, float]:
        tokens = sum(number for number, _ in self._speeds)
        seconds = sum(seconds for _, seconds in self._speeds)
        return {
            "tokens_per_second": round(tokens / seconds, 1) if seconds else 0.0,
            "first_token_seconds": round(statistics.median(self._first), 3) if self._first else 0.0,
        }


class Desk:
    """Takes requests in and out. What it answers a worker is a message without its number."""

    def __init__(
        self, admission: Admission[Ticket], ring: KeyRing, ledger: Ledger, metrics: Metrics
    ) -> None:
        self._admission = admission
        self._ring = ring
        self._ledger = ledger
        self._metrics = metrics
        self._quotas = Quotas(ledger.of_day)
        self._held: dict[Ticket, _Held] = {}
        self._last_grant: dict[str, float] = {}
        self._speeds: defaultdict[str, _Speed] = defaultdict(_Speed)
        self._served: defaultdict[str, Usage] = defaultdict(Usage)
        self._said: dict[tuple[str, int, str], float] = {}
        self._observers: list[Callable[[str, Outcome], None]] = []
        metrics.watch(lambda: admission.waiting, lambda: not ledger.complaint)

    def observe(self, observer: Callable[[str, Outcome], None]) -> None:
        """Have ``observer`` told how each request ended, and of which model it was."""
        self._observers.append(observer)

    def acquire(
        self, ticket: Ticket, model: str, name: str, fallback: str = "", *, again: bool = False
    ) -> dict[str, Any] | None:
        """Take a request in; none while it waits for its turn. ``fallback`` and ``again``: see
        ``Call``.
        """
        key = self._ring.keys.get(name)
        if key is None:  # revoked while it was on its way
            return self._refuse("revoked", {"message": f"The key '{name}' is no more."})
        exceeded = self._quotas.begin(key, again=again)
        if exceeded is not None:
            return self._refuse("limited", asdict(exceeded))
        alone = len(self._ring.keys) < 2
        verdict = self._admission.acquire(ticket, model, name, alone=alone)
        if verdict is Verdict.FULL:
            self._quotas.end(name, Usage())
            return self._refuse("full", {"retry_after": self._admission.retry_after()})
        if fallback:
            self._metrics.fell_back(model, fallback)
        self._held[ticket] = _Held(model, name)
        if verdict is Verdict.GRANTED:
            self._grant([ticket])
            return {"event": "granted"}
        return None

    def release(self, ticket: Ticket, outcome: Outcome | None = None) -> list[Ticket]:
        """Take a request out, one that waits too; return those whose turn it is now."""
        held = self._held.pop(ticket, None)
        if held is not None and held.granted:
            self._count(held, outcome or Outcome(CLIENT_GONE))
        elif held is not None:
            self._quotas.end(held.key, Usage())
        return self._grant(self._admission.release(ticket))

    def note_failure(self, failure: Failure) -> None:
        """Count a request that ended with an error before it had a slot, and say so of those that
        are not the client's fault.
        """
        if failure.code in _OWN_CODES:
            return
        if not failure.had_slot:
            self._metrics.refused(failure.code)
        self._say("", failure.status, failure.code)

    def forget_waiting(self, model: str) -> list[Ticket]:
        """Take all out that wait for a model that is gone; return them."""
        gone = self._admission.forget_waiting(model)
        for ticket in gone:
            self._quotas.end(self._held.pop(ticket).key, Usage())
        return gone

    def open_model(self, model: str, slots: int | None = None) -> list[Ticket]:
        """Let requests have slots of a model, see ``Admission.open``; return those whose turn it
        is now.
        """
        return self._grant(self._admission.open(model, slots))

    def close_model(self, model: str) -> None:
        """Let no more requests have slots of a model."""
        self._admission.close(model)

    def note_start(self, model: str, seconds: float) -> None:
        """Count the start of an engine, and what it took."""
        self._metrics.engine_ready(model, seconds)
        self._metrics.watch_slots(model, lambda: self._admission.active(model))

    def note_upstream(self, model: str) -> None:
        """Note that a model of an upstream can be asked."""
        self._metrics.ready(model)
        self._metrics.watch_slots(model, lambda: self._admission.active(model))

    def note_end(self, model: str) -> None:
        """Note that a model cannot be asked, or not at once."""
        self._metrics.lost(model)

    def note_degraded(self, degraded: bool) -> None:
        """Note whether another model answers in the place of the chosen one."""
        self._metrics.degraded(degraded)

    def model_of(self, ticket: Ticket) -> str:
        """The model that a request is for."""
        return self._held[ticket].model

    def wanted(self) -> list[str]:
        """Models that are waited for and closed, longest first."""
        return self._admission.wanted()

    def metrics(self) -> str:
        """All figures, as Prometheus reads them."""
        return self._metrics.text()

    @property
    def waiting(self) -> int:
        """How many wait for a slot."""
        return self._admission.waiting

    def active(self, model: str) -> int:
        """How many slots of a model are in use."""
        return self._admission.active(model)

    def speed(self, model: str) -> dict[str, float]:
        """Tokens a second and seconds to the first one, of the last answers of a model."""
        return self._speeds[model].figures()

    def served(self, model: str) -> Usage:
        """What a model did since the start, requests that failed included."""
        return self._served[model]

    @property
    def complaint(self) -> str:
        """Why usage cannot be written; empty where it can."""
        return self._ledger.complaint

    def used_today(self) -> Mapping[str, Usage]:
        """What keys have used today."""
        return {name: self._quotas.used(name) for name in self._ring.keys}

    @property
    def api_keys(self) -> list[ApiKey]:
        """The keys that count."""
        return list(self._ring.keys.values())

    def last_grant(self, model: str) -> float:
        """When somebody last had a slot of a model, by the monotonic clock; 0 for never."""
        return self._last_grant.get(model, 0.0)

    def _grant(self, tickets: list[Ticket]) -> list[Ticket]:
        for ticket in tickets:
            self._held[ticket].granted = True
            self._last_grant[self._held[ticket].model] = time.monotonic()
        return tickets

    def _refuse(self, reason: str, message: dict[str, Any]) -> dict[str, Any]:
        self._metrics.refused(reason)
        return {"event": reason, **message}

    def _count(self, held: _Held, outcome: Outcome) -> None:
        usage = Usage(1, outcome.prompt_tokens, outcome.completion_tokens)
        self._quotas.end(held.key, usage)
        self._ledger.add(self._quotas.day, held.key, usage)
        self._metrics.ended(held.model, held.key, outcome)
        self._speeds[held.model].note(outcome)
        self._served[held.model] += usage
        self._say(held.model, outcome.status, outcome.failure)
        for observer in self._observers:
            observer(held.model, outcome)

    def _say(self, model: str, status: int, code: str) -> None:
        """Log what a user saw as an error of ours; what was asked is nobody's business."""
        now, what = time.monotonic(), (model, status, code)
        if status < 500 or now - self._said.get(what, -_SAY_AGAIN) < _SAY_AGAIN:
            return
        self._said[what] = now
        fields = {"model": model} if model else {}
        message = f"a request ended with {status}{f' ({code})' if code else ''}"
        log(logging.WARNING, "request_failed", message, **fields)
