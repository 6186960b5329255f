# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
from __future__ import annotations

import json
import time

import pytest

from nas_assistant.engine import Outcome
from nas_assistant.meter import Meter

WHOLE = json.dumps(
    {
        "choices": [{"message": {"content": 'say "usage":{"prompt_tokens":1} and {"error"'}}],
        "usage": {
            "completion_tokens": 7,
            "prompt_tokens": 40,
            "prompt_tokens_details": {"cached_tokens": 30},
        },
        "timings": {"cache_n": 30, "predicted_ms": 250.5},
    },
    separators=(",", ":"),
).encode()


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("body", [WHOLE, json.dumps(json.loads(WHOLE)).encode()])
def test_a_whole_answer(body: bytes) -> None:
    clock = Clock()
    meter = Meter(1000, clock)
    clock.now += 2
    meter.feed(body)
    assert meter.outcome(200) == Outcome(200, 40, 7, 30, 1.75, 0.25)


def test_an_answer_that_was_cut_off_counts_by_its_pieces() -> None:
    meter = Meter(400)
    assert meter.outcome(499) == Outcome(499, 100, 0)
    for _ in range(3):
        meter.feed(b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n')
    outcome = meter.outcome(499)
    assert (outcome.prompt_tokens, outcome.completion_tokens) == (100, 3)


@pytest.mark.parametrize(
    "events",
    [
        b'data: {"usage":{"prompt_tokens":-5,"completion_tokens":"x"}}\n\n',
        b'data: {"usage":{"prompt_tokens":null}}\n\n',
        b'data: {"usage":{{}}\n\n',
        b'data: {"usage":[1]}\n\n',
        b'data: {"usage":{nonsense}}\n\n',
    ],
)
def test_odd_figures_are_not_taken(events: bytes) -> None:
    meter = Meter(8)
    meter.feed(events)
    assert (meter.outcome(200).prompt_tokens, meter.outcome(200).completion_tokens) == (2, 1)


def test_hostile_bytes_take_no_time() -> None:
    started = time.monotonic()
    Meter(1).feed(b'"usage":{' * 20_000 + b'"timings":{{' * 20_000)
    assert time.monotonic() - started < 5
