# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""Storage that needs a kernel and a udev of its own: ZFS, and a mirror that boots with one disk."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from site_lab import ROOT, Lab, make_inventory, read_lab, run_lab

from lab import ssh, vm

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
def playbook(lab: Lab) -> Playbook:
    """Return a function that runs a playbook with extra variables."""

    def run(name: str, *arguments: str, **variables: Any) -> subprocess.CompletedProcess[str]:
        extra = ["--extra-vars", json.dumps(variables)]
        command = ["ansible-playbook", "-i", str(lab.inventory), f"nas.assistant.{name}"]
        environ = {**os.environ, "ANSIBLE_FORCE_COLOR": "0"}
        return subprocess.run(
            [*command, *arguments, *extra],
            cwd=ROOT,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture(scope="module")
def on(lab: Lab) -> Callable[[str], str]:
    """Return a function that runs a command on the NAS."""
    return lambda command: lab.on(lab.hosts[0], command)


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


def boot(inventory: Path, disks: int = len(DISKS)) -> None:
    words = ["--disks", str(disks), "--disk-size", "1G", "--zfs", "--inventory", str(inventory)]
    run_lab("vm", "--name", NAME, *words)


def reboot(lab: Lab, inventory: Path, disks: int = len(DISKS)) -> None:
    """Switch it off as its power button does, and on."""
    (host,) = lab.hosts
    lab.on(host, "systemd-run --on-active=1 systemctl poweroff")
    deadline = time.monotonic() + PATIENCE
    while vm.running(lab.folder):
        assert time.monotonic() < deadline, "it does not switch off"
        time.sleep(1)
    boot(inventory, disks)


def worked(run: subprocess.CompletedProcess[str]) -> str:
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-1000:]
    return run.stdout


def said(run: subprocess.CompletedProcess[str]) -> str:
    """What a run said that was refused."""
    assert run.returncode != 0, run.stdout[-3000:]
    return " ".join(run.stdout.split())


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
    same = [{"name": "usb", "device": {"path": DISKS[0], "format": True}}]
    assert "in use" in said(playbook("backup", **{**wish, "backup_copies": same}))


def test_a_mirror_of_btrfs_boots_with_one_disk(
    lab: Lab, inventory: Path, playbook: Playbook, tank: Pool, on: Callable[[str], str]
) -> None:
    """With udev, which keeps a filesystem back until all of its devices are there."""
    vault = {
        "name": "vault",
        "devices": [DISKS[4], DISKS[5]],
        "format": True,
        "volumes": [{"name": "letters", "path": "/srv/letters"}],
    }
    on(f"umount -q {DISKS[4]} || true; wipefs -qa {DISKS[4]}")
    on(f"dd if=/dev/zero of={DISKS[4]} bs=1M count=4 conv=fsync")
    worked(playbook("storage", storage_pools=[tank, vault]))
    on("echo whole > /srv/letters/one; sync")
    reboot(lab, inventory, len(DISKS) - 1)
    assert on("findmnt -no SOURCE /srv/tank/documents; findmnt -no SOURCE /srv/media") == (
        "tank/documents\ntank/media"
    )
    assert on("systemctl is-active cron.service") == "active"
    assert on("findmnt /srv/letters || echo none") == "none"
    message = said(playbook("storage", storage_pools=[tank, vault]))
    assert "vault on nas1 lacks a device and is not mounted" in message
    alone = {**vault, "options": ["noatime", "degraded"]}
    worked(playbook("storage", storage_pools=[tank, alone]))
    assert on("cat /srv/letters/one") == "whole"
    reboot(lab, inventory, len(DISKS) - 1)
    assert on("cat /srv/letters/one") == "whole"
    on("echo alone > /srv/letters/two; sync")
    # Another disk in its place.
    disk = vm.Vm(NAME, lab.hosts[0]["ssh_host"]).folder / f"disk{len(DISKS)}.img"
    disk.unlink()
    reboot(lab, inventory)
    worked(playbook("storage", storage_pools=[tank, alone], storage_wait_seconds=PATIENCE))
    worked(playbook("storage", storage_pools=[tank, vault], storage_wait_seconds=PATIENCE))
    shown = on("btrfs --format json filesystem df /srv/vault")
    groups = [
        each for each in json.loads(shown)["filesystem-df"] if each["bg-type"] != "GlobalReserve"
    ]
    assert {each["bg-profile"] for each in groups} == {"RAID1"}, shown
    assert on("btrfs filesystem show /srv/vault | grep -c devid") == "2"
    assert on("cat /srv/letters/one /srv/letters/two") == "whole\nalone"
    assert ssh.answers(lab.folder, lab.hosts[0]["ssh_host"])
