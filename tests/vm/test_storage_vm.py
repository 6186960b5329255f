# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""ZFS, which needs a kernel of its own."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from site_lab import Lab, make_inventory, read_lab, run_lab, said, switch_off, worked

NAME = f"zfs{os.getpid()}"
DISKS = [f"/dev/vd{letter}" for letter in "bcdefg"]
PATIENCE = 600  # seconds; an emulated CPU, perhaps beside other work

Playbook = Callable[..., subprocess.CompletedProcess[str]]
Pool = dict[str, Any]


@pytest.fixture(scope="module")
def inventory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inventory(tmp_path_factory.mktemp("zfs") / "inventory")


@pytest.fixture(scope="module")
def lab(inventory: Path) -> Iterator[Lab]:
    boot(inventory)
    try:
        yield read_lab(NAME, inventory.parent)
    finally:
        run_lab("down", "--name", NAME)


@pytest.fixture(scope="module")
def tank() -> Pool:
    """A mirror of ZFS, as tests go on changing it."""
    keep = {"every": "0", "keep": {"last": 2}}
    documents = {"name": "documents", "mode": "0750", "quota": "16M", "snapshots": keep}
    media = {
        "name": "media",
        "path": "/srv/media",
        "compression": "none",
        "needed_by": "cron.service",
    }
    return {
        "name": "tank",
        "provider": "zfs",
        "devices": DISKS[:2],
        "format": True,
        "compression": "lz4",
        "scrub": "weekly",
        "volumes": [documents, media],
    }


def boot(inventory: Path) -> None:
    words = ["--disks", str(len(DISKS)), "--disk-size", "1G", "--zfs"]
    words += ["--inventory", str(inventory)]
    run_lab("vm", "--name", NAME, *words)


def test_zfs_is_refused_before_anything_changes(
    playbook: Playbook, tank: Pool, on: Callable[[str], str]
) -> None:
    assert "set format: true" in said(
        playbook("storage", storage_pools=[{**tank, "format": False}])
    )
    on(f"mkfs.ext4 -q {DISKS[1]}")
    assert f"{DISKS[1]} holds ext4" in said(playbook("storage", storage_pools=[tank]))
    on(f"wipefs -qa {DISKS[1]} && dd if=/dev/zero of={DISKS[1]} bs=1M count=4 conv=fsync")
    on("mkdir /srv/media && echo mine > /srv/media/film")
    assert "/srv/media holds film" in said(playbook("storage", storage_pools=[tank]))
    on("rm -r /srv/media")
    planned = worked(playbook("storage", "--check", "--diff", storage_pools=[tank]))
    assert f"make a pool of mirror {DISKS[0]} {DISKS[1]}" in planned
    assert on("zpool list -H") == ""


def test_a_mirror_of_zfs_is_made(playbook: Playbook, tank: Pool, on: Callable[[str], str]) -> None:
    worked(playbook("storage", storage_pools=[tank]))
    again = worked(playbook("storage", storage_pools=[tank]))
    assert "changed=0" in again, again
    listed = on(
        "zfs get -Hp -o name,property,value compression,refquota,mountpoint,mounted"
    ).split()
    found = {tuple(listed[at : at + 2]): listed[at + 2] for at in range(0, len(listed), 3)}
    assert found["tank/documents", "refquota"] == str(16 << 20)
    assert found["tank/documents", "mountpoint"] == "/srv/tank/documents"
    assert found["tank/documents", "compression"] == "lz4"
    assert found["tank/media", "compression"] == "off"
    assert found["tank/media", "mountpoint"] == "/srv/media"
    assert found["tank/media", "mounted"] == "yes"
    assert on("stat -c %a /srv/tank/documents") == "750"


def test_the_quota_of_a_dataset_is_hit(on: Callable[[str], str]) -> None:
    # Near its end, ZFS takes but a little at a time.
    write = "head -c 24M /dev/urandom > /srv/tank/documents/large"
    on(f"systemd-run --quiet --unit filler sh -c '{write}'")
    deadline = time.monotonic() + PATIENCE
    while on("systemctl is-failed filler.service || true") != "failed":
        assert time.monotonic() < deadline, "it goes on writing"
        time.sleep(2)
    assert "quota exceeded" in on("journalctl -o cat -u filler.service").lower()
    on("systemctl reset-failed filler.service; rm /srv/tank/documents/large; sync")


def test_snapshots_of_a_dataset_come_and_go(on: Callable[[str], str]) -> None:
    foreign = "tank/documents@nas.20200101T000000Z"
    on(f"zfs snapshot {foreign}; mkdir -p /var/lib/prometheus/node-exporter")
    for content in ("first", "second", "third"):
        on(f"echo {content} > /srv/tank/documents/letter")
        on("systemctl start nas-snapshots.service")
        time.sleep(1.1)  # names are of whole seconds
    names = on("zfs list -H -t snapshot -o name tank/documents").split()
    assert names[0] == foreign
    assert len(names) == 3, "the two newest of ours, and the one that is not ours"
    assert on(f"cat /srv/tank/documents/.zfs/snapshot/{names[1].split('@')[1]}/letter") == "second"
    metric = 'nas_snapshots{volume="tank/documents"} 2'
    assert metric in on("cat /var/lib/prometheus/node-exporter/nas_snapshots.prom")


def test_a_dataset_goes_back_and_forth(
    playbook: Playbook, tank: Pool, on: Callable[[str], str]
) -> None:
    before = on("zfs list -H -t snapshot -o name tank/documents").split()
    on("echo last > /srv/tank/documents/letter; touch /srv/tank/documents/new")
    wish = {"volume": "tank/documents", "to": before[1].split("@")[1]}
    pools = {"storage_pools": [tank]}
    odd = {**wish, "to": "nas.20300101T000000Z"}
    refused = playbook("rollback", **pools, storage_rollback=odd)
    assert "is no snapshot of tank/documents" in said(refused)
    worked(playbook("rollback", **pools, storage_rollback=wish))
    assert on("ls /srv/tank/documents; cat /srv/tank/documents/letter") == "letter\nsecond"
    after = on("zfs list -H -t snapshot -o name tank/documents").split()
    (kept,) = set(after) - set(before)
    assert set(before) < set(after)
    # What was there stays, whatever retention says.
    on("for count in 1 2 3; do systemctl start nas-snapshots.service; sleep 1.1; done")
    assert kept in on("zfs list -H -t snapshot -o name tank/documents")
    worked(playbook("rollback", **pools, storage_rollback={**wish, "to": kept.split("@")[1]}))
    assert on("ls /srv/tank/documents; cat /srv/tank/documents/letter") == "letter\nnew\nlast"


def test_a_disk_of_zfs_is_replaced(
    playbook: Playbook, tank: Pool, on: Callable[[str], str]
) -> None:
    on("head -c 30M /dev/urandom > /srv/media/film; sha256sum /srv/media/film > /root/film.sum")
    on(f"zpool offline -f tank {DISKS[1]}")
    assert "tank on nas1 lacks 1 of its devices" in said_by(playbook, tank)
    tank["devices"] = [DISKS[0], DISKS[2]]
    worked(playbook("storage", storage_pools=[tank]))
    assert on("zpool status -x tank") == "pool 'tank' is healthy"
    assert DISKS[1].removeprefix("/dev/") not in on("zpool status tank")
    on("zpool export tank && zpool import tank")
    assert on("sha256sum -c /root/film.sum").endswith("OK")
    # A disk that was in a pool is not blank.
    tank["devices"] = [*tank["devices"], DISKS[1], DISKS[3]]
    assert f"{DISKS[1]} holds " in said(playbook("storage", storage_pools=[tank]))
    on(f"wipefs -qa {DISKS[1]}* && dd if=/dev/zero of={DISKS[1]} bs=1M count=4 conv=fsync")
    worked(playbook("storage", storage_pools=[tank]))
    assert on("zpool status tank | grep -c mirror-") == "2"
    assert "changed=0" in worked(playbook("storage", storage_pools=[tank]))


def said_by(playbook: Playbook, pool: Pool) -> str:
    return " ".join(worked(playbook("storage", storage_pools=[pool])).split())


def test_a_scrub_reads_all(on: Callable[[str], str]) -> None:
    assert on("systemctl start nas-scrub-tank.service && echo whole") == "whole"
    assert "scrub repaired 0B" in on("zpool status tank")


def test_a_dataset_is_copied_and_comes_back(
    playbook: Playbook, tank: Pool, on: Callable[[str], str]
) -> None:
    copies = [{"name": "usb", "device": {"path": DISKS[4], "format": True}}]
    wish = {
        "storage_pools": [tank],
        "backup_sources": [{"volume": "tank/documents"}, {"volume": "tank/media"}],
        "backup_copies": copies,
    }
    worked(playbook("backup", **wish, backup_run=["usb"]))
    assert "nas-backup-" not in on("zfs list -H -t snapshot -o name"), "it left its snapshot"
    on("echo ruined > /srv/tank/documents/letter; rm /srv/media/film")
    what = {"copy": "usb", "sources": ["tank/documents", "tank/media"]}
    worked(playbook("restore", **wish, backup_restore=what))
    assert on("cat /srv/tank/documents/letter") == "last"
    assert on("sha256sum -c /root/film.sum").endswith("OK")
    # By another name: to the one that is there, a second disk would be no part of it.
    other = [{"name": "other", "device": {"path": DISKS[0], "format": True}}]
    refused = said(playbook("backup", **{**wish, "backup_copies": other}))
    assert f"{DISKS[0]} is in use" in refused, refused[-2000:]


def test_datasets_are_there_after_a_reboot(
    lab: Lab, inventory: Path, on: Callable[[str], str]
) -> None:
    """Before what needs them begins."""
    switch_off(lab, PATIENCE)
    boot(inventory)
    assert on("findmnt -no SOURCE /srv/tank/documents; findmnt -no SOURCE /srv/media") == (
        "tank/documents\ntank/media"
    )
    assert on("systemctl is-active cron.service") == "active"
