# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Figures for Prometheus, all counted in the supervisor: two workers never count twice."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from nas_assistant.cgroup import available_memory, used_memory
from nas_assistant.engine import Outcome

_SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
_SPEEDS = (1, 2, 5, 10, 20, 50, 100, 200, 500)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """What happened since the service started. Names are those of Prometheus's conventions."""

    def __init__(self) -> None:
        # Its own, so that nothing is in it that somebody else's import put there.
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "nas_assistant_requests",
            "Requests that had a slot, by the HTTP status they ended with; 499: the client left",
            ("model", "key", "status"),
            registry=registry,
        )
        self._refused = Counter(
            "nas_assistant_refused",
            "Requests that had none, by the reason, or the code of the error",
            ("reason",),
            registry=registry,
        )
        self._fallbacks = Counter(
            "nas_assistant_fallbacks",
            "Requests that this model answered in the place of another one, by the reason",
            ("model", "reason"),
            registry=registry,
        )
        self._tokens = Counter(
            "nas_assistant_tokens",
            "Tokens; of prompt, those that the prompt cache had are counted in cached too",
            ("model", "key", "kind"),
            registry=registry,
        )
        self._first = Histogram(
            "nas_assistant_first_token_seconds",
            "From the request to the first piece of the answer, the wait for a slot included",
            ("model",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._speed = Histogram(
            "nas_assistant_tokens_per_second",
            "How fast answers were written, each by itself",
            ("model",),
            buckets=_SPEEDS,
            registry=registry,
        )
        self._starts = Counter(
            "nas_assistant_engine_starts",
            "Engines that were started and became ready",
            ("model",),
            registry=registry,
        )
        self._load = Gauge(
            "nas_assistant_engine_load_seconds",
            "How long the last start took, the warm-up included",
            ("model",),
            registry=registry,
        )
        self._ready = Gauge(
            "nas_assistant_model_ready", "1 while it can be asked", ("model",), registry=registry
        )
        self._degraded = Gauge(
            "nas_assistant_degraded",
            "1 while a model of an upstream answers in the place of the chosen one of this machine",
            registry=registry,
        )
        self._slots = Gauge(
            "nas_assistant_slots_in_use", "Requests being answered", ("model",), registry=registry
        )
        self._waiting = Gauge(
            "nas_assistant_waiting", "Requests that wait for a slot", registry=registry
        )
        memory = Gauge(
            "nas_assistant_memory_bytes",
            "Of the container, without what the kernel can drop at once",
            ("kind",),
            registry=registry,
        )
        memory.labels("limit").set_function(lambda: available_memory()[0])
        memory.labels("used").set_function(used_memory)
        self._state = Gauge(
            "nas_assistant_state_written",
            "1 while usage can be written to the state volume",
            registry=registry,
        )

    def watch(self, waiting: Callable[[], int], state_written: Callable[[], bool]) -> None:
        """Have these asked whenever somebody looks."""
        self._waiting.set_function(waiting)
        self._state.set_function(lambda: float(state_written()))

    def watch_slots(self, model: str, in_use: Callable[[], int]) -> None:
        """Have the slots of a model asked for whenever somebody looks."""
        self._slots.labels(model).set_function(in_use)

    def refused(self, reason: str) -> None:
        """Count a request that had no slot."""
        self._refused.labels(reason).inc()

    def fell_back(self, model: str, reason: str) -> None:
        """Count a request that comes to a model since another one cannot answer it."""
        self._fallbacks.labels(model, reason).inc()

    def ended(self, model: str, key: str, outcome: Outcome) -> None:
        """Count a request that had one."""
        self._requests.labels(model, key, str(outcome.status)).inc()
        figures = {
            "prompt": outcome.prompt_tokens,
            "cached": outcome.cached_tokens,
            "completion": outcome.completion_tokens,
        }
        for kind, number in figures.items():
            self._tokens.labels(model, key, kind).inc(number)
        if outcome.first_seconds is not None:
            self._first.labels(model).observe(outcome.first_seconds)
        if outcome.writing_seconds > 0 and outcome.completion_tokens > 1:
            speed = outcome.completion_tokens / outcome.writing_seconds
            self._speed.labels(model).observe(speed)

    def engine_ready(self, model: str, seconds: float) -> None:
        """Note a start that succeeded."""
        self._starts.labels(model).inc()
        self._load.labels(model).set(seconds)
        self.ready(model)

    def ready(self, model: str) -> None:
        """Note that a model can be asked."""
        self._ready.labels(model).set(1)

    def lost(self, model: str) -> None:
        """Note that a model cannot be asked any more."""
        self._ready.labels(model).set(0)

    def degraded(self, degraded: bool) -> None:
        """Note whether another model answers in the place of the chosen one."""
        self._degraded.set(degraded)

    def text(self) -> str:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry).decode()
