# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Slots, context and prompt cache of built models, whose arithmetic can be done by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from nas_assistant.gguf import read_head
from nas_assistant.memory import MIB
from nas_assistant.settings import Settings
from nas_assistant.sizing import Candidate, Sizing

from .conftest import HYBRID, gguf_file, minimal_config

Work = Callable[..., Sizing]
NOTHING: Mapping[str, str] = MappingProxyType({})


@pytest.fixture
def work(tmp_path: Path, write_config: Callable[[str], Path]) -> Work:
    """Sizing with so many MiB of memory for models of so many layers. The first one is chosen."""

    def work(
        mib: int,
        layers: Mapping[str, int],
        text: str = "",
        more: Mapping[str, str] = NOTHING,
        server: Mapping[str, str] = NOTHING,
        **model: Any,
    ) -> Sizing:
        config = minimal_config(**({"variant": next(iter(layers), "")} | {**server}))
        config = config.partition("[model:")[0]
        for name in layers:
            config += f"[model:{name}]\nfile = {name}.gguf\nsha256 = {'0' * 64}\n"
            config += more.get(name, "")
        settings = Settings.load(write_config(config + HYBRID + text), {})
        found = {}
        for name, count in layers.items():
            path = tmp_path / f"{name}.gguf"
            path.write_bytes(gguf_file(layers=count, **({"context": 32768} | model)))
            head = read_head(path)
            size = path.stat().st_size
            trained = head.number("context_length")
            found[name] = Candidate(settings.models[name], head, size, trained)
        return Sizing(settings, found, mib * MIB)

    return work


def chosen(sizing: Sizing, name: str = "one") -> tuple[int, int, int]:
    settings = sizing.settings
    return settings.slots, settings.models[name].context, settings.cache_mib


# With 512 layers a slot of 2048 tokens takes 128 MiB, and 8 for its request; 208 are the gateway's,
# 96 the engine's.
@pytest.mark.parametrize(
    ("mib", "found"),
    [
        (64000, (4, 8192, 128)),
        (2541, (4, 8192, 128)),  # 208 + 96 + 4 * (512 + 15) + 128, and the file
        (2540, (4, 4096, 128)),
        (1497, (4, 4096, 128)),  # 304 + 4 * (256 + 10) + 128
        (1496, (4, 2048, 128)),
        (975, (4, 2048, 128)),  # 304 + 4 * (128 + 7.5) + 128
        (974, (4, 2048, 127)),
        (863, (4, 2048, 16)),
        (862, (4, 2048, 0)),
        (847, (4, 2048, 0)),  # 304 + 4 * (128 + 7.5)
        (846, (2, 2048, 128)),
        (704, (2, 2048, 128)),  # 304 + 2 * (128 + 7.5) + 128
        (703, (2, 2048, 127)),
        (576, (2, 2048, 0)),
        (575, (1, 2048, 128)),
        (440, (1, 2048, 0)),
        (439, (1, 2048, 0)),  # which does not fit
        (10, (1, 2048, 0)),
    ],
)
def test_four_slots_then_the_cache_then_context(
    work: Work, mib: int, found: tuple[int, int, int]
) -> None:
    sizing = work(mib, {"one": 512})
    assert chosen(sizing) == found
    total = sizing.need("one").total
    assert (total <= mib * MIB) is (mib > 439)
    # Once more: nothing but memory and model counts.
    assert chosen(work(mib, {"one": 512})) == found


@pytest.mark.parametrize(
    ("engine", "context", "mib", "found"),
    [
        ("slots = 1", "auto", 3048, (1, 8192, 128)),
        ("slots = 8", "auto", 3048, (8, 4096, 128)),
        ("cache_mib = 0", "auto", 2413, (4, 8192, 0)),
        ("cache_mib = 0", "auto", 2412, (4, 4096, 0)),
        ("cache_mib = 1000", "auto", 3048, (4, 4096, 1000)),
        ("", "16384", 9000, (4, 16384, 128)),
        ("", "16384", 4458, (2, 16384, 128)),
        ("", "16384", 2416, (2, 16384, 0)),
        ("", "16384", 2048, (1, 16384, 128)),
        ("", "512", 2000, (4, 512, 128)),
        ("slots = 3\ncache_mib = 5", "3000", 100, (3, 3000, 5)),
    ],
)
def test_figures_that_are_set_have_precedence(
    work: Work, engine: str, context: str, mib: int, found: tuple[int, int, int]
) -> None:
    more = {"one": f"context = {context}\n"}
    assert chosen(work(mib, {"one": 512}, f"[engine]\n{engine}\n", more)) == found


@pytest.mark.parametrize(
    ("trained", "context"),
    [
        (256, 256),
        (512, 512),
        (2047, 2047),
        (2048, 2048),
        (4095, 2048),
        (8192, 8192),
        (131072, 8192),
    ],
)
def test_never_more_than_it_was_trained_for(work: Work, trained: int, context: int) -> None:
    assert chosen(work(64000, {"one": 1}, context=trained)) == (4, context, 128)


@pytest.mark.parametrize(("trained", "context"), [(512, 512), (8192, 2048)])
def test_what_is_read_all_at_once_stays_short(work: Work, trained: int, context: int) -> None:
    sizing = work(64000, {"one": 1}, context=trained, pooling=1, causal=False)
    assert chosen(sizing)[1] == context
    assert sizing.need("one").prompt_cache == 0


def test_what_is_pinned_comes_first_and_others_take_what_there_is(work: Work) -> None:
    """Pinned, of 256 layers: 96 + 4 * (64 + 7.5) + 128 and the file, 511 MiB."""
    layers = {"one": 512, "fixed": 256, "other": 1024}
    pinned = {"fixed": "pinned = yes\n"}
    sizing = work(2009, layers, more=pinned)
    assert chosen(sizing) == (4, 4096, 128)
    assert chosen(sizing, "fixed")[1] == 2048
    assert sizing.pinned_beside("one") // MIB == 510
    # It takes twice what the chosen one does, in the same room.
    assert chosen(sizing, "other")[1] == 2048
    assert sizing.need("other").total + sizing.pinned_beside("other") <= 2009 * MIB
    assert chosen(work(2003, layers, more=pinned))[:2] == (4, 2048)
    assert chosen(work(2003, layers))[:2] == (4, 4096)
    # Alone it has the whole room, whoever is loaded instead of it.
    assert chosen(work(64000, layers), "other")[1] == 8192


@pytest.mark.parametrize(
    ("pinned", "other", "context"),
    [
        ("", 256, 8192),
        ("pinned = yes\n", 256, 4096),  # 8192 would leave 103 MiB less than the other one needs
        ("pinned = yes\n", 1, 8192),
        ("pinned = yes\n", 4096, 8192),  # which does not fit beside it with 2048 either
    ],
)
def test_one_that_is_pinned_does_not_keep_out_others(
    work: Work, pinned: str, other: int, context: int
) -> None:
    sizing = work(2948, {"one": 512, "other": other}, more={"one": pinned})
    assert chosen(sizing) == (4, context, 128)
    if pinned:
        both = sizing.need("other").own + sizing.pinned_beside("other") + 208 * MIB
        assert (both <= 2948 * MIB) is (other < 4096)
    said = "8192 tokens would need 2541 MiB, which others need"
    assert sizing.reason("one").endswith(said) is (context == 4096)


def test_without_a_chosen_one_here_the_first_decides(work: Work) -> None:
    """Each worker holds three times as much of requests to the cloud, and reads longer ones."""
    server = {"mode": "hybrid", "variant": "smart"}
    sizing = work(975 + 116, {"one": 512, "two": 1}, server=server)
    assert chosen(sizing) == (4, 2048, 128)
    assert chosen(sizing, "two") == (4, 8192, 128)
    assert chosen(work(974 + 116, {"one": 512, "two": 1}, server=server)) == (4, 2048, 127)
    nobody = work(1000, {}, server=server)
    assert (nobody.settings.slots, nobody.settings.cache_mib) == (4, 128)


@pytest.mark.parametrize(
    ("mib", "reason"),
    [
        (64000, "4 slots of 8192 tokens, 128 MiB of prompt cache; more has to be set"),
        (
            1888,
            "4 slots of 4096 tokens, 128 MiB of prompt cache; 8192 tokens would need 2541 MiB",
        ),
        (
            648,
            "2 slots of 2048 tokens, 72 MiB of prompt cache; 4 slots would need 847 MiB; "
            "4096 tokens would need 965 MiB",
        ),
        (
            448,
            "1 slot of 2048 tokens, no prompt cache; 2 slots would need 576 MiB; "
            "4096 tokens would need 699 MiB",
        ),
    ],
)
def test_the_reason_has_figures(work: Work, mib: int, reason: str) -> None:
    assert work(mib, {"one": 512}).reason("one") == reason


@pytest.mark.parametrize(
    ("mib", "text", "context", "remedy"),
    [
        # Set figures: as many tokens as fit, of two choices alike that with more for each.
        (1048, "slots = 8", "4096", "With slots = 2 it would fit; or raise the limit to 2433 MiB"),
        (1948, "slots = 8\ncache_mib = 900", "4096", "With slots = 4 and cache_mib = 128 it would"),
        (748, "slots = 4\ncache_mib = 0", "4096", "With slots = 1 it would fit; or raise the"),
        (848, "slots = 4", "8192", "With slots = 1 it would fit; or raise the limit to 2413 MiB"),
        (648, "slots = 4", "8192", "With slots = 1 and context = 4096 it would fit; or raise"),
        (648, "slots = auto", "8192", "With context = 4096 it would fit; or raise the limit to"),
        (548, "cache_mib = 128", "auto", "With cache_mib = 0 it would fit; or raise the limit to"),
        (438, "slots = auto", "auto", "Choose a smaller model; or raise the limit to 440 MiB"),
        (348, "slots = 4", "auto", "Choose a smaller model; or raise the limit to 847 MiB"),
    ],
)
def test_the_nearest_that_fits(work: Work, mib: int, text: str, context: str, remedy: str) -> None:
    more = {"one": f"context = {context}\n"}
    sizing = work(mib, {"one": 512}, f"[engine]\n{text}\n", more)
    assert sizing.need("one").total > mib * MIB
    assert sizing.remedy("one").startswith(remedy)


def test_the_nearest_model_is_the_largest_that_fits(work: Work) -> None:
    layers = {"one": 2048, "small": 1, "middle": 256, "large": 1024}
    remedy = work(438, layers).remedy("one")
    assert remedy.startswith("Choose a smaller model ('middle' fits); or raise the limit to 824")
    # Another one than the chosen has nothing to do with that.
    assert work(438, layers).remedy("large").startswith("Choose a smaller model; or raise")


@pytest.mark.parametrize(
    ("mib", "layers", "remedy"),
    [
        # Where its own context is the least, fewer slots than the chosen one has, or no cache.
        (
            948,
            1024,
            "With slots = 2 and cache_mib = 0 it would fit; or raise the limit to 1487 MiB",
        ),
        (
            648,
            1024,
            "With slots = 1 and cache_mib = 0 it would fit; or raise the limit to 1487 MiB",
        ),
        (548, 1024, "Choose a smaller model; or raise the limit to 1487 MiB"),
        (648, 512, "With slots = 2 and cache_mib = 0 it would fit; or raise the limit to 975 MiB"),
    ],
)
def test_another_model_bears_what_suits_the_chosen_one(
    work: Work, mib: int, layers: int, remedy: str
) -> None:
    """The chosen one has four slots and all of the cache with so little that it is no matter."""
    both = {"one": 1, "other": layers}
    assert chosen(work(mib, both)) == (4, 8192, 128)
    sizing = work(mib, both)
    assert sizing.remedy("other") == remedy
    limit = int(remedy.split()[-2])
    for more, fits in ((0, True), (-1, False)):
        sizing = work(limit + more, both)
        assert (sizing.need("other").total <= (limit + more) * MIB) is fits
