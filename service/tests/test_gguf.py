# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from nas_assistant.gguf import GgufError, read_head

from .conftest import gguf_file, gguf_string


def test_reads_metadata_and_needed_size(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf_file(template="{{ messages }}", vocabulary=5000))
    head = read_head(path)
    assert head.architecture == "llama"
    assert head.chat_template == "{{ messages }}"
    assert head.number("context_length") == 4096
    assert head.per_layer("attention.head_count_kv", 1, 0) == (2,)
    assert head.lengths["tokenizer.ggml.tokens"] == 5000
    assert "tokenizer.ggml.tokens" not in head.metadata
    assert head.needed_size == path.stat().st_size


def test_no_chat_template(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf_file())
    assert read_head(path).chat_template == ""


HUGE = (1 << 64) - 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "truncated"),
        (b"<html>", "does not begin with GGUF"),
        (b"GGUF" + struct.pack("<I", 1), "version 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, HUGE, 0), "tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, HUGE), "metadata entries"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", HUGE), "bytes of a string"),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + gguf_string("a") + struct.pack("<I", 99),
            "value type 99",
        ),
        (
            b"GGUF"
            + struct.pack("<IQQ", 3, 0, 1)
            + gguf_string("a")
            + struct.pack("<IIQ", 9, 0, HUGE),
            "elements of a",
        ),
        (
            b"GGUF"
            + struct.pack("<IQQ", 3, 0, 1)
            + gguf_string("a")
            + struct.pack("<IIQ", 9, 9, 1)
            + bytes(64),
            "value type 9",
        ),
        (gguf_file()[:100], "truncated"),
    ],
)
def test_broken_files(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(data)
    with pytest.raises(GgufError, match=message):
        read_head(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(GgufError, match="cannot be read"):
        read_head(tmp_path / "none.gguf")


def test_any_damage_is_one_exception(tmp_path: Path) -> None:
    whole = gguf_file(template="x")
    path = tmp_path / "damaged.gguf"
    chance = random.Random(7)
    for _ in range(500):
        damaged = bytearray(whole[: chance.randrange(len(whole))])
        for _ in range(chance.randrange(4)):
            if damaged:
                damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            head = read_head(path)
            head.per_layer("attention.head_count", head.number("block_count"), 0)
        except GgufError:
            pass
