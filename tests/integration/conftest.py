# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Btrfs on loop devices of this machine, for modules that change filesystems."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible_collections.nas.assistant.plugins.module_utils import _backup
from copies import Nas, OffSite
from shell import LABEL, sh
from sshd import Sshd

from lab import apt, disks, paths

_CLONE_NEWNS = 0x00020000  # linux/sched.h
SIZE = 256 << 20  # bytes of a disk; mkfs.btrfs takes nothing below 114 MiB


@pytest.fixture(scope="session", autouse=True)
def _own_run() -> None:
    """Make a worker a NAS of its own: locks and mount points of copies have fixed names below /run.

    What is mounted in it goes with the worker.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ or os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "no mount namespace for this worker")
    sh("mount", "--make-rprivate", "/")
    Path(_backup.RUN).mkdir(exist_ok=True)
    sh("mount", "-t", "tmpfs", "tmpfs", _backup.RUN)


@pytest.fixture(scope="session")
def _btrfs() -> None:
    """What the tests need of this machine."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it makes loop devices and filesystems")
    if "btrfs" not in Path("/proc/filesystems").read_text(encoding="utf-8"):
        subprocess.run(["modprobe", "--quiet", "btrfs"], check=False)
    if "btrfs" not in Path("/proc/filesystems").read_text(encoding="utf-8"):
        pytest.skip("this kernel has no Btrfs")
    if not shutil.which("mkfs.btrfs"):
        apt.install(["btrfs-progs"], why="the tests of Btrfs modules make filesystems")


@pytest.fixture
def folder(_btrfs: None) -> Iterator[Path]:
    """A folder in which whatever is mounted, and whose files are behind loop devices, is released
    at the end. `make down` finds it too."""
    folder = paths.lab(f"integration{os.getpid()}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    yield folder
    mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    for point in reversed([line.split()[1] for line in mounts]):
        if Path(point).is_relative_to(folder):
            release(point)
    disks.detach(disks.below(folder, disks.attached()))
    shutil.rmtree(folder)


def release(point: str) -> None:
    """Unmount what the work of a test that failed may still hold for a moment."""
    for _ in range(20):
        if subprocess.run(["umount", point], check=False, capture_output=True).returncode == 0:
            return
        time.sleep(0.5)
    sh("umount", "--lazy", point)


@pytest.fixture
def make_disks(folder: Path) -> Callable[..., list[str]]:
    """Return a function that makes blank disks and gives their devices."""
    made: list[Path] = []

    def make(count: int, size: int = SIZE) -> list[str]:
        files = [folder / f"disk{len(made) + number}.img" for number in range(count)]
        made.extend(files)
        return disks.ensure(files, size)

    return make


@pytest.fixture
def pool(folder: Path, make_disks: Callable[..., list[str]]) -> Path:
    """A Btrfs over two disks as RAID1, mounted at its top level."""
    devices = make_disks(2)
    sh("mkfs.btrfs", "-q", "-L", LABEL, "-d", "raid1", "-m", "raid1", *devices)
    point = folder / "tank"
    point.mkdir()
    sh("mount", devices[0], str(point))
    return point


@pytest.fixture
def sshd(folder: Path) -> Iterator[Sshd]:
    """An SSH server, below the folder of the test."""
    program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if not program:
        pytest.skip("there is no sshd on this machine (package openssh-server)")
    # Debian's sshd insists on this empty folder, which its service makes. It stays: another worker
    # may have a server, too.
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    server = Sshd(folder / "sshd", program)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def _restic() -> None:
    """What copies need of this machine."""
    missing = [name for name in ("restic", "rclone") if not shutil.which(name)]
    if missing and os.geteuid() == 0:
        apt.install(missing, why="the tests of backups copy to a real server")


@pytest.fixture
def off_site(folder: Path, _restic: None) -> Iterator[OffSite]:
    place = folder / "offsite"
    place.mkdir()
    server = OffSite(place)
    yield server
    server.stop()


@pytest.fixture
def nas(pool: Path, folder: Path, make_disks: Callable[..., list[str]], off_site: OffSite) -> Nas:
    (disk,) = make_disks(1, 96 << 20)
    sh("mkfs.ext4", "-q", disk)
    return Nas(pool, folder, disk, off_site)
