# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Real filesystems that are made, grown, broken and repaired."""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.nas.assistant.plugins.module_utils import _btrfs as btrfs
from ansible_collections.nas.assistant.plugins.modules import btrfs_pool
from shell import sh

Call = Callable[..., dict[str, Any]]
Disks = Callable[..., list[str]]
# A partition table with one partition from sector 2048 on, as it stands in a disk's first sector.
TABLE = "\\0\\0\\0\\0\\203\\0\\0\\0\\0\\010\\0\\0\\0\\020\\0\\0" + "\\0" * 48 + "\\125\\252"
PATIENCE = 60  # seconds for what a disk of this size takes one


def want(call: Call, **arguments: Any) -> dict[str, Any]:
    answer = call(btrfs_pool.main, **{"label": "tank", "wait": PATIENCE, **arguments})
    assert not answer.get("failed"), answer["msg"]
    return answer


def refused(call: Call, **arguments: Any) -> str:
    answer = call(btrfs_pool.main, **{"label": "tank", "wait": PATIENCE, **arguments})
    assert answer.get("failed"), answer
    return str(answer["msg"])


def mount(device: str, point: Path, options: str = "defaults") -> Path:
    point.mkdir(exist_ok=True)
    sh("mount", "-o", options, device, str(point))
    return point


def fill(point: Path, mebibytes: int = 32) -> dict[str, str]:
    """Write files; return their digests."""
    source = random.Random(1)  # noqa: S311 - the same each time
    for number in range(mebibytes):
        (point / f"file{number}").write_bytes(source.randbytes(1 << 20))
    sh("sync", "-f", str(point))
    return digests(point)


def digests(point: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in point.glob("file*")
    }


def profiles(point: Path) -> dict[str, list[str]]:
    said = sh("btrfs", "--format", "json", "filesystem", "df", str(point))
    return dict(btrfs.parse_profiles(said))


def test_a_mirror_is_made_once(call: Call, make_disks: Disks, folder: Path) -> None:
    devices = make_disks(2)
    wish = {"devices": devices, "format": True}
    plan = want(call, check=True, **wish)
    assert plan["changed"]
    assert plan["uuid"] == ""
    assert sh("wipefs", devices[0]) == ""
    made = want(call, **wish)
    assert made["changed"]
    point = mount(devices[1], folder / "tank")
    assert profiles(point) == {"data": ["raid1"], "system": ["raid1"], "metadata": ["raid1"]}
    again = want(call, **wish)
    assert not again["changed"]
    assert again["uuid"] == made["uuid"]
    # The flag is for what is written to, and nothing is.
    assert not want(call, devices=devices)["changed"]


def test_a_single_disk_has_its_metadata_twice(call: Call, make_disks: Disks, folder: Path) -> None:
    devices = make_disks(1)
    want(call, devices=devices, format=True)
    found = profiles(mount(devices[0], folder / "tank"))
    assert (found["data"], found["metadata"]) == (["single"], ["dup"])


@pytest.mark.parametrize(
    "occupy",
    [
        ("mkfs.ext4", "-q", "-L", "photos", "{}"),
        ("mkswap", "{}"),
        # As an encrypted disk looks.
        ("dd", "if=/dev/urandom", "of={}", "bs=4096", "seek=16", "count=4"),
        ("sh", "-c", f"printf '{TABLE}' | dd of={{}} bs=1 seek=446 conv=notrunc,fsync"),
        ("mkfs.btrfs", "-q", "-L", "other", "{}"),
    ],
)
def test_a_device_with_data_is_refused(
    call: Call, make_disks: Disks, occupy: tuple[str, ...]
) -> None:
    blank, held = make_disks(2)
    sh(*(word.replace("{}", held) for word in occupy))
    before = Path(held).read_bytes()
    said = refused(call, devices=[blank, held], format=True)
    assert f"{held} holds" in said
    assert Path(held).read_bytes() == before
    assert sh("wipefs", blank) == ""


def test_a_device_in_use_is_refused(call: Call, make_disks: Disks, folder: Path) -> None:
    (held,) = make_disks(1)
    sh("mkfs.ext4", "-q", held)
    mount(held, folder / "mounted")
    assert f"{held} is in use" in refused(call, devices=[held], format=True)


def test_a_blank_device_is_refused_without_the_flag(call: Call, make_disks: Disks) -> None:
    devices = make_disks(1)
    assert f"{devices[0]} would be overwritten" in refused(call, devices=devices)
    assert sh("wipefs", devices[0]) == ""


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ({}, "give devices to make it on, or the uuid"),
        ({"uuid": "2f7c8a1e-0000-4000-8000-000000000001"}, "no disk here has the Btrfs uuid="),
        (
            {"devices": ["/dev/disk/by-id/none"], "format": True},
            "/dev/disk/by-id/none is not there",
        ),
        ({"data": "raid5"}, "data='raid5' is none of single, dup"),
        ({"metadata": "raid1c3"}, "metadata=raid1c3 wants 3 devices, and it has 2"),
    ],
)
def test_what_cannot_be(call: Call, make_disks: Disks, wish: dict[str, Any], reason: str) -> None:
    blank = {"devices": make_disks(2), "format": True} if {"data", "metadata"} & set(wish) else {}
    assert reason in refused(call, **blank, **wish)


def test_the_same_device_by_two_names(call: Call, make_disks: Disks, folder: Path) -> None:
    (device,) = make_disks(1)
    (folder / "name").symlink_to(device)
    said = refused(call, devices=[device, str(folder / "name")], format=True)
    assert "two of them are the same device" in said


def test_an_existing_one_is_adopted_as_it_is(call: Call, make_disks: Disks, folder: Path) -> None:
    devices = make_disks(2)
    sh("mkfs.btrfs", "-q", "-L", "photos", "-d", "single", "-m", "raid1", *devices)
    assert "To use it as it is, give uuid=" in refused(call, devices=devices, format=True)
    uuid = sh("blkid", "-p", "-o", "value", "-s", "UUID", devices[0]).strip()
    assert not want(call, uuid=uuid)["changed"]
    point = mount(devices[0], folder / "tank")
    before = fill(point, 8)
    # One that is mounted elsewhere is worked on there.
    converted = want(call, uuid=uuid, data="raid1")
    assert converted["done"] == ["convert data to raid1"]
    assert profiles(point)["data"] == ["raid1"]
    assert digests(point) == before
    assert not want(call, uuid=uuid, data="raid1")["changed"]


def test_it_grows_and_shrinks(call: Call, make_disks: Disks, folder: Path) -> None:
    devices = make_disks(3)
    want(call, devices=devices[:1], format=True)
    point = mount(devices[0], folder / "tank")
    before = fill(point)
    size = os.statvfs(point).f_blocks
    grown = want(call, devices=devices, data="raid1", metadata="raid1", format=True)
    assert grown["done"] == [
        f"add {devices[1]}, {devices[2]}",
        "convert data to raid1, metadata to raid1",
    ]
    assert profiles(point)["data"] == ["raid1"]
    assert os.statvfs(point).f_blocks > size
    said = refused(call, devices=devices[1:])
    assert f"{devices[0]} belongs to it and is not among devices=" in said
    shrunk = want(call, devices=devices[1:], remove=True)
    assert shrunk["done"] == [f"remove {devices[0]}"]
    assert digests(point) == before
    assert sh("wipefs", devices[0]) == ""


def test_one_that_is_adopted_is_not_said_to_be_a_mirror(
    call: Call, make_disks: Disks, folder: Path
) -> None:
    devices = make_disks(2)
    sh("mkfs.btrfs", "-q", "-L", "photos", devices[0])
    uuid = sh("blkid", "-p", "-o", "value", "-s", "UUID", devices[0]).strip()
    point = mount(devices[0], folder / "tank")
    grown = want(call, uuid=uuid, devices=devices, format=True)
    assert grown["done"] == [f"add {devices[1]}"]
    assert grown["unmirrored"] == ["data (single)", "metadata (dup)"]
    assert want(call, uuid=uuid, data="single")["unmirrored"] == ["metadata (dup)"]
    # Asked for, it becomes one.
    wish = {"uuid": uuid, "devices": devices, "data": "raid1", "metadata": "raid1"}
    assert want(call, **wish)["unmirrored"] == []
    assert profiles(point) == {"data": ["raid1"], "system": ["raid1"], "metadata": ["raid1"]}


@pytest.mark.parametrize("adopted", [False, True])
def test_a_failed_device_is_replaced_with_the_data_intact(
    call: Call, make_disks: Disks, folder: Path, adopted: bool
) -> None:
    lost, left, new = make_disks(3, 512 << 20)
    uuid = want(call, devices=[lost, left], format=True)["uuid"]
    point = mount(left, folder / "tank")
    before = fill(point)
    sh("umount", str(point))
    sh("losetup", "--detach", lost)
    sh("btrfs", "device", "scan", "--forget")

    # Still in the inventory, with or without a name left of it: it is said, and nothing is touched.
    for name in (lost, "/dev/disk/by-id/gone"):
        idle = want(call, devices=[name, left], format=True)
        assert (idle["changed"], idle["missing"], idle["mounted"]) == (False, 1, False)
    mount(left, point, "degraded")
    (point / "while").write_text("degraded")
    # More than the mirror's chunks have room for: the next ones have no mirror.
    (point / "file of a degraded pool").write_bytes(os.urandom(128 << 20))
    sh("sync", "-f", str(point))
    before = digests(point)
    profiled = {"data": "raid1", "metadata": "raid1"}
    # Of one that is adopted no profile is asked for: what was a mirror becomes one again.
    wish = {"devices": [new, left], "format": True, **({"uuid": uuid} if adopted else profiled)}
    assert "single" in profiles(point)["data"]
    plan = want(call, check=True, **wish)
    assert plan["done"][0] == f"replace device 1 by {new}"
    repaired = want(call, **wish)
    assert repaired["missing"] == 0
    assert repaired["busy"] == ""
    assert profiles(point) == {"data": ["raid1"], "system": ["raid1"], "metadata": ["raid1"]}
    assert not want(call, **wish)["changed"]

    # All of it stands on the new device too.
    sh("umount", str(point))
    sh("losetup", "--detach", left)
    sh("btrfs", "device", "scan", "--forget")
    mount(new, point, "degraded,ro")
    assert digests(point) == before
    assert (point / "while").read_text() == "degraded"


def test_a_device_that_still_works_is_replaced(call: Call, make_disks: Disks, folder: Path) -> None:
    old, left, new = make_disks(3)
    want(call, devices=[old, left], format=True)
    point = mount(left, folder / "tank")
    before = fill(point)
    assert want(call, devices=[new, left], format=True)["done"] == [f"replace device 1 by {new}"]
    assert digests(point) == before
    assert sh("wipefs", old) == ""


def test_the_room_of_larger_devices_is_taken(call: Call, make_disks: Disks, folder: Path) -> None:
    small = make_disks(2)
    large = make_disks(2, 2 * os.stat(folder / "disk0.img").st_size)
    uuid = want(call, devices=small, format=True)["uuid"]
    point = mount(small[0], folder / "tank")
    before, size = fill(point), os.statvfs(point).f_blocks
    assert f"uuid={uuid} on {small[0]}, {small[1]} has" in refused(call, devices=large, format=True)
    replaced = want(call, uuid=uuid, devices=large, format=True)
    assert replaced["done"] == [
        *(f"replace device {number} by {path}" for number, path in enumerate(large, 1)),
        *(f"let device {number} have all of its room" for number in (1, 2)),
    ]
    assert os.statvfs(point).f_blocks > 1.9 * size
    assert digests(point) == before
    assert not want(call, devices=large)["changed"]


# The command is left running on purpose, which Python would rather not see.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_long_work_goes_on_after_the_wait(call: Call, make_disks: Disks, folder: Path) -> None:
    devices = make_disks(2, 1 << 30)
    want(call, devices=devices[:1], format=True)
    fill(mount(devices[0], folder / "tank"), 300)
    sh("umount", str(folder / "tank"))
    wish = {"devices": devices, "data": "raid1", "metadata": "raid1", "format": True}
    first = want(call, wait=0, **wish)
    assert first["busy"] == "balance"
    deadline = time.monotonic() + PATIENCE
    while want(call, wait=0, **wish)["busy"]:
        assert time.monotonic() < deadline
    last = want(call, **wish)
    assert not last["changed"]
    # What was mounted for the work alone is mounted no more.
    assert not [
        line for line in Path("/proc/mounts").read_text().splitlines() if last["uuid"] in line
    ]


def test_a_smaller_device_is_no_replacement(call: Call, make_disks: Disks, folder: Path) -> None:
    old, left = make_disks(2)
    (small,) = make_disks(1, 160 << 20)
    want(call, devices=[old, left], format=True)
    mount(left, folder / "tank")
    assert "btrfs replace start" in refused(call, devices=[small, left], format=True)
    assert not want(call, devices=[old, left])["changed"]
