# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""A model file on disk: whether it is the one that was asked for, and how another takes its place.

The file is written to ``<path>.part`` and renamed only when its SHA-256 is right, so a reader never
sees half a model. Beside it, ``<path>.sha256`` holds the digest and the file's stat signature
(size, times, inode) at the moment it was hashed: while the signature is the same, nobody has
written to the file since, and gigabytes need not be read again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

GGUF_MAGIC = b"GGUF"
BLOCK = 1 << 20


class ModelFileError(Exception):
    """What is wrong with a model or with its source, in one sentence with the remedy."""


def sha256_of(path: str) -> str:
    """Return the hex SHA-256 of the file at ``path``."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def signature(path: str) -> list[int]:
    """Return size, modification and change time (ns) and inode: any write alters at least one."""
    stat = os.stat(path)
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def record(path: str, sha256: str) -> None:
    """Remember that the file at ``path``, as it is now, has this digest."""
    note = {"sha256": sha256, "signature": signature(path)}
    partial = f"{path}.sha256.part"
    with open(partial, "w", encoding="ascii") as stream:
        json.dump(note, stream)
    os.replace(partial, f"{path}.sha256")


def known_sha256(path: str) -> str | None:
    """Return the digest recorded for the file if it was not written to since, else None."""
    try:
        with open(f"{path}.sha256", encoding="ascii") as stream:
            note = json.load(stream)
        if note["signature"] == signature(path):
            return str(note["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def current_sha256(path: str) -> str | None:
    """Return the digest of the file at ``path``, None without a file; hashes only what changed."""
    if not os.path.isfile(path):
        return None
    return known_sha256(path) or sha256_of(path)


def check_gguf(path: str) -> None:
    """Raise ModelFileError unless the file begins like a GGUF file."""
    with open(path, "rb") as stream:
        magic = stream.read(len(GGUF_MAGIC))
    if magic != GGUF_MAGIC:
        raise ModelFileError(
            f"{path}: not a GGUF file (it begins with {magic!r}, not {GGUF_MAGIC!r}); "
            "give the address of the .gguf file itself, not of a page about it"
        )


def check_free_space(path: str, needed: int) -> None:
    """Raise ModelFileError when the filesystem of ``path`` cannot take ``needed`` more bytes."""
    stat = os.statvfs(os.path.dirname(path) or ".")
    free = stat.f_bavail * stat.f_frsize
    if needed > free:
        raise ModelFileError(
            f"{path}: needs {needed >> 20} MiB and the filesystem has {free >> 20} MiB free; "
            "free some space or set another models folder"
        )


@contextmanager
def partial_file(path: str) -> Iterator[BinaryIO]:
    """Open ``<path>.part`` at its end, locked, so that two runs never mix their bytes."""
    with open(f"{path}.part", "ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ModelFileError(
                f"{path}: another run is writing this model; wait for it to end"
            ) from error
        yield stream


def partial_size(path: str) -> int:
    """Return how many bytes an interrupted transfer left, 0 without one."""
    try:
        return os.path.getsize(f"{path}.part")
    except OSError:
        return 0


def install(path: str, sha256: str, source: str) -> None:
    """Verify ``<path>.part`` and give it its final name.

    :param source: where the bytes came from, for the message.
    :raises ModelFileError: wrong digest or no GGUF; the partial file is removed then, since
        resuming from wrong bytes can never end right.
    """
    partial = f"{path}.part"
    try:
        found = sha256_of(partial)
        if found != sha256:
            raise ModelFileError(
                f"{source}: SHA-256 is {found}, expected {sha256}; the file was changed at its "
                "source or damaged on the way: check the digest that the model's publisher gives"
            )
        check_gguf(partial)
    except ModelFileError:
        os.unlink(partial)
        raise
    os.chmod(partial, 0o644)
    with open(partial, "rb") as stream:
        os.fsync(stream.fileno())
    os.replace(partial, path)
    record(path, sha256)
