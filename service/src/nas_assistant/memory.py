# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""How much memory a model takes, as figures that can be added up in a message."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

from nas_assistant.gguf import GgufHead
from nas_assistant.settings import (
    BESIDE_TEXT,
    LONGEST_TEXTS,
    LONGEST_TO_CLOUD,
    MAX_BODY,
    MOST_CONTEXT,
    MOST_GUESSED,
    MOST_HELD,
    ModelSettings,
    Settings,
    longest_body,
)

MIB = 1 << 20
# Measured with SmolLM2 135M and Gemma 3 270M (4 slots of 2048 tokens): beside weights and KV cache
# the engine held 45 to 75 MiB (vocabulary, compute buffers, code), a gateway worker about 45 MiB,
# supervisor and gunicorn 30 each. Longer contexts change little: with SmolLM2, 4 full slots of 4096
# tokens or one of 8192, it was 60 MiB and code.
_ENGINE_OVERHEAD = 96 * MIB
# Measured: what the engine takes while it splits a text into tokens, for each of its bytes.
_PER_BYTE_OF_TEXT = 80
_WORKER = 48 * MIB
_PARENTS = 64 * MIB
# Measured: what a worker takes for each byte of a body while it reads that as JSON, one at a time;
# text takes 2 to 13, empty lists and objects 28 to 31.
_PER_BYTE_READ = 32
# Measured: what a worker takes for each byte of a request to an upstream is one while that waits,
# and 2.3 while it is sent over TLS.
_PER_BYTE_TO_CLOUD = 3
# What the KV cache holds: 16-bit floats, or blocks of 32 bytes with a 16-bit scale.
_BYTES_PER_VALUE = {"f16": 2.0, "q8_0": 34 / 32}

# What is remembered of texts to guess how they go on (common/ngram-mod.h).
_GUESSES = 16 * MIB


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes of memory the service needs once its model is in use."""

    weights: int
    kv_cache: int
    prompt_cache: int
    speculation: int
    requests: int
    engine: int
    gateway: int

    @property
    def total(self) -> int:
        """The sum, in bytes."""
        return sum(astuple(self))

    @property
    def own(self) -> int:
        """Without the gateway, which all models share."""
        return self.total - self.gateway

    def __str__(self) -> str:
        parts = {
            "weights": self.weights,
            "KV cache": self.kv_cache,
            "prompt cache": self.prompt_cache,
            "speculation": self.speculation,
            "requests": self.requests,
            "engine": self.engine,
            "gateway": self.gateway,
        }
        terms = " + ".join(f"{name} {in_mib(size)}" for name, size in parts.items() if size)
        return f"{terms} = {in_mib(self.total)} MiB"


def in_mib(size: int) -> int:
    """Bytes as MiB, rounded up."""
    return -(-size // MIB)


def _speculation(head: GgufHead, slots: int) -> int:
    """Bytes for guesses: in each slot, two numbers for each of them and word of the vocabulary."""
    if head.pooling:
        return 0  # it writes nothing that could be guessed
    words = head.lengths.get("tokenizer.ggml.tokens", 0)
    return _GUESSES + words * 2 * 4 * (MOST_GUESSED + 1) * slots


def gateway_need(settings: Settings) -> int:
    """Bytes that the service takes beside its engines, with all the requests that it holds."""
    held, longest = MOST_HELD, longest_body(MOST_CONTEXT)
    if settings.cloud_models:
        held, longest = MOST_HELD * _PER_BYTE_TO_CLOUD, LONGEST_TO_CLOUD
    read = (longest + BESIDE_TEXT) * _PER_BYTE_READ
    return settings.workers * (_WORKER + held + read) + _PARENTS


def _to_read(longest: int, settings: Settings) -> int:
    """What gateway workers take more for a model of which longer requests are read than of most."""
    beyond = max(0, min(longest, MAX_BODY) - longest_body(MOST_CONTEXT))
    return settings.workers * beyond * _PER_BYTE_READ


def memory_need(
    head: GgufHead, file_size: int, model: ModelSettings, settings: Settings
) -> MemoryNeed:
    """What ``settings`` and a model file of ``file_size`` bytes need. Raises GgufError when the
    head lacks a figure.

    The KV cache is an upper bound: layers with a sliding window take less than the full context.
    """
    layers = head.number("block_count")
    heads = head.per_layer("attention.head_count", layers, 0)
    heads_kv = head.metadata.get(f"{head.architecture}.attention.head_count_kv")
    per_layer = heads if heads_kv is None else head.per_layer("attention.head_count_kv", layers, 0)
    default_length = head.number("embedding_length") // max(1, *heads)
    (key,) = head.per_layer("attention.key_length", 1, default_length)
    (value,) = head.per_layer("attention.value_length", 1, default_length)
    longest = max(LONGEST_TEXTS, model.longest_body) if head.pooling else model.longest_body
    per_token = sum(per_layer) * (key + value) * _BYTES_PER_VALUE[model.kv_cache]
    return MemoryNeed(
        weights=file_size,
        kv_cache=math.ceil(per_token * model.context * settings.slots) if head.keeps else 0,
        prompt_cache=0 if head.pooling else settings.cache_mib * MIB,
        speculation=_speculation(head, settings.slots) if model.speculation else 0,
        requests=model.longest_body * settings.slots * _PER_BYTE_OF_TEXT
        + _to_read(longest, settings),
        engine=_ENGINE_OVERHEAD,
        gateway=gateway_need(settings),
    )
