# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Swap that this collection made: the units that say so, and the file on any filesystem."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass

from ansible_collections.nas.assistant.plugins.module_utils import _memory as memory
from ansible_collections.nas.assistant.plugins.module_utils._commands import answer, demand, run
from ansible_collections.nas.assistant.plugins.module_utils._files import replace

UNITS = "/etc/systemd/system"
ZRAM_UNIT = "nas-zram.service"
HEAD = "# Written by nas.assistant.swap, which takes away what it names.\n"
PATH = re.compile(r"(/[A-Za-z0-9._-]+)+")
_LEFT = 1 << 30  # bytes that must stay free
_SUBVOLUME = 256  # inode of each Btrfs subvolume's top

# Before any other swap, since it is memory.
_ZRAM = """[Unit]
Description=Swap of the NAS in compressed memory

[Service]
Type=oneshot
RemainAfterExit=yes
# What is in it has to find room in memory again.
TimeoutStopSec=10min
RuntimeDirectory=nas-zram
RuntimeDirectoryMode=0700
RuntimeDirectoryPreserve=yes
WorkingDirectory=/run/nas-zram
ExecStartPre=-/sbin/modprobe --quiet zram
# A kernel without zstd has its own choice.
ExecStart=/bin/sh -ec 'zramctl --find --size {size} --algorithm zstd >device || \\
    zramctl --find --size {size} >device; read -r device <device; \\
    mkswap "$$device" >/dev/null; swapon --priority 100 "$$device"'
ExecStop=/bin/sh -ec 'read -r device <device; swapoff "$$device"'
ExecStopPost=/bin/sh -c 'read -r device <device || exit 0; \\
    grep -q "^$$device " /proc/swaps || {{ zramctl --reset "$$device"; rm device; }}'

[Install]
WantedBy=multi-user.target
"""
_FILE = """[Unit]
Description=Swap of the NAS in {path}

[Swap]
What={path}
# A disk that turns takes minutes to give it back.
TimeoutSec=10min

[Install]
WantedBy=swap.target
"""


class SwapError(Exception):
    """Swap cannot be had as it is wanted; names the option, its value, and the remedy."""


@dataclass(frozen=True)
class Swap:
    """Swap of ours. ``path``: the file; empty for zram. ``size``: bytes, 0 where it is unknown."""

    path: str
    size: int

    @property
    def kind(self) -> str:
        """``file`` or ``zram``."""
        return "file" if self.path else "zram"

    def text(self) -> str:
        """Return its unit's text."""
        return HEAD + (_FILE.format(path=self.path) if self.path else _ZRAM.format(size=self.size))


def parse(text: str) -> Swap | None:
    """Return the swap that a unit's text names, if it is one of ours."""
    if not text.startswith(HEAD):
        return None
    named = re.search(r"^What=(.+)$", text, re.MULTILINE)
    if named:
        return Swap(named[1], 0)
    size = re.search(r"--size (\d+)", text)
    return Swap("", int(size[1]) if size else 0)


def unit(swap: Swap) -> str:
    """Return the name of its unit, which systemd derives from the path."""
    if not swap.path:
        return ZRAM_UNIT
    return str(demand(["systemd-escape", "--path", "--suffix=swap", swap.path], SwapError)).strip()


def ours(folder: str = UNITS) -> dict[str, Swap]:
    """Return the swap that units of ours name, by the unit."""
    found = {}
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if name == ZRAM_UNIT or name.endswith(".swap"):
            # A link is what enables a unit, or masks one: not ours to read.
            if os.path.islink(path) or not os.path.isfile(path):
                continue
            with open(path, encoding="utf-8", errors="replace") as stream:
                swap = parse(stream.read())
            if swap:
                found[name] = swap
    return found


def is_written(swap: Swap, name: str) -> bool:
    """Whether its unit says what it should."""
    try:
        with open(os.path.join(UNITS, name), encoding="utf-8", errors="replace") as stream:
            return stream.read() == swap.text()
    except FileNotFoundError:
        return False


def write_unit(swap: Swap, name: str) -> None:
    """Write its unit: from now on, what that names is ours."""
    replace(os.path.join(UNITS, name), swap.text().encode(), 0, 0, 0o644)


def in_use() -> dict[str, int]:
    """Return the swap that the kernel has, each with its bytes."""
    with open("/proc/swaps", encoding="utf-8", errors="surrogateescape") as stream:
        return {each.path: each.size for each in memory.parse_swaps(stream.read())}


def has_zram() -> bool:
    """Whether this kernel can compress memory."""
    if os.path.exists("/sys/class/zram-control"):
        return True
    return bool(run(["modprobe", "--dry-run", "--quiet", "zram"]).returncode == 0)


def refuse_place(path: str, size: int) -> None:
    """Look at the place of a file that is to be made. A draft of a run that was cut off goes first.

    :raises SwapError: it cannot be made there.
    """
    folder = os.path.dirname(path)
    there = folder
    while not os.path.isdir(there):
        there = os.path.dirname(there)
    status = os.statvfs(there)
    free = status.f_bavail * status.f_frsize
    if os.path.isfile(draft_of(path)):
        free += os.stat(draft_of(path)).st_blocks * 512
    if free < size + _LEFT:
        raise SwapError(
            f"path={path}: a file of {size / (1 << 30):.1f} GiB would leave less than "
            f"{_LEFT >> 30} GiB of {free / (1 << 30):.1f} GiB that are free. Take a smaller size, "
            "or another place"
        )
    if there != folder or not _is_btrfs(folder):
        return
    others = set(os.listdir(folder)) - {os.path.basename(each) for each in (path, draft_of(path))}
    if others or os.stat(folder).st_ino != _SUBVOLUME:
        raise SwapError(
            f"path={path}: {folder} is no subvolume for it alone, and could have no snapshot any "
            "more. Take a folder that is not there yet"
        )


def make(path: str, size: int) -> None:
    """Make a file that the kernel takes for swap, beside its place; ``put`` gives it its name.

    On Btrfs without copy-on-write and compression, and in a subvolume of its own, since one with
    swap in use cannot be snapshotted.

    :raises SwapError: the kernel does not take it.
    """
    folder, draft = os.path.dirname(path), draft_of(path)
    above = os.path.dirname(folder)
    os.makedirs(above, mode=0o755, exist_ok=True)
    btrfs = _is_btrfs(folder if os.path.isdir(folder) else above)
    if btrfs and not os.path.isdir(folder):
        demand(["btrfs", "subvolume", "create", folder], SwapError, package="btrfs-progs")
        os.chmod(folder, 0o700)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    drop_draft(path)
    try:
        if btrfs:
            demand(["btrfs", "filesystem", "mkswapfile", "--size", str(size), draft], SwapError)
        else:
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, size)
            finally:
                os.close(descriptor)
            demand(["mkswap", draft], SwapError)
        _try(draft, path)
    except BaseException:
        drop_draft(path)
        raise


def _try(draft: str, path: str) -> None:
    """Have the kernel take it for a moment: what lies beneath it may not be fit."""
    done = run(["swapon", draft])
    if done.returncode != 0:
        raise SwapError(
            f"path={path} lies on {_filesystem(draft)}, and the kernel takes no swap file there "
            f"({' '.join(done.stderr.split())}). Take a path on ext4, on XFS, or on a Btrfs of one "
            "disk; or kind=zram"
        )
    demand(["swapoff", draft], SwapError)


def put(path: str) -> None:
    """Give the file that was made its name, in place of the one before."""
    os.rename(draft_of(path), path)


def draft_of(path: str) -> str:
    """Return the name under which a file is made."""
    return os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.nas-assistant-draft")


def drop_draft(path: str) -> None:
    """Remove what a run left that was cut off."""
    draft = draft_of(path)
    if draft in in_use():
        demand(["swapoff", draft], SwapError)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(draft)


def remove(path: str) -> None:
    """Remove a file of ours that is no longer in use, and its folder if that is empty then, and as
    ``make`` makes one."""
    drop_draft(path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    folder = os.path.dirname(path)
    # A subvolume goes like a folder.
    with contextlib.suppress(OSError):
        status = os.stat(folder)
        if (status.st_uid, status.st_mode & 0o7777) == (0, 0o700) and folder != "/root":
            os.rmdir(folder)


def size_of(path: str) -> int:
    """Return the bytes of the swap file that is there; 0 where there is none."""
    kind = answer(["blkid", "-p", "-o", "value", "-s", "TYPE", path]).strip()
    return os.path.getsize(path) if kind == "swap" and os.path.isfile(path) else 0


def _filesystem(path: str) -> str:
    return str(answer(["findmnt", "-n", "-o", "FSTYPE", "--target", path])).strip()


def _is_btrfs(path: str) -> bool:
    return _filesystem(path) == "btrfs"
