# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
from __future__ import annotations

from nas_assistant.admission import Admission, Verdict


def opened(slots: int, queue: int) -> Admission[str]:
    """With two models that are in memory."""
    admission: Admission[str] = Admission(slots, queue)
    assert admission.open("m") == admission.open("n") == []
    return admission


def test_slots_then_queue_then_full() -> None:
    admission = opened(slots=2, queue=1)
    assert [admission.acquire(ticket, "m", "k") for ticket in "abcd"] == [
        Verdict.GRANTED,
        Verdict.GRANTED,
        Verdict.WAITING,
        Verdict.FULL,
    ]
    assert (admission.active("m"), admission.waiting) == (2, 1)


def test_first_come_first_served() -> None:
    admission = opened(slots=1, queue=9)
    for ticket in "abc":
        admission.acquire(ticket, "m", "k")
    assert admission.release("a") == ["b"]
    assert admission.release("b") == ["c"]
    assert admission.release("c") == []
    assert admission.acquire("d", "m", "k") is Verdict.GRANTED


def test_keys_take_turns() -> None:
    admission = opened(slots=1, queue=9)
    for ticket in ("a1", "a2", "a3", "b1", "b2", "c1"):
        admission.acquire(ticket, "m", ticket[0])
    order, current = [], "a1"
    while current:
        order.append(current)
        current = next(iter(admission.release(current)), "")
    assert order == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_a_key_with_fewer_slots_comes_first() -> None:
    admission = opened(slots=3, queue=9)
    for ticket in ("a1", "a2", "b1", "a3", "b2"):
        admission.acquire(ticket, "m", ticket[0])
    # One key has two slots, the other none: it is the other's turn, though it came later.
    assert admission.release("b1") == ["b2"]
    assert admission.release("a1") == ["a3"]


def test_one_key_leaves_room_for_others() -> None:
    admission = opened(slots=1, queue=8)

    def ask(ticket: str, model: str, key: str) -> Verdict:
        return admission.acquire(ticket, model, key, alone=False)

    verdicts = [ask(str(number), "m", "greedy") for number in range(8)]
    assert verdicts == [Verdict.GRANTED, *[Verdict.WAITING] * 6, Verdict.FULL]
    assert ask("8", "m", "modest") is Verdict.WAITING
    assert ask("9", "n", "greedy") is Verdict.GRANTED
    assert ask("10", "n", "greedy") is Verdict.FULL
    assert ask("11", "n", "modest") is Verdict.WAITING
    assert ask("12", "n", "modest") is Verdict.FULL


def test_a_waiter_that_leaves_makes_room() -> None:
    admission = opened(slots=1, queue=1)
    admission.acquire("a", "m", "k")
    admission.acquire("b", "m", "k")
    assert admission.release("b") == []
    assert admission.acquire("c", "m", "k") is Verdict.WAITING
    assert admission.release("a") == ["c"]


def test_releasing_twice_or_the_unknown_is_harmless() -> None:
    admission = opened(slots=1, queue=1)
    admission.acquire("a", "m", "k")
    admission.release("a")
    assert admission.release("a") == []
    assert admission.release("x") == []


def test_models_have_slots_of_their_own_and_share_the_queue() -> None:
    admission = opened(slots=1, queue=1)
    assert admission.acquire("a", "m", "k") is Verdict.GRANTED
    assert admission.acquire("b", "n", "k") is Verdict.GRANTED
    assert admission.acquire("c", "m", "k") is Verdict.WAITING
    assert admission.acquire("d", "n", "k") is Verdict.FULL
    assert admission.forget_waiting("m") == ["c"]
    assert admission.acquire("e", "n", "k") is Verdict.WAITING


def test_retry_after_follows_how_long_slots_are_held() -> None:
    now = 0.0
    admission: Admission[int] = Admission(slots=1, queue=8, clock=lambda: now)
    admission.open("m")
    before = admission.retry_after()
    for ticket in range(20):
        admission.acquire(ticket, "m", "k")
        now += 30
        admission.release(ticket)
    assert before < admission.retry_after() <= 60


def test_who_asks_for_a_model_that_is_not_there_waits_for_it() -> None:
    admission: Admission[str] = Admission(slots=1, queue=9)
    admission.open("m")
    for ticket, model in (("a", "n"), ("b", "m"), ("c", "x"), ("d", "n")):
        admission.acquire(ticket, model, "k")
    assert admission.wanted() == ["n", "x"]
    assert admission.open("n") == ["a"]
    assert admission.wanted() == ["x"]
    # Closed, it gives no more slots, and is wanted itself.
    admission.close("n")
    assert admission.release("a") == []
    assert admission.wanted() == ["n", "x"]
    assert admission.release("d") == []
    assert admission.wanted() == ["x"]
    assert admission.forget_waiting("x") == ["c"]
    assert admission.wanted() == []
