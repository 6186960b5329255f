# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What an image is built of: which files count, their digest, and one archive of them to send."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import shutil
import tarfile
import tempfile


def read_patterns(context: str) -> list[str]:
    """Return the patterns of the context's .dockerignore, none without such a file."""
    try:
        with open(os.path.join(context, ".dockerignore"), encoding="utf-8") as stream:
            lines = [line.strip() for line in stream]
    except FileNotFoundError:
        return []
    return [line for line in lines if line and not line.startswith("#")]


def is_input(path: str, patterns: list[str]) -> bool:
    """Return whether Docker sends this file (relative) to the build: the last pattern decides.

    Understood are names, folders, globs, a leading ``**/`` and ``!``; ``*`` also crosses a slash,
    which can only count a file too few under a glob inside a folder, and this project uses none.
    """
    parts = path.split("/")
    # A pattern that fits a folder fits all that is in it.
    prefixes = ["/".join(parts[:length]) for length in range(1, len(parts) + 1)]
    kept = True
    for pattern in patterns:
        bare = pattern.removeprefix("!").rstrip("/")
        anywhere = bare.startswith("**/")
        names = parts if anywhere else prefixes
        if any(fnmatch.fnmatchcase(name, bare.removeprefix("**/")) for name in names):
            kept = pattern.startswith("!")
    return kept


def context_files(context: str) -> list[str]:
    """Return the files that can change the image, relative and sorted."""
    patterns = read_patterns(context)
    found = []
    for folder, _, files in os.walk(context):
        for name in files:
            path = os.path.relpath(os.path.join(folder, name), context)
            # Docker always reads these two, whatever is ignored.
            if path in ("Dockerfile", ".dockerignore") or is_input(path, patterns):
                found.append(path)
    return sorted(found)


def inputs_digest(context: str, args: dict[str, object]) -> str:
    """Return a hex digest over the names, modes and bytes of the files and over the arguments."""
    digest = hashlib.sha256(json.dumps(args, sort_keys=True).encode())
    for relative in context_files(context):
        path = os.path.join(context, relative)
        executable = os.access(path, os.X_OK)
        with open(path, "rb") as stream:
            content = hashlib.sha256(stream.read()).hexdigest()
        digest.update(f"{relative}\0{executable:d}\0{content}\n".encode())
    return digest.hexdigest()


def pack(context: str, path: str) -> None:
    """Write the files that can change the image to one archive, whole or not at all."""
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    descriptor, draft = tempfile.mkstemp(dir=folder, suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as stream, tarfile.open(fileobj=stream, mode="w") as tar:
            for relative in context_files(context):
                source = os.path.join(context, relative)
                member = tarfile.TarInfo(relative)
                member.size = os.path.getsize(source)
                # All that the digest heeds, and nothing of who checked it out, or when.
                member.mode = 0o755 if os.access(source, os.X_OK) else 0o644
                with open(source, "rb") as content:
                    tar.addfile(member, content)
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise


def unpack(archive: str, folder: str) -> None:
    """Put what :func:`pack` wrote into an empty folder.

    :raises ValueError: it holds something else, which could come to lie elsewhere.
    """
    with tarfile.open(archive) as tar:
        for member in tar:
            path = os.path.normpath(os.path.join(folder, member.name))
            content = tar.extractfile(member) if member.isfile() else None
            if content is None or not path.startswith(f"{folder}/"):
                raise ValueError(f"{archive}: {member.name} is no file of a build context")
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with content, open(path, "wb") as stream:
                shutil.copyfileobj(content, stream)
            os.chmod(path, member.mode & 0o755)
