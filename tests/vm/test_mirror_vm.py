# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: nas.assistant contributors
"""A mirror of Btrfs that boots with one disk, where udev keeps it back until both are there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from site_lab import Lab, make_inventory, play, read_lab, run_lab, said, switch_off, worked

from lab import ssh, vm

NAME = f"mirror{os.getpid()}"
DISKS = ["/dev/vdb", "/dev/vdc"]
PATIENCE = 600  # seconds; an emulated CPU, perhaps beside other work


@pytest.fixture(params=["12", "13"])
def boot(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Lab]]:
    """Return a function that boots the NAS, with fewer disks where told so."""
    inventory = make_inventory(tmp_path / "inventory")

    def up(disks: int = len(DISKS)) -> Lab:
        words = ["--debian", request.param, "--disks", str(disks), "--disk-size", "1G"]
        run_lab("vm", "--name", NAME, *words, "--inventory", str(inventory))
        return read_lab(NAME, inventory)

    try:
        yield up
    finally:
        run_lab("down", "--name", NAME)


def test_a_mirror_boots_with_one_disk(boot: Callable[..., Lab]) -> None:
    lab = boot()
    (host,) = lab.hosts
    vault: dict[str, Any] = {
        "name": "vault",
        "devices": DISKS,
        "format": True,
        "volumes": [{"name": "letters", "path": "/srv/letters", "needed_by": "cron.service"}],
    }
    alone = {**vault, "options": ["noatime", "degraded"]}
    worked(play(lab, "storage", storage_pools=[vault]))
    lab.on(host, "echo whole > /srv/letters/one; sync")
    switch_off(lab, PATIENCE)

    # It waits for the disk, and boots without what is on it.
    boot(1)
    assert lab.on(host, "findmnt /srv/letters || echo none") == "none"
    assert lab.on(host, "systemctl is-active cron.service || true") == "inactive"
    message = said(play(lab, "storage", storage_pools=[vault]))
    assert "vault on nas1 lacks a device and is not mounted" in message

    # Told that it may, it works with one, also after a reboot.
    worked(play(lab, "storage", storage_pools=[alone]))
    assert lab.on(host, "cat /srv/letters/one") == "whole"
    switch_off(lab, PATIENCE)
    boot(1)
    assert lab.on(host, "cat /srv/letters/one") == "whole"
    assert lab.on(host, "systemctl is-active cron.service") == "active"
    lab.on(host, "echo alone > /srv/letters/two; sync")
    switch_off(lab, PATIENCE)

    # Another disk in the place of the one that is lost.
    disk = vm.Vm(NAME, host["ssh_host"]).folder / f"disk{len(DISKS)}.img"
    disk.unlink()
    boot()
    worked(play(lab, "storage", storage_pools=[alone], storage_wait_seconds=PATIENCE))
    worked(play(lab, "storage", storage_pools=[vault], storage_wait_seconds=PATIENCE))
    shown = lab.on(host, "btrfs --format json filesystem df /srv/vault")
    groups = [
        each for each in json.loads(shown)["filesystem-df"] if each["bg-type"] != "GlobalReserve"
    ]
    assert {each["bg-profile"] for each in groups} == {"RAID1"}, shown
    assert lab.on(host, "btrfs filesystem show /srv/vault | grep -c devid") == "2"
    assert lab.on(host, "cat /srv/letters/one /srv/letters/two") == "whole\nalone"
    assert lab.on(host, "ls /usr/local/lib/nas-assistant | grep -c pool-device || true") == "0"
    switch_off(lab, PATIENCE)
    boot()
    assert lab.on(host, "cat /srv/letters/two") == "alone"
    assert ssh.answers(lab.folder, host["ssh_host"])
