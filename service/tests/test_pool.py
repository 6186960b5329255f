# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
from __future__ import annotations

from collections.abc import Callable

import pytest

from nas_assistant.pool import Demand, Pool, Step

USED: dict[str, float] = {}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


@pytest.fixture
def clock() -> Clock:
    USED.clear()
    return Clock()


def pool(clock: Clock, room: int, **sizes: int) -> Pool:
    demands = {name: Demand(abs(size), pinned=size < 0) for name, size in sizes.items()}
    return Pool(room, demands, lambda name: USED.get(name, 0), clock)


def busy(*names: str) -> Callable[[str], bool]:
    return lambda name: name in names


def test_what_fits_is_loaded(clock: Clock) -> None:
    plan = pool(clock, 10, a=6, b=4, c=1)
    plan.loaded("a")
    assert plan.next(["b"], busy()) == (Step.LOAD, "b")
    plan.loaded("b")
    assert plan.next([], busy()) is None
    # One that fits does not wait for another that does not.
    plan.unloaded("b")
    assert plan.next(["b", "c"], busy("a")) == (Step.LOAD, "b")


def test_the_least_used_goes(clock: Clock) -> None:
    plan = pool(clock, 10, a=5, b=5, c=5)
    plan.loaded("a")
    plan.loaded("b")
    USED["a"] = 1
    assert plan.next(["c"], busy()) == (Step.UNLOAD, "b")
    plan.unloaded("b")
    assert plan.next(["c"], busy()) == (Step.LOAD, "c")


def test_as_many_go_as_must(clock: Clock) -> None:
    plan = pool(clock, 10, a=3, b=3, c=3, big=9)
    for name in "abc":
        plan.loaded(name)
    gone = []
    while True:
        step = plan.next(["big"], busy())
        assert step is not None
        if step[0] is Step.LOAD:
            break
        gone.append(step[1])
        plan.unloaded(step[1])
    assert gone == ["a", "b", "c"]


def test_what_is_pinned_stays(clock: Clock) -> None:
    plan = pool(clock, 10, a=-5, b=5, c=5)
    plan.loaded("a")
    plan.loaded("b")
    USED["b"] = 1
    assert plan.next(["c"], busy()) == (Step.UNLOAD, "b")


def test_a_busy_one_finishes_first(clock: Clock) -> None:
    plan = pool(clock, 10, a=6, b=6)
    plan.loaded("a")
    assert plan.next(["b"], busy("a")) is None, "it has just come"
    clock.now += 30
    assert plan.next(["b"], busy("a")) == (Step.CLOSE, "a")
    assert plan.next(["b", "a"], busy("a")) is None
    assert plan.next(["b", "a"], busy()) == (Step.UNLOAD, "a")
    plan.unloaded("a")
    assert plan.next(["b", "a"], busy()) == (Step.LOAD, "b")


def test_an_idle_one_goes_before_a_busy_one(clock: Clock) -> None:
    plan = pool(clock, 10, a=5, b=5, c=5)
    plan.loaded("a")
    plan.loaded("b")
    assert plan.next(["c"], busy("a")) == (Step.UNLOAD, "b")


def test_who_was_to_go_comes_back_when_nobody_waits_any_more(clock: Clock) -> None:
    plan = pool(clock, 10, a=6, b=6)
    plan.loaded("a")
    clock.now += 30
    assert plan.next(["b"], busy("a")) == (Step.CLOSE, "a")
    assert plan.next(["a"], busy("a")) == (Step.REOPEN, "a")
    assert plan.next(["a"], busy("a")) is None
