# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""The virtual disks of a NAS: sparse files on loop devices of this machine.

Loop numbers belong to the whole machine and are lost at a reboot, so nothing here trusts a
remembered number: the kernel is asked which file is behind which device.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from lab.errors import LabError
from lab.progress import warn
from lab.run import run

_LOOP_CTL_ADD = 0x4C80  # linux/loop.h
_DELETED = " (deleted)"
_NO_LOOP = (
    "The lab needs loop devices of this machine: run as root on Linux with the loop module "
    "(modprobe loop), "
    "not inside a container without /dev/loop-control."
)


@dataclass(frozen=True)
class Loop:
    """A loop device in use: its path and the file behind it."""

    device: str
    file: str
    deleted: bool = False


def attached(sys_block: Path = Path("/sys/block")) -> list[Loop]:
    """Every loop device of this machine that has a file behind it."""
    loops = []
    for entry in sorted(sys_block.glob("loop*/loop/backing_file")):
        try:
            file = entry.read_text(encoding="utf-8").rstrip("\n")
        except OSError:  # detached since the listing
            continue
        device = f"/dev/{entry.parent.parent.name}"
        loops.append(Loop(device, file.removesuffix(_DELETED), file.endswith(_DELETED)))
    return loops


def below(folder: Path, loops: list[Loop]) -> list[Loop]:
    """Those whose file is, or before its deletion was, inside a folder."""
    return [loop for loop in loops if Path(loop.file).is_relative_to(folder)]


def parse_size(text: str) -> int:
    """Bytes of a size such as 512M, 4G or 1T."""
    units = {"M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    number, unit = text[:-1], text[-1:].upper()
    if unit not in units or not number.isascii() or not number.isdigit() or int(number) == 0:
        raise LabError(
            f"{text!r} is not a disk size: use a whole number with M, G or T, for example 8G."
        )
    size = int(number) * units[unit]
    if size < 128 << 20:
        raise LabError(f"a disk of {text} is too small for Btrfs: use at least 128M.")
    return size


def ensure(files: list[Path], size: int) -> list[str]:
    """Make files that are missing, attach those that are not; return their devices in order."""
    for file in files:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as stream:
                stream.truncate(size)
    devices = []
    for file in files:
        found = [loop for loop in below(file, attached()) if not loop.deleted]
        devices.append(found[0].device if found else _attach(file))
    return devices


def reattach(file: Path, device: str) -> bool:
    """Put a file back behind the device that it had; False when something else is there now."""
    loops = attached()
    if any(loop.device == device and loop.file == str(file) and not loop.deleted for loop in loops):
        return True
    if not file.exists() or any(loop.device == device or loop.file == str(file) for loop in loops):
        return False
    _add_node(device)
    return run(["losetup", device, file], check=False).returncode == 0


def detach(loops: list[Loop]) -> None:
    """Free loop devices, and say which one something still uses."""
    for loop in loops:
        run(["losetup", "--detach", loop.device], check=False)
    left = {(loop.device, loop.file) for loop in attached()}
    for loop in loops:
        if (loop.device, loop.file) in left:
            warn(
                f"{loop.device} stays in use for {loop.file}: something has it mounted. The "
                f"kernel frees it with "
                f"the last user; `grep {loop.device} /proc/*/mounts` names them."
            )


def _attach(file: Path) -> str:
    # losetup picks the number and attaches in two steps, so another process can be quicker once
    # in a while.
    for _ in range(5):
        done = run(["losetup", "--find", "--show", file], check=False, remedy=_NO_LOOP)
        if done.returncode == 0:
            return done.stdout.strip()
    raise LabError(f"no loop device for {file}: {done.stderr.strip()}. {_NO_LOOP}")


def _add_node(device: str) -> None:
    """Make /dev/loopN exist again after a reboot, where only the first few do."""
    if Path(device).exists():
        return
    try:
        control = os.open("/dev/loop-control", os.O_RDWR)
    except OSError:
        return
    try:
        fcntl.ioctl(control, _LOOP_CTL_ADD, int(device.removeprefix("/dev/loop")))
    except OSError:
        pass
    finally:
        os.close(control)
