# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Whether a disk or a partition is there, and is blank, so that a filesystem may be made on it."""

from __future__ import annotations

import errno
import json
import os
import stat

from ansible_collections.nas.assistant.plugins.module_utils._commands import run

FIRST = 4 << 20  # bytes that must be zeros


def is_there(path: str) -> bool:
    """Whether a path leads to something with room; a disk that failed may leave a name without."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        # Nobody behind it. What cannot be opened for another reason is there, and in use.
        return error.errno not in (errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.ENOMEDIUM)
    try:
        return os.lseek(descriptor, 0, os.SEEK_END) > 0
    finally:
        os.close(descriptor)


def holds(path: str) -> str:
    """Return what is on a block device that must not be lost, or an empty text when it is blank.

    Nothing is taken for granted: signatures are read from the device itself, since what udev
    remembers may be old, and the kernel is asked whether anybody has it.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        return f"{path} cannot be looked at ({error.strerror})"
    if not stat.S_ISBLK(status.st_mode):
        return f"{path} is no block device"
    # EBUSY: mounted, swap, or a part of a RAID, a volume group or a filesystem; of a disk, also
    # when one of its partitions is.
    try:
        os.close(os.open(path, os.O_RDWR | os.O_EXCL))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return f"{path} is in use"
        return f"{path} cannot be written to ({error.strerror})"
    done = run(["wipefs", "--json", path])
    if done.returncode != 0:
        return f"{path} cannot be read ({' '.join(done.stderr.split())})"
    found = json.loads(done.stdout or "{}").get("signatures", [])
    if found:
        kinds = ", ".join(sorted({_named(signature) for signature in found}))
        return f"{path} holds {kinds}"
    # What is encrypted has no signature, and looks like anything but zeros.
    with open(path, "rb") as stream:
        if stream.read(FIRST).strip(b"\0"):
            return f"{path} holds something that has no signature in its first {FIRST >> 20} MiB"
    return ""


def _named(signature: dict[str, str | None]) -> str:
    label = signature.get("label")
    return f"{signature['type']} ({label})" if label else str(signature["type"])
