# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""GGUF files for benches, made of one that is there: the same weights as other types, or a model
of another size. A Python of its own makes them, which has the package that reads and writes them.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import astuple, dataclass
from pathlib import Path

# MIT, by llama.cpp's own authors: reads and writes the format, and quantizes to its plain types.
PACKAGE = "gguf==0.19.0"

_COPY_KEYS = """
import sys
import gguf
from gguf import GGMLQuantizationType as Type, quants

def copied(model, target, others):
    reader = gguf.GGUFReader(model)
    writer = gguf.GGUFWriter(target, reader.get_field(gguf.Keys.General.ARCHITECTURE).contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == gguf.Keys.General.ARCHITECTURE:
            continue
        kind, *of = field.types
        value = others.pop(field.name, field.contents())
        writer.add_key_value(field.name, value, kind, sub_type=of[-1] if of else None)
    for name, value in others.items():
        writer.add_uint32(name, value)
    return reader, writer

def write(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
"""

# Model, target, types of head and body.
_QUANTIZE = """
model, target, *types = sys.argv[1:]
reader, writer = copied(model, target, {})
for tensor in reader.tensors:
    wish = types[tensor.name not in ("token_embd.weight", "output.weight")]
    kind, data = tensor.tensor_type, tensor.data
    if wish and kind not in (Type.F32, Type[wish]):
        data, kind = quants.quantize(quants.dequantize(data, kind), Type[wish]), Type[wish]
    writer.add_tensor(tensor.name, data, raw_dtype=kind)
write(writer)
"""

# Model, target, and the figures of a Shape. A block of Q4_K: two scales as 16-bit floats, 12 bytes
# of smaller ones, 256 weights of half a byte; one of Q6_K ends with its scale. The two scales are
# such that weights lie around nothing, and small.
_SHAPE = """
import numpy as np
model, target = sys.argv[1:3]
width, layers, inner, heads, heads_kv, length = map(int, sys.argv[3:])
arch = "llama"
reader, writer = copied(model, target, {
    f"{arch}.embedding_length": width,
    f"{arch}.block_count": layers,
    f"{arch}.feed_forward_length": inner,
    f"{arch}.attention.head_count": heads,
    f"{arch}.attention.head_count_kv": heads_kv,
    f"{arch}.rope.dimension_count": length,
    f"{arch}.attention.key_length": length,
    f"{arch}.attention.value_length": length,
})
chance = np.random.default_rng(1)

def half(value):
    return np.frombuffer(np.float16(value).tobytes(), dtype=np.uint8)

def add(name, rows, columns, kind=Type.Q4_K):
    size = {Type.Q4_K: 144, Type.Q6_K: 210}[kind]
    data = chance.integers(0, 256, (rows * columns // 256, size), dtype=np.uint8)
    if kind is Type.Q4_K:
        data[:, 0:2], data[:, 2:4] = half(1e-4), half(7.5e-4)
    else:
        data[:, 208:210] = half(1e-5)
    writer.add_tensor(name, data.reshape(rows, -1), raw_dtype=kind)

def norm(name):
    writer.add_tensor(name, np.ones(width, dtype=np.float32))

words = len(reader.get_field("tokenizer.ggml.tokens").data)
add("token_embd.weight", words, width, Type.Q6_K)
for layer in range(layers):
    block = f"blk.{layer}"
    norm(f"{block}.attn_norm.weight")
    add(f"{block}.attn_q.weight", heads * length, width)
    add(f"{block}.attn_k.weight", heads_kv * length, width)
    add(f"{block}.attn_v.weight", heads_kv * length, width)
    add(f"{block}.attn_output.weight", width, heads * length)
    norm(f"{block}.ffn_norm.weight")
    add(f"{block}.ffn_gate.weight", inner, width)
    add(f"{block}.ffn_up.weight", inner, width)
    add(f"{block}.ffn_down.weight", width, inner)
norm("output_norm.weight")
write(writer)
"""


@dataclass(frozen=True)
class Shape:
    """How large a model of the architecture llama is: its width, layers, width within a layer,
    heads, those of keys and values, and the length of one.
    """

    width: int
    layers: int
    inner: int
    heads: int
    heads_kv: int
    length: int


class Maker:
    """Makes files in ``folder``, where it keeps its Python."""

    def __init__(self, folder: Path) -> None:
        self._python = folder / "venv/bin/python"
        subprocess.run([sys.executable, "-m", "venv", self._python.parents[1]], check=True)
        subprocess.run([self._python, "-m", "pip", "install", "--quiet", PACKAGE], check=True)

    def _run(self, code: str, *words: object) -> None:
        given = [str(word) for word in words]
        subprocess.run([self._python, "-c", _COPY_KEYS + code, *given], check=True)

    def quantized(self, model: Path, target: Path, head: str, body: str) -> None:
        """Write ``target``, with the matrices as other types: the table of words (``head``) apart
        from the rest; an empty one leaves them as they are.
        """
        self._run(_QUANTIZE, model, target, head, body)

    def shaped(self, model: Path, target: Path, shape: Shape) -> None:
        """Write ``target``, a model of another size with the words of ``model`` and weights by
        chance, as 4-bit Q4_K: what it writes has no sense, but takes as long as with real ones.
        """
        self._run(_SHAPE, model, target, *astuple(shape))
