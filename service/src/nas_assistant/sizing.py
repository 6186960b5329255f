# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Slots, context and prompt cache, where they are worked out from the memory that there is.

Four slots of 2048 tokens are the aim; where the chosen model does not fit with them, two, then one.
Then the context is doubled while it fits beside a prompt cache of 128 MiB, up to 8192 tokens and to
what the model was trained for; where it cannot be doubled, the cache has what is left.

What is pinned beside the chosen model comes first, with the least context. Other models have the
same slots and cache, and a context that fits beside what is pinned; a chosen one that is pinned
itself grows only as far as those that fit beside it still do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from nas_assistant.gguf import GgufHead
from nas_assistant.memory import MemoryNeed, gateway_need, in_mib, memory_need
from nas_assistant.settings import (
    AUTO,
    LEAST_CONTEXT,
    MOST_CONTEXT,
    ModelSettings,
    Settings,
)

SLOTS = (4, 2, 1)
# Tokens.
CONTEXTS = (2048, 4096, MOST_CONTEXT)
# MiB. What is below the least holds no conversation.
MOST_CACHE, LEAST_CACHE = 128, 16


@dataclass(frozen=True)
class Candidate:
    """A model whose file could be read. ``size``: bytes of it; ``trained``: tokens."""

    model: ModelSettings
    head: GgufHead
    size: int
    trained: int

    @property
    def contexts(self) -> Sequence[int]:
        """What its context may be, the least first."""
        if self.model.context != AUTO:
            return (self.model.context,)
        fitting = [each for each in CONTEXTS if each <= self.trained] or [self.trained]
        # A text that is read all at once takes memory by the square of its length.
        return fitting[:1] if self.head.pooling else fitting


@dataclass(frozen=True)
class Choice:
    """So many slots, tokens of context for each of them, and MiB of prompt cache."""

    slots: int
    context: int
    cache_mib: int


class Sizing:
    """What suits the models that were ``found``, with so many bytes ``available``. ``settings`` are
    those that were asked for, with figures in the place of AUTO.
    """

    def __init__(self, asked: Settings, found: Mapping[str, Candidate], available: int) -> None:
        self._asked = asked
        self._found = found
        self._gateway = gateway_need(asked)
        self._room = available - self._gateway
        self._contexts = {name: each.contexts[0] for name, each in found.items()}
        # Where the chosen one is in the cloud, the first one decides.
        self._lead = asked.variant if asked.variant in found else next(iter(found), "")
        self._guests: Sequence[str] = ()
        self._slots, self._caches = self._allowed()
        self.settings = self._work_out()

    def need(self, name: str, choice: Choice | None = None) -> MemoryNeed:
        """What a model takes, as it was worked out, or with another choice."""
        choice = choice or self._chosen(name)
        each = self._found[name]
        model = replace(each.model, context=choice.context)
        wish = replace(self._asked, slots=choice.slots, cache_mib=choice.cache_mib)
        return memory_need(each.head, each.size, model, wish)

    def pinned_beside(self, name: str, choice: Choice | None = None) -> int:
        """Bytes of what is pinned beside a model."""
        choice = choice or self._chosen(name)
        return sum(
            self.need(other, replace(choice, context=self._contexts[other])).own
            for other, each in self._found.items()
            if each.model.pinned and other != name
        )

    def reason(self, name: str) -> str:
        """What was chosen for a model, and why not more, in a few words."""
        chosen = self._chosen(name)
        words = [f"{_slots(chosen.slots)} of {chosen.context} tokens"]
        if not self._found[name].head.pooling:
            cache = f"{chosen.cache_mib} MiB of" if chosen.cache_mib else "no"
            words.append(f"{cache} prompt cache")
        return ", ".join(words) + "".join(f"; {each}" for each in self._bounds(name, chosen))

    def remedy(self, name: str) -> str:
        """What to do about a model that does not fit."""
        nearest = max(
            (each for each in self._by_hand(name) if self._fits(name, each)),
            # Slots that are worked out for it are no wish.
            key=lambda each: (
                0 if self._works_out("slots", name) else each.slots * each.context,
                *(each.context, each.slots, each.cache_mib),
            ),
            default=None,
        )
        if nearest:
            way = f"With {self._difference(name, nearest)} it would fit"
        elif name == self._lead and (other := self._smaller(name)):
            way = f"Choose a smaller model ({other!r} fits)"
        else:
            way = "Choose a smaller model"
        return f"{way}; or raise the limit to {self._limit(name)} MiB"

    def _allowed(self) -> tuple[Sequence[int], Sequence[int]]:
        """Slots and caches, the best first."""
        slots, cache = self._asked.slots, self._asked.cache_mib
        caches = (*range(MOST_CACHE, LEAST_CACHE - 1, -1), 0)
        return (SLOTS if slots == AUTO else (slots,)), (caches if cache == AUTO else (cache,))

    def _work_out(self) -> Settings:
        choice = Choice(self._slots[0], 0, self._caches[0])
        if self._lead:
            choice = self._for_lead(self._found[self._lead])
            self._contexts[self._lead] = choice.context
        for name, each in self._found.items():
            if name != self._lead and not each.model.pinned:
                wider = [replace(choice, context=context) for context in reversed(each.contexts)]
                self._contexts[name] = self._first(name, wider).context
        models = {
            name: replace(model, context=self._contexts.get(name, model.context))
            for name, model in self._asked.models.items()
        }
        return replace(self._asked, slots=choice.slots, cache_mib=choice.cache_mib, models=models)

    def _for_lead(self, lead: Candidate) -> Choice:
        name, contexts, caches = self._lead, lead.contexts, self._caches
        least = self._first(name, [Choice(each, contexts[0], caches[-1]) for each in self._slots])
        # One that is pinned stays: who fits beside it at all is not to be kept out by its growth.
        self._guests = [
            other
            for other, each in self._found.items()
            if lead.model.pinned and not each.model.pinned and self._leaves_room(least, other)
        ]
        wide = self._first(
            name, [Choice(least.slots, each, caches[0]) for each in reversed(contexts)]
        )
        return self._first(name, [replace(wide, cache_mib=each) for each in caches])

    def _leaves_room(self, choice: Choice, other: str) -> bool:
        guest = replace(choice, context=self._contexts[other])
        return self._total(self._lead, choice) + self.need(other, guest).own <= self._room

    def _chosen(self, name: str) -> Choice:
        return Choice(self.settings.slots, self._contexts[name], self.settings.cache_mib)

    def _total(self, name: str, choice: Choice) -> int:
        return self.need(name, choice).own + self.pinned_beside(name, choice)

    def _fits(self, name: str, choice: Choice) -> bool:
        return self._total(name, choice) <= self._room and (
            name != self._lead or all(self._leaves_room(choice, each) for each in self._guests)
        )

    def _first(self, name: str, choices: Sequence[Choice]) -> Choice:
        """The first that fits, or else the last."""
        return next((each for each in choices if self._fits(name, each)), choices[-1])

    def _bounds(self, name: str, chosen: Choice) -> Iterator[str]:
        """Why there is not more of each."""
        each = self._found[name]
        if name == self._lead and chosen.slots != self._slots[0]:
            more = self._slots[self._slots.index(chosen.slots) - 1]
            wish = Choice(more, each.contexts[0], self._caches[-1])
            yield f"{_slots(more)} would need {self._mib(name, wish)} MiB"
        wider = [context for context in each.contexts if context > chosen.context]
        # The chosen one's grows after the cache, that of others has to do with what there is.
        cache = self._caches[0] if name == self._lead else chosen.cache_mib
        if wider and each.model.pinned and name != self._lead:
            yield "the least context, as it is pinned beside another one"
        elif wider:
            wish = Choice(chosen.slots, wider[0], cache)
            beside = "" if self._total(name, wish) > self._room else ", which others need"
            yield f"{wider[0]} tokens would need {self._mib(name, wish)} MiB{beside}"
        elif each.model.context != AUTO:
            yield "the context is set"
        elif each.head.pooling and chosen.context < each.trained:
            yield "it reads all at once, so that more has to be set"
        elif each.trained < 2 * chosen.context:
            yield f"it was trained for {each.trained}"
        else:
            yield "more has to be set"

    def _mib(self, name: str, choice: Choice) -> int:
        return in_mib(self._gateway + self._total(name, choice))

    def _limit(self, name: str) -> int:
        """MiB with which a model fits. With more there may be more slots too, and a larger cache,
        which another model than the chosen one has to bear.
        """
        limit, sizing = 0, self
        while (needed := sizing._mib(name, sizing._chosen(name))) > limit:
            limit = needed
            sizing = Sizing(self._asked, self._found, limit << 20)
        return limit

    def _works_out(self, key: str, name: str) -> bool:
        """Whether a figure is worked out for a model, so that nobody has to set it for that."""
        if key == "context":
            return self._found[name].model.context == AUTO
        return name == self._lead and getattr(self._asked, key) == AUTO

    def _by_hand(self, name: str) -> Iterator[Choice]:
        """What could be set in the place of figures that were set, or worked out for others."""
        chosen = self._chosen(name)
        slots: Sequence[int] = (chosen.slots, *_halved(chosen.slots, 1))
        if self._works_out("slots", name):
            slots = SLOTS
        contexts: Sequence[int] = (chosen.context,)
        if not self._works_out("context", name):
            contexts = (*contexts, *_halved(chosen.context, LEAST_CONTEXT))
        caches: Sequence[int] = (chosen.cache_mib,)
        if not self._works_out("cache_mib", name):
            caches = (*caches, *(each for each in (MOST_CACHE, 0) if each < chosen.cache_mib))
        for each in slots:
            for context in contexts:
                yield from (Choice(each, context, cache) for cache in caches)

    def _difference(self, name: str, choice: Choice) -> str:
        now, new = asdict(self._chosen(name)), asdict(choice)
        return " and ".join(
            f"{key} = {new[key]}"
            for key in new
            if new[key] != now[key] and not self._works_out(key, name)
        )

    def _smaller(self, name: str) -> str:
        """The largest of the other models that would fit in the place of this one."""
        sizes = {}
        for other, each in self._found.items():
            least = Choice(self._slots[-1], each.contexts[0], self._caches[-1])
            if other != name and self._fits(other, least):
                sizes[other] = self.need(other, least).own
        return max(sizes, key=sizes.__getitem__, default="")


def _slots(number: int) -> str:
    return f"{number} slot" if number == 1 else f"{number} slots"


def _halved(number: int, least: int) -> Sequence[int]:
    """The powers of two below a number, the largest first."""
    powers = (1 << bit for bit in reversed(range(number.bit_length())))
    return [each for each in powers if least <= each < number]
