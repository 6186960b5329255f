# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
from __future__ import annotations

from nas_assistant.admission import Admission, Verdict


def test_slots_then_queue_then_full() -> None:
    admission: Admission[str] = Admission(slots=2, queue=1)
    assert [admission.acquire(ticket, "m") for ticket in "abcd"] == [
        Verdict.GRANTED,
        Verdict.GRANTED,
        Verdict.WAITING,
        Verdict.FULL,
    ]


def test_first_come_first_served() -> None:
    admission: Admission[str] = Admission(slots=1, queue=9)
    for ticket in "abc":
        admission.acquire(ticket, "m")
    assert admission.release("a") == ["b"]
    assert admission.release("b") == ["c"]
    assert admission.release("c") == []
    assert admission.acquire("d", "m") is Verdict.GRANTED


def test_a_waiter_that_leaves_makes_room() -> None:
    admission: Admission[str] = Admission(slots=1, queue=1)
    admission.acquire("a", "m")
    admission.acquire("b", "m")
    assert admission.release("b") == []
    assert admission.acquire("c", "m") is Verdict.WAITING
    assert admission.release("a") == ["c"]


def test_releasing_twice_or_the_unknown_is_harmless() -> None:
    admission: Admission[str] = Admission(slots=1, queue=1)
    admission.acquire("a", "m")
    admission.release("a")
    assert admission.release("a") == []
    assert admission.release("x") == []


def test_models_have_slots_of_their_own_and_share_the_queue() -> None:
    admission: Admission[str] = Admission(slots=1, queue=1)
    assert admission.acquire("a", "m") is Verdict.GRANTED
    assert admission.acquire("b", "n") is Verdict.GRANTED
    assert admission.acquire("c", "m") is Verdict.WAITING
    assert admission.acquire("d", "n") is Verdict.FULL
    assert admission.forget_waiting("m") == ["c"]
    assert admission.acquire("e", "n") is Verdict.WAITING


def test_retry_after_follows_how_long_slots_are_held() -> None:
    now = 0.0
    admission: Admission[int] = Admission(slots=1, queue=8, clock=lambda: now)
    before = admission.retry_after()
    for ticket in range(20):
        admission.acquire(ticket, "m")
        now += 30
        admission.release(ticket)
    assert before < admission.retry_after() <= 60
