# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What btrfs-progs prints, as data; captured from 6.2 and 6.14, with odd names."""

from __future__ import annotations

import pytest
from ansible_collections.nas.assistant.plugins.module_utils._btrfs import (
    Device,
    Subvolume,
    parse_errors,
    parse_filesystems,
    parse_mounts,
    parse_profiles,
    parse_quotas,
    parse_scrub,
    parse_subvolumes,
)

A, B = "cc89cd82-1ebd-814e-9884-da75686e8368", "20edc358-8fbf-e847-a213-bdf1e50622fa"
POOL = "793e3c23-7666-4cf3-970c-ff2c4758a319"
DASH = "-" + " " * 35
LISTING = f"""\
ID 256 gen 9 cgen 7 parent 5 top level 5 parent_uuid {DASH} received_uuid {DASH} uuid {A} path x y
ID 257 gen 9 cgen 8 parent 256 top level 256 parent_uuid {A} received_uuid {B} uuid {B} path x y/a
"""


def test_subvolumes() -> None:
    assert parse_subvolumes(LISTING, "ID 257 gen 9 top level 256 path x y/a\n") == [
        Subvolume(256, 5, "x y", A, "", "", 9, 7, read_only=False),
        Subvolume(257, 256, "x y/a", B, A, B, 9, 8, read_only=True),
    ]
    assert parse_subvolumes("", "") == []


@pytest.mark.parametrize(
    ("line", "device"),
    [
        ("devid    2 size 300 used 100 path /dev/sda", Device(2, "/dev/sda", 300, 100)),
        ("devid    2 size 300 used 100 path /dev/a b", Device(2, "/dev/a b", 300, 100)),
        ("devid    2 size 0 used 0 path  MISSING", Device(2, "", 0, 0)),
        ("devid    2 size 0 used 0 path /dev/sdb MISSING", Device(2, "", 0, 0)),
        ("devid    2 size 0 used 0 path <missing disk> MISSING", Device(2, "", 0, 0)),
    ],
)
def test_devices(line: str, device: Device) -> None:
    head = f"Label: 'two words'  uuid: {POOL}\n\tTotal devices 1 FS bytes used 196608\n"
    (found,) = parse_filesystems(f"{head}\t{line}\n\n")
    assert (found.label, found.uuid, found.used) == ("two words", POOL, 196608)
    assert found.devices == [device]
    assert device.missing == (device.path == "")


def test_filesystems_that_lack_devices_and_labels() -> None:
    listing = f"""\
Label: none  uuid: {A}
\tTotal devices 3 FS bytes used 1
\tdevid    1 size 300 used 100 path /dev/sda
\t*** Some devices missing

Label: 'tank'  uuid: {POOL}
\tTotal devices 1 FS bytes used 2
\tdevid    1 size 300 used 100 path /dev/sdb

Label: 'half replaced'  uuid: {B}
\tTotal devices 2 FS bytes used 2
\tdevid    0 size 300 used 100 path /dev/sde
\tdevid    2 size 300 used 100 path /dev/sdd
"""
    first, second, third = parse_filesystems(listing)
    assert [device.missing for device in third.devices] == [False, False, True]
    assert first.label == ""
    assert [device.missing for device in first.devices] == [False, True, True]
    assert (second.label, len(second.devices)) == ("tank", 1)


def test_profiles_may_be_several() -> None:
    listing = """{"filesystem-df": [
        {"bg-type": "Data", "bg-profile": "RAID1", "total": "1", "used": "0"},
        {"bg-type": "Data", "bg-profile": "single", "total": "1", "used": "0"},
        {"bg-type": "Metadata", "bg-profile": "DUP", "total": "1", "used": "0"},
        {"bg-type": "GlobalReserve", "bg-profile": "single", "total": "1", "used": "0"}]}"""
    assert parse_profiles(listing) == {"data": ["raid1", "single"], "metadata": ["dup"]}


def test_errors() -> None:
    listing = """{"device-stats": [{"device": "/dev/sda", "devid": "1", "write_io_errs": "0",
        "read_io_errs": "3", "flush_io_errs": "0", "corruption_errs": "7",
        "generation_errs": "0"}]}"""
    assert parse_errors(listing) == {
        1: {"write_io": 0, "read_io": 3, "flush_io": 0, "corruption": 7, "generation": 0}
    }


# 6.2, and 6.14 with one blank less and paths in another shape.
OLD = """\
Qgroupid    Referenced    Exclusive  Max referenced  Max exclusive   Path
--------    ----------    ---------  --------------  -------------   ----
0/5              16384        16384            none           none   <toplevel>
0/256            16384         4096        33554432           none   x y
1/0                  0            0            none           none   <0 member qgroups>
"""


def test_quotas() -> None:
    assert parse_quotas(OLD) == {
        5: {"referenced": 16384, "exclusive": 16384, "max_referenced": 0, "max_exclusive": 0},
        256: {
            "referenced": 16384,
            "exclusive": 4096,
            "max_referenced": 33554432,
            "max_exclusive": 0,
        },
    }


NEVER = f"UUID:             {POOL}\n\tno stats available\n"
DONE = f"""\
UUID:             {POOL}
Scrub started:    Tue Nov 24 22:49:09 2026
Status:           finished
Duration:         0:00:00
\tdata_bytes_scrubbed: 4096
\ttree_bytes_scrubbed: 1024
\tread_errors: 1
\tcsum_errors: 2
\tverify_errors: 0
\tsuper_errors: 0
\tuncorrectable_errors: 2
"""


def test_scrubs() -> None:
    assert parse_scrub(NEVER)["status"] == "never"
    assert parse_scrub(DONE) == {
        "status": "finished",
        "started": "Tue Nov 24 22:49:09 2026",
        "bytes": 5120,
        "errors": 3,
        "uncorrectable": 2,
    }


def test_mounts() -> None:
    text = """\
36 25 0:31 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
80 36 0:45 /models /srv/with\\040blank rw,noatime - btrfs /dev/sdb rw,compress=zstd:3,subvol=/models
81 36 0:46 / /srv/tank rw shared:2 master:1 - btrfs /dev/sdb rw
"""
    first, second = parse_mounts(text)
    assert (first.point, first.root, first.device) == ("/srv/with blank", "/models", "/dev/sdb")
    assert {"noatime", "compress=zstd:3"} <= set(first.options)
    assert second.point == "/srv/tank"
