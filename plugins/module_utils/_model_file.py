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
# A model never takes the last bytes: logs, databases and the system live on the same disk.
RESERVE = 256 << 20


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
        raise ModelFileError(not_gguf(path, magic))


def not_gguf(source: str, magic: bytes) -> str:
    """Return the message about a file that begins with ``magic``."""
    return (
        f"{source}: not a GGUF file (it begins with {magic!r}, not {GGUF_MAGIC!r}); "
        "give the address of the .gguf file itself, not of a page about it"
    )


def check_free_space(path: str, needed: int) -> None:
    """Raise ModelFileError unless ``needed`` bytes fit beside ``path`` and leave RESERVE free."""
    stat = os.statvfs(os.path.dirname(path) or ".")
    free = stat.f_bavail * stat.f_frsize
    if needed + RESERVE > free:
        raise ModelFileError(
            f"{path}: needs {needed >> 20} MiB, and {RESERVE >> 20} MiB are kept free for "
            f"everything else, but the filesystem has {free >> 20} MiB free; free some space or "
            "set another models folder"
        )


@contextmanager
def partial_file(path: str) -> Iterator[BinaryIO]:
    """Open ``<path>.part`` at its end, locked, so that two runs never mix their bytes.

    Who holds it may also rename it. One that is still empty at the end is removed.
    """
    partial = f"{path}.part"
    while True:
        stream = open(partial, "a+b")  # noqa: SIM115 (locked, then checked, before it is used)
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            stream.close()
            raise ModelFileError(
                f"{path}: another run is writing this model; wait for it to end"
            ) from error
        if _is_at(stream, partial):
            break
        stream.close()  # renamed or removed between open and lock
    with stream:
        try:
            yield stream
        finally:
            stream.flush()
            if os.fstat(stream.fileno()).st_size == 0 and _is_at(stream, partial):
                os.unlink(partial)


def _is_at(stream: BinaryIO, path: str) -> bool:
    """Whether ``path`` still names the open file."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def partial_size(path: str) -> int:
    """Return how many bytes an interrupted transfer left, 0 without one."""
    try:
        return os.path.getsize(f"{path}.part")
    except OSError:
        return 0


def check_beginning(stream: BinaryIO, source: str) -> None:
    """Refuse a partial model that does not begin like a GGUF file, before the rest is fetched.

    :raises ModelFileError: after emptying the file, for nothing can be added to it that helps.
    """
    stream.seek(0)
    magic = stream.read(len(GGUF_MAGIC))
    stream.seek(0, os.SEEK_END)
    if magic != GGUF_MAGIC[: len(magic)]:
        stream.truncate(0)
        raise ModelFileError(not_gguf(source, magic))


def install(stream: BinaryIO, path: str, sha256: str, source: str) -> None:
    """Verify the partial file that ``partial_file`` opened and give it its final name.

    :param source: where the bytes came from, for the message.
    :raises ModelFileError: wrong digest or no GGUF; the partial file is emptied then, since
        resuming from wrong bytes can never end right.
    """
    partial = f"{path}.part"
    stream.flush()
    check_beginning(stream, source)
    found = sha256_of(partial)
    if found != sha256:
        stream.truncate(0)
        raise ModelFileError(
            f"{source}: SHA-256 is {found}, expected {sha256}; the file was changed at its "
            "source or damaged on the way: check the digest that the model's publisher gives"
        )
    check_gguf(partial)
    os.chmod(partial, 0o644)
    os.fsync(stream.fileno())
    os.replace(partial, path)
    record(path, sha256)
