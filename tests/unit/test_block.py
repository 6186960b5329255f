# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""What a disk is called, and how much it holds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible_collections.nas.assistant.plugins.module_utils import _block as block


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file that stands for a disk, and has no other name yet."""
    (tmp_path / "by-id").mkdir()
    monkeypatch.setattr(block, "BY_ID", str(tmp_path / "by-id"))
    path = tmp_path.resolve() / "sdb"
    path.write_bytes(bytes(100))
    return str(path)


def named(disk: str, *names: str) -> list[str]:
    """Give a disk names that last; return them."""
    links = [Path(block.BY_ID, name) for name in names]
    for link in links:
        link.symlink_to(disk)
    return [str(link) for link in links]


def test_a_name_that_somebody_can_read_on_the_disk_is_taken(disk: str) -> None:
    assert block.stable_name(disk) == ""
    (opaque,) = named(disk, "wwn-0x5000")
    assert block.stable_name(disk) == opaque
    _, readable = named(disk, "nvme-eui.01", "scsi-SATA_EXAMPLE_1")
    assert block.stable_name(disk) == readable
    assert block.stable_name(opaque) == readable
    assert block.stable_name(f"{disk}1") == ""


def test_the_kernels_name_is_refused_where_there_is_a_better_one(disk: str) -> None:
    block.demand_stable("tank", [disk], ValueError)
    (better,) = named(disk, "ata-EXAMPLE-1")
    block.demand_stable("tank", [better], ValueError)
    with pytest.raises(ValueError, match=f"^tank: devices: {disk} may be .* name it {better}$"):
        block.demand_stable("tank", [better, disk], ValueError)


def test_room(disk: str) -> None:
    assert block.room(disk) == 100
    assert block.is_there(disk)
    assert block.room(f"{disk}1") == 0
    assert not block.is_there(f"{disk}1")


DISKS = {
    "sda": ("sda", {"sda"}),
    "a partition": ("sda1", {"sda"}),
    "a loop device": ("loop3", {"loop3"}),
    "encrypted": ("dm-0", {"sda"}),
    "a volume of two disks": ("dm-1", {"sdb", "nvme0n1"}),
    "encrypted on a mirror of partitions": ("dm-2", {"sda", "sdb"}),
    "one that is gone": ("sdz", {"sdz"}),
}


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's tree of block devices: what stands on what."""
    below = {
        "sda": [],
        "sda/sda1": [],
        "sda/sda2": [],
        "sdb": [],
        "sdb/sdb1": [],
        "nvme0n1": [],
        "loop3": [],
        "dm-0": ["sda/sda1"],
        "dm-1": ["sdb", "nvme0n1"],
        "md0": ["sda/sda2", "sdb/sdb1"],
        "dm-2": ["md0"],
    }
    devices, names = tmp_path / "devices", tmp_path / "class"
    names.mkdir()
    for place, slaves in below.items():
        (devices / place / "slaves").mkdir(parents=True)
        if "/" in place:
            (devices / place / "partition").write_text("1\n")
        for slave in slaves:
            link = devices / place / "slaves" / Path(slave).name
            link.symlink_to(devices / slave)
        (names / Path(place).name).symlink_to(devices / place)
    monkeypatch.setattr(block, "SYS", str(names))


@pytest.mark.parametrize(
    ("mounted", "kind"),
    [
        ("/dev/sda1 ext4", ""),
        ("1:2 fuse.mergerfs", "fuse.mergerfs"),
        ("overlay overlay", "overlay"),
        ("/dev/fuse fuse.x", ""),
        ("nas:/export nfs4", ""),
        ("//nas/share cifs", ""),
        ("me@nas: fuse.sshfs", ""),
        ("", ""),
    ],
)
def test_filesystems_whose_disks_nobody_knows(
    monkeypatch: pytest.MonkeyPatch, mounted: str, kind: str
) -> None:
    def run(argv: list[str]) -> SimpleNamespace:
        return SimpleNamespace(stdout=f"{mounted}\n")

    monkeypatch.setattr(block, "run", run)
    assert block.opaque("/srv/media") == kind


def test_which_filesystem_a_path_is_in(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"findmnt": "/dev/sda1 ext4\n", "blkid": "1234-abcd\n"}
    monkeypatch.setattr(block, "run", lambda argv: SimpleNamespace(stdout=said[argv[0]]))
    assert block.filesystem("/etc") == "1234-abcd"
    said["findmnt"] = "1:2 fuse.mergerfs\n"
    assert block.filesystem("/etc") == ""
    said["findmnt"] = "tank/documents zfs\n"
    monkeypatch.setattr(block.zfs, "pool", lambda name: SimpleNamespace(guid=f"guid of {name}"))
    assert block.filesystem("/srv/tank/documents") == "guid of tank"


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize(("device", "wanted"), DISKS.values(), ids=DISKS)
def test_the_disks_below(device: str, wanted: set[str]) -> None:
    assert block.disks(f"/dev/{device}") == wanted
