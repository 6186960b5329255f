# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""How much a key has used, and whether it may go on: plain bookkeeping without input or output.

Figures are of this NAS alone: in a fleet, a key has its limits on each member.
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from nas_assistant.keys import ApiKey

_MINUTE = 60.0
_DAY = 86400


@dataclass(frozen=True)
class Exceeded:
    """A limit that is reached: a sentence, and the seconds after which it may be tried again."""

    message: str
    retry_after: int


@dataclass(frozen=True)
class Usage:
    """What was used: requests, and tokens that were read and written."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )

    @property
    def tokens(self) -> int:
        """Of both kinds."""
        return self.prompt_tokens + self.completion_tokens


class Quotas:
    """Counts what keys use. ``load`` gives what was noted of a day before, by key."""

    def __init__(
        self,
        load: Callable[[str], Mapping[str, Usage]],
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._load = load
        self._clock = clock
        self._now = now
        self.day = ""
        self._used: defaultdict[str, Usage] = defaultdict(Usage)
        self._begun: defaultdict[str, deque[float]] = defaultdict(deque)
        self._running: Counter[str] = Counter()

    def begin(self, key: ApiKey, *, again: bool = False) -> Exceeded | None:
        """Count a request in, unless a limit of the key is reached. ``again``: it was counted
        already, and another model is to answer it now.
        """
        exceeded = (
            (None if again else self._minute(key)) or self._tokens(key) or self._parallel(key)
        )
        if exceeded is None:
            self._running[key.name] += 1
            if key.requests_per_minute and not again:
                self._begun[key.name].append(self._clock())
        return exceeded

    def end(self, name: str, usage: Usage) -> None:
        """Count a request out that was counted in, with what it used."""
        self._running[name] -= 1
        if self._running[name] <= 0:
            del self._running[name]
        self._new_day()
        self._used[name] += usage

    def used(self, name: str) -> Usage:
        """What the key has used today."""
        self._new_day()
        return self._used[name]

    def _minute(self, key: ApiKey) -> Exceeded | None:
        limit, begun, now = key.requests_per_minute, self._begun[key.name], self._clock()
        while begun and begun[0] <= now - _MINUTE:
            begun.popleft()
        if not limit or len(begun) < limit:
            return None
        wait = math.ceil(begun[len(begun) - limit] + _MINUTE - now)
        return Exceeded(f"The key '{key.name}' may send {limit} requests a minute.", max(1, wait))

    def _tokens(self, key: ApiKey) -> Exceeded | None:
        limit = key.tokens_per_day
        if not limit or self.used(key.name).tokens < limit:
            return None
        return Exceeded(
            f"The key '{key.name}' may use {limit} tokens a day, and has used "
            f"{self.used(key.name).tokens}. The day ends at midnight UTC.",
            max(1, math.ceil(_DAY - self._now() % _DAY)),
        )

    def _parallel(self, key: ApiKey) -> Exceeded | None:
        limit = key.parallel
        if not limit or self._running[key.name] < limit:
            return None
        return Exceeded(f"The key '{key.name}' may have {limit} requests at once.", 1)

    def _new_day(self) -> None:
        """Begin anew after midnight; or where it was, when the clock is set back."""
        today = datetime.fromtimestamp(self._now(), UTC).date().isoformat()
        if today != self.day:
            self.day = today
            self._used = defaultdict(Usage, self._load(today))
