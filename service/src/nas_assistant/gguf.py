# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Reads the head of a GGUF model file: metadata and the list of tensors, never the weights.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A file may be hostile, so every
length is bounded before it is used, and whatever is wrong with it is one exception.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

Scalar = int | float | bool | str
Value = Scalar | tuple[Scalar, ...]

RANK = 4  # a pooling of which one number comes, see llama.h

_MAX_ENTRIES = 1 << 16
_MAX_STRING = 1 << 24
# The largest vocabularies have some 300 000 entries, each in one array of metadata.
_MAX_ARRAY = 1 << 22
# Arrays that hold one number a layer are kept; vocabularies are skipped, only their length counts.
_KEPT_ARRAY = 1 << 12
_MAX_LAYERS = _KEPT_ARRAY

_STRING, _ARRAY = 8, 9
_NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}

# ggml's types by number: elements in a block, bytes in a block (ggml.h and ggml-common.h). A type
# that is not here counts as zero bytes, so a newer file is never called truncated by mistake.
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    9: (32, 36), 10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),
    15: (256, 292), 16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18),
    21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8),
    28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip


class GgufError(Exception):
    """The file is not a usable GGUF file; the text says why."""


@dataclass(frozen=True)
class GgufHead:
    """What the head says. ``lengths`` has the length of every array, also of those too long to
    keep.

    ``needed_size`` is the number of bytes the file must have for every tensor to be whole.
    """

    metadata: Mapping[str, Value]
    lengths: Mapping[str, int]
    tensors: int
    needed_size: int

    @property
    def architecture(self) -> str:
        """Such as ``llama`` or ``gemma3``; it prefixes the keys of the model's own parameters."""
        value = self.metadata.get("general.architecture")
        if not isinstance(value, str):
            raise GgufError("the metadata has no general.architecture")
        return value

    @property
    def chat_template(self) -> str:
        """The Jinja template of the model, empty when it has none."""
        value = self.metadata.get("tokenizer.chat_template", "")
        return value if isinstance(value, str) else ""

    @property
    def pooling(self) -> int:
        """llama.cpp's number for how a text's vectors become one; 0 for a model that writes."""
        value = self.metadata.get(f"{self.architecture}.pooling_type", 0)
        return value if isinstance(value, int) else 0

    @property
    def keeps(self) -> bool:
        """Whether it keeps what it read, to read on: not where each word looks at all others."""
        return self.metadata.get(f"{self.architecture}.attention.causal") is not False

    def per_layer(self, key: str, layers: int, default: int) -> tuple[int, ...]:
        """The model parameter ``key`` as one whole number a layer. Raises GgufError when it is
        neither.
        """
        if layers > _MAX_LAYERS:
            raise GgufError(f"it claims {layers} layers; at most {_MAX_LAYERS} are accepted")
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        values = value if isinstance(value, tuple) else (value,) * layers
        numbers = tuple(item for item in values if isinstance(item, int) and item >= 0)
        if len(numbers) != layers:
            raise GgufError(f"{self.architecture}.{key} is not one whole number a layer")
        return numbers

    def number(self, key: str) -> int:
        """The model parameter ``key``. Raises GgufError when it is missing or not a positive whole
        number.
        """
        value = self.metadata.get(f"{self.architecture}.{key}")
        if not isinstance(value, int) or value < 1:
            raise GgufError(f"the metadata has no usable {self.architecture}.{key}")
        return value


def read_head(path: Path) -> GgufHead:
    """Read the head of ``path``. Raises GgufError, also for a file that cannot be opened."""
    try:
        with path.open("rb") as file:
            return _Head(file, path.stat().st_size).read()
    except OSError as error:
        raise GgufError(f"it cannot be read: {error.strerror}") from error


class _Head:
    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file = file
        self.size = size
        self.position = 0
        self.lengths: dict[str, int] = {}

    def read(self) -> GgufHead:
        if self._bytes(4) != b"GGUF":
            raise GgufError("it does not begin with GGUF")
        version = self._number("I")
        if version not in (2, 3):
            raise GgufError(f"it has GGUF version {version}; 2 and 3 are supported")
        tensors = self._bounded("Q", _MAX_ENTRIES, "tensors")
        entries = self._bounded("Q", _MAX_ENTRIES, "metadata entries")
        metadata: dict[str, Value] = {}
        for _ in range(entries):
            key = self._string()
            value = self._value(key, self._number("I"))
            if value is not None:
                metadata[key] = value
        end = max((self._tensor() for _ in range(tensors)), default=0)
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 16:
            raise GgufError(f"general.alignment is {alignment!r}")
        start = -(-self.position // alignment) * alignment
        return GgufHead(metadata, self.lengths, tensors, start + end)

    def _tensor(self) -> int:
        """Read one tensor's description; return where its bytes end, counted from the start of the
        data.
        """
        self._string()
        elements = 1
        for _ in range(self._bounded("I", 8, "dimensions")):
            elements *= self._number("Q")
        block, size = _BLOCKS.get(self._number("I"), (1, 0))
        return self._number("Q") + -(-elements // block) * size

    def _value(self, key: str, kind: int) -> Value | None:
        if kind != _ARRAY:
            return self._scalar(kind)
        kind = self._number("I")
        length = self._bounded("Q", _MAX_ARRAY, f"elements of {key}")
        self.lengths[key] = length
        if length <= _KEPT_ARRAY:
            return tuple(self._scalar(kind) for _ in range(length))
        if kind == _STRING:
            for _ in range(length):
                self._skip(self._bounded("Q", _MAX_STRING, "bytes of a string"))
        else:
            self._skip(length * struct.calcsize("<" + self._code(kind)))
        return None

    def _scalar(self, kind: int) -> Scalar:
        if kind == _STRING:
            return self._string()
        return self._number(self._code(kind))

    def _code(self, kind: int) -> str:
        code = _NUMBERS.get(kind)
        if code is None:
            raise GgufError(f"unknown value type {kind}")
        return code

    def _string(self) -> str:
        # Damaged text is no reason to refuse a model that the engine reads.
        return self._bytes(self._bounded("Q", _MAX_STRING, "bytes of a string")).decode(
            "utf-8", "replace"
        )

    def _bounded(self, code: str, limit: int, what: str) -> int:
        value = self._number(code)
        if value > limit:
            raise GgufError(f"it claims {value} {what}; at most {limit} are accepted")
        return value

    def _number(self, code: str) -> int:
        (value,) = struct.unpack("<" + code, self._bytes(struct.calcsize("<" + code)))
        return value  # type: ignore[no-any-return]

    def _bytes(self, count: int) -> bytes:
        data = self.file.read(count) if count <= self.size - self.position else b""
        if len(data) != count:
            raise GgufError(
                f"it ends after {self.size} bytes, inside its own head: it is truncated"
            )
        self.position += count
        return data

    def _skip(self, count: int) -> None:
        if count > self.size - self.position:
            raise GgufError(
                f"it ends after {self.size} bytes, inside its own head: it is truncated"
            )
        self.file.seek(count, 1)
        self.position += count
