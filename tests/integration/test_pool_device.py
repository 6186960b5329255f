# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Which device is found for the mount units of a pool, and how long its others are waited for."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.nas.assistant.plugins.modules import btrfs_pool
from shell import LABEL, sh

from lab import paths

PROGRAM = paths.REPOSITORY / "roles/storage/files/nas-pool-device"
LINKS = Path("/run/nas-assistant/pools")


# A line for each second that it waits.
SLEEP = 'sleep() { echo slept >&2; command sleep "$1"; }\n'


def find(uuid: str, seconds: int) -> subprocess.CompletedProcess[str]:
    program = ["sh", "-c", SLEEP + PROGRAM.read_text(encoding="utf-8"), PROGRAM.name]
    argv = [*program, uuid, str(seconds)]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def uuid(pool: Path) -> Iterator[str]:
    uuid = sh("findmnt", "-no", "UUID", str(pool)).strip()
    yield uuid
    (LINKS / uuid).unlink(missing_ok=True)


def test_a_pool_is_mounted_by_its_link(uuid: str, pool: Path) -> None:
    (pool / "letter").write_text("one")
    sh("umount", str(pool))
    sh("btrfs", "device", "scan", "--forget")
    done = find(uuid, 10)
    assert (done.returncode, done.stderr) == (0, "")
    sh("mount", "-t", "btrfs", "-o", "subvol=/", str(LINKS / uuid), str(pool))
    assert (pool / "letter").read_text() == "one"


def test_it_waits_for_the_others_and_goes_on_without(
    uuid: str, pool: Path, make_disks: Callable[..., list[str]]
) -> None:
    lost, left = sorted(sh("blkid", "-t", f"UUID={uuid}", "-o", "device").split())
    sh("umount", str(pool))
    sh("losetup", "--detach", lost)
    sh("btrfs", "device", "scan", "--forget")
    began = time.monotonic()
    done = find(uuid, 2)
    assert (done.returncode, set(done.stderr.split())) == (0, {"slept"})
    # Whole seconds of the clock, of which the first one may be nearly over.
    assert time.monotonic() - began > 1
    assert done.stderr.count("slept") <= 3
    assert str((LINKS / uuid).readlink()) == left
    sh("mount", "-t", "btrfs", "-o", "degraded", str(LINKS / uuid), str(pool))
    done = find(uuid, 2)
    assert (done.returncode, done.stderr) == (0, ""), "it waits for the rest of one that is mounted"


def test_a_pool_that_is_worked_on_can_be_mounted(
    uuid: str,
    pool: Path,
    make_disks: Callable[..., list[str]],
    call: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (pool / "letter").write_text("one")
    lost, left = sorted(sh("blkid", "-t", f"UUID={uuid}", "-o", "device").split())
    assert find(uuid, 2).returncode == 0, "the link of an earlier boot"
    sh("umount", str(pool))
    sh("losetup", "--detach", lost)
    sh("btrfs", "device", "scan", "--forget")
    (new,) = make_disks(1)
    # What takes longer than it is waited for; its end is that of the test.
    busy = {"device replace"}
    monkeypatch.setattr(btrfs_pool, "operation", lambda _: "".join(busy))
    wish = {"label": LABEL, "uuid": uuid, "devices": [new, left], "format": True, "wait": 0}
    answer = call(btrfs_pool.main, **wish)
    assert answer.get("busy") == "device replace", answer
    place = Path(btrfs_pool.WORKPLACE) / uuid
    assert place.is_mount()
    done = find(uuid, 2)
    assert (done.returncode, done.stderr) == (0, "")
    sh("mount", "-t", "btrfs", "-o", "subvol=/", str(LINKS / uuid), str(pool))
    assert (pool / "letter").read_text() == "one"
    # The next run goes on, and leaves its workplace.
    busy.clear()
    answer = call(btrfs_pool.main, **{**wish, "wait": 60})
    assert answer["missing"] == 0, answer
    assert not place.exists()
    assert (pool / "letter").read_text() == "one"


def test_no_link_is_left_to_a_device_that_is_gone(uuid: str, pool: Path) -> None:
    assert find(uuid, 0).returncode == 0
    devices = sh("blkid", "-t", f"UUID={uuid}", "-o", "device").split()
    sh("umount", str(pool))
    sh("losetup", "--detach", *devices)
    done = find(uuid, 0)
    assert done.returncode == 1
    assert f"no device has the Btrfs {uuid}" in done.stderr
    assert not (LINKS / uuid).is_symlink(), "another filesystem may have its name by now"
