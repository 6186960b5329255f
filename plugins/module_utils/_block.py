# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What is on a disk or a partition, and which disks a filesystem stands on."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterable

from ansible_collections.nas.assistant.plugins.module_utils import _zfs as zfs
from ansible_collections.nas.assistant.plugins.module_utils._commands import run

FIRST = 4 << 20  # bytes that must be zeros
BY_ID = "/dev/disk/by-id"
SYS = "/sys/class/block"
# Filesystems of other machines, as findmnt calls them.
_REMOTE = ("nfs", "cifs", "smb", "ceph", "9p", "fuse.sshfs", "fuse.rclone", "fuse.glusterfs")
# Names that say nothing to somebody who holds the disk: taken where there is no other.
_OPAQUE = ("wwn-", "nvme-eui.", "nvme-nvme.", "dm-uuid-", "md-uuid-", "lvm-pv-uuid-")


def is_there(path: str) -> bool:
    """Whether a path leads to something with room; a disk that failed may leave a name without."""
    try:
        return _size(path) > 0
    except OSError as error:
        # Nobody behind it. What cannot be opened for another reason is there, and in use.
        return error.errno not in (errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.ENOMEDIUM)


def room(path: str) -> int:
    """Return the bytes of a block device, 0 where it cannot be opened."""
    try:
        return _size(path)
    except OSError:
        return 0


def _size(path: str) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.lseek(descriptor, 0, os.SEEK_END)
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


def stable_name(path: str) -> str:
    """Return a name below ``/dev/disk/by-id`` that leads to a device; empty where it has none."""
    names = os.listdir(BY_ID) if os.path.isdir(BY_ID) else []
    real = os.path.realpath(path)
    found = [name for name in names if os.path.realpath(os.path.join(BY_ID, name)) == real]
    found.sort(key=lambda name: (name.startswith(_OPAQUE), name))
    return os.path.join(BY_ID, found[0]) if found else ""


def demand_stable(label: str, paths: Iterable[str], failure: type[Exception]) -> None:
    """Refuse to write to a device by a name that may be another disk's after the next boot.

    :param paths: as the inventory has them.
    :param failure: what is raised for one that is the kernel's own although there is a better one.
    """
    better = [
        f"{path} may be another disk after the next boot: name it {name}"
        for path in paths
        if os.path.realpath(path) == path and (name := stable_name(path))
    ]
    if better:
        raise failure(f"{label}: devices: {'; '.join(better)}")


def demand_blank(label: str, paths: Iterable[str], failure: type[Exception]) -> None:
    """Refuse to overwrite what anything is on.

    :param label: of the pool, for the message.
    :param failure: what is raised where one of the devices is not blank; says what is on it.
    """
    held = [found for path in paths if (found := holds(path))]
    if held:
        raise failure(
            f"{label}: {'; '.join(held)}. Nothing of it was changed. If you are sure that you want "
            "none of it, empty the device yourself (wipefs --all DEVICE, then dd if=/dev/zero "
            "of=DEVICE bs=1M count=4) and run again"
        )


def _named(signature: dict[str, str | None]) -> str:
    label = signature.get("label")
    return f"{signature['type']} ({label})" if label else str(signature["type"])


def disks(device: str) -> frozenset[str]:
    """Return the disks that a block device stands on in the end, such as ``sda``: those below a
    partition, an encrypted device, a RAID, a volume group. A loop device is a disk of its own."""
    name = os.path.basename(os.path.realpath(device))
    found: set[str] = set()
    left = [os.path.realpath(os.path.join(SYS, name))]
    while left:
        place = left.pop()
        below = os.path.join(place, "slaves")
        under = os.listdir(below) if os.path.isdir(below) else []
        if os.path.exists(os.path.join(place, "partition")):
            left.append(os.path.dirname(place))
        elif under:
            left += [os.path.realpath(os.path.join(below, each)) for each in under]
        else:
            found.add(os.path.basename(place))
    return frozenset(found)


def with_uuid(uuid: str) -> list[str]:
    """Return the devices whose filesystem has a UUID, as they are now: nothing is remembered."""
    done = run(["blkid", "-c", "/dev/null", "-t", f"UUID={uuid}", "-o", "device"])
    return sorted(done.stdout.split())


def under(path: str) -> list[str]:
    """Return the devices of the filesystem that a path lies in; none of one without devices."""
    source, kind = _mounted(path)
    if kind == "zfs":
        pool = zfs.pool(source.split("/")[0])
        return [leaf.name for leaf in pool.leaves if not leaf.failed] if pool else []
    if not source.startswith("/dev/"):
        return []
    return with_uuid(_uuid(source)) if kind == "btrfs" else [source]


def opaque(path: str) -> str:
    """Return the kind of the filesystem that a path lies in where it is of this machine and nobody
    knows its devices, such as ``fuse.mergerfs``; an empty text of all others."""
    _, kind = _mounted(path)
    return "" if kind.startswith(_REMOTE) or under(path) else kind


def filesystem(path: str) -> str:
    """Return the UUID of the filesystem that a path lies in, of ZFS the guid of the pool; an empty
    text of one without."""
    source, kind = _mounted(path)
    if kind == "zfs":
        pool = zfs.pool(source.split("/")[0])
        return str(pool.guid) if pool else ""
    return _uuid(source) if source.startswith("/dev/") else ""


def mount_point(path: str) -> str:
    """Return where the filesystem is mounted that a path lies in."""
    done = run(["findmnt", "--noheadings", "--output", "TARGET", "--target", path])
    return str(done.stdout.splitlines()[-1].strip()) if done.stdout.strip() else ""


def _mounted(path: str) -> tuple[str, str]:
    """Return what is mounted where a path lies, and the kind of filesystem."""
    columns = ["--noheadings", "--nofsroot", "--output", "SOURCE,FSTYPE"]
    done = run(["findmnt", *columns, "--target", path])
    source, kind = (*done.stdout.split(), "", "")[:2]
    return source, kind


def _uuid(device: str) -> str:
    # Asked of the device, since findmnt knows it only from udev.
    told = run(["blkid", "-c", "/dev/null", "-o", "value", "-s", "UUID", device])
    return str(told.stdout.strip())
